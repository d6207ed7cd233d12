// Every instruction set's kernels against plain loops, and whole assignments against brute force.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pyids/codes.hpp"
#include "pyids/distance.hpp"
#include "pyids/kmeans.hpp"
#include "pyids/seeding.hpp"
#include "pyids/simd.hpp"

namespace {

using namespace pyids;

void check(bool condition, const char* what, const char* where = "") {
  if (condition) return;
  std::fprintf(stderr, "failed: %s %s\n", what, where);
  std::exit(1);
}

std::vector<float> random_values(std::size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& v : values) v = normal(generator);
  return values;
}

Rows view(const std::vector<float>& values, std::size_t n, std::size_t d) {
  return Rows(
      {Matrix{values.data(), n, d, static_cast<std::ptrdiff_t>(d * sizeof(float)), Scalar::f32}});
}

std::vector<SimdLevel> levels() {
  std::vector<SimdLevel> found = {SimdLevel::portable};
  // Everything below the chosen level runs here as well.
  for (SimdLevel level : {SimdLevel::avx2, SimdLevel::avx512, SimdLevel::amx}) {
    if (level <= simd_level()) found.push_back(level);
  }
  return found;
}

// Distances and sums: the same bits at every level.
void test_levels_agree() {
  for (std::size_t d : {1u, 7u, 8u, 16u, 17u, 100u, 384u}) {
    const std::vector<float> a = random_values(d, 1), b = random_values(d, 2);
    const std::vector<double> x(a.begin(), a.end()), y(b.begin(), b.end());
    const std::vector<double> scales(d, 0x1p30);
    const Kernels& plain = kernels(SimdLevel::portable);
    double naive = 0;
    for (std::size_t t = 0; t < d; ++t) naive += (x[t] - y[t]) * (x[t] - y[t]);
    const double expected = plain.squared_distance(x.data(), y.data(), d);
    check(std::fabs(expected - naive) <= 1e-14 * naive, "squared_distance is one");
    std::vector<std::int64_t> sums(d);
    plain.add_fixed(x.data(), scales.data(), d, 1, sums.data());
    for (std::size_t t = 0; t < d; ++t) {
      check(sums[t] == std::llrint(x[t] * scales[t]), "add_fixed rounds to nearest");
    }
    for (SimdLevel level : levels()) {
      const Kernels& k = kernels(level);
      check(k.squared_distance(x.data(), y.data(), d) == expected, "squared_distance",
            simd_name(level));
      check(k.squared_distance_f32(x.data(), b.data(), d) == expected, "squared_distance_f32",
            simd_name(level));
      std::vector<std::int64_t> others = sums;
      k.add_fixed(x.data(), scales.data(), d, -1, others.data());
      for (std::int64_t sum : others) check(sum == 0, "add_fixed", simd_name(level));
    }
  }
}

// All 65536 halves, with and without the instruction.
void test_halves() {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  std::vector<double> expected(halves.size()), got(halves.size());
  kernels(SimdLevel::portable).widen(halves.data(), Scalar::f16, halves.size(), 1, expected.data());
  check(expected[0x3c00] == 1 && expected[1] == 0x1p-24 && expected[0xfbff] == -65504, "halves");
  for (SimdLevel level : levels()) {
    kernels(level).widen(halves.data(), Scalar::f16, halves.size(), 1, got.data());
    for (std::size_t i = 0; i < halves.size(); ++i) {
      check(got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i])), "widen",
            simd_name(level));
    }
  }
}

// A code must not be farther from its row than it says, and no product may be off by more than the
// bound: the certificate that everything rests on.
void test_codes_keep_their_promise() {
  for (std::size_t d : {1u, 33u, 64u, 100u, 385u}) {
    for (float magnitude : {1e-15f, 1.0f, 1e15f}) {
      std::vector<float> x = random_values(d, static_cast<unsigned>(d));
      for (float& v : x) v *= magnitude;
      const std::size_t padded = (d + 63) / 64 * 64;
      for (SimdLevel level : levels()) {
        std::vector<std::uint8_t> code(padded);
        const CodeInfo info = kernels(level).encode(x.data(), d, padded, 63, 64, code.data());
        double rest = 0, length = 0;
        for (std::size_t t = 0; t < padded; ++t) {
          const double coded = static_cast<double>(info.unit) * (code[t] - 64);
          const double difference = (t < d ? x[t] : 0.0) - coded;
          rest += difference * difference;
          length += coded * coded;
        }
        check(std::sqrt(rest) <= info.rest, "rest", simd_name(level));
        check(std::sqrt(length) <= info.length, "length", simd_name(level));
      }
    }
  }
}

