#include "sampling_rows.hpp"

#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "pyids/rng.hpp"

namespace pyids {
namespace {

// Knuth's TwoSum: high + low is the sum exactly.
SampleKey add(double a, double b) {
  const double high = a + b;
  const double b_part = high - a;
  return {high, (a - (high - b_part)) + (b - b_part)};
}

}  // namespace

SampleKey sample_key(std::uint64_t seed, std::int64_t row_id, double log_weight) {
  const auto bits = random_bits(seed, Stream::sampling, static_cast<std::uint64_t>(row_id));
  return add(log_weight, -portable_log(exponential(uniform(bits))));
}

SampleKey key_of(const SampleRows& rows, std::uint64_t seed, std::size_t row) {
  const double w = weight(rows, row);
  return sample_key(seed, row_id(rows, row), rows.log_weights ? w : portable_log(w));
}

std::span<const bool> Exclusions::of_block(std::size_t begin, std::size_t end) {
  if (rows_.excluded) return {rows_.excluded + begin, end - begin};
  if (rows_.excluded_ids.empty()) return {};
  flags_.fill(false);
  const auto& ids = rows_.excluded_ids;
  if (!rows_.row_ids) {
    auto id = std::ranges::lower_bound(ids, static_cast<std::int64_t>(begin));
    for (; id != ids.end(); ++id) {
      const std::int64_t at = once(&*id);
      if (at >= static_cast<std::int64_t>(end)) break;
      if (at >= static_cast<std::int64_t>(begin))
        flags_[static_cast<std::size_t>(at) - begin] = true;
    }
    return {flags_.data(), end - begin};
  }
  const std::span<const std::int64_t> here{rows_.row_ids + begin, end - begin};
  if (std::ranges::is_sorted(here)) {
    auto id = std::ranges::lower_bound(ids, here.front());
    for (std::size_t i = 0; i < here.size() && id != ids.end(); ++i) {
      while (id != ids.end() && *id < here[i]) ++id;
      flags_[i] = id != ids.end() && *id == here[i];
    }
  } else {
    for (std::size_t i = 0; i < here.size(); ++i) {
      flags_[i] = std::ranges::binary_search(ids, here[i]);
    }
  }
  return {flags_.data(), end - begin};
}

void throw_bad_row(const SampleRows& rows, std::size_t n_clusters, std::size_t row) {
  const std::uint32_t label = label_of(rows, row);
  const double w = weight(rows, row);
  const std::string place = "[" + std::to_string(row) + "] is ";
  if (label >= n_clusters) {
    throw std::invalid_argument(
        "labels" + place + std::to_string(static_cast<std::int32_t>(label)) + ": " +
        (n_clusters == 0 ? "there is no cluster, as quotas is empty"
                         : "must lie in [0, " + std::to_string(n_clusters) + ")"));
  }
  if (good_weight(w, rows.log_weights)) throw_changed();
  char value[32];
  std::snprintf(value, sizeof value, "%g", w);
  throw std::invalid_argument(
      rows.log_weights ? "log_weights" + place + value + ": must be finite or -inf"
                       : "weights" + place + value + ": must be finite and not negative");
}

void throw_changed() {
  throw std::invalid_argument(
      "labels, weights, row_ids or exclude were changed by another thread during the draw: "
      "give it a copy");
}

void check_row_ids(const SampleRows& rows) {
  const auto twice = [](std::int64_t id) {
    throw std::invalid_argument("row_ids has " + std::to_string(id) +
                                " twice: row ids must be distinct");
  };
  // A copy, as another thread may write the original.
  std::vector<std::int64_t> ids(rows.size);
  for (std::size_t i = 0; i < rows.size; ++i) ids[i] = once(rows.row_ids + i);
  const auto [least, most] = std::ranges::minmax_element(ids);
  const auto span = static_cast<std::uint64_t>(*most) - static_cast<std::uint64_t>(*least);
  if (span / 64 < rows.size) {  // one bit a number is less than the copy
    std::vector<std::uint64_t> seen(span / 64 + 1);
    const auto first = static_cast<std::uint64_t>(*least);
    for (const std::int64_t id : ids) {
      const std::uint64_t at = static_cast<std::uint64_t>(id) - first;
      if ((seen[at / 64] >> at % 64 & 1) != 0) twice(id);
      seen[at / 64] |= std::uint64_t{1} << at % 64;
    }
    return;
  }
  std::ranges::sort(ids);
  const auto pair = std::ranges::adjacent_find(ids);
  if (pair != ids.end()) twice(*pair);
}

}  // namespace pyids
