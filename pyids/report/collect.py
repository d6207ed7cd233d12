"""What the report of a run shows, read from its folder by sampling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.chat.render import response_length
from pyids.chat.template import text_of
from pyids.errors import DamagedError, DataError
from pyids.report import figures, sample
from pyids.report.map import Projection, project, vectors_of
from pyids.report.provenance import provenance
from pyids.report.sources import SourceNames
from pyids.report.stages import disk_bytes, read_config
from pyids.report.text import cut
from pyids.report.words import ClusterWords
from pyids.store.folder import Store
from pyids.store.ledger import load_npy, load_sealed
from pyids.store.manifest import check_ended
from pyids.store.place import is_run_folder
from pyids.store.rounds import Rounds

# Points of the map, clusters and rounds that are shown, and bytes of texts: the page stays small.
_POOL_POINTS = 3500
_SELECTED_POINTS = 1500
_SHOWN_CLUSTERS = 400
_SHOWN_ROUNDS = 12
_POINT_BYTES = 240
_EXAMPLE_BYTES = 700
_EXAMPLES = 3


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes
    ----------
    data
        JSON values, for the page.
    points
        Columns of the map, one entry a point: ``row_id``, ``x``, ``y``, ``text``, ``cluster``,
        ``source``, ``round`` (0: not selected) and ``weight``; empty without vectors.
    """

    data: dict[str, Any]
    points: dict[str, Any]


@dataclass
class _Rows:
    """What is remembered of the rows that were read, by ascending row id."""

    row_ids: Int64
    texts: list[str]
    sources: list[int]
    lengths: Float64


def collect(folder: Path | str, projection: Projection = "pca") -> Report:
    """Collect what the report of a run folder shows.

    About 15,000 rows are read, spread over at most a million; the same ones whenever it is done.

    Raises
    ------
    ConfigError
        The package of the projection is not installed.
    DataError
        It is not a run folder, or its rows have not been read to the end.
    """
    folder = Path(folder)
    if not folder.is_dir() or not is_run_folder(folder):
        raise DataError(f"{folder} is not a run folder: name one that `pyids run` has made")
    check_ended(folder)
    store = Store(folder)
    if (folder / "distinct" / "index.json").exists():
        store.deduplicate()
    config = read_config(folder)
    # Not the seed of the run: keyed by that, the rows looked at would be those that it drew.
    seed = xxhash.xxh3_64_intdigest(b"report", int(config.get("seed") or 0)) >> 1
    clustered = sample.has_clusters(store)
    rounds = Rounds(store, store.cluster_sizes) if clustered else None
    selected, name = _selected(store, rounds)
    pool = sample.draw_pool(store, seed)
    drawn = sample.draw_selected(store, selected, seed)
    words, sources = ClusterWords(), SourceNames()
    rows = _read(store, np.union1d(pool.row_ids, drawn), pool, words, sources)
    points = _points(store, pool, drawn, rows, rounds, projection, seed)
    data = {
        "kind": "run",
        "title": folder.resolve().name,
        "selection": name,
        "funnel": figures.funnel(store, rounds, len(selected)),
        "reasons": figures.reasons(folder),
        "rounds": figures.round_facts(rounds) if rounds is not None else [],
        "clusters": _clusters(rounds, pool, rows, words, selected if name else None, points, store),
        "points": _shown_points(points, sources.names),
        "mix": _mix(pool, drawn, rows, sources),
        "lengths": _lengths(pool, drawn, rows),
        "scores": figures.score_histogram(rounds) if rounds is not None else None,
        "quality": _quality(store, pool, drawn),
        "k": _evidence(folder, config, rounds),
        "costs": figures.costs(folder),
        "disk": disk_bytes(folder),
        "looked_at": {"pool": len(pool.row_ids), "selected": len(drawn)},
        **provenance(folder, config, store, name),
    }
    points["source"] = [sources.names[n] for n in points.get("source", [])]
    return Report(data, points if len(points["source"]) else {})


