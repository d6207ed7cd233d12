// Codes of rows and scans of them, included by kernels.inl.

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

// What 16 centers are compared by, and what a row brings: offset - (dot * scale + code * row.code +
// rest * row.rest + tail * row.tail), where there is a tail.
struct Terms {
  const float *offset, *scale, *code, *rest, *tail;
};

#if defined(__AVX512F__)
inline __m512 as_float(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 as_float(const int32_t* from) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(from)); }
#elif defined(__FMA__)
inline __m256 as_float(const float* from) { return _mm256_loadu_ps(from); }
inline __m256 as_float(const int32_t* from) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#endif

// The bounds, and which are not above the limit: also one that is NaN, as it overflowed, which
// rules out nothing. By hand, as compilers take vectors wider than the level's registers apart.
template <bool TAIL, typename Dot, typename Row>
__attribute__((always_inline)) inline unsigned lower_bounds(const Dot* dots, const Terms& of,
                                                            size_t at, const Row& row,
                                                            float row_tail, float limit,
                                                            float* lowers) {
#if defined(__AVX512F__)
  const __m512 dot = _mm512_mul_ps(as_float(dots), _mm512_set1_ps(row.scale));
  __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(of.rest + at), _mm512_set1_ps(row.rest));
  sum = _mm512_fmadd_ps(_mm512_loadu_ps(of.code + at), _mm512_set1_ps(row.code), sum);
  if (TAIL) sum = _mm512_fmadd_ps(_mm512_loadu_ps(of.tail + at), _mm512_set1_ps(row_tail), sum);
  sum = _mm512_fmadd_ps(dot, _mm512_loadu_ps(of.scale + at), sum);
  const __m512 lower = _mm512_sub_ps(_mm512_loadu_ps(of.offset + at), sum);
  _mm512_storeu_ps(lowers, lower);
  return _mm512_cmp_ps_mask(lower, _mm512_set1_ps(limit), _CMP_NGT_UQ);
#elif defined(__FMA__)
  unsigned mask = 0;
  for (size_t h = 0; h < 16; h += 8) {
    const size_t j = at + h;
    const __m256 dot = _mm256_mul_ps(as_float(dots + h), _mm256_set1_ps(row.scale));
    __m256 sum = _mm256_mul_ps(_mm256_loadu_ps(of.rest + j), _mm256_set1_ps(row.rest));
    sum = _mm256_fmadd_ps(_mm256_loadu_ps(of.code + j), _mm256_set1_ps(row.code), sum);
    if (TAIL) sum = _mm256_fmadd_ps(_mm256_loadu_ps(of.tail + j), _mm256_set1_ps(row_tail), sum);
    sum = _mm256_fmadd_ps(dot, _mm256_loadu_ps(of.scale + j), sum);
    const __m256 lower = _mm256_sub_ps(_mm256_loadu_ps(of.offset + j), sum);
    _mm256_storeu_ps(lowers + h, lower);
    mask |= static_cast<unsigned>(
                _mm256_movemask_ps(_mm256_cmp_ps(lower, _mm256_set1_ps(limit), _CMP_NGT_UQ)))
            << h;
  }
  return mask;
#else
  typedef Dot Dot16 __attribute__((vector_size(64)));
  const Float16 dot = __builtin_convertvector(read<Dot16>(dots), Float16) * row.scale;
  Float16 sum = read<Float16>(of.code + at) * row.code + read<Float16>(of.rest + at) * row.rest;
  if (TAIL) sum += read<Float16>(of.tail + at) * row_tail;
  const Float16 lower = read<Float16>(of.offset + at) - (dot * read<Float16>(of.scale + at) + sum);
  write(lowers, lower);
  unsigned mask = 0;
  for (unsigned lane = 0; lane < 16; ++lane) mask |= (lower[lane] > limit ? 0u : 1u) << lane;
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

// Lowers the upper bound of a row by what a hit says, in float64, which rounds nothing that counts.
// 2^-22: the sum S itself was rounded; 2^-33: of row.round, the part that D has in it.
inline void lower_best(ScanRow& row, float lower, float slack, float gap) {
  const double upper = static_cast<double>(lower) + 2 * (1 + 0x1p-22) * static_cast<double>(slack) +
                       static_cast<double>(gap) + static_cast<double>(row.round);
  const float above = round_up_f32(upper + 0x1p-33 * __builtin_fabs(upper));
  if (above < row.best) row.best = above > row.floor ? above : row.floor;
}

// Reports what may win of one tile of products: n_rows x 16 * GROUPS, groups from `group` on.
template <int GROUPS, typename Dot>
inline size_t scan_groups(const Dot* dots, size_t n_rows, size_t group, const CenterCodes& centers,
                          ScanRow* state, Hit* hits) {
  const size_t at = 16 * group;
  const Terms terms = {centers.offset, centers.scale, centers.code, centers.rest, nullptr};
  size_t count = 0;
  for (size_t i = 0; i < n_rows; ++i) {
    ScanRow row = state[i];
    float lowers[16 * GROUPS];
    unsigned long long mask = 0;
    for (int g = 0; g < GROUPS; ++g) {
      const unsigned these = lower_bounds<false>(dots + i * 16 * kTileGroups + 16 * g, terms,
                                                 at + 16 * static_cast<size_t>(g), row, 0.0f,
                                                 row.best + row.margin, lowers + 16 * g);
      mask |= static_cast<unsigned long long>(these) << 16 * g;
    }
    if (__builtin_expect(mask == 0, 1)) continue;
    for (; mask != 0; mask &= mask - 1) {
      const int lane = __builtin_ctzll(mask);
      const size_t j = at + static_cast<size_t>(lane);
      if (lowers[lane] > row.best + row.margin) continue;
      hits[count++] = {static_cast<uint32_t>(i), centers.index[j], lowers[lane]};
      const float slack = centers.code[j] * row.code + centers.rest[j] * row.rest;
      lower_best(row, lowers[lane], slack, centers.gap[j]);
    }
    state[i].best = row.best;
  }
  return count;
}

template <typename Dot>
inline size_t scan_tile(const Dot* dots, size_t n_rows, size_t group, size_t n_groups,
                        const CenterCodes& centers, ScanRow* state, Hit* hits) {
  switch (n_groups) {
    case 1:
      return scan_groups<1>(dots, n_rows, group, centers, state, hits);
    case 2:
      return scan_groups<2>(dots, n_rows, group, centers, state, hits);
    case 3:
      return scan_groups<3>(dots, n_rows, group, centers, state, hits);
    default:
      return scan_groups<kTileGroups>(dots, n_rows, group, centers, state, hits);
  }
}

size_t scan_f32(const float* rows, size_t d, size_t n_rows, const CenterCodes& centers,
                ScanRow* state, Hit* hits) {
  alignas(64) float dots[kScanRows * 16 * kTileGroups];
  const float* packed = static_cast<const float*>(centers.packed);
  size_t count = 0;
  for (size_t g = 0; g < centers.n_groups; g += kTileGroups) {
    const size_t left = centers.n_groups - g;
    const size_t n_groups = left < kTileGroups ? left : static_cast<size_t>(kTileGroups);
    dot_f32(rows, d, n_rows, packed + g * 16 * d, n_groups, d, dots, 16 * kTileGroups);
    count += scan_tile(dots, n_rows, g, n_groups, centers, state, hits + count);
  }
  return count;
}
