// The kernel that keeps parameters on chip, on a GPU or on the host by tests/simt: minibatches and what an optimizer
// keeps against the equations in double, one launch against several, and what becomes of waits that are in vain.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "../cuda/kernels/on_chip.h"
#include "../cuda/runtime/check.h"
#include "activations.h"
#include "step/scalars.h"
#include "support/activations.h"
#include "support/cuda_test.h"
#include "support/exact.h"
#include "support/optimizer_cases.h"
#include "support/reference_loss.h"
#include "support/reference_optimizer.h"
#if defined(DEVICELOOP_SIMT)
#include "simt/control.h"
#endif

namespace deviceloop::cuda {
namespace {

using deviceloop::testing::CudaTest;
using deviceloop::testing::DeviceArray;
using deviceloop::testing::expect_same;
using deviceloop::testing::random_values;

template <class T>
std::vector<double> doubles(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}
reference::Table table(const std::vector<double>& values, std::int64_t rows, std::int64_t columns) {
  reference::Table result(static_cast<std::size_t>(rows), static_cast<std::size_t>(columns));
  result.values = values;
  return result;
}

reference::Activation reference_of(Activation kind) {
  std::size_t i = 0;
  while (deviceloop::testing::kActivationFormulas[i].activation.kind != kind) ++i;
  return deviceloop::testing::reference_activations().at(i);
}

/// What the kernel trains, row-major, rounded to T.
template <class T>
struct Problem {
  std::vector<std::int64_t> widths;
  bool bias = true;
  std::int64_t samples = 0, batch = 0;
  bool shuffled = true;
  Optimizer optimizer{};
  TrainingSpec loss{};  ///< of which the loss, its reduction and its delta are taken
  Activation activation = Activation::relu, output_activation = Activation::identity;
  std::vector<T> x, y, row_weights;
  std::vector<std::vector<T>> weights, biases;

  std::int64_t layers() const { return static_cast<std::int64_t>(widths.size()) - 1; }
  int states() const { return static_cast<int>(elementwise::states_of(optimizer.kind).size()); }
  BatchOrder order() const { return {5, samples, shuffled}; }
  std::int64_t target_columns() const { return static_cast<std::int64_t>(y.size()) / samples; }
  OnChipShape shape() const {
    return {batch, widths, bias, sizeof(T), states(), loss.loss == Loss::cross_entropy, target_columns()};
  }
  LossOfStep loss_of_step() const {
    LossOfStep of_step{loss.loss, 1, loss.huber_delta, loss.loss == Loss::cross_entropy && target_columns() == 1};
    if (loss.reduction == Reduction::mean)
      of_step.scale = 1 / static_cast<double>(loss.loss == Loss::cross_entropy ? batch : batch * widths.back());
    return of_step;
  }
  std::function<reference::LossFunction> loss_function(std::int64_t step) const {
    return row_weights.empty() ? reference::loss_function(loss)
                               : reference::loss_function(loss, rows_of(row_weights, step).values);
  }

