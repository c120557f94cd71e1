// The fixture itself: planted mistakes must show, and right programs must pass in every order.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
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

using deviceloop::cuda::arrive;
using deviceloop::cuda::arrive_expecting;
using deviceloop::cuda::block_barrier;
using deviceloop::cuda::block_index;
using deviceloop::cuda::block_threads;
using deviceloop::cuda::clock_ns;
using deviceloop::cuda::cluster_arrive;
using deviceloop::cuda::cluster_barrier;
using deviceloop::cuda::cluster_blocks;
using deviceloop::cuda::cluster_rank;
using deviceloop::cuda::cluster_wait;
using deviceloop::cuda::copy_async;
using deviceloop::cuda::Deadline;
using deviceloop::cuda::fence_transactions_init;
using deviceloop::cuda::grid_blocks;
using deviceloop::cuda::init_transactions;
using deviceloop::cuda::kWarpThreads;
using deviceloop::cuda::launch;
using deviceloop::cuda::LaunchConfig;
using deviceloop::cuda::let_stores_land;
using deviceloop::cuda::mma_tf32;
using deviceloop::cuda::part_arrive;
using deviceloop::cuda::part_barrier;
using deviceloop::cuda::peer_shared;
using deviceloop::cuda::prepare_kernel;
using deviceloop::cuda::publish;
using deviceloop::cuda::remote;
using deviceloop::cuda::resident_clusters;
using deviceloop::cuda::round_to_tf32;
using deviceloop::cuda::shared;
using deviceloop::cuda::store_async;
using deviceloop::cuda::Tagged;
using deviceloop::cuda::thread_index;
using deviceloop::cuda::TransactionBarrier;
using deviceloop::cuda::try_wait;
using deviceloop::cuda::wait_copies;
using deviceloop::cuda::wait_tagged;
using deviceloop::cuda::wait_transactions;
using deviceloop::cuda::wait_until;
using deviceloop::cuda::warp_barrier;
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

__global__ void poison_kernel(bool* all_fresh, int fresh_byte) {
  auto& values = shared<Sums>().values;
  float fresh;
  std::memset(&fresh, fresh_byte, sizeof fresh);
  if (std::memcmp(&values[thread_index()], &fresh, sizeof fresh) != 0) *all_fresh = false;
  block_barrier();
  values[thread_index()] = 1;
}

__global__ void fill_kernel(float* out, float value) { out[thread_index()] = value; }

/// Each lane takes the number of the lane beside it from shared memory; the barrier between is missing in the mistake.
/// The second warp passes two barriers, the third three.
template <bool barrier>
__global__ void other_lane_kernel(float* out, const float* in) {
  auto& values = shared<Sums>().values;
  const unsigned thread = thread_index(), i = block_index() * block_threads() + thread;
  values[thread] = in[i];
  for (unsigned warp = 0; barrier && warp <= thread / kWarpThreads; ++warp) warp_barrier();
  out[i] = values[thread ^ 1];
}

/// Each lane takes what the lane beside it has copied; the wait for the copies is missing in the mistake.
template <bool waits>
__global__ void copied_lane_kernel(float* out, const float* in) {
  auto& values = shared<Sums>().values;
  const unsigned thread = thread_index();
  copy_async(&values[thread], &in[thread]);
  if (waits) wait_copies();
  block_barrier();
  out[thread] = values[thread ^ 1];
}

__global__ void half_warp_barrier_kernel() {
  if (thread_index() % 2 == 0) warp_barrier();
}

__global__ void warp_barrier_against_shuffle_kernel(float* out) {
  if (thread_index() < 7)
    warp_barrier();
  else
    *out = warp_shuffle_xor(1.0f, 1);
}

// Grids whose blocks meet.

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kCode = 77;

/// What a grid's blocks share: zero at first.
struct Meeting {
  unsigned arrived;
  unsigned ended;
  std::uint64_t failed;
};

Deadline deadline_in(std::uint64_t time, Meeting* meeting) {
  return {time == 0 ? 0 : clock_ns() + time, &meeting->failed};
}

/// Each block adds the numbers of all blocks, three times over; block `absent` does not come to the last meeting.
__global__ void grid_sum_kernel(float* out, float* slots, Meeting* meeting, int absent, std::uint64_t time) {
  bool& all_came = shared<bool>();
  const unsigned thread = thread_index(), block = block_index(), blocks = grid_blocks();
  const Deadline deadline = deadline_in(time, meeting);
  float value = static_cast<float>(block + 1);
  for (unsigned turn = 1; turn <= 3; ++turn) {
    float* const row = slots + turn % 2 * blocks;
    if (thread == 0) row[block] = value;
    if (turn == 3 && static_cast<int>(block) == absent) break;
    block_barrier();
    if (thread == 0) {
      arrive(&meeting->arrived);
      all_came = wait_until(&meeting->arrived, turn * blocks, deadline, kCode);
    }
    block_barrier();
    if (!all_came) break;
    value = 0;
    for (unsigned i = 0; i < blocks; ++i) value += row[i];
  }
  out[block * block_threads() + thread] = value;
  if (thread == 0) ++meeting->ended;
}

/// A block diverges while the others wait for it.
__global__ void diverging_block_kernel(Meeting* meeting, std::uint64_t time) {
  if (block_index() != 1)
    wait_until(&meeting->arrived, 1, deadline_in(time, meeting), kCode);
  else if (thread_index() < 5)
    block_barrier();
}

