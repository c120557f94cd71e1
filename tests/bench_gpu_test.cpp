// The benchmark binary's cases of a GPU: that they are right, that what is wrong fails, and what of CUDA they count. On
// a GPU, and on the host by tests/simt.
#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include <deviceloop/random.h>
#include <deviceloop/trainer.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "../bench/cases.h"
#include "../bench/gpu.h"
#include "../bench/gpu/cases.h"
#include "../bench/gpu/device.h"
#include "../bench/random_data.h"
#include "../bench/runner.h"
#include "../bench/serve.h"
#include "../host/files/npz.h"
#include "../host/files/output_file.h"
#include "support/cuda_test.h"
#include "support/temporary_folder.h"

namespace deviceloop::bench {
namespace {

class BenchGpu : public testing::CudaTest {};

class FixedMachine final : public Machine {
 public:
  std::vector<Rate> rates(Device) override { return {}; }
  Limit limit(const Demand&) override { return {25, "FMA"}; }
};

/// All cases, small: the element-wise kernels also on counts that no group divides.
std::vector<Case> small_cases(const Spoil& spoil = {}) {
  GpuCaps gpu = query_device_caps().gpus.at(0);
  gpu.l2_bytes = 64 << 10;  // for few copies
  std::vector<Block> blocks = gpu_kernel_blocks(gpu, 3, spoil);
  std::vector<Case> cases = make_cases(blocks, {parse_axis("n=1003,4096"), parse_axis("precision=fp32,fp64")});
  for (Case& one : make_cases(blocks, {parse_axis("batch=130"), parse_axis("features=7,100")}))
    cases.push_back(std::move(one));
  return cases;
}

TEST_F(BenchGpu, EveryKernelIsRightAndTimed) {
  FixedMachine machine;
  RunOptions options;
  options.min_samples = 2;
  options.timeout_s = 0.1;
  const std::vector<Case> cases = small_cases();
  EXPECT_EQ(cases.size(), 7 * 2 * 2 + 4 * 2 * 2u);
  for (const Case& one : cases) {
    const Result result = run_case(one, machine, options);
    EXPECT_TRUE(result.ok()) << one.name << ": " << result.error;
    ASSERT_TRUE(result.us) << one.name << result.not_run;
    EXPECT_GT(result.us->median, 0) << one.name;
    EXPECT_GT(result.gb_per_s, 0) << one.name;
  }
}

TEST_F(BenchGpu, AWrongResultPlantedInAKernelFailsItsCase) {
  FixedMachine machine;
  RunOptions options;
  options.timeout_s = 0;
  // The last byte of each output: a sign and exponent. And of element-wise kernels, the lowest bits of the first.
  for (const bool last : {true, false}) {
    const auto plant = [last](void* output, std::size_t bytes, cuda::Stream stream) {
      char* const at = static_cast<char*>(output) + (last ? bytes - 1 : 0);
      DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(at, 0x55, 1, stream));
    };
    for (const Case& one : small_cases(plant)) {
      const bool is_sum =
          one.name.find("column_sums") != std::string::npos || one.name.find("narrow_linear/") != std::string::npos ||
          one.name.find("error_loss") != std::string::npos || one.name.find("error_cub") != std::string::npos;
      if (!last && is_sum) continue;
      const Result result = run_case(one, machine, options);
      EXPECT_FALSE(result.ok()) << one.name << (last ? ", last" : ", first");
      EXPECT_FALSE(result.us) << one.name;
    }
  }
}

TEST_F(BenchGpu, WhatAKernelDoesNotWriteFailsItsCase) {
  for (const Case& one : small_cases()) {
    const std::unique_ptr<Work> work = one.prepare();
    work->run(1);
    EXPECT_NO_THROW(work->check()) << one.name;
    work->poison();
    EXPECT_THROW(work->check(), WrongResult) << one.name;
  }
}

TEST_F(BenchGpu, AnArrayIsReadInPartsThatCoverIt) {
  const cuda::StreamOwner stream;
  const DeviceArray<double> array(1003);
  fill_random(array, 5, kFirst, false, stream);
  cuda::PinnedBuffer staging;
  std::int64_t next = 0;
  const auto use = [&](const double* part, std::int64_t begin, std::int64_t end) {
    EXPECT_EQ(begin, next);
    EXPECT_LE(end - begin, 125);
    for (std::int64_t i = begin; i < end; ++i)
      EXPECT_EQ(part[i - begin], random_value<double>(5, kFirst, 3 + i)) << "element " << i;
    next = end;
  };
  array.read_parts(3, 900, staging, stream, use, 1000);
  EXPECT_EQ(next, 900);
}

TEST_F(BenchGpu, ProductsAreRight) {
  const DeviceCaps caps = query_device_caps();
  if (!caps.no_cublaslt_reason.empty()) GTEST_SKIP() << caps.no_cublaslt_reason;
  FixedMachine machine;
  RunOptions options;
  options.timeout_s = 0;
  const std::vector<Case> cases =
      make_cases(gpu_gemm_blocks(caps.gpus[0], 3),
                 {parse_axis("layers=30-20-7"), parse_axis("n=33"), parse_axis("precision=fp32,fp64")});
  EXPECT_EQ(cases.size(), 2 * 5u);
  for (const Case& one : cases) {
    const Result result = run_case(one, machine, options);
    EXPECT_TRUE(result.ok()) << one.name << ": " << result.error;
    EXPECT_NE(result.details["algorithm"].get<std::string>().find(" x "), std::string::npos) << one.name;
    const std::unique_ptr<Work> work = one.prepare();
    work->run(1);
    work->poison();
    EXPECT_THROW(work->check(), WrongResult) << one.name;
  }
}

TEST_F(BenchGpu, PredictionsAreRight) {
  const DeviceCaps caps = query_device_caps();
  if (!caps.no_cublaslt_reason.empty()) GTEST_SKIP() << caps.no_cublaslt_reason;
  FixedMachine machine;
  RunOptions options;
  options.timeout_s = 0;
  const std::vector<Case> cases =
      make_cases(gpu_predict_blocks(caps.gpus[0], 3),
                 {parse_axis("layers=12-20-3"), parse_axis("n=33,1100"), parse_axis("precision=fp32,fp64")});
  EXPECT_EQ(cases.size(), 4u);
  for (const Case& one : cases) {
    const Result result = run_case(one, machine, options);
    EXPECT_TRUE(result.ok()) << one.name << ": " << result.error;
    const std::unique_ptr<Work> work = one.prepare();
    work->run(1);
    work->poison();
    EXPECT_THROW(work->check(), WrongResult) << one.name;
  }
}

TEST_F(BenchGpu, CountsLaunchesAndWaitsOfAStep) {
  CaseOptions options;
  options.caps = query_device_caps();
  FixedMachine machine;
  RunOptions few;
  few.timeout_s = 0;
#if defined(DEVICELOOP_SIMT)
  const std::vector<std::string> plans = {"graph"};  // launches of single kernels do not pass through CUDA's call
#else
  const std::vector<std::string> plans = {"graph", "persistent:on-chip"};
#endif
  for (const std::string& plan : plans) {
    if (plan == "graph" && !options.caps.no_cublaslt_reason.empty()) continue;
    const std::vector<Case> cases = make_cases(
        train_blocks(options),
        {parse_axis("layers=20-12-3"), parse_axis("n=40"), parse_axis("steps=64"), parse_axis("plan=" + plan)});
    ASSERT_FALSE(cases.empty());
    const Result result = run_case(cases[0], machine, few);
    ASSERT_TRUE(result.ok()) << result.error;
    ASSERT_TRUE(result.host_calls) << cases[0].name << result.not_run;
    EXPECT_GE(result.host_calls->launches, 1.0 / 64) << plan;
    EXPECT_LE(result.host_calls->launches, 0.25) << plan;
    EXPECT_GE(result.host_calls->synchronizations, 1.0 / 64) << plan;
    EXPECT_LE(result.host_calls->synchronizations, 0.25) << plan;
  }
}

TEST_F(BenchGpu, ServesARowForEachPlanAndFormulation) {
  const testing::TemporaryFolder folder;
  constexpr std::int64_t kSamples = 40, kSteps = 20;
  const NetworkSpec network{.widths = {30, 12, 3}};
  TrainingSpec training;
  training.optimizer.learning_rate = 1e-4;
  training.device.kind = DeviceKind::cpu;
  std::vector<float> x(kSamples * 30), y(kSamples * 3);
  fill_normal(Matrix(x.data(), kSamples, 30), 0, kTensorX);
  fill_normal(Matrix(y.data(), kSamples, 3), 0, kTensorY);
  ServeOptions options;
  options.data = folder / "data.npz";
  options.weights = folder / "weights.safetensors";
  options.steps = kSteps;
  options.rate = training.optimizer.learning_rate;
  options.device = DeviceKind::cuda;
  OutputFile file(options.data);
  write_npz(file, ConstMatrix(x.data(), kSamples, 30), ConstMatrix(y.data(), kSamples, 3));
  file.commit();
  Trainer trainer(network, training);
  trainer.save_weights(options.weights);
  trainer.set_data(ConstMatrix(x.data(), kSamples, 30), ConstMatrix(y.data(), kSamples, 3));
  const std::vector<double> expected = trainer.train(kSteps).losses;
  ASSERT_EQ(expected.size(), static_cast<std::size_t>(kSteps));

  const auto answers = [&](const std::string& lines) {
    std::istringstream in(lines);
    std::ostringstream out;
    serve(options, in, out);
    std::istringstream said(out.str());
    std::vector<nlohmann::json> found;
    for (std::string line; std::getline(said, line);) found.push_back(nlohmann::json::parse(line));
    return found;
  };
  std::vector<std::string> names = {"deviceloop", "deviceloop/graph", "deviceloop/persistent", "deviceloop/gram"};
  const nlohmann::json first = answers("")[0];
  if (first["missing"].contains("deviceloop/graph")) {
    EXPECT_FALSE(query_device_caps().no_cublaslt_reason.empty()) << first;
    names.erase(names.begin() + 1);
  }
  std::string lines;
  for (const std::string& name : names) lines += "run " + name + "\nrun " + name + "\n";
  const std::vector<nlohmann::json> found = answers(lines);
  ASSERT_EQ(found.size(), 1 + 2 * names.size());
  ASSERT_EQ(found[0]["rows"].size(), names.size()) << found[0];
  for (std::size_t row = 0; row < names.size(); ++row) {
    const nlohmann::json& said = found[0]["rows"][row];
    EXPECT_EQ(said["name"], names[row]);
    EXPECT_EQ(said["includes"]["device"], "cuda");
    EXPECT_EQ(said["includes"]["formulation"], names[row] == "deviceloop/gram" ? "gram" : "primal");
    const std::size_t slash = names[row].find('/');
    if (slash != std::string::npos && names[row] != "deviceloop/gram") {
      EXPECT_EQ(said["includes"]["note"], "plan " + names[row].substr(slash + 1));
    }
    EXPECT_EQ(found[1 + 2 * row]["losses"], found[2 + 2 * row]["losses"]) << names[row];
    const auto losses = found[1 + 2 * row]["losses"].get<std::vector<double>>();
    ASSERT_EQ(losses.size(), expected.size());
    for (std::size_t step = 0; step < losses.size(); ++step)
      EXPECT_NEAR(losses[step] / expected[step], 1, 1e-4) << names[row] << ", step " << step;
  }

  options.slow_plan = 1;  // so that all but the fastest are too slow
  const nlohmann::json fastest = answers("")[0];
  if (names.size() == 4) {
    EXPECT_EQ(fastest["rows"].size(), 3u) << fastest;
    EXPECT_NE(fastest["missing"].dump().find(" us a step, "), std::string::npos) << fastest;
  }
}

}  // namespace
}  // namespace deviceloop::bench
