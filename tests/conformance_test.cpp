// One suite over every executor and both formulations: exact on small integers, within bounds over whole runs, the same
// bits on every run. A new executor is one line in the lists at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <ostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/activations.h"
#include "support/exact.h"
#include "support/gpu.h"
#include "support/problem.h"
#include "support/reference.h"
#include "support/refusal.h"
#include "support/sanitized.h"

namespace deviceloop {
namespace {

struct ExecutorUnderTest {
  ExecutorKind kind;
  int threads;
  Formulation formulation = Formulation::primal;
  PersistentForm form = PersistentForm::automatic;
};

std::ostream& operator<<(std::ostream& out, const ExecutorUnderTest& executor) {
  out << name(executor.kind);
  if (executor.kind == ExecutorKind::cpu) out << "_threads_" << executor.threads;
  if (executor.form == PersistentForm::two_layer)
    out << "_two_layer";
  else if (executor.form == PersistentForm::on_chip)
    out << "_on_chip";
  else if (executor.form != PersistentForm::automatic)
    out << "_" << name(executor.form);
  return executor.formulation == Formulation::primal ? out : out << "_" << name(executor.formulation);
}

const DeviceCaps& machine() {
  static const DeviceCaps caps = query_device_caps();
  return caps;
}

/// What the plan says against a problem here, where the executor is one of a GPU's; empty where it takes it. It is for
/// want of something that another GPU has, and the trainer must refuse with the same words.
std::string refusal_of(const Problem& problem, ExecutorKind kind) {
  if (kind == ExecutorKind::cpu) return "";
  TrainingSpec training = problem.training;
  training.samples = static_cast<std::int64_t>(problem.x.rows);
  std::string refusal;
  try {
    make_plan(problem.network, training, machine(), kind);
  } catch (const Unsupported& error) {
    refusal = error.what();
  }
  if (refusal.empty()) return "";
  constexpr const char* kReasons[] = {"fill the registers of ",
                                      " hidden units of ",
                                      " has no clusters,",
                                      " does not promise that ",
                                      " of a block's shared ",
                                      "the form 'two-layer' is for ",
                                      " by the formulation 'primal' alone"};
  EXPECT_TRUE(std::any_of(std::begin(kReasons), std::end(kReasons), [&](const char* reason) {
    return refusal.find(reason) != std::string::npos;
  })) << refusal;
  EXPECT_EQ(testing::refusal<Unsupported>("plan '", [&] { problem.trainer(1, kind); }), refusal);
  return refusal;
}

/// Whether the GPU has what an NVIDIA H100 has, as the host fixture says of its own: then each form takes a problem of
/// each test. GPUs with less shared memory, or without clusters, may refuse all that a test has for a form.
bool has_room_for_all_forms() {
  const GpuCaps& gpu = machine().gpus.at(0);
  return gpu.compute_capability >= 90 && gpu.shared_bytes >= 227 << 10 && gpu.cooperative;
}

class Conformance : public ::testing::TestWithParam<ExecutorUnderTest> {
 protected:
  void SetUp() override {
    if (GetParam().kind != ExecutorKind::cpu) testing::require_gpu(machine().no_gpu_reason);
  }
  // That a form refuses one problem or another is no failure; a test that has none for it has shown nothing.
  void TearDown() override {
    if (IsSkipped() || HasFailure() || taken_ > 0 || is_about_refusal_) return;
    const bool has_all = GetParam().kind == ExecutorKind::cpu || has_room_for_all_forms();
    ASSERT_FALSE(has_all) << "nothing was tested: no problem was taken; the last refusal: " << last_refusal_;
    GTEST_SKIP() << "this GPU has no room for any problem of the test: " << last_refusal_;
  }
  static bool is_gram() { return GetParam().formulation == Formulation::gram; }
  /// Which has one hidden layer of ReLU, and no other form beside it for other networks.
  static bool is_two_layer_gram() { return is_gram() && GetParam().form == PersistentForm::two_layer; }
  /// Of these, what the form under test can have.
  static std::vector<std::int64_t> layers_here(const std::vector<std::int64_t>& widths) {
    return is_two_layer_gram() ? std::vector<std::int64_t>{widths[0], widths[1], widths.back()} : widths;
  }
  /// Those that round the operands of products.
  static bool takes_lower_precisions() { return GetParam().kind == ExecutorKind::cpu && !is_gram(); }
  // What a formulation shares with the other one takes too long there to be shown twice.
  static bool is_gram_on_fixture() { return is_gram() && kHostFixture; }
  /// Whether the form under test has room for it: a block's shared memory is small, and so are the registers of a
  /// cluster on a GPU of few multiprocessors. Each test asks for each of its problems.
  bool has_room(const Problem& problem) {
    const std::string refusal = refusal_of(under_test(problem), GetParam().kind);
    if (!refusal.empty()) {
      last_refusal_ = refusal;
      return false;
    }
    ++taken_;
    return true;
  }
  /// The test is about a problem that the form cannot take on any GPU.
  void expect_no_room(const Problem& problem) {
    EXPECT_FALSE(has_room(problem));
    is_about_refusal_ = true;
  }
  static Problem under_test(Problem problem) {
    problem.training.formulation = GetParam().formulation;
    problem.training.form = GetParam().form;
    // Where that form is not for the network, the one that is.
    if (GetParam().form == PersistentForm::on_chip && !is_for_on_chip(problem))
      problem.training.form = PersistentForm::automatic;
    if (GetParam().form == PersistentForm::two_layer &&
        (problem.network.layers() != 2 || problem.x.rows > 128 || problem.network.widths.back() > 16 ||
         problem.network.activation != Activation::relu))
      problem.training.form = PersistentForm::automatic;
    return problem;
  }
  /// Whether a block's shared memory has room for the parameters and a block's rows.
  static bool is_for_on_chip(const Problem& problem) {
    const std::vector<std::int64_t>& widths = problem.network.widths;
    std::int64_t parameters = 0, width = widths.front();
    for (std::size_t l = 1; l < widths.size(); ++l) {
      parameters += (widths[l - 1] + 1) * widths[l];
      width += 2 * widths[l];
    }
    return widths.size() <= 5 && parameters <= 10000 && width * static_cast<std::int64_t>(problem.x.rows) / 16 <= 4000;
  }
  static Trainer trainer_of(const Problem& problem) { return trainer_of(problem, GetParam().threads); }
  static Trainer trainer_of(const Problem& problem, int threads) {
    return under_test(problem).trainer(threads, GetParam().kind);
  }

