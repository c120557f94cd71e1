// The marks of functions that both the CPU and CUDA kernels call.
#pragma once

#if defined(__CUDACC__)
#define DEVICELOOP_HOST_DEVICE __host__ __device__
/// A function that is not to be copied into the loops that rarely call it.
#define DEVICELOOP_RARELY_CALLED __noinline__
#else
#define DEVICELOOP_HOST_DEVICE
#define DEVICELOOP_RARELY_CALLED [[gnu::noinline]]
#endif
