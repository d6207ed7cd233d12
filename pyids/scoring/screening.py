"""Candidate screening: which rows are outliers of their clusters, which clusters cannot tell.

A cluster is a mixture: good rows beside answers that were cut off, or that belong to another
question. Three measurements find them, each meaningful only next to a row's own cluster, since
kinds of tasks differ far more than their rows do:

- the NLL of the last response token: a model is surprised by an end where the text breaks off;
- how many of the answer's rare words stand in the question: an answer to something else takes up
  few of them, an answer that only repeats its question nearly all;
- how many of its numbers do: a calculation with wrong ones has words enough in common.

Looking costs where there is nothing to find, for what is kept is more alike than the pool is, and
no rule that was tried tells from the pool whether there is (docs/log.md). So it is off unless asked
for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64
from pyids.chat.template import Conversation, Encoded, encode, truncate
from pyids.config import RunConfig
from pyids.device import device
from pyids.engine import Engine, LocalEngine
from pyids.models.hf import torch_threads
from pyids.models.hub import round_model
from pyids.models.load import load_model, load_tokenizer
from pyids.models.nll import ResponseNll, encoded_nll
from pyids.progress import reporter
from pyids.scoring.overlap import PRIOR_ROWS, number_overlap, overlap, words_of
from pyids.scoring.statistics import robust_spread
from pyids.scoring.together import Together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Deviations beyond which a row is an outlier: chosen on development rows (docs/log.md).
_END, _FEW_WORDS, _MANY_WORDS, _FEW_NUMBERS = 1.0, 1.0, 2.0, 0.0


def screen(
    rows: Sequence[Conversation],
    clusters: NDArray[np.int32],
    config: RunConfig,
    *,
    scratch: Path,
    engine: Engine | None = None,
) -> dict[str, Float64]:
    """Measure candidates with the model of the rounds, and how far each is an outlier.

    Parameters
    ----------
    rows, clusters
        B rows of messages and their clusters, int32 (B,).
    scratch
        Where rows are left for the processes that measure them, if there are several.
    engine
        Where a selection's tasks run: rows are measured by the workers of a cluster.

    Returns
    -------
    dict
        What `measure` returns, and ``outlier_score``, float64 (B,).
    """
    progress, longest, ref = reporter("screen"), config.max_length, round_model(config)
    together = Together.of(config, None, scratch, engine or LocalEngine())
    if together is None:
        where = device(config)
        with torch_threads(config.threads):
            model, tokenizer = load_model(ref, where, config.dtype)
            nll = partial(encoded_nll, model, device=where, progress=progress)
            columns = measure(nll, tokenizer, rows, max_length=longest)
    else:
        with closing(together):
            nll = partial(together.nll, "base", progress=progress)
            columns = measure(nll, load_tokenizer(ref), rows, max_length=longest)
    return {**columns, "outlier_score": outlier_score(columns, clusters)}


def measure(
    nll: Callable[[Sequence[Encoded]], ResponseNll],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation],
    *,
    max_length: int = 2048,
) -> dict[str, Float64]:
    """Measure what `outlier_score` judges by.

    Parameters
    ----------
    nll
        What the model says of rows of tokens (`pyids.models.nll.encoded_nll`).
    rows
        B rows of messages.
    max_length
        See `pyids.chat.template.truncate`.

    Returns
    -------
    dict
        ``end_nll``, float64 (B,): NLL of the last response token in nats; NaN where there is none,
        or it was cut off by `max_length`. ``overlap`` and ``number_overlap``, float64 (B,): see
        `pyids.scoring.overlap`.
    """
    whole = [encode(messages, tokenizer) for messages in rows]
    cut = [truncate(row, max_length) for row in whole]
    ended = [
        before.response_mask.sum() == after.response_mask.sum()
        for before, after in zip(whole, cut, strict=True)
    ]
    words = [words_of(row) for row in rows]
    return {
        "end_nll": np.where(ended, nll(cut).end, np.nan),
        "overlap": overlap(words),
        "number_overlap": number_overlap(words),
    }


def outlier_score(columns: dict[str, Float64], clusters: NDArray[np.int32]) -> Float64:
    """Return the outlier score of each row in its cluster, in standard deviations.

    A measurement is centered by the mean of the row's cluster (drawn towards the mean of all rows,
    the more the fewer rows it rests on) and divided by the robust spread of all rows. What lies
    within a standard deviation is ordinary. Beyond it an end that comes as a surprise counts, one
    that is expected does not; few words of the prompt count, many do beyond two. Few of its numbers
    count from the mean on: where a third of a cluster calculates wrongly, that third lies hardly a
    deviation below it.

    Parameters
    ----------
    columns
        What `measure` returned, for B rows; NaN counts as no outlier.
    clusters
        int32 (B,).

    Returns
    -------
    float64 (B,)
        0 or more.
    """
    end = _standardise(columns["end_nll"], clusters)
    words = _standardise(columns["overlap"], clusters)
    numbers = _standardise(columns["number_overlap"], clusters)
    few = np.maximum(-words - _FEW_WORDS, 0) + np.maximum(-numbers - _FEW_NUMBERS, 0)
    scores: Float64 = np.maximum(end - _END, 0) + np.maximum(few, words - _MANY_WORDS)
    return scores


def _standardise(values: Float64, clusters: NDArray[np.int32]) -> Float64:
    """Center by cluster and scale; 0 where there is no value."""
    known = np.isfinite(values)
    result = np.zeros(len(values))
    if known.sum() < 2:
        return result
    x, (_, cluster) = values[known], np.unique(clusters[known], return_inverse=True)
    count = np.bincount(cluster)
    mean = (np.bincount(cluster, x) + PRIOR_ROWS * x.mean()) / (count + PRIOR_ROWS)
    centered = x - mean[cluster]
    spread = robust_spread(centered)
    if spread > 0:
        result[known] = centered / spread
    return result
