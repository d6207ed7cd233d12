"""Static token embeddings as encoders: the mean of a text's token vectors, no transformer.

The way to embed millions of rows on a CPU: reading the text into tokens is most of the work.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pyids.errors import ModelError
from pyids.models.batching import Progress
from pyids.models.hf import one_line
from pyids.models.hub import ModelRef

Float32 = NDArray[np.float32]
# Texts tokenized at a time: a few blocks a shard, so that the work on them overlaps.
_BLOCK_ROWS = 2048


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
        """Hash of the table, the tokenizer and the limit."""
        digest = xxhash.xxh3_128(self.table.weights.read_bytes())
        digest.update(self.table.tokenizer.read_bytes())
        digest.update(f"{self.max_length} {self.table.normalize}".encode())
        return digest.hexdigest()

    @property
    def dim(self) -> int:
        """D, the length of a token's vector."""
        return int(self._loaded[0].shape[1])

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int | None]:
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
        return table, tokenizer, tokenizer.token_to_id(unknown) if unknown else None

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
        """Return the vectors of N texts, (N, D) float32; progress counts texts."""
        vectors, done = np.zeros((len(texts), self.dim), np.float32), 0
        for block in self.encode_stream(texts):
            vectors[done : done + len(block)] = block
            done += len(block)
            if progress is not None:
                progress(done, len(texts))
        return vectors

    def encode_stream(self, texts: Iterable[str]) -> Iterator[Float32]:
        """Yield the vectors of texts, some at a time.

        The tokenizer works on every core and needs no interpreter: while it has a block, the texts
        of the next are taken from `texts`, and the vectors of the one before are made.
        """
        _ = self._loaded  # here, not in the thread, so that its errors are the caller's
        waiting: deque[Future[list[Any]]] = deque()
        iterator = iter(texts)
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as thread:
            while block := list(islice(iterator, _BLOCK_ROWS)):
                waiting.append(thread.submit(self._tokenize, block))
                if len(waiting) > 1:
                    yield self._mean(waiting.popleft().result())
            while waiting:
                yield self._mean(waiting.popleft().result())

    def _tokenize(self, block: list[str]) -> list[Any]:
        encodings: list[Any] = self._loaded[1].encode_batch_fast(block, add_special_tokens=False)
        return encodings

    def _mean(self, encodings: list[Any]) -> Float32:
        import torch

        table, _, unknown = self._loaded
        rows = [encoding.ids[: self.max_length] for encoding in encodings]
        ids = np.fromiter(chain.from_iterable(rows), np.int64)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        if unknown is not None and (known := ids != unknown).sum() < len(ids):
            owner = np.repeat(np.arange(len(rows)), lengths)[known]
            ids, lengths = ids[known], np.bincount(owner, minlength=len(rows))
        pooled = torch.nn.functional.embedding_bag(
            torch.from_numpy(ids),
            table,
            torch.from_numpy(np.cumsum(lengths) - lengths),
            mode="mean",
        )
        if self.table.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        vectors: Float32 = pooled.numpy()
        return vectors
