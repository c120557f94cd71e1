// The public kernel layer of <deviceloop/cuda.h> and the gathering of batches, on a GPU or on the host by tests/simt.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/cuda.h>
#include <deviceloop/error.h>
#include <deviceloop/kernels.h>

#include "../cuda/kernels/kernels.h"
#include "activations.h"
#include "cpu/cpu_kernels.h"
#include "support/activations.h"
#include "support/cuda_test.h"
#include "support/refusal.h"

namespace deviceloop {
namespace {

using testing::CudaTest;
using testing::DeviceArray;
using testing::expect_same;
using testing::random_integers;
using testing::random_values;
using testing::refusal;

/// One warp and its borders, one block of the smallest kernels, several blocks and a rest.
constexpr std::int64_t kCounts[] = {0, 1, 31, 32, 33, 1023, (1 << 16) + 1};
/// Elements off the border of 16 bytes.
constexpr int kOffsets[] = {0, 1, 2, 3};

template <class T>
class CudaKernels : public CudaTest {
 protected:
  static constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

  void SetUp() override {
    CudaTest::SetUp();
    if (!HasFatalFailure() && !IsSkipped()) stream_owner_ = std::make_unique<cuda::StreamOwner>();
  }
  const cuda::StreamOwner& owner() const { return *stream_owner_; }
  cuda::Stream stream() const { return stream_owner_->get(); }

  /// `count` numbers among which all that is special comes early and late.
  static std::vector<T> special_values(std::int64_t count, std::uint32_t seed) {
    std::vector<T> values = random_values<T>(count, seed);
    const T specials[] = {T(0),       T(-0.0),
                          kNaN,       -kNaN,
                          -kInfinity, kInfinity,
                          T(-1),      -std::numeric_limits<T>::denorm_min(),
                          T(19),      std::numeric_limits<T>::denorm_min(),
                          T(-0.0),    T(0)};
    for (std::size_t i = 0; i < values.size(); ++i)
      if (i % 29 < std::size(specials) && (i / 29) % 3 == 0) values[i] = specials[(i + i / 29) % std::size(specials)];
    return values;
  }

  /// 8-byte slots on the device, of exactly the size that was asked for.
  struct Workspace {
    explicit Workspace(std::size_t size) : bytes(size), slots(static_cast<std::int64_t>(size / sizeof(double))) {}
    void* data() const { return bytes == 0 ? nullptr : slots.data(); }
    std::size_t bytes;
    DeviceArray<double> slots;
  };

