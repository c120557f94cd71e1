// Gradient descent in the space of the samples: other arithmetic, the same training.
#include <cmath>
#include <cstdio>
#include <vector>

#include <deviceloop/deviceloop.h>

struct Run {
  std::vector<double> losses, w1;
};

Run train(deviceloop::Formulation formulation) {
  const deviceloop::NetworkSpec network{.widths = {1000, 100, 1}};
  deviceloop::TrainingSpec training;
  training.optimizer.learning_rate = 1e-6;
  training.precision = deviceloop::Precision::fp64;
  training.formulation = formulation;

  std::vector<double> x(128 * 1000), y(128), w1(1000 * 100);
  deviceloop::fill_normal({x.data(), 128, 1000}, training.seed, deviceloop::kTensorX);
  deviceloop::fill_normal({y.data(), 128, 1}, training.seed, deviceloop::kTensorY);
  deviceloop::Trainer trainer(network, training);
  trainer.set_data({x.data(), 128, 1000}, {y.data(), 128, 1});
  deviceloop::TrainReport report = trainer.train(500);
  trainer.read_weight(0, {w1.data(), 1000, 100});
  return {std::move(report.losses), std::move(w1)};
}

int main() {
  const Run primal = train(deviceloop::Formulation::primal);
  const Run gram = train(deviceloop::Formulation::gram);
  double loss_difference = 0, squares = 0, difference_squares = 0;
  for (std::size_t i = 0; i < primal.losses.size(); ++i)
    loss_difference =
        std::fmax(loss_difference, std::fabs(gram.losses[i] / primal.losses[i] - 1));
  for (std::size_t i = 0; i < primal.w1.size(); ++i) {
    squares += primal.w1[i] * primal.w1[i];
    difference_squares += (gram.w1[i] - primal.w1[i]) * (gram.w1[i] - primal.w1[i]);
  }
  std::printf("step      primal        gram\n");
  for (const std::size_t step : {0, 100, 499})
    std::printf("%4zu  %10.2f  %10.2f\n", step, primal.losses[step], gram.losses[step]);
  const bool equal =
      loss_difference < 1e-10 && std::sqrt(difference_squares / squares) < 1e-10;
  std::printf("losses and W1 agree to within 1e-10: %s\n", equal ? "yes" : "no");
  return equal ? 0 : 1;
}
