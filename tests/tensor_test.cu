// The products of Hopper's tensor cores and what feeds them, on a GPU or on the host by tests/simt: exact on integers,
// in every layout, against products in long double.
#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../cuda/runtime/launch.h"
#include "../cuda/runtime/tensor.cuh"
#include "../host/precision.h"
#include "support/hopper_test.h"

namespace deviceloop {
namespace {

using cuda::Accumulator;
using cuda::kWarpgroupThreads;
using cuda::Major;
using cuda::SharedMatrix;
using cuda::TensorType;
using cuda::TransactionBarrier;
using testing::DeviceArray;
using testing::random_integers;

constexpr int kRows = 64;           // of A, and of the sums
constexpr int kPanels = 2;          // along K
constexpr int kMostColumns = 256;   // of B
constexpr std::uint64_t kCode = 7;  // of a wait that fails

/// Values of K.
template <TensorType type>
constexpr int kDepth = kPanels*(type == TensorType::kBf16 ? 64 : 32);

struct alignas(1024) ProductMemory {
  unsigned char a[kRows * 128 * kPanels];
  unsigned char b[kMostColumns * 128 * kPanels];
  TransactionBarrier arrived;
};

/// The four matrices of the fragment of A for one step of K, from panels in shared memory.
template <TensorType type, Major a_major>
__device__ void load_fragment(std::uint32_t (&words)[4], const unsigned char* a, int step) {
  const int lane = static_cast<int>(cuda::thread_index() % 32), warp = static_cast<int>(cuda::thread_index() / 32 % 4);
  if constexpr (a_major == Major::kK) {
    const int row = 16 * warp + lane % 8 + lane / 8 % 2 * 8, piece = step % 4 * 2 + lane / 16;
    cuda::load_matrices(words, a + step / 4 * kRows * 128 + cuda::panel_offset(row, piece * 16));
  } else {
    const int row = 16 * step + lane % 8 + lane / 16 * 8, piece = 2 * warp + lane / 8 % 2;
    cuda::load_matrices<true>(words, a + cuda::panel_offset(row, piece * 16));
  }
}

/// out [64, columns] = A B, of images of the panels in global memory: A comes by a bulk copy, B by stores of all
/// threads. The first half of K is one batch of products, the second another, which is committed while the first is
/// under way.
template <TensorType type, bool in_registers, Major a_major, Major b_major, int columns>
__global__ void __launch_bounds__(kWarpgroupThreads)
    product_kernel(float* out, const std::uint32_t* a, const std::uint32_t* b, std::uint64_t* failed) {
  ProductMemory& memory = cuda::shared<ProductMemory>();
  const int thread = static_cast<int>(cuda::thread_index());
  constexpr int kBytesOfA = sizeof memory.a, kBytesOfB = columns * 128 * kPanels;
  constexpr int kSteps = kDepth<type> / cuda::product_depth(type);
  if (thread == 0) {
    cuda::init_transactions(&memory.arrived, 1);
    cuda::fence_transactions_init();
    cuda::arrive_expecting(&memory.arrived, kBytesOfA);
    cuda::copy_bulk(memory.a, a, kBytesOfA, &memory.arrived);
  }
  for (int i = thread; i < kBytesOfB / 4; i += kWarpgroupThreads) reinterpret_cast<std::uint32_t*>(memory.b)[i] = b[i];
  cuda::fence_async_proxy();
  cuda::block_barrier();
  cuda::wait_transactions(&memory.arrived, 0, {0, failed}, kCode);

  constexpr int kPanelBytesOfA = sizeof memory.a / kPanels;
  constexpr int kPanelBytesOfB = b_major == Major::kK ? columns * 128 : kDepth<type> * 128;
  const auto matrix_a = cuda::shared_matrix<type, a_major>(memory.a, kPanelBytesOfA);
  const auto matrix_b = cuda::shared_matrix<type, b_major>(memory.b, kPanelBytesOfB);
  Accumulator<columns> sums;
  std::uint32_t words[kSteps][4];
  if constexpr (in_registers) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) load_fragment<type, a_major>(words[step], memory.a, step);
    cuda::begin_products(sums, words);
  } else {
    cuda::begin_products(sums);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (step == kSteps / 2) {
      cuda::commit_products();
      if constexpr (in_registers)
        cuda::begin_products(words);
      else
        cuda::begin_products();
    }
    if constexpr (in_registers)
      cuda::multiply_async(sums, words[step], matrix_b.k_step(step), step > 0);
    else
      cuda::multiply_async(sums, matrix_a.k_step(step), matrix_b.k_step(step), step > 0);
  }
  cuda::commit_products();
  cuda::wait_products<1>();
  cuda::wait_products<0>(sums);
  const int warp = thread / 32, r = thread % 32 / 4, c = thread % 4;
#pragma unroll
  for (int i = 0; i < columns / 2; ++i)
    out[(16 * warp + r + 8 * (i / 2 % 2)) * columns + 8 * (i / 4) + 2 * c + i % 2] = sums[i];
}

