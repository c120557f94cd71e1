// Runs one grid on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>

#include "simt/control.h"

namespace simt {

struct GridLaunch {
  std::string kernel;
  unsigned blocks = 1;
  unsigned threads = 32;  ///< a block
  std::size_t shared_bytes = 0;
  unsigned cluster_blocks = 1;
  std::size_t resident_clusters = 1;  ///< that run at once
  int fresh_byte = 0xff;              ///< of shared memory at first
  std::function<void()> thread;
};

/// Returns how often threads waited. Throws KernelError, and what a thread throws.
std::int64_t run_grid(const GridLaunch& launch, Order order, std::mt19937_64& random);

}  // namespace simt
