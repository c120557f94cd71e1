// Runs that NumPy and PyTorch made, met at every step: the starting case, whose data the test draws again, a small
// network whose hidden units live, and one for each optimizer and schedule, and for each loss with each activation.
// tests/reference/record.py, record_optimizers.py and record_losses.py wrote the files and explain them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "files/npy.h"
#include "files/weights.h"
#include "support/activations.h"
#include "support/loss_cases.h"
#include "support/optimizer_cases.h"
#include "support/problem.h"

namespace deviceloop {

void PrintTo(Precision precision, std::ostream* out) { *out << name(precision); }

namespace {

const std::string kFolder = DEVICELOOP_SOURCE_DIR "/tests/reference/";

// The fields of a .csv file behind its header and first column.
std::vector<std::vector<double>> read_table(const std::string& name) {
  std::ifstream file(kFolder + name);
  EXPECT_TRUE(file) << name;
  std::vector<std::vector<double>> rows;
  std::string line, field;
  std::getline(file, line);
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::getline(fields, field, ',');
    rows.emplace_back();
    while (std::getline(fields, field, ',')) rows.back().push_back(std::stod(field));
  }
  return rows;
}

std::vector<double> read_losses(const std::string& name) {
  std::vector<double> losses;
  for (const auto& row : read_table(name)) losses.push_back(row.at(0));
  return losses;
}

void expect_losses(const std::vector<double>& losses, const std::vector<double>& recorded, Precision precision) {
  ASSERT_EQ(losses.size(), recorded.size());
  const double relative = precision == Precision::fp32 ? 1e-4 : 1e-10;
  for (std::size_t i = 0; i < losses.size(); ++i)
    ASSERT_LE(reference::loss_error(losses[i], recorded[i], recorded[0]), relative) << "step " << i;
}

// The relative Frobenius error of a weight, estimated from its recorded norm and projections (column of the table).
double estimated_error(const std::vector<double>& weight, const std::vector<std::vector<double>>& table,
                       std::size_t column) {
  std::uint64_t state = 1;
  double squares = 0;
  for (std::size_t j = 1; j < table.size(); ++j) {
    double sum = 0;
    for (const double value : weight) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += state >> 63 ? -value : value;
    }
    squares += std::pow(sum - table[j].at(column), 2);
  }
  return std::sqrt(squares / static_cast<double>(table.size() - 1)) / table[0].at(column);
}

class StartingCase : public ::testing::TestWithParam<Precision> {};

TEST_P(StartingCase, FollowsNumpyAtEveryStepToTheSameWeights) {
  const Precision precision = GetParam();
  const Problem problem = Problem::random({1000, 100, 1}, false, 128, precision, Init::normal, 1e-6, 0);
  const std::string file = std::string("starting_case_") + name(precision);
  const std::vector<double> recorded = read_losses(file + ".csv");
  ASSERT_EQ(recorded.size(), 500u);
  Trainer trainer = problem.trainer();
  const std::vector<double> losses = trainer.train(500).losses;
  expect_losses(losses, recorded, precision);
  EXPECT_LE(std::abs(losses[0] / recorded[0] - 1), precision == Precision::fp32 ? 1e-6 : 1e-13);
  EXPECT_LE(std::abs(losses[499] / recorded[499] - 1), precision == Precision::fp32 ? 1e-4 : 1e-10);

  const auto table = read_table(file + "_weights.csv");
  ASSERT_EQ(table.size(), 65u);
  const reference::Network end = problem.parameters_of(trainer);
  for (std::size_t layer = 0; layer < 2; ++layer)
    EXPECT_LE(estimated_error(end[layer].weight.values, table, layer), precision == Precision::fp32 ? 1e-5 : 1e-10)
        << "layer " << layer;
  // The estimate sees an error of that size in a single weight.
  std::vector<double> planted = end[0].weight.values;
  planted[4711] += 3e-5 * table[0][0];
  EXPECT_GT(estimated_error(planted, table, 0), 1e-5);
}

