// Compiled and linked as usual, for a library that was built in a project with flags for fast arithmetic: checks that
// loading it leaves this thread's floating point alone and that it finds NaN and infinity; prints the losses of 20
// steps of the starting case, exactly, to be compared with those of a library that was built as usual.
#include <deviceloop/deviceloop.h>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  ++failures;
}

template <class Call>
bool refuses(const Call& call) {
  try {
    call();
  } catch (const deviceloop::InvalidArgument&) {
    return true;
  }
  return false;
}

deviceloop::TrainingSpec on_cpu(double learning_rate, deviceloop::Precision precision) {
  deviceloop::TrainingSpec training;
  training.optimizer.learning_rate = learning_rate;
  training.precision = precision;
  training.device.kind = deviceloop::DeviceKind::cpu;
  return training;
}

}  // namespace

int main() {
#if defined(__SSE__)
  expect((_mm_getcsr() & 0x8040u) == 0, "subnormal numbers are not flushed to zero once the library is loaded");
#endif
  constexpr int kSamples = 128, kFeatures = 1000;
  const deviceloop::NetworkSpec network{.widths = {kFeatures, 100, 1}};
  std::vector<double> x(kSamples * kFeatures), y(kSamples);
  deviceloop::fill_normal({x.data(), kSamples, kFeatures}, 0, deviceloop::kTensorX);
  deviceloop::fill_normal({y.data(), kSamples, 1}, 0, deviceloop::kTensorY);
  for (const auto precision : {deviceloop::Precision::fp32, deviceloop::Precision::fp64}) {
    deviceloop::Trainer trainer(network, on_cpu(1e-6, precision));
    for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
      std::vector<double> spoilt = x;
      spoilt[4711] = bad;
      expect(refuses([&] {
               trainer.set_data({spoilt.data(), kSamples, kFeatures}, {y.data(), kSamples, 1});
             }),
             "data with NaN or infinity are refused");
    }
    trainer.set_data({x.data(), kSamples, kFeatures}, {y.data(), kSamples, 1});
    for (const double loss : trainer.train(20).losses) std::printf("%a\n", loss);

    deviceloop::Trainer diverging(network, on_cpu(1e3, precision));
    diverging.set_data({x.data(), kSamples, kFeatures}, {y.data(), kSamples, 1});
    const deviceloop::TrainReport report = diverging.train(200);
    expect(!std::isfinite(report.losses.back()), "a run with too large a rate ends in NaN or infinity");
    expect(report.first_non_finite_step.has_value(), "the report of such a run names the step");
  }
  return failures == 0 ? 0 : 1;
}
