// Trains a small network by the packaged library; ends with 1 unless the loss falls.
#include <deviceloop/deviceloop.h>

#include <cstdio>
#include <vector>

int main() {
  const deviceloop::NetworkSpec network{.widths = {10, 20, 1}};
  deviceloop::TrainingSpec training;
  training.optimizer.learning_rate = 1e-4;
  std::vector<float> x(64 * 10), y(64);
  deviceloop::fill_normal({x.data(), 64, 10}, training.seed, deviceloop::kTensorX);
  deviceloop::fill_normal({y.data(), 64, 1}, training.seed, deviceloop::kTensorY);
  deviceloop::Trainer trainer(network, training);
  trainer.set_data({x.data(), 64, 10}, {y.data(), 64, 1});
  const std::vector<double> losses = trainer.train(100).losses;
  std::printf("deviceloop %s: loss %.4g at step 0, %.4g at step 99\n", DEVICELOOP_VERSION, losses.front(),
              losses.back());
  return losses.back() < losses.front() ? 0 : 1;
}
