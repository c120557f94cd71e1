// Regression on a .csv file: regression [FILE [TARGET]], by default friedman.csv and
// its column y. All other columns are inputs. A fifth of the rows, drawn at random,
// validates: training ends when it has not got better there for a while, and the best
// weights are kept. The saved network takes and gives numbers in the units of the file.
#include <deviceloop/deviceloop.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "csv.h"

namespace {

constexpr std::int64_t kMostEpochs = 500;

using Rows = std::vector<std::size_t>;  // their numbers in the table

/// What makes a column have the mean 0 and the deviation 1.
struct Scaling {
  double mean = 0, deviation = 1;
};

Scaling scaling_of(const Table& table, std::size_t column, const Rows& rows) {
  const auto count = static_cast<double>(rows.size());
  double sum = 0, squares = 0;
  for (const std::size_t row : rows) sum += table.at(row, column);
  for (const std::size_t row : rows)
    squares += std::pow(table.at(row, column) - sum / count, 2);
  return {sum / count, squares > 0 ? std::sqrt(squares / count) : 1};
}

/// Inputs and targets of some rows, row by row.
struct Samples {
  std::vector<double> x, y;
  deviceloop::ConstMatrix inputs() const {
    const auto rows = static_cast<std::int64_t>(y.size());
    return {x.data(), rows, static_cast<std::int64_t>(x.size()) / rows};
  }
  deviceloop::ConstMatrix targets() const {
    return {y.data(), static_cast<std::int64_t>(y.size()), 1};
  }
};

/// With a scaling for each column of the table.
Samples take(const Table& table, std::size_t target, const Rows& rows,
             const std::vector<Scaling>& scalings) {
  Samples samples;
  for (const std::size_t row : rows)
    for (std::size_t column = 0; column < table.columns(); ++column) {
      const double value =
          (table.at(row, column) - scalings[column].mean) / scalings[column].deviation;
      (column == target ? samples.y : samples.x).push_back(value);
    }
  return samples;
}

/// Puts the scalings into the weights: the first layer takes inputs as they are, the
/// last one gives the target itself.
void take_over(deviceloop::Trainer& trainer, const std::vector<Scaling>& inputs,
               const Scaling& target) {
  const auto change = [&](int layer, const auto& edit) {
    const std::int64_t in = trainer.network().in_features(layer),
                       out = trainer.network().out_features(layer);
    std::vector<double> weight(static_cast<std::size_t>(in * out)),
        bias(static_cast<std::size_t>(out));
    trainer.read_weight(layer, {weight.data(), in, out});
    trainer.read_bias(layer, {bias.data(), 1, out});
    edit(weight, bias);
    trainer.write_weight(layer, {weight.data(), in, out});
    trainer.write_bias(layer, {bias.data(), 1, out});
  };
  change(0, [&](std::vector<double>& weight, std::vector<double>& bias) {
    for (std::size_t i = 0; i < weight.size(); ++i) {  // [inputs, bias.size()]
      const Scaling& scaling = inputs[i / bias.size()];
      weight[i] /= scaling.deviation;
      bias[i % bias.size()] -= scaling.mean * weight[i];
    }
  });
  change(trainer.network().layers() - 1,
         [&](std::vector<double>& weight, std::vector<double>& bias) {
           for (double& value : weight) value *= target.deviation;
           bias[0] = bias[0] * target.deviation + target.mean;
         });
}

void run(const std::string& file, const std::string& target_name) {
  const Table table = read_csv(file);
  const std::size_t target = find_column(table, target_name);
  if (table.columns() < 2 || table.rows() < 20)
    throw std::runtime_error(file + " needs a column beside the target, and 20 rows");

  std::mt19937_64 random(0);
  Rows training(table.rows());
  std::iota(training.begin(), training.end(), std::size_t{0});
  for (std::size_t i = training.size(); i > 1; --i)
    std::swap(training[i - 1], training[random() % i]);
  const Rows validation(training.end() - static_cast<std::ptrdiff_t>(table.rows() / 5),
                        training.end());
  training.resize(table.rows() - validation.size());
  std::printf("%s: %zu inputs, target %s; %zu rows to train on, %zu to validate by\n",
              file.c_str(), table.columns() - 1, target_name.c_str(), training.size(),
              validation.size());

  std::vector<Scaling> scalings;  // of the training rows alone: the others stand for
                                  // rows that nobody has seen yet
  for (std::size_t column = 0; column < table.columns(); ++column)
    scalings.push_back(scaling_of(table, column, training));

  const deviceloop::NetworkSpec network{
      .widths = {static_cast<std::int64_t>(table.columns() - 1), 64, 64, 1},
      .activation = deviceloop::Activation::gelu_tanh,
      .bias = true};
  deviceloop::TrainingSpec spec;
  spec.reduction = deviceloop::Reduction::mean;
  spec.optimizer.kind = deviceloop::OptimizerKind::adam;
  spec.optimizer.learning_rate = 3e-3;
  spec.batch_size =
      std::min<std::int64_t>(64, static_cast<std::int64_t>(training.size()));
  spec.watch = {.patience = 10, .keep_best = true};
  spec.precision = deviceloop::Precision::fp64;

  deviceloop::Trainer trainer(network, spec);
  trainer.initialize(spec.seed, deviceloop::Init::xavier);
  const Samples train = take(table, target, training, scalings),
                held = take(table, target, validation, scalings);
  trainer.set_data(train.inputs(), train.targets());
  trainer.set_validation(held.inputs(), held.targets());
  const auto samples = static_cast<std::int64_t>(training.size());
  const deviceloop::TrainReport report =
      trainer.train(kMostEpochs * samples / spec.batch_size);
  const std::optional<deviceloop::Evaluation> best = trainer.best();
  if (!best)
    throw std::runtime_error("the loss was never finite; take a smaller learning rate");
  trainer.restore_best();
  const auto epochs = [&](std::int64_t steps) {
    return static_cast<int>(steps * spec.batch_size / samples);
  };
  std::printf("%d epochs, the best is number %d\n", epochs(report.steps()),
              epochs(best->steps));

  const Scaling target_scaling = scalings[target];
  scalings.erase(scalings.begin() + static_cast<std::ptrdiff_t>(target));
  take_over(trainer, scalings, target_scaling);
  trainer.save_weights("regression.safetensors");

  // From here on in the units of the file.
  const Samples rows =
      take(table, target, validation, std::vector<Scaling>(table.columns()));
  std::vector<double> predicted(rows.y.size());
  trainer.predict(rows.inputs(),
                  {predicted.data(), static_cast<std::int64_t>(predicted.size()), 1});
  double error = 0, spread = 0;
  for (std::size_t i = 0; i < predicted.size(); ++i) {
    error += std::pow(predicted[i] - rows.y[i], 2);
    spread += std::pow(target_scaling.mean - rows.y[i], 2);
  }
  const auto count = static_cast<double>(predicted.size());
  std::printf(
      "validation: root mean squared error %.2f, R^2 %.3f (the mean alone: %.2f)\n",
      std::sqrt(error / count), 1 - error / spread, std::sqrt(spread / count));
  std::printf("saved regression.safetensors\n");
  for (std::size_t i = 0; i < 3; ++i)
    std::printf("row %zu: %s %.2f, predicted %.2f\n", validation[i] + 1,
                target_name.c_str(), rows.y[i], predicted[i]);
}

}  // namespace

int main(int count, char** arguments) try {
  if (count > 3) throw std::runtime_error("usage: regression [FILE [TARGET]]");
  run(count > 1 ? arguments[1] : "friedman.csv", count > 2 ? arguments[2] : "y");
} catch (const std::exception& error) {
  std::fprintf(stderr, "regression: %s\n", error.what());
  return 2;
}
