"""Every scorer, quality signal and encoder once: seconds and peak memory, each in its own process.

    python benchmarks/models.py POOL.jsonl[.gz] [--rows 128] [--only KIND:NAME ...]

All but the encoders see the same rows of POOL, evenly spaced, cut at 512 tokens, and a checkpoint
that was trained on as many others; four neighbors make a cluster. The language model is the
default one. The reward model and the classifier are its body under a head that was never trained:
they cost what trained ones cost. The judge and the embeddings endpoint are a server on this machine
that answers at once. Static vectors are made of the whole pool.
Writes ``benchmarks/results/models.json`` and the second table of ``docs/methods.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from measured import in_own_process, peak_kib, read_pool
from page import fill

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "models.json"
MODEL = "smollm2-135m-instruct"
MAX_LENGTH = 512
ROWS_A_CLUSTER = 4


def names() -> list[str]:
    from pyids.registry import SCORERS, SIGNALS

    encoders = (
        "all-MiniLM-L6-v2",
        "all-MiniLM-L6-v2, bfloat16",
        "wordllama",
        MODEL,
        f"{MODEL}:last_token",
        "endpoint",
    )
    return [
        *(f"scorer:{name}" for name in SCORERS.names()),
        *(f"quality:{name}" for name in SIGNALS.names()),
        *(f"encoder:{name}" for name in encoders),
    ]


def read(pool: Path) -> list[list[dict[str, Any]]]:
    return [row["messages"] for row in read_pool(pool)]


def prepare(conversations: list, rows: int, folder: Path) -> None:
    """Write the rows, a checkpoint trained on others, and a classifier."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from pyids.models import finetune, hf, hub, load

    step = len(conversations) // rows
    seen, others = conversations[::step][:rows], conversations[step // 2 :: step][:rows]
    (folder / "rows.json").write_text(json.dumps(seen))
    ref = hub.resolve_model(MODEL)
    finetune.finetune(
        ref, others, output_dir=folder / "checkpoint", method="lora", max_length=MAX_LENGTH
    )
    torch.manual_seed(0)
    with hf.quiet():
        head = AutoModelForSequenceClassification.from_pretrained(
            hub.local_folder(ref), num_labels=1
        )
        head.save_pretrained(folder / "classifier")
        load.load_tokenizer(ref).save_pretrained(folder / "classifier")


class Server:
    """An OpenAI-compatible endpoint that rates 7 and embeds every text alike."""

    def __enter__(self) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                texts = body.get("input", [])
                value = {
                    "choices": [{"message": {"role": "assistant", "content": "[[7]]"}}],
                    "data": [{"index": i, "embedding": [1.0] * 384} for i in range(len(texts))],
                    "usage": {"total_tokens": 1},
                }
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def scorer(name: str, folder: Path, rows: list, url: str) -> Callable[[], np.ndarray]:
    from pyids.models import hub
    from pyids.models.endpoint import Endpoint
    from pyids.models.judge import Judge
    from pyids.models.reward import RewardModel
    from pyids.scoring import probes, scorers

    raters = {
        "reward": lambda: RewardModel(hub.resolve_model(str(folder / "classifier")), MAX_LENGTH),
        "judge": lambda: Judge(Endpoint(url, "a-model")),
    }
    options = probes.ScoringOptions(
        max_length=MAX_LENGTH, rater=raters[name]() if name in raters else None
    )
    models = probes.Models(hub.resolve_model(MODEL), folder / "checkpoint")
    clusters = (np.arange(len(rows)) // ROWS_A_CLUSTER).astype(np.int32)
    return lambda: scorers.score(name, models, rows, clusters, options).values


def signal(name: str, folder: Path, rows: list) -> Callable[[], np.ndarray]:
    from pyids.scoring.cache import score_rows
    from pyids.scoring.signals import make_signal

    spec = f"{name}:{folder / 'classifier'}" if name in ("reward", "classifier") else name
    found = make_signal(spec, default_model=MODEL)
    assert found is not None
    return lambda: score_rows(found, rows)


def encoder(name: str, rows: list, url: str) -> Callable[[], np.ndarray]:
    from pyids.chat.template import text_of
    from pyids.encoders import load_encoder

    base, _, dtype = name.partition(", ")
    found = load_encoder(
        f"{url}#a-model" if name == "endpoint" else base,
        max_length=MAX_LENGTH if base.startswith(MODEL) else None,
        dtype=dtype or "float32",
    )
    return lambda: found.encode([text_of(row) for row in rows])


def measure(name: str, pool: Path, folder: Path, threads: int) -> None:
    """Run one of them in this process and print what it took as JSON."""
    import torch

    torch.set_num_threads(threads)
    kind, _, what = name.partition(":")
    everything = name == "encoder:wordllama" or name == "quality:length"
    rows = read(pool) if everything else json.loads((folder / "rows.json").read_text())
    with Server() as url:
        if kind == "scorer":
            work = scorer(what, folder, rows, url)
        elif kind == "quality":
            work = signal(what, folder, rows)
        else:
            work = encoder(what, rows, url)
        start = time.perf_counter()
        values = work()
        seconds = time.perf_counter() - start
    assert len(values) == len(rows)
    peak_mib = round(peak_kib() / 1024)
    found = {"rows": len(rows), "seconds": round(seconds, 2), "peak_mib": peak_mib}
    print(json.dumps({"kind": kind, "name": what, **found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", help="measure these again, such as scorer:loss")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.pool, options.folder, options.threads)
        return
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(read(options.pool), options.rows, Path(folder))
        shared = [str(options.pool), "--folder", folder, "--threads", str(options.threads)]
        for name in options.only or names():
            measured.append(in_own_process(__file__, *shared, "--measure", name))
    if options.only:
        before = json.loads(RESULTS.read_text())["measured"]
        again = {(m["kind"], m["name"]): m for m in measured}
        measured = [again.get((m["kind"], m["name"]), m) for m in before]
    result = {"model": MODEL, "max_length": MAX_LENGTH, "threads": options.threads}
    RESULTS.write_text(json.dumps({**result, "measured": measured}, indent=1) + "\n")
    lines = [
        f"SmolLM2-135M, at most {MAX_LENGTH} tokens a row, torch on {options.threads} thread(s), "
        "loading the weights included:",
        "",
        "| kind | name | rows | seconds | peak MiB of the process |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {m['kind']} | {m['name']} | {m['rows']:,} | {m['seconds']:.1f} | {m['peak_mib']} |"
            for m in measured
        ),
    ]
    fill(ROOT / "docs" / "methods.md", "models", lines)


if __name__ == "__main__":
    main()
