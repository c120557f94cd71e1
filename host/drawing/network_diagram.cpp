#include "drawing/network_diagram.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "drawing/chart.h"
#include "names.h"

namespace deviceloop::drawing {
namespace {

constexpr std::int64_t kMostUnits = 8;  // of a layer; of a wider one 3 above and 3 below the ellipsis are drawn
constexpr int kEndUnits = 3;
constexpr std::size_t kFirstLayers = 4, kLastLayers = 3;
constexpr double kUnits = 230;  // the height that units have

std::string circle(double x, double y, double radius, const std::string& classes) {
  return element("circle", {{"cx", x}, {"cy", y}, {"r", radius}, {"class", classes}});
}

/// "x₁", "w₂".
std::string indexed(const char* name, std::size_t index) {
  constexpr const char* kDigits[] = {"₀", "₁", "₂", "₃", "₄", "₅", "₆", "₇", "₈", "₉"};
  std::string result = name;
  for (const char c : std::to_string(index)) result += kDigits[c - '0'];
  return result;
}

struct Column {
  std::string heading;
  std::int64_t width = 0;  // 0: stands for layers that are not drawn
  double x = 0;
  std::vector<double> units;  // their heights
  bool has_ellipsis = false;
};

std::vector<Column> columns_of(const std::vector<std::int64_t>& widths) {
  std::vector<Column> columns;
  const bool cut = widths.size() > kFirstLayers + kLastLayers + 1;
  const bool few = widths.size() <= 4;
  for (std::size_t i = 0; i < widths.size(); ++i) {
    const bool left_out = cut && i >= kFirstLayers && i < widths.size() - kLastLayers;
    if (left_out && i > kFirstLayers) continue;
    Column column;
    column.width = left_out ? 0 : widths[i];
    if (i == 0)
      column.heading = widths[i] == 1 ? "input" : "inputs";
    else if (i + 1 == widths.size())
      column.heading = widths[i] == 1 ? "output" : "outputs";
    else if (!left_out && few)
      column.heading = widths.size() == 3 ? "hidden" : "hidden " + std::to_string(i);
    columns.push_back(column);
  }
  return columns;
}

void place_units(Column& column, double top) {
  column.has_ellipsis = column.width > kMostUnits;
  const double middle = top + kUnits / 2;
  if (column.has_ellipsis) {
    constexpr double kStep = 30;
    for (int i = 0; i < kEndUnits; ++i) column.units.push_back(top + 15 + kStep * i);
    for (int i = kEndUnits; i > 0; --i) column.units.push_back(top + kUnits - 15 - kStep * (i - 1));
    return;
  }
  const auto count = static_cast<double>(column.width);
  const double step = column.width > 1 ? std::min(48.0, (kUnits - 24) / (count - 1)) : 0;
  for (std::int64_t i = 0; i < column.width; ++i)
    column.units.push_back(middle + step * (static_cast<double>(i) - (count - 1) / 2));
}

std::string dots(double x, double y, bool downward) {
  std::string markup;
  for (const int i : {-1, 0, 1}) markup += circle(downward ? x : x + 10 * i, downward ? y + 10 * i : y, 2.4, "dot");
  return markup;
}

}  // namespace

std::string network_diagram(const NetworkSpec& network, Placement placement, double width) {
  constexpr double kRadius = 10, kTop = 34, kSide = 56;
  std::vector<Column> columns = columns_of(network.widths);
  const double step = (width - 2 * kSide) / static_cast<double>(columns.size() - 1);
  for (std::size_t i = 0; i < columns.size(); ++i) {
    columns[i].x = kSide + step * static_cast<double>(i);
    place_units(columns[i], kTop);
  }
  // Where wide numbers would touch, every second one is a row lower.
  double row = 0;
  for (const Column& column : columns)
    if (kBold * text_width(std::to_string(column.width), kFontSize) > step) row = 22;
  std::string edges, nodes;
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const Column& column = columns[i];
    if (i > 0)
      for (const double from : columns[i - 1].units)
        for (const double to : column.units) edges += line(columns[i - 1].x, from, column.x, to, "edge");
    for (const double y : column.units) nodes += circle(column.x, y, kRadius, "node");
    if (column.has_ellipsis) nodes += dots(column.x, kTop + kUnits / 2, true);
    if (column.width == 0) nodes += dots(column.x, kTop + kUnits / 2, false);
    if (!column.heading.empty()) nodes += text(column.x, 18, Anchor::middle, "muted", column.heading);
    if (column.width != 0)
      nodes += text(column.x, kTop + kUnits + 26 + (i % 2 == 1 ? row : 0), Anchor::middle, "strong",
                    std::to_string(column.width));
  }
  const std::string hidden = activation_text(network.activation, network.leaky_slope);
  const std::string output = activation_text(network.output_activation, network.leaky_slope);
  std::string facts = network.widths.size() > 2 ? "hidden layers: " + hidden + "; " : "";
  facts += "output: " + output + (network.bias ? "; a bias in every layer" : "; no biases");
  double bottom = kTop + kUnits + 34 + row;
  for (const std::string& each : wrapped(facts, kFontSize, width)) {
    nodes += text(width / 2, bottom + 22, Anchor::middle, "muted", each);
    bottom += 22;
  }
  std::string widths;
  for (const Column& column : columns)
    widths += (widths.empty() ? "" : "-") + (column.width == 0 ? "..." : std::to_string(column.width));
  return picture({width, bottom + 10, "Network " + widths,
                  "The layers as columns of units, every unit connected with all of the next layer; " + facts},
                 placement, edges + nodes);
}

