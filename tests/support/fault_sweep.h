// A trainer's life, again and again, with one fault in each at another place. Whatever fails: the error is a typed one;
// nothing is left behind; and afterwards either the trainer is what it was before the call, the call succeeds when it
// is made again, and the rest of the life has the bits of a life without a fault, or the trainer says that it is dead,
// and a new one has these bits.
#pragma once

#include <gtest/gtest.h>

#include <dirent.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <new>
#include <optional>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "support/failing_new.h"
#include "support/problem.h"
#include "support/sanitized.h"
#include "support/temporary_folder.h"

namespace deviceloop::testing {

/// The specifications and data of a life. The other data have another number of rows, so that they need another
/// executor.
struct LifeCase {
  std::string name;
  Problem problem;
  reference::Table other_x, other_y, weights;  ///< the weights of `problem`'s samples; none: no rows
  ExecutorKind kind = ExecutorKind::cpu;
  int threads = 1;
};

inline std::ostream& operator<<(std::ostream& out, const LifeCase& life) { return out << life.name; }

/// A network of `widths`, validated after every second step, whose best parameters are kept.
inline LifeCase life_case(std::string name, ExecutorKind kind, std::vector<std::int64_t> widths,
                          std::int64_t samples = 6) {
  LifeCase made;
  made.name = std::move(name);
  made.kind = kind;
  made.problem = Problem::random(std::move(widths), true, samples, Precision::fp32, Init::he, 1e-3);
  made.problem.training.watch.every = 2;
  made.problem.training.watch.keep_best = true;
  const Problem other =
      Problem::random(made.problem.network.widths, true, samples + 1, Precision::fp32, Init::he, 1e-3, 8);
  made.other_x = other.x;
  made.other_y = other.y;
  return made;
}

/// What a trainer shows of its state. What the optimizer keeps is seen in the steps that follow.
struct Snapshot {
  std::int64_t steps = 0;
  std::vector<double> parameters;
  std::optional<double> best, evaluation;
  bool operator==(const Snapshot&) const = default;
};

inline std::ostream& operator<<(std::ostream& out, const Snapshot& snapshot) {
  out << snapshot.steps << " steps, best " << (snapshot.best ? std::to_string(*snapshot.best) : "none")
      << ", parameters";
  for (const double value : snapshot.parameters) out << ' ' << value;
  return out;
}

/// One trainer, and what the last action has given.
class Life {
 public:
  Life(const LifeCase& life, const TemporaryFolder& folder)
      : life_(life), weights_file_(folder / "weights.safetensors"), state_file_(folder / "state.safetensors") {}

  /// Something a user does with a trainer.
  struct Action {
    std::string name;
    std::function<void(Life&)> run;
    std::int64_t steps = 0;   ///< of one that trains
    bool may_forget = false;  ///< evaluations, where it fails: the executor that has the best parameters is gone
    bool destroys = false;    ///< an executor, or what one has
  };

