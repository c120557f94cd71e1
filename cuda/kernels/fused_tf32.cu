#include "fused_tf32.h"

#include <cmath>
#include <cstring>
#include <type_traits>

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
constexpr int kPanelWidth = 32;
constexpr int kRowProducts = kFusedRows / kDepth;                  // over the rows of a tile
constexpr int kRowPanels = kFusedRows / kPanelWidth;               // of an operand whose rows are units or outputs
constexpr int kOutputPanelBytes = kFusedOutputs * kPanelRowBytes;  // of 32 values of each output
constexpr int kOutputTileBytes = kRowPanels * kOutputPanelBytes;
static_assert(kFusedPanelBytes == kFusedRows * kPanelRowBytes);

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
__device__ inline std::uint32_t load_word(const unsigned char* from) {
  std::uint32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
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

/// The derivative of an activation other than relu, where the hidden value has its words: in the last bits of these,
/// which tensor cores ignore. Its magnitude is below 2; as a float, times 2^-120, it has 0 in the upper five bits of
/// the exponent, and the sign is kept elsewhere. What is left are three bits of the exponent and ten of the mantissa,
/// as many as TF32 has, or with two words all 23: numbers below 2^-6 are rounded to multiples of 2^-16, or of 2^-29.
/// @{
constexpr int kIgnoredBits = 13;
constexpr std::uint32_t kIgnored = (1u << kIgnoredBits) - 1;
constexpr float kDerivativeScale = 0x1p-120f;

template <int parts>
__device__ void put_derivative(std::uint32_t (&words)[parts], float magnitude) {
  const float scaled = magnitude * kDerivativeScale;
  if constexpr (parts == 1) {
    words[0] |= to_tf32(scaled) >> kIgnoredBits & kIgnored;
  } else {
    std::uint32_t bits;
    std::memcpy(&bits, &scaled, sizeof bits);
    words[0] |= bits >> kIgnoredBits & kIgnored;
    words[1] |= bits & kIgnored;
  }
}
/// The magnitude.
template <int parts>
__device__ float derivative_of(const std::uint32_t (&words)[parts]) {
  std::uint32_t bits = (words[0] & kIgnored) << kIgnoredBits;
  if constexpr (parts == 2) bits |= words[1] & kIgnored;
  return value_of(bits) * (1 / kDerivativeScale);
}
/// @}

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
template <int steps, int columns, int parts>
__device__ void multiply(Accumulator<columns>& sums, const Matrix (&a)[parts], const Matrix (&b)[parts]) {
  begin_products(sums);
  if constexpr (parts == 2) {
#pragma unroll
    for (int i = 0; i < steps; ++i) multiply_async(sums, a[1].k_step(i), b[0].k_step(i), i > 0);
#pragma unroll
    for (int i = 0; i < steps; ++i) multiply_async(sums, a[0].k_step(i), b[1].k_step(i), true);
  }
#pragma unroll
  for (int i = 0; i < steps; ++i) multiply_async(sums, a[0].k_step(i), b[0].k_step(i), parts == 2 || i > 0);
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
//   The mask of a hidden layer is read by the thread that wrote it, and so are derivatives in the words of its values,
// before that thread stores the gradient in their place.
//   Weights are read from global memory behind the grid's barrier (release by each block's arrival, behind a barrier of
// its threads; acquire by the thread that waits, before another one), which orders them behind all updates of the step
// before. They are written to shared memory when all products of that step have ended, and before fence_async_proxy of
// all threads and their barrier.
//   Of layers of 32 units the group's products read 64 rows: those beyond the units are what lies behind a panel of the
// layer, whatever that is, and their sums belong to no parameter.
template <int parts, int panels, int most_hidden>
struct FusedTf32Block : BlockParts {
  static constexpr int kWidth = panels * kPanelWidth;
  static constexpr int kProducts = kWidth / kDepth;  // over the inputs of a layer
  static constexpr int kTileBytes = panels * kFusedPanelBytes;
  static constexpr int kPanelBytes = kWidth * kPanelRowBytes;  // of operands whose rows are units
  static constexpr int kWeightPartBytes = panels * kPanelBytes, kWeightBytes = parts * kWeightPartBytes;
  static constexpr int kLastPartBytes = panels * kOutputPanelBytes;
  static_assert(kTileBytes == kRowPanels * kPanelBytes);

  __device__ FusedTf32Block(const FusedArguments& of, const FusedBlockLayout& cut, unsigned char* at)
      : BlockParts(of, cut, at) {}

  using Operand = Matrix[parts];

  static __device__ void set_operand(Operand& operand, const unsigned char* at, int part_bytes, int panel_bytes) {
#pragma unroll
    for (int part = 0; part < parts; ++part)
      operand[part] = shared_matrix<kType, Major::kK>(at + part * part_bytes, panel_bytes);
  }
  /// Of a hidden layer or its gradient, and of weights.
  static __device__ void set_tile(Operand& operand, const unsigned char* at) {
    set_operand(operand, at, kTileBytes, kPanelBytes);
  }
  static __device__ void set_weights(Operand& operand, const unsigned char* at) {
    set_operand(operand, at, kWeightPartBytes, kPanelBytes);
  }

  // Operands of the weights: forward from the first layer on, then back from the second one, then of the last layer.
  __device__ unsigned char* forward_weights(int layer) const { return memory + layer * kWeightBytes; }
  __device__ unsigned char* back_weights(int layer) const { return memory + (layers() + layer - 1) * kWeightBytes; }
  __device__ unsigned char* last_weights() const { return memory + (2 * layers() - 1) * kWeightBytes; }
  __device__ unsigned char* last_back_weights() const { return last_weights() + parts * kLastPartBytes; }
  __device__ const float* bias(int layer) const {
    return reinterpret_cast<const float*>(memory + layout.biases_at) + layer * kWidth;
  }
  /// Of a chain: hidden layer `index`, 1 the first, or its gradient, transposed: [units, rows of the tile].
  __device__ unsigned char* hidden(int chain, int index) const {
    return memory + layout.stages_at + chain * layout.chain_bytes() + (index - 1) * parts * kTileBytes;
  }
  /// The gradient of the outputs, [outputs, rows of the tile].
  __device__ unsigned char* output_gradient(int chain) const { return hidden(chain, layers() + 1); }
  /// Hidden ones, a constant where it can be.
  __device__ int layers() const { return most_hidden == 1 ? 1 : layout.hidden; }
  /// The phases of a tile.
  __device__ unsigned phases() const { return static_cast<unsigned>(layers()) + 1; }
  /// Which of this thread()'s units of a hidden layer pass their gradients, or have negative derivatives.
  __device__ std::uint32_t& mask(int chain, int index) const {
    return reinterpret_cast<std::uint32_t*>(
        memory + layout.masks_at)[(chain * layers() + index - 1) * kFusedGroupThreads + thread() % kFusedGroupThreads];
  }

  // The weights.

  /// All elements of the hidden layers' weights, then those of the last layer's, are cut into 32, which a warp takes:
  /// eight columns of every other of eight rows, so that its stores fall into different banks.
  static constexpr int kPieces = kWidth * kWidth / 32;  // of a layer

  struct Weight {
    int layer, row, column;
  };
  __device__ Weight weight_of(int piece) const {
    const int layer = piece / kPieces, left = piece % kPieces;
    const int across = layer == layers() ? kFusedOutputs / 8 : kWidth / 8;
    return {layer, left / 2 / across * 8 + lane() / 8 * 2 + left % 2, left / 2 % across * 8 + lane() % 8};
  }

  __device__ void store_weight(const Weight& at, float value) const {
    const Split<parts> split(value);
    const int i = at.row, o = at.column;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      const std::uint32_t word = split.words[part];
      if (at.layer == layers()) {
        std::memcpy(last_weights() + part * kLastPartBytes + operand_offset(o, i, kOutputPanelBytes), &word,
                    sizeof word);
        std::memcpy(last_back_weights() + panel_offset(i, (part * kDepth + position(o)) * 4), &word, sizeof word);
        continue;
      }
      std::memcpy(forward_weights(at.layer) + part * kWeightPartBytes + operand_offset(o, i, kPanelBytes), &word,
                  sizeof word);
      if (at.layer > 0)
        std::memcpy(back_weights(at.layer) + part * kWeightPartBytes + operand_offset(i, o, kPanelBytes), &word,
                    sizeof word);
    }
  }

  __device__ void load_weights() const {
    constexpr int kAtOnce = 8;  // on their way
    const int warps = layout.computing_threads() / 32;
    const int pieces = layers() * kPieces + kWidth * kFusedOutputs / 32;
#pragma unroll 1
    for (int first = thread() / 32; first < pieces; first += kAtOnce * warps) {
      float values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        values[i] = 0;
        if (first + i * warps >= pieces) continue;
        const Weight at = weight_of(first + i * warps);
        const int columns = arguments.widths[at.layer + 1];
        if (at.row < arguments.widths[at.layer] && at.column < columns)
          values[i] = arguments.weights[at.layer].values[at.row * columns + at.column];
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (first + i * warps < pieces) store_weight(weight_of(first + i * warps), values[i]);
    }
    auto* const to = reinterpret_cast<float*>(memory + layout.biases_at);
    for (int i = thread(); i < layers() * kWidth + kFusedOutputs; i += layout.computing_threads()) {
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
  __device__ bool waits_until_taken(int chain, unsigned phase, unsigned wait, std::int64_t step) const {
    return group_waits_for(&control().taken[chain], phase % 2, wait, FusedPhase::kGradients, step);
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

  /// Where a tile, [units, rows], has this thread()'s value `i` of the first eight units; that of the next eight lies
  /// kEightBytes behind.
  static __device__ unsigned char* place_of(unsigned char* tile, int i) {
    return tile + operand_offset(2 * (lane() % 4) + i % 2, 16 * warp() + lane() / 4 + 8 * (i / 2), kPanelBytes);
  }
  static constexpr int kEightBytes = 8 * kPanelRowBytes;

  /// Fragments of values whose columns are units, transposed to a tile.
  __device__ void store(const Fragments<parts, kProducts>& fragments, unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unsigned char* const to = place_of(tile, i);
#pragma unroll
      for (int part = 0; part < parts; ++part)
#pragma unroll
        for (int j = 0; j < kProducts; ++j)
          std::memcpy(to + part * kTileBytes + j * kEightBytes, &fragments[part][j][in_fragment(i)],
                      sizeof(std::uint32_t));
    }
  }

  /// The hidden layer sums + bias as fragments and in a tile.
  __device__ void activate(Fragments<parts, kProducts>& fragments, Accumulator<kWidth>& sums, int chain,
                           int index) const {
    if (arguments.activation.kind == Activation::relu)
      activate_relu(fragments, sums, chain, index);
    else
      fused::with_formula(arguments.activation,
                          [&](const auto& formula) { other_activation(formula, fragments, sums, chain, index); });
  }
  /// The gradient of a hidden layer from that by its values, as fragments.
  __device__ void pass_back(Fragments<parts, kProducts>& fragments, Accumulator<kWidth>& sums, int chain,
                            int index) const {
    if (arguments.activation.kind == Activation::relu)
      mask_gradient(fragments, sums, chain, index);
    else
      multiply_derivative(fragments, sums, chain, index);
  }

  /// relu(sums + bias) as fragments and in a tile.
  __device__ void activate_relu(Fragments<parts, kProducts>& fragments, Accumulator<kWidth>& sums, int chain,
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

  /// An activation is many instructions: there are copies of it for four elements, and the others move through the
  /// registers of these, because registers cannot be indexed. The fragments are read back from the tile.
  template <class Formula>
  __device__ void other_activation(const Formula& formula, Fragments<parts, kProducts>& fragments,
                                   Accumulator<kWidth>& sums, int chain, int index) const {
    unsigned char* const tile = hidden(chain, index);
    std::uint32_t negative = 0;
#pragma unroll 1
    for (int j = 0; j < kProducts; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float z = sums[i] + bias(index - 1)[8 * j + 2 * (lane() % 4) + i % 2], h = formula.value(z);
        Split<parts> split(h);
        if constexpr (std::is_same_v<Formula, activations::LeakyRelu<float>>) {
          put_derivative(split.words, z > 0 ? 1.0f : 0.0f);
        } else {
          const float derivative = formula.gradient(Formula::may_keep_pre_activation ? z : h, 1.0f);
          if (derivative < 0) negative |= 1u << (4 * j + i);
          put_derivative(split.words, std::fabs(derivative));
        }
#pragma unroll
        for (int part = 0; part < parts; ++part)
          std::memcpy(place_of(tile, i) + part * kTileBytes + j * kEightBytes, &split.words[part],
                      sizeof(std::uint32_t));
      }
#pragma unroll
      for (int i = 4; i < kWidth / 2; ++i) sums[i - 4] = sums[i];
    }
    mask(chain, index) = negative;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int part = 0; part < parts; ++part)
#pragma unroll
        for (int j = 0; j < kProducts; ++j)
          fragments[part][j][in_fragment(i)] = load_word(place_of(tile, i) + part * kTileBytes + j * kEightBytes);
  }

  /// The gradient behind such an activation as fragments. Of leaky_relu, whose slope may be any number, the derivative
  /// in the tile is 0 where it is the slope.
  __device__ void multiply_derivative(Fragments<parts, kProducts>& fragments, Accumulator<kWidth>& sums, int chain,
                                      int index) const {
    unsigned char* const tile = hidden(chain, index);
    const std::uint32_t negative = mask(chain, index);
    const float at_zero = arguments.activation.kind == Activation::leaky_relu
                              ? static_cast<float>(arguments.activation.leaky_slope)
                              : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
        std::uint32_t words[parts];
#pragma unroll
        for (int part = 0; part < parts; ++part)
          words[part] = load_word(place_of(tile, i) + part * kTileBytes + j * kEightBytes);
        float derivative = derivative_of(words);
        if (derivative == 0) derivative = at_zero;
        if ((negative >> (4 * j + i) & 1) != 0) derivative = -derivative;
        const Split<parts> split(sums[4 * j + i] * derivative);
#pragma unroll
        for (int part = 0; part < parts; ++part) fragments[part][j][in_fragment(i)] = split.words[part];
      }
  }

  /// The gradient of the outputs as a fragment and in shared memory.
  __device__ void store_outputs(Fragments<parts, 1>& fragment, Accumulator<kFusedOutputs>& gradients,
                                unsigned char* to) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Split<parts> split(gradients[i]);
      const int output = 2 * (lane() % 4) + i % 2, row = 16 * warp() + lane() / 4 + 8 * (i / 2);
#pragma unroll
      for (int part = 0; part < parts; ++part) {
        fragment[part][0][in_fragment(i)] = split.words[part];
        std::memcpy(to + part * kOutputTileBytes + operand_offset(output, row, kOutputPanelBytes), &split.words[part],
                    sizeof(std::uint32_t));
      }
    }
  }

  /// One tile; false if a wait has failed.
  __device__ bool take_tile(std::int64_t step, int k, double& loss) {
    const int chain = group();
    const unsigned number = number_of(step, k), turn = number / static_cast<unsigned>(layout.stages);
    const unsigned which = number % static_cast<unsigned>(layout.stages), phase = number * phases();
    unsigned wait = number * (phases() + 1);
    Accumulator<kWidth> sums;
    Fragments<parts, kProducts> fragments;
    Operand operand;
    float targets[4] = {};  // on their way meanwhile
    const std::int64_t* const found = layout.gathers() ? samples(chain, static_cast<int>(which)) : nullptr;
    if (found == nullptr) load_targets(targets, tile_of(k), nullptr);
    if (!group_waits_for(&control().tile_arrived[chain][which], turn % 2, wait++, FusedPhase::kForward, step))
      return false;
    if (found != nullptr) load_targets(targets, tile_of(k), found);
    const unsigned char* const inputs = stage(chain, static_cast<int>(which));
    set_weights(operand, forward_weights(0));
    if constexpr (parts == 1) {
      Operand tile;
      set_operand(tile, inputs, 0, kFusedPanelBytes);
      multiply<kProducts>(sums, tile, operand);
    } else {
      load_inputs(fragments, inputs);
      multiply(sums, fragments, operand);
    }
    wait_products<0>(sums);
    if (!waits_until_taken(chain, phase - 1, wait++, step)) return false;  // all of the tile before
#pragma unroll 1
    for (int layer = 1;; ++layer) {
      activate(fragments, sums, chain, layer);
      if (layer == layers()) break;
      set_weights(operand, forward_weights(layer));
      multiply(sums, fragments, operand);
      wait_products<0>(sums);
    }
    Accumulator<kFusedOutputs> outputs;
    set_operand(operand, last_weights(), kLastPartBytes, kOutputPanelBytes);
    multiply(outputs, fragments, operand);
    wait_products<0>(outputs);
    end_outputs(outputs, targets, tile_of(k), found, loss);
    Fragments<parts, 1> of_outputs;
    store_outputs(of_outputs, outputs, output_gradient(chain));
    report(chain);
    set_operand(operand, last_back_weights(), kDepth * 4, kPanelBytes);
    multiply(sums, of_outputs, operand);
    wait_products<0>(sums);
#pragma unroll 1
    for (int layer = layers();; --layer) {
      pass_back(fragments, sums, chain, layer);
      if (!waits_until_taken(chain, phase + static_cast<unsigned>(layers() - layer), wait++, step)) return false;
      store(fragments, hidden(chain, layer));
      report(chain);
      if (layer == 1) return true;
      set_weights(operand, back_weights(layer - 1));
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

  /// The inputs of a tile, transposed, as fragments: rows are inputs, and zero beyond.
  __device__ void load_transposed(Fragments<parts, kRowProducts>& fragments, const unsigned char* tile) const {
    const bool is_beyond = 16 * warp() >= kWidth;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int input = 16 * warp() + lane() / 4 + 8 * (j % 2), row = 2 * (lane() % 4) + j / 2;
      const unsigned char* const from = tile + operand_offset(row, input, kFusedPanelBytes);
#pragma unroll
      for (int i = 0; i < kRowProducts; ++i) {
        const Split<parts> split(is_beyond ? 0.0f : load_float(from + i * 8 * kPanelRowBytes));
#pragma unroll
        for (int part = 0; part < parts; ++part) fragments[part][i][j] = split.words[part];
      }
    }
  }

  /// The sum over half of a tile's rows of one unit: two lanes beside each other have a unit's.
  __device__ float sum_of_unit(const unsigned char* tile) const {
    const int unit = 16 * warp() + lane() / 2, half = lane() % 2;
    float sum = 0;
    if (unit >= kWidth) return sum;
#pragma unroll
    for (int part = 0; part < parts; ++part)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        Four four;  // the halves begin apart, in different banks
        std::memcpy(&four, tile + part * kTileBytes + half * kPanelBytes + panel_offset(unit, (i ^ 4 * half) * 16),
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
                  tile + part * kOutputTileBytes + piece / 8 * kOutputPanelBytes + panel_offset(output, piece % 8 * 16),
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
    float weights[most_hidden][kWidth / 2] = {}, last[kFusedOutputs / 2] = {};
    float biases[most_hidden] = {}, output = 0;
  };

  /// Adds one tile; false if a wait has failed.
  __device__ bool add_tile(Gradients& sums, std::int64_t step, int k) {
    const int chain = k % layout.chains;
    const unsigned number = number_of(step, k), which = number % static_cast<unsigned>(layout.stages);
    const unsigned phase = number * phases();
    const TransactionBarrier* const ready = &control().ready[chain][0][0];
    unsigned wait =
        (static_cast<unsigned>(step) * static_cast<unsigned>(block_tiles()) + static_cast<unsigned>(k)) * phases();
    Operand of_inputs, of_gradient;
    if (!group_waits_for(ready, phase % 2, wait++, FusedPhase::kGradients, step)) return false;
    {
      Accumulator<kFusedOutputs> product;
      set_tile(of_inputs, hidden(chain, layers()));
      set_operand(of_gradient, output_gradient(chain), kOutputTileBytes, kOutputPanelBytes);
      multiply<kRowProducts>(product, of_inputs, of_gradient);
      sums.output += sum_of_output(output_gradient(chain));
      wait_products<0>(product);
#pragma unroll
      for (int i = 0; i < kFusedOutputs / 2; ++i) sums.last[i] += product[i];
      report_taken(chain);
    }
    Accumulator<kWidth> product;
#pragma unroll
    for (int layer = most_hidden - 1; layer >= 0; --layer) {
      if (layer >= layers()) continue;
      const unsigned char* const gradient = hidden(chain, layer + 1);
      Fragments<parts, kRowProducts> inputs;
      if (layer == 0) load_transposed(inputs, stage(chain, static_cast<int>(which)));
      if (!group_waits_for(ready, (phase + static_cast<unsigned>(layers() - layer)) % 2, wait++, FusedPhase::kGradients,
                           step))
        return false;
      set_tile(of_gradient, gradient);
      if (layer == 0) {
        multiply(product, inputs, of_gradient);
      } else {
        set_tile(of_inputs, hidden(chain, layer));
        multiply<kRowProducts>(product, of_inputs, of_gradient);
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
    for (int layer = 0; layer < most_hidden; ++layer) {
      if (layer >= layers()) continue;
#pragma unroll
      for (int j = 0; j < kProducts; ++j) {
        const float* const four = sums.weights[layer] + 4 * j;
        const Four values{four[0], four[1], four[2], four[3]};
        std::memcpy(slot + (layer * slots.fours_of_slab() + j * kFusedGroupThreads + place) * 4, &values,
                    sizeof values);
      }
      const float sum = sums.biases[layer] + warp_shuffle_xor(sums.biases[layer], 1);
      if (lane() % 2 == 0 && place / 2 < kWidth) slot[slots.biases_at() * 4 + layer * kWidth + place / 2] = sum;
    }
    const Four last{sums.last[0], sums.last[1], sums.last[2], sums.last[3]};
    std::memcpy(slot + (slots.last_weights_at() + place) * 4, &last, sizeof last);
    float output = sums.output;
    for (unsigned bit = 1; bit < 16; bit *= 2) output += warp_shuffle_xor(output, bit);
    if (lane() % 16 == 0) slot[slots.last_bias_at() * 4 + place / 16] = output;
  }

  template <class Run>
  __device__ __forceinline__ void compute(const Run& run) {
    BlockParts::compute([&] { load_weights(); }, run, [](const Element&, float) {});
  }
};

template <int parts, int panels, int most_hidden>
constexpr int kChains = fused_tf32_chains(parts, panels, most_hidden);
template <int parts, int panels, int most_hidden>
constexpr int kBlockThreads = (kChains<parts, panels, most_hidden> + 2) * kFusedGroupThreads;

// Registers of a thread. Those of all are as many as the launch gives, which are the same for each thread and a
// multiple of 8: to a block of three warpgroups 504 of each, not 512.
constexpr int kFetchingRegisters = 32;
template <int parts, int chains>
constexpr int kChainRegisters = chains == 1  ? 216
                                : parts == 1 ? 136
                                             : 152;
template <int parts, int chains>
constexpr int kGradientRegisters = chains == 1  ? 256
                                   : parts == 1 ? 208
                                                : 176;

/// One step after another, of each of which the block takes every `blocks`th tile. Blocks are resident together.
template <int parts, int panels, int most_hidden>
__global__ void __launch_bounds__((kBlockThreads<parts, panels, most_hidden>), 1)
    fused_tf32_kernel(FusedArguments arguments, FusedBlockLayout layout) {
  constexpr int kOfBlock = kChains<parts, panels, most_hidden>;
  constexpr int kGroups = kOfBlock + 2, kAtLaunch = 65536 / (kGroups * kFusedGroupThreads) / 8 * 8;
  static_assert(kFetchingRegisters + kOfBlock * kChainRegisters<parts, kOfBlock> +
                    kGradientRegisters<parts, kOfBlock> <=
                kGroups * kAtLaunch);
  layout.precision = parts == 1 ? Precision::tf32 : Precision::tf32x3;  // as in fused.cu
  layout.parts = parts;
  layout.panels = panels;
  layout.output_columns = kFusedOutputs;
  FusedTf32Block<parts, panels, most_hidden> block(arguments, layout, shared<fused::FusedShared>().bytes);
  if (block.thread() == 0) block.init_control();
  block_barrier();
  if (block.group() > kOfBlock) {
    lower_registers<kFetchingRegisters>();
    block.bring_tiles();
  } else if (block.group() < kOfBlock) {
    raise_registers<kChainRegisters<parts, kOfBlock>>();
    block.compute([&](std::int64_t step) { block.run_chain(step); });
  } else {
    raise_registers<kGradientRegisters<parts, kOfBlock>>();
    block.compute([&](std::int64_t step) { block.run_gradients(step); });
  }
}

/// A thread writes 16 bytes of a tile, of which tf32 has values in TF32 and tf32x3 those that there are.
__global__ void fused_tf32_tiles_kernel(std::uint32_t* tiles, const float* x, std::int64_t rows, int inputs, int panels,
                                        bool is_split, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(block_index()) * kThreads + thread_index();
  if (i >= count) return;
  const std::int64_t row = i / (8 * panels);
  const int piece = static_cast<int>(i % (8 * panels));
  const int in_tile = piece / 8 * kFusedPanelBytes + panel_offset(static_cast<int>(row % kFusedRows), piece % 8 * 16);
  std::uint32_t* const to = tiles + (row / kFusedRows * panels * kFusedPanelBytes + in_tile) / 4;
  for (int j = 0; j < 4; ++j) {
    const int column = piece / 2 * 8 + 2 * j + piece % 2;  // whose position is 4 * piece + j
    const float value = row < rows && column < inputs ? x[row * inputs + column] : 0.0f;
    std::memcpy(to + j, &value, sizeof value);
    if (!is_split) to[j] = to_tf32(value);
  }
}

/// A kernel has registers for as many hidden layers as it can, by the chains that there are.
auto kernel_of(const FusedLayout& layout) {
  if (layout.panels == 1) {
    if (layout.parts == 1) return fused_tf32_kernel<1, 1, kFusedTf32NarrowHidden>;
    return layout.chains == 2 ? fused_tf32_kernel<2, 1, 4> : fused_tf32_kernel<2, 1, kFusedTf32NarrowHidden>;
  }
  if (layout.parts == 1) return layout.chains == 2 ? fused_tf32_kernel<1, 2, 3> : fused_tf32_kernel<1, 2, 4>;
  return layout.chains == 2 ? fused_tf32_kernel<2, 2, 1> : fused_tf32_kernel<2, 2, 2>;
}

}  // namespace

void launch_fused_tf32_tiles(std::uint32_t* tiles, const float* x, int inputs, const FusedLayout& layout,
                             cudaStream_t stream) {
  const std::int64_t count = layout.data_tiles() * (layout.tile_bytes() / 16);
  launch(fused_tf32_tiles_kernel, {divide_up(count, kThreads), kThreads}, stream, tiles, x, layout.data_rows(), inputs,
         layout.panels, layout.parts == 2, count);
}

void prepare_fused_tf32(const FusedLayout& layout) {
  prepare_kernel(reinterpret_cast<const void*>(kernel_of(layout)), fused::config_of(layout));
}

void launch_fused_tf32(const FusedArguments& arguments, const FusedLayout& layout, cudaStream_t stream) {
  launch(kernel_of(layout), fused::config_of(layout), stream, arguments, layout);
}

}  // namespace deviceloop::cuda
