"""A trainer of the user's own in the rounds: a program, a function, the known trainers' files."""

import errno
import fcntl
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.config import make_config
from pyids.errors import ConfigError, ModelError
from pyids.models import own_trainer
from pyids.models.trainer_configs import TrainingTask, program_of, write_training_config

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("peft", reason="needs the train extra")

ROOT = Path(__file__).resolve().parents[1]
PYIDS = str(Path(sys.executable).with_name("pyids"))
PAGE = (ROOT / "docs" / "pipelines.md").read_text()
SCRIPT = re.search(r"```python\n(# torch_trainer\.py\n.*?)```", PAGE, re.S)[1]
# Does what the page's script does without any training: seconds less for those tests that do not
# look at what was learnt.
COPY = """
import shutil, sys, yaml
from pathlib import Path
task = yaml.safe_load(open(sys.argv[1]))
shutil.copytree(task["model"], task["output_dir"], dirs_exist_ok=True)
"""


@pytest.fixture
def options(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch_trainer.py").write_text(SCRIPT)
    (tmp_path / "copy_trainer.py").write_text(COPY)
    return {
        "data": str(small / "pool.jsonl"),
        "embeddings_file": str(small / "vectors.npy"),
        "model": str(small / "model"),
        "budget": 16,
        "rounds": 2,
        "clusters": 4,
        "probes_per_cluster": 2,
        "oversample": 1,
        "max_length": 64,
        "learning_rate": 1e-2,
        "device": "cpu",
        "output_dir": str(tmp_path / "run"),
    }


def flags(options):
    return [
        word
        for name, value in options.items()
        if name != "data"
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def weights(run):
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(Path(run).rglob("*"))
        if path.name in ("selected.jsonl", "weights.npy", "selected.npy", "scores.parquet")
        or path.suffix == ".safetensors"
    }


def test_a_program_trains_in_every_round_and_its_checkpoint_is_taken(options, tmp_path):
    command = "python torch_trainer.py {config}"
    out = CliRunner().invoke(
        cli, ["run", options["data"], *flags(options), "--train-command", command]
    )
    assert out.exit_code == 0, out.output
    from pyids.models.checkpoints import read_record

    for n in (1, 2):
        folder = tmp_path / "run" / "rounds" / str(n)
        record = read_record(folder / "checkpoint")
        assert (record.method, record.base, record.loss) == ("lora", options["model"], None)
        assert (record.rows, record.skipped) == (8 * n, ())
        assert {path.name for path in (folder / "checkpoint").iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "checkpoint.json",
        }
        assert "rows: " in (folder / ".train.log").read_text()
        assert not (folder / "training").exists()
    told = pyids.Selection.open(tmp_path / "run")
    scores = told.rounds.scores(0).to_pydict()
    told.close()
    # It has learnt: unseen rows of the same kinds are likelier now.
    assert (np.subtract(scores["checkpoint_nll"], scores["base_nll"]) < -0.02).all()
    assert CliRunner().invoke(cli, ["verify", str(tmp_path / "run"), "--replay"]).exit_code == 0


def whole_models(task):
    """A trainer that saves two whole models and the state of its optimizer, as Trainer does."""
    from transformers import AutoModelForCausalLM

    rows = [json.loads(line) for line in task.data.read_text().splitlines()]
    assert all(row["messages"] and row["_pyids_id"] >= 0 for row in rows)
    assert task.options["learning_rate"] == 1e-2
    assert task.options["mine"] == task.round
    model = AutoModelForCausalLM.from_pretrained(task.model)
    for step in (5, 12):
        folder = task.output_dir / f"checkpoint-{step}"
        with torch.no_grad():
            model.lm_head.weight += step
        model.save_pretrained(folder)
        torch.save({}, folder / "optimizer.pt")


def test_a_function_trains_and_the_last_whole_model_is_taken(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    (tmp_path / "mine.yaml").write_text("mine: 1\n")
    result = pyids.run(
        {**options, "rounds": 1}, trainer="mine:whole_models", train_config="mine.yaml"
    )
    assert len(result.ids) == 16
    taken = tmp_path / "run" / "rounds" / "1" / "checkpoint"
    assert not list(taken.glob("*.pt"))
    from pyids.models import finetune, load

    base, _ = load.load_model(options["model"])
    trained, tokenizer = finetune.load_checkpoint(taken, options["model"])
    change = (trained.lm_head.weight - base.lm_head.weight).detach()
    torch.testing.assert_close(change, torch.full_like(change, 17.0))
    assert tokenizer.chat_template == load.load_tokenizer(options["model"]).chat_template
    # Its file belongs to the run by its content: it may move, but not change.
    (tmp_path / "mine.yaml").rename(tmp_path / "moved.yaml")
    pyids.run({**options, "rounds": 1}, trainer="mine:whole_models", train_config="moved.yaml")
    (tmp_path / "moved.yaml").write_text("mine: 2\n")
    with pytest.raises(ConfigError, match="train_config was"):
        pyids.run({**options, "rounds": 1}, trainer="mine:whole_models", train_config="moved.yaml")


def lives(process):
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


KILLS = """
import os, signal, sys, time
from pathlib import Path
if "rounds/2/" in sys.argv[1] and not Path("killed").exists():
    Path("killed").touch()
    Path("pid").write_text(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGKILL)
    while not Path("go").exists():
        time.sleep(0.01)
    sys.exit()
exec(Path("copy_trainer.py").read_text())
"""


def test_killed_in_the_middle_and_resumed(options, tmp_path):
    (tmp_path / "kills.py").write_text(KILLS)
    command = "python kills.py {config}"
    line = [PYIDS, "-q", "run", options["data"], *flags(options), "--train-command", command]
    first = subprocess.run(line, capture_output=True, text=True, check=False)
    assert first.returncode == -signal.SIGKILL
    with pytest.raises(ConfigError, match="earlier try has started still trains there"):
        pyids.run(options, train_command=command)
    (tmp_path / "go").touch()
    orphan = int((tmp_path / "pid").read_text())
    while lives(orphan):
        time.sleep(0.01)
    pyids.run(options, train_command=command)
    other = {**options, "output_dir": str(tmp_path / "undisturbed")}
    pyids.run(other, train_command=command)
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed") != {}


def test_a_program_ends_with_us(options, tmp_path):
    (tmp_path / "sleeps.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    line = [PYIDS, "-q", "run", options["data"], *flags(options)]
    process = subprocess.Popen(
        [*line, "--train-command", "python sleeps.py {config}"], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert "stopped: the same command goes on" in process.communicate()[1]
    assert not lives(int((tmp_path / "pid").read_text()))


def last_words(task):
    (task.output_dir / "pytorch_model.bin").touch()


def nothing(task):
    pass


def not_finite(task):
    whole_models(task)
    file = task.output_dir / "checkpoint-12" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


def of_another(task):
    """An adapter of another model."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    other = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_hidden_layers=2, **shape))
    get_peft_model(other, LoraConfig(target_modules="all-linear")).save_pretrained(task.output_dir)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nothing", "has left nothing of the kind: let it save a LoRA adapter"),
        ("last_words", "has left only pytorch_model.bin, a pickle"),
        (
            "not_finite",
            "weights that are not finite .lm_head.weight.: lower the trainer",
        ),
        ("of_another", "training/output: the adapter cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_line(function, words, options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    (tmp_path / "mine.yaml").write_text("mine: 1\n")
    own = {"trainer": f"mine:{function}", "train_config": "mine.yaml"}
    with pytest.raises(ModelError, match=words) as caught:
        pyids.run({**options, "rounds": 1}, **own)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "rounds" / "1" / "checkpoint").exists()
    assert not list((tmp_path / "run" / "rounds" / "1").glob(".checkpoint*"))


def test_a_program_that_fails_is_one_line_with_its_last(options, tmp_path):
    (tmp_path / "fails.py").write_text("print('\\x1b[31mout of memory\\n'); raise SystemExit(3)")
    with pytest.raises(ModelError) as caught:
        pyids.run(options, train_command="python fails.py {config}")
    assert "python ended with exit code 3 (\\x1b[31mout of memory): see" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"train_command": "no-such-program {config}"}, "no program 'no-such-program'"),
        ({"train_command": "train {conf}"}, "in braces stand config, data, model"),
        ({"train_command": "train {config!r}"}, "in braces stand config, data, model"),
        ({"train_command": "train {data}"}, "told its data and where its checkpoint goes"),
        ({"train_command": "train '{config}"}, "No closing quotation"),
        ({"train_command": "train {config"}, "train command"),
        ({"train_command": " "}, "is empty"),
        ({"trainer": "train"}, "no trainer 'train': choose module:function"),
        ({"trainer": "no_such_module:train"}, "cannot be loaded from no_such_module:train"),
        ({"trainer": "json:__doc__"}, "name a function of a `TrainingTask`"),
        ({"trainer": "a:b", "train_command": "c {config}"}, "both say who trains: give one"),
        ({"train_config": "x.yaml"}, "belongs to --train-command or --trainer"),
        ({"trainer": "json:dumps", "train_config": "x.yaml"}, "x.yaml: there is no such file"),
    ],
)
def test_a_trainer_that_is_not_there_is_told_before_any_work(own, words, options, tmp_path):
    with pytest.raises(ConfigError, match=words) as caught:
        pyids.run(options, **own)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_strangers_folder_starts_no_program(options, tmp_path, monkeypatch):
    command = "python copy_trainer.py {config}"
    with pyids.Selection.open(tmp_path / "run", options, train_command=command) as selection:
        selection.draw()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user's"))
    with pyids.Selection.open(tmp_path / "run") as selection:
        with pytest.raises(ConfigError, match=r"names a trainer.* is not used unless"):
            selection.train()
        assert not selection.rounds.path(0, "training").exists()


# ---- the trainers that are known -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("axolotl train x", "axolotl"),
        ("accelerate launch -m axolotl.cli.train x", "axolotl"),
        ("../bin/llamafactory-cli train x", "llamafactory"),
        ("trl sft --config x", "trl"),
        ("python trl_like.py x", ""),
        ("python ../axolotl-user/mine.py", ""),
    ],
)
def test_the_program_is_told_by_its_name(command, program):
    assert program_of(command.split()) == program


def task_of(tmp_path, program, finetuning_type="lora", given=None):
    """Write the configuration of a training of two rows, in a trainer's own words."""
    from pyids.data.export import export
    from pyids.data.exported_rows import Selected
    from pyids.data.ingest import ingest
    from pyids.data.sources import open_sources
    from pyids.models.trainer_configs import options_of
    from pyids.store.folder import Store

    config = make_config(data="x", budget=9, finetuning_type=finetuning_type, lora_rank=4, seed=3)
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    with Store.open(tmp_path / "store") as store:
        ingest(store, open_sources([str(pool)]))
        data = export(store, Selected(np.arange(2)), tmp_path / "data", program)
    task = TrainingTask(
        1, data / "selected.jsonl", tmp_path / "model", tmp_path / "output",
        options_of(config, "cpu"), tmp_path / "config.yaml",
    )  # fmt: skip
    write_training_config(task, program, given or {})
    return task, yaml.safe_load(task.config_file.read_text())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_axolotl_reads_its_configuration(method, tmp_path):
    pytest.importorskip("axolotl", reason="the package axolotl is not installed")
    try:
        from axolotl.utils.schemas.config import AxolotlInputConfig
    except ImportError as error:
        pytest.skip(f"axolotl's schemas need a package that is not installed: {error}")
    given = {"learning_rate": 0.5, "output_dir": "elsewhere", "lora_r": 2}
    task, written = task_of(tmp_path, "axolotl", method, given)
    read = AxolotlInputConfig(**written).model_dump(exclude_unset=True)
    assert read.keys() >= written.keys()
    assert (read["output_dir"], read["learning_rate"]) == (str(task.output_dir), 0.5)
    assert read["base_model"] == str(task.model)
    assert read.get("adapter") == ("lora" if method == "lora" else None)
    assert written["lora_r"] == 2
    assert read["datasets"][0]["path"] == str(task.data)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_llamafactory_reads_its_configuration(method, tmp_path):
    spec = importlib.util.find_spec("llamafactory")
    if spec is None:
        pytest.skip("the package llamafactory is not installed")
    from transformers import HfArgumentParser, TrainingArguments

    # Its package imports torchaudio and more; the files of its arguments need none of it.
    folder = Path(spec.origin).parent / "hparams"
    found = {}
    for name in ("data_args", "finetuning_args"):
        part = importlib.util.spec_from_file_location(f"llamafactory_{name}", folder / f"{name}.py")
        found[name] = importlib.util.module_from_spec(part)
        sys.modules[part.name] = found[name]
        part.loader.exec_module(found[name])
    parser = HfArgumentParser(
        [
            found["data_args"].DataArguments,
            found["finetuning_args"].FinetuningArguments,
            TrainingArguments,
        ]
    )
    task, written = task_of(tmp_path, "llamafactory", method, {"template": "default"})
    assert written.pop("model_name_or_path") == str(task.model)
    data, finetuning, training = parser.parse_dict(written)
    assert (data.dataset, data.dataset_dir) == (["pyids_selected"], str(task.data.parent))
    assert (finetuning.stage, finetuning.finetuning_type) == ("sft", method)
    assert (training.do_train, training.seed) == (True, 3)
    if method == "lora":
        assert (finetuning.lora_rank, finetuning.lora_alpha) == (4, 8)


@pytest.mark.slow
def test_trl_trains_in_a_round(options, tmp_path):
    pytest.importorskip("trl", reason="the package trl is not installed")
    command = "trl sft --config {config}"
    result = pyids.run({**options, "rounds": 1, "lora_rank": 2}, train_command=command)
    from pyids.models.checkpoints import read_record

    record = read_record(result.run_folder / "rounds" / "1" / "checkpoint")
    assert (record.method, record.rows) == ("lora", 16)


def test_a_training_is_alone_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    flock, elsewhere = fcntl.flock, tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))

    def on_a_disk(descriptor, how):
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(elsewhere)):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        flock(descriptor, how)

    monkeypatch.setattr("fcntl.flock", on_a_disk)
    folder = tmp_path / "run" / "training"
    with own_trainer._alone(folder):
        with pytest.raises(ConfigError, match="still trains"), own_trainer._alone(folder):
            pass
        with own_trainer._alone(tmp_path / "another" / "training"):
            pass
    with own_trainer._alone(folder):
        pass
    assert list(elsewhere.iterdir()) == []
