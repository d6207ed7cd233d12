"""What a pipeline hands over in memory: rows and vectors, and the same folder opened twice."""

from pathlib import Path

import numpy as np
import pytest

import pyids
from pyids.config import make_config
from pyids.errors import ConfigError, DataError, PyidsError
from pyids.store.manifest import verify


def rows_of(pool):
    return [dict(row) for row in pool.rows]


@pytest.mark.parametrize("kind", ["dicts", "datasets", "pandas", "arrow"])
def test_rows_and_vectors_in_memory_select_as_files_do(pool, tmp_path, kind):
    vectors = np.load(pool.vectors)
    rows = rows_of(pool)
    if kind == "dicts":
        data = iter(rows)
    elif kind == "datasets":
        data = pytest.importorskip("datasets").Dataset.from_list(rows)
    elif kind == "pandas":
        data = pytest.importorskip("pandas").DataFrame(rows)
    else:
        data = __import__("pyarrow").Table.from_pylist(rows)
    fields = {"budget": 60, "clusters": 4}
    with pyids.Selection.open(
        tmp_path / "memory", data=data, embeddings_file=vectors, **fields
    ) as selection:
        selection.draw()
        got = selection.rounds.selected(0)
    with pyids.Selection.open(
        tmp_path / "files", data=Path(pool.path), embeddings_file=pool.vectors, **fields
    ) as selection:
        selection.draw()
        np.testing.assert_array_equal(got, selection.rounds.selected(0))


def test_select_returns_rows_that_print_well(pool, tmp_path):
    result = pyids.select(
        "km-random",
        data=pool.path,
        embeddings_file=np.load(pool.vectors),
        budget=20,
        clusters=4,
        output_dir=tmp_path / "run",
    )
    assert len(result) == 20
    assert (np.diff(result.ids) > 0).all()
    assert set(result.clusters.tolist()) <= set(range(4))
    assert "rows        20" in repr(result)
    assert "<table>" in result._repr_html_()
    assert result.path.read_bytes().count(b"\n") == 20


def test_a_cell_that_is_run_twice_goes_on(pool, tmp_path):
    first = pyids.Selection.open(tmp_path / "run", **pool.options())
    assert first.draw()
    second = pyids.Selection.open(tmp_path / "run", **pool.options())
    np.testing.assert_array_equal(first.rounds.selected(0), second.rounds.selected(0))
    with pytest.raises(pyids.ConfigError, match="opened again in this process"):
        first.tell({0: 1.0})
    second.close()


def test_a_data_frame_with_a_column_twice_is_one_line(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame([["a", "b", "c"]], columns=["prompt", "completion", "prompt"])
    with pytest.raises(PyidsError, match="the column 'prompt' twice: rename one"):
        pyids.select("random", data=frame, budget=1, output_dir=tmp_path / "run")


@pytest.mark.parametrize("method", [len, None, 3, ["random"]])
def test_a_method_is_given_by_name(method, pool, tmp_path):
    with pytest.raises(PyidsError, match=r"^method .*: not a name: choose one of random, "):
        pyids.select(method, **pool.options(output_dir=str(tmp_path / "run")))


def test_integers_of_numpy_are_integers():
    names = ("budget", "seed", "clusters", "kmeans_sample", "max_memory", "threads")
    config = make_config(data="x", rounds=1, **{name: np.int32(4) for name in names})
    assert [type(getattr(config, name)) for name in names] == [int] * len(names)
    with pytest.raises(PyidsError, match=r"budget np\.True_ is not a whole number"):
        make_config(data="x", budget=np.True_)


def test_data_in_memory_needs_a_place(pool):
    with pytest.raises(pyids.ConfigError, match="give output_dir"):
        pyids.run(data=rows_of(pool), budget=3)


def test_what_is_wrong_is_shown_in_one_short_line(tmp_path):
    with pytest.raises(pyids.ConfigError) as caught:
        pyids.select("random", data="x.jsonl", budget=np.zeros(10_000))
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_yaml_keys_may_have_hyphens(tmp_path):
    from pyids.config import load_config

    path = tmp_path / "run.yaml"
    path.write_text("weight-update: linear\nkmeans_max_iter: 3\n")
    assert load_config(path) == {"weight_update": "linear", "kmeans_max_iter": 3}


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (".lock", ".inputs.json")  # what it remembers
    }


@pytest.mark.parametrize("other", ["data", "vectors", "budget", "form"])
def test_what_is_refused_leaves_the_folder_as_it_was(pool, tmp_path, other):
    rows, vectors = rows_of(pool), np.load(pool.vectors)
    fields = {"data": rows, "embeddings_file": vectors, "budget": 20, "clusters": 4}
    with pyids.Selection.open(tmp_path / "run", rounds=1, **fields) as selection:
        selection.ask()
        selection.finish()
    before = contents(tmp_path / "run")
    changes = {
        "data": {"data": rows[:50], "embeddings_file": vectors[:50]},
        "vectors": {"embeddings_file": vectors[::-1].copy()},
        "budget": {"data": rows[:50], "budget": "x"},
        "form": {"data": pytest.importorskip("pyarrow").Table.from_pylist(rows[:50])},
    }
    with pytest.raises(ConfigError):
        pyids.select("random", **fields | changes[other], output_dir=tmp_path / "run")
    assert contents(tmp_path / "run") == before
    verify(tmp_path / "run")


def test_a_folder_of_files_keeps_no_rows_that_were_refused(pool, tmp_path):
    with pyids.Selection.open(tmp_path / "run", **pool.options(rounds=1)) as selection:
        selection.ask()
        selection.finish()
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigError, match="another run"):
        pyids.Selection.open(tmp_path / "run", **pool.options(data=rows_of(pool)[:90]))
    assert contents(tmp_path / "run") == before


def test_a_selection_that_was_closed_does_nothing_more(pool, tmp_path):
    selection = pyids.Selection.open(tmp_path / "run", **pool.options())
    selection.ask()
    probes = selection.probes()
    selection.close()
    for act in (
        lambda: selection.tell({int(probes[0]): 1.0}),
        selection.ask,
        selection.probes,
        selection.train,
        selection.finish,
    ):
        with pytest.raises(ConfigError, match="was closed"):
            act()
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as again:
        assert again.round == 0


def test_a_selection_without_a_round_is_not_finished(pool, tmp_path):
    with (
        pyids.Selection.open(tmp_path / "run", **pool.options()) as selection,
        pytest.raises(ConfigError, match="no round has drawn rows"),
    ):
        selection.finish()
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({}, "no score was told"),
        ({0.9: 5.0}, "0.9 is no whole number"),
        ({True: 5.0}, "True is no whole number"),
        ({"12": 5.0}, "'12' is no whole number"),
        ({2**70: 1.0}, "in no pool"),
        ({3: "a"}, "'a', no number"),
        ({3: None}, "None, no number"),
        ({3: True}, "True, no number"),
        ({3: float("inf")}, "finite"),
        ([1.0, 2.0], "type list"),
        (None, "type NoneType"),
    ],
)
def test_scores_are_a_mapping_of_ids_to_numbers(pool, tmp_path, scores, words):
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        selection.ask()
        with pytest.raises(DataError, match=words):
            selection.tell(scores)
        assert selection.round == 0
        row = selection.probes()[0]
        selection.tell({np.int64(row): np.float32(0.5)})
        assert selection.round == 1
