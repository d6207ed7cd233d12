"""`make bench-target`: does knowing the target pay? One skill after the other is the target.

    python benchmarks/target.py prepare --rows pool.jsonl.gz   splits, vectors, the small model
    python benchmarks/target.py shares                         what is selected, without training
    python benchmarks/target.py run                            trials: select, train, held-out loss
    python benchmarks/target.py table                          results/target.json and the tables

A trial is (skill, method, seed) and one file: a stopped run goes on where it stood. The target is
32 development rows of a skill; what is measured is the loss on test rows of that skill, as a share
of the way from the model before training to the oracle, which draws from rows of that skill alone.
No method sees the column that names the skill.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from quality.model import NAME, pretrain, warm_up
from quality.pool import SKILLS, read_rows, split, text_of, write_rows
from quality.trials import READER_TRAINING, TRAINING
from quality.workers import in_workers

from pyids.config import make_config
from pyids.encoders import load_encoder
from pyids.methods import get_method
from pyids.methods.select import make_pool
from pyids.models.finetune import finetune, load_checkpoint, training_options
from pyids.models.load import load_model
from pyids.models.nll import response_nll
from pyids.pipeline.prepare import prepare as prepare_run
from pyids.sampling import sample_by_cluster
from pyids.selection import Selection
from pyids.store.folder import Store

ROOT = Path(__file__).resolve().parents[1]
TARGET_ROWS, CLUSTERS = 32, 256
ENDS = ("base", "oracle")
# Train on the same rows whatever the target is: one training is measured on every skill.
ANY_TARGET = ("base", "random", "km-random", "mig")
# Skills, method and seed of one training.
Job = tuple[tuple[str, ...], str, int]
# label: method, encoder, options
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "random": ("random", "minilm", {}),
    "km-random": ("km-random", "minilm", {}),
    "rds": ("rds", "minilm", {}),
    "rds, whitened": ("rds", "minilm", {"whiten": True}),
    "rds, model's states": ("rds", "model", {}),
    "mig": ("mig", "minilm", {}),
    "less": ("less", "minilm", {}),
    "run --target": ("run", "minilm", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("prepare", "shares", "run", "table"))
    parser.add_argument("--rows", type=Path, help="rows, with their vectors in a .npy beside them")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "target")
    parser.add_argument("--model", help="trained by LoRA [default: the small model made here]")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time")
    parser.add_argument("--budget", type=float, default=0.01, help="share of the pool")
    parser.add_argument("--pretrain-tokens", type=int, default=4_000_000)
    parser.add_argument("--skills", nargs="+", choices=tuple(SKILLS), default=tuple(SKILLS))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="start no trial after so long")
    given = parser.parse_args()
    if given.what == "prepare":
        prepare(given)
    elif given.what == "shares":
        print(json.dumps(skill_shares(given), indent=1))
    elif given.what == "run":
        run(given)
    else:
        table(given)


def prepare(given: argparse.Namespace) -> None:
    """Split the rows, find their vectors, make the model: what is there is not made again."""
    folder, rows = given.folder, read_rows(given.rows)
    folder.mkdir(parents=True, exist_ok=True)
    vectors = np.load(next(given.rows.parent.glob(f"{given.rows.name.split('.')[0]}*.npy")))
    parts = split(rows, 40)
    for name, part in (("dev", parts.dev), ("test", parts.test), ("clean", parts.pool)):
        write_rows(folder / f"{name}.jsonl", part)
    np.save(folder / "clean.npy", vectors[parts.positions])
    encoder = load_encoder("all-MiniLM-L6-v2", max_length=128)
    np.save(folder / "dev.npy", encoder.encode([text_of(row) for row in parts.dev]))
    base = pretrain(
        parts.pool, folder / f"{NAME}-base", n_tokens=given.pretrain_tokens, dtype=given.dtype
    )
    warm_up(str(base), parts.warm_up, folder / NAME)


def vectors_of(given: argparse.Namespace, encoder: str) -> tuple[Path, np.ndarray]:
    """Return the file of the pool's vectors, and those of the development rows."""
    if encoder == "minilm":
        return given.folder / "clean.npy", np.load(given.folder / "dev.npy")
    name = given.model or str(given.folder / NAME)
    model = load_encoder(name, max_length=128, device=given.device)
    paths = [given.folder / f"{part}-{Path(name).name}.npy" for part in ("clean", "dev")]
    for part, path in zip(("clean", "dev"), paths, strict=True):
        if not path.exists():
            texts = [text_of(row) for row in _rows(given.folder / f"{part}.jsonl")]
            temporary = path.with_suffix(f".{os.getpid()}.npy")
            np.save(temporary, model.encode(texts).astype(np.float16))
            temporary.rename(path)
    return paths[0], np.load(paths[1]).astype(np.float32)


@lru_cache(maxsize=4)
def _rows(path: Path) -> list[dict[str, Any]]:
    return read_rows(path)


