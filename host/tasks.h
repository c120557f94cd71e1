// Tasks to try training on, drawn instead of downloaded: each is a stream of rows without an end, in which a row
// depends on the seed and its number alone. The bits are the same on every machine: Philox4x32-10 by counters as in
// <deviceloop/random.h>, + - * / and square roots, and the functions of host/elementary.h.
#pragma once

#include <cstdint>
#include <span>

#include <deviceloop/matrix.h>

namespace deviceloop {

/// Width and height of a digit's image, in pixels.
constexpr std::int64_t kDigitSide = 28;

/// Images of hand-drawn digits, `images` [rows, 784]: rows of pixels from the top left, 0 the paper, 1 the ink. Each
/// digit is a few strokes whose points are jittered, which are slanted, scaled, rotated and shifted as a whole, drawn
/// with a pen of random width and strength, and covered with noise. Row r is row `first` + r of the task.
void draw_digits(Matrix images, std::uint64_t seed, std::int64_t first);

/// The digits on those images, `classes` [rows, 1]: of the rows 10 n to 10 n + 9 each is another one.
void number_digits(Matrix classes, std::uint64_t seed, std::int64_t first);

/// Friedman's first regression problem (Friedman 1991, Multivariate adaptive regression splines): `inputs` [rows, 10],
/// uniform in [0, 1].
void draw_friedman_inputs(Matrix inputs, std::uint64_t seed, std::int64_t first);

/// Its targets, [rows, 1]: 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + a normal number of mean 0 and standard
/// deviation 1, where x1 to x5 are the first inputs of the row; the others have no influence. So no model has a mean
/// squared error below 1.
void draw_friedman_targets(Matrix targets, std::uint64_t seed, std::int64_t first);

/// A task by its name. The functions fill host matrices of these widths, of float or double: numbers are computed in
/// double and rounded once. `first` + rows is at most 2^63 - 1.
struct Task {
  const char* name;
  std::int64_t inputs, targets;
  void (*fill_inputs)(Matrix inputs, std::uint64_t seed, std::int64_t first);
  void (*fill_targets)(Matrix targets, std::uint64_t seed, std::int64_t first);
};
std::span<const Task> tasks();

}  // namespace deviceloop
