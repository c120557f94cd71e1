// What the library's arithmetic rests on. Checked here, for every file that computes: how it is compiled. Without these
// checks NaN would pass for a number, and results would depend on the compiler.
#pragma once

#include <cfloat>
#include <type_traits>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "deviceloop needs NaN, signed zeros and the order of sums: compile with -fno-fast-math last, as CMakeLists.txt"
#endif
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16  // 16: as 0, and _Float16 in its own precision
#error "deviceloop needs float and double arithmetic without excess precision: compile it without -mfpmath=387"
#endif
static_assert(std::is_same_v<decltype(1.0), double>,
              "deviceloop needs constants in double: compile it without -fsingle-precision-constant");