class SmallNetwork : public ::testing::TestWithParam<Precision> {};

TEST_P(SmallNetwork, FollowsNumpyAtEveryStepToTheSameWeights) {
  const Precision precision = GetParam();
  TrainingSpec training;
  training.precision = precision;
  training.optimizer.learning_rate = 5e-4;
  const NetworkSpec network = read_network(kFolder + "small_weights.safetensors");
  EXPECT_EQ(network.widths, (std::vector<std::int64_t>{23, 11, 5, 2}));
  EXPECT_TRUE(network.bias);
  const HostMatrix x = read_npy(kFolder + "small_x.npy"), y = read_npy(kFolder + "small_y.npy");
  EXPECT_EQ(x.rows, 37);
  for (const int threads : {1, 2, 7}) {
    training.threads = threads;
    Trainer trainer(network, training);
    trainer.load_weights(kFolder + "small_weights.safetensors");
    trainer.set_data(x.view(), y.view());
    expect_losses(trainer.train(300).losses, read_losses("small_losses.csv"), precision);

    Trainer recorded(network, training);
    recorded.load_weights(kFolder + "small_final_weights.safetensors");
    Problem problem;
    problem.network = network;
    const reference::Network end = problem.parameters_of(trainer), expected = problem.parameters_of(recorded);
    for (std::size_t layer = 0; layer < 3; ++layer) {
      const double bound = precision == Precision::fp32 ? 1e-5 : 1e-10;
      EXPECT_LE(reference::relative_error(end[layer].weight.values, expected[layer].weight.values), bound) << layer;
      EXPECT_LE(reference::relative_error(end[layer].bias, expected[layer].bias), bound) << layer;
    }
  }
}

using NamedNumbers = std::vector<std::pair<std::string, double>>;

// optimizers.csv and losses.csv: the numbers of each case.
std::map<std::string, NamedNumbers> read_cases(const std::string& file_name) {
  std::ifstream file(kFolder + file_name);
  std::string line, name, field;
  std::getline(file, line);  // who made it
  std::getline(file, line);
  const std::string header = line;
  std::map<std::string, NamedNumbers> cases;
  while (std::getline(file, line)) {
    std::istringstream names(header), fields(line);
    std::getline(names, name, ',');
    std::getline(fields, field, ',');
    NamedNumbers& numbers = cases[field];
    while (std::getline(names, name, ',') && std::getline(fields, field, ','))
      numbers.emplace_back(name, std::stod(field));
  }
  return cases;
}

/// A run of kSteps steps has the numbers that were recorded, among them every `every`-th parameter.
void expect_recorded(const Problem& problem, Trainer& trainer, const NamedNumbers& recorded, std::size_t every) {
  constexpr std::size_t kSteps = 50;
  const std::vector<double> losses = trainer.train(kSteps).losses;
  const std::vector<double> end = flat(problem.parameters_of(trainer));
  NamedNumbers numbers;
  for (std::size_t i = 0; i < kSteps; ++i) numbers.emplace_back("loss " + std::to_string(i), losses.at(i));
  numbers.emplace_back("norm", std::sqrt(std::inner_product(end.begin(), end.end(), end.begin(), 0.0)));
  for (std::size_t i = 0; i < end.size(); i += every) numbers.emplace_back("element " + std::to_string(i), end[i]);
  ASSERT_EQ(numbers.size(), recorded.size());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const auto& [name, expected] = recorded[i];
    EXPECT_EQ(numbers[i].first, name);
    EXPECT_NEAR(numbers[i].second, expected, 1e-10 * std::max(1e-2, std::abs(expected))) << name;
  }
}

