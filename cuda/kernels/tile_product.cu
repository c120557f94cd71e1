// Products of matrices of any size in either precision, a tile by each block: host/planning/tile_product.h.
#include "../../host/planning/tile_product.h"

#include <cmath>
#include <cstdint>

#include "../../host/precision.h"
#include "../runtime/launch.h"
#include "activation_calls.cuh"
#include "groups.cuh"
#include "kernels.h"

namespace deviceloop::cuda {
namespace {

/// An operand: contiguous along the inner dimension if `by_inner`, else along the outer one.
template <class T>
struct Operand {
  const T* data;
  std::int64_t stride;  ///< in elements, along the dimension that is not contiguous
  bool by_inner;
  std::int64_t outer;   ///< size of the outer dimension: rows, or columns, of the product
  Precision precision;  ///< that it is rounded to
};

/// A block's shared memory for one shape of tile. Rows of panels are aligned to 16 bytes, and longer than a tile so
/// that transposing stores spread over the banks.
template <class T, class Shape>
struct TileMemory {
  static constexpr int kPad = 16 / sizeof(T);
  union {
    struct {
      T a[Shape::groups][Shape::template depth<T>][Shape::rows + kPad];
      T b[Shape::groups][Shape::template depth<T>][Shape::columns + kPad];
    } panels;
    T sums[Shape::groups][Shape::rows][Shape::columns];
  };
};

/// A thread's part of a panel [depth][extent]: elements of an operand in registers, between memory and shared memory,
/// so that they are loaded while the previous panel is in use.
template <class T, class Shape, int extent>
struct PanelPart {
  static constexpr int kDepth = Shape::template depth<T>;
  static constexpr int kGroupThreads = kThreads / Shape::groups;
  static constexpr int kCount = kDepth * extent / kGroupThreads;
  static_assert(kCount * kGroupThreads == kDepth * extent && kGroupThreads % kDepth == 0 &&
                kGroupThreads % extent == 0);
  T values[kCount];

  /// Neighbouring threads load neighbouring elements. Elements beyond the operand are zero.
  __device__ void load(const Operand<T>& operand, std::int64_t first_outer, std::int64_t first_inner,
                       std::int64_t inner, int thread) {
    const int extent_along = operand.by_inner ? kDepth : extent;
    const std::int64_t along = (operand.by_inner ? first_inner : first_outer) + thread % extent_along;
    const std::int64_t across = (operand.by_inner ? first_outer : first_inner) + thread / extent_along;
    const std::int64_t end_along = operand.by_inner ? inner : operand.outer;
    const std::int64_t end_across = operand.by_inner ? operand.outer : inner;
    const int step = kGroupThreads / extent_along;
    const T* from = operand.data + across * operand.stride + along;
    const bool inside = along < end_along;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = inside && across + i * step < end_across ? from[i * step * operand.stride] : T(0);
    }
  }

  /// Rounded, where the operand is.
  template <int width>
  __device__ void store(T (&panel)[kDepth][width], const Operand<T>& operand, int thread) {
    const bool by_inner = operand.by_inner;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (operand.precision == Precision::bf16) {
#pragma unroll
        for (T& value : values) value = rounding::rounded<rounding::Bf16>(value);
      } else if (operand.precision == Precision::tf32) {
#pragma unroll
        for (T& value : values) value = rounding::rounded<rounding::Tf32>(value);
      }
    }
    const int extent_along = by_inner ? kDepth : extent;
    const int along = thread % extent_along, across = thread / extent_along;
    const int step = kGroupThreads / extent_along;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (by_inner)
        panel[along][across + i * step] = values[i];
      else
        panel[across + i * step][along] = values[i];
    }
  }
};

/// Loads `count` contiguous elements, which are aligned to their total size, or to 16 bytes if they take more.
template <int count, class T>
__device__ inline void read_row(T (&out)[count], const T* from) {
  constexpr int width = count * sizeof(T) <= 16 ? count : 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int i = 0; i < count; i += width) {
    const Group<T, width> group = *reinterpret_cast<const Group<T, width>*>(from + i);
#pragma unroll
    for (int j = 0; j < width; ++j) out[i + j] = group.values[j];
  }
}

