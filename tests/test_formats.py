"""Chat formats: every one gives the same conversation, and no row whatever breaks the reading."""

import copy
import json
import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyids.chat.digest import _digest_in_parts, digest, normalize
from pyids.chat.formats import (
    FORMATS,
    ROLES,
    BadRow,
    UnusableRow,
    check_format,
    detect_format,
    to_messages,
    tools_of,
)
from pyids.data.look import Look


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


ASK, ANSWER = ("user", "2 + 2?"), ("assistant", "4")
SYSTEM = ("system", "be brief")

SAME = {
    "messages": {"messages": turns(SYSTEM, ASK, ANSWER)},
    "sharegpt": {
        "system": "be brief",
        "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}],
    },
    "alpaca": {"system": "be brief", "instruction": "2 + 2?", "input": "", "output": "4"},
    "prompt/completion": {"system": "be brief", "prompt": "2 + 2?", "completion": "4"},
    "prompt/response": {"prompt": turns(SYSTEM, ASK), "response": turns(ANSWER)},
    "question/answer": {"question": "2 + 2?", "answer": "4", "system": "be brief"},
    "instruction/response": {"instruction": "2 + 2?", "response": "4", "system": "be brief"},
}


@pytest.mark.parametrize("format", SAME)
def test_every_format_is_detected_and_gives_the_same_conversation(format):
    record = SAME[format]
    before = copy.deepcopy(record)
    assert detect_format(record) == format
    assert check_format(format) == format
    assert to_messages(record, format) == turns(SYSTEM, ASK, ANSWER)
    assert record == before
    assert digest(to_messages(record, format)) == digest(to_messages(SAME["messages"], "messages"))


def test_alpaca_joins_the_input_and_keeps_the_history():
    record = {
        "instruction": "add",
        "input": "2 and 2",
        "output": "4",
        "history": [["hi", "hello"]],
        "system": None,
    }
    assert to_messages(record, "alpaca") == turns(
        ("user", "hi"), ("assistant", "hello"), ("user", "add\n\n2 and 2"), ("assistant", "4")
    )


@pytest.mark.parametrize("format", SAME)
def test_tools_belong_to_the_conversation_as_a_list_or_as_text(format):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": None}}}]
    bare = to_messages(SAME[format], format)
    assert tools_of(bare) == []
    digests = {digest(bare)}
    for column in (tools, json.dumps(tools), json.dumps(tools, indent=1)):
        found = to_messages({**SAME[format], "tools": column}, format)
        assert tools_of(found) == tools
        assert found == bare
        digests.add(digest(found))
    assert len(digests) == 2
    for nothing in (None, [], "", " ", "[]", "null"):
        assert tools_of(to_messages({**SAME[format], "tools": nothing}, format)) == []


@pytest.mark.parametrize("tools", ["hammer, saw", '{"name": "f"}', ["f"], {"name": "f"}, 7])
def test_tools_that_no_template_could_render_are_named(tools):
    with pytest.raises(BadRow, match=r"column 'tools' is .*: make it a list of objects or that"):
        to_messages({**SAME["messages"], "tools": tools}, "messages")


def test_half_a_surrogate_pair_in_tools_is_unusable():
    with pytest.raises(UnusableRow, match="surrogate"):
        digest(to_messages({**SAME["messages"], "tools": [{"name": "\ud800"}]}, "messages"))


def test_tool_calls_stay_and_stand_for_a_response():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    record = {"messages": [*turns(ASK), call, {"role": "tool", "content": "4", "name": None}]}
    found = to_messages(record, "messages")
    assert found[1] == {**call, "content": ""}
    assert found[2] == {"role": "tool", "content": "4"}
    other = copy.deepcopy(record)
    other["messages"][1]["tool_calls"][0]["function"]["name"] = "g"
    assert digest(found) != digest(to_messages(other, "messages"))
    spoken = {
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "function_call", "value": '{"name": "f"}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "4"},
        ]
    }
    roles = [turn["role"] for turn in to_messages(spoken, "sharegpt")]
    assert roles == ["user", "assistant", "tool", "assistant"]


