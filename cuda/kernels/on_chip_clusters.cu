// The kernels of on_chip.cuh for several clusters.
#include "on_chip.cuh"

namespace deviceloop::cuda::on_chip {

template <class T>
Kernel<T> kernel_of_clusters(const OnChipLayout& layout) {
  return kernel_of<T, true>(layout);
}

template Kernel<float> kernel_of_clusters(const OnChipLayout&);
template Kernel<double> kernel_of_clusters(const OnChipLayout&);

}  // namespace deviceloop::cuda::on_chip
