// deviceloop_bench serve: this library as a peer of bench/compare, which README.md describes ("Add a peer"). A resident
// process, as the rivals are: its trainers have trained once before it says that it is ready.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

#include <deviceloop/spec.h>

namespace deviceloop::bench {

struct ServeOptions {
  std::string data;     ///< .npz with x and y
  std::string weights;  ///< .safetensors: the initial weights, whose shapes say what the network is
  std::int64_t steps = 0;
  double rate = 0;
  std::string loss = "squared", optimizer = "gd";  ///< names of objective.h
  std::int64_t batch_size = 0;                     ///< rows of a step, in the order that seed 0 draws; 0: all
  Precision precision = Precision::fp32;
  DeviceKind device = DeviceKind::cpu;
  int threads = 1;
  double slow_plan = 10;  ///< a plan that is predicted to take so many times the fastest one's time has no row
};

/// Writes to `out` a line that names the rows, and one for each line `run ROW` of `in` with the seconds of a training
/// and its losses, until `in` ends. The rows are `deviceloop`, the planner's pick; on a GPU `deviceloop/graph` and
/// `deviceloop/persistent`; and `deviceloop/gram` where that formulation takes less arithmetic. What this machine
/// cannot train is named as missing. Throws InvalidArgument for files that do not match, and UsageError for any other
/// line.
void serve(const ServeOptions& options, std::istream& in, std::ostream& out);

}  // namespace deviceloop::bench
