// Two passes over the rows. The first checks them and tallies each cluster, from which a threshold
// is guessed that a little more than the quota of its keys should reach. (Large clusters of rows
// with plain weights are guessed at from one row in sixteen, and checked in the second pass.) The
// second meets every row with its random number, throws away those whose key cannot reach the
// threshold before any logarithm is taken, and keeps the others; a cluster that fills its buffer
// keeps its best and raises its threshold. Where a guess was too high (fewer rows than needed
// reached it) the cluster is drawn once more without one. Guesses decide how fast this is, never
// what is drawn.
#include "pyids/sampling.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "pyids/parallel.hpp"
#include "pyids/rng.hpp"
#include "sampling_kernels.hpp"

namespace pyids {
namespace {

constexpr std::size_t block_rows = 2048;
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double float_max = std::numeric_limits<float>::max();
constexpr SampleKey lowest_key{-infinity, 0};

// A row that may be drawn: 8 bytes, so that as many as are drawn may be held. `excess` is its key
// above a base common to the cluster, rounded; where it ties, keys are computed anew.
struct Candidate {
  float excess;
  std::uint32_t row;
};

// What the first pass learns of a cluster: its rows that can be drawn, the sum of their weights and
// the sum of the squares (weights relative to exp(reference)).
struct Tally {
  typedef double Pair __attribute__((vector_size(16)));
  Pair sums{};
  std::int64_t rows = 0;
};

std::int64_t row_id(const SampleRows& rows, std::size_t row) {
  return rows.row_ids ? rows.row_ids[row] : static_cast<std::int64_t>(row);
}

// Calls use(weight) with a function from row to weight as double.
template <class Use>
auto with_weights(const SampleRows& rows, const Use& use) {
  if (auto values = std::get_if<const float*>(&rows.weights)) {
    return use([data = *values](std::size_t row) -> double { return data[row]; });
  }
  if (auto values = std::get_if<const double*>(&rows.weights)) {
    return use([data = *values](std::size_t row) { return data[row]; });
  }
  return use([w = rows.log_weights ? 0.0 : 1.0](std::size_t) { return w; });
}

double weight(const SampleRows& rows, std::size_t row) {
  return with_weights(rows, [row](auto weight_of) { return weight_of(row); });
}

// Asks for what will be read soon: the hardware's own prefetching stops at every page. An address
// behind the array does no harm, and a test for it takes the gain away.
template <class T>
void prefetch_ahead(const T* values, std::size_t row) {
  const auto address = reinterpret_cast<std::uintptr_t>(values) + (row + 512) * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(address));
}

void prefetch_ahead(const SampleRows& rows, std::size_t row) {
  prefetch_ahead(rows.labels, row);
  if (auto values = std::get_if<const float*>(&rows.weights)) prefetch_ahead(*values, row);
  if (auto values = std::get_if<const double*>(&rows.weights)) prefetch_ahead(*values, row);
}

// At least e^x and at most 1.07 e^x for x in [-100, 1]; outside, that of the nearer end, -100 for
// NaN. The mantissa's linear interpolation between powers of two lies above the exponential.
double exp_above(double x) {
  constexpr double log2_e = 0x1.71547652b82fep0;
  const double y = std::min(1.0, std::max(-100.0, x)) * log2_e + (1023 + 1e-6);
  return std::bit_cast<double>(static_cast<std::int64_t>(y * 0x1p52));
}

// Knuth's TwoSum: high + low is the sum exactly.
SampleKey add(double a, double b) {
  const double high = a + b;
  const double b_part = high - a;
  return {high, (a - (high - b_part)) + (b - b_part)};
}

SampleKey key_from_bits(std::uint64_t bits, double log_weight) {
  return add(log_weight, -portable_log(exponential(uniform(bits))));
}

SampleKey key_of(const SampleRows& rows, std::uint64_t seed, std::size_t row) {
  const double w = weight(rows, row);
  return sample_key(seed, row_id(rows, row), rows.log_weights ? w : portable_log(w));
}

// Calls body(begin, end, thread) for blocks of at most block_rows rows.
template <class Body>
void for_blocks(const SampleRows& rows, int n_threads, const Body& body) {
  const std::size_t n_blocks = (rows.size + block_rows - 1) / block_rows;
  parallel_blocks(n_blocks, n_threads, [&](std::size_t block, int thread) {
    const std::size_t begin = block * block_rows;
    body(begin, std::min(begin + block_rows, rows.size), thread);
  });
}

// Which rows of a block are excluded. Empty: none.
class Exclusions {
 public:
  explicit Exclusions(const SampleRows& rows) : rows_(rows) {}

