// Predictions by launch_tile_product, layer by layer, for executors whose steps are kernels of their own.
#pragma once

#include <cstdint>

#include "../../host/planning/prediction_space.h"
#include "../../host/step/step.h"
#include "../kernels/kernels.h"

namespace deviceloop::cuda {

/// Enqueues the predictions of the rows that lie at space.input, and returns where they will lie. `at` says where an
/// offset of the arena is, `tensor` where a tensor of the step is.
template <class T, class At, class Tensor>
const T* enqueue_tile_predictions(const PredictionSpace& space, const Step& step, std::int64_t rows, const At& at,
                                  const Tensor& tensor, cudaStream_t stream) {
  std::uint64_t in = space.input, out = space.even;
  for (const StepOperation& layer : step.inference) {
    TileProduct<T> product;
    product.shape = {rows, layer.columns, layer.inner};
    product.out = at(out);
    product.a = at(in);
    product.b = tensor(layer.b);
    product.bias = tensor(layer.bias);
    product.precision = step.precision;
    if (layer.activation) product.activation = *layer.activation;
    launch_tile_product(product, stream);
    in = out;
    out = in == space.even ? space.odd : space.even;
  }
  return at(in);
}

}  // namespace deviceloop::cuda
