// Products of small matrices in fp32 with what follows them: for the graph executor, where a library's product takes
// longer than its arithmetic. host/planning/small_product.h says how they are cut, and which they are.
#include <cmath>
#include <cstdint>
#include <type_traits>

#include <deviceloop/cuda.h>

#include "../../host/elementwise.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"
#include "loss_rows.cuh"
#include "slots.cuh"

namespace deviceloop::cuda {
namespace {

using Quad = Group<float, 4>;

/// `count` elements, from none to 4; with `aligned` there are 4 or none, at a multiple of 16 bytes.
template <bool aligned>
__device__ inline void load_quad(Quad& quad, const float* from, int count) {
  if constexpr (aligned) {
    if (count > 0) quad = *reinterpret_cast<const Quad*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) quad.values[i] = from[i];
  }
}
template <bool aligned>
__device__ inline void store_quad(float* to, const Quad& quad, int count) {
  if constexpr (aligned) {
    if (count > 0) *reinterpret_cast<Quad*>(to) = quad;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) to[i] = quad.values[i];
  }
}

constexpr int kDepth = 16;  ///< of a panel: what a warp has of its operands in shared memory
constexpr int kPad = 4;     ///< floats; so rows that neighbouring lanes read lie in different banks

/// A warp's panel of an operand, `extent` wide and kDepth deep, on its way from memory through registers to shared
/// memory. There it lies as in memory: [extent][kDepth + kPad] if the operand is contiguous along the inner dimension,
/// `by_inner`, else [kDepth][extent].
template <int extent, bool by_inner, bool aligned>
struct Panel {
  static constexpr int kAlong = by_inner ? kDepth : extent;
  static constexpr int kAcross = by_inner ? extent : kDepth;
  static constexpr int kRow = by_inner ? kDepth + kPad : extent;
  static constexpr int kFloats = kAcross * kRow;
  static constexpr int kQuads = kAlong * kAcross / 4 / static_cast<int>(kWarpThreads);
  static constexpr int kStep = static_cast<int>(kWarpThreads) / (kAlong / 4);  ///< between the rows of a lane's quads
  Quad quads[kQuads];

  /// Where a lane reads an operand: its first quad of the next panel, and how much of the operand there is from there.
  struct Place {
    const float* from;
    int stride, outer, inner;

    __device__ Place(const float* operand, int row_length, int first_outer, int outer_size, int first_inner,
                     int end_inner, int lane)
        : stride(row_length) {
      const int along = lane % (kAlong / 4) * 4, across = lane / (kAlong / 4);
      const int at_outer = first_outer + (by_inner ? across : along);
      const int at_inner = first_inner + (by_inner ? along : across);
      from = operand +
             (by_inner ? std::int64_t{at_outer} * stride + at_inner : std::int64_t{at_inner} * stride + at_outer);
      outer = outer_size - at_outer;
      inner = end_inner - at_inner;
    }
  };

  /// What is beyond either end is 0.
  __device__ void load(Place& place) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      quads[i] = {};
      if (i * kStep < (by_inner ? place.outer : place.inner))
        load_quad<aligned>(quads[i], place.from + i * kStep * place.stride, by_inner ? place.inner : place.outer);
    }
    place.inner -= kDepth;
    place.from += by_inner ? kDepth : kDepth * place.stride;
  }
  __device__ void store(float* panel, int lane) const {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int quad = lane + i * static_cast<int>(kWarpThreads);
      *reinterpret_cast<Quad*>(panel + quad / (kAlong / 4) * kRow + quad % (kAlong / 4) * 4) = quads[i];
    }
  }

  /// sums += the lane's elements of four columns, in the order of the inner dimension.
  __device__ void add_columns(Quad& sums) const {
    static_assert(!by_inner);
#pragma unroll
    for (int i = 0; i < kQuads; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums.values[j] += quads[i].values[j];
  }
  /// Adds the sums of the lanes that have the same columns.
  __device__ static void add_lanes(Quad& sums) {
#pragma unroll
    for (unsigned mask = kAlong / 4; mask < kWarpThreads; mask *= 2)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums.values[j] += warp_shuffle_xor(sums.values[j], mask);
  }
};

