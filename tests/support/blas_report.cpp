// A program of its own for other_blas_test.cpp: says what multiplies in it, and trains in both precisions.
#include <deviceloop/deviceloop.h>

#include <cstdio>
#include <vector>

#include "cpu/gemm.h"

int main() {
  using namespace deviceloop;
  std::printf("%s; %s\n", gemm_description().c_str(), gemm_bits_verified() ? "verified" : "not verified");
  for (const Precision precision : {Precision::fp32, Precision::fp64}) {
    TrainingSpec training;
    training.precision = precision;
    training.optimizer.learning_rate = 1e-3;
    training.device.kind = DeviceKind::cpu;
    training.threads = 2;
    std::vector<double> x(40 * 6), y(40 * 2);
    fill_normal({x.data(), 40, 6}, 0, kTensorX);
    fill_normal({y.data(), 40, 2}, 0, kTensorY);
    Trainer trainer(NetworkSpec{.widths = {6, 5, 2}}, training);
    trainer.set_data({x.data(), 40, 6}, {y.data(), 40, 2});
    std::printf("loss %.4f\n", trainer.train(30).losses.back());
  }
}
