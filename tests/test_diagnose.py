"""Files that do not hold what their name promises: read, or one line that names the remedy."""

import bz2
import gzip
import io
import json
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pyids.data.diagnose import summarize
from pyids.data.ingest import check, describe
from pyids.data.sources import open_sources
from pyids.errors import DataError

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(25)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(separator):
    rows = [["prompt", "completion"], *([row["prompt"], row["completion"]] for row in ROWS)]
    return "".join(separator.join(row) + "\n" for row in rows).encode()


def tar(kind=""):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w{kind}") as archive:
        info = tarfile.TarInfo("d.jsonl")
        info.size = len(LINES)
        archive.addfile(info, io.BytesIO(LINES))
    return out.getvalue()


def written(write, value):
    out = io.BytesIO()
    write(value, out)
    return out.getvalue()


TABLE = pa.Table.from_pylist(ROWS)
NPY = io.BytesIO()
np.save(NPY, np.ones(3))
KEYED = {f"k{i}": row for i, row in enumerate(ROWS)}
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}

READ = {
    "parquet_as.json": written(pq.write_table, TABLE),
    "arrow_as.parquet": written(feather.write_feather, TABLE),
    "d.feather": written(feather.write_feather, TABLE),
    "bz2_as.jsonl.gz": bz2.compress(LINES),
    "d.jsonlines": LINES,
    "d.jl": LINES,
    # Columns whose names begin as a file of another kind does.
    "ORCID.csv": b"ORCID,prompt,completion\n" + b"".join(b"1,q%d,a\n" % i for i in range(25)),
    "PARENT.csv": b"PARENT,prompt,completion\n" + b"".join(b"1,q%d,a\n" % i for i in range(25)),
    "FEA1.csv": b"FEA1,prompt,completion\n" + b"".join(b"1,q%d,a\n" % i for i in range(25)),
}