/// Values of a matrix [rows, k], as they lie in panels: 128 bytes of each row, of the matrix or of its transpose.
std::vector<std::uint32_t> image_of(const std::vector<float>& matrix, int rows, int k, TensorType type, Major major) {
  const int bytes = type == TensorType::kBf16 ? 2 : 4, in_row = 128 / bytes;
  const int image_rows = major == Major::kK ? rows : k, image_columns = major == Major::kK ? k : rows;
  std::vector<std::uint32_t> image(static_cast<std::size_t>(image_rows * image_columns * bytes / 4));
  for (int row = 0; row < image_rows; ++row)
    for (int column = 0; column < image_columns; ++column) {
      const float value = matrix[static_cast<std::size_t>(major == Major::kK ? row * k + column : column * k + row)];
      const int byte = column % in_row * bytes, piece = byte / 16;
      const int at = (column / in_row * image_rows + row) * 128 + (piece ^ (row & 7)) * 16 + byte % 16;
      std::uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      if (bytes == 2) {
        EXPECT_EQ(bits & 0xffffu, 0u) << value << " is no bf16";
        bits >>= 16;
      }
      std::memcpy(reinterpret_cast<unsigned char*>(image.data()) + at, &bits, static_cast<std::size_t>(bytes));
    }
  return image;
}

/// [rows, k] by [columns, k].
std::vector<float> product_of(const std::vector<float>& a, const std::vector<float>& b, int rows, int columns, int k) {
  std::vector<float> out;
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column) {
      long double sum = 0;
      for (int i = 0; i < k; ++i)
        sum += static_cast<long double>(a[static_cast<std::size_t>(row * k + i)]) *
               b[static_cast<std::size_t>(column * k + i)];
      out.push_back(static_cast<float>(sum));
    }
  return out;
}

class Tensor : public testing::HopperTest {
 protected:
  template <TensorType type, bool in_registers, Major a_major, Major b_major, int columns>
  static void expect_exact() {
    SCOPED_TRACE(std::string(type == TensorType::kBf16 ? "bf16" : "tf32") + ", A " +
                 (a_major == Major::kK ? "K-major" : "M-major") +
                 (in_registers ? " in registers" : " in shared memory") + ", B " +
                 (b_major == Major::kK ? "K-major" : "N-major") + ", columns " + std::to_string(columns));
    constexpr int kInner = kDepth<type>;
    std::vector<float> a = random_integers<float>(kRows * kInner, 12, 1);
    const std::vector<float> b = random_integers<float>(columns * kInner, 12, 2);
    const std::vector<float> expected = product_of(a, b, kRows, columns, kInner);
    if (type == TensorType::kTf32)
      for (float& value : a) value = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | 0x1fff);  // ignored
    const DeviceArray<std::uint32_t> image_a(image_of(a, kRows, kInner, type, a_major));
    const DeviceArray<std::uint32_t> image_b(image_of(b, columns, kInner, type, b_major));
    const DeviceArray<float> out(kRows * columns);
    const DeviceArray<std::uint64_t> failed(std::vector<std::uint64_t>{0});
    const cuda::StreamOwner stream;
    const auto kernel = product_kernel<type, in_registers, a_major, b_major, columns>;
    const cuda::LaunchConfig config{1, kWarpgroupThreads, sizeof(ProductMemory)};
    cuda::prepare_kernel(reinterpret_cast<const void*>(kernel), config);
    cuda::launch(kernel, config, stream.get(), out.data(), image_a.data(), image_b.data(), failed.data());
    testing::expect_same(out.read(stream), expected);
  }

  template <TensorType type, Major a_major, Major b_major, int columns>
  static void expect_exact_from_both() {
    expect_exact<type, false, a_major, b_major, columns>();
    expect_exact<type, true, a_major, b_major, columns>();
  }

  template <int columns>
  static void expect_exact_in_all_layouts() {
    expect_exact_from_both<TensorType::kTf32, Major::kK, Major::kK, columns>();
    expect_exact_from_both<TensorType::kBf16, Major::kK, Major::kK, columns>();
    expect_exact_from_both<TensorType::kBf16, Major::kMn, Major::kK, columns>();
    if constexpr (columns % 64 == 0) {
      expect_exact_from_both<TensorType::kBf16, Major::kK, Major::kMn, columns>();
      expect_exact_from_both<TensorType::kBf16, Major::kMn, Major::kMn, columns>();
    }
  }
};

