// .npz files: what NumPy writes is read, what we write has the bytes we say, and archives made to mislead are refused.
#include "files/npz.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "files/npy.h"
#include "files/zip.h"
#include "support/refusal.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

using testing::read_all;
using testing::refusal;
using testing::TemporaryFolder;

std::string number(std::uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += i < 8 ? static_cast<char>(value >> (8 * i) & 0xff) : '\0';
  return text;
}

std::string npy(const std::string& shape, std::string_view data, bool fortran_order = false) {
  std::string header = std::string("{'descr': '<f4', 'fortran_order': ") + (fortran_order ? "True" : "False") +
                       ", 'shape': " + shape + ", }";
  header.resize(117, ' ');
  return std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header + "\n" + std::string(data);
}

std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

std::string deflated(const std::string& content) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, content.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::uint32_t check_sum(const std::string& content) {
  return static_cast<std::uint32_t>(
      crc32(0, reinterpret_cast<const Bytef*>(content.data()), static_cast<uInt>(content.size())));
}

/// A file for an archive; what is not set is as it should be.
struct File {
  std::string name, stored;
  std::uint64_t size = 0;
  std::uint32_t crc = 0;
  int method = 0, flags = 0;
  bool zip64 = false;                      // sizes in zip64 fields
  std::string after;                       // the data: a data descriptor
  std::optional<std::uint32_t> local_crc;  // else crc
  std::optional<std::uint64_t> local_stored, local_size;
  std::optional<std::string> local_name;     // else name
  std::optional<std::uint64_t> local_begin;  // else where it is
};

File file(const std::string& name, const std::string& content, bool deflate = false) {
  File result;
  result.name = name;
  result.stored = deflate ? deflated(content) : content;
  result.size = content.size();
  result.crc = check_sum(content);
  result.method = deflate ? 8 : 0;
  return result;
}

/// An archive, written from the format's description.
std::string archive(const std::vector<File>& files, bool zip64_end = false) {
  std::string bytes, directory;
  for (const File& f : files) {
    const std::uint64_t begin = f.local_begin.value_or(bytes.size());
    const std::string name = f.local_name.value_or(f.name);
    const std::uint64_t stored32 = f.zip64 ? 0xffffffff : f.stored.size(), size32 = f.zip64 ? 0xffffffff : f.size;
    const std::string field =
        f.zip64 ? number(1, 2) + number(16, 2) + number(f.size, 8) + number(f.stored.size(), 8) : "";
    const std::uint64_t local_stored = f.local_stored.value_or(stored32), local_size = f.local_size.value_or(size32);
    const std::string common = number(f.flags, 2) + number(f.method, 2) + number(0, 4);
    bytes += number(0x04034b50, 4) + number(45, 2) + common + number(f.local_crc.value_or(f.crc), 4) +
             number(local_stored, 4) + number(local_size, 4) + number(name.size(), 2) + number(field.size(), 2) + name +
             field + f.stored + f.after;
    directory += number(0x02014b50, 4) + number(45, 2) + number(45, 2) + common + number(f.crc, 4) +
                 number(stored32, 4) + number(size32, 4) + number(f.name.size(), 2) + number(field.size(), 2) +
                 number(0, 10) + number(begin, 4) + f.name + field;
  }
  const std::uint64_t at = bytes.size(), count = files.size();
  bytes += directory;
  if (zip64_end) {
    const std::uint64_t end = bytes.size();
    bytes += number(0x06064b50, 4) + number(44, 8) + number(45, 2) + number(45, 2) + number(0, 8) + number(count, 8) +
             number(count, 8) + number(directory.size(), 8) + number(at, 8);
    bytes += number(0x07064b50, 4) + number(0, 4) + number(end, 8) + number(1, 4);
  }
  bytes += number(0x06054b50, 4) + number(0, 4);
  if (zip64_end)
    bytes += number(0xffff, 2) + number(0xffff, 2) + number(0xffffffff, 4) + number(0xffffffff, 4);
  else
    bytes += number(count, 2) + number(count, 2) + number(directory.size(), 4) + number(at, 4);
  return bytes + number(0, 2);
}

const std::string kX = npy("(2, 3)", floats({1, 2, 3, 4, 5, 6}));
const std::string kY = npy("(2,)", floats({7, 8}));

