"""All that a selection can be made of, one line each with its source: `pyids methods` prints it.

The lines stand here and not in the modules that they describe because those import torch; a test
holds the names to the modules' own.
"""

from __future__ import annotations

from typing import NamedTuple

from pyids.methods import get_method, method_names

_YU = "Yu et al., arXiv 2409.11378"


class Entry(NamedTuple):
    """One line of the catalog."""

    name: str
    summary: str
    source: str


ITERATIVE = Entry(
    "iterative",
    "Draw, train, score and re-weight the clusters, round by round: `pyids run`.",
    f"{_YU}, Algorithm 1",
)


WEIGHT_UPDATES = (
    Entry("exponential", "Multiply weights by exp(score / temperature).", "exponential weights"),
    Entry("linear", "Multiply weights by the score, made positive.", f"{_YU}, Eq. 6"),
    Entry(
        "ucb",
        "As softmax, with an upper confidence bound for clusters scored on few rows.",
        "UCB; arXiv 2505.07437, 2506.10288",
    ),
    Entry("none", "Leave the weights alone: the rounds only draw.", "a baseline"),
)


SCORERS = (
    Entry(
        "sound-learnability",
        "Learnability within limits, less for noise, mere form, answers that follow from nothing.",
        "pyids, docs/quality.md",
    ),
    Entry(
        "learnability", "Drop of the loss from the base model.", "kin: RHO-loss, arXiv 2206.07137"
    ),
    Entry("relative-learnability", "The drop as a share of the base model's loss.", "the same"),
    Entry(
        "residual-learnability", "The drop, less what the base model's loss predicts.", "the same"
    ),
    Entry("pmi", "By how much the prompt lowers the loss of the answer.", "mutual information"),
    Entry("loss", "The loss that is left.", "a baseline"),
    Entry(
        "ifd",
        "Loss of the answer with its prompt over that without.",
        "Li et al., arXiv 2308.12032",
    ),
    Entry(
        "perplexity",
        "Perplexity of the given answer over that of the model's own.",
        f"{_YU}, Eq. 7",
    ),
    Entry(
        "reward",
        "A reward model's mark of the given answer, less that of the model's own.",
        f"{_YU}, Eq. 4",
    ),
    Entry("judge", "The same with a language model behind an API as judge.", f"{_YU}, section 2.2"),
    Entry(
        "gradient-alignment",
        "Cosine of a row's gradient and that of the other clusters.",
        "LESS, arXiv 2402.04333",
    ),
    Entry(
        "target",
        "How much a row helps on the target: the mean of the next three (default with --target).",
        "pyids, docs/quality.md",
    ),
    Entry("target-embedding", "Cosine of a row to the nearest target rows.", "RDS+, 2503.01807"),
    Entry(
        "target-gradient",
        "Cosine of a row's gradient and the target's.",
        "LESS, arXiv 2402.04333",
    ),
    Entry(
        "target-influence",
        "By how much a row, read before a target row, lowers its loss.",
        "kin: arXiv 2508.10180",
    ),
)


QUALITY = (
    Entry("COLUMN", "A numeric column of the data.", "yours"),
    Entry("length", "Length of the responses.", "Zhao et al., arXiv 2402.04833"),
    Entry(
        "perplexity",
        "Minus the log perplexity of the responses.",
        "Marion et al., arXiv 2309.04564",
    ),
    Entry(
        "perplexity-difference:MODEL",
        "Log perplexity under --model less that under MODEL.",
        "kin: RHO-loss, arXiv 2206.07137",
    ),
    Entry("ifd", "Instruction-following difficulty.", "Li et al., arXiv 2308.12032"),
    Entry(
        "s-ifd",
        "The same over the tokens that the prompt changes most, under small noise.",
        "T-SHIRT, arXiv 2506.01317",
    ),
    Entry(
        "deita",
        "Expected ratings of complexity x quality by a causal language model.",
        "Liu et al., arXiv 2312.15685",
    ),
    Entry("reward:MODEL", "The mark of a reward model.", f"{_YU}, section 2.1"),
    Entry("classifier:MODEL", "The grade of a text classifier.", "Penedo et al., arXiv 2406.17557"),
    Entry(
        "judge",
        "Ratings in several dimensions by a model behind an API, one request a row.",
        "DS2, arXiv 2410.10877",
    ),
)


ENCODERS = (
    Entry(
        "NAME",
        "A sentence-transformers folder, hub name or alias.",
        "Reimers and Gurevych, arXiv 1908.10084",
    ),
    Entry(
        "CAUSAL-LM",
        "Hidden states of a causal language model, weighted by position.",
        "RDS+, arXiv 2503.01807",
    ),
    Entry("CAUSAL-LM:last_token", "The hidden state of the last token.", "arXiv 2401.00368"),
    Entry("STATIC", "Mean of static token embeddings: wordllama, a model2vec folder.", "model2vec"),
    Entry("URL#MODEL", "An OpenAI-compatible embeddings endpoint.", "docs/methods.md"),
    Entry("--embeddings-file", "Vectors that you have, in a .npy file.", "yours"),
    Entry("--embeddings-column", "Vectors that you have, in a column of the data.", "yours"),
)


def catalog() -> dict[str, list[Entry]]:
    """Return all entries, by what they are and by the option that takes them."""
    static = [Entry(name, (m := get_method(name)).summary, m.source) for name in method_names()]
    return {
        "methods (pyids select --method)": [*static, ITERATIVE],
        "weight rules (pyids run --weight-update)": list(WEIGHT_UPDATES),
        "scorers (pyids run --scorer)": list(SCORERS),
        "quality of rows (--quality)": list(QUALITY),
        "encoders (--encoder)": list(ENCODERS),
    }