  reference::Network network() const {
    reference::Network network;
    for (std::size_t l = 0; l < weights.size(); ++l)
      network.push_back({table(doubles(weights[l]), widths[l], widths[l + 1]), doubles(biases[l])});
    return network;
  }
  reference::Table rows_of(const std::vector<T>& data, std::int64_t step) const {
    const auto columns = static_cast<std::size_t>(static_cast<std::int64_t>(data.size()) / samples);
    reference::Table rows(static_cast<std::size_t>(batch), columns);
    for (std::size_t r = 0; r < rows.rows; ++r) {
      const auto sample = static_cast<std::size_t>(order().sample(step * batch + static_cast<std::int64_t>(r)));
      for (std::size_t j = 0; j < columns; ++j) rows(r, j) = static_cast<double>(data[sample * columns + j]);
    }
    return rows;
  }
};

template <class T>
Problem<T> random_problem(std::vector<std::int64_t> widths, bool bias, std::int64_t samples, std::int64_t batch) {
  Problem<T> problem;
  problem.widths = std::move(widths);
  problem.bias = bias;
  problem.samples = samples;
  problem.batch = batch;
  problem.optimizer = {.kind = OptimizerKind::adam, .learning_rate = 0.02};
  problem.x = random_values<T>(samples * problem.widths.front(), 1);
  problem.y = random_values<T>(samples * problem.widths.back(), 2);
  std::uint32_t seed = 3;
  for (std::size_t l = 0; l + 1 < problem.widths.size(); ++l) {
    problem.weights.push_back(random_values<T>(problem.widths[l] * problem.widths[l + 1], seed++));
    for (T& weight : problem.weights.back()) weight /= std::sqrt(static_cast<T>(problem.widths[l]));
    problem.biases.push_back(bias ? random_values<T>(problem.widths[l + 1], seed++) : std::vector<T>());
  }
  return problem;
}

template <class T>
struct Result {
  std::vector<std::vector<T>> weights, biases, states;
  std::vector<double> losses;
  std::uint64_t failed = 0;
};

/// How it is run: by launches of so many steps each.
struct Launches {
  std::vector<std::int64_t> steps;
  std::uint64_t timeout_ns = 20'000'000'000;
  std::int64_t first_step = 0;
  bool forward_only = false;
  unsigned absent_blocks = 0;  ///< of those that count themselves in at the end
};

template <class T>
class OnChip : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    int major = 0;
    DEVICELOOP_CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major < 9) GTEST_SKIP() << "this GPU has no room for any problem of the test: it has no clusters";
  }

  static Result<T> run(const Problem<T>& problem, const OnChipLayout& layout, const Launches& launches) {
    const StreamOwner stream;
    prepare_on_chip<T>(layout);
    EXPECT_GE(resident_on_chip<T>(layout), layout.clusters);
    std::int64_t all = 0, most = 0;
    for (const std::int64_t steps : launches.steps) {
      all += steps;
      most = std::max(most, steps);
    }
    std::vector<elementwise::StepScalars<T>> scalars;
    for (std::int64_t step = 0; step < all; ++step)
      scalars.push_back(step_scalars<T>(problem.optimizer, launches.first_step + step));
    const auto bytes = [](const auto& values) {
      using Element = std::decay_t<decltype(values[0])>;
      const auto* const begin = reinterpret_cast<const std::uint64_t*>(values.data());
      return std::vector<std::uint64_t>(begin, begin + values.size() * sizeof(Element) / 8);
    };
    const DeviceArray<T> x(problem.x, 1), y(problem.y, 1), aligned_x(problem.x), row_weights(problem.row_weights);
    const DeviceArray<std::uint64_t> scalar_words(bytes(scalars));
    const DeviceArray<double> losses(std::max<std::int64_t>(all, 1)),
        parts(std::max<std::int64_t>(most, 1) * layout.all_blocks());
    const DeviceArray<std::uint64_t> tagged(
        std::vector<std::uint64_t>(static_cast<std::size_t>(layout.tagged_units() * 4)));
    const DeviceArray<unsigned> blocks_done(std::vector<unsigned>{7});
    const DeviceArray<std::uint64_t> failed(std::vector<std::uint64_t>{0});
    std::vector<DeviceArray<T>> memory;  // weight, its states, bias, its states of each layer
    memory.reserve(static_cast<std::size_t>(6 * problem.layers()));
    OnChipArguments<T> arguments;
    const auto put = [&](OnChipParameter<T>& parameter, const std::vector<T>& values) {
      memory.emplace_back(values);
      parameter.values = memory.back().data();
      for (int s = 0; s < problem.states(); ++s) {
        memory.emplace_back(std::vector<T>(values.size(), T(0)));
        parameter.states[s] = memory.back().data();
      }
    };
    for (std::size_t l = 0; l < problem.weights.size(); ++l) {
      put(arguments.weights[l], problem.weights[l]);
      if (problem.bias) put(arguments.biases[l], problem.biases[l]);
    }
    // Rows that lie on 16 bytes are copied in units of them, others by element.
    arguments.x = problem.samples % 2 == 0 ? aligned_x.data() : x.data();
    arguments.y = y.data();
    arguments.order = problem.order();
    arguments.network = SampleNetwork::of(problem.samples);
    arguments.optimizer = problem.optimizer.kind;
    arguments.scalar_stride = 1;
    arguments.row_weights = problem.row_weights.empty() ? nullptr : row_weights.data();
    arguments.loss = problem.loss_of_step();
    arguments.activation = problem.activation;
    arguments.output_activation = problem.output_activation;
    arguments.keeps_pre_activation = activations::keeps_pre_activation({problem.activation, 0});
    arguments.keeps_last_pre_activation = activations::keeps_pre_activation({problem.output_activation, 0});
    arguments.loss_parts = parts.data();
    arguments.timeout_ns = launches.timeout_ns;
    arguments.failed = failed.data();
    arguments.forward_only = launches.forward_only;
    arguments.tagged = reinterpret_cast<TaggedUnit*>(tagged.data());
    arguments.first_tag = 1;
    arguments.blocks_done = blocks_done.data();
    arguments.done_before = 7 + launches.absent_blocks;
    std::int64_t done = 0;
    for (const std::int64_t steps : launches.steps) {
      arguments.first_step = launches.first_step + done;
      arguments.scalars = reinterpret_cast<const elementwise::StepScalars<T>*>(scalar_words.data()) + done;
      arguments.losses = losses.data() + done;
      arguments.steps = steps;
      launch_on_chip(arguments, layout, true, stream.get());
      done += steps;
      arguments.first_tag += static_cast<unsigned>(steps);
      arguments.done_before += static_cast<unsigned>(layout.all_blocks());
    }
    Result<T> result;
    for (std::size_t l = 0, at = 0; l < problem.weights.size(); ++l)
      for (int is_bias = 0; is_bias < (problem.bias ? 2 : 1); ++is_bias) {
        (is_bias != 0 ? result.biases : result.weights).push_back(memory[at++].read(stream));
        for (int s = 0; s < problem.states(); ++s) result.states.push_back(memory[at++].read(stream));
      }
    result.losses = losses.read(stream);
    result.failed = failed.read(stream)[0];
    parts.read(stream);
    tagged.read(stream);
    x.read(stream);
    return result;
  }

  static void expect_close(const Result<T>& result, const Problem<T>& problem, std::int64_t steps) {
    reference::Network expected = problem.network();
    reference::OptimizerState state(problem.optimizer);
    std::vector<double> losses;
    for (std::int64_t step = 0; step < steps; ++step)
      losses.push_back(reference::train(expected, state, problem.rows_of(problem.x, step),
                                        problem.rows_of(problem.y, step), 1, problem.loss_function(step),
                                        reference_of(problem.activation), reference_of(problem.output_activation))[0]);
    EXPECT_EQ(result.failed, 0u);
    // Adam divides by the root of squares: rounding of a gradient near 0 shows more.
    const double bound = sizeof(T) == 4 ? 3e-5 : 1e-12;
    ASSERT_EQ(result.losses.size(), losses.size());
    for (std::size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(result.losses[i] / losses[i], 1, bound) << "step " << i;
    for (std::size_t l = 0; l < expected.size(); ++l) {
      EXPECT_LE(reference::relative_error(doubles(result.weights[l]), expected[l].weight.values), bound) << l;
      EXPECT_GT(reference::relative_error(doubles(result.weights[l]), doubles(problem.weights[l])), 10 * bound) << l;
      if (problem.bias) {
        EXPECT_LE(reference::relative_error(doubles(result.biases[l]), expected[l].bias), bound) << l;
      }
    }
  }

  static void expect_same_bits(const Result<T>& a, const Result<T>& b) {
    ASSERT_EQ(a.states.size(), b.states.size());
    for (std::size_t l = 0; l < a.weights.size(); ++l) expect_same(a.weights[l], b.weights[l]);
    for (std::size_t l = 0; l < a.biases.size(); ++l) expect_same(a.biases[l], b.biases[l]);
    for (std::size_t l = 0; l < a.states.size(); ++l) expect_same(a.states[l], b.states[l]);
    expect_same(a.losses, b.losses);
  }
};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(OnChip, Types);

