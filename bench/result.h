// The result of a case, and how it is written: a line of the table, an object of the JSON, a line of the CSV.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "case.h"
#include "limits.h"
#include "statistics.h"

namespace deviceloop::bench {

struct Result {
  std::string name;
  Device device = Device::cpu;
  Values values;
  std::string error;    ///< why it failed; it has no time then
  std::string not_run;  ///< why it could not run here, which is no failure
  std::string repeat;   ///< the line that runs it alone

  double seconds = 0;  ///< of all of it: data, reference, checks and samples
  int samples = 0;
  std::optional<Summary> us;  ///< microseconds of one unit
  double elements_per_s = 0;  ///< these three are 0 where the case has none
  double gflops = 0;
  double gb_per_s = 0;
  Limit limit;
  std::optional<double> percent_of_limit;
  std::optional<HostCalls> host_calls;
  nlohmann::json details = nlohmann::json::object();

  bool ok() const { return error.empty(); }
};

/// Fifteen lines or fewer: what was measured, on what.
std::string rates_text(const std::vector<Rate>& rates);

/// @{
std::string table_heading();
/// With the line that repeats the case below it.
std::string table_line(const Result& result);
/// @}

/// "80 cases in 46.2 s; 3 not run".
std::string total_line(const std::vector<Result>& results, double seconds);

/// {"ok", "machine", "limits", "cases", "not_run", "seconds"}; "ok" is false where a case failed.
nlohmann::json document(const std::vector<Result>& results, const std::vector<Rate>& rates,
                        const nlohmann::json& machine, double seconds);

/// With a heading; what has no value is empty.
std::string to_csv(const std::vector<Result>& results);

}  // namespace deviceloop::bench
