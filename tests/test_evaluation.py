"""`pyids eval`: the loss of each source, adapters and run folders, tasks from local files."""

import json

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from pyids.chat import template
from pyids.cli import cli
from pyids.errors import ConfigError, DataError, ModelError
from pyids.evaluation import evaluate
from pyids.evaluation import evaluate as evaluation
from pyids.models import finetune, load
from pyids.models import load as lm

torch = pytest.importorskip("torch", reason="needs the train extra")


def row(prompt, completion, **columns):
    return {"prompt": prompt, "completion": completion, **columns}


ROWS = [
    row("What is 2 + 2?", "4.", source="sums"),
    row("What is 3 + 4, and why?", "It is 7, since 3 and 4 make 7.", source="sums"),
    row("Name a bird.", "The puffin nests on cliffs.", source="birds"),
    row("Name a bird.", "The puffin nests on cliffs.", source="birds"),
    row("Name a bird that is black.", "The raven.", source="birds"),
]


@pytest.fixture
def held_out(tmp_path):
    path = tmp_path / "held-out.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in ROWS))
    return str(path)


def naive(folder, rows, max_length=1024):
    """NLLs of each row's response tokens, one row at a time, from whole logits."""
    model, tokenizer = load.load_model(folder)
    found = []
    for row in rows:
        turns = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        encoded = template.encode(turns, tokenizer, max_length)
        ids = torch.from_numpy(encoded.input_ids)
        with torch.inference_mode():
            logs = torch.log_softmax(model(ids[None]).logits[0, :-1].double(), -1)
        nll = -logs.gather(1, ids[1:, None])[:, 0].numpy()
        found.append(nll[encoded.response_mask[1:]])
    return found


def test_the_loss_of_each_source_is_the_definition(tiny, held_out):
    result = evaluate.evaluate(tiny, [held_out])
    expected = naive(tiny, ROWS)
    assert [group.name for group in result.groups] == ["birds", "sums"]
    for group, members in zip(result.groups, (expected[2:], expected[:2]), strict=True):
        tokens = np.concatenate(members)
        assert (group.rows, group.response_tokens) == (len(members), len(tokens))
        assert group.token_nll == pytest.approx(tokens.mean(), abs=1e-4)
        assert group.row_nll == pytest.approx(np.mean([m.mean() for m in members]), abs=1e-4)
    birds, sums = result.groups
    assert birds.token_nll != pytest.approx(birds.row_nll, abs=1e-6)
    assert result.macro.token_nll == pytest.approx((birds.token_nll + sums.token_nll) / 2)
    assert result.macro.rows == 5


def test_blocks_of_rows_add_up(tiny, held_out, monkeypatch):
    whole = evaluate.evaluate(tiny, [held_out])
    monkeypatch.setattr(evaluation, "_ROWS_AT_A_TIME", 2)
    for got, expected in zip(evaluate.evaluate(tiny, [held_out]).groups, whole.groups, strict=True):
        assert got.token_nll == pytest.approx(expected.token_nll, abs=1e-5)
        assert (got.rows, got.response_tokens) == (expected.rows, expected.response_tokens)


