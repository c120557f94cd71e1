// The work of a block that trains a narrow network in bf16: its chains and gradient groups, whatever becomes of their
// sums at the end of a step. For fused.cu and fused_clusters.cu.
#pragma once

#include <cstring>

#include "../runtime/tensor.cuh"
#include "fused_parts.cuh"

namespace deviceloop::cuda::fused {

constexpr TensorType kType = TensorType::kBf16;
constexpr int kDepth = 16;                         // of a product
constexpr int kStepsOfRows = kFusedRows / kDepth;  // products over the rows of a tile

constexpr int kRegisters = 65536 / kFusedGroupThreads;  // of a thread of each warpgroup, together

struct alignas(8) Two {
  float values[2];
};

__device__ inline float bf16_value(std::uint32_t bits) {
  const std::uint32_t word = bits << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

/// A hidden value: a unit that its gradient does not pass is -0.0, and that alone.
__device__ inline float hidden_value(float z) { return z < 0 ? -0.0f : z + 0.0f; }
__device__ inline float masked(float gradient, std::uint32_t hidden_bits) {
  return (hidden_bits & 0xffffu) == 0x8000u ? 0.0f : gradient;
}

/// `columns` are those of the outputs, 8 or 16, or as many as hidden layers have: then the last layer is one more of
/// these, but that its values are the outputs' gradients at once, and have no tile. `relu`: whether hidden layers are
/// known to be, so that the kernel has no other activation.
template <int panels, int slabs_of_group, int columns, bool relu>
struct FusedBlock : BlockParts {
  static constexpr int kWidth = panels * kFusedPanelWidth;
  static constexpr int kProducts = kWidth / kDepth;  // over the inputs of a layer
  static constexpr int kWeightPanelBytes = kWidth * 128, kLastPanelBytes = kFusedMoreOutputs * 128;
  static constexpr int kOutputProducts = columns < kDepth ? 1 : columns / kDepth;  // over the outputs
  static constexpr bool kSquareOutputs = columns == kWidth;
  /// Panels of the last layer's gradient that a gradient group adds: with 16 columns each of two groups has one.
  static constexpr int kLastPanels = columns <= kFusedOutputs ? panels : 1;

  __device__ FusedBlock(const FusedArguments& of, const FusedBlockLayout& cut, unsigned char* at)
      : BlockParts(of, cut, at) {}

  /// Hidden layer `index`, 0 the inputs, and the gradient of hidden layer `index`, 1 the first, behind the last of them
  /// that of square outputs.
  __device__ unsigned char* hidden(unsigned char* stage, int index) const {
    return stage + index * layout.tile_bytes();
  }
  __device__ unsigned char* gradient(unsigned char* stage, int index) const {
    return stage + (layout.hidden + index) * layout.tile_bytes();
  }
  __device__ unsigned char* output_gradient(unsigned char* stage) const {
    return stage + (2 * layout.hidden + 1) * layout.tile_bytes();  // where outputs are not square
  }
  __device__ const unsigned char* weights(int layer) const { return memory + layer * panels * kWeightPanelBytes; }
  // As in BlockParts, for this precision.
  __device__ unsigned char* stage(int chain, int which) const {
    return memory + layout.stages_at + (chain * layout.stages + which) * layout.stage_bytes();
  }
  __device__ const float* bias(int layer) const {
    return reinterpret_cast<const float*>(memory + layout.biases_at) + layer * kWidth;
  }

  /// This warp() has stored its part of the gradient behind square layer `layer`, 0 the first one, and all behind that:
  /// where no more is missing for a gradient group(), it goes on.
  __device__ void report_gradient(int chain, unsigned which, int layer) const {
    const int to = layout.group_of(layer);
    if (layer != layout.first_layer(to)) return;
    fence_async_proxy();
    warp_barrier();
    if (lane() == 0) arrive(&control().ready[chain][which][to]);
  }

  // The chains.

  /// Sums = the fragments times a layer's weights.
  template <int columns_of_sums, int products, Major major>
  static __device__ void multiply(Accumulator<columns_of_sums>& sums, std::uint32_t (&fragments)[products][4],
                                  SharedMatrix<kType, major> matrix) {
    begin_products(sums, fragments);
#pragma unroll
    for (int i = 0; i < products; ++i) multiply_async(sums, fragments[i], matrix.k_step(i), i > 0);
    commit_products();
    wait_products<0>(sums);
  }

  /// Where this lane()'s row of the fragment of 16 columns lies in a tile, for load_matrices and store_matrices.
  __device__ int fragment_offset(int i) const {
    return i / 4 * kFusedPanelBytes +
           panel_offset(16 * warp() + lane() % 8 + lane() / 8 % 2 * 8, (i % 4 * 2 + lane() / 16) * 16);
  }

  /// The hidden layer sums + bias as fragments and in a tile. Of activations other than relu the derivative goes to
  /// where the gradient will be.
  __device__ void activate(std::uint32_t (&fragments)[kProducts][4], Accumulator<kWidth>& sums, unsigned char* stage,
                           int layer) const {
    if (relu || arguments.activation.kind == Activation::relu)
      activate_relu(fragments, sums, bias(layer), hidden(stage, layer + 1));
    else
      fused::with_formula(arguments.activation, [&](const auto& formula) {
        other_activation(formula, fragments, sums, bias(layer), hidden(stage, layer + 1), gradient(stage, layer + 1));
      });
  }
  /// The gradient of hidden layer `index`, 1 the first, from that by its values.
  __device__ void pass_back(std::uint32_t (&fragments)[kProducts][4], Accumulator<kWidth>& sums, unsigned char* stage,
                            int index) const {
    if (relu || arguments.activation.kind == Activation::relu)
      mask(fragments, sums, hidden(stage, index), gradient(stage, index));
    else
      multiply_derivative(fragments, sums, gradient(stage, index));
  }

  /// relu(sums + bias) as fragments and in a tile.
  __device__ void activate_relu(std::uint32_t (&fragments)[kProducts][4], Accumulator<kWidth>& sums, const float* bias,
                                unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* const b = bias + 16 * i + 8 * (j / 2) + 2 * (lane() % 4);
        fragments[i][j] =
            to_bf16(hidden_value(sums[8 * i + 2 * j] + b[0]), hidden_value(sums[8 * i + 2 * j + 1] + b[1]));
      }
      store_matrices(tile + fragment_offset(i), fragments[i]);
    }
  }

