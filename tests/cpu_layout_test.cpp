#include "planning/cpu_layout.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include <deviceloop/error.h>

namespace deviceloop {
namespace {

CpuLayout layout_of(std::vector<std::int64_t> widths, std::int64_t samples, int threads = 1, bool bias = false,
                    Formulation formulation = Formulation::primal) {
  NetworkSpec network;
  network.widths = std::move(widths);
  network.bias = bias;
  TrainingSpec training;
  training.samples = samples;
  training.formulation = formulation;
  return make_cpu_layout(network, training, threads);
}

TEST(CpuLayout, BordersOfTasksDoNotDependOnThreads) {
  for (const std::int64_t samples : {1, 64, 65, 128, 1000, 1023, 1024, 5000, 65536}) {
    const CpuLayout one = layout_of({64, 64, 3}, samples, 1), many = layout_of({64, 64, 3}, samples, 7);
    EXPECT_EQ(one.chunked, many.chunked);
    EXPECT_EQ(one.panel_rows, many.panel_rows);
    EXPECT_EQ(one.block_rows, many.block_rows);
    EXPECT_EQ(one.blocks, many.blocks);
    ASSERT_EQ(one.updates.size(), 2u);
    for (std::size_t index = 0; index < one.updates.size(); ++index) {
      EXPECT_EQ(one.updates[index].task_rows, many.updates[index].task_rows);
      EXPECT_EQ(one.updates[index].tasks, many.updates[index].tasks);
      EXPECT_EQ(one.updates[index].slot, many.updates[index].slot);
    }
  }
}

TEST(CpuLayout, TasksCoverRowsAndWeightsOnce) {
  for (const std::int64_t samples : {1, 63, 64, 65, 511, 1024, 1025, 8191, 65536, 1000000})
    for (const std::int64_t width : {1, 3, 257, 2000}) {
      const CpuLayout layout = layout_of({width, 17, 2}, samples);
      EXPECT_GE(layout.blocks * layout.block_rows, samples);
      EXPECT_LT((layout.blocks - 1) * layout.block_rows, samples);
      EXPECT_EQ(layout.block_rows % layout.panel_rows, 0);
      if (layout.chunked) {
        EXPECT_LE(layout.blocks, 64);
        EXPECT_GE(layout.blocks, 5);
      } else {
        ASSERT_EQ(layout.updates.size(), 2u);
        for (const CpuLayout::Update& update : layout.updates) {
          EXPECT_GE(update.tasks * update.task_rows, update.operation.rows);
          EXPECT_LT((update.tasks - 1) * update.task_rows, update.operation.rows);
        }
      }
    }
}

TEST(CpuLayout, ChunksManySamplesOfASmallNetworkOnly) {
  EXPECT_FALSE(layout_of({1000, 100, 1}, 128).chunked);
  EXPECT_TRUE(layout_of({64, 64, 64, 1}, 65536).chunked);
  EXPECT_FALSE(layout_of({1024, 1024, 1024, 10}, 1024).chunked);
  EXPECT_FALSE(layout_of({1024, 1024, 10}, 100000).chunked);
}

TEST(CpuLayout, CountsTheBytesOfTheStartingCase) {
  // Parameters 1000 x 100 + 100, data 128 x 1000 + 128, activations 128 x (100 + 100 + 1), in floats; then losses of
  // two panels and, for each thread, what predict needs; every piece rounded up to 64 bytes.
  const std::uint64_t parameters = 400000 + 448, data = 512000 + 512, activations = 2 * 51200 + 512;
  const std::uint64_t losses = 64, predict = 64 * 4 * (1000 + 2 * 100);
  EXPECT_EQ(layout_of({1000, 100, 1}, 128).bytes, parameters + data + activations + losses + predict);
  EXPECT_EQ(layout_of({1000, 100, 1}, 128, 3).bytes, parameters + data + activations + losses + 3 * predict);
  EXPECT_EQ(layout_of({1000, 100, 1}, 0).bytes, parameters + predict);
}

TEST(CpuLayout, CountsTheRoundedOperandsOfEachPart) {
  const auto bytes = [](std::int64_t samples, Precision precision) {
    NetworkSpec network;
    network.widths = {1000, 100, 1};
    TrainingSpec training;
    training.samples = samples;
    training.precision = precision;
    return make_cpu_layout(network, training, 1).bytes;
  };
  const std::uint64_t weights = 400000 + 448, data = 512000, activations = 2 * 51200 + 512, predict = 64 * 4 * 1000;
  for (const Precision precision : {Precision::tf32, Precision::bf16})
    EXPECT_EQ(bytes(128, precision), bytes(128, Precision::fp32) + weights + data + activations + predict);
  EXPECT_EQ(bytes(128, Precision::tf32x3), bytes(128, Precision::fp32) + 2 * (weights + data + activations + predict));
  EXPECT_EQ(bytes(0, Precision::tf32), bytes(0, Precision::fp32) + weights + predict);
  // All gradients, the sums of their ranges, and a task of an update, which no product adds to a weight any more.
  const std::uint64_t gradients = 400000 + 448 + 256 + 64, update = 192 * 100 * 4;
  EXPECT_EQ(bytes(128, Precision::fp16), bytes(128, Precision::tf32) + gradients + update);
}

// Nothing overlaps, where panels are in a thread's scratch and where they are not.
TEST(CpuLayout, RoundedOperandsLieBesideTheirTensors) {
  for (const std::int64_t samples : {100, 2000})
    for (const std::int64_t batch : {0, 60, 1500}) {
      if (batch > samples) continue;
      NetworkSpec network;
      network.widths = {5, 7, 3};
      TrainingSpec training;
      training.samples = samples;
      training.batch_size = batch;
      training.precision = Precision::tf32x3;
      const CpuLayout layout = make_cpu_layout(network, training, 1);
      const Step& step = layout.step;
      // X or a batch of it, H, both weights and both gradients are operands; targets and predictions are not.
      std::set<std::uint64_t> in_arena, in_scratch;
      std::size_t pieces = 0;
      for (TensorId id = 0; id < static_cast<TensorId>(step.tensors.size()); ++id) {
        const bool is_operand = id == step.x || id == step.layers[0].output || id == step.layers[0].weight ||
                                id == step.layers[1].weight || id == step.layers[0].gradient ||
                                id == step.layers[1].gradient;
        EXPECT_EQ(layout.is_operand(id), is_operand) << step.tensor(id).name;
        if (!is_operand) continue;
        const StepTensor::Lifetime lifetime = step.tensor(id).lifetime;
        const bool is_by_panel = layout.chunked && (lifetime == StepTensor::Lifetime::activation ||
                                                    lifetime == StepTensor::Lifetime::gradient);
        std::set<std::uint64_t>& where = is_by_panel ? in_scratch : in_arena;
        where.insert(layout.at(id));
        for (const std::uint64_t part : layout.operands[static_cast<std::size_t>(id)]) {
          EXPECT_EQ(part % 64, 0u);
          where.insert(part);
        }
        pieces += 3;
      }
      EXPECT_EQ(in_arena.size() + in_scratch.size(), pieces);
    }
}

TEST(CpuLayout, CountsTheBytesOfTheGramFormulation) {
  // K 128 x 128, Z and S 128 x 100 each, and the parameters of the first layer a second time.
  const auto bytes = [](std::int64_t samples, bool bias, Formulation formulation) {
    return layout_of({1000, 100, 1}, samples, 1, bias, formulation).bytes;
  };
  for (const bool bias : {false, true}) {
    const std::uint64_t more = 65536 + 2 * 51200 + 400000 + (bias ? 448 : 0);
    EXPECT_EQ(bytes(128, bias, Formulation::gram), bytes(128, bias, Formulation::primal) + more);
    EXPECT_EQ(bytes(0, bias, Formulation::gram), bytes(0, bias, Formulation::primal));
  }
}

// Momentum of the parameters, which the primal has too, of Z and of S, and that of the first layer a second time.
TEST(CpuLayout, CountsTheBytesOfMomentumInTheGramFormulation) {
  const auto bytes = [](Formulation formulation, OptimizerKind kind) {
    NetworkSpec network;
    network.widths = {1000, 100, 1};
    network.bias = true;
    TrainingSpec training;
    training.samples = 128;
    training.formulation = formulation;
    training.optimizer.kind = kind;
    const CpuLayout layout = make_cpu_layout(network, training, 1);
    return layout.bytes - layout.thread_stride;  // updates by more than a product take a thread's scratch
  };
  using Kind = OptimizerKind;
  const std::uint64_t primal =
      bytes(Formulation::primal, Kind::sgd) - bytes(Formulation::primal, Kind::gradient_descent);
  EXPECT_EQ(bytes(Formulation::gram, Kind::sgd) - bytes(Formulation::gram, Kind::gradient_descent),
            primal + 2 * 51200 + 400000 + 448);
}

TEST(CpuLayout, TheGramFormulationIsFolded) {
  EXPECT_TRUE(layout_of({64, 64, 64, 1}, 4096).chunked);
  const CpuLayout layout = layout_of({64, 64, 64, 1}, 4096, 1, false, Formulation::gram);
  EXPECT_FALSE(layout.chunked);
  EXPECT_TRUE(layout.step.gram.has_value());
  EXPECT_FALSE(layout_of({64, 64, 64, 1}, 4096).step.gram.has_value());
}

TEST(CpuLayout, PiecesAreAlignedAndDisjoint) {
  for (const std::int64_t samples : {100, 2000}) {
    const CpuLayout layout = layout_of({5, 7, 3}, samples, 2, true);
    std::vector<std::uint64_t> starts;
    for (const Step::Layer& layer : layout.step.layers) {
      starts.push_back(layout.at(layer.weight));
      starts.push_back(layout.at(layer.bias));
    }
    for (const std::uint64_t start :
         {layout.at(layout.step.x), layout.at(layout.step.y), layout.losses, layout.thread_scratch})
      starts.push_back(start);
    for (std::size_t i = 0; i < starts.size(); ++i) {
      EXPECT_EQ(starts[i] % 64, 0u);
      if (i > 0) {
        EXPECT_GT(starts[i], starts[i - 1]);
      }
    }
    EXPECT_EQ(layout.thread_scratch + 2 * layout.thread_stride, layout.bytes);
  }
}

TEST(CpuLayout, RefusesSizesThatOverflow) {
  EXPECT_THROW(layout_of({2147483647, 2147483647, 2147483647}, 128), InvalidArgument);
  EXPECT_THROW(layout_of({1000, 1}, std::int64_t{1} << 60), InvalidArgument);
  EXPECT_THROW(layout_of({1, 1}, std::int64_t{1} << 32, 1, false, Formulation::gram), InvalidArgument);
  try {
    layout_of({1000, 1}, std::int64_t{1} << 60);
  } catch (const InvalidArgument& error) {
    EXPECT_NE(std::string(error.what()).find("1000,1 with 1152921504606846976 samples"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace deviceloop
