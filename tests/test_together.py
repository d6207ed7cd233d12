"""Rows scored by several processes: what one process says, to the bit; who dies is named."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from pyids import engine
from pyids.chat import template
from pyids.engine import LocalEngine
from pyids.errors import ModelError, PyidsError

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("peft", reason="needs the train extra")

from pyids.models import finetune, hub, load  # noqa: E402
from pyids.models.batching import default_batch_tokens  # noqa: E402
from pyids.models.distributed import Processes  # noqa: E402
from pyids.scoring import scorers  # noqa: E402
from pyids.scoring.probes import Models, Probes, ScoringOptions  # noqa: E402
from pyids.scoring.together import Together  # noqa: E402


@pytest.fixture(scope="module")
def scored(small, tmp_path_factory):
    """Rows and the two models of a round: the base model, and an adapter trained on some."""
    folder = tmp_path_factory.mktemp("round")
    rows = [json.loads(line) for line in (small / "pool.jsonl").read_text().splitlines()[:30]]
    turns = [
        [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        for row in rows
    ]
    ref = hub.resolve_model(str(small / "model"))
    finetune.finetune(
        ref, turns[:8], output_dir=folder / "checkpoint", lora_rank=2, learning_rate=1e-2
    )
    return turns[8:], Models(ref, folder / "checkpoint"), folder


@pytest.fixture(scope="module")
def together(scored):
    """Two processes that score; their models must not be loaded here."""
    _, models, folder = scored
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        made = Together(Models(models.ref, models.checkpoint), Processes(2), folder / "scratch")
        yield made
        made.close()


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_several_processes_say_what_one_does(scored, together, one_thread):
    turns, models, folder = scored
    clusters = np.arange(len(turns) + 1, dtype=np.int32) % 3
    rows = [*turns, [{"role": "user", "content": "a row without an answer"}]]
    seen = []
    for pair, more in ((models, {}), (together.models, {"together": together})):
        one = Probes(pair, rows, clusters, ScoringOptions(max_new_tokens=6, **more))
        seen.append(
            {
                "base": one.base_nll,
                "checkpoint": one.checkpoint_nll,
                "tokens": one.response_tokens,
                "alone": one.response_alone_nll,
                "gradients": one.gradients(rows),
                "answers": [row[-1]["content"] for row in one.answers],
            }
        )
    assert not together.models._held
    for name, ours in seen[0].items():
        np.testing.assert_array_equal(seen[1][name], ours, err_msg=name)
    assert np.isnan(seen[1]["base"][-1])
    assert (seen[1]["base"] != seen[1]["checkpoint"])[:-1].all()
    assert len(set(seen[0]["answers"])) > 1
    assert list((folder / "scratch").iterdir()) == []


@pytest.mark.parametrize("name", ["sound-learnability", "perplexity", "gradient-alignment"])
def test_scores_do_not_depend_on_the_number_of_processes(name, scored, together, one_thread):
    turns, models, _ = scored
    clusters = np.arange(len(turns), dtype=np.int32) % 3
    found = []
    for pair, more in ((models, {}), (together.models, {"together": together})):
        options = ScoringOptions(max_new_tokens=4, **more)
        found.append(scorers.score(name, pair, turns, clusters, options).values)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert not together.models._held


def test_a_process_that_dies_twice_is_an_error_of_one_line(
    scored, together, one_thread, monkeypatch
):
    turns, models, folder = scored
    rows = [template.encode(row, load.load_tokenizer(models.ref)) for row in turns]
    dying = Together(models, Processes(2), folder / "dying")
    submitted, killed = engine._submitted, []

    def kill(pool, task, item):
        future = submitted(pool, task, item)
        if len(killed) < 2 and pool not in killed:
            killed.append(pool)  # what it worked on is tried again, in another
            os.kill(next(iter(pool._processes)), signal.SIGKILL)
        return future

    monkeypatch.setattr(engine, "_submitted", kill)
    with pytest.raises(PyidsError, match="a worker process died twice") as error:
        dying.nll("base", rows)
    assert "\n" not in str(error.value)
    assert len(killed) == 2
    again = dying.nll("base", rows)  # the same command goes on
    dying.close()
    np.testing.assert_array_equal(again.mean, together.nll("base", rows).mean)
    assert list((folder / "dying").iterdir()) == []


def test_every_process_has_the_same_batches_whatever_device_it_finds(scored, tmp_path):
    """A share is some of them: a node whose GPU torch cannot use must not cut others."""
    turns, models, _ = scored
    rows = [template.encode(row, load.load_tokenizer(models.ref)) for row in turns]
    shares = []

    class Cluster(LocalEngine):
        def has_gpus(self):
            return bool(shares)

        def map(self, task, items, *, gpu=False):
            items = list(items)
            shares.append({(item.device, item.batch_tokens) for item in items})
            return super().map(task, items, gpu=gpu)

    both = Models(models.ref, models.checkpoint, device="auto")
    with contextlib.closing(Together(both, Processes(), tmp_path, Cluster())) as together:
        found = [together.nll("base", rows).mean for _ in range(2)]
    assert shares == [{("auto", default_batch_tokens(device))} for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_models_of_the_same_name_are_not_taken_for_each_other(scored, tmp_path):
    """Where a process lives on, and a folder has been made anew meanwhile."""
    turns, models, folder = scored
    rows = [template.encode(row, load.load_tokenizer(models.ref)) for row in turns]
    place, found = tmp_path / "checkpoint", []
    for learning_rate in (None, 5e-2):
        shutil.rmtree(place, ignore_errors=True)
        if learning_rate is None:
            shutil.copytree(models.checkpoint, place)
        else:
            finetune.finetune(models.ref, turns[:8], output_dir=place, learning_rate=learning_rate)
        with contextlib.closing(Together(Models(models.ref, place), Processes(), folder)) as here:
            found.append(here.nll("trained", rows).mean)
    assert (found[0] != found[1]).all()


def test_a_model_that_a_node_does_not_see_is_not_another(scored, monkeypatch):
    _, models, _ = scored
    resolved = []
    monkeypatch.setattr(hub, "resolve_model", lambda name: resolved.append(name) or models.ref)
    assert hub.found_here(models.ref) is models.ref
    away = hub.ModelRef("models/small", Path("/nowhere/models/small"))
    with pytest.raises(ModelError, match="/nowhere/models/small: this node does not see it"):
        hub.found_here(away)
    cached = hub.ModelRef("a/b@main", Path("/nowhere"), "c0ffee", "fold")
    assert hub.found_here(cached).system == "fold"
    hub.found_here(hub.ModelRef("smollm2-135m-instruct", Path("/nowhere")))
    assert resolved == ["a/b@c0ffee", "smollm2-135m-instruct"]


def name_of_gpu(item):
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


@pytest.mark.parametrize(("visible", "names"), [(None, {"0", "1"}), ("5, 7,9", {"5", "7"})])
def test_each_process_sees_a_gpu_of_its_own(visible, names, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    local = LocalEngine(2, gpus=2)
    queue = []
    monkeypatch.setattr(
        "pyids.engine.ProcessPoolExecutor",
        lambda workers, context, initializer, initargs: queue.append(initargs[0]) or Pool(),
    )

    class Pool:
        def submit(self, *task):
            raise RuntimeError

        def shutdown(self, **more):
            pass

    with local, pytest.raises(RuntimeError):
        list(local.map(name_of_gpu, range(2)))
    assert {queue[0].get(), queue[0].get()} == names
