// A grid's threads are begun one after the other on one fiber. A thread that has to wait keeps that fiber, and the next
// begins on another: kernels without barriers are plain loops. One queue holds all threads that can run, of the
// resident blocks; the order of the queue is the order of the grid. A thread that polls stays in the queue, and whoever
// takes the next thread looks in its stead whether its wait has ended. Time is simulated: a nanosecond for each turn of
// a thread, and where no look brings anything, a leap to the earliest deadline.
#include "grid.h"

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstring>
#include <deque>
#include <exception>
#include <list>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include "../../cuda/runtime/device.cuh"

namespace simt {
namespace {

using boost::context::fiber;
using boost::context::stack_context;

constexpr unsigned kWarpThreads = 32;
constexpr std::size_t kStackBytes = std::size_t{128} << 10;  // AddressSanitizer writes its report on it
constexpr std::size_t kMaxStacks = 28000;                    // each two mappings, of 65530 that Linux gives a process
constexpr std::size_t kFirstFramesBytes = std::size_t{16} << 10;  // more than they take, wherever the stack begins

/// Of a fiber, as AddressSanitizer is told.
struct Stack {
  const void* bottom = nullptr;
  std::size_t bytes = 0;
};

/// Stacks with a guard page, kept for the next fiber. One copy serves all.
struct StackPool {
  stack_context allocate() {
    static thread_local std::size_t made = 0;
    if (free().empty()) {
      if (made == kMaxStacks) throw std::bad_alloc();
      ++made;
      return boost::context::protected_fixedsize_stack(kStackBytes).allocate();
    }
    const stack_context stack = free().back();
    free().pop_back();
    return stack;
  }
  void deallocate(stack_context& stack) noexcept {
    // A fiber's first frames are left without returning, with their red zones in place; all others have returned.
    __asan_unpoison_memory_region(static_cast<char*>(stack.sp) - kFirstFramesBytes, kFirstFramesBytes);
    free().push_back(stack);
  }
  /// Begins at another line of a page each time: else all stacks would compete for the same lines of the cache.
  static boost::context::preallocated usable(const stack_context& stack) {
    static thread_local std::size_t count = 0;
    const std::size_t skipped = ++count % 64 * 64;
    return {static_cast<char*>(stack.sp) - skipped, stack.size - skipped, stack};
  }
  static char* bottom_of(const stack_context& stack) { return static_cast<char*>(stack.sp) - stack.size; }
  static std::vector<stack_context>& free() {
    static thread_local std::vector<stack_context> stacks;
    return stacks;
  }
};

struct Abandoned {};  // unwinds a waiting thread of a grid that has failed

/// Of who waits.
struct Context {
  fiber suspended;
  Stack stack;
};

struct Block;

struct Thread {
  Place place;
  Block* block = nullptr;
  Context context;
  const char* waits_at = nullptr;
  Poll* poll = nullptr;      // where it polls
  std::uint64_t looked = 0;  // in which turn, of all threads, it last looked in vain
  std::uint64_t bits = 0;    // given to the other lanes, and got from them
};

/// Threads that wait for each other.
struct Meeting {
  Thread* first = nullptr;
  unsigned members = 0;
  unsigned waiting = 0;
};

/// What the lanes of a warp call together.
struct LaneCall {
  bool barrier = false;   // warp_barrier, else warp_shuffle_xor
  unsigned mask = 0;      // of the shuffle
  std::size_t bytes = 0;  // of the shuffle
  bool operator==(const LaneCall&) const = default;
  const char* name() const { return barrier ? "warp_barrier" : "warp_shuffle_xor"; }
  std::string text() const {
    if (barrier) return name();
    return std::string(name()) + " with mask " + std::to_string(mask) + " of " + std::to_string(bytes) + " bytes";
  }
};

struct Warp {
  Meeting meeting;
  LaneCall call;
};

struct FreeShared {
  void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{16}); }
};

struct Cluster;

struct Block {
  Cluster* cluster = nullptr;
  std::unique_ptr<std::byte, FreeShared> shared;
  Meeting barrier;
  std::vector<Warp> warps;
  bool begun = false;
  unsigned returned = 0;
};

/// Of one block where the launch has no clusters.
struct Cluster {
  std::vector<Thread> threads;
  std::vector<Block> blocks;
  Meeting barrier;
  unsigned returned = 0;  // threads
};