Samples read(const std::string& content, std::uint64_t most_bytes = UINT64_MAX) {
  return read_npz_samples(MemorySource("d.npz", std::as_bytes(std::span(content))), {.most_bytes = most_bytes});
}
std::string refused(const std::string& content) {
  return refusal("d.npz: ", [&] { read(content); });
}

std::vector<float> values_of(const HostMatrix& matrix) {
  EXPECT_EQ(matrix.type, ElementType::float32);
  std::vector<float> values(matrix.bytes.size() / sizeof(float));
  std::memcpy(values.data(), matrix.bytes.data(), matrix.bytes.size());
  EXPECT_EQ(values.size(), static_cast<std::size_t>(matrix.rows * matrix.columns));
  return values;
}

void expect_samples(const Samples& samples) {
  EXPECT_EQ(samples.x.rows, 2);
  EXPECT_EQ(values_of(samples.x), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(values_of(samples.y), (std::vector<float>{7, 8}));
}

TEST(ReadNpz, ReadsStoredAndDeflatedArrays) {
  for (const bool deflate : {false, true})
    for (const bool zip64 : {false, true}) {
      File x = file("x.npy", kX, deflate), y = file("y.npy", kY, deflate);
      x.zip64 = y.zip64 = zip64;
      expect_samples(read(archive({x, y}, zip64)));
      expect_samples(read(archive({y, file("z.npy", "no array"), x}, !zip64)));
    }
  std::string commented = archive({file("x.npy", kX), file("y.npy", kY)});
  commented.replace(commented.size() - 2, 2, number(7, 2) + "comment");
  expect_samples(read(commented));
}

/// Archives of kX and kY that other programs have written: tests/fuzz/make_seeds.py says how.
std::string seed(const std::string& name) { return read_all(DEVICELOOP_SOURCE_DIR "/tests/fuzz/seeds/npz/" + name); }

TEST(ReadNpz, ReadsWhatOtherProgramsWrite) {
  for (const char* name : {"infozip_stream", "infozip_stream_stored", "infozip_descriptors", "infozip_zip64", "bsdtar",
                           "bsdtar_stream", "bsdtar_zip64", "7z", "7z_stream", "python_stream", "python_stream_zip64",
                           "after_program", "after_program_adjusted", "zeros_follow", "comment"}) {
    SCOPED_TRACE(name);
    const std::string whole = seed(name);
    expect_samples(read(whole));
    const MemorySource source("d.npz", std::as_bytes(std::span(whole)));
    const ZipArchive archive(source);
    ASSERT_EQ(archive.entries().size(), 2u);
    for (const ZipEntry& entry : archive.entries())
      for (std::uint64_t at = entry.data; at < entry.data + entry.stored_size; ++at)
        for (const int flip : {0x01, 0x10, 0x80, 0xff}) {
          std::string changed = whole;
          changed[at] = static_cast<char>(changed[at] ^ flip);
          try {
            expect_samples(read(changed));  // the bits after the end of what is compressed
            EXPECT_TRUE(entry.is_deflated && at + 1 == entry.data + entry.stored_size) << entry.name << " " << at;
          } catch (const InvalidArgument& error) {
            EXPECT_EQ(std::string(error.what()).rfind("d.npz: ", 0), 0u);
          }
        }
  }
}

TEST(ReadNpz, ReadsHeadersThatLeaveToTheDescriptorWhatWasUnknown) {
  for (const bool deflate : {false, true})
    for (int known = 0; known < 8; ++known) {
      File x = file("x.npy", kX, deflate);
      x.flags = 8;
      x.after = number(0x08074b50, 4) + number(x.crc, 4) + number(x.stored.size(), 4) + number(x.size, 4);
      if ((known & 1) == 0) x.local_crc = 0;
      if ((known & 2) == 0) x.local_stored = 0;
      if ((known & 4) == 0) x.local_size = 0;
      expect_samples(read(archive({x, file("y.npy", kY)})));
      x.after.erase(0, 4);  // a descriptor need not have a signature
      expect_samples(read(archive({x, file("y.npy", kY)})));
      File wrong = x;
      wrong.local_crc = x.crc + 1;
      EXPECT_MENTIONS(refused(archive({wrong, file("y.npy", kY)})), "contradicts the directory");
      wrong = x;
      wrong.local_size = x.size + 1;
      EXPECT_MENTIONS(refused(archive({wrong, file("y.npy", kY)})), "contradicts the directory");
      x.flags = 0;
      if (known == 7) continue;
      EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})), "contradicts the directory");
    }
}

