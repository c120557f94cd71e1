// kernels.txt: every kernel of cuda/, so that none can be left out of the tests unseen.
#pragma once

#include <fstream>
#include <set>
#include <string>

namespace simt {

inline std::set<std::string> listed_kernels() {
  std::ifstream file(DEVICELOOP_SOURCE_DIR "/tests/simt/kernels.txt");
  std::set<std::string> names;
  for (std::string line; std::getline(file, line);)
    if (!line.empty()) names.insert(line);
  return names;
}

}  // namespace simt
