// IDX files: each element type, each number of dimensions, and what is refused.
#include "files/idx.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "files/reader.h"
#include "support/refusal.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

using testing::refusal;
using testing::TemporaryFolder;

std::string big_endian(std::uint64_t value, int bytes) {
  std::string text;
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) text += static_cast<char>(value >> shift & 0xff);
  return text;
}

std::string idx(int type, const std::vector<std::uint32_t>& shape, std::string_view data) {
  std::string file{'\0', '\0', static_cast<char>(type), static_cast<char>(shape.size())};
  for (const std::uint32_t size : shape) file += big_endian(size, 4);
  return file + std::string(data);
}

HostMatrix read(const std::string& content) {
  return read_idx(MemorySource("x.idx", std::as_bytes(std::span(content))));
}
std::string refused(const std::string& content) {
  return refusal("x.idx: ", [&] { read(content); });
}

template <class T>
std::vector<T> values_of(const HostMatrix& matrix) {
  EXPECT_EQ(matrix.type, element_type_of<T>());
  std::vector<T> values(matrix.bytes.size() / sizeof(T));
  std::memcpy(values.data(), matrix.bytes.data(), matrix.bytes.size());
  EXPECT_EQ(values.size(), static_cast<std::size_t>(matrix.rows * matrix.columns));
  return values;
}

TEST(ReadIdx, ReadsEveryElementType) {
  EXPECT_EQ(values_of<float>(read(idx(0x08, {2}, "\x05\xff"))), (std::vector<float>{5, 255}));
  EXPECT_EQ(values_of<float>(read(idx(0x09, {2}, "\x05\xff"))), (std::vector<float>{5, -1}));
  EXPECT_EQ(values_of<float>(read(idx(0x0b, {2}, "\x01\x02\xff\xfe"))), (std::vector<float>{258, -2}));
  EXPECT_EQ(values_of<double>(read(idx(0x0c, {2}, big_endian(0x7fffffff, 4) + big_endian(0xffffffff, 4)))),
            (std::vector<double>{2147483647, -1}));
  EXPECT_EQ(values_of<float>(read(idx(0x0d, {1}, big_endian(0x3fc00000, 4)))), (std::vector<float>{1.5f}));
  EXPECT_EQ(values_of<double>(read(idx(0x0e, {1}, big_endian(0xbff8000000000000, 8)))), (std::vector<double>{-1.5}));
}

TEST(ReadIdx, RoundsIntsToTheWorkingPrecision) {
  const std::string content = idx(0x0c, {2}, big_endian(16777217, 4) + big_endian(0x80000000, 4));
  const MemorySource source("x.idx", std::as_bytes(std::span(content)));
  const DataMatrix single = read_idx(source, {.integers = ElementType::float32});
  EXPECT_EQ(values_of<float>(single), (std::vector<float>{16777216, -0x1p31f}));
  EXPECT_EQ(single.stored_type, "int32");
  EXPECT_EQ(values_of<double>(read_idx(source)), (std::vector<double>{16777217, -0x1p31}));
}

TEST(ReadIdx, MakesRowsOfTheFirstDimension) {
  const std::string data("\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c", 12);
  const std::vector<float> values{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  const std::vector<std::vector<std::uint32_t>> shapes{{12}, {3, 4}, {2, 3, 2}, {12, 1}, {1, 1, 1, 12}};
  for (const auto& shape : shapes) {
    const HostMatrix matrix = read(idx(0x08, shape, data));
    EXPECT_EQ(matrix.rows, shape[0]);
    EXPECT_EQ(values_of<float>(matrix), values);
  }
  const HostMatrix deep = read(idx(0x08, std::vector<std::uint32_t>(255, 1), "\x07"));
  EXPECT_EQ(values_of<float>(deep), std::vector<float>{7});
}

TEST(ReadIdx, ReadsMoreThanOnePiece) {
  std::string data;
  for (int i = 0; i < 200000; ++i) data += big_endian(static_cast<std::uint64_t>(i) * 20000, 4);
  const std::vector<double> values = values_of<double>(read(idx(0x0c, {400, 500}, data)));
  for (int i = 0; i < 200000; ++i)
    ASSERT_EQ(values[static_cast<std::size_t>(i)], static_cast<std::int32_t>(static_cast<std::uint32_t>(i) * 20000u));
}

TEST(ReadIdx, IsKnownByItsFirstBytesWhateverItsName) {
  const TemporaryFolder folder;
  const std::string content = idx(0x08, {2, 2, 2}, "\x01\x02\x03\x04\x05\x06\x07\x08");
  for (const char* name : {"train-images-idx3-ubyte", "images.UBYTE-ubyte", "x"})
    EXPECT_EQ(read_matrix(folder.write(name, content)).columns, 4);
  const std::string path = folder.write("t10k-labels-idx1-ubyte", "text");
  EXPECT_MENTIONS(refusal(path + ": ", [&] { read_matrix(path); }), "is not an IDX file");
}

TEST(ReadIdx, RefusesWhatDoesNotFit) {
  EXPECT_MENTIONS(refused("\x01"), "is not an IDX file");
  EXPECT_MENTIONS(refused(idx(0x0a, {1}, "\x01")), "has the element type 10 at byte 2");
  EXPECT_MENTIONS(refused(idx(0x08, {}, "\x01")), "has 0 dimensions at byte 3");
  EXPECT_MENTIONS(refused(idx(0x08, {0, 3}, "")), "is empty, it has the shape [0, 3] of ubyte");
  EXPECT_MENTIONS(refused(idx(0x08, {4, 0}, "")), "is empty");
  EXPECT_MENTIONS(refused(idx(0x08, {2}, "\x01\x02\x03")), "has 1 bytes after the array");
  EXPECT_MENTIONS(refused(idx(0x0e, {2, 2}, "12345678")), "takes 32 bytes, and 8 follow the header");
  EXPECT_MENTIONS(refused(idx(0x0e, {0xffffffff, 0xffffffff}, "12345678")), "more bytes than any file has");
  EXPECT_MENTIONS(refused(idx(0x08, std::vector<std::uint32_t>(255, 0xffffffff), "1")), "more bytes than any file has");
}

TEST(ReadIdx, TakesNoMoreMemoryThanAllowed) {
  const std::string content = idx(0x08, {2, 3}, "123456");
  const MemorySource source("x.idx", std::as_bytes(std::span(content)));
  EXPECT_EQ(read_idx(source, {.most_bytes = 24}).rows, 2);
  EXPECT_MENTIONS(refusal("x.idx: ", [&] { read_idx(source, {.most_bytes = 23}); }), "takes 24 bytes of memory");
}

TEST(ReadIdx, RefusesEveryTruncation) {
  const std::string whole = idx(0x0d, {2, 1, 2}, std::string(16, '\1'));
  ASSERT_EQ(read(whole).rows, 2);
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_MENTIONS(refused(whole.substr(0, size)), size == 0 ? "is empty" : "is truncated");
}

TEST(ReadIdx, SurvivesEveryChangedByteOfTheHeader) {
  const std::string whole = idx(0x0b, {2, 2}, std::string(8, '\1'));
  for (std::size_t at = 0; at < 12; ++at)
    for (int value = 0; value < 256; ++value) {
      std::string changed = whole;
      changed[at] = static_cast<char>(value);
      try {
        EXPECT_EQ(read(changed).rows, 2);
        EXPECT_EQ(changed, whole);
      } catch (const InvalidArgument& error) {
        EXPECT_EQ(std::string(error.what()).rfind("x.idx: ", 0), 0u);
      }
    }
}

}  // namespace
}  // namespace deviceloop
