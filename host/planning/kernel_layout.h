// Which elements a thread of a CUDA kernel takes: functions of the sizes alone, so that sums have one order everywhere;
// in 64 bits; and free of CUDA, so that they are tested at sizes that no test can allocate, and that the planner counts
// what they need.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../elementwise.h"

namespace deviceloop {

/// Bytes that cuBLASLt works in; what NVIDIA recommends for Hopper.
inline constexpr std::uint64_t kGemmWorkspaceBytes = std::uint64_t{32} << 20;

}  // namespace deviceloop

namespace deviceloop::cuda {

/// Threads of every block of these kernels.
inline constexpr int kThreads = 256;

/// Elements of T in an access of 16 bytes.
template <class T>
inline constexpr int kVector = 16 / sizeof(T);

/// Groups of elements that a thread of an element-wise kernel takes, all loaded before the first is used: so many loads
/// hide the latency of memory.
inline constexpr int kGroupsPerThread = 4;

/// At most so many terms of a sum are added in the working precision, from there in double.
inline constexpr int kTerms = 32;

DEVICELOOP_HOST_DEVICE constexpr std::int64_t divide_up(std::int64_t dividend, std::int64_t divisor) {
  return dividend / divisor + (dividend % divisor != 0 ? 1 : 0);
}

/// The smallest power of two that is not less than `value`, or `most`, one too, where that is smaller.
constexpr int power_of_two(std::int64_t value, int most) {
  int power = 1;
  while (power < most && power < value) power *= 2;
  return power;
}

/// The largest power of two that is not more than `value`, or `most`, one too, where that is smaller; at least 1.
DEVICELOOP_HOST_DEVICE constexpr int power_of_two_below(int value, int most) {
  int power = 1;
  while (power * 2 <= most && power * 2 <= value) power *= 2;
  return power;
}

/// The group that `thread` of `block` takes as its `item`, from 0 to kGroupsPerThread - 1: neighbours take neighbouring
/// groups.
DEVICELOOP_HOST_DEVICE constexpr std::int64_t group_index(std::int64_t block, int thread, int item) {
  return (block * kGroupsPerThread + item) * kThreads + thread;
}

/// Blocks for `count` elements in groups of `width`.
constexpr std::int64_t group_blocks(std::int64_t count, int width) {
  return divide_up(count, std::int64_t{kThreads} * kGroupsPerThread * width);
}

/// A matrix cut into tiles, one a block. A tile's columns lie across `threads_across` threads; the
/// kThreads / threads_across rows of threads take its rows one after the other.
struct PanelLayout {
  int threads_across = 1;  ///< a power of two
  std::int64_t rows_per_tile = 1;
  std::int64_t tiles_across = 1;
  std::int64_t tiles_down = 1;

  DEVICELOOP_HOST_DEVICE constexpr std::int64_t blocks() const { return tiles_across * tiles_down; }
};

/// At most `most_across` threads lie along the columns, and each takes `rows_per_thread` rows.
constexpr PanelLayout panel_layout(std::int64_t rows, std::int64_t columns, int most_across, int rows_per_thread) {
  PanelLayout layout;
  layout.threads_across = power_of_two(columns, most_across);
  layout.rows_per_tile = std::int64_t{kThreads} / layout.threads_across * rows_per_thread;
  layout.tiles_across = divide_up(columns, layout.threads_across);
  layout.tiles_down = divide_up(rows, layout.rows_per_tile);
  return layout;
}

/// The rows and the column of a thread.
struct PanelPlace {
  std::int64_t column;  ///< may lie beyond the matrix
  std::int64_t row;     ///< the first
  std::int64_t end_row;
  int row_step;
  std::int64_t tile_down;
};

DEVICELOOP_HOST_DEVICE constexpr PanelPlace panel_place(const PanelLayout& layout, std::int64_t rows,
                                                        std::int64_t block, int thread) {
  const std::int64_t down = block / layout.tiles_across, across = block % layout.tiles_across;
  const std::int64_t begin = down * layout.rows_per_tile;
  const std::int64_t end = begin + layout.rows_per_tile < rows ? begin + layout.rows_per_tile : rows;
  return {across * layout.threads_across + thread % layout.threads_across, begin + thread / layout.threads_across, end,
          kThreads / layout.threads_across, down};
}

/// For sums over rows: at most kTerms rows a thread.
constexpr PanelLayout row_sum_layout(std::int64_t rows, std::int64_t columns) {
  return panel_layout(rows, columns, 32, kTerms);
}

/// A matrix cut into tiles, one a block, for sums over rows in which a thread takes groups of neighbouring columns. A
/// tile's groups lie across `groups` threads, and the kThreads / groups rows of threads take its rows one after the
/// other.
struct ColumnGroupLayout {
  int groups = 1;
  std::int64_t rows_per_tile = 1;
  std::int64_t tiles_across = 1;
  std::int64_t tiles_down = 1;

