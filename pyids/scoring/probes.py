"""The unseen rows of a round, and what a scorer measures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.chat.template import (
    Conversation,
    Encoded,
    encode,
    encode_prompt,
    response_alone,
    with_turns,
)
from pyids.config import RunConfig
from pyids.device import device
from pyids.engine import Engine as TaskEngine
from pyids.engine import LocalEngine
from pyids.models.batching import Progress
from pyids.models.generate import generate, split_last
from pyids.models.gradients import row_gradients
from pyids.models.hf import torch_threads
from pyids.models.hub import round_model
from pyids.models.load import load_tokenizer
from pyids.models.nll import encoded_nll, response_nll
from pyids.models.pair import Models
from pyids.models.raters import Rater, rater
from pyids.models.serving import Engine, serving_engine
from pyids.progress import reporter
from pyids.scoring.served import Served
from pyids.scoring.together import Together


@dataclass(frozen=True)
class ScoringOptions:
    """What every scorer needs to know.

    Attributes
    ----------
    max_length
        Longest row (`pyids.chat.template.truncate`).
    batch_tokens
        Tokens of a forward pass with its padding: speed, not values; None for the device's default.
    max_new_tokens
        Longest answer of the scorers that let the checkpoint answer.
    rater
        Who rates answers for `rating`: a reward model, a judge.
    engine
        A serving engine that is asked instead of the local models; see `pyids.models.serving`.
    together
        Several processes that score; None for this one.
    seed
        Of the gradients' sketch.
    target, target_tasks
        Rows that show what is wanted, and the task of each, for the scorers of `target`.
    target_cosines
        float64 (B,): how near each probe row is to the target by its vector.
    progress
        Called after each batch of a pass over the rows.
    """

    max_length: int = 2048
    batch_tokens: int | None = None
    max_new_tokens: int = 128
    rater: Rater | None = None
    engine: Engine | None = None
    together: Together | None = None
    seed: int = 0
    target: Sequence[Conversation] = ()
    target_tasks: Sequence[str] = ()
    target_cosines: Float64 | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Scores:
    """What a scorer says about the probe rows.

    Attributes
    ----------
    values
        float64 (B,): higher means that the row's cluster deserves more. NaN where the row has no
        response token.
    columns
        What the values were made of, float64 (B,) each, to be kept beside them.
    temperature
        The score that multiplies a weight by e; None: to be taken from the spread of the scores.
    pooled_noise
        Whether rows of all clusters are equally noisy: their variances are pooled then. Not so for
        pseudovalues of a score that is steep in places (`pyids.scoring.statistics.pseudovalues`).
    """

    values: Float64
    columns: dict[str, Float64] = field(default_factory=dict)
    temperature: float | None = None
    pooled_noise: bool = True


# ---- round scorers -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probes:
    """What a scorer gets: the probe rows of a round and the two models.

    Attributes
    ----------
    models
        The base model and the round's checkpoint.
    rows
        B rows of messages that the checkpoint was not trained on.
    clusters
        int32 (B,): the cluster of each row.
    options
        See `ScoringOptions`.
    """

    models: Models
    rows: Sequence[Conversation]
    clusters: NDArray[np.int32]
    options: ScoringOptions

    @cached_property
    def served(self) -> Served | Together | None:
        """The models at a serving engine, if one is named, or in several processes."""
        if self.options.engine is None:
            return self.options.together
        from pyids.scoring.signals import model_identity

        models = self.models
        return Served(
            self.options.engine,
            model_identity(models.ref.name),
            models.base,
            models.trained,
            models.close,
            checkpoint=models.checkpoint,
            device=models.device,
            dtype=models.dtype,
        )

    @cached_property
    def _tokenizer(self) -> Any:
        """The models' tokenizer; where they are elsewhere, without loading them."""
        if self.served is not None:
            return load_tokenizer(self.models.ref)
        with self.models.trained() as (_, tokenizer):
            return tokenizer

    @cached_property
    def base_nll(self) -> Float64:
        """The base model's NLL of each row."""
        if self.served is not None:
            return self.served.nll("base", self.encode(self.rows), self.options.progress).mean
        with self.models.base() as (model, tokenizer):
            return self._nll(model, tokenizer, self.rows)[0]

    @cached_property
    def _checkpoint(self) -> tuple[Float64, Int64]:
        if self.served is not None:
            rows = self.encode(self.rows)
            found = self.served.nll("trained", rows, self.options.progress)
            return found.mean, found.counts
        with self.models.trained() as (model, tokenizer):
            return self._nll(model, tokenizer, self.rows)

    @cached_property
    def checkpoint_nll(self) -> Float64:
        """The checkpoint's NLL of each row."""
        return self._checkpoint[0]

    @cached_property
    def response_tokens(self) -> Float64:
        """How many tokens of each row have a loss: what the mean NLLs are means of."""
        return self._checkpoint[1].astype(np.float64)

    @cached_property
    def response_alone_nll(self) -> Float64:
        """The checkpoint's NLL of each response without its prompt."""
        bos = self._tokenizer.bos_token_id
        begin = (bos if bos is not None else self._tokenizer.eos_token_id) or 0
        return self.encoded_nll([response_alone(row, begin) for row in self.encode(self.rows)])

    @property
    def columns(self) -> dict[str, Float64]:
        """Both NLLs, under the names that runs keep them by."""
        return {"base_nll": self.base_nll, "checkpoint_nll": self.checkpoint_nll}

    @cached_property
    def answers(self) -> list[Conversation]:
        """Each row with the last assistant turn as the checkpoint would have it.

        A row without an assistant turn stays as it is.
        """
        splits = [split_last(messages) for messages in self.rows]
        texts = iter(self._generate([split[0] for split in splits if split]))
        return [
            _answered(split[0], next(texts)) if split else messages
            for split, messages in zip(splits, self.rows, strict=True)
        ]

    def _generate(self, prompts: Sequence[Conversation]) -> list[str]:
        options = self.options
        if self.served is not None:
            rows = [encode_prompt(row, self._tokenizer, options.max_length) for row in prompts]
            return self.served.answer(
                "trained", rows, options.max_new_tokens, self.encode(self.rows), options.progress
            )
        with self.models.trained() as (model, tokenizer):
            return generate(
                model,
                tokenizer,
                prompts,
                max_length=options.max_length,
                max_new_tokens=options.max_new_tokens,
                device=self.models.device,
                progress=options.progress,
            )

    @cached_property
    def references(self) -> list[Conversation]:
        """Each row up to its last assistant turn."""
        return [
            _answered(*split) if split else messages
            for messages in self.rows
            for split in [split_last(messages)]
        ]

    def encoded_nll(self, rows: Sequence[Encoded]) -> Float64:
        """Return the checkpoint's NLL of rows that are tokens already."""
        if self.served is not None:
            return self.served.nll("trained", rows, self.options.progress).mean
        with self.models.trained() as (model, _):
            return encoded_nll(
                model,
                rows,
                batch_tokens=self.options.batch_tokens,
                device=self.models.device,
                progress=self.options.progress,
            ).mean

    def gradients(self, rows: Sequence[Conversation]) -> NDArray[np.float32]:
        """Return the sketched gradient of each row under the checkpoint, float32 (B, dims)."""
        options, encoded = self.options, self.encode(rows)
        if options.together is not None:
            return options.together.gradients(encoded, options.seed, options.progress)
        with self.models.trained() as (model, _):
            return row_gradients(
                model,
                encoded,
                seed=options.seed,
                device=self.models.device,
                progress=options.progress,
            )

    def close(self) -> None:
        """Give back the memory that the models take."""
        self.models.close()
        if self.options.together is not None:
            self.options.together.close()

    def encode(self, rows: Sequence[Conversation]) -> list[Encoded]:
        """Turn rows into tokens."""
        return [encode(messages, self._tokenizer, self.options.max_length) for messages in rows]

    def _nll(
        self, model: Any, tokenizer: Any, rows: Sequence[Conversation]
    ) -> tuple[Float64, Int64]:
        return response_nll(
            model,
            tokenizer,
            rows,
            max_length=self.options.max_length,
            batch_tokens=self.options.batch_tokens,
            device=self.models.device,
            progress=self.options.progress,
        )


