// Reading data of any format that deviceloop knows: the format is found from the file's first bytes, and where they do
// not tell, from its name. A new format is a reader in a file of its own and one line of the table in reader.cpp.
#pragma once

#include <cstdint>
#include <string>

#include "../parameters.h"
#include "read_file.h"

namespace deviceloop {

/// Reads one matrix, one row a sample. Throws InvalidArgument, naming the file, where the format is not known, for what
/// the format's reader refuses, and before more than `most_bytes` of memory are taken.
HostMatrix read_matrix(const std::string& path, std::uint64_t most_bytes = UINT64_MAX);

/// Inputs and targets, one row a sample.
struct Samples {
  HostMatrix x;
  HostMatrix y;
};

/// Reads inputs and targets from one file. `targets` says which columns of a table are the targets (see csv.h); files
/// that name their arrays x and y take none. Throws as read_matrix does, and where the format holds one matrix.
Samples read_samples(const std::string& path, const std::string& targets, std::uint64_t most_bytes = UINT64_MAX);

/// For the readers, before they allocate: throws InvalidArgument where `bytes` is more than `most_bytes`.
void check_matrix_size(const ByteSource& source, std::uint64_t bytes, std::uint64_t most_bytes);

}  // namespace deviceloop
