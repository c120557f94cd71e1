// deviceloop train: reads or generates, trains, reports, writes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/trainer.h>

#include "activity.h"
#include "checkpoint.h"
#include "commands.h"
#include "files/output_file.h"
#include "files/weights.h"
#include "inputs.h"
#include "interrupt.h"
#include "machine.h"
#include "matrix_ops.h"
#include "memory.h"
#include "names.h"
#include "plot.h"
#include "preparation.h"
#include "problems.h"
#include "progress.h"
#include "report.h"
#include "report_page.h"
#include "run_options.h"
#include "step/scalars.h"
#include "system_facts.h"
#include "text.h"
#include "text_output.h"
#include "trainer_access.h"
#include "watching.h"

namespace deviceloop::cli {
namespace {

constexpr std::int64_t kShownRows = 5;

/// The outputs of a run. Making it finds out whether all of them can be written and drawn.
struct Outputs {
  Outputs(const OptionSet& options, const TrainOptions& run) {
    if (!run.plot.empty()) gnuplot = find_gnuplot();
    const auto open = [](const std::string& path) {
      return path.empty() ? nullptr : std::make_unique<OutputFile>(path);
    };
    save = open(run.save);
    history = open(run.history);
    json = open(run.json);
    plot = open(run.plot);
    report = open(run.report);
    if (!run.checkpoint.empty())
      checkpoint = std::make_unique<CheckpointOutput>(options, run.checkpoint, run.checkpoint_every);
  }
  std::unique_ptr<CheckpointOutput> checkpoint;                   // the same
  std::unique_ptr<OutputFile> save, history, json, plot, report;  // null: not asked for
  std::string gnuplot;
};

/// The first rows of the data, and how far the network is from them.
class ShownRows {
 public:
  /// Of data that the trainer has, whose targets went through the scaling, with the first of these as they were.
  ShownRows(const Samples& data, const HostMatrix& unscaled, const InputScaling& scaling, const Trainer& trainer)
      : x_(first_rows(data.x, kShownRows, trainer.training().precision)),
        y_(scaling.is_identity() ? first_rows(data.y, kShownRows, trainer.training().precision) : unscaled),
        scaling_(scaling) {
    if (trainer.training().class_targets) y_ = probabilities_of_classes(y_, trainer.network().widths.back());
  }

  std::string text(const std::string& when, Trainer& trainer) const {
    HostMatrix prediction(x_.type, y_.rows, y_.columns);
    trainer.predict(x_.view(), prediction.view());
    if (!scaling_.is_identity()) prediction = scaling_.undo(std::move(prediction), y_.type);
    return difference_rows(when, prediction, y_, trainer.training().loss);
  }

