"""The published schemas, each with a row of its shape: the prompt that comes of it, and no loss."""

import json

import numpy as np
import pytest

import pyids
from pyids.chat.digest import digest
from pyids.chat.format_map import PREFIX, check_format_map
from pyids.chat.formats import (
    FORMATS,
    BadRow,
    UnusableRow,
    detect_format,
    to_messages,
    tools_of,
    unused_columns,
)
from pyids.chat.schemas import SCHEMAS


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


Q, A, S = "Name a river.", "The Rhine.", "Be brief."
ASK, ANSWER, SYSTEM = ("user", Q), ("assistant", A), ("system", S)
PLAIN, WITH_SYSTEM = turns(ASK, ANSWER), turns(SYSTEM, ASK, ANSWER)
FROM = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
TWO = turns(ASK, ANSWER, ("user", "Another."), ("assistant", "The Po."))
TEXTS = [turn["content"] for turn in TWO]
CALL = {"name": "find", "arguments": {"what": "river"}}
CALLED = [{"type": "function", "function": CALL}]
THOUGHT = [turns(ASK)[0], {"role": "assistant", "content": A, "reasoning_content": "Hm."}]

# (data set, its format, a row of its shape, the conversation)
PUBLISHED = [
    ("Tulu 3", "messages", {"id": "x", "messages": PLAIN, "source": "s"}, PLAIN),
    (
        "UltraChat-200k",
        "messages",
        {"prompt": Q, "prompt_id": "f0", "messages": TWO},
        TWO,
    ),
    ("no_robots", "messages", {"prompt": Q, "messages": PLAIN, "category": "Open QA"}, PLAIN),
    ("OpenAI, JSON text", "messages", {"messages": json.dumps(PLAIN)}, PLAIN),
    (
        "TFDS, an object of lists",
        "messages",
        {"messages": {"role": ["user", "assistant"], "content": [Q, A]}},
        PLAIN,
    ),
    (
        "OpenAI, text parts",
        "messages",
        {"messages": turns(("user", [{"type": "text", "text": Q}]), ("assistant", [A]))},
        PLAIN,
    ),
    ("OpenR1-Math", "messages", {"problem": Q, "solution": A, "messages": PLAIN}, PLAIN),
    ("system beside messages", "messages", {"system": S, "messages": PLAIN}, WITH_SYSTEM),
    (
        "OASST messages",
        "messages",
        {"messages": [{"role": "prompter", "text": Q}, {"role": "assistant", "text": A}]},
        PLAIN,
    ),
    ("ShareGPT", "sharegpt", {"id": "x", "conversations": FROM}, PLAIN),
    (
        "SlimOrca",
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": S, "weight": None},
                {**FROM[0], "weight": 0.0},
                {**FROM[1], "weight": 1.0},
            ]
        },
        [
            turns(SYSTEM)[0],
            {**turns(ASK)[0], "weight": 0.0},
            {**turns(ANSWER)[0], "weight": 1.0},
        ],
    ),
    (
        "OpenHermes 2.5",
        "sharegpt",
        {"conversations": FROM, "system_prompt": S, "source": "x", "views": None, "model": None},
        WITH_SYSTEM,
    ),
    ("LIMA", "sharegpt", {"conversations": TEXTS, "source": "stackexchange"}, TWO),
    ("conversations, JSON text", "sharegpt", {"conversations": json.dumps(FROM)}, PLAIN),
    (
        "Magpie",
        "sharegpt",
        {"uuid": "x", "instruction": Q, "response": A, "conversations": FROM},
        PLAIN,
    ),
    ("LMSYS-Chat-1M", "conversation", {"conversation_id": "x", "conversation": PLAIN}, PLAIN),
    (
        "WildChat",
        "conversation",
        {
            "conversation_hash": "x",
            "conversation": [
                {**turn, "language": "English", "toxic": False, "turn_identifier": i}
                for i, turn in enumerate(PLAIN)
            ],
        },
        [
            {**turn, "language": "English", "toxic": False, "turn_identifier": i}
            for i, turn in enumerate(PLAIN)
        ],
    ),
    (
        "Capybara",
        "conversation",
        {"source": "x", "conversation": [{"input": Q, "output": A}]},
        PLAIN,
    ),
    ("dialogue", "dialogue", {"dialogue": TEXTS}, TWO),
    ("dialog", "dialog", {"dialog": TEXTS}, TWO),
    ("turns", "turns", {"turns": PLAIN}, PLAIN),
    ("UltraChat", "data", {"id": "0", "data": TEXTS}, TWO),
    (
        "Gemini",
        "contents",
        {
            "systemInstruction": {"parts": [{"text": S}]},
            "contents": [
                {"role": "user", "parts": [{"text": Q}]},
                {"role": "model", "parts": [{"text": A}]},
            ],
        },
        WITH_SYSTEM,
    ),
    (
        "OpenAI preferences",
        "preferred_output",
        {
            "input": {"messages": turns(SYSTEM, ASK)},
            "preferred_output": turns(ANSWER),
            "non_preferred_output": turns(("assistant", "No.")),
        },
        WITH_SYSTEM,
    ),
    ("Alpaca", "alpaca", {"instruction": Q, "input": "", "output": A, "text": "..."}, PLAIN),
    (
        "LLaMA-Factory",
        "alpaca",
        {"instruction": Q, "input": "In Italy.", "output": A, "history": [["Hi", "Hello"]]},
        turns(("user", "Hi"), ("assistant", "Hello"), ("user", f"{Q}\n\nIn Italy."), ANSWER),
    ),
    ("Self-Instruct", "prompt/completion", {"prompt": Q, "completion": A}, PLAIN),
    (
        "TRL",
        "prompt/completion",
        {"prompt": turns(SYSTEM, ASK), "completion": turns(ANSWER)},
        WITH_SYSTEM,
    ),
    ("HelpSteer", "prompt/response", {"prompt": Q, "response": A, "helpfulness": 4}, PLAIN),
    ("GSM8K", "question/answer", {"question": Q, "answer": A}, PLAIN),
    (
        "Dolly",
        "instruction/response",
        {"instruction": Q, "context": "It is in Italy.", "response": A, "category": "qa"},
        turns(("user", f"{Q}\n\nIt is in Italy."), ANSWER),
    ),
    (
        "GPTeacher",
        "instruction/response",
        {"instruction": Q, "input": "In Italy.", "response": A},
        turns(("user", f"{Q}\n\nIn Italy."), ANSWER),
    ),
    (
        "OpenOrca",
        "question/response",
        {"id": "0", "system_prompt": S, "question": Q, "response": A},
        WITH_SYSTEM,
    ),
    (
        "medical-o1",
        "Question/Response",
        {"Question": Q, "Complex_CoT": "Hm.", "Response": A},
        THOUGHT,
    ),
    ("FLAN", "inputs/targets", {"inputs": Q, "targets": A, "task": "t"}, PLAIN),
    ("Aya", "inputs/targets", {"inputs": Q, "targets": A, "language": "German"}, PLAIN),
    (
        "Natural Instructions",
        "inputs/targets",
        {"definition": "Answer.", "inputs": Q, "targets": A},
        turns(("user", f"Answer.\n\n{Q}"), ANSWER),
    ),
    (
        "P3",
        "inputs_pretokenized/targets_pretokenized",
        {"inputs": [1, 2], "inputs_pretokenized": Q, "targets_pretokenized": A},
        PLAIN,
    ),
    ("MetaMath", "query/response", {"query": Q, "response": A, "type": "GSM"}, PLAIN),
    (
        "xLAM",
        "query/answers",
        {"query": Q, "answers": json.dumps([CALL]), "tools": json.dumps([{"name": "find"}])},
        [turns(ASK)[0], {"role": "assistant", "content": "", "tool_calls": CALLED}],
    ),
    ("query/answer", "query/answer", {"query": Q, "answer": A}, PLAIN),
    ("NuminaMath", "problem/solution", {"source": "s", "problem": Q, "solution": A}, PLAIN),
    (
        "OpenMathInstruct-2",
        "problem/generated_solution",
        {"problem": Q, "generated_solution": A, "expected_answer": "7"},
        PLAIN,
    ),
    (
        "OpenMathInstruct-1",
        "question/generated_solution",
        {"question": Q, "generated_solution": A, "expected_answer": "7"},
        PLAIN,
    ),
    ("s1K", "question/solution", {"question": Q, "solution": A, "cot": None}, PLAIN),
    ("MATH", "problem/answer", {"problem": Q, "answer": A, "level": 3}, PLAIN),
    ("TRL preferences", "prompt/chosen", {"prompt": Q, "chosen": A, "rejected": "x"}, PLAIN),
    (
        "UltraFeedback-binarized",
        "prompt/chosen",
        {"prompt": Q, "chosen": PLAIN, "rejected": turns(ASK, ("assistant", "x"))},
        PLAIN,
    ),
    (
        "Orca DPO pairs",
        "question/chosen",
        {"system": S, "question": Q, "chosen": A, "rejected": "x"},
        WITH_SYSTEM,
    ),
    (
        "Argilla",
        "instruction/chosen_response",
        {"instruction": Q, "chosen_response": A, "rejected_response": "x"},
        PLAIN,
    ),
    ("completions", "instruction/completion", {"instruction": Q, "completion": A}, PLAIN),
    ("answers", "instruction/answer", {"instruction": Q, "answer": A}, PLAIN),
    ("prompt/answer", "prompt/answer", {"prompt": Q, "answer": A}, PLAIN),
    ("prompt/output", "prompt/output", {"prompt": Q, "output": A}, PLAIN),
    (
        "SYNTHETIC-1",
        "prompt/gold_standard_solution",
        {"prompt": Q, "gold_standard_solution": A},
        PLAIN,
    ),
    (
        "SQuAD",
        "question/answers",
        {"context": "Cities.", "question": Q, "answers": {"text": [A], "answer_start": [0]}},
        turns(("user", f"Cities.\n\n{Q}"), ANSWER),
    ),
    ("LongForm", "input/output", {"input": Q, "output": A}, PLAIN),
    (
        "Nemotron post-training",
        "input/output",
        {"input": turns(ASK), "output": A, "system_prompt": S},
        WITH_SYSTEM,
    ),
    ("input/response", "input/response", {"input": Q, "response": A}, PLAIN),
    ("Firefly", "input/target", {"kind": "Cot", "input": Q, "target": A}, PLAIN),
    ("source/target", "source/target", {"source": Q, "target": A}, PLAIN),
    ("CAMEL", "message_1/message_2", {"role_1": "x", "message_1": Q, "message_2": A}, PLAIN),
    ("user/assistant", "user/assistant", {"user": Q, "assistant": A}, PLAIN),
    ("human/assistant", "human/assistant", {"human": Q, "assistant": A}, PLAIN),
    ("preferences", "chosen", {"chosen": PLAIN, "rejected": PLAIN}, PLAIN),
    (
        "HH-RLHF",
        "transcript",
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": "\n\nHuman: x"},
        PLAIN,
    ),
    (
        "Glaive function calling",
        "chat",
        {"system": S, "chat": f"USER: {Q}\n\n\nASSISTANT: {A} <|endoftext|>\n\n"},
        WITH_SYSTEM,
    ),
    (
        "OpenAssistant-Guanaco",
        "tagged",
        {"text": f"### Human: {Q}### Assistant: {A}"},
        PLAIN,
    ),
    (
        "Anthropic's API",
        "messages",
        {"system": [{"type": "text", "text": S}], "messages": PLAIN},
        WITH_SYSTEM,
    ),
    ("roles in capitals", "messages", {"messages": turns(("User", Q), ("ASSISTANT", A))}, PLAIN),
    ("language-model rows", "text", {"text": A, "meta": {}}, turns(ANSWER)),
]


