// What the kernels that train narrow networks by tensor cores share, whatever they multiply (fused_bf16.cuh and
// fused_tf32.cu, which include this, and nobody else): which tiles a block has, how they are fetched, what threads wait
// for, the barriers of a step, and its end, where the blocks' sums are added and the parameters updated.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "../runtime/launch.h"
#include "../runtime/tensor.cuh"
#include "fused.h"

namespace deviceloop::cuda::fused {

static_assert(kFusedGroupThreads == kWarpgroupThreads && kFusedMostChains * kFusedMostStages <= kFusedFetchingWarps);

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
    return {slab / slots.slabs(), slab % slots.slabs() * kFusedSlabRows + row, 8 * eight + column, false};
  }
  if (q < slots.biases_at()) {
    const int of_last = q - slots.last_weights_at(), slab = of_last / slots.fours_of_last_slab();
    const int eight = of_last % slots.fours_of_last_slab() / kFusedGroupThreads;
    return {slots.layers, slab * kFusedSlabRows + row, 8 * eight + column, false};
  }
  const int bias = (q - slots.biases_at()) * 4 + i;
  if (q < slots.last_bias_at()) return {bias / slots.width, 0, bias % slots.width, true};
  return {slots.layers, 0, bias - slots.layers * slots.width, true};
}

/// Whether it is the sum of squared errors of the last sums themselves.
__device__ inline bool has_plain_loss(const FusedArguments& arguments) {
  return arguments.output_activation.kind == Activation::identity && arguments.loss.kind == Loss::squared_error &&
         arguments.loss.scale == 1 && arguments.row_weights == nullptr;
}

/// use(the formula), unless that calls functions, which products of a warpgroup do not run beside.
template <class Use>
__device__ inline void with_formula(const ActivationOfStep& activation, const Use& use) {
  activations::with_activation<float>(activation, [&](const auto& formula) {
    if constexpr (!std::is_same_v<std::decay_t<decltype(formula)>, activations::Sine>) use(formula);
  });
}

/// The sum, or what `combine` makes, of the lanes that share a row of outputs, in all of them.
template <class T, class Combine>
__device__ inline T over_row(T value, const Combine& combine) {
  for (unsigned bit = 1; bit < 4; bit *= 2) value = combine(value, warp_shuffle_xor(value, bit));
  return value;
}
template <class T>
__device__ inline T row_sum(T value) {
  return over_row(value, [](T a, T b) { return a + b; });
}

/// What one thread of a block does. Warpgroups are the chains, then the gradient groups, then that which fetches tiles.
struct BlockParts {
  const FusedArguments& arguments;
  const FusedBlockLayout& layout;
  unsigned char* memory;

  __device__ BlockParts(const FusedArguments& of, const FusedBlockLayout& cut, unsigned char* at)
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

