#define PYIDS_KERNELS kernels_portable
#include "kernels.inl"
