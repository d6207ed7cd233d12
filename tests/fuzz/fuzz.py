"""What reads bytes from outside, under bytes that nobody means.

Each target takes any bytes and may answer with a `PyidsError` of one or a few lines, never with
another exception. With atheris (``pip install atheris``) a target is searched by coverage::

    python -P tests/fuzz/fuzz.py scores -max_total_time=3600

`test_fuzz.py` runs every target on its seeds and on seeded mutations of them.
"""

from __future__ import annotations

import gzip
import io
import random
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pyids.chat.formats import BadRow, UnusableRow, detect_format, to_messages
from pyids.chat.rawjson import parse
from pyids.config import load_config, make_config
from pyids.data.ingest import check
from pyids.data.readers import Problem, Reader
from pyids.data.sources import open_sources
from pyids.errors import PyidsError
from pyids.pipeline.identity import saved_config
from pyids.scoring.told import read_scores
from pyids.store.files import read_sealed, write_sealed
from pyids.store.folder import Store
from pyids.store.ledger import load_npy, read_entry, save_npy
from pyids.store.manifest import verify, write_manifest

PLACE = Path(tempfile.mkdtemp(prefix="pyids-fuzz-"))

_ROWS = [
    {"prompt": "a é", "completion": "b", "n": 1.5, "t": None},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "i", "input": "", "output": "o", "tools": "[]"},
]


def _reader(kind: str, compression: str | None = None) -> Callable[[bytes], None]:
    suffix = {"json": ".json"}.get(kind, f".{kind}") + {"gzip": ".gz", None: ""}[compression]

    def target(content: bytes) -> None:
        file = PLACE / f"rows{suffix}"
        file.write_bytes(content)
        for line, raw, row in Reader(str(file), kind, compression):
            assert line >= 0
            assert isinstance(raw, bytes)
            if isinstance(row, Problem):
                assert row.text
                continue
            parse(raw)
            form = detect_format(row)
            if form is not None:
                try:
                    to_messages(row, form)
                except (BadRow, UnusableRow) as error:
                    _said(str(error))
        if content and compression is None:
            check(open_sources([str(file)]))

    return target


def _scores(content: bytes) -> None:
    file = PLACE / "scores.jsonl"
    file.write_bytes(content)
    for row_id, score in read_scores(file).items():
        assert type(row_id) is int
        assert type(score) is float


def _ledger(content: bytes) -> None:
    array = PLACE / "ledger" / "x.npy"
    if not array.exists():
        array.parent.mkdir(exist_ok=True)
        save_npy(array, [1, 2, 3], {"a": 1})
    entry = array.with_suffix(".json")
    good = entry.read_bytes()
    try:
        entry.write_bytes(content)
        read_entry(entry, {"a": 1})
        assert load_npy(array).tolist() == [1, 2, 3]
        Store(array.parent).check_claim({"a": 1})
    finally:
        entry.write_bytes(good)


def _array(content: bytes) -> None:
    array = PLACE / "ledger" / "y.npy"
    array.parent.mkdir(exist_ok=True)
    save_npy(array, [1, 2, 3], {"a": 1})
    array.write_bytes(content)
    assert load_npy(array).tolist() == [1, 2, 3]


def _manifest(content: bytes) -> None:
    folder = PLACE / "manifest"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(content)
    (folder / "identity.json").write_bytes(content)
    for line in verify(folder):
        assert line
    write_manifest(folder, {})


def _config(content: bytes) -> None:
    folder = PLACE / "config"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_bytes(content)
    saved_config(folder)
    make_config(**load_config(folder / "config.yaml"))


def _table() -> pa.Table:
    return pa.table({"prompt": ["a", "b"], "completion": ["c", None], "x": [[1.0], None]})


def _parquet_bytes() -> bytes:
    file = io.BytesIO()
    pq.write_table(_table(), file)
    return file.getvalue()


def _arrow_bytes() -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, _table().schema) as writer:
        writer.write_table(_table())
    return file.getvalue()


def _sealed_bytes(name: str) -> bytes:
    file = PLACE / name
    write_sealed(file, {"inputs": {"a": 1}, "files": {}})
    assert read_sealed(file)
    return file.read_bytes()


_JSONL = b"".join(orjson.dumps(row) + b"\n" for row in _ROWS)
_CONFIG = b"data: [a.jsonl]\nbudget: 5%\nseed: 0\nclusters: auto\nencoder: http://h/v1#m\n"
_SCORES = b'{"_pyids_id": 7, "score": 0.5}\n{"_pyids_id": 9, "score": null}\n'

TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "jsonl": (_reader("jsonl"), [_JSONL]),
    "json": (_reader("json"), [orjson.dumps(_ROWS)]),
    "csv": (_reader("csv"), [b'prompt,completion\na,"b\nc"\n"d""e",f\n']),
    "gzip": (_reader("jsonl", "gzip"), [gzip.compress(_JSONL)]),
    "parquet": (_reader("parquet"), [_parquet_bytes()]),
    "arrow": (_reader("arrow"), [_arrow_bytes()]),
    "scores": (_scores, [_SCORES]),
    "ledger": (_ledger, [_sealed_bytes("x.json"), b'{"files": 7, "inputs": [], "_format": 2}']),
    "array": (_array, [b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False}"]),
    "manifest": (_manifest, [_sealed_bytes("manifest.json"), b'{"files": {"a": 1}}']),
    "config": (_config, [_CONFIG]),
}


def one(name: str, content: bytes) -> None:
    """Give bytes to a target; only a `PyidsError` of some lines may come of it."""
    try:
        TARGETS[name][0](content)
    except PyidsError as error:
        _said(str(error))


def _said(message: str) -> None:
    assert 0 < len(message) < 20_000


def mutations(seed: bytes, count: int, rng: random.Random) -> list[bytes]:
    """Return `count` mutations of a seed: bits, bytes, cuts, doublings, odd words."""
    odd = [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"1e999", b"NaN", b"[" * 300, b'"', b"\n", b"\r"]
    odd += [b"\\ud800", b"-1", b"99999999999999999999", b"{}", b"null", b"*a", b"!!python/name:os"]
    made = []
    for _ in range(count):
        content = bytearray(seed)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(content) + 1)
            kind = rng.randrange(5)
            if kind == 0 and content:
                content[place % len(content)] ^= 1 << rng.randrange(8)
            elif kind == 1:
                content[place:place] = rng.choice(odd)
            elif kind == 2:
                del content[place : place + rng.randint(1, 40)]
            elif kind == 3:
                content[place:place] = content[place : place + rng.randint(1, 60)]
            else:
                content[place : place + 4] = rng.randbytes(4)
        made.append(bytes(content))
    return made


def main() -> None:
    """Search one target by coverage, with atheris."""
    import atheris

    name, arguments = sys.argv[1], [sys.argv[0], *sys.argv[2:]]
    corpus = PLACE / f"corpus-{name}"
    corpus.mkdir()
    for number, seed in enumerate(TARGETS[name][1]):
        (corpus / str(number)).write_bytes(seed)
    # Import again what is searched, such that its branches are counted.
    for module in [module for module in sys.modules if module.partition(".")[0] == "pyids"]:
        del sys.modules[module]
    sys.path.insert(0, str(Path(__file__).parent))
    with atheris.instrument_imports(include=["pyids"]):
        instrumented = import_module("fuzz")
    atheris.Setup([*arguments, str(corpus)], lambda content: instrumented.one(name, content))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