CALLS = [{"type": "function", "function": {"name": "find", "arguments": {"what": "river"}}}]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (json.dumps(CALLS), CALLS),
        (CALLS, CALLS),
        *((nothing, None) for nothing in ("", "[]", "null", [], None)),
    ],
)
def test_calls_that_are_json_text_are_calls(given, expected):
    row = {"messages": [turns(ASK)[0], {**turns(ANSWER)[0], "tool_calls": given}]}
    last = to_messages(row, "auto")[-1]
    assert last == {**turns(ANSWER)[0], **({"tool_calls": expected} if expected else {})}


@pytest.mark.parametrize("given", ["find(river)", 3, {"name": "find"}, ["find"], '["find"]'])
def test_calls_that_are_none_are_named(given):
    row = {"messages": [turns(ASK)[0], {**turns(ANSWER)[0], "tool_calls": given}]}
    with pytest.raises(BadRow, match=r"the tool_calls of turn 1 is .*: make it a list of objects"):
        to_messages(row, "auto")


def test_any_two_columns_are_a_format():
    assert check_format("in/out") == "in/out"
    assert to_messages({"in": "a", "out": "b"}, "in/out") == turns(
        ("user", "a"), ("assistant", "b")
    )
    for name in ("in", "in/", "/out", "a/b/c", "Messages", ""):
        with pytest.raises(ValueError, match="there is no chat format"):
            check_format(name)


@pytest.mark.parametrize(
    ("record", "format", "says"),
    [
        ({"messages": []}, "messages", "no turn of the assistant"),
        ({"messages": turns(ASK)}, "messages", "no turn of the assistant"),
        ({"messages": None}, "messages", "column 'messages' is null: make it a list of turns"),
        ({"messages": "[1"}, "messages", "column 'messages' is a text: make it a list of turns"),
        ({"messages": turns(("Usher", "x"))}, "messages", "turn 0 has the role 'Usher'"),
        ({"messages": [{"content": "x"}]}, "messages", "turn 0 has the role None"),
        ({"messages": [{"role": [], "content": "x"}]}, "messages", r"turn 0 has the role \[\]"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "sharegpt", "from 'alien'"),
        ({"conversations": [{"from": "gpt", "value": True}]}, "sharegpt", "is a truth value"),
        ({"instruction": "x"}, "alpaca", "column 'output' is missing"),
        ({"instruction": {}, "output": ""}, "alpaca", "column 'instruction' is an object"),
        ({"instruction": "", "output": "", "input": 1}, "alpaca", "column 'input' is the number 1"),
        ({"instruction": "", "output": "", "history": [[1]]}, "alpaca", "item 0 is no pair"),
        ({"prompt": "x", "completion": 1.5}, "prompt/completion", "is the number 1.5"),
        ({"prompt": "x"}, "prompt/completion", r"'completion' is missing \(the row has: prompt\)"),
    ],
)
def test_bad_rows_name_the_column_and_the_remedy(record, format, says):
    with pytest.raises(BadRow, match=says):
        to_messages(record, format)


@pytest.mark.parametrize(
    ("prompt", "response", "says"),
    [("q", " \n\t", "response"), ("q", "", "response"), ("\u2003", "a", "prompt")],
)
def test_rows_that_say_nothing_are_unusable(prompt, response, says):
    with pytest.raises(UnusableRow, match=f"the {says} is empty"):
        to_messages({"prompt": prompt, "completion": response}, "prompt/completion")


def test_an_answer_that_was_rejected_is_not_learnt():
    row = {"prompt": "q", "completion": "a", "label": False}
    with pytest.raises(UnusableRow, match="its label is false"):
        to_messages(row, "auto")
    for other in ({**row, "label": True}, {**row, "text": "x"}, {**row, "label": 0}):
        assert len(to_messages(other, "auto")) == 2


def test_only_one_empty_turn_is_no_reason_to_lose_a_conversation():
    record = {"messages": turns(ASK, ("assistant", ""), ("user", ""), ANSWER)}
    assert len(to_messages(record, "messages")) == 4


said = st.sampled_from(["", " ", "a", "a  b", "\u00e9", "e\u0301"])
speakers = st.sampled_from(["user", "assistant", "system", "human", "gpt", "nobody"])
turn_objects = st.fixed_dictionaries({"role": speakers, "content": said}) | st.fixed_dictionaries(
    {"from": speakers, "value": said}
)
rows_of_turns = st.dictionaries(
    st.sampled_from(["messages", "conversations"]), st.none() | st.lists(turn_objects, max_size=3),
    min_size=1,
).flatmap(
    lambda row: st.dictionaries(
        st.sampled_from(["system", "tools", "functions", "context", "label", "text", "id"]),
        st.sampled_from(["", "a", "be kind", [], [{"name": "f"}], None]),
        max_size=2,
    ).map(lambda more: {**row, **more})
)  # fmt: skip


