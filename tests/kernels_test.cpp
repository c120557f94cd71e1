// The public kernel layer on the CPU.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/kernels.h>

#include "elementwise.h"

namespace deviceloop {
namespace {

template <class T>
class Kernels : public testing::Test {
 protected:
  static constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(Kernels, Types);

template <class T>
std::span<const T> view(const std::vector<T>& values) {
  return values;
}

TYPED_TEST(Kernels, ReluOfTheNeuronOfTheStartingPageIs19) {
  using T = TypeParam;
  const std::array<T, 3> x = {2, 3, 4}, w = {1, -1, 5};
  const std::vector<T> z = {std::inner_product(x.begin(), x.end(), w.begin(), T(0))};
  std::vector<T> h(1);
  relu(h, view(z));
  EXPECT_EQ(h[0], T(19));
}

TYPED_TEST(Kernels, ReluPassesNaNAndKeepsNegativeZero) {
  using T = TypeParam;
  const std::vector<T> z = {
      T(-1), T(0), T(-0.0), T(2), this->kNaN, -this->kInfinity, this->kInfinity, -std::numeric_limits<T>::denorm_min()};
  std::vector<T> h(z.size());
  relu(h, view(z));
  EXPECT_EQ(h[0], T(0));
  EXPECT_EQ(h[1], T(0));
  EXPECT_FALSE(std::signbit(h[1]));
  EXPECT_TRUE(std::signbit(h[2]));
  EXPECT_EQ(h[3], T(2));
  EXPECT_TRUE(std::isnan(h[4]));
  EXPECT_EQ(h[5], T(0));
  EXPECT_EQ(h[6], this->kInfinity);
  EXPECT_EQ(h[7], T(0));
}

TYPED_TEST(Kernels, ReluGradientKeepsTheGradientAtExactlyZeroAndAtNaN) {
  using T = TypeParam;
  const std::vector<T> z = {T(-1), T(0), T(-0.0), T(2), this->kNaN, -std::numeric_limits<T>::denorm_min()};
  const std::vector<T> dh = {T(10), T(11), T(12), T(13), T(14), T(15)};
  std::vector<T> dz(z.size());
  relu_gradient(dz, view(z), view(dh));
  EXPECT_EQ(dz, (std::vector<T>{T(0), T(11), T(12), T(13), T(14), T(0)}));
}

TYPED_TEST(Kernels, ReluGradientHandsOnANaNGradientOnlyWhereItPasses) {
  using T = TypeParam;
  const std::vector<T> z = {T(-1), T(1)}, dh = {this->kNaN, this->kNaN};
  std::vector<T> dz(2);
  relu_gradient(dz, view(z), view(dh));
  EXPECT_EQ(dz[0], T(0));
  EXPECT_TRUE(std::isnan(dz[1]));
}

// The executors keep the mask in the sign of a zero; it must say the same as the pre-activation would.
TYPED_TEST(Kernels, TheMarkedMaskEqualsThatOfThePreActivation) {
  using T = TypeParam;
  const T negative_nan = std::copysign(this->kNaN, T(-1));
  for (const T z : {T(-1), T(0), T(-0.0), T(2), this->kNaN, negative_nan, -this->kInfinity, this->kInfinity,
                    -std::numeric_limits<T>::denorm_min(), std::numeric_limits<T>::denorm_min()}) {
    const T h = elementwise::relu_marked(z);
    EXPECT_EQ(elementwise::relu_gradient_marked(h, T(3)), elementwise::relu_gradient(z, T(3))) << z;
    if (std::isnan(z))
      EXPECT_TRUE(std::isnan(h));
    else
      EXPECT_EQ(h, elementwise::relu(z)) << z;
  }
}

TYPED_TEST(Kernels, SquaredErrorGivesLossAndGradientAtEveryOddSize) {
  using T = TypeParam;
  for (const std::size_t count : {0u, 1u, 7u, 8u, 9u, 31u, 32u, 33u, 255u, 256u, 257u, 1023u, 4097u}) {
    std::vector<T> p(count), y(count), gradient(count);
    double expected = 0;
    for (std::size_t i = 0; i < count; ++i) {
      p[i] = static_cast<T>(static_cast<int>(i * 37 % 19) - 9);
      y[i] = static_cast<T>(static_cast<int>(i * 11 % 7) - 3);
      expected += std::pow(static_cast<double>(p[i]) - static_cast<double>(y[i]), 2);
    }
    EXPECT_EQ(squared_error(gradient, view(p), view(y)), expected) << count;
    EXPECT_EQ(squared_error(std::span<T>(), view(p), view(y)), expected) << count;
    for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(gradient[i], 2 * (p[i] - y[i])) << i;
  }
}

TYPED_TEST(Kernels, SquaredErrorSumsInDoubleFromThirtyTwoTermsOn) {
  // A million ones: a sum in float alone would stop at 2^24.
  using T = TypeParam;
  const std::size_t count = (std::size_t{1} << 25) + 3;
  std::vector<T> p(count, T(1)), y(count, T(0));
  EXPECT_EQ(squared_error(std::span<T>(), view(p), view(y)), static_cast<double>(count));
}

TYPED_TEST(Kernels, SquaredErrorHandsOnNaN) {
  using T = TypeParam;
  std::vector<T> p(100, T(1)), y(100, T(0)), gradient(100);
  p[57] = this->kNaN;
  EXPECT_TRUE(std::isnan(squared_error(gradient, view(p), view(y))));
  EXPECT_TRUE(std::isnan(gradient[57]));
  EXPECT_EQ(gradient[56], T(2));
}

TYPED_TEST(Kernels, WorkInPlace) {
  using T = TypeParam;
  std::vector<T> values = {T(-1), T(2)};
  relu(values, view(values));
  EXPECT_EQ(values, (std::vector<T>{T(0), T(2)}));
  const std::vector<T> target = {T(1), T(1)};
  EXPECT_EQ(squared_error(values, view(values), view(target)), 2.0);
  EXPECT_EQ(values, (std::vector<T>{T(-2), T(2)}));
}

TYPED_TEST(Kernels, RefuseDifferentSizesAndPartialOverlap) {
  using T = TypeParam;
  std::vector<T> a(4), b(5);
  EXPECT_THROW(relu(a, view(b)), InvalidArgument);
  EXPECT_THROW(relu_gradient(a, view(a), view(b)), InvalidArgument);
  EXPECT_THROW(squared_error(a, view(b), view(b)), InvalidArgument);
  EXPECT_THROW(squared_error(std::span<T>(), view(a), view(b)), InvalidArgument);
  EXPECT_THROW(relu(std::span(b).subspan(1), std::span<const T>(b).first(4)), InvalidArgument);
  EXPECT_THROW(relu(std::span(b).first(4), std::span<const T>(b).subspan(1)), InvalidArgument);
  EXPECT_NO_THROW(relu(std::span(b).first(2), std::span<const T>(b).subspan(2, 2)));
}

TYPED_TEST(Kernels, RefuseSizesThatNoMemoryHas) {
  using T = TypeParam;
  std::vector<T> a(4);
  for (const std::size_t count : {SIZE_MAX, SIZE_MAX / sizeof(T), SIZE_MAX / sizeof(T) + 2, std::size_t{1} << 56}) {
    const std::span<T> out(a.data(), count);
    const std::span<const T> in(a.data(), count);
    EXPECT_THROW(relu(out, in), InvalidArgument) << count;
    EXPECT_THROW(relu_gradient(out, in, in), InvalidArgument) << count;
    EXPECT_THROW(squared_error(out, in, in), InvalidArgument) << count;
    EXPECT_THROW(squared_error(std::span<T>(), in, in), InvalidArgument) << count;
  }
}

TYPED_TEST(Kernels, RefuseNullRangesThatAreNotEmpty) {
  using T = TypeParam;
  std::vector<T> a(4);
  const std::span<T> none(static_cast<T*>(nullptr), 4);
  EXPECT_THROW(relu(none, view(a)), InvalidArgument);
  EXPECT_THROW(relu(a, none), InvalidArgument);
  EXPECT_THROW(relu_gradient(a, view(a), none), InvalidArgument);
  EXPECT_THROW(relu_gradient(a, none, view(a)), InvalidArgument);
  EXPECT_THROW(squared_error(std::span<T>(), none, view(a)), InvalidArgument);
  EXPECT_THROW(squared_error(none, view(a), view(a)), InvalidArgument);
  EXPECT_NO_THROW(relu(std::span<T>(), std::span<const T>()));
  EXPECT_EQ(squared_error(std::span<T>(), std::span<const T>(), std::span<const T>()), 0.0);
}

}  // namespace
}  // namespace deviceloop
