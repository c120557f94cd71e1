// Part of a program of kernel tests: after a run of all its tests, every kernel of kernels.txt must have run.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "kernel_list.h"
#include "simt/control.h"

namespace {

class EveryKernelRuns : public ::testing::Environment {
 public:
  void TearDown() override {
    const bool all_tests = ::testing::GTEST_FLAG(filter) == "*" && std::getenv("GTEST_TOTAL_SHARDS") == nullptr;
    if (!all_tests) return;
    for (const std::string& name : simt::listed_kernels())
      EXPECT_EQ(simt::kernels_run().count(name), 1u) << name << " was never launched; add a test that does";
  }
};

[[maybe_unused]] const auto* const environment = ::testing::AddGlobalTestEnvironment(new EveryKernelRuns);

}  // namespace
