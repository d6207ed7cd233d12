// Weighted draws without replacement inside clusters.
//
// Row i of weight w has the key log(w) - log(E_i), E_i the standard exponential of (seed, row id).
// The rows with the largest keys of a cluster are drawn: that is successive sampling, one row after
// another with probability proportional to the weight among those left (Efraimidis and Spirakis
// 2006; "Gumbel top-k" on the log scale). A key depends on nothing but its row, so the same rows
// come out for any order, any sharding and any number of threads.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

namespace pyids {

// One key, exact: the sum of `high` and `low`, where `high` is the sum rounded. A log weight of
// 1e300 swallows the random part of `high`; `low` keeps it.
struct SampleKey {
  double high;
  double low;
  friend auto operator<=>(const SampleKey&, const SampleKey&) = default;
};

SampleKey sample_key(std::uint64_t seed, std::int64_t row_id, double log_weight);

// The pool, or one shard of it; every pointer refers to `size` values.
struct SampleRows {
  std::size_t size = 0;  // less than 2^32
  const std::int32_t* labels = nullptr;
  const std::int64_t* row_ids = nullptr;  // null: 0, 1, ... size - 1
  // Neither: every row weighs the same.
  std::variant<std::monostate, const float*, const double*> weights;
  bool log_weights = false;
  const bool* excluded = nullptr;              // true: never drawn
  std::span<const std::int64_t> excluded_ids;  // the same by row id, ascending
};

struct SampleOptions {
  std::uint64_t seed = 0;
  int n_threads = 0;         // 0: one per core
  bool allow_fewer = false;  // a cluster with fewer rows than its quota gives what it has
  bool return_keys = false;  // else `labels` and `keys` stay empty
  // One a cluster, or empty: rows with lower keys are not drawn (a cluster then gives fewer).
  std::span<const SampleKey> floors = {};
  std::size_t max_memory_bytes = SIZE_MAX;  // beside the rows drawn, about; at least one thread's
};

// Ascending by row id.
struct Sample {
  std::vector<std::int64_t> row_ids;
  std::vector<std::int32_t> labels;
  std::vector<SampleKey> keys;
};

// Draws quotas[c] rows from every cluster c. Throws std::invalid_argument naming the first row or
// cluster that does not fit, or a row id that occurs twice. Another thread that writes the arrays
// meanwhile makes the draw anybody's guess or an error, nothing worse.
Sample sample_by_cluster(const SampleRows& rows, std::span<const std::int64_t> quotas,
                         const SampleOptions& options);

// Merges draws: the positions, ascending, of the quotas[c] rows with the largest keys of each
// cluster (all where there are fewer). Throws std::invalid_argument for a label out of range or a
// key that is NaN.
std::vector<std::int64_t> best_keys(std::span<const std::int64_t> row_ids,
                                    std::span<const std::int32_t> labels,
                                    std::span<const SampleKey> keys,
                                    std::span<const std::int64_t> quotas);

}  // namespace pyids
