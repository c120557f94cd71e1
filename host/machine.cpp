#include "machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>

#include "cuda_entry.h"
#include "gemm.h"
#include "graph_layout.h"

namespace deviceloop {
namespace {

// The process's folder in the unified cgroup hierarchy, and its parents: a limit may stand on any of them. Inside a
// container the path of the host may not exist; the root of the mount is tried last.
template <class Visit>
void for_each_cgroup(Visit visit) {
  std::ifstream groups("/proc/self/cgroup");
  std::string path;
  for (std::string line; std::getline(groups, line);)
    if (line.rfind("0::", 0) == 0) path = line.substr(3);
  if (path == "/") path.clear();
  for (;;) {
    visit("/sys/fs/cgroup" + path);
    if (path.empty()) return;
    path.erase(path.rfind('/'));
  }
}

}  // namespace

int usable_cores() {
  int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) cores = std::max(1, CPU_COUNT(&mask));
  for_each_cgroup([&](const std::string& folder) {
    std::ifstream file(folder + "/cpu.max");
    std::string quota;
    double period = 0;
    if (!(file >> quota >> period) || quota == "max" || !(period > 0)) return;
    const double limit = std::ceil(std::stod(quota) / period);
    if (limit >= 1 && limit < cores) cores = static_cast<int>(limit);
  });
  return cores;
}

std::uint64_t usable_memory_bytes() {
  std::uint64_t available = 0;
  std::ifstream info("/proc/meminfo");
  std::string key, unit;
  for (std::uint64_t kibibytes = 0; info >> key >> kibibytes && std::getline(info, unit);)
    if (key == "MemAvailable:") available = kibibytes * 1024;
  if (available == 0) {
    const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGE_SIZE);
    if (pages > 0 && page_bytes > 0)
      available = static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page_bytes);
  }
  for_each_cgroup([&](const std::string& folder) {
    std::uint64_t limit = 0, used = 0;
    std::ifstream limit_file(folder + "/memory.max"), used_file(folder + "/memory.current");
    if (!(limit_file >> limit) || !(used_file >> used)) return;  // "max" is no number: no limit here
    const std::uint64_t left = limit > used ? limit - used : 0;
    if (available == 0 || left < available) available = std::max<std::uint64_t>(left, 1);
  });
  return available;
}

std::string simd_description() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
  return "SSE2";
#elif defined(__aarch64__)
  return "NEON";
#else
  return "none known";
#endif
}

CpuCaps query_cpu() {
  CpuCaps cpu;
  cpu.cores = usable_cores();
  cpu.memory_bytes = usable_memory_bytes();
  // What a core's GEMM reaches on matrices of a few hundred rows; only the order of magnitude matters, because it
  // decides between one thread and all of them.
  const std::string simd = simd_description();
  cpu.gflops_fp32 = simd == "AVX-512" ? 120 : simd == "AVX2" ? 60 : 15;
  if (gemm_is_own()) cpu.gflops_fp32 /= 2;
  return cpu;
}

DeviceCaps query_caps_for(const DeviceChoice& device) {
  DeviceCaps caps;
  caps.cpu = query_cpu();
  if (device.kind == DeviceKind::cpu)
    caps.no_gpu_reason = "the CPU was asked for";
  else
    query_gpus(caps);
  return caps;
}

DeviceCaps query_device_caps() {
  DeviceCaps caps = query_caps_for({});
  if (!caps.gpus.empty()) caps.no_cublaslt_reason = why_no_cublaslt();
  return caps;
}

Plan plan_here(const NetworkSpec& network, const TrainingSpec& training, DeviceCaps& caps,
               std::optional<ExecutorKind> forced) {
  Plan plan = make_plan(network, training, caps, forced);
  if (plan.executor != ExecutorKind::graph || !make_graph_layout(network, training).has_gemm) return plan;
  caps.no_cublaslt_reason = why_no_cublaslt();
  return caps.no_cublaslt_reason.empty() ? plan : make_plan(network, training, caps, forced);
}

}  // namespace deviceloop
