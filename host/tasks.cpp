#include "tasks.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "elementary.h"
#include "matrix_ops.h"
#include "permutation.h"
#include "random_internal.h"

namespace deviceloop {
namespace {

/// The last word of Philox's counter, so that no two purposes share a number; <deviceloop/random.h> has 0,
/// host/permutation.h those from 1 to 20.
enum class Purpose : std::uint32_t { digit_order = 256, digit_shape, digit_noise, friedman };

/// The numbers of one row for one purpose, in order.
class Stream {
 public:
  Stream(std::uint64_t seed, std::int64_t row, Purpose purpose)
      : seed_(seed), row_(static_cast<std::uint64_t>(row)), purpose_(static_cast<std::uint32_t>(purpose)) {}

  std::uint32_t word() {
    if (taken_ % 4 == 0)
      block_ = philox(
          {{static_cast<std::uint32_t>(row_), static_cast<std::uint32_t>(row_ >> 32), taken_ / 4, purpose_}}, seed_);
    return block_.words[taken_++ % 4];
  }
  /// From low to high, one of 2^32 equally spaced numbers.
  double uniform(double low, double high) { return low + (high - low) * ((word() + 0.5) * 0x1p-32); }
  double normal() {
    const std::uint64_t high = word(), low = word();
    // 52 bits and a half: never 0 and never 1.
    return inverse_normal((static_cast<double>((high << 32 | low) >> 12) + 0.5) * 0x1p-52);
  }

 private:
  std::uint64_t seed_, row_;
  std::uint32_t purpose_, taken_ = 0;
  PhiloxWords block_{};
};

/// Calls fill(elements, row) for each row; the elements are of the matrix' type.
template <class Fill>
void for_each_row(Matrix matrix, std::int64_t first, const Fill& fill) {
  with_type(matrix.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for (std::int64_t row = 0; row < matrix.rows; ++row)
      fill(static_cast<T*>(matrix.data) + row * matrix.row_stride, first + row);
  });
}

struct Point {
  double x, y;
};

/// A movement of the pen through points: straight from each to the next, or a smooth curve, which a loop closes.
struct Stroke {
  enum class Kind { line, curve, loop };
  Kind kind;
  std::vector<Point> points;
};

/// The strokes of each digit; x to the right and y down, from -1 at a digit's top to 1 at its bottom.
const std::vector<Stroke>& glyph(int digit) {
  using enum Stroke::Kind;
  static const std::vector<Stroke> glyphs[10] = {
      {{loop, {{0, -1}, {0.42, -0.7}, {0.58, 0}, {0.42, 0.7}, {0, 1}, {-0.42, 0.7}, {-0.58, 0}, {-0.42, -0.7}}}},
      {{line, {{-0.3, -0.6}, {0.05, -1}, {0.05, 1}}}},
      {{curve, {{-0.5, -0.55}, {-0.3, -0.9}, {0.1, -1}, {0.48, -0.7}, {0.4, -0.2}, {0, 0.35}, {-0.5, 0.95}}},
       {line, {{-0.5, 0.95}, {0.55, 0.95}}}},
      {{curve, {{-0.45, -0.75}, {-0.05, -1}, {0.4, -0.75}, {0.35, -0.3}, {-0.1, -0.08}}},
       {curve, {{-0.1, -0.08}, {0.4, 0.15}, {0.5, 0.55}, {0.1, 1}, {-0.35, 0.9}, {-0.5, 0.65}}}},
      {{line, {{0.05, -1}, {-0.55, 0.3}, {0.6, 0.3}}}, {line, {{0.3, -0.4}, {0.25, 1}}}},
      {{line, {{0.45, -0.95}, {-0.35, -0.95}, {-0.42, -0.15}}},
       {curve, {{-0.42, -0.15}, {0.05, -0.3}, {0.48, 0.1}, {0.45, 0.65}, {0.05, 1}, {-0.45, 0.8}}}},
      {{curve,
        {{0.35, -0.95},
         {-0.2, -0.6},
         {-0.5, 0.1},
         {-0.4, 0.75},
         {0, 1},
         {0.42, 0.7},
         {0.4, 0.25},
         {0, 0.05},
         {-0.42, 0.35}}}},
      {{line, {{-0.5, -0.95}, {0.5, -0.95}, {-0.1, 1}}}},
      {{loop,
        {{0, -0.05},
         {0.4, -0.45},
         {0.3, -0.9},
         {0, -1},
         {-0.3, -0.9},
         {-0.4, -0.45},
         {0, -0.05},
         {0.45, 0.4},
         {0.4, 0.85},
         {0, 1},
         {-0.4, 0.85},
         {-0.45, 0.4}}}},
      {{loop, {{0, -1}, {0.4, -0.8}, {0.42, -0.35}, {0.05, -0.1}, {-0.4, -0.3}, {-0.42, -0.75}}},
       {curve, {{0.43, -0.6}, {0.4, 0.1}, {0.1, 1}}}},
  };
  return glyphs[digit];
}

/// Between b and c, at t from 0 to 1, of the curve of Catmull and Rom through a, b, c, d.
double curve_at(double a, double b, double c, double d, double t) {
  return 0.5 * (2 * b + t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))));
}

