"""The report as one HTML file that asks nothing of any server, and the map as a table."""

from __future__ import annotations

import base64
import hashlib
import html
import os
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from pyids.data.destination import named_in
from pyids.report.collect import collect
from pyids.report.map import Projection
from pyids.report.text import to_json
from pyids.store.files import atomic_write
from pyids.store.place import check_destination

_MAP = "map.parquet"
_COLUMNS = ("x", "y", "text", "cluster", "source", "round", "weight", "row_id")


def write_report(
    folder: Path | str, to: Path | str | None = None, *, projection: Projection = "pca"
) -> Path:
    """Write the report of a run folder, and beside it ``map.parquet``.

    Parameters
    ----------
    folder
        The run folder; the run need not have ended.
    to
        The page, or the folder for it; by default ``report.html`` of the run folder.
    projection
        How vectors are brought into the plane: ``pca``, or ``umap`` with the package umap-learn.

    Returns
    -------
    Path
        The page. ``map.parquet`` has the columns ``x``, ``y``, ``text``, ``cluster``, ``source``,
        ``round`` (0: not selected), ``weight`` (of the cluster in the last draw, as a multiple of
        an equal weight) and ``row_id``; it is not written where there are no vectors.

    Raises
    ------
    PyidsError
        It is not a run folder, its rows have not been read, `projection` needs a package, or
        something else would be lost that lies where the page or the map is written.
    """
    page = Path(folder) / "report.html"
    if to is not None:
        into = str(to) and (str(to).endswith(("/", os.sep)) or os.path.isdir(to))
        page = Path(to, "report.html") if into else Path(to)
        _check_places(Path(folder), page)
    report = collect(folder, projection)
    if report.points:
        _write_map(report.points, page.with_name(_MAP))
    return write_page(f"{report.data['title']}: report of pyids", report.data, page)


def write_page(title: str, data: dict[str, Any], path: Path) -> Path:
    """Write a page that shows `data`, atomically.

    The data are JSON in a block that no browser executes, put on the page as text alone. Scripts
    and styles are allowed by their hashes, and no address at all: should a text of a row ever come
    to be taken for markup, it could neither run nor load anything.
    """
    ours = files("pyids.report")
    template, style, script = (
        ours.joinpath(name).read_text(encoding="utf-8")
        for name in ("template.html", "style.css", "script.js")
    )
    page = Template(template).substitute(
        title=html.escape(title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=to_json(data),
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(page.encode())
    return path


def _check_places(folder: Path, page: Path) -> None:
    """Check that the page and the map beside it replace nothing but earlier ones."""
    inputs = named_in(folder)
    own = [folder / "report.html", folder / _MAP]
    check_destination(page, inputs, run=folder, own=own, same_kind=is_page)
    check_destination(page.with_name(_MAP), inputs, run=folder, own=own, same_kind=_is_map)


def is_page(path: Path) -> bool:
    """Whether a file is a page that `write_page` wrote."""
    with path.open("rb") as file:
        return b" of pyids</title>" in file.read(1 << 14)


def _is_map(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_schema(path).names) == _COLUMNS
    except (pa.ArrowException, OSError):
        return False


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _write_map(points: dict[str, Any], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary:
        pq.write_table(pa.table({name: points[name] for name in _COLUMNS}), temporary)
