// One launch that trains inputs -> hidden (ReLU) -> outputs for many full-batch steps: by the equations themselves (the
// primal form), or in the space of samples (the Gram form). T is float or double; pointers are of the current device;
// nothing is checked but the launch.
//
// The blocks of a grid meet in every step, so all must be resident: launch no more than resident_...() of them, and
// cooperatively where the device accepts that. `slots` are layout.slots() words, all 0 before the first launch. The
// tags first_tag, first_tag + 1, ..., one a step, are not 0 and none is in the slots yet. `failed` is 0 before; a wait
// that exceeds timeout_ns, counted from when its block began (0: never), ends the whole grid with two_layer_code()
// there, and then neither parameters nor the losses not yet written are to be used. Runs in one launch and in several
// have the same bits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../host/planning/two_layer_layout.h"

namespace deviceloop::cuda {

template <class T>
struct Tagged;

template <class T>
struct TwoLayerArguments {
  const T* x;      ///< [samples, inputs]
  const T* y;      ///< [samples, outputs]
  T* w1;           ///< [inputs, hidden], in and out, as are all parameters
  T* b1;           ///< [hidden], or null for none
  T* w2;           ///< [hidden, outputs]
  T* b2;           ///< [outputs], or null for none
  double* losses;  ///< [steps]
  Tagged<T>* slots;
  T learning_rate;
  std::int64_t steps;
  bool keep;  ///< else the parameters stay as they are: a launch of one step has their loss
  unsigned first_tag;
  std::uint64_t timeout_ns;
  std::uint64_t* failed;
};

/// For the Gram form: Z <- Z - learning_rate K dZ in place of w1 and b1.
template <class T>
struct GramTwoLayerArguments {
  const T* k;  ///< [samples, samples]: X X^T, with a bias of the hidden layer + 1
  const T* y;  ///< [samples, outputs]
  T* z;        ///< [samples, hidden], in and out
  T* sum;      ///< [samples, hidden], in and out: each step adds -learning_rate dZ, so that W1 has grown by X^T sum
  T* w2;       ///< [hidden, outputs]
  T* b2;       ///< [outputs], or null for none
  double* losses;
  Tagged<T>* slots;
  T learning_rate;
  std::int64_t steps;
  bool keep;  ///< else the parameters stay as they are: a launch of one step has their loss
  unsigned first_tag;
  std::uint64_t timeout_ns;
  std::uint64_t* failed;
};

/// Before the first launch of such a layout on a device.
template <class T>
void prepare_two_layer(const TwoLayerLayout& layout, bool cooperative);
template <class T>
void prepare_gram_two_layer(const GramTwoLayerLayout& layout, bool cooperative);

/// Clusters, or blocks, that the current device runs at once. After prepare_...
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
