// What went wrong in a run that goes on nevertheless, so that its other results are written.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace deviceloop::cli {

/// The problems of a run that are reported when it has finished.
class Problems {
 public:
  void add(std::string problem) { text_ += (text_.empty() ? "" : "; ") + std::move(problem); }
  /// Calls `work`; what it throws is added.
  template <class Work>
  bool attempt(const Work& work) {
    try {
      work();
      return true;
    } catch (const std::exception& error) {
      add(error.what());
      return false;
    }
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace deviceloop::cli
