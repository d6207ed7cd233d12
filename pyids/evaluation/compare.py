"""Two or more selections side by side: `pyids compare`.

A selection is a file of rows, or a run folder, of which the exported rows are read. Rows are equal
when their conversations are (`pyids.chat.digest.digest`), so that selections from different
folders, over the same pool or over pools that overlap, can be compared.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from pyids._typing import Float64
from pyids.chat.digest import digest
from pyids.chat.render import response_length
from pyids.chat.template import encode
from pyids.config import DEFAULT_MODEL
from pyids.data.exported_rows import PREFIX
from pyids.data.ingest import ingest
from pyids.data.sources import open_sources
from pyids.device import find_device
from pyids.errors import ConfigError, DataError
from pyids.evaluation.comparison import Comparison, Histogram, Overlap, Summary
from pyids.evaluation.evaluate import Evaluation, adapter_config, evaluate, group_of
from pyids.models.hub import resolve_model
from pyids.models.load import load_tokenizer
from pyids.scoring.statistics import edges_of_few
from pyids.store.folder import Store
from pyids.store.ledger import checked, load_npy
from pyids.store.rounds import has_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger("pyids")


_BINS = 10


# The group of rows that the first run's pool does not hold.
_ELSEWHERE = "not in its pool"


def compare(
    selections: Sequence[str | Path],
    *,
    group_by: str | None = None,
    quality: str | None = None,
    data: Sequence[str] = (),
    model: str | None = None,
    format: str = "auto",
    format_map: str | None = None,
    limit: int | None = None,
    max_length: int = 1024,
    device: str = "auto",
    dtype: str = "float32",
) -> Comparison:
    """Compare two or more selections.

    Parameters
    ----------
    selections
        Run folders, of which ``selected.jsonl`` is read (or the one ``selected-METHOD.jsonl`` of a
        static selection), and exported files.
    group_by
        Column whose values are the topics. By default the clusters of the first selection, if that
        is a run folder with clusters, else the column ``source``.
    quality
        Column or signal whose histogram is wanted, as for a run (`pyids.scoring.cache`).
    data
        Held-out rows: the last checkpoint of every run folder is evaluated on them.
    model
        Base model: its tokenizer counts lengths, it stands under the runs' adapters, and it is
        evaluated, too.
    format, format_map, limit, max_length, device, dtype
        See `pyids.evaluation.evaluate.evaluate`; `limit` is for the held-out rows alone.

    Raises
    ------
    PyidsError
        Fewer than two selections, one that is none, or has not been exported; no column `group_by`.
    """
    # Longer than most for its options and the fields of its result.
    if len(selections) < 2:
        raise ConfigError("nothing to compare: name two or more run folders or exported files")
    names = [str(selection) for selection in selections]
    if len(set(names)) < len(names):
        raise ConfigError("a selection is named twice: leave one out")
    files = [_rows_of(Path(name)) for name in names]
    reference = resolve_model(model) if model is not None else None
    tokenizer = load_tokenizer(reference) if reference is not None else None
    read = [
        _read(
            file,
            group_by,
            tokenizer,
            max_length,
            lambda store: _quality(store, quality, model, device),
        )
        for file in files
    ]

    group_by, mixes = _mixes(Path(names[0]), read, group_by)
    shares = {
        group: [mix[group] / mix.total() for mix in mixes]
        for group in sorted(set().union(*mixes), key=_by_number)
    }
    array = np.array(list(shares.values()))  # groups x selections

    sets = [set(one.digests) for one in read]
    measures = ("length", "score", "quality")
    return Comparison(
        selections=tuple(
            _summary(name, one, column, array[:, 0])
            for name, one, column in zip(names, read, array.T, strict=True)
        ),
        overlaps=tuple(
            _overlap(names[a], names[b], sets[a], sets[b])
            for a, b in combinations(range(len(names)), 2)
        ),
        group_by=group_by,
        mix=shares,
        unit="characters" if tokenizer is None else "tokens",
        histograms={
            name: histogram
            for name in measures
            if (histogram := _histogram([getattr(one, name) for one in read])) is not None
        },
        evaluations=_evaluate(
            names,
            data,
            model,
            format=format,
            format_map=format_map,
            limit=limit,
            max_length=max_length,
            device=device,
            dtype=dtype,
        ),
    )


@dataclass(frozen=True)
class _Selection:
    """What is remembered of a selection's rows: a digest, a group, and three measures of each."""

    digests: list[bytes]
    groups: list[str]
    length: Float64
    score: Float64
    quality: Float64


def _rows_of(path: Path) -> Path:
    """Return the file with the rows of a selection."""
    if not path.is_dir():
        return path
    if (path / "selected.jsonl").is_file():
        return path / "selected.jsonl"
    static = sorted(path.glob("selected-*.jsonl"))
    if len(static) == 1:
        return static[0]
    if static:
        raise ConfigError(
            f"{path} holds several selections ({', '.join(file.name for file in static)}): name "
            "the files"
        )
    raise DataError(f"{path} holds no selected rows: run `pyids export {path}` first")


