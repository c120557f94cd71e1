// The product of the stand-ins for cuBLAS and cuBLASLt, on the host. Include it in files that are compiled without
// sanitizers, for speed: whether memory may be touched is asked before.
#pragma once

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "simt/control.h"

namespace simt {

/// A column-major matrix, and how a product takes it.
template <class T>
struct Matrix {
  T* data;
  std::int64_t rows, columns;  ///< as it lies in memory
  std::int64_t leading;        ///< elements from one column to the next
  bool transposed = false;

  T& at(std::int64_t row, std::int64_t column) const {
    return transposed ? data[row * leading + column] : data[column * leading + row];
  }
};

/// Throws KernelError where the matrix reaches beyond its allocation.
template <class T>
void check_memory(const char* function, const Matrix<T>& matrix) {
  if (matrix.rows == 0 || matrix.columns == 0) return;
  const auto bytes = static_cast<std::size_t>(matrix.leading * (matrix.columns - 1) + matrix.rows) * sizeof(T);
  if (__asan_region_is_poisoned(const_cast<std::remove_const_t<T>*>(matrix.data), bytes) != nullptr)
    throw KernelError(std::string(function) + ": a matrix of " + std::to_string(bytes) +
                      " bytes reaches beyond its allocation");
}

/// d = alpha a b + beta c, with sums in double over `terms`; `backwards` adds from the last to the first.
template <class T>
void multiply(T alpha, const Matrix<const T>& a, const Matrix<const T>& b, std::int64_t terms, T beta,
              const Matrix<const T>& c, const Matrix<T>& d, bool backwards = false) {
  std::vector<double> left(static_cast<std::size_t>(d.rows * terms)), sums(static_cast<std::size_t>(d.rows));
  for (std::int64_t k = 0; k < terms; ++k)
    for (std::int64_t i = 0; i < d.rows; ++i)
      left[static_cast<std::size_t>(k * d.rows + i)] = static_cast<double>(a.at(i, k));
  for (std::int64_t j = 0; j < d.columns; ++j) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::int64_t step = 0; step < terms; ++step) {
      const std::int64_t k = backwards ? terms - 1 - step : step;
      const auto right = static_cast<double>(b.at(k, j));
      const double* const column = &left[static_cast<std::size_t>(k * d.rows)];
      for (std::int64_t i = 0; i < d.rows; ++i) sums[static_cast<std::size_t>(i)] += column[i] * right;
    }
    for (std::int64_t i = 0; i < d.rows; ++i) {
      // As the libraries: with beta = 0 what lies in C does not matter, not even NaN.
      const double before = beta == T(0) ? 0 : static_cast<double>(beta) * static_cast<double>(c.at(i, j));
      d.at(i, j) = static_cast<T>(static_cast<double>(alpha) * sums[static_cast<std::size_t>(i)] + before);
    }
  }
}

}  // namespace simt
