// train/...: a step of training, by the wall clock around Trainer::train as a whole, the losses' way to the host
// included. Every run starts from the same parameters and must give the same losses, bit for bit.
#include <sys/resource.h>
#include <sys/time.h>

#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>

#include "gpu.h"
#include "training.h"

namespace deviceloop::bench {
namespace {

using Clock = std::chrono::steady_clock;

/// The microseconds of processor time that this thread has taken.
double thread_us() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  const auto us = [](const timeval& time) {
    return 1e6 * static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec);
  };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

class TrainWork final : public Work {
 public:
  explicit TrainWork(const Training& training) : run_(training) {}

  Demand demand() const override {
    const Training& training = run_.training();
    const Plan& plan = report_.plan;
    Demand demand;
    demand.device = training.device();
    demand.precision = training.spec.precision;
    demand.threads = plan.threads;
    demand.elements = static_cast<double>(training.rows());
    demand.flops = step_flops(training);
    demand.bytes = step_bytes(training);
    demand.footprint = static_cast<double>(plan.bytes);
    demand.writes = 0;  // nearly all of it is read
    return demand;
  }

  double run(std::int64_t) override {
    Trainer& trainer = run_.trainer();
    run_.set_parameters(trainer);
    const std::optional<CudaCalls> before = cuda_calls();
    const double busy = thread_us();
    const Clock::time_point start = Clock::now();
    TrainReport report = trainer.train(run_.training().steps);
    const double us = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    busy_share_ = (thread_us() - busy) / us;
    const auto steps = static_cast<double>(run_.training().steps);
    if (const std::optional<CudaCalls> after = cuda_calls(); after && run_.training().device() == Device::cuda)
      host_calls_ = HostCalls{static_cast<double>(after->launches - before->launches) / steps,
                              static_cast<double>(after->synchronizations - before->synchronizations) / steps};
    if (!report_.losses.empty() &&
        (report.losses.size() != report_.losses.size() ||
         std::memcmp(report.losses.data(), report_.losses.data(), report.losses.size() * sizeof(double)) != 0))
      throw WrongResult("another run from the same parameters gives other losses");
    report_ = std::move(report);
    return us / steps;
  }

  bool repeats() const override { return false; }

  void check() override {
    const Training& training = run_.training();
    check_falling(report_.losses, training.steps);
    loss_error_ = check_losses(training, report_.losses, run_.expected_losses());
    Trainer& trainer = run_.trainer();
    run_.set_parameters(trainer);
    trainer.train(training.checked_steps);
    parameter_error_ = check_parameters(training, run_.initial(), run_.read(trainer), run_.expected_parameters());
  }

  std::optional<HostCalls> host_calls() const override { return host_calls_; }

  nlohmann::json details() const override {
    const Training& training = run_.training();
    nlohmann::json details = {{"steps", training.steps},
                              {"learning_rate", training.spec.optimizer.learning_rate},
                              {"plan", report_.plan.reason},
                              {"plan_bytes", report_.plan.bytes},
                              {"predicted_us_per_step", report_.plan.predicted_us_per_step},
                              {"loss_first", report_.losses.front()},
                              {"loss_last", report_.losses.back()},
                              {"checked_steps", training.checked_steps},
                              {"distinct_rows", training.distinct},
                              {"loss_error", loss_error_},
                              {"parameter_error", parameter_error_},
                              {"calling_thread_busy", busy_share_}};
    if (training.device() == Device::cpu) details["threads"] = report_.plan.threads;
    if (!report_.algorithms.empty()) details["algorithms"] = report_.algorithms;
    return details;
  }

 private:
  TrainingRun run_;
  TrainReport report_;
  double busy_share_ = 0, loss_error_ = 0, parameter_error_ = 0;
  std::optional<HostCalls> host_calls_;
};

}  // namespace

