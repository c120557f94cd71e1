// The benchmark binary: its statistics, names and outputs; that a wrong result is a failed case; its reference; and the
// program from outside.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "../bench/cases.h"
#include "../bench/gemm_cases.h"
#include "../bench/gpu.h"
#include "../bench/limits.h"
#include "../bench/parallel.h"
#include "../bench/reference.h"
#include "../bench/result.h"
#include "../bench/runner.h"
#include "../bench/statistics.h"
#include "../bench/training.h"
#include "support/run_command.h"
#include "support/temporary_folder.h"

namespace deviceloop::bench {
namespace {

using nlohmann::json;

// ---------------------------------------------------------------------------------------------------------------------
// Statistics and names

TEST(BenchStatistics, MedianMinimumAndNoise) {
  EXPECT_EQ(median({3}), 3);
  EXPECT_EQ(median({5, 1, 3}), 3);
  EXPECT_EQ(median({4, 1, 3, 2}), 2.5);
  const Summary summary = summarize({10, 11, 9, 10, 100});
  EXPECT_EQ(summary.median, 10);
  EXPECT_EQ(summary.minimum, 9);
  EXPECT_DOUBLE_EQ(summary.noise_percent, 10);  // distances 0, 1, 1, 0, 90: their median is 1
  EXPECT_EQ(summarize({7}).noise_percent, 0);
}

Case named(const std::string& name) {
  Case made;
  made.name = name;
  return made;
}

/// Cases a/x=X/y=Y; those with y=3 have no meaning.
Block block_of(bool by_default, std::vector<std::string> xs, std::vector<std::string> ys) {
  return {by_default, {{"x", std::move(xs)}, {"y", std::move(ys)}}, [](const Values& values) -> std::optional<Case> {
            if (values.at("y") == "3") return std::nullopt;
            return named("a/x=" + values.at("x") + "/y=" + values.at("y"));
          }};
}

std::vector<std::string> names_of(const std::vector<Case>& cases) {
  std::vector<std::string> names;
  for (const Case& each : cases) names.push_back(each.name);
  return names;
}

using Names = std::vector<std::string>;

TEST(BenchCases, AreAllCombinationsEachOnceTheDefaultOnesFirst) {
  const std::vector<Case> cases =
      make_cases({block_of(false, {"1", "2"}, {"1"}), block_of(true, {"1"}, {"1", "2", "3"})}, {});
  EXPECT_EQ(names_of(cases), (Names{"a/x=1/y=1", "a/x=1/y=2", "a/x=2/y=1"}));
  EXPECT_TRUE(cases[0].by_default);
  EXPECT_FALSE(cases[2].by_default);
  EXPECT_EQ(cases[1].values, (Values{{"x", "1"}, {"y", "2"}}));
}

TEST(BenchCases, ChosenValuesReplaceThoseOfTheAxis) {
  const Block other{true, {{"z", {"1"}}}, [](const Values&) { return std::make_optional<Case>(named("other")); }};
  const std::vector<Block> blocks = {block_of(true, {"1"}, {"1"}), other};
  EXPECT_EQ(names_of(make_cases(blocks, {parse_axis("x=7,8")})), (Names{"a/x=7/y=1", "a/x=8/y=1"}));
  EXPECT_EQ(names_of(make_cases(blocks, {parse_axis("z=5")})), Names{"other"});
  EXPECT_TRUE(make_cases(blocks, {parse_axis("z=5"), parse_axis("x=1")}).empty());
  EXPECT_THROW(make_cases(blocks, {parse_axis("w=1")}), UsageError);
  for (const char* text : {"", "n", "n=", "=1", "n=1,,2", "n=1,"}) EXPECT_THROW(parse_axis(text), UsageError) << text;
}

TEST(BenchCases, AreSelectedByARegularExpressionOrByDefault) {
  const std::vector<Case> cases = make_cases({block_of(true, {"1", "2"}, {"1"}), block_of(false, {"3"}, {"1"})}, {});
  EXPECT_EQ(names_of(select_cases(cases, "")), (Names{"a/x=1/y=1", "a/x=2/y=1"}));
  EXPECT_EQ(names_of(select_cases(cases, "x=[23]")), (Names{"a/x=2/y=1", "a/x=3/y=1"}));
  EXPECT_EQ(names_of(select_cases(cases, "^a/x=3/y=1$")), Names{"a/x=3/y=1"});
  EXPECT_TRUE(select_cases(cases, "b/").empty());
  EXPECT_THROW(select_cases(cases, "x=("), UsageError);
}

TEST(BenchCases, ValuesAreReadAndRefused) {
  EXPECT_EQ(count_of({{"n", "1000"}}, "n"), 1000);
  EXPECT_EQ(count_of({{"n", "2^20"}}, "n"), 1 << 20);
  for (const char* text : {"0", "-1", "1e3", "2^41", "2^", "3^2", "99999999999999999999"})
    EXPECT_THROW(count_of({{"n", text}}, "n"), UsageError) << text;
  EXPECT_EQ(widths_of({{"layers", "1000-100-1"}}), (std::vector<std::int64_t>{1000, 100, 1}));
  for (const char* text : {"1000", "1000-", "1000-0", "a-b", "10,2"})
    EXPECT_THROW(widths_of({{"layers", text}}), UsageError) << text;
  EXPECT_EQ(precision_of({{"precision", "fp64"}}), Precision::fp64);
  EXPECT_THROW(precision_of({{"precision", "fp16"}}), UsageError);
  EXPECT_TRUE(flag_of({{"bias", "yes"}}, "bias"));
  EXPECT_THROW(flag_of({{"bias", "1"}}, "bias"), UsageError);
  EXPECT_EQ(powers_of_two(10, 14, 2), (Names{"1024", "4096", "16384"}));
}

CaseOptions options_with_gpu(const std::string& no_cublaslt_reason = "") {
  CaseOptions options;
  options.caps.cpu.cores = 2;
  GpuCaps gpu;
  gpu.name = "a GPU";
  gpu.compute_capability = 90;
  gpu.multiprocessors = 132;
  gpu.memory_bytes = std::uint64_t{80} << 30;
  gpu.l2_bytes = 50 << 20;
  gpu.shared_bytes = 227 << 10;
  gpu.cooperative = true;
  options.caps.gpus.push_back(gpu);
  options.caps.no_cublaslt_reason = no_cublaslt_reason;
  return options;
}

bool has(const std::vector<Case>& cases, const std::string& name) {
  return std::any_of(cases.begin(), cases.end(),
                     [&](const Case& one) { return one.name == name && one.refused.empty(); });
}

TEST(BenchCases, TrainingIsNamedByPlanShapeAndPrecisionWherePlannersTakeIt) {
  const std::vector<Case> cases = make_cases(train_blocks(options_with_gpu()), {});
  for (const char* name : {"train/cpu/1000-100-1/n=128/fp32",
                           "train/graph/1000-100-1/n=128/fp64",
                           "train/graph/64-64-64-1/n=1048576/fp32",
                           "train/graph/4096-4096-4096-4096-4096/n=8192/fp32",
                           "train/graph/1000-100-1/n=128/fp32/tuned",
                           "train/cpu/784-128-10/n=64/fp32/bias",
                           "train/cpu/256-256-256-1/n=1024/fp32",
                           "train/persistent/1000-100-1/n=128/fp32",
                           "train/persistent/1000-100-1/n=128/fp32/gram",
                           "train/persistent/784-128-10/n=64/fp32",
                           "train/persistent:two-layer/1000-100-1/n=128/fp32",
                           "train/graph/64-64-64-1/n=16384/fp32",
                           "train/graph/1024-1024-1024-10/n=1024/fp32",
                           "train/cpu/784-128-10/n=60000/fp32/bias/cross-entropy/adam/batch=64",
                           "train/graph/64-64-64-1/n=65536/fp32/bias/mse/adam/batch=4096",
                           "train/persistent/64-64-64-1/n=65536/fp32/bias/mse/adam/batch=4096",
                           "train/persistent/784-128-10/n=60000/tf32x3/bias/cross-entropy/adam/batch=512",
                           "train/fused/64-64-64-1/n=65536/bf16/bias",
                           "train/fused/128-128-128-1/n=1048576/bf16/bias",
                           "train/fused/64-64-64-1/n=65536/bf16/bias/mse/adam/batch=4096"})
    EXPECT_TRUE(has(cases, name)) << name;
  for (const Case& one : cases) {
    EXPECT_EQ(one.device, one.name.rfind("train/cpu/", 0) == 0 ? Device::cpu : Device::cuda) << one.name;
    EXPECT_TRUE(one.name.find("/primal") == std::string::npos) << one.name;
    EXPECT_FALSE(one.name.rfind("train/cpu/", 0) == 0 && one.name.find("/tuned") != std::string::npos) << one.name;
  }
  const std::vector<Case> without_cublaslt = make_cases(train_blocks(options_with_gpu("not here")), {});
  const auto refused = std::find_if(without_cublaslt.begin(), without_cublaslt.end(),
                                    [](const Case& one) { return one.name == "train/graph/1000-100-1/n=128/fp64"; });
  ASSERT_NE(refused, without_cublaslt.end());
  EXPECT_EQ(refused->refused, "plan 'graph': not here; use the plan 'cpu' or 'auto'");
  const std::vector<Case> without_gpu = make_cases(train_blocks({}), {});
  EXPECT_FALSE(without_gpu.empty());
  for (const Case& one : without_gpu) EXPECT_EQ(one.device, Device::cpu) << one.name;
  EXPECT_TRUE(
      has(make_cases(train_blocks({}), {parse_axis("layers=7-5-2"), parse_axis("n=33")}), "train/cpu/7-5-2/n=33/fp32"));
  EXPECT_TRUE(has(make_cases(train_blocks(options_with_gpu()),
                             {parse_axis("layers=20-12-3"), parse_axis("n=40"), parse_axis("plan=persistent:on-chip")}),
                  "train/persistent:on-chip/20-12-3/n=40/fp32"));
  for (const char* plan : {"plan=gpu", "plan=persistent:ring", "plan=graph:on-chip"})
    EXPECT_THROW(make_cases(train_blocks(options_with_gpu()), {parse_axis(plan)}), UsageError) << plan;
  for (const char* axis : {"loss=huber", "optimizer=sgd", "batch=some", "batch=0"})
    EXPECT_THROW(make_cases(train_blocks({}), {parse_axis(axis)}), UsageError) << axis;
  EXPECT_EQ(persistent_plan_names(), (Names{"persistent:two-layer", "persistent:on-chip"}));
  EXPECT_EQ(plan_names(), (Names{"cpu", "graph", "persistent", "fused"}));
  EXPECT_EQ(formulation_names().front(), "primal");
}

TEST(BenchCases, KernelsAndProductsOfAGpuAreListedWithoutOne) {
  const CaseOptions options = options_with_gpu();
  GpuCaps gpu = options.caps.gpus[0];
  std::vector<Block> blocks = gpu_blocks(gpu, 0);
  if (blocks.empty()) GTEST_SKIP() << "built without CUDA";
  const std::vector<Case> cases = make_cases(blocks, {});
  for (const char* name :
       {"kernel/cuda/relu/n=1024/fp32", "kernel/cuda/relu/n=268435456/fp32",
        "kernel/cuda/relu_gradient/n=268435456/fp64", "kernel/cuda/squared_error/n=268435456/fp32",
        "kernel/cuda/squared_error_cub/n=268435456/fp32", "kernel/cuda/squared_error_loss/n=2097152/fp64",
        "kernel/cuda/mask_gradient/n=1024/fp32", "kernel/cuda/sgd_update/n=1024/fp32",
        "kernel/cuda/bias_relu/batch=128/features=100/fp32", "kernel/cuda/column_sums/batch=1048576/features=100/fp32",
        "kernel/cuda/narrow_linear/batch=128/features=100/fp32",
        "kernel/cuda/narrow_linear_gradient/batch=128/features=1000/fp64",
        "gemm/cuda/forward/1000-100-1/layer=0/n=128/fp32",
        "gemm/cuda/weight_update/4096-4096-4096-4096-4096/layer=0/n=8192/fp64"})
    EXPECT_TRUE(has(cases, name)) << name;
  // All kinds are in the default set, few of each: it must take a GPU less than a minute.
  const std::vector<Case> by_default = select_cases(cases, "");
  EXPECT_LE(by_default.size(), 35 + 33u);
  for (const Case& one : cases)
    EXPECT_TRUE(std::any_of(by_default.begin(), by_default.end(), [&](const Case& other) {
      const auto kind = [](const std::string& name) { return name.substr(0, name.find('/', name.find("cuda/") + 5)); };
      return kind(other.name) == kind(one.name);
    })) << one.name;
  // tests/gpu_check has bars on them.
  for (const char* size : {"268435456/fp32", "134217728/fp64"})
    EXPECT_TRUE(has(select_cases(cases, ""), std::string("kernel/cuda/squared_error/n=") + size)) << size;
  for (const Case& one : cases) EXPECT_EQ(one.device, Device::cuda) << one.name;

  // Beside the CPU's, of which none may be hidden.
  const std::vector<Block> on_cpu = kernel_blocks(options), products = gemm_blocks(options);
  blocks.insert(blocks.begin(), on_cpu.begin(), on_cpu.end());
  blocks.insert(blocks.begin(), products.begin(), products.end());
  EXPECT_EQ(make_cases(blocks, {}).size(),
            cases.size() + make_cases(on_cpu, {}).size() + make_cases(products, {}).size());
  EXPECT_EQ(make_cases(blocks, {parse_axis("batch=64")}).size(), 4 * 3 * 2u);
  EXPECT_TRUE(has(make_cases(blocks, {parse_axis("n=5000")}), "kernel/cuda/relu/n=5000/fp32"));
  EXPECT_TRUE(has(make_cases(blocks, {parse_axis("n=5000")}), "kernel/relu/n=5000/fp32"));

  gpu.memory_bytes = std::uint64_t{2} << 30;
  const std::vector<Case> too_large =
      make_cases(gpu_blocks(gpu, 0), {parse_axis("kernel=relu"), parse_axis("n=1024,2^28")});
  EXPECT_GE(too_large.size(), 2u);
  for (const Case& one : too_large)
    EXPECT_EQ(one.refused.empty(), one.name.find("n=1024/") != std::string::npos) << one.name;
}

TEST(BenchCases, ProductsAreThoseOfAStep) {
  const auto shape = [](const std::string& product, const std::string& layer) {
    return product_shape(
        {{"product", product}, {"layers", "7-5-2"}, {"layer", layer}, {"n", "3"}, {"precision", "fp32"}});
  };
  EXPECT_EQ(shape("forward", "1")->name, "gemm/forward/7-5-2/layer=1/n=3/fp32");
  EXPECT_EQ(shape("forward", "0")->k, 7);
  EXPECT_EQ(shape("input_gradient", "1")->n, 5);
  EXPECT_EQ(shape("weight_update", "0")->m, 7);
  EXPECT_FALSE(shape("input_gradient", "0"));
  EXPECT_FALSE(shape("forward", "2"));
  EXPECT_THROW(shape("backward", "0"), UsageError);
  EXPECT_EQ(demand_of(*shape("forward", "0")).flops, 2 * 3 * 7 * 5);
}

// ---------------------------------------------------------------------------------------------------------------------
// The runner

struct Script {
  double us = 100;      ///< of a unit
  int wrong_check = 0;  ///< the check that fails, from 1
  int sleep_ms = 0;     ///< of a run
  bool repeats = false;
  std::string thrown = {};  ///< by the first run
  bool not_here = false;
};

class ScriptedWork final : public Work {
 public:
  explicit ScriptedWork(const Script& script) : script_(script) {}
  Demand demand() const override {
    Demand demand;
    demand.elements = 1e6;
    demand.flops = 2e6;
    demand.bytes = 4e6;
    return demand;
  }
  double run(std::int64_t) override {
    if (!script_.thrown.empty()) throw std::runtime_error(script_.thrown);
    if (script_.not_here) throw NotHere("too little memory");
    std::this_thread::sleep_for(std::chrono::milliseconds(script_.sleep_ms));
    return script_.us;
  }
  bool repeats() const override { return script_.repeats; }
  void check() override {
    if (++checks_ == script_.wrong_check) throw WrongResult("element 3 is 7, not \"8\"");
  }
  std::optional<HostCalls> host_calls() const override { return HostCalls{0.03125, 0.002}; }
  nlohmann::json details() const override { return {{"steps", 5}}; }

