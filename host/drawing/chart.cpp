#include "drawing/chart.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "elementary.h"

namespace deviceloop::drawing {
namespace {

constexpr std::size_t kMostStrips = 80;    // that tell their values to the pointer
constexpr std::size_t kMarkedPoints = 40;  // so few are marked one by one
constexpr double kNearlyEqual = 1e-6;      // a range that is smaller, relative to its values, is taken for one value

/// factor * 10^exponent, correctly rounded; 0 or infinity outside the range of doubles.
double scaled(int factor, int exponent) {
  if (exponent > 308) return std::numeric_limits<double>::infinity();
  const std::string text = std::to_string(factor) + "e" + std::to_string(exponent);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc()) return value;
  return exponent > 0 ? std::numeric_limits<double>::infinity() : 0;
}

/// The exponent of the largest power of ten, as a double, that is not above `value`, which is positive and finite.
int decade_of(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.17e", value);
  const int decade = std::atoi(text + std::string_view(text).find('e') + 1);
  return scaled(1, decade + 1) <= value ? decade + 1 : decade;  // the double 1e23 is below 10^23
}

/// The natural logarithm of a positive finite number, by the library's own functions: with the same bits everywhere.
double natural_log(double value) {
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);  // from 1/2 up to 1
  return (exponent - 1) * 0.693147180559945309 + elementary::log1p(2 * fraction - 1);
}

