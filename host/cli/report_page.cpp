#include "report_page.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "drawing/chart.h"
#include "drawing/network_diagram.h"
#include "planning/decision.h"
#include "plot.h"
#include "step/step.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

using drawing::escaped;

constexpr std::size_t kMostPoints = 1000;  // of a curve
constexpr std::size_t kMostRows = 20;      // of a table of losses
constexpr double kChartWidth = 500;

constexpr const char* kStyle = R"(:root {
  color-scheme: light dark;
  --page: #f6f8fa; --card: #ffffff; --text: #1f2328; --soft: #57606a; --border: #d8dee4; --accent: #0066a1;
  --good: #116329; --good-ground: #dafbe1; --bad: #a40e26; --bad-ground: #ffebe9; --wait: #7d4e00; --wait-ground: #fff8c5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --card: #151b23; --text: #e6edf3; --soft: #9ea8b3; --border: #30363d; --accent: #58b4ea;
    --good: #56d364; --good-ground: #12261e; --bad: #ff8a80; --bad-ground: #2d1517; --wait: #e3b341; --wait-ground: #272115;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text); line-height: 1.5; font-size: 15px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
header { margin-bottom: 18px; }
h1 { font-size: 28px; line-height: 1.2; margin: 2px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
p { margin: 0 0 8px; overflow-wrap: anywhere; }
.kicker { color: var(--accent); font-weight: 600; letter-spacing: 0.02em; }
.soft { color: var(--soft); }
.outcome { border-radius: 10px; padding: 12px 16px; margin: 0 0 16px; }
.outcome p:last-child { margin-bottom: 0; }
.outcome strong { font-size: 17px; }
.good { background: var(--good-ground); color: var(--good); }
.bad { background: var(--bad-ground); color: var(--bad); }
.wait { background: var(--wait-ground); color: var(--wait); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px; margin-bottom: 16px; }
.tile, .card { background: var(--card); border: 1px solid var(--border); border-radius: 10px; }
.tile { padding: 12px 14px; margin: 0; }
.tile dt { color: var(--soft); font-size: 13px; }
.tile dd { margin: 0; }
.tile .value { font-size: 22px; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile .more { color: var(--soft); font-size: 13px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 0 16px; align-items: start; }
.column { min-width: 0; }
.card { padding: 16px 18px; min-width: 0; margin-bottom: 16px; }
.card > :last-child { margin-bottom: 0; }
.card p.note { color: var(--soft); font-size: 14px; margin-top: 8px; }
.card svg { display: block; width: 100%; max-width: 560px; margin: 0 auto; }
.scroll { overflow-x: auto; }
.narrow table { width: auto; min-width: 60%; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 600; vertical-align: bottom; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--border); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
td.name { white-space: nowrap; }
td.group { padding-top: 16px; font-weight: 600; border-bottom-width: 2px; }
td.value { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; overflow-wrap: anywhere; min-width: 100px; }
td.reason { min-width: 260px; }
tr.chosen td { font-weight: 600; }
tr.default td.value, tr.default td.name { color: var(--soft); }
tr.given td.name, tr.given td.value { font-weight: 600; }
.chip { border: 1px solid var(--border); border-radius: 999px; padding: 1px 8px; font-size: 12px; color: var(--soft); white-space: nowrap; font-weight: 400; }
pre { margin: 0 0 8px; padding: 12px 14px; background: var(--page); border: 1px solid var(--border); border-radius: 8px; font-size: 13px; white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details { margin-top: 12px; }
summary { cursor: pointer; font-weight: 600; margin-bottom: 6px; }
footer { color: var(--soft); font-size: 13px; }
@media (max-width: 600px) { main { padding: 18px 12px 40px; } h1 { font-size: 23px; } .card { padding: 14px 12px; } .tiles { grid-template-columns: 1fr 1fr; gap: 8px; } .tile { padding: 10px 11px; } .tile .value { font-size: 19px; } .wide { display: none; } .narrow table { width: 100%; } }
@media print { body { background: none; } .card, .tile { break-inside: avoid; } }
)";

// ---- Markup

std::string tag(const std::string& name, const std::string& content, const std::string& classes = "") {
  return "<" + name + (classes.empty() ? "" : " class=\"" + classes + "\"") + ">" + content + "</" + name + ">\n";
}

std::string paragraph(const std::string& text, const std::string& classes = "") {
  return tag("p", escaped(text), classes);
}

std::string note(const std::string& text) { return text.empty() ? "" : paragraph(text, "note"); }

/// A card with a heading; nothing without content.
std::string card(const std::string& heading, const std::string& content) {
  return content.empty() ? "" : tag("section", "\n" + tag("h2", escaped(heading)) + content, "card");
}

struct Cell {
  std::string markup;
  std::string classes{};
};
Cell cell(const std::string& text, const std::string& classes = "") { return {escaped(text), classes}; }

std::string row(const std::vector<Cell>& cells, const std::string& classes = "") {
  std::string markup;
  for (const Cell& each : cells) markup += tag("td", each.markup, each.classes);
  return tag("tr", "\n" + markup, classes);
}

/// A table of rows, which are markup; a wide one scrolls in itself, a `narrow` one does not fill its card. The classes
/// of a heading are those of its column.
std::string table(const std::vector<Cell>& headings, const std::string& rows, const std::string& classes = "") {
  std::string head;
  for (const Cell& heading : headings) head += tag("th", heading.markup, heading.classes);
  if (!head.empty()) head = tag("thead", "\n" + tag("tr", "\n" + head));
  return tag("div", "\n" + tag("table", "\n" + head + tag("tbody", "\n" + rows)),
             "scroll" + (classes.empty() ? "" : " " + classes));
}

/// Side by side where there is room, else one below the other.
std::string columns(const std::string& left, const std::string& right) {
  return tag("div", "\n" + tag("div", "\n" + left, "column") + tag("div", "\n" + right, "column"), "columns");
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    if (end > 0) lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

// ---- How it ended

/// The loss that the run ended with; none where it has none.
std::optional<double> last_loss(const RunResult& result) {
  if (result.losses.empty()) return std::nullopt;
  return result.losses.back();
}

std::string outcome(const RunResult& result, const ReportFacts& facts) {
  const std::string steps = counted(result.steps, "step");
  const auto box = [](const char* classes, const std::string& heading, const std::string& more) {
    return tag("div", "\n" + tag("p", tag("strong", escaped(heading))) + (more.empty() ? "" : paragraph(more)),
               std::string("outcome ") + classes);
  };
  if (result.first_non_finite_step)
    return box("bad", "Diverged: the loss of step " + std::to_string(*result.first_non_finite_step) + " is not finite",
               facts.problem);
  if (facts.interrupted)
    return box("wait", "Interrupted by a signal after " + steps + " of " + std::to_string(facts.steps_asked), "");
  switch (result.end) {
    case EndOfRun::patience:
      return box(
          "good", "Ended early after " + steps,
          counted(result.training.watch.patience, "evaluation") + " in a row had no smaller loss than the best.");
    case EndOfRun::target_loss:
      return box("good", "Ended early after " + steps,
                 "The target loss " + loss_text(result.training.watch.target_loss.value_or(0)) + " was reached.");
    case EndOfRun::all_steps:
    case EndOfRun::callback:
      break;
  }
  if (facts.steps_asked == 0) return box("good", "The loss alone, without a step", "");
  return box("good", "Finished all " + steps, "");
}

std::string tile(const std::string& what, const std::string& value, const std::string& more = "") {
  return tag("dl",
             "\n" + tag("dt", escaped(what)) + tag("dd", escaped(value), "value") +
                 (more.empty() ? "" : tag("dd", escaped(more), "more")),
             "tile");
}

std::string ratio_text(double measured, double predicted) {
  char text[64];
  std::snprintf(text, sizeof text, "%.2f", measured / predicted);
  return text;
}

/// A loss in few digits where all of them would break a tile's line.
std::string short_loss_text(double loss) {
  if (!(std::fabs(loss) >= 1e8) || std::isinf(loss)) return loss_text(loss);
  char text[64];
  std::snprintf(text, sizeof text, "%.4g", loss);
  return text;
}

bool has_prediction(const RunResult& result) { return result.plan.predicted_us_per_step > 0; }

std::string tiles(const RunResult& result) {
  std::string markup;
  if (const std::optional<double> loss = last_loss(result))
    markup += tile(result.steps == 0                  ? "loss"
                   : has_minibatches(result.training) ? "loss of the last batch"
                                                      : "final loss",
                   short_loss_text(*loss), result.steps > 1 ? "from " + short_loss_text(result.losses.front()) : "");
  if (result.best)
    markup += tile("best validation loss", short_loss_text(result.best->loss),
                   (result.best->accuracy ? "accuracy " + percent_text(*result.best->accuracy) + ", " : "") + "after " +
                       counted(result.best->steps, "step") + (result.training.watch.keep_best ? ", kept" : ""));
  if (result.us_per_step) {
    char time[64];
    std::snprintf(time, sizeof time, "%.2f us", *result.us_per_step);
    markup += tile("measured a step", time, counted(result.steps, "step") + " in " + duration_text(result.total_ms));
  }
  if (has_prediction(result))
    markup += tile("predicted a step", prediction_text(result.plan.predicted_us_per_step) + " us",
                   result.us_per_step
                       ? "measured / predicted " + ratio_text(*result.us_per_step, result.plan.predicted_us_per_step)
                       : "");
  if (result.plan.floor_us_per_step > 0)
    markup +=
        tile("floor of a step", prediction_text(result.plan.floor_us_per_step) + " us",
             result.us_per_step ? "measured / floor " + ratio_text(*result.us_per_step, result.plan.floor_us_per_step)
                                : "no tuning can beat it");
  markup += tile("prepared in", duration_text(total_ms(result.preparation)));
  return tag("div", "\n" + markup, "tiles");
}

// ---- Curves

/// Of equal parts of the values the smallest and the largest; positions become x by `x_of`.
template <class XOf>
std::vector<drawing::Point> curve(std::span<const double> values, const XOf& x_of, double factor = 1) {
  std::vector<drawing::Point> points;
  for (const PlotPoint& point : plot_points(values, kMostPoints))
    points.push_back({x_of(static_cast<std::size_t>(point.step)), factor * point.loss});
  return points;
}

std::vector<double> evaluated(const RunResult& result, bool accuracy) {
  std::vector<double> values;
  for (const Evaluation& evaluation : result.evaluations)
    values.push_back(accuracy ? evaluation.accuracy.value_or(std::nan("")) : evaluation.loss);
  return values;
}

bool is_above_zero(double loss) { return std::isfinite(loss) && loss > 0; }

/// What is said of values that the chart cannot show; `what` is their plural.
std::string left_out_text(std::span<const double> values, const std::string& what, drawing::Scale scale) {
  const std::int64_t bad =
      std::count_if(values.begin(), values.end(), [](double value) { return !std::isfinite(value); });
  const std::int64_t low =
      std::count_if(values.begin(), values.end(), [](double value) { return std::isfinite(value) && value <= 0; });
  const std::string of_all = " of " + std::to_string(values.size()) + " " + what;
  std::string text;
  if (bad > 0) text += "Left out: " + std::to_string(bad) + of_all + ", infinite or nan. ";
  if (scale == drawing::Scale::logarithmic && low > 0)
    text += "Left out: " + std::to_string(low) + of_all + ", not above 0, where a logarithmic axis has no place. ";
  if (values.size() > kMostPoints)
    text += "About " + std::to_string(kMostPoints) + of_all +
            " are drawn, among them the smallest and the largest of each part. ";
  if (!text.empty()) text.pop_back();
  return text;
}

drawing::LineChart chart_of(const RunResult& result) {
  drawing::LineChart chart;
  chart.width = kChartWidth;
  chart.x_label = "step";
  chart.x_is_count = true;
  std::int64_t last = result.first_step + static_cast<std::int64_t>(result.losses.size()) - 1;
  for (const Evaluation& evaluation : result.evaluations) last = std::max(last, evaluation.steps);
  if (last > result.first_step)
    chart.x_range = drawing::Point{static_cast<double>(result.first_step), static_cast<double>(last)};
  return chart;
}

std::string loss_card(const RunResult& result) {
  const bool minibatches = has_minibatches(result.training);
  const std::vector<double> validation = evaluated(result, false);
  drawing::LineChart chart = chart_of(result);
  chart.title = "Loss by step";
  chart.y_label = "loss (" + objective_text(result.training) + ")";
  // Where nothing is above 0 a logarithmic axis would show nothing.
  const bool logarithmic = std::any_of(result.losses.begin(), result.losses.end(), is_above_zero) ||
                           std::any_of(validation.begin(), validation.end(), is_above_zero);
  chart.y_scale = logarithmic ? drawing::Scale::logarithmic : drawing::Scale::linear;
  chart.nothing = "no loss is finite";
  chart.series.push_back(
      {minibatches ? "each batch" : "training",
       curve(result.losses,
             [&](std::size_t i) { return static_cast<double>(result.first_step + static_cast<std::int64_t>(i)); }),
       1, true});
  if (!validation.empty())
    chart.series.push_back(
        {"validation",
         curve(validation, [&](std::size_t i) { return static_cast<double>(result.evaluations[i].steps); }), 2, true});
  if (result.best && validation.size() > 1)
    chart.marks.push_back({static_cast<double>(result.best->steps), "best validation", false});
  if (result.first_non_finite_step && *result.first_non_finite_step > 0)
    chart.marks.push_back({static_cast<double>(*result.first_non_finite_step),
                           "step " + std::to_string(*result.first_non_finite_step) + ": not finite", true});
  if (const std::optional<double> loss = last_loss(result))
    chart.description = "From " + loss_text(result.losses.front()) + " to " + loss_text(*loss) + ".";

  std::string notes;
  if (result.steps == 0) notes += note("No step was done: this is the loss of the initial parameters.");
  if (result.steps == 1) notes += note("One step was done: the loss is that of the parameters before it.");
  if (!logarithmic && !result.losses.empty() && std::isfinite(result.losses.front()))
    notes += note("No loss is above 0, so that the axis is linear.");
  notes += note(left_out_text(result.losses, "losses", chart.y_scale));
  notes += note(left_out_text(validation, "validation losses", chart.y_scale));
  if (!validation.empty() && result.training.reduction == Reduction::sum)
    notes += note("Losses are sums: each is over the samples of its step, or over all " +
                  counted(result.validation_rows, "validation sample") + ".");
  return card("Loss", drawing::line_chart(chart, drawing::Placement::page) + notes);
}

std::string accuracy_card(const RunResult& result) {
  const std::vector<double> values = evaluated(result, true);
  if (std::none_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); })) return "";
  drawing::LineChart chart = chart_of(result);
  chart.title = "Accuracy on the validation data by step";
  chart.y_label = "right of the validation data, %";
  const auto x_of = [&](std::size_t i) { return static_cast<double>(result.evaluations[i].steps); };
  chart.series.push_back({"accuracy", curve(values, x_of, 100), 3, true});
  if (result.best && values.size() > 1)
    chart.marks.push_back({static_cast<double>(result.best->steps), "best loss", false});
  return card("Accuracy", drawing::line_chart(chart, drawing::Placement::page) +
                              note(left_out_text(values, "evaluations", drawing::Scale::linear)));
}