 private:
  int taken_ = 0;
  std::string last_refusal_ = "none";
  bool is_about_refusal_ = false;
};

/// Of two lists that hold something.
bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return !a.empty() && a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// ---- exact lane

exact::Table integers(std::int64_t rows, std::int64_t columns, int largest, std::uint32_t& state) {
  exact::Table out{reference::Table(static_cast<std::size_t>(rows), static_cast<std::size_t>(columns)), 1};
  for (double& value : out.table.values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<int>((state >> 16) % static_cast<std::uint32_t>(2 * largest + 1)) - largest;
  }
  return out;
}

struct ExactCase {
  std::vector<std::int64_t> widths;
  bool bias;
  std::int64_t samples;
  double learning_rate;
  bool second_loss;  // bits triple with each step: not every case has room for it
};

TEST_P(Conformance, IsExactOnSmallIntegers) {
  const ExactCase cases[] = {
      {{3, 1}, false, 4, 0x1p-3, true},         {{5, 4, 1}, false, 6, 0x1p-2, true},
      {{5, 4, 1}, true, 6, 0x1p-2, true},       {{6, 5, 2}, true, 70, 0x1p-3, false},
      {{4, 3, 3, 2}, true, 9, 0x1p-1, true},    {{257, 17, 1}, false, 65, 0x1p-4, false},
      {{33, 20, 3}, true, 1500, 0x1p-5, false}, {{4, 6, 5, 1}, true, 4096, 0x1p-6, false},
      {{4, 20, 18, 1}, true, 5, 0x1p-2, false}, {{3, 17, 18}, false, 4, 0x1p-2, false},
  };
  std::uint32_t state = 5;
  for (const ExactCase& c : cases) {
    if (is_gram() && c.samples > (kHostFixture ? 100 : 2000)) continue;  // K has samples^2 elements
    SCOPED_TRACE(::testing::PrintToString(c.widths) + " bias " + std::to_string(c.bias) + " samples " +
                 std::to_string(c.samples));
    const exact::Table x = integers(c.samples, c.widths.front(), 1, state);
    const exact::Table y = integers(c.samples, c.widths.back(), 2, state);
    std::vector<exact::Layer> layers;
    for (std::size_t l = 0; l + 1 < c.widths.size(); ++l) {
      layers.push_back({integers(c.widths[l], c.widths[l + 1], 1, state), {}});
      if (c.bias) layers.back().bias = integers(1, c.widths[l + 1], 1, state);
    }
    exact::BitCounter bits, second_bits;
    const exact::Pass first = exact::forward(layers, x, y, bits);
    const std::vector<exact::Layer> updated = exact::updated(layers, first, c.learning_rate, bits);
    const exact::Pass second = exact::forward(updated, x, y, second_bits);
    if (is_gram() && c.second_loss) {
      const exact::Table z = exact::updated_pre_activation(layers, first, c.learning_rate, second_bits);
      ASSERT_EQ(z.table.values, second.z[0].table.values);
    }
    ASSERT_LE(bits.most(), 24) << "the case is too large for fp32 to be exact";
    if (c.second_loss) {
      ASSERT_LE(second_bits.most(), 24) << "the second loss of the case is too large";
    }
    if (layers.size() > 1) {
      ASSERT_GT(first.live, 0);
      ASSERT_GT(first.blocked, 0);
    }
    ASSERT_GT(first.loss, 0);

    for (const Precision precision : {Precision::fp32, Precision::fp64}) {
      if (kHostFixture && c.samples > 1000 && precision == Precision::fp64) continue;
      Problem problem;
      problem.network.widths = c.widths;
      problem.network.bias = c.bias;
      problem.training.precision = precision;
      problem.training.optimizer.learning_rate = c.learning_rate;
      problem.x = x.table;
      problem.y = y.table;
      for (const exact::Layer& layer : layers) problem.start.push_back({layer.weight.table, layer.bias.table.values});
      if (!has_room(problem)) continue;
      Trainer trainer = trainer_of(problem);
      EXPECT_EQ(trainer.loss(), first.loss);
      EXPECT_EQ(trainer.train(1).losses.at(0), first.loss);
      const reference::Network after = problem.parameters_of(trainer);
      bool changed = false;
      for (std::size_t l = 0; l < after.size(); ++l) {
        EXPECT_EQ(after[l].weight.values, updated[l].weight.table.values) << "layer " << l;
        EXPECT_EQ(after[l].bias, updated[l].bias.table.values) << "layer " << l;
        changed |= after[l].weight.values != layers[l].weight.table.values;
      }
      EXPECT_TRUE(changed);
      if (c.second_loss) {
        EXPECT_EQ(trainer.loss(), second.loss);
      }
    }
  }
}

/// As small as a network can be for every phase of a form, and for several warps and blocks where the form has several:
/// for tools that slow a kernel a hundred times, such as racecheck.
struct TinyCase {
  std::vector<std::int64_t> widths;
  std::int64_t samples;
  std::vector<Precision> precisions;
  std::uint32_t sparse;  ///< one in so many elements of x is not 0: else the sums of many need too many bits
  std::uint32_t seed;    ///< one of those that leave every step something to do, and bits to spare
};

TEST_P(Conformance, IsExactOnTinyIntegers) {
  constexpr Precision fp32 = Precision::fp32, fp64 = Precision::fp64;
  const TinyCase cases[] = {
      {{3, 2, 2, 1}, 17, {fp32, fp64}, 1, 7471},
      // The forms for two layers: several blocks; and clusters, as one block's registers do not hold so many inputs.
      {{3, 9, 2}, 17, {fp32, fp64}, 1, 682},
      {{1025, 5, 1}, 5, {fp32}, 64, 320},
      {{513, 5, 1}, 5, {fp64}, 64, 173},
  };
  constexpr double kRate = 0.5;
  for (const TinyCase& c : cases) {
    const bool is_for_two_layers = c.widths.size() == 3, has_many_inputs = c.widths.front() > 500;
    if (GetParam().kind != ExecutorKind::cpu && is_for_two_layers != (GetParam().form == PersistentForm::two_layer))
      continue;
    SCOPED_TRACE(::testing::PrintToString(c.widths));
    std::uint32_t state = c.seed;
    exact::Table x = integers(c.samples, c.widths.front(), 1, state);
    if (c.sparse > 1)
      for (double& value : x.table.values) {
        state = state * 1664525u + 1013904223u;
        if ((state >> 16) % c.sparse != 0) value = 0;
      }
    exact::Table y = integers(c.samples, c.widths.back(), 1, state);
    std::vector<exact::Layer> start;
    for (std::size_t l = 0; l + 1 < c.widths.size(); ++l) {
      const exact::Table weight = integers(c.widths[l], c.widths[l + 1], 1, state);
      start.push_back({weight, integers(1, c.widths[l + 1], 1, state)});
    }
    // Targets near the first predictions keep the numbers small.
    exact::BitCounter bits;
    y = exact::add(y, 1, exact::forward(start, x, y, bits).z.back(), bits);

    for (const Precision precision : c.precisions) {
      const int steps = precision == fp32 ? 2 : 3;
      bits = {};
      std::vector<exact::Layer> layers = start;
      std::vector<double> losses;
      exact::Table sum{reference::Table(x.table.rows, start[0].weight.table.columns), 1};
      for (int step = 0; step < steps; ++step) {
        const exact::Pass pass = exact::forward(layers, x, y, bits);
        ASSERT_GT(pass.live, 0) << "step " << step;
        ASSERT_GT(pass.blocked, 0) << "step " << step;
        losses.push_back(pass.loss);
        sum = exact::add(sum, -kRate, exact::gradients(layers, pass, bits)[0], bits);
        const std::vector<exact::Layer> updated = exact::updated(layers, pass, kRate, bits);
        const exact::Table z = exact::updated_pre_activation(layers, pass, kRate, bits);
        exact::BitCounter of_no_executor;
        ASSERT_EQ(z.table.values, exact::forward(updated, x, y, of_no_executor).z[0].table.values);
        for (std::size_t l = 0; l < layers.size(); ++l) {
          ASSERT_NE(updated[l].weight.table.values, layers[l].weight.table.values) << "step " << step;
          ASSERT_NE(updated[l].bias.table.values, layers[l].bias.table.values) << "step " << step;
        }
        layers = updated;
      }
      // The Gram formulation has them from the sums of its steps.
      const exact::Table one = exact::ones(1, x.table.rows);
      const exact::Table change = exact::multiply(x, true, sum, false, bits);
      const exact::Table bias_change = exact::multiply(one, false, sum, false, bits);
      ASSERT_EQ(exact::add(start[0].weight, 1, change, bits).table.values, layers[0].weight.table.values);
      ASSERT_EQ(exact::add(start[0].bias, 1, bias_change, bits).table.values, layers[0].bias.table.values);
      ASSERT_LE(bits.most(), precision == fp32 ? 24 : 53) << "the case is too large to be exact";

      Problem problem;
      problem.network.widths = c.widths;
      problem.network.bias = true;
      problem.training.precision = precision;
      problem.training.optimizer.learning_rate = kRate;
      problem.x = x.table;
      problem.y = y.table;
      for (const exact::Layer& layer : start) problem.start.push_back({layer.weight.table, layer.bias.table.values});
      if (!has_room(problem)) continue;
      Trainer trainer = trainer_of(problem);
      const TrainReport report = trainer.train(steps);
      EXPECT_EQ(report.losses, losses);
      const reference::Network after = problem.parameters_of(trainer);
      for (std::size_t l = 0; l < after.size(); ++l) {
        EXPECT_EQ(after[l].weight.values, layers[l].weight.table.values) << "layer " << l;
        EXPECT_EQ(after[l].bias, layers[l].bias.table.values) << "layer " << l;
      }
      if (GetParam().form == PersistentForm::automatic) continue;
      const std::string how = report.algorithms.at(0);
      const bool in_clusters = has_many_inputs && !is_gram();
      EXPECT_MENTIONS(how, GetParam().form == PersistentForm::on_chip ? " on chip, "
                           : in_clusters                              ? " clusters of "
                                                                      : " blocks of ");
      EXPECT_TRUE(in_clusters || how.substr(0, 2) != "1 ") << how;
    }
  }
}

// ---- one product

/// The relative Frobenius error that a sum of `terms` products may have, with nothing but rounding.
double product_bound(std::int64_t terms, Precision precision) {
  return std::sqrt(static_cast<double>(terms)) * (precision == Precision::fp32 ? 0x1p-24 : 0x1p-53);
}

TEST_P(Conformance, OneProductIsAsExactAsItsPrecision) {
  for (const Precision precision : {Precision::fp32, Precision::fp64})
    for (const std::int64_t outputs : {1, 20})
      for (const std::int64_t terms : {1, 33, 257, 1000}) {
        SCOPED_TRACE(std::to_string(terms) + " terms, " + std::to_string(outputs) + " outputs");
        // Forward: a layer's prediction.
        Problem problem = Problem::random({terms, outputs}, false, 40, precision, Init::normal, 0.5);
        if (is_two_layer_gram()) return expect_no_room(problem);
        if (!has_room(problem)) continue;
        Trainer forward = trainer_of(problem);
        std::vector<double> got(static_cast<std::size_t>(40 * outputs));
        forward.predict(Problem::view(problem.x), Matrix(got.data(), 40, outputs));
        EXPECT_LE(reference::relative_error(got, reference::forward(problem.start, problem.x).back().values),
                  product_bound(terms, precision));
        // Update: from weights of 0 one step at a rate of 1/2 leads to x^T y.
        problem = Problem::random({30, outputs}, false, terms, precision, Init::normal, 0.5);
        if (!has_room(problem)) continue;
        std::fill(problem.start[0].weight.values.begin(), problem.start[0].weight.values.end(), 0.0);
        Trainer update = trainer_of(problem);
        update.train(1);
        std::vector<double> expected(static_cast<std::size_t>(30 * outputs));
        for (std::size_t n = 0; n < static_cast<std::size_t>(terms); ++n)
          for (std::size_t i = 0; i < 30; ++i)
            for (std::size_t o = 0; o < static_cast<std::size_t>(outputs); ++o)
              expected[i * static_cast<std::size_t>(outputs) + o] +=
                  problem.x.values[n * 30 + i] * problem.y.values[n * static_cast<std::size_t>(outputs) + o];
        EXPECT_LE(reference::relative_error(problem.parameters_of(update)[0].weight.values, expected),
                  product_bound(terms, precision));
      }
}

// ---- whole runs

void expect_within_bounds(const std::vector<double>& losses, const std::vector<double>& expected, Precision precision) {
  ASSERT_EQ(losses.size(), expected.size());
  const double relative = precision == Precision::fp64 ? 1e-10 : 1e-4;
  for (std::size_t i = 0; i < losses.size(); ++i)
    ASSERT_LE(reference::loss_error(losses[i], expected[i], expected[0]), relative) << "step " << i;
}

void expect_within_bounds(const reference::Network& network, const reference::Network& expected, Precision precision) {
  const double bound = precision == Precision::fp64 ? 1e-10 : 1e-5;
  ASSERT_EQ(network.size(), expected.size());
  for (std::size_t l = 0; l < expected.size(); ++l) {
    ASSERT_LE(reference::relative_error(network[l].weight.values, expected[l].weight.values), bound) << "layer " << l;
    if (!expected[l].bias.empty()) {
      ASSERT_LE(reference::relative_error(network[l].bias, expected[l].bias), 10 * bound) << "layer " << l;
    }
  }
}

/// The largest over the run, relative as in the bounds.
double largest_error(const std::vector<double>& losses, const std::vector<double>& expected) {
  double largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i)
    largest = reference::larger_error(largest, reference::loss_error(losses.at(i), expected[i], expected[0]));
  return largest;
}

void check_run(const Problem& problem, Trainer trainer, std::int64_t steps) {
  reference::Network expected = problem.start;
  const std::vector<double> losses =
      reference::train(expected, problem.x, problem.y, problem.training.optimizer.learning_rate, steps);
  const TrainReport report = trainer.train(steps);
  expect_within_bounds(report.losses, losses, problem.training.precision);
  expect_within_bounds(problem.parameters_of(trainer), expected, problem.training.precision);
}

// The rate is one at which the loss falls steadily: beyond it a run amplifies its rounding without bound.
TEST_P(Conformance, FollowsTheReferenceOverALiveRun) {
  const std::int64_t steps = kHostFixture ? 20 : 200;
  std::vector<Precision> precisions = {Precision::fp32, Precision::fp64};
  if (takes_lower_precisions()) precisions.push_back(Precision::tf32x3);  // within the bounds of fp32
  for (const Precision precision : precisions) {
    for (const bool bias : {false, true}) {
      if (is_gram() && kSlowMachine && !(bias && precision == Precision::fp32)) continue;
      const Problem problem = Problem::random(layers_here({24, 20, 12, 2}), bias, 70, precision, Init::he, 5e-5);
      if (!has_room(problem)) continue;
      Trainer trainer = trainer_of(problem);
      reference::Network trained = problem.start;
      const std::vector<double> expected =
          reference::train(trained, problem.x, problem.y, problem.training.optimizer.learning_rate, steps);
      const std::vector<double> losses = trainer.train(steps).losses;
      const reference::Network network = problem.parameters_of(trainer);
      expect_within_bounds(losses, expected, precision);
      expect_within_bounds(network, trained, precision);
      EXPECT_LT(losses.back(), (kHostFixture ? 0.95 : 0.6) * losses.front());
      if (precision == Precision::fp32) {
        const std::vector<double> on_cpu = problem.trainer(1, ExecutorKind::cpu).train(steps).losses;
        const double bound = 10 * largest_error(on_cpu, expected) + 1e-6;
        ASSERT_TRUE(std::isfinite(bound));
        EXPECT_LE(largest_error(losses, expected), bound);
      }
      const double live = reference::live_fraction(network, problem.x);
      EXPECT_GE(live, 0.2);
      EXPECT_LE(live, 0.8);
    }
  }
}

// Wide and narrow layers, which executors treat differently, above each other in each order.
TEST_P(Conformance, FollowsTheReferenceWithEveryActivation) {
  constexpr std::size_t count = std::size(testing::kActivationFormulas);
  const std::vector<reference::Activation> references = testing::reference_activations();
  for (std::size_t i = 0; i < count; ++i)
    for (const std::vector<std::int64_t>& widths :
         {std::vector<std::int64_t>{5, 18, 3, 17, 2}, std::vector<std::int64_t>{6, 7, 20}})
      for (const bool bias : {true, false}) {
        if (kHostFixture && bias != (widths.size() > 3)) continue;
        SCOPED_TRACE(testing::kActivationFormulas[i].name + std::string(", ") + ::testing::PrintToString(widths));
        Problem problem = Problem::random(widths, bias, 9, Precision::fp64, Init::xavier, 1e-2);
        problem.network.activation = testing::kActivationFormulas[i].activation.kind;
        problem.network.leaky_slope = testing::kActivationFormulas[i].activation.leaky_slope;
        if (is_two_layer_gram()) {
          expect_no_room(problem);
          continue;
        }
        if (!has_room(problem)) continue;
        reference::Network expected = problem.start;
        const std::vector<double> losses = reference::train(expected, problem.x, problem.y, 1e-2, 2, references[i]);
        Trainer trainer = trainer_of(problem);
        expect_within_bounds(trainer.train(2).losses, losses, Precision::fp64);
        const reference::Network trained = problem.parameters_of(trainer);
        for (std::size_t l = 0; l < expected.size(); ++l) {
          EXPECT_LE(reference::relative_error(trained[l].weight.values, expected[l].weight.values), 1e-13);
          EXPECT_GT(reference::relative_error(trained[l].weight.values, problem.start[l].weight.values), 1e-4);
        }
        // Prediction, of other rows, is another way through the layers.
        const reference::Table x = Problem::filled(4, widths.front(), Precision::fp64, 99, kTensorX);
        std::vector<double> prediction(4 * static_cast<std::size_t>(widths.back()));
        trainer.predict(Problem::view(x), Matrix(prediction.data(), 4, widths.back()));
        EXPECT_LE(reference::relative_error(prediction, reference::forward(trained, x, references[i]).back().values),
                  1e-13);
      }
}

TEST_P(Conformance, FollowsTheReferenceOverManySamples) {
  if (is_gram_on_fixture()) GTEST_SKIP() << "K is large, and shows nothing there";
  for (const Precision precision : {Precision::fp32, Precision::fp64}) {
    // More than 1024: sums in two stages.
    const std::int64_t samples = kHostFixture ? 601 : is_gram() ? 1101 : 3001;
    const Problem problem = Problem::random({10, 16, 8, 2}, true, samples, precision, Init::he, 1e-6);
    if (is_two_layer_gram()) {
      expect_no_room(problem);
      continue;
    }
    if (!has_room(problem)) continue;
    check_run(problem, trainer_of(problem), kSlowMachine ? 3 : 40);
  }
}

// More samples than one block of the sum over the batch, more parameters than a slot may hold.
TEST_P(Conformance, FollowsTheReferenceOverManySamplesOfALargeNetwork) {
  const Problem problem = Problem::random({440, 300, 2}, true, 1030, Precision::fp64, Init::he, 1e-7);
  if (GetParam().kind == ExecutorKind::persistent) return expect_no_room(problem);
  if (kSlowMachine) GTEST_SKIP() << "takes a minute there";
  if (has_room(problem)) check_run(problem, trainer_of(problem), 2);
}

TEST_P(Conformance, FollowsTheReferenceInOddShapes) {
  using Samples = std::vector<std::int64_t>;
  const std::vector<std::vector<std::int64_t>> shapes = {{1, 1},       {1, 1, 1},       {3, 17, 1},
                                                         {17, 3, 257}, {257, 1, 3},     {5, 3, 17, 3, 5, 2},
                                                         {1, 257, 1},  {64, 64, 64, 1}, {2, 1, 2}};
  for (const auto& widths : shapes)
    for (const std::int64_t samples : kSlowMachine ? Samples{1, 65} : Samples{1, 2, 63, 65, 130})
      for (const bool bias : {false, true})
        for (const Precision precision : {Precision::fp32, Precision::fp64}) {
          if (is_gram_on_fixture() && !(samples == 65 && bias && precision == Precision::fp32)) continue;
          SCOPED_TRACE(::testing::PrintToString(widths) + " samples " + std::to_string(samples));
          // A rate at which even the widest of them descends slowly.
          const double rate = 1e-4 / static_cast<double>(samples);
          const Problem problem = Problem::random(widths, bias, samples, precision, Init::xavier, rate);
          if (has_room(problem)) check_run(problem, trainer_of(problem), kHostFixture ? 3 : 10);
        }
}

// ---- the same bits

struct Outcome {
  std::vector<double> losses, parameters;
};

Outcome run_of(const Problem& problem, Trainer trainer, std::int64_t steps) {
  Outcome run;
  run.losses = trainer.train(steps).losses;
  run.parameters = flat(problem.parameters_of(trainer));
  return run;
}

std::vector<Problem> repeat_problems(bool is_gram, bool takes_lower_precisions) {
  if (kHostFixture)
    return {Problem::random({30, 20, 1}, false, 40, Precision::fp32, Init::normal, 1e-7),
            Problem::random({9, 17, 3}, true, is_gram ? 50 : 300, Precision::fp64, Init::he, 1e-6)};
  std::vector<Problem> problems = {
      Problem::random({300, 40, 1}, false, 128, Precision::fp32, Init::normal, 1e-7),
      Problem::random({20, 16, 8, 2}, true, is_gram ? 1030 : 1500, Precision::fp32, Init::he, 1e-6),
      Problem::random({50, 30, 3}, true, 200, Precision::fp64, Init::he, 1e-5)};
  if (takes_lower_precisions)
    for (const Precision precision : {Precision::tf32x3, Precision::bf16, Precision::fp16})
      problems.push_back(Problem::random({50, 30, 3}, true, 200, precision, Init::he, 1e-5));
  return problems;
}

TEST_P(Conformance, GivesTheSameBitsOnEveryRunAndForAnyNumberOfThreads) {
  const std::int64_t steps = kHostFixture ? 5 : 25;
  for (const Problem& problem : repeat_problems(is_gram(), takes_lower_precisions())) {
    if (!has_room(problem)) continue;
    const Outcome first = run_of(problem, trainer_of(problem, 1), steps);
    for (int rerun = 0; rerun < (kSlowMachine ? 2 : is_gram() ? 6 : 20); ++rerun) {
      const Outcome again = run_of(problem, trainer_of(problem), steps);
      ASSERT_TRUE(same_bits(again.losses, first.losses)) << "rerun " << rerun;
      ASSERT_TRUE(same_bits(again.parameters, first.parameters)) << "rerun " << rerun;
    }
  }
}

TEST_P(Conformance, OneCallEqualsThreeCalls) {
  for (Problem problem : repeat_problems(is_gram(), takes_lower_precisions())) {
    if (!has_room(problem)) continue;
    if (is_gram() && problem.network.bias) problem.training.reprojection_steps = 4;
    Trainer at_once = trainer_of(problem), trainer = trainer_of(problem);
    Outcome whole, parts;
    whole.losses = at_once.train(30).losses;
    ASSERT_EQ(whole.losses.size(), 30u);
    std::vector<double> upcoming = whole.losses;  // that of each step, and of the one behind the last
    upcoming.push_back(at_once.loss());
    whole.parameters = flat(problem.parameters_of(at_once));
    for (const std::int64_t steps : {7, 1, 22}) {
      const TrainReport report = trainer.train(steps);
      EXPECT_EQ(report.first_step, static_cast<std::int64_t>(parts.losses.size()));
      parts.losses.insert(parts.losses.end(), report.losses.begin(), report.losses.end());
      // Looking on does not disturb the run.
      ASSERT_LT(parts.losses.size(), upcoming.size());
      EXPECT_EQ(trainer.loss(), upcoming[parts.losses.size()]);
      problem.parameters_of(trainer);
    }
    parts.parameters = flat(problem.parameters_of(trainer));
    EXPECT_TRUE(same_bits(whole.losses, parts.losses));
    EXPECT_TRUE(same_bits(whole.parameters, parts.parameters));
  }
}

TEST_P(Conformance, SeveralTrainersOnSeveralThreadsDoNotDisturbEachOther) {
  if (is_gram_on_fixture()) GTEST_SKIP() << "as in the primal there";
  std::vector<Problem> problems = repeat_problems(is_gram(), takes_lower_precisions());
  std::erase_if(problems, [&](const Problem& problem) { return !has_room(problem); });
  std::vector<Outcome> alone, together(problems.size());
  for (const Problem& problem : problems) alone.push_back(run_of(problem, trainer_of(problem), 25));
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < problems.size(); ++i)
    threads.emplace_back([&, i] { together[i] = run_of(problems[i], trainer_of(problems[i]), 25); });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < problems.size(); ++i) {
    EXPECT_TRUE(same_bits(alone[i].losses, together[i].losses)) << i;
    EXPECT_TRUE(same_bits(alone[i].parameters, together[i].parameters)) << i;
  }
}

