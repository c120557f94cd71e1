// deviceloop info: what this build and this machine offer.
#include <deviceloop/plan.h>
#include <deviceloop/version.h>

#include "commands.h"
#include "cpu/gemm.h"
#include "cuda_entry.h"
#include "machine.h"
#include "memory.h"
#include "text.h"
#include "text_output.h"

namespace deviceloop::cli {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = __VERSION__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "GCC " __VERSION__;
#else
constexpr const char* kCompiler = "unknown compiler";
#endif

}  // namespace

void declare_info(OptionSet&) {}

int run_info(const OptionSet&) {
  const DeviceCaps caps = query_device_caps();
  TextOutput text(TextOutput::Where::standard_output);
  const auto line = [&](const std::string& what, const std::string& value) {
    text.write(what + std::string(14 - what.size(), ' ') + value + "\n");
  };
  const std::string build_type = DEVICELOOP_BUILD_TYPE;
  line("deviceloop", DEVICELOOP_VERSION);
  line("build", (build_type.empty() ? "no build type" : build_type) + ", " + kCompiler);
  line("GEMM", gemm_description());
  line("same bits", std::string("for any number of threads: ") + (gemm_bits_verified() ? "verified" : "not verified"));
  line("threads", "up to " + std::to_string(caps.cpu.cores) + (caps.cpu.cores == 1 ? " core" : " cores"));
  line("SIMD", simd_description());
  line("memory", caps.cpu.memory_bytes == 0 ? "unknown" : bytes_text(caps.cpu.memory_bytes) + " free");
  line("CUDA toolkit", cuda_toolkit());
  if (caps.gpus.empty()) line("devices", "none: " + caps.no_gpu_reason);
  for (const GpuCaps& gpu : caps.gpus)
    line("device " + std::to_string(gpu.index),
         gpu.name + ", compute capability " + std::to_string(gpu.compute_capability / 10) + "." +
             std::to_string(gpu.compute_capability % 10) + ", " + std::to_string(gpu.multiprocessors) +
             " multiprocessors, " + bytes_text(gpu.memory_bytes) +
             (gpu.no_code_reason.empty() ? "" : "; " + gpu.no_code_reason));
  if (!caps.gpus.empty()) line("cuBLASLt", caps.no_cublaslt_reason.empty() ? "found" : caps.no_cublaslt_reason);
  text.check();
  return 0;
}

}  // namespace deviceloop::cli
