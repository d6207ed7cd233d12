"""Our encoders beside sentence-transformers' and wordllama's own, interleaved in one process.

    python benchmarks/encoders.py POOL.jsonl[.gz] [--rows 512] [--static-rows 20000]

Same model, texts and threads for all: MiniLM on texts of every length, cut at its 256 tokens, and
static vectors on the short rows of POOL. Rates are texts by the median of the repetitions; `cpu` by
processor seconds of all threads, which a busy machine distorts least. Cosines are to the library's
float32 vectors. Writes ``benchmarks/results/encoders.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from measured import read_pool

from pyids.chat.template import text_of
from pyids.encoders import load_encoder

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "encoders.json"
MINILM = "all-MiniLM-L6-v2"
SHORT = 256  # characters
Encode = Callable[[list[str]], np.ndarray]
Count = Callable[[list[str]], list[int]]


def texts_of(pool: Path) -> Iterator[str]:
    for row in read_pool(pool):
        yield text_of(row["messages"])


def minilm() -> tuple[dict[str, Encode], Count]:
    """Encoders, the one that the others are compared with first, and what counts tokens."""
    from sentence_transformers import SentenceTransformer

    ours, half = load_encoder(MINILM), load_encoder(MINILM, dtype="bfloat16")
    library = SentenceTransformer(str(ours.folder), device="cpu")

    def library_half(texts: list[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return library.encode(texts, show_progress_bar=False)

    def count(texts: list[str]) -> list[int]:
        tokens = library.tokenizer(texts, truncation=True, max_length=ours.limit)
        return [len(ids) for ids in tokens["input_ids"]]

    encoders = {
        "sentence-transformers": lambda texts: library.encode(texts, show_progress_bar=False),
        "pyids": ours.encode,
        "sentence-transformers, bfloat16 products": library_half,
        "pyids, bfloat16": half.encode,
    }
    return encoders, count


def static() -> tuple[dict[str, Encode], Count]:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer
    from wordllama.inference import WordLlamaInference

    ours = load_encoder("wordllama")
    tokenizer = Tokenizer.from_file(str(ours.table.tokenizer))
    tokenizer.no_padding()
    library = WordLlamaInference(
        load_file(ours.table.weights)["embedding.weight"],
        Tokenizer.from_file(str(ours.table.tokenizer)),
    )

    def count(texts: list[str]) -> list[int]:
        tokens = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding.ids) for encoding in tokens]

    encoders = {
        "wordllama": lambda texts: library.embed(texts, norm=True),
        "pyids": ours.encode,
    }
    return encoders, count


def compare(encoders: dict[str, Encode], texts: list[str], repetitions: int) -> dict:
    wall: dict[str, list[float]] = {name: [] for name in encoders}
    cpu: dict[str, list[float]] = {name: [] for name in encoders}
    vectors: dict[str, np.ndarray] = {}
    for encode in encoders.values():
        encode(texts[:64])  # weights, kernels
    for _ in range(repetitions):
        for name, encode in encoders.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            vectors[name] = encode(texts)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    anchor = next(iter(encoders))
    unit = {
        name: x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
        for name, x in vectors.items()
    }
    results = {}
    for name in encoders:
        cosine = (unit[name] * unit[anchor]).sum(1)
        results[name] = {
            "rows_a_second": len(texts) / statistics.median(wall[name]),
            "rows_a_cpu_second": len(texts) / statistics.median(cpu[name]),
            "times_as_fast": statistics.median(wall[anchor]) / statistics.median(wall[name]),
            "least_cosine": float(cosine.min()),
            "seconds": wall[name],
            "cpu_seconds": cpu[name],
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--static-rows", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # the tokenizers'

    texts = list(texts_of(options.pool))
    short = [text for text in texts if 0 < len(text) <= SHORT]
    tables = {
        "MiniLM": (minilm, texts[:: max(1, len(texts) // options.rows)][: options.rows]),
        "static": (static, short[: options.static_rows]),
    }
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        "versions": {
            name: version(name)
            for name in (
                "torch",
                "transformers",
                "sentence-transformers",
                "wordllama",
                "tokenizers",
            )
        },
    }
    for table, (load, rows) in tables.items():
        encoders, count = load()
        tokens = statistics.mean(count(rows))
        measured = compare(encoders, rows, options.repetitions)
        results[table] = {"rows": len(rows), "tokens_a_row": tokens, "encoders": measured}
        print(f"{table}: {len(rows)} rows of {tokens:.0f} tokens, {options.threads} threads")
        for name, found in measured.items():
            print(
                f"  {name:42} {found['rows_a_second']:9.1f} rows/s "
                f"{found['rows_a_cpu_second']:9.1f} a cpu second {found['times_as_fast']:6.2f}x "
                f"cosine >= {found['least_cosine']:.6f}",
                flush=True,
            )
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
