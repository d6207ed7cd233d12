"""Scores of probe rows under a base model and a checkpoint trained from it.

Everything rests on `response_nll`: the mean NLL of each row's response tokens, from hidden states
times the LM head at those tokens alone, never the whole logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64
from pyids.chat.template import Conversation, last_response
from pyids.errors import ConfigError
from pyids.models.pair import Models
from pyids.registry import SCORERS
from pyids.scoring.probes import Probes, Scores, ScoringOptions
from pyids.scoring.statistics import cluster_means, pseudovalues, robust_spread

Scorer = Callable[[Probes], Scores]


def find_scorer(name: str) -> Scorer:
    """Find a scorer by name.

    Raises
    ------
    ConfigError
        There is none of that name, or it is no function.
    """
    found = SCORERS.find(name)
    if not callable(found):
        raise ConfigError(f"scorer {name!r}: it is {found!r}: name a function of `Probes`")
    scorer: Scorer = found
    return scorer


def score(
    scorer: str,
    models: Models,
    rows: Sequence[Conversation],
    clusters: NDArray[np.int32],
    options: ScoringOptions | None = None,
) -> Scores:
    """Score probe rows.

    Parameters
    ----------
    scorer
        A name of `pyids.registry.SCORERS`, or ``module:function``.
    models, rows, clusters, options
        See `Probes`.
    """
    if len(rows) != len(clusters):
        raise ValueError(f"{len(rows)} rows and {len(clusters)} clusters do not match")
    return find_scorer(scorer)(Probes(models, rows, clusters, options or ScoringOptions()))


def learnability(probes: Probes) -> Scores:
    """Return base - checkpoint: what the training so far has taught about rows it did not see."""
    return Scores(probes.base_nll - probes.checkpoint_nll, probes.columns)


def relative_learnability(probes: Probes) -> Scores:
    """Return (base - checkpoint) / base: a high loss leaves more to drop, so count the share."""
    base = probes.base_nll
    return Scores((base - probes.checkpoint_nll) / np.maximum(base, 1e-6), probes.columns)


def residual_learnability(probes: Probes) -> Scores:
    """Return base - checkpoint, less what the base loss alone predicts over all probe rows.

    Training lowers the loss of any consistent format, and more where the loss is higher. A
    least-squares line of the drop on the base loss carries that part; what is left is the row's
    own.
    """
    base = probes.base_nll
    drop = base - probes.checkpoint_nll
    known = np.isfinite(drop)
    if known.any():
        x = base[known] - base[known].mean()
        slope = x @ drop[known] / (x @ x) if x @ x > 0 else 0.0
        drop[known] -= drop[known].mean() + slope * x
    return Scores(drop, probes.columns)


def loss(probes: Probes) -> Scores:
    """Return the checkpoint's NLL: what the model still cannot say scores high."""
    nll = probes.checkpoint_nll
    return Scores(nll, {"checkpoint_nll": nll})


def ifd(probes: Probes) -> Scores:
    """Return NLL(response | prompt) / NLL(response): how little the prompt helps.

    The instruction-following difficulty of Li et al. (arXiv 2308.12032), under the checkpoint. The
    response alone follows the tokenizer's beginning-of-text token. Above 1 the prompt misleads
    (a swapped answer, noise): such rows are left out in the paper and count 0 here.
    """
    alone = probes.response_alone_nll
    ratio = probes.checkpoint_nll / np.maximum(alone, 1e-6)
    columns = {"checkpoint_nll": probes.checkpoint_nll, "response_nll": alone, "ifd": ratio}
    return Scores(np.where(ratio > 1, 0.0, ratio), columns)


def pmi(probes: Probes) -> Scores:
    """Return NLL(response) - NLL(response | prompt): by how many nats a token the prompt helps.

    The pointwise mutual information of prompt and response under the checkpoint. Where the answer
    does not follow from the question (noise, boilerplate, another alphabet) the prompt helps
    little, however well or badly the model has learnt to say such answers.
    """
    alone = probes.response_alone_nll
    columns = {"checkpoint_nll": probes.checkpoint_nll, "response_nll": alone}
    return Scores(alone - probes.checkpoint_nll, columns)


def perplexity(probes: Probes) -> Scores:
    """Return -log(PPL(generated) / PPL(gold)): the paper's Eq. 7.

    Both are the last assistant turn given what stands before it, under the checkpoint, whose greedy
    answer the generated one is.
    """
    gold = probes.encoded_nll([last_response(row) for row in probes.encode(probes.references)])
    ours = probes.encoded_nll([last_response(row) for row in probes.encode(probes.answers)])
    return Scores(gold - ours, {"gold_nll": gold, "generated_nll": ours})


