// The executor that runs everywhere: GEMMs by a CBLAS or own code, fused element-wise passes, own threads.
#pragma once

#include <memory>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "../executor.h"
#include "../planning/decision.h"

namespace deviceloop {

/// Of a decision for the CPU.
std::unique_ptr<Executor> make_cpu_executor(const NetworkSpec& network, const TrainingSpec& training,
                                            const Decision& decision, const Surroundings& surroundings);

}  // namespace deviceloop
