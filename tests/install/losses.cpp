// Prints the loss of every step of a run in double precision, in the form of the command's --history, so that a program
// built against packages can be compared with the command that comes with them.
#include <deviceloop/deviceloop.h>

#include <cstdio>
#include <vector>

int main() {
  constexpr int kSamples = 96, kInputs = 40, kOutputs = 3;
  const deviceloop::NetworkSpec network{.widths = {kInputs, 50, kOutputs}, .bias = true};
  deviceloop::TrainingSpec training;
  training.precision = deviceloop::Precision::fp64;
  training.optimizer.learning_rate = 1e-5;
  training.device.kind = deviceloop::DeviceKind::cpu;
  std::vector<double> x(kSamples * kInputs), y(kSamples * kOutputs);
  deviceloop::fill_normal({x.data(), kSamples, kInputs}, training.seed, deviceloop::kTensorX);
  deviceloop::fill_normal({y.data(), kSamples, kOutputs}, training.seed, deviceloop::kTensorY);
  deviceloop::Trainer trainer(network, training);
  trainer.set_data({x.data(), kSamples, kInputs}, {y.data(), kSamples, kOutputs});
  const deviceloop::TrainReport report = trainer.train(60);
  std::printf("step,loss\n");
  for (std::size_t step = 0; step < report.losses.size(); ++step) std::printf("%zu,%.17g\n", step, report.losses[step]);
}
