#include "case.h"

#include <algorithm>
#include <charconv>
#include <regex>
#include <set>

namespace deviceloop::bench {
namespace {

[[noreturn]] void refuse(const Values& values, const std::string& axis, const std::string& takes) {
  throw UsageError("--axis " + axis + "=" + values.at(axis) + ": it takes " + takes);
}

std::optional<std::int64_t> read_number(const std::string& text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// Calls use(values) for each combination.
template <class Use>
void for_each_combination(const std::vector<Axis>& axes, std::size_t first, Values& values, const Use& use) {
  if (first == axes.size()) return use(values);
  for (const std::string& value : axes[first].values) {
    values[axes[first].name] = value;
    for_each_combination(axes, first + 1, values, use);
  }
}

const Axis* find_axis(const std::vector<Axis>& axes, const std::string& name) {
  const auto found = std::find_if(axes.begin(), axes.end(), [&](const Axis& axis) { return axis.name == name; });
  return found == axes.end() ? nullptr : &*found;
}

}  // namespace

const char* name(Device device) {
  switch (device) {
    case Device::cpu:
      return "cpu";
    case Device::cuda:
      break;
  }
  return "cuda";
}

Axis parse_axis(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
    throw UsageError("--axis " + text + ": give a name and values, such as n=1024,4096");
  Axis axis{text.substr(0, equals), split(text.substr(equals + 1), ',')};
  if (std::any_of(axis.values.begin(), axis.values.end(), [](const std::string& value) { return value.empty(); }))
    throw UsageError("--axis " + text + ": a value is empty");
  return axis;
}

std::vector<Case> make_cases(const std::vector<Block>& blocks, const AxisOptions& chosen) {
  std::set<std::string> known;
  for (const Block& block : blocks)
    for (const Axis& axis : block.axes) known.insert(axis.name);
  for (const Axis& axis : chosen)
    if (known.count(axis.name) == 0) {
      std::string names;
      for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
      throw UsageError("--axis " + axis.name + ": no such axis; there are " + names);
    }

  std::vector<Case> cases;
  std::set<std::string> names;
  for (const bool by_default : {true, false})
    for (const Block& block : blocks) {
      if (block.by_default != by_default) continue;
      if (!std::all_of(chosen.begin(), chosen.end(),
                       [&](const Axis& axis) { return find_axis(block.axes, axis.name) != nullptr; }))
        continue;
      std::vector<Axis> axes = block.axes;
      for (Axis& axis : axes)
        if (const Axis* given = find_axis(chosen, axis.name)) axis.values = given->values;
      Values values;
      for_each_combination(axes, 0, values, [&](const Values& combination) {
        std::optional<Case> made = block.make(combination);
        if (!made || !names.insert(made->name).second) return;
        made->values = combination;
        made->by_default = by_default;
        cases.push_back(std::move(*made));
      });
    }
  return cases;
}

std::vector<Case> select_cases(const std::vector<Case>& cases, const std::string& pattern) {
  std::vector<Case> selected;
  try {
    const std::regex wanted(pattern);
    for (const Case& each : cases)
      if (pattern.empty() ? each.by_default : std::regex_search(each.name, wanted)) selected.push_back(each);
  } catch (const std::regex_error&) {
    throw UsageError("--benchmark " + pattern + ": this is no regular expression");
  }
  return selected;
}

std::int64_t count_of(const Values& values, const std::string& axis) {
  const std::string& text = values.at(axis);
  const bool power = text.rfind("2^", 0) == 0;
  const auto number = read_number(power ? text.substr(2) : text);
  if (number && power && *number >= 0 && *number <= 40) return std::int64_t{1} << *number;
  if (!number || power || *number < 1 || *number > std::int64_t{1} << 40)
    refuse(values, axis, "numbers from 1 to 2^40, such as 1000 or 2^20");
  return *number;
}

Precision precision_of(const Values& values) {
  const std::string& text = values.at("precision");
  if (text != "fp32" && text != "fp64") refuse(values, "precision", "fp32 or fp64");
  return text == "fp32" ? Precision::fp32 : Precision::fp64;
}

std::vector<std::int64_t> widths_of(const Values& values) {
  std::vector<std::int64_t> widths;
  for (const std::string& part : split(values.at("layers"), '-')) {
    const auto number = read_number(part);
    if (!number || *number < 1) refuse(values, "layers", "widths, such as 1000-100-1");
    widths.push_back(*number);
  }
  if (widths.size() < 2) refuse(values, "layers", "at least two widths, such as 1000-100-1");
  return widths;
}

bool flag_of(const Values& values, const std::string& axis) {
  const std::string& text = values.at(axis);
  if (text != "yes" && text != "no") refuse(values, axis, "yes or no");
  return text == "yes";
}

std::vector<std::string> powers_of_two(int first, int last, int step) {
  std::vector<std::string> values;
  for (int power = first; power <= last; power += step) values.push_back(std::to_string(std::int64_t{1} << power));
  return values;
}

}  // namespace deviceloop::bench
