// The products of a step of training, for the CPU and a GPU alike.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "case.h"
#include "parallel.h"
#include "random_data.h"
#include "reference.h"

namespace deviceloop::bench {

/// out [m, n] = op(a) op(b), where op(a) is [m, k] and op(b) [k, n].
struct ProductShape {
  std::string name;  ///< gemm/forward/1000-100-1/layer=0/n=128/fp32
  Precision precision = Precision::fp32;
  std::int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false;
  bool transpose_b = false;

  std::int64_t a_elements() const { return m * k; }
  std::int64_t b_elements() const { return k * n; }
  std::int64_t out_elements() const { return m * n; }
};

/// The product that values of product_axes name; none for the gradient of the first layer's input, and for a layer that
/// the network does not have.
std::optional<ProductShape> product_shape(const Values& values);

/// The axes of a block of products, and whether it is run by default: of layers of one shape one is, where all are at
/// hand in another block.
struct ProductBlock {
  bool by_default = true;
  std::vector<Axis> axes;
};
std::vector<ProductBlock> product_blocks();

Demand demand_of(const ProductShape& shape);

/// Holds rows of `out`, at most 64 of them, against the reference, with operands of random_value (kFirst and kSecond)
/// under `seed`. A product may be off by sqrt(k) roundings, relative to its Frobenius norm. Throws WrongResult.
template <class T>
void check_product(const ProductShape& shape, std::uint64_t seed, const T* out) {
  constexpr std::int64_t kMostRows = 64;
  const std::int64_t rows = std::min(shape.m, kMostRows);
  const auto place = [&](std::int64_t row) { return rows == shape.m ? row : row * (shape.m - 1) / (rows - 1); };
  // Some columns of the first operand at a time: the second one in double, as a whole, would be hundreds of megabytes.
  constexpr std::int64_t kMostColumns = 256;
  Table expected(rows, shape.n), got(rows, shape.n);
  for (std::int64_t first = 0; first < shape.k; first += kMostColumns) {
    const std::int64_t count = std::min(kMostColumns, shape.k - first);
    Table a(rows, count), b(count, shape.n);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t k = 0; k < count; ++k) {
        const std::int64_t at = shape.transpose_a ? (first + k) * shape.m + place(i) : place(i) * shape.k + first + k;
        a.row(i)[k] = static_cast<double>(random_value<T>(seed, kFirst, at));
      }
    in_parallel(
        count,
        [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t k = begin; k < end; ++k)
            for (std::int64_t j = 0; j < shape.n; ++j) {
              const std::int64_t at = shape.transpose_b ? j * shape.k + first + k : (first + k) * shape.n + j;
              b.row(k)[j] = static_cast<double>(random_value<T>(seed, kSecond, at));
            }
        },
        (1 << 15) / shape.n + 1);
    add_product(expected, a, b);
  }
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < shape.n; ++j) got.row(i)[j] = static_cast<double>(out[place(i) * shape.n + j]);
  const double error = distance(got, expected) / norm(expected);
  const double bound = std::sqrt(static_cast<double>(shape.k)) * (sizeof(T) == 4 ? 0x1p-24 : 0x1p-53);
  if (!(error <= bound))
    throw WrongResult("the product is off by " + std::to_string(error / bound) + " times what rounding allows");
}

}  // namespace deviceloop::bench
