// The options that several commands share, and the values of the options of train, plan and compare.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>

#include "files/reader.h"
#include "files/weights.h"
#include "options.h"
#include "text_output.h"
#include "watch_options.h"

namespace deviceloop::cli {

/// --activation and --output-activation.
void declare_activations(OptionSet& options);
void read_activations(const OptionSet& options, NetworkSpec& network);
/// Takes from a weights file the activations for which no option was given.
void take_activations(const OptionSet& options, const NetworkSpec& saved, NetworkSpec& network);
/// "1000,100,1 with biases, activation tanh, output activation sigmoid"; the defaults are not mentioned.
std::string network_text(const NetworkSpec& network);

/// --layers, --bias, --activation, --output-activation and --init.
void declare_network(OptionSet& options);
NetworkSpec read_network_options(const OptionSet& options);
Init read_init(const OptionSet& options);

/// --samples and --seed.
void declare_samples(OptionSet& options);
std::int64_t read_samples(const OptionSet& options);

void declare_precision(OptionSet& options);
Precision read_precision(const OptionSet& options);

/// --device, --plan and --threads.
void declare_execution(OptionSet& options);
std::optional<ExecutorKind> read_execution(const OptionSet& options, TrainingSpec& training);

/// Those of --plan, --device, --precision and --formulation that take this word, with a meaning of its own: not auto.
std::vector<std::string> options_taking(const std::string& word);

/// --header.
void declare_header(OptionSet& options);
TableHeader read_header(const OptionSet& options);

/// Throws InvalidArgument for an output whose format its name's ending says, `formats` such as ".npy", where the name
/// has another ending. One without an ending, standard output, pipes and devices have the first format.
void check_ending(const OptionSet& options, const std::string& output, const std::vector<std::string>& formats);

/// What to do about a run that diverged: "lower --lr, now 0.1", and what else may help.
std::string divergence_remedy(const OptionSet& options);

void declare_quiet(OptionSet& options);
/// Throws InvalidArgument if two of the options `outputs` name the same file, even by different names, or both name
/// standard output, or if one of them names the file of one of `inputs`, unless both are a pair of `replacing`: an
/// output and the input that it may replace. Returns where text goes then.
TextOutput::Where check_outputs(const OptionSet& options, const std::vector<std::string>& outputs,
                                const std::vector<std::string>& inputs,
                                const std::vector<std::pair<std::string, std::string>>& replacing = {});

struct TrainOptions {
  NetworkSpec network;
  TrainingSpec training;  ///< with `samples` once they are known
  std::optional<ExecutorKind> forced;
  Init init = Init::normal;
  std::int64_t steps = 0;   ///< with --epochs 0 until the samples are known
  std::int64_t epochs = 0;  ///< 0: --epochs was not given
  bool shuffle = false;     ///< --shuffle was given
  std::int64_t rows = 0;    ///< to generate, those for validation included
  ValidationInput validation;
  bool keep_going = false;   ///< after a loss that is not finite
  double scale = 1;          ///< of the inputs
  bool standardize = false;  ///< the inputs, after that
  bool standardize_targets = false;
  std::string x, y, data, targets, weights, save, history, json, plot, report;  ///< empty: not given
  std::string checkpoint;                                                       ///< the same
  std::int64_t checkpoint_every = 0;                                            ///< steps; 0: by time
  std::string sample_weights;                                                   ///< the same
  std::vector<std::string> input_names;  ///< of the columns that --weights was trained on; empty: they had none
  TableHeader header = TableHeader::automatic;
  TextOutput::Where text = TextOutput::Where::standard_output;

  /// Whether the data are read; they are generated otherwise.
  bool has_files() const { return !x.empty() || !data.empty(); }
};

/// Whether the targets of the data are numbers of classes.
inline bool are_classes(const TrainOptions& run, const Samples& data) {
  return run.training.loss == Loss::cross_entropy && data.y.columns == 1;
}

/// All that say what is trained and how: network and data, training, optimizer.
void declare_run_options(OptionSet& options);
/// Names no output and no watch, which has these validation data.
TrainOptions read_run_options(const OptionSet& options, ValidationInput validation = {});

/// Beside those, validation, early end and outputs; `output` is the heading of the files that are written.
void declare_train_options(OptionSet& options, const std::string& output);
TrainOptions read_train_options(const OptionSet& options);
/// What the options leave open of the network, and the names of its inputs, from the metadata of --weights. Throws
/// InvalidArgument for a loss that the network cannot have, and for a scaling that both the file and an option have, or
/// that does not fit the loss.
void take_saved_network(const OptionSet& options, const SavedNetwork& saved, TrainOptions& run);
/// Sets the number of samples, 0 while it is not known, and what follows from it: steps, the period of a cosine
/// schedule. Throws InvalidArgument for batches that those samples cannot have.
void set_samples(TrainOptions& run, std::int64_t samples);

}  // namespace deviceloop::cli
