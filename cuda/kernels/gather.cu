// The rows of a batch, gathered from the data in the order in which an epoch takes its samples.
#include "../runtime/launch.h"
#include "alignment.h"
#include "groups.cuh"
#include "kernels.h"
#include "operands.cuh"

namespace deviceloop::cuda {
namespace {

/// Which samples the rows of a tile are.
struct TileSamples {
  std::int64_t values[kThreads * kGroupsPerThread];
};

/// The matrices of a launch; the blocks of one come after those of the one before.
template <class T>
struct Gathered {
  struct Matrix {
    GatheredRows<T> rows;
    PanelLayout layout;
    std::int64_t groups;  ///< of columns in a row, of 16 bytes or of one element
  };
  Matrix matrices[kMostGathered];
};

/// A tile of row r of out = the row order.sample(*step * rows + r) of data. A thread has one group of columns and takes
/// kGroupsPerThread rows, one group of each, all loaded before the first store. The threads of a block first compute
/// the samples of its rows, one a thread.
template <int width, class T>
__device__ void gather_tile(const typename Gathered<T>::Matrix& matrix, std::int64_t block, const BatchOrder& order,
                            const std::int64_t* step, std::int64_t rows) {
  auto& samples = shared<TileSamples>().values;
  const auto thread = static_cast<int>(thread_index());
  const PanelPlace place = panel_place(matrix.layout, rows, block, thread);
  const std::int64_t first_row = place.tile_down * matrix.layout.rows_per_tile;
  const std::int64_t first_position = *step * rows + first_row;
  for (std::int64_t row = thread; first_row + row < place.end_row; row += kThreads)
    samples[row] = order.sample(first_position + row);
  block_barrier();
  if (place.column >= matrix.groups) return;
  const std::int64_t columns = matrix.rows.columns;
  Group<T, width> loaded[kGroupsPerThread];
#pragma unroll
  for (int item = 0; item < kGroupsPerThread; ++item) {
    const std::int64_t row = place.row + item * place.row_step;
    if (row < place.end_row)
      load_group<true>(loaded[item], matrix.rows.data + samples[row - first_row] * columns, place.column * width,
                       columns);
  }
#pragma unroll
  for (int item = 0; item < kGroupsPerThread; ++item) {
    const std::int64_t row = place.row + item * place.row_step;
    if (row >= place.end_row) continue;
    if (matrix.rows.out != nullptr)
      store_group<true>(matrix.rows.out + row * columns, loaded[item], place.column * width, columns);
    store_rounded(matrix.rows.rounded, loaded[item], row * columns + place.column * width, (row + 1) * columns);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(Gathered<T> gathered, BatchOrder order, const std::int64_t* step, std::int64_t rows) {
  wait_for_grids_before();
  std::int64_t block = block_index();
  int index = 0;
  while (block >= gathered.matrices[index].layout.blocks()) block -= gathered.matrices[index++].layout.blocks();
  const auto& matrix = gathered.matrices[index];
  if (matrix.groups < matrix.rows.columns)
    gather_tile<kVector<T>, T>(matrix, block, order, step, rows);
  else
    gather_tile<1, T>(matrix, block, order, step, rows);
}

}  // namespace

template <class T>
void launch_gather_rows(std::span<const GatheredRows<T>> matrices, const BatchOrder& order, const std::int64_t* step,
                        std::int64_t rows, cudaStream_t stream) {
  Gathered<T> gathered{};
  std::int64_t blocks = 0;
  for (std::size_t index = 0; index < matrices.size(); ++index) {
    const GatheredRows<T>& of = matrices[index];
    const bool in_vectors = of.columns % kVector<T> == 0 && aligned_to_16(of.out, of.data);
    const std::int64_t groups = of.columns / (in_vectors ? kVector<T> : 1);
    gathered.matrices[index] = {of, panel_layout(rows, groups, kThreads, kGroupsPerThread), groups};
    blocks += gathered.matrices[index].layout.blocks();
  }
  launch(gather_rows_kernel<T>, waiting({blocks, kThreads, sizeof(TileSamples)}), stream, gathered, order, step, rows);
}

template void launch_gather_rows(std::span<const GatheredRows<float>>, const BatchOrder&, const std::int64_t*,
                                 std::int64_t, cudaStream_t);
template void launch_gather_rows(std::span<const GatheredRows<double>>, const BatchOrder&, const std::int64_t*,
                                 std::int64_t, cudaStream_t);

}  // namespace deviceloop::cuda
