"""One trial of the quality benchmark: select by one method, train on it, measure held-out rows.

A trial is a JSON-able specification; its result is one file named after it, so that a grid that was
ended goes on where it stood, and any trial can be repeated by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pyids.callbacks import Callback
from pyids.config import RunConfig, make_config
from pyids.models import finetune, hub, load
from pyids.pipeline import clusters, rate, stages
from pyids.sampling import sample_by_cluster
from pyids.selection import Selection
from pyids.store.folder import Store

from .measure import evaluate, shares
from .model import NAME
from .pool import Row, read_rows, text_of

# How every selection is trained on; the rounds of `iterative` train the same way.
TRAINING: dict[str, Any] = {
    "finetuning_type": "full", "learning_rate": 3e-4, "num_train_epochs": 2, "batch_size": 8,
    "max_length": 128,
}  # fmt: skip
# What a model is trained with that is not the small one made here; the rest is pyids's default.
LORA_TRAINING: dict[str, Any] = {
    "finetuning_type": "lora", "num_train_epochs": 2, "batch_size": 8, "max_length": 128,
}  # fmt: skip
# For SmolLM2-135M on two cores. At a budget of 1%, random trains on 595 rows once and iterative,
# over three rounds, twice; it scores 256 probe rows in two rounds. Rows are cut as for the small
# model: at 192 tokens they would be 29% longer in the mean (144 for 112), and so would a trial.
READER_TRAINING: dict[str, Any] = {
    "finetuning_type": "lora", "num_train_epochs": 1, "batch_size": 8, "max_length": 128,
}  # fmt: skip
# For SmolLM2-135M on a GPU, where time goes by steps, not by tokens: few rows are cut.
GPU_READER_TRAINING: dict[str, Any] = READER_TRAINING | {"max_length": 256}
READER_CLUSTERS = 64
# Methods that select the same rows whatever the seed: they run once a pool.
SEEDLESS = ("longest", "deita", "facility-location", "qdit", "novelselect", "rds", "mig")


@dataclass(frozen=True)
class Trial:
    """What decides a trial's result.

    Attributes
    ----------
    pool
        Name of a prepared pool.
    method
        ``iterative``, a method of `pyids.methods`, or a bound: ``base`` (no training),
        ``reference`` (`budget` random clean rows), ``clean`` (random among the clean rows).
    seed
        Of clusters, draws and training.
    held_out
        ``dev`` or ``test``.
    budget
        Rows.
    options
        Fields of `RunConfig` for ``iterative``, ``quality`` for methods that need one.
    label
        What the method is called in tables.
    """

    pool: str
    method: str
    seed: int
    held_out: str
    budget: int
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """A file name that no other trial has."""
        decisive = {**asdict(self), "label": ""}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.pool}-{self.method}-{self.seed}-{digest}"


@dataclass(frozen=True)
class Experiment:
    """Where the parts lie: prepared pools, held-out rows, the model; and on what it is trained."""

    folder: Path
    model: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    clusters: int = 256
    training: dict[str, Any] = field(default_factory=lambda: dict(TRAINING))

    @property
    def trials(self) -> Path:
        """Where results lie, those of each model apart."""
        name = Path(self.model).name
        return self.folder / ("trials" if name == NAME else f"trials-{name}")

    @property
    def measuring(self) -> dict[str, Any]:
        """How `evaluate` measures: solutions are written out by a model that can calculate."""
        return {
            "max_length": self.training["max_length"], "device": self.device,
            "solve": Path(self.model).name != NAME,
        }  # fmt: skip

    def config(self, trial: Trial, output: Path) -> RunConfig:
        """Return the configuration of a run over the trial's pool."""
        pool = self.folder / f"{trial.pool}.jsonl"
        # The options of other methods are their own.
        options = trial.options if trial.method == "iterative" else {}
        return make_config(**{
            "data": str(pool), "embeddings_file": str(pool.with_suffix(".npy")),
            "output_dir": str(output),
            "budget": trial.budget, "seed": trial.seed, "clusters": self.clusters,
            "keep_duplicates": True, "model": self.model, "device": self.device,
            "dtype": self.dtype, "threads": self.threads, **self.training, **options,
        })  # fmt: skip


