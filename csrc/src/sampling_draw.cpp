#include "sampling_draw.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace pyids {
namespace {

constexpr double float_max = std::numeric_limits<float>::max();

// A thread's share of a draw from so many clusters: kept rows, bounds, tallies. What many threads
// hold at once is at most this, or the size of the labels where that is more.
constexpr std::size_t kBytesACluster = 128;
constexpr std::size_t kLeastMemory = std::size_t{64} << 20;

int threads_that_fit(const SampleRows& rows, std::size_t n_clusters, const SampleOptions& options) {
  const std::size_t memory =
      std::min(options.max_memory_bytes, std::max(kLeastMemory, rows.size * sizeof(std::int32_t)));
  const std::size_t each = n_clusters * kBytesACluster + 256 * block_rows;
  const std::size_t n_blocks = rows.size / block_rows + 1;
  const auto wanted = static_cast<std::size_t>(resolve_threads(options.n_threads));
  return static_cast<int>(std::max<std::size_t>(1, std::min({wanted, n_blocks, memory / each})));
}

// A key log(w) - log(E) reaches the threshold only if E <= w exp(-threshold), and E is at least
// the uniform number it is made of; both in units of 2^-32.
double bound(const SampleKey& threshold) {
  return std::exp(-threshold.high) * (0x1p32 * (1 + 1e-9));
}

}  // namespace

Draw::Draw(const SampleRows& rows, std::span<const std::int64_t> quotas,
           const SampleOptions& options)
    : rows_(rows),
      kernels_(sampling_kernels(simd_level())),
      seed_(options.seed),
      n_threads_(threads_that_fit(rows, quotas.size(), options)),
      allow_fewer_(options.allow_fewer || !options.floors.empty()),
      quotas_(quotas.begin(), quotas.end()),
      floors_(options.floors.begin(), options.floors.end()),
      references_(reference_log_weights(rows, quotas.size())),
      kept_(static_cast<std::size_t>(n_threads_)) {}

std::vector<Drawn> Draw::draw() {
  if (draw_above_floors() || draw_unchecked()) return best_rows();
  checking_ = bad_ = false;
  tallies_ = tally_rows(rows_, references_, n_threads_);
  needed_ = rows_needed(quotas_, tallies_, allow_fewer_);
  for (auto& mine : kept_) mine.clear();
  const std::vector<SampleKey> thresholds = guess_thresholds();
  collect(needed_, thresholds);
  draw_again(thresholds);
  if (bad_) throw_changed();
  return best_rows();
}

SampleKey Draw::floor_of(std::size_t cluster) const {
  return floors_.empty() ? lowest_key : floors_[cluster];
}

// Collects anew from clusters whose threshold was guessed too high.
void Draw::draw_again(const std::vector<SampleKey>& thresholds) {
  const std::size_t n_clusters = needed_.size();
  std::vector<std::size_t> missing(n_clusters);
  std::vector<SampleKey> floors(n_clusters);
  bool any = false;
  for (std::size_t c = 0; c < n_clusters; ++c) {
    floors[c] = floor_of(c);
    if (n_kept(c) >= needed_[c] || thresholds[c] <= floors[c]) continue;
    missing[c] = needed_[c];
    any = true;
    for (auto& mine : kept_) {
      if (!mine.empty()) mine[c].candidates.clear();
    }
  }
  if (any) collect(missing, floors);
  for (std::size_t c = 0; c < n_clusters; ++c) {
    if (n_kept(c) >= needed_[c]) continue;
    if (floors_.empty()) throw_changed();
    needed_[c] = n_kept(c);
  }
}

// A key a cluster, that about as many rows as needed should reach.
std::vector<SampleKey> Draw::guess_thresholds() {
  std::vector<SampleKey> thresholds(needed_.size());
  for (std::size_t c = 0; c < needed_.size(); ++c) {
    thresholds[c] = std::max(floor_of(c), guess_threshold(tallies_[c], references_[c], needed_[c]));
  }
  bases_ = thresholds;
  for (auto& base : bases_) {
    if (base == lowest_key) base = {0, 0};
  }
  return thresholds;
}

