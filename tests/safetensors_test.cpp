// safetensors files: hostile headers are refused with their reason, and what we write is as the format wants it.
#include "files/safetensors.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
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

std::string length_of(std::uint64_t size) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(size >> (8 * i) & 0xff);
  return bytes;
}

std::string safetensors(std::string_view header, std::string_view data) {
  return length_of(header.size()) + std::string(header) + std::string(data);
}

std::vector<std::byte> bytes_of(std::string_view text) {
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class ReadSafetensors : public ::testing::Test {
 protected:
  std::vector<SafeTensor> read(std::string_view content) const {
    return read_safetensors(folder_.write("x.safetensors", content));
  }
  std::string refused(std::string_view content) const {
    const std::string path = folder_.write("x.safetensors", content);
    return refusal(path + ": ", [&] { read_safetensors(path); });
  }
  const TemporaryFolder folder_;
};

TEST_F(ReadSafetensors, ReadsTensorsInOrderOfTheirNames) {
  const auto tensors = read(safetensors(R"({"__metadata__":{"format":"pt","a":"b"},)"
                                        R"("b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
                                        R"("a":{"shape":[3],"data_offsets":[8,11],"dtype":"U8"},)"
                                        R"("scalar":{"dtype":"I16","shape":[],"data_offsets":[11,13]}}   )",
                                        "12345678abcxy"));
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, "U8");
  EXPECT_EQ(tensors[0].shape, (std::vector<std::int64_t>{3}));
  EXPECT_EQ(text_of(tensors[0].bytes), "abc");
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].shape, (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(text_of(tensors[1].bytes), "12345678");
  EXPECT_EQ(tensors[2].shape.size(), 0u);
  EXPECT_EQ(text_of(tensors[2].bytes), "xy");
}

TEST_F(ReadSafetensors, KeepsMetadata) {
  const auto metadata = [&](const std::string& header) {
    return SafeTensorsFile(folder_.write("x.safetensors", safetensors(header, ""))).metadata();
  };
  EXPECT_EQ(metadata("{}"), SafeTensorsMetadata{});
  EXPECT_EQ(metadata(R"({"__metadata__":{}})"), SafeTensorsMetadata{});
  EXPECT_EQ(
      metadata(R"({"__metadata__":{"format":"pt","b":"","a \"\u00e4\n":"{\"x\":[1,\u0000]}"}})"),
      (SafeTensorsMetadata{
          {"format", "pt"}, {"b", ""}, {"a \"\xc3\xa4\n", std::string("{\"x\":[1,") + '\0' + std::string("]}")}}));
  const std::string large(1'000'000, '[');
  EXPECT_EQ(metadata(R"({"__metadata__":{"a":")" + large + "\"}}").at("a"), large);
}

TEST_F(ReadSafetensors, ReadsFilesWithoutElements) {
  EXPECT_EQ(read(safetensors("{}", "")).size(), 0u);
  EXPECT_EQ(read(safetensors(R"({"__metadata__":{}})", "")).size(), 0u);
  const auto tensors = read(safetensors(R"({"b":{"dtype":"F32","shape":[0,5],"data_offsets":[2,2]},)"
                                        R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                        R"("c":{"dtype":"F64","shape":[0],"data_offsets":[0,0]}})",
                                        "ab"));
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[1].bytes.size(), 0u);
}

