// Groups of neighbouring elements, loaded and stored by one access of 16 bytes if the pointers are aligned.
#pragma once

#include <cstdint>

#include "../../host/planning/kernel_layout.h"
#include "../runtime/device.cuh"

namespace deviceloop::cuda {

template <class T, int width>
struct alignas(width * sizeof(T)) Group {
  T values[width];
};

/// Loads a group of elements from `begin` on; elements at `end` or beyond are zero. `aligned`: from + begin is aligned
/// to the size of a group.
template <bool aligned, class T, int width>
__device__ inline void load_group(Group<T, width>& group, const T* from, std::int64_t begin, std::int64_t end) {
  if (aligned && begin + width <= end) {
    group = *reinterpret_cast<const Group<T, width>*>(from + begin);
    return;
  }
#pragma unroll
  for (int i = 0; i < width; ++i) group.values[i] = begin + i < end ? from[begin + i] : T(0);
}

/// Stores a group; writes nothing at `end` or beyond.
template <bool aligned, class T, int width>
__device__ inline void store_group(T* to, const Group<T, width>& group, std::int64_t begin, std::int64_t end) {
  if (aligned && begin + width <= end) {
    *reinterpret_cast<Group<T, width>*>(to + begin) = group;
    return;
  }
#pragma unroll
  for (int i = 0; i < width; ++i)
    if (begin + i < end) to[begin + i] = group.values[i];
}

}  // namespace deviceloop::cuda
