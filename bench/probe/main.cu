// Measures, on the GPU at hand, what deviceloop's design rests on and what no document answers: how cuBLASLt's fused
// epilogues treat +0, -0 and NaN and what they cost, what one dependency between multiprocessors costs (grid-wide
// barrier, hop through L2, exchange inside a cluster), what graph nodes and host calls cost, and the rates that this
// machine really reaches. The planner's constants and comments in cuda/ cite its JSON.
//
// Build, with CUDA 13 and nothing else (cuBLASLt is looked for at run time and never linked):
//   nvcc -std=c++20 -O3 -arch=sm_90 -o probe bench/probe/main.cu
// Run:
//   ./probe [--json FILE] [--list] [--only REGEX] [--limit SECONDS]
//
// One translation unit: each group of experiments is a file that this one includes. Compiled apart, each would parse
// the same headers again, and building would take longer.
//
// Guarantees: every experiment stands alone. One that fails is recorded with its message and the next one runs; after
// an error that the CUDA context does not survive, what there is has been written and the program ends. The JSON is
// rewritten after each experiment. Every wait inside a kernel has a deadline by %globaltimer, or is a barrier over
// blocks that the launch itself guarantees to be resident together, so the probe cannot hang the GPU.
// Exit status: 0 all ran, 1 some failed or the time was over, 2 no GPU or wrong arguments, 3 the context died or a call
// never returned.

#include <cuda_runtime.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <regex>
#include <string>
#include <utility>

#include "barriers.cuh"
#include "clusters.cuh"
#include "cublaslt_masks.cuh"
#include "cublaslt_products.cuh"
#include "cublaslt_rates.cuh"
#include "gpu.cuh"
#include "graphs.cuh"
#include "host_calls.cuh"
#include "rates.cuh"
#include "record.h"

namespace probe {
namespace {

struct Experiment {
  const char* name;
  const char* what;
  void (*run)(const Context&, Record&);
};

// Latencies first, then rates that heat the chip; last what is known to have read out of bounds in some versions.
const Experiment kExperiments[] = {
    {"clock", "multiprocessor clock by clock64 against globaltimer", probe_clock},
    {"host_calls", "CPU cost of launches, synchronization and 8 bytes to the host", probe_host_calls},
    {"barriers", "block barrier; grid-wide barrier, own and cooperative_groups", probe_barriers},
    {"hops", "one hop through L2, and all-to-all by packed words", probe_hops},
    {"cluster_residency", "co-resident clusters, by the occupancy query and seen", probe_cluster_residency},
    {"cooperative_clusters", "cooperative launch with clusters: accepted, right?", probe_cooperative_clusters},
    {"cluster_exchange", "2 KiB to each peer through distributed shared memory", probe_cluster_exchange},
    {"graph_lines", "ns a kernel node in straight-line graphs, with and without programmatic edges", probe_graph_lines},
    {"graph_while", "ns an iteration of a WHILE node", probe_graph_while},
    {"memory_rates", "copy, read and L2 bandwidth", probe_memory_rates},
    {"fma_rate", "fp32 FMA rate", probe_fma_rate},
    {"lt_load", "cuBLASLt: where it was found, its version, what loading and creating it cost", probe_lt_load},
    {"lt_epilogues", "cuBLASLt: which epilogues have algorithms", probe_lt_epilogues},
    {"lt_products", "cuBLASLt: beta = 1 in place, scalars in device memory, replays", probe_lt_products},
    {"lt_relu_mask", "cuBLASLt: RELU_AUX at +0, -0, NaN", probe_lt_relu_mask},
    {"lt_drelu", "cuBLASLt: DRELU and DRELU_BGRAD against the host", probe_lt_drelu},
    {"lt_fused", "cuBLASLt: fused epilogues against own kernels", probe_lt_fused},
    {"lt_rates", "cuBLASLt: the best product rates", probe_lt_rates},
    {"lt_drelu_k1", "cuBLASLt: DRELU and DRELU_BGRAD at k = 1", probe_lt_drelu_k1},
};

bool write_file(const std::string& path, const std::string& content) {
  if (path.empty()) return true;
  const std::string fresh = path + ".new";
  std::FILE* file = std::fopen(fresh.c_str(), "w");
  bool good = file != nullptr;
  if (good) {
    good = std::fwrite(content.data(), 1, content.size(), file) == content.size();
    good = std::fclose(file) == 0 && good;
  }
  good = good && std::rename(fresh.c_str(), path.c_str()) == 0;
  if (!good) std::fprintf(stderr, "probe: cannot write %s: %s\n", path.c_str(), std::strerror(errno));
  return good;
}

Record describe_device(const Context& context, double first_call_us, double context_us) {
  Record out;
  const cudaDeviceProp& device = context.device;
  int driver = 0, runtime = 0, clock_khz = 0, memory_khz = 0, ordinal = 0;
  PROBE_CUDA(cudaGetDevice(&ordinal));
  PROBE_CUDA(cudaDriverGetVersion(&driver));
  PROBE_CUDA(cudaRuntimeGetVersion(&runtime));
  PROBE_CUDA(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, ordinal));
  PROBE_CUDA(cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, ordinal));
  out.set("gpu", device.name);
  out.set("multiprocessors", device.multiProcessorCount);
  out.set("compute_capability", text("%d.%d", device.major, device.minor));
  out.set("driver_version", driver);
  out.set("runtime_version", runtime);
  out.set("memory_bytes", device.totalGlobalMem);
  out.set("l2_bytes", device.l2CacheSize);
  out.set("shared_bytes_a_block_opt_in", device.sharedMemPerBlockOptin);
  out.set("shared_bytes_a_multiprocessor", device.sharedMemPerMultiprocessor);
  out.set("registers_a_multiprocessor", device.regsPerMultiprocessor);
  out.set("maximum_clock_mhz", clock_khz / 1e3);
  out.set("memory_clock_mhz", memory_khz / 1e3);
  out.set("first_cuda_call_us", first_call_us);
  out.set("context_creation_us", context_us);
  return out;
}

