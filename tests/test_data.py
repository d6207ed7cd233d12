"""Reading: every kind of file, every mistake, and the same bytes however it is done."""

import bz2
import csv
import datetime
import decimal
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pyids.data import ingest as intake_module
from pyids.data import splits as splits_module
from pyids.data.ingest import check, ingest
from pyids.data.readers import Reader
from pyids.data.sources import Source, open_sources
from pyids.engine import LocalEngine
from pyids.errors import ConfigError, DataError
from pyids.store.folder import Store


def chat(prompt, response, **columns):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {**columns, "messages": turns}


def write_jsonl(path, rows):
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def read(folder, *data, format="auto", **options):
    """Ingest and give (Intake, the kept rows)."""
    with Store.open(folder) as store:
        intake = ingest(store, open_sources([str(d) for d in data], format=format), **options)
        return intake, [row for shard in store.shards for row in store.iter_rows(shard)]


def tree(folder):
    """Every visible file of a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
    }


def lines(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Nothing here cuts the power, and a disk that others use makes each fsync slow."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def small(monkeypatch):
    """Splits, groups and shards so small that little data has many of each."""
    monkeypatch.setattr(splits_module, "SPLIT_BYTES", 1000)
    monkeypatch.setattr("pyids.data.shard_writer.ROWS_PER_GROUP", 3)
    monkeypatch.setattr(intake_module, "GROUPS_PER_SHARD", 2)


# ---- kinds of files ------------------------------------------------------------------------------

ROWS = [chat(f"question {i}", f"answer {i}", id=i, extra={"a": [1, None, 2.5]}) for i in range(50)]


def as_jsonl(path):
    return write_jsonl(path / "d.jsonl", ROWS)


def as_jsonl_gz(path):
    file = path / "d.jsonl.gz"
    file.write_bytes(gzip.compress(b"\n".join(map(orjson.dumps, ROWS))))
    return file


def as_jsonl_zst(path):
    file = path / "d.jsonl.zst"
    half = [b"".join(orjson.dumps(row) + b"\n" for row in part) for part in (ROWS[:20], ROWS[20:])]
    file.write_bytes(b"".join(map(zstandard.compress, half)))  # two frames, as parallel tools write
    return file


def as_array(path):
    file = path / "d.json"
    file.write_text(json.dumps(ROWS, indent=2))
    return file


def as_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path / "d.parquet", row_group_size=7)
    return path / "d.parquet"


def as_wide_parquet(path):
    rows = [{**row, "extra": str(row["extra"])} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), path / "d.parquet")
    return path / "d.parquet"


def as_arrow_folder(path):
    datasets = pytest.importorskip("datasets", reason="the package datasets writes Arrow folders")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path / "saved"), num_shards=3)
    return path / "saved"


def as_folder(path):
    (path / "d" / "deep").mkdir(parents=True)
    write_jsonl(path / "d" / "a.jsonl", ROWS[:10])
    write_jsonl(path / "d" / "b.jsonl", ROWS[10:30])
    write_jsonl(path / "d" / "deep" / "c.jsonl", ROWS[30:])
    (path / "d" / "README.md").write_text("no data")
    return path / "d"


def as_glob(path):
    return as_folder(path) / "**" / "*.jsonl"


KINDS = [
    as_jsonl, as_jsonl_gz, as_jsonl_zst, as_array, as_parquet, as_arrow_folder, as_folder, as_glob,
]  # fmt: skip


@pytest.mark.parametrize("write", KINDS)
def test_every_kind_of_file_gives_the_same_rows(write, tmp_path):
    intake, rows = read(tmp_path / "run", write(tmp_path))
    assert (intake.rows, intake.kept, intake.skipped, intake.duplicates) == (50, 50, 0, 0)
    assert [row.record for row in rows] == ROWS
    assert [row.row_id for row in rows] == list(range(50))
    assert [row.messages for row in rows] == [row["messages"] for row in ROWS]


def test_csv_keeps_every_value_as_text(tmp_path):
    file = tmp_path / "d.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as out:
        writer = csv.writer(out)
        writer.writerow(["prompt", "completion", "code"])
        writer.writerow(['two\nlines, "quoted"', "yes", "007"])
        writer.writerow(["second", "x" * 200_000, "1e3"])
    intake, rows = read(tmp_path / "run", file)
    assert intake.formats == {"prompt/completion": 2}
    assert [row.record["code"] for row in rows] == ["007", "1e3"]
    assert rows[0].messages[0]["content"] == 'two\nlines, "quoted"'
    assert [row.line for row in rows] == [3, 4]


def test_tables_become_json_as_documented(tmp_path):
    second = datetime.datetime(2024, 5, 6, 7, 8, 9)
    row = {
        "prompt": "q",
        "completion": "a",
        "bytes": b"\x00\xff",
        "at": second,
        "day": second.date(),
        "took": datetime.timedelta(minutes=1.5),
        "price": decimal.Decimal("1.10"),
        "nan": float("nan"),
        "big": 2**63 - 1,
        "deep": [{"x": None, "y": [1.5]}],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
    _, [found] = read(tmp_path / "run", tmp_path / "d.parquet")
    assert found.record == {
        "prompt": "q",
        "completion": "a",
        "bytes": "AP8=",
        "at": "2024-05-06T07:08:09",
        "day": "2024-05-06",
        "took": 90.0,
        "price": "1.10",
        "nan": None,
        "big": 2**63 - 1,
        "deep": [{"x": None, "y": [1.5]}],
    }


def test_a_name_on_the_hub_is_read_from_its_arrow_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "hub"))
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.load_from_disk(str(tmp_path / "hub"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    _, rows = read(tmp_path / "run", "owner/name@small:validation")
    assert [row.record for row in rows] == ROWS
    open_sources(["owner/name"])
    assert asked == [("owner/name", "small", "validation"), ("owner/name", None, "train")]


def test_huge_inputs_have_larger_shards_not_ever_more():
    sizes = [1, 64 << 30, (64 << 30) + 2, 200 << 30, 1 << 40]
    assert [intake_module.groups_per_shard(size) for size in sizes] == [8, 8, 16, 32, 128]


def test_lines_stay_byte_for_byte(tmp_path):
    raws = [
        b'{"big": 123456789012345678901234567890, "messages" : [{"role":"user",'
        b'"content":"a\\u00e9"}, {"role":"assistant","content":"b"}], "f": 1.10, "nan": NaN}',
        b'{ "messages": [{"role":"user","content":"c"},{"role":"assistant","content":"d"}], "z":1}',
    ]
    file = tmp_path / "d.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + raws[0] + b"\r\n\n  \n" + raws[1])
    _, rows = read(tmp_path / "run", file)
    assert [row.raw for row in rows] == raws
    assert [row.line for row in rows] == [1, 4]
    assert rows[0].record["big"] == 123456789012345678901234567890


def test_an_array_of_one_line_and_items_longer_than_a_block(tmp_path):
    rows = [chat("q", "a" * 3_000_000, n=1), chat("q2", 'b"]},{', n=12345678901234567890123)]
    file = tmp_path / "d.json"
    file.write_text(" " + json.dumps(rows))
    _, found = read(tmp_path / "run", file)
    assert [row.record for row in found] == rows


TEXT = "\n".join(json.dumps(row) for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", TEXT.encode("utf-16")),
        ("d.jsonl", b"".join(f"{line}\n".encode("utf-16") for line in TEXT.split("\n"))),
        ("d.jsonl", TEXT.encode("utf-16-le")),
        ("d.jsonl", TEXT.encode("utf-16-be")),
        ("d.jsonl.gz", gzip.compress(TEXT.encode("utf-16"))),
        ("d.jsonl", gzip.compress(TEXT.encode())),
        ("d.jsonl.gz", zstandard.compress(TEXT.encode())),
        ("d.jsonl.gz", TEXT.encode()),
        ("d.jsonl.gz", gzip.compress(TEXT.encode()) + bytes(1000)),
        ("d.jsonl.bz2", bz2.compress(TEXT.encode())),
        ("d.jsonl.xz", lzma.compress(TEXT.encode())),
        ("d.jsonl", json.dumps(ROWS, indent=1).encode()),
        ("d.json", "\n".join(json.dumps(row, indent=1) for row in ROWS).encode()),
        ("d.json", TEXT.replace("\n", "").encode()),
        ("d.jsonl", TEXT.replace("\n", " ").encode()),
    ],
)
def test_any_encoding_and_container_gives_the_same_rows(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    _, rows = read(tmp_path / "run", tmp_path / name)
    assert [row.record for row in rows] == ROWS


def test_tables_under_another_ending_and_by_tabs(tmp_path):
    as_parquet(tmp_path).rename(tmp_path / "d.jsonl")
    assert [row.record for row in read(tmp_path / "run", tmp_path / "d.jsonl")[1]] == ROWS
    (tmp_path / "d.tsv").write_text("prompt\tcompletion\nq, r\ta\n")
    [row] = read(tmp_path / "tabs", tmp_path / "d.tsv")[1]
    assert row.record == {"prompt": "q, r", "completion": "a"}


@pytest.mark.parametrize("kind", [as_jsonl, as_jsonl_gz, as_array, as_wide_parquet])
def test_a_row_that_no_memory_takes_is_one_line(kind, monkeypatch, tmp_path):
    monkeypatch.setitem(ROWS[30]["extra"], "a", ["x" * 2_000_000])
    sources = open_sources([str(kind(tmp_path))], max_row_bytes=1 << 20)
    says = r"(line|row) 31: a row of more than 1 MB: delete it"
    with Store.open(tmp_path / "run") as store, pytest.raises(DataError, match=says):
        ingest(store, sources)


def test_half_a_surrogate_pair_anywhere_is_found_when_the_row_is_read(tmp_path):
    rows = [
        chat("q0", "a", note="whole \U0001f600"),
        chat("q1", "a", note="half \ud83d"),
        chat("q2", "a", note={"\udc00": 1}),
        chat("q3", "code: \\ud83d"),
    ]
    rows[3]["messages"][1]["reasoning_content"] = "\ud83d"
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, chat("q4", "code: \\ud83d")])))
    _, kept = read(tmp_path / "run", file)
    assert [row.row_id for row in kept] == [0, 4]


# ---- splits, shards, workers ---------------------------------------------------------------------


def messy_rows(n=300):
    """Rows of unequal length; every seventh repeats an earlier one, every eleventh is empty."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        if i % 7 == 6:
            rows.append({**rows[i - 5], "id": i})
        elif i % 11 == 10:
            rows.append(chat(f"q{i}", "   ", id=i))
        else:
            rows.append(chat(f"q{i}", "word " * int(rng.integers(1, 60)), id=i))
    return rows


