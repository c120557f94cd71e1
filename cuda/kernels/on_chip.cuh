// Trains a small network for many steps in one launch: see on_chip.h. For on_chip.cu, which has the kernels of one
// cluster, and on_chip_clusters.cu, which has those of several: all together they take minutes to compile.
#pragma once

#include "on_chip.h"

#include "../../host/elementwise.h"
#include "activation_calls.cuh"
#include "loss_rows.cuh"
#include "on_chip_products.cuh"

namespace deviceloop::cuda::on_chip {

using elementwise::StepScalars;

struct OnChipShared {
  alignas(16) unsigned char bytes[16];
};

/// What lies at OnChipLayout::control_at.
struct OnChipControl {
  TransactionBarrier weights_arrived[kOnChipLayers];    ///< the layer's new parameters, of all owners
  TransactionBarrier gradients_arrived[kOnChipLayers];  ///< of the layer's parameters that this block owns, all parts
  // Where the first layer is split by inputs: what it has in place of both.
  TransactionBarrier sums_arrived;             ///< all parts of the pre-activations of the block's rows
  TransactionBarrier output_gradient_arrived;  ///< by the pre-activations of all rows
  double warp_sums[kWarps];                    ///< of the loss
  std::int64_t failed;                         ///< 1 once a wait of this block has failed
};
static_assert(sizeof(OnChipControl) == kOnChipControlBytes);
static_assert(sizeof(TaggedUnit) == kTaggedUnitBytes);

/// What would be copied to many places and take the registers of products, though it is rarely needed: it is called.
/// @{
template <class Barrier>
DEVICELOOP_RARELY_CALLED bool wait_longer(const Barrier* barrier, unsigned parity, std::uint64_t until,
                                          std::uint64_t* failed, std::uint64_t code) {
  return wait_transactions(barrier, parity, {until, failed}, code);
}
template <class T>
DEVICELOOP_RARELY_CALLED elementwise::LossTerm<T> other_loss(LossOfStep loss, T prediction, T target) {
  return elementwise::loss_term(loss, prediction, target);
}
/// @}

__device__ inline bool wait(const TransactionBarrier* barrier, unsigned parity, const Deadline& deadline,
                            std::uint64_t code) {
  return try_wait(barrier, parity) || wait_longer(barrier, parity, deadline.time, deadline.failed, code);
}

template <class T>
__device__ inline elementwise::LossTerm<T> loss_of(const LossOfStep& loss, T prediction, T target) {
  if (loss.kind != Loss::squared_error) return other_loss(loss, prediction, target);
  elementwise::LossTerm<T> term = elementwise::SquaredError()(prediction, target);
  term.gradient *= static_cast<T>(loss.scale);
  return term;
}

/// Units that a thread waits for at once: between clusters each poll takes as long as a read from L2.
inline constexpr int kOnChipAtOnce = 8;

/// A block's work in a launch, of one cluster or of `several`.
template <class T, class Way, bool by_inputs, bool several>
struct OnChipBlock {
  const OnChipArguments<T>& arguments;
  const OnChipLayout& layout;
  unsigned char* memory;
  unsigned rank = cluster_rank();
  unsigned number = several ? block_index() : rank;  ///< of all blocks
  int cluster = several ? static_cast<int>(number >> layout.blocks_log2) : 0;
  int first_cluster_row = cluster * layout.cluster_rows;  ///< of a step
  int cluster_rows = share(layout.batch - first_cluster_row, layout.cluster_rows);
  int first_row = static_cast<int>(rank) * layout.rows;  ///< of the cluster's
  int rows = share(cluster_rows - first_row, layout.rows);
  /// Of the first layer; where it is split by them, the bias is the last of all inputs, but no column of the data.
  int first_input = by_inputs ? static_cast<int>(rank) * layout.layer[0].in : 0;
  int columns = share(layout.inputs - first_input, layout.layer[0].in);
  int inputs = by_inputs ? share(layout.inputs + (layout.bias ? 1 : 0) - first_input, layout.layer[0].in) : columns;

  /// What a block has of what is left for it and those behind it.
  __device__ static int share(int left, int most) { return left < most ? (left > 0 ? left : 0) : most; }

  __device__ static int thread() { return static_cast<int>(thread_index()); }
  __device__ static int lane() { return thread() % static_cast<int>(kWarpThreads); }
  __device__ static int warp() { return thread() / static_cast<int>(kWarpThreads); }

  template <class Element = T>
  __device__ Element* at(int place) const {
    return reinterpret_cast<Element*>(memory + place);
  }
  __device__ OnChipControl& control() const { return *at<OnChipControl>(layout.control_at); }
  __device__ StepScalars<T>& scalars() const { return *at<StepScalars<T>>(layout.scalars_at); }
  __device__ std::int64_t* samples() const { return at<std::int64_t>(layout.sample_at); }
  __device__ int input_rows_padded() const { return by_inputs ? layout.input_rows_padded : layout.rows_padded; }
  /// Of a step with that parity.
  /// @{
  __device__ T* input(unsigned parity) const {
    return at(layout.input_at) + static_cast<int>(parity) * input_rows_padded() * layout.input_stride;
  }
  __device__ T* target(unsigned parity) const {
    return at(layout.target_at) + static_cast<int>(parity) * layout.rows * layout.target_columns;
  }
  __device__ T* row_weights(unsigned parity) const {
    return at(layout.row_weight_at) + static_cast<int>(parity) * layout.rows;
  }
  /// What layer l multiplies.
  __device__ Operand<const T> input_of(int l, unsigned parity) const {
    // One address from a place that is chosen: of two addresses the compiler would not know that both are shared
    // memory.
    const int rows_before = input_rows_padded() * layout.input_stride * static_cast<int>(sizeof(T));
    const int place = l == 0 ? layout.input_at + static_cast<int>(parity) * rows_before : layout.layer[l - 1].output_at;
    return {at(place), l == 0 ? layout.input_stride : layout.layer[l - 1].out_stride};
  }
  /// @}
  /// Whether the layer's parameters are split by its inputs: those of the block never leave it.
  __device__ static bool is_split(int l) { return by_inputs && l == 0; }
  __device__ bool is_last(int l) const { return l == layout.layers - 1; }
  __device__ Activation activation_of(int l) const {
    return is_last(l) ? arguments.output_activation : arguments.activation;
  }
  __device__ bool keeps(int l) const {
    return is_last(l) ? arguments.keeps_last_pre_activation : arguments.keeps_pre_activation;
  }

