// Products of matrices in shared memory by a block of on_chip_kernel, which includes this, and nobody else.
#pragma once

#include <cmath>

#include "../../host/planning/on_chip_layout.h"
#include "../runtime/device.cuh"
#include "groups.cuh"

namespace deviceloop::cuda::on_chip {

inline constexpr int kWarps = kOnChipThreads / static_cast<int>(kWarpThreads);
inline constexpr int kTile = kOnChipTile;

/// 16 bytes: what blocks send each other.
template <class T>
using Unit = Group<T, kVector<T>>;

/// kTile neighbouring elements, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ void load_tile_row(T (&out)[kTile], const T* from) {
#pragma unroll
  for (int i = 0; i < kTile; i += kVector<T>) {
    Unit<T> unit;
    load_group<true>(unit, from, i, kTile);
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k) out[i + k] = unit.values[k];
  }
}

/// Neighbouring elements, of which kTile or as many as fill a unit are aligned to 16 bytes.
template <class T, int count>
__device__ __forceinline__ void store_values(T* to, const T (&values)[count]) {
  if constexpr (count % kVector<T> == 0) {
#pragma unroll
    for (int i = 0; i < count; i += kVector<T>) {
      Unit<T> unit;
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k) unit.values[k] = values[i + k];
      store_group<true>(to, unit, i, count);
    }
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) to[i] = values[i];
  }
}

/// A matrix in shared memory.
template <class T>
struct Operand {
  T* at;
  int stride;
};

/// How tiles are multiplied: here by fused multiply-adds in T.
struct FusedMultiplyAdds {
  static constexpr bool has_tensor_cores = false;

  /// A lane's part of a tile of the product of a and b, in `sums`: it takes every `slices`th group of the inner
  /// dimension. The rows of an operand that lies by the inner dimension are rows `tiles` apart, so that lanes with
  /// neighbouring tiles read neighbouring rows; those of one that lies by its other dimension are neighbours in memory.
  template <int slices, bool a_by_inner, bool b_by_inner, class T>
  static __device__ __forceinline__ void multiply(T (&sums)[kTile * kTile], const Operand<const T>& a,
                                                  const Operand<const T>& b, const OnChipProduct& cut, int down,
                                                  int column, int slice) {
    const T* a_at = a.at + (a_by_inner ? down * a.stride + slice * kTile : slice * kTile * a.stride + down * kTile);
    const T* b_at = b.at + (b_by_inner ? column * b.stride + slice * kTile : slice * kTile * b.stride + column * kTile);
    const int a_step = a_by_inner ? cut.tiles_down * a.stride : a.stride;
    const int b_step = b_by_inner ? static_cast<int>(cut.across.divisor) * b.stride : b.stride;
    const int a_next = slices * kTile * (a_by_inner ? 1 : a.stride),
              b_next = slices * kTile * (b_by_inner ? 1 : b.stride);
#pragma unroll 2
    for (int group = slice; group < cut.inner; group += slices, a_at += a_next, b_at += b_next) {
      T a_values[kTile][kTile], b_values[kTile][kTile];
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        load_tile_row(a_values[i], a_at + i * a_step);
        load_tile_row(b_values[i], b_at + i * b_step);
      }
#pragma unroll
      for (int k = 0; k < kTile; ++k)
#pragma unroll
        for (int i = 0; i < kTile; ++i)
#pragma unroll
          for (int j = 0; j < kTile; ++j)
            sums[i * kTile + j] = std::fma(a_by_inner ? a_values[i][k] : a_values[k][i],
                                           b_by_inner ? b_values[j][k] : b_values[k][j], sums[i * kTile + j]);
    }
  }

  /// Adds the sums of the `slices` lanes that share a tile, `step` lanes apart, pairwise: level by level, from the
  /// upper bit of `slice` on, a lane keeps half of its values. It is left with those from slice * 16 / slices on.
  template <int slices, class T>
  static __device__ __forceinline__ void add_slices(T (&sums)[kTile * kTile], int slice) {
    constexpr int kStep = static_cast<int>(kWarpThreads) / slices;
    int kept = kTile * kTile;
#pragma unroll
    for (int bit = slices / 2; bit > 0; bit /= 2) {
      kept /= 2;
      const bool upper = (slice & bit) != 0;
#pragma unroll
      for (int i = 0; i < kTile * kTile; ++i) {
        if (i >= kept) continue;
        const T mine = upper ? sums[(kept + i) % (kTile * kTile)] : sums[i];
        const T theirs = upper ? sums[i] : sums[(kept + i) % (kTile * kTile)];
        sums[i] = mine + warp_shuffle_xor(theirs, static_cast<unsigned>(bit * kStep));
      }
    }
  }

  template <int slices, bool a_by_inner, bool b_by_inner, class T, class Finish>
  static __device__ __forceinline__ void run(const Operand<const T>& a, const Operand<const T>& b,
                                             const OnChipProduct& cut, const Finish& finish) {
    constexpr int kLanes = static_cast<int>(kWarpThreads) / slices;  // with a tile of their own
    const auto thread = static_cast<int>(thread_index());
    const int lane = thread % static_cast<int>(kWarpThreads), warp = thread / static_cast<int>(kWarpThreads);
    const int slice = lane / kLanes;
#pragma unroll 1
    for (int first = warp * kLanes; first < cut.tiles; first += kWarps * kLanes) {
      const int tile = first + lane % kLanes;
      const int inside = tile < cut.tiles ? tile : cut.tiles - 1;
      const auto down = static_cast<int>(cut.across.quotient(static_cast<unsigned>(inside)));
      const int column = inside - down * static_cast<int>(cut.across.divisor);
      T sums[kTile * kTile] = {};
      multiply<slices, a_by_inner, b_by_inner>(sums, a, b, cut, down, column, slice);
      add_slices<slices>(sums, slice);
      if (tile >= cut.tiles) continue;
      const auto across = static_cast<int>(cut.across.divisor);
      const auto row_of = [&](int i) { return a_by_inner ? down + i * cut.tiles_down : down * kTile + i; };
      const auto column_of = [&](int j) { return b_by_inner ? column + j * across : column * kTile + j; };
      const int step = b_by_inner ? across : 1;
      if constexpr (slices <= kTile) {
#pragma unroll
        for (int i = 0; i < kTile / slices; ++i) {
          T row[kTile];
#pragma unroll
          for (int j = 0; j < kTile; ++j) row[j] = sums[i * kTile + j];
          finish(row_of(slice * (kTile / slices) + i), column_of(0), step, row);
        }
      } else {
        static_assert(slices == kTile * kTile);
        T element[1] = {sums[0]};
        finish(row_of(slice / kTile), column_of(slice % kTile), step, element);
      }
    }
  }
};

