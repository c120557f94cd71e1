// Charts as SVG: lines over linear or logarithmic axes, and horizontal bars. A chart is a function of plain data; the
// same data give the same bytes on every machine.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "drawing/svg.h"

namespace deviceloop::drawing {

enum class Scale { linear, logarithmic };

/// Whether an axis has a place for it: finite numbers, on a logarithmic axis those above 0.
bool has_place(Scale scale, double value);

struct Tick {
  double value = 0;
  std::string text;  ///< "0.5", "10⁶"
};

/// A range and its ticks. `low` < `high`; the ticks are in order and within the range.
struct Axis {
  Scale scale = Scale::linear;
  double low = 0;
  double high = 1;
  std::vector<Tick> ticks;

  /// 0 at the low end, 1 at the high end; of a value that has a place.
  double position(double value) const;
};

/// What an axis has to cover, and how.
struct AxisNeeds {
  Scale scale = Scale::linear;
  double least = 0;  ///< both have a place on the scale
  double most = 1;
  int ticks = 6;            ///< about so many at most, at least 2
  bool whole = false;       ///< values are counts, and ticks whole numbers
  bool ends_tight = false;  ///< the range is from least to most instead of from tick to tick
};
Axis choose_axis(const AxisNeeds& needs);

/// "71.86", "6.84×10⁶": a few digits, for people.
std::string value_text(double value);

struct Point {
  double x = 0;
  double y = 0;
};

/// Points without a place on the chart's axes are left out; whoever makes the chart says so.
struct Series {
  std::string name;  ///< in the legend; empty: not there, as the continuation of another one
  std::vector<Point> points;
  int colour = 1;  ///< 1 to kColours; decides the dashes too
  bool markers = false;
};

/// A vertical line with a label above the chart.
struct Mark {
  double x = 0;
  std::string text;
  bool is_warning = false;
};

/// A straight piece of slope `slope` through a point of a curve, which is marked.
struct Tangent {
  Point at;
  double slope = 0;
  double reach = 1;  ///< to both sides, in x
  int colour = 2;
};

struct Arrow {
  Point from, to;
  int colour = 2;
};

/// A text beside a point, and, where `dot` asks for it, the point.
struct Label {
  Point at;
  std::string text;
  Anchor anchor = Anchor::start;
  double dx = 0, dy = 0;  ///< from the point, in units of the picture
  int colour = 0;         ///< 0: that of text
  enum class Dot { none, full, hollow } dot = Dot::none;
};

struct LineChart {
  std::string title, description;  ///< see Frame
  std::string heading;             ///< empty: none
  std::string x_label, y_label;
  Scale y_scale = Scale::linear;
  bool x_is_count = false;  ///< such as steps
  std::vector<Series> series;
  std::vector<Mark> marks;
  std::vector<Tangent> tangents;
  std::vector<Arrow> arrows;
  std::vector<Label> labels;
  std::optional<Point> x_range, y_range;    ///< {least, most}; without it, that of the points
  std::string caption;                      ///< small, below; empty: none
  std::string nothing = "nothing to draw";  ///< said where no point has a place
  double width = kPictureWidth;
  double plot_height = 270;
};
std::string line_chart(const LineChart& chart, Placement placement);

/// The value of a bar is at least 0; the chart begins at 0.
struct Bar {
  std::string label;
  double value = 0;
  std::string text;  ///< behind the bar
  std::string note;  ///< small, below the label; empty: none
  bool is_own = false;
};

struct BarChart {
  std::string title, description, heading, caption;
  std::string x_label;
  std::vector<Bar> bars;
  double width = kPictureWidth;
};
std::string bar_chart(const BarChart& chart, Placement placement);

}  // namespace deviceloop::drawing
