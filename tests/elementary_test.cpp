// host/elementary.h against long double, whose 64 bits of mantissa show the rounding of a double; where it has no more
// bits than double, double's functions are tested by values alone.
#include "elementary.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace deviceloop::elementary {
namespace {

using Reference = long double (*)(long double);

long double reference_sigmoid(long double x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}
long double reference_softplus(long double x) {
  return (x > 0 ? x : 0) + std::log1p(std::exp(-std::fabs(x))) + (std::isnan(x) ? x : 0);
}

template <class T>
struct Function {
  const char* name;
  T (*function)(T);
  Reference reference;
};

template <class T>
std::vector<Function<T>> functions() {
  return {{"exp", exp<T>, std::exp},
          {"expm1", expm1<T>, std::expm1},
          {"log1p", log1p<T>, std::log1p},
          {"tanh", tanh<T>, std::tanh},
          {"erf", erf<T>, std::erf},
          {"sin", sin<T>, std::sin},
          {"cos", cos<T>, std::cos},
          {"sigmoid", sigmoid<T>, reference_sigmoid},
          {"softplus", softplus<T>, reference_softplus}};
}

/// The place of a number in the order of all of its type; both zeros have the same.
template <class T>
std::int64_t place(T value) {
  const auto magnitude = static_cast<std::int64_t>(bits_of(std::fabs(value)));
  return std::signbit(value) ? -magnitude : magnitude;
}

/// Arguments of all exponents with random mantissas, and of all ranges in which a function is not constant.
template <class T>
std::vector<T> arguments() {
  using F = Format<T>;
  using Bits = typename F::Bits;
  std::mt19937_64 random(7);
  std::vector<T> all;
  const int of_exponent = kIsFloat<T> ? 200 : 12;
  for (Bits exponent = 0; exponent < 2 * F::kBias + 1; ++exponent)
    for (int i = 0; i < of_exponent; ++i) {
      const Bits mantissa = static_cast<Bits>(random()) >> (8 * sizeof(T) - F::kMantissaBits);
      const T value = from_bits<T>((exponent << F::kMantissaBits) | mantissa);
      all.push_back(i % 2 == 0 ? value : -value);
    }
  for (const double range : {0.01, 0.5, 2.0, 8.0, 50.0, 120.0, 800.0})
    for (int i = 0; i < 10000; ++i)
      all.push_back(static_cast<T>(range * (0x1p-52 * static_cast<double>(random() >> 11) - 1)));
  return all;
}

template <class T>
class Elementary : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Elementary, Types);

TYPED_TEST(Elementary, IsWithinTwoUlpOfTheCorrectlyRoundedValue) {
  using T = TypeParam;
  if (std::numeric_limits<long double>::digits < std::numeric_limits<T>::digits + 8)
    GTEST_SKIP() << "long double has " << LDBL_MANT_DIG << " bits";
  const std::vector<T> xs = arguments<T>();
  for (const Function<T>& f : functions<T>()) {
    std::int64_t worst = 0;
    T at = 0;
    for (const T x : xs) {
      const T expected = static_cast<T>(f.reference(x)), value = f.function(x);
      ASSERT_EQ(std::isnan(value), std::isnan(expected)) << f.name << "(" << x << ") = " << value;
      if (std::isnan(value)) continue;
      ASSERT_EQ(std::signbit(value), std::signbit(expected)) << f.name << "(" << x << ") = " << value;
      const std::int64_t distance = std::abs(place(value) - place(expected));
      if (distance <= worst) continue;
      worst = distance;
      at = x;
    }
    EXPECT_LE(worst, 2) << f.name << " at " << std::hexfloat << at << ": " << f.function(at) << ", not "
                        << static_cast<T>(f.reference(at));
    EXPECT_GT(xs.size(), 90000u);
  }
}

TYPED_TEST(Elementary, KeepsNanInfinitiesAndTheSignOfZero) {
  using T = TypeParam;
  constexpr T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  struct Case {
    const char* name;
    T (*function)(T);
    T at_minus_infinity, at_minus_zero, at_zero, at_infinity;
  };
  const T ln2 = static_cast<T>(0.693147180559945309417L);
  for (const Case& c : {Case{"exp", exp<T>, 0, 1, 1, infinity}, Case{"expm1", expm1<T>, -1, T(-0.0), 0, infinity},
                        Case{"log1p", log1p<T>, nan, T(-0.0), 0, infinity}, Case{"tanh", tanh<T>, -1, T(-0.0), 0, 1},
                        Case{"erf", erf<T>, -1, T(-0.0), 0, 1}, Case{"sin", sin<T>, nan, T(-0.0), 0, nan},
                        Case{"cos", cos<T>, nan, 1, 1, nan}, Case{"sigmoid", sigmoid<T>, 0, T(0.5), T(0.5), 1},
                        Case{"softplus", softplus<T>, 0, ln2, ln2, infinity}}) {
    EXPECT_TRUE(std::isnan(c.function(nan))) << c.name;
    const std::pair<T, T> values[] = {
        {-infinity, c.at_minus_infinity}, {T(-0.0), c.at_minus_zero}, {T(0), c.at_zero}, {infinity, c.at_infinity}};
    for (const auto& [x, expected] : values) {
      const T value = c.function(x);
      EXPECT_TRUE(std::isnan(expected) ? std::isnan(value)
                                       : value == expected && std::signbit(value) == std::signbit(expected))
          << c.name << "(" << x << ") = " << value;
    }
  }
  EXPECT_EQ(log1p(T(-1)), -infinity);
  EXPECT_TRUE(std::isnan(log1p(T(-2))));
}