TEST_F(ReadSafetensors, KnowsTheSizesOfAllTypes) {
  for (const auto& [dtype, size] : std::array<std::pair<const char*, int>, 15>{{{"F64", 8},
                                                                                {"F32", 4},
                                                                                {"F16", 2},
                                                                                {"BF16", 2},
                                                                                {"I64", 8},
                                                                                {"I32", 4},
                                                                                {"I16", 2},
                                                                                {"I8", 1},
                                                                                {"U8", 1},
                                                                                {"U16", 2},
                                                                                {"U32", 4},
                                                                                {"U64", 8},
                                                                                {"BOOL", 1},
                                                                                {"F8_E4M3", 1},
                                                                                {"F8_E5M2", 1}}}) {
    const std::string header = std::string(R"({"a":{"dtype":")") + dtype + R"(","shape":[3],"data_offsets":[0,)" +
                               std::to_string(3 * size) + "]}}";
    const auto tensors = read(safetensors(header, std::string(static_cast<std::size_t>(3 * size), 'x')));
    EXPECT_EQ(tensors.at(0).dtype, dtype);
    EXPECT_MENTIONS(
        refused(safetensors(header.substr(0, header.find(":[3]")) + ":[4]" + header.substr(header.find(":[3]") + 4),
                            std::string(static_cast<std::size_t>(3 * size), 'x'))),
        "takes " + std::to_string(4 * size) + " bytes, its data_offsets span " + std::to_string(3 * size));
  }
}

TEST_F(ReadSafetensors, RefusesHeadersThatAreNotOfTheFormat) {
  const std::string rest = R"("shape":[2],"data_offsets":[0,8]}})";
  const std::vector<std::pair<std::string, std::string>> cases{
      {R"({"a":{"dtype":"F32",)" + rest + "x", "not JSON from character 55"},
      {R"({"a":{"dtype":"F32",)" + rest + "}", "not JSON"},
      {R"({"a":{"dtype":"F32",)" + rest + std::string(3, '\0'), "not JSON from character 55"},
      {R"({"a":{"dtype":"F32",)" + rest + std::string(1, '\0') + "}", "not JSON from character 55"},
      {R"({"a":{"dtype":"F32",)" + rest.substr(1), "not JSON"},
      {R"({"a":{"dtype":"F32",/* */)" + rest, "not JSON"},
      {R"({"a)" + std::string("\xff") + R"(":{"dtype":"F32",)" + rest, "not JSON"},
      {R"({"a)" + std::string("\n") + R"(":{"dtype":"F32",)" + rest, "not JSON"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},})", "not JSON"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}})",
       "its header has 'a' twice"},
      {R"({"__metadata__":{},"__metadata__":{},"a":{"dtype":"F32",)" + rest, "has '__metadata__' twice"},
      {R"({"__metadata__":{"x":"1","x":"2"},"a":{"dtype":"F32",)" + rest, "'__metadata__' has 'x' twice"},
      {R"({"a":{"dtype":"F32","dtype":"F32",)" + rest, "'a' has the key 'dtype' twice"},
      {R"({"a":{"dtype":"F32","shape":[2],)" + rest, "'a' has the key 'shape' twice"},
      {R"({"a":{"dtype":"F32","data_offsets":[],)" + rest, "'a' has the key 'data_offsets' twice"},
      {R"({"a":{"dtype":"F32","extra":1,)" + rest, "'a' has the unknown key 'extra'"},
      {R"({"a\u0007":{"dtype":"F32","\n":1,)" + rest, "'a\\x07' has the unknown key '\\x0a'"},
      {R"({"a":{)" + rest, "'a' has no dtype"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", "'a' has no shape"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", "'a' lacks its two data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "'a' lacks its two data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", "'a' has more than two data_offsets"},
      {R"({"a":{"dtype":"F31",)" + rest, "'a' has the unknown dtype 'F31'; save it as F32"},
      {R"({"a":{"dtype":"f32",)" + rest, "'a' has the unknown dtype 'f32'"},
      {R"({"a":{"dtype":["F32"],)" + rest, "'a' has a list in its dtype"},
      {R"({"a":{"dtype":32,)" + rest, "'a' has a number in its dtype"},
      {R"({"a":{"dtype":{},)" + rest, "'a' has an object in its dtype"},
      {R"({"a":{"dtype":null,)" + rest, "'a' has null in its dtype"},
      {R"({"a":1})", "'a' is a number instead of an object"},
      {R"({"a":[]})", "'a' is a list instead of an object"},
      {R"({"__metadata__":"x"})", "'__metadata__' is a text instead of an object"},
      {R"({"__metadata__":{"x":1}})", "'__metadata__' holds a number where only texts"},
      {R"({"__metadata__":{"x":{}}})", "'__metadata__' holds an object where only texts"},
      {R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", "'a' has a number in its shape"},
      {R"({"a":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", "'a' has a list in its shape"},
      {R"({"a":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})", "'a' has a text in its shape"},
      {R"({"a":{"dtype":"F32","shape":[true],"data_offsets":[0,8]}})", "'a' has a truth value in its shape"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "the negative number -2 in its shape"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})",
       "number 2.0, which is fractional or too large, in"},
      {R"({"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}})", "number 2e0, which is fractional"},
      {R"({"a":{"dtype":"F32","shape":[02],"data_offsets":[0,8]}})", "not JSON"},
      {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})",
       "which is too large, in its shape"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551617],"data_offsets":[0,8]}})", "too large, in its shape"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,-8]}})", "the negative number -8 in its data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0.0,8]}})", "in its data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":{}}})", "'a' has an object in its data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2305843009213693952,8],"data_offsets":[0,8]}})", "more bytes than any file has"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", "more bytes than any file has"},
      {R"({"a":{"dtype":"F64","shape":[2],"data_offsets":[0,8]}})", "takes 16 bytes, its data_offsets span 8"},
  };
  for (const auto& [header, problem] : cases) {
    const std::string message = refused(safetensors(header, "12345678"));
    EXPECT_MENTIONS(message, problem);
    EXPECT_MENTIONS(message, "; ");
  }
}

