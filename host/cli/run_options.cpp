#include "run_options.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include <deviceloop/error.h>

#include "checkpoint.h"
#include "elementwise.h"
#include "files/same_file.h"
#include "loss_options.h"
#include "names.h"
#include "optimizer_options.h"
#include "planning/decision.h"
#include "plot.h"
#include "report.h"
#include "step/step.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

constexpr std::int64_t kMaxCount = std::numeric_limits<std::int64_t>::max();
constexpr const char* kStandardizesTargets = "--standardize-targets scales the targets";

const std::vector<Choice<Precision>> kPrecisions = {{"fp32", Precision::fp32}, {"fp64", Precision::fp64},
                                                    {"tf32", Precision::tf32}, {"tf32x3", Precision::tf32x3},
                                                    {"bf16", Precision::bf16}, {"fp16", Precision::fp16}};
const std::vector<Choice<Formulation>> kFormulations = {{"primal", Formulation::primal}, {"gram", Formulation::gram}};

/// None for what --device does not take.
std::optional<DeviceChoice> device_named(std::string_view text) {
  if (text == "auto") return DeviceChoice{DeviceKind::automatic, 0};
  if (text == "cpu") return DeviceChoice{DeviceKind::cpu, 0};
  if (text == "cuda") return DeviceChoice{DeviceKind::cuda, 0};
  constexpr std::string_view kNumbered = "cuda:";
  if (!text.starts_with(kNumbered)) return std::nullopt;
  const std::optional<int> index = parse<int>(text.substr(kNumbered.size()));
  if (!index || *index < 0) return std::nullopt;
  return DeviceChoice{DeviceKind::cuda, *index};
}

/// Sets both from what --plan takes; false for anything else.
bool parse_plan(std::string_view text, std::optional<ExecutorKind>& forced, PersistentForm& form) {
  forced = std::nullopt;
  form = PersistentForm::automatic;
  if (text == "auto") return true;
  for (const ExecutorKind kind :
       {ExecutorKind::cpu, ExecutorKind::graph, ExecutorKind::persistent, ExecutorKind::fused})
    if (text == name(kind)) {
      forced = kind;
      return true;
    }
  for (const PersistentForm each : {PersistentForm::two_layer, PersistentForm::on_chip})
    if (text == std::string("persistent:") + name(each)) {
      forced = ExecutorKind::persistent;
      form = each;
      return true;
    }
  return false;
}

template <class T>
bool names_one_of(std::string_view text, const std::vector<Choice<T>>& choices) {
  return std::any_of(choices.begin(), choices.end(), [&](const Choice<T>& choice) { return text == choice.name; });
}

/// By what the formulation 'gram' does not train: it never has the gradient of the first weight.
void refuse_for_gram(const OptionSet& options, const Optimizer& optimizer) {
  if (!elementwise::is_linear(optimizer.kind))
    throw InvalidArgument("--formulation gram does not train by --optimizer " + options.text("--optimizer") +
                          ", only by gd and sgd; drop one of the two");
  for (const std::string clip : {"--clip-norm", "--clip-value"})
    if (options.number(clip) > 0)
      throw InvalidArgument("--formulation gram does not clip gradients, but " + clip + " " + options.text(clip) +
                            " asks for it; drop one of the two");
}

NamedActivation read_activation(const OptionSet& options, const std::string& option) {
  const std::string& text = options.text(option);
  if (const std::optional<NamedActivation> named = activation_named(text)) return *named;
  const std::string leaky = activation_text(Activation::leaky_relu);
  if (text.starts_with(leaky + ":")) options.refuse(option, "have a finite slope in " + leaky + ":SLOPE, such as 0.2");
  std::string allowed;
  for (int number = 0; name_or_null(static_cast<Activation>(number)) != nullptr; ++number) {
    const std::string name = activation_text(static_cast<Activation>(number));
    allowed += (number == 0 ? "" : ", ") + name + (name == leaky ? "[:SLOPE]" : "");
  }
  options.refuse(option, "be one of " + allowed);
}

