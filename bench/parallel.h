// The checks' loops on all cores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace deviceloop::bench {

/// use(first, end) for parts of [0, count), on as many threads as there are cores. It must not throw.
template <class Use>
void in_parallel(std::int64_t count, const Use& use) {
  const auto cores = static_cast<std::int64_t>(std::max(1u, std::thread::hardware_concurrency()));
  const std::int64_t part = std::max<std::int64_t>((count + cores - 1) / cores, 1);
  std::vector<std::thread> threads;
  for (std::int64_t first = part; first < count; first += part)
    threads.emplace_back([&use, first, end = std::min(first + part, count)] { use(first, end); });
  use(0, std::min(part, count));
  for (std::thread& thread : threads) thread.join();
}

}  // namespace deviceloop::bench