 private:
  std::unique_ptr<cuda::StreamOwner> stream_owner_;
};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CudaKernels, Types);

TYPED_TEST(CudaKernels, ReluIsThatOfTheCpuBitForBit) {
  using T = TypeParam;
  for (const std::int64_t count : kCounts)
    for (const int offset : kOffsets) {
      SCOPED_TRACE(std::to_string(count) + " elements, " + std::to_string(offset) + " off");
      const std::vector<T> in = this->special_values(count, 1);
      const DeviceArray<T> device_in(in, offset), device_out(count, offset == 3 ? 0 : offset);
      cuda::relu(device_out.data(), device_in.data(), count, this->stream());
      std::vector<T> expected(in.size());
      for (std::size_t i = 0; i < in.size(); ++i) expected[i] = in[i] < 0 ? T(0) : in[i];
      expect_same(device_out.read(this->owner()), expected);
      std::vector<T> twin(in.size());
      relu(twin, std::span<const T>(in));
      expect_same(twin, expected);
      cuda::relu(device_in.data(), device_in.data(), count, this->stream());
      expect_same(device_in.read(this->owner()), expected);
    }
}

TYPED_TEST(CudaKernels, ReluGradientIsThatOfTheCpuBitForBit) {
  using T = TypeParam;
  for (const std::int64_t count : kCounts)
    for (const int offset : kOffsets) {
      SCOPED_TRACE(std::to_string(count) + " elements, " + std::to_string(offset) + " off");
      const std::vector<T> z = this->special_values(count, 2), dh = this->special_values(count, 3);
      const DeviceArray<T> device_z(z, offset), device_dh(dh, offset), out(count, offset);
      cuda::relu_gradient(out.data(), device_z.data(), device_dh.data(), count, this->stream());
      std::vector<T> expected(z.size());
      for (std::size_t i = 0; i < z.size(); ++i) expected[i] = z[i] < 0 ? T(0) : dh[i];
      expect_same(out.read(this->owner()), expected);
      std::vector<T> twin(z.size());
      relu_gradient(twin, std::span<const T>(z), std::span<const T>(dh));
      expect_same(twin, expected);
      cuda::relu_gradient(device_dh.data(), device_z.data(), device_dh.data(), count, this->stream());
      expect_same(device_dh.read(this->owner()), expected);
    }
}

TYPED_TEST(CudaKernels, ReluGradientKeepsTheGradientAtExactlyZeroAndAtNaN) {
  using T = TypeParam;
  const DeviceArray<T> z({T(-1), T(0), T(-0.0), T(2), this->kNaN, -std::numeric_limits<T>::denorm_min()});
  const DeviceArray<T> dh(std::vector<T>(6, T(7))), dz(6);
  cuda::relu_gradient(dz.data(), z.data(), dh.data(), 6, this->stream());
  expect_same(dz.read(this->owner()), {T(0), T(7), T(7), T(7), T(7), T(0)});
}

// Both round after each operation.
TYPED_TEST(CudaKernels, AWeightedSumIsThatOfTheCpuBitForBit) {
  using T = TypeParam;
  for (const std::int64_t count : kCounts)
    for (const int offset : kOffsets)
      for (const auto& [a, b] : {std::pair(T(1), T(0)), std::pair(T(0.3), T(-1.7))}) {
        if (count == 0) continue;
        SCOPED_TRACE(std::to_string(count) + " elements, " + std::to_string(offset) + " off");
        const std::vector<T> x = this->special_values(count, 2), y = this->special_values(count, 3);
        const DeviceArray<T> device_x(x, offset), device_y(y, offset), out(count, offset);
        cuda::launch_weighted_sum<T>(out.data(), a, device_x.data(), b, device_y.data(), count, this->stream());
        std::vector<T> expected(x.size());
        for (std::size_t i = 0; i < x.size(); ++i) expected[i] = elementwise::weighted_sum(a, x[i], b, y[i]);
        expect_same(out.read(this->owner()), expected);
        cuda::launch_weighted_sum<T>(device_y.data(), a, device_x.data(), b, device_y.data(), count, this->stream());
        expect_same(device_y.read(this->owner()), expected);
      }
}

// Sizes for groups of several elements and for single ones, with bias and without, the pre-activation kept and not.
TYPED_TEST(CudaKernels, EveryActivationIsThatOfTheCpuBitForBit) {
  using T = TypeParam;
  const std::int64_t shapes[][2] = {{5, 33}, {130, 36}};
  for (const testing::ActivationFormula& formula : testing::kActivationFormulas)
    for (const auto& [batch, features] : shapes)
      for (const int offset : {0, 1})
        for (const bool keeps : {false, true}) {
          if (keeps && !activations::keeps_pre_activation(formula.activation)) continue;
          SCOPED_TRACE(formula.name + std::string(" ") + std::to_string(features) + (keeps ? ", kept" : ""));
          std::vector<T> z = this->special_values(batch * features, 4);
          const std::vector<T> bias = random_values<T>(features, 5), dh = random_values<T>(batch * features, 6);
          for (std::size_t i = 0; i < z.size(); ++i) z[i] *= std::ldexp(T(1), static_cast<int>(i % 37) - 18);
          const DeviceArray<T> device_z(z, offset), device_bias(bias, offset), device_dh(dh, offset);
          const DeviceArray<T> h(batch * features, offset), kept(batch * features, offset);
          const bool has_bias = offset == 0;
          cuda::launch_bias_activation<T>(formula.activation, h.data(), keeps ? kept.data() : nullptr, device_z.data(),
                                          has_bias ? device_bias.data() : nullptr, batch, features, this->stream());
          std::vector<T> expected(z.size()), expected_kept(z.size()), dz = dh;
          bias_activation(formula.activation, expected.data(), keeps ? expected_kept.data() : nullptr, z.data(),
                          has_bias ? bias.data() : nullptr, batch, features);
          expect_same(h.read(this->owner()), expected);
          if (keeps) expect_same(kept.read(this->owner()), expected_kept);
          const DeviceArray<T>& at = keeps ? kept : h;
          cuda::launch_activation_gradient<T>(formula.activation, device_dh.data(), at.data(), device_dh.data(),
                                              batch * features, this->stream());
          through_activation(formula.activation, dz.data(), keeps ? expected_kept.data() : expected.data(),
                             batch * features);
          expect_same(device_dh.read(this->owner()), dz);
        }
}

// Gradients by element are those of the CPU; by row, and in the loss, sums have another order.
TYPED_TEST(CudaKernels, LossesWithWeightsAreThoseOfTheCpu) {
  using T = TypeParam;
  const LossOfStep losses[] = {{Loss::squared_error},
                               {Loss::squared_error, 0.1},
                               {Loss::absolute_error, 0.1},
                               {Loss::huber, 0.1, 0.75},
                               {Loss::binary_cross_entropy, 0.1},
                               {Loss::cross_entropy, 0.1},
                               {Loss::cross_entropy, 1, 1, true}};
  const std::int64_t shapes[][2] = {{1, 2}, {9, 3}, {130, 4}, {33, 70}, {3, 5000}};
  for (const LossOfStep& loss : losses)
    for (const auto& [rows, columns] : shapes)
      for (const int offset : {0, 1}) {
        SCOPED_TRACE("loss " + std::to_string(static_cast<int>(loss.kind)) + ", " + std::to_string(rows) + " x " +
                     std::to_string(columns) + ", " + std::to_string(offset) + " off");
        const std::vector<T> prediction = random_values<T>(rows * columns, 4);
        std::vector<T> target = random_values<T>(loss.has_classes ? rows : rows * columns, 5);
        std::vector<T> weights = random_values<T>(rows, 6);
        for (std::size_t i = 0; i < target.size(); ++i)
          target[i] = loss.has_classes ? T(i * 7 % static_cast<std::size_t>(columns)) : std::abs(target[i]);
        for (T& weight : weights) weight = std::abs(weight);
        const DeviceArray<T> device_prediction(prediction, offset), device_target(target, offset);
        const DeviceArray<T> device_weights(weights, offset), gradient(rows * columns, offset);
        const std::int64_t slots =
            is_by_element(loss.kind) ? cuda::element_loss_slots<T>(rows * columns) : cuda::row_loss_slots(rows);
        const DeviceArray<double> sum(1), workspace(std::max<std::int64_t>(slots, 1));
        cuda::launch_loss(loss, {sum.data()}, gradient.data(), device_prediction.data(), device_target.data(),
                          static_cast<const T*>(device_weights.data()), rows, columns, workspace.data(),
                          this->stream());
        std::vector<T> expected(prediction.size());
        const double expected_sum = take_loss(loss, expected.data(), prediction.data(), target.data(),
                                              static_cast<const T*>(weights.data()), rows, columns);
        const std::vector<T> got = gradient.read(this->owner());
        if (is_by_element(loss.kind))
          expect_same(got, expected);
        else
          for (std::size_t i = 0; i < got.size(); ++i)
            ASSERT_NEAR(got[i], expected[i], 8 * std::numeric_limits<T>::epsilon() * (1 + weights[i / columns])) << i;
        EXPECT_NEAR(sum.read(this->owner())[0] / expected_sum, 1, 64 * std::numeric_limits<T>::epsilon());
      }
}

TYPED_TEST(CudaKernels, BiasReluKeepsTheMaskInTheSignOfItsZero) {
  using T = TypeParam;
  const std::int64_t shapes[][2] = {{0, 5},   {5, 0},    {1, 1},    {1, 33},    {33, 1},
                                    {31, 32}, {7, 1023}, {1030, 3}, {128, 100}, {3, 5000}};
  for (const auto& [batch, features] : shapes)
    for (const int offset : kOffsets)
      for (const bool has_bias : {true, false}) {
        SCOPED_TRACE(std::to_string(batch) + " x " + std::to_string(features) + ", " + std::to_string(offset) + " off");
        const std::vector<T> z = this->special_values(batch * features, 4), bias = random_values<T>(features, 5);
        const std::vector<T> dh = random_values<T>(batch * features, 6);
        const DeviceArray<T> device_z(z, offset), device_bias(bias, offset), h(batch * features, offset);
        const DeviceArray<T> device_dh(dh, offset), dz(batch * features, offset);
        const T* bias_or_none = has_bias ? device_bias.data() : nullptr;
        cuda::bias_relu(h.data(), device_z.data(), bias_or_none, batch, features, this->stream());
        cuda::mask_gradient(dz.data(), h.data(), device_dh.data(), batch * features, this->stream());
        std::vector<T> expected(z.size()), expected_gradient(z.size());
        for (std::size_t i = 0; i < z.size(); ++i) {
          const T sum = has_bias ? z[i] + bias[i % bias.size()] : z[i];
          expected[i] = sum < 0 ? T(-0.0) : sum == 0 ? T(0) : sum;
          expected_gradient[i] = sum < 0 ? T(0) : dh[i];
        }
        expect_same(h.read(this->owner()), expected);
        expect_same(dz.read(this->owner()), expected_gradient);
        cuda::bias_relu(device_z.data(), device_z.data(), bias_or_none, batch, features, this->stream());
        expect_same(device_z.read(this->owner()), expected);
        cuda::mask_gradient(h.data(), h.data(), device_dh.data(), batch * features, this->stream());
        expect_same(h.read(this->owner()), expected_gradient);
      }
}

TYPED_TEST(CudaKernels, SgdUpdateRoundsOnce) {
  using T = TypeParam;
  const T rate = T(1) / T(3);
  for (const std::int64_t count : kCounts)
    for (const int offset : kOffsets) {
      const std::vector<T> weights = random_values<T>(count, 7), dweights = random_values<T>(count, 8);
      const DeviceArray<T> device_weights(weights, offset), device_dweights(dweights, offset / 2);
      cuda::sgd_update(device_weights.data(), device_dweights.data(), rate, count, this->stream());
      std::vector<T> expected(weights.size());
      for (std::size_t i = 0; i < weights.size(); ++i) expected[i] = std::fma(-rate, dweights[i], weights[i]);
      expect_same(device_weights.read(this->owner()), expected);
    }
}

TYPED_TEST(CudaKernels, SquaredErrorOfIntegersIsExact) {
  using T = TypeParam;
  for (const std::int64_t count : kCounts)
    for (const int offset : kOffsets) {
      SCOPED_TRACE(std::to_string(count) + " elements, " + std::to_string(offset) + " off");
      const std::vector<T> prediction = random_integers<T>(count, 100, 9), target = random_integers<T>(count, 100, 10);
      const DeviceArray<T> device_prediction(prediction, offset), device_target(target, offset),
          gradient(count, offset);
      const DeviceArray<double> loss(1);
      const typename TestFixture::Workspace workspace(cuda::squared_error_workspace(count));
      cuda::squared_error(loss.data(), gradient.data(), device_prediction.data(), device_target.data(), count,
                          workspace.data(), workspace.bytes, this->stream());
      std::int64_t sum = 0;
      std::vector<T> expected(prediction.size());
      for (std::size_t i = 0; i < prediction.size(); ++i) {
        const auto difference = static_cast<std::int64_t>(prediction[i]) - static_cast<std::int64_t>(target[i]);
        sum += difference * difference;
        expected[i] = static_cast<T>(2 * difference);
      }
      EXPECT_EQ(loss.read(this->owner())[0], static_cast<double>(sum));
      expect_same(gradient.read(this->owner()), expected);
      // The loss alone, and the gradient in place of the prediction.
      cuda::squared_error(loss.data(), static_cast<T*>(nullptr), device_prediction.data(), device_target.data(), count,
                          workspace.data(), workspace.bytes, this->stream());
      EXPECT_EQ(loss.read(this->owner())[0], static_cast<double>(sum));
      cuda::squared_error(loss.data(), device_prediction.data(), device_prediction.data(), device_target.data(), count,
                          workspace.data(), workspace.bytes, this->stream());
      EXPECT_EQ(loss.read(this->owner())[0], static_cast<double>(sum));
      expect_same(device_prediction.read(this->owner()), expected);
      workspace.slots.read(this->owner());
    }
}

TYPED_TEST(CudaKernels, SquaredErrorIsNearTheSumInDoubleAndTheSameWhereverItsArraysLie) {
  using T = TypeParam;
  for (const std::int64_t count : {std::int64_t{1000}, std::int64_t{50021}}) {
    const std::vector<T> prediction = random_values<T>(count, 11), target = random_values<T>(count, 12);
    long double sum = 0, twice = 0;
    std::vector<T> cpu_gradient(prediction.size());
    for (std::size_t i = 0; i < prediction.size(); ++i) {
      const T difference = prediction[i] - target[i];
      sum += static_cast<long double>(difference) * difference;
      twice += std::abs(static_cast<long double>(difference));
    }
    ASSERT_GT(twice, 0);
    squared_error(std::span<T>(cpu_gradient), std::span<const T>(prediction), std::span<const T>(target));
    double first = 0;
    for (const int offset : kOffsets) {
      const DeviceArray<T> device_prediction(prediction, offset), device_target(target), gradient(count, offset);
      const DeviceArray<double> loss(1);
      const typename TestFixture::Workspace workspace(cuda::squared_error_workspace(count));
      cuda::squared_error(loss.data(), gradient.data(), device_prediction.data(), device_target.data(), count,
                          workspace.data(), workspace.bytes, this->stream());
      const double result = loss.read(this->owner())[0];
      if (offset == 0) first = result;
      EXPECT_EQ(result, first);
      EXPECT_NEAR(result / static_cast<double>(sum), 1, sizeof(T) == 4 ? 1e-6 : 1e-15);
      expect_same(gradient.read(this->owner()), cpu_gradient);
    }
  }
}

TYPED_TEST(CudaKernels, SquaredErrorShowsNaNAndInfinity) {
  using T = TypeParam;
  for (const T bad : {this->kNaN, this->kInfinity}) {
    std::vector<T> prediction(5000, T(1));
    prediction[4999] = bad;
    const DeviceArray<T> device_prediction(prediction), target(std::vector<T>(5000, T(1))), gradient(5000);
    const DeviceArray<double> loss(1);
    const typename TestFixture::Workspace workspace(cuda::squared_error_workspace(5000));
    cuda::squared_error(loss.data(), gradient.data(), device_prediction.data(), target.data(), 5000, workspace.data(),
                        workspace.bytes, this->stream());
    EXPECT_TRUE(testing::same(loss.read(this->owner())[0], static_cast<double>(bad)));
    EXPECT_TRUE(testing::same(gradient.read(this->owner())[4999], bad));
    EXPECT_EQ(gradient.read(this->owner())[4998], T(0));
  }
}

TYPED_TEST(CudaKernels, ColumnSumsOfIntegersAreExact) {
  using T = TypeParam;
  const std::int64_t shapes[][2] = {{0, 3},    {3, 0},    {1, 1},     {1, 33},   {33, 1},   {32, 31},  {255, 32},
                                    {256, 33}, {257, 16}, {128, 100}, {1023, 5}, {8193, 1}, {20000, 2}};
  for (const auto& [batch, features] : shapes)
    for (const int offset : {0, 1}) {
      SCOPED_TRACE(std::to_string(batch) + " x " + std::to_string(features));
      const std::vector<T> matrix = random_integers<T>(batch * features, 50, 13);
      const DeviceArray<T> device_matrix(matrix, offset), sums(features, offset);
      const typename TestFixture::Workspace workspace(cuda::column_sums_workspace(batch, features));
      cuda::column_sums(sums.data(), device_matrix.data(), batch, features, workspace.data(), workspace.bytes,
                        this->stream());
      std::vector<T> expected(static_cast<std::size_t>(features));
      for (std::size_t i = 0; i < matrix.size(); ++i) expected[i % expected.size()] += matrix[i];
      expect_same(sums.read(this->owner()), expected);
      workspace.slots.read(this->owner());
    }
}

/// A narrow layer in long double, from the equations.
template <class T>
struct NarrowReference {
  NarrowReference(const std::vector<T>& in, const std::vector<T>& weights, const std::vector<T>& dout,
                  std::int64_t batch, std::int64_t in_features, std::int64_t out_features)
      : out(static_cast<std::size_t>(batch * out_features)), din(in.size()), dweights(weights.size()) {
    for (std::int64_t n = 0; n < batch; ++n)
      for (std::int64_t f = 0; f < in_features; ++f)
        for (std::int64_t o = 0; o < out_features; ++o) {
          const auto x = static_cast<std::size_t>(n * in_features + f);
          const auto w = static_cast<std::size_t>(f * out_features + o);
          const auto y = static_cast<std::size_t>(n * out_features + o);
          out[y] += static_cast<long double>(in[x]) * weights[w];
          din[x] += static_cast<long double>(dout[y]) * weights[w];
          dweights[w] += static_cast<long double>(in[x]) * dout[y];
        }
  }
  std::vector<long double> out, din, dweights;
};

/// Relative Frobenius error; above 1 where the reference has no norm.
template <class T>
double relative_error(const std::vector<T>& actual, const std::vector<long double>& expected) {
  long double error = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return norm > 0 ? static_cast<double>(std::sqrt(error / norm)) : 2;
}

struct NarrowShape {
  std::int64_t batch, in_features, out_features;
};
constexpr NarrowShape kNarrowShapes[] = {{1, 1, 1},     {1, 33, 16},  {33, 1, 3},  {128, 100, 1},
                                         {7, 31, 2},    {9, 129, 5},  {31, 64, 8}, {32, 65, 10},
                                         {257, 40, 16}, {8195, 6, 1}, {8192, 8, 2}};
/// For the gradient: a tile with as many rows as one may have, several tiles of rows, and across.
constexpr NarrowShape kNarrowGradientShapes[] = {{4096, 9, 1}, {4097, 133, 1}, {4500, 17, 3}, {4100, 5, 16}};

TYPED_TEST(CudaKernels, NarrowLinearOfIntegersIsExact) {
  using T = TypeParam;
  for (const auto& [batch, in_features, out_features] : kNarrowShapes)
    for (const int offset : {0, 1})
      for (const bool has_bias : {false, true}) {
        if (batch > 8000 && (offset == 1 || !has_bias))
          continue;  // long on the host, and the same code as smaller ones
        SCOPED_TRACE(std::to_string(batch) + " x " + std::to_string(in_features) + " x " +
                     std::to_string(out_features));
        const std::vector<T> in = random_integers<T>(batch * in_features, 9, 14);
        const std::vector<T> weights = random_integers<T>(in_features * out_features, 9, 15);
        const std::vector<T> bias = random_integers<T>(out_features, 9, 16);
        const std::vector<T> dout(static_cast<std::size_t>(batch * out_features));
        const NarrowReference<T> reference(in, weights, dout, batch, in_features, out_features);
        const DeviceArray<T> device_in(in, offset), device_weights(weights, offset), device_bias(bias);
        const DeviceArray<T> out(batch * out_features, offset);
        cuda::narrow_linear(out.data(), device_in.data(), device_weights.data(),
                            has_bias ? device_bias.data() : nullptr, batch, in_features, out_features, this->stream());
        std::vector<T> expected(reference.out.begin(), reference.out.end());
        for (std::size_t i = 0; has_bias && i < expected.size(); ++i) expected[i] += bias[i % bias.size()];
        expect_same(out.read(this->owner()), expected);
      }
}

TYPED_TEST(CudaKernels, NarrowLinearGradientOfIntegersIsExact) {
  using T = TypeParam;
  std::vector<NarrowShape> shapes(std::begin(kNarrowShapes), std::end(kNarrowShapes));
  shapes.insert(shapes.end(), std::begin(kNarrowGradientShapes), std::end(kNarrowGradientShapes));
  for (const auto& [batch, in_features, out_features] : shapes)
    for (const int offset : {0, 1}) {
      if (batch > 4000 && offset == 1 && in_features > 9) continue;  // long on the host
      SCOPED_TRACE(std::to_string(batch) + " x " + std::to_string(in_features) + " x " + std::to_string(out_features));
      std::vector<T> h = random_integers<T>(batch * in_features, 4, 17);
      for (T& value : h) value = value < 0 ? T(-0.0) : value;
      const std::vector<T> weights = random_integers<T>(in_features * out_features, 9, 18);
      const std::vector<T> dout = random_integers<T>(batch * out_features, 9, 19);
      const NarrowReference<T> reference(h, weights, dout, batch, in_features, out_features);
      std::vector<T> dz(reference.din.begin(), reference.din.end());
      for (std::size_t i = 0; i < h.size(); ++i)
        if (h[i] == 0 && std::signbit(h[i])) dz[i] = 0;
      const std::vector<T> dweights(reference.dweights.begin(), reference.dweights.end());

      const DeviceArray<T> device_h(h, offset), device_weights(weights), device_dout(dout, offset);
      const DeviceArray<T> device_dz(batch * in_features, offset), device_dweights(in_features * out_features, offset);
      const typename TestFixture::Workspace workspace(
          cuda::narrow_linear_gradient_workspace(batch, in_features, out_features));
      const auto gradient = [&](T* to) {
        cuda::narrow_linear_gradient(to, device_dweights.data(), device_h.data(), device_dout.data(),
                                     device_weights.data(), batch, in_features, out_features, workspace.data(),
                                     workspace.bytes, this->stream());
      };
      gradient(nullptr);
      expect_same(device_dweights.read(this->owner()), dweights);
      gradient(device_dz.data());
      expect_same(device_dweights.read(this->owner()), dweights);
      expect_same(device_dz.read(this->owner()), dz);
      gradient(device_h.data());
      expect_same(device_dweights.read(this->owner()), dweights);
      expect_same(device_h.read(this->owner()), dz);
      workspace.slots.read(this->owner());
    }
}

// By the graph executor: the update in the same launch, which takes dz by the weights before, of the bias as well.
TYPED_TEST(CudaKernels, NarrowLinearGradientUpdatesWeightsAndBiasByEveryOptimizer) {
  using T = TypeParam;
  elementwise::StepScalars<T> of_step;
  of_step.learning_rate = of_step.weight_decay = T(0.25);
  of_step.momentum = of_step.one_minus_beta1 = of_step.one_minus_beta2 = of_step.adam_rate = T(0.5);
  of_step.beta2 = of_step.root_correction = T(0.75);
  of_step.epsilon = T(0.125);
  of_step.clip_value = T(100);
  std::vector<T> bytes(sizeof of_step / sizeof(T));
  std::memcpy(bytes.data(), &of_step, sizeof of_step);
  const DeviceArray<T> scalars(bytes);
  const auto* const device_scalars = reinterpret_cast<const elementwise::StepScalars<T>*>(scalars.data());
  struct Case {
    NarrowShape shape;
    OptimizerKind optimizer;
  };
  const Case cases[] = {{{1, 1, 1}, OptimizerKind::gradient_descent}, {{3, 300, 7}, OptimizerKind::sgd},
                        {{64, 128, 10}, OptimizerKind::adam},         {{128, 100, 1}, OptimizerKind::adamw},
                        {{260, 6, 16}, OptimizerKind::rmsprop},       {{4097, 10, 2}, OptimizerKind::gradient_descent},
                        {{4097, 10, 2}, OptimizerKind::adam}};
  for (const auto& [shape, optimizer] : cases)
    for (const bool masked : {true, false}) {
      const auto& [batch, in_features, out_features] = shape;
      SCOPED_TRACE(std::to_string(batch) + " x " + std::to_string(in_features) + " x " + std::to_string(out_features));
      std::vector<T> h = random_integers<T>(batch * in_features, 4, 26);
      for (T& value : h) value = value < 0 ? T(-0.0) : value;
      const std::vector<T> weights = random_integers<T>(in_features * out_features, 9, 27);
      const std::vector<T> bias = random_integers<T>(out_features, 9, 29);
      const std::vector<T> dout = random_integers<T>(batch * out_features, 9, 28);
      const NarrowReference<T> reference(h, weights, dout, batch, in_features, out_features);
      std::vector<T> dz(reference.din.begin(), reference.din.end());
      for (std::size_t i = 0; masked && i < h.size(); ++i)
        if (h[i] == 0 && std::signbit(h[i])) dz[i] = 0;
      std::vector<T> dweights(reference.dweights.begin(), reference.dweights.end()), dbias(bias.size());
      for (std::size_t i = 0; i < dout.size(); ++i) dbias[i % dbias.size()] += dout[i];

      /// A parameter and its states, before and, as expected, after.
      struct Parameter {
        std::vector<T> expected[1 + elementwise::kMostStates];
        std::vector<DeviceArray<T>> arrays;
        cuda::GradientEnd<T> end;
      };
      const auto states = elementwise::states_of(optimizer).size();
      const auto make = [&](const std::vector<T>& values, const std::vector<T>& gradient) {
        Parameter made;
        made.expected[0] = values;
        for (std::size_t state = 1; state <= states; ++state) {
          made.expected[state] =
              random_integers<T>(static_cast<std::int64_t>(values.size()), 9, static_cast<std::uint32_t>(30 + state));
          for (T& value : made.expected[state]) value = std::abs(value);
        }
        for (std::size_t array = 0; array <= states; ++array) made.arrays.emplace_back(made.expected[array]);
        made.end = {made.arrays[0].data(), device_scalars, optimizer, {}};
        for (std::size_t state = 0; state < states; ++state)
          made.end.state.values[state] = made.arrays[state + 1].data();
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          T kept[elementwise::kMostStates] = {};
          for (std::size_t state = 0; state < states; ++state) kept[state] = made.expected[state + 1][i];
          elementwise::update(optimizer, made.expected[0][i], kept, gradient[i], of_step);
          for (std::size_t state = 0; state < states; ++state) made.expected[state + 1][i] = kept[state];
        }
        return made;
      };
      const Parameter weight = make(weights, dweights), of_bias = make(bias, dbias);
      const DeviceArray<T> device_h(h), device_dout(dout);
      const typename TestFixture::Workspace workspace(
          cuda::narrow_linear_gradient_workspace(batch, in_features, out_features));
      cuda::launch_narrow_linear_gradient<T>(
          masked, device_h.data(), weight.end, of_bias.end, device_h.data(), device_dout.data(), weight.end.out, batch,
          in_features, static_cast<int>(out_features), static_cast<double*>(workspace.data()), this->stream());
      for (const Parameter* const parameter : {&weight, &of_bias})
        for (std::size_t array = 0; array <= states; ++array)
          expect_same(parameter->arrays[array].read(this->owner()), parameter->expected[array]);
      expect_same(device_h.read(this->owner()), dz);
      workspace.slots.read(this->owner());
    }
}

