#include "json_text.h"

#include <nlohmann/json.hpp>

namespace deviceloop {
namespace {

template <class Value>
std::string dumped(Value value) {
  using Json = nlohmann::json;
  return Json(value).dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

std::string json_text(bool value) { return dumped(value); }
std::string json_text(std::int64_t value) { return dumped(value); }
std::string json_text(std::uint64_t value) { return dumped(value); }
std::string json_text(double value) { return dumped(value); }
std::string json_text(std::string_view value) { return dumped(value); }

void JsonMembers::append(const std::string& member) {
  if (!members_.empty()) members_ += ',';
  if (layout_ == JsonLayout::one_line) {
    members_ += member;
    return;
  }
  members_ += "\n  ";
  for (const char character : member) {  // a line break is never part of a value
    members_ += character;
    if (character == '\n') members_ += "  ";
  }
}

std::string JsonMembers::text() const {
  const bool has_lines = layout_ == JsonLayout::lines && !members_.empty();
  return open_ + members_ + (has_lines ? "\n" : "") + close_;
}

}  // namespace deviceloop
