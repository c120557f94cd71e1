#include "flat_json.h"

#include <cstddef>
#include <nlohmann/json.hpp>
#include <utility>

#include "../text.h"

namespace deviceloop {
namespace {

/// Takes the text piece by piece, so that no text, however deep, is ever held as a tree, and both occurrences of a
/// duplicate key are seen. Every member returns whether to go on; where it is false, problem() says why.
class FlatHandler {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  explicit FlatHandler(FlatObject& object) : object_(object) {}
  const std::string& problem() const { return problem_; }

  bool null() { return refuse_value("null"); }
  bool boolean(bool value) { return take(value); }
  bool number_unsigned(number_unsigned_t value) { return take(std::uint64_t{value}); }
  bool number_integer(number_integer_t value) { return take(static_cast<double>(value)); }
  bool number_float(number_float_t value, const string_t&) { return take(double{value}); }
  bool string(string_t& value) { return take(std::move(value)); }
  bool binary(binary_t&) { return refuse_value("binary data"); }
  bool start_object(std::size_t) { return std::exchange(in_object_, true) ? refuse_value("an object") : true; }
  bool key(string_t& value) {
    const auto [at, is_new] = object_.try_emplace(value);
    at_ = at;
    return is_new || refuse("has the key " + in_quotes(value) + " twice");
  }
  bool end_object() { return true; }
  bool start_array(std::size_t) { return refuse_value("a list"); }
  bool end_array() { return true; }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    return refuse("is not JSON from character " + std::to_string(position) + " on");
  }

 private:
  template <class Value>
  bool take(Value value) {
    if (!in_object_) return refuse("is not a JSON object");
    at_->second = std::move(value);
    return true;
  }
  bool refuse_value(const std::string& what) {
    return refuse(in_object_ ? "has " + what + " in its " + in_quotes(at_->first) : "is not a JSON object");
  }
  bool refuse(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  FlatObject& object_;
  FlatObject::iterator at_;  // of the last key
  std::string problem_;
  bool in_object_ = false;
};

}  // namespace

std::string read_flat_json(const std::string& text, FlatObject& object) {
  // The JSON parser takes a NUL for the end of its input and would not see what follows.
  if (const auto nul = text.find('\0'); nul != std::string::npos)
    return "is not JSON from character " + std::to_string(nul + 1) + " on";
  FlatHandler handler(object);
  return nlohmann::json::sax_parse(text, &handler) ? "" : handler.problem();
}

}  // namespace deviceloop
