#include "pyids/simd.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.hpp"

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pyids {

namespace {

#if defined(__x86_64__)
bool has_amx() {
#if defined(__linux__)
  // cpuid leaf 7: EDX bit 24 is AMX-TILE, bit 25 AMX-INT8. Linux hands the tile registers out on
  // request only (ARCH_REQ_XCOMP_PERM, XTILEDATA), once for the whole process.
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  if ((edx >> 24 & 3u) != 3u) return false;
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

bool supported(SimdLevel level) {
#if defined(__x86_64__)
  switch (level) {
    case SimdLevel::portable:
      return true;
    case SimdLevel::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case SimdLevel::avx512:
      return supported(SimdLevel::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    case SimdLevel::amx:
      return supported(SimdLevel::avx512) && has_amx();
  }
  return false;
#else
  return level == SimdLevel::portable;
#endif
}

constexpr SimdLevel kLevels[] = {SimdLevel::amx, SimdLevel::avx512, SimdLevel::avx2,
                                 SimdLevel::portable};

SimdLevel choose() {
  const char* wanted = std::getenv("PYIDS_SIMD");
  for (SimdLevel level : kLevels) {
    if (wanted != nullptr && *wanted != '\0') {
      if (std::string(wanted) != simd_name(level)) continue;
      if (!supported(level)) {
        throw std::runtime_error("PYIDS_SIMD=" + std::string(wanted) +
                                 ": this processor lacks it; unset the variable");
      }
      return level;
    }
    if (supported(level)) return level;
  }
  throw std::runtime_error("PYIDS_SIMD=" + std::string(wanted == nullptr ? "" : wanted) +
                           ": choose portable, avx2, avx512 or amx");
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = choose();
  return level;
}

const char* simd_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::portable:
      return "portable";
    case SimdLevel::avx2:
      return "avx2";
    case SimdLevel::avx512:
      return "avx512";
    case SimdLevel::amx:
      return "amx";
  }
  return "";
}

const Kernels& kernels(SimdLevel level) {
#if defined(__x86_64__)
  switch (level) {
    case SimdLevel::portable:
      break;
    case SimdLevel::avx2:
      return kernels_avx2();
    case SimdLevel::avx512:
      return kernels_avx512();
    case SimdLevel::amx:
      return kernels_amx();
  }
#else
  (void)level;
#endif
  return kernels_portable();
}

const Kernels& kernels() {
  static const Kernels& chosen = kernels(simd_level());
  return chosen;
}

}  // namespace pyids