/// A number, or A/B; finite and not 0.
double read_scale(const OptionSet& options) {
  const std::string_view text = options.text("--scale");
  const std::size_t slash = text.find('/');
  std::optional<double> factor = parse<double>(text.substr(0, slash));
  if (factor && slash != text.npos) {
    const std::optional<double> divisor = parse<double>(text.substr(slash + 1));
    factor = divisor && std::isfinite(*divisor) ? std::optional(*factor / *divisor) : std::nullopt;
  }
  if (!factor || !std::isfinite(*factor) || *factor == 0)
    options.refuse("--scale", "be a finite number other than 0, such as 0.5 or 1/255");
  return *factor;
}

/// Throws InvalidArgument, beginning with `who` wants standardized targets, where the loss or the outputs do not fit
/// them.
void check_standardized_targets(const NetworkSpec& network, const TrainingSpec& training, const std::string& who) {
  if (training.loss == Loss::binary_cross_entropy || training.loss == Loss::cross_entropy)
    throw InvalidArgument(who + ", but those of --loss " + loss_name(training.loss) +
                          " are probabilities or numbers of classes; use --loss squared, absolute or huber");
  if (network.output_activation != Activation::identity)
    throw InvalidArgument(who + " to both sides of 0, where --output-activation " +
                          activation_text(network.output_activation, network.leaky_slope) +
                          " limits or bends the outputs; use --output-activation identity");
}

}  // namespace

void declare_activations(OptionSet& options) {
  options.add("--activation", "NAME", "relu", "hidden layers: tanh, leaky-relu[:SLOPE]");
  options.add("--output-activation", "NAME", "identity", "of the output layer, same names");
}

void read_activations(const OptionSet& options, NetworkSpec& network) {
  const NamedActivation hidden = read_activation(options, "--activation");
  const NamedActivation output = read_activation(options, "--output-activation");
  network.activation = hidden.kind;
  network.output_activation = output.kind;
  if (hidden.slope && output.slope && *hidden.slope != *output.slope)
    throw InvalidArgument("--activation " + activation_text(hidden.kind, *hidden.slope) + " and --output-activation " +
                          activation_text(output.kind, *output.slope) +
                          " have different slopes; a network has one, give both the same");
  network.leaky_slope = hidden.slope.value_or(output.slope.value_or(network.leaky_slope));
}

void take_activations(const OptionSet& options, const NetworkSpec& saved, NetworkSpec& network) {
  // A slope that was given is kept, to be compared.
  const bool has_slope = (options.given("--activation") && network.activation == Activation::leaky_relu) ||
                         (options.given("--output-activation") && network.output_activation == Activation::leaky_relu);
  if (!has_slope) network.leaky_slope = saved.leaky_slope;
  if (!options.given("--activation")) network.activation = saved.activation;
  if (!options.given("--output-activation")) network.output_activation = saved.output_activation;
}

std::string network_text(const NetworkSpec& network) {
  return widths_text(network.widths) + (network.bias ? " with biases" : "") +
         (network.activation == Activation::relu
              ? ""
              : ", activation " + activation_text(network.activation, network.leaky_slope)) +
         output_activation_text(network);
}

void declare_network(OptionSet& options) {
  options.add("--layers", "LIST", "1000,100,1", "widths: inputs, hidden ..., outputs");
  options.add_flag("--bias", "a bias in every layer");
  declare_activations(options);
  options.add("--init", "NAME", "normal", "initial weights: normal, he or xavier");
}

NetworkSpec read_network_options(const OptionSet& options) {
  NetworkSpec network;
  network.widths = options.integers("--layers", 1, kMaxWidth);
  if (network.widths.size() < 2) options.refuse("--layers", "have inputs and outputs, such as 1000,1");
  network.bias = options.given("--bias");
  read_activations(options, network);
  return network;
}

Init read_init(const OptionSet& options) {
  return choose<Init>(options, "--init", {{"normal", Init::normal}, {"he", Init::he}, {"xavier", Init::xavier}});
}

