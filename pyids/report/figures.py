"""Counts and histograms of a report: what was dropped, what rounds came to, what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

from pyids._typing import Float64
from pyids.report.stages import seconds_of, stages_of
from pyids.report.text import cut
from pyids.scoring.statistics import edges_of_few
from pyids.store.folder import Store
from pyids.store.ledger import checked_by, load_sealed
from pyids.store.rounds import Rounds

_BINS = 24
# Reasons that are told apart, and that are shown.
_MOST_REASONS = 1000
_SHOWN_REASONS = 8


def histogram(
    values: Sequence[Float64], weights: Sequence[Float64] | None = None, *, log: bool = False
) -> dict[str, Any] | None:
    """Share the values of several groups among the same bins.

    Parameters
    ----------
    values
        Arrays of floats, one a group; what is not finite is in no bin.
    weights
        How much each value counts; 1 unless given.
    log
        Bins of equal ratio, for values of at least 0; those below 1 are in the first one.

    Returns
    -------
    dict or None
        ``edges``, and ``counts``, a list a group. Few distinct values have a
        bin each; else the outermost bins hold what lies beyond them: they begin and end where all
        but half a percent of the values do. None without a value.
    """
    finite = [np.isfinite(group) for group in values]
    whole = np.concatenate([group[ok] for group, ok in zip(values, finite, strict=True)])
    if not len(whole):
        return None
    if log:
        low, high = 0.0, max(2.0, float(whole.max()))
        edges = np.unique(np.round(np.geomspace(1, high, _BINS + 1)))
        edges[0], edges[-1] = low, high
    elif (few := edges_of_few(whole, _BINS)) is not None:
        edges = few
    else:
        low, high = (float(edge) for edge in np.quantile(whole, [0.005, 0.995]))
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    counts = []
    for n, (group, ok) in enumerate(zip(values, finite, strict=True)):
        inside = np.clip(group[ok], edges[0], edges[-1])
        weight = None if weights is None else weights[n][ok]
        counts.append(np.histogram(inside, edges, weights=weight)[0].astype(float).tolist())
    return {"edges": edges.tolist(), "counts": counts}


def funnel(store: Store, rounds: Rounds | None, selected: int) -> list[dict[str, Any]]:
    """Return what became of the rows, from those read to those selected."""
    kept = load_sealed(store.path / "keep" / "index.json")
    steps = [
        {"name": "read", "rows": store.rows_read, "kind": "stay"},
        {"name": "unusable", "rows": store.skipped, "kind": "drop", "file": "skipped.jsonl"},
        {
            "name": "exact duplicates",
            "rows": store.duplicates,
            "kind": "drop",
            "file": "duplicates.jsonl",
        },
    ]
    if kept.get("inputs", {}).get("keep_duplicates"):
        steps[-1]["kind"] = "note"  # listed, not dropped
    if "excluded" in kept:
        steps.append({"name": "excluded", "rows": int(kept["excluded"]), "kind": "drop"})
    if store.deduplicated:
        near = {"name": "near-duplicates", "rows": store.near_duplicates, "kind": "drop"}
        steps.append({**near, "file": "near_duplicates.jsonl"})
    steps.append({"name": "pool", "rows": store.kept, "kind": "stay"})
    steps += _never_drawn(store)
    if rounds is not None:
        screened = 0
        for n in range(rounds.drawn):
            if (path := rounds.path(n, "candidates.parquet")).exists():
                screened += pq.read_metadata(path).num_rows - len(rounds.selected(n))
        if screened:
            steps.append({"name": "candidates screened out", "rows": screened, "kind": "note"})
    return [*steps, {"name": "selected", "rows": selected, "kind": "stay"}]


def _never_drawn(store: Store) -> list[dict[str, Any]]:
    """Count rows of the pool that held-out rows exclude, and those that are trained on already."""
    path = store.path / "excluded" / "index.json"
    if not path.exists():
        return []
    facts = load_sealed(path)["facts"]
    found = {**facts["excluded"], "trained on already": facts["already"]}
    return [
        {
            "name": why if why == "trained on already" else f"excluded: {why}",
            "rows": rows,
            "kind": "note",
            **({} if why == "trained on already" else {"file": "excluded.jsonl"}),
        }
        for why, rows in found.items()
        if rows
    ]


def reasons(folder: Path) -> list[dict[str, Any]]:
    """Count why rows are unusable, the most frequent reasons first."""
    path = folder / "skipped.jsonl"
    counts: Counter[str] = Counter()
    if path.exists():
        checked_by(folder / "keep" / "index.json", path)
        with path.open("rb") as file:
            for line in file:
                reason = str(orjson.loads(line).get("reason", ""))
                known = reason in counts or len(counts) < _MOST_REASONS
                counts[reason if known else "other reasons"] += 1
    shown = counts.most_common(_SHOWN_REASONS)
    rest = counts.total() - sum(n for _, n in shown)
    listed = [{"reason": cut(reason, 300), "rows": n} for reason, n in shown]
    return [*listed, {"reason": "other reasons", "rows": rest}] if rest else listed


def round_facts(rounds: Rounds) -> list[dict[str, Any]]:
    """Return what each round drew, trained and scored."""
    facts = []
    for n in range(rounds.drawn):
        quotas = rounds.quotas(n)
        fact: dict[str, Any] = {
            "drawn": int(quotas.sum()),
            "clusters": int(np.count_nonzero(quotas)),
        }
        checkpoint = rounds.path(n, "checkpoint") / "checkpoint.json"
        if checkpoint.exists():
            from pyids.models.checkpoints import read_record

            record = asdict(read_record(checkpoint.parent))
            fact |= {name: record[name] for name in ("loss", "seconds", "tokens")}
        if rounds.path(n, "scores.json").exists():
            summary = rounds.summary(n)
            names = ("scored_rows", "scored_clusters", "paired_t", "between_cluster_z")
            fact |= {name: summary.get(name) for name in (*names, "weights_changed")}
        facts.append(fact)
    return facts


def score_histogram(rounds: Rounds) -> dict[str, Any] | None:
    """Return how the scores of the probe rows are spread, round by round."""
    scores = []
    for n in range(rounds.told):
        column = rounds.scores(n).column("score")
        scores.append(np.asarray(column, dtype=np.float64))
    return histogram(scores) if scores else None


def costs(folder: Path) -> list[dict[str, Any]]:
    """Return the wall seconds of each stage, and the bytes of what it left."""
    return [{"stage": name, "seconds": seconds} for name, seconds in seconds_of(stages_of(folder))]
