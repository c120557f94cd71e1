// The primal form of the two-layer kernels: steps of gradient descent by the equations themselves, with X in registers.
#include "two_layer.h"

#include "../runtime/launch.h"
#include "two_layer.cuh"

namespace deviceloop::cuda {
namespace {

/// A block's part of a step. A bias of the hidden layer is the weight of one more input, which is 1.
template <class T, int tile_rows, int tile_columns, bool direct>
struct Primal {
  static constexpr int kGroup = units_in_group(sizeof(T));
  static constexpr int kRows = kRowLanes * tile_rows, kColumnsOfWarp = kColumnLanes * tile_columns;
  /// Columns of the tile that the backward pass takes at once, and weights of W1 whose gradients a lane is then left
  /// with, once the lanes of a column are added.
  static constexpr int kColumnsAtOnce = tile_columns < kRowLanes ? tile_columns : kRowLanes;
  static constexpr int kOwnWeights = kColumnsAtOnce * kGroup / kRowLanes;
  using Tile = T[tile_rows][tile_columns];  ///< of X, in registers
  using Vector = Group<T, kGroup>;          ///< 16 bytes
  using Half = Group<T, kGroup / 2>;

  const TwoLayerArguments<T>& arguments;
  const TwoLayerLayout& layout;
  unsigned char* memory;
  int thread = static_cast<int>(thread_index()), lane = thread % static_cast<int>(kWarpThreads),
      warp = thread / static_cast<int>(kWarpThreads);
  int row_lane = lane % kRowLanes, column_lane = lane / kRowLanes;
  int rank = static_cast<int>(cluster_rank()), blocks = 1 << layout.cluster_log2;
  int cluster = static_cast<int>(block_index()) >> layout.cluster_log2;
  int first_unit = cluster * layout.units, first_column = rank * layout.columns;
  int first_sample = rank * layout.samples;

  static constexpr int kThreads = kPrimalThreads;

  template <class Element>
  __device__ Element* at(int place) const {
    return reinterpret_cast<Element*>(memory + place);
  }
  __device__ T* weights() const { return at<T>(layout.weight_at); }
  __device__ T* output_weights() const { return at<T>(layout.output_weight_at); }
  __device__ T* output_bias() const { return at<T>(layout.output_bias_at); }
  __device__ T* hidden() const { return at<T>(layout.hidden_at); }
  __device__ T* gradient() const { return at<T>(layout.gradient_at); }
  __device__ T* sums() const { return at<T>(layout.sums_at); }
  __device__ Vector* dz() const { return at<Vector>(layout.dz_at); }
  __device__ Vector* partial() const { return at<Vector>(layout.partial_at); }
  __device__ T* received() const { return at<T>(layout.received_at); }
  __device__ TransactionBarrier* barrier(int which) const { return at<TransactionBarrier>(layout.barriers_at) + which; }
  __device__ int& failed(unsigned parity) const { return at<int>(layout.failed_at)[parity]; }
  __device__ const Deadline& deadline() const { return *at<Deadline>(layout.deadline_at); }

  /// The samples of a block of the cluster: the last that has any may have fewer, and others none.
  __device__ int samples_of(int of) const {
    const int left = layout.batch - of * layout.samples;
    return left < 0 ? 0 : left < layout.samples ? left : layout.samples;
  }
  __device__ int units() const {
    return layout.hidden - first_unit < layout.units ? layout.hidden - first_unit : layout.units;
  }
  __device__ bool has_hidden_bias() const { return arguments.b1 != nullptr; }
  /// Columns of this block, 0 where there are none left.
  __device__ int columns() const {
    const int left = layout.inputs + (has_hidden_bias() ? 1 : 0) - first_column;
    return left < 0 ? 0 : left < layout.columns ? left : layout.columns;
  }
  __device__ int row_of(int r) const { return r / 4 * 4 * kRowLanes + (r % 4 ^ column_lane) * kRowLanes + row_lane; }
  /// Of the warp's columns. Which register holds which row and column depends on the lane, as scatter_sums requires.
  __device__ int column_of(int c) const {
    return (column_lane * tile_columns | row_lane * tile_columns / kRowLanes) ^ c;
  }

