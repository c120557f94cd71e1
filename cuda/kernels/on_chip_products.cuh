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

/// finish(row, column, step, values): values[k] of the product a b, of that row and of column + k * step; all kTile of
/// them, from a multiple of kTile on, where b does not lie by the inner dimension and at most 4 lanes share a tile. The
/// step is 1 unless b lies by the inner dimension. Rows and columns that fill up tiles are among them. The order of a
/// sum depends on the layout alone.
template <class Way, bool a_by_inner, bool b_by_inner, int most_slices, class T, class Finish>
__device__ __forceinline__ void product(const Operand<const T>& a, const Operand<const T>& b, const OnChipProduct& cut,
                                        const Finish& finish) {
  if (cut.slices == 1)
    Way::template run<1, a_by_inner, b_by_inner>(a, b, cut, finish);
  else if (most_slices == 4 || cut.slices == 4)
    Way::template run<4, a_by_inner, b_by_inner>(a, b, cut, finish);
  else if constexpr (most_slices == 16)
    Way::template run<16, a_by_inner, b_by_inner>(a, b, cut, finish);
}

}  // namespace deviceloop::cuda::on_chip
