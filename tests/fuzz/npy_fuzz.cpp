// .npy files.
#include "files/npy.h"

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace deviceloop;
  return fuzz::run(data, size, [](const ByteSource& source) { fuzz::check(read_npy(source, fuzz::kMostBytes)); });
}
