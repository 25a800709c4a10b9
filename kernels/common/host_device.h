// Marks small functions of host-safe headers that device code calls as well.
#pragma once

#if defined(__CUDACC__)
#define S2O_ANYWHERE __host__ __device__
#else
#define S2O_ANYWHERE
#endif
