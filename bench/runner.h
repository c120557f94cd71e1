// Runs cases: checks each, times it, checks it again, and says how far it is from its limit.
#pragma once

#include <iosfwd>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "case.h"
#include "limits.h"
#include "result.h"

namespace deviceloop::bench {

constexpr double kTimeoutS = 10, kGpuTimeoutS = 0.7;

struct RunOptions {
  int min_samples = 10;
  /// Of taking samples, a case: one that takes longer has fewer samples, at least one. None: kTimeoutS or, of a GPU's
  /// case, kGpuTimeoutS.
  std::optional<double> timeout_s;
  /// After so long no further case begins: those left are listed as not run.
  std::optional<double> budget_s;
  std::string command;                                ///< what repeats a case where " --benchmark ..." is added
  std::string json, csv;                              ///< files; empty: none
  bool named = false;                                 ///< the cases were asked for, not the default set
  nlohmann::json machine = nlohmann::json::object();  ///< what the JSON says of the machine
};

/// Never throws: what the case throws is in the result.
Result run_case(const Case& one, Machine& machine, const RunOptions& options);

/// Prints the rates of `devices` and of those of the cases, and a line for each case as it ends; writes the files after
/// each, so that a run that is ended leaves what it had. Returns the exit code: 0; 1 where a case failed; 3 where none
/// failed, but one that was asked for did not run. Throws Error or InvalidArgument where a file cannot be written.
int run_cases(const std::vector<Case>& cases, Machine& machine, const RunOptions& options, std::ostream& out,
              std::vector<Device> devices = {});

/// Runs a case once, between the calls that start and stop a profiler, after a run that loads what it needs. Nothing is
/// timed or checked. Throws UsageError where it cannot run here.
void profile_case(const Case& one, std::ostream& out);

}  // namespace deviceloop::bench
