// The trainer as its users call it: what it takes, what it refuses, what it leaves alone.
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cfenv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "files/checkpoint_metadata.h"
#include "files/safetensors.h"
#include "support/narrow.h"
#include "support/openblas.h"
#include "support/problem.h"
#include "support/sanitized.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

template <class Exception, class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of the expected type was thrown";
  return "";
}

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

Problem small_problem(bool bias = true) {
  return Problem::random({4, 3, 2}, bias, 10, Precision::fp64, Init::he, 1e-3);
}

TEST(Trainer, StartsFromTheSeedOfItsSpecification) {
  NetworkSpec network;
  network.widths = {4, 3, 2};
  TrainingSpec training;
  training.seed = 77;
  Trainer as_made(network, training), drawn(network);
  drawn.initialize(77);
  std::vector<float> a(12), b(12), direct(12);
  as_made.read_weight(0, Matrix(a.data(), 4, 3));
  drawn.read_weight(0, Matrix(b.data(), 4, 3));
  fill_normal(Matrix(direct.data(), 4, 3), 77, tensor_of_weight(0));
  EXPECT_EQ(a, b);
  EXPECT_EQ(a, direct);
}

TEST(Trainer, InitialisesByHeAndXavierAndWithBiasesAtZero) {
  NetworkSpec network;
  network.widths = {8, 24};
  network.bias = true;
  TrainingSpec training;
  training.precision = Precision::fp64;
  std::vector<double> normal(192), he(192), xavier(192), bias(24, 1);
  Trainer trainer(network, training);
  trainer.initialize(3);
  trainer.read_weight(0, Matrix(normal.data(), 8, 24));
  trainer.initialize(3, Init::he);
  trainer.read_weight(0, Matrix(he.data(), 8, 24));
  trainer.initialize(3, Init::xavier);
  trainer.read_weight(0, Matrix(xavier.data(), 8, 24));
  trainer.read_bias(0, Matrix(bias.data(), 1, 24));
  for (std::size_t i = 0; i < 192; ++i) {
    EXPECT_DOUBLE_EQ(he[i], normal[i] * 0.5);       // sqrt(2 / 8)
    EXPECT_DOUBLE_EQ(xavier[i], normal[i] * 0.25);  // sqrt(2 / 32)
  }
  EXPECT_EQ(bias, std::vector<double>(24));
  EXPECT_THROW(trainer.initialize(3, static_cast<Init>(77)), InvalidArgument);
  std::vector<double> kept(192);
  trainer.read_weight(0, Matrix(kept.data(), 8, 24));
  EXPECT_EQ(kept, xavier);
}

TEST(Trainer, TakesFloatAndDoubleAndStridedData) {
  const Problem problem = small_problem();
  Trainer plain = problem.trainer(), strided = problem.trainer();
  std::vector<double> padded(10 * 9, std::numeric_limits<double>::quiet_NaN());
  for (std::size_t row = 0; row < 10; ++row)
    for (std::size_t column = 0; column < 4; ++column) padded[row * 9 + column] = problem.x(row, column);
  strided.set_data(ConstMatrix(padded.data(), 10, 4, 9), Problem::view(problem.y));
  EXPECT_EQ(plain.train(5).losses, strided.train(5).losses);

  Problem narrow = Problem::random({4, 3, 2}, true, 10, Precision::fp32, Init::he, 1e-3);
  Trainer from_double = narrow.trainer(), from_float = narrow.trainer();
  const std::vector<float> x(narrow.x.values.begin(), narrow.x.values.end());
  from_float.set_data(ConstMatrix(x.data(), 10, 4), Problem::view(narrow.y));
  EXPECT_EQ(from_double.train(5).losses, from_float.train(5).losses);
}

TEST(Trainer, TakesNumbersOf16BitsAndWritesNone) {
  Problem problem = small_problem();
  for (const ElementType type : {ElementType::bfloat16, ElementType::float16}) {
    const testing::Narrow x(problem.x, type), y(problem.y, type), weight(problem.start[0].weight, type);
    Trainer narrow = problem.trainer(), wide = problem.trainer();
    narrow.set_data(x.view(), y.view());
    wide.set_data(Problem::view(x.values), Problem::view(y.values));
    narrow.write_weight(0, weight.view());
    wide.write_weight(0, Problem::view(weight.values));
    EXPECT_EQ(narrow.train(5).losses, wide.train(5).losses);
    std::vector<double> of_narrow(20), of_wide(20);
    narrow.predict(x.view(), Matrix(of_narrow.data(), 10, 2));
    wide.predict(Problem::view(x.values), Matrix(of_wide.data(), 10, 2));
    EXPECT_EQ(of_narrow, of_wide);

    Matrix out(of_narrow.data(), 10, 2);
    out.type = type;
    EXPECT_CONTAINS(message_of<InvalidArgument>([&] { narrow.predict(x.view(), out); }), "use float32 or float64");
    out.rows = 4, out.columns = out.row_stride = 3;
    EXPECT_CONTAINS(message_of<InvalidArgument>([&] { narrow.read_weight(0, out); }), "use float32 or float64");
    testing::Narrow infinite = x;
    infinite.bits[13] = type == ElementType::bfloat16 ? 0xff80 : 0xfc00;
    EXPECT_CONTAINS(message_of<InvalidArgument>([&] { narrow.set_data(infinite.view(), y.view()); }),
                    "row 3, column 1 is -inf");
  }
}

