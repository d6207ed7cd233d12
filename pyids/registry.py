"""The names of everything that a selection can be made of: one list for each kind of part.

A part of your own is named ``module:function`` (the present folder is searched, too), or by a name
that an installed package registers as an entry point of the group that stands with its list
(docs/extending.md). The lines stand here and not in the modules that they describe because those
import torch; `pyids methods` prints them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from pyids.errors import ConfigError

_YU = "Yu et al., arXiv 2409.11378"


@dataclass(frozen=True)
class Entry:
    """One part: its name, what it does in a line, where it comes from, where its code stands.

    Attributes
    ----------
    location
        ``module:attribute``; empty where the name stands for a form, such as a column's name.
    """

    name: str
    summary: str = ""
    source: str = ""
    location: str = ""


@dataclass(frozen=True)
class Registry:
    """All parts of one kind.

    Attributes
    ----------
    kind
        What one of them is called in messages.
    title
        Their heading in `pyids methods`, with the option that takes them.
    group
        The entry point group under which packages register theirs.
    entries
        Our own.
    """

    kind: str
    title: str
    group: str
    entries: tuple[Entry, ...]

    def names(self) -> list[str]:
        """Return the names of our own that have code, then those of installed packages."""
        own = [entry.name for entry in self.entries if entry.location]
        return [*own, *sorted(self._installed().keys() - set(own))]

    def knows(self, name: str) -> bool:
        """Whether `name` is one of `names`, or has the form ``module:function``."""
        return isinstance(name, str) and (":" in name or name in self.names())

    def check(self, name: str) -> str:
        """Return `name`, if it may be one of these; nothing is imported.

        Raises
        ------
        ValueError
            It is none; says which there are.
        """
        if not self.knows(name):
            raise ValueError(f"there is no {self.kind} {name!r}: choose {self._choices()}")
        return name

    def find(self, name: str) -> Any:
        """Import what `name` stands for.

        Raises
        ------
        ConfigError
            There is none of that name, or it cannot be imported.
        """
        if not isinstance(name, str):
            shown = repr(name)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise ConfigError(f"{self.kind} {shown}: not a name: choose {self._choices()}")
        location = next((entry.location for entry in self.entries if entry.name == name), "")
        if not location and name in (installed := self._installed()):
            location = installed[name].value
        if not location and ":" in name:
            location = name
        if not location:
            raise ConfigError(f"no {self.kind} {name!r}: choose {self._choices()}")
        module, _, attribute = location.partition(":")
        try:
            with _present_folder_on_path():
                return getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError, TypeError, SyntaxError) as error:
            raise ConfigError(
                f"{self.kind} {name!r} cannot be loaded from {location} ({error}): mend that module"
            ) from error

    def _choices(self) -> str:
        names = ", ".join(self.names())
        return f"one of {names}, or module:function" if names else "module:function"

    def _installed(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self.group)}


def find_module(name: str) -> bool:
    """Whether there is a module of that name, in the present folder too; a package is imported."""
    try:
        with _present_folder_on_path():
            return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@contextmanager
def _present_folder_on_path() -> Iterator[None]:
    """Let modules of the present folder be found, after all that is installed."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


# Their summaries and sources stand with their functions, which import nothing heavy.
METHODS = Registry(
    "method",
    "methods (pyids select --method)",
    "pyids.methods",
    tuple(
        Entry(name, location=f"pyids.methods.{file}:select")
        for name, file in (
            ("random", "random_rows"),
            ("longest", "longest"),
            ("length-stratified", "length_stratified"),
            ("uniform", "uniform"),
            ("k-center", "k_center"),
            ("km-closest", "km_closest"),
            ("km-median", "km_median"),
            ("km-random", "km_random"),
            ("kmq", "kmq"),
            ("deita", "deita"),
            ("facility-location", "facility_location"),
            ("qdit", "qdit"),
            ("clusterclip", "clusterclip"),
            ("novelselect", "novelselect"),
            ("less", "less"),
            ("mig", "mig"),
            ("rds", "rds"),
        )
    ),
)


ITERATIVE = Entry(
    "iterative",
    "Draw, train, score and re-weight the clusters, round by round: `pyids run`.",
    f"{_YU}, Algorithm 1",
)


WEIGHT_UPDATES = Registry(
    "weight update",
    "weight updates (pyids run --weight-update)",
    "pyids.weight_updates",
    (
        Entry(
            "exponential",
            "Multiply weights by exp(score / temperature).",
            "exponential weights",
            "pyids.scoring.cluster_weights:exponential",
        ),
        Entry(
            "linear",
            "Multiply weights by the score, made positive.",
            f"{_YU}, Eq. 6",
            "pyids.scoring.cluster_weights:linear",
        ),
        Entry(
            "ucb",
            "As exponential, with an upper confidence bound for clusters scored on few rows.",
            "UCB; arXiv 2505.07437, 2506.10288",
            "pyids.scoring.cluster_weights:ucb",
        ),
        Entry(
            "none",
            "Leave the weights alone: the rounds only draw.",
            "a baseline",
            "pyids.scoring.cluster_weights:none",
        ),
    ),
)


