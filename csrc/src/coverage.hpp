// What the served rows of a facility location have so far, and what a candidate would add to it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "greedy_blocks.hpp"
#include "pyids/greedy.hpp"

namespace pyids {

// Gains are sums of max(0, s(i, j) - best_i) over the served rows i, where s is the product of two
// rows, clipped to [0, 1], in whole units of 2^-20. The product that counts is the float64 one
// (Kernels::product), the same at every level; float32 products, with a bound on their error, tell
// which candidates and pairs it must be computed for.
//
// At first a gain takes a product with every served row. But only pairs with s(i, j) > best_i
// matter, and their share falls about as 1 / picks: once they fit into memory they are listed, and
// a gain is a walk along a short list.
class Coverage {
 public:
  Coverage(const Rows& rows, const Rows& served, std::size_t list_bytes, int n_threads);

  bool is_listed() const { return !lists_.empty(); }
  // For each candidate, at least its gain.
  std::vector<double> upper_gains(std::span<const std::int64_t> candidates) const;
  // For each row, at least its gain, from moments of the products alone: cheap and coarse. Empty
  // where that does not pay.
  std::vector<double> coarse_gains();
  std::int64_t gain(std::int64_t candidate) const;
  void add(std::int64_t pick);

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

  std::span<const Pair> list(std::int64_t candidate) const;
  std::vector<std::int32_t> units(std::int64_t candidate) const;
  float least_product(std::size_t served_row) const;
  std::size_t estimate_pairs() const;
  void make_lists();
  PairLists list_panel(std::size_t p) const;
  void prepare_moments();

  const Rows& rows_;
  const Rows& served_;
  int n_threads_;
  std::size_t max_pairs_;
  double slack_;  // of a float32 product
  std::vector<std::int32_t> best_;
  std::vector<PairLists> lists_;
  std::vector<double> sum_, squares_;  // of the served rows; of each row's products with them
  std::size_t n_picks_ = 0;
  std::size_t next_estimate_ = 1;
};

}  // namespace pyids