// ---- predictions and divergence

TEST_P(Conformance, PredictsNewRowsOfAnyNumber) {
  for (const Precision precision : {Precision::fp32, Precision::fp64}) {
    if (is_gram_on_fixture() && precision == Precision::fp64) continue;
    const Problem problem = Problem::random(layers_here({30, 20, 10, 3}), true, 50, precision, Init::he, 1e-4);
    if (!has_room(problem)) continue;
    Trainer trainer = trainer_of(problem);
    trainer.train(20);
    const reference::Network network = problem.parameters_of(trainer);
    for (const std::int64_t rows : is_gram_on_fixture() ? std::vector<std::int64_t>{5}
                                   : kHostFixture       ? std::vector<std::int64_t>{1, 1025}
                                                        : std::vector<std::int64_t>{1, 63, 64, 65, 1000, 1025}) {
      const reference::Table x = Problem::filled(rows, 30, Precision::fp64, 99, kTensorX);
      const reference::Table expected = reference::forward(network, x).back();
      std::vector<double> wide(static_cast<std::size_t>(rows * 5), -7);
      trainer.predict(Problem::view(x), Matrix(wide.data(), rows, 3, 5));
      std::vector<double> got;
      for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
        got.insert(got.end(), &wide[row * 5], &wide[row * 5] + 3);
        EXPECT_EQ(wide[row * 5 + 3], -7);
      }
      EXPECT_LE(reference::relative_error(got, expected.values), precision == Precision::fp32 ? 1e-6 : 1e-14);
    }
  }
}

