#include "fused.h"

#include <cstring>

#include "../runtime/launch.h"
#include "../runtime/tensor.cuh"
#include "fused_parts.cuh"
#include "fused_tf32.h"

namespace deviceloop::cuda {
namespace {

using fused::BlockParts;
using fused::Element;
using fused::Four;

constexpr TensorType kType = TensorType::kBf16;
constexpr int kDepth = 16;  // of a product
// Two chains and a gradient group, or a chain and two groups, and the warpgroup that fetches.
constexpr int kMostThreads = 4 * kFusedGroupThreads;
constexpr int kStepsOfRows = kFusedRows / kDepth;  // products over the rows of a tile

// Registers of a thread: 128 at first, 65536 of all threads.
constexpr int kFetchingRegisters = 32;
template <int panels, int slabs_of_group>
constexpr int kChainRegisters = panels == 2           ? 128
                                : slabs_of_group == 4 ? 112
                                                      : 120;
template <int slabs_of_group>
constexpr int kGradientRegisters = slabs_of_group == 4 ? 184 : 176;

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

/// `relu`: whether hidden layers are known to be, so that the kernel has no other activation.
template <int panels, int slabs_of_group, bool relu>
struct FusedBlock : BlockParts {
  static constexpr int kWidth = panels * kFusedPanelWidth;
  static constexpr int kProducts = kWidth / kDepth;  // over the inputs of a layer
  static constexpr int kWeightPanelBytes = kWidth * 128, kLastPanelBytes = 16 * 128;

  __device__ FusedBlock(const FusedArguments& of, const FusedLayout& cut, unsigned char* at)
      : BlockParts(of, cut, at) {}

  /// Hidden layer `index`, 0 the inputs, and the gradient of hidden layer `index`, 1 the first.
  __device__ unsigned char* hidden(unsigned char* stage, int index) const {
    return stage + index * layout.tile_bytes();
  }
  __device__ unsigned char* gradient(unsigned char* stage, int index) const {
    return stage + (layout.hidden + index) * layout.tile_bytes();
  }
  __device__ unsigned char* output_gradient(unsigned char* stage) const {
    return stage + (2 * layout.hidden + 1) * layout.tile_bytes();
  }
  __device__ const unsigned char* weights(int layer) const { return memory + layer * panels * kWeightPanelBytes; }
  // As in BlockParts, for this precision.
  __device__ unsigned char* stage(int chain, int which) const {
    return memory + layout.stages_at + (chain * layout.stages + which) * layout.stage_bytes();
  }
  __device__ const float* bias(int layer) const {
    return reinterpret_cast<const float*>(memory + layout.biases_at) + layer * kWidth;
  }

  /// This warp() has stored its part of the gradient behind hidden layer `layer`, 0 the first one, and all behind that:
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
  template <int columns, Major major>
  static __device__ void multiply(Accumulator<columns>& sums, std::uint32_t (&fragments)[kProducts][4],
                                  SharedMatrix<kType, major> matrix) {
    begin_products(sums, fragments);
#pragma unroll
    for (int i = 0; i < kProducts; ++i) multiply_async(sums, fragments[i], matrix.k_step(i), i > 0);
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

  /// The gradient of this thread()'s outputs of a tile as a fragment and in shared memory; adds to the loss.
  __device__ void end_outputs(std::uint32_t (&fragment)[1][4], Accumulator<kFusedOutputs>& sums,
                              const float (&targets)[4], unsigned char* to, std::int64_t tile,
                              const std::int64_t* samples, double& loss) const {
    float gradients[4] = {};
    BlockParts::end_outputs(gradients, sums, targets, tile, samples, loss);
    fragment[0][0] = to_bf16(gradients[0], gradients[1]);
    fragment[0][1] = to_bf16(gradients[2], gradients[3]);
    fragment[0][2] = fragment[0][3] = 0;  // outputs 8 to 15
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto bits = static_cast<std::uint16_t>(fragment[0][i / 2] >> i % 2 * 16);
      const int row = 16 * warp() + lane() / 4 + 8 * (i / 2);
      std::memcpy(to + panel_offset(2 * (lane() % 4) + i % 2, row * 2), &bits, sizeof bits);
    }
  }