REFUSED = {
    "python.jsonl": ("".join(f"{row!r}\n" for row in ROWS).encode(), "a Python dict, no JSON"),
    "commas.jsonl": (LINES.replace(b"\n", b",\n"), "an object with a comma behind it"),
    "latin.jsonl": (LINES.replace(b"q", b"\xe9"), "not UTF-8 .* iconv -f LATIN1"),
    "yaml.jsonl": (b"- prompt: q\n  completion: a\n" * 20, "broken JSON at column 1"),
    "table.jsonl": (table(","), "a table with a header, no JSON lines: name it table.csv"),
    "tabs.jsonl": (table("\t"), "a table with a header, no JSON lines: name it tabs.tsv"),
    "lines.csv": (LINES, "it holds JSON lines: name it lines.jsonl"),
    "semi.csv": (table(";"), "its fields are parted by semicolons: write it with commas"),
    "tabs.csv": (table("\t"), "its fields are parted by tabs: name it tabs.tsv"),
    "commas.tsv": (table(","), "its fields are parted by commas: name it commas.csv"),
    "tar.jsonl": (tar(), "a tar archive: unpack it"),
    "tar.jsonl.gz": (tar(":gz"), "a tar archive inside: unpack it"),
    "twice.jsonl.gz": (gzip.compress(gzip.compress(LINES)), "a packed file inside a packed one"),
    "table.jsonl.gz": (gzip.compress(READ["parquet_as.json"]), "a packed file inside"),
    "pickle.jsonl": (pickle.dumps(ROWS), "a Python pickle: export its rows"),
    "orc.jsonl": (b"ORC\x08\x03" + b"\0" * 90, "an ORC file: export its rows"),
    "avro.jsonl": (b"Obj\x01\x04\x14avro.codec" + b"\0" * 90, "an Avro file: export its rows"),
    "pdf.jsonl": (b"%PDF-1.7\n" + b"x" * 99, "a PDF file: export its text"),
    "rar.jsonl": (b"Rar!\x1a\x07\x01" + b"\0" * 99, "a RAR archive: unpack it"),
    "lz4.jsonl": (b"\x04\x22\x4d\x18" + b"\0" * 99, r"compressed by lz4: unpack it \(lz4 -d\)"),
    "npy.jsonl": (NPY.getvalue(), "a .npy file of numbers: give rows"),
    "fea1.arrow": (b"FEA1" + b"\0" * 99, "a Feather file of version 1: write it again"),
    "answer.jsonl": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "an XML file"),
    "zeros.jsonl": (b"\0" * 1000, "nothing but zeros: get it again"),
    "keyed.json": (json.dumps(KEYED).encode(), r"jq -c '\.\[\]'"),
    "columns.json": (json.dumps(COLUMNS).encode(), "one object with a list for each column"),
    "pandas.json": (
        json.dumps({"prompt": {"0": "q"}, "completion": {"0": "a"}}).encode(),
        "one object of columns by the number of the row: save the table with",
    ),
    "rows.json": (json.dumps({"rows": [{"row": ROWS[0]}]}).encode(), "the rows under 'rows'"),
    "lists.jsonl": (lines([list(row.values()) for row in ROWS]), "row 3: the array"),
    "two.json": (json.dumps(ROWS[:3]).encode() * 2, "row 4: the array breaks off or is broken"),
    "tool_use.jsonl": (
        lines([{"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}] * 25),
        "the content of turn 0 is a list: make it a text",
    ),
    # More than one row: none of them is a file's wrapping.
    "answers.jsonl": (
        lines([{"question": "q", "answers": [{"answer": "a"}]}] * 5),
        "no chat format has the columns question, answers",
    ),
    "number.jsonl": (lines([{"question": "q", "answer": i} for i in range(25)]), "is the number 0"),
    # One row that is wrong, and no wrapping either.
    "one.jsonl": (lines([{"messages": [{"role": "alien", "content": "x"}]}]), "the role 'alien'"),
}  # fmt: skip


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_by_what_it_is(name, tmp_path):
    intake = check(open_sources([put(tmp_path, name, READ[name])]))
    assert intake.kept == 25


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_is_one_line(name, tmp_path):
    content, words = REFUSED[name]
    path = put(tmp_path, name, content)
    with pytest.raises(DataError, match=words) as caught:
        check(open_sources([path]))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["python.jsonl", "semi.csv"])
def test_the_command_that_is_named_mends_it(name, tmp_path):
    path = put(tmp_path, name, REFUSED[name][0])
    with pytest.raises(DataError) as caught:
        check(open_sources([path]))
    command = str(caught.value).partition("(python")[2].partition(f"'{' < '}")[0]
    program = command.partition("-c '")[2]
    new = tmp_path / f"new{path.suffix}"
    with path.open("rb") as old, new.open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdin=old, stdout=out, check=True)
    assert check(open_sources([new])).kept == 25


def test_rows_that_cannot_be_used_are_told_by_the_first_of_them(tmp_path):
    rows = [*ROWS[:3], {"prompt": "q", "completion": ""}, {"prompt": "", "completion": "a"}]
    path = put(tmp_path, "d.jsonl", lines(rows))
    said = describe(check(open_sources([path]))).splitlines()
    assert said[1:] == [f"the first unusable row: {path} line 4: the response is empty"]
    path = put(tmp_path, "e.jsonl", lines(rows[3:]))
    with pytest.raises(DataError) as caught:
        check(open_sources([path]))
    assert str(caught.value) == (
        f"not one row can be used: mend the data, or name its columns with --format-map; the "
        f"first: {path} line 1: the response is empty"
    )


def test_errors_of_one_kind_are_one_line():
    errors = [f"a line {i}: broken at column {i} ('x{i}')" for i in (1, 5, 9)]
    others = ["a line 7: empty", "b line 2: broken at column 3 ('y')", "no place"]
    assert summarize([errors[0], others[0], *errors[1:], *others[1:]], 20) == [
        f"{errors[0]} (the same: lines 5, 9)",
        *others,
    ]
    assert summarize(errors, 2) == [
        f"{errors[0]} (the same: line 5); the reading ended after 2 errors"
    ]


def test_a_huge_item_takes_five_times_its_size_at_most(tmp_path):
    """Of Python's own memory, from the file to the row that is looked at."""
    import tracemalloc

    rows = [ROWS[0], {"prompt": "q", "completion": "word " * 2_000_000}, ROWS[1]]
    content = json.dumps(rows, indent=1).encode()
    sources = open_sources([put(tmp_path, "d.json", content)])
    check(sources)
    tracemalloc.start()
    try:
        assert check(sources).kept == 3
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 10_000_000
