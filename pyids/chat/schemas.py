"""The table of schemas in which instruction data is published, and how each is read.

A schema is known by its columns and by what stands in them. Beside those, every schema takes a
system prompt out of `SYSTEM_COLUMNS`, and every pair of prompt and completion what belongs to its
prompt (`CONTEXT_COLUMNS`, ``history``) and to its answer (`REASONING_COLUMNS`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyids.chat.turns import BadRow, Message, as_list, brief, kind_of, read_turns, wrong

Record = Mapping[str, Any]


SYSTEM_COLUMNS = ("system", "system_prompt", "system_message", "system_instruction", "sys_prompt")


CONTEXT_COLUMNS = ("definition", "context", "input")


REASONING_COLUMNS = ("reasoning_content", "thinking", "Complex_CoT")


# Prompts that stand behind their context, as questions do; an instruction stands before it.
_QUESTIONS = {"question", "query", "problem"}


class Schema(NamedTuple):
    """One published form of a row.

    Attributes
    ----------
    name
        What ``--format`` takes: a name, or a pair of columns.
    columns
        Columns that a row of it has, each with a key of `SHAPES`: what stands there.
    published
        Data sets and tools that have it.
    read
        Gives the turns of a row; None: it is a pair.
    """

    name: str
    columns: dict[str, str]
    published: str
    read: Callable[[Record], list[Message]] | None = None


def _pair(name: str, published: str, shape: str = "any") -> Schema:
    prompt, completion = name.split("/")
    return Schema(name, {prompt: "any", completion: shape}, published)


def _turns(name: str, column: str, published: str, shape: str = "turns") -> Schema:
    return Schema(name, {column: shape}, published, lambda record: read_turns(record, column))


# ---- shapes --------------------------------------------------------------------------------------


_SPEAKER = re.compile(
    r"(?:\A|\n+)\s*(Human|Assistant|USER|ASSISTANT|FUNCTION RESPONSE|SYSTEM):[ ]?"
)


_MARK = re.compile(r"###\s*(Human|User|Assistant|System):")


def _is_conversation(value: object) -> bool:
    """Whether a value of a column of any name is a conversation for certain."""
    turns = as_list(value)
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, dict):
        return bool({"role", "from", "input", "human", "user"} & first.keys())
    return isinstance(first, str) and isinstance(value, list)


SHAPES: dict[str, Callable[[Any], bool]] = {
    "any": lambda value: value is not None,
    "text": lambda value: isinstance(value, str),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    # A column of turns by its name: a list, or what a table or a CSV makes of one.
    "turns": lambda value: (
        isinstance(value, list | dict)
        or (isinstance(value, str) and value.lstrip()[:1] in ("[", "{"))
    ),
    "conversation": _is_conversation,
    "transcript": lambda value: isinstance(value, str) and _SPEAKER.match(value) is not None,
    "tagged": lambda value: isinstance(value, str) and _MARK.match(value.lstrip()) is not None,
    "calls": lambda value: (
        isinstance(value, str | list)
        and isinstance(calls := as_list(value), list)
        and bool(calls)
        and all(isinstance(call, dict) and "name" in call for call in calls)
    ),
    "answers": lambda value: isinstance(value, dict) and isinstance(value.get("text"), list),
    "contents": lambda value: (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and "parts" in value[0]
    ),
    "request": lambda value: isinstance(value, dict) and isinstance(value.get("messages"), list),
}


# ---- readers of their own ------------------------------------------------------------------------


def read_pair(record: Record, prompt: str, completion: str) -> list[Message]:
    """Read two columns, each a text or a list of turns, and what belongs to them.

    Raises
    ------
    BadRow
        A column is missing or of another type; the two begin differently.
    """
    asked = _side(record, prompt, "user")
    answered = _side(record, completion, "assistant")
    if isinstance(record[prompt], str):
        asked[0] = {"role": "user", "content": _with_context(record, prompt, completion)}
    if answered and answered[0]["role"] != "assistant":
        # Preference rows: the answer is the whole conversation, which begins with the prompt.
        asked = _before(asked, answered, prompt, completion)
    elif completion == "chosen" and isinstance(record[prompt], str):
        text, said = answered[0]["content"], record[prompt]
        if text.startswith(said) and text[len(said) :].strip():
            answered[0] = {**answered[0], "content": text[len(said) :].lstrip()}
    if answered and answered[-1]["role"] == "assistant":
        for column in REASONING_COLUMNS:
            if column not in record:
                continue
            text = record[column]
            if isinstance(text, str) and text.strip() and "reasoning_content" not in answered[-1]:
                answered[-1] = {**answered[-1], "reasoning_content": text}
    return [*_history(record), *asked, *answered] if "history" in record else asked + answered


def _before(
    asked: list[Message], answered: list[Message], prompt: str, completion: str
) -> list[Message]:
    """Give what a conversation that repeats its prompt still lacks of it: a system turn, if any."""
    system = [turn for turn in asked if turn["role"] in ("system", "developer")]
    said = [turn["content"] for turn in answered if turn["role"] == "user"]
    users = [turn["content"] for turn in asked if turn["role"] == "user"]
    if not users or any(text not in said for text in users):
        raise BadRow(
            f"column {completion!r} is a conversation that does not begin with column {prompt!r}: "
            f"name the one that holds all with --format-map messages={completion}"
        )
    return [] if answered[0]["role"] in ("system", "developer") else system


def _side(record: Record, column: str, role: str) -> list[Message]:
    """One side of a pair: a text of `role`, or a list of turns."""
    value = record.get(column)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list) and value:
        if all(isinstance(text, str) for text in value) and len(value) == 1:
            return [{"role": role, "content": value[0]}]
        return read_turns(record, column)
    raise BadRow(wrong(record, column, "a text"))


def _with_context(record: Record, prompt: str, completion: str) -> str:
    """Join a prompt with the columns that belong to it, a blank line apart."""
    if not any(map(record.get, CONTEXT_COLUMNS)):
        return str(record[prompt])
    before: list[str] = []
    after: list[str] = []
    for column in CONTEXT_COLUMNS:
        if column in (prompt, completion) or column not in record:
            continue
        text = record[column]
        if isinstance(text, list) and all(isinstance(part, str) for part in text):
            text = "\n\n".join(text)
        if isinstance(text, str) and text.strip():
            first = column == "definition" or (column == "context" and prompt in _QUESTIONS)
            (before if first else after).append(text)
    return "\n\n".join([*before, record[prompt], *after])


def _history(record: Record, *, strict: bool = False) -> list[Message]:
    """Earlier exchanges, a list of [question, answer]; of another form only `strict` minds them."""
    history = record.get("history") or []
    if not isinstance(history, list):
        if strict:
            raise BadRow(wrong(record, "history", "a list of [question, answer] pairs"))
        return []
    messages: list[Message] = []
    for number, pair in enumerate(history):
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
        ):
            if strict:
                raise BadRow(
                    f"column 'history': item {number} is no pair of two texts: make it one"
                )
            return []
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    return messages


def _alpaca(record: Record) -> list[Message]:
    if "history" in record:
        _history(record, strict=True)
    for column in ("instruction", "output"):
        if not isinstance(record.get(column), str):
            raise BadRow(wrong(record, column, "a text"))
    if not isinstance(record.get("input"), str | None):
        raise BadRow(wrong(record, "input", "a text"))
    return read_pair(record, "instruction", "output")


def _transcript(column: str) -> Callable[[Record], list[Message]]:
    def read(record: Record) -> list[Message]:
        """Cut a text at the names of its speakers."""
        text = record.get(column)
        if not isinstance(text, str):
            raise BadRow(wrong(record, column, "a text"))
        _, *parts = _SPEAKER.split(text)
        roles = {"human": "user", "function response": "tool"}
        return [
            {
                "role": roles.get(name.lower(), name.lower()),
                "content": said.replace("<|endoftext|>", "").strip(),
            }
            for name, said in zip(parts[::2], parts[1::2], strict=True)
        ]

    return read


def _tagged(record: Record) -> list[Message]:
    """Cut a text at the marks of its speakers, which may stand anywhere in it."""
    _, *parts = _MARK.split(record["text"])
    roles = {"human": "user", "user": "user", "assistant": "assistant", "system": "system"}
    return [
        {"role": roles[name.lower()], "content": said.strip()}
        for name, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _text(record: Record) -> list[Message]:
    if not isinstance(record.get("text"), str):
        raise BadRow(wrong(record, "text", "a text"))
    return [{"role": "assistant", "content": record["text"]}]


def _squad(record: Record) -> list[Message]:
    answers = record["answers"]["text"]
    answer = answers[0] if answers else ""
    return read_pair({**record, "answers": answer}, "question", "answers")


def _calls(record: Record) -> list[Message]:
    calls = [{"type": "function", "function": call} for call in as_list(record["answers"])]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    return [*_side(record, "query", "user"), answer]


def _contents(record: Record) -> list[Message]:
    """Read the turns of Gemini's API: a role, and parts with texts."""
    messages = []
    given = record.get("systemInstruction") or record.get("system_instruction")
    first = [{**given, "role": "system"}] if isinstance(given, dict) and "parts" in given else []
    for number, turn in enumerate([*first, *record["contents"]]):
        parts = turn.get("parts") if isinstance(turn, dict) else None
        if not isinstance(parts, list) or not all(
            isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts
        ):
            raise BadRow(
                f"column 'contents': the parts of turn {number} are not texts alone: make them so"
            )
        role = turn.get("role", "user")
        if role not in ("user", "model", "system"):
            raise BadRow(
                f"column 'contents': turn {number} has the role {brief(role)}: name user, "
                "model or system"
            )
        text = "".join(part["text"] for part in parts)
        messages.append({"role": "assistant" if role == "model" else role, "content": text})
    return messages