// ---- The plan

std::string step_card(const RunResult& result) {
  drawing::BarChart chart;
  chart.width = kChartWidth;
  chart.title = "A step: measured, predicted and floor";
  const auto bar = [&](const char* label, double value, const std::string& text, bool is_own) {
    chart.bars.push_back({label, value, text + " us", "", is_own});
    chart.description += std::string(chart.description.empty() ? "" : ", ") + label + " " + text + " us";
  };
  char measured[64];
  std::snprintf(measured, sizeof measured, "%.2f", result.us_per_step.value_or(0));
  if (result.us_per_step) bar("measured", *result.us_per_step, measured, true);
  if (has_prediction(result))
    bar("predicted", result.plan.predicted_us_per_step, prediction_text(result.plan.predicted_us_per_step), false);
  if (result.plan.floor_us_per_step > 0)
    bar("floor", result.plan.floor_us_per_step, prediction_text(result.plan.floor_us_per_step), false);
  if (chart.bars.empty()) return "";
  std::string notes;
  if (result.us_per_step && has_prediction(result))
    notes += note("Measured / predicted: " + ratio_text(*result.us_per_step, result.plan.predicted_us_per_step) +
                  ". The prediction was made before the run.");
  notes +=
      note(result.plan.floor_us_per_step > 0
               ? "The floor is the time for the step's arithmetic at the peak rate of the units it runs on, or for "
                 "the bytes that it moves, and for the launches or exchanges that follow each other."
               : "There is no floor: the plan does not know the peak rate of the CPU.");
  if (!result.us_per_step) notes += note("No step was done, so that none was measured.");
  if (result.us_per_step)
    notes += note("Measured over " + counted(result.steps, "step") + ", losses and evaluations included.");
  return card("Predicted and measured", drawing::bar_chart(chart, drawing::Placement::page) + notes);
}

