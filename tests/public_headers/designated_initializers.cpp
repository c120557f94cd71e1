// Compiled with -Wextra, under which an aggregate warns of a member that is left out and has no default.
#include <deviceloop/deviceloop.h>

namespace deviceloop {

TrainingSpec training_of(std::int64_t samples) { return {.samples = samples}; }
NetworkSpec network_with_biases() { return {.bias = true}; }
Optimizer optimizer_of(double rate) { return {.learning_rate = rate}; }
DeviceChoice cpu() { return {.kind = DeviceKind::cpu}; }
CpuCaps caps_of(int cores) { return {.cores = cores}; }
GpuCaps gpu_of(int index) { return {.index = index}; }
DeviceCaps machine_of(const CpuCaps& cpu) { return {.cpu = cpu}; }
Candidate accepted() { return {.accepted = true}; }
Plan plan_of(int threads) { return {.threads = threads}; }
PreparationStage stage_of(double ms) { return {.ms = ms}; }
TrainReport report_of(double ms) { return {.total_ms = ms}; }
TrainProgress progress_of(std::int64_t steps) { return {.steps_done = steps}; }

}  // namespace deviceloop
