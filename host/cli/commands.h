// The subcommands: each declares its options and runs with what was given. They throw InvalidArgument for bad usage and
// bad input, other exceptions for failures, and return the exit code if nothing was thrown; main.cpp lists the exit
// codes.
#pragma once

#include "options.h"

namespace deviceloop::cli {

void declare_train(OptionSet& options);
int run_train(const OptionSet& options);

void declare_predict(OptionSet& options);
int run_predict(const OptionSet& options);

void declare_compare(OptionSet& options);
int run_compare(const OptionSet& options);

void declare_plan(OptionSet& options);
int run_plan(const OptionSet& options);

void declare_data(OptionSet& options);
int run_data(const OptionSet& options);

void declare_info(OptionSet& options);
int run_info(const OptionSet& options);

}  // namespace deviceloop::cli
