"""A judge: a language model behind an endpoint that rates answers from 1 to 10.

Ratings are kept by content, so that an answer is paid for once: after a crash, in a later round, or
where the same row is probed again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import xxhash

from pyids._typing import Float64
from pyids.chat.render import said_in
from pyids.chat.template import Conversation
from pyids.errors import ModelError
from pyids.models.answers import Answers
from pyids.models.batching import Progress
from pyids.models.endpoint import Endpoint

JUDGE_PROMPT = (
    "You are an impartial judge of an assistant's answers. Below is a conversation. Judge only the "
    "assistant's last answer: is it correct, helpful, clear and complete for what was asked?\n\n"
    "Give your rating from 1 (useless) to 10 (could not be better) in double square brackets, "
    "for example: [[5]]\n\n"
    "<conversation>\n{conversation}\n</conversation>\n\n"
    "Your rating:"
)


# What a row is rated for, and what its answer is asked to be.
DIMENSIONS = ("accuracy", "helpfulness", "clarity", "complexity")


QUALITY_PROMPT = (
    "You rate training examples for an assistant. Below is a conversation. Rate its last answer "
    "from 1 (useless) to 10 (could not be better) for {dimensions}; complexity is how much the "
    "request demands.\n\n"
    "Give one line for each, with the rating in double square brackets:\n{lines}\n\n"
    "<conversation>\n{conversation}\n</conversation>\n\n"
    "Your ratings:"
)


_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")


def parse_rating(answer: str) -> float | None:
    """Return the last ``[[n]]`` of an answer if n is 1 to 10, else None."""
    found = _RATING.findall(answer)
    rating = float(found[-1]) if found else 0.0
    return rating if 1 <= rating <= 10 else None


def quality_prompt(dimensions: Sequence[str] = DIMENSIONS) -> str:
    """Return a prompt that asks for a rating in each of several dimensions at once."""
    lines = "\n".join(f"{name}: [[n]]" for name in dimensions)
    asked = QUALITY_PROMPT.replace("{dimensions}", ", ".join(dimensions))
    return asked.replace("{lines}", lines)


def parse_ratings(answer: str, dimensions: Sequence[str]) -> float | None:
    """Return the mean of the last ratings of all dimensions; None where one is missing."""
    ratings = []
    for name in dimensions:
        lines = [line for line in answer.splitlines() if name.lower() in line.lower()]
        found = [rating for line in lines if (rating := parse_rating(line)) is not None]
        if not found:
            return None
        ratings.append(found[-1])
    return sum(ratings) / len(ratings)


@dataclass
class Judge:
    """Rates the last turn of conversations; a `pyids.models.raters.Rater`.

    Attributes
    ----------
    endpoint
        Who is asked, and what it may cost.
    cache
        A file to which ratings are appended, one JSON object a line; None keeps them in memory.
    prompt
        With ``{conversation}``; asks for a rating ``[[n]]``.
    answer_tokens
        Longest answer of the judge.
    dimensions
        What the prompt asks to be rated, each in a line of its own; a rating is their mean. None:
        one rating.
    """

    endpoint: Endpoint
    cache: Path | None = None
    prompt: str = JUDGE_PROMPT
    answer_tokens: int = 256
    dimensions: tuple[str, ...] = ()
    _answers: Answers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._answers = Answers(self.cache, "rating")

    def rate(
        self, conversations: Sequence[Conversation], progress: Progress | None = None
    ) -> Float64:
        """Return the rating of the last turn of each of B conversations.

        Returns
        -------
        float64 array of shape (B,)
            1 to 10; NaN where the last turn is not the assistant's, or the judge gave no rating.

        Raises
        ------
        ConfigError
            A cap of the endpoint was reached. What was rated before is kept.
        ModelError
            The endpoint fails, or fewer than half of the answers hold a rating.
        """
        prompts = {
            i: self._fill(messages)
            for i, messages in enumerate(conversations)
            if messages and messages[-1]["role"] == "assistant"
        }
        keys = {i: self._key(prompt) for i, prompt in prompts.items()}
        questions = {keys[i]: prompt for i, prompt in prompts.items()}
        self._answers.ask(questions, self._ask, self.endpoint.workers, progress)
        ratings = np.full(len(conversations), np.nan)
        for i, key in keys.items():
            rating = self._answers[key]
            ratings[i] = np.nan if rating is None else rating
        unrated = int(np.isnan(ratings[list(keys)]).sum())
        if 2 * unrated > len(keys):
            raise ModelError(
                f"{self.endpoint.url}: {unrated} of {len(keys)} answers of model "
                f"{self.endpoint.model!r} hold no rating [[1]] to [[10]]: choose a model that "
                "follows instructions, or another prompt"
            )
        return ratings

    def _fill(self, messages: Conversation) -> str:
        turns = (f"{m['role'].upper()}: {said_in(m)}" for m in messages)
        # Not str.format: the conversation may hold braces, and so may the prompt.
        return self.prompt.replace("{conversation}", "\n\n".join(turns))

    def _key(self, prompt: str) -> str:
        asked = [self.endpoint.url, self.endpoint.model, self.answer_tokens, prompt]
        return xxhash.xxh3_128_hexdigest(orjson.dumps(asked))

    def _ask(self, prompt: str) -> float | None:
        answer = self.endpoint.chat(
            [{"role": "user", "content": prompt}], temperature=0, max_tokens=self.answer_tokens
        )
        several = self.dimensions
        return parse_ratings(answer, several) if several else parse_rating(answer)
