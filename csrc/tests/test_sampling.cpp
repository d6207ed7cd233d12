// The sampler against a sort of all keys, for every instruction set and number of threads.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../src/sampling_kernels.hpp"
#include "pyids/rng.hpp"
#include "pyids/sampling.hpp"

namespace {

using pyids::SimdLevel;
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double largest = std::numeric_limits<double>::max();

void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

std::vector<SimdLevel> levels() {
  std::vector<SimdLevel> found{SimdLevel::portable};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) found.push_back(SimdLevel::avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(SimdLevel::avx512);
  }
#endif
  return found;
}

double random_uniform(std::uint64_t i) {
  return pyids::uniform(pyids::random_bits(77, pyids::Stream::seeding, i));
}

// ---- kernels
// -------------------------------------------------------------------------------------

void test_filters_pass_the_rows_below_their_limits() {
  for (const auto level : levels()) {
    const auto& kernels = pyids::sampling_kernels(level);
    for (const std::size_t n : {0, 1, 7, 8, 9, 1000}) {
      for (const bool given_ids : {false, true}) {
        const std::int64_t first_id = (std::int64_t{1} << 32) - 5;  // the high word changes
        std::vector<std::int64_t> ids(n);
        std::vector<double> limits(n);
        for (std::size_t i = 0; i < n; ++i) {
          ids[i] = given_ids ? static_cast<std::int64_t>(i * 0x9E3779B97F4A7C15u)
                             : first_id + static_cast<std::int64_t>(i);
          limits[i] = i % 5 == 0 ? std::nan("") : random_uniform(i) * 0x1p32;
        }
        std::vector<std::uint32_t> rows(n + pyids::filter_slack), expected_rows;
        std::vector<std::uint64_t> bits(n + pyids::filter_slack), expected_bits;
        for (std::size_t i = 0; i < n; ++i) {
          const auto x =
              pyids::random_bits(5, pyids::Stream::sampling, static_cast<std::uint64_t>(ids[i]));
          if (!(static_cast<double>(x >> 32) <= limits[i])) continue;
          expected_rows.push_back(static_cast<std::uint32_t>(i));
          expected_bits.push_back(x);
        }
        const std::size_t count = kernels.filter_rows(5, given_ids ? ids.data() : nullptr, first_id,
                                                      limits.data(), n, rows.data(), bits.data());
        rows.resize(count);
        bits.resize(count);
        check(rows == expected_rows && bits == expected_bits, "filter_rows");
      }
    }
  }
}

void test_keys_do_not_depend_on_the_level() {
  std::vector<std::uint64_t> bits{0, 1, ~std::uint64_t{0}, std::uint64_t{1} << 62};
  std::vector<double> weights{1, 5e-324, largest, 0.75};
  for (std::size_t i = 0; i < 1001; ++i) {
    bits.push_back(pyids::random_bits(1, pyids::Stream::seeding, i));
    weights.push_back(std::ldexp(random_uniform(i), static_cast<int>(i % 2000) - 1000));
  }
  const std::size_t n = bits.size();
  for (const auto level : levels()) {
    std::vector<double> high(n), low(n);
    for (const bool log_weights : {false, true}) {
      pyids::sampling_kernels(level).make_keys(bits.data(), weights.data(), log_weights, n,
                                               high.data(), low.data());
      for (std::size_t i = 0; i < n; ++i) {
        const double log_weight = log_weights ? weights[i] : pyids::portable_log(weights[i]);
        const double gumbel = -pyids::portable_log(pyids::exponential(pyids::uniform(bits[i])));
        check(std::isfinite(gumbel), "noise is finite");
        check(high[i] == log_weight + gumbel, "make_keys: high");
        check(std::fabs(low[i]) <= std::fabs(high[i]) * 0x1p-53, "make_keys: low");
      }
    }
  }
}

// ---- draws
// ---------------------------------------------------------------------------------------

struct Pool {
  std::vector<std::int32_t> labels;
  std::vector<std::int64_t> row_ids;
  std::vector<double> weights;
  std::vector<std::int64_t> quotas;
  bool log_weights = false;

