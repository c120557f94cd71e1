// .csv files: the input up to the first zero byte, at most 16, names the targets, where there is one; the rest is the
// file, whose first line is taken for everything that it may be. Columns with names are also read by them, in reverse.
#include "files/csv.h"

#include <algorithm>
#include <string>

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace deviceloop;
  const std::uint8_t* const head_end = data + std::min<std::size_t>(size, 16);
  const std::uint8_t* const end = std::find(data, head_end, 0);
  ReadOptions options;
  options.most_bytes = fuzz::kMostBytes;
  if (end != head_end) {
    options.targets.assign(data, end);
    size -= static_cast<std::size_t>(end + 1 - data);
    data = end + 1;
  }
  for (const TableHeader header : {TableHeader::automatic, TableHeader::yes, TableHeader::no}) {
    options.header = header;
    fuzz::run(data, size, [&](const ByteSource& source) {
      if (options.targets.empty()) {
        const DataMatrix matrix = read_csv(source, options);
        fuzz::check(matrix);
        if (matrix.column_names.empty()) return;
        ReadOptions by_name = options;
        by_name.inputs.assign(matrix.column_names.rbegin(), matrix.column_names.rend());
        const DataMatrix reversed = read_csv(source, by_name);  // or refuses a name that occurs twice
        fuzz::check(reversed);
        if (reversed.rows != matrix.rows || reversed.columns != matrix.columns) std::abort();
        by_name.inputs.resize(1);
        fuzz::check(read_csv(source, by_name));
        return;
      }
      const Samples samples = read_csv_samples(source, options);
      fuzz::check(samples.x);
      fuzz::check(samples.y);
      if (samples.x.rows != samples.y.rows) std::abort();
    });
  }
  return 0;
}
