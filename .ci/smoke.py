"""Tries an installed wheel where nothing but it and what it requires is installed."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import pyids
from pyids import _core

vectors = np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32)
first, second = (
    pyids.KMeans(8, random_state=0, device="cpu", n_threads=n).fit(vectors) for n in (1, 2)
)
assert (first.labels_ == second.labels_).all()

with tempfile.TemporaryDirectory() as folder:
    pool, run = Path(folder) / "pool.jsonl", Path(folder) / "run"
    np.save(Path(folder) / "vectors.npy", vectors)
    rows = ({"prompt": f"Say {n}.", "completion": f"{n}."} for n in range(400))
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = str(Path(sys.executable).with_name("pyids"))
    command = [program, "select", str(pool), "--method", "km-closest", "--budget", "40"]
    command += ["--embeddings-file", f"{folder}/vectors.npy", "--clusters", "8"]
    subprocess.run([*command, "--output-dir", str(run)], check=True, stdout=subprocess.DEVNULL)
    selected = (run / "selected-km-closest.jsonl").read_text().splitlines()
    assert len({json.loads(line)["_pyids_id"] for line in selected}) == 40
    subprocess.run([program, "report", str(run)], check=True, stdout=subprocess.DEVNULL)
    assert (run / "report.html").stat().st_size > 10_000
print(f"pyids {pyids.__version__} works with Python {sys.version.split()[0]}: {_core.__file__}")
