"""Draws with a budget in tokens, with bounds of groups, or with rows that are trained on already.

Rows are counted by cells: a group's part of a cluster, ``group * K + cluster``; without groups
cells are clusters. What a round draws is first shared among the groups, within caps and floors
(`pyids.quotas`), then among the cells of each by the weights of their clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.errors import ConfigError
from pyids.pipeline.budget import Bounds, Budget, bounds_of, describe_groups, words
from pyids.pipeline.cells import Cells
from pyids.pipeline.draw import OUTLIER_PENALTY, Draws
from pyids.pipeline.exclude import too_few
from pyids.pipeline.shard_draw import draw_by_tokens, draw_rows
from pyids.pipeline.token_draw import Part, draw_tokens
from pyids.quotas import bounded_quotas, level, round_bounds
from pyids.sampling import allocate, sample_by_cluster


@dataclass(frozen=True)
class BudgetedDraws(Draws):
    """Draws that keep to a budget of any unit and to the bounds of groups.

    Attributes
    ----------
    cells, budget, already
        What rows are counted by; what is drawn in all rounds; ids of rows trained on already.
    """

    cells: Cells = field(kw_only=True)
    budget: Budget = field(kw_only=True)
    already: Int64 = field(kw_only=True)
    _drawn: dict[int, Int64] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, plain: Draws, budget: Budget, already: Int64) -> BudgetedDraws:
        """Make them of draws by rows."""
        store, config, labels = plain.store, plain.config, plain.labels
        return cls(
            *(store, config, plain.rounds, labels, plain.target, plain.left_out, plain.excluded),
            order=plain.order,
            engine=plain.engine,
            cells=Cells.of(store, config, labels, plain.rounds.n_clusters),
            budget=budget,
            already=already,
        )

    @cached_property
    def _available(self) -> tuple[Int64, Int64]:
        """Rows and units of each cell that may be drawn."""
        rows, units = self.cells.total()
        rows_out, units_out = self.cells.total(self.left_out)
        return rows - rows_out, units - units_out

    @cached_property
    def _already(self) -> Int64:
        return self.cells.total(self.already)[1]

    @cached_property
    def bounds(self) -> Bounds:
        """What each group may have; see `pyids.pipeline.budget.bounds_of`."""
        return bounds_of(
            self.cells.names, self.config, self.budget.total, self._by_group(self._available[1])
        )

    def check(self) -> None:
        """Check that the budget can be drawn, within the bounds.

        Raises
        ------
        ConfigError
            It cannot; shows the numbers.
        """
        unit, total = words(self.budget.unit), self.budget.total
        if total > (most := int(self._available[1].sum())):
            raise too_few(self.config, total, most, unit)
        _ = self.bounds
        if not self.cells.by_tokens:
            return
        first, least = total // self.config.rounds, self._shortest()
        if least > first:
            raise ConfigError(
                f"each of {self.config.rounds} rounds draws {first} of the budget's {total} {unit},"
                f" and the shortest row has {least}: raise --budget or lower --rounds"
            )

    def _shortest(self) -> int:
        least = []
        for index, shard in enumerate(self.store.shards):
            free = ~np.isin(self.store.row_ids(shard), self.left_out)
            least.append(self.cells.units(index)[free].min(initial=np.iinfo(np.int64).max))
        return int(min(least))

    def _by_group(self, cells: Int64 | Float64) -> Any:
        return cells.reshape(len(self.cells.names), -1).sum(axis=1)

    # -- quotas --

    def _targets(self, n: int, shares: Float64) -> list[int]:
        """Share what round `n` draws among the groups."""
        total, rounds = self.budget.total, self.config.rounds
        spent = self._by_group(self.cells.total(self.rounds.selected_before(n))[1])
        available = self._by_group(self._available[1])
        until = total * (n + 1) // rounds
        target = min(until - int(spent.sum()), int((available - spent).sum()))
        lower, upper = round_bounds(
            *(n, rounds, target, total - until),
            *(spent.tolist(), (available - spent).tolist()),
            *(self.bounds.floors, self.bounds.caps),
        )
        wanted = self._by_group(shares).tolist()
        if (mix := self.bounds.mix) is not None:  # what each lacks of its part of all so far
            wanted = [
                max(0.0, part * until / sum(mix) - had)
                for part, had in zip(mix, spent.tolist(), strict=True)
            ]
        return bounded_quotas(target, wanted, lower, upper)

    def _planned(self, n: int) -> tuple[Int64, list[int]]:
        """Give the units that each cell has in round `n`, int64 (C,), and each group."""
        charge = self._already.astype(np.float64)
        for earlier in range(n):
            shares, left = self._shares(earlier)
            charge = self._charged(shares, charge, self._targets(earlier, shares))[1]
        shares, left = self._shares(n)
        targets = self._targets(n, shares)
        shares, _ = self._charged(shares, charge, targets)
        quotas = np.zeros(self.cells.n_cells, np.int64)
        size = self.cells.n_clusters
        for group, target in enumerate(targets):
            own = slice(group * size, (group + 1) * size)
            seed = self.seed(b"quotas of group %d" % group, n)
            quotas[own] = allocate(target, shares[own], left[own], seed=seed)
        return quotas, targets

    def _shares(self, n: int) -> tuple[Float64, Int64]:
        """Give what the cells are drawn in proportion to in round `n`, and what each has left."""
        spent = self.cells.total(self.rounds.selected_before(n))[1]
        left = self._available[1] - spent
        weights = np.tile(self.rounds.weights(n), len(self.cells.names))
        if self.config.allocation == "proportional":
            # What is trained on already counts as part of its cluster.
            return weights * (left + self._already), left
        return np.where(left > 0, weights, 0.0), left

    def _charged(
        self, shares: Float64, charge: Float64, targets: list[int]
    ) -> tuple[Float64, Float64]:
        """Take what cells have had already off their shares; give what is still to be charged."""
        if not charge.any():
            return shares, charge
        shares, charge = shares.copy(), charge.copy()
        size = self.cells.n_clusters
        for group, target in enumerate(targets):
            own = slice(group * size, (group + 1) * size)
            whole = level(shares[own], charge[own], target) * shares[own]
            shares[own], charge[own] = (
                np.maximum(0, whole - charge[own]),
                np.maximum(0, charge[own] - whole),
            )
        return shares, charge

    # -- draws --

    def _labels(self) -> Sequence[NDArray[np.int32]]:
        return self.cells

    def _by_tokens(self, n: int) -> Int64:
        """Draw the rows of round `n` by tokens, once; ids, ascending."""
        if n not in self._drawn:
            quotas, targets = self._planned(n)
            self._drawn[n] = draw_by_tokens(
                self.drawn_from(n, self.weights),
                *(quotas, self.cells.group_of, targets),
                seed=self.config.seed,
            )
        return self._drawn[n]

    def _rows_of_cells(self, n: int) -> Int64:
        """Give the rows that each cell draws in round `n`, int64 (C,)."""
        if self.cells.by_tokens:
            return self.cells.total(self._by_tokens(n))[0]
        return self._planned(n)[0]

    def quotas(self, n: int) -> Int64:
        """Give the rows that each cluster draws in round `n`, int64 (K,)."""
        quotas: Int64 = self._rows_of_cells(n).reshape(-1, self.cells.n_clusters).sum(axis=0)
        return quotas

    def settled(self, quotas: Int64, selected: Int64) -> Int64:
        """Count the rows that were drawn of each cluster, int64 (K,)."""
        clusters = self.cells.of_rows(selected)[0] % self.cells.n_clusters
        return np.bincount(clusters, minlength=self.cells.n_clusters).astype(np.int64)

    def rows(self, n: int, quotas: Int64) -> Int64:
        """Draw rows that no round before `n` drew; ids, ascending."""
        if self.cells.by_tokens:
            return self._by_tokens(n)
        return self._of_cells(n, self._rows_of_cells(n))

    def candidates(self, n: int, quotas: Int64, per_row: int) -> Int64:
        """Draw several candidates for each row that cells draw; ids, ascending."""
        left = self._available[0] - self.cells.total(self.rounds.selected_before(n))[0]
        return self._of_cells(n, np.minimum(self._rows_of_cells(n) * per_row, left))

    def _of_cells(self, n: int, quotas: Int64) -> Int64:
        return draw_rows(self.drawn_from(n, self.weights), quotas, seed=self.config.seed)

    def screened(
        self,
        n: int,
        quotas: Int64,
        candidates: Int64,
        clusters: NDArray[np.int32],
        outlier_scores: Float64,
    ) -> Int64:
        """Draw among candidates as `Draws.screened` does, by cells."""
        weights = self.log_weights_of(candidates) - OUTLIER_PENALTY * outlier_scores
        cells, units = self.cells.of_rows(candidates)
        seed = self.seed(b"candidates", n)
        if self.cells.by_tokens:
            planned, targets = self._planned(n)
            part, nobody = Part(candidates, cells, units, weights), np.empty(0, np.int64)
            return draw_tokens(
                lambda pool: pool.add(part, nobody, seed, self.config.threads),
                *(planned, self.cells.group_of, targets),
                seed=seed,
            )
        return sample_by_cluster(
            cells,
            self._rows_of_cells(n),
            log_weights=weights,
            row_ids=candidates,
            seed=seed,
            allow_fewer=True,
            n_threads=self.config.threads,
        )

    def metadata(self) -> dict[str, Any]:
        """Return what the manifest says of budget and groups, JSON values."""
        drawn = self.cells.total(self.rounds.selected())[1]
        facts: dict[str, Any] = {
            "unit": self.budget.unit,
            "total": self.budget.total,
            "drawn": int(drawn.sum()),
        }
        if self.cells.by_group:
            held = self._by_group(self._available[1])
            facts["groups"] = describe_groups(self.bounds, self._by_group(drawn), held)
        return {**super().metadata(), "budget": facts}
