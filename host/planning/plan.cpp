// The planner: an ordered list of candidates, each of which takes a training run or refuses it with one sentence.
#include <deviceloop/plan.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>

#include <deviceloop/error.h>

#include "../elementwise.h"
#include "../matrix_ops.h"
#include "../names.h"
#include "../precision.h"
#include "../step/scalars.h"
#include "../step/step.h"
#include "../text.h"
#include "decision.h"

namespace deviceloop {
namespace {

constexpr std::int64_t kMostDeadlineMs = 86400000;  // a day

std::string text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%g", quieted(value));
  return buffer;
}

// Where gram would not train as primal does: for what it is exact instead, and what to do. Empty where it is exact.
std::string why_not_gram(const TrainingSpec& training) {
  if (training.batch_size != 0 && training.batch_size != training.samples)
    return "for steps that take all samples, not " + std::to_string(training.batch_size) + "; set the batch size to 0";
  // The gradients of the first layer's parameters are never computed: see GramShares.
  if (!elementwise::is_linear(training.optimizer.kind))
    return "for updates that are linear in the gradient, not for the optimizer " + shown(training.optimizer.kind) +
           ", which divides by the root of its squares; choose 'gradient_descent' or 'sgd'";
  if (training.optimizer.clip_norm > 0)
    return "for gradients as they are, not for those clipped by their norm, since it never computes those of the first "
           "layer, which are a part of it; set clip_norm to 0";
  if (training.optimizer.clip_value > 0)
    return "for gradients as they are, not for those clipped by their value, since it never computes those of the "
           "first layer; set clip_value to 0";
  if (operand_parts(training.precision) > 0)
    return "for products in fp32 and fp64, not for those in " + std::string(name(training.precision)) +
           ", whose errors would add up over the whole run; set the precision to one of the two";
  return "";
}

/// Whether an executor trains in a precision.
bool takes(ExecutorKind executor, Precision precision) {
  switch (executor) {
    case ExecutorKind::cpu:
    case ExecutorKind::graph:
      return true;
    case ExecutorKind::persistent:
      return operand_parts(precision) == 0 || precision == Precision::tf32x3;
    case ExecutorKind::fused:
      return precision == Precision::bf16 || precision == Precision::tf32 || precision == Precision::tf32x3;
  }
  return false;
}

std::string why_not_precision(ExecutorKind executor, Precision precision) {
  if (takes(executor, precision)) return "";
  std::vector<std::string> taken;
  for (int i = 0; name_or_null(static_cast<Precision>(i)) != nullptr; ++i)
    if (takes(executor, static_cast<Precision>(i))) taken.push_back(name(static_cast<Precision>(i)));
  std::string text = taken.front();
  for (std::size_t i = 1; i < taken.size(); ++i) text += (i + 1 < taken.size() ? ", " : " and ") + taken[i];
  return "it multiplies in " + text + ", not in " + name(precision) + "; set the precision to one of these";
}

template <class Enum>
void check_known(const char* what, Enum value, const char* header = "spec.h") {
  if (name_or_null(value) == nullptr)
    throw InvalidArgument("there is no " + std::string(what) + " " + shown(value) + "; use one that <deviceloop/" +
                          header + "> names");
}

bool is_fraction(double value) { return value >= 0 && value < 1; }
bool is_above_0(double value) { return value > 0; }
bool is_not_negative(double value) { return value >= 0; }

double rounded(double value, Precision precision) {
  return with_type(element_type(precision), [=]<class T>(T*) { return static_cast<double>(static_cast<T>(value)); });
}

/// What updates and losses read must be in its range in the working precision, too: 1 - 1e-10 is 1 in fp32. NaN is in
/// no range; it is not compared, which would raise a floating-point exception.
void check_range(const char* what, double value, Precision precision, bool (*is_in)(double), const char* range) {
  const bool is_in_double = is_finite(value) && is_in(value);
  const double in_precision = is_in_double ? rounded(value, precision) : value;
  if (is_in_double && is_finite(in_precision) && is_in(in_precision)) return;
  throw InvalidArgument(
      std::string("the ") + what + " is " + text(value) +
      (is_in_double ? std::string(", rounded to ") + name(precision) + " " + text(in_precision) : std::string()) +
      "; it must be " + range + (is_in_double ? " there, or use fp64" : ""));
}

void check_schedule(const Schedule& schedule, Precision precision) {
  check_known("schedule", schedule.kind);
  const bool has_period = schedule.kind == ScheduleKind::step || schedule.kind == ScheduleKind::cosine;
  if (has_period && schedule.period < 1)
    throw InvalidArgument("the schedule " + shown(schedule.kind) + " has a period of " +
                          std::to_string(schedule.period) + " steps; it must be at least 1");
  if (schedule.warmup_steps < 0)
    throw InvalidArgument("the warm-up takes " + std::to_string(schedule.warmup_steps) +
                          " steps; they must not be negative, and 0 is none");
  check_range("factor of the schedule", schedule.factor, Precision::fp64, is_above_0, "finite and above 0");
  check_range("last learning rate of the schedule", schedule.end_rate, precision, is_not_negative,
              "finite and at least 0");
}

void check_optimizer(const Optimizer& optimizer, Precision precision) {
  const double decay = optimizer.weight_decay.value_or(0);
  constexpr const char* kFraction = "at least 0 and less than 1";
  constexpr const char* kClip = "finite and above 0, or 0 for no clipping";
  check_range("momentum", optimizer.momentum, precision, is_fraction, kFraction);
  check_range("beta1", optimizer.beta1, precision, is_fraction, kFraction);
  check_range("beta2", optimizer.beta2.value_or(0), precision, is_fraction, kFraction);
  check_range("weight decay", decay, precision, is_not_negative, "finite and at least 0");
  check_range("epsilon", optimizer.epsilon, precision, is_above_0, "finite and above 0");
  for (const auto& [what, value] : {std::pair("norm to clip gradients to", optimizer.clip_norm),
                                    std::pair("value to clip gradients to", optimizer.clip_value)})
    check_range(what, value, precision, is_finite(value) && value > 0 ? is_above_0 : is_not_negative, kClip);
  if (optimizer.clip_norm > 0 && optimizer.clip_value > 0)
    throw InvalidArgument("gradients are clipped by their norm or by their value, not by both; set one of them to 0");
  check_schedule(optimizer.schedule, precision);
  const OptimizerMembers members = members_of(optimizer.kind);
  if (!members.momentum && optimizer.momentum > 0)
    throw InvalidArgument("the optimizer " + shown(optimizer.kind) + " has no momentum; choose 'sgd' or 'rmsprop'");
  if (optimizer.nesterov && !(members.nesterov && optimizer.momentum > 0))
    throw InvalidArgument("Nesterov's momentum belongs to the optimizer 'sgd' with a momentum above 0; choose that");
  if (optimizer.kind == OptimizerKind::gradient_descent &&
      (decay > 0 || optimizer.clip_norm > 0 || optimizer.clip_value > 0))
    throw InvalidArgument("the optimizer 'gradient_descent' has no weight decay and does not clip; choose 'sgd'");
}

void check_watch(const Watch& watch) {
  if (watch.every < 0)
    throw InvalidArgument("the steps between evaluations are " + std::to_string(watch.every) +
                          "; they must not be negative, and 0 is automatic");
  if (watch.patience < 0)
    throw InvalidArgument("the patience is " + std::to_string(watch.patience) +
                          " evaluations; it must not be negative, and 0 is no limit");
  check_range("loss to end a run at", watch.target_loss.value_or(0), Precision::fp64, is_finite, "finite");
}

void validate(const NetworkSpec& network, const TrainingSpec& training, std::optional<ExecutorKind> forced) {
  check_known("activation", network.activation);
  check_known("output activation", network.output_activation);
  check_known("loss", training.loss);
  check_known("reduction", training.reduction);
  check_known("optimizer", training.optimizer.kind);
  check_known("precision", training.precision);
  check_known("formulation", training.formulation);
  check_known("device", training.device.kind);
  check_known("form of the plan 'persistent'", training.form);
  if (forced) check_known("plan", *forced, "plan.h");
  if (network.widths.size() < 2)
    throw InvalidArgument("a network of " + std::to_string(network.widths.size()) +
                          " widths has no layer; give at least inputs and outputs, such as 1000,1");
  if (network.widths.size() > 1000000)
    throw InvalidArgument("a network of " + std::to_string(network.widths.size()) + " widths is too deep; give fewer");
  for (std::size_t i = 0; i < network.widths.size(); ++i)
    if (network.widths[i] < 1 || network.widths[i] > kMaxWidth)
      throw InvalidArgument("width " + std::to_string(i + 1) + " of the network is " +
                            std::to_string(network.widths[i]) + "; widths are from 1 to " + std::to_string(kMaxWidth));
  const double rate = training.optimizer.learning_rate;
  // No comparison of a NaN, which would raise a floating-point exception.
  if (!is_finite(rate) || std::bit_cast<std::uint64_t>(rate) > std::bit_cast<std::uint64_t>(-0.0))
    throw InvalidArgument("the learning rate is " + text(rate) + "; it must be finite and at least 0");
  const Precision elements = elements_of(training.precision);
  const bool is_fp32 = elements == Precision::fp32;
  if (is_fp32 && !std::isfinite(static_cast<float>(rate)))
    throw InvalidArgument("the learning rate is " + text(rate) + ", which fp32 cannot hold; use fp64 or a smaller one");
  // A smaller one would become 0, or keep few of its digits.
  const double least =
      is_fp32 ? static_cast<double>(std::numeric_limits<float>::min()) : std::numeric_limits<double>::min();
  if (rate > 0 && rate < least)
    throw InvalidArgument("the learning rate is " + text(rate) + ", less than the smallest normal number of " +
                          name(elements) + ", " + text(least) + "; use " + (is_fp32 ? "fp64 or " : "") +
                          "a larger one, or 0 for none");
  check_optimizer(training.optimizer, elements);
  check_watch(training.watch);
  check_range(
      "slope of the leaky ReLU", network.leaky_slope, elements, [](double) { return true; }, "finite");
  check_range("delta of the Huber loss", training.huber_delta, elements, is_above_0, "finite and above 0");
  if (training.loss == Loss::cross_entropy && network.widths.back() < 2)
    throw InvalidArgument(
        "the loss 'cross_entropy' is for at least 2 outputs, one for each class, and the network has 1; "
        "use 'binary_cross_entropy' or one more output");
  if (training.class_targets && training.loss != Loss::cross_entropy)
    throw InvalidArgument("targets that are numbers of classes are for the loss 'cross_entropy', not " +
                          shown(training.loss) + "; choose that");
  if (training.samples < 0)
    throw InvalidArgument("the number of samples is " + std::to_string(training.samples) + "; it must not be negative");
  if (training.threads < 0 || training.threads > kMaxThreads)
    throw InvalidArgument("the number of threads is " + std::to_string(training.threads) +
                          "; it is from 0 (automatic) to " + std::to_string(kMaxThreads));
  if (training.device.kind == DeviceKind::cuda && training.device.index < 0)
    throw InvalidArgument("the CUDA device is " + std::to_string(training.device.index) + "; devices count from 0");
  if (training.deadline_ms < 0 || training.deadline_ms > kMostDeadlineMs)
    throw InvalidArgument("the deadline is " + std::to_string(training.deadline_ms) + " ms; it is from 0 (none) to " +
                          std::to_string(kMostDeadlineMs));
  if (training.batch_size < 0)
    throw InvalidArgument("the batch size is " + std::to_string(training.batch_size) + "; it must not be negative");
  if (training.formulation == Formulation::gram && !why_not_gram(training).empty())
    throw InvalidArgument("the formulation 'gram' is exact " + why_not_gram(training) + ", or use 'primal'");
  if (training.reprojection_steps < 0)
    throw InvalidArgument("the steps between reprojections are " + std::to_string(training.reprojection_steps) +
                          "; they must not be negative, and 0 is none");
  if (training.reprojection_steps > 0 && training.formulation != Formulation::gram)
    throw InvalidArgument("a reprojection every " + std::to_string(training.reprojection_steps) +
                          " steps belongs to the formulation 'gram'; ask for that, or set it to 0");
  if (training.samples > 0 && training.batch_size > training.samples)
    throw InvalidArgument("the batch size is " + std::to_string(training.batch_size) + ", and there are " +
                          std::to_string(training.samples) + " samples; use at most as many, or 0 for all");
}

// Floating-point operations of the first layer's products in a step.
double first_layer_flops(const Step& step) {
  double flops = 0;
  for (const StepOperation& operation : step.operations)
    if (operation.layer == 0) flops += 2 * multiply_adds(operation);
  return flops;
}

// What is said of gram where primal is the faster formulation.
std::string slower_note(const NetworkSpec& network, const TrainingSpec& training, const Step& step) {
  if (training.formulation != Formulation::gram) return "";
  TrainingSpec primal = training;
  primal.formulation = Formulation::primal;
  const double times = first_layer_flops(step) / first_layer_flops(make_step(network, primal));
  if (!(times > 1)) return "";
  return "; gram is slower than primal here, its first layer takes " + text(times) + " times the arithmetic for " +
         std::to_string(training.samples) + " samples of " + std::to_string(network.in_features(0)) + " features";
}

void refuse_contradictions(const TrainingSpec& training, std::optional<ExecutorKind> forced) {
  if (!forced) return;
  const bool on_cpu = !row_of(*forced).is_on_gpu;
  if (training.device.kind == DeviceKind::cpu && !on_cpu)
    throw InvalidArgument(std::string("the plan '") + name(*forced) +
                          "' needs a CUDA device, but the device asked for is the CPU; drop one of the two");
  if (training.device.kind == DeviceKind::cuda && on_cpu)
    throw InvalidArgument(
        "the plan 'cpu' runs on the CPU, but the device asked for is a CUDA device; drop one of the two");
}

Answer ask(const ExecutorRow& row, const Request& request) {
  Answer answer;
  Candidate& candidate = answer.candidate;
  candidate.executor = row.kind;
  const DeviceChoice& device = request.training.device;
  if (row.is_on_gpu && device.kind == DeviceKind::cpu)
    candidate.reason = "the CPU was asked for";
  else if (!row.is_on_gpu && device.kind == DeviceKind::cuda)
    candidate.reason = "a CUDA device was asked for";
  else if (row.is_on_gpu && request.caps.gpus.empty())
    candidate.reason = request.caps.no_gpu_reason;
  else if (row.is_on_gpu && device.index >= static_cast<int>(request.caps.gpus.size()))
    candidate.reason = "there is no CUDA device " + std::to_string(device.index) + ", only " +
                       std::to_string(request.caps.gpus.size()) + ", counted from 0";
  else if (const std::string reason = why_not_precision(row.kind, request.training.precision); !reason.empty())
    candidate.reason = reason;
  else
    row.ask(request, answer);
  return answer;
}

// Where several on a GPU can, prediction decides: whatever stands before the fastest of them is refused.
void prefer_the_fastest(std::vector<Answer>& answers) {
  const Answer* fastest = nullptr;
  for (const Answer& answer : answers)
    if (answer.candidate.accepted && row_of(answer.candidate.executor).is_on_gpu &&
        (fastest == nullptr || answer.candidate.predicted_us_per_step < fastest->candidate.predicted_us_per_step))
      fastest = &answer;
  for (Answer& answer : answers) {
    if (fastest == nullptr || &answer == fastest) return;
    if (!answer.candidate.accepted) continue;
    answer.candidate.accepted = false;
    answer.candidate.reason = std::string("the plan '") + name(fastest->candidate.executor) +
                              "' is predicted to be faster; force this one by the plan '" +
                              name(answer.candidate.executor) + "'";
  }
}

[[noreturn]] void refuse(const TrainingSpec& training, const std::vector<Answer>& answers,
                         std::optional<ExecutorKind> forced) {
  const auto reason_of = [&](ExecutorKind kind) {
    return std::find_if(answers.begin(), answers.end(),
                        [&](const Answer& answer) { return answer.candidate.executor == kind; })
        ->candidate.reason;
  };
  if (forced && row_of(*forced).is_on_gpu)
    throw Unsupported(std::string("plan '") + name(*forced) + "': " + reason_of(*forced) +
                      "; use the plan 'cpu' or 'auto'");
  if (training.device.kind == DeviceKind::cuda)
    throw Unsupported("CUDA device " + std::to_string(training.device.index) + ": " + reason_of(ExecutorKind::graph) +
                      "; use the device 'cpu' or 'auto'");
  throw InvalidArgument("plan 'cpu': " + reason_of(ExecutorKind::cpu));
}

}  // namespace