void declare_samples(OptionSet& options) {
  options.add("--samples", "N", "128", "rows to generate, standard normal");
  options.add("--seed", "N", "0", "seed of the data and weights that are drawn");
}

std::int64_t read_samples(const OptionSet& options) { return options.integer("--samples", 1, kMaxCount); }

void declare_precision(OptionSet& options) {
  options.add("--precision", "NAME", "fp32", "fp32, fp64, tf32, tf32x3, bf16 or fp16");
}

Precision read_precision(const OptionSet& options) { return choose(options, "--precision", kPrecisions); }

void declare_execution(OptionSet& options) {
  options.add("--device", "NAME", "auto", "auto, cpu, cuda or cuda:N");
  options.add("--plan", "NAME", "auto", "cpu, graph, persistent[:FORM] or fused");
  options.add("--threads", "N", "0", "CPU threads; 0: as many as make it faster");
  options.add("--deadline", "MS", "10000", "longest wait inside a launch");
}

std::optional<ExecutorKind> read_execution(const OptionSet& options, TrainingSpec& training) {
  const std::optional<DeviceChoice> device = device_named(options.text("--device"));
  if (!device) options.refuse("--device", "be auto, cpu, cuda or cuda:N with N from 0");
  training.device = *device;
  training.threads = static_cast<int>(options.integer("--threads", 0, kMaxThreads));
  training.deadline_ms = options.integer("--deadline", 0, kMaxCount);
  std::optional<ExecutorKind> forced;
  if (!parse_plan(options.text("--plan"), forced, training.form))
    options.refuse("--plan",
                   "be auto, cpu, graph, persistent, fused, or persistent:FORM with the form two-layer or on-chip");
  if (forced && training.device.kind != DeviceKind::automatic &&
      row_of(*forced).is_on_gpu != (training.device.kind == DeviceKind::cuda))
    throw InvalidArgument("--plan " + options.text("--plan") + " does not run on --device " + options.text("--device") +
                          "; drop one of the two");
  return forced;
}

void declare_header(OptionSet& options) {
  options.add("--header", "NAME", "auto", "names in line 1 of a .csv: auto, yes, no");
}

TableHeader read_header(const OptionSet& options) {
  return choose<TableHeader>(options, "--header",
                             {{"auto", TableHeader::automatic}, {"yes", TableHeader::yes}, {"no", TableHeader::no}});
}

void check_ending(const OptionSet& options, const std::string& output, const std::vector<std::string>& formats) {
  const std::filesystem::path path = options.file(output);
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  const bool is_other = std::filesystem::exists(status) && !std::filesystem::is_regular_file(status);
  if (ending.empty() || is_other || std::find(formats.begin(), formats.end(), ending) != formats.end()) return;
  std::string names;
  for (const std::string& format : formats) names += (names.empty() ? "" : " or ") + format;
  options.refuse(output, "be the name of a file that ends in " + names);
}

std::string divergence_remedy(const OptionSet& options) {
  const bool is_raw = (options.given("--x") || options.given("--data")) && !options.given("--weights") &&
                      !options.given("--standardize");
  return "lower --lr, now " + options.text("--lr") + (is_raw ? ", or add --standardize" : "");
}

void declare_quiet(OptionSet& options) { options.add_flag("--quiet", "no text on standard output"); }

