// What the planner takes a GPU's pieces to cost: one table. Each figure names what measured it: an experiment of
// bench/probe/, cases of deviceloop_bench, or, where pieces cannot be measured alone, the steps of whole trainings
// that it was fitted to. The results are those of an H100 80GB HBM3, in bench/results/h100-2026-11-26;
// tests/prediction_test.cpp holds what follows from these figures against them.
#pragma once

#include <cstdint>

namespace deviceloop::gpu_costs {

// Clocks and rates.
constexpr double kClockGhz = 1.98;         ///< probe: clock, of an H100, which stays at its highest while it trains
constexpr double kLanes = 128;             ///< fused multiply-adds of a multiprocessor and clock in fp32; half in fp64
constexpr double kL2GbPerSecond = 7200;    ///< probe: memory_rates, read from L2 by all multiprocessors
constexpr double kMemoryEfficiency = 0.9;  ///< probe: memory_rates, a copy, 3.0 of nominal 3.35 TB/s

// Launches, barriers, and what one block tells others.
constexpr double kGraphNodeUs = 1.06;      ///< a kernel of a graph, beside its work; probe: graph_lines
constexpr double kBlockBarrierUs = 0.03;   ///< all threads of a block; probe: barriers
constexpr double kL2HopUs = 0.37;          ///< a word and its tag to another block; probe: hops, hop_packed_word
constexpr double kPeerHopUs = 0.36;        ///< the same to the other block of a cluster; probe: cluster_exchange
constexpr double kL2LatencyUs = 0.67;      ///< a read from L2, and what it waits for; probe: hops, hop_release_acquire
constexpr double kL2ExchangeUs = 1.0;      ///< 128 words of each of 25 blocks to all of them; probe: hops, all_to_all
constexpr double kPeerExchangeUs = 0.65;   ///< stores to the peers of a cluster and their wait, and for each doubling
constexpr double kPeerDoublingUs = 0.25;   ///< of it so much more; probe: cluster_exchange, stores_then_cluster_barrier
constexpr double kPeerBytesPerClock = 32;  ///< that a multiprocessor sends to others of its cluster; assumed
constexpr double kLongestLaunchUs = 5e5;   ///< a launch of the persistent executor takes no longer

// Kernels of a graph, beside the node: deviceloop_bench, kernel/cuda/...
constexpr double kKernelUs = 0.6;  ///< the shortest: relu of 1024 elements, 1.43 with its node
constexpr double kRowUs = 0.24;    ///< a row of a thread that sums over rows, as narrow_linear_gradient took before
constexpr double kSlotSumUs = 5;   ///< the sum over the slots of such a kernel
constexpr double kRowSumEfficiency = 0.7;  ///< of memory's rate
// The gradient of a narrow layer, which waits for a GPU: by what its loads wait for and its arithmetic takes.
constexpr double kNarrowGradientUs = 0.85;
constexpr double kNarrowGradientRowUs = 0.06;       ///< a row of a thread, and an output
constexpr double kNarrowGradientEfficiency = 0.94;  ///< of memory's rate

// A library's products, fitted to train/graph/...
constexpr double kLibraryProductUs = 2.4;    ///< of any size, beside its node
constexpr double kLibraryInnerUs = 0.0085;   ///< for each element of the inner dimension,
constexpr double kLibrarySplitUs = 3.2;      ///< until it is split among blocks and summed afterwards
constexpr double kLibraryEfficiency = 0.78;  ///< of fused multiply-adds in fp32; probe: lt_rates, 51.8 of 64.6 TFLOP/s
constexpr double kLibraryDoubleEfficiency = 1.8;  ///< in fp64, on tensor cores: 59.6 of 32.9
/// On tensor cores, of the same 66.9: 371 in TF32 and 674 in bf16, 8192 x 8192 x 8192; probe: lt_rates. fp16 is taken
/// to be as fast as bf16.
constexpr double kLibraryTf32Efficiency = 5.5;
constexpr double kLibraryBf16Efficiency = 10.1;
constexpr double kLibraryMemoryEfficiency = 0.72;  ///< of memory's rate, where narrow layers are bound by it

// Own small products of the graph, which wait for a GPU: from prototypes of the same cut, timed on an H100 (128 x 100 x
// 1000 4.9 to 5.5 us with the node, 1000 x 100 x 128 2.9 to 3.0, 64 x 128 x 784 2.6 to 2.7, 1024 x 256 x 256 5.8
// to 6.1).
constexpr double kSmallProductUs = 2.0;  ///< what one takes beside the following: operands from L2, sums of the warps
constexpr double kFlatTileReads = 2;  ///< cycles of reading shared memory for a cycle of multiply-adds, 4 rows a thread
constexpr double kTallTileReads = 1.5;  ///< the same of 8 rows a thread
// A narrow layer and its loss in the end of one: so that a step of 784-128-10 with 64 samples takes what that of a
// prototype took in clusters of eight blocks, 10.7 to 11.2. That of 1000-100-1 took 9.8 at best, most cuts 11 to 14.
constexpr double kLossEndUs = 1.0;

// The kernels for two layers, fitted to train/persistent/1000-100-1 and 784-128-10, primal and gram.
constexpr double kTwoLayerUs = 1.5;                      ///< what a step takes beside all that follows
constexpr double kRegisterTileEfficiency = 0.7;          ///< of a tile that stays in registers, in fp32
constexpr double kRegisterTileDoubleEfficiency = 0.155;  ///< and in fp64; why it is so low is not known
constexpr double kOutputFmaPerUs = 4300;                 ///< multiply-adds of the output layer by a block

// The kernel that keeps parameters on chip. Not measured yet: chosen so that 64-64-64-1 with batches of 256 takes what
// a prototype took on an H100, 7.3 us in a cluster of 16 and 11.8 in one of 8. A prototype that splits the first layer
// by its inputs waited as long for the other blocks; its updates of parameters that stay in their block
// took 0.5 to 0.7 us for seven of 16 bytes a thread.
constexpr double kOnChipUs = 2.0;           ///< what a step waits for the other blocks
constexpr double kOnChipAloneUs = 0.8;      ///< and where there are none
constexpr double kOnChipUpdateUs = 0.3;     ///< an update of 16 bytes of parameters by each thread
constexpr double kOnChipOwnUpdateUs = 0.1;  ///< the same of parameters that no other block needs
constexpr double kOnChipGroupClocks = 180;  ///< a warp alone, for four of the inner dimension of its tiles,
constexpr double kOnChipWarpClocks = 50;    ///< and each of several, which share the way to shared memory
constexpr double kOnChipTileClocks = 150;   ///< a tile, beside that
// The same by three products in TF32, from prototypes: 4.98 us instead of 7.3, and 6.5 with the first layer, of 784
// inputs and 128 units, split by inputs.
constexpr double kOnChipTensorClocks = 80;       ///< a warp alone, for eight of the inner dimension of 16 rows,
constexpr double kOnChipTensorColumnClocks = 1;  ///< and a column of each of several warps

// Of several clusters, beside what their words take of L2. A prediction: a prototype of one exchange took 2.05 us more
// with 4 clusters of 16 blocks, of 64 rows each, than with one, in bf16; the product's two take kL2ExchangeUs more.
constexpr double kOnChipClustersUs = 2.05 + kL2ExchangeUs;

// The kernel that trains narrow networks by tensor cores, which waits for a GPU. Fitted to a prototype on an H100,
// whose steps of 64-64-64-1 took 7.9 us (8448 rows), 8.9 (2^14), 14.1 (2^16), 32.5 (2^18) and 107 (2^20), and those of
// 128-128-128-1 22.7 (2^14), 39.4 (2^16), 103 (2^18) and 347 (2^20); it had a chain more than the kernel.
constexpr double kFusedUs = 3.5;              ///< a step's barriers, and the way of a tile that nothing hides
constexpr double kFusedSlotFourUs = 1.68e-3;  ///< 16 bytes that each block sums, to the L2 and back
constexpr double kFusedUpdateRoundUs =
    1.34;  ///< an update of 16 bytes a thread behind another: two reads from L2; assumed
constexpr double kFusedProductUs = 0.037;  ///< a product of a tile, beside
constexpr double kFusedFmaPerUs = 2.14e6;  ///< its multiply-adds by the tensor cores of a multiprocessor
// In clusters, by another prototype of the same products on an H100 with Adam and gathered minibatches: 64-64-64-1 took
// 5.48 us (256 rows, a cluster of 4), 4.99 (512, of 8), 4.85 (1024, of 16), 8.09 (4096, of 16), 7.62 (4096, 2 clusters
// of 16), 6.94 (4096, 4 clusters) and 8.98 (16384, 7 clusters).
constexpr double kFusedClusterUs = 3.57;  ///< a step, beside what follows
constexpr double kFusedUnitUs = 0.2;      ///< 512 bytes of sums that a warp adds, and of which it sends the operands
constexpr double kFusedClustersUs = 2.0;  ///< sums to other clusters, and theirs
constexpr double kFusedLoneProductUs = 0.093;  ///< a product that the next one waits for, beside its multiply-adds
// In tf32 the former prototype took 12.4, 24.7, 74 and 267 us at 2^14, 2^16, 2^18 and 2^20 rows, and in tf32x3, where
// of five products two were of three passes, 14.5, 30.2, 93 and 343; the kernel takes three passes for all.
constexpr double kFusedTf32OperandsUs = 1.1, kFusedTf32x3OperandsUs = 2.1;  ///< a step, for larger operands
constexpr double kFusedTf32FmaPerUs = 6.95e5;                               ///< as kFusedFmaPerUs
constexpr double kFusedTf32x3FmaPerUs = 1.03e6;                             ///< of a pass
constexpr double kTensorBf16Lanes = 2048;  ///< fused multiply-adds of a multiprocessor and clock, at the peak

/// Fused multiply-adds of a multiprocessor in a microsecond.
constexpr double fma_per_us(std::uint64_t element_bytes) {
  return kLanes * 4 / static_cast<double>(element_bytes) * kClockGhz * 1e3;
}

}  // namespace deviceloop::gpu_costs
