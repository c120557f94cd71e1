// Products of matrices so small that they are latency, not arithmetic: how the own kernel cuts them, and where it takes
// them in place of cuBLASLt. Plain functions of the sizes, so that sums have one order everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "gpu_costs.h"
#include "kernel_layout.h"

namespace deviceloop::cuda {

/// [rows, inner] times [inner, columns]. Transposed operands lie as [inner, rows] and [columns, inner].
struct ProductShape {
  std::int64_t rows = 0, columns = 0, inner = 0;
  bool transpose_a = false, transpose_b = false;

  double multiply_adds() const {
    return static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(inner);
  }
};

/// What becomes of a product.
enum class ProductEnd {
  store,     ///< out = product (+ bias)
  relu,      ///< out = relu_marked(product (+ bias))
  mask,      ///< out = relu_gradient_marked(marked, product)
  gradient,  ///< of a^T b: the product is a gradient, and perhaps the column sums of b are another; each is stored or
             ///< updates what it is the gradient of
};

/// Lanes of a warp lie as 4 rows of 8; a lane has so many columns of a tile, and 4 or 8 of its rows.
inline constexpr int kProductLaneRows = 4, kProductLaneColumns = 8, kProductThreadColumns = 4;
inline constexpr int kProductTileColumns = kProductLaneColumns * kProductThreadColumns;
inline constexpr int kProductWarps = kThreads / 32;
inline constexpr int kMostProductCluster = 8;
/// Products that one launch takes.
inline constexpr std::size_t kMostProducts = 8;

/// A cluster of blocks has a tile of the result, or some side by side. The inner dimension is split among the blocks of
/// a tile, and of each block among its warps, which go their own way until their sums are added: first those of a
/// block's warps, then those of the blocks, each in order. All products of a launch, which have the same inner
/// dimension, are cut alike.
struct SmallProductLayout {
  int thread_rows = 4;
  int cluster_blocks = 1;
  int across_blocks = 1;            ///< of them, those for the tiles that lie side by side
  std::int64_t inner_per_warp = 4;  ///< a multiple of 4: 16 bytes
  double estimated_us = 0;          ///< beside the node

