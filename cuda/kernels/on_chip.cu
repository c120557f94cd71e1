// The launches of on_chip.h, and the kernels of one cluster.
#include "../runtime/launch.h"
#include "on_chip.cuh"

namespace deviceloop::cuda {
namespace {

LaunchConfig config_of(const OnChipLayout& layout, bool cooperative) {
  LaunchConfig config{layout.all_blocks(), kOnChipThreads, layout.shared_bytes};
  config.cluster_blocks = layout.blocks();
  config.cooperative = cooperative;
  return config;
}

template <class T>
on_chip::Kernel<T> kernel_for(const OnChipLayout& layout) {
  return layout.clusters > 1 ? on_chip::kernel_of_clusters<T>(layout) : on_chip::kernel_of<T, false>(layout);
}

}  // namespace

template <class T>
void prepare_on_chip(const OnChipLayout& layout) {
  prepare_kernel(reinterpret_cast<const void*>(kernel_for<T>(layout)), config_of(layout, layout.clusters > 1));
}

template <class T>
std::int64_t resident_on_chip(const OnChipLayout& layout) {
  return resident_clusters(reinterpret_cast<const void*>(kernel_for<T>(layout)), config_of(layout, false));
}

template <class T>
void launch_on_chip(const OnChipArguments<T>& arguments, const OnChipLayout& layout, bool cooperative,
                    cudaStream_t stream) {
  launch(kernel_for<T>(layout), config_of(layout, cooperative && layout.clusters > 1), stream, arguments, layout);
}

template void prepare_on_chip<float>(const OnChipLayout&);
template void prepare_on_chip<double>(const OnChipLayout&);
template std::int64_t resident_on_chip<float>(const OnChipLayout&);
template std::int64_t resident_on_chip<double>(const OnChipLayout&);
template void launch_on_chip(const OnChipArguments<float>&, const OnChipLayout&, bool, cudaStream_t);
template void launch_on_chip(const OnChipArguments<double>&, const OnChipLayout&, bool, cudaStream_t);

}  // namespace deviceloop::cuda
