#include "inputs.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/random.h>

#include "matrix_ops.h"
#include "memory.h"
#include "permutation.h"
#include "precision.h"
#include "report.h"
#include "suggestion.h"
#include "text.h"
#include "trainer_access.h"

namespace deviceloop::cli {
namespace {

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
std::string converted_text(Precision precision) {
  return std::string(", converted to ") + name(elements_of(precision));
}

/// "; left out: 'price'"; empty where all columns of a table were taken.
std::string left_out_text(const DataMatrix& matrix) {
  return matrix.left_out.empty() ? "" : "; left out: " + list_in_quotes(matrix.left_out);
}

/// What a user should know of how a file was read: "int64, converted to fp32", "line 1 is its header"; empty: nothing.
std::string note(const DataMatrix& matrix, Precision precision) {
  if (matrix.header_line != 0)
    return "line " + std::to_string(matrix.header_line) + " is its header" + left_out_text(matrix);
  const bool is_working = matrix.stored_type.empty() || matrix.stored_type == "float" + bits_text(precision);
  return is_working ? "" : matrix.stored_type + converted_text(precision);
}

std::string inputs_name(const DataMatrix& x) { return x.name.empty() ? "the generated inputs" : x.name; }
std::string targets_name(const DataMatrix& y) { return y.name.empty() ? "the generated targets" : y.name; }

void scale(DataMatrix& matrix, const InputScaling& scaling, Precision precision, const CpuCaps& caps,
           const std::string& name) {
  if (scaling.is_identity()) return;
  const ElementType type = element_type(precision);
  if (matrix.type != type) {
    ByteCount bytes;
    bytes.add(matrix.bytes.size())
        .add(size_of(type), static_cast<std::uint64_t>(matrix.rows), static_cast<std::uint64_t>(matrix.columns));
    check_memory(name + " and a scaled copy", bytes, caps);
  }
  static_cast<HostMatrix&>(matrix) = scaling.apply(std::move(matrix), type, name);
}

/// The standard deviations of the columns. Of a matrix with more elements than are looked at in a moment, every so
/// manyth row stands for all: a note takes no more of its size than two digits.
std::vector<double> deviations_of(const DataMatrix& matrix) {
  constexpr std::int64_t kElements = std::int64_t{1} << 22;
  ConstMatrix view = matrix.view();
  const std::int64_t stride =
      std::max(std::int64_t{1}, view.rows / std::max(std::int64_t{1}, kElements / view.columns));
  view.rows = (view.rows - 1) / stride + 1;
  view.row_stride *= stride;
  return column_deviations(view);
}

/// "1.2e+05".
std::string size_text(double deviation) {
  char text[64];
  std::snprintf(text, sizeof text, "%.2g", deviation);
  return text;
}

std::string in_parentheses(const std::string& note) { return note.empty() ? "" : " (" + note + ")"; }

}  // namespace

DataMatrix read_inputs(const std::string& path, const std::vector<std::string>& names, Precision precision,
                       TableHeader header, const CpuCaps& caps) {
  ReadOptions options = read_options(precision, header, caps);
  options.inputs = names;
  return read_matrix(path, options);
}

std::string rows_line(const DataMatrix& data, Precision precision) {
  return "read " + counted(data.rows, "sample") + " from " + data.name + in_parentheses(note(data, precision)) + "\n";
}

std::string samples_line(const TrainOptions& run, const Samples& data) {
  if (!run.has_files()) return "";
  const std::string weights = run.training.sample_weights
                                  ? ", weights of the samples from " + data.weights.name +
                                        in_parentheses(note(data.weights, run.training.precision))
                                  : "";
  const std::string x = note(data.x, run.training.precision), y = note(data.y, run.training.precision);
  const std::string start = "read " + counted(data.x.rows, "sample") + " from ";
  if (run.data.empty())
    return start + data.x.name + in_parentheses(x) + " and " + data.y.name + in_parentheses(y) + weights + "\n";
  std::string notes = data.x.header_line != 0 || (x.empty() && y.empty()) ? x
                      : x.empty()                                         ? "y is " + y
                      : y.empty()                                         ? "x is " + x
                                                                          : "x is " + x + ", and y is " + y;
  return start + printable(run.data) + in_parentheses(notes) + weights + "\n";
}

WeightsInput::WeightsInput(const std::string& path, const CpuCaps& caps)
    : file_(path, most_bytes(caps)), tensors_(file_), saved_(read_saved_network(tensors_)) {}

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

std::unique_ptr<const WeightsInput> open_weights(const OptionSet& options, TrainOptions& run, const CpuCaps& caps) {
  if (run.weights.empty()) return nullptr;
  auto weights = std::make_unique<const WeightsInput>(run.weights, caps);
  take_saved_network(options, weights->saved(), run);
  weights->check(run.network);
  return weights;
}

DataScaling scaling_of(const TrainOptions& run, const WeightsInput* weights, const Samples& data) {
  DataScaling scaling;
  if (weights != nullptr) scaling = {weights->saved().scaling, weights->saved().target_scaling};
  if (scaling.inputs.is_identity())
    scaling.inputs =
        run.standardize ? standardized(data.x.view(), run.scale, inputs_name(data.x)) : InputScaling{run.scale};
  if (run.standardize_targets) scaling.targets = standardized(data.y.view(), 1, targets_name(data.y));
  if (scaling.inputs.mean.size() + scaling.targets.mean.size() > static_cast<std::size_t>(kMaxStandardizedColumns))
    throw InvalidArgument("at most " + counted(kMaxStandardizedColumns, "column") +
                          " of inputs and targets can be standardized, and these have " +
                          std::to_string(data.x.columns) + " and " + std::to_string(data.y.columns) +
                          "; drop --standardize-targets");
  return scaling;
}

void scale_inputs(DataMatrix& x, const InputScaling& scaling, Precision precision, const CpuCaps& caps) {
  scale(x, scaling, precision, caps, inputs_name(x));
}

void scale_samples(Samples& data, const DataScaling& scaling, Precision precision, const CpuCaps& caps) {
  scale_inputs(data.x, scaling.inputs, precision, caps);
  scale(data.y, scaling.targets, precision, caps, targets_name(data.y));
}

std::string scaling_line(const InputScaling& scaling) {
  if (scaling.is_identity()) return "";
  char factor[64] = "";
  if (scaling.factor != 1) std::snprintf(factor, sizeof factor, " multiplied by %g", scaling.factor);
  std::string line = "inputs" + std::string(factor);
  if (!scaling.mean.empty())
    line += (scaling.factor != 1 ? ", then each column" : ", each column") +
            std::string(" minus its mean, divided by its deviation");
  return line + "\n";
}

std::string scaling_lines(const DataScaling& scaling) {
  std::string lines = scaling_line(scaling.inputs);
  if (!scaling.targets.is_identity())
    lines +=
        "targets, each column minus its mean, divided by its deviation; losses are of these, and a mean squared error "
        "of 1 is what the mean alone reaches\n";
  return lines;
}

std::string size_note_lines(const TrainOptions& run, const DataScaling& scaling, const Samples& data) {
  std::string lines;
  if (!run.has_files()) return lines;
  if (scaling.inputs.mean.empty()) {
    double least = std::numeric_limits<double>::infinity(), most = 0;
    for (const double deviation : deviations_of(data.x)) {
      if (deviation > 0) least = std::min(least, deviation);
      most = std::max(most, deviation);
    }
    // Where no column is large, small ones do no harm: those of pixels that are rarely set, of rare classes.
    if (most > 10 && most > 100 * least)
      lines += "note: the inputs' standard deviations go from " + size_text(least) + " to " + size_text(most) +
               "; --standardize brings them to 1\n";
  }
  const Loss loss = run.training.loss;
  if (scaling.targets.is_identity() && run.network.output_activation == Activation::identity &&
      (loss == Loss::squared_error || loss == Loss::absolute_error || loss == Loss::huber)) {
    // Of several such columns the one that is farthest from 1.
    const auto distance = [](double deviation) { return deviation > 0 ? std::fabs(std::log(deviation)) : 0; };
    const std::vector<double> deviations = deviations_of(data.y);
    const auto farthest = std::max_element(deviations.begin(), deviations.end(),
                                           [&](double left, double right) { return distance(left) < distance(right); });
    if (*farthest > 100 || (*farthest > 0 && *farthest < 0.01))
      lines +=
          "note: the targets" +
          (data.y.columns == 1 ? std::string()
                               : " of column " + std::to_string(farthest - deviations.begin()) + " (counted from 0)") +
          " have a standard deviation of " + size_text(*farthest) + "; --standardize-targets brings " +
          (data.y.columns == 1 ? "it" : "that of each column") + " to 1\n";
  }
  return lines;
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

namespace {

/// Adds the samples' weights to inputs and targets.
void read_weights_of(Samples& data, const std::string& path, ReadOptions options) {
  const std::uint64_t held = data.y.bytes.size() + data.x.bytes.size();
  options.most_bytes -= std::min(options.most_bytes, held);
  data.weights = read_matrix(path, options);
  if (data.weights.columns != 1)
    throw InvalidArgument(data.weights.name + " has " + counted(data.weights.columns, "column") +
                          ", but samples have one weight each; give it one column");
  if (data.weights.rows != data.x.rows)
    throw InvalidArgument(data.weights.name + " has " + counted(data.weights.rows, "row") + ", " + data.x.name +
                          " has " + counted(data.x.rows, "row") + "; both need one row a sample");
}

/// The files of data or of validation data.
struct DataFiles {
  const std::string& x;
  const std::string& y;
  const std::string& data;
  const std::string& weights;
};

/// By `names` where they are not empty; the targets of one file also by `named_targets`, see ReadOptions.
Samples read_files(const DataFiles& files, const TrainOptions& run, const std::vector<std::string>& names,
                   const std::vector<std::string>& named_targets, const CpuCaps& caps) {
  Samples data;
  ReadOptions options = read_options(run.training.precision, run.header, caps);
  std::vector<std::string> paths = files.data.empty() ? std::vector{files.x, files.y} : std::vector{files.data};
  if (!files.weights.empty()) paths.push_back(files.weights);
  if (paths.size() > 1) check_file_sizes(paths, caps);
  if (files.data.empty()) {
    options.inputs = names;
    data.x = read_matrix(files.x, options);
    options.inputs.clear();
    options.most_bytes -= std::min<std::uint64_t>(options.most_bytes, data.x.bytes.size());
    data.y = read_matrix(files.y, options);
  } else {
    options.targets = run.targets;
    options.inputs = names;
    options.named_targets = named_targets;
    data = deviceloop::read_samples(files.data, options);
  }
  if (data.x.rows != data.y.rows)
    throw InvalidArgument(data.x.name + " has " + counted(data.x.rows, "row") + ", " + data.y.name + " has " +
                          counted(data.y.rows, "row") + "; both need one row a sample");

  if (!files.weights.empty())
    read_weights_of(data, files.weights, read_options(run.training.precision, run.header, caps));

  std::vector<std::int64_t> fitting = run.network.widths;
  fitting.front() = data.x.columns;
  fitting.back() = data.y.columns;
  const auto check_columns = [&](const DataMatrix& matrix, std::int64_t width, const char* what,
                                 const char* other_remedy = "") {
    if (matrix.columns != width)
      throw InvalidArgument(matrix.name + " has " + counted(matrix.columns, "column") + ", but --layers " +
                            widths_text(run.network.widths) + " has " + counted(width, what) + "; use --layers " +
                            widths_text(fitting) + other_remedy);
  };
  check_columns(data.x, run.network.widths.front(), "input");
  if (!are_classes(run, data))
    check_columns(
        data.y, run.network.widths.back(), "output",
        run.training.loss == Loss::cross_entropy ? ", or give it one column with the number of the class" : "");
  return data;
}

/// The rows of `matrix` that `samples` names, in their order; `which` they are, since messages count from the first.
void take_rows(DataMatrix& matrix, const std::vector<std::int64_t>& samples, const char* which) {
  HostMatrix taken(matrix.type, static_cast<std::int64_t>(samples.size()), matrix.columns);
  const std::size_t bytes = static_cast<std::size_t>(matrix.columns) * size_of(matrix.type);
  for (std::size_t row = 0; row < samples.size(); ++row)
    std::copy_n(matrix.bytes.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(samples[row]) * bytes),
                bytes, taken.bytes.begin() + static_cast<std::ptrdiff_t>(row * bytes));
  static_cast<HostMatrix&>(matrix) = std::move(taken);
  if (!matrix.name.empty()) matrix.name += std::string(", ") + which;
}

// No epoch of a run comes so far, so that this order is one of its own.
constexpr std::int64_t kValidationEpoch = std::numeric_limits<std::int64_t>::max();

Samples take_validation(const TrainOptions& run, Samples& data) {
  // While rows have their numbers in the files.
  const ElementType type = element_type(run.training.precision);
  for (const DataMatrix* const matrix : {&data.x, &data.y}) check_finite(matrix->view(), type, matrix->name);
  if (!run.sample_weights.empty()) check_weights(data.weights.view(), type, data.weights.name);
  if (are_classes(run, data)) check_classes(data.y.view(), run.network.widths.back(), data.y.name);
  const std::int64_t rows = data.x.rows, count = run.validation.rows_of(rows);
  std::vector<bool> is_taken(static_cast<std::size_t>(rows));
  for (std::int64_t i = 0; i < count; ++i)
    is_taken[static_cast<std::size_t>(sample_of(run.training.seed, rows, kValidationEpoch, i))] = true;
  std::vector<std::int64_t> taken, left;
  for (std::int64_t row = 0; row < rows; ++row) (is_taken[static_cast<std::size_t>(row)] ? taken : left).push_back(row);
  Samples validation{data.x, data.y, {}};
  for (DataMatrix* const matrix : {&validation.x, &validation.y}) take_rows(*matrix, taken, "rows for validation");
  for (DataMatrix* const matrix : {&data.x, &data.y}) take_rows(*matrix, left, "rows not for validation");
  if (!run.sample_weights.empty()) take_rows(data.weights, left, "rows not for validation");
  return validation;
}

}  // namespace

Samples read_data(const TrainOptions& run, const CpuCaps& caps) {
  return read_files({run.x, run.y, run.data, run.sample_weights}, run, run.input_names, {}, caps);
}

std::vector<std::string> names_of_inputs(const TrainOptions& run, const Samples& data) {
  return data.x.column_names.empty() ? run.input_names : data.x.column_names;
}

Samples load_data(const TrainOptions& run, const CpuCaps& caps) {
  if (run.has_files()) return read_data(run, caps);
  const NetworkSpec& network = run.network;
  const TrainingSpec& training = run.training;
  if (training.loss == Loss::binary_cross_entropy || training.loss == Loss::cross_entropy)
    throw InvalidArgument(std::string("--loss ") + loss_name(training.loss) +
                          " has no targets among the generated ones, which are standard normal; give --x and --y, or "
                          "--data");
  Samples data;
  data.x = generate(run.rows, network.widths.front(), training.precision, training.seed, kTensorX);
  data.y = generate(run.rows, network.widths.back(), training.precision, training.seed, kTensorY);
  return data;
}

Samples read_validation(const TrainOptions& run, Samples& data, const CpuCaps& caps) {
  const ValidationInput& from = run.validation;
  if (from.has_files())
    return read_files({from.x, from.y, from.data, ""}, run, names_of_inputs(run, data),
                      run.data.empty() ? std::vector<std::string>() : data.y.column_names, caps);
  return from.fraction > 0 ? take_validation(run, data) : Samples();
}

std::string validation_line(const TrainOptions& run, const Samples& validation) {
  if (!run.validation.given()) return "";
  const std::string start = "validating by " + counted(validation.x.rows, "sample");
  if (!run.validation.has_files()) return start + ", drawn from the data\n";
  const std::string left_out =
      validation.x.left_out.empty() ? "" : " (left out: " + list_in_quotes(validation.x.left_out) + ")";
  if (!run.validation.data.empty()) return start + " of " + printable(run.validation.data) + left_out + "\n";
  return start + " of " + validation.x.name + left_out + " and " + validation.y.name + "\n";
}

HostMatrix generate(std::int64_t rows, std::int64_t columns, Precision precision, std::uint64_t seed,
                    std::uint32_t tensor) {
  HostMatrix matrix(element_type(precision), rows, columns);
  fill_normal(matrix.view(), seed, tensor);
  return matrix;
}

Parameters read_parameters(const Trainer& trainer, ElementType type) {
  Parameters parameters;
  for (const ParameterInfo& info : parameter_layout(trainer.network())) {
    HostMatrix& parameter = parameters.emplace_back(type, info.rows, info.columns);
    if (info.is_bias)
      trainer.read_bias(info.layer, parameter.view());
    else
      trainer.read_weight(info.layer, parameter.view());
  }
  return parameters;
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
