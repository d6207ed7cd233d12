import numpy as np
import pytest
from scipy import stats

import pyids
from pyids.errors import DataError
from pyids.evidence import cluster_moments, improvement, read_scores
from pyids.scoring import Scores


def test_moments_of_each_cluster():
    rng = np.random.default_rng(0)
    scores, clusters = rng.normal(size=200), rng.integers(0, 5, 200).astype(np.int32)
    means, counts, variances = cluster_moments(scores, clusters, 7)
    for k in range(5):
        of_k = scores[clusters == k]
        assert counts[k] == len(of_k)
        assert means[k] == pytest.approx(of_k.mean(), abs=1e-12)
        assert variances[k] == pytest.approx(of_k.var(ddof=1), abs=1e-12)
    assert counts[5:].tolist() == [0, 0]
    assert np.isnan(means[5:]).all()
    assert np.isnan(variances[5:]).all()


def test_one_score_has_no_variance():
    means, _, variances = cluster_moments(np.array([2.0]), np.array([0], dtype=np.int32), 1)
    assert means.tolist() == [2.0]
    assert np.isnan(variances[0])


def test_improvement_is_the_paired_t_statistic():
    rng = np.random.default_rng(1)
    base = rng.normal(3, 1, 50)
    trained = base - rng.normal(0.1, 0.3, 50)
    columns = {"base_nll": base, "checkpoint_nll": trained}
    assert improvement(columns) == pytest.approx(stats.ttest_rel(base, trained).statistic)


def test_improvement_is_unknown_without_both_losses():
    assert improvement({"score": np.ones(3)}) is None
    assert improvement({"base_nll": np.ones(1), "checkpoint_nll": np.ones(1)}) is None


@pytest.mark.parametrize(("drop", "kept"), [(0.0, True), (0.2, False)])
def test_weights_stay_when_nothing_was_learnt(pool, tmp_path, caplog, drop, kept):
    rng = np.random.default_rng(2)
    with pyids.Selection.open(tmp_path / "run", **pool.options()) as selection:
        selection.draw()
        clusters = selection.clusters_of(selection.probes())
        noise = rng.normal(0, 0.1, len(clusters))
        noise -= noise.mean()
        base = np.full(len(noise), 3.0)
        trained = base - drop * clusters + noise
        columns = {"base_nll": base, "checkpoint_nll": trained}
        selection.tell(Scores(base - trained, columns))
        unchanged = np.array_equal(selection.rounds.weights(1), selection.rounds.weights(0))
        assert unchanged == kept
        assert selection.rounds.summary(0)["weights_changed"] == (not kept)
    assert ("the scores are noise" in caplog.text) == kept


def test_scores_of_a_file(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text(
        '{"_pyids_id": 7, "score": 0.5, "x": 1}\n\n{"_pyids_id": 8, "score": null}\n'
        '{"score": -1, "_pyids_id": 9}\n'
    )
    assert read_scores(path) == {7: 0.5, 9: -1.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no score"),
        ('{"_pyids_id": 7, "score": 1}\n{"score": 1}\n', "line 2"),
        ("7\n", "line 1"),
        ('{"_pyids_id": 7, "score": "high"}\n', "line 1"),
    ],
)
def test_a_bad_file_of_scores_is_named(tmp_path, text, words):
    path = tmp_path / "scores.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_scores(path)


def test_a_missing_file_of_scores_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(tmp_path / "none.jsonl")