std::string superscript(int number) {
  constexpr const char* kDigits[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string text;
  for (const char c : std::to_string(number)) text += c == '-' ? "⁻" : kDigits[c - '0'];
  return text;
}

std::string formatted(const char* pattern, int digits, double value) {
  char text[400];
  std::snprintf(text, sizeof text, pattern, digits, std::fabs(value));
  return (value < 0 ? "−" : "") + std::string(text);
}

/// With a power of ten, of which a 1 is not written.
std::string power_text(double value, int digits) {
  std::string mantissa = formatted("%.*e", digits, value);
  const int decade = std::atoi(mantissa.substr(mantissa.find('e') + 1).c_str());
  mantissa.resize(mantissa.find('e'));
  const std::string power = "10" + superscript(decade);
  if (mantissa == "1") return power;
  return mantissa == "−1" ? "−" + power : mantissa + "×" + power;
}

/// Whether the numbers of an axis are written without powers of ten.
bool is_plain(double low, double high, int digits) {
  const auto fits = [&](double value) {
    return value == 0 || (decade_of(std::fabs(value)) >= -4 && decade_of(std::fabs(value)) < digits);
  };
  return fits(low) && fits(high);
}

/// A tick that is a multiple of `step`.
std::string tick_text(double value, double step, bool plain = true) {
  if (value == 0) return "0";
  const int step_decade = decade_of(step);
  if (plain && step_decade >= -9) return formatted("%.*f", std::max(0, -step_decade), value);
  return power_text(value, std::clamp(decade_of(std::fabs(value)) - step_decade, 0, 17));
}

/// 1, 2 or 5 times a power of ten, the smallest such that at most `most` of it make up `range`.
double step_for(double range, int most, bool whole) {
  const double least = range / most;
  if (whole && least <= 1) return 1;
  const int decade = decade_of(least);
  for (const int factor : {1, 2, 5})
    if (const double step = scaled(factor, decade); step >= least * (1 - 1e-12)) return step;
  return scaled(1, decade + 1);
}

void add_linear_ticks(Axis& axis, double step, bool ends_tight) {
  double first = std::floor(axis.low / step), last = std::ceil(axis.high / step);
  if (ends_tight) {
    first = std::ceil(axis.low / step);
    last = std::floor(axis.high / step);
  } else {
    const auto finite_or = [](double value, double other) { return std::isfinite(value) ? value : other; };
    // Rounding, or underflow, must not cut the range.
    axis.low = std::min(axis.low, finite_or(first * step, axis.low));
    axis.high = std::max(axis.high, finite_or(last * step, axis.high));
  }
  // From 10^7 on plain numbers are hard to read. A low end of 0, or near to it, is no reason for powers.
  const bool plain = is_plain(step, std::max(std::fabs(axis.low), std::fabs(axis.high)), 7);
  for (double i = first; i <= last; ++i)
    if (const double value = i * step; value >= axis.low && value <= axis.high)
      axis.ticks.push_back({value, tick_text(value, step, plain)});
}

/// All powers of ten in the range, or every so manyth.
void add_decade_ticks(Axis& axis, int most, bool ends_tight) {
  int first = decade_of(axis.low), last = decade_of(axis.high);
  if (scaled(1, last) < axis.high) ++last;
  const int stride = std::max(1, (last - first + most - 1) / most);
  const bool plain = first >= -3 && last <= 4;
  if (!ends_tight) {
    last = first + (last - first + stride - 1) / stride * stride;
    if (scaled(1, first) > 0) axis.low = scaled(1, first);
    if (std::isfinite(scaled(1, last))) axis.high = scaled(1, last);
  }
  for (int exponent = first; exponent <= last; exponent += stride) {
    const double value = scaled(1, exponent);
    if (value < axis.low || value > axis.high) continue;
    axis.ticks.push_back({value, tick_text(value, value, plain || exponent == 0 || exponent == 1)});
  }
}

/// 1, 2 and 5 times powers of ten.
void add_one_two_five_ticks(Axis& axis, bool ends_tight) {
  std::vector<double> values;
  for (int decade = decade_of(axis.low); decade <= decade_of(axis.high) + 1; ++decade)
    for (const int factor : {1, 2, 5}) values.push_back(scaled(factor, decade));
  auto begin = std::upper_bound(values.begin(), values.end(), axis.low);
  if (begin != values.begin()) --begin;  // the last that is not above it
  auto end = std::lower_bound(values.begin(), values.end(), axis.high);
  if (!ends_tight) {
    if (*begin > 0) axis.low = std::min(axis.low, *begin);
    if (end != values.end() && std::isfinite(*end)) axis.high = *end;
  }
  const bool plain = is_plain(axis.low, axis.high, 5);
  for (const double value : values)
    if (value >= axis.low && value <= axis.high)
      axis.ticks.push_back({value, tick_text(value, scaled(1, decade_of(value)), plain)});
}

class Plot {
 public:
  Plot(const Axis& x, const Axis& y, double left, double top, double width, double height)
      : x_(x), y_(y), left_(left), top_(top), width_(width), height_(height) {}
  double x(double value) const { return left_ + width_ * x_.position(value); }
  double y(double value) const { return top_ + height_ * (1 - y_.position(value)); }
  double left() const { return left_; }
  double right() const { return left_ + width_; }
  double top() const { return top_; }
  double bottom() const { return top_ + height_; }
  const Axis& x_axis() const { return x_; }
  const Axis& y_axis() const { return y_; }

 private:
  const Axis &x_, &y_;
  double left_, top_, width_, height_;
};

std::string class_of(const char* prefix, int colour) {
  return prefix + std::to_string((std::max(colour, 1) - 1) % kColours + 1);
}

std::string circle(double x, double y, double radius, const std::string& classes) {
  return element("circle", {{"cx", x}, {"cy", y}, {"r", radius}, {"class", classes}});
}

/// The points with a place on the axes.
std::vector<Point> placed(const Series& series, const LineChart& chart) {
  std::vector<Point> points;
  for (const Point& point : series.points)
    if (has_place(Scale::linear, point.x) && has_place(chart.y_scale, point.y)) points.push_back(point);
  return points;
}

std::string path_of(const std::vector<Point>& points, const Plot& plot, int colour) {
  std::string path, last;
  for (const Point& point : points) {
    std::string place = number(plot.x(point.x)) + " " + number(plot.y(point.y));
    if (place == last) continue;
    path += (path.empty() ? "M" : "L") + place;
    last = std::move(place);
  }
  return element("path", {{"d", path}, {"class", "line " + class_of("line", colour)}});
}

std::string draw_series(const Series& series, const std::vector<Point>& points, const Plot& plot) {
  std::string markup;
  if (points.size() > 1) markup += path_of(points, plot, series.colour);
  if (points.size() == 1 || (series.markers && points.size() <= kMarkedPoints))
    for (const Point& point : points)
      markup += circle(plot.x(point.x), plot.y(point.y), 4, class_of("fill", series.colour));
  return markup;
}

/// Stripes that cover the chart and tell the pointer the values nearest to their middle.
std::string draw_strips(const LineChart& chart, const std::vector<std::vector<Point>>& series, const Plot& plot) {
  if (series.empty() || series.front().size() < 2) return "";
  const std::vector<Point>& first = series.front();
  const std::size_t count = std::min(kMostStrips, first.size());
  // The points to tell, at about equal distances: the first one that is right of each place.
  std::vector<Point> told;
  std::size_t next = 0;
  for (std::size_t i = 0; i < count && next < first.size(); ++i) {
    const double place =
        plot.left() + (plot.right() - plot.left()) * static_cast<double>(i) / static_cast<double>(count);
    while (next + 1 < first.size() && plot.x(first[next].x) < place) ++next;
    if (told.empty() || told.back().x != first[next].x) told.push_back(first[next]);
  }
  if (told.back().x != first.back().x) told.push_back(first.back());
  std::string markup;
  for (std::size_t i = 0; i < told.size(); ++i) {
    const double x = plot.x(told[i].x);
    const double begin = i == 0 ? plot.left() : (plot.x(told[i - 1].x) + x) / 2;
    const double end = i + 1 == told.size() ? plot.right() : (x + plot.x(told[i + 1].x)) / 2;
    std::string title = chart.x_label + " " + value_text(told[i].x);
    for (std::size_t s = 0; s < series.size(); ++s) {
      if (series[s].empty()) continue;
      const auto nearest = std::min_element(series[s].begin(), series[s].end(), [&](const Point& a, const Point& b) {
        return std::fabs(a.x - told[i].x) < std::fabs(b.x - told[i].x);
      });
      title += std::string(s == 0 ? ": " : "; ") + chart.series[s].name + " " + value_text(nearest->y);
      if (nearest->x != told[i].x) title += " (" + chart.x_label + " " + value_text(nearest->x) + ")";
    }
    markup += element("rect",
                      {{"x", begin},
                       {"y", plot.top()},
                       {"width", end - begin},
                       {"height", plot.bottom() - plot.top()},
                       {"class", "strip"}},
                      element("title", {}, escaped(title)));
  }
  return markup;
}

std::string draw_axes(const LineChart& chart, const Plot& plot) {
  std::string markup;
  for (const Tick& tick : plot.y_axis().ticks) {
    const double y = plot.y(tick.value);
    markup += line(plot.left(), y, plot.right(), y, "grid");
    markup += text(plot.left() - 8, y + 5.5, Anchor::end, "muted", tick.text);
  }
  markup += line(plot.left(), plot.bottom(), plot.right(), plot.bottom(), "axis");
  for (const Tick& tick : plot.x_axis().ticks) {
    const double x = plot.x(tick.value);
    markup += line(x, plot.bottom(), x, plot.bottom() + 5, "axis");
    markup += text(x, plot.bottom() + 22, Anchor::middle, "muted", tick.text);
  }
  if (!chart.x_label.empty())
    markup += text((plot.left() + plot.right()) / 2, plot.bottom() + 45, Anchor::middle, "muted", chart.x_label);
  // Where both axes have an inner zero, the axes of coordinates.
  if (plot.y_axis().scale == Scale::linear && plot.y_axis().low < 0 && plot.y_axis().high > 0)
    markup += line(plot.left(), plot.y(0), plot.right(), plot.y(0), "axis");
  if (!chart.x_is_count && plot.x_axis().low < 0 && plot.x_axis().high > 0)
    markup += line(plot.x(0), plot.top(), plot.x(0), plot.bottom(), "axis");
  return markup;
}

std::string draw_arrow(const Arrow& arrow, const Plot& plot) {
  constexpr double kHead = 11, kHalf = 5.5;
  const double x0 = plot.x(arrow.from.x), y0 = plot.y(arrow.from.y), x1 = plot.x(arrow.to.x), y1 = plot.y(arrow.to.y);
  const double length = std::max(std::sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0)), 1e-9);
  const double ux = (x1 - x0) / length, uy = (y1 - y0) / length;
  const double bx = x1 - kHead * ux, by = y1 - kHead * uy;
  const auto pair = [](double x, double y) { return number(x) + "," + number(y); };
  return line(x0, y0, bx, by, "line hollow " + class_of("line", arrow.colour)) +
         element("polygon", {{"points", pair(x1, y1) + " " + pair(bx - kHalf * uy, by + kHalf * ux) + " " +
                                            pair(bx + kHalf * uy, by - kHalf * ux)},
                             {"class", class_of("fill", arrow.colour)}});
}