TEST_P(Conformance, ReportsWhereARunDiverges) {
  const Problem problem = Problem::random({20, 10, 1}, false, 32, Precision::fp32, Init::normal, 0.5);
  if (!has_room(problem)) return;
  Trainer trainer = trainer_of(problem);
  const TrainReport report = trainer.train(kHostFixture ? 40 : 100);
  ASSERT_TRUE(report.first_non_finite_step.has_value());
  const std::int64_t first = *report.first_non_finite_step;
  EXPECT_GT(first, 0);
  for (std::int64_t step = 0; step < report.steps(); ++step)
    EXPECT_EQ(std::isfinite(report.losses[static_cast<std::size_t>(step)]), step < first) << step;
}

// ---- the Gram formulation

class GramConformance : public Conformance {
 protected:
  static Trainer gram(Problem problem, std::int64_t reprojection_steps = 0) {
    problem.training.reprojection_steps = reprojection_steps;
    return trainer_of(std::move(problem));
  }
  // The same run in the primal, on the CPU.
  static Trainer primal(const Problem& problem) { return problem.trainer(1, ExecutorKind::cpu); }

  static void expect_equal(const Problem& problem, const Trainer& gram, const Trainer& primal) {
    const reference::Network got = problem.parameters_of(gram), expected = problem.parameters_of(primal);
    ASSERT_EQ(got.size(), static_cast<std::size_t>(problem.network.layers()));
    for (std::size_t l = 0; l < got.size(); ++l) {
      EXPECT_LE(reference::relative_error(got[l].weight.values, expected[l].weight.values), 1e-12) << "layer " << l;
      if (problem.network.bias) {
        EXPECT_LE(reference::relative_error(got[l].bias, expected[l].bias), 1e-12) << "layer " << l;
      }
    }
  }
  static void expect_equal(const std::vector<double>& got, const std::vector<double>& expected) {
    ASSERT_EQ(got.size(), expected.size());
    ASSERT_FALSE(got.empty());
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_LE(std::abs(got[i] / expected[i] - 1), 1e-11) << "step " << i;
  }
};

