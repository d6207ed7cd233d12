// Draws of shards made into that of the pool.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "pyids/sampling.hpp"

namespace pyids {

std::vector<std::int64_t> best_keys(std::span<const std::int64_t> row_ids,
                                    std::span<const std::int32_t> labels,
                                    std::span<const SampleKey> keys,
                                    std::span<const std::int64_t> quotas) {
  std::vector<std::size_t> starts(quotas.size() + 1);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto label = static_cast<std::uint32_t>(labels[i]);
    if (label >= quotas.size() || std::isnan(keys[i].high) || std::isnan(keys[i].low)) {
      throw std::invalid_argument("row id " + std::to_string(row_ids[i]) + " has the label " +
                                  std::to_string(labels[i]) + " and the key " +
                                  std::to_string(keys[i].high) + " + " +
                                  std::to_string(keys[i].low) + ": labels must lie in [0, " +
                                  std::to_string(quotas.size()) + ") and keys must be numbers");
    }
    ++starts[label + 1];
  }
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  std::vector<std::size_t> grouped(labels.size());
  auto next = starts;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    grouped[next[static_cast<std::size_t>(labels[i])]++] = i;
  }
  std::vector<bool> chosen(labels.size());
  for (std::size_t c = 0; c < quotas.size(); ++c) {
    const std::span<std::size_t> rows{grouped.data() + starts[c], starts[c + 1] - starts[c]};
    const auto n =
        std::min(rows.size(), static_cast<std::size_t>(std::max<std::int64_t>(quotas[c], 0)));
    if (n > 0) {
      std::ranges::nth_element(rows, rows.begin() + static_cast<std::ptrdiff_t>(n) - 1,
                               [&](std::size_t a, std::size_t b) {
                                 if (keys[a] != keys[b]) return keys[a] > keys[b];
                                 return row_ids[a] < row_ids[b];
                               });
    }
    for (const auto row : rows.first(n)) chosen[row] = true;
  }
  std::vector<std::int64_t> positions;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    if (chosen[i]) positions.push_back(static_cast<std::int64_t>(i));
  }
  return positions;
}

}  // namespace pyids
