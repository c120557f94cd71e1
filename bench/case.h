// What deviceloop_bench is made of. A case has a name, the values of its axes and work that can be timed and checked; a
// block makes the cases of all combinations of its axes' values.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <deviceloop/spec.h>

namespace deviceloop::bench {

/// What a case computed is not what the reference says: the case has failed, and has no time.
struct WrongResult : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The machine cannot run the case, for lack of memory say, which is no failure.
struct NotHere : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The command line asks for what there is not.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Device { cpu, cuda };
const char* name(Device device);

/// What one unit of the work (a call, or a step of training) computes and moves at the least: its rates and its limit
/// follow from that.
struct Demand {
  Device device = Device::cpu;
  Precision precision = Precision::fp32;
  int threads = 1;
  double elements = 0;   ///< what elements/s counts; 0: not shown
  double flops = 0;      ///< of matrix products; 0: none to speak of
  double bytes = 0;      ///< each input read once, each output written once; 0: none to speak of
  int reads = 1;         ///< arrays that are read together
  int writes = 1;        ///< arrays that are written with them
  double footprint = 0;  ///< bytes touched again and again: they tell which memory it is that bounds the work
};

/// What the host asked of a GPU in one step.
struct HostCalls {
  double launches = 0;  ///< of kernels or graphs
  double synchronizations = 0;
};

/// Made by Case::prepare, with its data; timed and checked by the runner.
class Work {
 public:
  virtual ~Work() = default;
  virtual Demand demand() const = 0;
  /// Spoils the outputs, so that what is not written is seen.
  virtual void poison() {}
  /// Does it `calls` times; returns the microseconds of one unit.
  virtual double run(std::int64_t calls) = 0;
  /// Whether run() may be asked for more than one call.
  virtual bool repeats() const { return true; }
  /// Holds what the last run has left against the reference; throws WrongResult.
  virtual void check() = 0;
  virtual std::optional<HostCalls> host_calls() const { return std::nullopt; }
  /// What else the JSON says of it.
  virtual nlohmann::json details() const;
};

/// Values by the names of their axes.
using Values = std::map<std::string, std::string>;

struct Case {
  std::string name;
  Device device = Device::cpu;
  Values values;
  bool by_default = true;  ///< run where no --benchmark asks for others
  std::string refused;     ///< why it cannot run here; empty where it can
  std::function<std::unique_ptr<Work>()> prepare = {};
};

struct Axis {
  std::string name;
  std::vector<std::string> values;
};

struct Block {
  bool by_default = true;
  std::vector<Axis> axes;  ///< the last varies fastest
  /// The case of these values; none for a combination that has no meaning. Throws UsageError for a value that is not
  /// one of its axis.
  std::function<std::optional<Case>(const Values&)> make;
};

/// Values that replace those of a block's axes.
using AxisOptions = std::vector<Axis>;

/// "n=1024,2048" as an axis. Throws UsageError.
Axis parse_axis(const std::string& text);

/// The cases of all blocks, each name once, those run by default first. Of blocks that do not have all axes of `chosen`
/// there are none. Throws UsageError for an axis that no block has.
std::vector<Case> make_cases(const std::vector<Block>& blocks, const AxisOptions& chosen);

/// Those whose name matches `pattern` somewhere; with an empty one those run by default. Throws UsageError for a
/// pattern that is no regular expression.
std::vector<Case> select_cases(const std::vector<Case>& cases, const std::string& pattern);

/// The values of an axis, read. They throw UsageError, which names the axis and what it takes.
/// @{
std::int64_t count_of(const Values& values, const std::string& axis);  ///< "1024" or "2^10", at least 1
Precision precision_of(const Values& values);                          ///< "precision"
std::vector<std::int64_t> widths_of(const Values& values);             ///< "layers", "1000-100-1"
bool flag_of(const Values& values, const std::string& axis);           ///< "yes" or "no"
/// @}

/// 2^first, 2^(first + step), ... 2^last.
std::vector<std::string> powers_of_two(int first, int last, int step = 1);

}  // namespace deviceloop::bench
