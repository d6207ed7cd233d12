"""Static token embeddings as encoders: the mean of a text's token vectors, no transformer.

The way to embed millions of rows on a CPU. To read a text into tokens would be nearly all of the
work, but words repeat: where the tokens of a text are known to be those of its words
(`pyids.encoders.pieces`), the core keeps the tokens of the words that it has seen, in at most 64 MB
(while they grow, half as much again), and the `tokenizers` library is asked for new words only.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from pyids import _core
from pyids.encoders.pieces import find_cut
from pyids.errors import ModelError
from pyids.models.batching import Progress
from pyids.models.hf import one_line
from pyids.models.hub import ModelRef

Float32 = NDArray[np.float32]
Ids = NDArray[np.int64]
# To be raised when the same tokens would have another mean, by however little.
_ROUNDING = 2
# Texts embedded at a time: a few blocks a shard, so that the work on them overlaps.
_BLOCK_ROWS = 2048
# What an encoder's words and their tokens may take: some 500,000. When it is full, it is emptied.
_CACHE_BYTES = 64 << 20


class Table(NamedTuple):
    """Where a static model's files are, and whether it scales its vectors to unit length."""

    weights: Path
    tokenizer: Path
    normalize: bool


def find_table(folder: Path) -> Table | None:
    """Find a token table: wordllama's own layout, model2vec's, or sentence-transformers'.

    Returns
    -------
    Table or None
        None where the folder holds no static model.
    """
    wordllama = folder / "weights" / "l2_supercat_256.safetensors"
    if wordllama.is_file():
        tokenizer = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
        return Table(wordllama, tokenizer, normalize=True)
    config = folder / "config.json"
    if config.is_file():
        settings = json.loads(config.read_text("utf-8"))
        if settings.get("model_type") == "model2vec":
            normalize = bool(settings.get("normalize", False))
            return Table(folder / "model.safetensors", folder / "tokenizer.json", normalize)
    modules = folder / "modules.json"
    if modules.is_file():
        kinds = {m["type"].rpartition(".")[2]: m["path"] for m in json.loads(modules.read_text())}
        if "StaticEmbedding" in kinds:
            inner = folder / kinds["StaticEmbedding"]
            return Table(
                inner / "model.safetensors", inner / "tokenizer.json", "Normalize" in kinds
            )
    return None


@dataclass(frozen=True)
class StaticEncoder:
    """The mean of token vectors; a text without a known token gets zeros."""

    ref: ModelRef
    table: Table
    max_length: int | None = None

    @property
    def name(self) -> str:
        """The name it was asked for by."""
        return self.ref.name

    @cached_property
    def revision(self) -> str:
        """Hash of the table, the tokenizer, the limit, and how means are rounded."""
        digest = xxhash.xxh3_128(self.table.weights.read_bytes())
        digest.update(self.table.tokenizer.read_bytes())
        digest.update(f"{self.max_length} {self.table.normalize} {_ROUNDING}".encode())
        return digest.hexdigest()

    @property
    def dim(self) -> int:
        """D, the length of a token's vector."""
        return int(self._loaded[0].shape[1])

    @cached_property
    def _loaded(self) -> tuple[Float32, Any, int | None]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        try:
            tensors = load_file(self.table.weights)
            tokenizer = Tokenizer.from_file(str(self.table.tokenizer))
            (table,) = (t for name, t in tensors.items() if t.ndim == 2)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(
                f"encoder {self.name!r}: {self.table.weights.name} holds no single table of token "
                f"vectors ({one_line(error)}): get the files again"
            ) from error
        table = table.float()
        if "mapping" in tensors:  # tokens that share a vector
            table = table[tensors["mapping"].long()]
        if "weights" in tensors:
            table = table * tensors["weights"].float()[:, None]
        tokenizer.no_padding()
        tokenizer.no_truncation()
        unknown = getattr(tokenizer.model, "unk_token", None)
        vectors: Float32 = np.ascontiguousarray(table.numpy())
        return vectors, tokenizer, tokenizer.token_to_id(unknown) if unknown else None

    @cached_property
    def _means(self) -> _core.TokenMeans:
        vectors, tokenizer, unknown = self._loaded
        cut = find_cut(orjson.loads(tokenizer.to_str()))
        return _core.TokenMeans(
            vectors,
            partial(_tokenize, tokenizer),
            cut=cut.kind,
            whole=cut.whole,
            limit=self.max_length,
            unknown=unknown,
            normalize=self.table.normalize,
            max_bytes=_CACHE_BYTES,
        )

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
        """Return the vectors of N texts, (N, D) float32; progress counts texts."""
        vectors, done = np.zeros((len(texts), self.dim), np.float32), 0
        for block in self.encode_stream(texts):
            vectors[done : done + len(block)] = block
            done += len(block)
            if progress is not None:
                progress(done, len(texts))
        return vectors

    def encode_stream(
        self, texts: Iterable[str], n_threads: int | None = None
    ) -> Iterator[Float32]:
        """Yield the vectors of texts, some at a time.

        Up to `n_threads` threads (None: one per core) work on a block and need no interpreter:
        meanwhile the texts of the next are taken from `texts`, unless one thread is all that there
        is to be. The vectors are the same bits for any number of threads, and whatever was encoded
        before.
        """
        means = self._means  # here, not in the thread, so that its errors are the caller's
        waiting: deque[Future[Float32]] = deque()
        iterator = iter(texts)
        if n_threads == 1:
            while block := list(islice(iterator, _BLOCK_ROWS)):
                yield means.encode(block, 1)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
            while block := list(islice(iterator, _BLOCK_ROWS)):
                waiting.append(thread.submit(means.encode, block, n_threads or 0))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _tokenize(tokenizer: Any, texts: list[str]) -> tuple[Ids, Ids]:
    """Return the ids of texts, one after the other, and how many each has."""
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum())), lengths