/// values[u][i] = the elements of a lane, `count` along the outer dimension, at the depths depth + u. `lanes` lie along
/// that dimension; a lane's elements are neighbours in groups of 4, or with `by_inner` lie `lanes` apart: element_of()
/// says where.
template <int count, int lanes, bool by_inner, int row>
__device__ void read_panel(float (&values)[4][count], const float* panel, int depth, int lane) {
  if constexpr (by_inner) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const Quad quad = *reinterpret_cast<const Quad*>(panel + (i * lanes + lane) * row + depth);
#pragma unroll
      for (int u = 0; u < 4; ++u) values[u][i] = quad.values[u];
    }
  } else {
#pragma unroll
    for (int u = 0; u < 4; ++u)
#pragma unroll
      for (int i = 0; i < count; i += 4) {
        const Quad quad = *reinterpret_cast<const Quad*>(panel + (depth + u) * row + i * lanes + lane * 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) values[u][i + j] = quad.values[j];
      }
  }
}
template <int lanes, bool by_inner>
__device__ int element_of(int i, int lane) {
  return by_inner ? i * lanes + lane : i / 4 * 4 * lanes + lane * 4 + i % 4;
}

/// Rows of sums: those of a tile, and of a^T b behind them the sums of b's columns.
template <int thread_rows, bool transpose_a>
constexpr int kSumRows = kProductLaneRows* thread_rows + (transpose_a ? 1 : 0);

/// Of a block whose product ends with the loss of a narrow layer.
struct LossMemory {
  static constexpr int kWeights = kProductTileColumns * static_cast<int>(kMaxNarrowOutputs);
  float weights[kWeights + kWeights / 32];  ///< of the block's columns, see weight_at()
  /// What the columns of each block across add to the predictions of the rows that this block finishes.
  float partials[kMostProductCluster][kLossTileRows][kMaxNarrowOutputs];
  float gradient[kLossTileRows][kMaxNarrowOutputs];  ///< of these predictions
  WarpSums sums;
};
/// So that lanes whose columns lie four apart read different banks.
__device__ inline int weight_at(int index) { return index + index / 32; }
struct NoLossMemory {};

/// A block's shared memory. Sums overwrite panels once all warps have read theirs.
template <int thread_rows, bool transpose_a, int panel_floats, bool with_loss>
struct ProductMemory {
  static constexpr int kRows = kSumRows<thread_rows, transpose_a>;
  union {
    alignas(16) float panels[kProductWarps][panel_floats];
    alignas(16) float sums[kProductWarps][kRows][kProductTileColumns];
    WarpSums of_loss;
  };
  /// The rows that this block finishes, from each block of the cluster; and the sums of columns.
  alignas(16) float received[kProductLaneRows * thread_rows][kProductTileColumns];
  alignas(16) float received_sums[transpose_a ? kMostProductCluster : 1][kProductTileColumns];
  alignas(16) elementwise::StepScalars<float> scalars;  ///< for updates
  std::conditional_t<with_loss, LossMemory, NoLossMemory> loss;
};

/// What becomes of four neighbouring elements of the result, at most `count` of them within the matrix.
struct QuadEnd {
  const SmallProduct& of;
  std::int64_t at;  ///< of the first, in matrices like `out`
  int column;       ///< its column
  int count;
  Quad before{};

  /// What lies in memory already is loaded before the sums are added, which so hides the latency.
  template <bool aligned>
  __device__ void load_before() {
    if (count <= 0) return;
    if (of.end == ProductEnd::mask)
      load_quad<aligned>(before, of.marked + at, count);
    else if (of.bias != nullptr)
      load_quad<aligned>(before, of.bias + column, count);
  }

  /// The elements as they are stored; 0 outside of the matrix.
  template <bool aligned>
  __device__ Quad finish(Quad out, const elementwise::StepScalars<float>&) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& value = out.values[i];
      if (of.end == ProductEnd::mask) {
        value = elementwise::relu_gradient_marked(before.values[i], value);
      } else {
        if (of.bias != nullptr) value += before.values[i];
        if (of.end == ProductEnd::relu) value = elementwise::relu_marked(value);
      }
      if (i >= count) value = 0;
    }
    store_quad<aligned>(of.out.out + at, out, count);
    return out;
  }
};

/// The same of gradients.
struct GradientQuadEnd {
  const GradientEnd<float>& of;
  std::int64_t at;
  int count;
  Quad before{}, kept[elementwise::kMostStates]{};

