// The same training by a description of it: the library does the rest.
#include <cstdio>
#include <vector>

#include <deviceloop/deviceloop.h>

int main() {
  const deviceloop::NetworkSpec network{.widths = {1000, 100, 1}};
  deviceloop::TrainingSpec training;
  training.optimizer.learning_rate = 1e-6;
  // As the loops before; the default is fp32.
  training.precision = deviceloop::Precision::fp64;

  std::vector<double> x(128 * 1000), y(128), p(128);
  deviceloop::fill_normal({x.data(), 128, 1000}, training.seed, deviceloop::kTensorX);
  deviceloop::fill_normal({y.data(), 128, 1}, training.seed, deviceloop::kTensorY);

  deviceloop::Trainer trainer(network, training);
  trainer.set_data({x.data(), 128, 1000}, {y.data(), 128, 1});
  const deviceloop::TrainReport report = trainer.train(500);
  trainer.predict({x.data(), 128, 1000}, {p.data(), 128, 1});

  for (std::size_t step = 0; step < 500; step += step < 100 ? 10 : 100)
    std::printf("%3zu: %.2f\n", step, report.losses[step]);
  std::printf("prediction    target\n");
  for (std::size_t i = 0; i < 5; ++i) std::printf("%10.3f  %8.3f\n", p[i], y[i]);
}
