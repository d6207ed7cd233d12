// What the tests of exactness share: inputs near the limits of floating point, and a check that
// names the instruction set.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "pyids/matrix.hpp"
#include "pyids/simd.hpp"

namespace pyids {

using Values = std::vector<double>;

inline void check(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s at %s\n", what.c_str(), simd_name(simd_level()));
  std::exit(1);
}

inline Rows view(const Values& values, std::size_t d) {
  return Rows({Matrix{values.data(), values.size() / d, d,
                      static_cast<std::ptrdiff_t>(d * sizeof(double)), Scalar::f64}});
}

inline std::mt19937_64 generator(1);

inline double between(double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(generator);
}

// The value so many units in the last place further.
template <typename T>
T step(T value, int units) {
  for (; units > 0; --units) value = std::nextafter(value, std::numeric_limits<T>::infinity());
  for (; units < 0; ++units) value = std::nextafter(value, -std::numeric_limits<T>::infinity());
  return value;
}

}  // namespace pyids
