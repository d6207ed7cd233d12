// Products of int8 codes, included by kernels.inl where the instruction set has them. A row's code
// is unsigned (offset by kRowLevels + 1), a center's signed.

#if defined(__AMX_INT8__)
enum { kRowLevels = 127 };

// A tile register holds 16 rows of 64 bytes.
struct TileConfig {
  uint8_t palette, start_row;
  uint8_t reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

inline void configure_tiles() {
  alignas(64) TileConfig config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  // What GCC knows of its own tile intrinsics is too little: that the configuration's first 8 bytes
  // are read (PR 114098; 13 then leaves the rest unwritten, and the processor refuses it), and of a
  // tile's load nothing. All that was written before this point is in memory after it, and volatile
  // assembly keeps its order.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Products of 32 rows and 32 centers, four tiles at a time so that each load serves two products.
inline void dot_32x32(const uint8_t* rows, size_t padded, const int8_t* packed,
                      const int32_t* correction, int32_t* dots, size_t ld) {
  // Stride 0: all 16 rows start from the same corrections.
  _tile_loadd(0, correction, 0);
  _tile_loadd(1, correction + 16, 0);
  _tile_loadd(2, correction, 0);
  _tile_loadd(3, correction + 16, 0);
  for (size_t t = 0; t < padded; t += 64) {
    _tile_loadd(4, rows + t, padded);
    _tile_loadd(6, packed + 16 * t, 64);
    _tile_loadd(7, packed + 16 * (padded + t), 64);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(5, rows + 16 * padded + t, padded);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, dots, 4 * ld);
  _tile_stored(1, dots + 16, 4 * ld);
  _tile_stored(2, dots + 16 * ld, 4 * ld);
  _tile_stored(3, dots + 16 * ld + 16, 4 * ld);
}

inline void dot_32x16(const uint8_t* rows, size_t padded, const int8_t* packed,
                      const int32_t* correction, int32_t* dots, size_t ld) {
  _tile_loadd(0, correction, 0);
  _tile_loadd(2, correction, 0);
  for (size_t t = 0; t < padded; t += 64) {
    _tile_loadd(4, rows + t, padded);
    _tile_loadd(6, packed + 16 * t, 64);
    _tile_loadd(5, rows + 16 * padded + t, padded);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(2, 5, 6);
  }
  _tile_stored(0, dots, 4 * ld);
  _tile_stored(2, dots + 16 * ld, 4 * ld);
}

inline void dot_tile_i8(const uint8_t* rows, size_t padded, size_t n_rows, const int8_t* packed,
                        const int32_t* correction, size_t n_groups, int32_t* dots, size_t ld) {
  size_t g = 0;
  for (; g + 2 <= n_groups; g += 2) {
    for (size_t i = 0; i < n_rows; i += 32) {
      dot_32x32(rows + i * padded, padded, packed + g * 16 * padded, correction + 16 * g,
                dots + i * ld + 16 * g, ld);
    }
  }
  for (; g < n_groups; ++g) {
    for (size_t i = 0; i < n_rows; i += 32) {
      dot_32x16(rows + i * padded, padded, packed + g * 16 * padded, correction + 16 * g,
                dots + i * ld + 16 * g, ld);
    }
  }
}

#elif defined(__AVX512VNNI__)
enum { kRowLevels = 127 };

// sum += a . b, by lanes of four. As assembly, since GCC 12 copies the accumulators of the
// intrinsic from register to register.
__attribute__((always_inline)) inline void add_products(__m512i& sum, __m512i a, __m512i b) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

template <int ROWS, int GROUPS>
__attribute__((always_inline)) inline void dot_block_i8(const uint8_t* rows, size_t padded,
                                                        const int8_t* packed,
                                                        const int32_t* correction, int32_t* dots,
                                                        size_t ld) {
  __m512i sums[ROWS][GROUPS];
  for (int i = 0; i < ROWS; ++i) {
    for (int g = 0; g < GROUPS; ++g) sums[i][g] = _mm512_loadu_si512(correction + 16 * g);
  }
  for (size_t t = 0; t < padded; t += 4) {
    __m512i b[GROUPS];
    for (int g = 0; g < GROUPS; ++g) {
      b[g] = _mm512_loadu_si512(packed + static_cast<size_t>(g) * 16 * padded + 16 * t);
    }
    for (int i = 0; i < ROWS; ++i) {
      int32_t four;
      memcpy(&four, rows + static_cast<size_t>(i) * padded + t, 4);
      const __m512i a = _mm512_set1_epi32(four);
      for (int g = 0; g < GROUPS; ++g) add_products(sums[i][g], a, b[g]);
    }
  }
  for (int i = 0; i < ROWS; ++i) {
    for (int g = 0; g < GROUPS; ++g) {
      _mm512_storeu_si512(dots + static_cast<size_t>(i) * ld + 16 * g, sums[i][g]);
    }
  }
}

// Not inlined: what the caller keeps in registers would leave too few.
__attribute__((noinline)) void dot_tile_i8(const uint8_t* rows, size_t padded, size_t n_rows,
                                           const int8_t* packed, const int32_t* correction,
                                           size_t n_groups, int32_t* dots, size_t ld) {
  size_t g = 0;
  for (; g + 2 <= n_groups; g += 2) {
    for (size_t i = 0; i < n_rows; i += 8) {
      dot_block_i8<8, 2>(rows + i * padded, padded, packed + g * 16 * padded, correction + 16 * g,
                         dots + i * ld + 16 * g, ld);
    }
  }
  for (; g < n_groups; ++g) {
    for (size_t i = 0; i < n_rows; i += 8) {
      dot_block_i8<8, 1>(rows + i * padded, padded, packed + g * 16 * padded, correction + 16 * g,
                         dots + i * ld + 16 * g, ld);
    }
  }
}

#else
// The sum of two products of unsigned and signed bytes must fit 16 bits: 2 * 127 * 127 does.
enum { kRowLevels = 63 };

template <int ROWS>
inline void dot_block_i8(const uint8_t* rows, size_t padded, const int8_t* packed,
                         const int32_t* correction, int32_t* dots, size_t ld) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i low[ROWS], high[ROWS];
  for (int i = 0; i < ROWS; ++i) {
    low[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(correction));
    high[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(correction + 8));
  }
  for (size_t t = 0; t < padded; t += 4) {
    const __m256i b0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + 16 * t));
    const __m256i b1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + 16 * t + 32));
    for (int i = 0; i < ROWS; ++i) {
      int32_t four;
      memcpy(&four, rows + static_cast<size_t>(i) * padded + t, 4);
      const __m256i a = _mm256_set1_epi32(four);
      low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b0), ones));
      high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b1), ones));
    }
  }
  for (int i = 0; i < ROWS; ++i) {
    int32_t* to = dots + static_cast<size_t>(i) * ld;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), low[i]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), high[i]);
  }
}