TYPED_TEST(CudaKernels, NarrowLinearGradientPassesNaN) {
  using T = TypeParam;
  const std::int64_t batch = 130, in_features = 9;
  std::vector<T> h = random_values<T>(batch * in_features, 29), dout = random_values<T>(batch, 30);
  for (T& value : h) value = elementwise::relu_marked(value);
  const std::vector<T> weights = random_values<T>(in_features, 31);
  const std::size_t row = 97;
  dout[row] = this->kNaN;
  h[0] = this->kNaN;
  const DeviceArray<T> device_h(h), device_weights(weights), device_dout(dout), dz(batch * in_features);
  const DeviceArray<T> dweights(in_features);
  cuda::narrow_linear_gradient(dz.data(), dweights.data(), device_h.data(), device_dout.data(), device_weights.data(),
                               batch, in_features, 1, nullptr, 0, this->stream());
  for (const T sum : dweights.read(this->owner())) EXPECT_TRUE(std::isnan(sum));
  const std::vector<T> below = dz.read(this->owner());
  int passed = 0;
  for (std::size_t i = 0; i < below.size(); ++i) {
    const bool has_passed = i / in_features == row && !elementwise::is_marked(h[i]);
    EXPECT_EQ(std::isnan(below[i]), has_passed) << i;
    passed += has_passed;
  }
  EXPECT_GT(passed, 0);
  EXPECT_LT(passed, in_features);
}

