// safetensors files, and the weights in them.
#include "files/weights.h"

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace deviceloop;
  return fuzz::run(data, size, [](const ByteSource& source) {
    const SafeTensorsFile file(source);
    for (const SafeTensorInfo& tensor : file.tensors())
      if (file.read(tensor).size() != tensor.bytes) std::abort();
    const NetworkSpec network = read_network(file);
    for (const ElementType type : {ElementType::float32, ElementType::float64})
      for (const HostMatrix& parameter : read_weights(file, network, type)) fuzz::check(parameter);
  });
}
