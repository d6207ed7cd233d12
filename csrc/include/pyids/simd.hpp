// The instruction sets that kernels exist for, chosen once at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pyids/matrix.hpp"

namespace pyids {

// From the least to the most capable. `avx512` needs F, BW, DQ, VL and VNNI; `amx` also AMX-INT8
// and an operating system that hands out its registers.
enum class SimdLevel : int { portable, avx2, avx512, amx };

// The best level of this processor, or the one that the environment variable PYIDS_SIMD names
// (portable, avx2, avx512, amx). Throws std::runtime_error if it names none, or one that the
// processor lacks. Decided at the first call.
SimdLevel simd_level();
const char* simd_name(SimdLevel level);

// ---- scans: which centers can be nearest
// ---------------------------------------------------------
//
// Rows and centers are seen through codes whose products are cheap. For a row x and a center c with
// codes x~ and c~, Cauchy-Schwarz bounds what the codes leave out:
//   |x.c - x~.c~| <= |x~| |c - c~| + |x - x~| |c|.
//
// What a scan compares is D = |x - c|^2 - |x|^2 = |c|^2 - 2 x.c. It computes in float32, u = 2^-24,
//   L = offset - (P + S),  P = 2 x~.c~,  S = code * row.code + rest * row.rest.
// Proof that L <= D <= `above` (scan_groups). Every operation rounds by u of its result, and by
// 2^-149 where that vanishes:
//   P: int8 products are exact integers; their conversion and two scalings round 3 times. (What the
//      sum of float32 products rounds is in `code`, and their scalings are by powers of two.)
//   S: each of two products is rounded, then their sum: 2 u S.
//   P + S and L: u (|P| + S) and u |L| <= u (offset + |P| + S).
// In all |L - (offset - P - S)| <= u offset + 5 u |P| + 4 u S, up to 1 + 2^-20. (For float32 codes
// 2 u |P| stands for 5 u |P|.) So L <= D if
//   offset <= |c|^2 (1 - u), which leaves room for u offset, and
//   S >= 2 |x~| |c - c~| + 2 |x - x~| |c| + 5 u |P| + 4 u S, which `code` sees to.
// Both given, D <= |c|^2 - P + (S - 5 u |P| - 4 u S) <= L + 2 S + (|c|^2 - offset + u offset): the
// last bracket is `gap`. All that vanishes is below kTiny (codes.hpp), part of offset and gap.
//
// Distances that decide (Kernels::squared_distance) are off by up to e = canonical_error(D) of
// themselves. So that a center left out is farther by these as well, `above` adds row.round:
//   L' > D + 2 e / (1 - e) (|x|^2 + D)  =>  (1 - e) (|x|^2 + D') > (1 + e) (|x|^2 + D).

// 16 * n_groups centers (padding has offset infinity), regrouped by 16. Codes are float32
// [group][column][16] or int8 [group][column / 4][16][4] with the columns padded to a multiple
// of 64.
struct CenterCodes {
  const void* packed;
  const std::int32_t* correction;  // int8 only: what the rows' codes, which are unsigned, add
  const float* offset;             // at most (1 - u) |c|^2
  const float* scale;              // 2 * (unit of the code)
  const float* code;               // 2 * (|c - c~| + what products and sums round), rounded up
  const float* rest;               // 2 |c|, rounded up
  const float* gap;                // at least |c|^2 - offset + u offset
  const std::int32_t* index;       // the center's number
  std::size_t n_groups;
};

// Squared distances here are less the row's own |x|^2.
struct ScanRow {
  float scale;   // unit of the row's code
  float code;    // |x~|, rounded up
  float rest;    // |x - x~|, rounded up
  float best;    // no nearest center is farther than this; lowered by the scan
  float margin;  // centers up to best + margin are reported
  float floor;   // what best is not lowered below
  float round;   // what float64 may round the row's squared distances by, see above
};

// A first look at the same centers, regrouped alike, through a few coordinates (prefix.hpp):
//   L = offset - (2 a~.b~ + code * row.code + rest * row.rest + tail * row.tail) <= D.
// Three products of bounds are rounded instead of two, which the room in them (2^-20) covers.
struct PrefixCodes {
  const void* packed;  // int8, as in CenterCodes; columns a multiple of 16
  const std::int32_t* correction;
  const float* scale;
  const float* code;
  const float* rest;
  const float* tail;
  std::size_t n_cols;
  const std::int8_t* codes;  // of center j, in full, at codes + j * (bytes of a code)
};

struct PrefixRow {
  float scale, code, rest;  // of the row's coordinates, as in ScanRow
  float tail;               // what they leave of the row
};

struct Hit {
  std::uint32_t row;  // in the scan
  std::int32_t center;
  float lower;  // bound of the squared distance
};

// What an int8 code says of its row: |x - unit * code| <= rest.
struct CodeInfo {
  float unit;
  float length;  // |unit * code|
  float rest;
};

inline constexpr std::size_t kScanRows = 64;        // rows of one scan at most
inline constexpr std::size_t kCodeAlignment = 64;   // columns of an int8 code: a multiple of it
inline constexpr std::size_t kMostCodes = 1 << 16;  // columns of an int8 code at most

// The routines that exist once a level. Every level returns the same bits, except for dots and
// codes, whose errors are bounded instead.
struct Kernels {
  // out[0 .. n) = values of a row, widened, times factor.
  void (*widen)(const void* row, Scalar scalar, std::size_t n, double factor, double* out);
  // largest[t] = max(largest[t], |value t| times factor); whether all are at most `limit`.
  bool (*raise_magnitudes)(const void* row, Scalar scalar, std::size_t n, double factor,
                           double limit, double* largest);
  // out[0 .. n) = values of a row, times factor, less shift: in float32 after the subtraction.
  void (*center)(const void* row, Scalar scalar, std::size_t n, double factor, const float* shift,
                 float* out);
  // sum (x - y)^2, canonical order: see distance.hpp.
  double (*squared_distance)(const double* x, const double* y, std::size_t d);
  // The same for values y that float32 holds.
  double (*squared_distance_f32)(const double* x, const float* y, std::size_t d);
  // sum x y, each product and sum rounded to float64, in the order of squared_distance.
  double (*product)(const double* x, const double* y, std::size_t d);
  // sums[0 .. d) += sign * round(x * scales) (to nearest, ties to even; |x * scale| < 2^51).
  void (*add_fixed)(const double* x, const double* scales, std::size_t d, std::int64_t sign,
                    std::int64_t* sums);
  // sum x^2, any order, off by at most 2^-18 of it (and by what vanishes) for any d.
  double (*square_f32)(const float* x, std::size_t d);
  // dots[i * ld + j] = x_i . y_j for n_x rows (ldx floats apart) and 16 * n_groups packed rows.
  void (*dot_f32)(const float* x, std::size_t ldx, std::size_t n_x, const float* packed,
                  std::size_t n_groups, std::size_t d, float* dots, std::size_t ld);
  // sums[j] += sum over n rows of max(0, 2^20 products[i * ld + j] + offsets[i]), j in [0, width),
  // a multiple of 16, any order.
  void (*add_gains)(const float* products, std::size_t ld, std::size_t n, const float* offsets,
                    std::size_t width, float* sums);