  pyids::SampleRows rows() const {
    pyids::SampleRows rows;
    rows.size = labels.size();
    rows.labels = labels.data();
    if (!row_ids.empty()) rows.row_ids = row_ids.data();
    rows.weights = weights.data();
    rows.log_weights = log_weights;
    return rows;
  }

  std::int64_t row_id(std::size_t row) const {
    return row_ids.empty() ? static_cast<std::int64_t>(row) : row_ids[row];
  }
};

// Sorts the keys of all rows.
std::vector<std::int64_t> draw_by_sorting(const Pool& pool, std::uint64_t seed) {
  using Entry = std::tuple<pyids::SampleKey, std::int64_t>;
  std::vector<std::vector<Entry>> clusters(pool.quotas.size());
  for (std::size_t row = 0; row < pool.labels.size(); ++row) {
    const double w = pool.weights[row];
    if (w == (pool.log_weights ? -infinity : 0)) continue;
    const auto key =
        pyids::sample_key(seed, pool.row_id(row), pool.log_weights ? w : pyids::portable_log(w));
    clusters[static_cast<std::size_t>(pool.labels[row])].emplace_back(key, pool.row_id(row));
  }
  std::vector<std::int64_t> drawn;
  for (std::size_t c = 0; c < clusters.size(); ++c) {
    std::ranges::sort(clusters[c], [](const Entry& a, const Entry& b) {
      if (std::get<0>(a) != std::get<0>(b)) return std::get<0>(a) > std::get<0>(b);
      return std::get<1>(a) < std::get<1>(b);
    });
    for (std::size_t i = 0; i < static_cast<std::size_t>(pool.quotas[c]); ++i) {
      drawn.push_back(std::get<1>(clusters[c][i]));
    }
  }
  std::ranges::sort(drawn);
  return drawn;
}

enum class Weights { equal, log_normal, two_values, heavy_tail, growing, huge_logs };

Pool make_pool(std::size_t n, std::size_t n_clusters, double share, Weights kind, bool given_ids) {
  Pool pool;
  pool.log_weights = kind == Weights::huge_logs;
  std::vector<std::int64_t> drawable(n_clusters);
  for (std::size_t row = 0; row < n; ++row) {
    const double u = random_uniform(3 * row), v = random_uniform(3 * row + 1);
    const auto c =
        static_cast<std::size_t>(random_uniform(3 * row + 2) * static_cast<double>(n_clusters));
    double w = 1;
    if (kind == Weights::log_normal) w = std::exp(std::sqrt(-2 * std::log(u)) * std::cos(6.28 * v));
    if (kind == Weights::two_values) w = u < 0.05 ? 100 : 1;  // the guess is too high here
    if (kind == Weights::heavy_tail) w = std::pow(u, -3.0);
    if (kind == Weights::growing) w = 1e-300 * static_cast<double>(row);  // starts with zero
    if (kind == Weights::huge_logs) w = v < 0.3 ? -infinity : (v < 0.6 ? 1e300 : -largest);
    pool.labels.push_back(static_cast<std::int32_t>(c));
    pool.weights.push_back(w);
    drawable[c] += w != (pool.log_weights ? -infinity : 0);
    // An odd factor permutes the 64-bit numbers.
    if (given_ids) pool.row_ids.push_back(static_cast<std::int64_t>(row * 0x9E3779B97F4A7C15u));
  }
  for (const auto count : drawable) {
    pool.quotas.push_back(static_cast<std::int64_t>(std::ceil(share * static_cast<double>(count))));
  }
  return pool;
}

void test_draws_are_those_of_sorting() {
  for (const auto kind : {Weights::equal, Weights::log_normal, Weights::two_values,
                          Weights::heavy_tail, Weights::growing, Weights::huge_logs}) {
    for (const double share : {0.01, 0.1, 0.5, 1.0}) {
      for (const bool given_ids : {false, true}) {
        const Pool pool = make_pool(9000, 5, share, kind, given_ids);
        const auto expected = draw_by_sorting(pool, 12);
        for (const int n_threads : {1, 3}) {
          const auto sample =
              pyids::sample_by_cluster(pool.rows(), pool.quotas, {12, n_threads, false, true});
          check(sample.row_ids == expected, "the rows of a draw");
          check(sample.keys.size() == expected.size(), "one key a row");
          check(sample.labels.size() == expected.size(), "one label a row");
        }
      }
    }
  }
}

