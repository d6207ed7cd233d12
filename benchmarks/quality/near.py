"""Near-duplicates, apart from the other garbage: how many planted ones the dedup stage finds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pyids.config import make_config
from pyids.encoders import load_encoder
from pyids.pipeline import prepare

from .pool import plant_near_duplicates, read_rows, text_of, write_rows
from .prepare import ENCODER_TOKENS


def semdedup_threshold(
    folder: Path,
    *,
    n: int = 1000,
    thresholds: tuple[float, ...] = (0.95, 0.98, 0.99),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Plant edited copies of rows in the clean pool; return for each threshold what was dropped."""
    rows = read_rows(folder / "clean.jsonl")
    copies = plant_near_duplicates(rows, n, seed)
    encoder = load_encoder("all-MiniLM-L6-v2", max_length=ENCODER_TOKENS)
    vectors = encoder.encode([text_of(row) for row in copies]).astype(np.float16)
    write_rows(folder / "near.jsonl", [*rows, *copies])
    np.save(folder / "near.npy", np.concatenate([np.load(folder / "clean.npy"), vectors]))
    found = []
    for threshold in thresholds:
        output = folder / "runs" / "near"
        shutil.rmtree(output, ignore_errors=True)
        config = make_config(
            data=str(folder / "near.jsonl"), embeddings_file=str(folder / "near.npy"), budget=10,
            keep_duplicates=True, clusters=256, semdedup_threshold=threshold,
            output_dir=str(output),
        )  # fmt: skip
        prepare.prepare(config).close()
        lines = (output / "near_duplicates.jsonl").read_bytes().splitlines()
        gone = np.array([orjson.loads(line)["row_id"] for line in lines])
        found.append({
            "threshold": threshold,
            "planted_found": float((gone >= len(rows)).sum() / n),
            "others_dropped": float((gone < len(rows)).sum() / len(rows)),
        })  # fmt: skip
    return found
