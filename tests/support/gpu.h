// What a test does that needs a GPU where there is none. Plain C++: builds without CUDA have such tests, too.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace deviceloop::testing {

/// Skips the test where there is no GPU, for the reason that is given; with DEVICELOOP_REQUIRE_CUDA=1 fails it. For
/// SetUp, which must return behind it.
inline void require_gpu(const std::string& no_gpu_reason) {
  if (no_gpu_reason.empty()) return;
  const char* required = std::getenv("DEVICELOOP_REQUIRE_CUDA");
  ASSERT_FALSE(required != nullptr && std::string(required) == "1")
      << "DEVICELOOP_REQUIRE_CUDA=1, but there is no GPU to use: " << no_gpu_reason;
  GTEST_SKIP() << no_gpu_reason;
}

}  // namespace deviceloop::testing
