// The step loop allocates nothing: the number of allocations of a run does not depend on its number of steps.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "support/problem.h"

namespace {
std::atomic<long> allocations = 0;

void* counted(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  void* const memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

void* operator new(std::size_t bytes) { return counted(bytes, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
// As std::stable_sort asks: it would take another memory than operator delete gives back.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  try {
    return counted(bytes, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace deviceloop {
namespace {

TEST(Allocations, DoNotGrowWithSteps) {
  struct Case {
    std::int64_t samples;
    Formulation formulation;
    OptimizerKind optimizer = OptimizerKind::gradient_descent;
  };
  for (const Case c : {Case{70, Formulation::primal}, Case{2000, Formulation::primal}, Case{70, Formulation::gram},
                       Case{70, Formulation::gram, OptimizerKind::sgd}})
    for (const int threads : {1, 3}) {
      Problem problem = Problem::random({20, 10, 2}, true, c.samples, Precision::fp32, Init::he, 1e-7);
      problem.training.formulation = c.formulation;
      problem.training.optimizer.kind = c.optimizer;
      problem.training.reprojection_steps = c.formulation == Formulation::gram ? 3 : 0;
      const auto count = [&](std::int64_t steps) {
        Trainer trainer = problem.trainer(threads);
        trainer.train(1);  // what a thread needs once
        const long before = allocations;
        trainer.train(steps);
        return allocations - before;
      };
      const long few = count(2);
      EXPECT_GT(few, 0) << "the counter sees nothing";
      EXPECT_EQ(count(50), few);
    }
}

}  // namespace
}  // namespace deviceloop
