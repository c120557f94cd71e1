#include "npy.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "../matrix_ops.h"
#include "../text.h"
#include "elements.h"
#include "read_file.h"
#include "reader.h"
#include "transpose.h"

namespace deviceloop {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are read and written as they lie in memory");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kLargestHeader = 65536;

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
};

/// The header of a .npy file is a Python dict display with exactly the keys descr, fortran_order and shape. This reads
/// those and nothing else of Python. It needs no recursion, so that no header is too deep.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const ByteSource& file) : text_(text), file_(file) {}

  Header parse() {
    Header header;
    bool descr = false, fortran_order = false, shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      bool& seen = key == "descr" ? descr : key == "fortran_order" ? fortran_order : shape;
      if (&seen == &shape && key != "shape") refuse("has the unknown key " + in_quotes(key));
      if (seen) refuse("has the key " + in_quotes(key) + " twice");
      seen = true;
      if (key == "descr")
        header.descr = element_type();
      else if (key == "fortran_order")
        header.fortran_order = boolean();
      else
        header.shape = tuple();
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (at_ != text_.size()) refuse("goes on after its closing brace");
    if (!descr || !fortran_order || !shape)
      refuse(std::string("lacks the key '") + (!descr ? "descr" : !fortran_order ? "fortran_order" : "shape") + "'");
    return header;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    file_.refuse("its header " + what + "; write the file again with numpy.save");
  }
  [[noreturn]] void refuse_here(const std::string& expected) const {
    refuse("is damaged at character " + std::to_string(at_) + ", where " + expected + " was expected");
  }

  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  bool accept(char wanted) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  bool accept(std::string_view wanted) {
    skip_space();
    if (text_.substr(at_, wanted.size()) != wanted) return false;
    at_ += wanted.size();
    return true;
  }
  void expect(char wanted) {
    if (!accept(wanted)) refuse_here(std::string("'") + wanted + "'");
  }

  std::string string() {
    const char quote = accept('"') ? '"' : '\'';
    if (quote == '\'' && !accept('\'')) refuse_here("a quoted name");
    const std::size_t begin = at_;
    while (at_ < text_.size() && text_[at_] != quote && text_[at_] != '\\' && text_[at_] != '\n') ++at_;
    if (at_ == text_.size() || text_[at_] != quote) refuse_here("the end of a quoted name");
    return std::string(text_.substr(begin, at_++ - begin));
  }

  std::string element_type() {
    skip_space();
    // A list of fields, [('name', '<f4'), ...], or a type with a shape of its own, ('<f4', (2,)).
    if (at_ < text_.size() && (text_[at_] == '[' || text_[at_] == '('))
      file_.refuse("holds records with named fields; save one field, x['name'].astype(numpy.float32)");
    return string();
  }

  bool boolean() {
    if (accept(std::string_view("True"))) return true;
    if (!accept(std::string_view("False"))) refuse_here("True or False");
    return false;
  }

  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> values;
    expect('(');
    while (!accept(')')) {
      values.push_back(integer());
      if (accept(',')) continue;
      if (values.size() == 1) refuse_here("','");  // (3) is a number in Python, not a tuple
      expect(')');
      break;
    }
    return values;
  }

  std::int64_t integer() {
    skip_space();
    const char* begin = text_.data() + at_;
    const char* end = text_.data() + text_.size();
    if (begin == end || *begin < '0' || *begin > '9') refuse_here("a number of elements");
    std::int64_t value = 0;
    const auto [stop, error] = std::from_chars(begin, end, value);
    if (error != std::errc()) refuse("has a number of elements that is too large");
    if (*begin == '0' && stop - begin > 1) refuse_here("a number without leading zeros");
    at_ += static_cast<std::size_t>(stop - begin);
    if (at_ < text_.size() && text_[at_] == 'L') ++at_;  // Python 2 wrote long integers that way
    return value;
  }

  std::string_view text_;
  const ByteSource& file_;
  std::size_t at_ = 0;
};

struct ElementFormat {
  const StoredType& type;
  ByteOrder order;
};

/// The type that a descr such as '<f4' means; empty for a type that is not read.
std::optional<ElementFormat> element_format(std::string_view descr) {
  constexpr std::pair<std::string_view, const char*> kTypes[] = {
      {"b1", "bool"},   {"i1", "int8"},   {"i2", "int16"},  {"i4", "int32"},   {"i8", "int64"},   {"u1", "uint8"},
      {"u2", "uint16"}, {"u4", "uint32"}, {"u8", "uint64"}, {"f2", "float16"}, {"f4", "float32"}, {"f8", "float64"}};
  if (descr.size() != 3) return std::nullopt;
  const bool is_byte = descr[2] == '1';  // has no order, which NumPy writes as '|'
  if (descr[0] != '<' && descr[0] != '>' && !(is_byte && descr[0] == '|')) return std::nullopt;
  for (const auto& [code, name] : kTypes)
    if (descr.substr(1) == code)
      return ElementFormat{*find_stored_type(name), descr[0] == '>' ? ByteOrder::big : ByteOrder::little};
  return std::nullopt;
}

