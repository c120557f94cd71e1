// A file of which the one before is kept, such that at every moment a complete one is there.
#pragma once

#include <functional>
#include <string>

#include "output_file.h"

namespace deviceloop {

/// "FILE.previous", beside the file that `path` ends at.
std::string previous_of(const std::string& path);

/// Writes a file by `write`, which does not commit; what was at `path` is then at previous_of(path). Throws as
/// OutputFile does, and what `write` throws; then both are as they were. The new file is first given the name of the
/// one before last, and then the two change their names: whenever the process or the machine stops, and even if the
/// file at `path` is damaged, one of the two is the new file or the one before last, complete. Both names always exist,
/// unless the file system cannot exchange names in one step (NFS): then one of the two may be missing, and one named
/// "FILE.previous.old" there.
void write_rotated(const std::string& path, const std::function<void(OutputFile&)>& write);

}  // namespace deviceloop
