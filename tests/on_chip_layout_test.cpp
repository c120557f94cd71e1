// The decomposition of the kernel that keeps parameters on chip: what it decides for known networks, that each layout
// has room for all it must hold, and what a refusal says.
#include "planning/on_chip_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "elementwise.h"
#include "support/refusal.h"
#include "text.h"

namespace deviceloop::cuda {
namespace {

const OnChipDevice kHopper{227 << 10, {132, 66, 30, 15, 7}};
const OnChipDevice kOneCluster{227 << 10, {1, 1, 1, 1, 1}};
const OnChipDevice kTuring{64 << 10, {1, 0, 0, 0, 0}};

TEST(OnChipLayout, OfASmallNetworkTakesAClusterOfSixteen) {
  const OnChipDecision decision = decide_on_chip({256, {64, 64, 64, 1}, true, 4, 2}, kHopper);
  ASSERT_EQ(decision.refusal, "");
  const OnChipLayout& layout = decision.layout;
  EXPECT_EQ(layout.blocks(), 16);
  EXPECT_EQ(layout.rows, 16);
  EXPECT_EQ(layout.layer[0].units, 65 * 16);
  EXPECT_EQ(layout.layer[0].owned, 65);
  EXPECT_EQ(layout.layer[2].units, 65);
  EXPECT_EQ(layout.owned, 65 + 65 + 5);
  // All threads have a tile of each large product.
  EXPECT_EQ(layout.layer[1].forward.tiles * layout.layer[1].forward.slices, kOnChipThreads);
  EXPECT_EQ(layout.layer[1].weight_gradient.tiles * layout.layer[1].weight_gradient.slices, kOnChipThreads);
  EXPECT_EQ(layout.layer[2].forward.slices, 16);
  EXPECT_EQ(describe(layout),
            "one cluster of 16 blocks that keeps all parameters on chip, 99.9 KiB of shared memory each; a block has "
            "16 rows of a step");
}

// The figures of a prototype, until the kernel's own are there.
TEST(OnChipLayout, EstimatesWhatAPrototypeTook) {
  const OnChipShape shape{256, {64, 64, 64, 1}, true, 4, 2};
  EXPECT_NEAR(make_on_chip(shape, 4).estimated_us, 7.3, 0.7);
  EXPECT_NEAR(make_on_chip(shape, 3).estimated_us, 11.8, 1.2);
  const OnChipShape of_three{256, {64, 64, 64, 1}, true, 4, 2, false, 1, true};
  EXPECT_NEAR(make_on_chip(of_three, 4).estimated_us, 4.98, 0.5);
  EXPECT_NEAR(make_on_chip(of_three, 3).estimated_us, 6.19, 0.6);
}

// Its weight alone is too large for a block.
TEST(OnChipLayout, OfAWideFirstLayerSplitsItByItsInputs) {
  const OnChipDecision decision = decide_on_chip({64, {784, 128, 10}, true, 4, 2, true, 1}, kOneCluster);
  ASSERT_EQ(decision.refusal, "");
  const OnChipLayout& layout = decision.layout;
  EXPECT_TRUE(layout.by_inputs);
  EXPECT_EQ(layout.blocks(), 16);
  EXPECT_EQ(layout.rows, 4);
  EXPECT_EQ(layout.layer[0].in, 52);
  EXPECT_EQ(layout.input_blocks, 16);  // the last has four inputs and the bias
  EXPECT_EQ(layout.layer[0].owned, 52 * 32);
  EXPECT_EQ(layout.layer[1].units, 129 * 3);
  EXPECT_GT(layout.shared_bytes, 200 << 10);
  EXPECT_EQ(describe(layout),
            "one cluster of 16 blocks that keeps all parameters on chip, " +
                bytes_text(static_cast<std::uint64_t>(layout.shared_bytes)) +
                " of shared memory each; a block has 52 inputs of the first layer and 4 rows of a step");
  // Where all parameters fit and the first layer is no wider than the others, its rows are split as theirs.
  EXPECT_FALSE(decide_on_chip({256, {64, 64, 64, 1}, true, 4, 2}, kHopper).layout.by_inputs);
}

// What one cluster has too few blocks or too little memory for.
TEST(OnChipLayout, OfALargerBatchTakesSeveralClusters) {
  const OnChipLayout small = decide_on_chip({256, {64, 64, 64, 1}, true, 4, 2}, kHopper).layout;
  EXPECT_EQ(small.clusters, 1);
  EXPECT_EQ(small.tagged_units(), 0);
  const OnChipShape shape{4096, {64, 64, 64, 1}, true, 4, 2};
  const OnChipDecision decision = decide_on_chip(shape, kHopper);
  ASSERT_EQ(decision.refusal, "");
  const OnChipLayout& layout = decision.layout;
  EXPECT_GT(layout.clusters, 1);
  EXPECT_LE(layout.all_blocks(), 132);
  EXPECT_EQ(layout.cluster_rows, divide_up(4096, layout.clusters));
  EXPECT_EQ(layout.rows, divide_up(layout.cluster_rows, layout.blocks()));
  EXPECT_EQ(layout.tagged_units(), (layout.clusters + 1) * layout.blocks() * layout.owned);
  EXPECT_LE(layout.owned, layout.updated * layout.clusters);
  // Goals for a GPU that has not been asked yet.
  EXPECT_LT(layout.estimated_us, 20);
  EXPECT_LT(decide_on_chip({1024, {64, 64, 64, 1}, true, 4, 2}, kHopper).layout.estimated_us, 12);
  // One cluster has no room for it.
  EXPECT_MENTIONS(decide_on_chip(shape, kOneCluster).refusal,
                  " of a block's shared memory, of which there are 227.0 KiB");
  // No other number of clusters is estimated to be faster.
  for (int log2 = 0; log2 <= 4; ++log2)
    for (int clusters = 1; clusters <= kHopper.resident_clusters[static_cast<std::size_t>(log2)]; ++clusters) {
      const OnChipLayout other = make_on_chip(shape, log2, false, clusters);
      EXPECT_TRUE(other.estimated_us >= layout.estimated_us || other.shared_bytes > kHopper.shared_bytes ||
                  (clusters - 1) * other.cluster_rows >= 4096)
          << clusters << " of " << (1 << log2);
    }
  EXPECT_EQ(describe(make_on_chip(shape, 4, false, 7)),
            "7 clusters of 16 blocks that keep all parameters on chip each and exchange sums of gradients, " +
                bytes_text(static_cast<std::uint64_t>(make_on_chip(shape, 4, false, 7).shared_bytes)) +
                " of shared memory a block, which has 37 rows of a step");
}

// Each block keeps what the optimizer keeps for the units that its cluster updates, and no more; it and the gradient of
// all units would not fit.
TEST(OnChipLayout, OfAWideFirstLayerSeveralClustersDivideTheOptimizersNumbers) {
  const OnChipShape shape{512, {784, 128, 10}, true, 4, 2, true, 1};
  EXPECT_MENTIONS(decide_on_chip(shape, kOneCluster).refusal,
                  "the first layer's split over the blocks by its inputs, and a block's share of a step, take ");
  for (const bool tf32x3 : {false, true}) {
    OnChipShape of_precision = shape;
    of_precision.tf32x3 = tf32x3;
    const OnChipDecision decision = decide_on_chip(of_precision, kHopper);
    ASSERT_EQ(decision.refusal, "");
    EXPECT_TRUE(decision.layout.by_inputs);
    EXPECT_GT(decision.layout.clusters, 1);
  }
  const OnChipLayout seven = make_on_chip(shape, 4, true, 7);
  EXPECT_EQ(seven.updated, divide_up(seven.owned, 7));
  EXPECT_LE(seven.shared_bytes, kHopper.shared_bytes);
  EXPECT_GT(seven.shared_bytes + 3 * (seven.owned - seven.updated) * 16, kHopper.shared_bytes);
}

// Words between clusters take longer the more there are.
TEST(OnChipLayout, EstimatesOfClustersGrowWithWhatTheyExchange) {
  const auto exchange_us = [](std::vector<std::int64_t> widths, int clusters) {
    // The same rows of a block.
    const OnChipShape of_one{16, widths, true, 4, 2}, of_all{16 * clusters, widths, true, 4, 2};
    return make_on_chip(of_all, 3, false, clusters).estimated_us - make_on_chip(of_one, 3).estimated_us;
  };
  EXPECT_GE(exchange_us({64, 64, 1}, 2), 3);
  EXPECT_GT(exchange_us({64, 64, 1}, 7), exchange_us({64, 64, 1}, 2));
  EXPECT_GT(exchange_us({64, 64, 64, 1}, 7), exchange_us({64, 64, 1}, 7));
}

// Larger batches and wider first layers take longer, as each of the two is cut.
TEST(OnChipLayout, EstimatesGrowWithTheBatchAndTheInputs) {
  for (const bool by_inputs : {false, true})
    for (const int log2 : {1, 4}) {
      const auto us = [&](std::int64_t batch, std::int64_t inputs) {
        return make_on_chip({batch, {inputs, 64, 10}, true, 4, 2}, log2, by_inputs).estimated_us;
      };
      for (const std::int64_t n : {16, 64, 256, 1024}) {
        EXPECT_LE(us(n, 256), us(2 * n, 256));
        EXPECT_LE(us(64, n), us(64, 2 * n));
      }
      EXPECT_LT(us(16, 256), us(2048, 256));
      EXPECT_LT(us(64, 16), us(64, 2048));
    }
}

// Small products are faster without tensor cores, and fp32 has none unless they are asked for.
TEST(OnChipLayout, TakesTensorCoresForLargeProductsWhereTheyAreAskedFor) {
  OnChipShape shape{64, {784, 128, 10}, true, 4, 2, true, 1, true};
  const OnChipLayout layout = decide_on_chip(shape, kOneCluster).layout;
  EXPECT_EQ(layout.layer[0].forward.tensor_columns, 16);
  EXPECT_EQ(layout.layer[0].forward.tensor_tiles, 4 * 8);
  EXPECT_EQ(layout.layer[0].weight_gradient.tensor_columns, 16);
  EXPECT_EQ(layout.layer[1].forward.tensor_columns, 0);
  EXPECT_MENTIONS(describe(layout), " rows of a step; products by three in TF32 on tensor cores");
  shape.tf32x3 = false;
  const OnChipLayout plain = decide_on_chip(shape, kOneCluster).layout;
  for (int l = 0; l < plain.layers; ++l)
    for (const OnChipProduct& product :
         {plain.layer[l].forward, plain.layer[l].input_gradient, plain.layer[l].weight_gradient})
      EXPECT_EQ(product.tensor_columns, 0);
  EXPECT_LT(layout.estimated_us, 0.7 * plain.estimated_us);
  EXPECT_EQ(layout.shared_bytes, plain.shared_bytes);
}

// Tiles cover the results, and what takes whole units gets them.
TEST(OnChipLayout, CutsForTensorCoresCoverTheResults) {
  for (const std::int64_t width : {8, 33, 64, 130})
    for (const std::int64_t batch : {16, 70, 300})
      for (const bool by_inputs : {false, true}) {
        const OnChipLayout layout =
            make_on_chip({batch, {width, width, 40}, true, 4, 2, false, 40, true}, 2, by_inputs);
        for (int l = 0; l < layout.layers; ++l)
          for (const OnChipProduct* product :
               {&layout.layer[l].forward, &layout.layer[l].input_gradient, &layout.layer[l].weight_gradient}) {
            if (product->tensor_columns == 0) continue;
            const auto across = static_cast<int>(product->tensor_across.divisor);
            ASSERT_GE(across * product->tensor_columns, static_cast<int>(product->across.divisor) * kOnChipTile);
            ASSERT_GE(product->tensor_tiles / across * kOnChipTensorRows, product->tiles_down * kOnChipTile);
            ASSERT_EQ(product->tensor_tiles % across, 0);
            const bool in_units =
                product == &layout.layer[l].weight_gradient || (by_inputs && product == &layout.layer[0].forward);
            ASSERT_TRUE(product->tensor_columns == 16 || !in_units);
          }
      }
}

TEST(OnChipLayout, HasNoBlockWithoutARowWhereFewerWouldDo) {
  EXPECT_EQ(decide_on_chip({3, {5, 4, 1}, true, 4, 0}, kHopper).layout.blocks() <= 2, true);
  EXPECT_EQ(decide_on_chip({1, {5, 4, 1}, true, 4, 0}, kHopper).layout.blocks(), 1);
}

TEST(OnChipLayout, OneBlockDoesWhereThereAreNoClusters) {
  const OnChipDecision decision = decide_on_chip({32, {20, 16, 1}, true, 4, 2}, kTuring);
  ASSERT_EQ(decision.refusal, "");
  EXPECT_EQ(decision.layout.blocks(), 1);
  EXPECT_MENTIONS(describe(decision.layout), "one block that keeps all parameters on chip, ");
}

TEST(OnChipLayout, RefusesWhatDoesNotFit) {
  EXPECT_EQ(
      decide_on_chip({64, {784, 512, 10}, true, 4, 2}, kHopper).refusal.substr(0, 106),
      "the parameters, the first layer's split over the blocks by its inputs, and a block's share of a step, take");
  EXPECT_MENTIONS(decide_on_chip({64, {784, 512, 10}, true, 4, 2}, kHopper).refusal,
                  " of a block's shared memory, of which there are 227.0 KiB");
  EXPECT_EQ(decide_on_chip({32, {200, 160, 1}, true, 4, 2}, kTuring).refusal.substr(0, 53),
            "the parameters, and a block's share of a step, take 6");
  EXPECT_EQ(decide_on_chip({4, std::vector<std::int64_t>(10, 4), true, 4, 2}, kHopper).refusal,
            "the form 'on-chip' is for at most 8 layers, not 9");
  EXPECT_EQ(decide_on_chip({4, {1, 2147483647}, true, 4, 2}, kHopper).refusal,
            "the form 'on-chip' is for layers of at most 2048 units, not 2147483647");
  EXPECT_EQ(decide_on_chip({4, {2147483647, 1}, true, 4, 2}, kHopper).refusal,
            "the form 'on-chip' is for at most 2048 inputs for each block of a cluster, here together 8192, not "
            "2147483647");
  EXPECT_EQ(decide_on_chip({4, {2049, 1}, true, 4, 2}, kTuring).refusal,
            "the form 'on-chip' is for at most 2048 inputs for each block of a cluster, here together 2048, not 2049");
  EXPECT_EQ(decide_on_chip({100000, {4, 1}, true, 4, 2}, kOneCluster).refusal,
            "the form 'on-chip' is for at most 1024 samples a step for each of 16 blocks, not 100000");
}

TEST(OnChipLayout, DividesByMultiplying) {
  for (unsigned divisor = 1; divisor < 600; ++divisor) {
    const SmallDivisor by = SmallDivisor::of(divisor);
    for (unsigned n = 0; n < 1u << 15; n += 1 + divisor / 8) ASSERT_EQ(by.quotient(n), n / divisor) << divisor;
    for (unsigned k = 1; k * divisor < 1u << 15; ++k) ASSERT_EQ(by.quotient(k * divisor - 1), k - 1) << divisor;
  }
}

/// A place in shared memory and its end.
using Range = std::pair<std::int64_t, std::int64_t>;

std::vector<Range> ranges_of(const OnChipLayout& layout, std::int64_t element) {
  std::vector<Range> ranges;
  const auto add = [&](std::int64_t begin, std::int64_t bytes) { ranges.emplace_back(begin, begin + bytes); };
  const std::int64_t rows = layout.rows_padded;
  add(layout.input_at, 2 * layout.input_rows_padded * layout.input_stride * element);
  for (int l = 0; l < layout.layers; ++l) {
    const OnChipLayer& layer = layout.layer[l];
    add(layer.weight_at, (layer.in_padded + 1) * layer.weight_stride * element);
    if (layer.output_at >= 0) add(layer.output_at, rows * layer.out_stride * element);
    add(layer.gradient_at, rows * layer.out_stride * element);
    add(layer.received_at,
        (layout.by_inputs && l == 0 ? std::min(layer.owned, layout.updated) : layer.owned * layout.blocks()) * 16);
  }
  if (layout.by_inputs) {
    const OnChipLayer& first = layout.layer[0];
    add(layout.sums_at, layout.input_blocks * layout.rows * std::int64_t{first.units_across.divisor} * 16);
    add(layout.output_gradient_at, layout.input_rows_padded * first.out_stride * element);
  }
  add(layout.target_at, 2 * layout.rows * layout.target_columns * element);
  add(layout.row_weight_at, 2 * layout.rows * element);
  add(layout.state_at, layout.states * layout.updated * 16);
  add(layout.sample_at, layout.input_rows * 8);
  add(layout.scalars_at,
      element == 4 ? sizeof(elementwise::StepScalars<float>) : sizeof(elementwise::StepScalars<double>));
  add(layout.control_at, kOnChipControlBytes);
  return ranges;
}

TEST(OnChipLayout, HasRoomForAllThatItHolds) {
  for (const auto& widths : std::vector<std::vector<std::int64_t>>{
           {1, 1}, {3, 1}, {5, 4, 3}, {64, 64, 64, 1}, {17, 33, 10}, {8, 9, 7, 6, 2}, {120, 5, 40}})
    for (const int element : {4, 8})
      for (const std::int64_t batch : {1, 3, 16, 70, 1000})
        for (const bool by_row : {false, true})
          for (const int cut : {0, 1, 2, 3, 4, 5, 6, 7, 8}) {
            const int log2 = cut <= 4 ? cut : cut - 4;
            const bool by_inputs = cut > 4;
            const int clusters = batch > 16 ? 1 + cut % 3 * 3 : batch == 16 ? 1 + cut % 3 : 1;
            const OnChipShape shape{batch, widths, batch % 2 == 0, element, element == 4 ? 2 : 1, by_row, 3};
            const OnChipLayout layout = make_on_chip(shape, log2, by_inputs, clusters);
            std::vector<Range> ranges = ranges_of(layout, element);
            std::sort(ranges.begin(), ranges.end());
            std::int64_t end = 0;
            for (const Range& range : ranges) {
              ASSERT_GE(range.first, end);
              ASSERT_EQ(range.first % 16, 0);
              end = range.second;
            }
            ASSERT_LE(end, layout.shared_bytes);
            ASSERT_GE(std::int64_t{layout.rows} * layout.blocks(), layout.cluster_rows);
            ASSERT_GE(std::int64_t{layout.cluster_rows} * clusters, batch);
            ASSERT_LT(std::int64_t{layout.cluster_rows} * (clusters - 1), batch);
            ASSERT_EQ(layout.input_rows, by_inputs ? layout.cluster_rows : layout.rows);
            ASSERT_GE(layout.updated * clusters, layout.owned);
            const std::int64_t inputs = widths[0] + (by_inputs && shape.bias ? 1 : 0);
            if (by_inputs) {
              // All blocks with inputs have whole tiles of them but the last one.
              ASSERT_EQ(layout.layer[0].in % kOnChipTile, 0);
              ASSERT_LE(layout.input_blocks, layout.blocks());
              ASSERT_GE(std::int64_t{layout.input_blocks} * layout.layer[0].in, inputs);
              ASSERT_LT((layout.input_blocks - std::int64_t{1}) * layout.layer[0].in, inputs);
              ASSERT_EQ(layout.sums_bytes * layout.rows + layout.sums_at <= layout.shared_bytes, true);
            } else {
              ASSERT_EQ(layout.layer[0].in, inputs);
            }
            for (int l = 0; l < layout.layers; ++l) {
              const OnChipLayer& layer = layout.layer[l];
              // Rows begin at a unit, an odd number of them apart, and hold whole tiles.
              ASSERT_EQ(layer.out_stride * element / 16 % 2, 1);
              ASSERT_GE(layer.out_stride, divide_up(layer.out, kOnChipTile) * kOnChipTile);
              ASSERT_GE(layer.owned * (by_inputs && l == 0 ? 1 : layout.blocks()), layer.units);
              ASSERT_GE(layer.forward.tiles_down * kOnChipTile, l == 0 ? layout.input_rows : layout.rows);
              ASSERT_GE(layer.weight_gradient.inner * kOnChipTile, l == 0 ? layout.input_rows : layout.rows);
              ASSERT_TRUE(!by_inputs || l > 0 || layer.forward.slices <= 4);
              ASSERT_GE(layer.forward.inner * kOnChipTile, layer.in);
              ASSERT_LE(layer.weight_gradient.slices, 4);
              ASSERT_EQ(layer.output_at >= 0, by_row || l + 1 < layout.layers);
            }
          }
}

}  // namespace
}  // namespace deviceloop::cuda