// Where every cluster has a floor, there is nothing to guess. False where a row is bad, for the two
// passes to find out which.
bool Draw::draw_above_floors() {
  if (floors_.empty() || rows_.log_weights || rows_.weights.index() == 0 ||
      std::ranges::any_of(quotas_, [](std::int64_t quota) { return quota < 0; })) {
    return false;
  }
  for (std::size_t c = 0; c < quotas_.size(); ++c) {
    if (quotas_[c] > 0 && !std::isfinite(floors_[c].high)) return false;
  }
  needed_.assign(quotas_.begin(), quotas_.end());
  bases_ = floors_;
  checking_ = true;
  collect(needed_, floors_);
  checking_ = false;
  for (std::size_t c = 0; c < needed_.size(); ++c) needed_[c] = std::min(needed_[c], n_kept(c));
  return !bad_;
}

// Tries to do without the first pass. False where a sample of the rows says too little, or where
// anything is found wanting, for the two passes to find out what.
bool Draw::draw_unchecked() {
  constexpr std::size_t rows_a_cluster = 4096;  // 256 of them in the sample
  const std::size_t n_clusters = quotas_.size();
  if (n_clusters == 0 || rows_.size / rows_a_cluster < n_clusters || rows_.log_weights ||
      rows_.excluded || !rows_.excluded_ids.empty() || rows_.weights.index() == 0 ||
      !floors_.empty() ||
      std::ranges::any_of(quotas_, [](std::int64_t quota) { return quota < 0; })) {
    return false;
  }
  // A sampled guess has to let more rows through, which for large draws is memory.
  std::size_t left = rows_.size / 20;
  for (const std::int64_t quota : quotas_) {
    if (static_cast<std::size_t>(quota) > left) return false;
    left -= static_cast<std::size_t>(quota);
  }
  tallies_ = tally_sample(rows_, n_clusters);
  needed_.assign(quotas_.begin(), quotas_.end());
  const std::vector<SampleKey> thresholds = guess_thresholds();
  for (std::size_t c = 0; c < n_clusters; ++c) {
    if (needed_[c] > 0 && thresholds[c] == lowest_key) return false;
  }
  checking_ = true;
  collect(needed_, thresholds);
  checking_ = false;
  if (bad_) return false;
  for (std::size_t c = 0; c < n_clusters; ++c) {
    if (n_kept(c) < needed_[c]) return false;
  }
  return true;
}

std::size_t Draw::n_kept(std::size_t cluster) const {
  std::size_t n = 0;
  for (const auto& mine : kept_) n += mine.empty() ? 0 : mine[cluster].candidates.size();
  return n;
}

// Moves the n that are drawn first to the front, the last of them to position n - 1, whose key it
// returns. What is compared is held here, so that the order is one whatever happens to the rows.
SampleKey Draw::put_best_first(std::vector<Candidate>& candidates, std::size_t n) const {
  const auto middle = candidates.begin() + static_cast<std::ptrdiff_t>(n);
  std::nth_element(candidates.begin(), middle - 1, candidates.end(),
                   [](const Candidate& a, const Candidate& b) {
                     return a.excess != b.excess ? a.excess > b.excess : a.row < b.row;
                   });
  const float last = candidates[n - 1].excess;
  const auto tied =
      std::partition(candidates.begin(), middle, [&](const auto& a) { return a.excess > last; });
  const auto end =
      std::partition(middle, candidates.end(), [&](const auto& a) { return a.excess == last; });
  struct Keyed {
    SampleKey key;
    std::int64_t id;
    std::uint32_t row;
  };
  std::vector<Keyed> keyed;
  for (auto at = tied; at != end; ++at) {
    const SampleKey key = key_of(rows_, seed_, at->row);
    if (!(key >= lowest_key)) throw_changed();  // NaN
    keyed.push_back({key, row_id(rows_, at->row), at->row});
  }
  const auto keyed_last = keyed.begin() + (middle - tied) - 1;
  std::nth_element(keyed.begin(), keyed_last, keyed.end(), [](const Keyed& a, const Keyed& b) {
    return a.key != b.key ? a.key > b.key : a.id < b.id;
  });
  for (std::size_t i = 0; i < keyed.size(); ++i)
    tied[static_cast<std::ptrdiff_t>(i)].row = keyed[i].row;
  return keyed_last->key;
}

