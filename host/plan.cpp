// The planner: an ordered list of candidates, each of which takes a training run or refuses it with one sentence.
#include <deviceloop/plan.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>

#include <deviceloop/error.h>

#include "cpu_layout.h"
#include "graph_layout.h"
#include "matrix_ops.h"
#include "persistent_layout.h"
#include "text.h"

namespace deviceloop {
namespace {

// Steps shorter than this run on one thread: meeting another one twice a step costs microseconds when both run, and far
// more on a machine that is shared.
constexpr double kOneThreadUs = 1000;
// What a step costs beside arithmetic, for each layer.
constexpr double kLayerUs = 1;

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
  switch (training.optimizer.kind) {
    case OptimizerKind::gradient_descent:
      break;
  }
  return "";
}

void validate(const NetworkSpec& network, const TrainingSpec& training) {
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
  if (training.precision == Precision::fp32 && !std::isfinite(static_cast<float>(rate)))
    throw InvalidArgument("the learning rate is " + text(rate) + ", which fp32 cannot hold; use fp64 or a smaller one");
  // A smaller one would become 0, or keep few of its digits.
  const bool is_fp32 = training.precision == Precision::fp32;
  const double least =
      is_fp32 ? static_cast<double>(std::numeric_limits<float>::min()) : std::numeric_limits<double>::min();
  if (rate > 0 && rate < least)
    throw InvalidArgument("the learning rate is " + text(rate) + ", less than the smallest normal number of " +
                          name(training.precision) + ", " + text(least) + "; use " + (is_fp32 ? "fp64 or " : "") +
                          "a larger one, or 0 for none");
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
  if (training.batch_size != 0 && training.batch_size != training.samples)
    throw Unsupported("a batch size of " + std::to_string(training.batch_size) +
                      " is not supported: every step takes all samples; set it to 0");
}

// Of the first layer: no gradient of its input is needed.
double first_layer_flops(const NetworkSpec& network, const TrainingSpec& training) {
  const auto samples = static_cast<double>(training.samples);
  const double inner =
      training.formulation == Formulation::gram ? samples : 2.0 * static_cast<double>(network.in_features(0));
  return 2 * samples * inner * static_cast<double>(network.out_features(0));
}

double step_flops(const NetworkSpec& network, const TrainingSpec& training) {
  double flops = first_layer_flops(network, training);
  for (int layer = 1; layer < network.layers(); ++layer)
    flops += 3 * 2.0 * static_cast<double>(training.samples) * static_cast<double>(network.in_features(layer)) *
             static_cast<double>(network.out_features(layer));
  return flops;
}

// What is said of gram where primal is the faster formulation.
std::string slower_note(const NetworkSpec& network, const TrainingSpec& training) {
  if (training.formulation != Formulation::gram) return "";
  TrainingSpec primal = training;
  primal.formulation = Formulation::primal;
  const double times = first_layer_flops(network, training) / first_layer_flops(network, primal);
  if (!(times > 1)) return "";
  return "; gram is slower than primal here, its first layer takes " + text(times) + " times the arithmetic for " +
         std::to_string(training.samples) + " samples of " + std::to_string(network.in_features(0)) + " features";
}

// What makes a run smaller.
std::string smaller_text(const TrainingSpec& training) {
  return training.formulation == Formulation::gram ? "use fewer samples or the formulation 'primal'"
                                                   : "use smaller layers or fewer samples";
}

// The CPU's answer, and the threads it would take.
Candidate ask_cpu(const NetworkSpec& network, const TrainingSpec& training, const CpuCaps& caps, int& threads) {
  Candidate candidate;
  candidate.executor = ExecutorKind::cpu;
  if (training.device.kind == DeviceKind::cuda) {
    candidate.reason = "a CUDA device was asked for";
    return candidate;
  }
  const double gflops = caps.gflops_fp32 * (training.precision == Precision::fp32 ? 1 : 0.5);
  const double one_thread_us = step_flops(network, training) / (gflops * 1e3);
  const double layers_us = kLayerUs * network.layers();
  threads = training.threads;
  if (threads == 0) threads = one_thread_us < kOneThreadUs ? 1 : std::min(caps.cores, kMaxThreads);
  candidate.predicted_us_per_step =
      training.samples > 0 ? one_thread_us / std::min(threads, caps.cores) + layers_us : 0;
  candidate.bytes = make_cpu_layout(network, training, threads).bytes;
  if (caps.memory_bytes != 0 && candidate.bytes > caps.memory_bytes) {
    candidate.reason = "it takes " + bytes_text(candidate.bytes) + " of memory and " + bytes_text(caps.memory_bytes) +
                       " are free; " + smaller_text(training);
    return candidate;
  }
  candidate.accepted = true;
  return candidate;
}

// The graph executor's answer for one GPU.
void ask_graph(const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps, const GpuCaps& gpu,
               Candidate& candidate) {
  const GraphLayout layout = make_graph_layout(network, training);
  candidate.bytes = layout.bytes;
  if (training.samples > 0) {
    const StepTime time = graph_step_time(layout, training.precision, gpu);
    candidate.predicted_us_per_step = time.predicted_us;
    candidate.floor_us_per_step = time.floor_us;
  }
  if (!gpu.no_code_reason.empty()) {
    candidate.reason = gpu.no_code_reason;
  } else if (layout.has_gemm && !caps.no_cublaslt_reason.empty()) {
    candidate.reason = caps.no_cublaslt_reason;
  } else if (gpu.memory_bytes != 0 && candidate.bytes > gpu.memory_bytes) {
    candidate.reason = "it takes " + bytes_text(candidate.bytes) + " of the GPU's memory, which is " +
                       bytes_text(gpu.memory_bytes) + "; " + smaller_text(training);
  } else {
    candidate.accepted = true;
    candidate.reason = gpu.name + " replays captured steps";
  }
}

// The persistent executor's answer for one GPU.
void ask_persistent(const NetworkSpec& network, const TrainingSpec& training, const GpuCaps& gpu,
                    Candidate& candidate) {
  const PersistentLayout layout = make_persistent_layout(network, training, gpu);
  candidate.bytes = layout.bytes;
  candidate.predicted_us_per_step = layout.predicted_us_per_step;
  candidate.floor_us_per_step = layout.floor_us_per_step;
  if (!gpu.no_code_reason.empty()) {
    candidate.reason = gpu.no_code_reason;
  } else if (!layout.refusal.empty()) {
    candidate.reason = layout.refusal;
  } else if (gpu.memory_bytes != 0 && candidate.bytes > gpu.memory_bytes) {
    candidate.reason = "it takes " + bytes_text(candidate.bytes) + " of the GPU's memory, which is " +
                       bytes_text(gpu.memory_bytes) + "; use smaller layers or fewer samples";
  } else {
    candidate.accepted = true;
    candidate.reason = "one launch for many steps: " + layout.description();
  }
}

Candidate ask_gpu(ExecutorKind kind, const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps) {
  Candidate candidate;
  candidate.executor = kind;
  if (training.device.kind == DeviceKind::cpu)
    candidate.reason = "the CPU was asked for";
  else if (caps.gpus.empty())
    candidate.reason = caps.no_gpu_reason;
  else if (training.device.index >= static_cast<int>(caps.gpus.size()))
    candidate.reason = "there is no CUDA device " + std::to_string(training.device.index) + ", only " +
                       std::to_string(caps.gpus.size()) + ", counted from 0";
  else if (kind == ExecutorKind::graph)
    ask_graph(network, training, caps, caps.gpus[static_cast<std::size_t>(training.device.index)], candidate);
  else
    ask_persistent(network, training, caps.gpus[static_cast<std::size_t>(training.device.index)], candidate);
  return candidate;
}

void refuse_contradictions(const TrainingSpec& training, std::optional<ExecutorKind> forced) {
  if (!forced) return;
  const bool on_cpu = *forced == ExecutorKind::cpu;
  if (training.device.kind == DeviceKind::cpu && !on_cpu)
    throw InvalidArgument(std::string("the plan '") + name(*forced) +
                          "' needs a CUDA device, but the device asked for is the CPU; drop one of the two");
  if (training.device.kind == DeviceKind::cuda && on_cpu)
    throw InvalidArgument(
        "the plan 'cpu' runs on the CPU, but the device asked for is a CUDA device; drop one of the two");
}

}  // namespace

