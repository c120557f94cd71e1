// A network's parameters in a safetensors file, with the names and shapes of PyTorch's nn.Sequential(Linear, ReLU,
// ...).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

#include "../input_scaling.h"
#include "../parameters.h"
#include "../step/gram_run.h"
#include "checkpoint_metadata.h"
#include "network_metadata.h"
#include "output_file.h"
#include "safetensors.h"

namespace deviceloop {

/// The network that a weights file holds.
struct SavedNetwork {
  NetworkSpec network;                     ///< widths from the shapes and bias from the names of the tensors
  bool has_metadata = false;               ///< whether the file says more: otherwise the activations are the defaults
  InputScaling scaling{};                  ///< what the network's inputs go through first
  InputScaling target_scaling{};           ///< what the targets went through that it was trained by
  std::vector<std::string> input_names{};  ///< of the columns that the inputs were; empty: they had none
};

/// Throws InvalidArgument, naming the file and the tensor, where the names or shapes are not those of a multilayer
/// perceptron (see parameter_layout) or a dtype is none of F16, BF16, F32 and F64; and for metadata that is malformed
/// (see network_metadata.h) or of another network than the tensors.
/// @{
SavedNetwork read_saved_network(const SafeTensorsFile& file);
NetworkSpec read_network(const SafeTensorsFile& file);
NetworkSpec read_network(const std::string& path);
/// @}

/// Throws as read_saved_network does, and where the file holds another network, by its tensors or by its metadata.
void check_network(const SafeTensorsFile& file, const NetworkSpec& wanted);

/// The parameters of `network` from the file, transposed to [in_features, out_features], converted to `type`. Throws
/// InvalidArgument, naming the file and the tensor, as check_network does, and for a value that is not finite in
/// `type`.
Parameters read_weights(const SafeTensorsFile& file, const NetworkSpec& network, ElementType type);
Parameters read_weights(const std::string& path, const NetworkSpec& network, ElementType type);

/// The reverse of read_weights, with the network's metadata. The caller commits.
void write_weights(OutputFile& file, const NetworkSpec& network, const Parameters& parameters,
                   const InputScaling& scaling = {}, const InputScaling& target_scaling = {},
                   const std::vector<std::string>& input_names = {});

/// What a run in the Gram formulation goes on from beside its parameters.
struct GramState {
  GramProgress progress{};
  Parameters tensors{};  ///< of gram_layout()
};

/// All that a run goes on from: what state_layout() lists, how many steps the optimizer has taken, and what a
/// checkpoint has beside these.
struct SavedState {
  Parameters values;
  std::int64_t steps = 0;
  std::optional<CheckpointMetadata> checkpoint{};  ///< none in files of deviceloop 0.1.0, which have the above alone
  Parameters best{};                               ///< of parameter_layout(), where the metadata have such a best
  std::optional<GramState> gram{};                 ///< where the metadata have gram_steps
};

/// The state of a network that is trained so, with the bits that were saved. Throws InvalidArgument, naming the file
/// and the tensor, where a checkpoint is damaged anywhere, where it is the state of another network, optimizer or
/// precision or, in a checkpoint, of other settings, see difference_of(); and for a value that is not finite.
SavedState read_state(const SafeTensorsFile& file, const NetworkSpec& network, const TrainingSpec& training,
                      Settings settings = Settings::meaning);

/// The metadata of a checkpoint whose checksum holds; nothing for a file that is none. Throws as read_state.
std::optional<CheckpointMetadata> read_checkpoint(const SafeTensorsFile& file);

/// The reverse of read_state: the tensors of write_weights, those of the optimizer in the same way, as
/// "0.weight.momentum", and "optimizer.steps", F64 [1]; the best parameters as "best.0.weight" and the like, those of
/// gram_layout() as they are, "gram.shares" F64 [4]; and the metadata of the network, of the checkpoint, a checksum and
/// `more`. The caller commits.
void write_state(OutputFile& file, const NetworkMetadata& network, const SavedState& state,
                 const SafeTensorsMetadata& more = {});

}  // namespace deviceloop
