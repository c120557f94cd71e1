#include "weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "../loss_scaling.h"
#include "../matrix_ops.h"
#include "../names.h"
#include "../text.h"
#include "elements.h"
#include "json_text.h"
#include "network_metadata.h"
#include "safetensors.h"
#include "transpose.h"

namespace deviceloop {
namespace {

constexpr std::int64_t kLargestWidth = 2147483647;  // see NetworkSpec::widths

const SafeTensorInfo* find(const SafeTensorsFile& file, std::string_view name) {
  const auto& tensors = file.tensors();
  const auto at =
      std::lower_bound(tensors.begin(), tensors.end(), name,
                       [](const SafeTensorInfo& tensor, std::string_view key) { return tensor.name < key; });
  return at != tensors.end() && at->name == name ? &*at : nullptr;
}

/// "0", "2", "4", ...: a layer's number as a module of a Sequential of Linear and ReLU.
std::string module_number(int layer) { return std::to_string(2 * static_cast<std::int64_t>(layer)); }

std::vector<std::int64_t> file_shape(const ParameterInfo& parameter) {
  if (parameter.is_bias) return {parameter.columns};
  return {parameter.columns, parameter.rows};  // PyTorch's Linear keeps [out_features, in_features]
}

/// Null for a dtype that weights do not have here.
const StoredType* stored_type_of(const SafeTensorInfo& tensor) {
  constexpr std::pair<std::string_view, const char*> kTypes[] = {
      {"F16", "float16"}, {"BF16", "bfloat16"}, {"F32", "float32"}, {"F64", "float64"}};
  for (const auto& [dtype, name] : kTypes)
    if (tensor.dtype == dtype) return find_stored_type(name);
  return nullptr;
}

/// The network that the file holds; refuses everything that is not exactly one.
NetworkSpec network_of(const SafeTensorsFile& file) {
  const std::string names = "the tensors are called as in nn.Sequential(Linear, ReLU, Linear, ...): ";
  if (find(file, "0.weight") == nullptr)
    file.refuse("has no '0.weight'" +
                (file.tensors().empty() ? std::string() : ", it holds " + in_quotes(file.tensors().front().name)) +
                "; save it so that " + names + "'0.weight', '2.weight', ...");
  NetworkSpec network;
  network.bias = find(file, "0.bias") != nullptr;
  for (int layer = 0; const SafeTensorInfo* weight = find(file, module_number(layer) + ".weight"); ++layer) {
    const std::string name = in_quotes(weight->name) + " has shape " + shape_text(weight->shape);
    if (weight->shape.size() != 2)
      file.refuse(name +
                  ", a weight has two dimensions, [out_features, in_features]; save the weights of Linear layers");
    for (const std::int64_t width : weight->shape)
      if (width < 1 || width > kLargestWidth)
        file.refuse(name + "; widths from 1 to " + std::to_string(kLargestWidth) + " are possible");
    const std::int64_t out_features = weight->shape[0], in_features = weight->shape[1];
    if (layer == 0) network.widths.push_back(in_features);
    if (in_features != network.widths.back())
      file.refuse(name + ", and the layer before it has " + std::to_string(network.widths.back()) +
                  " outputs; save the Linear layers in their order, each weight as [out_features, in_features]");
    network.widths.push_back(out_features);
  }

  const std::vector<ParameterInfo> layout = parameter_layout(network);
  for (const ParameterInfo& parameter : layout) {
    const SafeTensorInfo* tensor = find(file, parameter.name);
    if (tensor == nullptr)
      file.refuse("has no " + in_quotes(parameter.name) +
                  " although it has '0.bias'; switch bias on in all layers or off in all");
    if (tensor->shape != file_shape(parameter))
      file.refuse(in_quotes(tensor->name) + " has shape " + shape_text(tensor->shape) + ", the layer's outputs need " +
                  shape_text(file_shape(parameter)) + "; save weights and biases of the same network");
    if (stored_type_of(*tensor) == nullptr)
      file.refuse(in_quotes(tensor->name) + " is " + tensor->dtype +
                  ", only F16, BF16, F32 and F64 are read; save it with .float()");
  }
  std::set<std::string_view> known;
  for (const ParameterInfo& parameter : layout) known.insert(parameter.name);
  for (const SafeTensorInfo& tensor : file.tensors()) {
    if (known.contains(tensor.name)) continue;
    if (tensor.name.ends_with(".bias") && !network.bias &&
        find(file, tensor.name.substr(0, tensor.name.size() - 4) + "weight"))
      file.refuse("holds " + in_quotes(tensor.name) +
                  " although it has no '0.bias'; switch bias on in all layers or off in all");
    file.refuse("holds " + in_quotes(tensor.name) + ", which is no parameter of the network " +
                widths_text(network.widths) + " of the other tensors; save only the Linear layers, so that " + names +
                "'" + module_number(network.layers()) + ".weight' comes next");
  }
  return network;
}

/// What the file says of the network that its tensors are.
std::optional<NetworkMetadata> metadata_of(const SafeTensorsFile& file, const NetworkSpec& tensors) {
  std::optional<NetworkMetadata> metadata = read_network_metadata(file);
  if (!metadata) return metadata;
  if (metadata->network.widths != tensors.widths)
    file.refuse(metadata_problem("has the widths " + widths_text(metadata->network.widths) + ", its tensors have " +
                                 widths_text(tensors.widths)));
  if (metadata->network.bias != tensors.bias)
    file.refuse(metadata_problem(std::string("says that the network has ") + (tensors.bias ? "no biases" : "biases") +
                                 ", and its tensors have " + (tensors.bias ? "them" : "none")));
  return metadata;
}

/// Refuses a file that says that its network has other activations.
void check_activations(const SafeTensorsFile& file, const NetworkSpec& found, const NetworkSpec& wanted) {
  const auto check = [&](const char* what, Activation has, Activation wants) {
    const std::string is = activation_text(has, found.leaky_slope),
                      wanted_text = activation_text(wants, wanted.leaky_slope);
    if (is != wanted_text)
      file.refuse(std::string("its network has the ") + what + " " + is + ", but " + wanted_text +
                  " was asked for; use " + is);
  };
  if (wanted.layers() > 1) check("activation", found.activation, wanted.activation);
  check("output activation", found.output_activation, wanted.output_activation);
}

SafeTensorsMetadata metadata_to_write(const NetworkMetadata& metadata) {
  return {{"format", "pt"}, {kNetworkKey, network_metadata_text(metadata)}};
}

}  // namespace

void check_network(const SafeTensorsFile& file, const NetworkSpec& wanted) {
  const SavedNetwork saved = read_saved_network(file);
  const NetworkSpec& found = saved.network;
  const std::string widths = "; give the network these widths: " + widths_text(found.widths);
  for (int layer = 0; layer < std::max(found.layers(), wanted.layers()); ++layer) {
    const std::string name = in_quotes(module_number(layer) + ".weight");
    if (layer >= found.layers())
      file.refuse("has no " + name + ", which the network " + widths_text(wanted.widths) + " needs" + widths);
    if (layer >= wanted.layers())
      file.refuse("holds " + name + ", which the network " + widths_text(wanted.widths) + " does not have" + widths);
    const std::vector<std::int64_t> has{found.out_features(layer), found.in_features(layer)};
    const std::vector<std::int64_t> needs{wanted.out_features(layer), wanted.in_features(layer)};
    if (has != needs)
      file.refuse(name + " has shape " + shape_text(has) + ", the network needs " + shape_text(needs) + widths);
  }
  if (wanted.bias && !found.bias) file.refuse("has no '0.bias', and the network has biases; switch its bias off");
  if (!wanted.bias && found.bias) file.refuse("holds '0.bias', and the network has no biases; switch its bias on");
  if (saved.has_metadata) check_activations(file, found, wanted);
}

SavedNetwork read_saved_network(const SafeTensorsFile& file) {
  SavedNetwork saved;
  saved.network = network_of(file);
  if (std::optional<NetworkMetadata> metadata = metadata_of(file, saved.network)) {
    saved.has_metadata = true;
    saved.network = std::move(metadata->network);
    saved.scaling = std::move(metadata->scaling);
    saved.target_scaling = std::move(metadata->target_scaling);
    saved.input_names = std::move(metadata->input_names);
  }
  return saved;
}

NetworkSpec read_network(const SafeTensorsFile& file) { return read_saved_network(file).network; }
NetworkSpec read_network(const std::string& path) { return read_network(SafeTensorsFile(path)); }

Parameters read_weights(const std::string& path, const NetworkSpec& network, ElementType type) {
  return read_weights(SafeTensorsFile(path), network, type);
}

namespace {

/// Whether weights lie in the file as PyTorch has them, [out_features, in_features]; biases have one row.
enum class FileOrder { transposed, as_is };

HostMatrix read_matrix(const SafeTensorsFile& file, const SafeTensorInfo& tensor, const ParameterInfo& info,
                       ElementType type, FileOrder order = FileOrder::transposed) {
  const StoredType& stored = *stored_type_of(tensor);
  const bool transposed = !info.is_bias && order == FileOrder::transposed;
  HostMatrix in(element_type_for(stored, type), transposed ? info.columns : info.rows,
                transposed ? info.rows : info.columns);
  with_type(in.type, [&](auto* tag) { file.read(tensor, stored, static_cast<decltype(tag)>(in.view().data)); });
  if (const auto where = find_non_finite(in.view(), type))
    file.refuse(in_quotes(tensor.name) + ": " + describe(*where, type) +
                (std::isfinite(where->value) ? "; read it as fp64" : "; save weights that have not diverged"));
  HostMatrix matrix(type, info.rows, info.columns);
  if (!transposed) {
    convert(matrix.view(), std::as_const(in).view());
    return matrix;
  }
  with_type(type, [&]<class Out>(Out*) {
    with_type(in.type, [&]<class In>(In*) {
      transpose(static_cast<Out*>(matrix.view().data), matrix.columns, static_cast<const In*>(in.view().data),
                in.columns, in.rows, in.columns);
    });
  });
  return matrix;
}

std::string dtype_of(ElementType type) { return "F" + std::to_string(8 * size_of(type)); }

std::vector<std::int64_t> file_shape(const ParameterInfo& info, FileOrder order) {
  return order == FileOrder::transposed ? file_shape(info) : std::vector{info.rows, info.columns};
}

SafeTensor tensor_of(const HostMatrix& matrix, const ParameterInfo& info, FileOrder order = FileOrder::transposed) {
  SafeTensor tensor;
  tensor.name = info.name;
  tensor.dtype = dtype_of(matrix.type);
  tensor.shape = file_shape(info, order);
  if (info.is_bias || order == FileOrder::as_is) {
    tensor.bytes = matrix.bytes;
    return tensor;
  }
  tensor.bytes.resize(matrix.bytes.size());
  with_type(matrix.type, [&]<class T>(T*) {
    transpose(reinterpret_cast<T*>(tensor.bytes.data()), matrix.rows, reinterpret_cast<const T*>(matrix.bytes.data()),
              matrix.columns, matrix.rows, matrix.columns);
  });
  return tensor;
}

constexpr const char* kStepsName = "optimizer.steps";
constexpr const char* kSharesName = "gram.shares";

/// The parameters of the best evaluation.
std::vector<ParameterInfo> best_layout(const NetworkSpec& network) {
  std::vector<ParameterInfo> layout = parameter_layout(network);
  for (ParameterInfo& info : layout) info.name = "best." + info.name;
  return layout;
}

const SafeTensorInfo& find_or_refuse(const SafeTensorsFile& file, const std::string& name, const std::string& dtype,
                                     const std::vector<std::int64_t>& shape) {
  const SafeTensorInfo* const tensor = find(file, name);
  if (tensor == nullptr || tensor->dtype != dtype || tensor->shape != shape)
    file.refuse("has no " + in_quotes(name) + ", " + dtype + " " + shape_text(shape) +
                ", which its metadata promise; use another copy, or the checkpoint before it");
  return *tensor;
}

/// Refuses a file that is not the state of a network that is trained so.
void check_state(const SafeTensorsFile& file, const std::vector<ParameterInfo>& layout, const NetworkSpec& network,
                 const TrainingSpec& training, const std::optional<CheckpointMetadata>& checkpoint) {
  const std::string remedy = "; load it into a trainer with the network, the optimizer and the precision that saved it";
  const std::string dtype = dtype_of(element_type(training.precision));
  std::set<std::string> known = {kStepsName};
  if (checkpoint && checkpoint->has_best_parameters())
    for (const ParameterInfo& info : best_layout(network)) known.insert(info.name);
  if (checkpoint && checkpoint->gram_steps > 0) {
    for (const ParameterInfo& info : gram_layout(network, checkpoint->training)) known.insert(info.name);
    known.insert(kSharesName);
  }
  for (const ParameterInfo& info : layout) {
    known.insert(info.name);
    const SafeTensorInfo* const tensor = find(file, info.name);
    if (tensor == nullptr)
      file.refuse("has no " + in_quotes(info.name) + ", which belongs to the state of the optimizer " +
                  shown(training.optimizer.kind) + " for this network" + remedy);
    if (tensor->shape != file_shape(info) || tensor->dtype != dtype)
      file.refuse(in_quotes(info.name) + " is " + tensor->dtype + " " + shape_text(tensor->shape) +
                  ", the trainer's is " + dtype + " " + shape_text(file_shape(info)) + remedy);
  }
  for (const SafeTensorInfo& tensor : file.tensors())
    if (!known.contains(tensor.name))
      file.refuse("holds " + in_quotes(tensor.name) + ", which the state of the optimizer " +
                  shown(training.optimizer.kind) + " for this network has not" + remedy);
  if (const auto metadata = metadata_of(file, network)) check_activations(file, metadata->network, network);
}

}  // namespace

Parameters read_weights(const SafeTensorsFile& file, const NetworkSpec& network, ElementType type) {
  check_network(file, network);
  Parameters parameters;
  for (const ParameterInfo& info : parameter_layout(network))
    parameters.push_back(read_matrix(file, *find(file, info.name), info, type));
  return parameters;
}

void write_weights(OutputFile& file, const NetworkSpec& network, const Parameters& parameters,
                   const InputScaling& scaling, const InputScaling& target_scaling,
                   const std::vector<std::string>& input_names) {
  const std::vector<ParameterInfo> layout = parameter_layout(network);
  const std::string name = printable(file.path());
  if (parameters.size() != layout.size())
    throw InvalidArgument(name + ": " + std::to_string(parameters.size()) + " parameters were given, the network " +
                          widths_text(network.widths) + " has " + std::to_string(layout.size()) +
                          "; give one for each weight and bias");
  std::vector<SafeTensor> tensors;
  for (std::size_t i = 0; i < layout.size(); ++i) {
    const HostMatrix& matrix = parameters[i];
    if (matrix.rows != layout[i].rows || matrix.columns != layout[i].columns)
      throw InvalidArgument(name + ": the parameter for " + in_quotes(layout[i].name) + " has shape " +
                            shape_text(std::vector{matrix.rows, matrix.columns}) + ", the network needs " +
                            shape_text(std::vector{layout[i].rows, layout[i].columns}) +
                            "; give the parameters of this network");
    tensors.push_back(tensor_of(matrix, layout[i]));
  }
  write_safetensors(file, tensors, metadata_to_write({network, scaling, target_scaling, input_names}));
}

std::optional<CheckpointMetadata> read_checkpoint(const SafeTensorsFile& file) {
  const SafeTensorsMetadata& metadata = file.metadata();
  if (!metadata.contains(kCheckpointKey) && !metadata.contains(kChecksumKey)) return std::nullopt;
  file.check_checksum();
  return read_checkpoint_metadata(file);
}

SavedState read_state(const SafeTensorsFile& file, const NetworkSpec& network, const TrainingSpec& training,
                      Settings settings) {
  const ElementType type = element_type(training.precision);
  const std::vector<ParameterInfo> layout = state_layout(network, training);
  SavedState state;
  state.checkpoint = read_checkpoint(file);
  check_state(file, layout, network, training, state.checkpoint);
  if (state.checkpoint)
    if (const std::string difference = difference_of(state.checkpoint->training, training, settings);
        !difference.empty())
      file.refuse("is of a run with " + difference + "; load it into a trainer with the settings that saved it");
  for (const ParameterInfo& info : layout)
    state.values.push_back(read_matrix(file, *find(file, info.name), info, type));
  const SafeTensorInfo* const steps = find(file, kStepsName);
  double number = -1;
  if (steps != nullptr && steps->dtype == "F64" && steps->shape == std::vector<std::int64_t>{1})
    file.read(*steps, *stored_type_of(*steps), &number);
  if (!(number >= 0 && number < 9007199254740992.0) || number != std::trunc(number))
    file.refuse(std::string("has no number of steps in ") + in_quotes(kStepsName) +
                "; it must be one whole number of at least 0, F64 [1]");
  state.steps = static_cast<std::int64_t>(number);
  if (layout.back().state == kLossScaling)
    with_type(type, [&]<class T>(T*) {
      const T* const of_loss = static_cast<const T*>(std::as_const(state.values.back()).view().data);
      if (!LossScaling::is_state(of_loss))
        file.refuse("has " + json_text(static_cast<double>(of_loss[0])) + " and " +
                    json_text(static_cast<double>(of_loss[1])) + " in " + in_quotes(layout.back().name) +
                    ", which are no scale of the loss and number of steps; use a state that was saved");
    });
  if (!state.checkpoint) return state;
  if (state.checkpoint->has_best_parameters())
    for (const ParameterInfo& info : best_layout(network))
      state.best.push_back(
          read_matrix(file, find_or_refuse(file, info.name, dtype_of(type), file_shape(info)), info, type));
  if (state.checkpoint->gram_steps == 0) return state;
  GramState& gram = state.gram.emplace();
  for (const ParameterInfo& info : gram_layout(network, state.checkpoint->training)) {
    const std::vector<std::int64_t> shape = file_shape(info, FileOrder::as_is);
    gram.tensors.push_back(
        read_matrix(file, find_or_refuse(file, info.name, dtype_of(type), shape), info, type, FileOrder::as_is));
  }
  std::array<double, 4> shares{};
  const SafeTensorInfo& stored = find_or_refuse(file, kSharesName, "F64", {4});
  file.read(stored, *stored_type_of(stored), shares.data());
  if (!std::all_of(shares.begin(), shares.end(), [](double share) { return std::isfinite(share); }))
    file.refuse(std::string("has numbers that are not finite in ") + in_quotes(kSharesName) +
                "; use a checkpoint of a run that has not diverged");
  gram.progress.steps = state.checkpoint->gram_steps;
  gram.progress.shares.set_values(shares);
  return state;
}

void write_state(OutputFile& file, const NetworkMetadata& network, const SavedState& state,
                 const SafeTensorsMetadata& more) {
  const CheckpointMetadata& checkpoint = *state.checkpoint;
  std::vector<SafeTensor> tensors;
  const auto add = [&](const std::vector<ParameterInfo>& layout, const Parameters& values, FileOrder order) {
    for (std::size_t i = 0; i < layout.size(); ++i) tensors.push_back(tensor_of(values.at(i), layout[i], order));
  };
  const auto add_doubles = [&](const char* name, std::span<const double> values) {
    const auto bytes = std::as_bytes(values);
    tensors.push_back(
        {name, "F64", {static_cast<std::int64_t>(values.size())}, std::vector<std::byte>(bytes.begin(), bytes.end())});
  };
  add(state_layout(network.network, checkpoint.training), state.values, FileOrder::transposed);
  const double steps = static_cast<double>(state.steps);
  add_doubles(kStepsName, {&steps, 1});
  if (checkpoint.has_best_parameters()) add(best_layout(network.network), state.best, FileOrder::transposed);
  if (checkpoint.gram_steps > 0) {
    add(gram_layout(network.network, checkpoint.training), state.gram->tensors, FileOrder::as_is);
    const std::array<double, 4> shares = state.gram->progress.shares.values();
    add_doubles(kSharesName, shares);
  }
  SafeTensorsMetadata metadata = metadata_to_write(network);
  metadata[kCheckpointKey] = checkpoint_metadata_text(checkpoint);
  metadata[kChecksumKey] = "";
  metadata.insert(more.begin(), more.end());
  write_safetensors(file, tensors, metadata);
}

}  // namespace deviceloop
