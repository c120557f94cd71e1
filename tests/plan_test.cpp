// The planner, on machines that are plain data.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/plan.h>

#include "names.h"
#include "planning/decision.h"
#include "planning/graph_layout.h"

namespace deviceloop {
namespace {

NetworkSpec network_of(std::vector<std::int64_t> widths) {
  NetworkSpec network;
  network.widths = std::move(widths);
  return network;
}

TrainingSpec training_of(std::int64_t samples) {
  TrainingSpec training;
  training.samples = samples;
  return training;
}

DeviceCaps machine(int cores = 8, std::uint64_t memory = std::uint64_t{1} << 33) {
  DeviceCaps caps;
  caps.cpu.cores = cores;
  caps.cpu.memory_bytes = memory;
  caps.cpu.gflops_fp32 = 100;
  caps.no_gpu_reason = "no NVIDIA driver found";
  return caps;
}

template <class Exception>
std::string message_of(const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps = machine(),
                       std::optional<ExecutorKind> forced = std::nullopt) {
  try {
    make_plan(network, training, caps, forced);
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of the expected type was thrown";
  return "";
}

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

/// The answer of one of the plan's candidates.
const Candidate& answer_of(const Plan& plan, ExecutorKind kind) {
  return *std::find_if(plan.candidates.begin(), plan.candidates.end(),
                       [&](const Candidate& candidate) { return candidate.executor == kind; });
}

TEST(MakePlan, TakesTheCpuWhereThereIsNoGpuAndSaysWhy) {
  const Plan plan = make_plan(network_of({1000, 100, 1}), training_of(128), machine());
  EXPECT_EQ(plan.executor, ExecutorKind::cpu);
  EXPECT_CONTAINS(plan.reason, "no NVIDIA driver found");
  ASSERT_EQ(plan.candidates.size(), 4u);
  EXPECT_EQ(plan.candidates[0].executor, ExecutorKind::persistent);
  EXPECT_EQ(plan.candidates[1].executor, ExecutorKind::fused);
  EXPECT_EQ(plan.candidates[2].executor, ExecutorKind::graph);
  EXPECT_EQ(plan.candidates[3].executor, ExecutorKind::cpu);
  for (int i : {0, 1, 2}) {
    EXPECT_FALSE(plan.candidates[static_cast<std::size_t>(i)].accepted);
    EXPECT_EQ(plan.candidates[static_cast<std::size_t>(i)].reason, "no NVIDIA driver found");
  }
  EXPECT_TRUE(plan.candidates[3].accepted);
  EXPECT_GT(plan.bytes, 1000000u);
  EXPECT_EQ(plan.bytes, plan.candidates[3].bytes);
  EXPECT_GT(plan.predicted_us_per_step, 0);
}

TEST(MakePlan, SaysWhenTheBuildHasNoCuda) {
  DeviceCaps caps = machine();
  caps.no_gpu_reason = "built without CUDA";
  EXPECT_CONTAINS(make_plan(network_of({3, 1}), training_of(5), caps).reason, "built without CUDA");
  EXPECT_CONTAINS(message_of<Unsupported>(network_of({3, 1}), training_of(5), caps, ExecutorKind::graph),
                  "built without CUDA");
}

TEST(MakePlan, ThreadsAreOneForShortStepsAndAllCoresForLongOnes) {
  EXPECT_EQ(make_plan(network_of({1000, 100, 1}), training_of(128), machine()).threads, 1);
  EXPECT_EQ(make_plan(network_of({1024, 1024, 10}), training_of(1024), machine()).threads, 8);
  TrainingSpec training = training_of(128);
  training.threads = 3;
  EXPECT_EQ(make_plan(network_of({1000, 100, 1}), training, machine()).threads, 3);
}

TEST(MakePlan, AForcedPlanThatTheMachineLacksIsUnsupportedWithItsReason) {
  for (const ExecutorKind kind : {ExecutorKind::graph, ExecutorKind::persistent, ExecutorKind::fused}) {
    const std::string message = message_of<Unsupported>(network_of({3, 1}), training_of(5), machine(), kind);
    EXPECT_CONTAINS(message, "no NVIDIA driver found");
    EXPECT_CONTAINS(message, name(kind));
    EXPECT_CONTAINS(message, "'cpu'");
  }
  const Plan plan = make_plan(network_of({3, 1}), training_of(5), machine(), ExecutorKind::cpu);
  EXPECT_EQ(plan.executor, ExecutorKind::cpu);
  EXPECT_CONTAINS(plan.reason, "asked for");
}

GpuCaps gpu_of(const std::string& name, int index, int compute_capability, int multiprocessors,
               std::uint64_t memory = std::uint64_t{1} << 37) {
  GpuCaps gpu;
  gpu.name = name;
  gpu.index = index;
  gpu.compute_capability = compute_capability;
  gpu.multiprocessors = multiprocessors;
  gpu.memory_bytes = memory;
  gpu.l2_bytes = std::uint64_t{50} << 20;
  gpu.shared_bytes = 160 << 10;
  gpu.cooperative = true;
  return gpu;
}

TEST(MakePlan, ADeviceThatIsNotThereIsUnsupported) {
  TrainingSpec training = training_of(5);
  training.device = {DeviceKind::cuda, 0};
  EXPECT_CONTAINS(message_of<Unsupported>(network_of({3, 1}), training), "no NVIDIA driver found");
  DeviceCaps caps = machine();
  caps.no_gpu_reason.clear();
  caps.gpus.push_back(gpu_of("GPU", 0, 90, 132));
  training.device.index = 3;
  EXPECT_CONTAINS(message_of<Unsupported>(network_of({3, 1}), training, caps), "no CUDA device 3");
}

DeviceCaps machine_with_gpu(std::uint64_t memory = std::uint64_t{1} << 37) {
  DeviceCaps caps = machine();
  caps.no_gpu_reason.clear();
  caps.gpus.push_back(gpu_of("GPU 0", 0, 90, 132, memory));
  caps.gpus.push_back(gpu_of("GPU 1", 1, 80, 108, memory));
  return caps;
}

// A floor is below what is predicted; the CPU's peak is not known.
TEST(MakePlan, NoPredictionIsBelowItsFloor) {
  const std::vector<std::pair<std::vector<std::int64_t>, std::int64_t>> cases = {
      {{1000, 100, 1}, 128},  {{3, 1}, 5},           {{784, 128, 10}, 64},
      {{64, 64, 64, 1}, 256}, {{30, 20, 10, 5}, 40}, {{4096, 4096, 4096}, 8192}};
  for (const auto& [widths, samples] : cases)
    for (const Formulation formulation : {Formulation::primal, Formulation::gram})
      for (const Precision precision :
           {Precision::fp32, Precision::fp64, Precision::tf32, Precision::tf32x3, Precision::bf16, Precision::fp16}) {
        if (formulation == Formulation::gram && operand_parts(precision) > 0) continue;
        TrainingSpec training = training_of(samples);
        training.formulation = formulation;
        training.precision = precision;
        const Plan plan = make_plan(network_of(widths), training, machine_with_gpu());
        EXPECT_EQ(plan.floor_us_per_step,
                  std::find_if(plan.candidates.begin(), plan.candidates.end(), [](const auto& c) {
                    return c.accepted;
                  })->floor_us_per_step);
        int predicted = 0;
        for (const Candidate& candidate : plan.candidates) {
          if (candidate.predicted_us_per_step == 0) continue;
          ++predicted;
          EXPECT_EQ(candidate.floor_us_per_step > 0, candidate.executor != ExecutorKind::cpu);
          EXPECT_LE(candidate.floor_us_per_step, candidate.predicted_us_per_step) << name(candidate.executor);
        }
        EXPECT_GE(predicted, 2);
      }
}

// The arithmetic of 51.3 MFLOP on 100 blocks, a hop and an exchange within clusters.
TEST(MakePlan, TheFloorOfTheStartingCaseIsItsArithmeticAndItsExchanges) {
  DeviceCaps caps = machine_with_gpu();
  caps.gpus[0].shared_bytes = 227 << 10;
  const Plan plan = make_plan(network_of({1000, 100, 1}), training_of(128), caps);
  EXPECT_CONTAINS(plan.reason, "25 clusters of 4 blocks");
  const double arithmetic_us = 51.3e6 / 2 / (100 * 128 * 1.98e3);
  EXPECT_NEAR(plan.floor_us_per_step, arithmetic_us + 0.37 + 0.36, 0.02);
}

// The activations of many samples pass through the GPU's memory, where they do not fit its cache.
TEST(MakePlan, AGraphOfLittleArithmeticTakesAsLongAsItsBytes) {
  DeviceCaps caps = machine_with_gpu();
  const auto predicted = [&](std::int64_t samples, double gb_per_s) {
    caps.gpus[0].memory_gb_per_s = gb_per_s;
    return make_plan(network_of({8, 8, 8, 1}), training_of(samples), caps, ExecutorKind::graph).predicted_us_per_step;
  };
  EXPECT_EQ(predicted(128, 100), predicted(128, 4000));
  EXPECT_NEAR(predicted(std::int64_t{1} << 22, 100) / predicted(std::int64_t{1} << 22, 1000), 10, 0.5);
}

TEST(MakePlan, TakesWhatIsPredictedToBeFasterOnAGpu) {
  const Plan plan = make_plan(network_of({1000, 100, 1}), training_of(128), machine_with_gpu());
  EXPECT_EQ(plan.executor, ExecutorKind::persistent);
  EXPECT_CONTAINS(plan.reason, "one launch for many steps");
  EXPECT_EQ(plan.bytes, plan.candidates[0].bytes);
  EXPECT_LT(plan.predicted_us_per_step, answer_of(plan, ExecutorKind::graph).predicted_us_per_step);
  EXPECT_GT(plan.predicted_us_per_step, 0);
  EXPECT_EQ(plan.device, 0);

  const NetworkSpec large = network_of({512, 512, 10});
  TrainingSpec training = training_of(128);
  training.precision = Precision::fp64;
  const Plan graph = make_plan(large, training, machine_with_gpu());
  EXPECT_EQ(graph.executor, ExecutorKind::graph);
  EXPECT_CONTAINS(graph.reason, "GPU 0");
  EXPECT_EQ(graph.bytes, make_graph_layout(large, training).bytes);
  EXPECT_CONTAINS(graph.candidates[0].reason, "the plan 'graph' is predicted to be faster");
  EXPECT_EQ(make_plan(large, training, machine_with_gpu(), ExecutorKind::persistent).executor,
            ExecutorKind::persistent);

  training.device = {DeviceKind::cuda, 1};
  const Plan second = make_plan(large, training, machine_with_gpu());
  EXPECT_EQ(second.device, 1);
  EXPECT_CONTAINS(second.reason, "GPU 1");
  training.device = {DeviceKind::cpu, 0};
  EXPECT_EQ(make_plan(network_of({1000, 100, 1}), training, machine_with_gpu()).executor, ExecutorKind::cpu);
  EXPECT_CONTAINS(
      make_plan(network_of({1000, 100, 1}), training_of(128), machine_with_gpu(), ExecutorKind::graph).reason,
      "asked for");
}

TEST(MakePlan, AFormOfThePersistentPlanCanBeAskedFor) {
  TrainingSpec training = training_of(128);
  training.form = PersistentForm::two_layer;
  EXPECT_CONTAINS(make_plan(network_of({1000, 100, 1}), training, machine_with_gpu(), ExecutorKind::persistent)
                      .candidates[0]
                      .reason,
                  "asked for");
  training.form = PersistentForm::on_chip;
  DeviceCaps caps = machine_with_gpu();
  caps.gpus[0].shared_bytes = 64 << 10;
  const std::string message =
      message_of<Unsupported>(network_of({1000, 100, 1}), training, caps, ExecutorKind::persistent);
  EXPECT_CONTAINS(message,
                  " of a block's shared memory, of which there are 64.0 KiB; use smaller layers, fewer samples, "
                  "another form or the plan 'graph'");
}

TEST(MakePlan, WithoutCublasLtTheGraphTakesSmallProductsAndNarrowLayers) {
  DeviceCaps caps = machine_with_gpu();
  caps.no_cublaslt_reason = "cuBLASLt was not found: somewhere";
  const auto graph_of = [&](std::int64_t hidden, Precision precision) {
    TrainingSpec training = training_of(128);
    training.precision = precision;
    return make_plan(network_of({1000, hidden, 1}), training, caps).candidates[2];
  };
  EXPECT_TRUE(graph_of(16, Precision::fp64).accepted);
  EXPECT_FALSE(graph_of(17, Precision::fp64).accepted);
  EXPECT_TRUE(graph_of(17, Precision::fp32).accepted);
  EXPECT_TRUE(graph_of(512, Precision::fp32).accepted);
  EXPECT_FALSE(graph_of(1025, Precision::fp32).accepted);
  EXPECT_CONTAINS(message_of<Unsupported>(network_of({1000, 1025, 1}), training_of(128), caps, ExecutorKind::graph),
                  "cuBLASLt was not found: somewhere");
}

TEST(MakePlan, SmallNetworksTakeThreeProductsOfTf32OnChip) {
  TrainingSpec training = training_of(256);
  training.precision = Precision::tf32x3;
  const Plan plan = make_plan(network_of({64, 64, 64, 1}), training, machine_with_gpu());
  EXPECT_EQ(plan.executor, ExecutorKind::persistent);
  EXPECT_CONTAINS(plan.reason, "; products by three in TF32 on tensor cores");
  training.precision = Precision::fp32;
  EXPECT_LT(plan.predicted_us_per_step,
            make_plan(network_of({64, 64, 64, 1}), training, machine_with_gpu()).predicted_us_per_step);
}

TrainingSpec bf16_training_of(std::int64_t samples, std::int64_t batch_size = 0) {
  TrainingSpec training = training_of(samples);
  training.precision = Precision::bf16;
  training.batch_size = batch_size;
  return training;
}

TEST(MakePlan, ANarrowNetworkInBf16TakesTheFusedPlan) {
  const DeviceCaps caps = machine_with_gpu();
  const NetworkSpec network = network_of({64, 64, 64, 1});
  const Plan plan = make_plan(network, bf16_training_of(1 << 16), caps);
  EXPECT_EQ(plan.executor, ExecutorKind::fused);
  EXPECT_CONTAINS(plan.reason,
                  "one launch for many steps: 132 blocks of 512 threads; tensor cores take tiles of 64 rows through 2 "
                  "hidden layers of 64 columns in bf16, at most 16384 steps a launch");
  EXPECT_GT(plan.floor_us_per_step, 0);
  EXPECT_LT(plan.floor_us_per_step, plan.predicted_us_per_step);
  // Inputs in fp32 and as tiles, targets, and what 132 blocks sum.
  const std::uint64_t data = (std::uint64_t{1} << 16) * (64 * 4 + 64 * 2 + 4), slots = 132 * 2210 * 16;
  EXPECT_GE(plan.bytes, data + slots);
  EXPECT_LE(plan.bytes, data + slots + (2 << 20));
  const Plan batches = make_plan(network, bf16_training_of(1 << 16, 4096), caps);
  EXPECT_EQ(batches.executor, ExecutorKind::fused);
  EXPECT_CONTAINS(batches.reason,
                  "4 clusters of 16 blocks of 384 threads, which keep the parameters on chip and exchange sums; tensor "
                  "cores take tiles of 64 gathered rows");
  EXPECT_GT(batches.floor_us_per_step, 0);
  EXPECT_LT(batches.floor_us_per_step, batches.predicted_us_per_step);
  EXPECT_LT(batches.predicted_us_per_step, plan.predicted_us_per_step);
  const Plan classes = make_plan(network_of({64, 64, 64, 10}), bf16_training_of(1 << 16), caps);
  EXPECT_EQ(classes.executor, ExecutorKind::fused);
  EXPECT_CONTAINS(classes.reason, "through 2 hidden layers of 64 columns in bf16, at most");
  const Plan images = make_plan(network_of({64, 64, 64, 60}), bf16_training_of(1 << 16), caps);
  EXPECT_EQ(images.executor, ExecutorKind::fused);
  EXPECT_CONTAINS(images.reason, "through 2 hidden layers and outputs of 64 columns in bf16, 2 % of the products");

  const Plan in_fp32 = make_plan(network, training_of(1 << 16), caps);
  EXPECT_NE(in_fp32.executor, ExecutorKind::fused);
  EXPECT_EQ(answer_of(in_fp32, ExecutorKind::fused).reason,
            "it multiplies in tf32, tf32x3 and bf16, not in fp32; set the precision to one of these");
}

TEST(MakePlan, TheFusedPlanSaysWhatPaddingCosts) {
  const auto reason_of = [](std::int64_t width, std::int64_t samples) {
    return make_plan(network_of({width, width, width, 1}), bf16_training_of(samples), machine_with_gpu()).reason;
  };
  EXPECT_CONTAINS(reason_of(48, 1 << 16), ", 44 % of the products are of padding to whole tiles and columns,");
  EXPECT_CONTAINS(reason_of(64, 96), ", 25 % of the products are of padding to whole tiles and columns,");
  EXPECT_EQ(reason_of(128, 1 << 16).find("padding"), std::string::npos);
}

TEST(MakePlan, TheFusedPlanRefusesInOneSentence) {
  const auto message = [](const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps) {
    return message_of<Unsupported>(network, training, caps, ExecutorKind::fused);
  };
  const NetworkSpec network = network_of({64, 64, 1});
  const TrainingSpec training = bf16_training_of(1000);
  DeviceCaps caps = machine_with_gpu();
  EXPECT_EQ(make_plan(network, training, caps, ExecutorKind::fused).executor, ExecutorKind::fused);
  const std::string start = "plan 'fused': ", end = "; use the plan 'cpu' or 'auto'";
  for (const Precision precision : {Precision::fp32, Precision::fp64, Precision::fp16}) {
    TrainingSpec other = training;
    other.precision = precision;
    EXPECT_EQ(message(network, other, caps), start + "it multiplies in tf32, tf32x3 and bf16, not in " +
                                                 name(precision) + "; set the precision to one of these" + end);
  }
  NetworkSpec sine = network, tanh = network, last = network;
  sine.activation = Activation::sine;
  tanh.activation = Activation::tanh;
  last.output_activation = Activation::sine;
  EXPECT_EQ(message(sine, training, caps),
            start + "it has no activation 'sine'; choose another activation or another plan" + end);
  EXPECT_EQ(message(last, training, caps),
            start + "it has no output activation 'sine'; choose another activation or another plan" + end);
  TrainingSpec in_tf32 = training, clipped = training;
  in_tf32.precision = Precision::tf32;
  EXPECT_EQ(message(sine, in_tf32, caps), message(sine, training, caps));
  EXPECT_EQ(make_plan(tanh, in_tf32, caps, ExecutorKind::fused).executor, ExecutorKind::fused);
  EXPECT_EQ(make_plan(tanh, training, caps, ExecutorKind::fused).executor, ExecutorKind::fused);
  EXPECT_EQ(make_plan(network, in_tf32, caps, ExecutorKind::fused).executor, ExecutorKind::fused);
  clipped.optimizer = {.kind = OptimizerKind::sgd, .clip_norm = 1};
  EXPECT_EQ(message(network, clipped, caps),
            start +
                "it does not clip gradients by their norm; clip them by their value (clip_value) or choose another "
                "plan" +
                end);
  EXPECT_CONTAINS(message(network_of({784, 64, 10}), training, caps), "at most 128 values in bf16, and one has 784");
  EXPECT_CONTAINS(message(network_of({64, 64, 129}), training, caps), "at most 128 outputs in bf16, and there are 129");
  EXPECT_CONTAINS(message(network_of({64, 64, 10}), in_tf32, caps), "at most 8 outputs in tf32, and there are 10");
  EXPECT_CONTAINS(message(network_of({64, 1}), training, caps),
                  "1 to 8 hidden layers of that width in bf16, and there are 0");
  EXPECT_CONTAINS(message(network_of({64, 65, 64, 64, 1}), training, caps), "and there are 3");
  caps.gpus[0].shared_bytes = 48 << 10;
  EXPECT_CONTAINS(message(network_of({64, 64, 64, 1}), training, caps),
                  "bytes of shared memory, and a block has 49152");
  caps = machine_with_gpu();
  caps.gpus[0].cooperative = false;
  EXPECT_CONTAINS(message(network, training, caps), "GPU 0 does not promise that all blocks of a launch run at once");
  caps.gpus[0].no_hopper_code_reason = "this build holds none; build it with CUDAARCHS";
  EXPECT_EQ(message(network, training, caps), start + "this build holds none; build it with CUDAARCHS" + end);
  for (const int capability : {89, 100}) {
    caps.gpus[0].compute_capability = capability;
    EXPECT_CONTAINS(message(network, training, caps), "instructions of compute capability 9.0, and the GPU has ");
  }
  caps = machine_with_gpu(std::uint64_t{15} << 20);
  EXPECT_CONTAINS(message(network, bf16_training_of(1 << 20), caps), "of the GPU's memory, which is 15.0 MiB");
}

// A network that only predicts has no step to predict the time of.
TEST(MakePlan, TheFusedPlanTakesANetworkThatOnlyPredicts) {
  const Plan plan = make_plan(network_of({64, 64, 1}), bf16_training_of(0), machine_with_gpu(), ExecutorKind::fused);
  EXPECT_EQ(plan.predicted_us_per_step, 0);
  EXPECT_GT(plan.bytes, 0u);
}

TEST(MakePlan, PrecisionsBelowFp32AreThoseOfTheGraphAndTheCpu) {
  const NetworkSpec network = network_of({1000, 100, 1});
  DeviceCaps caps = machine_with_gpu();
  caps.gpus[0].cooperative = false;  // one cluster is too small
  TrainingSpec on_one_thread = training_of(128);
  on_one_thread.threads = 1;
  const Plan in_fp32 = make_plan(network, on_one_thread, machine());
  for (const Precision precision : {Precision::tf32, Precision::tf32x3, Precision::bf16, Precision::fp16}) {
    TrainingSpec training = on_one_thread;
    training.precision = precision;
    const std::string not_in = std::string(", not in ") + name(precision),
                      remedy = "; set the precision to one of these";
    const std::string persistent =
        precision == Precision::tf32x3
            ? "the form 'two-layer' multiplies in fp32 and fp64" + not_in + ", and the parameters"
            : "it multiplies in fp32, fp64 and tf32x3" + not_in + remedy;
    const Plan on_gpu = make_plan(network, training, caps);
    EXPECT_EQ(on_gpu.executor, ExecutorKind::graph);
    EXPECT_EQ(on_gpu.candidates[0].reason.find(persistent), 0u) << on_gpu.candidates[0].reason;
    EXPECT_EQ(answer_of(on_gpu, ExecutorKind::graph).reason, "GPU 0 replays captured steps");
    EXPECT_LE(on_gpu.floor_us_per_step, on_gpu.predicted_us_per_step);
    // Of an older GPU.
    DeviceCaps turing = machine_with_gpu();
    turing.gpus = {gpu_of("Turing", 0, 75, 40, std::uint64_t{1} << 34)};
    if (precision == Precision::fp16) {
      EXPECT_EQ(make_plan(network, training, turing).executor, ExecutorKind::graph);
    } else {
      const std::string reason = std::string("products in ") + name(precision) +
                                 " need compute capability 8.0, and Turing has 7.5; set the precision to fp32, fp64 or "
                                 "fp16";
      EXPECT_EQ(answer_of(make_plan(network, training, turing), ExecutorKind::graph).reason, reason);
      EXPECT_EQ(message_of<Unsupported>(network, training, turing, ExecutorKind::graph),
                "plan 'graph': " + reason + "; use the plan 'cpu' or 'auto'");
    }
    training.device.kind = DeviceKind::cpu;
    const Plan plan = make_plan(network, training, machine());
    EXPECT_EQ(plan.executor, ExecutorKind::cpu);
    // Rounded copies of data, weights and, of each sample, hidden values and gradients.
    const int copies = precision == Precision::tf32x3 ? 2 : 1;
    const std::uint64_t elements = 128 * 1000 + 1000 * 100 + 100 + 128 * (100 + 100 + 1);
    EXPECT_GE(make_plan(network, training, machine()).bytes,
              in_fp32.bytes + static_cast<std::uint64_t>(copies) * elements * 4);
    EXPECT_GT(plan.predicted_us_per_step, (precision == Precision::tf32x3 ? 3 : 1) * in_fp32.predicted_us_per_step - 3);
    training.device = {};
    training.formulation = Formulation::gram;
    EXPECT_CONTAINS(message_of<InvalidArgument>(network, training),
                    "the formulation 'gram' is exact for products in fp32 and fp64, not for those in " +
                        std::string(name(precision)) +
                        ", whose errors would add up over the whole run; set the precision to one of the two, or use "
                        "'primal'");
    // What is held is fp32.
    training.formulation = Formulation::primal;
    training.optimizer.learning_rate = 1e-40;
    EXPECT_CONTAINS(message_of<InvalidArgument>(network, training), "the smallest normal number of fp32, 1.17549e-38");
    training.optimizer.learning_rate = 1e40;
    EXPECT_CONTAINS(message_of<InvalidArgument>(network, training), "which fp32 cannot hold");
    training.optimizer.learning_rate = 1;
    training.huber_delta = 1e40;
    EXPECT_CONTAINS(message_of<InvalidArgument>(network, training), "rounded to fp32 inf");
  }
}

// With and without the library the same products: a plan does not depend on what else is installed.
TEST(GraphLayout, TakesOwnProductsWhereTheyAreFasterAndPredictsByThem) {
  const auto kinds = [](std::vector<std::int64_t> widths, const TrainingSpec& training) {
    const GraphLayout layout = make_graph_layout(network_of(std::move(widths)), training);
    std::pair<int, int> own_and_library;
    for (const auto* list : {&layout.operations, &layout.predict, &layout.make_kernel})
      for (const GraphOperation& op : *list) {
        own_and_library.first += op.kind == GraphOperation::Kind::product;
        own_and_library.first += static_cast<int>(op.beside.size());
        own_and_library.second += op.kind == GraphOperation::Kind::gemm;
      }
    EXPECT_EQ(layout.has_gemm, own_and_library.second > 0);
    return own_and_library;
  };
  TrainingSpec training = training_of(128);
  EXPECT_EQ(kinds({1000, 100, 1}, training), std::pair(4, 0));
  EXPECT_EQ(kinds({1024, 1024, 1024, 10}, training), std::pair(0, 5 + 2));  // more than 2^26 multiply-adds
  EXPECT_EQ(kinds({100, 1025, 100, 10}, training), std::pair(0, 5 + 2));
  training.formulation = Formulation::gram;
  EXPECT_EQ(kinds({1000, 100, 1}, training), std::pair(3, 0));
  EXPECT_EQ(kinds({1025, 100, 1}, training), std::pair(1, 2));  // K and the predictions by the library
  training = training_of(1024);
  EXPECT_EQ(kinds({256, 256, 256, 1}, training), std::pair(6 + 2, 0));
  training.precision = Precision::fp64;
  EXPECT_EQ(kinds({256, 256, 256, 1}, training), std::pair(0, 5 + 2));
}

// Own products that are gradients come after all that anything waits for, together: what they read is still there, and
// nothing reads what they change.
TEST(GraphLayout, GradientsOfOwnProductsComeLastTogether) {
  for (const Activation activation : {Activation::relu, Activation::identity, Activation::tanh})
    for (const OptimizerKind optimizer : {OptimizerKind::gradient_descent, OptimizerKind::adam}) {
      NetworkSpec network = network_of({50, 40, 30, 20, 18});
      network.activation = activation;
      network.bias = true;
      TrainingSpec training = training_of(64);
      training.optimizer.kind = optimizer;
      const GraphLayout layout = make_graph_layout(network, training);
      ASSERT_TRUE(layout.updates_by_gradients);
      const GraphOperation& last = layout.operations.back();
      ASSERT_EQ(last.beside.size(), 3u);
      std::vector<const GraphOperation*> gradients = {&last};
      for (const GraphOperation& beside : last.beside) gradients.push_back(&beside);
      std::set<std::uint64_t> read, written, written_before;
      for (std::size_t i = 0; i + 1 < layout.operations.size(); ++i) {
        written_before.insert(layout.operations[i].out);
        EXPECT_TRUE(layout.operations[i].beside.empty());
      }
      for (const GraphOperation* gradient : gradients) {
        EXPECT_TRUE(gradient->kind == GraphOperation::Kind::product && gradient->transpose_a && gradient->updates);
        EXPECT_EQ(gradient->end, cuda::ProductEnd::gradient);
        EXPECT_EQ(gradient->optimizer, optimizer);
        EXPECT_EQ(gradient->state[1] != kNoOperand, optimizer == OptimizerKind::adam);
        EXPECT_EQ(gradient->sums_state[1] != kNoOperand, optimizer == OptimizerKind::adam);
        // Another place for each output and each gradient of it, and all of them written but the inputs.
        EXPECT_TRUE(read.insert(gradient->a).second);
        EXPECT_TRUE(read.insert(gradient->b).second);
        EXPECT_TRUE(written_before.count(gradient->b));
        EXPECT_EQ(written_before.count(gradient->a), gradient->layer == 0 ? 0u : 1u);
        for (const std::uint64_t out : {gradient->out, gradient->sums, gradient->state[0], gradient->sums_state[0]})
          EXPECT_TRUE(out == kNoOperand || written.insert(out).second);
      }
      for (const std::uint64_t out : written) EXPECT_EQ(read.count(out), 0u);
    }
}

TEST(GraphLayout, OneLaunchUpdatesAllWhereAGradientCannotOrTheNormIsClipped) {
  const auto updates = [](std::vector<std::int64_t> widths, const Optimizer& optimizer, Precision precision) {
    NetworkSpec network = network_of(std::move(widths));
    network.bias = true;
    TrainingSpec training = training_of(64);
    training.optimizer = optimizer;
    training.precision = precision;
    const GraphLayout layout = make_graph_layout(network, training);
    EXPECT_EQ(layout.updates_by_gradients, layout.operations.back().kind != GraphOperation::Kind::update);
    EXPECT_EQ(layout.updates_by_gradients, layout.parameter_gradients == 0);
    return !layout.updates_by_gradients;
  };
  const Optimizer adam{.kind = OptimizerKind::adam}, clipped{.kind = OptimizerKind::adam, .clip_norm = 1};
  EXPECT_FALSE(updates({50, 40, 1}, adam, Precision::fp32));
  EXPECT_TRUE(updates({50, 40, 1}, clipped, Precision::fp32));
  EXPECT_TRUE(updates({1025, 40, 1}, adam, Precision::fp32));  // by the library
  EXPECT_TRUE(updates({50, 40, 1}, adam, Precision::fp64));
  EXPECT_FALSE(updates({50, 10, 1}, adam, Precision::fp64));  // narrow
  EXPECT_FALSE(updates({1025, 40, 1}, {}, Precision::fp32));
}

TEST(MakePlan, AGpuThatTheBuildHasNoCodeForIsRefused) {
  DeviceCaps caps = machine_with_gpu();
  caps.gpus[0].no_code_reason = "no code for it; build for it";
  EXPECT_EQ(make_plan(network_of({1000, 16, 1}), training_of(128), caps).executor, ExecutorKind::cpu);
  EXPECT_CONTAINS(message_of<Unsupported>(network_of({3, 1}), training_of(5), caps, ExecutorKind::graph),
                  "no code for it; build for it");
}

TEST(MakePlan, WhatDoesNotFitIntoTheGpuIsRefusedWithBothNumbers) {
  const DeviceCaps caps = machine_with_gpu(std::uint64_t{15} << 20);
  EXPECT_EQ(make_plan(network_of({1000, 1000, 1}), training_of(1000), caps).executor, ExecutorKind::cpu);
  TrainingSpec training = training_of(1000);
  training.device = {DeviceKind::cuda, 0};
  const std::string message = message_of<Unsupported>(network_of({1000, 1000, 1}), training, caps);
  EXPECT_CONTAINS(message, "of the GPU's memory, which is 15.0 MiB");
}

/// A specification with one value that is none of its enum, and what messages call it.
struct Unknown {
  std::string what;
  NetworkSpec network = network_of({20, 10, 1});
  TrainingSpec training = training_of(64);
};

template <class Enum>
constexpr Enum unknown_value() {
  return static_cast<Enum>(77);
}

std::vector<Unknown> unknown_values() {
  std::vector<Unknown> all(7);
  all[0].what = "activation number 77";
  all[0].network.activation = unknown_value<Activation>();
  all[1].what = "loss number 77";
  all[1].training.loss = unknown_value<Loss>();
  all[2].what = "optimizer number 77";
  all[2].training.optimizer.kind = unknown_value<OptimizerKind>();
  all[3].what = "precision number 77";
  all[3].training.precision = unknown_value<Precision>();
  all[4].what = "formulation number 77";
  all[4].training.formulation = unknown_value<Formulation>();
  all[5].what = "device number 77";
  all[5].training.device.kind = unknown_value<DeviceKind>();
  all[6].what = "form of the plan 'persistent' number 77";
  all[6].training.form = unknown_value<PersistentForm>();
  return all;
}

TEST(MakePlan, RefusesValuesThatNoEnumHas) {
  for (const Unknown& unknown : unknown_values()) {
    const std::string message = message_of<InvalidArgument>(unknown.network, unknown.training, machine_with_gpu());
    EXPECT_CONTAINS(message, "there is no " + unknown.what);
    EXPECT_CONTAINS(message, "use one that <deviceloop/spec.h> names");
  }
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({20, 10, 1}), training_of(64), machine_with_gpu(),
                                              unknown_value<ExecutorKind>()),
                  "there is no plan number 77; use one that <deviceloop/plan.h> names");
}

// Behind the planner's own check: a value that the library knows and an executor does not must not train as another
// one.
TEST(MakePlan, EachExecutorRefusesWhatItDoesNotImplement) {
  std::vector<Unknown> all = unknown_values();
  all.resize(5);  // the device and the form are none of all executors' business
  const DeviceCaps caps = machine_with_gpu();
  for (const ExecutorRow& row : executor_rows())
    for (const Unknown& unknown : all) {
      Answer answer;
      row.ask({unknown.network, unknown.training, caps, make_step(unknown.network, unknown.training)}, answer);
      EXPECT_FALSE(answer.candidate.accepted) << name(row.kind) << ": " << unknown.what;
      EXPECT_EQ(answer.candidate.reason, "it has no " + unknown.what) << name(row.kind);
      EXPECT_FALSE(answer.layout.has_value());
    }
}

TEST(MakePlan, TellsTheNameOrTheNumberOfAValue) {
  EXPECT_EQ(shown(Activation::relu), "'relu'");
  EXPECT_EQ(shown(Init::xavier), "'xavier'");
  EXPECT_EQ(shown(unknown_value<Init>()), "number 77");
}

// What was decided is what the executor is made of, whatever GPU this machine has.
TEST(Decide, HoldsTheLayoutThatItsPlanWasMadeBy) {
  const DeviceCaps caps = machine_with_gpu();
  for (const ExecutorRow& row : executor_rows()) {
    const bool is_fused = row.kind == ExecutorKind::fused;
    const Decision decision =
        decide(network_of({20, 10, 1}), is_fused ? bf16_training_of(64) : training_of(64), caps, row.kind);
    EXPECT_EQ(decision.plan.executor, row.kind);
    ASSERT_TRUE(decision.layout.has_value());
  }
  const Decision graph = decide(network_of({20, 10, 1}), training_of(64), caps, ExecutorKind::graph);
  EXPECT_EQ(std::any_cast<const GraphLayout&>(graph.layout).bytes, graph.plan.bytes);
}

TEST(GraphLayout, CountsTheKernelsOfAStep) {
  const auto nodes = [](std::vector<std::int64_t> widths, std::int64_t samples, bool bias,
                        Formulation formulation = Formulation::primal,
                        OptimizerKind optimizer = OptimizerKind::gradient_descent) {
    NetworkSpec network = network_of(std::move(widths));
    network.bias = bias;
    TrainingSpec training = training_of(samples);
    training.formulation = formulation;
    training.optimizer.kind = optimizer;
    return make_graph_layout(network, training).nodes_per_step();
  };
  EXPECT_EQ(nodes({1000, 100, 1}, 128, false), 2);   // product, ReLU, layer and error with its gradients; products
  EXPECT_EQ(nodes({1000, 100, 1}, 128, true), 2);    // biases beside their weights
  EXPECT_EQ(nodes({1000, 300, 1}, 128, false), 4);   // product and ReLU, layer and error, its gradient, product
  EXPECT_EQ(nodes({1000, 1025, 1}, 128, false), 5);  // GEMM, ReLU, layer and error, its gradient, GEMM
  EXPECT_EQ(nodes({5, 1}, 10, false), 2);            // layer and error, gradient
  EXPECT_EQ(nodes({50, 40, 30}, 128, false), 5);     // two products, error, a product with the mask, two products
  EXPECT_EQ(nodes({5, 1}, 100000, false), 4);        // layer, error, its gradient in two stages
  EXPECT_EQ(nodes({1000, 100, 1}, 128, false, Formulation::gram), 5);  // ReLU, layer and error, its gradient, Z, S
  EXPECT_EQ(nodes({1000, 100, 1}, 128, true, Formulation::gram), 5);   // with the upper bias
  EXPECT_EQ(nodes({50, 1}, 10, true, Formulation::gram), 3);           // error, Z, S
  // The same, with what the optimizer keeps.
  EXPECT_EQ(nodes({1000, 100, 1}, 128, true, Formulation::gram, OptimizerKind::sgd), 5);
  EXPECT_EQ(nodes({50, 1}, 10, true, Formulation::gram, OptimizerKind::sgd), 3);
}

// Those of 16 bits, but for weights, which lie among all parameters; and the place of each is large enough.
TEST(GraphLayout, RowsOfRoundedOperandsBeginAtMultiplesOf16Bytes) {
  TrainingSpec training = training_of(130);
  for (const Precision precision : {Precision::bf16, Precision::fp16, Precision::tf32}) {
    SCOPED_TRACE(name(precision));
    training.precision = precision;
    const GraphLayout layout = make_graph_layout(network_of({13, 100, 50, 1}), training);
    struct Rows {
      std::string purpose;
      int layer;
      std::int64_t a, b;
      bool operator==(const Rows&) const = default;
    };
    const auto rows_of = [](const std::vector<GraphOperation>& operations) {
      std::vector<Rows> rows;
      for (const GraphOperation& op : operations)
        if (op.kind == GraphOperation::Kind::gemm) rows.push_back({op.purpose, op.layer, op.pitch_a, op.pitch_b});
      return rows;
    };
    const bool is_half = precision != Precision::tf32;
    const std::int64_t inputs = is_half ? 16 : 13, first = is_half ? 104 : 100, second = is_half ? 56 : 50;
    EXPECT_TRUE(rows_of(layout.operations) == (std::vector<Rows>{{"forward", 0, inputs, 0},
                                                                 {"forward", 1, first, 0},
                                                                 {"gradient of its input", 1, second, 0},
                                                                 {"gradient of its weights", 1, first, second},
                                                                 {"gradient of its weights", 0, inputs, first}}));
    EXPECT_TRUE(rows_of(layout.predict) == (std::vector<Rows>{{"forward", 0, inputs, 0}, {"forward", 1, first, 0}}));
    std::set<std::uint64_t> begins = {layout.bytes};
    for (const std::uint64_t tensor : layout.tensors)
      if (tensor < kBorrowed) begins.insert(tensor);
    for (const RoundedParts& parts : layout.rounded)
      if (parts != kNotRounded) begins.insert(parts.front());
    for (const auto& [id, pitch] : {std::pair(layout.step.x, inputs), std::pair(layout.step.layers[0].output, first),
                                    std::pair(layout.step.layers[1].gradient, second)}) {
      const std::uint64_t begin = layout.rounded_of(id).front();
      EXPECT_GE(*begins.upper_bound(begin) - begin, static_cast<std::uint64_t>(130 * pitch * (is_half ? 2 : 4))) << id;
    }
  }
}

// What the library multiplies lies beside its tensor in rounded form, which the launch that makes it writes: no launch
// of its own in a step.
TEST(GraphLayout, RoundsOperandsWhereTheyAreMade) {
  struct Found {
    int products = 0, rounding = 0, stored = 0;
    bool operator==(const Found&) const = default;
  };
  const auto found = [](const std::vector<GraphOperation>& operations) {
    Found sum;
    for (const GraphOperation& op : operations) {
      sum.products += op.kind == GraphOperation::Kind::gemm;
      sum.rounding += op.kind == GraphOperation::Kind::round;
      sum.stored += op.rounded != kNotRounded;
      for (const GraphOperation::Gathered& of : op.gathered) sum.stored += of.rounded != kNotRounded;
      EXPECT_NE(op.kind, GraphOperation::Kind::product);
    }
    return sum;
  };
  TrainingSpec training = training_of(128);
  training.precision = Precision::bf16;
  NetworkSpec network = network_of({1000, 100, 50, 1});
  network.bias = true;
  const GraphLayout layout = make_graph_layout(network, training);
  // Stored: two hidden layers' gradients, the first one's values, the weights.
  EXPECT_EQ(found(layout.operations), (Found{2 + 1 + 2, 0, 4}));
  EXPECT_EQ(found(layout.predict), (Found{2, 1, 2}));
  EXPECT_EQ(layout.rounded_of(layout.step.data_x).front() != kNoOperand, true);
  EXPECT_EQ(layout.rounded_of(layout.step.layers[1].output), kNotRounded);  // the narrow layer rounds it
  EXPECT_EQ(layout.rounded_of(layout.step.layers[2].weight), kNotRounded);
  EXPECT_FALSE(layout.updates_by_gradients);
  // What products read is aligned, also where it lies among other parameters.
  for (const RoundedParts& parts : layout.rounded) EXPECT_TRUE(parts == kNotRounded || parts.front() % 256 == 0);

  training.precision = Precision::tf32x3;
  EXPECT_EQ(found(make_graph_layout(network, training).operations), (Found{3 * 5, 0, 4}));
  training.precision = Precision::fp32;
  EXPECT_EQ(make_graph_layout(network_of({1025, 1025, 1025}), training).rounded.size(), 0u);

  // Of a minibatch only what is multiplied.
  training.precision = Precision::bf16;
  training.batch_size = 64;
  const GraphLayout batches = make_graph_layout(network, training);
  EXPECT_EQ(found(batches.operations), (Found{5, 0, 5}));
  EXPECT_EQ(batches.at(batches.step.x), kNoOperand);
  const GraphLayout narrow = make_graph_layout(network_of({1000, 10, 1}), training);
  EXPECT_EQ(found(narrow.operations), (Found{0, 0, 0}));
  EXPECT_NE(narrow.at(narrow.step.x), kNoOperand);
}

TEST(GraphLayout, ScalesTheLossInFp16ByOneFactorOfAllGradients) {
  TrainingSpec training = training_of(128);
  NetworkSpec network = network_of({30, 100, 1});
  network.bias = true;
  const auto nodes = [&](Precision precision, double clip_norm) {
    training.precision = precision;
    training.optimizer = {.kind = OptimizerKind::sgd, .clip_norm = clip_norm};
    const GraphLayout layout = make_graph_layout(network, training);
    const auto factor = std::find_if(layout.operations.begin(), layout.operations.end(), [](const GraphOperation& op) {
      return op.kind == GraphOperation::Kind::gradient_factor;
    });
    EXPECT_EQ(factor != layout.operations.end(), precision == Precision::fp16 || clip_norm > 0);
    EXPECT_EQ(layout.at(layout.step.loss_scaling) != kNoOperand, precision == Precision::fp16);
    return layout.nodes_per_step();
  };
  // Product, ReLU, layer and error, its gradient with the bias beside it, product, update with the other bias.
  EXPECT_EQ(nodes(Precision::bf16, 0), 6);
  EXPECT_EQ(nodes(Precision::bf16, 1), 8);  // column sums, factor
  EXPECT_EQ(nodes(Precision::fp16, 0), 8);
  EXPECT_EQ(nodes(Precision::fp16, 1), 8);
}

// The rates of cuBLASLt that an H100 reached at 8192: the floor of large layers is theirs.
TEST(GraphLayout, LargeProductsTakeTheRateOfTheirPrecision) {
  const GpuCaps gpu = machine_with_gpu().gpus[0];
  const auto floor_us = [&](Precision precision) {
    TrainingSpec training = training_of(8192);
    training.precision = precision;
    return graph_step_time(make_graph_layout(network_of({4096, 4096, 4096, 4096, 4096}), training), gpu).floor_us;
  };
  const double flops = 11 * 2 * 8192.0 * 4096 * 4096;
  EXPECT_NEAR(flops / floor_us(Precision::tf32) / 1e6, 371, 12);
  EXPECT_NEAR(flops / floor_us(Precision::bf16) / 1e6, 674, 30);
  EXPECT_EQ(floor_us(Precision::fp16) > floor_us(Precision::bf16), true);  // the factor
  EXPECT_NEAR(floor_us(Precision::tf32x3) / floor_us(Precision::tf32), 3, 0.05);
  EXPECT_LT(floor_us(Precision::tf32), floor_us(Precision::fp32) / 5);
}

TEST(GraphLayout, SumsBiasGradientsBesideThoseOfWeightsOrInTheLaunchThatUpdatesAll) {
  NetworkSpec network = network_of({784, 128, 10});
  network.bias = true;
  struct Sums {
    int alone = 0, beside = 0, in_update = 0;
    bool operator==(const Sums&) const = default;
  };
  const auto sums = [&](const Optimizer& optimizer, std::int64_t samples) {
    TrainingSpec training = training_of(samples);
    training.optimizer = optimizer;
    Sums found;
    for (const GraphOperation& op : make_graph_layout(network, training).operations) {
      found.alone += op.kind == GraphOperation::Kind::column_sums;
      found.beside += op.sums != kNoOperand;
      for (const GraphOperation& beside : op.beside) found.beside += beside.sums != kNoOperand;
      found.in_update += static_cast<int>(op.summed.size());
    }
    return found;
  };
  const Optimizer adam{.kind = OptimizerKind::adam}, clipped{.kind = OptimizerKind::adam, .clip_norm = 1};
  EXPECT_EQ(sums(adam, 64), (Sums{0, 2, 0}));
  EXPECT_EQ(sums(clipped, 64), (Sums{0, 2, 0}));
  EXPECT_EQ(sums({}, 64), (Sums{0, 2, 0}));
  EXPECT_EQ(sums(adam, 1024), (Sums{0, 1, 1}));  // the first layer by the library
  EXPECT_EQ(sums(adam, 1025), (Sums{1, 1, 0}));  // of 128 columns in five tiles of rows
  EXPECT_EQ(sums({}, 1024), (Sums{1, 1, 0}));
}

TEST(GraphLayout, TakesThreeKernelsForAStepOfAClassifier) {
  NetworkSpec network = network_of({784, 128, 10});
  network.bias = true;
  TrainingSpec training = training_of(60000);
  training.batch_size = 64;
  training.loss = Loss::cross_entropy;
  training.reduction = Reduction::mean;
  training.class_targets = true;
  training.optimizer.kind = OptimizerKind::adam;
  // Batch, product up to the loss, gradients
  EXPECT_EQ(make_graph_layout(network, training).nodes_per_step(), 3);
  training.batch_size = 512;
  EXPECT_EQ(make_graph_layout(network, training).nodes_per_step(), 3);
  training.batch_size = 1024;  // by the library: ReLU is a launch of its own
  EXPECT_EQ(make_graph_layout(network, training).nodes_per_step(), 7);
}

TEST(GraphLayout, AProductEndsWithTheLossOfANarrowLayerWhereItsClusterHasAllColumns) {
  struct Case {
    std::vector<std::int64_t> widths;
    Activation activation = Activation::relu, output_activation = Activation::identity;
    Precision precision = Precision::fp32;
    bool has_clusters = true;
  };
  const auto layout_of = [](const Case& of) {
    NetworkSpec network = network_of(of.widths);
    network.activation = of.activation;
    network.output_activation = of.output_activation;
    network.bias = true;
    TrainingSpec training = training_of(65536);
    training.batch_size = 256;
    training.optimizer.kind = OptimizerKind::adam;
    training.precision = of.precision;
    return make_graph_layout(network, training, {.has_clusters = of.has_clusters});
  };
  for (const Case& of : {Case{{64, 64, 64, 1}}, Case{{64, 64, 256, 16}}, Case{{64, 64, 100, 3}, Activation::identity},
                         Case{{64, 64, 30, 1}, Activation::relu, Activation::identity, Precision::fp32, false}}) {
    SCOPED_TRACE(of.widths[2]);
    const GraphLayout layout = layout_of(of);
    ASSERT_TRUE(layout.product_with_loss.has_value());
    EXPECT_EQ(layout.nodes_per_step(), 5);  // batch, two products, gradient of the first one's output, gradients
    const GraphOperation& product = layout.operations[layout.forward_operations];
    ASSERT_EQ(product.above.size(), 1u);
    const GraphOperation& loss = product.above.front();
    EXPECT_EQ(&loss, &layout.loss_operation());
    EXPECT_EQ(loss.below, product.out);
    EXPECT_EQ(loss.weight, layout.at(layout.step.layers[2].weight));
    EXPECT_EQ(product.below, layout.at(layout.step.layers[1].gradient));
    EXPECT_NE(product.below, product.out);
    EXPECT_GE(layout.product_with_loss->across_blocks * cuda::kProductTileColumns, of.widths[2]);
    EXPECT_EQ(loss.loss_blocks, 16 * layout.product_with_loss->inner_blocks());
    const GraphOperation& last = layout.operations.back();
    ASSERT_EQ(last.beside.size(), 2u);
    EXPECT_EQ(last.loss_blocks, loss.loss_blocks);
    EXPECT_EQ(last.a, product.out);  // the narrow layer's weights
    EXPECT_EQ(last.b, loss.out);
  }
  for (const Case& of : {Case{{64, 64, 257, 1}}, Case{{64, 64, 64, 17}}, Case{{64, 64, 64, 1}, Activation::tanh},
                         Case{{64, 64, 64, 1}, Activation::relu, Activation::sigmoid},
                         Case{{64, 64, 64, 1}, Activation::relu, Activation::identity, Precision::fp64},
                         Case{{64, 64, 64, 1}, Activation::relu, Activation::identity, Precision::fp32, false},
                         Case{{64, 64, 16, 1}}, Case{{1025, 64, 1}}}) {
    const GraphLayout layout = layout_of(of);
    EXPECT_FALSE(layout.product_with_loss.has_value());
    for (const GraphOperation& op : layout.operations) EXPECT_TRUE(op.above.empty());
  }
}

// The launch of a narrow layer knows ReLU's marks alone: through any other activation the gradient goes by another one.
TEST(GraphLayout, ANarrowLayerTakesTheGradientThroughReluAlone) {
  for (const Activation activation : {Activation::relu, Activation::tanh, Activation::silu}) {
    NetworkSpec network = network_of({20, 10, 1});
    network.activation = activation;
    const bool is_relu = activation == Activation::relu;
    int updates = 0, through = 0;
    for (const GraphOperation& op : make_graph_layout(network, training_of(64)).operations) {
      through += op.kind == GraphOperation::Kind::through_activation;
      if (op.kind != GraphOperation::Kind::narrow_gradient || op.layer == 0) continue;
      ++updates;
      EXPECT_EQ(op.activation.has_value(), is_relu);
    }
    EXPECT_EQ(updates, 1);
    EXPECT_EQ(through, is_relu ? 0 : 1);
  }
}

TEST(GraphLayout, TakesFewerStepsALaunchOfDeepNetworks) {
  const auto layout = [](std::size_t layers) {
    return make_graph_layout(network_of(std::vector<std::int64_t>(layers + 1, 3)), training_of(5));
  };
  EXPECT_EQ(layout(2).steps_per_launch, 32);
  for (const std::size_t layers : {100, 1000, 5000, 100000}) {
    const GraphLayout deep = layout(layers);
    EXPECT_GE(deep.steps_per_launch, 1);
    EXPECT_LT(deep.steps_per_launch, 32);
    EXPECT_LE(deep.steps_per_launch * deep.nodes_per_step(), std::max<std::int64_t>(8192, deep.nodes_per_step()));
  }
}

TEST(MakePlan, ContradictionsAreInvalid) {
  TrainingSpec training = training_of(5);
  training.device = {DeviceKind::cpu, 0};
  message_of<InvalidArgument>(network_of({3, 1}), training, machine(), ExecutorKind::graph);
  EXPECT_CONTAINS(make_plan(network_of({3, 1}), training, machine()).reason, "asked for");
  training.device = {DeviceKind::cuda, 0};
  message_of<InvalidArgument>(network_of({3, 1}), training, machine(), ExecutorKind::cpu);
}

TEST(MakePlan, RefusesBadSpecificationsWithTheirValue) {
  const TrainingSpec good = training_of(5);
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({}), good), "0 widths");
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({7}), good), "1 widths");
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({7, 0, 1}), good), "is 0");
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({7, -4}), good), "is -4");
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({7, std::int64_t{1} << 31}), good), "2147483648");
  TrainingSpec training = good;
  for (const double rate : {std::nan(""), std::numeric_limits<double>::infinity(), -1.0}) {
    training.optimizer.learning_rate = rate;
    EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({3, 1}), training), "learning rate");
  }
  for (const double rate :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::signaling_NaN(), -1.0}) {
    training.optimizer.learning_rate = rate;
    std::feclearexcept(FE_ALL_EXCEPT);
    EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({3, 1}), training), "learning rate");
    EXPECT_EQ(std::fetestexcept(FE_INVALID), 0) << "a host application may trap it";
  }
  training.optimizer.learning_rate = 1e300;
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({3, 1}), training), "fp32 cannot hold");
  training.precision = Precision::fp64;
  EXPECT_NO_THROW(make_plan(network_of({3, 1}), training, machine()));
  for (const double rate : {1e-300, 1e-45, 0x1.fffffep-127}) {  // 0 in fp32, or subnormal
    training.optimizer.learning_rate = rate;
    training.precision = Precision::fp64;
    EXPECT_NO_THROW(make_plan(network_of({3, 1}), training, machine()));
    training.precision = Precision::fp32;
    const std::string message = message_of<InvalidArgument>(network_of({3, 1}), training);
    EXPECT_CONTAINS(message, "smallest normal number of fp32, 1.17549e-38; use fp64 or a larger one");
  }
  training.optimizer.learning_rate = 0x1p-126;
  EXPECT_NO_THROW(make_plan(network_of({3, 1}), training, machine()));
  training.optimizer.learning_rate = 5e-324;
  training.precision = Precision::fp64;
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({3, 1}), training), "normal number of fp64, 2.22507e-308");
  training.optimizer.learning_rate = 0;
  EXPECT_NO_THROW(make_plan(network_of({3, 1}), training, machine()));
  training = training_of(-1);
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({3, 1}), training), "-1");
  training = good;
  for (const int threads : {-1, 257}) {
    training.threads = threads;
    EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({3, 1}), training), std::to_string(threads));
  }
  training = good;
  training.device = {DeviceKind::cuda, -2};
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({3, 1}), training), "-2");
  training = good;
  training.batch_size = -2;
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({3, 1}), training), "-2");
  training.batch_size = 2;
  EXPECT_EQ(make_plan(network_of({3, 1}), training, DeviceCaps()).executor, ExecutorKind::cpu);
  training.batch_size = 5;
  EXPECT_NO_THROW(make_plan(network_of({3, 1}), training, machine()));
}

