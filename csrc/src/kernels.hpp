// The tables that the per-level translation units define.
#pragma once

#include "pyids/simd.hpp"

namespace pyids {

const Kernels& kernels_portable();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_amx();

}  // namespace pyids
