// What kernels do for the products of a precision that rounds operands: they store what they make in rounded form too,
// and round what they multiply by themselves.
#pragma once

#include <cstdint>
#include <type_traits>

#include "groups.cuh"
#include "kernels.h"

namespace deviceloop::cuda {

/// Stores the rounded elements of a group from `begin` on, if they are asked for; writes nothing at `end` or beyond.
template <class T, int width>
__device__ inline void store_rounded(const RoundedCopy& copy, const Group<T, width>& group, std::int64_t begin,
                                     std::int64_t end) {
  if constexpr (std::is_same_v<T, float>) {
    if (copy.high == nullptr) return;
    Group<float, width> high, low;
    Group<std::uint16_t, width> bits;
    const auto store_bits = [&] {
      auto* const to = static_cast<std::uint16_t*>(copy.high);
      if (copy.columns == 0) return store_group<true>(to, bits, begin, end);
      const std::int64_t row = begin / copy.columns;
      std::int64_t column = begin - row * copy.columns;
      std::uint16_t* in_row = to + row * copy.pitch;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        if (begin + i >= end) return;
        in_row[column++] = bits.values[i];
        if (column < copy.columns) continue;
        column = 0;
        in_row += copy.pitch;
      }
    };
    switch (copy.precision) {
      case Precision::fp32:
      case Precision::fp64:
        break;
      case Precision::bf16:
#pragma unroll
        for (int i = 0; i < width; ++i)
          bits.values[i] = rounding::bf16_bits(rounding::rounded<rounding::Bf16>(group.values[i]));
        return store_bits();
      case Precision::fp16:
#pragma unroll
        for (int i = 0; i < width; ++i)
          bits.values[i] = rounding::fp16_bits(rounding::rounded<rounding::Fp16>(group.values[i]));
        return store_bits();
      case Precision::tf32:
      case Precision::tf32x3:
#pragma unroll
        for (int i = 0; i < width; ++i) {
          high.values[i] = SplitTf32::high(group.values[i]);
          low.values[i] = SplitTf32::low(group.values[i], high.values[i]);
        }
        store_group<true>(static_cast<float*>(copy.high), high, begin, end);
        if (copy.low != nullptr) store_group<true>(static_cast<float*>(copy.low), low, begin, end);
        return;
    }
  }
}

/// The same of one element.
template <class T>
__device__ inline void store_rounded(const RoundedCopy& copy, T value, std::int64_t index) {
  store_rounded(copy, Group<T, 1>{{value}}, index, index + 1);
}

/// How a kernel reads the operands of its own products.
/// @{
struct AsTheyAre {
  template <class T>
  __device__ T operator()(T value) const {
    return value;
  }
};
struct RoundedTo {
  Precision precision;
  __device__ float operator()(float value) const { return rounding::rounded(precision, value); }
};
/// @}

/// use(how to read operands), of a precision: kernels are compiled for both, so that fp32 and fp64 cost nothing. In
/// tf32x3, whose three products are as exact as one in fp32, own kernels multiply in that.
template <class T, class Use>
void with_operands(Precision precision, Use use) {
  if constexpr (std::is_same_v<T, float>)
    if (operand_parts(precision) > 0) return use(RoundedTo{precision});
  use(AsTheyAre());
}

}  // namespace deviceloop::cuda
