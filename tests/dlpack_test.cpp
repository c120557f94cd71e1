// Tensors of other libraries: the views of those that are given, every reason to refuse one, and the copies that are
// made.
#include <gtest/gtest.h>

#include <deviceloop/deviceloop.h>
#include <deviceloop/dlpack.h>
#include <dlpack/dlpack.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "support/refusal.h"

namespace deviceloop {
namespace {

using testing::refusal;

/// A tensor of a producer, and whether its deleter was called.
struct Given {
  std::vector<float> elements = std::vector<float>(64, 0);
  std::vector<std::int64_t> shape, strides;
  int deleted = 0;
  DLManagedTensorVersioned tensor{};

  Given(std::vector<std::int64_t> of_shape, std::vector<std::int64_t> of_strides)
      : shape(std::move(of_shape)), strides(std::move(of_strides)) {
    tensor.version = {1, 0};
    tensor.manager_ctx = this;
    tensor.deleter = [](DLManagedTensorVersioned* self) { ++static_cast<Given*>(self->manager_ctx)->deleted; };
    tensor.dl_tensor.data = elements.data();
    tensor.dl_tensor.device = {kDLCPU, 0};
    tensor.dl_tensor.ndim = static_cast<std::int32_t>(shape.size());
    tensor.dl_tensor.dtype = {kDLFloat, 32, 1};
    tensor.dl_tensor.shape = shape.data();
    tensor.dl_tensor.strides = strides.empty() ? nullptr : strides.data();
  }
  Given(const Given&) = delete;

