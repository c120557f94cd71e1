#include "fused_tf32.h"

#include <cstring>

#include "../runtime/launch.h"
#include "../runtime/tensor.cuh"
#include "fused_parts.cuh"

namespace deviceloop::cuda {
namespace {

using fused::BlockParts;
using fused::Element;
using fused::Four;

constexpr TensorType kType = TensorType::kTf32;
using Matrix = SharedMatrix<kType, Major::kK>;  // the only one that tensor cores take in TF32
constexpr int kDepth = 8;                       // of a product
constexpr int kWidth = kFusedTf32Width;
constexpr int kProducts = kWidth / kDepth;  // over the inputs of a layer, and over the rows of a tile
constexpr int kPanelWidth = 32;
constexpr int kTileBytes = kWidth / kPanelWidth * kFusedPanelBytes;
constexpr int kLastPanelBytes = kFusedOutputs * kPanelRowBytes;  // of 32 values of each output
constexpr int kLastTileBytes = kWidth / kPanelWidth * kLastPanelBytes;
static_assert(kFusedRows == kWidth && kFusedPanelBytes == kWidth * kPanelRowBytes);

/// Where value `i` of those over which a product sums lies, in all operands: within eight, the even ones first. A
/// thread's sums of columns 2 c and 2 c + 1 then are columns c and c + 4 of a next product's fragment, as they must be.
__device__ constexpr int position(int i) { return i / 8 * 8 + i % 8 / 2 + i % 2 * 4; }
/// That of a thread's value `i` of four sums in a fragment.
__device__ constexpr int in_fragment(int i) { return i / 2 + i % 2 * 2; }

/// Of an operand, in bytes from its beginning: row `row`, and value `i` of those over which a product sums.
__device__ constexpr int operand_offset(int row, int i, int panel_bytes) {
  return i / kPanelWidth * panel_bytes + panel_offset(row, position(i) % kPanelWidth * 4);
}

__device__ inline float value_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
__device__ inline float load_float(const unsigned char* from) {
  float value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// Values as operands, of which there are `parts`: the nearest in TF32, then what that leaves.
template <int parts>
struct Split {
  std::uint32_t words[parts];

  __device__ explicit Split(float value) {
    words[0] = to_tf32(value);
    if constexpr (parts == 2) words[1] = to_tf32(value - value_of(words[0]));
  }
};

/// The A of `steps` products in registers.
template <int parts, int steps>
using Fragments = std::uint32_t[parts][steps][4];

/// Sums = A B. The smallest terms are added first.
/// @{
template <int columns, int parts, int steps>
__device__ void multiply(Accumulator<columns>& sums, std::uint32_t (&a)[parts][steps][4], const Matrix (&b)[parts]) {
  if constexpr (parts == 1) {
    begin_products(sums, a[0]);
  } else {
    begin_products(sums, a[0], a[1]);
#pragma unroll
    for (int i = 0; i < steps; ++i) multiply_async(sums, a[1][i], b[0].k_step(i), i > 0);
#pragma unroll
    for (int i = 0; i < steps; ++i) multiply_async(sums, a[0][i], b[1].k_step(i), true);
  }
#pragma unroll
  for (int i = 0; i < steps; ++i) multiply_async(sums, a[0][i], b[0].k_step(i), parts == 2 || i > 0);
  commit_products();
}
template <int columns, int parts>
__device__ void multiply(Accumulator<columns>& sums, const Matrix (&a)[parts], const Matrix (&b)[parts]) {
  begin_products(sums);
  if constexpr (parts == 2) {
#pragma unroll
    for (int i = 0; i < kProducts; ++i) multiply_async(sums, a[1].k_step(i), b[0].k_step(i), i > 0);
#pragma unroll
    for (int i = 0; i < kProducts; ++i) multiply_async(sums, a[0].k_step(i), b[1].k_step(i), true);
  }
#pragma unroll
  for (int i = 0; i < kProducts; ++i) multiply_async(sums, a[0].k_step(i), b[0].k_step(i), parts == 2 || i > 0);
  commit_products();
}
/// @}

// How the threads of a block pass values to each other. A chain and the gradient group go through a tile in step: the
// chain stores an operand and arrives at `ready`; the group waits for that, adds the gradient of a layer's weights, and
// arrives at `taken`; the chain, which multiplies meanwhile, waits for that before it stores the next gradient where
// the hidden layer was that the group has read. So a tile has a phase of both barriers for each layer, the last one
// first, of which neither may skip one: a chain is at most one phase ahead.
//   Inputs: the bulk copy ends the phase of tile_arrived for which all threads of the chain wait. The group reads them
// behind the chain's arrival at `ready`. It arrives at stage_free when it has read them, and the chain has read them
// before it last arrived at `ready`; so the thread that fetches the next tile to that place writes behind all reads.
//   Hidden layers and gradients, which products read as operands: threads of the chain store them, each then calls
// fence_async_proxy, and one of a warp arrives behind warp_barrier, for the whole warp. Products of the group begin
// behind its wait for these arrivals. Those have read their operands when wait_products has returned, before the group
// arrives at `taken`; and the chain's stores to the same place come behind its wait for that. The chain's own products
// take hidden layers and gradients from registers alone.
//   The mask of a hidden layer is read by the thread that wrote it.
//   Weights are read from global memory behind the grid's barrier (release by each block's arrival, behind a barrier of
// its threads; acquire by the thread that waits, before another one), which orders them behind all updates of the step
// before. They are written to shared memory when all products of that step have ended, and before fence_async_proxy of
// all threads and their barrier.
template <int parts, int layers>
struct FusedTf32Block : BlockParts {
  // Of shared memory, in bytes: operands of the weights, forward from the first layer on, then back from the second
  // one, then of the last layer.
  static constexpr int kWeightBytes = parts * kTileBytes;
  static constexpr int kLastAt = (2 * layers - 1) * kWeightBytes, kLastBackAt = kLastAt + parts * kLastTileBytes;
  static constexpr unsigned kPhases = layers + 1;  // of a tile

  __device__ FusedTf32Block(const FusedArguments& of, const FusedLayout& cut, unsigned char* at)
      : BlockParts(of, cut, at) {}

  using Operand = Matrix[parts];

  static __device__ void set_operand(Operand& operand, const unsigned char* at, int part_bytes, int panel_bytes) {
#pragma unroll
    for (int part = 0; part < parts; ++part)
      operand[part] = shared_matrix<kType, Major::kK>(at + part * part_bytes, panel_bytes);
  }
  static __device__ void set_tile(Operand& operand, const unsigned char* at) {
    set_operand(operand, at, kTileBytes, kFusedPanelBytes);
  }

  __device__ unsigned char* forward_weights(int layer) const { return memory + layer * kWeightBytes; }
  __device__ unsigned char* back_weights(int layer) const { return memory + (layers + layer - 1) * kWeightBytes; }
  /// Of a chain: hidden layer `index`, 1 the first, or its gradient, transposed: [units, rows of the tile].
  __device__ unsigned char* hidden(int chain, int index) const {
    return memory + layout.stages_at + chain * layout.chain_bytes() + (index - 1) * parts * kTileBytes;
  }
  /// The gradient of the outputs, [outputs, rows of the tile].
  __device__ unsigned char* output_gradient(int chain) const { return hidden(chain, layers + 1); }
  /// Which of this thread()'s units of a hidden layer pass their gradients.
  __device__ std::uint32_t& mask(int chain, int index) const {
    return reinterpret_cast<std::uint32_t*>(
        memory + layout.masks_at)[(chain * layers + index - 1) * kFusedGroupThreads + thread() % kFusedGroupThreads];
  }

  // The weights.

  /// All elements of the hidden layers' weights, then those of the last layer's, are cut into 32, which a warp takes:
  /// eight columns of every other of eight rows, so that its stores fall into different banks.
  static constexpr int kSquares = kWidth * kWidth / 32, kAllPieces = layers * kSquares + kWidth * kFusedOutputs / 32;

  struct Weight {
    int layer, row, column;
  };
  static __device__ Weight weight_of(int piece) {
    const int layer = piece / kSquares, left = piece % kSquares;
    const int across = layer == layers ? kFusedOutputs / 8 : kWidth / 8;
    return {layer, left / 2 / across * 8 + lane() / 8 * 2 + left % 2, left / 2 % across * 8 + lane() % 8};
  }

  __device__ void store_weight(const Weight& at, float value) const {
    const Split<parts> split(value);
    const int i = at.row, o = at.column;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      const std::uint32_t word = split.words[part];
      if (at.layer == layers) {
        std::memcpy(memory + kLastAt + part * kLastTileBytes + operand_offset(o, i, kLastPanelBytes), &word,
                    sizeof word);
        std::memcpy(memory + kLastBackAt + panel_offset(i, (part * kDepth + position(o)) * 4), &word, sizeof word);
        continue;
      }
      std::memcpy(forward_weights(at.layer) + part * kTileBytes + operand_offset(o, i, kFusedPanelBytes), &word,
                  sizeof word);
      if (at.layer > 0)
        std::memcpy(back_weights(at.layer) + part * kTileBytes + operand_offset(i, o, kFusedPanelBytes), &word,
                    sizeof word);
    }
  }

  __device__ void load_weights() const {
    constexpr int kAtOnce = 8;  // on their way
    const int warps = layout.computing_threads() / 32;
#pragma unroll 1
    for (int first = thread() / 32; first < kAllPieces; first += kAtOnce * warps) {
      float values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        values[i] = 0;
        if (first + i * warps >= kAllPieces) continue;
        const Weight at = weight_of(first + i * warps);
        const int columns = arguments.widths[at.layer + 1];
        if (at.row < arguments.widths[at.layer] && at.column < columns)
          values[i] = arguments.weights[at.layer].values[at.row * columns + at.column];
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (first + i * warps < kAllPieces) store_weight(weight_of(first + i * warps), values[i]);
    }
    auto* const to = reinterpret_cast<float*>(memory + layout.biases_at);
    for (int i = thread(); i < layers * kWidth + kFusedOutputs; i += layout.computing_threads()) {
      const int layer = i / kWidth, column = i % kWidth;
      const float* const from = arguments.biases[layer].values;
      to[i] = from != nullptr && column < arguments.widths[layer + 1] ? from[column] : 0.0f;
    }
  }

  // The chains.

  /// This warp() has stored its part of what the gradient group needs next.
  __device__ void report(int chain) const {
    fence_async_proxy();
    warp_barrier();
    if (lane() == 0) arrive(&control().ready[chain][0][0]);
  }
  /// The gradient group has read what it needed in a phase.
  __device__ bool waits_until_taken(int chain, unsigned phase, std::int64_t step) {
    return group_waits_for(&control().taken[chain], phase % 2, FusedPhase::kGradients, step);
  }

  /// A tile of inputs, as it lies in memory, as fragments.
  __device__ void load_inputs(Fragments<parts, kProducts>& fragments, const unsigned char* tile) const {
    const int row = 16 * warp() + lane() / 4, byte = lane() % 4 * 4;
#pragma unroll
    for (int i = 0; i < kProducts; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Split<parts> split(load_float(tile + i / 4 * kFusedPanelBytes +
                                            panel_offset(row + 8 * (j % 2), i % 4 * kDepth * 4 + j / 2 * 16 + byte)));
#pragma unroll
        for (int part = 0; part < parts; ++part) fragments[part][i][j] = split.words[part];
      }
  }

  /// Fragments of values whose columns are units, transposed to a tile.
  __device__ void store(const Fragments<parts, kProducts>& fragments, unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int unit = 2 * (lane() % 4) + i % 2, row = 16 * warp() + lane() / 4 + 8 * (i / 2);
      unsigned char* const to = tile + operand_offset(unit, row, kFusedPanelBytes);
#pragma unroll
      for (int part = 0; part < parts; ++part)
#pragma unroll
        for (int j = 0; j < kProducts; ++j)
          std::memcpy(to + part * kTileBytes + j * 8 * kPanelRowBytes, &fragments[part][j][in_fragment(i)],
                      sizeof(std::uint32_t));
    }
  }

