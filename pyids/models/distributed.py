"""A training, in this process or in several that share the rows of each step.

Several are started by torch's launcher, or on a Ray cluster by Ray Train; accelerate, which
transformers' Trainer rests on, finds each other's gradients: NCCL between GPUs, gloo between CPUs.
What they compute is what one does, within rounding: each step's loss is per response token of the
whole step.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyids.chat.template import Encoded
from pyids.device import device as find
from pyids.models.adapter import add_adapter
from pyids.models.batching import Progress
from pyids.models.checkpoints import Method
from pyids.models.exchange import read_encoded, write_encoded
from pyids.models.hf import quiet
from pyids.models.hub import ModelRef, files_of, found_here
from pyids.models.load import load_model
from pyids.models.programs import run_program
from pyids.store.files import naming

if TYPE_CHECKING:
    from pyids.config import RunConfig


@dataclass(frozen=True)
class Processes:
    """Where a training or a scoring runs.

    Attributes
    ----------
    number
        How many processes; with 1 it is this one.
    gpus
        Whether each must have a GPU.
    ray
        Whether a Ray cluster starts them: the one that runs, or that at `address`.
    address
        Address of a cluster.
    """

    number: int = 1
    gpus: bool = False
    ray: bool = False
    address: str | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether the GPUs are a cluster's, which may be on other machines than this one."""
        return self.ray and self.gpus

    @property
    def here(self) -> bool:
        """Whether it is this process alone."""
        return self.number == 1 and not self.elsewhere

    @classmethod
    def of(cls, config: RunConfig) -> Processes:
        """Return those that a configuration asks for."""
        ray = config.engine == "ray"
        return cls(config.processes, config.num_gpus is not None, ray, config.address)

    def device(self, config: RunConfig) -> str:
        """Return the torch device that they use; it is looked for where they are."""
        return "cuda" if self.elsewhere else find(config)


# This process.
ALONE = Processes()


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes
    ----------
    ref, method, lora_rank
        The base model, and what of it is trained.
    rows, steps
        See `pyids.models.trainer.Steps`.
    options
        Arguments of `pyids.models.trainer.train_steps`.
    in_4bit
        Whether the base model is held in 4 bits (`pyids.models.load.load_model`).
    threads
        Threads of each process; None: its share of the cores.
    """

    ref: ModelRef
    method: Method
    lora_rank: int
    rows: Sequence[Encoded]
    steps: list[list[int]]
    options: dict[str, Any]
    in_4bit: bool = False
    threads: int | None = None


def train_here(
    job: Job, scratch: str, progress: Progress | None = None, rank: int = 0, ranks: int = 1
) -> tuple[Any, list[float]]:
    """Train in this process; return the model and the loss of each step."""
    from pyids.models.finetune import seeded
    from pyids.models.trainer import train_steps

    device, dtype = job.options["device"], job.options["dtype"]
    if job.options.get("fsdp"):
        device = "cpu"  # a GPU is given its share alone
    with seeded(job.options["seed"]):
        kind = "float32" if job.method == "full" else dtype
        model, _ = load_model(job.ref, device, kind, in_4bit=job.in_4bit)
        if job.method == "lora":
            model = add_adapter(model, job.lora_rank)
        losses = train_steps(
            model,
            job.rows,
            job.steps,
            scratch=scratch,
            rank=rank,
            ranks=ranks,
            progress=progress,
            **job.options,
        )
    return model, losses


def train_together(job: Job, processes: Processes, folder: Path) -> list[float]:
    """Train in several processes; the model is left in ``folder/model``.

    Parameters
    ----------
    folder
        An empty one, which all processes see.

    Raises
    ------
    ModelError
        A process fails, or is killed; the others end with it.
    """
    _write(job, folder)
    if processes.ray:
        from pyids.models.ray_train import train_on_ray

        train_on_ray(processes, folder, files_of(job.ref), cpu=job.options["device"] == "cpu")
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"]
        words = [*launcher, f"--nproc-per-node={processes.number}", "-m", __name__, str(folder)]
        # -P as an environment variable: no module of the present folder is taken for one of ours.
        env = {"PYTHONSAFEPATH": "1"}
        if job.options["device"] == "cpu":
            env |= {"CUDA_VISIBLE_DEVICES": ""}
        asked_by = "--num-gpus" if processes.gpus else "--num-processes"
        run_program(words, folder / "log", asked_by, env=env)
    losses: list[float] = json.loads((folder / "losses.json").read_bytes())
    return losses


def _write(job: Job, folder: Path) -> None:
    write_encoded(folder / "rows.npz", job.rows)
    path = None if job.ref.path is None else str(job.ref.path)
    content = {
        "ref": {**asdict(job.ref), "path": path},
        "method": job.method,
        "lora_rank": job.lora_rank,
        "steps": job.steps,
        "options": job.options,
        "in_4bit": job.in_4bit,
        "threads": job.threads,
    }
    with naming(folder / "job.json"):
        (folder / "job.json").write_text(json.dumps(content), encoding="utf-8")


def _read(folder: Path) -> Job:
    content = json.loads((folder / "job.json").read_bytes())
    ref = ModelRef(**content.pop("ref"))
    if ref.path is not None:
        ref = replace(ref, path=Path(ref.path))
    return Job(ref=ref, rows=read_encoded(folder / "rows.npz"), **content)


def be_one_of_several(folder: Path) -> None:
    """Train the job of a folder with the other processes of this one's group."""
    import torch
    from accelerate import PartialState

    job = _read(folder)
    job = replace(job, ref=found_here(job.ref))
    cpu = job.options["device"] == "cpu"
    if cpu:
        os.environ["ACCELERATE_USE_CPU"] = "yes"
    state = PartialState(cpu=cpu)
    if not cpu:
        job.options["device"] = str(state.device)
    else:
        ours = max(1, torch.get_num_threads() // state.num_processes)
        torch.set_num_threads(job.threads or ours)
    main = state.is_main_process
    model, losses = train_here(
        job,
        str(folder / f"scratch-{state.process_index}"),
        rank=state.process_index,
        ranks=state.num_processes,
    )
    whole: dict[str, Any] = {}
    if job.options.get("fsdp"):
        from pyids.models.sharded import whole_weights

        whole["state_dict"] = whole_weights(model, trained=job.method == "lora", keep=main)
    if main:
        with quiet():
            model.save_pretrained(folder / "model", **whole)
        with naming(folder / "losses.json"):
            (folder / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    state.wait_for_everyone()


def main() -> None:
    """Be one of several processes that torch's launcher has started."""
    from accelerate import PartialState

    be_one_of_several(Path(sys.argv[1]))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