/// A stroke as straight pieces.
std::vector<Point> flattened(Stroke::Kind kind, const std::vector<Point>& points) {
  if (kind == Stroke::Kind::line) return points;
  constexpr int kPieces = 4;  // between two points, each shorter than two pixels
  const bool closed = kind == Stroke::Kind::loop;
  const auto count = static_cast<int>(points.size());
  const auto point = [&](int i) {
    return points[static_cast<std::size_t>(closed ? (i + count) % count : std::clamp(i, 0, count - 1))];
  };
  std::vector<Point> path = {points.front()};
  for (int i = 0; i < (closed ? count : count - 1); ++i)
    for (int piece = 1; piece <= kPieces; ++piece) {
      const Point a = point(i - 1), b = point(i), c = point(i + 1), d = point(i + 2);
      const double t = static_cast<double>(piece) / kPieces;
      path.push_back({curve_at(a.x, b.x, c.x, d.x, t), curve_at(a.y, b.y, c.y, d.y, t)});
    }
  return path;
}

/// One image, in the coordinates of pixels: (0, 0) is the centre of the one at the top left.
class Drawing {
 public:
  explicit Drawing(double radius) : radius_(radius) { std::fill_n(squares_, kDigitSide * kDigitSide, 1e9); }

  /// A piece of a stroke.
  void add(Point from, Point to) {
    const double reach = radius_ + 0.5;
    const double x = to.x - from.x, y = to.y - from.y, length = x * x + y * y;
    const std::int64_t left = pixel(std::min(from.x, to.x) - reach), right = pixel(std::max(from.x, to.x) + reach + 1);
    const std::int64_t top = pixel(std::min(from.y, to.y) - reach), bottom = pixel(std::max(from.y, to.y) + reach + 1);
    for (std::int64_t row = top; row < bottom; ++row)
      for (std::int64_t column = left; column < right; ++column) {
        const double to_x = static_cast<double>(column) - from.x, to_y = static_cast<double>(row) - from.y;
        const double t = length > 0 ? std::clamp((to_x * x + to_y * y) / length, 0.0, 1.0) : 0;
        const double off_x = to_x - t * x, off_y = to_y - t * y;
        double& square = squares_[row * kDigitSide + column];
        square = std::min(square, off_x * off_x + off_y * off_y);
      }
  }

  /// How much of a pixel is covered, from 0 to 1: by its distance to the next stroke.
  double ink(std::int64_t index) const { return std::clamp(radius_ + 0.5 - std::sqrt(squares_[index]), 0.0, 1.0); }

 private:
  static std::int64_t pixel(double coordinate) {
    return static_cast<std::int64_t>(std::clamp(coordinate, 0.0, static_cast<double>(kDigitSide)));
  }

  double radius_;
  double squares_[kDigitSide * kDigitSide];  // of the distance to the next stroke, where that matters
};

int digit_of(std::uint64_t seed, std::int64_t row) {
  Stream random(seed, row / 10, Purpose::digit_order);
  int digits[10];
  std::iota(digits, digits + 10, 0);
  for (std::uint64_t left = 10; left > 1; --left) std::swap(digits[left - 1], digits[random.word() * left >> 32]);
  return digits[row % 10];
}

