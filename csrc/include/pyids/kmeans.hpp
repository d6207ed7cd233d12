// Exact Lloyd iterations over rows that somebody else owns.
//
// Assigner holds what one process knows about its rows (labels, sums) and brings it up to date with
// new centers. fixed.hpp makes the sums exact and turns them into the next centers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pyids/fixed.hpp"
#include "pyids/matrix.hpp"

namespace pyids {

struct LloydOptions {
  int n_threads = 1;
  // Of all that an Assigner holds beside labels, bounds (28 bytes a row), centers and sums (about
  // 32 bytes a value) and 16 MB; codes are not kept, and threads not started, that do not fit.
  std::size_t max_memory_bytes = SIZE_MAX;
  bool keep_codes = true;  // pays from the second assignment on
  float margin = 0.05f;    // of the own distance: how far past it a scan looks
  // Principal axes along which rows and centers are first compared; SIZE_MAX: as many as pay.
  std::size_t n_axes = SIZE_MAX;
};

// Rows that lie far from their centers, farthest first, ties by position.
struct FarRow {
  double squared_distance;
  std::size_t row;
};

// One a row each, or empty.
struct RowWeights {
  std::vector<double> held;      // in any units that they all fit
  std::vector<double> in_class;  // and as FixedScale wants them, where it has classes
  std::vector<std::uint16_t> classes;
};

class Assigner {
 public:
  Assigner(Rows rows, RowWeights weights, FixedScale scale, std::size_t n_clusters,
           LloydOptions options);
  ~Assigner();

  // Gives every row the label of the nearest center (by squared_distance; ties to the lowest index)
  // and brings sums and mass up to date. centers: n_clusters x D. Returns how many labels changed.
  // After it threw, labels and sums mean nothing; the next call begins anew.
  std::size_t assign(const double* centers);

  const std::vector<std::int32_t>& labels() const;
  const std::vector<std::int64_t>& sums() const;  // n_planes x n_clusters x D
  const std::vector<std::int64_t>& mass() const;  // n_planes x n_clusters
  // Weighted squared distances to the centers of the last assign, summed exactly in units of
  // 2^-shift. Throws std::logic_error before the first assign.
  __int128 inertia(int shift) const;
  // Of the rows whose weight is not lost beside the largest. Throws as inertia does.
  std::vector<FarRow> farthest(std::size_t count) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pyids
