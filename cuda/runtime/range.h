// Names for what a profiler shows.
#pragma once

#include <nvtx3/nvToolsExt.h>

namespace deviceloop::cuda {

/// A named range of the host's time line, while it is in scope; costs nothing without a profiler.
class Range {
 public:
  explicit Range(const char* name) { nvtxRangePushA(name); }
  ~Range() { nvtxRangePop(); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace deviceloop::cuda
