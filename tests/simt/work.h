// What stand-ins of libraries on top of CUDA's runtime need of the fixture.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "simt/inside.h"

namespace simt {

/// Counts as a runtime call that may be told to fail, see fail_call; returns what it is told.
cudaError_t library_call(const char* name = __builtin_FUNCTION());

/// For live_objects(). Whether an object that is no longer new was there.
bool count_object(const void* object, bool is_new);

/// Enqueues what the library would launch as one kernel; may be captured.
cudaError_t enqueue_library_kernel(cudaStream_t stream, std::function<void()> run,
                                   const char* name = __builtin_FUNCTION());

}  // namespace simt
