#include "pyids/parallel.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace pyids {

int resolve_threads(int requested) {
  if (requested > 0) return requested;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void parallel_blocks(std::size_t n_blocks, int n_threads,
                     const std::function<void(std::size_t, int)>& body) {
  const int n_workers =
      static_cast<int>(std::min<std::size_t>(n_blocks, static_cast<std::size_t>(n_threads)));
  std::atomic<std::size_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  auto work = [&](int thread) {
    for (std::size_t block = next++; block < n_blocks; block = next++) {
      try {
        body(block, thread);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next = n_blocks;
      }
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 1; thread < n_workers; ++thread) threads.emplace_back(work, thread);
  if (n_workers > 0) work(0);
  for (auto& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace pyids