TEST_F(Tensor, ProductsOf8ColumnsAreExact) { expect_exact_in_all_layouts<8>(); }
TEST_F(Tensor, ProductsOf16ColumnsAreExact) { expect_exact_in_all_layouts<16>(); }
TEST_F(Tensor, ProductsOf32ColumnsAreExact) { expect_exact_in_all_layouts<32>(); }
TEST_F(Tensor, ProductsOf64ColumnsAreExact) { expect_exact_in_all_layouts<64>(); }
TEST_F(Tensor, ProductsOf128ColumnsAreExact) { expect_exact_in_all_layouts<128>(); }
TEST_F(Tensor, ProductsOf256ColumnsAreExact) { expect_exact_in_all_layouts<256>(); }

// Two products behind each other, as in a network: H = bf16(A B) goes on as fragments, by rows and by columns.

struct alignas(1024) ChainMemory {
  unsigned char a[kRows * 128], b[64 * 128], c[64 * 128];
  unsigned char rows[kRows * 128], columns[64 * 128];  // H as it is, and transposed
};

/// Each of out's [4, 64, 64]: H C from fragments and from H's rows, H^T C from its rows and from its columns.
__global__ void __launch_bounds__(kWarpgroupThreads)
    chain_kernel(float* out, const std::uint32_t* a, const std::uint32_t* b, const std::uint32_t* c) {
  constexpr TensorType kType = TensorType::kBf16;
  ChainMemory& memory = cuda::shared<ChainMemory>();
  const int thread = static_cast<int>(cuda::thread_index()), warp = thread / 32, lane = thread % 32;
  for (int i = thread; i < 64 * 32; i += kWarpgroupThreads) {
    reinterpret_cast<std::uint32_t*>(memory.a)[i] = a[i];
    reinterpret_cast<std::uint32_t*>(memory.b)[i] = b[i];
    reinterpret_cast<std::uint32_t*>(memory.c)[i] = c[i];
  }
  cuda::fence_async_proxy();
  cuda::block_barrier();
  const auto matrix_a = cuda::shared_matrix<kType, Major::kK>(memory.a, sizeof memory.a);
  const auto matrix_b = cuda::shared_matrix<kType, Major::kK>(memory.b, sizeof memory.b);
  const auto matrix_c = cuda::shared_matrix<kType, Major::kMn>(memory.c, sizeof memory.c);
  Accumulator<64> sums;
  std::uint32_t h[4][4];
  cuda::begin_products(sums);
#pragma unroll
  for (int step = 0; step < 4; ++step)
    cuda::multiply_async(sums, matrix_a.k_step(step), matrix_b.k_step(step), step > 0);
  cuda::commit_products();
  cuda::wait_products<0>(sums);
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) h[step][i] = cuda::to_bf16(sums[8 * step + 2 * i], sums[8 * step + 2 * i + 1]);
    const int row = 16 * warp + lane % 8 + lane / 8 % 2 * 8, piece = 2 * step + lane / 16;
    cuda::store_matrices(memory.rows + cuda::panel_offset(row, piece * 16), h[step]);
    const int column = 16 * step + lane % 8 + lane / 16 * 8, part = 2 * warp + lane / 8 % 2;
    cuda::store_matrices<true>(memory.columns + cuda::panel_offset(column, part * 16), h[step]);
  }
  cuda::fence_async_proxy();
  cuda::block_barrier();
  const auto multiply = [&](int which, auto matrix_h) {
    cuda::begin_products(sums);
#pragma unroll
    for (int step = 0; step < 4; ++step)
      cuda::multiply_async(sums, matrix_h.k_step(step), matrix_c.k_step(step), step > 0);
    cuda::commit_products();
    cuda::wait_products<0>(sums);
#pragma unroll
    for (int i = 0; i < 32; ++i)
      out[(64 * which + 16 * warp + lane / 4 + 8 * (i / 2 % 2)) * 64 + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = sums[i];
  };
  cuda::begin_products(sums, h);
#pragma unroll
  for (int step = 0; step < 4; ++step) cuda::multiply_async(sums, h[step], matrix_c.k_step(step), step > 0);
  cuda::commit_products();
  cuda::wait_products<0>(sums);
#pragma unroll
  for (int i = 0; i < 32; ++i)
    out[(16 * warp + lane / 4 + 8 * (i / 2 % 2)) * 64 + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = sums[i];
  multiply(1, cuda::shared_matrix<kType, Major::kK>(memory.rows, sizeof memory.rows));
  multiply(2, cuda::shared_matrix<kType, Major::kMn>(memory.rows, sizeof memory.rows));
  multiply(3, cuda::shared_matrix<kType, Major::kK>(memory.columns, sizeof memory.columns));
}

TEST_F(Tensor, SumsGoOnAsOperandsByRegistersAndBySharedMemory) {
  const std::vector<float> a = random_integers<float>(64 * 64, 2, 3), b = random_integers<float>(64 * 64, 1, 4);
  const std::vector<float> c = random_integers<float>(64 * 64, 3, 5);  // its transpose, as product_of takes it
  const std::vector<float> h = product_of(a, b, 64, 64, 64);
  std::vector<float> transposed(h.size());
  for (std::size_t i = 0; i < h.size(); ++i) transposed[i % 64 * 64 + i / 64] = h[i];
  const std::vector<float> straight = product_of(h, c, 64, 64, 64), across = product_of(transposed, c, 64, 64, 64);
  std::vector<float> expected = straight;
  expected.insert(expected.end(), straight.begin(), straight.end());
  expected.insert(expected.end(), across.begin(), across.end());
  expected.insert(expected.end(), across.begin(), across.end());
  const auto image = [](const std::vector<float>& matrix, Major major) {
    return DeviceArray<std::uint32_t>(image_of(matrix, 64, 64, TensorType::kBf16, major));
  };
  const auto image_a = image(a, Major::kK), image_b = image(b, Major::kK), image_c = image(c, Major::kMn);
  const DeviceArray<float> out(4 * 64 * 64);
  const cuda::StreamOwner stream;
  const cuda::LaunchConfig config{1, kWarpgroupThreads, sizeof(ChainMemory)};
  cuda::prepare_kernel(reinterpret_cast<const void*>(chain_kernel), config);
  cuda::launch(chain_kernel, config, stream.get(), out.data(), image_a.data(), image_b.data(), image_c.data());
  testing::expect_same(out.read(stream), expected);
}

__global__ void round_kernel(std::uint32_t* out, const float* in) {
  const unsigned i = cuda::thread_index();
  out[i] = cuda::to_bf16(in[i], -in[i]);
}

TEST_F(Tensor, RoundsToNearestBf16AndTiesToEven) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kMost = std::numeric_limits<float>::max();
  struct Rounding {
    float value;
    std::uint32_t bits;
  };
  const std::vector<Rounding> cases = {
      {1.0f, 0x3f80},           {1 + 0x1p-8f, 0x3f80},     // a tie, down to even
      {1 + 0x1.8p-7f, 0x3f82},                             // a tie, up to even
      {1 + 0x1.02p-8f, 0x3f81}, {1 + 0x1.fep-9f, 0x3f80},  // beside ties
      {HUGE_VALF, 0x7f80},      {kMost, 0x7f80},           // rounded up, beyond the largest bf16
      {0x1.fep127f, 0x7f7f},    {0x1p-126f, 0x0080},       // the largest, and the smallest normal one
      {0x1p-133f, 0x0001},      {0x1p-134f, 0x0000},       // subnormal, and a tie of such
      {0.0f, 0x0000},           {3.140625f, 0x4049},
  };
  std::vector<float> values;
  for (const Rounding& each : cases) values.push_back(each.value);
  values.resize(32, kNaN);
  const DeviceArray<float> in(values);
  const DeviceArray<std::uint32_t> out(32);
  const cuda::StreamOwner stream;
  cuda::launch(round_kernel, {1, 32}, stream.get(), out.data(), in.data());
  const std::vector<std::uint32_t> words = out.read(stream);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i < cases.size()) {
      EXPECT_EQ(words[i], cases[i].bits | (cases[i].bits | 0x8000u) << 16) << values[i];
      continue;
    }
    EXPECT_EQ(words[i] & 0x7f807f80u, 0x7f807f80u);  // both are NaN
    EXPECT_NE(words[i] & 0x7fu, 0u);
    EXPECT_NE(words[i] & 0x7f0000u, 0u);
  }
}

