"""From trials to tables: shares of the gap closed, intervals, tests, garbage, costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

Result = dict[str, Any]

# The ends of the gap: no training, and more and cleaner rows than any selection has.
BOUNDS = ("base", "reference")
# The far end where no reference was trained, which takes as long as ten selections.
STAND_IN = "random"


def macro(result: Result, measure: str = "nll") -> float:
    """Return the mean over skills; NaN where the measure has none."""
    values = list(result[measure].values())
    return float(np.mean(values)) if values else float("nan")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half width of the 95% t interval; NaN for fewer than two values."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half)


def gap(results: Sequence[Result]) -> tuple[Result, dict[str, float]]:
    """Return the base's result, and the NLL of each skill at the far end, mean over seeds."""
    base = next(one for one in results if one["trial"]["method"] == "base")
    far = [one for one in results if one["trial"]["method"] == far_end(results)]
    return base, {
        skill: float(np.mean([one["nll"][skill] for one in far])) for skill in base["nll"]
    }


def far_end(results: Sequence[Result]) -> str:
    """Return the method at the far end of the gap; a share of 1 is as far as it gets."""
    return "reference" if any(r["trial"]["method"] == "reference" for r in results) else STAND_IN


def share_closed(result: Result, base: Result, reference: dict[str, float]) -> float:
    """Return (base - method) / (base - reference), of NLLs averaged over skills."""
    start, end = macro(base), float(np.mean(list(reference.values())))
    return (start - macro(result)) / (start - end)


def tabulate(results: Sequence[Result], against: str = "random") -> list[dict[str, Any]]:
    """Return a row a label: share closed, difference to `against` by seed, skills, garbage, cost.

    All results are of one pool, one held-out set and one way of matching budgets.
    """
    base, reference = gap(results)
    by_label: dict[str, dict[int, Result]] = defaultdict(dict)
    for one in results:
        if one["trial"]["method"] not in BOUNDS:
            by_label[one["trial"]["label"]][one["trial"]["seed"]] = one
    anchor = by_label.get(against, {})
    rows = []
    for label, seeds in by_label.items():
        shares = {seed: share_closed(one, base, reference) for seed, one in seeds.items()}
        paired = sorted(set(seeds) & set(anchor))
        anchored = {seed: share_closed(anchor[seed], base, reference) for seed in paired}
        difference = interval([shares[seed] - anchored[seed] for seed in paired] or [np.nan])
        mean, half = interval(list(shares.values()))
        skills = {
            skill: interval([one["nll"][skill] for one in seeds.values()]) for skill in base["nll"]
        }
        worst = {
            skill: (base["nll"][skill] - skills[skill][0]) / (base["nll"][skill] - reference[skill])
            for skill in skills
        }
        row: dict[str, Any] = {
            "label": label,
            "seeds": sorted(seeds),
            "share": mean,
            "share_half_width": half,
            "over": difference[0] / np.mean(list(anchored.values())) if paired else np.nan,
            "over_half_width": (
                difference[1] / np.mean(list(anchored.values())) if paired else np.nan
            ),
            "macro_nll": float(np.mean([macro(one) for one in seeds.values()])),
            "exact_match": float(np.mean([macro(one, "exact_match") for one in seeds.values()])),
            "skills": {skill: mean for skill, (mean, _) in skills.items()},
            "last_number": _mean(
                [one.get("last_number", {}).get("math") for one in seeds.values()]
            ),
            "forgotten": forgotten(skills, base["nll"], list(seeds.values())),
            "worst_skill": min(worst, key=worst.__getitem__),
            "worst_share": min(worst.values()),
            "lost_skills": lost_skills(seeds, anchor, paired),
            "rows": float(np.mean([one["rows"] for one in seeds.values()])),
            "response_tokens": float(np.mean([one["response_tokens"] for one in seeds.values()])),
            "select_seconds": float(np.mean([one["select_seconds"] for one in seeds.values()])),
            "train_seconds": float(np.mean([one["train_seconds"] for one in seeds.values()])),
            "garbage": _mean_of([one["garbage"] for one in seeds.values()]),
        }
        if all("rounds" in one for one in seeds.values()):
            row["rounds"] = [
                {
                    what: _mean_of([one["rounds"][n][what] for one in seeds.values()])
                    for what in ("expected", "drawn")
                }
                | {
                    "clusters": float(
                        np.mean([one["rounds"][n]["clusters"] for one in seeds.values()])
                    )
                }
                for n in range(len(next(iter(seeds.values()))["rounds"]))
            ]
        rows.append(row)
    return sorted(rows, key=lambda row: -row["share"])


