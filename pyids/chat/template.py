"""Conversations to token ids, with a mask of the tokens that the assistant wrote.

The mask covers every assistant turn that is to be learnt: what the model would generate after the
prompt, that is its reasoning, its text, its tool calls and the token or text that ends the turn;
never system, user or tool turns, nor the template's own headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids.chat.formats import Turns, tools_of
from pyids.chat.render import (
    MARK,
    Renderer,
    Turn,
    common_prefix,
    common_suffix,
    ends_turn,
    has_loss,
    name_of_tool,
    said_in,
)
from pyids.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Message = Mapping[str, Any]


Conversation = Sequence[Message]


_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


# An empty or opened block of reasoning that stands before an answer.
_THINK = re.compile(r"<think>\s*(</think>\s*)?\Z")


class Encoded(NamedTuple):
    """One conversation as tokens.

    Attributes
    ----------
    input_ids
        int64 (T,).
    response_mask
        bool (T,): True where the assistant wrote the token.
    """

    input_ids: NDArray[np.int64]
    response_mask: NDArray[np.bool_]


def encode(
    messages: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
) -> Encoded:
    """Render a conversation with the model's chat template and find the assistant's tokens.

    A template with ``{% generation %}`` blocks marks them itself. For any other, each assistant
    message is replaced in turn by a marker: what the two renderings have in common before and after
    it is the template's, the rest is the response. Whole conversations are compared, so templates
    that rewrite earlier turns (dropped reasoning, a system prompt moved into the last turn) need no
    special care. A response begins where the prompt for it ends, so that what a template writes
    into an answer (an opening ``<think>``) is learnt, as it will have to be generated. Turns of
    weight 0 (`pyids.chat.render.has_loss`) are context. Models without a template get
    `pyids.chat.render.PLAIN_TEMPLATE`.

    Parameters
    ----------
    messages
        Turns with ``role`` and ``content``; content is text, or a list of text parts. The tools of
        `pyids.chat.formats.Turns` are handed to the template.
    tokenizer
        A fast tokenizer (one that knows character offsets).
    max_length
        See `truncate`; None keeps everything.

    Raises
    ------
    ModelError
        Where the template refuses the conversation, or the tokenizer has no offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {tokenizer.name_or_path!r}: its tokenizer has no character offsets, which "
            "response masks need; choose a model with a tokenizer.json"
        )
    render: Renderer = Renderer.of(tokenizer, messages)
    turns = render.turns_of(messages)
    text = render(turns)
    # A plain template holds no special tokens of its own, so the tokenizer adds them.
    tokens = tokenizer(
        text,
        add_special_tokens=render.is_plain,
        return_offsets_mapping=True,
        verbose=False,  # no warning of a length that is cut afterwards
    )
    ids = np.asarray(tokens["input_ids"], np.int64)
    offsets = np.asarray(tokens["offset_mapping"], np.int64).reshape(-1, 2)
    learnt = [i for i, turn in enumerate(turns) if has_loss(turn)]
    if _GENERATION.search(render.template):
        ids, mask = _encode_marked(turns, render)
        context = [i for i, t in enumerate(turns) if t["role"] == "assistant" and i not in learnt]
        mask &= ~_covered(offsets, response_spans(turns, render, text, context))
    else:
        mask = _covered(offsets, response_spans(turns, render, text, learnt))
    encoded = Encoded(ids, mask)
    return encoded if max_length is None else truncate(encoded, max_length)