def config_of(
    given: argparse.Namespace, skill: str, encoder: str, seed: int, output: Path, **options: Any
) -> Any:
    """Return the configuration of a selection for a skill; writes the target's files."""
    path, vectors = vectors_of(given, encoder)
    dev = _rows(given.folder / "dev.jsonl")
    chosen = [i for i, row in enumerate(dev) if row["skill"] == skill][:TARGET_ROWS]
    target = output.parent / "target.jsonl"
    write_rows(target, [{"messages": dev[i]["messages"]} for i in chosen])
    np.save(target.with_suffix(".npy"), vectors[chosen])
    training = READER_TRAINING if given.model else TRAINING
    return make_config(**{
        "data": str(given.folder / "clean.jsonl"), "embeddings_file": str(path),
        "target": str(target), "target_embeddings_file": str(target.with_suffix(".npy")),
        "output_dir": str(output), "clusters": CLUSTERS, "seed": seed, "device": given.device,
        "budget": round(len(_rows(given.folder / "clean.jsonl")) * given.budget),
        "keep_duplicates": True, "model": given.model or str(given.folder / NAME),
        "dtype": given.dtype, "probes_per_cluster": 4, "oversample": 1, **training, **options,
    })  # fmt: skip


def select(given: argparse.Namespace, skill: str, label: str, seed: int, scratch: Path) -> Any:
    """Return the positions that a method selects for a skill, and the configuration."""
    rows = _rows(given.folder / "clean.jsonl")
    name, encoder, options = METHODS.get(label, ("random", "minilm", {}))
    config = config_of(given, skill, encoder, seed, scratch / "run")
    if label == "oracle":
        own = np.flatnonzero([row["skill"] == skill for row in rows])
        budget = [min(config.budget, len(own))]
        groups = np.zeros(len(own), np.int32)
        return sample_by_cluster(groups, budget, row_ids=own, seed=seed), config
    store = Store(copy_of_pool(given, encoder, scratch))
    if name != "run":
        pool = make_pool(store, config, None)
        return get_method(name)(pool, config.budget, seed=seed, **options), config
    selection = Selection(store, config)
    while selection.draw():
        checkpoint = selection.train()
        if selection.round == config.rounds - 1:
            break
        selection.tell(selection.score(checkpoint))
    return selection.rounds.selected(), config


def make_run(given: argparse.Namespace, encoder: str) -> Path:
    """Return the pool's run folder, read, embedded and clustered; made if need be."""
    name = encoder if encoder == "minilm" else Path(given.model or NAME).name
    made = given.folder / f"run-{name}"
    if not (made / "centroids.json").exists():
        path, _ = vectors_of(given, encoder)
        config = make_config(
            data=str(given.folder / "clean.jsonl"), embeddings_file=str(path), budget=CLUSTERS,
            clusters=CLUSTERS, keep_duplicates=True, output_dir=str(made), device=given.device,
        )  # fmt: skip
        prepare_run(config).close()
    return made


def copy_of_pool(given: argparse.Namespace, encoder: str, scratch: Path) -> Path:
    """Copy the pool's run folder by hard links."""
    shutil.copytree(
        make_run(given, encoder), scratch / "run", copy_function=os.link,
        ignore=shutil.ignore_patterns(".lock"),
    )  # fmt: skip
    return scratch / "run"


