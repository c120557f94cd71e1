// deviceloop predict: applies saved weights to new rows.
#include <utility>

#include <deviceloop/error.h>
#include <deviceloop/trainer.h>

#include "commands.h"
#include "files/npy.h"
#include "files/output_file.h"
#include "inputs.h"
#include "interrupt.h"
#include "machine.h"
#include "memory.h"
#include "report.h"
#include "run_options.h"
#include "text.h"
#include "text_output.h"
#include "trainer_access.h"

namespace deviceloop::cli {

void declare_predict(OptionSet& options) {
  options.group("Files, all three needed (FILE - is standard output)");
  options.add("--weights", "FILE", "", "the network, as train saves it (.safetensors)");
  options.add("--x", "FILE", "", "inputs, one row a sample (.npy, .csv, IDX)");
  options.add("--out", "FILE", "", "predictions to write (.npy)");
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
  training.precision = read_precision(options);
  NetworkSpec network;
  read_activations(options, network);
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
  DataMatrix input = read_inputs(x, training.precision, header, caps.cpu);
  if (input.columns != network.widths.front())
    throw InvalidArgument(printable(x) + " has " + std::to_string(input.columns) + " columns, but the network in " +
                          printable(weights) + " has " + std::to_string(network.widths.front()) +
                          " inputs; give it rows of that width");
  scale_inputs(input, saved.scaling, training.precision, caps.cpu);

  Trainer trainer(network, training, forced, caps);
  ByteCount bytes;
  bytes.add(input.bytes.size());
  bytes.add(size_of(element_type(training.precision)), static_cast<std::uint64_t>(input.rows),
            static_cast<std::uint64_t>(network.widths.back()));
  for (int copy = 0; copy < 2; ++copy) bytes.add_parameters(network, training.precision);
  check_memory("predictions for " + std::to_string(input.rows) + " rows of " + printable(x),
               bytes.add(host_bytes(trainer.plan())), caps.cpu);
  weights_input.load(trainer);
  HostMatrix prediction(element_type(training.precision), input.rows, network.widths.back());
  TrainerAccess::predict(trainer, input.view(), prediction.view(), input.name);
  write_npy(file, std::as_const(prediction).view());
  file.commit();
  text.write(rows_line(input, training.precision) + weights_input.line(training.precision) +
             scaling_line(saved.scaling) + plan_line(trainer.plan(), training) + printable(out) + ": " +
             std::to_string(prediction.rows) + " x " + std::to_string(prediction.columns) + ", predicted by " +
             network_text(network) + "\n");
  text.check();
  return 0;
}

}  // namespace deviceloop::cli
