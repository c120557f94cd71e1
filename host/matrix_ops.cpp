#include "matrix_ops.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include <deviceloop/error.h>

namespace deviceloop {
namespace {

/// Whether there can be memory from the first element of a view to the end of its last one.
bool has_address_range(const ConstMatrix& view) {
  std::int64_t elements = 0, bytes = 0;
  return !__builtin_mul_overflow(view.rows - 1, view.row_stride, &elements) &&
         !__builtin_add_overflow(elements, view.columns, &elements) &&
         !__builtin_mul_overflow(elements, static_cast<std::int64_t>(size_of(view.type)), &bytes) &&
         is_address_range(view.data, static_cast<std::uint64_t>(bytes));
}

// The functions below look at the bits: an operation on a refused number would raise floating-point exceptions, which a
// host application may trap.
template <class T>
using BitsOf =
    std::conditional_t<sizeof(T) == 2, std::uint16_t, std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>>;

template <class T>
constexpr BitsOf<T> kSign = static_cast<BitsOf<T>>(BitsOf<T>(1) << (8 * sizeof(T) - 1));

template <class T>
BitsOf<T> magnitude(T value) {
  return static_cast<BitsOf<T>>(std::bit_cast<BitsOf<T>>(value) & ~kSign<T>);
}

template <class T>
constexpr BitsOf<T> infinity_bits() {
  if constexpr (sizeof(T) == 2)
    return T::kInfinity;
  else
    return std::bit_cast<BitsOf<T>>(std::numeric_limits<T>::infinity());
}
template <class T>
constexpr BitsOf<T> kInfinity = infinity_bits<T>();

/// The smallest magnitude of an In that is not finite as an As.
template <class As, class In>
constexpr BitsOf<In> least_refused() {
  if constexpr (sizeof(As) < sizeof(In))
    return std::bit_cast<BitsOf<In>>(static_cast<In>(kLeastInfiniteFloat));
  else
    return kInfinity<In>;
}

/// A refused number as a double. The compiler may assume that a conversion raises no exception, so none is used: one
/// that is refused and no double is NaN or infinite.
template <class T>
double refused_value(T value) {
  if (magnitude(value) > kInfinity<T>) return std::numeric_limits<double>::quiet_NaN();
  if constexpr (sizeof(T) == sizeof(double)) return value;
  const double infinity = std::numeric_limits<double>::infinity();
  return magnitude(value) == std::bit_cast<BitsOf<T>>(value) ? infinity : -infinity;
}

}  // namespace

const char* name(ElementType type) {
  switch (type) {
    case ElementType::float32:
      return "float32";
    case ElementType::float64:
      return "float64";
    case ElementType::bfloat16:
      return "bfloat16";
    case ElementType::float16:
      return "float16";
  }
  return nullptr;
}

void check_is_written(ElementType type, const std::string& what) {
  if (type == ElementType::float32 || type == ElementType::float64) return;
  const char* const found = name(type);
  throw InvalidArgument(
      what + " has elements of the type " + (found != nullptr ? found : std::to_string(static_cast<int>(type))) +
      (found != nullptr ? ", which is only read; " : ", which there is not; ") + "use float32 or float64");
}

bool is_finite(double value) { return magnitude(value) < kInfinity<double>; }

double quieted(double value) { return refused_value(value); }

bool is_address_range(const void* data, std::uint64_t bytes) {
  // No address space of a process is larger: 57 bits on x86-64, half of them the kernel's.
  constexpr std::uint64_t kMost = std::uint64_t{1} << 56;
  return bytes <= kMost && reinterpret_cast<std::uintptr_t>(data) <= UINTPTR_MAX - bytes;
}

std::uint64_t spanned_bytes(const ConstMatrix& view) {
  return (static_cast<std::uint64_t>(view.rows - 1) * static_cast<std::uint64_t>(view.row_stride) +
          static_cast<std::uint64_t>(view.columns)) *
         size_of(view.type);
}

void check_host_view(const Matrix& view, const std::string& what) {
  check_is_written(view.type, what);
  check_host_view(static_cast<const ConstMatrix&>(view), what);
}

void check_view(const Matrix& view, const std::string& what) {
  check_is_written(view.type, what);
  check_view(static_cast<const ConstMatrix&>(view), what);
}

void check_host_view(const ConstMatrix& view, const std::string& what) {
  if (view.space != MemorySpace::host)
    throw InvalidArgument(what + " lies in device memory; pass a view of host memory");
  check_view(view, what);
}

void check_view(const ConstMatrix& view, const std::string& what) {
  const std::string shape = "[" + std::to_string(view.rows) + ", " + std::to_string(view.columns) + "]";
  if (name(view.type) == nullptr) check_is_written(view.type, what);
  if (view.rows < 0 || view.columns < 0)
    throw InvalidArgument(what + " has the shape " + shape + "; rows and columns must not be negative");
  if (view.rows == 0 || view.columns == 0) return;
  if (view.data == nullptr) throw InvalidArgument(what + " is null; pass " + shape + " elements");
  if (view.row_stride < view.columns)
    throw InvalidArgument(what + " has a row stride of " + std::to_string(view.row_stride) +
                          " elements, less than its " + std::to_string(view.columns) + " columns");
  if (!has_address_range(view))
    throw InvalidArgument(what + " has the shape " + shape + " and a row stride of " + std::to_string(view.row_stride) +
                          " elements, more than any memory has room for; pass the sizes of the matrix at `data`");
}

void convert(Matrix out, ConstMatrix in) {
  with_type(out.type, [&]<class Out>(Out*) {
    with_read_type(in.type, [&]<class In>(In*) {
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
  return with_read_type(in.type, [&]<class In>(In*) {
    return with_type(type, [&]<class As>(As*) -> std::optional<NonFinite> {
      using Bits = BitsOf<In>;
      constexpr Bits kLeast = least_refused<As, In>(), kToSign = static_cast<Bits>(kSign<In> - kLeast);
      for (std::int64_t row = 0; row < in.rows; ++row) {
        const In* values = static_cast<const In*>(in.data) + row * in.row_stride;
        // A magnitude of at least kLeast carries into the sign bit of this sum. The loop vectorises; single elements
        // are examined only if one carried.
        Bits carried = 0;
        for (std::int64_t column = 0; column < in.columns; ++column)
          carried = static_cast<Bits>(carried | static_cast<Bits>(magnitude(values[column]) + kToSign));
        if ((carried & kSign<In>) == 0) continue;
        std::int64_t column = 0;
        while (magnitude(values[column]) < kLeast) ++column;
        return NonFinite{row, column, refused_value(values[column])};
      }
      return std::nullopt;
    });
  });
}

std::string describe(const NonFinite& where, ElementType type) {
  char value[32];
  std::snprintf(value, sizeof value, "%g", where.value);
  std::string text = "row " + std::to_string(where.row) + ", column " + std::to_string(where.column) + " is " + value;
  if (magnitude(where.value) < kInfinity<double>)
    text += type == ElementType::float32 ? ", which fp32 cannot hold" : "";
  return text + " (counted from 0)";
}

void refuse_element(const ElementRule& rule, const NonFinite& where, const std::string& what) {
  char text[32];
  switch (rule.kind) {
    case ElementRule::Kind::finite:
      break;
    case ElementRule::Kind::weight:
      if (!is_finite(where.value) || where.value > 0) break;
      std::snprintf(text, sizeof text, "%g", where.value);
      throw InvalidArgument(what + ": row " + std::to_string(where.row) + " is " + text +
                            " (counted from 0), and the weights of samples must not be negative");
    case ElementRule::Kind::class_number:
      std::snprintf(text, sizeof text, "%.10g", where.value);
      throw InvalidArgument(what + ": row " + std::to_string(where.row) + " is " + text +
                            ", and classes are the whole numbers from 0 to " + std::to_string(rule.classes - 1) +
                            " (rows counted from 0); give the network more outputs or mend the row");
  }
  throw InvalidArgument(what + ": " + describe(where, rule.type) + "; replace or drop such samples");
}

void check_finite(ConstMatrix in, ElementType type, const std::string& what) {
  if (const auto bad = find_non_finite(in, type)) refuse_element({ElementRule::Kind::finite, type, 0}, *bad, what);
}

void check_weights(ConstMatrix in, ElementType type, const std::string& what) {
  check_finite(in, type, what);
  with_read_type(in.type, [&]<class In>(In*) {
    for (std::int64_t row = 0; row < in.rows; ++row) {
      const auto weight = static_cast<double>(static_cast<const In*>(in.data)[row * in.row_stride]);
      if (!(weight >= 0)) refuse_element({ElementRule::Kind::weight, type, 0}, {row, 0, weight}, what);
    }
  });
}

void check_classes(ConstMatrix in, std::int64_t classes, const std::string& what) {
  with_read_type(in.type, [&]<class In>(In*) {
    for (std::int64_t row = 0; row < in.rows; ++row) {
      const auto number = static_cast<double>(static_cast<const In*>(in.data)[row * in.row_stride]);
      if (number >= 0 && number < static_cast<double>(classes) && number == std::trunc(number)) continue;
      refuse_element({ElementRule::Kind::class_number, in.type, classes}, {row, 0, number}, what);
    }
  });
}

}  // namespace deviceloop