def skill_shares(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the share of selected rows that are of the target's skill, by method and skill."""
    skills = np.array([row["skill"] for row in _rows(given.folder / "clean.jsonl")])
    found: dict[str, dict[str, float]] = {}
    for label in given.methods:
        for skill in given.skills:
            with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
                chosen, _ = select(given, skill, label, 0, Path(scratch))
            found.setdefault(label, {})[skill] = float((skills[chosen] == skill).mean())
            print(label, skill, round(found[label][skill], 3), file=sys.stderr, flush=True)
    return found


def trials(given: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Return (skill, method, seed), the ends of the way first, seed by seed."""
    return [
        (skill, label, seed)
        for seed in range(given.seeds)
        for skill in given.skills
        for label in (*ENDS, *given.methods)
        if not (seed and label == "base")
    ]


def path_of(given: argparse.Namespace, trial: tuple[str, str, int]) -> Path:
    model = Path(given.model or NAME).name
    return (
        given.folder / f"trials-{model}" / ("-".join(map(str, trial)).replace(" ", "_") + ".json")
    )


def run(given: argparse.Namespace) -> None:
    """Run the trials that are not done, seed by seed."""
    for encoder in {METHODS[label][1] for label in given.methods}:  # once for all
        make_run(given, encoder)
    do = partial(run_job, given)
    for _, lines in in_workers(
        do, jobs(given), workers=given.workers, threads=1, seconds=given.seconds
    ):
        print(*lines, sep="\n", flush=True)


def jobs(given: argparse.Namespace) -> list[Job]:
    """Return (skills, method, seed) of what is not done: one training each."""
    found: dict[tuple[str, str, int], list[str]] = {}
    for skill, label, seed in trials(given):
        if not path_of(given, (skill, label, seed)).exists():
            found.setdefault(("" if label in ANY_TARGET else skill, label, seed), []).append(skill)
    return [(tuple(skills), label, seed) for (_, label, seed), skills in found.items()]


def run_job(given: argparse.Namespace, job: Job) -> list[str]:
    """Run one training and write what it gives for each skill; return a line for each."""
    skills, label, seed = job
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        measured = measure(given, skills, label, seed, Path(scratch))
    for result in measured:
        path = path_of(given, (result["skill"], label, seed))
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(result))
        temporary.rename(path)
    return [f"{one['skill']} {label} {seed} {one['nll']:.3f}, {one['seconds']:.0f} s"
            for one in measured]  # fmt: skip


def measure(
    given: argparse.Namespace, skills: Sequence[str], label: str, seed: int, scratch: Path
) -> list[dict[str, Any]]:
    """Select for the first skill, train and measure: the loss of the test rows of each skill."""
    began = time.process_time()
    rows, facts = _rows(given.folder / "clean.jsonl"), {}
    chosen: Any = ()
    if label == "base":
        model, tokenizer = load_model(given.model or str(given.folder / NAME))
    else:
        chosen, config = select(given, skills[0], label, seed, scratch)
        facts = {"select_seconds": time.process_time() - began, "rows": len(chosen)}
        checkpoint = finetune(
            config.model, [rows[i]["messages"] for i in chosen],
            output_dir=scratch / "checkpoint", **training_options(config),
        )  # fmt: skip
        model, tokenizer = load_checkpoint(checkpoint.path, config.model, given.device)
    model, results = model.to(given.device).float(), []
    for skill in skills:
        held_out = [
            row["messages"] for row in _rows(given.folder / "test.jsonl") if row["skill"] == skill
        ]
        nll, _ = response_nll(
            model, tokenizer, held_out, max_length=TRAINING["max_length"], device=given.device
        )
        if label != "base":
            facts["of_the_skill"] = float(np.mean([rows[i]["skill"] == skill for i in chosen]))
        seconds = time.process_time() - began
        results.append({"skill": skill, "method": label, "seed": seed,
                        "nll": float(np.nanmean(nll)), "seconds": seconds, **facts})  # fmt: skip
    return results


def table(given: argparse.Namespace) -> None:
    """Print how far methods come from base, and from random rows, to the oracle; write a file.

    Means and 95% t intervals over seeds; the last line of a table is the mean of the skills.
    """
    paths = [path_of(given, trial) for trial in trials(given)]
    done = [json.loads(path.read_text()) for path in paths if path.exists()]
    by_trial = {(one["skill"], one["method"], one["seed"]): one for one in done}
    nll = {trial: one["nll"] for trial, one in by_trial.items()}

    def share(skill: str, label: str, seed: int, start: str) -> float | None:
        first = (skill, start, 0 if start == "base" else seed)
        if not {first, (skill, "oracle", seed), (skill, label, seed)} <= nll.keys():
            return None
        way = nll[first] - nll[skill, "oracle", seed]
        return (nll[first] - nll[skill, label, seed]) / way

    def rows_of_skill(skill: str, label: str, seed: int) -> float | None:
        return by_trial.get((skill, label, seed), {}).get("of_the_skill")

    tables: dict[str, Callable[[str, str, int], float | None]] = {
        "from base to oracle": partial(share, start="base"),
        "from random to oracle": partial(share, start="random"),
        "rows of the skill": rows_of_skill,
        "loss": lambda *trial: nll.get(trial),
    }
    for title, value in tables.items():
        labels = [label for label in given.methods if label != "random" or "random" not in title]
        labels += ["oracle"] if title == "loss" else []
        print(f"\n| {title} | {' | '.join(labels)} |\n|---|{'---|' * len(labels)}")
        cells = {
            label: [[value(skill, label, seed) for seed in range(given.seeds)]
                    for skill in given.skills]
            for label in labels
        }  # fmt: skip
        for i, skill in enumerate(given.skills):
            print(f"| {skill} | {' | '.join(_interval(cells[label][i]) for label in labels)} |")
        means = {
            label: [np.mean(column) for column in zip(*rows, strict=True) if None not in column]
            for label, rows in cells.items()
        }
        print(f"| mean | {' | '.join(_interval(means[label]) for label in labels)} |")
    name = f"target-{Path(given.model).name}" if given.model else "target"
    results = ROOT / "benchmarks" / "results" / f"{name}.json"
    lines = ",\n".join(json.dumps(one) for one in done)
    results.write_text(f'{{"trials": [\n{lines}\n]}}\n')


def _interval(found: Sequence[float | None]) -> str:
    values = [value for value in found if value is not None]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    half = t * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.2f} ± {half:.2f}"


if __name__ == "__main__":
    main()
