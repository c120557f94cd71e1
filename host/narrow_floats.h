// Floating-point numbers of 16 bits as data have them: only read, as float, which holds them all.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "precision.h"

namespace deviceloop {

/// The upper half of a float.
struct Bfloat16 {
  std::uint16_t bits = 0;
  static constexpr std::uint16_t kInfinity = 0x7f80;

  DEVICELOOP_HOST_DEVICE operator float() const { return rounding::with_bits(static_cast<std::uint32_t>(bits) << 16); }
};

/// IEEE 754 binary16.
struct Float16 {
  std::uint16_t bits = 0;
  static constexpr std::uint16_t kInfinity = 0x7c00;

  DEVICELOOP_HOST_DEVICE operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
    const std::uint32_t exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    // Subnormal ones are multiples of the least.
    if (exponent == 0) return rounding::with_bits(rounding::bits_of(static_cast<float>(fraction) * 0x1p-24f) | sign);
    const std::uint32_t widened = exponent == 0x1f ? 0xff : exponent + 127 - 15;
    return rounding::with_bits(sign | widened << 23 | fraction << 13);
  }
};

}  // namespace deviceloop
