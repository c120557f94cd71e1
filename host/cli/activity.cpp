#include "activity.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "cpu/gemm.h"
#include "elementwise.h"
#include "matrix_ops.h"

namespace deviceloop::cli {
namespace {

constexpr std::int64_t kMostRows = 1024, kFewRows = 16;
constexpr double kMostBytes = 16 << 20, kMostFlops = 1e8;

template <class T>
std::vector<int> inactive_layers_of(const NetworkSpec& network, const Parameters& parameters, const HostMatrix& x) {
  std::vector<int> inactive;
  const T* in = static_cast<const T*>(x.view().data);
  std::vector<T> buffers[2];
  for (int layer = 0; layer + 1 < network.layers(); ++layer) {
    const std::int64_t inputs = network.in_features(layer), outputs = network.out_features(layer);
    const std::size_t index = static_cast<std::size_t>(layer) * (network.bias ? 2 : 1);
    std::vector<T>& h = buffers[layer % 2];
    h.resize(static_cast<std::size_t>(x.rows * outputs));
    // The library's own matrix product: it needs no address space for buffers, which a BLAS might not get.
    own_gemm<T>(Transpose::no, Transpose::no, x.rows, outputs, inputs, T(1), in, inputs,
                static_cast<const T*>(parameters[index].view().data), outputs, T(0), h.data(), outputs);
    const T* const bias = network.bias ? static_cast<const T*>(parameters[index + 1].view().data) : nullptr;
    bool active = false;
    for (std::size_t i = 0; i < h.size(); ++i) {
      if (bias != nullptr) h[i] += bias[i % static_cast<std::size_t>(outputs)];
      active = active || !(h[i] < 0);
      h[i] = elementwise::relu(h[i]);
    }
    if (!active) inactive.push_back(layer + 1);
    in = h.data();
  }
  return inactive;
}

}  // namespace

HostMatrix activity_rows(const HostMatrix& x, const NetworkSpec& network, Precision precision) {
  double flops = 1;
  for (int layer = 0; layer + 1 < network.layers(); ++layer)
    flops += 2 * static_cast<double>(network.in_features(layer)) * static_cast<double>(network.out_features(layer));
  const ElementType type = element_type(precision);
  const double row_bytes = static_cast<double>(x.columns) * static_cast<double>(size_of(type));
  const auto fitting = static_cast<std::int64_t>(
      std::min({std::max(kMostFlops / flops, static_cast<double>(kFewRows)), kMostBytes / row_bytes, 1e9}));
  HostMatrix rows(type, std::min({x.rows, kMostRows, std::max<std::int64_t>(fitting, 1)}), x.columns);
  for (std::int64_t row = 0; row < rows.rows; ++row)
    convert(rows_of(rows.view(), row, 1), rows_of(std::as_const(x).view(), row * (x.rows / rows.rows), 1));
  return rows;
}

std::vector<int> inactive_layers(const NetworkSpec& network, const Parameters& parameters, const HostMatrix& x) {
  if (network.activation != Activation::relu) return {};  // units of the others never stop learning altogether
  return with_type(x.type, [&]<class T>(T*) { return inactive_layers_of<T>(network, parameters, x); });
}

}  // namespace deviceloop::cli
