// Names that a profiler shows.
#pragma once

#include <nvtx3/nvToolsExt.h>

namespace deviceloop::cuda {

/// A named range on the host's timeline while the object is in scope; it costs nothing without a profiler.
class Range {
 public:
  explicit Range(const char* name) { nvtxRangePushA(name); }
  ~Range() { nvtxRangePop(); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace deviceloop::cuda