/// The part of the tangent within the chart.
std::string draw_tangent(const Tangent& tangent, const Plot& plot) {
  double begin = -tangent.reach, end = tangent.reach;
  begin = std::max(begin, plot.x_axis().low - tangent.at.x);
  end = std::min(end, plot.x_axis().high - tangent.at.x);
  if (tangent.slope != 0) {
    const double low = (plot.y_axis().low - tangent.at.y) / tangent.slope;
    const double high = (plot.y_axis().high - tangent.at.y) / tangent.slope;
    begin = std::max(begin, std::min(low, high));
    end = std::min(end, std::max(low, high));
  }
  const auto at = [&](double dx) { return Point{tangent.at.x + dx, tangent.at.y + tangent.slope * dx}; };
  return path_of({at(begin), at(end)}, plot, tangent.colour) +
         circle(plot.x(tangent.at.x), plot.y(tangent.at.y), 5, class_of("fill", tangent.colour));
}

std::string draw_label(const Label& label, const Plot& plot) {
  const double x = plot.x(label.at.x), y = plot.y(label.at.y);
  std::string markup;
  if (label.dot == Label::Dot::full) markup += circle(x, y, 5, class_of("fill", label.colour));
  if (label.dot == Label::Dot::hollow) markup += circle(x, y, 5, "hollow " + class_of("line", label.colour));
  if (!label.text.empty())
    markup += text(x + label.dx, y + label.dy, label.anchor,
                   label.colour == 0 ? "strong" : "strong " + class_of("fill", label.colour), label.text);
  return markup;
}

