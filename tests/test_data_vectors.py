"""Precomputed vectors: from a file or a column, aligned with the input, kept rows only."""

import json
import os

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyids.data import ingest as ingest_module
from pyids.data import splits
from pyids.data.export import export
from pyids.data.exported_rows import Selected
from pyids.data.ingest import ingest
from pyids.data.precomputed import take_vectors
from pyids.data.sources import open_sources
from pyids.data.vector_files import open_vectors
from pyids.errors import DataError, PyidsWarning
from pyids.store.folder import Store
from pyids.store.manifest import verify

N, D = 500, 6


@pytest.fixture(autouse=True)
def _small_and_unsynced(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(splits, "SPLIT_BYTES", 8000)
    monkeypatch.setattr("pyids.data.shard_writer.ROWS_PER_GROUP", 32)
    monkeypatch.setattr(ingest_module, "GROUPS_PER_SHARD", 2)


def vectors(dtype=np.float32):
    return np.random.default_rng(0).normal(size=(N, D)).astype(dtype)


def rows():
    """Every fifth row repeats the one before it, every seventh is unusable."""
    return [
        {"prompt": f"q{i - (i % 5 == 4)}", "completion": "" if i % 7 == 6 else "answer", "i": i}
        for i in range(N)
    ]


def write(path, kind, column=None):
    table = [dict(row) for row in rows()]
    if column is not None:
        for row, vector in zip(table, column, strict=True):
            row["v"] = None if vector is None else vector.tolist()
    if kind == "jsonl":
        (path / "d.jsonl").write_bytes(b"\n".join(map(orjson.dumps, table)))
        return path / "d.jsonl"
    if kind == "arrow":
        datasets = pytest.importorskip("datasets", reason="datasets is not installed")
        datasets.Dataset.from_list(table).save_to_disk(str(path / "d"), num_shards=3)
        return path / "d"
    made = pa.Table.from_pylist(table)
    if column is not None and kind != "parquet":
        flat = pa.array(np.concatenate(list(column)))
        lists = {
            "fixed": pa.FixedSizeListArray.from_arrays(flat, D),
            "large": pa.LargeListArray.from_arrays(np.arange(0, N * D + 1, D), flat),
        }[kind]
        made = made.set_column(made.schema.get_field_index("v"), "v", lists)
    pq.write_table(made, path / "d.parquet", row_group_size=150)
    return path / "d.parquet"


def stored(tmp_path, data, embeddings, column=None, limit=None):
    found = open_sources([str(data)], vectors=column)
    with Store.open(tmp_path / "run") as store:
        ingest(store, found, limit=limit)
        width = take_vectors(store, None if column else str(embeddings), column=column)
        (store.path / "manifest.json").unlink(missing_ok=True)  # of other vectors, maybe
        store.write_manifest({})
    assert verify(tmp_path / "run") == []
    ids = np.concatenate([store.row_ids(shard) for shard in store.shards])
    assert 0 < len(ids) < N * 0.9
    assert len(store.shards) > 4
    return width, ids, store.embeddings()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_is_indexed_by_row_id(dtype, tmp_path):
    given = vectors(dtype)
    np.save(tmp_path / "v.npy", given)
    width, ids, shards = stored(tmp_path, write(tmp_path, "jsonl"), tmp_path / "v.npy")
    assert width == D
    assert not any(shard.flags.owndata or shard.flags.writeable for shard in shards)  # mapped
    found = np.concatenate(shards)
    assert found.dtype == (np.float16 if dtype == np.float16 else np.float32)
    np.testing.assert_array_equal(found, given[ids].astype(found.dtype))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "fixed", "large", "arrow"])
def test_a_column_gives_the_same_vectors_in_every_kind_of_file(kind, tmp_path):
    given = vectors()
    data = write(tmp_path, kind, given)
    width, ids, shards = stored(tmp_path, data, "v", column="v")
    assert width == D
    np.testing.assert_array_equal(np.concatenate(shards), given[ids])


def test_half_precision_columns_stay_half(tmp_path):
    given = vectors(np.float16)
    _, ids, shards = stored(tmp_path, write(tmp_path, "fixed", given), "v", column="v")
    found = np.concatenate(shards)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, given[ids])