SCORERS = Registry(
    "scorer",
    "scorers (pyids run --scorer)",
    "pyids.scorers",
    (
        Entry(
            "sound-learnability",
            "Learnability within limits, less for noise, formatting and unrelated answers.",
            "pyids, docs/quality.md",
            "pyids.scoring.scorers:sound_learnability",
        ),
        Entry(
            "learnability",
            "Drop of the loss from the base model.",
            "kin: RHO-loss, arXiv 2206.07137",
            "pyids.scoring.scorers:learnability",
        ),
        Entry(
            "relative-learnability",
            "The drop as a share of the base model's loss.",
            "the same",
            "pyids.scoring.scorers:relative_learnability",
        ),
        Entry(
            "residual-learnability",
            "The drop, less what the base model's loss predicts.",
            "the same",
            "pyids.scoring.scorers:residual_learnability",
        ),
        Entry(
            "pmi",
            "By how much the prompt lowers the loss of the answer.",
            "mutual information",
            "pyids.scoring.scorers:pmi",
        ),
        Entry(
            "loss",
            "The loss that is left.",
            "a baseline",
            "pyids.scoring.scorers:loss",
        ),
        Entry(
            "ifd",
            "Loss of the answer with its prompt over that without.",
            "Li et al., arXiv 2308.12032",
            "pyids.scoring.scorers:ifd",
        ),
        Entry(
            "perplexity",
            "Perplexity of the given answer over that of the model's own.",
            f"{_YU}, Eq. 7",
            "pyids.scoring.scorers:perplexity",
        ),
        Entry(
            "reward",
            "A reward model's rating of the given answer, less that of the model's own.",
            f"{_YU}, Eq. 4",
            "pyids.scoring.scorers:rating",
        ),
        Entry(
            "judge",
            "The same with a language model behind an API as judge.",
            f"{_YU}, section 2.2",
            "pyids.scoring.scorers:rating",
        ),
        Entry(
            "gradient-alignment",
            "Cosine of a row's gradient and that of the other clusters.",
            "LESS, arXiv 2402.04333",
            "pyids.scoring.scorers:gradient_alignment",
        ),
        Entry(
            "target",
            "How much a row helps on the target: the mean of the next three (with --target).",
            "pyids, docs/quality.md",
            "pyids.scoring.target:target",
        ),
        Entry(
            "target-embedding",
            "Cosine of a row to the nearest target rows.",
            "RDS+, arXiv 2503.01807",
            "pyids.scoring.target:target_embedding",
        ),
        Entry(
            "target-gradient",
            "Cosine of a row's gradient and the target's.",
            "LESS, arXiv 2402.04333",
            "pyids.scoring.target:target_gradient",
        ),
        Entry(
            "target-influence",
            "By how much a row, read before a target row, lowers its loss.",
            "kin: arXiv 2508.10180",
            "pyids.scoring.target:target_influence",
        ),
    ),
)


SIGNALS = Registry(
    "quality signal",
    "quality of rows (--quality)",
    "pyids.signals",
    (
        Entry("COLUMN", "A numeric column of the data.", "yours"),
        Entry(
            "length",
            "Length of the responses.",
            "Zhao et al., arXiv 2402.04833",
            "pyids.scoring.signals:make_length",
        ),
        Entry(
            "perplexity",
            "Minus the log perplexity of the responses.",
            "Marion et al., arXiv 2309.04564",
            "pyids.scoring.signals:make_perplexity",
        ),
        Entry(
            "perplexity-difference",
            "Log perplexity under --model less that under MODEL: perplexity-difference:MODEL.",
            "kin: RHO-loss, arXiv 2206.07137",
            "pyids.scoring.signals:make_perplexity_difference",
        ),
        Entry(
            "ifd",
            "Instruction-following difficulty.",
            "Li et al., arXiv 2308.12032",
            "pyids.scoring.signals:make_ifd",
        ),
        Entry(
            "s-ifd",
            "The same over the tokens that the prompt changes most, under small noise.",
            "T-SHIRT, arXiv 2506.01317",
            "pyids.scoring.signals:make_s_ifd",
        ),
        Entry(
            "deita",
            "Expected ratings of complexity x quality by a causal language model.",
            "Liu et al., arXiv 2312.15685",
            "pyids.scoring.deita:make_deita",
        ),
        Entry(
            "reward",
            "The rating of a reward model: reward:MODEL.",
            f"{_YU}, section 2.1",
            "pyids.scoring.classifiers:make_reward",
        ),
        Entry(
            "classifier",
            "The grade of a text classifier: classifier:MODEL.",
            "Penedo et al., arXiv 2406.17557",
            "pyids.scoring.classifiers:make_classifier",
        ),
        Entry(
            "judge",
            "Ratings in several dimensions by a model behind an API, one request a row.",
            "DS2, arXiv 2410.10877",
            "pyids.scoring.judged:Judged",
        ),
    ),
)


TRAINERS = Registry("trainer", "trainers of your own (--trainer)", "pyids.trainers", ())


ENCODERS = Registry(
    "encoder",
    "encoders (--encoder)",
    "pyids.encoders",
    (
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
        Entry(
            "STATIC", "Mean of static token embeddings: wordllama, a model2vec folder.", "model2vec"
        ),
        Entry("URL#MODEL", "An OpenAI-compatible embeddings endpoint.", "docs/methods.md"),
        Entry("--embeddings-file", "Vectors that you have, in a .npy file.", "yours"),
        Entry("--embeddings-column", "Vectors that you have, in a column of the data.", "yours"),
    ),
)


def catalog() -> dict[str, list[Entry]]:
    """Return all parts by their heading; nothing heavy is imported."""
    methods = []
    for name in METHODS.names():
        found = METHODS.find(name)
        methods.append(Entry(name, found.summary, found.source))
    lists = {METHODS.title: methods, "rounds (pyids run)": [ITERATIVE]}
    for registry in (WEIGHT_UPDATES, SCORERS, SIGNALS, ENCODERS):
        ours = list(registry.entries)
        others = [Entry(name) for name in registry.names() if name not in {e.name for e in ours}]
        lists[registry.title] = [*ours, *others]
    return lists