def _preference(record: Record) -> list[Message]:
    asked = read_turns(record["input"], "messages")
    return asked + read_turns(record, "preferred_output")


# ---- the table -----------------------------------------------------------------------------------


# In the order of preference: the first whose columns a row has is its schema.
SCHEMAS: tuple[Schema, ...] = (
    _turns("messages", "messages", "OpenAI, Tulu 3, SmolTalk, UltraChat-200k, no_robots, OASST"),
    _turns("sharegpt", "conversations", "ShareGPT, OpenHermes 2.5, SlimOrca, Magpie, LIMA"),
    _turns("conversation", "conversation", "WildChat, LMSYS-Chat-1M, Capybara", "conversation"),
    _turns("dialogue", "dialogue", "dialogue corpora", "conversation"),
    _turns("dialog", "dialog", "dialogue corpora", "conversation"),
    _turns("turns", "turns", "MT-Bench-like conversations", "conversation"),
    _turns("data", "data", "UltraChat", "conversation"),
    Schema("contents", {"contents": "contents"}, "Gemini tuning files", _contents),
    Schema(
        "preferred_output",
        {"input": "request", "preferred_output": "list"},
        "OpenAI preference files",
        _preference,
    ),
    Schema(
        "alpaca",
        {"instruction": "any", "output": "any"},
        "Alpaca, BELLE, Open-Platypus, Evol-Instruct, LLaMA-Factory",
        _alpaca,
    ),
    _pair("prompt/completion", "TRL, Self-Instruct, OpenAI completions"),
    _pair("prompt/response", "HelpSteer, PRM and reward sets"),
    _pair("question/answer", "GSM8K, Glaive-code-assistant"),
    _pair("instruction/response", "Dolly (context), Magpie, GPTeacher (input), Magicoder-Evol"),
    _pair("question/response", "OpenOrca (system_prompt), medical-o1 (Complex_CoT)"),
    _pair("inputs/targets", "FLAN, Aya, xP3, Natural Instructions (definition)"),
    _pair("inputs_pretokenized/targets_pretokenized", "P3"),
    _pair("query/response", "MetaMath, MMIQC"),
    Schema("query/answers", {"query": "text", "answers": "calls"}, "xLAM function calling", _calls),
    _pair("query/answer", "search and support logs"),
    _pair("problem/solution", "NuminaMath, OpenR1-Math, Magicoder-OSS-Instruct"),
    _pair("problem/generated_solution", "OpenMathInstruct-2, OpenMathReasoning"),
    _pair("question/generated_solution", "OpenMathInstruct-1"),
    _pair("question/solution", "s1K, coding contests"),
    _pair("problem/answer", "competition mathematics"),
    _pair("prompt/chosen", "UltraFeedback-binarized, HH-RLHF with prompts, TRL"),
    _pair("question/chosen", "Orca DPO pairs (system)"),
    _pair("instruction/chosen_response", "Argilla's preference sets"),
    _pair("instruction/completion", "completions of instructions"),
    _pair("instruction/answer", "question sets with instructions"),
    _pair("prompt/answer", "question sets"),
    _pair("prompt/output", "logs of models"),
    _pair("prompt/gold_standard_solution", "SYNTHETIC-1"),
    Schema(
        "question/answers", {"question": "text", "answers": "answers"}, "SQuAD (context)", _squad
    ),
    _pair("input/output", "LongForm, Nemotron post-training, OpenCodeReasoning"),
    _pair("input/response", "logs of models"),
    _pair("input/target", "Firefly"),
    _pair("source/target", "translation and editing sets"),
    _pair("message_1/message_2", "CAMEL"),
    _pair("user/assistant", "exchanges in two columns"),
    _pair("human/assistant", "exchanges in two columns"),
    _turns("chosen", "chosen", "preference sets without a prompt", "conversation"),
    Schema("transcript", {"chosen": "transcript"}, "HH-RLHF", _transcript("chosen")),
    Schema("chat", {"chat": "transcript"}, "Glaive function calling", _transcript("chat")),
    Schema("tagged", {"text": "tagged"}, "OpenAssistant-Guanaco (### Human:)", _tagged),
    Schema("text", {"text": "text"}, "language-model rows: all of it is the response", _text),
)


BY_NAME = {schema.name: schema for schema in SCHEMAS}


def check_types(record: Record, schema: Schema) -> None:
    """Raise for a column of a schema that is missing or is not what it has to be."""
    for column, shape in schema.columns.items():
        if column not in record:
            raise BadRow(wrong(record, column, "a text"))
        if shape not in ("any", "turns", "text") and not SHAPES[shape](record[column]):
            raise BadRow(
                f"column {column!r} is {kind_of(record[column])}, not what the format "
                f"{schema.name} has there ({schema.published}): choose another --format"
            )