TYPED_TEST(CudaKernels, NarrowLayerIsWithinTheBoundsOfItsPrecision) {
  using T = TypeParam;
  const std::int64_t batch = 300, in_features = 1000, out_features = 3;
  const double unit = sizeof(T) == 4 ? std::ldexp(1.0, -24) : std::ldexp(1.0, -53);
  const std::vector<T> h = random_values<T>(batch * in_features, 20);
  const std::vector<T> weights = random_values<T>(in_features * out_features, 21);
  const std::vector<T> dout = random_values<T>(batch * out_features, 22);
  const NarrowReference<T> reference(h, weights, dout, batch, in_features, out_features);
  const DeviceArray<T> device_h(h), device_weights(weights), device_dout(dout);
  const DeviceArray<T> out(batch * out_features), dz(batch * in_features), dweights(in_features * out_features);
  const typename TestFixture::Workspace workspace(
      cuda::narrow_linear_gradient_workspace(batch, in_features, out_features));
  cuda::narrow_linear(out.data(), device_h.data(), device_weights.data(), static_cast<const T*>(nullptr), batch,
                      in_features, out_features, this->stream());
  cuda::narrow_linear_gradient(dz.data(), dweights.data(), device_h.data(), device_dout.data(), device_weights.data(),
                               batch, in_features, out_features, workspace.data(), workspace.bytes, this->stream());
  EXPECT_LE(relative_error(out.read(this->owner()), reference.out), std::sqrt(in_features) * unit);
  EXPECT_LE(relative_error(dz.read(this->owner()), reference.din), std::sqrt(out_features) * unit);
  EXPECT_LE(relative_error(dweights.read(this->owner()), reference.dweights), std::sqrt(batch) * unit);
}