std::string plan_card(const RunResult& result) {
  const CandidateRow headings = candidate_headings(result.plan.formulation);
  std::string rows;
  for (const Candidate& candidate : result.plan.candidates) {
    const CandidateRow entries = candidate_row(candidate);
    const bool chosen = candidate.executor == result.plan.executor;
    rows += row({{escaped(entries[0]) + (chosen ? " <span class=\"chip\">chosen</span>" : ""), "name"},
                 cell(entries[1]),
                 cell(entries[2], "number"),
                 cell(entries[3], "number"),
                 cell(entries[4], "number"),
                 cell(entries[5], "reason")},
                chosen ? "chosen" : "");
  }
  std::string algorithms;
  for (const std::string& algorithm : result.algorithms) algorithms += escaped(algorithm) + "\n";
  if (!algorithms.empty())
    algorithms = tag("details", "\n" + tag("summary", "How the steps were computed") + tag("pre", algorithms));
  std::string line = plan_line(result.plan, result.training, result.network, result.epochs);
  line.pop_back();
  std::vector<Cell> head;
  for (std::size_t i = 0; i < headings.size(); ++i) head.push_back(cell(headings[i], i >= 2 && i <= 4 ? "number" : ""));
  return card("Plan", paragraph(line) + table(head, rows) + algorithms);
}

