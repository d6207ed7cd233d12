// Greedy maximization of a facility location, lazy or stochastic.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "coverage.hpp"
#include "pyids/greedy.hpp"
#include "pyids/rng.hpp"

namespace pyids {

namespace {

// What a row gains: known, or at most this.
struct Gain {
  double gain;
  std::int64_t row;
  std::size_t at;  // the number of picks that it was computed for
  bool exact;
  // The order of a max-heap: larger gain first, then lower row.
  bool operator<(const Gain& other) const {
    return gain != other.gain ? gain < other.gain : row > other.row;
  }
};

// The `count` rows with the smallest random keys of this step, ascending.
std::vector<std::int64_t> draw(std::span<const std::int64_t> rows, std::size_t count,
                               std::uint64_t seed, std::size_t step) {
  std::vector<std::pair<std::uint64_t, std::int64_t>> keyed(rows.size());
  const Stream stream = substream(Stream::greedy, static_cast<std::uint32_t>(step));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    keyed[i] = {random_bits(seed, stream, static_cast<std::uint64_t>(rows[i])), rows[i]};
  }
  count = std::min(count, keyed.size());
  std::nth_element(keyed.begin(), keyed.begin() + static_cast<std::ptrdiff_t>(count) - 1,
                   keyed.end());
  std::vector<std::int64_t> drawn(count);
  for (std::size_t i = 0; i < count; ++i) drawn[i] = keyed[i].second;
  std::sort(drawn.begin(), drawn.end());
  return drawn;
}

class Greedy {
 public:
  Greedy(const Rows& rows, const Rows& served, std::size_t budget, const FacilityOptions& facility,
         int n_threads)
      : facility_(facility),
        budget_(budget),
        n_(rows.size()),
        unit_weight_((1 - facility.alpha) / (static_cast<double>(served.size()) * 0x1p20)),
        quality_weight_(facility.alpha / static_cast<double>(budget)),
        coverage_(rows, served, facility.list_bytes, n_threads) {}

  FacilityPicks lazy();
  FacilityPicks stochastic();

 private:
  double value(double units, std::int64_t row) const {
    const double q =
        facility_.quality.empty() ? 0.0 : facility_.quality[static_cast<std::size_t>(row)];
    return unit_weight_ * units + quality_weight_ * q;
  }
  Gain exact(std::int64_t row) const {
    return {value(static_cast<double>(coverage_.gain(row)), row), row, picks_.rows.size(), true};
  }
  std::vector<Gain> upper(std::span<const std::int64_t> rows) const {
    const std::vector<double> units = coverage_.upper_gains(rows);
    std::vector<Gain> gains;
    for (std::size_t j = 0; j < rows.size(); ++j) {
      gains.push_back({value(units[j], rows[j]), rows[j], picks_.rows.size(), false});
    }
    return gains;
  }
  void take(const Gain& best) {
    picks_.rows.push_back(best.row);
    picks_.values.push_back(best.gain);
    if (picks_.rows.size() < budget_) coverage_.add(best.row);
  }
  void lower_to_coarse(std::vector<Gain>& heap);
  void refresh(std::vector<Gain>& heap, std::size_t most);
  Gain pop_best(std::vector<Gain>& heap);

  const FacilityOptions& facility_;
  std::size_t budget_, n_;
  double unit_weight_, quality_weight_;
  Coverage coverage_;
  FacilityPicks picks_;
};

// Where moments of all products say that a row gains less than was known.
void Greedy::lower_to_coarse(std::vector<Gain>& heap) {
  const std::vector<double> coarse = coverage_.coarse_gains();
  if (coarse.empty()) return;
  for (Gain& gain : heap) {
    const double most = value(coarse[static_cast<std::size_t>(gain.row)], gain.row);
    if (most < gain.gain) gain = {most, gain.row, gain.at, false};
  }
  std::make_heap(heap.begin(), heap.end());
}

// Bounds the gains of up to `most` rows from the top that were computed for fewer picks.
void Greedy::refresh(std::vector<Gain>& heap, std::size_t most) {
  std::vector<std::int64_t> stale;
  while (!heap.empty() && stale.size() < most && heap.front().at != picks_.rows.size()) {
    std::pop_heap(heap.begin(), heap.end());
    stale.push_back(heap.back().row);
    heap.pop_back();
  }
  picks_.n_evaluations += stale.size();
  for (const Gain& gain : upper(stale)) {
    heap.push_back(gain);
    std::push_heap(heap.begin(), heap.end());
  }
}

// Gains only shrink as rows are picked, so an old gain, or a bound of it, is an upper bound: a row
// whose own gain tops all others' bounds is the best one.
Gain Greedy::pop_best(std::vector<Gain>& heap) {
  std::size_t batch = 64;
  for (;;) {
    check_interrupt();
    const Gain top = heap.front();
    const bool fresh = top.at == picks_.rows.size();
    if (!fresh && !coverage_.is_listed()) {
      // One product more costs little in a batch.
      refresh(heap, batch);
      batch = std::min<std::size_t>(2 * batch, 4 * kPanelRows);
      continue;
    }
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    if (fresh && top.exact) return top;
    heap.push_back(exact(top.row));
    std::push_heap(heap.begin(), heap.end());
  }
}

FacilityPicks Greedy::lazy() {
  std::vector<Gain> heap;
  constexpr std::size_t never = SIZE_MAX;
  for (std::size_t row = 0; row < n_; ++row) {
    heap.push_back({kFar, static_cast<std::int64_t>(row), never, false});
  }
  std::make_heap(heap.begin(), heap.end());
  while (picks_.rows.size() < budget_) {
    if (!coverage_.is_listed()) lower_to_coarse(heap);
    take(pop_best(heap));
  }
  return picks_;
}

FacilityPicks Greedy::stochastic() {
  std::vector<std::int64_t> left(n_);
  std::iota(left.begin(), left.end(), 0);
  const auto count = static_cast<std::size_t>(
      std::max(1.0, std::ceil(static_cast<double>(n_) / static_cast<double>(budget_) *
                              std::log(1 / facility_.epsilon))));
  while (picks_.rows.size() < budget_) {
    const auto drawn = draw(left, count, facility_.seed, picks_.rows.size());
    std::vector<Gain> heap;
    if (coverage_.is_listed()) {
      for (const std::int64_t row : drawn) heap.push_back(exact(row));
    } else {
      heap = upper(drawn);
      picks_.n_evaluations += drawn.size();
    }
    std::make_heap(heap.begin(), heap.end());
    const Gain best = pop_best(heap);
    take(best);
    left.erase(std::lower_bound(left.begin(), left.end(), best.row));
  }
  return picks_;
}

}  // namespace

FacilityPicks facility_location(const Rows& rows, const Rows& served, std::size_t budget,
                                const FacilityOptions& facility, const GreedyOptions& options) {
  if (budget == 0) return {};
  Greedy greedy(rows, served, budget, facility, resolve_threads(options.n_threads));
  return facility.epsilon > 0 ? greedy.stochastic() : greedy.lazy();
}

}  // namespace pyids
