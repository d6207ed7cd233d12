// Distances between rows: the primitives under k-means, silhouettes, k-center and facility
// location.
//
// Two kinds. The canonical ones decide: float64, one fixed order of operations, the same bits at
// every instruction set and for any blocking. The fast ones only narrow down what must be decided:
// float32, any order, with a bound on the error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pyids/matrix.hpp"

namespace pyids {

// sum over t of (x[t] - y[t])^2, each difference, square and sum rounded to float64: term t goes to
// lane t % 16, lanes are added in a fixed tree. Relative error <= (d / 16 + 7) 2^-53.
double squared_distance(const double* x, const double* y, std::size_t d);
constexpr double canonical_error(std::size_t d) {
  return (static_cast<double>(d) / 16 + 8) * 0x1p-53;
}

// out[(i - begin) * n_others + j] = squared_distance(row i, others + j * d), i in [begin, end).
void squared_distances(const Rows& rows, std::size_t begin, std::size_t end, const double* others,
                       std::size_t n_others, double* out, int n_threads);

// nearest[i] = min(nearest[i], squared_distance(row i, other)): one step of the farthest-point
// traversal (k-center), of k-means++ and of incremental nearest-neighbor searches.
void lower_to_distance(const Rows& rows, const double* other, double* nearest, int n_threads);

// Rows held in float32, regrouped by 16 for `dots` (n rounded up to a multiple of 16 with zeros).
class PackedRows {
 public:
  PackedRows(const Rows& rows, std::size_t begin, std::size_t end);
  // From n x d float64 values.
  PackedRows(const double* values, std::size_t n, std::size_t d);

  std::size_t size() const { return n_; }
  std::size_t n_groups() const { return (n_ + 15) / 16; }
  std::size_t n_cols() const { return d_; }
  const float* group(std::size_t g) const { return values_.data() + g * 16 * d_; }

 private:
  void set(std::size_t i, const double* row);
  std::size_t n_, d_;
  std::vector<float> values_;  // group, column, 16 rows
};

// out[(i - begin) * ld + j] ~ row i . other j, i in [begin, end), j in [0, 16 * others.n_groups());
// |error| <= dot_error(d) |row| |other| for values in the normal range of float32.
void dots(const Rows& rows, std::size_t begin, std::size_t end, const PackedRows& others,
          float* out, std::size_t ld, int n_threads);

// The m others nearest to each row, by squared_distance, nearest first, ties to the lowest index:
// indices and distances are rows.size() x m. float32 products narrow down, float64 decides.
void nearest(const Rows& rows, const double* others, std::size_t n_others, std::size_t m,
             std::int32_t* indices, double* distances, int n_threads);

// g / (1 - g) with g = (d + 4) 2^-24: both inputs' rounding to float32, any order of d
// multiply-adds (each term is rounded at most d times), and two operations more.
double dot_error(std::size_t d);

}  // namespace pyids