class Grid {
 public:
  Grid(const GridLaunch& launch, Order order, std::mt19937_64& random);
  void run();
  void block_barrier() { meet(current_->block->barrier, "block_barrier", runnable_); }
  void cluster_barrier() { meet(current_->block->cluster->barrier, "cluster_barrier", runnable_); }
  std::uint64_t exchange(const LaneCall& call, std::uint64_t bits);
  void poll(Poll& poll);
  void* peer_shared(const void* mine, unsigned rank) const;
  std::size_t shared_bytes() const { return launch_.shared_bytes; }
  std::int64_t waits() const { return waits_; }
  [[noreturn]] void refuse(const std::string& why) const {
    throw KernelError(launch_.kernel + ", block " + std::to_string(place->block) + " of " +
                      std::to_string(launch_.blocks) + ", thread " + std::to_string(place->thread) + " of " +
                      std::to_string(launch_.threads) + ": " + why);
  }

 private:
  void admit_cluster();
  void make_runnable(std::deque<Thread*>& queue, Thread* first, std::size_t count);
  Thread* take();
  bool leap();
  void go_on(Context& from, Thread* next);
  void arrive(void* fake_stack, fiber&& from);
  fiber run_threads(fiber&& from);
  void run_current();
  void meet(Meeting& meeting, const char* where, std::deque<Thread*>& queue);
  void wait(const char* where);
  std::string describe_stuck() const;
  void abandon();

  const GridLaunch& launch_;
  const Order order_;
  std::mt19937_64& random_;
  std::vector<unsigned> pending_;  // clusters, the next one last
  std::list<Cluster> resident_;
  std::deque<Thread*> runnable_;
  std::deque<Thread*> preferred_;  // lanes of the warp that runs on
  std::uint64_t turn_ = 0;         // counts the threads that were taken
  std::size_t idle_ = 0;           // threads that have looked in vain since
  Thread* current_ = nullptr;      // null: the caller of run()
  Context caller_;
  Context* left_ = nullptr;  // of who ran before
  std::exception_ptr failure_;
  bool abandoning_ = false;
  std::int64_t waits_ = 0;
  std::uint64_t exchanges_ = 0;
};

thread_local Grid* grid = nullptr;

Grid::Grid(const GridLaunch& launch, Order order, std::mt19937_64& random)
    : launch_(launch), order_(order), random_(random), pending_(launch.blocks / launch.cluster_blocks) {
  std::iota(pending_.begin(), pending_.end(), 0u);
  if (order == Order::kForward) std::reverse(pending_.begin(), pending_.end());
  if (order == Order::kRandom) std::shuffle(pending_.begin(), pending_.end(), random);
}

void Grid::admit_cluster() {
  const unsigned first_block = pending_.back() * launch_.cluster_blocks;
  pending_.pop_back();
  Cluster& cluster = resident_.emplace_back();
  cluster.blocks.resize(launch_.cluster_blocks);
  cluster.threads.resize(std::size_t{launch_.cluster_blocks} * launch_.threads);
  cluster.barrier = {cluster.threads.data(), launch_.cluster_blocks * launch_.threads};
  Thread* thread = cluster.threads.data();
  for (unsigned rank = 0; rank < launch_.cluster_blocks; ++rank) {
    Block& block = cluster.blocks[rank];
    block.cluster = &cluster;
    if (launch_.shared_bytes > 0) {
      block.shared.reset(static_cast<std::byte*>(::operator new (launch_.shared_bytes, std::align_val_t{16})));
      std::memset(block.shared.get(), launch_.fresh_byte, launch_.shared_bytes);
      // Until the block begins nobody may touch it.
      if (launch_.cluster_blocks > 1) __asan_poison_memory_region(block.shared.get(), launch_.shared_bytes);
    }
    block.barrier = {thread, launch_.threads};
    block.warps.resize(launch_.threads / kWarpThreads);
    for (unsigned i = 0; i < launch_.threads; ++i, ++thread) {
      if (i % kWarpThreads == 0) block.warps[i / kWarpThreads].meeting = {thread, kWarpThreads};
      thread->place = {i,    launch_.threads,        first_block + rank, launch_.blocks,
                       rank, launch_.cluster_blocks, block.shared.get()};
      thread->block = &block;
    }
  }
  make_runnable(runnable_, cluster.threads.data(), cluster.threads.size());
}

void Grid::make_runnable(std::deque<Thread*>& queue, Thread* first, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) queue.push_back(first + (order_ == Order::kReverse ? count - 1 - i : i));
}