TEST(Trainer, NewDataKeepsParametersAndSteps) {
  const Problem problem = small_problem();
  Trainer trainer = problem.trainer();
  trainer.train(5);
  const auto before = flat(problem.parameters_of(trainer));
  const reference::Table x = Problem::filled(77, 4, Precision::fp64, 1, 0),
                         y = Problem::filled(77, 2, Precision::fp64, 1, 1);
  trainer.set_data(Problem::view(x), Problem::view(y));
  EXPECT_EQ(trainer.training().samples, 77);
  EXPECT_EQ(flat(problem.parameters_of(trainer)), before);
  EXPECT_EQ(trainer.steps_done(), 5);
  EXPECT_EQ(trainer.train(2).first_step, 5);
}

TEST(Trainer, ReportsWhatItPreparedSinceTheLastRun) {
  const Problem problem = Problem::random({3, 4, 1}, true, 5, Precision::fp32, Init::he, 1e-4);
  Trainer trainer = problem.trainer(1, ExecutorKind::cpu);
  const auto stages = [](const TrainReport& report) {
    double total = 0;
    std::vector<std::string> names;
    for (const PreparationStage& stage : report.preparation) {
      EXPECT_GE(stage.ms, 0) << stage.name;
      total += stage.ms;
      names.push_back(stage.name);
    }
    EXPECT_DOUBLE_EQ(report.prepare_ms, total);
    return names;
  };
  EXPECT_EQ(stages(trainer.train(2)), (std::vector<std::string>{"devices", "plan", "data", "memory"}));
  EXPECT_EQ(stages(trainer.train(2)), std::vector<std::string>{});
  trainer.prepare();  // there is nothing left to do
  EXPECT_EQ(stages(trainer.train(2)), std::vector<std::string>{});
  trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
  EXPECT_EQ(stages(trainer.train(2)), std::vector<std::string>{"data"});
}

TEST(Trainer, PreparesBeforeThereAreData) {
  const Problem problem = Problem::random({3, 4, 1}, true, 5, Precision::fp32, Init::he, 1e-4);
  for (const std::int64_t samples : {0, 4, 5}) {
    TrainingSpec training = problem.training;
    training.samples = samples;
    Trainer trainer(problem.network, training);
    trainer.prepare();
    problem.set_parameters(trainer, problem.start);
    EXPECT_THROW(trainer.train(1), InvalidArgument);
    trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
    EXPECT_EQ(trainer.train(3).losses, problem.trainer(1).train(3).losses) << samples;
  }
}

TEST(Trainer, RefusesDataThatDoesNotMatchAndKeepsWhatItHad) {
  const Problem problem = small_problem();
  Trainer trainer = problem.trainer();
  const double expected = trainer.loss();
  std::vector<double> values(1000);
  const auto view = [&](std::int64_t rows, std::int64_t columns) { return ConstMatrix(values.data(), rows, columns); };
  const auto message = [&](ConstMatrix x, ConstMatrix y) {
    return message_of<InvalidArgument>([&] { trainer.set_data(x, y); });
  };
  EXPECT_CONTAINS(message(view(10, 5), view(10, 2)), "x is [10, 5], but the network has 4 inputs");
  EXPECT_CONTAINS(message(view(10, 4), view(10, 3)), "y is [10, 3], but the network has 2 outputs");
  EXPECT_CONTAINS(message(view(10, 4), view(9, 2)), "x has 10 rows, y has 9");
  EXPECT_CONTAINS(message(view(0, 4), view(0, 2)), "no rows");
  EXPECT_CONTAINS(message(view(-1, 4), view(10, 2)), "[-1, 4]");
  EXPECT_CONTAINS(message(ConstMatrix(static_cast<double*>(nullptr), 10, 4), view(10, 2)), "null");
  EXPECT_CONTAINS(message(ConstMatrix(values.data(), 10, 4, 3), view(10, 2)), "stride of 3");
  ConstMatrix device = view(10, 4);
  device.space = MemorySpace::device;
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] {
                    TrainingSpec on_cpu;
                    on_cpu.device.kind = DeviceKind::cpu;
                    Trainer(trainer.network(), on_cpu).set_data(device, view(10, 2));
                  }),
                  "a GPU's memory");
  values[4 * 7 + 2] = std::nan("");
  EXPECT_CONTAINS(message(view(10, 4), view(10, 2)), "x: row 7, column 2 is nan");
  values[4 * 7 + 2] = -std::numeric_limits<double>::infinity();
  EXPECT_CONTAINS(message(view(10, 4), view(10, 2)), "x: row 7, column 2 is -inf");
  EXPECT_EQ(trainer.loss(), expected);
}

