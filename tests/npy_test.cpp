// .npy files: what NumPy writes is read, what it would not write is refused, and what we write is what NumPy writes.
#include "files/npy.h"

#include <gtest/gtest.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/refusal.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

using testing::read_all;
using testing::refusal;
using testing::TemporaryFolder;

/// A .npy file of any version around any header, padded as NumPy pads it.
std::string npy(std::string header, std::string_view data, int major = 1) {
  const std::size_t prefix = major == 1 ? 10 : 12;
  while ((prefix + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string file = "\x93NUMPY";
  file += static_cast<char>(major);
  file += '\0';
  for (std::size_t i = 0; i < prefix - 8; ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return file + header + std::string(data);
}

std::string header(std::string_view descr, std::string_view shape, bool fortran_order = false) {
  return "{'descr': '" + std::string(descr) + "', 'fortran_order': " + (fortran_order ? "True" : "False") +
         ", 'shape': " + std::string(shape) + ", }";
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class T>
std::vector<T> values_of(const HostMatrix& matrix) {
  EXPECT_EQ(matrix.type, element_type_of<T>());
  std::vector<T> values(matrix.bytes.size() / sizeof(T));
  std::memcpy(values.data(), matrix.bytes.data(), matrix.bytes.size());
  EXPECT_EQ(values.size(), static_cast<std::size_t>(matrix.rows * matrix.columns));
  return values;
}

class ReadNpy : public ::testing::Test {
 protected:
  HostMatrix read(std::string_view content) const { return read_npy(folder_.write("x.npy", content)); }
  std::string refused(std::string_view content) const {
    const std::string path = folder_.write("x.npy", content);
    return refusal(path + ": ", [&] { read_npy(path); });
  }
  const TemporaryFolder folder_;
  const std::string data_ = bytes_of<float>({1, 2, 3, 4, 5, 6});
};

TEST_F(ReadNpy, ReadsFloat32AndFloat64) {
  const HostMatrix single = read(npy(header("<f4", "(2, 3)"), data_));
  EXPECT_EQ(single.rows, 2);
  EXPECT_EQ(single.columns, 3);
  EXPECT_EQ(values_of<float>(single), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  const std::vector<double> values{1, 0.1, -3e300, 4};
  const HostMatrix twice = read(npy(header("<f8", "(4, 1)"), bytes_of(values)));
  EXPECT_EQ(twice.rows, 4);
  EXPECT_EQ(values_of<double>(twice), values);
}

/// The bytes of `values`, as a big-endian machine has them.
template <class T>
std::string big_endian_bytes_of(const std::vector<T>& values) {
  std::string bytes = bytes_of(values);
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(T))
    std::reverse(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                 bytes.begin() + static_cast<std::ptrdiff_t>(at + sizeof(T)));
  return bytes;
}

class ReadNpyOfType : public ReadNpy {
 protected:
  /// Reads `values`, of the element type `code` in both byte orders and both orders of rows, as Becomes.
  template <class Becomes, class T>
  void expect_read(const std::string& code, const std::string& name, const std::vector<T>& values,
                   const std::vector<Becomes>& expected, ElementType integers) const {
    SCOPED_TRACE(name);
    ReadOptions options;
    options.integers = integers;
    const std::string shape = "(1, " + std::to_string(values.size()) + ")";
    for (const bool big : {false, true}) {
      const std::string order = sizeof(T) == 1 ? "|" : big ? ">" : "<";
      const std::string data = big ? big_endian_bytes_of(values) : bytes_of(values);
      const DataMatrix matrix = read_npy(folder_.write("x.npy", npy(header(order + code, shape), data)), options);
      EXPECT_EQ(values_of<Becomes>(matrix), expected);
      EXPECT_EQ(matrix.stored_type, name);
      if (values.size() % 2 != 0) continue;
      const std::string columns = "(" + std::to_string(values.size() / 2) + ", 2)";
      const DataMatrix by_columns =
          read_npy(folder_.write("x.npy", npy(header(order + code, columns, true), data)), options);
      std::vector<Becomes> turned;
      for (std::size_t i = 0; i < expected.size() / 2; ++i) {
        turned.push_back(expected[i]);
        turned.push_back(expected[i + expected.size() / 2]);
      }
      EXPECT_EQ(values_of<Becomes>(by_columns), turned);
    }
  }
};

TEST_F(ReadNpyOfType, ReadsIntegersAndBooleansThatFitFloat32) {
  for (const ElementType integers : {ElementType::float32, ElementType::float64}) {
    expect_read<float, std::int8_t>("i1", "int8", {-128, -1, 0, 127}, {-128, -1, 0, 127}, integers);
    expect_read<float, std::uint8_t>("u1", "uint8", {0, 1, 128, 255}, {0, 1, 128, 255}, integers);
    expect_read<float, std::int16_t>("i2", "int16", {-32768, -2, 258, 32767}, {-32768, -2, 258, 32767}, integers);
    expect_read<float, std::uint16_t>("u2", "uint16", {0, 258, 32768, 65535}, {0, 258, 32768, 65535}, integers);
    expect_read<float, std::uint8_t>("b1", "bool", {0, 1, 2, 255}, {0, 1, 1, 1}, integers);
  }
}

TEST_F(ReadNpyOfType, RoundsLargerIntegersOnceToTheWorkingPrecision) {
  constexpr std::int64_t kTwo53 = std::int64_t{1} << 53, kTwo63 = std::numeric_limits<std::int64_t>::min();
  // 2^54 + 2^30 + 1 lies above the middle between two floats; rounded to a double first it would be that middle.
  constexpr std::int64_t kTwice = (std::int64_t{1} << 54) + (std::int64_t{1} << 30) + 1;
  expect_read<double, std::int64_t>("i8", "int64", {-1, 258, kTwo53 - 1, kTwo53 + 1, kTwo53 + 3, kTwo63},
                                    {-1, 258, 9007199254740991.0, 9007199254740992.0, 9007199254740996.0, -0x1p63},
                                    ElementType::float64);
  expect_read<float, std::int64_t>("i8", "int64", {-1, 258, 16777216, 16777217, 16777219, kTwice},
                                   {-1, 258, 16777216, 16777216, 16777220, 0x1p54f + 0x1p31f}, ElementType::float32);
  expect_read<double, std::uint64_t>("u8", "uint64", {0, std::uint64_t{1} << 63, UINT64_MAX - 1024, UINT64_MAX},
                                     {0, 0x1p63, 0x1.fffffffffffffp63, 0x1p64}, ElementType::float64);
  expect_read<float, std::uint64_t>("u8", "uint64", {7, UINT64_MAX}, {7, 0x1p64f}, ElementType::float32);
  expect_read<double, std::int32_t>("i4", "int32", {-2147483647 - 1, 16777217}, {-2147483648.0, 16777217},
                                    ElementType::float64);
  expect_read<float, std::int32_t>("i4", "int32", {-2147483647, 16777217}, {-2147483648.0f, 16777216},
                                   ElementType::float32);
  expect_read<double, std::uint32_t>("u4", "uint32", {0, 4294967295}, {0, 4294967295.0}, ElementType::float64);
  expect_read<float, std::uint32_t>("u4", "uint32", {1, 4294967295}, {1, 4294967296.0f}, ElementType::float32);
}

TEST_F(ReadNpyOfType, ReadsFloatsOfBothByteOrders) {
  for (const ElementType integers : {ElementType::float32, ElementType::float64}) {
    expect_read<float, float>("f4", "float32", {1, -0.1f, 3e38f, 4}, {1, -0.1f, 3e38f, 4}, integers);
    expect_read<double, double>("f8", "float64", {1, -0.1, 3e300, 4}, {1, -0.1, 3e300, 4}, integers);
    // 1, -2, the largest, the smallest, the largest that is subnormal, the smallest that is normal, 1/3.
    expect_read<float, std::uint16_t>("f2", "float16", {0x3c00, 0xc000, 0x7bff, 0x0001, 0x83ff, 0x0400, 0x3555, 0x0000},
                                      {1, -2, 65504, 0x1p-24f, -0x1.ff8p-15f, 0x1p-14f, 0.333251953125f, 0}, integers);
  }
  const std::string special = bytes_of<std::uint16_t>({0x7c00, 0xfc00, 0x7e01, 0x8000});
  const std::vector<float> values = values_of<float>(read(npy(header("<f2", "(4,)"), special)));
  EXPECT_EQ(values[0], std::numeric_limits<float>::infinity());
  EXPECT_EQ(values[1], -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(values[2]));
  EXPECT_TRUE(values[3] == 0 && std::signbit(values[3]));
}

TEST_F(ReadNpyOfType, ReadsMoreThanOnePiece) {
  std::vector<std::int64_t> values(200003);
  std::vector<double> expected;
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<std::int64_t>(i * 7) - 300000;
    expected.push_back(static_cast<double>(values[i]));
  }
  expect_read("i8", "int64", values, expected, ElementType::float64);
}

TEST_F(ReadNpyOfType, TakesNoMoreMemoryThanAllowed) {
  const std::string path = folder_.write("x.npy", npy(header("|u1", "(2, 3)"), "123456"));
  EXPECT_EQ(read_npy(path, {.most_bytes = 24}).rows, 2);
  EXPECT_MENTIONS(refusal(path + ": ", [&] { read_npy(path, {.most_bytes = 23}); }), "takes 24 bytes of memory");
  const std::string labels = folder_.write("y.npy", npy(header("<i8", "(2,)"), std::string(16, '\1')));
  EXPECT_EQ(read_npy(labels, {.most_bytes = 8, .integers = ElementType::float32}).rows, 2);
}

TEST_F(ReadNpy, ReadsAVectorAsOneColumn) {
  for (const bool fortran_order : {false, true}) {
    const HostMatrix column = read(npy(header("<f4", "(6,)", fortran_order), data_));
    EXPECT_EQ(column.rows, 6);
    EXPECT_EQ(column.columns, 1);
    EXPECT_EQ(values_of<float>(column), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  }
}

TEST_F(ReadNpy, ReadsFortranOrder) {
  const HostMatrix matrix = read(npy(header("<f4", "(2, 3)", true), data_));
  EXPECT_EQ(values_of<float>(matrix), (std::vector<float>{1, 3, 5, 2, 4, 6}));
}

TEST_F(ReadNpy, ReadsFortranOrderLargerThanItsBlocks) {
  for (const auto& [rows, columns] : {std::pair<int, int>{4099, 67}, {3, 5000}, {9000, 2}, {32, 4096}}) {
    std::vector<double> by_columns, by_rows;
    for (int column = 0; column < columns; ++column)
      for (int row = 0; row < rows; ++row) by_columns.push_back(row * 10000.0 + column);
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < columns; ++column) by_rows.push_back(row * 10000.0 + column);
    const std::string shape = "(" + std::to_string(rows) + ", " + std::to_string(columns) + ")";
    const HostMatrix matrix = read(npy(header("<f8", shape, true), bytes_of(by_columns)));
    EXPECT_EQ(matrix.rows, rows);
    EXPECT_TRUE(values_of<double>(matrix) == by_rows) << shape;
  }
}

TEST_F(ReadNpy, ReadsVersionsOneToThree) {
  for (const int major : {1, 2, 3})
    EXPECT_EQ(values_of<float>(read(npy(header("<f4", "(1, 6)"), data_, major))).size(), 6u) << major;
  std::string file = npy(header("<f4", "(1, 6)"), data_);
  file[6] = 4;
  EXPECT_MENTIONS(refused(file), "version 4.0, only 1.0, 2.0 and 3.0");
  file[6] = 1;
  file[7] = 1;
  EXPECT_MENTIONS(refused(file), "version 1.1");
}

TEST_F(ReadNpy, ReadsAnyWritingOfTheHeader) {
  for (const char* text : {
           "{'shape':(2,3),'fortran_order':False,'descr':'<f4'}",
           "{\"descr\": \"<f4\", \"shape\": (2, 3,), \"fortran_order\": False, }",
           " \t{ 'descr' : '<f4' ,\n 'fortran_order' : False , 'shape' : ( 2 ,\t3 ) , } ",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }",
       })
    EXPECT_EQ(values_of<float>(read(npy(text, data_))), (std::vector<float>{1, 2, 3, 4, 5, 6})) << text;
}

TEST_F(ReadNpy, RefusesAnyOtherHeader) {
  const std::array<std::pair<const char*, const char*>, 27> cases{{
      {"", "'{' was expected"},
      {"()", "'{' was expected"},
      {"{}", "lacks the key 'descr'"},
      {"{'descr': '<f4', 'shape': (2, 3)}", "lacks the key 'fortran_order'"},
      {"{'descr': '<f4', 'fortran_order': False}", "lacks the key 'shape'"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)", "'}' was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), ", "a quoted name was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}}", "goes on"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)} # no", "goes on"},
      {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", "'descr' twice"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'shape': (2, 3)}", "'shape' twice"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x\x01': 1}", "unknown key 'x\\x01'"},
      {"{descr: '<f4', 'fortran_order': False, 'shape': (2, 3)}", "a quoted name was expected"},
      {"{'descr': '<f4, 'fortran_order': False, 'shape': (2, 3)}", "'}' was expected"},
      {"{'descr': '\\x3cf4', 'fortran_order': False, 'shape': (2, 3)}", "end of a quoted name"},
      {"{'descr': <f4, 'fortran_order': False, 'shape': (2, 3)}", "a quoted name"},
      {"{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}", "True or False"},
      {"{'descr': '<f4', 'fortran_order': Falsehood, 'shape': (2, 3)}", "'}' was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': [2, 3]}", "'(' was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (6)}", "',' was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3)}", "a number of elements was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3.0)}", "')' was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 03)}", "leading zeros"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3e0)}", "')' was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (,)}", "a number of elements was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,, 3)}", "a number of elements was expected"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 9223372036854775808)}", "too large"},
  }};
  for (const auto& [text, problem] : cases) {
    const std::string message = refused(npy(text, data_));
    EXPECT_MENTIONS(message, problem);
    EXPECT_MENTIONS(message, "; write the file again with numpy.save");
  }
  EXPECT_MENTIONS(refused(npy(std::string("{'descr': '<f4'\0", 16), data_)), "'}' was expected");
}

