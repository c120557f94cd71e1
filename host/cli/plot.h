// The picture of a run's losses, drawn by gnuplot.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "files/output_file.h"
#include "report.h"

namespace deviceloop::cli {

enum class PictureFormat { svg, png };

/// By the ending of the name, .svg or .png; none for any other.
std::optional<PictureFormat> picture_format(const std::string& path);

/// The path of gnuplot. Throws Unsupported where it is not installed.
std::string find_gnuplot();

struct PlotPoint {
  std::int64_t step = 0;
  double loss = 0;
};

/// The finite losses, at most `most` (4 or more) of them: the first and the last, and of equal parts of the rest the
/// smallest and the largest, so that no spike is lost. In the order of their steps.
std::vector<PlotPoint> plot_points(std::span<const double> losses, std::size_t most);

/// What gnuplot is told: commands and data. The same run gives the same text.
std::string plot_script(PictureFormat format, const RunResult& result);

/// Has gnuplot draw and writes the picture; does not commit. Throws Error, with what gnuplot said, where it fails or
/// its picture is not whole.
void write_plot(OutputFile& file, PictureFormat format, const std::string& gnuplot, const std::string& script);

}  // namespace deviceloop::cli
