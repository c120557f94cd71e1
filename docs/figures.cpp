// deviceloop_figures FOLDER: draws the pictures of the documentation from the committed records, into a folder. A test
// compares them with the committed ones in docs/tutorial/figures, byte by byte.
#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

#include "drawing/chart.h"
#include "drawing/network_diagram.h"

namespace deviceloop::drawing {
namespace {

constexpr const char* kSource = DEVICELOOP_SOURCE_DIR;

std::string content_of(const std::string& name) {
  std::ifstream file(std::string(kSource) + "/" + name, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file || text.empty()) throw std::runtime_error("cannot read " + name);
  return text;
}

std::string neuron(const std::vector<double>& inputs, const std::vector<double>& weights) {
  Neuron neuron;
  neuron.inputs = inputs;
  neuron.weights = weights;
  for (std::size_t i = 0; i < inputs.size(); ++i) neuron.sum += inputs[i] * weights[i];
  neuron.output = std::max(neuron.sum, 0.0);
  neuron.title = neuron.sum < 0 ? "A neuron that is off" : "A neuron";
  neuron.description = "Each input is multiplied by its weight; the sum " + value_text(neuron.sum) +
                       " goes through ReLU, and the output is " + value_text(neuron.output) + ".";
  return neuron_diagram(neuron, Placement::file);
}

std::string network(std::vector<std::int64_t> widths) {
  NetworkSpec network;
  network.widths = std::move(widths);
  return network_diagram(network, Placement::file);
}

std::string relu() {
  LineChart chart;
  chart.title = "ReLU and the mask of its gradient";
  chart.description =
      "ReLU is 0 for negative z and z itself from 0 on. Its gradient passes from 0 on, where the mask is 1.";
  chart.x_label = "z";
  chart.series = {{"relu(z)", {{-4, 0}, {0, 0}, {4, 4}}, 1}, {"mask of the gradient", {{-4, 0}, {0, 0}}, 2}};
  chart.series.push_back({"", {{0, 1}, {4, 1}}, 2});
  chart.x_range = Point{-4, 4};
  chart.y_range = Point{-0.6, 4};
  chart.labels = {{{0, 0}, "", Anchor::start, 0, 0, 2, Label::Dot::hollow},
                  {{0, 1}, "1 at 0 and above", Anchor::end, -12, 6, 2, Label::Dot::full},
                  {{2.6, 2.6}, "relu(z) = z", Anchor::end, -14, 0, 1},
                  {{-2, 0}, "both 0 below 0", Anchor::middle, 0, -14, 0}};
  return line_chart(chart, Placement::file);
}

std::string square() {
  LineChart chart;
  chart.title = "y = x² and two of its tangents";
  chart.description =
      "At 4 the slope is 8, and y becomes smaller where x becomes smaller; at −4 the slope is −8, and y becomes "
      "smaller where x becomes larger. A step against the gradient does both.";
  chart.x_label = "x";
  Series curve{"y = x²", {}, 1};
  for (int i = -60; i <= 60; ++i) curve.points.push_back({i / 10.0, i / 10.0 * (i / 10.0)});
  chart.series = {curve};
  chart.x_range = Point{-6, 6};
  chart.y_range = Point{0, 36};
  chart.tangents = {{{4, 16}, 8, 1.9, 2}, {{-4, 16}, -8, 1.9, 2}};
  chart.arrows = {{{5.6, 2.4}, {2.8, 2.4}, 3}, {{-5.6, 2.4}, {-2.8, 2.4}, 3}};
  chart.labels = {
      {{4, 16}, "slope 8", Anchor::end, -14, -2, 2},          {{-4, 16}, "slope −8", Anchor::start, 14, -2, 2},
      {{4.4, 2.4}, "x goes down", Anchor::middle, 0, -12, 3}, {{-4.4, 2.4}, "x goes up", Anchor::middle, 0, -12, 3},
      {{0, 0}, "", Anchor::start, 0, 0, 1, Label::Dot::full}, {{0, 0}, "slope 0", Anchor::start, 8, -46, 1}};
  chart.y_label = "y = x²";
  return line_chart(chart, Placement::file);
}

std::string losses() {
  LineChart chart;
  chart.title = "Loss of the starting case";
  chart.description =
      "The sum of squared errors over 500 steps: it rises in the first steps, falls by seven orders of magnitude and "
      "stays at 71.86.";
  chart.x_label = "step";
  chart.y_label = "loss (sum of squared errors)";
  chart.y_scale = Scale::logarithmic;
  chart.x_is_count = true;
  Series series{"loss", {}, 1};
  std::istringstream lines(content_of("tests/reference/starting_case_fp64.csv"));
  std::string line;
  std::getline(lines, line);  // the names
  while (std::getline(lines, line)) {
    Point point;
    if (std::sscanf(line.c_str(), "%lf,%lf", &point.x, &point.y) != 2)
      throw std::runtime_error("starting_case_fp64.csv has no step and loss in '" + line + "'");
    series.points.push_back(point);
  }
  chart.series = {std::move(series)};
  chart.caption = "1000-100-1, 128 samples, gradient descent at a rate of 1e-6, fp64";
  return line_chart(chart, Placement::file);
}

std::string step_time() {
  constexpr const char* kCase = "train/1000-100-1/n=128/fp32";
  // What the results call a way to train, and how the picture does. Not all of the results: deviceloop/persistent is
  // what deviceloop chose itself, and torch/graph-1 is slower than 100 steps in one graph.
  struct Peer {
    const char* name;
    const char* label;
    const char* note;
  };
  constexpr std::array<Peer, 10> kPeers = {{{"deviceloop/gram", "deviceloop, gram", "less work than all others"},
                                            {"deviceloop", "deviceloop", ""},
                                            {"jax/scan", "JAX scan", ""},
                                            {"deviceloop/graph", "deviceloop, graph", "CUDA graph and cuBLASLt"},
                                            {"torch/graph-100", "PyTorch CUDA graph", "100 steps in one graph"},
                                            {"jax/jit", "JAX jit", ""},
                                            {"torch/manual", "PyTorch, eager", "gradients by hand"},
                                            {"torch/autograd", "PyTorch, autograd", ""},
                                            {"torch/compile", "PyTorch compile", ""},
                                            {"cupy", "CuPy", ""}}};
  const auto results = nlohmann::json::parse(content_of("bench/results/h100-2026-11-26b/compare.json"));
  const auto& machine = results.at("machine");
  BarChart chart;
  chart.heading = "Microseconds a step: 1000-100-1, 128 samples";
  chart.title = "Time of a training step beside other programs";
  char number[64];
  for (const Peer& peer : kPeers) {
    const auto& rows = results.at("rows");
    const auto row = std::find_if(rows.begin(), rows.end(), [&](const auto& each) {
      return each.at("case") == kCase && each.at("peer") == peer.name;
    });
    if (row == rows.end()) throw std::runtime_error(std::string("compare.json has no ") + peer.name);
    Bar bar{peer.label, row->at("us_per_step").template get<double>(), "", peer.note,
            std::string(peer.name).starts_with("deviceloop")};
    std::snprintf(number, sizeof number, bar.value < 100 ? "%.1f" : "%.0f", bar.value);
    bar.text = number;
    chart.description += (chart.description.empty() ? "" : ", ") + bar.label + " " + bar.text;
    chart.bars.push_back(bar);
  }
  std::stable_sort(chart.bars.begin(), chart.bars.end(), [](const Bar& a, const Bar& b) { return a.value < b.value; });
  chart.caption = machine.at("gpu").get<std::string>() + ", " + machine.at("date").get<std::string>() + ", commit " +
                  machine.at("commit").get<std::string>() + ", fp32, median of " +
                  std::to_string(machine.at("rounds").get<int>()) +
                  " rounds; data resident, loss of every step included; shorter is better";
  return bar_chart(chart, Placement::file);
}

void write(const std::filesystem::path& folder, const char* name, const std::string& picture) {
  std::ofstream file(folder / name, std::ios::binary);
  file << picture;
  file.close();
  if (!file) throw std::runtime_error("cannot write " + (folder / name).string());
}

void draw(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  write(folder, "neuron.svg", neuron({2, 3, 4}, {1, -1, 5}));
  write(folder, "neuron_negative.svg", neuron({2, 3, 4}, {1, -5, 2}));
  write(folder, "network.svg", network({1000, 100, 1}));
  write(folder, "small_network.svg", network({3, 4, 1}));
  write(folder, "relu.svg", relu());
  write(folder, "square.svg", square());
  write(folder, "losses.svg", losses());
  write(folder, "step_time.svg", step_time());
}

}  // namespace
}  // namespace deviceloop::drawing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: deviceloop_figures FOLDER\n");
    return 2;
  }
  try {
    deviceloop::drawing::draw(argv[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "deviceloop_figures: %s\n", error.what());
    return 1;
  }
  return 0;
}
