"""Rows that are trained on already: never drawn again, and charged to their clusters."""

import logging
from fractions import Fraction

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import pyids
from pyids import reference
from pyids.cli import cli
from pyids.engine import LocalEngine
from pyids.methods import get_method, information, method_names, pool_from_arrays
from pyids.methods.draws import charged_quotas

# What shares its budget among clusters, or among groups of its own.
CHARGING = {
    *("km-random", "km-closest", "km-median", "kmq", "clusterclip", "mig"),
    *("uniform", "length-stratified"),
}


def write(path, rows):
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


def counts(pool, rows):
    return np.bincount(pool.topics[list(rows)], minlength=4)


# ---- quotas --------------------------------------------------------------------------------------


def exact_parts(budget, shares, charge, capacity):
    """The definition, in exact fractions: bisection for the level."""
    shares = [Fraction(share) for share in shares]

    def parts(t):
        return [
            min(max(t * s - had, Fraction(0)), Fraction(most))
            for s, had, most in zip(shares, charge, capacity, strict=True)
        ]

    low, high = Fraction(0), Fraction(1)
    while sum(parts(high)) < budget:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(parts(middle)) < budget else (low, middle)
    return parts(high)


@settings(max_examples=60)
@given(st.data())
def test_quotas_are_the_rounded_exact_parts(data):
    k = data.draw(st.integers(1, 6))
    several = {"min_size": k, "max_size": k}
    capacity = data.draw(st.lists(st.integers(0, 40), **several))
    charge = data.draw(st.lists(st.integers(0, 60), **several))
    shares = data.draw(st.lists(st.floats(0.01, 100), **several))
    budget = data.draw(st.integers(0, sum(capacity)))
    seed = data.draw(st.none() | st.integers(0, 99))
    quotas = charged_quotas(
        budget, np.array(shares), np.array(charge), np.array(capacity), seed=seed
    )
    assert quotas.sum() == budget
    parts = exact_parts(budget, shares, charge, capacity)
    near = Fraction(1, 10**6)
    for quota, part, most in zip(quotas.tolist(), parts, capacity, strict=True):
        assert abs(quota - part) < 1 + near
        assert 0 <= quota <= most


# ---- methods -------------------------------------------------------------------------------------


@pytest.fixture
def trained(pool, tmp_path):
    """Twenty rows of one topic, which has about a hundred."""
    rows = np.flatnonzero(pool.topics == 1)[:20]
    return rows, write(tmp_path / "trained.jsonl", [pool.rows[i] for i in rows])


@pytest.mark.parametrize("method", ["km-random", "km-closest", "km-median", "kmq", "clusterclip"])
def test_methods_charge_clusters_for_rows_that_are_trained_on(pool, trained, tmp_path, method):
    rows, path = trained
    options = pool.options(budget=80, output_dir=str(tmp_path / "run"), already=path)
    options |= {"quality": "length"} if method == "kmq" else {}
    chosen = pyids.select(method, **options).ids
    assert len(chosen) == 80
    assert not set(chosen.tolist()) & set(rows.tolist())
    # As if 100 rows were selected at once, of which these are twenty.
    wanted = np.full(4, 25.0) if method == "clusterclip" else counts(pool, range(400)) * 100 / 400
    wanted[1] -= 20
    np.testing.assert_allclose(counts(pool, chosen), wanted, atol=1)


def test_a_cluster_that_has_had_more_than_its_part_gets_nothing(pool, tmp_path):
    rows = np.flatnonzero(pool.topics == 1)[:60]
    path = write(tmp_path / "trained.jsonl", [pool.rows[i] for i in rows])
    options = pool.options(budget=30, output_dir=str(tmp_path / "run"), already=path)
    others = counts(pool, range(400)) * (np.arange(4) != 1)
    for method, wanted in (
        ("km-random", others * 30 / others.sum()),
        ("clusterclip", [10, 0, 10, 10]),
    ):
        found = counts(pool, pyids.select(method, **options).ids)
        assert found[1] == 0
        np.testing.assert_allclose(found, wanted, atol=1)


