#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <deviceloop/version.h>

#include "accuracy.h"
#include "elementary.h"
#include "files/json_text.h"
#include "matrix_ops.h"
#include "names.h"
#include "planning/decision.h"
#include "step/scalars.h"
#include "step/step.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

constexpr std::int64_t kShownColumns = 8;

/// printf, with one spelling of what is not a number: the sign of a NaN says nothing.
std::string format(const char* pattern, double value) {
  if (std::isnan(value)) return "nan";
  char text[400];  // room for the largest double without an exponent
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

/// What the loss takes predictions for.
template <class T>
void to_probabilities(HostMatrix& prediction, Loss loss) {
  T* row = static_cast<T*>(prediction.view().data);
  for (std::int64_t r = 0; r < prediction.rows; ++r, row += prediction.columns) {
    const std::span values(row, static_cast<std::size_t>(prediction.columns));
    if (loss == Loss::binary_cross_entropy) {
      for (T& value : values) value = elementary::sigmoid(value);
      continue;
    }
    const T largest = *std::max_element(values.begin(), values.end());
    T sum = 0;
    for (T& value : values) sum += value = elementary::exp(value - largest);
    for (T& value : values) value /= sum;
  }
}

template <class T>
std::string rows_text(const HostMatrix& prediction, const HostMatrix& target) {
  const T* p = static_cast<const T*>(prediction.view().data);
  const T* y = static_cast<const T*>(target.view().data);
  std::string text;
  for (std::int64_t row = 0; row < target.rows; ++row) {
    for (std::int64_t column = 0; column < std::min(target.columns, kShownColumns); ++column) {
      const std::int64_t i = row * target.columns + column;
      const std::string number = format("%.6g", static_cast<double>(p[i] - y[i]));
      text.append(number.size() < 13 ? 13 - number.size() : 1, ' ');
      text += number;
    }
    text += target.columns > kShownColumns ? "  ...\n" : "\n";
  }
  return text;
}

bool is_plain(const Optimizer& optimizer) {
  return optimizer.kind == OptimizerKind::gradient_descent && optimizer.schedule.kind == ScheduleKind::constant &&
         optimizer.schedule.warmup_steps == 0;
}

/// What the optimizer uses, defaults included.
JsonObject json_of(const Optimizer& optimizer) {
  const OptimizerMembers members = members_of(optimizer.kind);
  JsonObject json(JsonLayout::lines);
  json.add("name", optimizer_name(optimizer.kind));
  json.add("learning_rate", optimizer.learning_rate);
  if (members.momentum) json.add("momentum", optimizer.momentum);
  if (members.nesterov) json.add("nesterov", optimizer.nesterov);
  if (members.weight_decay) json.add("weight_decay", weight_decay_of(optimizer));
  if (members.beta1) json.add("beta1", optimizer.beta1);
  if (members.beta2) json.add("beta2", beta2_of(optimizer));
  if (members.epsilon) json.add("epsilon", optimizer.epsilon);
  if (optimizer.clip_norm > 0) json.add("clip_norm", optimizer.clip_norm);
  if (optimizer.clip_value > 0) json.add("clip_value", optimizer.clip_value);
  return json;
}

JsonObject json_of(const Schedule& schedule) {
  JsonObject json(JsonLayout::lines);
  json.add("name", name_or_null(schedule.kind));
  switch (schedule.kind) {
    case ScheduleKind::constant:
      break;
    case ScheduleKind::step:
      json.add("every", schedule.period);
      json.add("factor", schedule.factor);
      break;
    case ScheduleKind::exponential:
      json.add("factor", schedule.factor);
      break;
    case ScheduleKind::cosine:
      json.add("period", schedule.period);
      json.add("end_rate", schedule.end_rate);
      break;
  }
  if (schedule.warmup_steps > 0) json.add("warmup_steps", schedule.warmup_steps);
  return json;
}

bool is_plain(const TrainingSpec& training) {
  return training.loss == Loss::squared_error && training.reduction == Reduction::sum && !training.sample_weights;
}

struct LossText {
  const char* option;
  const char* plural;
};

LossText text_of(Loss loss) {
  switch (loss) {
    case Loss::squared_error:
      return {"squared", "squared errors"};
    case Loss::absolute_error:
      return {"absolute", "absolute errors"};
    case Loss::huber:
      return {"huber", "Huber losses"};
    case Loss::binary_cross_entropy:
      return {"bce", "binary cross-entropies"};
    case Loss::cross_entropy:
      break;
  }
  return {"cross-entropy", "cross-entropies"};
}

JsonObject json_of(const Evaluation& evaluation) {
  JsonObject json(JsonLayout::lines);
  json.add("steps", evaluation.steps);
  json.add("loss", evaluation.loss);
  if (evaluation.accuracy) json.add("accuracy", *evaluation.accuracy);
  return json;
}

bool watches(const RunResult& result) { return result.validation_rows > 0 || result.training.watch.target_loss; }

JsonObject json_of_validation(const RunResult& result) {
  JsonObject json(JsonLayout::lines);
  json.add("rows", result.validation_rows);
  JsonList evaluations(JsonLayout::lines);
  for (const Evaluation& evaluation : result.evaluations) evaluations.add(json_of(evaluation));
  json.add("evaluations", evaluations);
  json.add("best", result.best ? std::optional(json_of(*result.best)) : std::nullopt);
  json.add("kept", result.training.watch.keep_best && result.best ? "best" : "last");
  return json;
}

}  // namespace

