#include "products.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string>

#include "grid.h"

namespace simt {
namespace {

using deviceloop::cuda::kWarpgroupThreads;
using deviceloop::cuda::kWarpThreads;

constexpr std::uint32_t kSharedBegin = 0x400;  // the runtime's own part lies before

/// A descriptor, decoded.
struct Matrix {
  std::uint32_t address, panels_apart, eights_apart;
  bool tf32, by_rows;

  Matrix(std::uint64_t descriptor, bool of_tf32, bool rows_are_k)
      : address(field(descriptor, 0)),
        panels_apart(field(descriptor, 16)),
        eights_apart(field(descriptor, 32)),
        tf32(of_tf32),
        by_rows(rows_are_k) {
    constexpr std::uint64_t kKnown = 0xc0003fff3fff3fffu;
    if ((descriptor & ~kKnown) != 0 || descriptor >> 62 != 1)
      refuse("multiply_async: a descriptor of another layout than panels with rows of 128 bytes");
  }

  /// The element of index `i` of M or N, and `k`.
  float element(const BlockProducts& block, unsigned i, unsigned k) const {
    const unsigned bytes = tf32 ? 4 : 2, row = by_rows ? k : i;
    std::uint32_t at = address + row / 8 * eights_apart + row % 8 * 128;
    at += by_rows ? i / 64 * panels_apart + i % 64 * 2 : k * bytes;
    at ^= (at >> 7 & 7) << 4;
    if (at < kSharedBegin || at + bytes > kSharedBegin + block.bytes)
      refuse("multiply_async: an operand at shared address " + std::to_string(at) + ", beyond the block's " +
             std::to_string(block.bytes) + " bytes");
    const std::size_t offset = at - kSharedBegin;
    const std::uint32_t bits = word(block.shared + offset);
    if (block.seen.empty() || word(&block.seen[offset]) != bits)
      refuse("multiply_async: an operand was written after the last fence_async_proxy, at byte " +
             std::to_string(offset) + " of shared memory");
    return std::bit_cast<float>(tf32 ? bits & ~0x1fffu : bits << 16);
  }

