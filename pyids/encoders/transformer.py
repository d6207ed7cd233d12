"""Transformers as encoders: Hugging Face and sentence-transformers folders, with our pooling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pyids.config import LongText
from pyids.errors import ModelError
from pyids.models.batching import Progress, batches_by_length
from pyids.models.hf import one_line, quiet, torch_dtype
from pyids.models.hub import ModelRef, local_folder
from pyids.models.load import load_pretrained, load_tokenizer
from pyids.ops.dispatch import PoolMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """How a model folder wants its token states turned into a vector.

    Attributes
    ----------
    pooling
        A mode of `pyids.ops.pool`.
    normalize
        Whether vectors get unit length.
    max_length
        Longest text that the model takes, special tokens included.
    """

    pooling: PoolMode
    normalize: bool
    max_length: int


_POOLING: dict[str, PoolMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}


def read_recipe(folder: Path, name: str) -> Recipe:
    """Read a folder's recipe from its sentence-transformers files; mean pooling where it has none.

    Raises
    ------
    ModelError
        Where the folder asks for a module that is neither pooling nor normalization, or its files
        are not such as sentence-transformers writes.
    """
    try:
        return _read_recipe(folder, name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"encoder {name!r}: its JSON files cannot be understood "
            f"({type(error).__name__}: {one_line(error)}): get them again"
        ) from error


def _read_recipe(folder: Path, name: str) -> Recipe:
    config = _read_json(folder / "config.json")
    tokenizer = _read_json(folder / "tokenizer_config.json")
    limits = [
        config.get("max_position_embeddings"),
        tokenizer.get("model_max_length"),
        _read_json(folder / "sentence_bert_config.json").get("max_seq_length"),
    ]
    max_length = min((int(limit) for limit in limits if limit), default=512)
    modules = folder / "modules.json"
    if not modules.is_file():
        causal = any("ForCausalLM" in kind for kind in config.get("architectures") or [])
        return Recipe("weighted_mean" if causal else "mean", True, max_length)
    pooling: PoolMode = "mean"
    normalize = False
    for module in _read_json(modules):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            inside = (folder / module["path"]).resolve()
            if not inside.is_relative_to(folder.resolve()):
                raise ModelError(
                    f"encoder {name!r}: its modules.json names a file outside of it: get the "
                    "files again from a place that you trust"
                )
            pooling = _read_pooling(_read_json(inside / "config.json"), name)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ModelError(
                f"encoder {name!r}: its module {kind} is not supported, only Transformer, Pooling "
                "and Normalize; embed with its own library and pass --embeddings-file"
            )
    return Recipe(pooling, normalize, max_length)


def _read_pooling(config: dict[str, Any], name: str) -> PoolMode:
    asked = [
        key for key, value in config.items() if key.startswith("pooling_mode_") and value is True
    ]
    if single := config.get("pooling_mode"):
        asked = [single if single.startswith("pooling_mode_") else f"pooling_mode_{single}"]
    short = {
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token"): value
        for key, value in _POOLING.items()
    }
    modes = [_POOLING.get(key) or short.get(key.removeprefix("pooling_mode_")) for key in asked]
    if len(modes) != 1 or (mode := modes[0]) is None:
        raise ModelError(
            f"encoder {name!r}: its pooling {', '.join(asked) or 'is none'} is not one of "
            f"{', '.join(short)}; embed with its own library and pass --embeddings-file"
        )
    return mode


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


@dataclass(frozen=True)
class TransformerEncoder:
    """A transformer, pooled as its folder says."""

    ref: ModelRef
    pooling: PoolMode | None = None
    max_length: int | None = None
    long_text: LongText = "truncate"
    batch_tokens: int = 1024
    device: str = "cpu"
    dtype: str = "float32"
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """The name it was asked for by."""
        return self.ref.name

    @property
    def dim(self) -> int:
        """The hidden size."""
        return int(_read_json(self.folder / "config.json")["hidden_size"])

    @cached_property
    def revision(self) -> str:
        """Hash of the files, the limit and the way of long texts."""
        digest = xxhash.xxh3_128()
        for file in sorted(self.folder.rglob("*")):
            if file.suffix in (".json", ".safetensors", ".txt", ".model"):
                digest.update(file.relative_to(self.folder).as_posix().encode())
                with file.open("rb") as stream:
                    while block := stream.read(1 << 22):
                        digest.update(block)
        digest.update(f"{self.recipe.pooling} {self.limit} {self.long_text} {self.dtype}".encode())
        return digest.hexdigest()

    @cached_property
    def folder(self) -> Path:
        """Where the files are."""
        return local_folder(self.ref)

    @cached_property
    def recipe(self) -> Recipe:
        """What the folder asks for."""
        recipe = read_recipe(self.folder, self.name)
        return replace(recipe, pooling=self.pooling) if self.pooling else recipe

    @property
    def limit(self) -> int:
        """Longest text in tokens."""
        return min(self.recipe.max_length, self.max_length or self.recipe.max_length)

    @property
    def _autocast(self) -> bool:
        """Whether only matrix products are in half precision: what a CPU is fast at, and closer."""
        return self.device == "cpu" and self.dtype != "float32"

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from transformers import AutoModel

        model = load_pretrained(
            AutoModel,
            self.ref,
            self.folder,
            self.device,
            "float32" if self._autocast else self.dtype,
            trust_remote_code=self.trust_remote_code,
        )
        return model, load_tokenizer(self.ref, trust_remote_code=self.trust_remote_code)

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
        """Return the vectors of N texts, (N, D) float32."""
        model, tokenizer = self._loaded
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        chunks, owner = self._tokenize(tokenizer, texts)
        vectors = self._encode_tokens(model, tokenizer, chunks, progress)
        if len(chunks) == len(texts):
            return vectors
        weights = np.asarray([len(chunk) for chunk in chunks], np.float64)
        summed = np.zeros((len(texts), vectors.shape[1]))
        np.add.at(summed, owner, vectors * weights[:, None])
        mean = summed / np.bincount(owner, weights, len(texts))[:, None]
        if self.recipe.normalize:
            mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-30)
        return mean.astype(np.float32)

    def _tokenize(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> tuple[list[list[int]], list[int]]:
        """Return the tokens of each chunk, special tokens included, and the text it is part of."""
        if self.long_text == "truncate":
            out = tokenizer(
                list(texts), truncation=True, max_length=self.limit, return_attention_mask=False
            )
            return out["input_ids"], list(range(len(texts)))
        before, after = _special_tokens(tokenizer)
        room = self.limit - len(before) - len(after)
        chunks, owner = [], []
        with quiet():  # it warns of texts above the limit
            bodies = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        for i, body in enumerate(bodies["input_ids"]):
            pieces = max(1, -(-len(body) // room))
            for piece in np.array_split(np.asarray(body, np.int64), pieces):
                chunks.append([*before, *piece.tolist(), *after])
                owner.append(i)
        return chunks, owner

    def _encode_tokens(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chunks: list[list[int]],
        progress: Progress | None,
    ) -> Float32:
        import torch

        from pyids.ops import pool

        lengths = [len(chunk) for chunk in chunks]
        vectors = np.zeros((len(chunks), self.dim), np.float32)
        done = 0
        products = torch_dtype(self.dtype)
        with torch.inference_mode(), torch.autocast("cpu", products, enabled=self._autocast):
            for batch in batches_by_length(lengths, self.batch_tokens):
                width = max(1, lengths[batch[0]])
                input_ids = np.full((len(batch), width), tokenizer.pad_token_id or 0, np.int64)
                attention_mask = np.zeros((len(batch), width), np.int64)
                for b, i in enumerate(batch):
                    input_ids[b, : lengths[i]] = chunks[i]
                    attention_mask[b, : lengths[i]] = 1
                mask = torch.from_numpy(attention_mask).to(self.device)
                hidden = model(
                    input_ids=torch.from_numpy(input_ids).to(self.device), attention_mask=mask
                ).last_hidden_state
                pooled = pool(
                    hidden, mask, mode=self.recipe.pooling, normalize=self.recipe.normalize
                )
                vectors[batch] = pooled.cpu().numpy()
                done += sum(lengths[i] for i in batch)
                if progress is not None:
                    progress(done, sum(lengths))
        return vectors


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return what the tokenizer puts before and after a text."""
    out: Any = tokenizer("a", return_special_tokens_mask=True)
    ids, special = out["input_ids"], out["special_tokens_mask"]
    first = special.index(0)
    last = len(special) - special[::-1].index(0)
    return ids[:first], ids[last:]