TEST(Trainer, RefusesSizesBeforeItReads) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const Problem problem = small_problem();
  for (const bool has_executor : {true, false}) {
    Trainer trainer = has_executor ? problem.trainer() : Trainer(problem.network, problem.training);
    std::vector<double> x(40), y(20);
    const auto refused = [](const auto& call) { return message_of<InvalidArgument>(call); };
    // Beyond any address space, and what an address space has but not this machine.
    for (const std::int64_t rows : {kMost, kMost / 4, std::int64_t{1} << 62, std::int64_t{1} << 53})
      EXPECT_CONTAINS(
          refused([&] { trainer.set_data(ConstMatrix(x.data(), rows, 4), ConstMatrix(y.data(), rows, 2)); }),
          std::to_string(rows));
    for (const std::int64_t rows : {std::int64_t{1} << 40, std::int64_t{1} << 48})
      EXPECT_CONTAINS(
          refused([&] { trainer.set_data(ConstMatrix(x.data(), rows, 4), ConstMatrix(y.data(), rows, 2)); }), "free");
    for (const std::int64_t stride : {kMost, kMost / 8, std::int64_t{1} << 58}) {
      const std::string number = std::to_string(stride);
      EXPECT_CONTAINS(
          refused([&] { trainer.set_data(ConstMatrix(x.data(), 10, 4, stride), ConstMatrix(y.data(), 10, 2)); }),
          number);
      EXPECT_CONTAINS(
          refused([&] { trainer.set_data(ConstMatrix(x.data(), 10, 4), ConstMatrix(y.data(), 10, 2, stride)); }),
          number);
      EXPECT_CONTAINS(refused([&] { trainer.predict(ConstMatrix(x.data(), 10, 4, stride), Matrix(y.data(), 10, 2)); }),
                      number);
      EXPECT_CONTAINS(refused([&] { trainer.predict(ConstMatrix(x.data(), 10, 4), Matrix(y.data(), 10, 2, stride)); }),
                      number);
      EXPECT_CONTAINS(refused([&] { trainer.read_weight(0, Matrix(x.data(), 4, 3, stride)); }), number);
      EXPECT_CONTAINS(refused([&] { trainer.write_weight(0, ConstMatrix(x.data(), 4, 3, stride)); }), number);
    }
    for (const std::int64_t rows : {kMost, std::int64_t{1} << 60}) {
      EXPECT_CONTAINS(refused([&] { trainer.predict(ConstMatrix(x.data(), rows, 4), Matrix(y.data(), rows, 2)); }),
                      std::to_string(rows));
      EXPECT_CONTAINS(refused([&] { trainer.read_weight(0, Matrix(x.data(), rows, 3)); }), std::to_string(rows));
      EXPECT_CONTAINS(refused([&] { trainer.write_weight(0, ConstMatrix(x.data(), 4, rows)); }), std::to_string(rows));
    }
    for (const std::int64_t size : {std::int64_t{-1}, -kMost - 1}) {
      const std::string number = std::to_string(size);
      EXPECT_CONTAINS(refused([&] { trainer.predict(ConstMatrix(x.data(), size, 4), Matrix(y.data(), 10, 2)); }),
                      number);
      EXPECT_CONTAINS(refused([&] { trainer.predict(ConstMatrix(x.data(), 10, 4), Matrix(y.data(), 10, 2, size)); }),
                      number);
      EXPECT_CONTAINS(refused([&] { trainer.write_weight(0, ConstMatrix(x.data(), 4, 3, size)); }), number);
    }
    double* const null = nullptr;
    EXPECT_CONTAINS(refused([&] { trainer.predict(ConstMatrix(x.data(), 10, 4), Matrix(null, 10, 2)); }), "null");
    EXPECT_CONTAINS(refused([&] { trainer.predict(ConstMatrix(null, 10, 4), Matrix(y.data(), 10, 2)); }), "null");
    EXPECT_CONTAINS(refused([&] { trainer.read_weight(0, Matrix(null, 4, 3)); }), "null");
    EXPECT_CONTAINS(refused([&] { trainer.write_weight(0, ConstMatrix(null, 4, 3)); }), "null");
  }
}

/// What a host application gets that has these exceptions trapped, as SIGFPE.
TEST(Trainer, RefusesNumbersWithoutRaisingFloatingPointExceptions) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const double signaling = std::numeric_limits<double>::signaling_NaN();
  NetworkSpec network;
  network.widths = {3, 1};
  for (const Precision precision : {Precision::fp32, Precision::fp64}) {
    TrainingSpec training;
    training.precision = precision;
    Trainer trainer(network, training);
    const auto refused = [&](const ConstMatrix& matrix, const std::string& value) {
      double target = 0;
      std::feclearexcept(FE_ALL_EXCEPT);
      const std::string messages[] = {
          message_of<InvalidArgument>([&] { trainer.set_data(matrix, ConstMatrix(&target, 1, 1)); }),
          message_of<InvalidArgument>([&] { trainer.predict(matrix, Matrix(&target, 1, 1)); })};
      EXPECT_EQ(std::fetestexcept(FE_INVALID | FE_OVERFLOW | FE_DIVBYZERO), 0) << value;
      for (const std::string& message : messages) EXPECT_CONTAINS(message, "row 0, column 2 is " + value);
    };
    for (const double bad : {nan, -nan, infinity, -infinity, signaling}) {
      const double x[] = {1, 2, bad};
      refused(ConstMatrix(x, 1, 3), bad == infinity ? "inf" : bad == -infinity ? "-inf" : "nan");
    }
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::signaling_NaN(),
                            -std::numeric_limits<float>::infinity()}) {
      const float x[] = {1, 2, bad};
      refused(ConstMatrix(x, 1, 3), std::bit_cast<std::uint32_t>(bad) == 0xff800000 ? "-inf" : "nan");
    }
    if (precision == Precision::fp64) continue;
    // From halfway to 2^128 on a double rounds to an infinite float.
    for (const double bad : {1e39, -1e300, 0x1.ffffffp127}) {
      const double x[] = {1, 2, bad};
      char text[32];
      std::snprintf(text, sizeof text, "%g", bad);
      refused(ConstMatrix(x, 1, 3), std::string(text) + ", which fp32 cannot hold");
    }
    const double largest[] = {0x1.fffffefffffffp127, -0x1.fffffep127, 0}, target = 0;
    EXPECT_NO_THROW(trainer.set_data(ConstMatrix(largest, 1, 3), ConstMatrix(&target, 1, 1)));
  }
}

