// The kernel of fused.h whose blocks work in clusters: host/planning/fused_layout.h says how.
#include "fused_clusters.h"

#include <cstring>

#include "../runtime/launch.h"
#include "fused_bf16.cuh"

namespace deviceloop::cuda {
namespace {

using fused::Element;
using fused::Four;
using StepScalars = elementwise::StepScalars<float>;

/// What lies at FusedLayout::cluster_control_at.
struct ClusterControl {
  TransactionBarrier sums_arrived;      ///< of the units that the block owns, from all blocks; in rank 0 losses too
  TransactionBarrier operands_arrived;  ///< of all owners
  double losses[2][kFusedMostClusterBlocks];
  StepScalars scalars[2];  ///< by the parity of the step
  unsigned failed[2];
  int rank, cluster;  ///< of the block: read again instead of being kept in registers
};
static_assert(sizeof(ClusterControl) == kFusedClusterControlBytes);
static_assert(kFusedUnitFours == kWarpThreads);

/// A loss as a TaggedUnit has it.
struct alignas(16) Loss16 {
  double loss, unused;
};

// A chain, a gradient group and the warpgroup that fetches. Registers of a thread: 168 at first.
constexpr int kBlockThreads = 3 * kFusedGroupThreads;
constexpr int kFetchingRegisters = 64, kChainRegisters = 200, kGradientRegisters = 240;
static_assert(kFetchingRegisters + kChainRegisters + kGradientRegisters <= fused::kRegisters);

/// Clusters of which a lane reads words at once: as many as there are registers for.
template <bool relu>
constexpr int kClustersAtOnce = relu ? 8 : 4;

/// A block of a cluster, whose ranks share the units of FusedLayout::units.
template <int panels, int slabs_of_group, bool relu>
struct ClusterBlock : fused::FusedBlock<panels, slabs_of_group, kFusedOutputs, relu> {
  using Base = fused::FusedBlock<panels, slabs_of_group, kFusedOutputs, relu>;
  using Base::arguments;
  using Base::control;
  using Base::deadline;
  using Base::kLastPanelBytes;
  using Base::kWeightPanelBytes;
  using Base::lane;
  using Base::memory;
  using Base::thread;
  using Base::with_parameters;

  const FusedLayout& layout;

  __device__ ClusterBlock(const FusedArguments& of, const FusedLayout& cut, unsigned char* at)
      : Base(of, cut, at), layout(cut) {}

  __device__ ClusterControl& cluster_control() const {
    return *reinterpret_cast<ClusterControl*>(memory + layout.cluster_control_at);
  }
  __device__ int rank() const { return cluster_control().rank; }
  __device__ int cluster() const { return cluster_control().cluster; }
  __device__ int owner_of(int unit) const { return unit & (layout.cluster_blocks() - 1); }
  __device__ int owned() const { return (layout.units - rank() + layout.cluster_blocks() - 1) >> layout.cluster_log2; }
  __device__ int unit_of(int slot) const { return (slot << layout.cluster_log2) + rank(); }
  __device__ std::uint64_t code(FusedPhase phase, std::int64_t step) const {
    return fused_code(phase, arguments.first_step + step);
  }

  /// Of this lane, in a unit of the block: the sums of one rank; and the parameters, 0, or what the optimizer keeps.
  /// @{
  __device__ Four& received(int from, int slot) const {
    return reinterpret_cast<Four*>(
        memory + layout.sums_received_at)[(from * layout.owned_units + slot) * kFusedUnitFours + lane()];
  }
  __device__ Four& kept(int which, int slot) const {
    return reinterpret_cast<Four*>(
        memory + layout.parameters_at)[(which * layout.owned_units + slot) * kFusedUnitFours + lane()];
  }
  /// @}

  /// What lands in this block in a step.
  /// @{
  __device__ unsigned sums_bytes() const {
    int fours = owned() * kFusedUnitFours;
    if (owner_of(layout.units - 1) == rank()) fours -= layout.units * kFusedUnitFours - layout.slots().count();
    const int of_block = fours * 16 + (rank() == 0 ? 8 : 0);
    return static_cast<unsigned>(of_block << layout.cluster_log2);
  }
  __device__ unsigned operands_bytes() const {
    const FusedSlots slots = layout.slots();
    return static_cast<unsigned>(slots.biases_at() * 8 + (slots.count() - slots.biases_at()) * 16);
  }
  /// @}

