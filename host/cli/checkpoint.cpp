#include "checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "files/checkpoint_metadata.h"
#include "files/json_text.h"
#include "files/rotated_file.h"
#include "files/weights.h"
#include "names.h"
#include "text.h"
#include "text_output.h"
#include "trainer_access.h"

namespace deviceloop::cli {
namespace {

/// The key, in the file's metadata, of the options that were given: {"--lr":"1e-3","--bias":"yes",...}, and "end" where
/// the run has ended by a rule.
constexpr const char* kRunKey = "deviceloop.run";

/// Not options of the run: what it leaves, and what may be another each time.
const std::set<std::string> kNotOfTheRun = {
    "--save",       "--history",          "--json",   "--plot",  "--report",
    "--checkpoint", "--checkpoint-every", "--resume", "--quiet", "--keep-going"};
/// May be given and differ. Where one of a group is given, none of that group is taken from the checkpoint.
const std::vector<std::set<std::string>> kMayDiffer = {
    {"--x", "--y", "--data", "--targets"},
    {"--validate", "--validate-x", "--validate-y"},
    {"--sample-weights"},
    {"--header"},
    {"--steps", "--epochs"},
    {"--device", "--plan"},
    {"--threads"},
    {"--deadline"},
    {"--tune"},
};

const std::set<std::string>* group_of(const std::string& option) {
  for (const std::set<std::string>& group : kMayDiffer)
    if (group.contains(option)) return &group;
  return nullptr;
}

bool is_same(const std::string& one, const std::string& other) {
  const auto number = parse<double>(one), other_number = parse<double>(other);
  return one == other || (number && other_number && *number == *other_number);
}

std::string joined(const std::vector<std::int64_t>& widths) {
  std::string text;
  for (const std::int64_t width : widths) text += (text.empty() ? "" : ",") + std::to_string(width);
  return text;
}

FlatObject options_of_run(const OptionSet& options) {
  FlatObject values;
  for (const Setting& setting : options.settings())
    if (setting.given && !kNotOfTheRun.contains(setting.name)) values[setting.name] = setting.value;
  return values;
}

/// A damaged file has a remedy, if the one before it is there.
template <class Read>
auto with_remedy(const std::string& path, const Read& read) {
  try {
    return read();
  } catch (const InvalidArgument& error) {
    const std::string previous = previous_of(path);
    if (::access(previous.c_str(), R_OK) != 0) throw;
    throw InvalidArgument(std::string(error.what()) + "; " + printable(previous) +
                          " is the checkpoint before it: resume from that");
  }
}

}  // namespace

void declare_checkpoint(OptionSet& options) {
  options.add("--checkpoint", "FILE", "", "what --resume goes on from, and FILE.previous");
  options.add("--checkpoint-every", "STEPS", "", "when it is written; without it, each minute");
  options.add("--resume", "FILE", "", "go on from a checkpoint, whose options hold");
}

CheckpointInput::CheckpointInput(const std::string& path)
    : file_(with_remedy(path, [&] { return InputFile(path); })),
      tensors_(with_remedy(path, [&] { return SafeTensorsFile(file_); })) {
  with_remedy(path, [&] {
    const std::string remedy = "; resume from a file that train --checkpoint wrote";
    const std::optional<CheckpointMetadata> checkpoint = read_checkpoint(tensors_);
    const auto run = tensors_.metadata().find(kRunKey);
    std::optional<NetworkMetadata> network = read_network_metadata(tensors_);
    if (!checkpoint || !network || run == tensors_.metadata().end()) tensors_.refuse("is no checkpoint" + remedy);
    network_ = std::move(*network);
    const std::string problem = read_flat_json(run->second, options_);
    if (!problem.empty()) tensors_.refuse("its metadata " + in_quotes(kRunKey) + " " + problem + remedy);
    for (const auto& [name, value] : options_)
      if (!std::holds_alternative<std::string>(value))
        tensors_.refuse("its metadata " + in_quotes(kRunKey) + " has no text as its " + in_quotes(name) + remedy);
  });
}

void CheckpointInput::take_options(OptionSet& options) const {
  std::map<std::string, std::string> saved;
  for (const auto& [name, value] : options_) saved[name] = std::get<std::string>(value);
  saved.erase("end");
  // Of what may have come from --weights.
  const NetworkSpec& network = network_.network;
  saved["--layers"] = joined(network.widths);
  saved["--activation"] = activation_text(network.activation, network.leaky_slope);
  saved["--output-activation"] = activation_text(network.output_activation, network.leaky_slope);
  if (network.bias) saved["--bias"] = "yes";

  std::vector<std::pair<std::string, std::string>> taken;
  for (const Setting& setting : options.settings()) {
    const auto found = saved.find(setting.name);
    const bool is_saved = found != saved.end();
    const std::string value = is_saved ? found->second : setting.is_flag ? "no" : options.default_text(setting.name);
    if (is_saved) saved.erase(found);
    if (kNotOfTheRun.contains(setting.name)) continue;
    const std::set<std::string>* const group = group_of(setting.name);
    if (setting.given && group == nullptr && !is_same(setting.value, value)) {
      const std::string shown = setting.is_flag ? setting.name : setting.name + " " + printable(setting.value);
      throw InvalidArgument(
          shown + " contradicts " + name() + ", whose run " +
          (setting.is_flag || value.empty() ? "was without it" : "has " + setting.name + " " + printable(value)) +
          "; drop it, or begin a new run without --resume");
    }
    if (setting.given || !is_saved) continue;
    if (group != nullptr &&
        std::any_of(group->begin(), group->end(), [&](const std::string& other) { return options.given(other); }))
      continue;
    taken.emplace_back(setting.name, value);
  }
  if (!saved.empty())
    tensors_.refuse("is of a run with the option " + in_quotes(saved.begin()->first) +
                    ", which this deviceloop does not have; resume it with the one that wrote it");
  for (const auto& [option, text] : taken) options.set(option, text);
  options.clear("--weights");  // the checkpoint has later ones
}

void CheckpointInput::resume(Trainer& trainer) const {
  TrainerAccess::resume(trainer, tensors_, "the training data of this one", "the validation data of this one");
}

std::unique_ptr<const CheckpointInput> open_checkpoint(OptionSet& options) {
  if (options.file("--resume").empty()) return nullptr;
  auto checkpoint = std::make_unique<const CheckpointInput>(options.file("--resume"));
  checkpoint->take_options(options);
  return checkpoint;
}

CheckpointOutput::CheckpointOutput(const OptionSet& options, const std::string& path, std::int64_t every)
    : path_(path), every_(every), options_(options_of_run(options)) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (path == "-" || (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)))
    options.refuse("--checkpoint", "be the name of a file, whose folder keeps the one before it");
  OutputFile(std::string(path));
  OutputFile(previous_of(path));
}

std::int64_t CheckpointOutput::steps_until_due(std::int64_t done, std::int64_t total) const {
  return every_ == 0 ? total - done : std::min(total - done, every_ - done % every_);
}

void CheckpointOutput::write(const Trainer& trainer, EndOfRun end) {
  try {
    JsonObject run(JsonLayout::one_line);
    for (const auto& [name, value] : options_) run.add(name, std::get<std::string>(value));
    if (end == EndOfRun::patience || end == EndOfRun::target_loss) run.add("end", name_or_null(end));
    write_rotated(path_, [&](OutputFile& file) {
      TrainerAccess::save_state(trainer, file, network_, {{kRunKey, run.text()}});
    });
    problem_.clear();
  } catch (const std::exception& error) {
    problem_ = error.what();
    write_all(STDERR_FILENO, "deviceloop: " + printable(problem_) + "; training goes on\n");
  }
  written_ = Clock::now();
}

std::string CheckpointOutput::name() const { return printable(path_); }

}  // namespace deviceloop::cli
