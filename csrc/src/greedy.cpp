#include "pyids/greedy.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <queue>

#include "pyids/parallel.hpp"
#include "pyids/rng.hpp"

namespace pyids {

namespace {

constexpr std::size_t kBlockRows = 256;
constexpr std::size_t kPanelRows = 512;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

PackedRows gather(const Rows& rows, std::span<const std::int64_t> ids) {
  std::vector<double> values(ids.size() * rows.n_cols());
  for (std::size_t j = 0; j < ids.size(); ++j) {
    rows.load(static_cast<std::size_t>(ids[j]), values.data() + j * rows.n_cols());
  }
  return PackedRows(values.data(), ids.size(), rows.n_cols());
}

Rows dense(const float* values, std::size_t n, std::size_t d) {
  return Rows({Matrix{values, n, d, static_cast<std::ptrdiff_t>(d * sizeof(float)), Scalar::f32}});
}

// Calls consume(begin, end, products, ld) for blocks of rows, on several threads, where
// products[(i - begin) * ld + j] = row i . other j.
template <class Consume>
void for_each_block(const Rows& rows, const PackedRows& others, int n_threads, Consume consume) {
  const std::size_t ld = others.n_groups() * 16;
  std::vector<std::vector<float>> buffers(static_cast<std::size_t>(n_threads));
  parallel_blocks(ceil_div(rows.size(), kBlockRows), n_threads, [&](std::size_t block, int thread) {
    auto& buffer = buffers[static_cast<std::size_t>(thread)];
    buffer.resize(kBlockRows * ld);
    const std::size_t begin = block * kBlockRows;
    const std::size_t end = std::min(rows.size(), begin + kBlockRows);
    dots(rows, begin, end, others, buffer.data(), ld, 1);
    consume(begin, end, static_cast<const float*>(buffer.data()), ld, thread);
  });
}

// The product in units of 2^-20, to nearest. Adding 1.5 * 2^23 leaves the rounded integer in the
// low bits of the sum, which the compiler can vectorise for any instruction set.
inline std::int32_t to_units(float product) {
  const float clipped = product < 0.0f ? 0.0f : (product > 1.0f ? 1.0f : product);
  return std::bit_cast<std::int32_t>(clipped * 1048576.0f + 12582912.0f) - 0x4B400000;
}

inline std::int32_t positive_part(std::int32_t x) { return x & ~(x >> 31); }

// What the served rows have so far, and what a candidate would add to it.
//
// At first a gain takes a product with every served row. But only pairs with s(i, j) > best_i
// matter, and their share falls about as 1 / picks: once they fit into memory they are listed, and
// a gain is a walk along a short list.
class Coverage {
 public:
  Coverage(const Rows& rows, const Rows& served, const FacilityOptions& facility,
           const GreedyOptions& options)
      : rows_(rows),
        served_(served),
        n_threads_(resolve_threads(options.n_threads)),
        max_pairs_(facility.list_bytes / sizeof(Pair)),
        best_(served.size(), 0) {}

  bool is_listed() const { return !lists_.empty(); }

  // sum_i max(0, s(i, j) - best_i) in units, for each candidate j.
  std::vector<std::int64_t> gains(std::span<const std::int64_t> candidates) const {
    std::vector<std::int64_t> total(candidates.size());
    if (is_listed()) {
      for (std::size_t j = 0; j < candidates.size(); ++j) {
        for (const Pair& pair : list(candidates[j])) {
          total[j] += positive_part(pair.units - best_[pair.row]);
        }
      }
      return total;
    }
    for (std::size_t from = 0; from < candidates.size(); from += kPanelRows) {
      const std::size_t n = std::min(kPanelRows, candidates.size() - from);
      const PackedRows panel = gather(rows_, candidates.subspan(from, n));
      std::vector<std::vector<std::int64_t>> partial(
          static_cast<std::size_t>(n_threads_), std::vector<std::int64_t>(panel.n_groups() * 16));
      for_each_block(served_, panel, n_threads_,
                     [&](std::size_t begin, std::size_t end, const float* products, std::size_t ld,
                         int thread) {
                       std::int32_t block[kPanelRows] = {};  // at most kBlockRows * 2^20 = 2^28
                       for (std::size_t i = begin; i < end; ++i) {
                         const float* row = products + (i - begin) * ld;
                         const std::int32_t best = best_[i];
                         for (std::size_t j = 0; j < ld; ++j) {
                           block[j] += positive_part(to_units(row[j]) - best);
                         }
                       }
                       auto& sums = partial[static_cast<std::size_t>(thread)];
                       for (std::size_t j = 0; j < ld; ++j) sums[j] += block[j];
                     });
      for (const auto& sums : partial) {
        for (std::size_t j = 0; j < n; ++j) total[from + j] += sums[j];
      }
      check_interrupt();
    }
    return total;
  }