 private:
  Script script_;
  int checks_ = 0;
};

Case scripted(const std::string& name, const Script& script = {}) {
  Case made = named(name);
  made.values = {{"n", "5"}};
  made.prepare = [script] { return std::make_unique<ScriptedWork>(script); };
  return made;
}

class FixedMachine final : public Machine {
 public:
  std::vector<Rate> rates(Device device) override { return {{device, "FMA", "fp32", 1, 200, "GFLOP/s"}}; }
  Limit limit(const Demand&) override { return {25, "FMA"}; }
};

RunOptions quick() {
  RunOptions options;
  options.min_samples = 3;
  options.timeout_s = 5;
  options.command = "deviceloop_bench";
  return options;
}

TEST(BenchRunner, RatesAndPercentOfLimitFollowFromTheMedian) {
  FixedMachine machine;
  const Result result = run_case(scripted("a", {.sleep_ms = 60}), machine, quick());
  ASSERT_TRUE(result.ok()) << result.error;
  EXPECT_GE(result.samples, 3);
  EXPECT_EQ(result.us->median, 100);
  EXPECT_DOUBLE_EQ(result.elements_per_s, 1e10);
  EXPECT_DOUBLE_EQ(result.gflops, 20);
  EXPECT_DOUBLE_EQ(result.gb_per_s, 40);
  EXPECT_DOUBLE_EQ(*result.percent_of_limit, 25);
  EXPECT_EQ(result.repeat, "deviceloop_bench --benchmark '^a$'");
}

TEST(BenchRunner, TakesAtLeastTheSamplesAskedForAndEndsAtTheTimeout) {
  FixedMachine machine;
  RunOptions options = quick();
  options.min_samples = 40;
  EXPECT_GE(run_case(scripted("a", {.sleep_ms = 1}), machine, options).samples, 40);
  options.timeout_s = 0.05;
  const Result late = run_case(scripted("a", {.sleep_ms = 20}), machine, options);
  EXPECT_TRUE(late.ok());
  EXPECT_GE(late.samples, 1);
  EXPECT_LT(late.samples, 10);
  options.timeout_s = 0;
  EXPECT_EQ(run_case(scripted("a"), machine, options).samples, 1);
}

TEST(BenchRunner, AGpusCaseHasAShorterTimeoutUnlessOneIsGiven) {
  FixedMachine machine;
  RunOptions options = quick();
  options.timeout_s.reset();
  options.min_samples = 20;
  Case on_gpu = scripted("a", {.sleep_ms = 150});
  on_gpu.device = Device::cuda;
  EXPECT_LE(run_case(on_gpu, machine, options).samples, 6);  // 0.7 s of them
  options.timeout_s = 1.6;
  EXPECT_GE(run_case(on_gpu, machine, options).samples, 8);
}

TEST(BenchRunner, CasesThatTheBudgetHasNoTimeForAreListedAsNotRun) {
  const testing::TemporaryFolder folder;
  FixedMachine machine;
  RunOptions options = quick();
  options.json = folder / "r.json";
  options.budget_s = 0.1;
  Case refused = scripted("refused");
  refused.refused = "no cuBLASLt";
  std::ostringstream out;
  EXPECT_EQ(run_cases({scripted("first", {.sleep_ms = 60}), scripted("second"), refused}, machine, options, out), 0);
  const json result = json::parse(testing::read_all(options.json));
  ASSERT_EQ(result["cases"].size(), 1u);
  EXPECT_GE(result["cases"][0]["seconds"], 0.1);
  EXPECT_GE(result["seconds"], result["cases"][0]["seconds"]);
  EXPECT_EQ(result["not_run"], json::parse(R"([{"name": "second", "reason": "no time left of --budget"},
                                               {"name": "refused", "reason": "no cuBLASLt"}])"));
  EXPECT_NE(out.str().find("\n1 case in 0."), std::string::npos) << out.str();
  EXPECT_NE(out.str().find(" s; 2 not run\n"), std::string::npos) << out.str();
}

TEST(BenchRunner, AWrongResultIsAFailedCaseWithoutATime) {
  FixedMachine machine;
  for (const int check : {1, 2}) {  // before the samples, and after them
    const Result result = run_case(scripted("a", {.wrong_check = check}), machine, quick());
    EXPECT_FALSE(result.ok());
    EXPECT_EQ(result.error, "element 3 is 7, not \"8\"");
    EXPECT_FALSE(result.us.has_value());
    EXPECT_FALSE(result.percent_of_limit.has_value());
  }
  EXPECT_EQ(run_case(scripted("a", {.thrown = "broken"}), machine, quick()).error, "broken");
}

TEST(BenchRunner, WhatCannotRunHereIsNoFailure) {
  FixedMachine machine;
  EXPECT_EQ(run_case(scripted("a", {.not_here = true}), machine, quick()).not_run, "too little memory");
  Case refused = scripted("a");
  refused.refused = "no cuBLASLt";
  const Result result = run_case(refused, machine, quick());
  EXPECT_EQ(result.not_run, "no cuBLASLt");
  EXPECT_TRUE(result.ok());
}

TEST(BenchRunner, WhatWasNamedAndCannotRunHereHasAnExitCode) {
  FixedMachine machine;
  Case refused = scripted("refused");
  refused.refused = "no cuBLASLt";
  RunOptions options = quick();
  const auto code = [&](const std::vector<Case>& cases, const std::string& line) {
    std::ostringstream out;
    const int exit_code = run_cases(cases, machine, options, out);
    EXPECT_NE(out.str().find("\n" + line + "\n"), std::string::npos) << out.str();
    return exit_code;
  };
  const Case absent = scripted("absent", {.not_here = true});
  for (const bool named : {false, true}) {
    options.named = named;
    EXPECT_EQ(code({scripted("first"), absent}, "1 case was not run"), named ? 3 : 0);
    EXPECT_EQ(code({refused, absent}, "2 cases were not run"), named ? 3 : 0);
    EXPECT_EQ(code({absent, scripted("wrong", {.wrong_check = 1})}, "1 case was not run"), 1);
  }
}

TEST(BenchRunner, ExitCodeTableJsonAndCsvTellOfAFailureAndGoOn) {
  const testing::TemporaryFolder folder;
  FixedMachine machine;
  RunOptions options = quick();
  options.json = folder / "r.json";
  options.csv = folder / "r.csv";
  options.machine = {{"processor", "a processor"}};
  std::ostringstream out;
  EXPECT_EQ(run_cases({scripted("first"), scripted("wrong", {.wrong_check = 1}), scripted("last"),
                       scripted("absent", {.not_here = true})},
                      machine, options, out),
            1);
  const std::string table = out.str();
  for (const char* text :
       {"limit: FMA, 1 thread", "fp32    200.0 GFLOP/s", "% limit", "25.0  FMA", "FAILED: element 3 is 7",
        "not run: too little memory", "--benchmark '^last$'", "0.0312", "1 case failed"})
    EXPECT_NE(table.find(text), std::string::npos) << text << " in\n" << table;

  const json result = json::parse(testing::read_all(options.json));
  EXPECT_EQ(result["ok"], false);
  EXPECT_EQ(result["machine"]["processor"], "a processor");
  EXPECT_EQ(result["limits"][0]["value"], 200);
  ASSERT_EQ(result["cases"].size(), 3u);
  const json &first = result["cases"][0], &wrong = result["cases"][1];
  EXPECT_EQ(first["name"], "first");
  EXPECT_EQ(first["ok"], true);
  EXPECT_EQ(first["median_us"], 100);
  EXPECT_EQ(first["percent_of_limit"], 25);
  EXPECT_EQ(first["limit"]["by"], "FMA");
  EXPECT_EQ(first["launches_per_step"], 0.03125);
  EXPECT_EQ(first["axes"]["n"], "5");
  EXPECT_EQ(first["details"]["steps"], 5);
  EXPECT_EQ(wrong["ok"], false);
  EXPECT_TRUE(wrong["median_us"].is_null());
  EXPECT_TRUE(wrong["percent_of_limit"].is_null());
  EXPECT_EQ(wrong["error"], "element 3 is 7, not \"8\"");
  EXPECT_EQ(result["cases"][2]["name"], "last");
  EXPECT_EQ(result["not_run"][0]["name"], "absent");

  std::istringstream csv(testing::read_all(options.csv));
  std::vector<std::string> lines;
  for (std::string line; std::getline(csv, line);) lines.push_back(line);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0].rfind("name,device,ok,samples,median_us", 0), 0u);
  EXPECT_EQ(lines[1].rfind("\"first\",cpu,true,", 0), 0u);
  EXPECT_NE(lines[2].find("\"element 3 is 7, not \"\"8\"\"\""), std::string::npos);
  const auto fields = [](const std::string& line) { return std::count(line.begin(), line.end(), ','); };
  EXPECT_EQ(fields(lines[0]), fields(lines[1]));
  EXPECT_EQ(fields(lines[0]) + 1, fields(lines[2]));  // one stands inside the quotes