struct Case {
  std::vector<std::int64_t> widths;
  bool bias;
  std::int64_t samples, batch;
  int blocks_log2;
  bool by_inputs = false;
  int clusters = 1;
};

/// All products by tensor cores, in tiles of 8 or 16 columns, however small they are; by the layout itself small ones
/// are not.
void take_tensor_cores(OnChipLayout& layout, int columns) {
  const auto take = [](OnChipProduct& product, int tile_columns) {
    const std::int64_t across = divide_up(std::int64_t{product.across.divisor} * kOnChipTile, tile_columns);
    product.tensor_columns = tile_columns;
    product.tensor_across = SmallDivisor::of(static_cast<unsigned>(across));
    product.tensor_tiles =
        static_cast<int>(divide_up(std::int64_t{product.tiles_down} * kOnChipTile, kOnChipTensorRows) * across);
  };
  layout.tf32x3 = true;
  for (int l = 0; l < layout.layers; ++l) {
    take(layout.layer[l].forward, layout.by_inputs && l == 0 ? 16 : columns);
    take(layout.layer[l].input_gradient, columns);
    take(layout.layer[l].weight_gradient, 16);
  }
}
/// What can be asked of it, 0 being none.
template <class T>
std::vector<int> tensor_columns() {
  return sizeof(T) == 4 ? std::vector<int>{0, 8, 16} : std::vector<int>{0};
}

