// safetensors files.
#include "files/safetensors.h"

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace deviceloop;
  return fuzz::run(data, size, [](const ByteSource& source) {
    const SafeTensorsFile file(source);
    for (const SafeTensorInfo& tensor : file.tensors())
      if (file.read(tensor).size() != tensor.bytes) std::abort();
  });
}