TEST(Trainer, RefusesNumbersThatFp32CannotHold) {
  NetworkSpec network;
  network.widths = {1, 1};
  Trainer trainer(network);
  const double x[] = {1, 1e300}, y[] = {1, 2};
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.set_data(ConstMatrix(x, 2, 1), ConstMatrix(y, 2, 1)); }),
                  "row 1, column 0 is 1e+300, which fp32 cannot hold");
}

TEST(Trainer, NeedsDataToTrain) {
  Trainer trainer(small_problem().network);
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.train(1); }), "set_data");
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.loss(); }), "set_data");
}

TEST(Trainer, RefusesBadCountsOfSteps) {
  Trainer trainer = small_problem().trainer();
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.train(-1); }), "-1");
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.train(std::numeric_limits<std::int64_t>::max()); }),
                  "9223372036854775807");
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] {
                    trainer.train(
                        1, [](const TrainProgress&) { return true; }, -3);
                  }),
                  "-3");
  const TrainReport none = trainer.train(0);
  EXPECT_EQ(none.steps(), 0);
  EXPECT_FALSE(none.us_per_step().has_value());
}

TEST(Trainer, CallsBackAfterEveryChunkAndStopsWhenTold) {
  const Problem problem = small_problem();
  const auto expected = problem.trainer().train(20).losses;
  Trainer trainer = problem.trainer();
  std::vector<double> seen;
  std::vector<std::int64_t> done;
  const TrainReport report = trainer.train(
      20,
      [&](const TrainProgress& progress) {
        EXPECT_EQ(progress.first_step, static_cast<std::int64_t>(seen.size()));
        EXPECT_EQ(progress.steps_total, 20);
        seen.insert(seen.end(), progress.losses.begin(), progress.losses.end());
        done.push_back(progress.steps_done);
        return seen.size() < 14;
      },
      7);
  EXPECT_EQ(done, (std::vector<std::int64_t>{7, 14}));
  EXPECT_EQ(report.end, EndOfRun::callback);
  EXPECT_EQ(report.steps(), 14);
  EXPECT_EQ(seen, report.losses);
  EXPECT_EQ(trainer.steps_done(), 14);
  const TrainReport rest = trainer.train(6, [](const TrainProgress&) { return true; });
  EXPECT_EQ(rest.end, EndOfRun::all_steps);
  seen.insert(seen.end(), rest.losses.begin(), rest.losses.end());
  EXPECT_EQ(seen, expected);
}

TEST(Trainer, CallsBackSoonerWhereAStepTakesLongerThanPredicted) {
  if (kSlowMachine) GTEST_SKIP() << "the first chunk, which is as predicted, would take long";
  NetworkSpec network;
  network.widths = {64, 64, 1};
  DeviceCaps caps = query_device_caps();
  caps.gpus.clear();
  caps.cpu.gflops_fp32 = 1e9;
  Trainer trainer(network, {}, std::nullopt, caps);
  std::vector<float> x(512 * 64), y(512);
  fill_normal(Matrix(x.data(), 512, 64), 0, kTensorX);
  trainer.set_data(ConstMatrix(x.data(), 512, 64), ConstMatrix(y.data(), 512, 1));
  std::vector<std::int64_t> chunks;
  const auto begin = std::chrono::steady_clock::now();
  const auto ms_since = [](auto start) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  };
  double first_ms = 0;
  trainer.train(100000, [&](const TrainProgress& progress) {
    if (chunks.empty()) first_ms = ms_since(begin);
    chunks.push_back(static_cast<std::int64_t>(progress.losses.size()));
    return chunks.size() < 2;
  });
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0], 4096);
  if (first_ms < 120) GTEST_SKIP() << "this machine is as fast as predicted";
  EXPECT_NEAR(static_cast<double>(chunks[1]), 4096 * 50 / first_ms, 4096 * 5 / first_ms);
}