/// FNV-1a over the bits.
template <class T>
std::uint64_t hash_of(const std::vector<T>& values) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (std::size_t i = 0; i < values.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

// The sums have one order on every machine and every product is rounded as it is written: what was recorded on the host
// must come from every GPU, bit for bit.
TYPED_TEST(CudaKernels, SumsHaveTheRecordedBits) {
  using T = TypeParam;
  const std::int64_t batch = 700, in_features = 130, out_features = 3;
  const std::vector<T> h = random_values<T>(batch * in_features, 23);
  const std::vector<T> weights = random_values<T>(in_features * out_features, 24);
  const std::vector<T> dout = random_values<T>(batch * out_features, 25);
  const DeviceArray<T> device_h(h), device_weights(weights), device_dout(dout), out(batch * out_features);
  const DeviceArray<T> dz(batch * in_features), dweights(in_features * out_features), sums(in_features);
  const DeviceArray<double> loss(1);
  const std::int64_t count = batch * in_features;
  const typename TestFixture::Workspace workspace(
      std::max({cuda::narrow_linear_gradient_workspace(batch, in_features, out_features),
                cuda::column_sums_workspace(batch, in_features), cuda::squared_error_workspace(count)}));
  cuda::narrow_linear(out.data(), device_h.data(), device_weights.data(), static_cast<const T*>(nullptr), batch,
                      in_features, out_features, this->stream());
  cuda::narrow_linear_gradient(dz.data(), dweights.data(), device_h.data(), device_dout.data(), device_weights.data(),
                               batch, in_features, out_features, workspace.data(), workspace.bytes, this->stream());
  cuda::column_sums(sums.data(), dz.data(), batch, in_features, workspace.data(), workspace.bytes, this->stream());
  cuda::squared_error(loss.data(), static_cast<T*>(nullptr), dz.data(), device_h.data(), count, workspace.data(),
                      workspace.bytes, this->stream());
  const bool is_float = sizeof(T) == 4;
  EXPECT_EQ(hash_of(out.read(this->owner())), is_float ? 0x85c45e4dbb17228bu : 0xe2e7791f1c82e6f0u);
  EXPECT_EQ(hash_of(dz.read(this->owner())), is_float ? 0x0bc9c756d8c17bbeu : 0x774903acc3ff06dfu);
  EXPECT_EQ(hash_of(dweights.read(this->owner())), is_float ? 0x3fa740a02c676a20u : 0x3a1cb1dc94206253u);
  EXPECT_EQ(hash_of(sums.read(this->owner())), is_float ? 0xd5a4efd0744e503eu : 0x2aac43bc0613d961u);
  EXPECT_EQ(hash_of(loss.read(this->owner())), is_float ? 0xcfa2b136c0f70001u : 0xdbb5653ab8cc958cu);
}

struct GatherShape {
  std::int64_t rows, columns, samples;
};
/// Several tiles down and across, rows that are more than the samples, single rows, columns and samples.
constexpr GatherShape kGatherShapes[] = {{1, 1, 1},    {1, 1, 5},    {5, 1, 3},    {1500, 1, 7},     {3, 2, 1000},
                                         {7, 4, 5},    {9, 3, 4},    {70, 64, 65}, {1030, 12, 4097}, {300, 33, 17},
                                         {7, 4099, 6}, {9, 4100, 5}, {1, 5000, 2}, {2, 100000, 3}};

TYPED_TEST(CudaKernels, GatherRowsTakesTheSamplesOfTheStep) {
  using T = TypeParam;
  for (const auto& [rows, columns, samples] : kGatherShapes) {
    std::vector<T> data(static_cast<std::size_t>(samples * columns));
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<T>(i);
    for (const int offset : {0, 1})
      for (const std::int64_t step : {std::int64_t{0}, std::int64_t{1}, (std::int64_t{1} << 33) + 1})
        for (const bool shuffled : {true, false}) {
          // Some wide ones are left out: they are long on the host, and the same code as smaller ones.
          if (columns >= 5000 && (offset == 1 || step == 1)) continue;
          SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + " of " + std::to_string(samples) +
                       ", step " + std::to_string(step) + ", " + std::to_string(offset) + " off");
          const DeviceArray<T> device_data(data, offset), out(rows * columns, offset);
          const DeviceArray<std::int64_t> device_step(std::vector<std::int64_t>{step});
          const BatchOrder order{0x0123456789abcdefu, samples, shuffled};
          const cuda::GatheredRows<T> matrix{out.data(), device_data.data(), columns};
          cuda::launch_gather_rows<T>({&matrix, 1}, order, device_step.data(), rows, this->stream());
          std::vector<T> expected;
          for (std::int64_t position = step * rows; position < (step + 1) * rows; ++position) {
            const std::int64_t index = position % samples;
            const std::int64_t sample =
                shuffled ? sample_of(0x0123456789abcdefu, samples, position / samples, index) : index;
            const auto row = data.begin() + static_cast<std::ptrdiff_t>(sample * columns);
            expected.insert(expected.end(), row, row + static_cast<std::ptrdiff_t>(columns));
          }
          expect_same(out.read(this->owner()), expected);
          if (::testing::Test::HasFatalFailure()) return;
        }
  }
}

