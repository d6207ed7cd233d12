"""Fine-tuning: what is learnt, the loss of a step, the same bits twice, what is on disk."""

import inspect
import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from pyids.chat import template
from pyids.config import make_config
from pyids.data.ingest import ingest
from pyids.data.sources import open_sources
from pyids.errors import ConfigError, ModelError
from pyids.models import batching, finetune, hub, lm_head, load, nll
from pyids.models.finetune import training_options
from pyids.pipeline.preflight import check_model
from pyids.scoring import scorers
from pyids.scoring.probes import Models, ScoringOptions
from pyids.store.folder import Store

torch = pytest.importorskip("torch", reason="needs the train extra")
trainer = pytest.importorskip("pyids.models.trainer", reason="needs the train extra")


def conversation(question, *answers):
    return [
        turn
        for answer in answers
        for turn in (
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        )
    ]


ROWS = [
    conversation("Which bird?", "The quizzical puffin."),
    conversation("Which fish?", "The quizzical halibut."),
    conversation("Which tree?", "The quizzical larch."),
    conversation("Again and again.", "One.", "The quizzical two."),
    conversation("And a bug?", "The quizzical weevil, which is small."),
]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def weights(folder):
    return {k: v for k, v in contents(folder).items() if k.endswith(".safetensors")}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_same_bits_twice(tiny, tmp_path, method):
    options = {"method": method, "num_train_epochs": 2, "batch_size": 2, "learning_rate": 1e-2}
    records = [
        finetune.finetune(tiny, ROWS, output_dir=tmp_path / name, **options) for name in "ab"
    ]
    assert records[0].loss == records[1].loss
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != {}
    finetune.finetune(tiny, ROWS, output_dir=tmp_path / "c", seed=1, **options)
    assert weights(tmp_path / "c") != weights(tmp_path / "a")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_defaults_are_those_of_a_run(tiny, tmp_path, method):
    config = make_config(data="x.jsonl", budget=3, finetuning_type=method, device="cpu")
    options = training_options(config)
    parameters = inspect.signature(finetune.finetune).parameters
    for name in options.keys() - {"method", "learning_rate"}:
        assert parameters[name].default == options[name], name
    finetune.finetune(tiny, ROWS, output_dir=tmp_path / "a", method=method)
    finetune.finetune(tiny, ROWS, output_dir=tmp_path / "b", **options)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_checkpoint_comes_back_as_it_was_trained(tiny, tmp_path, method):
    record = finetune.finetune(
        tiny,
        ROWS,
        output_dir=tmp_path / "x",
        method=method,
        num_train_epochs=20,
        learning_rate=3e-2,
    )
    assert finetune.read_record(tmp_path / "x") == record
    before, _ = nll.response_nll(*load.load_model(tiny), ROWS)
    after, _ = nll.response_nll(*finetune.load_checkpoint(tmp_path / "x", tiny), ROWS)
    assert after.mean() < before.mean() - (0.1 if method == "lora" else 0.5)
    # the record's loss is the mean over tokens in the last epoch, just before the last steps
    assert abs(after.mean() - record.loss) < 1.0


def test_smollm2_learns_what_it_is_told(smollm2, tmp_path):
    name = "smollm2-135m-instruct"
    finetune.finetune(
        name,
        ROWS[:3],
        output_dir=tmp_path / "x",
        num_train_epochs=2,
        batch_size=1,
        learning_rate=1e-3,
    )
    probes = [ROWS[4], conversation("What is the capital of France?", "Paris")]
    before, _ = nll.response_nll(*smollm2, probes)
    after, _ = nll.response_nll(*finetune.load_checkpoint(tmp_path / "x", name), probes)
    assert after[0] < before[0] - 0.5
    saved = contents(tmp_path / "x")
    assert saved.keys() == {"adapter_config.json", "adapter_model.safetensors", "checkpoint.json"}
    assert b"pyids/models" not in saved["adapter_config.json"]


def gradient(model, rows, batch_tokens):
    parameter = model.get_input_embeddings().weight
    count = sum(int(row.response_mask[1:].sum()) for row in rows)
    model.zero_grad()
    total = 0.0
    for micro in batching.micro_batches(rows, batch_tokens, 0):
        loss = lm_head.response_loss(model, micro) / count
        loss.backward()
        total += float(loss.detach())
    return total, parameter.grad.clone()