  /// All tiles of a step that this chain has.
  __device__ void run_chain(std::int64_t step) {
    const int chain = group(), tiles = block_tiles(), layers = layout.hidden;
    Accumulator<kWidth> sums;
    std::uint32_t fragments[kProducts][4];
    const auto last = shared_matrix<kType, Major::kK>(weights(layers), kLastPanelBytes);
    const auto last_back = shared_matrix<kType, Major::kMn>(weights(layers), kLastPanelBytes);
    double loss = 0;
    for (int k = chain; k < tiles; k += layout.chains) {
      const unsigned number = number_of(step, k), turn = number / static_cast<unsigned>(layout.stages);
      const unsigned which = number % static_cast<unsigned>(layout.stages);
      float targets[4] = {};  // on their way meanwhile
      if (!layout.gathers()) load_targets(targets, tile_of(k), nullptr);
      if (!group_waits_for(&control().tile_arrived[chain][which], turn % 2, number, FusedPhase::kForward, step)) break;
      if (layout.gathers()) load_targets(targets, tile_of(k), samples(chain, static_cast<int>(which)));
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
      Accumulator<kFusedOutputs> outputs;
      multiply(outputs, fragments, last);
      std::uint32_t gradients[1][4];
      end_outputs(gradients, outputs, targets, output_gradient(at), tile_of(k),
                  layout.gathers() ? samples(chain, static_cast<int>(which)) : nullptr, loss);
      begin_products(sums, gradients);
      multiply_async(sums, gradients[0], last_back, false);
      commit_products();
      wait_products<0>(sums);
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
  }

  // The gradient groups.

  /// Adds this thread()'s part of the sums over a tile's rows, of two columns: rows 4 i + lane() / 8.
  __device__ void add_columns(float (&columns)[2], const unsigned char* tile) const {
#pragma unroll 4
    for (int i = 0; i < kFusedRows / 4; ++i) {
      std::uint32_t word;
      std::memcpy(&word, tile + panel_offset(4 * i + lane() / 8, (16 * warp() + lane() % 8 * 2) * 2), sizeof word);
      columns[0] += bf16_value(word & 0xffffu);
      columns[1] += bf16_value(word >> 16);
    }
  }

  __device__ void run_gradients(std::int64_t step) {
    const int tiles = block_tiles(), layers = layout.hidden;
    const int before = (group() - layout.chains) * slabs_of_group, slabs = layers * panels;  // before: of other groups
    Accumulator<kWidth> sums[slabs_of_group];
    Accumulator<kFusedOutputs> last[panels];
    float columns[slabs_of_group][2] = {}, outputs = 0;
    // Slabs from the last one down. Where a group() has more room than slabs, the first one is added once more.
    const auto slab_of = [&](int i) { return before + i < slabs ? slabs - 1 - before - i : 0; };
#pragma unroll
    for (int panel = 0; panel < panels; ++panel)
#pragma unroll
      for (int i = 0; i < 4; ++i) last[panel][i] = 0;
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
      if (!group_waits_for(ready, parity, wait, FusedPhase::kGradients, step)) break;
      const auto last_gradient = shared_matrix<kType, Major::kK>(output_gradient(at), kFusedTargetBytes);
#pragma unroll
      for (int panel = 0; panel < panels; ++panel) {
        begin_products(last[panel]);
        const auto last_hidden =
            shared_matrix<kType, Major::kMn>(hidden(at, layers) + panel * kFusedPanelBytes, kFusedPanelBytes);
#pragma unroll
        for (int i = 0; i < kStepsOfRows; ++i)
          multiply_async(last[panel], last_hidden.k_step(i), last_gradient.k_step(i), true);
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
        add_columns(columns[i], gradient(at, slab_of(i) / panels + 1) + slab_of(i) % panels * kFusedPanelBytes);
      const int output = thread() % kFusedGroupThreads / 16;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, output_gradient(at) + panel_offset(output, (lane() % 16 * 4 + i) * 2), sizeof bits);
        outputs += bf16_value(bits);
      }
#pragma unroll
      for (int panel = 0; panel < panels; ++panel) wait_products<0>(last[panel]);
#pragma unroll
      for (int i = 0; i < slabs_of_group; ++i) wait_products<0>(sums[i]);
      warp_barrier();
      if (lane() == 0) arrive(&control().stage_free[chain][which]);
    }
    const FusedSlots slots = layout.slots();
    float* const slot = slot_of_block();
    const int place = thread() % kFusedGroupThreads;
#pragma unroll
    for (int i = 0; i < slabs_of_group; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j)
        for (unsigned bit = 8; bit < 32; bit *= 2) columns[i][j] += warp_shuffle_xor(columns[i][j], bit);
      if (before + i >= slabs) continue;
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
        const Four four{sums[i][4 * j], sums[i][4 * j + 1], sums[i][4 * j + 2], sums[i][4 * j + 3]};
        std::memcpy(slot + (slab_of(i) * slots.fours_of_slab() + j * kFusedGroupThreads + place) * 4, &four,
                    sizeof four);
      }
      if (lane() < 8)
        for (int j = 0; j < 2; ++j)
          slot[slots.biases_at() * 4 + slab_of(i) * kFusedPanelWidth + 16 * warp() + 2 * lane() + j] = columns[i][j];
    }
    for (unsigned bit = 1; bit < 16; bit *= 2) outputs += warp_shuffle_xor(outputs, bit);
    if (before != 0) return;
#pragma unroll
    for (int panel = 0; panel < panels; ++panel) {
      const Four four{last[panel][0], last[panel][1], last[panel][2], last[panel][3]};
      std::memcpy(slot + (slots.last_weights_at() + panel * kFusedGroupThreads + place) * 4, &four, sizeof four);
    }
    if (lane() % 16 == 0) slot[slots.last_bias_at() * 4 + place / 16] = outputs;
  }

  // The end of a step.

  /// A parameter as an operand, in global memory.
  __device__ void write_operand(const Element& element, float value) const {
    unsigned char* const to = arguments.operands;
    if (element.is_bias) {
      std::memcpy(to + layout.biases_at + (element.layer * kWidth + element.column) * 4, &value, sizeof value);
      return;
    }
    const bool is_last = element.layer == layout.hidden;
    const int row = is_last ? element.column : element.row, column = is_last ? element.row : element.column;
    const int panel = column / kFusedPanelWidth * (is_last ? kLastPanelBytes : kWeightPanelBytes);
    const auto bits = static_cast<std::uint16_t>(to_bf16(value, 0));
    std::memcpy(to + element.layer * layout.weight_bytes() + panel + panel_offset(row, column % kFusedPanelWidth * 2),
                &bits, sizeof bits);
  }

  __device__ void write_operands() const {
    for_own_elements<false>([&](int q, const Four&) {
      with_parameters(q, [&](const Element& element, const FusedParameter& parameter, int index, int) {
        write_operand(element, parameter.values[index]);
      });
    });
  }

  __device__ void load_operands() const {
    for (int i = thread(); i < layout.operand_bytes() / 16; i += layout.computing_threads()) {
      Four four;
      std::memcpy(&four, arguments.operands + i * 16, sizeof four);
      std::memcpy(memory + i * 16, &four, sizeof four);
    }
  }

  /// All steps, of which run(step) does the part of this thread()'s warpgroup.
  template <class Run>
  __device__ __forceinline__ void compute(const Run& run) {
    write_operands();
    BlockParts::compute([&] { load_operands(); }, run,
                        [&](const Element& element, float value) { write_operand(element, value); });
  }
};

