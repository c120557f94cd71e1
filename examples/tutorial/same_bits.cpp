// The same run twice, and on other numbers of threads: every weight must have the same
// bits.
#include <cstdio>
#include <cstring>
#include <vector>

#include <deviceloop/deviceloop.h>

std::vector<float> trained_weights(int threads) {
  const deviceloop::NetworkSpec network{.widths = {64, 128, 1}, .bias = true};
  deviceloop::TrainingSpec training;
  training.optimizer.kind = deviceloop::OptimizerKind::adam;
  training.optimizer.learning_rate = 1e-3;
  training.batch_size = 128;
  training.threads = threads;
  training.device.kind = deviceloop::DeviceKind::cpu;

  std::vector<float> x(4096 * 64), y(4096), w(64 * 128);
  deviceloop::fill_normal({x.data(), 4096, 64}, training.seed, deviceloop::kTensorX);
  deviceloop::fill_normal({y.data(), 4096, 1}, training.seed, deviceloop::kTensorY);
  deviceloop::Trainer trainer(network, training);
  trainer.initialize(training.seed, deviceloop::Init::he);
  trainer.set_data({x.data(), 4096, 64}, {y.data(), 4096, 1});
  trainer.train(320);  // ten epochs of 32 batches
  trainer.read_weight(0, {w.data(), 64, 128});
  return w;
}

int main() {
  const std::vector<float> first = trained_weights(1);
  for (const int threads : {1, 2, 7}) {
    const std::vector<float> again = trained_weights(threads);
    const bool same =
        std::memcmp(first.data(), again.data(), first.size() * sizeof(float)) == 0;
    std::printf("%d thread%s: %s\n", threads, threads == 1 ? "" : "s",
                same ? "the same bits" : "other bits");
    if (!same) return 1;
  }
}