TEST_F(ReadSafetensors, RefusesOffsetsThatDoNotFillTheFile) {
  const auto two = [&](const std::string& a, const std::string& b) {
    return refused(safetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
                                   R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                               "12345678"));
  };
  EXPECT_MENTIONS(two("[0,4]", "[3,7]"),
                  "'b' begins at byte 3 of the data, and what precedes it ends at byte 4: tensors "
                  "may not overlap");
  EXPECT_MENTIONS(two("[0,4]", "[0,4]"), "may not overlap");
  EXPECT_MENTIONS(two("[4,8]", "[3,7]"),
                  "'b' begins at byte 3 of the data, and what precedes it ends at byte 0: tensors "
                  "may not leave gaps");
  EXPECT_MENTIONS(two("[0,3]", "[4,8]"), "'b' begins at byte 4 of the data");
  EXPECT_MENTIONS(two("[0,4]", "[4,9]"), "'b' has the data_offsets [4, 9], and 8 bytes follow the header");
  EXPECT_MENTIONS(two("[0,4]", "[8,4]"), "'b' has the data_offsets [8, 4], which end before they begin");
  EXPECT_MENTIONS(two("[0,4]", "[4,7]"), "has 1 bytes after its last tensor");
  EXPECT_MENTIONS(two("[0,4]", "[4,9223372036854775807]"), "8 bytes follow the header");
  EXPECT_MENTIONS(two("[0,5]", "[5,8]"), "'a' with shape [4] and dtype U8 takes 4 bytes, its data_offsets span 5");
  EXPECT_MENTIONS(refused(safetensors("{}", "1")), "has 1 bytes after its last tensor");
}

TEST_F(ReadSafetensors, RefusesHeaderLengthsThatCannotBe) {
  EXPECT_MENTIONS(refused("{}"), "is truncated in its first 8 bytes");
  EXPECT_MENTIONS(refused(length_of(0)), "does not begin with '{'");
  EXPECT_MENTIONS(refused(length_of(3) + "{}"), "is truncated: its header takes 3 bytes, and 2 follow");
  EXPECT_MENTIONS(refused(length_of(100'000'001) + "{}"), "a header of 100000001 bytes, at most 100000000 are read");
  EXPECT_MENTIONS(refused(length_of(~std::uint64_t{0}) + "{}"), "a header of 18446744073709551615 bytes");
  EXPECT_MENTIONS(refused(length_of(~std::uint64_t{0} - 7) + "{}"), "a header of");
}

TEST_F(ReadSafetensors, RefusesWhatIsNoSafetensorsFile) {
  EXPECT_MENTIONS(refused(""), "is empty");
  EXPECT_MENTIONS(refused(std::string("\x93NUMPY\x01\x00v\x00{'descr': '<f4'", 24)), "is not a safetensors file");
  EXPECT_MENTIONS(refused(std::string("PK\x03\x04 and so on, as torch.save does it")), "perhaps of torch.save");
  EXPECT_MENTIONS(refused(safetensors(" {}", "")), "does not begin with '{'");
  EXPECT_MENTIONS(refused(safetensors("[]", "")), "does not begin with '{'");
  EXPECT_MENTIONS(refused(safetensors("\xef\xbb\xbf{}", "")), "does not begin with '{'");
  const std::string missing = folder_ / "missing";
  EXPECT_MENTIONS(refusal(missing + ": ", [&] { read_safetensors(missing); }), "No such file or directory");
}

