"""Several processes train as one does; activations that are computed twice change nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

import pyids
from pyids.chat import template
from pyids.errors import ConfigError, ModelError

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("accelerate", reason="needs the train extra")

from pyids.models import (  # noqa: E402
    checkpoints,
    distributed,
    finetune,
    hub,
    load,
    take_apart,
)
from pyids.models.batching import (  # noqa: E402
    micro_batches,
    packs_by_length,
    plan_steps,
    trained_lengths,
)
from pyids.models.distributed import Job, Processes, train_here, train_together  # noqa: E402
from pyids.models.lm_head import Head  # noqa: E402


def conversations(small, n):
    rows = [json.loads(line) for line in (small / "pool.jsonl").read_text().splitlines()[:n]]
    return [
        [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        for row in rows
    ]


def job_of(small, method, **more):
    """Seven rows in steps of three: in the last step of an epoch one process has no row."""
    tokenizer = load.load_tokenizer(str(small / "model"))
    rows = [template.encode(row, tokenizer) for row in conversations(small, 7)]
    options = {
        "learning_rate": 1e-2,
        "batch_tokens": 40,  # several micro-batches, not as many in each process
        "seed": 3,
        "device": "cpu",
        "dtype": "float32",
        **more,
    }
    ref = hub.resolve_model(str(small / "model"))
    return Job(ref, method, 4, rows, plan_steps(7, 2, 3, 3), options)


def workers(folder):
    """The processes that train there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(folder).encode() in words and b"torch.distributed.run" not in words:
                found.append(int(entry.name))
    return found


