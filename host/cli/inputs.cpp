#include "inputs.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include <deviceloop/error.h>
#include <deviceloop/random.h>

#include "files/reader.h"
#include "interrupt.h"
#include "matrix_ops.h"
#include "memory.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

std::string count(std::int64_t number, const char* what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

}  // namespace

HostMatrix read_finite_matrix(const std::string& path, Precision precision, const CpuCaps& caps) {
  HostMatrix matrix = read_matrix(path, caps.memory_bytes != 0 ? caps.memory_bytes : UINT64_MAX);
  const HostMatrix& read = matrix;
  if (const auto bad = find_non_finite(read.view(), element_type(precision)))
    throw InvalidArgument(printable(path) + ": " + describe(*bad, element_type(precision)) +
                          "; replace or drop such samples");
  throw_if_interrupted();
  return matrix;
}

void check_file_sizes(const std::vector<std::string>& paths, const CpuCaps& caps) {
  ByteCount bytes;
  std::string names;
  for (const std::string& path : paths) {
    std::error_code error;
    const std::uintmax_t size = std::filesystem::file_size(path, error);
    if (!error) bytes.add(size);  // what else is wrong with a file its reader says
    names += (names.empty() ? "" : " and ") + printable(path);
  }
  check_memory("the data of " + names, bytes, caps);
}

Data read_data(const TrainOptions& run, const CpuCaps& caps) {
  check_file_sizes({run.x, run.y}, caps);
  Data data;
  data.x = read_finite_matrix(run.x, run.training.precision, caps);
  data.y = read_finite_matrix(run.y, run.training.precision, caps);
  if (data.x.rows != data.y.rows)
    throw InvalidArgument(printable(run.x) + " has " + count(data.x.rows, "row") + ", " + printable(run.y) + " has " +
                          count(data.y.rows, "row") + "; both need one row a sample");

  std::vector<std::int64_t> fitting = run.network.widths;
  fitting.front() = data.x.columns;
  fitting.back() = data.y.columns;
  const auto check_columns = [&](const std::string& path, std::int64_t columns, std::int64_t width, const char* what) {
    if (columns != width)
      throw InvalidArgument(printable(path) + " has " + count(columns, "column") + ", but --layers " +
                            widths_text(run.network.widths) + " has " + count(width, what) + "; use --layers " +
                            widths_text(fitting));
  };
  check_columns(run.x, data.x.columns, run.network.widths.front(), "input");
  check_columns(run.y, data.y.columns, run.network.widths.back(), "output");
  return data;
}

HostMatrix generate(std::int64_t rows, std::int64_t columns, Precision precision, std::uint64_t seed,
                    std::uint32_t tensor) {
  HostMatrix matrix(element_type(precision), rows, columns);
  fill_normal(matrix.view(), seed, tensor);
  throw_if_interrupted();
  return matrix;
}

HostMatrix first_rows(const HostMatrix& matrix, std::int64_t rows, Precision precision) {
  ConstMatrix head = matrix.view();
  head.rows = std::min(rows, matrix.rows);
  HostMatrix copy(element_type(precision), head.rows, head.columns);
  convert(copy.view(), head);
  return copy;
}

}  // namespace deviceloop::cli
