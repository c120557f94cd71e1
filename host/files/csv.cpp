#include "csv.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "../matrix_ops.h"
#include "../text.h"
#include "number.h"

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

constexpr char kReturnsAlone[] =
    "has line ends of a carriage return alone; end its lines with a newline, as tr '\\r' '\\n' does";

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
      const bool is_too_long = (end == std::string_view::npos ? rest.size() : end) > kLongestLine;
      if (is_too_long && rest.substr(0, kLongestLine).find('\r') != std::string_view::npos) file_.refuse(kReturnsAlone);
      if (is_too_long)
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

/// The fields of a line whose fields may be quoted. Calls refuse(column, problem), which does not return.
std::vector<Field> split_fields(std::string_view line,
                                const std::function<void(std::size_t, const std::string&)>& refuse) {
  std::vector<Field> fields;
  for (std::size_t at = 0;; ++at) {
    Field field;
    at = std::min(line.find_first_not_of(" \t", at), line.size());
    if (at < line.size() && line[at] == '"') {
      field.is_quoted = true;
      for (++at;; ++at) {
        if (at == line.size()) refuse(fields.size(), ": a quotation mark is not closed on its line; close it");
        if (line[at] == '"' && line.substr(at, 2) != "\"\"") break;
        if (line[at] == '"') ++at;
        field.text += line[at];
      }
      at = std::min(line.find_first_not_of(" \t", at + 1), line.size());
      if (at < line.size() && line[at] != ',')
        refuse(fields.size(), ": text follows the closing quotation mark; write \"\" for one inside a name");
    } else {
      const std::size_t end = std::min(line.find(',', at), line.size());
      field.text = without_spaces(line.substr(at, end - at));
      at = end;
    }
    fields.push_back(std::move(field));
    if (at == line.size()) return fields;
  }
}

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

/// What spreadsheets write for a result that is missing. A row may begin with it, although it begins with '#'.
bool is_spreadsheet_error(std::string_view text) {
  return is_one_of(text, {"#N/A", "#REF!", "#DIV/0!", "#VALUE!", "#NUM!", "#NAME?", "#NULL!"});
}

bool is_missing_value(std::string_view text) {
  return is_spreadsheet_error(text) ||
         is_one_of(text, {"NA", "N/A", "n/a", "<NA>", "NULL", "null", "None", "?", "-", "."});
}

bool is_comment(std::string_view line) {
  line = without_spaces(line);
  return line.starts_with('#') && !is_spreadsheet_error(without_spaces(line.substr(0, line.find(','))));
}

/// The separator, such as "semicolons", that `text` has between numbers in place of commas; null if it has none.
const char* separators_in(std::string_view text) {
  constexpr std::pair<char, const char*> kSeparators[] = {
      {';', "semicolons"}, {'\t', "tabs"}, {'|', "vertical bars"}, {' ', "spaces"}};
  for (const auto& [separator, name] : kSeparators) {
    std::size_t numbers = 0;
    bool is_all = true;
    for (std::size_t at = 0; at <= text.size() && is_all;) {
      const std::size_t end = std::min(text.find(separator, at), text.size());
      const std::string_view piece = without_spaces(text.substr(at, end - at));
      const bool is_number = parse_number(piece).kind != NumberKind::none;
      numbers += is_number;
      is_all = is_number || piece.empty() || is_missing_value(piece);
      at = end + 1;
    }
    if (is_all && numbers > 0 && text.find(separator) != std::string_view::npos) return name;
  }
  return nullptr;
}

[[noreturn]] void refuse_field(const ByteSource& file, std::string_view text, std::int64_t line, std::size_t column) {
  if (text.empty()) file.refuse(at_column(line, column) + " is empty; write a number there or drop the line");
  if (text.find('\r') != std::string_view::npos) file.refuse(kReturnsAlone);
  std::string problem = at_column(line, column) + ": " + in_quotes(text) + " is not a number";
  if (const char* separators = separators_in(text))
    problem += std::string(": it has ") + separators +
               " between its numbers; write commas between the fields, and points, not commas, in the numbers";
  else if (is_missing_value(text))
    problem += " but a missing value; write a number there or drop the line";
  else if (text.front() == '"')
    problem += "; leave out the quotation marks";
  else
    problem += "; write one there, such as -1.5e3";
  file.refuse(problem);
}