  /// relu(sums + bias) as fragments and in a tile.
  __device__ void activate(Fragments<parts, kProducts>& fragments, Accumulator<kWidth>& sums, int chain,
                           int index) const {
    const float* const biases = bias(index - 1) + 2 * (lane() % 4);
    std::uint32_t passes = 0;
#pragma unroll
    for (int j = 0; j < kProducts; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float z = sums[4 * j + i] + biases[8 * j + i % 2];
        if (!(z < 0)) passes |= 1u << (4 * j + i);
        const Split<parts> split(z < 0 ? 0.0f : z);
#pragma unroll
        for (int part = 0; part < parts; ++part) fragments[part][j][in_fragment(i)] = split.words[part];
      }
    mask(chain, index) = passes;
    store(fragments, hidden(chain, index));
  }

  /// The gradient behind relu as fragments.
  __device__ void mask_gradient(Fragments<parts, kProducts>& fragments, Accumulator<kWidth>& sums, int chain,
                                int index) const {
    const std::uint32_t passes = mask(chain, index);
#pragma unroll
    for (int j = 0; j < kProducts; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Split<parts> split((passes >> (4 * j + i) & 1) != 0 ? sums[4 * j + i] : 0.0f);
#pragma unroll
        for (int part = 0; part < parts; ++part) fragments[part][j][in_fragment(i)] = split.words[part];
      }
  }

