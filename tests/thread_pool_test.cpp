#include "cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <deviceloop/error.h>

namespace deviceloop {
namespace {

TEST(ThreadPool, RunsEveryTaskOnceOnAWorkerInRange) {
  for (const int threads : {1, 2, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const std::int64_t count : {0, 1, 2, 5, 1000}) {
      std::vector<int> runs(static_cast<std::size_t>(count));
      std::atomic<bool> in_range = true;
      pool.run(count, [&](std::int64_t number, int worker) {
        ++runs[static_cast<std::size_t>(number)];
        if (worker < 0 || worker >= threads) in_range = false;
      });
      EXPECT_TRUE(in_range);
      for (const int times : runs) ASSERT_EQ(times, 1);
    }
  }
}

TEST(ThreadPool, WhatATaskWroteIsSeenAfterTheRound) {
  ThreadPool pool(3);
  std::vector<std::int64_t> values(64);
  for (std::int64_t round = 0; round < 3000; ++round) {
    // Each round reads what other workers wrote in the round before.
    pool.run(64, [&](std::int64_t number, int) { values[static_cast<std::size_t>(number)] += round; });
  }
  for (const std::int64_t value : values) ASSERT_EQ(value, 2999 * 3000 / 2);
}

TEST(ThreadPool, TwoTasksAtOnceNeverShareAWorkersNumber) {
  ThreadPool pool(4);
  std::atomic<int> in_use[4] = {};
  std::atomic<bool> shared = false;
  for (int round = 0; round < 200; ++round)
    pool.run(16, [&](std::int64_t, int worker) {
      if (in_use[worker].fetch_add(1) != 0) shared = true;
      in_use[worker].fetch_sub(1);
    });
  EXPECT_FALSE(shared);
}

TEST(ThreadPool, RethrowsAndGoesOnWorking) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    EXPECT_THROW(pool.run(10,
                          [](std::int64_t number, int) {
                            if (number == 7) throw std::runtime_error("task 7");
                          }),
                 std::runtime_error);
    std::atomic<int> runs = 0;
    pool.run(10, [&](std::int64_t, int) { ++runs; });
    EXPECT_EQ(runs, 10);
  }
}

TEST(ThreadPool, EndsWhileItsWorkersSleepOrSpin) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(3);
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(3);
    pool.run(5, [](std::int64_t, int) {});
  }
}

/// What a pool of `threads` throws in a process of its own that `limit` has limited.
std::string refusal_under(void (*limit)(), int threads) {
  int channel[2];
  if (pipe(channel) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a child that hangs dies
    limit();
    std::string message = "nothing thrown";
    try {
      const ThreadPool pool(threads);
    } catch (const Error& error) {
      message = error.what();
    }
    const ssize_t written = write(channel[1], message.data(), message.size());
    _exit(written == static_cast<ssize_t>(message.size()) ? 0 : 1);
  }
  close(channel[1]);
  std::string message;
  char buffer[512];
  for (ssize_t bytes; (bytes = read(channel[0], buffer, sizeof buffer)) > 0;)
    message.append(buffer, static_cast<std::size_t>(bytes));
  close(channel[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  return message;
}

void limit_processes() {
  const rlimit none{0, 0};
  if (setrlimit(RLIMIT_NPROC, &none) != 0 || setuid(65534) != 0) _exit(2);  // root has no such limit
}

void limit_address_space() {
  std::ifstream status("/proc/self/statm");
  rlim_t pages = 0;
  status >> pages;
  const rlim_t bytes = pages * static_cast<rlim_t>(sysconf(_SC_PAGE_SIZE)) + (rlim_t{20} << 20);
  const rlimit limit{bytes, bytes};
  if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(2);
}

TEST(ThreadPool, SaysWhatTheSystemDoesNotGive) {
  if (geteuid() == 0) {
    const std::string message = refusal_under(limit_processes, 3);
    EXPECT_NE(message.find("the system gives 1 of 3 threads: "), std::string::npos) << message;
    EXPECT_NE(message.find("ask for fewer threads"), std::string::npos) << message;
  }
  // Many, for the memory of a few was taken by other pools of this program.
  const std::string message = refusal_under(limit_address_space, 200);
  EXPECT_NE(message.find("no address space for the stacks and buffers of 200 threads, "), std::string::npos) << message;
  EXPECT_NE(message.find("ulimit -v"), std::string::npos) << message;
}

}  // namespace
}  // namespace deviceloop
