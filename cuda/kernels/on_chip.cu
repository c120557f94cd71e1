// Trains a small network for many steps in one launch of one cluster: see on_chip.h.
#include "on_chip.h"

#include <cmath>

#include "../../host/elementwise.h"
#include "../runtime/launch.h"
#include "activation_calls.cuh"
#include "groups.cuh"
#include "loss_rows.cuh"

namespace deviceloop::cuda {

using elementwise::StepScalars;

namespace {

constexpr int kWarps = kOnChipThreads / static_cast<int>(kWarpThreads);
constexpr int kTile = kOnChipTile;

struct OnChipShared {
  alignas(16) unsigned char bytes[16];
};

/// What lies at OnChipLayout::control_at.
struct OnChipControl {
  TransactionBarrier weights_arrived[kOnChipLayers];    ///< the layer's new parameters, of all owners
  TransactionBarrier gradients_arrived[kOnChipLayers];  ///< of the layer's parameters that this block owns, all parts
  double warp_sums[kWarps];                             ///< of the loss
  std::int64_t failed;                                  ///< 1 once a wait of this block has failed
};
static_assert(sizeof(OnChipControl) == kOnChipControlBytes);

/// 16 bytes: what blocks send each other.
template <class T>
using Unit = Group<T, kVector<T>>;

/// kTile neighbouring elements, aligned to 16 bytes.
/// @{
template <class T>
__device__ __forceinline__ void load_tile_row(T (&out)[kTile], const T* from) {
#pragma unroll
  for (int i = 0; i < kTile; i += kVector<T>) {
    Unit<T> unit;
    load_group<true>(unit, from, i, kTile);
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) out[i + k] = unit.values[k];
  }
}
template <class T>
__device__ __forceinline__ void store_tile_row(T* to, const T (&values)[kTile]) {
#pragma unroll
  for (int i = 0; i < kTile; i += kVector<T>) {
    Unit<T> unit;
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) unit.values[k] = values[i + k];
    store_group<true>(to, unit, i, kTile);
  }
}
/// @}

/// A matrix in shared memory.
template <class T>
struct Operand {
  T* at;
  int stride;
};

