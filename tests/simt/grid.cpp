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

#include "../../cuda/runtime/tensor.cuh"
#include "products.h"

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
  unsigned gathers = 0;      // warp_gather calls
  int cluster_phase = -1;    // in which it has arrived and not yet waited
  ThreadProducts products;
};

/// Threads that wait for each other.
struct Meeting {
  Thread* first = nullptr;
  unsigned members = 0;
  unsigned waiting = 0;
};

/// What the lanes of a warp call together.
struct LaneCall {
  const char* other = nullptr;  // the function, if it is not warp_shuffle_xor
  unsigned mask = 0;            // of the shuffle
  std::size_t bytes = 0;        // of the shuffle, or of what a lane gives
  bool operator==(const LaneCall&) const = default;
  const char* name() const { return other != nullptr ? other : "warp_shuffle_xor"; }
  std::string text() const {
    if (other != nullptr) return name();
    return std::string(name()) + " with mask " + std::to_string(mask) + " of " + std::to_string(bytes) + " bytes";
  }
};

struct Warp {
  Meeting meeting;
  LaneCall call;
  // What the lanes give to a warp_gather, by its parity: a lane can be one ahead of another.
  std::vector<std::uint32_t> gathered[2];
};

/// A barrier of a part of the block, or the halves of a cluster's.
struct PartBarrier {
  unsigned threads = 0, arrived = 0, phase = 0;
};

/// What a barrier of transactions counts.
struct Transactions {
  static constexpr std::uint64_t kMagic = 0xb417;  // it is initialised
  static constexpr std::int64_t kMostBytes = (1 << 20) - 1;
  unsigned phase = 0, arrivals = 0, awaited = 0;  // awaited: arrivals
  std::int64_t bytes = 0;                         // announced and not landed

  static bool initialised(std::uint64_t word) { return word >> 48 == kMagic; }
  static Transactions of(std::uint64_t word) {
    return {static_cast<unsigned>(word >> 47 & 1), static_cast<unsigned>(word >> 36 & 0x7ff),
            static_cast<unsigned>(word >> 25 & 0x7ff), static_cast<std::int64_t>(word & 0x1ffffff) - (1 << 24)};
  }
  std::uint64_t word() const {
    return kMagic << 48 | std::uint64_t{phase} << 47 | std::uint64_t{arrivals} << 36 | std::uint64_t{awaited} << 25 |
           static_cast<std::uint64_t>(bytes + (1 << 24));
  }
  void end_phase() {
    if (awaited != 0 || bytes != 0) return;
    phase ^= 1;
    awaited = arrivals;
  }
};

constexpr std::size_t kSharedAlignment = 1024;

struct FreeShared {
  void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{kSharedAlignment}); }
};

struct Cluster;

struct Block {
  Cluster* cluster = nullptr;
  std::unique_ptr<std::byte, FreeShared> shared;
  Meeting barrier;
  std::vector<Warp> warps;
  std::map<int, PartBarrier> parts;
  BlockProducts products;
  bool begun = false;
  unsigned returned = 0;
};

/// On its way to a block.
struct Store {
  Block* block = nullptr;
  std::byte* to = nullptr;
  std::uint64_t* barrier = nullptr;
  std::size_t bytes = 0;
  const void* from = nullptr;  // in global memory; else it is the value that is stored
  std::byte value[16]{};
};

/// Of one block where the launch has no clusters.
struct Cluster {
  std::vector<Thread> threads;
  std::vector<Block> blocks;
  Meeting barrier;
  PartBarrier halves;  // cluster_arrive and cluster_wait
  std::vector<Store> stores;
  unsigned returned = 0;  // threads
};

