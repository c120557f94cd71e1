#include "checksum.h"

#include <array>
#include <bit>
#include <cstring>

namespace deviceloop {
namespace {

static_assert(std::endian::native == std::endian::little, "eight bytes are taken at a time as they lie in memory");

constexpr std::uint64_t kPolynomial = 0xc96c5795d7870f42;
constexpr std::size_t kWord = 8;

/// Entry [k][b]: what byte b, followed by k zeros, adds. So eight bytes are eight independent look-ups, which takes a
/// fifth of the time of one byte after the other.
using Tables = std::array<std::array<std::uint64_t, 256>, kWord>;

constexpr Tables make_tables() {
  Tables tables{};
  for (std::uint64_t byte = 0; byte < 256; ++byte) {
    std::uint64_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = value;
  }
  for (std::size_t zeros = 1; zeros < kWord; ++zeros)
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint64_t before = tables[zeros - 1][byte];
      tables[zeros][byte] = (before >> 8) ^ tables[0][before & 0xff];
    }
  return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace

void Checksum::add(const void* data, std::size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(data);
  std::uint64_t state = state_;
  for (; bytes >= kWord; bytes -= kWord, at += kWord) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, kWord);
    word ^= state;
    state = 0;
    for (std::size_t k = 0; k < kWord; ++k) state ^= kTables[kWord - 1 - k][word >> (8 * k) & 0xff];
  }
  for (; bytes > 0; --bytes, ++at) state = (state >> 8) ^ kTables[0][(state ^ *at) & 0xff];
  state_ = state;
}

std::string checksum_text(std::uint64_t value) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text(16, '0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = kDigits[value >> (60 - 4 * i) & 0xf];
  return text;
}

}  // namespace deviceloop
