#if defined(__x86_64__)
#define PYIDS_SAMPLING_KERNELS sampling_avx2
#include "sampling_kernels.inl"
#endif
