"""What a pipeline hands over in memory: rows and vectors, and the same folder opened twice."""

from pathlib import Path

import numpy as np
import pytest

import pyids
from pyids.config import make_config
from pyids.errors import PyidsError


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
