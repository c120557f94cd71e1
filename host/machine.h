// What this machine offers to this process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <deviceloop/plan.h>

#include "planning/decision.h"

namespace deviceloop {

/// Cores that this process may use: its affinity mask, cut by the CPU quota of its cgroups. At least 1. `root`, here
/// and below, is the folder that has /proc and /sys; tests pass one of their own.
int usable_cores(const std::string& root = "");

/// Memory that this process may still take: what the system calls available, limited by its cgroups and by
/// address_space_left(); 0: unknown.
std::uint64_t usable_memory_bytes(const std::string& root = "");

/// The address space that the process's own limits (RLIMIT_AS, RLIMIT_DATA) leave; empty if it has no such limits.
std::optional<std::uint64_t> address_space_left(const std::string& root = "");

/// The address space of a thread that multiplies matrices: its stack, and the buffers of the BLAS.
std::uint64_t gemm_thread_bytes();

/// Whether the system can map this much memory now.
bool can_map(std::uint64_t bytes);

/// "AVX-512", "AVX2", "SSE2", "NEON", ...
std::string simd_description();

/// As the system calls the processor: "AMD EPYC 7763 64-Core Processor"; empty where it does not say.
std::string processor_name(const std::string& root = "");

/// The version of NVIDIA's kernel driver, "550.54.15"; empty where there is none. Loads nothing.
std::string nvidia_driver_version(const std::string& root = "");

CpuCaps query_cpu();

/// query_device_caps for decide_here: it does not load cuBLASLt, and for a training on the CPU it does not query GPUs
/// either, so that the process never loads CUDA's driver.
DeviceCaps query_caps_for(const DeviceChoice& device);

/// decide() on this machine. Loads cuBLASLt only for a plan that needs it; `caps` then says whether it is available,
/// and if it is not, another plan is chosen.
Decision decide_here(const NetworkSpec& network, const TrainingSpec& training, DeviceCaps& caps,
                     std::optional<ExecutorKind> forced);

}  // namespace deviceloop
