#include "pyids/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "pyids/parallel.hpp"
#include "pyids/rng.hpp"

namespace pyids {
namespace {

constexpr std::size_t block_rows = 1 << 14;
constexpr double infinity = std::numeric_limits<double>::infinity();

struct Candidate {
  SampleKey key;
  std::int64_t row_id;
};

// The order of drawing: larger key first, the lower row id on equal keys.
bool drawn_before(const Candidate& a, const Candidate& b) {
  if (a.key != b.key) return a.key > b.key;
  return a.row_id < b.row_id;
}

std::int64_t row_id(const SampleRows& rows, std::size_t row) {
  return rows.row_ids ? rows.row_ids[row] : static_cast<std::int64_t>(row);
}

double weight(const SampleRows& rows, std::size_t row) {
  if (auto values = std::get_if<const float*>(&rows.weights)) return (*values)[row];
  if (auto values = std::get_if<const double*>(&rows.weights)) return (*values)[row];
  return rows.log_weights ? 0 : 1;
}

bool is_valid_weight(const SampleRows& rows, double w) {
  return rows.log_weights ? w < infinity : w >= 0 && w < infinity;  // false for NaN
}

bool is_drawable(const SampleRows& rows, std::size_t row) {
  if (weight(rows, row) == (rows.log_weights ? -infinity : 0)) return false;
  if (rows.excluded && rows.excluded[row]) return false;
  return !std::ranges::binary_search(rows.excluded_ids, row_id(rows, row));
}

SampleKey key_of(const SampleRows& rows, std::uint64_t seed, std::size_t row) {
  const double w = weight(rows, row);
  return sample_key(seed, row_id(rows, row), rows.log_weights ? w : portable_log(w));
}

// Calls body(begin, end, thread) for blocks of rows.
template <class Body>
void for_blocks(const SampleRows& rows, int n_threads, const Body& body) {
  const std::size_t n_blocks = (rows.size + block_rows - 1) / block_rows;
  parallel_blocks(n_blocks, n_threads, [&](std::size_t block, int thread) {
    const std::size_t begin = block * block_rows;
    body(begin, std::min(begin + block_rows, rows.size), thread);
  });
}

[[noreturn]] void throw_bad_row(const SampleRows& rows, std::size_t n_clusters, std::size_t row) {
  std::ostringstream message;
  const std::int32_t label = rows.labels[row];
  if (label < 0 || static_cast<std::size_t>(label) >= n_clusters) {
    message << "labels[" << row << "] is " << label << ": must lie in [0, " << n_clusters << ")";
  } else if (rows.log_weights) {
    message << "log_weights[" << row << "] is " << weight(rows, row) << ": must be finite or -inf";
  } else {
    message << "weights[" << row << "] is " << weight(rows, row)
            << ": must be finite and not negative";
  }
  throw std::invalid_argument(message.str());
}

// Checks every row and counts, cluster by cluster, those that can be drawn.
std::vector<std::int64_t> count_drawable(const SampleRows& rows, std::size_t n_clusters,
                                         int n_threads) {
  std::vector<std::vector<std::int64_t>> counts(static_cast<std::size_t>(n_threads));
  std::mutex mutex;
  std::size_t first_bad = rows.size;
  for_blocks(rows, n_threads, [&](std::size_t begin, std::size_t end, int thread) {
    auto& count = counts[static_cast<std::size_t>(thread)];
    count.resize(n_clusters);
    for (std::size_t row = begin; row < end; ++row) {
      const auto label = static_cast<std::uint32_t>(rows.labels[row]);
      if (label >= n_clusters || !is_valid_weight(rows, weight(rows, row))) {
        std::lock_guard<std::mutex> lock(mutex);
        first_bad = std::min(first_bad, row);
        return;
      }
      count[label] += is_drawable(rows, row);
    }
  });
  if (first_bad < rows.size) throw_bad_row(rows, n_clusters, first_bad);
  std::vector<std::int64_t> total(n_clusters);
  for (const auto& count : counts) {
    for (std::size_t c = 0; c < count.size(); ++c) total[c] += count[c];
  }
  return total;
}

void check_quotas(std::span<const std::int64_t> quotas, std::span<const std::int64_t> drawable,
                  bool allow_fewer) {
  for (std::size_t c = 0; c < quotas.size(); ++c) {
    std::ostringstream message;
    if (quotas[c] < 0) {
      message << "quotas[" << c << "] is " << quotas[c] << ": must not be negative";
    } else if (!allow_fewer && quotas[c] > drawable[c]) {
      message << "quotas[" << c << "] is " << quotas[c] << ", but cluster " << c << " has only "
              << drawable[c] << " rows that can be drawn";
    } else {
      continue;
    }
    throw std::invalid_argument(message.str());
  }
}

// The best candidates that one thread has met in one cluster.
struct Best {
  std::vector<Candidate> candidates;
  SampleKey threshold{-infinity, -infinity};  // what a row must reach to matter