  /// By one thread, beside init_control().
  __device__ void init_cluster_control() const {
    ClusterControl& parts = cluster_control();
    parts.rank = static_cast<int>(cluster_rank());
    parts.cluster = static_cast<int>(block_index()) >> layout.cluster_log2;
    init_transactions(&parts.sums_arrived, 1);
    init_transactions(&parts.operands_arrived, 1);
    fence_transactions_init();
    arrive_expecting(&parts.sums_arrived, sums_bytes());
    arrive_expecting(&parts.operands_arrived, operands_bytes());
    parts.failed[0] = parts.failed[1] = 0;
  }

  // Operands.

  /// use(the place of a piece of 16 bytes among the operands, the piece, copy, copies) by all lanes of a warp, which
  /// have the new values of the unit's fours: `copies` lanes have the same piece.
  template <class Use>
  __device__ void with_piece(int unit, const Four& values, const Use& use) const {
    const FusedSlots slots = layout.slots();
    const int q = unit * kFusedUnitFours + lane();
    if (unit * kFusedUnitFours >= slots.biases_at()) {
      if (q < slots.count()) use(layout.biases_at + (q - slots.biases_at()) * 16, values, 0, 1);
      return;
    }
    const std::uint64_t mine =
        to_bf16(values.values[0], values.values[1]) | std::uint64_t{to_bf16(values.values[2], values.values[3])} << 32;
    const bool is_last = unit * kFusedUnitFours >= slots.last_weights_at();
    std::uint32_t words[4];
    if (is_last) {
      // Lane 4 output + half (+ 2, the same again): that output's weights of eight inputs.
      const int output = lane() / 4, half = lane() % 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned from = static_cast<unsigned>(8 * i + output / 2);
        const int bits = (2 * half + output % 2) * 16;
        const std::uint64_t low = warp_shuffle(mine, from) >> bits, high = warp_shuffle(mine, from + 4) >> bits;
        words[i] = static_cast<std::uint32_t>((low & 0xffffu) | (high & 0xffffu) << 16);
      }
    } else {
      // Lane 4 row (+ 1, row + 8; + 2, the same again): eight columns of that row.
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint64_t both = warp_shuffle(mine, static_cast<unsigned>(lane() / 4 * 4 + i));
        words[i] = static_cast<std::uint32_t>(lane() % 2 == 0 ? both : both >> 32);
      }
    }
    Four piece;
    std::memcpy(&piece, words, sizeof piece);
    use(is_last ? last_piece_at(unit) : hidden_piece_at(unit), piece, lane() / 2 % 2, 2);
  }
  __device__ int hidden_piece_at(int unit) const {
    const FusedSlots slots = layout.slots();
    const int q = unit * kFusedUnitFours, slab = q / slots.fours_of_slab();
    const int eight = q % slots.fours_of_slab() / kFusedGroupThreads;
    const int row = slab % slots.slabs() * kFusedSlabRows + unit % 4 * 16 + lane() / 4 + lane() % 2 * 8;
    return slab / slots.slabs() * layout.weight_bytes() + eight / 8 * kWeightPanelBytes +
           panel_offset(row, eight % 8 * 16);
  }
  __device__ int last_piece_at(int unit) const {
    const int of_last = unit - layout.slots().last_weights_at() / kFusedUnitFours;  // four of a panel
    return layout.hidden * layout.weight_bytes() + of_last / 4 * kLastPanelBytes +
           panel_offset(lane() / 4, of_last % 4 * 32 + lane() % 2 * 16);
  }

