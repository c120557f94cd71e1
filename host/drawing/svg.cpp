#include "drawing/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "text.h"

namespace deviceloop::drawing {
namespace {

constexpr double kFarOutside = 1e6;  // of every picture

/// In font sizes, as wide as in DejaVu Sans, the widest of the common fonts.
double character_width(char c) {
  if (std::string_view("iljtfrI.,:;'|!()[]/ ").find(c) != std::string_view::npos) return 0.4;
  if (std::string_view("mwMW@%").find(c) != std::string_view::npos) return 0.95;
  return c >= 'A' && c <= 'Z' ? 0.72 : 0.64;
}

const char* name(Anchor anchor) {
  switch (anchor) {
    case Anchor::start:
      break;
    case Anchor::middle:
      return "middle";
    case Anchor::end:
      return "end";
  }
  return "start";
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : printable(text)) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string number(double value) {
  const auto tenths = static_cast<std::int64_t>(std::floor(std::min(std::fabs(value), kFarOutside) * 10 + 0.5));
  std::string text = tenths != 0 && value < 0 ? "-" : "";
  text += std::to_string(tenths / 10);
  if (tenths % 10 != 0) text += "." + std::to_string(tenths % 10);
  return text;
}

double text_width(std::string_view text, double font_size) {
  double width = 0;
  for (const char c : text)
    if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) width += character_width(c);
  return width * font_size;
}

std::vector<std::string> wrapped(std::string_view text, double font_size, double width) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    const std::string word(text.substr(0, end));
    if (!lines.empty() && text_width(lines.back() + " " + word, font_size) <= width)
      lines.back() += " " + word;
    else
      lines.push_back(word);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

std::string element(std::string_view name, std::initializer_list<Attribute> attributes, const std::string& content) {
  std::string markup = "<" + std::string(name);
  for (const Attribute& attribute : attributes)
    if (!attribute.value.empty()) markup += " " + attribute.name + "=\"" + attribute.value + "\"";
  if (content.empty()) return markup + "/>\n";
  return markup + ">" + content + "</" + std::string(name) + ">\n";
}

std::string text(double x, double y, Anchor anchor, std::string_view classes, std::string_view content) {
  return element("text",
                 {{"x", x}, {"y", y}, {"class", classes}, {"text-anchor", anchor == Anchor::start ? "" : name(anchor)}},
                 escaped(content));
}

std::string line(double x1, double y1, double x2, double y2, std::string_view classes) {
  return element("line", {{"x1", x1}, {"y1", y1}, {"x2", x2}, {"y2", y2}, {"class", classes}});
}

std::string picture(const Frame& frame, Placement placement, const std::string& body) {
  std::string content = "\n" + element("title", {}, escaped(frame.title));
  if (!frame.description.empty()) content += element("desc", {}, escaped(frame.description));
  if (placement == Placement::file) content += "<style>\n" + style() + "</style>\n";
  return element("svg",
                 {{"xmlns", "http://www.w3.org/2000/svg"},
                  {"class", "drawing"},
                  {"role", "img"},
                  {"viewBox", "0 0 " + number(frame.width) + " " + number(frame.height)},
                  {"width", frame.width},
                  {"height", frame.height}},
                 content + body);
}

std::string style() {
  // Line colours after Okabe and Ito, who chose them for all kinds of colour vision; darker on light ground, so that
  // thin lines and text have contrast. Lines differ by their dashes too.
  return R"(.drawing {
  --ink: #1f2328; --muted: #57606a; --grid: #d8dee4; --edge: #8c959f; --node: #e7f0f7; --warning: #b3261e;
  --colour1: #0066a1; --colour2: #bf4b00; --colour3: #007a58; --colour4: #a03d83; --quiet: #a9b3bd;
  max-width: 100%; height: auto;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
}
@media (prefers-color-scheme: dark) {
  .drawing {
    --ink: #e6edf3; --muted: #9ea8b3; --grid: #343b44; --edge: #6e7781; --node: #14293b; --warning: #ff8a80;
    --colour1: #58b4ea; --colour2: #f0a020; --colour3: #2fc493; --colour4: #e39bcb; --quiet: #5c6671;
  }
}
.drawing text { fill: var(--ink); font-size: 16px; font-variant-numeric: tabular-nums; }
.drawing .muted { fill: var(--muted); }
.drawing .small { font-size: 15px; }
.drawing .heading { font-size: 18px; font-weight: 600; }
.drawing .strong { font-weight: 600; }
.drawing .warning { fill: var(--warning); }
.drawing .grid { stroke: var(--grid); stroke-width: 1; }
.drawing .axis { stroke: var(--edge); stroke-width: 1.2; }
.drawing .edge { stroke: var(--edge); stroke-width: 0.9; stroke-opacity: 0.55; }
.drawing .node { fill: var(--node); stroke: var(--colour1); stroke-width: 1.8; }
.drawing .dot { fill: var(--muted); }
.drawing .mark { stroke: var(--muted); stroke-width: 1.4; stroke-dasharray: 3 4; }
.drawing .bad-mark { stroke: var(--warning); stroke-width: 1.6; stroke-dasharray: 3 4; }
.drawing .line { fill: none; stroke-width: 2.4; stroke-linejoin: round; stroke-linecap: round; }
.drawing .line1 { stroke: var(--colour1); }
.drawing .line2 { stroke: var(--colour2); stroke-dasharray: 8 5; }
.drawing .line3 { stroke: var(--colour3); stroke-dasharray: 2 5; }
.drawing .line4 { stroke: var(--colour4); stroke-dasharray: 11 4 2 4; }
.drawing .fill1 { fill: var(--colour1); }
.drawing .fill2 { fill: var(--colour2); }
.drawing .fill3 { fill: var(--colour3); }
.drawing .fill4 { fill: var(--colour4); }
.drawing .fill-quiet { fill: var(--quiet); }
.drawing .hollow { stroke-width: 2.4; stroke-dasharray: none; fill: none; }
.drawing .strip { fill: transparent; }
.drawing .strip:hover { fill: var(--edge); fill-opacity: 0.25; }
)";
}

}  // namespace deviceloop::drawing
