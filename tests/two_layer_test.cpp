// The two-layer kernels, on a GPU or on the host by tests/simt: against the equations in double, one launch against
// several, and what becomes of waits that are in vain.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../cuda/kernels/two_layer.h"
#include "../cuda/runtime/check.h"
#include "support/cuda_test.h"
#include "support/exact.h"
#include "support/reference.h"

namespace deviceloop::cuda {
namespace {

using deviceloop::testing::CudaTest;
using deviceloop::testing::DeviceArray;
using deviceloop::testing::expect_same;
using deviceloop::testing::random_values;

/// What a kernel trains, row-major, rounded to T.
template <class T>
struct Problem {
  std::int64_t samples, inputs, hidden, outputs;
  std::vector<T> x, y, w1, b1, w2, b2;  ///< biases are empty where there are none
  T learning_rate;

  TwoLayerShape shape() const { return {samples, inputs, hidden, outputs, sizeof(T), has_bias()}; }
  bool has_bias() const { return !b2.empty(); }
};

template <class T>
Problem<T> random_problem(std::int64_t samples, std::int64_t inputs, std::int64_t hidden, std::int64_t outputs,
                          bool bias) {
  Problem<T> problem{samples,
                     inputs,
                     hidden,
                     outputs,
                     random_values<T>(samples * inputs, 1),
                     random_values<T>(samples * outputs, 2),
                     random_values<T>(inputs * hidden, 3),
                     {},
                     random_values<T>(hidden * outputs, 4),
                     {},
                     T(0.02) / static_cast<T>(samples * outputs)};
  for (T& weight : problem.w1) weight /= std::sqrt(static_cast<T>(inputs));
  for (T& weight : problem.w2) weight /= std::sqrt(static_cast<T>(hidden));
  if (bias) {
    problem.b1 = random_values<T>(hidden, 5);
    problem.b2 = random_values<T>(outputs, 6);
  }
  return problem;
}

reference::Table table(const std::vector<double>& values, std::int64_t rows, std::int64_t columns) {
  reference::Table result(static_cast<std::size_t>(rows), static_cast<std::size_t>(columns));
  result.values = values;
  return result;
}
template <class T>
std::vector<double> doubles(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}
template <class T>
reference::Network network_of(const Problem<T>& problem) {
  return {{table(doubles(problem.w1), problem.inputs, problem.hidden), doubles(problem.b1)},
          {table(doubles(problem.w2), problem.hidden, problem.outputs), doubles(problem.b2)}};
}

/// K = X X^T, + 1 with biases, and the first pre-activations.
template <class T>
void gram_of(const Problem<T>& problem, std::vector<T>& k, std::vector<T>& z) {
  const reference::Table x = table(doubles(problem.x), problem.samples, problem.inputs);
  k.clear();
  for (std::size_t a = 0; a < x.rows; ++a)
    for (std::size_t b = 0; b < x.rows; ++b) {
      double sum = problem.has_bias() ? 1 : 0;
      for (std::size_t i = 0; i < x.columns; ++i) sum += x(a, i) * x(b, i);
      k.push_back(static_cast<T>(sum));
    }
  const std::vector<double> first = reference::forward(network_of(problem), x)[0].values;
  z.assign(first.size(), T(0));
  std::transform(first.begin(), first.end(), z.begin(), [](double value) { return static_cast<T>(value); });
}

/// What a run leaves behind.
template <class T>
struct Result {
  std::vector<T> w1, b1, w2, b2;
  std::vector<double> losses;
  std::uint64_t failed = 0;
};

/// How it is run: by launches of so many steps each.
struct Launches {
  std::vector<std::int64_t> steps;
  std::uint64_t timeout_ns = 20'000'000'000;
  std::uint64_t failed = 0;  ///< before
  unsigned first_tag = 1;
  bool cooperative = true;  ///< but never with clusters: not every GPU takes both
};

template <class T>
class TwoLayer : public CudaTest {
 protected:
  /// Only clusters of that size, at most `most` of them, without asking the device; it may have a GPU of any kind, so
  /// that no block gets more shared memory than the smallest has.
  static TwoLayerDevice device_of(int cluster_blocks, std::int64_t most) {
    TwoLayerDevice device;
    device.shared_bytes = 64 << 10;
    std::size_t log2 = 0;
    while (1 << log2 < cluster_blocks) ++log2;
    device.resident_clusters[log2] = most;
    return device;
  }
  static bool has_clusters() {
    int major = 0;
    DEVICELOOP_CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    return major >= 9;
  }

