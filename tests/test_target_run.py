"""A run with a target: where the first round draws, what is kept, what the scorers measure."""

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

import pyids
from pyids.cli import cli
from pyids.config import make_config
from pyids.errors import ConfigError
from pyids.nearest import round_robin
from pyids.scoring import scorers
from pyids.scoring import target as target_module


@pytest.fixture
def aimed(pool, tmp_path):
    """Options of a run for six rows of the pool's first topic."""
    rows = np.flatnonzero(pool.topics == 0)[:6]
    path = tmp_path / "dev.jsonl"
    path.write_bytes(b"".join(orjson.dumps(pool.rows[i]) + b"\n" for i in rows))
    np.save(tmp_path / "dev.npy", np.load(pool.vectors)[rows])
    return rows, pool.options(
        target=str(path), target_embeddings_file=str(tmp_path / "dev.npy"), clusters=8
    )


def test_a_run_draws_near_the_target_and_never_the_target(pool, aimed, tmp_path):
    rows, options = aimed
    assert make_config(**options).scorer == "target"
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        weights = selection.rounds.weights(0)
        assert weights.sum() == pytest.approx(1)
        assert weights.min() >= 0.02 / 8 * (1 - 1e-9)
        drawn = []
        while selection.draw():
            drawn.append(selection.rounds.selected(selection.round))
            probes = selection.probes()
            assert not set(probes) & set(rows)
            selection.tell({int(row): float(pool.topics[row] == 0) for row in probes})
        selection.finish()
    assert np.mean(pool.topics[drawn[0]] == 0) > 0.8
    chosen = np.concatenate(drawn)
    assert len(set(chosen)) == 60
    assert not set(chosen) & set(rows)
    manifest = orjson.loads((tmp_path / "run" / "manifest.json").read_bytes())
    assert manifest["target"]["rows"] == 6
    assert manifest["target"]["left_out"] == rows.tolist()
    assert CliRunner().invoke(cli, ["verify", str(tmp_path / "run")]).exit_code == 0


def test_scores_that_say_nothing_leave_what_the_round_robin_takes(pool, aimed, tmp_path):
    """One target row is far from the others: it has its turn though few rows are near it."""
    rows, options = aimed
    vectors = np.load(pool.vectors)
    other = np.flatnonzero(pool.topics == 3)[0]
    target = np.vstack([np.load(tmp_path / "dev.npy")[:5], vectors[other]])
    np.save(tmp_path / "dev.npy", target)
    with pyids.Selection.open(tmp_path / "run", **options) as selection:
        drawn = []
        while selection.draw():
            drawn.append(selection.rounds.selected(selection.round))
            selection.tell(dict.fromkeys(map(int, selection.probes()), 1.0))
        selection.finish()
    free = np.ones(len(vectors), bool)
    free[rows] = False
    first = round_robin([vectors], target, 60, free=free).rows
    of_the_other = first[5::6]
    assert len(np.intersect1d(np.concatenate(drawn), first)) > 45
    assert len(np.intersect1d(np.concatenate(drawn), of_the_other)) > 7


def test_a_run_folder_knows_its_target_without_the_file(pool, aimed, tmp_path):
    rows, options = aimed
    pyids.Selection.open(tmp_path / "run", **options).close()
    (tmp_path / "dev.jsonl").unlink()
    (tmp_path / "dev.npy").unlink()
    with pyids.Selection.open(tmp_path / "run") as selection:
        assert selection.draw()
        assert [m[0]["content"] for m in selection.draws.target.rows.conversations] == [
            pool.rows[i]["messages"][0]["content"] for i in rows
        ]


def test_another_target_is_another_run(aimed, tmp_path):
    _, options = aimed
    pyids.Selection.open(tmp_path / "run", **options).close()
    path = tmp_path / "dev.jsonl"
    path.write_bytes(path.read_bytes().replace(b"question", b"Question", 1))
    with pytest.raises(ConfigError, match="target was"):
        pyids.Selection.open(tmp_path / "run", **options)


def test_a_budget_above_what_is_left_is_refused(aimed, tmp_path):
    _, options = aimed
    with pytest.raises(
        ConfigError, match="above the 394 rows that are left, for others repeat the target: "
    ):
        pyids.Selection.open(tmp_path / "run", **options | {"budget": 395})


def test_scorers_of_a_target_need_one(pool):
    with pytest.raises(ConfigError, match="the scorer target-gradient needs --target"):
        make_config(**pool.options(scorer="target-gradient"))