std::vector<Block> train_blocks(const CaseOptions& options) {
  const auto make = [options](const Values& values) -> std::optional<Case> {
    const std::optional<Training> training = training_of(values, options);
    if (!training) return std::nullopt;
    Case made;
    made.name = "train/" + training->name;
    made.device = training->device();
    made.refused = training->refused;
    made.prepare = [training = *training] { return std::make_unique<TrainWork>(training); };
    return made;
  };
  const std::vector<std::string> single = {"fp32"}, both = {"fp32", "fp64"};
  const std::vector<std::string> on_cpu = {"cpu"}, on_gpu = {"graph", "persistent"};
  const Axis formulations = {"formulation", formulation_names()}, tuned = {"tuned", {"yes"}};
  std::vector<std::string> widths;
  for (const int width : {16, 32, 64, 128, 256, 512, 1024, 2048}) {
    const std::string text = std::to_string(width);
    widths.push_back(text + "-" + text + "-" + text + "-1");
  }
  const std::string wide = "1024-1024-1024-10", widest = "4096-4096-4096-4096-4096";
  std::vector<Block> blocks;
  const auto add = [&](bool by_default, std::vector<Axis> axes) {
    blocks.push_back({by_default, std::move(axes), make});
  };
  add(true, training_axes({"1000-100-1"}, {"128"}, both, {formulations}));
  add(true, training_axes({"784-128-10"}, {"64"}, single, {formulations}));
  add(true, training_axes({"64-64-64-1"}, powers_of_two(14, 16, 2), single));
  add(true, training_axes({"64-64-64-1"}, powers_of_two(18, 20, 2), single, {{"plan", on_gpu}}));
  add(true, training_axes({wide}, {"1024"}, single));
  add(true, training_axes({widest}, {"8192"}, single, {{"plan", on_gpu}}));
  add(true, training_axes({"1000-100-1"}, {"128"}, single, {{"plan", on_gpu}, tuned}));
  add(true, training_axes({wide}, {"1024"}, single, {{"plan", on_gpu}, tuned}));
  add(false, training_axes({widest}, {"8192"}, single, {{"plan", on_gpu}, tuned}));
  // By tensor cores, in TF32 and bf16.
  const std::vector<std::string> lower = {"tf32", "bf16"};
  add(true, training_axes({wide}, {"1024"}, lower, {{"plan", {"graph"}}}));
  add(true, training_axes({widest}, {"8192"}, lower, {{"plan", {"graph"}}}));
  add(true, training_axes({"1000-100-1"}, {"128"}, single, {{"plan", persistent_plan_names()}, formulations}));
  add(true, training_axes({"64-64-64-1"}, powers_of_two(14, 20, 2), {"bf16", "tf32", "tf32x3"},
                          {{"plan", {"fused"}}, {"bias", {"yes"}}}));
  add(true,
      training_axes({"128-128-128-1"}, powers_of_two(14, 20, 2), {"bf16"}, {{"plan", {"fused"}}, {"bias", {"yes"}}}));
  const auto jobs = [](const std::string& layers, const std::string& samples, const std::string& loss,
                       std::vector<std::string> batches, const std::string& precision = "fp32",
                       std::vector<std::string> plans = {"cpu", "graph", "persistent"}) {
    return training_axes({layers}, {samples}, {precision},
                         {{"plan", std::move(plans)},
                          {"bias", {"yes"}},
                          {"loss", {loss}},
                          {"optimizer", {"adam"}},
                          {"batch", std::move(batches)}});
  };
  add(true, jobs("784-128-10", "60000", "cross-entropy", {"64"}));
  add(true, jobs("64-64-64-1", "65536", "mse", {"4096"}));
  add(true, jobs("64-64-64-1", "65536", "mse", {"512", "1024", "4096", "16384"}, "bf16", {"fused"}));
  // Sweeps, and what else is worth a name.
  add(false, jobs("784-128-10", "60000", "cross-entropy", {"512"}));
  add(false, jobs("64-64-64-1", "65536", "mse", {"256", "1024"}));
  add(false, jobs("784-128-10", "60000", "cross-entropy", {"64", "512"}, "tf32x3", {"persistent"}));
  add(false, jobs("64-64-64-1", "65536", "mse", {"256", "1024", "4096"}, "tf32x3", {"persistent", "fused"}));
  add(false, training_axes(widths, {"1024"}, single, {formulations}));
  add(false, training_axes({"64-64-64-1"}, powers_of_two(8, 20), both));
  add(false, training_axes({"784-128-10"}, {"64"}, both, {{"bias", {"no", "yes"}}, formulations}));
  add(false, training_axes({"1000-100-1"}, {"128"}, both, {{"steps", {"500", "20000"}}, formulations}));
  add(false, training_axes({wide}, {"1024"}, both));
  add(false, training_axes({wide, widest}, {"1024", "8192"}, {"tf32", "tf32x3", "bf16"}, {{"plan", {"graph"}}, tuned}));
  return blocks;
}

}  // namespace deviceloop::bench
