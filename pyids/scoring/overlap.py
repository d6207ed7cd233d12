"""What the words of an answer say of its question, without a model.

An answer to something else takes up few of its question's rare words. How many is usual depends on
the task, so a row is judged beside its cluster (`pyids.scoring.screening`). Whether a whole pool
has such answers the words do not say: good answers that take up few words look the same
(docs/log.md).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from pyids._typing import Float64
from pyids.chat.template import Conversation, text_of
from pyids.models.generate import split_last

# The words of a prompt, and those of its response.
Words: TypeAlias = tuple[set[str], set[str]]


# How many rows the mean of all is worth beside that of a cluster: small ones say little.
PRIOR_ROWS = 2.0


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
    found = Counter(word for prompt, response in rows for word in prompt | response)
    rarity = {word: math.log((len(rows) + 1) / (f + 1)) for word, f in found.items()}
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