  /// All that there is to do, in order; the trainer is destroyed by the last one.
  static const std::vector<Action>& actions() {
    static const std::vector<Action> all = {
        {"construct", [](Life& life) { life.construct(); }},
        {"prepare", [](Life& life) { life.call([&](Trainer& trainer) { trainer.prepare(); }); }},
        {"write weight", [](Life& life) { life.write_weight(); }},
        {"write bias", [](Life& life) { life.write_bias(); }},
        {"predict without data", [](Life& life) { life.predict(); }},
        {"set data", [](Life& life) { life.set_data(); }, 0, true, true},
        {"set validation", [](Life& life) { life.set_validation(); }, 0, false, true},
        {"train with a callback", [](Life& life) { life.train(5, 2); }, 5},
        {"set other validation", [](Life& life) { life.set_other_validation(); }, 0, false, true},
        {"loss", [](Life& life) { life.call([&](Trainer& trainer) { life.results_[0] = trainer.loss(); }); }},
        {"evaluate", [](Life& life) { life.call([&](Trainer& of) { life.results_[0] = of.evaluate().loss; }); }},
        {"predict", [](Life& life) { life.predict(); }},
        {"set the same data", [](Life& life) { life.set_data(); }},
        {"train", [](Life& life) { life.train(3, 0); }, 3},
        {"train without waiting", [](Life& life) { life.train_async(1); }, 1},
        {"read parameters", [](Life& life) { life.read_parameters(); }},
        {"save state", [](Life& life) { life.call([&](Trainer& of) { of.save_state(life.state_file_); }); }},
        {"save weights", [](Life& life) { life.call([&](Trainer& of) { of.save_weights(life.weights_file_); }); }},
        {"restore best", [](Life& life) { life.call([&](Trainer& trainer) { trainer.restore_best(); }); }},
        {"train from the best", [](Life& life) { life.train(1, 0); }, 1},
        {"load state", [](Life& life) { life.call([&](Trainer& of) { of.load_state(life.state_file_); }); }},
        {"train from a state", [](Life& life) { life.train(2, 0); }, 2},
        {"set other data", [](Life& life) { life.set_other_data(); }, 0, true, true},
        {"train on other data", [](Life& life) { life.train(2, 1); }, 2},
        {"set no validation",
         [](Life& life) {
           const ConstMatrix x(static_cast<const double*>(nullptr), 0, life.inputs());
           const ConstMatrix y(static_cast<const double*>(nullptr), 0, life.life_.problem.network.widths.back());
           life.call([&](Trainer& trainer) { trainer.set_validation(x, y); });
         },
         0, false, true},
        {"load weights", [](Life& life) { life.call([&](Trainer& of) { of.load_weights(life.weights_file_); }); }},
        {"loss of what was loaded", [](Life& life) { life.call([&](Trainer& of) { life.results_[0] = of.loss(); }); }},
        {"initialize", [](Life& life) { life.call([&](Trainer& trainer) { trainer.initialize(3, Init::he); }); }},
        {"move", [](Life& life) { life.move(); }},
        {"destroy", [](Life& life) { life.call([&](Trainer&) { life.trainer_.reset(); }); }, 0, false, true},
    };
    return all;
  }

  void run(const Action& action) {
    results_.assign(1, 0.0);
    evaluations_.clear();
    action.run(*this);
  }
  void end() { trainer_.reset(); }
  /// As an action that trains, but other steps.
  void train(std::int64_t steps, std::int64_t steps_per_callback) {
    const TrainCallback callback = [](const TrainProgress&) { return true; };
    TrainReport report;
    call([&](Trainer& trainer) {
      report = steps_per_callback == 0 ? trainer.train(steps) : trainer.train(steps, callback, steps_per_callback);
    });
    results_ = report.losses;
    evaluations_.clear();
    for (const Evaluation& evaluation : report.evaluations) evaluations_.push_back(evaluation.loss);
  }

  /// By train where the host has to decide whether the run goes on.
  void train_async(std::int64_t steps) {
    if (life_.problem.training.watch.patience > 0) return train(steps, 0);
    TrainReport report;
    call([&](Trainer& trainer) { report = trainer.train_async(steps).wait(); });
    results_ = report.losses;
    evaluations_.clear();
    for (const Evaluation& evaluation : report.evaluations) evaluations_.push_back(evaluation.loss);
  }

  bool has_trainer() const { return trainer_.has_value(); }
  Trainer& trainer() { return *trainer_; }
  const std::vector<double>& results() const { return results_; }
  const std::vector<double>& evaluations() const { return evaluations_; }

  Snapshot snapshot() {
    Snapshot seen;
    if (!trainer_) return seen;
    seen.steps = trainer_->steps_done();
    seen.parameters = flat(life_.problem.parameters_of(*trainer_));
    if (const auto best = trainer_->best()) seen.best = best->loss;
    try {
      seen.evaluation = trainer_->evaluate().loss;
    } catch (const InvalidArgument&) {  // there are no validation data
    }
    return seen;
  }

 private:
  /// The library's part of an action, which alone may fail.
  template <class Call>
  void call(Call call) {
    const FailingNew failing;
    call(*trainer_);
  }

  std::int64_t inputs() const { return life_.problem.network.widths.front(); }

  void construct() {
    NetworkSpec network = life_.problem.network;
    TrainingSpec training = life_.problem.training;
    training.threads = life_.threads;
    const FailingNew failing;
    trainer_.emplace(std::move(network), training, life_.kind);
  }

  void write_weight() {
    const ConstMatrix weight = Problem::view(life_.problem.start[0].weight);
    call([&](Trainer& trainer) { trainer.write_weight(0, weight); });
  }
  void write_bias() {
    const std::vector<double>& bias = life_.problem.start.back().bias;
    const ConstMatrix in(bias.data(), 1, static_cast<std::int64_t>(bias.size()));
    call([&](Trainer& trainer) { trainer.write_bias(life_.problem.network.layers() - 1, in); });
  }

