"""A draw by tokens: as many rows as a number of tokens allows, each cluster at its own pace.

The rows of a cell (a cluster, or a group's part of one) stand in the order of their keys, as in a
draw by rows. A row of `s` tokens, before which its cell has drawn `a`, has the mark
``(a + u * s) / quota``, where `u` in [0, 1) is drawn for the cell and `quota` is its part of the
tokens. Rows are taken in the order of their marks until the next one does not fit.

So the tokens of all cells together end less than one row below what they may be, and a cell that
is given too few tokens for a row still has one as often as its quota says: with `u` uniform, a
cell that stops at the mark 1 expects exactly its quota, whatever the lengths. (The whole draw stops
at a mark near 1, at the row that does not fit: that favors shorter rows, by one row in all.)

Rows that are longer than all that their group may draw are passed over: they would end the draw
before it began.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.sampling import Sample, sample_by_cluster

# Rows whose mark is above this are first kept out of memory; few draws need more.
_REACH = 2.0
_MIN_HELD = 1 << 16


class Part(NamedTuple):
    """Rows of a shard.

    Attributes
    ----------
    row_ids, cells
        int64, ascending, and int32, (n,).
    tokens
        int64 (n,); None where they are not counted.
    log_weights
        float64 (n,); None where all are equal.
    """

    row_ids: Int64
    cells: NDArray[np.int32]
    tokens: Int64 | None
    log_weights: Float64 | None


def sample_part(
    part: Part, quotas: Int64, exclude: Int64, seed: int, threads: int | None, floors: Float64
) -> Sample:
    """Draw from the rows of a shard what may be drawn of all: so many of each cell, with keys."""
    return sample_by_cluster(
        part.cells,
        quotas,
        log_weights=part.log_weights,
        row_ids=part.row_ids,
        exclude=exclude,
        seed=seed,
        allow_fewer=True,
        return_keys=True,
        n_threads=threads,
        floors=floors,
    )


class _Held(NamedTuple):
    """Rows with their keys, by cell and in the order in which a cell gives them."""

    row_ids: Int64
    cells: NDArray[np.int32]
    tokens: Int64
    keys: Float64


def draw_tokens(
    fill: Callable[[TokenPool], None],
    quotas: Int64,
    group_of: Int64,
    targets: list[int],
    *,
    seed: int,
) -> Int64:
    """Draw rows of so many tokens of each group; ids, ascending.

    What a group leaves of its target, less than a row, goes to the group behind it: all groups
    together end less than one row below the sum of the targets, and never above it.

    Parameters
    ----------
    fill
        Gives a pool all rows that may be drawn; called more than once if need be.
    quotas
        int64 (C,), tokens of each cell; those of a group come to its target.
    group_of
        int64 (C,), the group of each cell.
    targets
        Tokens of each group.
    seed
        That of the rows' keys.
    """
    limits = np.array(targets, np.int64)
    for reach in (_REACH, 8 * _REACH, np.inf):
        pool = TokenPool(quotas, group_of, limits, reach)
        fill(pool)
        if (drawn := pool.draw(_offsets(len(quotas), seed))) is not None:
            return drawn
    raise AssertionError("with no reach, all rows are held")


def _offsets(n_cells: int, seed: int) -> Float64:
    """Draw `u` of each cell, keyed by (seed, cell)."""
    digests = (
        xxhash.xxh3_64_intdigest(b"tokens" + cell.to_bytes(8, "little"), seed)
        for cell in range(n_cells)
    )
    return np.fromiter((digest >> 11 for digest in digests), np.float64, n_cells) * 2.0**-53


class TokenPool:
    """The rows that a draw may take, those alone whose mark can be at most `reach`.

    Parameters
    ----------
    quotas, group_of
        See `draw_tokens`.
    limits
        int64 (G,), tokens of each group.
    reach
        The largest mark.
    floors
        float64 (C, 2): keys below which a row of each cell need not be looked at.
    """

    def __init__(
        self,
        quotas: Int64,
        group_of: Int64,
        limits: Int64,
        reach: float,
        floors: Float64 | None = None,
    ) -> None:
        self.quotas, self.group_of, self.limits = quotas, group_of, limits
        self.reach = float(reach)
        self.floors = np.tile([-np.inf, 0.0], (len(quotas), 1)) if floors is None else floors
        self.cut = np.zeros(len(quotas), bool)  # cells of which rows were let go
        self.held = _Held(
            np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64), np.empty((0, 2))
        )
        self.waiting: list[_Held] = []
        self.n_waiting = 0

    def how(self) -> dict[str, NDArray[Any]]:
        """Give the arguments that make another pool of its kind."""
        names = ("quotas", "group_of", "limits", "reach")
        return {name: np.asarray(getattr(self, name)) for name in names}

    def add(self, part: Part, exclude: Int64, seed: int, threads: int | None) -> None:
        """Take the rows of one more shard, but for those longer than all that is drawn.

        `exclude`, int64, ascending, are ids of rows that must not be drawn.
        """
        assert part.tokens is not None
        everyone = np.bincount(part.cells, minlength=len(self.quotas))
        sample = sample_part(part, everyone, exclude, seed, threads, self.floors)
        tokens = part.tokens[np.searchsorted(part.row_ids, sample.row_ids)]
        fits = tokens <= self.limits.sum()
        self._wait(
            _Held(sample.row_ids[fits], sample.labels[fits], tokens[fits], sample.keys[fits])
        )

    def found(self) -> tuple[_Held, NDArray[np.bool_]]:
        """Give the rows that the draw may take, and the cells of which rows were let go."""
        self._merge()
        return self.held, self.cut

    def merge(self, found: tuple[_Held, NDArray[np.bool_]]) -> None:
        """Take what another pool has found in other shards."""
        held, cut = found
        self.cut |= cut
        self._wait(held)

    def _wait(self, held: _Held) -> None:
        self.waiting.append(held)
        self.n_waiting += len(held.row_ids)
        if self.n_waiting > max(_MIN_HELD, len(self.held.row_ids)):
            self._merge()

    def _merge(self) -> None:
        """Put all rows in order and let those go that no draw within reach can take."""
        ids, cells, tokens, keys = (
            np.concatenate(column) for column in zip(self.held, *self.waiting, strict=True)
        )
        self.waiting.clear()
        self.n_waiting = 0
        order = np.lexsort((ids, -keys[:, 1], -keys[:, 0], cells))
        ids, cells, tokens, keys = ids[order], cells[order], tokens[order], keys[order]
        if np.isfinite(self.reach):
            # A group's limit may grow by what others leave, and then longer rows count before
            # this one: that moves its mark up, never down.
            counts = np.where(tokens <= self.limits[self.group_of[cells]], tokens, 0)
            stays = _before(cells, counts) <= self.reach * self.quotas[cells]
            self.cut[cells[~stays]] = True
            ids, cells, tokens, keys = ids[stays], cells[stays], tokens[stays], keys[stays]
            last = np.flatnonzero(np.append(cells[1:] != cells[:-1], True)[: len(cells)])
            last = last[self.cut[cells[last]]]
            self.floors[cells[last]] = keys[last]  # what comes below it in its cell goes, too
        self.held = _Held(ids, cells, tokens, keys)

    def draw(self, offsets: Float64) -> Int64 | None:
        """Take rows group by group; None where rows that were let go might have been taken."""
        self._merge()
        drawn = [np.empty(0, np.int64)]
        group_of_row = self.group_of[self.held.cells]
        was_cut = np.zeros(len(self.limits), bool)
        was_cut[self.group_of[self.cut]] = True
        carried = 0
        for group, limit in enumerate(self.limits.tolist()):
            target = limit + carried
            own = np.flatnonzero((group_of_row == group) & (self.held.tokens <= target))
            ids, cells, tokens = self.held.row_ids[own], self.held.cells[own], self.held.tokens[own]
            before = _before(cells, tokens)
            quotas = self.quotas[cells]
            marks = np.full(len(own), np.inf)
            np.divide(before + offsets[cells] * tokens, quotas, out=marks, where=quotas > 0)
            order = np.lexsort((ids, before, marks))
            sums = np.cumsum(tokens[order])
            taken = int(np.searchsorted(sums, target, side="right"))
            beyond = taken == len(own) or marks[order[taken]] > self.reach
            if beyond and was_cut[group]:
                return None
            drawn.append(ids[order[:taken]])
            carried = target - (int(sums[taken - 1]) if taken else 0)
        return np.sort(np.concatenate(drawn))


def _before(cells: NDArray[np.int32], tokens: Int64) -> Int64:
    """Tokens of the rows before each one of its cell; rows stand cell by cell."""
    ends = np.cumsum(tokens)
    starts = ends - tokens
    first = np.append(True, cells[1:] != cells[:-1]) if len(cells) else np.empty(0, bool)
    where = np.maximum.accumulate(np.where(first, np.arange(len(cells)), 0))
    return starts - starts[where] if len(cells) else starts
