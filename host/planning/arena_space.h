// Hands out space in an arena, by offset; for the layouts of the executors.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include <deviceloop/error.h>
#include <deviceloop/spec.h>

#include "../text.h"

namespace deviceloop {

/// Where there is nothing.
constexpr std::uint64_t kNone = ~std::uint64_t{0};

/// Every piece starts at a multiple of `alignment`. Throws InvalidArgument where sizes overflow.
class ArenaSpace {
 public:
  ArenaSpace(const NetworkSpec& network, const TrainingSpec& training, std::uint64_t alignment)
      : network_(network), training_(training), alignment_(alignment) {}

  std::uint64_t take(std::int64_t rows, std::int64_t columns, std::uint64_t element_bytes) {
    const std::uint64_t offset = used_;
    std::uint64_t bytes =
        multiply(multiply(static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns)), element_bytes);
    bytes = add(bytes, alignment_ - 1) / alignment_ * alignment_;
    used_ = add(used_, bytes);
    return offset;
  }
  std::uint64_t used() const { return used_; }

 private:
  std::uint64_t check(bool overflow, std::uint64_t value) const {
    if (overflow || value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      throw InvalidArgument("layers " + widths_text(network_.widths) + " with " + std::to_string(training_.samples) +
                            " samples need more than 2^63 bytes of memory; make them smaller");
    return value;
  }
  std::uint64_t multiply(std::uint64_t a, std::uint64_t b) const {
    std::uint64_t product = 0;
    const bool overflow = __builtin_mul_overflow(a, b, &product);
    return check(overflow, product);
  }
  std::uint64_t add(std::uint64_t a, std::uint64_t b) const {
    std::uint64_t sum = 0;
    const bool overflow = __builtin_add_overflow(a, b, &sum);
    return check(overflow, sum);
  }

  const NetworkSpec& network_;
  const TrainingSpec& training_;
  std::uint64_t alignment_;
  std::uint64_t used_ = 0;
};

}  // namespace deviceloop