template <class T>
OnChipLayout layout_of(const Problem<T>& problem, const Case& c) {
  return make_on_chip(problem.shape(), c.blocks_log2, c.by_inputs, c.clusters);
}

/// Clusters of so many blocks, with the first layer split by rows and by inputs.
struct Split {
  int blocks_log2;
  bool by_inputs;
  int clusters = 1;
};
constexpr Split kSplits[] = {{0, false},    {2, false},    {4, false},   {1, true},   {4, true},
                             {1, false, 2}, {2, false, 3}, {1, true, 2}, {2, true, 4}};
/// One cluster and several, of eight blocks together or nine.
constexpr Split kFewSplits[] = {{3, false}, {3, true}, {1, false, 4}, {1, true, 3}};

template <class T>
OnChipLayout layout_of(const Problem<T>& problem, const Split& split) {
  return make_on_chip(problem.shape(), split.blocks_log2, split.by_inputs, split.clusters);
}

std::string text(const Split& split) {
  return std::to_string(split.clusters) + " clusters of " + std::to_string(1 << split.blocks_log2) + " blocks" +
         (split.by_inputs ? ", by inputs" : "");
}

std::string text(const Case& c) {
  return ::testing::PrintToString(c.widths) + ", " + std::to_string(c.batch) + " of " + std::to_string(c.samples) +
         " samples, bias " + std::to_string(c.bias) + ", " + text(Split{c.blocks_log2, c.by_inputs, c.clusters});
}

/// Tiles that lanes share or not, sizes that fill nothing, one and several turns of the block's warps, layers of fewer
/// units than blocks, blocks with fewer rows than others and with none, copies by unit and by element, batches that
/// begin in one epoch and end in the next. Split by inputs: blocks with fewer inputs than others, with none, and with
/// the bias alone, networks of one layer. Several clusters: one with fewer rows than others, one that updates nothing,
/// more of them and more units than a thread waits for at once.
const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {{3, 1}, false, 7, 5, 0},
      {{5, 4, 3}, true, 20, 8, 2},
      {{8, 33, 17, 2}, true, 30, 21, 2},
      {{64, 20, 1}, false, 40, 33, 1},
      {{12, 9, 7, 5, 3}, true, 50, 34, 4},
      {{17, 40, 40, 1}, true, 64, 64, 4},
      {{40, 40, 40, 6}, true, 41, 9, 3},
      {{4, 6, 5, 1}, true, 90, 70, 0},
      {{9, 70, 70, 1}, true, 50, 40, 1},
      {{3, 1}, false, 7, 5, 1, true},
      {{30, 4, 3}, true, 20, 9, 2, true},
      {{16, 33, 17, 2}, true, 30, 21, 2, true},
      {{100, 20, 1}, false, 40, 33, 4, true},
      {{12, 9, 7, 5, 3}, true, 50, 34, 4, true},
      {{65, 40, 40, 1}, true, 64, 64, 4, true},
      {{90, 6}, true, 41, 9, 3, true},
      {{64, 70, 5}, true, 70, 64, 2, true},
      {{24, 66, 3}, false, 90, 70, 1, true},
      {{3, 1}, false, 7, 5, 0, false, 5},
      {{5, 4, 3}, true, 20, 8, 2, false, 2},
      {{64, 20, 1}, false, 40, 34, 1, false, 3},
      {{17, 40, 40, 1}, true, 64, 64, 2, false, 4},
      {{9, 100, 100, 1}, true, 50, 40, 0, false, 10},
      {{90, 6}, true, 41, 9, 1, true, 2},
      {{30, 4, 3}, true, 20, 9, 2, true, 2},
      {{100, 20, 1}, false, 40, 34, 2, true, 3},
      {{65, 40, 40, 1}, true, 64, 64, 2, true, 3},
  };
  return all;
}