const char* name(ExecutorKind kind) {
  switch (kind) {
    case ExecutorKind::cpu:
      return "cpu";
    case ExecutorKind::graph:
      return "graph";
    case ExecutorKind::persistent:
      return "persistent";
  }
  return "unknown";
}

const char* name(Precision precision) { return precision == Precision::fp32 ? "fp32" : "fp64"; }

const char* name(Formulation formulation) { return formulation == Formulation::primal ? "primal" : "gram"; }
const char* name(PersistentForm form) {
  switch (form) {
    case PersistentForm::automatic:
      return "auto";
    case PersistentForm::block:
      return "block";
    case PersistentForm::cluster:
      return "cluster";
    case PersistentForm::grid:
      return "grid";
    case PersistentForm::two_layer:
      return "two-layer";
  }
  return "unknown";
}

Plan make_plan(const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps,
               std::optional<ExecutorKind> forced) {
  validate(network, training);
  refuse_contradictions(training, forced);

  Plan plan;
  plan.device = training.device.index;
  plan.formulation = training.formulation;
  plan.candidates = {ask_gpu(ExecutorKind::persistent, network, training, caps),
                     ask_gpu(ExecutorKind::graph, network, training, caps),
                     ask_cpu(network, training, caps.cpu, plan.threads)};

  // Where both can, prediction decides.
  Candidate& persistent = plan.candidates[0];
  const Candidate& graph = plan.candidates[1];
  if (!forced && persistent.accepted && graph.accepted &&
      persistent.predicted_us_per_step > graph.predicted_us_per_step) {
    persistent.accepted = false;
    persistent.reason = "the plan 'graph' is predicted to be faster; ask for 'persistent' to have it all the same";
  }

  const auto wanted = [&](const Candidate& candidate) { return !forced || candidate.executor == *forced; };
  const auto chosen = std::find_if(plan.candidates.begin(), plan.candidates.end(),
                                   [&](const Candidate& candidate) { return candidate.accepted && wanted(candidate); });
  if (chosen == plan.candidates.end()) {
    if (forced && *forced != ExecutorKind::cpu) {
      const auto refused = std::find_if(plan.candidates.begin(), plan.candidates.end(), wanted);
      throw Unsupported(std::string("plan '") + name(*forced) + "': " + refused->reason +
                        "; use the plan 'cpu' or 'auto'");
    }
    if (training.device.kind == DeviceKind::cuda)
      throw Unsupported("CUDA device " + std::to_string(training.device.index) + ": " + plan.candidates[1].reason +
                        "; use the device 'cpu' or 'auto'");
    throw InvalidArgument("plan 'cpu': " + plan.candidates.back().reason);
  }
  if (chosen->executor == ExecutorKind::cpu)
    chosen->reason = forced                                             ? "the plan 'cpu' was asked for"
                     : training.device.kind == DeviceKind::cpu          ? "the CPU was asked for"
                     : caps.gpus.empty() && !caps.no_gpu_reason.empty() ? "no GPU to use: " + caps.no_gpu_reason
                                                                        : "no executor of a GPU takes it";
  else if (forced)
    chosen->reason = std::string("the plan '") + name(*forced) + "' was asked for";
  plan.executor = chosen->executor;
  plan.reason = chosen->reason + slower_note(network, training);
  plan.bytes = chosen->bytes;
  plan.predicted_us_per_step = chosen->predicted_us_per_step;
  plan.floor_us_per_step = chosen->floor_us_per_step;
  return plan;
}

}  // namespace deviceloop