  void add(std::int64_t pick) {
    ++n_picks_;
    if (is_listed()) {
      for (const Pair& pair : list(pick)) {
        best_[pair.row] = std::max(best_[pair.row], pair.units);
      }
      return;
    }
    for_each_block(
        served_, gather(rows_, std::span(&pick, 1)), n_threads_,
        [&](std::size_t begin, std::size_t end, const float* products, std::size_t ld, int) {
          for (std::size_t i = begin; i < end; ++i) {
            best_[i] = std::max(best_[i], to_units(products[(i - begin) * ld]));
          }
        });
    if (n_picks_ < next_estimate_) return;
    next_estimate_ = n_picks_ + n_picks_ / 4 + 1;
    if (estimate_pairs() <= max_pairs_) make_lists();
  }

 private:
  struct Pair {
    std::uint32_t row;
    std::int32_t units;
  };

  // The pairs of a panel of candidates, those of candidate c at [starts[c], starts[c + 1]).
  struct PairLists {
    std::vector<Pair> pairs;
    std::vector<std::size_t> starts;
  };

  std::span<const Pair> list(std::int64_t candidate) const {
    const auto j = static_cast<std::size_t>(candidate);
    const PairLists& lists = lists_[j / kPanelRows];
    const std::size_t start = lists.starts[j % kPanelRows];
    return std::span(lists.pairs).subspan(start, lists.starts[j % kPanelRows + 1] - start);
  }

  // How many pairs have s(i, j) > best_i, from about a thousand rows i.
  std::size_t estimate_pairs() const {
    constexpr std::size_t kSample = 1024;
    std::vector<std::int64_t> sample;
    const std::size_t step = ceil_div(served_.size(), kSample);
    for (std::size_t i = 0; i < served_.size(); i += step) {
      sample.push_back(static_cast<std::int64_t>(i));
    }
    std::size_t count = 0;
    for (std::size_t from = 0; from < sample.size(); from += kPanelRows) {
      const auto ids = std::span(sample).subspan(from, std::min(kPanelRows, sample.size() - from));
      std::vector<std::size_t> counts(static_cast<std::size_t>(n_threads_));
      for_each_block(rows_, gather(served_, ids), n_threads_,
                     [&](std::size_t begin, std::size_t end, const float* products, std::size_t ld,
                         int thread) {
                       std::size_t above = 0;
                       for (std::size_t i = begin; i < end; ++i) {
                         const float* row = products + (i - begin) * ld;
                         for (std::size_t j = 0; j < ids.size(); ++j) {
                           above += to_units(row[j]) > best_[static_cast<std::size_t>(ids[j])];
                         }
                       }
                       counts[static_cast<std::size_t>(thread)] += above;
                     });
      count += std::accumulate(counts.begin(), counts.end(), std::size_t{0});
      check_interrupt();
    }
    return count * step;
  }

  void make_lists() {
    lists_.resize(ceil_div(rows_.size(), kPanelRows));
    // A few panels a thread at a time, so that Ctrl-C is heard.
    const std::size_t n_at_once = 4 * static_cast<std::size_t>(n_threads_);
    for (std::size_t from = 0; from < lists_.size(); from += n_at_once) {
      parallel_blocks(std::min(n_at_once, lists_.size() - from), n_threads_,
                      [&](std::size_t p, int) { lists_[from + p] = list_panel(from + p); });
      check_interrupt();
    }
  }