  template <bool aligned>
  __device__ void load_before() {
    if (count <= 0 || of.scalars == nullptr) return;
    load_quad<aligned>(before, of.out + at, count);
#pragma unroll
    for (int s = 0; s < elementwise::kMostStates; ++s)
      if (of.state.values[s] != nullptr) load_quad<aligned>(kept[s], of.state.values[s] + at, count);
  }

  template <bool aligned>
  __device__ void finish(const Quad& gradient, const elementwise::StepScalars<float>& scalars) {
    if (count <= 0) return;
    if (of.scalars == nullptr) return store_quad<aligned>(of.out + at, gradient, count);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float state[elementwise::kMostStates];
#pragma unroll
      for (int s = 0; s < elementwise::kMostStates; ++s) state[s] = kept[s].values[i];
      elementwise::update(of.optimizer, before.values[i], state, gradient.values[i], scalars);
#pragma unroll
      for (int s = 0; s < elementwise::kMostStates; ++s) kept[s].values[i] = state[s];
    }
    store_quad<aligned>(of.out + at, before, count);
#pragma unroll
    for (int s = 0; s < elementwise::kMostStates; ++s)
      if (of.state.values[s] != nullptr) store_quad<aligned>(of.state.values[s] + at, kept[s], count);
  }
};

/// What a launch multiplies. The blocks of a product come after those of the one before, and the one that ends a loss
/// comes last.
struct ProductLaunch {
  struct Part {
    SmallProduct product;
    bool aligned;  ///< all pointers and row lengths are multiples of 16 bytes
    unsigned end_block;
  };
  Part parts[kMostProducts];
  int count;
  SmallProductLayout layout;
  LossSum loss;
  NarrowLossEnd narrow;  ///< of a product with it
  bool by_element;       ///< its loss
};

/// What a warp needs of memory for the losses of its rows: loaded before the predictions are there. Lane o has output
/// o.
struct LossRows {
  static constexpr int kRows = kLossTileRows / kProductWarps;
  float goal[kRows] = {}, weight[kRows] = {}, bias = 0;
  int target_columns = 0;

  /// `rows`: from the block's first on, which is row `first` of all; `count` are its own.
  __device__ void load(const NarrowLossEnd& of, int first, int count, int warp, int lane) {
    target_columns = of.loss.has_classes ? 1 : of.outputs;
    if (of.bias != nullptr && lane < of.outputs) bias = of.bias[lane];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = warp + i * kProductWarps;
      if (row >= count) break;
      if (lane < target_columns) goal[i] = of.target[std::int64_t{first + row} * target_columns + lane];
      weight[i] = of.row_weights != nullptr ? of.row_weights[first + row] : 1.0f;
    }
  }
};

/// How a product goes on whose cluster has all columns of its rows: h = what this thread has of the narrow layer's
/// inputs. Each thread adds its four columns' products with the layer's weights in order; the eight threads of a row of
/// the tile add theirs pairwise; and each block of a row of blocks gets these sums from all of them and adds them in
/// the order of columns. So all have the same predictions, and each the gradient of its own columns. Which block comes
/// first makes no difference: nobody adds before a barrier of the cluster behind all of these sums.
template <bool aligned>
__device__ __forceinline__ void end_with_loss(const NarrowLossEnd& of, bool by_element, const QuadEnd& end,
                                              const Quad& h, const LossRows& rows, int first, int own_rows, int across,
                                              int across_blocks, std::int64_t partial_sum, LossMemory& memory) {
  const auto thread = static_cast<int>(thread_index());
  const int warp = thread / static_cast<int>(kWarpThreads), lane = thread % static_cast<int>(kWarpThreads);
  constexpr int kQuads = kProductTileColumns / 4;
  const int tile_row = thread / kQuads, quad = thread % kQuads, outputs = of.outputs;
  const auto rank = static_cast<int>(cluster_rank());
  for (int output = 0; output < outputs; ++output) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sum = std::fma(h.values[i], memory.weights[weight_at((quad * 4 + i) * outputs + output)], sum);
#pragma unroll
    for (unsigned mask = 1; mask < kQuads; mask *= 2) sum += warp_shuffle_xor(sum, mask);
    if (tile_row >= own_rows || quad >= across_blocks) continue;
    float* const to = &memory.partials[across][tile_row][output];
    *(across_blocks > 1 ? peer_shared(to, static_cast<unsigned>(rank - across + quad)) : to) = sum;
  }
  if (across_blocks > 1)
    cluster_barrier();
  else
    block_barrier();
  double loss = 0;
