// Philox4x32-10 by Random123, and the inverse normal distribution function. Everything here is + - * / and square roots
// in double, each correctly rounded by IEEE 754, so that the bits do not depend on the machine's math library. The
// library is compiled without contraction into fused multiply-add for the same reason.
#include <deviceloop/random.h>

#include <Random123/philox.h>

#include <bit>
#include <cmath>
#include <string>

#include <deviceloop/error.h>

#include "floating_point.h"
#include "matrix_ops.h"
#include "random_internal.h"

namespace deviceloop {

double portable_log(double x) {
  // x = m 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.1716.
  const auto bits = std::bit_cast<std::uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1022;
  double m = std::bit_cast<double>((bits & 0x000fffffffffffffu) | 0x3fe0000000000000u);
  if (m < 0.70710678118654752) {
    m += m;
    --exponent;
  }
  const double s = (m - 1) / (m + 1);
  const double q = s * s;
  // 1/3 + q/5 + ... + q^10/23: what is left out is below 2^-56.
  double series = 1.0 / 23;
  for (int k = 21; k >= 3; k -= 2) series = series * q + 1.0 / k;
  // ln 2 in two parts, the first with trailing zeros, so that its product with the exponent is exact.
  constexpr double kLn2High = 0x1.62e42fefa3800p-1, kLn2Low = 0x1.ef35793c76730p-45;
  return exponent * kLn2High + (exponent * kLn2Low + 2 * s + 2 * s * q * series);
}

namespace {

// Wichura (1988), algorithm AS 241, PPND16: three rational approximations, each with a relative error of about 1e-16.
// Coefficients from the highest power down.
constexpr double kCentralNumerator[] = {2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
                                        4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
                                        1.3314166789178437745e2, 3.3871328727963666080e0};
constexpr double kCentralDenominator[] = {
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0};
constexpr double kMiddleNumerator[] = {7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
                                       1.27045825245236838258e0,  3.64784832476320460504e0,  5.76949722146069140550e0,
                                       4.63033784615654529590e0,  1.42343711074968357734e0};
constexpr double kMiddleDenominator[] = {
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940e0,  2.05319162663775882187e0,  1.0};
constexpr double kTailNumerator[] = {2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
                                     2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0,
                                     5.46378491116411436990e0,  6.65790464350110377720e0};
constexpr double kTailDenominator[] = {
    2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
    1.48753612908506148525e-2,  1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0};

double horner(const double (&coefficients)[8], double r) {
  double value = coefficients[0];
  for (int i = 1; i < 8; ++i) value = value * r + coefficients[i];
  return value;
}

}  // namespace

double inverse_normal(double p) {
  const double q = p - 0.5;
  if (std::abs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * horner(kCentralNumerator, r) / horner(kCentralDenominator, r);
  }
  const double r = std::sqrt(-portable_log(q < 0 ? p : 1 - p));
  const double value = r <= 5 ? horner(kMiddleNumerator, r - 1.6) / horner(kMiddleDenominator, r - 1.6)
                              : horner(kTailNumerator, r - 5) / horner(kTailDenominator, r - 5);
  return q < 0 ? -value : value;
}

NormalPair normal_pair(std::uint64_t seed, std::uint32_t tensor, std::uint64_t pair) {
  using Philox = r123::Philox4x32;
  const Philox::ctr_type counter = {
      {static_cast<std::uint32_t>(pair), static_cast<std::uint32_t>(pair >> 32), tensor, 0}};
  const Philox::key_type key = {{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}};
  const Philox::ctr_type words = Philox()(counter, key);
  const auto normal = [&](std::size_t low, std::size_t high) {
    const std::uint64_t k = ((static_cast<std::uint64_t>(words[high]) << 32) | words[low]) >> 12;
    // k + 0.5 has 53 bits: the uniform is exact, never 0 and never 1.
    return inverse_normal((static_cast<double>(k) + 0.5) * 0x1p-52);
  };
  return {normal(0, 1), normal(2, 3)};
}

namespace {

template <class T>
void fill(Matrix out, std::uint64_t seed, std::uint32_t tensor, double deviation) {
  std::uint64_t number = 0;
  NormalPair pair{};
  for (std::int64_t row = 0; row < out.rows; ++row) {
    T* values = static_cast<T*>(out.data) + row * out.row_stride;
    for (std::int64_t column = 0; column < out.columns; ++column, ++number) {
      if (number % 2 == 0) pair = normal_pair(seed, tensor, number / 2);
      values[column] = static_cast<T>(deviation * (number % 2 == 0 ? pair.first : pair.second));
    }
  }
}

}  // namespace

void fill_normal(Matrix out, std::uint64_t seed, std::uint32_t tensor, double deviation) {
  check_host_view(out, "fill_normal: the matrix");
  const DefaultFloatingPoint floating_point;
  if (out.type == ElementType::float32)
    fill<float>(out, seed, tensor, deviation);
  else
    fill<double>(out, seed, tensor, deviation);
}

}  // namespace deviceloop