  /// Which samples the rows of a stage's tile are, where they are gathered.
  __device__ std::int64_t* samples(int chain, int which) const {
    return reinterpret_cast<std::int64_t*>(memory + layout.samples_at) + (chain * layout.stages + which) * kFusedRows;
  }
  /// The same of the tile that a warp of the fetching warpgroup takes next.
  __device__ std::int64_t* samples_found(int fetching_warp) const {
    return samples(layout.chains, 0) + fetching_warp * kFusedRows;
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
  /// alternate from `wait` to wait, because a thread() may be at the next one while another still reads that of this
  /// one.
  __device__ bool group_waits_for(const TransactionBarrier* barrier, unsigned parity, unsigned wait, FusedPhase phase,
                                  std::int64_t step) const {
    unsigned& failed = control().failed[wait % 2][group()];
    if (!wait_transactions(barrier, parity, deadline(), fused_code(phase, arguments.first_step + step))) failed = 1;
    part_barrier(2 + group(), kFusedGroupThreads);
    return failed == 0;
  }

  /// Barrier of the grid for the computing threads, the first or `second` of a step; false once a wait has failed
  /// anywhere.
  __device__ bool meet(std::int64_t step, bool second) const {
    const unsigned meetings = 2 * static_cast<unsigned>(step) + (second ? 2 : 1);
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

  /// Each warp gathers the tiles of one stage of one chain: a lane finds the samples of two rows while the stage is not
  /// free yet, and copies pieces of 16 bytes of all.
  __device__ void gather() const {
    if (warp() >= layout.chains * layout.stages) return;
    const auto chain = [&] { return warp() / layout.stages; };
    const auto which = [&] { return warp() % layout.stages; };
    if (chain_tiles(chain()) == 0) return;
    unsigned step = 0;
    for (auto number = static_cast<unsigned>(which());; number += static_cast<unsigned>(layout.stages)) {
      while (number - step * chain_tiles(chain()) >= chain_tiles(chain())) ++step;
      if (step >= arguments.steps) return;
      const std::int64_t tile =
          tile_of(chain() + static_cast<int>(number - step * chain_tiles(chain())) * layout.chains);
#pragma unroll 1
      for (int row = lane(); row < kFusedRows; row += 32) {
        const std::int64_t in_batch = tile * kFusedRows + row;
        samples_found(warp())[row] =
            in_batch < layout.rows
                ? arguments.order.sample((arguments.first_step + step) * layout.rows + in_batch, arguments.network)
                : -1;
      }
      const bool is_free = wait_transactions(&control().stage_free[chain()][which()],
                                             number / static_cast<unsigned>(layout.stages) % 2 ^ 1, deadline(),
                                             fused_code(FusedPhase::kTile, arguments.first_step + step));
      if (warp_ballot(!is_free) != 0) return;
      warp_barrier();
      unsigned char* const to = stage(chain(), which());
      const auto* const from = reinterpret_cast<const unsigned char*>(arguments.tiles);
      const int piece = lane() % 8 * 16;
#pragma unroll 1
      for (int row = lane() / 8; row < kFusedRows; row += 4) {
        const std::int64_t sample = samples_found(warp())[row];
        if (piece == 0) samples(chain(), which())[row] = sample;
        for (int panel = 0; panel < layout.panels; ++panel) {
          auto* const four = reinterpret_cast<Four*>(to + panel * kFusedPanelBytes + panel_offset(row, piece));
          if (sample < 0)
            *four = {};
          else
            copy_async(four, reinterpret_cast<const Four*>(
                                 from + (sample / kFusedRows * layout.panels + panel) * kFusedPanelBytes +
                                 panel_offset(static_cast<int>(sample % kFusedRows), piece)));
        }
      }
      wait_copies();
      fence_async_proxy();
      warp_barrier();
      if (lane() == 0) arrive(&control().tile_arrived[chain()][which()]);
    }
  }

  /// As the layout says, by the threads of the last warpgroup.
  __device__ void bring_tiles() const {
    if (layout.gathers())
      gather();
    else
      fetch();
  }

  // The chains.

  /// use(i, row of the tile, output) for those of this thread()'s four values of eight outputs of a tile, from the
  /// `first` on, that there are.
  template <class Use>
  __device__ void for_outputs(std::int64_t tile, int first, const Use& use) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp() + lane() / 4 + 8 * (i / 2), output = first + 2 * (lane() % 4) + i % 2;
      if (tile * kFusedRows + row < layout.rows && output < arguments.widths[layout.hidden + 1]) use(i, row, output);
    }
  }
  /// Which sample a row of a tile is; `samples` tells it where the tile is gathered, else null.
  static __device__ std::int64_t sample_of(std::int64_t tile, int row, const std::int64_t* samples) {
    return samples != nullptr ? samples[row] : tile * kFusedRows + row;
  }
  /// The targets of this thread()'s outputs of a tile, from the `first` on.
  template <int count>
  __device__ void load_targets(float (&targets)[count], std::int64_t tile, const std::int64_t* samples,
                               int first = 0) const {
    const int outputs = arguments.widths[layout.hidden + 1];
#pragma unroll
    for (int j = 0; j < count / 4; ++j)
      for_outputs(tile, first + 8 * j, [&](int i, int row, int output) {
        const std::int64_t sample = sample_of(tile, row, samples);
        targets[4 * j + i] = arguments.y[arguments.loss.has_classes ? sample : sample * outputs + output];
      });
  }

  /// Of the outputs in `columns`, the targets that a thread() has in registers: all, or as many as fit beside the sums.
  template <int columns>
  static constexpr int kTargets = columns < 32 ? columns / 2 : 1024 / columns;