def test_a_column_of_vectors_comes_out_again(tmp_path):
    for kind in ("parquet", "jsonl"):
        data = write(tmp_path, kind, vectors())
        stored(tmp_path, data, "v", column="v")
        store = Store(tmp_path / "run")
        ids = np.concatenate([store.row_ids(shard) for shard in store.shards])[::9]
        path = export(store, Selected(ids), tmp_path / "selected.jsonl")
        found = [orjson.loads(line) for line in path.read_bytes().splitlines()]
        assert [row["i"] for row in found] == ids.tolist()
        given = np.array([row["v"] for row in found], dtype=np.float32)
        np.testing.assert_array_equal(given, vectors()[ids])


def test_missing_vectors_matter_only_in_rows_that_stay(tmp_path):
    given = list(vectors())
    given[6] = None  # unusable, so it stays out anyway
    data = write(tmp_path, "parquet", given)
    _, ids, shards = stored(tmp_path, data, "v", column="v")
    assert 6 not in ids
    np.testing.assert_array_equal(np.concatenate(shards), vectors()[ids])
    given[10] = None
    with pytest.raises(DataError, match=r"NaN, infinite or missing values \(row ids 10\)"):
        stored(tmp_path, write(tmp_path, "parquet", given), "v", column="v")


@pytest.mark.parametrize("limit", [300, 10_000])
def test_a_limit_takes_the_first_vectors(limit, tmp_path):
    given = vectors()
    np.save(tmp_path / "v.npy", given)
    data = write(tmp_path, "jsonl")
    _, ids, shards = stored(tmp_path, data, tmp_path / "v.npy", limit=limit)
    assert ids.max() < limit
    np.testing.assert_array_equal(np.concatenate(shards), given[ids])
    data = write(tmp_path, "parquet", given)
    _, ids, shards = stored(tmp_path, data, "v", column="v", limit=limit)
    np.testing.assert_array_equal(np.concatenate(shards), given[ids])


def test_rows_with_nan_or_infinity_are_named(tmp_path):
    given = vectors()
    given[[3, 5], [0, D - 1]] = np.nan, -np.inf
    given[6] = np.nan  # unusable, so nobody asks
    np.save(tmp_path / "v.npy", given)
    with pytest.raises(DataError, match=r"values \(row ids 3, 5\): compute them again"):
        stored(tmp_path, write(tmp_path, "jsonl"), tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", np.where(np.isfinite(given), given.astype(float), 1e300))
    with pytest.raises(DataError, match=r"row ids 3, 5"):
        stored(tmp_path, write(tmp_path, "jsonl"), tmp_path / "v.npy")


def test_zero_vectors_are_reported(tmp_path):
    given = vectors()
    given[[2, 302]] = 0
    np.save(tmp_path / "v.npy", given)
    with pytest.warns(PyidsWarning, match=r"2 rows have a zero vector \(row ids 2, 302\)"):
        stored(tmp_path, write(tmp_path, "jsonl"), tmp_path / "v.npy")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((N - 1, D)), "499 vectors for 500 rows of input"),
        (np.zeros((N + 1, D)), "501 vectors for 500 rows of input"),
        (np.zeros(N), r"shape \(500,\): vectors are float16 or float32"),
        (np.zeros((N, 0)), "shape"),
        (np.zeros((N, D), int), "int64 of shape"),
        (np.array([[{}]], dtype=object), "no .npy file of numbers"),
    ],
)
def test_files_that_do_not_fit(array, says, tmp_path):
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=says):
        stored(tmp_path, write(tmp_path, "jsonl"), tmp_path / "v.npy")


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no such file of vectors"):
        open_vectors(tmp_path / "v.npy")
    (tmp_path / "v.npy").write_text("x")
    with pytest.raises(DataError, match=r"no \.npy file of numbers"):
        open_vectors(tmp_path / "v.npy")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_that_do_not_fit(kind, tmp_path):
    data = write(tmp_path, kind, vectors())
    with pytest.raises(DataError, match="no column 'w' of vectors"):
        open_sources([str(data)], vectors="w")
    uneven = list(vectors())
    uneven[495] = np.ones(D - 1)
    data = write(tmp_path, kind, uneven)
    with pytest.raises(DataError, match="make them"):
        stored(tmp_path, data, "v", column="v")
    with pytest.raises(DataError, match="column 'i'"):
        stored(tmp_path, data, "i", column="i")


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        ([], "row id 7 holds an empty list: "),
        (None, "row id 7 holds no list of numbers: "),
        ([True, False], "row id 7 holds no list of numbers: "),
        (["1", "2"], "row id 7 holds no list of numbers: "),
        ([[1.0], [2.0]], "row id 7 holds no list of numbers: "),
        ([1.0], "row id 7 holds 1 numbers, row id 0 2: "),
        ([1.0, None], r"missing values \(row ids 7\)"),
        ([1.0, 10**400], r"infinite or missing values \(row ids 7\)"),
    ],
)
def test_the_row_whose_list_is_no_vector_is_named(vector, says, tmp_path):
    listed = [vector if i == 7 else [float(i), 1.0] for i in range(20)]
    rows = [{"prompt": f"p{i}", "completion": "r", "v": v} for i, v in enumerate(listed)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=says):
        stored(tmp_path, data, "a", column="v")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_vectors_of_no_dimensions_are_refused(kind, tmp_path):
    data = write(tmp_path, "jsonl", np.empty((500, 0), np.float32))
    if kind == "parquet":
        typed = pa.array([[]] * N, pa.list_(pa.float32()))
        table = pa.Table.from_pylist(rows()).append_column("v", typed)
        data = tmp_path / "d.parquet"
        pq.write_table(table, data)
    with pytest.raises(DataError, match=r"an empty list|holds empty lists"):
        stored(tmp_path, data, "a", column="v")


