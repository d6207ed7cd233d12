// Counter-based random numbers: a pure function of (seed, stream, id), the same on every machine,
// for any order and any number of threads.
//
// The generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). The logarithm is our own because libm's differs in the last bit between versions and
// instruction sets, and a draw decided by such a bit would not be repeatable.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace pyids {

// What the numbers are for: draws under one seed but different streams are independent. The low 32
// bits are left to the user of the stream (a round, a trial ...).
enum class Stream : std::uint64_t {
  sampling = std::uint64_t{1} << 32,
  seeding = std::uint64_t{2} << 32,
  greedy = std::uint64_t{3} << 32,
};

constexpr Stream substream(Stream stream, std::uint32_t index) {
  return static_cast<Stream>(static_cast<std::uint64_t>(stream) | index);
}

inline constexpr std::array<std::uint32_t, 2> philox_multipliers{0xD2511F53u, 0xCD9E8D57u};
inline constexpr std::array<std::uint32_t, 2> philox_key_steps{0x9E3779B9u, 0xBB67AE85u};
inline constexpr int philox_rounds = 10;

constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                              std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < philox_rounds; ++round) {
    const std::uint64_t p = std::uint64_t{philox_multipliers[0]} * counter[0];
    const std::uint64_t q = std::uint64_t{philox_multipliers[1]} * counter[2];
    counter = {
        static_cast<std::uint32_t>(q >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(q),
        static_cast<std::uint32_t>(p >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p)};
    key[0] += philox_key_steps[0];
    key[1] += philox_key_steps[1];
  }
  return counter;
}

// 64 random bits for `id`: the first half of the block with counter (id, stream) and key seed.
constexpr std::uint64_t random_bits(std::uint64_t seed, Stream stream, std::uint64_t id) {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  const auto word = static_cast<std::uint64_t>(stream);
  const auto block = philox({low(id), high(id), low(word), high(word)}, {low(seed), high(seed)});
  return block[0] | std::uint64_t{block[1]} << 32;
}

// What follows takes a number, or a vector of the compiler's (vector_size) with the same result in
// every lane: only IEEE additions, multiplications, divisions and bit operations, none fused.
template <class Real>
struct BitsOf {
  typedef unsigned long long type __attribute__((vector_size(sizeof(Real))));
};
template <>
struct BitsOf<double> {
  using type = std::uint64_t;
};
template <class Bits>
struct RealOf {
  typedef double type __attribute__((vector_size(sizeof(Bits))));
};
template <>
struct RealOf<std::uint64_t> {
  using type = double;
};

// Uniform in (0, 1), never 0 nor 1. Steps of 2^-64 near 0 (53 significant bits throughout), so
// that events rarer than 2^-53 still have about their right probability.
template <class Bits>
constexpr auto uniform(const Bits& bits) {
  using Real = typename RealOf<Bits>::type;
  // bits | 1 as a double, rounded once: the halves as mantissas of 2^84 + x 2^32 and 2^52 + y.
  const Bits x = bits >> 32 | 0x4530000000000000u;
  const Bits y = (bits & 0xffffffffu) | 0x4330000000000001u;
  const Real high = __builtin_bit_cast(Real, x) - 0x1.00000001p84;
  const Real u = (high + __builtin_bit_cast(Real, y)) * 0x1p-64;
  const Real largest = Real{} + (1 - 0x1p-53);
  return u < largest ? u : largest;
}

// x = 2^exponent * mantissa with the mantissa in [sqrt(1/2), sqrt(2)); x positive and normal.
template <class Real>
struct Split {
  Real exponent;
  Real mantissa;

  constexpr explicit Split(const Real& x) {
    using Bits = typename BitsOf<Real>::type;
    constexpr std::uint64_t one = 0x3FF0000000000000, sqrt_half = 0x3FE6A09E667F3BCD;
    const Bits bits = __builtin_bit_cast(Bits, x);
    const Bits biased = (bits + (one - sqrt_half)) >> 52;
    const Bits mantissa_bits = bits - (biased << 52) + one;
    const Bits as_mantissa = biased | 0x4330000000000000u;
    exponent = __builtin_bit_cast(Real, as_mantissa) - (0x1p52 + 1023);
    mantissa = __builtin_bit_cast(Real, mantissa_bits);
  }
};

// exponent * log(2) + 2 atanh(s), |s| <= 0.172. The series of atanh is below 2^-53 by its 12th
// term.
template <class Real>
constexpr Real log_from_parts(const Real& exponent, const Real& s) {
  const Real z = s * s;
  Real sum = Real{} + 1.0 / 23;
  for (int k = 10; k >= 0; --k) sum = sum * z + 1.0 / (2 * k + 1);
  constexpr double ln2_high = 0x1.62e42fefap-1;  // exact times any exponent
  constexpr double ln2_low = 0x1.cf79abc9e3b3ap-40;
  return exponent * ln2_high + (exponent * ln2_low + 2 * s * sum);
}

// Natural logarithm of a positive finite x, to two ulps.
template <class Real>
constexpr Real portable_log(const Real& x) {
  const Real zero{};
  const auto denormal = x < zero + 0x1p-1022;
  const Split<Real> part(denormal ? x * 0x1p54 : x);
  const Real s = (part.mantissa - 1) / (part.mantissa + 1);
  return log_from_parts(part.exponent - (denormal ? zero + 54 : zero), s);
}

// -log(1 - u): the standard exponential whose distribution function has the value u in (0, 1).
template <class Real>
constexpr Real exponential(const Real& u) {
  const auto small = u < Real{} + 0.25;  // where 1 - u would lose bits
  const Split<Real> part(1 - u);
  const Real numerator = small ? -u : part.mantissa - 1;
  const Real denominator = small ? 2 - u : part.mantissa + 1;
  return -log_from_parts(part.exponent, numerator / denominator);
}

}  // namespace pyids
