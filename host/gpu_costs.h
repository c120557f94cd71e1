// What the planner takes a GPU's pieces to cost: one table. The figures are those that others have published for the
// H100 (bench/NOTES.md); bench/probe.cu measures each of them, and its committed result shall replace them.
#pragma once

#include <cstdint>

namespace deviceloop::gpu_costs {

constexpr double kGraphNodeUs = 1.3;        ///< a kernel in a graph, beside its work
constexpr double kLibraryProductUs = 2;     ///< a library's product of any size, beside that and its arithmetic
constexpr double kGridMeetingUs = 1.1;      ///< all blocks of a grid meet
constexpr double kClusterMeetingUs = 0.4;   ///< all blocks of a cluster meet
constexpr double kBlockMeetingUs = 0.03;    ///< all threads of a block meet
constexpr double kL2HopUs = 0.6;            ///< a value goes from one block to the others through L2
constexpr double kPeerHopUs = 0.25;         ///< to the other blocks of a cluster through their shared memory
constexpr double kL2LatencyUs = 0.35;       ///< of a panel of operands from L2 into shared memory
constexpr double kSharedLatencyUs = 0.05;   ///< from shared memory
constexpr double kL2GbPerSecond = 5500;     ///< of all multiprocessors together
constexpr double kMemoryEfficiency = 0.9;   ///< the part of its memory's rate that a GPU reaches
constexpr double kClockGhz = 1.7;           ///< of a multiprocessor under load
constexpr double kPeakClockGhz = 1.98;      ///< and the highest
constexpr double kLanes = 128;              ///< fused multiply-adds of a multiprocessor and clock in fp32; half in fp64
constexpr double kLibraryEfficiency = 0.7;  ///< the part of these that a library's large products reach
constexpr double kTileEfficiency = 0.5;     ///< and a tile of the persistent kernel
constexpr double kRegisterTileEfficiency = 0.7;  ///< and a tile that stays in registers, with the sums of its lanes
constexpr double kPeerBytesPerClock = 32;        ///< that a multiprocessor sends to others of its cluster, or gets
constexpr double kTileUs = 0.3;                  ///< what a tile takes beside its products
constexpr double kLongestLaunchUs = 5e5;         ///< a launch of the persistent executor takes no longer

/// Fused multiply-adds of a multiprocessor in a microsecond.
constexpr double fma_per_us(std::uint64_t element_bytes, double clock_ghz = kClockGhz) {
  return kLanes * 4 / static_cast<double>(element_bytes) * clock_ghz * 1e3;
}
constexpr double peak_fma_per_us(std::uint64_t element_bytes) { return fma_per_us(element_bytes, kPeakClockGhz); }

}  // namespace deviceloop::gpu_costs
