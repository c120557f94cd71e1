// The primal form of the two-layer kernels: steps of gradient descent by the equations themselves, with X in registers.
#include "two_layer.h"

#include <type_traits>

#include "../runtime/launch.h"
#include "two_layer.cuh"

namespace deviceloop::cuda {
namespace {

/// Parts of Z that a thread waits for at once.
inline constexpr int kPartsAtOnce = 4;

/// The place of a thread's tile: its register [r][c] holds row row_of(r) and column column_of(c) of the block's.
template <class T, int row_lanes>
struct TilePlace {
  static constexpr int kColumns = tile_columns(sizeof(T));
  static constexpr int kColumnLanes = static_cast<int>(kWarpThreads) / row_lanes;
  static constexpr int kRowsLeft = kTileRows / kColumnLanes;  ///< of Z per lane, once the lanes of a row are added

  int thread;

  __device__ int warp() const { return thread / static_cast<int>(kWarpThreads); }
  __device__ int row_lane() const { return thread % row_lanes; }
  __device__ int column_lane() const { return thread % static_cast<int>(kWarpThreads) / row_lanes; }
  __device__ int row_of(int r) const {
    const int exchanged = column_lane() * kRowsLeft ^ r / kRowsLeft * kRowsLeft;
    return row_lane() + exchanged * row_lanes + r % kRowsLeft * row_lanes;
  }
  __device__ int column_of(int c) const {
    return (thread / row_lanes) * kColumns + (row_lane() * kColumns / row_lanes ^ c);
  }
};

/// A block's part of the hidden layer: the units of its cluster, for the block's slice of the inputs.
template <class T, int row_lanes>
struct HiddenLayer {
  using Place = TilePlace<T, row_lanes>;
  static constexpr int kColumns = Place::kColumns, kColumnLanes = Place::kColumnLanes, kRowsLeft = Place::kRowsLeft;
  static constexpr int kGroup = units_in_group(sizeof(T)), kRows = row_lanes * kTileRows;
  /// Sums of a tile's terms of dW1 in a group of units, and those left to a lane once the lanes of a column are added.
  static constexpr int kSums = kColumns * kGroup, kSumsLeft = kSums > row_lanes ? kSums / row_lanes : 1;
  using Output = OutputLayer<T, kGroup>;
  using Tile = T[kTileRows][kColumns];  ///< of X, in registers

  const TwoLayerArguments<T>& arguments;
  const TwoLayerLayout& layout;
  unsigned char* memory;
  int threads = static_cast<int>(block_threads());
  int rank = static_cast<int>(cluster_rank());
  int cluster = static_cast<int>(block_index() >> layout.cluster_log2), cluster_blocks = 1 << layout.cluster_log2;
  int groups = layout.output.groups, pairs = layout.output.batch * kGroup;
  int first_unit = cluster * layout.output.units, first_input = rank * layout.columns;
  int units =
      layout.output.hidden - first_unit < layout.output.units ? layout.output.hidden - first_unit : layout.output.units;
  int inputs =
      layout.inputs - first_input < layout.columns ? layout.inputs - first_input : layout.columns;  ///< may be below 0
  int columns = layout.column_warps * kColumnLanes * kColumns;  ///< all that the block's warps cover
  T* w1 = reinterpret_cast<T*>(memory + layout.weight_at);      ///< [groups, columns, kGroup]

  __device__ Output output_layer(unsigned thread) const { return {layout.output, memory, static_cast<int>(thread)}; }
  /// [column_warps, kRows, kGroup]. Two buffers alternate: before a thread overwrites one, all its readers have passed
  /// the barrier of the other.
  __device__ T* partial_of(int g) const {
    return reinterpret_cast<T*>(memory + layout.partial_at) + g % 2 * layout.column_warps * kRows * kGroup;
  }
  __device__ Tagged<T>* received_by(unsigned group, int from) const {
    return reinterpret_cast<Tagged<T>*>(memory + layout.received_at) +
           (static_cast<int>(group % 2) * cluster_blocks + from) * pairs;
  }

  /// Loads this thread's tile of X; missing entries are zero.
  __device__ __forceinline__ void load_tile(Tile& x, const Place& place) const {
#pragma unroll
    for (int r = 0; r < kTileRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int row = place.row_of(r), column = place.column_of(c);
        const bool inside = row < layout.output.batch && column < inputs;
        x[r][c] = inside ? arguments.x[row * layout.inputs + first_input + column] : T(0);
      }
  }

