// What the fuzz targets share: a reader may take any bytes, or refuse them as it says; nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include <deviceloop/error.h>

#include "files/read_file.h"

namespace deviceloop::fuzz {

/// What a reader may take of memory; more than any seed needs, less than the fuzzer's own limit.
constexpr std::uint64_t kMostBytes = 64 << 20;

/// Calls read(source) with the input. A refusal must be one line that begins with the source's name.
template <class Read>
int run(const std::uint8_t* data, std::size_t size, Read read) {
  if (size == 0) return 0;
  try {
    read(MemorySource("input", std::as_bytes(std::span(data, size))));
  } catch (const InvalidArgument& error) {
    const std::string message = error.what();
    if (message.rfind("input: ", 0) != 0 || message.find('\n') != std::string::npos || message.size() > 2000)
      std::abort();
  }
  return 0;
}

/// A matrix as large as it says.
template <class Matrix>
void check(const Matrix& matrix) {
  if (matrix.rows < 1 || matrix.columns < 1 ||
      matrix.bytes.size() != static_cast<std::size_t>(matrix.rows * matrix.columns) * size_of(matrix.type))
    std::abort();
}

}  // namespace deviceloop::fuzz