@contextmanager
def _ingested(file: Path) -> Iterator[Store]:
    """Read a file of rows into a store that is gone afterwards."""
    sources = open_sources([file])
    with (
        tempfile.TemporaryDirectory(prefix="pyids-compare-") as folder,
        Store.open(folder) as store,
    ):
        ingest(store, sources, keep_duplicates=True)
        yield store


def _read(
    file: Path,
    group_by: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
    quality: Callable[[Store], Float64],
) -> _Selection:
    digests, groups = [], []
    lengths, scores = [], []
    with _ingested(file) as store:
        for row in (row for shard in store.shards for row in store.iter_rows(shard)):
            digests.append(digest(row.messages))
            known = (
                group_by if group_by is not None else ("source" if "source" in row.record else None)
            )
            groups.append(group_of(row, known))
            score = row.record.get(f"{PREFIX}score")
            scores.append(np.nan if score is None else float(score))
            if tokenizer is None:
                lengths.append(response_length(row.messages))
            else:
                mask = encode(row.messages, tokenizer, max_length).response_mask
                lengths.append(int(mask[1:].sum()))
        qualities = quality(store)
    logger.info("read %d rows of %s", len(digests), file)
    return _Selection(digests, groups, np.array(lengths, float), np.array(scores), qualities)


def _quality(store: Store, spec: str | None, model: str | None, device: str) -> Float64:
    """Quality of each row, NaN where none is asked for."""
    if spec is None:
        return np.full(store.kept, np.nan)
    from pyids.scoring.cache import store_quality

    where = find_device(device)
    return store_quality(store, spec, default_model=model or DEFAULT_MODEL, device=where)


def _clusters(store: Store, wanted: set[bytes]) -> dict[bytes, str]:
    """Find the clusters of rows of a run's pool by their content."""
    found: dict[bytes, str] = {}
    for shard, labels in zip(store.shards, store.labels(), strict=True):
        path = checked(store.artifact("rows", shard, ".parquet"))
        with pq.ParquetFile(path, pre_buffer=False) as file:
            column = file.read(columns=["digest"], use_threads=False).column("digest")
        positions = load_npy(store.artifact("keep", shard)) - shard.first_row_id
        keys = column.take(positions).to_pylist()
        found.update(
            (key, str(label))
            for key, label in zip(keys, labels.tolist(), strict=True)
            if key in wanted
        )
    return found


def _mixes(
    first: Path, read: Sequence[_Selection], group_by: str | None
) -> tuple[str, list[Counter[str]]]:
    """Return what the rows are grouped by, and how many rows of each selection a group holds."""
    if group_by is not None or not (first / "centroids.safetensors").is_file():
        return group_by or "source", [Counter(one.groups) for one in read]
    clusters = _clusters(Store(first), set().union(*(one.digests for one in read)))
    topics = ([clusters.get(key, _ELSEWHERE) for key in one.digests] for one in read)
    return "cluster", [Counter(groups) for groups in topics]


def _by_number(group: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers, then words."""
    return (False, int(group), "") if group.isdecimal() else (True, 0, group)


def _summary(name: str, one: _Selection, shares: Float64, first: Float64) -> Summary:
    positive = shares[shares > 0]
    return Summary(
        name=name,
        rows=len(one.digests),
        distinct=len(set(one.digests)),
        mean_length=float(one.length.mean()),
        median_length=float(np.median(one.length)),
        longest=int(one.length.max()),
        total_length=int(one.length.sum()),
        topics=len(positive),
        effective_topics=float(np.exp(-(positive * np.log(positive)).sum())),
        distance=float(np.abs(shares - first).sum() / 2),
    )


def _overlap(first: str, second: str, a: set[bytes], b: set[bytes]) -> Overlap:
    common = len(a & b)
    return Overlap(first, second, common, common / len(a | b))


def _histogram(measured: Sequence[Float64]) -> Histogram | None:
    """Count rows in bins that all selections share; None where no row has the measure."""
    finite = [values[np.isfinite(values)] for values in measured]
    if not sum(map(len, finite)):
        return None
    whole = np.concatenate(finite)
    edges = edges_of_few(whole, _BINS)
    if edges is None:
        edges = np.histogram_bin_edges(whole, _BINS)
    counts = [np.histogram(values, edges)[0].tolist() for values in finite]
    return Histogram(edges.tolist(), counts)


def _evaluate(
    names: Sequence[str], data: Sequence[str], model: str | None, **options: Any
) -> tuple[Evaluation | None, ...]:
    if not data:
        return ()
    found: list[Evaluation | None] = []
    for name in names:
        if not has_checkpoint(Path(name)):
            found.append(None)
            continue
        base_model = model if adapter_config(name) is not None else None
        found.append(evaluate(name, data, base_model=base_model, **options))
    if model is not None:
        found.append(evaluate(model, data, **options))
    if not any(found):
        raise ConfigError("--data: no selection has trained a checkpoint: name a --model")
    return tuple(found)