// With more features than samples and with fewer.
TEST_P(GramConformance, AgreesWithThePrimalInDouble) {
  const std::int64_t steps = kHostFixture ? 15 : 500;
  for (const std::int64_t features : {90, 20})
    for (const bool bias : {false, true})
      for (const std::int64_t reprojection : {0, 7}) {
        if (kHostFixture && !(bias && (features == 90) == (reprojection == 0))) continue;
        SCOPED_TRACE(std::to_string(features) + " features, reprojected every " + std::to_string(reprojection));
        const Problem problem = Problem::random(layers_here({features, 20, 12, 2}), bias, 40, Precision::fp64, Init::he,
                                                features > 40 ? 3e-5 : 1e-4);
        if (!has_room(problem)) continue;
        Trainer trainer = gram(problem, reprojection), expected = primal(problem);
        const std::vector<double> losses = expected.train(steps).losses;
        expect_equal(trainer.train(steps).losses, losses);
        expect_equal(problem, trainer, expected);
        EXPECT_LT(losses.back(), (kHostFixture ? 0.98 : 0.6) * losses.front());
        const double live = reference::live_fraction(problem.parameters_of(expected), problem.x);
        EXPECT_GE(live, 0.2);
        EXPECT_LE(live, 0.8);
      }
}

// What is written between steps counts, and what is not stays as trained.
TEST_P(GramConformance, FollowsParametersAndDataThatAreWrittenInBetween) {
  const auto problem_of = [](std::int64_t samples) {
    return Problem::random(layers_here({30, 18, 5, 2}), true, samples, Precision::fp64, Init::he, 1e-4);
  };
  const Problem problem = problem_of(20);
  if (!has_room(problem_of(33))) return;  // what it has in the end
  Trainer trainer = gram(problem, 3), expected = primal(problem);
  const auto on_both = [&](const auto& change) {
    change(trainer);
    change(expected);
    EXPECT_LE(std::abs(trainer.loss() / expected.loss() - 1), 1e-12);
    expect_equal(trainer.train(5).losses, expected.train(5).losses);
    expect_equal(problem, trainer, expected);
  };
  const auto filled = [](std::int64_t rows, std::int64_t columns) {
    return Problem::filled(rows, columns, Precision::fp64, 3, 5);
  };
  const reference::Table weight = filled(30, 18), bias = filled(1, 18), upper = filled(18, problem.network.widths[2]);
  const reference::Table x = filled(20, 30), y = filled(20, 2), more_x = filled(33, 30), more_y = filled(33, 2);
  on_both([](Trainer&) {});
  on_both([&](Trainer& changed) { changed.write_weight(0, Problem::view(weight)); });
  on_both([&](Trainer& changed) { changed.write_bias(0, Problem::view(bias)); });
  on_both([&](Trainer& changed) { changed.write_weight(1, Problem::view(upper)); });
  on_both([&](Trainer& changed) { changed.set_data(Problem::view(x), Problem::view(y)); });
  on_both([&](Trainer& changed) { changed.set_data(Problem::view(more_x), Problem::view(more_y)); });
  on_both([&](Trainer& changed) { changed.initialize(5, Init::he); });
  on_both([&](Trainer& changed) {
    changed.initialize(6, Init::he);
    changed.loss();
    changed.write_weight(0, Problem::view(weight));
  });
}