  static TwoLayerLayout layout_of(const Problem<T>& problem, int cluster_blocks, std::int64_t most) {
    const auto decision = decide_two_layer(problem.shape(), device_of(cluster_blocks, most));
    EXPECT_EQ(decision.refusal, "");
    return decision.layout;
  }
  static GramTwoLayerLayout layout_of(const Problem<T>& problem, std::int64_t most) {
    const auto decision = decide_gram_two_layer(problem.shape(), device_of(1, most));
    EXPECT_EQ(decision.refusal, "");
    EXPECT_FALSE(decision.layout.direct);
    return decision.layout;
  }
  static GramTwoLayerLayout direct_gram(const Problem<T>& problem) {
    const auto decision = decide_gram_two_layer(problem.shape(), device_of(4, 32));
    EXPECT_EQ(decision.refusal, "");
    EXPECT_TRUE(decision.layout.direct);
    return decision.layout;
  }

  static std::vector<std::uint64_t> empty_slots(std::int64_t words) {
    return std::vector<std::uint64_t>(static_cast<std::size_t>(words) * sizeof(T) / 4, 0);
  }

  static Result<T> run(const Problem<T>& problem, const TwoLayerLayout& layout, const Launches& launches) {
    const StreamOwner stream;
    const bool cooperative = launches.cooperative && layout.cluster_blocks() == 1;
    prepare_two_layer<T>(layout, cooperative);
    const DeviceArray<T> x(problem.x), y(problem.y), w1(problem.w1), b1(problem.b1), w2(problem.w2), b2(problem.b2);
    const DeviceArray<std::uint64_t> slots(empty_slots(layout.slots()));
    TwoLayerArguments<T> arguments{};
    arguments.x = x.data();
    arguments.w1 = w1.data();
    arguments.b1 = problem.has_bias() ? b1.data() : nullptr;
    const auto launch = [&] { launch_two_layer(arguments, layout, cooperative, stream.get()); };
    Result<T> result = run_launches(problem, arguments, launches, y, w2, b2, slots, stream, launch);
    result.w1 = w1.read(stream);
    result.b1 = b1.read(stream);
    x.read(stream);
    return result;
  }

  /// W1 and b1 are rebuilt in double.
  static Result<T> run(const Problem<T>& problem, const GramTwoLayerLayout& layout, const Launches& launches,
                       std::vector<T>* z_after = nullptr) {
    const StreamOwner stream;
    const bool cooperative = launches.cooperative && layout.cluster_blocks() == 1;
    prepare_gram_two_layer<T>(layout, cooperative);
    std::vector<T> first_k, first_z;
    gram_of(problem, first_k, first_z);
    const DeviceArray<T> k(first_k), y(problem.y), z(first_z), sum(std::vector<T>(first_z.size(), T(0)));
    const DeviceArray<T> w2(problem.w2), b2(problem.b2);
    const DeviceArray<std::uint64_t> slots(empty_slots(layout.slots()));
    GramTwoLayerArguments<T> arguments{};
    arguments.k = k.data();
    arguments.z = z.data();
    arguments.sum = sum.data();
    const auto launch = [&] { launch_gram_two_layer(arguments, layout, cooperative, stream.get()); };
    Result<T> result = run_launches(problem, arguments, launches, y, w2, b2, slots, stream, launch);
    const std::vector<T> sums = sum.read(stream), after = z.read(stream);
    if (z_after != nullptr) *z_after = after;
    result.w1 = problem.w1;
    result.b1 = problem.b1;
    for (std::int64_t j = 0; j < problem.hidden; ++j)
      for (std::int64_t i = problem.has_bias() ? -1 : 0; i < problem.inputs; ++i) {
        T& parameter = i < 0 ? result.b1[static_cast<std::size_t>(j)]
                             : result.w1[static_cast<std::size_t>(i * problem.hidden + j)];
        double total = static_cast<double>(parameter);
        for (std::int64_t n = 0; n < problem.samples; ++n)
          total += (i < 0 ? 1 : static_cast<double>(problem.x[static_cast<std::size_t>(n * problem.inputs + i)])) *
                   static_cast<double>(sums[static_cast<std::size_t>(n * problem.hidden + j)]);
        parameter = static_cast<T>(total);
      }
    k.read(stream);
    return result;
  }

