// Memory is counted before it is allocated: a machine that overcommits would otherwise kill the process much later.
#pragma once

#include <cstdint>
#include <string>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "files/reader.h"
#include "run_options.h"

namespace deviceloop::cli {

/// A number of bytes that stays at the largest one instead of overflowing.
class ByteCount {
 public:
  /// Adds the product.
  ByteCount& add(std::uint64_t bytes, std::uint64_t rows = 1, std::uint64_t columns = 1);
  /// Adds a contiguous copy of all parameters.
  ByteCount& add_parameters(const NetworkSpec& network, Precision precision);
  std::uint64_t total() const { return total_; }

 private:
  std::uint64_t total_ = 0;
};

/// Throws InvalidArgument, beginning with `what`, where that takes more than the machine can give.
void check_memory(const std::string& what, const ByteCount& bytes, const CpuCaps& caps);

/// What the executor of a plan takes of the host's memory.
std::uint64_t host_bytes(const Plan& plan);

/// The plan of decide_here for the data that were read or, before that and where none are, for those to generate. Also
/// counts what the command holds beside the executor: data, parameters and losses.
Plan plan_run(const TrainOptions& run, DeviceCaps& caps, const Samples& read = {});

}  // namespace deviceloop::cli
