#include "../../cuda/runtime/device.cuh"
#include "../../cuda/runtime/launch.h"
#include "../random_data.h"
#include "device.h"

namespace deviceloop::bench {
namespace {

template <class T>
__global__ void fill_kernel(T* out, std::int64_t count, std::uint64_t seed, std::uint64_t number, bool activations) {
  const std::int64_t step = std::int64_t{cuda::grid_blocks()} * cuda::block_threads();
  for (std::int64_t i = std::int64_t{cuda::block_index()} * cuda::block_threads() + cuda::thread_index(); i < count;
       i += step)
    out[i] = activations ? random_activation<T>(seed, number, i) : random_value<T>(seed, number, i);
}

}  // namespace

template <class T>
void fill_random(const DeviceArray<T>& array, std::uint64_t seed, std::uint64_t number, bool activations,
                 const cuda::StreamOwner& stream) {
  if (array.count() == 0) return;
  cuda::LaunchConfig config;
  config.blocks = std::min<std::int64_t>((array.count() + config.threads - 1) / config.threads, 4096);
  cuda::launch(fill_kernel<T>, config, stream.get(), array.data(), array.count(), seed, number, activations);
}
template void fill_random(const DeviceArray<float>&, std::uint64_t, std::uint64_t, bool, const cuda::StreamOwner&);
template void fill_random(const DeviceArray<double>&, std::uint64_t, std::uint64_t, bool, const cuda::StreamOwner&);

}  // namespace deviceloop::bench
