"""Causal families, tiny and random: our losses are those of a model's own logits, or it is refused.

The models are those of ``benchmarks/families.py``, which prints the table of all that can be built.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyids.chat.template import encode
from pyids.errors import ModelError
from pyids.models import (
    adapter,
    batching,
    checkpoints,
    finetune,
    hub,
    lm_head,
    load,
    nll,
    take_apart,
)

torch = pytest.importorskip("torch", reason="needs the train extra")

# One of each kind of head, of attention, of experts and of state is enough; among them all that
# once had a wrong loss.
FAMILIES = [
    *("afmoe", "apertus", "bamba", "bart", "bitnet", "bloom", "codegen", "cohere", "cohere2"),
    *(
        "cohere2_moe",
        "ctrl",
        "deepseek_v3",
        "exaone4",
        "falcon",
        "falcon_h1",
        "falcon_mamba",
        "gemma",
    ),
    *("gemma2", "gemma3", "gemma3_text", "gemma4", "glm4", "gpt2", "gpt_bigcode", "gpt_neo"),
    *("gpt_neox", "gpt_oss", "gptj", "granite", "granitemoehybrid", "rwkv", "hyperclovax", "llama"),
    *("llama4", "mamba", "mamba2", "minimax", "mixtral", "mpt", "olmo2", "olmoe", "openai-gpt"),
    *("opt", "phi", "phi3", "phimoe", "qwen2_moe", "qwen3", "recurrent_gemma", "smollm3"),
    *("stablelm", "starcoder2", "xglm", "xlstm", "gemma4_unified", "modernbert-decoder"),
    *("qwen3_5", "qwen3_next", "zamba2"),
]
ENCODERS = ["bert", "camembert", "electra", "ernie", "roberta", "roformer", "xlm-roberta"]


@pytest.fixture(scope="module")
def families():
    """Import the benchmark, which is in no package."""
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield __import__("families")
    finally:
        sys.path.remove(folder)
        sys.modules.pop("families", None)


@pytest.fixture(autouse=True)
def one_thread():
    """So small a model is slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ours_in(caplog):
    """What pyids has logged; transformers finds fault with its own default configurations."""
    return [record.message for record in caplog.records if record.name == "pyids"]


def step(model, encoded):
    """One step of training on all rows, as the Trainer takes it; return its loss."""
    count = sum(int(row.response_mask[1:].sum()) for row in encoded)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    total = 0.0
    for micro in batching.micro_batches(encoded, 512, 0):
        loss = lm_head.response_loss(model, micro) / count
        loss.backward()
        total += float(loss.detach())
    with torch.no_grad():
        for parameter in trained:
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad.sign()
    model.eval()
    return total