/// The next thread to run; null where the grid has ended, failed or is stuck.
Thread* Grid::take() {
  while (!failure_ && !(preferred_.empty() && runnable_.empty())) {
    std::deque<Thread*>& queue = preferred_.empty() ? runnable_ : preferred_;
    if (order_ == Order::kRandom) std::swap(queue.front(), queue[random_() % queue.size()]);
    Thread* const thread = queue.front();
    queue.pop_front();
    if (thread->poll == nullptr || thread->poll->has_ended()) {
      thread->poll = nullptr;
      ++turn_;
      ++simulated_time;
      idle_ = 0;
      return thread;
    }
    runnable_.push_back(thread);
    if (std::exchange(thread->looked, turn_) == turn_) continue;
    if (++idle_ == runnable_.size() && !leap()) break;
  }
  return nullptr;
}

/// Nothing will happen before the earliest deadline.
bool Grid::leap() {
  std::uint64_t earliest = 0;
  for (const Thread* thread : runnable_)
    if (const std::uint64_t time = thread->poll->deadline; time != 0 && (earliest == 0 || time < earliest))
      earliest = time;
  simulated_time = std::max(simulated_time, earliest + 1);
  return earliest != 0;
}

void Grid::run() {
  while (!pending_.empty() && resident_.size() < launch_.resident_clusters) admit_cluster();
  if (Thread* const first = take()) go_on(caller_, first);
  if (!failure_ && !resident_.empty()) failure_ = std::make_exception_ptr(KernelError(describe_stuck()));
  if (failure_) {
    abandon();
    std::rethrow_exception(failure_);
  }
}

/// Lets `next` run until somebody goes on with `from`, who calls.
void Grid::go_on(Context& from, Thread* next) {
  Context to = std::move(next == nullptr ? caller_ : next->context);
  if (!to.suspended) {
    StackPool pool;
    stack_context memory;
    try {
      memory = pool.allocate();
    } catch (const std::bad_alloc&) {
      refuse("too many threads wait at once: no memory for more than " + std::to_string(kMaxStacks) + " stacks");
    }
    to.stack = {StackPool::bottom_of(memory), memory.size};
    to.suspended = fiber(std::allocator_arg, pool.usable(memory), pool,
                         [this](fiber&& before) { return run_threads(std::move(before)); });
  }
  current_ = next;
  left_ = &from;
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack.bottom, to.stack.bytes);
  fiber before = std::move(to.suspended).resume();
  arrive(fake_stack, std::move(before));
}

/// After each switch: keeps the fiber that was left, unless it has ended.
void Grid::arrive(void* fake_stack, fiber&& before) {
  Stack stack;
  __sanitizer_finish_switch_fiber(fake_stack, &stack.bottom, &stack.bytes);
  if (before) *left_ = {std::move(before), stack};
}

/// The life of a fiber.
fiber Grid::run_threads(fiber&& before) {
  arrive(nullptr, std::move(before));
  do run_current();
  while (current_ != nullptr && !current_->context.suspended);
  Context& next = current_ == nullptr ? caller_ : current_->context;
  __sanitizer_start_switch_fiber(nullptr, next.stack.bottom, next.stack.bytes);
  return std::move(next.suspended);
}

void Grid::run_current() {
  Block& block = *current_->block;
  Cluster& cluster = *block.cluster;
  place = &current_->place;
  if (!std::exchange(block.begun, true) && launch_.cluster_blocks > 1)
    __asan_unpoison_memory_region(block.shared.get(), launch_.shared_bytes);
  try {
    launch_.thread();
  } catch (const Abandoned&) {
  } catch (...) {
    if (!failure_) failure_ = std::current_exception();
  }
  if (++block.returned == launch_.threads) block.shared.reset();
  if (++cluster.returned == cluster.threads.size() && !failure_) {
    resident_.remove_if([&](const Cluster& each) { return &each == &cluster; });
    if (!pending_.empty()) admit_cluster();
  }
  current_ = take();
}

/// Lets others run until the current thread is taken again.
void Grid::wait(const char* where) {
  Thread& self = *current_;
  ++waits_;
  self.waits_at = where;
  Thread* const next = take();
  if (next != &self) go_on(self.context, next);
  self.waits_at = nullptr;
  place = &self.place;
  if (abandoning_) throw Abandoned{};
}

void Grid::meet(Meeting& meeting, const char* where, std::deque<Thread*>& queue) {
  if (++meeting.waiting == meeting.members) {
    meeting.waiting = 0;
    make_runnable(queue, meeting.first, meeting.members);
  }
  wait(where);
}

void Grid::poll(Poll& poll) {
  current_->poll = &poll;
  make_runnable(runnable_, current_, 1);
  wait(poll.where);
}

