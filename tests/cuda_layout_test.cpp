// Which elements the threads of a kernel take: every one once, also at sizes that no test can allocate.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "planning/kernel_layout.h"
#include "planning/small_product.h"

namespace deviceloop::cuda {
namespace {

constexpr std::int64_t kMostBlocks = std::numeric_limits<std::int32_t>::max();

TEST(CudaLayout, GroupsOfAKernelCoverEveryElementOnce) {
  for (const int width : {1, 2, 4})
    for (const std::int64_t count : {1, 31, 32, 33, 1023, 1024, 4095, 4096, 4097, 20000}) {
      std::vector<int> taken(static_cast<std::size_t>(count));
      for (std::int64_t block = 0; block < group_blocks(count, width); ++block)
        for (int thread = 0; thread < kThreads; ++thread)
          for (int item = 0; item < kGroupsPerThread; ++item)
            for (int i = 0; i < width; ++i) {
              const std::int64_t element = group_index(block, thread, item) * width + i;
              if (element < count) ++taken[static_cast<std::size_t>(element)];
            }
      for (const int times : taken) ASSERT_EQ(times, 1) << count << " elements in groups of " << width;
    }
}

TEST(CudaLayout, GroupsReachBeyond32Bits) {
  for (const int width : {1, 2, 4})
    for (const std::int64_t count : {(std::int64_t{1} << 31) - 1, std::int64_t{1} << 31, (std::int64_t{1} << 31) + 1,
                                     (std::int64_t{1} << 33) - 1, std::int64_t{1} << 33, (std::int64_t{1} << 33) + 1}) {
      const std::int64_t blocks = group_blocks(count, width);
      ASSERT_LE(blocks, kMostBlocks);
      // The last block holds the last element, and a block less would not.
      const std::int64_t last = (count - 1) / width;
      EXPECT_LE(last, group_index(blocks - 1, kThreads - 1, kGroupsPerThread - 1));
      EXPECT_GE(last, group_index(blocks - 1, 0, 0));
      // The end of a block is followed by the begin of the next.
      for (const std::int64_t block : {std::int64_t{0}, blocks / 2, blocks - 2})
        EXPECT_EQ(group_index(block, kThreads - 1, kGroupsPerThread - 1) + 1, group_index(block + 1, 0, 0));
    }
}

/// How often each element of [rows, columns] is taken.
std::vector<int> taken_by(const PanelLayout& layout, std::int64_t rows, std::int64_t columns) {
  std::vector<int> taken(static_cast<std::size_t>(rows * columns));
  for (std::int64_t block = 0; block < layout.blocks(); ++block)
    for (int thread = 0; thread < kThreads; ++thread) {
      const PanelPlace place = panel_place(layout, rows, block, thread);
      if (place.column >= columns) continue;
      EXPECT_LT(place.tile_down, layout.tiles_down);
      for (std::int64_t row = place.row; row < place.end_row; row += place.row_step)
        ++taken[static_cast<std::size_t>(row * columns + place.column)];
    }
  return taken;
}

TEST(CudaLayout, TilesOfAPanelCoverEveryElementOnce) {
  for (const std::int64_t rows : {1, 2, 7, 8, 255, 256, 257, 1000})
    for (const std::int64_t columns : {1, 2, 3, 31, 32, 33, 100, 300}) {
      SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns));
      for (const int times : taken_by(row_sum_layout(rows, columns), rows, columns)) ASSERT_EQ(times, 1);
      for (const int times : taken_by(panel_layout(rows, columns, kThreads, kGroupsPerThread), rows, columns))
        ASSERT_EQ(times, 1);
    }
}

TEST(CudaLayout, AThreadOfARowSumHasAtMostTheTermsThatItMayAddInTheWorkingPrecision) {
  for (const std::int64_t rows : {1, 32, 33, 256, 5000})
    for (const std::int64_t columns : {1, 5, 32, 1000}) {
      const PanelLayout layout = row_sum_layout(rows, columns);
      for (std::int64_t block = 0; block < layout.blocks(); ++block)
        for (int thread = 0; thread < kThreads; ++thread) {
          const PanelPlace place = panel_place(layout, rows, block, thread);
          const std::int64_t terms =
              place.row < place.end_row ? divide_up(place.end_row - place.row, place.row_step) : 0;
          ASSERT_LE(terms, kTerms);
        }
    }
}

TEST(CudaLayout, TilesOfColumnGroupsCoverEveryElementOnceByFewTerms) {
  for (const std::int64_t rows : {1, 2, 100, 128, 129, 4096, 4097, 20000})
    for (const std::int64_t columns : {1, 3, 8, 9, 100, 131, 260})
      for (const int width : {1, 2, 4}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + " by " + std::to_string(width));
        const ColumnGroupLayout layout = column_group_layout(rows, columns, width);
        const std::int64_t row_step = kThreads / layout.groups;
        ASSERT_GE(layout.groups, 1);
        ASSERT_GE(row_step, 1);
        EXPECT_LE(divide_up(std::min(rows, layout.rows_per_tile), row_step), kTerms);
        EXPECT_GE(layout.tiles_across * layout.groups * width, columns);
        EXPECT_LT((layout.tiles_across - 1) * layout.groups * width, columns);
        EXPECT_GE(layout.tiles_down * layout.rows_per_tile, rows);
        EXPECT_LT((layout.tiles_down - 1) * layout.rows_per_tile, rows);
        EXPECT_EQ(layout.tiles_down == 1, rows <= 4096 || rows <= layout.rows_per_tile);
        EXPECT_LE(layout.tiles_down == 1 ? 0 : layout.tiles_down * columns * 3,
                  narrow_linear_gradient_slots(rows, columns, 3));
      }
  // What a GPU of many multiprocessors needs, and no more partial sums than that.
  EXPECT_EQ(column_group_layout(128, 100, 4).blocks(), 13);
  EXPECT_EQ(column_group_layout(8192, 100, 4).blocks(), 103);
  EXPECT_EQ(column_group_layout(1 << 20, 100, 4).rows_per_tile, 320);
}

