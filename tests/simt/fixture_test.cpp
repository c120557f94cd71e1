// The fixture itself: planted mistakes must show, and right programs must pass in every order.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <deviceloop/error.h>

#include "runtime/check.h"
#include "runtime/device.cuh"
#include "runtime/launch.h"
#include "simt/control.h"
#include "support/refusal.h"

namespace {

using deviceloop::cuda::block_barrier;
using deviceloop::cuda::block_index;
using deviceloop::cuda::block_threads;
using deviceloop::cuda::grid_blocks;
using deviceloop::cuda::kWarpThreads;
using deviceloop::cuda::launch;
using deviceloop::cuda::shared;
using deviceloop::cuda::thread_index;
using deviceloop::cuda::warp_shuffle_xor;
using deviceloop::testing::refusal;
using simt::Order;

constexpr int kThreads = 256;
constexpr int kBlocks = 6;

struct Sums {
  float values[kThreads];
};

// Right kernels and their planted mistakes.

__global__ void __launch_bounds__(kThreads) copy_kernel(float* out, const float* in, int count) {
  const auto i = static_cast<int>(block_index() * block_threads() + thread_index());
  if (i < count) out[i] = in[i];
}

template <bool barrier>
__global__ void block_sum_kernel(float* out, const float* in) {
  auto& sums = shared<Sums>().values;
  const unsigned thread = thread_index();
  sums[thread] = in[block_index() * block_threads() + thread];
  for (unsigned half = block_threads() / 2; half > 0; half /= 2) {
    if (barrier) block_barrier();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) out[block_index()] = sums[0];
}

/// The barrier after the sum is missing in the mistake: the next turn overwrites what others still read.
template <bool barrier>
__global__ void rotate_kernel(float* out) {
  auto& values = shared<Sums>().values;
  const unsigned thread = thread_index();
  float value = static_cast<float>(thread);
  for (int turn = 0; turn < 3; ++turn) {
    values[thread] = value;
    block_barrier();
    value = values[(thread + 1) % block_threads()];
    if (barrier) block_barrier();
  }
  out[thread] = value;
}

template <bool slot_a_block>
__global__ void scratch_sum_kernel(float* out, const float* in, float* scratch) {
  const unsigned thread = thread_index(), block = block_index();
  float* const mine = scratch + (slot_a_block ? block * block_threads() : 0);
  mine[thread] = in[block * block_threads() + thread];
  block_barrier();
  float sum = 0;
  for (unsigned i = 0; i < block_threads(); ++i) sum += mine[i];
  if (thread == 0) out[block] = sum;
}

__global__ void butterfly_kernel(double* out, const double* in) {
  const unsigned i = block_index() * block_threads() + thread_index();
  double sum = in[i];
  for (unsigned mask = kWarpThreads / 2; mask > 0; mask /= 2) sum += warp_shuffle_xor(sum, mask);
  out[i] = sum;
}

template <bool inverted>
__global__ void mask_kernel(float* out, const float* in, int count) {
  const auto i = static_cast<int>(block_index() * block_threads() + thread_index());
  if (i < count) out[i] = (in[i] < 0) != inverted ? 0 : in[i];
}

__global__ void half_barrier_kernel() {
  if (thread_index() < block_threads() / 2) block_barrier();
}

__global__ void half_shuffle_kernel(float* out) {
  if (thread_index() < 7) *out = warp_shuffle_xor(1.0f, 1);
}

__global__ void barrier_against_shuffle_kernel(float* out) {
  if (thread_index() < 7)
    *out = warp_shuffle_xor(1.0f, 1);
  else
    block_barrier();
}

__global__ void two_masks_kernel(float* out) { *out = warp_shuffle_xor(1.0f, thread_index() < 7 ? 1 : 2); }

__global__ void wide_mask_kernel(float* out) { *out = warp_shuffle_xor(1.0f, 32); }

/// Must be destroyed in every thread, however the kernel ends.
struct Counted {
  explicit Counted(int* of) : count(of) { ++*count; }
  ~Counted() { --*count; }
  int* count;
};

__global__ void throwing_kernel(int* alive) {
  const Counted counted(alive);
  block_barrier();
  if (thread_index() == 40) throw std::runtime_error("thread 40");
  block_barrier();
}

__global__ void poison_kernel(bool* all_nan) {
  auto& values = shared<Sums>().values;
  if (!std::isnan(values[thread_index()])) *all_nan = false;
  block_barrier();
  values[thread_index()] = 1;
}

__global__ void fill_kernel(float* out, float value) { out[thread_index()] = value; }

void check(cudaError_t code) { ASSERT_EQ(code, cudaSuccess) << cudaGetErrorName(code); }

/// Device memory of `count` elements, from `values` where there are any.
template <class T>
struct Array {
  explicit Array(std::size_t count) : size(count) { check(cudaMalloc(reinterpret_cast<void**>(&data), bytes())); }
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    check(cudaMemcpyAsync(data, values.data(), bytes(), cudaMemcpyHostToDevice, nullptr));
    check(cudaStreamSynchronize(nullptr));
  }
  ~Array() { cudaFree(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  std::size_t bytes() const { return size * sizeof(T); }
  std::vector<T> read() const {
    std::vector<T> values(size);
    check(cudaMemcpyAsync(values.data(), data, bytes(), cudaMemcpyDeviceToHost, nullptr));
    return values;
  }
  T* data = nullptr;
  std::size_t size;
};

struct Stream {
  explicit Stream(unsigned flags = cudaStreamNonBlocking) { check(cudaStreamCreateWithFlags(&handle, flags)); }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  void wait() const { check(cudaStreamSynchronize(handle)); }
  cudaStream_t handle = nullptr;
};

struct Event {
  Event() { check(cudaEventCreateWithFlags(&handle, cudaEventDisableTiming)); }
  ~Event() { cudaEventDestroy(handle); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t handle = nullptr;
};

/// Small integers, so that sums are exact in every order.
std::vector<float> numbers(int count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 7 % 23) - 11;
  return values;
}

std::vector<float> block_sums(const std::vector<float>& values) {
  std::vector<float> sums;
  for (auto begin = values.begin(); begin != values.end(); begin += kThreads)
    sums.push_back(std::accumulate(begin, begin + kThreads, 0.0f));
  return sums;
}

/// Of forward, reverse and eight random orders, how many give `expected`.
template <class Run, class T>
int orders_that_give(const std::vector<T>& expected, Run run) {
  int right = 0;
  for (int order = 0; order < 10; ++order) {
    simt::set_order(order == 0   ? Order::kForward
                    : order == 1 ? Order::kReverse
                                 : Order::kRandom,
                    static_cast<std::uint64_t>(order));
    right += run() == expected ? 1 : 0;
  }
  return right;
}

class SimtFixture : public ::testing::Test {
 protected:
  SimtFixture() { simt::reset(); }
  ~SimtFixture() override {
    simt::reset();
    EXPECT_EQ(simt::live_objects(), 0);
  }
};

using SimtKernel = SimtFixture;
using SimtStream = SimtFixture;
using SimtRuntime = SimtFixture;
using SimtDeathTest = SimtFixture;

TEST_F(SimtKernel, BlockSumNeedsItsBarriers) {
  const std::vector<float> values = numbers(kThreads * kBlocks);
  const Array<float> in(values), out(kBlocks);
  const auto run = [&](auto kernel) {
    launch(kernel, {kBlocks, kThreads, sizeof(Sums)}, nullptr, out.data, in.data);
    return out.read();
  };
  EXPECT_EQ(orders_that_give(block_sums(values), [&] { return run(block_sum_kernel<true>); }), 10);
  // In reverse order each thread finds its partner's sum ready.
  EXPECT_EQ(orders_that_give(block_sums(values), [&] { return run(block_sum_kernel<false>); }), 1);
}

TEST_F(SimtKernel, BarrierBeforeOverwritingIsNeeded) {
  std::vector<float> expected(kThreads);
  for (unsigned i = 0; i < kThreads; ++i) expected[i] = static_cast<float>((i + 3) % kThreads);
  const Array<float> out(kThreads);
  const auto run = [&](auto kernel) {
    launch(kernel, {1, kThreads, sizeof(Sums)}, nullptr, out.data);
    return out.read();
  };
  EXPECT_EQ(orders_that_give(expected, [&] { return run(rotate_kernel<true>); }), 10);
  EXPECT_LT(orders_that_give(expected, [&] { return run(rotate_kernel<false>); }), 10);
}

TEST_F(SimtKernel, BlocksThatShareScratchDisturbEachOther) {
  const std::vector<float> values = numbers(kThreads * kBlocks);
  const Array<float> in(values), scratch(values.size()), out(kBlocks);
  const auto run = [&](auto kernel) {
    launch(kernel, {kBlocks, kThreads, 0}, nullptr, out.data, in.data, scratch.data);
    return out.read();
  };
  EXPECT_EQ(orders_that_give(block_sums(values), [&] { return run(scratch_sum_kernel<true>); }), 10);
  EXPECT_EQ(orders_that_give(block_sums(values), [&] { return run(scratch_sum_kernel<false>); }), 0);
}

TEST_F(SimtKernel, ButterflySumsOfWarps) {
  std::vector<double> values(kThreads * 2), expected(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<double>(i * i % 101);
    for (std::size_t j = 0; j < kWarpThreads; ++j) expected[i / kWarpThreads * kWarpThreads + j] += values[i];
  }
  const Array<double> in(values), out(values.size());
  EXPECT_EQ(orders_that_give(expected,
                             [&] {
                               launch(butterfly_kernel, {2, kThreads, 0}, nullptr, out.data, in.data);
                               return out.read();
                             }),
            10);
}

TEST_F(SimtKernel, InvertedMaskIsSeen) {
  const std::vector<float> values = numbers(300);
  std::vector<float> expected = values;
  for (float& value : expected) value = value < 0 ? 0 : value;
  const Array<float> in(values), out(values.size());
  launch(mask_kernel<false>, {2, kThreads, 0}, nullptr, out.data, in.data, 300);
  EXPECT_EQ(out.read(), expected);
  launch(mask_kernel<true>, {2, kThreads, 0}, nullptr, out.data, in.data, 300);
  EXPECT_NE(out.read(), expected);
}

TEST_F(SimtKernel, WithoutBarriersIsAPlainLoop) {
  const Array<float> in(numbers(kThreads * kBlocks)), out(in.size), sums(kBlocks);
  launch(copy_kernel, {kBlocks, kThreads, 0}, nullptr, out.data, in.data, kThreads * kBlocks);
  EXPECT_EQ(out.read(), in.read());
  EXPECT_EQ(simt::counts().waits, 0);
  launch(block_sum_kernel<true>, {kBlocks, kThreads, sizeof(Sums)}, nullptr, sums.data, in.data);
  sums.read();
  EXPECT_EQ(simt::counts().waits, kBlocks * kThreads * 8);
}

TEST_F(SimtKernel, SharedMemoryOfEveryBlockIsUndefinedAtFirst) {
  bool all_nan = true;
  launch(poison_kernel, {kBlocks, kThreads, sizeof(Sums)}, nullptr, &all_nan);
  check(cudaStreamSynchronize(nullptr));
  EXPECT_TRUE(all_nan);
}

/// The message of the KernelError that a kernel with a pointer to memory causes.
template <class Kernel, class... Arguments>
std::string kernel_error(Kernel kernel, const deviceloop::cuda::LaunchConfig& config, Arguments... arguments) {
  launch(kernel, config, nullptr, arguments...);
  std::string message;
  try {
    cudaStreamSynchronize(nullptr);
  } catch (const simt::KernelError& error) {
    message = error.what();
  }
  EXPECT_EQ(cudaStreamQuery(nullptr), cudaSuccess) << "work was left";
  return message;
}

TEST_F(SimtKernel, DivergentBarrierIsReported) {
  EXPECT_EQ(
      kernel_error(half_barrier_kernel, {1, 64, 0}),
      "half_barrier_kernel, block 0 of 1: divergent barrier: of its 64 threads 32 wait at block_barrier, 0 wait at "
      "warp_shuffle_xor, 32 have returned");
}

TEST_F(SimtKernel, DivergentShuffleIsReported) {
  const Array<float> out(1);
  EXPECT_EQ(
      kernel_error(half_shuffle_kernel, {1, 64, 0}, out.data),
      "half_shuffle_kernel, block 0 of 1: divergent shuffle: of its 64 threads 0 wait at block_barrier, 7 wait at "
      "warp_shuffle_xor, 57 have returned");
  EXPECT_MENTIONS(kernel_error(barrier_against_shuffle_kernel, {1, 32, 0}, out.data),
                  "25 wait at block_barrier, 7 wait at warp_shuffle_xor");
  EXPECT_EQ(
      kernel_error(two_masks_kernel, {1, 32, 0}, out.data),
      "two_masks_kernel, block 0 of 1, thread 7 of 32: warp_shuffle_xor with mask 2 of 4 bytes, while other lanes "
      "of the warp have called it with mask 1 of 4 bytes");
  EXPECT_MENTIONS(kernel_error(wide_mask_kernel, {1, 32, 0}, out.data), "mask 32, of 0 to 31 that can be");
}

TEST_F(SimtKernel, SharedLayoutLargerThanTheLaunchIsReported) {
  const Array<float> in(kThreads), out(1);
  EXPECT_EQ(kernel_error(block_sum_kernel<true>, {1, kThreads, 1000}, out.data, in.data),
            "block_sum_kernel, block 0 of 1, thread 0 of 256: shared<Layout>() of 1024 bytes, while "
            "LaunchConfig::shared_bytes is 1000");
}

TEST_F(SimtKernel, ExceptionOfAThreadEndsTheGridAndUnwindsTheOthers) {
  int alive = 0;
  for (const Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    simt::set_order(order);
    launch(throwing_kernel, {kBlocks, 64, 0}, nullptr, &alive);
    launch(throwing_kernel, {kBlocks, 64, 0}, nullptr, &alive);
    EXPECT_THROW(cudaStreamSynchronize(nullptr), std::runtime_error);
    EXPECT_EQ(alive, 0);
    EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  }
}

TEST_F(SimtKernel, LaunchChecksItsConfiguration) {
  const Array<float> out(32);
  for (const deviceloop::cuda::LaunchConfig& config : {deviceloop::cuda::LaunchConfig{1, 0, 0},
                                                       {1, 33, 0},
                                                       {1, 1056, 0},
                                                       {1, -32, 0},
                                                       {1, 32, -1},
                                                       {1, 32, 227 * 1024 + 1}})
    EXPECT_MENTIONS(refusal<deviceloop::DeviceError>("fill_kernel: ",
                                                     [&] { launch(fill_kernel, config, nullptr, out.data, 1.0f); }),
                    "cudaErrorInvalidConfiguration");
  for (const std::int64_t blocks : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 31})
    EXPECT_MENTIONS(refusal("fill_kernel: a grid of " + std::to_string(blocks),
                            [&] {
                              launch(fill_kernel, {blocks, 32, 0}, nullptr, out.data, 1.0f);
                            }),
                    "1 to 2147483647");
  EXPECT_EQ(simt::counts().launches, 0);
  launch(fill_kernel, {1, 32, 227 * 1024}, nullptr, out.data, 2);
  EXPECT_EQ(out.read(), std::vector<float>(32, 2.0f));
  EXPECT_EQ(simt::kernels_run().count("fill_kernel"), 1u);
}

TEST_F(SimtStream, WorkRunsWhenSomebodyWaits) {
  const Stream stream;
  const Array<float> array(32);
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, array.bytes()));
  float* const result = static_cast<float*>(pinned);
  EXPECT_TRUE(std::isnan(result[0]));
  launch(fill_kernel, {1, 32, 0}, stream.handle, array.data, 5.0f);
  check(cudaMemcpyAsync(result, array.data, array.bytes(), cudaMemcpyDeviceToHost, stream.handle));
  EXPECT_TRUE(std::isnan(result[0]));
  stream.wait();
  EXPECT_EQ(result[31], 5.0f);
  launch(fill_kernel, {1, 32, 0}, stream.handle, result, 6.0f);
  EXPECT_EQ(cudaStreamQuery(stream.handle), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamQuery(stream.handle), cudaSuccess);
  EXPECT_EQ(result[31], 6.0f);
  check(cudaFreeHost(pinned));
}

