// What c_api_test.c needs of C++: the C++ API's results, and faults that a program in C cannot make.
#pragma once

#include <deviceloop/deviceloop_c.h>

#ifdef __cplusplus
extern "C" {
#endif

/// The losses of the starting case by the C++ API, on the CPU.
void losses_of_the_starting_case(double* losses, int64_t steps);

/// A callback that throws a std::exception, and with a `user` something else.
int32_t throwing_callback(const deviceloop_progress* progress, void* user);

/// deviceloop_last_error() in a thread in which nothing failed.
const char* last_error_of_a_new_thread(void);

/// From now on so many allocations succeed, then none; -1: all of them.
void allow_allocations(int count);

/// Whether the library was built with CUDA.
int has_cuda(void);

#ifdef __cplusplus
}
#endif