TEST_F(ReadNpy, RefusesADeeplyNestedHeader) {
  const std::string open(60000, '('), close(60000, ')');
  EXPECT_MENTIONS(refused(npy("{'shape': " + open + close, data_)), "a number of elements was expected");
  EXPECT_MENTIONS(refused(npy("{'descr': " + open + close, data_)), "records");
  EXPECT_MENTIONS(refused(npy(std::string(60000, '{'), data_)), "a quoted name was expected");
}

TEST_F(ReadNpy, NamesTheElementTypeThatItDoesNotRead) {
  const std::array<std::array<const char*, 3>, 20> cases{{
      {"|O", "holds Python objects ('|O')", "x.astype(numpy.float32)"},
      {"<c8", "holds complex numbers ('<c8')", "x.real.astype(numpy.float32)"},
      {">c16", "holds complex numbers ('>c16')", "x.real.astype(numpy.float32)"},
      {"<i3", "holds integers of an unknown kind ('<i3')", "x.astype(numpy.float32)"},
      {"|i8", "holds integers of an unknown kind ('|i8')", "x.astype(numpy.float32)"},
      {"<u16", "holds integers of an unknown kind ('<u16')", "x.astype(numpy.float32)"},
      {"|b2", "holds booleans of an unknown kind ('|b2')", "x.astype(numpy.float32)"},
      {"<f16", "holds floating-point numbers other than float16, float32 and float64 ('<f16')",
       "x.astype(numpy.float32)"},
      {"|S5", "holds text ('|S5')", "x.astype(numpy.float32)"},
      {"<U3", "holds text ('<U3')", "x.astype(numpy.float32)"},
      {"<M8[ns]", "holds dates or times", "x.astype(numpy.float32)"},
      {"<m8[s]", "holds dates or times", "x.astype(numpy.float32)"},
      {"|V8", "holds raw bytes", "x.astype(numpy.float32)"},
      {"=f4", "has the element type '=f4'", "x.astype(numpy.float32)"},
      {"|f4", "has the element type '|f4'", "x.astype(numpy.float32)"},
      {"f8", "has the element type 'f8'", "x.astype(numpy.float32)"},
      {"", "has the element type ''", "x.astype(numpy.float32)"},
      {"<", "has the element type '<'", "x.astype(numpy.float32)"},
      {"float32", "('float32')", "x.astype(numpy.float32)"},
      {"<q\x02", "has the element type '<q\\x02'", "x.astype(numpy.float32)"},
  }};
  for (const auto& [descr, problem, remedy] : cases) {
    const std::string message = refused(npy(header(descr, "(2, 3)"), data_));
    EXPECT_MENTIONS(message, problem);
    EXPECT_MENTIONS(message, std::string("; save ")) << descr;
    EXPECT_MENTIONS(message, remedy);
  }
  const std::string fields = "{'descr': [('a', '<f4'), ('b', '<f4')], 'fortran_order': False, 'shape': (3,), }";
  EXPECT_MENTIONS(refused(npy(fields, data_)), "holds records with named fields; save one field");
}