/// How tiles are multiplied: here by fused multiply-adds in T. Another way has to call finish(i, j, values) for each
/// row i of a thread's tile, or a part of it from column j on.
struct FusedMultiplyAdds {
  /// A lane's part of a tile of the product of a and b, in `sums`: it takes every `slices`th group of the inner
  /// dimension. The rows of an operand that lies by the inner dimension are rows `tiles` apart, so that lanes with
  /// neighbouring tiles read neighbouring rows; those of one that lies by its other dimension are neighbours in memory.
  template <int slices, bool a_by_inner, bool b_by_inner, class T>
  static __device__ __forceinline__ void multiply(T (&sums)[kTile * kTile], const Operand<const T>& a,
                                                  const Operand<const T>& b, const OnChipProduct& cut, int down,
                                                  int column, int slice) {
    const T* a_at = a.at + (a_by_inner ? down * a.stride + slice * kTile : slice * kTile * a.stride + down * kTile);
    const T* b_at = b.at + (b_by_inner ? column * b.stride + slice * kTile : slice * kTile * b.stride + column * kTile);
    const int a_step = a_by_inner ? cut.tiles_down * a.stride : a.stride;
    const int b_step = b_by_inner ? static_cast<int>(cut.across.divisor) * b.stride : b.stride;
    const int a_next = slices * kTile * (a_by_inner ? 1 : a.stride),
              b_next = slices * kTile * (b_by_inner ? 1 : b.stride);
#pragma unroll 2
    for (int group = slice; group < cut.inner; group += slices, a_at += a_next, b_at += b_next) {
      T a_values[kTile][kTile], b_values[kTile][kTile];
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        load_tile_row(a_values[i], a_at + i * a_step);
        load_tile_row(b_values[i], b_at + i * b_step);
      }
#pragma unroll
      for (int k = 0; k < kTile; ++k)
#pragma unroll
        for (int i = 0; i < kTile; ++i)
#pragma unroll
          for (int j = 0; j < kTile; ++j)
            sums[i * kTile + j] = std::fma(a_by_inner ? a_values[i][k] : a_values[k][i],
                                           b_by_inner ? b_values[j][k] : b_values[k][j], sums[i * kTile + j]);
    }
  }

  /// Adds the sums of the `slices` lanes that share a tile, `step` lanes apart, pairwise: level by level, from the
  /// upper bit of `slice` on, a lane keeps half of its values. It is left with those from slice * 16 / slices on.
  template <int slices, class T>
  static __device__ __forceinline__ void add_slices(T (&sums)[kTile * kTile], int slice) {
    constexpr int kStep = static_cast<int>(kWarpThreads) / slices;
    int kept = kTile * kTile;
#pragma unroll
    for (int bit = slices / 2; bit > 0; bit /= 2) {
      kept /= 2;
      const bool upper = (slice & bit) != 0;
#pragma unroll
      for (int i = 0; i < kTile * kTile; ++i) {
        if (i >= kept) continue;
        const T mine = upper ? sums[(kept + i) % (kTile * kTile)] : sums[i];
        const T theirs = upper ? sums[i] : sums[(kept + i) % (kTile * kTile)];
        sums[i] = mine + warp_shuffle_xor(theirs, static_cast<unsigned>(bit * kStep));
      }
    }
  }

  template <int slices, bool a_by_inner, bool b_by_inner, class T, class Finish>
  static __device__ __forceinline__ void run(const Operand<const T>& a, const Operand<const T>& b,
                                             const OnChipProduct& cut, const Finish& finish) {
    constexpr int kLanes = static_cast<int>(kWarpThreads) / slices;  // with a tile of their own
    const auto thread = static_cast<int>(thread_index());
    const int lane = thread % static_cast<int>(kWarpThreads), warp = thread / static_cast<int>(kWarpThreads);
    const int slice = lane / kLanes;
#pragma unroll 1
    for (int first = warp * kLanes; first < cut.tiles; first += kWarps * kLanes) {
      const int tile = first + lane % kLanes;
      const int inside = tile < cut.tiles ? tile : cut.tiles - 1;
      const auto down = static_cast<int>(cut.across.quotient(static_cast<unsigned>(inside)));
      const int column = inside - down * static_cast<int>(cut.across.divisor);
      T sums[kTile * kTile] = {};
      multiply<slices, a_by_inner, b_by_inner>(sums, a, b, cut, down, column, slice);
      add_slices<slices>(sums, slice);
      if (tile >= cut.tiles) continue;
      if constexpr (slices <= kTile) {
#pragma unroll
        for (int i = 0; i < kTile / slices; ++i) {
          T row[kTile];
#pragma unroll
          for (int j = 0; j < kTile; ++j) row[j] = sums[i * kTile + j];
          finish(down, column, slice * (kTile / slices) + i, 0, row);
        }
      } else {
        static_assert(slices == kTile * kTile);
        T element[1] = {sums[0]};
        finish(down, column, slice / kTile, slice % kTile, element);
      }
    }
  }
};

/// finish(down, column, i, j, values): values of the product a b, of row i and from column j on of the tile that is the
/// `column`th of the `down`th row of tiles. The order of a sum depends on the layout alone.
template <class Way, bool a_by_inner, bool b_by_inner, int most_slices, class T, class Finish>
__device__ __forceinline__ void product(const Operand<const T>& a, const Operand<const T>& b, const OnChipProduct& cut,
                                        const Finish& finish) {
  if (cut.slices == 1)
    Way::template run<1, a_by_inner, b_by_inner>(a, b, cut, finish);
  else if (most_slices == 4 || cut.slices == 4)
    Way::template run<4, a_by_inner, b_by_inner>(a, b, cut, finish);
  else if constexpr (most_slices == 16)
    Way::template run<16, a_by_inner, b_by_inner>(a, b, cut, finish);
}