  /// The gradient behind relu as fragments and in a tile.
  __device__ void mask(std::uint32_t (&fragments)[kProducts][4], Accumulator<kWidth>& sums,
                       const unsigned char* hidden_tile, unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      std::uint32_t h[4];
      load_matrices(h, hidden_tile + fragment_offset(i));
#pragma unroll
      for (int j = 0; j < 4; ++j)
        fragments[i][j] = to_bf16(masked(sums[8 * i + 2 * j], h[j]), masked(sums[8 * i + 2 * j + 1], h[j] >> 16));
      store_matrices(tile + fragment_offset(i), fragments[i]);
    }
  }

  /// An activation is many instructions: there are copies of it for four elements, and the others move through the
  /// registers of these, because registers cannot be indexed. The fragments are read back from the tile.
  template <class Formula>
  __device__ void other_activation(const Formula& formula, std::uint32_t (&fragments)[kProducts][4],
                                   Accumulator<kWidth>& sums, const float* bias, unsigned char* tile,
                                   unsigned char* derivative_tile) const {
    std::uint32_t values[4] = {}, derivatives[4] = {};
#pragma unroll 1
    for (int eight = 0; eight < kWidth / 8; ++eight) {
      // The sums of eight columns are two words of a fragment: of this thread()'s two rows.
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float h[2], derivative[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float z = sums[2 * row + i] + bias[8 * eight + 2 * (lane() % 4) + i];
          h[i] = formula.value(z);
          derivative[i] = formula.gradient(Formula::may_keep_pre_activation ? z : h[i], 1.0f);
        }
        values[row] = values[2 + row];
        values[2 + row] = to_bf16(h[0], h[1]);
        derivatives[row] = derivatives[2 + row];
        derivatives[2 + row] = to_bf16(derivative[0], derivative[1]);
      }
#pragma unroll
      for (int i = 4; i < kWidth / 2; ++i) sums[i - 4] = sums[i];
      if (eight % 2 == 0) continue;
      store_matrices(tile + fragment_offset(eight / 2), values);
      store_matrices(derivative_tile + fragment_offset(eight / 2), derivatives);
    }
    warp_barrier();
