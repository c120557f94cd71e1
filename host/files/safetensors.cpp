#include "safetensors.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include <deviceloop/error.h>

#include "../checksum.h"
#include "../text.h"

namespace deviceloop {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are read and written as they lie in memory");

constexpr std::uint64_t kLargestHeader = 100'000'000;  // as in the format's own library
constexpr std::string_view kMetadata = "__metadata__";
constexpr char kWriteAgain[] = "; write the file again with safetensors";

constexpr std::string_view kNoChecksum = "0000000000000000";

/// Where a header has the digits of its checksum, from its beginning; npos: nowhere. A text inside the header has its
/// quotation marks behind backslashes, so that only a key is found.
std::size_t checksum_digits(std::string_view header) {
  const std::string key = std::string("\"") + kChecksumKey + "\":\"";
  const std::size_t at = header.find(key);
  if (at == header.npos || at + key.size() + kNoChecksum.size() >= header.size() ||
      header[at + key.size() + kNoChecksum.size()] != '"')
    return header.npos;
  return at + key.size();
}

/// Bytes of one element; 0 for a dtype that the format does not know.
std::uint64_t dtype_size(std::string_view dtype) {
  constexpr std::pair<std::string_view, std::uint64_t> kTypes[] = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},  {"I32", 4},     {"I16", 2},     {"I8", 1},
      {"U8", 1},  {"U16", 2}, {"U32", 4}, {"U64", 8},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
  };
  for (const auto& [name, size] : kTypes)
    if (name == dtype) return size;
  return 0;
}

/// Bytes of all elements; nothing where they overflow.
std::optional<std::uint64_t> tensor_size(std::span<const std::int64_t> shape, std::uint64_t element) {
  std::uint64_t size = element;
  for (const std::int64_t dimension : shape)
    if (__builtin_mul_overflow(size, static_cast<std::uint64_t>(dimension), &size)) return std::nullopt;
  return size;
}

/// A header's tensor, its offsets still relative to the end of the header.
struct Entry {
  SafeTensorInfo info;
  std::vector<std::int64_t> offsets;
};

/// Takes the header's JSON piece by piece. Only the two levels of the format are accepted, so that no header, however
/// deep, is ever held as a tree; and both occurrences of a duplicate key are seen. Every member returns whether to go
/// on; where it is false, problem() says why.
class HeaderHandler {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  std::vector<Entry>& entries() { return entries_; }
  SafeTensorsMetadata& metadata() { return metadata_; }
  const std::string& problem() const { return problem_; }

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a truth value"); }
  bool number_integer(number_integer_t value) { return unexpected("the negative number " + std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) {
    return unexpected("the number " + printable(text, 40) + ", which is fractional or too large,");
  }
  bool number_unsigned(number_unsigned_t value) {
    if (place_ != Place::shape && place_ != Place::offsets) return unexpected("a number");
    if (value > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max()))
      return unexpected("the number " + std::to_string(value) + ", which is too large,");
    auto& values = place_ == Place::shape ? entries_.back().info.shape : entries_.back().offsets;
    if (place_ == Place::offsets && values.size() == 2) return refuse(name() + " has more than two data_offsets");
    values.push_back(static_cast<std::int64_t>(value));
    return true;
  }
  bool string(string_t& value) {
    if (place_ == Place::metadata) {
      text_->second = std::move(value);
      return true;
    }
    if (place_ != Place::tensor || field_ != kDtype) return unexpected("a text");
    entries_.back().info.dtype = std::move(value);
    return true;
  }
  bool binary(binary_t&) { return unexpected("binary data"); }