/// Tells how long it waited, in nanoseconds.
__global__ void late_kernel(Meeting* meeting, std::uint64_t* waited) {
  const std::uint64_t begin = clock_ns();
  const std::uint64_t time = (thread_index() + 1) * kSecond;
  if (!wait_until(&meeting->arrived, 1, {begin + time, &meeting->failed}, kCode + thread_index()))
    waited[thread_index()] = clock_ns() - begin;
}

// Clusters.

constexpr int kPeers = 4;

struct Peers {
  float from[kPeers];
};

enum class Planted { kNothing, kNoBarrierBefore, kNoBarrierBetween };

/// Each block gives its number to all of its cluster.
template <Planted planted>
__global__ void cluster_sum_kernel(float* out) {
  auto& from = shared<Peers>().from;
  if (planted != Planted::kNoBarrierBefore) cluster_barrier();
  if (thread_index() < cluster_blocks())
    *peer_shared(&from[cluster_rank()], thread_index()) = static_cast<float>(block_index() + 1);
  if (planted != Planted::kNoBarrierBetween) cluster_barrier();
  float sum = 0;
  for (unsigned i = 0; i < cluster_blocks(); ++i) sum += from[i];
  if (thread_index() == 0) out[block_index()] = sum;
  cluster_barrier();
}

/// Each block reads the number of the next one, which in the mistake may have ended.
template <bool barrier>
__global__ void neighbour_kernel(float* out) {
  float& mine = shared<float>();
  if (thread_index() == 0) mine = static_cast<float>(block_index());
  cluster_barrier();
  const float value = *peer_shared(&mine, (cluster_rank() + 1) % cluster_blocks());
  if (thread_index() == 0) out[block_index()] = value;
  if (barrier) cluster_barrier();
}

/// Takes the index in the grid for that in the cluster.
__global__ void index_for_rank_kernel(float* out) {
  float& mine = shared<float>();
  cluster_barrier();
  *peer_shared(&mine, block_index()) = 1;
  *out = mine;
  cluster_barrier();
}

/// Takes another cluster's shared memory for its own.
__global__ void other_cluster_kernel(float** places, Meeting* meeting) {
  const unsigned block = block_index(), blocks = grid_blocks();
  places[block] = &shared<float>();
  if (thread_index() == 0) arrive(&meeting->arrived);
  wait_until(&meeting->arrived, blocks, deadline_in(kSecond, meeting), kCode);
  *peer_shared(places[(block + cluster_blocks()) % blocks], 0) = 1;
  cluster_barrier();
}

__global__ void waiting_kernel(bool in_all_threads) {
  if (in_all_threads || thread_index() > 0) deviceloop::cuda::wait_for_grids_before();
}

__global__ void half_cluster_barrier_kernel() {
  if (cluster_rank() == 0) cluster_barrier();
}

/// Each block tells its value to the others by `words` in global memory (two rows of a word a block, 0 at first), and
/// takes on half their sum less its own index, three times over.
template <class T>
__global__ void tagged_sum_kernel(T* out, Tagged<T>* words, Meeting* meeting) {
  const unsigned thread = thread_index(), blocks = grid_blocks();
  T value = T(block_index() + 1) / T(3);
  for (unsigned step = 1; step <= 3; ++step) {
    Tagged<T>* const row = words + step % 2 * blocks;
    if (thread == 0) publish(row + block_index(), value, step);
    T values[kPeers];
    if (!wait_tagged(values, row, 1, static_cast<int>(blocks), step, deadline_in(kSecond, meeting), kCode)) break;
    T sum = 0;
    for (const T& each : values) sum += each;
    value = sum / T(2) - T(block_index());
    block_barrier();
  }
  out[block_index() * block_threads() + thread] = value;
}

/// Waits for two of three values, of which one is not published.
__global__ void missing_word_kernel(float* out, Tagged<float>* words, Meeting* meeting, int used) {
  if (thread_index() == 0) publish(words + 2, -2.5f, 9);
  float values[3];
  const bool came = wait_tagged(values, words + 2, -2, used, 9, deadline_in(kSecond, meeting), kCode);
  if (thread_index() > 0) return;
  for (int i = 0; i < 3; ++i) out[i] = values[i];
  out[3] = came ? 1 : 0;
}

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

// Asynchronous stores, barriers of parts, products of a warp.

constexpr int kRing = 4;  ///< blocks of the clusters that store asynchronously

/// From a block's left neighbour: a pair of values from each of its threads, and one of 4 and 8 bytes.
struct RingShared {
  struct alignas(16) Pair {
    double first, second;
  };
  Pair pairs[32];
  double wide;
  float narrow;
  int spare;
  TransactionBarrier barrier;
};

enum class Ring {
  kRight,
  kNoWait,
  kNotAgain,
  kLeavesBefore,
  kNotInitialised,
  kOtherBarrier,
  kTooManyArrivals,
  kUnaligned
};

