// How an executor of a GPU takes matrices to the device and back: the elements arrive in their order, and the host has
// no second copy of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "../../cuda/executors/device_executor.h"
#include "simt/control.h"

// Of the address sanitizer, which all tests of the fixture run under; GCC does not install its header.
extern "C" {
std::size_t __sanitizer_get_current_allocated_bytes();
int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*, std::size_t),
                                              void (*free_hook)(const volatile void*));
}

namespace deviceloop {
namespace {

/// An executor of which only the parameters are used, here the one weight of a layer.
template <class T>
class Memory final : public cuda::DeviceExecutor<T> {
 public:
  explicit Memory(const NetworkSpec& network)
      : cuda::DeviceExecutor<T>(network, {}, Plan{.executor = ExecutorKind::graph}, CudaOptions{}) {
    const auto bytes = static_cast<std::uint64_t>(network.in_features(0) * network.out_features(0)) * sizeof(T);
    this->build([&] { this->take_arena(bytes, 0, 0); });
  }
  ~Memory() override { this->leave(); }

  void set_data(const TrainingData&) override {}
  void enqueue_step(double*) override {}
  void enqueue(std::int64_t, std::int64_t) override {}
  double loss(std::int64_t) override { return 0; }
  void write_state(int, ConstMatrix in) override {
    this->alive([&] { this->upload_matrix(this->template at<T>(0), in); });
  }
  const Step& step() const override { return step_; }
  GramRun* gram_run() override { return nullptr; }

 private:
  using Base = cuda::DeviceExecutor<T>;
  T* state_at(const ParameterInfo&) override { return this->template at<T>(0); }
  T* tensor_at(TensorId) override { return this->template at<T>(0); }
  typename Base::PredictRoom predict_room() const override { return {this->template at<T>(0), 1}; }
  const T* enqueue_predict(std::int64_t) const override { return this->template at<T>(0); }

  const Step step_;
};

std::size_t most_allocated = 0;
void see_allocation(const volatile void*, std::size_t) {
  most_allocated = std::max(most_allocated, __sanitizer_get_current_allocated_bytes());
}

/// The most that `work` has allocated at one time.
template <class Work>
std::size_t peak_of(const Work& work) {
  [[maybe_unused]] static const int installed =
      __sanitizer_install_malloc_and_free_hooks(see_allocation, [](const volatile void*) {});
  const std::size_t before = most_allocated = __sanitizer_get_current_allocated_bytes();
  work();
  return most_allocated - before;
}

struct Shape {
  std::int64_t rows, columns, row_stride;
};

// Several pieces of whole rows, the last one smaller; rows that are larger than a piece; less than a piece.
constexpr Shape kShapes[] = {{1100, 2500, 2503},    {1100, 2500, 2500}, {3, 1100001, 1100004},
                             {1, 1100001, 1100001}, {5, 7, 7},          {5, 7, 9}};

template <class T, class In>
void check_transfer(const Shape& shape) {
  SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.columns) + ", " + std::to_string(sizeof(In)) +
               " to " + std::to_string(sizeof(T)) + " bytes");
  simt::reset();
  const std::int64_t elements = shape.rows * shape.columns;
  const auto at = [&](std::int64_t i) {
    return static_cast<std::size_t>(i / shape.columns * shape.row_stride + i % shape.columns);
  };
  std::vector<In> in(static_cast<std::size_t>(shape.rows * shape.row_stride), In(-1)), out = in;
  for (std::int64_t i = 0; i < elements; ++i) in[at(i)] = static_cast<In>(i);
  Memory<T> memory(NetworkSpec{.widths = {shape.rows, shape.columns}});

  const int before = simt::counts().copies;
  const std::size_t up =
      peak_of([&] { memory.write_state(0, ConstMatrix(in.data(), shape.rows, shape.columns, shape.row_stride)); });
  const int copies = simt::counts().copies - before;
  std::vector<T> on_device(static_cast<std::size_t>(elements));
  std::memcpy(on_device.data(), simt::device_memory(0).data(), on_device.size() * sizeof(T));
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < elements; ++i) wrong += on_device[static_cast<std::size_t>(i)] != static_cast<T>(i);
  EXPECT_EQ(wrong, 0);

  const std::size_t down =
      peak_of([&] { memory.read_state(0, Matrix(out.data(), shape.rows, shape.columns, shape.row_stride)); });
  EXPECT_TRUE(out == in);  // what lies between the rows too

  if (std::is_same_v<T, In> && shape.row_stride == shape.columns) {
    EXPECT_EQ(copies, 1);
    EXPECT_LT(down, 1u << 16);
  } else {
    const auto piece = static_cast<std::size_t>(std::min<std::int64_t>(kPieceBytes, elements * sizeof(T)));
    EXPECT_GE(up, piece) << "the counter sees nothing";
    EXPECT_LT(up, 3 * piece + (1 << 16));  // the fixture has copies of its own
    EXPECT_LT(down, piece + (1 << 16));
  }
}

TEST(Transfer, KeepsEveryElementAndTakesAPieceOfTheHost) {
  for (const Shape& shape : kShapes) {
    check_transfer<float, float>(shape);
    check_transfer<float, double>(shape);
    check_transfer<double, float>(shape);
    check_transfer<double, double>(shape);
  }
  simt::reset();
}

}  // namespace
}  // namespace deviceloop
