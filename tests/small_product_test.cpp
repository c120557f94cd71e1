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

/// A product with a narrow layer and its loss above it, on the device.
struct WithLoss {
  WithLoss(const ProductShape& shape, int outputs, const std::vector<float>& a, const std::vector<float>& b,
           const std::vector<float>& hidden_bias, const std::vector<float>& weights, const std::vector<float>& bias,
           const std::vector<float>& target, const std::vector<float>& row_weights, int offset)
      : a_(a, offset),
        b_(b),
        hidden_bias_(hidden_bias),
        weights_(weights),
        bias_(bias),
        target_(target),
        row_weights_(row_weights),
        h(std::vector<float>(static_cast<std::size_t>(shape.rows * shape.columns), NAN)),
        below(std::vector<float>(static_cast<std::size_t>(shape.rows * shape.columns), NAN), offset),
        gradient(std::vector<float>(static_cast<std::size_t>(shape.rows * outputs), NAN)),
        product{shape,      a_.data(),        b_.data(),
                {h.data()}, ProductEnd::relu, hidden_bias.empty() ? nullptr : hidden_bias_.data()},
        narrow{{},
               outputs,
               weights_.data(),
               bias.empty() ? nullptr : bias_.data(),
               target_.data(),
               row_weights.empty() ? nullptr : row_weights_.data(),
               gradient.data(),
               below.data()} {}

  /// The loss.
  double run(const SmallProductLayout& layout, const LossOfStep& loss) {
    const std::int64_t blocks = cuda::product_loss_blocks(product.shape, layout);
    const DeviceArray<double> partial_sums(std::vector<double>(static_cast<std::size_t>(blocks), NAN));
    narrow.loss = loss;
    narrow.partial_sums = partial_sums.data();
    cuda::launch_product_with_loss(product, narrow, layout, stream.get());
    double sum = 0;
    for (const double partial : partial_sums.read(stream)) sum += partial;
    return sum * loss.scale;
  }

 private:
  const DeviceArray<float> a_, b_, hidden_bias_, weights_, bias_, target_, row_weights_;

 public:
  const DeviceArray<float> h, below, gradient;
  const cuda::StreamOwner stream;
  cuda::SmallProduct product;
  cuda::NarrowLossEnd narrow;
};

struct LossCase {
  Sizes sizes;
  int outputs;
};
/// One block across and more, full and not, one row and several tiles.
constexpr LossCase kLossCases[] = {{{1, 17, 5}, 1},    {{37, 32, 70}, 3},   {{33, 36, 70}, 10},
                                   {{16, 64, 33}, 16}, {{40, 100, 130}, 1}, {{18, 131, 64}, 4}};

TEST_F(SmallProduct, WithANarrowLayerAndItsLossIsExactOfIntegers) {
  for (const auto& [sizes, outputs] : kLossCases) {
    const auto& [rows, columns, inner] = sizes;
    const ProductShape shape{rows, columns, inner};
    const Problem problem{shape, random_integers<float>(rows * inner, 3, 1),
                          random_integers<float>(inner * columns, 3, 2)};
    for (const bool has_more : {true, false}) {  // biases and weights of rows
      const std::vector<float> hidden_bias = random_integers<float>(has_more ? columns : 0, 20, 3);
      const std::vector<float> weights = random_integers<float>(columns * outputs, 2, 4);
      const std::vector<float> bias = random_integers<float>(has_more ? outputs : 0, 9, 5);
      const std::vector<float> target = random_integers<float>(rows * outputs, 50, 6);
      std::vector<float> row_weights = random_integers<float>(has_more ? rows : 0, 3, 7);
      for (float& weight : row_weights) weight = std::abs(weight);
      std::vector<float> h = rounded(problem.product()), gradient(static_cast<std::size_t>(rows * outputs));
      std::vector<float> below(h.size());
      double loss = 0;
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t j = 0; j < columns; ++j) {
          float& value = h[static_cast<std::size_t>(row * columns + j)];
          value = elementwise::relu_marked(value + (has_more ? hidden_bias[static_cast<std::size_t>(j)] : 0));
        }
        for (std::int64_t output = 0; output < outputs; ++output) {
          const auto at = static_cast<std::size_t>(row * outputs + output);
          long double error = (has_more ? bias[static_cast<std::size_t>(output)] : 0.0f) - target[at];
          for (std::int64_t j = 0; j < columns; ++j)
            error += static_cast<long double>(h[static_cast<std::size_t>(row * columns + j)]) *
                     weights[static_cast<std::size_t>(j * outputs + output)];
          const float weight = has_more ? row_weights[static_cast<std::size_t>(row)] : 1;
          gradient[at] = static_cast<float>(2 * error * weight);
          loss += static_cast<double>(error * error * weight);
        }
        for (std::int64_t j = 0; j < columns; ++j) {
          const auto at = static_cast<std::size_t>(row * columns + j);
          for (std::int64_t output = 0; output < outputs && !elementwise::is_marked(h[at]); ++output)
            below[at] += gradient[static_cast<std::size_t>(row * outputs + output)] *
                         weights[static_cast<std::size_t>(j * outputs + output)];
        }
      }
      const int across = cuda::power_of_two(cuda::divide_up(columns, cuda::kProductTileColumns), 8);
      for (int inner_blocks = 1; inner_blocks * across <= 8; inner_blocks *= 2) {
        const SmallProductLayout layout = cuda::cut_products({&shape, 1}, 4, inner_blocks, across);
        SCOPED_TRACE(text(shape, layout) + ", " + std::to_string(outputs) + " outputs");
        WithLoss with_loss(shape, outputs, problem.a, problem.b, hidden_bias, weights, bias, target, row_weights,
                           inner_blocks == 1 ? 1 : 0);
        EXPECT_NEAR(with_loss.run(layout, {Loss::squared_error, 1}) / loss, 1, 1e-6);
        expect_same(with_loss.h.read(with_loss.stream), h);
        expect_same(with_loss.gradient.read(with_loss.stream), gradient);
        expect_same(with_loss.below.read(with_loss.stream), below);
      }
    }
  }
}