  bool start_object(std::size_t) {
    if (place_ == Place::start) {
      place_ = Place::header;
      return true;
    }
    if (place_ != Place::header) return unexpected("an object");
    place_ = in_metadata_ ? Place::metadata : Place::tensor;
    fields_ = 0;
    return true;
  }
  bool key(string_t& value) {
    switch (place_) {
      case Place::header:
        in_metadata_ = value == kMetadata;
        if (!in_metadata_) {
          entries_.emplace_back().info.name = std::move(value);
          return true;
        }
        return std::exchange(metadata_seen_, true) ? refuse("its header has '__metadata__' twice") : true;
      case Place::metadata: {
        const auto [text, is_new] = metadata_.try_emplace(value);
        text_ = text;
        return is_new ? true : refuse("'__metadata__' has " + in_quotes(value) + " twice");
      }
      default:
        field_ = value == "dtype" ? kDtype : value == "shape" ? kShape : value == "data_offsets" ? kOffsets : 0;
        if (field_ == 0) return refuse(name() + " has the unknown key " + in_quotes(value));
        if ((fields_ & field_) != 0) return refuse(name() + " has the key " + in_quotes(value) + " twice");
        fields_ |= field_;
        return true;
    }
  }
  bool end_object() {
    if (place_ == Place::tensor) {
      if ((fields_ & kDtype) == 0) return refuse(name() + " has no dtype");
      if ((fields_ & kShape) == 0) return refuse(name() + " has no shape");
      if (entries_.back().offsets.size() != 2) return refuse(name() + " lacks its two data_offsets");
    }
    place_ = place_ == Place::header ? Place::end : Place::header;
    return true;
  }
  bool start_array(std::size_t) {
    if (place_ != Place::tensor || field_ == kDtype) return unexpected("a list");
    place_ = field_ == kShape ? Place::shape : Place::offsets;
    return true;
  }
  bool end_array() {
    place_ = Place::tensor;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    return refuse("its header is not JSON from character " + std::to_string(position) + " on");
  }

 private:
  enum class Place { start, header, metadata, tensor, shape, offsets, end };
  static constexpr unsigned kDtype = 1, kShape = 2, kOffsets = 4;

  bool refuse(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }
  bool unexpected(const std::string& what) {
    switch (place_) {
      case Place::start:
      case Place::end:
        return refuse("its header is not a JSON object");
      case Place::header:
        return refuse(in_metadata_ ? "'__metadata__' is " + what + " instead of an object"
                                   : name() + " is " + what + " instead of an object");
      case Place::metadata:
        return refuse("'__metadata__' holds " + what + " where only texts may be");
      default:
        return refuse(name() + " has " + what + " in its " +
                      (field_ == kDtype   ? "dtype, which is a text"
                       : field_ == kShape ? "shape, a list of whole numbers from 0 on"
                                          : "data_offsets, two whole numbers from 0 on"));
    }
  }
  std::string name() const { return in_quotes(entries_.back().info.name); }

  std::vector<Entry> entries_;
  SafeTensorsMetadata metadata_;
  SafeTensorsMetadata::iterator text_;  // of the last key
  std::string problem_;
  Place place_ = Place::start;
  unsigned field_ = 0;   // of the tensor being read, by the last key
  unsigned fields_ = 0;  // those it has had
  bool in_metadata_ = false;
  bool metadata_seen_ = false;
};

/// Reads the header's text; sets `data` to where the tensors begin.
std::string header_text(const ByteSource& file, std::uint64_t& data) {
  unsigned char start[9] = {};
  file.read(0, start, std::min<std::uint64_t>(file.size(), sizeof start));
  if (start[0] == 'P' && start[1] == 'K' && start[2] == 3 && start[3] == 4)
    file.refuse(
        "is a zip archive, perhaps of torch.save, not a safetensors file; "
        "save it with safetensors.torch.save_file(model.state_dict(), ...)");
  if (file.size() < 8) file.refuse("is truncated in its first 8 bytes; copy or write it again");
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | start[i];
  if (length == 0 || (file.size() > 8 && start[8] != '{'))
    file.refuse(
        "is not a safetensors file (its header does not begin with '{'); "
        "save the tensors with safetensors.torch.save_file(model.state_dict(), ...)");
  if (length > kLargestHeader)
    file.refuse("has a header of " + std::to_string(length) + " bytes, at most " + std::to_string(kLargestHeader) +
                " are read; check that it is a safetensors file");
  if (length > file.size() - 8)
    file.refuse("is truncated: its header takes " + std::to_string(length) + " bytes, and " +
                std::to_string(file.size() - 8) + " follow its first 8; copy or write it again");
  std::string header(static_cast<std::size_t>(length), '\0');
  file.read(8, header.data(), header.size());
  data = 8 + length;
  return header;
}