  std::span<const bool> of_block(std::size_t begin, std::size_t end) {
    if (rows_.excluded) return {rows_.excluded + begin, end - begin};
    if (rows_.excluded_ids.empty()) return {};
    flags_.fill(false);
    const auto& ids = rows_.excluded_ids;
    if (!rows_.row_ids) {
      auto id = std::ranges::lower_bound(ids, static_cast<std::int64_t>(begin));
      for (; id != ids.end() && *id < static_cast<std::int64_t>(end); ++id) {
        flags_[static_cast<std::size_t>(*id) - begin] = true;
      }
      return {flags_.data(), end - begin};
    }
    const std::span<const std::int64_t> here{rows_.row_ids + begin, end - begin};
    if (std::ranges::is_sorted(here)) {
      auto id = std::ranges::lower_bound(ids, here.front());
      for (std::size_t i = 0; i < here.size() && id != ids.end(); ++i) {
        while (id != ids.end() && *id < here[i]) ++id;
        flags_[i] = id != ids.end() && *id == here[i];
      }
    } else {
      for (std::size_t i = 0; i < here.size(); ++i) {
        flags_[i] = std::ranges::binary_search(ids, here[i]);
      }
    }
    return {flags_.data(), end - begin};
  }

 private:
  const SampleRows& rows_;
  std::array<bool, block_rows> flags_;
};

[[noreturn]] void throw_bad_row(const SampleRows& rows, std::size_t n_clusters, std::size_t row) {
  std::ostringstream message;
  const std::int32_t label = rows.labels[row];
  if (label < 0 || static_cast<std::size_t>(label) >= n_clusters) {
    message << "labels[" << row << "] is " << label << ": must lie in [0, " << n_clusters << ")";
  } else if (rows.log_weights) {
    message << "log_weights[" << row << "] is " << weight(rows, row) << ": must be finite or -inf";
  } else {
    message << "weights[" << row << "] is " << weight(rows, row)
            << ": must be finite and not negative";
  }
  throw std::invalid_argument(message.str());
}

// One log weight a cluster, the largest of some rows: what its tally is relative to.
std::vector<double> reference_log_weights(const SampleRows& rows, std::size_t n_clusters) {
  std::vector<double> references(n_clusters);
  if (!rows.log_weights) return references;
  references.assign(n_clusters, -infinity);
  constexpr std::size_t run = 64;  // neighbours share cache lines
  const std::size_t step = std::max<std::size_t>(run, rows.size / 1024);
  with_weights(rows, [&](auto weight_of) {
    for (std::size_t begin = 0; begin < rows.size; begin += step) {
      for (std::size_t row = begin; row < std::min(begin + run, rows.size); ++row) {
        const auto label = static_cast<std::uint32_t>(rows.labels[row]);
        if (label < n_clusters) references[label] = std::max(references[label], weight_of(row));
      }
    }
  });
  return references;
}

// Checks every row and tallies the clusters.
std::vector<Tally> tally_rows(const SampleRows& rows, std::span<const double> references,
                              int n_threads) {
  const std::size_t n_clusters = references.size();
  std::vector<std::vector<Tally>> tallies(static_cast<std::size_t>(n_threads));
  std::mutex mutex;
  std::size_t first_bad = rows.size;
  for_blocks(rows, n_threads, [&](std::size_t begin, std::size_t end, int thread) {
    auto& mine = tallies[static_cast<std::size_t>(thread)];
    mine.resize(n_clusters);
    Exclusions exclusions(rows);
    const auto excluded = exclusions.of_block(begin, end);
    const auto tally = [&](auto relative_weight) {
      for (std::size_t row = begin; row < end; ++row) {
        prefetch_ahead(rows, row);
        const auto label = static_cast<std::uint32_t>(rows.labels[row]);
        const double w = label < n_clusters ? relative_weight(row, label) : -1;
        if (!(w >= 0)) [[unlikely]] {  // NaN stands for a bad weight
          std::lock_guard<std::mutex> lock(mutex);
          first_bad = std::min(first_bad, row);
          return;
        }
        if (w == 0 || (!excluded.empty() && excluded[row - begin])) continue;
        auto& cluster = mine[label];
        ++cluster.rows;
        cluster.sums += Tally::Pair{w, w * w};
      }
    };
    with_weights(rows, [&](auto weight_of) {
      if (rows.log_weights) {
        constexpr double mean_excess = 1.04;  // of exp_above
        tally([&](std::size_t row, std::uint32_t label) {
          const double w = weight_of(row);
          if (!(w < infinity)) return -1.0;
          return w == -infinity ? 0 : exp_above(w - references[label]) / mean_excess;
        });
      } else {
        tally([&](std::size_t row, std::uint32_t) {
          const double w = weight_of(row);
          return w < infinity ? w : -1.0;
        });
      }
    });
  });
  if (first_bad < rows.size) throw_bad_row(rows, n_clusters, first_bad);
  std::vector<Tally> total(n_clusters);
  for (const auto& mine : tallies) {
    for (std::size_t c = 0; c < mine.size(); ++c) {
      total[c].rows += mine[c].rows;
      total[c].sums += mine[c].sums;
    }
  }
  return total;
}

// Tallies of all rows as a sample has them: every 16th run of 64 rows, neighbours sharing cache
// lines. Bad rows are left out. The guess is made to err by what the sample may.
std::vector<Tally> tally_sample(const SampleRows& rows, std::size_t n_clusters) {
  constexpr std::size_t run = 64, step = 16;
  std::vector<Tally> tallies(n_clusters);
  with_weights(rows, [&](auto weight_of) {
    for (std::size_t begin = 0; begin < rows.size; begin += run * step) {
      for (std::size_t row = begin; row < std::min(begin + run, rows.size); ++row) {
        const auto label = static_cast<std::uint32_t>(rows.labels[row]);
        const double w = weight_of(row);
        if (label >= n_clusters || !(w > 0 && w < infinity)) continue;
        ++tallies[label].rows;
        tallies[label].sums += Tally::Pair{w, w * w};
      }
    }
  });
  for (auto& tally : tallies) {
    if (tally.rows == 0) continue;
    // As if the sample had met two standard errors more rows, and more weight, than its share.
    const auto n = static_cast<double>(tally.rows);
    const double relative_variance = n * tally.sums[1] / (tally.sums[0] * tally.sums[0]);
    const double shrink = 1 / (1 + 2 * std::sqrt(relative_variance / n));
    tally.rows = std::max<std::int64_t>(1, static_cast<std::int64_t>(n * step * shrink));
    tally.sums *= step * shrink;
  }
  return tallies;
}

// How many rows each cluster will give.
std::vector<std::size_t> rows_needed(std::span<const std::int64_t> quotas,
                                     std::span<const Tally> tallies, bool allow_fewer) {
  std::vector<std::size_t> needed(quotas.size());
  for (std::size_t c = 0; c < quotas.size(); ++c) {
    std::ostringstream message;
    if (quotas[c] < 0) {
      message << "quotas[" << c << "] is " << quotas[c] << ": must not be negative";
    } else if (!allow_fewer && quotas[c] > tallies[c].rows) {
      message << "quotas[" << c << "] is " << quotas[c] << ", but cluster " << c << " has only "
              << tallies[c].rows << " rows that can be drawn";
    } else {
      needed[c] = static_cast<std::size_t>(std::min(quotas[c], tallies[c].rows));
      continue;
    }
    throw std::invalid_argument(message.str());
  }
  return needed;
}

// A key that about needed + 4 sqrt(needed) rows of the cluster should reach: the mean number of
// rows with E / w <= t is sum(1 - exp(-w t)), here for weights spread like a gamma distribution of
// the same mean and variance, of which the sum is known in closed form.
SampleKey guess_threshold(const Tally& tally, double reference, std::size_t needed) {
  const auto n = static_cast<double>(tally.rows);
  const auto wanted = static_cast<double>(needed);
  const double share = (wanted + 4 * std::sqrt(wanted) + 4) / n;
  if (needed == 0 || !(share < 0.9)) return lowest_key;
  const double mean = tally.sums[0] / n;
  const double spread = tally.sums[1] / n / (mean * mean) - 1;  // variance / mean^2
  const double rate = -std::log1p(-share);
  const double t = (spread > 1e-3 ? std::expm1(spread * rate) / spread : rate) / mean;
  const double key = reference - std::log(t);
  return std::isfinite(key) ? SampleKey{key, 0} : lowest_key;
}

// The rows drawn so far by one thread from one cluster.
struct Kept {
  std::vector<Candidate> candidates;
  SampleKey threshold = lowest_key;  // no lower key can be drawn
};

class Draw {
 public:
  Draw(const SampleRows& rows, std::span<const std::int64_t> quotas, const SampleOptions& options)
      : rows_(rows),
        seed_(options.seed),
        n_threads_(resolve_threads(options.n_threads)),
        allow_fewer_(options.allow_fewer),
        quotas_(quotas),
        references_(reference_log_weights(rows, quotas.size())),
        kept_(static_cast<std::size_t>(n_threads_)) {}

