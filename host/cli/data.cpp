// deviceloop data: writes what train would generate with the same options, and the order of shuffled samples, so that
// others can train on the same; or the rows of a task of host/tasks.h.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/random.h>
#include <deviceloop/trainer.h>

#include "commands.h"
#include "files/csv.h"
#include "files/npy.h"
#include "files/npz.h"
#include "files/output_file.h"
#include "files/weights.h"
#include "inputs.h"
#include "interrupt.h"
#include "machine.h"
#include "memory.h"
#include "permutation.h"
#include "precision.h"
#include "run_options.h"
#include "tasks.h"
#include "text.h"
#include "text_output.h"

namespace deviceloop::cli {
namespace {

Parameters drawn_parameters(const NetworkSpec& network, Precision precision, std::uint64_t seed, Init init) {
  TrainingSpec training;
  training.precision = precision;
  training.device = {DeviceKind::cpu, 0};
  Trainer trainer(network, training);
  trainer.initialize(seed, init);
  Parameters parameters;
  for (const ParameterInfo& info : parameter_layout(network)) {
    parameters.emplace_back(element_type(precision), info.rows, info.columns);  // biases are 0
    if (!info.is_bias) trainer.read_weight(info.layer, parameters.back().view());
  }
  return parameters;
}

/// [epochs, samples]: the samples of each epoch in the order in which it takes them.
std::vector<std::int64_t> sample_orders(std::uint64_t seed, std::int64_t samples, std::int64_t epochs) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(epochs * samples));
  BatchOrder{seed, samples, true}.take(0, epochs * samples, order.data());
  return order;
}

/// Null without --task.
const Task* read_task(const OptionSet& options) {
  if (!options.given("--task")) {
    if (options.given("--first"))
      throw InvalidArgument("--first " + in_quotes(options.text("--first")) +
                            " counts the rows of --task NAME; add that or drop it");
    return nullptr;
  }
  std::vector<Choice<const Task*>> choices;
  for (const Task& task : tasks()) choices.push_back({task.name, &task});
  const Task* task = choose(options, "--task", choices);
  for (const char* of_network : {"--layers", "--bias", "--activation", "--init", "--weights"})
    if (options.given(of_network))
      throw InvalidArgument(std::string(of_network) + " is for a network, but --task " + task->name +
                            " is data alone; drop one of the two");
  return task;
}

}  // namespace

void declare_data(OptionSet& options) {
  options.group("What train would use");
  declare_network(options);
  declare_samples(options);
  declare_precision(options);
  options.add("--task", "NAME", "", "a real task instead: digits or friedman");
  options.add("--first", "ROW", "0", "row of the task to begin with");
  options.add("--epochs", "N", "1", "epochs of --order");
  options.group("Output, at least one (FILE - is standard output)");
  options.add("--x", "FILE", "", "inputs (.npy)");
  options.add("--y", "FILE", "", "targets (.npy)");
  options.add("--data", "FILE", "", "inputs and targets, as x and y (.npz or .csv)");
  options.add("--weights", "FILE", "", "initial weights (.safetensors)");
  options.add("--order", "FILE", "", "samples as each epoch takes them (.npy, int64)");
  declare_quiet(options);
}

