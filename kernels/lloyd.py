"""Lloyd's algorithm on one or more devices, with the C++ core's labels and centers, bit for bit.

    repeat   label_i = nearest center of x_i       assign.nearest, exact
             S_j, M_j = integer sums by cluster    update.add_rows, or move_rows when few moved
             c_j = S_j / M_j
    until the centers move by no more than tol

The device never waits for the host: what decides whether to go on is copied out while the next
pass runs, and looked at when that has been queued. The pass that turns out to be one too many is
not lost: it gives the labels of the final centers, which are wanted anyway.

Where the rows of a device are is share.py's affair; devices that stream have a thread each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .assign import NONE_BAD, prepare_centers, shift_of
from .common import INTERPRETED
from .share import Share, Source
from .update import FixedScale, Sums, means

# Rows that moved, of all, above which it is cheaper to sum all rows again.
_FEW = 0.15


def default_devices() -> list[torch.device]:
    """Every CUDA device, or the CPU where kernels are interpreted."""
    if torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if INTERPRETED:
        return [torch.device("cpu")]
    raise RuntimeError(
        "there is no CUDA device; to run the kernels in Triton's interpreter, set"
        " TRITON_INTERPRET=1 before triton is imported"
    )


@dataclass
class _Update:
    """What one update found, on its way to the host."""

    centers: Tensor
    values: Tensor
    ready: Any

    @classmethod
    def of(cls, centers: Tensor, values: Sequence[Tensor]) -> _Update:
        """Start the copy of `values` to the host."""
        there = torch.stack([value.double() for value in values])
        if there.device.type != "cuda":
            return cls(centers, there, None)
        here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
        here.copy_(there, non_blocking=True)
        return cls(centers, here, torch.cuda.current_stream(there.device).record_event())

    def read(self) -> list[float]:
        """Wait for the values."""
        if self.ready is not None:
            self.ready.synchronize()
        return [float(value) for value in self.values]


class _Fit:
    def __init__(
        self,
        source: Source,
        centers: Any,
        weights: Any,
        devices: Sequence[torch.device],
        memory_bytes: int | None,
        precision: str,
    ) -> None:
        wide = source.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        if not isinstance(centers, Tensor):
            centers = torch.from_numpy(np.array(centers))
        self.centers = centers.to(device=devices[0], dtype=dtype)
        self.source, self.precision = source, precision
        self.k, self.n = len(centers), len(source)
        if weights is not None:
            weights = torch.as_tensor(weights, dtype=torch.float64)
        bounds = np.linspace(0, self.n, len(devices) + 1).astype(int).tolist()
        self.shares = [
            Share(source, device, lo, hi, self.k, weights, memory_bytes)
            for device, lo, hi in zip(devices, bounds[:-1], bounds[1:], strict=True)
            if hi > lo
        ]
        self.home = self.shares[0].device
        self.centers = self.centers.to(self.home)
        self.shift = shift_of(self.centers)
        largest = torch.stack(self.on_all(lambda share: share.largest().to(self.home))).amax(0)
        heaviest = 1.0 if weights is None else float(weights.max())
        self.scale = FixedScale.of(largest, heaviest, self.n)
        # Streaming reads every row anyway: its inertia costs nothing more then.
        self.streams = any(share.streamed is not None for share in self.shares)

    def on_all(self, work: Callable[[Share], Any]) -> list[Any]:
        """Do the work on every share; a thread a share where rows stream to several devices.

        A device that streams keeps its thread waiting for copies: in one thread, devices would take
        turns. The interpreter is one for the whole process.
        """
        streamed = sum(share.streamed is not None for share in self.shares)
        if streamed < 2 or self.home.type != "cuda":
            return [work(share) for share in self.shares]
        with ThreadPoolExecutor(len(self.shares)) as threads:
            return list(threads.map(work, self.shares))

    def assign(self, turn: int, *, few_moved: bool, with_inertia: bool) -> Tensor:
        def one(share: Share) -> Tensor:
            device = share.device
            with share.on_device():
                prepared = prepare_centers(self.centers.to(device), self.shift.to(device))
            return share.assign(
                prepared,
                self._scale_on(device),
                turn,
                few_moved=few_moved,
                with_inertia=with_inertia,
                precision=self.precision,
            ).to(self.home)

        return torch.stack(self.on_all(one)).sum()

    def _scale_on(self, device: torch.device) -> FixedScale:
        return FixedScale(self.scale.columns.to(device), self.scale.mass.to(device))

    def merged(self) -> Sums:
        """Return the sums of all devices; integers, so that the order is no matter."""
        total = Sums(self.shares[0].sums.sums.clone(), self.shares[0].sums.mass.clone())
        for share in self.shares[1:]:
            total.sums.add_(share.sums.sums.to(self.home))
            total.mass.add_(share.sums.mass.to(self.home))
        return total

    def next_centers(self, total: Sums, old: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means, and the sum of the squared distances moved."""
        new = means(total, self.scale, old).to(old.dtype)
        return new, (new.double() - old.double()).square().sum()

    def moved_share(self, turn: int) -> Tensor:
        parts = [(s.labels[0] != s.labels[1]).sum().to(self.home) for s in self.shares]
        return torch.stack(parts).sum() / self.n

    def bad(self) -> Tensor:
        # float64 holds row numbers up to 2^53 exactly
        return torch.stack([share.bad.to(self.home) for share in self.shares]).amin()

    def mean_variance(self, total: Sums, centers: Tensor, inertia: Tensor) -> Tensor:
        """Mean over the columns of the variance of all rows, from the sums about the centers.

        sum |x - m|^2 = sum |x - c|^2 + sum_j (2 (S_j - n_j c_j) + n_j (c_j - m)) . (c_j - m)
        """
        sums, mass = total.sums.double() / self.scale.columns, total.mass.double() / self.scale.mass
        weight = mass.sum().clamp(min=1e-300)
        centers = centers.double()
        apart = centers - sums.sum(0) / weight
        between = ((2 * (sums - mass[:, None] * centers) + mass[:, None] * apart) * apart).sum()
        return ((inertia + between) / weight / centers.shape[1]).clamp(min=0.0)

    def reseed(self, old: Tensor, turn: int) -> tuple[Tensor, Tensor]:
        """Give every cluster without weight the farthest row that its own cluster can spare."""
        self.on_all(lambda share: share.recount(self._scale_on(share.device), turn))
        total = self.merged()
        mass = total.mass.cpu().numpy()
        waiting = list(np.flatnonzero(mass == 0)[::-1])
        columns, unit = self.scale.columns.cpu().numpy(), float(self.scale.mass)
        # Each cluster spares all rows but one: that many, and those wanted, are enough.
        count = len(waiting) + self.k
        far = [s.farthest(old.to(s.device), turn, count, unit) for s in self.shares]
        apart, rows, labels, weights = (np.concatenate(parts) for parts in zip(*far, strict=True))
        for i in np.lexsort((rows, -apart)):
            if not waiting or apart[i] == 0:
                break
            label, row_mass = int(labels[i]), int(np.rint(weights[i] * unit))
            if row_mass == 0 or mass[label] <= row_mass:
                continue
            target = int(waiting.pop())
            values = self.source.row(int(rows[i]))
            row_sums = np.rint(values * weights[i] * columns).astype(np.int64)
            taken = torch.from_numpy(row_sums).to(self.home)
            total.sums[label] -= taken
            total.sums[target] = taken
            mass[label] -= row_mass
            mass[target] = row_mass
        total.mass.copy_(torch.from_numpy(mass))
        return self.next_centers(total, old)


