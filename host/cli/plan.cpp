// deviceloop plan: what train would run with the same options, and why. Trains and writes nothing.
#include <cstdio>

#include <deviceloop/plan.h>

#include "commands.h"
#include "inputs.h"
#include "memory.h"
#include "report.h"
#include "run_options.h"
#include "text.h"
#include "text_output.h"

namespace deviceloop::cli {
namespace {

std::string candidate_line(const Candidate& candidate) {
  char start[64];
  std::snprintf(start, sizeof start, "%-11s %-9s", name(candidate.executor),
                candidate.accepted ? "accepted" : "refused");
  std::string line = start;
  if (candidate.bytes != 0) line += " " + bytes_text(candidate.bytes);
  if (candidate.predicted_us_per_step > 0) line += ", predicted " + step_time_text(candidate.predicted_us_per_step);
  if (!candidate.reason.empty()) line += (candidate.bytes != 0 ? ": " : " ") + candidate.reason;
  return line + "\n";
}

}  // namespace

void declare_plan(OptionSet& options) { declare_train_options(options); }

int run_plan(const OptionSet& options) {
  const TrainOptions run = read_train_options(options);
  const DeviceCaps caps = query_device_caps();
  std::int64_t samples = run.training.samples;
  if (!run.x.empty()) samples = read_data(run, caps.cpu).x.rows;
  const Plan plan = plan_run(run, samples, caps);

  // Files are not written, so that standard output is free even where one of them is '-'.
  TextOutput text(options.given("--quiet") ? TextOutput::Where::nowhere : TextOutput::Where::standard_output);
  text.write("--layers " + widths_text(run.network.widths) + (run.network.bias ? " with biases" : "") + ", " +
             std::to_string(samples) + (samples == 1 ? " sample\n" : " samples\n"));
  for (const Candidate& candidate : plan.candidates) text.write(candidate_line(candidate));
  text.write(plan_line(plan, run.training.precision));
  text.check();
  return 0;
}

}  // namespace deviceloop::cli