TEST_F(ReadNpy, RefusesOtherNumbersOfDimensions) {
  EXPECT_MENTIONS(refused(npy(header("<f4", "()"), data_.substr(0, 4))), "the shape (); save it with x.reshape(1, 1)");
  EXPECT_MENTIONS(refused(npy(header("<f4", "(1, 2, 3)"), data_)), "has the shape (1, 2, 3), only 1-D and 2-D arrays");
  std::string many = "(1";
  for (int i = 0; i < 5000; ++i) many += ", 1";
  EXPECT_MENTIONS(refused(npy(header("<f4", many + ")"), data_)), "(1, 1, 1, 1, 1, 1, 1, 1, ...)");
}

TEST_F(ReadNpy, RefusesAnEmptyArray) {
  for (const char* shape : {"(0,)", "(0, 3)", "(3, 0)", "(0, 0)", "(9223372036854775807, 0)"})
    EXPECT_MENTIONS(refused(npy(header("<f4", shape), "")), std::string("is empty, it has the shape ") + shape);
}

TEST_F(ReadNpy, RefusesAShapeThatTheFileDoesNotHold) {
  EXPECT_MENTIONS(refused(npy(header("<f4", "(3, 3)"), data_)),
                  "the shape (3, 3) of '<f4' takes 36 bytes, and 24 follow the header");
  EXPECT_MENTIONS(refused(npy(header("<f8", "(2, 3)"), data_)), "takes 48 bytes");
  // Nothing of such a size may be asked of the system.
  EXPECT_MENTIONS(refused(npy(header("<f4", "(1000000000, 1000000)"), data_)), "takes 4000000000000000 bytes");
  for (const char* shape : {"(4294967296, 4294967296)", "(9223372036854775807, 9223372036854775807)",
                            "(9223372036854775807,)", "(4611686018427387904, 1)", "(2305843009213693953, 8)"})
    EXPECT_MENTIONS(refused(npy(header("<f8", shape), data_)), "more bytes than any file has");
  // Of one byte each; in the elements that they become, the first two would overflow too.
  for (const char* shape : {"(9223372036854775807,)", "(4611686018427387904, 2)", "(7,)"})
    EXPECT_MENTIONS(refused(npy(header("|u1", shape), "123456")), ", and 6 follow the header");
  EXPECT_MENTIONS(refused(npy(header("|b1", "(9223372036854775807, 3)"), "123456")), "more bytes than any file has");
}

