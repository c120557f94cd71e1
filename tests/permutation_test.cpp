// The order of an epoch's samples: a permutation, an even one over many epochs, and the recorded one.
#include "permutation.h"

#include <gtest/gtest.h>

#include <Random123/philox.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace deviceloop {
namespace {

/// The probability that a chi-square variable of `freedom` degrees exceeds `value`: the regularised incomplete gamma
/// function Q(freedom / 2, value / 2), by its series or its continued fraction (Abramowitz and Stegun, 6.5.29, 6.5.31).
double chi_square_tail(double value, double freedom) {
  const double a = freedom / 2, x = value / 2;
  if (x <= 0) return 1;
  const double scale = std::exp(-x + a * std::log(x) - std::lgamma(a));
  if (x < a + 1) {
    double term = 1 / a, sum = term;
    for (double n = a + 1; term > sum * 1e-16; ++n) sum += term *= x / n;
    return 1 - sum * scale;
  }
  double b = x + 1 - a, c = 1e300, d = 1 / b, fraction = d;
  for (int n = 1; n < 100000; ++n) {
    const double factor = -n * (n - a);
    b += 2;
    d = 1 / (factor * d + b);
    c = b + factor / c;
    fraction *= d * c;
    if (std::abs(d * c - 1) < 1e-15) break;
  }
  return fraction * scale;
}

/// Below it a fair generator's chi-square lies with a probability of 1e-9; all tests here make fewer than 1000 checks,
/// so that any of them fails with a probability below 1e-6.
constexpr double kLeastTail = 1e-9;

/// Chi-square of counts that are all expected to be the same.
double chi_square(const std::vector<std::int64_t>& counts) {
  double total = 0, statistic = 0;
  for (const std::int64_t count : counts) total += static_cast<double>(count);
  const double expected = total / static_cast<double>(counts.size());
  for (const std::int64_t count : counts) {
    const double difference = static_cast<double>(count) - expected;
    statistic += difference * difference / expected;
  }
  return statistic;
}

std::vector<std::int64_t> order(std::uint64_t seed, std::int64_t samples, std::int64_t epoch) {
  std::vector<std::int64_t> result;
  for (std::int64_t index = 0; index < samples; ++index) result.push_back(sample_of(seed, samples, epoch, index));
  return result;
}

void expect_permutation(std::uint64_t seed, std::int64_t samples, std::int64_t epoch) {
  std::vector<bool> taken(static_cast<std::size_t>(samples));
  for (std::int64_t index = 0; index < samples; ++index) {
    const std::int64_t sample = sample_of(seed, samples, epoch, index);
    ASSERT_TRUE(sample >= 0 && sample < samples) << samples << ": " << sample;
    ASSERT_FALSE(taken[static_cast<std::size_t>(sample)]) << samples << ": " << sample << " twice";
    taken[static_cast<std::size_t>(sample)] = true;
  }
}

// From tables of the distribution; 18.4207 = -2 log(1e-4) exactly.
TEST(ChiSquareTail, IsThatOfTheTables) {
  EXPECT_NEAR(chi_square_tail(3.841459, 1), 0.05, 1e-7);
  EXPECT_NEAR(chi_square_tail(18.420681, 2) / 1e-4, 1, 1e-6);
  EXPECT_NEAR(chi_square_tail(149.4493, 100), 0.001, 1e-8);
  EXPECT_NEAR(chi_square_tail(77.9295, 100), 0.95, 1e-6);
}

TEST(Philox, IsThatOfRandom123) {
  std::mt19937 engine(1);
  r123::Philox4x32 theirs;
  for (int i = 0; i < 10000; ++i) {
    std::uint32_t words[6];
    for (std::uint32_t& word : words) word = i == 0 ? 0 : i == 1 ? 0xffffffff : static_cast<std::uint32_t>(engine());
    const r123::Philox4x32::ctr_type expected =
        theirs({{words[0], words[1], words[2], words[3]}}, {{words[4], words[5]}});
    const PhiloxWords result =
        philox({{words[0], words[1], words[2], words[3]}}, std::uint64_t{words[5]} << 32 | words[4]);
    for (std::size_t word = 0; word < 4; ++word) ASSERT_EQ(result.words[word], expected[word]) << i;
  }
}

TEST(SampleOf, TakesEachSampleOnce) {
  for (std::int64_t samples = 1; samples <= 2000; ++samples) {
    expect_permutation(0, samples, samples % 3);
    expect_permutation(0x9e3779b97f4a7c15u * static_cast<std::uint64_t>(samples), samples, std::int64_t{1} << 40);
    if (HasFatalFailure()) return;
  }
  for (const std::int64_t samples : {4095, 4096, 4097, 8191, 8192, 8193, 16383, 16384, 16385, 65535, 65536, 65537,
                                     131072, 262143, 262144, 262145, 1000000}) {
    expect_permutation(5, samples, 7);
    expect_permutation(6, samples, 8);
  }
}

TEST(SampleOf, TakesNoSampleTwiceAmongManyThatNoMemoryHolds) {
  for (const std::int64_t samples : {(std::int64_t{1} << 32) - 1, (std::int64_t{1} << 32) + 1, std::int64_t{1} << 40}) {
    std::set<std::int64_t> taken;
    for (std::int64_t index = 0; index < 20000; ++index)
      for (const std::int64_t from : {index, samples - 1 - index}) {
        const std::int64_t sample = sample_of(3, samples, 2, from);
        ASSERT_TRUE(sample >= 0 && sample < samples);
        ASSERT_TRUE(taken.insert(sample).second);
      }
    EXPECT_GT(*taken.rbegin(), samples / 10 * 9);
    EXPECT_LT(*taken.begin(), samples / 10);
  }
}

// Two independent orders agree at one place on average, by a Poisson law: at 20 or more with a probability of 2e-19.
TEST(SampleOf, DiffersByEpochAndSeed) {
  std::vector<std::vector<std::int64_t>> orders;
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32, ~std::uint64_t{0}})
    for (const std::int64_t epoch :
         {std::int64_t{0}, std::int64_t{1}, std::int64_t{1} << 32, std::numeric_limits<std::int64_t>::max() / 1000})
      orders.push_back(order(seed, 1000, epoch));
  orders.push_back(order(0, 1000, 0));
  std::sort(orders.back().begin(), orders.back().end());
  for (std::size_t a = 0; a < orders.size(); ++a)
    for (std::size_t b = 0; b < a; ++b) {
      int agree = 0;
      for (std::size_t i = 0; i < 1000; ++i) agree += orders[a][i] == orders[b][i];
      EXPECT_LT(agree, 20) << a << ", " << b;
    }
}