// Z computed anew is that of a trainer that has just got the parameters; Z kept for 10 steps has drifted by rounding.
TEST_P(GramConformance, ReprojectionComputesZAnew) {
  Problem problem = Problem::random({300, 20, 2}, true, 40, Precision::fp32, Init::he, 1e-5);
  if (!has_room(problem)) return;
  problem.training.form = GetParam().form;
  for (const std::int64_t reprojection : {0, 5, 10, 11}) {
    Trainer trainer = gram(problem, reprojection);
    trainer.train(10);
    Trainer anew = gram(problem);
    problem.set_parameters(anew, problem.parameters_of(trainer));
    const bool is_new = reprojection == 5 || reprojection == 10;
    EXPECT_EQ(trainer.loss() == anew.loss(), is_new) << reprojection;
  }
}

TEST_P(GramConformance, HasItsParametersAfterACallbackThatThrows) {
  const Problem problem = Problem::random({30, 18, 2}, true, 20, Precision::fp64, Init::he, 1e-4);
  if (!has_room(problem)) return;
  Trainer trainer = gram(problem), expected = gram(problem);
  EXPECT_THROW(trainer.train(
                   20, [](const TrainProgress&) -> bool { throw std::runtime_error("enough"); }, 5),
               std::runtime_error);
  expected.train(5);
  EXPECT_EQ(flat(problem.parameters_of(trainer)), flat(problem.parameters_of(expected)));
}

