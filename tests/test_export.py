"""What leaves: the rows as they came, what is added, what each trainer reads."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import yaml

from pyids.chat import rawjson
from pyids.data.export import FORMATS, export
from pyids.data.exported_rows import Selected
from pyids.data.ingest import ingest
from pyids.data.sources import open_sources
from pyids.errors import ConfigError, DataError
from pyids.store.folder import Store

RAWS = [
    '{"messages": [{"role":"user","content":"hi"},{"role":"assistant","content":"h\\u00e9llo"}],'
    ' "big": 123456789012345678901234567890, "f": 1.50, "e": 1E5, "n": null}',
    '{"z":1,"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},'
    '{"role":"assistant","content":"a"}],"a":{"y":[1,2,{"x":"\\n\\""}]}}',
    '{"messages":[{"role":"user","content":"call"},{"role":"assistant","content":null,'
    '"tool_calls":[{"type":"function","function":{"name":"f","arguments":{"x":1}}}]}],'
    '"tools":[{"type":"function","function":{"name":"f"}}]}',
    '{"_pyids_id":77,"messages":[{"role":"user","content":"again"},'
    '{"role":"assistant","content":"selected"}],"_pyids_round":2,"keep":0.10}',
]
ALPACA = [
    {"instruction": f"do {i}", "input": "", "output": f"done {i}", "id": i} for i in range(40)
]


@pytest.fixture
def stored(tmp_path):
    def make(data, name="run"):
        text = data if isinstance(data, str) else "\n".join(map(json.dumps, data))
        (tmp_path / f"{name}.jsonl").write_text(text)
        store = Store(tmp_path / name)
        with Store.open(tmp_path / name) as opened:
            ingest(opened, open_sources([str(tmp_path / f"{name}.jsonl")]))
        return store

    return make


def some(n=4):
    return Selected(
        row_ids=np.arange(n)[::-1].astype(np.int64),
        clusters=np.arange(n, dtype=np.int32) * 10,
        scores=np.array([0.1, np.nan, -2.5e-7, *range(n)][:n]),
        weights=np.full(n, 0.25),
        rounds=np.ones(n, dtype=np.int16),
    )


def lines(path):
    return path.read_text().splitlines()


def test_original_columns_come_out_untouched(stored, tmp_path):
    path = export(stored("\n".join(RAWS)), some(), tmp_path / "selected.jsonl")
    found = lines(path)
    for row_id, (line, raw) in enumerate(zip(found[:3], RAWS[:3], strict=True)):
        ours = json.loads(line)
        assert line.startswith(raw[:-1] + ",")  # byte for byte, then ours
        assert list(ours)[-5:] == [
            "_pyids_id", "_pyids_cluster", "_pyids_score", "_pyids_weight", "_pyids_round"
        ]  # fmt: skip
        assert ours["_pyids_id"] == row_id
        assert ours["_pyids_cluster"] == 30 - 10 * row_id
    assert [json.loads(line)["_pyids_score"] for line in found] == [0, -2.5e-7, None, 0.1]
    assert json.loads(found[0])["big"] == 123456789012345678901234567890


def test_columns_of_an_earlier_selection_are_replaced(stored, tmp_path):
    path = export(stored("\n".join(RAWS)), some(), tmp_path / "selected.jsonl")
    last = lines(path)[3]
    assert last.count("_pyids_id") == 1
    assert '"keep":0.10' in last
    assert json.loads(last)["_pyids_id"] == 3
    again = stored(path.read_text(), "again")
    twice = lines(export(again, some(), tmp_path / "twice.jsonl"))
    assert [json.loads(line) for line in twice] == [json.loads(line) for line in lines(path)]
    assert '"f":1.50,"e":1E5' in twice[0]


def test_other_formats_gain_messages(stored, tmp_path):
    path = export(stored(ALPACA), some(40), tmp_path / "selected.jsonl")
    for row, line in zip(ALPACA, lines(path), strict=True):
        found = json.loads(line)
        assert {key: found[key] for key in row} == row
        assert found["messages"] == [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]


@pytest.mark.parametrize("format", list(FORMATS))
def test_the_same_selection_is_the_same_bytes(format, stored, tmp_path):
    store = stored(ALPACA)
    selected = some(40)
    order = np.random.default_rng(0).permutation(40)
    shuffled = Selected(
        *(
            getattr(selected, name)[order]
            for name in ("row_ids", "clusters", "scores", "weights", "rounds")
        )
    )
    # Stanzas name their folder: export both to one place.
    contents = []
    for rows in (selected, shuffled):
        path = export(store, rows, tmp_path / "out", format)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert all(contents[0])


def test_indices_are_the_row_ids(stored, tmp_path):
    path = export(stored(ALPACA), Selected(np.array([7, 3, 30])), tmp_path / "ids.txt", "indices")
    assert path.read_text() == "3\n7\n30\n"


def test_parquet_has_one_type_a_column_or_says_so(stored, tmp_path):
    path = export(stored(ALPACA), some(40), tmp_path / "selected.parquet", "parquet")
    table = pq.read_table(path)
    assert table.column("id").to_pylist() == list(range(40))
    assert table.column("_pyids_score").null_count == 1
    assert table.column("messages").to_pylist()[3][1] == {"role": "assistant", "content": "done 3"}
    odd = [{**row, "id": "text" if i == 7 else [i]} for i, row in enumerate(ALPACA)]
    with pytest.raises(DataError, match="the columns have no single type"):
        export(stored(odd, "odd"), some(40), tmp_path / "odd.parquet", "parquet")


def test_bad_selections_and_places(stored, tmp_path):
    store = stored(ALPACA)
    with pytest.raises(ConfigError, match="no export format 'csv': choose jsonl"):
        export(store, some(), tmp_path / "x", "csv")
    with pytest.raises(ValueError, match="row id 3 is selected twice"):
        export(store, Selected(np.array([3, 1, 3])), tmp_path / "x")
    with pytest.raises(ValueError, match="row id 99 was never read"):
        export(store, Selected(np.array([99])), tmp_path / "x")
    with pytest.raises(ValueError, match="scores has 2 rows, row_ids has 1"):
        Selected(np.array([1]), scores=np.zeros(2))
    with pytest.raises(ConfigError, match="cannot be written"):
        export(store, some(), tmp_path / "run.jsonl" / "x")


# ---- trainers ------------------------------------------------------------------------------------


def test_datasets_loads_the_export(stored, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    path = export(stored(ALPACA), some(40), tmp_path / "selected.jsonl")
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == 40
    assert loaded[5]["messages"][1]["content"] == "done 5"
    assert loaded[5]["_pyids_cluster"] == 340


@pytest.mark.parametrize(
    ("format", "stanza"),
    [("trl", "sft.yaml"), ("llamafactory", "dataset_info.json"), ("axolotl", "axolotl.yaml")],
)
def test_trainers_get_messages_and_a_stanza_that_finds_them(
    format, stanza, stored, tmp_path, monkeypatch
):
    store = stored("\n".join(RAWS))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / export(store, some(), "out", format)
    monkeypatch.chdir("/")  # the trainer may run anywhere
    config = yaml.safe_load((folder / stanza).read_text())
    if format == "llamafactory":
        [described] = config.values()
        file = folder / described["file_name"]
        column, tags = described["columns"]["messages"], described["tags"]
        role, content = tags["role_tag"], tags["content_tag"]
        assert described["formatting"] == "sharegpt"
    else:
        [described] = config["datasets"]
        if format == "trl":
            file, column, role, content = described["data_files"], "messages", "role", "content"
        else:
            file, column = described["path"], described["field_messages"]
            role, content = described["message_property_mappings"].values()
            assert described["roles_to_train"] == ["assistant"]
    rows = [json.loads(line) for line in lines(Path(file))]
    last = [row[column][-1][role] for row in rows]
    assert last[:2] == ["assistant"] * 2
    assert rows[0][column][1][content] == "h\u00e9llo"
    call = rows[2][column][1]
    if format == "llamafactory":
        assert json.loads(rows[2]["tools"])[0]["function"]["name"] == "f"
        assert rows[0]["tools"] == ""
        assert call[role] == tags["function_tag"]
        assert json.loads(call[content]) == [{"name": "f", "arguments": {"x": 1}}]
    else:
        assert "tools" not in rows[0]
        assert json.loads(rows[2]["tools"])[0]["function"]["name"] == "f"
        assert call["tool_calls"][0]["function"]["name"] == "f"


CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}
RICH = [
    {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "bad", "weight": 0},
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": "42", "reasoning_content": "six times seven"},
            {"role": "user", "content": "call"},
            {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "4"},
        ]
    }
]


@pytest.mark.parametrize("format", list(FORMATS))
def test_reasoning_weights_and_calls_reach_every_export_or_it_says_so(
    format, stored, caplog, tmp_path
):
    path = export(stored(RICH), Selected(np.array([0])), tmp_path / "out", format)
    if format == "indices":
        return
    if format == "parquet":
        [row] = pq.read_table(path).to_pylist()
    else:
        [row] = map(json.loads, lines(path / "selected.jsonl" if path.is_dir() else path))
    turns = row["messages"]
    if format == "llamafactory":
        assert turns[3]["content"] == "<think>\nsix times seven\n</think>\n\n42"
        assert json.loads(turns[5]["content"])[0]["name"] == "f"
        assert "LLaMA-Factory has no place for the weight 0" in caplog.text
        assert "the text beside a call of a tool, left out of 1 turns" in caplog.text
        return
    assert turns[1]["weight"] == 0
    assert turns[3]["reasoning_content"] == "six times seven"
    assert turns[5]["content"] == "Let me look."
    assert turns[5]["tool_calls"][0]["function"]["name"] == "f"
    assert ("TRL has no place for the weight 0" in caplog.text) == (format == "trl")
    if format == "axolotl":
        assert [turn["training"] for turn in turns] == [False] * 3 + [True, False] * 2 + [True]
        stanza = yaml.safe_load((path / "axolotl.yaml").read_text())["datasets"][0]
        assert stanza["message_field_training"] == "training"


def test_system_columns_and_texts_of_turns_stand_in_the_messages(stored, tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"system": "be brief", "messages": turns, "n": 1},
        {"messages": json.dumps(turns), "n": 2},
    ]
    path = export(stored(rows, "first"), Selected(np.array([0, 1])), tmp_path / "s.jsonl")
    found = [json.loads(line) for line in lines(path)]
    assert found[0]["messages"] == [{"role": "system", "content": "be brief"}, *turns]
    assert found[1]["messages"] == turns
    again = export(stored(path.read_text(), "again"), Selected(np.array([0, 1])), tmp_path / "t")
    assert [json.loads(line) for line in lines(again)] == found


@pytest.mark.parametrize(
    ("format", "given", "name"),
    [
        ("jsonl", "x", "x.jsonl"),
        ("jsonl", "x.json", "x.json"),
        ("parquet", "selected-parquet", "selected.parquet"),
        ("parquet", "x.v1", "x.v1.parquet"),
        ("indices", "ids", "ids.txt"),
    ],
)
def test_an_export_has_the_ending_by_which_it_is_read(format, given, name, stored, tmp_path):
    store = stored(ALPACA)
    path = export(store, some(40), tmp_path / given, format)
    assert path.name == name
    assert path.is_file()
    if format != "indices":
        assert open_sources([str(path)])


def test_brackets_in_a_folder_s_name_are_no_pattern(stored, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    folder = export(stored(ALPACA), some(40), tmp_path / "run [v1]", "trl")
    stanza = yaml.safe_load((folder / "sft.yaml").read_text())["datasets"][0]
    loaded = datasets.load_dataset(**stanza, cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 40


# ---- records -------------------------------------------------------------------------------------


def test_members_keep_the_text_of_every_value():
    raw = b' { "a" : 1.50 , "b\\u0041":[1, {"c":"}"}],"n":-0,"e":{} } '
    assert rawjson.members(raw) == [
        ("a", "1.50"), ("bA", '[1, {"c":"}"}]'), ("n", "-0"), ("e", "{}")
    ]  # fmt: skip
    assert rawjson.members(b"{}") == []
    assert rawjson.with_members(b"{}", [("x", b"1")]) == b'{"x":1}'
    assert rawjson.with_members(b'{"a": 1}', []) == b'{"a": 1}'
    assert rawjson.with_members(b'{"p_a": 1}', [("x", b"2")], replace="p_") == b'{"x":2}'


def test_compacting_touches_nothing_inside_texts():
    raw = json.dumps({"a b": 'x \\" y\n', "n": [1, {}]}, indent=3).encode()
    assert b"\n" not in rawjson.compact(raw)
    assert orjson.loads(rawjson.compact(raw)) == orjson.loads(raw)


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_that_fails_leaves_no_empty_folder(stored, tmp_path, monkeypatch, format):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store, there = stored("\n".join(RAWS)), tmp_path / "there"
    there.mkdir()
    name = {"jsonl": "a.jsonl", "parquet": "a.parquet", "indices": "a.txt"}.get(format, "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for place in (there / name, tmp_path / "new" / "deep" / name):
            with pytest.raises(ConfigError, match="the disk is full"):
                export(store, some(), place, format)
    assert list(there.iterdir()) == []
    assert not (tmp_path / "new").exists()
    assert export(store, some(), tmp_path / "new" / name, format).exists()