/// What would be copied to many places and take the registers of products, though it is rarely needed: it is called.
/// @{
template <class Barrier>
DEVICELOOP_RARELY_CALLED bool wait_longer(const Barrier* barrier, unsigned parity, std::uint64_t until,
                                          std::uint64_t* failed, std::uint64_t code) {
  return wait_transactions(barrier, parity, {until, failed}, code);
}
template <class T>
DEVICELOOP_RARELY_CALLED elementwise::LossTerm<T> other_loss(const LossOfStep& loss, T prediction, T target) {
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

/// A block's work in a launch.
template <class T, class Way>
struct OnChipBlock {
  const OnChipArguments<T>& arguments;
  const OnChipLayout& layout;
  unsigned char* memory;
  unsigned rank = cluster_rank();
  int first_row = static_cast<int>(rank) * layout.rows;  ///< of a step
  int rows =
      layout.batch - first_row < layout.rows ? (layout.batch > first_row ? layout.batch - first_row : 0) : layout.rows;

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
  /// Of a step with that parity.
  /// @{
  __device__ T* input(unsigned parity) const {
    return at(layout.input_at) + static_cast<int>(parity) * layout.rows_padded * layout.input_stride;
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
    const int rows_before = layout.rows_padded * layout.input_stride * static_cast<int>(sizeof(T));
    const int place = l == 0 ? layout.input_at + static_cast<int>(parity) * rows_before : layout.layer[l - 1].output_at;
    return {at(place), l == 0 ? layout.input_stride : layout.layer[l - 1].out_stride};
  }
  /// @}
  __device__ bool is_last(int l) const { return l == layout.layers - 1; }
  __device__ Activation activation_of(int l) const {
    return is_last(l) ? arguments.output_activation : arguments.activation;
  }
  __device__ bool keeps(int l) const {
    return is_last(l) ? arguments.keeps_last_pre_activation : arguments.keeps_pre_activation;
  }

  /// Units of the layer that this block owns.
  __device__ int owned(const OnChipLayer& layer) const {
    return (layer.units - static_cast<int>(rank) + layout.blocks() - 1) >> layout.blocks_log2;
  }
  __device__ unsigned gradient_bytes(const OnChipLayer& layer) const {
    return static_cast<unsigned>(owned(layer) << layout.blocks_log2) * 16u;
  }
  __device__ static unsigned weight_bytes(const OnChipLayer& layer) { return static_cast<unsigned>(layer.units) * 16u; }

  /// Where a unit lies.
  struct UnitPlace {
    int row, column;  ///< its first element; the row of the bias is layer.in
    T* at;            ///< in this block's memory
  };
  __device__ UnitPlace place_of(const OnChipLayer& layer, int unit) const {
    const auto row = static_cast<int>(layer.units_across.quotient(static_cast<unsigned>(unit)));
    const int column = (unit - row * static_cast<int>(layer.units_across.divisor)) * kVector<T>;
    const int row_here = row < layer.in ? row : layer.in_padded;
    return {row, column, at(layer.weight_at) + row_here * layer.weight_stride + column};
  }

  /// use(layer number, unit, number among all that the block owns), for each unit of this thread.
  template <class Use>
  __device__ __forceinline__ void each_owned(const Use& use) const {
#pragma unroll 1
    for (int index = thread(); index < layout.owned; index += kOnChipThreads) {
      int l = 0;
      while (!is_last(l) && index >= layout.layer[l + 1].first_owned) ++l;
      const int slot = index - layout.layer[l].first_owned;
      if (slot < owned(layout.layer[l])) use(l, (slot << layout.blocks_log2) + static_cast<int>(rank), index);
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
      for (int row = warp(); row < layer.in; row += kWarps)
        for (int column = lane(); column < layer.out; column += static_cast<int>(kWarpThreads))
          weight[row * layer.weight_stride + column] = arguments.weights[l].values[row * layer.out + column];
      if (layout.bias)
        for (int column = thread(); column < layer.out; column += kOnChipThreads)
          weight[layer.in_padded * layer.weight_stride + column] = arguments.biases[l].values[column];
    }
    each_owned([&](int l, int unit, int index) {
      const OnChipLayer& layer = layout.layer[l];
      const UnitPlace place = place_of(layer, unit);
      for (int s = 0; s < layout.states; ++s)
        for (int i = 0; i < kVector<T> && place.column + i < layer.out; ++i)
          state(s, index)[i] = *global_state(l, layer, place, s, i);
    });
    if (thread() == 0) {
      control().failed = 0;
      for (int l = 0; l < layout.layers; ++l) {
        init_transactions(&control().weights_arrived[l], 1);
        init_transactions(&control().gradients_arrived[l], 1);
      }
      fence_transactions_init();
      for (int l = 0; l < layout.layers; ++l) {
        arrive_expecting(&control().weights_arrived[l], weight_bytes(layout.layer[l]));
        arrive_expecting(&control().gradients_arrived[l], gradient_bytes(layout.layer[l]));
      }
    }
  }

  __device__ T* state(int s, int index) const { return at(layout.state_at) + (s * layout.owned + index) * kVector<T>; }
  __device__ T* global_state(int l, const OnChipLayer& layer, const UnitPlace& place, int s, int i) const {
    return place.row < layer.in ? arguments.weights[l].states[s] + place.row * layer.out + place.column + i
                                : arguments.biases[l].states[s] + place.column + i;
  }

  __device__ void store() const {
    each_owned([&](int l, int unit, int index) {
      const OnChipLayer& layer = layout.layer[l];
      const UnitPlace place = place_of(layer, unit);
      for (int i = 0; i < kVector<T> && place.column + i < layer.out; ++i) {
        if (place.row < layer.in)
          arguments.weights[l].values[place.row * layer.out + place.column + i] = place.at[i];
        else
          arguments.biases[l].values[place.column + i] = place.at[i];
        for (int s = 0; s < layout.states; ++s) *global_state(l, layer, place, s, i) = state(s, index)[i];
      }
    });
  }

  // ---- the way of data in

  /// Which samples the block's rows of a step are: by the last threads, which have the least else to do.
  __device__ void find_samples(std::int64_t step) const {
    const std::int64_t first = (arguments.first_step + step) * layout.batch + first_row;
#pragma unroll 1
    for (int row = kOnChipThreads - 1 - thread(); row < rows; row += kOnChipThreads)
      samples()[row] = arguments.order.sample(first + row, arguments.network);
  }

  /// Begins to copy those rows.
  __device__ void begin_rows(std::int64_t step) const {
    const auto parity = static_cast<unsigned>(step % 2);
    const bool in_units = layout.inputs % kVector<T> == 0 && reinterpret_cast<std::uintptr_t>(arguments.x) % 16 == 0;
#pragma unroll 1
    for (int row = warp(); row < rows; row += kWarps) {
      const std::int64_t sample = samples()[row];
      const T* const from = arguments.x + sample * layout.inputs;
      T* const to = input(parity) + row * layout.input_stride;
      if (in_units) {
#pragma unroll 1
        for (int unit = lane(); unit < layout.inputs / kVector<T>; unit += static_cast<int>(kWarpThreads))
          copy_async(reinterpret_cast<Unit<T>*>(to) + unit, reinterpret_cast<const Unit<T>*>(from) + unit);
      } else {
#pragma unroll 1
        for (int column = lane(); column < layout.inputs; column += static_cast<int>(kWarpThreads))
          copy_async(to + column, from + column);
      }
#pragma unroll 1
      for (int column = lane(); column < layout.target_columns; column += static_cast<int>(kWarpThreads))
        copy_async(target(parity) + row * layout.target_columns + column,
                   arguments.y + sample * layout.target_columns + column);
      if (arguments.row_weights != nullptr && lane() == 0)
        copy_async(row_weights(parity) + row, arguments.row_weights + sample);
    }
  }

  // ---- a step

  /// The output of layer l; of the last one, where losses are by element, the errors, and this thread's part of the
  /// loss. Rows and columns that fill up tiles become 0.
  __device__ __forceinline__ double forward(int l, unsigned parity) const {
    const OnChipLayer& layer = layout.layer[l];
    const T* const bias = at(layer.weight_at) + layer.in_padded * layer.weight_stride;
    const Activation activation = activation_of(l);
    const bool takes_errors = layer.output_at < 0;
    double loss = 0;
    const auto finish = [&](int down, int tile_column, int i, int j, auto& values) {
      constexpr int count = sizeof(values) / sizeof(T);
      const int row = down + i * layer.forward.tiles_down, column = tile_column * kTile + j;
      const int place = row * layer.out_stride + column;
      T kept[count], results[count];
#pragma unroll
      for (int k = 0; k < count; ++k) {
        const bool inside = row < rows && column + k < layer.out;
        kept[k] = inside ? values[k] + bias[column + k] : T(0);
        results[k] = T(0);
        if (!inside) continue;
        const T value =
            activation == Activation::identity ? kept[k] : activation_value(activation, arguments.leaky_slope, kept[k]);
        results[k] = takes_errors ? error(l, row, column + k, parity, value, kept[k], loss) : value;
      }
      T* const out = at(takes_errors ? layer.gradient_at : layer.output_at) + place;
      if constexpr (count == kTile)
        store_tile_row(out, results);
      else
        out[0] = results[0];
      if (takes_errors || !keeps(l)) return;
      T* const pre_activation = at(layer.gradient_at) + place;
      if constexpr (count == kTile)
        store_tile_row(pre_activation, kept);
      else
        pre_activation[0] = kept[0];
    };
    product<Way, true, false, 16>(input_of(l, parity), Operand<const T>{at(layer.weight_at), layer.weight_stride},
                                  layer.forward, finish);
    return loss;
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
    arguments.loss_parts[(step << layout.blocks_log2) + rank] = sum;
  }

  /// The gradient by the pre-activation of layer l - 1.
  __device__ __forceinline__ void input_gradient(int l) const {
    const OnChipLayer &layer = layout.layer[l], &before = layout.layer[l - 1];
    const auto across = static_cast<int>(layer.input_gradient.across.divisor);
    T* const gradient = at(before.gradient_at);
    const T* const kept = keeps(l - 1) ? gradient : at(before.output_at);
    const auto finish = [&](int down, int tile_column, int i, int j, auto& values) {
      constexpr int count = sizeof(values) / sizeof(T);
      const int row = down + i * layer.input_gradient.tiles_down;
#pragma unroll
      for (int k = 0; k < count; ++k) {
        const int column = tile_column + (j + k) * across;
        const int place = row * before.out_stride + column;
        const bool inside = row < rows && column < layer.in;
        gradient[place] = inside ? gradient_of(arguments.activation, kept[place], values[k]) : T(0);
      }
    };
    product<Way, true, true, 16>(Operand<const T>{at(layer.gradient_at), layer.out_stride},
                                 Operand<const T>{at(layer.weight_at), layer.weight_stride}, layer.input_gradient,
                                 finish);
  }
  __device__ T gradient_of(Activation activation, T kept, T dh) const {
    return activation == Activation::identity ? dh : activation_gradient(activation, arguments.leaky_slope, kept, dh);
  }

  /// Sends kTile elements of the block's part of the gradient of layer l to their owners.
  __device__ __forceinline__ void send_gradient(int l, int row, int tile_column, const T (&values)[kTile]) const {
    const OnChipLayer& layer = layout.layer[l];
    const auto across = static_cast<int>(layer.units_across.divisor);
#pragma unroll
    for (int part = 0; part < kTile / kVector<T>; ++part) {
      const int column = tile_column * (kTile / kVector<T>)+part;
      if (column >= across) continue;
      const int unit = row * across + column;
      const auto owner = static_cast<unsigned>(unit & (layout.blocks() - 1));
      Unit<T>* const slot =
          at<Unit<T>>(layer.received_at) + static_cast<int>(rank) * layer.owned + (unit >> layout.blocks_log2);
      Unit<T> sent;
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) sent.values[k] = values[part * kVector<T> + k];
      store_async(remote(slot, owner), sent, remote(&control().gradients_arrived[l], owner));
    }
  }

  /// The block's part of the gradient of layer l's parameters.
  __device__ __forceinline__ void weight_gradient(int l, unsigned parity) const {
    const OnChipLayer& layer = layout.layer[l];
    const auto finish = [&](int down, int tile_column, int i, int, auto& values) {
      const int row = down * kTile + i;
      if (row < layer.in) send_gradient(l, row, tile_column, values);
    };
    const Operand<const T> gradient{at(layer.gradient_at), layer.out_stride};
    product<Way, false, false, 4>(input_of(l, parity), gradient, layer.weight_gradient, finish);
    // The bias: at most kTerms rows are added in T, from there in double.
    if (!layout.bias || warp() != kWarps - 1 - l) return;
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
      send_gradient(l, layer.in, column, values);
    }
  }

  /// Waits for the parts of the gradient of the block's units, adds them in the order of the blocks, updates the units,
  /// and sends them to all blocks. Clears `arrived` if a wait failed.
  __device__ __forceinline__ void update(std::int64_t step, const Deadline& deadline, bool& arrived) const {
    const auto parity = static_cast<unsigned>(step % 2);
    const int blocks = layout.blocks();
    each_owned([&](int l, int unit, int index) {
      const OnChipLayer& layer = layout.layer[l];
      const int slot = unit >> layout.blocks_log2;
      TransactionBarrier* const gradients = &control().gradients_arrived[l];
      const bool all = wait(gradients, parity, deadline, on_chip_code(OnChipPhase::kGradients, step));
      arrived &= all;
      if (slot == 0 && all) arrive_expecting(gradients, gradient_bytes(layer));
      const Unit<T>* const parts = at<const Unit<T>>(layer.received_at) + slot;
      Unit<T> sum = parts[0];
#pragma unroll 4
      for (int from = 1; from < blocks; ++from) {
        const Unit<T> part = parts[from * layer.owned];
#pragma unroll
        for (int k = 0; k < kVector<T>; ++k) sum.values[k] += part.values[k];
      }
      const UnitPlace place = place_of(layer, unit);
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
      Unit<T>* const to = reinterpret_cast<Unit<T>*>(place.at);
      // Each begins with another one: else all would send to the same block at once.
#pragma unroll 4
      for (int i = 0; i < blocks; ++i) {
        const unsigned peer = (rank + static_cast<unsigned>(i)) & static_cast<unsigned>(blocks - 1);
        store_async(remote(to, peer), values, remote(&control().weights_arrived[l], peer));
      }
    });
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
  __device__ __forceinline__ bool run() const {
    const Deadline deadline{arguments.timeout_ns == 0 ? 0 : clock_ns() + arguments.timeout_ns, arguments.failed};
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
        if (step > 0) {
          const bool all = await_weights(l, step - 1, deadline);
          arrived &= all;
          if (thread() == 0 && all) arrive_expecting(&control().weights_arrived[l], weight_bytes(layout.layer[l]));
        }
        loss += forward(l, parity);
        if (is_last(l) && layout.layer[l].output_at < 0) keep_loss(loss);
        block_barrier();
        if (l > 0) continue;
        if (thread() < kScalarWords) reinterpret_cast<std::uint64_t*>(&scalars())[thread()] = scalar_word;
        if (step + 1 < arguments.steps) begin_rows(step + 1);
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
#pragma unroll 1
      for (int l = 0; l < layers; ++l) weight_gradient(l, parity);
      wait_copies();
      if (!all_arrived(arrived)) return false;
      update(step, deadline, arrived);
      if (step + 2 < arguments.steps) find_samples(step + 2);
    }
#pragma unroll 1
    for (int l = 0; l < layers && step > 0; ++l) arrived &= await_weights(l, step - 1, deadline);
    return arrived;
  }
};

