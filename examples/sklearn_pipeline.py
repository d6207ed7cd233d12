"""Use `KMeans` in a scikit-learn pipeline, then draw rows from its clusters."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pyids


def main() -> None:
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 6, 3000)
    vectors = 5 * rng.standard_normal((6, 32))[topics] + rng.standard_normal((3000, 32))

    pipeline = make_pipeline(StandardScaler(), PCA(8), pyids.KMeans(6, random_state=0))
    labels = pipeline.fit_predict(vectors.astype(np.float32))
    print(f"agreement with the topics: {adjusted_rand_score(topics, labels):.2f}")

    sizes = np.bincount(labels, minlength=6)
    quotas = pyids.allocate(300, sizes, sizes, seed=0)
    rows = pyids.sample_by_cluster(labels, quotas, seed=0)
    print(f"{len(rows)} rows: {np.bincount(labels[rows], minlength=6)} of the clusters {sizes}")


if __name__ == "__main__":
    main()
