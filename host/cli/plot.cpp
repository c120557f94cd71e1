#include "plot.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string_view>

#include <deviceloop/error.h>

#include "child_process.h"
#include "planning/decision.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

constexpr std::size_t kMostPoints = 2000;
constexpr std::size_t kMarkedPoints = 40;  // so few are marked one by one
constexpr std::chrono::seconds kTimeLimit{60};
// gnuplot takes larger numbers for infinite; smaller positive ones than this have few digits left.
constexpr double kLargest = 8e307;
constexpr double kSmallest = std::numeric_limits<double>::min();

std::string number(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

std::string caption(const RunResult& result) {
  std::string text = std::string("plan ") + name(result.plan.executor);
  if (!row_of(result.plan.executor).is_on_gpu) text += ", " + counted(result.plan.threads, "thread");
  text += std::string(", ") + name(result.training.precision);
  text += formulation_text(result.plan.formulation) + optimizer_text(result.training.optimizer) +
          output_activation_text(result.network) + batches_text(result.training, result.epochs);
  text += ", " + counted(result.steps, "step");
  if (result.us_per_step) text += ", " + step_time_text(*result.us_per_step);
  return text;
}

/// What is said of losses that cannot be drawn; empty where there are none.
std::string left_out_text(std::span<const double> losses) {
  const auto finite = [](double loss) { return std::isfinite(loss); };
  const auto first = std::find_if_not(losses.begin(), losses.end(), finite);
  if (first == losses.end()) return {};
  const std::int64_t bad = std::count_if(first, losses.end(), [&](double loss) { return !finite(loss); });
  return std::to_string(bad) + (bad == 1 ? " loss" : " losses") + ", the first at step " +
         std::to_string(first - losses.begin()) + (bad == 1 ? ", is" : ", are") + " not finite and left out";
}

/// 1, 2 or 5 times a power of ten, such that about `most` steps of it make up `range`.
double tick_step(double range, int most) {
  const double least = range / most;
  const double decade = std::pow(10.0, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * decade >= least) return factor * decade;
  return 10 * decade;
}

/// The y axis. On a logarithmic one of less than two decades gnuplot would label one value or none.
std::string y_axis(double least, double most) {
  const auto range = [](double low, double high) {
    return "set yrange [" + number("%.17g", low) + ":" + number("%.17g", high) + "]\n";
  };
  if (least <= 0) {
    if (most <= least) return range(-1, 1);
    return range(0, std::min(most * 1.05, kLargest));
  }
  std::string axis = "set logscale y\n";
  const double decades = std::log10(most) - std::log10(least);
  if (decades >= 2 || least < 10 * kSmallest || most > kLargest / 10) {
    if (decades > 12) axis += "unset mytics\n";
    const double low = std::pow(10.0, std::floor(std::log10(least)));
    const double high = std::pow(10.0, std::ceil(std::log10(most)));
    return axis + "set format y '10^{%L}'\n" + range(std::max(low, kSmallest), std::min(high, kLargest));
  }
  if (most - least <= 1e-9 * most) {  // a constant
    const double middle = least;
    return axis + "set ytics ('" + number("%.10g", middle) + "' " + number("%.17g", middle) + ")\n" +
           range(middle / 2, middle * 2);
  }
  const double margin = std::pow(most / least, 0.05);
  const double low = least / margin, high = most * margin;
  std::string ticks;
  const auto tick = [&](double value) {
    ticks += (ticks.empty() ? "'" : ", '") + number("%.10g", value) + "' " + number("%.17g", value);
  };
  if (most / least >= 8) {
    for (double decade = std::pow(10.0, std::floor(std::log10(low))); decade <= high; decade *= 10)
      for (const double factor : {1.0, 2.0, 5.0})
        if (factor * decade >= low && factor * decade <= high) tick(factor * decade);
  } else {
    const double step = tick_step(high - low, 8);
    for (double i = std::ceil(low / step); i * step <= high; ++i) tick(i * step);
  }
  return axis + "set ytics (" + ticks + ")\n" + range(low, high);
}

std::string x_axis(std::int64_t first, std::int64_t steps) {
  std::string axis;
  const std::string begin = std::to_string(first);
  if (steps <= 1)
    axis = "set xrange [" + std::to_string(first - 1) + ":" + std::to_string(first + 1) + "]\nset xtics " + begin +
           ", 1, " + begin + "\n";
  else if (steps <= 10)
    axis = "set xrange [" + begin + ":" + std::to_string(first + steps - 1) + "]\nset xtics 1\n";
  else  // round numbers get a label at the end
    axis = "set xrange [" + begin + ":" + std::to_string(first + steps) + "]\n";
  return axis + "set format x '%.0f'\n";
}

bool is_whole(PictureFormat format, std::string_view picture) {
  switch (format) {
    case PictureFormat::png:
      return picture.starts_with("\x89PNG\r\n\x1a\n") && picture.size() > 12 &&
             picture.substr(picture.size() - 8, 4) == "IEND";  // the last chunk's name stands before its checksum
    case PictureFormat::svg:
      break;
  }
  const std::size_t end = picture.find_last_not_of(" \r\n");
  return picture.find("<svg") != std::string_view::npos && end != std::string_view::npos &&
         picture.substr(0, end + 1).ends_with("</svg>");
}

std::string terminal(PictureFormat format) {
  switch (format) {
    case PictureFormat::svg:
      break;
    case PictureFormat::png:
      return "pngcairo size 960,600 enhanced rounded font 'sans-serif,12";
  }
  return "svg size 960,600 enhanced rounded font 'sans-serif,14";
}

/// The lines of gnuplot's message as one.
std::string one_line(std::string_view text) {
  std::string line;
  bool gap = false;
  for (const char c : text) {
    if (c == '\n' || c == '\r' || c == '\t' || c == ' ') {
      gap = !line.empty();
      continue;
    }
    if (gap) line += ' ';
    gap = false;
    line += c;
  }
  return printable(line, 300);
}

}  // namespace