// Arrays of which only one is aligned to 16 bytes.
TYPED_TEST(CudaKernels, GatherRowsWritesWhereNoVectorFits) {
  using T = TypeParam;
  const std::vector<T> data = random_values<T>(6 * 8, 30);
  const DeviceArray<std::int64_t> step(std::vector<std::int64_t>{0});
  for (const int offset : kOffsets) {
    const DeviceArray<T> device_data(data, offset), out(6 * 8, 3 - offset);
    const cuda::GatheredRows<T> matrix{out.data(), device_data.data(), 8};
    cuda::launch_gather_rows<T>({&matrix, 1}, BatchOrder{0, 6, false}, step.data(), 6, this->stream());
    expect_same(out.read(this->owner()), data);
  }
}

// Inputs, targets and weights by one launch, of which some take vectors.
TYPED_TEST(CudaKernels, GatherRowsTakesTheSameSamplesOfEachMatrix) {
  using T = TypeParam;
  const std::int64_t samples = 50, rows = 33;
  const BatchOrder order{9, samples, true};
  const DeviceArray<std::int64_t> step(std::vector<std::int64_t>{3});
  const std::vector<std::int64_t> columns = {1032, 3, 1};
  std::vector<std::vector<T>> data;
  std::vector<DeviceArray<T>> device_data, out;
  std::vector<cuda::GatheredRows<T>> matrices;
  for (const std::int64_t width : columns) {
    data.push_back(random_values<T>(samples * width, static_cast<std::uint32_t>(40 + width)));
    device_data.emplace_back(data.back());
    out.emplace_back(rows * width);
  }
  for (std::size_t i = 0; i < columns.size(); ++i)
    matrices.push_back({out[i].data(), device_data[i].data(), columns[i]});
  cuda::launch_gather_rows<T>(matrices, order, step.data(), rows, this->stream());
  for (std::size_t i = 0; i < columns.size(); ++i) {
    std::vector<T> expected;
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto from = data[i].begin() + static_cast<std::ptrdiff_t>(order.sample(3 * rows + row) * columns[i]);
      expected.insert(expected.end(), from, from + static_cast<std::ptrdiff_t>(columns[i]));
    }
    expect_same(out[i].read(this->owner()), expected);
  }
}

