// Whether two names are one file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace deviceloop {

/// The identity of a file: equal for two names of one file, different for two files.
struct FileIdentity {
  std::uint64_t device = 0, file = 0;
  std::string name;     ///< of a file that does not exist yet: its name in the folder that `device` and `file` say
  bool regular = true;  ///< else a pipe, a socket or a disk
  bool operator==(const FileIdentity&) const = default;
};

/// The identity of the file that a write to `path` reaches through links, also dangling ones, or of the file behind a
/// descriptor. It is found by the inode, so that hard links, /dev/fd/N and ./.. make no difference. Empty for a
/// character device, such as /dev/null, which may be written twice, and for a path whose folder does not exist.
std::optional<FileIdentity> identity_of(const std::string& path);
std::optional<FileIdentity> identity_of(int descriptor);

}  // namespace deviceloop