 private:
  HostMatrix x_, y_;
  InputScaling scaling_;
};

/// Adds what the next call of train did.
void append(TrainReport& report, TrainReport&& next) {
  report.losses.insert(report.losses.end(), next.losses.begin(), next.losses.end());
  report.evaluations.insert(report.evaluations.end(), next.evaluations.begin(), next.evaluations.end());
  report.total_ms += next.total_ms;
  if (!report.first_non_finite_step) report.first_non_finite_step = next.first_non_finite_step;
  report.end = next.end;
}

/// The loop, up to step `total`, with a checkpoint wherever one is due, and at its end. Loss lines appear as it goes
/// on, but all of a chunk's are one write: they lie within the time it reports. Adds the last loss to `rest` where a
/// run that was stopped has not shown it.
TrainReport train_with_lines(Trainer& trainer, const TrainOptions& run, std::int64_t total,
                             CheckpointOutput* checkpoint, TextOutput& text, std::string& rest) {
  Progress progress(formulation_text(run.training.formulation));
  // Of many evaluations every so manyth, and the best and the last in the summary.
  constexpr std::int64_t kShownEvaluations = 40;
  const std::int64_t borders = run.steps / next_border(trainer.training(), 0);
  const std::int64_t stride = borders > kShownEvaluations ? (borders - 1) / kShownEvaluations + 1 : 1;
  std::int64_t shown = -1, evaluation_count = 0;
  const auto show = [&](std::int64_t step, double loss) {
    shown = step;
    return loss_line(step, loss);
  };
  const std::int64_t first = trainer.steps_done();
  std::int64_t before = 0;  // steps of earlier calls
  bool is_stopped = false;
  const auto callback = [&](const TrainProgress& chunk) {
    if (text.wanted()) {
      std::string lines;
      auto evaluation = chunk.evaluations.begin();
      for (std::size_t i = 0; i < chunk.losses.size(); ++i) {
        const std::int64_t step = chunk.first_step + static_cast<std::int64_t>(i);
        if (is_shown(step) || step + 1 == total) lines += show(step, chunk.losses[i]);
        if (evaluation == chunk.evaluations.end() || evaluation->steps != step + 1) continue;
        if (++evaluation_count % stride == 0) lines += evaluation_line(*evaluation);
        ++evaluation;
      }
      if (!lines.empty()) {
        progress.clear();
        text.write(lines);
      }
      progress.update(before + chunk.steps_done, total - first);
    }
    is_stopped = interrupt() != 0 || (!run.keep_going && std::any_of(chunk.losses.begin(), chunk.losses.end(),
                                                                     [](double loss) { return !std::isfinite(loss); }));
    return !is_stopped && !(checkpoint != nullptr && checkpoint->is_due());
  };
  TrainReport report;
  do {
    const std::int64_t done = trainer.steps_done();
    before = done - first;
    TrainReport next =
        trainer.train(checkpoint != nullptr ? checkpoint->steps_until_due(done, total) : total - done, callback);
    if (next.end == EndOfRun::callback && !is_stopped) next.end = EndOfRun::all_steps;
    if (before == 0)
      report = std::move(next);
    else
      append(report, std::move(next));
    if (checkpoint == nullptr || report.first_non_finite_step || report.steps() == 0) continue;
    set_patience(kSavingPatience);
    checkpoint->write(trainer, report.end);
    set_patience(kPatience);
    is_stopped = is_stopped || interrupt() != 0;
  } while (!is_stopped && report.end == EndOfRun::all_steps && trainer.steps_done() < total);
  progress.clear();
  const std::int64_t last = first + report.steps() - 1;
  if (report.steps() > 0 && shown != last) rest += show(last, report.losses.back());
  return report;
}

void write_trained_weights(OutputFile& file, const Trainer& trainer, const Parameters& parameters,
                           const RunResult& result, const std::vector<std::string>& input_names) {
  const std::vector<ParameterInfo> layout = parameter_layout(trainer.network());
  for (std::size_t i = 0; i < parameters.size(); ++i)
    if (const auto bad = find_non_finite(parameters[i].view(), parameters[i].type))
      throw Error(printable(file.path()) + " was not written: the last step made " + layout[i].name +
                  " infinite or nan (" + describe(*bad, parameters[i].type) + "); lower --lr");
  write_weights(file, trainer.network(), parameters, result.scaling, result.target_scaling, input_names);
  file.commit();
}

using Writes = std::vector<std::pair<OutputFile*, std::function<void(OutputFile&)>>>;

/// What to write, standard output and pipes last, because their readers may be slow.
Writes planned_writes(Outputs& outputs, const Trainer& trainer, const Parameters& parameters, const RunResult& result,
                      const std::vector<std::string>& input_names, const ReportFacts& facts) {
  Writes writes;
  if (outputs.save && !result.first_non_finite_step)
    writes.emplace_back(outputs.save.get(), [&](OutputFile& file) {
      write_trained_weights(file, trainer, parameters, result, input_names);
    });
  if (outputs.history)
    writes.emplace_back(outputs.history.get(), [&](OutputFile& file) {
      write_history(file, result);
      file.commit();
    });
  if (outputs.json)
    writes.emplace_back(outputs.json.get(), [&](OutputFile& file) {
      write_json(file, result);
      file.commit();
    });
  if (outputs.plot)
    writes.emplace_back(outputs.plot.get(), [&](OutputFile& file) {
      const PictureFormat format = *picture_format(file.path());
      write_plot(file, format, outputs.gnuplot, plot_script(format, result));
      file.commit();
    });
  if (outputs.report)
    writes.emplace_back(outputs.report.get(), [&](OutputFile& file) {
      file.write(report_page(result, facts));
      file.commit();
    });
  std::stable_partition(writes.begin(), writes.end(), [](const auto& write) { return !write.first->in_place(); });
  return writes;
}

/// Writes those in place, or the others; adds "; wrote a, b" for the summary.
void write_outputs(const Writes& writes, bool in_place, std::string& written, Problems& problems) {
  for (const auto& [file, write] : writes)
    if (file->in_place() == in_place && problems.attempt([&, target = file, &how = write] { how(*target); }) &&
        file->path() != "-")
      written += (written.empty() ? "; wrote " : ", ") + printable(file->path());
}

/// "; validation loss 0.12, accuracy 97.00 %; best 0.11 after 938 steps, kept".
std::string validation_summary(const RunResult& result) {
  std::string text;
  if (result.end == EndOfRun::patience)
    text = "; ended early, because " + std::to_string(result.training.watch.patience) +
           (result.training.watch.patience == 1 ? " evaluation was" : " evaluations were") +
           " not better than the best";
  if (result.end == EndOfRun::target_loss) text = "; ended early at the target loss";
  if (result.evaluations.empty()) return text;
  const auto values = [](const Evaluation& evaluation) {
    return loss_text(evaluation.loss) +
           (evaluation.accuracy ? ", accuracy " + percent_text(*evaluation.accuracy) : std::string());
  };
  text += "; validation loss " + values(result.evaluations.back());
  if (!result.best) return text;
  return text + "; best " + values(*result.best) + " after " + std::to_string(result.best->steps) + " steps" +
         (result.training.watch.keep_best ? ", kept" : "");
}

std::string summary(const RunResult& result) {
  std::string line = std::to_string(result.steps) + (result.steps == 1 ? " step" : " steps");
  if (result.us_per_step)
    line += " in " + duration_text(result.total_ms) + ", " + step_time_text(*result.us_per_step) +
            formulation_text(result.plan.formulation) + " (predicted " +
            prediction_text(result.plan.predicted_us_per_step) +
            (result.plan.floor_us_per_step > 0 ? ", floor " + prediction_text(result.plan.floor_us_per_step) : "") +
            ")";
  line += "; loss " + loss_text(result.losses.front());
  if (result.steps > 1) line += " -> " + loss_text(result.losses.back());
  return line + validation_summary(result);
}

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &parts);
  return text;
}

