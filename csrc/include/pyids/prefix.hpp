// A first look at rows and centers along their principal axes, which rules most pairs out.
//
// For columns V that are nearly orthonormal let a be the computed V'x of a row x, b the computed
// V'c of a center c, and x = V a + x2, c = V b + c2. With e = |V'V - 1| and h such that |V'x - a|
// <= h |x| (and so for c), both below 2^-8:
//   x.c = a.b + a'(V'V - 1)b + (V a).c2 + x2.(V b) + x2.c2,
//   |(V a).c2| = |a'(V'c - b) - a'(V'V - 1)b| <= |a| (h |c| + e |b|), and so for the other,
//   x.c <= a.b + |x2| |c2| + 3 e |a| |b| + h (|a| |c| + |b| |x|)
//       <= a.b + |x2| |c2| + (3.1 e + 2.1 h) |x| |c|, for |a| <= 1.01 |x|, |b| <= 1.01 |c|.
// And |x2|^2 = |x|^2 - 2 (V'x).a + a'V'V a <= |x|^2 - |a|^2 + (2.1 h + 1.1 e) |x|^2. A row's `tail`
// is the root of that and of (3.1 e + 2.1 h) |x|^2 more: by Cauchy-Schwarz the product of two tails
// covers both last terms. The products a.b are of int8 codes, bounded as in simd.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "pyids/codes.hpp"
#include "pyids/distance.hpp"
#include "pyids/simd.hpp"

namespace pyids {

class PrincipalAxes {
 public:
  // About the first n_axes (a multiple of 16) of a sample of the rows. Nothing where they leave
  // more than `most_left` of the sample's squares, or where rows are so wide that float32 products
  // say too little.
  static std::optional<PrincipalAxes> of(const Rows& rows, const Coding& coding, std::size_t n_axes,
                                         double most_left);

  static std::size_t bytes_of(std::size_t n_cols);  // what finding them takes, about

  std::size_t size() const { return packed_.size(); }
  // out: n x size() products of n rows as load_centered gives them.
  void project(const float* values, std::size_t n, float* out) const {
    kernels().dot_f32(values, packed_.n_cols(), n, packed_.group(0), packed_.n_groups(),
                      packed_.n_cols(), out, size());
  }
  // The code of one row of `out`. square: |x|^2, off by at most kSquareError and kTiny.
  PrefixRow encode(const float* projected, double square, int levels, int offset,
                   std::uint8_t* code) const;

 private:
  explicit PrincipalAxes(const std::vector<double>& axes, std::size_t n, std::size_t d);
  PackedRows packed_;
  double skew_, error_;  // e and h above
};

}  // namespace pyids