  /// The gradient of the outputs as a fragment and in shared memory.
  __device__ void store_outputs(Fragments<parts, 1>& fragment, const float (&gradients)[4], unsigned char* to) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Split<parts> split(gradients[i]);
      const int output = 2 * (lane() % 4) + i % 2, row = 16 * warp() + lane() / 4 + 8 * (i / 2);
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        fragment[part][0][in_fragment(i)] = split.words[part];
        std::memcpy(to + part * kLastTileBytes + operand_offset(output, row, kLastPanelBytes), &split.words[part],
                    sizeof(std::uint32_t));
      }
    }
  }

  /// One tile; false if a wait has failed.
  __device__ bool take_tile(std::int64_t step, int k, double& loss) {
    const int chain = group();
    const unsigned number = number_of(step, k), turn = number / static_cast<unsigned>(layout.stages);
    const unsigned which = number % static_cast<unsigned>(layout.stages), phase = number * kPhases;
    Accumulator<kWidth> sums;
    Fragments<parts, kProducts> fragments;
    Operand operand;
    float targets[4] = {};  // on their way meanwhile
    load_targets(targets, tile_of(k));
    if (!group_waits_for(&control().tile_arrived[chain][which], turn % 2, FusedPhase::kForward, step)) return false;
    const unsigned char* const inputs = stage(chain, static_cast<int>(which));
    set_tile(operand, forward_weights(0));
    if constexpr (parts == 1) {
      Operand tile;
      set_tile(tile, inputs);
      multiply(sums, tile, operand);
    } else {
      load_inputs(fragments, inputs);
      multiply(sums, fragments, operand);
    }
    wait_products<0>(sums);
    if (!waits_until_taken(chain, phase - 1, step)) return false;  // all of the tile before
    activate(fragments, sums, chain, 1);
#pragma unroll 1
    for (int layer = 1; layer < layers; ++layer) {
      set_tile(operand, forward_weights(layer));
      multiply(sums, fragments, operand);
      wait_products<0>(sums);
      activate(fragments, sums, chain, layer + 1);
    }
    Accumulator<kFusedOutputs> outputs;
    set_operand(operand, memory + kLastAt, kLastTileBytes, kLastPanelBytes);
    multiply(outputs, fragments, operand);
    wait_products<0>(outputs);
    float gradients[4] = {};
    end_outputs(gradients, outputs, targets, tile_of(k), loss);
    Fragments<parts, 1> of_outputs;
    store_outputs(of_outputs, gradients, output_gradient(chain));
    report(chain);
    set_operand(operand, memory + kLastBackAt, kDepth * 4, kFusedPanelBytes);
    multiply(sums, of_outputs, operand);
    wait_products<0>(sums);
#pragma unroll 1
    for (int layer = layers;; --layer) {
      mask_gradient(fragments, sums, chain, layer);
      if (!waits_until_taken(chain, phase + static_cast<unsigned>(layers - layer), step)) return false;
      store(fragments, hidden(chain, layer));
      report(chain);
      if (layer == 1) return true;
      set_tile(operand, back_weights(layer - 1));
      multiply(sums, fragments, operand);
      wait_products<0>(sums);
    }
  }

  __device__ void run_chain(std::int64_t step) {
    const int tiles = block_tiles();
    double loss = 0;
    for (int k = group(); k < tiles; k += layout.chains)
      if (!take_tile(step, k, loss)) break;
    leave_loss(loss);
  }

  // The gradient group.

  /// The inputs of a tile, transposed, as fragments: rows are inputs.
  __device__ void load_transposed(Fragments<parts, kProducts>& fragments, const unsigned char* tile) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int input = 16 * warp() + lane() / 4 + 8 * (j % 2), row = 2 * (lane() % 4) + j / 2;
      const unsigned char* const from = tile + operand_offset(row, input, kFusedPanelBytes);
