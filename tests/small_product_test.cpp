// The own products of small matrices and what ends them, on a GPU or on the host by tests/simt.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../cuda/kernels/kernels.h"
#include "support/cuda_test.h"

namespace deviceloop {
namespace {

using cuda::ProductEnd;
using cuda::ProductShape;
using cuda::SmallProductLayout;
using testing::DeviceArray;
using testing::expect_same;
using testing::random_integers;
using testing::random_values;

class SmallProduct : public testing::CudaTest {
 protected:
  static constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

  /// Operands as they lie, and the product in long double, from the definition.
  struct Problem {
    ProductShape shape;
    std::vector<float> a, b;

    std::vector<long double> product() const {
      std::vector<long double> out(static_cast<std::size_t>(shape.rows * shape.columns));
      for (std::int64_t row = 0; row < shape.rows; ++row)
        for (std::int64_t column = 0; column < shape.columns; ++column)
          for (std::int64_t k = 0; k < shape.inner; ++k) {
            const std::int64_t at_a = shape.transpose_a ? k * shape.rows + row : row * shape.inner + k;
            const std::int64_t at_b = shape.transpose_b ? column * shape.inner + k : k * shape.columns + column;
            out[static_cast<std::size_t>(row * shape.columns + column)] +=
                static_cast<long double>(a[static_cast<std::size_t>(at_a)]) * b[static_cast<std::size_t>(at_b)];
          }
      return out;
    }
  };
  static Problem integers(const ProductShape& shape) {
    return {shape, random_integers<float>(shape.rows * shape.inner, 9, 1),
            random_integers<float>(shape.inner * shape.columns, 9, 2)};
  }
  static std::vector<float> rounded(const std::vector<long double>& values) {
    return std::vector<float>(values.begin(), values.end());
  }

  /// `out` holds what the end begins with.
  std::vector<float> run(const Problem& problem, const SmallProductLayout& layout, ProductEnd end,
                         const std::vector<float>& out, const std::vector<float>& bias = {},
                         const std::vector<float>& marked = {}, float rate = 0, int offset = 0) const {
    elementwise::StepScalars<float> of_step;
    of_step.learning_rate = rate;
    std::vector<float> words(sizeof of_step / sizeof(float));
    std::memcpy(words.data(), &of_step, sizeof of_step);
    const DeviceArray<float> a(problem.a, offset), b(problem.b), result(out, offset), biases(bias), marks(marked),
        scalars(words);
    const cuda::StreamOwner stream;
    cuda::launch_small_product({problem.shape, layout, a.data(), b.data(), result.data(), end,
                                bias.empty() ? nullptr : biases.data(), marked.empty() ? nullptr : marks.data(),
                                reinterpret_cast<const elementwise::StepScalars<float>*>(scalars.data())},
                               stream.get());
    return result.read(stream);
  }

