// How the fused kernel shares a step among blocks and warpgroups, on GPUs that are plain data.
#include "planning/fused_layout.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/refusal.h"

namespace deviceloop::cuda {
namespace {

/// Each of so many square layers has a gradient group, with no more groups than needed, and a block has room for all.
void expect_block_has_all(const FusedLayout& layout, int layers) {
  EXPECT_GE(layout.groups * layout.slabs_of_group, layers * layout.panels);
  EXPECT_LT((layout.groups - 1) * layout.slabs_of_group, layers * layout.panels);
  for (int layer = 0; layer < layers; ++layer) {
    const int group = layout.group_of(layer), first = layout.first_layer(group);
    EXPECT_TRUE(group >= 0 && group < layout.groups) << layer;
    EXPECT_TRUE(first <= layer && (layer - first) * layout.panels < layout.slabs_of_group) << layer;
  }
  EXPECT_LE(layout.threads(), 512);
  EXPECT_LE(layout.shared_bytes, 227 << 10);
}

TEST(FusedLayout, FitsForAllDepthsAndBatches) {
  for (const int panels : {1, 2})
    for (int hidden = 1; hidden <= (panels == 1 ? kFusedHidden : 2); ++hidden)
      for (const std::int64_t rows :
           {std::int64_t{1}, std::int64_t{64}, std::int64_t{8448}, std::int64_t{8449}, std::int64_t{1} << 33}) {
        SCOPED_TRACE(std::to_string(hidden) + " hidden layers, panels " + std::to_string(panels) + ", rows " +
                     std::to_string(rows));
        std::vector<std::int64_t> widths(static_cast<std::size_t>(hidden) + 2, 64 * panels);
        widths.back() = 1;
        const FusedDecision decision = decide_fused({rows, widths}, {});
        ASSERT_EQ(decision.refusal, "");
        const FusedLayout& layout = decision.layout;
        EXPECT_EQ(layout.panels, panels);
        EXPECT_EQ(layout.tiles, (rows + 63) / 64);
        EXPECT_EQ(layout.blocks, layout.tiles < 132 ? layout.tiles : 132);
        expect_block_has_all(layout, hidden);
        EXPECT_EQ(layout.biases_at, hidden * panels * panels * 8192 + panels * 2048);
        EXPECT_GE(layout.stages_at, layout.operand_bytes());
        EXPECT_EQ(layout.stages_at % 1024, 0);
        EXPECT_EQ(layout.stage_bytes() % 1024, 0);
        EXPECT_GE(layout.control_at, layout.stages_at + layout.chains * layout.stages * layout.stage_bytes());
        EXPECT_EQ(layout.control_at % 8, 0);
        EXPECT_EQ(layout.samples_at % 8, 0);
        EXPECT_FALSE(layout.gathers());
        EXPECT_EQ(layout.data_tiles(), layout.tiles);
        EXPECT_GT(layout.estimated_us, 0);
        const int width = 64 * panels;
        EXPECT_EQ(layout.slots().count(), hidden * (width * width / 4 + width / 4) + width * 8 / 4 + 8 / 4);
        EXPECT_EQ(layout.computing_threads() % layout.sum_lanes, 0);
        EXPECT_TRUE(layout.chains == 1 || layout.tiles > layout.blocks) << "a second chain would have no tile";
      }
  EXPECT_EQ(decide_fused({8449, {64, 64, 64, 1}}, {}).layout.chains, 2);
  EXPECT_EQ(decide_fused({8449, {64, 64, 64, 1}}, {}).layout.stages, 2);
  EXPECT_EQ(decide_fused({8449, {64, 64, 64, 64, 64, 1}}, {}).layout.chains, 2);
}

TEST(FusedLayout, HasColumnsForTheOutputs) {
  for (const bool gathers : {false, true})
    for (const int panels : {1, 2})
      for (const std::int64_t outputs : {8, 9, 16, 17, 64, 65, 128}) {
        const int of_outputs = outputs > 64 ? 2 : panels, width = 64 * of_outputs;
        for (int hidden = 1; hidden <= (of_outputs == 1 ? 8 : 2) - (outputs > 16 ? 1 : 0); ++hidden) {
          // Whether the last layer is one of the others.
          const int square = outputs > 16 || (outputs > 8 && of_outputs == 2 && hidden == 1) ? 1 : 0;
          SCOPED_TRACE(std::to_string(hidden) + " hidden layers, panels " + std::to_string(panels) + ", outputs " +
                       std::to_string(outputs));
          std::vector<std::int64_t> widths(static_cast<std::size_t>(hidden) + 2, 64 * panels);
          widths.back() = outputs;
          const FusedDecision decision = decide_fused({20000, widths, Precision::bf16, gathers ? 65000 : 0}, {});
          ASSERT_EQ(decision.refusal, "");
          const FusedLayout& layout = decision.layout;
          const int columns = square != 0 ? width : outputs <= 8 ? 8 : 16, layers = hidden + square;
          const int last = square != 0 ? 0 : columns;
          EXPECT_EQ(layout.panels, of_outputs);
          EXPECT_EQ(layout.output_columns, columns);
          EXPECT_EQ(layout.square_layers(), layers);
          EXPECT_EQ(layout.slots().count(), layers * (width * width / 4 + width / 4) + width * last / 4 + last / 4);
          EXPECT_EQ(layout.biases_at, layers * width * width * 2 + (last > 0 ? width * 16 * 2 : 0));
          EXPECT_EQ(layout.operand_bytes(), layout.biases_at + (layers * width + last) * 4);
          // Inputs, hidden layers and gradients.
          EXPECT_EQ(layout.stage_bytes(), (1 + hidden + layers) * 64 * width * 2 + 64 * last * 2);
          expect_block_has_all(layout, layers);
          if (of_outputs == 2 && outputs > 8) {
            EXPECT_TRUE(layout.groups == 2 && layout.chains == 1) << "the kernel takes it for granted";
          }
          EXPECT_EQ(describe(layout).find("and outputs of ") != std::string::npos, square != 0);
        }
      }
  const auto us = [](const std::vector<std::int64_t>& widths) {
    return decide_fused({1 << 20, widths}, {}).layout.estimated_us;
  };
  EXPECT_NEAR(us({64, 64, 64, 16}) / us({64, 64, 64, 8}), 1, 0.01);
  EXPECT_NEAR(us({64, 64, 64, 17}) / us({64, 64, 64, 8}), 8.0 / 5, 0.1);
  EXPECT_EQ(decide_fused({64, {64, 64, 32}}, {}).layout.padding, 0.25);
}

TEST(FusedLayout, FitsInTf32ForAllDepthsAndBatches) {
  struct Case {
    Precision precision;
    int panels, most_hidden, most_with_two_chains;
  };
  for (const Case& each : {Case{Precision::tf32, 1, 6, 6}, Case{Precision::tf32, 2, 4, 3},
                           Case{Precision::tf32x3, 1, 6, 4}, Case{Precision::tf32x3, 2, 2, 1}})
    for (int hidden = 1; hidden <= each.most_hidden; ++hidden)
      for (const std::int64_t rows :
           {std::int64_t{1}, std::int64_t{64}, std::int64_t{8448}, std::int64_t{8449}, std::int64_t{1} << 33}) {
        const int parts = each.precision == Precision::tf32 ? 1 : 2, width = 32 * each.panels;
        SCOPED_TRACE(std::to_string(hidden) + " hidden layers, width " + std::to_string(width) + ", parts " +
                     std::to_string(parts) + ", rows " + std::to_string(rows));
        std::vector<std::int64_t> widths(static_cast<std::size_t>(hidden) + 2, width - 31);
        widths[0] = width;
        widths.back() = 8;
        const FusedDecision decision = decide_fused({rows, widths, each.precision}, {});
        ASSERT_EQ(decision.refusal, "");
        const FusedLayout& layout = decision.layout;
        EXPECT_EQ(layout.precision, each.precision);
        EXPECT_EQ(layout.parts, parts);
        EXPECT_EQ(layout.width(), width);
        EXPECT_EQ(layout.tile_bytes(), 64 * width * 4);
        EXPECT_EQ(layout.groups, 1);
        EXPECT_EQ(layout.chains, hidden <= each.most_with_two_chains ? 2 : 1);
        EXPECT_EQ(layout.threads(), 128 * (layout.chains + 2));
        EXPECT_LE(layout.shared_bytes, 227 << 10);
        // Weights forward and back; the last layer's forward as 8 rows and back as rows of 128 bytes.
        EXPECT_EQ(layout.biases_at, parts * ((2 * hidden - 1) * width * width * 4 + 8 * width * 4) + width * 128);
        EXPECT_GE(layout.stages_at, layout.biases_at + (hidden * width + 8) * 4);
        // Of each chain the hidden layers, the outputs' gradients and the inputs, none over another.
        EXPECT_EQ(layout.sums_at(), layout.stages_at);
        int end = layout.stages_at;
        for (int chain = 0; chain < layout.chains; ++chain) {
          end += parts * (hidden * layout.tile_bytes() + 2048);
          for (int stage = 0; stage < layout.stages; ++stage, end += layout.tile_bytes()) {
            EXPECT_EQ(layout.input_at(chain, stage), end);
            EXPECT_EQ(end % 1024, 0);
          }
        }
        EXPECT_EQ(layout.masks_at, end);
        EXPECT_EQ(layout.control_at, end + layout.chains * hidden * 128 * 4);
        EXPECT_EQ(layout.shared_bytes, layout.control_at + kFusedControlBytes);
        EXPECT_EQ(layout.slots().count(),
                  hidden * (64 * width / 4 + width / 4) + 64 * 8 / 4 + 8 / 4);  // of a slab of 64 rows
        EXPECT_LE(layout.computing_threads() * 16, layout.tile_bytes()) << "sums of slots";
      }
  EXPECT_EQ(decide_fused({8449, {64, 64, 64, 1}, Precision::tf32}, {}).layout.stages, 2);
  EXPECT_EQ(decide_fused({8449, {64, 64, 64, 1}, Precision::tf32x3}, {}).layout.stages, 2);
}

TEST(FusedLayout, AlsoFitsWhereItGathersRows) {
  for (const int panels : {1, 2})
    for (int hidden = 1; hidden <= (panels == 1 ? kFusedHidden : 2); ++hidden)
      for (const std::int64_t rows : {1, 64, 256, 20000}) {
        std::vector<std::int64_t> widths(static_cast<std::size_t>(hidden) + 2, 64 * panels);
        widths.back() = 1;
        const FusedDecision decision = decide_fused({rows, widths, Precision::bf16, 65000}, {});
        ASSERT_EQ(decision.refusal, "") << hidden << " hidden layers, panels " << panels << ", rows " << rows;
        const FusedLayout& layout = decision.layout;
        EXPECT_TRUE(layout.gathers());
        EXPECT_EQ(layout.tiles, (rows + 63) / 64);
        EXPECT_EQ(layout.data_rows(), 65000);
        EXPECT_EQ(layout.data_tiles(), 1016);
        EXPECT_LE(layout.chains * layout.stages, kFusedFetchingWarps);
        EXPECT_GE(layout.shared_bytes, layout.samples_at + (layout.chains * layout.stages + 4) * 64 * 8);
        EXPECT_LE(layout.shared_bytes, 227 << 10);
      }
}

/// An H100, as far as the planner knows.
FusedDevice hopper() {
  FusedDevice device;
  device.resident_clusters = {132, 66, 30, 15, 7};
  return device;
}

void expect_fits(const FusedLayout& layout) {
  const int blocks = 1 << layout.cluster_log2;
  EXPECT_EQ(layout.blocks, layout.clusters * blocks);
  EXPECT_LE(layout.clusters, hopper().resident_clusters[static_cast<std::size_t>(layout.cluster_log2)]);
  EXPECT_TRUE(layout.clusters == 1 || blocks >= 4);
  EXPECT_LT((layout.clusters - 1) * blocks, layout.tiles) << "a cluster without a tile";
  EXPECT_LE(layout.threads(), 512);
  EXPECT_GE(layout.groups * layout.slabs_of_group, layout.hidden * layout.panels);
  EXPECT_TRUE(layout.slabs_of_group == 2 || layout.slabs_of_group == 4) << "what there are kernels for";
  // Units have all fours, and a block room for its own.
  EXPECT_GE(layout.units * 32, layout.slots().count());
  EXPECT_LT((layout.units - 1) * 32, layout.slots().count());
  EXPECT_GE(layout.owned_units * blocks, layout.units);
  EXPECT_LT((layout.owned_units - 1) * blocks, layout.units);
  // Nothing lies over another.
  const int samples = layout.gathers() ? (layout.chains * layout.stages + 4) * 64 * 8 : 0;
  EXPECT_GE(layout.sums_received_at, layout.samples_at + samples);
  EXPECT_EQ(layout.sums_received_at % 16, 0);
  EXPECT_EQ(layout.parameters_at, layout.sums_received_at + blocks * layout.owned_units * 512);
  EXPECT_EQ(layout.cluster_control_at, layout.parameters_at + 3 * layout.owned_units * 512);
  EXPECT_EQ(layout.shared_bytes, layout.cluster_control_at + kFusedClusterControlBytes);
  EXPECT_LE(layout.shared_bytes, 227 << 10);
  EXPECT_EQ(layout.cluster_words, blocks * layout.owned_units * 32 + 1);
  EXPECT_EQ(layout.tagged_units(), layout.clusters == 1 ? 0 : 2 * layout.clusters * layout.cluster_words);
  EXPECT_LE(layout.tagged_units(), layout.most_tagged_units(layout.tiles < 132 ? layout.tiles : 132));
}

TEST(FusedLayout, SmallBatchesAreOfClustersWhereTheirSharesFit) {
  for (const std::int64_t samples : {0, 65536})
    for (const std::int64_t rows : {1, 64, 65, 256, 300, 512, 1000, 1024, 1025, 2048, 4096, 8192})
      for (int hidden = 1; hidden <= kFusedHidden; ++hidden) {
        SCOPED_TRACE(std::to_string(rows) + " rows, hidden layers " + std::to_string(hidden));
        std::vector<std::int64_t> widths(static_cast<std::size_t>(hidden) + 2, 64);
        widths.back() = 1;
        const FusedLayout layout = decide_fused({rows, widths, Precision::bf16, samples}, hopper()).layout;
        const FusedLayout of_slots = decide_fused({rows, widths, Precision::bf16, samples}, {}).layout;
        EXPECT_EQ(of_slots.clusters, 0);
        EXPECT_LE(layout.estimated_us, of_slots.estimated_us);
        if (hidden <= 4 && rows <= 4096) {
          EXPECT_GT(layout.clusters, 0);
        }
        if (layout.clusters == 0) continue;
        EXPECT_LT(layout.estimated_us, of_slots.estimated_us);
        expect_fits(layout);
      }
  // A wide first layer, of which a block has no room for much.
  const FusedLayout wide = decide_fused({1024, {100, 128, 1}}, hopper()).layout;
  EXPECT_EQ(wide.clusters, 1);
  EXPECT_EQ(wide.cluster_blocks(), 16);
  expect_fits(wide);
  EXPECT_EQ(decide_fused({1024, {128, 128, 128, 1}}, hopper()).layout.clusters, 0);
  EXPECT_EQ(decide_fused({1024, {64, 64, 64, 1}, Precision::tf32}, hopper()).layout.clusters, 0);
}

TEST(FusedLayout, ClustersGrowWithTheBatchAndEndWhereSlotsAreFaster) {
  const auto layout_of = [](std::int64_t rows, const FusedDevice& device = hopper()) {
    return decide_fused({rows, {64, 64, 64, 1}, Precision::bf16, 65536}, device).layout;
  };
  const auto expect = [&](std::int64_t rows, int clusters, int blocks) {
    EXPECT_EQ(layout_of(rows).clusters, clusters) << rows;
    EXPECT_EQ(layout_of(rows).cluster_blocks(), blocks) << rows;
  };
  // Blocks without a tile still update a share of the parameters.
  expect(64, 1, 16);
  expect(1024, 1, 16);
  expect(4096, 4, 16);
  EXPECT_EQ(layout_of(1 << 20).clusters, 0);
  // Where there are fewer clusters than would be best, those that there are.
  FusedDevice device = hopper();
  device.resident_clusters = {132, 66, 30, 15, 0};
  EXPECT_EQ(layout_of(4096, device).cluster_blocks(), 8);
  device.resident_clusters = {132, 66, 30, 0, 0};
  EXPECT_EQ(layout_of(512, device).cluster_blocks(), 4);
  device.resident_clusters = {};
  EXPECT_EQ(layout_of(512, device).clusters, 0);
  EXPECT_MENTIONS(describe(layout_of(1024)),
                  "1 cluster of 16 blocks of 384 threads, which keeps the parameters on chip;");
  EXPECT_MENTIONS(describe(layout_of(4096)),
                  "4 clusters of 16 blocks of 384 threads, which keep the parameters on chip and exchange sums;");
}

TEST(FusedLayout, EachPhaseHasAName) {
  EXPECT_EQ(std::string(name(FusedPhase::kSums)), "sums of the cluster's blocks");
  EXPECT_EQ(std::string(name(FusedPhase::kClusters)), "sums of other clusters");
  EXPECT_EQ(std::string(name(FusedPhase::kOperands)), "new parameters");
}

TEST(FusedLayout, RefusesInOneSentence) {
  const auto refusal_of = [](const std::vector<std::int64_t>& widths, const FusedDevice& device = {},
                             Precision precision = Precision::bf16) {
    return decide_fused({1000, widths, precision}, device).refusal;
  };
  FusedDevice older, smaller;
  older.compute_capability = 89;
  smaller.shared_bytes = 48 << 10;
  EXPECT_MENTIONS(refusal_of({64, 64, 1}, older), "compute capability 9.0, and the GPU has 8.9");
  EXPECT_MENTIONS(refusal_of({64, 64, 64, 1}, smaller), "bytes of shared memory, and a block has 49152");
  EXPECT_MENTIONS(refusal_of({64, 64, 64, 1}, smaller, Precision::tf32x3), "of shared memory, and a block has 49152");
  EXPECT_MENTIONS(refusal_of({64, 1}), "1 to 8 hidden layers of that width in bf16, and there are 0");
  EXPECT_MENTIONS(refusal_of(std::vector<std::int64_t>(11, 1)),
                  "1 to 8 hidden layers of that width in bf16, and there");
  EXPECT_MENTIONS(refusal_of({64, 65, 64, 64, 1}), "1 to 2 hidden layers of that width in bf16, and there are 3");
  EXPECT_MENTIONS(refusal_of(std::vector<std::int64_t>(7, 33), {}, Precision::tf32),
                  "1 to 4 hidden layers of that width in tf32, and there are 5");
  EXPECT_MENTIONS(refusal_of(std::vector<std::int64_t>(9, 32), {}, Precision::tf32x3),
                  "1 to 6 hidden layers of that width in tf32x3, and there are 7");
  EXPECT_MENTIONS(refusal_of({64, 64, 64, 64, 1}, {}, Precision::tf32x3),
                  "1 to 2 hidden layers of that width in tf32x3, and there are 3");
  EXPECT_MENTIONS(refusal_of({64, 129, 1}), "at most 128 values in bf16, and one has 129");
  EXPECT_MENTIONS(refusal_of({65, 64, 1}, {}, Precision::tf32), "at most 64 values in tf32, and one has 65");
  EXPECT_MENTIONS(refusal_of({784, 64, 1}), "at most 128 values in bf16, and one has 784");
  EXPECT_MENTIONS(refusal_of({64, 64, 129}), "at most 128 outputs in bf16, and there are 129");
  EXPECT_MENTIONS(refusal_of({64, 64, 10}, {}, Precision::tf32), "at most 8 outputs in tf32, and there are 10");
  EXPECT_MENTIONS(refusal_of({9, 9, 9, 9, 9, 9, 9, 9, 9, 17}),
                  "it takes 1 to 7 hidden layers of that width before more than 16 outputs in bf16, and there are 8");
  EXPECT_MENTIONS(refusal_of({9, 128, 128, 17}),
                  "it takes 1 hidden layer of that width before more than 16 outputs in bf16, and there are 2");
  EXPECT_MENTIONS(refusal_of({9, 64, 64, 65}),
                  "it takes 1 hidden layer before more than 64 outputs in bf16, and there are 2");
  EXPECT_MENTIONS(refusal_of({64, 64, 1}, {}, Precision::fp32), "in bf16, tf32 and tf32x3, not in fp32");
}

}  // namespace
}  // namespace deviceloop::cuda
