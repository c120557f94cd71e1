// A program that calls the CUDA kernels and has no CUDA header: a training step on the CPU loads no CUDA library, and a
// kernel throws Unsupported where there is no GPU.
#include <deviceloop/cuda.h>
#include <deviceloop/deviceloop.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#if defined(CUDART_VERSION) || defined(CUDA_VERSION)
#error "a header of CUDA came with <deviceloop/cuda.h>"
#endif

int main() {
  deviceloop::NetworkSpec network;
  network.widths = {2, 1};
  deviceloop::TrainingSpec training;
  training.device.kind = deviceloop::DeviceKind::cpu;
  std::vector<float> x = {1, 2, 3, 4}, y = {1, 2};
  deviceloop::Trainer trainer(network, training);
  trainer.set_data({x.data(), 2, 2}, {y.data(), 2, 1});
  trainer.train(1);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    for (const char* name : {"/libcuda", "/libcublas", "/libnvidia", "/libnvrtc"}) {
      if (line.find(name) == std::string::npos) continue;
      std::printf("training on the CPU loaded %s\n", line.c_str());
      return 1;
    }
  }
  if (!deviceloop::query_device_caps().gpus.empty()) {
    std::puts("not tried: this machine has a GPU");
    return 0;
  }
  try {
    deviceloop::cuda::relu(x.data(), x.data(), 4, nullptr);
  } catch (const deviceloop::Unsupported& error) {
    std::printf("refused: %s\n", error.what());
    return 0;
  }
  std::puts("a kernel ran without a GPU");
  return 1;
}
