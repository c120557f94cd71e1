// Part of a test program: after a run of all its tests, every kernel that kernels.txt lists for it must have run.
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>

#include "kernel_list.h"
#include "simt/control.h"

namespace {

class EveryKernelRuns : public ::testing::Environment {
 public:
  void TearDown() override {
    const bool all_tests = ::testing::GTEST_FLAG(filter) == "*" && std::getenv("GTEST_TOTAL_SHARDS") == nullptr;
    if (!all_tests) return;
    const std::set<std::string> names = simt::listed_kernels(DEVICELOOP_TEST_PROGRAM);
    EXPECT_FALSE(names.empty());
    for (const std::string& name : names)
      EXPECT_EQ(simt::kernels_run().count(name), 1u) << name << " was never launched; add a test that does";
  }
};

[[maybe_unused]] const auto* const environment = ::testing::AddGlobalTestEnvironment(new EveryKernelRuns);

}  // namespace
