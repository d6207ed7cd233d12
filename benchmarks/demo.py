"""`make demo`: a selection from a pool whose truth is known, and what the truth says of it.

The run itself is the ordinary `pyids run` with its default encoder and language model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
from demo_pool import GARBAGE, TOPICS, make_pool

from pyids.models import finetune, hub
from pyids.models.nll import response_nll
from pyids.sampling import allocate, sample_by_cluster
from pyids.scoring import probes
from pyids.selection import Selection

N_ROWS = 3000
N_HELD_OUT_PER_TOPIC = 4
# Another seed than any pool's: held-out rows are never in a pool.
HELD_OUT_SEED = 987_654_321


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the pool and of the run")
    parser.add_argument("--budget", default="96")
    parser.add_argument("--clusters", default="26")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--no-held-out", action="store_true", help="skip the held-out comparison")
    options = parser.parse_args()

    start = time.monotonic()
    pool = options.folder / f"demo-pool-{options.seed}.jsonl"
    write_pool(pool, options.seed)
    run_folder = options.folder / f"demo-{options.seed}"
    command = ["pyids", "run", str(pool), "--budget", options.budget, "--rounds", "3"]
    command += ["--clusters", options.clusters, "--seed", str(options.seed)]
    command += ["--output-dir", str(run_folder)]
    print("$", *command, flush=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, env=environment, check=True)

    with Selection.open(run_folder) as selection:
        judge_selection(selection)
        if not options.no_held_out:
            judge_training(selection)
    print(f"{time.monotonic() - start:.0f} s in all; the run folder is {run_folder}")


def write_pool(path: Path, seed: int) -> None:
    """Write the pool once."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = make_pool(N_ROWS, seed=seed)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    temporary.rename(path)
    n_garbage = sum(row["garbage"] for row in rows)
    print(
        f"made {path}: {len(rows)} rows, {len(TOPICS)} topics, {n_garbage} rows of "
        f"{len(GARBAGE)} kinds of garbage ({n_garbage / len(rows):.0%})"
    )


def judge_selection(selection: Selection) -> None:
    """Say how well clusters match topics, and how much garbage each round drew."""
    from sklearn.metrics import normalized_mutual_info_score

    topics, garbage, row_ids = [], [], []
    for shard in selection.store.shards:
        for row in selection.store.iter_rows(shard):
            topics.append(row.record["topic"])
            garbage.append(row.record["garbage"])
            row_ids.append(row.row_id)
    labels = np.concatenate(selection.labels)
    is_garbage = np.array(garbage)
    position = {row_id: at for at, row_id in enumerate(row_ids)}

    print("\nwhat the known truth says")
    print(f"  clusters against topics: NMI {normalized_mutual_info_score(topics, labels):.2f}")
    print(f"  garbage in the pool: {is_garbage.mean():.1%}")
    left = np.ones(len(labels), dtype=bool)
    for n in range(selection.config.rounds):
        quotas = selection.rounds.quotas(n)
        size = np.bincount(labels[left], minlength=len(selection.rounds.sizes))
        bad = np.bincount(labels[left & is_garbage], minlength=len(selection.rounds.sizes))
        expected = quotas @ (bad / np.maximum(size, 1)) / quotas.sum()
        drawn = np.array([position[row_id] for row_id in selection.rounds.selected(n)])
        left[drawn] = False
        print(
            f"  garbage in round {n + 1}'s draw of {len(drawn)}: expected {expected:.1%}, "
            f"drawn {is_garbage[drawn].mean():.1%}"
        )


def judge_training(selection: Selection) -> None:
    """Compare held-out losses: base model, trained on our rows, trained on random rows."""
    config = selection.config
    rows = make_pool(
        round(N_HELD_OUT_PER_TOPIC * len(TOPICS)), garbage_share=0.0, seed=HELD_OUT_SEED
    )
    topics = np.array([TOPICS.index(row["topic"]) for row in rows])
    conversations = [row["messages"] for row in rows]
    ref = hub.resolve_model(config.model)

    row_ids = np.concatenate([selection.store.row_ids(shard) for shard in selection.store.shards])
    everyone = np.zeros(len(row_ids), dtype=np.int32)
    random_ids = sample_by_cluster(
        everyone, allocate(selection.budget, [1.0], [len(row_ids)]), row_ids=row_ids, seed=12345
    )
    random_checkpoint = finetune.finetune(
        ref,
        selection.conversations(random_ids),
        output_dir=selection.store.path.parent / f"{selection.store.path.name}-random",
        **finetune.training_options(config),
    )
    ours = finetune.read_record(selection.rounds.path(config.rounds - 1, "checkpoint"))
    losses = {}
    for name, checkpoint in (("ours", ours), ("random", random_checkpoint)):
        models = probes.Models(ref, checkpoint.path)
        with models.trained() as (model, tokenizer):
            losses[name] = macro_nll(model, tokenizer, conversations, topics)
        if name == "ours":
            with models.base() as (model, tokenizer):
                losses["base"] = macro_nll(model, tokenizer, conversations, topics)
        models.close()

    print(f"\nheld-out loss, {len(rows)} clean rows, macro-averaged over {len(TOPICS)} topics")
    print(f"  base model                        {losses['base']:.3f}")
    print(f"  trained on {selection.budget} rows drawn at random  {losses['random']:.3f}")
    print(f"  trained on the {selection.budget} rows of pyids     {losses['ours']:.3f}")


def macro_nll(model, tokenizer, conversations, topics) -> float:
    """Mean over topics of the mean response NLL."""
    nll, _ = response_nll(model, tokenizer, conversations)
    return float(np.mean([np.nanmean(nll[topics == topic]) for topic in np.unique(topics)]))


if __name__ == "__main__":
    main()
