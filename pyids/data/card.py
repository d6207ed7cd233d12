"""The card of an exported selection: a README.md that the hub reads, and people do.

It says what the rows are and how they were chosen, without when and where: the same selection has
the same card.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from pyids.config import ROUND_FIELDS, RunConfig, load_config
from pyids.store.files import atomic_write
from pyids.store.ledger import load_sealed

if TYPE_CHECKING:
    from pyids.data.exported_rows import Selected
    from pyids.store.folder import Row, Store

logger = logging.getLogger("pyids")

_TAG = "pyids"
# Names of the hub for numbers of rows, by their upper bounds.
_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
)  # fmt: skip
_LICENSE_COLUMNS = ("license", "licence")
# Identifiers of licenses that the hub knows and data come with; others are given as `other`.
_LICENSES = frozenset((
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc", "cc0-1.0",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "unlicense",
    "odc-by", "odbl", "pddl", "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "mpl-2.0", "epl-2.0", "isc", "artistic-2.0", "openrail", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "gemma", "ms-pl", "zlib", "gfdl", "c-uda", "other",
))  # fmt: skip
_READ_ROWS = 2000
_SHOWN = 12
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
# Options that say how rows were chosen.
_OPTIONS = (
    "budget", "budget_unit", "group_by", "cap", "floor", "proportional_to", "exclude",
    "exclude_ngram", "exclude_overlap", "exclude_cosine", "already", "rounds", "seed", "clusters",
    "metric", "semdedup_threshold", "embeddings_file", "embeddings_column", "encoder", "quality",
    "model", "proxy_model", "scorer", "weight_update", "allocation", "oversample",
    "probes_per_cluster", "keep_duplicates",
)  # fmt: skip


@dataclass(frozen=True)
class How:
    """How a method has chosen rows, which the configuration of their run folder need not say.

    Attributes
    ----------
    method
        Its name.
    settings
        Its options.
    config
        What was asked for, as a configuration file holds it.
    facts
        What was excluded; see `pyids.pipeline.exclude.Excluded`.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_card(
    store: Store, selected: Selected, path: Path, format: str = "jsonl", how: How | None = None
) -> Path | None:
    """Write the card of an export beside it, and return its path.

    It is ``README.md`` of the folder, or, where a README.md of something else lies there,
    ``NAME.README.md``; it is not written where that is taken, too. Nothing is replaced but cards.

    Parameters
    ----------
    store
        The run folder that holds the rows.
    selected
        The rows.
    path
        What was exported: a file, or a folder with ``selected.jsonl``.
    format
        Its format (`pyids.data.export.FORMATS`).
    how
        How a method has chosen them; by default as the run folder says.
    """
    rows = path / "selected.jsonl" if path.is_dir() else path
    if rows.name == "probes.jsonl" and rows.parent == store.path:
        return None  # rows to score, no selection
    card = rows.with_name("README.md")
    if card.exists() and _rows_of(card) != rows.name:
        card = rows.with_name(f"{rows.stem}.README.md")
    if card.exists() and _rows_of(card) is None:
        logger.warning("%s: holds something else: no card is written", card)
        return None
    with atomic_write(card) as temporary:
        text = make_card(store, selected, rows.name, format, how)
        temporary.write_text(text, encoding="utf-8")
    return card


def card_of(path: Path) -> Path | None:
    """Return the card of an export; None where there is none.

    Parameters
    ----------
    path
        The exported rows, a file.
    """
    for card in (path.with_name("README.md"), path.with_name(f"{path.stem}.README.md")):
        if card.exists() and _rows_of(card) == path.name:
            return card
    return None