/// In fp32, and by tensor cores where the cut says so. A value is the sum of two in TF32, its first bits and what is
/// left of it; of a product of two such sums three terms are added in fp32, and only that of what is left of both is
/// missing: the errors are those of fp32. Values within half a unit in the last place of TF32 of the largest one
/// overflow.
struct ThreeTf32 : FusedMultiplyAdds {
  static constexpr bool has_tensor_cores = true;

  template <int count>
  struct Parts {
    float first[count], left[count];

    __device__ __forceinline__ void split(const float (&values)[count]) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        first[i] = round_to_tf32(values[i]);
        left[i] = round_to_tf32(values[i] - first[i]);
      }
    }
  };

  using Pair = Group<float, 2>;
  static __device__ __forceinline__ Pair pair(const float* from) { return *reinterpret_cast<const Pair*>(from); }

  /// A warp's tiles are 16 x columns. Which rows and columns of a tile the machine's are, and which of eight of the
  /// inner dimension, is free as long as both operands agree: neighbours are taken by the same lane. So it loads pairs,
  /// the lanes of half a warp from all banks of shared memory, whichever way an operand lies, and ends with
  /// neighbouring columns of two neighbouring rows.
  template <int columns, bool a_by_inner, bool b_by_inner, class Finish>
  static __device__ __forceinline__ void run_tensor(const Operand<const float>& a, const Operand<const float>& b,
                                                    const OnChipProduct& cut, const Finish& finish) {
    constexpr int kParts = columns / 8;  // each a product of the machine, of every kParts-th column
    const auto thread = static_cast<int>(thread_index());
    const int lane = thread % static_cast<int>(kWarpThreads), r = lane / 4, c = lane % 4;
    const int rows = cut.tiles_down * kTile, all_columns = static_cast<int>(cut.across.divisor) * kTile;
    const int inner = cut.inner * kTile;
#pragma unroll 1
    for (int tile = thread / static_cast<int>(kWarpThreads); tile < cut.tensor_tiles; tile += kWarps) {
      const auto down = static_cast<int>(cut.tensor_across.quotient(static_cast<unsigned>(tile)));
      const int row = down * kOnChipTensorRows + 2 * r;
      const int first_column = (tile - down * static_cast<int>(cut.tensor_across.divisor)) * columns;
      // What is beyond the operands is read as their last rows and columns, whose results are dropped.
      const int a_row = row < rows ? row : rows - 2;
      const int b_column = first_column + kParts * r < all_columns ? first_column + kParts * r : all_columns - kParts;
      const float* a_at = a.at + (a_by_inner ? a_row * a.stride + 2 * c : 2 * c * a.stride + a_row);
      const float* b_at = b.at + (b_by_inner ? b_column * b.stride + 2 * c : 2 * c * b.stride + b_column);
      float sums[kParts][4] = {}, left_sums[kParts][4] = {};
#pragma unroll 2
      for (int k = 0; k < inner; k += 8, a_at += a_by_inner ? 8 : 8 * a.stride, b_at += b_by_inner ? 8 : 8 * b.stride) {
        float a_values[4] = {}, b_values[kParts][2] = {};
        if (k + 2 * c < inner) {
          const Pair of_a[2] = {pair(a_at), pair(a_at + a.stride)};
          a_values[0] = of_a[0].values[0];
          a_values[1] = a_by_inner ? of_a[1].values[0] : of_a[0].values[1];
          a_values[2] = a_by_inner ? of_a[0].values[1] : of_a[1].values[0];
          a_values[3] = of_a[1].values[1];
          if constexpr (kParts == 2) {
            const Pair of_b[2] = {pair(b_at), pair(b_at + b.stride)};
#pragma unroll
            for (int part = 0; part < 2; ++part)
#pragma unroll
              for (int i = 0; i < 2; ++i) b_values[part][i] = b_by_inner ? of_b[part].values[i] : of_b[i].values[part];
          } else if constexpr (b_by_inner) {
            const Pair of_b = pair(b_at);
            b_values[0][0] = of_b.values[0];
            b_values[0][1] = of_b.values[1];
          } else {
            b_values[0][0] = b_at[0];
            b_values[0][1] = b_at[b.stride];
          }
        }
        Parts<4> a_parts;
        a_parts.split(a_values);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          Parts<2> b_parts;
          b_parts.split(b_values[part]);
          mma_tf32(left_sums[part], a_parts.left, b_parts.first);
          mma_tf32(left_sums[part], a_parts.first, b_parts.left);
          mma_tf32(sums[part], a_parts.first, b_parts.first);
        }
      }
      const int column = first_column + kParts * 2 * c;
      if (row >= rows || column >= all_columns) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float values[2 * kParts];
#pragma unroll
        for (int k = 0; k < 2 * kParts; ++k) {
          const int part = k % kParts, of_lane = 2 * i + k / kParts;
          values[k] = left_sums[part][of_lane] + sums[part][of_lane];
        }
        finish(row + i, column, 1, values);
      }
    }
  }
};

