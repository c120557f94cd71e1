// Whether pointers are aligned for accesses of 16 bytes.
#pragma once

#include <cstdint>

namespace deviceloop::cuda {

/// Whether all pointers are aligned to 16 bytes; a null pointer is.
template <class... T>
bool aligned_to_16(const T*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

}  // namespace deviceloop::cuda