TEST_F(SimtStream, PageableMemoryIsReadAtTheCallAndPinnedMemoryLater) {
  const Stream stream;
  const Array<float> array(2);
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, sizeof(float)));
  float& late = *static_cast<float*>(pinned);
  float early = late = 1;
  check(cudaMemcpyAsync(array.data, &early, sizeof(float), cudaMemcpyHostToDevice, stream.handle));
  check(cudaMemcpyAsync(array.data + 1, &late, sizeof(float), cudaMemcpyHostToDevice, stream.handle));
  early = late = 2;
  float values[2];
  check(cudaMemcpyAsync(values, array.data, array.bytes(), cudaMemcpyDeviceToHost, stream.handle));
  EXPECT_EQ(values[0], 1);
  EXPECT_EQ(values[1], 2);
  check(cudaFreeHost(pinned));
}

TEST_F(SimtStream, EventsOrderStreams) {
  for (const bool wait : {false, true}) {
    const Stream producer, consumer;
    const Event filled;
    const Array<float> array(32);
    launch(fill_kernel, {1, 32, 0}, producer.handle, array.data, 3.0f);
    check(cudaEventRecord(filled.handle, producer.handle));
    launch(fill_kernel, {1, 32, 0}, producer.handle, array.data, 4.0f);  // not waited for
    if (wait) check(cudaStreamWaitEvent(consumer.handle, filled.handle, 0));
    float value = 0;
    check(cudaMemcpyAsync(&value, array.data, sizeof value, cudaMemcpyDeviceToHost, consumer.handle));
    if (wait)
      EXPECT_EQ(value, 3);
    else
      EXPECT_TRUE(std::isnan(value));
    EXPECT_EQ(cudaEventQuery(filled.handle), wait ? cudaSuccess : cudaErrorNotReady);
    check(cudaEventSynchronize(filled.handle));
    EXPECT_EQ(cudaEventQuery(filled.handle), cudaSuccess);
  }
}

