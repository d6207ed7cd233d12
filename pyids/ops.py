"""One public function an op: validate once, look up who computes it, call that.

The dispatch table is `implementations()`; the first row that fits the op, the device, the dtype and
the shape is taken. The environment variable ``PYIDS_BACKEND`` (reference, torch, core or triton)
forces one backend for every op; an op that the backend lacks is an error, and so is a kernel that
fails: nothing falls back silently. ``PYIDS_BACKEND=triton`` with tensors on the CPU runs the
kernels in Triton's interpreter.

Arrays come back as arrays, tensors as tensors on the same device.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from pyids.errors import ConfigError

Data: TypeAlias = Any  # a NumPy array or a torch tensor
PoolMode: TypeAlias = Literal["mean", "weighted_mean", "last_token", "cls"]
Precision: TypeAlias = Literal["exact", "tf32", "half"]

BACKENDS = ("core", "triton", "torch", "reference")


class Update(NamedTuple):
    """What `update` returns: sums (K, D), counts (K,) and inertia (K,), all float64."""

    sums: Any
    counts: Any
    inertia: Any


class ClusterLoss(NamedTuple):
    """What `cluster_loss` returns: by cluster, by example and by token."""

    sum: Any
    count: Any
    example_mean: Any
    example_count: Any
    token_nll: Any


# ---- the dispatch table --------------------------------------------------------------------------

_HALF_TO_SINGLE = ("float16", "bfloat16", "float32")
_ANY = ("float16", "bfloat16", "float32", "float64")


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
    ignores
        Options that mean nothing to it: the reference is always exact.
    names_bad_rows
        It raises for rows that are not finite, so that they need not be read twice.
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
    ignores: tuple[str, ...] = ()
    names_bad_rows: bool = False
    forced_only: bool = False
    shapes: str = "any"
    fits: Callable[[tuple[int, ...]], bool] = lambda shape: True

    @property
    def takes_arrays(self) -> bool:
        """Whether the function wants NumPy arrays (reference, core) rather than tensors."""
        return self.backend in ("reference", "core")

    def available(self) -> bool:
        """Whether what it needs is installed."""
        module, _, name = self.needs.partition(":")
        if importlib.util.find_spec(module) is None:
            return False
        return not name or hasattr(importlib.import_module(module), name)

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


def _hidden_fits(shape: tuple[int, ...]) -> bool:
    return shape[-1] <= 32768  # a row of it is held in one program's registers


def _rows(op: str, kernel: str, dtypes: tuple[str, ...]) -> tuple[Implementation, ...]:
    """Return the rows that every op has, in the order in which they are tried."""
    function = f"pyids.kernels.{kernel}:{op}"
    fits: dict[str, Any] = (
        {"shapes": "H <= 32768", "fits": _hidden_fits} if kernel == "pool" else {}
    )
    if op == "assign":
        fits["names_bad_rows"] = True
    return (
        Implementation(op, "triton", ("cuda",), dtypes, function, "triton", **fits),
        Implementation(op, "torch", ("cpu", "cuda"), _ANY, f"pyids.torch_ops:{op}", "torch"),
        # Slow and in float64: what is left where torch is not installed.
        Implementation(
            op, "reference", ("cpu",), _ANY, f"pyids.reference:{op}", "numpy", ("precision",)
        ),
        # Triton's interpreter, for whoever looks for a mistake.
        Implementation(
            op, "triton", ("cpu",), dtypes, function, "triton", forced_only=True, **fits
        ),
    )


_TABLE = (
    *_rows("pool", "pool", _HALF_TO_SINGLE),
    *_rows("pool_packed", "pool", _HALF_TO_SINGLE),
    Implementation(
        "assign",
        "core",
        ("cpu",),
        ("float16", "float32", "float64"),
        "pyids.core_ops:assign",
        "pyids._core",
        ("precision",),
    ),
    *_rows("assign", "assign", _ANY),
    *_rows("update", "update", _ANY),
    *_rows("token_nll", "loss", _HALF_TO_SINGLE),
    *_rows("example_nll", "loss", _ANY),
    *_rows("cluster_nll", "loss", _ANY),
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
    for row in implementations(op):
        fits = device in row.devices and dtype in row.dtypes and row.fits(shape)
        wanted = row.backend == forced if forced else not row.forced_only
        if fits and wanted and row.available():
            return row
    others = sorted({row.backend for row in implementations(op) if row.available()})
    raise ConfigError(
        f"no {forced or 'installed'} implementation of {op} for {dtype} {shape} on {device}:"
        f" installed are {', '.join(others)}"
    )


def _choose_for(op: str, lead: Data) -> Implementation:
    device = lead.device.type if _is_tensor(lead) else "cpu"
    return choose(op, device, str(lead.dtype).removeprefix("torch."), tuple(lead.shape))


def _run(op: str, lead: Data, *arguments: Any, **options: Any) -> Any:
    """Call the implementation of `op` for data such as `lead`, in the data's own kind."""
    tensors = _is_tensor(lead)
    device = lead.device.type if tensors else "cpu"
    row = _choose_for(op, lead)
    if row.backend == "triton" and device == "cpu":
        _require_interpreter()
    convert: Callable[[Any], Any] = _to_array if row.takes_arrays else _to_tensor
    function = row.load()
    options = {name: convert(v) for name, v in options.items() if name not in row.ignores}
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


