// The kernels, written once with the compiler's vector types and compiled once a level.
//
// Nothing here may call an inline function that another translation unit could share: the linker
// keeps one copy of those, perhaps the one built for AVX-512. Templates over this file's vector
// types are safe, whose width differs between levels; Philox is spelled out again.
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <string.h>

#include "pyids/rng.hpp"
#include "sampling_kernels.hpp"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors pass between inlined functions only
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own AVX-512 headers

namespace pyids {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 8;
#elif defined(__AVX2__)
constexpr int lanes = 4;
#else
constexpr int lanes = 2;
#endif
typedef unsigned long long Words __attribute__((vector_size(8 * lanes)));
typedef double Doubles __attribute__((vector_size(8 * lanes)));

constexpr unsigned long long low_half = 0xffffffffu;

inline Words broadcast(unsigned long long x) { return x - Words{}; }

// Products of the low halves of the lanes; what stands in the high halves does not matter.
inline Words multiply_low(const Words& a, unsigned long long b) {
#if defined(__AVX512F__)
  return (Words)_mm512_mul_epu32((__m512i)a, (__m512i)broadcast(b));
#elif defined(__AVX2__)
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)broadcast(b));
#elif defined(__SSE2__)
  return (Words)_mm_mul_epu32((__m128i)a, (__m128i)broadcast(b));
#else
  return (a & low_half) * b;
#endif
}

// One bit a lane: x <= y.
inline unsigned at_most(const Doubles& x, const Doubles& y) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask((__m512d)x, (__m512d)y, _CMP_LE_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(
      _mm256_movemask_pd(_mm256_cmp_pd((__m256d)x, (__m256d)y, _CMP_LE_OQ)));
#elif defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_pd(_mm_cmple_pd((__m128d)x, (__m128d)y)));
#else
  unsigned mask = 0;
  for (int lane = 0; lane < lanes; ++lane) mask |= unsigned{x[lane] <= y[lane]} << lane;
  return mask;
#endif
}

// The rows of one vector: `first` is the index of its first lane. Returns the new count.
inline std::size_t filter_vector(std::uint64_t seed, const Words& ids, const double* limits,
                                 std::size_t first, std::size_t count, std::uint32_t* rows,
                                 std::uint64_t* bits) {
  // The halves of the counter's four words that are not used (the high ones) hold anything.
  Words a = ids, b = ids >> 32, c = broadcast(0), d = broadcast(1);
  unsigned k = static_cast<unsigned>(seed), m = static_cast<unsigned>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Words p = multiply_low(a, 0xD2511F53u), q = multiply_low(c, 0xCD9E8D57u);
    a = (q >> 32) ^ b ^ broadcast(k);
    b = q;
    c = (p >> 32) ^ d ^ broadcast(m);
    d = p;
    k += 0x9E3779B9u;
    m += 0xBB67AE85u;
  }
  const Words high = b & low_half;
  // 2^52 + high has the bits of `high` as its mantissa.
  const Doubles floor = (Doubles)(high | 0x4330000000000000u) - 0x1p52;
  Doubles limit;
  memcpy(&limit, limits, sizeof limit);
  unsigned mask = at_most(floor, limit);
  if (mask == 0) return count;
  const Words all = (a & low_half) | b << 32;
#if defined(__AVX512F__) && defined(__AVX512VL__)
  const __m256i indices = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first)),
                                           _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const auto mask8 = static_cast<__mmask8>(mask);
  _mm256_storeu_si256((__m256i*)(rows + count), _mm256_maskz_compress_epi32(mask8, indices));
  _mm512_storeu_si512(bits + count, _mm512_maskz_compress_epi64(mask8, (__m512i)all));
  return count + static_cast<unsigned>(__builtin_popcount(mask));
#else
  std::uint64_t values[lanes];
  memcpy(values, &all, sizeof values);
  for (; mask != 0; mask &= mask - 1) {
    const int lane = __builtin_ctz(mask);
    rows[count] = static_cast<std::uint32_t>(first + static_cast<std::size_t>(lane));
    bits[count++] = values[lane];
  }
  return count;
#endif
}

std::size_t filter_rows(std::uint64_t seed, const std::int64_t* ids, std::int64_t first_id,
                        const double* limits, std::size_t n, std::uint32_t* rows,
                        std::uint64_t* bits) {
  Words steps;
  for (int lane = 0; lane < lanes; ++lane) steps[lane] = static_cast<unsigned>(lane);
  const auto ids_at = [&](std::size_t i) {
    if (ids == nullptr) return steps + (static_cast<unsigned long long>(first_id) + i);
    Words loaded;
    memcpy(&loaded, ids + i, sizeof loaded);
    return loaded;
  };
  std::size_t count = 0, i = 0;
  for (; i + lanes <= n; i += lanes) {
    count = filter_vector(seed, ids_at(i), limits + i, i, count, rows, bits);
  }
  if (i < n) {
    Words last = steps + (static_cast<unsigned long long>(first_id) + i);
    double last_limits[lanes];
    for (int lane = 0; lane < lanes; ++lane) {
      const bool inside = i + static_cast<std::size_t>(lane) < n;
      last_limits[lane] = inside ? limits[i + static_cast<std::size_t>(lane)] : -1;
      if (inside && ids != nullptr) {
        last[lane] = static_cast<unsigned long long>(ids[i + static_cast<std::size_t>(lane)]);
      }
    }
    count = filter_vector(seed, last, last_limits, i, count, rows, bits);
  }
  return count;
}