TYPED_TEST(Elementary, IsExactAtTheEndsOfItsRange) {
  using T = TypeParam;
  constexpr T most = std::numeric_limits<T>::max(), infinity = std::numeric_limits<T>::infinity();
  constexpr T least = std::numeric_limits<T>::denorm_min();
  // The last argument that exp takes to a finite number, and the first that it takes to one above 0.
  const T last = kIsFloat<T> ? T(0x1.62e42ep+6) : T(0x1.62e42fefa39efp+9);
  const T first = kIsFloat<T> ? T(-0x1.9fe368p+6) : T(-0x1.74910d52d3051p+9);
  for (T (*function)(T) : {exp<T>, expm1<T>}) {
    EXPECT_LT(function(last), infinity);
    EXPECT_GT(function(last), T(0.999) * most);
    EXPECT_EQ(function(std::nextafter(last, infinity)), infinity);
  }
  for (T (*function)(T) : {exp<T>, sigmoid<T>, softplus<T>}) {
    EXPECT_EQ(function(first), least);
    EXPECT_EQ(function(std::nextafter(first, -infinity)), T(0));
  }
  for (T (*function)(T) : {expm1<T>, log1p<T>, tanh<T>, sin<T>})
    for (const T x : {least, -least, 5 * least, std::numeric_limits<T>::min()}) EXPECT_EQ(function(x), x);
  EXPECT_EQ(softplus(most), most);
}

/// The angles that need most care: the numbers of the type that are closest to multiples of pi / 2, from both sides, by
/// the continued fractions of 2^e 2 / pi; numerators of that of pi; and numbers of every size next to such multiples.
template <class T>
std::vector<T> hard_angles() {
  std::vector<T> xs;
  if constexpr (kIsFloat<T>)
    xs = {0x1.f37c8ap+95f, 0x1.47d0fep+34f,  0x1.f37c8ap+96f, 0x1.47d0fep+35f,
          0x1.628d4cp+40f, 0x1.b08c4ap+111f, 0x1.abb4bp+89f,  0x1.7f4134p+101f};
  else
    xs = {0x1.6ac5b262ca1ffp+849, 0x1.6ac5b262ca1ffp+850, 0x1.6ac5b262ca1ffp+851, 0x1.4c96c11134d36p+577,
          0x1.504cac51f1eafp+131, 0x1.e009c53148be1p+991, 0x1.cfe482285f8edp+860, 0x1.db41f3cb71d7bp+680};
  for (const double numerator : {22.0, 355.0, 103993.0, 104348.0, 208341.0, 312689.0, 833719.0, 1146408.0, 4272943.0,
                                 5419351.0, 80143857.0, 165707065.0, 245850922.0, 411557987.0, 1068966896.0})
    if (static_cast<double>(static_cast<T>(numerator)) == numerator) xs.push_back(static_cast<T>(numerator));
  for (int exponent = 0; exponent < (kIsFloat<T> ? 120 : 1000); ++exponent) {
    const double multiple = std::nearbyint(std::ldexp(1.37, exponent % 40)) * std::ldexp(1.0, exponent - exponent % 40);
    xs.push_back(static_cast<T>(1.57079632679489661923L * static_cast<long double>(multiple)));
  }
  return xs;
}

TYPED_TEST(Elementary, SineKeepsItsRelativeErrorNextToMultiplesOfHalfPi) {
  using T = TypeParam;
  if (std::numeric_limits<long double>::digits < std::numeric_limits<T>::digits + 8)
    GTEST_SKIP() << "long double has " << LDBL_MANT_DIG << " bits";
  for (const T positive : hard_angles<T>())
    for (const T x : {positive, -positive}) {
      const T sine = static_cast<T>(std::sin(static_cast<long double>(x)));
      const T cosine = static_cast<T>(std::cos(static_cast<long double>(x)));
      EXPECT_LE(std::abs(place(sin(x)) - place(sine)), 2) << std::hexfloat << x;
      EXPECT_LE(std::abs(place(cos(x)) - place(cosine)), 2) << std::hexfloat << x;
    }
}

// By the arithmetic of 2000 bits.
TEST(ElementarySine, IsThatOfTheHardestDouble) {
  EXPECT_NEAR(cos(0x1.6ac5b262ca1ffp+849) / -4.68716592425462761112e-19, 1, 0x1p-51);
  EXPECT_EQ(sin(0x1.6ac5b262ca1ffp+849), 1);
}

}  // namespace
}  // namespace deviceloop::elementary
