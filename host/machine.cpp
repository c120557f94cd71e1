#include "machine.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <sstream>
#include <thread>
#include <utility>

#include "cpu/gemm.h"
#include "cuda_entry.h"

namespace deviceloop {
namespace {

/// The text of one of the system's files, empty where it cannot be read. A stream on the file itself would take memory
/// that it is refused for the file's end, and the machine for another one.
std::istringstream text_of(const std::string& file) {
  std::string text;
  if (const std::unique_ptr<std::FILE, int (*)(std::FILE*)> opened(std::fopen(file.c_str(), "re"), std::fclose); opened)
    for (char piece[4096]; const std::size_t bytes = std::fread(piece, 1, sizeof piece, opened.get());)
      text.append(piece, bytes);
  std::istringstream stream(std::move(text));
  stream.exceptions(std::ios::badbit);  // what is thrown inside it leaves it
  return stream;
}

// The process's folder in the hierarchy of a controller, and its parents: a limit may stand on any of them. Inside a
// container the path of the host may not exist; the root of the mount is tried last.
template <class Visit>
void for_each_parent(const std::string& mount, std::string path, const Visit& visit) {
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    visit(mount + path);
    if (path.empty()) return;
    path.erase(path.rfind('/'));
  }
}

/// Calls visit_v2(folder) and visit_v1(folder) for the folders of this process in both versions of cgroups; of
/// version 1 in the hierarchy of `controller`.
template <class VisitV2, class VisitV1>
void for_each_cgroup(const std::string& root, const std::string& controller, const VisitV2& visit_v2,
                     const VisitV1& visit_v1) {
  std::istringstream groups = text_of(root + "/proc/self/cgroup");
  // NUMBER:CONTROLLER,...:/PATH, without controllers in version 2.
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos || second + 1 >= line.size() || line[second + 1] != '/') continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    const std::string mounts = root + "/sys/fs/cgroup";
    if (controllers.empty()) {
      for_each_parent(mounts, path, visit_v2);
      for_each_parent(mounts + "/unified", path, visit_v2);  // beside version 1
    } else if (("," + controllers + ",").find("," + controller + ",") != std::string::npos) {
      for_each_parent(mounts + "/" + controller, path, visit_v1);
    }
  }
}

/// The first number in a file; nothing where there is none, as in a limit that is "max".
std::optional<double> number_in(const std::string& file) {
  std::istringstream stream = text_of(file);
  double value = 0;
  if (!(stream >> value)) return std::nullopt;
  return value;
}

/// The number behind `key` in a file of such lines; 0 where it is missing.
double value_of(const std::string& file, const std::string& key) {
  std::istringstream stream = text_of(file);
  std::string word;
  for (double value = 0; stream >> word;) {
    if (!(stream >> value)) {  // a line of another kind
      stream.clear();
      stream.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    } else if (word == key) {
      return value;
    } else {
      stream.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
  }
  return 0;
}

/// The memory that a limit leaves. The file cache counts as used there, but the kernel frees it when memory is needed.
double left_in_cgroup(const std::string& folder, const char* limit, const char* used, const char* cache) {
  const std::optional<double> most = number_in(folder + "/" + limit), taken = number_in(folder + "/" + used);
  if (!most || !taken) return std::numeric_limits<double>::infinity();
  return std::max(*most - *taken + std::min(value_of(folder + "/memory.stat", cache), *taken), 0.0);
}

// What the BLAS and the system take for a thread that multiplies, beside its stack: OpenBLAS maps a buffer of this size
// for each concurrent call, whatever the size of the product.
constexpr std::uint64_t kOpenBlasBufferBytes = std::uint64_t{128} << 20;
constexpr std::uint64_t kOtherThreadBytes = std::uint64_t{1} << 20;

std::uint64_t stack_bytes() {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return 0;
  std::size_t bytes = 0;
  pthread_attr_getstacksize(&attributes, &bytes);
  pthread_attr_destroy(&attributes);
  return bytes;
}

}  // namespace

int usable_cores(const std::string& root) {
  int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) cores = std::max(1, CPU_COUNT(&mask));
  const auto cut = [&](std::optional<double> quota, std::optional<double> period) {
    if (!quota || !period || !(*quota > 0) || !(*period > 0)) return;  // a quota of -1 is none
    const double limit = std::ceil(*quota / *period);
    if (limit < cores) cores = std::max(1, static_cast<int>(limit));
  };
  for_each_cgroup(
      root, "cpu",
      [&](const std::string& folder) {
        std::istringstream file = text_of(folder + "/cpu.max");
        double quota = 0, period = 0;
        if (file >> quota >> period) cut(quota, period);  // "max" is no number: no limit here
      },
      [&](const std::string& folder) {
        cut(number_in(folder + "/cpu.cfs_quota_us"), number_in(folder + "/cpu.cfs_period_us"));
      });
  return cores;
}