def test_a_group_is_charged_for_its_own_rows(pool, tmp_path):
    for n, row in enumerate(pool.rows):
        row["source"] = "code" if n % 2 else "chat"
    pool.write()
    rows = np.flatnonzero((pool.topics == 1) & (np.arange(400) % 2 == 1))[:25]
    options = pool.options(
        budget=80, group_by="source", cap=["code=50%"], floor=["code=50%"],
        output_dir=str(tmp_path / "run"),
        already=write(tmp_path / "trained.jsonl", [pool.rows[i] for i in rows]),
    )  # fmt: skip
    chosen = pyids.select("km-random", **options).ids
    code = chosen[chosen % 2 == 1]
    assert len(code) == 40
    whole = np.bincount(pool.topics[1::2], minlength=4)
    wanted = whole * 65 / whole.sum() - np.array([0, 25, 0, 0])
    wanted = np.maximum(wanted, 0) * 40 / np.maximum(wanted, 0).sum()
    np.testing.assert_allclose(counts(pool, code), wanted, atol=1.5)
    chat = np.bincount(pool.topics[::2], minlength=4)
    np.testing.assert_allclose(counts(pool, chosen[chosen % 2 == 0]), chat * 40 / 200, atol=1.5)


def test_a_method_without_clusters_says_so(pool, trained, tmp_path, caplog):
    rows, path = trained
    shared = pool.options(output_dir=str(tmp_path / "run"), already=path)
    words = "k-center shares nothing among clusters: the 20 rows that are trained on already"
    with caplog.at_level(logging.INFO, "pyids"):
        chosen = pyids.select("k-center", **shared).ids
        assert sum(words in message for message in caplog.messages) == 1
        assert not set(chosen.tolist()) & set(rows.tolist())
        caplog.clear()
        pyids.select("km-random", **shared)
        assert not [message for message in caplog.messages if "shares nothing" in message]


def test_methods_that_charge_say_so():
    assert {name for name in method_names() if "already" in get_method(name).uses} == CHARGING


def split(rows, **known):
    """A pool of the rows that are left, beside those that are trained on already."""
    pool = pool_from_arrays(**known)
    from dataclasses import replace

    return replace(pool.without(rows), already=pool.only(rows))


def test_values_of_a_column_and_strata_of_length_are_charged():
    kinds = ["a", "b", "c"] * 40
    lengths = np.tile([1, 40, 1000], 40)
    rows = np.arange(0, 60, 3)  # twenty of the kind a, and of length 1
    pool = split(rows, columns={"kind": kinds}, lengths=lengths)
    for name, options in (
        ("uniform", {"column": "kind"}),
        ("length-stratified", {"strata": 3, "flat": True}),
    ):
        chosen = get_method(name)(pool, 40, **options)
        assert not set(chosen.tolist()) & set(rows.tolist())
        assert np.bincount(chosen % 3, minlength=3).tolist() == [0, 20, 20]
    # Quantiles of those that are left: 20 rows of length 1, and 13 or 14 of 40, are the first.
    chosen = get_method("length-stratified")(pool, 40, strata=3)
    found = np.bincount(chosen % 3, minlength=3)
    assert found[0] < 8
    assert found.sum() == 40


def test_information_begins_with_what_is_trained_on():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 40).astype(np.int32)
    x = (np.eye(5, 8)[labels] + 0.05 * rng.normal(size=(200, 8))).astype(np.float32)
    quality = rng.random(200) - 0.5
    rows = np.arange(40, 60)
    for known in ({}, {"quality": quality}):
        pool = split(rows, embeddings=np.split(x, [90]), centroids=np.eye(5, 8), **known)
        chosen = get_method("mig")(pool, 80)
        assert not set(chosen.tolist()) & set(rows.tolist())
        assert np.bincount(labels[chosen], minlength=5)[1] < 8
    tags = [[f"tag {label}"] for label in labels]
    pool = split(rows, embeddings=x, centroids=np.eye(5, 8), columns={"tags": tags})
    chosen = get_method("mig")(pool, 80, tags="tags")
    assert np.bincount(labels[chosen], minlength=5).tolist() == [20, 0, 20, 20, 20]


