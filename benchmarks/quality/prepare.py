"""What trials need, made once and kept: splits, pools with vectors, the model, run folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from pyids.config import make_config
from pyids.encoders import load_encoder
from pyids.pipeline import prepare as prepare_module

from .model import NAME, pretrain, warm_up
from .pool import (
    GARBAGE_SHARE,
    ROW_KINDS,
    TOPIC_KINDS,
    UNSEEN_KINDS,
    Row,
    Split,
    plant,
    read_rows,
    split,
    stand_in,
    text_of,
    write_rows,
)

# As the vectors that come with the rows were made.
ENCODER_TOKENS = 128
# Peak learning rate for a model that reads: enough for the form, too little to learn much else.
WARM_UP_RATE = 3e-5
# Procedural rows of the second pool before its held-out rows are taken out.
SECOND_ROWS = 6000
# Held out of each procedural task, of which there are twice as many as other skills.
SECOND_PER_TASK = 4
KINDS = (*TOPIC_KINDS, *ROW_KINDS)
# name: the kinds of garbage planted in it
POOLS: dict[str, tuple[str, ...]] = {
    "clean": (),
    "dev-garbage": tuple(kind for kind in KINDS if kind not in UNSEEN_KINDS),
    "test-garbage": KINDS,
}


def prepare(
    folder: Path,
    rows_path: Path | None,
    *,
    n_stand_in: int = 12_000,
    per_skill: int = 40,
    pretrain_tokens: int = 4_000_000,
    threads: int = 2,
    dtype: str = "bfloat16",
    small_model: bool = True,
) -> Path | None:
    """Make what is missing in `folder`; return the path of the small model.

    With another model (`small_model` False) none is trained, and no pool to develop on is made, but
    the second one: half procedural tasks, half rows of the clean pool.
    """
    import torch

    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    rows, vectors = _load(folder, rows_path, n_stand_in)
    parts = split(rows, per_skill)
    for name, held_out in (("dev", parts.dev), ("test", parts.test), ("warm-up", parts.warm_up)):
        write_rows(folder / f"{name}.jsonl", held_out)
    for name, kinds in POOLS.items():
        if name.startswith("dev") and not small_model:
            continue
        if not (folder / f"{name}.npy").exists():
            planted = plant(parts.pool, kinds, GARBAGE_SHARE, seed=1) if kinds else parts.pool
            own = None if vectors is None else vectors[parts.positions]
            write_rows(folder / f"{name}.jsonl", planted)
            _save_vectors(folder / f"{name}.npy", parts.pool, planted, own, dtype)
        _prepare_run(folder, name)
    if not small_model:
        _prepare_second(folder, parts, vectors, dtype)
        return None
    base = pretrain(parts.pool, folder / f"{NAME}-base", n_tokens=pretrain_tokens, dtype=dtype)
    return warm_up(str(base), parts.warm_up, folder / NAME)


def warm_reader(folder: Path, model: str, device: str) -> Path:
    """Return a model that has learnt the form of the answers, made if need be.

    From conversations of no pool, as the small model: what any rows teach is not what is measured.
    """
    rows = read_rows(folder / "warm-up.jsonl")
    warm = folder / f"{model}-warm"
    return warm_up(model, rows, warm, learning_rate=WARM_UP_RATE, device=device)


def _load(
    folder: Path, rows_path: Path | None, n_stand_in: int
) -> tuple[list[Row], np.ndarray | None]:
    if rows_path is not None:
        return read_rows(rows_path), np.load(
            next(rows_path.parent.glob(f"{rows_path.name.split('.')[0]}*.npy"))
        )
    path = folder / "stand-in.jsonl"
    if not path.exists():
        write_rows(path, stand_in(n_stand_in))
    return read_rows(path), None


def _save_vectors(
    path: Path, clean: list[Row], planted: list[Row], vectors: np.ndarray | None, dtype: str
) -> None:
    """Embed the rows that have no vector yet: the planted ones, or all of them."""
    new = [i for i, row in enumerate(planted) if vectors is None or row is not clean[i]]
    encoder = load_encoder("all-MiniLM-L6-v2", max_length=ENCODER_TOKENS, dtype=dtype)
    found = encoder.encode([text_of(planted[i]) for i in new]) if new else np.empty((0, 1))
    if vectors is None:
        vectors = np.empty((len(planted), found.shape[1]), np.float16)
    vectors = vectors.copy()
    if new:
        vectors[new] = found
    temporary = path.with_suffix(".part.npy")
    np.save(temporary, vectors.astype(np.float16))
    temporary.rename(path)


def _prepare_second(folder: Path, parts: Split, vectors: np.ndarray | None, dtype: str) -> None:
    other = split(stand_in(SECOND_ROWS, seed=2), SECOND_PER_TASK)
    write_rows(folder / "second-both.jsonl", [*other.test, *parts.test])
    path = folder / "second.npy"
    if not path.exists():
        old = np.random.default_rng(2).permutation(len(parts.pool))[: len(other.pool)]
        rows = [*(parts.pool[i] for i in old), *other.pool]
        write_rows(folder / "second.jsonl", rows)
        own = None
        if vectors is not None:
            own = np.zeros((len(rows), vectors.shape[1]), vectors.dtype)
            own[: len(old)] = vectors[parts.positions[old]]
        # Rows that stand in both lists have their vector; the procedural ones get theirs.
        known = [*rows[: len(old)], *[{}] * len(other.pool)]
        _save_vectors(path, known, rows, own, dtype)
    _prepare_run(folder, "second")


def _prepare_run(folder: Path, name: str) -> None:
    """Read and embed a pool into a run folder that trials copy."""
    target = folder / "runs" / name
    if target.exists():
        return
    temporary = folder / "runs" / f"{name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    config = make_config(
        data=str(folder / f"{name}.jsonl"), embeddings_file=str(folder / f"{name}.npy"),
        budget=10, keep_duplicates=True, output_dir=str(temporary),
    )  # fmt: skip
    prepare_module.prepare(config, "embed").close()
    temporary.rename(target)