TEST(SampleOf, TakesAllOrdersEquallyOften) {
  EXPECT_EQ(order(1, 1, 0), std::vector<std::int64_t>{0});
  std::size_t permutations = 1;
  for (const std::int64_t samples : {2, 3, 4, 5}) {
    permutations *= static_cast<std::size_t>(samples);
    for (const std::uint64_t seed : {0, 1}) {
      std::map<std::vector<std::int64_t>, std::int64_t> found;
      for (std::int64_t epoch = 0; epoch < 50000; ++epoch) ++found[order(seed, samples, epoch)];
      ASSERT_EQ(found.size(), permutations);
      std::vector<std::int64_t> counts;
      for (const auto& [each, count] : found) counts.push_back(count);
      EXPECT_GT(chi_square_tail(chi_square(counts), static_cast<double>(permutations - 1)), kLeastTail) << samples;
    }
  }
}

TEST(SampleOf, TakesEachSampleAtEachPlaceEquallyOften) {
  for (const std::int64_t samples : {2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65}) {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(samples * samples));
    for (std::int64_t epoch = 0; epoch < 10000; ++epoch)
      for (std::int64_t index = 0; index < samples; ++index)
        ++counts[static_cast<std::size_t>(index * samples + sample_of(2, samples, epoch, index))];
    // The covariance of a random permutation matrix is 1 / (samples - 1) times a projection of rank (samples - 1)^2.
    const auto free = static_cast<double>(samples - 1);
    EXPECT_GT(chi_square_tail(chi_square(counts) * free / static_cast<double>(samples), free * free), kLeastTail)
        << samples;
  }
}