  /// All operands of this block, and what it owns.
  __device__ __forceinline__ void load() const {
    for (int i = thread(); i < layout.operand_bytes() / 16; i += layout.computing_threads())
      reinterpret_cast<Four*>(memory)[i] = {};
    part_barrier(1, layout.computing_threads());
    const int warps = layout.computing_threads() / static_cast<int>(kWarpThreads);
#pragma unroll 1
    for (int unit = thread() / static_cast<int>(kWarpThreads); unit < layout.units; unit += warps) {
      Four loaded[1 + elementwise::kMostStates] = {};
      with_parameters(unit * kFusedUnitFours + lane(),
                      [&](const Element&, const FusedParameter& parameter, int index, int i) {
                        loaded[0].values[i] = parameter.values[index];
                        for (int j = 0; j < elementwise::kMostStates; ++j)
                          if (parameter.states[j] != nullptr) loaded[1 + j].values[i] = parameter.states[j][index];
                      });
      with_piece(unit, loaded[0], [&](int at, const Four& piece, int copy, int) {
        if (copy == 0) *reinterpret_cast<Four*>(memory + at) = piece;
      });
      if (owner_of(unit) != rank()) continue;
#pragma unroll
      for (int i = 0; i < 1 + elementwise::kMostStates; ++i) kept(i, unit >> layout.cluster_log2) = loaded[i];
    }
    fence_async_proxy();
    part_barrier(1, layout.computing_threads());
  }

  /// What the block owns, to global memory.
  __device__ void store() const {
    each_owned([&](int slot, int q) {
      with_parameters(q, [&](const Element&, const FusedParameter& parameter, int index, int i) {
        parameter.values[index] = kept(0, slot).values[i];
        for (int j = 0; j < elementwise::kMostStates; ++j)
          if (parameter.states[j] != nullptr) parameter.states[j][index] = kept(1 + j, slot).values[i];
      });
    });
  }

  // A step.

  /// use(slot, this lane's four) for the units that this warp has of those that the block owns: a warp has the same
  /// ones all the time.
  template <class Use>
  __device__ __forceinline__ void each_owned(const Use& use) const {
    const int warps = layout.computing_threads() / static_cast<int>(kWarpThreads);
#pragma unroll 1
    for (int slot = thread() / static_cast<int>(kWarpThreads); slot < owned(); slot += warps)
      use(slot, unit_of(slot) * kFusedUnitFours + lane());
  }

  /// Notes a failed wait of step `step` up to its chains' end, or of the end of the step before.
  __device__ void note(std::int64_t step, bool arrived) const {
    if (!arrived) cluster_control().failed[step % 2] = 1;
  }

  /// A barrier of the computing threads, behind which no chain of the block reads operands any more in this step;
  /// false, in all of them, once a wait has failed.
  __device__ bool chains_have_ended(std::int64_t step, bool arrived) const {
    note(step, arrived);
    part_barrier(1, layout.computing_threads());
    return cluster_control().failed[step % 2] == 0;
  }

  __device__ __forceinline__ bool chain_step(std::int64_t step) {
    copy_scalars(step);
    const bool arrived = await_operands_before(step);
    // Nobody reads these flags now: a barrier of all is behind the last wait. The chain's next wait then fails.
    if (!arrived) control().failed[0][this->group()] = control().failed[1][this->group()] = 1;
    note(step, arrived);
    const bool goes_on = this->run_chain(step);
    wait_copies();
    if (!chains_have_ended(step, goes_on)) return false;
    if (thread() != 0) return true;
    double loss = 0;
    for (int i = 0; i < layout.chains * 4; ++i) loss += control().losses[i];
    store_async(remote(&cluster_control().losses[step % 2][rank()], 0), loss,
                remote(&cluster_control().sums_arrived, 0));
    return true;
  }
  __device__ void copy_scalars(std::int64_t step) const {
    constexpr int kWords = sizeof(StepScalars) / sizeof(std::uint64_t);
    static_assert(kWords * sizeof(std::uint64_t) == sizeof(StepScalars));
    if (thread() >= kWords) return;
    copy_async(reinterpret_cast<std::uint64_t*>(&cluster_control().scalars[step % 2]) + thread(),
               reinterpret_cast<const std::uint64_t*>(arguments.scalars + step * arguments.scalar_stride) + thread());
  }

  __device__ __forceinline__ bool gradient_step(std::int64_t step) {
    note(step, await_operands_before(step));
    bool goes_on = true;
    this->run_gradients(
        step, [&](bool arrived) { return goes_on = chains_have_ended(step, arrived); },
        [&](int index, const auto& values) { send_sums(index, values); });
    return goes_on;
  }

