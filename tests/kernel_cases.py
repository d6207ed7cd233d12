"""What the tests of the Triton kernels share: where they run, and their data.

They hold the kernels against the float64 definitions, interpreted on a CPU, compiled on a GPU.

A GPU machine needs neither the wheel nor the C++ core, only torch, triton, numpy and pytest:

    python -m pytest -c /dev/null --noconftest tests/test_kernels_*.py

and, once, with every access to memory checked:

    compute-sanitizer --tool memcheck python -m pytest -c /dev/null --noconftest \
        tests/test_kernels_*.py -k "not large"
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
ROOT = Path(__file__).parents[1]


def from_checkout(name: str, path: Path):
    folder = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


try:
    from pyids import kernels, reference
except ImportError:
    # Not installed, as on a GPU machine, or the source tree was found: straight from the checkout.
    if importlib.util.find_spec("xxhash") is None:
        sys.modules["xxhash"] = ModuleType("xxhash")  # the definitions of kernels do not hash
    kernels = from_checkout("pyids_kernels", ROOT / "kernels" / "__init__.py")
    reference = from_checkout("pyids_reference", ROOT / "pyids" / "reference" / "__init__.py")

assign, certify, common, half, loss, pool, update = (
    importlib.import_module(f"{kernels.__name__}.{name}")
    for name in ("assign", "certify", "common", "half", "loss", "pool", "update")
)

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
HALVES = (torch.float32, torch.bfloat16, torch.float16)


def any_of(**strategies):
    """Draw a few examples of arguments by hypothesis, where it is installed.

    strategies: a sequence to choose from, or the two ends of a range of integers.
    """
    try:
        from hypothesis import given, settings
        from hypothesis import strategies as st
    except ImportError:
        return pytest.mark.skip(reason="hypothesis is not installed")
    drawn = {
        name: st.integers(*values) if isinstance(values, tuple) else st.sampled_from(values)
        for name, values in strategies.items()
    }
    return lambda test: settings(max_examples=6, deadline=None, derandomize=True)(
        given(**drawn)(test)
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensor(array, dtype=torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(dtype).to(DEVICE)


def wide(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


def points(kind: str, n: int, d: int, seed: int = 0) -> np.ndarray:
    x = rng(seed).normal(size=(n, d))
    if kind == "common mean":
        x += 6
    elif kind == "massive dimension":
        x[:, d // 2] += 3000
    elif kind == "tiny":
        x *= 1e-25
    elif kind == "huge":
        x *= 1e15
    elif kind == "unit":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    elif kind == "grid":  # full of exact ties
        x = np.round(x)
    elif kind == "near ties":  # centers will be pairs of neighbors in float32
        x = np.repeat(x[: (n + 1) // 2], 2, axis=0)[:n]
        x[1::2] *= 1 + 2.0**-22
    return x.astype(np.float32)


KINDS = ["unit", "common mean", "massive dimension", "tiny", "huge", "grid", "near ties"]


def labels_of(x: torch.Tensor, centers: torch.Tensor, precision: str = "exact"):
    """Label all rows and measure their float64 distances, as one pass of a fit does."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    prepared = assign.prepare_centers(centers, assign.shift_of(centers))
    bad = torch.full((), assign.NONE_BAD, dtype=torch.int64, device=x.device)
    rows = assign.prepare_rows(x, prepared, bad)
    labels = torch.empty(len(x), dtype=torch.int32, device=x.device)
    scratch = assign.Scratch.of(len(x), x.device)
    assign.nearest(rows, prepared, labels, scratch, precision=precision)
    return labels, assign.distances(x, prepared.c, labels), int(bad)


def sums_of(x: torch.Tensor, labels: torch.Tensor, k: int, weights: torch.Tensor | None = None):
    """Sums (K, D) and weights (K,) of the clusters, float64."""
    weights = None if weights is None else weights.double()
    heaviest = 1.0 if weights is None or not len(weights) else weights.amax()
    scale = update.FixedScale.of(update.largest_values(x), heaviest, len(x))
    total = update.Sums.zeros(k, x.shape[1], x.device)
    update.add_rows(x, labels.int(), weights, scale, total)
    return total.sums.double() / scale.columns, total.mass.double() / scale.mass
