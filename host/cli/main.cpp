// The command deviceloop: picks the subcommand and turns what it throws into one line on standard error and an exit
// code. 0: done; 1: failed while running, or the forced plan or device is not available here; 2: bad usage or bad
// input.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <deque>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/version.h>

#include "commands.h"
#include "machine.h"
#include "suggestion.h"
#include "text.h"
#include "text_output.h"

namespace deviceloop::cli {
namespace {

struct Command {
  const char* name;
  const char* description;
  const char* example;  // for the help; may be empty
  void (*declare)(OptionSet&);
  int (*run)(const OptionSet&);
};

constexpr Command kCommands[] = {
    {"train", "train a network; the defaults are an example", "", declare_train, run_train},
    {"predict", "apply saved weights to new rows", "deviceloop predict --weights w.safetensors --x new.npy --out p.npy",
     declare_predict, run_predict},
    {"plan", "say what train would run, and why", "", declare_plan, run_plan},
    {"compare", "compare two runs, such as CPU and GPU", "deviceloop compare --a cuda --b cpu,fp64", declare_compare,
     run_compare},
    {"data", "write what train would draw, or a task to try",
     "deviceloop data --x x.npy --y y.npy --weights w.safetensors", declare_data, run_data},
    {"info", "show what this build and this machine offer", "", declare_info, run_info},
};

/// A file opened while descriptor 1 is closed would become standard output.
void open_standard_descriptors() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(descriptor, F_GETFD) == -1) {
      // Opened for the wrong direction, so that using it fails as on a closed descriptor. open() returns this
      // descriptor, because it is the lowest free one.
      [[maybe_unused]] const int opened = open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY);
    }
}

int print(const std::string& text) {
  TextOutput output(TextOutput::Where::standard_output);
  output.write(text);
  output.check();
  return 0;
}

int run(const std::vector<std::string>& arguments) {
  CLI::App app("neural network training on the device", "deviceloop");
  use_short_help(app);
  app.set_help_flag("-h,--help", "show help, also of a command");
  app.set_version_flag("--version", std::string("deviceloop ") + DEVICELOOP_VERSION, "show the version");
  app.footer("deviceloop train --steps 200 --save w.safetensors --plot loss.svg");
  app.require_subcommand(0, 1);
  app.allow_extras();
  std::deque<OptionSet> option_sets;  // a deque: CLI11 and check() hold on to them
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    CLI::App* subcommand = app.add_subcommand(command.name, command.description);
    subcommand->set_version_flag("--version", std::string("deviceloop ") + DEVICELOOP_VERSION, "show the version");
    subcommand->allow_extras();
    subcommand->footer(command.example);
    command.declare(option_sets.emplace_back(*subcommand));
    names.push_back(command.name);
  }

  try {
    refuse_empty_values(arguments);
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    return print(app.help());
  } catch (const CLI::CallForVersion& version) {
    return print(std::string(version.what()) + "\n");
  } catch (const CLI::ArgumentMismatch&) {
    // All other errors that CLI11 could report are checked here: what remains is a value missing at the end.
    const bool command = std::find(names.begin(), names.end(), arguments.front()) != names.end();
    throw InvalidArgument(in_quotes(arguments.back()) + " needs a value; see deviceloop " +
                          (command ? arguments.front() + " --help" : "--help"));
  }
  const std::vector<std::string> left = app.remaining();
  if (!left.empty()) {
    const bool option = left.front().rfind('-', 0) == 0;
    throw InvalidArgument(
        (option ? "unknown option " : "unknown command ") + in_quotes(left.front()) +
        (option ? ": options follow a command, as in deviceloop train --steps 100" : suggestion(left.front(), names)) +
        "; see deviceloop --help");
  }
  for (std::size_t i = 0; i < option_sets.size(); ++i) {
    if (!app.got_subcommand(kCommands[i].name)) continue;
    option_sets[i].check();
    return kCommands[i].run(option_sets[i]);
  }
  write_all(STDERR_FILENO, app.help());
  return 2;
}

int fail(int exit_code, const std::string& message) {
  write_all(STDERR_FILENO, "deviceloop: " + printable(message) + "\n");
  return exit_code;
}

int run_and_report(const std::vector<std::string>& arguments) {
  try {
    return run(arguments);
  } catch (const InvalidArgument& error) {
    return fail(2, error.what());
  } catch (const CLI::ParseError& error) {
    return fail(2, std::string(error.what()) + "; see deviceloop --help");
  } catch (const std::bad_alloc&) {
    return fail(1, "out of memory; use smaller layers or fewer samples");
  } catch (const std::exception& error) {
    return fail(1, error.what());
  }
}

}  // namespace
}  // namespace deviceloop::cli

int main(int argc, char** argv) {
  deviceloop::cli::open_standard_descriptors();
  std::signal(SIGPIPE, SIG_IGN);  // the files of a run must be written even if the reader of a pipe has gone
  const int code = deviceloop::cli::run_and_report(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
  // At exit OpenBLAS waits for threads of its own, which under such a limit may ask for their buffers for ever.
  if (deviceloop::address_space_left()) _exit(code);
  return code;
}