def test_workers_and_shards_change_nothing(small, tmp_path):
    file = write_jsonl(tmp_path / "d.jsonl", messy_rows())
    one, rows = read(tmp_path / "one", file)
    assert len(Store(tmp_path / "one").shards) > 20
    assert [row.line for row in rows] == [row.row_id + 1 for row in rows]
    assert [row.record["id"] for row in rows] == [row.row_id for row in rows]
    assert one.rows == 300
    assert one.kept + one.skipped + one.duplicates == 300
    with LocalEngine(2) as engine:
        # The workers are spawned and so see the sizes as they are; only the plan is small.
        read(tmp_path / "two", file, engine=engine)
    with LocalEngine(2) as engine:
        read(tmp_path / "three", file, engine=engine)
    assert tree(tmp_path / "two") == tree(tmp_path / "three")


@pytest.mark.parametrize("size", [1, 2, 37, 64, 1000])
def test_splitting_loses_and_doubles_no_line(size, monkeypatch, tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(b"\n{}\n\n" + b"\n".join(map(orjson.dumps, messy_rows(40))))
    monkeypatch.setattr(splits_module, "SPLIT_BYTES", size)
    found, passed = [], 0
    for split in splits_module.plan_splits([Source(str(file), "jsonl", None)]):
        reader = Reader(str(file), "jsonl", None, split.start, split.stop)
        found += [(passed + line, raw) for line, raw, _ in reader]
        passed += reader.lines
    lines = file.read_bytes().split(b"\n")
    assert found == [(number, raw) for number, raw in enumerate(lines, 1) if raw]
    assert passed == len(lines)


@pytest.mark.parametrize("limit", [1, 49, 50, 123, 300, 1000])
def test_limit_reads_the_first_rows(small, limit, tmp_path):
    file = write_jsonl(tmp_path / "d.jsonl", messy_rows())
    intake, rows = read(tmp_path / "run", file, limit=limit)
    head = write_jsonl(tmp_path / "head.jsonl", messy_rows()[:limit])
    alone, expected = read(tmp_path / "alone", head)
    assert intake == alone
    assert [row.raw for row in rows] == [row.raw for row in expected]


def test_repeats_are_dropped_counted_and_listed(small, tmp_path):
    rows = messy_rows()
    rows[200] = chat("  q0 ", " ".join(rows[0]["messages"][1]["content"].split()) + "\n", id=200)
    file = write_jsonl(tmp_path / "d.jsonl", rows)
    intake, kept = read(tmp_path / "run", file)

    first = {}
    expected = []
    for i, row in enumerate(rows):
        text = tuple(" ".join(turn["content"].split()) for turn in row["messages"])
        if text[1] and first.setdefault(text, i) != i:
            expected.append((i, first[text]))
    listed = lines(tmp_path / "run" / "duplicates.jsonl")
    assert [(row["row_id"], row["duplicate_of"]) for row in listed] == expected
    assert (200, 0) in expected
    assert listed[0]["line"] == listed[0]["row_id"] + 1
    assert intake.duplicates == len(expected)
    dropped = {i for i, _ in expected}
    assert not dropped & {row.row_id for row in kept}

    both, kept = read(tmp_path / "both", file, keep_duplicates=True)
    assert both.duplicates == 0 or both.kept == intake.kept + intake.duplicates
    assert len(kept) == intake.kept + intake.duplicates
    assert lines(tmp_path / "both" / "duplicates.jsonl") == listed


def test_unicode_forms_are_the_same_text_and_case_is_not(tmp_path):
    rows = [chat("Caf\u00e9", "yes"), chat("Cafe\u0301", "yes"), chat("caf\u00e9", "yes")]
    intake, _ = read(tmp_path / "run", write_jsonl(tmp_path / "d.jsonl", rows))
    assert (intake.kept, intake.duplicates) == (2, 1)


def test_unusable_rows_are_listed_and_strict_makes_them_errors(tmp_path):
    rows = [chat("q", "a"), chat("q", " \n"), chat("", "a"), chat("\ud800", "a")]
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    intake, _ = read(tmp_path / "run", file)
    assert (intake.kept, intake.skipped) == (1, 3)
    listed = lines(tmp_path / "run" / "skipped.jsonl")
    assert [(row["row_id"], row["line"]) for row in listed] == [(1, 2), (2, 3), (3, 4)]
    assert [row["reason"].split()[1] for row in listed] == ["response", "prompt", "text"]
    with pytest.raises(DataError) as caught:
        read(tmp_path / "strict", file, strict=True)
    assert str(caught.value).count("\n") == 2
    assert f"{file} line 2: the response is empty" in str(caught.value)


def test_check_counts_the_same_and_writes_nothing(tmp_path):
    file = write_jsonl(tmp_path / "d.jsonl", messy_rows())
    before = sorted(tmp_path.rglob("*"))
    counted = check(open_sources([str(file)]))
    assert sorted(tmp_path.rglob("*")) == before
    assert counted == read(tmp_path / "run", file)[0]


# ---- mistakes ------------------------------------------------------------------------------------

GOOD = orjson.dumps(chat("q", "a"))


def turn(**keys):
    return orjson.dumps({"messages": [{"role": "user", "content": "q"}, keys]})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"messages": [', "broken JSON"),
        (b"[1, 2]", "no JSON object"),
        ('{"messages": "caf\u00e9"}'.encode("latin1"), "not UTF-8 (byte 0xE9"),
        (
            orjson.dumps({"messages": [{"role": "user", "content": "q"}]}),
            "no turn of the assistant",
        ),
        (turn(role="robot", content="a"), "turn 1 has the role 'robot': use one of assistant"),
        (turn(role="assistant", content=5), "content of turn 1 is the number 5: make it a text"),
        (turn(role="assistant", content=None), "content of turn 1 is null: make it a text"),
        (turn(role="assistant", content=[{"type": "text"}]), "turn 1 is a list: make it a text"),
        (orjson.dumps({"prompt": "x"}), "no chat format has the columns prompt: rename them"),
        (orjson.dumps({"messages": "x"}), "column 'messages' is a text: make it a list of turns"),
        (orjson.dumps({"messages": [3]}), "turn 0 is the number 3, not an object"),
        (b'{"messages": ' + b"9" * 5000 + b"}", "JSON that cannot be read (Exceeds the limit"),
        (b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "JSON that cannot be read"),
    ],
)
def test_a_bad_line_is_named_with_its_remedy(line, says, tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(b"\n".join([GOOD, b"", line, GOOD]))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "run", file)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{file} line 3: ")
    assert says in message
    with pytest.raises(DataError, match="line 3"):
        check(open_sources([str(file)]))


