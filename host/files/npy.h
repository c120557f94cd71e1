// NumPy's .npy files (format versions 1.0 to 3.0), float32 and float64, little-endian, C and Fortran order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include <deviceloop/matrix.h>

#include "../parameters.h"
#include "output_file.h"
#include "read_file.h"

namespace deviceloop {

/// Reads a 2-D array as [rows, columns], a 1-D array as one column. Allocates nothing that the file's size does not
/// justify. Throws InvalidArgument, naming the file: missing, unreadable, empty (also with 0 rows or 0 columns),
/// truncated, bytes after the array, no .npy, an element type other than little-endian float32 or float64 (object,
/// complex, integer, big-endian: named), another number of dimensions.
HostMatrix read_npy(const std::string& path);

/// The same, from any source. Refuses what would take more than `most_bytes` of memory.
HostMatrix read_npy(const ByteSource& file, std::uint64_t most_bytes = UINT64_MAX);

/// Writes version 1.0, C order; a 2-D array. The caller commits.
void write_npy(OutputFile& file, ConstMatrix matrix);

/// The same, in pieces given to `write`; the caller has checked the view.
void write_npy(const std::function<void(const void*, std::size_t)>& write, ConstMatrix matrix);

}  // namespace deviceloop