def _is_tensor(value: Any) -> bool:
    return not isinstance(value, np.ndarray) and hasattr(value, "detach")


def _float32(value: Any) -> Any:
    return value.float() if _is_tensor(value) else value.astype(np.float32)


# ---- validation ----------------------------------------------------------------------------------


def _check_shape(name: str, value: Any, *sizes: int | None) -> None:
    """Raise unless `value` has these sizes; None stands for any."""
    if not isinstance(value, np.ndarray) and not _is_tensor(value):
        raise TypeError(f"{name} must be an array or a tensor, not {type(value).__name__}")
    found = tuple(value.shape)
    if len(found) != len(sizes) or any(
        w not in (None, f) for w, f in zip(sizes, found, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name} has shape {found}, but ({wanted}) is needed")


def _check_floats(name: str, value: Any) -> None:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in _ANY:
        raise TypeError(f"{name} has dtype {dtype}, but one of {', '.join(_ANY)} is needed")


def _integers(name: str, value: Any) -> Any:
    """Return integers of 32 or 64 bits: torch and kernels wrap what they meet to a narrow type."""
    dtype = str(value.dtype).removeprefix("torch.")
    if not dtype.startswith(("int", "uint")):
        raise TypeError(f"{name} has dtype {dtype}, but integers are needed")
    if dtype in ("int32", "int64"):
        return value
    return value.long() if _is_tensor(value) else value.astype(np.int64)


def _check_range(name: str, value: Any, low: int, high: int, allowed: int | None = None) -> None:
    """Raise, naming the first offender, unless low <= value < high (or value == allowed)."""
    bad = (value < low) | (value >= high)
    if allowed is not None:
        bad = bad & (value != allowed)
    if bool(bad.any()):
        i = int(_first(bad))
        raise ValueError(f"{name}[{i}] = {int(value[i])} is outside [{low}, {high})")


def _check_finite(name: str, value: Any) -> None:
    """Raise, naming the first row, if there is a NaN or an infinity; a block of rows at a time."""
    step = max(
        1, (1 << 22) // max(1, value[:1].size if not _is_tensor(value) else value[:1].numel())
    )
    for start in range(0, len(value), step):
        block = value[start : start + step]
        finite = block.isfinite() if _is_tensor(block) else np.isfinite(block)
        if not bool(finite.all()):
            rows = finite if finite.ndim == 1 else finite.all(1)
            raise ValueError(f"{name}: row {start + int(_first(~rows))} has a NaN or an infinity")


def _first(flags: Any) -> Any:
    return flags.int().argmax() if _is_tensor(flags) else flags.argmax()


def _bounds(cu_seqlens: Any, total: int) -> Any:
    _check_shape("cu_seqlens", cu_seqlens, None)
    cu_seqlens = _integers("cu_seqlens", cu_seqlens)
    if len(cu_seqlens) == 0 or int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != total:
        raise ValueError(f"cu_seqlens must start at 0 and end at {total}, the number of tokens")
    falls = cu_seqlens[1:] < cu_seqlens[:-1]
    if bool(falls.any()):
        raise ValueError(f"cu_seqlens falls after position {int(_first(falls))}")
    return cu_seqlens


# ---- pooling -------------------------------------------------------------------------------------


def pool(
    hidden: Data, attention_mask: Data, *, mode: PoolMode = "mean", normalize: bool = True
) -> Data:
    """Pool padded hidden states into one vector a sequence.

    With x_1 .. x_L the states of the tokens whose mask is not zero, in order:
    ``mean`` = sum x_i / L; ``weighted_mean`` = sum i x_i / sum i (RDS+, arXiv 2503.01807);
    ``last_token`` = x_L; ``cls`` = x_1. Then v / |v| if `normalize`.

    Parameters
    ----------
    hidden : (B, T, H) float16, bfloat16 or float32
    attention_mask : (B, T) bool or integer
        Padding may stand on either side, or in between, and may hold anything, NaN too: it is
        never read into a sum.
    mode : {"mean", "weighted_mean", "last_token", "cls"}
    normalize : bool
        Scale each vector to unit length; a vector of zeros stays one.

    Returns
    -------
    (B, H) float32
        A sequence without tokens gives zeros. Sums are float32 or better, in the order of the
        tokens; the Triton kernel's bits depend on the sequence's own tokens alone, torch's differ
        with the padding by float32 rounding.

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes do not fit, or there is no such mode.
    """
    _check_shape("hidden", hidden, None, None, None)
    _check_shape("attention_mask", attention_mask, *hidden.shape[:2])
    _check_floats("hidden", hidden)
    _check_mode(mode)
    return _float32(_run("pool", hidden, hidden, attention_mask, mode=mode, normalize=normalize))


def pool_packed(
    hidden: Data, cu_seqlens: Data, *, mode: PoolMode = "mean", normalize: bool = True
) -> Data:
    """Pool sequences that lie end to end; like `pool`, without padding.

    Parameters
    ----------
    hidden : (T, H) float16, bfloat16 or float32
    cu_seqlens : (B + 1,) integer
        Sequence b is rows ``cu_seqlens[b]`` up to ``cu_seqlens[b + 1]``; from 0 to T, not falling.
    mode, normalize
        As in `pool`.

    Returns
    -------
    (B, H) float32

    Raises
    ------
    TypeError, ValueError
        As `pool`; also when `cu_seqlens` is not as above.
    """
    _check_shape("hidden", hidden, None, None)
    _check_floats("hidden", hidden)
    cu_seqlens = _bounds(cu_seqlens, len(hidden))
    _check_mode(mode)
    return _float32(_run("pool_packed", hidden, hidden, cu_seqlens, mode=mode, normalize=normalize))


def _check_mode(mode: str) -> None:
    if mode not in get_args(PoolMode):
        raise ValueError(f"mode={mode!r} is none of {', '.join(get_args(PoolMode))}")


# ---- k-means: one step ---------------------------------------------------------------------------


def assign(x: Data, centers: Data, *, precision: Precision = "exact") -> tuple[Data, Data]:
    """Nearest centre of each point: argmin_j |x_i - c_j|^2.

    Parameters
    ----------
    x : (N, D) float16, bfloat16 or float32
    centers : (K, D), the same kind
    precision : {"exact", "tf32", "half"}
        "exact": the label's float64 distance is the float64 minimum, up to float64 rounding, by
        certificate and re-check. "tf32" and "half" score in that arithmetic and may take a centre
        that is farther by its rounding; a backend without it computes in float32.

    Returns
    -------
    labels : (N,) int32
        Ties go to the lowest index.
    distances : (N,) float32
        Squared distance to that centre, from differences (no cancellation).

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes do not fit; there is no centre; a row holds NaN or an infinity (the first
        is named, never labelled).
    """
    _check_shape("x", x, None, None)
    _check_shape("centers", centers, None, x.shape[1])
    _check_floats("x", x)
    _check_floats("centers", centers)
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r} is none of {', '.join(get_args(Precision))}")
    if len(centers) == 0:
        raise ValueError("centers is empty")
    _check_finite("centers", centers)
    if not _choose_for("assign", x).names_bad_rows:
        _check_finite("x", x)
    labels, distances = _run("assign", x, x, centers, precision=precision)
    return labels, _float32(distances)