@pytest.mark.parametrize(("name", "format", "row", "expected"), PUBLISHED)
def test_a_published_row_is_told_and_gives_its_conversation(name, format, row, expected):
    before = json.dumps(row)
    assert detect_format(row) == format, name
    messages = to_messages(row, "auto")
    assert messages == expected == to_messages(row, format)
    assert unused_columns(row, format, messages) in ((), [])
    digest(messages)
    assert json.dumps(row) == before
    # A table fills null into the columns of the other formats.
    nulls = dict.fromkeys(column for schema in SCHEMAS for column in schema.columns)
    assert to_messages({**nulls, **row}, "auto") == expected
    # What is exported is read again as it was.
    if "messages" not in row:
        assert to_messages({**row, "messages": messages}, "auto") == expected


def test_every_schema_of_the_table_has_a_row_and_the_table_is_printed(capsys):
    told = {format.lower() for _, format, *_ in PUBLISHED}
    assert {name.lower() for name in FORMATS} <= told
    assert len(FORMATS) >= 30
    assert len({name for name, *_ in PUBLISHED}) == len(PUBLISHED)
    with capsys.disabled():
        print()
        for schema in SCHEMAS:
            print(f"  {schema.name:42} {schema.published}")


# ---- nothing is dropped in silence ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"messages": PLAIN, "context": "Rivers of Italy."}, ["context"]),
        ({"messages": PLAIN, "prompt": Q, "context": None, "history": []}, []),
        ({"messages": WITH_SYSTEM, "system": S}, []),
        ({"messages": WITH_SYSTEM, "system": "Other."}, ["system"]),
        ({"prompt": Q, "completion": A, "reasoning": "Hm."}, ["reasoning"]),
        ({"prompt": Q, "completion": A, "thinking": "Hm."}, []),
        ({"prompt": Q, "completion": A, "history": [["a", "b"]]}, []),
        ({"prompt": Q, "completion": A, "history": [{"x": "b"}]}, ["history"]),
        ({"question": Q, "answer": A, "context": {"title": ["x y"]}}, ["context"]),
        ({"question": Q, "answer": A, "choices": ["Po", "Rhine"], "images": ["p"]},
         ["choices", "images"]),
        ({"prompt": Q, "completion": A, "functions": [{"name": "f"}]}, []),
        ({"prompt": Q, "completion": A, "functions": "f(x)"}, ["functions"]),
        ({"text": A, "prompt": "Tell me."}, ["prompt"]),
        ({"question": Q, "solution": A, "deepseek_thinking_trajectory": "Hm."},
         ["deepseek_thinking_trajectory"]),
        ({"question": Q, "answer": A, "chat_history": ["a"], "evidence": "b"},
         ["chat_history", "evidence"]),
    ],
)  # fmt: skip
def test_what_looks_like_the_prompt_is_used_or_named(row, unused):
    format = detect_format(row)
    assert list(unused_columns(row, format, to_messages(row, format))) == unused


