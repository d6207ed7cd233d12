// The rows of a draw, read one value at a time.
//
// The arrays belong to the caller, and another thread may write them meanwhile. So whatever indexes
// memory, or decides an order, is read once, checked, and kept; what is read twice may differ. A
// draw that notices throws; none leaves the arrays.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <variant>

#include "pyids/parallel.hpp"
#include "pyids/sampling.hpp"

namespace pyids {

inline constexpr std::size_t block_rows = 2048;
inline constexpr double infinity = std::numeric_limits<double>::infinity();
inline constexpr SampleKey lowest_key{-infinity, 0};

// Reads memory exactly once.
template <class T>
T once(const T* from) {
  T value;
  __atomic_load(from, &value, __ATOMIC_RELAXED);
  return value;
}

inline std::int64_t row_id(const SampleRows& rows, std::size_t row) {
  return rows.row_ids ? once(rows.row_ids + row) : static_cast<std::int64_t>(row);
}

// A label out of range is one that is too large.
inline std::uint32_t label_of(const SampleRows& rows, std::size_t row) {
  return static_cast<std::uint32_t>(once(rows.labels + row));
}

// Calls use(weight) with a function from row to weight as double.
template <class Use>
auto with_weights(const SampleRows& rows, const Use& use) {
  if (auto values = std::get_if<const float*>(&rows.weights)) {
    return use([data = *values](std::size_t row) -> double { return once(data + row); });
  }
  if (auto values = std::get_if<const double*>(&rows.weights)) {
    return use([data = *values](std::size_t row) { return once(data + row); });
  }
  return use([w = rows.log_weights ? 0.0 : 1.0](std::size_t) { return w; });
}

inline double weight(const SampleRows& rows, std::size_t row) {
  return with_weights(rows, [row](auto weight_of) { return weight_of(row); });
}

// Whether a row of this weight is good.
inline bool good_weight(double w, bool is_log) {
  return is_log ? w < infinity : w >= 0 && w < infinity;
}
// Whether it can be drawn, if it is good.
inline bool has_weight(double w, bool is_log) { return is_log ? w > -infinity : w > 0; }

// Asks for what will be read soon: the hardware's own prefetching stops at every page. An address
// behind the array does no harm, and a test for it takes the gain away.
template <class T>
void prefetch_ahead(const T* values, std::size_t row) {
  const auto address = reinterpret_cast<std::uintptr_t>(values) + (row + 512) * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(address));
}

inline void prefetch_ahead(const SampleRows& rows, std::size_t row) {
  prefetch_ahead(rows.labels, row);
  if (auto values = std::get_if<const float*>(&rows.weights)) prefetch_ahead(*values, row);
  if (auto values = std::get_if<const double*>(&rows.weights)) prefetch_ahead(*values, row);
}

// At least e^x and at most 1.07 e^x for x in [-100, 1]; outside, that of the nearer end, -100 for
// NaN. The mantissa's linear interpolation between powers of two lies above the exponential.
inline double exp_above(double x) {
  constexpr double log2_e = 0x1.71547652b82fep0;
  const double y = std::min(1.0, std::max(-100.0, x)) * log2_e + (1023 + 1e-6);
  return std::bit_cast<double>(static_cast<std::int64_t>(y * 0x1p52));
}

SampleKey key_of(const SampleRows& rows, std::uint64_t seed, std::size_t row);

// Calls body(begin, end, thread) for blocks of at most block_rows rows.
template <class Body>
void for_blocks(const SampleRows& rows, int n_threads, const Body& body) {
  const std::size_t n_blocks = (rows.size + block_rows - 1) / block_rows;
  parallel_blocks(n_blocks, n_threads, [&](std::size_t block, int thread) {
    const std::size_t begin = block * block_rows;
    body(begin, std::min(begin + block_rows, rows.size), thread);
  });
}

// Which rows of a block are excluded. Empty: none.
class Exclusions {
 public:
  explicit Exclusions(const SampleRows& rows) : rows_(rows) {}
  std::span<const bool> of_block(std::size_t begin, std::size_t end);

 private:
  const SampleRows& rows_;
  std::array<bool, block_rows> flags_;
};

// Of a label or a weight.
[[noreturn]] void throw_bad_row(const SampleRows& rows, std::size_t n_clusters, std::size_t row);
// Of a row that was good before.
[[noreturn]] void throw_changed();
// Throws if two rows have the same id.
void check_row_ids(const SampleRows& rows);

}  // namespace pyids
