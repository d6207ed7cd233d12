#include "sampling_tally.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <stdexcept>
#include <string>

namespace pyids {

std::vector<double> reference_log_weights(const SampleRows& rows, std::size_t n_clusters) {
  std::vector<double> references(n_clusters);
  if (!rows.log_weights) return references;
  references.assign(n_clusters, -infinity);
  constexpr std::size_t run = 64;  // neighbors share cache lines
  const std::size_t step = std::max<std::size_t>(run, rows.size / 1024);
  with_weights(rows, [&](auto weight_of) {
    for (std::size_t begin = 0; begin < rows.size; begin += step) {
      for (std::size_t row = begin; row < std::min(begin + run, rows.size); ++row) {
        const std::uint32_t label = label_of(rows, row);
        if (label < n_clusters) references[label] = std::max(references[label], weight_of(row));
      }
    }
  });
  return references;
}

std::vector<Tally> tally_rows(const SampleRows& rows, std::span<const double> references,
                              int n_threads) {
  const std::size_t n_clusters = references.size();
  std::vector<std::vector<Tally>> tallies(static_cast<std::size_t>(n_threads));
  std::mutex mutex;
  std::size_t first_bad = rows.size;
  for_blocks(rows, n_threads, [&](std::size_t begin, std::size_t end, int thread) {
    auto& mine = tallies[static_cast<std::size_t>(thread)];
    mine.resize(n_clusters);
    Exclusions exclusions(rows);
    const auto excluded = exclusions.of_block(begin, end);
    const auto tally = [&](auto relative_weight) {
      for (std::size_t row = begin; row < end; ++row) {
        prefetch_ahead(rows, row);
        const std::uint32_t label = label_of(rows, row);
        const double w = label < n_clusters ? relative_weight(row, label) : -1;
        if (!(w >= 0)) [[unlikely]] {  // NaN stands for a bad weight
          std::lock_guard<std::mutex> lock(mutex);
          first_bad = std::min(first_bad, row);
          return;
        }
        if (w == 0 || (!excluded.empty() && excluded[row - begin])) continue;
        auto& cluster = mine[label];
        ++cluster.rows;
        cluster.sums += Tally::Pair{w, w * w};
      }
    };
    with_weights(rows, [&](auto weight_of) {
      if (rows.log_weights) {
        constexpr double mean_excess = 1.04;  // of exp_above
        tally([&](std::size_t row, std::uint32_t label) {
          const double w = weight_of(row);
          if (!(w < infinity)) return -1.0;
          return w == -infinity ? 0 : exp_above(w - references[label]) / mean_excess;
        });
      } else {
        tally([&](std::size_t row, std::uint32_t) {
          const double w = weight_of(row);
          return w < infinity ? w : -1.0;
        });
      }
    });
  });
  if (first_bad < rows.size) throw_bad_row(rows, n_clusters, first_bad);
  std::vector<Tally> total(n_clusters);
  for (const auto& mine : tallies) {
    for (std::size_t c = 0; c < mine.size(); ++c) {
      total[c].rows += mine[c].rows;
      total[c].sums += mine[c].sums;
    }
  }
  return total;
}

// Every 16th run of 64 rows, neighbors sharing cache lines.
std::vector<Tally> tally_sample(const SampleRows& rows, std::size_t n_clusters) {
  constexpr std::size_t run = 64, step = 16;
  std::vector<Tally> tallies(n_clusters);
  with_weights(rows, [&](auto weight_of) {
    for (std::size_t begin = 0; begin < rows.size; begin += run * step) {
      for (std::size_t row = begin; row < std::min(begin + run, rows.size); ++row) {
        const std::uint32_t label = label_of(rows, row);
        const double w = weight_of(row);
        if (label >= n_clusters || !(w > 0 && w < infinity)) continue;
        ++tallies[label].rows;
        tallies[label].sums += Tally::Pair{w, w * w};
      }
    }
  });
  for (auto& tally : tallies) {
    if (tally.rows == 0) continue;
    // As if the sample had met two standard errors more rows, and more weight, than its share.
    const auto n = static_cast<double>(tally.rows);
    const double relative_variance = n * tally.sums[1] / (tally.sums[0] * tally.sums[0]);
    const double shrink = 1 / (1 + 2 * std::sqrt(relative_variance / n));
    tally.rows = std::max<std::int64_t>(1, static_cast<std::int64_t>(n * step * shrink));
    tally.sums *= step * shrink;
  }
  return tallies;
}

std::vector<std::size_t> rows_needed(std::span<const std::int64_t> quotas,
                                     std::span<const Tally> tallies, bool allow_fewer) {
  std::vector<std::size_t> needed(quotas.size());
  for (std::size_t c = 0; c < quotas.size(); ++c) {
    const auto name = "quotas[" + std::to_string(c) + "] is " + std::to_string(quotas[c]);
    if (quotas[c] < 0) throw std::invalid_argument(name + ": must not be negative");
    if (!allow_fewer && quotas[c] > tallies[c].rows) {
      throw std::invalid_argument(name + ", but cluster " + std::to_string(c) + " has only " +
                                  std::to_string(tallies[c].rows) + " rows that can be drawn");
    }
    needed[c] = static_cast<std::size_t>(std::min(quotas[c], tallies[c].rows));
  }
  return needed;
}

// About needed + 4 sqrt(needed) should reach it: the mean number of rows with E / w <= t is sum(1 -
// exp(-w t)), here for weights spread like a gamma distribution of the same mean and variance, of
// which the sum is known in closed form.
SampleKey guess_threshold(const Tally& tally, double reference, std::size_t needed) {
  const auto n = static_cast<double>(tally.rows);
  const auto wanted = static_cast<double>(needed);
  const double share = (wanted + 4 * std::sqrt(wanted) + 4) / n;
  if (needed == 0 || !(share < 0.9)) return lowest_key;
  const double mean = tally.sums[0] / n;
  const double spread = tally.sums[1] / n / (mean * mean) - 1;  // variance / mean^2
  const double rate = -std::log1p(-share);
  const double t = (spread > 1e-3 ? std::expm1(spread * rate) / spread : rate) / mean;
  const double key = reference - std::log(t);
  return std::isfinite(key) ? SampleKey{key, 0} : lowest_key;
}

}  // namespace pyids