  DLTensor& dl() { return tensor.dl_tensor; }
  template <class E = InvalidArgument>
  std::string refused() {
    DLManagedTensor legacy{};
    legacy.dl_tensor = tensor.dl_tensor;
    std::string message = refusal<E>("the DLPack tensor ", [&] { view_of_dlpack(tensor); });
    EXPECT_EQ(refusal<E>("the DLPack tensor ", [&] { writable_view_of_dlpack(tensor); }), message);
    EXPECT_EQ(refusal<E>("the DLPack tensor ", [&] { view_of_dlpack(legacy); }), message);
    EXPECT_EQ(refusal<E>("the DLPack tensor ", [&] { writable_view_of_dlpack(legacy); }), message);
    EXPECT_EQ(deleted, 0);
    return message;
  }
};

void expect_view(const ConstMatrix& view, const void* data, std::int64_t rows, std::int64_t columns,
                 std::int64_t row_stride) {
  EXPECT_EQ(view.data, data);
  EXPECT_EQ(view.rows, rows);
  EXPECT_EQ(view.columns, columns);
  EXPECT_EQ(view.row_stride, row_stride);
}

void expect_view(Given& given, const void* data, std::int64_t rows, std::int64_t columns, std::int64_t row_stride) {
  DLManagedTensor legacy{};
  legacy.dl_tensor = given.tensor.dl_tensor;
  expect_view(view_of_dlpack(given.tensor), data, rows, columns, row_stride);
  expect_view(writable_view_of_dlpack(given.tensor), data, rows, columns, row_stride);
  expect_view(view_of_dlpack(legacy), data, rows, columns, row_stride);
  expect_view(writable_view_of_dlpack(legacy), data, rows, columns, row_stride);
  EXPECT_EQ(given.deleted, 0);  // the tensor stays the caller's
}

TEST(Dlpack, ViewsHaveShapeStrideAndOffset) {
  Given compact({3, 4}, {});
  const float* const data = compact.elements.data();
  expect_view(compact, data, 3, 4, 4);
  EXPECT_EQ(view_of_dlpack(compact.tensor).type, ElementType::float32);
  EXPECT_EQ(view_of_dlpack(compact.tensor).space, MemorySpace::host);
  compact.dl().byte_offset = 8;
  expect_view(compact, data + 2, 3, 4, 4);
  compact.dl().dtype.bits = 64;
  EXPECT_EQ(view_of_dlpack(compact.tensor).type, ElementType::float64);

  Given apart({3, 4}, {7, 1});
  expect_view(apart, apart.elements.data(), 3, 4, 7);
  Given vector({5}, {1});
  expect_view(vector, vector.elements.data(), 5, 1, 1);
  Given column_of_a_matrix({5}, {6});
  expect_view(column_of_a_matrix, column_of_a_matrix.elements.data(), 5, 1, 6);
  Given column({5, 1}, {6, 99});  // the stride of one element has no meaning
  expect_view(column, column.elements.data(), 5, 1, 6);
  Given row({1, 4}, {-3, 1});
  expect_view(row, row.elements.data(), 1, 4, 4);
  Given one({1, 1}, {0, 0});
  expect_view(one, one.elements.data(), 1, 1, 1);
}

TEST(Dlpack, EmptyTensorsMayHaveNullData) {
  Given no_rows({0, 4}, {4, 1});
  no_rows.dl().data = nullptr;
  expect_view(no_rows, nullptr, 0, 4, 4);
  Given no_columns({3, 0}, {0, 1});
  no_columns.dl().data = nullptr;
  expect_view(no_columns, nullptr, 3, 0, 0);
}

TEST(Dlpack, MemoryOfCudaIsTheHostsOrTheDevices) {
  Given given({3, 4}, {});
  const auto space_on = [&](DLDeviceType type) {
    given.dl().device = {type, 1};
    return view_of_dlpack(given.tensor).space;
  };
  EXPECT_EQ(space_on(kDLCUDAHost), MemorySpace::host);
  EXPECT_EQ(space_on(kDLCUDA), MemorySpace::device);
  EXPECT_EQ(space_on(kDLCUDAManaged), MemorySpace::device);
  given.dl().device.device_type = kDLROCM;
  EXPECT_MENTIONS(given.refused<Unsupported>(), "is on a device of type 10");
}

TEST(Dlpack, RefusesOtherTypesWithTheirValues) {
  Given given({3, 4}, {});
  given.dl().dtype = {kDLFloat, 8, 1};
  EXPECT_MENTIONS(given.refused<Unsupported>(), "type code 2 with 8 bits and 1 lanes");
  given.dl().dtype = {kDLInt, 32, 1};
  EXPECT_MENTIONS(given.refused<Unsupported>(), "type code 0 with 32 bits");
  given.dl().dtype = {kDLBfloat, 32, 1};
  EXPECT_MENTIONS(given.refused<Unsupported>(), "type code 4 with 32 bits");
  given.dl().dtype = {kDLFloat, 32, 4};
  EXPECT_MENTIONS(given.refused<Unsupported>(), "4 lanes");
}

TEST(Dlpack, ReadsElementsOf16BitsAndWritesNone) {
  Given given({3, 4}, {});
  for (const auto& [code, type] : {std::pair{kDLFloat, ElementType::float16}, {kDLBfloat, ElementType::bfloat16}}) {
    given.dl().dtype = {static_cast<std::uint8_t>(code), 16, 1};
    EXPECT_EQ(view_of_dlpack(given.tensor).type, type);
    EXPECT_MENTIONS(
        refusal("the DLPack tensor has elements of the type ", [&] { writable_view_of_dlpack(given.tensor); }),
        "only read");
  }
}

TEST(Dlpack, RefusesOtherShapesWithTheirNumbers) {
  Given scalar({}, {});
  EXPECT_MENTIONS(scalar.refused<Unsupported>(), "has 0 dimensions");
  Given cube({2, 3, 4}, {});
  EXPECT_MENTIONS(cube.refused<Unsupported>(), "has 3 dimensions");
  Given negative({3, -4}, {});
  EXPECT_MENTIONS(negative.refused(), "shape [3, -4]");
  Given no_shape({3, 4}, {});
  no_shape.dl().shape = nullptr;
  EXPECT_MENTIONS(no_shape.refused(), "has no shape");
  Given no_data({3, 4}, {});
  no_data.dl().data = nullptr;
  EXPECT_MENTIONS(no_data.refused(), "shape [3, 4] has null data");
  Given between({3, 4}, {});
  between.dl().byte_offset = 2;
  EXPECT_MENTIONS(between.refused<Unsupported>(), "byte_offset 2");
}

TEST(Dlpack, RefusesOtherStridesWithTheirNumbers) {
  const auto refused = [](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
    return Given(std::move(shape), std::move(strides)).refused<Unsupported>();
  };
  EXPECT_MENTIONS(refused({3, 4}, {1, 3}), "shape [3, 4] has the strides [1, 3]");  // transposed
  EXPECT_MENTIONS(refused({3, 4}, {8, 2}), "strides [8, 2]");
  EXPECT_MENTIONS(refused({3, 4}, {-4, 1}), "strides [-4, 1]");
  EXPECT_MENTIONS(refused({3, 4}, {0, 1}), "strides [0, 1]");  // broadcast
  EXPECT_MENTIONS(refused({3, 4}, {3, 1}), "strides [3, 1]");  // rows that overlap
  EXPECT_MENTIONS(refused({5}, {-1}), "shape [5] has the strides [-1]");
  EXPECT_MENTIONS(refused({5}, {0}), "strides [0]");
}

TEST(Dlpack, RefusesAnotherVersionAndWritingWhatIsReadOnly) {
  Given given({3, 4}, {});
  given.tensor.flags = DLPACK_FLAG_BITMASK_READ_ONLY;
  expect_view(view_of_dlpack(given.tensor), given.elements.data(), 3, 4, 4);
  EXPECT_MENTIONS(refusal("the DLPack tensor", [&] { writable_view_of_dlpack(given.tensor); }), "read-only");
  EXPECT_MENTIONS(refusal("legacy_dlpack", [&] { legacy_dlpack(&given.tensor); }), "read-only");
  given.tensor.version = {2, 5};
  given.dl().shape = nullptr;  // nothing else is looked at
  for (const auto& call : std::initializer_list<void (*)(DLManagedTensorVersioned&)>{
           [](DLManagedTensorVersioned& tensor) { view_of_dlpack(tensor); },
           [](DLManagedTensorVersioned& tensor) { writable_view_of_dlpack(tensor); },
           [](DLManagedTensorVersioned& tensor) { legacy_dlpack(&tensor); }})
    EXPECT_MENTIONS(refusal<Unsupported>("the tensor is one of DLPack 2.5", [&] { call(given.tensor); }), "version 1");
  EXPECT_EQ(given.deleted, 0);
  EXPECT_MENTIONS(refusal("legacy_dlpack", [] { legacy_dlpack(nullptr); }), "null");
}

struct Deleter {
  void operator()(DLManagedTensorVersioned* tensor) const { tensor->deleter(tensor); }
  void operator()(DLManagedTensor* tensor) const { tensor->deleter(tensor); }
};
using Tensor = std::unique_ptr<DLManagedTensorVersioned, Deleter>;
using LegacyTensor = std::unique_ptr<DLManagedTensor, Deleter>;

template <class T>
void expect_tensor(const DLTensor& tensor, const std::vector<std::int64_t>& shape, const std::vector<T>& elements) {
  EXPECT_EQ(tensor.device.device_type, kDLCPU);
  EXPECT_EQ(tensor.device.device_id, 0);
  EXPECT_EQ(tensor.dtype.code, kDLFloat);
  EXPECT_EQ(tensor.dtype.bits, 8 * sizeof(T));
  EXPECT_EQ(tensor.dtype.lanes, 1);
  EXPECT_EQ(tensor.byte_offset, 0u);
  EXPECT_EQ(std::vector<std::int64_t>(tensor.shape, tensor.shape + tensor.ndim), shape);
  EXPECT_EQ(tensor.strides[tensor.ndim - 1], 1);
  if (tensor.ndim == 2) {
    EXPECT_EQ(tensor.strides[0], tensor.shape[1]);
  }
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.data) % 256, 0u);
  const T* const data = static_cast<const T*>(tensor.data);
  EXPECT_EQ(std::vector<T>(data, data + elements.size()), elements);
}

