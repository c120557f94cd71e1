// The Gram form of the two-layer kernels: steps of gradient descent in the space of samples, with K = X X^T in
// registers.
#include "../runtime/launch.h"
#include "two_layer.cuh"
#include "two_layer.h"

namespace deviceloop::cuda {
namespace {

/// A block's part of the hidden layer in the space of samples: Z, and the sum of its changes, of the block's units.
template <class T, int columns>
struct GramHiddenLayer {
  static constexpr int kGroup = kGramUnitsInGroup, kColumnLanes = kGramColumnLanes;
  static constexpr int kRowsOfWarp = static_cast<int>(kWarpThreads) / kColumnLanes * kGramTileRows;
  static_assert(kGramTileRows * kGroup == kColumnLanes);
  using Output = OutputLayer<T, kGroup>;
  using Tile = T[kGramTileRows][columns];  ///< of K, in registers

  const GramTwoLayerArguments<T>& arguments;
  const GramTwoLayerLayout& layout;
  const Output& output;
  int pair = output.thread, pairs = output.pairs(), groups = layout.output.groups;
  int batch = layout.output.batch;
  int first_unit = static_cast<int>(block_index()) * layout.output.units;
  int column_lane = output.lane() % kColumnLanes;
  bool has_pair = pair < pairs, has_rows = output.warp() < layout.row_warps;
  T* z = output.at(layout.z_at) + pair;      ///< this thread's, one of each group
  T* sum = output.at(layout.sum_at) + pair;  ///< as z

  /// Loads this thread's tile of K; missing entries are zero.
  __device__ __forceinline__ void load_tile(Tile& k) const {
#pragma unroll
    for (int r = 0; r < kGramTileRows; ++r)
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        const int row_of_warp = output.lane() / kColumnLanes * kGramTileRows + (r ^ column_lane / kGroup);
        const int row = output.warp() * kRowsOfWarp + row_of_warp, column = column_lane + kColumnLanes * c;
        k[r][c] = row < batch && column < batch ? arguments.k[row * batch + column] : T(0);
      }
  }

  /// Calls use(global, shared) for this thread's elements of a matrix [batch, hidden]; `global` is null beyond it.
  template <class Use>
  __device__ void each_unit(T* global, T* mine, Use use) const {
    if (!has_pair) return;
    for (int g = 0; g < groups; ++g) {
      const int unit = first_unit + g * kGroup + pair % kGroup;
      use(unit < layout.output.hidden ? global + std::int64_t{pair / kGroup} * layout.output.hidden + unit : nullptr,
          mine[g * pairs]);
    }
  }

  /// Loads Z, the sum, the parameters and the targets into shared memory.
  __device__ void load() const {
    const auto load_unit = [](const T* from, T& to) { to = from != nullptr ? *from : T(0); };
    each_unit(arguments.z, z, load_unit);
    each_unit(arguments.sum, sum, load_unit);
    output.load(arguments.y, arguments.w2, nullptr, arguments.b2, first_unit,
                {arguments.timeout_ns == 0 ? 0 : clock_ns() + arguments.timeout_ns, arguments.failed});
  }

  /// Stores Z, the sum and the block's parameters; b2 is that of all blocks, and one stores it.
  __device__ void store() const {
    const auto store_unit = [](T* to, const T& from) {
      if (to != nullptr) *to = from;
    };
    each_unit(arguments.z, z, store_unit);
    each_unit(arguments.sum, sum, store_unit);
    output.store(arguments.w2, nullptr, block_index() == 0 ? arguments.b2 : nullptr, first_unit);
  }

  /// h = relu(Z); publishes the block's part of the predictions.
  __device__ void forward(Tagged<T>* slots, unsigned tag) const {
    Tagged<T>* const slot = slots + std::int64_t{block_index()} * batch * layout.output.outputs;
    if (has_pair)
#pragma unroll 1
      for (int g = 0; g < groups; ++g) output.hidden()[g * pairs + pair] = elementwise::relu_marked(z[g * pairs]);
    if (has_rows)
      output.publish_part(slot, pair, has_pair, has_pair,
                          has_pair ? output.hidden()[(groups - 1) * pairs + pair] : T(0), tag);
  }

  /// Z -= learning_rate K dZ, by the warps that hold rows of K.
  __device__ __forceinline__ void descend(const Tile& k) const {
    if (!has_rows) return;
#pragma unroll 1
    for (int g = 0; g < groups; ++g) {
      T sums[kGramTileRows * kGroup] = {};
      const T* const dz = output.dz() + (g * kColumnLanes * columns + column_lane) * kGroup;
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        T dz_row[kGroup];
        load_vectors(dz_row, dz + c * kColumnLanes * kGroup);
#pragma unroll
        for (int r = 0; r < kGramTileRows; ++r)
#pragma unroll
          for (int u = 0; u < kGroup; ++u) sums[r * kGroup + u] = std::fma(k[r][c], dz_row[u], sums[r * kGroup + u]);
      }
      scatter_sums<kColumnLanes, 1, kGroup>(sums, column_lane);
      if (has_pair) z[g * pairs] = elementwise::sgd_update(z[g * pairs], sums[0], arguments.learning_rate);
    }
  }
};

