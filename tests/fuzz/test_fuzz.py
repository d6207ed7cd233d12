"""Every target of `fuzz.py` on its seeds and on seeded mutations of them."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import TARGETS, mutations, one

# Bytes that once ended in something else than one line; larger ones are files.
FILES = Path(__file__).parent / "found"
FOUND = {
    "ledger": [b"[]", b"7", b'{"_format": 2}', b'{"_format": true}', b'{"_format": "2"}'],
    "manifest": [b"[]", b"{}", b'{"files": []}', b'{"files": {"a": 1}, "_format": 2}'],
    "config": [
        b"[]",
        b"7",
        b"data: &a [*a]",
        b"budget: 5%",
        b"? [a]\n: b",
        b"\xff",
        b"? ",
        b"7: 1",
    ],
    "scores": [b'{"_pyids_id": -1, "score": 1}', b"{" * 5000, b'{"_pyids_id": 1e400, "score": 1}'],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TARGETS)
def test_bytes_that_nobody_means_are_answered_in_a_line(name):
    rng = random.Random(f"2026 {name}")
    known = [b"", *FOUND.get(name, []), *(f.read_bytes() for f in FILES.glob(f"{name}-*"))]
    for seed in TARGETS[name][1]:
        for content in [seed, *known, *mutations(seed, 150, rng)]:
            one(name, content)
