// Arrays of the caller in device memory: conversions, and the first element that must not be there.
#include <algorithm>

#include "../../host/narrow_floats.h"
#include "../runtime/device.cuh"
#include "../runtime/launch.h"
#include "kernels.h"

namespace deviceloop::cuda {
namespace {

/// A thread has one column of its tile, and takes kGroupsPerThread rows.
template <class Out, class In>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(Out* out, std::int64_t out_stride, const In* in, std::int64_t in_stride, std::int64_t rows,
                   std::int64_t columns, PanelLayout layout) {
  const PanelPlace place = panel_place(layout, rows, block_index(), static_cast<int>(thread_index()));
  if (place.column >= columns) return;
#pragma unroll
  for (int item = 0; item < kGroupsPerThread; ++item) {
    const std::int64_t row = place.row + item * place.row_step;
    if (row < place.end_row)
      out[row * out_stride + place.column] = static_cast<Out>(in[row * in_stride + place.column]);
  }
}

struct Firsts {
  std::int64_t values[kThreads];
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    find_wrong_kernel(std::int64_t* firsts, const T* in, std::int64_t stride, std::int64_t columns, std::int64_t count,
                      std::int64_t block_elements, ElementRule::Kind kind, double least_refused, double classes) {
  auto& found = shared<Firsts>().values;
  const auto thread = static_cast<int>(thread_index());
  const std::int64_t begin = block_index() * block_elements;
  const std::int64_t end = begin + block_elements < count ? begin + block_elements : count;
  std::int64_t first = count;
  for (std::int64_t index = begin + thread; index < end; index += kThreads) {
    const std::int64_t row = index / columns, column = index % columns;
    if (!is_wrong(in[row * stride + column], kind, least_refused, classes)) continue;
    first = index;
    break;
  }
  found[thread] = first;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    block_barrier();
    if (thread < half && found[thread + half] < found[thread]) found[thread] = found[thread + half];
  }
  if (thread == 0) firsts[block_index()] = found[0];
}

}  // namespace

template <class Out, class In>
void launch_convert(Out* out, std::int64_t out_stride, const In* in, std::int64_t in_stride, std::int64_t rows,
                    std::int64_t columns, cudaStream_t stream) {
  const PanelLayout layout = panel_layout(rows, columns, kThreads, kGroupsPerThread);
  launch(convert_kernel<Out, In>, {layout.blocks(), kThreads, 0}, stream, out, out_stride, in, in_stride, rows, columns,
         layout);
}

std::int64_t find_blocks(std::int64_t count) { return std::min(group_blocks(count, 1), kMostFindBlocks); }

template <class T>
void launch_find_wrong(std::int64_t* firsts, const T* in, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                       const ElementRule& rule, cudaStream_t stream) {
  const std::int64_t count = rows * columns, blocks = find_blocks(count);
  launch(find_wrong_kernel<T>, {blocks, kThreads, sizeof(Firsts)}, stream, firsts, in, stride, columns, count,
         divide_up(count, blocks), rule.kind, least_refused_magnitude(rule), static_cast<double>(rule.classes));
}

#define DEVICELOOP_READS(In)                                                                               \
  template void launch_convert(float*, std::int64_t, const In*, std::int64_t, std::int64_t, std::int64_t,  \
                               cudaStream_t);                                                              \
  template void launch_convert(double*, std::int64_t, const In*, std::int64_t, std::int64_t, std::int64_t, \
                               cudaStream_t);                                                              \
  template void launch_find_wrong(std::int64_t*, const In*, std::int64_t, std::int64_t, std::int64_t,      \
                                  const ElementRule&, cudaStream_t);
DEVICELOOP_READS(float)
DEVICELOOP_READS(double)
DEVICELOOP_READS(Bfloat16)
DEVICELOOP_READS(Float16)
#undef DEVICELOOP_READS

}  // namespace deviceloop::cuda
