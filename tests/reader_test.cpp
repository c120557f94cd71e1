// The choice of a format: by the first bytes, then by the name.
#include "files/reader.h"

#include <gtest/gtest.h>

#include <string>

#include "files/npy.h"
#include "support/refusal.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

using testing::read_all;
using testing::refusal;
using testing::TemporaryFolder;

std::string npy_file(const TemporaryFolder& folder) {
  const float values[] = {1, 2, 3, 4, 5, 6};
  OutputFile file(folder / "x.npy");
  write_npy(file, ConstMatrix(values, 2, 3));
  file.commit();
  return folder / "x.npy";
}

std::string refused(const std::string& path) {
  return refusal(path + ": ", [&] { read_matrix(path); });
}

TEST(ReadMatrix, KnowsNpyByItsContentAndByItsName) {
  const TemporaryFolder folder;
  const std::string path = npy_file(folder);
  EXPECT_EQ(read_matrix(path).columns, 3);
  EXPECT_EQ(read_matrix(folder.write("x.csv", read_all(path))).columns, 3);
  EXPECT_EQ(read_matrix(folder.write("x", read_all(path))).columns, 3);
  EXPECT_MENTIONS(refused(folder.write("y.NPY", "1.0")), "is not an .npy file");
}

TEST(ReadMatrix, RefusesWhatIsOfNoKnownFormat) {
  const TemporaryFolder folder;
  EXPECT_MENTIONS(refused(folder.write("x.bin", "1.0")), "is of no format that is read");
  EXPECT_MENTIONS(refused(folder.write("x.bin", "1")), "make it one of these: .npy, .npz, IDX or .csv");
  EXPECT_MENTIONS(refused(folder.write("x.npy", "\x1f\x8b\x08")), "unpack it with gunzip");
  EXPECT_MENTIONS(refused(folder.write("x.npy", "")), "is empty");
  const std::string npy = npy_file(folder);
  EXPECT_MENTIONS(refusal(npy + ": ", [&] { read_samples(npy, ""); }), "holds one matrix, not inputs and targets");
}

TEST(ReadMatrix, TakesNoMoreMemoryThanAllowed) {
  const TemporaryFolder folder;
  const std::string path = npy_file(folder);
  EXPECT_EQ(read_matrix(path, 24).rows, 2);
  EXPECT_MENTIONS(refusal(path + ": ", [&] { read_matrix(path, 23); }), "takes 24 bytes of memory, but only 23 bytes");
}

}  // namespace
}  // namespace deviceloop
