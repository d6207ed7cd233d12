"""`make bench-peers`: what it costs to go through a large file once, beside semhash and datatrove.

    make bench-peers       200,000 and 50,000 generated rows, each tool in a process of its own
    ... peers.py --rows 20000 --seconds 600        fewer, and give each tool up after so long

The jobs are not the same, and are named in the table: pyids reads, drops exact repeats, embeds
(256-d static vectors), clusters and draws 1%, and drops near-duplicates inside clusters where it
says so; semhash embeds with the same static vectors and finds near-duplicates among all rows;
datatrove finds them by the words that rows share (MinHash), and looks at no meaning. One process
of one thread each, CPU seconds of it and of its children.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured import make_venv, peak_kib

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-peers"
PINNED = ("semhash==0.5.0", "datatrove==0.10.1", "regex", "nltk", "spacy", "xxhash<4")
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
THRESHOLD, CLUSTERS = 0.95, 1024


def pyids_select(pool: Path, folder: Path, **more: Any) -> None:
    import pyids

    pyids.select(
        "km-random", data=str(pool), budget="1%", encoder="wordllama", clusters=CLUSTERS,
        threads=1, output_dir=str(folder / "run"), **more,
    )  # fmt: skip


def pyids_select_near(pool: Path, folder: Path) -> None:
    pyids_select(pool, folder, semdedup_threshold=THRESHOLD)


def semhash_duplicates(pool: Path, folder: Path) -> None:
    from model2vec import StaticModel
    from safetensors.numpy import load_file
    from semhash import SemHash
    from tokenizers import Tokenizer

    weights = Path(os.environ["WORDLLAMA"])
    vectors = load_file(weights / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    tokens = weights / "tokenizers" / "l2_supercat_tokenizer_config.json"
    model = StaticModel(vectors.astype("float32"), Tokenizer.from_file(str(tokens)))
    with pool.open("rb") as file:
        texts = ["\n".join(m["content"] for m in json.loads(line)["messages"]) for line in file]
    found = SemHash.from_records(texts, model=model).self_deduplicate(threshold=THRESHOLD)
    (folder / "kept").write_text(str(len(found.selected)))


def datatrove_minhash(pool: Path, folder: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    def adapt(_: Any, data: dict[str, Any], path: str, number: int) -> dict[str, Any]:
        text = "\n".join(message["content"] for message in data["messages"])
        return {"text": text, "id": f"{path}/{number}", "metadata": {}}

    def reader() -> JsonlReader:
        return JsonlReader(str(pool.parent), glob_pattern=pool.name, adapter=adapt)

    part = {name: str(folder / name) for name in ("signatures", "buckets", "removed", "kept")}
    for step in (
        [reader(), MinhashDedupSignature(output_folder=part["signatures"])],
        [MinhashDedupBuckets(input_folder=part["signatures"], output_folder=part["buckets"])],
        [MinhashDedupCluster(input_folder=part["buckets"], output_folder=part["removed"])],
        [reader(), MinhashDedupFilter(input_folder=part["removed"]), JsonlWriter(part["kept"])],
    ):
        tasks = 14 if isinstance(step[0], MinhashDedupBuckets) else 1
        logs = tempfile.mkdtemp(dir=folder)
        LocalPipelineExecutor(pipeline=step, tasks=tasks, workers=1, logging_dir=logs).run()


JOBS: dict[str, tuple[Callable[..., None], str]] = {
    "pyids": (pyids_select, "read, exact repeats, embed, k-means, draw 1%, export"),
    "pyids, near": (pyids_select_near, "the same, and near-duplicates inside clusters"),
    "semhash": (semhash_duplicates, "read, embed, near-duplicates among all rows"),
    "datatrove": (datatrove_minhash, "read, MinHash of words, write what is left"),
}


def work(name: str, pool: Path) -> None:
    """Do one job, and report on the last line."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        JOBS[name][0](pool, Path(folder))
        wall = time.perf_counter() - began
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    cpu = sum(used.ru_utime + used.ru_stime for used in (own, children))
    print(json.dumps({"cpu_seconds": cpu, "seconds": wall, "peak_mb": peak_kib() / 1024}))


def measure(name: str, pool: Path, rows: int, seconds: float) -> dict[str, Any]:
    ours = name.startswith("pyids")
    python = Path(sys.executable) if ours else VENV / "bin" / "python"
    spec = importlib.util.find_spec("wordllama")
    assert spec is not None
    assert spec.origin is not None
    one_thread = {f"{v}_NUM_THREADS": "1" for v in ("OMP", "OPENBLAS", "MKL", "RAYON")}
    env = {**os.environ, **one_thread, "WORDLLAMA": str(Path(spec.origin).parent)}
    result: dict[str, Any] = {"tool": name, "job": JOBS[name][1], "rows": rows}
    try:
        done = subprocess.run(
            [str(python), "-W", "ignore", __file__, "--work", name, "--pool", str(pool)],
            env=env, capture_output=True, text=True, check=True, timeout=seconds,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{name}: {error.stderr[-2000:]}") from None
    except subprocess.TimeoutExpired:
        result |= {"given_up_after_seconds": seconds}
    else:
        found = json.loads(done.stdout.strip().splitlines()[-1])
        result |= found | {"us_a_row": 1e6 * found["cpu_seconds"] / rows}
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 50_000])
    parser.add_argument("--seconds", type=float, default=3600, help="give a tool up after so long")
    parser.add_argument("--work", choices=tuple(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--pool", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.pool)
        return
    make_venv(VENV, PINNED)
    from scale import generate  # needs pyids, which the others' interpreter has not

    with tempfile.TemporaryDirectory() as scratch:
        results = []
        for rows in given.rows:
            pool = Path(scratch) / str(rows)
            generate(pool, rows, 16)
            results += [measure(name, pool / "pool.jsonl", rows, given.seconds) for name in JOBS]
    RESULTS.write_text(json.dumps({"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
