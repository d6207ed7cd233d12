// The kernels, written once with the compiler's vector types and compiled once a level.
//
// Nothing here may call an inline function or template that another translation unit could share:
// the linker keeps one copy of those, perhaps the one built for AVX-512.
#if defined(__F16C__) || defined(__FMA__)
#include <immintrin.h>
#endif
#include <string.h>

#include "kernels.hpp"

// Vectors wider than the level's registers are passed between functions of this file only, all
// inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace pyids {
namespace {

typedef double Double8 __attribute__((vector_size(64)));
typedef float Float16 __attribute__((vector_size(64)));
typedef float Float8 __attribute__((vector_size(32)));
typedef long long Int8 __attribute__((vector_size(64)));

template <typename Vector>
inline Vector read(const void* from) {
  Vector v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <typename Vector>
inline void write(void* to, const Vector& v) {
  memcpy(to, &v, sizeof v);
}

inline Double8 widen8(const float* from) {
  return __builtin_convertvector(read<Float8>(from), Double8);
}

// IEEE half to single without the instruction: shift the exponent by a multiplication, which
// handles denormals, then mend infinities and NaN.
inline float half_to_float(unsigned short half) {
  const unsigned magnitude = (half & 0x7fffu) << 13;
  const unsigned sign = (half & 0x8000u) << 16;
  unsigned bits;
  if ((half & 0x7c00u) == 0x7c00u) {
    bits = magnitude | 0x7f800000u;
  } else {
    float value;
    memcpy(&value, &magnitude, 4);
    value *= 0x1p112f;
    memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline Double8 widen8(const unsigned short* from) {
#if defined(__F16C__)
  const __m256 values = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return __builtin_convertvector(reinterpret_cast<Float8>(values), Double8);
#else
  Double8 v;
  for (int lane = 0; lane < 8; ++lane) v[lane] = half_to_float(from[lane]);
  return v;
#endif
}

inline Double8 widen8(const double* from) { return read<Double8>(from); }
inline double widen1(float v) { return v; }
inline double widen1(unsigned short v) { return half_to_float(v); }
inline double widen1(double v) { return v; }

template <typename T>
inline void widen_as(const T* row, size_t n, double factor, double* out) {
  size_t t = 0;
  for (; t + 8 <= n; t += 8) write(out + t, widen8(row + t) * factor);
  for (; t < n; ++t) out[t] = widen1(row[t]) * factor;
}

void widen(const void* row, Scalar scalar, size_t n, double factor, double* out) {
  switch (scalar) {
    case Scalar::f16:
      return widen_as(static_cast<const unsigned short*>(row), n, factor, out);
    case Scalar::f32:
      return widen_as(static_cast<const float*>(row), n, factor, out);
    case Scalar::f64:
      return widen_as(static_cast<const double*>(row), n, factor, out);
  }
}

template <typename T>
inline bool raise_magnitudes_as(const T* row, size_t n, double factor, double limit,
                                double* largest) {
  const Double8 zero = {};
  Int8 fine = zero == zero;
  size_t t = 0;
  for (; t + 8 <= n; t += 8) {
    const Double8 v = widen8(row + t) * factor;
    const Double8 magnitude = v < zero ? -v : v;
    const Double8 before = read<Double8>(largest + t);
    fine &= magnitude <= limit;
    write(largest + t, magnitude > before ? magnitude : before);
  }
  bool all = true;
  for (int lane = 0; lane < 8; ++lane) all &= fine[lane] != 0;
  for (; t < n; ++t) {
    const double magnitude = __builtin_fabs(widen1(row[t]) * factor);
    all &= magnitude <= limit;
    largest[t] = magnitude > largest[t] ? magnitude : largest[t];
  }
  return all;
}

bool raise_magnitudes(const void* row, Scalar scalar, size_t n, double factor, double limit,
                      double* largest) {
  switch (scalar) {
    case Scalar::f16:
      return raise_magnitudes_as(static_cast<const unsigned short*>(row), n, factor, limit,
                                 largest);
    case Scalar::f32:
      return raise_magnitudes_as(static_cast<const float*>(row), n, factor, limit, largest);
    default:
      return raise_magnitudes_as(static_cast<const double*>(row), n, factor, limit, largest);
  }
}

template <typename T>
inline double squared_distance_to(const double* x, const T* y, size_t d) {
  Double8 low = {}, high = {};
  size_t t = 0;
  for (; t + 16 <= d; t += 16) {
    const Double8 a = read<Double8>(x + t) - widen8(y + t);
    const Double8 b = read<Double8>(x + t + 8) - widen8(y + t + 8);
    low += a * a;
    high += b * b;
  }
  for (int lane = 0; t < d; ++t, ++lane) {
    const double difference = x[t] - static_cast<double>(y[t]);
    if (lane < 8) {
      low[lane] += difference * difference;
    } else {
      high[lane - 8] += difference * difference;
    }
  }
  const Double8 v = low + high;
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

double squared_distance(const double* x, const double* y, size_t d) {
  return squared_distance_to(x, y, d);
}

double squared_distance_f32(const double* x, const float* y, size_t d) {
  return squared_distance_to(x, y, d);
}

double product(const double* x, const double* y, size_t d) {
  Double8 low = {}, high = {};
  size_t t = 0;
  for (; t + 16 <= d; t += 16) {
    low += read<Double8>(x + t) * read<Double8>(y + t);
    high += read<Double8>(x + t + 8) * read<Double8>(y + t + 8);
  }
  for (int lane = 0; t < d; ++t, ++lane) {
    if (lane < 8) {
      low[lane] += x[t] * y[t];
    } else {
      high[lane - 8] += x[t] * y[t];
    }
  }
  const Double8 v = low + high;
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

inline Float16 multiply_add(Float16 a, Float16 b, Float16 c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Float16>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#else
  return a * b + c;
#endif
}

#if defined(__AVX512F__)
enum { kRows = 8, kGroups = 2 };
#else
enum { kRows = 4, kGroups = 1 };
#endif

#if defined(__FMA__) && !defined(__AVX512F__)
// A 64-byte vector type would spill: AVX2 gets its halves by hand.
template <int ROWS>
inline void dot_tile(const float* x, size_t ldx, const float* packed, size_t d, float* dots,
                     size_t ld) {
  __m256 low[ROWS], high[ROWS];
  for (int i = 0; i < ROWS; ++i) low[i] = high[i] = _mm256_setzero_ps();
  for (size_t t = 0; t < d; ++t) {
    const __m256 b0 = _mm256_loadu_ps(packed + 16 * t);
    const __m256 b1 = _mm256_loadu_ps(packed + 16 * t + 8);
    for (int i = 0; i < ROWS; ++i) {
      const __m256 a = _mm256_broadcast_ss(x + static_cast<size_t>(i) * ldx + t);
      low[i] = _mm256_fmadd_ps(a, b0, low[i]);
      high[i] = _mm256_fmadd_ps(a, b1, high[i]);
    }
  }
  for (int i = 0; i < ROWS; ++i) {
    _mm256_storeu_ps(dots + static_cast<size_t>(i) * ld, low[i]);
    _mm256_storeu_ps(dots + static_cast<size_t>(i) * ld + 8, high[i]);
  }
}
template <int ROWS, int GROUPS>
inline void dot_tiles(const float* x, size_t ldx, const float* packed, size_t d, float* dots,
                      size_t ld) {
  for (int g = 0; g < GROUPS; ++g) {
    dot_tile<ROWS>(x, ldx, packed + static_cast<size_t>(g) * 16 * d, d, dots + 16 * g, ld);
  }
}
#else
template <int ROWS, int GROUPS>
inline void dot_tiles(const float* x, size_t ldx, const float* packed, size_t d, float* dots,
                      size_t ld) {
  Float16 sums[ROWS][GROUPS];
  for (int i = 0; i < ROWS; ++i) {
    for (int g = 0; g < GROUPS; ++g) sums[i][g] = Float16{};
  }
  for (size_t t = 0; t < d; ++t) {
    Float16 b[GROUPS];
    for (int g = 0; g < GROUPS; ++g) {
      b[g] = read<Float16>(packed + (static_cast<size_t>(g) * d + t) * 16);
    }
    for (int i = 0; i < ROWS; ++i) {
      const Float16 a = x[static_cast<size_t>(i) * ldx + t] - Float16{};
      for (int g = 0; g < GROUPS; ++g) sums[i][g] = multiply_add(a, b[g], sums[i][g]);
    }
  }
  for (int i = 0; i < ROWS; ++i) {
    for (int g = 0; g < GROUPS; ++g) {
      write(dots + static_cast<size_t>(i) * ld + 16 * g, sums[i][g]);
    }
  }
}
#endif

template <int GROUPS>
inline void dot_rows(const float* x, size_t ldx, size_t n_x, const float* packed, size_t d,
                     float* dots, size_t ld) {
  size_t i = 0;
  for (; i + kRows <= n_x; i += kRows) {
    dot_tiles<kRows, GROUPS>(x + i * ldx, ldx, packed, d, dots + i * ld, ld);
  }
  for (; i < n_x; ++i) dot_tiles<1, GROUPS>(x + i * ldx, ldx, packed, d, dots + i * ld, ld);
}

void dot_f32(const float* x, size_t ldx, size_t n_x, const float* packed, size_t n_groups, size_t d,
             float* dots, size_t ld) {
  size_t g = 0;
  for (; g + kGroups <= n_groups; g += kGroups) {
    dot_rows<kGroups>(x, ldx, n_x, packed + g * 16 * d, d, dots + g * 16, ld);
  }
  for (; g < n_groups; ++g) {
    dot_rows<1>(x, ldx, n_x, packed + g * 16 * d, d, dots + g * 16, ld);
  }
}

void add_gains(const float* products, size_t ld, size_t n, const float* offsets, size_t width,
               float* sums) {
  const Float16 zero = {};
  for (size_t j = 0; j < width; j += 16) {
    Float16 sum = read<Float16>(sums + j);
    for (size_t i = 0; i < n; ++i) {
      const Float16 gain = read<Float16>(products + i * ld + j) * 0x1p20f + offsets[i];
      sum += gain > zero ? gain : zero;
    }
    write(sums + j, sum);
  }
}

void add_fixed(const double* x, const double* scales, size_t d, int64_t sign, int64_t* sums) {
  // Adding 1.5 * 2^52 leaves the rounded integer in the low bits: the same at every level.
  const double magic = 0x1.8p52;
  long long magic_bits;
  memcpy(&magic_bits, &magic, 8);
  size_t t = 0;
  for (; t + 8 <= d; t += 8) {
    const Double8 shifted = read<Double8>(x + t) * read<Double8>(scales + t) + magic;
    const Int8 value = reinterpret_cast<Int8>(shifted) - magic_bits;
    write(sums + t, read<Int8>(sums + t) + (sign < 0 ? -value : value));
  }
  for (; t < d; ++t) {
    const double shifted = x[t] * scales[t] + magic;
    long long value;
    memcpy(&value, &shifted, 8);
    value -= magic_bits;
    sums[t] += sign < 0 ? -value : value;
  }
}

#include "kernels_codes.inl"

#if defined(__AVX2__)
#include "kernels_i8.inl"
#endif

}  // namespace

const Kernels& PYIDS_KERNELS() {
#if defined(__AVX2__)
  static const Kernels table = {
      widen,     raise_magnitudes, center,  squared_distance, squared_distance_f32, product,
      add_fixed, square_f32,       dot_f32, add_gains,        kRowLevels,           encode,
      dot_i8,    scan_f32,         scan_i8, kScanPrefix};
#else
  static const Kernels table = {
      widen,   raise_magnitudes, center,     squared_distance, squared_distance_f32,
      product, add_fixed,        square_f32, dot_f32,          add_gains,
      127,     encode,           nullptr,    scan_f32,         nullptr,
      nullptr};
#endif
  return table;
}

}  // namespace pyids
