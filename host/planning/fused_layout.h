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
//
// Of small batches in bf16 (cuda/kernels/fused_clusters.cu) the blocks work in clusters instead, up to 16 blocks each.
// A block sends its sums to the blocks of its cluster that own them, each a share of the parameters, which it keeps in
// shared memory for the whole launch with all that the optimizer keeps for them. The owner adds the sums of its blocks,
// then those of the other clusters, which come through the L2, updates its share, and sends the operands to all blocks
// of its cluster, which wait for nothing else. Each cluster has all parameters and does the same.
#pragma once

#include <array>
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
/// Columns of the outputs, with zeros beyond those that there are: in tf32 and tf32x3 8. In bf16 8 or 16, and where
/// there are more outputs, or the registers do not suffice, as many as a hidden layer has.
inline constexpr int kFusedOutputs = 8, kFusedMoreOutputs = 16;
/// Layers of as many rows as columns, the most; of two panels 2: for more a block has no registers.
inline constexpr int kFusedHidden = 8, kFusedWideHidden = 2;
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
  /// Clusters that run at once, of 1, 2, 4, 8 and 16 blocks with a multiprocessor each.
  std::array<std::int64_t, 5> resident_clusters{};
};

/// What a block sums, in fours of floats in the order of the slots: slabs of 64 rows of each square layer's weights, as
/// a warpgroup holds them, then those of the last layer if that is none, then biases.
struct FusedSlots {
  int layers = 1;   ///< square ones
  int width = 64;   ///< of each of them
  int outputs = 8;  ///< columns of the last layer behind them, a multiple of 8; 0: it is one of them

  /// Of a layer.
  DEVICELOOP_HOST_DEVICE constexpr int slabs() const { return (width + kFusedSlabRows - 1) / kFusedSlabRows; }
  DEVICELOOP_HOST_DEVICE constexpr int fours_of_slab() const { return width / 8 * kFusedGroupThreads; }
  DEVICELOOP_HOST_DEVICE constexpr int last_weights_at() const { return layers * slabs() * fours_of_slab(); }
  DEVICELOOP_HOST_DEVICE constexpr int fours_of_last_slab() const { return outputs / 8 * kFusedGroupThreads; }
  DEVICELOOP_HOST_DEVICE constexpr int biases_at() const { return last_weights_at() + slabs() * fours_of_last_slab(); }
  DEVICELOOP_HOST_DEVICE constexpr int last_bias_at() const { return biases_at() + layers * width / 4; }
  DEVICELOOP_HOST_DEVICE constexpr int count() const { return last_bias_at() + outputs / 4; }
};

/// Fours that a warp of an owner has at once, after each other in the order of the slots; a block of a cluster owns
/// every cluster_blocks()th such unit.
inline constexpr int kFusedUnitFours = 32, kFusedUnitBytes = kFusedUnitFours * 16;

/// Warpgroups that take tiles through the layers in tf32 or, with operands of two parts, in tf32x3: two where a block
/// has shared memory for the tiles of both.
DEVICELOOP_HOST_DEVICE constexpr int fused_tf32_chains(int parts, int panels, int hidden) {
  return parts * hidden <= (panels == 1 ? 8 : 3) ? 2 : 1;
}

/// What all kernels have. A parameter of theirs, and no larger than it must be: that costs some of them registers.
struct FusedBlockLayout {
  Precision precision = Precision::bf16;
  std::int64_t rows = 1, tiles = 1;  ///< of a step
  std::int64_t samples = 0;          ///< as in FusedShape
  int blocks = 1;
  int hidden = 1;  ///< layers
  int panels = 1;  ///< of the inputs and of each hidden layer, with zeros beyond the values that there are: 1 or 2
  int output_columns = kFusedOutputs;  ///< 8, 16 or width(), with zeros beyond the outputs that there are
  int parts = 1;                       ///< values that an operand is the sum of: in tf32x3 2
  int chains = 1;                      ///< warpgroups that take tiles through the layers
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
  DEVICELOOP_HOST_DEVICE constexpr FusedSlots slots() const {
    return {square_layers(), width(), has_square_outputs() ? 0 : output_columns};
  }
  DEVICELOOP_HOST_DEVICE constexpr bool is_bf16() const { return precision == Precision::bf16; }
  DEVICELOOP_HOST_DEVICE constexpr int width() const {
    return panels * (is_bf16() ? kFusedPanelWidth : kFusedTf32PanelWidth);
  }
  /// Whether the last layer has as many columns as the others, and is trained as they are.
  DEVICELOOP_HOST_DEVICE constexpr bool has_square_outputs() const { return output_columns > kFusedMoreOutputs; }
  /// Layers whose weights have width() rows and columns: the hidden ones, and that of such outputs.
  DEVICELOOP_HOST_DEVICE constexpr int square_layers() const { return hidden + (has_square_outputs() ? 1 : 0); }
  DEVICELOOP_HOST_DEVICE constexpr int tile_bytes() const { return panels * kFusedPanelBytes; }
  /// Of a square layer's weights, [inputs, outputs], and of another last layer's, [outputs, inputs] with 16 rows. In
  /// tf32 of one of a layer's two operands, and of both operands of the last layer.
  DEVICELOOP_HOST_DEVICE constexpr int weight_bytes() const { return parts * panels * width() * 128; }
  DEVICELOOP_HOST_DEVICE constexpr int last_weight_bytes() const {
    if (has_square_outputs()) return 0;
    return is_bf16() ? panels * kFusedMoreOutputs * 128 : parts * panels * kFusedOutputs * 128 + width() * 128;
  }
  /// The gradient group that has the weights of a square layer, 0 the first one, and the first of that group's layers.
  DEVICELOOP_HOST_DEVICE constexpr int group_of(int layer) const {
    return (square_layers() - 1 - layer) * panels / slabs_of_group;
  }
  DEVICELOOP_HOST_DEVICE constexpr int first_layer(int group) const {
    const int first = square_layers() - (group + 1) * slabs_of_group / panels;
    return first > 0 ? first : 0;
  }
  /// Of a stage: the tile of inputs, of each hidden layer and of each square layer's gradient, then the gradients of
  /// other outputs, [outputs, rows of a tile].
  DEVICELOOP_HOST_DEVICE constexpr int stage_bytes() const {
    return (1 + hidden + square_layers()) * tile_bytes() + slots().outputs * kFusedRows * 2;
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
    return biases_at + (square_layers() * width() + slots().outputs) * 4;
  }