  void read_parameters() {
    std::vector<double> values(
        static_cast<std::size_t>(life_.problem.network.widths[0] * life_.problem.network.widths[1]));
    const Matrix out(values.data(), life_.problem.network.widths[0], life_.problem.network.widths[1]);
    call([&](Trainer& trainer) { trainer.read_weight(0, out); });
    results_ = values;
  }

  void set_data() {
    const Problem& problem = life_.problem;
    call([&](Trainer& trainer) {
      if (life_.weights.rows > 0)
        trainer.set_data(Problem::view(problem.x), Problem::view(problem.y), Problem::view(life_.weights));
      else
        trainer.set_data(Problem::view(problem.x), Problem::view(problem.y));
    });
  }
  void set_other_data() {
    call([&](Trainer& trainer) { trainer.set_data(Problem::view(life_.other_x), Problem::view(life_.other_y)); });
  }
  void set_validation() {
    call([&](Trainer& trainer) { trainer.set_validation(Problem::view(life_.other_x), Problem::view(life_.other_y)); });
  }

  void set_other_validation() {
    const Problem& problem = life_.problem;
    call([&](Trainer& trainer) { trainer.set_validation(Problem::view(problem.x), Problem::view(problem.y)); });
  }

  void predict() {
    const std::int64_t outputs = life_.problem.network.widths.back();
    const ConstMatrix x = Problem::view(life_.other_x);
    std::vector<double> out(static_cast<std::size_t>(x.rows * outputs));
    const Matrix predictions(out.data(), x.rows, outputs);
    call([&](Trainer& trainer) { trainer.predict(x, predictions); });
    results_ = out;
  }

  void move() {
    const FailingNew failing;
    Trainer other = std::move(*trainer_);
    trainer_.emplace(std::move(other));
  }

  const LifeCase& life_;
  const std::string weights_file_, state_file_;
  std::optional<Trainer> trainer_;
  std::vector<double> results_, evaluations_;
};

/// Where the fault is, by numbers from 1 on, and how it is made.
struct Fault {
  std::function<void(long k)> arm;   ///< the k-th from now on fails; 0: none
  std::function<bool()> has_struck;  ///< since it was armed
  /// Fails the test where the action in which it struck has not thrown the right error; null: none at all.
  std::function<void(const Life::Action& action, const std::exception* error)> judge;
  /// Fails the test where a life that is over has left something behind, beside memory of the host and files.
  std::function<void()> judge_rest;
  bool lasts = false;  ///< every call after it fails too, and only a new process is free of it, as which arm(0) counts
};

struct Sweep {
  long lives = 0;      ///< with a fault
  long failures = 0;   ///< actions that have thrown
  long deaths = 0;     ///< of trainers
  long unnoticed = 0;  ///< faults without which all went on as it should
};

inline long positive_of(const char* variable, long usual) {
  const char* const text = std::getenv(variable);
  return text != nullptr ? std::max(1L, std::atol(text)) : usual;
}
/// One place of a life in so many is tried; DEVICELOOP_FAULT_STRIDE says in how many, 1 for all of them.
inline long stride_or(long usual) { return positive_of("DEVICELOOP_FAULT_STRIDE", usual); }
/// The first place; DEVICELOOP_FAULT_FIRST says which, to see one again.
inline long first_place() { return positive_of("DEVICELOOP_FAULT_FIRST", 1); }

inline std::ostream& operator<<(std::ostream& out, const Sweep& sweep) {
  return out << sweep.lives << " lives with a fault: " << sweep.failures << " calls failed, " << sweep.deaths
             << " trainers died, " << sweep.unnoticed << " faults had no effect";
}

class FaultSweep {
 public:
  explicit FaultSweep(const LifeCase& life) : life_(life) {
    in_thread([&] { live_untroubled(); });  // makes what a process makes once
    right_.clear();
    in_thread([&] { live_untroubled(); });
  }

