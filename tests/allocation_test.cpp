// The step loop allocates nothing: the number of allocations of a run does not depend on its number of steps.
#include <gtest/gtest.h>

#include "support/failing_new.h"
#include "support/problem.h"

namespace deviceloop {
namespace {

TEST(Allocations, DoNotGrowWithSteps) {
  struct Case {
    std::int64_t samples;
    Formulation formulation;
    OptimizerKind optimizer = OptimizerKind::gradient_descent;
    Precision precision = Precision::fp32;
  };
  for (const Case c : {Case{70, Formulation::primal}, Case{2000, Formulation::primal}, Case{70, Formulation::gram},
                       Case{70, Formulation::gram, OptimizerKind::sgd},
                       Case{70, Formulation::primal, OptimizerKind::gradient_descent, Precision::tf32x3},
                       Case{2000, Formulation::primal, OptimizerKind::gradient_descent, Precision::fp16}})
    for (const int threads : {1, 3}) {
      Problem problem = Problem::random({20, 10, 2}, true, c.samples, c.precision, Init::he, 1e-7);
      problem.training.formulation = c.formulation;
      problem.training.optimizer.kind = c.optimizer;
      problem.training.reprojection_steps = c.formulation == Formulation::gram ? 3 : 0;
      const auto count = [&](std::int64_t steps) {
        Trainer trainer = problem.trainer(threads);
        trainer.train(1);  // what a thread needs once
        const long before = testing::allocations();
        trainer.train(steps);
        return testing::allocations() - before;
      };
      const long few = count(2);
      EXPECT_GT(few, 0) << "the counter sees nothing";
      EXPECT_EQ(count(50), few);
    }
}

}  // namespace
}  // namespace deviceloop
