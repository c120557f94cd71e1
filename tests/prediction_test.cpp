// The planner's predictions for a GPU, held against what was measured on one: bench/results/h100-*. A change to
// host/planning/gpu_costs.h, or to what a step is made of, that takes the planner away from the evidence fails here.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <tuple>
#include <vector>

#include <deviceloop/plan.h>

#include "planning/fused_layout.h"
#include "planning/graph_layout.h"
#include "planning/two_layer_layout.h"

namespace deviceloop {
namespace {

/// Of a folder of results: how many problems it has, and how many of them in more plans than one.
struct Evidence {
  const char* folder;
  std::size_t problems;
  int with_a_choice;
};
constexpr Evidence kEvidence[] = {{"h100-2026-11-26", 15, 6}, {"h100-2026-11-26b", 12, 6}};
constexpr const char* kProbed = kEvidence[0].folder;

class Prediction : public ::testing::TestWithParam<Evidence> {};

nlohmann::json read(const std::string& folder, const std::string& name) {
  return nlohmann::json::parse(std::ifstream(DEVICELOOP_SOURCE_DIR "/bench/results/" + folder + "/" + name));
}

/// The GPU that was measured, as a query would describe it.
DeviceCaps measured_machine() {
  const nlohmann::json device = read(kProbed, "probe.json")["device"];
  GpuCaps gpu;
  gpu.name = device["gpu"];
  gpu.compute_capability = 90;
  gpu.multiprocessors = device["multiprocessors"];
  gpu.memory_bytes = device["memory_bytes"];
  const double bus_bits = 5120;  // of an H100's HBM3, which the probe does not record
  gpu.memory_gb_per_s = 2 * device["memory_clock_mhz"].get<double>() * 1e6 * bus_bits / 8 / 1e9;
  gpu.l2_bytes = device["l2_bytes"];
  gpu.shared_bytes = device["shared_bytes_a_block_opt_in"];
  gpu.cooperative = true;
  DeviceCaps caps;
  caps.gpus.push_back(gpu);
  return caps;
}

/// A case train/PLAN[:FORM]/LAYERS/n=SAMPLES/PRECISION[/gram], with the algorithms the library proposes first.
struct Measured {
  std::string name;
  NetworkSpec network;
  TrainingSpec training;
  ExecutorKind executor = ExecutorKind::graph;
  double us = 0;
  std::string algorithm;  ///< the first line of how it ran

