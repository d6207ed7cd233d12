"""Rows that must not be trained on, because they repeat what will be reported.

Two texts are compared by their words: in lower case, Unicode NFKC, without punctuation; a character
of a script that puts no spaces between words is a word. A row is excluded

- as ``exact``, when its conversation is that of a held-out row, or what stands before its last
  answer has the same words as what stands before a held-out row's;
- as an ``n-gram`` match, when one of its turns has `n` words in a row that a held-out row has, too
  (13, as decontamination is published since Brown et al., arXiv 2005.14165, appendix C), or so many
  that they are a given share of the held-out row's. System turns do not count: many rows share one.

Held-out rows need not be conversations: of a row in no chat format every text counts, those of four
words or more as a prompt, too.

Words become bytes with one space between them, so that an n-gram is a piece of them; a piece is
known by a polynomial hash of its bytes modulo 2**64, the difference of two sums from the start. Of
all pieces of many rows at once a bitmap lets few through, a sorted array fewer, and what is left is
compared as text: a hash decides nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pyids.chat.digest import digest
from pyids.chat.formats import BadRow, Message, UnusableRow, detect_format, to_messages
from pyids.data.readers import Problem, Reader
from pyids.data.sources import open_sources
from pyids.errors import DataError

NGRAM = 13

# Words of a text without a chat format that count as a prompt.
_PROMPT_WORDS = 4
_BITS = 27
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# Held-out rows that an n-gram, or a row, is compared with; and whose n-grams are kept at hand.
_OWNERS = 64
_REMEMBERED = 4096
# Bytes of words that are hashed at a time.
_BATCH_BYTES = 1 << 20

# Thai, Lao, Myanmar, Khmer, kana, Han: scripts without spaces between words.
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_NO_SPACES += "\U00020000-\U0003ffff"
# What an ASCII letter or digit becomes; all others part words.
_ASCII = bytes(
    ord(chr(c).lower()) if c < 128 and chr(c).isalnum() else ord(" ") for c in range(256)
)


# Where marks and such scripts stand among the characters, and more: a text without any of these, as
# most are, is cut into words by a pattern that is much faster.
_SPECIAL = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u1dff\u20d0-\u20ff\u2c00-\uabff\ud7a4-\uffff"
    "\U00010000-\U0001efff\U0001fb00-\U0010ffff]"
)
_PLAIN = re.compile(r"[^\W_]+")


@cache
def _word() -> re.Pattern[str]:
    """Match a word; marks, such as the vowel signs of Devanagari, belong to the letter before."""
    marks = "".join(
        chr(c)
        for c in range(0x300, 0x1E950)
        if unicodedata.category(chr(c))[0] == "M" and not re.match(f"[{_NO_SPACES}]", chr(c))
    )
    letter = rf"[^\W_{_NO_SPACES}]"
    return re.compile(rf"[{_NO_SPACES}]|{letter}(?:{letter}|[{marks}])*")


def words_of(text: str) -> bytes:
    """Return the words of a text as UTF-8, with one space between them."""
    if text.isascii():
        return b" ".join(text.encode().translate(_ASCII).split())
    text = unicodedata.normalize("NFKC", text).lower()
    word = _word() if _SPECIAL.search(text) else _PLAIN
    return " ".join(word.findall(text)).encode("utf-8", "replace")


class Held(NamedTuple):
    """A held-out row: where it stands, its digest and prompt if it is a conversation, its texts."""

    place: str
    digest: bytes | None
    prompts: tuple[bytes, ...]
    texts: tuple[bytes, ...]
    messages: Sequence[Message]


class Match(NamedTuple):
    """A row of the pool that a held-out row excludes.

    Attributes
    ----------
    row_id
        The row.
    held
        Number of the held-out row; of several the one with the most n-grams in common, or the
        first.
    why
        ``exact``, ``n-gram`` or ``vector``.
    shared, share
        N-grams that both have, and which share of the held-out row's they are; or the cosine.
    text
        The first n-gram that both have.
    """

    row_id: int
    held: int
    why: str
    shared: int = 0
    share: float = 0.0
    text: str = ""


def read_held_out(names: Sequence[str]) -> list[Held]:
    """Read held-out rows: files as DATA, or names of benchmarks on the hub.

    Raises
    ------
    DataError
        A file is not there, cannot be read, or holds no text.
    """
    found: list[Held] = []
    # Any chat format passes: what a row holds is looked at row by row.
    for source in open_sources(names, format="text", held_out=True):
        first = len(found)
        for line, _, record in Reader(source.path, source.kind, source.compression):
            place = f"{source.path} {source.unit} {line}"
            if isinstance(record, Problem):
                raise DataError(f"{source.path} {source.unit} {record.line}: {record.text}")
            found.append(_held(record, place))
        if not any(held.texts for held in islice(found, first, None)):
            raise DataError(f"{source.path}: no row holds a text: name a file of held-out rows")
    return found


def _held(record: Mapping[str, Any], place: str) -> Held:
    format = detect_format(record)
    try:
        messages = None if format is None else to_messages(record, format)
        key = None if messages is None else digest(messages)
    except (BadRow, UnusableRow):
        messages = key = None
    if messages is None:
        texts = tuple(dict.fromkeys(words for t in _texts(record) if (words := words_of(t))))
        prompts = tuple(text for text in texts if text.count(b" ") >= _PROMPT_WORDS - 1)
        said = [{"role": "user", "content": text} for text in _texts(record)]
        return Held(place, None, prompts, texts, said)
    turns, before = turns_of(messages)
    prompts = (b" ".join(turns[:before]),) if before else ()
    return Held(place, key, prompts, tuple(turns), messages)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def turns_of(messages: Iterable[Message]) -> tuple[list[bytes], int]:
    """Return the words of turns, and how many of them stand before the last answer.

    Of each turn that has some, and of its reasoning, but for system turns. All stand before the
    last answer where there is none.
    """
    found: list[bytes] = []
    before: int | None = None
    for message in messages:
        if message["role"] in ("system", "developer"):
            continue
        if message["role"] == "assistant":
            before = len(found)
        for key in ("content", "reasoning_content", "thinking"):
            text = message.get(key)
            if isinstance(text, str) and (words := words_of(text)):
                found.append(words)
    return found, len(found) if before is None else before


# ---- n-grams as hashes ---------------------------------------------------------------------------


def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the powers of an odd number modulo 2**64, and of its inverse."""
    inverse = np.uint64(pow(int(_MULTIPLIER), -1, 1 << 64))
    powers = []
    for base in (_MULTIPLIER, inverse):
        steps = np.full(count, base, np.uint64)
        steps[0] = 1
        powers.append(np.multiply.accumulate(steps))
    return powers[0], powers[1]


