"""The manifest of a selection without rounds: what was asked for, and what became of it.

It lies beside the rows, as ``NAME.manifest.json``: one run folder may hold many selections, each by
options of its own, so its own manifest says nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyids.config import RunConfig
from pyids.data.card import How
from pyids.pipeline.grow import carried_over
from pyids.pipeline.prepare import metadata
from pyids.store.files import write_sealed
from pyids.store.folder import Store
from pyids.store.ledger import facts_of
from pyids.store.manifest import environment


def write_record(
    store: Store, config: RunConfig, how: How, budget: Mapping[str, Any], rows: Path
) -> Path:
    """Write the manifest of a selection beside it, and return its path.

    Parameters
    ----------
    store
        The run folder that was selected from.
    config
        What was asked for.
    how
        The method, its options, and what was excluded.
    budget
        What the budget came to: its unit, ``total`` and ``drawn``, and the same of each group.
    rows
        The exported rows.
    """
    path = rows.with_name(f"{rows.stem}.manifest.json")
    facts = metadata(store, config)
    if (store.path / "centroids.json").exists():
        facts |= carried_over(store)
    write_sealed(
        path,
        {
            "method": how.method,
            "settings": {name: str(value) for name, value in how.settings.items()},
            **facts,
            "budget": dict(budget),
            **how.facts,
            "selected": {"file": rows.name, **facts_of(rows)},
            "environment": environment(),
        },
    )
    return path
