"""The published schemas, each with a row of its shape: the prompt that comes of it, and no loss."""

import json
import sys
from pathlib import Path

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

sys.path.insert(0, str(Path(__file__).parent))
from published import (
    ANSWER,
    ASK,
    CALL,
    CALLED,
    FROM,
    PLAIN,
    PUBLISHED,
    SYSTEM,
    THOUGHT,
    WITH_SYSTEM,
    A,
    Q,
    S,
    turns,
)


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
        ({"question": Q, "answer": A, "chat_history": ["Hello."], "evidence": "Maps."},
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
