// Signals that end a run: those of a terminal (INT, QUIT, HUP when it closes), of batch systems (TERM, XCPU, USR1,
// USR2).
#pragma once

#include <chrono>

namespace deviceloop::cli {

/// How long after a signal a run that trains, or one that saves what it has, may take to end: a chunk of steps takes
/// 50 ms, and files that are complete in a few seconds are worth having; a service manager waits for ten.
constexpr std::chrono::milliseconds kPatience{800}, kSavingPatience{8000};

/// From here on such a signal ends the process at once; unfinished files are removed and a running child program is
/// killed. A signal that was ignored when the command started stays ignored, here and below.
void end_on_signals();

/// From here on there are results to keep: the first of INT, TERM, HUP and XCPU is noted, and the process must end by
/// itself within `patience` after it. A second INT or TERM ends it at once.
void note_signals(std::chrono::milliseconds patience);

/// Number of the signal that was noted; 0: none.
int interrupt();

/// Changes `patience`, counted from now if a signal was noted already.
void set_patience(std::chrono::milliseconds patience);

}  // namespace deviceloop::cli
