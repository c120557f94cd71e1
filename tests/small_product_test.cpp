// The own products of small matrices and what ends them, on a GPU or on the host by tests/simt.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
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

  std::vector<float> run(const Problem& problem, const SmallProductLayout& layout, ProductEnd end = ProductEnd::store,
                         const std::vector<float>& bias = {}, const std::vector<float>& marked = {},
                         int offset = 0) const {
    const std::vector<float> poison(static_cast<std::size_t>(problem.shape.rows * problem.shape.columns), kNaN);
    const DeviceArray<float> a(problem.a, offset), b(problem.b), result(poison, offset), biases(bias), marks(marked);
    const cuda::StreamOwner stream;
    const cuda::SmallProduct product{problem.shape,
                                     a.data(),
                                     b.data(),
                                     {result.data()},
                                     end,
                                     bias.empty() ? nullptr : biases.data(),
                                     marked.empty() ? nullptr : marks.data()};
    cuda::launch_small_products({&product, 1}, layout, stream.get());
    return result.read(stream);
  }

  static SmallProductLayout cut(const ProductShape& shape, int thread_rows, int cluster) {
    return cuda::cut_products({&shape, 1}, thread_rows, cluster);
  }

  static ProductEnd end_of(const ProductShape& shape) {
    return shape.transpose_a ? ProductEnd::gradient : ProductEnd::store;
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
      for (const int thread_rows : {4, 8})
        for (const int cluster : {1, 2, 4, 8}) {
          const SmallProductLayout layout = cut(shape, thread_rows, cluster);
          if (cluster == 4 && inner > 16) continue;  // the same code
          SCOPED_TRACE(text(shape, layout));
          expect_same(run(problem, layout, end_of(shape)), expected);
        }
      // Off the border of 16 bytes the same sums in the same order.
      const SmallProductLayout layout = cuda::small_product_layout(shape, true);
      SCOPED_TRACE(text(shape, layout));
      expect_same(run(problem, layout, end_of(shape), {}, {}, 1), expected);
    }
}

TEST_F(SmallProduct, EndsWithBiasReluOrMask) {
  for (const auto& [rows, columns, inner] : {Sizes{37, 36, 70}, Sizes{18, 51, 130}})
    for (const ProductShape& shape : ways(rows, columns, inner)) {
      if (shape.transpose_a) continue;  // a gradient
      const Problem problem = integers(shape);
      const std::vector<long double> product = problem.product();
      const std::vector<float> bias = random_integers<float>(columns, 90, 3);
      std::vector<float> marked = random_integers<float>(rows * columns, 2, 5);
      for (float& value : marked) value = value < 0 ? -0.0f : value;
      std::vector<float> biased = rounded(product), relu = biased, masked = biased;
      int zeros = 0, kept = 0;
      for (std::size_t i = 0; i < biased.size(); ++i) {
        biased[i] += bias[i % bias.size()];
        relu[i] = elementwise::relu_marked(biased[i]);
        zeros += elementwise::is_marked(relu[i]);
        if (elementwise::is_marked(marked[i])) masked[i] = 0;
        kept += !elementwise::is_marked(marked[i]);
      }
      EXPECT_GT(zeros, 0);
      EXPECT_GT(kept, 0);
      for (const int thread_rows : {4, 8})
        for (const int cluster : {1, 2}) {
          const SmallProductLayout layout = cut(shape, thread_rows, cluster);
          SCOPED_TRACE(text(shape, layout));
          expect_same(run(problem, layout, ProductEnd::store, bias), biased);
          expect_same(run(problem, layout, ProductEnd::relu, bias), relu);
          expect_same(run(problem, layout, ProductEnd::mask, {}, marked), masked);
        }
    }
}

constexpr OptimizerKind kOptimizers[] = {OptimizerKind::gradient_descent, OptimizerKind::sgd, OptimizerKind::adam,
                                         OptimizerKind::adamw, OptimizerKind::rmsprop};

/// Numbers that an optimizer of each kind can work with, unlike each other.
elementwise::StepScalars<float> scalars_of_a_step() {
  elementwise::StepScalars<float> scalars;
  scalars.learning_rate = 0.25f;
  scalars.momentum = 0.5f;
  scalars.weight_decay = 0.125f;
  scalars.kept_weight = 0.96875f;
  scalars.one_minus_beta1 = 0.1f;
  scalars.beta2 = 0.99f;
  scalars.one_minus_beta2 = 0.01f;
  scalars.epsilon = 1e-3f;
  scalars.adam_rate = 0.3f;
  scalars.root_correction = 0.7f;
  scalars.clip_value = 700;
  scalars.nesterov = 1;
  return scalars;
}