def test_rows_without_the_column_are_one_group(tiny, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [*ROWS[:2], row("Say yes.", "Yes.", kind=3), row("Say nothing.", "")]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    result = evaluate.evaluate(tiny, [str(path)])
    assert [(group.name, group.rows) for group in result.groups] == [("all", 3)]
    assert (result.group_by, result.skipped) == (None, 1)
    with pytest.raises(DataError, match=r"rows.jsonl line 1: there is no column 'kind'"):
        evaluate.evaluate(tiny, [str(path)], group_by="kind")
    by = evaluate.evaluate(tiny, [held_out_of(tmp_path)], group_by="n", limit=3)
    assert [(group.name, group.rows) for group in by.groups] == [("0", 2), ("1", 1)]


def held_out_of(folder):
    path = folder / "numbers.jsonl"
    rows = [{**row, "n": n // 2} for n, row in enumerate(ROWS)]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_checkpoints_and_run_folders_are_models(tiny, held_out, tmp_path, method):
    """A run folder means its last round's checkpoint: the tenth comes after the ninth."""
    run = tmp_path / "run"
    turns = [[{"role": "user", "content": r["prompt"]}, {"role": "assistant",
              "content": r["completion"]}] for r in ROWS[2:]]  # fmt: skip
    for n in (9, 10):
        finetune.finetune(
            *(tiny, turns if n == 10 else turns[:1]),
            output_dir=run / "rounds" / str(n) / "checkpoint",
            method=method,
            num_train_epochs=10,
            learning_rate=2e-2,
        )
    (run / "config.yaml").write_text("budget: 3\n")
    before, after = (evaluate.evaluate(name, [held_out]) for name in (tiny, str(run)))
    assert after.groups[0].token_nll < before.groups[0].token_nll - 0.1
    last = evaluate.evaluate(str(run / "rounds" / "10" / "checkpoint"), [held_out])
    assert last.groups == after.groups
    assert evaluate.evaluate(str(run / "rounds/9/checkpoint"), [held_out]).groups != last.groups


def test_an_adapter_whose_base_is_gone_asks_for_it(tiny, held_out, tmp_path):
    folder = tmp_path / "adapter"
    turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]]
    finetune.finetune(tiny, turns, output_dir=folder)
    config = folder / "adapter_config.json"
    expected = evaluate.evaluate(str(folder), [held_out])
    changed = {**json.loads(config.read_text()), "base_model_name_or_path": "/moved/away"}
    config.write_text(json.dumps(changed))
    with pytest.raises(ModelError, match=r"/moved/away.*name it with --base"):
        evaluate.evaluate(str(folder), [held_out])
    assert evaluate.evaluate(str(folder), [held_out], base_model=tiny).groups == expected.groups
    with pytest.raises(ConfigError, match="no adapter: leave out --base"):
        evaluate.evaluate(tiny, [held_out], base_model=tiny)


def test_columns_are_read_by_a_map(tiny, held_out, tmp_path):
    file = tmp_path / "mapped.jsonl"
    rows = [{"q": ask, "a": answer} for ask, answer in (("2 + 2?", "4"), ("Name a bird.", "Owl"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="format"):
        evaluate.evaluate(tiny, [str(file)])
    mapped = evaluate.evaluate(tiny, [str(file)], format_map="prompt=q,response=a")
    file.write_text(
        "".join(json.dumps({"prompt": r["q"], "completion": r["a"]}) + "\n" for r in rows)
    )
    assert evaluate.evaluate(tiny, [str(file)]).groups == mapped.groups


def test_mistakes_are_answered_before_anything_is_loaded(held_out, tmp_path, monkeypatch):
    monkeypatch.setattr(lm, "load_model", lambda *_: pytest.fail("loaded a model"))
    name = "smollm2-135m-instruct"
    for given, expected in ({"format": "alpaca"}, "exclude each other"), ({}, "neither a column"):
        with pytest.raises(ConfigError, match=expected):
            evaluate.evaluate(name, [held_out], format_map="prompt=,response=b", **given)
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        evaluate.evaluate(name)
    with pytest.raises(ModelError, match="no/such-model"):
        evaluate.evaluate("no/such-model", [held_out])
    (tmp_path / "config.yaml").write_text("budget: 3\n")
    with pytest.raises(ModelError, match="trained no checkpoint"):
        evaluate.evaluate(str(tmp_path), [held_out])
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        evaluate.evaluate(name, ["nowhere.jsonl"])
    with pytest.raises(ConfigError, match="nowhere: there is no such folder"):
        evaluate.evaluate(name, tasks=["capitals"], include_path="nowhere")


def test_the_command_prints_a_table_and_writes_json(tiny, held_out, tmp_path):
    path = tmp_path / "out.json"
    result = CliRunner().invoke(cli, ["-q", "eval", tiny, held_out, "--json", str(path)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["source", "rows", "tokens", "nll/token", "nll/row"]
    assert [line.split()[0] for line in lines[1:]] == ["birds", "sums", "macro"]
    found = json.loads(path.read_bytes())
    assert found["groups"][0]["rows"] == 3
    assert float(lines[1].split()[3]) == pytest.approx(found["groups"][0]["token_nll"], abs=5e-3)
    assert found["macro"]["response_tokens"] == sum(g["response_tokens"] for g in found["groups"])


TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
output_type: multiple_choice
test_split: test
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def capitals(tmp_path, monkeypatch):
    """A folder with a task of the harness: one question that a model can answer, one it cannot."""
    pytest.importorskip("lm_eval", reason="needs the eval extra")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": "What is the capital of France?", "choices": ["Paris", "Soap"], "answer": 0},
        {"question": "What is the capital of Italy?", "choices": ["Kettle", "Rome"], "answer": 1},
        {"question": "What is the capital of Spain?", "choices": ["Madrid", "Tin"], "answer": 1},
    ]
    (folder / "rows.json").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    (folder / "capitals.yaml").write_text(TASK.format(path=folder / "rows.json"))
    return str(folder)


@pytest.mark.slow
def test_a_task_from_local_files(capitals):
    """The right answers, one wrong key, and the standard error of their mean."""
    name = "smollm2-135m-instruct"
    result = evaluate.evaluate(name, tasks=["capitals"], include_path=capitals)
    assert result.tasks["capitals"]["acc"] == pytest.approx(2 / 3)
    assert result.tasks["capitals"]["acc_stderr"] == pytest.approx(np.sqrt(2 / 9 / 2))
    assert "capitals" in str(result)


def test_tasks_and_rows_together_with_a_limit(tiny, capitals, held_out, tmp_path):
    path = tmp_path / "out.json"
    options = ["--tasks", "capitals", "--include-path", capitals, "--limit", "2"]
    result = CliRunner().invoke(cli, ["-q", "eval", tiny, held_out, *options, "--json", str(path)])
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_bytes())
    assert found["tasks"]["capitals"]["acc"] in (0, 0.5, 1)
    assert [group["rows"] for group in found["groups"]] == [2]


def test_a_task_that_is_not_there_is_answered(tiny, capitals, monkeypatch):
    import lm_eval.tasks

    def own_only(include_path, include_defaults=True):  # the harness's own take seconds to index
        return manager(include_path=include_path, include_defaults=False)

    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_only)
    with pytest.raises(ConfigError, match="task 'rivers' is not one of the harness nor in"):
        evaluate.evaluate(tiny, tasks=["capitals", "rivers"], include_path=capitals)
