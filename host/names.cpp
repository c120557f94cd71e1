#include "names.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <system_error>

namespace deviceloop {

// No default: -Werror=switch has every value of an enum named here.

const char* name_or_null(Activation activation) {
  switch (activation) {
    case Activation::relu:
      return "relu";
    case Activation::identity:
      return "identity";
    case Activation::leaky_relu:
      return "leaky_relu";
    case Activation::elu:
      return "elu";
    case Activation::silu:
      return "silu";
    case Activation::gelu:
      return "gelu";
    case Activation::gelu_tanh:
      return "gelu_tanh";
    case Activation::tanh:
      return "tanh";
    case Activation::sigmoid:
      return "sigmoid";
    case Activation::softplus:
      return "softplus";
    case Activation::sine:
      return "sine";
  }
  return nullptr;
}

const char* name_or_null(Loss loss) {
  switch (loss) {
    case Loss::squared_error:
      return "squared_error";
    case Loss::absolute_error:
      return "absolute_error";
    case Loss::huber:
      return "huber";
    case Loss::binary_cross_entropy:
      return "binary_cross_entropy";
    case Loss::cross_entropy:
      return "cross_entropy";
  }
  return nullptr;
}

const char* name_or_null(Reduction reduction) {
  switch (reduction) {
    case Reduction::sum:
      return "sum";
    case Reduction::mean:
      return "mean";
  }
  return nullptr;
}

const char* name_or_null(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::gradient_descent:
      return "gradient_descent";
    case OptimizerKind::sgd:
      return "sgd";
    case OptimizerKind::adam:
      return "adam";
    case OptimizerKind::adamw:
      return "adamw";
    case OptimizerKind::rmsprop:
      return "rmsprop";
  }
  return nullptr;
}

const char* name_or_null(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::constant:
      return "constant";
    case ScheduleKind::step:
      return "step";
    case ScheduleKind::exponential:
      return "exponential";
    case ScheduleKind::cosine:
      return "cosine";
  }
  return nullptr;
}

const char* name_or_null(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      return "fp32";
    case Precision::fp64:
      return "fp64";
    case Precision::tf32:
      return "tf32";
    case Precision::tf32x3:
      return "tf32x3";
    case Precision::bf16:
      return "bf16";
    case Precision::fp16:
      return "fp16";
  }
  return nullptr;
}

const char* name_or_null(Formulation formulation) {
  switch (formulation) {
    case Formulation::primal:
      return "primal";
    case Formulation::gram:
      return "gram";
  }
  return nullptr;
}

const char* name_or_null(EndOfRun end) {
  switch (end) {
    case EndOfRun::all_steps:
      return "all_steps";
    case EndOfRun::callback:
      return "callback";
    case EndOfRun::patience:
      return "patience";
    case EndOfRun::target_loss:
      return "target_loss";
  }
  return nullptr;
}

const char* name_or_null(Init init) {
  switch (init) {
    case Init::normal:
      return "normal";
    case Init::he:
      return "he";
    case Init::xavier:
      return "xavier";
  }
  return nullptr;
}

const char* name_or_null(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::automatic:
      return "auto";
    case DeviceKind::cpu:
      return "cpu";
    case DeviceKind::cuda:
      return "cuda";
  }
  return nullptr;
}

const char* name_or_null(PersistentForm form) {
  switch (form) {
    case PersistentForm::automatic:
      return "auto";
    case PersistentForm::two_layer:
      return "two-layer";
    case PersistentForm::on_chip:
      return "on-chip";
  }
  return nullptr;
}

const char* name_or_null(ExecutorKind kind) {
  switch (kind) {
    case ExecutorKind::cpu:
      return "cpu";
    case ExecutorKind::graph:
      return "graph";
    case ExecutorKind::persistent:
      return "persistent";
    case ExecutorKind::fused:
      return "fused";
  }
  return nullptr;
}

std::string activation_text(Activation activation, double leaky_slope) {
  std::string name = name_or_null(activation);
  std::replace(name.begin(), name.end(), '_', '-');
  if (activation != Activation::leaky_relu || leaky_slope == NetworkSpec().leaky_slope) return name;
  char digits[32];  // as many as a double needs to be read again
  return name + ":" + std::string(digits, std::to_chars(digits, digits + sizeof digits, leaky_slope).ptr);
}

std::optional<NamedActivation> activation_named(std::string_view text) {
  const std::size_t colon = text.find(':');
  for (int number = 0; name_or_null(static_cast<Activation>(number)) != nullptr; ++number) {
    const auto kind = static_cast<Activation>(number);
    if (text.substr(0, colon) != activation_text(kind)) continue;
    if (kind != Activation::leaky_relu) return colon == text.npos ? std::optional(NamedActivation{kind}) : std::nullopt;
    double slope = NetworkSpec().leaky_slope;
    if (colon != text.npos) {
      const char* const end = text.data() + text.size();
      const auto parsed = std::from_chars(text.data() + colon + 1, end, slope);
      if (parsed.ec != std::errc() || parsed.ptr != end || !std::isfinite(slope)) return std::nullopt;
    }
    return NamedActivation{kind, slope};
  }
  return std::nullopt;
}

namespace {

template <class Enum>
const char* name_of(Enum value) {
  const char* const name = name_or_null(value);
  return name != nullptr ? name : "unknown";
}

}  // namespace

const char* name(ExecutorKind kind) { return name_of(kind); }
const char* name(Precision precision) { return name_of(precision); }
const char* name(Formulation formulation) { return name_of(formulation); }
const char* name(PersistentForm form) { return name_of(form); }

}  // namespace deviceloop
