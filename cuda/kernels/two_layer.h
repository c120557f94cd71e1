// One launch that trains inputs -> hidden (ReLU) -> outputs for many full-batch steps: by the equations themselves (the
// primal form), or in the space of samples (the Gram form). T is float or double; pointers are of the current device;
// only the launch is checked for errors.
//
// The blocks of a grid synchronize in every step, so all must be resident: launch no more than resident_...() of them,
// and cooperatively if the device accepts that. `slots` are layout.slots() words, all zero before the first launch. The
// tags first_tag, first_tag + 1, ..., one per step, are nonzero and not in the slots yet. `*failed` is 0 before the
// launch. A wait that lasts until timeout_ns after its block began (0: no limit) ends the whole grid with
// two_layer_code() in `*failed`; then neither the parameters nor the losses not yet written may be used. Steps in one
// launch and in several have the same bits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../host/planning/two_layer_layout.h"

namespace deviceloop::cuda {

template <class T>
struct Tagged;

template <class T>
struct TwoLayerArguments {
  const T* x;      ///< [batch, inputs]
  const T* y;      ///< [batch, outputs]
  T* w1;           ///< [inputs, hidden], in and out, as are all parameters
  T* b1;           ///< [hidden], or null for none
  T* w2;           ///< [hidden, outputs]
  T* b2;           ///< [outputs], or null for none
  double* losses;  ///< [steps]
  Tagged<T>* slots;
  T learning_rate;
  std::int64_t steps;
  bool keep;  ///< else the parameters in memory do not change: a launch of one step computes their loss
  unsigned first_tag;
  std::uint64_t timeout_ns;
  std::uint64_t* failed;
};

/// For the Gram form: Z <- Z - learning_rate K dZ in place of w1 and b1.
template <class T>
struct GramTwoLayerArguments {
  const T* k;  ///< [batch, batch]: X X^T, plus 1 if the hidden layer has a bias
  const T* y;  ///< [batch, outputs]
  T* z;        ///< [batch, hidden], in and out
  T* sum;      ///< [batch, hidden], in and out: each step adds -learning_rate dZ, so that W1 has grown by X^T sum
  T* w2;       ///< [hidden, outputs]
  T* b2;       ///< [outputs], or null for none
  double* losses;
  Tagged<T>* slots;
  T learning_rate;
  std::int64_t steps;
  bool keep;  ///< else the parameters in memory do not change: a launch of one step computes their loss
  unsigned first_tag;
  std::uint64_t timeout_ns;
  std::uint64_t* failed;
};

/// Call it before the first launch of such a layout on a device.
template <class T>
void prepare_two_layer(const TwoLayerLayout& layout, bool cooperative);
template <class T>
void prepare_gram_two_layer(const GramTwoLayerLayout& layout, bool cooperative);

/// How many clusters, or blocks, can be resident on the current device at once. Call it after prepare_...
template <class T>
std::int64_t resident_two_layer(const TwoLayerLayout& layout);
template <class T>
std::int64_t resident_gram_two_layer(const GramTwoLayerLayout& layout);

template <class T>
void launch_two_layer(const TwoLayerArguments<T>& arguments, const TwoLayerLayout& layout, bool cooperative,
                      cudaStream_t stream);
template <class T>
void launch_gram_two_layer(const GramTwoLayerArguments<T>& arguments, const GramTwoLayerLayout& layout,
                           bool cooperative, cudaStream_t stream);

}  // namespace deviceloop::cuda
