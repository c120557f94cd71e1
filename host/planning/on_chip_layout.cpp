#include "on_chip_layout.h"

#include <algorithm>
#include <array>
#include <limits>

#include "../text.h"
#include "gpu_costs.h"

namespace deviceloop::cuda {
namespace {

constexpr int round_up(std::int64_t value, int multiple) {
  return static_cast<int>(divide_up(value, multiple) * multiple);
}

constexpr int padded(std::int64_t value) { return round_up(value, kOnChipTile); }

/// Elements between rows of so many: an odd number of units of 16 bytes, so that eight lanes which read a unit each of
/// neighbouring rows touch all banks of shared memory.
int stride_of(std::int64_t columns, int element_bytes) {
  const int unit = 16 / element_bytes;
  return (padded(columns) / unit | 1) * unit;
}

/// Shared memory, handed out in places of 16 bytes. The largest network that a caller may ask for stays below 2^62.
class Places {
 public:
  int take(std::int64_t bytes) {
    const std::int64_t place = used_;
    used_ += divide_up(bytes, 16) * 16;
    return static_cast<int>(std::min<std::int64_t>(place, kMost));
  }
  int used() const { return static_cast<int>(std::min<std::int64_t>(used_, kMost)); }

 private:
  static constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  std::int64_t used_ = 0;
};

constexpr int kWarps = kOnChipThreads / 32;

/// Clocks of a block for a product whose tiles are shared by so many lanes.
double clocks(const OnChipProduct& product, int slices) {
  const std::int64_t tasks = divide_up(std::int64_t{product.tiles} * slices, 32);  // of a warp
  const double groups = static_cast<double>(divide_up(product.inner, slices));
  const auto whole = static_cast<double>(tasks / kWarps), rest = static_cast<double>(tasks % kWarps);
  const auto turn = [&](double warps) {
    return groups * std::max(gpu_costs::kOnChipGroupClocks, warps * gpu_costs::kOnChipWarpClocks) +
           gpu_costs::kOnChipTileClocks;
  };
  return whole * turn(kWarps) + (rest > 0 ? turn(rest) : 0);
}

/// The same by tensor cores, for tiles of so many columns.
double tensor_clocks(std::int64_t tiles, std::int64_t inner, int columns) {
  const auto steps = static_cast<double>(divide_up(inner, 2 * kOnChipTile));
  const auto turn = [&](double warps) {
    return steps * std::max(gpu_costs::kOnChipTensorClocks, warps * gpu_costs::kOnChipTensorColumnClocks * columns) +
           gpu_costs::kOnChipTileClocks;
  };
  return static_cast<double>(tiles / kWarps) * turn(kWarps) +
         (tiles % kWarps > 0 ? turn(static_cast<double>(tiles % kWarps)) : 0);
}

/// Of [down, across] results, cut for the shortest time; returns its clocks. `in_units`: what takes the results needs
/// kOnChipTile neighbours.
double cut(OnChipProduct& product, std::int64_t down, std::int64_t across, std::int64_t inner, bool in_units,
           bool tf32x3) {
  product.tiles_down = static_cast<int>(divide_up(down, kOnChipTile));
  product.across = SmallDivisor::of(static_cast<unsigned>(divide_up(across, kOnChipTile)));
  product.tiles = product.tiles_down * static_cast<int>(product.across.divisor);
  product.inner = static_cast<int>(divide_up(inner, kOnChipTile));
  double least = 0;
  for (const int slices : {1, 4, 16}) {
    if (slices > 4 && in_units) break;
    const double taken = clocks(product, slices);
    if (slices > 1 && taken >= least) continue;
    least = taken;
    product.slices = slices;
  }
  for (const int columns : {8, 16}) {
    if (!tf32x3 || (columns < 16 && in_units)) continue;
    const std::int64_t tiles_across = divide_up(across, columns);
    const std::int64_t tiles = divide_up(down, kOnChipTensorRows) * tiles_across;
    const double taken = tensor_clocks(tiles, inner, columns);
    if (taken >= least) continue;
    least = taken;
    product.tensor_columns = columns;
    product.tensor_tiles = static_cast<int>(tiles);
    product.tensor_across = SmallDivisor::of(static_cast<unsigned>(tiles_across));
  }
  return least;
}

}  // namespace

OnChipLayout make_on_chip(const OnChipShape& shape, int blocks_log2, bool by_inputs, int clusters) {
  const int element = shape.element_bytes, unit = 16 / element;
  OnChipLayout layout;
  layout.layers = static_cast<int>(shape.widths.size()) - 1;
  layout.clusters = clusters;
  layout.blocks_log2 = blocks_log2;
  layout.batch = static_cast<int>(shape.batch);
  layout.cluster_rows = static_cast<int>(divide_up(shape.batch, clusters));
  layout.rows = static_cast<int>(divide_up(layout.cluster_rows, layout.blocks()));
  layout.rows_padded = padded(layout.rows);
  layout.inputs = static_cast<int>(shape.widths.front());
  layout.target_columns = static_cast<int>(shape.target_columns);
  layout.bias = shape.bias;
  layout.tf32x3 = shape.tf32x3;
  layout.states = shape.states;
  layout.by_inputs = by_inputs;
  layout.input_rows = by_inputs ? layout.cluster_rows : layout.rows;
  layout.input_rows_padded = padded(layout.input_rows);
  const std::int64_t split_inputs = std::int64_t{layout.inputs} + (shape.bias ? 1 : 0);  // where they are
  const int inputs_of_block = by_inputs ? padded(divide_up(split_inputs, layout.blocks())) : layout.inputs;
  layout.input_stride = stride_of(inputs_of_block, element);

  Places places;
  const auto take_rows = [&](std::int64_t rows, std::int64_t stride) { return places.take(rows * stride * element); };
  layout.input_at = take_rows(layout.input_rows_padded, 2 * std::int64_t{layout.input_stride});
  double taken = 0;
  std::int64_t update_turns = 0, own_update_turns = 0;  // of threads with a unit each
  for (int index = 0; index < layout.layers; ++index) {
    OnChipLayer& layer = layout.layer[index];
    const bool is_last = index == layout.layers - 1, is_split = by_inputs && index == 0;
    layer.in = is_split ? inputs_of_block : static_cast<int>(shape.widths[static_cast<std::size_t>(index)]);
    layer.out = static_cast<int>(shape.widths[static_cast<std::size_t>(index) + 1]);
    layer.in_padded = padded(layer.in);
    layer.weight_stride = layer.out_stride = stride_of(layer.out, element);
    layer.weight_at = take_rows(std::int64_t{layer.in_padded} + 1, layer.weight_stride);
    layer.output_at = is_last && !shape.by_row ? -1 : take_rows(layout.rows_padded, layer.out_stride);
    layer.gradient_at = take_rows(layout.rows_padded, layer.out_stride);
    layer.units_across = SmallDivisor::of(static_cast<unsigned>(divide_up(layer.out, unit)));
    const auto across = static_cast<int>(layer.units_across.divisor);
    layer.units = (layer.in + (shape.bias && !is_split ? 1 : 0)) * across;
    layer.owned = is_split ? layer.units : static_cast<int>(divide_up(layer.units, layout.blocks()));
    layer.first_owned = layout.owned;
    layout.owned += layer.owned;
    (is_split ? own_update_turns : update_turns) += layer.owned;
    const int input_rows = index == 0 ? layout.input_rows_padded : layout.rows_padded;
    taken += cut(layer.forward, input_rows, layer.out, layer.in, is_split, shape.tf32x3);
    if (index > 0) taken += cut(layer.input_gradient, layout.rows_padded, layer.in, layer.out, false, shape.tf32x3);
    taken += cut(layer.weight_gradient, layer.in, layer.out, input_rows, true, shape.tf32x3);
    if (!is_split) continue;
    layout.input_blocks = static_cast<int>(divide_up(split_inputs, layer.in));
    layout.rows_of_block = SmallDivisor::of(static_cast<unsigned>(layout.rows));
    layout.sums_bytes = layout.input_blocks * across * 16;
    layout.sums_at = places.take(std::int64_t{layout.rows} * layout.sums_bytes);
    layout.output_gradient_bytes = across * 16;
    layout.output_gradient_at = take_rows(layout.input_rows_padded, layer.out_stride);
  }
  layout.updated = static_cast<int>(divide_up(layout.owned, clusters));
  for (int index = 0; index < layout.layers; ++index) {
    OnChipLayer& layer = layout.layer[index];
    const bool is_split = by_inputs && index == 0;
    layer.received_at = places.take(
        16 * (is_split ? std::min(layer.owned, layout.updated) : std::int64_t{layer.owned} * layout.blocks()));
  }
  layout.target_at = places.take(std::int64_t{2} * layout.rows * layout.target_columns * element);
  layout.row_weight_at = places.take(std::int64_t{2} * layout.rows * element);
  layout.state_at = places.take(std::int64_t{layout.states} * layout.updated * 16);
  layout.sample_at = places.take(std::int64_t{layout.input_rows} * 8);
  layout.scalars_at =
      places.take(element == 4 ? sizeof(elementwise::StepScalars<float>) : sizeof(elementwise::StepScalars<double>));
  layout.control_at = places.take(kOnChipControlBytes);
  layout.shared_bytes = places.used();

  double exchange_us = blocks_log2 == 0 ? gpu_costs::kOnChipAloneUs : gpu_costs::kOnChipUs;
  if (clusters > 1) {
    // Of the list of units all but the cluster's range go out as sums, and as many come in; the range goes out as
    // parameters, and all else comes in.
    const std::int64_t moved = (3 * (std::int64_t{clusters} - 1) + 1) * layout.blocks() * layout.owned;
    exchange_us += gpu_costs::kOnChipClustersUs +
                   static_cast<double>(kTaggedUnitBytes * moved) / (gpu_costs::kL2GbPerSecond * 1e3);
  }
  const auto turns = [](std::int64_t units) { return static_cast<double>(divide_up(units, kOnChipThreads)); };
  layout.estimated_us = exchange_us + turns(update_turns) * gpu_costs::kOnChipUpdateUs +
                        turns(own_update_turns) * gpu_costs::kOnChipOwnUpdateUs +
                        taken * (element / 4) / (gpu_costs::kClockGhz * 1e3);
  return layout;
}

OnChipDecision decide_on_chip(const OnChipShape& shape, const OnChipDevice& device) {
  OnChipDecision decision;
  const auto layers = static_cast<std::int64_t>(shape.widths.size()) - 1;
  if (layers > kOnChipLayers) {
    decision.refusal =
        "the form 'on-chip' is for at most " + std::to_string(kOnChipLayers) + " layers, not " + std::to_string(layers);
    return decision;
  }
  decision.is_too_large = true;
  const std::int64_t inputs = shape.widths.front();
  const std::int64_t widest = *std::max_element(shape.widths.begin() + 1, shape.widths.end());
  if (widest > kOnChipWidth) {
    decision.refusal = "the form 'on-chip' is for layers of at most " + std::to_string(kOnChipWidth) + " units, not " +
                       std::to_string(widest);
    return decision;
  }
  std::int64_t fewest_bytes = 0, most_inputs = 0, most_blocks = 0;
  bool fewest_by_inputs = false;
  const auto consider = [&](int log2, int clusters, bool by_inputs) {
    const OnChipLayout layout = make_on_chip(shape, log2, by_inputs, clusters);
    if (fewest_bytes == 0 || layout.shared_bytes < fewest_bytes) {
      fewest_bytes = layout.shared_bytes;
      fewest_by_inputs = by_inputs;
    }
    if (layout.shared_bytes > device.shared_bytes) return;
    if (decision.layout.layers > 0 && layout.estimated_us >= decision.layout.estimated_us) return;
    decision.layout = layout;
  };
  // Clusters and blocks without a row would only wait.
  for (int log2 = 0; 1 << log2 <= kOnChipBlocks; ++log2) {
    const std::int64_t blocks = std::int64_t{1} << log2;
    const std::int64_t resident = device.resident_clusters[static_cast<std::size_t>(log2)];
    most_blocks = std::max(most_blocks, resident * blocks);
    for (std::int64_t clusters = 1; clusters <= std::min(resident, shape.batch); ++clusters) {
      const std::int64_t rows = divide_up(shape.batch, clusters);
      if (blocks > 1 && blocks > rows) break;
      if ((clusters - 1) * rows >= shape.batch || divide_up(rows, blocks) > kOnChipRows) continue;
      most_inputs = std::max(most_inputs, kOnChipWidth * blocks);
      for (const bool by_inputs : {false, true})
        if (inputs <= kOnChipWidth * (by_inputs ? blocks : 1) && !(by_inputs && blocks == 1))
          consider(log2, static_cast<int>(clusters), by_inputs);
    }
  }
  if (decision.layout.layers > 0) return decision;
  if (most_inputs == 0)
    decision.refusal = "the form 'on-chip' is for at most " + std::to_string(kOnChipRows) +
                       " samples a step for each of " + std::to_string(most_blocks) + " blocks, not " +
                       std::to_string(shape.batch);
  else if (fewest_bytes == 0)
    decision.refusal = "the form 'on-chip' is for at most " + std::to_string(kOnChipWidth) +
                       " inputs for each block of a cluster, here together " + std::to_string(most_inputs) + ", not " +
                       std::to_string(inputs);
  else
    decision.refusal = std::string("the parameters, ") +
                       (fewest_by_inputs ? "the first layer's split over the blocks by its inputs, " : "") +
                       "and a block's share of a step, take " + bytes_text(static_cast<std::uint64_t>(fewest_bytes)) +
                       " of a block's shared memory, of which there are " +
                       bytes_text(static_cast<std::uint64_t>(device.shared_bytes));
  return decision;
}

const char* name(OnChipPhase phase) {
  switch (phase) {
    case OnChipPhase::kWeights:
      return "exchange of parameters";
    case OnChipPhase::kGradients:
      return "exchange of gradients";
    case OnChipPhase::kSums:
      return "exchange of the first layer's sums";
    case OnChipPhase::kOutputGradients:
      return "exchange of the first layer's output gradient";
    case OnChipPhase::kClusterGradients:
      return "exchange of gradients between clusters";
    case OnChipPhase::kClusterWeights:
      return "exchange of parameters between clusters";
    case OnChipPhase::kLosses:
      break;
  }
  return "sum of the losses of all clusters";
}

std::string describe(const OnChipLayout& layout) {
  const int blocks = layout.blocks();
  const bool is_alone = layout.all_blocks() == 1;
  const std::string each = blocks == 1 ? "one block" : std::to_string(blocks) + " blocks";
  const std::string who = is_alone               ? "one block that keeps all parameters on chip"
                          : layout.clusters == 1 ? "one cluster of " + each + " that keeps all parameters on chip"
                                                 : std::to_string(layout.clusters) + " clusters of " + each +
                                                       " that keep all parameters on chip each and exchange sums of "
                                                       "gradients";
  return who + ", " + bytes_text(static_cast<std::uint64_t>(layout.shared_bytes)) + " of shared memory" +
         (is_alone              ? "; it"
          : layout.clusters > 1 ? " a block, which"
                                : " each; a block") +
         " has " + (layout.by_inputs ? std::to_string(layout.layer[0].in) + " inputs of the first layer and " : "") +
         std::to_string(layout.rows) + (layout.rows == 1 ? " row" : " rows") + " of a step" +
         (layout.tf32x3 ? "; products by three in TF32 on tensor cores" : "");
}

}  // namespace deviceloop::cuda
