"""Ratings by a judge as a quality signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pyids._typing import Float64

if TYPE_CHECKING:
    from pyids.chat.template import Conversation
    from pyids.models.judge import Judge


@dataclass(frozen=True)
class Judged:
    """The mean of a judge's ratings, 1 to 10, in several dimensions (`pyids.models.judge`).

    Attributes
    ----------
    judge
        Who is asked; it keeps its answers by content, and stops at its cap.
    """

    judge: Judge
    name: ClassVar[str] = "judge"

    @property
    def identity(self) -> dict[str, Any]:
        """See `Signal`."""
        endpoint = self.judge.endpoint
        asked = {"url": endpoint.url, "model": endpoint.model, "prompt": self.judge.prompt}
        return {"signal": self.name, **asked}

    def score(self, rows: Sequence[Conversation]) -> Float64:
        """See `Signal`."""
        return self.judge.rate(rows)