TEST_F(ReadNpy, RefusesBytesAfterTheArray) {
  EXPECT_MENTIONS(refused(npy(header("<f4", "(2, 2)"), data_)), "has 8 bytes after the array of the shape (2, 2)");
  EXPECT_MENTIONS(refused(npy(header("<f4", "(2, 3)"), data_) + "\n"), "has 1 bytes after the array");
}

TEST_F(ReadNpy, RefusesWhatIsNoNpyFile) {
  EXPECT_MENTIONS(refused("1.0 2.0 3.0\n"), "is not an .npy file; save the array with numpy.save");
  EXPECT_MENTIONS(refused("x"), "is not an .npy file");
  EXPECT_MENTIONS(refused("PK\x03\x04 and so on"), "is a zip archive, perhaps .npz");
  EXPECT_MENTIONS(refused(""), "is empty; write the file again");
}

TEST_F(ReadNpy, RefusesAHeaderThatIsTooLong) {
  EXPECT_MENTIONS(refused(npy(header("<f4", "(2, 3)") + std::string(70000, ' '), data_, 2)), "at most 65536 are read");
  std::string huge = npy(header("<f4", "(2, 3)"), data_, 2);
  huge.replace(8, 4, "\xff\xff\xff\xff");
  EXPECT_MENTIONS(refused(huge), "a header of 4294967295 bytes");
  EXPECT_EQ(read(npy(header("<f4", "(2, 3)") + std::string(65000, ' '), data_, 1)).rows, 2);
}

