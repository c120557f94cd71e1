// What a block of the two-layer kernels does between the pre-activations of its hidden units and their gradient: its
// part of the predictions, the exchange by which all blocks receive the predictions, the loss, the output layer's
// gradients.
#pragma once

#include <cmath>
#include <cstdint>

#include "../../host/elementwise.h"
#include "../../host/planning/two_layer_layout.h"
#include "../runtime/device.cuh"
#include "groups.cuh"

namespace deviceloop::cuda {

/// A block's shared memory; the layout has the offsets of its parts.
struct SharedBytes {
  alignas(16) unsigned char bytes[16];
};

/// Loads `count` contiguous elements, aligned to 16 bytes.
template <int count, class T>
__device__ inline void load_vectors(T (&out)[count], const T* from) {
#pragma unroll
  for (int i = 0; i < count; i += kVector<T>) {
    Group<T, kVector<T>> group;
    load_group<true>(group, from, i, count);
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) out[i + k] = group.values[k];
  }
}

/// Adds the `values` of `lanes` lanes, a power of two, and leaves each lane with a part of the sums; `lane` is the
/// number of this lane among them, and lane_step the distance of neighbours. Level by level, from the upper bit of
/// `lane` on, a lane keeps half of its values and sends the other half to the lane that differs in that bit. Lanes
/// whose bit is 0 keep the lower half. At levels that keep `exchanged` values or more, the caller has already exchanged
/// the halves of lanes whose bit is 1, by the order in which it lays out its values, so that nothing is selected there.
/// When a single value is left, both lanes add it.
template <int lanes, int lane_step, int exchanged, int count, class T>
__device__ inline void scatter_sums(T (&values)[count], int lane) {
  int kept = count;
#pragma unroll
  for (int bit = lanes / 2; bit > 0; bit /= 2) {
    const bool splits = kept > 1;
    if (splits) kept /= 2;
    const bool selects = splits && kept < exchanged && (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (i >= kept) continue;
      const int upper = splits ? (kept + i) % count : i;
      const T mine = selects ? values[upper] : values[i];
      const T theirs = selects ? values[i] : values[upper];
      values[i] = mine + warp_shuffle_xor(theirs, static_cast<unsigned>(bit * lane_step));
    }
  }
}

/// Of the direct forms, for one output and clusters of four blocks of eight warps: eight lanes share a sample of the
/// block, four samples a warp. Words lie by parity, rank, warp, cluster and sample: what a warp publishes is 32 bytes.
template <class T>
struct DirectWords {
  int rank, cluster, warp, lane, publishers, samples;  ///< samples: of the block
  int share = lane % 8, of_warp = lane / 8, sample = warp * 4 + of_warp;
  bool has_sample = sample < samples, waits = warp * 4 < samples;  ///< waits: the same in all lanes of a warp
  int first = (rank * 8 + warp) * publishers * 4;
  int offsets[4] = {offset_of(0), offset_of(1), offset_of(2), offset_of(3)};

  /// Of the i-th word that this lane adds, or of another that arrives as well.
  __device__ int offset_of(int i) const {
    const int publisher = share + 8 * i, last = publishers - 1;
    return (publisher < last ? publisher : last) * 4 + (has_sample ? of_warp : 0);
  }
  __device__ T used(int i, T value) const { return share + 8 * i < publishers ? value : T(0); }
  __device__ Tagged<T>* slots_of(Tagged<T>* slots, unsigned tag) const {
    return slots + static_cast<int>(tag % 2) * 4 * 8 * 4 * publishers + first;
  }

  __device__ __forceinline__ void publish_part(Tagged<T>* slots, T part, unsigned tag) const {
    if (share == 0 && has_sample) publish(slots + (cluster * 4 + of_warp), part, tag);
  }
  /// The sum over the clusters, the same bits in all lanes of the sample, in whatever cluster. Clears `arrived` if the
  /// wait failed.
  __device__ __forceinline__ T receive_sum(Tagged<T>* slots, unsigned tag, const Deadline& deadline, std::int64_t step,
                                           bool& arrived) const {
    T values[4] = {};
    if (waits)
      arrived &=
          wait_tagged_at(values, slots, offsets, tag, deadline, two_layer_code(TwoLayerPhase::kPredictions, step));
    T sum = (used(0, values[0]) + used(1, values[1])) + (used(2, values[2]) + used(3, values[3]));
#pragma unroll
    for (unsigned mask = 1; mask < 8; mask *= 2) sum += warp_shuffle_xor(sum, mask);
    return sum;
  }
};

