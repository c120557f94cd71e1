// How one launch trains a narrow network at a large batch by tensor cores (cuda/kernels/fused.cu), one block a
// multiprocessor. Samples are cut into tiles of 64 rows, which the blocks take in turn. In a block some warpgroups, the
// chains, take a tile each through all layers forth and back; others, the gradient groups, add the gradients of the
// weights over all tiles of a step, in registers; and a last warpgroup fetches the tiles: a thread of it where a step
// takes all samples, which then lie in memory as in shared memory; else each of its warps gathers the rows of a tile.
// At the end of a step each block leaves its sums in a slot, and after a barrier of the grid each block adds some
// elements of all slots, updates these parameters and writes them as operands, for all blocks to fetch after a second
// barrier.
//
// In tf32 and tf32x3 (cuda/kernels/fused_tf32.cu) operands take twice and four times the memory, and the weights, which
// tensor cores take in TF32 along the index of the sum only, have one operand forward and another one back. Hidden
// layers and their gradients share their place, so that a chain and the one gradient group go through a tile in step. A
// derivative that is not that of relu lies in bits of the hidden layer that tensor cores ignore, and needs no memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

#include "kernel_layout.h"

namespace deviceloop::cuda {

/// A panel: 64 rows of 64 values in bf16.
inline constexpr int kFusedRows = 64;  ///< of a tile
inline constexpr int kFusedPanelWidth = 64;
inline constexpr int kFusedPanelBytes = kFusedRows * 128;
inline constexpr int kFusedOutputs = 8;                        ///< the most, and so many with zeros beyond
inline constexpr int kFusedTargetBytes = kFusedOutputs * 128;  ///< gradients of the outputs, [outputs, rows of a tile]
inline constexpr int kFusedHidden = 8;  ///< hidden layers, the most; of two panels 2: for more a block has no registers
/// In tf32 and tf32x3 a panel has 32 values, and there are two at most; hidden layers of one panel, the most, and of
/// two: for more a block has no shared memory.
inline constexpr int kFusedTf32PanelWidth = 32, kFusedTf32NarrowHidden = 6, kFusedTf32Hidden = 4,
                     kFusedTf32x3Hidden = 2;
inline constexpr int kFusedSlabRows = 64;  ///< of a weight's gradient, that a gradient group sums together
inline constexpr int kFusedMostChains = 2, kFusedMostStages = 2, kFusedMostGroups = 2;

inline constexpr int kFusedFetchingWarps = 4;
inline constexpr int kFusedSampleBytes = kFusedRows * 8;  ///< which samples the rows of a gathered tile are

/// Threads of a warpgroup.
inline constexpr int kFusedGroupThreads = 128;

struct FusedShape {
  std::int64_t rows = 1;             ///< samples of a step
  std::vector<std::int64_t> widths;  ///< inputs, hidden layers, outputs
  Precision precision = Precision::bf16;
  std::int64_t samples = 0;  ///< that a step gathers its rows from; 0: it takes all, in their order
};

struct FusedDevice {
  int compute_capability = 90;
  int multiprocessors = 132;
  int shared_bytes = 227 << 10;  ///< of a block
};

/// What a block sums, in fours of floats in the order of the slots: slabs of 64 rows of each hidden layer's weights, as
/// a warpgroup holds them, then those of the last layer, then biases.
struct FusedSlots {
  int hidden = 1;  ///< layers
  int width = 64;  ///< of each of them

  /// Of a layer.
  DEVICELOOP_HOST_DEVICE constexpr int slabs() const { return (width + kFusedSlabRows - 1) / kFusedSlabRows; }
  DEVICELOOP_HOST_DEVICE constexpr int fours_of_slab() const { return width / 8 * kFusedGroupThreads; }
  DEVICELOOP_HOST_DEVICE constexpr int last_weights_at() const { return hidden * slabs() * fours_of_slab(); }
  DEVICELOOP_HOST_DEVICE constexpr int biases_at() const { return last_weights_at() + slabs() * kFusedGroupThreads; }
  DEVICELOOP_HOST_DEVICE constexpr int last_bias_at() const { return biases_at() + hidden * width / 4; }
  DEVICELOOP_HOST_DEVICE constexpr int count() const { return last_bias_at() + kFusedOutputs / 4; }
};

/// Warpgroups that take tiles through the layers in tf32 or, with operands of two parts, in tf32x3: two where a block
/// has shared memory for the tiles of both.
DEVICELOOP_HOST_DEVICE constexpr int fused_tf32_chains(int parts, int panels, int hidden) {
  return parts * hidden <= (panels == 1 ? 8 : 3) ? 2 : 1;
}

struct FusedLayout {
  Precision precision = Precision::bf16;
  std::int64_t rows = 1, tiles = 1;  ///< of a step
  std::int64_t samples = 0;          ///< as in FusedShape
  int blocks = 1;
  int hidden = 1;  ///< layers
  int panels = 1;  ///< of the inputs and of each hidden layer, with zeros beyond the values that there are: 1 or 2
  int parts = 1;   ///< values that an operand is the sum of: in tf32x3 2
  int chains = 1;  ///< warpgroups that take tiles through the layers
  /// Tiles that each of them can have at once: with two, gradients of one are added beside the next. In tf32 tiles of
  /// inputs, of which the next is on its way.
  int stages = 1;
  int groups = 1;          ///< warpgroups that add gradients
  int slabs_of_group = 2;  ///< 2, 3 or 4 in bf16: the first group has those of the last layers, the next those before
  int sum_lanes = 1;       ///< threads beside each other that add slots; the others take other blocks' slots
  // Of shared memory, in bytes from its beginning.
  int biases_at = 0, stages_at = 0, masks_at = 0, control_at = 0, samples_at = 0, shared_bytes = 0;
  double estimated_us = 0;  ///< of a step
  double padding = 0;       ///< the share of the products that is of columns and rows beyond those that there are

