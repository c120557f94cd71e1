// A checksum of bytes: CRC-64/XZ, the polynomial of ECMA-182 with reflected bits. A cyclic code, and not a hash,
// because it tells for certain, not just probably, where one byte has changed, or any up to 64 neighbouring bits; what
// has changed otherwise it overlooks once in 2^64. It does not protect from those who change a file on purpose.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace deviceloop {

class Checksum {
 public:
  void add(const void* data, std::size_t bytes);
  /// Of all bytes so far; of "123456789" 0x995dc9bbdf1939fa.
  std::uint64_t value() const { return ~state_; }

 private:
  std::uint64_t state_ = ~std::uint64_t{0};
};

/// 16 hexadecimal digits, in lower case.
std::string checksum_text(std::uint64_t value);

}  // namespace deviceloop