def encode_prompt(
    messages: Conversation, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> NDArray[np.int64]:
    """Render what a model sees before it answers; too long a prompt is cut on its left.

    Returns
    -------
    int64 (T,)
    """
    render: Renderer = Renderer.of(tokenizer, messages)
    text = render(render.turns_of(messages), prompt=True)
    ids = tokenizer(text, add_special_tokens=render.is_plain, verbose=False)["input_ids"]
    return np.asarray(ids, np.int64)[-max_length:]


def with_turns(messages: Conversation, turns: Iterable[Message]) -> Conversation:
    """Return a conversation of other turns that offers the tools of `messages`."""
    return Turns([dict(turn) for turn in turns], tools_of(messages))


def truncate(encoded: Encoded, max_length: int) -> Encoded:
    """Cut a conversation to ``max_length`` so that response tokens survive.

    The prompt is what stands before the first response token. A long prompt is cut on its left, as
    the question tends to stand last, but keeps at least half of ``max_length``; then the rest is
    cut on its right. A conversation with a response keeps at least one token of it.

    Raises
    ------
    ValueError
        Where max_length is below 2.
    """
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, not {max_length}")
    ids, mask = encoded
    if len(ids) <= max_length:
        return encoded
    prompt = int(mask.argmax()) if mask.any() else len(ids)
    kept = min(prompt, max(max_length - (len(ids) - prompt), max_length // 2))
    start = prompt - kept
    return Encoded(ids[start : start + max_length], mask[start : start + max_length])


def text_of(messages: Conversation) -> str:
    """Return the text that stands for a conversation in the embedding space.

    All turns in order, without their roles, joined by newlines: for one question and one answer
    that is the question, a newline, the answer. Reasoning stands before the answer that it leads
    to, calls of tools behind it, and the names of the tools on offer at the end.
    """
    texts = [text for message in messages if (text := said_in(message))]
    return "\n".join([*texts, *filter(None, map(name_of_tool, tools_of(messages)))])


def _encode_marked(turns: list[Turn], render: Renderer) -> Encoded:
    out: Any = render.apply(
        turns,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"verbose": False},
    )
    return Encoded(
        np.asarray(out["input_ids"], np.int64), np.asarray(out["assistant_masks"], np.bool_)
    )


def _covered(offsets: NDArray[np.int64], spans: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return which tokens, bool (T,), lie in one of the spans, by their characters (T, 2)."""
    mask = np.zeros(len(offsets), np.bool_)
    for start, end in spans:
        # A token that straddles the start (" Paris" after "[/INST]") belongs to the response.
        mask |= (offsets[:, 1] > start) & (offsets[:, 0] < end)
    mask &= offsets[:, 1] > offsets[:, 0]
    return mask


def response_spans(
    turns: list[Turn], render: Renderer, text: str, which: Iterable[int]
) -> list[tuple[int, int]]:
    """Return where in the rendered text the responses of some turns stand, as characters."""
    mark = MARK
    while mark in text:
        mark = f"PYIDS{len(mark)}RESPONSE"
    end_token = ends_turn(render.tokenizer)
    spans: list[tuple[int, int]] = []
    for i in which:
        turn = turns[i]
        try:
            marked = render([*turns[:i], {"role": "assistant", "content": mark}, *turns[i + 1 :]])
        except ModelError:
            if not turn.get("tool_calls"):
                raise
            # Only a call may stand before a tool's result: compare with the turn left out.
            without = render([*turns[:i], *turns[i + 1 :]])
            start = common_prefix(text, without)
            spans.append((start, len(text) - common_suffix(text[start:], without)))
            continue
        if mark not in marked:  # the template leaves this turn out
            continue
        before, _, after = marked.partition(mark)
        start = common_prefix(text, before)
        end = len(text) - common_suffix(text[start:], after)
        closing = render.facts.closing
        # The token that ends the turn, where nothing but white space stands before it; or its text.
        if found := end_token.match(text, end):
            end = found.end()
        elif closing and text.startswith(closing, end):
            end += len(closing)
        spans.append((_start(turns[:i], render, text, start, end), end))
    return spans


def _start(before: list[Turn], render: Renderer, text: str, start: int, end: int) -> int:
    """Return where the prompt for a response ends, which begins at ``start`` as it differs."""
    if not render.facts.has_prompt:
        found = _THINK.search(text, 0, start)
        return found.start() if found else start
    try:
        prompt = render(before, prompt=True)
    except ModelError:  # such as nothing at all before a first turn of the assistant
        return start
    if len(prompt) >= end or not text.startswith(prompt):
        return start
    between = text[min(start, len(prompt)) : max(start, len(prompt))]
    return len(prompt) if between.strip() else start


def response_alone(row: Encoded, bos: int) -> Encoded:
    """Keep a row's response tokens only, after one token that begins the text."""
    kept = row.input_ids[1:][row.response_mask[1:]]
    return Encoded(np.concatenate([[bos], kept]), np.arange(len(kept) + 1) > 0)


def last_response(row: Encoded) -> Encoded:
    """Keep the mask of a row's last response only."""
    holes = np.flatnonzero(~row.response_mask[: int(row.response_mask.nonzero()[0].max(initial=0))])
    start = holes.max(initial=-1) + 1
    return Encoded(row.input_ids, row.response_mask & (np.arange(len(row.input_ids)) >= start))