  std::ostringstream right;
  EXPECT_EQ(run_cases({scripted("first")}, machine, options, right), 0);
  EXPECT_EQ(right.str().find("not run"), std::string::npos) << right.str();
  EXPECT_EQ(json::parse(testing::read_all(options.json))["ok"], true);
}

// ---------------------------------------------------------------------------------------------------------------------
// Wrong results planted in what is timed

Result run_kernel(const std::string& name, const Kernels<float>& kernels) {
  FixedMachine machine;
  const std::vector<Case> cases = make_cases(kernel_blocks({}, kernels), {parse_axis("n=1000")});
  for (const Case& one : cases)
    if (one.name == name) return run_case(one, machine, quick());
  throw std::runtime_error("no case " + name);
}

TEST(BenchChecks, AWrongResultPlantedInAKernelFailsItsCase) {
  for (const char* name : {"relu", "relu_gradient", "squared_error"}) {
    const Result right = run_kernel("kernel/" + std::string(name) + "/n=1000/fp32", public_kernels<float>());
    EXPECT_TRUE(right.ok()) << right.error;
    EXPECT_GT(right.us->median, 0);
  }
  using Out = std::span<float>;
  using In = std::span<const float>;
  const Kernels<float> good = public_kernels<float>();

  Kernels<float> kernels = good;
  kernels.relu = [&](Out out, In in) {
    good.relu(out, in);
    out[999] += 1;
  };
  EXPECT_EQ(run_kernel("kernel/relu/n=1000/fp32", kernels).error.rfind("element 999 is ", 0), 0u);
  kernels.relu = [&](Out out, In in) { good.relu(out.first(999), in.first(999)); };  // one is not written
  EXPECT_FALSE(run_kernel("kernel/relu/n=1000/fp32", kernels).ok());
  kernels.relu_gradient = [](Out dz, In z, In dh) {
    for (std::size_t i = 0; i < dz.size(); ++i) dz[i] = z[i] < 0 ? dh[i] : 0;
  };
  EXPECT_FALSE(run_kernel("kernel/relu_gradient/n=1000/fp32", kernels).ok());
  kernels.squared_error = [&](Out gradient, In prediction, In target) {
    return 1.00001 * good.squared_error(gradient, prediction, target);
  };
  EXPECT_EQ(run_kernel("kernel/squared_error/n=1000/fp32", kernels).error.rfind("the loss is ", 0), 0u);
  kernels.squared_error = [&](Out gradient, In prediction, In target) {
    const double loss = good.squared_error(gradient, prediction, target);
    gradient[0] = -gradient[0];
    return loss;
  };
  EXPECT_FALSE(run_kernel("kernel/squared_error/n=1000/fp32", kernels).ok());
  // The first result is right and later ones are not: what was timed is what is checked.
  int calls = 0;
  kernels.relu = [&](Out out, In in) {
    good.relu(out, in);
    if (++calls > 1) out[5] += 1;
  };
  EXPECT_FALSE(run_kernel("kernel/relu/n=1000/fp32", kernels).ok());
}

