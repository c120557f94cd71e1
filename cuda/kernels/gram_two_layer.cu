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

/// A block of the direct Gram form. Lane 8 i + 2 u + c (c: 0 or 1) has sample i of its warp's four and unit u of the
/// cluster's four.
template <class T, int columns>
struct DirectGram {
  static constexpr int kUnits = kGramUnitsInGroup, kBlocks = 4, kRowsOfWarp = 4, kSums = 6;
  static constexpr int kLanes = static_cast<int>(kWarpThreads);
  using Tile = T[kRowsOfWarp][columns];  ///< of K, in registers
  using Vector = Group<T, kVector<T>>;   ///< 16 bytes

  const GramTwoLayerArguments<T>& arguments;
  const GramTwoLayerLayout& layout;
  unsigned char* memory;
  int thread = static_cast<int>(thread_index()), lane = thread % kLanes, warp = thread / kLanes;
  int rank = static_cast<int>(cluster_rank()), cluster = static_cast<int>(block_index()) / kBlocks;
  int first_sample = rank * layout.samples;
  DirectWords<T> words{rank, cluster, warp, lane, layout.output.publishers, samples_of(rank)};
  int unit = words.share / 2, global_unit = cluster * kUnits + unit;
  bool has_pair = words.has_sample && global_unit < layout.output.hidden;
  unsigned dz_bytes = static_cast<unsigned>(layout.output.batch * kUnits) * static_cast<unsigned>(sizeof(T));
  unsigned sum_bytes = static_cast<unsigned>(warps_with_samples() * (arguments.b2 != nullptr ? kSums : kSums - 1)) *
                       static_cast<unsigned>(sizeof(T));

  __device__ T* dz(unsigned parity) const {
    return reinterpret_cast<T*>(memory + layout.received_dz_at) + static_cast<int>(parity) * kTwoLayerBatch * kUnits;
  }
  __device__ T* sums(unsigned parity) const {
    return reinterpret_cast<T*>(memory + layout.received_sums_at) + static_cast<int>(parity) * kSums * kLanes;
  }
  /// which: 0 for dZ, 1 for the sums.
  __device__ TransactionBarrier* barrier(int which, unsigned parity) const {
    return reinterpret_cast<TransactionBarrier*>(memory + layout.barriers_at) + 2 * which + static_cast<int>(parity);
  }
  __device__ Deadline& deadline() const { return *reinterpret_cast<Deadline*>(memory + layout.output.deadline_at); }

  __device__ int samples_of(int of) const {
    const int left = layout.output.batch - of * layout.samples;
    return left < layout.samples ? left : layout.samples;
  }
  __device__ int warps_with_samples() const {
    int warps = 0;
    for (int i = 0; i < kBlocks; ++i) warps += (samples_of(i) + kRowsOfWarp - 1) / kRowsOfWarp;
    return warps;
  }

  /// Clears shared memory and opens the first phases of the barriers.
  __device__ void begin() const {
#pragma unroll 1
    for (int i = thread; i < 2 * kTwoLayerBatch * kUnits; i += kPrimalThreads) dz(0)[i] = T(0);
#pragma unroll 1
    for (int i = thread; i < 2 * kSums * kLanes; i += kPrimalThreads) sums(0)[i] = T(0);
    if (thread == 0) {
      deadline() = {arguments.timeout_ns == 0 ? 0 : clock_ns() + arguments.timeout_ns, arguments.failed};
      for (int which : {0, 1})
        for (unsigned parity : {0u, 1u}) init_transactions(barrier(which, parity), 1);
      fence_transactions_init();
      for (int which : {0, 1})
        for (unsigned parity : {0u, 1u}) arrive_expecting(barrier(which, parity), which == 0 ? dz_bytes : sum_bytes);
    }
    block_barrier();
    cluster_barrier();
  }

