"""How a run was made: its configuration, versions, input and machine."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import yaml

from pyids.report.text import cut
from pyids.store.folder import Store
from pyids.store.ledger import load_sealed

_SHOWN_SOURCES = 20
_VALUE_BYTES = 300


def provenance(
    folder: Path, config: dict[str, Any], store: Store, selection: str | None = None
) -> dict[str, Any]:
    """Return the facts of the manifest, or that there is none yet; files by name, not by place.

    Where a folder lies is nobody's business with whom a page is shared. Of a selection without
    rounds, `selection`, they are those of its own manifest (`pyids.methods.record`).
    """
    sources = store.index["sources"]
    facts: list[list[str]] = []
    if manifest := _manifest(folder, selection):
        environment = manifest.get("environment", {})
        packages = environment.get("packages", {})
        facts += [
            ["pyids", packages.get("pyids-select") or "unknown"],
            ["Python", environment.get("python", "unknown")],
            ["platform", environment.get("platform", "unknown")],
            ["packages", ", ".join(f"{n} {v}" for n, v in packages.items() if v)],
            ["device", f"{manifest.get('device')}, {manifest.get('threads')} threads"],
        ]
        if "method" in manifest:
            facts.insert(0, ["method", str(manifest["method"])])
            config = manifest["config"]
        if "files" in manifest:
            said = f"{len(manifest['files']):,}, each with its xxh3-128"
            facts.append(["files in the manifest", said])
        facts += [*_budget(manifest.get("budget")), *_grown(manifest.get("grown"))]
    else:
        facts.append(["manifest", "none yet: the run has not ended"])
    for source in sources[:_SHOWN_SOURCES]:
        facts.append(["input", f"{PurePath(source['path']).name} ({source['format']})"])
    if len(sources) > _SHOWN_SOURCES:
        facts.append(["input", f"and {len(sources) - _SHOWN_SOURCES:,} more files"])
    shown = {name: _without_folder(value) for name, value in config.items() if name != "output_dir"}
    return {
        "provenance": [[name, cut(str(value), _VALUE_BYTES)] for name, value in facts],
        "config": cut(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), 20_000),
    }


def _manifest(folder: Path, selection: str | None) -> dict[str, Any] | None:
    own = folder / f"{Path(selection or '').stem}.manifest.json"
    path = own if own.exists() else folder / "manifest.json"
    return load_sealed(path) if path.exists() else None


def _grown(grown: dict[str, Any] | None) -> list[list[str]]:
    """Say what a folder that has grown carries over."""
    if grown is None:
        return []
    facts = []
    if "rows" in grown:
        said = f"{grown['rows']:,} rows, in the nearest of the clusters that were there"
        facts.append(["added", f"{said} (drift {grown['drift']:.3g})"])
    if before := grown.get("selected before"):
        facts.append(["selected before", ", ".join(before)])
    return facts


def _budget(budget: dict[str, Any] | None) -> list[list[str]]:
    """Say what was drawn of a budget that counts tokens or is shared by groups."""
    if budget is None:
        return []
    unit = str(budget["unit"]).replace("-", " ")
    facts = [["budget", f"{budget['drawn']:,} of {budget['total']:,} {unit}"]]
    for name, group in list(budget.get("groups", {}).items())[:_SHOWN_SOURCES]:
        said = f"{group['drawn']:,} of {group['held']:,} {unit}"
        facts.append([f"group {name}", f"{said} (floor {group['floor']:,}, cap {group['cap']:,})"])
    return facts


def _without_folder(value: Any) -> Any:
    """Return a path's last part, of absolute ones alone."""
    if isinstance(value, list):
        return [_without_folder(one) for one in value[:_SHOWN_SOURCES]]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
