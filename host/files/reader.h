// Reading data of any format that deviceloop knows: the format is found from the file's first bytes or, if they do not
// show it, from its name. A new format is a reader in a file of its own and one line of the table in reader.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../parameters.h"
#include "read_file.h"

namespace deviceloop {

/// Whether the first line of a table has the names of its columns.
enum class TableHeader { automatic, yes, no };

struct ReadOptions {
  std::uint64_t most_bytes = UINT64_MAX;        ///< of memory that is free for what is read
  ElementType integers = ElementType::float64;  ///< what integers of 32 and 64 bits become
  TableHeader header = TableHeader::automatic;  ///< see csv.h
  std::string targets = {};                     ///< which columns of a table are the targets, see csv.h
  /// The names of the columns that are wanted as inputs, and as the targets of read_samples, in their order, see csv.h:
  /// for a table with names. Empty: by their places.
  std::vector<std::string> inputs = {}, named_targets = {};
};

/// A matrix from a file, one row a sample.
struct DataMatrix : HostMatrix {
  using HostMatrix::HostMatrix;
  DataMatrix() = default;
  DataMatrix(HostMatrix matrix) : HostMatrix(std::move(matrix)) {}

  std::string name;              ///< for messages: "x.npy", "data.npz: x"; empty where it was not read
  std::string stored_type;       ///< of the file's elements, "int64"; empty for numbers that are text
  std::int64_t header_line = 0;  ///< the line of a table, from 1, with the names of its columns; 0: there is none
  /// The names of the columns, printable, and of those of the file that were not wanted. Empty where it has no names.
  std::vector<std::string> column_names, left_out;
};

/// Inputs and targets, one row a sample.
struct Samples {
  DataMatrix x;
  DataMatrix y;
  DataMatrix weights;  ///< of the samples, one column; empty where they have none
};

/// Reads one matrix. Throws InvalidArgument, naming the file, where the format is not known, for what the format's
/// reader refuses, and before more than `most_bytes` of memory are taken.
DataMatrix read_matrix(const std::string& path, const ReadOptions& options = {});

/// Reads inputs and targets from one file. Throws as read_matrix does, and where the format holds one matrix.
Samples read_samples(const std::string& path, const ReadOptions& options = {});

/// For the readers, before they allocate: throws InvalidArgument where `count` elements of a type take more than
/// `most_bytes`.
void check_matrix_size(const ByteSource& source, std::uint64_t count, ElementType type, std::uint64_t most_bytes);

}  // namespace deviceloop
