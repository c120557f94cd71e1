// The marks of functions that both the CPU and CUDA kernels call.
#pragma once

#if defined(__CUDACC__)
#define DEVICELOOP_HOST_DEVICE __host__ __device__
/// A formula of one element: it becomes part of each loop that calls it, and so of its vector instructions.
#define DEVICELOOP_ELEMENT __host__ __device__
/// A function that never becomes part of a loop, which calls it rarely.
#define DEVICELOOP_RARELY_CALLED __host__ __device__ __noinline__
#else
#define DEVICELOOP_HOST_DEVICE
#define DEVICELOOP_ELEMENT [[gnu::always_inline]]
#define DEVICELOOP_RARELY_CALLED [[gnu::noinline]]
#endif
