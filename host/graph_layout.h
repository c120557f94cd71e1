// How the graph executor uses its memory: a plain function of the shape, so that the planner counts the bytes that the
// executor takes, without a device.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "gram_layout.h"

namespace deviceloop {

/// A kernel of a step, or one with a second that adds its slots: what it takes follows from this alone.
struct GraphNode {
  enum class Kind {
    elements,  ///< bound by bytes
    product,   ///< of cuBLASLt
    row_sums,  ///< sums over rows, some of them by each thread after each other
  };
  Kind kind = Kind::elements;
  double bytes = 0;              ///< that it reads and writes
  double multiply_adds = 0;      ///< of a product, the library's or an own one
  std::int64_t inner = 0;        ///< of a product
  std::int64_t thread_rows = 0;  ///< of row_sums
  std::int64_t outputs = 1;      ///< of row_sums: sums for each column
  bool has_slots = false;
};

/// Offsets are in bytes from the start of one arena in device memory, each a multiple of 256.
struct GraphLayout {
  struct Layer {
    std::int64_t in_features = 0;
    std::int64_t out_features = 0;
    bool narrow = false;       ///< own kernels instead of GEMMs
    std::uint64_t weight = 0;  ///< [in_features, out_features]
    std::uint64_t bias = 0;    ///< [out_features]; only with bias
    /// [samples, out_features]: H, and after the backward pass of the layer above dZ, or of the last layer the
    /// prediction and then its gradient. H is not needed any more where dZ takes its place.
    std::uint64_t hidden = 0;
  };
  std::vector<Layer> layers;

  /// In the Gram formulation the first layer is updated as a weight Z would be whose input is K.
  std::optional<GramLayout> gram;
  std::uint64_t ones = 0;  ///< with gram and bias: T [samples], each 1

  std::uint64_t x = 0;         ///< [samples, in_features]
  std::uint64_t y = 0;         ///< [samples, outputs]
  std::uint64_t gradient = 0;  ///< dH of one layer at a time, [samples, widest layer below one that is not narrow]

  /// T: 1, 0, -1, -learning_rate, learning_rate.
  std::uint64_t scalars = 0;
  std::uint64_t steps = 0;   ///< int64: the steps since losses were last numbered from 0
  std::uint64_t losses = 0;  ///< double [at least 2 * steps_per_launch]
  std::uint64_t loss = 0;    ///< double: of loss() alone
  std::uint64_t slots = 0;   ///< double: partial sums of one reduction at a time

  bool has_gemm = false;
  std::uint64_t gemm_workspace = 0;  ///< where has_gemm

  std::int64_t predict_rows = 0;
  std::uint64_t predict_input = 0;  ///< [predict_rows, in_features]
  std::uint64_t predict_even = 0;   ///< [predict_rows, widest layer], twice
  std::uint64_t predict_odd = 0;

  std::int64_t steps_per_launch = 1;
  std::vector<GraphNode> nodes;     ///< of a step
  std::uint64_t working_bytes = 0;  ///< data, parameters and activations: what a step touches
  std::uint64_t bytes = 0;

  /// Kernels of a step, taking a product for one.
  std::int64_t nodes_per_step() const;
};

/// Bytes that cuBLASLt works in; what NVIDIA recommends for Hopper.
constexpr std::uint64_t kGemmWorkspaceBytes = std::uint64_t{32} << 20;

/// `training.samples` may be 0: a network that only predicts. Throws InvalidArgument where sizes overflow. The
/// specifications have been validated.
GraphLayout make_graph_layout(const NetworkSpec& network, const TrainingSpec& training);

/// What a step takes, and what it takes at the least (Plan::floor_us_per_step), in microseconds.
struct StepTime {
  double predicted_us = 0;
  double floor_us = 0;
};
StepTime graph_step_time(const GraphLayout& layout, Precision precision, const GpuCaps& gpu);

}  // namespace deviceloop
