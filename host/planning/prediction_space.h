// Where executors that predict by launch_tile_product have the rows that are under way.
#pragma once

#include <algorithm>
#include <cstdint>

#include <deviceloop/spec.h>

#include "arena_space.h"

namespace deviceloop {

/// Offsets in the executor's arena.
struct PredictionSpace {
  std::int64_t rows = 0;    ///< the most at once
  std::uint64_t input = 0;  ///< [rows, in_features]
  std::uint64_t even = 0;   ///< [rows, widest layer], twice: a layer writes to one and the next to the other
  std::uint64_t odd = 0;
};

inline PredictionSpace take_prediction_space(ArenaSpace& arena, const NetworkSpec& network,
                                             std::uint64_t element_bytes) {
  PredictionSpace space;
  const std::int64_t widest = *std::max_element(network.widths.begin() + 1, network.widths.end());
  space.rows = 1024;
  space.input = arena.take(space.rows, network.widths.front(), element_bytes);
  space.even = arena.take(space.rows, widest, element_bytes);
  space.odd = arena.take(space.rows, widest, element_bytes);
  return space;
}

}  // namespace deviceloop
