// The rows of a batch, gathered from the data in the order in which an epoch takes its samples.
#include <type_traits>

#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"

namespace deviceloop::cuda {
namespace {

/// Which samples the rows of a tile are.
struct TileSamples {
  std::int64_t values[kThreads * kGroupsPerThread];
};

/// Row r of out [rows, groups * width] = the row order.sample(*step * rows + r) of data, both without gaps. A thread
/// has one group of columns and takes kGroupsPerThread rows, one group of each, all loaded before the first store. The
/// threads of a block first compute the samples of its rows, one a thread.
template <class T, int width>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(T* out, const T* data, std::int64_t groups, BatchOrder order, const std::int64_t* step,
                       std::int64_t rows, PanelLayout layout) {
  auto& samples = shared<TileSamples>().values;
  const auto thread = static_cast<int>(thread_index());
  const std::int64_t block = block_index();
  const PanelPlace place = panel_place(layout, rows, block, thread);
  const std::int64_t first_row = place.tile_down * layout.rows_per_tile;
  const std::int64_t first_position = *step * rows + first_row;
  for (std::int64_t row = thread; first_row + row < place.end_row; row += kThreads)
    samples[row] = order.sample(first_position + row);
  block_barrier();
  if (place.column >= groups) return;
  const std::int64_t columns = groups * width;
  Group<T, width> loaded[kGroupsPerThread];
#pragma unroll
  for (int item = 0; item < kGroupsPerThread; ++item) {
    const std::int64_t row = place.row + item * place.row_step;
    if (row < place.end_row)
      load_group<true>(loaded[item], data + samples[row - first_row] * columns, place.column * width, columns);
  }
#pragma unroll
  for (int item = 0; item < kGroupsPerThread; ++item) {
    const std::int64_t row = place.row + item * place.row_step;
    if (row < place.end_row) store_group<true>(out + row * columns, loaded[item], place.column * width, columns);
  }
}

}  // namespace

template <class T>
void launch_gather_rows(T* out, const T* data, std::int64_t columns, const BatchOrder& order, const std::int64_t* step,
                        std::int64_t rows, cudaStream_t stream) {
  const auto launch_groups = [&](auto width) {
    const std::int64_t groups = columns / width();
    const PanelLayout layout = panel_layout(rows, groups, kThreads, kGroupsPerThread);
    launch(gather_rows_kernel<T, width()>, {layout.blocks(), kThreads, sizeof(TileSamples)}, stream, out, data, groups,
           order, step, rows, layout);
  };
  if (columns % kVector<T> == 0 && aligned_to_16(out, data))
    launch_groups(std::integral_constant<int, kVector<T>>());
  else
    launch_groups(std::integral_constant<int, 1>());
}

template void launch_gather_rows(float*, const float*, std::int64_t, const BatchOrder&, const std::int64_t*,
                                 std::int64_t, cudaStream_t);
template void launch_gather_rows(double*, const double*, std::int64_t, const BatchOrder&, const std::int64_t*,
                                 std::int64_t, cudaStream_t);

}  // namespace deviceloop::cuda
