"""One public function an op: validate once, look up who computes it, call that.

The dispatch table is `implementations()`; the first row that fits the op, the device, the dtype and
the shape is taken. The environment variable ``PYIDS_BACKEND`` (reference, torch, core or triton)
forces one backend for every op; an op that the backend lacks is an error, and so is a kernel that
fails: nothing falls back silently. ``PYIDS_BACKEND=triton`` with tensors on the CPU runs the
kernels in Triton's interpreter.

Arrays come back as arrays, tensors as tensors on the same device.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

from pyids.ops.checks import (
    as_float32,
    as_integers,
    check_bounds,
    check_finite,
    check_floats,
    check_mode,
    check_range,
    check_shape,
    first_index,
)
from pyids.ops.dispatch import Data, PoolMode, Precision, choose_for, run_op


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
    check_shape("hidden", hidden, None, None, None)
    check_shape("attention_mask", attention_mask, *hidden.shape[:2])
    check_floats("hidden", hidden)
    check_mode(mode)
    return as_float32(
        run_op("pool", hidden, hidden, attention_mask, mode=mode, normalize=normalize)
    )


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
    check_shape("hidden", hidden, None, None)
    check_floats("hidden", hidden)
    cu_seqlens = check_bounds(cu_seqlens, len(hidden))
    check_mode(mode)
    return as_float32(
        run_op("pool_packed", hidden, hidden, cu_seqlens, mode=mode, normalize=normalize)
    )


# ---- k-means: one step ---------------------------------------------------------------------------


def assign(x: Data, centers: Data, *, precision: Precision = "exact") -> tuple[Data, Data]:
    """Nearest center of each point: argmin_j |x_i - c_j|^2.

    Parameters
    ----------
    x : (N, D) float16, bfloat16 or float32
    centers : (K, D), the same kind
    precision : {"exact", "tf32", "half"}
        "exact": the label's float64 distance is the float64 minimum, up to float64 rounding, by
        certificate and re-check. "tf32" and "half" score in that arithmetic and may take a center
        that is farther by its rounding; a backend without it computes in float32.

    Returns
    -------
    labels : (N,) int32
        Ties go to the lowest index.
    distances : (N,) float32
        Squared distance to that center, from differences (no cancellation).

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes do not fit; there is no center; a row holds NaN or an infinity (the first
        is named, never labeled).
    """
    check_shape("x", x, None, None)
    check_shape("centers", centers, None, x.shape[1])
    check_floats("x", x)
    check_floats("centers", centers)
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r} is none of {', '.join(get_args(Precision))}")
    if len(centers) == 0:
        raise ValueError("centers is empty")
    check_finite("centers", centers)
    if not choose_for("assign", x).names_bad_rows:
        check_finite("x", x)
    labels, distances = run_op("assign", x, x, centers, precision=precision)
    return labels, as_float32(distances)


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
    check_shape("x", x, None, None)
    check_shape("labels", labels, len(x))
    check_floats("x", x)
    labels = as_integers("labels", labels)
    check_range("labels", labels, 0, n_clusters)
    if not choose_for("update", x).names_bad_rows:
        check_finite("x", x)
    if sample_weight is not None:
        check_shape("sample_weight", sample_weight, len(x))
        check_finite("sample_weight", sample_weight)
        if bool((sample_weight < 0).any()):
            raise ValueError(f"sample_weight[{int(first_index(sample_weight < 0))}] is negative")
    if centers is not None:
        check_shape("centers", centers, n_clusters, x.shape[1])
    options = {"sample_weight": sample_weight, "centers": centers}
    return Update(*run_op("update", x, x, labels, n_clusters, **options))


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
    check_shape("hidden", hidden, None, None)
    check_shape("lm_head", lm_head, None, hidden.shape[1])
    check_shape("targets", targets, len(hidden))
    check_floats("hidden", hidden)
    check_floats("lm_head", lm_head)
    targets = as_integers("targets", targets)
    check_range("targets", targets, 0, len(lm_head), allowed=ignore_index)
    if bias is not None:
        check_shape("bias", bias, len(lm_head))
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap} must be above 0")
    options = {"bias": bias, "softcap": softcap, "ignore_index": ignore_index}
    return as_float32(run_op("token_nll", hidden, hidden, lm_head, targets, **options))


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
    check_shape("token_nll", token_nll, None)
    check_shape("targets", targets, len(token_nll))
    check_floats("token_nll", token_nll)
    targets = as_integers("targets", targets)
    cu_seqlens = check_bounds(cu_seqlens, len(token_nll))
    mean, count = run_op(
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
    check_shape("example_mean", example_mean, None)
    check_shape("labels", labels, len(example_mean))
    check_floats("example_mean", example_mean)
    labels = as_integers("labels", labels)
    check_range("labels", labels, 0, n_clusters)
    check_finite("example_mean", example_mean)
    if len(example_mean) and float(abs(example_mean).max()) * len(example_mean) >= 2.0**30:
        raise ValueError("example_mean is too large to be summed exactly: is it in nats?")
    if example_count is not None:
        check_shape("example_count", example_count, len(example_mean))
    total, count = run_op(
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
