"""What the words of an answer say of its question, without a model.

An answer to something else takes up few of its question's rare words. How many is usual depends on
the task, so a row is judged beside its cluster (`pyids.scoring.screening`), and a pool by what its
own answers look like when they are dealt to other questions (`mismatch`).
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.chat.template import Conversation, text_of
from pyids.config import SCREENING_OVERSAMPLE
from pyids.models.generate import split_last
from pyids.store.files import remembered

logger = logging.getLogger("pyids")

# The words of a prompt, and those of its response.
Words: TypeAlias = tuple[set[str], set[str]]


# How many rows the mean of all is worth beside that of a cluster: small ones say little.
PRIOR_ROWS = 2.0


# What `mismatch` counts: this share of the dealt answers, the most foreign ones, but at least so
# many, if each is exp(2.5) times as likely among dealt answers as among answers that fit.
_FOREIGN, _MIN_FOREIGN, _MIN_EVIDENCE = 0.02, 100, 2.5


_WORD = re.compile(r"\d+|[^\W\d]+")


def words_of(row: Conversation) -> Words:
    """Return the words before the last assistant turn, and those of that turn.

    Words are runs of letters and runs of digits, in lower case.
    """
    split = split_last(row)
    if split is None:
        return set(), set()
    return set(_WORD.findall(text_of(split[0]).lower())), set(_WORD.findall(split[1].lower()))


def overlap(rows: Sequence[Words]) -> Float64:
    """Return what share of each response's words its prompt holds, rare words counting more.

    A word that stands in f of the B rows weighs log((B + 1) / (f + 1)).

    Parameters
    ----------
    rows
        `words_of` B rows.

    Returns
    -------
    float64 (B,)
        In [0, 1]; NaN for a response without a word of any weight.
    """
    return _overlap(rows, _rarity(rows))


def _rarity(rows: Sequence[Words]) -> dict[str, float]:
    found = Counter(word for prompt, response in rows for word in prompt | response)
    return {word: math.log((len(rows) + 1) / (f + 1)) for word, f in found.items()}


def _overlap(rows: Sequence[Words], rarity: dict[str, float]) -> Float64:
    result = np.full(len(rows), np.nan)
    for i, (prompt, response) in enumerate(rows):
        if total := math.fsum(rarity[word] for word in response):
            result[i] = math.fsum(rarity[word] for word in prompt & response) / total
    return result


def number_overlap(rows: Sequence[Words]) -> Float64:
    """Return what share of the distinct numbers of each response its prompt holds.

    Parameters
    ----------
    rows
        `words_of` B rows.

    Returns
    -------
    float64 (B,)
        In [0, 1]; NaN for a response with fewer than two.
    """
    result = np.full(len(rows), np.nan)
    for i, (prompt, response) in enumerate(rows):
        numbers = {word for word in response if word[0].isdecimal()}
        if len(numbers) >= 2:
            result[i] = len(numbers & prompt) / len(numbers)
    return result


def mismatch(rows: Sequence[Words], clusters: NDArray[np.int32]) -> float:
    """Estimate what share of the answers belong to another question of their cluster.

    Each prompt is dealt the answer of another row of its cluster as well. Where such answers take
    up clearly fewer of their prompt's words than the rows' own do, the most foreign of them say
    what a wrong answer looks like: as many own answers look so for each dealt one as are wrong, and
    some that are only unusual. How foreign an answer is, is the log likelihood ratio of its overlap
    between dealt and own answers, as of normal ones with their means in the cluster and the
    variance of the dealt ones. On real rows whose answers were mixed up the estimate was 6% for 10,
    21 to 22% for 30, and below 0.4% for none.

    Parameters
    ----------
    rows
        `words_of` B rows, in a fixed order.
    clusters
        int32 (B,).

    Returns
    -------
    float
        In [0, 1]; 0 where overlap tells nothing.
    """
    if len(rows) <= _MIN_FOREIGN:
        return 0.0
    order = np.argsort(clusters, kind="stable")
    _, cluster = np.unique(clusters[order], return_inverse=True)
    prompts = [rows[i] for i in order]
    # The next row of the cluster; after its last row, the first.
    dealer = np.arange(1, len(order) + 1)
    first = np.flatnonzero(np.diff(cluster, prepend=-1))
    dealer[np.append(first[1:], len(order)) - 1] = first
    rarity = _rarity(rows)
    own = _overlap(prompts, rarity)
    dealt = _overlap(
        [(prompt, prompts[j][1]) for (prompt, _), j in zip(prompts, dealer, strict=True)], rarity
    )
    # Answers in the same words say nothing: dealt labels are right as often as not.
    differs = np.array([prompts[j][1] != row[1] for row, j in zip(prompts, dealer, strict=True)])
    usable = np.isfinite(own) & np.isfinite(dealt) & differs
    own, dealt, cluster = own[usable], dealt[usable], cluster[usable]
    n_foreign = max(_MIN_FOREIGN, round(_FOREIGN * len(own)))
    if len(own) <= n_foreign:
        return 0.0
    count = np.bincount(cluster) + PRIOR_ROWS
    mean = ((np.bincount(cluster, own) + PRIOR_ROWS * own.mean()) / count)[cluster]
    gap = np.bincount(cluster, dealt - mean) + PRIOR_ROWS * (dealt.mean() - own.mean())
    gap = np.minimum(gap / count, 0)[cluster]
    of_own, of_dealt = (gap * (x - mean - gap / 2) for x in (own, dealt))
    least = np.sort(of_dealt)[-n_foreign]
    if least <= _MIN_EVIDENCE * np.mean((dealt - mean - gap) ** 2):
        return 0.0
    return min(1.0, float((of_own >= least).sum() / (of_dealt >= least).sum()))


# Where answers look mismatched beyond this share, candidates are screened; chosen, as is their
# number, on development rows (docs/log.md).
_MISMATCH = 0.03


# What that share is estimated from: at most so many rows of so many clusters.
_MISMATCH_ROWS, _MISMATCH_CLUSTERS = 64, 256


def oversample_where_mismatched(
    path: Path,
    sizes: Int64,
    seed: int,
    sample: Callable[[Int64], tuple[Sequence[Conversation], NDArray[np.int32]]],
) -> int:
    """Return how many candidates to draw for each row kept: several where answers look mismatched.

    Parameters
    ----------
    path
        Where the estimate is kept, as JSON, so that it is made once.
    sizes
        int64 (K,), rows of each cluster.
    seed
        Decides which clusters are looked at.
    sample
        Draws rows by their quotas, int64 (K,), and returns them with their clusters.
    """

    def estimate() -> dict[str, float]:
        clusters = np.random.default_rng(seed).permutation(len(sizes))[:_MISMATCH_CLUSTERS]
        quotas = np.zeros_like(sizes)
        quotas[clusters] = np.minimum(sizes[clusters], _MISMATCH_ROWS)
        rows, clusters_of_rows = sample(quotas)
        share = mismatch([words_of(messages) for messages in rows], clusters_of_rows)
        logger.info("%.1f%% of %d answers look mismatched", 100 * share, len(rows))
        return {"rows": len(rows), "mismatched": share}

    return SCREENING_OVERSAMPLE if remembered(path, estimate)["mismatched"] > _MISMATCH else 1