// The error of a long sum is all of one sign where the terms are equal.
void test_long_squares() {
  for (std::size_t d : {1u, 300u, 8192u, 65536u, 200003u}) {
    for (int i = 0; i < 64; ++i) {
      const float value = 0.5f + static_cast<float>(i) * 0.0078f;
      const std::vector<float> x(d, value);
      const double exact = static_cast<double>(value) * value * static_cast<double>(d);
      for (SimdLevel level : levels()) {
        const double got = kernels(level).square_f32(x.data(), d);
        check(std::fabs(got - exact) <= kSquareError * exact, "square_f32", simd_name(level));
      }
    }
  }
}

void brute_force(const Rows& rows, const std::vector<double>& centers,
                 std::vector<std::int32_t>& labels) {
  const std::size_t d = rows.n_cols(), k = centers.size() / d;
  std::vector<double> row(d);
  labels.resize(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows.load(i, row.data());
    double best = std::numeric_limits<double>::infinity();
    for (std::size_t j = 0; j < k; ++j) {
      const double distance = squared_distance(row.data(), centers.data() + j * d, d);
      if (distance < best) {
        best = distance;
        labels[i] = static_cast<std::int32_t>(j);
      }
    }
  }
}

// Several threads, kept and unkept codes: always the brute-force labels.
void test_assignments() {
  const std::size_t n = 1500, d = 70, k = 37;
  const std::vector<float> x = random_values(n * d, 3);
  const Rows rows = view(x, n, d);
  const FixedScale scale(largest_values(rows, 2), 1, n);
  for (std::size_t memory : {std::size_t{0}, std::size_t{1} << 30}) {
    LloydOptions options;
    options.n_threads = 3;
    options.max_memory_bytes = memory;
    Assigner assigner(rows, {}, scale, k, options);
    std::vector<double> centers(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(k * d));
    std::vector<std::int32_t> expected;
    for (int iteration = 0; iteration < 12; ++iteration) {
      assigner.assign(centers.data());
      brute_force(rows, centers, expected);
      check(assigner.labels() == expected, "labels are those of brute force");
      update_centers(assigner.sums().data(), assigner.mass().data(), scale, k, false, false,
                     centers.data());
    }
    check(assigner.inertia(40) > 0, "inertia");
    check(assigner.farthest(5).size() == 5, "farthest");
  }
}

// Rows and centers whose scaled squares neither float32 nor, with the scale squared, float64 holds.
void test_extreme_magnitudes() {
  const std::size_t n = 300, d = 70, k = 5;
  const std::vector<float> x = random_values(n * d, 5);
  const Rows plain = view(x, n, d);
  for (double magnitude : {1e-200, 1e-160, 1e-100, 1e100, 1e149}) {
    std::vector<double> wide(x.begin(), x.end());
    for (double& v : wide) v *= magnitude;
    const Rows rows(
        {Matrix{wide.data(), n, d, static_cast<std::ptrdiff_t>(d * sizeof(double)), Scalar::f64}});
    std::vector<double> near(wide.begin(), wide.begin() + static_cast<std::ptrdiff_t>(k * d));
    std::vector<double> far = near, one_near = near;
    for (double& v : far) v = v / magnitude * 1e100;
    std::copy(far.begin() + static_cast<std::ptrdiff_t>(d), far.end(),
              one_near.begin() + static_cast<std::ptrdiff_t>(d));
    for (const Rows* some : {&rows, &plain}) {
      Assigner assigner(*some, {}, FixedScale(largest_values(*some, 1), 1, n), k, {});
      std::vector<std::int32_t> expected;
      for (const auto* centers : {&near, &far, &one_near}) {
        assigner.assign(centers->data());
        brute_force(*some, *centers, expected);
        check(assigner.labels() == expected, "labels of extreme magnitudes");
      }
    }
  }
}