TextOutput::Where check_outputs(const OptionSet& options, const std::vector<std::string>& outputs,
                                const std::vector<std::string>& inputs,
                                const std::vector<std::pair<std::string, std::string>>& replacing) {
  struct Named {
    std::string option;
    std::optional<FileIdentity> identity;
  };
  std::vector<Named> files;  // inputs, then outputs
  for (const std::string& input : inputs)
    if (!options.file(input).empty() && options.file(input) != "-")
      files.push_back({input, identity_of(options.file(input))});
  const std::optional<FileIdentity> standard_output = identity_of(STDOUT_FILENO);
  std::string on_standard_output;
  for (const std::string& output : outputs) {
    const std::string& file = options.file(output);
    if (file.empty()) continue;
    Named named{output, file == "-" ? standard_output : identity_of(file)};
    const bool is_standard_output = file == "-" || (named.identity && named.identity == standard_output);
    if (is_standard_output && !on_standard_output.empty())
      throw InvalidArgument(on_standard_output + " and " + output +
                            " are both '-', standard output; give one of them a file");
    // The output would replace the file that the text goes to.
    if (is_standard_output && file != "-" && named.identity->regular)
      throw InvalidArgument(output + " names " + printable(file) +
                            ", the file that standard output goes to; give it another one, or '-'");
    if (is_standard_output) on_standard_output = output;
    for (const Named& other : files)
      if (named.identity && named.identity == other.identity &&
          std::find(replacing.begin(), replacing.end(), std::pair(output, other.option)) == replacing.end())
        throw InvalidArgument(other.option + " " + printable(options.file(other.option)) + " and " + output + " " +
                              printable(file) + " name the same file; give them different ones");
    files.push_back(std::move(named));
  }
  if (options.given("--quiet")) return TextOutput::Where::nowhere;
  return on_standard_output.empty() ? TextOutput::Where::standard_output : TextOutput::Where::standard_error;
}

std::vector<std::string> options_taking(const std::string& word) {
  std::vector<std::string> options;
  if (word == "auto") return options;
  std::optional<ExecutorKind> forced;
  PersistentForm form{};
  if (parse_plan(word, forced, form)) options.push_back("--plan");
  if (device_named(word)) options.push_back("--device");
  if (names_one_of(word, kPrecisions)) options.push_back("--precision");
  if (names_one_of(word, kFormulations)) options.push_back("--formulation");
  return options;
}

void declare_run_options(OptionSet& options) {
  options.group("Network and data");
  declare_network(options);
  options.add("--weights", "FILE", "", "start from these weights (.safetensors)");
  declare_samples(options);
  options.add("--x", "FILE", "", "inputs, one row a sample (.npy, .csv, IDX)");
  options.add("--y", "FILE", "", "targets, one row a sample (.npy, .csv, IDX)");
  options.add("--data", "FILE", "", "both in one: .npz with x and y, or .csv");
  options.add("--targets", "N|NAMES", "", "of that .csv: the last N columns, or NAME,NAME");
  options.add("--sample-weights", "FILE", "", "of the losses, one column (formats of --y)");
  declare_header(options);
  options.add("--scale", "FACTOR", "", "multiplies every input, such as 1/255");
  options.add_flag("--standardize", "each input minus its mean, divided by its deviation");
  options.add_flag("--standardize-targets", "targets the same; losses are of these");
  options.group("Training");
  declare_loss(options);
  options.add("--steps", "N", "500", "steps; train takes 0 too: only the loss");
  options.add("--epochs", "E", "", "instead of --steps: ceil(E samples / batch size) steps");
  options.add("--batch-size", "B", "0", "samples of a step; 0: all");
  options.add_flag("--shuffle", "another order in each epoch; what batches do");
  options.add_flag("--no-shuffle", "batches in the order of the rows");
  options.add("--formulation", "NAME", "primal", "primal, or gram where samples are few");
  options.add("--reproject", "N", "0", "with gram, Z anew every N steps; 0: never");
  declare_precision(options);
  declare_execution(options);
  options.add_flag("--tune", "on a GPU, try algorithms first; last bits may vary");
  options.group("Optimizer");
  declare_optimizer(options);
}

void declare_train_options(OptionSet& options, const std::string& output) {
  declare_run_options(options);
  options.group("Validation and early end");
  declare_watch(options);
  options.add_flag("--keep-going", "do not stop where a loss is not finite");
  options.group(output);
  options.add("--save", "FILE", "", "weights after training (.safetensors)");
  options.add("--history", "FILE", "", "the loss of every step, and validation (.csv)");
  options.add("--json", "FILE", "", "plan, times and losses (.json)");
  options.add("--plot", "FILE", "", "the loss curve, by gnuplot (.svg or .png, not -)");
  options.add("--report", "FILE", "", "the run as one page, with curves (.html)");
  declare_checkpoint(options);
  declare_quiet(options);
}

