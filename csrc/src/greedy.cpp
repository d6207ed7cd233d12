// Farthest points, near-duplicates and distances of neighbors.
#include "pyids/greedy.hpp"

#include <algorithm>
#include <cmath>

#include "greedy_blocks.hpp"

namespace pyids {

Picks farthest_first(const Rows& rows, std::size_t budget, std::size_t first,
                     const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  std::vector<double> nearest(rows.size(), kFar);  // squared; -1: picked
  std::vector<double> center(rows.n_cols());
  Picks picks;
  std::size_t pick = first;
  double farthest = kFar;
  while (picks.rows.size() < budget) {
    picks.rows.push_back(static_cast<std::int64_t>(pick));
    picks.values.push_back(std::sqrt(farthest));
    rows.load(pick, center.data());
    lower_to_distance(rows, center.data(), nearest.data(), n_threads);
    nearest[pick] = -1;
    const auto top = std::max_element(nearest.begin(), nearest.end());
    pick = static_cast<std::size_t>(top - nearest.begin());
    farthest = std::max(0.0, *top);
    check_interrupt();
  }
  picks.values.push_back(std::sqrt(farthest));
  return picks;
}

Picks filter_near(const Rows& rows, std::span<const std::int64_t> order, std::size_t budget,
                  double threshold, const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  const std::size_t d = rows.n_cols();
  std::vector<float> kept(budget * d);  // the rows kept so far
  std::vector<double> row(d);
  Picks picks;
  for (std::size_t from = 0; from < order.size() && picks.rows.size() < budget;
       from += kGreedyRows) {
    const std::size_t n = std::min(kGreedyRows, order.size() - from);
    const auto candidates = order.subspan(from, n);
    const PackedRows packed = gather(rows, candidates);
    const std::size_t ld = packed.n_groups() * 16;

    // The largest product of each candidate with the rows kept before this block.
    std::vector<float> nearest(ld, -std::numeric_limits<float>::infinity());
    if (const std::size_t n_kept = picks.rows.size(); n_kept > 0) {
      const Rows before = dense(kept.data(), n_kept, d);
      std::vector<std::vector<float>> partial(static_cast<std::size_t>(n_threads), nearest);
      for_each_block(before, packed, n_threads,
                     [&](std::size_t begin, std::size_t end, const float* products,
                         std::size_t width, int thread) {
                       auto& largest = partial[static_cast<std::size_t>(thread)];
                       for (std::size_t i = begin; i < end; ++i) {
                         const float* product = products + (i - begin) * width;
                         for (std::size_t j = 0; j < width; ++j) {
                           largest[j] = std::max(largest[j], product[j]);
                         }
                       }
                     });
      for (const auto& largest : partial) {
        for (std::size_t j = 0; j < n; ++j) nearest[j] = std::max(nearest[j], largest[j]);
      }
    }

    // Inside the block, one after the other.
    std::vector<float> block(n * d);
    for (std::size_t j = 0; j < n; ++j) {
      rows.load(static_cast<std::size_t>(candidates[j]), row.data());
      std::copy(row.begin(), row.end(), block.begin() + static_cast<std::ptrdiff_t>(j * d));
    }
    std::vector<float> products(n * ld);
    dots(dense(block.data(), n, d), 0, n, packed, products.data(), ld, n_threads);
    for (std::size_t j = 0; j < n && picks.rows.size() < budget; ++j) {
      if (static_cast<double>(nearest[j]) > threshold) continue;
      std::copy_n(block.begin() + static_cast<std::ptrdiff_t>(j * d), d,
                  kept.begin() + static_cast<std::ptrdiff_t>(picks.rows.size() * d));
      picks.rows.push_back(candidates[j]);
      picks.values.push_back(static_cast<double>(nearest[j]));
      for (std::size_t i = j + 1; i < n; ++i) {
        nearest[i] = std::max(nearest[i], products[j * ld + i]);
      }
    }
    check_interrupt();
  }
  return picks;
}

std::vector<double> neighbor_distances(const Rows& rows, const Rows& reference,
                                       std::span<const std::int64_t> reference_rows,
                                       std::size_t n_neighbors, const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  // The largest products of each row, descending.
  std::vector<float> largest(rows.size() * n_neighbors, -std::numeric_limits<float>::infinity());
  for (std::size_t from = 0; from < reference.size(); from += kPanelRows) {
    const std::size_t n = std::min(kPanelRows, reference.size() - from);
    const PackedRows panel(reference, from, from + n);
    for_each_block(
        rows, panel, n_threads,
        [&](std::size_t begin, std::size_t end, const float* products, std::size_t ld, int) {
          for (std::size_t i = begin; i < end; ++i) {
            float* top = largest.data() + i * n_neighbors;
            const float* row = products + (i - begin) * ld;
            for (std::size_t j = 0; j < n; ++j) {
              if (row[j] <= top[n_neighbors - 1]) continue;
              if (reference_rows[from + j] == static_cast<std::int64_t>(i)) continue;
              std::size_t rank = n_neighbors - 1;
              for (; rank > 0 && top[rank - 1] < row[j]; --rank) top[rank] = top[rank - 1];
              top[rank] = row[j];
            }
          }
        });
    check_interrupt();
  }
  std::vector<double> sums(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t k = 0; k < n_neighbors; ++k) {
      sums[i] += std::max(0.0, 1.0 - static_cast<double>(largest[i * n_neighbors + k]));
    }
  }
  return sums;
}

}  // namespace pyids
