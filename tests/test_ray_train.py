"""Training on a Ray cluster: each step as in one process; a worker that dies; what cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest

import pyids
from pyids.chat import template
from pyids.engine import make_engine
from pyids.errors import ConfigError, ModelError

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("ray.train", reason="the package ray is not installed")

from pyids.models import finetune, hub, load, ray_train  # noqa: E402
from pyids.models.batching import plan_steps  # noqa: E402
from pyids.models.distributed import Job, Processes, train_here, train_together  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """A cluster of two CPUs, which every run here joins."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray puts the working directory on the path of its workers: not the source tree.
        patch.chdir(tmp_path_factory.mktemp("here"))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        with make_engine("ray", 2) as engine:
            yield engine


def job_of(small, epochs, **more):
    """Seven rows in steps of three: in the last step of an epoch one worker has no row."""
    tokenizer = load.load_tokenizer(str(small / "model"))
    pool = [json.loads(line) for line in (small / "pool.jsonl").read_text().splitlines()[:7]]
    rows = [
        template.encode(
            [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ],
            tokenizer,
        )
        for row in pool
    ]
    options = {
        "learning_rate": 1e-2,
        "batch_tokens": 40,
        "seed": 3,
        "device": "cpu",
        "dtype": "float32",
        **more,
    }
    ref = hub.resolve_model(str(small / "model"))
    return Job(ref, "full", 4, rows, plan_steps(7, epochs, 3, 3), options)


def test_each_step_is_that_of_one_process_though_a_worker_dies(small, tmp_path, monkeypatch):
    job = job_of(small, 10)
    model, ours = train_here(job, str(tmp_path / "scratch"))
    folder = tmp_path / "two"
    folder.mkdir()

    def work(config):  # as a function inside another it goes to the workers as it is
        import os
        import signal
        from pathlib import Path

        from pyids.models import ray_train, trainer

        collate, mark = trainer.Steps.collate, Path(config["folder"]) / "killed"
        steps = []

        def counted(self, batch):
            steps.append(batch)
            if self.rank == 1 and len(steps) == 15 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return collate(self, batch)

        trainer.Steps.collate = counted
        ray_train._work(config)
        (mark.parent / f"steps-{len(steps)}").touch()

    monkeypatch.setattr(ray_train, "_work", work)
    theirs = train_together(job, Processes(2, ray=True), folder)
    assert (folder / "killed").exists()
    assert [path.name for path in folder.glob("steps-*")] == ["steps-30"]
    assert len(theirs) == 30
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    from safetensors.torch import load_file

    for name, weight in load_file(folder / "model" / "model.safetensors").items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-4, rtol=1e-3)
    assert not (folder / "ray").exists()


@pytest.mark.slow
def test_a_run_on_a_cluster_selects_the_same(small, tmp_path):
    """Each CPU has rated a shard when the training needs all of them."""
    lines = (small / "pool.jsonl").read_text().splitlines(keepends=True)
    for n in range(4):
        (tmp_path / f"{n}.jsonl").write_text("".join(lines[n * 50 : (n + 1) * 50]))
    options = {
        "data": str(tmp_path / "*.jsonl"),
        "quality": "perplexity",
        "embeddings_file": str(small / "vectors.npy"),
        "model": str(small / "model"),
        "budget": 16,
        "rounds": 2,
        "clusters": 4,
        "probes_per_cluster": 2,
        "max_length": 64,
        "lora_rank": 2,
    }
    one = pyids.run(options, output_dir=str(tmp_path / "one"), device="cpu")
    two = pyids.run(
        options, output_dir=str(tmp_path / "two"), num_processes=2, engine="ray", fsdp=True
    )
    assert one.ids.tolist() == two.ids.tolist()
    np.testing.assert_allclose(one.weights, two.weights, rtol=1e-4)
    for n in (1, 2):
        paths = [result.run_folder / "rounds" / str(n) for result in (one, two)]
        records = [finetune.read_record(path / "checkpoint") for path in paths]
        assert abs(records[0].loss - records[1].loss) < 1e-5
        assert {path.name for path in paths[0].iterdir()} == {
            path.name for path in paths[1].iterdir()
        }


@pytest.mark.slow
def test_workers_that_have_rated_screen_and_score(small, tmp_path):
    """Those that stay hold every CPU of the cluster: no others can be waited for."""
    lines = (small / "pool.jsonl").read_text().splitlines(keepends=True)
    for n in range(4):
        (tmp_path / f"{n}.jsonl").write_text("".join(lines[n * 50 : (n + 1) * 50]))
    found = [
        pyids.run(
            data=str(tmp_path / "*.jsonl"), embeddings_file=str(small / "vectors.npy"),
            model=str(small / "model"), quality="perplexity", oversample=2, budget=8, rounds=2,
            clusters=4, probes_per_cluster=4, max_length=64, lora_rank=2, threads=1,
            engine=engine, output_dir=str(tmp_path / engine),
        )
        for engine in ("local", "ray")
    ]  # fmt: skip
    assert found[0].ids.tolist() == found[1].ids.tolist()
    for name in ("candidates", "scores"):
        files = [one.run_folder / "rounds" / "1" / f"{name}.parquet" for one in found]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_what_no_second_try_would_mend_is_one_line(small, tmp_path):
    with pytest.raises(ModelError, match=r"^fine-tuning: the loss of step \d is not finite"):
        train_together(job_of(small, 2, learning_rate=1e30), Processes(2, ray=True), tmp_path)


def test_a_cluster_without_room_is_refused_before_any_work(small, tmp_path):
    options = {
        "data": str(small / "pool.jsonl"),
        "embeddings_file": str(small / "vectors.npy"),
        "model": str(small / "model"),
        "budget": 16,
        "engine": "ray",
        "output_dir": str(tmp_path / "run"),
    }
    with pytest.raises(ConfigError, match="--num-processes 3: the Ray cluster has 2 CPUs") as error:
        pyids.run(options, num_processes=3)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="--num-gpus 2: the Ray cluster has 0 GPUs"):
        pyids.run(options, num_gpus=2)
    assert not Path(tmp_path / "run").exists()
