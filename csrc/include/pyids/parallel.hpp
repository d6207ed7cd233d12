// Runs independent blocks of work on a fixed number of threads.
#pragma once

#include <cstddef>
#include <functional>

namespace pyids {

// Threads beyond this many a core only take memory: more are never started.
inline constexpr int kMostThreadsPerCore = 8;

// The number of threads that `requested` stands for: itself if positive (bounded as above, but up
// to 64 on any machine), else one per core that this process may use: by its affinity and its
// control group's quota, and at most the environment variable OMP_NUM_THREADS.
int resolve_threads(int requested);

// What the quota files of control groups grant, in whole cores, rounded up; 0: no limit. `root` is
// the folder "/" of proc and sys (another one in tests).
int cgroup_cpus(const char* root = "");

// Calls body(block, thread) for every block in [0, n_blocks), each exactly once, on up to
// n_threads threads (the caller's included); on fewer where the system will not start as many.
// Which thread runs which block is not fixed: results must depend on the block alone. The first
// exception thrown by a body is rethrown here.
void parallel_blocks(std::size_t n_blocks, int n_threads,
                     const std::function<void(std::size_t block, int thread)>& body);

// While it lives, long work begun by this thread calls `poll` on it every tenth of a second or so;
// what poll throws ends the work. One may live inside another: the inner one counts.
class InterruptScope {
 public:
  explicit InterruptScope(std::function<void()> poll);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  std::function<void()> poll_, *before_;
};

// Called by long work, inside and outside parallel_blocks, at least every hundred milliseconds:
// polls on the thread that has the scope, and throws on the others once the work is to end.
void check_interrupt();

}  // namespace pyids