def update(
    x: Data,
    labels: Data,
    n_clusters: int,
    *,
    sample_weight: Data | None = None,
    centers: Data | None = None,
) -> Update:
    """Sum, weight and inertia of each cluster: sum w_i x_i, sum w_i, sum w_i |x_i - m_j|^2.

    Parameters
    ----------
    x : (N, D) float16, bfloat16 or float32
    labels : (N,) integer in [0, n_clusters)
    n_clusters : int
    sample_weight : (N,) float, optional
        Finite, not negative; 1 if not given.
    centers : (K, D), optional
        The m_j of the inertia; the clusters' own means if not given.

    Returns
    -------
    Update
        ``sums`` (K, D), ``counts`` (K,), ``inertia`` (K,), float64; zeros for an empty cluster. The
        same input gives the same bits, run after run.

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes do not fit; a label, a weight or a row of x is out of range or not finite.
    """
    _check_shape("x", x, None, None)
    _check_shape("labels", labels, len(x))
    _check_floats("x", x)
    labels = _integers("labels", labels)
    _check_range("labels", labels, 0, n_clusters)
    _check_finite("x", x)
    if sample_weight is not None:
        _check_shape("sample_weight", sample_weight, len(x))
        _check_finite("sample_weight", sample_weight)
        if bool((sample_weight < 0).any()):
            raise ValueError(f"sample_weight[{int(_first(sample_weight < 0))}] is negative")
    if centers is not None:
        _check_shape("centers", centers, n_clusters, x.shape[1])
    options = {"sample_weight": sample_weight, "centers": centers}
    return Update(*_run("update", x, x, labels, n_clusters, **options))


