// The data of a run, read or generated. Sizes are checked here; elements by the trainer, which is given the files'
// names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>
#include <deviceloop/trainer.h>

#include "files/read_file.h"
#include "files/reader.h"
#include "files/safetensors.h"
#include "files/weights.h"
#include "input_scaling.h"
#include "parameters.h"
#include "run_options.h"

namespace deviceloop::cli {

/// The inputs of predict, in any format that read_matrix knows; of a table with names the columns of `names`, if any.
/// Throws as that does.
DataMatrix read_inputs(const std::string& path, const std::vector<std::string>& names, Precision precision,
                       TableHeader header, const CpuCaps& caps);

/// Throws InvalidArgument where the files together are larger than the memory.
void check_file_sizes(const std::vector<std::string>& paths, const CpuCaps& caps);

/// Reads --x and --y, or --data. Throws InvalidArgument where they do not match each other or the network.
Samples read_data(const TrainOptions& run, const CpuCaps& caps);

/// Reads the data, or draws them. Throws InvalidArgument for a loss that has no targets among those that are drawn.
Samples load_data(const TrainOptions& run, const CpuCaps& caps);

/// The names of the columns that the network's inputs are; empty where they have none.
std::vector<std::string> names_of_inputs(const TrainOptions& run, const Samples& data);

/// The validation data: read as read_data() reads, or taken from `data`, which keep the other rows, by
/// run.training.seed. Empty where none are asked for.
Samples read_validation(const TrainOptions& run, Samples& data, const CpuCaps& caps);
/// "validating by 12 samples, drawn from the data\n"; empty where there are none.
std::string validation_line(const TrainOptions& run, const Samples& validation);

/// "read 3 samples from x.npy (int64, converted to fp32) and y.csv (line 1 is its header)\n"; empty where they were
/// generated. Names the columns of a table that were left out.
std::string samples_line(const TrainOptions& run, const Samples& data);
/// The same of --x alone.
std::string rows_line(const DataMatrix& data, Precision precision);

/// A weights file that is open, so that a pipe is read once.
class WeightsInput {
 public:
  /// Throws InvalidArgument, naming the file, where it holds no network.
  WeightsInput(const std::string& path, const CpuCaps& caps);

  const SavedNetwork& saved() const { return saved_; }
  /// Throws InvalidArgument, naming the file, where it holds another network.
  void check(const NetworkSpec& network) const { check_network(tensors_, network); }
  void load(Trainer& trainer) const;
  /// "w.safetensors is BF16, converted to fp32\n"; empty where it has the working precision.
  std::string line(Precision precision) const;

 private:
  InputFile file_;
  SafeTensorsFile tensors_;
  SavedNetwork saved_;
};

/// Opens --weights and takes from it what the options leave open. Null without that option. Throws InvalidArgument
/// where the options do not agree with the file.
std::unique_ptr<const WeightsInput> open_weights(const OptionSet& options, TrainOptions& run, const CpuCaps& caps);

/// What the data of a run go through.
struct DataScaling {
  InputScaling inputs, targets;
};

/// The scalings that the weights of the run have, or --scale, --standardize and --standardize-targets, by the training
/// data. `weights` may be null.
DataScaling scaling_of(const TrainOptions& run, const WeightsInput* weights, const Samples& data);

/// Scales inputs into the working precision, with a message that names their file; leaves them as they are where the
/// scaling does nothing. Throws InvalidArgument where a scaled element is not finite.
void scale_inputs(DataMatrix& x, const InputScaling& scaling, Precision precision, const CpuCaps& caps);
/// The same of inputs and targets.
void scale_samples(Samples& data, const DataScaling& scaling, Precision precision, const CpuCaps& caps);

/// "inputs multiplied by 0.00392157 and then each column minus its mean, divided by its deviation\n"; empty where the
/// scaling does nothing.
std::string scaling_line(const InputScaling& scaling);
/// A line of inputs and one of targets.
std::string scaling_lines(const DataScaling& scaling);

/// A line for inputs and one for targets from files whose columns are of sizes that training is slow with, though an
/// option would scale them. `data` have gone through the scaling and are finite.
std::string size_note_lines(const TrainOptions& run, const DataScaling& scaling, const Samples& data);

/// What train takes without --x and --y.
HostMatrix generate(std::int64_t rows, std::int64_t columns, Precision precision, std::uint64_t seed,
                    std::uint32_t tensor);

/// All parameters as they are now, converted.
Parameters read_parameters(const Trainer& trainer, ElementType type);

/// Rows with 1 in the column of the class and 0 elsewhere, of a column with the numbers of the classes.
HostMatrix probabilities_of_classes(const HostMatrix& numbers, std::int64_t classes);

/// A copy of the first `rows` rows, converted.
HostMatrix first_rows(const HostMatrix& matrix, std::int64_t rows, Precision precision);

}  // namespace deviceloop::cli
