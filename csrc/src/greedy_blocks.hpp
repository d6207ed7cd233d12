// What the greedy selections share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "pyids/distance.hpp"
#include "pyids/parallel.hpp"

namespace pyids {

inline constexpr std::size_t kGreedyRows = 256;
inline constexpr std::size_t kPanelRows = 512;
inline constexpr double kFar = std::numeric_limits<double>::infinity();

inline std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

inline PackedRows gather(const Rows& rows, std::span<const std::int64_t> ids) {
  std::vector<double> values(ids.size() * rows.n_cols());
  for (std::size_t j = 0; j < ids.size(); ++j) {
    rows.load(static_cast<std::size_t>(ids[j]), values.data() + j * rows.n_cols());
  }
  return PackedRows(values.data(), ids.size(), rows.n_cols());
}

inline Rows dense(const float* values, std::size_t n, std::size_t d) {
  return Rows({Matrix{values, n, d, static_cast<std::ptrdiff_t>(d * sizeof(float)), Scalar::f32}});
}

// Calls consume(begin, end, products, ld) for blocks of rows, on several threads, where
// products[(i - begin) * ld + j] = row i . other j.
template <class Consume>
inline void for_each_block(const Rows& rows, const PackedRows& others, int n_threads,
                           Consume consume) {
  const std::size_t ld = others.n_groups() * 16;
  std::vector<std::vector<float>> buffers(static_cast<std::size_t>(n_threads));
  parallel_blocks(ceil_div(rows.size(), kGreedyRows), n_threads,
                  [&](std::size_t block, int thread) {
                    auto& buffer = buffers[static_cast<std::size_t>(thread)];
                    buffer.resize(kGreedyRows * ld);
                    const std::size_t begin = block * kGreedyRows;
                    const std::size_t end = std::min(rows.size(), begin + kGreedyRows);
                    dots(rows, begin, end, others, buffer.data(), ld, 1);
                    consume(begin, end, static_cast<const float*>(buffer.data()), ld, thread);
                  });
}

}  // namespace pyids
