"""Rows in memory: written once, read as any file, in their order."""

import numpy as np
import pyarrow as pa
import pytest

from pyids.data import memory
from pyids.data.ingest import ingest
from pyids.data.memory import FILES, materialize
from pyids.data.replaced import accept, put_back, put_in
from pyids.data.sources import open_sources
from pyids.errors import DataError
from pyids.store.folder import Store

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}", "n": i} for i in range(25)]


def dataset():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list(ROWS)


def shuffled_back():
    order = np.random.default_rng(0).permutation(25)
    return dataset().select(order).select(np.argsort(order)).with_format("numpy")


def iterable():
    return dataset().to_iterable_dataset(num_shards=3)


def pandas_frame():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(ROWS, index=[f"r{i}" for i in range(25)])


def polars_frame():
    return pytest.importorskip("polars").DataFrame(ROWS)


def chunked_table():
    return pa.concat_tables([pa.Table.from_pylist(ROWS[:7]), pa.Table.from_pylist(ROWS[7:])])


def reader():
    return chunked_table().to_reader()


def generator():
    return (dict(row) for row in ROWS)


def numpy_values():
    return [{**row, "n": np.int64(row["n"])} for row in ROWS]


MAKERS = [
    dataset, shuffled_back, iterable, pandas_frame, polars_frame, chunked_table, reader,
    generator, numpy_values, lambda: tuple(ROWS),
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_rows_in_memory_are_read_in_their_order(make, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_BATCH_ROWS", 10)
    path = materialize(make(), tmp_path / "in")
    with Store.open(tmp_path / "run") as store:
        intake = ingest(store, open_sources([str(path)]))
        rows = [row for shard in store.shards for row in store.iter_rows(shard)]
    assert intake.kept == 25
    assert [row.record for row in rows] == ROWS
    assert [row.row_id for row in rows] == list(range(25))
    before = path.read_bytes()
    assert materialize(make(), tmp_path / "in").read_bytes() == before


def test_the_same_rows_are_the_same_bytes_however_chunked(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_BATCH_ROWS", 4)
    whole = materialize(pa.Table.from_pylist(ROWS), tmp_path / "a").read_bytes()
    assert materialize(chunked_table(), tmp_path / "b").read_bytes() == whole


def test_another_kind_of_data_leaves_nothing_of_the_first(tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    for data in (chunked_table(), ROWS[:3]):
        path = put_in(materialize(data, tmp_path / "new"), folder, *FILES)
        accept(folder)
        assert [file.name for file in folder.iterdir()] == [path.name]


def test_what_is_not_accepted_is_put_back(tmp_path):
    folder, data = tmp_path / "input", chunked_table()
    folder.mkdir()
    first = put_in(materialize(data, tmp_path / "new"), folder, *FILES)
    put_back(folder)
    assert not any(folder.iterdir())  # there was none
    first = put_in(materialize(data, tmp_path / "new"), folder, *FILES)
    accept(folder)
    before = first.read_bytes()
    for rows in (ROWS[:3], data.slice(1), ROWS[:2]):  # the last as if the first were killed
        put_in(materialize(rows, tmp_path / "new"), folder, *FILES)
    put_back(folder)
    assert [file.name for file in folder.iterdir()] == [first.name]
    assert first.read_bytes() == before


def test_a_frame_of_mixed_values_is_written_row_by_row(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"prompt": ["q", "r"], "completion": ["a", float("nan")], "x": [1, "b"]}
    )
    lines = materialize(frame, tmp_path).read_bytes().splitlines()
    assert lines[1] == b'{"prompt":"r","completion":null,"x":"b"}'


def dict_of_splits():
    return pytest.importorskip("datasets").DatasetDict(train=dataset(), test=dataset())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: "pool.jsonl", "data of type str is no set of rows: give a datasets"),
        (lambda: {"prompt": ["q"]}, "data of type dict is no set of rows"),
        (lambda: 7, "data of type int is no set of rows"),
        (lambda: [], "holds no rows"),
        (lambda: pa.table({"a": pa.array([], pa.string())}), "holds no rows"),
        (lambda: [ROWS[0], "q"], "row 1 of the data is of type str, not a dict"),
        (lambda: [{1: "q"}], "row 0 of the data is of type dict, not a dict with texts"),
        (lambda: [ROWS[0], {"prompt": object()}], "row 1 of the data: column 'prompt' cannot"),
        (dict_of_splits, "a dict of the splits train, test: give one"),
        (lambda: pytest.importorskip("polars").LazyFrame(ROWS), r"give data\.collect\(\)"),
        (lambda: pa.array([1, 2]), "is no"),
    ],
)
def test_what_is_no_set_of_rows_is_one_line_and_leaves_no_file(make, says, tmp_path):
    with pytest.raises(DataError, match=says) as caught:
        materialize(make(), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