// Not inlined: what the caller keeps in registers would leave too few.
__attribute__((noinline)) void dot_tile_i8(const uint8_t* rows, size_t padded, size_t n_rows,
                                           const int8_t* packed, const int32_t* correction,
                                           size_t n_groups, int32_t* dots, size_t ld) {
  for (size_t g = 0; g < n_groups; ++g) {
    for (size_t i = 0; i < n_rows; i += 4) {
      dot_block_i8<4>(rows + i * padded, padded, packed + g * 16 * padded, correction + 16 * g,
                      dots + i * ld + 16 * g, ld);
    }
  }
}
#endif

int32_t dot_i8(const uint8_t* row, const int8_t* center, size_t padded) {
  int32_t sum = 0;
#if defined(__AVX512VNNI__)
  __m512i sums = _mm512_setzero_si512();
  for (size_t t = 0; t < padded; t += 64) {
    sums = _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(row + t), _mm512_loadu_si512(center + t));
  }
  int32_t lanes[16];
  _mm512_storeu_si512(lanes, sums);
  for (int lane = 0; lane < 16; ++lane) sum += lanes[lane];
#else
  __m256i sums = _mm256_setzero_si256();
  for (size_t t = 0; t < padded; t += 32) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + t));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(center + t));
    sums =
        _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
  }
  int32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sums);
  for (int lane = 0; lane < 8; ++lane) sum += lanes[lane];
#endif
  return sum;
}

size_t scan_i8(const uint8_t* rows, size_t padded, size_t n_rows, const CenterCodes& centers,
               ScanRow* state, Hit* hits) {
  alignas(64) int32_t dots[kScanRows * 16 * kTileGroups];
  const int8_t* packed = static_cast<const int8_t*>(centers.packed);
  size_t count = 0;
#if defined(__AMX_INT8__)
  configure_tiles();
#endif
  for (size_t g = 0; g < centers.n_groups; g += kTileGroups) {
    const size_t left = centers.n_groups - g;
    const size_t n_groups = left < kTileGroups ? left : static_cast<size_t>(kTileGroups);
    dot_tile_i8(rows, padded, n_rows, packed + g * 16 * padded, centers.correction + 16 * g,
                n_groups, dots, 16 * kTileGroups);
    count += scan_tile(dots, n_rows, g, n_groups, centers, state, hits + count);
  }
#if defined(__AMX_INT8__)
  _tile_release();
#endif
  return count;
}