/// finish(row, column, step, values): values[k] of the product a b, of that row and of column + k * step. in_units: all
/// kTile of them, from a multiple of kTile on. The step is 1 unless b lies by the inner dimension. Rows and columns
/// that fill up tiles of kTile are among them. The order of a sum depends on the layout alone.
template <class Way, bool a_by_inner, bool b_by_inner, bool in_units, class T, class Finish>
__device__ __forceinline__ void product(const Operand<const T>& a, const Operand<const T>& b, const OnChipProduct& cut,
                                        const Finish& finish) {
  if constexpr (Way::has_tensor_cores) {
    if (cut.tensor_columns == 16) return Way::template run_tensor<16, a_by_inner, b_by_inner>(a, b, cut, finish);
    if constexpr (!in_units)
      if (cut.tensor_columns == 8) return Way::template run_tensor<8, a_by_inner, b_by_inner>(a, b, cut, finish);
  }
  if (cut.slices == 1)
    Way::template run<1, a_by_inner, b_by_inner>(a, b, cut, finish);
  else if (in_units || cut.slices == 4)
    Way::template run<4, a_by_inner, b_by_inner>(a, b, cut, finish);
  else if constexpr (!in_units)
    Way::template run<16, a_by_inner, b_by_inner>(a, b, cut, finish);
}

}  // namespace deviceloop::cuda::on_chip
