// The fixture's tensor cores: planted mistakes must show. What is right is in tests/tensor_test.cu.
#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "runtime/launch.h"
#include "runtime/tensor.cuh"
#include "simt/control.h"
#include "support/cuda_test.h"
#include "support/refusal.h"

namespace {

using deviceloop::cuda::Accumulator;
using deviceloop::cuda::kWarpgroupThreads;
using deviceloop::cuda::Major;
using deviceloop::cuda::SharedMatrix;
using deviceloop::cuda::TensorType;
using deviceloop::cuda::TransactionBarrier;
using deviceloop::testing::DeviceArray;
using simt::Order;

namespace device = deviceloop::cuda;

constexpr int kSide = 64;  // of A, B and their product, in bf16: one panel each
constexpr std::uint64_t kCode = 5;

struct alignas(1024) SquareMemory {
  unsigned char a[kSide * 128], b[kSide * 128];
  TransactionBarrier arrived;
};

enum class Mistake {
  kNone,
  kFromRegisters,  // none either
  // Of the order of calls.
  kNoBegin,
  kSumsNotNamed,
  kSumsReadAfterBegin,
  kFragmentNotNamed,
  kNoCommit,
  kNoWait,
  kReadBeforeWait,
  kReadWithoutNaming,
  kWaitsForFewer,
  kOutOfScope,
  // Of threads and memory.
  kThreeWarps,
  kWarpsDiffer,
  kLanesDiffer,
  kNoFence,
  kFenceTooEarly,
  kNoBarrier,
  kOverwritten,
  kBeyondMemory,
  kNoPermutationInDescriptor,
  // Of the layout: wrong numbers.
  kNotPermuted,
  kOtherMajor,
  kWrongStep,
  // Of bulk copies.
  kBulk,  // none
  kBulkNotAwaited,
  kBulkUnaligned,
  kBulkElsewhere
};

void multiply_squares(const SquareMemory& memory, Accumulator<kSide>& sums, Mistake mistake) {
  const int thread = static_cast<int>(device::thread_index()), warp = thread / 32, lane = thread % 32;
  auto a = device::shared_matrix<TensorType::kBf16, Major::kK>(memory.a, sizeof memory.a);
  const auto b = device::shared_matrix<TensorType::kBf16, Major::kMn>(memory.b, sizeof memory.b);
  if (mistake == Mistake::kBeyondMemory) a.descriptor += sizeof(SquareMemory) / 16;
  if (mistake == Mistake::kNoPermutationInDescriptor) a.descriptor &= ~(std::uint64_t{3} << 62);
  const SharedMatrix<TensorType::kBf16, Major::kMn> a_by_rows{a.descriptor, a.panel_bytes};
  const bool from_registers = mistake == Mistake::kFromRegisters || mistake == Mistake::kFragmentNotNamed;
  std::uint32_t words[4][4];
  for (int step = 0; step < 4; ++step)
    device::load_matrices(words[step], memory.a + device::panel_offset(16 * warp + lane % 8 + lane / 8 % 2 * 8,
                                                                       (2 * step + lane / 16) * 16));
  if (mistake == Mistake::kSumsNotNamed || mistake == Mistake::kNoBegin) {
    if (mistake == Mistake::kSumsNotNamed) device::begin_products();
  } else if (mistake == Mistake::kFromRegisters) {
    device::begin_products(sums, words);
  } else {
    device::begin_products(sums);
  }
  if (mistake == Mistake::kSumsReadAfterBegin) sums[0] += 1;
  for (int step = 0; step < 4; ++step) {
    const bool differs =
        (mistake == Mistake::kWarpsDiffer && warp == 2) || (mistake == Mistake::kLanesDiffer && lane == 9);
    const int of_a = mistake == Mistake::kWrongStep ? step + 1 : differs ? 0 : step;
    if (from_registers)
      device::multiply_async(sums, words[step], b.k_step(step), step > 0);
    else if (mistake == Mistake::kOtherMajor)
      device::multiply_async(sums, a_by_rows.k_step(step), b.k_step(step), step > 0);
    else
      device::multiply_async(sums, a.k_step(of_a), b.k_step(step), step > 0);
  }
}

/// out = A B; `a` and `b` are images of panels, but that of A as it is in memory without permutation.
template <Mistake mistake>
__global__ void square_kernel(float* out, const std::uint32_t* a, const std::uint32_t* b, std::uint64_t* failed) {
  SquareMemory& memory = device::shared<SquareMemory>();
  const int thread = static_cast<int>(device::thread_index()), warp = thread / 32, lane = thread % 32;
  constexpr bool kByBulk = mistake >= Mistake::kBulk;
  if (mistake == Mistake::kFenceTooEarly) device::fence_async_proxy();
  for (int i = thread; i < kSide * 32; i += static_cast<int>(device::block_threads())) {
    const int at = mistake == Mistake::kNotPermuted ? i * 4 : device::panel_offset(i / 32, i % 32 * 4);
    std::memcpy(memory.a + at, &a[i], 4);
    if (!kByBulk) std::memcpy(memory.b + 4 * i, &b[i], 4);
  }
  if (kByBulk && thread == 0) {
    device::init_transactions(&memory.arrived, 1);
    device::arrive_expecting(&memory.arrived, sizeof memory.b);
    const int offset = mistake == Mistake::kBulkUnaligned ? 4 : 0;
    device::copy_bulk(mistake == Mistake::kBulkElsewhere ? static_cast<void*>(out) : memory.b + offset, b,
                      sizeof memory.b, &memory.arrived);
  }
  if (mistake != Mistake::kNoFence && mistake != Mistake::kFenceTooEarly) device::fence_async_proxy();
  if (mistake != Mistake::kNoBarrier) device::block_barrier();
  if (kByBulk && mistake != Mistake::kBulkNotAwaited) device::wait_transactions(&memory.arrived, 0, {0, failed}, kCode);
  if (mistake == Mistake::kThreeWarps && warp == 3) return;

  if (mistake == Mistake::kOutOfScope) {
    {
      Accumulator<kSide> sums;
      multiply_squares(memory, sums, mistake);
    }
    device::commit_products();
    device::wait_products<0>();
    return;
  }
  Accumulator<kSide> sums;
  multiply_squares(memory, sums, mistake);
  if (mistake != Mistake::kNoCommit) device::commit_products();
  if (mistake == Mistake::kOverwritten) {
    memory.a[thread] = 0;
    device::fence_async_proxy();
  }
  if (mistake == Mistake::kNoWait) return;
  if (mistake == Mistake::kReadBeforeWait) out[thread] = sums[0];
  if (mistake == Mistake::kWaitsForFewer)
    device::wait_products<1>(sums);
  else if (mistake == Mistake::kReadWithoutNaming)
    device::wait_products<0>();
  else
    device::wait_products<0>(sums);
  if (mistake == Mistake::kBulkNotAwaited) device::wait_transactions(&memory.arrived, 0, {0, failed}, kCode);
  for (int i = 0; i < kSide / 2; ++i)
    out[(16 * warp + lane / 4 + 8 * (i / 2 % 2)) * kSide + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = sums[i];
}

class SimtTensor : public ::testing::Test {
 protected:
  SimtTensor() { simt::reset(); }
  ~SimtTensor() override {
    simt::reset();
    EXPECT_EQ(simt::live_objects(), 0);
  }

  /// What became of a run, in one order: the message of the error, or whether the product is right.
  static std::string outcome(void (*kernel)(float*, const std::uint32_t*, const std::uint32_t*, std::uint64_t*),
                             int threads = kWarpgroupThreads) {
    const std::vector<float> a = deviceloop::testing::random_integers<float>(kSide * kSide, 9, 1);
    const std::vector<float> b = deviceloop::testing::random_integers<float>(kSide * kSide, 9, 2);
    std::vector<std::uint32_t> image_a(kSide * 32), image_b(kSide * 32);
    std::vector<float> expected;
    for (int row = 0; row < kSide; ++row)
      for (int column = 0; column < kSide; ++column) {
        const auto bf16 = [&](const std::vector<float>& matrix) {
          std::uint32_t bits;
          std::memcpy(&bits, &matrix[static_cast<std::size_t>(row * kSide + column)], sizeof bits);
          return static_cast<std::uint16_t>(bits >> 16);
        };
        reinterpret_cast<std::uint16_t*>(image_a.data())[row * kSide + column] = bf16(a);
        const int piece = column / 8 ^ row % 8;
        reinterpret_cast<std::uint16_t*>(image_b.data())[row * kSide + piece * 8 + column % 8] = bf16(b);
        double sum = 0;
        for (int k = 0; k < kSide; ++k)
          sum += static_cast<double>(a[static_cast<std::size_t>(row * kSide + k)]) *
                 b[static_cast<std::size_t>(k * kSide + column)];
        expected.push_back(static_cast<float>(sum));
      }
    const DeviceArray<std::uint32_t> device_a(image_a), device_b(image_b);
    const DeviceArray<float> out(kSide * kSide);
    const DeviceArray<std::uint64_t> failed(std::vector<std::uint64_t>{0});
    const device::StreamOwner stream;
    device::launch(kernel, {1, threads, sizeof(SquareMemory)}, stream.get(), out.data(), device_a.data(),
                   device_b.data(), failed.data());
    try {
      stream.wait();
    } catch (const simt::KernelError& error) {
      return error.what();
    }
    return out.read(stream) == expected ? "right" : "wrong";
  }

  /// Its outcomes in forward, reverse and eight random orders must all hold this.
  template <Mistake mistake>
  static void expect_always(const std::string& expected, int threads = kWarpgroupThreads) {
    for (int order = 0; order < 10; ++order)
      EXPECT_MENTIONS(in_order<mistake>(order, threads), expected) << ", in order " << order;
  }

  /// In how many of them the product is right.
  template <Mistake mistake>
  static int times_right() {
    int right = 0;
    for (int order = 0; order < 10; ++order) right += in_order<mistake>(order, kWarpgroupThreads) == "right" ? 1 : 0;
    return right;
  }

 private:
  template <Mistake mistake>
  static std::string in_order(int order, int threads) {
    simt::set_order(order == 0   ? Order::kForward
                    : order == 1 ? Order::kReverse
                                 : Order::kRandom,
                    static_cast<std::uint64_t>(order));
    return outcome(square_kernel<mistake>, threads);
  }
};

TEST_F(SimtTensor, RightProductsAreRightInEveryOrder) {
  EXPECT_EQ(times_right<Mistake::kNone>(), 10);
  EXPECT_EQ(times_right<Mistake::kFromRegisters>(), 10);
  EXPECT_EQ(times_right<Mistake::kBulk>(), 10);
}

TEST_F(SimtTensor, RegistersMustBeNamedAndLeftAlone) {
  expect_always<Mistake::kNoBegin>("multiply_async without begin_products since the last commit_products");
  expect_always<Mistake::kSumsNotNamed>("multiply_async: sums that begin_products did not name");
  expect_always<Mistake::kSumsReadAfterBegin>(
      "multiply_async: sums that begin_products did not name, or that were read");
  expect_always<Mistake::kFragmentNotNamed>("multiply_async: a fragment that begin_products did not name");
  expect_always<Mistake::kReadBeforeWait>("sums are read or written while products add to them");
  expect_always<Mistake::kReadWithoutNaming>("sums are read or written while products add to them");
}

TEST_F(SimtTensor, ProductsMustBeCommittedAndWaitedFor) {
  expect_always<Mistake::kNoCommit>("wait_products: the last products were not committed");
  expect_always<Mistake::kNoWait>("returns while products are under way");
  expect_always<Mistake::kWaitsForFewer>("wait_products names sums that a later batch adds to");
  expect_always<Mistake::kOutOfScope>("wait_products: sums went out of scope while products added to them");
}

TEST_F(SimtTensor, AWholeWarpgroupMultipliesTheSame) {
  expect_always<Mistake::kThreeWarps>("warps of a warpgroup have multiplied 4, 4, 4 and 0 times");
  expect_always<Mistake::kWarpsDiffer>("multiply_async: another warp of the warpgroup multiplies something else");
  expect_always<Mistake::kLanesDiffer>("multiplies something else");
  expect_always<Mistake::kNone>("multiply_async by threads that are no whole warpgroup of 128", 96);
}

TEST_F(SimtTensor, OperandsNeedTheFenceAndTheBarrier) {
  expect_always<Mistake::kNoFence>("multiply_async: an operand was written after the last fence_async_proxy, at byte ");
  expect_always<Mistake::kFenceTooEarly>("an operand was written after the last fence_async_proxy");
  EXPECT_LT(times_right<Mistake::kNoBarrier>(), 10);
  EXPECT_LT(times_right<Mistake::kOverwritten>(), 10);
}

TEST_F(SimtTensor, DescriptorsMustBeOfThisLayoutAndOfThisMemory) {
  expect_always<Mistake::kBeyondMemory>("multiply_async: an operand at shared address ");
  expect_always<Mistake::kNoPermutationInDescriptor>("multiply_async: a descriptor of another layout");
}

TEST_F(SimtTensor, OtherLayoutsGiveOtherNumbers) {
  EXPECT_EQ(times_right<Mistake::kNotPermuted>(), 0);
  EXPECT_EQ(times_right<Mistake::kOtherMajor>(), 0);
  EXPECT_EQ(times_right<Mistake::kWrongStep>(), 0);
}

TEST_F(SimtTensor, BulkCopiesMustBeAlignedAndWaitedFor) {
  EXPECT_LT(times_right<Mistake::kBulkNotAwaited>(), 10);
  expect_always<Mistake::kBulkUnaligned>("copy_bulk: a place of 8192 bytes is not aligned");
  expect_always<Mistake::kBulkElsewhere>("copy_bulk: a place that is not in the shared memory");
}

}  // namespace