def test_deviations_are_of_cluster_means():
    values = np.array([1.0, 3.0, 2.0, 2.0, 9.0, np.nan, 4.0, 4.0])
    clusters = np.repeat(np.arange(4, dtype=np.int32), 2)  # means 2, 2, 9, 4
    found = target_module.deviations(values, clusters)
    spread = 1.4826 * 1.0  # of -1, -1, 6, 1 from the median 3
    np.testing.assert_allclose(found[:4], (values[:4] - 3) / spread)
    assert found[4] == 4  # 6 / 1.48 is above the limit
    assert np.isnan(found[5])


# ---- with a model --------------------------------------------------------------------------------


def row(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


SUMS = [row(f"What is {a} plus {b}?", f"{a} + {b} = {a + b}") for a, b in ((3, 9), (8, 5), (7, 7))]
VERSES = [
    row(f"Write a verse about {x}.", f"O {x}, that sings of night and day, so soft, so far away!")
    for x in ("rain", "roses", "the sea")
]
TARGET = [row("What is 6 plus 8?", "6 + 8 = 14"), row("What is 2 plus 9?", "2 + 9 = 11")]


@pytest.fixture(scope="module")
def probed(tiny, tmp_path_factory):
    pytest.importorskip("torch", reason="needs the train extra")
    from pyids.models import finetune, hub
    from pyids.scoring.probes import Models, Probes, ScoringOptions

    folder = tmp_path_factory.mktemp("round") / "checkpoint"
    made = finetune.finetune(tiny, SUMS[:1], output_dir=folder, learning_rate=1e-3)
    return Probes(
        Models(hub.resolve_model(tiny), made.path),
        [*SUMS, *VERSES],
        np.repeat(np.arange(2, dtype=np.int32), 3),
        ScoringOptions(
            max_length=256,
            target=TARGET,
            target_tasks=["a", "b"],
            target_cosines=np.array([0.9, 0.8, 0.8, 0.1, 0.1, 0.2]),
        ),
    )


@pytest.mark.parametrize("scorer", ["target-embedding", "target-gradient"])
def test_rows_of_the_targets_kind_score_higher(probed, scorer):
    scores = scorers.find_scorer(scorer)(probed).values
    assert scores.shape == (6,)
    assert scores[:3].min() > scores[3:].max()


def test_the_mean_of_the_measures_is_kept_with_them(probed):
    found = scorers.find_scorer("target")(probed)
    assert list(found.columns) == ["target_embedding", "target_gradient", "target_influence"]
    parts = [target_module.deviations(x, probed.clusters) for x in found.columns.values()]
    np.testing.assert_allclose(found.values, np.mean(parts, axis=0))
    assert found.temperature == 1


def test_influence_is_the_fall_of_the_targets_loss(probed, smollm2):
    """By the naive code: the mean loss of the tokens of the last answer, read after the row."""
    import torch

    from pyids.chat.template import encode, last_response

    def loss(messages):
        ids, mask = last_response(encode(messages, smollm2[1]))
        with probed.models.trained() as (model, _), torch.inference_mode():
            logits = model(torch.from_numpy(ids)[None]).logits[0].double()
        nll = -logits.log_softmax(-1)[np.arange(len(ids) - 1), ids[1:]].numpy()
        return nll[mask[1:]].mean()

    found = scorers.find_scorer("target-influence")(probed).values
    for i, t in ((0, 0), (1, 1), (3, 1), (4, 0)):  # turns shift by the cluster
        alone, told = loss(TARGET[t]), loss([*probed.rows[i], *TARGET[t]])
        assert found[i] == pytest.approx((alone - told) / alone, abs=1e-3)


def test_the_obvious_command(pool, aimed, tiny, tmp_path):
    """`pyids run --target` trains, scores by the three measures, and re-weights."""
    rows, options = aimed
    command = ["run", options.pop("data")]
    for name, value in (options | {"budget": 40, "rounds": 2, "model": tiny}).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--output-dir", str(tmp_path / "run"), "--max-length", "64"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    import pyarrow.parquet as pq

    told = pq.read_table(tmp_path / "run" / "rounds" / "1" / "scores.parquet").column_names
    assert {"score", "target_embedding", "target_gradient", "target_influence"} <= set(told)
    lines = (tmp_path / "run" / "selected.jsonl").read_bytes().splitlines()
    chosen = [orjson.loads(line)["_pyids_id"] for line in lines]
    assert len(set(chosen)) == 40
    assert not set(chosen) & set(rows.tolist())
    assert np.mean(pool.topics[chosen] == 0) > 0.6
