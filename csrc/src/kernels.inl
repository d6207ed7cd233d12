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

// ---- codes and scans
// -----------------------------------------------------------------------------

template <typename T>
inline void center_as(const T* row, size_t n, double factor, const float* shift, float* out) {
  for (size_t t = 0; t < n; ++t) {
    out[t] = static_cast<float>(widen1(row[t]) * factor - static_cast<double>(shift[t]));
  }
}

void center(const void* row, Scalar scalar, size_t n, double factor, const float* shift,
            float* out) {
  // Times a power of two is exact, so one float32 subtraction rounds as a float64 one would.
  unsigned long long bits;
  memcpy(&bits, &factor, 8);
  const bool power_of_two = (bits << 12) == 0;
  const float scale = static_cast<float>(factor);
  if (scalar == Scalar::f32 && power_of_two) {
    const float* from = static_cast<const float*>(row);
    for (size_t t = 0; t < n; ++t) out[t] = from[t] * scale - shift[t];
  } else if (scalar == Scalar::f16 && power_of_two) {
    const unsigned short* from = static_cast<const unsigned short*>(row);
    size_t t = 0;
#if defined(__F16C__)
    for (; t + 8 <= n; t += 8) {
      const __m256 value =
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + t)));
      const __m256 scaled = _mm256_mul_ps(value, _mm256_set1_ps(scale));
      _mm256_storeu_ps(out + t, _mm256_sub_ps(scaled, _mm256_loadu_ps(shift + t)));
    }
#endif
    for (; t < n; ++t) out[t] = half_to_float(from[t]) * scale - shift[t];
  } else if (scalar == Scalar::f16) {
    center_as(static_cast<const unsigned short*>(row), n, factor, shift, out);
  } else if (scalar == Scalar::f32) {
    center_as(static_cast<const float*>(row), n, factor, shift, out);
  } else {
    center_as(static_cast<const double*>(row), n, factor, shift, out);
  }
}

inline float sum16(Float16 v) {
  float sum = 0;
  for (int lane = 0; lane < 16; ++lane) sum += v[lane];
  return sum;
}

double square_f32(const float* x, size_t d) {
  double sum = 0;
  size_t t = 0;
  do {  // a float32 sum of 256 terms rounds often enough
    const size_t end = d - t < 256 ? d : t + 256;
    Float16 lanes = {};
    for (; t + 16 <= end; t += 16) {
      lanes = multiply_add(read<Float16>(x + t), read<Float16>(x + t), lanes);
    }
    float part = sum16(lanes);
    for (; t < end; ++t) part += x[t] * x[t];
    sum += part;
  } while (t < d);
  return sum;
}

CodeInfo encode(const float* x, size_t d, size_t padded, int levels, int offset, uint8_t* code) {
  typedef int Int16 __attribute__((vector_size(64)));
  typedef unsigned char Byte16 __attribute__((vector_size(16)));
  const Float16 zero = {};
  const float magic = 0x1.8p23f;  // adding it rounds to an integer, in the low bits
  int magic_bits;
  memcpy(&magic_bits, &magic, 4);
  Float16 tail = {};  // the last columns, padded with zeros
  const size_t whole = d / 16 * 16;
  for (size_t t = whole; t < d; ++t) tail[t - whole] = x[t];

  Float16 top = {};
  for (size_t t = 0; t < whole; t += 16) {
    const Float16 v = read<Float16>(x + t);
    const Float16 magnitude = v < zero ? -v : v;
    top = magnitude > top ? magnitude : top;
  }
  const Float16 magnitude = tail < zero ? -tail : tail;
  top = magnitude > top ? magnitude : top;
  float largest = 0;
  for (int lane = 0; lane < 16; ++lane) largest = top[lane] > largest ? top[lane] : largest;
  const float unit = largest / static_cast<float>(levels);
  // Below the normal range the code is zero and the rest is the row itself.
  const float inverse = unit > 0x1p-100f ? 1.0f / unit : 0.0f;

  Float16 squares = {}, rests = {};
  for (size_t t = 0; t < padded; t += 16) {
    const Float16 v = t < whole ? read<Float16>(x + t) : t == whole ? tail : zero;
    const Float16 rounded = (v * inverse + magic) - magic;
    const Int16 integer = reinterpret_cast<Int16>(rounded + magic) - magic_bits + offset;
    const Float16 rest = v - rounded * unit;
    squares = multiply_add(rounded, rounded, squares);
    rests = multiply_add(rest, rest, rests);
    write(code + t, __builtin_convertvector(integer, Byte16));
  }
  const float slack = 1.0f + 0x1p-12f;  // of sums of up to 2^16 terms in float32
  const float length = unit * __builtin_sqrtf(sum16(squares)) * slack;
  // 2^-23: x was rounded to float32, and the product `rounded * unit` is. 2^-60: squares that
  // vanish.
  const float rest = __builtin_sqrtf(sum16(rests)) * slack + length * 0x1p-23f + 0x1p-60f;
  return {unit, length + 0x1p-60f, rest};
}

// Also where v is NaN, of a bound that overflowed: it rules out nothing.
inline unsigned not_above(Float16 v, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), _mm512_set1_ps(limit), _CMP_NGT_UQ);
#elif defined(__FMA__)
  Float8 halves[2];
  memcpy(halves, &v, sizeof halves);
  const __m256 limits = _mm256_set1_ps(limit);
  const unsigned low = static_cast<unsigned>(
      _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(halves[0]), limits, _CMP_NGT_UQ)));
  const unsigned high = static_cast<unsigned>(
      _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(halves[1]), limits, _CMP_NGT_UQ)));
  return low | high << 8;
