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

/// Throws KernelError, for the thread that runs.
[[noreturn]] void refuse(const std::string& why);

/// Of asynchronous work that the thread that runs begins: whether it happens now, by the order of the grid, and not as
/// late as possible.
bool happens_at_once();

}  // namespace simt
