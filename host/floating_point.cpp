#include "floating_point.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace deviceloop {

#if defined(__x86_64__)
namespace {
constexpr unsigned kDefaultMxcsr = 0x1f80;  // all exceptions masked and none raised; nearest; neither FTZ nor DAZ
}
#endif

void use_default_floating_point() noexcept {
  std::fesetenv(FE_DFL_ENV);
#if defined(__x86_64__)
  _mm_setcsr(kDefaultMxcsr);  // not every C library counts flushing to zero as part of the environment
#endif
}

#if defined(__x86_64__)

// std::fesetenv is not used: it also stores and loads the environment of the x87, and so takes hundreds of nanoseconds.
DefaultFloatingPoint::DefaultFloatingPoint() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(kDefaultMxcsr); }
DefaultFloatingPoint::~DefaultFloatingPoint() { _mm_setcsr(saved_); }

#else

DefaultFloatingPoint::DefaultFloatingPoint() noexcept {
  std::fegetenv(&saved_);
  use_default_floating_point();
}
DefaultFloatingPoint::~DefaultFloatingPoint() { std::fesetenv(&saved_); }

#endif

}  // namespace deviceloop
