#include "permutation.h"

#include <algorithm>

namespace deviceloop {
namespace {

// So many indices at a time that the compiler makes vectors of them, instead of unrolling the loops over them.
constexpr int kLanes = 32;

/// SampleNetwork::permuted of each index left q + right, in place.
void permute(const SampleNetwork& network, std::uint64_t seed, std::int64_t epoch, std::uint32_t (&left)[kLanes],
             std::uint32_t (&right)[kLanes]) {
  for (std::uint32_t round = 0; round < network.rounds; ++round) {
    std::uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      c0[lane] = static_cast<std::uint32_t>(epoch);
      c1[lane] = static_cast<std::uint32_t>(epoch >> 32);
      c2[lane] = right[lane];
      c3[lane] = 1 + round;
    }
    auto key_low = static_cast<std::uint32_t>(seed), key_high = static_cast<std::uint32_t>(seed >> 32);
    for (int philox_round = 0; philox_round < 10; ++philox_round) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const std::uint64_t a = std::uint64_t{0xd2511f53u} * c0[lane], b = std::uint64_t{0xcd9e8d57u} * c2[lane];
        c0[lane] = static_cast<std::uint32_t>(b >> 32) ^ c1[lane] ^ key_low;
        c1[lane] = static_cast<std::uint32_t>(b);
        c2[lane] = static_cast<std::uint32_t>(a >> 32) ^ c3[lane] ^ key_high;
        c3[lane] = static_cast<std::uint32_t>(a);
      }
      key_low += 0x9e3779b9u;
      key_high += 0xbb67ae85u;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::uint32_t sum = left[lane] + static_cast<std::uint32_t>((std::uint64_t{c0[lane]} * network.q) >> 32);
      left[lane] = right[lane];
      right[lane] = sum >= network.q ? sum - network.q : sum;
    }
  }
}

}  // namespace

void BatchOrder::take(std::int64_t position, std::int64_t count, std::int64_t* out) const {
  if (!shuffled) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = sample(position + i);
    return;
  }
  const SampleNetwork network = SampleNetwork::of(samples);
  while (count > 0) {
    const std::int64_t epoch = position / samples, first = position - epoch * samples;
    const auto lanes = static_cast<int>(std::min({std::int64_t{kLanes}, count, samples - first}));
    std::uint32_t left[kLanes] = {}, right[kLanes] = {};
    for (int lane = 0; lane < lanes; ++lane) {
      left[lane] = static_cast<std::uint32_t>((first + lane) / network.q);
      right[lane] = static_cast<std::uint32_t>((first + lane) % network.q);
    }
    permute(network, seed, epoch, left, right);
    for (int lane = 0; lane < lanes; ++lane) {
      std::int64_t index = static_cast<std::int64_t>(left[lane]) * network.q + right[lane];
      while (index >= samples) index = network.permuted(seed, epoch, index);
      out[lane] = index;
    }
    position += lanes;
    count -= lanes;
    out += lanes;
  }
}

}  // namespace deviceloop