/// Three steps in which every block passes values around the ring; `out` has what it got in the last.
template <Ring planted>
__global__ void ring_kernel(double* out, Meeting* meeting, std::uint64_t time) {
  RingShared& memory = shared<RingShared>();
  const unsigned thread = thread_index(), rank = cluster_rank();
  constexpr unsigned kBytes = sizeof memory.pairs + sizeof memory.wide + sizeof memory.narrow;
  memory.pairs[thread] = {-1, -1};
  if (thread == 0) {
    memory.wide = memory.narrow = -1;
    if (planted != Ring::kNotInitialised) init_transactions(&memory.barrier, 1);
    fence_transactions_init();
    if (planted != Ring::kNotInitialised) arrive_expecting(&memory.barrier, kBytes);
    if (planted == Ring::kTooManyArrivals) arrive(&memory.barrier);
  }
  block_barrier();
  cluster_arrive();
  const unsigned next = (rank + 1) % cluster_blocks();
  const auto pairs = planted == Ring::kUnaligned ? remote(reinterpret_cast<RingShared::Pair*>(&memory.wide - 1), next)
                                                 : remote(memory.pairs, next);
  const auto barrier = remote(&memory.barrier, planted == Ring::kOtherBarrier ? rank : next);
  cluster_wait();
  double mine = block_index();
  for (unsigned step = 0; step < 3; ++step) {
    store_async(pairs + static_cast<int>(thread), {mine, mine + thread}, barrier);
    if (thread == 0) store_async(remote(&memory.wide, next), mine, barrier);
    if (thread == 1) store_async(remote(&memory.narrow, next), static_cast<float>(mine), barrier);
    if (planted == Ring::kLeavesBefore) {
      cluster_barrier();
      return;
    }
    if (planted != Ring::kNoWait) wait_transactions(&memory.barrier, step % 2, deadline_in(time, meeting), kCode);
    if (thread == 0 && planted != Ring::kNoWait && planted != Ring::kNotAgain)
      arrive_expecting(&memory.barrier, kBytes);
    const double got =
        memory.pairs[thread].second - thread + memory.pairs[31 - thread].first + memory.wide + memory.narrow;
    mine = got / 4 + 1;
    // Nobody stores for the next step before all have read this step's.
    cluster_barrier();
  }
  out[block_index() * 32 + thread] = mine;
  if (planted == Ring::kNoWait) let_stores_land();
}

/// Waits for twice what comes, until the deadline.
__global__ void ring_deadline_kernel(Meeting* meeting, std::uint64_t timeout, float* out) {
  RingShared& memory = shared<RingShared>();
  if (thread_index() == 0) {
    init_transactions(&memory.barrier, 1);
    fence_transactions_init();
    arrive_expecting(&memory.barrier, 8);
  }
  block_barrier();
  cluster_barrier();
  if (thread_index() == 0)
    store_async(remote(&memory.narrow, cluster_rank()), 1.0f, remote(&memory.barrier, cluster_rank()));
  const bool came = wait_transactions(&memory.barrier, 0, deadline_in(timeout, meeting), kCode);
  cluster_barrier();
  let_stores_land();
  cluster_barrier();
  if (thread_index() == 0) out[block_index()] = came ? 1 : 0;
}

/// Two warps write, one waits for them; a third has no part in it.
template <bool waits>
__global__ void part_kernel(float* out) {
  auto& sums = shared<Sums>().values;
  const unsigned thread = thread_index(), warp = thread / kWarpThreads;
  for (int turn = 0; turn < (waits ? 2 : 1); ++turn) {
    if (warp < 2) {
      sums[thread] = static_cast<float>(thread + 1) * static_cast<float>(turn + 1);
      part_arrive(1, 96);
      part_barrier(2, 96);
    } else if (warp == 2) {
      if (waits)
        part_barrier(1, 96);
      else
        part_arrive(1, 96);
      out[turn * 32 + thread % 32] = sums[thread - 64] + sums[thread - 32];
      part_arrive(2, 96);
    }
  }
}

__global__ void part_count_kernel() { part_barrier(1, thread_index() < 32 ? 64 : 32); }

__global__ void mma_kernel(float* d, const float* a, const float* b) {
  const unsigned lane = thread_index(), r = lane / 4, c = lane % 4;
  float sum[4] = {1, 1, 1, 1};
  mma_tf32(sum, {a[r * 8 + c], a[(r + 8) * 8 + c], a[r * 8 + c + 4], a[(r + 8) * 8 + c + 4]},
           {b[c * 8 + r], b[(c + 4) * 8 + r]});
  for (unsigned i = 0; i < 4; ++i) d[(r + i / 2 * 8) * 8 + 2 * c + i % 2] = sum[i];
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
using SimtResident = SimtFixture;
using SimtCluster = SimtFixture;
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
  for (const int byte : {0xff, 0x81}) {  // the first without being told
    if (byte != 0xff) simt::set_fresh_byte(byte);
    bool all_fresh = true;
    launch(poison_kernel, {kBlocks, kThreads, sizeof(Sums)}, nullptr, &all_fresh, byte);
    check(cudaStreamSynchronize(nullptr));
    EXPECT_TRUE(all_fresh) << byte;
  }
}

/// The message of the KernelError that a kernel with a pointer to memory causes.
template <class Kernel, class... Arguments>
std::string kernel_error(Kernel kernel, const LaunchConfig& config, Arguments... arguments) {
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
  EXPECT_EQ(kernel_error(half_barrier_kernel, {1, 64, 0}),
            "half_barrier_kernel, block 0 of 1: divergent barrier: of its 64 threads 32 wait at block_barrier, 32 have "
            "returned");
}