  // What the barriers of transactions wait for in a step, in bytes.
  static constexpr int kParts = 0, kGradients = 1, kSums = 2;
  bool gathers_loss = !direct && cluster == 0 && rank == 0;
  unsigned part_bytes = elements_bytes(blocks * samples_of(rank) * layout.units);
  unsigned gradient_bytes = elements_bytes(layout.batch * layout.units);
  unsigned sum_bytes = direct ? elements_bytes(warps_with_samples() * sum_values())
                              : elements_bytes(layout.owners * values()) +
                                    (gathers_loss ? static_cast<unsigned>(layout.owners) * 8u : 0u);

  __device__ static unsigned elements_bytes(int count) {
    return static_cast<unsigned>(count) * static_cast<unsigned>(sizeof(T));
  }
  __device__ int values() const { return layout.units * layout.outputs + layout.outputs; }
  /// Of the direct form: for each of four units, the loss, and b2.
  __device__ int sum_values() const { return arguments.b2 != nullptr ? 6 : 5; }
  __device__ int warps_with_samples() const {
    int warps = 0;
#pragma unroll 1
    for (int i = 0; i < blocks; ++i) warps += (samples_of(i) + 3) / 4;
    return warps;
  }
  __device__ unsigned bytes_of(int which) const {
    return which == kParts ? part_bytes : which == kGradients ? gradient_bytes : sum_bytes;
  }
  /// Sends a value to the block `to` of the cluster, where `mine` is.
  template <class Value>
  __device__ void send(Value* mine, int to, const Value& value, int which) const {
    if (direct || blocks > 1)
      store_async(remote(mine, static_cast<unsigned>(to)), value, remote(barrier(which), static_cast<unsigned>(to)));
    else
      *mine = value;
  }
  /// Waits for all that is sent to this block in that step; all of its threads call it. One of them then opens the next
  /// phase. A block without peers only synchronizes.
  __device__ bool receive(int which, std::int64_t step) const {
    if (!direct && blocks == 1) {
      block_barrier();
      return true;
    }
    return receive(which, step, 0);
  }
  /// The same by some of the threads, the one that opens the next phase among them. What depends on the predictions is
  /// waited for in vain where these have not come: warps without samples notice it only here.
  __device__ bool receive(int which, std::int64_t step, int opens) const {
    const TwoLayerPhase phase = which == kParts ? TwoLayerPhase::kClusterExchange : TwoLayerPhase::kPredictions;
    const bool arrived =
        wait_transactions(barrier(which), static_cast<unsigned>(step) % 2, deadline(), two_layer_code(phase, step));
    if (arrived && thread == opens) arrive_expecting(barrier(which), bytes_of(which));
    return arrived;
  }

  /// Loads this thread's tile of X; missing entries are zero.
  __device__ __forceinline__ void load_tile(Tile& x) const {
    const int mine = columns();
#pragma unroll
    for (int r = 0; r < tile_rows; ++r)
#pragma unroll
      for (int c = 0; c < tile_columns; ++c) {
        const int row = row_of(r), column = warp * kColumnsOfWarp + column_of(c);
        T value = 0;
        if (row < layout.batch && column < mine)
          value =
              first_column + column < layout.inputs ? arguments.x[row * layout.inputs + first_column + column] : T(1);
        x[r][c] = value;
      }
  }

  /// Calls use(global, shared) for each weight of the block's columns and units, b1 among them.
  template <class Use>
  __device__ void each_weight(Use use) const {
    const int all = layout.column_warps * kColumnsOfWarp, count = units();
#pragma unroll 1
    for (int i = thread; i < columns() * count; i += kThreads) {
      const int column = i / count, unit = i % count, input = first_column + column;
      T* const row = input < layout.inputs ? arguments.w1 + std::int64_t{input} * layout.hidden : arguments.b1;
      use(row[first_unit + unit], weights()[(unit / kGroup * all + column) * kGroup + unit % kGroup]);
    }
  }

