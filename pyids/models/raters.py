"""Who rates answers: a reward model or a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pyids._typing import Float64
from pyids.chat.template import Conversation
from pyids.config import RunConfig
from pyids.device import device
from pyids.models.batching import Progress

if TYPE_CHECKING:
    from pyids.models.endpoint import Endpoint


class Rater(Protocol):
    """Rates conversations: a reward model (`pyids.models.reward`), a judge."""

    def rate(
        self, conversations: Sequence[Conversation], progress: Progress | None = None
    ) -> Float64:
        """Return a rating of the last turn of each conversation, NaN where there is none."""
        ...


def rater(config: RunConfig, cache: Path) -> Rater | None:
    """Make who rates answers for the scorer, if it wants somebody.

    Parameters
    ----------
    cache
        The folder where a judge keeps its answers.
    """
    if config.scorer == "reward" and config.reward_model:
        from pyids.models.hub import resolve_model
        from pyids.models.reward import RewardModel

        return RewardModel(
            resolve_model(config.reward_model),
            config.max_length,
            device=device(config),
            dtype=config.dtype,
        )
    if config.scorer == "judge":
        from pyids.models.judge import Judge

        return Judge(judge_endpoint(config), cache=cache / "judge.jsonl")
    return None


def judge_endpoint(config: RunConfig) -> Endpoint:
    """Return where the judge is asked."""
    from pyids.models.endpoint import Endpoint

    return Endpoint(
        config.judge_url or "", config.judge_model or "", max_requests=config.judge_max_requests
    )