TEST_F(SimtKernel, DivergentShuffleIsReported) {
  const Array<float> out(1);
  EXPECT_EQ(kernel_error(half_shuffle_kernel, {1, 64, 0}, out.data),
            "half_shuffle_kernel, block 0 of 1: divergent shuffle: of its 64 threads 7 wait at "
            "warp_shuffle_xor, 57 have returned");
  EXPECT_MENTIONS(kernel_error(barrier_against_shuffle_kernel, {1, 32, 0}, out.data),
                  "25 wait at block_barrier, 7 wait at warp_shuffle_xor");
  EXPECT_EQ(
      kernel_error(two_masks_kernel, {1, 32, 0}, out.data),
      "two_masks_kernel, block 0 of 1, thread 7 of 32: warp_shuffle_xor with mask 2 of 4 bytes, while other lanes "
      "of the warp have called warp_shuffle_xor with mask 1 of 4 bytes");
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

/// What a launch of fill_kernel with that configuration is refused with.
std::string launch_refusal(const LaunchConfig& config) {
  return refusal<deviceloop::DeviceError>("fill_kernel: ", [&] {
    float out[kThreads];
    launch(fill_kernel, config, nullptr, out, 1.0f);
  });
}

TEST_F(SimtKernel, LaunchChecksItsConfiguration) {
  const Array<float> out(32);
  for (const LaunchConfig& config : {LaunchConfig{1, 0, 0}, {1, 33, 0}, {1, 1056, 0}, {1, -32, 0}, {1, 32, -1}})
    EXPECT_MENTIONS(launch_refusal(config), "cudaErrorInvalidConfiguration");
  for (const std::int64_t blocks : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 31})
    EXPECT_MENTIONS(refusal("fill_kernel: a grid of " + std::to_string(blocks),
                            [&] {
                              launch(fill_kernel, {blocks, 32, 0}, nullptr, out.data, 1.0f);
                            }),
                    "1 to 2147483647");
  EXPECT_EQ(simt::counts().launches, 0);
  launch(fill_kernel, {1, 32, 48 * 1024}, nullptr, out.data, 2);
  EXPECT_EQ(out.read(), std::vector<float>(32, 2.0f));
  EXPECT_EQ(simt::kernels_run().count("fill_kernel"), 1u);
}

TEST_F(SimtKernel, LanesNeedTheBarrierOfTheirWarp) {
  constexpr int threads = 96;
  const std::vector<float> values = numbers(2 * threads);
  std::vector<float> expected(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) expected[i] = values[i ^ 1];
  const Array<float> in(values), out(values.size());
  const auto run = [&](auto kernel) {
    launch(kernel, {2, threads, sizeof(Sums)}, nullptr, out.data, in.data);
    return out.read();
  };
  EXPECT_EQ(orders_that_give(expected, [&] { return run(other_lane_kernel<true>); }), 10);
  EXPECT_EQ(orders_that_give(expected, [&] { return run(other_lane_kernel<false>); }), 0);
}

TEST_F(SimtKernel, CopiesHaveArrivedOnceTheirThreadHasWaitedForThem) {
  const std::vector<float> values = numbers(64);
  std::vector<float> expected(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) expected[i] = values[i ^ 1];
  const Array<float> in(values), out(values.size());
  const auto run = [&](auto kernel) {
    launch(kernel, {1, 64, sizeof(Sums)}, nullptr, out.data, in.data);
    return out.read();
  };
  EXPECT_EQ(orders_that_give(expected, [&] { return run(copied_lane_kernel<true>); }), 10);
  EXPECT_EQ(orders_that_give(expected, [&] { return run(copied_lane_kernel<false>); }), 0);
}

TEST_F(SimtKernel, DivergentBarrierOfAWarpIsReported) {
  EXPECT_EQ(kernel_error(half_warp_barrier_kernel, {1, 64, 0}),
            "half_warp_barrier_kernel, block 0 of 1: divergent barrier: of its 64 threads 32 wait at warp_barrier, 32 "
            "have returned");
  const Array<float> out(1);
  simt::set_order(Order::kForward);
  EXPECT_MENTIONS(kernel_error(warp_barrier_against_shuffle_kernel, {1, 32, 0}, out.data),
                  "warp_shuffle_xor with mask 1 of 4 bytes, while other lanes of the warp have called warp_barrier");
}

/// A word that a grid's blocks share, zero at first.
struct SharedMeeting : Array<Meeting> {
  SharedMeeting() : Array(1) { clear(); }
  void clear() { check(cudaMemsetAsync(data, 0, bytes(), nullptr)); }
  Meeting read() const { return Array::read()[0]; }
};

constexpr int kGridBlocks = 9;

/// What each thread of grid_sum_kernel has at its end.
std::vector<float> grid_sum(int threads) {
  const float sum = kGridBlocks * (kGridBlocks + 1) / 2;
  return std::vector<float>(static_cast<std::size_t>(kGridBlocks * threads), sum * kGridBlocks * kGridBlocks);
}

TEST_F(SimtResident, BlocksOfACooperativeGridMeet) {
  SharedMeeting meeting;
  const Array<float> slots(2 * kGridBlocks), out(kGridBlocks * 64);
  for (const std::uint64_t time : {std::uint64_t{0}, kSecond})
    EXPECT_EQ(orders_that_give(grid_sum(64),
                               [&] {
                                 meeting.clear();
                                 launch(grid_sum_kernel, {kGridBlocks, 64, 16, 1, true}, nullptr, out.data, slots.data,
                                        meeting.data, -1, time);
                                 EXPECT_EQ(meeting.read().failed, 0u);
                                 return out.read();
                               }),
              10);
}