TEST(BenchChecks, AProductIsHeldAgainstTheReference) {
  for (const char* product : {"forward", "input_gradient", "weight_update"}) {
    const ProductShape shape = *product_shape(
        {{"product", product}, {"layers", "30-270-300"}, {"layer", "1"}, {"n", "290"}, {"precision", "fp64"}});
    Table a(shape.transpose_a ? shape.k : shape.m, shape.transpose_a ? shape.m : shape.k);
    Table b(shape.transpose_b ? shape.n : shape.k, shape.transpose_b ? shape.k : shape.n);
    for (std::size_t i = 0; i < a.values.size(); ++i)
      a.values[i] = random_value<double>(1, kFirst, static_cast<std::int64_t>(i));
    for (std::size_t i = 0; i < b.values.size(); ++i)
      b.values[i] = random_value<double>(1, kSecond, static_cast<std::int64_t>(i));
    Table out = bench::product(shape.transpose_a ? transposed(a) : a, shape.transpose_b ? transposed(b) : b);
    EXPECT_NO_THROW(check_product(shape, 1, out.values.data())) << product;
    EXPECT_THROW(check_product(shape, 2, out.values.data()), WrongResult) << product;
    out.values.back() += 1e-6;  // the last row is one of those that are checked
    EXPECT_THROW(check_product(shape, 1, out.values.data()), WrongResult) << product;
    out.values.back() = std::nan("");
    EXPECT_THROW(check_product(shape, 1, out.values.data()), WrongResult) << product;
  }
}

