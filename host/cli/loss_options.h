// The options of train and plan that say what is minimized.
#pragma once

#include <deviceloop/spec.h>

#include "options.h"

namespace deviceloop::cli {

/// --loss and --reduction.
void declare_loss(OptionSet& options);
/// Sets the loss, Huber's delta and the reduction.
void read_loss(const OptionSet& options, TrainingSpec& training);
/// Throws InvalidArgument for a loss that the network cannot have.
void check_loss(const NetworkSpec& network, const TrainingSpec& training);

}  // namespace deviceloop::cli