  DEVICELOOP_HOST_DEVICE constexpr std::int64_t blocks() const { return tiles_across * tiles_down; }
};

/// At most kTerms rows a thread. As long as that is enough for all rows, a tile has all, and a second kernel for its
/// sums is spared: it is then as narrow as the 32 bytes that memory moves at once, so that many blocks share the work,
/// but no narrower than it has threads for. More rows lie in tiles of up to 512 bytes across, which are read as they
/// lie; of these the rows are shortened until there are enough tiles for all of a large GPU.
constexpr ColumnGroupLayout column_group_layout(std::int64_t rows, std::int64_t columns, int width) {
  constexpr int kFewestGroups = 2, kMostGroups = 32, kFewestTerms = 8;
  constexpr std::int64_t kEnoughTiles = 1024;
  const std::int64_t groups = divide_up(columns, width);
  ColumnGroupLayout layout;
  if (rows <= std::int64_t{kThreads} / kFewestGroups * kTerms) {
    const int idle = kThreads / power_of_two(rows, kThreads / kFewestGroups);
    layout.groups = idle < kMostGroups ? idle : kMostGroups;
    if (groups < layout.groups) layout.groups = static_cast<int>(groups);
    layout.rows_per_tile = rows < 1 ? 1 : rows;
    layout.tiles_across = divide_up(groups, layout.groups);
    return layout;
  }
  layout.tiles_across = divide_up(groups, kMostGroups);
  layout.groups = static_cast<int>(divide_up(groups, layout.tiles_across));
  int terms = kTerms;
  do {
    layout.rows_per_tile = std::int64_t{kThreads / layout.groups} * terms;
    layout.tiles_down = divide_up(rows, layout.rows_per_tile);
    terms /= 2;
  } while (terms >= kFewestTerms && layout.blocks() < kEnoughTiles);
  return layout;
}

/// What an update sums by itself: so many gradients at most, of at most so many tiles of rows, which a block takes one
/// after the other.
inline constexpr int kMostSummedGradients = 8;
inline constexpr std::int64_t kMostSummedTiles = 4;

/// How the partial sums of an output, `slots` of them, are added: by `lanes` threads.
struct SlotLayout {
  int lanes = 1;  ///< a power of two
  std::int64_t blocks = 1;
};

constexpr SlotLayout slot_layout(std::int64_t outputs, std::int64_t slots) {
  SlotLayout layout;
  layout.lanes = power_of_two(slots, kThreads);
  layout.blocks = divide_up(outputs, kThreads / layout.lanes);
  return layout;
}

/// Slots of a sum whose blocks each leave one partial sum: none where a single block has the result.
constexpr std::int64_t slots_of(std::int64_t blocks) { return blocks <= 1 ? 0 : blocks; }

/// Rows of a block of the losses by row: a few after each other by each of its warps.
inline constexpr int kLossRows = 32;

/// Blocks of a loss by element, or by row.
template <class T>
constexpr std::int64_t loss_blocks(bool by_element, std::int64_t rows, std::int64_t columns) {
  return by_element ? group_blocks(rows * columns, kVector<T>) : divide_up(rows, kLossRows);
}
template <class T>
constexpr std::int64_t element_loss_slots(std::int64_t count) {
  return slots_of(group_blocks(count, kVector<T>));
}
constexpr std::int64_t row_loss_slots(std::int64_t rows) { return slots_of(divide_up(rows, kLossRows)); }
constexpr std::int64_t square_sum_slots(std::int64_t count) {
  return slots_of(divide_up(count, std::int64_t{kThreads} * kTerms));
}
constexpr std::int64_t column_sums_slots(std::int64_t batch, std::int64_t features) {
  return slots_of(row_sum_layout(batch, features).tiles_down) * features;
}
/// Of any element type: a thread's columns take 8 or 16 bytes.
constexpr std::int64_t narrow_linear_gradient_slots(std::int64_t batch, std::int64_t in_features,
                                                    std::int64_t out_features) {
  std::int64_t most_tiles = 1;
  for (const int width : {1, 2, 4}) {
    const std::int64_t tiles = column_group_layout(batch, in_features, width).tiles_down;
    if (tiles > most_tiles) most_tiles = tiles;
  }
  return slots_of(most_tiles) * in_features * out_features;
}

/// What a wait that missed its deadline leaves: the phase, counted from 1, in the upper 16 bits, the step of its launch
/// in the lower 48. 0 is none.
/// @{
DEVICELOOP_HOST_DEVICE constexpr std::uint64_t late_wait_code(std::int64_t phase, std::int64_t step) {
  return static_cast<std::uint64_t>(phase) << 48 | static_cast<std::uint64_t>(step);
}
constexpr std::int64_t late_wait_phase(std::uint64_t code) { return static_cast<std::int64_t>(code >> 48); }
constexpr std::int64_t late_wait_step(std::uint64_t code) {
  return static_cast<std::int64_t>(code & ((std::uint64_t{1} << 48) - 1));
}
/// @}

/// Rows that a warp of the narrow layer takes together, to use each weight that it loads for all of them. Few rows are
/// spread over more warps instead.
constexpr int narrow_rows(std::int64_t batch) { return batch >= 8192 ? 4 : 1; }

/// Of the narrow layer together with its loss: a warp takes a row. For batches whose rows are few.
constexpr std::int64_t narrow_loss_blocks(std::int64_t batch) { return divide_up(batch, kThreads / 32); }

}  // namespace deviceloop::cuda