  /// Fills shared memory from global memory; missing entries are zero. Opens the first phase of the barriers.
  __device__ void load() const {
    const auto clear = [&](T* to, int count) {
#pragma unroll 1
      for (int i = thread; i < count; i += kThreads) to[i] = T(0);
    };
    clear(weights(), layout.groups * layout.column_warps * kColumnsOfWarp * kGroup);
    clear(at<T>(layout.dz_at), layout.groups * kRows * kGroup);
    if (direct) {
      clear(received(), blocks * static_cast<int>(kWarpThreads) * kGroup);
      clear(sums(), 6 * blocks * kThreads / static_cast<int>(kWarpThreads));
    }
    block_barrier();
    each_weight([](const T& from, T& to) { to = from; });
#pragma unroll 1
    for (int i = thread; i < layout.units * layout.outputs; i += kThreads)
      output_weights()[i] = i < units() * layout.outputs ? arguments.w2[first_unit * layout.outputs + i] : T(0);
#pragma unroll 1
    for (int i = thread; i < layout.outputs; i += kThreads)
      output_bias()[i] = arguments.b2 != nullptr ? arguments.b2[i] : T(0);
#pragma unroll 1
    for (int i = thread; i < samples_of(rank) * layout.outputs; i += kThreads)
      at<T>(layout.target_at)[i] = arguments.y[first_sample * layout.outputs + i];
    if (thread == 0) {
      failed(0) = failed(1) = 0;
      *at<Deadline>(layout.deadline_at) = {arguments.timeout_ns == 0 ? 0 : clock_ns() + arguments.timeout_ns,
                                           arguments.failed};
      if (blocks > 1) {
        for (int which : {kParts, kGradients, kSums}) init_transactions(barrier(which), 1);
        fence_transactions_init();
        for (int which : {kParts, kGradients, kSums}) arrive_expecting(barrier(which), bytes_of(which));
      }
    }
    block_barrier();
    cluster_barrier();
  }

  /// Stores the parameters to global memory; w2 and b2 are the same in every block that holds them.
  __device__ void store() const {
    each_weight([](T& to, const T& from) { to = from; });
    if (rank != 0) return;
#pragma unroll 1
    for (int i = thread; i < units() * layout.outputs; i += kThreads)
      arguments.w2[first_unit * layout.outputs + i] = output_weights()[i];
    if (cluster != 0 || arguments.b2 == nullptr) return;
#pragma unroll 1
    for (int i = thread; i < layout.outputs; i += kThreads) arguments.b2[i] = output_bias()[i];
  }

  /// Writes this warp's part of Z, that of its columns, as group `place` of the partial sums.
  __device__ __forceinline__ void forward(const Tile& x, int g, int place) const {
    const auto* const w1 =
        reinterpret_cast<const Vector*>(weights()) + (g * layout.column_warps + warp) * kColumnsOfWarp;
    T z[tile_rows * kGroup];
#pragma unroll
    for (int c = 0; c < tile_columns; ++c) {
      const Vector w = w1[column_of(c)];
#pragma unroll
      for (int r = 0; r < tile_rows; ++r)
#pragma unroll
        for (int u = 0; u < kGroup; ++u) {
          T& sum = z[r * kGroup + u];
          sum = c == 0 ? x[r][c] * w.values[u] : std::fma(x[r][c], w.values[u], sum);
        }
    }
    Vector* const to = partial() + (warp * (direct ? 1 : layout.groups_at_once) + place) * kRows;
#pragma unroll
    for (int r = 0; r < tile_rows; r += 4) {
      T four[4 * kGroup];
#pragma unroll
      for (int i = 0; i < 4 * kGroup; ++i) four[i] = z[r * kGroup + i];
      scatter_sums<kColumnLanes, kRowLanes, 1>(four, column_lane);
      Vector sums;
#pragma unroll
      for (int u = 0; u < kGroup; ++u) sums.values[u] = four[u];
      to[row_of(r)] = sums;
    }
  }

  /// Where a half of a vector of Z goes, `index` numbers these halves: sample by sample, of each `count` groups from
  /// `first` on.
  struct Part {
    int from, to, place;  ///< in partial, as a half; block; in received, as a half
  };
  __device__ Part part_of(int index, int first, int count) const {
    const int half = index & 1, g = index / 2 % count, sample = index / 2 / count;
    const int to = sample / layout.samples, own = sample - to * layout.samples;
    const int rows = direct ? static_cast<int>(kWarpThreads) : layout.samples;
    return {(g * kRows + sample) * 2 + half, to, ((rank * layout.groups + first + g) * rows + own) * 2 + half};
  }
  /// The block's part of Z: the sum over its warps.
  __device__ Half sum_of(int from) const {
    const auto* const parts = reinterpret_cast<const Half*>(partial()) + from;
    Half sum = parts[0];
#pragma unroll 7
    for (int w = 1; w < layout.column_warps; ++w) {
      const Half part = parts[w * (direct ? 1 : layout.groups_at_once) * kRows * 2];
#pragma unroll
      for (int i = 0; i < kGroup / 2; ++i) sum.values[i] += part.values[i];
    }
    return sum;
  }

