// A GPU of few multiprocessors: what holds for a grid of five blocks that all run at once holds for one of a hundred,
// and takes the host a twentieth of the time.
#include <gtest/gtest.h>

#include "simt/control.h"

namespace {

class SmallMachine : public ::testing::Environment {
 public:
  void SetUp() override {
    simt::Device device;
    device.multiprocessors = 5;
    simt::set_devices({device});
  }
};

[[maybe_unused]] const ::testing::Environment* const kSmallMachine =
    ::testing::AddGlobalTestEnvironment(new SmallMachine);

}  // namespace