/// The options, with what the run made of those that were not given.
std::vector<Setting> settings_of(const OptionSet& options, const TrainOptions& run, const RunResult& result) {
  std::vector<Setting> settings = options.settings();
  const auto derive = [&](const std::string& name, const std::string& value, const std::string& note) {
    for (Setting& setting : settings)
      if (setting.name == name && !setting.given && setting.value != value) {
        setting.value = value;
        setting.note = note;
      }
  };
  const NetworkSpec& network = result.network;
  const Optimizer& optimizer = result.training.optimizer;
  const auto number = [](double value) {
    char text[64];
    std::snprintf(text, sizeof text, "%.15g", value);
    return std::string(text);
  };
  if (run.epochs > 0) derive("--steps", std::to_string(run.steps), "from --epochs");
  if (run.has_files()) derive("--samples", std::to_string(result.training.samples), "from the data");
  if (!run.weights.empty()) {
    derive("--layers", widths_text(network.widths), "from --weights");
    derive("--bias", network.bias ? "yes" : "no", "from --weights");
    derive("--activation", activation_text(network.activation, network.leaky_slope), "from --weights");
    derive("--output-activation", activation_text(network.output_activation, network.leaky_slope), "from --weights");
    derive("--init", "", "unused: --weights");
    if (result.scaling.factor != 1) derive("--scale", number(result.scaling.factor), "from --weights");
    if (!result.scaling.mean.empty()) derive("--standardize", "yes", "from --weights");
    if (!result.target_scaling.is_identity()) derive("--standardize-targets", "yes", "from --weights");
  }
  derive("--weight-decay", number(weight_decay_of(optimizer)), "");
  derive("--beta2", number(beta2_of(optimizer)), "");
  const OptimizerMembers members = members_of(optimizer.kind);
  const std::pair<const char*, bool> uses[] = {
      {"--momentum", members.momentum},  {"--nesterov", members.nesterov},  {"--weight-decay", members.weight_decay},
      {"--beta1", members.beta1},        {"--beta2", members.beta2},        {"--epsilon", members.epsilon},
      {"--clip-norm", members.clipping}, {"--clip-value", members.clipping}};
  for (const auto& [name, is_used] : uses)
    if (!is_used) derive(name, "", std::string("unused by ") + optimizer_name(optimizer.kind));
  return settings;
}

}  // namespace