  /// Loads this thread's tile of K; missing entries are zero.
  __device__ __forceinline__ void load_tile(Tile& k) const {
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        const int own = warp * kRowsOfWarp + (i ^ words.of_warp), column = c * kLanes + lane;
        k[i][c] = own < words.samples && column < layout.output.batch
                      ? arguments.k[(first_sample + own) * layout.output.batch + column]
                      : T(0);
      }
  }

  /// Waits for what is sent in that step; the block's first thread opens the barrier's next phase.
  __device__ __forceinline__ bool receive(int which, std::int64_t step) const {
    const unsigned parity = static_cast<unsigned>(step) % 2;
    const bool arrived = wait_transactions(barrier(which, parity), static_cast<unsigned>(step) / 2 % 2, deadline(),
                                           two_layer_code(TwoLayerPhase::kPredictions, step));
    if (arrived && thread == 0) arrive_expecting(barrier(which, parity), which == 0 ? dz_bytes : sum_bytes);
    return arrived;
  }

  /// Of a step whose sums this thread has waited for; the whole warp calls it. At most four squares were added in T.
  __device__ void write_loss(std::int64_t step) const {
    auto total = static_cast<double>(sums(static_cast<unsigned>(step) % 2)[4 * kLanes + lane]);
#pragma unroll
    for (unsigned mask = 1; mask < kWarpThreads; mask *= 2) total += warp_shuffle_xor(total, mask);
    if (lane == 0) arguments.losses[step] = total;
  }

  /// All steps; by the warps that have samples.
  __device__ __forceinline__ void descend(const Tile& k) const {
    const bool writes_loss = block_index() == 0 && warp == 3, has_bias = arguments.b2 != nullptr;
    const int share = words.share, place = (first_sample + words.sample) * layout.output.hidden + global_unit;
    const T target = words.has_sample ? arguments.y[first_sample + words.sample] : T(0);
    T z = has_pair ? arguments.z[place] : T(0), sum = has_pair ? arguments.sum[place] : T(0);
    T w2 = global_unit < layout.output.hidden ? arguments.w2[global_unit] : T(0);
    T bias = has_bias ? arguments.b2[0] : T(0);

    const auto to = static_cast<unsigned>(share % kBlocks), group = static_cast<unsigned>(words.of_warp);
    const int sum_row = share % 2 == 0 ? unit : share == 1 ? 4 : 5;
    const bool sends_sum = share % 2 == 0 || share == 1 || (share == 3 && has_bias);
    const auto dz_to = remote(reinterpret_cast<Vector*>(dz(0) + (first_sample + words.sample % kLanes) * kUnits), to);
    const auto sum_to = remote(sums(0) + sum_row * kLanes + rank * 8 + warp, group);
    const auto dz_barrier = remote(barrier(0, 0), to), sum_barrier = remote(barrier(1, 0), group);
    constexpr int kPieces = kUnits / kVector<T>, kNextDz = kTwoLayerBatch * kPieces, kNextSums = kSums * kLanes;

    for (std::int64_t step = 0; step < arguments.steps; ++step) {
      const unsigned tag = arguments.first_tag + static_cast<unsigned>(step);
      const int parity = static_cast<int>(step & 1);
      bool arrived = true;
      const T h = elementwise::relu(z);
      T part = h * w2;
      part += warp_shuffle_xor(part, 2u);
      part += warp_shuffle_xor(part, 4u);
      Tagged<T>* const slots = words.slots_of(arguments.slots, tag);
      words.publish_part(slots, part, tag);
      const unsigned since = clock_cycles();

      // While the words are on their way:
      T weights[kUnits];
#pragma unroll
      for (unsigned u = 0; u < kUnits; ++u) weights[u] = warp_shuffle(w2, 2 * u);
      const unsigned blocked = warp_ballot(z < T(0)) >> (8 * words.of_warp);
      if (writes_loss && step > 0) write_loss(step - 1);
      wait_cycles(since, static_cast<unsigned>(layout.poll_after));

      const T prediction = words.receive_sum(slots, tag, deadline(), step, arrived) + bias;
      const T difference = prediction - target, dp = elementwise::squared_error_gradient(difference);
      if (words.has_sample && share < kBlocks) {
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
          Vector d;
#pragma unroll
          for (int i = 0; i < kVector<T>; ++i) {
            const int u = piece * kVector<T> + i;
            d.values[i] = (blocked >> 2 * u & 1) != 0 ? T(0) : dp * weights[u];
          }
          store_async(dz_to + (parity * kNextDz + piece), d, dz_barrier + parity);
        }
      }
      T term = share % 2 == 0 ? h * dp : share == 1 ? difference * difference : dp;
      if (!words.has_sample) term = 0;
      term += warp_shuffle_xor(term, 8u);
      term += warp_shuffle_xor(term, 16u);
      if (warp_ballot(!arrived) == 0 && sends_sum) store_async(sum_to + parity * kNextSums, term, sum_barrier + parity);
      sum = elementwise::sgd_update(sum, elementwise::relu_gradient(z, dp * w2), arguments.learning_rate);

      arrived &= receive(0, step);
      T products[kRowsOfWarp * kUnits];
      const T* const from = dz(static_cast<unsigned>(parity)) + lane * kUnits;
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        T d[kUnits];
        load_vectors(d, from + c * kLanes * kUnits);
#pragma unroll
        for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
          for (int u = 0; u < kUnits; ++u) {
            T& product = products[i * kUnits + u];
            product = c == 0 ? k[i][c] * d[u] : std::fma(k[i][c], d[u], product);
          }
      }
      arrived &= receive(1, step);
      T parts[kUnits];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) parts[u] = sums(static_cast<unsigned>(parity))[u * kLanes + lane];
      scatter_sums<kLanes, 1, kUnits>(products, lane);
      scatter_sums<kUnits, 2, 2 * kUnits>(parts, unit);
      T w2_gradient = parts[0];
      for (const unsigned mask : {1u, 8u, 16u}) w2_gradient += warp_shuffle_xor(w2_gradient, mask);
      z = elementwise::sgd_update(z, products[0], arguments.learning_rate);
      w2 = elementwise::sgd_update(w2, w2_gradient, arguments.learning_rate);
      if (has_bias) {
        T gradient = sums(static_cast<unsigned>(parity))[5 * kLanes + lane];
#pragma unroll
        for (unsigned mask = 1; mask < kWarpThreads; mask *= 2) gradient += warp_shuffle_xor(gradient, mask);
        bias = elementwise::sgd_update(bias, gradient, arguments.learning_rate);
      }
      if (warp_ballot(!arrived) != 0) return;
    }

    if (writes_loss && arguments.steps > 0) write_loss(arguments.steps - 1);
    if (!arguments.keep) return;
    if (has_pair && share % 2 == 0) {
      arguments.z[place] = z;
      arguments.sum[place] = sum;
    }
    if (rank == 0 && warp == 0 && lane < 8 && has_pair && share % 2 == 0) arguments.w2[global_unit] = w2;
    if (has_bias && block_index() == 0 && thread == 0) arguments.b2[0] = bias;
  }
};