 private:
  /// Of 2 or 4 bytes; with constant sizes, so that no function is called.
  std::uint32_t word(const std::byte* from) const {
    std::uint16_t half = 0;
    std::uint32_t whole = 0;
    if (tf32)
      std::memcpy(&whole, from, sizeof whole);
    else
      std::memcpy(&half, from, sizeof half);
    return tf32 ? whole : half;
  }
  static std::uint32_t field(std::uint64_t descriptor, int bit) {
    return static_cast<std::uint32_t>(descriptor >> bit & 0x3fff) * 16;
  }
};

void run(ThreadProducts& thread, ThreadProducts::UnderWay& each) {
  if (each.sums == nullptr) refuse("wait_products: sums went out of scope while products added to them");
  if (each.is_done) return;
  each.is_done = true;
  const Product& product = each.product;
  const unsigned depth = product.tf32 ? 8 : 16, lane = place->thread % kWarpThreads;
  if (product.fragment == nullptr) {
    const Matrix a(product.a, product.tf32, product.a_by_rows);
    for (unsigned h = 0; h < 2; ++h)
      for (unsigned k = 0; k < depth; ++k)
        each.a[h][k] =
            a.element(*thread.block, place->thread % kWarpgroupThreads / kWarpThreads * 16 + lane / 4 + 8 * h, k);
  }
  const Matrix b(product.b, product.tf32, product.b_by_rows);
  for (unsigned column = 0; column < product.columns; column += 8)
    for (unsigned i = 0; i < 2; ++i) {
      float* const results = each.sums->results + column / 2 + i;  // of both rows, 2 apart
      double sums[2] = {product.accumulate ? results[0] : 0, product.accumulate ? results[2] : 0};
      for (unsigned k = 0; k < depth; ++k) {
        const double value = b.element(*thread.block, column + lane % 4 * 2 + i, k);
        for (unsigned h = 0; h < 2; ++h) sums[h] += each.a[h][k] * value;
      }
      for (unsigned h = 0; h < 2; ++h) results[2 * h] = static_cast<float>(sums[h]);
    }
}

/// This thread's rows of A, of the fragments of all lanes, which begin `stride` words apart.
void take_fragment(ThreadProducts::UnderWay& each, const std::uint32_t* fragments, unsigned stride) {
  const unsigned first_lane = place->thread % kWarpThreads / 4 * 4;
  for (unsigned h = 0; h < 2; ++h)
    for (unsigned k = 0; k < (each.product.tf32 ? 8 : 16); ++k) {
      const auto word = [&](unsigned lane, unsigned i) { return fragments[(first_lane + lane) * stride + i]; };
      const std::uint32_t bits = each.product.tf32 ? word(k % 4, k / 4 * 2 + h) & ~0x1fffu
                                                   : word(k % 8 / 2, k / 8 * 2 + h) >> k % 2 * 16 << 16;
      each.a[h][k] = std::bit_cast<float>(bits);
    }
}

bool same_call(const Product& a, const Product& b) {
  return a.tf32 == b.tf32 && a.columns == b.columns && a.a == b.a && a.b == b.b && a.a_by_rows == b.a_by_rows &&
         a.b_by_rows == b.b_by_rows && a.accumulate == b.accumulate &&
         (a.fragment == nullptr) == (b.fragment == nullptr);
}

/// Checks that the warps of a group multiply the same.
void record(BlockProducts& block, const Product& product) {
  const unsigned group = place->thread / kWarpgroupThreads;
  if (block.groups.size() <= group) block.groups.resize(group + 1);
  BlockProducts::Group& record = block.groups[group];
  const unsigned number = record.counts[place->thread % kWarpgroupThreads / kWarpThreads]++;
  if (number - record.first == record.products.size())
    record.products.push_back(product);
  else if (!same_call(record.products[number - record.first], product))
    refuse("multiply_async: another warp of the warpgroup multiplies something else");
  while (record.first < *std::min_element(record.counts, record.counts + 4)) {
    record.products.pop_front();
    ++record.first;
  }
}

}  // namespace

void touch(Sums& sums) {
  if (sums.state == Sums::State::kUnderWay)
    refuse("sums are read or written while products add to them; name them to wait_products before");
  sums.state = Sums::State::kTouched;
}

void drop(Sums& sums) {
  if (sums.state != Sums::State::kUnderWay) return;
  for (ThreadProducts::UnderWay& each : place->products->under_way)
    if (each.sums == &sums) each.sums = nullptr;
}

void name_registers(Sums& sums) {
  if (sums.state == Sums::State::kUnderWay) refuse("begin_products names sums that products add to");
  sums.state = Sums::State::kNamed;
}

void name_registers(const std::uint32_t* words, std::size_t count) {
  place->products->fragments.emplace_back(words, count);
}

void begin_products() {
  warp_gather("begin_products", nullptr, 0, nullptr);
  place->products->has_begun = true;
}

void multiply_async(Sums& sums, const Product& product) {
  ThreadProducts& thread = *place->products;
  if (place->thread / kWarpgroupThreads * kWarpgroupThreads + kWarpgroupThreads > place->threads)
    refuse("multiply_async by threads that are no whole warpgroup of " + std::to_string(kWarpgroupThreads));
  if (!thread.has_begun) refuse("multiply_async without begin_products since the last commit_products");
  if (sums.state == Sums::State::kTouched)
    refuse("multiply_async: sums that begin_products did not name, or that were read or written since");
  constexpr unsigned kWords = 11, kOfCall = 7;
  std::uint32_t mine[kWords] = {product.columns,
                                static_cast<std::uint32_t>(product.a),
                                static_cast<std::uint32_t>(product.a >> 32),
                                static_cast<std::uint32_t>(product.b),
                                static_cast<std::uint32_t>(product.b >> 32),
                                product.accumulate,
                                product.fragment != nullptr};
  if (product.fragment != nullptr) {
    const bool is_named = std::any_of(thread.fragments.begin(), thread.fragments.end(), [&](const auto& named) {
      return product.fragment >= named.first && product.fragment + 4 <= named.first + named.second;
    });
    if (!is_named) refuse("multiply_async: a fragment that begin_products did not name");
    std::copy_n(product.fragment, 4, mine + kOfCall);
  }
  std::uint32_t all[kWarpThreads * kWords];
  warp_gather("multiply_async", mine, kWords, all);
  for (unsigned lane = 0; lane < kWarpThreads; ++lane)
    if (!std::equal(mine, mine + kOfCall, all + lane * kWords))
      refuse("multiply_async: lane " + std::to_string(lane) + " multiplies something else");
  if (place->thread % kWarpThreads == 0) record(*thread.block, product);
  if (sums.state == Sums::State::kNamed) {
    std::copy_n(sums.values, sums.columns / 2, sums.results);
    std::fill_n(sums.values, sums.columns / 2, std::numeric_limits<float>::quiet_NaN());
    sums.state = Sums::State::kUnderWay;
  }
  sums.batch = thread.committed;
  ThreadProducts::UnderWay& added = thread.under_way.emplace_back();
  added.sums = &sums;
  added.product = product;
  added.batch = thread.committed;
  if (product.fragment != nullptr) take_fragment(added, all + kOfCall, kWords);
  if (happens_at_once())
    for (ThreadProducts::UnderWay& each : thread.under_way) run(thread, each);
}

void commit_products() {
  warp_gather("commit_products", nullptr, 0, nullptr);
  ThreadProducts& thread = *place->products;
  ++thread.committed;
  thread.has_begun = false;
  thread.fragments.clear();
}

void wait_products(unsigned batches, Sums* const* named, std::size_t count) {
  warp_gather("wait_products", nullptr, 0, nullptr);
  ThreadProducts& thread = *place->products;
  if (!thread.under_way.empty() && thread.under_way.back().batch == thread.committed)
    refuse("wait_products: the last products were not committed");
  const unsigned ended = thread.committed - std::min(thread.committed, batches);
  const auto first_left = std::find_if(thread.under_way.begin(), thread.under_way.end(),
                                       [&](const ThreadProducts::UnderWay& each) { return each.batch >= ended; });
  for (auto each = thread.under_way.begin(); each != first_left; ++each) run(thread, *each);
  thread.under_way.erase(thread.under_way.begin(), first_left);
  for (std::size_t i = 0; i < count; ++i) {
    Sums& sums = *named[i];
    if (sums.state == Sums::State::kUnderWay) {
      if (sums.batch >= ended) refuse("wait_products names sums that a later batch adds to");
      std::copy_n(sums.results, sums.columns / 2, sums.values);
    }
    sums.state = Sums::State::kTouched;
  }
}

void fence_async_proxy() { place->products->block->see(); }

std::uint32_t shared_address(const void* at, std::size_t alignment) {
  const BlockProducts& block = *place->products->block;
  const auto offset = reinterpret_cast<std::uintptr_t>(at) - reinterpret_cast<std::uintptr_t>(block.shared);
  if (block.shared == nullptr || offset >= block.bytes)
    refuse("shared_address: a place that is not in the block's shared memory");
  if (offset % alignment != 0)
    refuse("shared_address: a place that is not at a multiple of " + std::to_string(alignment));
  return kSharedBegin + static_cast<std::uint32_t>(offset);
}

void end_products(bool block_ends) {
  const ThreadProducts& thread = *place->products;
  if (!thread.under_way.empty()) refuse("returns while products are under way");
  if (!block_ends) return;
  for (const BlockProducts::Group& group : thread.block->groups)
    if (std::adjacent_find(group.counts, group.counts + 4, std::not_equal_to<>()) != group.counts + 4)
      refuse("warps of a warpgroup have multiplied " + std::to_string(group.counts[0]) + ", " +
             std::to_string(group.counts[1]) + ", " + std::to_string(group.counts[2]) + " and " +
             std::to_string(group.counts[3]) + " times");
}

}  // namespace simt