// Adds to kept_ what each cluster with wanted[c] > 0 may draw.
void Draw::collect(const std::vector<std::size_t>& wanted,
                   const std::vector<SampleKey>& thresholds) {
  const std::size_t n_clusters = wanted.size();
  std::vector<Buffers> all_buffers(static_cast<std::size_t>(n_threads_));
  for_blocks(rows_, n_threads_, [&](std::size_t begin, std::size_t end, int thread) {
    auto& kept = kept_[static_cast<std::size_t>(thread)];
    auto& buffers = all_buffers[static_cast<std::size_t>(thread)];
    if (buffers.bounds.empty()) {
      kept.resize(n_clusters);
      buffers.bounds.resize(n_clusters);
      for (std::size_t c = 0; c < n_clusters; ++c) {
        kept[c].threshold = wanted[c] > 0 ? thresholds[c] : SampleKey{infinity, 0};
        buffers.bounds[c] = bound(kept[c].threshold);
      }
    }
    if (bad_ || !fill_limits(kept, begin, end, buffers)) {
      bad_ = true;
      return;
    }
    const std::size_t n = filter_block(begin, end, buffers);
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t row = begin + buffers.rows[i];
      const SampleKey key{buffers.high[i], buffers.low[i]};
      const std::size_t c = label_of(rows_, row);
      if (c >= n_clusters) {
        bad_ = true;
        return;
      }
      if (key < kept[c].threshold) continue;
      const double excess = std::clamp(key.high - bases_[c].high, -float_max, float_max);
      keep(kept[c], {static_cast<float>(excess), static_cast<std::uint32_t>(row)}, wanted[c],
           buffers.bounds[c]);
    }
  });
}

// The rows of a block that pass their limits and may be drawn, with their keys, in buffers.
std::size_t Draw::filter_block(std::size_t begin, std::size_t end, Buffers& buffers) {
  const std::size_t n_passing = kernels_.filter_rows(
      seed_, rows_.row_ids ? rows_.row_ids + begin : nullptr, static_cast<std::int64_t>(begin),
      buffers.limits.data(), end - begin, buffers.rows.data(), buffers.bits.data());
  Exclusions exclusions(rows_);
  const auto excluded = exclusions.of_block(begin, end);
  std::size_t n = 0;
  with_weights(rows_, [&](auto weight_of) {
    for (std::size_t i = 0; i < n_passing; ++i) {
      const std::uint32_t row = buffers.rows[i];
      const double w = weight_of(begin + row);
      if (!good_weight(w, rows_.log_weights)) bad_ = true;
      if (!has_weight(w, rows_.log_weights)) continue;
      if (!excluded.empty() && excluded[row]) continue;
      buffers.rows[n] = row;
      buffers.bits[n] = buffers.bits[i];
      buffers.weights[n++] = w;
    }
  });
  if (bad_) return 0;
  kernels_.make_keys(buffers.bits.data(), buffers.weights.data(), rows_.log_weights, n,
                     buffers.high.data(), buffers.low.data());
  return n;
}

void Draw::keep(Kept& kept, const Candidate& candidate, std::size_t wanted,
                double& bound_of) const {
  auto& candidates = kept.candidates;
  if (candidates.size() == candidates.capacity()) {  // doubling would take too much
    const std::size_t share = wanted * 6 / 5 / kept_.size() + 24;
    candidates.reserve(candidates.empty() ? std::min<std::size_t>(share, 1024)
                                          : candidates.size() * 5 / 4 + 8);
  }
  candidates.push_back(candidate);
  if (candidates.size() < wanted + wanted / 2 + 32) return;
  kept.threshold = put_best_first(candidates, wanted);
  candidates.resize(wanted);
  bound_of = bound(kept.threshold);
}

