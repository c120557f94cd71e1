#include "watch_options.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <deviceloop/error.h>

#include "text.h"

namespace deviceloop::cli {
namespace {

constexpr std::int64_t kMaxCount = std::numeric_limits<std::int64_t>::max();

enum class Keep { last, best };

}  // namespace

std::int64_t ValidationInput::rows_of(std::int64_t rows) const {
  if (fraction == 0) return 0;
  const auto part = static_cast<std::int64_t>(fraction * static_cast<double>(rows));
  if (rows < 2)
    throw InvalidArgument("--validate-fraction leaves no sample to train by, because there is only 1; drop it");
  return std::clamp(part, std::int64_t{1}, rows - 1);
}

void declare_watch(OptionSet& options) {
  options.add("--validate", "FILE", "", "validation data: .npz with x and y, or .csv");
  options.add("--validate-x", "FILE", "", "their inputs, as --x");
  options.add("--validate-y", "FILE", "", "their targets, as --y");
  options.add("--validate-fraction", "F", "0", "or this part of the data, by --seed");
  options.add("--validate-every", "STEPS", "0", "0: an epoch, without batches 100");
  options.add("--patience", "N", "0", "end after N evaluations without a better");
  options.add("--target-loss", "L", "", "end at this validation loss, without one loss");
  options.add("--keep", "NAME", "last", "weights to save: last or best");
}

ValidationInput read_watch(const OptionSet& options, Watch& watch) {
  ValidationInput input;
  input.data = options.file("--validate");
  input.x = options.file("--validate-x");
  input.y = options.file("--validate-y");
  if (input.x.empty() != input.y.empty())
    throw InvalidArgument(
        input.y.empty()
            ? "--validate-x " + printable(input.x) + " has no targets; add --validate-y FILE or drop --validate-x"
            : "--validate-y " + printable(input.y) + " has no inputs; add --validate-x FILE or drop --validate-y");
  const std::string must = "be a number above 0 and below 1, such as 0.1";
  if (options.given("--validate-fraction")) {
    input.fraction = options.number("--validate-fraction", must);
    if (input.fraction <= 0 || input.fraction >= 1) options.refuse("--validate-fraction", must);
  }
  if ((!input.data.empty()) + (!input.x.empty()) + (input.fraction > 0) > 1)
    throw InvalidArgument(
        "validation data are given twice; keep one of --validate, --validate-x with --validate-y, and "
        "--validate-fraction");

  watch.every = options.integer("--validate-every", 0, kMaxCount);
  watch.patience = options.integer("--patience", 0, kMaxCount);
  if (options.given("--target-loss"))
    watch.target_loss = options.number("--target-loss", "be a finite number of at least 0, such as 0.01");
  watch.keep_best = choose<Keep>(options, "--keep", {{"last", Keep::last}, {"best", Keep::best}}) == Keep::best;
  if (input.given()) return input;
  const char* const needed = "; add --validate FILE or --validate-fraction F, or drop it";
  if (watch.patience > 0)
    throw InvalidArgument("--patience " + options.text("--patience") + " needs validation data" + needed);
  if (watch.keep_best) throw InvalidArgument(std::string("--keep best needs validation data") + needed);
  if (options.given("--validate-every") && !watch.target_loss)
    throw InvalidArgument("--validate-every " + options.text("--validate-every") + " needs validation data" + needed);
  return input;
}

}  // namespace deviceloop::cli