double number_in(const ByteSource& file, std::string_view field, std::int64_t line, std::size_t column) {
  const std::string_view text = without_spaces(field);
  const Number number = parse_number(text);
  if (number.kind == NumberKind::none) refuse_field(file, text, line, column);
  if (number.kind == NumberKind::too_large)
    file.refuse(at_column(line, column) + ": " + in_quotes(text) +
                " is outside the range of float64; write a number within it");
  return number.value;
}

/// How a file begins.
struct Beginning {
  std::vector<Field> names;             // of the columns; empty if there is no header
  std::int64_t header_line = 0;         // the line that has the names; 0: none
  std::optional<std::string_view> row;  // the first one, valid until the next line is read
  std::int64_t line = 0;                // the line that gives the number of columns
  std::size_t columns = 0;
};

std::vector<Field> split_header(const ByteSource& file, std::string_view text, std::int64_t line) {
  return split_fields(
      text, [&](std::size_t column, const std::string& problem) { file.refuse(at_column(line, column) + problem); });
}

/// Whether the fields are names of columns, and not a row. Refuses fields of which some are names and some numbers.
bool are_names(const ByteSource& file, const std::vector<Field>& fields, std::int64_t line) {
  std::optional<std::size_t> name, number;
  for (std::size_t column = 0; column < fields.size(); ++column) {
    const auto& [text, is_quoted] = fields[column];
    if (!is_quoted && parse_number(text).kind != NumberKind::none) {
      if (!number) number = column;
    } else if (is_quoted || !(text.empty() || is_missing_value(text))) {
      if (!is_quoted && text.find('\r') != std::string::npos) file.refuse(kReturnsAlone);
      if (!is_quoted && separators_in(text) != nullptr) refuse_field(file, text, line, column);
      if (!name) name = column;
    }
  }
  if (name && number)
    file.refuse(at_column(line, *name) + ": " + in_quotes(fields[*name].text) +
                (fields[*name].is_quoted ? " is a name, being in quotation marks" : " is not a number") + ", but " +
                in_quotes(fields[*number].text) + " in column " + std::to_string(*number + 1) +
                " is a number; correct the field if the line is a row, or give --header yes if it has the names of the "
                "columns");
  return name.has_value();
}

/// The names in a line with '#'; empty where it has none.
std::vector<Field> names_in_comment(const ByteSource& file, std::string_view text, std::int64_t line) {
  try {
    std::vector<Field> fields = split_header(file, text, line);
    if (are_names(file, fields, line)) return fields;
  } catch (const InvalidArgument&) {  // prose
  }
  return {};
}

std::string_view without_comment_sign(std::string_view line) {
  line = without_spaces(line);
  return line.substr(std::min(line.find_first_not_of("# \t"), line.size()));
}

Beginning read_beginning(const ByteSource& file, Lines& lines, TableHeader header) {
  Beginning beginning;
  std::optional<std::string_view> line = lines.next();
  if (line && (line->starts_with("\xff\xfe") || line->starts_with("\xfe\xff") || line->find('\0') != line->npos))
    file.refuse("is UTF-16, or not text; save it as UTF-8, as iconv -f UTF-16 -t UTF-8 does");
  if (header == TableHeader::yes && line) {
    beginning.header_line = lines.number();
    beginning.names = split_header(file, is_comment(*line) ? without_comment_sign(*line) : *line, lines.number());
    line = lines.next();
  }
  std::string comment;
  std::int64_t comment_line = 0;
  for (; line && is_comment(*line); line = lines.next()) {
    comment = without_comment_sign(*line);
    comment_line = lines.number();
  }
  if (!line) return beginning;
  if (without_spaces(*line).empty()) file.refuse(at_line(lines.number()) + " is empty; begin with numbers or a header");
  beginning.row = line;
  beginning.line = lines.number();
  if (header == TableHeader::yes) {
    beginning.line = beginning.header_line;
    beginning.columns = beginning.names.size();
    return beginning;
  }
  beginning.columns = static_cast<std::size_t>(std::count(line->begin(), line->end(), ',')) + 1;
  if (header == TableHeader::no) return beginning;
  std::vector<Field> fields = split_header(file, *line, lines.number());
  if (are_names(file, fields, lines.number())) {
    beginning.header_line = lines.number();
    beginning.names = std::move(fields);
    beginning.columns = beginning.names.size();
    beginning.row = lines.next();
  } else if (std::vector<Field> names = names_in_comment(file, comment, comment_line);
             names.size() == beginning.columns) {
    beginning.header_line = comment_line;
    beginning.names = std::move(names);
  }
  return beginning;
}

