#define PYIDS_SAMPLING_KERNELS sampling_portable
#include "sampling_kernels.inl"