  // The positions of the drawn rows, ascending.
  std::vector<std::int64_t> draw() {
    if (draw_unchecked()) return best_rows();
    tallies_ = tally_rows(rows_, references_, n_threads_);
    needed_ = rows_needed(quotas_, tallies_, allow_fewer_);
    for (auto& mine : kept_) mine.clear();
    collect(needed_, guess_thresholds());

    std::vector<std::size_t> missing(needed_.size());
    for (std::size_t c = 0; c < needed_.size(); ++c) {
      if (n_kept(c) < needed_[c]) missing[c] = needed_[c];
    }
    if (std::ranges::any_of(missing, [](std::size_t n) { return n > 0; })) {
      for (auto& mine : kept_) {
        for (std::size_t c = 0; c < mine.size(); ++c) {
          if (missing[c] > 0) mine[c].candidates.clear();
        }
      }
      collect(missing, std::vector<SampleKey>(needed_.size(), lowest_key));
    }
    return best_rows();
  }

 private:
  // A key a cluster, that about as many rows as needed should reach.
  std::vector<SampleKey> guess_thresholds() {
    std::vector<SampleKey> thresholds(needed_.size());
    for (std::size_t c = 0; c < needed_.size(); ++c) {
      thresholds[c] = guess_threshold(tallies_[c], references_[c], needed_[c]);
    }
    bases_ = thresholds;
    for (auto& base : bases_) {
      if (base == lowest_key) base = {0, 0};
    }
    return thresholds;
  }

