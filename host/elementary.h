// Transcendental functions for the formulas of host/activations.h, for float and double, on the CPU and on GPUs.
//
// They consist of + - * /, fused multiply-add, comparisons and operations on bits, each of which IEEE 754 defines
// exactly, and the project compiles without contraction: the same argument gives the same bits on every machine.
// Results are within 2 ulp of the correctly rounded value, subnormal ones included (tests/elementary_test.cpp). NaN
// gives NaN, whose payload may differ between machines. Zeros keep their sign where the function does.
//
// float functions compute in float, as many GPUs have few units for double: where its 24 bits are too few for an
// intermediate result, that is a sum of two numbers, `high` + `low`.
//
// All are straight-line code, so that loops over them vectorise, except sin and cos, which branch for huge arguments.
//
// The coefficients of the polynomials are minimax (Remez) fits, computed with 200 bits and then rounded; at each stands
// what it approximates, on which interval, and the largest error before rounding.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "floating_point.h"
#include "host_device.h"

namespace deviceloop::elementary {

template <class T>
inline constexpr bool kIsFloat = std::is_same_v<T, float>;

/// The layout of the type's bits, and constants in it. A constant of more bits than T has is a sum.
template <class T>
struct Format {
  using Bits = std::conditional_t<kIsFloat<T>, std::uint32_t, std::uint64_t>;
  static constexpr int kMantissaBits = kIsFloat<T> ? 23 : 52;
  static constexpr Bits kBias = kIsFloat<T> ? 127 : 1023;
  static constexpr Bits kBitsOfOne = kBias << kMantissaBits;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
  static constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  /// Added to a small number, it leaves the nearest integer in the lowest bits of the sum.
  static constexpr T kShift = kIsFloat<T> ? T(0x1.8p23) : T(0x1.8p52);
  /// Below it, sin(x), tanh(x), expm1(x) and log1p(x) are x when rounded.
  static constexpr T kTiny = kIsFloat<T> ? T(0x1p-26) : T(0x1p-55);
  static constexpr T kLog2E = kIsFloat<T> ? T(0x1.715476p+0) : T(0x1.71547652b82fep+0);
  static constexpr T kLn2High = kIsFloat<T> ? T(0x1.62e43p-1) : T(0x1.62e42fefa39efp-1);
  static constexpr T kLn2Low = kIsFloat<T> ? T(-0x1.05c61p-29) : T(0x1.abc9e3b39803fp-56);
  static constexpr T kTwoOverPi = kIsFloat<T> ? T(0x1.45f306p-1) : T(0x1.45f306dc9c883p-1);
  static constexpr T kHalfPiHigh = kIsFloat<T> ? T(0x1.921fb6p+0) : T(0x1.921fb54442d18p+0);
  static constexpr T kHalfPiMiddle = kIsFloat<T> ? T(-0x1.777a5cp-25) : T(0x1.1a62633145c07p-54);
  static constexpr T kHalfPiLow = kIsFloat<T> ? T(-0x1.ee59dap-50) : T(-0x1.f1976b7ed8fbcp-110);
  /// exp is 0 up to the first (when rounded), and infinite from the second on.
  static constexpr T kExpLeast = kIsFloat<T> ? T(-105) : T(-746);
  static constexpr T kExpMost = kIsFloat<T> ? T(89) : T(710);
};

template <class T>
DEVICELOOP_ELEMENT inline typename Format<T>::Bits bits_of(T value) {
  typename Format<T>::Bits bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class T>
DEVICELOOP_ELEMENT inline T from_bits(typename Format<T>::Bits bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/// The bound where x is beyond it; NaN passes.
template <class T>
DEVICELOOP_ELEMENT inline T at_least(T x, T bound) {
  return x < bound ? bound : x;
}
template <class T>
DEVICELOOP_ELEMENT inline T at_most(T x, T bound) {
  return x > bound ? bound : x;
}

/// c0 + c1 x + c2 x^2 + ..., by Horner's rule.
template <class T>
DEVICELOOP_ELEMENT inline T polynomial(T, T c0) {
  return c0;
}
template <class T, class... Coefficients>
DEVICELOOP_ELEMENT inline T polynomial(T x, T c0, Coefficients... others) {
  return std::fma(x, polynomial(x, others...), c0);
}

/// A sum, unevaluated; |high| is much larger than |low|.
template <class T>
struct Pair {
  T high, low;
};

/// a + b exactly, where |a| >= |b| or a = 0.
template <class T>
DEVICELOOP_ELEMENT inline Pair<T> ordered_sum(T a, T b) {
  const T sum = a + b;
  return {sum, b - (sum - a)};
}

/// a + b exactly.
template <class T>
DEVICELOOP_ELEMENT inline Pair<T> sum(T a, T b) {
  const T high = a + b;
  const T from_b = high - a;
  return {high, (a - (high - from_b)) + (b - from_b)};
}

/// numerator / denominator, rounded nearly once.
template <class T>
DEVICELOOP_ELEMENT inline T quotient(Pair<T> numerator, Pair<T> denominator) {
  const T reciprocal = T(1) / denominator.high;
  const T first = numerator.high * reciprocal;
  const T remainder =
      std::fma(-first, denominator.high, numerator.high) + std::fma(-first, denominator.low, numerator.low);
  return std::fma(remainder, reciprocal, first);
}

/// exp(x) = 2^k (1 + r + c) with |r| < 0.348 and c of r^2 / 2.
template <class T>
struct ExpParts {
  typename Format<T>::Bits shifted;  ///< k is in the lowest bits
  T r, c;

  /// 2^(k + change), a normal number.
  DEVICELOOP_ELEMENT T power(int change) const {
    using F = Format<T>;
    return from_bits<T>((shifted + F::kBias + static_cast<typename F::Bits>(change)) << F::kMantissaBits);
  }
  /// value 2^k, where that may be subnormal or infinite: rounded once, from two factors of about 2^(k / 2).
  DEVICELOOP_ELEMENT T scaled(T value) const {
    using F = Format<T>;
    constexpr typename F::Bits offset = kIsFloat<T> ? 512 : 4096;  // makes k positive, for the shift
    const typename F::Bits half = ((shifted + offset) & (2 * offset - 1)) >> 1;
    const T first = from_bits<T>((half - offset / 2 + F::kBias) << F::kMantissaBits);
    const T second = from_bits<T>((shifted - half + offset / 2 + F::kBias) << F::kMantissaBits);
    return value * first * second;
  }
};

/// For x from kExpLeast to kExpMost. r is exact but for its last rounding, whose error is in c.
template <class T>
DEVICELOOP_ELEMENT inline ExpParts<T> exp_parts(T x) {
  using F = Format<T>;
  const T shifted = std::fma(x, F::kLog2E, F::kShift);
  const T k = shifted - F::kShift;
  const T exact = std::fma(-k, F::kLn2High, x);
  const T r = std::fma(-k, F::kLn2Low, exact);
  const T rest = std::fma(-k, F::kLn2Low, exact - r);
  // (exp(r) - 1 - r) / r^2 for |r| <= 0.3475. Error, relative to exp(r) - 1: float 2^-31.9, double 2^-61.6.
  T q;
  if constexpr (kIsFloat<T>)
    q = polynomial(r, 0x1p-1f, 0x1.555556p-3f, 0x1.5554acp-5f, 0x1.11108ep-7f, 0x1.6d7654p-10f, 0x1.a1a394p-13f);
  else
    q = polynomial(r, 0x1p-1, 0x1.5555555555559p-3, 0x1.555555555555bp-5, 0x1.111111110f622p-7, 0x1.6c16c16c14357p-10,
                   0x1.a01a01b0240f1p-13, 0x1.a01a01b101f92p-16, 0x1.71ddf7a4c5a99p-19, 0x1.27e4c5038d20fp-22,
                   0x1.af6009ef78391p-26, 0x1.1f96538a02f3ep-29);
  return {bits_of(shifted), r, std::fma(r * r, q, std::fma(rest, r, rest))};
}

/// 1 + r + c
template <class T>
DEVICELOOP_ELEMENT inline Pair<T> one_plus(const ExpParts<T>& parts) {
  const Pair<T> start = ordered_sum(T(1), parts.r);
  return ordered_sum(start.high, start.low + parts.c);
}

/// e^x
template <class T>
DEVICELOOP_ELEMENT inline T exp(T x) {
  using F = Format<T>;
  const ExpParts<T> parts = exp_parts(at_most(at_least(x, F::kExpLeast), F::kExpMost));
  return parts.scaled(T(1) + (parts.r + parts.c));
}

/// (e^x - 1) / 2 for x up to kExpMost: half, as it is finite wherever e^x - 1 is. Less than -1/2 + 2^-54 is -1/2.
template <class T>
DEVICELOOP_ELEMENT inline Pair<T> half_expm1(T x) {
  const ExpParts<T> parts = exp_parts(at_least(x, kIsFloat<T> ? T(-20) : T(-42)));
  const T power = parts.power(-1);
  const Pair<T> main = ordered_sum(power - T(0.5), power * parts.r);
  return ordered_sum(main.high, main.low + power * parts.c);
}

/// e^x - 1
template <class T>
DEVICELOOP_ELEMENT inline T expm1(T x) {
  const Pair<T> half = half_expm1(at_most(x, Format<T>::kExpMost));
  const T value = T(2) * (half.high + half.low);
  return std::fabs(x) < Format<T>::kTiny ? x : value;
}

/// log(u.high + u.low) for a normal u.high.
template <class T>
DEVICELOOP_ELEMENT inline T log_of(Pair<T> u) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  // u = 2^k (1 + f) with 1 + f from sqrt(1/2) to sqrt(2)
  constexpr Bits bits_of_sqrt_half = kIsFloat<T> ? Bits(0x3f3504f3) : Bits(0x3fe6a09e667f3bcd);
  const Bits biased = (bits_of(u.high) + (F::kBitsOfOne - bits_of_sqrt_half)) >> F::kMantissaBits;
  constexpr T one_ulp_is_one = kIsFloat<T> ? T(0x1p23) : T(0x1p52);
  const T k = from_bits<T>(bits_of(one_ulp_is_one) | biased) - (one_ulp_is_one + T(F::kBias));
  const T scale = from_bits<T>((2 * F::kBias + 1 - biased) << F::kMantissaBits) * T(0.5);  // 2^-k; 0 for the largest
  const T mantissa = from_bits<T>(bits_of(u.high) - ((biased - F::kBias) << F::kMantissaBits));
  const Pair<T> f = ordered_sum(mantissa - T(1), u.low * scale);
  // log(1 + f) = 2 atanh(s) = 2 s + s R = f - s f + s R, with s f = f^2 / 2 - s f^2 / 2
  const T s = f.high / (T(2) + f.high);
  const T z = s * s;
  // R / z for z from 0 to 0.02955. Error of z times it: float 2^-29.1, double 2^-58.4.
  T r;
  if constexpr (kIsFloat<T>)
    r = polynomial(z, 0x1.55557ap-1f, 0x1.995e8ep-2f, 0x1.31e9fcp-2f);
  else
    r = polynomial(z, 0x1.555555555559p-1, 0x1.9999999980407p-2, 0x1.24924941c78cfp-2, 0x1.c71c520f48698p-3,
                   0x1.7466422a9280bp-3, 0x1.39a10761f844ep-3, 0x1.2f0fa88a8b1b8p-3);
  const T half_square = T(0.5) * f.high * f.high;
  const T correction = half_square - std::fma(s, std::fma(z, r, half_square), std::fma(k, F::kLn2Low, f.low));
  return std::fma(k, F::kLn2High, f.high - correction);
}

/// log(1 + x)
template <class T>
DEVICELOOP_ELEMENT inline T log1p(T x) {
  using F = Format<T>;
  const T value = std::fabs(x) < F::kTiny ? x : log_of(sum(T(1), x));
  const T outside = x < T(-1) ? F::kNan : x;  // and NaN
  return x > T(-1) && x < F::kInfinity ? value : x == T(-1) ? -F::kInfinity : outside;
}

/// tanh(x) = -expm1(-2 |x|) / (2 + expm1(-2 |x|)), with the sign of x.
template <class T>
DEVICELOOP_ELEMENT inline T tanh(T x) {
  const Pair<T> half = half_expm1(T(-2) * std::fabs(x));
  const Pair<T> denominator = ordered_sum(T(1), half.high);
  const T value = quotient<T>({-half.high, -half.low}, {denominator.high, denominator.low + half.low});
  return std::fabs(x) < Format<T>::kTiny ? x : std::copysign(value, x);
}

/// 1 / (1 + e^-x), as that for x >= 0 and as e^x / (1 + e^x) below.
template <class T>
DEVICELOOP_ELEMENT inline T sigmoid(T x) {
  const ExpParts<T> parts = exp_parts(at_least(-std::fabs(x), Format<T>::kExpLeast));
  const Pair<T> unscaled = one_plus(parts);
  const Pair<T> denominator = ordered_sum(T(1), parts.scaled(unscaled.high));
  const bool negative = x < T(0);
  const Pair<T> numerator{negative ? unscaled.high : T(1), negative ? unscaled.low : T(0)};
  const T value = quotient<T>(numerator, {denominator.high, denominator.low + parts.scaled(unscaled.low)});
  return negative ? parts.scaled(value) : value;
}

/// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
template <class T>
DEVICELOOP_ELEMENT inline T softplus(T x) {
  const ExpParts<T> parts = exp_parts(at_least(-std::fabs(x), Format<T>::kExpLeast));
  const Pair<T> unscaled = one_plus(parts);
  const Pair<T> u = ordered_sum(T(1), parts.scaled(unscaled.high));
  return at_least(x, T(0)) + log_of<T>({u.high, u.low + parts.scaled(unscaled.low)});
}

/// 2 / sqrt(pi) times the integral of e^-t^2 from 0 to x. Up to |x| = 1 it is a polynomial, from there 1 - e^-g(|x|)
/// with a polynomial g.
template <class T>
DEVICELOOP_ELEMENT inline T erf(T x) {
  const T magnitude = std::fabs(x);
  const T z = x * x;
  const T y = at_most(magnitude, kIsFloat<T> ? T(4) : T(6));
  // near: erf(x) / x - 1 in x^2, for |x| <= 1. Error: float 2^-29.6, double 2^-56.9.
  // far: -log(1 - erf(y)) / y - 1, for y from 1. Error, relative in erf: float 2^-31.2 to 4, double 2^-57.9 to 6.
  T near, far;
  if constexpr (kIsFloat<T>) {
    near = polynomial(z, 0x1.06eba8p-3f, -0x1.81273ep-2f, 0x1.ce2d20p-4f, -0x1.b7fbb6p-6f, 0x1.5419fap-8f,
                      -0x1.a485f8p-11f, 0x1.4ae4c6p-14f);
    far = polynomial(y, 0x1.0790e6p-3f, 0x1.451ab8p-1f, 0x1.b459ccp-4f, -0x1.8961dcp-6f, 0x1.ec8154p-9f,
                     -0x1.6fa218p-12f, 0x1.d489cep-17f);
  } else {
    near = polynomial(z, 0x1.06eba8214db68p-3, -0x1.812746b0379c2p-2, 0x1.ce2f21a041018p-4, -0x1.b82ce312062bcp-6,
                      0x1.565bccfa9a825p-8, -0x1.c02db072f3fe0p-11, 0x1.f9a2bf73f0c68p-14, -0x1.f4ca94990cb86p-17,
                      0x1.b9827b1885f9bp-20, -0x1.5c16e30fb0d45p-23, 0x1.d784936618cc2p-27, -0x1.acdff90b8ebd8p-31);
    far = polynomial(y, 0x1.06eba0950b951p-3, 0x1.45f316fa51fb4p-1, 0x1.a4f305da94227p-4, -0x1.3957eac219615p-6,
                     -0x1.bcabde76b64abp-13, 0x1.bbb4ef4b0ab63p-10, -0x1.2d493f8ed79d7p-11, -0x1.05efb3fdb1859p-20,
                     0x1.9080aee0bf866p-14, -0x1.d616c8980f35dp-15, 0x1.55715dcd4a7a8p-16, -0x1.69671deb4c2bbp-18,
                     0x1.2169d351e9c49p-20, -0x1.5e1971b6df4e4p-23, 0x1.377ded7db6cf5p-26, -0x1.8181487467481p-30,
                     0x1.28a50fc69565dp-34, -0x1.ab86b05141942p-40);
  }
  const ExpParts<T> parts = exp_parts(-std::fma(y, far, y));
  const T large = T(1) - parts.power(0) * (T(1) + (parts.r + parts.c));
  return magnitude < T(1) ? std::fma(x, near, x) : std::copysign(large, x);
}

/// x = (quadrant + 4 n) pi / 2 + high + low, with |high| up to about pi / 4.
template <class T>
struct Angle {
  T high, low;
  typename Format<T>::Bits quadrant;  ///< in its lowest two bits
};

/// For |x| up to kMostByParts, by Cody and Waite: pi / 2 in three parts. The first difference is exact.
template <class T>
inline constexpr T kMostByParts = kIsFloat<T> ? T(0x1p15) : T(0x1p30);
template <class T>
DEVICELOOP_ELEMENT inline Angle<T> angle_by_parts(T x) {
  using F = Format<T>;
  const T shifted = std::fma(x, F::kTwoOverPi, F::kShift);
  const T j = shifted - F::kShift;
  const T first = std::fma(-j, F::kHalfPiHigh, x);
  const T product = j * F::kHalfPiMiddle;
  const T product_low = std::fma(j, F::kHalfPiMiddle, -product);
  const Pair<T> second = sum(first, -product);
  return {second.high, second.low - std::fma(j, F::kHalfPiLow, product_low), bits_of(shifted)};
}

/// For all larger finite x, by Payne and Hanek: x = m 2^e times 2 / pi, as integers, without the bits of 2 / pi whose
/// products with m 2^e are multiples of 4. The closest that a double comes to a multiple of pi / 2 is about 2^-62, a
/// float 2^-31; the error is below 2^-120 and 2^-60.
template <class T>
DEVICELOOP_RARELY_CALLED Angle<T> angle_of_large(T x) {
  using F = Format<T>;
  // 2 / pi = 0.a2f9836e...
  static constexpr std::uint32_t two_over_pi[40] = {
      0xa2f9836eu, 0x4e441529u, 0xfc2757d1u, 0xf534ddc0u, 0xdb629599u, 0x3c439041u, 0xfe5163abu, 0xdebbc561u,
      0xb7246e3au, 0x424dd2e0u, 0x06492eeau, 0x09d1921cu, 0xfe1deb1cu, 0xb129a73eu, 0xe88235f5u, 0x2ebb4484u,
      0xe99c7026u, 0xb45f7e41u, 0x3991d639u, 0x835339f4u, 0x9c845f8bu, 0xbdf9283bu, 0x1ff897ffu, 0xde05980fu,
      0xef2f118bu, 0x5a0a6d1fu, 0x6d367ecfu, 0x27cb09b7u, 0x4f463f66u, 0x9e5fea2du, 0x7527bac7u, 0xebe5f17bu,
      0x3d0739f7u, 0x8a5292eau, 0x6bfb5fb1u, 0x1f8d5d08u, 0x56033046u, 0xfc7b6babu, 0xf0cfbc20u, 0x9af4361du};
  constexpr int words = kIsFloat<T> ? 4 : 7;
  const auto bits = bits_of(x);
  const auto exponent_bits = static_cast<int>(bits >> F::kMantissaBits) & (kIsFloat<T> ? 0xff : 0x7ff);
  const int e = exponent_bits - static_cast<int>(F::kBias) - F::kMantissaBits;
  constexpr std::uint64_t hidden = std::uint64_t{1} << F::kMantissaBits;
  const std::uint64_t m = (bits & (hidden - 1)) | hidden;
  const int first_word = e > 2 ? (e - 2) / 32 : 0;
  // product = m times `words` words, its lowest word first
  std::uint32_t product[words + 2];
  std::uint64_t carry = 0;
  for (int i = 0; i < words; ++i) {
    const std::uint64_t word = two_over_pi[first_word + words - 1 - i];
    const std::uint64_t low = word * (m & 0xffffffffu);
    const std::uint64_t sum_low = (low & 0xffffffffu) + (carry & 0xffffffffu);
    product[i] = static_cast<std::uint32_t>(sum_low);
    carry = (carry >> 32) + (low >> 32) + word * (m >> 32) + (sum_low >> 32);
  }
  product[words] = static_cast<std::uint32_t>(carry);
  product[words + 1] = static_cast<std::uint32_t>(carry >> 32);
  // The 64 bits of the product whose lowest is the bit `from`, which is not negative.
  const auto window = [&product](int from) {
    const int word = from / 32, shift = from % 32;
    const std::uint64_t low = product[word], middle = product[word + 1], high = product[word + 2];
    return low >> shift | middle << 32 >> shift | (shift > 0 ? high << (64 - shift) : 0);
  };
  const int fraction_bits = 32 * (first_word + words) - e;
  const std::uint64_t top = window(fraction_bits - 62);  // two bits of the integer, 62 of the fraction
  const std::uint64_t quadrant = (top + (std::uint64_t{1} << 61)) >> 62;
  // From the nearest quadrant: a number of 2^-64, whose sign goes before what is lost below, and one of 2^-128.
  std::uint64_t fraction = top << 2;
  std::uint64_t next = 0;
  if constexpr (!kIsFloat<T>) {
    next = window(fraction_bits - 126);
    fraction |= next >> 62;
    next <<= 2;
  }
  const bool is_before = fraction >> 63 != 0;
  if (is_before) {
    fraction = ~fraction;
    next = ~next;
  }
  const auto large = static_cast<T>(fraction);
  const auto rest = static_cast<std::int64_t>(fraction - static_cast<std::uint64_t>(large));
  const T below = kIsFloat<T> ? T(0) : static_cast<T>(next) * T(0x1p-64);
  const Pair<T> turns = sum(large, static_cast<T>(rest) + below);
  const T sign = (x < T(0)) != is_before ? T(-0x1p-64) : T(0x1p-64);
  const T high = turns.high * F::kHalfPiHigh;
  const T low =
      std::fma(turns.high, F::kHalfPiHigh, -high) + std::fma(turns.high, F::kHalfPiMiddle, turns.low * F::kHalfPiHigh);
  const T not_finite = x - x;  // NaN for infinities
  return {sign * high + not_finite, sign * low,
          static_cast<typename F::Bits>(x < T(0) ? std::uint64_t{0} - quadrant : quadrant)};
}

/// sin of the angle plus `quadrants` quarters of a turn.
template <class T>
DEVICELOOP_ELEMENT inline T sin_of(Angle<T> angle, typename Format<T>::Bits quadrants) {
  using F = Format<T>;
  const T z = angle.high * angle.high;
  // (sin(r) - r) / r^3 and (cos(r) - 1 + r^2 / 2) / r^4 in r^2, for |r| <= 0.79. Errors, of the terms that they stand
  // in: float 2^-27.9 and 2^-33.1, double 2^-57.8 and 2^-64.0.
  T of_sin, of_cos;
  if constexpr (kIsFloat<T>) {
    of_sin = polynomial(z, -0x1.555546p-3f, 0x1.110726p-7f, -0x1.993a8cp-13f);
    of_cos = polynomial(z, 0x1.55554ap-5f, -0x1.6c0c50p-10f, 0x1.99f0a2p-16f);
  } else {
    of_sin = polynomial(z, -0x1.5555555555548p-3, 0x1.111111110f70fp-7, -0x1.a01a019be1fe0p-13, 0x1.71de354cbfd60p-19,
                        -0x1.ae5e436b68ffep-26, 0x1.5d889b2c64d5bp-33);
    of_cos = polynomial(z, 0x1.555555555554bp-5, -0x1.6c16c16c15024p-10, 0x1.a01a019c8d80cp-16, -0x1.27e4f7ee3967ep-22,
                        0x1.1ee9d826fbb2bp-29, -0x1.8fa3f43e5877cp-37);
  }
  const T half = T(0.5) * z;
  const T sine = angle.high + std::fma(z * angle.high, of_sin, std::fma(-half, angle.low, angle.low));
  const Pair<T> start = ordered_sum(T(1), -half);
  const T cosine = start.high + (start.low + std::fma(z * z, of_cos, -angle.high * angle.low));
  const typename F::Bits quadrant = angle.quadrant + quadrants;
  const T value = (quadrant & 1) != 0 ? cosine : sine;
  return (quadrant & 2) != 0 ? -value : value;
}

/// sin(x), x in radians; NaN for infinities.
template <class T>
DEVICELOOP_ELEMENT inline T sin(T x) {
  const T magnitude = std::fabs(x);
  const T value = sin_of(magnitude > kMostByParts<T> ? angle_of_large(x) : angle_by_parts(x), 0);
  return magnitude < Format<T>::kTiny ? x : value;
}

/// cos(x), x in radians; NaN for infinities.
template <class T>
DEVICELOOP_ELEMENT inline T cos(T x) {
  return sin_of(std::fabs(x) > kMostByParts<T> ? angle_of_large(x) : angle_by_parts(x), 1);
}

/// The same of |x| <= kMostByParts, without a branch, so that loops over them vectorise.
/// @{
template <class T>
DEVICELOOP_ELEMENT inline T sin_by_parts(T x) {
  const T value = sin_of(angle_by_parts(x), 0);
  return std::fabs(x) < Format<T>::kTiny ? x : value;
}
template <class T>
DEVICELOOP_ELEMENT inline T cos_by_parts(T x) {
  return sin_of(angle_by_parts(x), 1);
}
/// @}

}  // namespace deviceloop::elementary