/// A block's part of the output layer. Its hidden units are divided into groups; a group has `batch * group` pairs of
/// a sample and a unit, with the units of a sample next to each other, and thread t owns the pairs t, t + threads(),
/// ... Blocks that hold the same weights, biases or predictions hold the same bits of them.
template <class T, int group>
struct OutputLayer {
  const OutputLayerLayout& layout;
  unsigned char* memory;
  int thread;

  __device__ int threads() const { return static_cast<int>(block_threads()); }
  __device__ int warps() const { return threads() / static_cast<int>(kWarpThreads); }
  __device__ int warp() const { return thread / static_cast<int>(kWarpThreads); }
  __device__ int lane() const { return thread % static_cast<int>(kWarpThreads); }

  __device__ T* at(int place) const { return reinterpret_cast<T*>(memory + place); }
  __device__ T* hidden() const { return at(layout.hidden_at); }
  __device__ T* dz() const { return at(layout.dz_at); }
  __device__ T* weights() const { return at(layout.weight_at); }
  __device__ T* hidden_bias() const { return at(layout.hidden_bias_at); }
  __device__ T* bias() const { return at(layout.bias_at); }
  __device__ int& failed() const { return *reinterpret_cast<int*>(memory + layout.failed_at); }
  __device__ Deadline& deadline() const { return *reinterpret_cast<Deadline*>(memory + layout.deadline_at); }
  __device__ T* gradient(unsigned tag) const {
    return at(layout.gradient_at) + static_cast<int>(tag % 2) * layout.batch * layout.outputs;
  }
  __device__ int pairs() const { return layout.batch * group; }
  __device__ Tagged<T>* slots_of(Tagged<T>* slots, unsigned tag) const {
    return slots + std::int64_t{tag % 2} * layout.publishers * layout.batch * layout.outputs;
  }

  /// Loads from global memory; `first` is the block's first hidden unit. Missing entries are zero.
  __device__ void load(const T* y, const T* w2, const T* b1, const T* b2, int first, const Deadline& until) const {
#pragma unroll 1
    for (int i = thread; i < layout.batch * layout.outputs; i += threads()) at(layout.target_at)[i] = y[i];
#pragma unroll 1
    for (int i = thread; i < layout.outputs; i += threads()) bias()[i] = b2 != nullptr ? b2[i] : T(0);
#pragma unroll 1
    for (int i = thread; i < layout.units; i += threads())
      hidden_bias()[i] = b1 != nullptr && first + i < layout.hidden ? b1[first + i] : T(0);
#pragma unroll 1
    for (int i = thread; i < layout.units * layout.outputs; i += threads()) {
      const std::int64_t from = std::int64_t{first} * layout.outputs + i;
      weights()[i] = from < std::int64_t{layout.hidden} * layout.outputs ? w2[from] : T(0);
    }
#pragma unroll 1
    for (int i = thread; i < layout.groups * layout.dz_rows * group; i += threads()) dz()[i] = T(0);
    if (thread != 0) return;
    failed() = 0;
    deadline() = until;
  }

  /// Stores to global memory. One of the blocks that own the unit `first` calls it; one of all blocks passes b2.
  __device__ void store(T* w2, T* b1, T* b2, int first) const {
    const int units = layout.hidden - first < layout.units ? layout.hidden - first : layout.units;
#pragma unroll 1
    for (int i = thread; i < units * layout.outputs; i += threads())
      w2[std::int64_t{first} * layout.outputs + i] = weights()[i];
    if (b1 != nullptr)
#pragma unroll 1
      for (int i = thread; i < units; i += threads()) b1[first + i] = hidden_bias()[i];
    if (b2 != nullptr)
#pragma unroll 1
      for (int i = thread; i < layout.outputs; i += threads()) b2[i] = bias()[i];
  }