// Fewer steps by tensor cores, which the fixture computes slowly.
TYPED_TEST(OnChip, IsNearTheEquationsInDouble) {
  for (std::size_t i = 0; i < cases().size(); ++i) {
    const Case& c = cases()[i];
    SCOPED_TRACE(text(c));
    const auto problem = random_problem<TypeParam>(c.widths, c.bias, c.samples, c.batch);
    this->expect_close(this->run(problem, layout_of(problem, c), {{5}}), problem, 5);
    if (sizeof(TypeParam) > 4) continue;
    OnChipLayout by_tensor_cores = layout_of(problem, c);
    take_tensor_cores(by_tensor_cores, i % 2 == 0 ? 8 : 16);
    this->expect_close(this->run(problem, by_tensor_cores, {{2}}), problem, 2);
  }
}

TYPED_TEST(OnChip, TheCasesAreOfEveryKind) {
  int without_updates = 0, with_fewer_rows = 0, with_many_clusters = 0, with_many_units = 0;
  for (const Case& c : cases()) {
    if (c.clusters == 1) continue;
    const OnChipLayout layout = layout_of(random_problem<TypeParam>(c.widths, c.bias, c.samples, c.batch), c);
    without_updates += layout.updated * (layout.clusters - 1) >= layout.owned ? 1 : 0;
    with_fewer_rows += layout.cluster_rows * layout.clusters > c.batch ? 1 : 0;
    with_many_clusters += layout.clusters > 8 ? 1 : 0;
    with_many_units += layout.owned - layout.updated > 8 * kOnChipThreads ? 1 : 0;
  }
  EXPECT_GE(without_updates, 1);
  EXPECT_GE(with_fewer_rows, 3);
  EXPECT_GE(with_many_clusters, 1);
  EXPECT_GE(with_many_units, 1);
  for (const bool by_inputs : {false, true}) {
    int slices = 0, with_turns = 0, without_rows = 0, without_units = 0, without_inputs = 0, bias_alone = 0;
    for (const Case& c : cases()) {
      if (c.by_inputs != by_inputs || c.clusters > 1) continue;
      const auto problem = random_problem<TypeParam>(c.widths, c.bias, c.samples, c.batch);
      const OnChipLayout layout = layout_of(problem, c);
      without_rows += layout.rows * (layout.blocks() - 1) >= c.batch ? 1 : 0;
      without_inputs += layout.input_blocks < layout.blocks() ? 1 : 0;
      bias_alone += by_inputs && c.bias && c.widths[0] % layout.layer[0].in == 0 ? 1 : 0;
      for (int l = 0; l < layout.layers; ++l) {
        const OnChipLayer& layer = layout.layer[l];
        for (const OnChipProduct& product : {layer.forward, layer.input_gradient, layer.weight_gradient}) {
          slices |= product.slices;
          with_turns += product.tiles * product.slices > kOnChipThreads ? 1 : 0;
        }
        without_units += layer.units < layout.blocks() ? 1 : 0;
      }
    }
    EXPECT_EQ(slices, 1 | 4 | 16);
    EXPECT_GE(with_turns, 2);
    EXPECT_GE(without_rows, 1);
    EXPECT_GE(without_units, 1);
    if (!by_inputs) continue;
    EXPECT_GE(without_inputs, 2);
    EXPECT_GE(bias_alone, 1);
  }
}

