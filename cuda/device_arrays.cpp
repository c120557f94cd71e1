// The joint's functions on arrays of the caller in device memory.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <deviceloop/error.h>

#include "../host/cuda_entry.h"
#include "executors/device_memory.h"
#include "executors/executor_stream.h"
#include "kernels/kernels.h"
#include "runtime/check.h"
#include "runtime/owners.h"

namespace deviceloop {
namespace {

void download(void* to, const void* from, std::size_t bytes, const cuda::ExecutorStream& stream) {
  DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream.get()));
  stream.wait();
}

}  // namespace

void check_device_range(const void* data, std::uint64_t bytes, int device, const std::string& what) {
  const auto place_of = [&](std::uint64_t offset) {
    cudaPointerAttributes place{};
    const void* const byte = static_cast<const char*>(data) + offset;
    const cudaError_t code = cudaPointerGetAttributes(&place, byte);
    if (code == cudaErrorInvalidValue) {
      cudaGetLastError();  // must not surface in the host application's next check
      place.type = cudaMemoryTypeUnregistered;
    } else {
      cuda::check_cuda(code, "cudaPointerGetAttributes(&place, byte)", __FILE__, __LINE__);
    }
    return place;
  };
  const auto is_on_gpu = [](const cudaPointerAttributes& place) {
    return place.type == cudaMemoryTypeDevice || place.type == cudaMemoryTypeManaged;
  };
  const cuda::CurrentDevice current(device);
  const cudaPointerAttributes first = place_of(0);
  if (!is_on_gpu(first))
    throw InvalidArgument(what +
                          " is said to lie in a GPU's memory, and its pointer is to the host's; pass a pointer of "
                          "cudaMalloc, or MemorySpace::host");
  if (first.type == cudaMemoryTypeDevice && first.device != device)
    throw InvalidArgument(what + " lies in the memory of GPU " + std::to_string(first.device) +
                          ", and the plan runs on GPU " + std::to_string(device) +
                          "; choose that one by TrainingSpec::device, or copy the array");
  const cudaPointerAttributes last = place_of(bytes - 1);
  if (!is_on_gpu(last) || (last.type == cudaMemoryTypeDevice && last.device != device))
    throw InvalidArgument(what + " takes " + std::to_string(bytes) +
                          " bytes, and the memory at its pointer ends before that; pass the array's own shape and row "
                          "stride");
}

std::shared_ptr<void> allocate_on_device(std::size_t bytes, int device, const CudaOptions& options) {
  const cuda::CurrentDevice current(device);
  cuda::refuse_capture(options.stream);
  const auto memory = std::make_shared<cuda::DeviceBuffer>(bytes);
  return {memory, memory->data()};
}

std::optional<NonFinite> find_wrong_on_device(const ConstMatrix& matrix, const ElementRule& rule, int device,
                                              const CudaOptions& options) {
  const std::int64_t count = matrix.rows * matrix.columns;
  if (count == 0) return {};
  const cuda::CurrentDevice current(device);
  cuda::refuse_capture(options.stream);
  const std::int64_t blocks = cuda::find_blocks(count);
  std::vector<std::int64_t> firsts(static_cast<std::size_t>(blocks));
  const cuda::DeviceMemory found(firsts.size() * sizeof(std::int64_t), options);
  const cuda::ExecutorStream stream(options.stream);
  return with_read_type(matrix.type, [&]<class T>(T*) -> std::optional<NonFinite> {
    const auto* const elements = static_cast<const T*>(matrix.data);
    cuda::launch_find_wrong(static_cast<std::int64_t*>(found.data()), elements, matrix.row_stride, matrix.rows,
                            matrix.columns, rule, stream.get());
    download(firsts.data(), found.data(), found.bytes(), stream);
    const std::int64_t first = *std::min_element(firsts.begin(), firsts.end());
    if (first == count) return {};
    NonFinite wrong{first / matrix.columns, first % matrix.columns};
    T value{};
    download(&value, elements + wrong.row * matrix.row_stride + wrong.column, sizeof value, stream);
    wrong.value = quieted(static_cast<double>(value));
    return wrong;
  });
}

void download_from_device(Matrix to, const ConstMatrix& from, int device, const CudaOptions& options) {
  const cuda::CurrentDevice current(device);
  cuda::refuse_capture(options.stream);
  const cuda::ExecutorStream stream(options.stream);
  for (std::int64_t row = 0; row < from.rows; ++row)
    download(rows_of(to, row, 1).data, rows_of(from, row, 1).data,
             static_cast<std::size_t>(from.columns) * size_of(from.type), stream);
}

}  // namespace deviceloop
