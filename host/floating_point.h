// What the library's arithmetic depends on: the compiler options of every file that computes, which are checked here
// because with others NaN may be treated as a number and results depend on the compiler; and the floating-point
// environment of the threads that compute.
#pragma once

#include <cfenv>
#include <cfloat>
#include <type_traits>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "deviceloop needs NaN, signed zeros and ordered sums: compile with -fno-fast-math last, as CMakeLists.txt does"
#endif
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16  // 16: as 0, and _Float16 in its own precision
#error "deviceloop needs float and double arithmetic without excess precision: compile it without -mfpmath=387"
#endif
static_assert(std::is_same_v<decltype(1.0), double>,
              "deviceloop needs constants in double: compile it without -fsingle-precision-constant");

namespace deviceloop {

/// Gives the calling thread the default floating-point environment: rounding to nearest, subnormal numbers kept, no
/// traps, no flag raised.
void use_default_floating_point() noexcept;

/// Gives the calling thread the default floating-point environment while the object is in scope, then restores the
/// previous one, exception flags included. On x86-64 that is the environment of SSE, which does all arithmetic in float
/// and double; this takes some nanoseconds there.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() noexcept;
  ~DefaultFloatingPoint();
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
#if defined(__x86_64__)
  unsigned saved_;
#else
  std::fenv_t saved_;
#endif
};

}  // namespace deviceloop
