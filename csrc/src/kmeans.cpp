#include "pyids/kmeans.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "assigner.hpp"
#include "pyids/distance.hpp"

namespace pyids {

std::size_t Assigner::State::assign(const double* values) {
  const std::size_t d = rows.n_cols(), n = rows.size();
  const double reach = largest_center_value(values, n_clusters, d);
  if (std::exchange(broken, true)) forget();
  Work work;
  work.drift.assign(n_clusters, std::numeric_limits<double>::infinity());
  std::vector<std::int32_t> every(n_clusters), moved;
  std::iota(every.begin(), every.end(), 0);
  if (!first) {
    parallel_blocks((n_clusters + 63) / 64, options.n_threads, [&](std::size_t block, int) {
      for (std::size_t j = block * 64; j < std::min(n_clusters, (block + 1) * 64); ++j) {
        work.drift[j] = 0;
        if (std::memcmp(values + j * d, centers.values() + j * d, d * sizeof(double)) == 0)
          continue;
        const double distance = squared_distance(values + j * d, centers.values() + j * d, d);
        // A square may vanish whose root does not: 2^-520.
        work.drift[j] = std::sqrt(distance) * (1 + kDistanceError) + 0x1p-520;
      }
    });
    for (std::size_t j = 0; j < n_clusters; ++j) {
      if (work.drift[j] > 0) moved.push_back(static_cast<std::int32_t>(j));
    }
  }
  // Centers farther out than any row, which no iteration makes: the start may be anywhere.
  if (reach > coding.reach()) {
    recode(coding.int8(), reach);
    known.assign(n, RowState{});
    fresh = true;
  }
  auto prepare = [&] {
    centers.set(values, coding, options.n_threads, axes ? &*axes : nullptr);
    work.all = centers.pack(every, options.n_threads);
    work.moved = centers.pack(moved, options.n_threads);
  };
  prepare();

  std::vector<std::int32_t> before(std::min(kChunkRows, n));
  buffers.resize(static_cast<std::size_t>(options.n_threads));
  for (Scratch& one : buffers) one.scanned = one.evaluated = one.looked = one.met = 0;
  std::size_t changed = 0;
  for (std::size_t begin = 0, end = 0; begin < n; begin = end) {
    // Start small: whether the codes are any good is soon known.
    end = std::min(n, begin + (first && begin == 0 ? kTrialRows : kChunkRows));
    std::copy(labels.begin() + static_cast<std::ptrdiff_t>(begin),
              labels.begin() + static_cast<std::ptrdiff_t>(end), before.begin());
    parallel_blocks((end - begin + kBlockRows - 1) / kBlockRows, options.n_threads,
                    [&](std::size_t block, int thread) {
                      const std::size_t from = begin + block * kBlockRows;
                      assign_block(from, std::min(kBlockRows, end - from), work,
                                   buffers[static_cast<std::size_t>(thread)]);
                    });
    for (std::size_t i = begin; i < end; ++i) changed += labels[i] != before[i - begin];
    update_chunk(begin, end, before);
    if (coding.int8() && too_coarse()) {
      recode(false, coding.reach());
      prepare();
    } else if (axes && !first && !axes_pay()) {
      find_axes(0);
      prepare();
    }
  }
  first = fresh = broken = false;
  return changed;
}

// An exact distance takes about 20 times as long as ruling out a center by float32 codes.
bool Assigner::State::too_coarse() const {
  std::size_t scanned = 0, evaluated = 0;
  for (const Scratch& one : buffers) {
    scanned += one.scanned;
    evaluated += one.evaluated;
  }
  return evaluated > scanned * (2 + n_clusters / 20);
}

// Comparing a pair alone takes about four times as long as in a block.
bool Assigner::State::axes_pay() const {
  std::size_t looked = 0, met = 0;
  for (const Scratch& one : buffers) {
    looked += one.looked;
    met += one.met;
  }
  const double share = static_cast<double>(axes->size()) / static_cast<double>(rows.n_cols());
  return options.n_axes != SIZE_MAX ||
         4 * static_cast<double>(met) <= (0.9 - share) * static_cast<double>(looked);
}

// As many axes as are known to pay: a quarter of the columns, where enough is compared to pay for
// finding them.
void Assigner::State::find_axes(std::size_t left_bytes) {
  axes.reset();
  prefixes.reset();
  prefix_rows.clear();
  if (left_bytes == 0 || !coding.int8() || kernels().scan_prefix_i8 == nullptr) return;
  const std::size_t d = rows.n_cols();
  const bool choose = options.n_axes == SIZE_MAX;
  const bool enough = d >= 128 && n_clusters >= 128 && rows.size() * n_clusters >= kPairsForAxes;
  const std::size_t n = choose ? (enough ? d / 4 : 0) : options.n_axes;
  const std::size_t p = (n + 15) / 16 * 16;
  const std::size_t bytes =
      rows.size() * (p + sizeof(PrefixRow)) + kScanRows * p + PrincipalAxes::bytes_of(d);
  if (n == 0 || p > d || bytes > left_bytes) return;
  axes = PrincipalAxes::of(rows, coding, p, choose ? 0.5 : 1.0);
  if (!axes) return;
  prefix_rows.resize(rows.size());
  prefixes = std::make_unique_for_overwrite<std::uint8_t[]>(rows.size() * p + kScanRows * p);
  std::fill_n(prefixes.get() + rows.size() * p, kScanRows * p, 0);
}

void Assigner::State::update_chunk(std::size_t begin, std::size_t end,
                                   const std::vector<std::int32_t>& before) {
  const std::size_t d = rows.n_cols();
  struct Move {
    std::size_t row;
    std::int64_t sign;
  };
  // Counting sort of the moves by cluster: one thread owns a cluster's sums.
  std::vector<std::size_t> starts(n_clusters + 1);
  auto each_move = [&](auto&& visit) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::int32_t from = before[i - begin], to = labels[i];
      if (from == to) continue;
      if (from >= 0) visit(static_cast<std::size_t>(from), Move{i, -1});
      visit(static_cast<std::size_t>(to), Move{i, 1});
    }
  };
  each_move([&](std::size_t cluster, Move) { ++starts[cluster + 1]; });
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  std::vector<Move> moves(starts.back());
  std::vector<std::size_t> next(starts.begin(), starts.end() - 1);
  each_move([&](std::size_t cluster, Move move) { moves[next[cluster]++] = move; });
  parallel_blocks(n_clusters, options.n_threads, [&](std::size_t cluster, int) {
    if (starts[cluster] == starts[cluster + 1]) return;
    std::vector<double> row(d);
    for (std::size_t m = starts[cluster]; m < starts[cluster + 1]; ++m) {
      const std::size_t i = moves[m].row;
      if (m + 1 < starts[cluster + 1]) rows.prefetch(moves[m + 1].row);
      rows.load(i, row.data());
      const bool classes = !weights.classes.empty();
      const double weight = classes                ? weights.in_class[i]
                            : weights.held.empty() ? 1.0
                                                   : weights.held[i];
      scale.add(row.data(), weight, classes ? weights.classes[i] : 0, moves[m].sign, cluster,
                n_clusters, sums.data(), mass.data());
    }
  });
}