// Against the launches for the layer and its gradient by themselves, which add in other orders.
TEST_F(SmallProduct, TakesEveryLossOfANarrowLayerAsItsOwnLaunchesDo) {
  const ProductShape shape{21, 100, 40};
  const int outputs = 7;
  const std::vector<float> a = random_values<float>(21 * 40, 1), b = random_values<float>(40 * 100, 2);
  std::vector<float> weights = random_values<float>(100 * outputs, 3), row_weights = random_values<float>(21, 4);
  for (float& weight : weights) weight /= 32;
  for (float& weight : row_weights) weight = std::abs(weight);
  const LossOfStep losses[] = {{Loss::squared_error, 0.1}, {Loss::absolute_error, 0.1},
                               {Loss::huber, 0.1, 0.75},   {Loss::binary_cross_entropy, 0.1},
                               {Loss::cross_entropy, 0.1}, {Loss::cross_entropy, 1, 1, true}};
  const SmallProductLayout layout = cuda::cut_products({&shape, 1}, 4, 2, 4);
  for (const LossOfStep& loss : losses)
    for (const bool is_weighted : {false, true}) {
      SCOPED_TRACE("loss " + std::to_string(static_cast<int>(loss.kind)) + (is_weighted ? ", weighted" : ""));
      std::vector<float> target = random_values<float>(loss.has_classes ? 21 : 21 * outputs, 5);
      for (std::size_t i = 0; i < target.size(); ++i)
        target[i] = loss.has_classes ? static_cast<float>(i % 7) : std::abs(target[i]);
      const std::vector<float> used_weights = is_weighted ? row_weights : std::vector<float>();
      WithLoss with_loss(shape, outputs, a, b, {}, weights, {}, target, used_weights, 0);
      const double sum = with_loss.run(layout, loss);
      const std::vector<float> h = with_loss.h.read(with_loss.stream);
      expect_same(h, run({shape, a, b}, cut(shape, 4, 2), ProductEnd::relu));
      const DeviceArray<float> gradient(21 * outputs), below(21 * 100), dweights(100 * outputs);
      const DeviceArray<double> partial_sums(cuda::narrow_loss_blocks(21));
      cuda::launch_narrow_loss<float>(loss, partial_sums.data(), gradient.data(), with_loss.h.data(),
                                      with_loss.narrow.weights, nullptr, with_loss.narrow.target,
                                      with_loss.narrow.row_weights, 21, 100, outputs, with_loss.stream.get());
      cuda::launch_narrow_linear_gradient<float>(true, below.data(), {dweights.data()}, {}, with_loss.h.data(),
                                                 gradient.data(), with_loss.narrow.weights, 21, 100, outputs, nullptr,
                                                 with_loss.stream.get());
      double expected_sum = 0;
      for (const double partial : partial_sums.read(with_loss.stream)) expected_sum += partial * loss.scale;
      EXPECT_NEAR(sum / expected_sum, 1, 1e-5);
      const auto expect_near = [&](const DeviceArray<float>& got, const DeviceArray<float>& wanted) {
        const std::vector<float> values = got.read(with_loss.stream), expected = wanted.read(with_loss.stream);
        int zeros = 0;
        for (std::size_t i = 0; i < expected.size(); ++i) {
          zeros += expected[i] == 0;
          ASSERT_NEAR(values[i], expected[i], 1e-5) << i;
        }
        EXPECT_LT(zeros, static_cast<int>(expected.size()) * 3 / 4);
      };
      expect_near(with_loss.gradient, gradient);
      expect_near(with_loss.below, below);
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