  /// Publishes the block's part of the predictions of the pair's sample, if `publishes`. The whole warp calls it, each
  /// thread for the pair whose h it has written itself; `inside`: it has one. last_h is its h of the last group.
  __device__ void publish_part(Tagged<T>* mine, int pair, bool inside, bool publishes, T last_h, unsigned tag) const {
    const int unit = pair % group, sample = pair / group;
#pragma unroll 1
    for (int output = 0; output < layout.outputs; ++output) {
      T sum = 0;
      if (inside) {
        const int last = layout.groups - 1;
        sum = last_h * weights()[(last * group + unit) * layout.outputs + output];
#pragma unroll 1
        for (int g = 0; g < last; ++g)
          sum = std::fma(hidden()[g * pairs() + pair], weights()[(g * group + unit) * layout.outputs + output], sum);
      }
#pragma unroll
      for (int mask = 1; mask < group; mask *= 2) sum += warp_shuffle_xor(sum, static_cast<unsigned>(mask));
      if (publishes && unit == output % group) publish(mine + sample * layout.outputs + output, sum, tag);
    }
  }

  /// Waits for the parts of the predictions from all publishers, adds them in an order that is the same in every block,
  /// and leaves 2 (p - y) in gradient(tag). False if a wait failed.
  __device__ bool receive_gradient(Tagged<T>* slots, unsigned tag, std::uint64_t code) const {
    constexpr int kSlotsAtOnce = slots_at_once(sizeof(T));
    const int lanes = 1 << layout.lanes_log2, words_of_warp = static_cast<int>(kWarpThreads) >> layout.lanes_log2;
    const int count = layout.batch * layout.outputs, share = lane() & (lanes - 1);
    bool arrived = true;
#pragma unroll 1
    for (int begin = warp() * words_of_warp; begin < count; begin += warps() * words_of_warp) {
      const int word = begin + (lane() >> layout.lanes_log2);
      T sum = 0;
      if (word < count)
#pragma unroll 1
        for (int first = share; first < layout.publishers; first += kSlotsAtOnce * lanes) {
          const int left = (layout.publishers - first + lanes - 1) >> layout.lanes_log2;
          T values[kSlotsAtOnce];
          arrived &= wait_tagged(values, slots + (std::int64_t{first} * count + word), std::int64_t{lanes} * count,
                                 left < kSlotsAtOnce ? left : kSlotsAtOnce, tag, deadline(), code);
#pragma unroll
          for (int i = 0; i < kSlotsAtOnce; ++i) sum += values[i];
        }
#pragma unroll 1
      for (int mask = 1; mask < lanes; mask *= 2) sum += warp_shuffle_xor(sum, static_cast<unsigned>(mask));
      if (share != 0 || word >= count) continue;
      const T prediction = sum + bias()[layout.outputs == 1 ? 0 : word % layout.outputs];
      gradient(tag)[word] = elementwise::squared_error_gradient(prediction - at(layout.target_at)[word]);
    }
    return arrived;
  }

  /// Writes the loss of that step; one warp calls it. Each lane adds at most kTerms squares in T, and these sums in
  /// double.
  __device__ void write_loss(double* loss, unsigned tag) const {
    const int count = layout.batch * layout.outputs;
    double total = 0;
#pragma unroll 1
    for (int begin = lane(); begin < count; begin += static_cast<int>(kWarpThreads) * kTerms) {
      T sum = 0;
#pragma unroll 4
      for (int term = 0; term < kTerms; ++term) {
        const int word = begin + term * static_cast<int>(kWarpThreads);
        if (word >= count) break;
        const T difference = gradient(tag)[word] * T(0.5);  // exact: the gradient is the doubled difference
        sum = std::fma(difference, difference, sum);
      }
      total += static_cast<double>(sum);
    }
#pragma unroll
    for (unsigned mask = kWarpThreads / 2; mask > 0; mask /= 2) total += warp_shuffle_xor(total, mask);
    if (lane() == 0) *loss = total;
  }

