// Signals that end a run: those of a terminal (INT, QUIT, HUP when it closes), of batch systems (TERM, XCPU, USR1,
// USR2).
#pragma once

#include <chrono>

namespace deviceloop::cli {

/// From here on such a signal ends the process at once, and what is unfinished, files and a program that runs, goes
/// with it. One that the caller of the command has set to be ignored stays ignored, here and below.
void end_on_signals();

/// From here on there is work worth keeping: the first of INT, TERM, HUP and XCPU is noted, and the process has until
/// `patience` after it to end by itself. A second INT or TERM ends it at once.
void note_signals(std::chrono::milliseconds patience);

/// Number of the signal that was noted; 0: none.
int interrupt();

/// The same, counted from now where a signal was noted already.
void set_patience(std::chrono::milliseconds patience);

}  // namespace deviceloop::cli
