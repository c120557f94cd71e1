#include "inputs.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include <deviceloop/error.h>
#include <deviceloop/random.h>

#include "files/weights.h"
#include "matrix_ops.h"
#include "memory.h"
#include "text.h"
#include "trainer_access.h"

namespace deviceloop::cli {
namespace {

std::string count(std::int64_t number, const char* what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

std::uint64_t most_bytes(const CpuCaps& caps) { return caps.memory_bytes != 0 ? caps.memory_bytes : UINT64_MAX; }

ReadOptions read_options(Precision precision, TableHeader header, const CpuCaps& caps) {
  ReadOptions options;
  options.most_bytes = most_bytes(caps);
  options.integers = element_type(precision);
  options.header = header;
  return options;
}

/// Of a number in that precision: "32".
std::string bits_text(Precision precision) { return std::to_string(8 * size_of(element_type(precision))); }

/// ", converted to fp32" behind the type of a file.
std::string converted_text(Precision precision) { return std::string(", converted to ") + name(precision); }

/// What a user should know of how a file was read: "int64, converted to fp32", "line 1 is its header"; empty: nothing.
std::string note(const DataMatrix& matrix, Precision precision) {
  if (matrix.header_line != 0) return "line " + std::to_string(matrix.header_line) + " is its header";
  const bool is_working = matrix.stored_type.empty() || matrix.stored_type == "float" + bits_text(precision);
  return is_working ? "" : matrix.stored_type + converted_text(precision);
}

std::string in_parentheses(const std::string& note) { return note.empty() ? "" : " (" + note + ")"; }

}  // namespace

DataMatrix read_inputs(const std::string& path, Precision precision, TableHeader header, const CpuCaps& caps) {
  return read_matrix(path, read_options(precision, header, caps));
}

std::string rows_line(const DataMatrix& data, Precision precision) {
  return "read " + count(data.rows, "sample") + " from " + data.name + in_parentheses(note(data, precision)) + "\n";
}

std::string samples_line(const TrainOptions& run, const Samples& data) {
  if (!run.has_files()) return "";
  const std::string x = note(data.x, run.training.precision), y = note(data.y, run.training.precision);
  const std::string start = "read " + count(data.x.rows, "sample") + " from ";
  if (run.data.empty())
    return start + data.x.name + in_parentheses(x) + " and " + data.y.name + in_parentheses(y) + "\n";
  std::string notes = data.x.header_line != 0 || (x.empty() && y.empty()) ? x
                      : x.empty()                                         ? "y is " + y
                      : y.empty()                                         ? "x is " + x
                                                                          : "x is " + x + ", and y is " + y;
  return start + printable(run.data) + in_parentheses(notes) + "\n";
}

WeightsInput::WeightsInput(const std::string& path, const CpuCaps& caps)
    : file_(path, most_bytes(caps)), tensors_(file_), network_(read_network(tensors_)) {}

void WeightsInput::load(Trainer& trainer) const { TrainerAccess::load_weights(trainer, tensors_); }

std::string WeightsInput::line(Precision precision) const {
  std::string dtypes;
  for (const char* dtype : {"F16", "BF16", "F32", "F64"}) {
    const auto has_it = [&](const SafeTensorInfo& tensor) { return tensor.dtype == dtype; };
    const auto& tensors = tensors_.tensors();
    if (dtype == "F" + bits_text(precision) || std::none_of(tensors.begin(), tensors.end(), has_it)) continue;
    dtypes += (dtypes.empty() ? "" : " and ") + std::string(dtype);
  }
  return dtypes.empty() ? "" : file_.name() + " has weights in " + dtypes + converted_text(precision) + "\n";
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
  ReadOptions options = read_options(run.training.precision, run.header, caps);
  if (run.data.empty()) {
    check_file_sizes({run.x, run.y}, caps);
    data.x = read_matrix(run.x, options);
    options.most_bytes -= std::min<std::uint64_t>(options.most_bytes, data.x.bytes.size());
    data.y = read_matrix(run.y, options);
  } else {
    options.targets = run.targets;
    data = deviceloop::read_samples(run.data, options);
  }
  if (data.x.rows != data.y.rows)
    throw InvalidArgument(data.x.name + " has " + count(data.x.rows, "row") + ", " + data.y.name + " has " +
                          count(data.y.rows, "row") + "; both need one row a sample");

  std::vector<std::int64_t> fitting = run.network.widths;
  fitting.front() = data.x.columns;
  fitting.back() = data.y.columns;
  const auto check_columns = [&](const DataMatrix& matrix, std::int64_t width, const char* what,
                                 const char* other_remedy = "") {
    if (matrix.columns != width)
      throw InvalidArgument(matrix.name + " has " + count(matrix.columns, "column") + ", but --layers " +
                            widths_text(run.network.widths) + " has " + count(width, what) + "; use --layers " +
                            widths_text(fitting) + other_remedy);
  };
  check_columns(data.x, run.network.widths.front(), "input");
  if (!are_classes(run, data))
    check_columns(
        data.y, run.network.widths.back(), "output",
        run.training.loss == Loss::cross_entropy ? ", or give it one column with the number of the class" : "");
  return data;
}

HostMatrix generate(std::int64_t rows, std::int64_t columns, Precision precision, std::uint64_t seed,
                    std::uint32_t tensor) {
  HostMatrix matrix(element_type(precision), rows, columns);
  fill_normal(matrix.view(), seed, tensor);
  return matrix;
}

HostMatrix probabilities_of_classes(const HostMatrix& numbers, std::int64_t classes) {
  HostMatrix rows(numbers.type, numbers.rows, classes);
  with_type(numbers.type, [&]<class T>(T*) {
    for (std::int64_t row = 0; row < numbers.rows; ++row) {
      const auto number = static_cast<std::int64_t>(static_cast<const T*>(numbers.view().data)[row]);
      // A large number may have been rounded up.
      static_cast<T*>(rows.view().data)[row * classes + std::min(number, classes - 1)] = 1;
    }
  });
  return rows;
}

HostMatrix first_rows(const HostMatrix& matrix, std::int64_t rows, Precision precision) {
  ConstMatrix head = matrix.view();
  head.rows = std::min(rows, matrix.rows);
  HostMatrix copy(element_type(precision), head.rows, head.columns);
  convert(copy.view(), head);
  return copy;
}

}  // namespace deviceloop::cli