  /// use(values, targets, first) for this thread()'s four values of each eight columns of outputs, from the `first` on.
  /// With up to 16 columns `targets` has them all. A loss is many instructions: there is one copy of it, to which the
  /// values move from register to register, because registers cannot be indexed; in the end they are where they were.
  template <int columns, class Use>
  __device__ __forceinline__ void for_eights(Accumulator<columns>& values, const float (&targets)[kTargets<columns>],
                                             std::int64_t tile, const std::int64_t* samples, const Use& use) const {
    constexpr int kCount = kTargets<columns>, kAll = columns / 2;
    float own[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) own[i] = targets[i];
#pragma unroll 1
    for (int begin = 0; begin < columns; begin += 2 * kCount) {
      if constexpr (kCount < kAll) load_targets(own, tile, samples, begin);
#pragma unroll 1
      for (int first = begin; first < begin + 2 * kCount; first += 8) {
        float four[4], targets_of_four[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          four[i] = values[i];
          targets_of_four[i] = own[i];
        }
        use(four, targets_of_four, first);
#pragma unroll
        for (int i = 4; i < kCount; ++i) {
          values[i - 4] = values[i];
          own[i - 4] = own[i];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          values[kCount - 4 + i] = four[i];
          own[kCount - 4 + i] = targets_of_four[i];
        }
      }
      if constexpr (kCount < kAll) {
        float first_ones[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) first_ones[i] = values[i];
#pragma unroll
        for (int i = kCount; i < kAll; ++i) values[i - kCount] = values[i];
#pragma unroll
        for (int i = 0; i < kCount; ++i) values[kAll - kCount + i] = first_ones[i];
      }
    }
  }

  /// This thread()'s outputs of a tile, which are sums so far, become their gradients; adds to the loss.
  template <int columns>
  __device__ __forceinline__ void end_outputs(Accumulator<columns>& outputs, const float (&targets)[kTargets<columns>],
                                              std::int64_t tile, const std::int64_t* samples, double& loss) const {
    if (!has_plain_loss(arguments)) return other_loss(outputs, targets, tile, samples, loss);
    for_eights(outputs, targets, tile, samples, [&](float(&values)[4], const float(&targets_of_four)[4], int first) {
      float gradients[4] = {};
      for_outputs(tile, first, [&](int i, int, int output) {
        const float difference = values[i] + bias(layout.hidden)[output] - targets_of_four[i];
        loss += static_cast<double>(difference * difference);
        gradients[i] = elementwise::squared_error_gradient(difference);
      });
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = gradients[i];
    });
  }

  /// Four sums of outputs with their biases, and what the outputs' activation makes of them.
  struct Predictions {
    float z[4], values[4];
  };
  __device__ Predictions predictions_of(const float (&sums)[4], int first) const {
    Predictions of;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      of.z[i] = of.values[i] = sums[i] + bias(layout.hidden)[first + 2 * (lane() % 4) + i % 2];
    if (arguments.output_activation.kind != Activation::identity)
      with_formula(arguments.output_activation, [&](const auto& formula) {
#pragma unroll
        for (int i = 0; i < 4; ++i) of.values[i] = formula.value(of.z[i]);
      });
    return of;
  }
  /// Gradients by the predictions become those by the sums.
  __device__ void pass_activation(float (&gradients)[4], const Predictions& of, std::int64_t tile, int first) const {
    if (arguments.output_activation.kind != Activation::identity)
      with_formula(arguments.output_activation, [&](const auto& formula) {
        constexpr bool keeps_z = std::decay_t<decltype(formula)>::may_keep_pre_activation;
        for_outputs(tile, first, [&](int i, int, int) {
          gradients[i] = formula.gradient(keeps_z ? of.z[i] : of.values[i], gradients[i]);
        });
      });
  }

