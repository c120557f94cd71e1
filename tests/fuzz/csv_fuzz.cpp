// .csv files: the input up to the first zero byte, at most 16, names the targets, where there is one; the rest is the
// file.
#include "files/csv.h"

#include <algorithm>
#include <string>

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace deviceloop;
  const std::uint8_t* const head_end = data + std::min<std::size_t>(size, 16);
  const std::uint8_t* const end = std::find(data, head_end, 0);
  if (end == head_end)
    return fuzz::run(data, size, [](const ByteSource& source) { fuzz::check(read_csv(source, fuzz::kMostBytes)); });
  const std::string targets(data, end);
  const auto used = static_cast<std::size_t>(end + 1 - data);
  return fuzz::run(end + 1, size - used, [&](const ByteSource& source) {
    const Samples samples = read_csv_samples(source, targets, fuzz::kMostBytes);
    fuzz::check(samples.x);
    fuzz::check(samples.y);
    if (samples.x.rows != samples.y.rows) std::abort();
  });
}