std::string preparation_card(const RunResult& result) {
  drawing::BarChart chart;
  chart.width = kChartWidth;
  chart.title = "Before the first step";
  char text[64];
  for (const PreparationStage& stage : result.preparation) {
    std::snprintf(text, sizeof text, "%.1f ms", stage.ms);
    chart.bars.push_back({stage.name, stage.ms, text, "", false});
    chart.description += (chart.description.empty() ? "" : ", ") + stage.name + " " + text;
  }
  if (chart.bars.empty()) return "";
  return card("Before the first step: " + duration_text(total_ms(result.preparation)),
              drawing::bar_chart(chart, drawing::Placement::page) +
                  note("Work that is done once, and is not part of the time of a step."));
}

// ---- Tables

/// Which of `count` rows a table has: all, or about kMostRows with the first and the last.
std::vector<std::size_t> chosen_rows(std::size_t count) {
  std::vector<std::size_t> rows;
  const std::size_t stride = count <= kMostRows ? 1 : (count - 1) / (kMostRows - 1) + 1;
  for (std::size_t i = 0; i < count; i += stride) rows.push_back(i);
  if (count > 0 && rows.back() != count - 1) rows.push_back(count - 1);
  return rows;
}

std::string losses_card(const RunResult& result) {
  std::vector<std::size_t> shown, steps;
  for (std::size_t step = 0; step < result.losses.size(); ++step)
    if (is_shown(result.first_step + static_cast<std::int64_t>(step)) || step + 1 == result.losses.size())
      shown.push_back(step);
  for (const std::size_t i : chosen_rows(shown.size())) steps.push_back(shown[i]);
  if (result.first_non_finite_step) {  // and the step before it
    const auto bad = static_cast<std::size_t>(*result.first_non_finite_step - result.first_step);
    steps.push_back(bad);
    if (bad > 0) steps.push_back(bad - 1);
    std::sort(steps.begin(), steps.end());
    steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
  }
  std::string rows;
  for (const std::size_t step : steps)
    rows += row({cell(std::to_string(result.first_step + static_cast<std::int64_t>(step)), "number"),
                 cell(loss_text(result.losses[step]), "number")});
  if (rows.empty()) return "";
  return card("Losses", table({cell("step", "number"), cell("loss before its update", "number")}, rows, "narrow") +
                            (steps.size() < result.losses.size()
                                 ? note(std::to_string(steps.size()) + " of " +
                                        counted(static_cast<std::int64_t>(result.losses.size()), "step") +
                                        "; --history has them all.")
                                 : ""));
}

