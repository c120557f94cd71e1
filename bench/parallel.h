// The checks' loops on all cores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace deviceloop::bench {

inline std::int64_t core_count() {
  static const std::int64_t cores = std::max(1u, std::thread::hardware_concurrency());  // it reads a file each time
  return cores;
}

namespace detail {
inline thread_local bool is_part_of_a_loop = false;
}

/// work(first, end) for parts of [0, count), on as many threads as there are cores; a part has `least` or more, which
/// ought to be worth a thread. Called by one of several such parts, it stays on that part's thread. `work` must
/// not throw.
template <class Use>
void in_parallel(std::int64_t count, const Use& work, std::int64_t least = 1) {
  const std::int64_t cores = detail::is_part_of_a_loop ? 1 : core_count();
  const std::int64_t part = std::max<std::int64_t>((count + cores - 1) / cores, std::max<std::int64_t>(least, 1));
  const bool is_split = part < count;
  const auto use = [&work, is_split](std::int64_t first, std::int64_t end) {
    bool& is_part = detail::is_part_of_a_loop;  // of the thread that does this part
    const bool before = is_part;
    is_part = before || is_split;
    work(first, end);
    is_part = before;
  };
  std::vector<std::thread> threads;
  for (std::int64_t first = part; first < count; first += part)
    threads.emplace_back([&use, first, end = std::min(first + part, count)] { use(first, end); });
  use(0, std::min(part, count));
  for (std::thread& thread : threads) thread.join();
}

}  // namespace deviceloop::bench
