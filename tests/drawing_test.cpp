// The drawing functions: what a picture's text holds, where axes have their ticks, and that nothing breaks the markup.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "drawing/chart.h"
#include "drawing/network_diagram.h"
#include "drawing/svg.h"
#include "support/markup.h"

namespace deviceloop::drawing {
namespace {

using testing::count_of;
using testing::markup_problem;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMost = std::numeric_limits<double>::max();
constexpr double kLeast = std::numeric_limits<double>::denorm_min();

std::vector<std::string> texts(const Axis& axis) {
  std::vector<std::string> result;
  for (const Tick& tick : axis.ticks) result.push_back(tick.text);
  return result;
}

using Texts = std::vector<std::string>;

TEST(Markup, OfTheTestsSeesWhatIsWrong) {
  EXPECT_EQ(markup_problem("<!DOCTYPE html>\n<a x=\"1\" y=\"&amp;\"><b/>t &lt; u</a>\n"), "");
  for (const char* wrong :
       {"", "<a>", "<a></b>", "<a><b></a></b>", "<a x=1></a>", "<a x=\"1></a>", "<a>&x</a>", "<a> < </a>", "<a> > </a>",
        "<a x=\"<\"></a>", "<a x=\"&\"></a>", "<a></a><a></a>", "<a/>t", "<a>\x01</a>", "<a><!-- x --></a>", "</a>"})
    EXPECT_NE(markup_problem(wrong), "") << wrong;
}

TEST(Svg, EscapesMarkupAndBytesThatAreNoText) {
  EXPECT_EQ(escaped("a<b>&\"c\"'"), "a&lt;b&gt;&amp;&quot;c&quot;&#39;");
  EXPECT_EQ(escaped(std::string("\x01\n\xff\x00", 4)), "\\x01\\x0a\\xff\\x00");
  EXPECT_EQ(escaped("x² é 数"), "x² é 数");
  EXPECT_EQ(Attribute("d", "\"><script>").value, "&quot;&gt;&lt;script&gt;");
}

TEST(Svg, RoundsCoordinatesToATenth) {
  EXPECT_EQ(number(0), "0");
  EXPECT_EQ(number(-0.04), "0");
  EXPECT_EQ(number(-0.05), "-0.1");
  EXPECT_EQ(number(12), "12");
  EXPECT_EQ(number(12.34), "12.3");
  EXPECT_EQ(number(-12.36), "-12.4");
  EXPECT_EQ(number(0.1 + 0.2), "0.3");
  EXPECT_EQ(number(-1e300), "-1000000");
}

TEST(Svg, BreaksLinesAtSpaces) {
  EXPECT_EQ(wrapped("", 16, 100), Texts{});
  EXPECT_EQ(wrapped("one", 16, 1), Texts{"one"});
  EXPECT_EQ(wrapped("one two three", 16, 1), (Texts{"one", "two", "three"}));
  EXPECT_EQ(wrapped("one two three", 16, 1000), Texts{"one two three"});
  for (const std::string& each : wrapped("a few words that do not fit into one line of this width", 16, 150))
    EXPECT_LE(text_width(each, 16), 150) << each;
}

TEST(Svg, AFileHasItsStyleAndAPageHasItOnce) {
  const Frame frame{10, 20, "a <title>", "what & why"};
  const std::string file = picture(frame, Placement::file, "");
  EXPECT_EQ(markup_problem(file), "");
  EXPECT_NE(file.find("prefers-color-scheme: dark"), std::string::npos);
  EXPECT_NE(file.find("role=\"img\""), std::string::npos);
  EXPECT_NE(file.find("<title>a &lt;title&gt;</title>"), std::string::npos);
  EXPECT_NE(file.find("<desc>what &amp; why</desc>"), std::string::npos);
  EXPECT_NE(file.find("viewBox=\"0 0 10 20\""), std::string::npos);
  const std::string page = picture(frame, Placement::page, "");
  EXPECT_EQ(markup_problem(page), "");
  EXPECT_EQ(page.find("<style"), std::string::npos);
}

TEST(Axis, HasRoundTicksThatCoverTheRange) {
  EXPECT_EQ(texts(choose_axis({.least = 0, .most = 97, .ticks = 5})), (Texts{"0", "20", "40", "60", "80", "100"}));
  EXPECT_EQ(texts(choose_axis({.least = -1, .most = 1, .ticks = 4})), (Texts{"−1.0", "−0.5", "0", "0.5", "1.0"}));
  EXPECT_EQ(texts(choose_axis({.least = 0.101, .most = 0.1049, .ticks = 4})),
            (Texts{"0.101", "0.102", "0.103", "0.104", "0.105"}));
  EXPECT_EQ(texts(choose_axis({.least = 0, .most = 3e8, .ticks = 3})), (Texts{"0", "10⁸", "2×10⁸", "3×10⁸"}));
  EXPECT_EQ(texts(choose_axis({.least = 0, .most = 499, .ticks = 6, .whole = true, .ends_tight = true})),
            (Texts{"0", "100", "200", "300", "400"}));
  EXPECT_EQ(texts(choose_axis({.least = 0, .most = 3, .ticks = 6, .whole = true, .ends_tight = true})),
            (Texts{"0", "1", "2", "3"}));
  EXPECT_EQ(texts(choose_axis({.least = 0, .most = 0, .ticks = 6, .whole = true, .ends_tight = true})), (Texts{"0"}));
  EXPECT_EQ(texts(choose_axis({.least = -4, .most = 4, .ticks = 4, .ends_tight = true})),
            (Texts{"−4", "−2", "0", "2", "4"}));
}

TEST(Axis, LogarithmicHasPowersOfTenOrLessWhereTheseAreFew) {
  const auto logarithmic = [](double least, double most) {
    return choose_axis({.scale = Scale::logarithmic, .least = least, .most = most, .ticks = 5});
  };
  EXPECT_EQ(texts(logarithmic(0.02, 900)), (Texts{"0.01", "0.1", "1", "10", "100", "1000"}));
  EXPECT_EQ(texts(logarithmic(71, 2.9e9)), (Texts{"10", "10³", "10⁵", "10⁷", "10⁹", "10¹¹"}));
  EXPECT_EQ(texts(logarithmic(1e-8, 1)), (Texts{"10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²", "1"}));
  EXPECT_EQ(texts(logarithmic(0.06, 2.4)), (Texts{"0.05", "0.1", "0.2", "0.5", "1", "2", "5"}));
  EXPECT_EQ(texts(logarithmic(2e6, 3e7)), (Texts{"2×10⁶", "5×10⁶", "10⁷", "2×10⁷", "5×10⁷"}));
  EXPECT_EQ(texts(logarithmic(4e22, 4e22)), (Texts{"10²²", "2×10²²", "5×10²²", "10²³", "2×10²³"}));
  EXPECT_EQ(texts(logarithmic(1e23, 1e25)), (Texts{"10²³", "10²⁴", "10²⁵"}));
  EXPECT_EQ(texts(logarithmic(71, 88)), (Texts{"70", "75", "80", "85", "90"}));
  const Axis axis = logarithmic(1, 1000);
  EXPECT_DOUBLE_EQ(axis.position(1), 0);
  EXPECT_NEAR(axis.position(10), 1.0 / 3, 1e-15);
  EXPECT_NEAR(axis.position(31.622776601683793), 0.5, 1e-15);
  EXPECT_DOUBLE_EQ(axis.position(1000), 1);
}

/// What holds of every axis.
void expect_good(const AxisNeeds& needs) {
  const Axis axis = choose_axis(needs);
  SCOPED_TRACE(std::to_string(needs.least) + " to " + std::to_string(needs.most) + ", scale " +
               std::to_string(static_cast<int>(needs.scale)) + ", tight " + std::to_string(needs.ends_tight));
  EXPECT_TRUE(std::isfinite(axis.low) && std::isfinite(axis.high));
  EXPECT_LT(axis.low, axis.high);
  EXPECT_LE(axis.low, needs.least);
  EXPECT_GE(axis.high, needs.most);
  EXPECT_TRUE(has_place(needs.scale, axis.low));
  EXPECT_FALSE(axis.ticks.empty());
  EXPECT_LE(axis.ticks.size(), 12u);
  for (std::size_t i = 0; i < axis.ticks.size(); ++i) {
    const double position = axis.position(axis.ticks[i].value);
    EXPECT_TRUE(position >= 0 && position <= 1) << axis.ticks[i].value;
    EXPECT_LT(axis.ticks[i].text.size(), 24u) << axis.ticks[i].text;
    if (i > 0) {
      EXPECT_LT(axis.ticks[i - 1].value, axis.ticks[i].value);
      EXPECT_NE(axis.ticks[i - 1].text, axis.ticks[i].text);
    }
  }
}

TEST(Axis, IsGoodForEveryRange) {
  const std::vector<double> values = {kLeast,   1e-310,   2.3e-308, 1e-30, 7e-5,  0.1,  0.3,   1,
                                      1 + 1e-9, 1 + 1e-5, 1.01,     2,     9.99,  10,   71.86, 99999,
                                      123456.7, 1e15,     3e37,     1e300, 1e308, kMost};
  for (std::size_t i = 0; i < values.size(); ++i)
    for (std::size_t j = i; j < values.size(); ++j) {
      expect_good({.scale = Scale::linear, .least = values[i], .most = values[j], .ticks = 5});
      expect_good({.scale = Scale::linear, .least = -values[j], .most = values[i], .ticks = 5});
      expect_good({.scale = Scale::linear, .least = -values[j], .most = -values[i], .ticks = 5});
      expect_good({.scale = Scale::logarithmic, .least = values[i], .most = values[j], .ticks = 5});
    }
  expect_good({.scale = Scale::linear, .least = 0, .most = 0, .ticks = 5});
  for (const double most : {1.0, 2.0, 7.0, 10.0, 499.0, 12345.0, 9e15})
    expect_good({.least = 0, .most = most, .ticks = 6, .whole = true, .ends_tight = true});
}

TEST(Values, AreTextWithAFewDigits) {
  for (const auto& [value, text] : std::vector<std::pair<double, std::string>>{{0, "0"},
                                                                               {19, "19"},
                                                                               {-5, "−5"},
                                                                               {71.8617, "71.86"},
                                                                               {0.00123456, "0.001235"},
                                                                               {6839416.29, "6839416.3"},
                                                                               {9.999e9, "1.00×10¹⁰"},
                                                                               {1e-9, "1.00×10⁻⁹"},
                                                                               {std::nan(""), "nan"},
                                                                               {kInfinity, "infinity"}})
    EXPECT_EQ(value_text(value), text);
}

LineChart chart_of(std::vector<Point> points, Scale scale = Scale::logarithmic) {
  LineChart chart;
  chart.title = "t";
  chart.x_label = "step";
  chart.x_is_count = true;
  chart.y_scale = scale;
  chart.series = {{"loss", std::move(points), 1}};
  return chart;
}

/// The d of the first path.
std::string path_of(const std::string& svg) {
  const std::size_t begin = svg.find(" d=\"");
  return begin == std::string::npos ? "" : svg.substr(begin + 4, svg.find('"', begin + 4) - begin - 4);
}

TEST(LineChart, PlacesPointsOnItsAxes) {
  LineChart chart = chart_of({{0, 1}, {5, 10}, {10, 100}});
  chart.plot_height = 200;
  const std::string svg = line_chart(chart, Placement::file);
  EXPECT_EQ(markup_problem(svg), "");
  double x[3], y[3];
  ASSERT_EQ(std::sscanf(path_of(svg).c_str(), "M%lf %lfL%lf %lfL%lf %lf", &x[0], &y[0], &x[1], &y[1], &x[2], &y[2]), 6);
  EXPECT_NEAR(x[1], (x[0] + x[2]) / 2, 0.11);
  EXPECT_NEAR(y[1], (y[0] + y[2]) / 2, 0.11);  // 10 is halfway from 1 to 100
  EXPECT_NEAR(y[0] - y[2], 200, 0.11);
  EXPECT_LT(x[0], x[2]);
  EXPECT_EQ(svg, line_chart(chart, Placement::file));
}

TEST(LineChart, LeavesOutWhatHasNoPlace) {
  const auto corners = [](const std::string& svg) { return count_of(path_of(svg), "L") + count_of(path_of(svg), "M"); };
  const std::vector<Point> points = {{0, 4}, {1, 0}, {2, -3}, {3, std::nan("")}, {4, kInfinity}, {5, 2}, {6, 1}};
  EXPECT_EQ(corners(line_chart(chart_of(points), Placement::file)), 3);
  EXPECT_EQ(corners(line_chart(chart_of(points, Scale::linear), Placement::file)), 5);
  for (const Scale scale : {Scale::linear, Scale::logarithmic}) {
    const std::string nothing = line_chart(chart_of({{0, std::nan("")}, {1, kInfinity}}, scale), Placement::file);
    EXPECT_EQ(markup_problem(nothing), "");
    EXPECT_NE(nothing.find("nothing to draw"), std::string::npos);
    EXPECT_EQ(path_of(nothing), "");
  }
  EXPECT_NE(line_chart(chart_of({}), Placement::file).find("nothing to draw"), std::string::npos);
}

TEST(LineChart, DrawsExtremesAndSinglePoints) {
  for (const Scale scale : {Scale::linear, Scale::logarithmic})
    for (const std::vector<Point>& points : std::vector<std::vector<Point>>{
             {{0, 5}}, {{0, kMost}, {1, kLeast}}, {{0, 3}, {1, 3}}, {{7, kMost}}, {{0, 1e-300}, {9e15, 1e300}}}) {
      const std::string svg = line_chart(chart_of(points, scale), Placement::file);
      EXPECT_EQ(markup_problem(svg), "");
      EXPECT_EQ(svg.find("nan"), std::string::npos);
      EXPECT_EQ(svg.find("inf"), std::string::npos);
      EXPECT_GE(count_of(svg, "<path") + count_of(svg, "<circle"), 1);
    }
}

TEST(LineChart, TellsTheValuesToThePointer) {
  LineChart chart = chart_of({{0, 4}, {10, 2}, {20, 1}});
  chart.series.push_back({"other & more", {{0, 8}, {20, 3}}, 2});
  const std::string svg = line_chart(chart, Placement::file);
  EXPECT_EQ(markup_problem(svg), "");
  EXPECT_NE(svg.find("<title>step 20: loss 1; other &amp; more 3</title>"), std::string::npos) << svg;
  EXPECT_EQ(count_of(svg, "class=\"strip\""), 3);
  EXPECT_EQ(count_of(svg, ">other &amp; more</text>"), 1) << "the legend";
}

TEST(LineChart, MarksStayInsideAndHaveTheirText) {
  LineChart chart = chart_of({{0, 4}, {100, 2}});
  chart.marks = {{50, "best <b>", false}, {100, "diverged here, where there is no room to the right", true}};
  const std::string svg = line_chart(chart, Placement::file);
  EXPECT_EQ(markup_problem(svg), "");
  EXPECT_NE(svg.find(">best &lt;b&gt;</text>"), std::string::npos);
  EXPECT_NE(svg.find("class=\"warning\" text-anchor=\"end\">diverged"), std::string::npos) << svg;
  EXPECT_EQ(count_of(svg, "class=\"bad-mark\""), 1);
}

TEST(LineChart, TangentsHaveTheirSlope) {
  LineChart chart = chart_of({{-6, 36}, {0, 0}, {6, 36}}, Scale::linear);
  chart.x_is_count = false;
  chart.tangents = {{{4, 16}, 8, 1, 2}};
  const std::string svg = line_chart(chart, Placement::file);
  const std::string curve = path_of(svg);
  const std::string tangent = path_of(svg.substr(svg.find(curve) + curve.size()));
  double cx[3], cy[3], tx[2], ty[2];
  ASSERT_EQ(std::sscanf(curve.c_str(), "M%lf %lfL%lf %lfL%lf %lf", &cx[0], &cy[0], &cx[1], &cy[1], &cx[2], &cy[2]), 6);
  ASSERT_EQ(std::sscanf(tangent.c_str(), "M%lf %lfL%lf %lf", &tx[0], &ty[0], &tx[1], &ty[1]), 4);
  const double x_unit = (cx[2] - cx[0]) / 12, y_unit = (cy[1] - cy[0]) / 36;
  EXPECT_NEAR((tx[1] - tx[0]) / x_unit, 2, 0.02);
  EXPECT_NEAR((ty[0] - ty[1]) / y_unit, 16, 0.1);
}

TEST(BarChart, HasBarsInProportion) {
  BarChart chart;
  chart.bars = {{"one & only", 1, "1 us", "a note", true},
                {"four", 4, "4 us", "", false},
                {"none", std::nan(""), "failed", "", false}};
  const std::string svg = bar_chart(chart, Placement::file);
  EXPECT_EQ(markup_problem(svg), "");
  std::vector<double> widths;
  for (std::size_t at = svg.find("<rect"); at != std::string::npos; at = svg.find("<rect", at + 1)) {
    const std::size_t width = svg.find(" width=\"", at);
    widths.push_back(std::strtod(svg.c_str() + width + 8, nullptr));
  }
  ASSERT_EQ(widths.size(), 3u);
  EXPECT_NEAR(widths[1] / widths[0], 4, 0.01);
  EXPECT_LT(widths[2], 2);
  for (const char* text : {">one &amp; only</text>", ">a note</text>", ">4 us</text>", ">failed</text>"})
    EXPECT_EQ(count_of(svg, text), 1) << text;
}

TEST(NetworkDiagram, DrawsUnitsEdgesAndWidths) {
  NetworkSpec network;
  network.widths = {3, 4, 1};
  const std::string small = network_diagram(network, Placement::file);
  EXPECT_EQ(markup_problem(small), "");
  EXPECT_EQ(count_of(small, "class=\"node\""), 8);
  EXPECT_EQ(count_of(small, "class=\"edge\""), 3 * 4 + 4 * 1);
  EXPECT_EQ(count_of(small, "class=\"dot\""), 0);
  EXPECT_NE(small.find("hidden layers: relu; output: identity; no biases"), std::string::npos);

  network.widths = {1000, 100, 1};
  network.bias = true;
  network.activation = Activation::leaky_relu;
  network.leaky_slope = 0.2;
  network.output_activation = Activation::tanh;
  const std::string wide = network_diagram(network, Placement::file);
  EXPECT_EQ(count_of(wide, "class=\"node\""), 6 + 6 + 1);
  EXPECT_EQ(count_of(wide, "class=\"dot\""), 6);
  EXPECT_NE(wide.find(">1000</text>"), std::string::npos);
  EXPECT_NE(wide.find("hidden layers: leaky-relu:0.2; output: tanh; a bias in every layer"), std::string::npos);

  network.widths = std::vector<std::int64_t>(40, kMaxWidth);
  const std::string deep = network_diagram(network, Placement::page);
  EXPECT_EQ(markup_problem(deep), "");
  EXPECT_EQ(count_of(deep, "class=\"node\""), 7 * 6);
  // Neighbours' widths do not touch.
  const auto height_of = [&](std::size_t place) {
    std::size_t at = 0;
    for (std::size_t i = 0; i <= place; ++i) at = deep.find("class=\"strong\"", at + 1);
    return std::strtod(deep.c_str() + deep.rfind(" y=\"", at) + 4, nullptr);
  };
  EXPECT_GT(height_of(1), height_of(0) + 16);
  EXPECT_EQ(height_of(2), height_of(0));
}

TEST(NeuronDiagram, ShowsItsNumbers) {
  Neuron neuron;
  neuron.title = "t";
  neuron.inputs = {2, 3, 4};
  neuron.weights = {1, -1, 5};
  neuron.sum = 19;
  neuron.output = 19;
  const std::string svg = neuron_diagram(neuron, Placement::file);
  EXPECT_EQ(markup_problem(svg), "");
  EXPECT_NE(svg.find("2 × 1 + 3 × (−1) + 4 × 5 = 19,  relu(19) = 19"), std::string::npos) << svg;
  EXPECT_NE(svg.find("w₂ = −1"), std::string::npos);
  neuron.bias = -1;
  EXPECT_NE(neuron_diagram(neuron, Placement::file).find("bias = −1"), std::string::npos);
}

}  // namespace
}  // namespace deviceloop::drawing
