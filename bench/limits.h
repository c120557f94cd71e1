// What bounds a case: the rates that this machine reaches, measured in the same run.
//
// Arithmetic: the larger of the rates of fused multiply-adds on registers and of a large matrix product. Memory: the
// rate of a copy of arrays as large as the case's, or of a plain pass that reads and writes as many at once where that
// is faster; for data that stay in a cache it is that cache's. A limit is the longer of the two times, by the fastest
// of several measurements, of which the last follows the case itself.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "case.h"

namespace deviceloop::bench {

struct Limit {
  double us = 0;   ///< the least that one unit can take; 0: no limit is known
  std::string by;  ///< "FMA", "copy in L2"
};

/// A measured rate.
struct Rate {
  Device device = Device::cpu;
  std::string what;       ///< "FMA", "GEMM 1024", "copy beyond the caches"
  std::string precision;  ///< empty for copies
  int threads = 0;        ///< 0 on a GPU
  double value = 0;
  std::string unit = "GFLOP/s";
};

class Machine {
 public:
  virtual ~Machine() = default;
  /// The rates that head the table.
  virtual std::vector<Rate> rates(Device device) = 0;
  /// Measures what it needs. Asked again for the same demand it measures the memory anew and keeps what is faster.
  virtual Limit limit(const Demand& demand) = 0;
};

/// The machine that this runs on.
class ThisMachine final : public Machine {
 public:
  /// With `threads`, beside 1, as the number that heads the table.
  explicit ThisMachine(int threads) : threads_(threads) {}
  std::vector<Rate> rates(Device device) override;
  Limit limit(const Demand& demand) override;

 private:
  struct Fastest {
    double value = 0;
    int measurements = 0;
  };
  /// As measured by `measure`, which is called at most `most` times for a key.
  template <class Measure>
  double fastest(const std::string& key, int most, const Measure& measure);
  double fma(Device device, Precision precision, int threads);
  double gemm(Device device, Precision precision, int threads);
  double pass(Device device, int reads, int writes, double footprint, int threads);

  int threads_;
  std::map<std::string, Fastest> measured_;
};

}  // namespace deviceloop::bench
