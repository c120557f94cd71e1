// Files that appear whole or not at all, and targets that are refused before anything is written.
#include "files/output_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>
#include <thread>

#include "support/refusal.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

namespace fs = std::filesystem;
using testing::read_all;
using testing::refusal;
using testing::TemporaryFolder;

int mode_of(const std::string& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
  return static_cast<int>(status.st_mode & 07777);
}

std::string open_refusal(const std::string& path) {
  return refusal(path, [&] { OutputFile file(path); });
}

void put(const std::string& path, std::string_view text) {
  OutputFile file(path);
  file.write(text);
  file.commit();
}

/// Root may write everything; for as long as this lives the process is an ordinary user.
class OrdinaryUser {
 public:
  OrdinaryUser() : user_(::geteuid()) { ordinary_ = user_ != 0 || ::seteuid(65534) == 0; }
  ~OrdinaryUser() { EXPECT_EQ(::seteuid(user_), 0); }
  bool ordinary() const { return ordinary_; }

 private:
  uid_t user_;
  bool ordinary_;
};

/// Puts another descriptor in the place of standard output.
class StandardOutput {
 public:
  explicit StandardOutput(int descriptor) {
    std::fflush(stdout);
    kept_ = ::dup(STDOUT_FILENO);
    ::dup2(descriptor, STDOUT_FILENO);
  }
  ~StandardOutput() {
    ::dup2(kept_, STDOUT_FILENO);
    ::close(kept_);
  }

 private:
  int kept_;
};

/// On a file system with unnamed files, and as on one without.
class EitherOutputFile : public ::testing::TestWithParam<OutputFile::Unfinished> {
 protected:
  static bool named() { return GetParam() == OutputFile::Unfinished::named; }
};
INSTANTIATE_TEST_SUITE_P(Unfinished, EitherOutputFile,
                         ::testing::Values(OutputFile::Unfinished::unnamed_where_possible,
                                           OutputFile::Unfinished::named),
                         [](const auto& instance) {
                           return instance.param == OutputFile::Unfinished::named ? "Named" : "Unnamed";
                         });

TEST_P(EitherOutputFile, AppearsOnlyAtCommit) {
  const TemporaryFolder folder;
  const std::string path = folder / "out.txt";
  OutputFile file(path, GetParam());
  EXPECT_EQ(folder.count(), 0);
  file.write("first ");
  file.write("second");
  EXPECT_FALSE(fs::exists(path));
  ASSERT_EQ(folder.count(), named() ? 1 : 0);
  if (named()) {
    const std::string temporary = fs::directory_iterator(folder.path())->path().filename().string();
    EXPECT_EQ(temporary.substr(0, 9), ".out.txt.");
    EXPECT_EQ(temporary.size(), std::string(".out.txt.XXXXXX.tmp").size());
    EXPECT_TRUE(temporary.ends_with(".tmp"));
  }
  file.commit();
  EXPECT_EQ(read_all(path), "first second");
  EXPECT_EQ(folder.count(), 1);
  EXPECT_EQ(file.path(), path);
  EXPECT_MENTIONS(refusal<Error>(path, [&] { file.commit(); }), "closed after");
}

TEST_P(EitherOutputFile, LeavesNothingWithoutCommit) {
  const TemporaryFolder folder;
  const std::string old = folder.write("old.txt", "old");
  {
    OutputFile created(folder / "new.txt", GetParam()), replaced(old, GetParam());
    created.write("text");
    replaced.write("text");
    EXPECT_EQ(folder.count(), named() ? 3 : 1);
  }
  EXPECT_EQ(folder.count(), 1);
  EXPECT_EQ(read_all(old), "old");
}

TEST_P(EitherOutputFile, ReplacesAndKeepsWhoMayReadIt) {
  const TemporaryFolder folder;
  const std::string path = folder.write("old.txt", "a long old text");
  for (const int mode : {0640, 0600, 0755, 0444 | 0200}) {
    ASSERT_EQ(::chmod(path.c_str(), static_cast<mode_t>(mode)), 0);
    OutputFile file(path, GetParam());
    file.write("new");
    file.commit();
    EXPECT_EQ(read_all(path), "new");
    EXPECT_EQ(mode_of(path), mode);
  }
  OutputFile empty(path, GetParam());
  empty.commit();
  EXPECT_EQ(read_all(path), "");
  EXPECT_EQ(folder.count(), 1);
}