class Grid {
 public:
  Grid(const GridLaunch& launch, Order order, std::mt19937_64& random);
  void run();
  void block_barrier() { meet(current_->block->barrier, "block_barrier", runnable_); }
  void cluster_barrier() { meet(current_->block->cluster->barrier, "cluster_barrier", runnable_); }
  void cluster_arrive();
  void cluster_wait();
  void part_barrier(int barrier, unsigned threads, bool waits);
  std::uint64_t exchange(const LaneCall& call, std::uint64_t bits);
  void gather(const char* name, const std::uint32_t* mine, unsigned count, std::uint32_t* all);
  void init_transactions(std::uint64_t* barrier, unsigned arrivals) const;
  void arrive_transactions(std::uint64_t* barrier, std::size_t expected_bytes) const;
  bool transactions_ended(const Place& waiting, const std::uint64_t* barrier, unsigned parity);
  void store_async(void* to, const void* value, std::size_t bytes, std::uint64_t* barrier);
  void copy_bulk(void* to, const void* from, std::size_t bytes, std::uint64_t* barrier);
  bool happens_at_once() { return order_ == Order::kForward || (order_ == Order::kRandom && random_() % 4 == 0); }
  void let_stores_land() { land(*current_->block->cluster, nullptr); }
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
  void wait_for(const char* where, const std::function<bool()>& has_ended);
  Block& block_of(const void* place, std::size_t bytes, std::size_t alignment, const char* name) const;
  void send(const Store& store, const char* name);
  Transactions own_transactions(const std::uint64_t* barrier, const char* name) const;
  void land(Cluster& cluster, const std::uint64_t* barrier);
  void land(const Store& store) const;
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
      block.shared.reset(
          static_cast<std::byte*>(::operator new (launch_.shared_bytes, std::align_val_t{kSharedAlignment})));
      std::memset(block.shared.get(), launch_.fresh_byte, launch_.shared_bytes);
      // Until the block begins nobody may touch it.
      if (launch_.cluster_blocks > 1) __asan_poison_memory_region(block.shared.get(), launch_.shared_bytes);
    }
    block.products.shared = block.shared.get();
    block.products.bytes = launch_.shared_bytes;
    block.barrier = {thread, launch_.threads};
    block.warps.resize(launch_.threads / kWarpThreads);
    for (unsigned i = 0; i < launch_.threads; ++i, ++thread) {
      if (i % kWarpThreads == 0) block.warps[i / kWarpThreads].meeting = {thread, kWarpThreads};
      thread->place = {i,
                       launch_.threads,
                       first_block + rank,
                       launch_.blocks,
                       rank,
                       launch_.cluster_blocks,
                       block.shared.get(),
                       thread,
                       &thread->products};
      thread->block = &block;
      thread->products.block = &block.products;
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
    if (!failure_) end_products(block.returned + 1 == launch_.threads);
  } catch (const Abandoned&) {
  } catch (...) {
    if (!failure_) failure_ = std::current_exception();
  }
  if (++block.returned == launch_.threads) {
    for (const Store& store : cluster.stores)
      if (store.block == &block && !failure_)
        failure_ = std::make_exception_ptr(
            KernelError(launch_.kernel + ", block " + std::to_string(block.barrier.first->place.block) + " of " +
                        std::to_string(launch_.blocks) + ": ended while an asynchronous store was on its way to it"));
    block.shared.reset();
  }
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

void Grid::gather(const char* name, const std::uint32_t* mine, unsigned count, std::uint32_t* all) {
  Warp& warp = current_->block->warps[current_->place.thread / kWarpThreads];
  std::vector<std::uint32_t>& words = warp.gathered[current_->gathers++ % 2];
  words.resize(kWarpThreads * count);
  std::copy_n(mine, count, words.begin() + current_->place.thread % kWarpThreads * count);
  exchange({name, 0, count}, 0);
  std::copy(words.begin(), words.end(), all);
}

void Grid::wait_for(const char* where, const std::function<bool()>& has_ended) {
  if (has_ended()) return;
  Poll waiting{where, 0, has_ended};
  poll(waiting);
}

void Grid::cluster_arrive() {
  PartBarrier& halves = current_->block->cluster->halves;
  if (current_->cluster_phase >= 0) refuse("cluster_arrive without cluster_wait after the one before");
  current_->cluster_phase = static_cast<int>(halves.phase % 2);
  if (++halves.arrived < launch_.cluster_blocks * launch_.threads) return;
  halves.arrived = 0;
  ++halves.phase;
}

void Grid::cluster_wait() {
  if (current_->cluster_phase < 0) refuse("cluster_wait without cluster_arrive");
  const PartBarrier& halves = current_->block->cluster->halves;
  const auto phase = static_cast<unsigned>(std::exchange(current_->cluster_phase, -1));
  wait_for("cluster_wait", [&halves, phase] { return halves.phase % 2 != phase; });
}

