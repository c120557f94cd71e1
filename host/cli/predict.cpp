// deviceloop predict: applies saved weights to new rows.
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/trainer.h>

#include "commands.h"
#include "files/csv.h"
#include "files/npy.h"
#include "files/output_file.h"
#include "inputs.h"
#include "interrupt.h"
#include "machine.h"
#include "matrix_ops.h"
#include "memory.h"
#include "names.h"
#include "report.h"
#include "run_options.h"
#include "text.h"
#include "text_output.h"
#include "trainer_access.h"

namespace deviceloop::cli {
namespace {

/// Throws InvalidArgument where the one output of a network is above 0 whatever the input is.
void check_has_classes(const NetworkSpec& network) {
  const Activation activation = network.output_activation;
  if (network.widths.back() == 1 && (activation == Activation::sigmoid || activation == Activation::softplus))
    throw InvalidArgument("--classes takes one output for log-odds, of class 1 above 0, but the output activation " +
                          activation_text(activation) + " is never below 0; drop --classes");
}

/// The class of each row: the first of its largest outputs, or of one output whether it is above 0. Throws
/// InvalidArgument, beginning with `name`, for a row with a NaN.
std::vector<std::int64_t> classes_of(const HostMatrix& outputs, const std::string& name) {
  std::vector<std::int64_t> classes(static_cast<std::size_t>(outputs.rows));
  with_type(outputs.type, [&]<class T>(T*) {
    const T* row = static_cast<const T*>(outputs.view().data);
    for (std::int64_t r = 0; r < outputs.rows; ++r, row += outputs.columns) {
      std::int64_t largest = 0;
      for (std::int64_t column = 0; column < outputs.columns; ++column) {
        if (std::isnan(row[column]))
          throw InvalidArgument(name + ": row " + std::to_string(r) + " has the output nan in column " +
                                std::to_string(column) +
                                " (counted from 0) and so no class; drop it, or use --precision fp64");
        if (row[column] > row[largest]) largest = column;
      }
      classes[static_cast<std::size_t>(r)] = outputs.columns == 1 ? (row[0] > 0 ? 1 : 0) : largest;
    }
  });
  return classes;
}

/// As .npy, or as .csv where the file is called so.
void write_classes(OutputFile& file, const std::vector<std::int64_t>& classes) {
  if (!is_csv_name(file.path())) return write_npy(file, classes.data(), static_cast<std::int64_t>(classes.size()), 1);
  std::string text;
  for (const std::int64_t number : classes) text += std::to_string(number) + "\n";
  file.write(text);
}

}  // namespace

void declare_predict(OptionSet& options) {
  options.group("Files, all three needed (FILE - is standard output)");
  options.add("--weights", "FILE", "", "the network, as train saves it (.safetensors)");
  options.add("--x", "FILE", "", "inputs, one row a sample (.npy, .csv, IDX)");
  options.add("--out", "FILE", "", "predictions to write (.npy or .csv)");
  options.add_flag("--classes", "instead of them the class of each row");
  options.group("How it runs");
  declare_activations(options);
  declare_header(options);
  declare_precision(options);
  declare_execution(options);
  declare_quiet(options);
}

int run_predict(const OptionSet& options) {
  const std::string weights = options.file("--weights"), x = options.file("--x"), out = options.file("--out");
  for (const char* needed : {"--weights", "--x", "--out"})
    if (!options.given(needed))
      throw InvalidArgument(std::string("predict needs --weights FILE, --x FILE and --out FILE; add ") + needed +
                            " FILE");
  TrainingSpec training;
  check_ending(options, "--out", {".npy", ".csv"});
  training.precision = read_precision(options);
  NetworkSpec network;
  read_activations(options, network);
  const bool classes = options.given("--classes");
  const TableHeader header = read_header(options);
  const std::optional<ExecutorKind> forced = read_execution(options, training);
  TextOutput text(check_outputs(options, {"--out"}, {"--weights", "--x"}));

  end_on_signals();
  const DeviceCaps caps = query_caps_for(training.device);
  OutputFile file(out);
  check_file_sizes({weights, x}, caps.cpu);
  const WeightsInput weights_input(weights, caps.cpu);
  const SavedNetwork& saved = weights_input.saved();
  network.widths = saved.network.widths;
  network.bias = saved.network.bias;
  if (saved.has_metadata) take_activations(options, saved.network, network);
  weights_input.check(network);
  if (classes) check_has_classes(network);
  if (classes && !saved.target_scaling.is_identity())
    throw InvalidArgument("--classes takes outputs for classes, but " + printable(weights) +
                          " was trained by standardized targets, which are numbers; drop --classes");
  DataMatrix input = read_inputs(x, saved.input_names, training.precision, header, caps.cpu);
  if (input.columns != network.widths.front())
    throw InvalidArgument(printable(x) + " has " + std::to_string(input.columns) + " columns, but the network in " +
                          printable(weights) + " has " + std::to_string(network.widths.front()) +
                          " inputs; give it rows of that width" +
                          (input.columns > network.widths.front() ? ", without the columns of the targets" : ""));
  scale_inputs(input, saved.scaling, training.precision, caps.cpu);

  Trainer trainer(network, training, forced, caps);
  ByteCount bytes;
  bytes.add(input.bytes.size());
  bytes.add(size_of(element_type(training.precision)), static_cast<std::uint64_t>(input.rows),
            static_cast<std::uint64_t>(network.widths.back()));
  if (classes) bytes.add(sizeof(std::int64_t), static_cast<std::uint64_t>(input.rows));
  for (int copy = 0; copy < 2; ++copy) bytes.add_parameters(network, training.precision);
  check_memory("predictions for " + std::to_string(input.rows) + " rows of " + printable(x),
               bytes.add(host_bytes(trainer.plan())), caps.cpu);
  weights_input.load(trainer);
  HostMatrix prediction(element_type(training.precision), input.rows, network.widths.back());
  TrainerAccess::predict(trainer, input.view(), prediction.view(), input.name);
  if (!saved.target_scaling.is_identity())
    prediction = saved.target_scaling.undo(std::move(prediction), element_type(training.precision));
  if (classes)
    write_classes(file, classes_of(prediction, input.name));
  else if (is_csv_name(out))
    write_csv(file, std::as_const(prediction).view());
  else
    write_npy(file, std::as_const(prediction).view());
  file.commit();
  text.write(rows_line(input, training.precision) + weights_input.line(training.precision) +
             scaling_line(saved.scaling) +
             (saved.target_scaling.is_identity() ? "" : "outputs, each column times its deviation, plus its mean\n") +
             plan_line(trainer.plan(), training) + printable(out) + ": " + std::to_string(prediction.rows) + " x " +
             std::to_string(classes ? 1 : prediction.columns) +
             (classes ? ", classes predicted by " : ", predicted by ") + network_text(network) + "\n");
  text.check();
  return 0;
}

}  // namespace deviceloop::cli
