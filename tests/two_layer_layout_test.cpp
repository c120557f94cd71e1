// The decomposition of the two-layer kernels: what it decides for known GPUs, that each layout has room for all it must
// hold, and what a refusal says.
#include "planning/two_layer_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "support/refusal.h"

namespace deviceloop::cuda {
namespace {

/// As an H100 and an H200 have it, at one block a multiprocessor.
const TwoLayerDevice kHopper{227 << 10, {132, 66, 30, 15, 7}};
/// Without clusters.
const TwoLayerDevice kTuring{64 << 10, {40, 0, 0, 0, 0}};

TEST(TwoLayerLayout, OfTheStartingCaseIsThatOfTheDesign) {
  const auto decision = decide_two_layer({128, 1000, 100, 1, 4}, kHopper);
  ASSERT_TRUE(decision.fits()) << decision.refusal;
  const TwoLayerLayout& layout = decision.layout;
  EXPECT_EQ(layout.cluster_blocks(), 4);
  EXPECT_EQ(layout.clusters, 25);
  EXPECT_EQ(layout.units, 4);
  EXPECT_EQ(layout.columns, 250);
  EXPECT_EQ(layout.column_warps, 8);
  EXPECT_EQ(layout.tile_rows, 16);
  EXPECT_EQ(layout.tile_columns, 8);
  EXPECT_EQ(layout.samples, 32);
  EXPECT_TRUE(layout.direct);
  EXPECT_EQ(layout.threads, 256);
  EXPECT_EQ(layout.slots(), 2 * 25 * 128);
  // Between its floor and what the graph executor takes; nearer to what was measured: prediction_test.cpp.
  EXPECT_GT(layout.estimated_us, 1.7);
  EXPECT_LT(layout.estimated_us, 20);
  EXPECT_EQ(describe(layout),
            "25 clusters of 4 blocks of 256 threads; a block has 250 inputs and 4 hidden units in 25.6 KiB of shared "
            "memory");
}

TEST(TwoLayerLayout, OfTheStartingCaseInDoubleTakesLargerClusters) {
  const auto decision = decide_two_layer({128, 1000, 100, 1, 8}, kHopper);
  ASSERT_TRUE(decision.fits()) << decision.refusal;
  EXPECT_EQ(decision.layout.cluster_blocks(), 8);
  EXPECT_EQ(decision.layout.clusters, 13);
  EXPECT_EQ(decision.layout.units, 8);
  EXPECT_FALSE(decision.layout.direct);
}

TEST(TwoLayerLayout, OfADigitClassifierFitsOneLaunch) {
  const auto decision = decide_two_layer({64, 784, 128, 10, 4}, kHopper);
  ASSERT_TRUE(decision.fits()) << decision.refusal;
  EXPECT_LE(decision.layout.clusters,
            kHopper.resident_clusters[static_cast<std::size_t>(decision.layout.cluster_log2)]);
  EXPECT_FALSE(decision.layout.direct);
}

TEST(TwoLayerLayout, ABiasIsOneMoreInput) {
  EXPECT_EQ(decide_two_layer({128, 1000, 100, 1, 4, true}, kHopper).layout.columns, 251);
  EXPECT_EQ(decide_two_layer({128, 1024, 100, 1, 4, false}, kHopper).layout.cluster_blocks(), 4);
  EXPECT_EQ(decide_two_layer({128, 1024, 100, 1, 4, true}, kHopper).layout.cluster_blocks(), 8);
  EXPECT_EQ(decide_two_layer({128, 256, 100, 1, 4, true}, kTuring).refusal,
            "256 inputs and a bias of 128 samples fill the registers of 2 blocks, a cluster of the device has at most "
            "1");
}

TEST(TwoLayerLayout, OnlyOneOutputInClustersOfFourPassesFromLaneToLane) {
  const auto is_direct = [](const TwoLayerShape& shape, int cluster_log2, std::int64_t units) {
    return make_two_layer(shape, cluster_log2, units).direct;
  };
  EXPECT_TRUE(is_direct({128, 1000, 100, 1, 4}, 2, 4));
  EXPECT_TRUE(is_direct({64, 1000, 98, 1, 4, true}, 2, 4));
  EXPECT_FALSE(is_direct({128, 1000, 100, 2, 4}, 2, 4));
  EXPECT_FALSE(is_direct({128, 1000, 100, 1, 4}, 3, 4));
  EXPECT_FALSE(is_direct({128, 1000, 100, 1, 4}, 2, 8));
  EXPECT_FALSE(is_direct({128, 1000, 200, 1, 4}, 2, 4));  // 50 clusters
  EXPECT_FALSE(is_direct({32, 1000, 100, 1, 4}, 2, 4));
  EXPECT_FALSE(is_direct({128, 500, 100, 1, 8}, 2, 4));
}

TEST(TwoLayerLayout, OfTheStartingCaseInGramIsThatOfTheDesign) {
  const auto decision = decide_gram_two_layer({128, 1000, 100, 1, 4}, kHopper);
  ASSERT_TRUE(decision.fits()) << decision.refusal;
  const GramTwoLayerLayout& layout = decision.layout;
  EXPECT_TRUE(layout.direct);
  EXPECT_EQ(layout.blocks, 100);
  EXPECT_EQ(layout.cluster_blocks(), 4);
  EXPECT_EQ(layout.output.publishers, 25);
  EXPECT_EQ(layout.output.units, 4);
  EXPECT_EQ(layout.samples, 32);
  EXPECT_EQ(layout.threads, 256);
  EXPECT_EQ(layout.tile_columns, 4);
  EXPECT_EQ(layout.slots(), 2 * 25 * 128);
  EXPECT_GT(layout.estimated_us, 0.6);
  EXPECT_LT(layout.estimated_us, 5);
  EXPECT_EQ(describe(layout),
            "25 clusters of 4 blocks of 256 threads; a block has 4 hidden units in 5.5 KiB of shared memory");
}

TEST(TwoLayerLayout, InGramOtherCasesTakeBlocks) {
  for (const TwoLayerShape& shape :
       {TwoLayerShape{128, 1000, 100, 2, 4}, TwoLayerShape{48, 1000, 100, 1, 4}, TwoLayerShape{128, 1000, 129, 1, 4}})
    EXPECT_FALSE(decide_gram_two_layer(shape, kHopper).layout.direct);
  const auto decision = decide_gram_two_layer({128, 1000, 100, 1, 4}, {227 << 10, {132, 0, 0, 0, 0}});
  ASSERT_TRUE(decision.fits()) << decision.refusal;
  EXPECT_FALSE(decision.layout.direct);
  EXPECT_EQ(decision.layout.blocks, 25);
  EXPECT_EQ(decision.layout.threads, 512);
  EXPECT_EQ(decision.layout.tile_columns, 8);
  EXPECT_EQ(describe(decision.layout),
            "25 blocks of 512 threads; a block has 4 hidden units in 9.6 KiB of shared memory");
}

using Piece = std::pair<int, std::int64_t>;  // place, bytes

/// Pieces of shared memory that lie on 16 bytes, one behind the other, within `bytes`.
void expect_apart(std::vector<Piece> pieces, std::int64_t bytes) {
  std::sort(pieces.begin(), pieces.end());
  std::int64_t end = 0;
  for (const auto& [place, size] : pieces) {
    EXPECT_EQ(place % 16, 0);
    EXPECT_GE(place, end);
    end = place + size;
  }
  EXPECT_LE(end, bytes);
}

std::vector<Piece> pieces_of(const OutputLayerLayout& output, int group, std::int64_t bytes) {
  const std::int64_t units = output.units, batch = output.batch, outputs = output.outputs;
  EXPECT_EQ(units, output.groups * group);
  return {{output.hidden_at, units * batch * bytes},
          {output.dz_at, units * output.dz_rows * bytes},
          {output.gradient_at, 2 * batch * outputs * bytes},
          {output.target_at, batch * outputs * bytes},
          {output.weight_at, units * outputs * bytes},
          {output.hidden_bias_at, units * bytes},
          {output.bias_at, outputs * bytes},
          {output.failed_at, 4},
          {output.deadline_at, 16}};
}

void expect_publishers(const OutputLayerLayout& output, std::int64_t publishers, std::int64_t hidden) {
  EXPECT_EQ(output.publishers, publishers);
  EXPECT_LE(output.lanes_log2, 5);
  EXPECT_LE(1 << output.lanes_log2, publishers);
  // Every hidden unit has one owner, and every owner a unit.
  EXPECT_GE(publishers * output.units, hidden);
  EXPECT_LT((publishers - 1) * output.units, hidden);
}

std::string text(const TwoLayerShape& shape) {
  return std::to_string(shape.inputs) + "-" + std::to_string(shape.hidden) + "-" + std::to_string(shape.outputs) +
         ", " + std::to_string(shape.batch) + " samples, " + std::to_string(shape.element_bytes) + " bytes";
}

TEST(TwoLayerLayout, HoldsAllThereIsWithinTheDevice) {
  int fitting = 0;
  for (const TwoLayerDevice& device : {kHopper, kTuring})
    for (const std::int64_t batch : {1, 5, 31, 32, 33, 64, 65, 127, 128})
      for (const std::int64_t inputs : {1, 3, 64, 250, 1000, 4096, 16384})
        for (const std::int64_t hidden : {1, 3, 4, 100, 257, 1500})
          for (const std::int64_t outputs : {1, 3, 16})
            for (const int bytes : {4, 8}) {
              const TwoLayerShape shape{batch, inputs, hidden, outputs, bytes};
              SCOPED_TRACE(text(shape));
              const auto decision = decide_two_layer(shape, device);
              if (!decision.fits()) continue;
              ++fitting;
              const TwoLayerLayout& layout = decision.layout;
              const std::int64_t columns = 4 * layout.tile_columns * layout.column_warps,
                                 blocks = layout.cluster_blocks();
              const std::int64_t rows = 8 * layout.tile_rows, units = layout.units, samples = layout.samples;
              EXPECT_GE(rows, batch);
              EXPECT_LE(layout.tile_rows * layout.tile_columns * bytes, 4 * kTileRegisters);
              EXPECT_EQ(layout.inputs, inputs);
              EXPECT_GE(blocks * layout.columns, inputs);
              EXPECT_GE(columns, layout.columns);
              EXPECT_LE(layout.column_warps, 8);
              EXPECT_GE(layout.owners * samples, batch);
              EXPECT_LT((layout.owners - 1) * samples, batch);
              EXPECT_LE(layout.owners, blocks);
              EXPECT_LE(layout.clusters, device.resident_clusters[static_cast<std::size_t>(layout.cluster_log2)]);
              EXPECT_EQ(layout.publishers, layout.clusters);
              EXPECT_LE(layout.lanes_log2, 3);
              // Every hidden unit has one owner, and every owner a unit.
              EXPECT_EQ(units, layout.groups * units_in_group(bytes));
              EXPECT_GE(layout.clusters * units, hidden);
              EXPECT_LT((layout.clusters - 1) * units, hidden);
              EXPECT_EQ(layout.threads, 256);
              EXPECT_LE(layout.shared_bytes, device.shared_bytes);
              EXPECT_GT(layout.estimated_us, 0.5);
              EXPECT_LE(layout.direct ? layout.publishers : 0, 32);
              expect_apart({{layout.weight_at, units * columns * bytes},
                            {layout.partial_at,
                             layout.groups_at_once * units_in_group(bytes) * layout.column_warps * rows * bytes},
                            {layout.received_at, blocks * units * (layout.direct ? 32 : samples) * bytes},
                            {layout.hidden_at, units * samples * bytes},
                            {layout.dz_at, units * rows * bytes},
                            {layout.gradient_at, samples * outputs * bytes},
                            {layout.target_at, samples * outputs * bytes},
                            {layout.output_weight_at, units * outputs * bytes},
                            {layout.output_bias_at, outputs * bytes},
                            {layout.sums_at, layout.direct ? 6 * 32 * bytes : blocks * (units + 1) * outputs * bytes},
                            {layout.loss_at, blocks * 8},
                            {layout.barriers_at, 3 * 8},
                            {layout.failed_at, 2 * 4},
                            {layout.deadline_at, 16}},
                           layout.shared_bytes);
            }
  EXPECT_GT(fitting, 500);
}

TEST(TwoLayerLayout, InGramHoldsAllThereIsWithinTheDevice) {
  int fitting = 0;
  for (const TwoLayerDevice& device : {kHopper, kTuring})
    for (const std::int64_t batch : {1, 5, 31, 32, 33, 64, 65, 127, 128})
      for (const std::int64_t hidden : {1, 3, 4, 100, 257, 1500})
        for (const std::int64_t outputs : {1, 3, 16})
          for (const int bytes : {4, 8}) {
            const TwoLayerShape shape{batch, 1, hidden, outputs, bytes};
            SCOPED_TRACE(text(shape));
            const auto decision = decide_gram_two_layer(shape, device);
            if (!decision.fits()) continue;
            ++fitting;
            const GramTwoLayerLayout& layout = decision.layout;
            if (layout.direct) {
              EXPECT_GE(layout.tile_columns * 32, batch);
              EXPECT_GE(layout.samples * 4, batch);
              EXPECT_GT(batch, layout.samples * 3);
              EXPECT_GE(layout.samples, 13);
              EXPECT_LE(layout.blocks, 4 * device.resident_clusters[2]);
              expect_publishers(layout.output, layout.blocks / 4, hidden);
              expect_apart({{layout.received_dz_at, 2 * 128 * 4 * bytes},
                            {layout.received_sums_at, 2 * 6 * 32 * bytes},
                            {layout.barriers_at, 4 * 8},
                            {layout.output.deadline_at, 16}},
                           layout.shared_bytes);
              continue;
            }
            EXPECT_TRUE(layout.tile_columns == 2 || layout.tile_columns == 4 || layout.tile_columns == 8);
            EXPECT_GE(layout.tile_columns * kGramColumnLanes, batch);
            EXPECT_EQ(layout.output.dz_rows, layout.tile_columns * kGramColumnLanes);
            EXPECT_GE(layout.row_warps * 8, batch);
            EXPECT_GE(layout.threads, 32 * layout.row_warps);
            EXPECT_LE(layout.threads, kTwoLayerThreads);
            EXPECT_LE(layout.blocks, device.resident_clusters[0]);
            expect_publishers(layout.output, layout.blocks, hidden);
            EXPECT_LE(layout.shared_bytes, device.shared_bytes);
            std::vector<Piece> pieces = pieces_of(layout.output, kGramUnitsInGroup, bytes);
            pieces.emplace_back(layout.z_at, layout.output.units * batch * bytes);
            pieces.emplace_back(layout.sum_at, layout.output.units * batch * bytes);
            expect_apart(std::move(pieces), layout.shared_bytes);
          }
  EXPECT_GT(fitting, 200);
}

TEST(TwoLayerLayout, NeedsNoClusterWhereOneBlockHoldsTheInputs) {
  const auto decision = decide_two_layer({32, 500, 30, 1, 4}, kTuring);
  ASSERT_TRUE(decision.fits()) << decision.refusal;
  EXPECT_EQ(decision.layout.cluster_blocks(), 1);
}

TEST(TwoLayerLayout, ARefusalSaysWhatIsNeededAndWhatThereIs) {
  const auto refusal = [](const TwoLayerShape& shape, const TwoLayerDevice& device) {
    return decide_two_layer(shape, device).refusal;
  };
  EXPECT_EQ(refusal({129, 10, 10, 1, 4}, kHopper), "the two-layer form takes at most 128 samples, and these are 129");
  EXPECT_EQ(refusal({128, 10, 10, 17, 4}, kHopper), "the two-layer form takes at most 16 outputs, and these are 17");
  EXPECT_EQ(refusal({128, 1000, 100, 1, 4}, kTuring),
            "1000 inputs of 128 samples fill the registers of 4 blocks, a cluster of the device has at most 1");
  EXPECT_EQ(refusal({128, 5000, 100, 1, 4}, kHopper),
            "5000 inputs of 128 samples fill the registers of 20 blocks, a cluster of the device has at most 16");
  EXPECT_EQ(refusal({128, 1000, 100000, 1, 4}, kHopper),
            "100000 hidden units of 128 samples need at least 1137 clusters of 4 blocks, the device runs 30 at once");
  EXPECT_EQ(refusal({128, 250, 10, 1, 4}, {24 << 10, {40, 0, 0, 0, 0}}),
            "10 hidden units of 128 samples need at least 27.1 KiB of shared memory a block, the device gives it "
            "24.0 KiB");
  // Sizes far beyond any device are refused as well, not computed with.
  EXPECT_MENTIONS(refusal({128, 2147483647, 2147483647, 16, 8}, kHopper), "2147483647 inputs");
  EXPECT_MENTIONS(refusal({1, 1, 2147483647, 1, 8}, kHopper), "2147483647 hidden units");
  EXPECT_MENTIONS(refusal({1, 1, 1, 1, 4}, TwoLayerDevice{}), "a cluster of the device has at most 0");

  EXPECT_EQ(decide_gram_two_layer({129, 10, 10, 1, 4}, kHopper).refusal,
            "the two-layer form takes at most 128 samples, and these are 129");
  EXPECT_MENTIONS(decide_gram_two_layer({128, 10, 2147483647, 1, 4}, kHopper).refusal,
                  "blocks, the device runs 132 at once");
}

}  // namespace
}  // namespace deviceloop::cuda