ReferenceStep descent(double rate) {
  ReferenceStep step;
  step.learning_rate = rate;
  return step;
}

void fill_random(Table& table, std::uint64_t array) {
  for (std::size_t i = 0; i < table.values.size(); ++i)
    table.values[i] = random_value<double>(3, array, static_cast<std::int64_t>(i));
}

TEST(BenchReference, IsGradientDescentByFiniteDifferences) {
  const std::int64_t widths[] = {4, 6, 5, 2};
  // Few rows, and so many that each core has some of its own, in more than one panel.
  for (const std::int64_t samples : {7, 24001}) {
    Parameters parameters;
    for (int layer = 0; layer < 3; ++layer) {
      fill_random(parameters.weights.emplace_back(widths[layer], widths[layer + 1]),
                  kThird + static_cast<std::uint64_t>(layer));
      fill_random(parameters.biases.emplace_back(1, widths[layer + 1]), 20 + static_cast<std::uint64_t>(layer));
    }
    Table x(samples, 4), y(samples, 2);
    fill_random(x, kFirst);
    fill_random(y, kSecond);
    const auto loss_at = [&](Parameters at) { return train_reference(at, x, y, {}, 1)[0]; };
    double loss_of_rows = 0;
    for (std::int64_t row = 0; row < samples; ++row) {
      Table one(1, 4), target(1, 2);
      std::copy_n(x.row(row), 4, one.row(0));
      std::copy_n(y.row(row), 2, target.row(0));
      Parameters at = parameters;
      loss_of_rows += train_reference(at, one, target, {}, 1)[0];
    }
    EXPECT_NEAR(loss_at(parameters) / loss_of_rows, 1, 1e-12);
    constexpr double kRate = 1e-3, kStep = 1e-5;
    Parameters moved = parameters;
    train_reference(moved, x, y, descent(kRate), 1);
    for (std::size_t layer = 0; layer < 3; ++layer)
      for (const auto tensors : {&Parameters::weights, &Parameters::biases})
        for (const std::size_t index : {std::size_t{0}, (parameters.*tensors)[layer].values.size() - 1}) {
          Parameters up = parameters, down = parameters;
          (up.*tensors)[layer].values[index] += kStep;
          (down.*tensors)[layer].values[index] -= kStep;
          const double slope = (loss_at(up) - loss_at(down)) / (2 * kStep);
          const double went =
              ((parameters.*tensors)[layer].values[index] - (moved.*tensors)[layer].values[index]) / kRate;
          ASSERT_TRUE(std::isfinite(slope));
          EXPECT_NEAR(went, slope, 1e-5 * (1 + std::abs(slope))) << "layer " << layer << ", " << index;
        }
  }
  // A single neuron: x = (2, 3, 4), w = (1, -1, 5) predicts 19.
  Parameters neuron;
  neuron.weights.emplace_back(3, 1).values = {1, -1, 5};
  Table three(1, 3), target(1, 1);
  three.values = {2, 3, 4};
  target.values = {18};
  EXPECT_EQ(train_reference(neuron, three, target, descent(0.25), 1)[0], 1);
  EXPECT_EQ(neuron.weights[0].values, (std::vector<double>{0, -2.5, 3}));
}