std::uint64_t Grid::exchange(const LaneCall& call, std::uint64_t bits) {
  if (call.mask >= kWarpThreads)
    refuse("warp_shuffle_xor with mask " + std::to_string(call.mask) + ", of 0 to 31 that can be");
  Thread& self = *current_;
  Warp& warp = self.block->warps[self.place.thread / kWarpThreads];
  if (warp.meeting.waiting > 0 && warp.call != call)
    refuse(call.text() + ", while other lanes of the warp have called " + warp.call.text());
  warp.call = call;
  self.bits = bits;
  if (warp.meeting.waiting + 1 == kWarpThreads) {
    Thread* const lanes = warp.meeting.first;
    for (unsigned lane = 0; lane < kWarpThreads; ++lane)
      if (lane < (lane ^ call.mask)) std::swap(lanes[lane].bits, lanes[lane ^ call.mask].bits);
  }
  // While a warp runs on by itself its stacks stay in the cache; now and then others come between.
  meet(warp.meeting, call.name(), ++exchanges_ % 32 != 0 ? preferred_ : runnable_);
  return self.bits;
}

void* Grid::peer_shared(const void* mine, unsigned rank) const {
  const std::string name = "peer_shared(mine, " + std::to_string(rank) + ")";
  const auto offset = reinterpret_cast<std::uintptr_t>(mine) - reinterpret_cast<std::uintptr_t>(place->shared);
  if (offset >= launch_.shared_bytes) refuse(name + ": mine is not in the block's own shared memory");
  if (rank >= launch_.cluster_blocks)
    refuse(name + ": a cluster has " + std::to_string(launch_.cluster_blocks) + " blocks");
  const Block& peer = current_->block->cluster->blocks[rank];
  if (peer.returned == launch_.threads) refuse(name + ": that block has ended");
  return peer.shared.get() + offset;
}

/// Of the block with the fewest threads that poll, which others may wait for.
std::string Grid::describe_stuck() const {
  std::map<std::string, unsigned> fewest;
  unsigned block_index = 0, returned = 0, polling = 0;
  for (const Cluster& cluster : resident_)
    for (const Block& block : cluster.blocks) {
      std::map<std::string, unsigned> waiting;
      unsigned polls = 0;
      for (unsigned i = 0; i < launch_.threads; ++i) {
        const Thread& thread = block.barrier.first[i];
        if (thread.waits_at != nullptr) ++waiting[thread.waits_at];
        polls += thread.poll != nullptr ? 1 : 0;
      }
      if (waiting.empty() || (!fewest.empty() && polls >= polling)) continue;
      fewest = waiting;
      block_index = block.barrier.first->place.block;
      returned = block.returned;
      polling = polls;
    }
  const bool in_shuffle = fewest.count("warp_shuffle_xor") > 0;
  std::string text = launch_.kernel + ", block " + std::to_string(block_index) + " of " +
                     std::to_string(launch_.blocks) + ": " +
                     (polling > 0  ? "endless wait"
                      : in_shuffle ? "divergent shuffle"
                                   : "divergent barrier") +
                     ": of its " + std::to_string(launch_.threads) + " threads ";
  for (const auto& [where, threads] : fewest) text += std::to_string(threads) + " wait at " + where + ", ";
  text += std::to_string(returned) + " have returned";
  if (!pending_.empty())
    text += "; " + std::to_string(pending_.size() * launch_.cluster_blocks) + " blocks of the grid have not begun";
  return text;
}

/// Unwinds all threads that wait.
void Grid::abandon() {
  abandoning_ = true;
  for (Cluster& cluster : resident_)
    for (Thread& thread : cluster.threads)
      if (thread.context.suspended) go_on(caller_, &thread);
}

}  // namespace

std::int64_t run_grid(const GridLaunch& launch, Order order, std::mt19937_64& random) {
  Grid running(launch, order, random);
  grid = &running;
  struct Leave {
    ~Leave() {
      grid = nullptr;
      place = nullptr;
    }
  } leave;
  running.run();
  return running.waits();
}

void* shared_memory(std::size_t layout_bytes) {
  if (layout_bytes > grid->shared_bytes())
    grid->refuse("shared<Layout>() of " + std::to_string(layout_bytes) +
                 " bytes, while LaunchConfig::shared_bytes is " + std::to_string(grid->shared_bytes()));
  return place->shared;
}

void* peer_shared(const void* mine, unsigned rank) { return grid->peer_shared(mine, rank); }

void block_barrier() { grid->block_barrier(); }

void cluster_barrier() { grid->cluster_barrier(); }

void poll(Poll& poll) { grid->poll(poll); }

std::uint64_t warp_shuffle_xor(std::uint64_t bits, std::size_t bytes, unsigned mask) {
  return grid->exchange({false, mask, bytes}, bits);
}

void warp_barrier() { grid->exchange({true}, 0); }

}  // namespace simt
