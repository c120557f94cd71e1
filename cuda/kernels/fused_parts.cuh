// What the kernels that train narrow networks by tensor cores share, whatever they multiply (fused.cu, fused_tf32.cu,
// which include this, and nobody else): which tiles a block has, how they are fetched, what threads wait for, the
// barriers of a step, and its end, where the blocks' sums are added and the parameters updated.
#pragma once

#include <cstring>

#include "../runtime/launch.h"
#include "../runtime/tensor.cuh"
#include "fused.h"

namespace deviceloop::cuda::fused {

static_assert(kFusedGroupThreads == kWarpgroupThreads);

struct alignas(1024) FusedShared {
  unsigned char bytes[1024];
};

struct FusedControl {
  TransactionBarrier tile_arrived[kFusedMostChains][kFusedMostStages];
  TransactionBarrier stage_free[kFusedMostChains][kFusedMostStages];
  TransactionBarrier ready[kFusedMostChains][kFusedMostStages][kFusedMostGroups];  // all operands of a gradient group
  TransactionBarrier taken[kFusedMostChains];  // in tf32, where `ready` has one barrier a chain: what was ready
  double losses[kFusedMostChains * 4];
  std::uint64_t end;  // of waits, by clock_ns(); 0 for never
  unsigned failed[2][kFusedMostChains + kFusedMostGroups];
  unsigned goes_on[2];
};
static_assert(sizeof(FusedControl) == kFusedControlBytes);

struct alignas(16) Four {
  float values[4];
};

/// Where an element of a slot belongs.
struct Element {
  int layer, row, column;
  bool is_bias;
};

/// Of the float `i` of the four with index `q`.
__device__ inline Element element_of(const FusedSlots& slots, int q, int i) {
  const int thread = q % kFusedGroupThreads, lane = thread % 32;
  const int row = 16 * (thread / 32) + lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
  if (q < slots.last_weights_at()) {
    const int slab = q / slots.fours_of_slab(), eight = q % slots.fours_of_slab() / kFusedGroupThreads;
    return {slab / slots.panels, slab % slots.panels * kFusedPanelWidth + row, 8 * eight + column, false};
  }
  if (q < slots.biases_at()) {
    const int panel = (q - slots.last_weights_at()) / kFusedGroupThreads;
    return {slots.hidden, panel * kFusedPanelWidth + row, column, false};
  }
  const int bias = (q - slots.biases_at()) * 4 + i;
  if (q < slots.last_bias_at()) return {bias / slots.width(), 0, bias % slots.width(), true};
  return {slots.hidden, 0, bias - slots.hidden * slots.width(), true};
}

/// What one thread of a block does. Warpgroups are the chains, then the gradient groups, then that which fetches tiles.
struct BlockParts {
  const FusedArguments& arguments;
  const FusedLayout& layout;
  unsigned char* memory;
  unsigned group_waits = 0;
  unsigned meetings = 0;

  __device__ BlockParts(const FusedArguments& of, const FusedLayout& cut, unsigned char* at)
      : arguments(of), layout(cut), memory(at) {}

  // Computed again, and read again, instead of being kept in registers.
  static __device__ int thread() { return static_cast<int>(thread_index_again()); }
  static __device__ int group() { return thread() / kFusedGroupThreads; }
  static __device__ int warp() { return thread() / 32 % 4; }  // of its warpgroup
  static __device__ int lane() { return thread() % 32; }
  __device__ Deadline deadline() const { return {control().end, arguments.failed}; }

  __device__ FusedControl& control() const { return *reinterpret_cast<FusedControl*>(memory + layout.control_at); }
  /// Where a tile of inputs of a chain lies.
  __device__ unsigned char* stage(int chain, int which) const { return memory + layout.input_at(chain, which); }
  __device__ const float* bias(int layer) const {
    return reinterpret_cast<const float*>(memory + layout.biases_at) + layer * layout.width();
  }

  /// Of the tiles of a step: how many this block has, and how many of them one of its chains.
  __device__ int block_tiles() const {
    const auto block = static_cast<std::int64_t>(block_index());
    return static_cast<int>((layout.tiles - block + layout.blocks - 1) / layout.blocks);
  }
  __device__ unsigned chain_tiles(int chain) const {
    return static_cast<unsigned>((block_tiles() - chain + layout.chains - 1) / layout.chains);
  }
  __device__ std::int64_t tile_of(int k) const {
    return static_cast<std::int64_t>(block_index()) + static_cast<std::int64_t>(k) * layout.blocks;
  }
  /// The place of tile k of a step among all tiles of its chain in this launch.
  __device__ unsigned number_of(std::int64_t step, int k) const {
    return static_cast<unsigned>(step) * chain_tiles(k % layout.chains) + static_cast<unsigned>(k / layout.chains);
  }