  /// Units of the layer that this block owns.
  __device__ int owned(int l) const {
    const OnChipLayer& layer = layout.layer[l];
    if (is_split(l)) return inputs * static_cast<int>(layer.units_across.divisor);
    return (layer.units - static_cast<int>(rank) + layout.blocks() - 1) >> layout.blocks_log2;
  }
  __device__ unsigned gradient_bytes(int l) const {
    return static_cast<unsigned>(owned(l) << layout.blocks_log2) * 16u;
  }
  __device__ unsigned weight_bytes(int l) const { return static_cast<unsigned>(layout.layer[l].units) * 16u; }
  __device__ unsigned sums_bytes() const { return static_cast<unsigned>(rows * layout.sums_bytes); }

  /// Where a unit lies.
  struct UnitPlace {
    int row, column;  ///< its first element, of the whole weight; the row of the bias is inputs_of
    T* at;            ///< in this block's memory
  };
  __device__ UnitPlace place_of(int l, int unit) const {
    const OnChipLayer& layer = layout.layer[l];
    const auto row = static_cast<int>(layer.units_across.quotient(static_cast<unsigned>(unit)));
    const int column = (unit - row * static_cast<int>(layer.units_across.divisor)) * kVector<T>;
    const int row_here = row < layer.in ? row : layer.in_padded;
    return {is_split(l) ? first_input + row : row, column,
            at(layer.weight_at) + row_here * layer.weight_stride + column};
  }
  __device__ int inputs_of(int l) const { return is_split(l) ? layout.inputs : layout.layer[l].in; }

  /// A unit in the list of all that the block owns.
  struct Listed {
    bool is_there;
    int l, slot;  ///< which of the layer's that the block owns it is
    int unit;
  };
  __device__ __forceinline__ Listed listed(int index) const {
    int l = 0;
    while (!is_last(l) && index >= layout.layer[l + 1].first_owned) ++l;
    const int slot = index - layout.layer[l].first_owned;
    return {slot < owned(l), l, slot, is_split(l) ? slot : (slot << layout.blocks_log2) + static_cast<int>(rank)};
  }
  /// Of that list, the range that this cluster updates.
  /// @{
  __device__ int first_updated() const { return several ? cluster * layout.updated : 0; }
  __device__ int end_updated() const {
    return several ? first_updated() + share(layout.owned - first_updated(), layout.updated) : layout.owned;
  }
  /// @}

  /// use(layer number, unit, its place in the range), for each unit of this thread that the cluster updates.
  template <class Use>
  __device__ __forceinline__ void each_updated(const Use& use) const {
    const int first = first_updated(), end = end_updated();
#pragma unroll 1
    for (int index = first + thread(); index < end; index += kOnChipThreads) {
      const Listed found = listed(index);
      if (found.is_there) use(found.l, found.unit, index - first);
    }
  }

  // ---- the way of parameters in and out

  /// All else becomes 0: rows and columns that fill up tiles have to be.
  __device__ void load() const {
    for (int i = thread(); i < layout.shared_bytes / 16; i += kOnChipThreads) at<Unit<T>>(0)[i] = {};
    block_barrier();
#pragma unroll 1
    for (int l = 0; l < layout.layers; ++l) {
      const OnChipLayer& layer = layout.layer[l];
      T* const weight = at(layer.weight_at);
      const int first = is_split(l) ? first_input : 0, row_count = is_split(l) ? columns : layer.in;
      for (int row = warp(); row < row_count; row += kWarps)
        for (int column = lane(); column < layer.out; column += static_cast<int>(kWarpThreads))
          weight[row * layer.weight_stride + column] = arguments.weights[l].values[(first + row) * layer.out + column];
      const bool has_bias = is_split(l) ? inputs > columns : layout.bias;
      const int bias_row = is_split(l) ? columns : layer.in_padded;
      for (int column = thread(); column < layer.out && has_bias; column += kOnChipThreads)
        weight[bias_row * layer.weight_stride + column] = arguments.biases[l].values[column];
    }
    for (int row = thread(); by_inputs && row < cluster_rows && inputs > columns; row += kOnChipThreads)
      for (unsigned parity = 0; parity < 2; ++parity) input(parity)[row * layout.input_stride + columns] = T(1);
    each_updated([&](int l, int unit, int index) {
      const UnitPlace place = place_of(l, unit);
      for (int s = 0; s < layout.states; ++s)
        for (int i = 0; i < kVector<T> && place.column + i < layout.layer[l].out; ++i)
          state(s, index)[i] = *global_state(l, place, s, i);
    });
    if (thread() == 0) {
      control().failed = 0;
      for (int l = 0; l < layout.layers; ++l) {
        init_transactions(&control().weights_arrived[l], 1);
        init_transactions(&control().gradients_arrived[l], 1);
      }
      if (by_inputs) {
        init_transactions(&control().sums_arrived, 1);
        init_transactions(&control().output_gradient_arrived, 1);
      }
      fence_transactions_init();
      for (int l = by_inputs ? 1 : 0; l < layout.layers; ++l) {
        arrive_expecting(&control().weights_arrived[l], weight_bytes(l));
        arrive_expecting(&control().gradients_arrived[l], gradient_bytes(l));
      }
      if (by_inputs && rows > 0) arrive_expecting(&control().sums_arrived, sums_bytes());
      if (by_inputs && inputs > 0) announce_output_gradient();
    }
  }

  __device__ T* state(int s, int index) const {
    return at(layout.state_at) + (s * layout.updated + index) * kVector<T>;
  }
  __device__ T* global_state(int l, const UnitPlace& place, int s, int i) const {
    return place.row < inputs_of(l)
               ? arguments.weights[l].states[s] + place.row * layout.layer[l].out + place.column + i
               : arguments.biases[l].states[s] + place.column + i;
  }

