// host/activations.h and the CPU's loops over it, against the definitions.
#include "activations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu/cpu_kernels.h"
#include "names.h"
#include "support/activations.h"

namespace deviceloop {
namespace {

using testing::ActivationFormula;
using testing::kActivationFormulas;

template <class T>
class Activations : public ::testing::Test {
 protected:
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

  /// The gradient, times dh, at a pre-activation z, as executors take it.
  static T gradient_at(const ActivationOfStep& activation, T z, T dh) {
    const T kept = activations::keeps_pre_activation(activation) ? z : activations::value(activation, z);
    return activations::gradient(activation, kept, dh);
  }
};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Activations, Types);

TEST(ActivationFormulas, NameEveryActivation) {
  int number = 0;
  for (const ActivationFormula& formula : kActivationFormulas) {
    if (formula.activation.leaky_slope != 0.01) continue;  // once more, with another slope
    EXPECT_EQ(formula.activation.kind, static_cast<Activation>(number++));
    EXPECT_EQ(name_or_null(formula.activation.kind), std::string(formula.name));
  }
  EXPECT_EQ(name_or_null(static_cast<Activation>(number)), nullptr);
}

// The derivatives of the formulas, which the next test compares with, are those of their values.
TEST(ActivationFormulas, HaveTheDerivativesThatDifferencesGive) {
  for (const ActivationFormula& formula : kActivationFormulas)
    for (long double z = -6.97L; z < 7; z += 0.0625L) {  // away from 0, where some have a kink
      const long double h = 0x1p-12L;
      const long double difference = (formula.value(z + h) - formula.value(z - h)) / (2 * h);
      EXPECT_NEAR(static_cast<double>(formula.derivative(z)), static_cast<double>(difference), 1e-7)
          << formula.name << " at " << z;
    }
}

// Absolute near 1, where sums of numbers near 1 are rounded, and relative for large z.
TYPED_TEST(Activations, HaveTheValuesAndGradientsOfTheirDefinitions) {
  using T = TypeParam;
  std::mt19937 random(3);
  std::normal_distribution<T> normal;
  for (const ActivationFormula& formula : kActivationFormulas)
    for (int i = 0; i < 20000; ++i) {
      const T z = normal(random) * (i % 2 == 0 ? T(1) : T(8)), dh = normal(random);
      const auto value = static_cast<T>(formula.value(z)), slope = static_cast<T>(formula.derivative(z));
      const T bound = 4 * std::numeric_limits<T>::epsilon();
      ASSERT_NEAR(activations::value(formula.activation, z), value, bound * std::max(T(1), std::abs(z)))
          << formula.name << " at " << z;
      ASSERT_NEAR(this->gradient_at(formula.activation, z, dh), slope * dh,
                  bound * std::abs(dh) * std::max(T(1), std::abs(z)))
          << formula.name << " at " << z;
    }
}

// Where the gradient is as good as the smallest numbers: it does not end where 1 minus it is 1.
TYPED_TEST(Activations, KeepTheRelativeErrorOfSmallValues) {
  using T = TypeParam;
  const T far = sizeof(T) == 4 ? T(-80) : T(-700);
  for (T z = far; z < -20; z += T(0.37))
    for (const Activation activation : {Activation::sigmoid, Activation::softplus, Activation::silu}) {
      const auto formula =
          std::find_if(std::begin(kActivationFormulas), std::end(kActivationFormulas),
                       [&](const ActivationFormula& each) { return each.activation.kind == activation; });
      const long double value = formula->value(z), slope = formula->derivative(z);
      if (activation != Activation::softplus) {  // whose definition loses it
        EXPECT_NEAR(static_cast<double>(activations::value({activation}, z) / value), 1,
                    4 * std::numeric_limits<T>::epsilon())
            << formula->name << " at " << z;
      }
      EXPECT_NEAR(static_cast<double>(this->gradient_at({activation}, z, T(1)) / slope), 1,
                  8 * std::numeric_limits<T>::epsilon())
          << formula->name << " at " << z;
    }
}

TYPED_TEST(Activations, AreTheLimitAtInfinitiesAndNearThem) {
  using T = TypeParam;
  constexpr T most = std::numeric_limits<T>::max();
  struct Case {
    Activation activation;
    T low, high, low_slope, high_slope;
  };
  const T infinity = this->kInfinity, slope = T(0.01);
  for (const Case& c :
       {Case{Activation::relu, 0, infinity, 0, 1}, Case{Activation::identity, -infinity, infinity, 1, 1},
        Case{Activation::leaky_relu, -infinity, infinity, slope, 1}, Case{Activation::elu, -1, infinity, 0, 1},
        Case{Activation::silu, 0, infinity, 0, 1}, Case{Activation::gelu, 0, infinity, 0, 1},
        Case{Activation::gelu_tanh, 0, infinity, 0, 1}, Case{Activation::tanh, -1, 1, 0, 0},
        Case{Activation::sigmoid, 0, 1, 0, 0}, Case{Activation::softplus, 0, infinity, 0, 1}}) {
    EXPECT_EQ(activations::value({c.activation}, -infinity), c.low) << name_or_null(c.activation);
    EXPECT_EQ(activations::value({c.activation}, infinity), c.high) << name_or_null(c.activation);
    for (const T z : {infinity, most, T(1e30)}) {
      EXPECT_EQ(this->gradient_at({c.activation}, -z, T(1)), c.low_slope) << name_or_null(c.activation) << " " << z;
      EXPECT_EQ(this->gradient_at({c.activation}, z, T(1)), c.high_slope) << name_or_null(c.activation) << " " << z;
    }
  }
}

TYPED_TEST(Activations, PassNan) {
  using T = TypeParam;
  constexpr T nan = std::numeric_limits<T>::quiet_NaN();
  for (const ActivationFormula& formula : kActivationFormulas) {
    EXPECT_TRUE(std::isnan(activations::value(formula.activation, nan))) << formula.name;
    EXPECT_TRUE(std::isnan(this->gradient_at(formula.activation, nan, nan))) << formula.name;
    EXPECT_TRUE(std::isnan(this->gradient_at(formula.activation, T(1), nan))) << formula.name;
  }
}

TYPED_TEST(Activations, LeakyReluHasItsSlopeAtZero) {
  using T = TypeParam;
  EXPECT_EQ(this->gradient_at({Activation::leaky_relu}, T(0), T(1)), T(0.01));
  EXPECT_EQ(this->gradient_at({Activation::elu}, T(0), T(1)), T(1));
  EXPECT_EQ(this->gradient_at({Activation::leaky_relu}, -std::numeric_limits<T>::denorm_min(), T(1)), T(0.01));
}

// Of any slope, whatever its sign; at infinities, too, but for a slope of 0.
TYPED_TEST(Activations, LeakyReluHasTheSlopeThatIsAskedFor) {
  using T = TypeParam;
  std::mt19937 random(4);
  std::normal_distribution<T> normal;
  for (const double slope : {0.0, -0.0, 1e-4, 0.25, 1.0, 3.0, -1e-4, -0.25, -1.0, -7.0}) {
    SCOPED_TRACE(slope);
    const ActivationOfStep leaky{Activation::leaky_relu, slope};
    const T of_type = static_cast<T>(slope);
    for (int i = 0; i < 2000; ++i) {
      const T z = normal(random), dh = normal(random);
      ASSERT_EQ(activations::value(leaky, z), z > 0 ? z : of_type * z) << z;
      ASSERT_EQ(this->gradient_at(leaky, z, dh), z > 0 ? dh : of_type * dh) << z;
    }
    for (const T z : {T(0), T(-0.0)}) {
      EXPECT_EQ(activations::value(leaky, z), T(0));
      EXPECT_EQ(this->gradient_at(leaky, z, T(2)), 2 * of_type);
    }
    EXPECT_EQ(activations::value(leaky, this->kInfinity), this->kInfinity);
    EXPECT_EQ(this->gradient_at(leaky, this->kInfinity, T(3)), T(3));
    if (slope == 0) continue;
    EXPECT_EQ(activations::value(leaky, -this->kInfinity), -of_type * this->kInfinity);
    EXPECT_EQ(this->gradient_at(leaky, -this->kInfinity, T(3)), 3 * of_type);
  }
}

/// NaN has many patterns.
template <class T>
bool same_bits(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}

// The loops are vectorised, and compiled once more for processors with fused multiply-add; here are single elements.
TYPED_TEST(Activations, HaveTheSameBitsInTheCpusLoops) {
  using T = TypeParam;
  constexpr std::int64_t rows = 17, columns = 61;
  std::mt19937 random(5);
  std::normal_distribution<T> normal;
  std::vector<T> z(rows * columns), bias(columns), dh(rows * columns);
  // From the 512th on none is so large that a sine takes another way, which it is for 256 at a time.
  for (std::size_t i = 0; i < z.size(); ++i)
    z[i] = normal(random) * std::ldexp(T(1), static_cast<int>(random() % (i < 512 ? 40 : 26)) - 20);
  for (T& value : bias) value = normal(random);
  for (T& value : dh) value = normal(random);
  z[3] = std::numeric_limits<T>::quiet_NaN();
  z[70] = this->kInfinity;
  z[131] = -this->kInfinity;
  z[200] = T(-0.0);
  z[300] = T(1e30);
  for (const ActivationFormula& formula : kActivationFormulas)
    for (const bool has_bias : {false, true})
      for (const bool keeps : {false, true}) {
        SCOPED_TRACE(formula.name);
        std::vector<T> h(z.size()), kept(z.size()), dz = dh;
        bias_activation(formula.activation, h.data(), keeps ? kept.data() : nullptr, z.data(),
                        has_bias ? bias.data() : nullptr, rows, columns);
        const bool of_z = activations::keeps_pre_activation(formula.activation);
        std::vector<T> at(z.size());
        for (std::size_t i = 0; i < z.size(); ++i) {
          const T sum = has_bias ? z[i] + bias[i % columns] : z[i];
          const T value = activations::value(formula.activation, sum);
          ASSERT_TRUE(same_bits(h[i], value)) << "element " << i << " at " << sum << ": " << h[i] << ", " << value;
          if (keeps) {
            ASSERT_TRUE(same_bits(kept[i], sum)) << "element " << i;
          }
          at[i] = of_z ? sum : value;
        }
        through_activation(formula.activation, dz.data(), at.data(), rows * columns);
        for (std::size_t i = 0; i < z.size(); ++i)
          ASSERT_TRUE(same_bits(dz[i], activations::gradient(formula.activation, at[i], dh[i]))) << "element " << i;
      }
}

}  // namespace
}  // namespace deviceloop
