// Products of small matrices in fp32 with what follows them: for the graph executor, where a library's product takes
// longer than its arithmetic. host/planning/small_product.h says how they are cut, and which they are.
#include <cmath>
#include <cstdint>

#include "../../host/elementwise.h"
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"

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

/// A block's shared memory. Sums overwrite panels once all warps have read theirs.
template <int thread_rows, class PanelA, class PanelB>
struct ProductMemory {
  static constexpr int kRows = kProductLaneRows * thread_rows;
  union {
    alignas(16) float panels[kProductWarps][PanelA::kFloats + PanelB::kFloats];
    alignas(16) float sums[kProductWarps][kRows][kProductTileColumns];
  };
  /// The rows that this block finishes, from each block of the cluster.
  alignas(16) float received[kRows][kProductTileColumns];
};

/// What becomes of four neighbouring elements of the result.
struct QuadEnd {
  const SmallProduct& of;
  std::int64_t at;  ///< of the first, in matrices like `out`
  int column;       ///< its column
  int count;        ///< how many lie within the matrix

  /// Loaded before the product, which so hides the latency.
  template <bool aligned>
  __device__ void load_before(Quad& before) const {
    if (count <= 0) return;
    if (of.end == ProductEnd::descend)
      load_quad<aligned>(before, of.out + at, count);
    else if (of.end == ProductEnd::mask)
      load_quad<aligned>(before, of.marked + at, count);
    else if (of.bias != nullptr)
      load_quad<aligned>(before, of.bias + column, count);
  }

  template <bool aligned>
  __device__ void finish(Quad out, const Quad& before, float rate) const {
    if (count <= 0) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& value = out.values[i];
      if (of.end == ProductEnd::descend) {
        value = elementwise::sgd_update(before.values[i], value, rate);
      } else if (of.end == ProductEnd::mask) {
        value = elementwise::relu_gradient_marked(before.values[i], value);
      } else {
        if (of.bias != nullptr) value += before.values[i];
        if (of.end == ProductEnd::relu) value = elementwise::relu_marked(value);
      }
    }
    store_quad<aligned>(of.out + at, out, count);
  }
};

