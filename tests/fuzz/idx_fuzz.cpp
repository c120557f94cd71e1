// IDX files.
#include "files/idx.h"

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace deviceloop;
  return fuzz::run(data, size, [](const ByteSource& source) {
    ReadOptions options;
    options.most_bytes = fuzz::kMostBytes;
    for (const ElementType integers : {ElementType::float32, ElementType::float64}) {
      options.integers = integers;
      fuzz::check(read_idx(source, options));
    }
  });
}