std::uint64_t usable_memory_bytes(const std::string& root) {
  double available = 1024 * value_of(root + "/proc/meminfo", "MemAvailable:");
  if (available == 0) {
    const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGE_SIZE);
    if (pages > 0 && page_bytes > 0) available = static_cast<double>(pages) * static_cast<double>(page_bytes);
  }
  if (available == 0) available = std::numeric_limits<double>::infinity();
  const auto cut = [&](double left) { available = std::min(available, std::max(left, 1.0)); };
  for_each_cgroup(
      root, "memory",
      [&](const std::string& folder) {
        cut(left_in_cgroup(folder, "memory.max", "memory.current", "inactive_file"));
        // Above this limit the kernel slows a process down very much.
        cut(left_in_cgroup(folder, "memory.high", "memory.current", "inactive_file"));
      },
      [&](const std::string& folder) {
        cut(left_in_cgroup(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"));
      });
  if (const auto left = address_space_left(root)) cut(static_cast<double>(*left));
  return std::isfinite(available) ? static_cast<std::uint64_t>(available) : 0;
}

std::optional<std::uint64_t> address_space_left(const std::string& root) {
  std::optional<std::uint64_t> least;
  const auto cut = [&](int resource, const char* used) {
    rlimit limit{};
    if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
    const double left = static_cast<double>(limit.rlim_cur) - 1024 * value_of(root + "/proc/self/status", used);
    const auto bytes = static_cast<std::uint64_t>(std::max(left, 0.0));
    if (!least || bytes < *least) least = bytes;
  };
  cut(RLIMIT_AS, "VmSize:");
  cut(RLIMIT_DATA, "VmData:");
  return least;
}

std::uint64_t gemm_thread_bytes() {
  return stack_bytes() + kOtherThreadBytes + (gemm_is_own() || !gemm_bits_verified() ? 0 : kOpenBlasBufferBytes);
}

bool can_map(std::uint64_t bytes) {
  if (bytes == 0) return true;
  if (bytes > std::numeric_limits<std::size_t>::max()) return false;
  void* const mapped = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return false;
  munmap(mapped, static_cast<std::size_t>(bytes));
  return true;
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
  if (const auto left = address_space_left()) {
    // At most half of it is for threads, the rest for data. If there is not enough for one thread, creating it reports
    // that.
    const std::uint64_t thread = gemm_thread_bytes();
    const std::uint64_t threads =
        std::clamp<std::uint64_t>(*left / 2 / thread, 1, static_cast<std::uint64_t>(cpu.cores));
    cpu.cores = static_cast<int>(threads);
    if (*left > threads * thread) cpu.memory_bytes = std::min(cpu.memory_bytes, *left - threads * thread);
  }
  // What a core's GEMM reaches on matrices of a few hundred rows; only the order of magnitude matters, because it
  // decides between one thread and all of them.
  const std::string simd = simd_description();
  cpu.gflops_fp32 = simd == "AVX-512" ? 120 : simd == "AVX2" ? 60 : 15;
  if (gemm_is_own()) cpu.gflops_fp32 /= 2;
  return cpu;
}

std::string processor_name(const std::string& root) {
  std::istringstream info = text_of(root + "/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (!line.starts_with("model name")) continue;
    const std::size_t begin = line.find_first_not_of(" \t", std::min(line.find(':'), line.size() - 1) + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::string nvidia_driver_version(const std::string& root) {
  std::istringstream file = text_of(root + "/sys/module/nvidia/version");
  std::string version;
  std::getline(file, version);
  return version;
}

DeviceCaps query_caps_for(const DeviceChoice& device) {
  DeviceCaps caps;
  caps.cpu = query_cpu();
  switch (device.kind) {
    case DeviceKind::cpu:
      caps.no_gpu_reason = "the CPU was asked for";
      break;
    case DeviceKind::automatic:
    case DeviceKind::cuda:
      query_gpus(caps);
      break;
  }
  return caps;
}

DeviceCaps query_device_caps() {
  DeviceCaps caps = query_caps_for({});
  if (!caps.gpus.empty()) caps.no_cublaslt_reason = why_no_cublaslt();
  return caps;
}

Decision decide_here(const NetworkSpec& network, const TrainingSpec& training, DeviceCaps& caps,
                     std::optional<ExecutorKind> forced) {
  Decision decision = decide(network, training, caps, forced);
  if (!decision.needs_cublaslt) return decision;
  caps.no_cublaslt_reason = why_no_cublaslt();
  if (caps.no_cublaslt_reason.empty()) return decision;
  return decide(network, training, caps, forced);
}

}  // namespace deviceloop
