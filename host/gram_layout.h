// What the Gram formulation (see Formulation) keeps of the first layer beside its parameters, in the arena of an
// executor.
#pragma once

#include <cstdint>
#include <optional>

#include <deviceloop/spec.h>

#include "arena_space.h"

namespace deviceloop {

/// Offsets in bytes. The layer's own weight and bias are what is computed from S and these.
struct GramLayout {
  std::uint64_t kernel = 0;          ///< K [samples, samples]
  std::uint64_t pre_activation = 0;  ///< Z [samples, out_features], with the bias in it
  std::uint64_t sum = 0;             ///< S [samples, out_features]
  std::uint64_t start_weight = 0;    ///< W_0 [in_features, out_features]
  std::uint64_t start_bias = 0;      ///< b_0 [out_features]; only with bias
};

/// None where the formulation is another one, and for a network that only predicts.
inline std::optional<GramLayout> take_gram(ArenaSpace& arena, const NetworkSpec& network,
                                           const TrainingSpec& training) {
  if (training.formulation != Formulation::gram || training.samples == 0) return std::nullopt;
  const std::uint64_t element = size_of(element_type(training.precision));
  const std::int64_t samples = training.samples, in = network.in_features(0), out = network.out_features(0);
  GramLayout layout;
  layout.kernel = arena.take(samples, samples, element);
  layout.pre_activation = arena.take(samples, out, element);
  layout.sum = arena.take(samples, out, element);
  layout.start_weight = arena.take(in, out, element);
  if (network.bias) layout.start_bias = arena.take(1, out, element);
  return layout;
}

}  // namespace deviceloop
