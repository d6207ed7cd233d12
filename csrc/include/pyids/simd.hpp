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
};

const Kernels& kernels();
const Kernels& kernels(SimdLevel level);

}  // namespace pyids