  PairLists list_panel(std::size_t p) const {
    const std::size_t first = p * kPanelRows;
    const std::size_t n = std::min(kPanelRows, rows_.size() - first);
    const PackedRows panel(rows_, first, first + n);
    const std::size_t ld = panel.n_groups() * 16;
    std::vector<float> products(kBlockRows * ld);
    std::vector<std::vector<Pair>> found(n);
    for (std::size_t begin = 0; begin < served_.size(); begin += kBlockRows) {
      const std::size_t end = std::min(served_.size(), begin + kBlockRows);
      dots(served_, begin, end, panel, products.data(), ld, 1);
      for (std::size_t i = begin; i < end; ++i) {
        const float* row = products.data() + (i - begin) * ld;
        for (std::size_t group = 0; group < n; group += 16) {
          int any = 0;
          for (std::size_t j = group; j < group + 16; ++j) any |= to_units(row[j]) > best_[i];
          if (!any) continue;
          for (std::size_t j = group; j < std::min(n, group + 16); ++j) {
            const std::int32_t units = to_units(row[j]);
            if (units > best_[i]) found[j].push_back({static_cast<std::uint32_t>(i), units});
          }
        }
      }
    }
    PairLists lists;
    lists.starts.push_back(0);
    for (const auto& pairs : found) lists.starts.push_back(lists.starts.back() + pairs.size());
    lists.pairs.reserve(lists.starts.back());
    for (const auto& pairs : found) {
      lists.pairs.insert(lists.pairs.end(), pairs.begin(), pairs.end());
    }
    return lists;
  }