def test_what_is_copied_is_not_copied_again(tmp_path):
    np.save(tmp_path / "v.npy", vectors())
    data = write(tmp_path, "jsonl")
    stored(tmp_path, data, tmp_path / "v.npy")
    files = sorted((tmp_path / "run" / "embeddings").glob("*.npy"))
    times = [file.stat().st_mtime_ns for file in files]
    files[2].unlink()
    stored(tmp_path, data, tmp_path / "v.npy")
    again = [file.stat().st_mtime_ns for file in files]
    assert [i for i, (a, b) in enumerate(zip(times, again, strict=True)) if a != b] == [2]
    np.save(tmp_path / "v.npy", -vectors())
    _, ids, shards = stored(tmp_path, data, tmp_path / "v.npy")
    np.testing.assert_array_equal(np.concatenate(shards), -vectors()[ids])


# ---- files of any make ---------------------------------------------------------------------------


def as_one(path, v):
    np.save(path / "v.npy", v)
    return path / "v.npy"


def as_big_endian(path, v):
    return as_one(path, v.astype(">f4"))


def as_fortran(path, v):
    return as_one(path, np.asfortranarray(v))


def as_folder(path, v):
    (path / "v").mkdir()
    for start in range(0, N, 130):
        np.save(path / "v" / f"{start:04d}.npy", v[start : start + 130])
    return path / "v"


def as_glob(path, v):
    return as_folder(path, v) / "*.npy"


def a_list_table(v):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), D)
    return pa.table({"id": pa.array(range(len(v))), "v": lists})


def as_parquet_file(path, v):
    pq.write_table(a_list_table(v), path / "v.parquet", row_group_size=70)
    return path / "v.parquet"


def as_named_column(path, v):
    table = a_list_table(v)
    pq.write_table(table.append_column("w", table["v"]), path / "v.parquet")
    return f"{path / 'v.parquet'}:w"


def as_lance(path, v):
    lance = pytest.importorskip("lance", reason="the package pylance is not installed")
    lance.write_dataset(a_list_table(v), str(path / "v.lance"))
    return path / "v.lance"


MAKES = [
    as_one, as_big_endian, as_fortran, as_folder, as_glob, as_parquet_file, as_named_column,
    as_lance,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKES)
def test_vectors_of_any_make_are_the_same(make, tmp_path):
    v = vectors()
    width, ids, found = stored(tmp_path, write(tmp_path, "jsonl"), make(tmp_path, v))
    assert width == D
    assert {shard.dtype for shard in found} == {np.dtype(np.float32)}
    assert np.array_equal(np.concatenate(found), v[ids])


