// Known answers of the generator, and the accuracy of what is computed from its bits.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "pyids/rng.hpp"

namespace {

void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

double relative_error(double got, long double expected) {
  return static_cast<double>(std::fabs((got - expected) / expected));
}

// The vectors that the authors of the generator publish for philox4x32-10.
void test_known_answers() {
  using Block = std::array<std::uint32_t, 4>;
  constexpr std::uint32_t ones = 0xffffffffu;
  static_assert(pyids::philox({0, 0, 0, 0}, {0, 0}) ==
                Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  static_assert(pyids::philox({ones, ones, ones, ones}, {ones, ones}) ==
                Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  static_assert(
      pyids::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
      Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

void test_streams_differ() {
  using pyids::Stream;
  const auto bits = [](Stream stream) { return pyids::random_bits(1, stream, 2); };
  check(bits(Stream::sampling) != bits(Stream::seeding), "streams are independent");
  check(bits(Stream::seeding) != bits(pyids::substream(Stream::seeding, 1)), "so are substreams");
}

void test_uniform_is_open() {
  check(pyids::uniform(std::uint64_t{0}) == 0x1p-64, "the smallest uniform is 2^-64");
  check(pyids::uniform(~std::uint64_t{0}) == 1 - 0x1p-53, "the largest uniform is below 1");
}

void test_logarithms() {
  for (std::uint64_t i = 0; i < 200000; ++i) {
    const double u = pyids::uniform(pyids::random_bits(3, pyids::Stream::sampling, i));
    const double x = std::ldexp(u, static_cast<int>(i % 2000) - 1000);
    const long double exact = std::log(static_cast<long double>(x));
    check(relative_error(pyids::portable_log(x), exact) < 0x1p-51, "log");
    const double small = std::ldexp(u, -static_cast<int>(i % 64));
    check(relative_error(pyids::exponential(small), -std::log1p(-static_cast<long double>(small))) <
              0x1p-50,
          "exponential");
  }
  using Limits = std::numeric_limits<double>;
  for (const double x :
       {1.0, Limits::min(), Limits::denorm_min(), Limits::max(), 0.75, 1 - 0x1p-53, 1 + 0x1p-52}) {
    const double error = pyids::portable_log(x) - std::log(x);
    check(std::fabs(error) <= 0x1p-51 * std::fabs(std::log(x)), "log at the edges");
  }
}

}  // namespace

int main() {
  test_known_answers();
  test_streams_differ();
  test_uniform_is_open();
  test_logarithms();
  return 0;
}
