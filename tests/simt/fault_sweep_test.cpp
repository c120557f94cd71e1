// What tests/fault_sweep_test.cpp does on the CPU, on the executors of a GPU: every call of CUDA's runtime and of
// cuBLASLt may fail, and every block of host memory may be refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>

#include "simt/control.h"
#include "support/fault_sweep.h"

namespace deviceloop {
namespace {

using testing::Fault;
using testing::FaultSweep;
using testing::Life;
using testing::life_case;
using testing::LifeCase;
using testing::Sweep;

void make_small_machine() {
  simt::reset();
  simt::Device device;
  device.multiprocessors = 4;
  simt::set_devices({device});
}

/// Those that give something back, and wait before they do: a destructor calls them, which cannot throw.
bool is_of_destructors(const std::string& call) {
  constexpr std::string_view kCalls[] = {
      "cudaFree",        "cudaFreeHost",         "cudaStreamDestroy", "cudaEventDestroy", "cudaGraphDestroy",
      "destroy_library", "cudaGraphExecDestroy", "desc_destroy",      "layout_destroy",   "preference_destroy",
  };
  return std::find(std::begin(kCalls), std::end(kCalls), call) != std::end(kCalls);
}
bool may_be_of_destructors(const std::string& call) {
  return is_of_destructors(call) || call == "cudaStreamSynchronize" || call == "cudaEventSynchronize" ||
         call == "cudaGetDevice";
}

void judge_rest() {
  EXPECT_EQ(simt::live_objects_text(), "");
  EXPECT_EQ(simt::counts().false_frees, 0);
}

void expect_no_error_left() {
  EXPECT_EQ(cudaPeekAtLastError(), cudaSuccess) << "the host application's next check sees it";
}

/// The k-th call fails with that code, or its own.
Fault failing_call(std::optional<cudaError_t> code) {
  const bool is_sticky = code.has_value();
  Fault fault;
  fault.arm = [=](long k) {
    if (is_sticky) make_small_machine();  // a process that has seen such an error is at its end
    if (is_sticky && k > 0)
      simt::fail_call(static_cast<int>(k), *code);
    else
      simt::fail_call(static_cast<int>(k));
  };
  fault.has_struck = [] { return !simt::failed_call().empty(); };
  fault.judge = [=](const Life::Action& action, const std::exception* error) {
    const std::string call = simt::failed_call();
    SCOPED_TRACE(call);
    if (!is_sticky) expect_no_error_left();
    if (error == nullptr) {
      EXPECT_TRUE(is_of_destructors(call) || (action.destroys && may_be_of_destructors(call))) << "swallowed";
      return;
    }
    const auto* const device_error = dynamic_cast<const DeviceError*>(error);
    ASSERT_NE(device_error, nullptr) << error->what();
    // One that lasts, and struck what a destructor calls, is the error of the call behind that.
    if (!is_sticky || !may_be_of_destructors(call)) {
      EXPECT_NE(std::string(error->what()).find(call), std::string::npos) << error->what();
    }
    EXPECT_NE(device_error->code(), 0);
    EXPECT_NE(device_error->line(), 0);
  };
  fault.judge_rest = judge_rest;
  fault.lasts = is_sticky;
  return fault;
}

Fault failing_memory() {
  Fault fault = testing::failing_allocation();
  fault.judge = [judge = fault.judge](const Life::Action& action, const std::exception* error) {
    judge(action, error);
    expect_no_error_left();
  };
  fault.judge_rest = judge_rest;
  return fault;
}

LifeCase graph() {
  LifeCase made = life_case("graph", ExecutorKind::graph, {3, 20, 2});
  TrainingSpec& training = made.problem.training;
  training.optimizer.kind = OptimizerKind::adam;
  training.optimizer.schedule = {ScheduleKind::exponential, 0, 0.9, 0, 2};
  training.batch_size = 4;
  training.watch.every = 3;  // an evaluation is a panel of rows, most of which are none of its own
  made.weights = Problem::filled(6, 1, Precision::fp32, 5, 3);
  for (double& weight : made.weights.values) weight = weight * weight;
  return made;
}

LifeCase graph_gram() {
  LifeCase made = life_case("graph, gram", ExecutorKind::graph, {20, 17, 1});
  made.problem.training.watch.every = 3;
  made.problem.training.formulation = Formulation::gram;
  made.problem.training.reprojection_steps = 3;
  return made;
}

LifeCase persistent(const char* name, PersistentForm form) {
  LifeCase made = life_case(name, ExecutorKind::persistent, {4, 3, 2});
  TrainingSpec& training = made.problem.training;
  training.form = form;
  if (form == PersistentForm::two_layer) return made;
  if (form == PersistentForm::on_chip) training.batch_size = 4;
  training.optimizer.kind = OptimizerKind::adam;
  training.optimizer.schedule = {ScheduleKind::exponential, 0, 0.9, 0, 2};
  return made;
}

LifeCase persistent_gram(const char* name, PersistentForm form) {
  LifeCase made = life_case(name, ExecutorKind::persistent, {20, 3, 1});
  made.problem.training.form = form;
  made.problem.training.formulation = Formulation::gram;
  made.problem.training.reprojection_steps = 3;
  return made;
}

class DeviceFaults : public ::testing::TestWithParam<LifeCase> {
 protected:
  void SetUp() override {
    make_small_machine();
    testing::exempt_from_failures(simt::is_inside);
  }
  void TearDown() override {
    simt::reset();
    EXPECT_EQ(simt::live_objects(), 0);
  }
};

// Few places, since the host takes up to a second for a life; simt_graph_executor_test has all calls of a shorter life.
TEST_P(DeviceFaults, LeaveNothingHalfDone) {
  FaultSweep sweep(GetParam());
  const auto check = [&](const char* what, Fault fault, long stride) {
    const Sweep seen = sweep.run(std::move(fault), stride);
    std::cout << what << ": " << seen << '\n';
    EXPECT_GE(seen.failures, seen.lives / 2) << what;
    return seen;
  };
  const long stride = testing::stride_or(397);
  EXPECT_GT(check("calls", failing_call({}), stride).deaths, 0);
  if (HasFailure()) return;
  check("errors that last", failing_call(cudaErrorIllegalAddress), 3 * stride);
  if (HasFailure()) return;
  check("memory of the host", failing_memory(), stride);
}

INSTANTIATE_TEST_SUITE_P(OnEveryExecutor, DeviceFaults,
                         ::testing::Values(graph(), graph_gram(), persistent("two_layer", PersistentForm::two_layer),
                                           persistent("on_chip", PersistentForm::on_chip),
                                           persistent_gram("gram, two_layer", PersistentForm::two_layer)),
                         [](const auto& tested) { return "Case" + std::to_string(tested.index); });

}  // namespace
}  // namespace deviceloop
