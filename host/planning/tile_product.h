// How a block takes a tile of a matrix product, for the products that executors launch beside steps that are
// kernels of their own: predictions, and what the Gram formulation begins and ends with. Plain functions of the sizes.
#pragma once

#include <cstdint>

#include "kernel_layout.h"
#include "small_product.h"

namespace deviceloop::cuda {

/// A block of kThreads threads has a tile: `groups` of its threads share the inner dimension, each takes `depth` of it
/// at a time for the whole tile, `thread_rows` x `thread_columns` a thread.
template <int rows_, int columns_, int groups_, int thread_rows_, int thread_columns_, int depth_bytes>
struct TileShape {
  static constexpr int rows = rows_, columns = columns_, groups = groups_;
  static constexpr int thread_rows = thread_rows_, thread_columns = thread_columns_;
  template <class T>
  static constexpr int depth = depth_bytes / static_cast<int>(sizeof(T));

  DEVICELOOP_HOST_DEVICE static constexpr std::int64_t tiles_across(const ProductShape& shape) {
    return divide_up(shape.columns, columns);
  }
  DEVICELOOP_HOST_DEVICE static constexpr std::int64_t tiles(const ProductShape& shape) {
    return divide_up(shape.rows, rows) * tiles_across(shape);
  }
};
using SmallTile = TileShape<16, 16, 8, 2, 4, 128>;
using MediumTile = TileShape<32, 32, 4, 4, 4, 128>;
using LargeTile = TileShape<64, 64, 1, 4, 4, 64>;

/// Calls use(a tile's shape): the largest of which there is one for each multiprocessor of the GPU that was measured.
/// It must not depend on the GPU, as the order of sums follows from it.
template <class Use>
constexpr auto with_tile(const ProductShape& shape, Use use) {
  constexpr std::int64_t kMultiprocessors = 132;
  if (LargeTile::tiles(shape) >= kMultiprocessors) return use(LargeTile());
  if (MediumTile::tiles(shape) >= kMultiprocessors) return use(MediumTile());
  return use(SmallTile());
}

}  // namespace deviceloop::cuda