def test_a_training_that_fails_leaves_nothing(small, tmp_path, monkeypatch):
    def fail(job, processes, folder):
        (folder / "rows.npz").touch()
        raise ModelError("fine-tuning: no")

    monkeypatch.setattr(finetune, "train_together", fail)
    row = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ModelError, match="no"):
        finetune.finetune(str(small / "model"), [row], output_dir=tmp_path / "checkpoint",
                          processes=Processes(2, ray=True))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_each_step_of_two_processes_is_that_of_one(small, tmp_path):
    job = job_of(small, "full")
    model, ours = train_here(job, str(tmp_path / "scratch"))
    assert [len(step) for step in job.steps] == [3, 3, 1, 3, 3, 1]
    (tmp_path / "two").mkdir()
    # Killed in the middle: one line, and the others end with it.
    (tmp_path / "killed").mkdir()

    def kill():
        while len(found := workers(tmp_path / "killed")) < 2:
            time.sleep(0.01)
        os.kill(max(found), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(
        ModelError, match=r"--num-processes: python.* ended with exit code 1"
    ) as caught:
        train_together(job, Processes(2), tmp_path / "killed")
    killer.join()
    assert "\n" not in str(caught.value)
    assert workers(tmp_path / "killed") == []
    assert not (tmp_path / "killed" / "losses.json").exists()
    # And again.
    theirs = train_together(job, Processes(2), tmp_path / "two")
    assert len(theirs) == 6
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    from safetensors.torch import load_file

    trained = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name, weight in trained.items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_run_of_two_processes_selects_the_same(small, tmp_path):
    options = {
        "data": str(small / "pool.jsonl"),
        "embeddings_file": str(small / "vectors.npy"),
        "model": str(small / "model"),
        "budget": 16,
        "rounds": 2,
        "clusters": 4,
        "probes_per_cluster": 2,
        "oversample": 1,
        "max_length": 64,
        "lora_rank": 2,
        "device": "cpu",
    }
    one = pyids.run(options, output_dir=str(tmp_path / "one"))
    two = pyids.run(options, output_dir=str(tmp_path / "two"), num_processes=2)
    assert one.ids.tolist() == two.ids.tolist()
    # The rows of the first round were scored by two processes, too.
    tables = [
        parquet.read_table(result.run_folder / "rounds" / "1" / "scores.parquet").to_pydict()
        for result in (one, two)
    ]
    assert tables[0].keys() == tables[1].keys()
    for name, values in tables[0].items():
        np.testing.assert_allclose(tables[1][name], values, atol=1e-3, err_msg=name)
    for n in (1, 2):
        records = [
            finetune.read_record(result.run_folder / "rounds" / str(n) / "checkpoint")
            for result in (one, two)
        ]
        assert abs(records[0].loss - records[1].loss) < 1e-5
        assert (records[1].method, records[1].base) == ("lora", options["model"])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_checkpointing_changes_nothing_but_memory(method, small, tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, *a: (calls.append(self.training), forward(self, *a))[1]
    )
    found = []
    for wanted in (False, True):
        calls.clear()
        job = job_of(small, method, gradient_checkpointing=wanted)
        model, losses = train_here(job, str(tmp_path / f"{wanted}"))
        found.append((losses, {n: w.detach() for n, w in model.named_parameters()}, sum(calls)))
        assert not model.is_gradient_checkpointing
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)
    for name, weight in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], weight, atol=1e-5, rtol=1e-4)
    assert found[1][2] == 2 * found[0][2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer": "json:dumps", "num_processes": 2}, "--num-processes is for the trainer of"),
        ({"trainer": "json:dumps", "num_gpus": 2}, "--num-gpus is for the trainer of pyids"),
        ({"num_gpus": 2, "num_processes": 2}, "--num-gpus and --num-processes both say how many"),
        ({"fsdp": True}, "--fsdp shares out the weights over several processes: say how many"),
        ({"num_gpus": 0}, "num.gpus"),
    ],
)
def test_options_that_do_not_go_together(options, message, small):
    with pytest.raises(ConfigError, match=message) as error:
        pyids.run(data="x", budget=9, **options)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_gpus_that_are_not_there_are_said_before_any_work(device, small, tmp_path):
    options = {"data": str(small / "pool.jsonl"), "budget": 9, "model": str(small / "model")}
    options |= {"device": device, "output_dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"--num-gpus 1: torch finds no GPU .*leave it out"):
        pyids.run(options, num_gpus=1)
    with pytest.raises(ConfigError, match="--fsdp does not go with --dtype float16"):
        pyids.run(options, num_processes=2, fsdp=True, dtype="float16")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_that_are_shared_out_are_trained_as_whole_ones(method, small, tmp_path):
    """FSDP on two processes: each step's loss, and the checkpoint, reloaded."""
    job = job_of(small, method, gradient_checkpointing=method == "lora")
    model, ours = train_here(job, str(tmp_path / "scratch"))
    folder = tmp_path / "two"
    folder.mkdir()
    shared = replace(job, options={**job.options, "fsdp": True})
    theirs = train_together(shared, Processes(2), folder)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    record = checkpoints.Checkpoint(
        tmp_path / "taken", method, job.ref.name, 7, 1, 1, (), 6, theirs[-1], 0.0
    )
    checkpoints.take_checkpoint(folder / "model", job.ref, record)
    loaded, _ = checkpoints.load_checkpoint(tmp_path / "taken", job.ref)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-4, rtol=1e-3)
    # A checkpoint of one process has the same files.
    checkpoints.save_checkpoint(
        model, load.load_tokenizer(job.ref), replace(record, path=tmp_path / "saved")
    )
    names = [
        sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("taken", "saved")
    ]
    assert names[0] == names[1]
    sizes = [
        path.stat().st_size
        for folder in ("taken", "saved")
        for path in (tmp_path / folder).glob("*.safetensors")
    ]
    assert abs(sizes[0] - sizes[1]) < 100


def test_weights_that_are_shared_out_in_half_precision(small, tmp_path):
    """Weights of two kinds in one layer: frozen ones of 2 bytes, trained ones of 4."""
    job = job_of(small, "lora", dtype="bfloat16")
    _, ours = train_here(job, str(tmp_path / "scratch"))
    (tmp_path / "two").mkdir()
    shared = replace(job, options={**job.options, "fsdp": True})
    theirs = train_together(shared, Processes(2), tmp_path / "two")
    np.testing.assert_allclose(theirs, ours, atol=0.03)
    assert theirs[-1] < theirs[0]
    from safetensors.torch import load_file

    trained = load_file(tmp_path / "two" / "model" / "adapter_model.safetensors")
    assert {weight.dtype for weight in trained.values()} == {torch.float32}