TEST_F(ReadNpy, RefusesEveryTruncation) {
  for (const int major : {1, 2}) {
    const std::string whole = npy(header("<f4", "(2, 3)"), data_, major);
    ASSERT_EQ(read(whole).rows, 2);
    for (std::size_t size = 0; size < whole.size(); ++size) {
      const std::string message = refused(whole.substr(0, size));
      EXPECT_MENTIONS(message, size == 0 ? "is empty" : "is truncated");
    }
  }
}

TEST_F(ReadNpy, SurvivesEveryChangedBitOfTheHeader) {
  const std::string whole = npy(header("<f4", "(2, 3)"), data_);
  const std::string path = folder_ / "x.npy";
  int loaded = 0, refusals = 0;
  for (std::size_t at = 0; at < whole.size() - data_.size(); ++at) {
    for (const int flip : {' ' ^ '\t', 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff}) {
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      folder_.write("x.npy", changed);
      try {
        const HostMatrix matrix = read_npy(path);
        EXPECT_EQ(matrix.rows * matrix.columns, 6) << changed;
        ++loaded;
      } catch (const InvalidArgument& error) {
        EXPECT_EQ(std::string(error.what()).rfind(path + ": ", 0), 0u);
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
        ++refusals;
      }
    }
  }
  EXPECT_GT(refusals, 1000);
  EXPECT_GT(loaded, 0);  // where a space became a tab
}

