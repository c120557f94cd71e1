#include "fused.h"

#include <cstring>

#include "../runtime/launch.h"
#include "fused_bf16.cuh"
#include "fused_clusters.h"
#include "fused_tf32.h"

namespace deviceloop::cuda {
namespace {

using fused::Element;
using fused::Four;

// Two chains and a gradient group, or a chain and two groups, and the warpgroup that fetches.
constexpr int kMostThreads = 4 * kFusedGroupThreads;

/// Whether a block always has two gradient groups and one chain.
template <int panels, int columns>
constexpr bool kHasTwoGroups = panels == 2 && columns > kFusedOutputs;

// Registers of a thread: 128 at first. Square outputs of two panels need more in a chain, for their loss, and fewer in
// a gradient group.
constexpr int kFetchingRegisters = 32;
template <int panels, int slabs_of_group, int columns>
constexpr int kChainRegisters = columns == 128        ? 144
                                : panels == 2         ? 128
                                : slabs_of_group == 4 ? 112
                                                      : 120;
template <int slabs_of_group, int columns>
constexpr int kGradientRegisters = columns == 128        ? 168
                                   : slabs_of_group == 4 ? 184
                                                         : 176;

/// A block that leaves its sums in a slot, and updates some of the parameters.
template <int panels, int slabs_of_group, int columns, bool relu>
struct GridBlock : fused::FusedBlock<panels, slabs_of_group, columns, relu> {
  using Base = fused::FusedBlock<panels, slabs_of_group, columns, relu>;
  using Base::arguments;
  using Base::kLastPanelBytes;
  using Base::kWeightPanelBytes;
  using Base::kWidth;
  using Base::layout;
  using Base::memory;
  using Base::thread;

  __device__ GridBlock(const FusedArguments& of, const FusedBlockLayout& cut, unsigned char* at) : Base(of, cut, at) {}

  /// A parameter as an operand, in global memory.
  __device__ void write_operand(const Element& element, float value) const {
    unsigned char* const to = arguments.operands;
    if (element.is_bias) {
      std::memcpy(to + layout.biases_at + (element.layer * kWidth + element.column) * 4, &value, sizeof value);
      return;
    }
    const bool is_last = !Base::kSquareOutputs && element.layer == layout.hidden;
    const int row = is_last ? element.column : element.row, column = is_last ? element.row : element.column;
    const int panel = column / kFusedPanelWidth * (is_last ? kLastPanelBytes : kWeightPanelBytes);
    const auto bits = static_cast<std::uint16_t>(to_bf16(value, 0));
    std::memcpy(to + element.layer * layout.weight_bytes() + panel + panel_offset(row, column % kFusedPanelWidth * 2),
                &bits, sizeof bits);
  }

  __device__ void write_operands() const {
    this->template for_own_elements<false>([&](int q, const Four&) {
      this->with_parameters(q, [&](const Element& element, const FusedParameter& parameter, int index, int) {
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

  __device__ __forceinline__ void chain_step(std::int64_t step) { this->run_chain(step); }
  __device__ __forceinline__ void gradient_step(std::int64_t step) {
    float* const slot = this->slot_of_block();
    this->run_gradients(
        step, [](bool) { return true; },
        [&](int index, const auto& values) { std::memcpy(slot + index, &values, sizeof values); });
  }

  /// All steps, of which run(step) does the part of this thread()'s warpgroup.
  template <class Run>
  __device__ __forceinline__ void compute(const Run& run) {
    write_operands();
    fused::BlockParts::compute([&] { load_operands(); }, run,
                               [&](const Element& element, float value) { write_operand(element, value); });
  }
};

template <int panels, int slabs_of_group, int columns, bool relu>
__global__ void __launch_bounds__(kMostThreads, 1) fused_kernel(FusedArguments arguments, FusedBlockLayout layout) {
  constexpr int kChain = kChainRegisters<panels, slabs_of_group, columns>,
                kGradient = kGradientRegisters<slabs_of_group, columns>;
  static_assert(kFetchingRegisters + 2 * kChain + kGradient <= fused::kRegisters);
  static_assert(kFetchingRegisters + kChain + 2 * kGradient <= fused::kRegisters);
  // What follows from what the kernel is compiled for takes no registers.
  layout.precision = Precision::bf16;
  layout.panels = panels;
  layout.slabs_of_group = slabs_of_group;
  layout.output_columns = columns;
  if constexpr (kHasTwoGroups<panels, columns>) {
    layout.groups = 2;
    layout.chains = 1;
  }
  GridBlock<panels, slabs_of_group, columns, relu> block(arguments, layout, shared<fused::FusedShared>().bytes);
  if (block.thread() == 0) block.init_control();
  block_barrier();
  fused::run_warpgroups<128, kFetchingRegisters, kChain, kGradient>(block);
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

/// Kernels for relu alone are of 8 outputs: each takes time to compile.
auto kernel_of(const FusedLayout& layout, bool relu) {
  using Kernel = void (*)(FusedArguments, FusedBlockLayout);
  const auto of = [&](Kernel two, Kernel three, Kernel four, Kernel wide) {
    return layout.panels == 2 ? wide : layout.slabs_of_group == 4 ? four : layout.slabs_of_group == 3 ? three : two;
  };
  if (layout.has_square_outputs())
    return of(nullptr, nullptr, fused_kernel<1, 4, 64, false>, fused_kernel<2, 2, 128, false>);
  if (layout.output_columns == kFusedMoreOutputs)
    return of(fused_kernel<1, 2, 16, false>, nullptr, fused_kernel<1, 4, 16, false>, fused_kernel<2, 2, 16, false>);
  return relu ? of(fused_kernel<1, 2, 8, true>, fused_kernel<1, 3, 8, true>, fused_kernel<1, 4, 8, true>,
                   fused_kernel<2, 2, 8, true>)
              : of(fused_kernel<1, 2, 8, false>, fused_kernel<1, 3, 8, false>, fused_kernel<1, 4, 8, false>,
                   fused_kernel<2, 2, 8, false>);
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
  if (layout.clusters > 0) return prepare_fused_clusters(layout);
  for (const bool relu : {true, false})
    prepare_kernel(reinterpret_cast<const void*>(kernel_of(layout, relu)), fused::config_of(layout));
}

void launch_fused(const FusedArguments& arguments, const FusedLayout& layout, bool cooperative, cudaStream_t stream) {
  if (!layout.is_bf16()) return launch_fused_tf32(arguments, layout, stream);
  if (layout.clusters > 0) return launch_fused_clusters(arguments, layout, cooperative, stream);
  launch(kernel_of(layout, arguments.activation.kind == Activation::relu), fused::config_of(layout), stream, arguments,
         layout);
}

}  // namespace deviceloop::cuda