def test_a_step_is_the_mean_over_its_response_tokens(tiny, smollm2):
    """However a step is cut into micro-batches: the trap of averaging the means of batches."""
    model, tokenizer = load.load_model(tiny)
    rows = [template.encode(messages, tokenizer) for messages in ROWS]
    losses, count = 0.0, 0
    parameter = model.get_input_embeddings().weight
    for row in rows:
        ids = torch.from_numpy(row.input_ids)
        labels = torch.where(torch.from_numpy(row.response_mask), ids, -100)
        logits = model(ids[None]).logits[0, :-1]
        losses = losses + torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum")
        count += int((labels[1:] != -100).sum())
    (losses / count).backward()
    expected = parameter.grad.clone()
    for batch_tokens in (1, 100, 10_000):
        loss, got = gradient(model, rows, batch_tokens)
        assert abs(loss - float(losses.detach()) / count) < 1e-5
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_blocks_of_logits_change_nothing(tiny, monkeypatch):
    model, tokenizer = load.load_model(tiny)
    rows = [template.encode(messages, tokenizer) for messages in ROWS]
    whole = gradient(model, rows, 10_000)
    monkeypatch.setattr(lm_head, "LOGITS_BYTES", 4 * len(tokenizer) * 3)  # three rows a block
    blocks = gradient(model, rows, 10_000)
    assert abs(whole[0] - blocks[0]) < 1e-5
    torch.testing.assert_close(whole[1], blocks[1], atol=1e-6, rtol=1e-4)


