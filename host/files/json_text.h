// JSON as text, without a tree of it: nlohmann's can be destroyed neither where memory is refused nor where it was
// while the tree was made, and ends the process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace deviceloop {

/// One value. A number that is not finite is null; bytes of a text that are not UTF-8 become U+FFFD.
/// @{
std::string json_text(bool value);
std::string json_text(std::int64_t value);
std::string json_text(std::uint64_t value);
std::string json_text(double value);
std::string json_text(std::string_view value);
inline std::string json_text(int value) { return json_text(std::int64_t{value}); }
inline std::string json_text(const char* value) { return json_text(std::string_view(value)); }
inline std::string json_text(const std::string& value) { return json_text(std::string_view(value)); }
/// @}

inline constexpr std::string_view kJsonNull = "null";

/// Null where there is none.
template <class Value>
std::string json_text(const std::optional<Value>& value) {
  return value ? json_text(*value) : std::string(kJsonNull);
}

/// On one line.
template <class Value>
std::string json_text(const std::vector<Value>& values) {
  std::string text;
  for (const Value& value : values) text += (text.empty() ? "" : ",") + json_text(value);
  return "[" + text + "]";
}

/// `lines`: a member a line, with those of objects and lists inside indented.
enum class JsonLayout { one_line, lines };

/// What has members: a list of values, or with keys an object.
/// @{
class JsonMembers {
 public:
  std::string text() const;

 protected:
  JsonMembers(JsonLayout layout, char open, char close) : layout_(layout), open_(open), close_(close) {}
  void append(const std::string& member);
  JsonLayout layout() const { return layout_; }

 private:
  JsonLayout layout_;
  char open_, close_;
  std::string members_;
};

inline std::string json_text(const JsonMembers& value) { return value.text(); }

class JsonList : public JsonMembers {
 public:
  explicit JsonList(JsonLayout layout) : JsonMembers(layout, '[', ']') {}
  template <class Value>
  void add(const Value& value) {
    append(json_text(value));
  }
};

class JsonObject : public JsonMembers {
 public:
  explicit JsonObject(JsonLayout layout) : JsonMembers(layout, '{', '}') {}
  template <class Value>
  void add(std::string_view key, const Value& value) {
    append(json_text(key) + (layout() == JsonLayout::lines ? ": " : ":") + json_text(value));
  }
};
/// @}

}  // namespace deviceloop
