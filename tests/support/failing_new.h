// operator new of a whole test program, which counts and can fail; defined in failing_new.cpp, which the program is
// linked with.
#pragma once

namespace deviceloop::testing {

/// Blocks taken so far by all threads, and those of them that were not given back.
/// @{
long allocations();
long live_allocations();
/// @}

/// The k-th block from now that a thread of the program asks for while a FailingNew lives is refused; 0: none.
void fail_allocation(long k);
/// Whether it was refused, and whether to one who goes on without it (new (std::nothrow), as std::stable_sort asks).
/// @{
bool allocation_has_failed();
bool failed_allocation_was_nothrow();
/// @}

/// While one lives, on whatever thread, blocks are counted for fail_allocation: so only what the library does under
/// test fails, and not the test. One at a time.
class FailingNew {
 public:
  FailingNew();
  ~FailingNew();
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;
};

/// Of threads for which `is_exempt` answers true nothing fails and nothing is counted for fail_allocation: those that
/// execute a stand-in of another library.
void exempt_from_failures(bool (*is_exempt)());

}  // namespace deviceloop::testing