TEST_F(ReadSafetensors, RefusesADeeplyNestedHeader) {
  constexpr std::size_t kDepth = 1'000'000;
  std::string objects = "{";
  for (std::size_t i = 0; i < kDepth; ++i) objects += R"("a":{)";
  EXPECT_MENTIONS(refused(safetensors(objects, "")), "'a' has the unknown key 'a'");
  EXPECT_MENTIONS(refused(safetensors(R"({"a":{"shape":)" + std::string(kDepth, '['), "")), "a list in its shape");
  EXPECT_MENTIONS(refused(safetensors(R"({"a":)" + std::string(kDepth, '['), "")), "is a list instead of an object");
  EXPECT_MENTIONS(refused(safetensors(R"({"__metadata__":{"a":)" + std::string(kDepth, '{'), "")), "an object where");
  EXPECT_MENTIONS(refused(safetensors(std::string(kDepth, '{'), "")), "not JSON from character 2");
}

TEST_F(ReadSafetensors, KeepsMessagesShort) {
  const std::string name(100000, 'n');
  EXPECT_MENTIONS(refused(safetensors("{\"" + name + "\":1}", "")), "nnn...'");
  EXPECT_MENTIONS(refused(safetensors("{\"" + name, "")), "not JSON");
  EXPECT_MENTIONS(refused(safetensors(R"({"a":{"shape":[0.)" + std::string(100000, '1') + "]}}", "")), "111...,");
  std::string ones = "1";
  for (int i = 0; i < 100000; ++i) ones += ",1";
  EXPECT_MENTIONS(refused(safetensors(R"({"a":{"dtype":"U8","shape":[)" + ones + R"(],"data_offsets":[0,2]}})", "12")),
                  "[1, 1, 1, 1, 1, 1, 1, 1, ...]");
}

TEST_F(ReadSafetensors, RefusesEveryTruncation) {
  const std::string whole = safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                        R"("b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})",
                                        "12345678abc");
  ASSERT_EQ(read(whole).size(), 2u);
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_MENTIONS(refused(whole.substr(0, size)), size == 0 ? "is empty" : "is truncated");
}

TEST_F(ReadSafetensors, SurvivesEveryChangedBitOfTheHeader) {
  const std::string whole = safetensors(R"({"__metadata__":{"format":"pt"},)"
                                        R"("a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                                        R"("b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}} )",
                                        "12345678abc");
  const std::string path = folder_ / "x.safetensors";
  int loaded = 0, refusals = 0;
  for (std::size_t at = 0; at < whole.size() - 11; ++at) {
    for (const int flip : {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff}) {
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      folder_.write("x.safetensors", changed);
      try {
        std::size_t bytes = 0;
        for (const SafeTensor& tensor : read_safetensors(path)) bytes += tensor.bytes.size();
        EXPECT_EQ(bytes, 11u);
        ++loaded;
      } catch (const InvalidArgument& error) {
        EXPECT_EQ(std::string(error.what()).rfind(path + ": ", 0), 0u);
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
        ++refusals;
      }
    }
  }
  EXPECT_GT(refusals, 1000);
  EXPECT_GT(loaded, 0);  // where a name changed
}

class WriteSafetensors : public ::testing::Test {
 protected:
  std::string refused(const std::vector<SafeTensor>& tensors) const {
    OutputFile file(folder_ / "x.safetensors");
    return refusal(file.path() + ": ", [&] { write_safetensors(file, tensors); });
  }
  const TemporaryFolder folder_;
};