TEST_F(ReadNpy, RefusesAPathThatCannotBeRead) {
  const auto at = [](const std::string& path) { return refusal(path + ": ", [&] { read_npy(path); }); };
  EXPECT_MENTIONS(at(folder_ / "missing.npy"), "No such file or directory; check the path");
  EXPECT_MENTIONS(at(folder_.path().string()), "is a folder; give the name of a file in it");
  EXPECT_MENTIONS(at(folder_.write("file", "x") + "/x.npy"), "Not a directory; check the path");
  EXPECT_MENTIONS(at(folder_ / std::string(300, 'n')), "File name too long");
  EXPECT_MENTIONS(at("/dev/null"), "is a device; write its content to a file");
  EXPECT_MENTIONS(refusal("the path", [] { read_npy(""); }), "is empty; give the name");
  EXPECT_MENTIONS(refusal("a\\x00b: ", [] { read_npy(std::string("a\0b", 3)); }), "NUL");
  EXPECT_MENTIONS(refusal("a\\x0ab\\x1b\\xff\xc3\xa4\\xc2\\x9b: ", [] { read_npy("a\nb\x1b\xff\xc3\xa4\xc2\x9b"); }),
                  "No such file");
}

TEST(WriteNpy, WritesTheBytesThatNumPyWrites) {
  // numpy.save of array([[1, 2, 3], [4, 5, 6]], dtype='<f4'), NumPy 1.24.
  std::string expected("\x93NUMPY\x01\x00\x76\x00", 10);
  expected += "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
  expected += std::string(58, ' ') + "\n";
  expected += std::string("\x00\x00\x80\x3f\x00\x00\x00\x40\x00\x00\x40\x40", 12);
  expected += std::string("\x00\x00\x80\x40\x00\x00\xa0\x40\x00\x00\xc0\x40", 12);
  const TemporaryFolder folder;
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  OutputFile file(folder / "x.npy");
  write_npy(file, ConstMatrix(values.data(), 2, 3));
  file.commit();
  EXPECT_EQ(read_all(folder / "x.npy"), expected);
  EXPECT_EQ(expected.size() - 24, 128u);
}