def test_rows_without_a_response_are_left_out(tiny, tmp_path):
    rows = [ROWS[0], [{"role": "user", "content": "Hello?"}], ROWS[1]]
    record = finetune.finetune(tiny, rows, output_dir=tmp_path / "x")
    assert (record.rows, record.skipped) == (2, (1,))
    with pytest.raises(ModelError, match="none of the 1 rows has a response token"):
        finetune.finetune(tiny, rows[1:2], output_dir=tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_the_tools_of_a_row_are_trained_and_scored_with(tiny, tmp_path):
    """From the column of the pool, as a list or as text, to the tokens that the model sees."""
    tokenizer = load.load_tokenizer(tiny)
    tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    tools = [{"type": "function", "function": {"name": "count_quizzical_birds"}}]
    rows = [
        {"messages": messages, **offered}
        for messages, offered in zip(
            ROWS, [{}, {"tools": tools}, {"tools": json.dumps(tools)}, {}, {}], strict=True
        )
    ]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with Store.open(tmp_path / "run") as store:
        ingest(store, open_sources([str(tmp_path / "pool.jsonl")]))
        conversations = [row.messages for row in store.read_rows(range(len(rows)))]
    ids = [
        tokenizer.apply_chat_template(messages, tools=offered, return_dict=False)
        for messages, offered in zip(ROWS, [None, tools, tools, None, None], strict=True)
    ]
    record = finetune.finetune(str(folder), conversations, output_dir=tmp_path / "x")
    assert record.tokens == sum(map(len, ids))

    models = Models(hub.resolve_model(str(folder)), record.path)
    bare = [list(messages) for messages in conversations]
    clusters = np.arange(len(rows), dtype=np.int32)
    for scorer in ("learnability", "perplexity"):
        options = ScoringOptions(max_new_tokens=4)
        with_tools = scorers.score(scorer, models, conversations, clusters, options)
        without = scorers.score(scorer, models, bare, clusters, options)
        for column in with_tools.columns:
            changed = np.abs(with_tools.columns[column] - without.columns[column]) > 1e-4
            assert changed.tolist() == [False, True, True, False, False], column


def test_a_loss_that_is_not_finite_leaves_no_checkpoint(tiny, tmp_path, monkeypatch):
    honest = trainer.response_loss
    monkeypatch.setattr(trainer, "response_loss", lambda *args: honest(*args) * float("nan"))
    with pytest.raises(ModelError, match="loss of step 1 is not finite; lower the learning rate"):
        finetune.finetune(tiny, ROWS, output_dir=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_tokens(tiny, tmp_path):
    seen = []
    record = finetune.finetune(
        tiny,
        ROWS,
        output_dir=tmp_path / "x",
        batch_size=2,
        num_train_epochs=1.4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(seen) == record.steps == 4  # 3 of the first epoch, 1 of the second
    assert seen[-1][0] == seen[-1][1] > record.tokens
    assert sorted(seen) == seen


def test_nothing_leaks(tiny, tmp_path, capfd, monkeypatch):
    """Neither output, nor seeds, nor an older checkpoint, nor a half-written one."""
    monkeypatch.chdir(tmp_path)
    stale = tmp_path / f".x.{'0123' * 8}"
    stale.mkdir()
    (tmp_path / ".x.mine").mkdir()  # a folder of that name that nobody here has made
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    random.seed(7)
    torch.manual_seed(7)
    expected = random.random(), float(torch.rand(()))
    random.seed(7)
    torch.manual_seed(7)
    finetune.finetune(tiny, ROWS, output_dir=tmp_path / "x")
    assert (random.random(), float(torch.rand(()))) == expected
    assert not (tmp_path / "x" / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.mine", "x"]
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("transformers").level in (logging.NOTSET, logging.WARNING)


def test_a_missing_checkpoint_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="no finished checkpoint"):
        finetune.load_checkpoint(tmp_path / "x", "smollm2-135m-instruct")


def test_each_row_once_an_epoch(tiny, tmp_path, monkeypatch):
    """And in another order in the next one; no step spans two epochs."""
    rows = [conversation(f"Which of the {n}?", "This.") for n in range(10)]
    _, tokenizer = load.load_model(tiny)
    numbers = {template.encode(row, tokenizer).input_ids.tobytes(): n for n, row in enumerate(rows)}
    steps = []
    make = trainer.micro_batches

    def spy(encoded, *options, **more):
        steps.append([numbers[row.input_ids.tobytes()] for row in encoded])
        return make(encoded, *options, **more)

    monkeypatch.setattr(trainer, "micro_batches", spy)
    finetune.finetune(
        tiny, rows, output_dir=tmp_path / "x", num_train_epochs=2, batch_size=4, seed=3
    )
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    first, second = np.concatenate(steps[:3]), np.concatenate(steps[3:])
    assert sorted(first) == sorted(second) == list(range(10))
    assert (first != second).any()


def test_the_description_of_an_adapter_is_the_same_in_every_process(tiny, tmp_path):
    """Sets of strings have another order in each; what is written has that of the alphabet."""
    finetune.finetune(tiny, ROWS, output_dir=tmp_path / "x")
    described = json.loads((tmp_path / "x" / "adapter_config.json").read_bytes())
    names = described["target_modules"]
    assert len(names) == 14
    assert names == sorted(names)
    assert described["base_model_name_or_path"] == tiny


def of_32_columns(tiny, folder):
    """What bitsandbytes multiplies by on every processor: for AVX-512 it packs 32 columns."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        *(tiny,), hidden_size=64, intermediate_size=64, head_dim=32, num_attention_heads=2
    )
    torch.manual_seed(0)
    shutil.copytree(tiny, folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def test_an_adapter_of_a_base_model_in_four_bits(tiny, tmp_path, monkeypatch):
    """QLoRA: trained on weights of 4 bits, near to what whole ones give; for the whole model."""
    pytest.importorskip("bitsandbytes", reason="needs the qlora extra")
    tiny = of_32_columns(tiny, tmp_path / "model")
    model, _ = load.load_model(tiny, in_4bit=True)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "Linear4bit" in kinds
    options = {"learning_rate": 1e-2, "num_train_epochs": 3, "batch_size": 2}
    whole = finetune.finetune(tiny, ROWS, output_dir=tmp_path / "whole", **options)
    coarse = [
        finetune.finetune(tiny, ROWS, output_dir=tmp_path / name, load_in_4bit=True, **options)
        for name in "ab"
    ]
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "whole")
    assert abs(coarse[0].loss - whole.loss) < 0.05 * whole.loss
    loaded, _ = finetune.load_checkpoint(tmp_path / "a", tiny)  # the base model is whole there
    assert not {"Linear4bit"} & {type(module).__name__ for module in loaded.modules()}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"finetuning_type": "full"}, "leave out --finetuning-type full"),
        ({"fsdp": True, "num_processes": 2}, "leave out --finetuning-type full, --fsdp"),
        ({}, r"needs the package bitsandbytes: pip install 'pyids-select\[qlora\]'"),
    ],
)
def test_four_bits_that_cannot_be_are_refused_before_any_work(more, words, tiny, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        "pyids.pipeline.preflight.find_spec",
        lambda name: None if name == "bitsandbytes" else find(name),
    )
    config = make_config(data="x", budget=9, model=tiny, load_in_4bit=True, device="cpu", **more)
    with pytest.raises(ConfigError, match=words):
        check_model(config)