#pragma unroll
  for (int i = 0; i < LossRows::kRows; ++i) {
    const int row = warp + i * kProductWarps;
    if (row >= own_rows) break;
    float prediction = 0;
    if (lane < outputs) {
      for (int other = 0; other < across_blocks; ++other) {
        const float partial = memory.partials[other][row][lane];
        prediction = other == 0 ? partial : prediction + partial;
      }
      if (of.bias != nullptr) prediction += rows.bias;
    }
    const std::int64_t of_all = first + row;
    loss += row_loss(of.loss, by_element, memory.gradient[row], prediction, rows.goal[i],
                     of.target + of_all * rows.target_columns, of.row_weights != nullptr, rows.weight[i], outputs);
    if (across == 0 && lane < outputs) of.gradient[of_all * outputs + lane] = memory.gradient[row][lane];
  }
  const double total = block_sum(lane == 0 ? loss : 0.0, memory.sums.values);  // behind it all gradients are there
  if (across == 0 && thread == 0) of.partial_sums[partial_sum] = total;
  if (end.count <= 0) return;
  Quad below;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float dh = 0;
    for (int output = 0; output < outputs; ++output)
      dh =
          std::fma(memory.gradient[tile_row][output], memory.weights[weight_at((quad * 4 + i) * outputs + output)], dh);
    below.values[i] = end.of.end == ProductEnd::relu ? elementwise::relu_gradient_marked(h.values[i], dh) : dh;
  }
  store_quad<aligned>(of.below + end.at, below, end.count);
}

