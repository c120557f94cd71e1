// What tests of the CUDA code share. They run twice from one source: on a GPU, and on the host by tests/simt.
#pragma once

#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "../../cuda/runtime/owners.h"
#include "support/gpu.h"

namespace deviceloop::testing {

/// Skips where there is no device; with DEVICELOOP_REQUIRE_CUDA=1 that is a failure.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaSuccess && count > 0) return;
    const bool is_absent = code == cudaErrorInsufficientDriver || code == cudaErrorNoDevice;
    ASSERT_TRUE(is_absent) << cudaGetErrorString(code);
    require_gpu(std::string("no GPU: ") + cudaGetErrorString(code));
  }
};

/// An array on the device between guards, which must be as they were when it is read back. `offset` elements before it
/// move it off the border of 16 bytes.
template <class T>
class DeviceArray {
 public:
  /// Bytes of 0xff, which are NaN, so that an element that nothing wrote is seen.
  explicit DeviceArray(std::int64_t count, int offset = 0)
      : DeviceArray(std::vector<T>(static_cast<std::size_t>(count), poison()), offset) {}

  explicit DeviceArray(const std::vector<T>& values, int offset = 0)
      : count_(values.size()), begin_(kGuard + static_cast<std::size_t>(offset)), memory_(bytes()) {
    std::vector<T> all(begin_ + count_ + kGuard, guard());
    for (std::size_t i = 0; i < count_; ++i) all[begin_ + i] = values[i];
    const cuda::StreamOwner stream;
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(memory_.data(), all.data(), bytes(), cudaMemcpyHostToDevice, stream.get()));
    stream.wait();
  }

  T* data() const { return static_cast<T*>(memory_.data()) + begin_; }

  /// The values, after all work on `stream`.
  std::vector<T> read(const cuda::StreamOwner& stream) const {
    std::vector<T> all(begin_ + count_ + kGuard);
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(all.data(), memory_.data(), bytes(), cudaMemcpyDeviceToHost, stream.get()));
    stream.wait();
    const T expected = guard();
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i >= begin_ && i < begin_ + count_) continue;
      EXPECT_EQ(std::memcmp(&all[i], &expected, sizeof(T)), 0)
          << "written outside: element " << static_cast<std::int64_t>(i) - static_cast<std::int64_t>(begin_);
    }
    return {all.begin() + static_cast<std::ptrdiff_t>(begin_),
            all.begin() + static_cast<std::ptrdiff_t>(begin_ + count_)};
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static T poison() {
    T value;
    std::memset(&value, 0xff, sizeof value);
    return value;
  }
  static T guard() {
    T value;
    std::memset(&value, 0x5a, sizeof value);
    return value;
  }
  std::size_t bytes() const { return (begin_ + count_ + kGuard) * sizeof(T); }

  std::size_t count_;
  std::size_t begin_;
  cuda::DeviceBuffer memory_;
};

/// The same bits, or both NaN: arithmetic on different machines gives NaNs of different bits.
template <class T>
bool same(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class T>
void expect_same(const std::vector<T>& actual, const std::vector<T>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i)
    ASSERT_TRUE(same(actual[i], expected[i])) << "element " << i << ": " << actual[i] << ", not " << expected[i];
}

/// Random numbers from -2 to 2 with 24 significant bits, the same on every machine.
template <class T>
std::vector<T> random_values(std::int64_t count, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>(static_cast<std::int32_t>(engine()) >> 8) / T(1 << 22);
  return values;
}

/// Integers from -most to most.
template <class T>
std::vector<T> random_integers(std::int64_t count, int most, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>(static_cast<int>(engine() % (2 * most + 1)) - most);
  return values;
}

}  // namespace deviceloop::testing
