#include "inputs.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include <deviceloop/error.h>
#include <deviceloop/random.h>

#include "files/reader.h"
#include "matrix_ops.h"
#include "memory.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

std::string count(std::int64_t number, const char* what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

std::uint64_t most_bytes(const CpuCaps& caps) { return caps.memory_bytes != 0 ? caps.memory_bytes : UINT64_MAX; }

void check_finite(const std::string& start, const HostMatrix& matrix, Precision precision) {
  if (const auto bad = find_non_finite(matrix.view(), element_type(precision)))
    throw InvalidArgument(start + describe(*bad, element_type(precision)) + "; replace or drop such samples");
}

}  // namespace

HostMatrix read_finite_matrix(const std::string& path, Precision precision, const CpuCaps& caps) {
  HostMatrix matrix = read_matrix(
      path,
      {.most_bytes = most_bytes(caps), .integers = element_type(precision), .while_reading = throw_if_interrupted});
  check_finite(printable(path) + ": ", matrix, precision);
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

Samples read_data(const TrainOptions& run, const CpuCaps& caps) {
  Samples data;
  std::string x = printable(run.x), y = printable(run.y);
  if (run.data.empty()) {
    check_file_sizes({run.x, run.y}, caps);
    data.x = read_finite_matrix(run.x, run.training.precision, caps);
    data.y = read_finite_matrix(run.y, run.training.precision, caps);
  } else {
    x = printable(run.data) + ": x";
    y = printable(run.data) + ": y";
    data = deviceloop::read_samples(run.data, {.most_bytes = most_bytes(caps),
                                               .integers = element_type(run.training.precision),
                                               .targets = run.targets,
                                               .while_reading = throw_if_interrupted});
    check_finite(x + ": ", data.x, run.training.precision);
    check_finite(y + ": ", data.y, run.training.precision);
  }
  if (data.x.rows != data.y.rows)
    throw InvalidArgument(x + " has " + count(data.x.rows, "row") + ", " + y + " has " + count(data.y.rows, "row") +
                          "; both need one row a sample");

  std::vector<std::int64_t> fitting = run.network.widths;
  fitting.front() = data.x.columns;
  fitting.back() = data.y.columns;
  const auto check_columns = [&](const std::string& name, std::int64_t columns, std::int64_t width, const char* what) {
    if (columns != width)
      throw InvalidArgument(name + " has " + count(columns, "column") + ", but --layers " +
                            widths_text(run.network.widths) + " has " + count(width, what) + "; use --layers " +
                            widths_text(fitting));
  };
  check_columns(x, data.x.columns, run.network.widths.front(), "input");
  check_columns(y, data.y.columns, run.network.widths.back(), "output");
  return data;
}

HostMatrix generate(std::int64_t rows, std::int64_t columns, Precision precision, std::uint64_t seed,
                    std::uint32_t tensor) {
  HostMatrix matrix(element_type(precision), rows, columns);
  fill_normal(matrix.view(), seed, tensor);
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