 private:
  /// In tf32, of a chain.
  DEVICELOOP_HOST_DEVICE constexpr int inputs_at() const {
    return parts * (hidden * tile_bytes() + kFusedRows * kFusedOutputs * 4);
  }
};

struct FusedLayout : FusedBlockLayout {
  int clusters = 0;  ///< 0: the blocks leave their sums in slots
  int cluster_log2 = 0;
  int units = 0, owned_units = 0;  ///< of all, and of a block, at most
  /// Of what the clusters tell each other, TaggedUnit in global memory: by the parity of the step and the cluster, the
  /// sums [cluster_blocks, owned_units, kFusedUnitFours], then the loss.
  int cluster_words = 0;
  // In shared memory, of the units that the block owns: sums, fours [cluster_blocks, units, kFusedUnitFours];
  // parameters and what the optimizer keeps for them, fours [1 + kMostStates, units, kFusedUnitFours]; and what else is
  // received.
  int sums_received_at = 0, parameters_at = 0, cluster_control_at = 0;

  DEVICELOOP_HOST_DEVICE constexpr int cluster_blocks() const { return 1 << cluster_log2; }

  constexpr std::int64_t tagged_units() const { return clusters > 1 ? std::int64_t{2} * clusters * cluster_words : 0; }
  /// The most of any clusters for the same products on at most so many blocks: several have at least 4 blocks each, and
  /// the units of a cluster are fewer than 16 more.
  std::int64_t most_tagged_units(std::int64_t all_blocks) const {
    return 2 * divide_up(all_blocks + 3, 4) * ((units + 15) * kFusedUnitFours + 1);
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

/// The way with the shortest estimated step: by slots, or by as many clusters as run at once.
FusedDecision decide_fused(const FusedShape& shape, const FusedDevice& device);

/// A layout in bf16 with one gradient group, by so many clusters of 2^cluster_log2 blocks, with its estimate; it
/// may need more shared memory than `shared_bytes`.
FusedLayout in_clusters(FusedLayout layout, int clusters, int cluster_log2, int shared_bytes);

/// "132 blocks of 512 threads ...", "one cluster of 16 blocks of 384 threads ...": for reports.
std::string describe(const FusedLayout& layout);

/// What the kernel keeps at control_at: barriers, two of each stage, two of its gradient groups and one of each chain,
/// a loss of each warp of the chains, when waits end, two flags of each warpgroup and two of the block.
inline constexpr int kFusedControlBytes = kFusedMostChains * (kFusedMostStages * (kFusedMostGroups + 2) + 1) * 8 +
                                          kFusedMostChains * 4 * 8 + 8 +
                                          2 * (kFusedMostChains + kFusedMostGroups + 1) * 4;

/// What it keeps at cluster_control_at: two barriers; by the parity of the step the losses of the cluster's blocks, the
/// scalars of the update and a flag; and two numbers.
inline constexpr int kFusedMostClusterBlocks = 16;
inline constexpr int kFusedClusterControlBytes =
    2 * 8 + 2 * kFusedMostClusterBlocks * 8 + 2 * static_cast<int>(sizeof(elementwise::StepScalars<float>)) + 4 * 4;

/// The phases of late_wait_code.
enum class FusedPhase : std::int64_t {
  kTile = 1,
  kForward = 2,
  kGradients = 3,
  kGrid = 4,
  kSums = 5,
  kClusters = 6,
  kOperands = 7
};

const char* name(FusedPhase phase);

DEVICELOOP_HOST_DEVICE constexpr std::uint64_t fused_code(FusedPhase phase, std::int64_t step) {
  return late_wait_code(static_cast<std::int64_t>(phase), step);
}

}  // namespace deviceloop::cuda
