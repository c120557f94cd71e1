// The GEMM of a build without BLAS: packed panels and a register tile, in the manner of Goto and van de Geijn (2008).
// Every element of c is summed over k in ascending order within blocks of kBlockK, block after block, by fused
// multiply-adds where the processor has them (this file alone is compiled with contraction): the width of its vectors
// changes nothing.
#include <algorithm>
#include <cstring>
#include <memory>

#include "gemm.h"

namespace deviceloop {
namespace {

constexpr std::int64_t kTileRows = 6;
constexpr std::int64_t kMaxTileBytes = 128;  // of one tile row: two vectors of the widest instruction set
constexpr std::int64_t kBlockK = 256;
constexpr std::int64_t kBlockRows = 96;
constexpr std::int64_t kBlockBytes = 1024;  // of one block row of op(b)

// tile [kTileRows, 2 vectors] = a packed [k][kTileRows] times b packed [k][2 vectors]. Twelve sums fit the registers of
// every instruction set; the order of sums is the same in all of them.
template <class T, int VectorBytes>
[[gnu::always_inline]] inline void multiply_tile(std::int64_t k, const T* a, const T* b, T* tile) {
  typedef T Vector __attribute__((vector_size(VectorBytes)));
  constexpr std::int64_t kLanes = VectorBytes / static_cast<std::int64_t>(sizeof(T));
  Vector sums[kTileRows][2] = {};
  for (std::int64_t p = 0; p < k; ++p, a += kTileRows, b += 2 * kLanes) {
    Vector row[2];
    std::memcpy(row, b, sizeof row);
#pragma GCC unroll 6
    for (std::int64_t i = 0; i < kTileRows; ++i) {
      sums[i][0] += a[i] * row[0];
      sums[i][1] += a[i] * row[1];
    }
  }
  // One by one, unrolled: as a block they would live in memory, not in registers.
#pragma GCC unroll 6
  for (std::int64_t i = 0; i < kTileRows; ++i) {
    std::memcpy(tile + 2 * i * kLanes, &sums[i][0], VectorBytes);
    std::memcpy(tile + (2 * i + 1) * kLanes, &sums[i][1], VectorBytes);
  }
}

template <class T>
struct Tile {
  using Multiply = void (*)(std::int64_t k, const T* a, const T* b, T* tile);
  Multiply multiply;
  std::int64_t columns;
};

template <class T>
void multiply_tile_16(std::int64_t k, const T* a, const T* b, T* tile) {
  multiply_tile<T, 16>(k, a, b, tile);
}

#if defined(__x86_64__)
template <class T>
[[gnu::target("avx2,fma")]] void multiply_tile_32(std::int64_t k, const T* a, const T* b, T* tile) {
  multiply_tile<T, 32>(k, a, b, tile);
}
template <class T>
[[gnu::target("avx512f")]] void multiply_tile_64(std::int64_t k, const T* a, const T* b, T* tile) {
  multiply_tile<T, 64>(k, a, b, tile);
}
#endif

template <class T>
Tile<T> best_tile() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return {multiply_tile_64<T>, 128 / sizeof(T)};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {multiply_tile_32<T>, 64 / sizeof(T)};
#endif
  return {multiply_tile_16<T>, 32 / sizeof(T)};
}

// Panels of `width` of the rows (or columns) first .. first + count, each [k][width], the last one padded with zeros.
template <class T>
void pack(const T* source, std::int64_t stride, std::int64_t k_stride, std::int64_t count, std::int64_t k,
          std::int64_t width, T* packed) {
  for (std::int64_t first = 0; first < count; first += width) {
    const std::int64_t used = std::min(width, count - first);
    for (std::int64_t p = 0; p < k; ++p, packed += width) {
      for (std::int64_t i = 0; i < used; ++i) packed[i] = source[(first + i) * stride + p * k_stride];
      for (std::int64_t i = used; i < width; ++i) packed[i] = T(0);
    }
  }
}

// The packed blocks of one thread, kept for its life so that a step allocates nothing.
template <class T>
struct Workspace {
  static_assert(kBlockRows % kTileRows == 0 && kBlockBytes % kMaxTileBytes == 0);
  alignas(64) T a[kBlockRows * kBlockK];
  alignas(64) T b[kBlockBytes / sizeof(T) * kBlockK];
  alignas(64) T tile[kTileRows * kMaxTileBytes / sizeof(T)];
};

template <class T>
Workspace<T>& workspace() {
  thread_local const std::unique_ptr<Workspace<T>> mine(new Workspace<T>);
  return *mine;
}

}  // namespace

void prepare_own_gemm_here() {
  workspace<float>();
  workspace<double>();
}

template <class T>
void own_gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
              const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc) {
  static const Tile<T> tile = best_tile<T>();
  constexpr std::int64_t kBlockColumns = kBlockBytes / static_cast<std::int64_t>(sizeof(T));
  Workspace<T>& space = workspace<T>();
  // Strides of op(a) and op(b): along m or n, and along k.
  const std::int64_t a_row = transpose_a == Transpose::yes ? 1 : lda, a_k = transpose_a == Transpose::yes ? lda : 1;
  const std::int64_t b_column = transpose_b == Transpose::yes ? ldb : 1, b_k = transpose_b == Transpose::yes ? 1 : ldb;
  for (std::int64_t first_k = 0; first_k < k; first_k += kBlockK) {
    const std::int64_t block_k = std::min(kBlockK, k - first_k);
    const T scale = first_k == 0 ? beta : T(1);
    for (std::int64_t first_column = 0; first_column < n; first_column += kBlockColumns) {
      const std::int64_t columns = std::min(kBlockColumns, n - first_column);
      pack(b + first_column * b_column + first_k * b_k, b_column, b_k, columns, block_k, tile.columns, space.b);
      for (std::int64_t first_row = 0; first_row < m; first_row += kBlockRows) {
        const std::int64_t rows = std::min(kBlockRows, m - first_row);
        pack(a + first_row * a_row + first_k * a_k, a_row, a_k, rows, block_k, kTileRows, space.a);
        for (std::int64_t column = 0; column < columns; column += tile.columns) {
          for (std::int64_t row = 0; row < rows; row += kTileRows) {
            tile.multiply(block_k, space.a + row * block_k, space.b + column * block_k, space.tile);
            const std::int64_t used_rows = std::min(kTileRows, rows - row);
            const std::int64_t used_columns = std::min(tile.columns, columns - column);
            for (std::int64_t i = 0; i < used_rows; ++i) {
              const T* sums = space.tile + i * tile.columns;
              T* out = c + (first_row + row + i) * ldc + first_column + column;
              if (scale == T(0))
                for (std::int64_t j = 0; j < used_columns; ++j) out[j] = alpha * sums[j];
              else
                for (std::int64_t j = 0; j < used_columns; ++j) out[j] = scale * out[j] + alpha * sums[j];
            }
          }
        }
      }
    }
  }
}

template void own_gemm(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, float, const float*,
                       std::int64_t, const float*, std::int64_t, float, float*, std::int64_t);
template void own_gemm(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, double, const double*,
                       std::int64_t, const double*, std::int64_t, double, double*, std::int64_t);

}  // namespace deviceloop
