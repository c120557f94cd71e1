// A GPU of few multiprocessors: what holds for a grid of five blocks that all run at once holds for one of a hundred,
// and takes the host a twentieth of the time. What a block or its caches may hold is as on an NVIDIA H100; with
// DEVICELOOP_SIMT_GPU=turing as on an NVIDIA T4, the least that the project builds for.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "simt/control.h"

#ifndef DEVICELOOP_SIMT_MULTIPROCESSORS
#define DEVICELOOP_SIMT_MULTIPROCESSORS 5
#endif

namespace {

class SmallMachine : public ::testing::Environment {
 public:
  void SetUp() override {
    simt::Device device;
    device.multiprocessors = DEVICELOOP_SIMT_MULTIPROCESSORS;
    const char* const name = std::getenv("DEVICELOOP_SIMT_GPU");
    if (name != nullptr && std::string(name) == "turing") {
      device.major = 7;
      device.minor = 5;
      device.shared_bytes = 64 << 10;
      device.l2_bytes = 4 << 20;
    }
    simt::set_devices({device});
  }
};

[[maybe_unused]] const ::testing::Environment* const kSmallMachine =
    ::testing::AddGlobalTestEnvironment(new SmallMachine);

}  // namespace