TEST(Trainer, ACallbackThatThrowsLeavesAWholeNumberOfSteps) {
  const Problem problem = small_problem();
  const auto expected = problem.trainer().train(20).losses;
  Trainer trainer = problem.trainer();
  EXPECT_THROW(trainer.train(
                   20, [](const TrainProgress&) -> bool { throw std::runtime_error("enough"); }, 5),
               std::runtime_error);
  EXPECT_EQ(trainer.steps_done(), 5);
  EXPECT_EQ(trainer.train(1).losses[0], expected[5]);
}

TEST(Trainer, ReadsAndWritesParametersInBothTypesBeforeAndAfterData) {
  const Problem problem = small_problem();
  for (const bool with_data : {false, true}) {
    Trainer trainer(problem.network, problem.training);
    if (with_data) trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
    const std::vector<float> weight = {1, 2, 3, 4, 5, 6}, bias = {7, 8};
    trainer.write_weight(1, ConstMatrix(weight.data(), 3, 2));
    trainer.write_bias(1, ConstMatrix(bias.data(), 1, 2));
    std::vector<double> weight_back(6), bias_back(2);
    trainer.read_weight(1, Matrix(weight_back.data(), 3, 2));
    trainer.read_bias(1, Matrix(bias_back.data(), 1, 2));
    EXPECT_EQ(weight_back, std::vector<double>(weight.begin(), weight.end()));
    EXPECT_EQ(bias_back, std::vector<double>(bias.begin(), bias.end()));
  }
}

TEST(Trainer, RefusesParametersThatDoNotExistOrMatch) {
  const Problem problem = small_problem(false);
  Trainer trainer = problem.trainer();
  std::vector<double> values(100, 1);
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.read_weight(2, Matrix(values.data(), 4, 3)); }), "layer 2");
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.read_weight(-1, Matrix(values.data(), 4, 3)); }),
                  "layer -1");
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.read_bias(0, Matrix(values.data(), 1, 3)); }), "no biases");
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.write_weight(0, ConstMatrix(values.data(), 3, 4)); }),
                  "0.weight is [4, 3], the matrix is [3, 4]");
  values[5] = std::nan("");
  EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.write_weight(0, ConstMatrix(values.data(), 4, 3)); }),
                  "row 1, column 2 is nan");
}

TEST(Trainer, PredictsBeforeAnyData) {
  const Problem problem = small_problem();
  Trainer trainer(problem.network, problem.training);
  problem.set_parameters(trainer, problem.start);
  std::vector<double> out(20);
  trainer.predict(Problem::view(problem.x), Matrix(out.data(), 10, 2));
  const auto expected = reference::forward(problem.start, problem.x).back().values;
  EXPECT_LE(reference::relative_error(out, expected), 1e-14);
  // And the trainer takes data after that, with the parameters it has.
  trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
  EXPECT_EQ(trainer.train(3).losses, problem.trainer().train(3).losses);
}

TEST(Trainer, RefusesToPredictWhatDoesNotMatch) {
  const Problem problem = small_problem();
  Trainer trainer = problem.trainer();
  std::vector<double> x(40), out(20);
  EXPECT_CONTAINS(
      message_of<InvalidArgument>([&] { trainer.predict(ConstMatrix(x.data(), 8, 5), Matrix(out.data(), 8, 2)); }),
      "[8, 5]");
  EXPECT_CONTAINS(
      message_of<InvalidArgument>([&] { trainer.predict(ConstMatrix(x.data(), 10, 4), Matrix(out.data(), 9, 2)); }),
      "[10, 2]");
  x[3] = std::nan("");
  EXPECT_CONTAINS(
      message_of<InvalidArgument>([&] { trainer.predict(ConstMatrix(x.data(), 10, 4), Matrix(out.data(), 10, 2)); }),
      "row 0, column 3 is nan");
}

TEST(Trainer, FailsBeforeAllocatingWhatDoesNotFit) {
  DeviceCaps caps = query_device_caps();
  caps.gpus.clear();
  caps.cpu.memory_bytes = 100000;
  NetworkSpec network;
  network.widths = {4, 3, 2};
  Trainer trainer(network, {}, std::nullopt, caps);
  std::vector<float> x(4 * 10000), y(2 * 10000);
  EXPECT_CONTAINS(message_of<InvalidArgument>(
                      [&] { trainer.set_data(ConstMatrix(x.data(), 10000, 4), ConstMatrix(y.data(), 10000, 2)); }),
                  "97.7 KiB");
  EXPECT_NO_THROW(trainer.set_data(ConstMatrix(x.data(), 10, 4), ConstMatrix(y.data(), 10, 2)));
}