/// One cluster; its blocks share the rows of a step. A step, where | is a barrier of the block:
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
/// Memory ordering. What blocks send each other are asynchronous stores that count at a barrier of transactions in the
/// receiver. Each barrier has one phase a step, announced one step ahead by one thread of its block, and whoever reads
/// what was sent has waited for that phase itself; nothing else orders these stores, and nothing depends on the order
/// of two of them. So three things have to hold.
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
/// All other data in shared memory belong to the block and are ordered by its barriers. Between a step's last barrier
/// and the next step's first are the update, which uses the parts received, the block's own units, their states and the
/// scalars, and the forward of the first layer, which writes its output (for one layer alone its errors): all reads of
/// that were before the barrier. The scalars of a step are written behind the forward's barrier, after every update of
/// the step before. The rows of step s + 1 are copied to where those of s - 1 were, which were last read before the
/// last barrier of s - 1; samples() is written behind the last barrier of a step and read behind the first of the next.
///
/// Each block leaves its part of each loss in global memory; they are added at the end of the launch, behind a barrier
/// of the cluster.
template <class T, class Way>
__global__ void __launch_bounds__(kOnChipThreads, 1) on_chip_kernel(OnChipArguments<T> arguments, OnChipLayout layout) {
  const OnChipBlock<T, Way> block{arguments, layout, shared<OnChipShared>().bytes};
  block.load();
  if (arguments.steps > 0) block.find_samples(0);
  block_barrier();
  if (arguments.steps > 0) block.begin_rows(0);
  wait_copies();
  block_barrier();
  if (arguments.steps > 1) block.find_samples(1);
  cluster_barrier();  // all barriers of transactions are there
  const bool arrived = block.all_arrived(block.run());
  if (arrived && !arguments.forward_only) block.store();
  cluster_barrier();
  if (!arrived) return let_stores_land();
  for (std::int64_t step = std::int64_t{block.rank} * kOnChipThreads + block.thread(); step < arguments.steps;
       step += std::int64_t{kOnChipThreads} << layout.blocks_log2) {
    double sum = 0;
#pragma unroll 1
    for (int from = 0; from < layout.blocks(); ++from) sum += arguments.loss_parts[(step << layout.blocks_log2) + from];
    arguments.losses[step] = sum * arguments.loss.scale;
  }
}

