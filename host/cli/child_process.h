// Runs another program: without a shell, with text on its standard input, within a time.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

namespace deviceloop::cli {

/// The file that `program` names in the folders of PATH; empty where none of them has it.
std::string find_program(const std::string& program);

/// How a program ended, and what it wrote.
struct ChildResult {
  std::string failure;  ///< empty: exit code 0; else "exit code 1", "signal 9", "no end within 60 s"
  std::string out;
  std::string err;  ///< no more than its first 4 KiB
};

/// Runs the file `program`, writes `input` to its standard input and collects what it writes meanwhile, so that neither
/// waits for the other. It runs in a process group of its own, which Ctrl-C on the terminal does not reach; all of it
/// is killed when `limit` has passed or it has written more than `most` bytes. It is no failure if the program does not
/// read its input. Expects SIGPIPE to be ignored. Throws Error where it cannot be started.
ChildResult run_program(const std::string& program, const std::vector<std::string>& arguments, std::string_view input,
                        std::chrono::milliseconds limit, std::size_t most = std::size_t{256} << 20);

/// Kills the program that run_program runs, if any. For a signal handler that ends the process.
void kill_running_program() noexcept;

}  // namespace deviceloop::cli
