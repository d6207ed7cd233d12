// The instruction sets that kernels exist for, chosen once at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pyids/matrix.hpp"

namespace pyids {

// From the least to the most capable. `avx512` needs F, BW, DQ, VL and VNNI; `amx` also AMX-INT8
// and a kernel that grants its registers.
enum class SimdLevel : int { portable, avx2, avx512, amx };

// The best level of this processor, or the one that the environment variable PYIDS_SIMD names
// (portable, avx2, avx512, amx). Throws std::runtime_error if it names none, or one that the
// processor lacks. Decided at the first call.
SimdLevel simd_level();
const char* simd_name(SimdLevel level);

// What a scan knows of 16 * n_groups centres, one value a centre. For a row x and a centre c, codes
// x~ and c~ stand for them, whose product is known; then
//   |c|^2 - 2 x.c >= offset - scale * (row scale) * dot - (row code) * code - (row rest) * rest.
struct CentreBounds {
  const float* offset;  // |c|^2, rounded down
  const float* scale;   // 2 * (unit of the centre's code)
  const float* code;    // 2 * (|c - c~| + rounding): what the row's code multiplies
  const float* rest;    // 2 |c|: what the row's |x - x~| multiplies
};

struct RowBound {
  float scale;
  float code;       // |x~|
  float rest;       // |x - x~|
  float threshold;  // a pair above it cannot win; lowered as better pairs are met
};

struct Candidate {
  std::int32_t centre;
  float bound;
};

// The routines that exist once a level. Every level returns the same bits, except dot_f32, whose
// error is bounded (see distance.hpp).
struct Kernels {
  // out[0 .. n) = values of a row, widened, times factor.
  void (*widen)(const void* row, Scalar scalar, std::size_t n, double factor, double* out);
  // sum (x - y)^2, canonical order: see distance.hpp.
  double (*squared_distance)(const double* x, const double* y, std::size_t d);
  // dots[i * ld + j] = x_i . y_j for n_x rows (ldx floats apart) and 16 * n_groups packed rows.
  void (*dot_f32)(const float* x, std::size_t ldx, std::size_t n_x, const float* packed,
                  std::size_t n_groups, std::size_t d, float* dots, std::size_t ld);
  // sums[0 .. d) += sign * round(x * scales) (to nearest, ties to even; |x * scale| < 2^51).
  void (*add_fixed)(const double* x, const double* scales, std::size_t d, std::int64_t sign,
                    std::int64_t* sums);
  // Appends to out every centre base + j, j < 16 * n_groups, whose bound is not above the row's
  // threshold; returns how many. dots may be float32 or (scan_i32) int32.
  std::size_t (*scan_f32)(const float* dots, std::size_t n_groups, std::int32_t base,
                          const CentreBounds& centres, RowBound& row, Candidate* out);
};

const Kernels& kernels();
const Kernels& kernels(SimdLevel level);

}  // namespace pyids