TEST(BenchReference, HasTheCrossEntropyOfClassesAndItsGradient) {
  Parameters parameters;
  fill_random(parameters.weights.emplace_back(3, 4), kThird);
  Table x(40, 3), classes(40, 1);
  fill_random(x, kFirst);
  double expected = 0;
  for (std::int64_t row = 0; row < 40; ++row) {
    classes.row(row)[0] = static_cast<double>(row % 4);
    double sum = 0, own = 0;
    for (std::int64_t j = 0; j < 4; ++j) {
      double score = 0;
      for (std::int64_t k = 0; k < 3; ++k) score += x.row(row)[k] * parameters.weights[0].row(k)[j];
      sum += std::exp(score);
      if (j == row % 4) own = score;
    }
    expected -= std::log(std::exp(own) / sum) / 40;
  }
  ReferenceStep step = descent(1e-3);
  step.cross_entropy = true;
  step.weight = 1.0 / 40;
  const auto loss_at = [&](Parameters at) { return train_reference(at, x, classes, step, 1)[0]; };
  EXPECT_NEAR(loss_at(parameters), expected, 1e-14);
  Parameters moved = parameters;
  train_reference(moved, x, classes, step, 1);
  for (std::size_t i = 0; i < 12; ++i) {
    Parameters up = parameters, down = parameters;
    up.weights[0].values[i] += 1e-5;
    down.weights[0].values[i] -= 1e-5;
    const double went = (parameters.weights[0].values[i] - moved.weights[0].values[i]) / step.learning_rate;
    EXPECT_NEAR(went, (loss_at(up) - loss_at(down)) / 2e-5, 1e-8) << i;
  }
}

TEST(BenchReference, AdamFollowsKingmaAndBaAndBatchesTheirOrder) {
  // One weight, one input: the predictions are the weight, and the targets make gradients 2 (w - y).
  Parameters parameters;
  parameters.weights.emplace_back(1, 1).values = {5};
  Table x(3, 1), y(3, 1);
  x.values = {1, 1, 1};
  y.values = {1, 4, 0.5};
  ReferenceStep step = descent(0.1);
  step.adam = true;
  step.batch = 1;
  step.order = {2, 0, 1};
  const std::vector<double> losses = train_reference(parameters, x, y, step, 3);
  double w = 5, m = 0, v = 0;
  for (int t = 1; t <= 3; ++t) {
    const double target = std::vector<double>{0.5, 1, 4}[static_cast<std::size_t>(t - 1)];
    EXPECT_NEAR(losses[static_cast<std::size_t>(t - 1)], (w - target) * (w - target), 1e-12) << t;
    const double g = 2 * (w - target);
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    w -= 0.1 * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8);
  }
  EXPECT_NEAR(parameters.weights[0].values[0], w, 1e-12);
  // Gradients far below epsilon: the first step is rate g / (|g| + 1e-8).
  Parameters small;
  small.weights.emplace_back(1, 1).values = {0};
  y.values = {5e-9, 0, 0};
  step.order = {0};
  train_reference(small, x, y, step, 1);
  EXPECT_NEAR(small.weights[0].values[0], 0.1 / 2, 1e-12);
}

Training small_training(const std::string& precision = "fp32", const std::string& bias = "yes",
                        const Values& others = {}) {
  Values values = others;  // which have precedence
  values.merge(Values{{"plan", "cpu"},
                      {"layers", "20-12-3"},
                      {"n", "32"},
                      {"precision", precision},
                      {"bias", bias},
                      {"loss", "squared"},
                      {"optimizer", "gd"},
                      {"batch", "all"},
                      {"formulation", "primal"},
                      {"tuned", "no"},
                      {"steps", "20"}});
  return *training_of(values, {});
}

Training small_job(const std::string& precision, const std::string& loss) {
  return small_training(precision, "yes", {{"loss", loss}, {"optimizer", "adam"}, {"batch", "12"}});
}

