// The thread sanitizer, and the host fixture of the CUDA kernels, run code some twenty times slower and more: what only
// repeats a check in other shapes is cut there.
#pragma once

namespace deviceloop {

/// Whether CUDA's kernels run on the host, a barrier of 256 threads in a third of a millisecond.
#if defined(DEVICELOOP_SIMT)
constexpr bool kHostFixture = true;
#else
constexpr bool kHostFixture = false;
#endif

#if defined(__SANITIZE_THREAD__) || defined(DEVICELOOP_SIMT)
constexpr bool kSlowMachine = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool kSlowMachine = true;
#else
constexpr bool kSlowMachine = false;
#endif
#else
constexpr bool kSlowMachine = false;
#endif

}  // namespace deviceloop