def _answered(prompt: Conversation, answer: str) -> Conversation:
    return with_turns(prompt, [*prompt, {"role": "assistant", "content": answer}])


def score_probes(
    config: RunConfig,
    checkpoint: Path,
    rows: Sequence[Conversation],
    clusters: NDArray[np.int32],
    *,
    cache: Path,
    target: Mapping[str, Any] | None = None,
    engine: TaskEngine | None = None,
) -> Scores:
    """Score probe rows under the base model and a checkpoint, as the configuration says.

    Parameters
    ----------
    rows, clusters
        B rows of messages and their clusters, int32 (B,).
    cache
        The folder where a judge keeps its answers.
    target
        What the scorer needs to know of what is selected for: fields of `ScoringOptions`.
    engine
        Where a selection's tasks run: rows are scored by the workers of a cluster.
    """
    from pyids.scoring.scorers import find_scorer

    together = Together.of(config, checkpoint, cache / ".scratch", engine or LocalEngine())
    if together is not None:
        models = together.models
    else:
        models = Models(round_model(config), checkpoint, device=device(config), dtype=config.dtype)
    options = ScoringOptions(
        max_length=config.max_length,
        rater=rater(config, cache),
        engine=serving_engine(config, cache / "serve.jsonl"),
        together=together,
        seed=config.seed,
        progress=reporter("score"),
        **(target or {}),
    )
    probes = Probes(models, rows, clusters, options)
    try:
        with torch_threads(config.threads):
            return find_scorer(config.scorer)(probes)
    finally:
        probes.close()