TEST(ReadNpz, SkipsWhatPrecedesAndTheZerosThatFollow) {
  for (const bool zip64 : {false, true}) {
    const std::string whole = archive({file("x.npy", kX, true), file("y.npy", kY)}, zip64);
    for (const std::string& before : {std::string("x"), std::string("#!/bin/sh\nexit 0\n"), std::string(70000, 'M')})
      for (const std::size_t zeros : {0, 1, 22, 512, 70000, 200000})
        expect_samples(read(before + whole + std::string(zeros, '\0')));
    std::string commented = whole;
    commented.replace(commented.size() - 2, 2, number(9, 2) + std::string("comment\0\0", 9));
    expect_samples(read(commented + std::string(100, '\0')));
    EXPECT_MENTIONS(refused(whole + std::string(100, '\0') + "x"), "its end record is missing");
  }
}

TEST(ReadNpz, ReadsAZip64EndRecordThatNothingNeeds) {
  std::string whole = archive({file("x.npy", kX), file("y.npy", kY)}, true);
  const std::string plain = archive({file("x.npy", kX), file("y.npy", kY)});
  whole.replace(whole.size() - 22, 22, plain.substr(plain.size() - 22));
  expect_samples(read(whole));
  expect_samples(read("before" + whole));
  whole[whole.size() - 22 - 20 - 56] = 'x';
  EXPECT_MENTIONS(refused(whole), "no zip64 end record lies at byte");
}

TEST(ReadNpz, LeavesAloneTheOtherFiles) {
  File other = file("z.npy", "some text");
  other.flags = 1;
  expect_samples(read(archive({other, file("x.npy", kX), file("y.npy", kY)})));
  other.flags = 0;
  other.method = 12;
  other.size = 1000;
  expect_samples(read(archive({file("x.npy", kX), other, file("y.npy", kY)})));
  other.flags = 0x2000;
  expect_samples(read(archive({file("x.npy", kX), file("y.npy", kY), other})));
}

TEST(ReadNpz, RefusesADirectoryThatItsFilesDoNotFill) {
  std::string bytes = archive({file("x.npy", kX), file("y.npy", kY)});
  const std::string more(1000000, 'x');
  const std::size_t end = bytes.size() - 22;
  std::uint32_t size = 0;
  std::memcpy(&size, bytes.data() + end + 12, 4);
  size += static_cast<std::uint32_t>(more.size());
  bytes.replace(end + 12, 4, number(size, 4));
  bytes.insert(end, more);
  EXPECT_MENTIONS(refused(bytes), "2 files do not fill its directory of");
}

TEST(ReadNpz, ReadsColumnsStoredOneAfterTheOther) {
  const std::string x = npy("(2, 3)", floats({1, 4, 2, 5, 3, 6}), true);
  for (const bool deflate : {false, true})
    expect_samples(read(archive({file("x.npy", x, deflate), file("y.npy", kY)})));
}

TEST(ReadNpz, ReadsMoreThanOnePieceOfCompressedBytes) {
  std::vector<float> values(300000);
  std::uint32_t state = 1;
  for (float& value : values) value = static_cast<float>(state = state * 1664525 + 1013904223);
  const std::string x = npy("(300000,)", floats(values));
  EXPECT_EQ(values_of(read(archive({file("x.npy", x, true), file("y.npy", kY)})).x), values);
  const std::string zeros = npy("(3000000,)", std::string(12000000, '\0'));  // close to what deflate can do
  EXPECT_EQ(read(archive({file("x.npy", zeros, true), file("y.npy", kY)})).x.rows, 3000000);
}

