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
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pyids
from pyids.chat.formats import BadRow, UnusableRow, detect_format, to_messages
from pyids.chat.rawjson import parse
from pyids.config import load_config, make_config
from pyids.data.ingest import check
from pyids.data.readers import Problem, Reader
from pyids.data.sources import open_sources
from pyids.errors import PyidsError
from pyids.models.gguf import convert_gguf
from pyids.pipeline.identity import saved_config
from pyids.sampling import allocate, sample_by_cluster
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


class Bytes:
    """Arrays made of bytes from outside: any shape, dtype, order and values."""

    def __init__(self, content: bytes) -> None:
        self.left = content

    def number(self, stop: int) -> int:
        """Take a number below `stop`; 0 at the end."""
        taken, self.left = self.left[:2], self.left[2:]
        return int.from_bytes(taken, "little") % stop

    def array(self, *shape: int) -> np.ndarray:
        """Take an array of one of many dtypes, as it lies or turned about."""
        kinds = ["<f8", "<f4", "<f2", ">f4", "<i8", "<i4", "|u1", "|b1", "<u8", "<i2"]
        dtype = np.dtype(kinds[self.number(len(kinds))])
        size = int(np.prod(shape)) * dtype.itemsize
        taken, self.left = self.left[:size], self.left[size:]
        array = np.frombuffer(taken.ljust(size, b"\1"), dtype).reshape(shape)
        return (array, array[::-1], np.asfortranarray(array), array.astype(float))[self.number(4)]

    def small(self, *shape: int, low: int = 0, high: int = 8, of: type = int) -> np.ndarray:
        """Take an array that mostly fits: small numbers; else any."""
        if self.number(8) == 0:
            return self.array(*shape)
        size = int(np.prod(shape))
        taken, self.left = self.left[:size], self.left[size:]
        values = np.frombuffer(taken.ljust(size, b"\3"), np.uint8).astype(np.int64)
        return (low + values % (high - low)).astype(of).reshape(shape)


def _given(content: bytes, call: Callable[[Bytes], None]) -> None:
    """Call with arrays; what does not fit is a ValueError or a TypeError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(Bytes(content))
    except (ValueError, TypeError) as error:
        _said(str(error))


def _sampler(content: bytes) -> None:
    def call(some: Bytes) -> None:
        n, k = some.number(40), 1 + some.number(6)
        labels = some.small(n + some.number(9) // 8, low=-(some.number(9) // 8), high=k)
        quotas = some.small(k, high=5)
        options: dict[str, Any] = {"seed": some.number(9), "n_threads": some.number(4) or None}
        weights = ({}, {"weights": (0, 9)}, {"log_weights": (-9, 9)})[some.number(3)]
        for name, (low, high) in weights.items():
            options[name] = some.small(n, low=low, high=high, of=float)
        if some.number(3) == 0:
            options["row_ids"] = np.cumsum(some.small(n, low=1))
        if some.number(3) == 0:
            options["exclude"] = np.unique(some.small(n // 3, high=max(1, n)))
        if some.number(3) == 0:
            options["floors"] = some.small(k, 2, low=-9, high=0, of=float)
        options["allow_fewer"] = some.number(4) > 0
        drawn = sample_by_cluster(labels, quotas, **options)
        assert len(set(drawn.tolist())) == len(drawn) <= n + 1
        allocate(some.number(50), some.small(k, of=float), some.small(k, high=50))

    _given(content, call)


def _kmeans(content: bytes) -> None:
    def call(some: Bytes) -> None:
        n, d, k = some.number(30), 1 + some.number(9), 1 + some.number(8)
        rows = some.small(n, d, low=-4, of=(np.float16, np.float32, float)[some.number(3)])
        weights = some.small(n, of=float) if some.number(2) else None
        options = {
            "metric": ("euclidean", "cosine")[some.number(2)],
            "algorithm": ("lloyd", "two-level")[some.number(2)],
            "init": some.small(k, d) if some.number(2) else ("random", "k-means++")[some.number(2)],
        }
        model = pyids.KMeans(k, max_iter=3, n_threads=2, device="cpu", **options)
        model.fit([rows[: n // 2], rows[n // 2 :]] if some.number(2) else rows, None, weights)
        assert model.labels_.shape == (n,)
        assert 0 <= model.labels_.min() <= model.labels_.max() < k
        assert np.isfinite(model.cluster_centers_).all()
        model.predict(some.small(some.number(9), d))

    _given(content, call)


def _gguf(content: bytes) -> None:
    file = PLACE / "model.gguf"
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYIDS_CACHE", str(PLACE / "cache"))
        convert_gguf(file)


def _gguf_bytes() -> bytes:
    """Return the front of a GGUF file: two strings, a number, a list, one tensor without data."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    strings = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}
    front = b"GGUF" + struct.pack("<IQQ", 3, 1, 4)
    for name, value in strings.items():
        front += text(name) + struct.pack("<I", 8) + text(value)
    front += text("llama.block_count") + struct.pack("<II", 4, 1)
    front += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    return front + text("output.weight") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0) + bytes(64)


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
    "sampler": (_sampler, [bytes(range(256)), bytes(400)]),
    "kmeans": (_kmeans, [bytes(range(256)), struct.pack("<300e", *range(300))]),
    "gguf": (_gguf, [_gguf_bytes()]),
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
