import numpy as np
import pytest
from scipy import stats

import pyids
from pyids.errors import DataError
from pyids.scoring.probes import Scores
from pyids.scoring.statistics import between_cluster_z, cluster_moments, not_significant, paired_t
from pyids.scoring.told import read_scores


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
    assert paired_t(columns) == pytest.approx(stats.ttest_rel(base, trained).statistic)


def test_improvement_is_unknown_without_both_losses():
    assert paired_t({"score": np.ones(3)}) is None
    assert paired_t({"base_nll": np.ones(1), "checkpoint_nll": np.ones(1)}) is None


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_improvement_without_spread():
    base = np.ones(3)
    for drop, expected in ((0.0, 0.0), (0.5, np.inf), (-0.5, -np.inf)):
        assert paired_t({"base_nll": base, "checkpoint_nll": base - drop}) == expected


def test_distinction_is_the_standardised_f_statistic():
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(30, dtype=np.int32), 4) * 2  # labels need not be dense
    trained = rng.normal(0, 0.5, len(clusters)) - 0.3 * rng.normal(size=60)[clusters]
    columns = {"base_nll": np.zeros(len(clusters)), "checkpoint_nll": trained}
    f = stats.f_oneway(*(trained[clusters == k] for k in np.unique(clusters))).statistic
    expected = (f - 1) / np.sqrt(2 / 29 + 2 / 90)
    assert between_cluster_z(columns, clusters) == pytest.approx(expected)


def test_distinction_of_noise_is_a_standard_score():
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(64, dtype=np.int32), 4)
    found = [
        between_cluster_z({"base_nll": x, "checkpoint_nll": np.zeros(len(x))}, clusters)
        for x in rng.standard_t(4, size=(400, len(clusters)))
    ]
    assert abs(np.mean(found)) < 0.2
    assert 0.8 < np.std(found) < 1.2
    assert np.mean(np.array(found) > 2) < 0.06


def test_distinction_needs_two_clusters_and_a_cluster_of_two():
    columns = {"base_nll": np.ones(3), "checkpoint_nll": np.array([1.0, 2.0, 3.0])}
    assert between_cluster_z(columns, np.zeros(3, np.int32)) is None
    assert between_cluster_z(columns, np.arange(3, dtype=np.int32)) is None
    assert between_cluster_z({"score": np.ones(3)}, np.zeros(3, np.int32)) is None
    same = {"base_nll": np.ones(4), "checkpoint_nll": np.array([1.0, 1.0, 2.0, 2.0])}
    assert between_cluster_z(same, np.array([0, 0, 1, 1], np.int32)) == np.inf


@pytest.mark.parametrize(
    ("improved", "differs", "noise"),
    [
        (None, None, False),
        (3, 0, False),
        (0, 0, True),
        (0, 3, False),
        (-3, 9, True),
        (0, None, True),
    ],
)
def test_what_counts_as_noise(improved, differs, noise):
    assert not_significant(improved, differs) == noise


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
        ('{"_pyids_id": 7, "score": "high"}\n', "line 1: column 'score' is \"high\""),
        ('{"_pyids_id": 7, "score": true}\n', "line 1: column 'score' is true"),
        ('{"_pyids_id": 7.9, "score": 1}\n', "line 1: column '_pyids_id' is 7.9, not a row id"),
        ('{"_pyids_id": true, "score": 1}\n', "line 1: column '_pyids_id' is true, not a row id"),
        ('{"_pyids_id": 9223372036854775808, "score": 1}\n', "line 1: column '_pyids_id' is 9223"),
        (
            '{"_pyids_id": 7, "score": 1}\n{"_pyids_id": 7, "score": 2}\n',
            "line 2: column '_pyids_id': row 7 has a score on an earlier line",
        ),
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
