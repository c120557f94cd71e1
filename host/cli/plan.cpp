// deviceloop plan: what train would run with the same options, and why. Trains and writes nothing.
#include <memory>
#include <string>
#include <vector>

#include <deviceloop/plan.h>

#include "checkpoint.h"
#include "commands.h"
#include "cuda_entry.h"
#include "inputs.h"
#include "machine.h"
#include "matrix_ops.h"
#include "memory.h"
#include "report.h"
#include "run_options.h"
#include "text.h"
#include "text_output.h"

namespace deviceloop::cli {
namespace {

/// Every column as wide as its widest entry; numbers end together.
std::string table(const std::vector<Candidate>& candidates, Formulation formulation) {
  std::vector<CandidateRow> rows = {candidate_headings(formulation)};
  for (const Candidate& candidate : candidates) rows.push_back(candidate_row(candidate));
  CandidateRow widest;
  for (const CandidateRow& entries : rows)
    for (std::size_t i = 0; i < entries.size(); ++i)
      if (entries[i].size() > widest[i].size()) widest[i] = entries[i];
  std::string text;
  for (const CandidateRow& entries : rows) {
    for (std::size_t i = 0; i + 1 < entries.size(); ++i) {
      const std::string space(widest[i].size() - entries[i].size(), ' ');
      const bool number = i >= 2 && i <= 4;
      text += (number ? space + entries[i] : entries[i] + space) + "  ";
    }
    text += entries.back() + "\n";
  }
  return text;
}

}  // namespace

void declare_plan(OptionSet& options) { declare_train_options(options, "Output of train (plan writes no file)"); }

int run_plan(const OptionSet& given) {
  OptionSet options = given;
  open_checkpoint(options);
  TrainOptions run = read_train_options(options);
  // The table shows for each executor whether it would run.
  DeviceCaps caps = query_caps_for(run.training.device);
  if (!caps.gpus.empty()) caps.no_cublaslt_reason = why_no_cublaslt();
  const std::unique_ptr<const WeightsInput> weights = open_weights(options, run, caps.cpu);
  Samples data;
  if (run.has_files()) {
    data = read_data(run, caps.cpu);
    scale_samples(data, scaling_of(run, weights.get(), data), run.training.precision, caps.cpu);
    set_samples(run, data.x.rows - run.validation.rows_of(data.x.rows));
    check_finite(data.x.view(), element_type(run.training.precision), data.x.name);
    check_finite(data.y.view(), element_type(run.training.precision), data.y.name);
    if (are_classes(run, data)) check_classes(data.y.view(), run.network.widths.back(), data.y.name);
    if (run.training.sample_weights)
      check_weights(data.weights.view(), element_type(run.training.precision), data.weights.name);
  }
  const std::int64_t samples = run.training.samples;
  const Plan plan = plan_run(run, caps, data);

  // Files are not written, so that standard output is free even where one of them is '-'.
  TextOutput text(options.given("--quiet") ? TextOutput::Where::nowhere : TextOutput::Where::standard_output);
  text.write("--layers " + network_text(run.network) + ", " + std::to_string(samples) +
             (samples == 1 ? " sample\n" : " samples\n"));
  text.write(table(plan.candidates, plan.formulation));
  text.write(plan_line(plan, run.training, run.network, run.epochs));
  if (row_of(plan.executor).is_on_gpu)
    text.write(std::string("CUDA's context") +
               (plan.executor == ExecutorKind::graph ? " and cuBLASLt's code take" : " takes") +
               " memory of the GPU beside what is counted here\n");
  text.check();
  return 0;
}

}  // namespace deviceloop::cli
