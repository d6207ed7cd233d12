"""The exports in the hands of the trainers that they are for: TRL, LLaMA-Factory, axolotl."""

import importlib
import json
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

from pyids.data.export import export
from pyids.data.exported_rows import Selected
from pyids.data.ingest import ingest
from pyids.data.sources import open_sources
from pyids.store.folder import Store

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# Another schema: a table of both would give each the columns of the other.
SUM = {
    "type": "function",
    "function": {
        "name": "sum",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"terms": {"type": "array"}}},
    },
}


def asks(question, *turns):
    return [{"role": "user", "content": question}, *turns]


def says(text):
    return {"role": "assistant", "content": text}


def calls(name, arguments):
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": function}],
    }


ROWS = [
    {"messages": asks("do one", says("done one"))},
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            *asks("do two", says("done two"), *asks("do three", says("done three"))),
        ]
    },
    {
        "messages": asks(
            "Rome?",
            calls("weather", {"city": "Rome"}),
            {"role": "tool", "content": "rain"},
            says("It rains."),
        ),
        "tools": [WEATHER],
    },
    {
        "messages": asks(
            "1 + 1?",
            calls("sum", json.dumps({"terms": [1, 1]})),  # as the OpenAI API gives it
            {"role": "tool", "content": "2"},
            says("Two."),
        ),
        "tools": json.dumps([SUM]),
    },
]
# TRL knows the response tokens by `generation`, axolotl finds them by what a turn called `message`
# renders.
CHATML = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function']['name'] }}{% endfor %}"
    "<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}"
)


@pytest.fixture
def exported(tmp_path):
    """Export rows in a trainer's format."""

    def make(format, rows=ROWS):
        (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with Store.open(tmp_path / "run") as store:
            ingest(store, open_sources([str(tmp_path / "pool.jsonl")]))
            return export(store, Selected(np.arange(len(rows))), tmp_path / format, format)

    return make


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("transformers", reason="needs the train extra")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = "<|im_end|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=special,
        pad_token=special,
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def trained_on(tokenizer, ids, labels):
    """The texts that have labels, one a run of tokens."""
    kept = np.concatenate([[False], np.asarray(labels) != -100, [False]])
    edges = np.flatnonzero(kept[1:] != kept[:-1]).reshape(-1, 2)
    return [tokenizer.decode(ids[start:stop]) for start, stop in edges]


@pytest.mark.slow
def test_trl_trains_on_the_responses_only_and_shows_the_tools(exported, tokenizer, tmp_path):
    trl = pytest.importorskip("trl", reason="the package trl is not installed")
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.scripts.utils import get_dataset

    folder = exported("trl")
    parser = trl.TrlParser([trl.DatasetMixtureConfig, trl.SFTConfig])
    options = {"config": folder / "sft.yaml", "output_dir": tmp_path / "model"}
    options |= {"report_to": "none", "use_cpu": True, "bf16": False}
    mixture, config = parser.parse_args_and_config(
        [word for name, value in options.items() for word in (f"--{name}", str(value))]
    )
    rows = get_dataset(mixture)["train"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
            num_hidden_layers=1, num_attention_heads=1,
        )
    )  # fmt: skip
    sft = trl.SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    found = {}
    for batch in sft.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            found[tokenizer.decode(ids)] = trained_on(tokenizer, ids, labels)
    assert sorted(found.values()) == [
        ["done one<|im_end|>"],
        ["done two<|im_end|>", "done three<|im_end|>"],
        ["sum<|im_end|>", "Two.<|im_end|>"],
        ["weather<|im_end|>", "It rains.<|im_end|>"],
    ]
    for text, responses in found.items():
        for tool in (WEATHER, SUM):
            offered = f"{tool['function']['name']}<|im_end|>" in responses
            assert text.startswith(json.dumps([tool])) == offered


