// The interface between host/ and cuda/: the only functions of cuda/ that host/ calls. A build without CUDA defines
// them in cuda/without_cuda.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "executor.h"
#include "matrix_ops.h"
#include "planning/decision.h"

namespace deviceloop {

/// Fills caps.gpus, or caps.no_gpu_reason if there is no GPU, which is no error. Does not load cuBLASLt.
void query_gpus(DeviceCaps& caps);

/// Why cuBLASLt is not available; empty if it is. The call loads it, which takes 50 ms and 150 MB.
std::string why_no_cublaslt();

/// The toolkit this was built with ("13.0"), or "none".
const char* cuda_toolkit();

/// Make the executor that `decision` chose, on its device. The executor allocates as much of the device's memory as the
/// plan says, all at once. They throw DeviceError if CUDA fails, Unsupported if the GPU or cuBLASLt lacks what the plan
/// assumed.
/// @{
std::unique_ptr<Executor> make_graph_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Decision& decision, const Surroundings& surroundings);
std::unique_ptr<Executor> make_persistent_executor(const NetworkSpec& network, const TrainingSpec& training,
                                                   const Decision& decision, const Surroundings& surroundings);
std::unique_ptr<Executor> make_fused_executor(const NetworkSpec& network, const TrainingSpec& training,
                                              const Decision& decision, const Surroundings& surroundings);
/// @}

/// Throws InvalidArgument unless the range lies in memory of that device; `what` names it in the message. Runs nothing.
void check_device_range(const void* data, std::uint64_t bytes, int device, const std::string& what);

/// Memory of that device for somebody else: by cudaMalloc, since cudaFree waits for all work that uses it. Throws
/// DeviceError where there is none left, InvalidArgument while the stream of the options is being captured.
std::shared_ptr<void> allocate_on_device(std::size_t bytes, int device, const CudaOptions& options);

/// Of matrices in memory of that device, behind what the stream of the options holds; both wait.
/// @{
/// The first element that breaks the rule, in row order.
std::optional<NonFinite> find_wrong_on_device(const ConstMatrix& matrix, const ElementRule& rule, int device,
                                              const CudaOptions& options);
/// A copy, of the same type and shape, without gaps.
void download_from_device(Matrix to, const ConstMatrix& from, int device, const CudaOptions& options);
/// @}

}  // namespace deviceloop