/// Names beside a piece of each line; returns the height that they take.
double draw_legend(const LineChart& chart, double top, double right, std::string& markup) {
  constexpr double kRow = 26, kSample = 34;
  double x = 0, y = top;
  for (const Series& series : chart.series) {
    if (series.name.empty()) continue;
    const double width = kSample + 10 + text_width(series.name, kFontSize) + 22;
    if (x > 0 && x + width - 22 > right) {
      x = 0;
      y += kRow;
    }
    markup += line(x + 2, y + 12, x + kSample, y + 12, "line " + class_of("line", series.colour));
    markup += text(x + kSample + 10, y + 17.5, Anchor::start, "", series.name);
    x += width;
  }
  return y + kRow - top;
}

double draw_caption(const std::string& caption, double width, double top, std::string& markup) {
  double y = top;
  for (const std::string& each : wrapped(caption, kSmallFontSize, width)) {
    markup += text(0, y + 15, Anchor::start, "small muted", each);
    y += 20;
  }
  return y - top;
}

/// Adds the heading of a chart; returns where what is below it begins, `space` further down. Nothing for none.
double draw_heading(const std::string& heading, double width, double space, std::string& markup) {
  if (heading.empty()) return 0;
  double y = 0;
  for (const std::string& each : wrapped(heading, kBold * kHeadingSize, width)) {
    markup += text(0, y + 19, Anchor::start, "heading", each);
    y += 26;
  }
  return y + space;
}

}  // namespace

bool has_place(Scale scale, double value) { return std::isfinite(value) && (scale == Scale::linear || value > 0); }

double Axis::position(double value) const {
  if (scale == Scale::logarithmic)
    return (natural_log(value) - natural_log(low)) / (natural_log(high) - natural_log(low));
  // Halves, because the range of two doubles may be infinite.
  return (value / 2 - low / 2) / (high / 2 - low / 2);
}