TEST(BenchChecks, TrainingIsHeldAgainstTheReference) {
  for (const Training& training :
       {small_training("fp32"), small_training("fp64"), small_job("fp32", "mse"), small_job("fp64", "cross-entropy")}) {
    TrainingRun run(training);
    const std::vector<double> losses = run.trainer().train(training.steps).losses;
    EXPECT_NO_THROW(check_losses(training, losses, run.expected_losses()));
    const Parameters got = run.read(run.trainer());
    EXPECT_NO_THROW(check_parameters(training, run.initial(), got, run.expected_parameters()));

    for (const std::size_t at : {std::size_t{0}, losses.size() - 1}) {
      std::vector<double> wrong = losses;
      wrong[at] *= 1.0002;
      EXPECT_THROW(check_losses(training, wrong, run.expected_losses()), WrongResult);
      wrong[at] = std::nan("");
      EXPECT_THROW(check_losses(training, wrong, run.expected_losses()), WrongResult);
      EXPECT_THROW(check_falling(wrong, training.steps), WrongResult);
    }
    EXPECT_THROW(check_falling(losses, training.steps + 1), WrongResult);
    EXPECT_THROW(check_falling({2, 3}, 2), WrongResult);

    // The gradient of one layer scaled, and one that stood still.
    for (const double scale : {1.02, 0.0})
      for (const bool in_bias : {false, true}) {
        Parameters wrong = got;
        Table& table = in_bias ? wrong.biases[0] : wrong.weights[1];
        const Table& before = in_bias ? run.initial().biases[0] : run.initial().weights[1];
        for (std::size_t i = 0; i < table.values.size(); ++i)
          table.values[i] = before.values[i] + scale * (table.values[i] - before.values[i]);
        EXPECT_THROW(check_parameters(training, run.initial(), wrong, run.expected_parameters()), WrongResult)
            << scale << in_bias;
      }
  }
}

TEST(BenchReference, PartsOfALoopCoverItOnceAlsoInsideOfOthers) {
  std::vector<int> touched(1000);
  std::atomic<int> elsewhere = 0;
  in_parallel(10, [&](std::int64_t begin, std::int64_t end) {
    const std::thread::id here = std::this_thread::get_id();
    for (std::int64_t i = begin; i < end; ++i)
      in_parallel(100, [&, i](std::int64_t first, std::int64_t last) {
        elsewhere += std::this_thread::get_id() != here;
        for (std::int64_t j = first; j < last; ++j) ++touched[static_cast<std::size_t>(100 * i + j)];
      });
  });
  EXPECT_EQ(touched, std::vector<int>(1000, 1));
  if (core_count() > 1) {
    EXPECT_EQ(elsewhere, 0);
  }
}

TEST(BenchChecks, RunsOfTheSameArithmeticShareTheirReference) {
  const Training training = small_training();
  TrainingRun run(training), again(training);
  const auto* const losses = &run.expected_losses();
  EXPECT_EQ(&again.expected_losses(), losses);
  EXPECT_EQ(&again.expected_parameters(), &run.expected_parameters());
  const auto expect_own = [&](const char* what, const Training& other) {
    TrainingRun own(other);
    EXPECT_NE(&own.expected_losses(), losses) << what;
  };
  expect_own("precision", small_training("fp64"));
  expect_own("bias", small_training("fp32", "no"));
  Training other = training;
  other.spec.optimizer.kind = OptimizerKind::adam;
  expect_own("optimizer", other);
  other = training;
  other.spec.batch_size = 16;
  expect_own("batch", other);
  other = training;
  other.spec.reduction = Reduction::mean;
  expect_own("reduction", other);
  other = training;
  other.spec.loss = Loss::cross_entropy;
  other.spec.class_targets = true;
  expect_own("loss", other);
  other = training;
  other.spec.seed = 1;
  expect_own("seed", other);
  other = training;
  other.init = training.init == Init::he ? Init::normal : Init::he;
  expect_own("init", other);
  other = training;
  other.distinct = 8;
  expect_own("distinct", other);
  other = training;
  other.checked_steps = 1;
  expect_own("checked_steps", other);
  other = training;
  other.spec.optimizer.learning_rate *= 2;
  expect_own("rate", other);
}

TEST(BenchChecks, RepeatedRowsAreCheckedByOneBlockOfThem) {
  for (Training training : {small_training(), small_job("fp32", "mse"), small_job("fp32", "cross-entropy")}) {
    training.distinct = 8;
    TrainingRun run(training);
    EXPECT_NO_THROW(check_losses(training, run.trainer().train(training.steps).losses, run.expected_losses()));
  }
  // All of a small matrix is drawn, and an even part of a large one whose rows steps take by a few.
  for (const auto& [n, distinct] : {std::pair{"65536", 65536}, std::pair{"524288", 131072}})
    EXPECT_EQ(small_training("fp32", "no", {{"n", n}, {"batch", "12"}}).distinct, distinct) << n;
}

TEST(BenchCases, SmallRunsOfTrainingAndPlanningAreRight) {
  FixedMachine machine;
  CaseOptions options;
  options.threads = 2;
  for (const auto& blocks : {train_blocks(options), plan_blocks(options), gemm_blocks(options)}) {
    const std::vector<Case> cases = make_cases(blocks, {parse_axis("layers=20-12-3"), parse_axis("n=40")});
    ASSERT_FALSE(cases.empty());
    for (const Case& one : cases) {
      const auto batch = one.values.find("batch");
      if (batch != one.values.end() && batch->second != "all") continue;  // more rows than there are
      RunOptions few = quick();
      few.timeout_s = 0.05;
      const Result result = run_case(one, machine, few);
      EXPECT_TRUE(result.ok()) << one.name << ": " << result.error;
      EXPECT_EQ(result.not_run, "") << one.name;
      if (one.name.rfind("train/", 0) == 0) {
        EXPECT_EQ(result.details["threads"], 2) << one.name;
      }
    }
  }
}

TEST(BenchCases, SmallRunsOfEveryLossOptimizerAndBatchAreRight) {
  FixedMachine machine;
  const std::vector<Case> cases =
      make_cases(train_blocks({}), {parse_axis("layers=20-12-3"), parse_axis("n=40"), parse_axis("formulation=primal"),
                                    parse_axis("loss=squared,mse,cross-entropy"), parse_axis("optimizer=gd,adam"),
                                    parse_axis("batch=all,12"), parse_axis("bias=yes"), parse_axis("precision=fp32")});
  EXPECT_TRUE(has(cases, "train/cpu/20-12-3/n=40/fp32/bias/cross-entropy/adam/batch=12"));
  EXPECT_EQ(std::count_if(cases.begin(), cases.end(), [](const Case& one) { return one.values.at("steps") == "auto"; }),
            12);
  for (const Case& one : cases) {
    RunOptions few = quick();
    few.timeout_s = 0.05;
    const Result result = run_case(one, machine, few);
    EXPECT_TRUE(result.ok()) << one.name << ": " << result.error;
    EXPECT_EQ(result.not_run, "") << one.name;
  }
}