TEST(ReadNpz, RefusesWhatIsMissingOrDouble) {
  EXPECT_MENTIONS(refused(archive({file("x.npy", kX)})), "has no array y, only 'x.npy'");
  EXPECT_MENTIONS(refused(archive({})), "has no array x; write it with numpy.savez");
  EXPECT_MENTIONS(refused(archive({file("x.npy", kX), file("y.npy", kY), file("x.npy", kX)})),
                  "'x.npy' twice, at byte 0 and at byte ");
  EXPECT_MENTIONS(refused(archive({file("x.npy", ""), file("y.npy", kY)})), "x.npy: is empty");
  EXPECT_MENTIONS(refused(archive({file("x.npy", "text"), file("y.npy", kY)})), "x.npy: is not an .npy file");
  const std::string good = archive({file("x.npy", kX), file("y.npy", kY)});
  EXPECT_MENTIONS(
      refusal("d.npz: ",
              [&] { read_npz_samples(MemorySource("d.npz", std::as_bytes(std::span(good))), {.targets = "1"}); }),
      "leave out --targets");
  const TemporaryFolder folder;
  const std::string path = folder.write("d.npz", good);
  EXPECT_EQ(read_samples(path).x.rows, 2);
  EXPECT_MENTIONS(refusal(path + ": ", [&] { read_matrix(path); }), "--data");
}

TEST(ReadNpz, RefusesAWrongCheckSum) {
  for (const bool deflate : {false, true}) {
    File x = file("x.npy", kX, deflate);
    x.crc ^= 1;
    EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})), "x.npy: has the check sum");
  }
  File y = file("y.npy", kY);
  y.stored.back() = static_cast<char>(y.stored.back() ^ 1);
  const auto message = refused(archive({file("x.npy", kX), y}));
  EXPECT_MENTIONS(message, "y.npy: has the check sum");
  EXPECT_MENTIONS(message, "what begins at byte " + std::to_string(2 * (30 + 5) + kX.size()) + " of the archive");
}

TEST(ReadNpz, RefusesOverlaps) {
  File y = file("y.npy", kY);
  y.local_begin = 0;  // two entries of the directory, one file
  File x = file("y.npy", kY);
  x.name = "x.npy";
  EXPECT_MENTIONS(refused(archive({file("y.npy", kY), y})), "overlap at byte 0");
  // A file inside another.
  const std::string inner = archive({file("y.npy", kY)});
  File outer = file("x.npy", npy("(2, 3)", floats({1, 2, 3, 4, 5, 6})) + inner);
  y.local_begin = 30 + 5 + kX.size();
  EXPECT_MENTIONS(refused(archive({outer, y})), "overlap at byte");
}

TEST(ReadNpz, RefusesHeadersThatContradict) {
  File x = file("x.npy", kX);
  x.local_name = "z.npy";
  EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})), "'x.npy' at byte 0 contradicts the directory");
  x = file("x.npy", kX);
  x.local_crc = 5;
  EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})), "contradicts the directory");
  x = file("x.npy", kX);
  x.local_begin = 3;
  EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})), "no file begins where 'x.npy' at byte 3");
  x.local_begin = 0xfffffff0;
  EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})), "lies outside it");
}

TEST(ReadNpz, RefusesEncryptionAndOtherMethods) {
  File x = file("x.npy", kX);
  x.flags = 1;
  EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})),
                  "x.npy: is encrypted; write the archive without a password");
  x.flags = 0x20;
  EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})), "x.npy: has the flags 32");
  x.flags = 0;
  x.method = 14;
  EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})),
                  "x.npy: is compressed by method 14 (LZMA), only 0 (stored)");
  x.method = 77;
  EXPECT_MENTIONS(refused(archive({x, file("y.npy", kY)})), "x.npy: is compressed by method 77, only 0 (stored)");
}

TEST(ReadNpz, RefusesSizesThatLie) {
  const std::string zeros = npy("(1000,)", std::string(4000, '\0'));
  const auto with_size = [&](std::uint64_t size, const std::string& content) {
    File x = file("x.npy", content, true);
    x.size = size;
    x.zip64 = true;
    return archive({x, file("y.npy", kY)});
  };
  // More than deflate can make of the bytes: nothing of that size is asked of the system.
  EXPECT_MENTIONS(refused(with_size(std::uint64_t{1} << 60, zeros)),
                  "cannot become the 1152921504606846976 of the file");
  EXPECT_MENTIONS(refused(with_size(zeros.size() - 4, zeros)), "x.npy: ");
  const std::string longer = npy("(999,)", std::string(4000, '\0'));
  EXPECT_MENTIONS(refused(with_size(longer.size() - 4, longer)), "inflates to more than the 4124 bytes");
  const std::string shorter = npy("(1001,)", std::string(4000, '\0'));
  EXPECT_MENTIONS(refused(with_size(shorter.size() + 4, shorter)), "inflates to 4128 bytes, but the archive says 4132");
  File stored = file("x.npy", kX);
  stored.size += 1;
  EXPECT_MENTIONS(refused(archive({stored, file("y.npy", kY)})), "bytes cannot become");
  File more = file("x.npy", kX, true);
  more.stored += "rest";
  EXPECT_MENTIONS(refused(archive({more, file("y.npy", kY)})), "has bytes after its compressed ones at byte");
  File damaged = file("x.npy", kX, true);
  damaged.stored[0] = '\x07';  // a block type that does not exist
  EXPECT_MENTIONS(refused(archive({damaged, file("y.npy", kY)})), "has damaged compressed bytes at byte");
}