#if defined(DEVICELOOP_CONFORMANCE_ON_CUDA)
// ---- random networks

class RandomNetworks : public ::testing::Test {
 protected:
  void SetUp() override { testing::require_gpu(machine().no_gpu_reason); }

  /// The small network of a number; forms, formulations and precisions take turns.
  static Problem network(std::uint32_t number) {
    std::uint32_t state = number * 2654435761u + 1;
    const auto draw = [&](std::uint32_t least, std::uint32_t most) {
      state = state * 1664525u + 1013904223u;
      return static_cast<std::int64_t>(least + (state >> 8) % (most - least + 1));
    };
    const PersistentForm form = number % 2 == 0 ? PersistentForm::two_layer : PersistentForm::on_chip;
    std::vector<std::int64_t> widths = {draw(1, 40)};
    for (std::int64_t layers = form == PersistentForm::two_layer ? 2 : draw(1, 4); layers > 1; --layers)
      widths.push_back(draw(1, 40));
    widths.push_back(draw(1, 12));
    const std::int64_t samples = draw(1, 90);
    Problem problem =
        Problem::random(widths, draw(0, 1) == 1, samples, number / 4 % 2 == 0 ? Precision::fp32 : Precision::fp64,
                        Init::xavier, 1e-3 / static_cast<double>(samples), number);
    problem.training.form = form;
    problem.training.formulation =
        number / 8 % 3 == 0 && form != PersistentForm::on_chip ? Formulation::gram : Formulation::primal;
    return problem;
  }
};