def test_greedy_picks_go_on_from_what_is_trained_on():
    rng = np.random.default_rng(2)

    def labels(n, m):
        return information.Labels(
            rng.integers(0, 9, (n, m)).astype(np.int32), rng.integers(0, 5, (n, m)) * 256,
            rng.random(n), np.arange(9)[:, None], np.full((9, 1), 1024),
        )  # fmt: skip

    def dense(some):
        out = np.zeros((len(some.labels), 9), np.int64)
        places, label, value = some.entries(np.arange(len(out)))
        np.add.at(out, (places, label), value)
        return out

    pool, had = labels(120, 2), labels(50, 3)
    picks = information.maximize(pool, 40, had=had).rows
    wanted = reference.maximize_information(dense(pool), 40, dense(had))
    np.testing.assert_array_equal(picks, wanted)
    assert picks.tolist() != information.maximize(pool, 40).rows.tolist()


# ---- rounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_already", [15, 40])
def test_clusters_are_charged_for_rows_that_are_trained_on(pool, tmp_path, n_already):
    """All of them of one topic: the next rows come from the others, until these have as many."""
    of_one = np.flatnonzero(pool.topics == 1)[:n_already]
    selected = write(tmp_path / "selected.jsonl", [pool.rows[i] for i in of_one])
    options = pool.options(budget=60, already=selected, weight_update="none")
    drawn = []
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        while selection.draw():
            drawn.append(selection.rounds.selected(selection.round).tolist())
            selection.tell({int(row): 1.0 for row in selection.probes()})
        selection.finish()
    chosen = [row for rows in drawn for row in rows]
    assert len(chosen) == 60
    assert not set(chosen) & set(of_one.tolist())
    wanted = counts(pool, range(400)) * 75 / 400
    if n_already == 40:  # more than a part of 100 rows: none of it comes to them
        wanted[1] = 0
        wanted *= 60 / wanted.sum()
    else:  # as if 75 rows had been drawn at once, of which these are some
        wanted[1] -= 15
    np.testing.assert_allclose(counts(pool, chosen), wanted, atol=3)
    manifest = orjson.loads((tmp_path / "run" / "manifest.json").read_bytes())
    assert manifest["already"] == n_already
    assert CliRunner().invoke(cli, ["verify", str(tmp_path / "run"), "--replay"]).exit_code == 0


def test_a_selection_goes_on_where_its_export_stopped(pool, tmp_path):
    """The export of one run, told to another: no row twice."""
    first = pyids.select("random", **pool.options(output_dir=str(tmp_path / "one")))
    second = pyids.select(
        "random", **pool.options(output_dir=str(tmp_path / "two"), already=str(first.path))
    )
    assert len(second.ids) == 60
    assert not set(first.ids.tolist()) & set(second.ids.tolist())


def test_rows_that_are_trained_on_are_found_by_tasks(pool, tmp_path, monkeypatch):
    """Shards, groups of them and workers decide nothing; repeats and others' rows are no matter."""
    parts = np.array_split(np.arange(400), 5)
    for n, rows in enumerate(parts):
        write(tmp_path / f"part-{n}.jsonl", [pool.rows[i] for i in rows])
    trained = np.sort(np.random.default_rng(1).choice(400, 90, replace=False))
    other = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}
    already = write(tmp_path / "trained.jsonl", [*(pool.rows[i] for i in trained), other] * 2)
    asked = []
    map_ = LocalEngine.map

    def spy(engine, task, *args, **kwargs):
        asked.append((task.__name__, engine.workers))
        return map_(engine, task, *args, **kwargs)

    monkeypatch.setattr(LocalEngine, "map", spy)
    monkeypatch.setattr("pyids.pipeline.exclude._TASK_ROWS", 100)
    for workers in (1, 2):
        folder = tmp_path / f"run-{workers}"
        result = pyids.select(
            "random", data=str(tmp_path / "part-*.jsonl"), budget=310, workers=workers,
            already=already, output_dir=str(folder),
        )  # fmt: skip
        assert ("_find_already", workers) in asked
        np.testing.assert_array_equal(result.ids, np.setdiff1d(np.arange(400), trained))
        np.testing.assert_array_equal(np.load(folder / "excluded" / "already.npy"), trained)