class Pieces(NamedTuple):
    """The n-grams of some texts: hash uint64, number of the text, first and last byte in them."""

    hashes: NDArray[np.uint64]
    text: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]


class Hasher:
    """Finds the n-grams of texts, which are words with one space between them."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._powers: tuple[NDArray[np.uint64], NDArray[np.uint64]] = _powers(_BATCH_BYTES)

    def __call__(self, texts: Sequence[bytes]) -> tuple[bytes, Pieces]:
        """Return the texts as one, and their n-grams in it."""
        whole = b"\n".join(texts) + b"\n"
        if len(whole) + 1 > len(self._powers[0]):
            self._powers = _powers(2 * len(whole) + 1)
        data = np.frombuffer(whole, np.uint8)
        ends = np.flatnonzero(data <= 32)  # of words: a space, or the end of a text
        starts = np.append(0, ends[:-1] + 1)
        text = np.cumsum(data[ends] == 10) - (data[ends] == 10)
        if len(ends) < self.n:
            empty = np.empty(0, np.int64)
            return whole, Pieces(np.empty(0, np.uint64), empty, empty, empty)
        start, stop = starts[: len(ends) - self.n + 1], ends[self.n - 1 :]
        inside = text[: len(start)] == text[self.n - 1 :]
        start, stop, text = start[inside], stop[inside], text[: len(start)][inside]
        powers, inverses = self._powers
        sums = np.zeros(len(data) + 1, np.uint64)
        np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[: len(data)], out=sums[1:])
        hashes = (sums[stop] - sums[start]) * inverses[start]
        hashes ^= hashes >> np.uint64(29)  # the low bits of a product know the low bits alone
        return whole, Pieces(hashes, text, start, stop)


def batches(texts: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Put numbered texts together to about a megabyte."""
    batch: list[tuple[int, bytes]] = []
    size = 0
    for item in texts:
        batch.append(item)
        size += len(item[1]) + 1
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class Options:
    """How rows are compared.

    Attributes
    ----------
    n
        Words of an n-gram.
    overlap
        Share of a held-out row's n-grams that excludes; None: one n-gram does.
    """

    n: int = NGRAM
    overlap: float | None = None


