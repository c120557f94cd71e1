// The order in which the samples of an epoch are taken: a permutation of 0 .. samples - 1 for each epoch, computed from
// the counters alone, without memory and without a sort, so that the CPU, every GPU and a script agree on each index
// (tests/reference/sample_order.py is the same in NumPy). Integers only.
//
// The definition. Let q be the smallest even number with q^2 >= samples. An index x < q^2 has two halves, x = left q +
// right, and a balanced Feistel network of 4 + n rounds, with n the smallest number with q^n >= 2^16, permutes
// 0 .. q^2 - 1; round j, counted from 0, does
//
//   (left, right) <- (right, (left + F_j(right)) mod q),   F_j(right) = floor(q w / 2^32),
//
// where w is word 0 of Philox4x32-10 with key (seed low, seed high) and counter (epoch low, epoch high, right, 1 + j).
// <deviceloop/random.h> uses the same generator with a counter whose last word is 0, so the two share no number.
// sample_of(index) is what the network makes of `index`; while that is not below `samples`, the network is applied to
// it again ("cycle walking"): q^2 / samples times on average, at most 4, and 1.02 times from 65536 samples on.
//
// Why q is even: with an odd one all permutations of the network have the same sign, as they have with an exclusive or
// in place of the addition if q is a power of two above 2; of 5 samples one half of the orders would occur more often.
//
// Why so many rounds. With an ideal F the difference of two samples' halves is a Markov chain. Computed exactly, the
// squared relative deviation from uniform, summed over its states, is about q^(2 - r) after r >= 4 rounds if the two
// indices share their left half, as most neighbours do. An epoch has about q^2 such pairs, E epochs E q^2: together
// they show a deviation only once E q^2 q^(2 - r) reaches 1, so 4 + n rounds suffice for 2^16 epochs of any number of
// samples. Measured with Philox: chi-square over all permutations of 3, 4 and 5 samples in 150000 epochs is 98, 690 and
// 237 standard deviations above that of a fair generator with 4 rounds, 3.0, 43 and 15 with 6, 2.7, 3.4 and 1.4 with 8,
// below 2 with 10 and more; the definition takes 20, 20 and 12.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace deviceloop {

/// Four words, the counter and the result of Philox4x32.
struct PhiloxWords {
  std::uint32_t words[4];
};

/// Philox4x32-10 (Salmon et al. 2011), as Random123 defines it.
DEVICELOOP_HOST_DEVICE inline PhiloxWords philox(PhiloxWords counter, std::uint64_t key) {
  std::uint32_t(&c)[4] = counter.words;
  auto key_low = static_cast<std::uint32_t>(key), key_high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xd2511f53u} * c[0], b = std::uint64_t{0xcd9e8d57u} * c[2];
    c[0] = static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ key_low;
    c[1] = static_cast<std::uint32_t>(b);
    c[2] = static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ key_high;
    c[3] = static_cast<std::uint32_t>(a);
    key_low += 0x9e3779b9u;
    key_high += 0xbb67ae85u;
  }
  return counter;
}

/// The network of so many samples, from 1 to 2^40.
struct SampleNetwork {
  std::uint32_t q = 2;
  std::uint32_t rounds = 4;

  DEVICELOOP_HOST_DEVICE static SampleNetwork of(std::int64_t samples) {
    // q / 2, bit by bit.
    std::uint64_t half = 0;
    for (std::uint64_t bit = std::uint64_t{1} << 20; bit != 0; bit >>= 1)
      if (4 * (half + bit) * (half + bit) < static_cast<std::uint64_t>(samples)) half += bit;
    SampleNetwork network{static_cast<std::uint32_t>(2 * (half + 1)), 4};
    for (std::uint64_t power = 1; power < std::uint64_t{1} << 16; power *= network.q) ++network.rounds;
    return network;
  }

  /// What it makes of an index below q^2.
  DEVICELOOP_HOST_DEVICE std::int64_t permuted(std::uint64_t seed, std::int64_t epoch, std::int64_t index) const {
    const auto epoch_low = static_cast<std::uint32_t>(epoch), epoch_high = static_cast<std::uint32_t>(epoch >> 32);
    auto left = static_cast<std::uint32_t>(index / q), right = static_cast<std::uint32_t>(index % q);
    for (std::uint32_t round = 0; round < rounds; ++round) {
      const std::uint32_t word = philox({{epoch_low, epoch_high, right, 1 + round}}, seed).words[0];
      const std::uint32_t sum = left + static_cast<std::uint32_t>((std::uint64_t{word} * q) >> 32);
      left = right;
      right = sum >= q ? sum - q : sum;
    }
    return static_cast<std::int64_t>(left) * q + right;
  }
};

/// The sample, of 0 .. samples - 1, that an epoch takes as its `index`: for each seed and epoch a permutation of the
/// indices 0 .. samples - 1. samples is from 1 to 2^40, epoch not negative.
DEVICELOOP_HOST_DEVICE inline std::int64_t sample_of(std::uint64_t seed, std::int64_t samples, std::int64_t epoch,
                                                     std::int64_t index) {
  const SampleNetwork network = SampleNetwork::of(samples);
  do index = network.permuted(seed, epoch, index);
  while (index >= samples);
  return index;
}

/// In which order a run takes its samples: position p of the run, counted in rows over all steps, belongs to epoch
/// p / samples.
struct BatchOrder {
  std::uint64_t seed = 0;
  std::int64_t samples = 1;
  bool shuffled = false;  ///< each epoch in an order of its own; otherwise every epoch in the order of the data

  /// The sample at a position, which is not negative.
  DEVICELOOP_HOST_DEVICE std::int64_t sample(std::int64_t position) const {
    const std::int64_t epoch = position / samples, index = position - epoch * samples;
    return shuffled ? sample_of(seed, samples, epoch, index) : index;
  }

  /// The same, with the network of `samples`: for many positions.
  DEVICELOOP_HOST_DEVICE std::int64_t sample(std::int64_t position, const SampleNetwork& network) const {
    const std::int64_t epoch = position / samples;
    std::int64_t index = position - epoch * samples;
    if (!shuffled) return index;
    do index = network.permuted(seed, epoch, index);
    while (index >= samples);
    return index;
  }

  /// Those at `count` positions, several at a time: on the host the fastest way.
  void take(std::int64_t position, std::int64_t count, std::int64_t* out) const;
};

}  // namespace deviceloop
