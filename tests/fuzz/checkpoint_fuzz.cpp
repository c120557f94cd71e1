// Checkpoints. Their checksum is put right first, or the reader would refuse all but the seeds by it.
#include "checksum.h"
#include "files/weights.h"
#include "fuzz.h"

namespace {

std::string with_right_checksum(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  const std::string key = std::string("\"") + deviceloop::kChecksumKey + "\":\"";
  const std::size_t at = bytes.find(key);
  if (at == bytes.npos || bytes.size() - at - key.size() < 16) return bytes;
  bytes.replace(at + key.size(), 16, 16, '0');
  deviceloop::Checksum checksum;
  checksum.add(bytes.data(), bytes.size());
  return bytes.replace(at + key.size(), 16, deviceloop::checksum_text(checksum.value()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace deviceloop;
  const std::string bytes = with_right_checksum(data, size);
  return fuzz::run(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), [](const ByteSource& source) {
    const SafeTensorsFile file(source);
    const std::optional<CheckpointMetadata> checkpoint = read_checkpoint(file);
    const std::optional<NetworkMetadata> network = read_network_metadata(file);
    if (!checkpoint || !network) return;
    const SavedState state = read_state(file, network->network, checkpoint->training, Settings::all);
    for (const Parameters* const values : {&state.values, &state.best})
      for (const HostMatrix& matrix : *values) fuzz::check(matrix);
    if (!state.gram) return;
    for (const HostMatrix& matrix : state.gram->tensors) fuzz::check(matrix);
    if (state.gram->progress.steps < 1) std::abort();
  });
}