  DEVICELOOP_HOST_DEVICE constexpr bool gathers() const { return samples > 0; }
  /// Of the data.
  DEVICELOOP_HOST_DEVICE constexpr std::int64_t data_rows() const { return gathers() ? samples : rows; }
  std::int64_t data_tiles() const { return divide_up(data_rows(), kFusedRows); }
  DEVICELOOP_HOST_DEVICE constexpr int computing_threads() const { return (chains + groups) * kFusedGroupThreads; }
  DEVICELOOP_HOST_DEVICE constexpr int threads() const { return computing_threads() + kFusedGroupThreads; }
  DEVICELOOP_HOST_DEVICE constexpr FusedSlots slots() const { return {hidden, width()}; }
  DEVICELOOP_HOST_DEVICE constexpr bool is_bf16() const { return precision == Precision::bf16; }
  DEVICELOOP_HOST_DEVICE constexpr int width() const {
    return panels * (is_bf16() ? kFusedPanelWidth : kFusedTf32PanelWidth);
  }
  DEVICELOOP_HOST_DEVICE constexpr int tile_bytes() const { return panels * kFusedPanelBytes; }
  /// Of a hidden layer's weights, [inputs, outputs], and of the last layer's, [outputs, inputs] with 16 rows. In tf32
  /// of one of a layer's two operands, and of both operands of the last layer.
  DEVICELOOP_HOST_DEVICE constexpr int weight_bytes() const { return parts * panels * width() * 128; }
  DEVICELOOP_HOST_DEVICE constexpr int last_weight_bytes() const {
    return is_bf16() ? panels * 16 * 128 : parts * panels * kFusedOutputs * 128 + width() * 128;
  }
  /// The gradient group that has the weights of a hidden layer, 0 the first one, and the first of that group's layers.
  DEVICELOOP_HOST_DEVICE constexpr int group_of(int layer) const {
    return (hidden - 1 - layer) * panels / slabs_of_group;
  }
  DEVICELOOP_HOST_DEVICE constexpr int first_layer(int group) const {
    const int first = hidden - (group + 1) * slabs_of_group / panels;
    return first > 0 ? first : 0;
  }
  /// Of a stage: the tile of inputs, of each hidden layer and of each of its gradients, then the gradients of the
  /// outputs.
  DEVICELOOP_HOST_DEVICE constexpr int stage_bytes() const {
    return (2 * hidden + 1) * tile_bytes() + kFusedTargetBytes;
  }
  /// Of a chain: its stages; in tf32 the tile of each hidden layer and of its gradient, the gradients of the outputs,
  /// and the tiles of inputs, one a stage.
  DEVICELOOP_HOST_DEVICE constexpr int chain_bytes() const {
    return is_bf16() ? stages * stage_bytes() : inputs_at() + stages * tile_bytes();
  }
  /// Where a tile of inputs of a chain lies in shared memory; and where the blocks' sums are added, in a hidden layer's
  /// tile, which no chain uses then.
  DEVICELOOP_HOST_DEVICE constexpr int input_at(int chain, int which) const {
    return stages_at + chain * chain_bytes() + (is_bf16() ? which * stage_bytes() : inputs_at() + which * tile_bytes());
  }
  DEVICELOOP_HOST_DEVICE constexpr int sums_at() const { return stages_at + (is_bf16() ? tile_bytes() : 0); }
  /// Of the weights and biases as operands, at the beginning of shared memory and in bf16 in global memory too.
  DEVICELOOP_HOST_DEVICE constexpr int operand_bytes() const {
    return biases_at + (hidden * width() + kFusedOutputs) * 4;
  }

 private:
  /// In tf32, of a chain.
  DEVICELOOP_HOST_DEVICE constexpr int inputs_at() const {
    return parts * (hidden * tile_bytes() + kFusedRows * kFusedOutputs * 4);
  }
};

/// Whether the kernels have an activation: the sine of large numbers is a function that is called, beside which no
/// products run.
constexpr bool fused_has(Activation activation) { return activation != Activation::sine; }

/// A layout, or why there is none: one sentence.
struct FusedDecision {
  FusedLayout layout;
  std::string refusal;
};

FusedDecision decide_fused(const FusedShape& shape, const FusedDevice& device);

/// "132 blocks of 512 threads ...": for reports.
std::string describe(const FusedLayout& layout);

/// What the kernel keeps at control_at: barriers, two of each stage, two of its gradient groups and one of each chain,
/// a loss of each warp of the chains, when waits end, two flags of each warpgroup and two of the block.
inline constexpr int kFusedControlBytes = kFusedMostChains * (kFusedMostStages * (kFusedMostGroups + 2) + 1) * 8 +
                                          kFusedMostChains * 4 * 8 + 8 +
                                          2 * (kFusedMostChains + kFusedMostGroups + 1) * 4;

/// The phases of late_wait_code.
enum class FusedPhase : std::int64_t { kTile = 1, kForward = 2, kGradients = 3, kGrid = 4 };

const char* name(FusedPhase phase);

DEVICELOOP_HOST_DEVICE constexpr std::uint64_t fused_code(FusedPhase phase, std::int64_t step) {
  return late_wait_code(static_cast<std::int64_t>(phase), step);
}

}  // namespace deviceloop::cuda
