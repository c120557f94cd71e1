// The executors that suites of parameterized tests run on.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>
#include <string>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "support/gpu.h"

namespace deviceloop {

struct Where {
  ExecutorKind kind;
  PersistentForm form = PersistentForm::automatic;
  int threads = 1;
};

inline std::ostream& operator<<(std::ostream& out, const Where& where) {
  out << name(where.kind);
  if (where.kind == ExecutorKind::cpu) return out << "_threads_" << where.threads;
  if (where.kind != ExecutorKind::persistent) return out;
  std::string form = name(where.form);
  std::replace(form.begin(), form.end(), '-', '_');  // in names of tests
  return out << "_" << form;
}

/// The precisions below fp32 that an executor trains in.
inline std::vector<Precision> lower_precisions(const Where& where) {
  if (where.kind == ExecutorKind::persistent) return {};
  return {Precision::tf32, Precision::tf32x3, Precision::bf16, Precision::fp16};
}

/// Skips the test where the machine does not have it. For SetUp, which must return behind it.
inline void require(const Where& where) {
  if (where.kind == ExecutorKind::cpu) return;
  const DeviceCaps machine = query_device_caps();
  testing::require_gpu(machine.no_gpu_reason);
  if (!machine.gpus.empty() && where.form == PersistentForm::on_chip && machine.gpus[0].compute_capability < 90)
    GTEST_SKIP() << "this GPU has no room for any problem of the test: it has no clusters";
}

}  // namespace deviceloop