Axis choose_axis(const AxisNeeds& needs) {
  Axis axis{needs.scale, needs.least, needs.most, {}};
  const int most = std::max(needs.ticks, 2);
  const double size = std::max(std::fabs(axis.low), std::fabs(axis.high));
  const bool one_value = axis.high / 2 - axis.low / 2 <= (needs.whole ? 0 : kNearlyEqual) * size / 2;
  if (one_value && needs.whole) {
    axis.ticks.push_back({axis.low, tick_text(axis.low, 1)});
    axis.low -= 1;
    axis.high += 1;
    return axis;
  }
  if (needs.scale == Scale::logarithmic) {
    if (one_value) {
      axis.low = axis.low / 3 > 0 ? axis.low / 3 : axis.low;
      axis.high = std::isfinite(axis.high * 3) ? axis.high * 3 : axis.high;
      if (axis.low == axis.high) axis.high *= 3;
    }
    const double ratio = axis.high / axis.low;
    if (ratio >= 100) {
      add_decade_ticks(axis, most, needs.ends_tight);
      return axis;
    }
    if (ratio >= 3) {
      add_one_two_five_ticks(axis, needs.ends_tight);
      return axis;
    }
    const double least = axis.low;
    add_linear_ticks(axis, step_for(axis.high - axis.low, most, needs.whole), needs.ends_tight);
    if (axis.low <= 0) axis.low = least;
    std::erase_if(axis.ticks, [&](const Tick& tick) { return tick.value < axis.low; });
    return axis;
  }
  if (one_value) {
    const double spread = size > 0 ? size / 2 : 1;
    axis.low = std::isfinite(axis.low - spread) ? axis.low - spread : axis.low;
    axis.high = std::isfinite(axis.high + spread) ? axis.high + spread : axis.high;
  }
  const double range = axis.high - axis.low;
  const double finite = std::isfinite(range) ? range : std::numeric_limits<double>::max();
  add_linear_ticks(axis, step_for(finite, most, needs.whole), needs.ends_tight);
  return axis;
}

std::string value_text(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "infinity" : "−infinity";
  if (value == 0) return "0";
  const int decade = decade_of(std::fabs(value));
  if (decade < -3 || decade >= 7) return power_text(value, 2);
  if (value == std::floor(value)) return formatted("%.*f", 0, value);
  return formatted("%.*f", std::clamp(3 - decade, 1, 6), value);
}

