// Trainers of which one call of CUDA after the other fails.
#pragma once

#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "simt/control.h"
#include "support/problem.h"
#include "support/refusal.h"

namespace deviceloop::testing {

struct Outcome {
  std::vector<double> losses, parameters;
};

/// Everything that a user does with a trainer.
inline Outcome life(const Problem& problem, ExecutorKind executor, std::int64_t steps,
                    std::optional<Trainer>& trainer) {
  trainer.emplace(problem.network, problem.training, executor);
  problem.set_parameters(*trainer, problem.start);
  trainer->set_data(Problem::view(problem.x), Problem::view(problem.y));
  Outcome outcome;
  outcome.losses = trainer->train(steps).losses;
  outcome.losses.push_back(trainer->loss());
  std::vector<float> predictions(problem.y.values.size());
  trainer->predict(Problem::view(problem.x), Matrix(predictions.data(), static_cast<std::int64_t>(problem.x.rows),
                                                    static_cast<std::int64_t>(problem.y.columns)));
  outcome.parameters = flat(problem.parameters_of(*trainer));
  return outcome;
}

struct FailedCalls {
  int failures = 0;  ///< lives that ended with a failing call
  int deaths = 0;    ///< trainers that could not be used any more then
};

/// Whichever call fails, of every `stride` ones: the error is typed, nothing leaks, and the trainer either goes on as
/// if nothing had been or says that it is dead. Steps of the problem do not depend on those before but by the
/// parameters. All that on `device`.
inline FailedCalls fail_every_call(const Problem& problem, ExecutorKind executor, std::int64_t steps, int stride = 1,
                                   cudaError_t code = cudaErrorMemoryAllocation, const simt::Device& device = {}) {
  const auto reset = [&] {
    simt::reset();
    simt::set_devices({device});
  };
  reset();
  FailedCalls counts;
  std::optional<Trainer> trainer;
  const Outcome right = life(problem, executor, steps, trainer);
  trainer.reset();
  EXPECT_EQ(simt::live_objects(), 0);
  for (int call = 1;; call += stride) {
    SCOPED_TRACE("call " + std::to_string(call) + " returns " + std::to_string(code));
    reset();
    simt::fail_call(call, code);
    bool failed = false;
    try {
      const Outcome outcome = life(problem, executor, steps, trainer);
      EXPECT_EQ(outcome.losses, right.losses);
      EXPECT_EQ(outcome.parameters, right.parameters);
    } catch (const DeviceError& error) {
      failed = true;
      EXPECT_GT(std::string(error.what()).size(), 20u);
    } catch (const Error& error) {
      ADD_FAILURE() << "not a DeviceError: " << error.what();
    }
    const bool reached = simt::calls_until_failure() == 0;
    if (failed) {
      ++counts.failures;
      reset();
      if (trainer) {
        try {
          problem.set_parameters(*trainer, problem.start);
          trainer->set_data(Problem::view(problem.x), Problem::view(problem.y));
          std::vector<double> again = trainer->train(steps).losses;
          again.push_back(trainer->loss());
          EXPECT_EQ(again, right.losses);
        } catch (const DeviceError& error) {
          ++counts.deaths;
          EXPECT_MENTIONS(error.what(), "this trainer cannot be used any more");
        }
      }
    }
    trainer.reset();
    EXPECT_EQ(simt::live_objects(), 0);
    if (!reached || simt::live_objects() != 0) return counts;
  }
}

}  // namespace deviceloop::testing