TrainOptions read_run_options(const OptionSet& options, ValidationInput validation) {
  TrainOptions run;
  run.validation = std::move(validation);
  run.network = read_network_options(options);
  run.init = read_init(options);
  run.steps = options.integer("--steps", 0, kMaxCount);
  if (options.given("--epochs")) {
    run.epochs = options.integer("--epochs", 1, kMaxCount);
    if (options.given("--steps"))
      throw InvalidArgument("--steps " + options.text("--steps") + " and --epochs " + options.text("--epochs") +
                            " are both given; drop one of the two");
  }
  read_loss(options, run.training);
  run.training.batch_size = options.integer("--batch-size", 0, kMaxCount);
  run.training.shuffle = !options.given("--no-shuffle");
  run.shuffle = options.given("--shuffle");
  if (run.shuffle && !run.training.shuffle)
    throw InvalidArgument("--shuffle and --no-shuffle are both given; drop one of the two");
  run.training.precision = read_precision(options);
  run.training.optimizer = read_optimizer(options, run.training.precision);
  run.training.formulation = choose(options, "--formulation", kFormulations);
  run.training.reprojection_steps = options.integer("--reproject", 0, kMaxCount);
  if (run.training.reprojection_steps > 0 && run.training.formulation != Formulation::gram)
    throw InvalidArgument("--reproject " + options.text("--reproject") +
                          " belongs to --formulation gram; add that or drop it");
  if (run.training.formulation == Formulation::gram) refuse_for_gram(options, run.training.optimizer);
  run.training.seed = options.unsigned_integer("--seed");
  run.forced = read_execution(options, run.training);
  run.rows = read_samples(options);

  run.x = options.file("--x");
  run.y = options.file("--y");
  run.data = options.file("--data");
  run.targets = options.text("--targets");
  run.sample_weights = options.file("--sample-weights");
  run.training.sample_weights = !run.sample_weights.empty();
  run.header = read_header(options);
  run.weights = options.file("--weights");
  if (run.weights.empty()) check_loss(run.network, run.training);
  if (options.given("--scale")) run.scale = read_scale(options);
  run.standardize = options.given("--standardize");
  run.standardize_targets = options.given("--standardize-targets");
  if (run.weights.empty() && run.standardize_targets)
    check_standardized_targets(run.network, run.training, kStandardizesTargets);
  run.training.deterministic = !options.given("--tune");
  for (const char* other : {"--x", "--y"})
    if (!run.data.empty() && options.given(other))
      throw InvalidArgument("--data " + printable(run.data) + " holds inputs and targets, but " + other + " " +
                            printable(options.file(other)) + " is given too; drop --data, or --x and --y");
  if (run.data.empty() && run.validation.data.empty() && options.given("--targets"))
    throw InvalidArgument("--targets " + in_quotes(run.targets) + " picks columns of --data FILE; add that or drop it");
  if (!run.has_files() && run.training.sample_weights)
    throw InvalidArgument("--sample-weights " + printable(run.sample_weights) +
                          " is for samples from files; add --x and --y or --data, or drop it");
  if (!run.has_files() && !run.validation.has_files() && options.given("--header"))
    throw InvalidArgument("--header " + options.text("--header") +
                          " is for .csv files; add --x and --y or --data, or drop it");
  if (run.x.empty() != run.y.empty())
    throw InvalidArgument(run.y.empty() ? "--x " + printable(run.x) + " has no targets; add --y FILE or drop --x"
                                        : "--y " + printable(run.y) + " has no inputs; add --x FILE or drop --y");
  if (run.has_files() && options.given("--samples"))
    throw InvalidArgument("--samples " + options.text("--samples") + " is for generated data, but " +
                          (run.x.empty() ? "--data " + printable(run.data) : "--x " + printable(run.x)) +
                          " is given; drop --samples, or " + (run.x.empty() ? "--data" : "--x and --y"));
  set_samples(run, run.has_files() ? 0 : run.rows - run.validation.rows_of(run.rows));
  if (!run.weights.empty() && options.given("--init"))
    throw InvalidArgument("--init " + options.text("--init") + " draws weights, but --weights " +
                          printable(run.weights) + " is given; drop one of the two");
  return run;
}

