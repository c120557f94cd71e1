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

/// What runs a training. cpu: the host. graph: cuBLASLt and the library's CUDA kernels, captured once in a graph and
/// replayed. persistent: one launch for many steps. fused: the same of narrow networks by Hopper's tensor cores, at
/// precisions below fp32.
enum class ExecutorKind { cpu, graph, persistent, fused };

/// "cpu", "graph", "persistent", "fused".
DEVICELOOP_EXPORT const char* name(ExecutorKind kind);
/// "fp32", "fp64", "tf32", "tf32x3", "bf16", "fp16".
DEVICELOOP_EXPORT const char* name(Precision precision);
/// "auto", "block", "cluster", "grid", "two-layer", "on-chip".
DEVICELOOP_EXPORT const char* name(PersistentForm form);
/// "primal", "gram".
DEVICELOOP_EXPORT const char* name(Formulation formulation);

/// The CPU resources that this process may use.
struct CpuCaps {
  int cores = 1;                   ///< cores this process may use (affinity, cgroup, address space)
  std::uint64_t memory_bytes = 0;  ///< memory this process may still take (cgroup, limits)
  double gflops_fp32 = 10;         ///< estimated GEMM rate of one core; fp64 is taken as half of it, tf32x3 as a third
};

/// One GPU.
struct GpuCaps {
  std::string name{};              ///< as its driver reports it
  int index = 0;                   ///< its number in TrainingSpec::device
  int compute_capability = 0;      ///< 90 for sm_90
  int multiprocessors = 0;         ///< streaming multiprocessors
  std::uint64_t memory_bytes = 0;  ///< total; free memory is unknown without creating a context
  double memory_gb_per_s = 0;      ///< of its memory, from clock and bus width; 0: unknown
  std::uint64_t l2_bytes = 0;      ///< its L2 cache
  std::uint64_t shared_bytes = 0;  ///< the largest shared memory of a block
  bool cooperative = false;        ///< it can guarantee that all blocks of a launch are resident
  std::string no_code_reason{};    ///< why this build's kernels cannot run on it; empty if they can
  /// Why those for Hopper's tensor cores cannot; empty if they can, and on other GPUs, which have no such.
  std::string no_hopper_code_reason{};
};

/// What a machine offers, as plain data.
struct DeviceCaps {
  CpuCaps cpu{};
  std::vector<GpuCaps> gpus{};
  std::string no_gpu_reason{};  ///< why `gpus` is empty: "built without CUDA", "no NVIDIA driver found"
  /// Why GPUs cannot multiply matrices that are not small: "cuBLASLt was not found: ...". Empty if they can.
  std::string no_cublaslt_reason{};
};

/// What this process can use now. An absent GPU is no error: `no_gpu_reason` says why there is none.
DEVICELOOP_EXPORT DeviceCaps query_device_caps();

/// One executor's answer to a request.
struct Candidate {
  ExecutorKind executor = ExecutorKind::cpu;
  bool accepted = false;
  std::string reason{};              ///< one sentence
  std::uint64_t bytes = 0;           ///< memory the executor takes, data included; 0 if it refused before computing it
  double predicted_us_per_step = 0;  ///< microseconds; 0 if it refused before predicting
  double floor_us_per_step = 0;      ///< as Plan::floor_us_per_step
};

/// Which executor runs a training, and what was considered.
struct Plan {
  ExecutorKind executor = ExecutorKind::cpu;
  Formulation formulation = Formulation::primal;  ///< as requested; the times hold for this one only
  std::string reason{};              ///< one sentence: why this executor, and whether gram is slower than primal
  std::uint64_t bytes = 0;           ///< memory the executor takes, data included
  double predicted_us_per_step = 0;  ///< microseconds; an estimate, no guarantee
  /// A lower bound in microseconds that no tuning of a GPU's executor can beat: the time for the step's arithmetic at
  /// the peak rate of the units that it runs on, or for the bytes that it has to move, and for the launches or
  /// exchanges that must follow each other. 0 on the CPU, whose peak rate the plan does not know.
  double floor_us_per_step = 0;
  int threads = 1;                      ///< CPU threads
  int device = 0;                       ///< CUDA device, if the executor runs on one
  std::vector<Candidate> candidates{};  ///< all executors that were asked, in order of preference
};

/// Asks the executors in order of preference; the CPU is last and accepts everything that the library supports.
/// `forced` selects one. Throws InvalidArgument for specifications that are wrong, contradict each other (a GPU's
/// executor is `forced`, but the device is the CPU) or exceed the machine's memory; Unsupported if the forced executor
/// or the requested device is not available here. The message contains the candidate's reason.
DEVICELOOP_EXPORT Plan make_plan(const NetworkSpec& network, const TrainingSpec& training, const DeviceCaps& caps,
                                 std::optional<ExecutorKind> forced = std::nullopt);

}  // namespace deviceloop