@pytest.mark.parametrize(
    "change",
    [
        {"reasoning_content": "other"},
        {"thinking": "other"},
        {"tool_calls": CALLED},
        {"name": "other"},
        {"weight": 0},
        {"documents": ["other"]},
    ],
)
def test_the_digest_covers_what_reaches_the_model(change):
    more = turns(("user", "And?"), ("assistant", "So."))
    row = {"messages": [turns(ASK)[0], {**turns(ANSWER)[0], **change}, *more]}
    assert digest(to_messages(row, "auto")) != digest([*PLAIN, *more])


@pytest.mark.parametrize(
    "change",
    [{"reasoning_content": ""}, {"tool_calls": []}, {"name": None}, {"weight": 1}, {"id": "7"}],
)
def test_what_says_nothing_makes_no_other_row(change):
    row = {"messages": [turns(ASK)[0], {**turns(ANSWER)[0], **change}]}
    assert digest(to_messages(row, "auto")) == digest(PLAIN)


def test_rows_that_differ_in_context_are_no_duplicates():
    rows = [{"instruction": Q, "context": c, "response": A} for c in ("a", "b", "")]
    assert len({digest(to_messages(row, "auto")) for row in rows}) == 3


def test_reasoning_and_weights_reach_the_conversation():
    def one(**turn):
        return to_messages({"messages": [turns(ASK)[0], {"role": "assistant", **turn}]}, "auto")[1]

    assert one(content=None, reasoning_content="Hm.")["content"] == ""
    assert one(content=A, reasoning="Hm.")["reasoning_content"] == "Hm."
    thought = one(content=[{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": A}])
    assert (thought["content"], thought["reasoning_content"]) == (A, "Hm.")
    assert one(content=None, function_call=CALL)["tool_calls"] == CALLED
    with pytest.raises(UnusableRow, match="weight of every response is 0"):
        one(content=A, train=False)
    with pytest.raises(BadRow, match="weight of turn 1 is 'x': make it 0"):
        one(content=A, weight="x")


def test_a_conversation_of_another_prompt_is_refused():
    row = {"prompt": "Something else", "chosen": PLAIN}
    with pytest.raises(BadRow, match="does not begin with column 'prompt'"):
        to_messages(row, "auto")


def test_messages_of_a_tree_are_refused_with_a_remedy():
    with pytest.raises(BadRow, match="one message of a tree"):
        to_messages({"message_id": "1", "parent_id": None, "text": Q, "role": "prompter"}, "auto")


# ---- a map of columns ----------------------------------------------------------------------------


def test_a_map_names_columns_of_any_sort(tmp_path):
    row = {"persona": S, "ask": Q, "more": "In Italy.", "n": 3, "reply": A, "why": "Hm."}
    line = PREFIX + check_format_map("system=persona,prompt=ask+more,response=reply,reasoning=why")
    assert to_messages(row, line) == [
        *turns(SYSTEM, ("user", f"{Q}\n\nIn Italy.")),
        THOUGHT[1],
    ]
    assert check_format_map(line.removeprefix(PREFIX)) == line.removeprefix(PREFIX)
    file = tmp_path / "map.yaml"
    file.write_text('prompt: "{ask} ({n})"\nresponse: reply\n')
    mapped = PREFIX + check_format_map(str(file))
    assert to_messages(row, mapped) == turns(("user", f"{Q} (3)"), ANSWER)
    unused = unused_columns({**row, "context": "x"}, mapped, to_messages(row, mapped))
    assert list(unused) == ["persona", "context"]
    turned = PREFIX + check_format_map("messages=talk,tools=can")
    found = to_messages({"talk": json.dumps(FROM), "can": [{"name": "f"}]}, turned)
    assert (list(found), tools_of(found)) == (PLAIN, [{"name": "f"}])
    with pytest.raises(BadRow, match=r"column 'ask' of the format map is missing"):
        to_messages({"reply": A}, line)


@pytest.mark.parametrize("given", ["nothing.yaml", "promt=a,response=b", "prompt=a", "prompt=,x="])
def test_a_map_that_is_none_is_one_line(given):
    with pytest.raises(ValueError, match="format map") as caught:
        check_format_map(given)
    assert "\n" not in str(caught.value)


def test_a_run_over_all_of_them_ends_with_their_conversations(tiny, tmp_path):
    rows = [(row, expected) for _, _, row, expected in PUBLISHED]
    data = tmp_path / "published.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row, _ in rows))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(len(rows), 8)))
    result = pyids.run(
        data=str(data),
        embeddings_file=str(tmp_path / "x.npy"),
        model=tiny,
        budget=len(rows),
        rounds=1,
        clusters=2,
        keep_duplicates=True,
        max_length=64,
        output_dir=str(tmp_path / "run"),
    )
    selected = [json.loads(line) for line in result.path.read_text().splitlines()]
    assert [row["_pyids_id"] for row in selected] == list(range(len(rows)))
    for row, (given, expected) in zip(selected, rows, strict=True):
        assert row["messages"] == expected, given
        assert {name: row[name] for name in given if name != "messages"} == {
            name: value for name, value in given.items() if name != "messages"
        }
