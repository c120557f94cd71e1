// --checkpoint, --checkpoint-every and --resume: what train writes while it goes on, and goes on from.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include <deviceloop/trainer.h>

#include "files/flat_json.h"
#include "files/network_metadata.h"
#include "files/read_file.h"
#include "files/safetensors.h"
#include "inputs.h"
#include "options.h"

namespace deviceloop::cli {

void declare_checkpoint(OptionSet& options);

/// The file of --resume.
class CheckpointInput {
 public:
  /// Throws InvalidArgument, naming the file, where it is damaged or no checkpoint of this command; the message then
  /// names the checkpoint before it, if there is one.
  explicit CheckpointInput(const std::string& path);

  /// Sets those options that say what is trained to those of the checkpoint's run. Of these, files of data, the machine
  /// and the number of steps may be given and differ. Throws InvalidArgument, with both values, where others do.
  void take_options(OptionSet& options) const;

  const NetworkMetadata& network() const { return network_; }
  /// Whether the run ended before its last step by a rule of --patience or --target-loss.
  bool has_ended() const { return options_.contains("end"); }
  /// Throws InvalidArgument where the trainer's settings or data are not those of the run.
  void resume(Trainer& trainer) const;
  const std::string& name() const { return file_.name(); }

 private:
  InputFile file_;
  SafeTensorsFile tensors_;
  NetworkMetadata network_;
  FlatObject options_;
};

/// The checkpoint of --resume, whose options are then taken; null without it.
std::unique_ptr<const CheckpointInput> open_checkpoint(OptionSet& options);

/// The file of --checkpoint and the one before it.
class CheckpointOutput {
 public:
  /// Finds out whether the file can be written. `options` are those of the run.
  CheckpointOutput(const OptionSet& options, const std::string& path, std::int64_t every);

  void set_network(NetworkMetadata network) { network_ = std::move(network); }
  /// How many steps a run that has done `done` of `total` takes until it is due by their number.
  std::int64_t steps_until_due(std::int64_t done, std::int64_t total) const;
  /// Whether it is due by the time; only where --checkpoint-every does not say when.
  bool is_due() const { return every_ == 0 && Clock::now() - written_ >= kInterval; }
  /// Does not throw: a disk that is full must not end a run, whose file of before is still there. Says on standard
  /// error what went wrong, and keeps it in problem() until a later one is written.
  void write(const Trainer& trainer, EndOfRun end);
  const std::string& problem() const { return problem_; }
  /// Printable.
  std::string name() const;

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kInterval{60};

  const std::string path_;
  const std::int64_t every_;
  FlatObject options_;
  NetworkMetadata network_;
  Clock::time_point written_ = Clock::now();
  std::string problem_;
};

}  // namespace deviceloop::cli
