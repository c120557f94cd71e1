#include "optimizer_options.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "names.h"
#include "report.h"
#include "step/scalars.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

constexpr std::int64_t kMaxCount = std::numeric_limits<std::int64_t>::max();

struct MemberOption {
  const char* name;
  bool OptimizerMembers::*member;
};
constexpr MemberOption kMemberOptions[] = {{"--momentum", &OptimizerMembers::momentum},
                                           {"--nesterov", &OptimizerMembers::nesterov},
                                           {"--weight-decay", &OptimizerMembers::weight_decay},
                                           {"--beta1", &OptimizerMembers::beta1},
                                           {"--beta2", &OptimizerMembers::beta2},
                                           {"--epsilon", &OptimizerMembers::epsilon},
                                           {"--clip-norm", &OptimizerMembers::clipping},
                                           {"--clip-value", &OptimizerMembers::clipping}};

/// All that there are, or those with a member.
std::vector<Choice<OptimizerKind>> optimizers(bool OptimizerMembers::*member = nullptr) {
  std::vector<Choice<OptimizerKind>> choices;
  for (int number = 0; name_or_null(static_cast<OptimizerKind>(number)) != nullptr; ++number) {
    const auto kind = static_cast<OptimizerKind>(number);
    if (member == nullptr || members_of(kind).*member) choices.push_back({optimizer_name(kind), kind});
  }
  return choices;
}

void refuse_missing_members(const OptionSet& options, OptimizerKind kind) {
  for (const auto& [name, member] : kMemberOptions)
    if (options.given(name) && !(members_of(kind).*member)) {
      const bool is_flag = member == &OptimizerMembers::nesterov;
      throw InvalidArgument(name + (is_flag ? "" : " " + in_quotes(options.text(name))) + " belongs to --optimizer " +
                            choices_text(optimizers(member)) + ", not to " + optimizer_name(kind) +
                            "; choose one that has it, or drop " + name);
    }
}

/// The smallest normal number, and how a message shows it, rounded up.
std::pair<double, const char*> least_normal(Precision precision) {
  if (element_type(precision) == ElementType::float32)
    return {std::numeric_limits<float>::min(), "1.2e-38, fp32's smallest normal number (or add --precision fp64)"};
  return {std::numeric_limits<double>::min(), "2.3e-308, fp64's smallest normal number"};
}

double read_learning_rate(const OptionSet& options, Precision precision) {
  const double rate = options.number("--lr");
  if (element_type(precision) == ElementType::float32 && !std::isfinite(static_cast<float>(rate)))
    options.refuse("--lr", "be in the range of fp32, up to 3.4e38 (or add --precision fp64)");
  const auto [least, least_text] = least_normal(precision);
  if (rate > 0 && rate < least) options.refuse("--lr", std::string("be 0 or at least ") + least_text);
  return rate;
}

double fraction(const OptionSet& options, const std::string& name) {
  const std::string must = "be a number of at least 0 and less than 1";
  const double value = options.number(name, must);
  if (value >= 1) options.refuse(name, must);
  return value;
}

/// The fields of --schedule: "step:100:0.5" has three.
std::vector<std::string_view> fields_of(std::string_view text) {
  std::vector<std::string_view> fields;
  for (std::size_t colon = text.find(':'); colon != std::string_view::npos; colon = text.find(':')) {
    fields.push_back(text.substr(0, colon));
    text.remove_prefix(colon + 1);
  }
  fields.push_back(text);
  return fields;
}

