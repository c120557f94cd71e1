// .csv files: what is read, how columns become inputs and targets, and the line and column of what is refused.
#include "files/csv.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "files/reader.h"
#include "support/refusal.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

using testing::refusal;
using testing::TemporaryFolder;

HostMatrix read(const std::string& content) {
  return read_csv(MemorySource("x.csv", std::as_bytes(std::span(content))));
}
Samples read_samples(const std::string& content, const std::string& targets) {
  return read_csv_samples(MemorySource("x.csv", std::as_bytes(std::span(content))), {.targets = targets});
}
std::string refused(const std::string& content) {
  return refusal("x.csv: ", [&] { read(content); });
}
std::string refused(const std::string& content, const std::string& targets) {
  return refusal("x.csv: ", [&] { read_samples(content, targets); });
}

std::vector<double> values_of(const HostMatrix& matrix) {
  EXPECT_EQ(matrix.type, ElementType::float64);
  std::vector<double> values(matrix.bytes.size() / sizeof(double));
  if (!values.empty()) std::memcpy(values.data(), matrix.bytes.data(), matrix.bytes.size());
  EXPECT_EQ(values.size(), static_cast<std::size_t>(matrix.rows * matrix.columns));
  return values;
}

using Values = std::vector<double>;

TEST(ReadCsv, ReadsNumbersWithAndWithoutAHeader) {
  const Values values{1, 2.5, -3, 4e2, 0.1, 1e-300};
  for (const char* content :
       {"1,2.5\n-3,4e2\n.1,1e-300\n", "1,2.5\n-3,4e2\n.1,1e-300", "a,b\n1,2.5\n-3,4e2\n.1,1e-300\n",
        "1,2.5\r\n-3,4e2\r\n.1,1e-300\r\n", " 1 ,\t2.5\n-3 , 4e2 \n.1,1e-300\n\n \r\n",
        "\xef\xbb\xbf"
        "1,2.5\n-3,4e2\n.1,1e-300\n",
        "\"1\",\"2\"\n1,2.5\n-3,4e2\n.1,1e-300\n", ",b\n1,2.5\n-3,4e2\n.1,1e-300\n", "a,2\n1,2.5\n-3,4e2\n.1,1e-300\n",
        "\xef\xbb\xbf\"a \"\"b\"\", c\" , d\n1,2.5\n-3,4e2\n.1,1e-300"}) {
    const HostMatrix matrix = read(content);
    EXPECT_EQ(matrix.rows, 3) << content;
    EXPECT_EQ(values_of(matrix), values) << content;
  }
  EXPECT_EQ(values_of(read("7")), Values{7});
}

TEST(ReadCsv, TakesNanAndInfinityAsNumbers) {
  const Values values = values_of(read("nan,inf\n-Infinity,NaN\n"));
  EXPECT_TRUE(std::isnan(values[0]));
  EXPECT_EQ(values[1], HUGE_VAL);
  EXPECT_EQ(values[2], -HUGE_VAL);
}

TEST(ReadCsv, ReadsMoreThanItsBufferHolds) {
  std::string content;
  Values expected;
  for (int row = 0; row < 30000; ++row) {
    for (int column = 0; column < 7; ++column) {
      content += (column == 0 ? "" : ",") + std::to_string(row * 1000 + column);
      expected.push_back(row * 1000 + column);
    }
    content += row % 2 == 0 ? "\n" : "\r\n";
  }
  EXPECT_EQ(values_of(read(content)), expected);
  std::string wide = "1";
  for (int i = 0; i < 400000; ++i) wide += ",1";
  const HostMatrix matrix = read(wide + "\n" + wide);
  EXPECT_EQ(matrix.rows, 2);
  EXPECT_EQ(matrix.columns, 400001);
}

TEST(ReadCsv, NamesLineAndColumn) {
  EXPECT_MENTIONS(refused("1,2\n3,x\n"), "line 2, column 2: 'x' is not a number");
  EXPECT_MENTIONS(refused("a,b\n1,2\n3,0x10\n"), "line 3, column 2: '0x10' is not a number");
  EXPECT_MENTIONS(refused("1,2\n+3,4\n"), "line 2, column 1: '+3' is not a number; leave out the '+'");
  EXPECT_MENTIONS(refused("a;b\n1;2\n"), "line 2, column 1: '1;2' is not a number; put commas between the fields");
  EXPECT_MENTIONS(refused("1,2\n\"3\",4\n"), "line 2, column 1: '\"3\"' is not a number");
  EXPECT_MENTIONS(refused("1,2\n3 4,5\n"), "line 2, column 1: '3 4' is not a number");
  EXPECT_MENTIONS(refused("1,2\n1e999,5\n"), "line 2, column 1: '1e999' is outside the range of float64");
  EXPECT_MENTIONS(refused(std::string("1,2\n3\0,4\n", 9)), "line 2, column 1: '3\\x00' is not a number");
  EXPECT_MENTIONS(refused("1,2\n" + std::string(100000, 'x') + ",4\n"), "line 2, column 1");
  EXPECT_MENTIONS(refused("1,2\n3,\n"), "line 2, column 2 is empty");
  EXPECT_MENTIONS(refused("1,,2\n3,4,5\n"), "line 1, column 2 is empty");
  EXPECT_MENTIONS(refused("1,2\n , \n"), "line 2, column 1 is empty");
  EXPECT_MENTIONS(refused("1,2\n3\n"), "line 2 has 1 column, line 1 has 2");
  EXPECT_MENTIONS(refused("1,2\n3,4,5\n"), "line 2 has more than 2 columns");
  EXPECT_MENTIONS(refused("a,b,c\n1,2\n"), "line 2 has 2 columns, line 1 has 3");
  EXPECT_MENTIONS(refused("1,2\n\n3,4\n"), "line 2 is empty, and more lines follow");
  EXPECT_MENTIONS(refused("\n1,2\n"), "line 1 is empty");
  EXPECT_MENTIONS(refused("\"a,b\n1,2\n"), "line 1, column 1: a quotation mark is not closed");
  EXPECT_MENTIONS(refused("a,\"b\"c\n1,2\n"), "line 1, column 2: text follows the closing quotation mark");
  EXPECT_MENTIONS(refused("a,b\n"), "has no rows of numbers");
  EXPECT_MENTIONS(refused("a,b"), "has no rows of numbers");
  EXPECT_MENTIONS(refused("\xef\xbb\xbf"), "line 1 is empty");
}