#pragma unroll
      for (int i = 0; i < kProducts; ++i) {
        const Split<parts> split(load_float(from + i * 8 * kPanelRowBytes));
#pragma unroll
        for (int part = 0; part < parts; ++part) fragments[part][i][j] = split.words[part];
      }
    }
  }

  /// The sum over half of a tile's rows of one unit: two lanes beside each other have a unit's.
  __device__ float sum_of_unit(const unsigned char* tile) const {
    const int unit = 16 * warp() + lane() / 2, half = lane() % 2;
    float sum = 0;
#pragma unroll
    for (int part = 0; part < parts; ++part)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        Four four;  // the halves begin apart, in different banks
        std::memcpy(&four, tile + part * kTileBytes + half * kFusedPanelBytes + panel_offset(unit, (i ^ 4 * half) * 16),
                    sizeof four);
        sum += four.values[0] + four.values[1] + (four.values[2] + four.values[3]);
      }
    return sum;
  }
  /// The sum over four of a tile's rows of one output: sixteen lanes have an output's.
  __device__ float sum_of_output(const unsigned char* tile) const {
    const int output = thread() % kFusedGroupThreads / 16, piece = lane() % 16;
    float sum = 0;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      Four four;
      std::memcpy(&four,
                  tile + part * kLastTileBytes + piece / 8 * kLastPanelBytes + panel_offset(output, piece % 8 * 16),
                  sizeof four);
      sum += four.values[0] + four.values[1] + (four.values[2] + four.values[3]);
    }
    return sum;
  }

  __device__ void report_taken(int chain) const {
    warp_barrier();
    if (lane() == 0) arrive(&control().taken[chain]);
  }

  /// What the gradient group sums over a step's tiles. Sums of a tile are the tensor cores', which cut them off; these
  /// are rounded.
  struct Gradients {
    float weights[layers][kWidth / 2] = {}, last[kFusedOutputs / 2] = {};
    float biases[layers] = {}, output = 0;
  };

  /// Adds one tile; false if a wait has failed.
  __device__ bool add_tile(Gradients& sums, std::int64_t step, int k) {
    const int chain = k % layout.chains;
    const unsigned number = number_of(step, k), which = number % static_cast<unsigned>(layout.stages);
    const unsigned phase = number * kPhases;
    const TransactionBarrier* const ready = &control().ready[chain][0][0];
    Operand of_inputs, of_gradient;
    if (!group_waits_for(ready, phase % 2, FusedPhase::kGradients, step)) return false;
    {
      Accumulator<kFusedOutputs> product;
      set_tile(of_inputs, hidden(chain, layers));
      set_operand(of_gradient, output_gradient(chain), kLastTileBytes, kLastPanelBytes);
      multiply(product, of_inputs, of_gradient);
      sums.output += sum_of_output(output_gradient(chain));
      wait_products<0>(product);
#pragma unroll
      for (int i = 0; i < kFusedOutputs / 2; ++i) sums.last[i] += product[i];
      report_taken(chain);
    }
    Accumulator<kWidth> product;
#pragma unroll
    for (int layer = layers - 1; layer >= 0; --layer) {
      const unsigned char* const gradient = hidden(chain, layer + 1);
      Fragments<parts, kProducts> inputs;
      if (layer == 0) load_transposed(inputs, stage(chain, static_cast<int>(which)));
      if (!group_waits_for(ready, (phase + static_cast<unsigned>(layers - layer)) % 2, FusedPhase::kGradients, step))
        return false;
      set_tile(of_gradient, gradient);
      if (layer == 0) {
        multiply(product, inputs, of_gradient);
      } else {
        set_tile(of_inputs, hidden(chain, layer));
        multiply(product, of_inputs, of_gradient);
      }
      sums.biases[layer] += sum_of_unit(gradient);
      wait_products<0>(product);
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) sums.weights[layer][i] += product[i];
      report_taken(chain);
    }
    if (lane() == 0) arrive(&control().stage_free[chain][which]);
    return true;
  }

  __device__ void run_gradients(std::int64_t step) {
    const int tiles = block_tiles();
    Gradients sums;
    for (int k = 0; k < tiles; ++k)
      if (!add_tile(sums, step, k)) break;
    const FusedSlots slots = layout.slots();
    float* const slot = slot_of_block();
    const int place = thread() % kFusedGroupThreads;
#pragma unroll
    for (int layer = 0; layer < layers; ++layer) {
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
        const float* const four = sums.weights[layer] + 4 * j;
        const Four values{four[0], four[1], four[2], four[3]};
        std::memcpy(slot + (layer * slots.fours_of_slab() + j * kFusedGroupThreads + place) * 4, &values,
                    sizeof values);
      }
      const float sum = sums.biases[layer] + warp_shuffle_xor(sums.biases[layer], 1);
      if (lane() % 2 == 0) slot[slots.biases_at() * 4 + layer * kWidth + place / 2] = sum;
    }
    const Four last{sums.last[0], sums.last[1], sums.last[2], sums.last[3]};
    std::memcpy(slot + (slots.last_weights_at() + place) * 4, &last, sizeof last);
    float output = sums.output;
    for (unsigned bit = 1; bit < 16; bit *= 2) output += warp_shuffle_xor(output, bit);
    if (lane() % 16 == 0) slot[slots.last_bias_at() * 4 + place / 16] = output;
  }

  template <class Run>
  __device__ void compute(const Run& run) {
    BlockParts::compute([&] { load_weights(); }, run, [](const Element&, float) {});
  }
};