template <int panels, int slabs_of_group, bool relu>
__global__ void __launch_bounds__(kMostThreads, 1) fused_kernel(FusedArguments arguments, FusedLayout layout) {
  constexpr int kChain = kChainRegisters<panels, slabs_of_group>, kGradient = kGradientRegisters<slabs_of_group>;
  static_assert(kFetchingRegisters + 2 * kChain + kGradient <= 65536 / kFusedGroupThreads);
  static_assert(kFetchingRegisters + kChain + 2 * kGradient <= 65536 / kFusedGroupThreads);
  FusedBlock<panels, slabs_of_group, relu> block(arguments, layout, shared<fused::FusedShared>().bytes);
  if (block.thread() == 0) block.init_control();
  block_barrier();
  if (block.group() >= layout.chains + layout.groups) {
    lower_registers<kFetchingRegisters>();
    block.bring_tiles();
  } else if (block.group() < layout.chains) {
    if constexpr (kChain < 128)
      lower_registers<kChain>();
    else
      raise_registers<kChain>();
    block.compute([&](std::int64_t step) { block.run_chain(step); });
  } else {
    raise_registers<kGradient>();
    block.compute([&](std::int64_t step) { block.run_gradients(step); });
  }
}

/// A thread writes 16 bytes of a tile.
__global__ void fused_tiles_kernel(std::uint32_t* tiles, const float* x, std::int64_t rows, int inputs, int panels,
                                   std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(block_index()) * kThreads + thread_index();
  if (i >= count) return;
  const std::int64_t row = i / (8 * panels);
  const int piece = static_cast<int>(i % (8 * panels));
  const int in_tile = piece / 8 * kFusedPanelBytes + panel_offset(static_cast<int>(row % kFusedRows), piece % 8 * 16);
  std::uint32_t* const to = tiles + (row / kFusedRows * panels * kFusedPanelBytes + in_tile) / 4;
  for (int j = 0; j < 4; ++j) {
    float pair[2] = {};
    for (int half = 0; half < 2; ++half) {
      const int column = piece * 8 + 2 * j + half;
      if (row < rows && column < inputs) pair[half] = x[row * inputs + column];
    }
    to[j] = to_bf16(pair[0], pair[1]);
  }
}