def test_no_process_keeps_more_than_its_share(small, tmp_path):
    """What FSDP is for; each says what it holds of the weights after the training."""
    code = tmp_path / "held.py"
    code.write_text(
        "import sys, torch, pathlib\n"
        "from pyids.models import distributed, sharded\n"
        "def held(model, *, trained, keep):\n"
        "    parts = [w.to_local().numel() for w in model.parameters()]\n"
        "    print(sum(parts), sum(w.numel() for w in model.parameters()))\n"
        "    rank = torch.distributed.get_rank()\n"
        "    pathlib.Path(sys.argv[1], f'held-{rank}').write_text(str(sum(parts)))\n"
        "    return whole(model, trained=trained, keep=keep)\n"
        "whole, sharded.whole_weights = sharded.whole_weights, held\n"
        "distributed.main()\n"
    )
    job = job_of(small, "full", fsdp=True)
    distributed._write(job, tmp_path)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*words, str(code), str(tmp_path)], check=True, timeout=300)
    model, _ = load.load_model(job.ref)
    whole = sum(weight.numel() for weight in model.parameters())
    held = [int((tmp_path / f"held-{rank}").read_text()) for rank in (0, 1)]
    assert sum(held) == whole
    assert max(held) < 0.55 * whole


# ---- packing -------------------------------------------------------------------------------------


def test_rows_that_are_packed_see_nothing_of_each_other(small):
    """The loss of each row, whatever stands before it, is that of the row alone."""
    job = job_of(small, "full")
    model, _ = load.load_model(job.ref)
    assert take_apart.keeps_apart(model)
    head = Head.of(model)
    alone = []
    for row in job.rows:
        (micro,) = micro_batches([row], 10**6, 0)
        with torch.no_grad():
            alone.append(head.nll(**micro))
    lengths = trained_lengths(job.rows)
    for most in (10**6, 40, 1):
        packs = packs_by_length(lengths, most)
        micro = micro_batches(job.rows, most, 0, packed=True)
        assert sorted(i for pack in packs for i in pack) == list(range(7))
        assert all(sum(lengths[i] for i in pack) <= most or len(pack) == 1 for pack in packs)
        assert len(packs) == {10**6: 1, 1: 7}.get(most, len(packs))
        for pack, one in zip(packs, micro, strict=True):
            assert one["input_ids"].shape == (1, sum(lengths[i] for i in pack))  # no padding
            with torch.no_grad():
                found = head.nll(**one)
            torch.testing.assert_close(
                found, torch.cat([alone[i] for i in pack]), atol=1e-5, rtol=1e-5
            )
    # Without the rows' numbers they do mix, and the test would see it.
    (whole,) = micro_batches(job.rows, 10**6, 0, packed=True)
    whole["attention_mask"].fill_(1)
    with torch.no_grad():
        mixed = head.nll(**whole)
    (pack,) = packs_by_length(lengths, 10**6)
    assert (mixed - torch.cat([alone[i] for i in pack])).abs().max() > 1e-3


@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}])
def test_packing_trains_as_padding_does(more, small, tmp_path):
    found = []
    for packing in (False, True):
        job = job_of(small, "lora", packing=packing, **more)
        model, losses = train_here(job, str(tmp_path / f"{packing}"))
        found.append((losses, {n: w.detach() for n, w in model.named_parameters()}))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    for name, weight in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], weight, atol=1e-4, rtol=1e-3)


def test_a_model_that_mixes_packed_rows_is_refused(small, tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    job = job_of(small, "full", packing=True)
    tokenizer = load.load_tokenizer(job.ref)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4
    )
    torch.manual_seed(0)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    job = replace(job, ref=hub.resolve_model(str(tmp_path / "mamba")))
    with pytest.raises(ModelError, match="would see each other in it: leave out --packing"):
        train_here(job, str(tmp_path / "scratch"))
