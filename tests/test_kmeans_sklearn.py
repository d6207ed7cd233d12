"""KMeans under scikit-learn's own estimator checks."""

from __future__ import annotations

import pytest

import pyids

estimator_checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="scikit-learn")


# As of scikit-learn's own KMeans: the random start differs between a weight of 2 and a row twice.
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": "the seeding draws rows, not weights"}


@pytest.mark.filterwarnings("ignore:Estimator KMeans does not inherit")
@pytest.mark.filterwarnings("ignore:Can't check dok sparse matrix")
def test_check_estimator() -> None:
    results = estimator_checks.check_estimator(
        pyids.KMeans(n_clusters=3),
        expected_failed_checks=EXPECTED,
        on_fail=None,
        on_skip=None,
    )
    failed = {
        result["check_name"]: repr(result["exception"])
        for result in results
        if result["status"] == "failed"
    }
    assert failed == {}
    assert len(results) > 40
