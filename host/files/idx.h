// IDX files, the format of MNIST: a big-endian header with the element type and the sizes, then the elements.
#pragma once

#include <cstdint>

#include "../parameters.h"
#include "read_file.h"

namespace deviceloop {

/// Reads an array of any number of dimensions: the first counts the rows, the others together make the columns. Bytes,
/// shorts and floats become float32, ints and doubles float64; the values are not scaled. Throws InvalidArgument,
/// naming the file: no IDX file, truncated, bytes after the array, another element type, no element, more than
/// `most_bytes` of memory.
HostMatrix read_idx(const ByteSource& file, std::uint64_t most_bytes = UINT64_MAX);

}  // namespace deviceloop
