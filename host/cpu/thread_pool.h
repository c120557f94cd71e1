// Threads of one executor. Own std::threads and not OpenMP, which the thread sanitizer cannot check and whose settings
// belong to the application.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <latch>
#include <mutex>
#include <thread>
#include <vector>

namespace deviceloop {

/// Runs numbered tasks on the calling thread and `threads` - 1 others. Which thread runs which task is left to chance,
/// so tasks must not depend on it: each writes to places of its own. Every worker calls gemm single-threaded.
/// The others compute in the default floating-point environment; the caller of `run` takes care of its own.
class ThreadPool {
 public:
  /// Returns when all threads are ready. Throws Error where the system does not give them, or not the address space
  /// that the BLAS wants for them.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls task(number, worker) for every number in [0, count) and returns when all are done; worker in [0, threads())
  /// tells whose scratch memory to use. Rethrows the first exception. Allocates nothing. One caller at a time.
  template <class Task>
  void run(std::int64_t count, const Task& task) {
    if (workers_.empty() || count == 1) {
      for (std::int64_t number = 0; number < count; ++number) task(number, 0);
      return;
    }
    run_erased(
        count,
        [](const void* self, std::int64_t number, int worker) { (*static_cast<const Task*>(self))(number, worker); },
        &task);
  }

 private:
  using Call = void (*)(const void* task, std::int64_t number, int worker);
  void run_erased(std::int64_t count, Call call, const void* task);
  void take_tasks(int worker);
  void work(int worker, std::latch& ready);
  void stop();

  /// Counts the threads that multiply, for the memory that they take.
  class GemmThreads {
   public:
    explicit GemmThreads(int count);
    ~GemmThreads();
    GemmThreads(const GemmThreads&) = delete;
    GemmThreads& operator=(const GemmThreads&) = delete;
    void started() const;

   private:
    const int count_;
  };

  const GemmThreads gemm_threads_;
  std::vector<std::thread> workers_;

  // The round in progress. Set by the caller before it stores unclaimed_; read by a thread after it has claimed a task,
  // which keeps the round open. A worker that comes late finds nothing to claim, and nobody waits for it.
  Call call_ = nullptr;
  const void* task_ = nullptr;
  std::int64_t count_ = 0;
  std::atomic<std::int64_t> unclaimed_{0};
  std::atomic<std::int64_t> unfinished_{0};

  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;      // workers wait for a task to claim, or for stop_
  std::condition_variable finished_;  // the caller waits for unfinished_ == 0
  std::exception_ptr error_;          // guarded by mutex_
};

}  // namespace deviceloop
