#include "thread_pool.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

#include <deviceloop/error.h>

#include "../floating_point.h"
#include "../machine.h"
#include "../text.h"
#include "gemm.h"

namespace deviceloop {
namespace {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Steps of small networks follow each other within microseconds, far less than a thread takes to wake up: so wait awake
// at first. Not for long: on a shared machine the other side may not be running at all.
template <class Condition>
bool spin(Condition condition) {
  constexpr auto kLimit = std::chrono::microseconds(50);
  const auto end = std::chrono::steady_clock::now() + kLimit;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return condition();
}

// Threads of all pools, and the most there ever were at a time: for so many the BLAS has its buffers already.
std::mutex gemm_threads_mutex;
int gemm_threads = 0, most_gemm_threads = 0;

std::string threads_text(int count) { return std::to_string(count) + (count == 1 ? " thread" : " threads"); }

std::string remedy(int threads) {
  return std::string("; ") + (threads > 1 ? "ask for fewer threads, or " : "") +
         "raise the limits of the process (ulimit -v, -d, -u)";
}

}  // namespace

ThreadPool::GemmThreads::GemmThreads(int count) : count_(count) {
  const std::lock_guard lock(gemm_threads_mutex);
  const int more = gemm_threads + count - most_gemm_threads;
  // OpenBLAS, refused memory for a buffer, asks for it again for ever.
  if (more > 0) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(more) * gemm_thread_bytes();
    if (!can_map(bytes))
      throw Error("there is no address space for the stacks and buffers of " + threads_text(count) + ", " +
                  bytes_text(bytes) + remedy(count));
  }
  gemm_threads += count;
}

void ThreadPool::GemmThreads::started() const {
  const std::lock_guard lock(gemm_threads_mutex);
  most_gemm_threads = std::max(most_gemm_threads, gemm_threads);
}

ThreadPool::GemmThreads::~GemmThreads() {
  const std::lock_guard lock(gemm_threads_mutex);
  gemm_threads -= count_;
}

ThreadPool::ThreadPool(int threads) : gemm_threads_(std::max(threads, 1)) {
  const int others = threads > 1 ? threads - 1 : 0;
  workers_.reserve(static_cast<std::size_t>(others));
  std::latch ready(others);
  try {
    for (int worker = 1; worker < threads; ++worker)
      workers_.emplace_back([this, worker, &ready] { work(worker, ready); });
  } catch (const std::system_error& error) {
    // Those that started must end before the error, and `ready` with it, leaves.
    const std::size_t started = workers_.size() + 1;
    stop();
    throw Error("the system gives " + std::to_string(started) + " of " + threads_text(threads) + ": " +
                error.code().message() + remedy(threads));
  } catch (...) {
    stop();
    throw;
  }
  ready.wait();
  if (error_) {
    stop();
    std::rethrow_exception(error_);
  }
  gemm_threads_.started();
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true);
  {
    const std::lock_guard lock(mutex_);  // see run_erased
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run_erased(std::int64_t count, Call call, const void* task) {
  call_ = call;
  task_ = task;
  count_ = count;
  unfinished_.store(count, std::memory_order_relaxed);
  unclaimed_.store(count, std::memory_order_release);
  {
    // A worker that found nothing to claim holds the mutex until it sleeps: taking it once makes sure that the wake-up
    // comes after that.
    const std::lock_guard lock(mutex_);
  }
  wake_.notify_all();

  take_tasks(0);
  const auto done = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
  if (!spin(done)) {
    std::unique_lock lock(mutex_);
    finished_.wait(lock, done);
  }
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    std::swap(error, error_);
  }
  if (error) std::rethrow_exception(error);
}

void ThreadPool::take_tasks(int worker) {
  std::int64_t left = unclaimed_.load(std::memory_order_acquire);
  while (left > 0) {
    if (!unclaimed_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    try {
      call_(task_, count_ - left, worker);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1 && worker != 0) {
      { const std::lock_guard lock(mutex_); }
      finished_.notify_one();
    }
    left = unclaimed_.load(std::memory_order_acquire);
  }
}

void ThreadPool::work(int worker, std::latch& ready) {
  use_default_floating_point();  // a new thread has that of its creator
  try {
    prepare_gemm_here();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    error_ = std::current_exception();
  }
  ready.count_down();
  const auto wanted = [this] { return unclaimed_.load(std::memory_order_acquire) > 0 || stop_.load(); };
  for (;;) {
    if (!spin(wanted)) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, wanted);
    }
    if (stop_.load()) return;
    take_tasks(worker);
  }
}

}  // namespace deviceloop
