// kernels.txt: every kernel of cuda/ and, behind it, the test program simt_NAME_test that runs it, so that none can be
// left out of the tests unseen.
#pragma once

#include <fstream>
#include <set>
#include <string>

namespace simt {

/// Those of one program, or all.
inline std::set<std::string> listed_kernels(const std::string& program = "") {
  std::ifstream file(DEVICELOOP_SOURCE_DIR "/tests/simt/kernels.txt");
  std::set<std::string> names;
  for (std::string kernel, runs_in; file >> kernel >> runs_in;)
    if (program.empty() || runs_in == program) names.insert(kernel);
  return names;
}

}  // namespace simt
