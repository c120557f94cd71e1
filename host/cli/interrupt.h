// SIGINT and SIGTERM: the first is noted and ends the run in good order, the next ends the process.
#pragma once

namespace deviceloop::cli {

/// From here on signals are noted. One that the caller of the command has set to be ignored stays ignored.
void catch_interrupts();

/// Number of the signal that came; 0: none.
int interrupt();

/// Thrown by throw_if_interrupted().
struct Interrupted {
  int signal;
};
/// For the time before training, when nothing has been done that is worth keeping.
void throw_if_interrupted();

}  // namespace deviceloop::cli
