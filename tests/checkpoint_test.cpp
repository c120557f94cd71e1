// Checkpoints on every executor: a run that is cut by Trainer::save_state and load_state has the bits of one that is
// not; what is not the state of such a run is refused, a damaged file always.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checksum.h"
#include "files/read_file.h"
#include "files/safetensors.h"
#include "files/weights.h"
#include "support/problem.h"
#include "support/refusal.h"
#include "support/sanitized.h"
#include "support/temporary_folder.h"
#include "support/where.h"

namespace deviceloop {
namespace {

using reference::Table;
using testing::read_all;
using testing::TemporaryFolder;

/// A run with validation data, whose loss falls and then rises, and with the parameters of its best evaluation kept.
struct WatchedRun {
  Problem problem;
  Table x, y;

  static WatchedRun random(const Where& where, std::vector<std::int64_t> widths, bool bias, std::int64_t samples,
                           const Optimizer& optimizer, Precision precision = Precision::fp32) {
    WatchedRun run{Problem::random(std::move(widths), bias, samples, precision, Init::he, 0), {}, {}};
    TrainingSpec& training = run.problem.training;
    training.optimizer = optimizer;
    training.form = where.form;
    training.watch.every = 4;
    training.watch.keep_best = true;
    const NetworkSpec& network = run.problem.network;
    run.x = Problem::filled(9, network.widths.front(), precision, 31, kTensorX);
    run.y = Problem::filled(9, network.widths.back(), precision, 31, kTensorY);
    return run;
  }

  Trainer trainer(const Where& where) const {
    Trainer made = problem.trainer(where.threads, where.kind);
    made.set_validation(Problem::view(x), Problem::view(y));
    return made;
  }
  /// Without data.
  Trainer empty(const Where& where) const {
    TrainingSpec training = problem.training;
    training.threads = where.threads;
    return Trainer(problem.network, training, where.kind);
  }
};

/// All that there is of a trainer's state.
std::string state_of(const Trainer& trainer) {
  const TemporaryFolder folder;
  trainer.save_state(folder / "state");
  return read_all(folder / "state");
}

std::vector<std::pair<std::int64_t, double>> pairs_of(const std::vector<Evaluation>& evaluations, std::int64_t after) {
  std::vector<std::pair<std::int64_t, double>> pairs;
  for (const Evaluation& each : evaluations)
    if (each.steps > after) pairs.emplace_back(each.steps, each.loss);
  return pairs;
}

class Checkpoints : public ::testing::TestWithParam<Where> {
 protected:
  void SetUp() override { require(GetParam()); }
  static bool is_persistent() { return GetParam().kind == ExecutorKind::persistent; }
  static bool is_on_chip() { return GetParam().form == PersistentForm::on_chip; }
  static bool is_two_layer() { return GetParam().form == PersistentForm::two_layer; }