std::string neuron_diagram(const Neuron& neuron, Placement placement) {
  constexpr double kRow = 78, kInput = 82, kSum = 298, kActivation = 418, kOutput = 536, kRadius = 25;
  const auto rows = static_cast<double>(neuron.inputs.size() + (neuron.bias ? 1 : 0));
  const double top = 40, middle = top + kRow * (rows - 1) / 2;
  std::string edges, nodes;
  const auto input = [&](std::size_t row, const std::string& name, const std::string& value,
                         const std::string& weight) {
    const double y = top + kRow * static_cast<double>(row);
    edges += line(kInput, y, kSum, middle, "axis");
    nodes += text(kInput - kRadius - 12, y + 5.5, Anchor::end, "muted", name);
    nodes += circle(kInput, y, kRadius, "node") + text(kInput, y + 6, Anchor::middle, "strong", value);
    // Above the edge, a third of the way.
    nodes +=
        text(kInput + (kSum - kInput) * 0.36, y + (middle - y) * 0.36 - 12, Anchor::middle, "fill2 strong", weight);
  };
  std::string formula;
  const auto factor = [](double value) { return value < 0 ? "(" + value_text(value) + ")" : value_text(value); };
  for (std::size_t i = 0; i < neuron.inputs.size(); ++i) {
    input(i, indexed("x", i + 1), value_text(neuron.inputs[i]),
          indexed("w", i + 1) + " = " + value_text(neuron.weights[i]));
    formula += (i == 0 ? "" : " + ") + value_text(neuron.inputs[i]) + " × " + factor(neuron.weights[i]);
  }
  if (neuron.bias) {
    input(neuron.inputs.size(), "", "1", "bias = " + value_text(*neuron.bias));
    formula += " + " + factor(*neuron.bias);
  }
  formula += " = " + value_text(neuron.sum);
  edges += line(kSum, middle, kOutput, middle, "axis");
  constexpr double kBox = 46;
  nodes += circle(kSum, middle, kRadius + 7, "node") +
           text(kSum, middle + 6, Anchor::middle, "strong", value_text(neuron.sum)) +
           text(kSum, middle - kRadius - 18, Anchor::middle, "muted", "sum");
  nodes += element("rect", {{"x", kActivation - kBox},
                            {"y", middle - kRadius},
                            {"width", 2 * kBox},
                            {"height", 2 * kRadius},
                            {"rx", 8.0},
                            {"class", "node"}}) +
           text(kActivation, middle + 6, Anchor::middle, "strong", neuron.activation) +
           text(kActivation, middle - kRadius - 18, Anchor::middle, "muted", "activation");
  nodes += circle(kOutput, middle, kRadius + 1, "node") +
           text(kOutput, middle + 6, Anchor::middle, "strong", value_text(neuron.output)) +
           text(kOutput, middle - kRadius - 18, Anchor::middle, "muted", "output");
  const double bottom = top + kRow * (rows - 1) + kRadius;
  nodes +=
      text(kPictureWidth / 2, bottom + 36, Anchor::middle, "",
           formula + ",  " + neuron.activation + "(" + value_text(neuron.sum) + ") = " + value_text(neuron.output));
  return picture({kPictureWidth, bottom + 50, neuron.title, neuron.description}, placement, edges + nodes);
}

}  // namespace deviceloop::drawing
