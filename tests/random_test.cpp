#include <gtest/gtest.h>

#include <Random123/philox.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include <deviceloop/error.h>
#include <deviceloop/random.h>

#include "random_internal.h"

namespace deviceloop {
namespace {

// Vectors of the generator's authors (Random123, kat_vectors).
TEST(Philox, AnswersAsPublished) {
  r123::Philox4x32 philox;
  const r123::Philox4x32::ctr_type zeros = philox({{0, 0, 0, 0}}, {{0, 0}});
  EXPECT_EQ(zeros, (r123::Philox4x32::ctr_type{{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
  const std::uint32_t ones = 0xffffffff;
  const r123::Philox4x32::ctr_type all_ones = philox({{ones, ones, ones, ones}}, {{ones, ones}});
  EXPECT_EQ(all_ones, (r123::Philox4x32::ctr_type{{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
}

TEST(PortableLog, AgreesWithTheMathLibrary) {
  for (int i = 0; i < 100000; ++i) {
    const double x = std::exp(-40 + 45 * (i + 0.5) / 100000);
    ASSERT_NEAR(portable_log(x), std::log(x), 4e-16 * std::max(1.0, std::abs(std::log(x)))) << x;
  }
  EXPECT_EQ(portable_log(1.0), 0.0);
}

TEST(InverseNormal, InvertsTheDistributionFunction) {
  EXPECT_EQ(inverse_normal(0.5), 0.0);
  for (int i = 1; i < 2000; ++i) {
    const double p = i / 2000.0, x = inverse_normal(p);
    ASSERT_NEAR(0.5 * std::erfc(-x / std::sqrt(2.0)), p, 4e-16);
    ASSERT_NEAR(inverse_normal(1 - p), -x, 1e-13);
  }
  // The smallest uniform there is.
  EXPECT_NEAR(inverse_normal(0x1p-53), -8.2095361516013874, 1e-14);
}

// Numbers by an independent implementation, tests/reference/random_numbers.py. Those that take a logarithm are met to
// its rounding, the others to the last bit.
TEST(FillNormal, AnswersAsRecorded) {
  std::ifstream file(DEVICELOOP_SOURCE_DIR "/tests/reference/normal_known_answers.txt");
  ASSERT_TRUE(file);
  int exact = 0, rounded = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream fields(line);
    std::uint64_t seed = 0, index = 0;
    std::uint32_t tensor = 0;
    double value = 0;
    std::string hexadecimal, kind;
    ASSERT_TRUE(fields >> seed >> tensor >> index >> value >> hexadecimal >> kind) << line;
    const NormalPair pair = normal_pair(seed, tensor, index / 2);
    const double drawn = index % 2 == 0 ? pair.first : pair.second;
    if (kind == "exact") {
      ASSERT_EQ(drawn, value) << line;
      ++exact;
    } else {
      ASSERT_NEAR(drawn, value, 1e-15 * std::abs(value)) << line;
      ++rounded;
    }
  }
  EXPECT_GE(exact, 100);
  EXPECT_GE(rounded, 20);
}

// The bits themselves, so that a change of compiler, flags or processor that moves one is noticed.
TEST(FillNormal, KeepsItsBits) {
  std::vector<double> values(20001);
  fill_normal(Matrix(values.data(), 1, 20001), 0x123456789abcdef0u, 5);
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a over the 64-bit patterns
  for (const double value : values) {
    std::uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    hash = (hash ^ bits) * 1099511628211u;
  }
  EXPECT_EQ(hash, 2507342992779925027u);
}

TEST(FillNormal, IsOneStreamWhateverTheShapeAndStride) {
  std::vector<double> line(35), padded(5 * 10, -1);
  fill_normal(Matrix(line.data(), 1, 35), 9, 2);
  fill_normal(Matrix(padded.data(), 5, 7, 10), 9, 2);
  for (std::size_t row = 0; row < 5; ++row) {
    for (std::size_t column = 0; column < 7; ++column) EXPECT_EQ(padded[row * 10 + column], line[row * 7 + column]);
    EXPECT_EQ(padded[row * 10 + 7], -1);
  }
}

TEST(FillNormal, RoundsOnceToFloatAndScales) {
  std::vector<double> wide(100);
  std::vector<float> narrow(100);
  fill_normal(Matrix(wide.data(), 10, 10), 1, 0, 0.3);
  fill_normal(Matrix(narrow.data(), 10, 10), 1, 0, 0.3);
  for (std::size_t i = 0; i < 100; ++i) EXPECT_EQ(narrow[i], static_cast<float>(wide[i]));
}

TEST(FillNormal, IsNormalAndDiffersBySeedAndTensor) {
  constexpr std::size_t kCount = 200000;
  std::vector<double> a(kCount), b(kCount), c(kCount);
  fill_normal(Matrix(a.data(), 1, kCount), 1, 0);
  fill_normal(Matrix(b.data(), 1, kCount), 1, 1);
  fill_normal(Matrix(c.data(), 1, kCount), 2, 0);
  double mean = 0, square = 0, fourth = 0, with_b = 0, with_c = 0, with_next = 0;
  for (std::size_t i = 0; i < kCount; ++i) {
    mean += a[i] / kCount;
    square += a[i] * a[i] / kCount;
    fourth += std::pow(a[i], 4) / kCount;
    with_b += a[i] * b[i] / kCount;
    with_c += a[i] * c[i] / kCount;
    if (i > 0) with_next += a[i] * a[i - 1] / kCount;
  }
  // Five standard deviations of each estimate.
  EXPECT_NEAR(mean, 0, 5 / std::sqrt(kCount));
  EXPECT_NEAR(square, 1, 5 * std::sqrt(2.0 / kCount));
  EXPECT_NEAR(fourth, 3, 5 * std::sqrt(96.0 / kCount));
  EXPECT_NEAR(with_b, 0, 5 / std::sqrt(kCount));
  EXPECT_NEAR(with_c, 0, 5 / std::sqrt(kCount));
  EXPECT_NEAR(with_next, 0, 5 / std::sqrt(kCount));
}

TEST(FillNormal, RefusesANullMatrix) {
  EXPECT_THROW(fill_normal(Matrix(static_cast<float*>(nullptr), 2, 2), 0, 0), InvalidArgument);
  EXPECT_THROW(fill_normal(Matrix(static_cast<float*>(nullptr), -2, 2), 0, 0), InvalidArgument);
  EXPECT_NO_THROW(fill_normal(Matrix(static_cast<float*>(nullptr), 0, 2), 0, 0));
}

TEST(FillNormal, RefusesSizesThatNoMemoryHas) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  double value = 0;
  EXPECT_THROW(fill_normal(Matrix(&value, kMost, 1), 0, 0), InvalidArgument);
  EXPECT_THROW(fill_normal(Matrix(&value, 1, kMost), 0, 0), InvalidArgument);
  EXPECT_THROW(fill_normal(Matrix(&value, std::int64_t{1} << 32, std::int64_t{1} << 32), 0, 0), InvalidArgument);
  EXPECT_THROW(fill_normal(Matrix(&value, 3, 1, kMost), 0, 0), InvalidArgument);
  EXPECT_EQ(value, 0);
}

}  // namespace
}  // namespace deviceloop