  /// end_outputs() for any activation of the outputs and any loss.
  template <int columns>
  __device__ __forceinline__ void other_loss(Accumulator<columns>& outputs, const float (&targets)[kTargets<columns>],
                                             std::int64_t tile, const std::int64_t* samples, double& loss) const {
    float weights[2] = {1, 1};
    if (arguments.row_weights != nullptr)
      for_outputs(tile, 0,
                  [&](int i, int row, int) { weights[i / 2] = arguments.row_weights[sample_of(tile, row, samples)]; });
    if (arguments.loss.kind == Loss::cross_entropy)
      return cross_entropy(outputs, targets, weights, tile, samples, loss);
    for_eights(outputs, targets, tile, samples, [&](float(&values)[4], const float(&targets_of_four)[4], int first) {
      const Predictions of = predictions_of(values, first);
      float gradients[4] = {};
      for_outputs(tile, first, [&](int i, int, int) {
        elementwise::LossTerm<float> term = elementwise::loss_term(arguments.loss, of.values[i], targets_of_four[i]);
        if (arguments.row_weights != nullptr) term = elementwise::weighted(term, weights[i / 2]);
        loss += static_cast<double>(term.value);
        gradients[i] = term.gradient;
      });
      pass_activation(gradients, of, tile, first);
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = gradients[i];
    });
  }

  /// Of rows of logits, four lanes having a row: passes for their largest, for the sum of their exponentials, and for
  /// the loss and the gradients.
  template <int columns>
  __device__ __forceinline__ void cross_entropy(Accumulator<columns>& outputs,
                                                const float (&targets)[kTargets<columns>], const float (&weights)[2],
                                                std::int64_t tile, const std::int64_t* samples, double& loss) const {
    const bool has_classes = arguments.loss.has_classes;
    float largest[2] = {-HUGE_VALF, -HUGE_VALF}, totals[2] = {}, sums[2] = {}, log_sums[2] = {}, of_rows[2] = {};
    double exact_sums[2] = {};
#pragma unroll 1
    for (int pass = 0; pass < 3; ++pass) {
      for_eights(outputs, targets, tile, samples, [&](float(&values)[4], const float(&targets_of_four)[4], int first) {
        const Predictions logits = predictions_of(values, first);
        if (pass == 0)
          return for_outputs(tile, first, [&](int i, int, int) {
            if (largest[i / 2] < logits.values[i]) largest[i / 2] = logits.values[i];
            totals[i / 2] += targets_of_four[i];
          });
        float gradients[4] = {};
        for_outputs(tile, first, [&](int i, int, int output) {
          const int row = i / 2;
          const float shifted = logits.values[i] - largest[row], exponential = elementary::exp(shifted);
          if (pass == 1) {
            exact_sums[row] += static_cast<double>(exponential);
            return;
          }
          const float target = targets_of_four[i];
          const float probability = !has_classes ? target : output == static_cast<int>(target) ? 1.0f : 0.0f;
          const elementwise::LossTerm<float> term =
              elementwise::cross_entropy_term(shifted, exponential, sums[row], log_sums[row], probability, totals[row]);
          of_rows[row] += term.value;
          gradients[i] = term.gradient * (static_cast<float>(arguments.loss.scale) * weights[row]);
        });
        if (pass == 1) return;
        pass_activation(gradients, logits, tile, first);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = gradients[i];
      });
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        if (pass == 0) {
          largest[row] = over_row(largest[row], [](float a, float b) { return a < b ? b : a; });
          totals[row] = has_classes ? 1.0f : row_sum(totals[row]);
        } else if (pass == 1) {
          exact_sums[row] = row_sum(exact_sums[row]);
          sums[row] = static_cast<float>(exact_sums[row]);
          log_sums[row] = elementary::log1p(static_cast<float>(exact_sums[row] - 1));
        } else {
          of_rows[row] = row_sum(of_rows[row]);
          if (lane() % 4 == 0) loss += static_cast<double>(of_rows[row] * weights[row]);
        }
      }
    }
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
    if (!arguments.forward_only)
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
    if (lane() == 0) arguments.losses[step] = loss * arguments.loss.scale;
  }

  /// All steps: load() brings the operands that written(element, value) has written to shared memory, and run(step)
  /// does the part of this thread()'s warpgroup.
  template <class Load, class Run, class Written>
  __device__ __forceinline__ void compute(const Load& load, const Run& run, const Written& written) {
    for (std::int64_t step = 0; step < arguments.steps; ++step) {
      if (!meet(step, false)) return;
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
      if (!meet(step, true)) return;
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
