"""One public function an op: validate once, look up who computes it, call that.

The dispatch table is `implementations()`; the first row that fits the op, the device, the dtype and
the shape is taken. The environment variable ``PYIDS_BACKEND`` (reference, torch, core or triton)
forces one backend for every op; an op that the backend lacks is an error, and so is a kernel that
fails: nothing falls back silently. ``PYIDS_BACKEND=triton`` with tensors on the CPU runs the
kernels in Triton's interpreter.

Arrays come back as arrays, tensors as tensors on the same device.
"""

from __future__ import annotations

from typing import NamedTuple

from pyids.ops.checks import (
    as_float32,
    as_integers,
    check_bounds,
    check_finite,
    check_floats,
    check_mode,
    check_range,
    check_shape,
)
from pyids.ops.dispatch import Data, PoolMode, run_op

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


# ---- k-means: one step ---------------------------------------------------------------------------


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


class ClusterMoments(NamedTuple):
    """What `cluster_moments` returns.

    Attributes
    ----------
    count : (K,) int64
    total : (K,) float64
        Sum of ``value - center``.
    squares : (K,) float64
        Sum of its squares.
    center : float
        Half way between the smallest value and the largest.
    """

    count: Data
    total: Data
    squares: Data
    center: float


def cluster_moments(values: Data, clusters: Data, n_clusters: int) -> ClusterMoments:
    """Count, sum and sum of squares of values by cluster, about a common center.

    Parameters
    ----------
    values : (B,) float
        Losses or scores, finite.
    clusters : (B,) integer in [0, n_clusters)
    n_clusters : int

    Returns
    -------
    ClusterMoments
        Summed as integer multiples of 2^-62 of the largest deviation (and of its square), so
        exactly: no order, grouping, device or backend shows in the bits.

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes do not fit; a cluster is out of range; a value is not finite.
    """
    check_shape("values", values, None)
    check_shape("clusters", clusters, len(values))
    check_floats("values", values)
    clusters = as_integers("clusters", clusters)
    check_range("clusters", clusters, 0, n_clusters)
    check_finite("values", values)
    return ClusterMoments(*run_op("cluster_moments", values, values, clusters, n_clusters))
