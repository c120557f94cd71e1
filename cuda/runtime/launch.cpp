#include "launch.h"

#include <limits>
#include <string>

#include <deviceloop/error.h>

#include "check.h"

namespace deviceloop::cuda {
namespace {

std::string name_of(const void* kernel) {
  const char* symbol = nullptr;
  return cudaFuncGetName(&symbol, kernel) == cudaSuccess && symbol != nullptr ? kernel_name(symbol) : "a kernel";
}

/// Graphs have such edges since CUDA 12.3.
bool driver_overlaps_captured() {
  int driver = 0;
  return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12030;
}

/// `attributes` must outlive the returned value, which points to it.
cudaLaunchConfig_t cuda_config(const LaunchConfig& config, cudaStream_t stream, cudaLaunchAttribute (&attributes)[3]) {
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(config.blocks));
  launch.blockDim = dim3(static_cast<unsigned>(config.threads));
  launch.dynamicSmemBytes = static_cast<std::size_t>(config.shared_bytes);
  launch.stream = stream;
  launch.attrs = attributes;
  if (config.cluster_blocks > 1) {
    cudaLaunchAttribute& cluster = attributes[launch.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(config.cluster_blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  }
  if (config.waits && OverlappedLaunches::current() && driver_overlaps_captured()) {
    cudaLaunchAttribute& overlap = attributes[launch.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (config.cooperative) {
    cudaLaunchAttribute& cooperative = attributes[launch.numAttrs++];
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
  }
  return launch;
}

}  // namespace

void prepare_kernel(const void* kernel, const LaunchConfig& config) {
  constexpr int kPortableClusterBlocks = 8;
  int device = 0, most = 0;
  DEVICELOOP_CHECK_CUDA(cudaGetDevice(&device));
  DEVICELOOP_CHECK_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (config.shared_bytes > most)
    throw Unsupported(name_of(kernel) + " needs " + std::to_string(config.shared_bytes) +
                      " bytes of shared memory a block, GPU " + std::to_string(device) + " has " +
                      std::to_string(most) + "; use smaller layers, fewer samples or another plan");
  // The attribute is per kernel and shared with other trainers, whose launches may need more: so request the maximum.
  DEVICELOOP_CHECK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  if (config.cluster_blocks > kPortableClusterBlocks)
    DEVICELOOP_CHECK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}

std::int64_t resident_clusters(const void* kernel, const LaunchConfig& config) {
  int count = 0;
  if (config.cluster_blocks > 1) {
    cudaLaunchAttribute attributes[3];
    LaunchConfig alone = config;
    alone.cooperative = false;
    const cudaLaunchConfig_t launch = cuda_config(alone, nullptr, attributes);
    DEVICELOOP_CHECK_CUDA(cudaOccupancyMaxActiveClusters(&count, kernel, &launch));
    return count;
  }
  int device = 0, multiprocessors = 0;
  DEVICELOOP_CHECK_CUDA(cudaGetDevice(&device));
  DEVICELOOP_CHECK_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  DEVICELOOP_CHECK_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, config.threads,
                                                                      static_cast<std::size_t>(config.shared_bytes)));
  return std::int64_t{count} * multiprocessors;
}

void launch_erased(const void* kernel, const LaunchConfig& config, cudaStream_t stream, void** arguments) {
  if (config.blocks < 1 || config.blocks > std::numeric_limits<int>::max())
    throw InvalidArgument(name_of(kernel) + ": a grid of " + std::to_string(config.blocks) +
                          " blocks; it can have 1 to 2147483647, so pass smaller ranges");
  cudaLaunchAttribute attributes[3];
  const cudaLaunchConfig_t launch = cuda_config(config, stream, attributes);
  const cudaError_t code = cudaLaunchKernelExC(&launch, kernel, arguments);
  if (code != cudaSuccess) [[unlikely]]
    throw_cuda_error(code, "cudaLaunchKernelExC", __FILE__, __LINE__, name_of(kernel));
}

}  // namespace deviceloop::cuda
