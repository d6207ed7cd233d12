#include "pyids/seeding.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "pyids/codes.hpp"
#include "pyids/distance.hpp"
#include "pyids/parallel.hpp"
#include "pyids/rng.hpp"

namespace pyids {

namespace {

constexpr std::size_t kBlockRows = 1024;
constexpr std::size_t kMostCandidates = 1024;

// A row that is nearer to a candidate than to the rows taken so far.
struct Near {
  std::uint32_t candidate;
  std::uint32_t row;
  double distance;
};

class Seeder {
 public:
  Seeder(const Rows& rows, const std::vector<double>& weights, double reach, std::uint64_t seed,
         int n_threads, std::size_t max_memory_bytes)
      : rows_(rows),
        weights_(weights),
        reach_(reach),
        seed_(seed),
        n_threads_(n_threads),
        nearest_(rows.size(), std::numeric_limits<double>::infinity()),
        cumulative_(rows.size()) {
    const bool pays = Coding::int8_pays(rows.n_cols());
    const std::size_t bytes = rows.size() * (rows.n_cols() + kCodeAlignment + sizeof(RowCode));
    code_rows(pays && bytes <= max_memory_bytes);
  }

  std::vector<std::size_t> run(std::size_t k);

 private:
  double weight(std::size_t i) const { return weights_.empty() ? 1.0 : weights_[i]; }
  double uniform_draw() { return uniform(random_bits(seed_, Stream::seeding, counter_++)); }
  void code_rows(bool int8);
  std::size_t draw() {
    const double at = uniform_draw() * cumulative_.back();
    const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), at);
    return std::min(static_cast<std::size_t>(found - cumulative_.begin()), rows_.size() - 1);
  }
  std::vector<double> load(const std::vector<std::size_t>& which) const;
  std::vector<Near> find_near(const std::vector<std::size_t>& candidates);

  const Rows& rows_;
  const std::vector<double>& weights_;
  double reach_;
  std::uint64_t seed_;
  int n_threads_;
  std::uint64_t counter_ = 0;
  std::vector<double> nearest_;     // squared distance to the rows taken
  std::vector<double> cumulative_;  // of weight * nearest, when the candidates were drawn
  bool int8_ = false;
  std::vector<std::uint8_t> codes_;  // empty: coded when needed
  std::vector<RowCode> info_;
};

void Seeder::code_rows(bool int8) {
  int8_ = int8;
  info_.resize(int8 ? rows_.size() : 0);
  codes_.clear();
  if (!int8) return;
  const Coding coding(rows_, true, reach_);
  codes_.resize((rows_.size() + kScanRows) * coding.bytes());
  parallel_blocks(
      (rows_.size() + kBlockRows - 1) / kBlockRows, n_threads_, [&](std::size_t block, int) {
        std::vector<float> scratch(rows_.n_cols());
        const std::size_t end = std::min(rows_.size(), (block + 1) * kBlockRows);
        for (std::size_t i = block * kBlockRows; i < end; ++i) {
          info_[i] =
              encode_row(coding, rows_, i, scratch.data(), codes_.data() + i * coding.bytes());
        }
      });
}

std::vector<double> Seeder::load(const std::vector<std::size_t>& which) const {
  std::vector<double> values(which.size() * rows_.n_cols());
  for (std::size_t c = 0; c < which.size(); ++c) {
    rows_.load(which[c], values.data() + c * rows_.n_cols());
  }
  return values;
}

