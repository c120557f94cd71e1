#include "two_layer_layout.h"

#include <algorithm>

#include "../text.h"
#include "gpu_costs.h"

namespace deviceloop::cuda {
namespace {

constexpr int kWarp = 32, kMostWarps = kTwoLayerThreads / kWarp;

/// From a block's publication of its predictions to its first poll: a poll that comes early delays the words that it
/// polls for. A prototype on an H100 took 3.25 us a step without it, 3.00 with 350 cycles, 3.06 with 500.
constexpr int kPollAfterCycles = 350;
/// The same of the Gram form: 1.31 us without it, 1.24 with 250 cycles, 1.35 with 500.
constexpr int kGramPollAfterCycles = 250;

/// Bytes of a Tagged<T>.
std::int64_t tagged_bytes(int element_bytes) { return 2 * std::int64_t{element_bytes}; }

/// Places in a block's shared memory, one behind the other.
class Places {
 public:
  int take(std::int64_t count, std::int64_t bytes) {
    const std::int64_t begin = used_;
    used_ += divide_up(count * bytes, 16) * 16;
    return static_cast<int>(begin);
  }
  std::int64_t used() const { return used_; }

 private:
  std::int64_t used_ = 0;
};

std::string refuse_sizes(const TwoLayerShape& shape) {
  if (shape.batch > kTwoLayerBatch)
    return "the two-layer form takes at most " + std::to_string(kTwoLayerBatch) + " samples, and these are " +
           std::to_string(shape.batch);
  if (shape.outputs > kTwoLayerOutputs)
    return "the two-layer form takes at most " + std::to_string(kTwoLayerOutputs) + " outputs, and these are " +
           std::to_string(shape.outputs);
  return {};
}

/// All but how the predictions are waited for.
OutputLayerLayout output_layer(const TwoLayerShape& shape, std::int64_t units, int group, int dz_rows, Places& places) {
  OutputLayerLayout layout;
  layout.batch = static_cast<int>(shape.batch);
  layout.outputs = static_cast<int>(shape.outputs);
  layout.hidden = static_cast<int>(shape.hidden);
  layout.units = static_cast<int>(units);
  layout.groups = static_cast<int>(units / group);
  layout.dz_rows = dz_rows;
  const int bytes = shape.element_bytes;
  layout.hidden_at = places.take(units * shape.batch, bytes);
  layout.dz_at = places.take(units * dz_rows, bytes);
  layout.gradient_at = places.take(2 * shape.batch * shape.outputs, bytes);
  layout.target_at = places.take(shape.batch * shape.outputs, bytes);
  layout.weight_at = places.take(units * shape.outputs, bytes);
  layout.hidden_bias_at = places.take(units, bytes);
  layout.bias_at = places.take(shape.outputs, bytes);
  layout.failed_at = places.take(1, sizeof(int));
  layout.deadline_at = places.take(2, sizeof(std::uint64_t));
  return layout;
}

/// How the block waits for the predictions; returns the microseconds of that and of what it does with them, in a grid
/// of `blocks`.
double share_slots(OutputLayerLayout& layout, const TwoLayerShape& shape, std::int64_t publishers, int work_warps,
                   std::int64_t blocks, int& threads) {
  using namespace gpu_costs;
  const std::int64_t words = shape.batch * shape.outputs, at_once = slots_at_once(shape.element_bytes);
  layout.publishers = static_cast<int>(publishers);
  const int lanes = power_of_two(divide_up(publishers, at_once), kWarp);
  for (layout.lanes_log2 = 0; 1 << layout.lanes_log2 < lanes;) ++layout.lanes_log2;
  const std::int64_t warps = std::clamp<std::int64_t>(divide_up(words * lanes, kWarp), work_warps, kMostWarps);
  threads = static_cast<int>(warps) * kWarp;
  const std::int64_t rounds = divide_up(words * lanes, threads) * divide_up(publishers, lanes * at_once);
  const double bytes = static_cast<double>(words * tagged_bytes(shape.element_bytes)) * static_cast<double>(blocks) *
                       static_cast<double>(publishers);
  // For each unit of the block: its part of the predictions, its h's gradient, its weight's.
  const double output_layer = 3.0 * static_cast<double>(words * layout.units);
  return kTwoLayerUs + kL2ExchangeUs + bytes / (kL2GbPerSecond * 1e3) + static_cast<double>(rounds - 1) * kL2LatencyUs +
         output_layer / kOutputFmaPerUs;
}

/// Microseconds of `count` fused multiply-adds a thread.
double fma_us(std::int64_t warps, std::int64_t count, const TwoLayerShape& shape) {
  return static_cast<double>(warps * kWarp * count) /
         (gpu_costs::fma_per_us(static_cast<std::uint64_t>(shape.element_bytes)) *
          (shape.element_bytes == 4 ? gpu_costs::kRegisterTileEfficiency : gpu_costs::kRegisterTileDoubleEfficiency));
}

/// Rows of a thread's tile of X, and of a group of lanes.
int tile_rows_of(const TwoLayerShape& shape) {
  return std::max(4, power_of_two(divide_up(shape.batch, kRowLanes), kTwoLayerBatch / kRowLanes));
}

/// The columns of a block that fill its registers.
std::int64_t most_columns(const TwoLayerShape& shape) {
  return std::int64_t{kPrimalThreads / kWarp} * kColumnLanes * kTileRegisters * 4 / shape.element_bytes /
         tile_rows_of(shape);
}

/// A bias is the weight of one more input.
std::int64_t all_columns(const TwoLayerShape& shape) { return shape.inputs + (shape.hidden_bias ? 1 : 0); }

/// As it was measured of the kernel before this one, on an H100; see bench/NOTES.md.
double estimate_two_layer(const TwoLayerShape& shape, const TwoLayerLayout& layout) {
  using namespace gpu_costs;
  const std::int64_t units = layout.units, cluster_blocks = layout.cluster_blocks();
  const int bytes = shape.element_bytes, rows = 8, group = units_in_group(bytes);
  const int row_lanes = std::max(4, power_of_two(divide_up(shape.batch, rows), 16));
  const std::int64_t tile_columns = 64 * 4 / bytes / rows;
  const std::int64_t warps =
      divide_up(divide_up(shape.inputs, cluster_blocks), std::int64_t{kWarp} / row_lanes * tile_columns);
  OutputLayerLayout output;
  output.units = layout.units;
  int threads = 0;
  const std::int64_t pair_warps = divide_up(shape.batch * group, kWarp);
  double us = share_slots(output, shape, layout.clusters, static_cast<int>(std::max(warps, pair_warps)),
                          layout.blocks(), threads);
  us += 2 * fma_us(warps, rows * tile_columns * units, shape);
  const double pushed = static_cast<double>((cluster_blocks - 1) * shape.batch * units * tagged_bytes(bytes));
  us += pushed / (kPeerBytesPerClock * kClockGhz * 1e3);
  // The partial sums of each group of units went around on their own.
  us += layout.groups *
        (layout.cluster_log2 > 0 ? kPeerExchangeUs + kPeerDoublingUs * (layout.cluster_log2 - 1) : kBlockBarrierUs);
  return us;
}

}  // namespace

TwoLayerLayout make_two_layer(const TwoLayerShape& shape, int cluster_log2, std::int64_t units) {
  const int group = units_in_group(shape.element_bytes), bytes = shape.element_bytes;
  TwoLayerLayout layout;
  layout.batch = static_cast<int>(shape.batch);
  layout.inputs = static_cast<int>(shape.inputs);
  layout.hidden = static_cast<int>(shape.hidden);
  layout.outputs = static_cast<int>(shape.outputs);
  layout.cluster_log2 = cluster_log2;
  const std::int64_t blocks = layout.cluster_blocks();
  layout.clusters = layout.publishers = static_cast<int>(divide_up(shape.hidden, units));
  layout.units = static_cast<int>(units);
  layout.groups = static_cast<int>(units / group);
  layout.groups_at_once = std::min(layout.groups, 2);
  layout.columns = static_cast<int>(divide_up(all_columns(shape), blocks));
  layout.tile_rows = tile_rows_of(shape);
  // The narrower of two tiles if it suffices: more warps then share the work.
  layout.tile_columns = kTileRegisters * 4 / bytes / layout.tile_rows;
  constexpr int kWarps = kPrimalThreads / kWarp;
  if (layout.tile_rows < 16 && layout.columns <= kWarps * kColumnLanes * layout.tile_columns / 2)
    layout.tile_columns /= 2;
  const int columns_of_warp = kColumnLanes * layout.tile_columns, rows = kRowLanes * layout.tile_rows;
  layout.column_warps = static_cast<int>(divide_up(layout.columns, columns_of_warp));
  layout.samples = static_cast<int>(divide_up(shape.batch, blocks));
  layout.owners = static_cast<int>(divide_up(shape.batch, layout.samples));
  layout.threads = kPrimalThreads;
  layout.direct = bytes == 4 && shape.outputs == 1 && layout.groups == 1 && cluster_log2 == 2 &&
                  shape.batch >= kDirectBatch && layout.tile_columns == 8 && layout.clusters <= kDirectClusters;
  for (const int lanes = layout.direct ? kRowLanes : power_of_two(layout.clusters, kRowLanes);
       1 << layout.lanes_log2 < lanes;)
    ++layout.lanes_log2;
  layout.poll_after = kPollAfterCycles;

  Places places;
  const std::int64_t values = units * shape.outputs + shape.outputs, share = std::int64_t{layout.samples} * units;
  layout.weight_at = places.take(units * layout.column_warps * columns_of_warp, bytes);
  layout.partial_at = places.take(std::int64_t{layout.groups_at_once} * group * layout.column_warps * rows, bytes);
  layout.received_at = places.take(blocks * (layout.direct ? kWarp * units : share), bytes);
  layout.hidden_at = places.take(share, bytes);
  layout.dz_at = places.take(units * rows, bytes);
  layout.gradient_at = places.take(std::int64_t{layout.samples} * shape.outputs, bytes);
  layout.target_at = places.take(std::int64_t{layout.samples} * shape.outputs, bytes);
  layout.output_weight_at = places.take(units * shape.outputs, bytes);
  layout.output_bias_at = places.take(shape.outputs, bytes);
  layout.sums_at = places.take(layout.direct ? 6 * blocks * kWarps : blocks * values, bytes);
  layout.loss_at = places.take(blocks, sizeof(double));
  layout.barriers_at = places.take(3, sizeof(std::uint64_t));
  layout.failed_at = places.take(2, sizeof(int));
  layout.deadline_at = places.take(2, sizeof(std::uint64_t));
  layout.shared_bytes = static_cast<int>(places.used());
  layout.estimated_us = estimate_two_layer(shape, layout);
  return layout;
}

GramTwoLayerLayout make_gram_two_layer(const TwoLayerShape& shape, std::int64_t units) {
  GramTwoLayerLayout layout;
  layout.tile_columns = std::max(2, power_of_two(divide_up(shape.batch, kGramColumnLanes), 8));
  layout.row_warps = static_cast<int>(divide_up(shape.batch, kWarp / kGramColumnLanes * kGramTileRows));
  layout.blocks = static_cast<int>(divide_up(shape.hidden, units));
  Places places;
  layout.output = output_layer(shape, units, kGramUnitsInGroup, kGramColumnLanes * layout.tile_columns, places);
  layout.z_at = places.take(units * shape.batch, shape.element_bytes);
  layout.sum_at = places.take(units * shape.batch, shape.element_bytes);
  layout.shared_bytes = static_cast<int>(places.used());
  layout.estimated_us =
      share_slots(layout.output, shape, layout.blocks, layout.row_warps, layout.blocks, layout.threads) +
      fma_us(layout.row_warps, std::int64_t{kGramTileRows} * layout.tile_columns * units, shape);
  return layout;
}

GramTwoLayerLayout make_direct_gram(const TwoLayerShape& shape) {
  GramTwoLayerLayout layout = make_gram_two_layer(shape, kGramUnitsInGroup);
  layout.direct = true;
  layout.cluster_log2 = 2;
  layout.blocks *= layout.cluster_blocks();
  layout.threads = kPrimalThreads;
  layout.tile_columns = shape.batch > kTwoLayerBatch / 2 ? 4 : 2;
  layout.samples = static_cast<int>(divide_up(shape.batch, layout.cluster_blocks()));
  layout.poll_after = kGramPollAfterCycles;
  const int bytes = shape.element_bytes;
  Places places;
  layout.received_dz_at = places.take(2 * kTwoLayerBatch * kGramUnitsInGroup, bytes);
  layout.received_sums_at = places.take(2 * 6 * kWarp, bytes);
  layout.barriers_at = places.take(4, sizeof(std::uint64_t));
  layout.output.deadline_at = places.take(2, sizeof(std::uint64_t));
  layout.shared_bytes = static_cast<int>(places.used());
  return layout;
}

namespace {

/// The best so far; and of the last search, for a refusal, how few clusters or blocks shared memory allows.
template <class Layout>
struct Search {
  Layout best;
  bool found = false;
  std::int64_t fewest = 0;  ///< 0: not even one group of units fits

