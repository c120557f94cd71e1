// An application beside whose library OpenBLAS may lie in many ways: in an archive of its own, inside the library,
// behind another CBLAS. Prints the losses of a network that is large enough for OpenBLAS to share a product among
// threads, exactly, for both precisions: they must not depend on the threads that the application lets OpenBLAS have.
// With DEVICELOOP_TEST_INSIDES, in a program that contains the library, also what multiplies there; with
// DEVICELOOP_TEST_OPENBLAS the application calls OpenBLAS too: it asks for 2 threads, and must find them again.
#include <deviceloop/deviceloop.h>

#include <cstdio>
#include <string>
#include <vector>

#if DEVICELOOP_TEST_INSIDES
namespace deviceloop {
std::string gemm_description();
bool gemm_bits_verified();
}  // namespace deviceloop
#endif
#if DEVICELOOP_TEST_OPENBLAS
extern "C" {
int openblas_get_num_threads();
void openblas_set_num_threads(int);
void cblas_sgemm(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
}
#endif

int main() {
#if DEVICELOOP_TEST_OPENBLAS
  openblas_set_num_threads(2);
  const int threads = openblas_get_num_threads();  // 1 in the serial build
  float c = 0, two = 2;
  cblas_sgemm(101, 111, 111, 1, 1, 1, 1, &two, 1, &two, 1, 0, &c, 1);
  if (c != 4) return 1;
#endif
  constexpr int kSamples = 512, kFeatures = 600;
  const deviceloop::NetworkSpec network{.widths = {kFeatures, 700, 10}};
  std::vector<float> x(kSamples * kFeatures), y(kSamples * 10);
  deviceloop::fill_normal({x.data(), kSamples, kFeatures}, 0, deviceloop::kTensorX);
  deviceloop::fill_normal({y.data(), kSamples, 10}, 0, deviceloop::kTensorY);
  for (const auto precision : {deviceloop::Precision::fp32, deviceloop::Precision::fp64}) {
    for (const int cpu_threads : {1, 2}) {
      deviceloop::TrainingSpec training;
      training.optimizer.learning_rate = 1e-8;
      training.precision = precision;
      training.device.kind = deviceloop::DeviceKind::cpu;
      training.threads = cpu_threads;
      deviceloop::Trainer trainer(network, training);
      trainer.set_data({x.data(), kSamples, kFeatures}, {y.data(), kSamples, 10});
      for (const double loss : trainer.train(3).losses) std::printf("%a\n", loss);
    }
  }
#if DEVICELOOP_TEST_OPENBLAS
  if (openblas_get_num_threads() != threads) {
    std::printf("OpenBLAS had %d threads before, and now %d\n", threads, openblas_get_num_threads());
    return 1;
  }
#endif
#if DEVICELOOP_TEST_INSIDES
  std::printf("%s; %s\n", deviceloop::gemm_description().c_str(),
              deviceloop::gemm_bits_verified() ? "verified" : "not verified");
#endif
}