def has_bfloat16() -> bool:
    """Say whether this processor multiplies bfloat16: without, it is 3.6 times slower than float32.

    Measured with SmolLM2-135M on AVX-512 with VNNI: 478 tokens a CPU second, 133 in bfloat16.
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return False
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


@lru_cache(maxsize=2)
def _rows(path: Path) -> list[Row]:
    return read_rows(path)


def run_trial(experiment: Experiment, trial: Trial) -> dict[str, Any]:
    """Run a trial, unless its result is there; return the result."""
    path = experiment.trials / f"{trial.name}.json"
    if path.exists():
        return json.loads(path.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quality-", dir=experiment.folder) as scratch:
        result = _measure(experiment, trial, Path(scratch))
    result = {"trial": asdict(trial), **result, "seconds": round(time.monotonic() - began, 1)}
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(result))
    temporary.rename(path)
    return result


def _measure(experiment: Experiment, trial: Trial, scratch: Path) -> dict[str, Any]:
    rows = _rows(experiment.folder / f"{trial.pool}.jsonl")
    garbage = np.array([row["garbage"] for row in rows])
    held_out = _rows(experiment.folder / f"{trial.held_out}.jsonl")
    ref = hub.resolve_model(experiment.model)
    if trial.method == "base":
        model, tokenizer = load.load_model(ref, experiment.device, experiment.dtype)
        return evaluate(model, tokenizer, held_out, **experiment.measuring)

    began = time.monotonic()
    config = experiment.config(trial, scratch / "run")
    measured: dict[str, Any] = {}
    if trial.method == "iterative":
        folder = _prepared(experiment, trial, scratch)
        store = Store(folder)
        clusters.cluster(store, config)
        stages.drop_near(store, config)
        rate.rate(store, config)
        watch = _Watch()
        selection = Selection(store, config, [watch])
        selection.run_rounds()
        checkpoint = watch.checkpoint
        score_seconds = watch.score_seconds
        chosen = np.concatenate([selection.rounds.selected(n) for n in range(config.rounds)])
        measured["rounds"] = [_garbage(selection, n, garbage) for n in range(config.rounds)]
        measured["select_seconds"] = time.monotonic() - began - checkpoint.seconds
        measured["score_seconds"] = score_seconds
    else:
        chosen = _static(experiment, trial, config, garbage, scratch)
        measured["select_seconds"] = time.monotonic() - began
        checkpoint = finetune.finetune(
            ref,
            [rows[i]["messages"] for i in chosen],
            output_dir=scratch / "checkpoint",
            **finetune.training_options(config),
        )
    measured |= {
        "rows": len(chosen),
        "tokens": checkpoint.tokens,
        "response_tokens": checkpoint.response_tokens,
        "train_seconds": checkpoint.seconds,
        "garbage": shares(garbage[chosen], garbage),
        "skill_rows": _counts([rows[i]["skill"] for i in chosen if not rows[i]["garbage"]]),
    }
    model, tokenizer = finetune.load_checkpoint(
        checkpoint.path, ref, experiment.device, experiment.dtype
    )
    return {**measured, **evaluate(model, tokenizer, held_out, **experiment.measuring)}


class _Watch(Callback):
    """Keeps the last checkpoint, and how long scoring and re-weighting took."""

    checkpoint: finetune.Checkpoint
    score_seconds = 0.0
    _trained_at = 0.0

    def on_train(self, selection: Selection, n: int, checkpoint: finetune.Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._trained_at = time.monotonic()

    def on_round_end(self, selection: Selection, n: int) -> None:
        if n < selection.config.rounds - 1:
            self.score_seconds += time.monotonic() - self._trained_at


def _prepared(experiment: Experiment, trial: Trial, scratch: Path) -> Path:
    """Copy the pool's run folder, read and embedded once for all trials, by hard links."""
    folder = scratch / "run"
    source = experiment.folder / "runs" / trial.pool
    shutil.copytree(source, folder, copy_function=os.link, ignore=shutil.ignore_patterns(".lock"))
    return folder


