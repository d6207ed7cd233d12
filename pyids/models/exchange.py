"""Rows of tokens in a file, for other processes: numbers alone, never a pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyids.chat.template import Encoded
from pyids.store.files import naming


def write_encoded(path: Path, rows: Sequence[Encoded]) -> None:
    """Write rows to an ``.npz`` file."""
    with naming(path):
        np.savez(
            path,
            ends=np.cumsum([len(row.input_ids) for row in rows], dtype=np.int64),
            ids=np.concatenate([np.empty(0, np.int64), *(row.input_ids for row in rows)]),
            mask=np.concatenate([np.empty(0, bool), *(row.response_mask for row in rows)]),
        )


def read_encoded(path: Path) -> list[Encoded]:
    """Read what `write_encoded` has written."""
    with np.load(path, allow_pickle=False) as arrays:
        ends = arrays["ends"]
        parts = (np.split(arrays[name], ends[:-1]) for name in ("ids", "mask"))
        return [Encoded(ids, mask) for ids, mask in zip(*parts, strict=True)][: len(ends)]