def beside(results: Sequence[Result], ours: str = "iterative") -> dict[str, dict[str, float]]:
    """Return by how much `ours` closes more of the gap than each other method, paired by seed.

    ``difference`` of the shares and its ``half_width`` (95% t interval); ``relative`` is the
    difference over the other's share, where that is positive.
    """
    base, reference = gap(results)
    shares: dict[str, dict[int, float]] = defaultdict(dict)
    for one in results:
        if one["trial"]["method"] not in BOUNDS:
            label, seed = one["trial"]["label"], one["trial"]["seed"]
            shares[label][seed] = share_closed(one, base, reference)
    mine, found = shares.pop(ours, {}), {}
    for label, theirs in sorted(shares.items()):
        if paired := sorted(set(mine) & set(theirs)):
            difference, half = interval([mine[seed] - theirs[seed] for seed in paired])
            mean = float(np.mean([theirs[seed] for seed in paired]))
            found[label] = {"difference": difference, "half_width": half}
            if mean > 0:
                found[label]["relative"] = difference / mean
    return found


def lost_skills(
    seeds: dict[int, Result], anchor: dict[int, Result], paired: Sequence[int]
) -> list[str]:
    """Return the skills that are worse than the anchor's: paired t tests, Holm-corrected at 5%."""
    if len(paired) < 2 or seeds is anchor:
        return []
    skills = list(next(iter(seeds.values()))["nll"])
    p = {}
    for skill in skills:
        ours = [seeds[seed]["nll"][skill] for seed in paired]
        theirs = [anchor[seed]["nll"][skill] for seed in paired]
        # Equal differences leave the test without a variance.
        same = np.ptp(np.subtract(ours, theirs)) == 0
        greater = ours[0] > theirs[0]
        p[skill] = (
            float(not greater)
            if same
            else float(stats.ttest_rel(ours, theirs, alternative="greater").pvalue)
        )
    lost = []
    for rank, skill in enumerate(sorted(p, key=p.__getitem__)):
        if p[skill] > 0.05 / (len(p) - rank):
            break
        lost.append(skill)
    return lost


def forgotten(
    skills: dict[str, tuple[float, float]], base: dict[str, float], results: Sequence[Result]
) -> dict[str, dict[str, float]]:
    """Return what training has made worse than no training, beyond the 95% interval over seeds.

    Of each such skill ``loss``, by how many nats a token, and ``rows``, how many rows of it were
    selected in the mean, where that was kept.
    """
    worse = {}
    for skill, (mean, half) in skills.items():
        if mean - base[skill] > np.nan_to_num(half):
            worse[skill] = {"loss": mean - base[skill]}
            if all("skill_rows" in one for one in results):
                rows = [one["skill_rows"].get(skill, 0) for one in results]
                worse[skill]["rows"] = float(np.mean(rows))
    return worse


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _mean_of(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    return {kind: float(np.mean([one[kind] for one in shares])) for kind in shares[0]}


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text."""
    lines = [
        f"{'method':34}{'seeds':>6}{'share':>8}{'+-':>7}{'over':>8}{'+-':>7}{'EM':>7}"
        f"{'worst':>7} {'skill':14}{'tokens':>8}{'garbage':>8}{'select s':>9}{'train s':>8}  lost"
    ]
    for row in rows:
        lines.append(
            f"{row['label']:34}{len(row['seeds']):6}{row['share']:8.3f}"
            f"{row['share_half_width']:7.3f}{row['over']:8.1%}{row['over_half_width']:7.1%}"
            f"{row['exact_match']:7.3f}{row['worst_share']:7.2f} {row['worst_skill']:14}"
            f"{row['response_tokens']:8.0f}{sum(row['garbage'].values()):8.1%}"
            f"{row['select_seconds']:9.1f}{row['train_seconds']:8.1f}  "
            + ", ".join(row["lost_skills"])
        )
    return "\n".join(lines)