def _static(
    experiment: Experiment, trial: Trial, config: RunConfig, garbage: np.ndarray, scratch: Path
) -> np.ndarray:
    """Select without rounds."""
    if trial.method in ("reference", "clean"):
        clean = np.flatnonzero(garbage == "")
        everyone = np.zeros(len(clean), np.int32)
        return sample_by_cluster(everyone, [trial.budget], row_ids=clean, seed=trial.seed)
    from pyids.methods import get_method, pool_from_store

    method = get_method(trial.method)

    def select() -> np.ndarray:
        store = Store(_prepared(experiment, trial, scratch))
        if {"labels", "centroids"} & set(method.needs):
            clusters.cluster(store, config)
        quality = None
        if "quality" in method.needs:
            path = experiment.trials / f"{trial.pool}-{trial.options['quality']}.npy"
            quality = _once(path, lambda: _quality(experiment, trial))
        pool = pool_from_store(
            store, quality=quality, threads=experiment.threads, target=lambda: _target(experiment)
        )
        settings = {name: x for name, x in trial.options.items() if name != "quality"}
        return method(pool, trial.budget, seed=trial.seed, **settings)

    if trial.method in SEEDLESS:
        return _once(experiment.trials / f"{replace(trial, seed=0).name}.npy", select)
    return select()


def _target(experiment: Experiment) -> Any:
    """Return a target that wants everything: the development rows, each skill a task."""
    from pyids.encoders import load_encoder
    from pyids.methods import Target

    from .prepare import ENCODER_TOKENS

    rows = _rows(experiment.folder / "dev.jsonl")

    def embed() -> np.ndarray:
        encoder = load_encoder("all-MiniLM-L6-v2", max_length=ENCODER_TOKENS)
        return encoder.encode([text_of(row) for row in rows])

    vectors = _once(experiment.folder / "dev.npy", embed)
    return Target(vectors, [row["skill"] for row in rows])


def _quality(experiment: Experiment, trial: Trial) -> np.ndarray:
    """Rate the pool's rows by a signal of the model that is trained, cut as they are trained on."""
    from pyids.scoring.cache import score_rows
    from pyids.scoring.row_weights import check_quality
    from pyids.scoring.signals import LanguageModelSignal, make_signal

    signal = make_signal(
        trial.options["quality"], default_model=experiment.model, device=experiment.device
    )
    assert signal is not None
    if isinstance(signal, LanguageModelSignal):
        signal = replace(signal, max_length=experiment.training["max_length"])
    rows = _rows(experiment.folder / f"{trial.pool}.jsonl")
    quality = score_rows(signal, (row["messages"] for row in rows))
    check_quality(quality)
    return quality


def _once(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Make an array that many trials need, unless it is there."""
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        np.save(temporary, make())
        temporary.rename(path)
    return np.load(path)


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


def _garbage(selection: Selection, n: int, garbage: np.ndarray) -> dict[str, Any]:
    """Return each kind's share of what a round drew, and of what its quotas let expect.

    Expected is by the clusters alone: every row left of a cluster counts the same.
    """
    labels = np.concatenate(selection.labels)
    before = [selection.rounds.selected(m) for m in range(n)]
    left = np.ones(len(labels), bool)
    left[np.concatenate([np.empty(0, np.int64), *before])] = False
    quotas = selection.rounds.quotas(n)
    sizes = np.bincount(labels[left], minlength=len(quotas))
    drawn = selection.rounds.selected(n)
    expected = {}
    for kind in np.unique(garbage[garbage != ""]).tolist():
        bad = np.bincount(labels[left & (garbage == kind)], minlength=len(quotas))
        expected[kind] = float(quotas @ (bad / np.maximum(sizes, 1)) / quotas.sum())
    return {
        "rows": len(drawn),
        "clusters": int(np.count_nonzero(quotas)),
        "expected": expected,
        "drawn": shares(garbage[drawn], garbage),
    }