void Grid::part_barrier(int barrier, unsigned threads, bool waits) {
  const std::string name =
      (waits ? "part_barrier(" : "part_arrive(") + std::to_string(barrier) + ", " + std::to_string(threads) + ")";
  if (barrier < 1 || barrier > 15) refuse(name + ": barriers are 1 to 15");
  if (threads == 0 || threads % kWarpThreads != 0 || threads > launch_.threads)
    refuse(name + ": takes whole warps, of a block of " + std::to_string(launch_.threads) + " threads");
  PartBarrier& part = current_->block->parts[barrier];
  if (part.arrived > 0 && part.threads != threads)
    refuse(name + ", while others have told it " + std::to_string(part.threads) + " threads");
  part.threads = threads;
  const unsigned phase = part.phase;
  if (++part.arrived == threads) {
    part.arrived = 0;
    ++part.phase;
  }
  if (waits) wait_for("part_barrier", [&part, phase] { return part.phase != phase; });
}

/// The block of the cluster whose shared memory the place is in.
Block& Grid::block_of(const void* place, std::size_t bytes, std::size_t alignment, const char* name) const {
  for (Block& block : current_->block->cluster->blocks) {
    const auto offset = reinterpret_cast<std::uintptr_t>(place) - reinterpret_cast<std::uintptr_t>(block.shared.get());
    if (block.shared == nullptr || offset >= launch_.shared_bytes) continue;
    if (offset % alignment != 0)
      refuse(std::string(name) + ": a place of " + std::to_string(bytes) + " bytes is not aligned");
    if (offset + bytes > launch_.shared_bytes) refuse(std::string(name) + ": a place beyond the shared memory");
    if (!block.begun) refuse(std::string(name) + ": a place of a block that has not begun");
    return block;
  }
  refuse(std::string(name) + ": a place that is not in the shared memory of a running block of the cluster");
}

Transactions Grid::own_transactions(const std::uint64_t* barrier, const char* name) const {
  if (&block_of(barrier, sizeof *barrier, sizeof *barrier, name) != current_->block)
    refuse(std::string(name) + ": the barrier of another block");
  if (!Transactions::initialised(*barrier)) refuse(std::string(name) + ": the barrier is not initialised");
  return Transactions::of(*barrier);
}

void Grid::init_transactions(std::uint64_t* barrier, unsigned arrivals) const {
  if (&block_of(barrier, sizeof *barrier, sizeof *barrier, "init_transactions") != current_->block)
    refuse("init_transactions: the barrier of another block");
  if (arrivals == 0 || arrivals > 0x7ff) refuse("init_transactions of " + std::to_string(arrivals) + " arrivals");
  *barrier = Transactions{0, arrivals, arrivals, 0}.word();
}

void Grid::arrive_transactions(std::uint64_t* barrier, std::size_t expected_bytes) const {
  const char* const name = expected_bytes == 0 ? "arrive" : "arrive_expecting";
  Transactions counts = own_transactions(barrier, name);
  if (counts.awaited == 0) refuse(std::string(name) + ": more arrivals in a phase than the barrier has");
  counts.bytes += static_cast<std::int64_t>(expected_bytes);
  if (counts.bytes > Transactions::kMostBytes) refuse(std::string(name) + ": more bytes than a barrier counts");
  --counts.awaited;
  counts.end_phase();
  *barrier = counts.word();
}

/// Also called in the stead of a thread that waits.
bool Grid::transactions_ended(const Place& waiting, const std::uint64_t* barrier, unsigned parity) {
  Thread& thread = *static_cast<Thread*>(waiting.owner);
  if (&thread == current_ && thread.poll == nullptr) {
    if (parity > 1) refuse("try_wait with parity " + std::to_string(parity));
    own_transactions(barrier, "try_wait");
  }
  if (Transactions::of(*barrier).phase == parity) land(*thread.block->cluster, barrier);
  return Transactions::of(*barrier).phase != parity;
}

void Grid::store_async(void* to, const void* value, std::size_t bytes, std::uint64_t* barrier) {
  Store store{&block_of(to, bytes, bytes, "store_async"), static_cast<std::byte*>(to), barrier, bytes};
  std::memcpy(store.value, value, bytes);
  send(store, "store_async");
}

