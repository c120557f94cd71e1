#include "csv.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "../matrix_ops.h"
#include "../suggestion.h"
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

/// The field of a line that begins at `at`; it may be quoted. Moves `at` to the comma behind it, or to the end of the
/// line. Calls refuse(problem), which does not return.
template <class Refuse>
Field take_field(std::string_view line, std::size_t& at, Refuse refuse) {
  Field field;
  at = std::min(line.find_first_not_of(" \t", at), line.size());
  if (at == line.size() || line[at] != '"') {
    const std::size_t end = std::min(line.find(',', at), line.size());
    field.text = without_spaces(line.substr(at, end - at));
    at = end;
    return field;
  }
  field.is_quoted = true;
  for (++at;; ++at) {
    if (at == line.size()) refuse(": a quotation mark is not closed on its line; close it");
    if (line[at] == '"' && line.substr(at, 2) != "\"\"") break;
    if (line[at] == '"') ++at;
    field.text += line[at];
  }
  at = std::min(line.find_first_not_of(" \t", at + 1), line.size());
  if (at < line.size() && line[at] != ',')
    refuse(": text follows the closing quotation mark; write \"\" for one inside the field");
  return field;
}

/// All fields of a line. Calls refuse(column, problem), which does not return.
template <class Refuse>
std::vector<Field> split_fields(std::string_view line, Refuse refuse) {
  std::vector<Field> fields;
  for (std::size_t at = 0;; ++at) {
    fields.push_back(take_field(line, at, [&](const char* problem) { refuse(fields.size(), problem); }));
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

/// How a file begins.
struct Beginning {
  std::vector<Field> names;             // of the columns; empty if there is no header
  std::int64_t header_line = 0;         // the line that has the names; 0: none
  std::optional<std::string_view> row;  // the first one, valid until the next line is read
  std::int64_t line = 0;                // the line that gives the number of columns
  std::size_t columns = 0;
};

/// "line 2, column 3 (city)"
std::string at_field(const Beginning& beginning, std::int64_t line, std::size_t column) {
  const bool has_name = column < beginning.names.size() && !beginning.names[column].text.empty();
  return at_column(line, column) + (has_name ? " (" + printable(beginning.names[column].text, 40) + ")" : "");
}

/// Whether a column has text rather than a number with a mistake in it: nobody begins a number with a letter.
bool is_text(std::string_view text) {
  const char first = text.front();
  return (first >= 'A' && first <= 'Z') || (first >= 'a' && first <= 'z') || (static_cast<unsigned char>(first) & 0x80);
}

/// `is_first`: in the first row, so that the whole column may be no numbers.
[[noreturn]] void refuse_field(const ByteSource& file, std::string_view text, const Beginning& beginning,
                               std::int64_t line, std::size_t column, bool is_first) {
  const std::string at = at_field(beginning, line, column);
  if (text.empty()) file.refuse(at + " is empty; write a number there or drop the line");
  if (text.find('\r') != std::string_view::npos) file.refuse(kReturnsAlone);
  std::string problem = at + ": " + in_quotes(text) + " is not a number";
  if (const char* separators = separators_in(text))
    problem += std::string(": it has ") + separators +
               " between its numbers; write commas between the fields, and points, not commas, in the numbers";
  else if (is_missing_value(text))
    problem += " but a missing value; write a number there or drop the line";
  else if (text.find(',') != std::string_view::npos)
    problem += "; write a point, not a comma, in it";
  else if (is_first && !beginning.names.empty() && is_text(text))
    problem += "; leave the column out, or write columns of 0 and 1 for its values";
  else
    problem += "; write one there, such as -1.5e3";
  file.refuse(problem);
}

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
      if (!is_quoted && separators_in(text) != nullptr) refuse_field(file, text, {}, line, column, true);
      if (!name) name = column;
    }
  }
  if (name && number)
    file.refuse(at_column(line, *name) + ": " + in_quotes(fields[*name].text) +
                (fields[*name].is_quoted ? " is a name, being in quotation marks" : " is not a number") + ", but " +
                in_quotes(fields[*number].text) + " in column " + std::to_string(*number + 1) + " is a number; " +
                (fields[*name].is_quoted ? "give --header no" : "correct the field") +
                " if the line is a row, or give --header yes if it has the names of the columns");
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

