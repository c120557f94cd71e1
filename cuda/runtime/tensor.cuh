// The functions by which a kernel uses Hopper's tensor cores, beside those of device.cuh: asynchronous products of four
// warps, whose operands lie in shared memory, and what brings operands there. Like device.cuh it has two definitions:
// this one for nvcc, and that of tests/simt. Products need code for compute capability 9.0 alone (sm_90a,
// deviceloop_hopper_architectures in cmake/Cuda.cmake); code for other GPUs traps where it calls them, so that a plan
// must refuse those GPUs. Layouts are those of the PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
#pragma once

#include <cstdint>

#include "../../host/host_device.h"
#include "device.cuh"

namespace deviceloop::cuda {

/// Threads of a warpgroup: four warps that multiply together, the first of them a multiple of four.
inline constexpr unsigned kWarpgroupThreads = 128;

/// What is multiplied; sums are float. bf16: two in a word, that of the smaller index in its lower half. TF32: floats
/// whose last 13 bits are ignored.
enum class TensorType { kBf16, kTf32 };

/// The index along which a matrix in shared memory is contiguous: K, over which a product sums, or the other one, M of
/// A and N of B.
enum class Major { kK, kMn };

/// Values of K in one product.
DEVICELOOP_HOST_DEVICE constexpr int product_depth(TensorType type) { return type == TensorType::kBf16 ? 16 : 8; }

/// Operands lie in shared memory in panels: a panel holds 128 bytes of each row, row behind row, and begins at a
/// multiple of 1024 bytes. Where byte `byte` of row `row` lies in its panel: the pieces of 16 bytes of a row are
/// permuted (PTX: 128-byte swizzle), so that those of eight rows beside each other lie in different banks.
inline constexpr int kPanelRowBytes = 128;
DEVICELOOP_HOST_DEVICE constexpr int panel_offset(int row, int byte) {
  return row * kPanelRowBytes + (byte ^ row % 8 * 16);
}

/// A matrix in panels of shared memory, as a product reads it. Rows are its M or N and bytes its K, if K is contiguous;
/// otherwise rows are its K. Both of a panel's sides hold a multiple of 8 values.
template <TensorType type, Major major>
struct SharedMatrix {
  static_assert(type == TensorType::kBf16 || major == Major::kK, "tensor cores take TF32 along K only");

  std::uint64_t descriptor;
  int panel_bytes;

  /// The same from value `step` * product_depth(type) of K on.
  DEVICELOOP_HOST_DEVICE constexpr SharedMatrix k_step(int step) const {
    constexpr int kBytes = product_depth(type) * (type == TensorType::kBf16 ? 2 : 4);
    constexpr int kInRow = kPanelRowBytes / kBytes;
    const int bytes = major == Major::kK ? step / kInRow * panel_bytes + step % kInRow * kBytes
                                         : step * product_depth(type) * kPanelRowBytes;
    return {descriptor + static_cast<std::uint64_t>(bytes / 16), panel_bytes};
  }
};

namespace detail {

/// PTX's matrix descriptor: bits 0-13 hold the address, 16-29 the offset from panel to panel (used only where K is not
/// contiguous), 32-45 that from eight rows to the next eight, each in units of 16 bytes; 62-63 the permutation, 1 for
/// rows of 128 bytes.
DEVICELOOP_HOST_DEVICE constexpr std::uint64_t matrix_descriptor(std::uint32_t address, int panel_bytes) {
  constexpr std::uint64_t kPermuted128Bytes = 1;
  return std::uint64_t{address / 16} | static_cast<std::uint64_t>(panel_bytes / 16) << 16 |
         std::uint64_t{8 * kPanelRowBytes / 16} << 32 | kPermuted128Bytes << 62;
}

}  // namespace detail
}  // namespace deviceloop::cuda

#if defined(__CUDACC__)

namespace deviceloop::cuda {

/// The address of a place in the block's shared memory, as PTX knows it.
__device__ inline std::uint32_t shared_address(const void* place) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(place));
}

