// The parameters of a network: names, shapes, and a copy on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

namespace deviceloop {

/// One named tensor of an executor's state: a weight [in_features, out_features], a bias [1, out_features], or what the
/// optimizer keeps for one of them.
struct ParameterInfo {
  std::string name;  ///< as in PyTorch's nn.Sequential of Linear and ReLU: "0.weight", "0.bias", "2.weight", ...
  int layer = 0;
  bool is_bias = false;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  int state = -1;  ///< which of the optimizer's numbers; -1: the parameter itself; or kLossScaling
};

/// ParameterInfo::state of LossScaling, which belongs to no parameter; a row, as biases are.
inline constexpr int kLossScaling = 1000;

/// In order of layers, each weight before its bias.
std::vector<ParameterInfo> parameter_layout(const NetworkSpec& network);

/// All that outlives a step: the parameters, as in parameter_layout(), then what the optimizer keeps for each; last, of
/// a precision that scales the loss, LossScaling.
std::vector<ParameterInfo> state_layout(const NetworkSpec& network, const TrainingSpec& training);

/// In the Gram formulation, what outlives a step beside that: "gram.pre_activation", "gram.sum", "gram.start_weight"
/// and "gram.start_bias" of Step::Gram, then what the optimizer keeps for each.
std::vector<ParameterInfo> gram_layout(const NetworkSpec& network, const TrainingSpec& training);

/// A contiguous matrix in host memory that owns its elements.
struct HostMatrix {
  ElementType type = ElementType::float32;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<std::byte> bytes;

  HostMatrix() = default;
  /// Zeros. The caller has checked that the size does not overflow.
  HostMatrix(ElementType element_type, std::int64_t row_count, std::int64_t column_count);

  ConstMatrix view() const;
  Matrix view();
};

/// All parameters of a network, one entry for each of parameter_layout(), or with the optimizer's state of
/// state_layout().
using Parameters = std::vector<HostMatrix>;

}  // namespace deviceloop