/// Refuses names that are quoted numbers above a row with quoted fields: they may be a row too.
void check_quoted_numbers(const ByteSource& file, const Beginning& beginning) {
  const auto is_number = [](const Field& field) { return parse_number(field.text).kind != NumberKind::none; };
  if (!beginning.row || beginning.row->find('"') == std::string_view::npos) return;
  if (!std::all_of(beginning.names.begin(), beginning.names.end(), is_number)) return;
  file.refuse(at_line(beginning.header_line) +
              " has numbers in quotation marks, as the line after it has; give --header no if it is a row, or --header "
              "yes if it has the names of the columns");
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
  std::vector<Field> fields = split_header(file, *line, lines.number());
  beginning.columns = fields.size();
  if (header == TableHeader::no) return beginning;
  if (are_names(file, fields, lines.number())) {
    beginning.header_line = lines.number();
    beginning.names = std::move(fields);
    beginning.row = lines.next();
    check_quoted_numbers(file, beginning);
  } else if (std::vector<Field> names = names_in_comment(file, comment, comment_line);
             names.size() == beginning.columns) {
    beginning.header_line = comment_line;
    beginning.names = std::move(names);
  }
  return beginning;
}

/// The places of columns in the file, from 0, in the order wanted. Those that are neither are left out.
struct Columns {
  std::vector<std::size_t> inputs;
  std::vector<std::size_t> targets;
};

/// Puts the number of each field of a line at the place in `row` that its column has in `places`, -1 for none. The line
/// must have as many fields as the beginning says.
void parse_row(const ByteSource& file, std::string_view line, std::int64_t number, const Beginning& beginning,
               bool is_first, const std::vector<std::int64_t>& places, std::vector<double>& row) {
  const std::size_t columns = beginning.columns;
  std::size_t column = 0, at = 0;
  Field quoted;
  for (;; ++column) {
    if (column == columns)
      file.refuse(at_line(number) + " has more than " + columns_text(columns) + ", which is what " +
                  at_line(beginning.line) + " has; give every line as many");
    std::size_t end = std::min(line.find(',', at), line.size());
    std::string_view text = without_spaces(line.substr(at, end - at));
    if (text.starts_with('"')) {
      quoted = take_field(line, end = at,
                          [&](const char* problem) { file.refuse(at_field(beginning, number, column) + problem); });
      text = without_spaces(quoted.text);
    }
    if (const std::int64_t place = places[column]; place >= 0) {
      const Number value = parse_number(text);
      if (value.kind == NumberKind::none) refuse_field(file, text, beginning, number, column, is_first);
      if (value.kind == NumberKind::too_large)
        file.refuse(at_field(beginning, number, column) + ": " + in_quotes(text) +
                    " is outside the range of float64; write a number within it");
      row[static_cast<std::size_t>(place)] = value.value;
    }
    if (end == line.size()) break;
    at = end + 1;
  }
  if (column + 1 != columns)
    file.refuse(at_line(number) + " has " + columns_text(column + 1) + ", " + at_line(beginning.line) + " has " +
                std::to_string(columns) + "; give every line as many");
}

Columns all_inputs(const Beginning& beginning) {
  Columns columns;
  columns.inputs.resize(beginning.columns);
  std::iota(columns.inputs.begin(), columns.inputs.end(), std::size_t{0});
  return columns;
}

/// Takes these columns out of the inputs.
Columns with_targets(const Beginning& beginning, std::vector<std::size_t> targets) {
  Columns columns = all_inputs(beginning);
  std::vector<bool> is_target(beginning.columns);
  for (const std::size_t column : targets) is_target[column] = true;
  std::erase_if(columns.inputs, [&](std::size_t column) { return is_target[column]; });
  columns.targets = std::move(targets);
  return columns;
}

/// "; line 1 names 'a', 'b' and 3 more (did you mean 'a'?)", of all columns.
std::string names_text(const Beginning& beginning, std::string_view wanted) {
  std::vector<std::string> names;
  for (const Field& field : beginning.names) names.push_back(printable(field.text));
  return "; " + at_line(beginning.header_line) + " names " + list_in_quotes(names) + suggestion(wanted, names);
}