#pragma unroll
    for (int i = 0; i < kProducts; ++i) load_matrices(fragments[i], tile + fragment_offset(i));
  }

  /// The gradient behind such an activation as fragments and in the tile of the derivatives.
  __device__ void multiply_derivative(std::uint32_t (&fragments)[kProducts][4], Accumulator<kWidth>& sums,
                                      unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      std::uint32_t d[4];
      load_matrices(d, tile + fragment_offset(i));
#pragma unroll
      for (int j = 0; j < 4; ++j)
        fragments[i][j] =
            to_bf16(sums[8 * i + 2 * j] * bf16_value(d[j] & 0xffffu), sums[8 * i + 2 * j + 1] * bf16_value(d[j] >> 16));
      store_matrices(tile + fragment_offset(i), fragments[i]);
    }
  }

  /// The gradient of this thread()'s outputs of a tile as fragments and in shared memory.
  __device__ void store_outputs(std::uint32_t (&fragments)[kOutputProducts][4], Accumulator<columns>& gradients,
                                unsigned char* stage) const {
#pragma unroll
    for (int i = 0; i < kOutputProducts; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 8 * i + 2 * j;
        fragments[i][j] = at < columns / 2 ? to_bf16(gradients[at], gradients[at + 1]) : 0;
      }
    if constexpr (kSquareOutputs) {
#pragma unroll
      for (int i = 0; i < kOutputProducts; ++i)
        store_matrices(gradient(stage, layout.hidden + 1) + fragment_offset(i), fragments[i]);
    } else if constexpr (columns == 16) {
      store_matrices<true>(
          output_gradient(stage) + panel_offset(lane() % 8 + lane() / 16 * 8, (16 * warp() + lane() / 8 % 2 * 8) * 2),
          fragments[0]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto bits = static_cast<std::uint16_t>(fragments[0][i / 2] >> i % 2 * 16);
        const int row = 16 * warp() + lane() / 4 + 8 * (i / 2);
        std::memcpy(output_gradient(stage) + panel_offset(2 * (lane() % 4) + i % 2, row * 2), &bits, sizeof bits);
      }
    }
  }

  /// All tiles of a step that this chain has; false if a wait has failed.
  __device__ __forceinline__ bool run_chain(std::int64_t step) {
    const int chain = group(), tiles = block_tiles(), layers = layout.hidden;
    Accumulator<kWidth> sums;
    std::uint32_t fragments[kProducts][4];
    // Weights of outputs that are not square have their rows and columns exchanged.
    constexpr Major kForth = kSquareOutputs ? Major::kMn : Major::kK, kBack = kSquareOutputs ? Major::kK : Major::kMn;
    constexpr int kOutputPanelBytes = kSquareOutputs ? kWeightPanelBytes : kLastPanelBytes;
    const auto last = shared_matrix<kType, kForth>(weights(layers), kOutputPanelBytes);
    const auto last_back = shared_matrix<kType, kBack>(weights(layers), kOutputPanelBytes);
    constexpr bool kTargetsEarly = panels * columns <= 16;  // where registers suffice
    double loss = 0;
    bool arrived = true;
    for (int k = chain; k < tiles; k += layout.chains) {
      const unsigned number = number_of(step, k), turn = number / static_cast<unsigned>(layout.stages);
      const unsigned which = number % static_cast<unsigned>(layout.stages);
      float targets[kTargets<columns>] = {};  // on their way meanwhile
      if (kTargetsEarly && !layout.gathers()) load_targets(targets, tile_of(k), nullptr);
      arrived = group_waits_for(&control().tile_arrived[chain][which], turn % 2, number, FusedPhase::kForward, step);
      if (!arrived) break;
      const auto found = [&] { return layout.gathers() ? samples(chain, static_cast<int>(which)) : nullptr; };
      if (kTargetsEarly && layout.gathers()) load_targets(targets, tile_of(k), found());
      unsigned char* const at = stage(chain, static_cast<int>(which));
      const auto inputs = shared_matrix<kType, Major::kK>(at, kFusedPanelBytes);
      const auto first = shared_matrix<kType, Major::kMn>(weights(0), kWeightPanelBytes);
      begin_products(sums);
#pragma unroll
      for (int i = 0; i < kProducts; ++i) multiply_async(sums, inputs.k_step(i), first.k_step(i), i > 0);
      commit_products();
      wait_products<0>(sums);
      activate(fragments, sums, at, 0);
#pragma unroll 1
      for (int layer = 1; layer < layers; ++layer) {
        multiply(sums, fragments, shared_matrix<kType, Major::kMn>(weights(layer), kWeightPanelBytes));
        activate(fragments, sums, at, layer);
      }
      Accumulator<columns> outputs;
      if (!kTargetsEarly && !kSquareOutputs) load_targets(targets, tile_of(k), found());
      multiply(outputs, fragments, last);
      end_outputs(outputs, targets, tile_of(k), found(), loss);
      std::uint32_t gradients[kOutputProducts][4];
      store_outputs(gradients, outputs, at);
      if (kSquareOutputs) report_gradient(chain, which, layers);
      multiply(sums, gradients, last_back);
      pass_back(fragments, sums, at, layers);
      report_gradient(chain, which, layers - 1);
#pragma unroll 1
      for (int layer = layers - 1; layer > 0; --layer) {
        multiply(sums, fragments, shared_matrix<kType, Major::kK>(weights(layer), kWeightPanelBytes));
        pass_back(fragments, sums, at, layer);
        report_gradient(chain, which, layer - 1);
      }
    }
    leave_loss(loss);
    return arrived;
  }

  // The gradient groups.

  __device__ int first_last_panel() const { return kLastPanels == panels ? 0 : group() - layout.chains; }

  /// Adds this thread()'s part of the sums over a tile's rows, of two columns: rows 4 i + lane() / 8.
  __device__ void add_columns(float (&sums)[2], const unsigned char* tile) const {
#pragma unroll 4
    for (int i = 0; i < kFusedRows / 4; ++i) {
      std::uint32_t word;
      std::memcpy(&word, tile + panel_offset(4 * i + lane() / 8, (16 * warp() + lane() % 8 * 2) * 2), sizeof word);
      sums[0] += bf16_value(word & 0xffffu);
      sums[1] += bf16_value(word >> 16);
    }
  }

  /// Adds the gradients of all tiles of a step, and then, where may_leave(whether no wait has failed) holds, calls
  /// leave(index, values) for all sums: float `index` of FusedSlots' and those behind it, of 4, 8 or 16 bytes.
  template <class MayLeave, class Leave>
  __device__ __forceinline__ void run_gradients(std::int64_t step, const MayLeave& may_leave, const Leave& leave) {
    const int tiles = block_tiles(), layers = layout.square_layers();
    const int before = (group() - layout.chains) * slabs_of_group, slabs = layers * panels;  // before: of other groups
    Accumulator<kWidth> sums[slabs_of_group];
    Accumulator<columns> last[kLastPanels];  // where outputs are not square
    float biases[slabs_of_group][2] = {}, output_bias = 0;
    bool arrived = true;
    // Slabs from the last one down. Where a group() has more room than slabs, the first one is added once more.
    const auto slab_of = [&](int i) { return before + i < slabs ? slabs - 1 - before - i : 0; };
    if constexpr (!kSquareOutputs) {
#pragma unroll
      for (int panel = 0; panel < kLastPanels; ++panel)
#pragma unroll
        for (int i = 0; i < columns / 2; ++i) last[panel][i] = 0;
    }
#pragma unroll
    for (int i = 0; i < slabs_of_group; ++i)
#pragma unroll
      for (int j = 0; j < kWidth / 2; ++j) sums[i][j] = 0;
    for (int k = 0; k < tiles; ++k) {
      const int chain = k % layout.chains;
      const unsigned number = number_of(step, k), parity = number / static_cast<unsigned>(layout.stages) % 2;
      const unsigned which = number % static_cast<unsigned>(layout.stages);
      unsigned char* const at = stage(chain, static_cast<int>(which));
      const TransactionBarrier* const ready = &control().ready[chain][which][group() - layout.chains];
      const unsigned wait = static_cast<unsigned>(step) * static_cast<unsigned>(tiles) + static_cast<unsigned>(k);
      arrived = group_waits_for(ready, parity, wait, FusedPhase::kGradients, step);
      if (!arrived) break;
      if constexpr (!kSquareOutputs) {
        const auto last_gradient = shared_matrix<kType, Major::kK>(output_gradient(at), columns * 128);
#pragma unroll
        for (int panel = 0; panel < kLastPanels; ++panel) {
          begin_products(last[panel]);
          const auto last_hidden = shared_matrix<kType, Major::kMn>(
              hidden(at, layers) + (first_last_panel() + panel) * kFusedPanelBytes, kFusedPanelBytes);
#pragma unroll
          for (int i = 0; i < kStepsOfRows; ++i)
            multiply_async(last[panel], last_hidden.k_step(i), last_gradient.k_step(i), true);
        }
      }
#pragma unroll
      for (int i = 0; i < slabs_of_group; ++i) {
        const int layer = slab_of(i) / panels, panel = slab_of(i) % panels;
        begin_products(sums[i]);
        const auto of_inputs =
            shared_matrix<kType, Major::kMn>(hidden(at, layer) + panel * kFusedPanelBytes, kFusedPanelBytes);
        const auto of_gradient = shared_matrix<kType, Major::kMn>(gradient(at, layer + 1), kFusedPanelBytes);
#pragma unroll
        for (int j = 0; j < kStepsOfRows; ++j)
          multiply_async(sums[i], of_inputs.k_step(j), of_gradient.k_step(j), true);
      }
      commit_products();
#pragma unroll
      for (int i = 0; i < slabs_of_group; ++i)
        add_columns(biases[i], gradient(at, slab_of(i) / panels + 1) + slab_of(i) % panels * kFusedPanelBytes);
      if constexpr (!kSquareOutputs) {
        // Of an output some rows beside each other, which lie beside each other in memory.
        constexpr int kThreads = kFusedGroupThreads / columns, kRows = kFusedRows / kThreads;
        std::uint32_t words[kRows / 2];
        std::memcpy(
            words,
            output_gradient(at) + panel_offset(thread() % kFusedGroupThreads / kThreads, lane() % kThreads * kRows * 2),
            sizeof words);
#pragma unroll
        for (int i = 0; i < kRows; ++i) output_bias += bf16_value(words[i / 2] >> i % 2 * 16 & 0xffffu);
#pragma unroll
        for (int panel = 0; panel < kLastPanels; ++panel) wait_products<0>(last[panel]);
      }
#pragma unroll
      for (int i = 0; i < slabs_of_group; ++i) wait_products<0>(sums[i]);
      warp_barrier();
      if (lane() == 0) arrive(&control().stage_free[chain][which]);
    }
    if (!may_leave(arrived)) return;
    const FusedSlots slots = layout.slots();
    const int place = thread() % kFusedGroupThreads;
#pragma unroll
    for (int i = 0; i < slabs_of_group; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j)
        for (unsigned bit = 8; bit < 32; bit *= 2) biases[i][j] += warp_shuffle_xor(biases[i][j], bit);
      if (before + i >= slabs) continue;
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
        const Four four{sums[i][4 * j], sums[i][4 * j + 1], sums[i][4 * j + 2], sums[i][4 * j + 3]};
        leave((slab_of(i) * slots.fours_of_slab() + j * kFusedGroupThreads + place) * 4, four);
      }
      if (lane() < 8)
        leave(slots.biases_at() * 4 + slab_of(i) * kFusedPanelWidth + 16 * warp() + 2 * lane(),
              Two{biases[i][0], biases[i][1]});
    }
    if constexpr (!kSquareOutputs) {
      constexpr int kThreads = kFusedGroupThreads / columns;
      for (unsigned bit = 1; bit < kThreads; bit *= 2) output_bias += warp_shuffle_xor(output_bias, bit);
      if (kLastPanels == panels && before != 0) return;
#pragma unroll
      for (int panel = 0; panel < kLastPanels; ++panel)
#pragma unroll
        for (int j = 0; j < columns / 8; ++j) {
          const Four four{last[panel][4 * j], last[panel][4 * j + 1], last[panel][4 * j + 2], last[panel][4 * j + 3]};
          const int eight = (first_last_panel() + panel) * (columns / 8) + j;
          leave((slots.last_weights_at() + eight * kFusedGroupThreads + place) * 4, four);
        }
      if (before == 0 && lane() % kThreads == 0) leave(slots.last_bias_at() * 4 + place / kThreads, output_bias);
    }
  }
};