  /// A layout whose blocks wait for one that is not there.
  static TwoLayerLayout with_one_missing(TwoLayerLayout layout) {
    ++layout.publishers;
    return layout;
  }
  static GramTwoLayerLayout with_one_missing(GramTwoLayerLayout layout) {
    ++layout.output.publishers;
    return layout;
  }

  static void expect_close(const Result<T>& result, const Problem<T>& problem, std::int64_t steps) {
    reference::Network expected = network_of(problem);
    const std::vector<double> losses = reference::train(
        expected, table(doubles(problem.x), problem.samples, problem.inputs),
        table(doubles(problem.y), problem.samples, problem.outputs), static_cast<double>(problem.learning_rate), steps);
    EXPECT_EQ(result.failed, 0u);
    const double bound = sizeof(T) == 4 ? 3e-6 : 1e-14;
    ASSERT_EQ(result.losses.size(), losses.size());
    for (std::size_t i = 0; i < losses.size(); ++i)
      EXPECT_NEAR(result.losses[i] / losses[i], 1, 10 * bound) << "step " << i;
    // The learning rate is such that the last steps still change much.
    EXPECT_LT(losses.back(), 0.999 * losses.front());
    EXPECT_LE(reference::relative_error(doubles(result.w1), expected[0].weight.values), bound);
    EXPECT_LE(reference::relative_error(doubles(result.w2), expected[1].weight.values), bound);
    if (!problem.has_bias()) return;
    EXPECT_LE(reference::relative_error(doubles(result.b1), expected[0].bias), bound);
    EXPECT_LE(reference::relative_error(doubles(result.b2), expected[1].bias), bound);
  }

  static void expect_same_bits(const Result<T>& a, const Result<T>& b) {
    expect_same(a.w1, b.w1);
    expect_same(a.b1, b.b1);
    expect_same(a.w2, b.w2);
    expect_same(a.b2, b.b2);
    expect_same(a.losses, b.losses);
  }