std::string validation_card(const RunResult& result) {
  if (result.evaluations.empty()) return "";
  const bool has_accuracy = result.evaluations.front().accuracy.has_value();
  std::vector<std::size_t> chosen = chosen_rows(result.evaluations.size());
  const auto best = std::find_if(result.evaluations.begin(), result.evaluations.end(), [&](const Evaluation& each) {
    return result.best && each.steps == result.best->steps;
  });
  if (best != result.evaluations.end()) {
    const auto position = static_cast<std::size_t>(best - result.evaluations.begin());
    const auto place = std::lower_bound(chosen.begin(), chosen.end(), position);
    if (place == chosen.end() || *place != position) chosen.insert(place, position);
  }
  std::string rows;
  for (const std::size_t i : chosen) {
    const Evaluation& evaluation = result.evaluations[i];
    const bool is_best = result.evaluations.begin() + static_cast<std::ptrdiff_t>(i) == best;
    std::vector<Cell> cells = {
        cell(std::to_string(evaluation.steps), "number"),
        {(is_best ? "<span class=\"chip\">best</span> " : "") + escaped(loss_text(evaluation.loss)), "number"}};
    if (has_accuracy) cells.push_back(cell(evaluation.accuracy ? percent_text(*evaluation.accuracy) : "-", "number"));
    rows += row(cells, is_best ? "chosen" : "");
  }
  std::vector<Cell> headings = {cell("after steps", "number"), cell("validation loss", "number")};
  if (has_accuracy) headings.push_back(cell("accuracy", "number"));
  return card("Validation by " + counted(result.validation_rows, "sample"),
              table(headings, rows, "narrow") +
                  (chosen.size() < result.evaluations.size()
                       ? note(std::to_string(chosen.size()) + " of " +
                              counted(static_cast<std::int64_t>(result.evaluations.size()), "evaluation") + ".")
                       : ""));
}

