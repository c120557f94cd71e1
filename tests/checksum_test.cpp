#include "checksum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

namespace deviceloop {
namespace {

std::uint64_t checksum_of(const std::string& text, std::size_t piece = std::string::npos) {
  Checksum checksum;
  for (std::size_t first = 0; first < text.size(); first += std::min(piece, text.size())) {
    const std::string part = text.substr(first, piece);
    checksum.add(part.data(), part.size());
  }
  return checksum.value();
}

/// By its definition, bit by bit.
std::uint64_t reference_of(const std::string& text) {
  std::uint64_t state = ~std::uint64_t{0};
  for (const char c : text)
    for (int bit = 0; bit < 8; ++bit) {
      const bool is_set = ((state ^ (static_cast<unsigned char>(c) >> bit)) & 1) != 0;
      state = (state >> 1) ^ (is_set ? 0xc96c5795d7870f42 : 0);
    }
  return ~state;
}

TEST(Checksum, IsTheOneOfItsName) {
  EXPECT_EQ(checksum_of("123456789"), 0x995dc9bbdf1939fa);  // the check value of CRC-64/XZ
  EXPECT_EQ(checksum_of(""), 0u);
  EXPECT_EQ(checksum_text(checksum_of("123456789")), "995dc9bbdf1939fa");
  EXPECT_EQ(checksum_text(0x0000000000000a01), "0000000000000a01");
}

TEST(Checksum, IsThatOfAllBytesInWhateverPieces) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += static_cast<char>(i * 37 + i / 7);
  for (std::size_t length = 0; length <= text.size(); ++length)
    EXPECT_EQ(checksum_of(text.substr(0, length)), reference_of(text.substr(0, length))) << length;
  for (std::size_t piece = 1; piece < 40; ++piece) EXPECT_EQ(checksum_of(text, piece), reference_of(text)) << piece;
}

}  // namespace
}  // namespace deviceloop