TEST(SampleOf, TakesAllPairsAtNeighbouringPlacesEquallyOften) {
  for (const std::int64_t samples : {3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64})
    for (const std::int64_t index : {std::int64_t{0}, samples / 2, samples - 2}) {
      std::vector<std::int64_t> counts(static_cast<std::size_t>(samples * (samples - 1)));
      const std::int64_t epochs = std::max<std::int64_t>(20000, 25 * samples * (samples - 1));
      for (std::int64_t epoch = 0; epoch < epochs; ++epoch) {
        const std::int64_t first = sample_of(4, samples, epoch, index);
        const std::int64_t second = sample_of(4, samples, epoch, index + 1);
        ++counts[static_cast<std::size_t>(first * (samples - 1) + second - (second > first ? 1 : 0))];
      }
      EXPECT_GT(chi_square_tail(chi_square(counts), static_cast<double>(counts.size() - 1)), kLeastTail)
          << samples << ", " << index;
    }
}

// With four rounds, neighbours remain neighbours twice as often as they should.
TEST(SampleOf, KeepsNeighboursTogetherNoMoreOftenThanOthers) {
  for (const int half_bits : {2, 3, 4, 5, 6}) {
    const std::int64_t halves = std::int64_t{1} << half_bits, samples = halves * halves;
    constexpr std::int64_t kEpochs = 300000;
    std::int64_t together = 0;
    for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
      const std::int64_t first = sample_of(8, samples, epoch, 0), second = sample_of(8, samples, epoch, 1);
      const bool same_left = first >> half_bits == second >> half_bits;
      together += same_left && (second - first) % halves == (second > first ? 1 : 1 - halves);
    }
    // A binomial variable, whose tail is below that of the Poisson variable of the same mean.
    const double expected = static_cast<double>(kEpochs) / static_cast<double>(samples - 1);
    const double tail = 1 - chi_square_tail(2 * expected, 2 * static_cast<double>(together));
    EXPECT_GT(tail, kLeastTail) << half_bits << ": " << together << ", not " << expected;
    EXPECT_GT(together, 0);
  }
}

// Indices by an independent implementation, tests/reference/sample_order.py.
TEST(SampleOf, AnswersAsRecorded) {
  std::ifstream file(DEVICELOOP_SOURCE_DIR "/tests/reference/sample_order_known_answers.txt");
  ASSERT_TRUE(file);
  int checked = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream fields(line);
    std::uint64_t seed = 0;
    std::int64_t samples = 0, epoch = 0, index = 0;
    ASSERT_TRUE(fields >> seed >> samples >> epoch) << line;
    for (std::int64_t sample = 0; fields >> sample; ++index, ++checked)
      ASSERT_EQ(sample_of(seed, samples, epoch, index), sample) << line << ", index " << index;
    EXPECT_EQ(index, std::min<std::int64_t>(samples, 40)) << line;
  }
  EXPECT_GE(checked, 200);
}

TEST(BatchOrder, TakesManyPositionsAsItTakesOne) {
  for (const std::int64_t samples : {1, 2, 5, 31, 32, 33, 250, 1000, 60000})
    for (const bool shuffled : {false, true}) {
      const BatchOrder order{0xfedcba9876543210u, samples, shuffled};
      for (const std::int64_t position :
           {std::int64_t{0}, samples - 1, 3 * samples / 2, (std::int64_t{1} << 33) * samples + samples / 3})
        for (const std::int64_t count : {1, 31, 32, 33, 100}) {
          std::vector<std::int64_t> taken(static_cast<std::size_t>(count) + 1, -7);
          order.take(position, count, taken.data());
          for (std::int64_t i = 0; i < count; ++i)
            ASSERT_EQ(taken[static_cast<std::size_t>(i)], order.sample(position + i)) << samples << " " << position + i;
          EXPECT_EQ(taken.back(), -7);
        }
    }
}

TEST(BatchOrder, CountsPositionsThroughTheEpochs) {
  const BatchOrder shuffled{11, 10, true}, plain{11, 10, false};
  for (std::int64_t position = 0; position < 100; ++position) {
    EXPECT_EQ(shuffled.sample(position), sample_of(11, 10, position / 10, position % 10));
    EXPECT_EQ(plain.sample(position), position % 10);
  }
  const std::int64_t far = (std::int64_t{1} << 60) + 3;
  EXPECT_EQ(shuffled.sample(far), sample_of(11, 10, far / 10, far % 10));
  EXPECT_EQ(plain.sample(far), far % 10);
}

}  // namespace
}  // namespace deviceloop
