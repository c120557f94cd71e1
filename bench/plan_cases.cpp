// plan/...: what comes before the first step.
//
// make_plan   asking all executors, without one being made
// set_data    the data into a trainer that has had data before
// first_loss  a trainer from nothing: plan, memory, parameters, data, and one step with its loss on the host
// first_train a step of the first run of a trainer that has its data: it shall take what a step of any run takes
#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "training.h"

namespace deviceloop::bench {
namespace {

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

class MakePlan final : public Work {
 public:
  MakePlan(const Training& training, const DeviceCaps& caps) : training_(training), caps_(caps) {}

  Demand demand() const override {
    Demand demand;
    demand.device = training_.device();
    return demand;
  }
  double run(std::int64_t calls) override {
    const Clock::time_point start = Clock::now();
    for (std::int64_t call = 0; call < calls; ++call)
      plan_ = make_plan(training_.network, training_.spec, caps_, training_.plan);
    return us_since(start) / static_cast<double>(calls);
  }
  void check() override {
    if (plan_.executor != training_.plan || plan_.bytes == 0 || !(plan_.predicted_us_per_step > 0))
      throw WrongResult("the plan is not the one that was asked for: " + plan_.reason);
  }
  nlohmann::json details() const override { return {{"plan_bytes", plan_.bytes}}; }

 private:
  Training training_;
  DeviceCaps caps_;
  Plan plan_;
};

class SetData final : public Work {
 public:
  explicit SetData(const Training& training) : run_(training) {}

  Demand demand() const override {
    Demand demand;
    demand.device = run_.training().device();
    demand.precision = run_.training().spec.precision;
    // On a GPU the bus is the limit, which is not measured.
    demand.elements =
        static_cast<double>(run_.data_bytes()) / static_cast<double>(size_of(element_type(demand.precision)));
    if (demand.device == Device::cpu) demand.bytes = demand.footprint = 2 * static_cast<double>(run_.data_bytes());
    return demand;
  }
  double run(std::int64_t calls) override {
    const Clock::time_point start = Clock::now();
    for (std::int64_t call = 0; call < calls; ++call) run_.set_data(run_.trainer());
    return us_since(start) / static_cast<double>(calls);
  }
  void check() override { check_losses(run_.training(), {run_.trainer().loss()}, {run_.expected_losses().front()}); }

 private:
  TrainingRun run_;
};

class FirstLoss final : public Work {
 public:
  explicit FirstLoss(const Training& training) : run_(training) {}

  Demand demand() const override {
    Demand demand;
    demand.device = run_.training().device();
    return demand;
  }
  double run(std::int64_t) override {
    const Training& training = run_.training();
    const Clock::time_point start = Clock::now();
    Trainer trainer(training.network, training.spec, training.plan);
    trainer.initialize(training.spec.seed, training.init);
    run_.set_data(trainer);
    losses_ = trainer.train(1).losses;
    return us_since(start);
  }
  bool repeats() const override { return false; }
  void check() override { check_losses(run_.training(), losses_, {run_.expected_losses().front()}); }

 private:
  TrainingRun run_;
  std::vector<double> losses_;
};

class FirstTrain final : public Work {
 public:
  explicit FirstTrain(const Training& training) : run_(training) {}

  Demand demand() const override {
    Demand demand;
    demand.device = run_.training().device();
    return demand;
  }
  double run(std::int64_t) override {
    const Training& training = run_.training();
    Trainer trainer(training.network, training.spec, training.plan);
    trainer.initialize(training.spec.seed, training.init);
    run_.set_data(trainer);
    const auto timed = [&](std::vector<double>& losses) {
      const Clock::time_point start = Clock::now();
      losses = trainer.train(training.steps).losses;
      return us_since(start) / static_cast<double>(training.steps);
    };
    const double first = timed(losses_);
    run_.set_parameters(trainer);
    ratios_.push_back(first / timed(second_losses_));
    return first;
  }
  bool repeats() const override { return false; }
  void check() override {
    check_losses(run_.training(), losses_, run_.expected_losses());
    if (losses_ != second_losses_) throw WrongResult("the second run gives other losses than the first");
  }
  nlohmann::json details() const override {
    std::vector<double> ratios = ratios_;
    const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>(ratios.size() / 2);
    std::nth_element(ratios.begin(), middle, ratios.end());
    return {{"steps", run_.training().steps}, {"first_by_second_run", *middle}};
  }

 private:
  TrainingRun run_;
  std::vector<double> losses_, second_losses_, ratios_;
};

}  // namespace

std::vector<Block> plan_blocks(const CaseOptions& options) {
  const auto make = [options](const Values& values) -> std::optional<Case> {
    std::optional<Training> training = training_of(values, options);
    if (!training) return std::nullopt;
    const std::string& what = values.at("what");
    if (what != "first_train") training->checked_steps = 1;  // more is not asked of the reference
    Case made;
    made.name = "plan/" + what + "/" + training->name;
    made.device = training->device();
    made.refused = training->refused;
    if (what == "make_plan")
      made.prepare = [training = *training, caps = options.caps] { return std::make_unique<MakePlan>(training, caps); };
    else if (what == "set_data")
      made.prepare = [training = *training] { return std::make_unique<SetData>(training); };
    else if (what == "first_loss")
      made.prepare = [training = *training] { return std::make_unique<FirstLoss>(training); };
    else if (what == "first_train")
      made.prepare = [training = *training] { return std::make_unique<FirstTrain>(training); };
    else
      throw UsageError("--axis what=" + what + ": it takes make_plan, set_data, first_loss or first_train");
    return made;
  };
  const auto axes = [](const std::string& layers, const std::string& samples) {
    std::vector<Axis> all = training_axes({layers}, {samples}, {"fp32"});
    all.insert(all.begin(), {"what", {"make_plan", "set_data", "first_loss", "first_train"}});
    return all;
  };
  return {{true, axes("1000-100-1", "128"), make}, {true, axes("64-64-64-1", "65536"), make}};
}

}  // namespace deviceloop::bench