TrainOptions read_train_options(const OptionSet& options) {
  Watch watch;
  ValidationInput validation = read_watch(options, watch);
  TrainOptions run = read_run_options(options, std::move(validation));
  run.training.watch = watch;
  run.keep_going = options.given("--keep-going");
  run.save = options.file("--save");
  run.history = options.file("--history");
  run.json = options.file("--json");
  run.plot = options.file("--plot");
  run.report = options.file("--report");
  if (!run.plot.empty() && !picture_format(run.plot))
    options.refuse("--plot", "be the name of a file that ends in .svg or .png");
  run.checkpoint = options.file("--checkpoint");
  if (options.given("--checkpoint-every")) {
    run.checkpoint_every = options.integer("--checkpoint-every", 1, kMaxCount);
    if (run.checkpoint.empty())
      throw InvalidArgument("--checkpoint-every " + options.text("--checkpoint-every") +
                            " is for a checkpoint; add --checkpoint FILE or drop it");
  }
  run.text = check_outputs(options, {"--save", "--history", "--json", "--plot", "--report", "--checkpoint"},
                           {"--x", "--y", "--data", "--sample-weights", "--weights", "--resume", "--validate",
                            "--validate-x", "--validate-y"},
                           {{"--save", "--weights"}, {"--checkpoint", "--resume"}});  // to continue a run
  return run;
}

void take_saved_network(const OptionSet& options, const SavedNetwork& saved, TrainOptions& run) {
  if (saved.has_metadata) {
    if (!options.given("--layers")) run.network.widths = saved.network.widths;
    if (!options.given("--bias")) run.network.bias = saved.network.bias;
    take_activations(options, saved.network, run.network);
  }
  run.input_names = saved.input_names;
  check_loss(run.network, run.training);
  const std::string file = printable(run.weights);
  for (const char* option : {"--scale", "--standardize"})
    if (!saved.scaling.is_identity() && options.given(option))
      throw InvalidArgument(file + " says how its inputs are scaled, and this run scales them so; drop " + option);
  if (!saved.target_scaling.is_identity() && run.standardize_targets)
    throw InvalidArgument(file + " says how its targets are scaled, and this run scales them so; drop " +
                          "--standardize-targets");
  if (!saved.target_scaling.is_identity() || run.standardize_targets)
    check_standardized_targets(run.network, run.training,
                               run.standardize_targets ? kStandardizesTargets : file + " scales the targets");
}

void set_samples(TrainOptions& run, std::int64_t samples) {
  TrainingSpec& training = run.training;
  training.samples = samples;
  const std::string batch_size = "--batch-size " + std::to_string(training.batch_size);
  if (samples > 0 && training.batch_size > samples)
    throw InvalidArgument(batch_size + " is more than the " + std::to_string(samples) +
                          (samples == 1 ? " sample" : " samples") + "; use at most as many, or 0 for all");
  if (run.shuffle && !has_minibatches(training))
    throw InvalidArgument(
        "--shuffle is for batches, and every step takes all samples; add --batch-size B of fewer, or drop it");
  if (training.formulation == Formulation::gram && has_minibatches(training))
    throw InvalidArgument("--formulation gram takes all samples in every step, but " + batch_size +
                          " is given; drop one of the two");
  if (run.epochs > 0) {
    std::int64_t rows = 0;
    const bool overflows = __builtin_mul_overflow(run.epochs, samples, &rows);
    const std::int64_t batch = std::max(batch_of(training), std::int64_t{1});
    run.steps = overflows ? kMaxCount : rows / batch + (rows % batch != 0 ? 1 : 0);
  }
  if (training.optimizer.schedule.kind == ScheduleKind::cosine)
    training.optimizer.schedule.period = std::max(run.steps, std::int64_t{1});
}

}  // namespace deviceloop::cli
