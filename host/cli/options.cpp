#include "options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include <deviceloop/error.h>

#include "suggestion.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

template <class T>
std::string range(T least, T most) {
  return "from " + std::to_string(least) + " to " + std::to_string(most);
}

class ShortHelp : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode) const override {
    const auto subcommands = app->get_subcommands({});
    std::string help = "Usage: " + name + (subcommands.empty() ? " [OPTIONS]" : " COMMAND [OPTIONS]") + " - " +
                       app->get_description() + "\n";
    if (!subcommands.empty()) help += "Commands (COMMAND --help tells more):\n";
    for (const CLI::App* subcommand : subcommands) help += line(subcommand->get_name(), subcommand->get_description());
    for (const std::string& group : app->get_groups()) {
      const bool general = group == "Options";  // --help and --version
      if (group.empty() || (general && subcommands.empty())) continue;
      help += group + ":\n";
      for (const CLI::Option* option : app->get_options()) {
        if (option->get_group() != group) continue;
        const std::string value = option->get_default_str();
        help += line(option->get_name(false, true) + (general ? "" : option->get_option_text()),
                     option->get_description() + (value.empty() ? "" : " (default " + value + ")"));
      }
    }
    const std::string example = app->get_footer();
    if (!example.empty()) help += "Example:\n  " + example + "\n";
    return help;
  }

 private:
  static std::string line(std::string left, std::string right) {
    constexpr std::size_t kColumn = 24;
    const std::size_t end = right.find('\n');
    if (end != std::string::npos) right.insert(end + 1, std::string(kColumn, ' '));
    left = "  " + left;
    left.resize(std::max(kColumn, left.size() + 1), ' ');
    return left + right + "\n";
  }
};

}  // namespace

void OptionSet::add(const std::string& name, const std::string& label, const std::string& default_text,
                    const std::string& description) {
  Entry entry;
  // If there are several values, check() throws.
  entry.option = app_.add_option(name, CLI::callback_t(), description)
                     ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
                     ->group(group_)
                     ->option_text(" " + label)
                     ->default_str(default_text);
  entry.text = default_text;
  entries_.emplace(name, std::move(entry));
  order_.push_back(name);
}

void OptionSet::add_flag(const std::string& name, const std::string& description) {
  Entry entry;
  const std::string text = description;  // a const one is taken for the description, any other for the result
  entry.option = app_.add_flag(name, text)->group(group_);
  entry.is_flag = true;
  entries_.emplace(name, std::move(entry));
  order_.push_back(name);
}

void OptionSet::check() const {
  const std::string see = "; see deviceloop " + app_.get_name() + " --help";
  std::vector<std::string> known;
  for (const auto& [name, entry] : entries_) known.push_back(name);
  bool any_value = false;
  // A value that is an option's name comes first: what follows it is then left over.
  for (const auto& [name, entry] : entries_) {
    if (entry.is_flag || entry.option->count() == 0) continue;
    any_value = true;
    const std::string& value = entry.option->results().front();
    if (value.rfind("--", 0) == 0)
      throw InvalidArgument(name + " needs a value, but " + in_quotes(value) + " follows" + see);
  }
  const std::vector<std::string> left = app_.remaining();
  if (!left.empty() && left.front().rfind('-', 0) == 0)
    throw InvalidArgument("unknown option " + in_quotes(left.front()) + suggestion(left.front(), known) + see);
  if (!left.empty())
    throw InvalidArgument("unexpected argument " + in_quotes(left.front()) +
                          (any_value ? "; put a value that has spaces in quotation marks, such as 'sale price'" : "") +
                          see);
  for (const auto& [name, entry] : entries_) {
    if (entry.option->count() > 1) throw InvalidArgument(name + " is given more than once; give it once");
    if (entry.is_flag && entry.option->count() == 1 && entry.option->results().front() != "true")
      throw InvalidArgument(name + " takes no value, but " + in_quotes(entry.option->results().front()) +
                            " was given; leave it out");
  }
}

const OptionSet::Entry& OptionSet::entry(const std::string& name) const { return entries_.at(name); }

void OptionSet::set(const std::string& name, std::string text) { entries_.at(name).set = std::move(text); }

void OptionSet::clear(const std::string& name) { entries_.at(name).is_cleared = true; }

bool OptionSet::given(const std::string& name) const {
  const Entry& named = entry(name);
  return !named.is_cleared && (named.set || named.option->count() > 0);
}

std::vector<Setting> OptionSet::settings() const {
  std::vector<Setting> settings;
  for (const std::string& name : order_) {
    const Entry& option = entry(name);
    std::string description = option.option->get_description();
    std::replace(description.begin(), description.end(), '\n', ' ');
    settings.push_back({option.option->get_group(), name, option.is_flag ? (given(name) ? "yes" : "no") : text(name),
                        std::move(description), given(name), option.is_flag});
  }
  return settings;
}

const std::string& OptionSet::text(const std::string& name) const {
  const Entry& named = entry(name);
  if (named.is_cleared) return named.text;
  if (named.set) return *named.set;
  return named.option->count() > 0 ? named.option->results().front() : named.text;
}

const std::string& OptionSet::file(const std::string& name) const {
  if (given(name) && text(name).empty()) refuse(name, "be the name of a file");
  return text(name);
}

std::int64_t OptionSet::integer(const std::string& name, std::int64_t least, std::int64_t most) const {
  const auto value = parse<std::int64_t>(text(name));
  if (!value || *value < least || *value > most) refuse(name, "be a whole number " + range(least, most));
  return *value;
}

std::uint64_t OptionSet::unsigned_integer(const std::string& name) const {
  const auto value = parse<std::uint64_t>(text(name));
  if (!value) refuse(name, "be a whole number " + range(std::uint64_t{0}, std::numeric_limits<std::uint64_t>::max()));
  return *value;
}

double OptionSet::number(const std::string& name, const std::string& must) const {
  const auto value = parse<double>(text(name));
  if (!value || !std::isfinite(*value) || *value < 0) refuse(name, must);
  return *value;
}

std::vector<std::int64_t> OptionSet::integers(const std::string& name, std::int64_t least, std::int64_t most) const {
  std::vector<std::int64_t> values;
  std::string_view left = text(name);
  for (bool more = true; more;) {
    const std::size_t comma = left.find(',');
    const auto value = parse<std::int64_t>(left.substr(0, comma));
    if (!value || *value < least || *value > most)
      refuse(name, "be whole numbers " + range(least, most) + " with commas between, such as " + entry(name).text);
    values.push_back(*value);
    more = comma != std::string_view::npos;
    if (more) left.remove_prefix(comma + 1);
  }
  return values;
}

void OptionSet::refuse(const std::string& name, const std::string& must) const {
  throw InvalidArgument(name + " must " + must + ", not " + in_quotes(text(name)));
}

void refuse_empty_values(const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments)
    if (argument.rfind("--", 0) == 0 && argument.find('=') == argument.size() - 1)
      throw InvalidArgument("nothing follows " + in_quotes(argument) + "; give it a value or leave it out");
}

void use_short_help(CLI::App& app) { app.formatter(std::make_shared<ShortHelp>()); }

}  // namespace deviceloop::cli
