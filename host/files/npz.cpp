#include "npz.h"

#include <algorithm>

#include "../matrix_ops.h"
#include "../text.h"
#include "npy.h"
#include "zip.h"

namespace deviceloop {
namespace {

DataMatrix read_array(const ZipArchive& archive, const std::string& name, const ReadOptions& options) {
  const auto& entries = archive.entries();
  const auto found =
      std::find_if(entries.begin(), entries.end(), [&](const ZipEntry& entry) { return entry.name == name + ".npy"; });
  if (found == entries.end()) {
    std::string names;
    for (std::size_t i = 0; i < std::min<std::size_t>(entries.size(), 5); ++i)
      names += (i == 0 ? "" : ", ") + in_quotes(entries[i].name);
    archive.file().refuse("has no array " + name + (names.empty() ? "" : ", only " + names) +
                          (entries.size() > 5 ? ", ..." : "") + "; write it with numpy.savez(file, x=x, y=y)");
  }
  const ZipEntrySource source(archive.file(), *found);
  DataMatrix matrix = read_npy(source, options);
  source.finish();
  return matrix;
}

}  // namespace

Samples read_npz_samples(const ByteSource& file, const ReadOptions& options) {
  if (!options.targets.empty()) file.refuse("has its targets in the array y; leave out --targets");
  const ZipArchive archive(file);
  Samples samples;
  samples.x = read_array(archive, "x", options);
  ReadOptions left = options;
  left.most_bytes -= samples.x.bytes.size();
  samples.y = read_array(archive, "y", left);
  return samples;
}

DataMatrix refuse_npz(const ByteSource& file, const ReadOptions& /*options*/) {
  file.refuse("is a zip archive, perhaps .npz, which holds several arrays; give one with x and y to --data");
}

void write_npz(OutputFile& file, ConstMatrix x, ConstMatrix y) {
  check_host_view(x, printable(file.path()) + ": the matrix x to write");
  check_host_view(y, printable(file.path()) + ": the matrix y to write");
  ZipWriter zip(file);
  zip.add("x.npy", [&](const ZipWriter::Sink& sink) { write_npy(sink, x); });
  zip.add("y.npy", [&](const ZipWriter::Sink& sink) { write_npy(sink, y); });
  zip.finish();
}

}  // namespace deviceloop
