#include "checkpoint_metadata.h"

#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "../checksum.h"
#include "../names.h"
#include "../step/scalars.h"
#include "../step/step.h"
#include "../text.h"
#include "flat_json.h"
#include "json_text.h"

namespace deviceloop {
namespace {

constexpr std::uint64_t kVersion = 1;

/// Which comparison a setting belongs to. `batches`: it has a meaning where steps take some samples, not all.
enum class Rule { meaning, batches, order, free };

/// visit(name, member, rule) of each setting: what is written, read and compared.
template <class Training, class Visit>
void for_each_setting(Training& training, const Visit& visit) {
  visit("loss", training.loss, Rule::meaning);
  visit("huber_delta", training.huber_delta, Rule::meaning);
  visit("reduction", training.reduction, Rule::meaning);
  auto& optimizer = training.optimizer;
  visit("optimizer.kind", optimizer.kind, Rule::meaning);
  visit("optimizer.learning_rate", optimizer.learning_rate, Rule::free);
  visit("optimizer.momentum", optimizer.momentum, Rule::meaning);
  visit("optimizer.nesterov", optimizer.nesterov, Rule::meaning);
  visit("optimizer.weight_decay", optimizer.weight_decay, Rule::meaning);
  visit("optimizer.beta1", optimizer.beta1, Rule::meaning);
  visit("optimizer.beta2", optimizer.beta2, Rule::meaning);
  visit("optimizer.epsilon", optimizer.epsilon, Rule::meaning);
  visit("optimizer.clip_norm", optimizer.clip_norm, Rule::meaning);
  visit("optimizer.clip_value", optimizer.clip_value, Rule::meaning);
  visit("optimizer.schedule.kind", optimizer.schedule.kind, Rule::free);
  visit("optimizer.schedule.period", optimizer.schedule.period, Rule::free);
  visit("optimizer.schedule.factor", optimizer.schedule.factor, Rule::free);
  visit("optimizer.schedule.end_rate", optimizer.schedule.end_rate, Rule::free);
  visit("optimizer.schedule.warmup_steps", optimizer.schedule.warmup_steps, Rule::free);
  visit("samples", training.samples, Rule::batches);
  visit("batch_size", training.batch_size, Rule::meaning);
  visit("shuffle", training.shuffle, Rule::batches);
  visit("watch.every", training.watch.every, Rule::free);
  visit("watch.patience", training.watch.patience, Rule::free);
  visit("watch.target_loss", training.watch.target_loss, Rule::free);
  visit("watch.keep_best", training.watch.keep_best, Rule::meaning);
  visit("precision", training.precision, Rule::meaning);
  visit("formulation", training.formulation, Rule::free);
  visit("reprojection_steps", training.reprojection_steps, Rule::free);
  visit("seed", training.seed, Rule::order);
}

/// One spelling of settings that say the same. Without data their number is taken for that of the other side.
TrainingSpec normalized(TrainingSpec training, std::int64_t samples) {
  Optimizer& optimizer = training.optimizer;
  const OptimizerMembers members = members_of(optimizer.kind);
  optimizer.weight_decay = members.weight_decay ? weight_decay_of(optimizer) : 0;
  optimizer.beta2 = members.beta2 ? beta2_of(optimizer) : 0;
  if (training.samples == 0) training.samples = samples;
  if (training.batch_size == training.samples) training.batch_size = 0;
  return training;
}

// ---- values as messages show them

template <class Value>
std::string value_text(const Value& value) {
  if constexpr (std::is_enum_v<Value>)
    return name_or_null(value);
  else
    return json_text(value);
}
std::string value_text(const std::optional<double>& value) { return value ? json_text(*value) : "none"; }

// ---- writing

template <class Value>
void add(JsonObject& object, const char* key, const Value& value) {
  if constexpr (std::is_enum_v<Value>)
    object.add(key, name_or_null(value));
  else
    object.add(key, value);
}
/// Left out where there is none.
void add(JsonObject& object, const char* key, const std::optional<double>& value) {
  if (value) object.add(key, *value);
}

// ---- reading

/// Takes one key after the other out of an object; what then is left is unknown.
class Reader {
 public:
  Reader(const SafeTensorsFile& file, FlatObject object) : file_(file), object_(std::move(object)) {}

  [[noreturn]] void refuse(const std::string& problem) const {
    file_.refuse(std::string("its metadata ") + in_quotes(kCheckpointKey) + " " + problem +
                 "; it was not written by this version of deviceloop, load a checkpoint that was");
  }

  bool has(const std::string& key) const { return object_.contains(key); }