/// Why files of this element type are not read.
std::string refusal(const std::string& descr) {
  const std::string shown = " (" + in_quotes(descr) + ")";
  std::string_view kind = descr;
  if (!kind.empty() && std::string_view("<>|=").find(kind[0]) != std::string_view::npos) kind.remove_prefix(1);
  const std::string unknown = "has the element type " + in_quotes(descr) +
                              ", which is not one that is read; save it with x.astype(numpy.float32)";
  if (kind.empty() || kind == "f4" || kind == "f8") return unknown;
  if (kind[0] == 'c')
    return "holds complex numbers" + shown + "; save the parts apart, such as x.real.astype(numpy.float32)";
  const char* what = nullptr;
  switch (kind[0]) {
    case 'O':
      what = "Python objects";
      break;
    case 'i':
    case 'u':
      what = "integers of an unknown kind";
      break;
    case 'b':
    case '?':
      what = "booleans of an unknown kind";
      break;
    case 'f':
      what = "floating-point numbers other than float16, float32 and float64";
      break;
    case 'S':
    case 'U':
    case 'a':
      what = "text";
      break;
    case 'M':
    case 'm':
      what = "dates or times";
      break;
    case 'V':
      what = "raw bytes";
      break;
    default:
      return unknown;
  }
  return std::string("holds ") + what + shown + "; save it with x.astype(numpy.float32)";
}

[[noreturn]] void refuse_truncated(const ByteSource& file, const std::string& where) {
  file.refuse("is truncated " + where + "; copy or write it again");
}

/// Reads what precedes the elements and sets `data` to where they begin.
Header read_header(const ByteSource& file, std::uint64_t& data) {
  unsigned char start[12] = {};
  file.read(0, start, std::min<std::uint64_t>(file.size(), sizeof start));
  const auto* text = reinterpret_cast<const char*>(start);
  const std::size_t known = std::min<std::uint64_t>(file.size(), kMagic.size());
  if (std::string_view(text, known) != kMagic.substr(0, known)) {
    if (std::string_view(text, 2) == "PK")
      file.refuse("is a zip archive, perhaps .npz, not an .npy file; save one array with numpy.save");
    file.refuse("is not an .npy file; save the array with numpy.save");
  }
  if (file.size() < kMagic.size() + 2) refuse_truncated(file, "in its first bytes");
  const int major = start[6], minor = start[7];
  if (major < 1 || major > 3 || minor != 0)
    file.refuse("has the .npy format version " + std::to_string(major) + "." + std::to_string(minor) +
                ", only 1.0, 2.0 and 3.0 are read; save it again with numpy.save");
  const std::size_t prefix = major == 1 ? 10 : 12;
  if (file.size() < prefix) refuse_truncated(file, "in its first bytes");
  std::uint32_t length = start[8] | static_cast<std::uint32_t>(start[9]) << 8;
  if (major > 1) length |= static_cast<std::uint32_t>(start[10]) << 16 | static_cast<std::uint32_t>(start[11]) << 24;
  if (length > kLargestHeader)
    file.refuse("has a header of " + std::to_string(length) + " bytes, at most " + std::to_string(kLargestHeader) +
                " are read; save it again with numpy.save, as a plain array");
  if (length > file.size() - prefix) refuse_truncated(file, "in its header");
  std::string header(length, '\0');
  file.read(prefix, header.data(), header.size());
  data = prefix + length;
  return HeaderParser(header, file).parse();
}

/// The file holds the columns one after the other.
template <class T>
void read_columns(const StoredElements& elements, HostMatrix& matrix) {
  // Blocks that stay in a cache near the core and are still long enough to be read efficiently.
  constexpr std::int64_t kRows = 4096, kColumns = 32;
  T* out = static_cast<T*>(matrix.view().data);
  std::vector<T> block(static_cast<std::size_t>(std::min(kRows, matrix.rows) * std::min(kColumns, matrix.columns)));
  for (std::int64_t row = 0; row < matrix.rows; row += kRows) {
    const std::int64_t rows = std::min(kRows, matrix.rows - row);
    for (std::int64_t column = 0; column < matrix.columns; column += kColumns) {
      const std::int64_t columns = std::min(kColumns, matrix.columns - column);
      for (std::int64_t i = 0; i < columns; ++i) {
        const auto element = static_cast<std::uint64_t>((column + i) * matrix.rows + row);
        elements.read(element, static_cast<std::size_t>(rows), block.data() + i * rows);
      }
      transpose(out + row * matrix.columns + column, matrix.columns, block.data(), rows, columns, rows);
    }
  }
}

}  // namespace

DataMatrix read_npy(const std::string& path, const ReadOptions& options) {
  return read_npy(InputFile(path, options.most_bytes), options);
}

