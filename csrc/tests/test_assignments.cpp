// Whole assignments against brute force on what is hard: grids, ties, neighbors of a few units in
// the last place. `test_assignments N` runs N cases; PYIDS_SIMD chooses the level.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "hard_inputs.hpp"
#include "pyids/distance.hpp"
#include "pyids/kmeans.hpp"

namespace {

using namespace pyids;

double random_value(int kind, bool wide) {
  switch (kind) {
    case 0:  // a grid
      return static_cast<double>(static_cast<int>(generator() % 5) - 2);
    case 1: {  // a few units off a grid
      const int units[] = {0, 1, -1, 2, -2, 4, -4};
      const double base = static_cast<double>(static_cast<int>(generator() % 3) + 1);
      const int off = units[generator() % 7];
      return wide ? step(base, off) : step(static_cast<float>(base), off);
    }
    case 2:  // the same, about zero
      return std::ldexp(static_cast<double>(static_cast<int>(generator() % 9) - 4), -50);
    case 3: {  // int8 holds these
      return static_cast<double>(static_cast<int>(generator() % 255) - 127) * 0x1p-7;
    }
    default:
      return wide ? between(-1, 1) : static_cast<float>(between(-1, 1));
  }
}

void hostile_case(std::size_t number) {
  generator.seed(number);
  const std::size_t widths[] = {1, 2, 3, 4, 5, 8, 16, 17, 31, 32, 40, 64, 88, 100, 129, 384, 4096};
  const std::size_t d = widths[generator() % (number % 16 == 0 ? 17 : 15)];
  const std::size_t k = 1 + generator() % 40, n = d > 256 ? 24 : 70;
  const bool wide = generator() % 3 == 0;
  const int kind = static_cast<int>(generator() % 5);
  Values values(n * d), centers(k * d);
  for (double& v : values) v = random_value(kind, wide);
  for (std::size_t j = 0; j < k; ++j) {
    const bool a_row = generator() % 2 == 0;
    const std::size_t from = generator() % n;
    for (std::size_t t = 0; t < d; ++t) {
      double v = a_row ? values[from * d + t] : random_value(kind, wide);
      if (generator() % d == 0) v = random_value(1, wide);
      centers[j * d + t] = v;
    }
  }
  std::vector<float> narrow(values.begin(), values.end());
  const Rows rows =
      wide ? view(values, d)
           : Rows({Matrix{narrow.data(), n, d, static_cast<std::ptrdiff_t>(d * 4), Scalar::f32}});
  const FixedScale scale(largest_values(rows, 1), 1, n);
  LloydOptions options;
  options.max_memory_bytes = generator() % 2 == 0 ? 0 : SIZE_MAX;
  options.n_axes = generator() % 2 == 0 ? 0 : 16 * (1 + generator() % 3);
  Assigner assigner(rows, {}, scale, k, options);
  Values row(d);
  for (int iteration = 0; iteration < 4; ++iteration) {
    assigner.assign(centers.data());
    for (std::size_t i = 0; i < n; ++i) {
      rows.load(i, row.data());
      std::size_t best = 0;
      double nearest = std::numeric_limits<double>::infinity();
      long double exact_nearest = nearest, exact_own = 0;
      for (std::size_t j = 0; j < k; ++j) {
        const double distance = squared_distance(row.data(), &centers[j * d], d);
        if (distance < nearest) best = j, nearest = distance;
        long double exact = 0;
        for (std::size_t t = 0; t < d; ++t) {
          const long double difference = static_cast<long double>(row[t]) - centers[j * d + t];
          exact += difference * difference;
        }
        exact_nearest = std::min(exact_nearest, exact);
        if (j == static_cast<std::size_t>(assigner.labels()[i])) exact_own = exact;
      }
      check(assigner.labels()[i] == static_cast<std::int32_t>(best),
            "labels of case " + std::to_string(number));
      check(exact_own <= exact_nearest * (1 + 2.1L * static_cast<long double>(canonical_error(d))),
            "nearest of case " + std::to_string(number));
    }
    if (iteration == 1) {  // some centers move by a little only
      for (double& v : centers) {
        if (generator() % 8 == 0) v = wide ? step(v, 1) : step(static_cast<float>(v), 1);
      }
      continue;
    }
    update_centers(assigner.sums().data(), assigner.mass().data(), scale, k, wide, false,
                   centers.data());
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t n_cases = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 400;
  for (std::size_t number = 0; number < n_cases; ++number) hostile_case(number);
  std::printf("%zu cases ok at %s\n", n_cases, simd_name(simd_level()));
}
