"""Conversations to token ids, with a mask of the tokens that the assistant wrote.

The mask covers every assistant turn: its text, its tool calls and the token that ends the turn;
never system, user or tool turns, nor the template's own headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyids.chat.formats import Turns, tools_of
from pyids.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Message = Mapping[str, Any]


Conversation = Sequence[Message]


# For models without a chat template: roles as words, turns a blank line apart, the end-of-text
# token after each answer.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if not loop.first %}{{ '\n\n' }}{% endif -%}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif -%}"
)


_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


_MARK = "PYIDS{}RESPONSE"


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
    special care. Models without a template get `PLAIN_TEMPLATE`.

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
    turns = [_plain(message) for message in messages]
    tools = tools_of(messages) or None
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several templates under names
        template = tokenizer.get_chat_template(tools=tools)
    if template and _GENERATION.search(template):
        encoded = _encode_marked(turns, tokenizer, tools)
    else:
        encoded = _encode_compared(turns, tokenizer, template or PLAIN_TEMPLATE, tools)
    return encoded if max_length is None else truncate(encoded, max_length)


def encode_prompt(
    messages: Conversation, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> NDArray[np.int64]:
    """Render what a model sees before it answers; too long a prompt is cut on its left.

    Returns
    -------
    int64 (T,)
    """
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    text = _apply(
        tokenizer,
        [_plain(message) for message in messages],
        tools_of(messages) or None,
        chat_template=template if isinstance(template, str) else None,
        tokenize=False,
        add_generation_prompt=True,
    )
    added = template is PLAIN_TEMPLATE
    ids = tokenizer(text, add_special_tokens=added, verbose=False)["input_ids"]
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
    that is the question, a newline, the answer.
    """
    return "\n".join(text for message in messages if (text := _plain(message)["content"]))


def _plain(message: Message) -> dict[str, Any]:
    """Copy a message; content given as text parts becomes one string, None an empty one."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(
            part if isinstance(part, str) else part.get("text", "") for part in content
        )
    return {**message, "content": content or ""}


def _encode_marked(
    turns: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None
) -> Encoded:
    out: Any = _apply(
        tokenizer,
        turns,
        tools,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"verbose": False},
    )
    return Encoded(
        np.asarray(out["input_ids"], np.int64), np.asarray(out["assistant_masks"], np.bool_)
    )


def _encode_compared(
    turns: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    tools: list[Any] | None,
) -> Encoded:
    def render(messages: list[dict[str, Any]]) -> str:
        return str(_apply(tokenizer, messages, tools, chat_template=template, tokenize=False))

    text = render(turns)
    mark = _MARK.format("")
    while mark in text:
        mark = _MARK.format(len(mark))
    specials = "|".join(map(re.escape, tokenizer.all_special_tokens)) or "(?!)"
    ends_turn = re.compile(rf"\s*({specials})")
    spans: list[tuple[int, int]] = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        try:
            marked = render([*turns[:i], {"role": "assistant", "content": mark}, *turns[i + 1 :]])
        except ModelError:
            if not turn.get("tool_calls"):
                raise
            # Only a call may stand before a tool's result: compare with the turn left out.
            without = render([*turns[:i], *turns[i + 1 :]])
            start = _common_prefix(text, without)
            spans.append((start, len(text) - _common_suffix(text[start:], without)))
            continue
        if mark in marked:  # else the template leaves this turn out
            before, _, after = marked.partition(mark)
            start = _common_prefix(text, before)
            end = len(text) - _common_suffix(text[start:], after)
            # The token that ends the turn, where nothing but white space stands before it.
            if found := ends_turn.match(text, end):
                end = found.end()
            spans.append((start, end))

    # A plain template holds no special tokens of its own, so the tokenizer adds them.
    added = template is PLAIN_TEMPLATE
    tokens = tokenizer(
        text,
        add_special_tokens=added,
        return_offsets_mapping=True,
        verbose=False,  # no warning of a length that is cut afterwards
    )
    ids = np.asarray(tokens["input_ids"], np.int64)
    offsets = np.asarray(tokens["offset_mapping"], np.int64).reshape(-1, 2)
    mask = np.zeros(len(ids), np.bool_)
    for start, end in spans:
        # A token that straddles the start (" Paris" after "[/INST]") belongs to the response.
        mask |= (offsets[:, 1] > start) & (offsets[:, 0] < end)
    mask &= offsets[:, 1] > offsets[:, 0]
    return Encoded(ids, mask)


def _common_prefix(a: str, b: str) -> int:
    """Return the length of the longest common prefix."""
    return len(b) if a.startswith(b) else _shared(a, b)


def _shared(a: str, b: str) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _common_suffix(a: str, b: str) -> int:
    """Return the length of the longest common suffix."""
    return len(b) if a.endswith(b) else _shared(a[::-1], b[::-1])


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, Any]],
    tools: list[Any] | None,
    **options: Any,
) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tools=tools, **options)
    except (TemplateError, TypeError, KeyError) as error:
        roles = " ".join(str(turn.get("role")) for turn in turns)
        raise ModelError(
            f"model {tokenizer.name_or_path!r}: its chat template refuses the turns '{roles}': "
            f"{' '.join(str(error).split())}"
        ) from error


def response_alone(row: Encoded, bos: int) -> Encoded:
    """Keep a row's response tokens only, after one token that begins the text."""
    kept = row.input_ids[1:][row.response_mask[1:]]
    return Encoded(np.concatenate([[bos], kept]), np.arange(len(kept) + 1) > 0)


def last_response(row: Encoded) -> Encoded:
    """Keep the mask of a row's last response only."""
    holes = np.flatnonzero(~row.response_mask[: int(row.response_mask.nonzero()[0].max(initial=0))])
    start = holes.max(initial=-1) + 1
    return Encoded(row.input_ids, row.response_mask & (np.arange(len(row.input_ids)) >= start))
