// What this machine offers to this process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <deviceloop/plan.h>

#include "planning/decision.h"

namespace deviceloop {

/// Cores that this process may use: its affinity mask, cut by the CPU quota of its cgroups. At least 1. `root` is where
/// /proc and /sys are looked for, here and below: a test has others.
int usable_cores(const std::string& root = "");

/// Memory that this process may still take: what the system calls available, cut by the limits of its cgroups and by
/// address_space_left(); 0: unknown.
std::uint64_t usable_memory_bytes(const std::string& root = "");

/// What the process's own limits (RLIMIT_AS, RLIMIT_DATA) leave of address space; nothing where it has none.
std::optional<std::uint64_t> address_space_left(const std::string& root = "");

/// Address space that a thread which multiplies matrices takes: its stack, and the buffers of the BLAS.
std::uint64_t gemm_thread_bytes();

/// Whether the system would map so much now.
bool can_map(std::uint64_t bytes);

/// "AVX-512", "AVX2", "SSE2", "NEON", ...
std::string simd_description();

CpuCaps query_cpu();

/// query_device_caps for decide_here: of cuBLASLt nothing is asked yet, and for a training on the CPU of no GPU either,
/// so that its process never meets CUDA's driver.
DeviceCaps query_caps_for(const DeviceChoice& device);

/// decide() on this machine. Only a plan that needs cuBLASLt asks for it; `caps` tells then what came of that, and
/// where it is not to be had, another plan takes the run.
Decision decide_here(const NetworkSpec& network, const TrainingSpec& training, DeviceCaps& caps,
                     std::optional<ExecutorKind> forced);

}  // namespace deviceloop
