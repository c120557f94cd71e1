// Networks and single neurons as SVG.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

#include "drawing/svg.h"

namespace deviceloop::drawing {

/// The layers as columns of units with their widths below. Of wide layers the first and last units are drawn, of deep
/// networks the first and last layers; an ellipsis stands for the others. The widths are those of a valid network.
std::string network_diagram(const NetworkSpec& network, Placement placement, double width = kPictureWidth);

/// One unit with given numbers: activation(sum of inputs times weights, plus bias) = output.
struct Neuron {
  std::string title, description;
  std::vector<double> inputs, weights;  ///< as many of each
  std::optional<double> bias;
  double sum = 0;
  std::string activation = "relu";
  double output = 0;
};
std::string neuron_diagram(const Neuron& neuron, Placement placement);

}  // namespace deviceloop::drawing
