#include "serve.h"

#include <deviceloop/error.h>
#include <deviceloop/plan.h>
#include <deviceloop/trainer.h>
#include <deviceloop/version.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <istream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <utility>
#include <vector>

#include "../host/files/reader.h"
#include "../host/files/weights.h"
#include "../host/machine.h"
#include "../host/planning/decision.h"
#include "../host/precision.h"
#include "case.h"
#include "objective.h"

namespace deviceloop::bench {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

/// What a row trains.
struct Request {
  std::string name;
  Formulation formulation = Formulation::primal;
  std::optional<ExecutorKind> plan = {};  ///< none: the planner's choice
};

class Row {
 public:
  Row(const Request& request, const ServeOptions& options, const NetworkSpec& network, const TrainingSpec& training,
      const Samples& samples)
      : name_(request.name), options_(options), samples_(samples), trainer_(network, training, request.plan) {
    trainer_.set_data(samples.x.view(), samples.y.view());
    run();
  }

  const std::string& name() const { return name_; }

  /// Trains from the initial weights.
  json run() {
    // K, which depends on the data alone, is kept from run to run unless they are given anew.
    if (trainer_.training().formulation == Formulation::gram) trainer_.set_data(samples_.x.view(), samples_.y.view());
    trainer_.load_weights(options_.weights);
    const Clock::time_point start = Clock::now();
    TrainReport report = trainer_.train(options_.steps);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return {{"seconds", seconds}, {"losses", std::move(report.losses)}};
  }

  json description() const {
    const Plan& plan = trainer_.plan();
    std::string note = std::string("plan ") + deviceloop::name(plan.executor);
    if (plan.formulation == Formulation::gram) note = "gram: less work than all other rows do, " + note;
    return {{"name", name_},
            {"includes",
             {{"precision", precision_text()},
              {"bias", trainer_.network().bias},
              {"loss", options_.loss},
              {"optimizer", options_.optimizer},
              {"batch", options_.batch_size == 0 ? json() : json(options_.batch_size)},
              {"loss_every_step", true},
              {"update", true},
              {"data_resident", true},
              {"device", row_of(plan.executor).is_on_gpu ? "cuda" : "cpu"},
              {"threads", plan.threads},
              {"formulation", deviceloop::name(plan.formulation)},
              {"note", note}}}};
  }

 private:
  std::string precision_text() const {
    const std::string text = deviceloop::name(options_.precision);
    if (options_.precision == Precision::fp32) return "true fp32";
    return operand_parts(options_.precision) == 0 ? text : text + " products, fp32 weights";
  }

  std::string name_;
  const ServeOptions& options_;
  const Samples& samples_;
  Trainer trainer_;
};

/// The plans of a GPU that have a row of their own; why the others have none goes to `missing`.
std::vector<Request> plan_requests(const NetworkSpec& network, const TrainingSpec& training, double slow_plan,
                                   json& missing) {
  DeviceCaps caps = query_caps_for(training.device);
  std::vector<std::pair<Request, double>> found;
  for (const ExecutorKind kind : {ExecutorKind::graph, ExecutorKind::persistent}) {
    Request request{std::string("deviceloop/") + deviceloop::name(kind), Formulation::primal, kind};
    try {
      found.emplace_back(request, decide_here(network, training, caps, kind).plan.predicted_us_per_step);
    } catch (const Error& error) {
      missing[request.name] = error.what();
    }
  }
  std::vector<Request> requests;
  for (const auto& [request, us] : found) {
    double fastest = us;
    for (const auto& other : found) fastest = std::min(fastest, other.second);
    if (us <= slow_plan * fastest)
      requests.push_back(request);
    else
      missing[request.name] = "predicted " + std::to_string(std::llround(us)) + " us a step, " +
                              std::to_string(std::llround(fastest)) + " by the fastest plan";
  }
  return requests;
}

void say(std::ostream& out, const json& message) {
  out << message.dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
}

}  // namespace

void serve(const ServeOptions& options, std::istream& in, std::ostream& out) {
  const Samples samples = read_samples(options.data);
  const NetworkSpec network = read_network(options.weights);
  TrainingSpec training;
  training.samples = samples.x.rows;
  const NamedLoss& loss = *find_in(kLosses, options.loss);
  training.loss = loss.loss;
  training.reduction = loss.reduction;
  training.class_targets = loss.loss == Loss::cross_entropy && samples.y.columns == 1;
  training.optimizer.kind = find_in(kOptimizers, options.optimizer)->kind;
  training.optimizer.learning_rate = options.rate;
  training.batch_size = options.batch_size;
  training.precision = options.precision;
  training.device.kind = options.device;
  if (options.device == DeviceKind::cpu) training.threads = options.threads;

  json missing = json::object();
  std::vector<Request> requests = {{"deviceloop"}};
  if (options.device == DeviceKind::cuda)
    for (Request& request : plan_requests(network, training, options.slow_plan, missing))
      requests.push_back(std::move(request));
  const bool is_full_descent = training.optimizer.kind == OptimizerKind::gradient_descent && training.batch_size == 0;
  if (is_full_descent && 2 * network.widths.front() > samples.x.rows)
    requests.push_back({"deviceloop/gram", Formulation::gram});

  std::vector<std::unique_ptr<Row>> rows;
  json described = json::array();
  for (const Request& request : requests) {
    training.formulation = request.formulation;
    try {
      rows.push_back(std::make_unique<Row>(request, options, network, training, samples));
      described.push_back(rows.back()->description());
    } catch (const InvalidArgument& error) {
      if (rows.empty()) throw;  // the files are wrong, or do not match: no row could train
      missing[request.name] = error.what();
    } catch (const std::exception& error) {
      missing[request.name] = error.what();
    }
  }
  say(out, {{"ready", "deviceloop"}, {"version", DEVICELOOP_VERSION}, {"rows", described}, {"missing", missing}});

  for (std::string line; std::getline(in, line);) {
    const auto row =
        std::find_if(rows.begin(), rows.end(), [&](const auto& each) { return line == "run " + each->name(); });
    if (row == rows.end()) {
      std::string names;
      for (const auto& each : rows) names += (names.empty() ? "" : ", ") + each->name();
      throw UsageError("'" + line + "': a line must be 'run ROW', ROW one of " + (names.empty() ? "none" : names));
    }
    say(out, (*row)->run());
  }
}

}  // namespace deviceloop::bench