/// Whether the tensors fill the data from its beginning to its end, each byte once.
void check_layout(const ByteSource& file, std::vector<Entry>& entries, std::uint64_t data_size) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });
  std::uint64_t filled = 0;
  for (const Entry& entry : entries) {
    const std::string name = in_quotes(entry.info.name);
    const auto begin = static_cast<std::uint64_t>(entry.offsets[0]), end = static_cast<std::uint64_t>(entry.offsets[1]);
    const std::string range = "[" + std::to_string(begin) + ", " + std::to_string(end) + "]";
    if (begin > end)
      file.refuse(name + " has the data_offsets " + range + ", which end before they begin" + kWriteAgain);
    if (end > data_size)
      file.refuse("is truncated or damaged: " + name + " has the data_offsets " + range + ", and " +
                  std::to_string(data_size) + " bytes follow the header; copy or write it again");
    if (begin != filled)
      file.refuse(name + " begins at byte " + std::to_string(begin) +
                  " of the data, and what precedes it ends at byte " + std::to_string(filled) + ": tensors may not " +
                  (begin < filled ? "overlap" : "leave gaps") + kWriteAgain);
    filled = end;
  }
  if (filled != data_size)
    file.refuse("has " + std::to_string(data_size - filled) + " bytes after its last tensor" + kWriteAgain);
}

void check_size(const ByteSource& file, const Entry& entry) {
  const SafeTensorInfo& info = entry.info;
  const std::uint64_t element = dtype_size(info.dtype);
  if (element == 0)
    file.refuse(in_quotes(info.name) + " has the unknown dtype " + in_quotes(info.dtype) +
                "; save it as F32, with .float()");
  const auto size = tensor_size(info.shape, element);
  const auto found = static_cast<std::uint64_t>(entry.offsets[1] - entry.offsets[0]);
  if (!size || *size != found)
    file.refuse(in_quotes(info.name) + " with shape " + shape_text(info.shape) + " and dtype " + info.dtype +
                " takes " + (size ? std::to_string(*size) + " bytes" : "more bytes than any file has") +
                ", its data_offsets span " + std::to_string(found) + kWriteAgain);
}

}  // namespace

SafeTensorsFile::SafeTensorsFile(const std::string& path, std::uint64_t most_bytes)
    : file_(std::make_unique<const InputFile>(path, most_bytes)), source_(*file_) {
  read_header();
}

SafeTensorsFile::SafeTensorsFile(const ByteSource& source) : source_(source) { read_header(); }

void SafeTensorsFile::read_header() {
  std::uint64_t data = 0;
  const std::string header = header_text(source_, data);
  // The JSON parser takes a NUL for the end of its input and would not see what follows.
  if (const auto nul = header.find('\0'); nul != std::string::npos)
    refuse("its header is not JSON from character " + std::to_string(nul + 1) + " on" + kWriteAgain);
  HeaderHandler handler;
  if (!nlohmann::json::sax_parse(header, &handler)) refuse(handler.problem() + kWriteAgain);

  std::vector<Entry>& entries = handler.entries();
  check_layout(source_, entries, source_.size() - data);
  for (const Entry& entry : entries) check_size(source_, entry);
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.info.name < b.info.name; });
  for (std::size_t i = 1; i < entries.size(); ++i)
    if (entries[i].info.name == entries[i - 1].info.name)
      refuse("its header has " + in_quotes(entries[i].info.name) + " twice" + kWriteAgain);
  tensors_.reserve(entries.size());
  for (Entry& entry : entries) {
    entry.info.offset = data + static_cast<std::uint64_t>(entry.offsets[0]);
    entry.info.bytes = static_cast<std::uint64_t>(entry.offsets[1] - entry.offsets[0]);
    tensors_.push_back(std::move(entry.info));
  }
  metadata_ = std::move(handler.metadata());
  const std::size_t digits = checksum_digits(header);
  if (digits != header.npos) checksum_at_ = 8 + digits;
}

void SafeTensorsFile::check_checksum() const {
  const auto said = metadata_.find(kChecksumKey);
  if (said == metadata_.end() || checksum_at_ == 0)
    refuse("is damaged: it is a checkpoint without its checksum; use another copy, or the checkpoint before it");
  Checksum checksum;
  std::vector<char> piece(static_cast<std::size_t>(std::min<std::uint64_t>(source_.size(), 1 << 20)));
  for (std::uint64_t first = 0; first < source_.size(); first += piece.size()) {
    piece.resize(static_cast<std::size_t>(std::min<std::uint64_t>(source_.size() - first, piece.size())));
    source_.read(first, piece.data(), piece.size());
    for (std::uint64_t i = 0; i < kNoChecksum.size(); ++i)
      if (checksum_at_ + i >= first && checksum_at_ + i < first + piece.size())
        piece[static_cast<std::size_t>(checksum_at_ + i - first)] = '0';
    checksum.add(piece.data(), piece.size());
  }
  if (const std::string found = checksum_text(checksum.value()); found != said->second)
    refuse("is damaged: its bytes have the checksum " + found + ", and it says " + in_quotes(said->second) +
           "; use another copy, or the checkpoint before it");
}