// Without one of the three the error is a thousand times as large.
TYPED_TEST(OnChip, ThreeProductsInTf32AreAsAccurateAsOneInFp32) {
  if (sizeof(TypeParam) > 4) return;  // the way is for fp32
  for (const bool by_inputs : {false, true}) {
    SCOPED_TRACE(text(Split{2, by_inputs}));
    auto problem = random_problem<TypeParam>({70, 40, 3}, true, 40, 40);
    problem.optimizer = {.learning_rate = 0.5};
    problem.loss.reduction = Reduction::mean;
    const OnChipLayout layout = make_on_chip(problem.shape(), 2, by_inputs);
    OnChipLayout by_tensor_cores = layout;
    take_tensor_cores(by_tensor_cores, 8);
    const auto error = [&](const OnChipLayout& of) {
      reference::Network expected = problem.network();
      reference::OptimizerState state(problem.optimizer);
      reference::train(expected, state, problem.rows_of(problem.x, 0), problem.rows_of(problem.y, 0), 1,
                       problem.loss_function(0));
      const Result<TypeParam> result = this->run(problem, of, {{1}});
      // Of the change.
      std::vector<double> change = doubles(result.weights[0]), expected_change = expected[0].weight.values;
      for (std::size_t i = 0; i < change.size(); ++i) {
        change[i] -= static_cast<double>(problem.weights[0][i]);
        expected_change[i] -= static_cast<double>(problem.weights[0][i]);
      }
      return reference::relative_error(change, expected_change);
    };
    const double of_one = error(layout), of_three = error(by_tensor_cores);
    EXPECT_GT(of_one, 0);
    EXPECT_GT(of_three, 0);
    EXPECT_NE(of_three, of_one);
    EXPECT_LE(of_three, 8 * of_one);
  }
}

TYPED_TEST(OnChip, HasEveryOptimizer) {
  for (const OptimizerCase& each : optimizer_cases()) {
    if (each.optimizer.clip_norm > 0) continue;  // refused by the plan
    for (const Split& split : {Split{2, false}, {2, true}, {1, false, 2}, {1, true, 2}}) {
      SCOPED_TRACE(each.name + (", " + text(split)));
      auto problem = random_problem<TypeParam>({6, 9, 2}, true, 20, 8);
      problem.optimizer = each.optimizer;
      this->expect_close(this->run(problem, layout_of(problem, split), {{6}}), problem, 6);
    }
  }
}

// Of one layer and of several; those of one layer take what its predictions become behind the exchange.
TYPED_TEST(OnChip, HasEveryLossAndWeightsOfSamples) {
  using T = TypeParam;
  for (const Loss loss :
       {Loss::squared_error, Loss::absolute_error, Loss::huber, Loss::binary_cross_entropy, Loss::cross_entropy})
    for (const std::vector<std::int64_t>& widths : std::vector<std::vector<std::int64_t>>{{21, 5}, {21, 9, 5}})
      for (const Split& split : kFewSplits) {
        SCOPED_TRACE(std::to_string(static_cast<int>(loss)) + ", " + ::testing::PrintToString(widths) + ", " +
                     text(split));
        auto problem = random_problem<T>(widths, true, 30, 18);
        problem.optimizer = {.learning_rate = 0.01};
        problem.loss.loss = loss;
        problem.loss.reduction = widths.size() == 2 ? Reduction::mean : Reduction::sum;
        problem.loss.huber_delta = 0.5;
        if (loss == Loss::binary_cross_entropy)
          for (T& target : problem.y) target = target > 0 ? T(1) : T(0);
        if (loss == Loss::cross_entropy) {
          problem.y.resize(30);
          for (std::size_t i = 0; i < 30; ++i) problem.y[i] = static_cast<T>(i * 7 % 5);
        }
        for (std::size_t i = 0; i < 30; ++i) problem.row_weights.push_back(static_cast<T>(1 + i % 4) / 2);
        this->expect_close(this->run(problem, layout_of(problem, split), {{3}}), problem, 3);
      }
}

TYPED_TEST(OnChip, HasActivationsThatNeedTheirPreActivation) {
  for (const Activation activation : {Activation::gelu, Activation::tanh})
    for (const Split& split : kFewSplits) {
      SCOPED_TRACE(text(split));
      auto problem = random_problem<TypeParam>({21, 9, 5}, true, 30, 18);
      problem.optimizer = {.learning_rate = 0.01};
      problem.activation = problem.output_activation = activation;
      this->expect_close(this->run(problem, layout_of(problem, split), {{3}}), problem, 3);
    }
}

TYPED_TEST(OnChip, OneLaunchAndSeveralHaveTheSameBits) {
  for (const Split& split : kSplits) {
    SCOPED_TRACE(text(split));
    auto problem = random_problem<TypeParam>({9, 12, 7, 2}, true, 30, 22);
    problem.optimizer = {.kind = OptimizerKind::rmsprop, .learning_rate = 0.003, .momentum = 0.5, .weight_decay = 0.2};
    const OnChipLayout layout = layout_of(problem, split);
    const auto expect_same_bits = [&](const OnChipLayout& of) {
      const Result<TypeParam> one = this->run(problem, of, {{7}});
      EXPECT_EQ(one.failed, 0u);
      this->expect_same_bits(this->run(problem, of, {{7}}), one);
      this->expect_same_bits(this->run(problem, of, {{1, 2, 0, 3, 1}}), one);
    };
    expect_same_bits(layout);
    if (sizeof(TypeParam) > 4 || split.blocks_log2 > 1) continue;
    OnChipLayout by_tensor_cores = layout;
    take_tensor_cores(by_tensor_cores, 16);
    expect_same_bits(by_tensor_cores);
  }
}

