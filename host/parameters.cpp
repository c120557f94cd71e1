#include "parameters.h"

#include "elementwise.h"
#include "loss_scaling.h"
#include "precision.h"

namespace deviceloop {

std::vector<ParameterInfo> parameter_layout(const NetworkSpec& network) {
  std::vector<ParameterInfo> layout;
  for (int layer = 0; layer < network.layers(); ++layer) {
    // PyTorch numbers the modules of a Sequential: every Linear but the last is followed by a ReLU.
    const std::string module = std::to_string(2 * layer);
    const std::int64_t in_features = network.in_features(layer), out_features = network.out_features(layer);
    layout.push_back({module + ".weight", layer, false, in_features, out_features});
    if (network.bias) layout.push_back({module + ".bias", layer, true, 1, out_features});
  }
  return layout;
}

std::vector<ParameterInfo> state_layout(const NetworkSpec& network, const TrainingSpec& training) {
  const std::vector<ParameterInfo> parameters = parameter_layout(network);
  std::vector<ParameterInfo> layout = parameters;
  int state = 0;
  for (const char* const name : elementwise::states_of(training.optimizer.kind)) {
    for (ParameterInfo info : parameters) {
      info.name += std::string(".") + name;
      info.state = state;
      layout.push_back(std::move(info));
    }
    ++state;
  }
  if (scales_loss(training.precision))
    layout.push_back({"loss_scaling", 0, true, 1, LossScaling::kStateColumns, kLossScaling});
  return layout;
}

std::vector<ParameterInfo> gram_layout(const NetworkSpec& network, const TrainingSpec& training) {
  const std::int64_t in_features = network.in_features(0), out_features = network.out_features(0);
  const auto info = [&](const char* name, std::int64_t rows) {
    return ParameterInfo{std::string("gram.") + name, 0, false, rows, out_features};
  };
  std::vector<ParameterInfo> layout = {info("pre_activation", training.samples), info("sum", training.samples),
                                       info("start_weight", in_features)};
  if (network.bias) layout.push_back(info("start_bias", 1));
  const std::vector<ParameterInfo> first = layout;
  int state = 0;
  for (const char* const name : elementwise::states_of(training.optimizer.kind)) {
    for (ParameterInfo each : first) {
      each.name += std::string(".") + name;
      each.state = state;
      layout.push_back(std::move(each));
    }
    ++state;
  }
  return layout;
}

HostMatrix::HostMatrix(ElementType element_type, std::int64_t row_count, std::int64_t column_count)
    : type(element_type),
      rows(row_count),
      columns(column_count),
      bytes(static_cast<std::size_t>(row_count) * static_cast<std::size_t>(column_count) * size_of(element_type)) {}

Matrix HostMatrix::view() {
  Matrix view;
  view.data = bytes.data();
  view.type = type;
  view.rows = rows;
  view.columns = columns;
  view.row_stride = columns;
  return view;
}

ConstMatrix HostMatrix::view() const { return const_cast<HostMatrix*>(this)->view(); }

}  // namespace deviceloop