 private:
  template <class Arguments, class Launch>
  static Result<T> run_launches(const Problem<T>& problem, Arguments& arguments, const Launches& launches,
                                const DeviceArray<T>& y, const DeviceArray<T>& w2, const DeviceArray<T>& b2,
                                const DeviceArray<std::uint64_t>& slots, const StreamOwner& stream, Launch launch) {
    std::int64_t all = 0;
    for (const std::int64_t steps : launches.steps) all += steps;
    const DeviceArray<double> losses(all);
    const DeviceArray<std::uint64_t> failed(std::vector<std::uint64_t>{launches.failed});
    arguments.y = y.data();
    arguments.w2 = w2.data();
    arguments.b2 = problem.has_bias() ? b2.data() : nullptr;
    arguments.losses = losses.data();
    arguments.slots = reinterpret_cast<Tagged<T>*>(slots.data());
    arguments.learning_rate = problem.learning_rate;
    arguments.first_tag = launches.first_tag;
    arguments.keep = true;
    arguments.timeout_ns = launches.timeout_ns;
    arguments.failed = failed.data();
    for (const std::int64_t steps : launches.steps) {
      arguments.steps = steps;
      launch();
      arguments.losses += steps;
      arguments.first_tag += static_cast<unsigned>(steps);
    }
    Result<T> result;
    result.w2 = w2.read(stream);
    result.b2 = b2.read(stream);
    result.losses = losses.read(stream);
    result.failed = failed.read(stream)[0];
    y.read(stream);
    slots.read(stream);
    return result;
  }
};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(TwoLayer, Types);

struct Case {
  std::int64_t samples, inputs, hidden, outputs;
  bool bias;
  int cluster_blocks;
  std::int64_t most_clusters;  ///< fewer make a block take more groups of units
};

std::string text(const Case& c) {
  return std::to_string(c.inputs) + "-" + std::to_string(c.hidden) + "-" + std::to_string(c.outputs) + ", " +
         std::to_string(c.samples) + " samples, bias " + std::to_string(c.bias) + ", at most " +
         std::to_string(c.most_clusters) + " clusters of " + std::to_string(c.cluster_blocks);
}

/// Tiles of every kind, sizes that fill nothing, one and several warps, groups, clusters and blocks of them, blocks
/// without inputs, samples that a block publishes or not, slots in one round and in more.
constexpr Case kCases[] = {
    {1, 2, 3, 1, false, 1, 10},   {5, 3, 2, 1, true, 1, 10},    {33, 70, 9, 3, true, 1, 10},
    {128, 40, 10, 1, true, 2, 2}, {17, 150, 6, 1, false, 4, 2}, {40, 50, 21, 2, true, 2, 2},
    {20, 5, 3, 16, true, 4, 10},  {3, 4, 150, 1, false, 1, 80}, {65, 35, 7, 1, false, 2, 1},
    {40, 8, 7, 16, true, 1, 10},  {40, 300, 5, 2, true, 1, 10}, {5, 520, 3, 1, true, 1, 10},
    {65, 9, 4, 1, false, 8, 10},  {3, 20, 9, 2, true, 8, 10},
};
/// One output in clusters of four blocks: a sample's predictions pass from lane to lane.
constexpr Case kDirectCases[] = {
    {128, 40, 10, 1, true, 4, 10}, {100, 300, 7, 1, false, 4, 10}, {61, 9, 6, 1, true, 4, 10},
    {49, 70, 4, 1, false, 4, 10},  {65, 1000, 3, 1, true, 4, 10},  {100, 5, 38, 1, true, 4, 10},
    {48, 70, 4, 1, false, 4, 10},
};

/// Inputs that fill the registers of several warps are fewer where elements are larger.
template <class T>
std::vector<Case> primal_cases() {
  std::vector<Case> cases(std::begin(kCases), std::end(kCases));
  cases.insert(cases.end(), std::begin(kDirectCases), std::end(kDirectCases));
  for (Case& c : cases)
    if (c.inputs > 200) c.inputs = c.inputs * 4 / static_cast<std::int64_t>(sizeof(T));
  return cases;
}

TYPED_TEST(TwoLayer, IsNearTheEquationsInDouble) {
  for (const Case& c : primal_cases<TypeParam>()) {
    SCOPED_TRACE(text(c));
    if (c.cluster_blocks > 1 && !this->has_clusters()) continue;
    const auto problem = random_problem<TypeParam>(c.samples, c.inputs, c.hidden, c.outputs, c.bias);
    const TwoLayerLayout layout = this->layout_of(problem, c.cluster_blocks, c.most_clusters);
    this->expect_close(this->run(problem, layout, {{3}}), problem, 3);
  }
}

TYPED_TEST(TwoLayer, InGramIsNearTheEquationsInDouble) {
  const auto expect_near = [&](const Case& c, const GramTwoLayerLayout& layout) {
    SCOPED_TRACE(text(c));
    const auto problem = random_problem<TypeParam>(c.samples, c.inputs, c.hidden, c.outputs, c.bias);
    std::vector<TypeParam> z;
    const Result<TypeParam> result = this->run(problem, layout, {{3}}, &z);
    this->expect_close(result, problem, 3);
    // The pre-activations are those of the weights that were rebuilt.
    Problem<TypeParam> after = problem;
    after.w1 = result.w1;
    after.b1 = result.b1;
    std::vector<TypeParam> k, expected;
    gram_of(after, k, expected);
    EXPECT_LE(reference::relative_error(doubles(z), doubles(expected)), sizeof(TypeParam) == 4 ? 3e-6 : 1e-14);
  };
  const auto problem_of = [](const Case& c) {
    return random_problem<TypeParam>(c.samples, c.inputs, c.hidden, c.outputs, c.bias);
  };
  for (const Case& c : kCases) expect_near(c, this->layout_of(problem_of(c), c.most_clusters));
  std::set<int> tile_columns;
  for (const Case& c : kDirectCases) {
    if (!this->has_clusters() || c.samples < kDirectBatch) continue;
    const GramTwoLayerLayout layout = this->direct_gram(problem_of(c));
    tile_columns.insert(layout.tile_columns);
    expect_near(c, layout);
  }
  EXPECT_EQ(tile_columns.size(), this->has_clusters() ? 2u : 0u);
}

/// In random order: a wait or a barrier that is missing shows in some of many runs.
TYPED_TEST(TwoLayer, ManyRunsHaveTheSameBits) {
  const auto expect_same_runs = [&](const Problem<TypeParam>& problem, int cluster_blocks) {
    if (cluster_blocks > 1 && !this->has_clusters()) return;
    const TwoLayerLayout layout = this->layout_of(problem, cluster_blocks, 3);
    const Result<TypeParam> first = this->run(problem, layout, {{3}});
    for (int i = 0; i < 12; ++i) this->expect_same_bits(this->run(problem, layout, {{3}}), first);
  };
  expect_same_runs(random_problem<TypeParam>(65, 9, 4, 1, false), 8);
  expect_same_runs(random_problem<TypeParam>(21, 9, 5, 3, true), 2);
  expect_same_runs(random_problem<TypeParam>(53, 9, 6, 1, true), 4);
  if (!this->has_clusters()) return;
  const auto problem = random_problem<TypeParam>(53, 9, 6, 1, true);
  const Result<TypeParam> first = this->run(problem, this->direct_gram(problem), {{5}});
  for (int i = 0; i < 12; ++i) this->expect_same_bits(this->run(problem, this->direct_gram(problem), {{5}}), first);
}

TYPED_TEST(TwoLayer, TheCasesAreOfEveryKind) {
  int with_groups = 0, with_clusters = 0, with_rounds = 0, with_idle_blocks = 0, tile_columns_of_gram = 0;
  std::set<std::pair<int, int>> tiles, direct_tiles;
  for (const Case& c : primal_cases<TypeParam>()) {
    const auto problem = random_problem<TypeParam>(c.samples, c.inputs, c.hidden, c.outputs, c.bias);
    const TwoLayerLayout layout = this->layout_of(problem, c.cluster_blocks, c.most_clusters);
    with_groups += layout.groups > 1;
    with_clusters += layout.clusters > 1 && layout.cluster_blocks() > 1;
    with_rounds += (layout.samples * layout.outputs << layout.lanes_log2) > layout.threads;
    with_idle_blocks += layout.owners < layout.cluster_blocks();
    (layout.direct ? direct_tiles : tiles).emplace(layout.tile_rows, layout.tile_columns);
    if (c.cluster_blocks == 1) tile_columns_of_gram |= this->layout_of(problem, c.most_clusters).tile_columns;
  }
  EXPECT_GE(with_groups, 2);
  EXPECT_GE(with_clusters, 2);
  EXPECT_GE(with_rounds, 1);
  EXPECT_GE(with_idle_blocks, 1);
  const int narrow = 32 / static_cast<int>(sizeof(TypeParam));
  using Tiles = std::set<std::pair<int, int>>;
  const Tiles all = {{4, 2 * narrow}, {4, 4 * narrow}, {8, narrow}, {8, 2 * narrow}, {16, narrow}};
  const Tiles all_direct = {{8, narrow}, {16, narrow}};
  EXPECT_EQ(tiles, all);
  EXPECT_EQ(direct_tiles, sizeof(TypeParam) == 8 ? Tiles{} : all_direct);
  EXPECT_GE(tile_columns_of_gram, 2 | 4);
}

TYPED_TEST(TwoLayer, OneLaunchAndSeveralHaveTheSameBits) {
  const auto problem = random_problem<TypeParam>(33, 20, 10, 2, true);
  const auto expect_same_launches = [&](const Problem<TypeParam>& each, int cluster_blocks) {
    if (cluster_blocks > 1 && !this->has_clusters()) return;
    const TwoLayerLayout layout = this->layout_of(each, cluster_blocks, 2);
    const Result<TypeParam> one = this->run(each, layout, {{5}});
    this->expect_same_bits(this->run(each, layout, {{2, 3}}), one);
    // The tags may begin with any number.
    this->expect_same_bits(this->run(each, layout, {{1, 4}, 20'000'000'000, 0, 0xfffffff0u}), one);
  };
  for (const int cluster_blocks : {1, 2}) expect_same_launches(problem, cluster_blocks);
  expect_same_launches(random_problem<TypeParam>(53, 20, 7, 1, true), 4);
  const auto expect_same_gram = [&](const Problem<TypeParam>& each, const GramTwoLayerLayout& layout) {
    const Result<TypeParam> one = this->run(each, layout, {{5}});
    this->expect_same_bits(this->run(each, layout, {{2, 3}}), one);
    this->expect_same_bits(this->run(each, layout, {{1, 4}, 20'000'000'000, 0, 0xfffffff0u}), one);
  };
  expect_same_gram(problem, this->layout_of(problem, 2));
  if (!this->has_clusters()) return;
  const auto larger = random_problem<TypeParam>(53, 20, 7, 1, true);
  expect_same_gram(larger, this->direct_gram(larger));
}

TYPED_TEST(TwoLayer, InGramIsThePrimalWithinRounding) {
  if (sizeof(TypeParam) == 4) GTEST_SKIP() << "in fp64";
  for (const bool bias : {false, true}) {
    const auto problem = random_problem<TypeParam>(12, 30, 9, 2, bias);
    const Result<TypeParam> primal = this->run(problem, this->layout_of(problem, 1, 10), {{60}});
    const Result<TypeParam> gram = this->run(problem, this->layout_of(problem, 10), {{60}});
    EXPECT_LT(primal.losses.back(), 0.9 * primal.losses.front());
    for (std::size_t i = 0; i < primal.losses.size(); ++i) EXPECT_NEAR(gram.losses[i] / primal.losses[i], 1, 1e-12);
    EXPECT_LE(reference::relative_error(doubles(gram.w1), doubles(primal.w1)), 1e-12);
    EXPECT_LE(reference::relative_error(doubles(gram.w2), doubles(primal.w2)), 1e-12);
    if (!bias) continue;
    EXPECT_LE(reference::relative_error(doubles(gram.b1), doubles(primal.b1)), 1e-12);
    EXPECT_LE(reference::relative_error(doubles(gram.b2), doubles(primal.b2)), 1e-12);
  }
}

exact::Table integers(std::int64_t rows, std::int64_t columns, int most, std::uint32_t seed) {
  return {table(deviceloop::testing::random_integers<double>(rows * columns, most, seed), rows, columns), 1};
}
template <class T>
std::vector<T> rounded(const exact::Table& from) {
  return {from.table.values.begin(), from.table.values.end()};
}

TYPED_TEST(TwoLayer, IsExactOnSmallIntegers) {
  using T = TypeParam;
  struct ExactCase {
    std::int64_t samples, inputs, hidden, outputs;
    bool bias;
    double learning_rate;
    int cluster_blocks;
  };
  const ExactCase cases[] = {{6, 5, 4, 1, false, 0x1p-2, 1},   {6, 5, 4, 1, true, 0x1p-2, 2},
                             {70, 6, 5, 2, true, 0x1p-3, 1},   {65, 150, 17, 1, false, 0x1p-4, 2},
                             {33, 40, 10, 3, true, 0x1p-4, 4}, {65, 150, 17, 1, false, 0x1p-4, 4},
                             {53, 6, 5, 1, true, 0x1p-3, 4}};
  for (const ExactCase& c : cases) {
    SCOPED_TRACE(text({c.samples, c.inputs, c.hidden, c.outputs, c.bias, c.cluster_blocks, 10}));
    const exact::Table x = integers(c.samples, c.inputs, 1, 11), y = integers(c.samples, c.outputs, 2, 12);
    std::vector<exact::Layer> layers = {{integers(c.inputs, c.hidden, 1, 13), {}},
                                        {integers(c.hidden, c.outputs, 1, 14), {}}};
    if (c.bias) {
      layers[0].bias = integers(1, c.hidden, 1, 15);
      layers[1].bias = integers(1, c.outputs, 1, 16);
    }
    exact::BitCounter bits;
    const exact::Pass first = exact::forward(layers, x, y, bits);
    const std::vector<exact::Layer> updated = exact::updated(layers, first, c.learning_rate, bits);
    ASSERT_LE(bits.most(), 24) << "the case is too large for fp32 to be exact";
    ASSERT_GT(first.live, 0);
    ASSERT_GT(first.blocked, 0);
    ASSERT_GT(first.loss, 0);
    const Problem<T> problem{c.samples,
                             c.inputs,
                             c.hidden,
                             c.outputs,
                             rounded<T>(x),
                             rounded<T>(y),
                             rounded<T>(layers[0].weight),
                             rounded<T>(layers[0].bias),
                             rounded<T>(layers[1].weight),
                             rounded<T>(layers[1].bias),
                             static_cast<T>(c.learning_rate)};
    const auto expect_exact = [&](const Result<T>& result) {
      EXPECT_EQ(result.losses, std::vector<double>{first.loss});
      expect_same(result.w1, rounded<T>(updated[0].weight));
      expect_same(result.b1, rounded<T>(updated[0].bias));
      expect_same(result.w2, rounded<T>(updated[1].weight));
      expect_same(result.b2, rounded<T>(updated[1].bias));
      EXPECT_NE(result.w1, problem.w1);
    };
    if (c.cluster_blocks == 1 || this->has_clusters())
      expect_exact(this->run(problem, this->layout_of(problem, c.cluster_blocks, 10), {{1}}));
    expect_exact(this->run(problem, this->layout_of(problem, 10), {{1}}));
    if (c.outputs == 1 && c.samples >= kDirectBatch && this->has_clusters())
      expect_exact(this->run(problem, this->direct_gram(problem), {{1}}));
  }
}

TYPED_TEST(TwoLayer, NaNShowsInTheLossAndTheWeights) {
  for (const TypeParam bad :
       {std::numeric_limits<TypeParam>::quiet_NaN(), std::numeric_limits<TypeParam>::infinity()}) {
    auto problem = random_problem<TypeParam>(9, 6, 5, 1, true);
    problem.x[3 * 6 + 2] = bad;
    const auto expect_shown = [&](const Result<TypeParam>& result) {
      EXPECT_EQ(result.failed, 0u);
      EXPECT_FALSE(std::isfinite(result.losses[0]));
      EXPECT_TRUE(std::isnan(result.losses[2]));
      EXPECT_TRUE(std::isnan(result.w2[0]));
    };
    const TwoLayerLayout layout = this->layout_of(problem, 1, 10);
    expect_shown(this->run(problem, layout, {{3}}));
    if (this->has_clusters()) {
      auto larger = random_problem<TypeParam>(53, 6, 5, 1, true);
      larger.x[3 * 6 + 2] = bad;
      expect_shown(this->run(larger, this->layout_of(larger, 4, 10), {{3}}));
      expect_shown(this->run(larger, this->direct_gram(larger), {{3}}));
    }
    expect_shown(this->run(problem, this->layout_of(problem, 10), {{3}}));
  }
}

TYPED_TEST(TwoLayer, AWaitThatIsInVainEndsAllBlocks) {
  const auto problem = random_problem<TypeParam>(33, 10, 9, 1, true);
  const auto larger = random_problem<TypeParam>(53, 10, 9, 1, true);
  const auto expect_ended = [&](const Result<TypeParam>& result, std::uint64_t code) {
    const auto& before = result.losses.size() == 2 ? larger : problem;
    EXPECT_EQ(result.failed, code);
    EXPECT_EQ(result.w2, before.w2);
    EXPECT_EQ(result.b2, before.b2);
    EXPECT_TRUE(std::isnan(result.losses[0]));  // was not written
  };
  const std::uint64_t missed = two_layer_code(TwoLayerPhase::kPredictions, 0);
  // By the deadline; and without one, where somebody else has given up.
  const Launches until{{3}, 20'000'000}, given_up{{3}, 0, 99};
  for (const int cluster_blocks : {1, 2}) {
    if (cluster_blocks > 1 && !this->has_clusters()) continue;
    const auto layout = this->with_one_missing(this->layout_of(problem, cluster_blocks, 10));
    expect_ended(this->run(problem, layout, until), missed);
    expect_ended(this->run(problem, layout, given_up), 99);
  }
  if (this->has_clusters()) {
    const auto layout = this->with_one_missing(this->layout_of(larger, 4, 10));
    expect_ended(this->run(larger, layout, {{2}, 20'000'000}), missed);
    expect_ended(this->run(larger, layout, {{2}, 0, 99}), 99);
    const auto gram = this->with_one_missing(this->direct_gram(larger));
    expect_ended(this->run(larger, gram, {{2}, 20'000'000}), missed);
    expect_ended(this->run(larger, gram, {{2}, 0, 99}), 99);
  }
  const auto layout = this->with_one_missing(this->layout_of(problem, 10));
  expect_ended(this->run(problem, layout, until), missed);
  expect_ended(this->run(problem, layout, given_up), 99);
}

TYPED_TEST(TwoLayer, MoreBlocksThanAreResidentEnd) {
  int multiprocessors = 0, shared_bytes = 0;
  DEVICELOOP_CHECK_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  DEVICELOOP_CHECK_CUDA(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  const int group = units_in_group(sizeof(TypeParam));
  const auto problem = random_problem<TypeParam>(2, 3, (multiprocessors + 1) * group, 1, false);
  TwoLayerDevice device = this->device_of(1, multiprocessors + 1);
  device.shared_bytes = decide_two_layer({2, 3, group, 1, sizeof(TypeParam)}, device).layout.shared_bytes;
  TwoLayerLayout layout = decide_two_layer(problem.shape(), device).layout;
  ASSERT_EQ(layout.clusters, multiprocessors + 1);
  layout.shared_bytes = shared_bytes;  // so that a multiprocessor has one block
  prepare_two_layer<TypeParam>(layout, false);
  ASSERT_EQ(resident_two_layer<TypeParam>(layout), multiprocessors);
  EXPECT_EQ(this->run(problem, layout, {{2}, 20'000'000, 0, 1, false}).failed,
            two_layer_code(TwoLayerPhase::kPredictions, 0));
}

}  // namespace
}  // namespace deviceloop::cuda
