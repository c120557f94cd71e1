// The floating-point environment of the calling thread, which others may have set: the library's results do not depend
// on it, and it is left as it was.
#include <gtest/gtest.h>

#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <functional>
#include <latch>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "cpu/thread_pool.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace deviceloop {
namespace {

/// An environment, and whether a thread has it. `set` begins at the default one.
struct Environment {
  const char* name;
  std::function<void()> set;
  std::function<bool()> is_set;
};

std::vector<Environment> environments() {
  std::vector<Environment> all;
  for (const int direction : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO})
    all.push_back(
        {"another rounding", [=] { std::fesetround(direction); }, [=] { return std::fegetround() == direction; }});
  all.push_back({"a raised flag", [] { std::feraiseexcept(FE_DIVBYZERO); },
                 [] { return std::fetestexcept(FE_ALL_EXCEPT) == FE_DIVBYZERO; }});
#if defined(__x86_64__)
  constexpr unsigned kFlushAndDenormalsAreZero = 0x8040;
  all.push_back({"subnormal numbers flushed to zero", [] { _mm_setcsr(_mm_getcsr() | kFlushAndDenormalsAreZero); },
                 [] { return (_mm_getcsr() & kFlushAndDenormalsAreZero) == kFlushAndDenormalsAreZero; }});
#endif
#if defined(__GLIBC__) && defined(__x86_64__)
  all.push_back({"traps", [] { feenableexcept(FE_ALL_EXCEPT); }, [] { return fegetexcept() == FE_ALL_EXCEPT; }});
#endif
  return all;
}

template <class T>
void append_bits(std::vector<std::uint64_t>& bits, const std::vector<T>& values) {
  for (const T value : values) {
    if constexpr (sizeof(T) == sizeof(float))
      bits.push_back(std::bit_cast<std::uint32_t>(value));
    else
      bits.push_back(std::bit_cast<std::uint64_t>(value));
  }
}

constexpr std::int64_t kSamples = 200, kInputs = 30, kHidden = 20;

template <class T>
std::vector<T> normal(std::int64_t rows, std::int64_t columns, std::uint32_t tensor, double deviation) {
  std::vector<T> values(static_cast<std::size_t>(rows * columns));
  fill_normal(Matrix(values.data(), rows, columns), 5, tensor, deviation);
  return values;
}

/// All that a trainer of T computes, bit by bit. Numbers are so small that pre-activations are subnormal, and so that
/// data are once they are converted to T.
template <class T>
class Work {
 public:
  Work(int threads, Formulation formulation) {
    network_.widths = {kInputs, kHidden, 1};
    training_.precision = sizeof(T) == sizeof(float) ? Precision::fp32 : Precision::fp64;
    training_.device.kind = DeviceKind::cpu;
    training_.threads = threads;
    training_.formulation = formulation;
    training_.optimizer.learning_rate = kRate;
  }

  std::vector<std::uint64_t> run(bool with_callback) const {
    std::vector<std::uint64_t> bits;
    append_bits(bits, normal<T>(40, 3, 99, 1e-2 * kTiny));
    const std::vector<double> x = normal<double>(kSamples, kInputs, kTensorX, kTiny);
    const std::vector<double> y = normal<double>(kSamples, 1, kTensorY, kTiny * kTiny * kLarge);
    Trainer trainer(network_, training_);
    trainer.initialize(11, Init::he);
    // The product of x and the first weights is subnormal, that and the second weights make normal predictions.
    const std::vector<double> w0 = normal<double>(kInputs, kHidden, 50, kTiny);
    const std::vector<double> w1 = normal<double>(kHidden, 1, 51, kLarge);
    trainer.write_weight(0, ConstMatrix(w0.data(), kInputs, kHidden));
    trainer.write_weight(1, ConstMatrix(w1.data(), kHidden, 1));
    trainer.set_data(ConstMatrix(x.data(), kSamples, kInputs), ConstMatrix(y.data(), kSamples, 1));
    bits.push_back(std::bit_cast<std::uint64_t>(trainer.loss()));
    TrainCallback callback;
    if (with_callback) callback = [](const TrainProgress&) { return true; };
    append_bits(bits, trainer.train(6, callback, 2).losses);
    std::vector<T> predictions(kSamples), weights(kInputs * kHidden);
    trainer.predict(ConstMatrix(x.data(), kSamples, kInputs), Matrix(predictions.data(), kSamples, 1));
    trainer.read_weight(0, Matrix(weights.data(), kInputs, kHidden));
    append_bits(bits, predictions);
    append_bits(bits, weights);
    return bits;
  }

 private:
  static constexpr bool kSingle = sizeof(T) == sizeof(float);
  static constexpr double kTiny = kSingle ? 1e-20 : 1e-155, kLarge = kSingle ? 1e30 : 1e300;
  static constexpr double kRate = kSingle ? 1e-24 : 1e-294;
  NetworkSpec network_;
  TrainingSpec training_;
};

