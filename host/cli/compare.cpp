// deviceloop compare: trains two sides, such as CPU and GPU, from the same bits, and says how far they are from each
// other.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/trainer.h>
#include <deviceloop/version.h>

#include "commands.h"
#include "comparison.h"
#include "files/json_text.h"
#include "files/output_file.h"
#include "inputs.h"
#include "interrupt.h"
#include "machine.h"
#include "matrix_ops.h"
#include "memory.h"
#include "planning/decision.h"
#include "precision.h"
#include "problems.h"
#include "progress.h"
#include "report.h"
#include "run_options.h"
#include "suggestion.h"
#include "text.h"
#include "text_output.h"
#include "trainer_access.h"

namespace deviceloop::cli {
namespace {

constexpr std::int64_t kMaxCount = std::numeric_limits<std::int64_t>::max();
constexpr const char* kWords =
    "cpu, graph, persistent[:FORM], fused, cuda[:N], fp32, fp64, tf32, tf32x3, bf16, fp16, primal, gram and threads=N, "
    "with commas between";

struct Side {
  Side(const char* name_of_option, OptionSet options_of_run) : option(name_of_option), options(options_of_run) {}

  const char* option;
  OptionSet options;  ///< of the run, with what the side names in place of what was given
  TrainOptions run{};
  DeviceCaps caps{};
  Plan plan{};
  std::unique_ptr<Trainer> trainer{};
  double total_ms = 0;
  std::int64_t steps = 0;
};

/// Sets the options that a word of a side stands for; `named` holds those that its words before have set.
void take_word(Side& side, const std::string& word, std::set<std::string>& named) {
  const std::string start = std::string(side.option) + " " + in_quotes(side.options.text(side.option)) + ": ";
  constexpr std::string_view kThreads = "threads=";
  std::vector<std::string> taking = options_taking(word);
  std::string value = word;
  if (word.starts_with(kThreads)) {
    taking = {"--threads"};
    value = word.substr(kThreads.size());
  }
  if (taking.empty())
    throw InvalidArgument(start + "there is no " + in_quotes(word) +
                          suggestion(word, {"cpu", "graph", "persistent", "fused", "cuda", "fp32", "fp64", "tf32",
                                            "tf32x3", "bf16", "fp16", "primal", "gram", "threads"}) +
                          "; a side is of " + kWords);
  for (const std::string& option : taking) {
    if (!named.insert(option).second)
      throw InvalidArgument(start + in_quotes(word) + " names a second " + option.substr(2) + "; keep one of the two");
    side.options.set(option, value);
  }
}

void take_words(Side& side) {
  if (!side.options.given(side.option))
    throw InvalidArgument("two sides are compared; give --a and --b, as in deviceloop compare --a cuda --b cpu");
  std::set<std::string> named;
  const std::string words = side.options.text(side.option);
  for (std::size_t begin = 0; begin <= words.size();) {
    const std::size_t end = std::min(words.find(',', begin), words.size());
    take_word(side, words.substr(begin, end - begin), named);
    begin = end + 1;
  }
}

bool is_gram(const Side& side) { return side.options.text("--formulation") == name(Formulation::gram); }

/// Reads the options of a side; returns what is wrong with them.
std::optional<std::string> read_options(Side& side) {
  try {
    side.run = read_run_options(side.options);
    return std::nullopt;
  } catch (const InvalidArgument& error) {
    return error.what();
  }
}

/// Both sides with their options. What both refuse alike belongs to the options of the run, else to one side.
std::pair<Side, Side> read_sides(const OptionSet& options) {
  std::pair<Side, Side> sides(Side("--a", options), Side("--b", options));
  auto& [a, b] = sides;
  take_words(a);
  take_words(b);
  // The option of one formulation alone.
  if (is_gram(a) != is_gram(b)) (is_gram(a) ? b : a).options.set("--reproject", "0");
  const std::optional<std::string> wrong_a = read_options(a), wrong_b = read_options(b);
  if (wrong_a && wrong_a == wrong_b) throw InvalidArgument(*wrong_a);
  if (wrong_a) throw InvalidArgument("--a " + in_quotes(options.text("--a")) + ": " + *wrong_a);
  if (wrong_b) throw InvalidArgument("--b " + in_quotes(options.text("--b")) + ": " + *wrong_b);
  if (a.run.steps == 0 && a.run.epochs == 0)
    options.refuse("--steps", "be at least 1, since sides that have not trained are equal");
  return sides;
}

/// Whether both train in the same way, so that one is a rerun of the other.
bool is_rerun(const Side& a, const Side& b) {
  for (const char* option : {"--plan", "--device", "--precision", "--formulation", "--threads"})
    if (a.options.text(option) != b.options.text(option)) return false;
  return true;
}

/// plan_run() has checked the memory of each side alone.
void check_memory_of_both(const Side& a, const Side& b, const Samples& data) {
  ByteCount bytes = held_bytes(a.run, data);
  bytes.add(host_bytes(a.plan)).add(host_bytes(b.plan));
  bytes.add(2 * sizeof(double), static_cast<std::uint64_t>(b.run.steps));
  // When they are compared.
  for (const Side* side : {&a, &b}) bytes.add_parameters(side->run.network, Precision::fp64);
  const std::string what = "both sides of " + run_text(a.run, a.run.training.samples);
  check_memory(what, bytes, a.caps.cpu);
  if (!row_of(a.plan.executor).is_on_gpu || !row_of(b.plan.executor).is_on_gpu || a.plan.device != b.plan.device)
    return;
  for (const GpuCaps& gpu : a.caps.gpus)
    if (gpu.index == a.plan.device && a.plan.bytes + b.plan.bytes > gpu.memory_bytes)
      throw InvalidArgument(what + " take " + bytes_text(a.plan.bytes + b.plan.bytes) + " of memory of CUDA device " +
                            std::to_string(gpu.index) + ", which has " + bytes_text(gpu.memory_bytes) +
                            "; ask for less, or compare with --b cpu");
}

void plan_both(Side& a, Side& b, const Samples& data = {}) {
  for (Side* side : {&a, &b}) side->plan = plan_run(side->run, side->caps, data);
  check_memory_of_both(a, b, data);
}

/// Rounds the data to the precision, so that a side with a higher one has the same values.
void round_data(Samples& data, Precision precision) {
  for (DataMatrix* const matrix : {&data.x, &data.y, &data.weights}) {
    if (matrix->type == element_type(precision)) continue;
    check_finite(matrix->view(), element_type(precision), matrix->name);
    static_cast<HostMatrix&>(*matrix) = first_rows(*matrix, matrix->rows, precision);
  }
}

void write_parameters(Trainer& trainer, const Parameters& parameters) {
  const std::vector<ParameterInfo> layout = parameter_layout(trainer.network());
  for (std::size_t i = 0; i < layout.size(); ++i) {
    if (layout[i].is_bias)
      trainer.write_bias(layout[i].layer, parameters[i].view());
    else
      trainer.write_weight(layout[i].layer, parameters[i].view());
  }
}

/// The trainers of both sides, with the same data and parameters. Returns what the text says of these.
std::string make_trainers(Side& a, Side& b, const OptionSet& options) {
  const auto has_floats = [](const Side& side) {
    return element_type(side.run.training.precision) == ElementType::float32;
  };
  Side& lower = has_floats(b) ? b : a;
  Side& other = &lower == &a ? b : a;
  const Precision precision = lower.run.training.precision;
  const std::unique_ptr<const WeightsInput> weights = open_weights(options, lower.run, lower.caps.cpu);
  if (weights != nullptr) take_saved_network(options, weights->saved(), other.run);
  plan_both(a, b);

  Samples data = load_data(lower.run, lower.caps.cpu);
  std::string inputs = samples_line(lower.run, data);
  const DataScaling scaling = scaling_of(lower.run, weights.get(), data);
  scale_samples(data, scaling, precision, lower.caps.cpu);
  const bool is_mixed = has_floats(lower) != has_floats(other);
  if (is_mixed) round_data(data, precision);
  if (lower.run.has_files()) {
    for (Side* side : {&a, &b}) set_samples(side->run, data.x.rows);
    plan_both(a, b, data);
  }
  for (Side* side : {&a, &b})
    side->trainer = std::make_unique<Trainer>(side->run.network, side->run.training, side->run.forced, side->caps);
  if (weights == nullptr) {
    lower.trainer->initialize(lower.run.training.seed, lower.run.init);
  } else {
    weights->load(*lower.trainer);
    inputs += weights->line(precision);
  }
  write_parameters(*other.trainer, read_parameters(*lower.trainer, element_type(precision)));
  inputs += scaling_lines(scaling);
  const ConstMatrix sample_weights = data.weights.view();
  for (Side* side : {&lower, &other})  // a message then is about the lower precision
    TrainerAccess::set_data(*side->trainer, data.x.view(), data.y.view(), data.x.name, data.y.name,
                            side->run.training.sample_weights ? &sample_weights : nullptr, data.weights.name);
  if (is_mixed)
    inputs +=
        std::string("data and initial weights are rounded to ") + name(elements_of(precision)) + " on both sides\n";
  return inputs;
}

/// %.3g and the like; what is not finite has one spelling.
std::string number_text(const char* pattern, double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value < 0 ? "-inf" : "inf";
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}
std::string difference_text(double difference) { return number_text(difference == 0 ? "%g" : "%.2e", difference); }
std::string exact_text(double value) { return number_text("%.17g", value); }
std::string bound_text(double bound) { return number_text("%g", bound); }

std::string in_column(const std::string& text, std::size_t width) {
  return (text.size() < width ? std::string(width - text.size(), ' ') : std::string(" ")) + text;
}

std::string table_line(const std::string& steps, const std::string& loss_a, const std::string& loss_b,
                       const std::string& losses, const std::string& parameters) {
  return in_column(steps, 8) + in_column(loss_a, 17) + in_column(loss_b, 17) + in_column(losses, 12) + "  " +
         parameters + "\n";
}

std::string table_line(const ComparisonRow& row) {
  return table_line(
      std::to_string(row.steps), number_text("%.9g", row.loss_a), number_text("%.9g", row.loss_b),
      difference_text(row.loss_difference),
      difference_text(row.parameter.difference) + (row.parameter.difference == 0 ? "" : " " + row.parameter.name));
}

/// ", bound 1e-05: holds\n", ", bound 1e-05: exceeded, first at step 12\n".
std::string verdict_text(double bound, bool holds, const std::string& first) {
  return ", bound " + bound_text(bound) + ": " + (holds ? "holds" : "exceeded, first " + first) + "\n";
}

std::string at_step(std::int64_t step) { return "at step " + std::to_string(step); }
std::string after_steps(const ParameterDifference& at) { return "after " + counted(at.steps, "step"); }
/// "1.20e-06 (0.weight)"
std::string named_text(const ParameterDifference& at) { return difference_text(at.difference) + " (" + at.name + ")"; }

std::string losses_text(const LossComparison& losses) {
  if (!losses.first_different) return "losses: the same bits in all " + counted(losses.steps, "step") + "\n";
  const LossDifference& first = *losses.first_different;
  return "losses: first different " + at_step(first.step) + " (a " + exact_text(first.a) + ", b " +
         exact_text(first.b) + ")\nlosses: largest relative difference " + difference_text(losses.largest->difference) +
         " " + at_step(losses.largest->step) +
         verdict_text(losses.bound, !losses.first_exceeded,
                      losses.first_exceeded ? at_step(losses.first_exceeded->step) : "");
}

std::string parameters_text(const ParameterComparison& parameters, std::size_t comparisons) {
  if (!parameters.first_different)
    return "parameters: the same bits in all " + std::to_string(comparisons) +
           (comparisons == 1 ? " comparison\n" : " comparisons\n");
  std::string text = "parameters: first different " + after_steps(*parameters.first_different) + " (" +
                     parameters.first_different->name + ")\nparameters: largest relative difference " +
                     named_text(*parameters.largest) + " " + after_steps(*parameters.largest) +
                     "\nparameters: at the end " + named_text(*parameters.end) +
                     verdict_text(parameters.end_bound, parameters.holds(),
                                  parameters.first_exceeded ? after_steps(*parameters.first_exceeded) : "");
  if (!parameters.largest_element) return text;
  const ElementDifference& element = *parameters.largest_element;
  return text + "parameters: largest single difference there: " + element.name + " [" + std::to_string(element.row) +
         ", " + std::to_string(element.column) + "], a " + exact_text(element.a) + ", b " + exact_text(element.b) +
         "\n";
}

/// "a diverged: the loss of step 12 is inf"; empty where it did not.
std::string divergence_text(const char* side, const std::optional<std::int64_t>& step,
                            const std::optional<ParameterDifference>& parameter) {
  if (step) return std::string(side) + " diverged: its loss of step " + std::to_string(*step) + " is not finite";
  if (!parameter) return "";
  return std::string(side) + " diverged: its " + parameter->name + " is not finite after " +
         counted(parameter->steps, "step");
}

/// Why the bounds do not hold.
std::string exceeded_text(const Comparison& comparison, const OptionSet& options) {
  const LossComparison& losses = comparison.losses;
  const ParameterComparison& parameters = comparison.parameters;
  Problems problems;
  if (comparison.has_diverged()) {
    for (const std::string& text : {divergence_text("a", losses.a_diverged, parameters.a_diverged),
                                    divergence_text("b", losses.b_diverged, parameters.b_diverged)})
      if (!text.empty()) problems.add(text);
    return problems.text() + "; " + divergence_remedy(options);
  }
  if (losses.first_exceeded)
    problems.add("the losses differ by " + difference_text(losses.largest->difference) + " " +
                 at_step(losses.largest->step) + ", more than the bound " + bound_text(losses.bound) +
                 ", exceeded first " + at_step(losses.first_exceeded->step));
  if (!parameters.holds())
    problems.add("the parameters differ by " + named_text(*parameters.end) + " at the end, more than the bound " +
                 bound_text(parameters.end_bound) + ", exceeded first " + after_steps(*parameters.first_exceeded));
  return problems.text();
}

std::string time_text(const char* name, const Side& side) {
  return std::string(name) + ": " + step_time_text(side.total_ms * 1000 / static_cast<double>(side.steps)) +
         formulation_text(side.plan.formulation);
}

std::string summary(const Side& a, const Side& b, const Comparison& comparison) {
  const LossComparison& losses = comparison.losses;
  std::string text = losses_text(losses) + parameters_text(comparison.parameters, comparison.rows.size());
  for (const std::string& divergence : {divergence_text("a", losses.a_diverged, comparison.parameters.a_diverged),
                                        divergence_text("b", losses.b_diverged, comparison.parameters.b_diverged)})
    if (!divergence.empty()) text += divergence + "\n";
  return text + time_text("a", a) + "; " + time_text("b", b) + "\n" +
         (comparison.holds() ? "all bounds hold\n" : "the bounds do not hold\n");
}

JsonObject json_of(const LossDifference& at) {
  JsonObject json(JsonLayout::lines);
  json.add("step", at.step);
  json.add("a", at.a);
  json.add("b", at.b);
  json.add("difference", at.difference);
  return json;
}

JsonObject json_of(const ParameterDifference& at) {
  JsonObject json(JsonLayout::lines);
  json.add("steps", at.steps);
  json.add("name", at.name);
  json.add("difference", at.difference);
  return json;
}

JsonObject json_of(const ElementDifference& at) {
  JsonObject json(JsonLayout::lines);
  json.add("name", at.name);
  json.add("row", at.row);
  json.add("column", at.column);
  json.add("a", at.a);
  json.add("b", at.b);
  return json;
}

template <class Difference>
std::optional<JsonObject> json_of(const std::optional<Difference>& at) {
  return at ? std::optional(json_of(*at)) : std::nullopt;
}

JsonObject json_of(const Side& side, const std::optional<std::int64_t>& diverged) {
  const Plan& plan = side.plan;
  JsonObject json(JsonLayout::lines);
  json.add("plan", name(plan.executor));
  json.add("reason", plan.reason);
  if (row_of(plan.executor).is_on_gpu)
    json.add("device", plan.device);
  else
    json.add("threads", plan.threads);
  json.add("precision", name(side.run.training.precision));
  json.add("formulation", name(plan.formulation));
  json.add("us_per_step",
           side.steps > 0 ? std::optional(side.total_ms * 1000 / static_cast<double>(side.steps)) : std::nullopt);
  json.add("first_non_finite_step", diverged);
  return json;
}

JsonObject json_of(const LossComparison& losses) {
  JsonObject json(JsonLayout::lines);
  json.add("bound", losses.bound);
  json.add("same_bits", !losses.first_different);
  json.add("first_different", json_of(losses.first_different));
  json.add("largest", json_of(losses.largest));
  json.add("first_exceeded", json_of(losses.first_exceeded));
  return json;
}

JsonObject json_of(const ParameterComparison& parameters) {
  JsonObject json(JsonLayout::lines);
  json.add("weight_bound", parameters.bounds.weight);
  json.add("bias_bound", parameters.bounds.bias());
  json.add("same_bits", !parameters.first_different);
  json.add("first_different", json_of(parameters.first_different));
  json.add("largest", json_of(parameters.largest));
  json.add("first_exceeded", json_of(parameters.first_exceeded));
  json.add("end", json_of(parameters.end));
  json.add("largest_element", json_of(parameters.largest_element));
  return json;
}

JsonObject json_of(const ComparisonRow& row) {
  JsonObject json(JsonLayout::lines);
  json.add("steps", row.steps);
  json.add("loss_a", row.loss_a);
  json.add("loss_b", row.loss_b);
  json.add("loss_difference", row.loss_difference);
  json.add("parameter_difference", row.parameter.difference);
  json.add("parameter", row.parameter.name);
  return json;
}

void write_json(OutputFile& file, const Side& a, const Side& b, const Comparison& comparison) {
  JsonList rows(JsonLayout::lines);
  for (const ComparisonRow& row : comparison.rows) rows.add(json_of(row));
  JsonObject json(JsonLayout::lines);
  json.add("version", DEVICELOOP_VERSION);
  json.add("a", json_of(a, comparison.losses.a_diverged));
  json.add("b", json_of(b, comparison.losses.b_diverged));
  json.add("rerun", is_rerun(a, b));
  json.add("steps", comparison.losses.steps);
  json.add("holds", comparison.rows.empty() ? std::nullopt : std::optional(comparison.holds()));
  json.add("losses", json_of(comparison.losses));
  json.add("parameters", json_of(comparison.parameters));
  json.add("rows", rows);
  file.write(json.text() + "\n");
  file.commit();
}

/// Trains both to the same step, compares them, and so on; ends early at a comparison where one has diverged, and after
/// a signal.
void train_both(Side& a, Side& b, std::int64_t every, Comparison& comparison, TextOutput& text) {
  const std::int64_t total = a.run.steps;
  const std::vector<ParameterInfo> layout = parameter_layout(a.run.network);
  Progress progress(" (both sides)");
  const auto train = [&](Side& side, std::int64_t steps) {
    TrainReport report = side.trainer->train(steps, [&](const TrainProgress& chunk) {
      if (text.wanted()) progress.update(a.steps + b.steps + chunk.steps_done, 2 * total);
      return interrupt() == 0;
    });
    side.steps += report.steps();
    side.total_ms += report.total_ms;
    return std::move(report.losses);
  };
  while (comparison.losses.steps < total && !comparison.has_diverged() && interrupt() == 0) {
    const std::int64_t done = comparison.losses.steps, next = next_comparison(done, every, total);
    const std::vector<double> losses_a = train(a, next - done), losses_b = train(b, next - done);
    if (a.steps < next || b.steps < next) break;
    const ComparisonRow& row =
        comparison.add(losses_a, losses_b, layout, read_parameters(*a.trainer, ElementType::float64),
                       read_parameters(*b.trainer, ElementType::float64));
    progress.clear();
    text.write(table_line(row));
  }
}

}  // namespace

void declare_compare(OptionSet& options) {
  options.group("What is compared");
  options.add("--a", "SIDE", "",
              "words with commas between: a plan, a device, fp32 or\nfp64, primal or gram, threads=N");
  options.add("--b", "SIDE", "", "the reference; other settings are those below");
  options.add("--every", "N", "0", "compare every N steps; 0: 1, 2, 5, 10, ...");
  options.add("--loss-bound", "X", "1e-4, fp64 1e-10", "of each loss, relative to b");
  options.add("--weight-bound", "X", "1e-5, fp64 1e-10", "the same of weights at the end;\nof biases 10 times that");
  declare_run_options(options);
  options.group("Output (FILE - is standard output)");
  options.add("--json", "FILE", "", "plans, times and differences (.json)");
  declare_quiet(options);
}

int run_compare(const OptionSet& options) {
  auto [a, b] = read_sides(options);
  const std::int64_t every = options.integer("--every", 0, kMaxCount);
  Comparison comparison;
  Bounds bounds = bounds_of(a.run.training.precision, b.run.training.precision);
  if (options.given("--loss-bound")) bounds.loss = options.number("--loss-bound");
  if (options.given("--weight-bound")) bounds.weight = options.number("--weight-bound");
  comparison.losses.bound = bounds.loss;
  comparison.parameters.bounds = bounds;
  const TextOutput::Where where =
      check_outputs(options, {"--json"}, {"--x", "--y", "--data", "--sample-weights", "--weights"});
  end_on_signals();
  for (Side* side : {&a, &b}) side->caps = query_caps_for(side->run.training.device);
  const std::string json_path = options.file("--json");
  const std::unique_ptr<OutputFile> json = json_path.empty() ? nullptr : std::make_unique<OutputFile>(json_path);
  TextOutput text(where);

  std::string start = make_trainers(a, b, options);
  for (Side* side : {&a, &b}) {
    side->plan = side->trainer->plan();
    start += std::string(side->option + 2) + ": " +
             plan_line(side->plan, side->trainer->training(), side->run.network, side->run.epochs);
  }
  if (is_rerun(a, b)) start += "a and b train in the same way: a rerun, of which the same bits are expected\n";
  text.write(start + table_line("steps", "last loss of a", "last loss of b", "differ by", "parameters differ by"));
  note_signals(kPatience);
  train_both(a, b, every, comparison, text);
  set_patience(kSavingPatience);

  Problems problems;
  if (json) problems.attempt([&] { write_json(*json, a, b, comparison); });
  set_patience(kPatience);
  if (!comparison.rows.empty()) text.write(summary(a, b, comparison));
  problems.attempt([&] { text.check(); });
  if (!comparison.holds()) problems.add(exceeded_text(comparison, options));
  if (const int signal = interrupt()) {
    write_all(2, "deviceloop: interrupted after " + counted(comparison.losses.steps, "step") +
                     (problems.text().empty() ? "" : "; ") + problems.text() + "\n");
    return 128 + signal;
  }
  if (!problems.text().empty()) throw Error(problems.text());
  return 0;
}

}  // namespace deviceloop::cli