// By candidate, then by row.
std::vector<Near> Seeder::find_near(const std::vector<std::size_t>& candidates) {
  const Coding coding(rows_, int8_, reach_);
  CenterTable table(candidates.size(), rows_.n_cols());
  table.set(load(candidates).data(), coding, n_threads_);
  std::vector<std::int32_t> every(candidates.size());
  std::iota(every.begin(), every.end(), 0);
  const CenterTable::Pack pack = table.pack(every, n_threads_);
  const std::size_t bytes = coding.bytes();

  const std::size_t n_blocks = (rows_.size() + kBlockRows - 1) / kBlockRows;
  std::vector<std::vector<Near>> found(n_blocks);
  std::vector<std::size_t> evaluated(n_blocks);
  struct Buffers {
    std::vector<std::uint8_t> local;
    std::vector<float> scratch;
    std::vector<double> row;
    std::vector<Hit> hits, sorted;
  };
  std::vector<Buffers> buffers(static_cast<std::size_t>(n_threads_));
  parallel_blocks(n_blocks, n_threads_, [&](std::size_t block, int thread) {
    auto& [local, scratch, row, hits, sorted] = buffers[static_cast<std::size_t>(thread)];
    local.resize(codes_.empty() ? kScanRows * bytes : 0);
    scratch.resize(rows_.n_cols());
    row.resize(rows_.n_cols());
    hits.resize(kScanRows * pack.size());
    sorted.resize(kScanRows * pack.size());
    ScanRow state[kScanRows];
    const std::size_t end = std::min(rows_.size(), (block + 1) * kBlockRows);
    for (std::size_t first = block * kBlockRows; first < end; first += kScanRows) {
      const std::size_t n = std::min(kScanRows, end - first);
      for (std::size_t i = 0; i < n; ++i) {
        const RowCode code = codes_.empty() ? encode_row(coding, rows_, first + i, scratch.data(),
                                                         local.data() + i * bytes)
                                            : info_[first + i];
        // Every candidate nearer than the rows taken counts, not the nearest alone.
        const float limit = above(nearest_[first + i] * coding.unit() * coding.unit(), code);
        state[i] = scan_row(code, rows_.n_cols(), limit, 0.0f, limit);
      }
      const std::uint8_t* codes = codes_.empty() ? local.data() : codes_.data() + first * bytes;
      const std::size_t n_hits = scan(coding, codes, n, pack.view(), state, hits.data());
      evaluated[block] += n_hits;
      std::uint32_t starts[kScanRows + 1];
      group_by_row(hits.data(), n_hits, n, sorted.data(), starts);
      for (std::size_t i = 0; i < n; ++i) {
        if (starts[i] == starts[i + 1]) continue;
        rows_.load(first + i, row.data());
        for (std::size_t h = starts[i]; h < starts[i + 1]; ++h) {
          const double distance = table.squared_distance_to(row.data(), sorted[h].center);
          if (distance < nearest_[first + i]) {
            found[block].push_back({static_cast<std::uint32_t>(sorted[h].center),
                                    static_cast<std::uint32_t>(first + i), distance});
          }
        }
      }
    }
  });

  std::vector<std::size_t> next(candidates.size() + 1);
  for (const auto& block : found) {
    for (const Near& near : block) ++next[near.candidate + 1];
  }
  std::partial_sum(next.begin(), next.end(), next.begin());
  std::vector<Near> all(next.back());
  for (const auto& block : found) {
    for (const Near& near : block) all[next[near.candidate]++] = near;
  }
  // Codes that rule out less than 19 of 20 pairs cost more than they save; the first few rows taken
  // are far from everything and say little.
  const std::size_t cost = std::accumulate(evaluated.begin(), evaluated.end(), std::size_t{0});
  if (int8_ && candidates.size() >= 64 && cost - all.size() > rows_.size() * candidates.size() / 20)
    code_rows(false);
  return all;
}

std::vector<std::size_t> Seeder::run(std::size_t k) {
  const std::size_t n = rows_.size();
  const std::size_t trials = 2 + static_cast<std::size_t>(std::log(static_cast<double>(k)));
  auto accumulate = [&](auto&& value) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) cumulative_[i] = sum += value(i);
  };
  accumulate([&](std::size_t i) { return weight(i); });
  std::vector<std::size_t> taken = {draw()};
  lower_to_distance(rows_, load(taken).data(), nearest_.data(), n_threads_);
  while (taken.size() < k) {
    check_interrupt();
    accumulate([&](std::size_t i) { return weight(i) * nearest_[i]; });
    if (!(cumulative_.back() > 0)) {
      accumulate([&](std::size_t i) { return weight(i); });
      while (taken.size() < k) taken.push_back(draw());
      break;
    }
    const std::size_t steps =
        std::clamp<std::size_t>(taken.size() / 4, 1, kMostCandidates / trials);
    std::vector<std::size_t> candidates(trials * std::min(steps, k - taken.size()));
    for (std::size_t& candidate : candidates) candidate = draw();
    const std::vector<Near> near = find_near(candidates);
    const std::vector<double> then = nearest_;
    std::size_t at = 0, c = 0;  // in near; among the candidates
    while (taken.size() < k) {
      double best_gain = -1;
      std::size_t best = 0, best_begin = 0, best_end = 0, accepted = 0;
      for (; c < candidates.size() && accepted < trials; ++c) {
        const std::size_t begin = at;
        while (at < near.size() && near[at].candidate == c) ++at;
        const std::size_t row = candidates[c];
        if (uniform_draw() * then[row] > nearest_[row]) continue;
        ++accepted;
        double gain = 0;
        for (std::size_t e = begin; e < at; ++e) {
          gain += weight(near[e].row) * std::max(0.0, nearest_[near[e].row] - near[e].distance);
        }
        if (gain > best_gain) {
          best_gain = gain;
          best = row;
          best_begin = begin;
          best_end = at;
        }
      }
      if (accepted < trials) break;
      taken.push_back(best);
      for (std::size_t e = best_begin; e < best_end; ++e) {
        nearest_[near[e].row] = std::min(nearest_[near[e].row], near[e].distance);
      }
    }
  }
  return taken;
}

}  // namespace

std::vector<std::size_t> seed_rows(const Rows& rows, const std::vector<double>& weights,
                                   double reach, std::size_t k, std::uint64_t seed, int n_threads,
                                   std::size_t max_memory_bytes) {
  return Seeder(rows, weights, reach, seed, n_threads, max_memory_bytes).run(k);
}

}  // namespace pyids