/// What `work` returns and how it leaves the thread: the default environment comes back before anything is checked.
template <class F>
auto in(const Environment& environment, bool& kept, const F& work) {
  std::fesetenv(FE_DFL_ENV);
  environment.set();
  const auto result = work();
  kept = environment.is_set();
  std::fesetenv(FE_DFL_ENV);
  return result;
}

template <class T>
class FloatingPoint : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(FloatingPoint, Types);

TYPED_TEST(FloatingPoint, OfTheCallerChangesNothingAndStaysAsItWas) {
  for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
    const std::vector<std::uint64_t> expected = Work<TypeParam>(1, formulation).run(false);
    // Not all of it is lost in rounding: the losses fall.
    const auto loss = [&](std::size_t step) { return std::bit_cast<double>(expected[121 + step]); };
    for (std::size_t step = 1; step < 6; ++step)
      EXPECT_TRUE(0 < loss(step) && loss(step) < loss(step - 1)) << loss(step);
    for (const int threads : {1, 2, 7}) {
      for (const Environment& environment : environments()) {
        for (const bool with_callback : {false, true}) {
          SCOPED_TRACE(std::string(environment.name) + ", threads " + std::to_string(threads));
          bool kept = false;
          const Work<TypeParam> work(threads, formulation);
          EXPECT_TRUE(expected == in(environment, kept, [&] { return work.run(with_callback); }));
          EXPECT_TRUE(kept);
        }
      }
    }
  }
}

struct SmallTrainer {
  std::vector<double> x = normal<double>(kSamples, kInputs, kTensorX, 1), y = normal<double>(kSamples, 1, kTensorY, 1);
  Trainer trainer;

  static TrainingSpec training(double rate, int threads) {
    TrainingSpec training;
    training.optimizer.learning_rate = rate;
    training.device.kind = DeviceKind::cpu;
    training.threads = threads;
    return training;
  }
  SmallTrainer(double rate, int threads)
      : trainer(NetworkSpec{.widths = {kInputs, kHidden, 1}}, training(rate, threads)) {
    trainer.set_data(ConstMatrix(x.data(), kSamples, kInputs), ConstMatrix(y.data(), kSamples, 1));
  }
};

TEST(FloatingPointEnvironment, IsTheCallersInItsCallbackAndAfterAnException) {
  for (const Environment& environment : environments()) {
    SCOPED_TRACE(environment.name);
    SmallTrainer small(1e-6, 2);
    bool kept = false, kept_in_callback = false, thrown = false, refused = false;
    in(environment, kept, [&] {
      try {
        small.trainer.train(4, [&](const TrainProgress&) -> bool {
          kept_in_callback = environment.is_set();
          throw std::runtime_error("of the callback");
        });
      } catch (const std::runtime_error&) {
        thrown = true;
      }
      return 0;
    });
    EXPECT_TRUE(kept && kept_in_callback && thrown);
    in(environment, kept, [&] {
      const std::vector<double> bad(kSamples * kInputs, std::nan(""));
      try {
        small.trainer.set_data(ConstMatrix(bad.data(), kSamples, kInputs), ConstMatrix(small.y.data(), kSamples, 1));
      } catch (const InvalidArgument&) {
        refused = true;
      }
      return 0;
    });
    EXPECT_TRUE(kept && refused);
  }
}

TEST(FloatingPointEnvironment, WhatACallbackSetsStays) {
  for (const Environment& environment : environments()) {
    SCOPED_TRACE(environment.name);
    SmallTrainer small(1e-6, 2);
    small.trainer.train(
        4,
        [&](const TrainProgress&) {
          environment.set();
          return true;
        },
        1);
    const bool kept = environment.is_set();
    std::fesetenv(FE_DFL_ENV);
    EXPECT_TRUE(kept);
  }
}

#if defined(__GLIBC__) && defined(__x86_64__)
TEST(FloatingPointEnvironment, TrapsOfTheCallerDoNotEndARunThatDiverges) {
  for (const int threads : {1, 3}) {
    bool kept = false;
    const Environment traps = environments().back();
    const std::optional<std::int64_t> step = in(traps, kept, [&] {
      SmallTrainer small(1e3, threads);
      return small.trainer.train(100).first_non_finite_step;
    });
    EXPECT_TRUE(kept);
    EXPECT_TRUE(step.has_value());
  }
}
#endif

TEST(FloatingPointEnvironment, OfAPoolsThreadsIsTheDefaultOne) {
  for (const Environment& environment : environments()) {
    SCOPED_TRACE(environment.name);
    bool kept = false;
    const std::vector<int> set = in(environment, kept, [&] {
      ThreadPool pool(3);
      std::vector<int> set_by_worker(3);
      std::latch all_at_work(3);  // so that each thread takes one of the three tasks
      pool.run(3, [&](std::int64_t, int worker) {
        all_at_work.arrive_and_wait();
        set_by_worker[static_cast<std::size_t>(worker)] = environment.is_set() ? 1 : 0;
      });
      return set_by_worker;
    });
    EXPECT_TRUE(kept);
    EXPECT_EQ(set, (std::vector<int>{1, 0, 0}));  // number 0 is this thread
  }
}

}  // namespace
}  // namespace deviceloop