TrainingSpec gram_of(std::int64_t samples) {
  TrainingSpec training = training_of(samples);
  training.formulation = Formulation::gram;
  return training;
}

TEST(MakePlan, GramIsPlannedByItsOwnMemoryAndWork) {
  const NetworkSpec network = network_of({20000, 100, 1});
  const Plan primal = make_plan(network, training_of(64), machine()), gram = make_plan(network, gram_of(64), machine());
  EXPECT_EQ(primal.formulation, Formulation::primal);
  EXPECT_EQ(gram.formulation, Formulation::gram);
  EXPECT_STREQ(name(Formulation::primal), "primal");
  EXPECT_STREQ(name(Formulation::gram), "gram");
  EXPECT_EQ(primal.threads, 8);
  EXPECT_EQ(gram.threads, 1);
  EXPECT_LT(gram.predicted_us_per_step, primal.predicted_us_per_step);
  TrainingSpec one_thread = training_of(64);
  one_thread.threads = 1;
  EXPECT_GT(gram.bytes, make_plan(network, one_thread, machine()).bytes + 20000 * 100 * sizeof(float));
  EXPECT_EQ(gram.reason.find("slower"), std::string::npos) << gram.reason;
}

TEST(MakePlan, GramSaysWhereItIsSlowerAndRunsAllTheSame) {
  // As many features as half the samples: the same work.
  EXPECT_EQ(make_plan(network_of({50, 10, 1}), gram_of(100), machine()).reason.find("slower"), std::string::npos);
  const Plan plan = make_plan(network_of({40, 10, 1}), gram_of(100), machine());
  EXPECT_EQ(plan.executor, ExecutorKind::cpu);
  EXPECT_CONTAINS(plan.reason, "driver found; gram is slower than primal here, its first layer takes 1.25 times");
  EXPECT_CONTAINS(plan.reason, "100 samples of 40 features");
  EXPECT_EQ(make_plan(network_of({40, 10, 1}), training_of(100), machine()).reason.find("gram"), std::string::npos);
}