DataMatrix read_npy(const ByteSource& file, const ReadOptions& options) {
  std::uint64_t data = 0;
  const Header header = read_header(file, data);
  const std::optional<ElementFormat> format = element_format(header.descr);
  if (!format) file.refuse(refusal(header.descr));

  const std::string shape = "the shape " + tuple_text(header.shape);
  if (header.shape.empty()) file.refuse("holds a single number, " + shape + "; save it with x.reshape(1, 1)");
  if (header.shape.size() > 2)
    file.refuse("has " + shape + ", only 1-D and 2-D arrays are read; save it with x.reshape(len(x), -1)");
  const std::int64_t rows = header.shape[0], columns = header.shape.size() == 2 ? header.shape[1] : 1;
  if (rows == 0 || columns == 0) file.refuse("is empty, it has " + shape + "; give at least one row and one column");

  const std::uint64_t found = file.size() - data;
  std::uint64_t count = 0, needed = 0;
  const bool overflow =
      __builtin_mul_overflow(static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns), &count) ||
      __builtin_mul_overflow(count, std::uint64_t{format->type.size}, &needed);
  if (overflow || needed > found)
    refuse_truncated(file, "or damaged: " + shape + " of " + in_quotes(header.descr) + " takes " +
                               (overflow ? "more bytes than any file has" : std::to_string(needed) + " bytes") +
                               ", and " + std::to_string(found) + " follow the header");
  if (needed < found)
    file.refuse("has " + std::to_string(found - needed) + " bytes after the array of " + shape +
                "; save one array in a file, with numpy.save");

  const bool by_columns = header.fortran_order && rows > 1 && columns > 1;
  // A source that is inflated would be inflated again for each block of columns.
  std::vector<std::byte> bytes;
  const ElementType type = element_type_for(format->type, options.integers);
  check_matrix_size(file, count, type, options.most_bytes);
  if (by_columns && file.is_sequential()) {
    check_matrix_size(file, count, type, options.most_bytes - std::min(options.most_bytes, needed));
    bytes.resize(static_cast<std::size_t>(needed));
    file.read(data, bytes.data(), bytes.size());
  }
  DataMatrix matrix(type, rows, columns);
  matrix.stored_type = format->type.name;
  const auto read_from = [&](const ByteSource& source, std::uint64_t begin) {
    const StoredElements elements{source, begin, format->type, format->order};
    with_type(type, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      if (by_columns)
        read_columns<T>(elements, matrix);
      else
        elements.read(0, count, static_cast<T*>(matrix.view().data));
    });
  };
  if (bytes.empty())
    read_from(file, data);
  else
    read_from(MemorySource(file.name(), bytes), 0);
  return matrix;
}

namespace {

/// What precedes the elements of an array of the type `descr`.
std::string start_of(const std::string& descr, std::int64_t rows, std::int64_t columns) {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (" + std::to_string(rows) + ", " +
                       std::to_string(columns) + "), }";
  // NumPy's own header: the elements begin at a multiple of 64 bytes, and the last character before them ends the line.
  const std::size_t prefix = kMagic.size() + 4;
  const std::size_t total = (prefix + header.size() + 1 + 63) / 64 * 64;
  header.append(total - prefix - header.size() - 1, ' ');
  header += '\n';
  std::string start(kMagic);
  start += {'\1', '\0', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  return start + header;
}

}  // namespace

void write_npy(OutputFile& file, ConstMatrix matrix) {
  check_host_view(matrix, printable(file.path()) + ": the matrix to write");
  write_npy([&](const void* data, std::size_t bytes) { file.write(data, bytes); }, matrix);
}

void write_npy(const std::function<void(const void*, std::size_t)>& write, ConstMatrix matrix) {
  const std::string start = start_of("<f" + std::to_string(size_of(matrix.type)), matrix.rows, matrix.columns);
  write(start.data(), start.size());

  if (matrix.rows == 0 || matrix.columns == 0) return;
  const std::size_t row_bytes = static_cast<std::size_t>(matrix.columns) * size_of(matrix.type);
  const auto* data = static_cast<const char*>(matrix.data);
  if (matrix.row_stride == matrix.columns || matrix.rows == 1) {
    write(data, row_bytes * static_cast<std::size_t>(matrix.rows));
    return;
  }
  // Several rows a write: rows of a few elements would cost a system call each.
  constexpr std::size_t kBuffer = 1 << 20;
  const auto rows_at_once = static_cast<std::int64_t>(std::max<std::size_t>(kBuffer / row_bytes, 1));
  std::string buffer;
  for (std::int64_t begin = 0; begin < matrix.rows; begin += rows_at_once) {
    buffer.clear();
    for (std::int64_t row = begin; row < std::min(begin + rows_at_once, matrix.rows); ++row)
      buffer.append(data + static_cast<std::size_t>(row * matrix.row_stride) * size_of(matrix.type), row_bytes);
    write(buffer.data(), buffer.size());
  }
}

void write_npy(OutputFile& file, const std::int64_t* values, std::int64_t rows, std::int64_t columns) {
  const std::string start = start_of("<i8", rows, columns);
  file.write(start.data(), start.size());
  file.write(values, static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) * sizeof(std::int64_t));
}

}  // namespace deviceloop