  /// Floats of a slot from that index on go to their owner.
  template <class T>
  __device__ __forceinline__ void send_sums(int index, const T& values) const {
    constexpr int kFloats = kFusedUnitFours * 4;
    const int unit = index / kFloats;
    float* const to = reinterpret_cast<float*>(memory + layout.sums_received_at) +
                      (rank() * layout.owned_units + (unit >> layout.cluster_log2)) * kFloats + index % kFloats;
    const auto owner = static_cast<unsigned>(owner_of(unit));
    store_async(remote(reinterpret_cast<T*>(to), owner), values, remote(&cluster_control().sums_arrived, owner));
  }

  __device__ bool await_operands(std::int64_t step) const {
    return wait_transactions(&cluster_control().operands_arrived, static_cast<unsigned>(step % 2), deadline(),
                             code(FusedPhase::kOperands, step));
  }

  /// Those of the step before, for products of this thread.
  __device__ bool await_operands_before(std::int64_t step) const {
    if (step == 0) return true;
    const bool arrived = await_operands(step - 1);
    if (thread() == 0 && arrived) arrive_expecting(&cluster_control().operands_arrived, operands_bytes());
    fence_async_proxy();
    return arrived;
  }

  /// Words of a cluster, of a step with that parity: of this lane in a unit of this rank, and its loss.
  /// @{
  __device__ TaggedUnit* words(unsigned parity, int of_cluster) const {
    return reinterpret_cast<TaggedUnit*>(arguments.slots) +
           (static_cast<std::int64_t>(parity) * layout.clusters + of_cluster) * layout.cluster_words;
  }
  __device__ int word_of(int slot) const { return (rank() * layout.owned_units + slot) * kFusedUnitFours + lane(); }
  __device__ int loss_word() const { return layout.cluster_words - 1; }
  /// @}

