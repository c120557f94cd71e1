#include "graph_layout.h"

#include <algorithm>
#include <initializer_list>

#include <deviceloop/cuda.h>

#include "arena_space.h"
#include "kernel_layout.h"

namespace deviceloop {
namespace {

// What cudaMalloc gives, and what makes every access of 16 bytes possible.
constexpr std::uint64_t kAlignment = 256;
// A launch costs the host a few microseconds: with so many steps that is far below what the steps take. Of deep
// networks it takes fewer, because each node of a graph takes memory and time to make.
constexpr std::int64_t kStepsPerLaunch = 32;
constexpr std::int64_t kNodesPerLaunch = 8192;
constexpr std::int64_t kPredictRows = 1024;

}  // namespace

GraphLayout make_graph_layout(const NetworkSpec& network, const TrainingSpec& training) {
  const std::uint64_t element = size_of(element_type(training.precision));
  const std::int64_t samples = training.samples;
  GraphLayout layout;
  ArenaSpace arena(network, training, kAlignment);

  std::int64_t widest = 0, widest_gradient = 0;
  for (int index = 0; index < network.layers(); ++index) {
    GraphLayout::Layer layer;
    layer.in_features = network.in_features(index);
    layer.out_features = network.out_features(index);
    layer.narrow = layer.out_features <= cuda::kMaxNarrowOutputs;
    layer.weight = arena.take(layer.in_features, layer.out_features, element);
    if (network.bias) layer.bias = arena.take(1, layer.out_features, element);
    widest = std::max(widest, layer.out_features);
    if (!layer.narrow) layout.has_gemm = true;
    if (!layer.narrow && index > 0) widest_gradient = std::max(widest_gradient, layer.in_features);
    layout.layers.push_back(layer);
  }
  layout.scalars = arena.take(5, 1, element);
  layout.gram = take_gram(arena, network, training);
  if (layout.gram) layout.has_gemm = true;  // for K
  if (layout.gram && network.bias) layout.ones = arena.take(samples, 1, element);
  if (layout.has_gemm) layout.gemm_workspace = arena.take(1, 1, kGemmWorkspaceBytes);

  if (samples > 0) {
    layout.steps = arena.take(1, 1, sizeof(std::int64_t));
    layout.losses = arena.take(2 * kStepsPerLaunch, 1, sizeof(double));
    layout.loss = arena.take(1, 1, sizeof(double));
    layout.x = arena.take(samples, network.widths.front(), element);
    layout.y = arena.take(samples, network.widths.back(), element);
    for (GraphLayout::Layer& layer : layout.layers) layer.hidden = arena.take(samples, layer.out_features, element);
    if (widest_gradient > 0) layout.gradient = arena.take(samples, widest_gradient, element);

    const std::int64_t errors = samples * network.widths.back();  // was counted: it does not overflow
    std::int64_t slots = training.precision == Precision::fp32 ? cuda::squared_error_slots<float>(errors)
                                                               : cuda::squared_error_slots<double>(errors);
    layout.nodes_per_step = slots > 0 ? 2 : 1;
    const auto elements = [](std::int64_t rows, std::int64_t columns) {
      return static_cast<double>(rows) * static_cast<double>(columns);
    };
    double moved = 3 * elements(errors, 1);  // elements
    for (int index = 0; index < network.layers(); ++index) {
      const GraphLayout::Layer& layer = layout.layers[static_cast<std::size_t>(index)];
      const bool is_last = index == network.layers() - 1;
      const std::int64_t bias_slots = network.bias ? cuda::column_sums_slots(samples, layer.out_features) : 0;
      if (index == 0 && layout.gram) {
        // ReLU of Z, and the updates of Z and S. The layer's parameters are none of a step's business.
        std::int64_t z_slots = 0, weight_slots = 0;
        if (layer.narrow) {
          z_slots = cuda::narrow_linear_gradient_slots(samples, samples, layer.out_features);
          weight_slots = cuda::narrow_linear_gradient_slots(samples, layer.in_features, layer.out_features);
        }
        layout.nodes_per_step += (is_last ? 0 : 1) + (z_slots > 0 ? 2 : 1) + 1;
        // H of Z; Z and K; S; dZ twice.
        moved += elements(samples, samples) + (is_last ? 6 : 8) * elements(samples, layer.out_features);
        slots = std::max({slots, bias_slots, z_slots, weight_slots});
        continue;
      }
      const double in = elements(samples, layer.in_features), out = elements(samples, layer.out_features);
      const double weights = elements(layer.in_features, layer.out_features);
      // Forward: the product and what follows it.
      const bool has_activation = !is_last || (network.bias && !layer.narrow);
      layout.nodes_per_step += 1 + (has_activation ? 1 : 0);
      moved += in + weights + (has_activation ? 3 : 1) * out;
      // Backward: the weights, and below the top the gradient of the input and its mask.
      moved += in + out + 2 * weights;
      if (index > 0) moved += out + weights + (layer.narrow ? 2 : 4) * in;
      if (network.bias) moved += out;
      std::int64_t weight_slots = 0;
      if (layer.narrow) {
        weight_slots = cuda::narrow_linear_gradient_slots(samples, layer.in_features, layer.out_features);
        layout.nodes_per_step += weight_slots > 0 ? 2 : 1;
      } else {
        layout.nodes_per_step += index > 0 ? 3 : 1;
        layout.products_per_step += index > 0 ? 3 : 2;
      }
      if (network.bias) layout.nodes_per_step += bias_slots > 0 ? 2 : 1;
      slots = std::max({slots, bias_slots, weight_slots});
    }
    layout.slots = arena.take(slots, 1, sizeof(double));
    layout.bytes_per_step = moved * static_cast<double>(element);
    layout.steps_per_launch = std::clamp(kNodesPerLaunch / layout.nodes_per_step, std::int64_t{1}, kStepsPerLaunch);
  }
  layout.predict_rows = kPredictRows;
  layout.predict_input = arena.take(layout.predict_rows, network.widths.front(), element);
  layout.predict_even = arena.take(layout.predict_rows, widest, element);
  layout.predict_odd = arena.take(layout.predict_rows, widest, element);
  layout.bytes = arena.used();
  return layout;
}

}  // namespace deviceloop
