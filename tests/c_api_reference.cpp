#include "c_api_reference.h"

#include <deviceloop/cuda.h>
#include <deviceloop/deviceloop.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {
thread_local int allowed = -1;
}

// Those of the standard library, in this program and the library that it loads.
void* operator new(std::size_t bytes) {
  if (allowed == 0) throw std::bad_alloc();
  if (allowed > 0) --allowed;
  if (void* const memory = std::malloc(bytes != 0 ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  try {
    return operator new(bytes);
  } catch (...) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

extern "C" {

void losses_of_the_starting_case(double* losses, int64_t steps) {
  const deviceloop::NetworkSpec network{.widths = {1000, 100, 1}};
  const deviceloop::TrainingSpec training{.device = {deviceloop::DeviceKind::cpu}};
  std::vector<float> x(128 * 1000), y(128);
  deviceloop::fill_normal({x.data(), 128, 1000}, training.seed, deviceloop::kTensorX);
  deviceloop::fill_normal({y.data(), 128, 1}, training.seed, deviceloop::kTensorY);
  deviceloop::Trainer trainer(network, training);
  trainer.set_data({x.data(), 128, 1000}, {y.data(), 128, 1});
  std::ranges::copy(trainer.train(steps).losses, losses);
}

int32_t throwing_callback(const deviceloop_progress*, void* user) {
  if (user != nullptr) throw 1;
  throw std::runtime_error("thrown by the callback");
}

const char* last_error_of_a_new_thread() {
  static std::string text;
  std::thread([] { text = deviceloop_last_error(); }).join();
  return text.c_str();
}

void allow_allocations(int count) { allowed = count; }

int has_cuda() {
  try {
    return deviceloop::cuda::squared_error_workspace(1) < 1u << 30;
  } catch (const deviceloop::Unsupported&) {
    return 0;
  }
}

}  // extern "C"
