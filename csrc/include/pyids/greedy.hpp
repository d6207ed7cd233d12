// Greedy selection over rows that lie in one or several (memory-mapped) shards.
//
// Nothing here builds an N x N matrix: similarities are computed a tile at a time and consumed at
// once, so memory is O(N) beside the shards (novel_select: O(N * horizon)). The value of a pair of
// rows depends on these two rows alone, and what is summed over rows is integers; so the result is
// the same for any number of threads and any division into shards. Ties go to the lowest row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pyids/distance.hpp"

namespace pyids {

struct GreedyOptions {
  int n_threads = 0;  // 0: one per core
};

struct Picks {
  std::vector<std::int64_t> rows;  // in the order of picking
  std::vector<double> values;      // what each pick was worth; each function says in which measure
};

// Gonzalez' farthest point first: each pick is the row whose nearest pick is farthest. Begins with
// `first`. values[i]: the Euclidean distance of pick i to the nearest earlier one (the first:
// infinity); one more entry at the end is the covering radius of all picks.
Picks farthest_first(const Rows& rows, std::size_t budget, std::size_t first,
                     const GreedyOptions& options);

struct FacilityOptions {
  double alpha = 0.0;               // weight of the quality against that of the coverage
  std::span<const double> quality;  // N values, or empty: 0
  double epsilon = 0.0;             // > 0: stochastic greedy with this epsilon; 0: lazy greedy
  std::uint64_t seed = 0;           // of the stochastic greedy's samples
  std::size_t list_bytes = std::size_t{1} << 29;  // about the most memory for lists of pairs
};

struct FacilityPicks : Picks {
  std::uint64_t n_evaluations = 0;  // gains that took a product with every served row
};

// Greedy maximization of
//   F(S) = (1 - alpha) / |V| * sum_{i in V} max_{j in S} s(i, j) + alpha / budget * sum_{j in S}
//   q_j
// where V are the rows of `served` and s is the product of two rows (rows of unit length: the
// cosine), at least 0 and at most 1, in whole units of 2^-20. In these units F is computed exactly,
// so that the lazy greedy picks what the plain greedy would. values: the gain of each pick.
FacilityPicks facility_location(const Rows& rows, const Rows& served, std::size_t budget,
                                const FacilityOptions& facility, const GreedyOptions& options);

// Walks through the rows in `order` and keeps a row unless its product with a row already kept
// exceeds `threshold`, until `budget` are kept or the order ends. values: the largest product with
// an earlier one (-infinity for the first), rounded as float32 rounds it at this instruction set.
Picks filter_near(const Rows& rows, std::span<const std::int64_t> order, std::size_t budget,
                  double threshold, const GreedyOptions& options);

// For each row the sum of 1 - product over the `n_neighbors` rows of `reference` with the largest
// products. reference_rows[j] is the row that reference j is a copy of: no row neighbors itself.
std::vector<double> neighbor_distances(const Rows& rows, const Rows& reference,
                                       std::span<const std::int64_t> reference_rows,
                                       std::size_t n_neighbors, const GreedyOptions& options);

// Each pick is the row x of largest novelty
//   v(x) = sum_y weight_y * (1 - x . y) / rank(y)^proximity
// over the rows y picked before, ranked by their distance 1 - x . y (ties: picked earlier first).
// Only the `horizon` nearest are kept by rank; the others enter with their mean value times the
// mean of 1 / rank^proximity over their ranks, which is exact while at most `horizon` are picked.
// Begins with `first`. values: v at the time of the pick (0 for the first).
Picks novel_select(const Rows& rows, std::size_t budget, std::size_t first,
                   std::span<const double> weights, double proximity, std::size_t horizon,
                   const GreedyOptions& options);

}  // namespace pyids
