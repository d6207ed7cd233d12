"""Two or more selections side by side, as a page."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from pyids.report.page import write_page
from pyids.report.text import cut

_SHOWN_GROUPS = 60
_NAME_BYTES = 200


def write_comparison(comparison: dict[str, Any], path: Path) -> Path:
    """Write what `pyids.evaluation.compare.compare` found as a page.

    Parameters
    ----------
    comparison
        ``Comparison.as_json()``.
    path
        The page.
    """
    mix = comparison["mix"]
    spread = {group: max(shares) - min(shares) for group, shares in mix.items()}
    shown = sorted(spread, key=lambda group: (-spread[group], group))[:_SHOWN_GROUPS]
    named = [one["name"] for one in comparison["selections"]]
    names = [PurePath(name).name for name in named]
    if len(set(names)) == len(names):  # where they lie is nobody's business
        short = dict(zip(named, names, strict=True))
        comparison = {
            **comparison,
            "selections": [{**s, "name": short[s["name"]]} for s in comparison["selections"]],
            "overlaps": [
                {**o, "first": short[o["first"]], "second": short[o["second"]]}
                for o in comparison["overlaps"]
            ],
        }
    title = cut(" and ".join(names[:2]) + (" and others" if len(names) > 2 else ""), _NAME_BYTES)
    data = {
        **comparison,
        "kind": "comparison",
        "title": title,
        "mix": [{"name": cut(group, _NAME_BYTES), "shares": mix[group]} for group in shown],
        "groups": len(mix),
    }
    return write_page(f"{title}: comparison of pyids", data, path)