  /// Descends in this warp's weights of W1, a part of the tile's columns after the other: registers bound the sums.
  __device__ __forceinline__ void backward(const Tile& x, int g) const {
    constexpr int kRounds = tile_columns / kColumnsAtOnce;
    const Vector* const rows = dz() + g * kRows;
    T* const mine = weights() +
                    ((g * layout.column_warps + warp) * kColumnsOfWarp + column_lane * tile_columns) * kGroup +
                    row_lane * kRounds * kOwnWeights;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      T sums[kColumnsAtOnce * kGroup];
#pragma unroll
      for (int r = 0; r < tile_rows; ++r) {
        const Vector d = rows[row_of(r)];
#pragma unroll
        for (int c = 0; c < kColumnsAtOnce; ++c)
#pragma unroll
          for (int u = 0; u < kGroup; ++u) {
            T& sum = sums[c * kGroup + u];
            const T value = x[r][c * kRounds + round];
            sum = r == 0 ? value * d.values[u] : std::fma(value, d.values[u], sum);
          }
      }
      scatter_sums<kRowLanes, 1, kGroup>(sums, row_lane);
      auto& place = *reinterpret_cast<Group<T, kOwnWeights>*>(mine + round * kOwnWeights);
      Group<T, kOwnWeights> own = place;
#pragma unroll
      for (int i = 0; i < kOwnWeights; ++i)
        own.values[i] = elementwise::sgd_update(own.values[i], sums[i], arguments.learning_rate);
      place = own;
    }
  }
};

/// What a thread of a direct block keeps over the steps: eight lanes share a sample, four samples a warp.
template <class Block>
struct DirectLanes {
  using Vector = typename Block::Vector;
  using Half = typename Block::Half;

  const Block& block;
  DirectWords<float> words{block.rank, block.cluster,           block.warp,
                           block.lane, block.layout.publishers, block.samples_of(block.rank)};
  int share = words.share, sample = words.sample;
  bool has_sample = words.has_sample;
  bool has_part = block.thread < 2 * block.layout.batch;
  float target = has_sample ? block.template at<float>(block.layout.target_at)[sample] : 0.0f;
  typename Block::Part part = block.part_of(has_part ? block.thread : 0, 0, 1);
  Remote<Half> part_to = remote(reinterpret_cast<Half*>(block.received()) + part.place, static_cast<unsigned>(part.to));
  Remote<TransactionBarrier> part_barrier = remote(block.barrier(Block::kParts), static_cast<unsigned>(part.to));
  Remote<Vector> dz_to = remote(block.dz() + block.first_sample + sample % 32, static_cast<unsigned>(share % 4));
  Remote<TransactionBarrier> dz_barrier = remote(block.barrier(Block::kGradients), static_cast<unsigned>(share % 4));
  Remote<float> sum_to =
      remote(block.sums() + share % 6 * 32 + block.rank * 8 + block.warp, static_cast<unsigned>(block.lane / 8));
  Remote<TransactionBarrier> sum_barrier = remote(block.barrier(Block::kSums), static_cast<unsigned>(block.lane / 8));

  /// Sends this thread's part of Z.
  __device__ __forceinline__ void send_parts(int, int) const {
    if (has_part) store_async(part_to, block.sum_of(part.from), part_barrier);
  }

  /// From the parts of Z to dZ of the block's samples, in all blocks of the cluster. False if a wait failed.
  __device__ __forceinline__ bool exchange(std::int64_t step, unsigned tag) const {
    const Vector w2 = *reinterpret_cast<const Vector*>(block.output_weights());
    const float bias = block.output_bias()[0];
    bool arrived = block.receive(Block::kParts, step, 0);
    const auto* const parts = reinterpret_cast<const Vector*>(block.received()) + sample;
    Vector z = parts[0], h, d;
#pragma unroll
    for (int k = 1; k < 4; ++k)
#pragma unroll
      for (int u = 0; u < 4; ++u) z.values[u] += parts[k * 32].values[u];
#pragma unroll
    for (int u = 0; u < 4; ++u) h.values[u] = elementwise::relu(z.values[u]);
    const float mine = std::fma(h.values[0], w2.values[0], h.values[1] * w2.values[1]) +
                       std::fma(h.values[2], w2.values[2], h.values[3] * w2.values[3]);
    Tagged<float>* const slots = words.slots_of(block.arguments.slots, tag);
    words.publish_part(slots, mine, tag);
    wait_cycles(clock_cycles(), static_cast<unsigned>(block.layout.poll_after));
    const float sum = words.receive_sum(slots, tag, block.deadline(), step, arrived);
    const float difference = sum + bias - target, dp = elementwise::squared_error_gradient(difference);
#pragma unroll
    for (int u = 0; u < 4; ++u) d.values[u] = elementwise::relu_gradient(z.values[u], dp * w2.values[u]);
    if (has_sample && share < 4) store_async(dz_to, d, dz_barrier);

    const float h0 = h.values[0], h1 = h.values[1], h2 = h.values[2], h3 = h.values[3];
    const float factor = share == 0 ? h0 : share == 1 ? h1 : share == 2 ? h2 : share == 3 ? h3 : difference;
    float term = share == 4 ? factor * difference : share == 5 ? dp : factor * dp;
    if (!has_sample) term = 0;
    term += warp_shuffle_xor(term, 8u);
    term += warp_shuffle_xor(term, 16u);
    if (warp_ballot(!arrived) == 0 && share < block.sum_values() && words.waits) store_async(sum_to, term, sum_barrier);
    return arrived;
  }

