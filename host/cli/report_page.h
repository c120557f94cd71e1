// A run as one HTML page, for people to read, pass on and attach: what was trained and how it ended, the curves, the
// plan, all settings, and the command that does it again. The page refers to nothing outside of itself, has no script,
// and is well-formed XML too. Programs find in it what --json writes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "options.h"
#include "report.h"
#include "system_facts.h"

namespace deviceloop::cli {

/// What a report says beside the result of its run. Lines end with a line feed.
struct ReportFacts {
  std::string date;  ///< "2026-11-27 03:20 UTC"
  std::int64_t steps_asked = 0;
  std::string input_lines;   ///< what was read or drawn
  std::string note_lines;    ///< as of note_lines()
  std::string problem;       ///< of a run that diverged, one sentence; else empty
  bool interrupted = false;  ///< by a signal
  std::vector<Setting> settings;
  std::vector<Fact> system;
};

/// `text` as one word for a shell; with bytes that are no text, for those that know $'...'.
std::string shell_word(std::string_view text);

/// The command with the options that were given.
std::string command_line(const std::vector<Setting>& settings);

std::string report_page(const RunResult& result, const ReportFacts& facts);

}  // namespace deviceloop::cli
