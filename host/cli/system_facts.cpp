#include "system_facts.h"

#include <deviceloop/version.h>

#include "cpu/gemm.h"
#include "cuda_entry.h"
#include "machine.h"
#include "text.h"

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

std::vector<Fact> system_facts(const DeviceCaps& caps) {
  const std::string build_type = DEVICELOOP_BUILD_TYPE;
  std::vector<Fact> facts = {
      {"deviceloop", DEVICELOOP_VERSION},
      {"build", (build_type.empty() ? "no build type" : build_type) + ", " + kCompiler},
      {"GEMM", gemm_description()},
      {"same bits", std::string("for any number of threads: ") + (gemm_bits_verified() ? "verified" : "not verified")}};
  if (const std::string processor = processor_name(); !processor.empty()) facts.emplace_back("processor", processor);
  facts.emplace_back("threads", "up to " + std::to_string(caps.cpu.cores) + (caps.cpu.cores == 1 ? " core" : " cores"));
  facts.emplace_back("SIMD", simd_description());
  facts.emplace_back("memory", caps.cpu.memory_bytes == 0 ? "unknown" : bytes_text(caps.cpu.memory_bytes) + " free");
  facts.emplace_back("CUDA toolkit", cuda_toolkit());
  if (const std::string driver = nvidia_driver_version(); !driver.empty()) facts.emplace_back("CUDA driver", driver);
  if (caps.gpus.empty()) facts.emplace_back("devices", "none: " + caps.no_gpu_reason);
  for (const GpuCaps& gpu : caps.gpus)
    facts.emplace_back("device " + std::to_string(gpu.index),
                       gpu.name + ", compute capability " + std::to_string(gpu.compute_capability / 10) + "." +
                           std::to_string(gpu.compute_capability % 10) + ", " + std::to_string(gpu.multiprocessors) +
                           " multiprocessors, " + bytes_text(gpu.memory_bytes) +
                           (gpu.no_code_reason.empty() ? "" : "; " + gpu.no_code_reason) +
                           (gpu.no_hopper_code_reason.empty() ? "" : "; " + gpu.no_hopper_code_reason));
  return facts;
}

}  // namespace deviceloop::cli