TEST_F(WriteSafetensors, WritesTheFormat) {
  const std::vector<SafeTensor> tensors{{"b", "F32", {1, 2}, bytes_of("12345678")},
                                        {"a \"\xc3\xa4\"\n", "U8", {}, bytes_of("x")},
                                        {"none", "F64", {0, 3}, {}}};
  const std::string path = folder_ / "x.safetensors";
  OutputFile file(path);
  write_safetensors(file, tensors);
  file.commit();
  std::string header = R"({"__metadata__":{"format":"pt"},)"
                       R"("b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
                       R"("a \")"
                       "\xc3\xa4"
                       R"(\"\n":{"dtype":"U8","shape":[],"data_offsets":[8,9]},)"
                       R"("none":{"dtype":"F64","shape":[0,3],"data_offsets":[9,9]}})";
  while (header.size() % 8 != 0) header += ' ';
  EXPECT_EQ(read_all(path), safetensors(header, "12345678x"));

  const std::vector<SafeTensor> back = read_safetensors(path);
  ASSERT_EQ(back.size(), 3u);
  EXPECT_EQ(back[0].name, tensors[1].name);
  EXPECT_EQ(back[1].bytes, tensors[0].bytes);
  EXPECT_EQ(back[2].shape, tensors[2].shape);
}

TEST_F(WriteSafetensors, WritesMetadataInTheOrderOfItsKeys) {
  const std::string path = folder_ / "x.safetensors";
  const auto written = [&](const SafeTensorsMetadata& metadata) {
    OutputFile file(path);
    write_safetensors(file, {}, metadata);
    file.commit();
    return read_all(path);
  };
  const SafeTensorsMetadata metadata{{"format", "pt"}, {"a \"", "{\"b\":1}\n"}, {"empty", ""}};
  const std::string header = R"({"__metadata__":{"a \"":"{\"b\":1}\n","empty":"","format":"pt"}})";
  EXPECT_EQ(written(metadata).substr(8, header.size()), header);
  EXPECT_EQ(SafeTensorsFile(path).metadata(), metadata);
  EXPECT_EQ(written({}), safetensors(R"({"__metadata__":{}}     )", ""));
  OutputFile file(folder_ / "y");
  EXPECT_MENTIONS(refusal(file.path() + ": ",
                          [&] {
                            write_safetensors(file, {}, {{"a\xff", "b"}});
                          }),
                  "'a\\xff' is not UTF-8; give the metadata another key");
  EXPECT_MENTIONS(refusal(file.path() + ": ",
                          [&] {
                            write_safetensors(file, {}, {{"a", "\xff"}});
                          }),
                  "'\\xff' is not UTF-8; give the metadata another text");
}

TEST_F(WriteSafetensors, RefusesWhatCouldNotBeReadBack) {
  EXPECT_MENTIONS(refused({{"a", "F32", {1}, bytes_of("1234")}, {"a", "F32", {1}, bytes_of("1234")}}), "two tensors");
  EXPECT_MENTIONS(refused({{"__metadata__", "U8", {}, bytes_of("x")}}), "may not be called '__metadata__'");
  EXPECT_MENTIONS(refused({{"a", "F99", {}, bytes_of("x")}}), "unknown dtype 'F99'");
  EXPECT_MENTIONS(refused({{"a", "F32", {2}, bytes_of("1234")}}), "with shape [2] and dtype F32 has 4 bytes");
  EXPECT_MENTIONS(refused({{"a", "U8", {-1, -4}, bytes_of("1234")}}), "with shape [-1, -4]");
  EXPECT_MENTIONS(refused({{"a\xff", "U8", {}, bytes_of("x")}}), "'a\\xff' is not UTF-8");
}

TEST(SafeTensorsFile, ReadsOneTensorAtATime) {
  const TemporaryFolder folder;
  const SafeTensorsFile file(folder.write("x", safetensors(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[2,5]},)"
                                                           R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                                                           "bbaaa")));
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(text_of(file.read(file.tensors()[1])), "bb");
  EXPECT_EQ(text_of(file.read(file.tensors()[0])), "aaa");
}

TEST(SafeTensorsFile, SaysThatTheFileBecameShorter) {
  const TemporaryFolder folder;
  const std::string content = safetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "1234");
  const std::string path = folder.write("x", content);
  const SafeTensorsFile file(path);
  std::filesystem::resize_file(path, content.size() - 1);
  EXPECT_MENTIONS(refusal<Error>(path + ": ", [&] { file.read(file.tensors()[0]); }), "became shorter");
}

}  // namespace
}  // namespace deviceloop
