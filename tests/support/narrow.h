// Tables as elements of 16 bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include <deviceloop/matrix.h>

#include "support/reference.h"

namespace deviceloop::testing {

/// A table's values as the nearest numbers with 8 bits of mantissa between 2^-14 and 1, which bfloat16 and float16 both
/// have, and 0: as they lie in memory, and as doubles.
struct Narrow {
  std::vector<std::uint16_t> bits;
  reference::Table values;
  ElementType type;

  Narrow(const reference::Table& table, ElementType of) : values(table), type(of) {
    for (double& value : values.values) {
      int exponent = 0;
      const double mantissa = std::nearbyint(std::frexp(value, &exponent) * 256);  // of 128 to 256, or 0
      value = std::ldexp(mantissa, exponent - 8);
      if (std::fabs(value) < 0x1p-14) value = 0;
      bits.push_back(bits_of(value));
    }
  }

  ConstMatrix view() const {
    return {bits.data(), type, static_cast<std::int64_t>(values.rows), static_cast<std::int64_t>(values.columns)};
  }

 private:
  std::uint16_t bits_of(double value) const {
    if (value == 0) return 0;
    const int digits = type == ElementType::bfloat16 ? 7 : 10, bias = type == ElementType::bfloat16 ? 127 : 15;
    int exponent = 0;
    const double mantissa = std::frexp(std::fabs(value), &exponent);
    const auto number = static_cast<std::uint32_t>(std::ldexp(2 * mantissa - 1, digits)) +
                        (static_cast<std::uint32_t>(exponent - 1 + bias) << digits);
    return static_cast<std::uint16_t>(number | (std::signbit(value) ? 0x8000 : 0));
  }
};

}  // namespace deviceloop::testing
