// What the experiments report: a tree of named values, which becomes the JSON, lines of a table, figures of samples.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace probe {

__attribute__((format(printf, 1, 2))) inline std::string text(const char* format, ...) {
  std::va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, arguments);
  va_end(arguments);
  std::string out(static_cast<std::size_t>(std::max(length, 0)), '\0');
  if (length > 0) std::vsnprintf(out.data(), out.size() + 1, format, again);
  va_end(again);
  return out;
}

inline std::string quoted(const std::string& value) {
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\')
      out += std::string("\\") + c;
    else if (static_cast<unsigned char>(c) < 0x20)
      out += text("\\u%04x", c);
    else if (static_cast<unsigned char>(c) < 0x7f)
      out += c;
    else
      out += '?';  // messages are ASCII; anything else might not be valid UTF-8
  }
  return out + '"';
}

class Record {
 public:
  void set(const std::string& name, const std::string& value) { put(name, quoted(value)); }
  void set(const std::string& name, const char* value) { put(name, quoted(value)); }
  void set(const std::string& name, bool value) { put(name, value ? "true" : "false"); }
  // JSON has neither NaN nor infinity.
  void set(const std::string& name, double value) { put(name, std::isfinite(value) ? text("%.6g", value) : "null"); }
  template <class Integer>
  requires std::is_integral_v<Integer>
  void set(const std::string& name, Integer value) { put(name, std::to_string(value)); }
  void set(const std::string& name, Record value) {
    erase(name);
    members_.push_back({name, "", std::make_shared<Record>(std::move(value))});
  }

  // An object of plain values takes one line, any other one line a member.
  std::string json(int indent = 0) const {
    const bool flat = std::all_of(members_.begin(), members_.end(), [](const Member& m) { return !m.object; });
    const std::string inner(static_cast<std::size_t>(indent) + 2, ' ');
    std::string out = "{";
    for (std::size_t i = 0; i < members_.size(); ++i) {
      out += i == 0 ? "" : ",";
      out += flat ? (i == 0 ? "" : " ") : "\n" + inner;
      const Member& m = members_[i];
      out += quoted(m.name) + ": " + (m.object ? m.object->json(indent + 2) : m.leaf);
    }
    if (!flat) out += "\n" + std::string(static_cast<std::size_t>(indent), ' ');
    return out + "}";
  }

 private:
  struct Member {
    std::string name, leaf;
    std::shared_ptr<const Record> object;
  };
  void erase(const std::string& name) {
    std::erase_if(members_, [&](const Member& m) { return m.name == name; });
  }
  void put(const std::string& name, std::string leaf) {
    erase(name);
    members_.push_back({name, std::move(leaf), nullptr});
  }
  std::vector<Member> members_;
};

// A line of the printed table, under the experiment that is running.
__attribute__((format(printf, 1, 2))) inline void show(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::printf("  ");
  std::vprintf(format, arguments);
  std::printf("\n");
  std::fflush(stdout);
  va_end(arguments);
}

inline double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

inline double minimum(const std::vector<double>& values) {
  return values.empty() ? std::numeric_limits<double>::quiet_NaN() : *std::min_element(values.begin(), values.end());
}

// The figures of one quantity; `unit` ends the keys.
inline Record figures(const std::vector<double>& values, const std::string& unit) {
  Record out;
  out.set("median_" + unit, median(values));
  out.set("minimum_" + unit, minimum(values));
  out.set("samples", values.size());
  return out;
}

// The same with what a run of `amount` bytes or FLOP comes to: "gbps" or "tflops".
inline Record rate(const std::vector<double>& us, double amount, const char* unit) {
  // amount / us is per microsecond: bytes / us = MB/s, FLOP / us = MFLOP/s.
  const double scale = std::string(unit) == "tflops" ? 1e6 : 1e3;
  Record out = figures(us, "us");
  out.set(text("median_%s", unit), amount / median(us) / scale);
  out.set(text("maximum_%s", unit), amount / minimum(us) / scale);
  return out;
}

}  // namespace probe