/// None for what is malformed.
std::optional<Schedule> parse_schedule(std::string_view text) {
  const std::vector<std::string_view> fields = fields_of(text);
  const std::string_view kind = fields.front();
  Schedule schedule;
  std::optional<double> factor = schedule.factor, end_rate = schedule.end_rate;
  if (kind == "constant" && fields.size() == 1) {
    schedule.kind = ScheduleKind::constant;
  } else if (kind == "step" && fields.size() == 3) {
    schedule.kind = ScheduleKind::step;
    schedule.period = parse<std::int64_t>(fields[1]).value_or(0);
    if (schedule.period < 1) return std::nullopt;
    factor = parse<double>(fields[2]);
  } else if (kind == "exponential" && fields.size() == 2) {
    schedule.kind = ScheduleKind::exponential;
    factor = parse<double>(fields[1]);
  } else if (kind == "cosine" && fields.size() <= 2) {
    schedule.kind = ScheduleKind::cosine;
    schedule.period = 1;
    if (fields.size() == 2) end_rate = parse<double>(fields[1]);
  } else {
    return std::nullopt;
  }
  if (!factor || !std::isfinite(*factor) || *factor <= 0) return std::nullopt;
  if (!end_rate || !std::isfinite(*end_rate) || *end_rate < 0) return std::nullopt;
  schedule.factor = *factor;
  schedule.end_rate = *end_rate;
  return schedule;
}

Schedule read_schedule(const OptionSet& options) {
  const std::optional<Schedule> parsed = parse_schedule(options.text("--schedule"));
  if (!parsed)
    options.refuse("--schedule",
                   "be constant, step:EVERY:FACTOR, exponential:FACTOR or cosine[:END], with EVERY a whole number from "
                   "1, FACTOR above 0 and END at least 0");
  Schedule schedule = *parsed;
  schedule.warmup_steps = options.integer("--warmup", 0, kMaxCount);
  return schedule;
}

}  // namespace

void declare_optimizer(OptionSet& options) {
  const auto of = [](bool OptimizerMembers::*member) { return "of " + choices_text(optimizers(member)); };
  options.add("--optimizer", "NAME", "gd", choices_text(optimizers()));
  options.add("--lr", "RATE", "1e-6", "learning rate; lower it if a run diverges");
  options.add("--momentum", "M", "0", of(&OptimizerMembers::momentum));
  options.add_flag("--nesterov", of(&OptimizerMembers::nesterov) + ": Nesterov's momentum");
  options.add("--weight-decay", "D", "0, adamw 0.01", "of all but gd");
  options.add("--beta1", "B", "0.9", of(&OptimizerMembers::beta1));
  options.add("--beta2", "B", "0.999, rmsprop 0.99", of(&OptimizerMembers::beta2));
  options.add("--epsilon", "E", "1e-8", of(&OptimizerMembers::epsilon));
  options.add("--schedule", "NAME", "constant",
              "of the rate: constant, step:EVERY:FACTOR,\nexponential:FACTOR or cosine[:END]");
  options.add("--warmup", "STEPS", "0", "steps in which the rate grows to its value");
  options.add("--clip-norm", "C", "0", "clip all gradients to this norm; 0: no");
  options.add("--clip-value", "C", "0", "clip each gradient to [-C, C]; 0: no");
}

Optimizer read_optimizer(const OptionSet& options, Precision precision) {
  Optimizer optimizer;
  optimizer.kind = choose(options, "--optimizer", optimizers());
  refuse_missing_members(options, optimizer.kind);
  optimizer.learning_rate = read_learning_rate(options, precision);
  optimizer.momentum = fraction(options, "--momentum");
  optimizer.nesterov = options.given("--nesterov");
  if (optimizer.nesterov && optimizer.momentum == 0)
    throw InvalidArgument("--nesterov needs a momentum above 0; add --momentum 0.9 or another one, or drop it");
  if (options.given("--weight-decay")) optimizer.weight_decay = options.number("--weight-decay");
  optimizer.beta1 = fraction(options, "--beta1");
  if (options.given("--beta2")) optimizer.beta2 = fraction(options, "--beta2");
  optimizer.epsilon = options.number("--epsilon");
  if (optimizer.epsilon == 0) options.refuse("--epsilon", "be above 0, such as 1e-8");
  optimizer.clip_norm = options.number("--clip-norm");
  optimizer.clip_value = options.number("--clip-value");
  if (optimizer.clip_norm > 0 && optimizer.clip_value > 0)
    throw InvalidArgument("--clip-norm " + options.text("--clip-norm") + " and --clip-value " +
                          options.text("--clip-value") + " are both given; drop one of the two");
  optimizer.schedule = read_schedule(options);
  return optimizer;
}

}  // namespace deviceloop::cli