  /// Descends in w2 and b2, by a warp for each, and writes the loss. False if a wait failed.
  __device__ __forceinline__ bool finish(std::int64_t step) const {
    const bool writes_loss = block.warp == 3 && block_index() == 0, has_bias = block.arguments.b2 != nullptr;
    if (block.warp < 2 || (block.warp == 2 && !has_bias) || (block.warp == 3 && !writes_loss)) return true;
    const bool arrived = block.receive(Block::kSums, step, 128);
    const float* const row = block.sums() + block.lane;
    if (writes_loss) {
      auto total = static_cast<double>(row[4 * 32]);
#pragma unroll
      for (unsigned mask = 1; mask < 32; mask *= 2) total += warp_shuffle_xor(total, mask);
      if (arrived && block.lane == 0) block.arguments.losses[step] = total;
      return arrived;
    }
    float total = row[(block.warp == 2 ? 5 : block.warp - 4) * 32];
#pragma unroll
    for (unsigned mask = 1; mask < 32; mask *= 2) total += warp_shuffle_xor(total, mask);
    float& parameter = block.warp == 2 ? block.output_bias()[0] : block.output_weights()[block.warp - 4];
    if (block.lane == 0) parameter = elementwise::sgd_update(parameter, total, block.arguments.learning_rate);
    return arrived;
  }
};

/// Any number of outputs, groups of units and blocks, through shared memory.
template <class Block, class T>
struct SharedExchange {
  using Vector = typename Block::Vector;
  using Half = typename Block::Half;
  static constexpr int kGroup = Block::kGroup, kThreads = Block::kThreads;

  const Block& block;
  int samples = block.samples_of(block.rank), outputs = block.layout.outputs, items = samples * outputs;

  __device__ int place_of(int sample, int unit) const {
    return (unit / kGroup * block.layout.samples + sample) * kGroup + unit % kGroup;
  }

  __device__ void send_parts(int first, int count) const {
#pragma unroll 1
    for (int i = block.thread; i < block.layout.batch * count * 2; i += kThreads) {
      const typename Block::Part part = block.part_of(i, first, count);
      block.send(reinterpret_cast<Half*>(block.received()) + part.place, part.to, block.sum_of(part.from),
                 Block::kParts);
    }
  }

  __device__ void hidden_values() const {
    const int count = block.layout.groups * block.layout.samples * kGroup;
#pragma unroll 1
    for (int i = block.thread; i < count; i += kThreads) {
      T z = block.received()[i];
#pragma unroll 1
      for (int k = 1; k < block.blocks; ++k) z += block.received()[k * count + i];
      block.hidden()[i] = elementwise::relu_marked(z);
    }
  }

  __device__ void publish_parts(Tagged<T>* mine, unsigned tag) const {
#pragma unroll 1
    for (int i = block.thread; i < items; i += kThreads) {
      const int sample = i / outputs, output = i - sample * outputs;
      T sum = 0;
#pragma unroll 1
      for (int g = 0; g < block.layout.groups; ++g)
#pragma unroll
        for (int u = 0; u < kGroup; ++u)
          sum = std::fma(block.hidden()[(g * block.layout.samples + sample) * kGroup + u],
                         block.output_weights()[(g * kGroup + u) * outputs + output], sum);
      publish(mine + i, sum, tag);
    }
  }