  // Largest magnitude of a row's code: 63 where products of larger ones overflow, else 127.
  int row_levels;
  // code[0 .. padded) = round(x / unit) + offset, |round(...)| <= levels, padding = offset.
  CodeInfo (*encode)(const float* x, std::size_t d, std::size_t padded, int levels, int offset,
                     std::uint8_t* code);
  // sum of row * center codes (row unsigned, center signed); null where scan_i8 is.
  std::int32_t (*dot_i8)(const std::uint8_t* row, const std::int8_t* center, std::size_t padded);
  // Appends to hits every center whose lower bound is at most best + margin of its row; returns how
  // many. A row's hits come in the order of the centers. hits has room for n_rows * 16 * n_groups.
  // scan_i8 is null where int8 products are no faster than float32 ones. Its codes must be readable
  // up to kScanRows rows whatever n_rows is.
  std::size_t (*scan_f32)(const float* rows, std::size_t d, std::size_t n_rows,
                          const CenterCodes& centers, ScanRow* state, Hit* hits);
  std::size_t (*scan_i8)(const std::uint8_t* rows, std::size_t padded, std::size_t n_rows,
                         const CenterCodes& centers, ScanRow* state, Hit* hits);
  // The same, of the centers that a first look leaves; adds to `met` how many those are. Null where
  // it does not pay.
  std::size_t (*scan_prefix_i8)(const std::uint8_t* prefixes, const PrefixRow* prefix_rows,
                                const PrefixCodes& prefix, const std::uint8_t* rows,
                                std::size_t padded, std::size_t n_rows, const CenterCodes& centers,
                                ScanRow* state, Hit* hits, std::size_t* met);
};

const Kernels& kernels();
const Kernels& kernels(SimdLevel level);

}  // namespace pyids