  /// The sums of all clusters, which it waits for, in their order; `mine` of this one. Clears `arrived` if a wait
  /// failed.
  __device__ __forceinline__ Four sum_of_clusters(int slot, const Four& mine, std::int64_t step, bool& arrived) const {
    constexpr int kAtOnce = kClustersAtOnce<relu>;
    Four sum{};
#pragma unroll 1
    for (int first = 0; first < layout.clusters; first += kAtOnce) {
      Four parts[kAtOnce];
      int offsets[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const bool is_other = first + i < layout.clusters && first + i != cluster();
        offsets[i] = is_other ? (first + i) * layout.cluster_words + word_of(slot) : -1;
        parts[i] = mine;
      }
      arrived &= wait_tagged_at(parts, words(static_cast<unsigned>(step % 2), 0), offsets, tag_of(step), deadline(),
                                code(FusedPhase::kClusters, step));
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i >= layout.clusters) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sum.values[j] = first + i == 0 ? parts[i].values[j] : sum.values[j] + parts[i].values[j];
      }
    }
    return sum;
  }
  static __device__ unsigned tag_of(std::int64_t step) { return static_cast<unsigned>(step) + 1; }

  __device__ __forceinline__ void update(int slot, int q, const Four& gradients, std::int64_t step) const {
    const StepScalars& scalars = cluster_control().scalars[step % 2];
    if (!arguments.forward_only)
      with_parameters(q, [&](const Element&, const FusedParameter&, int, int i) {
        float value = kept(0, slot).values[i], state[elementwise::kMostStates];
        for (int j = 0; j < elementwise::kMostStates; ++j) state[j] = kept(1 + j, slot).values[i];
        elementwise::update(arguments.optimizer, value, state, gradients.values[i], scalars);
        kept(0, slot).values[i] = value;
        for (int j = 0; j < elementwise::kMostStates; ++j) kept(1 + j, slot).values[i] = state[j];
      });
    const int blocks = layout.cluster_blocks();
    with_piece(unit_of(slot), kept(0, slot), [&](int at, const Four& piece, int copy, int copies) {
    // Each begins with another one: else all would send to the same block at once.
#pragma unroll 4
      for (int i = copy; i < blocks; i += copies) {
        const auto peer = static_cast<unsigned>((rank() + i) & (blocks - 1));
        store_async(remote(reinterpret_cast<Four*>(memory + at), peer), piece,
                    remote(&cluster_control().operands_arrived, peer));
      }
    });
  }

  /// Of the cluster's blocks, then of all clusters: by the last warp of rank 0.
  __device__ void add_losses(std::int64_t step, bool& arrived) const {
    const auto parity = static_cast<unsigned>(step % 2);
    double loss = lane() < layout.cluster_blocks() ? cluster_control().losses[parity][lane()] : 0;
    for (unsigned bit = 16; bit > 0; bit /= 2) loss += warp_shuffle_xor(loss, bit);
    if (cluster() != 0) {
      if (lane() == 0) publish(words(parity, cluster()) + loss_word(), Loss16{loss, 0}, tag_of(step));
      return;
    }
    if (lane() != 0) loss = 0;
    for (int from = 1 + lane(); from < layout.clusters; from += static_cast<int>(kWarpThreads)) {
      Loss16 other[1] = {};
      const int offsets[1] = {loss_word()};
      arrived &= wait_tagged_at(other, words(parity, from), offsets, tag_of(step), deadline(),
                                code(FusedPhase::kClusters, step));
      loss += other[0].loss;
    }
    for (unsigned bit = 16; bit > 0; bit /= 2) loss += warp_shuffle_xor(loss, bit);
    if (lane() == 0) arguments.losses[step] = loss * arguments.loss.scale;
  }

  /// Waits for the sums of all blocks, and sends new operands; false if a wait has failed.
  __device__ __forceinline__ bool end_step(std::int64_t step) const {
    const auto parity = static_cast<unsigned>(step % 2);
    TransactionBarrier* const sums = &cluster_control().sums_arrived;
    bool arrived = wait_transactions(sums, parity, deadline(), code(FusedPhase::kSums, step));
    if (thread() == 0 && arrived) arrive_expecting(sums, sums_bytes());
    const bool several = layout.clusters > 1;
    const auto sum_of_cluster = [&](int slot) {
      Four sum = received(0, slot);
#pragma unroll 4
      for (int from = 1; from < layout.cluster_blocks(); ++from) {
        const Four term = received(from, slot);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum.values[i] += term.values[i];
      }
      return sum;
    };
    if (several)
      each_owned([&](int slot, int) {
        received(0, slot) = sum_of_cluster(slot);
        publish(words(parity, cluster()) + word_of(slot), received(0, slot), tag_of(step));
      });
    each_owned([&](int slot, int q) {
      update(slot, q, several ? sum_of_clusters(slot, received(0, slot), step, arrived) : sum_of_cluster(slot), step);
    });
    if (rank() == 0 && thread() >= layout.computing_threads() - static_cast<int>(kWarpThreads))
      add_losses(step, arrived);
    return arrived;
  }

  __device__ void bring_tiles() const {
    Base::bring_tiles();
    end();
  }

  /// All steps, of which run(step), false once a wait has failed, does the part of this thread's warpgroup.
  template <class Run>
  __device__ __forceinline__ void compute(const Run& run) {
    load();
    take_steps(run);
    end();
  }
  template <class Run>
  __device__ __forceinline__ void take_steps(const Run& run) {
    for (std::int64_t step = 0; step < arguments.steps; ++step) {
      if (!run(step)) return;
      note(step + 1, end_step(step));
    }
    if (arguments.steps == 0) return;
    await_operands(arguments.steps - 1);  // they would land in a block that has ended
    if (!arguments.forward_only && cluster() == 0) store();
  }

  /// After a wait that failed, a block may not end before what is on its way to it has landed.
  __device__ void end() const {
    warp_barrier();  // a barrier of the cluster is for whole warps
    cluster_barrier();
    if (has_failed(deadline())) let_stores_land();
  }
};

