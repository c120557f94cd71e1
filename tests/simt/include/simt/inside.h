// Where a thread is: in the fixture or in what it tests.
#pragma once

#include <cstdint>

namespace simt {

/// Calls of wait_for_grids_before in the grid that this host thread runs.
inline constinit thread_local std::int64_t grid_waits = 0;

/// While one lives the calling thread is in the fixture: see is_inside.
class Inside {
 public:
  Inside();
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

}  // namespace simt
