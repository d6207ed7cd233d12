"""Killed at a random moment in each stage and started again: the same bytes as undisturbed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

import pyids

PYIDS = str(Path(sys.executable).with_name("pyids"))

# Each stage begins when the file before it stands; a pattern of the run folder.
BEGINS = {
    "read": ".lock",
    "embed": "config.yaml",
    "cluster": "embeddings/*.npy",
    "draw": "centroids.json",
    "train": "rounds/1/selected.json",
    "score": "rounds/1/checkpoint",
    "re-weight": "rounds/1/scores.parquet",
    "second draw": "rounds/1/weights.json",
    "export": "rounds/2/checkpoint",
}


def start(pool: Path, folder: Path) -> subprocess.Popen:
    command = [PYIDS, "-q", "run", pool, "--budget", "6", "--rounds", "2", "--clusters", "2"]
    command += [
        "--probes-per-cluster",
        "2",
        "--max-length",
        "64",
        "--lora-rank",
        "2",
        "--oversample",
        "2",
    ]
    command += ["--output-dir", folder]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)


def wait_for(process: subprocess.Popen, folder: Path, pattern: str) -> bool:
    """Wait until a file stands; False when the process has ended without it."""
    while not any(folder.glob(pattern)):
        if process.poll() is not None:
            return any(folder.glob(pattern))
        time.sleep(0.002)
    return True


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_in_every_stage_and_resumed(tmp_path):
    rows = [{"prompt": f"What is {n} plus one?", "completion": f"{n + 1}."} for n in range(24)]
    pool = tmp_path / "pool.jsonl"
    pool.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    undisturbed = tmp_path / "undisturbed"
    assert start(pool, undisturbed).wait() == 0
    whole = (undisturbed / "selected.jsonl").read_bytes()
    assert whole.count(b"\n") == 6

    rng = random.Random(0)
    disturbed = tmp_path / "disturbed"
    killed_in = []
    for stage, pattern in BEGINS.items():
        process = start(pool, disturbed)
        if wait_for(process, disturbed, pattern):
            # Stages of this tiny run last from milliseconds to seconds: so do the delays.
            time.sleep(10 ** rng.uniform(-3, 0))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed_in.append(stage)
    assert len(killed_in) >= len(BEGINS) - 1, killed_in  # the last may have come to its end
    assert start(pool, disturbed).wait() == 0
    assert (disturbed / "selected.jsonl").read_bytes() == whole
    verified = subprocess.run([PYIDS, "verify", disturbed], capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout
    for name in ("1/weights.npy", "2/selected.npy"):
        file = f"rounds/{name}"
        assert (disturbed / file).read_bytes() == (undisturbed / file).read_bytes()


@pytest.mark.parametrize("stale", [None, "before the draw"])
def test_what_was_killed_before_it_noted_its_round_ends_with_the_same_bytes(stale, pool, tmp_path):
    found = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        with pyids.Selection.open(folder, pool.options(rounds=2)) as selection:
            selection.ask()
            selection.tell({int(row): 1.0 for row in selection.probes()})
            before = (folder / "rounds" / "state.json").read_bytes()
            selection.ask()
        if name == "killed":  # after the round's ledger entry, before its note
            (folder / "rounds" / "state.json").unlink()
            if stale is not None:
                (folder / "rounds" / "state.json").write_bytes(before)
        with pyids.Selection.open(folder) as selection:
            selection.ask()
            selection.finish()
        found.append((folder / "rounds" / "state.json").read_bytes())
    assert found[0] == found[1]
