"""`pyids run` with a tiny model: one command that draws, trains and scores, stopped anywhere."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import time
from importlib import import_module
from pathlib import Path

from workflow import Workflow, run

# What a round leaves one after the other; a copy of the folder is kept after each.
_SAVED = ("save_candidates", "save_draw", "save_checkpoint", "save_probes", "save_told")


class Training(Workflow):
    """A run of two rounds: each of its steps is the same command, which goes on where it was."""

    weight = 1  # a trial takes ten times as long
    # What says of a configuration, or of scores of the user's own, does not apply.
    faults = (
        *("damage", "kill", "signal", "errno", "disk full", "version"),
        *("moved", "other data", "two processes"),
    )

    def __init__(self, place: Path) -> None:
        super().__init__(place, rows=80, budget=12)
        for name in ("torch", "transformers", "peft", "datasets", "pyids.models.finetune"):
            import_module(name)
        for name in ("models.trainer", "scoring.probes", "scoring.scorers", "scoring.screening"):
            import_module(f"pyids.{name}")
        import torch

        torch.set_num_threads(1)
        examples = Path(__file__).resolve().parents[2] / "examples" / "small.py"
        spec = importlib.util.spec_from_file_location("small", examples)
        small = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(small)
        self.model = small.make_model(place)
        gc.collect()
        gc.freeze()  # what is never looked at again is not copied into each fork

    def begin(self, folder: Path) -> list[str]:
        command = ["-q", "run", str(self.place / "pool.jsonl"), "--output-dir", str(folder)]
        command += ["--embeddings-file", str(self.place / "vectors.npy"), "--rounds", "2"]
        command += ["--model", str(self.model), "--budget", str(self.budget), "--clusters", "4"]
        command += ["--probes-per-cluster", "2", "--max-length", "64", "--lora-rank", "2"]
        return [*command, "--oversample", "2", "--threads", "1", "--device", "cpu"]

    def command(self, step: int, folder: Path) -> list[str]:
        return self.begin(folder)

    def after(self, step: int) -> int:
        return len(self.steps)

    def where(self, step: int, folder: Path) -> int:
        return 0

    def record(self) -> bytes:
        """Run it undisturbed; keep a copy of the folder after all that a round leaves."""
        self.steps = ["run"]

        def keep() -> None:
            from pyids.store.rounds import Rounds

            for name in _SAVED:
                setattr(Rounds, name, self._copying(getattr(Rounds, name)))

        begun = time.monotonic()
        result = run(self.begin(self.folder), before=keep)
        self.seconds = time.monotonic() - begun
        assert result.code == 0, result
        self.steps = ["run"] * (1 + len(list(self.place.glob("before-*"))))
        shutil.copytree(self.folder, self.snapshot(len(self.steps)), symlinks=True)
        self.result = (self.folder / "selected.jsonl").read_bytes()
        assert self.result.count(b"\n") == self.budget, self.result.count(b"\n")
        return self.result

    def _copying(self, original):
        def call(*arguments, **options):
            original(*arguments, **options)
            state = 1 + len(list(self.place.glob("before-*")))
            shutil.copytree(self.folder, self.snapshot(state), symlinks=True)

        return call
