"""Run the whole loop from Python: watch its rounds, then look at what was selected.

The same as `pyids run pool.jsonl --embeddings-file vectors.npy --model model --budget 24 ...`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from small import make_model, make_pool

import pyids


class Watch(pyids.Callback):
    """Prints the weight of each cluster at the end of a round."""

    def on_round_end(self, selection: pyids.Selection, n: int) -> None:
        weights = selection.rounds.weights(selection.round)
        print(f"round {n + 1}: weights {np.array2string(weights, precision=3)}")


def main(folder: Path) -> None:
    pool, vectors = make_pool(folder)
    result = pyids.run(
        data=str(pool),
        embeddings_file=str(vectors),
        model=str(make_model(folder)),
        budget=24,
        rounds=2,
        clusters=4,
        max_length=64,
        output_dir=str(folder / "run"),
        callbacks=[Watch()],
    )
    print(result)
    for row in result.dataset.select(range(3)):
        print(row["_pyids_id"], row["topic"], row["messages"][-1]["content"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