// Iterations over distances that float64 rounds coarsely, or to nothing.
void test_vanishing_distances() {
  const std::size_t n = 300, k = 7;
  for (std::size_t d : {4u, 40u}) {
    const std::vector<float> x = random_values(n * d, 7);
    for (int exponent = -420; exponent >= -560; exponent -= 10) {
      std::vector<double> wide(x.begin(), x.end());
      for (double& v : wide) v = std::ldexp(v, exponent);
      const Rows rows({Matrix{wide.data(), n, d, static_cast<std::ptrdiff_t>(d * sizeof(double)),
                              Scalar::f64}});
      const FixedScale scale(largest_values(rows, 1), 1, n);
      std::vector<double> centers(wide.begin(), wide.begin() + static_cast<std::ptrdiff_t>(k * d));
      Assigner assigner(rows, {}, scale, k, {});
      std::vector<std::int32_t> expected;
      for (int iteration = 0; iteration < 15; ++iteration) {
        assigner.assign(centers.data());
        brute_force(rows, centers, expected);
        check(assigner.labels() == expected, "labels of vanishing distances");
        update_centers(assigner.sums().data(), assigner.mass().data(), scale, k, true, false,
                       centers.data());
      }
    }
  }
}

// Products of int8 codes of so many columns would overflow.
void test_many_columns() {
  const std::size_t n = 8, d = 140000;
  check(!Coding::int8_pays(d), "int8 codes of many columns");
  std::vector<float> x(n * d, 1);
  for (std::size_t i = 1; i < n; i += 2) std::fill_n(x.begin() + static_cast<long>(i * d), d, -1);
  const Rows rows = view(x, n, d);
  std::vector<double> centers(3 * d, -0.999);
  std::fill_n(centers.begin() + static_cast<long>(d), d, 0.999);
  std::fill_n(centers.begin() + static_cast<long>(2 * d), d, 0.5);
  Assigner assigner(rows, {}, FixedScale(largest_values(rows, 1), 1, n), 3, {});
  assigner.assign(centers.data());
  std::vector<std::int32_t> expected;
  brute_force(rows, centers, expected);
  check(assigner.labels() == expected, "labels of many columns");
}

// Whatever is wrong with them, no label points outside the centers.
void test_what_has_no_nearest_center() {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const std::size_t n = 300, d = 4, k = 3;
  std::vector<float> x = random_values(n * d, 6);
  const Rows rows = view(x, n, d);
  const FixedScale scale(largest_values(rows, 1), 1, n);
  const std::vector<double> start(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(k * d));
  auto refusal = [](Assigner& assigner, const std::vector<double>& centers) -> std::string {
    try {
      assigner.assign(centers.data());
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "none";
  };
  Assigner assigner(rows, {}, scale, k, {});
  assigner.assign(start.data());
  const std::vector<std::int32_t> labels = assigner.labels();
  for (const auto& [value, word] :
       {std::pair{nan, "NaN"}, std::pair{std::numeric_limits<double>::infinity(), "infinity"},
        std::pair{-1e200, "above 1e150 in magnitude"}}) {
    std::vector<double> centers = start;
    centers[2 * d + 1] = value;
    const std::string got = refusal(assigner, centers);
    check(got == std::string("center 2, column 1 is ") + word, got.c_str());
    check(assigner.labels() == labels, "a refusal changes no label");
  }
  x[7 * d] = static_cast<float>(nan);  // after it was measured
  Assigner other(rows, {}, scale, k, {});
  const std::string got = refusal(other, start);
  check(got.starts_with("row 7 has no nearest center"), got.c_str());
}

void test_seeds_do_not_depend_on_threads() {
  const std::size_t n = 3000, d = 40;
  const std::vector<float> x = random_values(n * d, 4);
  const Rows rows = view(x, n, d);
  const auto one = seed_rows(rows, {}, 8, 50, 9, 1);
  check(one.size() == 50, "as many as asked for");
  check(one == seed_rows(rows, {}, 8, 50, 9, 4), "the same for any number of threads");
}

void test_bad_rows() {
  std::vector<float> x = random_values(40, 5);
  x[23] = std::numeric_limits<float>::quiet_NaN();
  try {
    largest_values(view(x, 10, 4), 2);
    check(false, "NaN is refused");
  } catch (const std::invalid_argument& error) {
    check(std::string(error.what()) == "row 5, column 3 is NaN", error.what());
  }
}

}  // namespace

int main() {
  test_levels_agree();
  test_halves();
  test_codes_keep_their_promise();
  test_long_squares();
  test_assignments();
  test_many_columns();
  test_extreme_magnitudes();
  test_vanishing_distances();
  test_what_has_no_nearest_center();
  test_seeds_do_not_depend_on_threads();
  test_bad_rows();
  std::printf("ok at %s\n", simd_name(simd_level()));
}