TEST(RecordedOptimizers, AreFollowedAtEveryStepToTheSameParameters) {
  auto recorded = read_cases("optimizers.csv");
  for (const OptimizerCase& each : optimizer_cases()) {
    SCOPED_TRACE(each.name);
    const auto found = recorded.extract(each.name);
    ASSERT_FALSE(found.empty()) << "not recorded";
    Problem problem = Problem::random({7, 20, 3}, true, 9, Precision::fp64, Init::he, 1e-3);
    problem.training.optimizer = each.optimizer;
    for (const int threads : {1, 3}) {
      Trainer trainer = problem.trainer(threads, ExecutorKind::cpu);
      expect_recorded(problem, trainer, found.mapped(), 9);
    }
  }
  for (const auto& [name, numbers] : recorded) ADD_FAILURE() << "'" << name << "' is recorded, but is no case";
}

TEST(RecordedLosses, AreFollowedWithEveryActivationToTheSameParameters) {
  struct Named {
    const char* name;
    LossCase of;
  };
  const Named losses[] = {
      {"squared_error", {Loss::squared_error, {}}},
      {"absolute_error", {Loss::absolute_error, {}}},
      {"huber of delta 0.7", {Loss::huber, {}, 0.7}},
      {"huber of delta 2", {Loss::huber, {}, 2}},
      {"binary_cross_entropy", {Loss::binary_cross_entropy, {}}},
      {"cross_entropy", {Loss::cross_entropy, {}}},
      {"cross_entropy of classes", {Loss::cross_entropy, {}, 1, true}},
  };
  constexpr std::size_t offsets[] = {0, 2, 5, 6, 7, 11, 8};
  const auto& activations = testing::kActivationFormulas;
  auto recorded = read_cases("losses.csv");
  for (std::size_t j = 0; j < std::size(losses); ++j)
    for (std::size_t i = 0; i < std::size(activations); ++i) {
      const auto& output = activations[(i + offsets[j]) % std::size(activations)];
      const bool is_mean = (i + j) % 2 == 1, is_weighted = (i / 2 + j) % 2 == 1;
      const std::string name = std::string(is_mean ? "mean of " : "sum of ") + (is_weighted ? "weighted " : "") +
                               losses[j].name + "; " + activations[i].name + "; " + output.name;
      SCOPED_TRACE(name);
      const auto found = recorded.extract(name);
      ASSERT_FALSE(found.empty()) << "not recorded";
      Problem problem = Problem::random({7, 20, 3}, true, 9, Precision::fp64, Init::he, 1e-3);
      problem.network.activation = activations[i].activation.kind;
      problem.network.output_activation = output.activation.kind;
      problem.network.leaky_slope = activations[i].activation.kind == Activation::leaky_relu
                                        ? activations[i].activation.leaky_slope
                                        : output.activation.leaky_slope;
      problem.training.loss = losses[j].of.loss;
      problem.training.huber_delta = losses[j].of.delta;
      problem.training.reduction = is_mean ? Reduction::mean : Reduction::sum;
      const double rate = losses[j].of.loss == Loss::absolute_error ? 5e-4 : 2e-3;
      const double terms = problem.training.loss == Loss::cross_entropy ? 9 : 27;
      problem.training.optimizer = {
          .kind = OptimizerKind::sgd, .learning_rate = rate * (is_mean ? terms : 1), .momentum = 0.5};
      problem.y = targets_of(losses[j].of, problem.y);
      const std::vector<double> weights = weights_of(9);
      for (const int threads : {1, 3}) {
        Trainer trainer = problem.trainer(threads, ExecutorKind::cpu);
        if (is_weighted) trainer.set_data(Problem::view(problem.x), Problem::view(problem.y), {weights.data(), 9, 1});
        expect_recorded(problem, trainer, found.mapped(), 27);
      }
    }
  for (const auto& [name, numbers] : recorded) ADD_FAILURE() << "'" << name << "' is recorded, but is no case";
}

const auto kPrecisions = ::testing::Values(Precision::fp32, Precision::fp64);
INSTANTIATE_TEST_SUITE_P(RecordedRuns, StartingCase, kPrecisions, ::testing::PrintToStringParamName());
INSTANTIATE_TEST_SUITE_P(RecordedRuns, SmallNetwork, kPrecisions, ::testing::PrintToStringParamName());

}  // namespace
}  // namespace deviceloop