  /// The shape in each way that it may lie.
  static std::vector<ProductShape> ways(std::int64_t rows, std::int64_t columns, std::int64_t inner) {
    return {
        {rows, columns, inner, false, false}, {rows, columns, inner, true, false}, {rows, columns, inner, false, true}};
  }
  static std::string text(const ProductShape& shape, const SmallProductLayout& layout) {
    return std::to_string(shape.rows) + " x " + std::to_string(shape.columns) + " x " + std::to_string(shape.inner) +
           (shape.transpose_a   ? " a^T"
            : shape.transpose_b ? " b^T"
                                : "") +
           ", " + std::to_string(layout.thread_rows) + " rows a thread, clusters of " +
           std::to_string(layout.cluster_blocks);
  }
};

struct Sizes {
  std::int64_t rows, columns, inner;
};
/// Less than a tile and a panel, borders of both, several tiles, a warp without work, several panels, and rows that lie
/// askew.
constexpr Sizes kSizes[] = {{1, 17, 1},   {16, 32, 4},   {17, 33, 5},   {33, 64, 129},
                            {64, 20, 16}, {40, 100, 70}, {31, 98, 300}, {36, 52, 1000}};

TEST_F(SmallProduct, OfIntegersIsExactInEveryCut) {
  for (const auto& [rows, columns, inner] : kSizes)
    for (const ProductShape& shape : ways(rows, columns, inner)) {
      const Problem problem = integers(shape);
      const std::vector<float> expected = rounded(problem.product());
      const std::vector<float> poison(expected.size(), kNaN);
      for (const int thread_rows : {4, 8})
        for (const int cluster : {1, 2, 4, 8}) {
          const SmallProductLayout layout = cuda::cut_product(shape, thread_rows, cluster);
          if (cluster == 4 && inner > 16) continue;  // the same code
          SCOPED_TRACE(text(shape, layout));
          expect_same(run(problem, layout, ProductEnd::store, poison), expected);
        }
      // Off the border of 16 bytes the same sums in the same order.
      const SmallProductLayout layout = cuda::small_product_layout(shape, true);
      SCOPED_TRACE(text(shape, layout));
      expect_same(run(problem, layout, ProductEnd::store, poison, {}, {}, 0, 1), expected);
    }
}

TEST_F(SmallProduct, EndsWithBiasReluMaskOrDescent) {
  for (const auto& [rows, columns, inner] : {Sizes{37, 36, 70}, Sizes{18, 51, 130}})
    for (const ProductShape& shape : ways(rows, columns, inner)) {
      const Problem problem = integers(shape);
      const std::vector<long double> product = problem.product();
      const std::vector<float> bias = random_integers<float>(columns, 90, 3);
      const std::vector<float> before = random_integers<float>(rows * columns, 90, 4);
      std::vector<float> marked = random_integers<float>(rows * columns, 2, 5);
      for (float& value : marked) value = value < 0 ? -0.0f : value;
      const std::vector<float> poison(product.size(), kNaN);
      std::vector<float> biased = rounded(product), relu = biased, masked = biased, descended = before;
      int zeros = 0, kept = 0;
      for (std::size_t i = 0; i < biased.size(); ++i) {
        biased[i] += bias[i % bias.size()];
        relu[i] = elementwise::relu_marked(biased[i]);
        zeros += elementwise::is_marked(relu[i]);
        if (elementwise::is_marked(marked[i])) masked[i] = 0;
        kept += !elementwise::is_marked(marked[i]);
        descended[i] -= static_cast<float>(product[i] / 4);
      }
      EXPECT_GT(zeros, 0);
      EXPECT_GT(kept, 0);
      for (const int thread_rows : {4, 8})
        for (const int cluster : {1, 2}) {
          const SmallProductLayout layout = cuda::cut_product(shape, thread_rows, cluster);
          SCOPED_TRACE(text(shape, layout));
          expect_same(run(problem, layout, ProductEnd::store, poison, bias), biased);
          expect_same(run(problem, layout, ProductEnd::relu, poison, bias), relu);
          expect_same(run(problem, layout, ProductEnd::mask, poison, {}, marked), masked);
          expect_same(run(problem, layout, ProductEnd::descend, before, {}, {}, 0.25f), descended);
        }
    }
}

TEST_F(SmallProduct, PassesNaNToWhatItReachesAndNoFurther) {
  const ProductShape shape{20, 40, 90, false, false};
  Problem problem = integers(shape);
  problem.a[7 * 90 + 50] = kNaN;
  const std::vector<float> poison(20 * 40, 1.0f);
  for (const int cluster : {1, 8}) {
    const std::vector<float> out = run(problem, cuda::cut_product(shape, 4, cluster), ProductEnd::relu, poison);
    for (std::size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 40 == 7) << i;
  }
}

TEST_F(SmallProduct, IsWithinTheBoundOfItsPrecisionAndHasTheSameBitsAgain) {
  for (const ProductShape& shape : ways(50, 100, 1000)) {
    const Problem problem{shape, random_values<float>(50 * 1000, 6), random_values<float>(1000 * 100, 7)};
    const std::vector<long double> expected = problem.product();
    const SmallProductLayout layout = cuda::small_product_layout(shape, true);
    SCOPED_TRACE(text(shape, layout));
    const std::vector<float> poison(expected.size(), kNaN);
    const std::vector<float> out = run(problem, layout, ProductEnd::store, poison);
    long double error = 0, norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      error += (out[i] - expected[i]) * (out[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    EXPECT_GT(norm, 0);
    EXPECT_LE(std::sqrt(error / norm), std::sqrt(1000.0) * std::ldexp(1.0, -24));
    expect_same(run(problem, layout, ProductEnd::store, poison), out);
    expect_same(run(problem, layout, ProductEnd::store, poison, {}, {}, 0, 1), out);
  }
}

}  // namespace
}  // namespace deviceloop
