/// \file
/// CUDA's streams, without a CUDA header.
#pragma once

#include <deviceloop/export.h>

struct CUstream_st;

namespace deviceloop::cuda {

/// CUDA's cudaStream_t.
using Stream = CUstream_st*;

}  // namespace deviceloop::cuda