/// The product and its end. A warp multiplies its part of the inner dimension, panel after panel: a lane has
/// thread_rows x 4 sums, added by fused multiply-adds in the order of the inner dimension; two panels are always on
/// their way, so that what fits into them waits for memory once. Then each thread adds the warps' sums of four
/// neighbouring elements, in the warps' order. In a cluster each block finishes some rows of the tile: the others push
/// their sums of them into its memory, and it adds them in the order of ranks.
///
/// Two barriers of the cluster guard that memory: nobody pushes before all blocks have begun, and nobody reads, or
/// ends, before all have pushed. Nothing else is read from or written to a peer.
///
/// `out` may be read by nothing else but its own end. Aligned: all pointers and row lengths are multiples of 16 bytes.
template <int thread_rows, bool transpose_a, bool transpose_b, bool aligned>
__global__ void __launch_bounds__(kThreads, 2) small_product_kernel(SmallProduct of) {
  constexpr int rows = kProductLaneRows * thread_rows, columns = kProductTileColumns;
  using PanelA = Panel<rows, !transpose_a, aligned>;
  using PanelB = Panel<columns, transpose_b, aligned>;
  auto& memory = shared<ProductMemory<thread_rows, PanelA, PanelB>>();
  wait_for_grids_before();
  const auto thread = static_cast<int>(thread_index());
  const int warp = thread / static_cast<int>(kWarpThreads), lane = thread % static_cast<int>(kWarpThreads);
  const int lane_row = lane / kProductLaneColumns, lane_column = lane % kProductLaneColumns;
  const auto blocks = static_cast<int>(cluster_blocks()), rank = static_cast<int>(cluster_rank());
  const unsigned tile = block_index() / static_cast<unsigned>(blocks);
  const auto tiles_across = static_cast<unsigned>(of.layout.tiles_across);
  const auto first_row = static_cast<int>(tile / tiles_across) * rows;
  const auto first_column = static_cast<int>(tile % tiles_across) * columns;
  const auto all_rows = static_cast<int>(of.shape.rows), all_columns = static_cast<int>(of.shape.columns);
  const auto inner = static_cast<int>(of.shape.inner);

  if (blocks > 1) cluster_arrive();
  const auto part = static_cast<int>(of.layout.inner_per_warp);
  const int begin = (rank * kProductWarps + warp) * part;
  const int end_inner = begin + part < inner ? begin + part : inner;
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
  float sums[thread_rows][kProductThreadColumns] = {};
  for (int at = begin; at < end_inner; at += kAhead * kDepth) {
#pragma unroll
    for (int which = 0; which < kAhead; ++which) {
      if (at + which * kDepth >= end_inner) break;
      warp_barrier();  // the panel before has been read
      parts_a[which].store(panel_a, lane);
      parts_b[which].store(panel_b, lane);
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

  // The four elements that this thread finishes, in a cluster of a part of the tile's rows; what they need of memory is
  // on its way while sums are added. Registers are short before.
  const auto finisher = static_cast<int>(thread_index_again());
  const int tile_row = finisher / (columns / 4);
  const int own_rows = rows / blocks;
  const int own_row = rank * own_rows + tile_row, own_column = finisher % (columns / 4) * 4;
  const int row = first_row + own_row, column = first_column + own_column;
  const bool finishes = tile_row < own_rows && row < all_rows && column < all_columns;
  const QuadEnd end{of, std::int64_t{row} * all_columns + column, column,
                    !finishes                  ? 0
                    : all_columns - column < 4 ? all_columns - column
                                               : 4};
  Quad before{};
  end.template load_before<aligned>(before);
  const float rate = of.end == ProductEnd::descend ? of.scalars->learning_rate : 0.0f;

  block_barrier();  // all panels have been read
#pragma unroll
  for (int i = 0; i < thread_rows; ++i) {
    float* const to = memory.sums[warp][element_of<kProductLaneRows, !transpose_a>(i, lane_row)];
#pragma unroll
    for (int j = 0; j < kProductThreadColumns; ++j)
      to[element_of<kProductLaneColumns, transpose_b>(j, lane_column)] = sums[i][j];
  }
  block_barrier();
  Quad sum{};
  if (tile_row < rows) {
#pragma unroll
    for (int other = 0; other < kProductWarps; ++other) {
      const Quad quad = *reinterpret_cast<const Quad*>(&memory.sums[other][tile_row][own_column]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.values[i] = other == 0 ? quad.values[i] : sum.values[i] + quad.values[i];
    }
  }
  if (blocks > 1) {
    cluster_wait();
    if (tile_row < rows)
      *reinterpret_cast<Quad*>(peer_shared(&memory.received[rank * own_rows + tile_row % own_rows][own_column],
                                           static_cast<unsigned>(tile_row / own_rows))) = sum;
    cluster_barrier();
    if (tile_row < own_rows) {
      for (int other = 0; other < blocks; ++other) {
        const Quad quad = *reinterpret_cast<const Quad*>(&memory.received[other * own_rows + tile_row][own_column]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum.values[i] = other == 0 ? quad.values[i] : sum.values[i] + quad.values[i];
      }
    }
  }
  end.template finish<aligned>(sum, before, rate);
}

template <int thread_rows, bool transpose_a, bool transpose_b>
void launch_cut(const SmallProduct& of, cudaStream_t stream) {
  const ProductShape& shape = of.shape;
  const bool aligned = shape.columns % 4 == 0 && (transpose_a ? shape.rows : shape.inner) % 4 == 0 &&
                       (transpose_b ? shape.inner : shape.columns) % 4 == 0 &&
                       aligned_to_16(of.a, of.b, of.out, of.bias, of.marked);
  const auto run = [&](auto kernel, int shared_bytes) {
    LaunchConfig config = waiting({of.layout.blocks(), kThreads, shared_bytes});
    config.cluster_blocks = of.layout.cluster_blocks;
    launch(kernel, config, stream, of);
  };
  using A = Panel<kProductLaneRows * thread_rows, !transpose_a, true>;
  using B = Panel<kProductTileColumns, transpose_b, true>;
  constexpr int shared_bytes = sizeof(ProductMemory<thread_rows, A, B>);
  static_assert(shared_bytes <= 48 << 10, "what a block has without asking for more");
  if (aligned)
    run(small_product_kernel<thread_rows, transpose_a, transpose_b, true>, shared_bytes);
  else
    run(small_product_kernel<thread_rows, transpose_a, transpose_b, false>, shared_bytes);
}

template <int thread_rows>
void launch_rows(const SmallProduct& of, cudaStream_t stream) {
  if (of.shape.transpose_a)
    launch_cut<thread_rows, true, false>(of, stream);
  else if (of.shape.transpose_b)
    launch_cut<thread_rows, false, true>(of, stream);
  else
    launch_cut<thread_rows, false, false>(of, stream);
}

}  // namespace

void launch_small_product(const SmallProduct& product, cudaStream_t stream) {
  if (product.layout.thread_rows == 8)
    launch_rows<8>(product, stream);
  else
    launch_rows<4>(product, stream);
}

}  // namespace deviceloop::cuda