@pytest.fixture
def llamafactory_data(monkeypatch):
    """LLaMA-Factory's own code that reads data; the rest of it imports torchaudio and more."""
    spec = find_spec("llamafactory")
    if spec is None:
        pytest.skip(
            "the package llamafactory is not installed (pip install --no-deps llamafactory)"
        )
    package = types.ModuleType("llamafactory.data")
    package.__path__ = [str(Path(spec.origin).parent / "data")]
    monkeypatch.setitem(sys.modules, "llamafactory.data", package)
    names = ("parser", "converter", "formatter")
    return [importlib.import_module(f"llamafactory.data.{name}") for name in names]


def test_llamafactory_reads_every_turn_tool_and_call(exported, llamafactory_data, tmp_path):
    parser, converter, formatter = llamafactory_data
    folder = exported("llamafactory")
    [described] = parser.get_dataset_list(["pyids_selected"], str(folder))
    assert described.load_from == "file"
    table = datasets.load_dataset(
        "json",
        data_files=str(folder / described.dataset_name),
        split=described.split,
        cache_dir=str(tmp_path / "cache"),
    )
    align = converter.get_dataset_converter(described.formatting, described, None)
    rows = [align(row) for row in table]

    def read(row):
        return [(turn["role"], turn["content"]) for turn in row["_prompt"] + row["_response"]]

    assert [row["_system"] for row in rows] == ["", "be brief", "", ""]
    assert read(rows[0]) == [("user", "do one"), ("assistant", "done one")]
    assert [content for _, content in read(rows[1])] == [
        "do two",
        "done two",
        "do three",
        "done three",
    ]
    for row, tool, arguments in (
        (rows[2], WEATHER, {"city": "Rome"}),
        (rows[3], SUM, {"terms": [1, 1]}),
    ):
        name = tool["function"]["name"]
        assert [role for role, _ in read(row)] == ["user", "function", "observation", "assistant"]
        [shown] = formatter.ToolFormatter(tool_format="default").apply(content=row["_tools"])
        assert f"> Tool Name: {name}\n" in shown
        [called] = formatter.FunctionFormatter(slots=["{{content}}"], tool_format="default").apply(
            content=read(row)[1][1]
        )
        assert called == f"Action: {name}\nAction Input: {json.dumps(arguments)}"
    assert [row["_tools"] for row in rows[:2]] == ["", ""]


@pytest.mark.slow
def test_axolotl_trains_on_the_responses_only_and_shows_the_tools(exported, tokenizer, tmp_path):
    pytest.importorskip("axolotl", reason="the package axolotl is not installed")
    for package in ("addict", "colorama"):
        pytest.importorskip(
            package, reason=f"the package {package}, which axolotl needs, is not installed"
        )
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas.datasets import SFTDataset

    folder = exported("axolotl")
    [stanza] = yaml.safe_load((folder / "axolotl.yaml").read_text())["datasets"]
    assert SFTDataset(**stanza).model_dump(exclude_unset=True).keys() >= stanza.keys()
    assert stanza["type"] == "chat_template"
    table = datasets.load_dataset(
        stanza["ds_type"],
        data_files=stanza["path"],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    strategy = load(tokenizer, DictDefault(sequence_len=4096), DictDefault(stanza))
    found = []
    for row in table:
        tokens = strategy.tokenize_prompt(row)
        found.append(trained_on(tokenizer, tokens["input_ids"], tokens["labels"]))
        shown = tokenizer.decode(tokens["input_ids"])
        offered = json.loads(row["tools"]) if row.get("tools") else []
        assert shown.startswith(json.dumps(offered) if offered else "<|im_start|>")
    assert found[:2] == [["done one<|im_end|>"], ["done two<|im_end|>", "done three<|im_end|>"]]
    assert found[2:] == [
        ["weather<|im_end|>", "It rains.<|im_end|>"],
        ["sum<|im_end|>", "Two.<|im_end|>"],
    ]