def fit(
    chunks: Any,
    centers: Any,
    *,
    max_iter: int,
    tol: float,
    sample_weight: Any = None,
    precision: str = "exact",
    devices: Sequence[torch.device | str] | None = None,
    memory_bytes: int | None = None,
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Run Lloyd's algorithm from `centers` until they move by no more than `tol`.

    Parameters
    ----------
    chunks : sequence of (n_i, D) arrays, memory maps or tensors, or one
        All of one dtype: float16, float32, float64 (tensors also bfloat16).
    centers : (K, D)
        Where to start.
    max_iter : int
    tol : float
        Relative to the mean variance of the columns; bounds the sum of the squared distances moved.
    sample_weight : (N,) float, optional
    precision : {"exact", "half"}
    devices : sequence, optional
        All CUDA devices by default; each takes a contiguous share of the rows.
    memory_bytes : int, optional
        What the rows may take on a device before they stream; most of what is free by default.

    Returns
    -------
    labels : (N,) int32
        Of the centers returned.
    centers : (K, D) float32, or float64 for float64 rows
    inertia : float
    n_iter : int
        Updates made.

    Raises
    ------
    ValueError
        A row is not finite; the first is named.

    Notes
    -----
    With precision "exact", labels and centers are the C++ core's, bit for bit, for any number of
    devices, shards and blocks: labels are those of the same float64 distances, sums are the same
    integers. A cluster without weight takes the farthest row, also as there.
    """
    found = default_devices() if devices is None else [torch.device(d) for d in devices]
    source = Source(chunks)
    work = _Fit(source, centers, sample_weight, found, memory_bytes, precision)
    pending: _Update | None = None
    limit, few_moved, turn = 0.0, False, 0
    while True:
        first = turn == 0
        inertia = work.assign(
            turn, few_moved=few_moved, with_inertia=work.streams or (first and tol > 0)
        )
        if pending is not None:
            moved, empty, same, bad, share, variance = pending.read()
            _raise_if_bad(bad)
            if turn == 1:
                limit = tol * variance
            if empty:
                work.centers, shift = work.reseed(pending.centers, turn - 1)
                moved = float(shift)
                same = float(torch.equal(work.centers, pending.centers))
                inertia = work.assign(turn, few_moved=False, with_inertia=work.streams)
            if same or moved <= limit:
                break
            few_moved = share < _FEW
        if turn == max_iter:
            break
        old = work.centers
        total = work.merged()
        work.centers, shift = work.next_centers(total, old)
        variance_now = work.mean_variance(total, old, inertia) if first and tol > 0 else shift
        pending = _Update.of(
            old,
            [
                shift,
                (total.mass == 0).sum(),
                (work.centers == old).all(),
                work.bad(),
                work.moved_share(turn),
                variance_now,
            ],
        )
        turn += 1
    if not work.streams:
        centers = work.centers
        parts = [s.inertia(centers.to(s.device), turn).to(work.home) for s in work.shares]
        inertia = torch.stack(parts).sum()
    _raise_if_bad(float(work.bad()))
    labels = [share.labels[turn % 2].cpu() for share in work.shares]
    return torch.cat(labels).numpy(), work.centers.cpu().numpy(), float(inertia), turn


def _raise_if_bad(row: float) -> None:
    if row < NONE_BAD:
        raise ValueError(f"row {int(row)} has a NaN or an infinity")