  /// Lives with a fault at the first place, `stride` places later, ... until one has no such place. Each is a thread's
  /// of its own, to which all is new, but for those on the host fixture. Ends where the test fails.
  Sweep run(Fault fault, long stride) {
    fault_ = std::move(fault);
    Sweep sweep;
    in_thread([&] { live(1, sweep); });  // makes what a process makes once for errors
    sweep = {};
    for (bool has_struck = true; has_struck && !::testing::Test::HasFailure();) {
      const long k = first_place() + stride * sweep.lives++, blocks = live_allocations() - kept_blocks_;
      const int files = open_files();
      in_thread([&] {
        SCOPED_TRACE(life_.name + ", fault " + std::to_string(k));
        has_struck = live(k, sweep);
        fault_.judge_rest();
      });
      if (::testing::Test::HasFailure()) break;  // its message is kept
      EXPECT_EQ(live_allocations() - kept_blocks_, blocks)
          << life_.name << ", fault " << k << ": blocks were not given back";
      EXPECT_EQ(open_files(), files) << life_.name << ", fault " << k << ": files were not closed";
    }
    return sweep;
  }

 private:
  /// What an action gives, and the state after it.
  struct Right {
    std::vector<double> results, evaluations;
    Snapshot after;
  };

  template <class Work>
  static void in_thread(Work work) {
    if (kHostFixture)
      work();  // whose threads keep the stacks of its fibers for ever
    else
      std::thread(work).join();
  }

  static int open_files() {
    int count = 0;
    DIR* const folder = opendir("/proc/self/fd");
    for (; folder != nullptr && readdir(folder) != nullptr; ++count) {
    }
    if (folder != nullptr) closedir(folder);
    return count;
  }

  void live_untroubled() {
    Life life(life_, folder_);
    for (const Life::Action& action : Life::actions()) {
      life.run(action);
      right_.push_back({life.results(), life.evaluations(), life.snapshot()});
    }
  }

  /// After so many steps of an action that trains.
  const Snapshot& snapshot_after(std::size_t index, std::int64_t done) {
    const auto found = parts_.find({index, done});
    if (found != parts_.end()) return found->second;
    Snapshot part;
    {
      Life life(life_, folder_);
      for (std::size_t before = 0; before < index; ++before) life.run(Life::actions()[before]);
      life.train(done, 0);
      part = life.snapshot();
    }
    const long blocks = live_allocations();  // not those that work under way gave back meanwhile
    const Snapshot& kept = parts_.emplace(std::pair(index, done), part).first->second;
    kept_blocks_ += live_allocations() - blocks;
    return kept;
  }

  /// Whether the life had that place.
  bool live(long k, Sweep& sweep) {
    for (const auto& file : std::filesystem::directory_iterator(folder_.path())) std::filesystem::remove(file);
    Life life(life_, folder_);
    fault_.arm(k);
    bool has_struck = false;
    for (std::size_t index = 0; index < right_.size(); ++index) {
      const Life::Action& action = Life::actions()[index];
      SCOPED_TRACE(action.name);
      bool goes_on = true, has_failed = false;
      try {
        life.run(action);
        if (!has_struck && fault_.has_struck()) {
          has_struck = true;
          ++sweep.unnoticed;
          fault_.judge(action, nullptr);
          if (fault_.lasts)
            goes_on = replace(life, index, sweep);
          else
            fault_.arm(0);
        }
      } catch (const std::exception& error) {
        EXPECT_TRUE(!has_struck && fault_.has_struck()) << error.what();
        has_struck = true;
        ++sweep.failures;
        has_failed = true;
        fault_.judge(action, &error);
        goes_on = fault_.lasts ? replace(life, index, sweep) : repeat(life, index, sweep);
      }
      if (!goes_on || ::testing::Test::HasFailure()) break;
      expect_right(life, index);
      if (has_failed && life.has_trainer()) {
        EXPECT_EQ(life.snapshot(), right_[index].after);
      }
    }
    fault_.arm(0);
    EXPECT_LE(folder_.count(), 2) << "files of its own were left";
    return has_struck;
  }

  /// The action again, which has failed. Where the trainer is dead, a new one's life up to it in its place, and false.
  bool repeat(Life& life, std::size_t index, Sweep& sweep) {
    const Life::Action& action = Life::actions()[index];
    fault_.arm(0);
    if (!life.has_trainer()) {
      life.run(action);
      return true;
    }
    Snapshot expected = right_[index - 1].after, now;
    try {
      now = life.snapshot();
    } catch (const DeviceError& error) {
      EXPECT_TRUE(says_it_is_dead(error)) << error.what();
      ++sweep.deaths;
      expect_dead(life.trainer());
      life.end();
      live_up_to(index);
      return false;
    }
    const std::int64_t done = now.steps - expected.steps;
    EXPECT_TRUE(done >= 0 && done <= action.steps) << done;
    if (done > 0 && !::testing::Test::HasFailure()) expected = snapshot_after(index, done);
    if (action.may_forget && !now.best) expected.best.reset();
    EXPECT_EQ(now, expected);
    if (!now.best) {
      EXPECT_THROW(life.trainer().restore_best(), InvalidArgument);
    }
    if (action.steps > 0)
      life.train(action.steps - done, 0);
    else
      life.run(action);
    return true;
  }

