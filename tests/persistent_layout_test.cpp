// How the persistent executor shares a step among blocks, on GPUs that are plain data.
#include "planning/persistent_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "planning/kernel_layout.h"

namespace deviceloop {
namespace {

using Kind = PersistentOperation::Kind;

GpuCaps hopper() {
  GpuCaps gpu;
  gpu.name = "GPU";
  gpu.compute_capability = 90;
  gpu.multiprocessors = 132;
  gpu.memory_bytes = std::uint64_t{80} << 30;
  gpu.l2_bytes = std::uint64_t{50} << 20;
  gpu.shared_bytes = 227 << 10;
  gpu.cooperative = true;
  return gpu;
}

PersistentLayout layout_of(std::vector<std::int64_t> widths, std::int64_t samples, bool bias = false,
                           PersistentForm form = PersistentForm::automatic, const GpuCaps& gpu = hopper(),
                           Precision precision = Precision::fp32) {
  NetworkSpec network;
  network.widths = std::move(widths);
  network.bias = bias;
  TrainingSpec training;
  training.samples = samples;
  training.form = form;
  training.precision = precision;
  return make_persistent_layout(network, training, gpu);
}

std::vector<PersistentOperation> operations_of(const PersistentLayout& layout, std::size_t phase) {
  const auto begin = layout.operations.begin();
  const auto end =
      phase + 1 < layout.phases.size() ? begin + layout.phases[phase + 1].first_operation : layout.operations.end();
  return {begin + layout.phases[phase].first_operation, end};
}

TEST(PersistentLayout, ADeepNetworkHasTwoPhasesALayer) {
  const PersistentLayout layout = layout_of({40, 30, 20, 10}, 64, true);
  ASSERT_EQ(layout.phases.size(), 7u);
  EXPECT_EQ(layout.forward_phases, 3);
  std::vector<std::vector<Kind>> kinds;
  for (std::size_t phase = 0; phase < layout.phases.size(); ++phase) {
    std::int64_t tasks = 0;
    kinds.emplace_back();
    for (const PersistentOperation& op : operations_of(layout, phase)) {
      kinds.back().push_back(op.kind);
      tasks += op.tasks;
    }
    EXPECT_EQ(layout.phases[phase].tasks, tasks);
  }
  const std::vector<std::vector<Kind>> expected = {
      {Kind::hidden},
      {Kind::hidden},
      {Kind::errors},
      {Kind::input_gradient, Kind::loss},
      {Kind::input_gradient, Kind::weight_update, Kind::bias_update},
      {Kind::weight_update, Kind::bias_update, Kind::weight_update, Kind::bias_update},
      {Kind::loss}};
  EXPECT_EQ(kinds, expected);
  EXPECT_EQ(layout.phase_name(2), "forward of layer 2");
  EXPECT_EQ(layout.phase_name(3), "gradient of the input of layer 2");
  EXPECT_EQ(layout.phase_name(5), "update of layer 0");
  EXPECT_EQ(layout.phase_name(6), "loss");
}

TEST(PersistentLayout, OneLayerHasTwoPhases) {
  const PersistentLayout layout = layout_of({5, 1}, 7);
  ASSERT_EQ(layout.phases.size(), 3u);
  EXPECT_EQ(operations_of(layout, 0)[0].kind, Kind::errors);
  EXPECT_EQ(operations_of(layout, 1)[0].kind, Kind::weight_update);
  EXPECT_EQ(operations_of(layout, 1)[1].kind, Kind::loss);
}

// No task of a phase may read what another one of it writes, but for a tile's own elements.
TEST(PersistentLayout, WhatAPhaseWritesNoneOfItReads) {
  for (const auto& widths : std::vector<std::vector<std::int64_t>>{{5, 1}, {5, 4, 2}, {9, 8, 7, 6}, {3, 4, 5, 6, 7, 2}})
    for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
      NetworkSpec network;
      network.widths = widths;
      network.bias = true;
      TrainingSpec training;
      training.samples = 33;
      training.formulation = formulation;
      const PersistentLayout layout = make_persistent_layout(network, training, hopper());
      ASSERT_GT(layout.phases.size(), widths.size());
      for (std::size_t phase = 0; phase < layout.phases.size(); ++phase) {
        const auto operations = operations_of(layout, phase);
        EXPECT_FALSE(operations.empty()) << phase;
        for (const PersistentOperation& writer : operations)
          for (const PersistentOperation& reader : operations)
            for (const std::uint64_t written : {writer.out, writer.sum})
              for (const std::uint64_t read : {reader.a, reader.b, reader.bias, reader.extra, reader.start})
                EXPECT_TRUE(written == kNone || read != written) << phase;
      }
    }
}

TEST(PersistentLayout, PiecesOfTheArenaLieApart) {
  const PersistentLayout layout = layout_of({40, 30, 20, 10}, 64, true);
  std::map<std::uint64_t, std::uint64_t> pieces;  // begin, end
  const auto add = [&](std::uint64_t begin, std::int64_t elements, std::size_t size = 4) {
    EXPECT_EQ(begin % 256, 0u);
    EXPECT_TRUE(pieces.emplace(begin, begin + static_cast<std::uint64_t>(elements) * size).second);
  };
  for (const Step::Layer& layer : layout.step.layers) {
    add(layout.at(layer.weight), layer.in_features * layer.out_features);
    add(layout.at(layer.bias), layer.out_features);
    add(layout.at(layer.gradient), 64 * layer.out_features);
    if (&layer != &layout.step.layers.back()) add(layout.at(layer.output), 64 * layer.out_features);
  }
  add(layout.at(layout.step.x), 64 * 40);
  add(layout.at(layout.step.y), 64 * 10);
  const auto errors = std::find_if(layout.operations.begin(), layout.operations.end(),
                                   [](const PersistentOperation& op) { return op.kind == Kind::errors; });
  add(errors->slots, errors->tasks, 8);
  add(layout.program, static_cast<std::int64_t>(layout.program_bytes()), 1);
  add(layout.arrivals, 1);
  add(layout.failed, 1, 8);
  add(layout.loss, 1, 8);
  add(layout.losses, 2 * layout.steps_per_launch, 8);
  add(layout.predict_input, layout.predict_rows * 40);
  add(layout.predict_even, layout.predict_rows * 30);
  add(layout.predict_odd, layout.predict_rows * 30);
  std::uint64_t end = 0;
  for (const auto& [begin, piece_end] : pieces) {
    EXPECT_GE(begin, end);
    end = piece_end;
  }
  EXPECT_LE(end, layout.bytes);
  EXPECT_LE(layout.at(layout.step.layers.back().bias) + 40, layout.state_bytes);
  EXPECT_GE(layout.at(layout.step.layers.front().output), layout.state_bytes);
  EXPECT_LE(layout.at(layout.step.x) + 64 * 40 * 4, layout.region_bytes);
}

TEST(PersistentLayout, TilesCoverEveryElementOnce) {
  for (const std::int64_t rows : {1, 16, 17, 128, 1000}) {
    PersistentOperation product;
    product.rows = rows;
    product.columns = 100;
    product.inner = 37;
    for (const std::int64_t blocks : {1, 8, 132}) {
      const PersistentOperation cut = cut_alone(product, blocks, 4);
      const int side = cut.tile == Tile::small ? 16 : cut.tile == Tile::medium ? 32 : 64;
      EXPECT_EQ(cut.tiles_across, cuda::divide_up(100, side));
      EXPECT_EQ(cut.tasks, cut.tiles_across * cuda::divide_up(rows, side));
    }
  }
}

TEST(PersistentLayout, SmallNetworksTakeOneBlockLargerOnesMore) {
  const PersistentLayout block = layout_of({3, 20, 4, 1}, 4);
  EXPECT_EQ(block.form, PersistentForm::block);
  EXPECT_EQ(block.blocks, 1);
  const PersistentLayout grid = layout_of({1000, 100, 10, 1}, 128);
  EXPECT_EQ(grid.form, PersistentForm::grid);
  EXPECT_LE(grid.blocks, 132);
  EXPECT_GT(grid.blocks, 50);
  EXPECT_LT(block.predicted_us_per_step, grid.predicted_us_per_step);
}

PersistentLayout minibatches(std::vector<std::int64_t> widths, std::int64_t batch, const GpuCaps& gpu = hopper(),
                             PersistentForm form = PersistentForm::automatic) {
  NetworkSpec network;
  network.widths = std::move(widths);
  network.bias = true;
  TrainingSpec training;
  training.samples = 65536;
  training.batch_size = batch;
  training.optimizer.kind = OptimizerKind::adam;
  training.form = form;
  return make_persistent_layout(network, training, gpu);
}

TEST(PersistentLayout, MinibatchesAreTakenOnChip) {
  const PersistentLayout layout = minibatches({64, 64, 64, 1}, 256);
  ASSERT_EQ(layout.refusal, "");
  EXPECT_EQ(layout.form, PersistentForm::on_chip);
  EXPECT_EQ(layout.blocks, 16);
  EXPECT_EQ(layout.shared_bytes, layout.on_chip.shared_bytes);
  EXPECT_EQ(layout.predicted_us_per_step, layout.on_chip.estimated_us);
  EXPECT_GT(layout.predicted_us_per_step, layout.floor_us_per_step);
  EXPECT_EQ(layout.steps_per_launch, 16384);
  EXPECT_EQ(layout.scalar_sets, 16384);
  EXPECT_EQ(layout.bytes - layout.loss_parts >= 16384u * 16 * sizeof(double), true);
  EXPECT_EQ(layout.phase_name(0), "exchange of parameters");
  EXPECT_EQ(layout.phase_name(1), "exchange of gradients");
  // Of a step nothing but the data is in global memory: the data are larger than what is left beside them.
  EXPECT_LT(layout.bytes, 65536u * 65 * 4 + (8u << 20));

  EXPECT_EQ(minibatches({64, 64, 64, 1}, 256, hopper(), PersistentForm::on_chip).form, PersistentForm::on_chip);
  EXPECT_EQ(minibatches({64, 64, 64, 1}, 256, hopper(), PersistentForm::grid).refusal,
            "the form 'grid' takes all samples in each step; use another form or the plan 'graph'");
  const std::string wide = minibatches({784, 128, 10}, 64).refusal;
  EXPECT_NE(
      wide.find("of a block's shared memory, of which there are 227.0 KiB; use smaller layers, smaller batches or "
                "the plan 'graph'"),
      std::string::npos)
      << wide;
  GpuCaps ampere = hopper();
  ampere.compute_capability = 80;
  EXPECT_NE(
      minibatches({64, 64, 64, 1}, 256, ampere).refusal.find(" has no clusters, compute capability 9.0 has; use the "),
      std::string::npos);
}

// Its times are a prototype's.
TEST(PersistentLayout, AllSamplesAreTakenOnChipWhereThatIsAskedFor) {
  EXPECT_NE(layout_of({64, 64, 64, 1}, 256).form, PersistentForm::on_chip);
  const PersistentLayout layout = layout_of({64, 64, 64, 1}, 256, false, PersistentForm::on_chip);
  EXPECT_EQ(layout.refusal, "");
  EXPECT_EQ(layout.form, PersistentForm::on_chip);
}

TEST(PersistentLayout, TheStartingCaseTakesTheFormForTwoLayers) {
  const PersistentLayout layout = layout_of({1000, 100, 1}, 128);
  EXPECT_EQ(layout.form, PersistentForm::two_layer);
  EXPECT_EQ(layout.two_layer.clusters, 25);
  EXPECT_EQ(layout.two_layer.cluster_blocks(), 4);
  EXPECT_EQ(layout.two_layer.columns, 250);
  EXPECT_EQ(layout.blocks, 100);
  EXPECT_EQ(layout.tagged_slots, 2 * 25 * 128);
  EXPECT_LT(layout.predicted_us_per_step,
            layout_of({1000, 100, 1}, 128, false, PersistentForm::grid).predicted_us_per_step);
  EXPECT_EQ(layout.phase_name(0), "exchange within a cluster");
  EXPECT_EQ(layout.phase_name(1), "exchange of the predictions");

  NetworkSpec network;
  network.widths = {1000, 100, 1};
  TrainingSpec training;
  training.samples = 128;
  training.formulation = Formulation::gram;
  const PersistentLayout gram = make_persistent_layout(network, training, hopper());
  EXPECT_EQ(gram.form, PersistentForm::two_layer);
  EXPECT_EQ(gram.blocks, gram.gram_two_layer.blocks);
  EXPECT_LT(gram.predicted_us_per_step, layout.predicted_us_per_step);
}

// Its kernels have ReLU written into them; the other forms take any activation.
TEST(PersistentLayout, TheFormForTwoLayersIsForReluAlone) {
  NetworkSpec network;
  network.widths = {1000, 100, 1};
  network.activation = Activation::tanh;
  TrainingSpec training;
  training.samples = 128;
  for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
    training.formulation = formulation;
    training.form = PersistentForm::automatic;
    const PersistentLayout layout = make_persistent_layout(network, training, hopper());
    EXPECT_EQ(layout.refusal, "");
    EXPECT_EQ(layout.form, PersistentForm::grid);
    training.form = PersistentForm::two_layer;
    EXPECT_EQ(
        make_persistent_layout(network, training, hopper())
            .refusal.find("the form 'two-layer' is for the activation 'relu', not 'tanh', which the other forms take"),
        0u);
  }
}