std::string why_not_implemented(const Request& request) {
  const auto refusal = [](const char* what, auto value) {
    return name_or_null(value) != nullptr ? std::string() : std::string("it has no ") + what + " " + shown(value);
  };
  const TrainingSpec& training = request.training;
  for (const std::string& reason :
       {refusal("activation", request.network.activation),
        refusal("output activation", request.network.output_activation), refusal("loss", training.loss),
        refusal("reduction", training.reduction), refusal("optimizer", training.optimizer.kind),
        refusal("precision", training.precision), refusal("formulation", training.formulation)})
    if (!reason.empty()) return reason;
  return "";
}

std::string why_not_in_memory(const GpuCaps& gpu, std::uint64_t bytes, const std::string& remedy) {
  if (gpu.memory_bytes == 0 || bytes <= gpu.memory_bytes) return "";
  return "it takes " + bytes_text(bytes) + " of the GPU's memory, which is " + bytes_text(gpu.memory_bytes) + "; " +
         remedy;
}

std::string smaller_text(const TrainingSpec& training) {
  return training.formulation == Formulation::gram ? "use fewer samples or the formulation 'primal'"
                                                   : "use smaller layers or fewer samples";
}

const GpuCaps& gpu_of(const Request& request) {
  return request.caps.gpus[static_cast<std::size_t>(request.training.device.index)];
}