TEST_F(SimtResident, BlocksThatAreNotResidentAreMissed) {
  SharedMeeting meeting;
  const Array<float> slots(2 * kGridBlocks), out(kGridBlocks * 64);
  const LaunchConfig config{kGridBlocks, 64, 16};
  for (const Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    simt::set_order(order, 5);
    meeting.clear();
    launch(grid_sum_kernel, config, nullptr, out.data, slots.data, meeting.data, -1, kSecond);
    EXPECT_EQ(meeting.read().failed, kCode);
    EXPECT_EQ(meeting.read().ended, unsigned{kGridBlocks});
  }
  simt::set_order(Order::kForward);
  meeting.clear();
  EXPECT_EQ(kernel_error(grid_sum_kernel, config, out.data, slots.data, meeting.data, -1, std::uint64_t{0}),
            "grid_sum_kernel, block 0 of 9: endless wait: of its 64 threads 63 wait at block_barrier, 1 wait at "
            "wait_until, 0 have returned; 5 blocks of the grid have not begun");
}

TEST_F(SimtResident, BlockThatNeverArrivesEndsTheGridByItsDeadline) {
  SharedMeeting meeting;
  const Array<float> slots(2 * kGridBlocks), out(kGridBlocks * 64);
  const LaunchConfig config{kGridBlocks, 64, 16, 1, true};
  for (const Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    simt::set_order(order, 5);
    meeting.clear();
    launch(grid_sum_kernel, config, nullptr, out.data, slots.data, meeting.data, 4, kSecond);
    EXPECT_EQ(meeting.read().failed, kCode);
    EXPECT_EQ(meeting.read().ended, unsigned{kGridBlocks});
    EXPECT_EQ(out.read()[0], grid_sum(1)[0] / kGridBlocks);
    meeting.clear();
    EXPECT_MENTIONS(
        kernel_error(grid_sum_kernel, config, out.data, slots.data, meeting.data, 4, std::uint64_t{0}),
        ": endless wait: of its 64 threads 63 wait at block_barrier, 1 wait at wait_until, 0 have returned");
  }
}

TEST_F(SimtResident, BarrierThatDivergedIsReportedOnceTheOthersHaveGivenUp) {
  SharedMeeting meeting;
  for (const std::uint64_t time : {std::uint64_t{0}, kSecond}) {
    meeting.clear();
    EXPECT_EQ(kernel_error(diverging_block_kernel, {3, 32, 0, 1, true}, meeting.data, time),
              "diverging_block_kernel, block 1 of 3: divergent barrier: of its 32 threads 5 wait at block_barrier, 27 "
              "have returned");
    EXPECT_EQ(meeting.read().failed, time == 0 ? 0u : kCode);
  }
}

TEST_F(SimtResident, ClockLeapsToTheFirstDeadlineWhenNothingHappens) {
  for (const Order order : {Order::kForward, Order::kReverse, Order::kRandom}) {
    simt::set_order(order, 3);
    SharedMeeting meeting;
    const Array<std::uint64_t> waited(64);
    launch(late_kernel, {1, 64, 0}, nullptr, meeting.data, waited.data);
    EXPECT_EQ(meeting.read().failed, kCode);  // that of thread 0, whose deadline is the first
    for (const std::uint64_t time : waited.read()) {
      EXPECT_GT(time, kSecond - 1000);
      EXPECT_LT(time, kSecond + 1000);
    }
  }
}

TEST_F(SimtResident, ThousandsOfThreadsWaitAtOnce) {
  SharedMeeting meeting;
  const Array<float> slots(2 * kGridBlocks), out(kGridBlocks * 1024);
  launch(grid_sum_kernel, {kGridBlocks, 1024, 16, 1, true}, nullptr, out.data, slots.data, meeting.data, -1, kSecond);
  EXPECT_EQ(out.read(), grid_sum(1024));
}

TEST_F(SimtCluster, BlocksReachEachOthersSharedMemory) {
  const Array<float> out(3 * kPeers);
  const auto run = [&](auto kernel, LaunchConfig config) {
    launch(kernel, config, nullptr, out.data);
    return out.read();
  };
  const LaunchConfig config{3 * kPeers, 64, sizeof(Peers), kPeers};
  std::vector<float> sums, numbers_of_next;
  for (int block = 0; block < 3 * kPeers; ++block) {
    const int first = block / kPeers * kPeers;
    sums.push_back(static_cast<float>(kPeers * first + kPeers * (kPeers + 1) / 2));
    numbers_of_next.push_back(static_cast<float>(first + (block + 1) % kPeers));
  }
  for (const bool cooperative : {false, true}) {
    LaunchConfig each = config;
    each.cooperative = cooperative;
    EXPECT_EQ(orders_that_give(sums, [&] { return run(cluster_sum_kernel<Planted::kNothing>, each); }), 10);
    EXPECT_EQ(orders_that_give(numbers_of_next, [&] { return run(neighbour_kernel<true>, each); }), 10);
  }
  EXPECT_LT(orders_that_give(sums, [&] { return run(cluster_sum_kernel<Planted::kNoBarrierBetween>, config); }), 5);
}

