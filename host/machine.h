// What this machine offers to this process.
#pragma once

#include <cstdint>
#include <string>

#include <deviceloop/plan.h>

namespace deviceloop {

/// Cores that this process may use: its affinity mask, cut by the cgroup's CPU quota. At least 1.
int usable_cores();

/// Memory that this process may still take: what the system calls available, cut by the cgroup's limit; 0: unknown.
std::uint64_t usable_memory_bytes();

/// "AVX-512", "AVX2", "SSE2", "NEON", ...
std::string simd_description();

CpuCaps query_cpu();

/// query_device_caps, but with no GPU asked for a training on the CPU, whose process then never meets CUDA's driver.
DeviceCaps query_caps_for(const DeviceChoice& device);

}  // namespace deviceloop