std::string settings_card(const ReportFacts& facts) {
  std::string rows, group;
  for (const Setting& setting : facts.settings) {
    if (setting.group != group)
      rows += tag("tr", "<td colspan=\"4\" class=\"group\">" + escaped(setting.group) + "</td>");
    group = setting.group;
    const bool is_default = setting.note.empty() && !setting.given;
    const std::string origin = is_default ? "default" : setting.note.empty() ? "given" : setting.note;
    rows += row({cell(setting.name, "name"),
                 cell(setting.value.empty() ? "-" : setting.value, "value"),
                 {tag("span", escaped(origin), "chip")},
                 cell(setting.description, "soft wide")},
                is_default || setting.value.empty() ? "default" : "given");
  }
  return card("All settings", table({cell("option"), cell("value"), cell("from"), cell("what it is", "wide")}, rows));
}

std::string facts_table(const std::vector<Fact>& facts) {
  std::string rows;
  for (const auto& [what, value] : facts) rows += row({cell(what, "name soft"), cell(value)});
  return table({}, rows);
}

/// JSON as the content of a script element, in HTML and in XML: these characters stand only in its strings.
std::string for_script(const std::string& json) {
  std::string text;
  for (const char c : json) {
    switch (c) {
      case '<':
        text += "\\u003c";
        break;
      case '>':
        text += "\\u003e";
        break;
      case '&':
        text += "\\u0026";
        break;
      default:
        text += c;
    }
  }
  return text;
}

}  // namespace