std::vector<std::byte> SafeTensorsFile::read(const SafeTensorInfo& tensor) const {
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes));
  source_.read(tensor.offset, bytes.data(), bytes.size());
  return bytes;
}

std::vector<SafeTensor> read_safetensors(const std::string& path) {
  const SafeTensorsFile file(path);
  std::vector<SafeTensor> tensors;
  for (const SafeTensorInfo& info : file.tensors())
    tensors.push_back({info.name, info.dtype, info.shape, file.read(info)});
  return tensors;
}

void write_safetensors(OutputFile& file, std::span<const SafeTensor> tensors, const SafeTensorsMetadata& metadata) {
  const auto refuse = [&](const std::string& problem) {
    throw InvalidArgument(printable(file.path()) + ": " + problem);
  };
  const auto quoted = [&](const std::string& text, const char* remedy) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      throw InvalidArgument(printable(file.path()) + ": " + in_quotes(text) + " is not UTF-8; " + remedy);
    }
  };
  std::string header = R"({"__metadata__":{)";
  for (const auto& [key, text] : metadata)
    header += (header.back() == '{' ? "" : ",") + quoted(key, "give the metadata another key") + ":" +
              quoted(key == kChecksumKey ? std::string(kNoChecksum) : text, "give the metadata another text");
  header += "}";
  std::set<std::string_view> names;
  std::uint64_t offset = 0;
  for (const SafeTensor& tensor : tensors) {
    if (tensor.name == kMetadata) refuse("a tensor may not be called '__metadata__'; give it another name");
    if (!names.insert(tensor.name).second)
      refuse("two tensors are called " + in_quotes(tensor.name) + "; give them different names");
    const bool negative = std::any_of(tensor.shape.begin(), tensor.shape.end(), [](auto size) { return size < 0; });
    const std::uint64_t element = dtype_size(tensor.dtype);
    if (element == 0)
      refuse(in_quotes(tensor.name) + " has the unknown dtype " + in_quotes(tensor.dtype) +
             "; use one such as F32 or F64");
    if (negative || tensor_size(tensor.shape, element) != tensor.bytes.size())
      refuse(in_quotes(tensor.name) + " with shape " + shape_text(tensor.shape) + " and dtype " + tensor.dtype +
             " has " + std::to_string(tensor.bytes.size()) + " bytes; give it as many as its shape takes");
    header +=
        "," + quoted(tensor.name, "give the tensor another name") + R"(:{"dtype":")" + tensor.dtype + R"(","shape":[)";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i)
      header += (i == 0 ? "" : ",") + std::to_string(tensor.shape[i]);
    const std::uint64_t end = offset + tensor.bytes.size();
    header += R"(],"data_offsets":[)" + std::to_string(offset) + "," + std::to_string(end) + "]}";
    offset = end;
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  if (header.size() > kLargestHeader)
    refuse("the header takes " + std::to_string(header.size()) + " bytes, at most " + std::to_string(kLargestHeader) +
           " are allowed; write fewer tensors or less metadata to a file");
  std::string length;
  for (int i = 0; i < 8; ++i) length += static_cast<char>(header.size() >> (8 * i) & 0xff);
  if (metadata.contains(kChecksumKey)) {
    Checksum checksum;
    checksum.add(length.data(), length.size());
    checksum.add(header.data(), header.size());
    for (const SafeTensor& tensor : tensors) checksum.add(tensor.bytes.data(), tensor.bytes.size());
    header.replace(checksum_digits(header), kNoChecksum.size(), checksum_text(checksum.value()));
  }
  file.write(length + header);
  for (const SafeTensor& tensor : tensors) file.write(tensor.bytes.data(), tensor.bytes.size());
}

}  // namespace deviceloop
