#include <deviceloop/dlpack.h>
#include <deviceloop/error.h>
#include <dlpack/dlpack.h>

#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

#include "matrix_ops.h"
#include "trainer_access.h"

namespace deviceloop {
namespace {

constexpr const char* kTake = "; pass a tensor of the CPU or of CUDA, such as tensor.cpu()";

std::string listed(const std::int64_t* numbers, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(numbers[i]);
  return text + "]";
}

MemorySpace space_of(const DLDevice& device) {
  switch (static_cast<std::int32_t>(device.device_type)) {
    case kDLCPU:
    case kDLCUDAHost:
      return MemorySpace::host;
    case kDLCUDA:
    case kDLCUDAManaged:
      return MemorySpace::device;
    default:
      throw Unsupported("the DLPack tensor is on a device of type " +
                        std::to_string(static_cast<std::int32_t>(device.device_type)) + kTake);
  }
}

ElementType type_of(const DLDataType& type) {
  if (type.code == kDLFloat && type.lanes == 1 && type.bits == 32) return ElementType::float32;
  if (type.code == kDLFloat && type.lanes == 1 && type.bits == 64) return ElementType::float64;
  if (type.code == kDLFloat && type.lanes == 1 && type.bits == 16) return ElementType::float16;
  if (type.code == kDLBfloat && type.lanes == 1 && type.bits == 16) return ElementType::bfloat16;
  throw Unsupported("the DLPack tensor has elements of type code " + std::to_string(type.code) + " with " +
                    std::to_string(type.bits) + " bits and " + std::to_string(type.lanes) +
                    " lanes; pass floats (code 2) of 16, 32 or 64 bits or bfloat (code 4) of 16, and 1 lane");
}

/// Of a tensor that is written, or only read.
template <class View>
View view_of(const DLTensor& tensor) {
  View view;
  view.space = space_of(tensor.device);
  view.type = type_of(tensor.dtype);
  if constexpr (std::is_same_v<View, Matrix>) check_is_written(view.type, "the DLPack tensor");
  if (tensor.ndim != 1 && tensor.ndim != 2)
    throw Unsupported("the DLPack tensor has " + std::to_string(tensor.ndim) +
                      " dimensions; pass one of 2, [rows, columns], or of 1, a column");
  if (tensor.shape == nullptr) throw InvalidArgument("the DLPack tensor has no shape; its producer must fill it in");
  view.rows = tensor.shape[0];
  view.columns = tensor.ndim == 2 ? tensor.shape[1] : 1;
  if (view.rows < 0 || view.columns < 0)
    throw InvalidArgument("the DLPack tensor has the shape " + listed(tensor.shape, tensor.ndim) +
                          "; sizes must not be negative");
  view.row_stride = view.columns;
  const bool has_elements = view.rows > 0 && view.columns > 0;
  if (tensor.strides != nullptr && has_elements) {
    // Where a dimension has one element its stride has no meaning.
    const bool has_gaps = view.columns > 1 && tensor.strides[1] != 1;
    if (view.rows > 1) view.row_stride = tensor.strides[0];
    if (has_gaps || view.row_stride < view.columns)
      throw Unsupported("the DLPack tensor of shape " + listed(tensor.shape, tensor.ndim) + " has the strides " +
                        listed(tensor.strides, tensor.ndim) +
                        "; rows must be without gaps and in ascending order: pass a contiguous copy");
  }
  if (!has_elements) return view;
  if (tensor.data == nullptr)
    throw InvalidArgument("the DLPack tensor of shape " + listed(tensor.shape, tensor.ndim) + " has null data");
  view.data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  if (reinterpret_cast<std::uintptr_t>(view.data) % size_of(view.type) != 0)
    throw Unsupported("the DLPack tensor begins at an address that is no multiple of its elements' " +
                      std::to_string(size_of(view.type)) + " bytes (byte_offset " + std::to_string(tensor.byte_offset) +
                      "); pass an aligned copy");
  return view;
}

/// Of another major version nothing but the deleter may be used.
void check_version(const DLManagedTensorVersioned& tensor) {
  if (tensor.version.major != DLPACK_MAJOR_VERSION)
    throw Unsupported("the tensor is one of DLPack " + std::to_string(tensor.version.major) + "." +
                      std::to_string(tensor.version.minor) + "; ask its producer for version 1, in Python by " +
                      "__dlpack__(max_version=(1, 0))");
}

bool is_read_only(const DLManagedTensorVersioned& tensor) {
  return (tensor.flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0;
}

/// What DLPack asks of a tensor's data.
constexpr std::align_val_t kAlignment{256};

/// A tensor and all that it points to.
struct Copy {
  DLManagedTensorVersioned tensor{};
  std::array<std::int64_t, 2> shape{};
  std::array<std::int64_t, 2> strides{};
  std::shared_ptr<void> memory{};
};

struct Legacy {
  DLManagedTensor tensor{};
  DLManagedTensorVersioned* of = nullptr;
};

std::shared_ptr<void> host_memory(std::size_t bytes) {
  const auto give_back = [](void* memory) { ::operator delete(memory, kAlignment); };
  return {::operator new(bytes, kAlignment), give_back};
}

/// A tensor [rows, columns], or with `is_row` [columns], that `fill` writes as a matrix [rows, columns].
template <class Fill>
DLManagedTensorVersioned* copy_of(const Trainer& trainer, std::int64_t rows, std::int64_t columns, bool is_row,
                                  MemorySpace space, const Fill& fill) {
  auto copy = std::make_unique<Copy>();
  Matrix matrix;
  matrix.type = element_type(trainer.training().precision);
  matrix.rows = rows;
  matrix.columns = matrix.row_stride = columns;
  matrix.space = space;
  const bool is_on_device = space == MemorySpace::device;
  const std::size_t bytes = static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns) * size_of(matrix.type);
  copy->memory = is_on_device ? TrainerAccess::device_memory(trainer, bytes) : host_memory(bytes);
  matrix.data = copy->memory.get();
  fill(matrix);

  copy->shape = is_row ? std::array{columns, std::int64_t{1}} : std::array{rows, columns};
  copy->strides = is_row ? std::array{std::int64_t{1}, std::int64_t{1}} : std::array{columns, std::int64_t{1}};
  DLTensor& tensor = copy->tensor.dl_tensor;
  tensor.data = rows > 0 ? matrix.data : nullptr;
  tensor.device = is_on_device ? DLDevice{kDLCUDA, trainer.plan().device} : DLDevice{kDLCPU, 0};
  tensor.ndim = is_row ? 1 : 2;
  tensor.dtype = {kDLFloat, static_cast<std::uint8_t>(8 * size_of(matrix.type)), 1};
  tensor.shape = copy->shape.data();
  tensor.strides = copy->strides.data();
  copy->tensor.version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
  copy->tensor.flags = DLPACK_FLAG_BITMASK_IS_COPIED;
  copy->tensor.manager_ctx = copy.get();
  copy->tensor.deleter = [](DLManagedTensorVersioned* self) { delete static_cast<Copy*>(self->manager_ctx); };
  return &copy.release()->tensor;
}

}  // namespace

ConstMatrix view_of_dlpack(const DLManagedTensorVersioned& tensor) {
  check_version(tensor);
  return view_of<ConstMatrix>(tensor.dl_tensor);
}

ConstMatrix view_of_dlpack(const DLManagedTensor& tensor) { return view_of<ConstMatrix>(tensor.dl_tensor); }

Matrix writable_view_of_dlpack(const DLManagedTensorVersioned& tensor) {
  check_version(tensor);
  if (is_read_only(tensor)) throw InvalidArgument("the DLPack tensor is read-only; pass a copy of it to write into");
  return view_of<Matrix>(tensor.dl_tensor);
}

Matrix writable_view_of_dlpack(const DLManagedTensor& tensor) { return view_of<Matrix>(tensor.dl_tensor); }

DLManagedTensorVersioned* weight_to_dlpack(const Trainer& trainer, int layer, MemorySpace space) {
  const NetworkSpec& network = trainer.network();
  const bool exists = layer >= 0 && layer < network.layers();  // else read_weight says so
  return copy_of(trainer, exists ? network.in_features(layer) : 0, exists ? network.out_features(layer) : 0, false,
                 space, [&](Matrix out) { trainer.read_weight(layer, out); });
}

DLManagedTensorVersioned* bias_to_dlpack(const Trainer& trainer, int layer, MemorySpace space) {
  const NetworkSpec& network = trainer.network();
  const bool exists = layer >= 0 && layer < network.layers();
  return copy_of(trainer, 1, exists ? network.out_features(layer) : 0, true, space,
                 [&](Matrix out) { trainer.read_bias(layer, out); });
}

DLManagedTensorVersioned* predict_to_dlpack(Trainer& trainer, ConstMatrix x) {
  const std::int64_t outputs = trainer.network().widths.back();
  // More could not be read, and predict says so before it writes anything.
  const bool is_readable = x.rows >= 0 && x.row_stride >= x.columns && x.rows <= (std::int64_t{1} << 58) / outputs;
  return copy_of(trainer, is_readable ? x.rows : 0, outputs, false, x.space,
                 [&](Matrix out) { trainer.predict(x, out); });
}

DLManagedTensor* legacy_dlpack(DLManagedTensorVersioned* tensor) {
  if (tensor == nullptr) throw InvalidArgument("legacy_dlpack: the tensor is null; it must not be");
  check_version(*tensor);
  if (is_read_only(*tensor))
    throw InvalidArgument("legacy_dlpack: the tensor is read-only, which DLPack before 1.0 cannot say; pass a copy");
  auto legacy = std::make_unique<Legacy>();
  legacy->of = tensor;
  legacy->tensor.dl_tensor = tensor->dl_tensor;
  legacy->tensor.manager_ctx = legacy.get();
  legacy->tensor.deleter = [](DLManagedTensor* self) {
    auto* const whole = static_cast<Legacy*>(self->manager_ctx);
    if (whole->of->deleter != nullptr) whole->of->deleter(whole->of);
    delete whole;
  };
  return &legacy.release()->tensor;
}

}  // namespace deviceloop
