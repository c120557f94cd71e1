#include "matrix_ops.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include <deviceloop/error.h>

namespace deviceloop {
void check_host_view(const ConstMatrix& view, const std::string& what) {
  const std::string shape = "[" + std::to_string(view.rows) + ", " + std::to_string(view.columns) + "]";
  if (view.rows < 0 || view.columns < 0)
    throw InvalidArgument(what + " has the shape " + shape + "; rows and columns must not be negative");
  if (view.space != MemorySpace::host)
    throw InvalidArgument(what + " lies in device memory; pass a view of host memory");
  if (view.rows == 0 || view.columns == 0) return;
  if (view.data == nullptr) throw InvalidArgument(what + " is null; pass " + shape + " elements");
  if (view.row_stride < view.columns)
    throw InvalidArgument(what + " has a row stride of " + std::to_string(view.row_stride) +
                          " elements, less than its " + std::to_string(view.columns) + " columns");
}

void convert(Matrix out, ConstMatrix in) {
  with_type(out.type, [&](auto* out_tag) {
    with_type(in.type, [&](auto* in_tag) {
      using Out = std::remove_pointer_t<decltype(out_tag)>;
      using In = std::remove_pointer_t<decltype(in_tag)>;
      for (std::int64_t row = 0; row < in.rows; ++row) {
        Out* out_row = static_cast<Out*>(out.data) + row * out.row_stride;
        const In* in_row = static_cast<const In*>(in.data) + row * in.row_stride;
        if constexpr (std::is_same_v<Out, In>) {
          std::memcpy(out_row, in_row, static_cast<std::size_t>(in.columns) * sizeof(In));
        } else {
          for (std::int64_t column = 0; column < in.columns; ++column)
            out_row[column] = static_cast<Out>(in_row[column]);
        }
      }
    });
  });
}

std::optional<NonFinite> find_non_finite(ConstMatrix in, ElementType type) {
  return with_type(in.type, [&](auto* in_tag) {
    return with_type(type, [&](auto* tag) -> std::optional<NonFinite> {
      using In = std::remove_pointer_t<decltype(in_tag)>;
      using As = std::remove_pointer_t<decltype(tag)>;
      for (std::int64_t row = 0; row < in.rows; ++row) {
        const In* values = static_cast<const In*>(in.data) + row * in.row_stride;
        // x * 0 is 0 for a finite x and NaN otherwise: a sum that vectorises, looked into only where it is not 0.
        As sum = 0;
        for (std::int64_t column = 0; column < in.columns; ++column) sum += static_cast<As>(values[column]) * As(0);
        if (sum == 0) continue;
        for (std::int64_t column = 0; column < in.columns; ++column)
          if (!std::isfinite(static_cast<As>(values[column])))
            return NonFinite{row, column, static_cast<double>(values[column])};
      }
      return std::nullopt;
    });
  });
}

std::string describe(const NonFinite& where, ElementType type) {
  char value[32];
  std::snprintf(value, sizeof value, "%g", where.value);
  std::string text = "row " + std::to_string(where.row) + ", column " + std::to_string(where.column) + " is " + value;
  if (std::isfinite(where.value)) text += type == ElementType::float32 ? ", which fp32 cannot hold" : "";
  return text + " (counted from 0)";
}

}  // namespace deviceloop