TEST(PersistentLayout, EveryFormCanBeAskedFor) {
  const PersistentLayout block = layout_of({3, 20, 1}, 4, true, PersistentForm::block);
  EXPECT_EQ(block.form, PersistentForm::block);
  EXPECT_GE(static_cast<std::uint64_t>(block.shared_bytes), kPersistentTileBytes + block.region_bytes);
  const PersistentLayout cluster = layout_of({3, 20, 1}, 4, true, PersistentForm::cluster);
  EXPECT_EQ(cluster.form, PersistentForm::cluster);
  EXPECT_GE(cluster.blocks, 2);
  EXPECT_LE(cluster.blocks, 8);
  EXPECT_EQ(layout_of({3, 20, 1}, 4, true, PersistentForm::grid).form, PersistentForm::grid);
  for (const PersistentForm form : {PersistentForm::block, PersistentForm::cluster, PersistentForm::grid})
    EXPECT_EQ(layout_of({3, 20, 1}, 4, true, form).refusal, "");
}

TEST(PersistentLayout, RefusalsSayWhatIsNeededAndWhatThereIs) {
  EXPECT_EQ(
      layout_of({1000, 100, 1}, 128, false, PersistentForm::block).refusal,
      "one block needs 1.0 MiB of shared memory, GPU gives it 227.0 KiB; use smaller layers, fewer samples or the "
      "plan 'graph'");
  GpuCaps ampere = hopper();
  ampere.compute_capability = 80;
  EXPECT_EQ(layout_of({30, 10, 1}, 12, false, PersistentForm::cluster, ampere).refusal.substr(0, 34),
            "GPU has no clusters, compute capab");
  EXPECT_EQ(layout_of({1000, 100, 1}, 128, false, PersistentForm::automatic, ampere).form, PersistentForm::grid);
  const std::string many = layout_of({1000, 100, 1}, 129, false, PersistentForm::two_layer).refusal;
  EXPECT_NE(many.find("at most 128 samples"), std::string::npos) << many;
  EXPECT_TRUE(many.ends_with("; use smaller layers, fewer samples or the plan 'graph'")) << many;
  EXPECT_NE(layout_of({10, 9, 8, 1}, 12, false, PersistentForm::two_layer).refusal.find("for one hidden layer, not 2"),
            std::string::npos);
  EXPECT_EQ(layout_of({4096, 4096, 1}, 8192).refusal.substr(0, 45), "data, weights and activations take 448.1 MiB,");
  ampere.cooperative = false;
  EXPECT_EQ(layout_of({1000, 100, 1}, 128, false, PersistentForm::automatic, ampere).refusal.substr(0, 30),
            "GPU does not promise that all ");
  EXPECT_EQ(layout_of(std::vector<std::int64_t>(100, 4), 128).refusal.substr(0, 41),
            "a network of 99 layers is too deep for on");
  GpuCaps turing = ampere;
  turing.shared_bytes = 32 << 10;
  EXPECT_EQ(layout_of({3, 20, 1}, 4, false, PersistentForm::automatic, turing).refusal.substr(0, 13), "a block needs");
}

TEST(PersistentLayout, ALaunchTakesAtMostHalfASecondByThePlan) {
  for (const std::int64_t samples : {1, 128, 1024, 2048}) {
    const PersistentLayout layout = layout_of({1000, 100, 1}, samples);
    ASSERT_EQ(layout.refusal, "");
    EXPECT_GE(layout.steps_per_launch, 1);
    EXPECT_LE(static_cast<double>(layout.steps_per_launch) * layout.predicted_us_per_step, 5e5);
  }
}

TEST(PersistentLayout, SizesThatOverflowAreRefused) {
  EXPECT_THROW(layout_of({kMaxWidth, kMaxWidth, kMaxWidth}, std::int64_t{1} << 60), InvalidArgument);
}

TEST(PersistentLayout, ANetworkThatOnlyPredictsNeedsNoForm) {
  const PersistentLayout layout = layout_of({1000, 100, 1}, 0);
  EXPECT_EQ(layout.refusal, "");
  EXPECT_TRUE(layout.phases.empty());
  EXPECT_GT(layout.bytes, 0u);
}

}  // namespace
}  // namespace deviceloop
