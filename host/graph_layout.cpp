#include "graph_layout.h"

#include <algorithm>
#include <initializer_list>

#include <deviceloop/cuda.h>

#include "arena_space.h"
#include "gpu_costs.h"
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

/// The nodes of a step over `samples` rows.
class StepNodes {
 public:
  StepNodes(std::int64_t samples, std::uint64_t element) : samples_(samples), element_(static_cast<double>(element)) {}

  /// A kernel that reads and writes `matrices` of [samples, columns].
  void add_elements(int matrices, std::int64_t columns, bool has_slots = false) {
    GraphNode node;
    node.bytes = matrices * elements(samples_, columns) * element_;
    node.has_slots = has_slots;
    nodes_.push_back(node);
  }

  /// [rows, inner] times [inner, columns].
  void add_product(std::int64_t rows, std::int64_t inner, std::int64_t columns) {
    GraphNode node;
    node.kind = GraphNode::Kind::product;
    node.multiply_adds = elements(rows, columns) * static_cast<double>(inner);
    node.bytes = (elements(rows, inner) + elements(inner, columns) + elements(rows, columns)) * element_;
    node.inner = inner;
    nodes_.push_back(node);
  }

  /// Own product with a narrow layer's weight.
  void add_narrow(std::int64_t in, std::int64_t out) {
    GraphNode node;
    node.bytes = (elements(samples_, in) + elements(samples_, out) + elements(in, out)) * element_;
    node.multiply_adds = elements(samples_, in) * static_cast<double>(out);
    nodes_.push_back(node);
  }

  /// Its gradients: of the weights and, with `passes` 2, of the input, which takes the input's place.
  void add_narrow_gradient(std::int64_t in, std::int64_t out, int passes) {
    add_row_sums(in, out, passes * elements(samples_, in) + elements(samples_, out) + 2 * elements(in, out));
    nodes_.back().multiply_adds = passes * elements(samples_, in) * static_cast<double>(out);
  }

  void add_bias_gradient(std::int64_t out) { add_row_sums(out, 1, elements(samples_, out)); }

  std::vector<GraphNode> nodes() const { return nodes_; }

 private:
  static double elements(std::int64_t rows, std::int64_t columns) {
    return static_cast<double>(rows) * static_cast<double>(columns);
  }

  void add_row_sums(std::int64_t columns, std::int64_t outputs, double moved) {
    const cuda::PanelLayout panel = cuda::row_sum_layout(samples_, columns);
    GraphNode node;
    node.kind = GraphNode::Kind::row_sums;
    node.bytes = moved * element_;
    node.thread_rows = cuda::divide_up(std::min(samples_, panel.rows_per_tile), cuda::kThreads / panel.threads_across);
    node.outputs = outputs;
    node.has_slots = panel.tiles_down > 1;
    nodes_.push_back(node);
  }

  const std::int64_t samples_;
  const double element_;
  std::vector<GraphNode> nodes_;
};

/// Beside the node: what a kernel takes where memory moves `bytes_per_us`.
double work_us(const GraphNode& node, double bytes_per_us, double library_multiply_adds_per_us) {
  using namespace gpu_costs;
  switch (node.kind) {
    case GraphNode::Kind::elements:
      return kKernelUs + node.bytes / bytes_per_us;
    case GraphNode::Kind::row_sums:
      return kKernelUs +
             static_cast<double>(node.thread_rows) * (kRowUs + kRowOutputUs * static_cast<double>(node.outputs - 1)) +
             node.bytes / (kRowSumEfficiency * bytes_per_us);
    case GraphNode::Kind::product:
      return kLibraryProductUs +
             std::max(node.multiply_adds / library_multiply_adds_per_us,
                      node.bytes / (kLibraryMemoryEfficiency * bytes_per_us)) +
             std::min(kLibraryInnerUs * static_cast<double>(node.inner), kLibrarySplitUs);
  }
  return 0;
}

}  // namespace

std::int64_t GraphLayout::nodes_per_step() const {
  std::int64_t count = 0;
  for (const GraphNode& node : nodes) count += node.has_slots ? 2 : 1;
  return count;
}

