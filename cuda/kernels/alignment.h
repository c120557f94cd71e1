// Whether pointers allow accesses of 16 bytes.
#pragma once

#include <cstdint>

namespace deviceloop::cuda {

/// Whether all lie on a border of 16 bytes, as null does.
template <class... T>
bool aligned_to_16(const T*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace deviceloop::cuda
