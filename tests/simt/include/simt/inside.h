// Where a thread is: in the fixture or in what it tests.
#pragma once

#include <cstdint>

namespace simt {

/// Calls of wait_for_grids_before in the grid that this host thread runs.
inline constinit thread_local std::int64_t grid_waits = 0;

/// Publications until the one that lose_publication chose; 0 where none was chosen or it has come.
inline constinit thread_local int publications_until_lost = 0;
inline bool loses_publication() { return publications_until_lost > 0 && --publications_until_lost == 0; }

/// While one lives the calling thread is in the fixture: see is_inside.
class Inside {
 public:
  Inside();
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

}  // namespace simt
