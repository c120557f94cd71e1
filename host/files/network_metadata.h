// What a weights file says of its network beside the tensors: all that predicting takes. It is JSON, a text of the
// file's metadata:
//   {"version":1,"widths":[784,128,10],"bias":true,"activation":"relu","output_activation":"identity",
//    "input_scaling":{"factor":0.00392156862745098,"mean":[...],"deviation":[...]},
//    "target_scaling":{"mean":[...],"deviation":[...]},"input_names":["age",...]}
// input_scaling is there if inputs are scaled, its mean and deviation if they are standardized; target_scaling if the
// network was trained by standardized targets, so that outputs times deviation plus mean are in the targets' unit;
// input_names if the inputs were the columns of a table with names.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

#include "../input_scaling.h"
#include "safetensors.h"

namespace deviceloop {

/// Its key in the file's metadata.
constexpr const char* kNetworkKey = "deviceloop.network";

struct NetworkMetadata {
  NetworkSpec network;
  InputScaling scaling{};
  InputScaling target_scaling{};              ///< with the factor 1
  std::vector<std::string> input_names = {};  ///< one an input, UTF-8; empty: they have none
};

/// The text, the same for equal values; numbers read back bit for bit.
std::string network_metadata_text(const NetworkMetadata& metadata);

/// What the file says; nothing where it has no such key. Throws InvalidArgument, naming the file, for a text that is
/// not as above: no JSON, another version, unknown, missing or duplicate keys, values of other types, an activation
/// that does not exist, fewer than two widths, a scaling or names whose numbers do not fit the inputs or the outputs.
/// Whether it fits the tensors is for the caller to check.
std::optional<NetworkMetadata> read_network_metadata(const SafeTensorsFile& file);

/// "its metadata 'deviceloop.network' ", `problem` and what to do, for SafeTensorsFile::refuse.
std::string metadata_problem(const std::string& problem);

}  // namespace deviceloop
