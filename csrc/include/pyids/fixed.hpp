// Sums that come out the same however they are grouped, and the means made of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pyids/matrix.hpp"

namespace pyids {

// The largest |x| of every column. Throws std::invalid_argument naming the first row that holds a
// NaN, an infinity or a magnitude above 1e150, whose square float64 cannot hold.
std::vector<double> largest_values(const Rows& rows, int n_threads);

// The largest magnitude in n centers, which may be rounded to just above the rows'. Throws as
// above.
double largest_center_value(const double* centers, std::size_t n, std::size_t d);

// Powers of two that turn a row's weighted values into integers whose sums stay below 2^62. Made
// from maxima and a count alone, which merge over shards in any order.
//
// Where weights differ little there is one plane of sums (K x D). An integer is off by at most
// half, so a mean of unweighted rows is off by at most max(2^-51, N 2^-62) of its column's largest
// value.
//
// Else weights are put into classes by their exponents. A class has two planes: sums of integers as
// above, of weights relative to 2^(the class's exponent), and sums of what rounding took from each
// term, in units 2^finer times finer. With terms = max(2^11, N) an integer of the second is off by
// at most terms^2 2^-121 of the largest value times the largest weight of the class. A class is at
// most 68 - 2 log2(terms) binades wide, so that is 2^-53 of the largest value times any of its
// weights; with the roundings of products, quotients and sums a mean is off by at most 2^-49 of its
// column's largest value, whatever the weights.
struct FixedScale {
  // classes: their exponents, descending; empty: one plane. A weight w of class e counts w 2^-e,
  // which must be below 1.
  FixedScale(const std::vector<double>& largest, double largest_weight, std::size_t n_rows,
             std::vector<int> classes = {});

  std::size_t n_planes() const { return class_exponents.empty() ? 1 : 2 * class_exponents.size(); }

  // Adds (sign 1) or takes away (-1) a row, whose values it changes. sums: n_planes x K x D.
  void add(double* row, double weight, std::size_t in_class, std::int64_t sign, std::size_t cluster,
           std::size_t n_clusters, std::int64_t* sums, std::int64_t* masses) const;

  // The sum of a cluster's rows and its weight (returned), both in units of 2^exponent.
  double combine(const std::int64_t* sums, const std::int64_t* masses, std::size_t cluster,
                 std::size_t n_clusters, double* sum, int* exponent) const;

  std::vector<double> columns, inverse_columns, fine_columns;
  double mass, fine_mass;
  double reach;  // the largest value of all
  std::vector<int> class_exponents;
};

// The means: sums / mass a cluster, rounded to float32 unless `wide`, to unit length if `cosine`. A
// cluster without mass keeps its center. Returns the sum of the squared distances moved.
double update_centers(const std::int64_t* sums, const std::int64_t* mass, const FixedScale& scale,
                      std::size_t n_clusters, bool wide, bool cosine, double* centers);

}  // namespace pyids