  /// Calls use(global, shared) for each weight of the block's inputs and units.
  template <class Use>
  __device__ void each_weight(int thread, Use use) const {
    for (int i = thread; i < inputs * units; i += threads) {
      const int column = i / units, unit = i % units;
      use(arguments.w1[std::int64_t{first_input + column} * layout.output.hidden + first_unit + unit],
          w1[(unit / kGroup * columns + column) * kGroup + unit % kGroup]);
    }
  }

  /// Loads the parameters and targets into shared memory, and marks all parts of Z there as not received.
  __device__ void load(const Output& output) const {
    for (int i = output.thread; i < groups * columns * kGroup; i += threads) w1[i] = T(0);
    block_barrier();
    each_weight(output.thread, [](const T& from, T& to) { to = from; });
    output.load(arguments.y, arguments.w2, arguments.b1, arguments.b2, first_unit,
                {arguments.timeout_ns == 0 ? 0 : clock_ns() + arguments.timeout_ns, arguments.failed});
    for (int i = output.thread; i < 2 * cluster_blocks * pairs; i += threads) received_by(0, 0)[i] = {};
  }

  /// Writes this warp's part of Z, that of its columns, for the units of group g.
  __device__ __forceinline__ void multiply(T* partial, const Tile& x, int g, const Place& place) const {
    T z[kTileRows * kGroup] = {};
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      T weights[kGroup];
      load_vectors(weights, w1 + (g * columns + place.column_of(c)) * kGroup);
#pragma unroll
      for (int r = 0; r < kTileRows; ++r)
#pragma unroll
        for (int u = 0; u < kGroup; ++u) z[r * kGroup + u] = std::fma(x[r][c], weights[u], z[r * kGroup + u]);
    }
    scatter_sums<kColumnLanes, row_lanes, 1>(z, place.column_lane());
#pragma unroll
    for (int r = 0; r < kRowsLeft; ++r) {
      Group<T, kGroup> sums;
#pragma unroll
      for (int u = 0; u < kGroup; ++u) sums.values[u] = z[r * kGroup + u];
      store_group<true>(partial, sums, (place.warp() * kRows + place.row_of(r)) * kGroup,
                        layout.column_warps * kRows * kGroup);
    }
  }

  /// Adds the parts of the block's warps for a pair, and pushes the sum into each block of the cluster. `pushed` groups
  /// were pushed before it.
  __device__ void push_sum(const T* partial, int pair, unsigned pushed) const {
    T sum = 0;
#pragma unroll 8
    for (int w = 0; w < layout.column_warps; ++w) sum += partial[w * kRows * kGroup + pair];
    Tagged<T>* const mine = received_by(pushed + 1, rank) + pair;
#pragma unroll 1
    for (int i = 0; i < cluster_blocks; ++i)
      publish(peer_shared(mine, static_cast<unsigned>((rank + i) & (cluster_blocks - 1))), sum, pushed + 1);
  }

  /// Waits for the sums of the cluster's blocks for a pair of group g - 1, the one pushed last; stores and returns its
  /// h. Clears `arrived` if the wait failed.
  __device__ T receive_hidden(const Output& output, int g, int pair, unsigned pushed, std::int64_t step,
                              bool& arrived) const {
    T z = 0;
#pragma unroll 1
    for (int first = 0; first < cluster_blocks; first += kPartsAtOnce) {
      T parts[kPartsAtOnce];
      const int left = cluster_blocks - first;
      arrived &= wait_tagged(parts, received_by(pushed, first) + pair, pairs, left < kPartsAtOnce ? left : kPartsAtOnce,
                             pushed, output.deadline(), two_layer_code(TwoLayerPhase::kClusterExchange, step));
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) z += parts[i];
    }
    const T h = elementwise::relu_marked(z + output.hidden_bias()[(g - 1) * kGroup + pair % kGroup]);
    output.hidden()[(g - 1) * pairs + pair] = h;
    return h;
  }

  /// Publishes the cluster's part of the predictions of the pair's sample, if this block is the one that publishes
  /// them. The whole warp calls it; last_h is the pair's h of the last group.
  __device__ void publish_part(const Output& output, Tagged<T>* slots, int pair, T last_h, unsigned tag) const {
    const int published = pair - rank * layout.published_rows * kGroup;
    const bool publishes = pair < pairs && published >= 0 && published < layout.published_rows * kGroup;
    output.publish_part(slots + std::int64_t{cluster} * layout.output.batch * layout.output.outputs, pair, pair < pairs,
                        publishes, last_h, tag);
  }

