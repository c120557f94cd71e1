// What this build and this machine are: the lines of deviceloop info, which a run's report has too.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <deviceloop/plan.h>

namespace deviceloop::cli {

/// What it is about, and what is so: {"threads", "up to 8 cores"}.
using Fact = std::pair<std::string, std::string>;

/// Whether there is a cuBLASLt is left to those who have asked.
std::vector<Fact> system_facts(const DeviceCaps& caps);

}  // namespace deviceloop::cli