#if defined(__AVX512VNNI__)
// Whole blocks are so fast here that a first look does not pay (docs/log.md).
constexpr decltype(Kernels::scan_prefix_i8) kScanPrefix = nullptr;
#else
// Products of one row and four centers.
inline void dot_four_i8(const uint8_t* row, const int8_t* const (&centers)[4], size_t padded,
                        int32_t* dots) {
  __m256i sums[4];
  const __m256i ones = _mm256_set1_epi16(1);
  for (int c = 0; c < 4; ++c) sums[c] = _mm256_setzero_si256();
  for (size_t t = 0; t < padded; t += 32) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + t));
    for (int c = 0; c < 4; ++c) {
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(centers[c] + t));
      sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  }
  const __m256i all =
      _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dots),
                   _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}

// Compares a row to those centers of a tile that the first look left: lane l is center at + l, and
// `lowers` its bound by the first look.
inline size_t meet(const uint8_t* row_code, size_t padded, uint32_t i, size_t at,
                   unsigned long long mask, const float* lowers, const PrefixCodes& prefix,
                   const CenterCodes& centers, ScanRow& row, Hit* hits, size_t* met) {
  size_t count = 0;
  while (mask != 0) {
    size_t these[4];
    const int8_t* codes[4];
    int n = 0;
    for (; mask != 0 && n < 4; mask &= mask - 1) {
      const int lane = __builtin_ctzll(mask);
      if (lowers[lane] > row.best + row.margin) continue;
      these[n] = at + static_cast<size_t>(lane);
      codes[n] = prefix.codes + static_cast<size_t>(centers.index[these[n]]) * padded;
      ++n;
    }
    if (n == 0) break;
    for (int c = n; c < 4; ++c) codes[c] = codes[0];
    int32_t dots[4];
    dot_four_i8(row_code, codes, padded, dots);
    *met += static_cast<size_t>(n);
    for (int c = 0; c < n; ++c) {
      const size_t j = these[c];
      const float dot = static_cast<float>(dots[c] + centers.correction[j]) * row.scale;
      const float slack = centers.code[j] * row.code + centers.rest[j] * row.rest;
      const float lower = centers.offset[j] - (dot * centers.scale[j] + slack);
      if (lower > row.best + row.margin) continue;
      hits[count++] = {i, centers.index[j], lower};
      lower_best(row, lower, slack, centers.gap[j]);
    }
  }
  return count;
}

// The first look at one tile, and what it leaves.
template <int GROUPS>
inline size_t look(const int32_t* dots, size_t n_rows, size_t group, const PrefixCodes& prefix,
                   const PrefixRow* prefix_rows, const uint8_t* rows, size_t padded,
                   const CenterCodes& centers, ScanRow* state, Hit* hits, size_t* met) {
  const size_t at = 16 * group;
  const Terms terms = {centers.offset, prefix.scale, prefix.code, prefix.rest, prefix.tail};
  size_t count = 0;
  for (size_t i = 0; i < n_rows; ++i) {
    const PrefixRow row = prefix_rows[i];
    const float limit = state[i].best + state[i].margin;
    float lowers[16 * GROUPS];
    unsigned long long mask = 0;
    for (int g = 0; g < GROUPS; ++g) {
      const unsigned these = lower_bounds<true>(dots + i * 16 * kTileGroups + 16 * g, terms,
                                                at + 16 * static_cast<size_t>(g), row, row.tail,
                                                limit, lowers + 16 * g);
      mask |= static_cast<unsigned long long>(these) << 16 * g;
    }
    if (mask == 0) continue;
    count += meet(rows + i * padded, padded, static_cast<uint32_t>(i), at, mask, lowers, prefix,
                  centers, state[i], hits + count, met);
  }
  return count;
}

size_t scan_prefix_i8(const uint8_t* prefixes, const PrefixRow* prefix_rows,
                      const PrefixCodes& prefix, const uint8_t* rows, size_t padded, size_t n_rows,
                      const CenterCodes& centers, ScanRow* state, Hit* hits, size_t* met) {
  alignas(64) int32_t dots[kScanRows * 16 * kTileGroups];
  const int8_t* first = static_cast<const int8_t*>(prefix.packed);
  const size_t p = prefix.n_cols;
  size_t count = 0;
  for (size_t g = 0; g < centers.n_groups; g += kTileGroups) {
    const size_t left = centers.n_groups - g;
    const size_t n_groups = left < kTileGroups ? left : static_cast<size_t>(kTileGroups);
    dot_tile_i8(prefixes, p, n_rows, first + g * 16 * p, prefix.correction + 16 * g, n_groups, dots,
                16 * kTileGroups);
    const auto look_at = [&]<int GROUPS>() {
      return look<GROUPS>(dots, n_rows, g, prefix, prefix_rows, rows, padded, centers, state,
                          hits + count, met);
    };
    count += n_groups == 1   ? look_at.template operator()<1>()
             : n_groups == 2 ? look_at.template operator()<2>()
             : n_groups == 3 ? look_at.template operator()<3>()
                             : look_at.template operator()<kTileGroups>();
  }
  return count;
}
constexpr decltype(Kernels::scan_prefix_i8) kScanPrefix = scan_prefix_i8;
#endif
