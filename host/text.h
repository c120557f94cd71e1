// Pieces of messages: text from outside (paths, names inside files) made fit for one line, shapes and sizes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <span>
#include <string>
#include <string_view>

namespace deviceloop {
namespace detail {

/// Bytes of the UTF-8 character that `text` begins with; 0 for none, and for the control characters U+0080 to U+009F.
inline std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if (byte(i) < 0x80 || byte(i) > 0xbf) return 0;
  const unsigned second = byte(1);
  const bool overlong = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
  const bool outside = (first == 0xed && second > 0x9f) || (first == 0xf4 && second > 0x8f);
  const bool control = first == 0xc2 && second < 0xa0;
  // U+2028 to U+202F: line separators and marks that turn the direction of what follows.
  const bool layout = first == 0xe2 && second == 0x80 && byte(2) >= 0xa8 && byte(2) <= 0xaf;
  return overlong || outside || control || layout ? 0 : length;
}

inline std::string joined(std::span<const std::int64_t> shape) {
  constexpr std::size_t kShown = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(shape.size(), kShown); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  if (shape.size() > kShown) text += ", ...";
  return text;
}

}  // namespace detail

/// `text` with control characters and bytes that are not UTF-8 written as \xNN, cut to about `limit` bytes.
inline std::string printable(std::string_view text, std::size_t limit = static_cast<std::size_t>(-1)) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string result;
  while (!text.empty()) {
    if (result.size() >= limit) return result + "...";
    const std::size_t length = detail::utf8_length(text);
    if (length > 0) {
      result += text.substr(0, length);
    } else {
      const auto byte = static_cast<unsigned char>(text[0]);
      result += {'\\', 'x', kDigits[byte / 16], kDigits[byte % 16]};
    }
    text.remove_prefix(std::max(length, std::size_t{1}));
  }
  return result;
}

/// A name from inside a file, quoted and of bounded length.
inline std::string in_quotes(std::string_view name) { return "'" + printable(name, 100) + "'"; }

/// "1000,100,1": the widths of a network as --layers takes them; cut where there are very many.
inline std::string widths_text(std::span<const std::int64_t> widths) {
  constexpr std::size_t kShown = 32;
  std::string text;
  for (std::size_t i = 0; i < std::min(widths.size(), kShown); ++i)
    text += (i == 0 ? "" : ",") + std::to_string(widths[i]);
  return widths.size() > kShown ? text + ",..." : text;
}

/// "17 bytes", "1.5 GiB".
inline std::string bytes_text(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

/// "1 step", "20 steps".
inline std::string counted(std::int64_t number, const std::string& what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

/// "[100, 1000]"; long shapes are cut.
inline std::string shape_text(std::span<const std::int64_t> shape) { return "[" + detail::joined(shape) + "]"; }

/// "(100, 1000)", "(100,)": as Python writes a tuple.
inline std::string tuple_text(std::span<const std::int64_t> shape) {
  return "(" + detail::joined(shape) + (shape.size() == 1 ? ",)" : ")");
}

}  // namespace deviceloop