# ---- normalization -------------------------------------------------------------------------------


@given(st.text())
def test_normalizing_is_idempotent_and_ignores_form_and_spacing(text):
    once = normalize(text)
    assert normalize(once) == once
    assert normalize(unicodedata.normalize("NFD", text)) == once
    assert normalize(f"  {text}\r\n") == once
    assert "\x1e" not in once
    assert "\x1f" not in once


conversations = st.lists(
    st.tuples(st.sampled_from(sorted(ROLES)), st.text(alphabet="ab \x1e\x1f\n\u00e9")), max_size=4
)


@given(conversations, conversations)
@example([("user", "a\x1eassistant\x1fb")], [("user", "a"), ("assistant", "b")])
@example([("user", "a"), ("user", "b")], [("user", "ab"), ("user", "")])
def test_digests_are_equal_exactly_for_equal_normalized_conversations(first, second):
    def key(pairs):
        return [(role, normalize(text)) for role, text in pairs]

    assert (digest(turns(*first)) == digest(turns(*second))) == (key(first) == key(second))


@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(sorted(ROLES)), "content": st.text()},
            optional={"name": st.text(max_size=2)},
        ),
        max_size=4,
    )
)
@example([{"role": "user", "content": "e\u0301 \u2000\u3000x\x85\x1cy\U0001f600"}])
@example([{"role": "user", "content": "\u1100\u1161 \u212b\u037e"}])
@example([{"role": "user", "content": "x" * 70_000 + "  y"}])
def test_a_digest_is_the_same_whether_turns_are_read_at_once_or_one_by_one(messages):
    assert digest(messages) == _digest_in_parts(messages)


def test_every_white_space_of_python_is_one_space():
    spaces = [chr(c) for c in range(sys.maxunicode + 1) if chr(c).isspace()]
    assert len(spaces) > 20
    for space in spaces:
        text = f"{space}a{space}{space}b{space}"
        assert digest(turns(("user", text))) == digest(turns(("user", "a b")))


@given(rows_of_turns, st.sampled_from(["auto", "messages", "sharegpt"]))
@example({"messages": turns(ASK, ("assistant", "\ud800"))}, "auto")
@example({"messages": turns(ASK, ("assistant", " \u3000"))}, "auto")
@example({"messages": turns(("assistant", "a"))}, "auto")
@example({"messages": turns(ASK, ANSWER), "conversations": []}, "sharegpt")
@example({"messages": None, "conversations": [{"from": "gpt", "value": "a"}]}, "auto")
@example(
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "auto"
)
def test_plain_turns_are_read_as_all_others_are(record, format):
    def look(record):
        found = Look(format)
        try:
            key = found.digest(record)
        except (BadRow, UnusableRow) as error:
            key = str(error)
        return key, found.formats, found.unused

    class Other(dict):
        """No exact dict: it takes the long way."""

    assert look(record) == look(Other(record))


# ---- rows of any shape ---------------------------------------------------------------------------

COLUMNS = [
    "messages", "conversations", "system", "instruction", "input", "output", "history", "prompt",
    "completion", "response", "question", "answer", "role", "content", "from", "value",
    "tool_calls", "user", "assistant", "human", "gpt",
]  # fmt: skip
texts = st.sampled_from(COLUMNS) | st.text()
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(COLUMNS), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(texts, values, max_size=6), st.sampled_from([*FORMATS, "role/content"]))
def test_any_row_gives_a_conversation_or_says_why_not(record, format):
    before = json.dumps(record)
    try:
        messages = to_messages(record, format)
        digest(messages)
    except (BadRow, UnusableRow) as error:
        assert 0 < len(str(error)) < 800  # noqa: PT017  either outcome is right
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert any(turn["role"] == "assistant" for turn in messages)
        assert all(turn["role"] in ROLES for turn in messages)
        assert all(isinstance(turn["content"], str) for turn in messages)
    assert json.dumps(record) == before
    detected = detect_format(record)
    assert detected is None or detected in FORMATS or check_format(detected) == detected