  void keep(std::size_t quota) {
    if (candidates.size() <= quota) return;
    const auto last = candidates.begin() + static_cast<std::ptrdiff_t>(quota) - 1;
    std::nth_element(candidates.begin(), last, candidates.end(), drawn_before);
    threshold = last->key;
    candidates.resize(quota);
  }
};

}  // namespace

SampleKey sample_key(std::uint64_t seed, std::int64_t row_id, double log_weight) {
  const auto bits = random_bits(seed, Stream::sampling, static_cast<std::uint64_t>(row_id));
  const double gumbel = -portable_log(exponential(uniform(bits)));
  // Knuth's TwoSum: high + low is the sum exactly.
  const double high = log_weight + gumbel;
  const double virtual_gumbel = high - log_weight;
  const double low = (log_weight - (high - virtual_gumbel)) + (gumbel - virtual_gumbel);
  return {high, low};
}

Sample sample_by_cluster(const SampleRows& rows, std::span<const std::int64_t> quotas,
                         const SampleOptions& options) {
  const std::size_t n_clusters = quotas.size();
  const int n_threads = resolve_threads(options.n_threads);
  const auto drawable = count_drawable(rows, n_clusters, n_threads);
  check_quotas(quotas, drawable, options.allow_fewer);

  std::vector<std::vector<Best>> best(static_cast<std::size_t>(n_threads));
  for_blocks(rows, n_threads, [&](std::size_t begin, std::size_t end, int thread) {
    auto& mine = best[static_cast<std::size_t>(thread)];
    mine.resize(n_clusters);
    for (std::size_t row = begin; row < end; ++row) {
      const auto cluster = static_cast<std::size_t>(rows.labels[row]);
      const auto quota = static_cast<std::size_t>(quotas[cluster]);
      if (quota == 0 || !is_drawable(rows, row)) continue;
      const Candidate candidate{key_of(rows, options.seed, row), row_id(rows, row)};
      auto& kept = mine[cluster];
      if (candidate.key < kept.threshold) continue;
      kept.candidates.push_back(candidate);
      if (kept.candidates.size() >= 2 * quota + 64) kept.keep(quota);
    }
  });

  std::vector<std::pair<Candidate, std::int32_t>> drawn;
  for (std::size_t c = 0; c < n_clusters; ++c) {
    Best all;
    for (auto& mine : best) {
      if (mine.empty()) continue;
      all.candidates.insert(all.candidates.end(), mine[c].candidates.begin(),
                            mine[c].candidates.end());
    }
    all.keep(static_cast<std::size_t>(quotas[c]));
    for (const auto& candidate : all.candidates) {
      drawn.emplace_back(candidate, static_cast<std::int32_t>(c));
    }
  }
  std::ranges::sort(drawn, {}, [](const auto& row) { return row.first.row_id; });
  Sample sample;
  for (const auto& [candidate, label] : drawn) {
    sample.row_ids.push_back(candidate.row_id);
    sample.labels.push_back(label);
    sample.keys.push_back(candidate.key);
  }
  return sample;
}

}  // namespace pyids