std::vector<std::size_t> targets_by_name(const ByteSource& file, const Beginning& beginning, std::string_view targets) {
  const std::vector<Field>& header = beginning.names;
  std::vector<std::size_t> columns;
  const auto refuse = [&](std::size_t column, const char* problem) {
    file.refuse("its --targets " + in_quotes(targets) + ", name " + std::to_string(column + 1) + problem);
  };
  for (const Field& target : split_fields(targets, refuse)) {
    const std::string& name = target.text;
    const auto is_named = [&](const Field& field) { return field.text == name; };
    const auto found = std::find_if(header.begin(), header.end(), is_named);
    if (found == header.end())
      file.refuse(
          "has no column named " + in_quotes(name) + ", which --targets asks for" + names_text(beginning, name) +
          "; the targets are a number of columns or names from there, in double " + "quotes where they have a comma");
    if (std::find_if(found + 1, header.end(), is_named) != header.end())
      file.refuse("has more than one column named " + in_quotes(name) + " in " + at_line(beginning.header_line) +
                  "; rename one");
    const auto column = static_cast<std::size_t>(found - header.begin());
    if (std::find(columns.begin(), columns.end(), column) != columns.end())
      file.refuse("has one column named " + in_quotes(name) + ", but it is wanted twice; name it once");
    columns.push_back(column);
  }
  return columns;
}

Columns split_columns(const ByteSource& file, const Beginning& beginning, const std::string& targets) {
  const auto columns = static_cast<std::int64_t>(beginning.columns);
  const char* end = targets.data() + targets.size();
  std::int64_t count = 0;
  const auto parsed = std::from_chars(targets.data(), end, count);
  if (parsed.ptr == end && parsed.ec != std::errc::invalid_argument) {
    if (parsed.ec != std::errc() || count < 1 || count >= columns)
      file.refuse("has " + columns_text(beginning.columns) + ", so " + in_quotes(targets) +
                  " of them cannot be targets; take at least one, and leave at least one as an input");
    std::vector<std::size_t> last(static_cast<std::size_t>(count));
    std::iota(last.begin(), last.end(), static_cast<std::size_t>(columns - count));
    return with_targets(beginning, std::move(last));
  }
  if (beginning.names.empty())
    file.refuse("has no names of columns, so its targets cannot be " + in_quotes(targets) +
                "; give the number of columns that are targets, the last ones, or --header yes if line 1 has names");
  Columns split = with_targets(beginning, targets_by_name(file, beginning, targets));
  if (split.inputs.empty()) file.refuse("has no column left as an input; name fewer targets");
  return split;
}

/// As they are kept and compared: whatever a file has between its commas, they are text that can be written and shown.
std::vector<std::string> names_of(const Beginning& beginning, const std::vector<std::size_t>& columns) {
  std::vector<std::string> names;
  if (beginning.names.empty()) return names;
  for (const std::size_t column : columns) names.push_back(printable(beginning.names[column].text));
  return names;
}

/// The columns of these names, in their order. `what` they are wanted as, for messages.
std::vector<std::size_t> find_columns(const ByteSource& file, const Beginning& beginning,
                                      const std::vector<std::string>& wanted, const char* what) {
  constexpr std::size_t kTwice = static_cast<std::size_t>(-1);
  std::unordered_map<std::string, std::size_t> found;
  for (std::size_t column = 0; column < beginning.names.size(); ++column)
    if (const auto [at, is_new] = found.emplace(printable(beginning.names[column].text), column); !is_new)
      at->second = kTwice;
  std::vector<std::size_t> columns;
  std::vector<bool> is_taken(beginning.columns);
  for (const std::string& name : wanted) {
    const std::string quoted = in_quotes(name);
    const auto at = found.find(name);
    if (at == found.end())
      file.refuse("has no column named " + quoted + ", which is " + what + names_text(beginning, name) +
                  "; rename a column, or drop the names, and the columns are taken by their places");
    if (at->second == kTwice)
      file.refuse("has more than one column named " + quoted + " in " + at_line(beginning.header_line) + ", and " +
                  quoted + " is " + what + "; rename one");
    if (is_taken[at->second])
      file.refuse("has one column named " + quoted + ", but more than one of that name is " + what +
                  "; give it the columns and names of the data that were trained on");
    is_taken[at->second] = true;
    columns.push_back(at->second);
  }
  return columns;
}