TEST(ReadNpz, TakesNoMoreMemoryThanAllowed) {
  const std::string content = archive({file("x.npy", kX, true), file("y.npy", kY, true)});
  expect_samples(read(content, 32));
  EXPECT_MENTIONS(refusal("d.npz: ", [&] { read(content, 31); }), "y.npy: takes 8 bytes of memory, but only 7 bytes");
}

TEST(ReadNpz, RefusesEveryTruncation) {
  for (const bool zip64 : {false, true}) {
    const std::string whole = archive({file("x.npy", kX, true), file("y.npy", kY)}, zip64);
    expect_samples(read(whole));
    for (std::size_t size = 1; size < whole.size(); ++size)
      EXPECT_MENTIONS(refused(whole.substr(0, size)), "is a damaged zip archive");
    EXPECT_MENTIONS(refused(whole + "x"), "is a damaged zip archive");
  }
}

TEST(ReadNpz, ReadsTheSameOrRefusesAfterEveryChangedBit) {
  for (const bool zip64 : {false, true}) {
    File x = file("x.npy", kX, true), y = file("y.npy", kY);
    x.zip64 = y.zip64 = zip64;
    const std::string whole = archive({x, y}, zip64);
    for (std::size_t at = 0; at < whole.size(); ++at)
      for (const int flip : {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff}) {
        std::string changed = whole;
        changed[at] = static_cast<char>(changed[at] ^ flip);
        try {
          expect_samples(read(changed));  // versions, times, attributes
        } catch (const InvalidArgument& error) {
          const std::string message = error.what();
          EXPECT_EQ(message.rfind("d.npz: ", 0), 0u);
          EXPECT_EQ(message.find('\n'), std::string::npos);
        }
      }
  }
}

TEST(WriteNpz, IsReadBackBitForBit) {
  const TemporaryFolder folder;
  const std::vector<double> x{0.1, -0.0, 1e-310, 1e308, 5, 6, -1, -1};
  const std::vector<float> y{7, 8};
  OutputFile out(folder / "d.npz");
  write_npz(out, ConstMatrix(x.data(), 2, 3, 4), ConstMatrix(y.data(), 2, 1));
  out.commit();
  const Samples samples = read_samples(folder / "d.npz");
  EXPECT_EQ(samples.x.rows, 2);
  EXPECT_EQ(samples.x.columns, 3);
  const std::vector<double> expected{0.1, -0.0, 1e-310, 5, 6, -1};
  EXPECT_EQ(std::memcmp(samples.x.bytes.data(), expected.data(), 48), 0);
  EXPECT_EQ(values_of(samples.y), y);
}

TEST(WriteZip, WritesThe64BitFormThatTheReaderReads) {
  const TemporaryFolder folder;
  OutputFile out(folder / "d.npz");
  ZipWriter zip(out, 200);  // x is shorter, y begins after it, z is longer
  const auto add = [&](const std::string& name, const std::string& content) {
    zip.add(name, [&](const ZipWriter::Sink& sink) { sink(content.data(), content.size()); });
  };
  add("x.npy", kX);
  add("y.npy", kY);
  add("z", std::string(1000, 'z'));
  zip.finish();
  out.commit();
  expect_samples(read_samples(folder / "d.npz"));
  const std::string bytes = read_all(folder / "d.npz");
  EXPECT_NE(bytes.find(number(0x06064b50, 4)), std::string::npos);
  const MemorySource source("d.npz", std::as_bytes(std::span(bytes)));
  const ZipArchive archive(source);
  ASSERT_EQ(archive.entries().size(), 3u);
  EXPECT_EQ(archive.entries()[2].size, 1000u);
  ZipEntrySource(source, archive.entries()[2]).finish();
}

}  // namespace
}  // namespace deviceloop