using CudaKernelArguments = CudaTest;

TEST_F(CudaKernelArguments, NullIsRefusedWhereThereAreElements) {
  const DeviceArray<float> a(8), b(8);
  const auto message = refusal("cuda::relu: ", [&] { cuda::relu(a.data(), static_cast<float*>(nullptr), 8, nullptr); });
  EXPECT_MENTIONS(message, "in is null, but has 8 elements");
  EXPECT_MENTIONS(refusal("cuda::relu: ", [&] { cuda::relu(static_cast<float*>(nullptr), a.data(), 8, nullptr); }),
                  "out is null");
  cuda::relu(static_cast<float*>(nullptr), static_cast<float*>(nullptr), 0, nullptr);
}

TEST_F(CudaKernelArguments, SizesThatNoMemoryHasAreRefused) {
  const DeviceArray<double> a(8), b(8);
  EXPECT_MENTIONS(refusal("cuda::relu: ", [&] { cuda::relu(a.data(), b.data(), -1, nullptr); }), "a size of -1");
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max() / 4;
  EXPECT_MENTIONS(refusal("cuda::relu: ", [&] { cuda::relu(a.data(), b.data(), huge, nullptr); }),
                  std::to_string(huge) + " x 1 elements of 8 bytes");
  EXPECT_MENTIONS(
      refusal("cuda::bias_relu: ",
              [&] { cuda::bias_relu(a.data(), b.data(), static_cast<double*>(nullptr), huge, 5, nullptr); }),
      "more than any memory can hold");
  EXPECT_MENTIONS(refusal("cuda::squared_error_workspace: ", [&] { cuda::squared_error_workspace(-3); }), "-3");
  EXPECT_MENTIONS(refusal("cuda::column_sums_workspace: ", [&] { cuda::column_sums_workspace(huge, 9); }), "x 9");
}