TEST_F(SimtCluster, WithoutClustersABlockIsItsOnlyPeer) {
  const Array<float> out(3);
  launch(cluster_sum_kernel<Planted::kNothing>, {3, 64, sizeof(Peers)}, nullptr, out.data);
  EXPECT_EQ(out.read(), (std::vector<float>{1, 2, 3}));
}

TEST_F(SimtCluster, PeersThatAreNoneAreReported) {
  const Array<float> out(8);
  const Array<float*> places(8);
  const SharedMeeting meeting;
  EXPECT_EQ(kernel_error(neighbour_kernel<false>, {4, 64, 16, 2}, out.data),
            "neighbour_kernel, block 1 of 4, thread 0 of 64: peer_shared(mine, 0): that block has ended");
  EXPECT_EQ(kernel_error(index_for_rank_kernel, {4, 64, 16, 2}, out.data),
            "index_for_rank_kernel, block 2 of 4, thread 0 of 64: peer_shared(mine, 2): a cluster has 2 blocks");
  EXPECT_MENTIONS(kernel_error(other_cluster_kernel, {4, 32, 16, 2, true}, places.data, meeting.data),
                  "peer_shared(mine, 0): mine is not in the block's own shared memory");
  EXPECT_EQ(kernel_error(half_cluster_barrier_kernel, {2, 32, 0, 2}),
            "half_cluster_barrier_kernel, block 0 of 2: divergent barrier: of its 32 threads 32 wait at "
            "cluster_barrier, 0 have returned");
}

TEST_F(SimtCluster, ALaunchThatMayRunBesideOthersWaitsForThemInEveryThread) {
  const LaunchConfig config = deviceloop::cuda::waiting({4, 64, 0, 2});
  launch(waiting_kernel, config, nullptr, true);
  EXPECT_EQ(
      kernel_error(waiting_kernel, config, false),
      "waiting_kernel waits for the grids before it in 252 threads, not in all; call wait_for_grids_before first");
  launch(waiting_kernel, {4, 64, 0, 2}, nullptr, false);  // not launched so
}

TEST_F(SimtCluster, AsynchronousStoresLandWhenSomebodyWaitsForThem) {
  const Array<double> out(2 * kRing * 32);
  const SharedMeeting meeting;
  const LaunchConfig config{2 * kRing, 32, sizeof(RingShared), kRing};
  std::vector<double> expected;
  for (int block = 0; block < 2 * kRing; ++block)
    expected.insert(expected.end(), 32, block / kRing * kRing + (block + kRing - 3) % kRing + 3);
  const auto run = [&](auto kernel) {
    launch(kernel, config, nullptr, out.data, meeting.data, std::uint64_t{0});
    return out.read();
  };
  EXPECT_EQ(orders_that_give(expected, [&] { return run(ring_kernel<Ring::kRight>); }), 10);
  EXPECT_EQ(orders_that_give(expected, [&] { return run(ring_kernel<Ring::kNoWait>); }), 0);
}

TEST_F(SimtCluster, MisuseOfTransactionBarriersIsReported) {
  const Array<double> out(kRing * 32);
  SharedMeeting meeting;
  const auto error = [&](auto kernel) {
    simt::set_order(Order::kReverse);
    return kernel_error(kernel, {kRing, 32, sizeof(RingShared), kRing}, out.data, meeting.data, std::uint64_t{0});
  };
  EXPECT_EQ(error(ring_kernel<Ring::kRight>), "");
  EXPECT_MENTIONS(error(ring_kernel<Ring::kLeavesBefore>), "ended while an asynchronous store was on its way to it");
  EXPECT_MENTIONS(error(ring_kernel<Ring::kNotInitialised>), "store_async: the barrier is not initialised");
  EXPECT_MENTIONS(error(ring_kernel<Ring::kOtherBarrier>),
                  "store_async: the barrier is not of the block that is written to");
  EXPECT_MENTIONS(error(ring_kernel<Ring::kTooManyArrivals>), "arrive: more arrivals in a phase than the barrier has");
  EXPECT_MENTIONS(error(ring_kernel<Ring::kNotAgain>), "wait at wait_transactions");
  EXPECT_MENTIONS(error(ring_kernel<Ring::kUnaligned>), "store_async: a place of 16 bytes is not aligned");
}

TEST_F(SimtCluster, WaitForTransactionsEndsByItsDeadline) {
  const Array<float> out(2);
  SharedMeeting meeting;
  launch(ring_deadline_kernel, {2, 32, sizeof(RingShared), 2}, nullptr, meeting.data, kSecond, out.data);
  EXPECT_EQ(out.read(), (std::vector<float>{0, 0}));
  EXPECT_EQ(meeting.read().failed, kCode);
}

TEST_F(SimtKernel, PartsOfABlockHaveTheirBarriers) {
  std::vector<float> expected;
  for (int i = 0; i < 64; ++i) expected.push_back(static_cast<float>((2 * (i % 32) + 34) * (i / 32 + 1)));
  const Array<float> out(64);
  const auto run = [&](auto kernel) {
    launch(kernel, {1, 128, sizeof(Sums)}, nullptr, out.data);
    return out.read();
  };
  EXPECT_EQ(orders_that_give(expected, [&] { return run(part_kernel<true>); }), 10);
  const auto first_turn = [](std::vector<float> values) {
    values.resize(32);
    return values;
  };
  EXPECT_LT(orders_that_give(first_turn(expected), [&] { return first_turn(run(part_kernel<false>)); }), 10);
  simt::set_order(Order::kForward);
  EXPECT_MENTIONS(kernel_error(part_count_kernel, {1, 64, 0}),
                  "part_barrier(1, 32), while others have told it 64 threads");
}