/// memory.sums [groups][rows][columns] = the tile at (first_row, first_column) of a b, as one partial sum for each
/// group of the block's threads. A partial sum is added in the order of the inner dimension by fused multiply-adds;
/// group g takes the panels g, g + groups, ... All threads of the block call it after a barrier; it ends with a
/// barrier.
template <class T, class Shape>
__device__ void tile_product(TileMemory<T, Shape>& memory, const Operand<T>& a, const Operand<T>& b, std::int64_t inner,
                             std::int64_t first_row, std::int64_t first_column) {
  constexpr int kDepth = Shape::template depth<T>;
  constexpr int kGroupThreads = kThreads / Shape::groups;
  constexpr int kRows = Shape::thread_rows, kColumns = Shape::thread_columns;
  static_assert(Shape::rows * Shape::columns == kGroupThreads * kRows * kColumns);
  const int group = static_cast<int>(thread_index()) / kGroupThreads;
  const int thread = static_cast<int>(thread_index()) % kGroupThreads;
  const int row = thread / (Shape::columns / kColumns) * kRows;
  const int column = thread % (Shape::columns / kColumns) * kColumns;
  // In a round every group takes one panel.
  constexpr std::int64_t kRoundDepth = std::int64_t{kDepth} * Shape::groups;
  const std::int64_t rounds = divide_up(inner, kRoundDepth);

  T sums[kRows][kColumns] = {};
  PanelPart<T, Shape, Shape::rows> part_a;
  PanelPart<T, Shape, Shape::columns> part_b;
  if (rounds > 0) {
    part_a.load(a, first_row, group * kDepth, inner, thread);
    part_b.load(b, first_column, group * kDepth, inner, thread);
  }
  for (std::int64_t round = 0; round < rounds; ++round) {
    auto& panel_a = memory.panels.a[group];
    auto& panel_b = memory.panels.b[group];
    if (round > 0) block_barrier();  // the previous panels have been read
    part_a.store(panel_a, a, thread);
    part_b.store(panel_b, b, thread);
    block_barrier();
    if (round + 1 < rounds) {
      const std::int64_t next = (round + 1) * kRoundDepth + group * kDepth;
      part_a.load(a, first_row, next, inner, thread);
      part_b.load(b, first_column, next, inner, thread);
    }
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      T left[kRows], right[kColumns];
      read_row(left, &panel_a[k][row]);
      read_row(right, &panel_b[k][column]);
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sums[i][j] = std::fma(left[i], right[j], sums[i][j]);
    }
  }
  if (rounds > 0) block_barrier();  // the sums overwrite the panels
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) memory.sums[group][row + i][column + j] = sums[i][j];
  block_barrier();
}

template <class T, class Shape>
__global__ void __launch_bounds__(kThreads, 1) tile_product_kernel(TileProduct<T> of) {
  auto& memory = shared<TileMemory<T, Shape>>();
  const ProductShape& shape = of.shape;
  const std::int64_t across = Shape::tiles_across(shape);
  const std::int64_t first_row = block_index() / across * Shape::rows;
  const std::int64_t first_column = block_index() % across * Shape::columns;
  const bool a_by_inner = !shape.transpose_a, b_by_inner = shape.transpose_b;
  tile_product<T, Shape>(memory, {of.a, a_by_inner ? shape.inner : shape.rows, a_by_inner, shape.rows, of.precision},
                         {of.b, b_by_inner ? shape.inner : shape.columns, b_by_inner, shape.columns, of.precision},
                         shape.inner, first_row, first_column);
  constexpr int kElements = Shape::rows * Shape::columns / kThreads;
#pragma unroll 1
  for (int i = 0; i < kElements; ++i) {
    const int element = i * kThreads + static_cast<int>(thread_index());
    const int row = element / Shape::columns, column = element % Shape::columns;
    if (first_row + row >= shape.rows || first_column + column >= shape.columns) continue;
    T sum = memory.sums[0][row][column];
#pragma unroll
    for (int group = 1; group < Shape::groups; ++group) sum += memory.sums[group][row][column];
    const std::int64_t index = (first_row + row) * shape.columns + first_column + column;
    if (of.start != nullptr) sum += of.start[index];
    if (of.bias != nullptr) sum += of.bias[first_column + column];
    of.out[index] = activation_value(of.activation.kind, static_cast<T>(of.activation.leaky_slope), sum + of.addend);
  }
}

}  // namespace

template <class T>
void launch_tile_product(const TileProduct<T>& product, cudaStream_t stream) {
  with_tile(product.shape, [&](auto shape) {
    using Shape = decltype(shape);
    launch(tile_product_kernel<T, Shape>,
           {Shape::tiles(product.shape), kThreads, static_cast<int>(sizeof(TileMemory<T, Shape>))}, stream, product);
  });
}

template void launch_tile_product(const TileProduct<float>&, cudaStream_t);
template void launch_tile_product(const TileProduct<double>&, cudaStream_t);

}  // namespace deviceloop::cuda
