"""Signals that weigh single tokens, or two models, against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pyids._typing import Float64
from pyids.scoring.signals import LanguageModelSignal, model_identity

if TYPE_CHECKING:
    from pyids.chat.template import Conversation


@dataclass(frozen=True)
class SIfd(LanguageModelSignal):
    """Instruction-following difficulty over the tokens that the prompt changes most, made robust.

    Let d be by how much the prompt changes a token's log-likelihood. IFD, ``NLL(y | x) / NLL(y)``,
    is taken over the `share` of the tokens of largest ``|d|``, ties to the earlier; above 1 it
    counts 0, as for `pyids.scoring.signals.Ifd`. The score is the mean less the standard deviation
    over `draws` passes with a little noise on the embeddings: what hangs on their last digits is no
    sign of a good row.

    Attributes
    ----------
    share
        Of a row's response tokens, at least one.
    draws
        Passes with noise; 0: one without.
    noise
        See `pyids.models.token_nll.token_nlls`.

    References
    ----------
    Fu et al., "T-SHIRT", arXiv 2506.01317.
    """

    share: float = 0.5
    draws: int = 3
    noise: float = 5.0
    name: ClassVar[str] = "s-ifd"

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        options = {"share": self.share, "draws": self.draws, "noise": self.noise}
        return {**super().identity, **options}

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        from pyids.chat.template import response_alone
        from pyids.models.token_nll import token_nlls

        model, tokenizer = self._loaded
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        given = self._encode(rows)
        alone = [response_alone(row, start or 0) for row in given]
        ratios = []
        for draw in range(max(1, self.draws)):
            both = (
                token_nlls(
                    model, part, batch_tokens=self.batch_tokens, device=self.device,
                    noise=self.noise if self.draws else 0.0, seed=draw,
                )
                for part in (given, alone)
            )  # fmt: skip
            ratios.append([selective_ratio(g, a, self.share) for g, a in zip(*both, strict=True)])
        found = np.array(ratios, np.float64).reshape(-1, len(rows))
        scores: Float64 = found.mean(axis=0) - found.std(axis=0)
        return np.maximum(scores, 0)


def selective_ratio(given: Float64, alone: Float64, share: float) -> float:
    """Return IFD over the `share` of the tokens that the prompt changes most; NaN without tokens.

    Parameters
    ----------
    given, alone : float64 (T,)
        NLL of each response token with and without the prompt.
    """
    if not len(given):
        return np.nan
    n = max(1, int(np.ceil(share * len(given))))
    most = np.argsort(-np.abs(alone - given), kind="stable")[:n]
    ratio = float(given[most].sum() / max(alone[most].sum(), 1e-6))
    return 0.0 if ratio > 1 else ratio


@dataclass(frozen=True)
class PerplexityDifference(LanguageModelSignal):
    """Log perplexity under the base model less that under another: what there is to learn from it.

    High where the other model, trained on rows of the kind that is wanted or simply stronger, finds
    the responses likelier. Kin: RHO-loss (arXiv 2206.07137).

    Attributes
    ----------
    other
        The other model; see `pyids.models.hub.resolve_model`.
    """

    other: str = ""
    name: ClassVar[str] = "perplexity-difference"

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        return {**super().identity, "other": model_identity(self.other)}

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        ours, theirs = self._sums(rows), self._reference._sums(rows)
        # A token of one tokenizer may be two of another's: per token of the base model's.
        differences: Float64 = (ours[0] - theirs[0]) / ours[1]
        return differences

    @cached_property
    def _reference(self) -> PerplexityDifference:
        return replace(self, model=self.other)

    def _sums(self, rows: Sequence[Conversation]) -> tuple[Float64, Float64]:
        """Return the NLL of each row's response and its tokens; NaN where there are none."""
        from pyids.models.nll import encoded_nll

        nll = encoded_nll(
            self._loaded[0], self._encode(rows),
            batch_tokens=self.batch_tokens, device=self.device,
        )  # fmt: skip
        return nll.mean * nll.counts, np.where(nll.counts, nll.counts, np.nan)
