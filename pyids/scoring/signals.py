"""Signals of how good a row is: each turns conversations into one number each, higher is better.

`pyids.scoring.cache` streams rows through them and makes weights and ranks of what they say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import xxhash

from pyids._typing import Float64
from pyids.chat.render import response_length
from pyids.errors import ConfigError
from pyids.registry import SIGNALS, find_module

if TYPE_CHECKING:
    from pyids.chat.template import Conversation, Encoded
    from pyids.models.serving import Engine
    from pyids.scoring.served import Served


class Signal(Protocol):
    """What scores rows."""

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that decide the scores: name, model, options."""
        ...

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """Return one number a row, NaN where it has none; whatever the rows beside it."""
        ...


@dataclass(frozen=True)
class Length:
    """Response length: characters that the assistant wrote."""

    name: ClassVar[str] = "length"

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        return {"signal": self.name}

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        return np.array([response_length(row) for row in rows], np.float64)


@dataclass(frozen=True)
class LanguageModelSignal:
    """What the signals of a causal language model share.

    Attributes
    ----------
    model
        See `pyids.models.hub.resolve_model`.
    device, max_length, batch_tokens
        Where it runs, the longest row, and the tokens of a forward pass.
    system
        See `pyids.models.hub.ModelRef`.
    engine
        A serving engine that is asked instead of a model that is loaded here, by `Perplexity` and
        `Ifd`; see `pyids.models.serving`.
    """

    model: str
    device: str = "cpu"
    max_length: int = 1024
    batch_tokens: int = 4096
    system: str = "error"
    engine: Engine | None = field(default=None, compare=False)
    name: ClassVar[str] = ""

    @cached_property
    def _tokenizer(self) -> Any:
        if self.engine is None:
            return self._loaded[1]
        from pyids.models.hub import resolve_model
        from pyids.models.load import load_tokenizer

        return load_tokenizer(replace(resolve_model(self.model), system=self.system))

    @cached_property
    def _served(self) -> Served:
        """The model at the serving engine."""
        from pyids.scoring.served import Served

        @contextmanager
        def local() -> Iterator[tuple[Any, Any]]:
            yield self._loaded

        def close() -> None:
            del self.__dict__["_loaded"]

        assert self.engine is not None
        return Served(
            self.engine, model_identity(self.model), local, local, close, device=self.device
        )

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from pyids.models.hub import resolve_model
        from pyids.models.load import load_model

        return load_model(replace(resolve_model(self.model), system=self.system), self.device)

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        return {
            "signal": self.name,
            "model": model_identity(self.model),
            "tokens": self.max_length,
            **({} if self.system == "error" else {"system": self.system}),
        }

    def _nll(self, rows: Sequence[Encoded]) -> Float64:
        if self.engine is not None:
            return self._served.nll("base", rows).mean
        from pyids.models.nll import encoded_nll

        model, _ = self._loaded
        return encoded_nll(model, rows, batch_tokens=self.batch_tokens, device=self.device).mean

    def _encode(self, rows: Sequence[Conversation]) -> list[Encoded]:
        from pyids.chat.template import encode

        return [encode(row, self._tokenizer, self.max_length) for row in rows]


@dataclass(frozen=True)
class Perplexity(LanguageModelSignal):
    """Minus the log perplexity of the responses: what the model finds fluent counts as good."""

    name: ClassVar[str] = "perplexity"

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        return -self._nll(self._encode(rows))


@dataclass(frozen=True)
class Ifd(LanguageModelSignal):
    """Instruction-following difficulty: NLL(y | x) / NLL(y), high where the prompt helps little.

    NLL(y) is that of the response tokens after the model's beginning-of-text token alone. Above 1
    the prompt misleads: such rows count 0 (Li et al., arXiv 2308.12032).
    """

    name: ClassVar[str] = "ifd"

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        from pyids.chat.template import response_alone

        tokenizer = self._tokenizer
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        given = self._encode(rows)
        alone = self._nll([response_alone(row, start or 0) for row in given])
        ratio: Float64 = self._nll(given) / np.maximum(alone, 1e-6)
        return np.where(ratio > 1, 0.0, ratio)


def make_signal(
    spec: str, *, default_model: str, device: str = "cpu", system: str = "error"
) -> Signal | None:
    """Read ``signal`` or ``signal:MODEL``; None means that `spec` is the name of a column.

    Parameters
    ----------
    spec : str
        A name of `pyids.registry.SIGNALS` or ``module:function``. ``reward`` and ``classifier``
        need a model, for the other language-model signals it is optional.
    default_model : str
        The language model of a signal that names none.
    device : str
        A torch device.
    system : str
        What a language model's template does with a system turn that it refuses.

    Raises
    ------
    ConfigError
        A model is missing, or stands where none is used.
    """
    name, _, model = spec.partition(":")
    if name == "judge":
        raise ConfigError(
            "quality 'judge' asks a server: name it with --judge-url and --judge-model, for `pyids "
            "run` or `pyids select`"
        )
    if name in SIGNALS.names():
        make = SIGNALS.find(name)
    elif model and find_module(name):
        make, model = SIGNALS.find(spec), ""
    else:
        return None
    signal: Signal = make(model, default_model=default_model, device=device, system=system)
    return signal


def make_length(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``length``."""
    if model:
        raise ConfigError(f"quality 'length:{model}': length takes no model: write length")
    return Length()


def make_perplexity(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``perplexity`` or ``perplexity:MODEL``."""
    return Perplexity(model or default_model, device, system=system)


def make_ifd(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``ifd`` or ``ifd:MODEL``."""
    return Ifd(model or default_model, device, system=system)


def make_perplexity_difference(
    model: str, *, default_model: str, device: str, system: str
) -> Signal:
    """Make the signal ``perplexity-difference:MODEL``: the default model's, less MODEL's."""
    from pyids.scoring.token_signals import PerplexityDifference

    other = _named(model, "perplexity-difference")
    return PerplexityDifference(default_model, device, system=system, other=other)


def make_s_ifd(model: str, *, default_model: str, device: str, system: str) -> Signal:
    """Make the signal ``s-ifd`` or ``s-ifd:MODEL``."""
    from pyids.scoring.token_signals import SIfd

    return SIfd(model or default_model, device, system=system)


def _named(model: str, signal: str) -> str:
    if not model:
        raise ConfigError(f"quality {signal!r} needs a model: write {signal}:MODEL")
    return model


def model_identity(name: str) -> str:
    """Name a model so that other weights under the same name are another model."""
    from pyids.models.hub import resolve_model

    ref = resolve_model(name, kind="quality model")
    if ref.path is None or ref.revision is not None:
        return f"{ref.name}@{ref.revision}"
    files = [ref.path] if ref.path.is_file() else sorted(ref.path.glob("*.safetensors"))
    stamps = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return f"{ref.name}#{xxhash.xxh3_64_hexdigest(' '.join(stamps).encode())}"
