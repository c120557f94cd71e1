#include "read_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>
#include <system_error>
#include <utility>

#include <deviceloop/error.h>

#include "../text.h"

namespace deviceloop {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

std::string remedy(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
    case ENAMETOOLONG:
    case ELOOP:
      return "check the path";
    case EACCES:
    case EPERM:
      return "give yourself the right to read it";
    default:
      return "see whether another program can read it";
  }
}

/// A copy of the descriptor that `path` names, /dev/stdin or /dev/fd/N; -1 for another path. Linux opens no socket by
/// such a name, and a socket is what ssh gives a command for its standard input.
int copied_descriptor(std::string_view path) {
  int descriptor = path == "/dev/stdin" ? STDIN_FILENO : -1;
  constexpr std::string_view kFolder = "/dev/fd/";
  if (path.starts_with(kFolder)) std::from_chars(path.data() + kFolder.size(), path.data() + path.size(), descriptor);
  return descriptor < 0 ? -1 : ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
}

}  // namespace

void ByteSource::refuse(const std::string& problem) const { throw InvalidArgument(name_ + ": " + problem); }

MemorySource::MemorySource(std::string name, std::span<const std::byte> bytes)
    : ByteSource(std::move(name), bytes.size()), bytes_(bytes) {
  if (bytes.empty()) refuse("is empty; write the file again");
}

void MemorySource::read(std::uint64_t offset, void* out, std::size_t bytes) const {
  if (bytes != 0) std::memcpy(out, bytes_.data() + offset, bytes);
}

InputFile::InputFile(const std::string& path, std::uint64_t most_bytes) : ByteSource(printable(path)) {
  if (path.empty()) throw InvalidArgument("the path of the file to read is empty; give the name of a file");
  if (path.find('\0') != std::string::npos) refuse("has a NUL character in its path; give the name of a file");
  do {
    // Without O_NONBLOCK some devices, which are refused below, would wait here.
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) {
    const int error = errno;
    if (error == ENXIO) descriptor_ = copied_descriptor(path);
    if (descriptor_ < 0) refuse("cannot be read: " + reason(error) + "; " + remedy(error));
  }
  try {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) refuse("cannot be read: " + reason(errno) + "; " + remedy(errno));
    if (S_ISDIR(status.st_mode)) refuse("is a folder; give the name of a file in it");
    if (S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode)) {
      read_pipe(most_bytes);
      return;
    }
    if (!S_ISREG(status.st_mode)) refuse("is a device; write its content to a file and give that");
    if (status.st_size <= 0) refuse("is empty; write the file again");
    set_size(static_cast<std::uint64_t>(status.st_size));
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read_pipe(std::uint64_t most_bytes) {
  constexpr std::size_t kPiece = 1 << 16;
  std::size_t size = 0;
  for (;;) {
    pollfd pipe{descriptor_, POLLIN, 0};
    if (::poll(&pipe, 1, -1) <= 0) continue;  // a signal
    content_.resize(size + kPiece);
    const ssize_t count = ::read(descriptor_, content_.data() + size, kPiece);
    if (count < 0 && errno != EINTR && errno != EAGAIN)
      throw Error(name() + ": reading failed: " + reason(errno) + "; try again");
    if (count == 0) break;
    size += static_cast<std::size_t>(std::max<ssize_t>(count, 0));
    if (size > most_bytes)
      refuse("is a pipe, through which more than " + bytes_text(most_bytes) +
             " came, which is all free memory; write its content to a file and give that");
  }
  if (size == 0) refuse("is a pipe, through which nothing came; check whether the program that writes to it fails");
  content_.resize(size);
  set_size(size);
}

void InputFile::read(std::uint64_t offset, void* out, std::size_t bytes) const {
  if (is_pipe()) {
    if (bytes != 0) std::memcpy(out, content_.data() + offset, bytes);
    return;
  }
  char* to = static_cast<char*>(out);
  while (bytes > 0) {
    const std::size_t chunk = std::min(bytes, std::size_t{1} << 30);
    const ssize_t count = ::pread(descriptor_, to, chunk, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw Error(name() + ": reading failed: " + reason(errno) + "; check the disk and try again");
    if (count == 0) throw Error(name() + ": became shorter while it was read; try again once nobody writes to it");
    to += count;
    offset += static_cast<std::uint64_t>(count);
    bytes -= static_cast<std::size_t>(count);
  }
}

}  // namespace deviceloop
