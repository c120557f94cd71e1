#include "text_output.h"

#include <unistd.h>

#include <cerrno>
#include <system_error>

#include <deviceloop/error.h>

#include "interrupt.h"

namespace deviceloop::cli {

void TextOutput::write(std::string_view text) {
  if (where_ == Where::nowhere || error_ != 0) return;
  error_ = write_all(where_ == Where::standard_output ? STDOUT_FILENO : STDERR_FILENO, text);
}

void TextOutput::check() const {
  if (error_ != 0 && where_ == Where::standard_output)
    throw Error("cannot write to standard output: " + std::generic_category().message(error_) +
                "; with --quiet nothing is written there");
}

int write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor, text.data(), text.size());
    // After a signal that ends the run, nobody may be reading this.
    if (written < 0 && errno == EINTR && interrupt() == 0) continue;
    if (written < 0) return errno;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return 0;
}

}  // namespace deviceloop::cli
