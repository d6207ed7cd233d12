"""Rows scored by several processes, or on a cluster: each process takes some of the batches.

The batches are those of one process, so that what is computed is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyids._typing import Int64
from pyids.chat.template import Encoded
from pyids.device import find_device
from pyids.engine import Engine, make_engine
from pyids.models.batching import Progress
from pyids.models.distributed import Processes
from pyids.models.exchange import read_encoded, write_encoded
from pyids.models.generate import generate_encoded
from pyids.models.gradients import row_gradients
from pyids.models.hub import ModelRef, resolve_model
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


@dataclass
class Together:
    """The two models of a round in several processes, which are started when they are needed.

    Attributes
    ----------
    models
        The base model and the checkpoint, if there is one; they are loaded by the processes, not
        here.
    processes
        How many, and who starts them.
    folder
        Where rows are left for them: all of them see it.
    threads
        Threads of each; None: its share of the cores.
    """

    models: Models
    processes: Processes
    folder: Path
    threads: int | None = None
    _engine: Engine | None = field(default=None, init=False, repr=False)

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
        if self._engine is not None:
            self._engine.close()
            self._engine = None

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
        if self._engine is None:
            on = self.processes
            gpus = on.number if models.device.startswith("cuda") else 0
            name = "ray" if on.ray else "local"
            self._engine = make_engine(name, on.number or None, address=on.address, gpus=gpus)
        workers = self._engine.workers
        parts = min(_SHARES * workers, -(-len(rows) // _LEAST_ROWS) or 1)
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
                    processes=1 if self.processes.ray else workers,
                    threads=self.threads,
                )
                for part in range(parts)
            ]
            for done, found in enumerate(
                self._engine.map(do_share, shares, gpu=models.device != "cpu"), 1
            ):
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
    rows = read_encoded(share.folder / "rows.npz")
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


def _models(share: Share) -> Models:
    key = (share.ref, share.checkpoint, share.device, share.dtype)
    if key not in _MODELS:
        import torch

        first = not _MODELS
        _MODELS.clear()
        device = find_device(share.device)
        ref = share.ref
        if ref.path is not None and not ref.path.exists():  # a machine with a cache of its own
            ref = replace(resolve_model(ref.name), system=ref.system)
        _MODELS[key] = Models(ref, share.checkpoint, device, share.dtype)
        if first and device == "cpu":
            ours = max(1, torch.get_num_threads() // share.processes)
            torch.set_num_threads(share.threads or ours)
    return _MODELS[key]