/// A product and its end, by the blocks from `first_block` on. A warp multiplies its part of the inner dimension, panel
/// after panel: a lane has thread_rows x 4 sums, added by fused multiply-adds in the order of the inner dimension; two
/// panels are always on their way, so that what fits into them waits for memory once. Then each thread adds the warps'
/// sums of four neighbouring elements, in the warps' order. In a cluster each block finishes some rows of the tile: the
/// others push their sums of them into its memory, and it adds them in the order of ranks.
///
/// The sums of b's columns are taken by the tiles of the first rows, which read all of b. A lane adds what it brings of
/// b into shared memory: every fourth row, so at most kTerms terms where the inner dimension is at most 1024. The
/// lanes' sums are added pairwise, and those of warps and blocks like the tile's.
///
/// Barriers of the cluster guard that memory: nobody pushes before all blocks have begun, and nobody reads, or ends,
/// before all have pushed. Only end_with_loss() reads or writes anything else of a peer.
///
/// The result may be read by nothing else in the launch but its own end.
template <int thread_rows, bool transpose_a, bool transpose_b, bool aligned, bool with_loss, class Memory>
__device__ __forceinline__ void multiply(const ProductLaunch& launch, const SmallProduct& of, unsigned first_block,
                                         Memory& memory) {
  constexpr int rows = kProductLaneRows * thread_rows, columns = kProductTileColumns;
  using PanelA = Panel<rows, !transpose_a, aligned>;
  using PanelB = Panel<columns, transpose_b, aligned>;
  const auto warp = static_cast<int>(thread_index() / kWarpThreads);
  const auto lane = static_cast<int>(thread_index() % kWarpThreads);
  const int lane_row = lane / kProductLaneColumns, lane_column = lane % kProductLaneColumns;
  const auto blocks = static_cast<int>(cluster_blocks()), rank = static_cast<int>(cluster_rank());
  const auto all_rows = static_cast<int>(of.shape.rows), all_columns = static_cast<int>(of.shape.columns);
  const auto inner = static_cast<int>(of.shape.inner);
  const unsigned tile = (block_index() - first_block) / static_cast<unsigned>(blocks);
  // Of the cluster's blocks those that lie side by side follow each other; with a loss these have all columns.
  const int across_blocks = with_loss ? launch.layout.across_blocks : 1;
  const int across = with_loss ? rank % across_blocks : 0;
  const int parts = with_loss ? blocks / across_blocks : blocks, part = with_loss ? rank / across_blocks : rank;
  const auto clusters_across = with_loss ? 1 : static_cast<unsigned>(all_columns + columns - 1) / columns;
  const auto first_row = static_cast<int>(tile / clusters_across) * rows;
  const auto first_column = static_cast<int>(tile % clusters_across) * columns + across * columns;
  bool sums_columns = false;
  if constexpr (transpose_a) sums_columns = first_row == 0 && of.sums.out != nullptr;

  if (blocks > 1) cluster_arrive();
  const auto of_warp = static_cast<int>(launch.layout.inner_per_warp);
  const int begin = (part * kProductWarps + warp) * of_warp;
  const int end_inner = begin + of_warp < inner ? begin + of_warp : inner;
  float* const panel_a = memory.panels[warp];
  float* const panel_b = panel_a + PanelA::kFloats;
  typename PanelA::Place place_a(of.a, transpose_a ? all_rows : inner, first_row, all_rows, begin, end_inner, lane);
  typename PanelB::Place place_b(of.b, transpose_b ? inner : all_columns, first_column, all_columns, begin, end_inner,
                                 lane);
  // Panels on their way, and depths read together: as registers allow.
  constexpr int kAhead = thread_rows == 8 || transpose_b ? 1 : 2;
  [[maybe_unused]] constexpr int kUnroll = thread_rows == 4 || transpose_a ? 4 : transpose_b ? 1 : aligned ? 4 : 2;
  PanelA parts_a[kAhead];
  PanelB parts_b[kAhead];
  const auto load = [&](int which) {
    parts_a[which].load(place_a);
    parts_b[which].load(place_b);
  };
#pragma unroll
  for (int which = 0; which < kAhead; ++which) load(which);
  if constexpr (transpose_a)
    if (of.out.scalars != nullptr && thread_index() < sizeof memory.scalars / sizeof(std::uint64_t))
      reinterpret_cast<std::uint64_t*>(&memory.scalars)[thread_index()] =
          reinterpret_cast<const std::uint64_t*>(of.out.scalars)[thread_index()];
  if constexpr (with_loss) {
    const NarrowLossEnd& narrow = launch.narrow;
    for (auto i = static_cast<int>(thread_index()); i < columns * narrow.outputs; i += kThreads) {
      const int weight = first_column * narrow.outputs + i;
      memory.loss.weights[weight_at(i)] = weight < all_columns * narrow.outputs ? narrow.weights[weight] : 0.0f;
    }
  }
  float sums[thread_rows][kProductThreadColumns] = {};
  [[maybe_unused]] Quad column_sums{};
  for (int remaining = end_inner - begin; remaining > 0; remaining -= kAhead * kDepth) {
#pragma unroll
    for (int which = 0; which < kAhead; ++which) {
      if (which * kDepth >= remaining) break;
      warp_barrier();  // the panel before has been read
      parts_a[which].store(panel_a, lane);
      parts_b[which].store(panel_b, lane);
      if constexpr (transpose_a)
        if (sums_columns) parts_b[which].add_columns(column_sums);
      warp_barrier();
      load(which);
#pragma unroll kUnroll
      for (int depth = 0; depth < kDepth; depth += 4) {
        float left[4][thread_rows], right[4][kProductThreadColumns];
        read_panel<thread_rows, kProductLaneRows, !transpose_a, PanelA::kRow>(left, panel_a, depth, lane_row);
        read_panel<kProductThreadColumns, kProductLaneColumns, transpose_b, PanelB::kRow>(right, panel_b, depth,
                                                                                          lane_column);
#pragma unroll
        for (int u = 0; u < 4; ++u)
#pragma unroll
          for (int i = 0; i < thread_rows; ++i)
#pragma unroll
            for (int j = 0; j < kProductThreadColumns; ++j) sums[i][j] = std::fma(left[u][i], right[u][j], sums[i][j]);
      }
    }
  }

  // The four elements that this thread finishes, in a cluster of a part of the tile's rows, and perhaps four sums of
  // columns; what they need of memory is on its way while sums are added. Registers are short before.
  constexpr int kSums = kSumRows<thread_rows, transpose_a>, kQuadRows = kThreads / (columns / 4);
  constexpr int kTurns = (kSums + kQuadRows - 1) / kQuadRows;
  const auto finisher = static_cast<int>(thread_index_again());
  const int tile_row = finisher / (columns / 4);
  const int own_rows = rows / parts;
  const int own_row = part * own_rows + tile_row, own_column = finisher % (columns / 4) * 4;
  const int row = first_row + own_row, column = first_column + own_column;
  const int within = all_columns - column < 4 ? all_columns - column : 4;
  const int count = tile_row < own_rows && row < all_rows && column < all_columns ? within : 0;
  const std::int64_t at = std::int64_t{row} * all_columns + column;
  // In the last turn one row of threads has the sums of columns.
  const bool finishes_sums = sums_columns && rank == 0 && tile_row + (kTurns - 1) * kQuadRows == rows;
  auto end = [&] {
    if constexpr (transpose_a)
      return GradientQuadEnd{of.out, at, count};
    else
      return QuadEnd{of, at, column, count};
  }();
  end.template load_before<aligned>();
  [[maybe_unused]] GradientQuadEnd sums_end{of.sums, column, finishes_sums && column < all_columns ? within : 0};
  if constexpr (transpose_a) sums_end.template load_before<aligned>();
  const int first_own = first_row + part * own_rows;
  [[maybe_unused]] const int own_in_matrix = all_rows - first_own < own_rows ? all_rows - first_own : own_rows;
  [[maybe_unused]] LossRows loss_rows;
  if constexpr (with_loss) loss_rows.load(launch.narrow, first_own, own_in_matrix, finisher / 32, finisher % 32);

  block_barrier();  // all panels have been read
#pragma unroll
  for (int i = 0; i < thread_rows; ++i) {
    float* const to = memory.sums[warp][element_of<kProductLaneRows, !transpose_a>(i, lane_row)];
#pragma unroll
    for (int j = 0; j < kProductThreadColumns; ++j)
      to[element_of<kProductLaneColumns, transpose_b>(j, lane_column)] = sums[i][j];
  }
  if constexpr (transpose_a)
    if (sums_columns) {
      PanelB::add_lanes(column_sums);
      if (lane < columns / 4) *reinterpret_cast<Quad*>(&memory.sums[warp][rows][lane * 4]) = column_sums;
    }
  block_barrier();
  Quad totals[kTurns] = {};
  const auto add = [](Quad& total, const float* from, int other) {
    const Quad quad = *reinterpret_cast<const Quad*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) total.values[i] = other == 0 ? quad.values[i] : total.values[i] + quad.values[i];
  };
  const int end_row = sums_columns ? rows + 1 : rows;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn)
    if (const int of_row = tile_row + turn * kQuadRows; of_row < end_row)
