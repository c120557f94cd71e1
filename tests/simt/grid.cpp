// A grid's threads are begun one after the other on one fiber. A thread that has to wait keeps that fiber, and the next
// begins on another: kernels without barriers are plain loops. One queue holds all threads that can run, of a few
// resident blocks at once; the order of the queue is the order of the grid.
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
#include <memory>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include "simt/device.h"

namespace simt {
namespace {

using boost::context::fiber;
using boost::context::stack_context;

constexpr unsigned kWarpThreads = 32;
constexpr std::size_t kResidentBlocks = 4;
constexpr std::size_t kStackBytes = std::size_t{128} << 10;  // AddressSanitizer writes its report on it

/// Of a fiber, as AddressSanitizer is told.
struct Stack {
  const void* bottom = nullptr;
  std::size_t bytes = 0;
};

/// Stacks with a guard page, kept for the next fiber. One copy serves all.
struct StackPool {
  stack_context allocate() {
    if (free().empty()) return boost::context::protected_fixedsize_stack(kStackBytes).allocate();
    const stack_context stack = free().back();
    free().pop_back();
    return stack;
  }
  void deallocate(stack_context& stack) noexcept {
    // A fiber's first frame is left without returning, with its red zones in place.
    __asan_unpoison_memory_region(bottom_of(stack), stack.size);
    free().push_back(stack);
  }
  static char* bottom_of(const stack_context& stack) { return static_cast<char*>(stack.sp) - stack.size; }
  static std::vector<stack_context>& free() {
    static thread_local std::vector<stack_context> stacks;
    return stacks;
  }
};

struct Abandoned {};  // unwinds a waiting thread of a grid that has failed

struct Block;

struct Thread {
  Place place;
  Block* block = nullptr;
  fiber context;  // while it waits
  Stack stack;
  std::uint64_t bits = 0;  // given to a shuffle, and got from it
};

struct Warp {
  unsigned waiting = 0;
  std::size_t bytes = 0;  // of the shuffle
  unsigned mask = 0;
};

struct FreeShared {
  void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{16}); }
};

struct Block {
  std::unique_ptr<std::byte, FreeShared> shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned at_barrier = 0;
  unsigned returned = 0;
};

class Grid {
 public:
  Grid(const GridLaunch& launch, Order order, std::mt19937_64& random);
  void run();
  void block_barrier();
  std::uint64_t warp_shuffle_xor(std::uint64_t bits, std::size_t bytes, unsigned mask);
  std::size_t shared_bytes() const { return launch_.shared_bytes; }
  std::int64_t waits() const { return waits_; }
  [[noreturn]] void refuse(const std::string& why) const {
    throw KernelError(launch_.kernel + ", block " + std::to_string(place->block) + " of " +
                      std::to_string(launch_.blocks) + ", thread " + std::to_string(place->thread) + " of " +
                      std::to_string(launch_.threads) + ": " + why);
  }

 private:
  void admit_block();
  void make_runnable(Thread* first, std::size_t count);
  Thread* take();
  void enter_current();
  fiber run_threads(fiber&& scheduler);
  void run_current();
  void wait();
  std::string describe_stuck(const Block& block) const;
  void abandon();

  const GridLaunch& launch_;
  const Order order_;
  std::mt19937_64& random_;
  std::vector<unsigned> pending_;  // blocks, the next one last
  std::list<Block> resident_;
  std::deque<Thread*> runnable_;
  Thread* current_ = nullptr;
  fiber scheduler_;  // while a thread runs
  Stack scheduler_stack_;
  std::exception_ptr failure_;
  bool abandoning_ = false;
  std::int64_t waits_ = 0;
};

thread_local Grid* grid = nullptr;

Grid::Grid(const GridLaunch& launch, Order order, std::mt19937_64& random)
    : launch_(launch), order_(order), random_(random), pending_(launch.blocks) {
  std::iota(pending_.begin(), pending_.end(), 0u);
  if (order == Order::kForward) std::reverse(pending_.begin(), pending_.end());
  if (order == Order::kRandom) std::shuffle(pending_.begin(), pending_.end(), random);
}

void Grid::admit_block() {
  const unsigned index = pending_.back();
  pending_.pop_back();
  Block& block = resident_.emplace_back();
  if (launch_.shared_bytes > 0) {
    block.shared.reset(static_cast<std::byte*>(::operator new (launch_.shared_bytes, std::align_val_t{16})));
    std::memset(block.shared.get(), 0xff, launch_.shared_bytes);
  }
  block.warps.resize(launch_.threads / kWarpThreads);
  block.threads.resize(launch_.threads);
  for (unsigned thread = 0; thread < launch_.threads; ++thread) {
    block.threads[thread].place = {thread, launch_.threads, index, launch_.blocks, block.shared.get()};
    block.threads[thread].block = &block;
  }
  make_runnable(block.threads.data(), block.threads.size());
}

void Grid::make_runnable(Thread* first, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) runnable_.push_back(first + (order_ == Order::kReverse ? count - 1 - i : i));
}

Thread* Grid::take() {
  if (failure_ || runnable_.empty()) return nullptr;
  if (order_ == Order::kRandom) std::swap(runnable_.front(), runnable_[random_() % runnable_.size()]);
  Thread* thread = runnable_.front();
  runnable_.pop_front();
  return thread;
}