/// The direct form: clusters of four blocks, four hidden units a cluster; a block has the rows of K of its samples, a
/// warp four of them. A step of a warp, where [..] is a wait for what all warps of the cluster have sent:
///
///   h = relu(Z), publish the cluster's part of the predictions of the own samples; a while later, the wait for the
///   parts of all clusters; dP = 2 (P - Y); dZ = dP W2^T, masked, of the own samples to all blocks; sums over these
///   samples for W2, b2 and the loss likewise; sum -= learning_rate dZ [dZ] K dZ [sums] Z -= learning_rate K dZ; update
///   W2 and b2, which every warp keeps for itself, with the same bits
///
/// Nothing synchronizes the warps of a block but these waits. dZ and the sums have two places each, by the parity of
/// the step, each with its own barrier.
///  - A warp B sends dZ and sums of step s + 2 to the places of step s after it has waited for those of s + 1, which
///  take
///    something from every warp A with samples; and A has sent its part of s + 1 after it has read dZ and the sums of
///    s, because Z of s + 1 follows from both. (The warp that writes the loss of s reads it before it sends that part.)
///  - A phase of step s + 2 ends only with what all warps have sent in it, after they have passed their waits for that
///  of
///    s: nobody is two phases behind. The thread that opens the phase does so before it sends anything of s + 1.
///  - Words in global memory: as in the direct form of two_layer_kernel, warp by warp.
/// A warp whose wait failed leaves with all of its lanes; the others, which wait for it, see the failure. Nothing is
/// stored then but by warps that had ended before.
template <class T, int columns>
__global__ void __launch_bounds__(kPrimalThreads, 1)
    gram_direct_kernel(GramTwoLayerArguments<T> arguments, GramTwoLayerLayout layout) {
  using Block = DirectGram<T, columns>;
  const Block block{arguments, layout, shared<SharedBytes>().bytes};
  typename Block::Tile k;
  block.load_tile(k);
  block.begin();
  if (block.words.waits) block.descend(k);
  // A block must not end while others may still store into its shared memory.
  cluster_barrier();
  if (has_failed(block.deadline())) let_stores_land();
  cluster_barrier();
}

LaunchConfig config_of(const GramTwoLayerLayout& layout, bool cooperative) {
  LaunchConfig config;
  config.blocks = layout.blocks;
  config.threads = layout.threads;
  config.shared_bytes = layout.shared_bytes;
  config.cluster_blocks = layout.cluster_blocks();
  config.cooperative = cooperative;
  return config;
}

template <class T>
using Kernel = void (*)(GramTwoLayerArguments<T>, GramTwoLayerLayout);

template <class T>
Kernel<T> kernel_of(const GramTwoLayerLayout& layout) {
  if (layout.direct) return layout.tile_columns == 2 ? gram_direct_kernel<T, 2> : gram_direct_kernel<T, 4>;
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
