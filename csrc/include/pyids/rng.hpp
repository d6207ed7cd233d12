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

// Uniform in (0, 1), never 0 nor 1. Steps of 2^-64 near 0 (53 significant bits throughout), so
// that events rarer than 2^-53 still have about their right probability.
constexpr double uniform(std::uint64_t bits) {
  const double u = static_cast<double>(bits | 1) * 0x1p-64;
  return u < 1 - 0x1p-53 ? u : 1 - 0x1p-53;
}

// atanh(s) / s for |s| <= 0.172 from its series, which by the 11th term is below 2^-53.
constexpr double atanh_over(double s) {
  const double z = s * s;
  double sum = 1.0 / 23;
  for (int k = 10; k >= 0; --k) sum = sum * z + 1.0 / (2 * k + 1);
  return sum;
}

// Natural logarithm of a positive finite x, to two ulps; additions and multiplications only.
constexpr double portable_log(double x) {
  const double scale = x < 0x1p-1022 ? 0x1p54 : 1;  // denormals: take them to the normal range
  const auto bits = std::bit_cast<std::uint64_t>(x * scale);
  // Cut x = 2^e * m so that m is in [sqrt(1/2), sqrt(2)).
  constexpr std::uint64_t sqrt_half = 0x3FE6A09E667F3BCD;
  const auto e = static_cast<std::int64_t>(bits - sqrt_half) >> 52;
  const auto m = std::bit_cast<double>(bits - (static_cast<std::uint64_t>(e) << 52));
  const double exponent = static_cast<double>(e) - (scale == 1 ? 0 : 54);
  const double s = (m - 1) / (m + 1);
  constexpr double ln2_high = 0x1.62e42fefap-1;  // exact times any exponent
  constexpr double ln2_low = 0x1.cf79abc9e3b3ap-40;
  return exponent * ln2_high + (exponent * ln2_low + 2 * s * atanh_over(s));
}

// -log(1 - u): the standard exponential whose distribution function has the value u in (0, 1).
constexpr double exponential(double u) {
  if (u >= 0.25) return -portable_log(1 - u);
  const double s = u / (2 - u);
  return 2 * s * atanh_over(s);
}

}  // namespace pyids