#else
  unsigned mask = 0;
  for (unsigned lane = 0; lane < 16; ++lane) mask |= (v[lane] > limit ? 0u : 1u) << lane;
  return mask;
#endif
}

enum { kTileGroups = 4 };  // groups whose products are held at a time

// The next float32 above the nearest one.
inline float round_up_f32(double v) {
  const float nearest = static_cast<float>(v);
  int bits;
  memcpy(&bits, &nearest, 4);
  if (bits == 0x7f800000 || nearest != nearest) return nearest;
  bits = nearest == 0 ? 1 : bits + (nearest > 0 ? 1 : -1);
  float next;
  memcpy(&next, &bits, 4);
  return next;
}

// Reports what may win of one tile of products: n_rows x 16 * GROUPS, groups from `group` on.
template <int GROUPS, typename Dot>
inline size_t scan_groups(const Dot* dots, size_t n_rows, size_t group, const CentreCodes& centres,
                          ScanRow* state, Hit* hits) {
  typedef Dot Dot16 __attribute__((vector_size(64)));
  const size_t at = 16 * group;
  size_t count = 0;
  for (size_t i = 0; i < n_rows; ++i) {
    const ScanRow row = state[i];
    Float16 lower[GROUPS], slack[GROUPS];
    unsigned long long mask = 0;
    for (int g = 0; g < GROUPS; ++g) {
      const size_t from = at + 16 * static_cast<size_t>(g);
      const Float16 dot =
          __builtin_convertvector(read<Dot16>(dots + i * 16 * kTileGroups + 16 * g), Float16) *
          row.scale;
      slack[g] = multiply_add(read<Float16>(centres.code + from), row.code - Float16{},
                              read<Float16>(centres.rest + from) * row.rest);
      lower[g] = read<Float16>(centres.offset + from) -
                 multiply_add(dot, read<Float16>(centres.scale + from), slack[g]);
      mask |= static_cast<unsigned long long>(not_above(lower[g], row.best + row.margin)) << 16 * g;
    }
    if (__builtin_expect(mask == 0, 1)) continue;
    float lowers[16 * GROUPS], slacks[16 * GROUPS];
    memcpy(lowers, lower, sizeof lowers);
    memcpy(slacks, slack, sizeof slacks);
    float best = row.best;
    for (; mask != 0; mask &= mask - 1) {
      const int lane = __builtin_ctzll(mask);
      const size_t j = at + static_cast<size_t>(lane);
      if (lowers[lane] > best + row.margin) continue;
      hits[count++] = {static_cast<uint32_t>(i), centres.index[j], lowers[lane]};
      // In float64, which rounds nothing that counts; 2^-22: the sum S itself was rounded; 2^-33:
      // of row.round, the part that D has in it.
      const double upper = static_cast<double>(lowers[lane]) +
                           2 * (1 + 0x1p-22) * static_cast<double>(slacks[lane]) +
                           static_cast<double>(centres.gap[j]) + static_cast<double>(row.round);
      const float above = round_up_f32(upper + 0x1p-33 * __builtin_fabs(upper));
      if (above < best) best = above > row.floor ? above : row.floor;
    }
    state[i].best = best;
  }
  return count;
}

template <typename Dot>
inline size_t scan_tile(const Dot* dots, size_t n_rows, size_t group, size_t n_groups,
                        const CentreCodes& centres, ScanRow* state, Hit* hits) {
  switch (n_groups) {
    case 1:
      return scan_groups<1>(dots, n_rows, group, centres, state, hits);
    case 2:
      return scan_groups<2>(dots, n_rows, group, centres, state, hits);
    case 3:
      return scan_groups<3>(dots, n_rows, group, centres, state, hits);
    default:
      return scan_groups<kTileGroups>(dots, n_rows, group, centres, state, hits);
  }
}

size_t scan_f32(const float* rows, size_t d, size_t n_rows, const CentreCodes& centres,
                ScanRow* state, Hit* hits) {
  alignas(64) float dots[kScanRows * 16 * kTileGroups];
  const float* packed = static_cast<const float*>(centres.packed);
  size_t count = 0;
  for (size_t g = 0; g < centres.n_groups; g += kTileGroups) {
    const size_t left = centres.n_groups - g;
    const size_t n_groups = left < kTileGroups ? left : static_cast<size_t>(kTileGroups);
    dot_f32(rows, d, n_rows, packed + g * 16 * d, n_groups, d, dots, 16 * kTileGroups);
    count += scan_tile(dots, n_rows, g, n_groups, centres, state, hits + count);
  }
  return count;
}

#if defined(__AVX2__)
#include "kernels_i8.inl"
#endif

}  // namespace

const Kernels& PYIDS_KERNELS() {
#if defined(__AVX2__)
  static const Kernels table = {
      widen,     raise_magnitudes, center,  squared_distance, squared_distance_f32,
      add_fixed, square_f32,       dot_f32, kRowLevels,       encode,
      dot_i8,    scan_f32,         scan_i8};
#else
  static const Kernels table = {widen,
                                raise_magnitudes,
                                center,
                                squared_distance,
                                squared_distance_f32,
                                add_fixed,
                                square_f32,
                                dot_f32,
                                127,
                                encode,
                                nullptr,
                                scan_f32,
                                nullptr};
#endif
  return table;
}

}  // namespace pyids