  /// Tries groups of units upwards as long as they fit; at most `resident` may share the hidden units.
  template <class Make>
  void try_units(const TwoLayerShape& shape, std::int64_t shared_bytes, int group, std::int64_t resident, Make make) {
    fewest = 0;
    for (std::int64_t units = group;; units += group) {
      const Layout layout = make(units);
      if (layout.shared_bytes > shared_bytes) break;
      fewest = divide_up(shape.hidden, units);
      if (fewest <= resident && (!found || layout.estimated_us < best.estimated_us)) {
        best = layout;
        found = true;
      }
      if (units >= shape.hidden) break;
    }
  }
};

/// "clusters of 4 blocks"; where there are none, "blocks".
std::string clusters_of(std::int64_t blocks) {
  return blocks == 1 ? "blocks" : "clusters of " + std::to_string(blocks) + " blocks";
}

std::string bytes_of(int bytes) { return bytes_text(static_cast<std::uint64_t>(bytes)); }

/// Why the hidden units find no place: `needed`, of which there must be `fewest`, or not one group fits into one.
std::string refuse_hidden(const TwoLayerShape& shape, const TwoLayerDevice& device, const std::string& needed,
                          std::int64_t fewest, std::int64_t resident, int least_bytes) {
  const std::string hidden =
      std::to_string(shape.hidden) + " hidden units of " + std::to_string(shape.batch) + " samples need ";
  if (fewest > 0)
    return hidden + "at least " + std::to_string(fewest) + " " + needed + ", the device runs " +
           std::to_string(resident) + " at once";
  return hidden + "at least " + bytes_of(least_bytes) + " of shared memory a block, the device gives it " +
         bytes_text(static_cast<std::uint64_t>(device.shared_bytes));
}

}  // namespace

TwoLayerDecision<TwoLayerLayout> decide_two_layer(const TwoLayerShape& shape, const TwoLayerDevice& device) {
  TwoLayerDecision<TwoLayerLayout> decision;
  decision.refusal = refuse_sizes(shape);
  if (!decision.fits()) return decision;
  const int group = units_in_group(shape.element_bytes);
  const std::int64_t block_columns = most_columns(shape), columns = all_columns(shape);
  Search<TwoLayerLayout> search;
  std::int64_t largest = 0;
  for (int log2 = 0; log2 < static_cast<int>(device.resident_clusters.size()); ++log2) {
    const std::int64_t resident = device.resident_clusters[static_cast<std::size_t>(log2)];
    if (resident == 0) continue;
    largest = std::int64_t{1} << log2;
    if (divide_up(columns, largest) > block_columns) continue;
    const auto make = [&](std::int64_t units) { return make_two_layer(shape, log2, units); };
    search.try_units(shape, device.shared_bytes, group, resident, make);
    if (!search.found && decision.refusal.empty())
      decision.refusal =
          refuse_hidden(shape, device, clusters_of(largest), search.fewest, resident, make(group).shared_bytes);
  }
  if (search.found) return {search.best, {}};
  if (decision.refusal.empty())
    decision.refusal = std::to_string(shape.inputs) + " inputs" + (shape.hidden_bias ? " and a bias of " : " of ") +
                       std::to_string(shape.batch) + " samples fill the registers of " +
                       std::to_string(divide_up(columns, block_columns)) +
                       " blocks, a cluster of the device has at most " + std::to_string(largest);
  return decision;
}

TwoLayerDecision<GramTwoLayerLayout> decide_gram_two_layer(const TwoLayerShape& shape, const TwoLayerDevice& device) {
  TwoLayerDecision<GramTwoLayerLayout> decision;
  decision.refusal = refuse_sizes(shape);
  if (!decision.fits()) return decision;
  const std::int64_t clusters = divide_up(shape.hidden, kGramUnitsInGroup);
  if (shape.outputs == 1 && shape.batch >= kDirectBatch &&
      clusters <= std::min(kDirectClusters, device.resident_clusters[2])) {
    const GramTwoLayerLayout direct = make_direct_gram(shape);
    if (direct.shared_bytes <= device.shared_bytes) return {direct, {}};
  }
  Search<GramTwoLayerLayout> search;
  const std::int64_t resident = device.resident_clusters[0];
  const auto make = [&](std::int64_t units) { return make_gram_two_layer(shape, units); };
  search.try_units(shape, device.shared_bytes, kGramUnitsInGroup, resident, make);
  if (search.found) return {search.best, {}};
  decision.refusal =
      refuse_hidden(shape, device, "blocks", search.fewest, resident, make(kGramUnitsInGroup).shared_bytes);
  return decision;
}

namespace {

std::string describe_units(int units, int shared_bytes) {
  return std::to_string(units) + " hidden units in " + bytes_of(shared_bytes) + " of shared memory";
}

}  // namespace

std::string describe(const TwoLayerLayout& layout) {
  return std::to_string(layout.clusters) + " " + clusters_of(layout.cluster_blocks()) + " of " +
         std::to_string(layout.threads) + " threads; a block has " + std::to_string(layout.columns) + " inputs and " +
         describe_units(layout.units, layout.shared_bytes);
}

std::string describe(const GramTwoLayerLayout& layout) {
  return std::to_string(layout.blocks / layout.cluster_blocks()) + " " + clusters_of(layout.cluster_blocks()) + " of " +
         std::to_string(layout.threads) + " threads; a block has " +
         describe_units(layout.output.units, layout.shared_bytes);
}

}  // namespace deviceloop::cuda
