// Is the result of this machine's GPU right? Trains one network twice from the same
// bits, on the CPU in double precision as the reference, and in single precision by the
// plan that the machine offers: on a GPU if there is one, else on the CPU. Prints how
// far losses and weights are from the reference; ends with exit code 1 where that is
// too far.
//
// `deviceloop compare` does the same for any network and data; this is how to do it
// inside a program of your own.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <span>
#include <vector>

#include <deviceloop/deviceloop.h>

namespace {

using namespace deviceloop;

constexpr std::int64_t kSamples = 64;
constexpr double kLossBound = 1e-4,
                 kWeightBound = 1e-5;  // relative, for single precision against double

/// The weight of a layer, converted to double, which is exact.
std::vector<double> weight_of(const Trainer& trainer, int layer) {
  const std::int64_t rows = trainer.network().in_features(layer),
                     columns = trainer.network().out_features(layer);
  std::vector<double> weight(static_cast<std::size_t>(rows * columns));
  trainer.read_weight(layer, {weight.data(), rows, columns});
  return weight;
}

/// The norm of a - b relative to that of b; infinite instead of NaN, which no
/// comparison would find.
double relative_difference(std::span<const double> a, std::span<const double> b) {
  double difference = 0, reference = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    reference += b[i] * b[i];
  }
  const double quotient = std::sqrt(difference / reference);
  return std::isnan(quotient) ? std::numeric_limits<double>::infinity() : quotient;
}

/// The last digits of single precision depend on the machine, so that only the share of
/// the bound is printed.
const char* share_text(double difference, double bound) {
  return difference <= bound / 10 ? "below a tenth"
         : difference <= bound    ? "within it"
                                  : "EXCEEDED";
}

int compare() {
  // tanh, because a ReLU near 0 may be on in one precision and off in the other.
  const NetworkSpec network{.widths = {16, 24, 2}, .activation = Activation::tanh};
  TrainingSpec single, reference;
  single.optimizer.learning_rate = reference.optimizer.learning_rate = 1e-3;
  reference.precision = Precision::fp64;
  reference.device.kind = DeviceKind::cpu;
  Trainer a(network, single), b(network, reference);

  // Both get the same bits: drawn in single precision, which double precision takes
  // over exactly.
  std::vector<float> x(kSamples * 16), y(kSamples * 2);
  fill_normal({x.data(), kSamples, 16}, single.seed, kTensorX);
  fill_normal({y.data(), kSamples, 2}, single.seed, kTensorY);
  a.initialize(single.seed, Init::xavier);
  for (int layer = 0; layer < network.layers(); ++layer) {
    const std::vector<double> weight = weight_of(a, layer);
    b.write_weight(layer, {weight.data(), network.in_features(layer),
                           network.out_features(layer)});
  }
  for (Trainer* trainer : {&a, &b})
    trainer->set_data({x.data(), kSamples, 16}, {y.data(), kSamples, 2});
  std::printf("plan %s in single precision, %s in double\n", name(a.plan().executor),
              name(b.plan().executor));

  bool holds = true;
  std::printf("%5s %14s  %-22s %s\n", "steps", "loss in double", "losses, of the bound",
              "weights, of the bound");
  for (const std::int64_t steps : {1, 10, 100, 500}) {
    // A run goes on where the last call of train ended, with the same bits as in one
    // call.
    const std::vector<double> of_a = a.train(steps - a.steps_done()).losses;
    const std::vector<double> of_b = b.train(steps - b.steps_done()).losses;
    double losses = 0, weights = 0;
    for (std::size_t i = 0; i < of_b.size(); ++i)
      losses = std::max(losses, relative_difference({&of_a[i], 1}, {&of_b[i], 1}));
    for (int layer = 0; layer < network.layers(); ++layer)
      weights = std::max(weights,
                         relative_difference(weight_of(a, layer), weight_of(b, layer)));
    std::printf("%5lld %14.6g  %-22s %s\n", static_cast<long long>(steps), of_b.back(),
                share_text(losses, kLossBound), share_text(weights, kWeightBound));
    holds = holds && losses <= kLossBound && weights <= kWeightBound;
  }
  std::printf("%s\n", holds ? "both bounds hold" : "a bound does not hold");
  return holds ? 0 : 1;
}

}  // namespace

int main() {
  try {
    return compare();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
