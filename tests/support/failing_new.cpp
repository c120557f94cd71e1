#include "failing_new.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> taken = 0, live = 0;
std::atomic<long> until_failure = 0;
std::atomic<bool> is_armed = false, has_failed = false, was_nothrow = false;
std::atomic<bool (*)()> is_exempt = nullptr;

bool fails() {
  if (!is_armed.load(std::memory_order_relaxed) || until_failure.load(std::memory_order_relaxed) <= 0) return false;
  if (const auto exempt = is_exempt.load(); exempt != nullptr && exempt()) return false;
  if (until_failure.fetch_sub(1) != 1) return false;
  has_failed = true;
  return true;
}

void* block_or_null(std::size_t bytes, std::size_t alignment, bool is_nothrow = true) noexcept {
  if (fails()) {
    was_nothrow = is_nothrow;
    return nullptr;
  }
  void* const memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) return nullptr;
  ++taken;
  ++live;
  return memory;
}

void* block(std::size_t bytes, std::size_t alignment) {
  if (void* const memory = block_or_null(bytes, alignment, false)) return memory;
  throw std::bad_alloc();
}

void give_back(void* memory) noexcept {
  if (memory == nullptr) return;
  --live;
  std::free(memory);
}

constexpr std::size_t kDefault = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

// The forms for arrays call these.
void* operator new(std::size_t bytes) { return block(bytes, kDefault); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return block(bytes, static_cast<std::size_t>(alignment));
}
// As std::stable_sort asks: the library's own would take another memory than operator delete gives back.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return block_or_null(bytes, kDefault); }
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return block_or_null(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { give_back(memory); }
void operator delete(void* memory, std::size_t) noexcept { give_back(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { give_back(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { give_back(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { give_back(memory); }
void operator delete(void* memory, std::align_val_t, const std::nothrow_t&) noexcept { give_back(memory); }

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// The sanitizers define the forms for arrays themselves, past those above.
void* operator new[](std::size_t bytes) { return block(bytes, kDefault); }
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return block(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return block_or_null(bytes, kDefault); }
void operator delete[](void* memory) noexcept { give_back(memory); }
void operator delete[](void* memory, std::size_t) noexcept { give_back(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { give_back(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { give_back(memory); }
#endif

namespace deviceloop::testing {

long allocations() { return taken; }
long live_allocations() { return live; }

void fail_allocation(long k) {
  has_failed = false;
  until_failure = k;
}
bool allocation_has_failed() { return has_failed; }
bool failed_allocation_was_nothrow() { return was_nothrow; }

FailingNew::FailingNew() { is_armed = true; }
FailingNew::~FailingNew() { is_armed = false; }

void exempt_from_failures(bool (*exempt)()) { is_exempt = exempt; }

}  // namespace deviceloop::testing