TEST_F(SimtStream, DefaultStreamIsInOrderWithBlockingStreamsOnly) {
  for (const unsigned flags : {cudaStreamDefault, cudaStreamNonBlocking}) {
    const Array<float> array(32);
    const Stream before(flags), after(flags);
    launch(fill_kernel, {1, 32, 0}, before.handle, array.data, 1.0f);
    check(cudaMemsetAsync(array.data + 1, 0, sizeof(float), nullptr));
    check(cudaMemsetAsync(array.data + 2, 0, sizeof(float), after.handle));
    after.wait();
    std::vector<float> values(3);
    const Stream reader;
    check(cudaMemcpyAsync(values.data(), array.data, 12, cudaMemcpyDeviceToHost, reader.handle));
    if (flags == cudaStreamDefault)
      EXPECT_EQ(values, (std::vector<float>{1, 0, 0}));
    else
      EXPECT_TRUE(std::isnan(values[0]) && std::isnan(values[1]) && values[2] == 0);
  }
}

TEST_F(SimtStream, GoingAwayFinishesTheWork) {
  const Array<float> array(32);
  {
    const Stream stream;
    launch(fill_kernel, {1, 32, 0}, stream.handle, array.data, 1.0f);
  }
  EXPECT_EQ(array.read(), std::vector<float>(32, 1.0f));
}