StepTime graph_step_time(const GraphLayout& layout, Precision precision, const GpuCaps& gpu) {
  using namespace gpu_costs;
  const double peak = fma_per_us(size_of(element_type(precision))) * gpu.multiprocessors;
  const double library = peak * (precision == Precision::fp32 ? kLibraryEfficiency : kLibraryDoubleEfficiency);
  const bool in_cache = layout.working_bytes <= gpu.l2_bytes || gpu.memory_gb_per_s == 0;
  const double bytes_per_us = 1e3 * (in_cache ? kL2GbPerSecond : gpu.memory_gb_per_s * kMemoryEfficiency);
  const double nodes_us = kGraphNodeUs * static_cast<double>(layout.nodes_per_step());
  StepTime time;
  time.predicted_us = nodes_us;
  double bytes = 0, multiply_adds = 0;
  for (const GraphNode& node : layout.nodes) {
    time.predicted_us += work_us(node, bytes_per_us, library) + (node.has_slots ? kSlotSumUs : 0);
    bytes += node.bytes;
    multiply_adds += node.multiply_adds;
  }
  time.floor_us = std::max(multiply_adds / std::max(peak, library),
                           bytes / (1e3 * (in_cache ? kL2GbPerSecond : gpu.memory_gb_per_s))) +
                  nodes_us;
  return time;
}

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
    const std::int64_t outputs = network.widths.back();
    StepNodes step(samples, element);
    step.add_elements(3, outputs, slots > 0);
    for (int index = 0; index < network.layers(); ++index) {
      const GraphLayout::Layer& layer = layout.layers[static_cast<std::size_t>(index)];
      const std::int64_t in = layer.in_features, out = layer.out_features;
      const bool is_last = index == network.layers() - 1;
      const std::int64_t bias_slots = network.bias ? cuda::column_sums_slots(samples, out) : 0;
      if (index == 0 && layout.gram) {
        // ReLU of Z, and the updates of Z and S. The layer's parameters are none of a step's business.
        if (!is_last) step.add_elements(2, out);
        if (layer.narrow)
          step.add_narrow_gradient(samples, out, 1);
        else
          step.add_product(samples, samples, out);
        step.add_elements(3, out);
        if (layer.narrow)
          slots = std::max({slots, cuda::narrow_linear_gradient_slots(samples, samples, out),
                            cuda::narrow_linear_gradient_slots(samples, in, out)});
        slots = std::max(slots, bias_slots);
        continue;
      }
      // Forward: the product and what follows it.
      if (layer.narrow)
        step.add_narrow(in, out);
      else
        step.add_product(samples, in, out);
      if (!is_last || (network.bias && !layer.narrow)) step.add_elements(2, out);
      // Backward: the weights, and below the top the gradient of the input and its mask.
      if (layer.narrow) {
        step.add_narrow_gradient(in, out, index > 0 ? 2 : 1);
        slots = std::max(slots, cuda::narrow_linear_gradient_slots(samples, in, out));
      } else {
        if (index > 0) step.add_product(samples, out, in);
        step.add_product(in, samples, out);
        if (index > 0) step.add_elements(3, in);
      }
      if (network.bias) step.add_bias_gradient(out);
      slots = std::max(slots, bias_slots);
    }
    layout.nodes = step.nodes();
    layout.slots = arena.take(slots, 1, sizeof(double));
    layout.working_bytes = arena.used() - (layout.has_gemm ? kGemmWorkspaceBytes : 0);
    layout.steps_per_launch = std::clamp(kNodesPerLaunch / layout.nodes_per_step(), std::int64_t{1}, kStepsPerLaunch);
  }
  layout.predict_rows = kPredictRows;
  layout.predict_input = arena.take(layout.predict_rows, network.widths.front(), element);
  layout.predict_even = arena.take(layout.predict_rows, widest, element);
  layout.predict_odd = arena.take(layout.predict_rows, widest, element);
  layout.bytes = arena.used();
  return layout;
}

}  // namespace deviceloop