template <int parts, int layers>
constexpr int kChains = fused_tf32_chains(parts, layers);
template <int parts, int layers>
constexpr int kBlockThreads = (kChains<parts, layers> + 2) * kFusedGroupThreads;

// Registers of a thread, 65536 of all.
constexpr int kFetchingRegisters = 24;
template <int parts, int layers>
constexpr int kChainRegisters = kChains<parts, layers> == 1 ? 240
                                : parts == 1                ? 144
                                                            : 152;
template <int parts, int layers>
constexpr int kGradientRegisters = kChains<parts, layers> == 1 ? 240
                                   : parts == 1                ? 200
                                                               : 184;

/// One step after another, of each of which the block takes every `blocks`th tile. Blocks are resident together.
template <int parts, int layers>
__global__ void __launch_bounds__((kBlockThreads<parts, layers>), 1)
    fused_tf32_kernel(FusedArguments arguments, FusedLayout layout) {
  static_assert(kFetchingRegisters + kChains<parts, layers> * kChainRegisters<parts, layers> +
                    kGradientRegisters<parts, layers> <=
                65536 / kFusedGroupThreads);
  FusedTf32Block<parts, layers> block(arguments, layout, shared<fused::FusedShared>().bytes);
  if (block.thread() == 0) block.init_control();
  block_barrier();
  if (block.group() > layout.chains) {
    lower_registers<kFetchingRegisters>();
    block.fetch();
  } else if (block.group() < layout.chains) {
    raise_registers<kChainRegisters<parts, layers>>();
    block.compute([&](std::int64_t step) { block.run_chain(step); });
  } else {
    raise_registers<kGradientRegisters<parts, layers>>();
    block.compute([&](std::int64_t step) { block.run_gradients(step); });
  }
}