void declare_train(OptionSet& options) { declare_train_options(options, "Output (FILE - is standard output)"); }

int run_train(const OptionSet& given) {
  OptionSet options = given;
  std::unique_ptr<const CheckpointInput> resumed = open_checkpoint(options);
  TrainOptions run = read_train_options(options);
  if (resumed) run.input_names = resumed->network().input_names;
  end_on_signals();
  Preparation preparation;
  DeviceCaps caps = query_caps_for(run.training.device);
  preparation.lap("devices");
  std::unique_ptr<const WeightsInput> weights = open_weights(options, run, caps.cpu);
  preparation.restart();
  plan_run(run, caps);
  preparation.lap("plan");
  Outputs outputs(options, run);
  TextOutput text(run.text);

  Samples data = load_data(run, caps.cpu);
  const std::vector<std::string> input_names = names_of_inputs(run, data);
  std::string inputs = samples_line(run, data);  // as they were read, those for validation among them
  Samples validation = read_validation(run, data, caps.cpu);
  inputs += validation_line(run, validation);
  const DataScaling scaling = resumed ? DataScaling{resumed->network().scaling, resumed->network().target_scaling}
                                      : scaling_of(run, weights.get(), data);
  const HostMatrix unscaled = first_rows(data.y, kShownRows, Precision::fp64);
  scale_samples(data, scaling, run.training.precision, caps.cpu);
  if (validation.x.rows > 0) scale_samples(validation, scaling, run.training.precision, caps.cpu);
  if (run.has_files()) {
    set_samples(run, data.x.rows);
    plan_run(run, caps, data);
  }
  const TrainingSpec& training = run.training;
  Trainer trainer(run.network, training, run.forced, caps);
  if (weights == nullptr) {
    trainer.initialize(training.seed, run.init);
  } else {
    weights->load(trainer);
    inputs += weights->line(training.precision);
    weights.reset();
  }
  inputs += scaling_lines(scaling);
  const ConstMatrix sample_weights = data.weights.view();
  TrainerAccess::set_data(trainer, data.x.view(), data.y.view(), data.x.name, data.y.name,
                          training.sample_weights ? &sample_weights : nullptr, data.weights.name);
  const std::int64_t validation_rows = validation.x.rows;
  if (validation_rows > 0) {
    TrainerAccess::set_validation(trainer, validation.x.view(), validation.y.view(), validation.x.name,
                                  validation.y.name);
    validation = {};
  }
  std::int64_t total = run.steps;
  if (resumed) {
    resumed->resume(trainer);
    const std::int64_t done = trainer.steps_done();
    if (total < done && !resumed->has_ended())
      throw InvalidArgument(resumed->name() + " has " + counted(done, "step") + " behind it, and the run is of " +
                            counted(total, "step") + "; give at least as many");
    if (resumed->has_ended()) total = done;
    inputs += "resumed from " + resumed->name() + " after " + counted(done, "step") +
              (total == done ? ", which are all of the run" : "") + "\n";
    resumed.reset();
  }
  const std::int64_t first_step = trainer.steps_done();
  if (outputs.checkpoint) outputs.checkpoint->set_network({run.network, scaling.inputs, scaling.targets, input_names});
  const ShownRows rows(data, unscaled, scaling.targets, trainer);
  const std::string size_notes = size_note_lines(run, scaling, data);
  const HostMatrix looked_at = activity_rows(data.x, run.network, training.precision);
  data = {};  // the trainer has its own copy

  text.write(inputs + plan_line(trainer.plan(), training, run.network, run.epochs));
  if (text.wanted()) text.write(rows.text("before training", trainer));
  note_signals(kPatience);
  std::string rest;  // of the text: when the files are there
  TrainReport report = train_with_lines(trainer, run, total, outputs.checkpoint.get(), text, rest);
  set_patience(kSavingPatience);

  RunResult result;
  result.plan = trainer.plan();
  result.network = run.network;
  result.training = training;
  result.epochs = run.epochs;
  result.scaling = scaling.inputs;
  result.target_scaling = scaling.targets;
  result.first_step = first_step;
  result.steps = report.steps();
  result.total_ms = report.total_ms;
  for (const PreparationStage& stage : report.preparation) preparation.add(stage);
  result.preparation = preparation.take();
  result.us_per_step = report.us_per_step();
  result.algorithms = report.algorithms;
  result.first_non_finite_step = report.first_non_finite_step;
  if (total == first_step) {
    report.losses = {trainer.loss()};
    if (!std::isfinite(report.losses.front())) result.first_non_finite_step = first_step;
    rest = loss_line(first_step, report.losses.front());
  }
  result.losses = report.losses;

  result.end = report.end;
  result.validation_rows = validation_rows;
  result.evaluations = report.evaluations;
  result.best = trainer.best();
  // The last parameters are evaluated too, and may be the best, so that a run of any length says how good it is.
  if (validation_rows > 0 && (result.evaluations.empty() || result.evaluations.back().steps != trainer.steps_done())) {
    const Evaluation last = trainer.evaluate();
    result.evaluations.push_back(last);
    if (last.loss < (result.best ? result.best->loss : std::numeric_limits<double>::infinity())) result.best = last;
  }
  if (training.watch.keep_best && result.best && result.best->steps != trainer.steps_done()) trainer.restore_best();

  const Parameters parameters = read_parameters(trainer, element_type(training.precision));
  if (!result.first_non_finite_step) result.inactive_layers = inactive_layers(run.network, parameters, looked_at);
  Problems problems;
  std::string divergence;
  if (result.first_non_finite_step) {
    const std::int64_t step = *result.first_non_finite_step;
    divergence =
        "the run diverged: the loss of step " + std::to_string(step) + " is " +
        loss_text(report.losses[static_cast<std::size_t>(step - first_step)]) +
        (step == 0 ? "; use smaller data or weights, or --precision fp64" : "; " + divergence_remedy(options)) +
        (report.steps() < total - first_step
             ? "; it was stopped after " + std::to_string(report.steps()) + " of " +
                   std::to_string(total - first_step) + " steps, which --keep-going would not do"
             : "") +
        (outputs.save ? "; " + printable(run.save) + " was not written" : "");
    problems.add(divergence);
  }
  if (outputs.checkpoint && !outputs.checkpoint->problem().empty()) problems.add(outputs.checkpoint->problem());
  const std::string notes = size_notes + note_lines(result, looked_at.rows, training.samples);
  ReportFacts facts;
  if (outputs.report) {
    if (!run.has_files())
      facts.input_lines =
          counted(run.rows, "sample") + ", standard normal, drawn by seed " + std::to_string(training.seed) + "\n";
    facts.input_lines += inputs;
    facts.date = now_text();
    facts.steps_asked = run.steps;
    facts.note_lines = notes;
    facts.problem = divergence;
    facts.interrupted = interrupt() != 0;
    facts.settings = settings_of(options, run, result);
    facts.system = system_facts(caps);
  }
  // Files first: the reader of the text, or of a pipe, may make the run wait, and a signal may then end it.
  const Writes writes = planned_writes(outputs, trainer, parameters, result, input_names, facts);
  std::string written;
  write_outputs(writes, false, written, problems);
  set_patience(kPatience);
  text.write(rest);
  if (text.wanted()) text.write(rows.text("after training", trainer));
  text.write(preparation_line(result.preparation) + notes);
  write_outputs(writes, true, written, problems);
  text.write(summary(result) + written + "\n");
  problems.attempt([&] { text.check(); });

  if (const int signal = interrupt()) {
    write_all(2, "deviceloop: interrupted after " + std::to_string(result.steps) + " steps" +
                     (outputs.checkpoint && outputs.checkpoint->problem().empty() && result.steps > 0
                          ? "; go on by --resume " + outputs.checkpoint->name()
                          : "") +
                     (problems.text().empty() ? "" : "; ") + problems.text() + "\n");
    return 128 + signal;
  }
  if (!problems.text().empty()) throw Error(problems.text());
  return 0;
}

}  // namespace deviceloop::cli