  /// Computes and pushes the block's sums of group g, and receives h of group g - 1, each if there is such a group;
  /// with the last h it publishes the predictions. `pushed` groups were pushed before, over all steps. Clears `arrived`
  /// if a wait failed.
  __device__ __forceinline__ void forward(const Tile& x, int g, Tagged<T>* slots, std::int64_t step, unsigned tag,
                                          unsigned pushed, bool& arrived) const {
    T* const partial = partial_of(g);
    const Output output = output_layer(thread_index_again());
    if (g < groups) {
      const Place place{output.thread};
      if (place.warp() < layout.column_warps) multiply(partial, x, g, place);
      block_barrier();
    }
#pragma unroll 1
    for (int begin = output.thread - output.lane(); begin < pairs; begin += threads) {
      const int pair = begin + output.lane();
      T h = 0;
      if (g > 0 && pair < pairs) h = receive_hidden(output, g, pair, pushed, step, arrived);
      if (g == groups)
        publish_part(output, slots, pair, h, tag);
      else if (pair < pairs)
        push_sum(partial, pair, pushed);
    }
  }

  /// One step of gradient descent for w1, w1 -= learning_rate X^T dZ, by the warps that hold X.
  __device__ __forceinline__ void descend(const Tile& x, const Output& output) const {
    const int end_column = inputs, end_unit = units;
    const Place place{static_cast<int>(thread_index_again())};
    if (place.warp() >= layout.column_warps) return;
#pragma unroll 1
    for (int g = 0; g < groups; ++g) {
      T sums[kSums] = {};
      const T* const dz = output.dz() + g * kRows * kGroup;
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) {
        T dz_row[kGroup];
        load_vectors(dz_row, dz + place.row_of(r) * kGroup);
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
#pragma unroll
          for (int u = 0; u < kGroup; ++u) sums[c * kGroup + u] = std::fma(x[r][c], dz_row[u], sums[c * kGroup + u]);
      }
      scatter_sums<row_lanes, 1, kGroup>(sums, place.row_lane());
#pragma unroll
      for (int i = 0; i < kSumsLeft; ++i) {
        // The lane's upper bits have selected columns, its lower bits select units.
        constexpr int kLanesOfColumn = row_lanes > kColumns ? row_lanes / kColumns : 1;
        constexpr int kUnitsLeft = kSumsLeft < kGroup ? kSumsLeft : kGroup;
        constexpr int kLanesOfUnits =
            kLanesOfColumn * kUnitsLeft / kGroup > 0 ? kLanesOfColumn * kUnitsLeft / kGroup : 1;
        const int column = place.column_of(i / kGroup);
        const int unit = place.row_lane() % kLanesOfColumn / kLanesOfUnits * kUnitsLeft + i % kUnitsLeft;
        T& weight = w1[(g * columns + column) * kGroup + unit];
        if (place.row_lane() % kLanesOfUnits == 0 && column < end_column && g * kGroup + unit < end_unit)
          weight = elementwise::sgd_update(weight, sums[i], arguments.learning_rate);
      }
    }
    warp_barrier();  // enough: in a step only this warp uses its inputs' weights
  }
};

