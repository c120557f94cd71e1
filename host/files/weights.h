// A network's parameters in a safetensors file, with the names and shapes of PyTorch's nn.Sequential(Linear, ReLU,
// ...).
#pragma once

#include <string>

#include <deviceloop/spec.h>

#include "../parameters.h"
#include "output_file.h"

namespace deviceloop {

/// The network that a weights file holds: widths from the shapes, bias from the names. Throws InvalidArgument, naming
/// the file and the tensor, where the names or shapes are not those of a multilayer perceptron (see parameter_layout)
/// or a dtype is neither F32 nor F64.
NetworkSpec read_network(const std::string& path);

/// The parameters of `network` from the file, transposed to [in_features, out_features], converted to `type`. Throws
/// InvalidArgument, naming the file and the tensor, for a tensor that is missing or left over, a shape that does not
/// match, a dtype that is neither F32 nor F64, and a value that is not finite in `type`.
Parameters read_weights(const std::string& path, const NetworkSpec& network, ElementType type);

/// The reverse of read_weights. The caller commits.
void write_weights(OutputFile& file, const NetworkSpec& network, const Parameters& parameters);

}  // namespace deviceloop