std::string shell_word(std::string_view text) {
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("-_./,:=+@%").find(c) != std::string_view::npos;
  };
  if (!text.empty() && std::all_of(text.begin(), text.end(), is_plain)) return std::string(text);
  const bool is_text = printable(text) == text;
  std::string word = is_text ? "'" : "$'";
  std::string piece;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (is_text && c == '\'') {
      word += "'\\''";
    } else if (!is_text && (c == '\'' || c == '\\')) {
      word += {'\\', c};
    } else if (!is_text && (byte < 0x20 || byte >= 0x7f)) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\%03o", byte);  // three digits: what follows is not taken for one
      word += escape;
    } else {
      word += c;
    }
  }
  return word + "'";
}

std::string command_line(const std::vector<Setting>& settings) {
  std::string line = "deviceloop train";
  for (const Setting& setting : settings) {
    if (!setting.given) continue;
    line += " " + setting.name;
    // A value that begins with a dash would be taken for an option where it stands alone.
    if (!setting.is_flag) line += (setting.value.starts_with('-') ? "=" : " ") + shell_word(setting.value);
  }
  return line;
}

std::string report_page(const RunResult& result, const ReportFacts& facts) {
  const std::string title = run_title(result);
  std::string what = facts.date + " · plan " + name(result.plan.executor) + " · " + name(result.training.precision);
  if (result.plan.formulation != Formulation::primal) what += std::string(" · ") + name(result.plan.formulation);
  what += " · seed " + std::to_string(result.training.seed);

  std::string notes;
  for (const std::string& line : lines_of(facts.note_lines)) notes += paragraph(line);
  if (!notes.empty()) notes = tag("div", "\n" + notes, "outcome wait");

  std::string inputs;
  for (const std::string& line : lines_of(facts.input_lines)) inputs += paragraph(line);

  std::string body = tag("header", "\n" + tag("div", "deviceloop training report", "kicker") +
                                       tag("h1", escaped(title)) + paragraph(what, "soft"));
  body += outcome(result, facts) + notes + tiles(result);
  body += columns(loss_card(result), step_card(result) + preparation_card(result));
  body += plan_card(result);
  const std::string network =
      card("Network", drawing::network_diagram(result.network, drawing::Placement::page, kChartWidth));
  const std::string data = card("Data", inputs);
  const std::string system = card("Software and machine", facts_table(facts.system));
  const std::string again = card("Do it again", tag("pre", escaped(command_line(facts.settings))));
  const std::string losses = losses_card(result), accuracy = accuracy_card(result);
  // Columns of about the same height.
  if (result.evaluations.empty())
    body += columns(network + data + system, losses) + again;
  else
    body += (accuracy.empty() ? columns(network + data, system) : columns(accuracy + data, network + system)) + again +
            columns(losses, validation_card(result));
  body += settings_card(facts);
  body +=
      tag("footer", paragraph("The script element with the id deviceloop-run has this run as JSON, as --json writes "
                              "it."));
  return "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta "
         "charset=\"utf-8\"/>\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
         "<meta name=\"color-scheme\" content=\"light dark\"/>\n" +
         tag("title", escaped(title + " - deviceloop")) + "<style>\n" + kStyle + drawing::style() +
         "</style>\n</head>\n<body>\n" + tag("main", "\n" + body) +
         "<script type=\"application/json\" id=\"deviceloop-run\">\n" + for_script(run_json(result)) +
         "</script>\n</body>\n</html>\n";
}

}  // namespace deviceloop::cli
