// The data of a run, read or generated, and checked where a message can still name the file and the option.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "files/reader.h"
#include "parameters.h"
#include "run_options.h"

namespace deviceloop::cli {

/// A file of finite values, in any format that read_matrix knows. Throws InvalidArgument, naming the file.
HostMatrix read_finite_matrix(const std::string& path, Precision precision, const CpuCaps& caps);

/// Throws InvalidArgument where the files together are larger than the memory.
void check_file_sizes(const std::vector<std::string>& paths, const CpuCaps& caps);

/// Reads --x and --y, or --data. Throws InvalidArgument where they do not match each other or the network.
Samples read_data(const TrainOptions& run, const CpuCaps& caps);

/// What train takes without --x and --y.
HostMatrix generate(std::int64_t rows, std::int64_t columns, Precision precision, std::uint64_t seed,
                    std::uint32_t tensor);

/// A copy of the first `rows` rows, converted.
HostMatrix first_rows(const HostMatrix& matrix, std::int64_t rows, Precision precision);

}  // namespace deviceloop::cli
