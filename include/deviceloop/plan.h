/// \file
/// Which executor runs a training run, and why. Planning is a function of plain data: it needs no device, so a plan for
/// any GPU can be made and tested anywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <deviceloop/export.h>
#include <deviceloop/spec.h>

namespace deviceloop {

/// What runs a training. cpu: the host. graph: cuBLASLt and own kernels, captured once and replayed. persistent: one
/// launch for all steps.
enum class ExecutorKind { cpu, graph, persistent };

/// "cpu", "graph", "persistent".
DEVICELOOP_EXPORT const char* name(ExecutorKind kind);
/// "fp32", "fp64".
DEVICELOOP_EXPORT const char* name(Precision precision);
/// "auto", "block", "cluster", "grid", "two-layer".
DEVICELOOP_EXPORT const char* name(PersistentForm form);
/// "primal", "gram".
DEVICELOOP_EXPORT const char* name(Formulation formulation);

/// The part of the CPU that this process has.
struct CpuCaps {
  int cores = 1;                   ///< cores this process may use (affinity, cgroup, address space)
  std::uint64_t memory_bytes = 0;  ///< memory this process may still take (cgroup, limits)
  double gflops_fp32 = 10;         ///< estimated GEMM rate of one core; fp64 is taken as half of it
};

/// One GPU.
struct GpuCaps {
  std::string name{};              ///< as its driver calls it
  int index = 0;                   ///< by which TrainingSpec::device asks for it
  int compute_capability = 0;      ///< 90 for sm_90
  int multiprocessors = 0;         ///< streaming multiprocessors
  std::uint64_t memory_bytes = 0;  ///< all of its memory; how much is free, only a context on it could tell
  double memory_gb_per_s = 0;      ///< of its memory, by its clock and width; 0 where it does not say
  std::uint64_t l2_bytes = 0;      ///< its L2 cache
  std::uint64_t shared_bytes = 0;  ///< the most shared memory that a block may have
  bool cooperative = false;        ///< it can promise that all blocks of a launch run at once
  std::string no_code_reason{};    ///< why this build's kernels cannot run on it; empty where they can
};

/// What a machine offers, as plain data.
struct DeviceCaps {
  CpuCaps cpu{};
  std::vector<GpuCaps> gpus{};
  std::string no_gpu_reason{};  ///< why `gpus` is empty: "built without CUDA", "no NVIDIA driver found"
  /// Why GPUs cannot multiply matrices: "cuBLASLt was not found: ...". Empty where they can.
  std::string no_cublaslt_reason{};
};

/// What this process can use now. Never throws because a GPU is absent.
DEVICELOOP_EXPORT DeviceCaps query_device_caps();

/// One executor's answer to a request.
struct Candidate {
  ExecutorKind executor = ExecutorKind::cpu;
  bool accepted = false;
  std::string reason{};              ///< one sentence
  std::uint64_t bytes = 0;           ///< memory the executor takes, data included; 0 where it refused before counting
  double predicted_us_per_step = 0;  ///< microseconds; 0 where it refused before counting
  double floor_us_per_step = 0;      ///< as Plan::floor_us_per_step
};

/// Which executor runs a training, and what was considered.
struct Plan {
  ExecutorKind executor = ExecutorKind::cpu;
  Formulation formulation = Formulation::primal;  ///< as asked for; a time says little without it
  std::string reason{};              ///< one sentence: why this executor, and where gram is slower than primal
  std::uint64_t bytes = 0;           ///< memory the executor takes, data included
  double predicted_us_per_step = 0;  ///< microseconds; an estimate, no promise
  /// Microseconds that no tuning of a GPU's executor gets below: the step's arithmetic at the peak of what it runs on,
  /// or the bytes that it has to move, and the launches or exchanges that follow each other. 0 on the CPU, whose peak
  /// the plan does not know.
  double floor_us_per_step = 0;
  int threads = 1;                      ///< CPU threads
  int device = 0;                       ///< CUDA device, where the executor is one of CUDA's
  std::vector<Candidate> candidates{};  ///< all that were asked, in order of preference
};

/// Asks the executors in order of preference; the CPU is last and takes all that the library supports.
/// `forced` picks one. Throws InvalidArgument for specifications that are wrong or contradict each other (`forced` a
/// GPU's executor on the CPU) or exceed the machine's memory, Unsupported where what was forced or the device asked for
/// is not to be had here; the message holds the candidate's reason.
DEVICELOOP_EXPORT Plan make_plan(const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps,
                                 std::optional<ExecutorKind> forced = std::nullopt);

}  // namespace deviceloop