extern "C" void out_of_time(int) {
  static const char message[] = "probe: out of time; the JSON holds what was finished\n";
  if (write(2, message, sizeof message - 1) < 0) _exit(3);
  _exit(3);
}

int usage(const char* complaint) {
  std::fprintf(stderr, "probe: %s\nusage: probe [--json FILE] [--list] [--only REGEX] [--limit SECONDS]\n", complaint);
  return 2;
}

int run(int argc, char** argv) {
  std::string json, only;
  bool list = false;
  double limit_s = 90;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--list") {
      list = true;
      continue;
    }
    if (option != "--json" && option != "--only" && option != "--limit")
      return usage(("unknown option " + option).c_str());
    if (++i == argc) return usage(("no value for " + option).c_str());
    if (option == "--json") json = argv[i];
    if (option == "--only") only = argv[i];
    if (option == "--limit") {
      char* end = nullptr;
      limit_s = std::strtod(argv[i], &end);
      if (end == argv[i] || *end != '\0' || !(limit_s > 0 && limit_s < 1e5)) return usage("--limit wants seconds");
    }
  }
  std::regex wanted;
  try {
    wanted = std::regex(only);
  } catch (const std::regex_error& error) {
    return usage((std::string("--only: ") + error.what()).c_str());
  }
  const auto chosen = [&](const Experiment& e) { return only.empty() || std::regex_search(e.name, wanted); };
  if (list) {
    for (const Experiment& e : kExperiments)
      if (chosen(e)) std::printf("%-22s %s\n", e.name, e.what);
    return 0;
  }

  (void)std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what is printed is seen, however the program ends
  const Clock::time_point begin = Clock::now();
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  const double first_call_us = microseconds_since(begin);
  if (found == cudaErrorNoDevice || found == cudaErrorInsufficientDriver || (found == cudaSuccess && count == 0)) {
    std::fprintf(stderr, "probe: no GPU was found (%s, %d)\n", cudaGetErrorName(found), static_cast<int>(found));
    return 2;
  }
  PROBE_CUDA(found);
  const Clock::time_point before_context = Clock::now();
  PROBE_CUDA(cudaFree(nullptr));
  const double context_us = microseconds_since(before_context);

  // A call that never returns would otherwise hold the machine; a kernel that never ends cannot be (see above).
  signal(SIGALRM, out_of_time);
  alarm(static_cast<unsigned>(limit_s) + 60);

  Context context;
  PROBE_CUDA(cudaGetDeviceProperties(&context.device, 0));
  Record report, experiments;
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  gmtime_r(&now, &utc);
  report.set("what", "deviceloop bench/probe");
  report.set("date_utc", text("%04d-%02d-%02dT%02d:%02d:%02dZ", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                              utc.tm_hour, utc.tm_min, utc.tm_sec));
  report.set("toolkit_version", CUDART_VERSION);
  report.set("device", describe_device(context, first_call_us, context_us));
  std::printf("%s, %d multiprocessors; first call %.0f us, context %.0f us\n", context.device.name,
              context.device.multiProcessorCount, first_call_us, context_us);
  const auto save = [&](bool finished) {
    Record whole = report;
    whole.set("finished", finished);
    whole.set("elapsed_s", microseconds_since(begin) / 1e6);
    whole.set("failures", failures);
    whole.set("experiments", experiments);
    return write_file(json, whole.json() + "\n");
  };
  if (!save(false)) return 2;  // known now, and not when the figures are there
  if (context.device.major < 9) {
    std::fprintf(stderr, "probe: needs compute capability 9.0 or newer, this is %d.%d\n", context.device.major,
                 context.device.minor);
    return 2;
  }

  bool dead = false;
  for (const Experiment& e : kExperiments) {
    if (!chosen(e)) continue;
    Record skipped;
    if (dead || microseconds_since(begin) > 1e6 * limit_s) {
      skipped.set("status", "not_run");
      skipped.set("message", dead ? "the CUDA context had died" : "the time was over");
      experiments.set(e.name, std::move(skipped));
      ++failures;
      continue;
    }
    std::printf("%s\n", e.name);
    const Clock::time_point start = Clock::now();
    try {
      attempt(experiments, e.name, [&](Record& record) {
        // A part's failure is in its own record; the time is noted whatever happens.
        struct Note {
          Record& record;
          Clock::time_point start;
          ~Note() { record.set("wall_ms", microseconds_since(start) / 1e3); }
        } note{record, start};
        warm_up(context);
        e.run(context, record);
      });
    } catch (const ContextDied&) {
      dead = true;
    }
    save(false);
  }
  save(!dead);
  std::printf("%.1f s%s\n", microseconds_since(begin) / 1e6, dead ? "; the CUDA context died" : "");
  return dead ? 3 : failures > 0 ? 1 : 0;
}

}  // namespace
}  // namespace probe

int main(int argc, char** argv) {
  try {
    return probe::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "probe: %s\n", error.what());
    return 3;
  }
}
