"""KMeans under scikit-learn's own estimator checks, beside scikit-learn's own KMeans."""

from __future__ import annotations

from typing import Any

import pytest

import pyids

sklearn_base = pytest.importorskip("sklearn.base", reason="scikit-learn")


# Some checks look for the base class, which pyids does without: scikit-learn is optional.
class Clusterer(pyids.KMeans, sklearn_base.ClusterMixin):
    pass


def run_checks(estimator: Any) -> tuple[set[str], dict[str, str]]:
    """Names of the checks that ran, and what those that failed said."""
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(estimator, on_fail=None, on_skip=None)
    ran = {result["check_name"] for result in results if result["status"] != "skipped"}
    failed = {
        result["check_name"]: repr(result["exception"])
        for result in results
        if result["status"] == "failed"
    }
    return ran, failed


@pytest.mark.filterwarnings("ignore:Estimator Clusterer does not inherit")
@pytest.mark.filterwarnings("ignore:Can't check dok sparse matrix")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fails_no_check_that_scikit_learns_own_passes() -> None:
    from sklearn.cluster import KMeans

    ran, failed = run_checks(Clusterer(n_clusters=3))
    theirs_ran, theirs_failed = run_checks(KMeans(n_clusters=3, n_init=1))
    assert {name: why for name, why in failed.items() if name not in theirs_failed} == {}
    # The one check that ours is spared: sparse rows, which it does not take.
    assert theirs_ran - ran == {"check_sample_weight_equivalence_on_sparse_data"}