/// Takes inputs and targets by the names that are wanted. A file that has them in that order is taken as it is: names
/// that occur twice do not matter then.
Columns take_names(const ByteSource& file, const Beginning& beginning, const ReadOptions& options, Columns columns) {
  if (beginning.names.empty() || options.inputs.empty()) return columns;
  const bool wants_targets = !columns.targets.empty() && !options.named_targets.empty();
  if (names_of(beginning, columns.inputs) == options.inputs &&
      (!wants_targets || names_of(beginning, columns.targets) == options.named_targets))
    return columns;
  if (wants_targets)
    columns.targets = find_columns(file, beginning, options.named_targets, "a target of the training data");
  columns.inputs = find_columns(file, beginning, options.inputs, "an input of the network");
  std::vector<bool> is_input(beginning.columns);
  for (const std::size_t column : columns.inputs) is_input[column] = true;
  for (const std::size_t target : columns.targets)
    if (is_input[target])
      file.refuse("has one column named " + in_quotes(printable(beginning.names[target].text)) +
                  ", which is an input of the network and one of --targets " + in_quotes(options.targets) +
                  "; give the names of other columns");
  return columns;
}

/// Refuses a row with another separator, which would have too few columns for the targets.
void check_separators(const ByteSource& file, const Beginning& beginning, std::int64_t line) {
  const std::string_view row = *beginning.row;
  std::size_t column = 0;
  for (std::size_t at = 0; at <= row.size(); ++column) {
    const std::size_t end = std::min(row.find(',', at), row.size());
    const std::string_view text = without_spaces(row.substr(at, end - at));
    if (parse_number(text).kind == NumberKind::none && separators_in(text) != nullptr)
      refuse_field(file, text, beginning, line, column, true);
    at = end + 1;
  }
}

template <class Choose>
Samples read(const ByteSource& file, const ReadOptions& options, Choose choose) {
  Lines lines(file);
  const Beginning beginning = read_beginning(file, lines, options.header);
  if (!beginning.row) file.refuse("has no rows of numbers; give at least one");
  // A column that is left out may have any text.
  if (beginning.columns == 1 || beginning.names.empty() || options.inputs.empty())
    check_separators(file, beginning, lines.number());
  const Columns columns = take_names(file, beginning, options, choose(beginning));
  const std::size_t inputs = columns.inputs.size(), targets = columns.targets.size(), taken = inputs + targets;
  std::vector<std::int64_t> places(beginning.columns, -1);
  std::int64_t place = 0;
  for (const std::vector<std::size_t>* const list : {&columns.inputs, &columns.targets})
    for (const std::size_t column : *list) places[column] = place++;

  std::int64_t rows = 0, skipped_line = 0;
  const char* skipped = nullptr;
  std::vector<double> row(taken);
  Samples samples;
  const auto append = [&](DataMatrix& to, std::size_t first, std::size_t count) {
    const auto* bytes = reinterpret_cast<const std::byte*>(row.data() + first);
    to.bytes.insert(to.bytes.end(), bytes, bytes + count * sizeof(double));
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
    parse_row(file, *line, lines.number(), beginning, rows == 0, places, row);
    if (rows++ == 0) {
      // From the length of one row to that of all: a guess that saves copies. A number takes two bytes at least.
      const std::uint64_t guess = std::min(file.size() / (line->size() + 1) + 1, file.size() / 2 / taken + 1);
      const std::uint64_t bytes = guess * sizeof(double) * taken;
      if (bytes <= options.most_bytes) {
        samples.x.bytes.reserve(guess * sizeof(double) * inputs);
        samples.y.bytes.reserve(guess * sizeof(double) * targets);
      }
    }
    check_matrix_size(file, static_cast<std::uint64_t>(rows) * taken, ElementType::float64, options.most_bytes);
    append(samples.x, 0, inputs);
    append(samples.y, inputs, targets);
  }
  if (rows == 0) file.refuse("has no rows of numbers; give at least one");
  const auto finish = [&](DataMatrix& matrix, const std::vector<std::size_t>& from) {
    matrix.type = ElementType::float64;
    matrix.rows = rows;
    matrix.columns = static_cast<std::int64_t>(from.size());
    matrix.header_line = beginning.header_line;
    matrix.column_names = names_of(beginning, from);
  };
  finish(samples.x, columns.inputs);
  finish(samples.y, columns.targets);
  std::vector<std::size_t> left_out;
  for (std::size_t column = 0; column < places.size(); ++column)
    if (places[column] < 0) left_out.push_back(column);
  samples.x.left_out = names_of(beginning, left_out);
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
