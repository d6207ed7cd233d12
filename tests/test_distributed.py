"""Several processes train as one does; activations that are computed twice change nothing."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import pyids
from pyids.chat import template
from pyids.errors import ConfigError, ModelError

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("accelerate", reason="needs the train extra")

from pyids.models import finetune, hub, load  # noqa: E402
from pyids.models.batching import plan_steps  # noqa: E402
from pyids.models.distributed import Job, train_here, train_together  # noqa: E402


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
        train_together(job, 2, tmp_path / "killed")
    killer.join()
    assert "\n" not in str(caught.value)
    assert workers(tmp_path / "killed") == []
    assert not (tmp_path / "killed" / "losses.json").exists()
    # And again.
    theirs = train_together(job, 2, tmp_path / "two")
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


def test_processes_are_for_our_trainer(small):
    with pytest.raises(ConfigError, match="--num-processes is for the trainer of pyids"):
        pyids.run(data="x", budget=9, trainer="json:dumps", num_processes=2)
