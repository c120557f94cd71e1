#include "same_file.h"

#include <sys/stat.h>

#include <filesystem>
#include <system_error>

#include "output_file.h"

namespace deviceloop {
namespace {

std::optional<FileIdentity> identity_by(const struct stat& status) {
  if (S_ISCHR(status.st_mode)) return std::nullopt;
  return FileIdentity{status.st_dev, status.st_ino, {}, S_ISREG(status.st_mode)};
}

}  // namespace

std::optional<FileIdentity> identity_of(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0) return identity_by(status);
  std::error_code error;
  const std::filesystem::path target = resolve_links(path, error);
  if (error || ::stat(target.parent_path().c_str(), &status) != 0) return std::nullopt;
  return FileIdentity{status.st_dev, status.st_ino, target.filename().string()};
}

std::optional<FileIdentity> identity_of(int descriptor) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) return std::nullopt;
  return identity_by(status);
}

}  // namespace deviceloop
