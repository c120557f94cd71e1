#include "thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <stdexcept>
#include <vector>

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

}  // namespace
}  // namespace deviceloop