# ---- loss ----------------------------------------------------------------------------------------


def token_nll(
    hidden: Data,
    lm_head: Data,
    targets: Data,
    *,
    bias: Data | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> Data:
    """Negative log likelihood of each token, without the logits ever being in memory at once.

    z = hidden @ lm_head.T + bias; z = softcap tanh(z / softcap) if given;
    nll_t = log sum_v exp z_tv - z_t,target(t).

    Parameters
    ----------
    hidden : (T, H) float16, bfloat16 or float32
        The states that predict the targets: the caller shifts.
    lm_head : (V, H), the same dtype
    targets : (T,) integer in [0, V), or `ignore_index`
    bias : (V,), optional
    softcap : float, optional
        Above 0.
    ignore_index : int

    Returns
    -------
    (T,) float32
        0 where the target is `ignore_index`; such tokens cost nothing. In float32, the result of a
        token differs with the tokens beside it by at most 1e-5 (1 + nll): a matrix product may
        group its sums by its shape.

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes do not fit, or a target is out of range (the first position is named).
    """
    _check_shape("hidden", hidden, None, None)
    _check_shape("lm_head", lm_head, None, hidden.shape[1])
    _check_shape("targets", targets, len(hidden))
    _check_floats("hidden", hidden)
    _check_floats("lm_head", lm_head)
    targets = _integers("targets", targets)
    _check_range("targets", targets, 0, len(lm_head), allowed=ignore_index)
    if bias is not None:
        _check_shape("bias", bias, len(lm_head))
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap} must be above 0")
    options = {"bias": bias, "softcap": softcap, "ignore_index": ignore_index}
    return _float32(_run("token_nll", hidden, hidden, lm_head, targets, **options))


