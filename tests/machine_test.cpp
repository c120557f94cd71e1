// What this machine offers, from files as the system has them and under limits of the process.
#include "machine.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <filesystem>
#include <string>

#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

namespace fs = std::filesystem;

/// A /proc and a /sys of a test's own.
class System {
 public:
  System() {
    file("proc/meminfo", "MemTotal: 9000 kB\nMemFree:   10 kB\nMemAvailable:   8000 kB\nHugePages_Total:   0\n");
  }

  void file(const std::string& path, const std::string& content) const {
    fs::create_directories((folder_.path() / path).parent_path());
    folder_.write(path, content);
  }
  std::string path() const { return folder_.path().string(); }
  std::uint64_t memory() const { return usable_memory_bytes(folder_.path().string()); }
  int cores() const { return usable_cores(folder_.path().string()); }

 private:
  testing::TemporaryFolder folder_;
};

constexpr std::uint64_t kAvailable = 8000 * 1024;

TEST(UsableMemory, IsWhatTheSystemCallsAvailable) { EXPECT_EQ(System().memory(), kAvailable); }

TEST(UsableMemory, IsCutByTheCgroupAndItsParents) {
  const System system;
  system.file("proc/self/cgroup", "0::/slice/job\n");
  system.file("sys/fs/cgroup/slice/job/memory.max", "max\n");
  system.file("sys/fs/cgroup/slice/job/memory.current", "5000\n");
  EXPECT_EQ(system.memory(), kAvailable);
  system.file("sys/fs/cgroup/slice/memory.max", "70000\n");
  system.file("sys/fs/cgroup/slice/memory.current", "30000\n");
  EXPECT_EQ(system.memory(), 40000u);
  // The cache of files is there to be given up.
  system.file("sys/fs/cgroup/slice/memory.stat", "anon 20000\nfile 9000\nactive_file 2000\ninactive_file 7000\n");
  EXPECT_EQ(system.memory(), 47000u);
  system.file("sys/fs/cgroup/slice/job/memory.high", "9000\n");
  EXPECT_EQ(system.memory(), 4000u);
  system.file("sys/fs/cgroup/slice/job/memory.current", "9500\n");
  EXPECT_EQ(system.memory(), 1u);  // 0 would mean unknown
}

TEST(UsableMemory, IsCutByACgroupOfVersionOne) {
  const System system;
  system.file("proc/self/cgroup", "5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/other\n0::/other\n");
  system.file("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n");
  system.file("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "60000\n");
  EXPECT_EQ(system.memory(), kAvailable);
  system.file("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "100000\n");
  EXPECT_EQ(system.memory(), 40000u);
  system.file("sys/fs/cgroup/memory/job/memory.stat", "cache 9000\ninactive_file 1\ntotal_inactive_file 8000\n");
  EXPECT_EQ(system.memory(), 48000u);
  // Inside a container the host's path is not there, and the mount's root is the container's own cgroup.
  system.file("proc/self/cgroup", "4:memory:/docker/0123\n");
  system.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "50000\n");
  system.file("sys/fs/cgroup/memory/memory.usage_in_bytes", "20000\n");
  EXPECT_EQ(system.memory(), 30000u);
}

TEST(UsableCores, AreCutByTheQuotaOfEitherVersion) {
  const System v2;
  const int all = v2.cores();
  if (all < 2) GTEST_SKIP() << "there is one core";
  v2.file("proc/self/cgroup", "0::/job\n");
  v2.file("sys/fs/cgroup/job/cpu.max", "max 100000\n");
  EXPECT_EQ(v2.cores(), all);
  v2.file("sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(v2.cores(), 1);

  const System v1;
  v1.file("proc/self/cgroup", "5:cpu,cpuacct:/job\n");
  v1.file("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
  v1.file("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(v1.cores(), all);
  v1.file("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "90000\n");
  EXPECT_EQ(v1.cores(), 1);
}

/// A soft limit for as long as this lives.
class Limit {
 public:
  Limit(__rlimit_resource resource, rlim_t value) : resource_(resource) {
    EXPECT_EQ(getrlimit(resource, &before_), 0);
    rlimit limit = before_;
    limit.rlim_cur = value;
    EXPECT_EQ(setrlimit(resource, &limit), 0);
  }
  ~Limit() { EXPECT_EQ(setrlimit(resource_, &before_), 0); }

 private:
  __rlimit_resource resource_;
  rlimit before_{};
};

TEST(UsableMemory, IsCutByTheLimitsOfTheProcess) {
  ASSERT_FALSE(address_space_left().has_value()) << "the tests run under a limit";
  const System system;
  system.file("proc/self/status", "Name:\tdeviceloop\nVmSize:\t  2048 kB\nVmData:\t  1024 kB\nThreads:\t1\n");
  system.file("proc/meminfo", "MemAvailable: 80000000000000 kB\n");
  constexpr rlim_t kMost = rlim_t{1} << 46;  // beyond what the sanitizers map
  std::uint64_t of_all = 0, of_data = 0;
  {
    const Limit limit(RLIMIT_AS, kMost);
    of_all = system.memory();
  }
  {
    const Limit limit(RLIMIT_DATA, kMost);
    of_data = system.memory();
  }
  EXPECT_EQ(of_all, kMost - 2048 * 1024);
  EXPECT_EQ(of_data, kMost - 1024 * 1024);
}

TEST(Machine, NamesItsProcessorAndDriver) {
  const System system;
  EXPECT_EQ(processor_name(system.path()), "");
  EXPECT_EQ(nvidia_driver_version(system.path()), "");
  system.file("proc/cpuinfo",
              "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Other\n");
  system.file("sys/module/nvidia/version", "550.54.15\n");
  EXPECT_EQ(processor_name(system.path()), "Some CPU @ 2 GHz");
  EXPECT_EQ(nvidia_driver_version(system.path()), "550.54.15");
  system.file("proc/cpuinfo", "model name\n");
  EXPECT_EQ(processor_name(system.path()), "");
}

}  // namespace
}  // namespace deviceloop