// False if a row that nobody has checked is bad.
bool Draw::fill_limits(const std::vector<Kept>& kept, std::size_t begin, std::size_t end,
                       Buffers& buffers) const {
  const std::vector<double>& bounds = buffers.bounds;
  double* limits = buffers.limits.data();
  if (checking_) {
    const std::int32_t* labels = rows_.labels + begin;
    const std::size_t n = end - begin;
    if (bounds.empty()) return false;
    if (auto values = std::get_if<const float*>(&rows_.weights)) {
      return kernels_.limit_f32(labels, *values + begin, n, bounds.size(), bounds.data(), limits);
    }
    return kernels_.limit_f64(labels, std::get<const double*>(rows_.weights) + begin, n,
                              bounds.size(), bounds.data(), limits);
  }
  return with_weights(rows_, [&](auto weight_of) {
    for (std::size_t row = begin; row < end; ++row) {
      const std::size_t c = label_of(rows_, row);
      if (c >= bounds.size()) return false;
      if (rows_.log_weights) {
        const auto& threshold = kept[c].threshold;
        limits[row - begin] = 0x1p32 * exp_above((weight_of(row) - threshold.high) - threshold.low);
      } else {
        limits[row - begin] = weight_of(row) * bounds[c];
      }
    }
    return true;
  });
}

std::vector<Drawn> Draw::best_rows() {
  std::vector<std::size_t> starts(needed_.size() + 1);
  std::inclusive_scan(needed_.begin(), needed_.end(), starts.begin() + 1);
  std::vector<Drawn> drawn(starts.back());
  constexpr std::size_t clusters_a_block = 16;
  const std::size_t n_blocks = (needed_.size() + clusters_a_block - 1) / clusters_a_block;
  parallel_blocks(n_blocks, n_threads_, [&](std::size_t block, int) {
    std::vector<Candidate> all;
    const std::size_t first = block * clusters_a_block;
    for (std::size_t c = first; c < std::min(first + clusters_a_block, needed_.size()); ++c) {
      if (needed_[c] == 0) continue;
      all.clear();
      for (auto& mine : kept_) {
        if (mine.empty()) continue;
        all.insert(all.end(), mine[c].candidates.begin(), mine[c].candidates.end());
        mine[c] = {};
      }
      put_best_first(all, needed_[c]);
      for (std::size_t i = 0; i < needed_[c]; ++i) {
        drawn[starts[c] + i] = {all[i].row, static_cast<std::uint32_t>(c)};
      }
    }
  });
  sort_rows(drawn);
  return drawn;
}

// Buckets of 2^10 rows, then a sort of the few in each.
void Draw::sort_rows(std::vector<Drawn>& drawn) const {
  constexpr int bucket_bits = 10;
  std::vector<std::size_t> starts((rows_.size >> bucket_bits) + 2);
  for (const Drawn& one : drawn) ++starts[(one.row >> bucket_bits) + 1];
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  std::vector<Drawn> sorted(drawn.size());
  auto next = starts;
  for (const Drawn& one : drawn) sorted[next[one.row >> bucket_bits]++] = one;
  constexpr std::size_t buckets_a_block = 1024;
  const std::size_t n_buckets = starts.size() - 1;
  parallel_blocks(n_buckets / buckets_a_block + 1, n_threads_, [&](std::size_t block, int) {
    const std::size_t end = std::min(n_buckets, (block + 1) * buckets_a_block);
    for (std::size_t bucket = block * buckets_a_block; bucket < end; ++bucket) {
      std::sort(sorted.begin() + static_cast<std::ptrdiff_t>(starts[bucket]),
                sorted.begin() + static_cast<std::ptrdiff_t>(starts[bucket + 1]),
                [](const Drawn& a, const Drawn& b) { return a.row < b.row; });
    }
  });
  drawn = std::move(sorted);
}

}  // namespace pyids