void test_many_clusters_and_none() {
  const Pool pool = make_pool(5000, 3000, 0.5, Weights::log_normal, false);
  const auto sample = pyids::sample_by_cluster(pool.rows(), pool.quotas, {1, 2, false, false});
  check(sample.row_ids == draw_by_sorting(pool, 1), "more clusters than most have rows");
  check(sample.keys.empty(), "no keys unless asked for");
  const Pool empty;
  check(pyids::sample_by_cluster(empty.rows(), empty.quotas, {}).row_ids.empty(), "nothing");
}

void test_excluded_rows_are_not_drawn() {
  for (const bool given_ids : {false, true}) {
    Pool pool = make_pool(9000, 5, 0.2, Weights::log_normal, given_ids);
    std::vector<std::int64_t> ids;
    std::vector<char> mask(9000);  // a bool is a char here
    Pool rest = pool;
    for (std::size_t row = 0; row < 9000; row += 3) {
      ids.push_back(pool.row_id(row));
      mask[row] = 1;
      rest.weights[row] = 0;
    }
    std::ranges::sort(ids);
    const auto expected = draw_by_sorting(rest, 4);
    auto rows = pool.rows();
    rows.excluded_ids = ids;
    check(pyids::sample_by_cluster(rows, pool.quotas, {4, 2}).row_ids == expected, "excluded ids");
    rows.excluded_ids = {};
    rows.excluded = reinterpret_cast<const bool*>(mask.data());
    check(pyids::sample_by_cluster(rows, pool.quotas, {4, 2}).row_ids == expected, "mask");
  }
}

void test_shards_merge_into_the_whole_draw() {
  const Pool pool = make_pool(9000, 5, 0.2, Weights::huge_logs, true);
  pyids::Sample parts;
  for (const std::size_t begin : {0, 1000, 5000}) {
    auto shard = pool.rows();
    shard.labels += begin;
    shard.row_ids += begin;
    shard.weights = pool.weights.data() + begin;
    shard.size = begin == 0 ? 1000 : 4000;
    const auto part = pyids::sample_by_cluster(shard, pool.quotas, {3, 1, true, true});
    parts.row_ids.insert(parts.row_ids.end(), part.row_ids.begin(), part.row_ids.end());
    parts.labels.insert(parts.labels.end(), part.labels.begin(), part.labels.end());
    parts.keys.insert(parts.keys.end(), part.keys.begin(), part.keys.end());
  }
  std::vector<std::int64_t> merged;
  for (const auto i : pyids::best_keys(parts.row_ids, parts.labels, parts.keys, pool.quotas)) {
    merged.push_back(parts.row_ids[static_cast<std::size_t>(i)]);
  }
  std::ranges::sort(merged);
  check(merged == draw_by_sorting(pool, 3), "merged shards");
}

void expect_error(const Pool& pool, const std::string& message) {
  try {
    pyids::sample_by_cluster(pool.rows(), pool.quotas, {0, 2});
  } catch (const std::invalid_argument& error) {
    check(std::string(error.what()).find(message) != std::string::npos, error.what());
    return;
  }
  check(false, message.c_str());
}

void test_errors() {
  const Pool good = make_pool(20000, 3, 0.1, Weights::equal, false);
  Pool pool = good;
  pool.labels[15000] = 3;
  expect_error(pool, "labels[15000] is 3");
  pool.labels[100] = -1;
  expect_error(pool, "labels[100] is -1");
  pool = good;
  pool.weights[9999] = std::nan("");
  pool.weights[19999] = -1;
  expect_error(pool, "weights[9999] is nan");
  pool = good;
  pool.quotas[1] = 20001;
  expect_error(pool, "quotas[1] is 20001, but cluster 1 has only");
  pool.quotas[0] = -1;
  expect_error(pool, "quotas[0] is -1");
}

}  // namespace

int main() {
  test_filters_pass_the_rows_below_their_limits();
  test_keys_do_not_depend_on_the_level();
  test_draws_are_those_of_sorting();
  test_many_clusters_and_none();
  test_excluded_rows_are_not_drawn();
  test_shards_merge_into_the_whole_draw();
  test_errors();
  return 0;
}
