"""The rows of one device: resident or streamed, with their labels and integer sums.

Rows that fit stay on the device, prepared once. Others stream: two pinned buffers a device, one
being filled and copied while the rows of the other are worked on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .assign import NONE_BAD, Centers, Rows, Scratch, distances, nearest, prepare_rows
from .update import FixedScale, Sums, add_rows, largest_values, move_rows

_STREAM_BYTES = 1 << 28


class Source:
    """A sequence of arrays or tensors (n_i, D) of one dtype, read as one."""

    def __init__(self, chunks: Any) -> None:
        if isinstance(chunks, np.ndarray | Tensor):
            chunks = [chunks]
        self.chunks: list[Any] = list(chunks)
        if not self.chunks:
            raise ValueError("chunks is empty")
        self.offsets = np.cumsum([0, *(len(chunk) for chunk in self.chunks)])
        self.width = int(self.chunks[0].shape[1])
        first = self.chunks[0]
        self.dtype = first.dtype if isinstance(first, Tensor) else _torch_dtype(first.dtype)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def read(self, start: int, out: Tensor) -> None:
        """Copy rows from `start` on into `out` (n, D), which may lie on any device."""
        stop = start + len(out)
        for chunk, begin in zip(self.chunks, self.offsets, strict=False):
            low, high = max(start, int(begin)), min(stop, int(begin) + len(chunk))
            if low >= high:
                continue
            part = chunk[low - begin : high - begin]
            if not isinstance(part, Tensor):
                with warnings.catch_warnings():
                    # Nothing here writes to its input: a read-only memory map is welcome.
                    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                    part = torch.from_numpy(np.ascontiguousarray(part))
            # Torch copies with several threads.
            out[low - start : high - start].copy_(part)

    def row(self, i: int) -> np.ndarray:
        """Return one row, (D,) float64."""
        out = torch.empty(1, self.width, dtype=self.dtype)
        self.read(i, out)
        return out[0].double().numpy()

    def on(self, device: torch.device, start: int, stop: int) -> Tensor | None:
        """Return these rows without a copy, if one chunk holds them on that device."""
        for chunk, begin in zip(self.chunks, self.offsets, strict=False):
            inside = begin <= start and stop <= begin + len(chunk)
            if inside and isinstance(chunk, Tensor) and chunk.device == device:
                return chunk[start - begin : stop - begin]
        return None


def _torch_dtype(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=dtype)).dtype


class _Streamed:
    """Rows that are brought to the device, a block at a time, whenever they are wanted."""

    def __init__(
        self, source: Source, device: torch.device, start: int, stop: int, block_rows: int
    ) -> None:
        self.source, self.device, self.start, self.stop = source, device, start, stop
        self.block_rows = min(block_rows, max(1, stop - start))
        shape = (self.block_rows, source.width)
        cuda = device.type == "cuda"
        self.host = [torch.empty(shape, dtype=source.dtype, pin_memory=cuda) for _ in range(2)]
        self.there = self.host
        if cuda:
            self.there = [torch.empty(shape, dtype=source.dtype, device=device) for _ in range(2)]
            self.stream = torch.cuda.Stream(device)
        # Events: the slot's copy is done, the slot's rows have been used. They outlive a pass.
        self.copied: list[Any] = [None, None]
        self.used: list[Any] = [None, None]

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first row's number (within the share) and the rows, on the device."""
        cuda = self.device.type == "cuda"
        for turn, begin in enumerate(range(self.start, self.stop, self.block_rows)):
            n, slot = min(self.block_rows, self.stop - begin), turn % 2
            if cuda and self.copied[slot] is not None:
                self.copied[slot].synchronize()  # the pinned buffer is free again
            self.source.read(begin, self.host[slot][:n])
            if cuda:
                work = torch.cuda.current_stream(self.device)
                with torch.cuda.stream(self.stream):
                    if self.used[slot] is not None:
                        self.stream.wait_event(self.used[slot])
                    self.there[slot][:n].copy_(self.host[slot][:n], non_blocking=True)
                    self.copied[slot] = self.stream.record_event()
                work.wait_event(self.copied[slot])
            yield begin - self.start, self.there[slot][:n]
            if cuda:
                self.used[slot] = torch.cuda.current_stream(self.device).record_event()


