#if defined(__x86_64__)
#define PYIDS_KERNELS kernels_avx2
#include "kernels.inl"
#endif