  /// By one thread, before anybody uses them.
  __device__ void init_control() const {
    FusedControl& parts = control();
    for (int chain = 0; chain < layout.chains; ++chain) {
      init_transactions(&parts.taken[chain], 4);
      for (int stage = 0; stage < layout.stages; ++stage) {
        init_transactions(&parts.tile_arrived[chain][stage], 1);
        init_transactions(&parts.stage_free[chain][stage], static_cast<unsigned>(4 * layout.groups));
        for (int i = 0; i < layout.groups; ++i) init_transactions(&parts.ready[chain][stage][i], 4);
      }
    }
    fence_transactions_init();
    parts.end = arguments.timeout_ns == 0 ? 0 : clock_ns() + arguments.timeout_ns;
    for (unsigned(&flags)[kFusedMostChains + kFusedMostGroups] : parts.failed)
      for (unsigned& flag : flags) flag = 0;
  }

  /// All threads of a warpgroup wait, and have the same answer: false if the wait of one of them has failed. The flags
  /// alternate, because a thread() may be at the next wait while another still reads that of this one.
  __device__ bool group_waits_for(const TransactionBarrier* barrier, unsigned parity, FusedPhase phase,
                                  std::int64_t step) {
    unsigned& failed = control().failed[group_waits++ % 2][group()];
    if (!wait_transactions(barrier, parity, deadline(), fused_code(phase, arguments.first_step + step))) failed = 1;
    part_barrier(2 + group(), kFusedGroupThreads);
    return failed == 0;
  }

  /// Barrier of the grid for the computing threads; false once a wait has failed anywhere.
  __device__ bool meet(std::int64_t step) {
    ++meetings;
    unsigned& goes_on = control().goes_on[meetings % 2];
    part_barrier(1, layout.computing_threads());
    if (thread() == 0) {
      arrive(arguments.arrivals);
      goes_on = wait_until(arguments.arrivals, meetings * grid_blocks(), deadline(),
                           fused_code(FusedPhase::kGrid, arguments.first_step + step)) &&
                        !has_failed(deadline())
                    ? 1
                    : 0;
    }
    part_barrier(1, layout.computing_threads());
    return goes_on != 0;
  }

  // Fetching tiles.

  __device__ void fetch() const {
    if (thread() % kFusedGroupThreads != 0) return;
    const int tiles = block_tiles();
    for (std::int64_t step = 0; step < arguments.steps; ++step)
      for (int k = 0; k < tiles; ++k) {
        const int chain = k % layout.chains;
        const unsigned number = number_of(step, k), turn = number / static_cast<unsigned>(layout.stages);
        const unsigned which = number % static_cast<unsigned>(layout.stages);
        if (!wait_transactions(&control().stage_free[chain][which], turn % 2 ^ 1, deadline(),
                               fused_code(FusedPhase::kTile, arguments.first_step + step)))
          return let_stores_land();
        TransactionBarrier* const arrived = &control().tile_arrived[chain][which];
        arrive_expecting(arrived, static_cast<unsigned>(layout.tile_bytes()));
        copy_bulk(stage(chain, static_cast<int>(which)), arguments.tiles + tile_of(k) * (layout.tile_bytes() / 4),
                  static_cast<unsigned>(layout.tile_bytes()), arrived);
      }
    // The block may not end before its copies have landed, even if its other threads no longer wait for them.
    for (int chain = 0; chain < layout.chains; ++chain) {
      const unsigned count = static_cast<unsigned>(arguments.steps) * chain_tiles(chain);
      for (unsigned last = 1; last <= static_cast<unsigned>(layout.stages) && last <= count; ++last) {
        const unsigned turn = (count - last) / static_cast<unsigned>(layout.stages);
        if (!wait_transactions(&control().tile_arrived[chain][(count - last) % static_cast<unsigned>(layout.stages)],
                               turn % 2, deadline(), fused_code(FusedPhase::kTile, arguments.first_step)))
          return let_stores_land();
      }
    }
  }

  // The chains.