TEST(WriteNpy, WritesIntegersAsNumPyDoes) {
  // numpy.save of array([[1, -2], [2**53 + 1, 2**62]]), NumPy 1.24.
  std::string expected("\x93NUMPY\x01\x00\x76\x00", 10);
  expected += "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 2), }";
  expected += std::string(58, ' ') + "\n";
  expected += std::string("\x01\x00\x00\x00\x00\x00\x00\x00\xfe\xff\xff\xff\xff\xff\xff\xff", 16);
  expected += std::string("\x01\x00\x00\x00\x00\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x40", 16);
  const TemporaryFolder folder;
  const std::vector<std::int64_t> values{1, -2, (std::int64_t{1} << 53) + 1, std::int64_t{1} << 62};
  OutputFile file(folder / "x.npy");
  write_npy(file, values.data(), 2, 2);
  file.commit();
  EXPECT_EQ(read_all(folder / "x.npy"), expected);
}

TEST(WriteNpy, IsReadBackBitForBit) {
  const TemporaryFolder folder;
  const std::vector<double> values{0.1, -0.0, 1e-310, 1e308, 5, 6, 7, 8, 9, 10, 11, 12};
  OutputFile file(folder / "x.npy");
  write_npy(file, ConstMatrix(values.data(), 3, 4));
  file.commit();
  const HostMatrix matrix = read_npy(folder / "x.npy");
  EXPECT_EQ(matrix.rows, 3);
  EXPECT_EQ(matrix.columns, 4);
  EXPECT_EQ(std::memcmp(matrix.bytes.data(), values.data(), matrix.bytes.size()), 0);
}

TEST(WriteNpy, LeavesOutWhatLiesBetweenTheRows) {
  const TemporaryFolder folder;
  // Enough rows for several of the writer's buffers, and rows longer than one.
  for (const auto& [rows, columns, stride] : {std::array<int, 3>{300000, 3, 5}, {3, 300000, 300001}, {1, 4, 9}}) {
    std::vector<float> values(static_cast<std::size_t>(rows) * stride, -1), expected;
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < columns; ++column) {
        const auto value = static_cast<float>(row + column);
        values[static_cast<std::size_t>(row) * stride + column] = value;
        expected.push_back(value);
      }
    OutputFile file(folder / "x.npy");
    write_npy(file, ConstMatrix(values.data(), rows, columns, stride));
    file.commit();
    EXPECT_TRUE(values_of<float>(read_npy(folder / "x.npy")) == expected) << rows;
  }
}

TEST(WriteNpy, RefusesAViewThatIsNone) {
  const TemporaryFolder folder;
  OutputFile file(folder / "x.npy");
  const std::vector<float> values(6);
  EXPECT_MENTIONS(refusal(folder / "x.npy", [&] { write_npy(file, ConstMatrix(values.data(), 2, 3, 2)); }), "stride");
  ConstMatrix device(values.data(), 2, 3);
  device.space = MemorySpace::device;
  EXPECT_MENTIONS(refusal(folder / "x.npy", [&] { write_npy(file, device); }), "device memory");
}

}  // namespace
}  // namespace deviceloop
