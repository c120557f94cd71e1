// Conversions and checks on matrix views; used wherever data enters or leaves the library.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <deviceloop/matrix.h>

namespace deviceloop {

/// Calls f with a null pointer of the element type, so that one generic lambda serves both.
template <class F>
auto with_type(ElementType type, F f) {
  return type == ElementType::float32 ? f(static_cast<float*>(nullptr)) : f(static_cast<double*>(nullptr));
}

/// Throws InvalidArgument unless `view` is a readable host matrix: data not null (unless empty), sizes not negative, a
/// stride of at least `columns`. `what` names it in the message.
void check_host_view(const ConstMatrix& view, const std::string& what);

/// out = in, converted element by element. Shapes are equal, both checked by the caller.
void convert(Matrix out, ConstMatrix in);

struct NonFinite {
  std::int64_t row = 0;
  std::int64_t column = 0;
  double value = 0;
};

/// The first element, in row order, that is NaN, infinite or becomes infinite in `type`.
std::optional<NonFinite> find_non_finite(ConstMatrix in, ElementType type);

/// "row 3, column 17 is nan (counted from 0)", "row 3, column 17 is 1e+300, which fp32 cannot hold (counted from 0)".
std::string describe(const NonFinite& where, ElementType type);

}  // namespace deviceloop
