// Sums that come out the same however they are grouped, and the means made of them.
#include "pyids/fixed.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "pyids/distance.hpp"
#include "pyids/parallel.hpp"
#include "pyids/simd.hpp"

namespace pyids {

namespace {

constexpr double kLargest = 1e150;  // whose square float64 holds

// Complains of the first of d values that is no number or too large.
[[noreturn]] void refuse(const std::string& name, const double* values, std::size_t d) {
  std::size_t t = 0;
  while (t < d && std::fabs(values[t]) <= kLargest) ++t;
  if (t == d) throw std::invalid_argument(name + " was changed by another thread during the call");
  throw std::invalid_argument(name + ", column " + std::to_string(t) + " is " +
                              (std::isnan(values[t])   ? "NaN"
                               : std::isinf(values[t]) ? "infinity"
                                                       : "above 1e150 in magnitude"));
}

constexpr double kMagic = 0x1.8p52;  // adding it rounds to an integer, in the low bits

}  // namespace

double largest_center_value(const double* centers, std::size_t n, std::size_t d) {
  std::vector<double> largest(d);
  for (std::size_t j = 0; j < n; ++j) {
    const double* center = centers + j * d;
    if (!kernels().raise_magnitudes(center, Scalar::f64, d, 1, 2 * kLargest, largest.data())) {
      refuse("center " + std::to_string(j), center, d);
    }
  }
  return d == 0 ? 0 : *std::max_element(largest.begin(), largest.end());
}

std::vector<double> largest_values(const Rows& rows, int n_threads) {
  const std::size_t d = rows.n_cols();
  const std::size_t n_blocks = (rows.size() + 1023) / 1024;
  std::vector<std::vector<double>> partial(static_cast<std::size_t>(n_threads));
  std::vector<std::size_t> bad(static_cast<std::size_t>(n_threads), rows.size());
  parallel_blocks(n_blocks, n_threads, [&](std::size_t block, int thread) {
    std::vector<double>& largest = partial[static_cast<std::size_t>(thread)];
    largest.resize(d);
    std::size_t& first_bad = bad[static_cast<std::size_t>(thread)];
    for (std::size_t i = block * 1024; i < std::min(rows.size(), (block + 1) * 1024); ++i) {
      if (!rows.raise_magnitudes(i, kLargest, largest.data())) first_bad = std::min(first_bad, i);
    }
  });
  const std::size_t first_bad = *std::min_element(bad.begin(), bad.end());
  if (first_bad < rows.size()) {
    std::vector<double> row(d);
    rows.load(first_bad, row.data());
    refuse("row " + std::to_string(first_bad), row.data(), d);
  }
  std::vector<double> largest(d);
  for (const auto& one : partial) {
    for (std::size_t t = 0; t < one.size(); ++t) largest[t] = std::max(largest[t], one[t]);
  }
  return largest;
}

FixedScale::FixedScale(const std::vector<double>& largest, double largest_weight,
                       std::size_t n_rows, std::vector<int> classes)
    : class_exponents(std::move(classes)) {
  if (!class_exponents.empty()) largest_weight = 1;  // class weights are below it
  // A term below 2^50, so that rounding it by adding 1.5 * 2^52 is exact, and N terms below 2^61.
  const double terms = std::max(0x1p11, static_cast<double>(n_rows));
  auto scale = [&](double value) {
    if (!(value > 0)) return 1.0;
    int exponent = 0;
    std::frexp(value * (terms * 0x1p-61), &exponent);
    return std::ldexp(1.0, std::min(1000, -exponent));
  };
  for (double value : largest) columns.push_back(scale(value * largest_weight));
  mass = scale(largest_weight);
  reach = largest.empty() ? 0 : *std::max_element(largest.begin(), largest.end());
  // What a term leaves is at most half, so 2^finer of it is below 2^61 / terms again.
  int log_terms = 0;
  std::frexp(terms - 1, &log_terms);
  const int finer = 61 - log_terms;
  auto fine = [&](double coarse) {
    int exponent = 0;
    std::frexp(coarse, &exponent);
    return std::ldexp(coarse, std::min(finer, 1020 - exponent));
  };
  for (double column : columns) {
    inverse_columns.push_back(1 / column);
    fine_columns.push_back(fine(column));
  }
  fine_mass = fine(mass);
}

namespace {

void add_rest(double* values, const double* scales, const double* finer, std::size_t n,
              std::int64_t sign, std::int64_t* sums) {
  for (std::size_t t = 0; t < n; ++t) {
    const double whole = (values[t] * scales[t] + kMagic) - kMagic;
    values[t] -= whole * (1 / scales[t]);
  }
  kernels().add_fixed(values, finer, n, sign, sums);
}

}  // namespace

void FixedScale::add(double* row, double weight, std::size_t in_class, std::int64_t sign,
                     std::size_t cluster, std::size_t n_clusters, std::int64_t* sums,
                     std::int64_t* masses) const {
  const std::size_t d = columns.size();
  if (weight != 1.0) {
    for (std::size_t t = 0; t < d; ++t) row[t] *= weight;
  }
  std::size_t at = n_planes() == 1 ? cluster : 2 * in_class * n_clusters + cluster;
  kernels().add_fixed(row, columns.data(), d, sign, sums + at * d);
  kernels().add_fixed(&weight, &mass, 1, sign, masses + at);
  if (n_planes() == 1) return;
  at += n_clusters;
  add_rest(row, columns.data(), fine_columns.data(), d, sign, sums + at * d);
  add_rest(&weight, &mass, &fine_mass, 1, sign, masses + at);
}

double FixedScale::combine(const std::int64_t* sums, const std::int64_t* masses,
                           std::size_t cluster, std::size_t n_clusters, double* sum,
                           int* exponent) const {
  const std::size_t d = columns.size();
  *exponent = 0;
  if (n_planes() == 1) {
    // The scales are powers of two: a product is as exact as the quotient, and faster.
    for (std::size_t t = 0; t < d; ++t) {
      sum[t] = static_cast<double>(sums[cluster * d + t]) * inverse_columns[t];
    }
    return static_cast<double>(masses[cluster]) / mass;
  }
  std::fill(sum, sum + d, 0.0);
  double total = 0;
  for (std::size_t c = 0; c < class_exponents.size(); ++c) {  // the heaviest first
    const std::size_t high = 2 * c * n_clusters + cluster, low = high + n_clusters;
    const double weight =
        static_cast<double>(masses[high]) / mass + static_cast<double>(masses[low]) / fine_mass;
    if (weight == 0) continue;
    if (total == 0) *exponent = class_exponents[c];
    const double relative = std::ldexp(1.0, class_exponents[c] - *exponent);
    total += weight * relative;
    for (std::size_t t = 0; t < d; ++t) {
      const double value = static_cast<double>(sums[high * d + t]) * (1 / columns[t]) +
                           static_cast<double>(sums[low * d + t]) * (1 / fine_columns[t]);
      sum[t] += value * relative;
    }
  }
  return total;
}

double update_centers(const std::int64_t* sums, const std::int64_t* mass, const FixedScale& scale,
                      std::size_t n_clusters, bool wide, bool cosine, double* centers) {
  const std::size_t d = scale.columns.size();
  double moved = 0;
  std::vector<double> sum(d), before(d);
  const std::vector<double> origin(d);
  for (std::size_t j = 0; j < n_clusters; ++j) {
    int exponent = 0;
    const double weight = scale.combine(sums, mass, j, n_clusters, sum.data(), &exponent);
    if (!(weight > 0)) continue;
    double* center = centers + j * d;
    std::copy(center, center + d, before.begin());
    for (std::size_t t = 0; t < d; ++t) center[t] = sum[t] / weight;
    if (cosine) {
      const double length = std::sqrt(squared_distance(center, origin.data(), d));
      if (length > 0) {
        for (std::size_t t = 0; t < d; ++t) center[t] /= length;
      }
    }
    if (!wide) {
      for (std::size_t t = 0; t < d; ++t) center[t] = static_cast<float>(center[t]);
    }
    moved += squared_distance(center, before.data(), d);
  }
  return moved;
}

}  // namespace pyids