TEST(MakePlan, GramIsRefusedWhereItIsNotExact) {
  TrainingSpec training = gram_of(100);
  training.batch_size = 25;
  const std::string message = message_of<InvalidArgument>(network_of({40, 10, 1}), training);
  EXPECT_CONTAINS(message, "'gram' is exact for steps that take all samples, not 25");
  EXPECT_CONTAINS(message, "'primal'");
  training.batch_size = 100;
  EXPECT_NO_THROW(make_plan(network_of({40, 10, 1}), training, machine()));
}

TEST(MakePlan, ReprojectionBelongsToGram) {
  TrainingSpec training = gram_of(100);
  training.reprojection_steps = 7;
  EXPECT_NO_THROW(make_plan(network_of({40, 10, 1}), training, machine()));
  training.reprojection_steps = -7;
  EXPECT_CONTAINS(message_of<InvalidArgument>(network_of({40, 10, 1}), training), "-7");
  training.reprojection_steps = 7;
  training.formulation = Formulation::primal;
  const std::string message = message_of<InvalidArgument>(network_of({40, 10, 1}), training);
  EXPECT_CONTAINS(message, "every 7 steps");
  EXPECT_CONTAINS(message, "'gram'");
}

TEST(MakePlan, GramThatDoesNotFitIntoMemoryPointsToThePrimal) {
  const std::string message = message_of<InvalidArgument>(network_of({1000, 10, 1}), gram_of(50000));
  EXPECT_CONTAINS(message, "9.5 GiB of memory");
  EXPECT_CONTAINS(message, "'primal'");
  EXPECT_NO_THROW(make_plan(network_of({1000, 10, 1}), training_of(50000), machine()));
}

TEST(MakePlan, RefusesWhatDoesNotFitIntoMemoryWithBothNumbers) {
  const std::string message =
      message_of<InvalidArgument>(network_of({100000, 100000, 1}), training_of(10), machine(8, std::uint64_t{1} << 33));
  EXPECT_CONTAINS(message, "37.8 GiB of memory");
  EXPECT_CONTAINS(message, "8.0 GiB");
  message_of<InvalidArgument>(network_of({2147483647, 2147483647, 1}), training_of(10));
}

TEST(QueryDeviceCaps, KnowsThisMachine) {
  const DeviceCaps caps = query_device_caps();
  EXPECT_GE(caps.cpu.cores, 1);
  EXPECT_GT(caps.cpu.memory_bytes, std::uint64_t{1} << 20);
  EXPECT_GT(caps.cpu.gflops_fp32, 0);
  EXPECT_EQ(caps.gpus.empty(), !caps.no_gpu_reason.empty());
}

}  // namespace
}  // namespace deviceloop