TEST(CudaLayout, SmallProductsAreCutSoThatEveryElementIsMultipliedOnce) {
  for (const std::int64_t rows : {1, 64, 128, 1024})
    for (const std::int64_t columns : {17, 100, 256})
      for (const std::int64_t inner : {1, 64, 784, 1000})
        for (const bool has_clusters : {true, false}) {
          const ProductShape shape{rows, columns, inner};
          const SmallProductLayout layout = small_product_layout(shape, has_clusters);
          SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + " x " + std::to_string(inner));
          EXPECT_GE(layout.tiles_down(shape) * layout.tile_rows(), rows);
          EXPECT_LT((layout.tiles_down(shape) - 1) * layout.tile_rows(), rows);
          EXPECT_GE(layout.clusters_across(shape) * kProductTileColumns, columns);
          EXPECT_EQ(layout.blocks(shape),
                    layout.tiles_down(shape) * layout.clusters_across(shape) * layout.cluster_blocks);
          EXPECT_LT((layout.clusters_across(shape) - 1) * kProductTileColumns, columns);
          EXPECT_GE(layout.inner_per_block() * layout.cluster_blocks, inner);
          EXPECT_EQ(layout.inner_per_warp % 4, 0);
          EXPECT_EQ(layout.tile_rows() % layout.cluster_blocks, 0);
          EXPECT_LE(layout.cluster_blocks, has_clusters ? kMostProductCluster : 1);
        }
  // What was measured, on one side of the border and on the other.
  EXPECT_TRUE(is_small_product({128, 100, 1000}));
  EXPECT_TRUE(is_small_product({1024, 256, 256}));
  EXPECT_TRUE(is_small_product({256, 256, 1024}));
  EXPECT_FALSE(is_small_product({1024, 1024, 1024}));
  EXPECT_FALSE(is_small_product({65536, 64, 64}));
  EXPECT_FALSE(is_small_product({64, 64, 65536}));
}

TEST(CudaLayout, AClusterHasAllColumnsOfAProductThatEndsWithALoss) {
  for (const std::int64_t rows : {1, 64, 128, 1000})
    for (const std::int64_t columns : {17, 32, 100, 128, 256})
      for (const std::int64_t inner : {1, 64, 784, 1000})
        for (const bool has_clusters : {true, false}) {
          const ProductShape shape{rows, columns, inner};
          SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + " x " + std::to_string(inner));
          const std::optional<SmallProductLayout> layout = product_with_loss_layout(shape, has_clusters);
          EXPECT_TRUE(has_clusters || columns <= kProductTileColumns || !layout.has_value());
          if (!layout) continue;
          EXPECT_EQ(layout->tile_rows(), kLossTileRows);
          EXPECT_EQ(layout->clusters_across(shape), 1);
          EXPECT_EQ(layout->cluster_blocks, layout->across_blocks * layout->inner_blocks());
          EXPECT_LE(layout->cluster_blocks, has_clusters ? kMostProductCluster : 1);
          EXPECT_GE(layout->inner_per_block() * layout->inner_blocks(), inner);
          EXPECT_EQ(product_loss_blocks(shape, *layout) * kLossTileRows / layout->inner_blocks(),
                    divide_up(rows, kLossTileRows) * kLossTileRows);
        }
  EXPECT_TRUE(product_with_loss_layout({128, 100, 1000}, true).has_value());
  EXPECT_TRUE(product_with_loss_layout({64, 128, 784}, true).has_value());
  EXPECT_FALSE(product_with_loss_layout({64, 257, 784}, true).has_value());
}

TEST(CudaLayout, TilesReachBeyond32Bits) {
  const std::int64_t shapes[][2] = {
      {std::int64_t{1} << 31, 1}, {(std::int64_t{1} << 33) + 1, 3}, {1 << 20, 1 << 13}, {3, std::int64_t{1} << 33}};
  for (const auto& [rows, columns] : shapes) {
    const PanelLayout layout = row_sum_layout(rows, columns);
    ASSERT_LE(layout.blocks(), kMostBlocks);
    const PanelPlace last = panel_place(layout, rows, layout.blocks() - 1, kThreads - 1);
    EXPECT_EQ(last.end_row, rows);
    EXPECT_EQ(last.tile_down, layout.tiles_down - 1);
    EXPECT_GE(last.column, columns - 1);
    const PanelPlace first = panel_place(layout, rows, layout.blocks() - 1, 0);
    EXPECT_LT(first.row, rows);
    EXPECT_LT(first.column, columns);
  }
}

TEST(CudaLayout, SlotsHaveAsManyLanesAsTheyCanUse) {
  EXPECT_EQ(slot_layout(1, 1).lanes, 1);
  EXPECT_EQ(slot_layout(1, 33).lanes, 64);
  EXPECT_EQ(slot_layout(1, 1 << 20).lanes, kThreads);
  EXPECT_EQ(slot_layout(1, 1 << 20).blocks, 1);
  EXPECT_EQ(slot_layout(1000, 2).blocks, 8);  // 128 outputs a block
}

}  // namespace
}  // namespace deviceloop::cuda
