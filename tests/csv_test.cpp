// .csv files: what is read, how columns become inputs and targets, and the line and column of what is refused.
#include "files/csv.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
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

DataMatrix read(const std::string& content, TableHeader header = TableHeader::automatic) {
  return read_csv(MemorySource("x.csv", std::as_bytes(std::span(content))), {.header = header});
}
Samples read_samples(const std::string& content, const std::string& targets,
                     TableHeader header = TableHeader::automatic) {
  return read_csv_samples(MemorySource("x.csv", std::as_bytes(std::span(content))),
                          {.header = header, .targets = targets});
}
std::string refused(const std::string& content, TableHeader header = TableHeader::automatic) {
  return refusal("x.csv: ", [&] { read(content, header); });
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
        "\"1\",\"2\"\n1,2.5\n-3,4e2\n.1,1e-300\n", ",b\n1,2.5\n-3,4e2\n.1,1e-300\n",
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
  EXPECT_MENTIONS(refused("a,b\n1,2\n3,0xg\n"), "line 3, column 2 (b): '0xg' is not a number");
  EXPECT_MENTIONS(refused("a,\n1,2\n3,0xg\n"), "line 3, column 2: '0xg' is not a number");
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

TEST(ReadCsv, ReadsNumbersInQuotationMarks) {
  for (const char* content : {"\"a\",\"b\"\n\"24\",\"-1.5e3\"\n\" 3 \" , 4\r\n", "a,b\n24,\"-1.5e3\"\n\"3\",\"4\"",
                              "24,-1.5e3\n\"3\",\"4\"\n", "\"1\",\"2\"\n24,-1.5e3\n3,\"4\"\n"})
    EXPECT_EQ(values_of(read(content)), (Values{24, -1500, 3, 4})) << content;
  const std::string rows = "\"24\",\"5\"\n\"3\",\"4\"\n";
  EXPECT_MENTIONS(refused(rows), "line 1 has numbers in quotation marks, as the line after it has; give --header no");
  EXPECT_EQ(values_of(read(rows, TableHeader::no)), (Values{24, 5, 3, 4}));
  EXPECT_EQ(values_of(read(rows, TableHeader::yes)), (Values{3, 4}));
  EXPECT_EQ(values_of(read_samples("a,b\n\"1\",\"2\"\n", "a").x), Values{2});
  EXPECT_MENTIONS(refused("a,b\n1,\"\"\n"), "line 2, column 2 (b) is empty");
  EXPECT_MENTIONS(refused("a,b\n1,2\n1,\"x\"\n"), "line 3, column 2 (b): 'x' is not a number");
  EXPECT_MENTIONS(refused("a,b\n1,2\n\"1,5\",2\n"),
                  "line 3, column 1 (a): '1,5' is not a number; write a point, not a comma, in it");
  EXPECT_MENTIONS(refused("a,b\n1,2\n\"1,2\n"), "line 3, column 1 (a): a quotation mark is not closed on its line");
  EXPECT_MENTIONS(refused("a,b\n1,\"2\"3\n"), "line 2, column 2 (b): text follows the closing quotation mark");
  EXPECT_MENTIONS(refused("a,b\n\"1\",\"2\",\"3\"\n"), "line 2 has more than 2 columns");
}

TEST(ReadCsv, SaysWhatToDoWithAColumnOfText) {
  constexpr const char* kText = "'south' is not a number; leave the column out, or write columns of 0 and 1 for its";
  constexpr const char* kOne = "is not a number; write one there, such as -1.5e3";
  EXPECT_MENTIONS(refused("age,city\n1,south\n"), std::string("line 2, column 2 (city): ") + kText);
  EXPECT_MENTIONS(refused("age,city\n1,\"south\"\n"), kText);
  // Once the column has had a number, and where the field begins as one, it is a mistake in this field.
  EXPECT_MENTIONS(refused("age,city\n1,2\n1,south\n"), kOne);
  EXPECT_MENTIONS(refused("age,city\n1,2x\n"), kOne);
  EXPECT_MENTIONS(refused("1,south\n", TableHeader::no), kOne);
}

TEST(ReadCsv, ReadsNumbersAsOtherProgramsWriteThem) {
  const auto value = [](const std::string& text) { return values_of(read("1," + text + "\n")).at(1); };
  EXPECT_EQ(value("+1.5"), 1.5);
  EXPECT_EQ(value("+.5E+01"), 5.0);
  EXPECT_EQ(value("5."), 5.0);
  // Fortran: double precision, quadruple precision, an exponent of three digits.
  EXPECT_EQ(value("1.0D0"), 1.0);
  EXPECT_EQ(value("-0.15d-02"), -0.0015);
  EXPECT_EQ(value("2.5Q+01"), 25.0);
  EXPECT_EQ(value("0.123-100"), 0.123e-100);
  EXPECT_EQ(value("+0.5+101"), 0.5e101);
  // C's %a, R's hexadecimal numbers.
  EXPECT_EQ(value("0x1.8p+1"), 3.0);
  EXPECT_EQ(value("-0X.8P-1"), -0.25);
  EXPECT_EQ(value("0xff"), 255.0);
  EXPECT_EQ(value("+inf"), HUGE_VAL);
  EXPECT_TRUE(std::isnan(value("-nan")));
  EXPECT_EQ(values_of(read("+1.0,+2.0\n4,5\n")), (Values{1, 2, 4, 5}));
  for (const char* text :
       {"+",  "-",   "++1",     "+-1",      "1.5f",   "1_000",    "0x", "0x-1",    "0xinf", "--1",   "1D", "1.0D0D0",
        "D0", ".D0", "2020-01", "2020-123", "1.5-12", "1.5-1234", "1e", "1.0e5D0", "1 D0",  "infD0", "."})
    EXPECT_MENTIONS(refused("1," + std::string(text) + "\n", TableHeader::no),
                    "column 2: '" + std::string(text) + "' is not");
}

TEST(ReadCsv, ReadsWhatIsTooSmallAsZero) {
  for (const char* text : {"1e-400", "4e-99999999999999999999", "0.0001e-320", "1D-400", "12345.678-400", "0x1p-2000",
                           "0x0.001p-1075", "2e-324", "0e99999999999999999999", "0e-400"}) {
    const Values values = values_of(read("1," + std::string(text) + ",-" + text + "\n"));
    EXPECT_EQ(values[1], 0) << text;
    EXPECT_EQ(values[2], 0) << text;
    EXPECT_TRUE(std::signbit(values[2])) << text;
  }
  const std::string zeros(400, '0');
  EXPECT_EQ(values_of(read("0." + zeros + "1,1" + zeros + "e-400\n")), (Values{0, 1}));
  EXPECT_EQ(values_of(read("5e-324,0x1p-1074\n")), (Values{5e-324, 5e-324}));
  for (const std::string& text : {std::string("1e400"), "1" + zeros, std::string("-1D+400"), std::string("0x1p+1024"),
                                  std::string("0.0001e999999999999999999"), std::string("1.0+400")})
    EXPECT_MENTIONS(refused("1," + text + "\n"), "is outside the range of float64");
}

TEST(ReadCsv, TakesForAHeaderOnlyALineWithoutANumber) {
  EXPECT_EQ(read("a,b\n1,2\n").header_line, 1);
  EXPECT_EQ(read("1,2\n3,4\n").header_line, 0);
  EXPECT_EQ(read("NA,K\n3,4\n").header_line, 1);
  EXPECT_MENTIONS(refused("a,2\n1,2.5\n"),
                  "line 1, column 1: 'a' is not a number, but '2' in column 2 is a number; correct the field if the "
                  "line is a row, or "
                  "give --header yes");
  EXPECT_MENTIONS(refused("1.O,2\n3,4\n"), "line 1, column 1: '1.O' is not a number, but '2' in column 2 is");
  EXPECT_MENTIONS(refused("1,2,\"3\"\n3,4,5\n"),
                  "line 1, column 3: '3' is a name, being in quotation marks, but '1' in column 1 is");
  EXPECT_MENTIONS(refused("nan,x\n3,4\n"), "line 1, column 2: 'x' is not a number, but 'nan' in column 1 is");
  // Without a name either: a row of missing values.
  EXPECT_MENTIONS(refused("NA,NA\n3,4\n"), "line 1, column 1: 'NA' is not a number but a missing value");
  EXPECT_MENTIONS(refused("NA,1\n3,4\n"), "line 1, column 1: 'NA' is not a number but a missing value");
  EXPECT_MENTIONS(refused("#N/A,1\n3,4\n"), "line 1, column 1: '#N/A' is not a number but a missing value");
  EXPECT_MENTIONS(refused(",\n3,4\n"), "line 1, column 1 is empty");
}

TEST(ReadCsv, TakesTheFirstLineForWhatItIsSaidToBe) {
  const std::string pandas = "0,1,2\n5,6,7\n";
  EXPECT_EQ(read(pandas).rows, 2);
  const DataMatrix named = read(pandas, TableHeader::yes);
  EXPECT_EQ(values_of(named), (Values{5, 6, 7}));
  EXPECT_EQ(named.header_line, 1);
  EXPECT_EQ(values_of(read("a,2\n5,6\n", TableHeader::yes)), (Values{5, 6}));
  EXPECT_EQ(values_of(read("# 0,1\n# more\n5,6\n", TableHeader::yes)), (Values{5, 6}));
  EXPECT_EQ(values_of(read_samples(pandas, "\"1\",\"0\"", TableHeader::yes).y), (Values{6, 5}));
  EXPECT_EQ(values_of(read_samples(pandas, "1", TableHeader::yes).y), (Values{7}));
  EXPECT_EQ(read("1,2\n3,4\n", TableHeader::no).rows, 2);
  EXPECT_EQ(read("# a,b\n1,2\n3,4\n", TableHeader::no).header_line, 0);
  EXPECT_MENTIONS(refused("a,b\n3,4\n", TableHeader::no), "line 1, column 1: 'a' is not a number");
  EXPECT_MENTIONS(refused("# a\n3,4\n", TableHeader::yes), "line 2 has more than 1 column, which is what line 1 has");
  EXPECT_MENTIONS(refused("1,2\n", TableHeader::yes), "has no rows of numbers");
}

TEST(ReadCsv, SkipsLinesWithANumberSignBeforeAndAfterTheRows) {
  // As numpy.savetxt(..., header="a,b,c", footer="end", delimiter=",") writes them.
  const std::string numpy = "# a,b,c\n1.0e+00,2.0e+00,3.0e+00\n4.0e+00,5.0e+00,6.0e+00\n# end\n";
  EXPECT_EQ(values_of(read(numpy)), (Values{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(read(numpy).header_line, 1);
  EXPECT_EQ(values_of(read_samples(numpy, "c,a").y), (Values{3, 1, 6, 4}));
  EXPECT_EQ(values_of(read_samples("#made, by, me\n#a,b,c\n1,2,3\n", "b").y), Values{2});
  EXPECT_EQ(values_of(read_samples("# by me\na,b,c\n# m,s,kg\n1,2,3\n", "b").y), Values{2});
  EXPECT_EQ(read("# by me\n1,2,3\n").header_line, 0);
  EXPECT_EQ(read("# 0,1,2\n1,2,3\n").header_line, 0);
  EXPECT_EQ(read("#\n#\"\n1,2,3\n").rows, 1);
  EXPECT_MENTIONS(refused("# by me\n1,2,3\n", "me"), "has no names of columns");
  EXPECT_MENTIONS(refused("1,2\n# 3,4\n5,6\n"), "line 2 begins with '#', and more lines follow; drop it");
  EXPECT_MENTIONS(refused("1,2\n#N/A,4\n5,6\n"), "line 2, column 1: '#N/A' is not a number but a missing value");
  EXPECT_MENTIONS(refused("# a,b\n"), "has no rows of numbers");
  EXPECT_MENTIONS(refused("# a,b\n\n1,2"), "line 2 is empty; begin with numbers or a header");
}

TEST(ReadCsv, NamesAnotherSeparator) {
  for (const auto& [separator, name] : {std::pair<std::string, const char*>{";", "semicolons"},
                                        {"\t", "tabs"},
                                        {" | ", "vertical bars"},
                                        {"  ", "spaces"}}) {
    const std::string rows = "1.5" + separator + "2\n3" + separator + "4\n";
    const std::string expected =
        std::string("it has ") + name + " between its numbers; write commas between the fields";
    EXPECT_MENTIONS(refused(rows), expected);
    EXPECT_MENTIONS(refused("a" + separator + "b\n" + rows), expected);
    EXPECT_MENTIONS(refused("a" + separator + "b\n" + rows, "1"), "line 2, column 1 (a");
    EXPECT_MENTIONS(refused("a" + separator + "b\n" + rows, "b"), expected);
  }
  EXPECT_MENTIONS(refused("1,5;2,5\n3,5;4,5\n"), "line 1, column 2: '5;2' is not a number: it has semicolons");
  EXPECT_MENTIONS(refused("1;NA\n3;4\n"), "it has semicolons");
  EXPECT_EQ(read("x 1,x 2\n3,4\n").header_line, 1);
  EXPECT_EQ(read("a;b,c\n3,4\n").header_line, 1);
}

TEST(ReadCsv, SaysWhatIsWrongWithItsText) {
  for (const char* content : {"1,2\r3,4\r", "a,b\r3,4\r", "a\r3\r4\r", "1\r2\r3"})
    EXPECT_MENTIONS(refused(content), "has line ends of a carriage return alone; end its lines with a newline");
  EXPECT_MENTIONS(refused(std::string(9 << 20, '1') + "\r" + std::string(9 << 20, '1')), "a carriage return alone");
  for (const std::string& content : {std::string("\xff\xfe"
                                                 "1\0,\0"
                                                 "2\0",
                                                 8),
                                     std::string("\xfe\xff\0"
                                                 "1",
                                                 4),
                                     std::string("1\0,\0"
                                                 "2\0",
                                                 6),
                                     std::string("\0"
                                                 "1\0,\0"
                                                 "2",
                                                 6)})
    EXPECT_MENTIONS(refused(content), "is UTF-16, or not text; save it as UTF-8, as iconv -f UTF-16 -t UTF-8 does");
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

TEST(ReadCsvSamples, TakesNamesWithCommasInQuotes) {
  const std::string content = "\"a,b\",c,\"d \"\"e\"\"\",1\n1,2,3,4\n";
  EXPECT_MENTIONS(refused(content, "\"a,b\""), "--header yes");
  const auto targets = [&](const std::string& names) {
    return values_of(read_samples(content, names, TableHeader::yes).y);
  };
  EXPECT_EQ(targets("\"a,b\""), Values{1});
  EXPECT_EQ(targets("c, \"a,b\""), (Values{2, 1}));
  EXPECT_EQ(targets("\"d \"\"e\"\"\",\"1\""), (Values{3, 4}));
  EXPECT_EQ(targets("\"c\""), Values{2});
  EXPECT_EQ(values_of(read_samples("\"a,b\",c\n1,2\n", "\"a,b\"").y), Values{1});
  EXPECT_MENTIONS(refused("\"a,b\",c\n1,2\n", "a,b"),
                  "has no column named 'a', which --targets asks for; line 1 names 'a,b' and 'c'");
  EXPECT_MENTIONS(refused("a,c\n1,2\n", "c,\"a"), "its --targets 'c,\"a', name 2: a quotation mark is not closed");
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

/// The inputs of those names.
DataMatrix read_named(const std::string& content, const std::vector<std::string>& inputs,
                      TableHeader header = TableHeader::automatic) {
  return read_csv(MemorySource("x.csv", std::as_bytes(std::span(content))), {.header = header, .inputs = inputs});
}
std::string refused_named(const std::string& content, const std::vector<std::string>& inputs) {
  return refusal("x.csv: ", [&] { read_named(content, inputs); });
}
using Names = std::vector<std::string>;

TEST(ReadCsvByName, TakesTheInputsInTheirOrderAndLeavesOutAllOthers) {
  const std::string content = "city,b,price,a\n1 2,1,,2\n\"south, \"\"old\"\" 1;2\",3,NA,4\n";
  const DataMatrix matrix = read_named(content, {"a", "b"});
  EXPECT_EQ(values_of(matrix), (Values{2, 1, 4, 3}));
  EXPECT_EQ(matrix.column_names, (Names{"a", "b"}));
  EXPECT_EQ(matrix.left_out, (Names{"city", "price"}));
  EXPECT_EQ(matrix.header_line, 1);
  EXPECT_EQ(values_of(read_named("a,b\n1,2\n", {"a", "b"})), (Values{1, 2}));
  EXPECT_EQ(values_of(read_named("b,a\n1,2\n", {"a", "b"})), (Values{2, 1}));
  EXPECT_EQ(values_of(read_named("# b,a\n1,2\n", {"a", "b"})), (Values{2, 1}));
  EXPECT_EQ(values_of(read_named("1,0\n1,2\n", {"0", "1"}, TableHeader::yes)), (Values{2, 1}));
  // The fields of columns that are taken are read as ever, and those that are left out are counted.
  EXPECT_MENTIONS(refused_named("city,b,a\nx,1,y\n", {"a", "b"}), "line 2, column 3 (a): 'y' is not a number");
  EXPECT_MENTIONS(refused_named("city,b,a\nx,1,2,3\n", {"a", "b"}), "line 2 has more than 3 columns");
  EXPECT_MENTIONS(refused_named("a,b,city\n1,2\n", {"a", "b"}), "line 2 has 2 columns, line 1 has 3");
  EXPECT_MENTIONS(refused_named("a,city\n1,\"x\n", {"a"}), "line 2, column 2 (city): a quotation mark is not closed");
  EXPECT_MENTIONS(refused_named("a;b\n1;2\n", {"a", "b"}), "it has semicolons between its numbers");
}

TEST(ReadCsvByName, TakesThePlacesWhereThereAreNoNames) {
  EXPECT_EQ(values_of(read_named("1,2\n", {"a", "b"})), (Values{1, 2}));
  EXPECT_EQ(values_of(read_named("1,2,3\n", {"a", "b"})), (Values{1, 2, 3}));
  EXPECT_EQ(values_of(read_named("b,a\n1,2\n", {})), (Values{1, 2}));
  EXPECT_EQ(read_named("b,a\n1,2\n", {}).column_names, (Names{"b", "a"}));
  EXPECT_TRUE(read_named("1,2\n", {"a", "b"}).column_names.empty());
  EXPECT_TRUE(read_named("1,2\n", {"a", "b"}).left_out.empty());
}

TEST(ReadCsvByName, SaysWhichNameIsMissing) {
  EXPECT_EQ(refused_named("age,rooms,price\n1,2,3\n", {"age", "room"}),
            "x.csv: has no column named 'room', which is an input of the network; line 1 names 'age', 'rooms' and "
            "'price' (did you mean 'rooms'?); rename a column, or drop the names, and the columns are taken by their "
            "places");
  std::string many, row;
  for (int i = 0; i < 300; ++i) many += (i == 0 ? "c" : ",c") + std::to_string(i), row += i == 0 ? "1" : ",1";
  EXPECT_MENTIONS(refused_named(many + "\n" + row, {"x"}), "'c9' and 290 more; rename");
  EXPECT_MENTIONS(refused(many + "\n" + row, "price"), "line 1 names 'c0', 'c1', ");
  EXPECT_MENTIONS(refused("age,Price\n1,2\n", "price"), "(did you mean 'Price'?)");
}

TEST(ReadCsvByName, TakesNamesThatOccurTwiceByTheirPlacesAlone) {
  EXPECT_EQ(values_of(read_named("a,b,a\n1,2,3\n", {"a", "b", "a"})), (Values{1, 2, 3}));
  EXPECT_MENTIONS(refused_named("b,a,a\n1,2,3\n", {"a", "b", "a"}), "has more than one column named 'a' in line 1");
  EXPECT_MENTIONS(refused_named("a,b\n1,2\n", {"a", "b", "a"}), "but more than one of that name is an input of the");
  EXPECT_MENTIONS(refused_named("a,b,a\n1,2,3\n", {"b", "a"}), "has more than one column named 'a' in line 1");
  EXPECT_EQ(values_of(read_named("c,a,c,b\n1,2,3,4\n", {"b", "a"})), (Values{4, 2}));  // those are left out
}

TEST(ReadCsvByName, KeepsNamesPrintable) {
  const std::string content = "caf\xe9,\"a\tb\",\xc3\xa9\n1,2,3\n";
  const Names names{"caf\\xe9", "a\\x09b", "\xc3\xa9"};
  EXPECT_EQ(read(content).column_names, names);
  EXPECT_EQ(values_of(read_named(content, {names[2], names[0], names[1]})), (Values{3, 1, 2}));
}

TEST(ReadCsvByName, TakesTheTargetsOfTheTrainingData) {
  const auto read_as = [](const std::string& content, ReadOptions options) {
    return read_csv_samples(MemorySource("x.csv", std::as_bytes(std::span(content))), options);
  };
  const std::string content = "p,c,b,a\n1,x,2,3\n";
  const Samples named = read_as(content, {.targets = "p", .inputs = {"a", "b"}});
  EXPECT_EQ(values_of(named.x), (Values{3, 2}));
  EXPECT_EQ(values_of(named.y), Values{1});
  EXPECT_EQ(named.x.left_out, Names{"c"});
  EXPECT_EQ(named.y.column_names, Names{"p"});
  // "The last column" is said of the training data.
  const Samples last = read_as(content, {.targets = "1", .inputs = {"a", "b"}, .named_targets = {"p"}});
  EXPECT_EQ(values_of(last.x), (Values{3, 2}));
  EXPECT_EQ(values_of(last.y), Values{1});
  EXPECT_MENTIONS(refusal("x.csv: ",
                          [&] {
                            read_as(content, {.targets = "1", .inputs = {"a", "b"}});
                          }),
                  "has one column named 'a', which is an input of the network and one of --targets '1'");
  EXPECT_MENTIONS(
      refusal("x.csv: ", [&] { read_as(content, {.targets = "1", .inputs = {"a"}, .named_targets = {"q"}}); }),
      "has no column named 'q', which is a target of the training data");
}

TEST(ReadCsv, SurvivesEveryTruncationAndEveryChangedByte) {
  const std::string whole = "\"a\"\"\",b\r\n1.5,-2e3\r\n nan , 4\r\n";
  int read_well = 0;
  const auto attempt = [&](const std::string& content) {
    try {
      const HostMatrix matrix = read(content);
      EXPECT_GT(matrix.rows * matrix.columns, 0);
      ++read_well;
      EXPECT_EQ(read_named(content, {"b"}).rows, matrix.rows);
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

/// What write_csv makes of x and y.
std::string written(ConstMatrix x, ConstMatrix y) {
  const TemporaryFolder folder;
  OutputFile file(folder / "d.csv");
  write_csv(file, x, y);
  file.commit();
  return testing::read_all(folder / "d.csv");
}

TEST(WriteCsv, WritesNamesAndTheShortestNumbers) {
  const Values x{0.1, -2, 1e300, 1.0 / 3, 5e-324, 1048576}, classes{7, 0}, two{0.5, -0.0, 3, 1e22};
  EXPECT_EQ(written({x.data(), 2, 3}, {classes.data(), 2, 1}),
            "x1,x2,x3,y\n0.1,-2,1e+300,7\n0.3333333333333333,5e-324,1048576,0\n");
  EXPECT_EQ(written({x.data(), 2, 1, 3}, {two.data(), 2, 2}), "x1,y1,y2\n0.1,0.5,-0\n0.3333333333333333,3,1e+22\n");
  const std::vector<float> single{0.1f, 16777216, 1.0f / 3};
  EXPECT_EQ(written({single.data(), 3, 1}, {single.data(), 3, 1}),
            "x1,y\n0.1,0.1\n16777216,16777216\n0.33333334,0.33333334\n");
}

TEST(WriteCsv, ReadsBackToTheSameBits) {
  constexpr std::int64_t kRows = 20000, kColumns = 5;  // more than it writes at once
  std::mt19937_64 random(1);
  const auto check = [&]<class T, class Bits>(T, Bits) {
    std::vector<T> x, y;
    while (y.size() < kRows) {
      const T value = std::bit_cast<T>(static_cast<Bits>(random()));
      if (!std::isfinite(value)) continue;
      (x.size() < kRows * kColumns ? x : y).push_back(value);
    }
    const Samples back = read_samples(written({x.data(), kRows, kColumns}, {y.data(), kRows, 1}), "y");
    const auto rounded = [](const HostMatrix& matrix) {
      const Values values = values_of(matrix);
      return std::vector<T>(values.begin(), values.end());
    };
    EXPECT_EQ(rounded(back.x), x);
    EXPECT_EQ(rounded(back.y), y);
    EXPECT_EQ(back.x.header_line, 1);
  };
  check(0.0f, std::uint32_t{});
  check(0.0, std::uint64_t{});
}

TEST(WriteCsv, IsChosenByTheName) {
  for (const char* name : {"a.csv", "A.CSV", ".csv", "folder/a.b.Csv"}) EXPECT_TRUE(is_csv_name(name)) << name;
  for (const char* name : {"csv", "a.csv.gz", "a.npz", "", "-", "acsv"}) EXPECT_FALSE(is_csv_name(name)) << name;
}

}  // namespace
}  // namespace deviceloop
