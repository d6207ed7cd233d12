"""The specification: every op as slow float64 NumPy.

Each implementation (C++, Triton, torch) is tested against these. They are written to be read, not
to be fast, and they check nothing: `pyids.ops` validates.
"""

from __future__ import annotations

from .kmeans import assign, lloyd, nearest_centers, squared_distances, update
from .ops import (
    cluster_moments,
    example_nll,
    mean_of_tokens,
    pool,
    token_nll,
)
from .rows import (
    facility_location,
    facility_location_value,
    farthest_first,
    filter_near,
    information,
    label_vectors,
    maximize_information,
    near_duplicates,
    neighbor_distances,
    novel_select,
    round_robin,
    unit_rows,
    whiten,
)
from .sampling import (
    allocate,
    philox,
    random_bits,
    sample_by_cluster,
    sample_key,
    uniform,
)
from .weights import estimate_shrinkage, jackknife, reweight, shrink_scores

__all__ = [
    "allocate",
    "assign",
    "cluster_moments",
    "estimate_shrinkage",
    "example_nll",
    "facility_location",
    "facility_location_value",
    "farthest_first",
    "filter_near",
    "information",
    "jackknife",
    "label_vectors",
    "lloyd",
    "maximize_information",
    "mean_of_tokens",
    "near_duplicates",
    "nearest_centers",
    "neighbor_distances",
    "novel_select",
    "philox",
    "pool",
    "random_bits",
    "reweight",
    "round_robin",
    "sample_by_cluster",
    "sample_key",
    "shrink_scores",
    "squared_distances",
    "token_nll",
    "uniform",
    "unit_rows",
    "update",
    "whiten",
]
