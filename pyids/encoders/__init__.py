"""Texts to vectors.

An encoder is an object with ``name``, ``revision``, ``dim`` and ``encode(texts) -> (N, D)``.
Vectors of equal texts are equal up to rounding, whatever stands beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pyids.config import LongText
from pyids.errors import ModelError
from pyids.models.batching import Progress
from pyids.models.hub import resolve_model
from pyids.ops.dispatch import PoolMode
from pyids.registry import ENCODERS, find_module

Float32 = NDArray[np.float32]


class Encoder(Protocol):
    """What a stage needs of an encoder."""

    @property
    def name(self) -> str:
        """The name it was asked for by."""
        ...

    @property
    def revision(self) -> str:
        """Changes whenever the vectors may."""
        ...

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        ...

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Float32:
        """Return the vectors of N texts, (N, D) float32."""
        ...


def load_encoder(
    name: str,
    *,
    max_length: int | None = None,
    long_text: LongText = "truncate",
    batch_tokens: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> Encoder:
    """Find an encoder by name; its weights are loaded with the first text.

    Parameters
    ----------
    name
        What `pyids.models.hub.resolve_model` takes, and ``NAME:POOLING`` to choose the pooling; or
        ``URL#MODEL``, an OpenAI-compatible endpoint (``https://host/v1#model``). What kind of model
        it is, is read from its folder:

        - a sentence-transformers folder: its own pooling and normalization;
        - static token embeddings (``wordllama``, a model2vec folder): their mean; no transformer,
          some hundred thousand rows a second on a CPU;
        - a causal language model: the mean of its hidden states weighted by position, as RDS+ does
          (arXiv 2503.01807), unless ``:last_token`` is asked for; unit length;
        - any other: the mean of its hidden states; unit length.

        Or an encoder of your own (`pyids.registry.ENCODERS`): a function ``module:function`` of
        the keywords max_length, device and dtype that returns an `Encoder`.
    max_length
        Longest text in tokens, special tokens included; None, or more than the model takes: its
        own limit.
    long_text
        "truncate" drops what is longer; "chunk" cuts it into pieces of equal length and averages
        their vectors, weighted by tokens. Static encoders take texts of any length.
    dtype
        "float32"; "bfloat16" and "float16" are for a GPU, or for a CPU with matrix units (AMX),
        which does only the products in half precision: 2.5 times as fast there, cosine above 0.9999
        to float32's vectors; slower on a CPU without them.
    batch_tokens
        Tokens of a forward pass with its padding: memory and speed, not values.

    Raises
    ------
    ModelError
        With the remedy.
    """
    if name.startswith(("http://", "https://")):
        from pyids.encoders.endpoint import EndpointEncoder
        from pyids.models.endpoint import Endpoint

        url, _, model = name.partition("#")
        return EndpointEncoder(Endpoint(url, model))
    module, _, function = name.partition(":")
    if name in ENCODERS.names() or (
        function and function not in get_args(PoolMode) and find_module(module)
    ):
        make = ENCODERS.find(name)
        made: Encoder = make(max_length=max_length, device=device, dtype=dtype)
        return made
    base, _, pooling = name.rpartition(":")
    if base and pooling in get_args(PoolMode):
        name = base
    elif base and "/" not in pooling and "\\" not in pooling:
        raise ModelError(
            f"encoder {name!r}: there is no pooling {pooling!r}; choose one of "
            f"{', '.join(get_args(PoolMode))}"
        )
    else:
        pooling = ""
    ref = resolve_model(name, kind="encoder")

    from pyids.encoders.static import StaticEncoder, find_table
    from pyids.encoders.transformer import TransformerEncoder

    if ref.path is not None and (table := find_table(ref.path)) is not None:
        return StaticEncoder(ref, table, max_length)
    encoder = TransformerEncoder(
        ref,
        pooling=cast("PoolMode", pooling) if pooling else None,
        max_length=max_length,
        long_text=long_text,
        batch_tokens=batch_tokens or (1024 if device == "cpu" else 65536),
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    if ref.path is not None and not ref.is_gguf:
        _ = encoder.recipe  # what cannot be used is refused now, not after hours
    return encoder


__all__ = ["Encoder", "LongText", "load_encoder"]
