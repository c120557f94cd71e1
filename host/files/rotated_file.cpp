#include "rotated_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include <deviceloop/error.h>

#include "../text.h"

namespace deviceloop {
namespace {

/// 0 or errno.
int rename_to(const std::string& from, const std::string& to) {
  return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

int exchange(const std::string& one, const std::string& other) {
  if (::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP) return errno;
  const std::string old = other + ".old";
  if (const int error = rename_to(one, old)) return error;
  if (const int error = rename_to(other, one)) return error;
  return rename_to(old, other);
}

void sync_folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == path.npos ? "." : path.substr(0, slash + 1);
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

std::string target_of(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_symlink(path, error)) return path;
  const std::string target = resolve_links(path, error);
  return error ? path : target;
}

}  // namespace

std::string previous_of(const std::string& path) { return target_of(path) + ".previous"; }

void write_rotated(const std::string& path, const std::function<void(OutputFile&)>& write) {
  const std::string target = target_of(path), previous = previous_of(path);
  const bool exists = ::access(target.c_str(), F_OK) == 0;
  OutputFile file(exists ? previous : target);
  write(file);
  file.commit();
  if (!exists) return;
  if (const int error = exchange(target, previous))
    throw Error(printable(previous) + ": is the newest file, since exchanging its name with " + printable(target) +
                " failed: " + std::generic_category().message(error) + "; check the disk");
  sync_folder_of(target);
}

}  // namespace deviceloop
