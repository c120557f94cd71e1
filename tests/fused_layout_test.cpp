// How the fused kernel shares a step among blocks and warpgroups, on GPUs that are plain data.
#include "planning/fused_layout.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/refusal.h"

namespace deviceloop::cuda {
namespace {

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
        EXPECT_GE(layout.groups * layout.slabs_of_group, hidden * panels);
        EXPECT_LT((layout.groups - 1) * layout.slabs_of_group, hidden * panels);
        for (int layer = 0; layer < hidden; ++layer) {
          const int group = layout.group_of(layer), first = layout.first_layer(group);
          EXPECT_TRUE(group >= 0 && group < layout.groups) << layer;
          EXPECT_TRUE(first <= layer && (layer - first) * panels < layout.slabs_of_group) << layer;
        }
        EXPECT_LE(layout.threads(), 512);
        EXPECT_LE(layout.shared_bytes, 227 << 10);
        EXPECT_EQ(layout.biases_at, hidden * panels * panels * 8192 + panels * 2048);
        EXPECT_GE(layout.stages_at, layout.operand_bytes());
        EXPECT_EQ(layout.stages_at % 1024, 0);
        EXPECT_EQ(layout.stage_bytes() % 1024, 0);
        EXPECT_GE(layout.control_at, layout.stages_at + layout.chains * layout.stages * layout.stage_bytes());
        EXPECT_EQ(layout.control_at % 8, 0);
        const int width = 64 * panels;
        EXPECT_EQ(layout.slots().count(), hidden * (width * width / 4 + width / 4) + width * 8 / 4 + 8 / 4);
        EXPECT_EQ(layout.computing_threads() % layout.sum_lanes, 0);
        EXPECT_TRUE(layout.chains == 1 || layout.tiles > layout.blocks) << "a second chain would have no tile";
      }
  EXPECT_EQ(decide_fused({8449, {64, 64, 64, 1}}, {}).layout.chains, 2);
  EXPECT_EQ(decide_fused({8449, {64, 64, 64, 1}}, {}).layout.stages, 2);
}

TEST(FusedLayout, RefusesInOneSentence) {
  const auto refusal_of = [](const std::vector<std::int64_t>& widths, const FusedDevice& device = {}) {
    return decide_fused({1000, widths}, device).refusal;
  };
  FusedDevice older, smaller;
  older.compute_capability = 89;
  smaller.shared_bytes = 48 << 10;
  EXPECT_MENTIONS(refusal_of({64, 64, 1}, older), "compute capability 9.0, and the GPU has 8.9");
  EXPECT_MENTIONS(refusal_of({64, 64, 64, 1}, smaller), "bytes of shared memory, and a block has 49152");
  EXPECT_MENTIONS(refusal_of({64, 1}), "1 to 6 hidden layers of that width, and there are 0");
  EXPECT_MENTIONS(refusal_of(std::vector<std::int64_t>(9, 1)), "1 to 6 hidden layers of that width, and there are 7");
  EXPECT_MENTIONS(refusal_of({64, 65, 64, 64, 1}), "1 to 2 hidden layers of that width, and there are 3");
  EXPECT_MENTIONS(refusal_of({64, 129, 1}), "at most 128 values, and one has 129");
  EXPECT_MENTIONS(refusal_of({784, 64, 1}), "at most 128 values, and one has 784");
  EXPECT_MENTIONS(refusal_of({64, 64, 10}), "at most 8 outputs, and there are 10");
}

}  // namespace
}  // namespace deviceloop::cuda
