// What a checkpoint says beside its tensors: the settings of the training, how far it is, and what it was on. It is
// JSON without lists and objects in it, a text of the file's metadata:
//   {"version":1,"steps_done":500,"samples":128,"loss":"squared_error",...,"optimizer.kind":"adam",...,
//    "data":"9a3c...","best.steps":400,"best.loss":0.25,...}
// Settings have the names of the members of TrainingSpec; those of the machine (device, threads, form, deadline_ms,
// deterministic) are not among them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <deviceloop/spec.h>
#include <deviceloop/trainer.h>

#include "safetensors.h"

namespace deviceloop {

/// Its key in the file's metadata.
constexpr const char* kCheckpointKey = "deviceloop.checkpoint";

struct CheckpointMetadata {
  TrainingSpec training{};  ///< settings of the machine, and what data fill in beside `samples`, are the defaults
  std::int64_t steps_done = 0;
  /// Checksums of data and validation data in the working precision; none where there were no such data.
  std::optional<std::uint64_t> data{}, validation{};
  /// What the watcher knows.
  std::optional<Evaluation> best{};
  std::int64_t evaluations_since_best = 0;
  std::int64_t gram_steps = 0;  ///< GramProgress::steps; 0: the state is that of the parameters alone

  /// Whether the file has the parameters of `best`, too.
  bool has_best_parameters() const { return best && training.watch.keep_best; }
};

/// The text, the same for equal values; numbers read back bit for bit.
std::string checkpoint_metadata_text(const CheckpointMetadata& metadata);

/// What the file says; nothing where it has no such key. Throws InvalidArgument, naming the file, for a text that is
/// not as above: no JSON, another version, unknown, missing or duplicate keys, values of other types.
std::optional<CheckpointMetadata> read_checkpoint_metadata(const SafeTensorsFile& file);

/// Which settings must be equal. `meaning`: those without which the state would be that of another run; the learning
/// rate and its schedule, `watch` but for keep_best, the formulation, and seed, shuffle and samples where each step
/// takes all samples, may then differ. `all`: those too, which makes it the same run.
enum class Settings { meaning, all };
/// "batch_size 64, and the trainer has 32": the first setting in which they differ; empty where they do not.
std::string difference_of(const TrainingSpec& saved, const TrainingSpec& own, Settings which);

}  // namespace deviceloop
