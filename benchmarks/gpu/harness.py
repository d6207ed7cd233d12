"""How an op is timed and what is written down about it; loads kernels/ from the checkout."""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def load_kernels() -> Any:
    """Load kernels/ of this checkout as a package: no wheel, no C++ core."""
    path = ROOT / "kernels" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "pyids_kernels", path, submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules["pyids_kernels"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    for module in sorted(path.parent.glob("[a-z]*.py")):
        importlib.import_module(f"pyids_kernels.{module.stem}")
    return package


@dataclass
class Record:
    """One measured thing; `wrong` is set where a result of ours was not right."""

    op: str
    shape: str
    who: str
    ms: float | None = None
    floor_ms: float | None = None
    ratio_to_ours: float | None = None
    error: str = ""
    note: str = ""
    wrong: bool = False
    launches: dict[str, float] = field(default_factory=dict)


class Bench:
    """Where the records of one op go, and how time is taken."""

    def __init__(self, op: str, dry: bool, limits: dict[str, float], deadline: float) -> None:
        self.op, self.dry, self.limits, self.deadline = op, dry, limits, deadline
        self.device = torch.device("cpu" if dry else "cuda")
        self.wash = torch.empty(0 if dry else 1 << 27, dtype=torch.uint8, device=self.device)

    def median_ms(self, function: Callable[[], Any], target_ms: float = 150.0) -> float:
        """Median time of one call, after warming up."""
        function()
        if self.dry:
            begin = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - begin)
        once = statistics.median(self._events_ms(function, 3))
        repetitions = int(min(50, max(5, target_ms / max(once, 1e-3))))
        return statistics.median(self._events_ms(function, repetitions))

    def _events_ms(self, function: Callable[[], Any], repetitions: int) -> list[float]:
        event = partial(torch.cuda.Event, enable_timing=True)
        events = [(event(), event()) for _ in range(repetitions)]
        # The device sleeps while the host queues the first calls, or a short call's time would be
        # the host's; and the L2 cache is washed out before each.
        torch.cuda._sleep(20_000_000)
        for begin, end in events:
            self.wash.zero_()
            begin.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]

    def add(self, record: Record) -> Record:
        """Hand a record to whoever reads this process's output; again, if it has changed."""
        print(json.dumps(asdict(record)), flush=True)
        return record

    def ours(
        self, shape: str, who: str, run: Callable[[], Any], floor: float | None = None, **more: Any
    ) -> Record:
        return self.add(Record(self.op, shape, who, self.median_ms(run), floor, **more))

    def anchor(
        self, ours: Record, who: str, make: Callable[[], Callable[[], Any]], check: Any = None
    ) -> None:
        """Time an anchor on the same tensors; one that is absent or fails is listed as such."""
        record = Record(ours.op, ours.shape, who)
        try:
            function = make()
            record.error = check(function()) if check else ""
            record.ms = self.median_ms(function)
            record.ratio_to_ours = record.ms / (ours.ms or record.ms)
        except ImportError as missing:
            record.note = f"not installed: {missing.name}"
        except Exception as failure:  # noqa: BLE001  an anchor's failure is a result of the run
            record.note = f"failed: {type(failure).__name__}: {str(failure).splitlines()[:1]}"[:120]
        self.add(record)

    def sweep_launches(self, record: Record, table: Any, run: Callable[..., Any]) -> None:
        """Time run(launch=...) for every entry of a launch table, while there is time."""
        for launch in table[:2] if self.dry else table:
            if time.monotonic() > self.deadline:
                return
            try:
                record.launches[launch.describe()] = self.median_ms(partial(run, launch=launch), 60)
            except Exception as failure:  # noqa: BLE001  too large for this chip, say
                record.note += f"; {launch.describe()}: {type(failure).__name__}"
            self.add(record)

    def measure_limits(self) -> None:
        """Measure copy bandwidth, matrix rates and upload bandwidth of this machine."""
        small, on = self.dry, {"device": self.device}
        source = torch.empty(1 << (16 if small else 31), dtype=torch.uint8, **on)
        target, n = torch.empty_like(source), 64 if small else 8192
        host = torch.empty(len(source) >> 3, dtype=torch.uint8, pin_memory=not small)
        a, b = (torch.randn(n, n, **on).bfloat16() for _ in range(2))
        upload = partial(source[: len(host)].copy_, host, non_blocking=True)
        self.limits = {
            "copy_tb_s": 2e-9 * len(source) / self.median_ms(partial(target.copy_, source)),
            "upload_gb_s": 1e-6 * len(host) / self.median_ms(upload),
            "bf16_tflops": 2e-9 * n**3 / self.median_ms(lambda: a @ b),
        }
        print(json.dumps({"limits": self.limits}), flush=True)

    def bytes_ms(self, n_bytes: float) -> float:
        return n_bytes / self.limits["copy_tb_s"] / 1e9

    def product_ms(self, operations: float) -> float:
        return operations / self.limits["bf16_tflops"] / 1e9