  /// The gradient of the predictions; the words of all clusters are added in one order.
  __device__ bool receive_gradient(Tagged<T>* slots, std::int64_t step, unsigned tag) const {
    constexpr int kAtOnce = slots_at_once(sizeof(T)) / 2;
    const int lanes = 1 << block.layout.lanes_log2, share = block.lane & (lanes - 1);
    const int all = block.layout.batch * outputs;
    bool arrived = true;
#pragma unroll 1
    for (int begin = 0; begin << block.layout.lanes_log2 < items << block.layout.lanes_log2;
         begin += kThreads >> block.layout.lanes_log2) {
      const int item = begin + (block.thread >> block.layout.lanes_log2);
      T sum = 0;
      if (item < items)
#pragma unroll 1
        for (int first = share; first < block.layout.publishers; first += kAtOnce * lanes) {
          const int left = (block.layout.publishers - first + lanes - 1) >> block.layout.lanes_log2;
          T values[kAtOnce];
          arrived &= wait_tagged(values, slots + (std::int64_t{first} * all + item), std::int64_t{lanes} * all,
                                 left < kAtOnce ? left : kAtOnce, tag, block.deadline(),
                                 two_layer_code(TwoLayerPhase::kPredictions, step));
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) sum += values[i];
        }
#pragma unroll 1
      for (int mask = 1; mask < lanes; mask *= 2) sum += warp_shuffle_xor(sum, static_cast<unsigned>(mask));
      if (share != 0 || item >= items) continue;
      const T prediction = sum + block.output_bias()[item % outputs];
      block.gradient()[item] =
          elementwise::squared_error_gradient(prediction - block.template at<T>(block.layout.target_at)[item]);
    }
    return arrived;
  }

  /// dZ of the block's samples, to all blocks, its own among them: see the order of W2's change below.
  __device__ void send_gradients() const {
#pragma unroll 1
    for (int i = block.thread; i < samples * block.layout.groups; i += kThreads) {
      const int g = i / samples, sample = i - g * samples;
      Vector d;
#pragma unroll
      for (int u = 0; u < kGroup; ++u) d.values[u] = T(0);
#pragma unroll 1
      for (int output = 0; output < outputs; ++output) {
        const T dp = block.gradient()[sample * outputs + output];
#pragma unroll
        for (int u = 0; u < kGroup; ++u)
          d.values[u] = std::fma(dp, block.output_weights()[(g * kGroup + u) * outputs + output], d.values[u]);
      }
      const Vector h = *reinterpret_cast<const Vector*>(block.hidden() + place_of(sample, g * kGroup));
#pragma unroll
      for (int u = 0; u < kGroup; ++u) d.values[u] = elementwise::relu_gradient_marked(h.values[u], d.values[u]);
#pragma unroll 1
      for (int to = 0; to < block.blocks; ++to)
        block.send(block.dz() + g * Block::kRows + block.first_sample + sample, to, d, Block::kGradients);
    }
  }

  /// The block's part of the gradients of w2 and b2; eight lanes share a sum.
  __device__ void send_sums() const {
    constexpr int kLanes = 8;
    const int values = block.values(), weights = block.layout.units * outputs, share = block.lane % kLanes;
#pragma unroll 1
    for (int begin = 0; begin < values; begin += kThreads / kLanes) {
      const int value = begin + block.thread / kLanes;
      const bool is_bias = value >= weights;
      const int unit = is_bias ? 0 : value / outputs, output = is_bias ? value - weights : value - unit * outputs;
      T sum = 0;
      if (value < values)
#pragma unroll 1
        for (int sample = share; sample < samples; sample += kLanes) {
          const T dp = block.gradient()[sample * outputs + output];
          sum = is_bias ? sum + dp : std::fma(block.hidden()[place_of(sample, unit)], dp, sum);
        }
#pragma unroll
      for (unsigned mask = 1; mask < kLanes; mask *= 2) sum += warp_shuffle_xor(sum, mask);
      if (value < values)
#pragma unroll 1
        for (int to = share; to < block.blocks; to += kLanes)
          block.send(block.sums() + block.rank * values + value, to, sum, Block::kSums);
    }
  }

  /// The block's part of the loss, to the first block; one warp calls it. A lane adds at most kTerms squares in T.
  __device__ void send_loss() const {
    double total = 0;
#pragma unroll 1
    for (int begin = block.lane; begin < items; begin += static_cast<int>(kWarpThreads) * kTerms) {
      T sum = 0;
#pragma unroll 1
      for (int term = 0; term < kTerms; ++term) {
        const int item = begin + term * static_cast<int>(kWarpThreads);
        if (item >= items) break;
        const T difference = block.gradient()[item] * T(0.5);  // exact: the gradient is the doubled difference
        sum = std::fma(difference, difference, sum);
      }
      total += static_cast<double>(sum);
    }
#pragma unroll
    for (unsigned mask = 1; mask < kWarpThreads; mask *= 2) total += warp_shuffle_xor(total, mask);
    if (block.lane == 0)
      block.send(block.template at<double>(block.layout.loss_at) + block.rank, 0, total, Block::kSums);
  }