/// How a process of its own ends that runs `work`.
template <class Work>
int end_of(const Work& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    work();
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST_P(EitherOutputFile, LeavesNothingBehindInAProcessThatIsKilled) {
  const TemporaryFolder folder;
  folder.write("old.txt", "old");
  const int status = end_of([&] {
    OutputFile created(folder / "new.txt", GetParam()), replaced(folder / "old.txt", GetParam());
    if (!named()) {
      created.write("text");
      replaced.write("text");
    }
    ::raise(SIGKILL);
  });
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_EQ(folder.count(), 1);
  EXPECT_EQ(read_all(folder / "old.txt"), "old");
}

TEST(OutputFile, NamesThatAreUnfinishedCanBeRemovedAtAnyTime) {
  const TemporaryFolder folder;
  OutputFile file(folder / "new.txt", OutputFile::Unfinished::named);
  file.write("text");
  put(folder / "done.txt", "text");
  EXPECT_EQ(folder.count(), 2);
  remove_unfinished_files();
  EXPECT_EQ(folder.count(), 1);
  EXPECT_MENTIONS(refusal<Error>(folder / "new.txt", [&] { file.commit(); }), "No such file");
  EXPECT_EQ(read_all(folder / "done.txt"), "text");
}

TEST(OutputFile, ReplacesAFileAndKeepsItsPermissions) {
  const TemporaryFolder folder;
  const std::string path = folder.write("old.txt", "a long old text");
  for (const int mode : {0640, 0600, 0755, 0666}) {
    ASSERT_EQ(::chmod(path.c_str(), static_cast<mode_t>(mode)), 0);
    put(path, "new");
    EXPECT_EQ(read_all(path), "new");
    EXPECT_EQ(mode_of(path), mode);
  }
}

TEST(OutputFile, GivesANewFileThePermissionsOfTheUmask) {
  const TemporaryFolder folder;
  const mode_t umask_before = ::umask(0027);
  put(folder / "a", "text");
  ::umask(0);
  put(folder / "b", "text");
  ::umask(umask_before);
  EXPECT_EQ(mode_of(folder / "a"), 0640);
  EXPECT_EQ(mode_of(folder / "b"), 0666);
}

TEST(OutputFile, WritesInTheWorkingFolder) {
  const TemporaryFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  {
    OutputFile file("plain.txt");
    file.write("text");
    fs::current_path(before);  // a program may change it between the two
    file.commit();
  }
  EXPECT_EQ(read_all(folder / "plain.txt"), "text");
}

TEST(OutputFile, FollowsALink) {
  const TemporaryFolder folder;
  fs::create_directory(folder.path() / "sub");
  folder.write("sub/target.txt", "old");
  fs::create_symlink("sub/target.txt", folder.path() / "link");
  fs::create_symlink("link", folder.path() / "link to link");
  put(folder / "link to link", "new");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_TRUE(fs::is_symlink(folder / "link to link"));
  EXPECT_EQ(read_all(folder / "sub/target.txt"), "new");
}

TEST(OutputFile, CreatesTheTargetOfADanglingLink) {
  const TemporaryFolder folder;
  fs::create_directory(folder.path() / "sub");
  fs::create_symlink("../made.txt", folder.path() / "sub/second");
  fs::create_symlink("sub/second", folder.path() / "first");
  put(folder / "first", "text");
  EXPECT_TRUE(fs::is_symlink(folder / "first"));
  EXPECT_TRUE(fs::is_symlink(folder / "sub/second"));
  EXPECT_EQ(read_all(folder / "made.txt"), "text");
  fs::create_symlink("nowhere/made.txt", folder.path() / "lost");
  EXPECT_MENTIONS(open_refusal(folder / "lost"), "create the folder");
}

TEST(OutputFile, RefusesALoopOfLinks) {
  const TemporaryFolder folder;
  fs::create_symlink("b", folder.path() / "a");
  fs::create_symlink("a", folder.path() / "b");
  EXPECT_MENTIONS(open_refusal(folder / "a"), "symbolic links");
}

TEST(OutputFile, RefusesAPathWhereNoFileCanBe) {
  const TemporaryFolder folder;
  const std::string file = folder.write("file", "text");
  EXPECT_MENTIONS(open_refusal(folder.path().string()), "is a folder; give the name of a file");
  EXPECT_MENTIONS(open_refusal(folder.path().string() + "/"), "is a folder");
  EXPECT_MENTIONS(open_refusal(folder / "missing/out.txt"), "No such file or directory; create the folder");
  EXPECT_MENTIONS(open_refusal(folder / "missing/"), "create the folder");
  EXPECT_MENTIONS(open_refusal(file + "/out.txt"), "Not a directory; give");
  EXPECT_MENTIONS(open_refusal(folder / std::string(256, 'n')), "File name too long; give another name");
  EXPECT_MENTIONS(refusal("the path", [] { OutputFile out(""); }), "is empty; give");
  EXPECT_MENTIONS(refusal(file + "\\x00", [&] { OutputFile out(file + std::string(1, '\0')); }), "NUL");
  EXPECT_MENTIONS(refusal(folder / "no\\x0afolder/x", [&] { OutputFile out(folder / "no\nfolder/x"); }), "create");
  EXPECT_EQ(folder.count(), 1);
}

TEST(OutputFile, TakesTheLongestName) {
  const TemporaryFolder folder;
  const std::string plain = folder / std::string(255, 'n');
  put(plain, "text");
  EXPECT_EQ(read_all(plain), "text");
  std::string letters;  // of two bytes each
  for (int i = 0; i < 127; ++i) letters += "\xc3\xa4";
  put(folder / letters, "text");
  EXPECT_EQ(read_all(folder / letters), "text");
  EXPECT_EQ(folder.count(), 2);
}

TEST(OutputFile, RefusesWhatTheUserMayNotWrite) {
  const TemporaryFolder folder;
  fs::permissions(folder.path(), fs::perms::all);
  const std::string file = folder.write("protected", "old");
  fs::permissions(file, fs::perms(0444));
  fs::create_directory(folder.path() / "closed");
  fs::permissions(folder / "closed", fs::perms(0555));
  fs::create_directory(folder.path() / "locked");
  fs::permissions(folder / "locked", fs::perms::none);
  {
    const OrdinaryUser user;
    if (!user.ordinary()) GTEST_SKIP() << "root cannot become an ordinary user here";
    EXPECT_MENTIONS(open_refusal(file), "Permission denied; make it writable");
    EXPECT_MENTIONS(open_refusal(folder / "closed/new"), "Permission denied; give a folder that you can write to");
    EXPECT_MENTIONS(open_refusal(folder / "locked/new"), "Permission denied; give another name");
  }
  EXPECT_EQ(read_all(file), "old");
  fs::permissions(folder / "locked", fs::perms::owner_all);
}

TEST(OutputFile, RefusesSomebodyElsesFileInAStickyFolder) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can make a file of somebody else's";
  const TemporaryFolder folder;
  fs::permissions(folder.path(), fs::perms::all | fs::perms::sticky_bit);
  const std::string file = folder.write("theirs", "old");
  fs::permissions(file, fs::perms::all);
  const OrdinaryUser user;
  if (!user.ordinary()) GTEST_SKIP() << "root cannot become an ordinary user here";
  EXPECT_MENTIONS(open_refusal(file), "belongs to somebody else");
  put(folder / "mine", "text");
  put(folder / "mine", "again");
  EXPECT_EQ(read_all(folder / "mine"), "again");
}

