"""What to do about a damaged file of a run folder: which stage writes it."""

from __future__ import annotations

from pathlib import Path

# The stage that writes a file or folder of the run folder, as `pyids clean --stage` calls it.
STAGES = {
    "read": ("rows", "keep", "skipped.jsonl", "duplicates.jsonl"),
    "left-out": ("left_out.json",),
    "count": ("tokens", "groups"),
    "embed": ("embeddings",),
    "cluster": ("labels", "centroids.safetensors", "centroids.json", "auto_k.json", "growth.json"),
    "near-duplicates": ("distinct", "near_duplicates.jsonl"),
    "quality": ("quality",),
    "exclude": ("excluded", "excluded.jsonl"),
    "rounds": ("rounds",),
    "export": ("selected.jsonl", "probes.jsonl", "manifest.json"),
}


def remedy(path: Path) -> str:
    """Say what to do about a damaged file of a run folder."""
    for folder in path.parents:
        if (folder / ".pyids").exists() or (folder / "config.yaml").exists():
            return _remedy(folder, path.relative_to(folder).parts)
    return "repeat the run that made it, with another --output-dir"


def _remedy(folder: Path, parts: tuple[str, ...]) -> str:
    stage = next((name for name, files in STAGES.items() if parts[0] in files), None)
    if stage is None:
        return "repeat the command that began the run, with all its options"
    command = f"pyids clean {folder} --stage {stage}"
    if stage == "rounds" and len(parts) > 1 and parts[1].isdecimal():
        command += f" --from {parts[1]}"
    if stage in ("read", "left-out", "count", "embed", "exclude"):
        return f"`{command}`, then the command that began the run, with all its options"
    if stage == "export":
        return f"`{command}`, then `pyids export {folder}`"
    if stage == "rounds":
        return f"`{command}`, then ask for that round again"
    return f"`{command}`, then the command again"