  __device__ bool exchange(std::int64_t step, unsigned tag) const {
    // Without samples a barrier of transactions expects nothing: its phases would end by themselves.
    bool arrived = true;
    if (samples > 0 || block.blocks == 1) arrived = block.receive(Block::kParts, step);
    hidden_values();
    block_barrier();
    Tagged<T>* const slots = block.arguments.slots +
                             std::int64_t{tag % 2} * block.layout.publishers * block.layout.batch * outputs +
                             block.first_sample * outputs;
    publish_parts(slots + std::int64_t{block.cluster} * block.layout.batch * outputs, tag);
    wait_cycles(clock_cycles(), static_cast<unsigned>(block.layout.poll_after));
    arrived &= receive_gradient(slots, step, tag);
    if (!arrived) block.failed(tag % 2) = 1;
    block_barrier();
    if (samples == 0 || block.failed(tag % 2) != 0) return arrived;
    send_gradients();
    send_sums();
    if (block.cluster == 0 && block.warp == kThreads / static_cast<int>(kWarpThreads) - 1) send_loss();
    return arrived;
  }

  __device__ bool finish(std::int64_t step) const {
    const bool arrived = block.receive(Block::kSums, step);
    const int values = block.values(), weights = block.layout.units * outputs;
#pragma unroll 1
    for (int value = block.thread; value < values; value += kThreads) {
      T sum = block.sums()[value];
#pragma unroll 1
      for (int k = 1; k < block.layout.owners; ++k) sum += block.sums()[k * values + value];
      if (value >= weights && block.arguments.b2 == nullptr) continue;
      T& parameter = value < weights ? block.output_weights()[value] : block.output_bias()[value - weights];
      parameter = elementwise::sgd_update(parameter, sum, block.arguments.learning_rate);
    }
    if (block.gathers_loss && block.thread == 0 && arrived) {
      const double* const parts = block.template at<double>(block.layout.loss_at);
      double loss = parts[0];
#pragma unroll 1
      for (int k = 1; k < block.layout.owners; ++k) loss += parts[k];
      block.arguments.losses[step] = loss;
    }
    return arrived;
  }
};