TEST_F(CudaKernelArguments, RangesThatOverlapAreRefused) {
  const DeviceArray<float> a(16), b(16), c(16);
  const DeviceArray<double> loss(1);
  EXPECT_MENTIONS(refusal("cuda::relu: ", [&] { cuda::relu(a.data() + 1, a.data(), 8, nullptr); }),
                  "out overlaps in in part; pass the same range or separate ones");
  EXPECT_MENTIONS(refusal("cuda::sgd_update: ", [&] { cuda::sgd_update(a.data(), a.data(), 1.f, 8, nullptr); }),
                  "weights overlaps dweights; pass separate ranges");
  EXPECT_MENTIONS(
      refusal(
          "cuda::narrow_linear: ",
          [&] { cuda::narrow_linear(a.data(), a.data(), b.data(), static_cast<float*>(nullptr), 2, 2, 2, nullptr); }),
      "out overlaps in");
  EXPECT_MENTIONS(refusal("cuda::squared_error: ",
                          [&] {
                            cuda::squared_error(reinterpret_cast<double*>(a.data()), c.data(), a.data(), b.data(), 8,
                                                nullptr, 0, nullptr);
                          }),
                  "loss overlaps prediction");
}

TEST_F(CudaKernelArguments, PointersBetweenElementsAreRefused) {
  const DeviceArray<double> a(8), b(8);
  auto* askew = reinterpret_cast<double*>(reinterpret_cast<char*>(a.data()) + 4);
  EXPECT_MENTIONS(refusal("cuda::relu: ", [&] { cuda::relu(b.data(), askew, 4, nullptr); }),
                  "in is not aligned to its elements of 8 bytes");
}

TEST_F(CudaKernelArguments, AWorkspaceThatIsTooSmallIsRefused) {
  const std::int64_t count = 100000;
  const std::size_t needed = cuda::squared_error_workspace(count);
  ASSERT_GT(needed, 0u);
  const DeviceArray<float> prediction(count), target(count);
  const DeviceArray<double> loss(1), workspace(static_cast<std::int64_t>(needed / 8));
  const auto message = refusal("cuda::squared_error: ", [&] {
    cuda::squared_error(loss.data(), static_cast<float*>(nullptr), prediction.data(), target.data(), count,
                        workspace.data(), needed - 8, nullptr);
  });
  EXPECT_MENTIONS(message, "the workspace has " + std::to_string(needed - 8) + " bytes, but " + std::to_string(needed) +
                               " are needed");
  EXPECT_MENTIONS(message, "squared_error_workspace");
}

TEST_F(CudaKernelArguments, ALayerThatIsNotNarrowIsRefused) {
  const DeviceArray<float> a(64), b(64), c(64);
  for (const std::int64_t outputs : {0, 17})
    EXPECT_MENTIONS(refusal("cuda::narrow_linear: ",
                            [&] {
                              cuda::narrow_linear(a.data(), b.data(), c.data(), static_cast<float*>(nullptr), 1, 1,
                                                  outputs, nullptr);
                            }),
                    std::to_string(outputs) + " outputs, but a narrow layer has 1 to 16");
}

}  // namespace
}  // namespace deviceloop
