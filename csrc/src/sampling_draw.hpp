// One draw: the rows with the largest keys of each cluster.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "sampling_kernels.hpp"
#include "sampling_tally.hpp"

namespace pyids {

// A row that may be drawn: 8 bytes, so that as many as are drawn may be held. `excess` is its key
// above a base common to the cluster, rounded; where it ties, keys are computed anew.
struct Candidate {
  float excess;
  std::uint32_t row;
};

struct Drawn {
  std::uint32_t row;
  std::uint32_t cluster;
};

// Two passes over the rows. The first checks them and tallies each cluster, from which a threshold
// is guessed that a little more than the quota of its keys should reach. (Large clusters of rows
// with plain weights are guessed at from one row in sixteen, and checked in the second pass.) The
// second meets every row with its random number, throws away those whose key cannot reach the
// threshold before any logarithm is taken, and keeps the others; a cluster that fills its buffer
// keeps its best and raises its threshold. Where a guess was too high (fewer rows than needed
// reached it) the cluster is drawn once more without one. Guesses decide how fast this is, never
// what is drawn.
class Draw {
 public:
  Draw(const SampleRows& rows, std::span<const std::int64_t> quotas, const SampleOptions& options);

  // Ascending by row.
  std::vector<Drawn> draw();

 private:
  // The rows drawn so far by one thread from one cluster.
  struct Kept {
    std::vector<Candidate> candidates;
    SampleKey threshold = lowest_key;  // no lower key can be drawn
  };

  // One thread's.
  struct Buffers {
    std::vector<double> bounds;  // of each cluster, see `bound`
    std::array<double, block_rows> limits;
    std::array<std::uint32_t, block_rows + filter_slack> rows;
    std::array<std::uint64_t, block_rows + filter_slack> bits;
    std::array<double, block_rows> weights, high, low;
  };

  bool draw_unchecked();
  bool draw_above_floors();
  std::vector<SampleKey> guess_thresholds();
  void draw_again(const std::vector<SampleKey>& thresholds);
  std::size_t n_kept(std::size_t cluster) const;
  SampleKey floor_of(std::size_t cluster) const;

  void collect(const std::vector<std::size_t>& wanted, const std::vector<SampleKey>& thresholds);
  std::size_t filter_block(std::size_t begin, std::size_t end, Buffers& buffers);
  void keep(Kept& kept, const Candidate& candidate, std::size_t wanted, double& bound) const;
  bool fill_limits(const std::vector<Kept>& kept, std::size_t begin, std::size_t end,
                   Buffers& buffers) const;
  SampleKey put_best_first(std::vector<Candidate>& candidates, std::size_t n) const;
  std::vector<Drawn> best_rows();
  void sort_rows(std::vector<Drawn>& drawn) const;

  const SampleRows& rows_;
  const SamplingKernels& kernels_;
  std::uint64_t seed_;
  int n_threads_;
  bool allow_fewer_;
  bool checking_ = false;         // whether rows are checked as they are drawn
  std::atomic<bool> bad_{false};  // and one was bad
  std::vector<std::int64_t> quotas_;
  std::vector<SampleKey> floors_;  // empty: none
  std::vector<double> references_;
  std::vector<Tally> tallies_;
  std::vector<std::size_t> needed_;
  std::vector<SampleKey> bases_;         // what a candidate's excess is above
  std::vector<std::vector<Kept>> kept_;  // by thread and cluster
};

}  // namespace pyids