std::optional<PictureFormat> picture_format(const std::string& path) {
  if (path.ends_with(".svg")) return PictureFormat::svg;
  if (path.ends_with(".png")) return PictureFormat::png;
  return std::nullopt;
}

std::string find_gnuplot() {
  std::string gnuplot = find_program("gnuplot");
  if (gnuplot.empty())
    throw Unsupported(
        "--plot draws with gnuplot, which is not in PATH; install it (Debian, Ubuntu: apt-get install gnuplot-nox) or "
        "drop --plot");
  return gnuplot;
}

std::vector<PlotPoint> plot_points(std::span<const double> losses, std::size_t most) {
  std::vector<PlotPoint> points;
  const std::size_t size = losses.size();
  const auto add = [&](std::size_t step) {
    if (std::isfinite(losses[step])) points.push_back({static_cast<std::int64_t>(step), losses[step]});
  };
  if (size <= most) {
    for (std::size_t step = 0; step < size; ++step) add(step);
    return points;
  }
  // What is not finite at an end is not drawn: the ends are those of the finite ones.
  std::size_t first = 0, last = size - 1;
  while (first < last && !std::isfinite(losses[first])) ++first;
  while (last > first && !std::isfinite(losses[last])) --last;
  add(first);
  const std::size_t inner = last - first > 1 ? last - first - 1 : 0;
  const std::size_t parts = std::min((most - 2) / 2, inner);
  for (std::size_t part = 0; part < parts; ++part) {
    const std::size_t begin = first + 1 + inner / parts * part + std::min(part, inner % parts);
    const std::size_t end = begin + inner / parts + (part < inner % parts ? 1 : 0);
    std::size_t smallest = size, largest = size;
    for (std::size_t step = begin; step < end; ++step) {
      if (!std::isfinite(losses[step])) continue;
      if (smallest == size || losses[step] < losses[smallest]) smallest = step;
      if (largest == size || losses[step] > losses[largest]) largest = step;
    }
    if (smallest == size) continue;
    add(std::min(smallest, largest));
    if (smallest != largest) add(std::max(smallest, largest));
  }
  if (last != first) add(last);
  return points;
}

std::string plot_script(PictureFormat format, const RunResult& result) {
  std::vector<PlotPoint> points = plot_points(result.losses, kMostPoints);
  for (PlotPoint& point : points) point.loss = std::clamp(point.loss, point.loss > 0 ? kSmallest : 0, kLargest);
  const std::string left_out = left_out_text(result.losses);
  std::string script = "set terminal " + terminal(format) +
                       "' background rgb 'white'\n"
                       "set encoding utf8\n"
                       "unset key\n"
                       "set border 3 lc rgb '#555555' lw 1.2\n"
                       "set tics nomirror out textcolor rgb '#222222'\n"
                       "set grid xtics ytics lt 1 lc rgb '#dddddd' lw 1\n"
                       "set rmargin 5\n"
                       "set tmargin 3.5\n"
                       "set bmargin " +
                       std::string(left_out.empty() ? "6" : "7.5") + "\n";
  script += "set title 'Training loss of " + run_title(result) + "' noenhanced font ',17'\n";
  script += "set xlabel 'step'\nset ylabel 'loss (" + objective_text(result.training) + ")'\n";
  const auto label = [&](const std::string& text, const char* height, const char* color) {
    script += "set label '" + text + "' at graph 0.5, screen " + height + " center noenhanced textcolor rgb '" + color +
              "'\n";
  };
  label(caption(result), left_out.empty() ? "0.04" : "0.08", "#444444");
  if (!left_out.empty()) label(left_out, "0.035", "#b02020");

  if (points.empty()) {
    script += "set xrange [0:1]\nset yrange [0:1]\nunset xtics\nunset ytics\n";
    script += "set label 'no loss is finite' at graph 0.5, 0.5 center textcolor rgb '#b02020'\nplot NaN\n";
    return script;
  }
  const auto [least, most] =
      std::minmax_element(points.begin(), points.end(), [](const auto& a, const auto& b) { return a.loss < b.loss; });
  // All steps, so that the picture shows how much of them is left out.
  script += x_axis(result.first_step, static_cast<std::int64_t>(result.losses.size()));
  script += y_axis(least->loss, most->loss);
  script += "$losses << EOD\n";
  for (const PlotPoint& point : points)
    script += std::to_string(result.first_step + static_cast<std::int64_t>(point.step)) + " " +
              number("%.17g", point.loss) + "\n";
  script += "EOD\nplot $losses using 1:2 with ";
  script += points.size() <= kMarkedPoints ? "linespoints pt 7 ps 0.7" : "lines";
  script += " lw 2.5 lc rgb '#1f5fa8' title 'loss'\n";
  return script;
}

void write_plot(OutputFile& file, PictureFormat format, const std::string& gnuplot, const std::string& script) {
  // -d: without the settings of the person's own start-up files.
  const ChildResult drawn = run_program(gnuplot, {"-d"}, script, kTimeLimit);
  std::string failure = drawn.failure;
  if (failure.empty() && !is_whole(format, drawn.out)) failure = "no whole picture";
  if (!failure.empty()) {
    const std::string said = one_line(drawn.err);
    throw Error(printable(file.path()) + " was not written: " + printable(gnuplot) + " failed (" + failure + ")" +
                (said.empty() ? "" : ": " + said) +
                "; check that it is gnuplot 5 or newer, with the terminals svg and pngcairo");
  }
  file.write(drawn.out);
}

}  // namespace deviceloop::cli
