"""Near copies of given conversations, told by their words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pyids.chat.digest import digest, normalize
from pyids.chat.formats import Message
from pyids.chat.render import said_in

# Three words in a row; shorter texts are one shingle.
_SHINGLE = 3
# A text that shares this share of its shingles with another (Jaccard) is a near copy of it.
SAME = 0.8
_WORD = re.compile(r"\w+")


class NearCopies:
    """Recognizes conversations that repeat, or all but repeat, one of those given.

    That is, if the text is the same but for white space; if all that stands before the last answer
    has the same words in the same order (the same question, whatever the answer); or if the
    three-word shingles of the whole texts overlap by `SAME` or more (Jaccard).

    Parameters
    ----------
    conversations
        What is not to be repeated.
    """

    def __init__(self, conversations: Iterable[Sequence[Message]]) -> None:
        self._digests: set[bytes] = set()
        self._prompts: set[tuple[str, ...]] = set()
        self._with: dict[tuple[str, ...], list[int]] = {}
        self._sizes: list[int] = []
        for number, messages in enumerate(conversations):
            self._digests.add(digest(messages))
            if prompt := prompt_words(messages):
                self._prompts.add(prompt)
            shingles = _shingles(_words(messages))
            self._sizes.append(len(shingles))
            for shingle in shingles:
                self._with.setdefault(shingle, []).append(number)

    def __contains__(self, messages: Sequence[Message]) -> bool:
        if prompt_words(messages) in self._prompts or digest(messages) in self._digests:
            return True
        shingles = _shingles(_words(messages))
        shared = Counter(
            number for shingle in shingles & self._with.keys() for number in self._with[shingle]
        )
        return any(
            n >= SAME * (len(shingles) + self._sizes[number] - n) for number, n in shared.items()
        )


def prompt_words(messages: Sequence[Message]) -> tuple[str, ...]:
    """Return the words of the turns before the last answer, in lower case."""
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    return _words(messages[: answers[-1]] if answers else messages)


def _words(messages: Iterable[Message]) -> tuple[str, ...]:
    text = " ".join(normalize(said_in(m)) for m in messages)
    return tuple(_WORD.findall(text.lower()))


def _shingles(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {words[i : i + _SHINGLE] for i in range(max(1, len(words) - _SHINGLE + 1))} - {()}