TEST(Trainer, SavesItsNetworkWithItsWeightsAndRefusesAnothersActivations) {
  const testing::TemporaryFolder folder;
  const std::string weights = folder / "w.safetensors", state = folder / "s.safetensors";
  const NetworkSpec network{
      .widths = {4, 3, 2}, .activation = Activation::leaky_relu, .bias = true, .output_activation = Activation::tanh};
  const Trainer saved(network);
  saved.save_weights(weights);
  saved.save_state(state);
  for (const std::string& path : {weights, state}) {
    SafeTensorsMetadata metadata = SafeTensorsFile(path).metadata();
    if (path == state) {  // which has two more
      EXPECT_EQ(metadata.erase(kCheckpointKey), 1u);
      EXPECT_EQ(metadata.erase(kChecksumKey), 1u);
    }
    EXPECT_EQ(metadata, (SafeTensorsMetadata{{"format", "pt"},
                                             {"deviceloop.network",
                                              R"({"version":1,"widths":[4,3,2],"bias":true,"activation":"leaky-relu",)"
                                              R"("output_activation":"tanh"})"}}));
  }
  Trainer(network).load_weights(weights);
  Trainer(network).load_state(state);
  NetworkSpec hidden = network, output = network;
  hidden.activation = Activation::relu;
  output.output_activation = Activation::identity;
  for (const auto& [other, problem] :
       {std::pair(hidden, "its network has the activation leaky-relu, but relu was asked for; use leaky-relu"),
        std::pair(output, "its network has the output activation tanh, but identity was asked for; use tanh")}) {
    Trainer trainer(other);
    trainer.initialize(5);
    std::vector<float> before(12), after(12);
    trainer.read_weight(0, Matrix(before.data(), 4, 3));
    EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.load_weights(weights); }), weights + ": " + problem);
    EXPECT_CONTAINS(message_of<InvalidArgument>([&] { trainer.load_state(state); }), state + ": " + problem);
    trainer.read_weight(0, Matrix(after.data(), 4, 3));
    EXPECT_EQ(before, after);
  }
}

TEST(Trainer, MovesWithItsState) {
  const Problem problem = small_problem();
  const auto expected = problem.trainer().train(6).losses;
  Trainer first = problem.trainer();
  auto losses = first.train(3).losses;
  Trainer second = std::move(first);
  const auto rest = second.train(3).losses;
  losses.insert(losses.end(), rest.begin(), rest.end());
  EXPECT_EQ(losses, expected);
}

TEST(Trainer, LeavesTheApplicationsBlasThreadsAsTheyWere) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  for (const int number : {1, 2}) {
    const OpenBlasThreads threads(number);
    Trainer trainer = small_problem().trainer(3);
    EXPECT_EQ(openblas_get_num_threads(), number);
    trainer.train(5);
    EXPECT_EQ(openblas_get_num_threads(), number);
    trainer.loss();
    EXPECT_EQ(openblas_get_num_threads(), number);
  }
}

// Large enough for OpenBLAS to share its products among threads, which shows in the last digits of the losses.
Problem shared_products(Formulation formulation = Formulation::primal) {
  Problem problem = Problem::random({600, 700, 10}, true, 512, Precision::fp32, Init::he, 1e-5);
  problem.training.device.kind = DeviceKind::cpu;
  problem.training.formulation = formulation;
  return problem;
}

// OpenBLAS' threads may compute for a moment in tests of what ends that.
#define SKIP_UNDER_THE_THREAD_SANITIZER() \
  if (kSlowMachine) GTEST_SKIP() << "the thread sanitizer does not see how OpenBLAS' threads wait for each other"

// While it lives, somebody else asks OpenBLAS for 2 threads again and again.
class Disturbance {
 public:
  ~Disturbance() {
    ends_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> ends_ = false;
  std::thread thread_{[this] {
    do {
      openblas_set_num_threads(2);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    } while (!ends_);
  }};
};

TEST(Trainer, GivesTheSameBitsForAnyNumberOfBlasThreadsBetweenCalls) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  const Problem problem = shared_products();
  const auto expected = problem.trainer().train(4).losses;
  Trainer trainer = problem.trainer();
  std::vector<double> losses;
  for (const int number : {2, 1, 3, 2}) {
    const OpenBlasThreads threads(number);
    losses.push_back(trainer.train(1).losses.front());
    EXPECT_EQ(openblas_get_num_threads(), number);
  }
  EXPECT_EQ(losses, expected);
}

TEST(Trainer, GivesTheSameBitsWhereItsCallbackSetsTheBlasThreads) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  const Problem problem = shared_products();
  const auto expected = problem.trainer().train(4).losses;
  const OpenBlasThreads threads(1);
  const auto set_threads = [](const TrainProgress& progress) {
    openblas_set_num_threads(1 + static_cast<int>(progress.steps_done));
    return true;
  };
  EXPECT_EQ(problem.trainer().train(4, set_threads, 1).losses, expected);
  EXPECT_EQ(openblas_get_num_threads(), 5);
}

TEST(Trainer, EndsARunDuringWhichSomebodySetsTheBlasThreads) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  SKIP_UNDER_THE_THREAD_SANITIZER();
  for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
    const Problem problem = shared_products(formulation);
    const auto expected = problem.trainer().train(3).losses;
    for (const int cpu_threads : {1, 2}) {
      const OpenBlasThreads threads(1);
      Trainer trainer = problem.trainer(cpu_threads);
      std::int64_t done = -1;
      std::string message;
      {
        const Disturbance disturbance;
        message = message_of<Error>([&] { trainer.train(200); });
      }
      EXPECT_EQ(std::sscanf(message.c_str(), "train ended after %ld of 200 steps: ", &done), 1) << message;
      EXPECT_EQ(trainer.steps_done(), done);
      EXPECT_CONTAINS(message, "was set to 2 while");
      EXPECT_CONTAINS(message, "openblas_set_num_threads");
      EXPECT_EQ(openblas_get_num_threads(), 2);

      EXPECT_NEAR(trainer.loss(), problem.trainer().train(done + 1).losses.back(), 1e-4 * expected.front());
      EXPECT_EQ(trainer.train(1).first_step, done);
      problem.set_parameters(trainer, problem.start);
      EXPECT_EQ(trainer.train(3).losses, expected);
      EXPECT_EQ(openblas_get_num_threads(), 2);
    }
  }
}