Decision decide(const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps,
                std::optional<ExecutorKind> forced) {
  validate(network, training, forced);
  refuse_contradictions(training, forced);

  const Step step = make_step(network, training);
  const Request request{network, training, caps, step};
  std::vector<Answer> answers;
  for (const ExecutorRow& row : executor_rows()) answers.push_back(ask(row, request));
  if (!forced) prefer_the_fastest(answers);

  const auto wanted = [&](const Answer& answer) { return !forced || answer.candidate.executor == *forced; };
  const auto chosen = std::find_if(answers.begin(), answers.end(),
                                   [&](const Answer& answer) { return answer.candidate.accepted && wanted(answer); });
  if (chosen == answers.end()) refuse(training, answers, forced);

  Candidate& candidate = chosen->candidate;
  if (!row_of(candidate.executor).is_on_gpu)
    candidate.reason = forced                                             ? "the plan 'cpu' was asked for"
                       : training.device.kind == DeviceKind::cpu          ? "the CPU was asked for"
                       : caps.gpus.empty() && !caps.no_gpu_reason.empty() ? "no GPU to use: " + caps.no_gpu_reason
                                                                          : "no executor of a GPU takes it";
  else if (forced)
    candidate.reason = std::string("the plan '") + name(*forced) + "' was asked for";

  Decision decision;
  decision.needs_cublaslt = chosen->needs_cublaslt;
  decision.layout = std::move(chosen->layout);
  Plan& plan = decision.plan;
  plan.device = training.device.index;
  plan.formulation = training.formulation;
  plan.executor = candidate.executor;
  plan.reason = candidate.reason + slower_note(network, training, step);
  plan.bytes = candidate.bytes;
  plan.predicted_us_per_step = candidate.predicted_us_per_step;
  plan.floor_us_per_step = candidate.floor_us_per_step;
  for (Answer& answer : answers) {
    if (!row_of(answer.candidate.executor).is_on_gpu) plan.threads = answer.threads;
    plan.candidates.push_back(std::move(answer.candidate));
  }
  return decision;
}

Plan make_plan(const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps,
               std::optional<ExecutorKind> forced) {
  return decide(network, training, caps, forced).plan;
}

}  // namespace deviceloop