TYPED_TEST(OnChip, TakesTheLossAloneOfAnyStep) {
  const auto problem = random_problem<TypeParam>({9, 12, 7, 2}, true, 30, 22);
  for (const Split& split : kFewSplits) {
    const OnChipLayout layout = layout_of(problem, split);
    for (const std::int64_t step : {0, 1, 12345}) {
      const Result<TypeParam> result = this->run(problem, layout, {{1}, 20'000'000'000, step, true});
      const reference::Table x = problem.rows_of(problem.x, step), y = problem.rows_of(problem.y, step);
      const double expected = reference::loss(reference::forward(problem.network(), x).back(), y);
      EXPECT_NEAR(result.losses.at(0) / expected, 1, sizeof(TypeParam) == 4 ? 1e-6 : 1e-14) << step;
      for (std::size_t l = 0; l < problem.weights.size(); ++l) expect_same(result.weights[l], problem.weights[l]);
      EXPECT_EQ(result.failed, 0u);
    }
  }
}

exact::Table integers(std::int64_t rows, std::int64_t columns, int most, std::uint32_t seed) {
  return {table(deviceloop::testing::random_integers<double>(rows * columns, most, seed), rows, columns), 1};
}
template <class T>
std::vector<T> rounded(const exact::Table& from) {
  return {from.table.values.begin(), from.table.values.end()};
}

TYPED_TEST(OnChip, IsExactOnSmallIntegers) {
  using T = TypeParam;
  for (const Split& split : kSplits) {
    SCOPED_TRACE(text(split));
    const std::int64_t samples = 40;
    const exact::Table x = integers(samples, 6, 1, 11), y = integers(samples, 2, 2, 12);
    const std::vector<exact::Layer> layers = {{integers(6, 9, 1, 13), integers(1, 9, 1, 14)},
                                              {integers(9, 5, 1, 15), integers(1, 5, 1, 16)},
                                              {integers(5, 2, 1, 17), integers(1, 2, 1, 18)}};
    exact::BitCounter bits;
    const exact::Pass first = exact::forward(layers, x, y, bits);
    const std::vector<exact::Layer> updated = exact::updated(layers, first, 0x1p-4, bits);
    ASSERT_LE(bits.most(), 24) << "the case is too large for fp32 to be exact";
    ASSERT_GT(first.live, 0);
    ASSERT_GT(first.blocked, 0);
    Problem<T> problem;
    problem.widths = {6, 9, 5, 2};
    problem.samples = problem.batch = samples;
    problem.optimizer.learning_rate = 0x1p-4;
    problem.x = rounded<T>(x);
    problem.y = rounded<T>(y);
    for (const exact::Layer& layer : layers) {
      problem.weights.push_back(rounded<T>(layer.weight));
      problem.biases.push_back(rounded<T>(layer.bias));
    }
    // Once in the order of the data and once in another: the sums are the same.
    const auto expect_exact = [&](bool shuffled, int columns) {
      problem.shuffled = shuffled;
      OnChipLayout layout = layout_of(problem, split);
      if (columns > 0) take_tensor_cores(layout, columns);
      const Result<T> result = this->run(problem, layout, {{1}});
      EXPECT_EQ(result.losses, std::vector<double>{first.loss});
      for (std::size_t l = 0; l < layers.size(); ++l) {
        expect_same(result.weights[l], rounded<T>(updated[l].weight));
        expect_same(result.biases[l], rounded<T>(updated[l].bias));
        EXPECT_NE(result.weights[l], problem.weights[l]);
      }
    };
    expect_exact(false, 0);
    for (const int columns : tensor_columns<T>()) expect_exact(true, columns);
  }
}

TYPED_TEST(OnChip, NaNShowsInTheStepThatTakesItsSample) {
  auto problem = random_problem<TypeParam>({9, 12, 7, 2}, true, 40, 8);
  problem.x[static_cast<std::size_t>(9 * 23 + 4)] = std::numeric_limits<TypeParam>::quiet_NaN();
  std::int64_t taken = 0;
  while (problem.order().sample(taken) != 23) ++taken;
  ASSERT_GT(taken, 7);
  for (const Split& split : kFewSplits) {
    const Result<TypeParam> result = this->run(problem, layout_of(problem, split), {{6}});
    for (std::size_t step = 0; step < result.losses.size(); ++step)
      EXPECT_EQ(std::isnan(result.losses[step]), static_cast<std::int64_t>(step) >= taken / 8) << step;
    for (const auto& weights : result.weights) EXPECT_TRUE(std::isnan(weights.front()));
  }
}

TYPED_TEST(OnChip, TwentyRunsHaveTheSameBits) {
  for (const Split& split : kFewSplits) {
    const auto problem = random_problem<TypeParam>({13, 7, 2}, true, 30, 11);
    const OnChipLayout layout = layout_of(problem, split);
    const Result<TypeParam> first = this->run(problem, layout, {{3}});
    for (int i = 1; i < 20; ++i) this->expect_same_bits(this->run(problem, layout, {{3}}), first);
  }
}

// Bytes that nobody sends: a block waits for them in vain, and then all leave.
TYPED_TEST(OnChip, WaitsInVainEndTheLaunchByItsDeadline) {
  const auto problem = random_problem<TypeParam>({9, 12, 7, 2}, true, 30, 22);
  const auto failed = [&](const OnChipLayout& layout) { return this->run(problem, layout, {{5}, 50'000'000}).failed; };
  for (const Split& split : kSplits) {
    SCOPED_TRACE(text(split));
    const OnChipLayout layout = layout_of(problem, split);
    // A block that waits for what follows may be the first to give up.
    const auto expect_late = [&](std::uint64_t code, OnChipPhase phase) {
      const bool is_followed = late_wait_phase(code) >= 1 && late_wait_phase(code) <= 6 && late_wait_step(code) <= 1;
      EXPECT_TRUE(layout.all_blocks() > 2
                      ? is_followed
                      : code == on_chip_code(phase, 0) || code == on_chip_code(OnChipPhase::kWeights, 0))
          << code;
    };
    for (const int l : {0, 2}) {
      if (split.by_inputs && l == 0) continue;
      OnChipLayout planted = layout;
      planted.layer[l].units += layout.blocks();
      expect_late(failed(planted), OnChipPhase::kGradients);
    }
    if (split.clusters > 1) {
      OnChipLayout without_owner = layout;  // nobody updates the last units
      --without_owner.updated;
      expect_late(failed(without_owner), OnChipPhase::kClusterWeights);
      EXPECT_EQ(this->run(problem, layout, {{5}, 50'000'000, 0, false, 1}).failed,
                on_chip_code(OnChipPhase::kLosses, 5));
    }
    if (!split.by_inputs) continue;
    OnChipLayout without_sum = layout, without_gradient = layout;
    without_sum.sums_bytes += 16;
    expect_late(failed(without_sum), OnChipPhase::kSums);
    without_gradient.output_gradient_bytes += 16;
    expect_late(failed(without_gradient), OnChipPhase::kOutputGradients);
  }
}

#if defined(DEVICELOOP_SIMT)
// One unit of parameters, which the first cluster updates. In order its first thread is the first to give up.
TYPED_TEST(OnChip, ASumBetweenClustersThatIsLostIsNamed) {
  const auto problem = random_problem<TypeParam>({1, 1}, false, 7, 4);
  const OnChipLayout layout = make_on_chip(problem.shape(), 0, false, 2);
  simt::set_order(simt::Order::kForward);
  const auto failed = [&](int publication) {
    simt::lose_publication(publication);
    return this->run(problem, layout, {{3}, 50'000'000}).failed;
  };
  EXPECT_EQ(failed(1), on_chip_code(OnChipPhase::kClusterGradients, 0));
  // Of each step a sum and the new value.
  EXPECT_EQ(failed(3), on_chip_code(OnChipPhase::kClusterGradients, 1));
  EXPECT_NE(failed(2), 0u);
  EXPECT_EQ(failed(7), 0u);
  simt::reset();
}
#endif

}  // namespace
}  // namespace deviceloop::cuda
