// The text for people, as opposed to files: on standard output, on standard error if an output file is standard output,
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
  /// Written at once. Does not throw: the files of a run must be written even if the reader has gone. After a failure
  /// no more text is written.
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
