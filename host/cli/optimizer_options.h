// The options of train and plan that say how gradients change the parameters.
#pragma once

#include <deviceloop/spec.h>

#include "options.h"

namespace deviceloop::cli {

/// --optimizer, --lr and what else the optimizers have, --schedule, --warmup, --clip-norm and --clip-value.
void declare_optimizer(OptionSet& options);
/// The period of a cosine schedule is left at 1, for the caller to set: it is the number of steps. Throws
/// InvalidArgument for an option that the optimizer does not have.
Optimizer read_optimizer(const OptionSet& options, Precision precision);

}  // namespace deviceloop::cli