template <class T>
void export_copies(Precision precision) {
  TrainingSpec training{.precision = precision, .device = {DeviceKind::cpu}};
  auto trainer = std::make_unique<Trainer>(NetworkSpec{.widths = {3, 2}, .bias = true}, training);
  const std::vector<T> weight = {1, 2, 3, 4, 5, 6}, bias = {0.5, -0.5}, x = {1, 0, 0, 0, 1, 1};
  trainer->write_weight(0, {weight.data(), 3, 2});
  trainer->write_bias(0, {bias.data(), 1, 2});
  const Tensor of_weight(weight_to_dlpack(*trainer, 0)), of_bias(bias_to_dlpack(*trainer, 0));
  const Tensor predicted(predict_to_dlpack(*trainer, {x.data(), 2, 3}));
  const Tensor nothing(predict_to_dlpack(*trainer, {x.data(), 0, 3}));
  const LegacyTensor legacy(legacy_dlpack(weight_to_dlpack(*trainer, 0)));
  trainer.reset();  // the copies stay
  for (const Tensor* tensor : {&of_weight, &of_bias, &predicted}) {
    EXPECT_EQ((*tensor)->version.major, 1u);
    EXPECT_EQ((*tensor)->flags, DLPACK_FLAG_BITMASK_IS_COPIED);
  }
  expect_tensor<T>(of_weight->dl_tensor, {3, 2}, weight);
  expect_tensor<T>(legacy->dl_tensor, {3, 2}, weight);
  expect_tensor<T>(of_bias->dl_tensor, {2}, bias);
  expect_tensor<T>(predicted->dl_tensor, {2, 2}, {1.5, 1.5, 8.5, 9.5});
  expect_tensor<T>(nothing->dl_tensor, {0, 2}, {});
  EXPECT_EQ(nothing->dl_tensor.data, nullptr);
  const ConstMatrix back = view_of_dlpack(*of_weight);
  EXPECT_EQ(back.data, of_weight->dl_tensor.data);
  EXPECT_EQ(back.row_stride, 2);
}

