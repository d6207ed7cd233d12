// NovelSelect.
#include <algorithm>
#include <cmath>
#include <vector>

#include "greedy_blocks.hpp"
#include "pyids/greedy.hpp"
#include "pyids/simd.hpp"

namespace pyids {

Picks novel_select(const Rows& rows, std::size_t budget, std::size_t first,
                   std::span<const double> weights, double proximity, std::size_t horizon,
                   const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  const std::size_t n = rows.size();
  horizon = std::min(horizon, budget);

  struct Near {
    float distance;
    float value;  // weight * distance
  };
  std::vector<Near> near(n * horizon);  // of each row, by rank
  std::vector<double> beyond(n, 0.0);   // sum of the values of the picks beyond the horizon
  std::vector<double> novelty(n, 0.0);
  std::vector<char> picked(n, 0);
  std::vector<double> rank_weight(budget);  // 1 / rank^proximity
  for (std::size_t r = 0; r < budget; ++r) {
    rank_weight[r] = 1 / std::pow(static_cast<double>(r + 1), proximity);
  }

  std::vector<double> center(rows.n_cols());
  Picks picks;
  std::size_t pick = first;
  while (picks.rows.size() < budget) {
    const std::size_t n_before = picks.rows.size();
    picks.rows.push_back(static_cast<std::int64_t>(pick));
    picks.values.push_back(novelty[pick]);
    picked[pick] = 1;
    if (picks.rows.size() == budget) break;

    const double weight = weights[pick];
    double mean_beyond = 0;  // of 1 / rank^proximity over the ranks beyond the horizon
    if (n_before + 1 > horizon) {
      for (std::size_t r = horizon; r <= n_before; ++r) mean_beyond += rank_weight[r];
      mean_beyond /= static_cast<double>(n_before + 1 - horizon);
    }
    rows.load(pick, center.data());
    // The product in float64, so that every instruction set ranks alike.
    parallel_blocks(ceil_div(n, kGreedyRows), n_threads, [&](std::size_t block, int) {
      std::vector<double> row(rows.n_cols());
      const std::size_t begin = block * kGreedyRows, end = std::min(n, begin + kGreedyRows);
      for (std::size_t i = begin; i < end; ++i) {
        Near* list = near.data() + i * horizon;
        rows.load(i, row.data());
        const auto distance = static_cast<float>(
            std::max(0.0, 1.0 - kernels().product(row.data(), center.data(), row.size())));
        Near entry{distance, static_cast<float>(weight * static_cast<double>(distance))};
        std::size_t length = n_before;
        if (n_before >= horizon) {  // full: the farthest drops out
          length = horizon - 1;
          if (entry.distance < list[length].distance) std::swap(entry, list[length]);
          beyond[i] += static_cast<double>(entry.value);
          entry = list[length];
        }
        std::size_t rank = length;
        for (; rank > 0 && list[rank - 1].distance > entry.distance; --rank) {
          list[rank] = list[rank - 1];
        }
        list[rank] = entry;
        double sum = beyond[i] * mean_beyond;
        for (std::size_t r = 0; r <= length; ++r) {
          sum += static_cast<double>(list[r].value) * rank_weight[r];
        }
        novelty[i] = sum;
      }
    });

    std::size_t best = n;
    for (std::size_t i = 0; i < n; ++i) {
      if (!picked[i] && (best == n || novelty[i] > novelty[best])) best = i;
    }
    pick = best;
    check_interrupt();
  }
  return picks;
}

}  // namespace pyids