  /// `steps` steps, whole and cut after `first` of them.
  static void expect_goes_on(const WatchedRun& run, std::int64_t steps, std::int64_t first) {
    const TemporaryFolder folder;
    const std::string path = folder / "run.checkpoint";
    Trainer whole = run.trainer(GetParam());
    const TrainReport report = whole.train(steps);
    const std::string end = state_of(whole);
    const std::int64_t best = whole.best().value().steps;
    const std::vector<double> rest(report.losses.begin() + first, report.losses.end());

    const auto expect_rest = [&](Trainer& trainer) {
      EXPECT_EQ(trainer.steps_done(), first);
      const TrainReport second = trainer.train(steps - first);
      EXPECT_EQ(second.first_step, first);
      EXPECT_EQ(second.losses, rest);
      EXPECT_EQ(pairs_of(second.evaluations, 0), pairs_of(report.evaluations, first));
      EXPECT_EQ(trainer.best()->steps, best);
      EXPECT_TRUE(state_of(trainer) == end);
    };
    Trainer saved = run.trainer(GetParam());
    saved.train(first);
    saved.save_state(path);
    expect_rest(saved);  // which saving did not change

    Trainer other = run.trainer(GetParam());
    other.initialize(5, Init::he);
    other.train(3);
    other.load_state(path);
    EXPECT_TRUE(state_of(other) == read_all(path));
    expect_rest(other);
    other.restore_best();
    whole.restore_best();
    EXPECT_EQ(flat(run.problem.parameters_of(other)), flat(run.problem.parameters_of(whole)));

    // Data may come after the state, in any order.
    Trainer late = run.empty(GetParam());
    late.load_state(path);
    late.set_validation(Problem::view(run.x), Problem::view(run.y));
    late.set_data(Problem::view(run.problem.x), Problem::view(run.problem.y));
    expect_rest(late);
  }
};

TEST_P(Checkpoints, GoOnWithTheSameBits) {
  const Optimizer descent{.learning_rate = 2e-3},
      momentum{.kind = OptimizerKind::sgd,
               .learning_rate = 1e-3,
               .momentum = 0.9,
               .nesterov = true,
               .weight_decay = 1e-3,
               .schedule = {.kind = ScheduleKind::step, .period = 5, .factor = 0.5}},
      adam{.kind = OptimizerKind::adam,
           .learning_rate = 0.03,
           .clip_norm = 2,
           .schedule = {.kind = ScheduleKind::cosine, .period = 25, .warmup_steps = 8}};
  for (const Optimizer& optimizer : {descent, momentum, adam}) {
    if (is_two_layer() && optimizer.kind != OptimizerKind::gradient_descent) continue;
    SCOPED_TRACE(static_cast<int>(optimizer.kind));
    WatchedRun run = WatchedRun::random(GetParam(), {7, 20, 3}, true, 30, optimizer);
    if (is_persistent()) run.problem.training.optimizer.clip_norm = 0;  // which it refuses
    expect_goes_on(run, 25, 6);
    if (is_persistent() && !is_on_chip()) continue;
    run.problem.training.batch_size = 8;  // 56 of 30 samples: in the second epoch
    run.problem.training.seed = 3;
    run.problem.training.watch.every = 0;
    expect_goes_on(run, 25, 7);
    for (const Precision precision : lower_precisions(GetParam())) {
      run.problem.training.precision = precision;
      expect_goes_on(run, 25, 7);
    }
  }
}

TEST_P(Checkpoints, GoOnWithTheSameBitsInTheGramFormulation) {
  if (is_on_chip()) return;  // the form has it not
  const Optimizer descent{.learning_rate = 2e-4},
      momentum{.kind = OptimizerKind::sgd,
               .learning_rate = 1e-4,
               .momentum = 0.9,
               .weight_decay = 1e-3,
               .schedule = {.kind = ScheduleKind::exponential, .factor = 0.99, .warmup_steps = 9}};
  int number = 0;
  for (const Precision precision : {Precision::fp32, Precision::fp64})
    for (const Optimizer& optimizer : {descent, momentum})
      for (const bool bias : {false, true})
        for (const std::int64_t reprojection : {0, 7}) {
          if (is_two_layer() && optimizer.kind != OptimizerKind::gradient_descent) continue;
          if (kHostFixture && ++number % 3 != 0) continue;
          SCOPED_TRACE(::testing::Message() << static_cast<int>(optimizer.kind) << bias << reprojection);
          WatchedRun run = WatchedRun::random(GetParam(), {30, 18, 2}, bias, 9, optimizer, precision);
          run.problem.training.formulation = Formulation::gram;
          run.problem.training.reprojection_steps = reprojection;
          expect_goes_on(run, 24, 10);
          if (reprojection > 0) expect_goes_on(run, 16, 7);  // saved where Z was just to be computed anew
        }
}

TEST_P(Checkpoints, OfGramOnOtherDataGoOnFromTheParameters) {
  if (is_on_chip()) return;  // the form has it not
  WatchedRun run = WatchedRun::random(GetParam(), {30, 18, 2}, true, 9, {.learning_rate = 2e-4}, Precision::fp64);
  run.problem.training.formulation = Formulation::gram;
  const TemporaryFolder folder;
  const std::string path = folder / "run.checkpoint", weights = folder / "weights";
  Trainer first = run.trainer(GetParam());
  first.train(8);
  first.save_state(path);
  first.save_weights(weights);
  WatchedRun other = run;
  other.problem.x = Problem::filled(9, 30, Precision::fp64, 8, kTensorX);
  Trainer second = other.trainer(GetParam()), expected = other.trainer(GetParam());
  second.load_state(path);
  expected.load_weights(weights);
  EXPECT_EQ(second.train(6).losses, expected.train(6).losses);
}

#ifdef DEVICELOOP_CHECKPOINTS_ON_CUDA
INSTANTIATE_TEST_SUITE_P(CudaExecutors, Checkpoints,
                         ::testing::Values(Where{ExecutorKind::graph},
                                           Where{ExecutorKind::persistent, PersistentForm::two_layer},
                                           Where{ExecutorKind::persistent, PersistentForm::on_chip}),
                         [](const ::testing::TestParamInfo<Where>& where) {
                           std::string name = ::testing::PrintToString(where.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });
#else
INSTANTIATE_TEST_SUITE_P(Executors, Checkpoints,
                         ::testing::Values(Where{ExecutorKind::cpu}, Where{ExecutorKind::cpu, {}, 3}),
                         ::testing::PrintToStringParamName());

constexpr Where kCpu{ExecutorKind::cpu};

/// A small checkpoint with all that one may hold: momentum, the state of gram, the best parameters.
WatchedRun full_run() {
  WatchedRun run = WatchedRun::random(kCpu, {2, 2, 1}, true, 3,
                                      {.kind = OptimizerKind::sgd, .learning_rate = 1e-4, .momentum = 0.9});
  run.problem.training.formulation = Formulation::gram;
  run.problem.training.watch.every = 1;
  return run;
}

std::string refusal_of(const WatchedRun& run, const std::string& bytes) {
  return testing::refusal<InvalidArgument>("a.checkpoint: ", [&] {
    const MemorySource source("a.checkpoint", std::as_bytes(std::span(bytes)));
    read_state(SafeTensorsFile(source), run.problem.network, run.problem.training);
  });
}

TEST(CheckpointFiles, AreRefusedWhereverOneByteHasChanged) {
  const WatchedRun run = full_run();
  Trainer trainer = run.trainer(kCpu);
  trainer.train(5);
  const std::string good = state_of(trainer);
  {
    const MemorySource source("a.checkpoint", std::as_bytes(std::span(good)));
    const SavedState state = read_state(SafeTensorsFile(source), run.problem.network, run.problem.training);
    ASSERT_TRUE(state.gram && !state.best.empty() && state.steps == 5);
  }
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string changed = good;
    for (const int mask : {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff, 0x0f}) {
      changed[at] = static_cast<char>(static_cast<unsigned char>(good[at]) ^ mask);
      ASSERT_NE(refusal_of(run, changed), "") << "byte " << at << " changed by " << mask;
    }
    for (const char value : {' ', '\t', '\n', '"', '\\', '{', '}', ',', ':', '0', 'a', '\0'}) {
      if (value == good[at]) continue;
      changed[at] = value;
      ASSERT_NE(refusal_of(run, changed), "") << "byte " << at << " is now " << value;
    }
  }
  for (std::size_t length = 1; length < good.size(); ++length)
    ASSERT_NE(refusal_of(run, good.substr(0, length)), "") << length;
  EXPECT_NE(refusal_of(run, good + " "), "");
}

TEST(CheckpointFiles, ThatAreDamagedAreNamedAndChangeNothing) {
  const WatchedRun run = full_run();
  const TemporaryFolder folder;
  Trainer trainer = run.trainer(kCpu);
  trainer.train(2);
  std::string bytes = state_of(trainer);
  bytes.back() ^= 1;
  const std::string path = folder.write("run.checkpoint", bytes), before = state_of(trainer);
  EXPECT_MENTIONS(testing::refusal<InvalidArgument>(path + ": ", [&] { trainer.load_state(path); }),
                  "is damaged: its bytes have the checksum ");
  EXPECT_TRUE(state_of(trainer) == before);
}

TEST(CheckpointFiles, AreThoseOfTheSameSettings) {
  const TemporaryFolder folder;
  const std::string path = folder / "run.checkpoint";
  WatchedRun run = WatchedRun::random(kCpu, {3, 4, 2}, true, 10,
                                      {.kind = OptimizerKind::sgd, .learning_rate = 1e-3, .momentum = 0.9});
  run.problem.training.batch_size = 4;
  Trainer saved = run.trainer(kCpu);
  saved.train(5);
  saved.save_state(path);
  ASSERT_TRUE(saved.best());
  const auto refusal = [&](const auto& change) {
    WatchedRun other = run;
    change(other.problem.training);
    Trainer trainer = other.trainer(kCpu);
    return testing::refusal<InvalidArgument>(path + ": ", [&] { trainer.load_state(path); });
  };
  const std::string remedy = "; load it into a trainer with the settings that saved it";
  EXPECT_MENTIONS(refusal([](TrainingSpec& training) { training.batch_size = 5; }),
                  "is of a run with batch_size 4, and the trainer has 5" + remedy);
  EXPECT_MENTIONS(refusal([](TrainingSpec& training) { training.seed = 4; }), "seed 0, and the trainer has 4");
  EXPECT_MENTIONS(refusal([](TrainingSpec& training) { training.shuffle = false; }), "shuffle true");
  EXPECT_MENTIONS(refusal([](TrainingSpec& training) { training.loss = Loss::huber; }), "loss squared_error");
  EXPECT_MENTIONS(refusal([](TrainingSpec& training) { training.reduction = Reduction::mean; }), "reduction sum");
  EXPECT_MENTIONS(refusal([](TrainingSpec& training) { training.optimizer.momentum = 0.5; }), "momentum 0.9");
  EXPECT_MENTIONS(refusal([](TrainingSpec& training) { training.optimizer.weight_decay = 0.5; }),
                  "optimizer.weight_decay 0.0, and the trainer has 0.5");
  EXPECT_MENTIONS(refusal([](TrainingSpec& training) { training.watch.keep_best = false; }), "watch.keep_best true");
  {
    WatchedRun other = run;
    other.problem.x = Problem::filled(11, 3, Precision::fp32, 3, kTensorX);
    other.problem.y = Problem::filled(11, 2, Precision::fp32, 3, kTensorY);
    Trainer trainer = other.trainer(kCpu);
    EXPECT_MENTIONS(testing::refusal<InvalidArgument>(path + ": ", [&] { trainer.load_state(path); }), "samples 10");
  }
  // What may differ: a state goes on at another rate, with an explicit default, on other threads.
  WatchedRun other = run;
  other.problem.training.optimizer.learning_rate = 1e-4;
  other.problem.training.optimizer.weight_decay = 0;
  other.problem.training.optimizer.schedule = {.kind = ScheduleKind::exponential, .factor = 0.5};
  other.problem.training.watch.every = 7;
  other.problem.training.watch.patience = 3;
  Trainer trainer = other.trainer({ExecutorKind::cpu, {}, 2});
  trainer.load_state(path);
  EXPECT_EQ(trainer.steps_done(), 5);
  ASSERT_TRUE(trainer.best());
  EXPECT_EQ(trainer.best()->loss, saved.best()->loss);
  // All samples in each step: their order says nothing.
  WatchedRun full = run;
  full.problem.training.batch_size = 0;
  Trainer whole = full.trainer(kCpu);
  whole.save_state(path);
  full.problem.training.seed = 8;
  full.problem.training.batch_size = 10;
  full.trainer(kCpu).load_state(path);
}

TEST(CheckpointFiles, WithoutTheMetadataAreReadAsBefore) {
  const TemporaryFolder folder;
  WatchedRun run = WatchedRun::random(kCpu, {3, 4, 2}, true, 10, {.kind = OptimizerKind::adam, .learning_rate = 1e-2});
  Trainer saved = run.trainer(kCpu);
  saved.train(3);
  saved.save_state(folder / "new");
  const std::vector<double> rest = saved.train(4).losses;
  std::vector<SafeTensor> tensors;
  for (SafeTensor& tensor : read_safetensors(folder / "new"))
    if (!tensor.name.starts_with("best.")) tensors.push_back(std::move(tensor));
  SafeTensorsMetadata metadata = SafeTensorsFile(folder / "new").metadata();
  metadata.erase(kCheckpointKey);
  metadata.erase(kChecksumKey);
  OutputFile file(folder / "old");
  write_safetensors(file, tensors, metadata);
  file.commit();
  run.problem.training.watch.keep_best = false;
  Trainer trainer = run.trainer(kCpu);
  trainer.train(2);
  trainer.load_state(folder / "old");
  EXPECT_EQ(trainer.steps_done(), 2);
  EXPECT_EQ(trainer.train(4).losses, rest);
}

// Evaluations, and a rule that ends the run, count over the cut; other validation data begin anew.
TEST(CheckpointFiles, KeepWhatWatchingKnows) {
  const TemporaryFolder folder;
  const std::string path = folder / "run.checkpoint";
  WatchedRun run = WatchedRun::random(kCpu, {12, 9, 3}, true, 20, {.learning_rate = 5e-3}, Precision::fp64);
  run.problem.training.watch = {.every = 1, .patience = 6, .keep_best = true};
  Trainer whole = run.trainer(kCpu);
  const TrainReport report = whole.train(500);
  ASSERT_EQ(report.end, EndOfRun::patience);
  const std::int64_t first = whole.best()->steps + 3;
  ASSERT_LT(first, report.steps());
  Trainer saved = run.trainer(kCpu), other = run.trainer(kCpu);
  saved.train(first);
  saved.save_state(path);
  other.load_state(path);
  EXPECT_EQ(other.best()->steps, whole.best()->steps);
  const TrainReport rest = other.train(500);
  EXPECT_EQ(rest.end, EndOfRun::patience);
  EXPECT_EQ(first + rest.steps(), report.steps());
  WatchedRun changed = run;
  changed.y.values[0] += 1;
  Trainer elsewhere = changed.trainer(kCpu);
  elsewhere.load_state(path);
  EXPECT_FALSE(elsewhere.best());
}

TEST(CheckpointFiles, ThatPromiseWhatTheyDoNotHoldAreRefused) {
  const WatchedRun run = full_run();
  const TemporaryFolder folder;
  Trainer trainer = run.trainer(kCpu);
  trainer.train(5);
  trainer.save_state(folder / "good");
  const SafeTensorsMetadata metadata = SafeTensorsFile(folder / "good").metadata();
  const std::vector<SafeTensor> tensors = read_safetensors(folder / "good");
  const auto refusal = [&](const SafeTensorsMetadata& texts, const std::vector<SafeTensor>& of) {
    OutputFile file(folder / "bad");
    write_safetensors(file, of, texts);
    file.commit();
    return refusal_of(run, read_all(folder / "bad"));
  };
  for (const SafeTensor& tensor : tensors) {
    std::vector<SafeTensor> without = tensors;
    std::erase_if(without, [&](const SafeTensor& each) { return each.name == tensor.name; });
    EXPECT_MENTIONS(refusal(metadata, without), tensor.name);
  }
  const auto with = [&](const std::string& from, const std::string& to) {
    SafeTensorsMetadata changed = metadata;
    std::string& text = changed[kCheckpointKey];
    const std::size_t at = text.find(from);
    EXPECT_NE(at, text.npos) << from;
    text.replace(at, from.size(), to);
    return refusal(changed, tensors);
  };
  EXPECT_MENTIONS(with("\"version\":1", "\"version\":2"), "has the version 2, and this deviceloop reads version 1");
  EXPECT_MENTIONS(with("\"steps_done\":5", "\"steps_done\":-5"), "another value than a whole number as its steps_done");
  EXPECT_MENTIONS(with("\"steps_done\":5,", ""), "has no steps_done");
  EXPECT_MENTIONS(with("\"steps_done\":5,", "\"steps_done\":5,\"more\":1,"), "has the unknown key 'more'");
  EXPECT_MENTIONS(with("\"steps_done\":5,", "\"steps_done\":5,\"steps_done\":5,"), "the key 'steps_done' twice");
  EXPECT_MENTIONS(with("\"steps_done\":5,", "\"steps_done\":[5],"), "has a list in its 'steps_done'");
  EXPECT_MENTIONS(with("\"squared_error\"", "\"square\""), "has the unknown loss 'square'");
  EXPECT_MENTIONS(with("\"data\":\"", "\"data\":\"x"), "which is 16 hexadecimal digits");
  EXPECT_MENTIONS(with("\"reprojection_steps\":0", "\"reprojection_steps\":5"), "which its settings do not allow");
  EXPECT_MENTIONS(with("\"samples\":3", "\"samples\":4"), "has no 'gram.pre_activation', F32 [4, 2]");
  EXPECT_MENTIONS(with("{", "[{"), "is not a JSON object");
  EXPECT_MENTIONS(with("}", "}}"), "is not JSON from character");
}
#endif

}  // namespace
}  // namespace deviceloop
