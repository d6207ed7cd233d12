#if defined(__x86_64__)
#define PYIDS_KERNELS kernels_amx
#include "kernels.inl"
#endif