def test_a_column_messages_beside_another_format_is_named_before_the_work(tmp_path):
    file = tmp_path / "d.jsonl"
    rows = [{"instruction": "q", "output": "a", **more} for more in ({}, {"messages": "mine"})]
    write_jsonl(file, rows)
    with pytest.raises(DataError, match=r"d\.jsonl line 2: column 'messages' stands where"):
        read(tmp_path / "run", file)


def test_times_of_any_kind_become_text(tmp_path):
    at = datetime.datetime(2026, 5, 4, 3, 2, 1)
    texts = [pa.array(["q"]), pa.array(["a"])]
    times = [pa.array([at], type=pa.timestamp(unit)) for unit in ("ns", "us")]
    pq.write_table(pa.table([*texts, *times], names=["prompt", "completion", "x", "y"]),
                   tmp_path / "d.parquet")  # fmt: skip
    _, [row] = read(tmp_path / "run", tmp_path / "d.parquet")
    assert row.record["x"] == row.record["y"] == "2026-05-04T03:02:01"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path):
    with pytest.raises(DataError, match="no permission to read"):
        read(tmp_path / "run", a_closed_file(tmp_path))


def test_run_folders_beside_the_data_are_no_data(tmp_path):
    write_jsonl(tmp_path / "d.jsonl", [chat("q", "a")])
    for _ in range(2):
        intake, _ = read(tmp_path / "runs" / "one", tmp_path)
        assert intake.rows == 1
    (tmp_path / "runs" / "one" / "selected.jsonl").write_bytes(GOOD)
    assert [source.path for source in open_sources([str(tmp_path)])] == [str(tmp_path / "d.jsonl")]