class Share:
    """The rows of one device: their labels and their integer sums."""

    def __init__(
        self,
        source: Source,
        device: torch.device,
        start: int,
        stop: int,
        k: int,
        weights: Tensor | None,
        memory_bytes: int | None,
    ) -> None:
        self.device, self.start, self.size = device, start, stop - start
        self.weights = None if weights is None else weights[start:stop].to(device)
        # Two, not one of two rows: kernels are compiled again for what begins at no 16 bytes.
        self.labels = [
            torch.full((self.size,), -1, dtype=torch.int32, device=device) for _ in range(2)
        ]
        self.sums = Sums.zeros(k, source.width, device)
        self.bad = torch.full((), NONE_BAD, dtype=torch.int64, device=device)
        self.prepared: Rows | None = None
        if memory_bytes is None:
            memory_bytes = 2**62
            if device.type == "cuda":
                memory_bytes = int(0.85 * torch.cuda.mem_get_info(device)[0])
        item = source.dtype.itemsize
        # As given, in half precision, lists of rows to settle, and what sorting the labels takes.
        needed = self.size * (source.width * (item + 2) + 128)
        self.resident = source.on(device, start, stop)
        self.streamed: _Streamed | None = None
        if self.resident is None and needed <= memory_bytes:
            self.resident = torch.empty(self.size, source.width, dtype=source.dtype, device=device)
            source.read(start, self.resident)
        elif self.resident is None:
            block_rows = min(_STREAM_BYTES, memory_bytes // 4) // (source.width * item)
            # A multiple of 16, where it is that many, so that what is cut by blocks is aligned.
            block_rows = block_rows // 16 * 16 or max(1, block_rows)
            self.streamed = _Streamed(source, device, start, stop, block_rows)
        block = self.size if self.streamed is None else self.streamed.block_rows
        self.scratch = Scratch.of(block, device)
        self.moved = torch.empty(block + 4, dtype=torch.int32, device=device)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the share's rows: all at once if they stay, a block at a time if they stream."""
        if self.resident is not None:
            yield 0, self.resident
        elif self.streamed is not None:
            yield from self.streamed

    def on_device(self) -> Any:
        """Make this share's device the current one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def largest(self) -> Tensor:
        """Largest magnitude of each column, (D,) float64."""
        with self.on_device():
            found = [largest_values(x) for _, x in self.blocks()]
        return torch.stack(found).amax(0)

    def _rows(self, first: int, x: Tensor, centers: Centers) -> Rows:
        if self.resident is None:
            return prepare_rows(x, centers, self.bad, self.start + first)
        if self.prepared is None:
            self.prepared = prepare_rows(x, centers, self.bad, self.start)
        return self.prepared

    def assign(
        self,
        centers: Centers,
        scale: FixedScale,
        turn: int,
        *,
        few_moved: bool,
        with_inertia: bool,
        precision: str,
    ) -> Tensor:
        """Label all rows and bring the sums up to date; return the inertia, 0 if not wanted."""
        old, new = self.labels[1 - turn % 2], self.labels[turn % 2]
        inertia = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.on_device():
            if not few_moved:
                self.sums.zero_()
            for first, x in self.blocks():
                rows = self._rows(first, x, centers)
                here = slice(first, first + len(x))
                weights = None if self.weights is None else self.weights[here]
                nearest(rows, centers, new[here], self.scratch, precision=precision)
                if few_moved:
                    move_rows(x, old[here], new[here], weights, scale, self.sums, self.moved)
                else:
                    add_rows(x, new[here], weights, scale, self.sums)
                if with_inertia:
                    inertia += _weighted(distances(x, centers.c, new[here]), weights).sum()
        return inertia

    def inertia(self, centers: Tensor, turn: int) -> Tensor:
        """Weighted sum of the squared distances to the own centers, float64."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.on_device():
            for first, x in self.blocks():
                here = slice(first, first + len(x))
                weights = None if self.weights is None else self.weights[here]
                total += _weighted(
                    distances(x, centers, self.labels[turn % 2][here]), weights
                ).sum()
        return total

    def recount(self, scale: FixedScale, turn: int) -> None:
        """Sum all rows again, by the labels of pass `turn`."""
        with self.on_device():
            self.sums.zero_()
            for first, x in self.blocks():
                here = slice(first, first + len(x))
                weights = None if self.weights is None else self.weights[here]
                add_rows(x, self.labels[turn % 2][here], weights, scale, self.sums)

    def farthest(self, centers: Tensor, turn: int, count: int, unit: float) -> list[np.ndarray]:
        """Return distance, row, label and weight of the `count` rows farthest from their centers.

        The farthest first, of equals the first row. Rows whose weight times `unit` rounds to no
        mass are left out.
        """
        found = []
        with self.on_device():
            for first, x in self.blocks():
                labels = self.labels[turn % 2][first : first + len(x)]
                apart = distances(x, centers, labels)
                order = apart.sort(descending=True, stable=True).indices
                weights = torch.ones_like(apart)
                if self.weights is not None:
                    weights = self.weights[first : first + len(x)]
                    order = order[weights[order] * unit > 0.5]
                order = order[:count]
                rows = self.start + first + order
                some = (apart[order], rows, labels[order], weights[order])
                found.append([values.cpu().numpy() for values in some])
        apart, rows, labels, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((rows, -apart))[:count]
        return [apart[order], rows[order], labels[order], weights[order]]


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    return values if weights is None else values * weights