int run_data(const OptionSet& options) {
  const Task* const task = read_task(options);
  const NetworkSpec network = read_network_options(options);
  const std::int64_t inputs = task != nullptr ? task->inputs : network.widths.front();
  const std::int64_t targets = task != nullptr ? task->targets : network.widths.back();
  const Init init = read_init(options);
  const std::int64_t samples = read_samples(options);
  const std::int64_t first = options.integer("--first", 0, std::numeric_limits<std::int64_t>::max() - samples);
  const std::uint64_t seed = options.unsigned_integer("--seed");
  const Precision precision = elements_of(read_precision(options));
  const std::string x = options.file("--x"), y = options.file("--y"), weights = options.file("--weights");
  const std::string data = options.file("--data");
  check_ending(options, "--data", {".npz", ".csv"});
  const std::string order = options.file("--order");
  const std::int64_t epochs = options.integer("--epochs", 1, std::numeric_limits<std::int64_t>::max());
  TextOutput text(check_outputs(options, {"--x", "--y", "--data", "--weights", "--order"}, {}));
  if (x.empty() && y.empty() && data.empty() && weights.empty() && order.empty())
    throw InvalidArgument(
        "data has nothing to write; give --x FILE, --y FILE, --data FILE, --weights FILE or --order FILE");
  if (options.given("--epochs") && order.empty())
    throw InvalidArgument("--epochs " + std::to_string(epochs) +
                          " counts the epochs of --order; give --order FILE, or leave --epochs out");

  end_on_signals();
  const CpuCaps caps = query_cpu();
  const auto check_matrix = [&](std::int64_t columns) {
    ByteCount bytes;
    bytes.add(size_of(element_type(precision)), static_cast<std::uint64_t>(samples),
              static_cast<std::uint64_t>(columns));
    check_memory("--samples " + std::to_string(samples) + " of width " + std::to_string(columns), bytes, caps);
  };
  if (!x.empty()) check_matrix(inputs);
  if (!y.empty()) check_matrix(targets);
  if (!data.empty()) check_matrix(inputs + targets);
  if (!weights.empty()) {
    // As drawn, as read, and as the file has them, transposed.
    ByteCount bytes;
    for (int copy = 0; copy < 3; ++copy) bytes.add_parameters(network, precision);
    check_memory("weights for --layers " + widths_text(network.widths), bytes, caps);
  }
  if (!order.empty()) {
    ByteCount bytes;
    bytes.add(sizeof(std::int64_t), static_cast<std::uint64_t>(epochs), static_cast<std::uint64_t>(samples));
    check_memory("--epochs " + std::to_string(epochs) + " of --samples " + std::to_string(samples), bytes, caps);
  }
  const auto open = [](const std::string& path) { return path.empty() ? nullptr : std::make_unique<OutputFile>(path); };
  const auto x_file = open(x), y_file = open(y), data_file = open(data), weights_file = open(weights),
             order_file = open(order);

  const auto make_inputs = [&] {
    if (task == nullptr) return generate(samples, inputs, precision, seed, kTensorX);
    HostMatrix matrix(element_type(precision), samples, inputs);
    task->fill_inputs(matrix.view(), seed, first);
    return matrix;
  };
  const auto make_targets = [&] {
    if (task == nullptr) return generate(samples, targets, precision, seed, kTensorY);
    HostMatrix matrix(element_type(precision), samples, targets);
    task->fill_targets(matrix.view(), seed, first);
    return matrix;
  };
  const auto write_matrix = [&](OutputFile& file, const HostMatrix& matrix) {
    write_npy(file, matrix.view());
    file.commit();
    text.write(printable(file.path()) + ": " + std::to_string(samples) + " x " + std::to_string(matrix.columns) + ", " +
               name(precision) + "\n");
  };
  if (x_file) write_matrix(*x_file, make_inputs());
  if (y_file) write_matrix(*y_file, make_targets());
  if (data_file) {
    const HostMatrix x_matrix = make_inputs(), y_matrix = make_targets();
    if (is_csv_name(data))
      write_csv(*data_file, x_matrix.view(), y_matrix.view());
    else
      write_npz(*data_file, x_matrix.view(), y_matrix.view());
    data_file->commit();
    text.write(printable(data) + ": x of " + std::to_string(samples) + " x " + std::to_string(inputs) + ", y of " +
               std::to_string(samples) + " x " + std::to_string(targets) + ", " + name(precision) + "\n");
  }
  if (weights_file) {
    const Parameters parameters = drawn_parameters(network, precision, seed, init);
    write_weights(*weights_file, network, parameters);
    weights_file->commit();
    text.write(printable(weights) + ": weights of " + widths_text(network.widths) +
               (network.bias ? " with biases, " : ", ") + name(precision) + "\n");
  }
  if (order_file) {
    const std::vector<std::int64_t> taken = sample_orders(seed, samples, epochs);
    write_npy(*order_file, taken.data(), epochs, samples);
    order_file->commit();
    text.write(printable(order) + ": " + std::to_string(epochs) + " x " + std::to_string(samples) + ", int64\n");
  }
  text.check();
  return 0;
}

}  // namespace deviceloop::cli