  // Tries to do without the first pass. False where a sample of the rows says too little, or where
  // anything is found wanting, for the two passes to find out what.
  bool draw_unchecked() {
    constexpr std::size_t rows_a_cluster = 4096;  // 256 of them in the sample
    const std::size_t n_clusters = quotas_.size();
    if (rows_.size / rows_a_cluster < n_clusters || rows_.log_weights || rows_.excluded ||
        !rows_.excluded_ids.empty() || rows_.weights.index() == 0 ||
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
    std::vector<SampleKey> thresholds = guess_thresholds();
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

  std::size_t n_kept(std::size_t cluster) const {
    std::size_t n = 0;
    for (const auto& mine : kept_) n += mine.empty() ? 0 : mine[cluster].candidates.size();
    return n;
  }

  bool drawn_before(const Candidate& a, const Candidate& b) const {
    if (a.excess != b.excess) return a.excess > b.excess;
    const auto x = key_of(rows_, seed_, a.row), y = key_of(rows_, seed_, b.row);
    if (x != y) return x > y;
    return row_id(rows_, a.row) < row_id(rows_, b.row);
  }

  // Moves the n that are drawn first to the front, the last of them to position n - 1.
  void put_best_first(std::vector<Candidate>& candidates, std::size_t n) const {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(n) - 1,
                     candidates.end(),
                     [this](const auto& a, const auto& b) { return drawn_before(a, b); });
  }

  // Adds to kept_ what each cluster with wanted[c] > 0 may draw.
  void collect(const std::vector<std::size_t>& wanted, const std::vector<SampleKey>& thresholds) {
    struct Buffers {
      std::vector<double> bounds;  // of each cluster, see `bound`
      std::array<double, block_rows> limits;
      std::array<std::uint32_t, block_rows + filter_slack> rows;
      std::array<std::uint64_t, block_rows + filter_slack> bits;
      std::array<double, block_rows> weights, high, low;
    };
    std::vector<Buffers> all_buffers(static_cast<std::size_t>(n_threads_));
    const auto& kernels = sampling_kernels(simd_level());
    for_blocks(rows_, n_threads_, [&](std::size_t begin, std::size_t end, int thread) {
      auto& kept = kept_[static_cast<std::size_t>(thread)];
      auto& buffers = all_buffers[static_cast<std::size_t>(thread)];
      if (buffers.bounds.empty()) {
        kept.resize(wanted.size());
        buffers.bounds.resize(wanted.size());
        for (std::size_t c = 0; c < wanted.size(); ++c) {
          kept[c].threshold = wanted[c] > 0 ? thresholds[c] : SampleKey{infinity, 0};
          buffers.bounds[c] = bound(kept[c].threshold);
          kept[c].candidates.reserve(wanted[c] * 6 / 5 / kept_.size() + 24);
        }
      }
      if (!fill_limits(kept, buffers.bounds, begin, end, buffers.limits.data())) {
        bad_ = true;
        return;
      }
      const std::size_t n_passing = kernels.filter_rows(
          seed_, rows_.row_ids ? rows_.row_ids + begin : nullptr, static_cast<std::int64_t>(begin),
          buffers.limits.data(), end - begin, buffers.rows.data(), buffers.bits.data());
      Exclusions exclusions(rows_);
      const auto excluded = exclusions.of_block(begin, end);
      std::size_t n = 0;
      with_weights(rows_, [&](auto weight_of) {
        for (std::size_t i = 0; i < n_passing; ++i) {
          const std::uint32_t row = buffers.rows[i];
          const double w = weight_of(begin + row);
          if (w == (rows_.log_weights ? -infinity : 0)) continue;
          if (!excluded.empty() && excluded[row]) continue;
          buffers.rows[n] = row;
          buffers.bits[n] = buffers.bits[i];
          buffers.weights[n++] = w;
        }
      });
      kernels.make_keys(buffers.bits.data(), buffers.weights.data(), rows_.log_weights, n,
                        buffers.high.data(), buffers.low.data());
      for (std::size_t i = 0; i < n; ++i) {
        const std::size_t row = begin + buffers.rows[i];
        const SampleKey key{buffers.high[i], buffers.low[i]};
        const auto c = static_cast<std::size_t>(rows_.labels[row]);
        if (key < kept[c].threshold) continue;
        auto& candidates = kept[c].candidates;
        if (candidates.size() == candidates.capacity()) {  // doubling would take too much
          candidates.reserve(candidates.size() * 5 / 4);
        }
        const double excess = std::clamp(key.high - bases_[c].high, -float_max, float_max);
        candidates.push_back({static_cast<float>(excess), static_cast<std::uint32_t>(row)});
        if (candidates.size() < wanted[c] + wanted[c] / 2 + 32) continue;
        raise_threshold(kept[c], wanted[c]);
        buffers.bounds[c] = bound(kept[c].threshold);
      }
    });
  }

  // Drops all but the best `wanted` candidates.
  void raise_threshold(Kept& kept, std::size_t wanted) const {
    put_best_first(kept.candidates, wanted);
    kept.candidates.resize(wanted);
    kept.threshold = key_of(rows_, seed_, kept.candidates.back().row);
  }

  // A key log(w) - log(E) reaches the threshold only if E <= w exp(-threshold), and E is at least
  // the uniform number it is made of; both in units of 2^-32.
  static double bound(const SampleKey& threshold) {
    return std::exp(-threshold.high) * (0x1p32 * (1 + 1e-9));
  }

  // False if a row that nobody has checked is bad.
  bool fill_limits(const std::vector<Kept>& kept, const std::vector<double>& bounds,
                   std::size_t begin, std::size_t end, double* limits) const {
    if (checking_) {
      const auto& kernels = sampling_kernels(simd_level());
      const std::int32_t* labels = rows_.labels + begin;
      const std::size_t n = end - begin;
      if (auto values = std::get_if<const float*>(&rows_.weights)) {
        return kernels.limit_f32(labels, *values + begin, n, bounds.size(), bounds.data(), limits);
      }
      return kernels.limit_f64(labels, std::get<const double*>(rows_.weights) + begin, n,
                               bounds.size(), bounds.data(), limits);
    }
    with_weights(rows_, [&](auto weight_of) {
      for (std::size_t row = begin; row < end; ++row) {
        const auto c = static_cast<std::size_t>(rows_.labels[row]);
        if (rows_.log_weights) {
          const auto& threshold = kept[c].threshold;
          limits[row - begin] =
              0x1p32 * exp_above((weight_of(row) - threshold.high) - threshold.low);
        } else {
          limits[row - begin] = weight_of(row) * bounds[c];
        }
      }
    });
    return true;
  }

  std::vector<std::int64_t> best_rows() {
    std::vector<std::size_t> starts(needed_.size() + 1);
    std::inclusive_scan(needed_.begin(), needed_.end(), starts.begin() + 1);
    std::vector<std::int64_t> drawn(starts.back());
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
        for (std::size_t i = 0; i < needed_[c]; ++i) drawn[starts[c] + i] = all[i].row;
      }
    });
    sort_rows(drawn);
    return drawn;
  }

  // Buckets of 2^16 rows, then one bit a row inside a bucket.
  void sort_rows(std::vector<std::int64_t>& drawn) const {
    constexpr int bucket_bits = 16;
    std::vector<std::size_t> starts((rows_.size >> bucket_bits) + 2);
    for (const auto row : drawn) ++starts[static_cast<std::size_t>(row >> bucket_bits) + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::vector<std::uint16_t> low(drawn.size());
    auto next = starts;
    for (const auto row : drawn) {
      low[next[static_cast<std::size_t>(row >> bucket_bits)]++] = static_cast<std::uint16_t>(row);
    }
    parallel_blocks(starts.size() - 1, n_threads_, [&](std::size_t bucket, int) {
      std::array<std::uint64_t, (1 << bucket_bits) / 64> bits{};
      for (std::size_t i = starts[bucket]; i < starts[bucket + 1]; ++i) {
        bits[low[i] / 64] |= std::uint64_t{1} << low[i] % 64;
      }
      auto out = drawn.begin() + static_cast<std::ptrdiff_t>(starts[bucket]);
      for (std::size_t word = 0; word < bits.size(); ++word) {
        for (auto left = bits[word]; left != 0; left &= left - 1) {
          *out++ = static_cast<std::int64_t>((bucket << bucket_bits) + word * 64 +
                                             static_cast<std::size_t>(std::countr_zero(left)));
        }
      }
    });
  }

  const SampleRows& rows_;
  std::uint64_t seed_;
  int n_threads_;
  bool allow_fewer_;
  bool checking_ = false;         // whether rows are checked as they are drawn
  std::atomic<bool> bad_{false};  // and one was bad
  std::span<const std::int64_t> quotas_;
  std::vector<double> references_;
  std::vector<Tally> tallies_;
  std::vector<std::size_t> needed_;
  std::vector<SampleKey> bases_;         // what a candidate's excess is above
  std::vector<std::vector<Kept>> kept_;  // by thread and cluster
};

}  // namespace

