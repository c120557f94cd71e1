// Text files of numbers with commas between them.
#pragma once

#include <string>

#include <deviceloop/matrix.h>

#include "output_file.h"
#include "read_file.h"
#include "reader.h"

namespace deviceloop {

/// Reads numbers (see number.h) as float64, a line a row. A byte order mark, spaces around fields, CRLF, empty lines at
/// the end, and lines that begin with '#' before the first row and after the last are skipped. A first line without any
/// number has the names of the columns; a first line with names and numbers is refused, because it could be either. The
/// last line with '#' before the first row may also have the names, as numpy.savetxt writes them, if it has as many
/// names as that row has numbers. `options.header` decides for an ambiguous file: `yes`, the first line has the names,
/// whatever they are; `no`, it is a row. Names and numbers may stand in double quotes. Where the file has names and
/// `options.inputs` too, the columns are those of these names, in their order, and the others are left out, whose
/// fields may have any text; the same list of names is taken by its places, and otherwise each must occur once. Throws
/// InvalidArgument, naming the file and, counted from 1, line and column: a field that is empty, not a number or too
/// large for float64, another separator than a comma, lines with other numbers of fields than the first, a line longer
/// than 16 MiB, line ends of carriage returns alone, UTF-16, no rows, more than `most_bytes` of memory.
DataMatrix read_csv(const ByteSource& file, const ReadOptions& options = {});

/// Splits the columns: `options.targets` is a number, the last so many columns, or names of columns with commas between
/// them, in the order wanted, in double quotes where a name has a comma or is a number; all other columns are inputs,
/// in their own order, or those of `options.inputs`, and the targets then those of `options.named_targets`, if any.
/// Throws as read_csv does, and for targets that the file does not have or that leave no inputs.
Samples read_csv_samples(const ByteSource& file, const ReadOptions& options);

/// Whether a file of that name is to be written as text.
bool is_csv_name(std::string path);

/// Writes a line with the names x1, x2, ..., y (or y1, y2, ...) and then a line a row, each number as the shortest text
/// that reads back to the same number of its type. The caller commits.
void write_csv(OutputFile& file, ConstMatrix x, ConstMatrix y);
/// The same of one matrix, without a line of names.
void write_csv(OutputFile& file, ConstMatrix matrix);

}  // namespace deviceloop
