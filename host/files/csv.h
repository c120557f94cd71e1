// Text files of numbers with commas between them.
#pragma once

#include "read_file.h"
#include "reader.h"

namespace deviceloop {

/// Reads numbers as float64, a line a row. The first line is a header where a field of it is not a number; its fields
/// may stand in double quotes. Spaces around fields, CRLF, a byte order mark and empty lines at the end are skipped.
/// "nan" and "inf" are numbers. Throws InvalidArgument, naming the file and, counted from 1, line and column: a field
/// that is empty, not a number or out of the range of float64, lines with other numbers of fields than the first, a
/// line longer than 16 MiB, no rows, more than `most_bytes` of memory.
DataMatrix read_csv(const ByteSource& file, const ReadOptions& options = {});

/// Splits the columns: `options.targets` is a number, the last so many columns, or names from the header with commas
/// between them, in the order wanted; all other columns are inputs, in their own order. Throws as read_csv does, and
/// for targets that the file does not have or that leave no inputs.
Samples read_csv_samples(const ByteSource& file, const ReadOptions& options);

}  // namespace deviceloop