/// Registers of a thread from here on, `at_first` until then.
template <int at_first, int count>
__device__ __forceinline__ void set_registers() {
  if constexpr (count < at_first)
    lower_registers<count>();
  else
    raise_registers<count>();
}

/// Function objects that are always part of the kernel: products run beside no call of a function.
/// @{
template <class Block>
struct ChainStep {
  Block& block;
  __device__ __forceinline__ auto operator()(std::int64_t step) const { return block.chain_step(step); }
};
template <class Block>
struct GradientStep {
  Block& block;
  __device__ __forceinline__ auto operator()(std::int64_t step) const { return block.gradient_step(step); }
};
/// @}

/// All that a block does once its barriers are there, each warpgroup with registers for its part: block.compute(run)
/// calls run(step) in all threads of the chains, which then is block.chain_step(step), and of the gradient groups,
/// block.gradient_step(step).
template <int at_first, int fetching, int chain, int gradient, class Block>
__device__ __forceinline__ void run_warpgroups(Block& block) {
  if (block.group() >= block.layout.chains + block.layout.groups) {
    set_registers<at_first, fetching>();
    block.bring_tiles();
  } else if (block.group() < block.layout.chains) {
    set_registers<at_first, chain>();
    block.compute(ChainStep<Block>{block});
  } else {
    set_registers<at_first, gradient>();
    block.compute(GradientStep<Block>{block});
  }
}

}  // namespace deviceloop::cuda::fused
