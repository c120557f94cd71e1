// How the persistent executor shares a step among blocks, on GPUs that are plain data.
#include "planning/persistent_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "planning/tile_product.h"

namespace deviceloop {
namespace {

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

TEST(PersistentLayout, PiecesOfTheArenaLieApart) {
  for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
    NetworkSpec network;
    network.widths = {40, 30, 10};
    network.bias = true;
    TrainingSpec training;
    training.samples = 64;
    training.formulation = formulation;
    training.optimizer.schedule = {.warmup_steps = formulation == Formulation::gram ? 0 : 5};
    const PersistentLayout layout = make_persistent_layout(network, training, hopper());
    ASSERT_EQ(layout.refusal, "");
    std::map<std::uint64_t, std::uint64_t> pieces;  // begin, end
    const auto add = [&](std::uint64_t begin, std::int64_t elements, std::size_t size = 4) {
      EXPECT_EQ(begin % 256, 0u);
      EXPECT_TRUE(pieces.emplace(begin, begin + static_cast<std::uint64_t>(elements) * size).second);
    };
    for (const Step::Layer& layer : layout.step.layers) {
      add(layout.at(layer.weight), layer.in_features * layer.out_features);
      add(layout.at(layer.bias), layer.out_features);
    }
    if (const std::optional<Step::Gram>& gram = layout.step.gram) {
      add(layout.at(gram->kernel), 64 * 64);
      for (const TensorId id : {gram->pre_activation, gram->sum}) add(layout.at(id), 64 * 30);
      add(layout.at(gram->start_weight), 40 * 30);
      add(layout.at(gram->start_bias), 30);
      if (const std::int64_t slots = cuda::column_sums_slots(64, 30); slots > 0) add(layout.slots, slots, 8);
    }
    add(layout.at(layout.step.x), 64 * 40);
    add(layout.at(layout.step.y), 64 * 10);
    if (layout.form == PersistentForm::two_layer) add(layout.tagged, layout.tagged_bytes, 1);
    if (layout.form == PersistentForm::on_chip) add(layout.loss_parts, layout.steps_per_launch * layout.blocks, 8);
    add(layout.scalars, layout.scalar_sets + 1, sizeof(elementwise::StepScalars<float>));
    add(layout.failed, 1, 8);
    add(layout.loss, 1, 8);
    add(layout.losses, 2 * layout.steps_per_launch, 8);
    add(layout.prediction.input, layout.prediction.rows * 40);
    add(layout.prediction.even, layout.prediction.rows * 30);
    add(layout.prediction.odd, layout.prediction.rows * 30);
    std::uint64_t end = 0;
    for (const auto& [begin, piece_end] : pieces) {
      EXPECT_GE(begin, end);
      end = piece_end;
    }
    EXPECT_LE(end, layout.bytes);
  }
}

TEST(TileProduct, TheLargestTileOfWhichThereAreManyIsTaken) {
  const auto rows_of_tile = [](std::int64_t rows, std::int64_t columns) {
    return cuda::with_tile({rows, columns, 37}, [](auto shape) { return decltype(shape)::rows; });
  };
  EXPECT_EQ(rows_of_tile(1, 1), 16);
  EXPECT_EQ(rows_of_tile(128, 100), 16);
  EXPECT_EQ(rows_of_tile(1024, 132), 32);
  EXPECT_EQ(rows_of_tile(1024, 1024), 64);
  const cuda::ProductShape shape{1000, 100, 37};
  EXPECT_EQ(cuda::SmallTile::tiles(shape), 63 * 7);
  EXPECT_EQ(cuda::LargeTile::tiles(shape), 16 * 2);
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
  EXPECT_EQ(minibatches({64, 64, 64, 1}, 256, hopper(), PersistentForm::two_layer).refusal,
            "the form 'two-layer' takes all samples in each step; use another form or the plan 'graph'");
  const std::string wide = minibatches({784, 512, 10}, 64).refusal;
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

TEST(PersistentLayout, SmallNetworksAreTakenOnChip) {
  for (const auto& widths :
       std::vector<std::vector<std::int64_t>>{{64, 64, 64, 1}, {3, 20, 4, 1}, {8, 8, 8, 8, 8, 8, 8, 8, 2}}) {
    const PersistentLayout layout = layout_of(widths, 256);
    EXPECT_EQ(layout.refusal, "");
    EXPECT_EQ(layout.form, PersistentForm::on_chip);
    EXPECT_GT(layout.predicted_us_per_step, layout.floor_us_per_step);
  }
}

TEST(PersistentLayout, MinibatchesOfWideDataAreTakenOnChipByTheirInputs) {
  const PersistentLayout layout = minibatches({784, 128, 10}, 64);
  ASSERT_EQ(layout.refusal, "");
  EXPECT_EQ(layout.form, PersistentForm::on_chip);
  EXPECT_TRUE(layout.on_chip.by_inputs);
  EXPECT_GT(layout.predicted_us_per_step, layout.floor_us_per_step);
  EXPECT_EQ(layout.phase_name(2), "exchange of the first layer's sums");
  EXPECT_EQ(layout.phase_name(3), "exchange of the first layer's output gradient");
}

TEST(PersistentLayout, LargerMinibatchesAreTakenOnChipInSeveralClusters) {
  const PersistentLayout layout = minibatches({64, 64, 64, 1}, 4096);
  ASSERT_EQ(layout.refusal, "");
  EXPECT_EQ(layout.form, PersistentForm::on_chip);
  EXPECT_GT(layout.on_chip.clusters, 1);
  EXPECT_EQ(layout.blocks, layout.on_chip.all_blocks());
  EXPECT_EQ(layout.tagged_bytes, layout.on_chip.tagged_units() * 32);
  EXPECT_GE(layout.loss_parts, layout.tagged + static_cast<std::uint64_t>(layout.tagged_bytes));
  EXPECT_GE(layout.blocks_done,
            layout.loss_parts + static_cast<std::uint64_t>(layout.steps_per_launch * layout.blocks * 8));
  EXPECT_GT(layout.predicted_us_per_step, layout.floor_us_per_step);
  EXPECT_EQ(layout.phase_name(4), "exchange of gradients between clusters");
  EXPECT_EQ(layout.phase_name(5), "exchange of parameters between clusters");
  EXPECT_EQ(layout.phase_name(6), "sum of the losses of all clusters");
  EXPECT_EQ(minibatches({64, 64, 64, 1}, 256).tagged_bytes, 0);
  EXPECT_TRUE(minibatches({784, 128, 10}, 512).on_chip.by_inputs);
  // Where nothing promises that all of them run at once there is one.
  GpuCaps alone = hopper();
  alone.cooperative = false;
  EXPECT_EQ(minibatches({64, 64, 64, 1}, 1024, alone).on_chip.clusters, 1);
  EXPECT_NE(minibatches({64, 64, 64, 1}, 4096, alone).refusal.find(" of a block's shared memory, "), std::string::npos);
}

TEST(PersistentLayout, TheStartingCaseTakesTheFormForTwoLayers) {
  const PersistentLayout layout = layout_of({1000, 100, 1}, 128);
  EXPECT_EQ(layout.form, PersistentForm::two_layer);
  EXPECT_EQ(layout.two_layer.clusters, 25);
  EXPECT_EQ(layout.two_layer.cluster_blocks(), 4);
  EXPECT_EQ(layout.two_layer.columns, 250);
  EXPECT_EQ(layout.blocks, 100);
  EXPECT_EQ(layout.tagged_bytes, 2 * 25 * 128 * 8);
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

// Its kernels have ReLU written into them.
TEST(PersistentLayout, TheFormForTwoLayersIsForReluAlone) {
  NetworkSpec network;
  network.widths = {100, 30, 1};
  network.activation = Activation::tanh;
  TrainingSpec training;
  training.samples = 128;
  EXPECT_EQ(make_persistent_layout(network, training, hopper()).form, PersistentForm::on_chip);
  training.form = PersistentForm::two_layer;
  EXPECT_EQ(make_persistent_layout(network, training, hopper()).refusal,
            "the form 'two-layer' is for the activation 'relu', not 'tanh'; use another form or the plan 'graph'");
  training.form = PersistentForm::automatic;
  training.formulation = Formulation::gram;
  EXPECT_EQ(make_persistent_layout(network, training, hopper()).refusal,
            "the form 'two-layer' is for the activation 'relu', not 'tanh', and the form 'on-chip' trains by the "
            "formulation 'primal' alone; use the plan 'graph'");
}

TEST(PersistentLayout, EveryFormCanBeAskedFor) {
  for (const PersistentForm form : {PersistentForm::two_layer, PersistentForm::on_chip}) {
    const PersistentLayout layout = layout_of({3, 20, 1}, 4, true, form);
    EXPECT_EQ(layout.refusal, "");
    EXPECT_EQ(layout.form, form);
  }
}

TEST(PersistentLayout, OfTheFormsThatFitTheFasterIsTaken) {
  int taken[2] = {};
  for (const std::int64_t samples : {1, 16, 64, 128})
    for (const std::int64_t inputs : {2, 30, 400}) {
      const PersistentLayout two = layout_of({inputs, 20, 1}, samples, true, PersistentForm::two_layer),
                             chip = layout_of({inputs, 20, 1}, samples, true, PersistentForm::on_chip),
                             chosen = layout_of({inputs, 20, 1}, samples, true);
      ASSERT_EQ(two.refusal + chip.refusal, "");
      EXPECT_EQ(chosen.predicted_us_per_step, std::min(two.predicted_us_per_step, chip.predicted_us_per_step));
      ++taken[chosen.form == PersistentForm::on_chip ? 1 : 0];
    }
  EXPECT_GT(taken[0], 0);
  EXPECT_GT(taken[1], 0);
}

TEST(PersistentLayout, RefusalsSayWhatIsNeededAndWhatThereIs) {
  const std::string large = layout_of({1000, 1000, 1, 1}, 128, false, PersistentForm::on_chip).refusal;
  EXPECT_TRUE(
      large.ends_with(" of a block's shared memory, of which there are 227.0 KiB; use smaller layers, fewer samples or "
                      "the plan 'graph'"))
      << large;
  GpuCaps ampere = hopper();
  ampere.compute_capability = 80;
  EXPECT_EQ(layout_of({30, 10, 1}, 12, false, PersistentForm::on_chip, ampere).refusal,
            "GPU has no clusters, compute capability 9.0 has; use another form or the plan 'graph'");
  EXPECT_EQ(layout_of({30, 10, 1}, 12, false, PersistentForm::automatic, ampere).form, PersistentForm::two_layer);
  const std::string many = layout_of({1000, 100, 1}, 129, false, PersistentForm::two_layer).refusal;
  EXPECT_NE(many.find("at most 128 samples"), std::string::npos) << many;
  EXPECT_TRUE(many.ends_with("; use smaller layers, fewer samples, another form or the plan 'graph'")) << many;
  EXPECT_EQ(layout_of({10, 9, 8, 1}, 12, false, PersistentForm::two_layer).refusal,
            "the form 'two-layer' is for one hidden layer, not 2; use another form or the plan 'graph'");
  ampere.cooperative = false;
  EXPECT_EQ(layout_of({30, 10, 1}, 12, false, PersistentForm::automatic, ampere).refusal,
            "GPU does not promise that all blocks of a launch run at once, and GPU has no clusters, compute capability "
            "9.0 has; use the plan 'graph'");
  EXPECT_EQ(
      layout_of(std::vector<std::int64_t>(10, 4), 128).refusal,
      "the form 'two-layer' is for one hidden layer, not 8, and the form 'on-chip' is for at most 8 layers, not 9; "
      "use the plan 'graph'");
}

// What a device has less of than the plan took it to have.
TEST(PersistentLayout, KeepsToWhatIsResident) {
  NetworkSpec network;
  network.widths = {1000, 100, 1};
  TrainingSpec training;
  training.samples = 128;
  ResidentLimits limits;
  limits.two_layer_clusters[2] = 20;
  const PersistentLayout layout =
      make_persistent_layout(network, training, hopper(), make_step(network, training), limits);
  EXPECT_EQ(layout.refusal, "");
  EXPECT_TRUE(layout.two_layer.cluster_blocks() != 4 || layout.two_layer.clusters <= 20);
  network.widths = {64, 64, 64, 1};
  limits.on_chip_clusters = {1, 1, 1, 1, 0};
  EXPECT_EQ(make_persistent_layout(network, training, hopper(), make_step(network, training), limits).blocks, 8);
  training.samples = 4096;
  limits.on_chip_clusters = {0, 0, 0, 0, 6};
  EXPECT_EQ(make_persistent_layout(network, training, hopper(), make_step(network, training), limits).on_chip.clusters,
            6);
}

TEST(PersistentLayout, ALaunchTakesAtMostHalfASecondByThePlan) {
  for (const std::int64_t samples : {1, 128, 1024, 2048}) {
    const PersistentLayout layout = layout_of({40, 30, 1}, samples);
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
  EXPECT_GT(layout.bytes, 0u);
}

}  // namespace
}  // namespace deviceloop
