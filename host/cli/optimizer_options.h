// The options of train and plan that say how gradients change the parameters.
#pragma once

#include <cstdint>

#include <deviceloop/spec.h>

#include "options.h"

namespace deviceloop::cli {

/// --optimizer, --lr and what else the optimizers have, --schedule, --warmup, --clip-norm and --clip-value.
void declare_optimizer(OptionSet& options);
/// Of a run of that many steps, which are the period of a cosine schedule. Throws InvalidArgument for an option that
/// the optimizer does not have.
Optimizer read_optimizer(const OptionSet& options, Precision precision, std::int64_t steps);

}  // namespace deviceloop::cli