  /// use(i, row, output) for those of this thread()'s four outputs of a tile that there are.
  template <class Use>
  __device__ void for_outputs(std::int64_t tile, const Use& use) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t row = tile * kFusedRows + 16 * warp() + lane() / 4 + 8 * (i / 2);
      const int output = 2 * (lane() % 4) + i % 2;
      if (row < layout.rows && output < arguments.widths[layout.hidden + 1]) use(i, row, output);
    }
  }
  __device__ void load_targets(float (&targets)[4], std::int64_t tile) const {
    for_outputs(tile, [&](int i, std::int64_t row, int output) {
      targets[i] = arguments.y[row * arguments.widths[layout.hidden + 1] + output];
    });
  }

  /// The gradients of this thread()'s outputs of a tile, of its sums; adds to the loss.
  __device__ void end_outputs(float (&gradients)[4], Accumulator<kFusedOutputs>& sums, const float (&targets)[4],
                              std::int64_t tile, double& loss) const {
    for_outputs(tile, [&](int i, std::int64_t, int output) {
      const float difference = sums[i] + bias(layout.hidden)[output] - targets[i];
      loss += static_cast<double>(difference * difference);
      gradients[i] = elementwise::squared_error_gradient(difference);
    });
  }

  /// The loss of a step's tiles that this thread() has.
  __device__ void leave_loss(double loss) const {
    for (unsigned bit = 16; bit > 0; bit /= 2) loss += warp_shuffle_xor(loss, bit);
    if (lane() == 0) control().losses[group() * 4 + warp()] = loss;
  }

  // The gradient groups.

  /// Of this block.
  __device__ float* slot_of_block() const {
    return arguments.slots + static_cast<std::int64_t>(block_index()) * layout.slots().count() * 4;
  }

  // The end of a step.

  /// use(element, parameter, index) for the elements of the four with index q that there are.
  template <class Use>
  __device__ void with_parameters(int q, const Use& use) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Element element = element_of(layout.slots(), q, i);
      const FusedParameter& parameter =
          element.is_bias ? arguments.biases[element.layer] : arguments.weights[element.layer];
      const int rows = element.is_bias ? 1 : arguments.widths[element.layer],
                columns = arguments.widths[element.layer + 1];
      if (parameter.values == nullptr || element.row >= rows || element.column >= columns) continue;
      use(element, parameter, element.row * columns + element.column, i);
    }
  }

  /// The elements of this block: use(q, sum) by one thread() each, with the sum over all blocks if there are any to
  /// add.
  template <bool adds, class Use>
  __device__ void for_own_elements(const Use& use) const {
    const int count = layout.slots().count(), blocks = layout.blocks;
    const int share = (count + blocks - 1) / blocks, begin = static_cast<int>(block_index()) * share;
    const int end = begin + share < count ? begin + share : count;
    const int lanes = layout.sum_lanes, place = thread() % lanes, slice = thread() / lanes;
    const int slices = layout.computing_threads() / lanes;
    Four* const parts = reinterpret_cast<Four*>(memory + layout.sums_at());  // no chain uses it now
    for (int first = begin; first < end; first += lanes) {
      const int q = first + place;
      Four sum{};
      if (adds) {
        if (q < end)
#pragma unroll 4
          for (int block = slice; block < blocks; block += slices) {
            Four term;
            std::memcpy(&term, arguments.slots + (static_cast<std::int64_t>(block) * count + q) * 4, sizeof term);
            for (int i = 0; i < 4; ++i) sum.values[i] += term.values[i];
          }
        parts[thread()] = sum;
        part_barrier(1, layout.computing_threads());
      }
      if (slice == 0 && q < end) {
        if (adds)
          for (int from = 1; from < slices; ++from)
            for (int i = 0; i < 4; ++i) sum.values[i] += parts[from * lanes + place].values[i];
        use(q, sum);
      }
      if (adds) part_barrier(1, layout.computing_threads());
    }
  }

  /// written(element, value) for each new value of a parameter.
  template <class Written>
  __device__ void update(std::int64_t step, const Written& written) const {
    const elementwise::StepScalars<float>& scalars = arguments.scalars[step * arguments.scalar_stride];
    for_own_elements<true>([&](int q, const Four& gradients) {
      with_parameters(q, [&](const Element& element, const FusedParameter& parameter, int index, int i) {
        float value = parameter.values[index], state[elementwise::kMostStates] = {};
        for (int j = 0; j < elementwise::kMostStates; ++j)
          if (parameter.states[j] != nullptr) state[j] = parameter.states[j][index];
        elementwise::update(arguments.optimizer, value, state, gradients.values[i], scalars);
        parameter.values[index] = value;
        for (int j = 0; j < elementwise::kMostStates; ++j)
          if (parameter.states[j] != nullptr) parameter.states[j][index] = state[j];
        written(element, value);
      });
    });
    // The loss, by the first warp() of the first block.
    if (block_index() != 0 || thread() >= 32) return;
    double loss = 0;
    for (int block = lane(); block < layout.blocks; block += 32) loss += arguments.loss_parts[block];
    for (unsigned bit = 16; bit > 0; bit /= 2) loss += warp_shuffle_xor(loss, bit);
    if (lane() == 0) arguments.losses[step] = loss;
  }

  /// All steps: load() brings the operands that written(element, value) has written to shared memory, and run(step)
  /// does the part of this thread()'s warpgroup.
  template <class Load, class Run, class Written>
  __device__ void compute(const Load& load, const Run& run, const Written& written) {
    for (std::int64_t step = 0; step < arguments.steps; ++step) {
      if (!meet(step)) return;
      load();
      fence_async_proxy();
      part_barrier(1, layout.computing_threads());
      run(step);
      part_barrier(1, layout.computing_threads());
      if (thread() == 0) {
        double loss = 0;
        for (int i = 0; i < layout.chains * 4; ++i) loss += control().losses[i];
        arguments.loss_parts[block_index()] = loss;
      }
      if (!meet(step)) return;
      update(step, written);
    }
  }
};

inline LaunchConfig config_of(const FusedLayout& layout) {
  LaunchConfig config{layout.blocks, layout.threads(), layout.shared_bytes};
  config.cooperative = true;
  return config;
}

}  // namespace deviceloop::cuda::fused
