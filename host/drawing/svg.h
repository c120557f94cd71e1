// The text of SVG pictures: elements, numbers, and the style that all pictures share. A picture has no fonts, scripts
// or references to elsewhere, and no background; its colours follow the reader's light or dark mode.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace deviceloop::drawing {

/// Fit for text and attribute values of SVG and HTML: markup is escaped, control characters and bytes that are not
/// UTF-8 are written as \xNN.
std::string escaped(std::string_view text);

/// A coordinate, which is finite, rounded to a tenth, and of one far outside of every picture a nearer one: "12.3",
/// "-4", "0". The last bits of a computation do not show, so that a picture has the same bytes on every machine.
std::string number(double value);

/// An estimate from above for common sans-serif fonts, since nothing here knows the reader's.
double text_width(std::string_view text, double font_size);

/// The lines of `text`, broken at spaces so that each is at most about `width` wide.
std::vector<std::string> wrapped(std::string_view text, double font_size, double width);

struct Attribute {
  Attribute(std::string_view its_name, std::string_view its_value) : name(its_name), value(escaped(its_value)) {}
  Attribute(std::string_view its_name, const char* its_value) : Attribute(its_name, std::string_view(its_value)) {}
  Attribute(std::string_view its_name, const std::string& its_value)
      : Attribute(its_name, std::string_view(its_value)) {}
  Attribute(std::string_view its_name, double coordinate) : name(its_name), value(number(coordinate)) {}
  std::string name;
  std::string value;  // escaped
};

/// `content` is markup; without it the element is closed at once. Followed by a line feed.
std::string element(std::string_view name, std::initializer_list<Attribute> attributes,
                    const std::string& content = "");

enum class Anchor { start, middle, end };

/// Text at its baseline. `classes`: see style(); empty: none.
std::string text(double x, double y, Anchor anchor, std::string_view classes, std::string_view content);
std::string line(double x1, double y1, double x2, double y2, std::string_view classes);

/// A picture stands alone in a file, with the style in it, or inside a page that has style() once.
enum class Placement { file, page };

struct Frame {
  double width = 0;  ///< of the view box, and the size at which the picture is shown where there is room
  double height = 0;
  std::string title;        ///< what the picture is, for those who do not see it; the pointer shows it too
  std::string description;  ///< what it shows
};

/// The whole picture; `body` is markup.
std::string picture(const Frame& frame, Placement placement, const std::string& body);

/// The rules for pictures, all of them under the class `drawing`.
std::string style();

/// How many colours of lines there are: the classes line1, line2, ... and fill1, fill2, ...
constexpr int kColours = 4;

/// Of a picture, unless it is told otherwise: its text is readable in columns of half that width too.
constexpr double kPictureWidth = 580;
/// The sizes of text of the style; small is for captions.
constexpr double kFontSize = 16, kSmallFontSize = 15, kHeadingSize = 18;
constexpr double kBold = 1.1;  ///< bold text is so much wider

}  // namespace deviceloop::drawing
