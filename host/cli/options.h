// The options of a subcommand: declared to CLI11 as text and turned into values here, so that every message names the
// option, what was given and what is allowed.
#pragma once

#include <charconv>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace deviceloop::cli {

/// An option as a run has it.
struct Setting {
  std::string group;        ///< its heading in the help
  std::string name;         ///< "--lr"
  std::string value;        ///< what was given, else the default; of a flag "yes" or "no"
  std::string description;  ///< as in the help
  bool given = false;
  bool is_flag = false;
  std::string note{};  ///< where the value comes from, if it is neither given nor the default
};

class OptionSet {
 public:
  explicit OptionSet(CLI::App& app) : app_(app) {}

  /// Sets the heading, in the help, of the options that are added from here on.
  void group(std::string heading) { group_ = std::move(heading); }
  /// An option with a value; `label` stands for it in the help. An empty `default_text`: none. A long description may
  /// have two lines.
  void add(const std::string& name, const std::string& label, const std::string& default_text,
           const std::string& description);
  void add_flag(const std::string& name, const std::string& description);

  /// Throws InvalidArgument for an unknown option or argument, one given twice, one whose value is missing.
  void check() const;

  /// As if this option had been given with this value.
  void set(const std::string& name, std::string text);
  /// As if it had not been given.
  void clear(const std::string& name);

  bool given(const std::string& name) const;
  /// All options, in the order in which they were added.
  std::vector<Setting> settings() const;
  /// What was given, else the default.
  const std::string& text(const std::string& name) const;
  const std::string& default_text(const std::string& name) const { return entry(name).text; }
  /// A file's name; empty where the option was not given.
  const std::string& file(const std::string& name) const;
  std::int64_t integer(const std::string& name, std::int64_t least, std::int64_t most) const;
  std::uint64_t unsigned_integer(const std::string& name) const;
  /// A finite number of at least 0; `must` describes it in the message, as in refuse().
  double number(const std::string& name,
                const std::string& must = "be a finite number of at least 0, such as 1e-6") const;
  /// Integers with commas between them.
  std::vector<std::int64_t> integers(const std::string& name, std::int64_t least, std::int64_t most) const;

  /// "--steps must be a whole number, not 'x'": `must` is what stands between.
  [[noreturn]] void refuse(const std::string& name, const std::string& must) const;

 private:
  struct Entry {
    CLI::Option* option = nullptr;
    bool is_flag = false;
    std::string text;                // the default
    std::optional<std::string> set;  // in place of what was given
    bool is_cleared = false;
  };
  const Entry& entry(const std::string& name) const;

  CLI::App& app_;
  std::string group_;
  std::map<std::string, Entry> entries_;
  std::vector<std::string> order_;
};

/// The whole of `text` as a number; none for anything else, a sign of plus, white space and numbers out of range too.
template <class T>
std::optional<T> parse(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

template <class T>
struct Choice {
  const char* name;
  T value;
};

/// "normal, he or xavier": what messages and the help call the choices.
template <class T>
std::string choices_text(const std::vector<Choice<T>>& choices) {
  std::string text;
  for (const Choice<T>& choice : choices)
    text += (text.empty() ? "" : &choice == &choices.back() ? " or " : ", ") + std::string(choice.name);
  return text;
}

/// The choice that an option names.
template <class T>
T choose(const OptionSet& options, const std::string& name, const std::vector<Choice<T>>& choices) {
  for (const Choice<T>& choice : choices)
    if (options.text(name) == choice.name) return choice.value;
  options.refuse(name, "be " + choices_text(choices));
}

/// Refuses --option= with nothing behind it, for which CLI11 would take the next argument.
void refuse_empty_values(const std::vector<std::string>& arguments);

/// Lays out the help of `app` and its subcommands: under 80 columns, no blank lines.
void use_short_help(CLI::App& app);

}  // namespace deviceloop::cli