  const Rows& rows_;
  const Rows& served_;
  int n_threads_;
  std::size_t max_pairs_;
  std::vector<std::int32_t> best_;
  std::vector<PairLists> lists_;
  std::size_t n_picks_ = 0;
  std::size_t next_estimate_ = 1;
};

struct Bound {
  double gain;
  std::int64_t row;
  // The order of a max-heap: larger gain first, then lower row.
  bool operator<(const Bound& other) const {
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

}  // namespace

Picks farthest_first(const Rows& rows, std::size_t budget, std::size_t first,
                     const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  std::vector<double> nearest(rows.size(), kInfinity);  // squared; -1: picked
  std::vector<double> center(rows.n_cols());
  Picks picks;
  std::size_t pick = first;
  double farthest = kInfinity;
  while (picks.rows.size() < budget) {
    picks.rows.push_back(static_cast<std::int64_t>(pick));
    picks.values.push_back(std::sqrt(farthest));
    rows.load(pick, center.data());
    lower_to_distance(rows, center.data(), nearest.data(), n_threads);
    nearest[pick] = -1;
    const auto top = std::max_element(nearest.begin(), nearest.end());
    pick = static_cast<std::size_t>(top - nearest.begin());
    farthest = std::max(0.0, *top);
    check_interrupt();
  }
  picks.values.push_back(std::sqrt(farthest));
  return picks;
}

FacilityPicks facility_location(const Rows& rows, const Rows& served, std::size_t budget,
                                const FacilityOptions& facility, const GreedyOptions& options) {
  const std::size_t n = rows.size();
  const double unit_weight =
      (1 - facility.alpha) / (static_cast<double>(served.size()) * 1048576.0);
  const double quality_weight = facility.alpha / static_cast<double>(budget);
  Coverage coverage(rows, served, facility, options);
  FacilityPicks picks;

  const auto evaluate = [&](std::span<const std::int64_t> candidates) {
    const std::vector<std::int64_t> units = coverage.gains(candidates);
    if (!coverage.is_listed()) picks.n_evaluations += candidates.size();
    std::vector<Bound> gains(candidates.size());
    for (std::size_t j = 0; j < candidates.size(); ++j) {
      const std::int64_t row = candidates[j];
      const double q =
          facility.quality.empty() ? 0.0 : facility.quality[static_cast<std::size_t>(row)];
      gains[j] = {unit_weight * static_cast<double>(units[j]) + quality_weight * q, row};
    }
    return gains;
  };
  const auto take = [&](const Bound& best) {
    picks.rows.push_back(best.row);
    picks.values.push_back(best.gain);
    if (picks.rows.size() < budget) coverage.add(best.row);
  };

  if (budget == 0) return picks;
  std::vector<std::int64_t> left(n);
  std::iota(left.begin(), left.end(), 0);

  if (facility.epsilon > 0) {
    const auto count = static_cast<std::size_t>(
        std::max(1.0, std::ceil(static_cast<double>(n) / static_cast<double>(budget) *
                                std::log(1 / facility.epsilon))));
    while (picks.rows.size() < budget) {
      const auto gains = evaluate(draw(left, count, facility.seed, picks.rows.size()));
      const Bound best = *std::max_element(gains.begin(), gains.end());
      take(best);
      left.erase(std::lower_bound(left.begin(), left.end(), best.row));
    }
    return picks;
  }

  // Gains only shrink as rows are picked, so an old gain is an upper bound: a row whose fresh gain
  // tops all others' bounds is the best one.
  std::vector<Bound> gains = evaluate(left);
  std::priority_queue<Bound> heap(std::less<Bound>(), std::move(gains));
  std::vector<std::size_t> evaluated_at(n, 0);
  const auto is_fresh = [&](const Bound& bound) {
    return evaluated_at[static_cast<std::size_t>(bound.row)] == picks.rows.size();
  };
  std::vector<std::int64_t> stale;
  while (picks.rows.size() < budget) {
    if (is_fresh(heap.top())) {
      const Bound best = heap.top();
      heap.pop();
      take(best);
      continue;
    }
    // One product more costs little in a batch; one walk along a list costs what it costs.
    const std::size_t batch = coverage.is_listed() ? 1 : 64;
    stale.clear();
    while (!heap.empty() && stale.size() < batch && !is_fresh(heap.top())) {
      stale.push_back(heap.top().row);
      heap.pop();
    }
    for (const Bound& bound : evaluate(stale)) {
      evaluated_at[static_cast<std::size_t>(bound.row)] = picks.rows.size();
      heap.push(bound);
    }
  }
  return picks;
}

Picks filter_near(const Rows& rows, std::span<const std::int64_t> order, std::size_t budget,
                  double threshold, const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  const std::size_t d = rows.n_cols();
  std::vector<float> kept(budget * d);  // the rows kept so far
  std::vector<double> row(d);
  Picks picks;
  for (std::size_t from = 0; from < order.size() && picks.rows.size() < budget;
       from += kBlockRows) {
    const std::size_t n = std::min(kBlockRows, order.size() - from);
    const auto candidates = order.subspan(from, n);
    const PackedRows packed = gather(rows, candidates);
    const std::size_t ld = packed.n_groups() * 16;

    // The largest product of each candidate with the rows kept before this block.
    std::vector<float> nearest(ld, -std::numeric_limits<float>::infinity());
    if (const std::size_t n_kept = picks.rows.size(); n_kept > 0) {
      const Rows before = dense(kept.data(), n_kept, d);
      std::vector<std::vector<float>> partial(static_cast<std::size_t>(n_threads), nearest);
      for_each_block(before, packed, n_threads,
                     [&](std::size_t begin, std::size_t end, const float* products,
                         std::size_t width, int thread) {
                       auto& largest = partial[static_cast<std::size_t>(thread)];
                       for (std::size_t i = begin; i < end; ++i) {
                         const float* product = products + (i - begin) * width;
                         for (std::size_t j = 0; j < width; ++j) {
                           largest[j] = std::max(largest[j], product[j]);
                         }
                       }
                     });
      for (const auto& largest : partial) {
        for (std::size_t j = 0; j < n; ++j) nearest[j] = std::max(nearest[j], largest[j]);
      }
    }

    // Inside the block, one after the other.
    std::vector<float> block(n * d);
    for (std::size_t j = 0; j < n; ++j) {
      rows.load(static_cast<std::size_t>(candidates[j]), row.data());
      std::copy(row.begin(), row.end(), block.begin() + static_cast<std::ptrdiff_t>(j * d));
    }
    std::vector<float> products(n * ld);
    dots(dense(block.data(), n, d), 0, n, packed, products.data(), ld, n_threads);
    for (std::size_t j = 0; j < n && picks.rows.size() < budget; ++j) {
      if (static_cast<double>(nearest[j]) > threshold) continue;
      std::copy_n(block.begin() + static_cast<std::ptrdiff_t>(j * d), d,
                  kept.begin() + static_cast<std::ptrdiff_t>(picks.rows.size() * d));
      picks.rows.push_back(candidates[j]);
      picks.values.push_back(static_cast<double>(nearest[j]));
      for (std::size_t i = j + 1; i < n; ++i) {
        nearest[i] = std::max(nearest[i], products[j * ld + i]);
      }
    }
    check_interrupt();
  }
  return picks;
}

std::vector<double> neighbour_distances(const Rows& rows, const Rows& reference,
                                        std::span<const std::int64_t> reference_rows,
                                        std::size_t n_neighbours, const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  // The largest products of each row, descending.
  std::vector<float> largest(rows.size() * n_neighbours, -std::numeric_limits<float>::infinity());
  for (std::size_t from = 0; from < reference.size(); from += kPanelRows) {
    const std::size_t n = std::min(kPanelRows, reference.size() - from);
    const PackedRows panel(reference, from, from + n);
    for_each_block(
        rows, panel, n_threads,
        [&](std::size_t begin, std::size_t end, const float* products, std::size_t ld, int) {
          for (std::size_t i = begin; i < end; ++i) {
            float* top = largest.data() + i * n_neighbours;
            const float* row = products + (i - begin) * ld;
            for (std::size_t j = 0; j < n; ++j) {
              if (row[j] <= top[n_neighbours - 1]) continue;
              if (reference_rows[from + j] == static_cast<std::int64_t>(i)) continue;
              std::size_t rank = n_neighbours - 1;
              for (; rank > 0 && top[rank - 1] < row[j]; --rank) top[rank] = top[rank - 1];
              top[rank] = row[j];
            }
          }
        });
    check_interrupt();
  }
  std::vector<double> sums(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t k = 0; k < n_neighbours; ++k) {
      sums[i] += std::max(0.0, 1.0 - static_cast<double>(largest[i * n_neighbours + k]));
    }
  }
  return sums;
}

Picks novel_select(const Rows& rows, std::size_t budget, std::size_t first,
                   std::span<const double> weights, double proximity, std::size_t horizon,
                   const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  const std::size_t n = rows.size();
  horizon = std::min(horizon, budget);

  struct Near {
    float distance;
    float value;  // weight * distance
  };
  std::vector<Near> near(n * horizon);  // of each row, by rank
  std::vector<double> beyond(n, 0.0);   // sum of the values of the picks beyond the horizon
  std::vector<double> novelty(n, 0.0);
  std::vector<char> picked(n, 0);
  std::vector<double> rank_weight(budget);  // 1 / rank^proximity
  for (std::size_t r = 0; r < budget; ++r) {
    rank_weight[r] = 1 / std::pow(static_cast<double>(r + 1), proximity);
  }

  Picks picks;
  std::size_t pick = first;
  while (picks.rows.size() < budget) {
    const std::size_t n_before = picks.rows.size();
    picks.rows.push_back(static_cast<std::int64_t>(pick));
    picks.values.push_back(novelty[pick]);
    picked[pick] = 1;
    if (picks.rows.size() == budget) break;

    const auto id = static_cast<std::int64_t>(pick);
    const double weight = weights[pick];
    double mean_beyond = 0;  // of 1 / rank^proximity over the ranks beyond the horizon
    if (n_before + 1 > horizon) {
      for (std::size_t r = horizon; r <= n_before; ++r) mean_beyond += rank_weight[r];
      mean_beyond /= static_cast<double>(n_before + 1 - horizon);
    }
    for_each_block(
        rows, gather(rows, std::span(&id, 1)), n_threads,
        [&](std::size_t begin, std::size_t end, const float* products, std::size_t ld, int) {
          for (std::size_t i = begin; i < end; ++i) {
            Near* list = near.data() + i * horizon;
            const float distance = std::max(0.0f, 1.0f - products[(i - begin) * ld]);
            Near entry{distance, static_cast<float>(weight * static_cast<double>(distance))};
            std::size_t length = n_before;
            if (n_before >= horizon) {  // full: the farthest drops out
              length = horizon - 1;
              if (entry.distance < list[length].distance) std::swap(entry, list[length]);
              beyond[i] += static_cast<double>(entry.value);
              entry = list[length];
            }
            std::size_t rank = length;
            for (; rank > 0 && list[rank - 1].distance > entry.distance; --rank) {
              list[rank] = list[rank - 1];
            }
            list[rank] = entry;
            double sum = beyond[i] * mean_beyond;
            for (std::size_t r = 0; r <= length; ++r) {
              sum += static_cast<double>(list[r].value) * rank_weight[r];
            }
            novelty[i] = sum;
          }
        });

    std::size_t best = n;
    for (std::size_t i = 0; i < n; ++i) {
      if (!picked[i] && (best == n || novelty[i] > novelty[best])) best = i;
    }
    pick = best;
    check_interrupt();
  }
  return picks;
}

}  // namespace pyids
