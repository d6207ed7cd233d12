// Exact Lloyd iterations over rows that somebody else owns.
//
// The parts: FixedScale makes sums of rows exact, so that they can be added up in any grouping;
// Assigner holds what one process knows about its rows (labels, sums) and brings it up to date with
// new centres; update_centers turns the sums into the next centres.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pyids/matrix.hpp"

namespace pyids {

// The largest |x| of every column. Throws std::invalid_argument naming the first row that holds a
// NaN, an infinity or a magnitude above 1e150, whose square float64 cannot hold.
std::vector<double> largest_values(const Rows& rows, int n_threads);

// Powers of two that turn a row's weighted values into integers whose sums stay below 2^62. Made
// from maxima and a count alone, which merge over shards in any order. An integer is off by at most
// half, so a mean of unweighted rows is off by at most max(2^-51, N 2^-62) of its column's largest
// value.
struct FixedScale {
  FixedScale(const std::vector<double>& largest, double largest_weight, std::size_t n_rows);

  std::vector<double> columns;
  double mass;
  double reach;  // the largest value of all
};

struct LloydOptions {
  int n_threads = 1;
  std::size_t max_memory_bytes = SIZE_MAX;  // what the derived copies of the rows may take
  bool keep_codes = true;                   // pays from the second assignment on
  float margin = 0.05f;                     // of the own distance: how far past it a scan looks
};

// Rows that lie far from their centres, farthest first, ties by position.
struct FarRow {
  double squared_distance;
  std::size_t row;
};

class Assigner {
 public:
  // weights: one a row, or empty.
  Assigner(Rows rows, std::vector<double> weights, FixedScale scale, std::size_t n_clusters,
           LloydOptions options);
  ~Assigner();

  // Gives every row the label of the nearest centre (by squared_distance; ties to the lowest index)
  // and brings sums and mass up to date. centers: n_clusters x D. Returns how many labels changed.
  std::size_t assign(const double* centers);

  const std::vector<std::int32_t>& labels() const;
  const std::vector<std::int64_t>& sums() const;  // n_clusters x D, in units of 1 / columns
  const std::vector<std::int64_t>& mass() const;  // n_clusters, in units of 1 / mass
  // Weighted squared distances to the centres of the last assign, summed exactly in units of
  // 2^-shift.
  __int128 inertia(int shift) const;
  // Of the rows that have mass.
  std::vector<FarRow> farthest(std::size_t count) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The means: sums / mass a cluster, rounded to float32 unless `wide`, to unit length if `cosine`. A
// cluster without mass keeps its centre. Returns the sum of the squared distances moved.
double update_centers(const std::int64_t* sums, const std::int64_t* mass, const FixedScale& scale,
                      std::size_t n_clusters, bool wide, bool cosine, double* centers);

}  // namespace pyids