def example_nll(
    token_nll: Data, targets: Data, cu_seqlens: Data, ignore_index: int = -100
) -> tuple[Data, Data]:
    """Mean of the tokens' losses by example.

    Parameters
    ----------
    token_nll : (T,) float
    targets : (T,) integer
        Tokens whose target is `ignore_index` do not count.
    cu_seqlens : (B + 1,) integer
        Example b is tokens ``cu_seqlens[b]`` up to ``cu_seqlens[b + 1]``.

    Returns
    -------
    mean : (B,) float64
        0 where no token counts. Summed in the order of the example's own tokens: the same tokens
        give the same bits in any batch.
    count : (B,) int64

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes do not fit, or `cu_seqlens` does not cut the tokens.
    """
    _check_shape("token_nll", token_nll, None)
    _check_shape("targets", targets, len(token_nll))
    _check_floats("token_nll", token_nll)
    targets = _integers("targets", targets)
    cu_seqlens = _bounds(cu_seqlens, len(token_nll))
    mean, count = _run(
        "example_nll", token_nll, token_nll, targets, cu_seqlens, ignore_index=ignore_index
    )
    return mean, count


def cluster_nll(
    example_mean: Data, labels: Data, n_clusters: int, *, example_count: Data | None = None
) -> tuple[Data, Data]:
    """Sum of the examples' mean losses, and number of examples, by cluster.

    Parameters
    ----------
    example_mean : (B,) float
        In nats; finite, and |mean| B < 2^30.
    labels : (B,) integer in [0, n_clusters)
    n_clusters : int
    example_count : (B,) integer, optional
        Examples that count 0 tokens are left out.

    Returns
    -------
    sum : (K,) float64
        Summed as integer multiples of 2^-32, so exactly: no order or grouping shows.
    count : (K,) int64

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes do not fit; a label is out of range; a mean is not finite or too large.
    """
    _check_shape("example_mean", example_mean, None)
    _check_shape("labels", labels, len(example_mean))
    _check_floats("example_mean", example_mean)
    labels = _integers("labels", labels)
    _check_range("labels", labels, 0, n_clusters)
    _check_finite("example_mean", example_mean)
    if len(example_mean) and float(abs(example_mean).max()) * len(example_mean) >= 2.0**30:
        raise ValueError("example_mean is too large to be summed exactly: is it in nats?")
    if example_count is not None:
        _check_shape("example_count", example_count, len(example_mean))
    total, count = _run(
        "cluster_nll", example_mean, example_mean, labels, n_clusters, example_count=example_count
    )
    return total, count


def cluster_loss(
    hidden: Data,
    lm_head: Data,
    targets: Data,
    cu_seqlens: Data,
    labels: Data,
    n_clusters: int,
    *,
    bias: Data | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> ClusterLoss:
    """Fused per-cluster loss: `token_nll`, `example_nll` and `cluster_nll` in one go.

    Parameters are theirs; an example without tokens that count is in no cluster's sum or count.
    """
    nll = token_nll(hidden, lm_head, targets, bias=bias, softcap=softcap, ignore_index=ignore_index)
    mean, count = example_nll(nll, targets, cu_seqlens, ignore_index)
    total, number = cluster_nll(mean, labels, n_clusters, example_count=count)
    return ClusterLoss(total, number, mean, count, nll)