TEST(ReadCsv, RefusesALineWithoutEnd) {
  EXPECT_MENTIONS(refused("1\n" + std::string((16 << 20) + 1, '1')), "line 2 is longer than 16.0 MiB");
  EXPECT_MENTIONS(refused(std::string(17 << 20, '1') + "\n1"), "line 1 is longer than 16.0 MiB");
  EXPECT_EQ(values_of(read(std::string(16 << 20, ' ').replace(5, 1, "3"))), Values{3});
}

TEST(ReadCsv, TakesNoMoreMemoryThanAllowed) {
  const std::string content = "1,2\n3,4\n";
  const MemorySource source("x.csv", std::as_bytes(std::span(content)));
  EXPECT_EQ(read_csv(source, {.most_bytes = 32}).rows, 2);
  EXPECT_MENTIONS(refusal("x.csv: ", [&] { read_csv(source, {.most_bytes = 31}); }), "takes 32 bytes of memory");
}

TEST(ReadCsv, IsKnownByItsName) {
  const TemporaryFolder folder;
  EXPECT_EQ(read_matrix(folder.write("x.CSV", "1,2\n")).columns, 2);
}

TEST(ReadCsvSamples, TakesTheLastColumnsAsTargets) {
  const Samples one = read_samples("1,2,3\n4,5,6\n", "1");
  EXPECT_EQ(values_of(one.x), (Values{1, 2, 4, 5}));
  EXPECT_EQ(values_of(one.y), (Values{3, 6}));
  const Samples two = read_samples("a,b,c\n1,2,3\n4,5,6\n", "2");
  EXPECT_EQ(values_of(two.x), (Values{1, 4}));
  EXPECT_EQ(values_of(two.y), (Values{2, 3, 5, 6}));
}

TEST(ReadCsvSamples, TakesNamedColumnsInTheOrderOfTheNames) {
  const std::string content = "a, b ,\"c d\",e\n1,2,3,4\n5,6,7,8\n";
  const Samples samples = read_samples(content, "c d, a");
  EXPECT_EQ(values_of(samples.x), (Values{2, 4, 6, 8}));
  EXPECT_EQ(values_of(samples.y), (Values{3, 1, 7, 5}));
  EXPECT_EQ(values_of(read_samples(content, "b").y), (Values{2, 6}));
}

TEST(ReadCsvSamples, RefusesTargetsThatTheFileDoesNotHave) {
  const std::string content = "a,b,b\n1,2,3\n";
  EXPECT_MENTIONS(refused(content, ""), "does not say which of its columns are the targets; give --targets");
  EXPECT_MENTIONS(refused(content, "c"), "has no column named 'c'");
  EXPECT_MENTIONS(refused(content, "a,"), "has no column named ''");
  EXPECT_MENTIONS(refused(content, "b"), "has more than one column named 'b'");
  EXPECT_MENTIONS(refused(content, "a,a"), "is wanted twice");
  EXPECT_MENTIONS(refused("a,b\n1,2\n", "b,a"), "has no column left as an input");
  EXPECT_MENTIONS(refused("1,2\n", "b"), "has no names of columns");
  for (const char* count : {"0", "2", "3", "-1", "99999999999999999999"})
    EXPECT_MENTIONS(refused("1,2\n", count), std::string("has 2 columns, so '") + count);
}

TEST(ReadCsv, SurvivesEveryTruncationAndEveryChangedByte) {
  const std::string whole = "\"a\"\"\",b\r\n1.5,-2e3\r\n nan , 4\r\n";
  int read_well = 0;
  const auto attempt = [&](const std::string& content) {
    try {
      const HostMatrix matrix = read(content);
      EXPECT_GT(matrix.rows * matrix.columns, 0);
      ++read_well;
    } catch (const InvalidArgument& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.rfind("x.csv: ", 0), 0u);
      EXPECT_EQ(message.find('\n'), std::string::npos);
    }
  };
  for (std::size_t size = 0; size <= whole.size(); ++size) attempt(whole.substr(0, size));
  for (std::size_t at = 0; at < whole.size(); ++at)
    for (int value = 0; value < 256; ++value) {
      std::string changed = whole;
      changed[at] = static_cast<char>(value);
      attempt(changed);
    }
  EXPECT_GT(read_well, 100);
}

}  // namespace
}  // namespace deviceloop