/// A cluster owns a few hidden units, and each of its blocks a slice of the inputs, of which the block keeps X in
/// registers for the whole launch, and the predictions of some samples. A step, where | is a barrier of the block and
/// [..] a wait for what all blocks of the cluster have sent:
///
///   X W1 of the slice, by warps | the block's part of Z to the owner of each sample [Z] h = relu(Z); the cluster's
///   part of the predictions to global memory; a while later, the wait for those of all clusters; dP = 2 (P - Y) dZ =
///   dP W2^T, masked, of the own samples to all blocks; sums over these samples for W2, b2 and the loss likewise [dZ]
///   update W1 of the slice [sums] update W2, b2
///
/// In the general form there is a barrier | before the predictions and one after dP; in the direct form a sample passes
/// through eight lanes of one warp alone. A lane has a tile of tile_rows samples by tile_columns inputs.
///
/// Why nothing is overwritten that somebody still needs, and no fence is missing. Between the blocks of a cluster all
/// goes by asynchronous stores; who has waited for the barrier of transactions that counts them sees them. All threads
/// wait for Z and for dZ in each step (without samples a block has no Z to wait for), so that none is a phase behind.
///  - The block's partial sums are read for sending Z. A warp overwrites them in the next step, after it has waited for
///    dZ: dZ comes from all owners, each of which has waited for all parts of Z of its samples, those of this block
///    too.
///  - Z is received by an owner A. A peer B sends it for the next step after all of B's warps have waited for dZ of
///    this step, the part of A among it; A sends that part after it has read Z: in the general form after a barrier of
///    all its threads, in the direct form each warp after its own lanes have met in shuffles.
///  - dZ and the sums are received by every block A. An owner B sends them for the next step after it has received all
///    parts of Z of that step, A's among them; A sends its part of Z behind the barrier that follows its forward pass,
///    that is after all of its threads have read dZ and the sums of this step.
///  - The phase of a barrier of transactions is opened again by the thread that has waited, before it arrives at a
///    barrier of its block, or sends dZ, without which nobody sends anything for the next phase; a phase that all
///    threads wait for can only end once all of them have passed the one before, for the same reason.
///  - In the general form h, dP and the parameters are ordered by the barriers of the block, but for the change of w2
///    and b2 behind the wait for dZ: a thread has computed dZ with the old w2 before it sends it to any block, and the
///    wait is for what this block's threads have sent to the block itself too. In the direct form a thread reads w2 and
///    b2 behind the barrier that follows the forward pass and uses them before it sends sums, without which they do not
///    change.
///  - Words in global memory carry the step's tag and lie in one of two places by its parity. A reader polls for a word
///    of step s; it is overwritten in step s + 2 by its publisher A, whose warp (in the general form: block) has then
///    received the words of s + 1 for the same samples from every cluster, the reader's too; and the reader's warp
///    (block) published those after its poll of s had ended. Tag and value are one word that is written and read as a
///    whole, so that no fence is needed.
/// A wait that fails makes the thread go on with whatever it has, without writing the loss; all threads of the block
/// leave together in the next step, behind the barrier, by a flag of the step before: nobody writes that one any more.
/// Stores may then still be on their way to a block, so the cluster waits until they have landed before it ends.
template <class T, int tile_rows, int tile_columns, bool direct>
__global__ void __launch_bounds__(kPrimalThreads, 1)
    two_layer_kernel(TwoLayerArguments<T> arguments, TwoLayerLayout layout) {
  using Block = Primal<T, tile_rows, tile_columns, direct>;
  const Block block{arguments, layout, shared<SharedBytes>().bytes};
  typename Block::Tile x;
  block.load_tile(x);
  block.load();
  const auto exchange = [&] {
    if constexpr (direct)
      return DirectLanes<Block>{block};
    else
      return SharedExchange<Block, T>{block};
  }();
  const bool has_columns = block.warp < layout.column_warps;
  const int groups = direct ? 1 : layout.groups, at_once = direct ? 1 : layout.groups_at_once;

  bool all_well = true;
  for (std::int64_t step = 0; step < arguments.steps; ++step) {
    const unsigned tag = arguments.first_tag + static_cast<unsigned>(step);
#pragma unroll 1
    for (int first = 0; first < groups; first += at_once) {
      const int count = groups - first < at_once ? groups - first : at_once;
      if (first > 0) block_barrier();
      if (has_columns)
#pragma unroll 1
        for (int place = 0; place < count; ++place) block.forward(x, first + place, place);
      block_barrier();
      if (first == 0 && block.failed((tag - 1) % 2) != 0) all_well = false;
      if (!all_well) break;
      exchange.send_parts(first, count);
    }
    if (!all_well) break;
    bool arrived = exchange.exchange(step, tag);
    arrived &= block.receive(Block::kGradients, step);
    if (has_columns) {
#pragma unroll 1
      for (int g = 0; g < groups; ++g) block.backward(x, g);
      warp_barrier();
    }
    arrived &= exchange.finish(step);
    if (!arrived) block.failed(tag % 2) = 1;
  }
  block_barrier();
  all_well = all_well && (arguments.steps == 0 ||
                          block.failed((arguments.first_tag + static_cast<unsigned>(arguments.steps) - 1) % 2) == 0);
  if (all_well && arguments.keep) block.store();
  if (block.blocks == 1) return;
  // A block must not end while others may still store into its shared memory.
  cluster_barrier();
  if (has_failed(block.deadline())) let_stores_land();
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
  constexpr int kNarrow = kTileRegisters / 16 * 4 / sizeof(T);  ///< columns of the tile of 16 rows
  if constexpr (sizeof(T) == 4) {
    if (layout.direct)
      return layout.tile_rows == 16 ? two_layer_kernel<T, 16, kNarrow, true> : two_layer_kernel<T, 8, kNarrow, true>;
  }
  const bool is_narrow = layout.tile_columns * layout.tile_rows * static_cast<int>(sizeof(T)) < kTileRegisters * 4;
  if (layout.tile_rows == 16) return two_layer_kernel<T, 16, kNarrow, false>;
  if (layout.tile_rows == 8)
    return is_narrow ? two_layer_kernel<T, 8, kNarrow, false> : two_layer_kernel<T, 8, 2 * kNarrow, false>;
  return is_narrow ? two_layer_kernel<T, 4, 2 * kNarrow, false> : two_layer_kernel<T, 4, 4 * kNarrow, false>;
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
