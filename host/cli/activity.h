// Whether training can still reach every hidden layer: one whose units are all inactive passes no gradient on.
#pragma once

#include <cstdint>
#include <vector>

#include <deviceloop/spec.h>

#include "parameters.h"

namespace deviceloop::cli {

/// Rows of the data, so few that the network's forward pass over them on one core takes milliseconds: at most 1024 rows
/// and 16 MiB, and 1e8 floating-point operations where that is more than 16 rows; taken at equal distances.
HostMatrix activity_rows(const HostMatrix& x, const NetworkSpec& network, Precision precision);

/// The hidden layers of ReLU, counted from 1, none of whose units is active for any of the rows `x`: whose
/// pre-activations are all below 0, so that relu passes neither a value nor a gradient. None with another activation.
std::vector<int> inactive_layers(const NetworkSpec& network, const Parameters& parameters, const HostMatrix& x);

}  // namespace deviceloop::cli
