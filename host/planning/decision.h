// What the planner decides: the plan, and the layout that the plan's executor is made of. Each executor is a row of one
// table, which the planner asks in order of preference.
#pragma once

#include <any>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "../executor.h"
#include "../step/step.h"

namespace deviceloop {

/// What a candidate is asked. The specifications have been validated.
struct Request {
  const NetworkSpec& network;
  const TrainingSpec& training;
  const DeviceCaps& caps;
  const Step& step;  ///< of these specifications
};

/// A candidate's answer.
struct Answer {
  Candidate candidate{};
  int threads = 1;              ///< CPU threads
  bool needs_cublaslt = false;  ///< on a GPU
  std::any layout{};            ///< of the executor's own type
};

/// A plan, with what its executor is made of: nothing is planned twice.
struct Decision {
  Plan plan{};
  bool needs_cublaslt = false;
  std::any layout{};
};

/// One executor, as the planner knows it.
struct ExecutorRow {
  ExecutorKind kind;
  bool is_on_gpu;
  /// A function of plain data. Fills all of the answer but candidate.executor; of one on a GPU it is asked only where
  /// the request's device is in the caps.
  void (*ask)(const Request& request, Answer& answer);
  std::unique_ptr<Executor> (*make)(const NetworkSpec& network, const TrainingSpec& training, const Decision& decision,
                                    const Surroundings& surroundings);
};

/// In order of preference; the CPU is last.
std::span<const ExecutorRow> executor_rows();
const ExecutorRow& row_of(ExecutorKind kind);

/// The GPU that a request asks for; only where it is in the caps.
const GpuCaps& gpu_of(const Request& request);

/// As make_plan.
Decision decide(const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps,
                std::optional<ExecutorKind> forced = std::nullopt);

/// The executor that was decided for.
std::unique_ptr<Executor> make_executor(const NetworkSpec& network, const TrainingSpec& training,
                                        const Decision& decision, const Surroundings& surroundings);

/// "it takes 3.0 GiB of the GPU's memory, which is 2.0 GiB; REMEDY", or nothing where it fits or nobody knows.
std::string why_not_in_memory(const GpuCaps& gpu, std::uint64_t bytes, const std::string& remedy);

/// What makes a run smaller.
std::string smaller_text(const TrainingSpec& training);

/// Why no executor can serve the specifications, in one sentence, where they have a value that is none of its enum;
/// else empty. Each executor asks it first, and refuses by itself what is known and not implemented by it.
std::string why_not_implemented(const Request& request);

}  // namespace deviceloop
