#include "cpu_layout.h"

#include <algorithm>

#include "arena_space.h"

namespace deviceloop {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

constexpr std::uint64_t kCacheLine = 64;
// A slot for each of at most this many blocks of rows.
constexpr std::int64_t kMaxBlocks = 64;
constexpr std::int64_t kChunkedPanelRows = 128;
constexpr std::int64_t kBlockRows = 8 * kChunkedPanelRows;
constexpr std::int64_t kChunkedMinSamples = 8 * kChunkedPanelRows;
// Parameters (in bytes) that a thread can keep in its cache besides a panel, with their gradients.
constexpr std::uint64_t kChunkedMaxParameterBytes = 1 << 20;
// Samples up to which the sum over the batch goes straight into the weight.
constexpr std::int64_t kOneKBlock = 1024;
// Work below which a task is not worth handing to another thread.
constexpr double kTaskFlops = 4e6;

}  // namespace

CpuLayout make_cpu_layout(const NetworkSpec& network, const TrainingSpec& training, int threads) {
  const std::uint64_t element = size_of(element_type(training.precision));
  const std::int64_t samples = training.samples;
  CpuLayout layout;
  ArenaSpace arena(network, training, kCacheLine);

  std::int64_t widest = 0;  // of all layers' outputs
  for (int index = 0; index < network.layers(); ++index) {
    CpuLayout::Layer layer;
    layer.in_features = network.in_features(index);
    layer.out_features = network.out_features(index);
    widest = std::max(widest, layer.out_features);
    layer.weight = arena.take(layer.in_features, layer.out_features, element);
    if (network.bias) layer.bias = arena.take(1, layer.out_features, element);
    layout.layers.push_back(layer);
  }
  layout.parameter_bytes = arena.used();
  const std::int64_t last = network.layers() - 1;

  layout.gram = take_gram(arena, network, training);
  layout.chunked = !layout.gram && samples >= kChunkedMinSamples && layout.parameter_bytes <= kChunkedMaxParameterBytes;
  layout.one_k_block = samples <= kOneKBlock;
  if (layout.chunked) {
    layout.panel_rows = kChunkedPanelRows;
    // Five to eight blocks at least, so that several threads have work; no more slots than kMaxBlocks.
    layout.block_rows = std::clamp(kBlockRows, round_up(divide_up(samples, kMaxBlocks), kChunkedPanelRows),
                                   round_up(divide_up(samples, 8), kChunkedPanelRows));
    for (CpuLayout::Layer& layer : layout.layers) {
      layer.slot_weight = layout.slot_elements;
      layout.slot_elements += layer.in_features * layer.out_features;
      layer.slot_bias = layout.slot_elements;
      if (network.bias) layout.slot_elements += layer.out_features;
    }
  } else {
    // Eight panels where there are rows enough; a panel is large enough that a pass over the weights pays.
    layout.panel_rows = std::clamp<std::int64_t>(round_up(divide_up(samples, 8), 64), 64, 512);
    layout.block_rows = layout.panel_rows;
    for (CpuLayout::Layer& layer : layout.layers) {
      const double row_flops = 2.0 * static_cast<double>(layer.out_features) * static_cast<double>(samples);
      const double rows = row_flops > 0 ? std::min(kTaskFlops / row_flops, 1e9) : 0;
      layer.update_rows = std::min(layer.in_features, round_up(static_cast<std::int64_t>(rows) + 1, 64));
      layer.update_tasks = samples > 0 ? divide_up(layer.in_features, layer.update_rows) : 0;
    }
  }
  layout.blocks = divide_up(samples, layout.block_rows);

  if (samples > 0) {
    layout.x = arena.take(samples, network.widths.front(), element);
    layout.y = arena.take(samples, network.widths.back(), element);
    layout.losses = arena.take(layout.blocks, 1, sizeof(double));
  }
  const auto take_activations = [&](ArenaSpace& space, std::int64_t rows) {
    for (std::size_t index = 0; index < layout.layers.size(); ++index) {
      CpuLayout::Layer& layer = layout.layers[index];
      if (static_cast<std::int64_t>(index) < last) layer.hidden = space.take(rows, layer.out_features, element);
      layer.gradient = space.take(rows, layer.out_features, element);
    }
  };
  ArenaSpace scratch(network, training, kCacheLine);
  if (samples > 0 && layout.chunked) {
    layout.slots = arena.take(layout.blocks, layout.slot_elements, element);
    take_activations(scratch, layout.panel_rows);
  } else if (samples > 0) {
    take_activations(arena, samples);
    if (!layout.one_k_block) {
      std::int64_t most = 0;
      for (const CpuLayout::Layer& layer : layout.layers)
        most = std::max(most, layer.update_rows * layer.out_features);  // smaller than the weight, which was counted
      if (layout.gram) most = std::max(most, layout.panel_rows * layout.layers.front().out_features);
      layout.update = scratch.take(most, 1, element);
    }
  }
  if (network.bias) layout.column_sums = scratch.take(widest, 1, sizeof(double));
  layout.predict_input = scratch.take(CpuLayout::kPredictRows, network.widths.front(), element);
  layout.predict_even = scratch.take(CpuLayout::kPredictRows, widest, element);
  layout.predict_odd = scratch.take(CpuLayout::kPredictRows, widest, element);
  layout.thread_stride = scratch.used();
  layout.thread_scratch = arena.take(threads, static_cast<std::int64_t>(layout.thread_stride), 1);
  layout.bytes = arena.used();
  return layout;
}

}  // namespace deviceloop