def saved(model, tokenizer, folder, method, base):
    record = checkpoints.Checkpoint(folder, method, base, 8, 0, 0, (), 1, 0.0, 0.0)
    checkpoints.save_checkpoint(model, tokenizer, record)
    return checkpoints.load_checkpoint(folder, base)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_our_losses_are_those_of_the_models_own_logits(families, tmp_path, family, caplog, capsys):
    folder = tmp_path / "model"
    families.build(family, folder)
    model, tokenizer = load.load_model(str(folder))
    apart, alike = (
        [encode(r, tokenizer) for r in rows] for rows in (families.APART, families.ALIKE)
    )
    found = []
    for rows in (apart, alike):
        ours, own = nll.encoded_nll(model, rows).mean, families.own_nll(model, rows)
        np.testing.assert_allclose(ours, own, atol=1e-5)
        found.append(np.abs(ours - own).max())
    rows = [*apart, *alike]
    tokens = np.asarray([row.response_mask.sum() for row in rows])
    own = float(families.own_nll(model, rows) @ tokens / tokens.sum())
    for method in ("lora", "full"):
        trained = adapter.add_adapter(model, 2) if method == "lora" else model
        loss = step(trained, rows)
        # The adapter's part of the first step is nothing: its second matrix is zero.
        assert abs(loss - own) < 1e-4, method
        found.append(abs(loss - own))
        if method == "lora":
            assert any(p.grad is not None and p.grad.abs().sum() for p in trained.parameters())
        again = saved(trained, tokenizer, tmp_path / method, method, str(folder))
        ours = nll.encoded_nll(again, rows).mean
        np.testing.assert_allclose(ours, families.own_nll(again, rows), atol=1e-5)
        np.testing.assert_allclose(ours, families.own_nll(trained, rows), atol=1e-4)
        assert ours @ tokens / tokens.sum() != own, method
        model, _ = load.load_model(str(folder))
    assert not ours_in(caplog)  # none of them needs the slow way
    with capsys.disabled():
        print(f"\n  {family:20} apart, alike, LoRA, full:", *(f"{x:.0e}" for x in found), end="")


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_no_language_model(families, tmp_path, family):
    families.build(family, tmp_path / "model")
    with pytest.raises(ModelError, match="see later tokens, as those of an encoder") as error:
        load.load_model(str(tmp_path / "model"))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def llama(families, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families") / "llama"
    families.build("llama", folder)
    return str(folder)


class Squared(torch.nn.Module):
    """A head of no known kind, after which nothing is known of the logits."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.linear = linear.weight, linear

    def forward(self, states):
        return self.linear(states) + 0.01 * self.linear(states) ** 2


def strange(model, kind):
    """Make a Llama's logits something else than hidden states times its head."""
    if kind == "other head":
        model.lm_head = Squared(model.lm_head)
    elif kind == "other logits":
        own = model.forward
        weight = torch.linspace(0.5, 1.5, model.config.vocab_size)

        def forward(*args, **options):
            out = own(*args, **options)
            out.logits = out.logits * weight
            return out

        model.forward = forward
    elif kind == "no head":
        head, own = model.lm_head, model.forward

        def headless(*args, **options):
            out = model.model(*args, **{k: v for k, v in options.items() if k != "labels"})
            out.logits = torch.sin(torch.nn.functional.linear(out.last_hidden_state, head.weight))
            return out

        model.forward = headless
        assert own
    return model


@pytest.mark.parametrize(
    ("kind", "way"), [("other head", "chosen"), ("other logits", "chosen"), ("no head", "whole")]
)
def test_a_model_of_no_known_kind_gives_its_own_logits_in_blocks(
    families, llama, kind, way, monkeypatch, caplog
):
    model, tokenizer = load.load_model(llama)
    model = strange(model, kind)
    lm_head._FOUND.pop(model)
    rows = [encode(r, tokenizer) for r in [*families.APART, *families.ALIKE]]
    own = families.own_nll(model, rows)
    assert lm_head.Head.of(model).way == way
    assert [message.count("its own are computed") for message in ours_in(caplog)] == [1]
    plain = load.load_model(llama)[0]
    assert np.abs(families.own_nll(plain, rows) - own).min() > 1e-2  # it is another loss
    tokens = np.asarray([row.response_mask.sum() for row in rows])
    for size in (1 << 27, 4 * families.V * 5):  # all at once, and five positions a block
        monkeypatch.setattr(lm_head, "LOGITS_BYTES", size)
        np.testing.assert_allclose(nll.encoded_nll(model, rows).mean, own, atol=1e-5)
        model.zero_grad()
        assert abs(step(model, rows) - own @ tokens / tokens.sum()) < 1e-4
        with torch.no_grad():  # take the step back
            for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
                ours.copy_(theirs)
    assert len(ours_in(caplog)) == 1


def test_blocks_are_bounded_and_in_order():
    head = lm_head.Head(None, lm_head.Limits("x", 10, None), None, "chosen")
    chosen = torch.rand(7, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    number = torch.arange(63).reshape(7, 9)
    for way in ("chosen", "whole"):
        parts = replace(head, way=way).blocks(chosen)
        assert torch.equal(torch.cat([number[a][p] for a, p in parts]), number[chosen])


def test_a_missing_weight_is_refused(llama, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(llama, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    for change, words in (
        ({k: v for k, v in weights.items() if ".1." not in k}, "weights are missing"),
        (
            {k: v[:-1].clone() if "down" in k else v for k, v in weights.items()},
            "cannot be loaded|another shape",
        ),
    ):
        save_file(change, file, {"format": "pt"})
        with pytest.raises(ModelError, match=words) as error:
            load.load_model(str(tmp_path / "model"))
        assert "\n" not in str(error.value)


def test_an_adapter_around_the_head_is_seen(families, llama):
    """An adapter of another's making may change the head itself."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load.load_model(llama)
    rows = [encode(row, tokenizer) for row in families.ALIKE]
    before = nll.encoded_nll(model, rows).mean
    model = get_peft_model(model, LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    own = families.own_nll(model, rows)
    assert np.abs(own - before).max() > 1e-2
    np.testing.assert_allclose(nll.encoded_nll(model, rows).mean, own, atol=1e-5)
    with model.disable_adapter():
        np.testing.assert_allclose(nll.encoded_nll(model, rows).mean, before, atol=1e-5)


def test_an_adapter_without_all_its_weights_is_refused(families, llama, tmp_path):
    from safetensors.torch import load_file, save_file

    model, tokenizer = load.load_model(llama)
    saved(adapter.add_adapter(model, 2), tokenizer, tmp_path / "x", "lora", llama)
    file = tmp_path / "x" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if ".1." not in k}, file)
    with pytest.raises(ModelError, match=r"\d+ weights of the adapter are missing"):
        finetune.load_checkpoint(tmp_path / "x", llama)


def test_a_model_without_a_linear_layer_says_how_to_train_it(llama, monkeypatch):
    model, _ = load.load_model(llama)
    monkeypatch.setattr(adapter, "linear_layers", lambda model: [])
    with pytest.raises(ModelError, match="--finetuning-type full"):
        adapter.add_adapter(model, 2)


def test_rows_beyond_the_models_limits_are_one_line(families, tmp_path):
    families.build("gpt2", tmp_path / "model")
    model, tokenizer = load.load_model(str(tmp_path / "model"))
    limits = lm_head.Head.of(model).limits
    assert (limits.vocabulary, limits.positions) == (families.V, 512)
    row = families.conversation("q", "a" * 600)
    with pytest.raises(ModelError, match=r"longer than the 512 positions.*--max-length 512"):
        nll.response_nll(model, tokenizer, [row])
    nll.response_nll(model, tokenizer, [row], max_length=512)
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    with pytest.raises(ModelError, match=r"token 260 .* beyond its embedding of 260 rows"):
        nll.response_nll(model, tokenizer, [families.conversation("q", "<new>")])


def test_padding_on_either_side_changes_nothing(families, llama):
    model, tokenizer = load.load_model(llama)
    rows = [encode(row, tokenizer) for row in families.APART]
    for side in ("right", "left"):
        ours = nll.encoded_nll(model, rows, padding_side=side).mean
        np.testing.assert_allclose(ours, families.own_nll(model, rows), atol=1e-5)


def test_hub_refs_keep_what_becomes_of_system_turns(llama):
    assert hub.resolve_model(llama).system == "error"
    assert take_apart.output_embeddings(object()) is None