const SamplingKernels& sampling_kernels(SimdLevel level) {
#if defined(__x86_64__)
  if (level >= SimdLevel::avx512) return sampling_avx512();
  if (level == SimdLevel::avx2) return sampling_avx2();
#endif
  (void)level;
  return sampling_portable();
}

SampleKey sample_key(std::uint64_t seed, std::int64_t row_id, double log_weight) {
  return key_from_bits(random_bits(seed, Stream::sampling, static_cast<std::uint64_t>(row_id)),
                       log_weight);
}

Sample sample_by_cluster(const SampleRows& rows, std::span<const std::int64_t> quotas,
                         const SampleOptions& options) {
  if (rows.size > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("2^32 rows or more in one draw: draw shard by shard and merge");
  }
  Sample sample;
  auto& ids = sample.row_ids;
  ids = Draw(rows, quotas, options).draw();
  if (rows.row_ids) {
    const auto id_of = [&](std::int64_t row) { return rows.row_ids[row]; };
    if (!std::ranges::is_sorted(ids, {}, id_of)) std::ranges::sort(ids, {}, id_of);
  }
  if (options.return_keys) {
    for (const auto row : ids) {
      sample.labels.push_back(rows.labels[row]);
      sample.keys.push_back(key_of(rows, options.seed, static_cast<std::size_t>(row)));
    }
  }
  if (rows.row_ids) {
    for (auto& id : ids) id = rows.row_ids[id];
  }
  return sample;
}

