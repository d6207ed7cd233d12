"""What the rounds of a selection leave in the run folder: ``rounds/1/``, ``rounds/2/``, ...

A round is drawn once the ledger entry of ``selected.npy`` stands, and told once that of
``weights.npy`` does: each is the last that its step writes. Rounds are counted from 0 here, folders
from 1. A round before the last that lacks either, or one that ``state.json`` knows of and that is
gone, is damage: what follows from it must not be taken for something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pyids._typing import Float64, Int64
from pyids.errors import ConfigError, DamagedError, ModelError
from pyids.store.files import (
    atomic_write,
    entries_of,
    files_inside,
    hash_file,
    read_sealed,
    write_sealed,
)
from pyids.store.folder import Store
from pyids.store.ledger import (
    begin,
    checked,
    load_npy,
    load_sealed,
    read_entry,
    save_npy,
    write_entry,
)
from pyids.store.remedies import remedy

# The record of a checkpoint, in its folder.
RECORD = "checkpoint.json"


def last_checkpoint(folder: Path) -> Path:
    """Return the folder of the last checkpoint that a run has trained.

    Raises
    ------
    ModelError
        It has trained none.
    """
    if not (trained := _checkpoints(folder)):
        raise ModelError(
            f"{folder}: this run has trained no checkpoint: use `pyids run`, or name a model"
        )
    return max(trained, key=lambda path: int(path.parent.name))


def has_checkpoint(folder: Path) -> bool:
    """Whether this is the folder of a run that has trained a checkpoint."""
    return bool(_checkpoints(folder))


def has_drawn(folder: Path) -> bool:
    """Whether this is the folder of a run that has drawn rows."""
    # What follows from the draw stands for it where its own files are lost.
    left = {path.name.partition(".")[0] for path in entries_of(folder / "rounds" / "1")}
    return bool(left & {"selected", "probes", "checkpoint", "scores", "weights"})


def known_rounds(rounds: Path) -> tuple[int, int]:
    """How many rounds must have been drawn and told, by all that stands in ``rounds/``."""
    try:
        state = read_sealed(rounds / "state.json")
        drawn, told = int(state["drawn"]), int(state["told"])
    except (FileNotFoundError, DamagedError):
        drawn = told = 0
    for number in sorted(int(path.name) for path in entries_of(rounds) if path.name.isdecimal()):
        stands = {path.name for path in entries_of(rounds / str(number))}
        if stands & {"weights.json", "weights.npy", "scores.json", "probes.json", "checkpoint"}:
            drawn = max(drawn, number)
        if "weights.json" in stands:
            told = max(told, number)
        if stands:  # of a round that begins, the one before has been told
            told = max(told, number - 1)
    return max(drawn, told), told


def _checkpoints(folder: Path) -> list[Path]:
    trained = [path / "checkpoint" for path in entries_of(folder / "rounds")]
    return [path for path in trained if (path / RECORD).exists()]


class Rounds:
    """The rounds of one run folder.

    Parameters
    ----------
    store
        The run folder.
    sizes
        int64 (K,), rows of each cluster.
    first_weights
        float64 (K,) summing to 1, what the first round draws by; equal unless given.
    """

    def __init__(self, store: Store, sizes: Int64, first_weights: Float64 | None = None) -> None:
        self._folder = store.path / "rounds"
        self.first_weights = first_weights
        self.sizes = sizes
        self.n_clusters = len(sizes)
        # What the options were that decide a draw; kept with each (`pyids.pipeline.decided`).
        self.decided: Mapping[str, Any] = {}
        # What the base model is known by, for those that train or screen with it.
        self.model: Mapping[str, Any] = {}

    def path(self, n: int, name: str) -> Path:
        """Path of a file of round `n`."""
        return self._folder / str(n + 1) / name

    @property
    def drawn(self) -> int:
        """How many rounds have been drawn."""
        return self._count("selected.json")

    @property
    def told(self) -> int:
        """How many rounds have been told."""
        return self._count("weights.json")

    def asked(self, rounds: int, scores: object = None) -> int:
        """Return the present round of `rounds`, from 0, if its rows are drawn.

        Parameters
        ----------
        rounds
            How many there are.
        scores
            Those to be told; where they have been, that is said.

        Raises
        ------
        ConfigError
            They are not, or all rounds have been told; says what is to be done first.
        """
        n, folder = self.told, self._folder.parent
        repeated = self.were_told(scores)
        known = f"these are the scores that round {n} was told; " if repeated else ""
        if n == rounds:
            raise ConfigError(
                f"{folder}: {known}all {rounds} rounds have been told: `pyids export {folder}`, or "
                "Selection.finish, writes the selection"
            )
        if self.drawn == n:
            raise ConfigError(
                f"{folder}: {known}round {n + 1} of {rounds} has not been asked for: train on the "
                f"rows of `pyids ask {folder}`, or Selection.ask, and tell their scores"
            )
        return n

    def were_told(self, scores: object) -> bool:
        """Whether scores by row id are the last that were told: of a command that was repeated.

        Not once the next round has been asked for, whose scores are waited for.
        """
        n = self.told - 1
        if (
            n < 0
            or self.drawn != self.told
            or not isinstance(scores, Mapping)
            or not self.holds_scores(n)
        ):
            return False
        table = self.scores(n)
        ids, values = (table.column(name).to_pylist() for name in ("row_id", "score"))
        return dict(zip(ids, values, strict=True)) == scores

    def _count(self, name: str) -> int:
        n = 0
        while self.path(n, name).exists():
            n += 1
        return n

    def check(self) -> None:
        """Check that no round has a gap.

        Raises
        ------
        DamagedError
            A file of a round is missing that must have been there; names it.
        """
        drawn, told = self.known()
        for count, missing in ((drawn, "selected"), (told, "weights")):
            for n in range(count):
                for name in (f"{missing}.json", f"{missing}.npy"):
                    if not self.path(n, name).exists():
                        path = self.path(n, name)
                        raise DamagedError(
                            f"{path}: missing, and round {n + 1} was "
                            f"{'drawn' if missing == 'selected' else 'told'}: {remedy(path)}"
                        )

    def _stated(self) -> tuple[int, int]:
        """How many rounds have been drawn and told, as ``state.json`` says."""
        try:
            state = read_sealed(self._folder / "state.json")
            return int(state["drawn"]), int(state["told"])
        except (FileNotFoundError, DamagedError):
            return 0, 0

    def known(self) -> tuple[int, int]:
        """How many rounds must have been drawn and told, by all that stands there."""
        return known_rounds(self._folder)

    # -- damage --

    def stands(self, n: int, name: str) -> bool:
        """Whether round `n` has written `name`, or something of it."""
        return any(entries_of(self.path(n, ""), f"{name}.*"))

    def holds(self, n: int, name: str) -> bool:
        """Whether an array of round `n` stands, as its ledger entry says."""
        try:
            checked(self.path(n, f"{name}.npy"))
        except DamagedError:
            return False
        return True

    def holds_scores(self, n: int) -> bool:
        """Whether the scores that round `n` was told stand, as their ledger entry says."""
        return read_entry(self.path(n, "scores.json"), {"round": n + 1}) is not None

    def holds_candidates(self, n: int) -> bool:
        """Whether the candidates of round `n` stand, as their ledger entry says."""
        return read_entry(self.path(n, "candidates.json"), {"round": n + 1}) is not None

    def array(self, n: int, name: str) -> NDArray[Any]:
        """Return an array of round `n`."""
        return self._load(n, f"{name}.npy")

    def known_hashes(self, n: int, name: str) -> set[str]:
        """Give the hashes that a damaged array may have had: by its entry, or as it stands."""
        path = self.path(n, f"{name}.npy")
        try:
            return {read_sealed(path.with_suffix(".json"))["files"][path.name]["xxh3"]}
        except (FileNotFoundError, DamagedError):
            return {hash_file(path)} if path.is_file() else set()

    def mend(self, n: int, name: str, array: NDArray[Any]) -> None:
        """Write an array of round `n` again, with its entry."""
        more: dict[str, Any] = {"decided": self.decided} if name == "selected" else {}
        if name == "weights":
            more = self._made_from(n)
        self._save(n, f"{name}.npy", array, **more)

    def _note(self) -> None:
        write_sealed(self._folder / "state.json", {"drawn": self.drawn, "told": self.told})

    def settle(self) -> None:
        """Write ``state.json`` anew where a process was killed before it could."""
        if self._stated() != (self.drawn, self.told):
            self._note()

    # -- the draw --

    def save_draw(self, n: int, quotas: Int64, selected: Int64) -> None:
        """Keep what round `n` drew: rows of each cluster (K,), and their ids."""
        self._save(n, "quotas.npy", quotas)
        self._save(n, "selected.npy", selected, decided=self.decided)
        self._note()

    def save_candidates(self, n: int, table: Mapping[str, NDArray[Any]]) -> None:
        """Keep what round `n` saw of the rows that it could draw."""
        self._save_table(n, "candidates.parquet", table)
        path = self.path(n, "candidates.parquet")
        write_entry(path.with_suffix(".json"), [path], {"round": n + 1}, model=self.model)

    def candidates(self, n: int) -> pa.Table:
        """Return what `save_candidates` kept."""
        return pq.read_table(checked(self.path(n, "candidates.parquet")))

    def decided_by(self, n: int) -> dict[str, Any]:
        """Return the options that round `n` was drawn with."""
        decided: dict[str, Any] = load_sealed(self.path(n, "selected.json"))["inputs"]["decided"]
        return decided

    def quotas(self, n: int) -> Int64:
        """Rows that round `n` drew from each cluster, int64 (K,)."""
        return self._load(n, "quotas.npy")

    def selected(self, n: int | None = None) -> Int64:
        """Ids of the rows that round `n` drew, or all rounds so far, ascending."""
        if n is not None:
            return self._load(n, "selected.npy")
        return self.selected_before(self.drawn)

    def selected_before(self, n: int) -> Int64:
        """Ids of the rows that the rounds before `n` drew, ascending."""
        drawn = [self.selected(before) for before in range(n)]
        return np.sort(np.concatenate([*drawn, np.empty(0, dtype=np.int64)]))

    def left(self, n: int) -> Int64:
        """Rows of each cluster, int64 (K,), that no round before `n` drew."""
        return self.sizes - sum(map(self.quotas, range(n)), np.zeros_like(self.sizes))

    def save_probes(self, n: int, row_ids: Int64) -> None:
        """Keep the ids of the rows that round `n` scores."""
        self._save(n, "probes.npy", row_ids)

    def probes(self, n: int) -> Int64 | None:
        """Ids of the rows that round `n` scores, ascending; None before they are drawn."""
        return self._load(n, "probes.npy") if self.path(n, "probes.json").exists() else None

    # -- the checkpoint --

    def has_checkpoint(self, n: int) -> bool:
        """Whether round `n` has trained, and its checkpoint is still what it left behind."""
        return read_entry(self.path(n, "checkpoint.json"), {"round": n + 1}) is not None

    def begin_checkpoint(self, n: int) -> Path:
        """Give the folder of the checkpoint of round `n`, which is about to be written."""
        begin(self.path(n, "checkpoint.json"))
        return self.path(n, "checkpoint")

    def save_checkpoint(self, n: int) -> None:
        """Keep the hashes of the checkpoint that round `n` has trained."""
        files = sorted(path for path in files_inside(self.path(n, "checkpoint")) if path.is_file())
        write_entry(self.path(n, "checkpoint.json"), files, {"round": n + 1}, model=self.model)

    # -- the scores --

    def weights(self, n: int) -> Float64:
        """Weights of the clusters, float64 (K,) summing to 1, that round `n` draws by."""
        if n == 0 and self.first_weights is not None:
            return self.first_weights
        if n == 0:
            return np.full(self.n_clusters, 1 / self.n_clusters)
        return self._load(n - 1, "weights.npy")

    def summary(self, n: int) -> dict[str, Any]:
        """Return what the scores of round `n` came to."""
        return load_sealed(self.path(n, "scores.json"))

    def scores(self, n: int) -> pa.Table:
        """Return the scored rows of round `n` and what is known of each."""
        return pq.read_table(checked(self.path(n, "scores.parquet")))

    def cluster_scores(self) -> Float64:
        """Scores of the clusters in the last told round, float64 (K,); NaN for unscored ones."""
        told = self.told
        if told == 0:
            return np.full(self.n_clusters, np.nan)
        return np.array(self.summary(told - 1)["cluster_scores"], dtype=np.float64)

    def save_told(
        self,
        n: int,
        table: Mapping[str, NDArray[Any]],
        summary: Mapping[str, Any],
        weights: Float64,
    ) -> None:
        """Keep what round `n` was told: a row of `table` a scored row, and the new weights."""
        begin(self.path(n, "scores.json"))
        self._save_table(n, "scores.parquet", table)
        self.save_summary(n, summary)
        self._save(n, "weights.npy", weights, **self._made_from(n))
        self._note()

    def save_summary(self, n: int, summary: Mapping[str, Any]) -> None:
        """Keep what the scores of round `n`, which stand, came to."""
        path = self.path(n, "scores.parquet")
        write_entry(path.with_suffix(".json"), [path], {"round": n + 1}, **summary)

    def _made_from(self, n: int) -> dict[str, Any]:
        """Say what the weights were made from, beside those before: one vouches for the other."""
        summary = self.summary(n)
        return {
            "scores": summary["files"]["scores.parquet"],
            "temperature": summary["temperature"],
            "pooled_noise": summary.get("pooled_noise", True),
        }

    def _save_table(self, n: int, name: str, table: Mapping[str, NDArray[Any]]) -> None:
        path = self.path(n, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            write_table(temporary, table)

    def _save(self, n: int, name: str, array: NDArray[Any], **inputs: Any) -> None:
        save_npy(self.path(n, name), array, {"round": n + 1, **inputs})

    def _load(self, n: int, name: str) -> NDArray[Any]:
        return np.asarray(load_npy(self.path(n, name)))


def write_table(path: Path, table: Mapping[str, NDArray[Any]]) -> None:
    """Write columns of a round as parquet."""
    pq.write_table(pa.table(dict(table)), path)