/// Calls take(column, value) for each field of a line, which must have as many as the beginning says.
template <class Take>
void parse_row(const ByteSource& file, std::string_view line, std::int64_t number, const Beginning& beginning,
               Take take) {
  const std::size_t columns = beginning.columns;
  std::size_t column = 0, at = 0;
  for (;; ++column) {
    if (column == columns)
      file.refuse(at_line(number) + " has more than " + columns_text(columns) + ", which is what " +
                  at_line(beginning.line) + " has; give every line as many");
    const std::size_t end = std::min(line.find(',', at), line.size());
    take(column, number_in(file, line.substr(at, end - at), number, column));
    if (end == line.size()) break;
    at = end + 1;
  }
  if (column + 1 != columns)
    file.refuse(at_line(number) + " has " + columns_text(column + 1) + ", " + at_line(beginning.line) + " has " +
                std::to_string(columns) + "; give every line as many");
}

/// For each column, its place among the targets, or -1 for an input.
using Split = std::vector<std::int64_t>;

Split all_inputs(const Beginning& beginning) { return Split(beginning.columns, -1); }

Split split_by_name(const ByteSource& file, const Beginning& beginning, std::string_view targets) {
  const std::vector<Field>& header = beginning.names;
  const std::string there = " in " + at_line(beginning.header_line);
  Split split = all_inputs(beginning);
  std::int64_t count = 0;
  const auto refuse = [&](std::size_t column, const std::string& problem) {
    file.refuse("its --targets " + in_quotes(targets) + ", name " + std::to_string(column + 1) + problem);
  };
  for (const Field& target : split_fields(targets, refuse)) {
    const std::string& name = target.text;
    const auto is_named = [&](const Field& field) { return field.text == name; };
    const auto found = std::find_if(header.begin(), header.end(), is_named);
    if (found == header.end())
      file.refuse("has no column named " + in_quotes(name) + there + "; the targets are a number of columns" +
                  " or names from there, in double quotes where they have a comma");
    if (std::find_if(found + 1, header.end(), is_named) != header.end())
      file.refuse("has more than one column named " + in_quotes(name) + there + "; rename one");
    std::int64_t& place = split[static_cast<std::size_t>(found - header.begin())];
    if (place != -1) file.refuse("has one column named " + in_quotes(name) + ", but it is wanted twice; name it once");
    place = count++;
  }
  return split;
}

Split split_columns(const ByteSource& file, const Beginning& beginning, const std::string& targets) {
  const auto columns = static_cast<std::int64_t>(beginning.columns);
  Split split = all_inputs(beginning);
  const char* end = targets.data() + targets.size();
  std::int64_t count = 0;
  const auto parsed = std::from_chars(targets.data(), end, count);
  if (parsed.ptr == end && parsed.ec != std::errc::invalid_argument) {
    if (parsed.ec != std::errc() || count < 1 || count >= columns)
      file.refuse("has " + columns_text(beginning.columns) + ", so " + in_quotes(targets) +
                  " of them cannot be targets; take at least one, and leave at least one as an input");
    for (std::int64_t i = 0; i < count; ++i) split[static_cast<std::size_t>(columns - count + i)] = i;
    return split;
  }
  if (beginning.names.empty())
    file.refuse("has no names of columns, so its targets cannot be " + in_quotes(targets) +
                "; give the number of columns that are targets, the last ones, or --header yes if line 1 has names");
  split = split_by_name(file, beginning, targets);
  if (std::find(split.begin(), split.end(), -1) == split.end())
    file.refuse("has no column left as an input; name fewer targets");
  return split;
}

/// Refuses a row with another separator, which would have too few columns for the targets.
void check_separators(const ByteSource& file, std::string_view row, std::int64_t line) {
  std::size_t column = 0;
  for (std::size_t at = 0; at <= row.size(); ++column) {
    const std::size_t end = std::min(row.find(',', at), row.size());
    const std::string_view text = without_spaces(row.substr(at, end - at));
    if (parse_number(text).kind == NumberKind::none && separators_in(text) != nullptr)
      refuse_field(file, text, line, column);
    at = end + 1;
  }
}