std::vector<std::int64_t> best_keys(std::span<const std::int64_t> row_ids,
                                    std::span<const std::int32_t> labels,
                                    std::span<const SampleKey> keys,
                                    std::span<const std::int64_t> quotas) {
  std::vector<std::size_t> starts(quotas.size() + 1);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto label = static_cast<std::uint32_t>(labels[i]);
    if (label >= quotas.size() || std::isnan(keys[i].high) || std::isnan(keys[i].low)) {
      std::ostringstream message;
      message << "row id " << row_ids[i] << " has the label " << labels[i] << " and the key "
              << keys[i].high << " + " << keys[i].low << ": labels must lie in [0, "
              << quotas.size() << ") and keys must be numbers";
      throw std::invalid_argument(message.str());
    }
    ++starts[label + 1];
  }
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  std::vector<std::size_t> grouped(labels.size());
  auto next = starts;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    grouped[next[static_cast<std::size_t>(labels[i])]++] = i;
  }
  std::vector<bool> chosen(labels.size());
  for (std::size_t c = 0; c < quotas.size(); ++c) {
    const std::span<std::size_t> rows{grouped.data() + starts[c], starts[c + 1] - starts[c]};
    const auto n =
        std::min(rows.size(), static_cast<std::size_t>(std::max<std::int64_t>(quotas[c], 0)));
    if (n > 0) {
      std::ranges::nth_element(rows, rows.begin() + static_cast<std::ptrdiff_t>(n) - 1,
                               [&](std::size_t a, std::size_t b) {
                                 if (keys[a] != keys[b]) return keys[a] > keys[b];
                                 return row_ids[a] < row_ids[b];
                               });
    }
    for (const auto row : rows.first(n)) chosen[row] = true;
  }
  std::vector<std::int64_t> positions;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    if (chosen[i]) positions.push_back(static_cast<std::int64_t>(i));
  }
  return positions;
}

}  // namespace pyids