TEST(OutputFile, KeepsOrNarrowsTheRightsOfTheGroup) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file to another group";
  const TemporaryFolder folder;
  fs::permissions(folder.path(), fs::perms::all);
  const std::string file = folder.write("shared", "old");
  ASSERT_EQ(::chown(file.c_str(), 65534, 4321), 0);
  ASSERT_EQ(::chmod(file.c_str(), 0664), 0);
  put(file, "as root");
  struct stat status {};
  ASSERT_EQ(::stat(file.c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 65534u);
  EXPECT_EQ(status.st_gid, 4321u);
  EXPECT_EQ(mode_of(file), 0664);
  const OrdinaryUser user;
  if (!user.ordinary()) GTEST_SKIP() << "root cannot become an ordinary user here";
  put(file, "as a user outside the group");
  // The group is another one now, unless the system let it be kept: it then gets no more than everybody.
  ASSERT_EQ(::stat(file.c_str(), &status), 0);
  if (status.st_gid != 4321u) {
    EXPECT_EQ(mode_of(file), 0644);
  }
}

TEST(OutputFile, WritesADeviceInPlace) {
  OutputFile file("/dev/null");
  file.write("text");
  file.commit();
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST(OutputFile, ReportsAFullDisk) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  OutputFile file("/dev/full");
  const std::string message = refusal<Error>("/dev/full: ", [&] { file.write("text"); });
  EXPECT_MENTIONS(message, "No space left on device; free some space");
  EXPECT_MENTIONS(refusal<Error>("/dev/full: ", [&] { file.commit(); }), "closed after");
  EXPECT_MENTIONS(refusal<Error>("/dev/full: ", [&] { file.write("more"); }), "closed after");
}