// visit(row, squared distance to the own center), from several threads.
template <typename Visit>
void Assigner::State::each_distance(Visit&& visit) const {
  if (first || broken) throw std::logic_error("no rows are assigned: call assign first");
  parallel_blocks((rows.size() + kBlockRows - 1) / kBlockRows, options.n_threads,
                  [&](std::size_t block, int thread) {
                    std::vector<double> row(rows.n_cols());
                    const std::size_t first = block * kBlockRows;
                    for (std::size_t i = first; i < std::min(rows.size(), first + kBlockRows);
                         ++i) {
                      rows.load(i, row.data());
                      visit(i, centers.squared_distance_to(row.data(), labels[i]), thread);
                    }
                  });
}

Assigner::Assigner(Rows rows, RowWeights weights, FixedScale scale, std::size_t n_clusters,
                   LloydOptions options)
    : state_(std::make_unique<State>(std::move(rows), std::move(weights), std::move(scale),
                                     n_clusters, options)) {}

Assigner::~Assigner() = default;

std::size_t Assigner::assign(const double* centers) { return state_->assign(centers); }

const std::vector<std::int32_t>& Assigner::labels() const { return state_->labels; }
const std::vector<std::int64_t>& Assigner::sums() const { return state_->sums; }
const std::vector<std::int64_t>& Assigner::mass() const { return state_->mass; }

__int128 Assigner::inertia(int shift) const {
  std::vector<__int128> partial(static_cast<std::size_t>(state_->options.n_threads));
  state_->each_distance([&](std::size_t i, double distance, int thread) {
    const double weight = state_->weights.held.empty() ? 1.0 : state_->weights.held[i];
    partial[static_cast<std::size_t>(thread)] +=
        static_cast<__int128>(std::ldexp(weight * distance, shift));
  });
  return std::accumulate(partial.begin(), partial.end(), __int128{0});
}

std::vector<FarRow> Assigner::farthest(std::size_t count) const {
  const auto farther = [](const FarRow& a, const FarRow& b) {
    return a.squared_distance > b.squared_distance ||
           (a.squared_distance == b.squared_distance && a.row < b.row);
  };
  count = std::min(count, state_->rows.size());
  auto keep = [&](std::vector<FarRow>& some) {
    const std::size_t kept = std::min(count, some.size());
    std::partial_sort(some.begin(), some.begin() + static_cast<std::ptrdiff_t>(kept), some.end(),
                      farther);
    some.resize(kept);
  };
  const std::vector<double>& weights = state_->weights.held;
  std::vector<std::vector<FarRow>> partial(static_cast<std::size_t>(state_->options.n_threads));
  state_->each_distance([&](std::size_t i, double distance, int thread) {
    if (!weights.empty() && weights[i] <= kLightest) return;
    auto& mine = partial[static_cast<std::size_t>(thread)];
    mine.push_back({distance, i});
    if (mine.size() > 4 * count + 4096) keep(mine);
  });
  std::vector<FarRow> far;
  for (const auto& some : partial) far.insert(far.end(), some.begin(), some.end());
  keep(far);
  return far;
}

}  // namespace pyids
