// The executors, in order of preference.
#include <deviceloop/error.h>

#include "../cpu/cpu_executor.h"
#include "../cuda_entry.h"
#include "../names.h"
#include "cpu_layout.h"
#include "decision.h"
#include "fused_executor_layout.h"
#include "graph_layout.h"
#include "persistent_layout.h"

namespace deviceloop {
namespace {

constexpr ExecutorRow kRows[] = {
    {ExecutorKind::persistent, true, ask_persistent, make_persistent_executor},
    {ExecutorKind::fused, true, ask_fused, make_fused_executor},
    {ExecutorKind::graph, true, ask_graph, make_graph_executor},
    {ExecutorKind::cpu, false, ask_cpu, make_cpu_executor},
};

}  // namespace

std::span<const ExecutorRow> executor_rows() { return kRows; }

const ExecutorRow& row_of(ExecutorKind kind) {
  for (const ExecutorRow& row : kRows)
    if (row.kind == kind) return row;
  throw InvalidArgument("there is no plan " + shown(kind));
}

std::unique_ptr<Executor> make_executor(const NetworkSpec& network, const TrainingSpec& training,
                                        const Decision& decision, const Surroundings& surroundings) {
  return row_of(decision.plan.executor).make(network, training, decision, surroundings);
}

}  // namespace deviceloop