#if defined(__AVX512F__)
inline __m512d load_weights(const double* from) { return _mm512_loadu_pd(from); }
inline __m512d load_weights(const float* from) { return _mm512_cvtps_pd(_mm256_loadu_ps(from)); }
#endif

template <class Weight>
inline bool limit_rows(const std::int32_t* labels, const Weight* weights, std::size_t n,
                       std::size_t n_clusters, const double* bounds, double* limits) {
  const auto end = static_cast<std::uint32_t>(n_clusters);
  constexpr std::uint64_t largest = 0x7fefffffffffffff;  // the bits of the largest finite number
  constexpr std::size_t chunk = 64, ahead = 512;
  bool good = true;
  const auto limit = [&](std::size_t i) {
    // Once: another thread may write them meanwhile.
    const auto label = static_cast<std::uint32_t>(__atomic_load_n(labels + i, __ATOMIC_RELAXED));
    Weight weight;
    __atomic_load(weights + i, &weight, __ATOMIC_RELAXED);
    const double w = weight;
    std::uint64_t bits;
    memcpy(&bits, &w, sizeof bits);
    good &= bits <= largest;  // a set sign bit makes a large number
    good &= label < end;
    limits[i] = w * bounds[label < end ? label : 0];
  };
  const auto limit_vectors = [&](std::size_t first, std::size_t last) {
#if defined(__AVX512F__) && defined(__AVX512VL__)
    unsigned mask = 0xff;
    for (std::size_t i = first; i < last; i += 8) {
      const __m256i label = _mm256_loadu_si256((const __m256i*)(labels + i));
      const __m512d w = load_weights(weights + i);
      const __mmask8 known = _mm256_cmplt_epu32_mask(label, _mm256_set1_epi32((int)end));
      mask &= known & _mm512_cmple_epu64_mask(_mm512_castpd_si512(w), _mm512_set1_epi64(largest));
      const __m512d bound =
          _mm512_mask_i32gather_pd(_mm512_setzero_pd(), known, label, bounds, sizeof(double));
      _mm512_storeu_pd(limits + i, _mm512_mul_pd(w, bound));
    }
    good &= mask == 0xff;
#else
    for (std::size_t i = first; i < last; ++i) limit(i);
#endif
  };
  std::size_t i = 0;
  for (; i + chunk <= n; i += chunk) {
    // The hardware's own prefetching stops at every page; an address behind the array is harmless.
    const auto* label_line = reinterpret_cast<const char*>(labels + i + ahead);
    const auto* weight_line = reinterpret_cast<const char*>(weights + i + ahead);
    for (std::size_t at = 0; at < chunk * sizeof(std::int32_t); at += 64) {
      __builtin_prefetch(label_line + at);
    }
    for (std::size_t at = 0; at < chunk * sizeof(Weight); at += 64) {
      __builtin_prefetch(weight_line + at);
    }
    limit_vectors(i, i + chunk);
  }
  for (; i < n; ++i) limit(i);
  return good;
}

bool limit_f32(const std::int32_t* labels, const float* weights, std::size_t n,
               std::size_t n_clusters, const double* bounds, double* limits) {
  return limit_rows(labels, weights, n, n_clusters, bounds, limits);
}

bool limit_f64(const std::int32_t* labels, const double* weights, std::size_t n,
               std::size_t n_clusters, const double* bounds, double* limits) {
  return limit_rows(labels, weights, n, n_clusters, bounds, limits);
}

inline void make_keys_of_vector(const std::uint64_t* bits, const double* weights, bool log_weights,
                                double* high, double* low) {
  Words b;
  Doubles w;
  memcpy(&b, bits, sizeof b);
  memcpy(&w, weights, sizeof w);
  if (!log_weights) w = portable_log(w);
  const Doubles gumbel = -portable_log(exponential(uniform(b)));
  // Knuth's TwoSum, as in sampling.cpp.
  const Doubles sum = w + gumbel;
  const Doubles part = sum - w;
  const Doubles error = (w - (sum - part)) + (gumbel - part);
  memcpy(high, &sum, sizeof sum);
  memcpy(low, &error, sizeof error);
}

void make_keys(const std::uint64_t* bits, const double* weights, bool log_weights, std::size_t n,
               double* high, double* low) {
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    make_keys_of_vector(bits + i, weights + i, log_weights, high + i, low + i);
  }
  if (i == n) return;
  const std::size_t left = n - i;
  std::uint64_t last_bits[lanes] = {};
  double last_weights[lanes], last_high[lanes], last_low[lanes];
  for (double& w : last_weights) w = 1;
  memcpy(last_bits, bits + i, left * 8);
  memcpy(last_weights, weights + i, left * 8);
  make_keys_of_vector(last_bits, last_weights, log_weights, last_high, last_low);
  memcpy(high + i, last_high, left * 8);
  memcpy(low + i, last_low, left * 8);
}

}  // namespace

const SamplingKernels& PYIDS_SAMPLING_KERNELS() {
  static constexpr SamplingKernels table{filter_rows, limit_f32, limit_f64, make_keys};
  return table;
}

}  // namespace pyids