TEST(Trainer, EndsARunBesideWhichAnothersCallbackSetsTheBlasThreads) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  SKIP_UNDER_THE_THREAD_SANITIZER();
  const OpenBlasThreads threads(1);
  const Problem problem = shared_products();
  const auto expected = problem.trainer().train(4).losses;
  Trainer trainer = problem.trainer(), beside = problem.trainer();
  std::atomic<bool> runs = false, ended = false;
  std::string message;
  std::thread other([&] {
    const auto started = [&](const TrainProgress&) { return runs = true; };
    message = message_of<Error>([&] {
      beside.train(1, started, 1);
      beside.train(200);
    });
    ended = true;
  });
  const auto set_threads = [&](const TrainProgress& progress) {
    if (progress.steps_done > 1) return true;
    while (!ended) {  // until it has found it
      openblas_set_num_threads(2);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  };
  while (!runs) std::this_thread::yield();
  EXPECT_EQ(trainer.train(4, set_threads, 1).losses, expected);
  other.join();
  EXPECT_CONTAINS(message, "openblas_set_num_threads");
  EXPECT_EQ(openblas_get_num_threads(), 2);
}

TEST(Trainer, GivesNoLossOrPredictionDuringWhichSomebodySetsTheBlasThreads) {
  SKIP_UNLESS_OPENBLAS_HAS_THREADS();
  SKIP_UNDER_THE_THREAD_SANITIZER();
  const OpenBlasThreads threads(1);
  const Problem problem = shared_products();
  Trainer trainer = problem.trainer();
  const double expected = trainer.loss();
  std::vector<float> out(512 * 10), expected_out(out.size());
  const Matrix predictions(out.data(), 512, 10);
  trainer.predict(Problem::view(problem.x), Matrix(expected_out.data(), 512, 10));
  int refusals = 0;
  {
    const Disturbance disturbance;
    // What is not refused has the right bits.
    for (int round = 0; round < 100000 && refusals < 5; ++round) try {
        ASSERT_EQ(trainer.loss(), expected);
      } catch (const Error&) {
        ++refusals;
      }
    for (int round = 0; round < 100000 && refusals < 10; ++round) try {
        trainer.predict(Problem::view(problem.x), predictions);
        ASSERT_EQ(out, expected_out);
      } catch (const Error&) {
        ++refusals;
      }
  }
  EXPECT_EQ(refusals, 10);
  EXPECT_EQ(trainer.loss(), expected);
}

/// What one trainer gives over its life, with files of its own.
std::vector<double> life_of_a_trainer(const Problem& problem, int threads, const std::string& file) {
  TrainingSpec training = problem.training;
  training.threads = threads;
  training.watch.every = 3;
  training.watch.keep_best = true;
  Trainer trainer(problem.network, training);
  problem.set_parameters(trainer, problem.start);
  trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
  trainer.set_validation(Problem::view(problem.x), Problem::view(problem.y));
  std::vector<double> given = trainer
                                  .train(
                                      7, [](const TrainProgress&) { return true; }, 2)
                                  .losses;
  trainer.save_state(file);
  trainer.train(3);
  trainer.load_state(file);
  for (const double loss : trainer.train(4).losses) given.push_back(loss);
  given.push_back(trainer.evaluate().loss);
  trainer.restore_best();
  given.push_back(trainer.loss());
  trainer.save_weights(file);
  trainer.load_weights(file);
  std::vector<double> predictions(static_cast<std::size_t>(problem.x.rows * problem.network.widths.back()));
  trainer.predict(Problem::view(problem.x),
                  Matrix(predictions.data(), static_cast<std::int64_t>(problem.x.rows), problem.network.widths.back()));
  given.insert(given.end(), predictions.begin(), predictions.end());
  for (const double value : flat(problem.parameters_of(trainer))) given.push_back(value);
  return given;
}

