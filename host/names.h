// Names of the values of a specification, for messages, and whether a number is one of them.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <deviceloop/plan.h>
#include <deviceloop/spec.h>
#include <deviceloop/trainer.h>

namespace deviceloop {

/// Null if the number is not a value of its enum.
/// @{
const char* name_or_null(Activation activation);
const char* name_or_null(Loss loss);
const char* name_or_null(Reduction reduction);
const char* name_or_null(OptimizerKind kind);
const char* name_or_null(ScheduleKind kind);
const char* name_or_null(Precision precision);
const char* name_or_null(Formulation formulation);
const char* name_or_null(EndOfRun end);
const char* name_or_null(Init init);
const char* name_or_null(DeviceKind kind);
const char* name_or_null(PersistentForm form);
const char* name_or_null(ExecutorKind kind);
/// @}

/// "gelu-tanh", "leaky-relu:0.2": as the command's options and weights files have it; the default slope is not
/// mentioned. The activation is one of its enum.
std::string activation_text(Activation activation, double leaky_slope = NetworkSpec().leaky_slope);
/// The activation of such a text, whose slope, which leaky ReLU alone has, is finite.
struct NamedActivation {
  Activation kind = Activation::relu;
  std::optional<double> slope{};
};
std::optional<NamedActivation> activation_named(std::string_view text);

/// "'relu'", or "number 7".
template <class Enum>
std::string shown(Enum value) {
  const char* const name = name_or_null(value);
  return name != nullptr ? std::string("'") + name + "'" : "number " + std::to_string(static_cast<long long>(value));
}

}  // namespace deviceloop