std::string line_chart(const LineChart& chart, Placement placement) {
  std::vector<std::vector<Point>> series;
  bool any = false;
  double x_least = 0, x_most = 0, y_least = 0, y_most = 0;
  for (const Series& each : chart.series) {
    series.push_back(placed(each, chart));
    for (const Point& point : series.back()) {
      x_least = any ? std::min(x_least, point.x) : point.x;
      x_most = any ? std::max(x_most, point.x) : point.x;
      y_least = any ? std::min(y_least, point.y) : point.y;
      y_most = any ? std::max(y_most, point.y) : point.y;
      any = true;
    }
  }

  std::string markup;
  double y = draw_heading(chart.heading, chart.width, 6, markup);
  if (chart.series.size() > 1) y += draw_legend(chart, y, chart.width, markup) + 4;
  if (any) {
    const Axis x_axis = choose_axis({.scale = Scale::linear,
                                     .least = chart.x_range ? chart.x_range->x : x_least,
                                     .most = chart.x_range ? chart.x_range->y : x_most,
                                     .ticks = 6,
                                     .whole = chart.x_is_count,
                                     .ends_tight = true});
    const Axis y_axis = choose_axis({.scale = chart.y_scale,
                                     .least = chart.y_range ? chart.y_range->x : y_least,
                                     .most = chart.y_range ? chart.y_range->y : y_most,
                                     .ticks = 5,
                                     .whole = false,
                                     .ends_tight = chart.y_range.has_value()});
    double left = 0, right = 12;
    for (const Tick& tick : y_axis.ticks) left = std::max(left, text_width(tick.text, kFontSize));
    // The label of the last tick is centred at the chart's end.
    for (const Tick& tick : x_axis.ticks) right = std::max(right, text_width(tick.text, kFontSize) / 2);
    left += 10;
    if (!chart.y_label.empty()) {
      markup += text(0, y + 17, Anchor::start, "muted", chart.y_label);
      y += 28;
    }
    const double label_rows = y;
    y += 22 * static_cast<double>(chart.marks.size());
    const Plot plot(x_axis, y_axis, left, y + 8, chart.width - left - right, chart.plot_height);
    markup += draw_axes(chart, plot);
    for (std::size_t i = 0; i < chart.marks.size(); ++i) {
      const Mark& mark = chart.marks[i];
      const double x = std::clamp(plot.x(mark.x), plot.left(), plot.right()),
                   row = label_rows + 22 * static_cast<double>(i);
      const bool leftward = x + text_width(mark.text, kFontSize) > chart.width;
      markup += line(x, row + 4, x, plot.bottom(), mark.is_warning ? "bad-mark" : "mark");
      markup += text(leftward ? x - 6 : x + 6, row + 16, leftward ? Anchor::end : Anchor::start,
                     mark.is_warning ? "warning" : "muted", mark.text);
    }
    for (std::size_t i = 0; i < series.size(); ++i) markup += draw_series(chart.series[i], series[i], plot);
    for (const Tangent& tangent : chart.tangents) markup += draw_tangent(tangent, plot);
    for (const Arrow& arrow : chart.arrows) markup += draw_arrow(arrow, plot);
    for (const Label& label : chart.labels) markup += draw_label(label, plot);
    if (chart.tangents.empty()) markup += draw_strips(chart, series, plot);
    y = plot.bottom() + (chart.x_label.empty() ? 30 : 54);
  } else {
    markup += text(chart.width / 2, y + 40, Anchor::middle, "warning", chart.nothing);
    y += 70;
  }
  if (!chart.caption.empty()) y += draw_caption(chart.caption, chart.width, y + 6, markup) + 6;
  return picture({chart.width, y + 2, chart.title, chart.description}, placement, markup);
}

std::string bar_chart(const BarChart& chart, Placement placement) {
  constexpr double kBar = 20, kGap = 14, kNote = 18;
  std::string markup;
  double y = draw_heading(chart.heading, chart.width, 10, markup);
  double labels = 0, texts = 0, most = 0;
  for (const Bar& bar : chart.bars) {
    labels = std::max(
        {labels, text_width(bar.label, (bar.is_own ? kBold : 1) * kFontSize), text_width(bar.note, kSmallFontSize)});
    texts = std::max(texts, text_width(bar.text, kFontSize));
    if (std::isfinite(bar.value)) most = std::max(most, bar.value);
  }
  const double left = labels + 12;
  const double room = std::max(chart.width - left - texts - 12, 40.0);
  const double top = y;
  for (const Bar& bar : chart.bars) {
    const double length = std::isfinite(bar.value) && most > 0 ? room * std::max(bar.value, 0.0) / most : 0;
    markup += text(0, y + 16, Anchor::start, bar.is_own ? "strong" : "", bar.label);
    if (!bar.note.empty()) markup += text(0, y + 16 + kNote, Anchor::start, "small muted", bar.note);
    markup += element("rect",
                      {{"x", left},
                       {"y", y},
                       {"width", std::max(length, 1.5)},
                       {"height", kBar},
                       {"rx", std::min(3.0, length / 2)},
                       {"class", bar.is_own ? "fill1" : "fill-quiet"}},
                      element("title", {}, escaped(bar.label + ": " + bar.text)));
    markup += text(left + std::max(length, 1.5) + 8, y + 16, Anchor::start, bar.is_own ? "strong" : "", bar.text);
    y += kBar + kGap + (bar.note.empty() ? 0 : kNote);
  }
  markup += line(left, top - 6, left, y - kGap + 6, "axis");
  if (!chart.x_label.empty()) {
    markup += text(left, y + 12, Anchor::start, "muted", chart.x_label);
    y += 24;
  }
  if (!chart.caption.empty()) y += draw_caption(chart.caption, chart.width, y + 6, markup) + 6;
  return picture({chart.width, y + 2, chart.title, chart.description}, placement, markup);
}

}  // namespace deviceloop::drawing