// The column sums are those of integers, too; and so the updates have the bits of the formulas.
TEST_F(SmallProduct, GradientsUpdateWhatTheyAreOfByEveryOptimizerInOneLaunch) {
  const elementwise::StepScalars<float> of_step = scalars_of_a_step();
  std::vector<float> words(sizeof of_step / sizeof(float));
  std::memcpy(words.data(), &of_step, sizeof of_step);
  const DeviceArray<float> scalars(words);
  const std::int64_t inner = 70;
  std::vector<ProductShape> shapes;
  for (const auto& [rows, columns] : {std::pair(36, 68), std::pair(52, 10), std::pair(7, 33), std::pair(40, 1)})
    shapes.push_back({rows, columns, inner, true, false});
  const std::vector<double> partial_losses = {1.5, 2.25, 4};
  for (const OptimizerKind optimizer : kOptimizers)
    for (const auto& [thread_rows, cluster] : {std::pair(4, 1), std::pair(8, 1), std::pair(4, 8), std::pair(8, 2)})
      for (const bool updates : {true, false}) {
        if (!updates && optimizer != OptimizerKind::gradient_descent) continue;
        const SmallProductLayout layout = cuda::cut_products(shapes, thread_rows, cluster);
        SCOPED_TRACE("optimizer " + std::to_string(static_cast<int>(optimizer)) + ", " + text(shapes[0], layout));
        const auto states = static_cast<int>(elementwise::states_of(optimizer).size());
        std::vector<cuda::SmallProduct> products;
        std::vector<DeviceArray<float>> operands, results;
        std::vector<std::vector<float>> expected;
        // Of a gradient: what it updates, then what is kept for it.
        const auto add_end = [&](const std::vector<float>& gradient) {
          const auto count = static_cast<std::int64_t>(gradient.size());
          std::vector<std::vector<float>> arrays;
          for (int array = 0; array <= (updates ? states : 0); ++array) {
            arrays.push_back(random_values<float>(count, static_cast<std::uint32_t>(10 + array)));
            for (float& value : arrays.back()) value = array == 0 ? value : std::abs(value);
            results.emplace_back(arrays.back());
          }
          cuda::GradientEnd<float> end{
              (results.end() - static_cast<std::ptrdiff_t>(arrays.size()))->data(),
              updates ? reinterpret_cast<const elementwise::StepScalars<float>*>(scalars.data()) : nullptr, optimizer};
          for (std::size_t state = 1; state < arrays.size(); ++state)
            end.state.values[state - 1] = (results.end() - static_cast<std::ptrdiff_t>(arrays.size() - state))->data();
          for (std::size_t i = 0; i < gradient.size(); ++i) {
            float kept[elementwise::kMostStates] = {};
            for (std::size_t state = 1; state < arrays.size(); ++state) kept[state - 1] = arrays[state][i];
            if (updates)
              elementwise::update(optimizer, arrays[0][i], kept, gradient[i], of_step);
            else
              arrays[0][i] = gradient[i];
            for (std::size_t state = 1; state < arrays.size(); ++state) arrays[state][i] = kept[state - 1];
          }
          for (std::vector<float>& array : arrays) expected.push_back(std::move(array));
          return end;
        };
        for (const ProductShape& shape : shapes) {
          const Problem problem = integers(shape);
          cuda::SmallProduct product{shape};
          operands.emplace_back(problem.a);
          product.a = operands.back().data();
          operands.emplace_back(problem.b);
          product.b = operands.back().data();
          product.end = ProductEnd::gradient;
          product.out = add_end(rounded(problem.product()));
          std::vector<float> sums(static_cast<std::size_t>(shape.columns));
          for (std::size_t i = 0; i < problem.b.size(); ++i) sums[i % sums.size()] += problem.b[i];
          if (shape.columns != 33) product.sums = add_end(sums);
          products.push_back(product);
        }
        const DeviceArray<double> losses(std::vector<double>{0, 0, 0}), partial_sums(partial_losses);
        const DeviceArray<std::int64_t> steps(std::vector<std::int64_t>{4});
        const cuda::StreamOwner stream;
        cuda::launch_small_products(products, layout, stream.get(),
                                    {{losses.data(), steps.data(), 3}, 2, partial_sums.data(), 3});
        for (std::size_t i = 0; i < results.size(); ++i) {
          SCOPED_TRACE("array " + std::to_string(i));
          expect_same(results[i].read(stream), expected[i]);
        }
        EXPECT_EQ(losses.read(stream), (std::vector<double>{0, 15.5, 0}));
        EXPECT_EQ(steps.read(stream), std::vector<std::int64_t>{5});
      }
}

TEST_F(SmallProduct, PassesNaNToWhatItReachesAndNoFurther) {
  const ProductShape shape{20, 40, 90, false, false};
  Problem problem = integers(shape);
  problem.a[7 * 90 + 50] = kNaN;
  for (const int cluster : {1, 8}) {
    const std::vector<float> out = run(problem, cut(shape, 4, cluster), ProductEnd::relu);
    for (std::size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 40 == 7) << i;
  }
}

TEST_F(SmallProduct, IsWithinTheBoundOfItsPrecisionAndHasTheSameBitsAgain) {
  for (const ProductShape& shape : ways(50, 100, 1000)) {
    const Problem problem{shape, random_values<float>(50 * 1000, 6), random_values<float>(1000 * 100, 7)};
    const std::vector<long double> expected = problem.product();
    const SmallProductLayout layout = cuda::small_product_layout(shape, true);
    SCOPED_TRACE(text(shape, layout));
    const std::vector<float> out = run(problem, layout, end_of(shape));
    long double error = 0, norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      error += (out[i] - expected[i]) * (out[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    EXPECT_GT(norm, 0);
    EXPECT_LE(std::sqrt(error / norm), std::sqrt(1000.0) * std::ldexp(1.0, -24));
    expect_same(run(problem, layout, end_of(shape)), out);
    expect_same(run(problem, layout, end_of(shape), {}, {}, 1), out);
  }
}

}  // namespace
}  // namespace deviceloop
