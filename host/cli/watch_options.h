// The options of train and plan that say what is watched while a network trains, and when that ends a run.
#pragma once

#include <cstdint>
#include <string>

#include <deviceloop/spec.h>

#include "options.h"

namespace deviceloop::cli {

/// Where validation data come from: files, as those of the data, or a part of the data.
struct ValidationInput {
  std::string x, y, data;  ///< empty: not given
  double fraction = 0;     ///< of the samples; 0: none

  bool has_files() const { return !x.empty() || !data.empty(); }
  bool given() const { return has_files() || fraction > 0; }
  /// How many of the data's `rows` are for validation. Throws InvalidArgument where that leaves none to train by.
  std::int64_t rows_of(std::int64_t rows) const;
};

/// --validate, --validate-x, --validate-y, --validate-fraction, --validate-every, --patience, --target-loss, --keep.
void declare_watch(OptionSet& options);
/// Sets all of `watch`. Throws InvalidArgument for options that need validation data where there are none.
ValidationInput read_watch(const OptionSet& options, Watch& watch);

}  // namespace deviceloop::cli
