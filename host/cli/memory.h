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

/// "--layers 1000,100,1, 128 samples and --steps 500", as messages name what was asked for.
std::string run_text(const TrainOptions& run, std::int64_t samples);

/// What the executor of a plan takes of the host's memory.
std::uint64_t host_bytes(const Plan& plan);

/// What the command holds beside the executor: data, parameters and losses. The data are those that were read or,
/// before that and where none are, those to generate.
ByteCount held_bytes(const TrainOptions& run, const Samples& read = {});

/// The plan of decide_here for the same data. Throws InvalidArgument where the executor and held_bytes() together take
/// more memory than is free.
Plan plan_run(const TrainOptions& run, DeviceCaps& caps, const Samples& read = {});

}  // namespace deviceloop::cli