def test_the_first_twenty_errors_are_reported_together(small, tmp_path):
    rows = [GOOD if i % 2 else b"{" for i in range(100)]
    file = tmp_path / "d.jsonl"
    file.write_bytes(b"\n".join(rows))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "run", file)
    others = ", ".join(str(2 * i + 1) for i in range(1, 20))
    assert str(caught.value).startswith(f"{file} line 1: broken JSON at column 2 (")
    assert f"(the same: lines {others})" in str(caught.value)
    assert str(caught.value).endswith("; the reading ended after 20 errors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "rows" / "index.json").exists()


def test_errors_of_several_files_stand_together(tmp_path):
    bad = []
    for name in "ab":
        bad.append(tmp_path / f"{name}.jsonl")
        bad[-1].write_bytes(GOOD + b"\n{\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "run", *bad)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        f"{bad[0]} line 2",
        f"{bad[1]} line 2",
    ]


def a_file(name, content=b""):
    def write(path):
        (path / name).write_bytes(content)
        return path / name

    return write


def an_empty_folder(path):
    (path / "none").mkdir()
    (path / "none" / "notes.txt").write_text("x")
    return path / "none"


def a_table(*arrays, names):
    def write(path):
        table = pa.table([pa.array(values, type=kind) for values, kind in arrays], names=names)
        pq.write_table(table, path / "d.parquet")
        return path / "d.parquet"

    return write


TWO_TEXTS = (["q", "q"], pa.string()), (["a", "a"], pa.string())
PAIR = ["prompt", "completion"]
YEAR_10_000 = 2_933_000 * 86400 * 10**6  # days from 1970, in microseconds


def a_closed_file(path):
    file = a_file("d.jsonl", GOOD)(path)
    file.chmod(0)
    return file


def a_socket(path):
    import socket

    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path / "s.jsonl"))
    server.close()
    return path / "s.jsonl"


