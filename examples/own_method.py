"""A selection method of your own: one function that returns positions in the pool.

On the command line, in the folder of this file:
`pyids select pool.jsonl --method own_method:shortest --budget 20`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from small import make_pool

import pyids
from pyids.methods import Pool, method


@method(needs=("lengths",), source="an example")
def shortest(pool: Pool, budget: int, *, seed: int, offset: int = 0) -> Any:
    """Take the rows with the shortest responses, after the first `offset` of them."""
    return np.argsort(pool.lengths, kind="stable")[offset : offset + budget]


def main(folder: Path) -> None:
    pool, _ = make_pool(folder)
    result = pyids.select(
        "own_method:shortest",
        data=str(pool),
        budget=20,
        output_dir=str(folder / "run"),
        options={"offset": 5},
    )
    print(result)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
