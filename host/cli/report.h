// What a run says: the lines for people, and the history and the JSON for programs.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>
#include <deviceloop/trainer.h>

#include "files/output_file.h"
#include "input_scaling.h"
#include "parameters.h"

namespace deviceloop::cli {

/// ", gram" behind what is said of a run's time; nothing for primal.
std::string formulation_text(Formulation formulation);

/// "gd", "adam": as --optimizer takes it.
const char* optimizer_name(OptimizerKind kind);

/// "squared", "bce": as --loss takes it.
const char* loss_name(Loss loss);
/// "sum of squared errors", "mean of weighted Huber losses with delta 0.5".
std::string objective_text(const TrainingSpec& training);

/// ", output activation sigmoid"; nothing for identity.
std::string output_activation_text(const NetworkSpec& network);

/// ", shuffled batches of 32, 3 epochs"; nothing for steps that take all samples and are counted. `epochs` 0: they are.
std::string batches_text(const TrainingSpec& training, std::int64_t epochs);

/// ", sgd with momentum 0.9, cosine schedule" behind what is said of a run; nothing for gradient descent at a constant
/// rate.
std::string optimizer_text(const Optimizer& optimizer);

/// "plan cpu: no GPU to use: built without CUDA (1 thread, fp32)\n", "... (1 thread, fp32, gram, reprojected every 100
/// steps)\n". Of training by that network it names all that differs from the defaults.
std::string plan_line(const Plan& plan, const TrainingSpec& training, const NetworkSpec& network = {},
                      std::int64_t epochs = 0);

/// Whether the loss of this step gets a line: 0, 10, ..., 100, 200, 300, ...
bool is_shown(std::int64_t step);
/// "0: 9105954.33\n".
std::string loss_line(std::int64_t step, double loss);
/// "9105954.33", "1.5e-07", "nan".
std::string loss_text(double loss);

/// A heading and prediction - target, taken in the precision that both have, a line for each row. With a cross-entropy
/// the predictions are first turned into probabilities, as the targets are.
std::string difference_rows(const std::string& when, HostMatrix prediction, const HostMatrix& target, Loss loss);

/// "214.2 ms", "12.34 s".
std::string duration_text(double milliseconds);

/// Of all stages together.
double total_ms(const std::vector<PreparationStage>& preparation);
/// "prepared in 25.3 ms: plan 5.1, context 12.0, memory 0.4, ...\n".
std::string preparation_line(const std::vector<PreparationStage>& preparation);

/// "428.41 us a step".
std::string step_time_text(double microseconds);

/// "3.4", "429": a prediction is good to two digits or so; "-" where there is none.
std::string prediction_text(double microseconds);

/// The table of a plan: executor, verdict, memory, predicted, floor, reason; "-" for what is not known.
/// @{
using CandidateRow = std::array<std::string, 6>;
CandidateRow candidate_headings(Formulation formulation);
CandidateRow candidate_row(const Candidate& candidate);
/// @}

/// One training run as it ended.
struct RunResult {
  Plan plan;
  NetworkSpec network{};
  TrainingSpec training{};
  std::int64_t epochs = 0;      ///< asked for; 0: steps were
  std::int64_t first_step = 0;  ///< number of the first step, above 0 in a run that goes on from a checkpoint
  std::int64_t steps = 0;
  std::span<const double> losses;  ///< of the steps, or the one loss of a run without steps
  double total_ms = 0;
  std::vector<PreparationStage> preparation;  ///< before the first step
  std::optional<double> us_per_step;
  std::optional<std::int64_t> first_non_finite_step;
  std::vector<int> inactive_layers;  ///< see activity.h; empty too where the run diverged
  std::vector<std::string> algorithms;
  EndOfRun end = EndOfRun::all_steps;
  std::int64_t validation_rows = 0;  ///< 0: no validation data
  /// Of the validation data: at the borders of the run and after its last step, and the best of them.
  std::vector<Evaluation> evaluations;
  std::optional<Evaluation> best;
  InputScaling scaling{}, target_scaling{};
};

/// "1000-100-1 with biases on 128 samples"; of deep networks the first and last layers.
std::string run_title(const RunResult& result);
/// "97.12 %".
std::string percent_text(double share);
/// "validation after 938 steps: loss 0.123, accuracy 97.12 %\n".
std::string evaluation_line(const Evaluation& evaluation);

/// Whether the losses changed at all; nothing for fewer than two.
std::optional<bool> loss_moved(std::span<const double> losses);

/// A line for each thing that looks wrong in a run that ended well: layers without an active unit, `rows` rows looked
/// at of `samples`; losses that did not move.
std::string note_lines(const RunResult& result, std::int64_t rows, std::int64_t samples);

/// Neither commits.
void write_history(OutputFile& file, const RunResult& result);
void write_json(OutputFile& file, const RunResult& result);
/// What write_json writes.
std::string run_json(const RunResult& result);

}  // namespace deviceloop::cli