def a_dict_of_splits(path):
    (path / "dict").mkdir()
    (path / "dict" / "dataset_dict.json").write_text('{"splits": ["validation", "test"]}')
    return path / "dict"


# A frame that names a window of 2 GB, with an empty block.
LONG = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"
MANY = b"\n".join(orjson.dumps(chat(f"q{i}", os.urandom(50).hex())) for i in range(5000))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (a_file("d.jsonl"), "the file is empty"),
        (a_file("d.jsonl", b"\n\n \n"), "holds no rows"),
        (a_file("d.jsonl.gz", gzip.compress(b"")), "holds no rows"),
        (a_file("d.json", b"[]"), "holds no rows"),
        (a_file("d.jsonl", GOOD.decode().encode("utf-16")[:-1]), "broken UTF-16"),
        (a_file("d.jsonl", b"version https://git-lfs.github.com/spec/v1\n"), "run git lfs pull"),
        (a_file("d.parquet", b"version https://git-lfs.github.com/spec/v1\n"), "run git lfs pull"),
        (a_file("d.jsonl", b"PK\x03\x04rest"), "a zip archive: unzip it"),
        (a_file("d.parquet", gzip.compress(GOOD)), "it is gzip, not parquet: unpack it"),
        (a_file("d.json", b"<!DOCTYPE html><html>"), "a web page: get the file itself"),
        (a_file("d.jsonl.zst", LONG), "unpack it with zstd -d --long=31 d.jsonl.zst"),
        (a_file("d.jsonl.xz", lzma.compress(MANY)[:-2000]), "breaks off here: get it again"),
        (a_file("d.jsonl.bz2", bz2.compress(MANY)[:-2000]), "d.jsonl.bz2 line"),
        (
            a_file("d.json", json.dumps({"v": 1, "data": [chat("q", "a")]}, indent=1).encode()),
            "one object with the rows under 'data': write them out with jq -c '.[\"data\"][]'",
        ),
        (
            a_file("d.json", json.dumps([chat("q", "a")], indent=1)[1:-9].encode()),
            "is broken JSON from here",
        ),
        (a_file("d.jsonl.gz", gzip.compress(MANY)[:-2000]), "breaks off here: get it again"),
        (a_file("d.jsonl.zst", zstandard.compress(MANY)[:-2000]), "breaks off here: get it again"),
        (a_file("d.jsonl.gz", b"\x1f\x8bno gzip at all"), "line 1: the file cannot be read"),
        (a_file("d.json", b"[" + GOOD + b", " + GOOD[:20]), "row 2: the array breaks off"),
        (a_file("d.json", b"[" + GOOD + b", 5]"), "row 2: 5 is no JSON object"),
        (a_file("d.parquet", b"PAR1 not really"), "the file cannot be read"),
        (a_file("d.csv", b"prompt,completion\na,b\nc\n"), "line 3: 1 fields under a header of 2"),
        (a_file("d.csv", b'prompt,completion\na,"b\n'), "broken CSV"),
        (a_file("d.csv", b"prompt,completion\na,\xe9\n"), "line 2: not UTF-8 (byte 0xE9"),
        (
            a_file("d.csv", b"prompt,completion,,\na,b,1,2\n"),
            "line 1: columns 3, 4 have no name: name or delete them",
        ),
        (
            a_file("d.csv", b"prompt,completion,note,note\na,b,1,2\n"),
            "line 1: the column 'note' stands twice: rename one",
        ),
        (
            a_table(*TWO_TEXTS, *TWO_TEXTS, names=[*PAIR, "note", "note"]),
            "the column 'note' stands twice: rename one",
        ),
        (
            a_table(
                *TWO_TEXTS,
                ([0, YEAR_10_000], pa.timestamp("us")),
                names=[*PAIR, "at"],
            ),
            "row 2: column 'at' cannot become JSON",
        ),
        (
            a_table(TWO_TEXTS[0], (pa.array([b"a", b"\xff"]).view("utf8"), None), names=PAIR),
            "row 2: column 'completion' cannot become JSON",
        ),
        (
            a_file("d.json", b"[" + GOOD + b", " + b"[" * 200_000 + b"]" * 200_000 + b"]"),
            "JSON that cannot be read",
        ),
        (a_file("d.csv", b"title,body\na,b\n"), "no chat format has the columns title, body"),
        (a_file("d.jsonl", b'{"a": 1}'), "no chat format has the columns a: rename"),
        (a_file("d.txt", b"x"), "the ending says nothing about what it holds"),
        (an_empty_folder, "a folder without data"),
        (a_socket, "neither a file nor a folder"),
        (a_dict_of_splits, "holds the splits validation, test: name one"),
        (lambda path: path / "none.jsonl", "no such file or folder"),
        (lambda path: path / "*.jsonl", "no data file matches"),
    ],
)
def test_bad_input_is_answered_in_one_line(write, says, tmp_path):
    data = write(tmp_path)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "run", data)
    message = str(caught.value)
    assert says in message
    assert str(data) in message
    assert "\n" not in message


