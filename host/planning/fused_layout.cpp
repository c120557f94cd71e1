#include "fused_layout.h"

#include <algorithm>
#include <cmath>

#include "../names.h"
#include "../precision.h"
#include "gpu_costs.h"

namespace deviceloop::cuda {
namespace {

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Lays out shared memory: panels begin at multiples of 1024 bytes.
void place(FusedLayout& layout) {
  const int operands = layout.is_bf16() ? layout.square_layers() : 2 * layout.hidden - 1;
  layout.biases_at = operands * layout.weight_bytes() + layout.last_weight_bytes();
  layout.stages_at = round_up(layout.operand_bytes(), 1024);
  layout.masks_at = layout.stages_at + layout.chains * layout.chain_bytes();
  layout.control_at = layout.masks_at;
  if (!layout.is_bf16()) layout.control_at += layout.chains * layout.hidden * kFusedGroupThreads * 4;
  layout.samples_at = layout.control_at + kFusedControlBytes;
  layout.shared_bytes = layout.samples_at;
  if (layout.gathers())
    layout.shared_bytes += (layout.chains * layout.stages + kFusedFetchingWarps) * kFusedSampleBytes;
  if (layout.clusters == 0) return;
  layout.units = static_cast<int>(divide_up(layout.slots().count(), kFusedUnitFours));
  layout.owned_units = static_cast<int>(divide_up(layout.units, layout.cluster_blocks()));
  layout.cluster_words = layout.cluster_blocks() * layout.owned_units * kFusedUnitFours + 1;
  const int owned_bytes = layout.owned_units * kFusedUnitBytes;
  layout.sums_received_at = round_up(layout.shared_bytes, 16);
  layout.parameters_at = layout.sums_received_at + layout.cluster_blocks() * owned_bytes;
  layout.cluster_control_at = layout.parameters_at + (1 + elementwise::kMostStates) * owned_bytes;
  layout.shared_bytes = layout.cluster_control_at + kFusedClusterControlBytes;
}

/// Of the square layers' products, those that are not of zeros beyond the columns and rows that there are.
double used_share(const FusedShape& shape, const FusedLayout& layout) {
  double used = 0;
  for (std::size_t layer = 0; layer < static_cast<std::size_t>(layout.square_layers()); ++layer)
    used += static_cast<double>(shape.widths[layer] * shape.widths[layer + 1]);
  const double all = static_cast<double>(layout.width()) * layout.width() * layout.square_layers();
  return used / all * static_cast<double>(shape.rows) / static_cast<double>(layout.tiles * kFusedRows);
}

/// In clusters each product of a chain waits for the one before; an owner's warps take a unit at a time.
double estimated_us_in_clusters(const FusedLayout& layout) {
  using namespace gpu_costs;
  const double block_tiles = static_cast<double>(divide_up(layout.tiles, layout.blocks));
  const double products = 3 * layout.hidden - 1;
  const double product_fma = static_cast<double>(kFusedRows) * layout.width() * layout.width();
  const double rounds = static_cast<double>(divide_up(layout.owned_units, layout.computing_threads() / 32));
  return kFusedClusterUs + rounds * kFusedUnitUs + (layout.clusters > 1 ? kFusedClustersUs : 0) +
         block_tiles * products * (kFusedLoneProductUs + product_fma / kFusedFmaPerUs);
}

/// What each block sums passes through the L2 and back, its tiles through the tensor cores: of a square layer the
/// product forward, that of its weights' gradient and, but of the first one, that of its inputs' gradient.
double estimated_us(const FusedLayout& layout) {
  using namespace gpu_costs;
  const FusedSlots slots = layout.slots();
  const double block_tiles = static_cast<double>(divide_up(layout.tiles, layout.blocks));
  const double products = 3 * layout.square_layers() - 1;
  const double product_fma = static_cast<double>(kFusedRows) * layout.width() * layout.width();
  const double rounds = static_cast<double>(divide_up(divide_up(slots.count(), layout.blocks), layout.sum_lanes));
  double operands_us = 0, product_us = kFusedProductUs + product_fma / kFusedFmaPerUs;
  if (layout.precision == Precision::tf32) {
    operands_us = kFusedTf32OperandsUs;
    product_us = kFusedProductUs + product_fma / kFusedTf32FmaPerUs;
  } else if (layout.precision == Precision::tf32x3) {
    operands_us = kFusedTf32x3OperandsUs;
    product_us = kFusedProductUs + 3 * product_fma / kFusedTf32x3FmaPerUs;
  }
  return kFusedUs + operands_us + slots.count() * kFusedSlotFourUs + (rounds - 1) * kFusedUpdateRoundUs +
         block_tiles * products * product_us;
}

/// Takes clusters where they are faster: several from 4 blocks on, because smaller ones have more to tell each other.
/// Blocks of the last one may have no tile: they still own a share of the parameters.
void consider_clusters(FusedLayout& layout, const FusedDevice& device) {
  const FusedLayout of_slots = layout;
  if (layout.groups > 1 || layout.output_columns != kFusedOutputs) return;  // there are no kernels
  for (int log2 = 0; 1 << log2 <= kFusedMostClusterBlocks; ++log2)
    for (int clusters = 1; clusters <= device.resident_clusters[static_cast<std::size_t>(log2)]; ++clusters) {
      if (clusters > 1 && (log2 < 2 || std::int64_t{clusters - 1} << log2 >= of_slots.tiles)) break;
      const FusedLayout tried = in_clusters(of_slots, clusters, log2, device.shared_bytes);
      if (tried.shared_bytes <= device.shared_bytes && tried.estimated_us < layout.estimated_us) layout = tried;
    }
}

}  // namespace

FusedLayout in_clusters(FusedLayout layout, int clusters, int cluster_log2, int shared_bytes) {
  layout.clusters = clusters;
  layout.cluster_log2 = cluster_log2;
  layout.blocks = clusters << cluster_log2;
  layout.chains = 1;
  layout.slabs_of_group = layout.slabs_of_group == 2 ? 2 : 4;  // as the kernels have
  for (const int stages : {2, 1}) {
    layout.stages = stages;
    place(layout);
    if (layout.shared_bytes <= shared_bytes) break;
  }
  layout.estimated_us = estimated_us_in_clusters(layout);
  return layout;
}

FusedDecision decide_fused(const FusedShape& shape, const FusedDevice& device) {
  FusedDecision decision;
  const auto refuse = [&](const std::string& why) {
    decision.refusal = why;
    return decision;
  };
  if (device.compute_capability != 90)
    return refuse("it multiplies by instructions of compute capability 9.0, and the GPU has " +
                  std::to_string(device.compute_capability / 10) + "." +
                  std::to_string(device.compute_capability % 10));
  if (shape.precision != Precision::bf16 && shape.precision != Precision::tf32 && shape.precision != Precision::tf32x3)
    return refuse("it multiplies in bf16, tf32 and tf32x3, not in " + std::string(deviceloop::name(shape.precision)));
  const bool is_bf16 = shape.precision == Precision::bf16;
  const std::string in_precision = " in " + std::string(deviceloop::name(shape.precision));
  const auto hidden = static_cast<std::int64_t>(shape.widths.size()) - 2;
  const std::int64_t outputs = shape.widths.back();
  const std::int64_t widest = *std::max_element(shape.widths.begin(), shape.widths.end() - 1);
  const int panel_width = is_bf16 ? kFusedPanelWidth : kFusedTf32PanelWidth;
  if (widest > 2 * panel_width)
    return refuse("inputs and hidden layers have at most " + std::to_string(2 * panel_width) + " values" +
                  in_precision + ", and one has " + std::to_string(widest));
  const int parts = operand_parts(shape.precision);
  int panels = widest <= panel_width ? 1 : 2;
  // Of two panels, 16 columns of outputs need the registers of two gradient groups, and one hidden layer has but one.
  const bool has_square_outputs =
      outputs > kFusedMoreOutputs || (outputs > kFusedOutputs && panels == 2 && hidden == 1);
  std::string where = " of that width";
  if (is_bf16 && outputs > kFusedMoreOutputs) {
    const bool are_widest = outputs > panel_width && panels == 1;
    where = are_widest ? " before more than " + std::to_string(panel_width) + " outputs"
                       : where + " before more than " + std::to_string(kFusedMoreOutputs) + " outputs";
    if (are_widest) panels = 2;
  }
  const int most_hidden = is_bf16       ? (panels == 1 ? kFusedHidden : kFusedWideHidden) - (has_square_outputs ? 1 : 0)
                          : panels == 1 ? kFusedTf32NarrowHidden
                          : parts == 1  ? kFusedTf32Hidden
                                        : kFusedTf32x3Hidden;
  if (hidden < 1 || hidden > most_hidden)
    return refuse("it takes 1 " +
                  (most_hidden == 1 ? "hidden layer" : "to " + std::to_string(most_hidden) + " hidden layers") + where +
                  in_precision + ", and there are " + std::to_string(hidden));
  const int most_outputs = is_bf16 ? 2 * panel_width : kFusedOutputs;
  if (outputs > most_outputs)
    return refuse("it takes at most " + std::to_string(most_outputs) + " outputs" + in_precision + ", and there are " +
                  std::to_string(outputs));
  FusedLayout& layout = decision.layout;
  layout.precision = shape.precision;
  layout.rows = shape.rows;
  layout.samples = shape.samples;
  layout.tiles = divide_up(shape.rows, kFusedRows);
  layout.blocks = static_cast<int>(std::min<std::int64_t>(layout.tiles, device.multiprocessors));
  layout.hidden = static_cast<int>(hidden);
  layout.panels = panels;
  layout.output_columns = outputs <= kFusedOutputs ? kFusedOutputs
                          : has_square_outputs     ? layout.width()
                                                   : kFusedMoreOutputs;
  layout.parts = parts;
  if (is_bf16) {
    // As few groups as there can be, with no more room than they need, of which there are fewer kernels for more than 8
    // outputs.
    const int layers = layout.square_layers();
    layout.slabs_of_group = 2;
    if (panels == 1 && (layers > 2 || has_square_outputs)) {
      const bool are_three = layers != 4 && layers <= 6 && layout.output_columns == kFusedOutputs;
      layout.slabs_of_group = are_three ? 3 : 4;
    }
    layout.groups = static_cast<int>(divide_up(layers * panels, layout.slabs_of_group));
  } else {
    layout.slabs_of_group = layout.hidden;
  }
  layout.sum_lanes = power_of_two(divide_up(layout.slots().count(), layout.blocks), kFusedGroupThreads);
  // More chains hide the latency of products, more stages the gradients, or in tf32 the way of the inputs. A block has
  // four warpgroups.
  for (const int chains : {2, 1})
    for (const int stages : {2, 1}) {
      if (is_bf16 ? chains > 1 && (layout.groups > 1 || layout.tiles <= layout.blocks)
                  : chains != fused_tf32_chains(parts, panels, layout.hidden))
        continue;
      layout.chains = chains;
      layout.stages = stages;
      place(layout);
      if (layout.shared_bytes > device.shared_bytes) continue;
      layout.estimated_us = estimated_us(layout);
      layout.padding = 1 - used_share(shape, layout);
      if (is_bf16) consider_clusters(layout, device);
      return decision;
    }
  return refuse("it needs " + std::to_string(layout.shared_bytes) + " bytes of shared memory, and a block has " +
                std::to_string(device.shared_bytes));
}

std::string describe(const FusedLayout& layout) {
  const auto counted = [](std::int64_t count, const std::string& what) {
    return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
  };
  const std::string blocks =
      layout.clusters == 0 ? counted(layout.blocks, "block")
                           : counted(layout.clusters, "cluster") + " of " + counted(layout.cluster_blocks(), "block");
  const std::string parameters = layout.clusters == 0   ? ""
                                 : layout.clusters == 1 ? ", which keeps the parameters on chip"
                                                        : ", which keep the parameters on chip and exchange sums";
  std::string text = blocks + " of " + std::to_string(layout.threads()) + " threads" + parameters +
                     "; tensor cores take tiles of " + std::to_string(kFusedRows) +
                     (layout.gathers() ? " gathered" : "") + " rows through " + counted(layout.hidden, "hidden layer") +
                     (layout.has_square_outputs() ? " and outputs of " : " of ") + std::to_string(layout.width()) +
                     " columns in " + deviceloop::name(layout.precision);
  const auto percent = static_cast<int>(std::lround(100 * layout.padding));
  if (percent > 0)
    text += ", " + std::to_string(percent) + " % of the products are of padding to whole tiles and columns";
  return text;
}

const char* name(FusedPhase phase) {
  switch (phase) {
    case FusedPhase::kTile:
      return "a free place for a tile";
    case FusedPhase::kForward:
      return "arrival of a tile";
    case FusedPhase::kGradients:
      return "gradients of a tile";
    case FusedPhase::kGrid:
      return "barrier of the grid";
    case FusedPhase::kSums:
      return "sums of the cluster's blocks";
    case FusedPhase::kClusters:
      return "sums of other clusters";
    case FusedPhase::kOperands:
      return "new parameters";
  }
  return "unknown";
}

}  // namespace deviceloop::cuda
