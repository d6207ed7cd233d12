// How many threads there may be, what happens where fewer start, and how long work is ended.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "pyids/parallel.hpp"

namespace {

namespace fs = std::filesystem;
using namespace pyids;

void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

void test_quotas_of_control_groups() {
  const fs::path root = fs::temp_directory_path() / ("pyids-cgroup-" + std::to_string(getpid()));
  const auto granted = [&] { return cgroup_cpus(root.c_str()); };
  check(granted() == 0, "no files, no limit");
  write(root / "proc/self/cgroup", "0::/a/b\n");
  check(granted() == 0, "no limit in version 2");
  write(root / "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  check(granted() == 0, "max");
  write(root / "sys/fs/cgroup/a/cpu.max", "250000 100000\n");
  check(granted() == 3, "that of a group around it, rounded up");
  write(root / "sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
  check(granted() == 1, "the least of them");
  fs::remove_all(root);
  write(root / "proc/self/cgroup", "5:cpuset:/\n4:cpu,cpuacct:/job\n");
  write(root / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
  write(root / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  check(granted() == 0, "none in version 1");
  write(root / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "400000\n");
  check(granted() == 4, "version 1");
  fs::remove_all(root);
}

void test_omp_num_threads() {
  const int all = resolve_threads(0);
  setenv("OMP_NUM_THREADS", "1", 1);
  check(resolve_threads(0) == 1, "OMP_NUM_THREADS counts");
  check(resolve_threads(2) == 2, "unless a number is given");
  for (const char* other : {"", "x", "-3", "1000000"}) {
    setenv("OMP_NUM_THREADS", other, 1);
    check(resolve_threads(0) == all, "OMP_NUM_THREADS that means nothing, or more than there are");
  }
  unsetenv("OMP_NUM_THREADS");
  check(resolve_threads(1000000000) < 100000, "absurd numbers are bounded");
}

void test_every_block_is_run_once_whatever_starts() {
  for (const int n_threads : {-1, 1, 3, 500}) {
    std::atomic<int> sum{0};
    parallel_blocks(100, n_threads,
                    [&](std::size_t block, int) { sum += static_cast<int>(block); });
    check(sum == 4950, "every block once");
  }
}

void test_work_is_ended() {
  using Clock = std::chrono::steady_clock;
  struct Interrupt : std::runtime_error {
    using runtime_error::runtime_error;
  };
  const auto start = Clock::now();
  const InterruptScope scope([] { throw Interrupt("Ctrl-C"); });
  bool ended = false;
  try {
    parallel_blocks(8, 4, [](std::size_t, int) {
      for (int i = 0; i < 10000; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        check_interrupt();
      }
    });
  } catch (const Interrupt&) {
    ended = true;
  }
  check(ended, "what poll throws comes back");
  check(Clock::now() - start < std::chrono::seconds(3), "all threads end soon");
}

}  // namespace

int main() {
  test_quotas_of_control_groups();
  test_omp_num_threads();
  test_every_block_is_run_once_whatever_starts();
  test_work_is_ended();
  std::printf("ok\n");
}
