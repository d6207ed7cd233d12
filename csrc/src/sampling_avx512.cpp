#if defined(__x86_64__)
#define PYIDS_SAMPLING_KERNELS sampling_avx512
#include "sampling_kernels.inl"
#endif
