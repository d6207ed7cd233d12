"""What a comparison of selections found, and how it is printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyids.evaluation.evaluate import Evaluation
from pyids.evaluation.tables import table

# Groups that a table shows; the JSON has all.
_SHOWN_GROUPS = 20

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Summary:
    """One selection.

    Attributes
    ----------
    name
        As the caller named it.
    rows, distinct
        Its rows, and how many differ.
    mean_length, median_length, longest
        Of the responses of a row: in tokens where a tokenizer was named, else in characters.
    total_length
        Of all its responses.
    topics
        Groups of the mix that it has rows of.
    effective_topics
        The exponential of the entropy of its mix: as many equal groups would be as diverse.
    distance
        Total variation between its mix and that of the first selection, 0 to 1.
    """

    name: str
    rows: int
    distinct: int
    mean_length: float
    median_length: float
    longest: int
    total_length: int
    topics: int
    effective_topics: float
    distance: float


@dataclass(frozen=True)
class Overlap:
    """What two selections share: rows of equal content, and their share of the union."""

    first: str
    second: str
    common: int
    jaccard: float


@dataclass(frozen=True)
class Histogram:
    """How a measure is spread over each selection.

    Attributes
    ----------
    edges
        Bounds of the bins, the same for all selections: bin b is [edges[b], edges[b + 1]), the last
        one with its upper bound.
    counts
        Rows in each bin, a list a selection; rows without the measure are in none.
    """

    edges: list[float]
    counts: list[list[int]]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    selections
        In the order given.
    overlaps
        Of every pair.
    group_by
        What the mix groups rows by: a column, or ``cluster`` (those of the first run).
    mix
        Group -> share of the rows of each selection.
    unit
        Of lengths: ``tokens`` or ``characters``.
    histograms
        ``length``, and if the rows have them ``score`` (of the row's cluster) and ``quality``.
    evaluations
        Of each selection's last checkpoint, None where it has none; then of the base model.
    """

    selections: tuple[Summary, ...]
    overlaps: tuple[Overlap, ...]
    group_by: str
    mix: dict[str, list[float]]
    unit: str
    histograms: dict[str, Histogram]
    evaluations: tuple[Evaluation | None, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        evaluations = [found and found.as_json() for found in self.evaluations]
        return {**asdict(self), "evaluations": evaluations}

    def __str__(self) -> str:
        # Paths are long and columns many: the selections are numbered once.
        numbers = [f"[{i + 1}]" for i in range(len(self.selections))]
        unit = self.unit
        header = ("selection", "", "rows", "distinct", f"mean {unit}", "median", "longest", "total")
        lengths = [
            (
                *(number, s.name, s.rows, s.distinct),
                *(s.mean_length, s.median_length, s.longest, s.total_length),
            )
            for number, s in zip(numbers, self.selections, strict=True)
        ]
        name_of = dict(zip((s.name for s in self.selections), numbers, strict=True))
        pairs = [
            (f"{name_of[o.first]} {name_of[o.second]}", o.common, o.jaccard) for o in self.overlaps
        ]
        diversity = [
            (number, s.topics, s.effective_topics, s.distance)
            for number, s in zip(numbers, self.selections, strict=True)
        ]
        parts = [
            table(header, lengths),
            table(("rows in common", "rows", "Jaccard"), pairs),
            table((f"by {self.group_by}", "groups", "effective", "distance from [1]"), diversity),
            self._mix_table(numbers),
        ]
        for name, histogram in self.histograms.items():
            edges = histogram.edges
            rows = [
                (f"{low:.4g} to {high:.4g}", *column)
                for low, high, *column in zip(edges, edges[1:], *histogram.counts, strict=False)
            ]
            parts.append(table((name, *numbers), rows))
        if any(self.evaluations):
            parts.append(self._evaluation_table([*numbers, "base"]))
        return "\n\n".join(parts)

    def _mix_table(self, numbers: list[str]) -> str:
        """Return the groups whose shares differ most, with how many are left out."""
        spread = {group: max(shares) - min(shares) for group, shares in self.mix.items()}
        shown = sorted(spread, key=lambda group: (-spread[group], group))[:_SHOWN_GROUPS]
        rows = [(group, *(f"{share:.2%}" for share in self.mix[group])) for group in shown]
        more = len(self.mix) - len(shown)
        note = f"\n... and {more} that differ less" if more else ""
        return table((f"share of {self.group_by}", *numbers), rows) + note

    def _evaluation_table(self, names: list[str]) -> str:
        found = {
            name: {
                **{group.name: group.token_nll for group in evaluation.groups},
                "macro average": evaluation.macro.token_nll,
            }
            for name, evaluation in zip(names, self.evaluations, strict=False)
            if evaluation is not None
        }
        groups = dict.fromkeys(group for losses in found.values() for group in losses)
        rows = [(group, *(losses.get(group) for losses in found.values())) for group in groups]
        return table(("nll/token", *found), rows)