TEST_F(SimtKernel, WarpMultipliesInTf32) {
  std::vector<float> a, b, expected;
  for (int i = 0; i < 128; ++i) a.push_back(static_cast<float>(i % 11 - 5));
  for (int i = 0; i < 64; ++i) b.push_back(static_cast<float>(i % 7 - 3) * 0.25f);
  for (std::size_t r = 0; r < 16; ++r)
    for (std::size_t c = 0; c < 8; ++c) {
      float sum = 1;
      for (std::size_t k = 0; k < 8; ++k) sum += a[r * 8 + k] * b[k * 8 + c];
      expected.push_back(sum);
    }
  a[0] -= 0x1p-12f;  // below TF32: ignored
  const Array<float> in_a(a), in_b(b), out(128);
  EXPECT_EQ(orders_that_give(expected,
                             [&] {
                               launch(mma_kernel, {1, 32, 0}, nullptr, out.data, in_a.data, in_b.data);
                               return out.read();
                             }),
            10);
  EXPECT_EQ(round_to_tf32(1 + 0x1p-11f), 1 + 0x1p-10f);  // a tie: away from zero
  EXPECT_EQ(round_to_tf32(-1 - 0x1.ffp-12f), -1.0f);
  EXPECT_EQ(round_to_tf32(HUGE_VALF), HUGE_VALF);
  EXPECT_TRUE(std::isnan(round_to_tf32(std::nanf("1"))));
}

/// tagged_sum_kernel for a set of blocks that begins with `first`.
template <class T>
std::vector<T> tagged_sums(int first, int blocks) {
  std::vector<T> values;
  for (int i = 0; i < blocks; ++i) values.push_back(T(first + i + 1) / T(3));
  for (int step = 0; step < 3; ++step) {
    const T sum = std::accumulate(values.begin(), values.end(), T(0));
    for (int i = 0; i < blocks; ++i) values[static_cast<std::size_t>(i)] = sum / T(2) - T(i);
  }
  return values;
}

template <class T>
class SimtTagged : public SimtFixture {};
using Precisions = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SimtTagged, Precisions, );

TYPED_TEST(SimtTagged, ValuesPassThroughGlobalMemory) {
  constexpr int kTaggedBlocks = 3, kTaggedThreads = 32;
  std::vector<TypeParam> expected;
  for (const TypeParam value : tagged_sums<TypeParam>(0, kTaggedBlocks))
    expected.insert(expected.end(), kTaggedThreads, value);
  const Array<Tagged<TypeParam>> words(2 * kTaggedBlocks);
  const Array<TypeParam> out(expected.size());
  const SharedMeeting meeting;
  EXPECT_EQ(orders_that_give(expected,
                             [&] {
                               check(cudaMemsetAsync(words.data, 0, words.bytes(), nullptr));
                               launch(tagged_sum_kernel<TypeParam>, {kTaggedBlocks, kTaggedThreads, 0, 1, true},
                                      nullptr, out.data, words.data, meeting.data);
                               return out.read();
                             }),
            10);
  EXPECT_EQ(meeting.read().failed, 0u);
}

TEST_F(SimtResident, TaggedWaitTakesWhatIsUsedAndEndsByItsDeadline) {
  const Array<Tagged<float>> words(3);
  const Array<float> out(4);
  const SharedMeeting meeting;
  check(cudaMemsetAsync(words.data, 0, words.bytes(), nullptr));
  launch(missing_word_kernel, {1, 32, 0}, nullptr, out.data, words.data, meeting.data, 1);
  EXPECT_EQ(out.read(), (std::vector<float>{-2.5f, 0, 0, 1}));
  EXPECT_EQ(meeting.read().failed, 0u);
  launch(missing_word_kernel, {1, 32, 0}, nullptr, out.data, words.data, meeting.data, 2);
  EXPECT_EQ(out.read()[3], 0);
  EXPECT_EQ(meeting.read().failed, kCode);
}

const void* address_of(void (*kernel)(float*, float)) { return reinterpret_cast<const void*>(kernel); }

