// JSON objects without other objects or lists in them: what a checkpoint's metadata are.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>

namespace deviceloop {

/// Whole numbers from 0 to 2^64 - 1 are uint64_t, all other numbers double.
using FlatValue = std::variant<bool, std::uint64_t, double, std::string>;
using FlatObject = std::map<std::string, FlatValue>;

/// Reads such an object. What is wrong with the text, for a message that begins with where it is from: "is not a JSON
/// object", "has the key 'a' twice"; empty: nothing.
std::string read_flat_json(const std::string& text, FlatObject& object);

}  // namespace deviceloop