TEST(BenchLimits, MeasuresThisMachine) {
  ThisMachine machine(2);
  Demand demand;
  demand.flops = 1e6;
  const Limit arithmetic = machine.limit(demand);
  EXPECT_GT(arithmetic.us, 0);
  EXPECT_TRUE(arithmetic.by == "FMA" || arithmetic.by == "GEMM") << arithmetic.by;
  demand.bytes = demand.footprint = 12e3;
  demand.flops = 0;
  demand.reads = 2;
  const Limit memory = machine.limit(demand);
  EXPECT_GT(memory.us, 0);
  EXPECT_NE(memory.by.find(" in L1"), std::string::npos) << memory.by;
  demand.bytes = 0;
  EXPECT_EQ(machine.limit(demand).us, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// The program

testing::CommandResult bench(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), DEVICELOOP_BENCH);
  testing::CommandSetup setup;
  setup.arguments = std::move(arguments);
  return testing::run_command(setup);
}

TEST(BenchProgram, ListsItsCasesThoseOfTheDefaultSetFirst) {
  const testing::CommandResult result = bench({"--list", "--device", "cpu"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const std::size_t sweeps = result.out.find("\n\n");
  for (const char* name : {"kernel/relu/n=1024/fp32\n", "gemm/forward/1000-100-1/layer=0/n=128/fp64\n",
                           "train/cpu/1000-100-1/n=128/fp32\n", "plan/first_loss/cpu/1000-100-1/n=128/fp32\n"})
    EXPECT_LT(result.out.find(name), sweeps) << name;
  const std::size_t largest = result.out.find("kernel/squared_error/n=268435456/fp64\n");
  EXPECT_GT(largest, sweeps);
  EXPECT_NE(largest, std::string::npos);
}

TEST(BenchProgram, RunsACaseWritesFilesAndSaysHowToRepeatIt) {
  const testing::TemporaryFolder folder;
  const std::string json_file = folder / "r.json", csv_file = folder / "r.csv";
  const testing::CommandResult result =
      bench({"--benchmark", "^kernel/relu/", "--axis", "n=5000", "--device", "cpu", "--min-samples", "4", "--timeout",
             "0.2", "--seed", "5", "--json", json_file, "--csv", csv_file});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* text :
       {"limit: FMA, 1 thread", "limit: copy beyond the caches", "kernel/relu/n=5000/fp32", "% limit"})
    EXPECT_NE(result.out.find(text), std::string::npos) << text << " in\n" << result.out;
  const json document = json::parse(testing::read_all(json_file));
  EXPECT_EQ(document["ok"], true);
  EXPECT_EQ(document["machine"]["seed"], 5);
  EXPECT_GT(document["seconds"], 0);
  EXPECT_NE(result.out.find("\n2 cases in "), std::string::npos) << result.out;
  ASSERT_EQ(document["cases"].size(), 2u);  // both precisions
  for (const json& one : document["cases"]) {
    EXPECT_EQ(one["ok"], true);
    EXPECT_GE(one["samples"], 4);
    EXPECT_GT(one["median_us"], 0);
    EXPECT_GT(one["percent_of_limit"], 0);
  }
  EXPECT_EQ(testing::read_all(csv_file).rfind("name,device,ok", 0), 0u);

  EXPECT_EQ(document["cases"][0]["repeat"],
            DEVICELOOP_BENCH " --axis n=5000 --seed 5 --benchmark '^kernel/relu/n=5000/fp32$'");
}

TEST(BenchProgram, RunsOneCaseOnceForAProfiler) {
  const testing::CommandResult result =
      bench({"--profile", "--device", "cpu", "--benchmark", "^kernel/relu/n=1024/fp32$"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "kernel/relu/n=1024/fp32: ran once\n");
  EXPECT_EQ(bench({"--profile", "--device", "cpu", "--benchmark", "kernel/"}).exit_code, 2);
}

TEST(BenchProgram, RefusesWrongUsageWithCode2) {
  const std::vector<std::vector<std::string>> wrong = {
      {"--benchmark", "nothing/of/this"},
      {"--benchmark", "("},
      {"--axis", "n"},
      {"--axis", "colour=red"},
      {"--axis", "precision=fp8"},
      {"--min-samples", "0"},
      {"--min-samples", "nan"},
      {"--timeout", "-1"},
      {"--budget", "-1"},
      {"--budget", "nan"},
      {"--timeout", "nan"},
      {"--timeout", "inf"},
      {"--timeout", "1e7"},
      {"--timeout", "1s"},
      {"--seed", "-1"},
      {"--seed", "1.5"},
      {"--seed", "18446744073709551616"},
      {"--threads", "-1"},
      {"--threads", "257"},
      {"--json", "same.json", "--csv", "./same.json"},
      {"--device", "tpu"},
      {"--fast"},
      {"--benchmark", "kernel/relu/n=1024/fp32", "--json", "/nowhere/r.json"}};
  for (std::vector<std::string> arguments : wrong) {
    if (arguments[0] != "--device") arguments.insert(arguments.end(), {"--device", "cpu"});
    const testing::CommandResult result = bench(arguments);
    EXPECT_EQ(result.exit_code, 2) << arguments[0] << " " << arguments.back() << result.out << result.err;
  }
  EXPECT_NE(bench({"--help"}).out.find("3: a case that"), std::string::npos);
  EXPECT_EQ(bench({"--list", "--device", "cpu", "--seed", "18446744073709551615"}).exit_code, 0);
  EXPECT_EQ(bench({"--help"}).exit_code, 0);
  EXPECT_EQ(bench({"--version"}).out.rfind("deviceloop_bench ", 0), 0u);
}

TEST(BenchProgram, SaysThatThereIsNoGpu) {
  const testing::CommandResult all = bench({"--limits"});
  EXPECT_EQ(all.exit_code, 0) << all.err;
  if (all.out.find("no GPU: ") == std::string::npos) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(bench({"--list"}).err.rfind("no GPU: ", 0), 0u);
  EXPECT_EQ(bench({"--device", "cuda"}).exit_code, 1);
}

}  // namespace
}  // namespace deviceloop::bench
