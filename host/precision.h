// What the precisions are made of: the type of elements, and for those below fp32 how the operands of products are
// rounded. One definition for the CPU's loops and for CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include <deviceloop/spec.h>

#include "host_device.h"

namespace deviceloop {

/// The precision whose elements everything but the operands of products has: fp32 or fp64.
constexpr Precision elements_of(Precision precision) {
  return element_type(precision) == ElementType::float64 ? Precision::fp64 : Precision::fp32;
}

/// In how many matrices of rounded elements a product reads an operand; 0: it reads the elements themselves.
constexpr int operand_parts(Precision precision) {
  switch (precision) {
    case Precision::fp32:
    case Precision::fp64:
      break;
    case Precision::tf32:
    case Precision::bf16:
    case Precision::fp16:
      return 1;
    case Precision::tf32x3:
      return 2;
  }
  return 0;
}
inline constexpr int kMostOperandParts = 2;

/// Bytes of a rounded element where a GPU's library of products reads it.
constexpr std::uint64_t operand_bytes(Precision precision) {
  switch (precision) {
    case Precision::fp64:
      return 8;
    case Precision::fp32:
    case Precision::tf32:
    case Precision::tf32x3:
      break;
    case Precision::bf16:
    case Precision::fp16:
      return 2;
  }
  return 4;
}

/// Elements from row to row of such a matrix, unless it is a weight, which lies among all parameters: rows of 16-bit
/// elements begin at multiples of 16 bytes, as the fastest products on tensor cores want them. Nothing reads what lies
/// between.
constexpr std::int64_t operand_pitch(Precision precision, std::int64_t columns) {
  return operand_bytes(precision) == 2 ? (columns + 7) / 8 * 8 : columns;
}

/// Whether the gradient of the loss is scaled; see LossScaling.
constexpr bool scales_loss(Precision precision) { return precision == Precision::fp16; }

namespace rounding {

/// Formats of floating-point numbers, by their bits of mantissa beside the leading one and of exponent, as IEEE 754
/// has them: with infinities, NaN and subnormal numbers.
/// @{
struct Tf32 {
  static constexpr int kMantissaBits = 10;
  static constexpr int kExponentBits = 8;
};
struct Bf16 {
  static constexpr int kMantissaBits = 7;
  static constexpr int kExponentBits = 8;
};
struct Fp16 {
  static constexpr int kMantissaBits = 10;
  static constexpr int kExponentBits = 5;
};
/// @}

DEVICELOOP_ELEMENT inline std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
DEVICELOOP_ELEMENT inline float with_bits(std::uint32_t bits) {
  float value = 0;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/// The number of the format that is nearest, of two the one with an even mantissa. Beyond the largest one by half of
/// its last place or more it is infinite; zeros and infinities stay, with their sign, and a NaN stays one.
template <class Format>
DEVICELOOP_ELEMENT inline float rounded(float value) {
  constexpr std::uint32_t kInfinity = 0x7f800000, kQuiet = 0x00400000;
  constexpr int kDropped = 23 - Format::kMantissaBits;
  constexpr std::uint32_t kMask = ~((std::uint32_t{1} << kDropped) - 1);
  constexpr std::uint32_t kBelowHalf = (std::uint32_t{1} << (kDropped - 1)) - 1;
  const std::uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
  // A carry out of the mantissa goes into the exponent, which is what rounding up to a power of two is.
  std::uint32_t kept = (magnitude + kBelowHalf + ((magnitude >> kDropped) & 1)) & kMask;
  if constexpr (Format::kExponentBits < 8) {
    constexpr std::uint32_t kBias = (1 << (Format::kExponentBits - 1)) - 1;
    constexpr std::uint32_t kLeastNormal = (127 - kBias + 1) << 23, kBeyond = (127 + kBias + 1) << 23;
    // Below the normal numbers all are multiples of the least one. A sum with the float whose last place is that one is
    // rounded to such a multiple.
    constexpr std::uint32_t kBase = (127 - kBias + 1 + kDropped) << 23;
    const float base = with_bits(kBase);
    const std::uint32_t subnormal = bits_of((with_bits(magnitude) + base) - base);
    kept = magnitude < kLeastNormal ? subnormal : kept >= kBeyond ? kInfinity : kept;
  }
  kept = magnitude > kInfinity ? (magnitude | kQuiet) & kMask : kept;
  return with_bits(kept | (bits & 0x80000000));
}

/// The same with the format chosen at run time: for kernels, which take each element alone. Precisions without a single
/// part leave the value as it is.
DEVICELOOP_HOST_DEVICE inline float rounded(Precision precision, float value) {
  switch (precision) {
    case Precision::fp32:
    case Precision::fp64:
    case Precision::tf32x3:
      break;
    case Precision::tf32:
      return rounded<Tf32>(value);
    case Precision::bf16:
      return rounded<Bf16>(value);
    case Precision::fp16:
      return rounded<Fp16>(value);
  }
  return value;
}

/// The 16 bits of a value that is rounded to the format.
/// @{
DEVICELOOP_HOST_DEVICE inline std::uint16_t bf16_bits(float value) {
  return static_cast<std::uint16_t>(bits_of(value) >> 16);
}
DEVICELOOP_HOST_DEVICE inline std::uint16_t fp16_bits(float value) {
  constexpr std::uint32_t kInfinity = 0x7f800000, kLeastNormal = 113u << 23, kBias = 112u << 23;
  const std::uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
  std::uint32_t half = (magnitude - kBias) >> 13;
  if (magnitude >= kInfinity) half = 0x7c00 | ((magnitude >> 13) & 0x3ff);
  if (magnitude < kLeastNormal) half = static_cast<std::uint32_t>(with_bits(magnitude) * 0x1p24f);
  return static_cast<std::uint16_t>(half | (bits & 0x80000000) >> 16);
}
/// @}

}  // namespace rounding

/// What a product reads for an element: `high`, and of a precision with two parts `low`, what rounding to `high`
/// leaves. The sum of the two is the element to about fp32's own precision; where one part is infinite or NaN, so is
/// the product.
template <class Format>
struct RoundedOperand {
  static constexpr int kParts = 1;
  DEVICELOOP_ELEMENT static float high(float value) { return rounding::rounded<Format>(value); }
  DEVICELOOP_ELEMENT static float low(float, float) { return 0; }
};
struct SplitTf32 {
  static constexpr int kParts = 2;
  DEVICELOOP_ELEMENT static float high(float value) { return rounding::rounded<rounding::Tf32>(value); }
  DEVICELOOP_ELEMENT static float low(float value, float high) {
    return rounding::rounded<rounding::Tf32>(value - high);
  }
};

/// use(an object of the precision's struct), of a precision that rounds operands.
template <class Use>
inline void with_operand_rounding(Precision precision, Use use) {
  switch (precision) {
    case Precision::fp32:
    case Precision::fp64:
      break;
    case Precision::tf32:
      return use(RoundedOperand<rounding::Tf32>());
    case Precision::tf32x3:
      return use(SplitTf32());
    case Precision::bf16:
      return use(RoundedOperand<rounding::Bf16>());
    case Precision::fp16:
      return use(RoundedOperand<rounding::Fp16>());
  }
}

}  // namespace deviceloop