  constexpr int tile_rows() const { return kProductLaneRows * thread_rows; }
  constexpr std::int64_t tiles_down(const ProductShape& shape) const { return divide_up(shape.rows, tile_rows()); }
  constexpr std::int64_t clusters_across(const ProductShape& shape) const {
    return divide_up(shape.columns, kProductTileColumns * across_blocks);
  }
  constexpr std::int64_t blocks(const ProductShape& shape) const {
    return tiles_down(shape) * clusters_across(shape) * cluster_blocks;
  }
  constexpr int inner_blocks() const { return cluster_blocks / across_blocks; }
  constexpr std::int64_t inner_per_block() const { return inner_per_warp * kProductWarps; }
};

/// Cut so. The estimate is what the choice among the ways to cut follows: reads of shared memory bound the tiles, of
/// which those with 8 rows a thread need fewer for a multiply-add, and the exchange in the cluster costs the more the
/// larger it is.
constexpr SmallProductLayout cut_products(std::span<const ProductShape> shapes, int thread_rows, int inner_blocks,
                                          int across_blocks = 1) {
  using namespace gpu_costs;
  constexpr std::int64_t kMultiprocessors = 132;  // of the GPU that was measured: the cut must not depend on the GPU
  SmallProductLayout layout;
  layout.thread_rows = thread_rows;
  layout.cluster_blocks = inner_blocks * across_blocks;
  layout.across_blocks = across_blocks;
  layout.inner_per_warp = divide_up(divide_up(shapes.front().inner, inner_blocks * kProductWarps), 4) * 4;
  std::int64_t all_blocks = 0;
  for (const ProductShape& shape : shapes) all_blocks += layout.blocks(shape);
  const double tile_columns = kProductTileColumns;
  const double multiply_adds = layout.tile_rows() * tile_columns * static_cast<double>(layout.inner_per_block());
  const double cycles = multiply_adds / kLanes * (thread_rows == 8 ? kTallTileReads : kFlatTileReads);
  const double waves = static_cast<double>(divide_up(all_blocks, kMultiprocessors));
  layout.estimated_us = kSmallProductUs + waves * cycles / (kClockGhz * 1e3);
  for (const int peers : {inner_blocks, across_blocks})
    for (int blocks = 1; blocks < peers; blocks *= 2)
      layout.estimated_us += blocks == 1 ? kPeerExchangeUs : kPeerDoublingUs;
  return layout;
}

/// The best of them; without `has_clusters` for a GPU that has none.
constexpr SmallProductLayout small_products_layout(std::span<const ProductShape> shapes, bool has_clusters) {
  const std::int64_t inner = shapes.front().inner;
  SmallProductLayout best = cut_products(shapes, 4, 1);
  for (const int thread_rows : {4, 8})
    for (int cluster = 1; cluster <= (has_clusters ? kMostProductCluster : 1); cluster *= 2) {
      if (cluster > 1 && inner <= std::int64_t{4} * kProductWarps * (cluster / 2)) break;  // blocks without work
      const SmallProductLayout layout = cut_products(shapes, thread_rows, cluster);
      if (layout.estimated_us < best.estimated_us) best = layout;
    }
  return best;
}
constexpr SmallProductLayout small_product_layout(const ProductShape& shape, bool has_clusters) {
  return small_products_layout({&shape, 1}, has_clusters);
}

/// Rows of a tile where a product ends with the loss of a narrow layer above it.
inline constexpr int kLossTileRows = kProductLaneRows * 4;

/// The best for a product that ends with the loss of a narrow layer, for which a cluster has all columns of its rows.
/// None where it cannot, or where the product alone, the layer with its loss, and the layer's gradient are faster.
constexpr std::optional<SmallProductLayout> product_with_loss_layout(const ProductShape& shape, bool has_clusters) {
  using namespace gpu_costs;
  const SmallProductLayout apart = small_product_layout(shape, has_clusters);
  double best_us = apart.estimated_us + 2 * (kGraphNodeUs + kKernelUs);
  std::optional<SmallProductLayout> best;
  const int most = has_clusters ? kMostProductCluster : 1;
  const int across = power_of_two(apart.clusters_across(shape), 2 * kMostProductCluster);
  for (int inner = 1; inner * across <= most; inner *= 2) {
    if (inner > 1 && shape.inner <= std::int64_t{4} * kProductWarps * (inner / 2)) break;  // blocks without work
    SmallProductLayout layout = cut_products({&shape, 1}, kLossTileRows / kProductLaneRows, inner, across);
    layout.estimated_us += kLossEndUs;
    if (layout.estimated_us >= best_us) continue;
    best_us = layout.estimated_us;
    best = layout;
  }
  return best;
}

/// Partial sums of the loss: one of the rows that a block finishes.
constexpr std::int64_t product_loss_blocks(const ProductShape& shape, const SmallProductLayout& layout) {
  return layout.tiles_down(shape) * layout.inner_blocks();
}

/// Whether such a product in fp32 is faster by the own kernel. Measured were sizes up to 1024 x 256 x 256 and
/// 256 x 256 x 1024, where it still was, and 1024 cubed, where it was not.
constexpr bool is_small_product(const ProductShape& shape) {
  constexpr std::int64_t kLongest = 1024, kMostMultiplyAdds = std::int64_t{1} << 26;
  return shape.rows <= kLongest && shape.columns <= kLongest && shape.inner <= kLongest &&
         shape.rows * shape.columns * shape.inner <= kMostMultiplyAdds;
}

/// "128 x 100 x 1000: own, tiles of 16 x 32, clusters of 4", for reports.
inline std::string to_string(const ProductShape& shape, const SmallProductLayout& layout) {
  return std::to_string(shape.rows) + " x " + std::to_string(shape.columns) + " x " + std::to_string(shape.inner) +
         ": own, tiles of " + std::to_string(layout.tile_rows()) + " x " + std::to_string(kProductTileColumns) +
         ", clusters of " + std::to_string(layout.cluster_blocks) +
         (layout.across_blocks > 1 ? ", " + std::to_string(layout.across_blocks) + " of them side by side" : "");
}

}  // namespace deviceloop::cuda