  /// After an error that lasts: whatever is asked of the trainer fails. A new one's life up to the action.
  bool replace(Life& life, std::size_t index, Sweep& sweep) {
    if (life.has_trainer()) {
      const ConstMatrix x = Problem::view(life_.problem.x), y = Problem::view(life_.problem.y);
      EXPECT_THROW(life.trainer().set_data(x, y), DeviceError);
      ++sweep.deaths;
    }
    life.end();
    fault_.arm(0);
    live_up_to(index);
    return false;
  }

  void live_up_to(std::size_t index) {
    Life life(life_, folder_);
    for (std::size_t before = 0; before <= index && !::testing::Test::HasFailure(); ++before) {
      life.run(Life::actions()[before]);
      expect_right(life, before);
    }
  }

  static bool says_it_is_dead(const DeviceError& error) {
    return std::string(error.what()).find("this trainer cannot be used any more") != std::string::npos;
  }

  /// Whatever is asked of it.
  void expect_dead(Trainer& trainer) const {
    const ConstMatrix x = Problem::view(life_.problem.x), y = Problem::view(life_.problem.y);
    std::vector<double> values(static_cast<std::size_t>(x.rows * y.columns));
    const std::pair<const char*, std::function<void()>> calls[] = {
        {"train", [&] { trainer.train(1); }},
        {"loss", [&] { trainer.loss(); }},
        {"evaluate", [&] { trainer.evaluate(); }},
        {"predict", [&] { trainer.predict(x, Matrix(values.data(), y.rows, y.columns)); }},
        {"set_data", [&] { trainer.set_data(x, y); }},
        {"set_validation", [&] { trainer.set_validation(x, y); }},
        {"initialize", [&] { trainer.initialize(1); }},
        {"restore_best", [&] { trainer.restore_best(); }},
        {"save_weights", [&] { trainer.save_weights(folder_ / "dead"); }},
        {"save_state", [&] { trainer.save_state(folder_ / "dead"); }},
    };
    for (const auto& [name, call] : calls) {
      SCOPED_TRACE(name);
      try {
        call();
        ADD_FAILURE() << "a dead trainer works";
      } catch (const DeviceError& error) {
        EXPECT_TRUE(says_it_is_dead(error)) << error.what();
      } catch (const InvalidArgument&) {  // it lacks data
      }
    }
  }

  /// Of an action of which only the last steps were taken in one go, their part.
  void expect_right(const Life& life, std::size_t index) const {
    const auto end_of = [](const std::vector<double>& all, std::size_t count) {
      return std::vector<double>(all.end() - static_cast<std::ptrdiff_t>(std::min(count, all.size())), all.end());
    };
    const bool is_part = Life::actions()[index].steps > 0;
    const Right& right = right_[index];
    EXPECT_EQ(life.results(), is_part ? end_of(right.results, life.results().size()) : right.results);
    EXPECT_EQ(life.evaluations(), is_part ? end_of(right.evaluations, life.evaluations().size()) : right.evaluations);
  }

  const LifeCase& life_;
  Fault fault_;
  const TemporaryFolder folder_;
  std::vector<Right> right_;
  std::map<std::pair<std::size_t, std::int64_t>, Snapshot> parts_;
  long kept_blocks_ = 0;  ///< by these
};

/// The k-th block of memory that the library asks for is refused.
inline Fault failing_allocation() {
  return {fail_allocation, allocation_has_failed,
          [](const Life::Action&, const std::exception* error) {
            if (error == nullptr) {
              EXPECT_TRUE(failed_allocation_was_nothrow()) << "swallowed";
              return;
            }
            EXPECT_TRUE(dynamic_cast<const std::bad_alloc*>(error) != nullptr) << error->what();
          },
          [] {}};
}

}  // namespace deviceloop::testing