std::string formulation_text(Formulation formulation) {
  return formulation == Formulation::primal ? "" : std::string(", ") + name(formulation);
}

const char* optimizer_name(OptimizerKind kind) {
  return kind == OptimizerKind::gradient_descent ? "gd" : name_or_null(kind);
}

const char* loss_name(Loss loss) { return text_of(loss).option; }

std::string objective_text(const TrainingSpec& training) {
  return std::string(name_or_null(training.reduction)) + (training.sample_weights ? " of weighted " : " of ") +
         text_of(training.loss).plural +
         (training.loss == Loss::huber ? " with delta " + format("%g", training.huber_delta) : "");
}

std::string output_activation_text(const NetworkSpec& network) {
  return network.output_activation == Activation::identity
             ? ""
             : ", output activation " + activation_text(network.output_activation, network.leaky_slope);
}

std::string batches_text(const TrainingSpec& training, std::int64_t epochs) {
  std::string text;
  if (has_minibatches(training))
    text = std::string(training.shuffle ? ", shuffled" : ", unshuffled") + " batches of " +
           std::to_string(training.batch_size);
  if (epochs > 0) text += ", " + std::to_string(epochs) + (epochs == 1 ? " epoch" : " epochs");
  return text;
}

std::string optimizer_text(const Optimizer& optimizer) {
  if (is_plain(optimizer)) return "";
  std::string text = std::string(", ") + optimizer_name(optimizer.kind);
  if (optimizer.momentum > 0)
    text += (optimizer.nesterov ? " with Nesterov's momentum " : " with momentum ") + format("%g", optimizer.momentum);
  const Schedule& schedule = optimizer.schedule;
  if (schedule.kind != ScheduleKind::constant) text += std::string(", ") + name_or_null(schedule.kind) + " schedule";
  if (schedule.warmup_steps > 0)
    text += ", " + std::to_string(schedule.warmup_steps) + (schedule.warmup_steps == 1 ? " step" : " steps") +
            " of warm-up";
  if (optimizer.clip_norm > 0) text += ", gradients clipped to norm " + format("%g", optimizer.clip_norm);
  if (optimizer.clip_value > 0) text += ", gradients clipped to " + format("%g", optimizer.clip_value);
  return text;
}

std::string plan_line(const Plan& plan, const TrainingSpec& training, const NetworkSpec& network, std::int64_t epochs) {
  std::string where = row_of(plan.executor).is_on_gpu
                          ? "CUDA device " + std::to_string(plan.device)
                          : std::to_string(plan.threads) + (plan.threads == 1 ? " thread" : " threads");
  std::string line = std::string("plan ") + name(plan.executor) + ": " + plan.reason + " (" + where + ", " +
                     name(training.precision) + formulation_text(plan.formulation);
  line += optimizer_text(training.optimizer);
  if (!is_plain(training)) line += ", " + objective_text(training);
  line += output_activation_text(network) + batches_text(training, epochs);
  if (training.reprojection_steps > 0)
    line += ", reprojected every " + std::to_string(training.reprojection_steps) + " steps";
  return line + ")\n";
}

bool is_shown(std::int64_t step) { return step % (step <= 100 ? 10 : 100) == 0; }

std::string loss_line(std::int64_t step, double loss) { return std::to_string(step) + ": " + loss_text(loss) + "\n"; }

std::string loss_text(double loss) {
  const double size = std::fabs(loss);
  return format(size == 0 || (size >= 1 && size < 1e15) ? "%.2f" : "%.6g", loss);
}