/// A block owns a few hidden units, and holds all of K for the whole launch. A step, where | is a barrier of the block:
///
///   h = relu(Z), publish the block's part of the predictions in global memory; wait for the parts of all blocks,
///   dP = 2 (P - Y) | dZ = dP W2^T, masked; sum -= learning_rate dZ | update W2 and b2, Z -= learning_rate K dZ |
///
/// A warp owns eight samples; lane 16 r + c holds, for four of them, every 16th column of K from c on, so that the
/// lanes of a row read contiguous elements of dZ. The sums over these 16 lanes leave each lane with the sample and the
/// unit of its own pair.
///
/// Words carry the step's tag and lie in one of two places by its parity. A block overwrites a place two steps later,
/// after it has received the words of the step between from every block. Before a block published those words, its
/// threads had read the words of the previous step and passed a barrier: no thread still waits for what is overwritten.
template <class T, int columns>
__global__ void __launch_bounds__(kTwoLayerThreads, 1)
    gram_two_layer_kernel(GramTwoLayerArguments<T> arguments, GramTwoLayerLayout layout) {
  using Layer = GramHiddenLayer<T, columns>;
  const typename Layer::Output output{layout.output, shared<SharedBytes>().bytes, static_cast<int>(thread_index())};
  const Layer layer{arguments, layout, output};
  typename Layer::Tile k;
  layer.load_tile(k);
  layer.load();
  block_barrier();

  bool all_well = true;
  for (std::int64_t step = 0; step < arguments.steps; ++step) {
    const unsigned tag = arguments.first_tag + static_cast<unsigned>(step);
    Tagged<T>* const slots = output.slots_of(arguments.slots, tag);
    layer.forward(slots, tag);
    all_well = output.all_arrived(output.await_gradient(slots, step, tag, arguments.losses));
    if (!all_well) break;

    output.hidden_gradient(tag, [&](int g, int, T dz) {
      T& sum = layer.sum[g * layer.pairs];
      sum = elementwise::sgd_update(sum, dz, arguments.learning_rate);
    });
    block_barrier();
    output.descend(tag, arguments.learning_rate, layer.first_unit, false, arguments.b2 != nullptr);
    layer.descend(k);
    block_barrier();
  }

  if (!all_well) return;
  if (arguments.steps > 0 && block_index() == 0 && output.warp() == output.warps() - 1)
    output.write_loss(arguments.losses + arguments.steps - 1,
                      arguments.first_tag + static_cast<unsigned>(arguments.steps - 1));
  if (arguments.keep) layer.store();
}

LaunchConfig config_of(const GramTwoLayerLayout& layout, bool cooperative) {
  LaunchConfig config;
  config.blocks = layout.blocks;
  config.threads = layout.threads;
  config.shared_bytes = layout.shared_bytes;
  config.cooperative = cooperative;
  return config;
}

template <class T>
using Kernel = void (*)(GramTwoLayerArguments<T>, GramTwoLayerLayout);

template <class T>
Kernel<T> kernel_of(const GramTwoLayerLayout& layout) {
  return layout.tile_columns == 2   ? gram_two_layer_kernel<T, 2>
         : layout.tile_columns == 4 ? gram_two_layer_kernel<T, 4>
                                    : gram_two_layer_kernel<T, 8>;
}

}  // namespace

template <class T>
void prepare_gram_two_layer(const GramTwoLayerLayout& layout, bool cooperative) {
  prepare_kernel(reinterpret_cast<const void*>(kernel_of<T>(layout)), config_of(layout, cooperative));
}

template <class T>
std::int64_t resident_gram_two_layer(const GramTwoLayerLayout& layout) {
  return resident_clusters(reinterpret_cast<const void*>(kernel_of<T>(layout)), config_of(layout, false));
}

template <class T>
void launch_gram_two_layer(const GramTwoLayerArguments<T>& arguments, const GramTwoLayerLayout& layout,
                           bool cooperative, cudaStream_t stream) {
  launch(kernel_of<T>(layout), config_of(layout, cooperative), stream, arguments, layout);
}

template void prepare_gram_two_layer<float>(const GramTwoLayerLayout&, bool);
template void prepare_gram_two_layer<double>(const GramTwoLayerLayout&, bool);
template std::int64_t resident_gram_two_layer<float>(const GramTwoLayerLayout&);
template std::int64_t resident_gram_two_layer<double>(const GramTwoLayerLayout&);
template void launch_gram_two_layer(const GramTwoLayerArguments<float>&, const GramTwoLayerLayout&, bool, cudaStream_t);
template void launch_gram_two_layer(const GramTwoLayerArguments<double>&, const GramTwoLayerLayout&, bool,
                                    cudaStream_t);

}  // namespace deviceloop::cuda