__global__ void round_tf32_kernel(std::uint32_t* out, const float* in, int count) {
  for (int i = static_cast<int>(cuda::thread_index()); i < count; i += 32) out[i] = cuda::to_tf32(in[i]);
}

TEST_F(Tensor, RoundsToNearestTf32AndTiesToEvenAsTheHostDoes) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kMost = std::numeric_limits<float>::max();
  struct Rounding {
    float value, rounded;
  };
  const std::vector<Rounding> cases = {
      {1.0f, 1.0f},
      {1 + 0x1p-11f, 1.0f},              // a tie, down to even
      {1 + 0x1.8p-10f, 1 + 0x1p-9f},     // a tie, up to even
      {1 + 0x1.002p-11f, 1 + 0x1p-10f},  // beside ties
      {1 + 0x1.ffep-12f, 1.0f},
      {2 - 0x1p-12f, 2.0f},  // a carry into the exponent
      {HUGE_VALF, HUGE_VALF},
      {kMost, HUGE_VALF},            // rounded up, beyond the largest TF32
      {0x1.ffcp127f, 0x1.ffcp127f},  // the largest
      {0x1p-136f, 0x1p-136f},        // the smallest
      {0x1p-137f, 0.0f},             // a tie of subnormal ones
      {0x1.8p-136f, 0x1p-135f},
      {0.0f, 0.0f},
  };
  std::vector<float> values;
  for (const Rounding& each : cases)
    for (const float sign : {1.0f, -1.0f}) values.push_back(sign * each.value);
  for (const float value : testing::random_values<float>(1000, 6)) values.push_back(value);
  values.push_back(kNaN);
  const int count = static_cast<int>(values.size());
  const DeviceArray<float> in(values);
  const DeviceArray<std::uint32_t> out(count);
  const cuda::StreamOwner stream;
  cuda::launch(round_tf32_kernel, {1, 32}, stream.get(), out.data(), in.data(), count);
  const std::vector<std::uint32_t> words = out.read(stream);
  for (std::size_t i = 0; i < cases.size(); ++i)
    for (const std::size_t sign : {std::size_t{0}, std::size_t{1}}) {
      const float expected = sign == 0 ? cases[i].rounded : -cases[i].rounded;
      EXPECT_EQ(words[2 * i + sign], rounding::bits_of(expected)) << cases[i].value;
    }
  for (std::size_t i = 0; i + 1 < values.size(); ++i)
    EXPECT_EQ(words[i], rounding::bits_of(rounding::rounded<rounding::Tf32>(values[i]))) << values[i];
  EXPECT_EQ(words.back() & 0x7f800000u, 0x7f800000u);
  EXPECT_NE(words.back() & 0x7fe000u, 0u);
}

}  // namespace
}  // namespace deviceloop
