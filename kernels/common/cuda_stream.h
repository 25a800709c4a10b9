// The type of a CUDA stream, for headers that do not include the CUDA runtime.
#pragma once

struct CUstream_st;

namespace s2o {

using CudaStream = CUstream_st*;  // cudaStream_t

}  // namespace s2o