class HeldOut:
    """Held-out rows, made ready to find rows that repeat them.

    Memory grows with the held-out rows alone: some 50 bytes a word of theirs.

    Parameters
    ----------
    rows
        The held-out rows.
    options
        How rows are compared.
    """

    def __init__(self, rows: Sequence[Held], options: Options | None = None) -> None:
        self.options = options or Options()
        self.rows = rows
        self._digests = {row.digest: n for n, row in reversed(list(enumerate(rows))) if row.digest}
        self._prompts: dict[bytes, int] = {}
        for n, row in enumerate(rows):
            for prompt in row.prompts:
                self._prompts.setdefault(xxhash.xxh3_128_digest(prompt), n)
        self._hasher = Hasher(self.options.n)
        hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for batch in batches((n, text) for n, row in enumerate(rows) for text in row.texts):
            numbers = np.array([n for n, _ in batch], np.int64)
            _, pieces = self._hasher([text for _, text in batch])
            hashes.append(pieces.hashes)
            owners.append(numbers[pieces.text])
        hash_, owner = np.concatenate(hashes), np.concatenate(owners)
        order = np.lexsort((owner, hash_))
        hash_, owner = hash_[order], owner[order]
        new = np.append(True, (hash_[1:] != hash_[:-1]) | (owner[1:] != owner[:-1]))[: len(hash_)]
        self._hashes, self._owners = hash_[new], owner[new]
        self._bits = np.zeros(1 << (_BITS - 3), np.uint8)
        at = self._hashes >> np.uint64(64 - _BITS)
        np.bitwise_or.at(
            self._bits, at >> np.uint64(3), np.uint8(1) << (at & np.uint64(7)).astype(np.uint8)
        )
        self._own: dict[int, set[bytes]] = {}

    def find(self, rows: Iterable[tuple[int, Sequence[Message]]]) -> Iterator[Match]:
        """Find the rows that repeat a held-out row by their words; each once, in their order.

        Parameters
        ----------
        rows
            Ids and conversations.
        """
        exact: dict[int, int] = {}

        def texts() -> Iterator[tuple[int, bytes]]:
            for row_id, messages in rows:
                turns, before = turns_of(messages)
                held = self._digests.get(digest(messages))
                if held is None and self._prompts:
                    prompt = b" ".join(turns[:before])
                    held = self._prompts.get(xxhash.xxh3_128_digest(prompt))
                if held is not None:
                    exact[row_id] = held
                else:
                    yield from ((row_id, turn) for turn in turns)

        pending: dict[int, list[tuple[int, bytes]]] = {}
        for batch in batches(texts()):
            for row_id, pieces in self._shared(batch).items():
                pending.setdefault(row_id, []).extend(pieces)
        found = [Match(row_id, held, "exact") for row_id, held in exact.items()]
        for row_id, pieces in pending.items():
            if (match := self._judge(row_id, pieces)) is not None:
                found.append(match)
        yield from sorted(found)

    def _shared(self, batch: Sequence[tuple[int, bytes]]) -> dict[int, list[tuple[int, bytes]]]:
        """Give for each row the n-grams that it shares with held-out rows, and with which ones."""
        whole, pieces = self._hasher([text for _, text in batch])
        at = pieces.hashes >> np.uint64(64 - _BITS)
        bits = self._bits[at >> np.uint64(3)] >> (at & np.uint64(7)).astype(np.uint8)
        maybe = np.flatnonzero(bits & 1)
        first = np.searchsorted(self._hashes, pieces.hashes[maybe])
        last = np.searchsorted(self._hashes, pieces.hashes[maybe], side="right")
        last = np.minimum(last, first + _OWNERS)
        found: dict[int, list[tuple[int, bytes]]] = {}
        for piece, a, b in zip(maybe.tolist(), first.tolist(), last.tolist(), strict=True):
            owners = self._owners[a:b].tolist()
            words = whole[pieces.start[piece] : pieces.stop[piece]]
            if owners and any(words in self._ngrams(held) for held in owners):
                row = found.setdefault(batch[pieces.text[piece]][0], [])
                row += ((held, words) for held in owners)
        return found

    def _ngrams(self, held: int) -> set[bytes]:
        """Give the n-grams of one held-out row; kept for some that were asked for."""
        if held not in self._own:
            if len(self._own) >= _REMEMBERED:
                self._own.clear()
            whole, pieces = self._hasher(self.rows[held].texts)
            spans = zip(pieces.start.tolist(), pieces.stop.tolist(), strict=True)
            self._own[held] = {whole[a:b] for a, b in spans}
        return self._own[held]

    def _judge(self, row_id: int, pieces: list[tuple[int, bytes]]) -> Match | None:
        """Say whether what a row shares excludes it: with the held-out row that it shares most."""
        words = dict.fromkeys(text for _, text in pieces)
        likely = Counter(held for held, _ in dict.fromkeys(pieces)).most_common(_OWNERS)
        best: Match | None = None
        for held, _ in sorted(likely):
            own = self._ngrams(held)
            shared = [text for text in words if text in own]
            share = len(shared) / len(own)
            if shared and (best is None or share > best.share):
                text = shared[0].decode("utf-8", "replace")
                best = Match(row_id, held, "n-gram", len(shared), share, text)
        overlap = self.options.overlap
        return best if best is not None and (overlap is None or best.share >= overlap) else None