@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("last", [True, False])
def test_a_csv_may_have_lines_that_end_in_any_way(end, block, last, tmp_path, monkeypatch):
    monkeypatch.setattr("pyids.data.readers.BLOCK_BYTES", block)
    lines = [b"prompt,completion", b"q,a", b'"q\n\r2",\xc3\xa4', b"", b"q3,a3"]
    path = tmp_path / "d.csv"
    path.write_bytes(b"\xef\xbb\xbf" + end.join(lines) + (end if last else b""))
    found = [record for _, _, record in Reader(str(path), "csv", None)]
    assert found == [
        {"prompt": prompt, "completion": answer}
        for prompt, answer in [("q", "a"), ("q\n\r2", "\xe4"), ("q3", "a3")]
    ]


def test_lines_may_end_in_two_ways_in_one_csv(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(b"prompt,completion\rq,a\nq2,a2\r\nq3,a3")
    found = [record["prompt"] for _, _, record in Reader(str(path), "csv", None)]
    assert found == ["q", "q2", "q3"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("end", ["\n", "\r"])
def test_a_row_that_is_too_long_names_the_limit(kind, end, tmp_path):
    if kind == "jsonl" and end == "\r":
        return
    row = '{"prompt": "qqqqqqqqqq", "completion": "a"}'
    text = {"csv": f"a,b{end}1,2{end}{'q' * 40},1{end}", "json": f"[{row}]", "jsonl": row}[kind]
    (tmp_path / "d").write_bytes(text.encode())
    *_, (_, _, problem) = Reader(str(tmp_path / "d"), kind, None, max_row_bytes=10)
    assert problem.text == "a row of more than 10 bytes: delete it, or raise --max-row-bytes"
    assert kind != "csv" or problem.line == 3
    [problem] = [Reader("d", kind, None, max_row_bytes=2 << 20)._too_long()]
    assert problem.startswith("a row of more than 2 MB: ")


def test_a_format_that_does_not_exist_or_does_not_fit(tmp_path):
    file = write_jsonl(tmp_path / "d.jsonl", [{"question": "q", "text": "a"}])
    with pytest.raises(ConfigError, match="no chat format 'chatml'"):
        open_sources([str(file)], format="chatml")
    with pytest.raises(DataError, match="line 1: column 'instruction' is missing"):
        read(tmp_path / "run", file, format="alpaca")
    intake, rows = read(tmp_path / "pair", file, format="question/text")
    assert intake.formats == {"question/text": 1}
    assert rows[0].messages == chat("q", "a")["messages"]


def test_a_hub_name_offline_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the package datasets reads the hub")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="the hub does not give it") as caught:
        open_sources(["nobody-here/no-such-data"])
    assert "\n" not in str(caught.value)


# ---- resuming ------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(small, tmp_path):
    file = write_jsonl(tmp_path / "d.jsonl", messy_rows())
    read(tmp_path / "run", file)
    before = tree(tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.parquet")}
    victim = min(times)
    victim.unlink()
    os.utime(file)  # the same data, touched
    read(tmp_path / "run", file)
    assert tree(tmp_path / "run") == before
    again = {path for path, time_ns in times.items() if path.stat().st_mtime_ns != time_ns}
    assert victim in again
    assert len(again) < len(times) / 2


def test_another_limit_leaves_no_stray_shards(small, tmp_path):
    file = write_jsonl(tmp_path / "d.jsonl", messy_rows())
    read(tmp_path / "run", file)
    read(tmp_path / "run", file, limit=20)
    read(tmp_path / "fresh", file, limit=20)
    assert tree(tmp_path / "run") == tree(tmp_path / "fresh")


KILLED = """
    import sys
    from pyids.data import splits
    from pyids.data.ingest import ingest
    from pyids.data.sources import open_sources
    from pyids.engine import LocalEngine
    from pyids.store.folder import Store

    if __name__ == "__main__":
        splits.SPLIT_BYTES = 200_000
        with Store.open(sys.argv[1]) as store, LocalEngine(int(sys.argv[3])) as engine:
            print("go", flush=True)
            ingest(store, open_sources([sys.argv[2]]), engine=engine)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_and_resumed_gives_identical_bytes(workers, tmp_path):
    file = write_jsonl(tmp_path / "d.jsonl", messy_rows(20_000))
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, "-P", str(script)]
    subprocess.run([*command, str(tmp_path / "whole"), str(file), "1"], check=True)
    run = tmp_path / "run"
    killed = 0
    for delay in (0.02, 0.15, 0.3, 0.5, 0.9):
        process = subprocess.Popen(
            [*command, str(run), str(file), str(workers)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert killed
    subprocess.run([*command, str(run), str(file), str(workers)], check=True)
    assert tree(run) == tree(tmp_path / "whole")
    assert not list(run.rglob("*.tmp"))


PEAK = """
    import resource, sys
    from pyids.data.ingest import check
    from pyids.data.sources import open_sources

    for file in sys.argv[1:]:
        check(open_sources([file]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_long_item_of_an_array_takes_five_times_its_size_at_most(tmp_path):
    for name, words in (("short", 1), ("long", 2_000_000)):
        rows = [{"prompt": "q", "completion": "word " * words}]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows, indent=1))
    script = tmp_path / "peak.py"
    script.write_text(textwrap.dedent(PEAK))
    files = [str(tmp_path / f"{name}.json") for name in ("short", "long")]
    command = [sys.executable, "-P", str(script), *files]
    before, after = map(
        int, subprocess.run(command, check=True, capture_output=True).stdout.split()
    )
    assert (after - before) * 1024 < 5 * 10_000_000


def test_rows_of_nothing_are_not_counted(tmp_path):
    """A few bytes of Arrow may claim any number of them."""
    file = tmp_path / "x.arrow"
    batch = pa.record_batch({"prompt": pa.nulls(5), "completion": pa.nulls(5)})
    with pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
    with pytest.raises(DataError, match=r"x\.arrow row .*no column of it holds anything"):
        check(open_sources([str(file)]))