  __device__ void store() const {
    each_updated([&](int l, int unit, int index) {
      const OnChipLayer& layer = layout.layer[l];
      const UnitPlace place = place_of(l, unit);
      for (int i = 0; i < kVector<T> && place.column + i < layer.out; ++i) {
        if (place.row < inputs_of(l))
          arguments.weights[l].values[place.row * layer.out + place.column + i] = place.at[i];
        else
          arguments.biases[l].values[place.column + i] = place.at[i];
        for (int s = 0; s < layout.states; ++s) *global_state(l, place, s, i) = state(s, index)[i];
      }
    });
  }

  // ---- the way of data in

  /// Rows of the cluster of which the block has inputs, all where the first layer is split by them, and the first of
  /// them.
  /// @{
  __device__ int input_rows() const { return by_inputs ? cluster_rows : rows; }
  __device__ int first_input_row() const { return by_inputs ? 0 : first_row; }
  /// @}

  /// Which samples those rows are: by the last threads, which have the least else to do.
  __device__ void find_samples(std::int64_t step) const {
    const std::int64_t first = (arguments.first_step + step) * layout.batch + (first_cluster_row + first_input_row());
#pragma unroll 1
    for (int row = kOnChipThreads - 1 - thread(); row < input_rows(); row += kOnChipThreads)
      samples()[row] = arguments.order.sample(first + row, arguments.network);
  }

  /// Begins to copy the block's inputs of those rows, and the targets of its own rows.
  __device__ void begin_rows(std::int64_t step) const {
    const auto parity = static_cast<unsigned>(step % 2);
    const bool in_units = layout.inputs % kVector<T> == 0 && reinterpret_cast<std::uintptr_t>(arguments.x) % 16 == 0;
#pragma unroll 1
    for (int input_row = warp(); input_row < input_rows(); input_row += kWarps) {
      const std::int64_t sample = samples()[input_row];
      const T* const from = arguments.x + sample * layout.inputs + first_input;
      T* const to = input(parity) + input_row * layout.input_stride;
      if (in_units) {
#pragma unroll 1
        for (int unit = lane(); unit < columns / kVector<T>; unit += static_cast<int>(kWarpThreads))
          copy_async(reinterpret_cast<Unit<T>*>(to) + unit, reinterpret_cast<const Unit<T>*>(from) + unit);
      } else {
#pragma unroll 1
        for (int column = lane(); column < columns; column += static_cast<int>(kWarpThreads))
          copy_async(to + column, from + column);
      }
      const int row = input_row + first_input_row() - first_row;  // of the block's own
      if (by_inputs && (row < 0 || row >= rows)) continue;
#pragma unroll 1
      for (int column = lane(); column < layout.target_columns; column += static_cast<int>(kWarpThreads))
        copy_async(target(parity) + row * layout.target_columns + column,
                   arguments.y + sample * layout.target_columns + column);
      if (arguments.row_weights != nullptr && lane() == 0)
        copy_async(row_weights(parity) + row, arguments.row_weights + sample);
    }
  }

  // ---- a step

  /// From values of a row of the product of layer l and its input, from that column on: the output of the layer; of the
  /// last one, where losses are by element, the errors, and their loss is added. Rows and columns that fill up tiles
  /// become 0.
  template <int count>
  __device__ __forceinline__ void activate(int l, int row, int column, unsigned parity, const T (&values)[count],
                                           double& loss) const {
    const OnChipLayer& layer = layout.layer[l];
    const T* const bias = at(layer.weight_at) + layer.in_padded * layer.weight_stride;
    const Activation activation = activation_of(l);
    const bool takes_errors = layer.output_at < 0;
    const int place = row * layer.out_stride + column;
    T kept[count], results[count];
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const bool inside = row < rows && column + k < layer.out;
      kept[k] = inside ? (is_split(l) ? values[k] : values[k] + bias[column + k]) : T(0);
      results[k] = T(0);
      if (!inside) continue;
      const T value =
          activation == Activation::identity ? kept[k] : activation_value(activation, arguments.leaky_slope, kept[k]);
      results[k] = takes_errors ? error(l, row, column + k, parity, value, kept[k], loss) : value;
    }
    store_values(at(takes_errors ? layer.gradient_at : layer.output_at) + place, results);
    if (!takes_errors && keeps(l)) store_values(at(layer.gradient_at) + place, kept);
  }

  /// activate() of a layer; returns this thread's part of the loss.
  __device__ __forceinline__ double forward(int l, unsigned parity) const {
    const OnChipLayer& layer = layout.layer[l];
    double loss = 0;
    const auto finish = [&](int row, int column, int, auto& values) { activate(l, row, column, parity, values, loss); };
    product<Way, true, false, false>(input_of(l, parity), Operand<const T>{at(layer.weight_at), layer.weight_stride},
                                     layer.forward, finish);
    return loss;
  }

  /// Of a first layer that is split by inputs: sends the block's parts of the pre-activations to the blocks that have
  /// their rows.
  __device__ __forceinline__ void send_sums(unsigned parity) const {
    if (inputs == 0) return;
    const OnChipLayer& layer = layout.layer[0];
    const auto across = static_cast<int>(layer.units_across.divisor);
    const auto finish = [&](int row, int column, int, auto& values) {
      if (row >= cluster_rows) return;
      const unsigned owner = layout.rows_of_block.quotient(static_cast<unsigned>(row));
      const int slot = (static_cast<int>(rank) * layout.rows + row - static_cast<int>(owner) * layout.rows) * across;
      each_unit(values, column, across, [&](int unit, const Unit<T>& sent) {
        store_async(remote(at<Unit<T>>(layout.sums_at) + slot + unit, owner), sent,
                    remote(&control().sums_arrived, owner));
      });
    };
    product<Way, true, false, true>(input_of(0, parity), Operand<const T>{at(layer.weight_at), layer.weight_stride},
                                    layer.forward, finish);
  }

