#include "loss_options.h"

#include <cmath>
#include <string>
#include <string_view>

#include <deviceloop/error.h>

#include "names.h"
#include "report.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

/// False for what is malformed.
bool parse_loss(std::string_view text, TrainingSpec& training) {
  constexpr std::string_view kHuber = "huber:";
  if (text.starts_with(kHuber)) {
    training.huber_delta = parse<double>(text.substr(kHuber.size())).value_or(0);
    if (!std::isfinite(training.huber_delta) || training.huber_delta <= 0) return false;
    text = "huber";
  }
  for (int number = 0; name_or_null(static_cast<Loss>(number)) != nullptr; ++number) {
    training.loss = static_cast<Loss>(number);
    if (text == loss_name(training.loss)) return true;
  }
  return false;
}

}  // namespace

void declare_loss(OptionSet& options) {
  options.add("--loss", "NAME", "squared", "squared, absolute, huber[:DELTA], bce or\ncross-entropy");
  options.add("--reduction", "NAME", "sum", "sum or mean of the losses");
}

void read_loss(const OptionSet& options, TrainingSpec& training) {
  if (!parse_loss(options.text("--loss"), training))
    options.refuse("--loss", "be squared, absolute, huber[:DELTA] with DELTA above 0, bce or cross-entropy");
  training.reduction = choose<Reduction>(options, "--reduction", {{"sum", Reduction::sum}, {"mean", Reduction::mean}});
}

void check_loss(const NetworkSpec& network, const TrainingSpec& training) {
  if (training.loss == Loss::cross_entropy && network.widths.back() < 2)
    throw InvalidArgument("--loss cross-entropy needs at least 2 outputs, one for each class, and --layers " +
                          widths_text(network.widths) + " has 1; give it more, or use --loss bce");
}

}  // namespace deviceloop::cli