std::string run_title(const RunResult& result) {
  constexpr std::size_t kFirst = 4, kLast = 3;
  const std::vector<std::int64_t>& widths = result.network.widths;
  std::string text;
  for (std::size_t i = 0; i < widths.size(); ++i) {
    const bool left_out = widths.size() > kFirst + kLast + 1 && i >= kFirst && i < widths.size() - kLast;
    if (left_out && i > kFirst) continue;
    text += (i == 0 ? "" : "-") + (left_out ? "..." : std::to_string(widths[i]));
  }
  return text + (result.network.bias ? " with biases" : "") + " on " + counted(result.training.samples, "sample");
}

std::string percent_text(double share) { return format("%.2f %%", 100 * share); }

std::string evaluation_line(const Evaluation& evaluation) {
  return "validation after " + std::to_string(evaluation.steps) + (evaluation.steps == 1 ? " step" : " steps") +
         ": loss " + loss_text(evaluation.loss) +
         (evaluation.accuracy ? ", accuracy " + percent_text(*evaluation.accuracy) : std::string()) + "\n";
}

std::string difference_rows(const std::string& when, HostMatrix prediction, const HostMatrix& target, Loss loss) {
  const std::string rows = target.rows == 1 ? "row" : std::to_string(target.rows) + " rows";
  const bool are_probabilities = loss == Loss::binary_cross_entropy || loss == Loss::cross_entropy;
  return (are_probabilities ? "probability minus target, first " : "prediction minus target, first ") + rows + ", " +
         when + ":\n" + with_type(target.type, [&]<class T>(T*) {
           if (are_probabilities) to_probabilities<T>(prediction, loss);
           return rows_text<T>(prediction, target);
         });
}

std::string duration_text(double milliseconds) {
  return milliseconds < 1000 ? format("%.1f ms", milliseconds) : format("%.2f s", milliseconds / 1000);
}

double total_ms(const std::vector<PreparationStage>& preparation) {
  double total = 0;
  for (const PreparationStage& stage : preparation) total += stage.ms;
  return total;
}

std::string preparation_line(const std::vector<PreparationStage>& preparation) {
  std::string line = "prepared in " + duration_text(total_ms(preparation));
  const char* separator = ": ";
  for (const PreparationStage& stage : preparation) {
    line += separator + stage.name + " " + format("%.1f", stage.ms);
    separator = ", ";
  }
  return line + "\n";
}

std::string step_time_text(double microseconds) { return format("%.2f us a step", microseconds); }

std::string prediction_text(double microseconds) {
  return microseconds <= 0 ? "-"
                           : format(microseconds < 1     ? "%.2g"
                                    : microseconds < 100 ? "%.1f"
                                                         : "%.0f",
                                    microseconds);
}

CandidateRow candidate_headings(Formulation formulation) {
  return {"executor", "verdict", "memory", "predicted us a step" + formulation_text(formulation), "floor", "reason"};
}

CandidateRow candidate_row(const Candidate& candidate) {
  return {name(candidate.executor),
          candidate.accepted ? "accepted" : "refused",
          candidate.bytes == 0 ? "-" : bytes_text(candidate.bytes),
          prediction_text(candidate.predicted_us_per_step),
          prediction_text(candidate.floor_us_per_step),
          candidate.reason.empty() ? "-" : candidate.reason};
}

std::optional<bool> loss_moved(std::span<const double> losses) {
  if (losses.size() < 2) return std::nullopt;
  return std::any_of(losses.begin() + 1, losses.end(), [&](double loss) { return loss != losses.front(); });
}

std::string note_lines(const RunResult& result, std::int64_t rows, std::int64_t samples) {
  std::string text;
  const std::string looked_at =
      rows < samples ? "any of the " + std::to_string(rows) + " samples looked at" : "any sample";
  for (const int layer : result.inactive_layers)
    text += "note: no hidden unit of layer " + std::to_string(layer) + " is active for " + looked_at +
            ", so its weights no longer change; lower --lr, or draw others by --init or --seed\n";
  // A loss of 0 cannot become smaller.
  if (loss_moved(result.losses) == false && result.losses.front() != 0)
    text += "note: the loss is the same after all " + std::to_string(result.steps) + " steps" +
            (result.inactive_layers.empty() ? "; raise --lr\n" : "\n");
  return text;
}

