// kernel/... on the CPU. The arrays stay where they are from call to call, so that small ones are those of a cache, and
// so is their limit.
#include <deviceloop/kernels.h>
#include <cmath>
#include <cstring>

#include <chrono>
#include <new>
#include <tuple>

#include "../host/matrix_ops.h"
#include "cases.h"
#include "random_data.h"

namespace deviceloop::bench {
namespace {

using Clock = std::chrono::steady_clock;

/// On a border of 64 bytes, with nothing in it.
template <class T>
class Array {
 public:
  explicit Array(std::int64_t count)
      : count_(static_cast<std::size_t>(count)),
        data_(static_cast<T*>(::operator new(count_ * sizeof(T), std::align_val_t(64)))) {}
  ~Array() { ::operator delete(data_, std::align_val_t(64)); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  std::span<T> span() { return {data_, count_}; }

 private:
  std::size_t count_;
  T* data_;
};

enum class Kernel { relu, relu_gradient, squared_error };

template <class T>
class KernelWork final : public Work {
 public:
  KernelWork(Kernel kernel, std::int64_t count, std::uint64_t seed, const Kernels<T>& kernels)
      : kernel_(kernel),
        count_(count),
        seed_(seed),
        kernels_(kernels),
        out_(count),
        first_(count),
        second_(reads() == 2 ? count : 0) {
    fill(first_, kFirst);
    if (reads() == 2) fill(second_, kSecond);
  }

  Demand demand() const override {
    Demand demand;
    demand.precision = sizeof(T) == 4 ? Precision::fp32 : Precision::fp64;
    demand.elements = static_cast<double>(count_);
    demand.bytes = demand.footprint = demand.elements * sizeof(T) * (reads() + 1);
    demand.reads = reads();
    return demand;
  }

  void poison() override {
    std::memset(static_cast<void*>(out_.span().data()), 0xff, out_.span().size_bytes());
    loss_ = std::nan("");
  }

  double run(std::int64_t calls) override {
    const std::span<T> out = out_.span();
    const std::span<const T> first = first_.span(), second = second_.span();
    const Clock::time_point start = Clock::now();
    for (std::int64_t call = 0; call < calls; ++call) {
      if (kernel_ == Kernel::relu)
        kernels_.relu(out, first);
      else if (kernel_ == Kernel::relu_gradient)
        kernels_.relu_gradient(out, first, second);
      else
        loss_ = kernels_.squared_error(out, first, second);
    }
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / static_cast<double>(calls);
  }

  void check() override {
    double loss = 0;
    for (std::int64_t i = 0; i < count_; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const T first = first_.span()[at], got = out_.span()[at];
      T expected = first;
      if (kernel_ == Kernel::squared_error) {
        const T second = second_.span()[at];
        const double difference = static_cast<double>(first) - static_cast<double>(second);
        loss += difference * difference;
        expected = 2 * (first - second);
      } else if (first < 0) {
        expected = 0;
      } else if (kernel_ == Kernel::relu_gradient) {
        expected = second_.span()[at];
      }
      if (std::memcmp(&got, &expected, sizeof(T)) != 0)
        throw WrongResult("element " + std::to_string(i) + " is " + std::to_string(got) + ", not " +
                          std::to_string(expected));
    }
    const double tolerance = sizeof(T) == 4 ? 1e-6 : 1e-12;
    if (kernel_ == Kernel::squared_error && !(std::abs(loss_ - loss) <= tolerance * loss))
      throw WrongResult("the loss is " + std::to_string(loss_) + ", not " + std::to_string(loss));
  }

 private:
  int reads() const { return kernel_ == Kernel::relu ? 1 : 2; }
  void fill(Array<T>& array, std::uint64_t number) const {
    for (std::int64_t i = 0; i < count_; ++i)
      array.span()[static_cast<std::size_t>(i)] = random_value<T>(seed_, number, i);
  }

  Kernel kernel_;
  std::int64_t count_;
  std::uint64_t seed_;
  Kernels<T> kernels_;
  Array<T> out_, first_, second_;
  double loss_ = 0;
};

}  // namespace

template <class T>
Kernels<T> public_kernels() {
  return {[](std::span<T> out, std::span<const T> in) { deviceloop::relu(out, in); },
          [](std::span<T> dz, std::span<const T> z, std::span<const T> dh) { deviceloop::relu_gradient(dz, z, dh); },
          [](std::span<T> gradient, std::span<const T> prediction, std::span<const T> target) {
            return deviceloop::squared_error(gradient, prediction, target);
          }};
}
template Kernels<float> public_kernels();
template Kernels<double> public_kernels();

std::vector<Block> kernel_blocks(const CaseOptions& options, const Kernels<float>& fp32, const Kernels<double>& fp64) {
  const auto make = [=](const Values& values) -> std::optional<Case> {
    const std::string& name = values.at("kernel");
    Kernel kernel = Kernel::relu;
    if (name == "relu_gradient")
      kernel = Kernel::relu_gradient;
    else if (name == "squared_error")
      kernel = Kernel::squared_error;
    else if (name != "relu")
      return std::nullopt;  // one of a GPU alone
    const std::int64_t count = count_of(values, "n");
    const Precision precision = precision_of(values);
    Case made;
    made.name = "kernel/" + name + "/n=" + std::to_string(count) + "/" + deviceloop::name(precision);
    const double bytes = 3.0 * static_cast<double>(count) * static_cast<double>(size_of(element_type(precision)));
    const std::uint64_t free = options.caps.cpu.memory_bytes;
    if (free != 0 && bytes > 0.9 * static_cast<double>(free)) made.refused = "its arrays take more memory than is free";
    made.prepare = [=, seed = options.seed]() -> std::unique_ptr<Work> {
      const std::tuple kernels(fp32, fp64);
      return with_type(element_type(precision), [&]<class T>(T*) -> std::unique_ptr<Work> {
        return std::make_unique<KernelWork<T>>(kernel, count, seed, std::get<Kernels<T>>(kernels));
      });
    };
    return made;
  };
  const auto axes = [](std::vector<std::string> counts, std::vector<std::string> precisions) {
    return std::vector<Axis>{{"kernel", {"relu", "relu_gradient", "squared_error"}},
                             {"n", std::move(counts)},
                             {"precision", std::move(precisions)}};
  };
  return {{true, axes(powers_of_two(10, 24, 2), {"fp32"}), make},
          {true, axes(powers_of_two(10, 24, 7), {"fp64"}), make},
          {false, axes(powers_of_two(10, 28), {"fp32", "fp64"}), make}};
}

}  // namespace deviceloop::bench