template <class MakeSplit>
Samples read(const ByteSource& file, const ReadOptions& options, MakeSplit make_split) {
  Lines lines(file);
  const Beginning beginning = read_beginning(file, lines, options.header);
  if (!beginning.row) file.refuse("has no rows of numbers; give at least one");
  check_separators(file, *beginning.row, lines.number());
  const Split split = make_split(beginning);
  const auto targets = static_cast<std::size_t>(
      std::count_if(split.begin(), split.end(), [](std::int64_t place) { return place >= 0; }));

  std::int64_t rows = 0, skipped_line = 0;
  const char* skipped = nullptr;
  std::vector<double> x(split.size() - targets), y(targets);
  Samples samples;
  const auto append = [](std::vector<std::byte>& to, const std::vector<double>& values) {
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    to.insert(to.end(), bytes, bytes + values.size() * sizeof(double));
  };
  for (std::optional<std::string_view> line = beginning.row; line; line = lines.next()) {
    const bool is_ignored = is_comment(*line);
    if (is_ignored && rows == 0) continue;
    if (is_ignored || without_spaces(*line).empty()) {
      if (skipped_line == 0) {
        skipped_line = lines.number();
        skipped = is_ignored ? " begins with '#'" : " is empty";
      }
      continue;
    }
    if (skipped_line != 0) file.refuse(at_line(skipped_line) + skipped + ", and more lines follow; drop it");
    std::size_t input = 0;
    parse_row(file, *line, lines.number(), beginning, [&](std::size_t column, double value) {
      const std::int64_t place = split[column];
      (place < 0 ? x[input++] : y[static_cast<std::size_t>(place)]) = value;
    });
    if (rows++ == 0) {
      // From the length of one row to that of all: a guess that saves copies. A number takes two bytes at least.
      const std::uint64_t guess = std::min(file.size() / (line->size() + 1) + 1, file.size() / 2 / split.size() + 1);
      const std::uint64_t bytes = guess * sizeof(double) * split.size();
      if (bytes <= options.most_bytes) {
        samples.x.bytes.reserve(guess * sizeof(double) * x.size());
        samples.y.bytes.reserve(guess * sizeof(double) * y.size());
      }
    }
    check_matrix_size(file, static_cast<std::uint64_t>(rows) * split.size(), ElementType::float64, options.most_bytes);
    append(samples.x.bytes, x);
    append(samples.y.bytes, y);
  }
  if (rows == 0) file.refuse("has no rows of numbers; give at least one");
  const auto finish = [&](DataMatrix& matrix, std::size_t columns) {
    matrix.type = ElementType::float64;
    matrix.rows = rows;
    matrix.columns = static_cast<std::int64_t>(columns);
    matrix.header_line = beginning.header_line;
  };
  finish(samples.x, x.size());
  finish(samples.y, y.size());
  return samples;
}

}  // namespace

DataMatrix read_csv(const ByteSource& file, const ReadOptions& options) { return read(file, options, all_inputs).x; }

Samples read_csv_samples(const ByteSource& file, const ReadOptions& options) {
  if (options.targets.empty())
    file.refuse("does not say which of its columns are the targets; give --targets, their number or their names");
  return read(file, options,
              [&](const Beginning& beginning) { return split_columns(file, beginning, options.targets); });
}

bool is_csv_name(std::string path) {
  std::transform(path.begin(), path.end(), path.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return path.ends_with(".csv");
}

namespace {

/// Writes `text` and then a line a row, the columns of all `matrices` beside each other.
void write_rows(OutputFile& file, std::string text, std::initializer_list<ConstMatrix> matrices) {
  const auto append = [&](ConstMatrix matrix, std::int64_t row) {
    with_type(matrix.type, [&]<class T>(T*) {
      const T* const values = static_cast<const T*>(matrix.data) + row * matrix.row_stride;
      for (std::int64_t column = 0; column < matrix.columns; ++column) {
        char digits[32];
        text.append(digits, std::to_chars(digits, digits + sizeof digits, values[column]).ptr) += ',';
      }
    });
  };
  for (std::int64_t row = 0; row < matrices.begin()->rows; ++row) {
    for (const ConstMatrix& matrix : matrices) append(matrix, row);
    text.back() = '\n';
    if (text.size() < kBlock) continue;
    file.write(text);
    text.clear();
  }
  file.write(text);
}

}  // namespace

void write_csv(OutputFile& file, ConstMatrix x, ConstMatrix y) {
  std::string names;
  for (std::int64_t column = 1; column <= x.columns; ++column) names += "x" + std::to_string(column) + ",";
  for (std::int64_t column = 1; column <= y.columns; ++column)
    names += (column > 1 ? ",y" : "y") + (y.columns > 1 ? std::to_string(column) : "");
  write_rows(file, names + "\n", {x, y});
}

void write_csv(OutputFile& file, ConstMatrix matrix) { write_rows(file, "", {matrix}); }

}  // namespace deviceloop