  std::string problem() const { return name.substr(name.find('/', name.find('/') + 1) + 1); }
  bool has_form() const { return training.form != PersistentForm::automatic; }
};

PersistentForm form_of(const std::string& text) {
  for (const PersistentForm form : {PersistentForm::two_layer, PersistentForm::on_chip})
    if (text == name(form)) return form;
  return PersistentForm::automatic;
}

std::vector<Measured> measured_steps(const std::string& folder) {
  const std::regex pattern("train/(graph|persistent)(?::([a-z-]+))?/([0-9-]+)/n=([0-9]+)/(fp32|fp64)(/gram)?");
  std::vector<Measured> found;
  const nlohmann::json result = read(folder, "bench.json");
  for (const nlohmann::json& one : result["cases"]) {
    Measured measured;
    measured.name = one["name"];
    std::smatch parts;
    if (!std::regex_match(measured.name, parts, pattern)) continue;
    measured.executor = parts[1] == "graph" ? ExecutorKind::graph : ExecutorKind::persistent;
    measured.training.form = form_of(parts[2]);
    const std::string layers = parts[3];
    const std::regex number("[0-9]+");
    for (std::sregex_iterator at(layers.begin(), layers.end(), number), end; at != end; ++at)
      measured.network.widths.push_back(std::stoll(at->str()));
    measured.training.samples = std::stoll(parts[4]);
    measured.training.precision = parts[5] == "fp32" ? Precision::fp32 : Precision::fp64;
    measured.training.formulation = parts[6].matched ? Formulation::gram : Formulation::primal;
    measured.us = one["median_us"];
    measured.algorithm = one["details"]["algorithms"][0];
    if (measured.algorithm.find(" phases a step") != std::string::npos) continue;  // by a form that is gone
    found.push_back(measured);
  }
  return found;
}

Plan plan_of(const Measured& measured, std::optional<ExecutorKind> forced) {
  return make_plan(measured.network, measured.training, measured_machine(), forced);
}

/// What the gradient of narrow layers took by its kernel before: rows one after the other. Fitted to these results.
double rows_before_us(const GraphLayout& layout) {
  double us = 0;
  for (const GraphOperation& op : layout.operations) {
    if (op.kind != GraphOperation::Kind::narrow_gradient) continue;
    const cuda::PanelLayout panel = cuda::row_sum_layout(op.inner, op.rows);
    const std::int64_t rows =
        cuda::divide_up(std::min(op.inner, panel.rows_per_tile), cuda::kThreads / panel.threads_across);
    us += static_cast<double>(rows) * (0.24 + 0.115 * static_cast<double>(op.columns - 1));
  }
  return us;
}

/// As the plan was measured: by the graph with the library's products alone, and that kernel.
StepTime time_as_measured(const Measured& measured, const Plan& plan) {
  if (measured.executor != ExecutorKind::graph) return {plan.predicted_us_per_step, plan.floor_us_per_step};
  const GraphLayout layout = make_graph_layout(measured.network, measured.training, {.takes_own_products = false});
  StepTime time = graph_step_time(layout, measured_machine().gpus[0]);
  time.predicted_us += rows_before_us(layout);
  return time;
}

TEST_P(Prediction, TheFastestPlanThatWasMeasuredIsPickedAndPredictedWithinThirtyPercent) {
  std::map<std::string, std::vector<Measured>> problems;
  for (const Measured& measured : measured_steps(GetParam().folder))
    if (!measured.has_form()) problems[measured.problem()].push_back(measured);
  EXPECT_EQ(problems.size(), GetParam().problems);
  int with_a_choice = 0;
  for (const auto& [problem, plans] : problems) {
    SCOPED_TRACE(problem);
    with_a_choice += plans.size() > 1;
    const Measured& fastest =
        *std::min_element(plans.begin(), plans.end(), [](const Measured& a, const Measured& b) { return a.us < b.us; });
    const Plan plan = plan_of(fastest, std::nullopt);
    EXPECT_EQ(plan.executor, fastest.executor)
        << fastest.us << " us a step by the plan '" << name(fastest.executor) << "', predicted "
        << plan.predicted_us_per_step << " by what was picked";
    const double predicted_us = time_as_measured(fastest, plan).predicted_us;
    EXPECT_GT(predicted_us, fastest.us / 1.3);
    EXPECT_LT(predicted_us, fastest.us * 1.3);
  }
  EXPECT_EQ(with_a_choice, GetParam().with_a_choice);
}

// What was not picked: near enough not to be picked by mistake.
TEST_P(Prediction, NoPlanOrFormIsOffByMoreThanAHalf) {
  int forms = 0;
  for (const Measured& measured : measured_steps(GetParam().folder)) {
    SCOPED_TRACE(measured.name);
    forms += measured.has_form();
    const double predicted_us = time_as_measured(measured, plan_of(measured, measured.executor)).predicted_us;
    EXPECT_GT(predicted_us, measured.us / 1.6);
    EXPECT_LT(predicted_us, measured.us * 1.6);
  }
  EXPECT_EQ(forms, 2);
}

TEST_P(Prediction, NothingIsFasterThanItsFloor) {
  const std::vector<Measured> steps = measured_steps(GetParam().folder);
  EXPECT_GT(steps.size(), 14u);
  for (const Measured& measured : steps)
    EXPECT_LT(time_as_measured(measured, plan_of(measured, measured.executor)).floor_us, measured.us) << measured.name;
}

// As it was cut when it was measured, which need not be how it would be cut today.
TEST_P(Prediction, TwoLayersAreEstimatedAsTheyWereMeasured) {
  const std::regex primal("[0-9]+ clusters of ([0-9]+) blocks .* and ([0-9]+) hidden units.*");
  const std::regex gram("[0-9]+ blocks of [0-9]+ threads; a block has ([0-9]+) hidden units.*");
  int checked = 0;
  for (const Measured& measured : measured_steps(GetParam().folder)) {
    if (measured.executor != ExecutorKind::persistent || measured.network.layers() != 2) continue;
    const auto& widths = measured.network.widths;
    const cuda::TwoLayerShape shape{measured.training.samples, widths[0], widths[1], widths[2],
                                    measured.training.precision == Precision::fp32 ? 4 : 8};
    std::smatch parts;
    double estimated = 0;
    if (std::regex_match(measured.algorithm, parts, primal)) {
      int cluster_log2 = 0;
      while (1 << cluster_log2 < std::stoi(parts[1])) ++cluster_log2;
      estimated = cuda::make_two_layer(shape, cluster_log2, std::stoi(parts[2])).estimated_us;
    } else if (std::regex_match(measured.algorithm, parts, gram)) {
      estimated = cuda::make_gram_two_layer(shape, std::stoi(parts[1])).estimated_us;
    } else {
      continue;  // another form
    }
    ++checked;
    EXPECT_GT(estimated, measured.us / 1.3) << measured.name;
    EXPECT_LT(estimated, measured.us * 1.3) << measured.name;
  }
  EXPECT_EQ(checked, 8);
}

// The kernel itself waits for a GPU: a prototype of it, on an H100.
TEST(FusedPrediction, IsThatOfThePrototype) {
  struct Prototype {
    std::int64_t width, rows;
    double us;
  };
  for (const Prototype& of :
       {Prototype{64, 8448, 7.9}, Prototype{64, 1 << 14, 8.9}, Prototype{64, 1 << 16, 14.1},
        Prototype{64, 1 << 18, 32.5}, Prototype{64, 1 << 20, 107}, Prototype{128, 1 << 14, 22.7},
        Prototype{128, 1 << 16, 39.4}, Prototype{128, 1 << 18, 103}, Prototype{128, 1 << 20, 347}}) {
    const cuda::FusedDecision decision = cuda::decide_fused({of.rows, {of.width, of.width, of.width, 1}}, {});
    ASSERT_EQ(decision.refusal, "");
    EXPECT_NEAR(decision.layout.estimated_us / of.us, 1, 0.06) << of.width << " x " << of.rows;
  }
}

// In clusters: another prototype, of gathered minibatches.
TEST(FusedPrediction, OfClustersIsThatOfThePrototype) {
  struct Prototype {
    std::int64_t rows;
    int clusters, cluster_log2;
    double us;
  };
  for (const Prototype& of : {Prototype{256, 1, 2, 5.48}, Prototype{512, 1, 3, 4.99}, Prototype{1024, 1, 4, 4.85},
                              Prototype{4096, 1, 4, 8.09}, Prototype{4096, 2, 4, 7.62}, Prototype{4096, 4, 4, 6.94},
                              Prototype{16384, 7, 4, 8.98}}) {
    const cuda::FusedDecision decision = cuda::decide_fused({of.rows, {64, 64, 64, 1}, Precision::bf16, 65536}, {});
    ASSERT_EQ(decision.refusal, "");
    const cuda::FusedLayout layout = cuda::in_clusters(decision.layout, of.clusters, of.cluster_log2, 227 << 10);
    EXPECT_NEAR(layout.estimated_us / of.us, 1, 0.06) << of.rows << " rows, " << of.clusters << " clusters";
  }
}

// Half the multiprocessors take twice as long, and so do twice as many products, where the tiles are many.
TEST(FusedPrediction, FollowsTheMultiprocessorsAndTheLayers) {
  const auto us = [](int multiprocessors, std::vector<std::int64_t> widths) {
    cuda::FusedDevice device;
    device.multiprocessors = multiprocessors;
    return cuda::decide_fused({1 << 20, std::move(widths)}, device).layout.estimated_us;
  };
  EXPECT_NEAR(us(66, {64, 64, 64, 1}) / us(132, {64, 64, 64, 1}), 2, 0.1);
  EXPECT_NEAR(us(132, {64, 64, 64, 64, 1}) / us(132, {64, 64, 64, 1}), 8.0 / 5, 0.1);
}

INSTANTIATE_TEST_SUITE_P(H100, Prediction, ::testing::ValuesIn(kEvidence), [](const auto& evidence) {
  std::string name = evidence.param.folder;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace deviceloop
