"""A serving engine (vLLM, SGLang, any OpenAI-compatible one): prompts' log-probabilities, answers.

Rows go as token ids, made here by the model's own tokenizer and template, so that the engine scores
what the local model would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
import xxhash

from pyids._typing import Float64, Int64
from pyids.chat.template import Encoded
from pyids.config import RunConfig
from pyids.errors import ModelError
from pyids.models.answers import Answers
from pyids.models.batching import Progress
from pyids.models.endpoint import Endpoint
from pyids.models.nll import ResponseNll

# How an engine is asked for the log-probabilities of a prompt.
Form: TypeAlias = Literal["echo", "prompt_logprobs", "generate"]

FORMS: tuple[Form, ...] = ("echo", "prompt_logprobs", "generate")

# Rows whose log-probabilities are compared with those of the local model.
CHECKED_ROWS = 4

# How far means of a row may lie apart, in nats a token, by the local model's precision.
TOLERANCE = {"float32": 0.005, "bfloat16": 0.05, "float16": 0.05}


@dataclass
class Engine:
    """A serving engine and what it has answered.

    Attributes
    ----------
    endpoint
        Where it is and what may be asked; ``endpoint.model`` is the base model there.
    cache
        The file of its answers (`pyids.models.answers.Answers`); None keeps them in memory.
    form
        How it is asked for log-probabilities; None until `check` has found out.
    """

    endpoint: Endpoint
    cache: Path | None = None
    form: Form | None = None
    _answers: Answers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._answers = Answers(self.cache, "value")

    def nll(
        self, model: ServedModel, rows: Sequence[Encoded], progress: Progress | None = None
    ) -> ResponseNll:
        """Return the NLL of the responses of B rows, as `pyids.models.nll.encoded_nll` does.

        Raises
        ------
        ConfigError
            A cap of the endpoint was reached; what was answered before is kept.
        ModelError
            The engine fails, or says something else than log-probabilities of these tokens.
        """
        spans = [np.flatnonzero(row.response_mask[1:]) for row in rows]
        prompts = {
            i: rows[i].input_ids[: span[-1] + 2] for i, span in enumerate(spans) if len(span)
        }
        keys = {
            i: model.key("nll", prompt.astype("<i8").tobytes(), spans[i].astype("<i8").tobytes())
            for i, prompt in prompts.items()
        }

        def ask(i: int) -> list[float]:
            logs = self.log_probabilities(model, prompts[i])[spans[i] + 1]
            return [-float(logs.mean()), -float(logs[-1])]

        self._ask_all(keys, ask, progress)
        means, last = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        for i, key in keys.items():
            means[i], last[i] = self._answers[key]
        return ResponseNll(means, np.array([len(span) for span in spans], np.int64), last)

    def answer(
        self,
        model: ServedModel,
        prompts: Sequence[Int64],
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[str]:
        """Return the greedy answers to prompts of token ids, without blanks around them."""
        options = f"{max_new_tokens}".encode()
        keys = {
            i: model.key("answer", prompt.astype("<i8").tobytes(), options)
            for i, prompt in enumerate(prompts)
        }

        def ask(i: int) -> str:
            content = {
                "model": model.name,
                "prompt": prompts[i].tolist(),
                "max_tokens": max_new_tokens,
                "temperature": 0,
            }
            said = self.endpoint.post("/completions", content)
            try:
                return str(said["choices"][0]["text"]).strip()
            except (KeyError, IndexError, TypeError) as error:
                raise ModelError(
                    f"{self.endpoint.url}: the answer holds no text: check the URL"
                ) from error

        self._ask_all(keys, ask, progress)
        return [self._answers[keys[i]] for i in range(len(prompts))]

    def _ask_all(
        self, keys: dict[int, str], ask: Callable[[int], Any], progress: Progress | None
    ) -> None:
        """Ask each content once: the last of those that have it stands for all."""
        self._answers.ask({key: i for i, key in keys.items()}, ask, self.endpoint.workers, progress)

    def log_probabilities(self, model: ServedModel, ids: Int64) -> Float64:
        """Return the log-probability of each token of a prompt, float64 (T,); NaN of the first.

        Raises
        ------
        ModelError
            The engine does not give those of exactly these tokens, or one is not finite.
        """
        form, sent = self.form or FORMS[0], ids.tolist()
        body: dict[str, Any] = {"model": model.name, "prompt": sent, "max_tokens": 1}
        body["temperature"] = 0
        if form == "echo":
            said = self.endpoint.post("/completions", {**body, "echo": True, "logprobs": 1})
        elif form == "prompt_logprobs":
            said = self.endpoint.post("/completions", {**body, "prompt_logprobs": 0})
        else:
            content = {
                "input_ids": sent,
                "sampling_params": {"max_new_tokens": 1, "temperature": 0},
                "return_logprob": True,
                "logprob_start_len": 0,
            }
            adapter = {} if model.name == self.endpoint.model else {"lora_path": model.name}
            said = self.endpoint.post(f"{_root(self.endpoint.url)}/generate", content | adapter)
        try:
            found = np.array([math.nan, *_READ[form](said, sent)[1 : len(sent)]], np.float64)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self.endpoint.url}: the answer holds no log-probabilities of the prompt's "
                "tokens: use another version of the server"
            ) from error
        if len(found) != len(sent) or not np.isfinite(found[1:]).all() or (found[1:] > 1e-6).any():
            raise ModelError(
                f"{self.endpoint.url}: of the {len(sent)} tokens of a prompt the server does not "
                "give a log-probability each: use another version of it"
            )
        return found

    def check(
        self, model: ServedModel, rows: Sequence[Encoded], local: Callable[..., Float64], dtype: str
    ) -> None:
        """Find out how to ask, and compare a few rows with the local model before all others.

        Parameters
        ----------
        local
            Returns the local model's mean NLL of rows, float64 (B,).
        dtype
            The local model's precision, by which `TOLERANCE` goes.

        Raises
        ------
        ModelError
            No form is understood, or the values differ: another model is served, or in another
            precision.
        """
        few = [row for row in rows if row.response_mask[1:].any()][:CHECKED_ROWS]
        if not few:
            return
        theirs = self._first_answers(model, few)
        ours = local(few)
        worst = int(np.argmax(np.abs(ours - theirs)))
        apart = abs(float(ours[worst] - theirs[worst]))
        if not apart <= TOLERANCE[dtype]:
            raise ModelError(
                f"{self.endpoint.url}: the server's {model.name!r} gives a row a loss of "
                f"{theirs[worst]:.4f} nats a token, the local model {ours[worst]:.4f}: serve the "
                f"same model in {dtype}, or name the precision that is served as --dtype"
            )

    def _first_answers(self, model: ServedModel, rows: Sequence[Encoded]) -> Float64:
        """Ask about rows afresh, in each form until one is understood; return their mean NLLs."""
        problems = []
        for form in FORMS if self.form is None else (self.form,):
            asked = Engine(self.endpoint, None, form)
            try:
                means = asked.nll(model, rows).mean
            except ModelError as error:
                problems.append(str(error))
                continue
            self.form = form
            return means
        raise ModelError(
            f"{self.endpoint.url}: gives no log-probabilities of prompts; of the forms "
            f"{', '.join(FORMS)} the first failed with: {problems[0]}: serve the model by vLLM or "
            "SGLang, which do"
        )

    def load_adapter(self, name: str, path: Path) -> None:
        """Let the engine load a LoRA adapter, from a path that it sees as well.

        Parameters
        ----------
        name
            What it is called there; a name that follows from its content, for one of that name may
            be there already.
        """
        content = {"lora_name": name, "lora_path": str(path.absolute())}
        problems = []
        for base in dict.fromkeys((self.endpoint.url, _root(self.endpoint.url))):
            try:
                self.endpoint.tell(f"{base}/load_lora_adapter", content)
                return
            except ModelError as error:
                problems.append(str(error))
                if "already" in problems[-1]:
                    return  # by a run that was killed
        raise ModelError(
            f"{problems[0]}: the round's adapter cannot be served: start vLLM with --enable-lora "
            "and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, on a disk that both see"
        )


@dataclass(frozen=True)
class ServedModel:
    """A model at an engine.

    Attributes
    ----------
    name
        As the engine calls it.
    identity
        Differs where the weights do: answers are kept by it.
    """

    name: str
    identity: str

    def key(self, kind: str, *content: bytes) -> str:
        """Return the key of a question to this model."""
        digest = xxhash.xxh3_128(orjson.dumps([self.identity, kind]))
        for part in content:
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def serving_engine(config: RunConfig, cache: Path | None) -> Engine | None:
    """Return the engine that a configuration names, if it names one."""
    if config.serve_url is None:
        return None
    endpoint = Endpoint(
        config.serve_url,
        config.serve_model or config.round_model,
        max_requests=config.serve_max_requests,
        workers=16,
    )
    return Engine(endpoint, cache)


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _echoed(said: Any, ids: list[int]) -> list[Any]:
    logs = said["choices"][0]["logprobs"]["token_logprobs"]
    if len(logs) not in (len(ids), len(ids) + 1):  # with the token that follows
        raise ValueError("another number of tokens")
    return list(logs)


def _prompt_logprobs(said: Any, ids: list[int]) -> list[Any]:
    logs = said["choices"][0]["prompt_logprobs"]
    return [
        None if found is None else found[str(token)]["logprob"]
        for token, found in zip(ids, logs, strict=True)
    ]


def _generated(said: Any, ids: list[int]) -> list[Any]:
    logs = said["meta_info"]["input_token_logprobs"]
    if [token for _, token, *_ in logs] != ids:
        raise ValueError("other tokens")
    return [log for log, *_ in logs]


_READ: dict[Form, Callable[[Any, list[int]], list[Any]]] = {
    "echo": _echoed,
    "prompt_logprobs": _prompt_logprobs,
    "generate": _generated,
}