  void read(const std::string& key, bool& value) { value = take<bool>(key, "true or false"); }
  void read(const std::string& key, std::uint64_t& value) { value = take<std::uint64_t>(key, "a whole number"); }
  void read(const std::string& key, std::int64_t& value) {
    const auto number = take<std::uint64_t>(key, "a whole number");
    if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      refuse("has " + std::to_string(number) + " as its " + key + ", which is too large");
    value = static_cast<std::int64_t>(number);
  }
  void read(const std::string& key, double& value) {
    const auto at = object_.find(key);
    if (at != object_.end() && std::holds_alternative<std::uint64_t>(at->second))
      value = static_cast<double>(take<std::uint64_t>(key, ""));
    else
      value = take<double>(key, "a number");
  }
  template <class Enum, std::enable_if_t<std::is_enum_v<Enum>, int> = 0>
  void read(const std::string& key, Enum& value) {
    const auto name = take<std::string>(key, "a name");
    for (int number = 0; name_or_null(static_cast<Enum>(number)) != nullptr; ++number)
      if (name == name_or_null(static_cast<Enum>(number))) {
        value = static_cast<Enum>(number);
        return;
      }
    refuse("has the unknown " + key + " " + in_quotes(name));
  }
  void read(const std::string& key, std::optional<double>& value) {
    if (!has(key)) return;
    read(key, value.emplace());
  }
  void read_checksum(const std::string& key, std::optional<std::uint64_t>& value) {
    if (!has(key)) return;
    const auto text = take<std::string>(key, "16 hexadecimal digits");
    std::uint64_t number = 0;
    for (const char digit : text) number = number << 4 | std::string_view("0123456789abcdef").find(digit);
    if (text.size() != 16 || checksum_text(number) != text)
      refuse("has " + in_quotes(text) + " as its " + key + ", which is 16 hexadecimal digits");
    value = number;
  }
  void end() const {
    if (!object_.empty()) refuse("has the unknown key " + in_quotes(object_.begin()->first));
  }

 private:
  template <class Value>
  Value take(const std::string& key, const std::string& what) {
    const auto at = object_.find(key);
    if (at == object_.end()) refuse("has no " + key);
    if (!std::holds_alternative<Value>(at->second)) refuse("has another value than " + what + " as its " + key);
    Value value = std::move(std::get<Value>(at->second));
    object_.erase(at);
    return value;
  }

  const SafeTensorsFile& file_;
  FlatObject object_;
};

}  // namespace

std::string checkpoint_metadata_text(const CheckpointMetadata& metadata) {
  JsonObject object(JsonLayout::one_line);
  object.add("version", kVersion);
  object.add("steps_done", metadata.steps_done);
  for_each_setting(metadata.training, [&](const char* name, const auto& value, Rule) { add(object, name, value); });
  if (metadata.data) object.add("data", checksum_text(*metadata.data));
  if (metadata.validation) object.add("validation", checksum_text(*metadata.validation));
  if (metadata.best) {
    object.add("best.steps", metadata.best->steps);
    object.add("best.loss", metadata.best->loss);
    add(object, "best.accuracy", metadata.best->accuracy);
  }
  object.add("evaluations_since_best", metadata.evaluations_since_best);
  object.add("gram_steps", metadata.gram_steps);
  return object.text();
}

std::optional<CheckpointMetadata> read_checkpoint_metadata(const SafeTensorsFile& file) {
  const auto found = file.metadata().find(kCheckpointKey);
  if (found == file.metadata().end()) return std::nullopt;
  FlatObject object;
  const std::string problem = read_flat_json(found->second, object);
  Reader reader(file, std::move(object));
  if (!problem.empty()) reader.refuse(problem);
  std::uint64_t version = 0;
  reader.read("version", version);
  if (version != kVersion)
    reader.refuse("has the version " + std::to_string(version) + ", and this deviceloop reads version " +
                  std::to_string(kVersion));
  CheckpointMetadata metadata;
  reader.read("steps_done", metadata.steps_done);
  for_each_setting(metadata.training, [&](const char* name, auto& value, Rule) { reader.read(name, value); });
  reader.read_checksum("data", metadata.data);
  reader.read_checksum("validation", metadata.validation);
  if (reader.has("best.steps")) {
    Evaluation& best = metadata.best.emplace();
    reader.read("best.steps", best.steps);
    reader.read("best.loss", best.loss);
    reader.read("best.accuracy", best.accuracy);
  }
  reader.read("evaluations_since_best", metadata.evaluations_since_best);
  reader.read("gram_steps", metadata.gram_steps);
  reader.end();
  const TrainingSpec& training = metadata.training;
  const bool may_have_gram = training.formulation == Formulation::gram && training.samples > 0 &&
                             (training.reprojection_steps == 0 || metadata.gram_steps < training.reprojection_steps);
  if (metadata.gram_steps > 0 && !may_have_gram)
    reader.refuse("has " + std::to_string(metadata.gram_steps) + " gram_steps, which its settings do not allow");
  return metadata;
}

std::string difference_of(const TrainingSpec& saved_settings, const TrainingSpec& own_settings, Settings which) {
  const TrainingSpec saved = normalized(saved_settings, own_settings.samples),
                     own = normalized(own_settings, saved_settings.samples);
  const auto counts = [&](Rule rule) {
    switch (rule) {
      case Rule::meaning:
        return true;
      case Rule::batches:
        return has_minibatches(saved) && saved.samples > 0;
      case Rule::order:
        return which == Settings::all || (has_minibatches(saved) && saved.shuffle);
      case Rule::free:
        break;
    }
    return which == Settings::all;
  };
  std::map<std::string, std::string> owns;
  for_each_setting(own, [&](const char* name, const auto& value, Rule) { owns[name] = value_text(value); });
  std::string difference;
  for_each_setting(saved, [&](const char* name, const auto& value, Rule rule) {
    if (!difference.empty() || !counts(rule) || value_text(value) == owns[name]) return;
    difference = std::string(name) + " " + value_text(value) + ", and the trainer has " + owns[name];
  });
  return difference;
}

}  // namespace deviceloop