TEST(Dlpack, ExportsCopiesInTheWorkingPrecision) {
  export_copies<float>(Precision::fp32);
  export_copies<double>(Precision::fp64);
}

TEST(Dlpack, ExportsRefuseWhatTheTrainerRefuses) {
  Trainer trainer(NetworkSpec{.widths = {3, 2}}, TrainingSpec{.device = {DeviceKind::cpu}});
  const std::vector<float> x(6);
  EXPECT_MENTIONS(refusal("", [&] { weight_to_dlpack(trainer, 1); }), "layer");
  EXPECT_MENTIONS(refusal("", [&] { weight_to_dlpack(trainer, -1); }), "layer");
  EXPECT_MENTIONS(refusal("the tensor lies", [&] { weight_to_dlpack(trainer, 0, MemorySpace::device); }), "plan 'cpu'");
  EXPECT_MENTIONS(refusal("", [&] { bias_to_dlpack(trainer, 0); }), "bias");
  EXPECT_MENTIONS(refusal("", [&] { predict_to_dlpack(trainer, {x.data(), 3, 2}); }), "[3, 2]");
  EXPECT_MENTIONS(refusal("", [&] { predict_to_dlpack(trainer, {x.data(), -1, 3}); }), "-1");
  EXPECT_MENTIONS(refusal("", [&] { predict_to_dlpack(trainer, {x.data(), INT64_MAX / 3, 3}); }), "");
}

TEST(Dlpack, ALegacyTensorOwnsTheOther) {
  Given given({3, 4}, {});
  LegacyTensor legacy(legacy_dlpack(&given.tensor));
  EXPECT_EQ(given.deleted, 0);
  EXPECT_EQ(legacy->dl_tensor.data, given.elements.data());
  legacy.reset();
  EXPECT_EQ(given.deleted, 1);
  given.tensor.deleter = nullptr;  // a producer may have none
  legacy.reset(legacy_dlpack(&given.tensor));
  legacy.reset();
  EXPECT_EQ(given.deleted, 1);
}

}  // namespace
}  // namespace deviceloop