def make_card(
    store: Store, selected: Selected, name: str, format: str = "jsonl", how: How | None = None
) -> str:
    """Return the card of rows that are exported to a file of that name."""
    config = _config(store) if how is None else dict(how.config)
    # Not as asked, but as needed: whether rows are left out is decided once.
    config["skip_failing"] = (store.path / "left_out.json").exists()
    ids = np.sort(np.asarray(selected.row_ids, dtype=np.int64))
    step = max(1, -(-len(ids) // _READ_ROWS))
    licenses, sources = _facts_of_rows(store, ids[::step])
    found = licenses or _licenses_of_inputs(store)
    known = [one for one in found if one in _LICENSES]
    front: dict[str, Any] = {
        "license": (known[0] if len(known) == 1 else known) if known else "unknown",
        "pretty_name": f"{len(ids):,} rows selected by pyids",
        "size_categories": [size_category(len(ids))],
        "task_categories": ["text-generation"],
        "tags": [_TAG, "instruction-tuning", "data-selection"],
    }
    if known and len(known) < len(found):
        front["license"] = "other"
    front["configs"] = [{"config_name": "default", "data_files": name}]
    lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    lines += [f"# {front['pretty_name']}", "", *_how(store, selected, config, format, how)]
    lines += ["", "## Sources", "", *_list(sources, len(ids[::step]), step > 1)]
    lines += ["", "## License", "", _about_license(found)]
    lines += ["", "## How to reproduce", "", *_reproduce(config, how)]
    return "\n".join(lines) + "\n"


def size_category(n_rows: int) -> str:
    """Return the hub's name for so many rows.

    Examples
    --------
    >>> size_category(96), size_category(1000)
    ('n<1K', '1K<n<10K')
    """
    return next((name for bound, name in _SIZES if n_rows < bound), "n>1T")


# ---- facts ---------------------------------------------------------------------------------------


def _config(store: Store) -> dict[str, Any]:
    path = store.path / "config.yaml"
    return load_config(path) if path.is_file() else {}


def _rows_of(card: Path) -> str | None:
    """Return the file of rows that a card of ours belongs to; None where it is none of ours."""
    front = _front_matter(card)
    if _TAG not in (front.get("tags") or []):
        return None
    configs = front.get("configs") or [{}]
    return str(configs[0].get("data_files"))


def _front_matter(card: Path) -> dict[str, Any]:
    """Read the YAML at the head of a card; empty where there is none that can be read."""
    try:
        found = _FRONT_MATTER.match(card.read_text(encoding="utf-8"))
        front = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return {}
    return front if isinstance(front, dict) else {}


def _facts_of_rows(store: Store, row_ids: Any) -> tuple[list[str], Counter[str]]:
    """Return the licenses that rows name, sorted, and how many rows come from each source."""
    licenses: set[str] = set()
    sources: Counter[str] = Counter()
    for row in store.read_rows(row_ids):
        record = row.record
        licenses |= {
            str(record[name]).strip().lower() for name in _LICENSE_COLUMNS if record.get(name)
        }
        sources[_source(record, row)] += 1
    return sorted(licenses), sources


def _source(record: Mapping[str, Any], row: Row) -> str:
    value = record.get("source")
    return value if isinstance(value, str) and value else PurePath(row.path).name


def _licenses_of_inputs(store: Store) -> list[str]:
    """Return the licenses of the cards that lie with the inputs, as the hub's cache keeps them."""
    found: set[str] = set()
    for source in store.index["sources"]:
        path = Path(source["path"])
        # A data set of the hub has its card at the top, above its folder of data.
        for folder in (path.parent, path.parent.parent):
            named = _front_matter(folder / "README.md").get("license")
            if named:
                found |= {str(one).strip().lower() for one in _as_list(named)}
                break
    return sorted(found - {"unknown"})


def _as_list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]


# ---- sentences -----------------------------------------------------------------------------------


def _how(
    store: Store, selected: Selected, config: dict[str, Any], format: str, how: How | None
) -> list[str]:
    by = "by pyids"
    if selected.rounds is not None:
        rounds = int(np.max(selected.rounds, initial=0))
        by = (
            f"in {rounds} rounds of draw, train, score and re-weight (Yu et al., "
            "[arXiv 2409.11378](https://arxiv.org/abs/2409.11378))"
        )
    elif how is not None:
        by = f"by the method `{_inline(how.method)}` of pyids"
    rows = [
        f"{len(selected.row_ids):,} of {store.kept:,} usable rows ({store.rows_read:,} were read; "
        f"{store.skipped:,} were unusable, {store.duplicates:,} repeated another), chosen {by}.",
        *_left_out(_facts(store, config) if how is None else how.facts),
        "",
        *_columns(selected, format),
    ]
    without = _idle(store, config, how)
    options = [
        (key, config[key]) for key in _OPTIONS if config.get(key) is not None and key not in without
    ]
    return [
        *rows,
        "",
        "| option | value |",
        "|---|---|",
        *(f"| {key} | `{_inline(_without_folder(value))}` |" for key, value in options),
    ]


def _idle(store: Store, config: Mapping[str, Any], how: How | None) -> set[str]:
    """Return options that have decided nothing: those of stages that this selection had none of."""
    idle: set[str] = set()
    if config.get("embeddings_file") or config.get("embeddings_column"):
        idle.add("encoder")
    if not (store.path / "embeddings").exists():
        idle |= {"encoder", "embeddings_file", "embeddings_column"}
    if not (store.path / "centroids.json").exists():
        idle |= {"clusters", "metric"}
    if how is not None:
        idle |= ROUND_FIELDS
        read = config.get("quality") or config.get("target")
        if not read and config.get("budget_unit") in (None, "rows"):
            idle.add("model")
    return idle


def _facts(store: Store, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a run has found that must not be drawn."""
    if config.get("exclude") is None and config.get("already") is None:
        return {}
    facts: dict[str, Any] = load_sealed(store.path / "excluded" / "index.json")["facts"]
    return facts


def _left_out(facts: Mapping[str, Any]) -> list[str]:
    """Say which rows were never drawn, a line each way."""
    lines = []
    if found := facts.get("excluded"):
        shown = ", ".join(f"{rows:,} {why}" for why, rows in found.items())
        lines.append(f"Rows that match held-out rows were left out: {shown}.")
    if rows := facts.get("already"):
        lines.append(f"Rows that are trained on already were not drawn again: {rows:,}.")
    return ["", *lines] if lines else []


def _columns(selected: Selected, format: str) -> list[str]:
    """Say what the columns are that pyids adds; a trainer's folder has the id alone."""
    if format == "indices":
        return ["Each line is the position of a row in the input."]
    lines = ["| column | |", "|---|---|", "| `_pyids_id` | position of the row in the input |"]
    if format not in ("jsonl", "parquet"):
        return lines
    for column, values, meaning in (
        ("cluster", selected.clusters, "its cluster"),
        ("score", selected.scores, "last score of its cluster"),
        ("weight", selected.weights, "weight with which its cluster was drawn"),
        ("round", selected.rounds, "round in which it was drawn, from 1"),
    ):
        if values is not None:
            lines.append(f"| `_pyids_{column}` | {meaning} |")
    return lines


def _list(sources: Counter[str], n_rows: int, sampled: bool) -> list[str]:
    shown = sorted(sources.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        f"- `{_inline(name)}`: {count / n_rows:.1%} of the rows" for name, count in shown[:_SHOWN]
    ]
    if len(shown) > _SHOWN:
        rest = sum(count for _, count in shown[_SHOWN:])
        lines.append(f"- {len(shown) - _SHOWN} others: {rest / n_rows:.1%}")
    return [*lines, "", "Shares are those of a sample."] if sampled else lines


def _about_license(found: list[str]) -> str:
    if found:
        names = ", ".join(f"`{_inline(one)}`" for one in found[:_SHOWN])
        return (
            f"The rows keep the license that they came with: {names}. A selection changes no "
            "license; that of each source holds for its rows."
        )
    return (
        "The rows keep the license that they came with, which neither they nor their source's card "
        "name here: look it up at the source before you share them."
    )


def _reproduce(config: dict[str, Any], how: How | None) -> list[str]:
    data = " ".join(_inline(_without_folder(one)) for one in config.get("data", ["DATA"])[:_SHOWN])
    aside = (
        *("data", "output_dir", "workers", "threads", "device", "engine", "address"),
        *("task_timeout", "max_memory"),
    )
    known = RunConfig.model_fields
    shown = {
        key: _without_folder(value)
        for key, value in config.items()
        if key not in aside and (key not in known or value != known[key].default)
    }
    lines = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).splitlines()
    command = "pyids run"
    if how is not None:
        settings = "".join(f" --set {_inline(k)}={_inline(v)}" for k, v in how.settings.items())
        command = f"pyids select --method {_inline(how.method)}{settings}"
    return [
        "With the same data, models and version of pyids the same rows are selected again:",
        "",
        *(f"    {line}" for line in [f"{command} {data} --config config.yaml"]),
        "",
        "where `config.yaml` holds",
        "",
        *(f"    {line}" for line in lines),
    ]


def _without_folder(value: Any) -> Any:
    """Return an absolute path's last part: where files lie is nobody's business."""
    if isinstance(value, list):
        return [_without_folder(one) for one in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value


def _inline(value: Any) -> str:
    """Return a value as text that ends neither a span of code nor a cell of a table."""
    text = " ".join(str(value).encode("utf-8", "replace").decode().split())
    return re.sub(r"[`|<>\x00-\x1f]", "\ufffd", text)[:120]
