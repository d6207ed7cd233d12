#include "coverage.hpp"

#include <cmath>
#include <numeric>

#include "pyids/simd.hpp"

namespace pyids {

namespace {

constexpr double kUnits = 0x1p20;

// Clipped, to nearest, ties to even: adding 1.5 * 2^52 leaves no fraction.
std::int32_t to_units(double product) {
  const double clipped = std::min(1.0, std::max(0.0, product));
  return static_cast<std::int32_t>((clipped * kUnits + 0x1.8p52) - 0x1.8p52);
}

double longest(const Rows& rows, int n_threads) {
  std::vector<double> largest(static_cast<std::size_t>(n_threads));
  parallel_blocks(ceil_div(rows.size(), kGreedyRows), n_threads,
                  [&](std::size_t block, int thread) {
                    std::vector<double> row(rows.n_cols());
                    double& mine = largest[static_cast<std::size_t>(thread)];
                    const std::size_t end = std::min(rows.size(), (block + 1) * kGreedyRows);
                    for (std::size_t i = block * kGreedyRows; i < end; ++i) {
                      rows.load(i, row.data());
                      mine = std::max(mine, kernels().product(row.data(), row.data(), row.size()));
                    }
                  });
  return std::sqrt(*std::max_element(largest.begin(), largest.end()));
}

}  // namespace

// 2^-22: the bound is added to a product in float32; what vanishes is far below.
Coverage::Coverage(const Rows& rows, const Rows& served, std::size_t list_bytes, int n_threads)
    : rows_(rows),
      served_(served),
      n_threads_(n_threads),
      max_pairs_(list_bytes / sizeof(Pair)),
      slack_(1.001 * dot_error(rows.n_cols()) * longest(rows, n_threads) *
                 longest(served, n_threads) +
             0x1p-22),
      best_(served.size(), 0) {}

std::vector<double> Coverage::upper_gains(std::span<const std::int64_t> candidates) const {
  std::vector<double> total(candidates.size());
  for (std::size_t from = 0; from < candidates.size(); from += kPanelRows) {
    const std::size_t n = std::min(kPanelRows, candidates.size() - from);
    const PackedRows panel = gather(rows_, candidates.subspan(from, n));
    const std::size_t width = panel.n_groups() * 16;
    std::vector<std::vector<double>> partial(static_cast<std::size_t>(n_threads_));
    for_each_block(
        served_, panel, n_threads_,
        [&](std::size_t begin, std::size_t end, const float* products, std::size_t ld, int thread) {
          // A product p counts at most p 2^20 + offset, the half for rounding to a unit.
          float offsets[kGreedyRows], block[kPanelRows] = {};
          for (std::size_t i = begin; i < end; ++i) {
            offsets[i - begin] = static_cast<float>(slack_ * kUnits + 0.5 - best_[i]);
          }
          kernels().add_gains(products, ld, end - begin, offsets, width, block);
          auto& sums = partial[static_cast<std::size_t>(thread)];
          sums.resize(width);
          for (std::size_t j = 0; j < width; ++j) sums[j] += static_cast<double>(block[j]);
        });
    // kGreedyRows additions in float32, and the roundings of each term.
    constexpr double rounding = 1 + 2 * static_cast<double>(kGreedyRows) * 0x1p-24;
    for (const auto& sums : partial) {
      for (std::size_t j = 0; j < std::min(n, sums.size()); ++j)
        total[from + j] += sums[j] * rounding;
    }
  }
  // The offsets themselves were rounded, by 2^-24 of at most 2^20 + 1 each.
  for (double& gain : total) gain += static_cast<double>(served_.size()) * 0x1p-3;
  return total;
}

std::span<const Coverage::Pair> Coverage::list(std::int64_t candidate) const {
  const auto j = static_cast<std::size_t>(candidate);
  const PairLists& lists = lists_[j / kPanelRows];
  const std::size_t start = lists.starts[j % kPanelRows];
  return std::span(lists.pairs).subspan(start, lists.starts[j % kPanelRows + 1] - start);
}

// s(i, candidate) of every served row.
std::vector<std::int32_t> Coverage::units(std::int64_t candidate) const {
  const std::size_t d = rows_.n_cols();
  std::vector<double> other(d);
  rows_.load(static_cast<std::size_t>(candidate), other.data());
  std::vector<std::int32_t> all(served_.size());
  parallel_blocks(ceil_div(served_.size(), kGreedyRows), n_threads_, [&](std::size_t block, int) {
    std::vector<double> row(d);
    const std::size_t end = std::min(served_.size(), (block + 1) * kGreedyRows);
    for (std::size_t i = block * kGreedyRows; i < end; ++i) {
      served_.load(i, row.data());
      all[i] = to_units(kernels().product(row.data(), other.data(), d));
    }
  });
  return all;
}

std::int64_t Coverage::gain(std::int64_t candidate) const {
  std::int64_t total = 0;
  if (is_listed()) {
    for (const Pair& pair : list(candidate)) {
      total += std::max(0, pair.units - best_[pair.row]);
    }
    return total;
  }
  const std::vector<std::int32_t> all = units(candidate);
  for (std::size_t i = 0; i < all.size(); ++i) total += std::max(0, all[i] - best_[i]);
  return total;
}

void Coverage::add(std::int64_t pick) {
  ++n_picks_;
  if (is_listed()) {
    for (const Pair& pair : list(pick)) best_[pair.row] = std::max(best_[pair.row], pair.units);
    return;
  }
  const std::vector<std::int32_t> all = units(pick);
  for (std::size_t i = 0; i < all.size(); ++i) best_[i] = std::max(best_[i], all[i]);
  if (n_picks_ < next_estimate_) return;
  next_estimate_ = n_picks_ + n_picks_ / 4 + 1;
  if (estimate_pairs() <= max_pairs_) make_lists();
}

// A smaller float32 product is one of a pair with s <= best.
float Coverage::least_product(std::size_t served_row) const {
  const double least = (best_[served_row] + 0.5) / kUnits - slack_;
  return std::nextafter(static_cast<float>(least), -1.0f);
}

// How many pairs may have s(i, j) > best_i, from about a thousand rows i.
std::size_t Coverage::estimate_pairs() const {
  constexpr std::size_t kSample = 1024;
  std::vector<std::int64_t> sample;
  const std::size_t step = ceil_div(served_.size(), kSample);
  for (std::size_t i = 0; i < served_.size(); i += step) {
    sample.push_back(static_cast<std::int64_t>(i));
  }
  std::size_t count = 0;
  for (std::size_t from = 0; from < sample.size(); from += kPanelRows) {
    const auto ids = std::span(sample).subspan(from, std::min(kPanelRows, sample.size() - from));
    std::vector<float> least(ids.size());
    for (std::size_t j = 0; j < ids.size(); ++j) {
      least[j] = least_product(static_cast<std::size_t>(ids[j]));
    }
    std::vector<std::size_t> counts(static_cast<std::size_t>(n_threads_));
    for_each_block(
        rows_, gather(served_, ids), n_threads_,
        [&](std::size_t begin, std::size_t end, const float* products, std::size_t ld, int thread) {
          std::size_t above = 0;
          for (std::size_t i = begin; i < end; ++i) {
            const float* row = products + (i - begin) * ld;
            for (std::size_t j = 0; j < ids.size(); ++j) above += row[j] >= least[j];
          }
          counts[static_cast<std::size_t>(thread)] += above;
        });
    count += std::accumulate(counts.begin(), counts.end(), std::size_t{0});
  }
  return count * step;
}

void Coverage::make_lists() {
  lists_.resize(ceil_div(rows_.size(), kPanelRows));
  parallel_blocks(lists_.size(), n_threads_,
                  [&](std::size_t p, int) { lists_[p] = list_panel(p); });
}

Coverage::PairLists Coverage::list_panel(std::size_t p) const {
  const std::size_t first = p * kPanelRows, d = rows_.n_cols();
  const std::size_t n = std::min(kPanelRows, rows_.size() - first);
  const PackedRows panel(rows_, first, first + n);
  const std::size_t ld = panel.n_groups() * 16;
  std::vector<float> products(kGreedyRows * ld);
  std::vector<double> wide(n * d), row(d);
  for (std::size_t j = 0; j < n; ++j) rows_.load(first + j, wide.data() + j * d);
  std::vector<std::vector<Pair>> found(n);
  for (std::size_t begin = 0; begin < served_.size(); begin += kGreedyRows) {
    check_interrupt();
    const std::size_t end = std::min(served_.size(), begin + kGreedyRows);
    dots(served_, begin, end, panel, products.data(), ld, 1);
    for (std::size_t i = begin; i < end; ++i) {
      const float* of_row = products.data() + (i - begin) * ld;
      const float least = least_product(i);
      bool loaded = false;
      for (std::size_t group = 0; group < n; group += 16) {
        int any = 0;
        for (std::size_t j = group; j < group + 16; ++j) any |= of_row[j] >= least;
        if (!any) continue;
        if (!loaded) served_.load(i, row.data());
        loaded = true;
        for (std::size_t j = group; j < std::min(n, group + 16); ++j) {
          if (of_row[j] < least) continue;
          const std::int32_t units =
              to_units(kernels().product(row.data(), wide.data() + j * d, d));
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

// The sum of the served rows, and x . G x of each row x, G the sum of their outer products.
void Coverage::prepare_moments() {
  const std::size_t d = rows_.n_cols();
  sum_.assign(d, 0.0);
  std::vector<double> outer(d * d);
  std::vector<std::vector<double>> partial(static_cast<std::size_t>(n_threads_));
  parallel_blocks(ceil_div(served_.size(), kGreedyRows), n_threads_, [&](std::size_t block, int t) {
    auto& mine = partial[static_cast<std::size_t>(t)];
    mine.resize(d * (d + 1));
    std::vector<double> row(d);
    const std::size_t end = std::min(served_.size(), (block + 1) * kGreedyRows);
    for (std::size_t i = block * kGreedyRows; i < end; ++i) {
      served_.load(i, row.data());
      for (std::size_t a = 0; a < d; ++a) {
        double* to = mine.data() + a * d;
        const double value = row[a];
        for (std::size_t b = 0; b < d; ++b) to[b] += value * row[b];
      }
      for (std::size_t a = 0; a < d; ++a) mine[d * d + a] += row[a];
    }
  });
  for (const auto& mine : partial) {
    for (std::size_t at = 0; at < mine.size(); ++at) {
      (at < d * d ? outer[at] : sum_[at - d * d]) += mine[at];
    }
  }
  squares_.resize(rows_.size());
  parallel_blocks(ceil_div(rows_.size(), kGreedyRows), n_threads_, [&](std::size_t block, int) {
    std::vector<double> row(d);
    const std::size_t end = std::min(rows_.size(), (block + 1) * kGreedyRows);
    for (std::size_t i = block * kGreedyRows; i < end; ++i) {
      rows_.load(i, row.data());
      double total = 0;
      for (std::size_t a = 0; a < d; ++a) {
        total += row[a] * kernels().product(row.data(), outer.data() + a * d, d);
      }
      squares_[i] = total;
    }
  });
}

// With t_i = s(i, j) - best_i before clipping: sum max(0, t) = (sum t + sum |t|) / 2, and by
// Cauchy-Schwarz sum |t| <= sqrt(N sum t^2). Both sums follow from the moments of the served rows.
std::vector<double> Coverage::coarse_gains() {
  const std::size_t d = rows_.n_cols(), n = served_.size();
  if (d > 1024 || n < 8 * d || is_listed()) return {};
  if (squares_.empty()) prepare_moments();
  std::vector<double> covered(d), row(d);  // sum of best_i times row i
  double best_sum = 0, best_squares = 0;
  if (n_picks_ > 0) {
    for (std::size_t i = 0; i < n; ++i) {
      const double best = best_[i] / kUnits;
      served_.load(i, row.data());
      for (std::size_t t = 0; t < d; ++t) covered[t] += best * row[t];
      best_sum += best;
      best_squares += best * best;
    }
  }
  std::vector<double> gains(rows_.size());
  parallel_blocks(ceil_div(rows_.size(), kGreedyRows), n_threads_, [&](std::size_t block, int) {
    std::vector<double> mine(d);
    const std::size_t end = std::min(rows_.size(), (block + 1) * kGreedyRows);
    for (std::size_t j = block * kGreedyRows; j < end; ++j) {
      rows_.load(j, mine.data());
      const double first = kernels().product(mine.data(), sum_.data(), d) - best_sum;
      const double second =
          squares_[j] - 2 * kernels().product(mine.data(), covered.data(), d) + best_squares;
      const auto count = static_cast<double>(n);
      // 2^-30: far more than float64 rounds of sums of so many terms below 1. Half a unit a pair.
      const double margin = count * 0x1p-30 * (1 + squares_[j] / count + std::fabs(first) / count);
      const double bound =
          0.5 * (first + std::sqrt(count * (std::max(0.0, second) + margin)) + margin);
      gains[j] = std::max(0.0, bound) * kUnits + 0.5 * count;
    }
  });
  return gains;
}

}  // namespace pyids