/// A step of the computing threads, where | is a barrier of theirs:
///
///   wait for the operands of the step before
///   the chains: all tiles of the block; the gradient groups: the sums of all tiles | the losses, the sums to their
///   owners wait for the sums of all blocks of the cluster; for each unit of the warp: add them, [publish them; wait
///   for those of the other clusters, add them,] update, send the operands to all blocks
///
/// Memory ordering. What blocks of a cluster send each other are asynchronous stores that count at a barrier of
/// transactions in the receiver; whoever reads what was sent has waited for that phase himself. Products read operands
/// as the asynchronous proxy does, so that each thread that multiplies has a fence behind its wait. A step of a block,
/// all of its computing threads, begins behind the wait for the operands of the step before, which all owners of the
/// cluster have sent; and an owner sends those once it has the sums and losses of the step before from all blocks.
///
/// Nothing lands where something is still being read. Operands of step s land in a block once some owner has the sums
/// of s from all blocks, of this one too, which were sent behind the barrier that its chains reach when they have read
/// all operands. Sums of s + 1 are sent by blocks that have all operands of s; a lane has read the sums of its fours
/// before the operands that it has its part in are sent. Losses have a place by the parity of the step: those of s + 2
/// are sent by blocks with the operands of s + 1, so with the sums of s + 1 of rank 0, which its warps sent behind the
/// barrier after add_losses of s.
///
/// No phase ends before it was announced, and none is missed: thread 0 announces a barrier's next phase behind its own
/// wait for the one before. That the next phase of sums ends takes this block's own sums, and that of operands too,
/// which follow a barrier that all computing threads reach behind their waits for the phase before.
///
/// Nothing lands in a block that has ended: it waits for the sums of every step, and for the operands of the last one.
/// Behind a wait that failed let_stores_land() takes the place of both; the grid's word `failed` then ends all other
/// waits.
///
/// Between clusters go words with tags, which need no fence, by the parity of the step. A word of step s is overwritten
/// in s + 2 by the warp that wrote it. It has the sums of s + 2 from all blocks of its cluster, hence they the operands
/// of s + 1, hence the unit's owner in every other cluster had published its sums of s + 1, which followed the operands
/// of s in that cluster, hence that owner's reading of the word. So it is with a loss: its reader passes the barrier of
/// s + 1 before its block sends sums of s + 1, which all units that its cluster publishes in s + 1 contain. All
/// clusters run at once, or the launch would wait for those that do not.
///
/// Parameters in global memory are read as a launch begins and written as it ends, by the first cluster: it then has
/// sums from all others, whose blocks had read all of them.
template <int panels, int slabs_of_group, bool relu>
__global__ void __launch_bounds__(kBlockThreads, 1)
    fused_clusters_kernel(FusedArguments arguments, FusedLayout layout) {
  ClusterBlock<panels, slabs_of_group, relu> block(arguments, layout, shared<fused::FusedShared>().bytes);
  if (block.thread() == 0) {
    block.init_control();
    block.init_cluster_control();
  }
  cluster_barrier();  // all barriers of transactions are there
  fused::run_warpgroups<168, kFetchingRegisters, kChainRegisters, kGradientRegisters>(block);
}

template <bool relu>
auto kernel_of(const FusedLayout& layout) {
  if (layout.panels == 2) return fused_clusters_kernel<2, 2, relu>;
  return layout.slabs_of_group == 2 ? fused_clusters_kernel<1, 2, relu> : fused_clusters_kernel<1, 4, relu>;
}

LaunchConfig config_of(const FusedLayout& layout, bool cooperative) {
  LaunchConfig config = fused::config_of(layout);
  config.cluster_blocks = layout.cluster_blocks();
  config.cooperative = cooperative && layout.clusters > 1;
  return config;
}

}  // namespace

void prepare_fused_clusters(const FusedLayout& layout) {
  for (const auto kernel : {kernel_of<true>(layout), kernel_of<false>(layout)})
    prepare_kernel(reinterpret_cast<const void*>(kernel), config_of(layout, true));
}

std::int64_t resident_fused_clusters(const FusedLayout& layout) {
  return resident_clusters(reinterpret_cast<const void*>(kernel_of<false>(layout)), config_of(layout, false));
}

void launch_fused_clusters(const FusedArguments& arguments, const FusedLayout& layout, bool cooperative,
                           cudaStream_t stream) {
  const bool relu = arguments.activation.kind == Activation::relu;
  launch(relu ? kernel_of<true>(layout) : kernel_of<false>(layout), config_of(layout, cooperative), stream, arguments,
         layout);
}

}  // namespace deviceloop::cuda