void write_history(OutputFile& file, const RunResult& result) {
  constexpr std::size_t kPiece = 1 << 16;
  const bool is_validated = result.validation_rows > 0;
  const bool has_accuracy = is_validated && counted_predictions(result.training.loss, 1, 1) > 0;
  std::string text =
      std::string("step,loss") + (is_validated ? ",validation_loss" : "") + (has_accuracy ? ",accuracy" : "") + "\n";
  std::int64_t step = result.first_step;
  auto evaluation = result.evaluations.begin();
  for (const double loss : result.losses) {
    text += std::to_string(step++) + "," + format("%.17g", loss);
    // Of the parameters that the step led to; other steps have none.
    const bool is_here = evaluation != result.evaluations.end() && (evaluation->steps == step || result.steps == 0);
    if (is_validated) text += "," + (is_here ? format("%.17g", evaluation->loss) : std::string());
    if (has_accuracy) text += "," + (is_here ? format("%.17g", evaluation->accuracy.value_or(0)) : std::string());
    if (is_here) ++evaluation;
    text += "\n";
    if (text.size() < kPiece) continue;
    file.write(text);
    text.clear();
  }
  file.write(text);
}

void write_json(OutputFile& file, const RunResult& result) { file.write(run_json(result)); }

std::string run_json(const RunResult& result) {
  JsonObject json(JsonLayout::lines);
  json.add("version", DEVICELOOP_VERSION);
  json.add("plan", name(result.plan.executor));
  json.add("reason", result.plan.reason);
  json.add("formulation", name(result.plan.formulation));
  if (result.plan.formulation == Formulation::gram) json.add("reprojection_steps", result.training.reprojection_steps);
  if (!is_plain(result.training.optimizer)) {
    json.add("optimizer", json_of(result.training.optimizer));
    json.add("schedule", json_of(result.training.optimizer.schedule));
  }
  if (!is_plain(result.training)) {
    json.add("loss", loss_name(result.training.loss));
    if (result.training.loss == Loss::huber) json.add("huber_delta", result.training.huber_delta);
    json.add("reduction", name_or_null(result.training.reduction));
    if (result.training.sample_weights) json.add("sample_weights", true);
  }
  if (result.network.output_activation != Activation::identity)
    json.add("output_activation", activation_text(result.network.output_activation, result.network.leaky_slope));
  if (!result.scaling.is_identity()) {
    JsonObject scaling(JsonLayout::lines);
    scaling.add("factor", result.scaling.factor);
    scaling.add("standardized", !result.scaling.mean.empty());
    json.add("input_scaling", scaling);
  }
  if (!result.target_scaling.is_identity()) {
    JsonObject scaling(JsonLayout::lines);
    scaling.add("mean", result.target_scaling.mean);
    scaling.add("deviation", result.target_scaling.deviation);
    json.add("target_scaling", scaling);
  }
  if (has_minibatches(result.training)) {
    json.add("batch_size", result.training.batch_size);
    json.add("shuffle", result.training.shuffle);
  }
  if (result.epochs > 0) json.add("epochs", result.epochs);
  json.add("precision", name(result.training.precision));
  json.add("threads", result.plan.threads);
  if (result.first_step > 0) json.add("first_step", result.first_step);
  json.add("steps", result.steps);
  json.add("loss_first", result.losses.empty() ? std::nullopt : std::optional(result.losses.front()));
  json.add("loss_last", result.losses.empty() ? std::nullopt : std::optional(result.losses.back()));
  json.add("us_per_step", result.us_per_step);
  json.add("predicted_us_per_step", result.plan.predicted_us_per_step);
  json.add("floor_us_per_step",
           result.plan.floor_us_per_step > 0 ? std::optional(result.plan.floor_us_per_step) : std::nullopt);
  json.add("total_ms", result.total_ms);
  json.add("prepare_ms", total_ms(result.preparation));
  if (!result.preparation.empty()) {
    JsonObject preparation(JsonLayout::lines);
    for (const PreparationStage& stage : result.preparation) preparation.add(stage.name, stage.ms);
    json.add("preparation", preparation);
  }
  json.add("first_non_finite_step", result.first_non_finite_step);
  json.add("loss_moved", loss_moved(result.losses));
  json.add("inactive_layers", result.inactive_layers);
  if (watches(result)) {
    json.add("end", name_or_null(result.end));
    json.add("validation", result.validation_rows > 0 ? std::optional(json_of_validation(result)) : std::nullopt);
  }
  if (!result.algorithms.empty()) {
    JsonList algorithms(JsonLayout::lines);
    for (const std::string& algorithm : result.algorithms) algorithms.add(algorithm);
    json.add("algorithms", algorithms);
  }
  return json.text() + "\n";
}

}  // namespace deviceloop::cli
