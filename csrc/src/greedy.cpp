// Farthest points, near-duplicates and distances of neighbors.
#include "pyids/greedy.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "greedy_blocks.hpp"
#include "pyids/simd.hpp"

namespace pyids {

Picks farthest_first(const Rows& rows, std::size_t budget, std::size_t first,
                     const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  std::vector<double> nearest(rows.size(), kFar);  // squared; -1: picked
  std::vector<double> center(rows.n_cols());
  Picks picks;
  std::size_t pick = first;
  double farthest = kFar;
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

namespace {

// Products of rows in float64, in one order of operations: what decides where float32 leaves it
// open, so that every instruction set decides alike.
class Exact {
 public:
  explicit Exact(const Rows& rows) : rows_(rows), row_(rows.n_cols()), other_(rows.n_cols()) {}

  // Chooses the row whose products are asked for; returns its length.
  double choose(std::size_t i) {
    rows_.load(i, row_.data());
    return std::sqrt(kernels().product(row_.data(), row_.data(), row_.size()));
  }
  double with(std::size_t other) {
    rows_.load(other, other_.data());
    return kernels().product(row_.data(), other_.data(), row_.size());
  }

 private:
  const Rows& rows_;
  std::vector<double> row_, other_;
};

// More than float32 products of a row with rows no longer than `longest` can be wrong by: both
// lengths are rounded, and so are the float64 products (relatively less than 2^-30 of dot_error).
double slack(std::size_t d, double length, double longest) {
  return dot_error(d) * length * longest * (1 + 0x1p-20) + std::numeric_limits<float>::min();
}

}  // namespace

Picks filter_near(const Rows& rows, std::span<const std::int64_t> order, std::size_t budget,
                  double threshold, const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  const std::size_t d = rows.n_cols();
  std::vector<float> kept(budget * d);  // the rows kept so far
  std::vector<double> row(d);
  Exact exact(rows);
  double longest = 0;  // of the rows kept
  Picks picks;
  // Whether the candidate is too near to a row kept. Only where its largest product comes within
  // rounding of the threshold are there products to look at again.
  const auto is_near = [&](std::int64_t candidate, float largest) {
    const double length = exact.choose(static_cast<std::size_t>(candidate));
    const double room = slack(d, length, longest), value = static_cast<double>(largest);
    bool near = value > threshold;
    if (std::abs(value - threshold) <= room) {
      near = std::any_of(picks.rows.begin(), picks.rows.end(), [&](std::int64_t other) {
        return exact.with(static_cast<std::size_t>(other)) > threshold;
      });
    }
    if (!near) longest = std::max(longest, length);
    return near;
  };
  for (std::size_t from = 0; from < order.size() && picks.rows.size() < budget;
       from += kGreedyRows) {
    const std::size_t n = std::min(kGreedyRows, order.size() - from);
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
      if (is_near(candidates[j], nearest[j])) continue;
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

namespace {

// Others of a row whose float32 products are largest, descending.
struct Largest {
  float* products;
  std::int64_t* others;
  std::size_t size;

  void offer(float product, std::int64_t other) const {
    std::size_t rank = size - 1;
    for (; rank > 0 && products[rank - 1] < product; --rank) {
      products[rank] = products[rank - 1];
      others[rank] = others[rank - 1];
    }
    products[rank] = product;
    others[rank] = other;
  }
};

// Entries of a list of neighbors beyond those that count: they absorb what float32 mixes up.
constexpr std::size_t kSpare = 8;

}  // namespace

std::vector<double> neighbor_distances(const Rows& rows, const Rows& reference,
                                       std::span<const std::int64_t> reference_rows,
                                       std::size_t n_neighbors, const GreedyOptions& options) {
  const int n_threads = resolve_threads(options.n_threads);
  const std::size_t d = rows.n_cols(), size = n_neighbors + kSpare;
  std::vector<float> products_of(rows.size() * size, -std::numeric_limits<float>::infinity());
  std::vector<std::int64_t> others_of(rows.size() * size, -1);
  const auto list_of = [&](std::size_t i) {
    return Largest{products_of.data() + i * size, others_of.data() + i * size, size};
  };
  for (std::size_t from = 0; from < reference.size(); from += kPanelRows) {
    const std::size_t n = std::min(kPanelRows, reference.size() - from);
    const PackedRows panel(reference, from, from + n);
    for_each_block(
        rows, panel, n_threads,
        [&](std::size_t begin, std::size_t end, const float* products, std::size_t ld, int) {
          for (std::size_t i = begin; i < end; ++i) {
            const Largest top = list_of(i);
            const float* row = products + (i - begin) * ld;
            for (std::size_t j = 0; j < n; ++j) {
              if (row[j] <= top.products[size - 1]) continue;
              if (reference_rows[from + j] == static_cast<std::int64_t>(i)) continue;
              top.offer(row[j], reference_rows[from + j]);
            }
          }
        });
    check_interrupt();
  }

  double longest = 0;
  Exact exact(rows);
  for (const std::int64_t other : reference_rows) {
    longest = std::max(longest, exact.choose(static_cast<std::size_t>(other)));
  }
  // The exact products of the listed rows settle the sum, unless a row that is not listed could
  // have a larger one than the last that counts: then all are looked at.
  std::vector<double> sums(rows.size());
  parallel_blocks(ceil_div(rows.size(), kGreedyRows), n_threads, [&](std::size_t block, int) {
    Exact own(rows);
    std::vector<double> found;
    const std::size_t begin = block * kGreedyRows;
    for (std::size_t i = begin; i < std::min(rows.size(), begin + kGreedyRows); ++i) {
      const Largest top = list_of(i);
      for (std::size_t k = 0; k < size && top.others[k] >= 0; ++k) {
        rows.prefetch(static_cast<std::size_t>(top.others[k]));
      }
      const double length = own.choose(i);
      found.clear();
      for (std::size_t k = 0; k < size && top.others[k] >= 0; ++k) {
        found.push_back(own.with(static_cast<std::size_t>(top.others[k])));
      }
      std::sort(found.begin(), found.end(), std::greater<>());
      const bool all = found.size() < size;
      if (!all && static_cast<double>(top.products[size - 1]) + slack(d, length, longest) >
                      found[n_neighbors - 1]) {
        found.clear();
        for (const std::int64_t other : reference_rows) {
          if (other != static_cast<std::int64_t>(i)) {
            found.push_back(own.with(static_cast<std::size_t>(other)));
          }
        }
        std::sort(found.begin(), found.end(), std::greater<>());
      }
      for (std::size_t k = 0; k < n_neighbors; ++k) sums[i] += std::max(0.0, 1.0 - found[k]);
    }
  });
  return sums;
}

}  // namespace pyids