@pytest.mark.parametrize("second", [np.float16, np.float32, np.float64])
def test_files_of_several_precisions_are_one_pool(second, tmp_path):
    v = vectors(np.float16)
    (tmp_path / "v").mkdir()
    np.save(tmp_path / "v" / "a.npy", v[:100])
    np.save(tmp_path / "v" / "b.npy", v[100:].astype(second))
    _, ids, found = stored(tmp_path, write(tmp_path, "jsonl"), tmp_path / "v")
    assert {shard.dtype for shard in found} == {
        np.dtype(np.float16 if second == np.float16 else np.float32)
    }
    assert np.array_equal(np.concatenate(found), v[ids])


def test_columns_of_several_precisions_are_one_pool(tmp_path):
    v = vectors(np.float16)
    (tmp_path / "d").mkdir()
    for name, part, dtype in (("a", slice(0, 250), np.float16), ("b", slice(250, N), np.float32)):
        table = pa.Table.from_pylist(rows()[part])
        lists = pa.FixedSizeListArray.from_arrays(pa.array(v[part].astype(dtype).ravel()), D)
        path = tmp_path / "d" / f"{name}.parquet"
        pq.write_table(table.append_column("v", lists), path, row_group_size=60)
    _, ids, found = stored(tmp_path, tmp_path / "d", None, column="v")
    assert {shard.dtype for shard in found} == {np.dtype(np.float32)}
    assert np.array_equal(np.concatenate(found), v[ids])


def an_archive(path):
    np.savez(path / "v.npz", a=vectors())
    (path / "v.npz").rename(path / "v.npy")
    return path / "v.npy"


def two_lengths(path):
    as_folder(path, vectors())
    np.save(path / "v" / "9999.npy", np.ones((1, D + 1), np.float32))
    return path / "v"


def two_columns(path):
    as_named_column(path, vectors())
    return path / "v.parquet"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (an_archive, r"an \.npz archive \(of a\): save its array with np\.save"),
        (two_lengths, "vectors of several lengths"),
        (two_columns, "lists of numbers are v, w: name one as FILE:COLUMN"),
        (lambda path: path, "no such file of vectors: check --embeddings-file"),
        (lambda path: path / "x*.npy", "no such file of vectors"),
    ],
)
def test_files_that_are_no_vectors_are_one_line(make, says, tmp_path):
    with pytest.raises(DataError, match=says) as caught:
        open_vectors(make(tmp_path))
    assert "\n" not in str(caught.value)


# ---- zero vectors --------------------------------------------------------------------------------


def test_a_zero_vector_under_the_cosine_is_named_or_its_row_goes(tmp_path):
    v = vectors()
    v[[10, 300, 301]] = 0  # 300 is unusable anyway
    data, file = write(tmp_path, "jsonl"), as_one(tmp_path, v)
    with Store.open(tmp_path / "run") as store:
        ingest(store, open_sources([str(data)]))
        kept = store.kept
        says = r"2 rows have a zero vector \(row ids 10, 301\).*--zero-vectors drop"
        with pytest.raises(DataError, match=says):
            take_vectors(store, str(file), metric="cosine")
        for _ in range(2):  # and once more: what is done stays done
            take_vectors(store, str(file), metric="cosine", zero_vectors="drop")
            ids = np.concatenate([store.row_ids(shard) for shard in store.shards])
            assert store.kept == kept - 2 == len(ids)
            assert not {10, 301} & set(ids.tolist())
            assert np.array_equal(np.concatenate(store.embeddings()), v[ids])
        listed = [orjson.loads(x) for x in (tmp_path / "run" / "skipped.jsonl").open("rb")]
        assert [row["row_id"] for row in listed] == sorted(row["row_id"] for row in listed)
        reasons = {row["row_id"]: row["reason"] for row in listed}
        assert "zero" in reasons[10]
        assert "zero" in reasons[301]
        assert len(listed) == store.skipped
        ingest(store, open_sources([str(data)]))
        assert store.kept == kept - 2
