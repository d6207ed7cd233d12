"""A model's chat template: conversations to text, and what the template knows of.

Templates differ in what they show. One that knows nothing of reasoning or of calls would drop them
without a word; then they are written into the text of the turn, in the tags that most models use.
What a template knows is tried out on small conversations, once a tokenizer.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pyids.chat.formats import tools_of
from pyids.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Turn = dict[str, Any]


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


# The names under which data and templates keep what was thought before an answer.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


MARK = "PYIDSRESPONSE"


_CALL = {
    "id": "abcdefghi",  # some templates want nine letters
    "type": "function",
    "function": {"name": "PYIDSCALL", "arguments": {}},
}


@dataclass(frozen=True)
class _Facts:
    """What was found out about a template.

    Attributes
    ----------
    reasoning_key
        The key of a turn whose text the template shows, or None.
    shows_calls, shows_text_of_calls
        Whether a turn's tool calls are shown, and the text beside them.
    has_prompt
        Whether it can end with the beginning of an answer.
    closing
        What it writes between the text of an answer and whatever follows, without white space at
        its end: "" where that is nothing.
    takes_system
        Whether it takes a system turn.
    """

    reasoning_key: str | None
    shows_calls: bool
    shows_text_of_calls: bool
    has_prompt: bool
    closing: str
    takes_system: bool


_FACTS: WeakKeyDictionary[Any, dict[str, _Facts]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Renderer:
    """A tokenizer's chat template, for conversations that offer `tools`."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    tools: list[Any] | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> Any:
        """Choose the template for a conversation; `PLAIN_TEMPLATE` where the model has none."""
        tools = tools_of(messages) or None
        template: Any = tokenizer.chat_template
        if isinstance(template, dict):  # several templates under names
            template = tokenizer.get_chat_template(tools=tools)
        return cls(tokenizer, template or PLAIN_TEMPLATE, tools)

    @property
    def is_plain(self) -> bool:
        """Whether it is `PLAIN_TEMPLATE`, which holds no special tokens of its own."""
        return self.template == PLAIN_TEMPLATE

    def __call__(self, turns: list[Turn], *, prompt: bool = False) -> str:
        """Render turns, and with ``prompt`` the beginning of the answer that follows them."""
        return str(self.apply(turns, tokenize=False, add_generation_prompt=prompt))

    def apply(self, turns: list[Turn], **options: Any) -> Any:
        """Call the tokenizer's `apply_chat_template`; our error where the template refuses."""
        try:
            return self.tokenizer.apply_chat_template(
                turns, tools=self.tools, chat_template=self.template, **options
            )
        except Exception as error:  # a template is a program, and fails as one; re-raised
            roles = " ".join(str(turn.get("role")) for turn in turns[:8])
            raise ModelError(
                f"model {self.tokenizer.name_or_path!r}: its chat template refuses the turns "
                f"'{roles}{' ...' if len(turns) > 8 else ''}': {' '.join(str(error).split()):.200}"
            ) from error

    def refuses(self, turns: list[Turn]) -> bool:
        """Whether the template refuses a conversation."""
        return self._try(turns) is None

    def _try(self, turns: list[Turn], *, prompt: bool = False) -> str | None:
        try:
            return self(turns, prompt=prompt)
        except ModelError:
            return None

    @cached_property
    def facts(self) -> _Facts:
        """What the template knows of."""
        held = _FACTS.setdefault(self.tokenizer, {})
        if self.template not in held:
            held[self.template] = Renderer(self.tokenizer, self.template)._find_facts()
        return held[self.template]

    def _find_facts(self) -> _Facts:
        user: Turn = {"role": "user", "content": "a"}

        def answer(content: str = "b", **keys: Any) -> list[Turn]:
            return [user, {"role": "assistant", "content": content, **keys}]

        shown = [key for key in REASONING_KEYS if MARK in (self._try(answer(**{key: MARK})) or "")]
        calls = self._try(answer("", tool_calls=[_CALL]))
        both = self._try(answer(MARK, tool_calls=[_CALL]))
        last = (self._try(answer(MARK)) or "").partition(MARK)[2]
        followed = (self._try([*answer(MARK), user]) or "").partition(MARK)[2]
        return _Facts(
            reasoning_key=shown[0] if shown else None,
            # A template that refuses knows of calls, and wants them otherwise.
            shows_calls=calls is None or "PYIDSCALL" in calls,
            shows_text_of_calls=both is None or MARK in both,
            has_prompt=self._try([user], prompt=True) != self._try([user]),
            closing=last[: common_prefix(last, followed)].rstrip() if followed else last.rstrip(),
            takes_system=not self.refuses([{"role": "system", "content": "c"}, *answer()])
            or self.refuses(answer()),
        )

    def turns_of(self, messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
        """Return the turns as the template is to be given them."""
        return [self._fit(plain(message)) for message in messages]

    def _fit(self, turn: Turn) -> Turn:
        """Put reasoning and calls where the template shows them, or into the text."""
        reasoning = reasoning_of(turn)
        if reasoning and (key := self.facts.reasoning_key):
            turn[key] = reasoning
        elif reasoning and "</think>" not in turn["content"]:
            turn["content"] = f"<think>\n{reasoning}\n</think>\n\n{turn['content']}"
        if turn.get("tool_calls") and not self.facts.shows_calls:
            calls = [_call_text(call) for call in turn.pop("tool_calls")]
            turn["content"] = "\n".join([*filter(None, [turn["content"]]), *calls])
        return turn


def plain(message: Mapping[str, Any]) -> Turn:
    """Copy a message; content given as text parts becomes one string, None an empty one."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(
            part if isinstance(part, str) else part.get("text", "") for part in content
        )
    return {**message, "content": content or ""}


def reasoning_of(turn: Mapping[str, Any]) -> str:
    """Return what the assistant thought before it answered, often nothing."""
    if turn.get("role") != "assistant":
        return ""
    texts = (turn.get(key) for key in REASONING_KEYS)
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def said_in(message: Mapping[str, Any]) -> str:
    """Return all that a turn says, as one text: its reasoning, its content and its calls."""
    content = plain(message)["content"]
    if len(message) == 2:  # most turns
        return str(content)
    calls = message.get("tool_calls") or ()
    return "\n".join(filter(None, [reasoning_of(message), content, *map(_call_text, calls)]))


def response_length(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the characters that the assistant wrote: answers, reasoning and calls."""
    return sum(len(said_in(message)) for message in messages if message["role"] == "assistant")


def _call_text(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, dict) else call
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        with contextlib.suppress(ValueError):  # what is no JSON stays a text
            function = {**function, "arguments": json.loads(function["arguments"])}
    return f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>"


def name_of_tool(tool: Mapping[str, Any]) -> str:
    """Return the name of a tool on offer, often that of a function inside it; empty without one."""
    function = tool.get("function", tool)
    return str(function.get("name") or "") if isinstance(function, dict) else ""


def has_loss(turn: Mapping[str, Any]) -> bool:
    """Whether a turn of the assistant is to be learnt: not with a weight of 0, or ``train: false``.

    ``weight`` is what OpenAI's and Mistral's formats and axolotl call it; axolotl also reads
    ``train`` and ``training``.
    """
    if turn.get("role") != "assistant":
        return False
    weight = turn.get("weight")
    if isinstance(weight, int | float) and weight == 0:
        return False
    return turn.get("train") is not False and turn.get("training") is not False


# ---- a system turn that the template refuses -----------------------------------------------------


_DROP = (
    "{%- set messages = messages | rejectattr('role', 'in', ['system', 'developer']) | list -%}"
    "{{- '' }}"
)


_FOLD = (
    "{%- set pyids = namespace(system='', turns=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] in ['system', 'developer'] -%}"
    "{%- set pyids.system = pyids.system ~ message['content'] ~ '\n\n' -%}"
    "{%- elif message['role'] == 'user' and pyids.system -%}"
    "{%- set turn = dict(message, content=pyids.system ~ message['content']) -%}"
    "{%- set pyids.turns = pyids.turns + [turn] -%}{%- set pyids.system = '' -%}"
    "{%- else -%}{%- set pyids.turns = pyids.turns + [message] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = pyids.turns -%}{{- '' }}"
)


def adapt_to_system(tokenizer: PreTrainedTokenizerBase, how: str) -> None:
    """Make a tokenizer's template take system turns, if it refuses them.

    Parameters
    ----------
    tokenizer
        Its ``chat_template`` is changed, so that a checkpoint saved with it takes them, too.
    how
        "fold" puts their text before that of the next user turn, a blank line between; "drop"
        leaves them out; "error" changes nothing.
    """
    begin = {"fold": _FOLD, "drop": _DROP, "error": ""}[how]
    template: Any = tokenizer.chat_template
    if not begin or not template:
        return

    def adapted(template: str) -> str:
        takes = Renderer(tokenizer, template).facts.takes_system
        return template if takes else begin + template

    if isinstance(template, dict):
        tokenizer.chat_template = {name: adapted(text) for name, text in template.items()}
    else:
        tokenizer.chat_template = adapted(template)


# ---- strings -------------------------------------------------------------------------------------


def common_prefix(a: str, b: str) -> int:
    """Return the length of the longest common prefix."""
    return len(b) if a.startswith(b) else _shared(a, b)


def _shared(a: str, b: str) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def common_suffix(a: str, b: str) -> int:
    """Return the length of the longest common suffix."""
    return len(b) if a.endswith(b) else _shared(a[::-1], b[::-1])


def ends_turn(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return the pattern of a special token, after white space, however it is marked as special."""
    added = tokenizer.added_tokens_decoder.values()
    specials = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    longest_first = sorted(filter(str.strip, specials), key=lambda text: (-len(text), text))
    return re.compile(rf"\s*({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