def rating(probes: Probes) -> Scores:
    """Return reward(gold) - reward(generated): the paper's Eq. 4 with a reward model or a judge."""
    rater = probes.options.rater
    if rater is None:
        raise ConfigError("this scorer needs a reward model or a judge: name one")
    generated, progress = probes.answers, probes.options.progress
    probes.close()  # room for the rater
    gold = np.asarray(rater.rate(probes.references, progress), np.float64)
    ours = np.asarray(rater.rate(generated, progress), np.float64)
    return Scores(gold - ours, {"gold_reward": gold, "generated_reward": ours})


def gradient_alignment(probes: Probes) -> Scores:
    """Return the cosine of each row's gradient and the mean gradient of the other clusters.

    A step that helps the row then helps the rest too; the gradients of garbage point nowhere in
    common. Row gradients have unit length, so that long or noisy rows do not lead; each cluster
    counts once in the mean. Kin: LESS (arXiv 2402.04333).
    """
    gradients = probes.gradients(probes.rows).astype(np.float64)
    learnt = gradients.any(1)
    _, cluster = np.unique(probes.clusters, return_inverse=True)
    counts = np.bincount(cluster[learnt], minlength=cluster.max(initial=-1) + 1)
    means = np.zeros((len(counts), gradients.shape[1]))
    np.add.at(means, cluster, gradients)
    means /= np.maximum(counts, 1)[:, None]
    others = means.sum(0) - means[cluster]
    length = np.linalg.norm(others, axis=1)
    cosine = (gradients * others).sum(1) / np.maximum(length, 1e-30)
    return Scores(np.where(learnt & (length > 0), cosine, np.nan))


# What these were chosen on is in docs/log.md.
_LEARNT, _NOISE, _FORM, _LIMIT, _ENOUGH_HELP, _HELP = 0.3, 1.5, 4.0, 5.0, 2 / 3, 12.0


def sound_learnability(probes: Probes) -> Scores:
    """Return how learnable a cluster is, within limits, less three signs that it is garbage.

    Let d be the cluster's mean drop of the loss, s that of the loss summed over the response, and c
    its mean loss under the checkpoint, all in robust standard deviations over the clusters; h the
    share of the response's loss that the prompt saves (1 - IFD) and m its median. The score is
    ``0.3 min(max(d, -1), 4)``, so that no skill gets lost, and less by

    - ``4 max(c - 1.5, 0)``: noise stays surprising;
    - ``max(min(d, s) - 4, 0)``: formatting (boilerplate, another alphabet) is learnt at once, at
      least by a model that knows few forms, and there is much of it, unlike in a label of one word;
    - ``12 m max(2/3 m - max(h, 0), 0)``: garbage does not follow from its prompts, as a model tells
      that reads them; m says how well it does.

    The first two count for 5 at most. No one of the signs serves every model. As the score of a
    cluster is no mean of its rows' own, a row's value is its jackknife pseudovalue
    (`pyids.scoring.statistics.pseudovalues`): their mean is the score, their variance its noise.
    """
    given, alone = probes.checkpoint_nll, probes.response_alone_nll
    drop, tokens = probes.base_nll - given, probes.response_tokens
    measured = np.stack([drop, drop * tokens, given, alone])
    measured[:, ~np.isfinite(measured).all(axis=0)] = np.nan
    means = cluster_means(measured, probes.clusters)
    usual = [_center_and_spread(x) for x in means[:3]]
    h = _saved(means)
    m = float(np.median(h)) if len(h) else 0.0

    def score(of: Float64) -> Float64:
        d, s, c = (_deviations(x, *known) for x, known in zip(of[:3], usual, strict=True))
        noise = np.clip(4 * (c - _NOISE), 0, _LIMIT)
        form = np.clip(np.minimum(d, s) - _FORM, 0, _LIMIT)
        unhelped = np.maximum(_ENOUGH_HELP * m - _saved(of), 0)
        return np.asarray(_LEARNT * np.clip(d, -1, 4) - noise - form - _HELP * m * unhelped)

    columns = {**probes.columns, "response_nll": alone, "response_tokens": tokens}
    values = pseudovalues(score, measured, probes.clusters)
    return Scores(values, columns, temperature=1.0, pooled_noise=False)


def _saved(means: Float64) -> Float64:
    """Return the share of the response's loss that the prompt saves, 0 where it saves none."""
    return np.asarray(np.maximum(1 - means[2] / np.maximum(means[3], 1e-6), 0))


def _center_and_spread(means: Float64) -> tuple[float, float]:
    """Return the median and the robust standard deviation of clusters, 0 for none."""
    if not len(means):
        return 0.0, 0.0
    median = float(np.median(means))
    return median, robust_spread(means - median)


def _deviations(means: Float64, median: float, spread: float) -> Float64:
    """Return values as robust standard deviations from the median."""
    return (means - median) / spread if spread > 0 else np.zeros(len(means))