void Grid::copy_bulk(void* to, const void* from, std::size_t bytes, std::uint64_t* barrier) {
  if (bytes == 0 || bytes % 16 != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
    refuse("copy_bulk of " + std::to_string(bytes) + " bytes: not at and in multiples of 16 bytes");
  const Store store{&block_of(to, bytes, 16, "copy_bulk"), static_cast<std::byte*>(to), barrier, bytes, from};
  if (store.block != current_->block) refuse("copy_bulk: a place of another block");
  send(store, "copy_bulk");
}

void Grid::send(const Store& store, const char* name) {
  if (&block_of(store.barrier, sizeof *store.barrier, sizeof *store.barrier, name) != store.block)
    refuse(std::string(name) + ": the barrier is not of the block that is written to");
  if (!Transactions::initialised(*store.barrier)) refuse(std::string(name) + ": the barrier is not initialised");
  std::vector<Store>& stores = current_->block->cluster->stores;
  stores.push_back(store);
  if (!happens_at_once()) return;
  if (order_ == Order::kRandom) std::swap(stores.back(), stores[random_() % stores.size()]);
  const Store lands = stores.back();
  stores.pop_back();
  land(lands);
}

/// What is on its way to that barrier; null: to all of the cluster.
void Grid::land(Cluster& cluster, const std::uint64_t* barrier) {
  if (cluster.stores.empty()) return;
  const auto first = std::partition(cluster.stores.begin(), cluster.stores.end(),
                                    [&](const Store& store) { return barrier != nullptr && store.barrier != barrier; });
  std::vector<Store> landing(first, cluster.stores.end());
  cluster.stores.erase(first, cluster.stores.end());
  if (order_ == Order::kRandom) std::shuffle(landing.begin(), landing.end(), random_);
  for (const Store& store : landing) land(store);
}

void Grid::land(const Store& store) const {
  Transactions counts = Transactions::of(*store.barrier);
  std::memcpy(store.to, store.from != nullptr ? store.from : store.value, store.bytes);
  if (store.from != nullptr) {
    // Products see it; a fence is for what threads have written.
    BlockProducts& products = store.block->products;
    products.seen.resize(products.bytes);
    std::memcpy(&products.seen[static_cast<std::size_t>(store.to - store.block->shared.get())], store.to, store.bytes);
  }
  counts.bytes -= static_cast<std::int64_t>(store.bytes);
  counts.end_phase();
  *store.barrier = counts.word();
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

void cluster_arrive() { grid->cluster_arrive(); }

void cluster_wait() { grid->cluster_wait(); }

void part_barrier(int barrier, int threads, bool waits) {
  grid->part_barrier(barrier, static_cast<unsigned>(threads), waits);
}

void poll(Poll& poll) { grid->poll(poll); }

std::uint64_t warp_shuffle_xor(std::uint64_t bits, std::size_t bytes, unsigned mask) {
  return grid->exchange({nullptr, mask, bytes}, bits);
}

void warp_barrier() { grid->exchange({"warp_barrier"}, 0); }

void warp_gather(const char* name, const std::uint32_t* mine, unsigned count, std::uint32_t* all) {
  grid->gather(name, mine, count, all);
}

void init_transactions(std::uint64_t* barrier, unsigned arrivals) { grid->init_transactions(barrier, arrivals); }

void arrive_transactions(std::uint64_t* barrier, std::size_t expected_bytes) {
  grid->arrive_transactions(barrier, expected_bytes);
}

bool transactions_ended(const Place& waiting, const std::uint64_t* barrier, unsigned parity) {
  return grid->transactions_ended(waiting, barrier, parity);
}

void store_async(void* to, const void* value, std::size_t bytes, std::uint64_t* barrier) {
  grid->store_async(to, value, bytes, barrier);
}

void copy_bulk(void* to, const void* from, std::size_t bytes, std::uint64_t* barrier) {
  grid->copy_bulk(to, from, bytes, barrier);
}

void let_stores_land() { grid->let_stores_land(); }

void refuse(const std::string& why) { grid->refuse(why); }

bool happens_at_once() { return grid->happens_at_once(); }

}  // namespace simt
