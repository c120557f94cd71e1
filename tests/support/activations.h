// The activations from their definitions in <deviceloop/spec.h>, with the C++ library's functions in long double, and
// their derivatives, worked out by hand. They share no formula with what they check.
#pragma once

#include <cmath>
#include <cstddef>
#include <iterator>
#include <utility>
#include <vector>

#include <deviceloop/spec.h>

#include "../../host/activations.h"
#include "support/reference.h"

namespace deviceloop::testing {

struct ActivationFormula {
  const char* name;
  ActivationOfStep activation;
  long double (*value)(long double z);
  long double (*derivative)(long double z);
};

namespace formulas {

inline long double logistic(long double z) { return 1 / (1 + std::exp(-z)); }
inline constexpr long double kPi = 3.14159265358979323846264338327950288L;
inline long double inner(long double z) { return std::sqrt(2 / kPi) * (z + 0.044715L * z * z * z); }

}  // namespace formulas

inline constexpr ActivationFormula kActivationFormulas[] = {
    {"relu",
     {Activation::relu},
     [](long double z) { return z < 0 ? 0 : z; },
     [](long double z) { return z < 0 ? 0 : 1.0L; }},
    {"identity", {Activation::identity}, [](long double z) { return z; }, [](long double) { return 1.0L; }},
    {"leaky_relu",
     {Activation::leaky_relu},
     [](long double z) { return z > 0 ? z : 0.01L * z; },
     [](long double z) { return z > 0 ? 1 : 0.01L; }},
    {"elu",
     {Activation::elu},
     [](long double z) { return z > 0 ? z : std::exp(z) - 1; },
     [](long double z) { return z > 0 ? 1 : std::exp(z); }},
    {"silu",
     {Activation::silu},
     [](long double z) { return z * formulas::logistic(z); },
     [](long double z) { return formulas::logistic(z) + z * formulas::logistic(z) * formulas::logistic(-z); }},
    {"gelu",
     {Activation::gelu},
     [](long double z) { return z * (1 + std::erf(z / std::sqrt(2.0L))) / 2; },
     [](long double z) {
       return (1 + std::erf(z / std::sqrt(2.0L))) / 2 + z * std::exp(-z * z / 2) / std::sqrt(2 * formulas::kPi);
     }},
    {"gelu_tanh",
     {Activation::gelu_tanh},
     [](long double z) { return z * (1 + std::tanh(formulas::inner(z))) / 2; },
     [](long double z) {
       const long double t = std::tanh(formulas::inner(z));
       return (1 + t) / 2 + z * (1 - t * t) / 2 * std::sqrt(2 / formulas::kPi) * (1 + 3 * 0.044715L * z * z);
     }},
    {"tanh",
     {Activation::tanh},
     [](long double z) { return std::tanh(z); },
     [](long double z) { return 1 / (std::cosh(z) * std::cosh(z)); }},
    {"sigmoid",
     {Activation::sigmoid},
     formulas::logistic,
     [](long double z) { return formulas::logistic(z) * formulas::logistic(-z); }},
    {"softplus", {Activation::softplus}, [](long double z) { return std::log(1 + std::exp(z)); }, formulas::logistic},
    {"sine", {Activation::sine}, [](long double z) { return std::sin(z); }, [](long double z) { return std::cos(z); }},
    // Below 0 the value does not say on which side of 0 the pre-activation was.
    {"leaky_relu of slope 0.2",
     {Activation::leaky_relu, 0.2},
     [](long double z) { return z > 0 ? z : 0.2L * z; },
     [](long double z) { return z > 0 ? 1 : 0.2L; }},
    {"leaky_relu of slope -0.5",
     {Activation::leaky_relu, -0.5},
     [](long double z) { return z > 0 ? z : -0.5L * z; },
     [](long double z) { return z > 0 ? 1 : -0.5L; }},
};

template <std::size_t... index>
std::vector<reference::Activation> reference_activations(std::index_sequence<index...>) {
  return {{[](double z) { return static_cast<double>(kActivationFormulas[index].value(z)); },
           [](double z, double dh) { return static_cast<double>(kActivationFormulas[index].derivative(z)) * dh; }}...};
}

/// The formulas as the reference takes them.
inline std::vector<reference::Activation> reference_activations() {
  return reference_activations(std::make_index_sequence<std::size(kActivationFormulas)>());
}

}  // namespace deviceloop::testing
