// Numbers as text.
#pragma once

#include <string_view>

namespace deviceloop {

enum class NumberKind { none, finite, special, too_large };

struct Number {
  NumberKind kind = NumberKind::none;  ///< special: nan or infinity
  double value = 0;                    ///< nearest to the text; 0 if too_large
};

/// The whole of `text` as a float64: a sign, also '+', and what C, Fortran, R and Python write: 1.5e-3, .5, 5.,
/// 0x1.8p+1, 1.5D-3, 1.5-103 (Fortran leaves out the letter of an exponent of three digits), nan, inf, Infinity, in any
/// case. A number nearer to 0 than the smallest of float64 is 0.
Number parse_number(std::string_view text);

}  // namespace deviceloop