void Grid::run() {
  while (!pending_.empty() && resident_.size() < kResidentBlocks) admit_block();
  for (current_ = take(); current_ != nullptr;) enter_current();
  if (!failure_ && !resident_.empty())
    failure_ = std::make_exception_ptr(KernelError(describe_stuck(resident_.front())));
  if (failure_) {
    abandon();
    std::rethrow_exception(failure_);
  }
}

/// Runs the current thread, and those that begin after it, until one waits or must be entered itself.
void Grid::enter_current() {
  fiber to = std::move(current_->context);
  Stack stack = current_->stack;
  if (!to) {
    StackPool pool;
    const stack_context memory = pool.allocate();
    stack = {StackPool::bottom_of(memory), memory.size};
    to = fiber(std::allocator_arg, boost::context::preallocated(memory.sp, memory.size, memory), pool,
               [this](fiber&& scheduler) { return run_threads(std::move(scheduler)); });
  }
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack.bottom, stack.bytes);
  fiber from = std::move(to).resume();
  __sanitizer_finish_switch_fiber(fake_stack, &stack.bottom, &stack.bytes);
  if (!from) return;
  current_->context = std::move(from);
  current_->stack = stack;
  current_ = take();
}

/// The life of a fiber.
fiber Grid::run_threads(fiber&& scheduler) {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_.bottom, &scheduler_stack_.bytes);
  scheduler_ = std::move(scheduler);
  do run_current();
  while (current_ != nullptr && !current_->context);
  __sanitizer_start_switch_fiber(nullptr, scheduler_stack_.bottom, scheduler_stack_.bytes);
  return std::move(scheduler_);
}

void Grid::run_current() {
  place = &current_->place;
  try {
    launch_.thread();
  } catch (const Abandoned&) {
  } catch (...) {
    if (!failure_) failure_ = std::current_exception();
  }
  Block& block = *current_->block;
  if (++block.returned == launch_.threads && !failure_) {
    resident_.remove_if([&](const Block& each) { return &each == &block; });
    if (!pending_.empty()) admit_block();
  }
  current_ = take();
}

/// Gives way to the scheduler until the current thread is taken again.
void Grid::wait() {
  ++waits_;
  const Thread* const self = current_;
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack_.bottom, scheduler_stack_.bytes);
  scheduler_ = std::move(scheduler_).resume();
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_.bottom, &scheduler_stack_.bytes);
  place = &self->place;
  if (abandoning_) throw Abandoned{};
}

void Grid::block_barrier() {
  Block& block = *current_->block;
  if (++block.at_barrier == launch_.threads) {
    block.at_barrier = 0;
    make_runnable(block.threads.data(), block.threads.size());
  }
  wait();
}

std::uint64_t Grid::warp_shuffle_xor(std::uint64_t bits, std::size_t bytes, unsigned mask) {
  if (mask >= kWarpThreads) refuse("warp_shuffle_xor with mask " + std::to_string(mask) + ", of 0 to 31 that can be");
  Thread& self = *current_;
  Warp& warp = self.block->warps[self.place.thread / kWarpThreads];
  if (warp.waiting > 0 && (warp.mask != mask || warp.bytes != bytes))
    refuse("warp_shuffle_xor with mask " + std::to_string(mask) + " of " + std::to_string(bytes) +
           " bytes, while other lanes of the warp have called it with mask " + std::to_string(warp.mask) + " of " +
           std::to_string(warp.bytes) + " bytes");
  warp.mask = mask;
  warp.bytes = bytes;
  self.bits = bits;
  if (++warp.waiting == kWarpThreads) {
    warp.waiting = 0;
    Thread* lanes = &self - self.place.thread % kWarpThreads;
    for (unsigned lane = 0; lane < kWarpThreads; ++lane)
      if (lane < (lane ^ mask)) std::swap(lanes[lane].bits, lanes[lane ^ mask].bits);
    make_runnable(lanes, kWarpThreads);
  }
  wait();
  return self.bits;
}

std::string Grid::describe_stuck(const Block& block) const {
  unsigned at_shuffle = 0;
  for (const Warp& warp : block.warps) at_shuffle += warp.waiting;
  return launch_.kernel + ", block " + std::to_string(block.threads.front().place.block) + " of " +
         std::to_string(launch_.blocks) + ": divergent " + (at_shuffle > 0 ? "shuffle" : "barrier") + ": of its " +
         std::to_string(launch_.threads) + " threads " + std::to_string(block.at_barrier) + " wait at block_barrier, " +
         std::to_string(at_shuffle) + " wait at warp_shuffle_xor, " + std::to_string(block.returned) + " have returned";
}

/// Unwinds all threads that wait.
void Grid::abandon() {
  abandoning_ = true;
  for (Block& block : resident_)
    for (Thread& thread : block.threads)
      if (thread.context) {
        current_ = &thread;
        enter_current();
      }
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

void block_barrier() { grid->block_barrier(); }

std::uint64_t warp_shuffle_xor(std::uint64_t bits, std::size_t bytes, unsigned mask) {
  return grid->warp_shuffle_xor(bits, bytes, mask);
}

}  // namespace simt
