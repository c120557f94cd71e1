// Where a thread is: in the fixture or in what it tests.
#pragma once

namespace simt {

/// While one lives the calling thread is in the fixture: see is_inside.
class Inside {
 public:
  Inside();
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

}  // namespace simt
