"""Vectors near held-out ones against all pairs, whatever the held-out rows lie like."""

import numpy as np
import pytest

from pyids.data.near_held_out import NearHeldOut

RNG = np.random.default_rng(3)
Q, N, D = 300, 700, 24


def unit(x):
    return x / np.sqrt(np.square(x).sum(axis=1, keepdims=True))


def around(centers, count, spread):
    return unit(
        np.repeat(centers, count, axis=0) + spread * RNG.normal(size=(len(centers) * count, D))
    )


LIKE = {
    "spread": lambda: unit(RNG.normal(size=(Q, D))),
    "one text": lambda: around(unit(RNG.normal(size=(1, D))), Q, 0.02),
    "a wide group": lambda: around(unit(RNG.normal(size=(1, D))), Q, 0.07),
    "some groups": lambda: np.concatenate([
        around(unit(RNG.normal(size=(5, D))), 20, 0.04), unit(RNG.normal(size=(Q - 100, D)))
    ]),
    "copies": lambda: np.tile(unit(RNG.normal(size=(Q // 3, D))), (3, 1)),
    "one": lambda: unit(RNG.normal(size=(1, D))),
}  # fmt: skip


def all_pairs(vectors, held, threshold):
    """The definition: the first held-out row of the largest cosine, if that is large enough."""
    x = vectors.astype(np.float64)
    lengths = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
    x = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
    cosines = np.array([[(a * b).sum() for b in held] for a in x])
    best = cosines.argmax(axis=1)
    top = cosines.max(axis=1)
    return np.where(top >= threshold, best, -1), top


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("like", LIKE)
def test_all_rows_above_the_threshold_are_found(like, threshold, dtype):
    held = LIKE[like]()
    # Rows at every cosine around the threshold, to held-out rows of all groups, and others.
    at = held[RNG.integers(0, len(held), N)]
    aside = RNG.normal(size=(N, D))
    aside = unit(aside - (aside * at).sum(axis=1, keepdims=True) * at)
    cosine = np.clip(threshold + RNG.normal(size=(N, 1)) * 0.1, -1, 1)
    rows = cosine * at + np.sqrt(1 - cosine**2) * aside
    rows[::7] = RNG.normal(size=(len(rows[::7]), D))
    rows[5] = 0
    vectors = (rows * RNG.uniform(0.1, 9, (N, 1))).astype(dtype)
    found = NearHeldOut(held, threshold).find(vectors, threads=1)
    wanted, top = all_pairs(vectors, held, threshold)
    assert 20 < (wanted >= 0).sum() < N
    np.testing.assert_array_equal(found.held, wanted)
    there = wanted >= 0
    np.testing.assert_allclose(found.cosines[there], top[there], rtol=1e-12)


def test_a_row_near_a_member_and_far_from_its_leader_is_found():
    """What the radius of a group is for: none of these is near enough to the leader."""
    leader = np.eye(1, D)
    side = np.eye(D)[1:11]
    members = unit(leader + 0.4 * side)  # cosine 0.93 to the leader
    rows = unit(leader + 0.8 * side)  # 0.96 to a member, 0.78 to the leader
    near = NearHeldOut(np.concatenate([leader, members]), 0.95)
    assert len(near._leaders) == 1
    found = near.find(rows.astype(np.float32))
    np.testing.assert_array_equal(found.held, np.arange(1, 11))


def test_threads_and_blocks_change_nothing():
    held = LIKE["some groups"]()
    vectors = (held[RNG.integers(0, Q, N)] + 0.1 * RNG.normal(size=(N, D))).astype(np.float32)
    near = NearHeldOut(held, 0.9)
    whole = near.find(vectors, threads=2)
    parts = [near.find(part, threads=1) for part in np.split(vectors, [1, 300])]
    np.testing.assert_array_equal(whole.held, np.concatenate([part.held for part in parts]))
    np.testing.assert_array_equal(whole.cosines, np.concatenate([part.cosines for part in parts]))
    assert len(near.find(vectors[:0]).held) == 0
    assert near.find(np.zeros((3, D), np.float32)).held.tolist() == [-1, -1, -1]
