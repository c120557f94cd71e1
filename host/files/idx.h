// IDX files, the format of MNIST: a big-endian header with the element type and the sizes, then the elements.
#pragma once

#include <cstdint>

#include "read_file.h"
#include "reader.h"

namespace deviceloop {

/// Reads an array of any number of dimensions: the first counts the rows, the others together make the columns. The
/// elements become what element_type_for() says; the values are not scaled. Throws InvalidArgument,
/// naming the file: no IDX file, truncated, bytes after the array, another element type, no element, more than
/// `most_bytes` of memory.
DataMatrix read_idx(const ByteSource& file, const ReadOptions& options = {});

}  // namespace deviceloop
