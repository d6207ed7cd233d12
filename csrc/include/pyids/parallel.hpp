// Runs independent blocks of work on a fixed number of threads.
#pragma once

#include <cstddef>
#include <functional>

namespace pyids {

// The number of threads that `requested` stands for: itself if positive, else one per core that
// this process may run on.
int resolve_threads(int requested);

// Calls body(block, thread) for every block in [0, n_blocks), each exactly once, on up to
// n_threads threads (the caller's included). Which thread runs which block is not fixed: results
// must depend on the block alone. The first exception thrown by a body is rethrown here.
void parallel_blocks(std::size_t n_blocks, int n_threads,
                     const std::function<void(std::size_t block, int thread)>& body);

}  // namespace pyids
