"""A scorer of your own: what a cluster is worth after a round, measured on its unseen rows.

On the command line, in the folder of this file:
`pyids run pool.jsonl --scorer own_scorer:steady --budget 24`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from small import make_model, make_pool

import pyids
from pyids.scoring.probes import Probes, Scores


def steady(probes: Probes) -> Scores:
    """Return the drop of the loss, but never more than that of nine rows in ten."""
    drop = probes.base_nll - probes.checkpoint_nll
    return Scores(np.minimum(drop, np.nanquantile(drop, 0.9)), probes.columns)


def main(folder: Path) -> None:
    pool, vectors = make_pool(folder)
    result = pyids.run(
        data=str(pool),
        embeddings_file=str(vectors),
        model=str(make_model(folder)),
        scorer="own_scorer:steady",
        budget=24,
        rounds=2,
        clusters=4,
        max_length=64,
        output_dir=str(folder / "run"),
    )
    print(result)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