TEST_F(RandomNetworks, TrainInOneLaunchAsOnTheCpu) {
  constexpr std::uint32_t kNetworks = 200;
  const std::int64_t steps = kHostFixture ? 2 : 20;
  std::uint32_t learned = 0, taken = 0;
  for (std::uint32_t number = 0; number < kNetworks; ++number) {
    Problem problem = network(number);
    SCOPED_TRACE("network " + std::to_string(number) + ": " + ::testing::PrintToString(problem.network.widths) +
                 " bias " + std::to_string(problem.network.bias) + " samples " + std::to_string(problem.x.rows) + " " +
                 name(problem.training.precision) + " " + name(problem.training.formulation) + " " +
                 name(problem.training.form));
    if (!refusal_of(problem, ExecutorKind::persistent).empty()) continue;
    ++taken;
    Trainer persistent = problem.trainer(1, ExecutorKind::persistent);
    const std::vector<double> losses = persistent.train(steps).losses;
    problem.training.formulation = Formulation::primal;
    Trainer cpu = problem.trainer(1, ExecutorKind::cpu);
    expect_within_bounds(losses, cpu.train(steps).losses, problem.training.precision);
    expect_within_bounds(problem.parameters_of(persistent), problem.parameters_of(cpu), problem.training.precision);
    if (HasFatalFailure()) return;
    learned += losses.back() < losses.front() ? 1 : 0;
  }
  EXPECT_GE(learned, taken * 19 / 20);  // all hidden units of the others are off
  EXPECT_GE(taken, has_room_for_all_forms() ? kNetworks : kNetworks / 4);
}

constexpr ExecutorUnderTest persistent(PersistentForm form, Formulation formulation = Formulation::primal) {
  return {ExecutorKind::persistent, 1, formulation, form};
}
INSTANTIATE_TEST_SUITE_P(CudaExecutors, Conformance,
                         ::testing::Values(ExecutorUnderTest{ExecutorKind::graph, 1},
                                           ExecutorUnderTest{ExecutorKind::graph, 1, Formulation::gram},
                                           persistent(PersistentForm::two_layer), persistent(PersistentForm::on_chip),
                                           persistent(PersistentForm::two_layer, Formulation::gram)),
                         ::testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(CudaExecutors, GramConformance,
                         ::testing::Values(ExecutorUnderTest{ExecutorKind::graph, 1, Formulation::gram},
                                           persistent(PersistentForm::two_layer, Formulation::gram)),
                         ::testing::PrintToStringParamName());
#else
INSTANTIATE_TEST_SUITE_P(Executors, Conformance,
                         ::testing::Values(ExecutorUnderTest{ExecutorKind::cpu, 1},
                                           ExecutorUnderTest{ExecutorKind::cpu, 2},
                                           ExecutorUnderTest{ExecutorKind::cpu, 7},
                                           ExecutorUnderTest{ExecutorKind::cpu, 1, Formulation::gram},
                                           ExecutorUnderTest{ExecutorKind::cpu, 2, Formulation::gram},
                                           ExecutorUnderTest{ExecutorKind::cpu, 7, Formulation::gram}),
                         ::testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(Executors, GramConformance,
                         ::testing::Values(ExecutorUnderTest{ExecutorKind::cpu, 1, Formulation::gram},
                                           ExecutorUnderTest{ExecutorKind::cpu, 7, Formulation::gram}),
                         ::testing::PrintToStringParamName());
#endif

}  // namespace
}  // namespace deviceloop
