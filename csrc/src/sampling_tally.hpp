// What a draw learns of its clusters before it, and what it guesses from that.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sampling_rows.hpp"

namespace pyids {

// Of a cluster: its rows that can be drawn, the sum of their weights and the sum of the squares
// (weights relative to exp(reference)).
struct Tally {
  typedef double Pair __attribute__((vector_size(16)));
  Pair sums{};
  std::int64_t rows = 0;
};

// One log weight a cluster, the largest of some rows: what its tally is relative to.
std::vector<double> reference_log_weights(const SampleRows& rows, std::size_t n_clusters);

// Checks every row and tallies the clusters.
std::vector<Tally> tally_rows(const SampleRows& rows, std::span<const double> references,
                              int n_threads);

// Tallies of all rows as a sample has them. Bad rows are left out. The guess is made to err by what
// the sample may.
std::vector<Tally> tally_sample(const SampleRows& rows, std::size_t n_clusters);

// How many rows each cluster will give.
std::vector<std::size_t> rows_needed(std::span<const std::int64_t> quotas,
                                     std::span<const Tally> tallies, bool allow_fewer);

// A key that a little more than `needed` rows of the cluster should reach.
SampleKey guess_threshold(const Tally& tally, double reference, std::size_t needed);

}  // namespace pyids