/// A thread writes 16 bytes of a tile, of which tf32 has values in TF32 and tf32x3 those that there are.
__global__ void fused_tf32_tiles_kernel(std::uint32_t* tiles, const float* x, std::int64_t rows, int inputs,
                                        bool is_split, std::int64_t count) {
  constexpr int kPieces = kWidth / 4;  // of a row
  const std::int64_t i = static_cast<std::int64_t>(block_index()) * kThreads + thread_index();
  if (i >= count) return;
  const std::int64_t row = i / kPieces;
  const int piece = static_cast<int>(i % kPieces);
  const int in_tile = piece / 8 * kFusedPanelBytes + panel_offset(static_cast<int>(row % kFusedRows), piece % 8 * 16);
  std::uint32_t* const to = tiles + (row / kFusedRows * kTileBytes + in_tile) / 4;
  for (int j = 0; j < 4; ++j) {
    const int column = piece / 2 * 8 + 2 * j + piece % 2;  // whose position is 4 * piece + j
    const float value = row < rows && column < inputs ? x[row * inputs + column] : 0.0f;
    std::memcpy(to + j, &value, sizeof value);
    if (!is_split) to[j] = to_tf32(value);
  }
}

using Kernel = void (*)(FusedArguments, FusedLayout);

template <int parts, int layers>
Kernel kernel_with(int hidden) {
  if constexpr (layers > 1)
    if (hidden < layers) return kernel_with<parts, layers - 1>(hidden);
  return fused_tf32_kernel<parts, layers>;
}

Kernel kernel_of(const FusedLayout& layout) {
  return layout.parts == 1 ? kernel_with<1, kFusedTf32Hidden>(layout.hidden)
                           : kernel_with<2, kFusedTf32x3Hidden>(layout.hidden);
}

}  // namespace

void launch_fused_tf32_tiles(std::uint32_t* tiles, const float* x, int inputs, const FusedLayout& layout,
                             cudaStream_t stream) {
  const std::int64_t count = layout.tiles * (layout.tile_bytes() / 16);
  launch(fused_tf32_tiles_kernel, {divide_up(count, kThreads), kThreads}, stream, tiles, x, layout.rows, inputs,
         layout.parts == 2, count);
}

void prepare_fused_tf32(const FusedLayout& layout) {
  prepare_kernel(reinterpret_cast<const void*>(kernel_of(layout)), fused::config_of(layout));
}

void launch_fused_tf32(const FusedArguments& arguments, const FusedLayout& layout, cudaStream_t stream) {
  launch(kernel_of(layout), fused::config_of(layout), stream, arguments, layout);
}

}  // namespace deviceloop::cuda
