// How many threads this process may use.
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "pyids/parallel.hpp"

namespace pyids {

namespace {

int affine_cpus() {
  // A machine of more than 1024 processors needs a larger set than cpu_set_t.
  for (int n = 1024; n <= 1 << 20; n *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<std::size_t>(n));
    if (set == nullptr) break;
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(n));
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    const int count = known ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (known) return std::max(1, count);
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// quota / period, rounded up; 0 where there is none.
int whole_cpus(double quota, double period) {
  if (!(quota > 0) || !(period > 0)) return 0;
  return static_cast<int>(std::clamp(std::ceil(quota / period), 1.0, 1e6));
}

// A small file's text, empty if there is none. No C++ stream, here or elsewhere in the core: a
// toolchain that links the C++ library into the extension gives the process a second one, and the
// locales of the two get mixed up, so that the first read of a stream crashes.
std::string text_of(const std::string& path) {
  std::string text;
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return text;
  char part[4096];
  for (std::size_t n; (n = std::fread(part, 1, sizeof part, file)) > 0;) text.append(part, n);
  std::fclose(file);
  return text;
}

// The limit that one folder sets: cpu.max of version 2 ("max 100000", "150000 100000").
int quota_v2(const std::string& folder) {
  double quota = 0, period = 0;
  if (std::sscanf(text_of(folder + "/cpu.max").c_str(), "%lf %lf", &quota, &period) != 2) return 0;
  return whole_cpus(quota, period);
}

int quota_v1(const std::string& folder) {
  const double quota = std::atof(text_of(folder + "/cpu.cfs_quota_us").c_str());
  return whole_cpus(quota, std::atof(text_of(folder + "/cpu.cfs_period_us").c_str()));
}

int lower(int a, int b) { return a == 0 ? b : b == 0 ? a : std::min(a, b); }

// The least of a group's limit and those of the groups that it is in.
template <class Quota>
int least_up(const std::string& mount, std::string group, Quota quota) {
  int least = quota(mount);
  while (group.size() > 1) {
    least = lower(least, quota(mount + group));
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
  return least;
}

// OMP_NUM_THREADS: "4", or a list "4,2" whose first entry counts; 0 for anything else.
int omp_threads() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  if (text == nullptr) return 0;
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  if (end == text || n < 1) return 0;
  return static_cast<int>(std::min(n, 1L << 20));
}

}  // namespace

int cgroup_cpus(const char* root) {
  const std::string sys = std::string(root) + "/sys/fs/cgroup";
  const std::string groups = text_of(std::string(root) + "/proc/self/cgroup");
  int least = 0;
  // A line a hierarchy: "0::/group", "4:cpu,cpuacct:/group".
  for (std::size_t begin = 0, end = 0; begin < groups.size(); begin = end + 1) {
    end = std::min(groups.find('\n', begin), groups.size());
    const std::string line = groups.substr(begin, end - begin);
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (controllers.empty()) {
      least = lower(least, least_up(sys, group, quota_v2));
      continue;
    }
    if (("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    least = lower(least, least_up(sys + "/" + controllers, group, quota_v1));
    least = lower(least, least_up(sys + "/cpu", group, quota_v1));
  }
  return least;
}

int resolve_threads(int requested) {
  const int cores = affine_cpus();
  if (requested > 0) return std::min(requested, std::max(64, cores * kMostThreadsPerCore));
  static const int granted = cgroup_cpus();
  return std::max(1, lower(lower(cores, granted), omp_threads()));
}

}  // namespace pyids
