// The greedy core on ragged shapes: the same picks for any threads and shards, with lists or
// without. What the picks are is tested against the Python reference.
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "pyids/greedy.hpp"
#include "pyids/rng.hpp"

using namespace pyids;

#define CHECK(condition)                                        \
  if (!(condition)) {                                           \
    std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
    std::exit(1);                                               \
  }

namespace {

std::vector<float> random_rows(std::size_t n, std::size_t d) {
  std::vector<float> values(n * d);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(uniform(random_bits(7, Stream::seeding, i))) / 8;
  }
  return values;
}

Rows rows_of(const std::vector<float>& values, std::size_t d, std::vector<std::size_t> cuts) {
  std::vector<Matrix> shards;
  const std::size_t n = values.size() / d;
  cuts.push_back(n);
  std::size_t from = 0;
  for (const std::size_t to : cuts) {
    shards.push_back({values.data() + from * d, to - from, d,
                      static_cast<std::ptrdiff_t>(d * sizeof(float)), Scalar::f32});
    from = to;
  }
  return Rows(shards);
}

bool same(const Picks& a, const Picks& b) { return a.rows == b.rows && a.values == b.values; }

void test(std::size_t n, std::size_t d, std::size_t budget) {
  const std::vector<float> values = random_rows(n, d);
  const Rows whole = rows_of(values, d, {});
  const Rows cut = rows_of(values, d, {n / 3, n / 3, n / 2});
  GreedyOptions one, three;
  one.n_threads = 1;
  three.n_threads = 3;
  std::vector<double> weights(n);
  std::iota(weights.begin(), weights.end(), 1.0);
  std::vector<std::int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);

  CHECK(same(farthest_first(whole, budget, n / 2, one), farthest_first(cut, budget, n / 2, three)));
  FacilityOptions lists, no_lists, stochastic;
  no_lists.list_bytes = 0;
  stochastic.epsilon = 0.3;
  const FacilityPicks picks = facility_location(whole, whole, budget, lists, one);
  CHECK(picks.rows.size() == budget);
  CHECK(same(picks, facility_location(cut, whole, budget, no_lists, three)));
  CHECK(same(facility_location(whole, whole, budget, stochastic, one),
             facility_location(cut, cut, budget, stochastic, three)));
  CHECK(same(filter_near(whole, order, budget, 0.2, one),
             filter_near(cut, order, budget, 0.2, three)));
  CHECK(same(novel_select(whole, budget, 0, weights, 1.0, budget / 2 + 1, one),
             novel_select(cut, budget, 0, weights, 1.0, budget / 2 + 1, three)));
  if (n > 3) {
    CHECK(neighbor_distances(whole, whole, order, 3, one) ==
          neighbor_distances(cut, cut, order, 3, three));
  }
}

}  // namespace

int main() {
  test(1, 1, 1);
  test(2, 3, 2);
  test(130, 17, 130);
  test(777, 33, 60);
  std::puts("greedy: all passed");
  return 0;
}
