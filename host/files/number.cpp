#include "number.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <system_error>

namespace deviceloop {
namespace {

constexpr std::string_view kDigits = "0123456789", kHexDigits = "0123456789abcdefABCDEF";

bool is_one_of(char c, std::string_view set) { return set.find(c) != std::string_view::npos; }

/// Whether a number whose size is outside float64 is too small, rather than too large: by the power of its first digit.
bool is_small(std::string_view text, bool is_hex) {
  const std::string_view mantissa = text.substr(0, text.find_first_of(is_hex ? "pP" : "eE"));
  std::string_view exponent = text.substr(std::min(text.size(), mantissa.size() + 1));
  const auto point = static_cast<std::int64_t>(std::min(mantissa.find('.'), mantissa.size()));
  const auto first = static_cast<std::int64_t>(std::min(mantissa.find_first_not_of("0."), mantissa.size()));
  std::int64_t power = (point > first ? point - 1 - first : point - first) * (is_hex ? 4 : 1);
  if (exponent.starts_with('+')) exponent.remove_prefix(1);
  std::int64_t written = 0;
  const auto parsed = std::from_chars(exponent.data(), exponent.data() + exponent.size(), written);
  if (parsed.ec == std::errc::result_out_of_range) return exponent.starts_with('-');
  constexpr std::int64_t kMost = std::int64_t{1} << 60;
  return power + std::clamp(written, -kMost, kMost) < 0;
}

/// `text` has no sign.
Number parse_unsigned(std::string_view text, std::chars_format format) {
  Number number;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number.value, format);
  if (error == std::errc::invalid_argument || end != text.data() + text.size()) return {};
  if (error == std::errc::result_out_of_range)
    return {is_small(text, format == std::chars_format::hex) ? NumberKind::finite : NumberKind::too_large, 0};
  number.kind = std::isfinite(number.value) ? NumberKind::finite : NumberKind::special;
  return number;
}

/// What Fortran writes, as C would: 1.5D-3 and 1.5-103 as 1.5e-3 and 1.5e-103. Empty for anything else.
std::string without_fortran(std::string_view text) {
  const std::size_t end = std::min(text.find_first_not_of("0123456789."), text.size());
  std::string_view exponent = text.substr(end);
  if (end == 0 || exponent.empty()) return {};
  if (is_one_of(exponent[0], "dDqQ"))
    exponent.remove_prefix(1);
  else if (exponent.size() != 4 || !is_one_of(exponent[0], "+-") || text.substr(0, end).find('.') == text.npos)
    return {};  // 2020-01 is no number
  return std::string(text.substr(0, end)) + "e" + std::string(exponent);
}

Number parse_magnitude(std::string_view text) {
  if (text.empty() || is_one_of(text[0], "+-")) return {};
  if (text.starts_with("0x") || text.starts_with("0X")) {
    const std::string_view digits = text.substr(2);
    if (digits.empty() || !(is_one_of(digits[0], kHexDigits) || digits[0] == '.')) return {};  // 0x-1, 0xinf
    return parse_unsigned(digits, std::chars_format::hex);
  }
  const Number number = parse_unsigned(text, std::chars_format::general);
  if (number.kind != NumberKind::none || !(is_one_of(text[0], kDigits) || text[0] == '.')) return number;
  const std::string rewritten = without_fortran(text);
  return rewritten.empty() ? number : parse_unsigned(rewritten, std::chars_format::general);
}

}  // namespace

Number parse_number(std::string_view text) {
  const bool is_negative = text.starts_with('-');
  if (is_negative || text.starts_with('+')) text.remove_prefix(1);
  Number number = parse_magnitude(text);
  if (is_negative) number.value = -number.value;
  return number;
}

}  // namespace deviceloop