  /// Waits for the parts of its rows, adds them in the order of the blocks, and goes on as forward().
  __device__ __forceinline__ double add_sums(std::int64_t step, const Deadline& deadline, bool& arrived) const {
    if (rows == 0) return 0;
    const auto parity = static_cast<unsigned>(step % 2);
    const bool all = wait(&control().sums_arrived, parity, deadline, on_chip_code(OnChipPhase::kSums, step));
    arrived &= all;
    if (thread() == 0 && all) arrive_expecting(&control().sums_arrived, sums_bytes());
    const SmallDivisor& across = layout.layer[0].units_across;
    const int of_block = layout.rows * static_cast<int>(across.divisor);
    double loss = 0;
#pragma unroll 1
    for (int unit = thread(); unit < rows * static_cast<int>(across.divisor); unit += kOnChipThreads) {
      const auto row = static_cast<int>(across.quotient(static_cast<unsigned>(unit)));
      const int column = (unit - row * static_cast<int>(across.divisor)) * kVector<T>;
      const Unit<T> sum = sum_of(at<const Unit<T>>(layout.sums_at) + unit, layout.input_blocks, of_block);
      activate(0, row, column, parity, sum.values, loss);
    }
    return loss;
  }

  /// Of units that lie `stride` units apart.
  __device__ static Unit<T> sum_of(const Unit<T>* parts, int count, int stride) {
    Unit<T> sum = parts[0];
#pragma unroll 4
    for (int i = 1; i < count; ++i) {
      const Unit<T> part = parts[i * stride];
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) sum.values[k] += part.values[k];
    }
    return sum;
  }

  /// use(unit of the row, its values), for values of a row from that column on, of units that the row has.
  template <class Use>
  __device__ __forceinline__ static void each_unit(const T (&values)[kTile], int column, int units, const Use& use) {
#pragma unroll
    for (int part = 0; part < kTile / kVector<T>; ++part) {
      const int unit = column / kVector<T> + part;
      if (unit >= units) continue;
      Unit<T> filled;
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) filled.values[k] = values[part * kVector<T> + k];
      use(unit, filled);
    }
  }

  /// The gradient by the pre-activation `z` of a prediction; adds its loss.
  __device__ __forceinline__ T error(int l, int row, int column, unsigned parity, T prediction, T z,
                                     double& loss) const {
    elementwise::LossTerm<T> term =
        loss_of(arguments.loss, prediction, target(parity)[row * layout.target_columns + column]);
    if (arguments.row_weights != nullptr) term = elementwise::weighted(term, row_weights(parity)[row]);
    loss += static_cast<double>(term.value);
    const Activation activation = activation_of(l);
    if (activation == Activation::identity) return term.gradient;
    return activation_gradient(activation, arguments.leaky_slope, keeps(l) ? z : prediction, term.gradient);
  }

  /// The same where losses are by row, from the predictions: a warp takes a row.
  __device__ double row_errors(unsigned parity) const {
    const int l = layout.layers - 1;
    const OnChipLayer& layer = layout.layer[l];
    const Activation activation = activation_of(l);
    const bool keeps_z = keeps(l);
    double loss = 0;
#pragma unroll 1
    for (int row = warp(); row < rows; row += kWarps) {
      T* const output = at(layer.output_at) + row * layer.out_stride;
      T* const gradient = at(layer.gradient_at) + row * layer.out_stride;
      const T weight = arguments.row_weights != nullptr ? row_weights(parity)[row] : T(1);
      // Where z is kept it lies in `gradient`, and the predictions are not needed any more.
      const T value =
          cross_entropy_row(keeps_z ? output : gradient, output, target(parity) + row * layout.target_columns,
                            layer.out, arguments.loss.has_classes, static_cast<T>(arguments.loss.scale) * weight);
      if (lane() == 0) loss += static_cast<double>(value * weight);
      if (activation == Activation::identity) continue;
      for (int j = lane(); j < layer.out; j += static_cast<int>(kWarpThreads))
        gradient[j] = activation_gradient(activation, arguments.leaky_slope, keeps_z ? gradient[j] : output[j],
                                          keeps_z ? output[j] : gradient[j]);
    }
    return loss;
  }

  /// The block's part of the loss of a step is that of its warps, each in a word of its own until the barrier.
  __device__ void keep_loss(double of_thread) const {
    const double sum = warp_sum(of_thread);
    if (lane() == 0) control().warp_sums[warp()] = sum;
  }
  __device__ void write_loss(std::int64_t step) const {
    if (thread() != kOnChipThreads - 1) return;
    double sum = 0;
    for (const double each : control().warp_sums) sum += each;
    arguments.loss_parts[step * layout.all_blocks() + number] = sum;
  }

  /// The gradient by the pre-activation of layer l - 1.
  __device__ __forceinline__ void input_gradient(int l) const {
    const OnChipLayer &layer = layout.layer[l], &before = layout.layer[l - 1];
    T* const gradient = at(before.gradient_at);
    const T* const kept = keeps(l - 1) ? gradient : at(before.output_at);
    const auto finish = [&](int row, int first_column, int step, auto& values) {
      constexpr int count = sizeof(values) / sizeof(T);
#pragma unroll
      for (int k = 0; k < count; ++k) {
        const int column = first_column + k * step;
        const int place = row * before.out_stride + column;
        const bool inside = row < rows && column < layer.in;
        gradient[place] = inside ? gradient_of(arguments.activation, kept[place], values[k]) : T(0);
      }
    };
    product<Way, true, true, false>(Operand<const T>{at(layer.gradient_at), layer.out_stride},
                                    Operand<const T>{at(layer.weight_at), layer.weight_stride}, layer.input_gradient,
                                    finish);
  }
  __device__ T gradient_of(Activation activation, T kept, T dh) const {
    return activation == Activation::identity ? dh : activation_gradient(activation, arguments.leaky_slope, kept, dh);
  }

  /// Of a first layer that is split by inputs: the gradient by the pre-activations of the block's rows goes to all
  /// blocks with inputs.
  __device__ __forceinline__ void send_output_gradient() const {
    const OnChipLayer& layer = layout.layer[0];
    const auto across = static_cast<int>(layer.units_across.divisor);
#pragma unroll 1
    for (int index = thread(); index < rows * across; index += kOnChipThreads) {
      const auto row = static_cast<int>(layer.units_across.quotient(static_cast<unsigned>(index)));
      const int column = (index - row * across) * kVector<T>;
      const Unit<T> sent = *reinterpret_cast<const Unit<T>*>(at(layer.gradient_at) + row * layer.out_stride + column);
      Unit<T>* const to =
          reinterpret_cast<Unit<T>*>(at(layout.output_gradient_at) + (first_row + row) * layer.out_stride + column);
      // Each begins with itself: else all would send to the same block at once.
      unsigned peer = inputs > 0 ? rank : 0;
#pragma unroll 4
      for (int i = 0; i < layout.input_blocks; ++i) {
        store_async(remote(to, peer), sent, remote(&control().output_gradient_arrived, peer));
        if (++peer == static_cast<unsigned>(layout.input_blocks)) peer = 0;
      }
    }
  }
  __device__ void announce_output_gradient() const {
    arrive_expecting(&control().output_gradient_arrived,
                     static_cast<unsigned>(cluster_rows * layout.output_gradient_bytes));
  }
  __device__ void await_output_gradient(std::int64_t step, const Deadline& deadline, bool& arrived) const {
    const bool all = wait(&control().output_gradient_arrived, static_cast<unsigned>(step % 2), deadline,
                          on_chip_code(OnChipPhase::kOutputGradients, step));
    arrived &= all;
    if (thread() == 0 && all) announce_output_gradient();
  }

  /// Sends kTile elements of the block's part of the gradient of layer l to their owners; of a layer that is split by
  /// inputs keeps its own, or sends it to the cluster that updates it.
  __device__ __forceinline__ void send_gradient(int l, int row, int first_column, const T (&values)[kTile],
                                                unsigned tag) const {
    const OnChipLayer& layer = layout.layer[l];
    const auto across = static_cast<int>(layer.units_across.divisor);
    each_unit(values, first_column, across, [&](int column, const Unit<T>& sent) {
      const int unit = row * across + column;
      if (is_split(l)) {
        const int slot = unit - first_updated();
        if (!several || (slot >= 0 && slot < layout.updated))
          at<Unit<T>>(layer.received_at)[slot] = sent;
        else
          publish(sums(cluster) + unit, sent, tag);
        return;
      }
      const auto owner = static_cast<unsigned>(unit & (layout.blocks() - 1));
      Unit<T>* const slot =
          at<Unit<T>>(layer.received_at) + static_cast<int>(rank) * layer.owned + (unit >> layout.blocks_log2);
      store_async(remote(slot, owner), sent, remote(&control().gradients_arrived[l], owner));
    });
  }

  /// The block's part of the gradient of layer l's parameters.
  __device__ __forceinline__ void weight_gradient(int l, std::int64_t step) const {
    const auto parity = static_cast<unsigned>(step % 2);
    const unsigned tag = tag_of(step);
    const OnChipLayer& layer = layout.layer[l];
    const auto finish = [&](int row, int column, int, auto& values) {
      if (row < layer.in) send_gradient(l, row, column, values, tag);
    };
    const Operand<const T> gradient{at(is_split(l) ? layout.output_gradient_at : layer.gradient_at), layer.out_stride};
    product<Way, false, false, true>(input_of(l, parity), gradient, layer.weight_gradient, finish);
    // The bias: at most kTerms rows are added in T, from there in double.
    if (!layout.bias || is_split(l) || warp() != kWarps - 1 - l) return;
#pragma unroll 1
    for (int column = lane(); column < static_cast<int>(layer.weight_gradient.across.divisor);
         column += static_cast<int>(kWarpThreads)) {
      double totals[kTile] = {};
#pragma unroll 1
      for (int first = 0; first < layout.rows_padded; first += kTerms) {
        T sums[kTile] = {};
#pragma unroll 4
        for (int row = first; row < first + kTerms && row < layout.rows_padded; ++row) {
          T values[kTile];
          load_tile_row(values, gradient.at + row * gradient.stride + column * kTile);
#pragma unroll
          for (int k = 0; k < kTile; ++k) sums[k] += values[k];
        }
#pragma unroll
        for (int k = 0; k < kTile; ++k) totals[k] += static_cast<double>(sums[k]);
      }
      T values[kTile];
#pragma unroll
      for (int k = 0; k < kTile; ++k) values[k] = static_cast<T>(totals[k]);
      send_gradient(l, layer.in, column * kTile, values, tag);
    }
  }

  /// The gradient of a unit: its parts, which it waits for, added in the order of the blocks. Of a layer that is split
  /// by inputs it is there, in that place of the range. Clears `arrived` if a wait failed.
  __device__ __forceinline__ Unit<T> gradient_sum(int l, int slot, std::int64_t step, const Deadline& deadline,
                                                  bool& arrived) const {
    const OnChipLayer& layer = layout.layer[l];
    if (!is_split(l)) {
      TransactionBarrier* const gradients = &control().gradients_arrived[l];
      const bool all =
          wait(gradients, static_cast<unsigned>(step % 2), deadline, on_chip_code(OnChipPhase::kGradients, step));
      arrived &= all;
      if (slot == 0 && all) arrive_expecting(gradients, gradient_bytes(l));
    }
    return sum_of(at<const Unit<T>>(layer.received_at) + slot, is_split(l) ? 1 : layout.blocks(), layer.owned);
  }

  /// New values of a unit to all blocks, unless no other has it.
  __device__ __forceinline__ void send_weights(int l, T* place, const Unit<T>& values) const {
    Unit<T>* const to = reinterpret_cast<Unit<T>*>(place);
    if (is_split(l)) {
      *to = values;
      return;
    }
    const int blocks = layout.blocks();
    // Each begins with another one: else all would send to the same block at once.
#pragma unroll 4
    for (int i = 0; i < blocks; ++i) {
      const unsigned peer = (rank + static_cast<unsigned>(i)) & static_cast<unsigned>(blocks - 1);
      store_async(remote(to, peer), values, remote(&control().weights_arrived[l], peer));
    }
  }

  /// Waits for the gradients of the block's units that the cluster updates, updates them, and sends them to all blocks.
  /// Clears `arrived` if a wait failed.
  __device__ __forceinline__ void update(std::int64_t step, const Deadline& deadline, bool& arrived) const {
    each_updated([&](int l, int unit, int index) {
      const OnChipLayer& layer = layout.layer[l];
      const int slot = is_split(l) ? index : unit >> layout.blocks_log2;
      Unit<T> sum = gradient_sum(l, slot, step, deadline, arrived);
      if (several) sum = sum_of_clusters(first_updated() + index, sum, step, deadline, arrived);
      const UnitPlace place = place_of(l, unit);
      Unit<T> values = *reinterpret_cast<const Unit<T>*>(place.at);
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) {
        if (place.column + k >= layer.out) continue;
        T states[elementwise::kMostStates] = {};
#pragma unroll
        for (int s = 0; s < elementwise::kMostStates; ++s)
          if (s < layout.states) states[s] = state(s, index)[k];
        elementwise::update(arguments.optimizer, values.values[k], states, sum.values[k], scalars());
#pragma unroll
        for (int s = 0; s < elementwise::kMostStates; ++s)
          if (s < layout.states) state(s, index)[k] = states[s];
      }
      if (several) publish(new_weights() + (first_updated() + index), values, tag_of(step));
      send_weights(l, place.at, values);
    });
  }

  // ---- between clusters: words of units by their number in the list of all that the blocks of this rank own

  __device__ unsigned tag_of(std::int64_t step) const { return arguments.first_tag + static_cast<unsigned>(step); }
  __device__ TaggedUnit* sums(int of_cluster) const {
    return arguments.tagged +
           ((of_cluster << layout.blocks_log2) + static_cast<int>(rank)) * std::int64_t{layout.owned};
  }
  __device__ TaggedUnit* new_weights() const { return sums(layout.clusters); }

  /// Number i of the list without the range that this cluster updates; from layout.owned on there is none.
  __device__ int number_of_others(int i) const { return i < first_updated() ? i : i - first_updated() + end_updated(); }

  /// Waits for the gradients of the block's units that other clusters update, and sends them there; those of a first
  /// layer that is split by inputs have been sent. Clears `arrived` if a wait failed.
  __device__ __forceinline__ void publish_sums(std::int64_t step, const Deadline& deadline, bool& arrived) const {
#pragma unroll 1
    for (int i = thread();; i += kOnChipThreads) {
      const int index = number_of_others(i);
      if (index >= layout.owned) return;
      const Listed found = listed(index);
      if (!found.is_there || is_split(found.l)) continue;
      publish(sums(cluster) + index, gradient_sum(found.l, found.slot, step, deadline, arrived), tag_of(step));
    }
  }

  /// `mine` and the sums of all other clusters, which it waits for, added in the order of the clusters. Clears
  /// `arrived` if a wait failed.
  __device__ __forceinline__ Unit<T> sum_of_clusters(int index, const Unit<T>& mine, std::int64_t step,
                                                     const Deadline& deadline, bool& arrived) const {
    const std::int64_t of_cluster = std::int64_t{layout.owned} << layout.blocks_log2;
    Unit<T> sum{};
#pragma unroll 1
    for (int first = 0; first < layout.clusters; first += kOnChipAtOnce) {
      Unit<T> parts[kOnChipAtOnce];
      int offsets[kOnChipAtOnce];
#pragma unroll
      for (int i = 0; i < kOnChipAtOnce; ++i) {
        const bool is_other = first + i < layout.clusters && first + i != cluster;
        offsets[i] = is_other ? static_cast<int>((first + i) * of_cluster) : -1;
        parts[i] = mine;
      }
      arrived &= wait_tagged_at(parts, sums(0) + index, offsets, tag_of(step), deadline,
                                on_chip_code(OnChipPhase::kClusterGradients, step));
#pragma unroll
      for (int i = 0; i < kOnChipAtOnce; ++i) {
        if (first + i >= layout.clusters) continue;
        if (first + i == 0) {
          sum = parts[0];
          continue;
        }
#pragma unroll
        for (int k = 0; k < kVector<T>; ++k) sum.values[k] += parts[i].values[k];
      }
    }
    return sum;
  }

  /// Waits for the block's units that other clusters have updated, and sends them to all blocks. Clears `arrived` if a
  /// wait failed.
  __device__ __forceinline__ void take_weights(std::int64_t step, const Deadline& deadline, bool& arrived) const {
#pragma unroll 1
    for (int first = thread(); number_of_others(first) < layout.owned; first += kOnChipAtOnce * kOnChipThreads) {
      Unit<T> values[kOnChipAtOnce];
      int offsets[kOnChipAtOnce];
#pragma unroll
      for (int i = 0; i < kOnChipAtOnce; ++i) {
        const int index = number_of_others(first + i * kOnChipThreads);
        offsets[i] = index < layout.owned && listed(index).is_there ? index : -1;
      }
      arrived &= wait_tagged_at(values, new_weights(), offsets, tag_of(step), deadline,
                                on_chip_code(OnChipPhase::kClusterWeights, step));
#pragma unroll
      for (int i = 0; i < kOnChipAtOnce; ++i) {
        if (offsets[i] < 0) continue;
        const Listed found = listed(offsets[i]);
        send_weights(found.l, place_of(found.l, found.unit).at, values[i]);
      }
    }
  }

  /// Waits until all blocks have come here.
  __device__ bool await_all_blocks(std::int64_t step, const Deadline& deadline) const {
    bool arrived = true;
    if (thread() == 0) {
      arrive(arguments.blocks_done);
      arrived = wait_until(arguments.blocks_done, arguments.done_before + static_cast<unsigned>(layout.all_blocks()),
                           deadline, on_chip_code(OnChipPhase::kLosses, step));
    }
    return all_arrived(arrived);
  }

  /// Waits for the parameters that follow from that step.
  __device__ bool await_weights(int l, std::int64_t step, const Deadline& deadline) const {
    return wait(&control().weights_arrived[l], static_cast<unsigned>(step % 2), deadline,
                on_chip_code(OnChipPhase::kWeights, step));
  }

  /// Whether no thread of the block has had a wait that failed. A barrier of the block: all of its threads see the
  /// same.
  __device__ bool all_arrived(bool arrived) const {
    if (!arrived) control().failed = 1;
    block_barrier();
    return control().failed == 0;
  }

  /// The block's part of all steps; false if a wait failed.
  __device__ __forceinline__ bool run(const Deadline& deadline) const {
    constexpr int kScalarWords = sizeof(StepScalars<T>) / sizeof(std::uint64_t);
    const int layers = layout.layers;
    bool arrived = true;
    std::int64_t step = 0;
#pragma unroll 1
    for (; step < arguments.steps; ++step) {
      const auto parity = static_cast<unsigned>(step % 2);
      std::uint64_t scalar_word = 0;
      if (thread() < kScalarWords)
        scalar_word =
            reinterpret_cast<const std::uint64_t*>(arguments.scalars + step * arguments.scalar_stride)[thread()];
      double loss = 0;
#pragma unroll 1
      for (int l = 0; l < layers; ++l) {
        if (is_split(l)) {
          send_sums(parity);
          if (step + 1 < arguments.steps) begin_rows(step + 1);
          loss += add_sums(step, deadline, arrived);
        } else {
          if (step > 0) {
            const bool all = await_weights(l, step - 1, deadline);
            arrived &= all;
            if (thread() == 0 && all) arrive_expecting(&control().weights_arrived[l], weight_bytes(l));
          }
          loss += forward(l, parity);
        }
        if (is_last(l) && layout.layer[l].output_at < 0) keep_loss(loss);
        block_barrier();
        if (l > 0) continue;
        if (thread() < kScalarWords) reinterpret_cast<std::uint64_t*>(&scalars())[thread()] = scalar_word;
        if (!by_inputs && step + 1 < arguments.steps) begin_rows(step + 1);
      }
      if (layout.layer[layers - 1].output_at >= 0) {
        keep_loss(row_errors(parity));
        block_barrier();
      }
      write_loss(step);
      if (arguments.forward_only) return true;
#pragma unroll 1
      for (int l = layers - 1; l > 0; --l) {
        input_gradient(l);
        block_barrier();
      }
      if (by_inputs) send_output_gradient();
#pragma unroll 1
      for (int i = 0; i < layers; ++i) {
        const int l = by_inputs ? (i + 1 < layers ? i + 1 : 0) : i;
        if (is_split(l)) {
          if (inputs == 0) continue;
          await_output_gradient(step, deadline, arrived);
        }
        weight_gradient(l, step);
      }
      wait_copies();
      if (!all_arrived(arrived)) return false;
      if (several) publish_sums(step, deadline, arrived);
      update(step, deadline, arrived);
      if (step + 2 < arguments.steps) find_samples(step + 2);
      if (several) take_weights(step, deadline, arrived);
      if (by_inputs) block_barrier();
    }
#pragma unroll 1
    for (int l = by_inputs ? 1 : 0; l < layers && step > 0; ++l) arrived &= await_weights(l, step - 1, deadline);
    return arrived;
  }
};

