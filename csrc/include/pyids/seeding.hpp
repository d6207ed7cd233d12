// Where Lloyd's iterations start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pyids/matrix.hpp"

namespace pyids {

// Greedy k-means++: each next row is the best of 2 + floor(ln k) drawn in proportion to their
// weighted squared distance to the rows taken so far (Arthur and Vassilvitskii, SODA 2007, with the
// local trials of its section 5). Returns k positions; where fewer than k rows are distinct, some
// repeat. The same for any number of threads and at every instruction set.
//
// The draws of many steps are made at once from the distances known then, and each is accepted when
// its turn comes with probability (distance now) / (distance then): the same distribution, but the
// distances to all rows are computed for many candidates in one pass.
//
// weights: one a row, or empty; reach: the largest magnitude of any value; max_memory_bytes: what
// codes of the rows may take (else they are coded again in each pass).
std::vector<std::size_t> seed_rows(const Rows& rows, const std::vector<double>& weights,
                                   double reach, std::size_t k, std::uint64_t seed, int n_threads,
                                   std::size_t max_memory_bytes = SIZE_MAX);

}  // namespace pyids