TEST_F(SimtStream, OfAnotherDeviceOrNoneIsRefused) {
  simt::set_devices({{"first"}, {"second"}});
  const Array<float> array(32);
  cudaStream_t gone;
  {
    const Stream stream;
    gone = stream.handle;
    check(cudaSetDevice(1));
    EXPECT_MENTIONS(refusal("fill_kernel: ",
                            [&] {
                              launch(fill_kernel, {1, 32, 0}, stream.handle, array.data, 1.0f);
                            }),
                    "cudaErrorInvalidResourceHandle");
    EXPECT_EQ(cudaMemsetAsync(array.data, 0, 4, stream.handle), cudaErrorInvalidResourceHandle);
    const Event event;
    EXPECT_EQ(cudaEventRecord(event.handle, stream.handle), cudaErrorInvalidResourceHandle);
    check(cudaSetDevice(0));
  }
  EXPECT_EQ(cudaStreamSynchronize(gone), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(SimtRuntime, CallFailsWhenItIsTold) {
  void* memory = nullptr;
  simt::fail_call(2, cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&memory, 8), cudaSuccess);
  EXPECT_EQ(simt::live_objects(), 1);
  EXPECT_EQ(cudaMemsetAsync(memory, 0, 8, nullptr), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMemsetAsync(memory, 0, 8, nullptr), cudaSuccess);
  EXPECT_EQ(simt::counts().memsets, 1);
  simt::fail_call(1, cudaErrorUnknown);
  EXPECT_EQ(cudaFree(memory), cudaErrorUnknown);
  EXPECT_EQ(simt::live_objects(), 0);
}

TEST_F(SimtRuntime, LaunchFailsWhenItIsTold) {
  const Array<float> array(32);
  simt::fail_call(1, cudaErrorNoKernelImageForDevice);
  EXPECT_MENTIONS(refusal<deviceloop::Unsupported>("fill_kernel: ",
                                                   [&] {
                                                     launch(fill_kernel, {1, 32, 0}, nullptr, array.data, 1.0f);
                                                   }),
                  "cudaErrorNoKernelImageForDevice");
  EXPECT_EQ(simt::counts().launches, 0);
}

TEST_F(SimtRuntime, StickyErrorsStay) {
  for (const cudaError_t code : {cudaErrorIllegalAddress, cudaErrorLaunchFailure}) {
    simt::fail_call(1, code);
    EXPECT_EQ(cudaStreamSynchronize(nullptr), code);
    int device = 0;
    EXPECT_EQ(cudaGetDevice(&device), code);
    EXPECT_EQ(cudaGetLastError(), code);
    EXPECT_EQ(cudaPeekAtLastError(), code);
    simt::reset();
    EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  }
}

TEST_F(SimtRuntime, MemoryIsLimited) {
  simt::Device small;
  small.memory = 1000;
  simt::set_devices({small});
  std::size_t free = 0, total = 0;
  {
    const Array<char> first(600);
    void* second = nullptr;
    EXPECT_EQ(cudaMalloc(&second, 401), cudaErrorMemoryAllocation);
    EXPECT_EQ(second, nullptr);
    check(cudaMemGetInfo(&free, &total));
    EXPECT_EQ(free, 400u);
    EXPECT_EQ(total, 1000u);
  }
  const Array<char> all(1000);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(all.data) % 256, 0u);
}

