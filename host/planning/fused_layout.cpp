#include "fused_layout.h"

#include <algorithm>

#include "../names.h"
#include "../precision.h"

namespace deviceloop::cuda {
namespace {

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Lays out shared memory: panels begin at multiples of 1024 bytes.
void place(FusedLayout& layout) {
  const int operands = layout.is_bf16() ? layout.hidden : 2 * layout.hidden - 1;
  layout.biases_at = operands * layout.weight_bytes() + layout.last_weight_bytes();
  layout.stages_at = round_up(layout.operand_bytes(), 1024);
  layout.masks_at = layout.stages_at + layout.chains * layout.chain_bytes();
  layout.control_at = layout.masks_at;
  if (!layout.is_bf16()) layout.control_at += layout.chains * layout.hidden * kFusedGroupThreads * 4;
  layout.shared_bytes = layout.control_at + kFusedControlBytes;
}

}  // namespace

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
  const std::int64_t widest = *std::max_element(shape.widths.begin(), shape.widths.end() - 1);
  const int most = is_bf16 ? 2 * kFusedPanelWidth : kFusedTf32Width;
  if (widest > most)
    return refuse("inputs and hidden layers have at most " + std::to_string(most) + " values" + in_precision +
                  ", and one has " + std::to_string(widest));
  const int parts = operand_parts(shape.precision);
  const int panels = is_bf16 && widest <= kFusedPanelWidth ? 1 : 2;
  const int most_hidden = !is_bf16      ? parts == 1 ? kFusedTf32Hidden : kFusedTf32x3Hidden
                          : panels == 1 ? kFusedHidden
                                        : kFusedMostGroups;  // registers of a group are for two wide slabs
  if (hidden < 1 || hidden > most_hidden)
    return refuse("it takes 1 to " + std::to_string(most_hidden) + " hidden layers of that width" + in_precision +
                  ", and there are " + std::to_string(hidden));
  if (shape.widths.back() > kFusedOutputs)
    return refuse("it takes at most " + std::to_string(kFusedOutputs) + " outputs, and there are " +
                  std::to_string(shape.widths.back()));
  FusedLayout& layout = decision.layout;
  layout.precision = shape.precision;
  layout.rows = shape.rows;
  layout.tiles = divide_up(shape.rows, kFusedRows);
  layout.blocks = static_cast<int>(std::min<std::int64_t>(layout.tiles, device.multiprocessors));
  layout.hidden = static_cast<int>(hidden);
  layout.panels = panels;
  layout.parts = parts;
  if (is_bf16) {
    layout.slabs_of_group = panels == 2 || hidden <= 2 ? 2 : 3;
    layout.groups = static_cast<int>(divide_up(hidden * panels, layout.slabs_of_group));
  } else {
    layout.slabs_of_group = layout.hidden * panels;
  }
  layout.sum_lanes = power_of_two(divide_up(layout.slots().count(), layout.blocks), kFusedGroupThreads);
  // More chains hide the latency of products, more stages the gradients, or in tf32 the way of the inputs. A block has
  // four warpgroups.
  for (const int chains : {2, 1})
    for (const int stages : {2, 1}) {
      if (is_bf16 ? chains > 1 && (layout.groups > 1 || layout.tiles <= layout.blocks)
                  : chains != fused_tf32_chains(parts, layout.hidden))
        continue;
      layout.chains = chains;
      layout.stages = stages;
      place(layout);
      if (layout.shared_bytes <= device.shared_bytes) return decision;
    }
  return refuse("it needs " + std::to_string(layout.shared_bytes) + " bytes of shared memory, and a block has " +
                std::to_string(device.shared_bytes));
}

}  // namespace deviceloop::cuda