TEST(Trainer, SeveralOnSeveralThreadsAreWhatTheyAreAlone) {
  constexpr int kTrainers = 3, kRounds = kHostFixture ? 1 : 5;
  const testing::TemporaryFolder folder;
  std::vector<Problem> problems;
  std::vector<std::vector<double>> alone;
  for (int i = 0; i < kTrainers; ++i) {
    problems.push_back(Problem::random({4, 3 + i, 2}, true, 70, Precision::fp32, Init::he, 1e-3));
    alone.push_back(life_of_a_trainer(problems.back(), 1 + i, folder / "alone"));
  }
  for (int round = 0; round < kRounds; ++round) {
    std::vector<std::vector<double>> together(kTrainers);
    std::vector<std::thread> threads;
    for (int i = 0; i < kTrainers; ++i)
      threads.emplace_back([&, i] {
        const auto at = static_cast<std::size_t>(i);
        together[at] = life_of_a_trainer(problems[at], 1 + i, folder / std::to_string(i));
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(together, alone);
  }
}

/// The public functions of Trainer, by their names in its header.
std::set<std::string> functions_of_trainer() {
  std::istringstream header(testing::read_all(std::string(DEVICELOOP_SOURCE_DIR) + "/include/deviceloop/trainer.h"));
  std::set<std::string> names;
  bool is_inside = false;
  for (std::string line; std::getline(header, line) && !(is_inside && line == " private:");) {
    is_inside = is_inside || line.starts_with("class DEVICELOOP_EXPORT Trainer ");
    if (!is_inside || !line.starts_with("  ") || line.starts_with("  //") || line.starts_with("   ")) continue;
    const std::size_t end = line.find('('), begin = line.find_last_of(" ~", end) + 1;
    if (end != std::string::npos) names.insert(line.substr(begin, end - begin));
  }
  return names;
}

TEST(Trainer, GivesAChildAfterForkAClearErrorForEveryCallAndLetsItEnd) {
  const testing::TemporaryFolder folder;
  const std::string file = folder / "state";
  Problem problem = small_problem();
  problem.training.watch.keep_best = true;
  problem.training.watch.every = 1;
  auto trainer = std::make_unique<Trainer>(problem.trainer(3));
  trainer->set_validation(Problem::view(problem.x), Problem::view(problem.y));
  trainer->train(3);
  trainer->save_state(file);
  const ConstMatrix x = Problem::view(problem.x), y = Problem::view(problem.y);
  std::vector<double> values(100);
  const Matrix weight(values.data(), 4, 3), bias(values.data(), 1, 3), out(values.data(), 10, 2);
  const std::map<std::string, std::function<void()>> refused = {
      {"set_data", [&] { trainer->set_data(x, y); }},
      {"set_validation", [&] { trainer->set_validation(x, y); }},
      {"prepare", [&] { trainer->prepare(); }},
      {"initialize", [&] { trainer->initialize(1); }},
      {"read_weight", [&] { trainer->read_weight(0, weight); }},
      {"read_bias", [&] { trainer->read_bias(0, bias); }},
      {"write_weight", [&] { trainer->write_weight(0, weight); }},
      {"write_bias", [&] { trainer->write_bias(0, bias); }},
      {"load_weights", [&] { trainer->load_weights(file); }},
      {"save_weights", [&] { trainer->save_weights(folder / "child"); }},
      {"load_state", [&] { trainer->load_state(file); }},
      {"save_state", [&] { trainer->save_state(folder / "child"); }},
      {"train", [&] { trainer->train(1); }},
      {"train_async", [&] { trainer->train_async(1); }},
      {"enqueue_step", [&] { trainer->enqueue_step(); }},
      {"data_changed", [&] { trainer->data_changed(); }},
      {"loss", [&] { trainer->loss(); }},
      {"evaluate", [&] { trainer->evaluate(); }},
      {"best", [&] { trainer->best(); }},
      {"restore_best", [&] { trainer->restore_best(); }},
      {"predict", [&] { trainer->predict(x, out); }},
  };
  const std::map<std::string, std::function<void()>> allowed = {
      {"network", [&] { trainer->network(); }},
      {"training", [&] { trainer->training(); }},
      {"plan", [&] { trainer->plan(); }},
      {"steps_done", [&] { trainer->steps_done(); }},
      {"Trainer", [&] { trainer.reset(); }},
      {"operator=", [&] { *trainer = Trainer(problem.network, problem.training); }},
  };
  for (const std::string& name : functions_of_trainer())
    EXPECT_EQ(refused.count(name) + allowed.count(name), 1u) << name << " has no line here";
  EXPECT_EQ(functions_of_trainer().size(), refused.size() + allowed.size());

  int channel[2];
  ASSERT_EQ(pipe(channel), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);  // a child that hangs dies
    std::string wrong;
    for (const auto& [name, call] : refused) try {
        call();
        wrong += name + " throws nothing; ";
      } catch (const Error& error) {
        if (std::string(error.what()).find("before fork()") == std::string::npos)
          wrong += name + ": " + error.what() + "; ";
      }
    for (const char* name : {"network", "training", "plan", "steps_done"}) allowed.at(name)();
    if (trainer->steps_done() != 3) wrong += "steps_done; ";
    trainer.reset();
    const ssize_t written = write(channel[1], wrong.data(), wrong.size());
    _exit(written == static_cast<ssize_t>(wrong.size()) ? 0 : 1);
  }
  close(channel[1]);
  std::string wrong;
  char buffer[256];
  for (ssize_t bytes; (bytes = read(channel[0], buffer, sizeof buffer)) > 0;)
    wrong.append(buffer, static_cast<std::size_t>(bytes));
  close(channel[0]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_EQ(wrong, "");
  EXPECT_EQ(folder.count(), 1);
  EXPECT_NO_THROW(trainer->train(1));
}

}  // namespace
}  // namespace deviceloop
