"""Rows scored by several processes, or on a cluster: each process takes some of the batches.

The batches are those of one process, so that what is computed is the same.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.chat.template import Encoded
from pyids.config import RunConfig
from pyids.device import find_device, task_device
from pyids.engine import Engine, LocalEngine, make_engine, on_cluster
from pyids.models.batching import Progress, default_batch_tokens
from pyids.models.distributed import Processes
from pyids.models.exchange import read_encoded, write_encoded
from pyids.models.generate import generate_encoded
from pyids.models.gradients import row_gradients
from pyids.models.hub import ModelRef, found_here, round_model
from pyids.models.nll import ResponseNll, encoded_nll
from pyids.models.pair import Models

Which: TypeAlias = Literal["base", "trained"]

# Shares of a process, so that one that is fast takes more of them.
_SHARES = 4
# Rows of a share, or more: a process that is started for fewer takes longer to load the model.
_LEAST_ROWS = 8


class Share(NamedTuple):
    """What one task does: the batches `part`, `part` + `parts`, ... of the rows of a folder."""

    kind: Literal["nll", "answer", "gradients"]
    folder: Path
    ref: ModelRef
    checkpoint: Path | None
    device: str
    dtype: str
    which: Which
    part: int
    parts: int
    number: int  # of max_new_tokens, or a seed
    batch_tokens: int | None
    processes: int  # of the same machine
    threads: int | None
    token: str  # of the `Together` whose models these are

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"part {self.part + 1} of {self.parts} of the rows that are scored"


@dataclass
class Together:
    """The two models of a round in other processes, which are started when they are needed.

    Attributes
    ----------
    models
        The base model and the checkpoint, if there is one; they are loaded by the processes, not
        here.
    processes
        How many there are to be; where none are asked for, the workers of `engine`.
    folder
        Where rows are left for them: all of them see it.
    engine
        Where a selection's tasks run.
    threads
        Threads of each; None: its share of the cores.
    task_timeout
        See `pyids.engine.ray.RayEngine`.
    """

    models: Models
    processes: Processes
    folder: Path
    engine: Engine = field(default_factory=LocalEngine, repr=False)
    threads: int | None = None
    task_timeout: float | None = None
    _own: Engine | None = field(default=None, init=False, repr=False)
    _begun: bool = field(default=False, init=False, repr=False)
    _token: str = field(default_factory=lambda: secrets.token_hex(8), init=False, repr=False)

    @classmethod
    def of(
        cls, config: RunConfig, checkpoint: Path | None, folder: Path, engine: Engine
    ) -> Together | None:
        """Return what scores in other processes than this, if there are to be any."""
        processes = Processes.of(config)
        if processes.here and (config.serve_url is not None or not on_cluster(engine)):
            return None
        device = task_device(config) if processes.here else processes.device(config)
        models = Models(round_model(config), checkpoint, device=device, dtype=config.dtype)
        return cls(models, processes, folder, engine, config.threads, config.task_timeout)

    def nll(
        self,
        which: Which,
        rows: Sequence[Encoded],
        progress: Progress | None = None,
        batch_tokens: int | None = None,
    ) -> ResponseNll:
        """Do what `pyids.models.nll.encoded_nll` does."""
        means, last = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        counts = np.array([int(row.response_mask[1:].sum()) for row in rows], np.int64)
        for found in self._map("nll", which, rows, progress, batch_tokens=batch_tokens):
            at, means[at], last[at] = found
        return ResponseNll(means, counts, last)

    def answer(
        self,
        which: Which,
        prompts: Sequence[Int64],
        max_new_tokens: int,
        known: Sequence[Encoded] = (),
        progress: Progress | None = None,
    ) -> list[str]:
        """Return greedy answers to prompts; `known` is what a serving engine would be tried on."""
        rows = [Encoded(ids, np.zeros(len(ids), bool)) for ids in prompts]
        answers = [""] * len(rows)
        for found in self._map("answer", which, rows, progress, number=max_new_tokens):
            for i, text in found:
                answers[i] = text
        return answers

    def gradients(
        self, rows: Sequence[Encoded], seed: int, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Do what `pyids.models.gradients.row_gradients` does, under the checkpoint."""
        parts = list(self._map("gradients", "trained", rows, progress, number=seed))
        found = np.empty((len(rows), parts[0].shape[1]), np.float32)
        for i, part in enumerate(parts):
            found[i :: len(parts)] = part
        return found

    def close(self) -> None:
        """End the processes, which gives back what their models take."""
        if self._own is not None:
            self._own.close()
            self._own = None
        self.engine.release()

    def _started(self) -> Engine:
        if not self._begun:
            self.engine.release()  # what other processes hold: their places, or other models
            self._begun = True
        if self.processes.here:
            return self.engine
        if self._own is None:
            on = self.processes
            gpus = on.number if self.models.device.startswith("cuda") else 0
            name = "ray" if on.ray else "local"
            self._own = make_engine(
                *(name, on.number),
                address=on.address,
                gpus=gpus,
                task_timeout=self.task_timeout,
            )
        return self._own

    def _map(
        self,
        kind: Literal["nll", "answer", "gradients"],
        which: Which,
        rows: Sequence[Encoded],
        progress: Progress | None,
        number: int = 0,
        batch_tokens: int | None = None,
    ) -> Iterator[Any]:
        models, total = self.models, sum(len(row.input_ids) for row in rows)
        engine = self._started()
        # The same batches whatever device each process finds, for a share is of these.
        gpu = models.device.startswith("cuda") or (models.device == "auto" and engine.has_gpus())
        batch_tokens = batch_tokens or default_batch_tokens("cuda" if gpu else "cpu")
        parts = min(_SHARES * engine.workers, -(-len(rows) // _LEAST_ROWS) or 1)
        with _scratch(self.folder) as folder:
            write_encoded(Path(folder, "rows.npz"), rows)
            shares = [
                Share(
                    kind=kind,
                    folder=Path(folder).absolute(),
                    ref=models.ref,
                    checkpoint=models.checkpoint and models.checkpoint.absolute(),
                    device=models.device.partition(":")[0],
                    dtype=models.dtype,
                    which=which,
                    part=part,
                    parts=parts,
                    number=number,
                    batch_tokens=batch_tokens,
                    processes=1 if on_cluster(engine) else engine.workers,
                    threads=self.threads,
                    token=self._token,
                )
                for part in range(parts)
            ]
            results = engine.map(do_share, shares, gpu=models.device != "cpu")
            for done, found in enumerate(results, 1):
                if progress is not None:
                    progress(done * total // parts, total)
                yield found


def _scratch(folder: Path) -> AbstractContextManager[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="score-", dir=folder)


# ---- in a process --------------------------------------------------------------------------------

# The models that this process has loaded, by what they are.
_MODELS: dict[tuple[Any, ...], Models] = {}


def do_share(share: Share) -> Any:
    """Score one share; return what `Together` puts together."""
    rows = _rows(share.folder)
    models = _models(share)
    opened = models.base() if share.which == "base" else models.trained()
    part = (share.part, share.parts)
    device = models.device
    with opened as (model, tokenizer):
        if share.kind == "gradients":
            mine = rows[share.part :: share.parts]
            return row_gradients(model, mine, seed=share.number, device=device)
        if share.kind == "answer":
            answers = generate_encoded(
                model,
                tokenizer,
                [row.input_ids for row in rows],
                max_new_tokens=share.number,
                device=device,
                part=part,
            )
            return [(i, text) for i, text in enumerate(answers) if text]
        nll = encoded_nll(model, rows, batch_tokens=share.batch_tokens, device=device, part=part)
    at = np.flatnonzero(nll.counts)
    return at, nll.mean[at], nll.end[at]


@lru_cache(maxsize=1)
def _rows(folder: Path) -> list[Encoded]:
    return read_encoded(folder / "rows.npz")


def _models(share: Share) -> Models:
    # Not by the checkpoint's name alone: a process may live on, and the name be another's then.
    key = (share.token, share.ref, share.checkpoint, share.device, share.dtype)
    if key not in _MODELS:
        import torch

        first = not _MODELS
        _MODELS.clear()
        device = find_device(share.device)
        _MODELS[key] = Models(found_here(share.ref), share.checkpoint, device, share.dtype)
        if first and device == "cpu":
            ours = max(1, torch.get_num_threads() // share.processes)
            torch.set_num_threads(share.threads or ours)
    return _MODELS[key]
