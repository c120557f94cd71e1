#include "csv.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "../text.h"
#include "reader.h"

namespace deviceloop {
namespace {

constexpr std::size_t kLongestLine = std::size_t{16} << 20;
constexpr std::size_t kBlock = std::size_t{1} << 18;

std::string_view without_spaces(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

std::string at_line(std::int64_t line) { return "line " + std::to_string(line); }
std::string at_column(std::int64_t line, std::size_t column) {
  return at_line(line) + ", column " + std::to_string(column + 1);
}
std::string columns_text(std::size_t columns) {
  return std::to_string(columns) + (columns == 1 ? " column" : " columns");
}

/// The lines of a file, one after the other, in a buffer that is no larger than the longest of them needs.
class Lines {
 public:
  explicit Lines(const ByteSource& file) : file_(file) {}

  /// The next line, without its end; nothing at the end of the file. Valid until the next call.
  std::optional<std::string_view> next() {
    std::size_t searched = 0;
    for (;;) {
      const std::string_view rest = std::string_view(buffer_).substr(begin_);
      const std::size_t end = rest.find('\n', searched);
      if ((end == std::string_view::npos ? rest.size() : end) > kLongestLine)
        file_.refuse(at_line(number_ + 1) + " is longer than " + bytes_text(kLongestLine) + "; is it a .csv file?");
      if (end != std::string_view::npos) return line(rest.substr(0, end), end + 1);
      if (read_ == file_.size()) {
        if (rest.empty()) return std::nullopt;
        return line(rest, rest.size());
      }
      searched = rest.size();
      buffer_.erase(0, begin_);
      begin_ = 0;
      const auto more = static_cast<std::size_t>(std::min<std::uint64_t>(kBlock, file_.size() - read_));
      buffer_.resize(searched + more);
      file_.read(read_, buffer_.data() + searched, more);
      read_ += more;
    }
  }
  /// Of the line that next() gave last, from 1.
  std::int64_t number() const { return number_; }

 private:
  std::string_view line(std::string_view text, std::size_t consumed) {
    ++number_;
    begin_ += consumed;
    if (text.ends_with('\r')) text.remove_suffix(1);
    if (number_ == 1 && text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
    return text;
  }

  const ByteSource& file_;
  std::string buffer_;
  std::size_t begin_ = 0;
  std::uint64_t read_ = 0;
  std::int64_t number_ = 0;
};

struct Field {
  std::string text;
  bool is_quoted = false;
};

/// The fields of the first line.
std::vector<Field> split_first_line(const ByteSource& file, std::string_view line) {
  std::vector<Field> fields;
  for (std::size_t at = 0;; ++at) {
    Field field;
    at = std::min(line.find_first_not_of(" \t", at), line.size());
    if (at < line.size() && line[at] == '"') {
      field.is_quoted = true;
      const std::string where = at_column(1, fields.size());
      for (++at;; ++at) {
        if (at == line.size()) file.refuse(where + ": a quotation mark is not closed on its line; close it");
        if (line[at] == '"' && line.substr(at, 2) != "\"\"") break;
        if (line[at] == '"') ++at;
        field.text += line[at];
      }
      at = std::min(line.find_first_not_of(" \t", at + 1), line.size());
      if (at < line.size() && line[at] != ',')
        file.refuse(where + ": text follows the closing quotation mark; write \"\" for one inside a name");
    } else {
      const std::size_t end = std::min(line.find(',', at), line.size());
      field.text = without_spaces(line.substr(at, end - at));
      at = end;
    }
    fields.push_back(std::move(field));
    if (at == line.size()) return fields;
  }
}

bool is_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error != std::errc::invalid_argument && end == text.data() + text.size();
}

bool is_header(const std::vector<Field>& fields) {
  return std::any_of(fields.begin(), fields.end(), [](const Field& field) {
    return field.is_quoted || (!field.text.empty() && !is_number(field.text));
  });
}

double parse_number(const ByteSource& file, std::string_view field, std::int64_t line, std::size_t column) {
  const std::string_view text = without_spaces(field);
  if (text.empty()) file.refuse(at_column(line, column) + " is empty; write a number there or drop the line");
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool is_whole = end == text.data() + text.size();
  if (error == std::errc::result_out_of_range && is_whole)
    file.refuse(at_column(line, column) + ": " + in_quotes(text) +
                " is outside the range of float64; write a number within it");
  if (error != std::errc() || !is_whole)
    file.refuse(at_column(line, column) + ": " + in_quotes(text) + " is not a number" +
                (text.find_first_of(";\t") != std::string_view::npos ? "; put commas between the fields"
                 : text.front() == '+'                               ? "; leave out the '+'"
                                                                     : "; write one there, such as -1.5e3"));
  return value;
}

/// Calls take(column, value) for each field of a line, which must have `columns` of them.
template <class Take>
void parse_row(const ByteSource& file, std::string_view line, std::int64_t number, std::size_t columns, Take take) {
  std::size_t column = 0, at = 0;
  for (;; ++column) {
    if (column == columns)
      file.refuse(at_line(number) + " has more than " + columns_text(columns) +
                  ", which is what line 1 has; give every line as many");
    const std::size_t end = std::min(line.find(',', at), line.size());
    take(column, parse_number(file, line.substr(at, end - at), number, column));
    if (end == line.size()) break;
    at = end + 1;
  }
  if (column + 1 != columns)
    file.refuse(at_line(number) + " has " + columns_text(column + 1) + ", line 1 has " + std::to_string(columns) +
                "; give every line as many");
}

/// For each column, its place among the targets, or -1 for an input.
using Split = std::vector<std::int64_t>;

Split all_inputs(const std::vector<Field>& first) { return Split(first.size(), -1); }

Split split_by_name(const ByteSource& file, const std::vector<Field>& header, std::string_view names) {
  Split split = all_inputs(header);
  std::int64_t targets = 0;
  for (std::size_t at = 0; at <= names.size(); ++targets) {
    const std::size_t end = std::min(names.find(',', at), names.size());
    const std::string_view name = without_spaces(names.substr(at, end - at));
    const auto is_named = [&](const Field& field) { return field.text == name; };
    const auto found = std::find_if(header.begin(), header.end(), is_named);
    if (found == header.end())
      file.refuse("has no column named " + in_quotes(name) + " in its first line; the targets are a number of columns" +
                  " or names from there");
    if (std::find_if(found + 1, header.end(), is_named) != header.end())
      file.refuse("has more than one column named " + in_quotes(name) + " in its first line; rename one");
    std::int64_t& place = split[static_cast<std::size_t>(found - header.begin())];
    if (place != -1) file.refuse("has one column named " + in_quotes(name) + ", but it is wanted twice; name it once");
    place = targets;
    at = end + 1;
  }
  return split;
}

Split split_columns(const ByteSource& file, const std::vector<Field>& first, const std::string& targets) {
  const auto columns = static_cast<std::int64_t>(first.size());
  Split split = all_inputs(first);
  const char* end = targets.data() + targets.size();
  std::int64_t count = 0;
  const auto parsed = std::from_chars(targets.data(), end, count);
  if (parsed.ptr == end && parsed.ec != std::errc::invalid_argument) {
    if (parsed.ec != std::errc() || count < 1 || count >= columns)
      file.refuse("has " + columns_text(first.size()) + ", so " + in_quotes(targets) +
                  " of them cannot be targets; take at least one, and leave at least one as an input");
    for (std::int64_t i = 0; i < count; ++i) split[static_cast<std::size_t>(columns - count + i)] = i;
    return split;
  }
  if (!is_header(first))
    file.refuse("has no names of columns in its first line, so its targets cannot be " + in_quotes(targets) +
                "; give the number of columns that are targets, the last ones");
  split = split_by_name(file, first, targets);
  if (std::find(split.begin(), split.end(), -1) == split.end())
    file.refuse("has no column left as an input; name fewer targets");
  return split;
}

template <class MakeSplit>
Samples read(const ByteSource& file, std::uint64_t most_bytes, MakeSplit make_split) {
  Lines lines(file);
  std::optional<std::string_view> line = lines.next();
  if (line && without_spaces(*line).empty()) file.refuse("line 1 is empty; begin with numbers or a header");
  const std::vector<Field> first = line ? split_first_line(file, *line) : std::vector<Field>();
  const Split split = make_split(first);
  const auto targets = static_cast<std::size_t>(
      std::count_if(split.begin(), split.end(), [](std::int64_t place) { return place >= 0; }));
  if (is_header(first)) line = lines.next();

  std::int64_t rows = 0, empty_line = 0;
  std::vector<double> x(split.size() - targets), y(targets);
  Samples samples;
  const auto append = [](std::vector<std::byte>& to, const std::vector<double>& values) {
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    to.insert(to.end(), bytes, bytes + values.size() * sizeof(double));
  };
  for (; line; line = lines.next()) {
    if (without_spaces(*line).empty()) {
      if (empty_line == 0) empty_line = lines.number();
      continue;
    }
    if (empty_line != 0) file.refuse(at_line(empty_line) + " is empty, and more lines follow; drop it");
    std::size_t input = 0;
    parse_row(file, *line, lines.number(), split.size(), [&](std::size_t column, double value) {
      const std::int64_t place = split[column];
      (place < 0 ? x[input++] : y[static_cast<std::size_t>(place)]) = value;
    });
    if (rows++ == 0) {
      // From the length of one row to that of all: a guess that saves copies. A number takes two bytes at least.
      const std::uint64_t guess = std::min(file.size() / (line->size() + 1) + 1, file.size() / 2 / split.size() + 1);
      const std::uint64_t bytes = guess * sizeof(double) * split.size();
      if (bytes <= most_bytes) {
        samples.x.bytes.reserve(guess * sizeof(double) * x.size());
        samples.y.bytes.reserve(guess * sizeof(double) * y.size());
      }
    }
    check_matrix_size(file, static_cast<std::uint64_t>(rows) * split.size(), ElementType::float64, most_bytes);
    append(samples.x.bytes, x);
    append(samples.y.bytes, y);
  }
  if (rows == 0) file.refuse("has no rows of numbers; give at least one");
  const auto finish = [&](HostMatrix& matrix, std::size_t columns) {
    matrix.type = ElementType::float64;
    matrix.rows = rows;
    matrix.columns = static_cast<std::int64_t>(columns);
  };
  finish(samples.x, x.size());
  finish(samples.y, y.size());
  return samples;
}

}  // namespace

DataMatrix read_csv(const ByteSource& file, const ReadOptions& options) {
  return read(file, options.most_bytes, all_inputs).x;
}

Samples read_csv_samples(const ByteSource& file, const ReadOptions& options) {
  if (options.targets.empty())
    file.refuse("does not say which of its columns are the targets; give --targets, their number or their names");
  return read(file, options.most_bytes,
              [&](const std::vector<Field>& first) { return split_columns(file, first, options.targets); });
}

}  // namespace deviceloop