LaunchConfig config_of(const OnChipLayout& layout) {
  LaunchConfig config{layout.blocks(), kOnChipThreads, layout.shared_bytes};
  config.cluster_blocks = layout.blocks();
  return config;
}

template <class T>
constexpr auto kKernel = on_chip_kernel<T, FusedMultiplyAdds>;

}  // namespace

template <class T>
void prepare_on_chip(const OnChipLayout& layout) {
  prepare_kernel(reinterpret_cast<const void*>(kKernel<T>), config_of(layout));
}

template <class T>
std::int64_t resident_on_chip(const OnChipLayout& layout) {
  return resident_clusters(reinterpret_cast<const void*>(kKernel<T>), config_of(layout));
}

template <class T>
void launch_on_chip(const OnChipArguments<T>& arguments, const OnChipLayout& layout, cudaStream_t stream) {
  launch(kKernel<T>, config_of(layout), stream, arguments, layout);
}

template void prepare_on_chip<float>(const OnChipLayout&);
template void prepare_on_chip<double>(const OnChipLayout&);
template std::int64_t resident_on_chip<float>(const OnChipLayout&);
template std::int64_t resident_on_chip<double>(const OnChipLayout&);
template void launch_on_chip(const OnChipArguments<float>&, const OnChipLayout&, cudaStream_t);
template void launch_on_chip(const OnChipArguments<double>&, const OnChipLayout&, cudaStream_t);

}  // namespace deviceloop::cuda
