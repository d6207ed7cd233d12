"""A whole run with every op by the kernels, interpreted: there is no kernel that nobody calls."""

from __future__ import annotations

import importlib

import numpy as np
import orjson
import pytest

pytest.importorskip("transformers", reason="needs the train extra")
pytest.importorskip("triton", reason="needs the gpu extra")

import pyids

lloyd = pytest.importorskip(
    "pyids.kernels.lloyd", reason="pyids is not installed", exc_type=ImportError
)
interpreter = importlib.import_module("triton.runtime.interpreter")

# What a run must have launched: read, embed, cluster, train and score on it.
DRIVEN = {
    "_mean_kernel", "_prepare_rows_kernel", "_prepare_centers_kernel", "_nearest_kernel",
    "_choose_kernel", "_collect_kernel", "_rescore_kernel", "_settle_kernel", "_distance_kernel",
    "_add_kernel", "_moved_kernel", "_move_kernel", "_part_kernel", "_example_kernel",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not lloyd.INTERPRETED, reason="counts what the interpreter is given")
def test_a_run_from_rows_to_weights_by_the_kernels_alone(tmp_path, tiny, monkeypatch):
    topics = [("Add 2 and {n}.", "It is {n} and 2."), ("Name city {n}.", "City {n}, by the sea.")]
    rows = [
        {"prompt": ask.format(n=n), "completion": answer.format(n=n)}
        for n in range(20)
        for ask, answer in topics
    ]
    data = tmp_path / "pool.jsonl"
    data.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    launched, run = set(), interpreter.InterpretedFunction.run

    def spy(self, *args, **options):
        launched.add(self.fn.__name__)
        return run(self, *args, **options)

    options = {"budget": 10, "rounds": 2, "clusters": 5, "probes_per_cluster": 1, "seed": 0}
    models = {"model": tiny, "encoder": tiny, "encoder_max_length": 32, "max_length": 32}
    found = {}
    for backend in ("torch", "triton"):
        monkeypatch.setenv("PYIDS_BACKEND", backend)
        with monkeypatch.context() as patch:
            if backend == "triton":
                patch.setattr(interpreter.InterpretedFunction, "run", spy)
            found[backend] = pyids.run(
                data=[str(data)],
                output_dir=str(tmp_path / backend),
                **options,
                **models,
                oversample=1,
            )
    assert launched >= DRIVEN, f"not launched: {sorted(DRIVEN - launched)}"
    np.testing.assert_array_equal(found["triton"].ids, found["torch"].ids)
    np.testing.assert_allclose(found["triton"].weights, found["torch"].weights, atol=1e-4)
