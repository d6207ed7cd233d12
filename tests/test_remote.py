"""Remote data: a real object store on this machine, read by ranges, tried again, in one line."""

import gzip
import io

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pyids
from pyids.data import remote
from pyids.data.fingerprints import fingerprint_files
from pyids.data.ingest import ingest
from pyids.data.sources import open_sources
from pyids.data.vector_files import open_vectors
from pyids.errors import DataError
from pyids.store.folder import Store

pytest.importorskip("fsspec", reason="the extra remote is not installed")
moto = pytest.importorskip("moto.server", reason="the package moto is not installed")

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(300)]
LINES = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)


@pytest.fixture(scope="module")
def store_url():
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(store_url, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": store_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    remote._filesystem.cache_clear()
    from pyarrow.fs import S3FileSystem

    files = S3FileSystem(
        endpoint_override=store_url, region="us-east-1", allow_bucket_creation=True
    )
    files.create_dir("pool")

    def put(name, content):
        with files.open_output_stream(f"pool/{name}", compression=None) as out:
            out.write(content)
        return f"s3://pool/{name}"

    yield put
    remote._filesystem.cache_clear()


def rows_of(folder, *names):
    with Store.open(folder) as store:
        ingest(store, open_sources(names))
        return [row.record for shard in store.shards for row in store.iter_rows(shard)]


def a_table():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=70)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", LINES),
        ("d.jsonl.gz", gzip.compress(LINES)),
        ("d.parquet", a_table()),
    ],
)
def test_remote_files_are_read_by_ranges(name, content, bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "_RANGE_BYTES", 1000)
    assert rows_of(tmp_path / "run", bucket(name, content)) == ROWS


def test_folders_and_patterns_of_a_store(bucket, tmp_path):
    bucket("parts/0.jsonl", LINES)
    bucket("parts/1.jsonl", orjson.dumps({"prompt": "x", "completion": "y"}))
    bucket("parts/2.jsonl", orjson.dumps({"prompt": "z", "completion": "y"}))
    bucket("parts/notes.txt", b"no data")
    assert len(rows_of(tmp_path / "all", "s3://pool/parts")) == 302
    assert len(rows_of(tmp_path / "some", "s3://pool/parts/*.jsonl")) == 302


def test_the_identity_is_that_of_the_content(bucket):
    first = fingerprint_files([bucket("i.jsonl", b"a" * 10)])
    assert fingerprint_files([bucket("i.jsonl", b"a" * 10)]) == first
    assert fingerprint_files([bucket("i.jsonl", b"b" * 10)]) != first


def test_a_broken_connection_is_tried_again_and_then_one_line(bucket, monkeypatch, tmp_path):
    url = bucket("b.jsonl", LINES)
    whole, calls = remote._range, []

    def breaking(*place):
        calls.append(place)
        if len(calls) % 3:
            raise OSError("reset by peer\nand more")
        return whole(*place)

    monkeypatch.setattr(remote, "_range", breaking)
    assert rows_of(tmp_path / "run", url) == ROWS
    assert len(calls) >= 3

    def broken(*place):
        raise OSError("reset by peer\nand more")

    monkeypatch.setattr(remote, "_range", broken)
    with pytest.raises(DataError, match="the connection breaks off: reset by peer") as caught:
        rows_of(tmp_path / "broken", url)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_one_line(bucket):
    with pytest.raises(DataError, match="no such remote file: check its name and your access"):
        open_sources(["s3://pool/nothing.jsonl"])


# ---- vectors -------------------------------------------------------------------------------------


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def vectors_table(array, rows=70):
    sink = pa.BufferOutputStream()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
    pq.write_table(pa.table({"v": lists, "n": range(len(array))}), sink, row_group_size=rows)
    return sink.getvalue().to_pybytes()


MATRIX = np.random.default_rng(0).standard_normal((300, 24)).astype(np.float32)


@pytest.mark.parametrize("kind", ["npy", "parquet", "folder", "pattern", "column"])
def test_vectors_in_a_bucket_are_read_by_ranges(kind, bucket, monkeypatch, tmp_path):
    if kind in ("folder", "pattern"):
        bucket(f"vectors-{kind}/0.npy", npy(MATRIX[:100]))
        bucket(f"vectors-{kind}/1.npy", npy(MATRIX[100:]))
        bucket(f"vectors-{kind}/README.md", b"not these")
        name = f"s3://pool/vectors-{kind}" + ("/*.npy" if kind == "pattern" else "")
    elif kind == "npy":
        name = bucket("v.npy", npy(MATRIX))
    else:
        name = bucket("v.parquet", vectors_table(MATRIX)) + (":v" if kind == "column" else "")
    (tmp_path / "pool.jsonl").write_bytes(LINES)
    np.save(tmp_path / "v.npy", MATRIX)
    runs = []
    for number, vectors in enumerate([str(tmp_path / "v.npy"), name]):
        folder = tmp_path / f"run {number}"
        given = {"data": str(tmp_path / "pool.jsonl"), "budget": 20, "output_dir": str(folder)}
        runs.append(pyids.select("km-random", given, embeddings_file=vectors))
        files = sorted(folder.glob("embeddings/*.npy"))
        runs.append([file.read_bytes() for file in files])
    assert runs[0].ids.tolist() == runs[2].ids.tolist()
    assert runs[1] == runs[3]


def test_few_rows_of_a_matrix_take_few_bytes(bucket, monkeypatch):
    asked = []
    whole = remote._range

    def counting(system, name, start, stop, etag):
        asked.append(stop - start)
        return whole(system, name, start, stop, etag)

    monkeypatch.setattr(remote, "_range", counting)
    monkeypatch.setattr(remote, "_RANGE_BYTES", 1000)
    monkeypatch.setattr(remote, "_BUFFER_BYTES", 1000)
    vectors = open_vectors(bucket("few.npy", npy(MATRIX)), 300)
    rows = np.array([3, 4, 40, 250])
    np.testing.assert_array_equal(vectors.take(rows), MATRIX[rows])
    assert sum(asked) < MATRIX.nbytes / 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.npy", npy(MATRIX)[:-7], "it ends too early"),
        ("text.npy", b"x" * 500, "no .npy file of numbers"),
        ("columns.npy", npy(np.asfortranarray(MATRIX)), "save it in C order"),
        ("objects.npy", npy(np.array([[None]])), "it holds objects"),
        ("whole.npy", npy(np.ones((3, 4), int)), "vectors are float16 or float32"),
        ("text.parquet", b"x" * 500, "no parquet file"),
        ("text.txt", b"x", "no file of vectors there"),
        ("", b"", "no such remote file"),
    ],
)
def test_vectors_of_a_bucket_that_cannot_be_read_are_one_line(name, content, words, bucket):
    url = bucket(name, content) if name else "s3://pool/nothing.npy"
    with pytest.raises(DataError, match=words) as caught:
        open_vectors(url)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)