#pragma unroll
      for (int other = 0; other < kProductWarps; ++other)
        add(totals[turn], &memory.sums[other][of_row][own_column], other);
  if (blocks > 1) cluster_wait();
  if (parts > 1) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int of_row = tile_row + turn * kQuadRows;
      if (of_row >= end_row) continue;
      float* const to = of_row == rows ? &memory.received_sums[transpose_a ? part : 0][own_column]
                                       : &memory.received[part * own_rows + of_row % own_rows][own_column];
      const int peer = of_row == rows ? 0 : of_row / own_rows;
      *reinterpret_cast<Quad*>(peer_shared(to, static_cast<unsigned>(peer * across_blocks + across))) = totals[turn];
    }
    cluster_barrier();
    if (tile_row < own_rows)
      for (int other = 0; other < parts; ++other)
        add(totals[0], &memory.received[other * own_rows + tile_row][own_column], other);
    if constexpr (transpose_a)
      if (finishes_sums)
        for (int other = 0; other < parts; ++other)
          add(totals[kTurns - 1], &memory.received_sums[other][own_column], other);
  }
  if constexpr (with_loss) {
    const Quad h = end.template finish<aligned>(totals[0], memory.scalars);
    end_with_loss<aligned>(launch.narrow, launch.by_element, end, h, loss_rows, first_own, own_in_matrix, across,
                           across_blocks, std::int64_t{tile} * parts + part, memory.loss);
  } else {
    end.template finish<aligned>(totals[0], memory.scalars);
  }
  if constexpr (transpose_a) sums_end.template finish<aligned>(totals[kTurns - 1], memory.scalars);
}

/// The block's part of a launch's products, see multiply(). Of products a^T b each is `aligned` or not.
template <int thread_rows, bool transpose_a, bool transpose_b, bool aligned, bool with_loss>
__global__ void __launch_bounds__(kThreads, 2) small_product_kernel(ProductLaunch launch) {
  using PanelA = Panel<kProductLaneRows * thread_rows, !transpose_a, true>;
  using PanelB = Panel<kProductTileColumns, transpose_b, true>;
  auto& memory = shared<ProductMemory<thread_rows, transpose_a, PanelA::kFloats + PanelB::kFloats, with_loss>>();
  wait_for_grids_before();
  int index = 0;
  unsigned first_block = 0;
  if constexpr (transpose_a) {
    while (index < launch.count && block_index() >= launch.parts[index].end_block)
      first_block = launch.parts[index++].end_block;
    if (index == launch.count) {
      if (block_index() == first_block) append_loss(launch.loss, memory.of_loss);
      return;
    }
  }
  const ProductLaunch::Part& part = launch.parts[index];
  if constexpr (transpose_a && aligned)
    if (!part.aligned)
      return multiply<thread_rows, transpose_a, transpose_b, false, with_loss>(launch, part.product, first_block,
                                                                               memory);
  multiply<thread_rows, transpose_a, transpose_b, aligned, with_loss>(launch, part.product, first_block, memory);
}

