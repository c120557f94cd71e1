// .npz files.
#include "files/npz.h"

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace deviceloop;
  return fuzz::run(data, size, [](const ByteSource& source) {
    ReadOptions options;
    options.most_bytes = fuzz::kMostBytes;
    const Samples samples = read_npz_samples(source, options);
    fuzz::check(samples.x);
    fuzz::check(samples.y);
  });
}