/// The matrix that begins at `first`, the first row of a panel or one of every eighth; panels lie `panel_bytes` apart,
/// a multiple of 1024.
template <TensorType type, Major major>
__device__ SharedMatrix<type, major> shared_matrix(const void* first, int panel_bytes) {
  return {detail::matrix_descriptor(shared_address(first), panel_bytes), panel_bytes};
}

/// One thread's part of the sums of a product of 64 rows and `columns` columns. Thread t of the warpgroup, lane 4 r + c
/// of warp w, holds as value i that of row 16 w + r + 8 (i / 2 % 2) and column 8 (i / 4) + 2 c + i % 2. Indices must be
/// constants, so that the values are registers.
template <int columns>
class Accumulator {
 public:
  static constexpr int kValues = columns / 2;

  __device__ float& operator[](int i) { return values[i]; }

  float values[kValues];
};

namespace detail {

/// Neither computes these registers later than here, nor reads them earlier.
/// @{
template <int columns>
__device__ void pin(Accumulator<columns>& sums) {
#pragma unroll
  for (int i = 0; i < columns / 2; ++i) asm volatile("" : "+f"(sums.values[i]));
}
template <int steps>
__device__ void pin(std::uint32_t (&words)[steps][4]) {
#pragma unroll
  for (int i = 0; i < steps * 4; ++i) asm volatile("" : "+r"(words[i / 4][i % 4]));
}
/// @}

/// The instructions, whose lists of registers are of the length that the columns have. An assembler text numbers its
/// operands, the sums first: what follows them has other numbers for each of them.
template <int columns>
struct ProductInstruction;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DEVICELOOP_NUMBERS_8 "%0, %1, %2, %3"
#define DEVICELOOP_NUMBERS_16 DEVICELOOP_NUMBERS_8 ", %4, %5, %6, %7"
#define DEVICELOOP_NUMBERS_32 DEVICELOOP_NUMBERS_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define DEVICELOOP_NUMBERS_64 \
  DEVICELOOP_NUMBERS_32       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DEVICELOOP_NUMBERS_128                                                       \
  DEVICELOOP_NUMBERS_64                                                              \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DEVICELOOP_NUMBERS_256                                                             \
  DEVICELOOP_NUMBERS_128                                                                   \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"       \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"       \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110" \
  ", %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124"   \
  ", %125, %126, %127"
#define DEVICELOOP_SUMS_8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define DEVICELOOP_SUMS_16(i) DEVICELOOP_SUMS_8(i), DEVICELOOP_SUMS_8(i + 4)
#define DEVICELOOP_SUMS_32(i) DEVICELOOP_SUMS_16(i), DEVICELOOP_SUMS_16(i + 8)
#define DEVICELOOP_SUMS_64(i) DEVICELOOP_SUMS_32(i), DEVICELOOP_SUMS_32(i + 16)
#define DEVICELOOP_SUMS_128(i) DEVICELOOP_SUMS_64(i), DEVICELOOP_SUMS_64(i + 32)
#define DEVICELOOP_SUMS_256(i) DEVICELOOP_SUMS_128(i), DEVICELOOP_SUMS_128(i + 64)
#define DEVICELOOP_PRODUCT(predicate, shape, types, n)                                                            \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" predicate ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n shape ".f32." types \
  "." types " {" DEVICELOOP_NUMBERS_##n "}, "
#define DEVICELOOP_PRODUCT_INSTRUCTION(n, n0, n1, n2, n3, n4, n5, n6)                                              \
  template <>                                                                                                      \
  struct ProductInstruction<n> {                                                                                   \
    template <int a_mn, int b_mn>                                                                                  \
    __device__ static void bf16(float (&d)[n / 2], std::uint64_t a, std::uint64_t b, int accumulate) {             \
      asm volatile(DEVICELOOP_PRODUCT(#n2, "k16", "bf16", n) "%" #n0 ", %" #n1 ", p, 1, 1, %" #n3 ", %" #n4 ";\n}" \
                   : DEVICELOOP_SUMS_##n(0)                                                                        \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(a_mn), "n"(b_mn));                                       \
    }                                                                                                              \
    template <int b_mn>                                                                                            \
    __device__ static void bf16(float (&d)[n / 2], const std::uint32_t (&a)[4], std::uint64_t b, int accumulate) { \
      asm volatile(DEVICELOOP_PRODUCT(#n5, "k16", "bf16", n) "{%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4     \
                                                             ", p, 1, 1, %" #n6 ";\n}"                             \
                   : DEVICELOOP_SUMS_##n(0)                                                                        \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(b_mn));              \
    }                                                                                                              \
    __device__ static void tf32(float (&d)[n / 2], std::uint64_t a, std::uint64_t b, int accumulate) {             \
      asm volatile(DEVICELOOP_PRODUCT(#n2, "k8", "tf32", n) "%" #n0 ", %" #n1 ", p, 1, 1;\n}"                      \
                   : DEVICELOOP_SUMS_##n(0)                                                                        \
                   : "l"(a), "l"(b), "r"(accumulate));                                                             \
    }                                                                                                              \
    __device__ static void tf32(float (&d)[n / 2], const std::uint32_t (&a)[4], std::uint64_t b, int accumulate) { \
      asm volatile(DEVICELOOP_PRODUCT(#n5, "k8", "tf32", n) "{%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4      \
                                                            ", p, 1, 1;\n}"                                        \
                   : DEVICELOOP_SUMS_##n(0)                                                                        \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                         \
    }                                                                                                              \
  };
DEVICELOOP_PRODUCT_INSTRUCTION(8, 4, 5, 6, 7, 8, 9, 10)
DEVICELOOP_PRODUCT_INSTRUCTION(16, 8, 9, 10, 11, 12, 13, 14)
DEVICELOOP_PRODUCT_INSTRUCTION(32, 16, 17, 18, 19, 20, 21, 22)
DEVICELOOP_PRODUCT_INSTRUCTION(64, 32, 33, 34, 35, 36, 37, 38)
DEVICELOOP_PRODUCT_INSTRUCTION(128, 64, 65, 66, 67, 68, 69, 70)
DEVICELOOP_PRODUCT_INSTRUCTION(256, 128, 129, 130, 131, 132, 133, 134)
#undef DEVICELOOP_PRODUCT_INSTRUCTION
#undef DEVICELOOP_PRODUCT
#undef DEVICELOOP_SUMS_256
#undef DEVICELOOP_SUMS_128
#undef DEVICELOOP_SUMS_64
#undef DEVICELOOP_SUMS_32
#undef DEVICELOOP_SUMS_16
#undef DEVICELOOP_SUMS_8
#undef DEVICELOOP_NUMBERS_256
#undef DEVICELOOP_NUMBERS_128
#undef DEVICELOOP_NUMBERS_64
#undef DEVICELOOP_NUMBERS_32
#undef DEVICELOOP_NUMBERS_16
#undef DEVICELOOP_NUMBERS_8
#endif

}  // namespace detail

/// How a warpgroup multiplies; all of its threads call each of these, in the same order and with the same matrices:
///   begin_products(sums..., fragments...)   names all registers that the products use (wgmma.fence)
///   multiply_async(sums, a, b, accumulate)  any number of them
///   commit_products()                       ends this batch (wgmma.commit_group)
///   wait_products<n>(sums...)               until at most the last n batches are under way (wgmma.wait_group)
/// From begin_products to the wait_products that names them, no thread reads or writes the sums: they are undefined;
/// nor does anybody write the operands in shared memory. Batches run in their order; later ones may add to sums that
/// are under way, if all have as many columns, without naming them again. The warps of the group are not synchronised:
/// what other warps wrote of the operands needs fence_async_proxy in their threads, then a barrier.
/// @{
template <class... Registers>
__device__ void begin_products(Registers&... registers) {
  (detail::pin(registers), ...);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
#else
  __trap();
#endif
}

/// Sums = A B, or += with `accumulate`: A [64, depth] and B [depth, columns] in shared memory, depth = product_depth().
/// A B that is contiguous along N has whole panels of it: 64 columns or a multiple.
template <int columns, TensorType type, Major a_major, Major b_major>
__device__ void multiply_async(Accumulator<columns>& sums, SharedMatrix<type, a_major> a, SharedMatrix<type, b_major> b,
                               bool accumulate) {
  static_assert(b_major == Major::kK || columns % 64 == 0, "panels of 64 columns");
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Instruction = detail::ProductInstruction<columns>;
  if constexpr (type == TensorType::kBf16)
    Instruction::template bf16<a_major == Major::kMn, b_major == Major::kMn>(sums.values, a.descriptor, b.descriptor,
                                                                             accumulate);
  else
    Instruction::tf32(sums.values, a.descriptor, b.descriptor, accumulate);
#else
  __trap();
#endif
}

/// The same with A in registers. Lane 4 r + c of warp w holds of row 16 w + r (a[0], a[2]) and of row 16 w + r + 8
/// (a[1], a[3]): of bf16 columns 2 c and 2 c + 1 (a[0], a[1]), 2 c + 8 and 2 c + 9 (a[2], a[3]); of TF32 column c
/// (a[0], a[1]) and column c + 4 (a[2], a[3]). So the sums of 16 columns of one product, as bf16, are the A of a next
/// one.
template <int columns, TensorType type, Major b_major>
__device__ void multiply_async(Accumulator<columns>& sums, const std::uint32_t (&a)[4], SharedMatrix<type, b_major> b,
                               bool accumulate) {
  static_assert(b_major == Major::kK || columns % 64 == 0, "panels of 64 columns");
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Instruction = detail::ProductInstruction<columns>;
  if constexpr (type == TensorType::kBf16)
    Instruction::template bf16<b_major == Major::kMn>(sums.values, a, b.descriptor, accumulate);
  else
    Instruction::tf32(sums.values, a, b.descriptor, accumulate);
#else
  __trap();
#endif
}

__device__ inline void commit_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
#else
  __trap();
#endif
}

template <int batches, int... columns>
__device__ void wait_products(Accumulator<columns>&... sums) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(batches) : "memory");
#else
  __trap();
#endif
  (detail::pin(sums), ...);
}
/// @}

// What follows needs compute capability 9.0 or newer; elsewhere it must not be called.

/// Products and bulk copies see what this thread wrote to shared memory before, or what it saw behind a barrier; they
/// read and write past the ways of ordinary accesses, which PTX calls another proxy (fence.proxy.async).
__device__ inline void fence_async_proxy() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
#else
  __trap();
#endif
}

/// Begins to copy `bytes` from global memory to this block's shared memory, both at and in multiples of 16 bytes, and
/// adds them to those that have landed at `barrier`. Who has waited for its phase sees them, and so do products of his,
/// without a fence (cp.async.bulk).
__device__ inline void copy_bulk(void* to, const void* from, unsigned bytes, TransactionBarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :
               : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#else
  __trap();
#endif
}

/// Writes four matrices of 8 rows of 16 bytes to shared memory, by all lanes of a warp: lane i names where row i % 8 of
/// matrix i / 8 goes, a multiple of 16 bytes, and lane 4 r + c has in words[m] columns 2 c and 2 c + 1 of row r of
/// matrix m, in elements of 16 bits; `transposed`: rows 2 c and 2 c + 1 of column r. (stmatrix)
template <bool transposed = false>
__device__ void store_matrices(void* row, const std::uint32_t (&words)[4]) {
#if __CUDA_ARCH__ >= 900
  if constexpr (transposed)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(shared_address(row)), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(shared_address(row)), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
#else
  __trap();
#endif
}

/// The inverse of store_matrices (ldmatrix).
template <bool transposed = false>
__device__ void load_matrices(std::uint32_t (&words)[4], const void* row) {
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// Two values as bf16, `low` in the lower half of the word: rounded to nearest, ties to even (cvt.rn.bf16x2.f32).
__device__ inline std::uint32_t to_bf16(float low, float high) {
#if __CUDA_ARCH__ >= 800
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  __trap();
  return 0;
#endif
}

/// The bits of a value rounded to TF32: to nearest, ties to even, as operands that host/precision.h rounds
/// (cvt.rn.tf32.f32).
__device__ inline std::uint32_t to_tf32(float value) {
#if __CUDA_ARCH__ >= 900
  std::uint32_t bits;
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  __trap();
  return 0;
#endif
}

}  // namespace deviceloop::cuda

#else
#include <simt/tensor.h>
#endif