/// The blocks of a cluster share its rows of a step. A step, where | is a barrier of the block:
///
///   for each layer: wait for its parameters; forward |
///   [the errors of rows of predictions, where losses are by row |]
///   for each layer from the last to the second: the gradient of its input |
///   for each layer: its part of the gradient of the parameters, sent to their owners |
///   for each unit of parameters that the block owns: wait for the parts of its gradient, add them, update, send to all
///
/// The first layer's gradients go out first, because its parameters are needed first. The rows of the next step are
/// copied behind the first layer's forward; which samples those of the one after it are is computed at the end.
///
/// Of a first layer that is split by its inputs instead, each block with inputs has the product of all rows with its
/// share of the parameters:
///
///   the block's parts of the pre-activations, sent to the blocks that have their rows; begin to copy the next inputs
///   wait for the parts of the block's rows, add them; activate |
///   all of the above that concerns other layers and losses; the first layer's output gradient, sent to all
///   for each other layer: its part of the gradient of the parameters, sent to their owners
///   wait for the output gradient of all rows; the gradient of the block's share of the first layer |
///   update as above, those of the first layer without any exchange |
///
/// Of several clusters, in place of the update:
///
///   for each unit that the block owns and another cluster updates: wait for the parts of its gradient, add them,
///   publish for each unit that the block owns and its cluster updates: the same sum, wait for those of the other
///   clusters, add them in the order of the clusters, update, publish, send to all for each unit that the block owns
///   and another cluster updates: wait for its new value, send it to all
///
/// Of a first layer that is split by inputs a block has its sums as results of a product, which publishes them at once.
///
/// Memory ordering. What blocks of a cluster send each other are asynchronous stores that count at a barrier of
/// transactions in the receiver. Each barrier has one phase a step, announced one step ahead by one thread of its
/// block, and whoever reads what was sent has waited for that phase itself; nothing else orders these stores, and
/// nothing depends on the order of two of them. So three things have to hold.
///
/// Nothing lands where something is still being read. A layer's parameters land in a block once an owner has the parts
/// of the gradient from all blocks, also from this one; each of its threads sends parts only behind the barrier that
/// follows the last read of any parameters in the step, that of the second layer's input gradient, or, of one layer
/// alone, its forward. The owner itself reads its units before it sends them. Parts of a gradient land in their owner
/// in step s + 1 after their sender has waited, forward, for the parameters of all layers from step s, so for all units
/// of this layer; an owner's thread sends a unit when it has added the parts that it consists of, as the sum itself
/// goes into what it sends. Other units' parts are read by threads that send those units.
///
/// No phase ends before it was announced, and none is missed. Thread 0 announces the next parameters of a layer when it
/// has waited for those of the step before, and passes the forward's barrier behind that; the parameters of this step
/// cannot land in full before all threads of the block have sent parts of the gradient, behind that barrier, which they
/// pass after their own wait: so a phase cannot end while a thread waits for the one before. The thread with the
/// block's first unit of a layer announces the layer's next parts before it sends its unit; until that has landed
/// everywhere no block sends the next parts; and until all other threads of the block have sent their units of the
/// layer, neither.
///
/// Nothing lands in a block that has ended. At the end each block waits for the last parameters; the last parts of
/// gradients were waited for in the step. Behind a wait that failed let_stores_land() takes the place of both.
///
/// The two exchanges of a first layer that is split by its inputs depend on each other in turn, and the same holds of
/// them. Call sums what lands in a block with rows, and gradients what lands in a block with inputs; each block with
/// inputs sends sums to all with rows, and each of those gradients to all with inputs. The sums of step s + 1 are sent
/// behind the last barrier of step s, and so once the sender has waited for the gradients of all blocks with rows,
/// which those sent behind the barrier that follows their reads of the sums of s: the sums are not read any more. The
/// gradients of s + 1 are sent behind the barrier after the wait for the sums of s + 1 of all blocks with inputs, which
/// those sent behind the barrier that follows their reads of the gradients of s. Thread 0 announces the next phase when
/// it has waited for the one before, ahead of the same barriers: what a phase needs is sent only after its block has
/// passed them, all threads having waited for the phase before. Each block waits in every step for all that lands there
/// in it; a launch for the loss alone sends no gradients.
///
/// All other data in shared memory belong to the block and are ordered by its barriers. Between a step's last barrier
/// and the next step's first are the update, which uses the parts received, the block's own units, their states and the
/// scalars, and the forward of the first layer, which writes its output (for one layer alone its errors): all reads of
/// that were before the barrier. The scalars of a step are written behind the forward's barrier, after every update of
/// the step before. The rows of step s + 1 are copied to where those of s - 1 were, which were last read before the
/// last barrier of s - 1; samples() is written behind the last barrier of a step and read behind the first of the next.
/// Split by inputs there is one more barrier behind the update and the samples: what the next forward reads of the
/// parameters is not sent to it, and it begins to copy the next inputs ahead of its first barrier.
///
/// Nothing of that changes with several clusters. An owner sends a unit, updated here or taken from another cluster,
/// behind the sum of its parts of the gradient, as that has gone into it, by way of the other cluster too; the thread
/// with the block's first unit announces the layer's next parts ahead of that, and each thread waits for a phase of a
/// layer's gradients before it sends its last unit of the layer, so that the next phase cannot end before.
///
/// Between clusters go words with tags: no fence is needed, as tag and value are one word that is written and read as a
/// whole. They need no second place by the parity of the step, because a unit passes to and fro between the same
/// blocks: in a step each block of its rank publishes its sum, the one whose cluster updates it reads all of these,
/// publishes the new value, and the others read that.
///  - The sum of step s is overwritten in s + 1 by its publisher, and read by one block alone, which publishes the new
///    value of s once it has read the sums of s. The publisher has that value before it computes anything of s + 1 that
///    depends on parameters: a thread publishes the sum of a unit when it has the parts of all blocks of its cluster,
///    each of which has waited for all parameters of s, that unit among them; split by inputs, behind the barrier at
///    the end of s, which each thread of the block passes when it has the new values of its units.
///  - The new value of step s is overwritten in s + 1 by its publisher once it has read the sums of s + 1 of all other
///    clusters, and each of them has read the new value of s before it published that sum, for the same reason.
/// Nobody waits for what waits for itself: all sums of a block are published before it waits for another cluster, and
/// its new values before it waits for those of others; and a wait within the cluster is for what is sent ahead of all
/// waits for other clusters in a step, or behind waits that end for the same reason. All clusters run at once, or the
/// launch would wait for those that do not.
///
/// A block's parameters in global memory are read as a launch begins and written as it ends, by other clusters for
/// those that read them: a block has published a sum of step 0, from which all that is written follows, once it and all
/// blocks of its cluster with a part of that sum have read what they train; what a cluster writes at the end of no
/// steps is what was read.
///
/// Each block leaves its part of each loss in global memory; they are added at the end of the launch, behind a barrier
/// of the cluster, or once all blocks have counted themselves in.
template <class T, class Way, bool by_inputs, bool several>
__global__ void __launch_bounds__(kOnChipThreads, 1) on_chip_kernel(OnChipArguments<T> arguments, OnChipLayout layout) {
  const OnChipBlock<T, Way, by_inputs, several> block{arguments, layout, shared<OnChipShared>().bytes};
  const Deadline deadline{arguments.timeout_ns == 0 ? 0 : clock_ns() + arguments.timeout_ns, arguments.failed};
  block.load();
  if (arguments.steps > 0) block.find_samples(0);
  block_barrier();
  if (arguments.steps > 0) block.begin_rows(0);
  wait_copies();
  block_barrier();
  if (arguments.steps > 1) block.find_samples(1);
  cluster_barrier();  // all barriers of transactions are there
  const bool arrived = block.all_arrived(block.run(deadline));
  if (arrived && !arguments.forward_only) block.store();
  cluster_barrier();
  if (!arrived) return let_stores_land();
  if (several && !block.await_all_blocks(arguments.steps, deadline)) return;
  const int blocks = layout.all_blocks();
  for (std::int64_t step = std::int64_t{block.number} * kOnChipThreads + block.thread(); step < arguments.steps;
       step += std::int64_t{kOnChipThreads} * blocks) {
    double sum = 0;
#pragma unroll 1
    for (int from = 0; from < blocks; ++from) sum += arguments.loss_parts[step * blocks + from];
    arguments.losses[step] = sum * arguments.loss.scale;
  }
}

template <class T>
using Kernel = void (*)(OnChipArguments<T>, OnChipLayout);

template <class T, bool several>
Kernel<T> kernel_of(const OnChipLayout& layout) {
  const auto by = [&]<class Way>(Way) -> Kernel<T> {
    return layout.by_inputs ? on_chip_kernel<T, Way, true, several> : on_chip_kernel<T, Way, false, several>;
  };
  if constexpr (sizeof(T) == 4)
    if (layout.tf32x3) return by(ThreeTf32());
  return by(FusedMultiplyAdds());
}

/// kernel_of<T, true>, by on_chip_clusters.cu.
template <class T>
Kernel<T> kernel_of_clusters(const OnChipLayout& layout);

}  // namespace deviceloop::cuda::on_chip
