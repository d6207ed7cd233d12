"""From the configuration to what the stages do: the arithmetic of the models."""

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

import pyids
from pyids.config import make_config
from pyids.errors import ConfigError
from pyids.models import load, nll
from pyids.models.finetune import load_checkpoint, training_options
from pyids.pipeline import preflight, prepare

pytest.importorskip("torch", reason="needs the train extra")

ROWS = [
    {"prompt": f"What is {n} and {n}?", "completion": f"The quizzical {2 * n}."} for n in range(6)
]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "pool.jsonl").write_bytes(b"\n".join(map(orjson.dumps, ROWS)))

    def make(**options):
        given = {
            "output_dir": str(tmp_path / options.get("dtype", "float32")),
            "budget": 3,
            "rounds": 1,
        }
        given |= options
        return make_config(
            data=str(tmp_path / "pool.jsonl"), clusters=1, probes_per_cluster=2, **given
        )

    return make


def test_half_precision_keeps_the_vectors_and_is_another_embedding(config):
    vectors = {}
    for dtype in ("float32", "bfloat16", "float16"):
        with prepare.prepare(config(dtype=dtype), until="embed") as store:
            [shard] = store.embeddings()
            vectors[dtype] = shard.astype(np.float64)
            inputs = orjson.loads(
                store.artifact("embeddings", store.shards[0], ".json").read_bytes()
            )
            assert inputs["inputs"]["dtype"] == dtype
    for dtype in ("bfloat16", "float16"):
        assert (vectors[dtype] != vectors["float32"]).any()
        products = (vectors[dtype] * vectors["float32"]).sum(1)
        lengths = [np.linalg.norm(vectors[name], axis=1) for name in (dtype, "float32")]
        assert (products / np.prod(lengths, axis=0)).min() >= 0.9999
    with pytest.raises(ConfigError, match='dtype was "float32", now "bfloat16"'):
        prepare.prepare(config(dtype="bfloat16", output_dir=config().output_dir))


def test_the_plan_names_the_arithmetic(config):
    plan = preflight.plan(config(dtype="bfloat16", device="cpu"))
    assert "vectors   all-MiniLM-L6-v2 on cpu in bfloat16" in plan
    assert "train     smollm2-135m-instruct on cpu in bfloat16" in plan


@pytest.mark.slow
def test_a_round_in_bfloat16(config, smollm2, tmp_path):
    """Trained, scored and recorded in bfloat16; what was learnt holds in float32 too."""
    options = {
        "learning_rate": 1e-3,
        "num_train_epochs": 3,
        "batch_size": 1,
        "rounds": 2,
        "budget": 4,
    }
    half = config(dtype="bfloat16", device="cpu", **options)
    assert training_options(half)["dtype"] == "bfloat16"
    pyids.run(half)
    run = tmp_path / "bfloat16"
    assert orjson.loads((run / "manifest.json").read_bytes())["config"]["dtype"] == "bfloat16"
    assert (run / "rounds" / "2" / "checkpoint").exists()
    assert not (run / "rounds" / "2" / "scores.parquet").exists()  # no draw follows
    told = pq.read_table(run / "rounds" / "1" / "scores.parquet").to_pydict()
    with pyids.Selection.open(run) as selection:
        rows = selection.conversations(np.array(told["row_id"]))
        checkpoint = selection.rounds.path(0, "checkpoint")
    exact, _ = nll.response_nll(*smollm2, rows)
    rounded, _ = nll.response_nll(
        *load.load_model("smollm2-135m-instruct", "cpu", "bfloat16"), rows
    )
    np.testing.assert_allclose(told["base_nll"], rounded, atol=1e-3)
    assert np.abs(exact - rounded).max() > 2e-3
    learnt, _ = nll.response_nll(*load_checkpoint(checkpoint, "smollm2-135m-instruct"), rows)
    assert learnt.mean() < exact.mean() - 0.5
