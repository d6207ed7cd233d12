"""Which implementation computes an op."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any, Literal, TypeAlias

import numpy as np

from pyids.errors import ConfigError

Data: TypeAlias = Any  # a NumPy array or a torch tensor


PoolMode: TypeAlias = Literal["mean", "weighted_mean", "last_token", "cls"]


BACKENDS = ("core", "triton", "torch", "reference")


# Tensor descriptors are where the kernels look for them, and the interpreter knows them.
MIN_TRITON = (3, 4)


# ---- the dispatch table --------------------------------------------------------------------------

_HALF_TO_SINGLE = ("float16", "bfloat16", "float32")


ANY_DTYPE = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Implementation:
    """One row of the dispatch table.

    Attributes
    ----------
    op, backend
        Which op, computed by whom.
    devices, dtypes
        Where the data may lie and what they may be (of the hidden states, points or losses).
    function
        ``module:name``, imported when first used.
    needs
        A module, or ``module:name``, without which the row does not count.
    forced_only
        Taken only when ``PYIDS_BACKEND`` asks for it.
    shapes
        Which shapes it takes, in words; `fits` decides.
    """

    op: str
    backend: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    function: str
    needs: str
    forced_only: bool = False
    shapes: str = "any"
    fits: Callable[[tuple[int, ...]], bool] = lambda shape: True

    @property
    def takes_arrays(self) -> bool:
        """Whether the function wants NumPy arrays (reference, core) rather than tensors."""
        return self.backend in ("reference", "core")

    def available(self) -> bool:
        """Whether what it needs is installed, and new enough."""
        module, _, name = self.needs.partition(":")
        if importlib.util.find_spec(module) is None:
            return False
        if self.backend == "triton" and _version("triton") < MIN_TRITON:
            return False
        return not name or hasattr(importlib.import_module(module), name)

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


@lru_cache
def _version(package: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; none if it is not installed or has no numbers."""
    try:
        numbers = re.findall(r"\d+", metadata.version(package))
    except metadata.PackageNotFoundError:
        return MIN_TRITON  # a source tree without metadata
    return tuple(int(number) for number in numbers[:2])


def _hidden_fits(shape: tuple[int, ...]) -> bool:
    return shape[-1] <= 32768  # a row of it is held in one program's registers


def _rows(op: str, kernel: str, dtypes: tuple[str, ...]) -> tuple[Implementation, ...]:
    """Return the rows that every op has, in the order in which they are tried."""
    function = f"pyids.kernels.{kernel}:{op}"
    fits: dict[str, Any] = (
        {"shapes": "H <= 32768", "fits": _hidden_fits} if kernel == "pool" else {}
    )
    return (
        Implementation(op, "triton", ("cuda",), dtypes, function, "triton", **fits),
        Implementation(
            op, "torch", ("cpu", "cuda"), ANY_DTYPE, f"pyids.ops.torch_backend:{op}", "torch"
        ),
        # Slow and in float64: what is left where torch is not installed.
        Implementation(op, "reference", ("cpu",), ANY_DTYPE, f"pyids.reference:{op}", "numpy"),
        # Triton's interpreter, for whoever looks for a mistake.
        Implementation(
            op, "triton", ("cpu",), dtypes, function, "triton", forced_only=True, **fits
        ),
    )


_TABLE = (
    *_rows("pool", "pool", _HALF_TO_SINGLE),
    *_rows("token_nll", "loss", _HALF_TO_SINGLE),
    *_rows("example_nll", "loss", ANY_DTYPE),
    # Of a few thousand values: no kernel of its own.
    # Arrays stay arrays, so that telling scores needs no torch.
    *(
        row
        for backend in ("reference", "torch")
        for row in _rows("cluster_moments", "", ANY_DTYPE)
        if row.backend == backend
    ),
)


def implementations(op: str | None = None) -> tuple[Implementation, ...]:
    """Rows of the dispatch table in the order in which they are tried, for one op or for all."""
    return tuple(row for row in _TABLE if op in (None, row.op))


def choose(op: str, device: str, dtype: str, shape: tuple[int, ...] = ()) -> Implementation:
    """Find the row that computes `op` on such data.

    Raises
    ------
    ConfigError
        ``PYIDS_BACKEND`` is no backend, or has no row for this op, device, dtype and shape.
    """
    forced = os.environ.get("PYIDS_BACKEND", "")
    if forced and forced not in BACKENDS:
        raise ConfigError(
            f"PYIDS_BACKEND={forced} is no backend: use one of {', '.join(BACKENDS)}, or unset it"
        )
    if forced == "triton" and not any(row.backend == forced for row in implementations(op)):
        forced = ""  # an op that has no kernel on any device, or no run could be asked for kernels
    for row in implementations(op):
        fits = device in row.devices and dtype in row.dtypes and row.fits(shape)
        wanted = row.backend == forced if forced else not row.forced_only
        if fits and wanted and row.available():
            return row
    others = sorted({row.backend for row in implementations(op) if row.available()})
    raise ConfigError(
        f"no {forced or 'installed'} implementation of {op} for {dtype} {shape} on {device}:"
        f" use one of {', '.join(others)}"
    )


def choose_for(op: str, lead: Data) -> Implementation:
    """Choose the implementation for arguments like `lead`."""
    device = lead.device.type if is_tensor(lead) else "cpu"
    return choose(op, device, str(lead.dtype).removeprefix("torch."), tuple(lead.shape))


def run_op(op: str, lead: Data, *arguments: Any, **options: Any) -> Any:
    """Call the implementation of `op` for data such as `lead`, in the data's own kind."""
    tensors = is_tensor(lead)
    device = lead.device.type if tensors else "cpu"
    row = choose_for(op, lead)
    if row.backend == "triton" and device == "cpu":
        _require_interpreter()
    convert: Callable[[Any], Any] = _to_array if row.takes_arrays else _to_tensor
    function = row.load()
    options = {name: convert(v) for name, v in options.items()}
    result = function(*(convert(argument) for argument in arguments), **options)

    def back(value: Any) -> Any:
        return _to_tensor(value, device) if tensors else _to_array(value)

    return tuple(back(v) for v in result) if isinstance(result, tuple) else back(result)


def _require_interpreter() -> None:
    """See that Triton, now or when it is imported, interprets."""
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    elif os.environ.get("TRITON_INTERPRET", "0") in ("0", ""):
        raise ConfigError(
            "PYIDS_BACKEND=triton on CPU tensors runs Triton's interpreter, which must be asked for"
            " before triton is first imported: set TRITON_INTERPRET=1 in the environment"
        )


def _to_array(value: Any) -> Any:
    if isinstance(value, np.ndarray) or not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def _to_tensor(value: Any, device: str | None = None) -> Any:
    import torch

    if isinstance(value, np.ndarray):
        with warnings.catch_warnings():
            # A read-only memory map is welcome: nothing here writes to its input.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            value = torch.from_numpy(value)
    return value.to(device) if device and isinstance(value, torch.Tensor) else value


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor (torch need not be imported for that)."""
    return not isinstance(value, np.ndarray) and hasattr(value, "detach")
