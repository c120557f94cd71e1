// The tensor cores of a block on the host: which products each thread has begun and waits for, and what they see of
// shared memory. simt/tensor.h says what is called.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "../../cuda/runtime/tensor.cuh"

namespace simt {

struct BlockProducts {
  /// Of what the warps of a warpgroup have multiplied, and how much each of them has.
  struct Group {
    std::deque<Product> products;  ///< those that not all warps have begun
    unsigned first = 0;            ///< the number of the first of these
    unsigned counts[4]{};
  };

  const std::byte* shared = nullptr;
  std::size_t bytes = 0;
  std::vector<std::byte> seen;  ///< what products see of shared memory: without what was written since the last fence
  std::vector<Group> groups;

  /// What is in shared memory now.
  void see() { seen.assign(shared, shared + bytes); }
};

struct ThreadProducts {
  struct UnderWay {
    Sums* sums = nullptr;  ///< null where they no longer exist
    Product product;
    unsigned batch = 0;
    bool is_done = false;
    float a[2][16]{};  ///< this thread's two rows of A, if that is in registers
  };

  BlockProducts* block = nullptr;
  bool has_begun = false;
  unsigned committed = 0;  ///< batches
  std::vector<std::pair<const std::uint32_t*, std::size_t>> fragments;
  std::vector<UnderWay> under_way;
};

/// The thread that runs returns, as the last of its block or not.
void end_products(bool block_ends);

}  // namespace simt
