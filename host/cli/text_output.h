// What people read, as opposed to files: on standard output, on standard error where an output file is standard output,
// or nowhere.
#pragma once

#include <string>
#include <string_view>

namespace deviceloop::cli {

class TextOutput {
 public:
  enum class Where { standard_output, standard_error, nowhere };

  explicit TextOutput(Where where) : where_(where) {}

  bool wanted() const { return where_ != Where::nowhere; }
  /// Written at once. Does not throw: a reader that went away must not cost the files of a run. After a failure nothing
  /// more is written.
  void write(std::string_view text);
  /// Throws Error where a write failed.
  void check() const;

 private:
  Where where_;
  int error_ = 0;
};

/// Writes all of `text`; returns 0 or errno.
int write_all(int descriptor, std::string_view text);

}  // namespace deviceloop::cli
