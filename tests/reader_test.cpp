// The choice of a format: by the first bytes, then by the name.
#include "files/reader.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "files/npy.h"
#include "support/refusal.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

using testing::read_all;
using testing::refusal;
using testing::TemporaryFolder;

std::string npy_file(const TemporaryFolder& folder) {
  const float values[] = {1, 2, 3, 4, 5, 6};
  OutputFile file(folder / "x.npy");
  write_npy(file, ConstMatrix(values, 2, 3));
  file.commit();
  return folder / "x.npy";
}

std::string refused(const std::string& path) {
  return refusal(path + ": ", [&] { read_matrix(path); });
}

TEST(ReadMatrix, KnowsNpyByItsContentAndByItsName) {
  const TemporaryFolder folder;
  const std::string path = npy_file(folder);
  EXPECT_EQ(read_matrix(path).columns, 3);
  EXPECT_EQ(read_matrix(folder.write("x.csv", read_all(path))).columns, 3);
  EXPECT_EQ(read_matrix(folder.write("x", read_all(path))).columns, 3);
  EXPECT_MENTIONS(refused(folder.write("y.NPY", "1.0")), "is not an .npy file");
}

TEST(ReadMatrix, RefusesWhatIsOfNoKnownFormat) {
  const TemporaryFolder folder;
  EXPECT_MENTIONS(refused(folder.write("x.bin", "1.0")), "has no known format");
  EXPECT_MENTIONS(refused(folder.write("x.bin", "1")), "write it as one of these: .npy, .npz, IDX or .csv");
  EXPECT_MENTIONS(refused(folder.write("x.npy", "\x1f\x8b\x08")), "unpack it with gunzip");
  EXPECT_MENTIONS(refused(folder.write("x.npy", "")), "is empty");
  const std::string npy = npy_file(folder);
  EXPECT_MENTIONS(refusal(npy + ": ", [&] { read_samples(npy); }), "holds one matrix, not inputs and targets");
}

TEST(ReadMatrix, TakesNoMoreMemoryThanAllowed) {
  const TemporaryFolder folder;
  const std::string path = npy_file(folder);
  EXPECT_EQ(read_matrix(path, {.most_bytes = 24}).rows, 2);
  EXPECT_MENTIONS(refusal(path + ": ", [&] { read_matrix(path, {.most_bytes = 23}); }),
                  "takes 24 bytes of memory, but only 23 bytes");
}

/// A pipe through which `content` comes, slowly and in pieces.
class Pipe {
 public:
  Pipe(const TemporaryFolder& folder, const std::string& name, const std::string& content) : path_(folder / name) {
    if (::mkfifo(path_.c_str(), 0600) != 0) throw std::runtime_error("no pipe " + path_);
    writer_ = std::thread([path = path_, content] {
      const int end = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
      for (std::size_t at = 0; at < content.size();) {
        const ssize_t count = ::write(end, content.data() + at, std::min<std::size_t>(content.size() - at, 50000));
        if (count <= 0) break;  // the reader has had enough
        at += static_cast<std::size_t>(count);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      ::close(end);
    });
  }
  ~Pipe() { writer_.join(); }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::thread writer_;
};

TEST(ReadMatrix, ReadsPipesIntoMemory) {
  std::signal(SIGPIPE, SIG_IGN);
  const TemporaryFolder folder;
  EXPECT_EQ(read_matrix(Pipe(folder, "npy", read_all(npy_file(folder))).path()).columns, 3);
  EXPECT_EQ(read_matrix(Pipe(folder, "csv", "1,2\n3,4\n").path()).rows, 2);
  EXPECT_EQ(read_matrix(Pipe(folder, "named", "a,b\n3,4\n").path()).header_line, 1);
  std::string rows;
  for (int i = 0; i < 100000; ++i) rows += std::to_string(i) + "," + std::to_string(2 * i) + "\n";
  const DataMatrix matrix = read_matrix(Pipe(folder, "long", rows).path());
  ASSERT_EQ(matrix.rows, 100000);
  EXPECT_EQ(static_cast<const double*>(std::as_const(matrix).view().data)[199999], 199998);

  const auto refused_pipe = [&](const std::string& name, const std::string& content, std::uint64_t most_bytes) {
    const Pipe pipe(folder, name, content);
    return refusal(pipe.path() + ": ", [&] { read_matrix(pipe.path(), {.most_bytes = most_bytes}); });
  };
  EXPECT_MENTIONS(refused_pipe("large", rows, 1 << 20), "is a pipe, through which more than 1.0 MiB came");
  EXPECT_MENTIONS(refused_pipe("twice", rows, rows.size() + 100), "of memory, but only 100 bytes are free");
  EXPECT_MENTIONS(refused_pipe("nothing", "", 1000), "is a pipe, through which nothing came");
  EXPECT_MENTIONS(refused_pipe("binary", std::string("\x01\x02\x03", 3), 1000), "has no known format");
  EXPECT_MENTIONS(refused_pipe("tabs", "1\t2\n", 1000), "it has tabs between its numbers");
}

TEST(ReadMatrix, ReadsASocketThatWasInherited) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  ASSERT_EQ(::write(ends[1], "1,2\n3,4\n", 8), 8);
  ::close(ends[1]);
  EXPECT_EQ(read_matrix("/dev/fd/" + std::to_string(ends[0])).rows, 2);
  ::close(ends[0]);
}

}  // namespace
}  // namespace deviceloop