TEST_F(SimtRuntime, CopiesAreCheckedAgainstWhereTheEndsLie) {
  const Array<float> array(4);
  float host[4] = {};
  EXPECT_EQ(cudaMemcpyAsync(array.data, host, 16, cudaMemcpyDeviceToHost, nullptr), cudaErrorInvalidMemcpyDirection);
  EXPECT_EQ(cudaMemcpyAsync(host, array.data, 16, cudaMemcpyDeviceToDevice, nullptr), cudaErrorInvalidMemcpyDirection);
  EXPECT_EQ(cudaMemcpyAsync(array.data + 1, host, 16, cudaMemcpyHostToDevice, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(host, 0, 16, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(array.data, 0, 17, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(array.data + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  EXPECT_EQ(simt::counts().copies, 0);
  check(cudaMemcpyAsync(array.data, host, 16, cudaMemcpyDefault, nullptr));
  EXPECT_EQ(array.read(), std::vector<float>(4, 0.0f));
}

TEST_F(SimtRuntime, PointersTellWhereTheyLie) {
  const Array<float> array(4);
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, 4));
  int here = 0;
  cudaPointerAttributes attributes;
  check(cudaPointerGetAttributes(&attributes, array.data + 3));
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  check(cudaPointerGetAttributes(&attributes, pinned));
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  check(cudaPointerGetAttributes(&attributes, &here));
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  check(cudaFreeHost(pinned));
}

TEST_F(SimtRuntime, DevicesAreThoseThatWereSet) {
  simt::set_devices({{"a", 8, 0, 108, 1 << 20}, {"b", 9, 0, 132, 2 << 20}});
  int count = 0, value = 0;
  check(cudaGetDeviceCount(&count));
  EXPECT_EQ(count, 2);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 1));
  EXPECT_STREQ(properties.name, "b");
  EXPECT_EQ(properties.totalGlobalMem, std::size_t{2} << 20);
  check(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0));
  EXPECT_EQ(value, 8);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  for (const cudaError_t absent : {cudaErrorNoDevice, cudaErrorInsufficientDriver}) {
    simt::set_devices({}, absent);
    count = -7;
    EXPECT_EQ(cudaGetDeviceCount(&count), absent);
    EXPECT_EQ(count, -7);
  }
}