/// A cluster owns a few hidden units; each of its blocks holds a slice of the inputs of the whole batch in registers
/// for the whole launch, and the units' weights of that slice in shared memory. A step, where | is a barrier of the
/// block:
///
///   for each group of units: compute each warp's part of Z | add the parts of the block's warps and push the sum into
///   each block of the cluster; wait for the sums of all its blocks, h = relu(Z + b1). Then publish the cluster's part
///   of the predictions in global memory; wait for those of all clusters, dP = 2 (P - Y) | dZ = dP W2^T, masked |
///   update W2, b1, b2, and W1 of the slice
///
/// A lane has a tile of kTileRows samples by kColumns inputs: every weight loaded is used for 8 samples, every dz for
/// kColumns inputs, and few lanes share a sum: 46 shuffles a step for 4 units, where a lane with 4 samples and 16
/// inputs would need 62. Which register holds which sample and input depends on the lane, as scatter_sums requires.
///
/// All words that are waited for carry a number, their tag, and lie in one of two places by its parity. A thread may
/// overwrite a place only when no thread can still wait there for the older number, which is smaller by two. Parts of Z
/// are numbered by group. A thread pushes one only after it has received the parts of the previous group from all
/// blocks. The word that it then overwrites in a peer belongs to the peer's thread of the same pair, which read it
/// before it pushed its own part of the previous group. The predictions are numbered by step. Before a cluster
/// publishes its part in a step, its blocks push parts of Z; before that, their threads have read the predictions of
/// the previous step and passed a barrier. A block publishes again only after it has received the predictions of all
/// clusters. Nothing depends on the order of two stores.
///
/// A word that is pushed into a peer's shared memory is ordered by its tag, without a barrier: the peer polls it until
/// the tag is that of the group. racecheck, which knows only barriers, reports that write and that read as a hazard;
/// see store_tagged_word. All other accesses to shared memory are ordered by barriers.
template <class T, int row_lanes>
__global__ void __launch_bounds__(kTwoLayerThreads, 1)
    two_layer_kernel(TwoLayerArguments<T> arguments, TwoLayerLayout layout) {
  using Layer = HiddenLayer<T, row_lanes>;
  const Layer layer{arguments, layout, shared<SharedBytes>().bytes};
  const typename Layer::Output loading = layer.output_layer(thread_index());
  typename Layer::Tile x;
  layer.load_tile(x, {loading.thread});
  layer.load(loading);
  cluster_barrier();

  bool all_well = true;
  unsigned pushed = 0;
  for (std::int64_t step = 0; step < arguments.steps; ++step) {
    const unsigned tag = arguments.first_tag + static_cast<unsigned>(step);
    Tagged<T>* const slots = loading.slots_of(arguments.slots, tag);
    bool arrived = true;
    // A group's parts are in transit while the next group is computed.
#pragma unroll 1
    for (int g = 0; g <= layer.groups; ++g) {
      layer.forward(x, g, slots, step, tag, pushed, arrived);
      if (g < layer.groups) ++pushed;
    }

    const typename Layer::Output output = layer.output_layer(thread_index_again());
    arrived &= output.await_gradient(slots, step, tag, arguments.losses);
    all_well = output.all_arrived(arrived);
    if (!all_well) break;

    output.hidden_gradient(tag, [](int, int, T) {});
    block_barrier();
    output.descend(tag, arguments.learning_rate, layer.first_unit, arguments.b1 != nullptr, arguments.b2 != nullptr);
    layer.descend(x, output);
  }

  if (all_well) {
    const typename Layer::Output output = layer.output_layer(thread_index_again());
    if (arguments.steps > 0 && block_index() == 0 && output.warp() == output.warps() - 1)
      output.write_loss(arguments.losses + arguments.steps - 1,
                        arguments.first_tag + static_cast<unsigned>(arguments.steps - 1));
    block_barrier();
    if (arguments.keep) layer.each_weight(output.thread, [](T& to, const T& from) { to = from; });
    if (arguments.keep && layer.rank == 0)
      output.store(arguments.w2, arguments.b1, layer.cluster == 0 ? arguments.b2 : nullptr, layer.first_unit);
  }
  // Until this barrier another block of the cluster may still push into this block's shared memory.
  cluster_barrier();
}

LaunchConfig config_of(const TwoLayerLayout& layout, bool cooperative) {
  LaunchConfig config;
  config.blocks = layout.blocks();
  config.threads = layout.threads;
  config.shared_bytes = layout.shared_bytes;
  config.cluster_blocks = layout.cluster_blocks();
  config.cooperative = cooperative;
  return config;
}

template <class T>
using Kernel = void (*)(TwoLayerArguments<T>, TwoLayerLayout);

template <class T>
Kernel<T> kernel_of(const TwoLayerLayout& layout) {
  return layout.row_lanes == 4   ? two_layer_kernel<T, 4>
         : layout.row_lanes == 8 ? two_layer_kernel<T, 8>
                                 : two_layer_kernel<T, 16>;
}

}  // namespace

template <class T>
void prepare_two_layer(const TwoLayerLayout& layout, bool cooperative) {
  prepare_kernel(reinterpret_cast<const void*>(kernel_of<T>(layout)), config_of(layout, cooperative));
}

template <class T>
std::int64_t resident_two_layer(const TwoLayerLayout& layout) {
  return resident_clusters(reinterpret_cast<const void*>(kernel_of<T>(layout)), config_of(layout, false));
}

template <class T>
void launch_two_layer(const TwoLayerArguments<T>& arguments, const TwoLayerLayout& layout, bool cooperative,
                      cudaStream_t stream) {
  launch(kernel_of<T>(layout), config_of(layout, cooperative), stream, arguments, layout);
}

template void prepare_two_layer<float>(const TwoLayerLayout&, bool);
template void prepare_two_layer<double>(const TwoLayerLayout&, bool);
template std::int64_t resident_two_layer<float>(const TwoLayerLayout&);
template std::int64_t resident_two_layer<double>(const TwoLayerLayout&);
template void launch_two_layer(const TwoLayerArguments<float>&, const TwoLayerLayout&, bool, cudaStream_t);
template void launch_two_layer(const TwoLayerArguments<double>&, const TwoLayerLayout&, bool, cudaStream_t);

}  // namespace deviceloop::cuda