template <int thread_rows, bool transpose_a, bool transpose_b, bool with_loss = false>
void launch_cut(const ProductLaunch& products, std::int64_t blocks, cudaStream_t stream) {
  using A = Panel<kProductLaneRows * thread_rows, !transpose_a, true>;
  using B = Panel<kProductTileColumns, transpose_b, true>;
  constexpr int shared_bytes = sizeof(ProductMemory<thread_rows, transpose_a, A::kFloats + B::kFloats, with_loss>);
  static_assert(shared_bytes <= 48 << 10, "what a block has without asking for more");
  LaunchConfig config = waiting({blocks, kThreads, shared_bytes});
  config.cluster_blocks = products.layout.cluster_blocks;
  if (transpose_a || products.parts[0].aligned)
    launch(small_product_kernel<thread_rows, transpose_a, transpose_b, true, with_loss>, config, stream, products);
  else
    launch(small_product_kernel<thread_rows, transpose_a, transpose_b, transpose_a, with_loss>, config, stream,
           products);
}

template <int thread_rows>
void launch_rows(const ProductLaunch& products, std::int64_t blocks, cudaStream_t stream) {
  const ProductShape& shape = products.parts[0].product.shape;
  if (shape.transpose_a)
    launch_cut<thread_rows, true, false>(products, blocks, stream);
  else if (shape.transpose_b)
    launch_cut<thread_rows, false, true>(products, blocks, stream);
  else
    launch_cut<thread_rows, false, false>(products, blocks, stream);
}

bool is_aligned(const SmallProduct& of) {
  const ProductShape& shape = of.shape;
  const auto lie_aligned = [](const GradientEnd<float>& end) {
    return aligned_to_16(end.out, end.state.values[0], end.state.values[1]);
  };
  return shape.columns % 4 == 0 && (shape.transpose_a ? shape.rows : shape.inner) % 4 == 0 &&
         (shape.transpose_b ? shape.inner : shape.columns) % 4 == 0 && aligned_to_16(of.a, of.b, of.bias, of.marked) &&
         lie_aligned(of.out) && lie_aligned(of.sums);
}

ProductLaunch::Part part_of(const SmallProduct& product, const SmallProductLayout& layout, std::int64_t blocks_before) {
  return {product, is_aligned(product), static_cast<unsigned>(blocks_before + layout.blocks(product.shape))};
}

}  // namespace

void launch_product_with_loss(const SmallProduct& product, const NarrowLossEnd& narrow,
                              const SmallProductLayout& layout, cudaStream_t stream) {
  ProductLaunch launch{};
  launch.parts[0] = part_of(product, layout, 0);
  launch.parts[0].aligned = launch.parts[0].aligned && aligned_to_16(narrow.below);
  launch.count = 1;
  launch.layout = layout;
  launch.narrow = narrow;
  launch.by_element = is_by_element(narrow.loss.kind);
  launch_cut<kLossTileRows / kProductLaneRows, false, false, true>(launch, layout.blocks(product.shape), stream);
}

void launch_small_products(std::span<const SmallProduct> products, const SmallProductLayout& layout,
                           cudaStream_t stream, const LossSum& loss) {
  ProductLaunch parts{};
  std::int64_t blocks = 0;
  for (const SmallProduct& product : products) {
    parts.parts[parts.count++] = part_of(product, layout, blocks);
    blocks += layout.blocks(product.shape);
  }
  parts.layout = layout;
  parts.loss = loss;
  if (loss.count > 0) blocks += layout.cluster_blocks;
  if (layout.thread_rows == 8)
    launch_rows<8>(parts, blocks, stream);
  else
    launch_rows<4>(parts, blocks, stream);
}

}  // namespace deviceloop::cuda