TEST(OutputFile, ReportsALimitOnTheSizeOfFiles) {
  const TemporaryFolder folder;
  const std::string path = folder.write("out", "old");
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  OutputFile file(path);
  rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = refusal<Error>(path, [&] { file.write(std::string(10000, 'x')); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_MENTIONS(message, "File too large; raise the limit");
  EXPECT_EQ(folder.count(), 1);
  EXPECT_EQ(read_all(path), "old");
}

TEST(OutputFile, LeavesNothingWhereItCannotBeRenamed) {
  const TemporaryFolder folder;
  const std::string path = folder / "out";
  OutputFile file(path);
  file.write("text");
  fs::create_directory(path);
  EXPECT_MENTIONS(refusal<Error>(path, [&] { file.commit(); }), "Is a directory");
  EXPECT_EQ(folder.count(), 1);
}

TEST(OutputFile, WritesAPipeWithASlowReader) {
  const TemporaryFolder folder;
  const std::string path = folder / "pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  std::string text(1 << 20, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 >> 3);
  std::string received;
  std::thread reader([&] {
    const int descriptor = ::open(path.c_str(), O_RDONLY);
    char part[50000];
    for (ssize_t count; (count = ::read(descriptor, part, sizeof part)) > 0;) {
      received.append(part, static_cast<std::size_t>(count));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ::close(descriptor);
  });
  {
    OutputFile file(path);
    file.write(text);
    file.commit();
  }
  reader.join();
  EXPECT_TRUE(received == text);
  EXPECT_TRUE(fs::is_fifo(path));
}

TEST(OutputFile, DashIsStandardOutput) {
  const TemporaryFolder folder;
  const std::string captured = folder / "captured";
  const int descriptor = ::open(captured.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(descriptor, 0);
  {
    const StandardOutput replaced(descriptor);
    put("-", "first ");
    put("-", "second");
  }
  ::close(descriptor);
  EXPECT_EQ(read_all(captured), "first second");
}

TEST(OutputFile, WaitsForANonBlockingStandardOutput) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
  const std::string text(300000, 'x');
  std::string received;
  std::thread reader([&] {
    char part[4096];
    while (received.size() < text.size()) {
      const ssize_t count = ::read(ends[0], part, sizeof part);
      if (count <= 0) break;
      received.append(part, static_cast<std::size_t>(count));
    }
  });
  {
    const StandardOutput replaced(ends[1]);
    put("-", text);
  }
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  EXPECT_TRUE(received == text);
}

TEST(OutputFile, ReportsAClosedPipeWithoutASignal) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ::close(ends[0]);
  std::string message;
  {
    const StandardOutput replaced(ends[1]);
    OutputFile file("-");
    message = refusal<Error>("standard output: ", [&] { file.write("text"); });
  }
  ::close(ends[1]);
  EXPECT_MENTIONS(message, "Broken pipe");
  sigset_t pending;
  ::sigpending(&pending);
  EXPECT_EQ(sigismember(&pending, SIGPIPE), 0);
}

TEST(OutputFile, RefusesAStandardOutputThatCannotBeWritten) {
  const int descriptor = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  std::string reading, closed;
  {
    const StandardOutput replaced(descriptor);
    reading = refusal("standard output: ", [] { OutputFile file("-"); });
    ::close(STDOUT_FILENO);
    closed = refusal("standard output: ", [] { OutputFile file("-"); });
  }
  ::close(descriptor);
  EXPECT_MENTIONS(reading, "reading only");
  EXPECT_MENTIONS(closed, "Bad file descriptor");
}

TEST(OutputFile, TwoWritersOfOnePathDoNotMix) {
  const TemporaryFolder folder;
  const std::string path = folder / "out";
  OutputFile first(path), second(path);
  first.write("first");
  second.write("second");
  second.commit();
  first.commit();
  EXPECT_EQ(read_all(path), "first");
  EXPECT_EQ(folder.count(), 1);
}

}  // namespace
}  // namespace deviceloop