  /// As receive_gradient, in step `step`; meanwhile a warp of the grid writes the loss of the step before.
  __device__ bool await_gradient(Tagged<T>* slots, std::int64_t step, unsigned tag, double* losses) const {
    // The loss of the previous step is computed while the predictions are in transit.
    if (step > 0 && block_index() == 0 && warp() == warps() - 1) write_loss(losses + step - 1, tag - 1);
    return receive_gradient(slots, tag, two_layer_code(TwoLayerPhase::kPredictions, step));
  }

  /// Whether no thread of the block has had a wait that failed; `arrived`: this one has not, in this step. A barrier of
  /// the block: all of its threads see the same value and leave together. Blocks that still wait for this one see the
  /// failure.
  __device__ bool all_arrived(bool arrived) const {
    if (!arrived) failed() = 1;
    block_barrier();
    return failed() == 0;
  }

  /// Computes dz of this thread's pairs from the weights before their update, and calls use(group, pair, dz).
  template <class Use>
  __device__ void hidden_gradient(unsigned tag, Use use) const {
#pragma unroll 1
    for (int pair = thread; pair < pairs(); pair += threads())
#pragma unroll 1
      for (int g = 0; g < layout.groups; ++g) {
        const T* const dp = gradient(tag) + pair / group * layout.outputs;
        const T* const w2 = weights() + (g * group + pair % group) * layout.outputs;
        T dh = dp[0] * w2[0];
#pragma unroll 1
        for (int output = 1; output < layout.outputs; ++output) dh = std::fma(dp[output], w2[output], dh);
        const T gradient_of_z = elementwise::relu_gradient_marked(hidden()[g * pairs() + pair], dh);
        dz()[g * layout.dz_rows * group + pair] = gradient_of_z;
        use(g, pair, gradient_of_z);
      }
  }

  /// One step of gradient descent for the weights and, if there are any, the biases. The block's warps share the sums
  /// over samples; a lane adds at most kTerms terms of a sum in T, and the sums of the lanes are added in double.
  __device__ void descend(unsigned tag, T learning_rate, int first, bool has_hidden_bias, bool has_bias) const {
    static_assert(kTwoLayerBatch / (kWarpThreads / group) <= kTerms);
    const int unit = lane() % group, rows = static_cast<int>(kWarpThreads) / group;
    const T* const dp = gradient(tag);
    int sums_until_mine = warp();
    const auto is_mine = [&] {
      const bool mine = sums_until_mine == 0;
      sums_until_mine = mine ? warps() - 1 : sums_until_mine - 1;
      return mine;
    };
    const auto update = [&](T& parameter, T sum, unsigned first_mask, bool writes) {
      auto total = static_cast<double>(sum);
#pragma unroll
      for (unsigned mask = first_mask; mask < kWarpThreads; mask *= 2) total += warp_shuffle_xor(total, mask);
      if (writes) parameter = elementwise::sgd_update(parameter, static_cast<T>(total), learning_rate);
    };
#pragma unroll 1
    for (int g = 0; g < layout.groups; ++g) {
      const T* const h = hidden() + g * pairs();
      const T* const dz_group = dz() + g * layout.dz_rows * group;
      const bool writes = lane() < group && first + g * group + unit < layout.hidden;
#pragma unroll 1
      for (int output = 0; output < layout.outputs; ++output) {
        if (!is_mine()) continue;
        T sum = 0;
#pragma unroll 4
        for (int row = lane() / group; row < layout.batch; row += rows)
          sum = std::fma(h[row * group + unit], dp[row * layout.outputs + output], sum);
        update(weights()[(g * group + unit) * layout.outputs + output], sum, group, writes);
      }
      if (!has_hidden_bias || !is_mine()) continue;
      T sum = 0;
#pragma unroll 4
      for (int row = lane() / group; row < layout.batch; row += rows) sum += dz_group[row * group + unit];
      update(hidden_bias()[g * group + unit], sum, group, writes);
    }
    if (!has_bias) return;
#pragma unroll 1
    for (int output = 0; output < layout.outputs; ++output) {
      if (!is_mine()) continue;
      T sum = 0;
#pragma unroll 4
      for (int row = lane(); row < layout.batch; row += static_cast<int>(kWarpThreads))
        sum += dp[row * layout.outputs + output];
      update(bias()[output], sum, 1, lane() == 0);
    }
  }
};

}  // namespace deviceloop::cuda