Drawing drawn(Stream& random, int digit) {
  Drawing drawing(random.uniform(0.75, 1.5));
  // The matrix that maps a glyph to pixels: first slant and scale, then a rotation by 2 atan(half).
  const double size = random.uniform(7.5, 9.5), aspect = random.uniform(0.8, 1.2), slant = random.uniform(-0.4, 0.4);
  const double half = random.uniform(-0.15, 0.15);
  const double cosine = (1 - half * half) / (1 + half * half), sine = 2 * half / (1 + half * half);
  const double right = random.uniform(-2.5, 2.5), down = random.uniform(-2.5, 2.5);
  constexpr double kCentre = (kDigitSide - 1) / 2.0;
  std::vector<Point> points;
  for (const Stroke& stroke : glyph(digit)) {
    points.clear();
    for (const Point& point : stroke.points) {
      const double x = point.x + random.uniform(-0.1, 0.1), y = point.y + random.uniform(-0.1, 0.1);
      const double wide = size * aspect * (x - slant * y), high = size * y;
      points.push_back({kCentre + right + cosine * wide - sine * high, kCentre + down + sine * wide + cosine * high});
    }
    const std::vector<Point> path = flattened(stroke.kind, points);
    for (std::size_t i = 1; i < path.size(); ++i) drawing.add(path[i - 1], path[i]);
  }
  return drawing;
}

/// Friedman's inputs are in the order of the stream, the noise behind them.
constexpr std::int64_t kFriedmanInputs = 10;

}  // namespace

void draw_digits(Matrix images, std::uint64_t seed, std::int64_t first) {
  for_each_row(images, first, [&](auto* pixels, std::int64_t row) {
    using T = std::remove_pointer_t<decltype(pixels)>;
    Stream random(seed, row, Purpose::digit_shape), noise(seed, row, Purpose::digit_noise);
    const double strength = random.uniform(0.5, 1);
    const Drawing drawing = drawn(random, digit_of(seed, row));
    for (std::int64_t i = 0; i < kDigitSide * kDigitSide; ++i)
      pixels[i] = static_cast<T>(std::clamp(strength * drawing.ink(i) + noise.uniform(-0.2, 0.2), 0.0, 1.0));
  });
}

void number_digits(Matrix classes, std::uint64_t seed, std::int64_t first) {
  for_each_row(classes, first, [&](auto* number, std::int64_t row) {
    *number = static_cast<std::remove_pointer_t<decltype(number)>>(digit_of(seed, row));
  });
}

void draw_friedman_inputs(Matrix inputs, std::uint64_t seed, std::int64_t first) {
  for_each_row(inputs, first, [&](auto* x, std::int64_t row) {
    Stream random(seed, row, Purpose::friedman);
    for (std::int64_t i = 0; i < kFriedmanInputs; ++i)
      x[i] = static_cast<std::remove_pointer_t<decltype(x)>>(random.uniform(0, 1));
  });
}

void draw_friedman_targets(Matrix targets, std::uint64_t seed, std::int64_t first) {
  for_each_row(targets, first, [&](auto* y, std::int64_t row) {
    Stream random(seed, row, Purpose::friedman);
    double x[kFriedmanInputs];
    for (double& each : x) each = random.uniform(0, 1);
    constexpr double kPi = 0x1.921fb54442d18p+1;
    const double wave = 10 * elementary::sin(kPi * x[0] * x[1]), bowl = 20 * (x[2] - 0.5) * (x[2] - 0.5);
    *y = static_cast<std::remove_pointer_t<decltype(y)>>(wave + bowl + 10 * x[3] + 5 * x[4] + random.normal());
  });
}

std::span<const Task> tasks() {
  static constexpr Task kTasks[] = {
      {"digits", kDigitSide * kDigitSide, 1, draw_digits, number_digits},
      {"friedman", kFriedmanInputs, 1, draw_friedman_inputs, draw_friedman_targets},
  };
  return kTasks;
}

}  // namespace deviceloop