TEST_F(SimtRuntime, CallsAreCounted) {
  {
    const Array<float> array(numbers(4));
    array.read();
    const Stream stream;
    const Event event;
    EXPECT_EQ(simt::live_objects(), 3);
  }
  const simt::Counts counts = simt::counts();
  EXPECT_EQ(counts.allocations, 1);
  EXPECT_EQ(counts.frees, 1);
  EXPECT_EQ(counts.copies, 2);
  EXPECT_EQ(counts.synchronisations, 2);
  simt::reset();
  EXPECT_EQ(simt::counts().allocations, 0);
}

#if defined(__SANITIZE_ADDRESS__)

constexpr int kLineOneTooFar = __LINE__ + 3;
__global__ void one_too_far_kernel(float* out, const float* in, int count) {
  const auto i = static_cast<int>(block_index() * block_threads() + thread_index());
  if (i <= count) out[i] = in[i < count ? i : 0];
}

constexpr int kLineSharedTooFar = __LINE__ + 3;
__global__ void shared_too_far_kernel(float* out) {
  auto& values = shared<Sums>().values;
  *(values + thread_index() + 1) = 1;
  out[thread_index()] = 1;
}

std::string overflow_at(int line) {
  return "heap-buffer-overflow(.|\n)*_too_far_kernel[^\n]*fixture_test.cpp:" + std::to_string(line);
}

TEST_F(SimtDeathTest, IndexOneTooFarNamesTheLineOfTheKernel) {
  const Array<float> in(numbers(300)), out(in.size);
  EXPECT_DEATH(
      {
        launch(one_too_far_kernel, {2, kThreads, 0}, nullptr, out.data, in.data, 300);
        cudaStreamSynchronize(nullptr);
      },
      overflow_at(kLineOneTooFar));
}

TEST_F(SimtDeathTest, SharedMemoryEndsWithItsLastByte) {
  const Array<float> out(kThreads);
  EXPECT_DEATH(
      {
        launch(shared_too_far_kernel, {1, kThreads, sizeof(Sums)}, nullptr, out.data);
        cudaStreamSynchronize(nullptr);
      },
      overflow_at(kLineSharedTooFar));
}

TEST_F(SimtDeathTest, HostMayNotTouchDeviceMemory) {
  const Array<float> array(numbers(5));
  EXPECT_DEATH(array.data[4] = 1, "use-after-poison");
  EXPECT_EQ(array.read(), numbers(5));
  EXPECT_DEATH(array.data[4] = 1, "use-after-poison");
}

#endif

}  // namespace
