// NumPy's .npz files: zip archives of .npy files.
#pragma once

#include <deviceloop/matrix.h>

#include "output_file.h"
#include "read_file.h"
#include "reader.h"

namespace deviceloop {

/// Reads the arrays x and y; others are left alone. `targets` is empty. Throws InvalidArgument, naming the file and the
/// array, for what ZipArchive and read_npy refuse, and where one of the two is missing.
Samples read_npz_samples(const ByteSource& file, const ReadOptions& options = {});

/// The reader where one matrix is expected: refuses the file and says which option takes it.
DataMatrix refuse_npz(const ByteSource& file, const ReadOptions& options);

/// Writes x and y, stored, as numpy.savez does. The caller commits.
void write_npz(OutputFile& file, ConstMatrix x, ConstMatrix y);

}  // namespace deviceloop