def _selected(store: Store, rounds: Rounds | None) -> tuple[Int64, str]:
    """Return ids of the selected rows, ascending, and the file or rounds that they are from."""
    if rounds is not None and rounds.drawn:
        return rounds.selected(), "rounds"
    # Of several selections without rounds the last one.
    files = sorted(store.path.glob("selected*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        return np.empty(0, dtype=np.int64), ""
    try:
        with files[-1].open("rb") as file:
            ids = [int(orjson.loads(line)["_pyids_id"]) for line in file]
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{files[-1]}: damaged: remove it, and select again") from None
    return np.unique(np.array(ids, dtype=np.int64)), files[-1].name


def _read(
    store: Store, row_ids: Int64, pool: sample.Sample, words: ClusterWords, sources: SourceNames
) -> _Rows:
    """Read rows once: a text to show, source, length; count the words of those of the pool."""
    cluster_of = dict(zip(pool.row_ids.tolist(), pool.clusters.tolist(), strict=True))
    texts, source, lengths = [], [], []
    for row in store.read_rows(row_ids):
        text = text_of(row.messages)
        texts.append(cut(text, _EXAMPLE_BYTES))
        source.append(sources.number(row))
        lengths.append(response_length(row.messages))
        if (cluster := cluster_of.get(row.row_id)) is not None:
            words.add(cluster, text)
    weights = np.zeros(len(row_ids))
    weights[np.searchsorted(row_ids, pool.row_ids)] = pool.weights
    return _Rows(row_ids, texts, sources.merge_small(source, weights), np.array(lengths, float))


# ---- the map -------------------------------------------------------------------------------------


def _points(
    store: Store,
    pool: sample.Sample,
    drawn: Int64,
    rows: _Rows,
    rounds: Rounds | None,
    projection: Projection,
    seed: int,
) -> dict[str, Any]:
    """Return the columns of the map; of the pool as many rows of a cluster as it is large."""
    row_ids = _mapped_rows(pool, drawn)
    vectors = vectors_of(store, row_ids) if len(row_ids) else None
    if vectors is None:
        return {}
    places, explained = project(vectors, projection, seed)
    at = np.searchsorted(rows.row_ids, row_ids)
    clusters = np.zeros(len(row_ids), dtype=np.int32)
    round_, weight = np.zeros(len(row_ids), np.int32), np.ones(len(row_ids))
    if rounds is not None:
        clusters = _labels_of(store, row_ids)
        round_ = sample.rounds_of(rounds, row_ids)
        last = rounds.weights(max(0, rounds.drawn - 1)) * rounds.n_clusters
        weight = last[clusters]
    if rounds is None or not rounds.drawn:
        round_ = np.isin(row_ids, drawn).astype(np.int32)
    return {
        "row_id": row_ids,
        "x": places[:, 0].astype(np.float32),
        "y": places[:, 1].astype(np.float32),
        "text": [rows.texts[n] for n in at],
        "cluster": clusters,
        "source": [rows.sources[n] for n in at],
        "round": round_,
        "weight": weight,
        "projection": projection,
        "explained": explained,
    }


def _mapped_rows(pool: sample.Sample, drawn: Int64) -> Int64:
    """Choose the rows of the map among those that were read: the first ones by a key of each."""
    share = min(1.0, _POOL_POINTS / max(1.0, len(pool.row_ids)))
    heaviest = pool.weights / pool.weights.max() if len(pool.weights) else pool.weights
    # Large clusters show more points; small ones still show some.
    order = np.random.default_rng(0).random(len(pool.row_ids)) ** (1 / np.maximum(heaviest, 0.05))
    most = round(share * len(pool.row_ids))
    chosen = pool.row_ids[np.argsort(-order, kind="stable")[:most]]
    step = max(1, -(-len(drawn) // _SELECTED_POINTS))
    return np.union1d(chosen, drawn[::step])


def _labels_of(store: Store, row_ids: Int64) -> NDArray[np.int32]:
    labels = np.zeros(len(row_ids), dtype=np.int32)
    for shard in store.shards:
        first, last = np.searchsorted(row_ids, [shard.row_ids.start, shard.row_ids.stop])
        if first < last:
            at = np.searchsorted(store.row_ids(shard), row_ids[first:last])
            labels[first:last] = load_npy(store.path_of_pool("labels", shard))[at]
    return labels


def _shown_points(points: dict[str, Any], sources: list[str]) -> dict[str, Any] | None:
    """Return the points as the page reads them, texts cut to what all may take together."""
    if not points:
        return None
    return {
        "id": points["row_id"].tolist(),
        "x": np.round(points["x"].astype(float), 3).tolist(),
        "y": np.round(points["y"].astype(float), 3).tolist(),
        "cluster": points["cluster"].tolist(),
        "round": points["round"].tolist(),
        "source": points["source"],
        "sources": sources,
        "text": [cut(text, _POINT_BYTES) for text in points["text"]],
        "projection": points.pop("projection"),
        "explained": points.pop("explained"),
    }


# ---- clusters ------------------------------------------------------------------------------------


def _clusters(
    rounds: Rounds | None,
    pool: sample.Sample,
    rows: _Rows,
    words: ClusterWords,
    selected: Int64 | None,
    points: dict[str, Any],
    store: Store,
) -> dict[str, Any] | None:
    """Return size, weights, quotas, words and examples of the clusters that changed most."""
    if rounds is None:
        return None
    steps = _steps(rounds.drawn)
    weights = np.array([rounds.weights(n) for n in steps]).reshape(len(steps), rounds.n_clusters)
    weights = weights * rounds.n_clusters
    quotas = sum((rounds.quotas(n) for n in range(rounds.drawn)), np.zeros_like(rounds.sizes))
    if not rounds.drawn and selected is not None and len(selected):
        quotas = np.bincount(_labels_of(store, selected), minlength=rounds.n_clusters)
    shown = _most_changed(weights, rounds.sizes)
    names = words.names()
    order = np.argsort(pool.clusters, kind="stable")
    starts = np.searchsorted(pool.clusters[order], shown)
    examples = []
    for cluster, start in zip(shown.tolist(), starts.tolist(), strict=True):
        some = order[start : start + _EXAMPLES]
        some = some[pool.clusters[some] == cluster]
        at = np.searchsorted(rows.row_ids, pool.row_ids[some])
        examples.append([[int(rows.row_ids[n]), rows.texts[n]] for n in at])
    return {
        "total": rounds.n_clusters,
        "rounds": [n + 1 for n in steps],
        "id": shown.tolist(),
        "size": rounds.sizes[shown].tolist(),
        "selected": quotas[shown].tolist(),
        "weights": [[float(f"{w:.4g}") for w in row] for row in weights[:, shown].T],
        "score": _rounded(rounds.cluster_scores()[shown]),
        "words": [[cut(word, 60) for word in names.get(c, [])] for c in shown.tolist()],
        "examples": examples,
        "point_weight": [float(f"{w:.4g}") for w in points.get("weight", [])],
    }


def _steps(drawn: int) -> list[int]:
    """Return the rounds that are shown: all, or evenly spaced ones with the first and the last."""
    if drawn <= _SHOWN_ROUNDS:
        return list(range(drawn))
    return [round(n * (drawn - 1) / (_SHOWN_ROUNDS - 1)) for n in range(_SHOWN_ROUNDS)]


def _most_changed(weights: Float64, sizes: Int64) -> Int64:
    """Choose the clusters to show: by how much their weight changed, then by size; ascending."""
    change = np.zeros(len(sizes))
    if len(weights):
        tiny = np.finfo(float).tiny
        change = np.abs(np.log(np.maximum(weights[-1], tiny) / np.maximum(weights[0], tiny)))
    order = np.lexsort((np.arange(len(sizes)), -sizes, -change))
    return np.sort(order[:_SHOWN_CLUSTERS])


def _rounded(values: Float64) -> list[float | None]:
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


# ---- before and after ----------------------------------------------------------------------------


def _mix(
    pool: sample.Sample, drawn: Int64, rows: _Rows, sources: SourceNames
) -> list[dict[str, Any]]:
    """Return the share of each source in the pool and among the selected rows."""
    source = np.array(rows.sources, dtype=np.int64)
    n = len(sources.names)
    before = np.bincount(
        source[np.searchsorted(rows.row_ids, pool.row_ids)], weights=pool.weights, minlength=n
    )
    after = np.bincount(source[np.searchsorted(rows.row_ids, drawn)], minlength=n)
    before, after = (counts / max(1, counts.sum()) for counts in (before, after))
    return [
        {"name": name, "pool": float(before[k]), "selected": float(after[k])}
        for k, name in enumerate(sources.names)
    ]


def _lengths(pool: sample.Sample, drawn: Int64, rows: _Rows) -> dict[str, Any] | None:
    at, chosen = (np.searchsorted(rows.row_ids, ids) for ids in (pool.row_ids, drawn))
    both = [rows.lengths[at], rows.lengths[chosen]]
    found = figures.histogram(both, [pool.weights, np.ones(len(chosen))], log=True)
    if found is None:
        return None
    return {
        **found,
        "median": [
            _weighted_median(both[0], pool.weights),
            float(np.median(both[1])) if len(chosen) else None,
        ],
    }


def _weighted_median(values: Float64, weights: Float64) -> float | None:
    if not len(values):
        return None
    order = np.argsort(values, kind="stable")
    passed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(passed, passed[-1] / 2)])


def _quality(store: Store, pool: sample.Sample, drawn: Int64) -> dict[str, Any] | None:
    """Return the quality of the pool and of the selected rows, from their log weights."""
    path = store.path / "quality" / "histogram.json"
    if not path.exists():
        return None
    known = load_sealed(path)
    values = []
    for ids in (pool.row_ids, drawn):
        logs = np.full(len(ids), np.nan)
        for shard in store.shards:
            first, last = np.searchsorted(ids, [shard.row_ids.start, shard.row_ids.stop])
            file = store.artifact("quality", shard)
            if first < last and file.exists():
                at = np.searchsorted(store.row_ids(shard), ids[first:last])
                logs[first:last] = load_npy(file)[at]
        values.append(known["mean"] + known["deviation"] * logs)
    found = figures.histogram(values, [pool.weights, np.ones(len(drawn))])
    return None if found is None else {**found, "name": cut(str(known["quality"]), 120)}


def _evidence(folder: Path, config: dict[str, Any], rounds: Rounds | None) -> dict[str, Any] | None:
    """Return why there are so many clusters."""
    if rounds is None:
        return None
    asked = config.get("clusters")
    why = "given" if isinstance(asked, int) else "set by the size of the pool and the budget"
    facts: dict[str, Any] = {"k": rounds.n_clusters, "why": why, "grid": []}
    if (path := folder / "auto_k.json").exists():
        auto = load_sealed(path)
        facts |= {name: auto.get(name) for name in ("criterion", "rows", "elbow_k", "grid")}
        facts["why"] = f"chosen by {auto.get('criterion', 'silhouette')}"
    return facts