TEST_F(SimtResident, LaunchesThatCannotBeResidentAreRefused) {
  simt::Device device;
  device.multiprocessors = 10;
  simt::set_devices({device});
  const Array<float> out(32);
  launch(fill_kernel, {8, 32, 0, 4, true}, nullptr, out.data, 3.0f);
  EXPECT_MENTIONS(launch_refusal({11, 32, 0, 1, true}), "cudaErrorCooperativeLaunchTooLarge");
  EXPECT_MENTIONS(launch_refusal({12, 32, 0, 4, true}), "cudaErrorCooperativeLaunchTooLarge");
  EXPECT_MENTIONS(launch_refusal({7, 32, 0, 4}), "cudaErrorInvalidClusterSize");
  EXPECT_MENTIONS(launch_refusal({9, 32, 0, 9}), "cudaErrorInvalidClusterSize");
  EXPECT_EQ(resident_clusters(address_of(fill_kernel), {1, 32, 0}), 10);
  EXPECT_EQ(resident_clusters(address_of(fill_kernel), {16, 32, 0, 4, true}), 2);
  prepare_kernel(address_of(fill_kernel), {9, 32, 0, 9});
  EXPECT_EQ(resident_clusters(address_of(fill_kernel), {9, 32, 0, 9}), 1);
  EXPECT_MENTIONS(launch_refusal({11, 32, 0, 11}), "cudaErrorInvalidClusterSize");  // more than multiprocessors
  EXPECT_MENTIONS(launch_refusal({17, 32, 0, 17}), "cudaErrorInvalidClusterSize");
  device.resident_clusters = 1;
  simt::set_devices({device});
  EXPECT_EQ(resident_clusters(address_of(fill_kernel), {16, 32, 0, 4}), 1);
  for (const cudaError_t answer : {cudaErrorNotSupported, cudaErrorInvalidValue}) {
    device.cooperative_with_clusters = answer;
    simt::set_devices({device});
    EXPECT_MENTIONS(launch_refusal({4, 32, 0, 4, true}), cudaGetErrorName(answer));
  }
  device.major = 8;
  simt::set_devices({device});
  EXPECT_MENTIONS(launch_refusal({2, 32, 0, 2}), "cudaErrorNotSupported");
  EXPECT_EQ(simt::counts().launches, 1);
  launch(fill_kernel, {10, 32, 0, 1, true}, nullptr, out.data, 3.0f);
  EXPECT_EQ(out.read(), std::vector<float>(32, 3.0f));
}

TEST_F(SimtResident, ClustersBeyondTheDeviceWait) {
  simt::Device device;
  device.multiprocessors = 9;
  simt::set_devices({device});
  SharedMeeting meeting;
  const Array<float> slots(20), out(10 * 32);
  for (const int blocks : {8, 10}) {
    meeting.clear();
    launch(grid_sum_kernel, {blocks, 32, 16, 2}, nullptr, out.data, slots.data, meeting.data, -1, kSecond);
    EXPECT_EQ(meeting.read().failed, blocks == 8 ? 0 : kCode);
  }
}

TEST_F(SimtResident, LargeSharedMemoryNeedsPreparation) {
  constexpr int kMost = 100 << 10;
  simt::Device device;
  device.shared_bytes = kMost;
  simt::set_devices({device, device});
  const Array<float> out(32);
  EXPECT_MENTIONS(launch_refusal({1, 32, 48 * 1024 + 1}), "cudaErrorInvalidValue");
  EXPECT_MENTIONS(refusal<deviceloop::DeviceError>("cudaFuncSetAttribute",
                                                   [] {
                                                     prepare_kernel(address_of(fill_kernel), {1, 32, kMost + 1});
                                                   }),
                  "cudaErrorInvalidValue");
  prepare_kernel(address_of(fill_kernel), {1, 32, kMost});
  launch(fill_kernel, {1, 32, kMost}, nullptr, out.data, 2);
  EXPECT_EQ(out.read(), std::vector<float>(32, 2.0f));
  check(cudaSetDevice(1));
  EXPECT_MENTIONS(launch_refusal({1, 32, kMost}), "cudaErrorInvalidValue");
  check(cudaSetDevice(0));
  int value = 0;
  check(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  EXPECT_EQ(value, kMost);
}

TEST_F(SimtResident, PreparationFailsWhenItIsTold) {
  for (const bool prepare : {true, false}) {
    simt::fail_call(1, cudaErrorUnknown);
    EXPECT_THROW(
        {
          if (prepare)
            prepare_kernel(address_of(fill_kernel), {});
          else
            resident_clusters(address_of(fill_kernel), {});
        },
        deviceloop::DeviceError);
    EXPECT_EQ(simt::calls_until_failure(), 0);
  }
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

constexpr int kLinePeerTooFar = __LINE__ + 4;
__global__ void peer_too_far_kernel(float* out) {
  auto& from = shared<Peers>().from;
  cluster_barrier();
  *(peer_shared(&from[0], (cluster_rank() + 1) % cluster_blocks()) + kPeers) = 1;
  cluster_barrier();
  *out = from[0];
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

TEST_F(SimtDeathTest, SharedMemoryOfAPeerEndsWithItsLastByte) {
  const Array<float> out(1);
  EXPECT_DEATH(
      {
        launch(peer_too_far_kernel, {4, 32, sizeof(Peers), 2}, nullptr, out.data);
        cudaStreamSynchronize(nullptr);
      },
      overflow_at(kLinePeerTooFar));
}

TEST_F(SimtDeathTest, SharedMemoryOfAPeerBeginsWithItsBlock) {
  const Array<float> out(2);
  EXPECT_DEATH(
      {
        launch(cluster_sum_kernel<Planted::kNoBarrierBefore>, {2, 32, sizeof(Peers), 2}, nullptr, out.data);
        cudaStreamSynchronize(nullptr);
      },
      "use-after-poison(.|\n)*cluster_sum_kernel");
}

TEST_F(SimtDeathTest, HostMayNotTouchDeviceMemory) {
  const Array<float> array(numbers(5));
  EXPECT_DEATH(array.data[4] = 1, "use-after-poison");
  EXPECT_EQ(array.read(), numbers(5));
  EXPECT_DEATH(array.data[4] = 1, "use-after-poison");
}

#endif

}  // namespace
