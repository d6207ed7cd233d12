#include "pyids/sampling.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "sampling_draw.hpp"

namespace pyids {

const SamplingKernels& sampling_kernels(SimdLevel level) {
#if defined(__x86_64__)
  if (level >= SimdLevel::avx512) return sampling_avx512();
  if (level == SimdLevel::avx2) return sampling_avx2();
#endif
  (void)level;
  return sampling_portable();
}

namespace {

bool ascends(const SampleRows& rows) {
  std::atomic<bool> all{true};
  for_blocks(rows, resolve_threads(0), [&](std::size_t begin, std::size_t end, int) {
    bool good = true;
    // Each with the one before, across the blocks' borders too.
    for (std::size_t i = std::max<std::size_t>(begin, 1); i < end; ++i) {
      good &= once(rows.row_ids + i - 1) < once(rows.row_ids + i);
    }
    if (!good) all = false;
  });
  return all;
}

}  // namespace

Sample sample_by_cluster(const SampleRows& rows, std::span<const std::int64_t> quotas,
                         const SampleOptions& options) {
  if (rows.size > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("2^32 rows or more in one draw: draw shard by shard and merge");
  }
  const bool renumber = rows.row_ids != nullptr && rows.size > 0;
  const bool ordered = !renumber || ascends(rows);
  if (!ordered) check_row_ids(rows);
  std::vector<Drawn> drawn = Draw(rows, quotas, options).draw();
  Sample sample;
  sample.row_ids.reserve(drawn.size());
  for (const Drawn& one : drawn) sample.row_ids.push_back(row_id(rows, one.row));
  if (!ordered) {  // by the ids as they were read once
    std::vector<std::size_t> order(drawn.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::sort(order, {}, [&](std::size_t i) { return sample.row_ids[i]; });
    const auto permute = [&](auto& values) {
      auto before = values;
      for (std::size_t i = 0; i < order.size(); ++i) values[i] = before[order[i]];
    };
    permute(sample.row_ids);
    permute(drawn);
  }
  if (!options.return_keys) return sample;
  for (const Drawn& one : drawn) {
    sample.labels.push_back(static_cast<std::int32_t>(one.cluster));
    sample.keys.push_back(key_of(rows, options.seed, one.row));
  }
  return sample;
}

}  // namespace pyids
