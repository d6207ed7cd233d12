"""What a trained model is measured by: held-out loss, exact match, the last number of solutions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyids.chat.template import encode
from pyids.models.generate import generate
from pyids.models.nll import response_nll

from .pool import Row

# Teacher-forced exact match is measured on responses of at most so many tokens.
EXACT_TOKENS = 12
ROWS_AT_A_TIME = 16
# Solutions that are written out: so many of the skill's first rows, of at most so many tokens.
SOLVED_ROWS, SOLVED_TOKENS, SOLVED_SKILL = 16, 128, "math"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def evaluate(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, max_length: int, device: str, solve: bool
) -> dict[str, dict[str, float]]:
    """Return the mean response NLL and the exact match of each skill.

    Parameters
    ----------
    solve
        Let the model write solutions of arithmetic, too, and compare their last numbers:
        ``last_number`` of the result. It takes as long as scoring hundreds of rows.
    """
    import torch

    conversations = [row["messages"] for row in rows]
    skills = np.array([row["skill"] for row in rows])
    model = model.float()  # measured in full precision whatever it was trained in
    nll, exact = short_answers(model, tokenizer, conversations, max_length, device)
    long = np.flatnonzero(np.isnan(exact))
    with torch.inference_mode():
        nll[long], _ = response_nll(
            model, tokenizer, [conversations[i] for i in long], max_length=max_length, device=device
        )
    result: dict[str, dict[str, float]] = {"nll": {}, "exact_match": {}}
    for skill in np.unique(skills).tolist():
        member = skills == skill
        result["nll"][skill] = float(np.nanmean(nll[member]))
        if np.isfinite(exact[member]).sum() >= 5:
            result["exact_match"][skill] = float(np.nanmean(exact[member]))
    if solve:
        few = [row["messages"] for row in rows if row["skill"] == SOLVED_SKILL][:SOLVED_ROWS]
        if few:
            right = solved(model, tokenizer, few, max_length, device)
            result["last_number"] = {SOLVED_SKILL: right}
    return result


def short_answers(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Any],
    max_length: int,
    device: str,
    size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean NLL of short responses and whether greedy decoding gives them (1.0 or 0.0).

    Both are NaN for other rows. Greedy decoding gives the response if and only if each of its
    tokens is the most likely one after the tokens before it, which one forward pass tells.
    """
    import torch

    nll, exact = np.full((2, len(conversations)), np.nan)
    rows = [encode(messages, tokenizer, max_length) for messages in conversations]
    answers = [np.flatnonzero(row.response_mask) for row in rows]
    short = [i for i, at in enumerate(answers) if 0 < len(at) <= EXACT_TOKENS and at[0]]
    # A GPU is given several at a time, for a row alone leaves it idle.
    size = size or (1 if device == "cpu" else ROWS_AT_A_TIME)
    short.sort(key=lambda i: len(rows[i].input_ids))
    with torch.inference_mode():
        for start in range(0, len(short), size):
            batch = short[start : start + size]
            ids = np.zeros((len(batch), len(rows[batch[-1]].input_ids)), np.int64)
            for b, i in enumerate(batch):  # on the right: what follows a row does not change it
                ids[b, : len(rows[i].input_ids)] = rows[i].input_ids
            # The head at the tokens before the answers alone: the vocabulary is most of the cost.
            keep = np.unique(np.concatenate([answers[i] for i in batch])) - 1
            logits = model(
                input_ids=torch.from_numpy(ids).to(device),
                logits_to_keep=torch.from_numpy(keep).to(device),
            ).logits
            for b, i in enumerate(batch):
                at = torch.from_numpy(np.searchsorted(keep, answers[i] - 1)).to(device)
                wanted = torch.from_numpy(ids[b, answers[i]]).to(device)
                mine = logits[b, at].double()
                exact[i] = float((mine.argmax(-1) == wanted).all())
                nll[i] = float(torch.nn.functional.cross_entropy(mine, wanted))
    return nll, exact


def solved(
    model: Any, tokenizer: Any, conversations: Sequence[Any], max_length: int, device: str
) -> float:
    """Return the share of solutions, written greedily, whose last number is the reference's."""
    answers = generate(
        model, tokenizer, [row[:-1] for row in conversations],
        max_length=max_length, max_new_tokens=SOLVED_TOKENS, device=device,
    )  # fmt: skip
    right = [
        last_number(answer) is not None and last_number(answer) == last_number(row[-1]["content"])
        for answer, row in zip(answers, conversations, strict=True)
    ]
    return float(np.mean(right))


def last_number(text: str) -> float | None:
    """Return the last number of a text; commas inside numbers do not count."""
    found = _NUMBER.findall(re.sub(r"(?<=\d),(?=\d)", "", text))
    return float(found[-1]) if found else None


def shares(drawn: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    """Return the share of each kind of garbage of the pool among the rows drawn."""
    return {kind: float((drawn == kind).mean()) for kind in np.unique(kinds).tolist() if kind}
