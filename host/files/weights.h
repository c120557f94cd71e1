// A network's parameters in a safetensors file, with the names and shapes of PyTorch's nn.Sequential(Linear, ReLU,
// ...).
#pragma once

#include <string>

#include <deviceloop/spec.h>

#include "../parameters.h"
#include "output_file.h"
#include "safetensors.h"

namespace deviceloop {

/// The network that a weights file holds: widths from the shapes, bias from the names. Throws InvalidArgument, naming
/// the file and the tensor, where the names or shapes are not those of a multilayer perceptron (see parameter_layout)
/// or a dtype is none of F16, BF16, F32 and F64.
NetworkSpec read_network(const SafeTensorsFile& file);
NetworkSpec read_network(const std::string& path);

/// The parameters of `network` from the file, transposed to [in_features, out_features], converted to `type`. Throws
/// InvalidArgument, naming the file and the tensor, for a tensor that is missing or left over, a shape that does not
/// match, another dtype than those above, and a value that is not finite in `type`.
Parameters read_weights(const SafeTensorsFile& file, const NetworkSpec& network, ElementType type);
Parameters read_weights(const std::string& path, const NetworkSpec& network, ElementType type);

/// The reverse of read_weights. The caller commits.
void write_weights(OutputFile& file, const NetworkSpec& network, const Parameters& parameters);

}  // namespace deviceloop