template <bool relu>
auto kernel_of(const FusedLayout& layout) {
  if (layout.panels == 2) return fused_kernel<2, 2, relu>;
  if (layout.slabs_of_group == 4) return fused_kernel<1, 4, relu>;
  return layout.slabs_of_group == 3 ? fused_kernel<1, 3, relu> : fused_kernel<1, 2, relu>;
}

}  // namespace

void launch_fused_tiles(std::uint32_t* tiles, const float* x, int inputs, const FusedLayout& layout,
                        cudaStream_t stream) {
  if (!layout.is_bf16()) return launch_fused_tf32_tiles(tiles, x, inputs, layout, stream);
  const std::int64_t count = layout.data_tiles() * (layout.tile_bytes() / 16);
  launch(fused_tiles_kernel, {divide_up(count, kThreads), kThreads}, stream, tiles, x, layout.data_rows(), inputs,
         layout.panels, count);
}

void prepare_fused(const FusedLayout& layout) {
  if (!layout.is_bf16()) return prepare_fused_tf32(layout);
  for (const auto kernel : {kernel_of<true>(layout), kernel_of<false>(layout)})
    prepare_kernel(reinterpret_cast<const void*>(kernel), fused::config_of(layout));
}

void launch_fused(const FusedArguments& arguments, const FusedLayout& layout, cudaStream_t stream) {
  if (!layout.is_bf16()) return launch_fused_tf32(arguments, layout, stream);
  const bool relu = arguments.activation.kind == Activation::relu;
  launch(relu ? kernel_of<true>(layout) : kernel_of<false>(layout), fused::config_of(layout), stream, arguments,
         layout);
}

}  // namespace deviceloop::cuda
