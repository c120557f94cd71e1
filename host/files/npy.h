// NumPy's .npy files (format versions 1.0 to 3.0): numbers of every type that NumPy writes but complex and long double,
// of both byte orders, in C and Fortran order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include <deviceloop/matrix.h>

#include "output_file.h"
#include "read_file.h"
#include "reader.h"

namespace deviceloop {

/// Reads a 2-D array as [rows, columns], a 1-D array as one column; the elements, of one of the types of elements.h,
/// become what element_type_for() says. Allocates nothing that the file's size does not justify. Throws
/// InvalidArgument, naming the file: missing, unreadable, empty (also with 0 rows or 0 columns), truncated, bytes after
/// the array, no .npy, another element type (object, complex, long double, text: named), another number of dimensions.
DataMatrix read_npy(const std::string& path, const ReadOptions& options = {});

/// The same, from any source. Refuses what would take more than `most_bytes` of memory.
DataMatrix read_npy(const ByteSource& file, const ReadOptions& options = {});

/// Writes version 1.0, C order; a 2-D array. The caller commits.
void write_npy(OutputFile& file, ConstMatrix matrix);

/// The same, in pieces given to `write`; the caller has checked the view.
void write_npy(const std::function<void(const void*, std::size_t)>& write, ConstMatrix matrix);

/// Writes an int64 array [rows, columns], row-major without gaps, in the same form. The caller commits.
void write_npy(OutputFile& file, const std::int64_t* values, std::int64_t rows, std::int64_t columns);

}  // namespace deviceloop
