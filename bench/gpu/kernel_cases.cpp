// kernel/cuda/...: the kernels of <deviceloop/cuda.h> on the current GPU, and CUB's reduction beside the squared error.
// A sample is a graph of launches that take the copies of the data in turn; the last copy's results are checked.
#include <deviceloop/cuda.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <mutex>

#include "../../host/matrix_ops.h"
#include "../parallel.h"
#include "../random_data.h"
#include "cases.h"
#include "device.h"
#include "squared_error_cub.h"

namespace deviceloop::bench {
namespace {

constexpr std::int64_t kMostCopies = 256;
constexpr double kCachesToFill = 4;

enum class Kernel {
  relu,
  relu_gradient,
  mask_gradient,
  sgd_update,
  squared_error,
  squared_error_loss,
  squared_error_cub,
  bias_relu,
  column_sums,
  narrow_linear,
  narrow_linear_gradient
};

/// What a kernel takes and gives, of rows x features elements; a layer is one of `features` inputs and one output.
struct Arrays {
  std::int64_t first = 0, second = 0, weights = 0;  ///< elements read; weights are the same for all copies
  std::int64_t out = 0, sums = 0;                   ///< elements written
  bool loss = false;                                ///< a double is written
  bool marked = false;                              ///< `first` is a hidden layer's output
  bool updated = false;                             ///< `out` begins as `first`, and is read in its place
};

Arrays arrays_of(Kernel kernel, std::int64_t rows, std::int64_t features) {
  const std::int64_t count = rows * features;
  switch (kernel) {
    case Kernel::relu:
      return {.first = count, .out = count};
    case Kernel::relu_gradient:
      return {.first = count, .second = count, .out = count};
    case Kernel::mask_gradient:
      return {.first = count, .second = count, .out = count, .marked = true};
    case Kernel::sgd_update:
      return {.first = count, .second = count, .out = count, .updated = true};
    case Kernel::squared_error:
      return {.first = count, .second = count, .out = count, .loss = true};
    case Kernel::squared_error_loss:
    case Kernel::squared_error_cub:
      return {.first = count, .second = count, .loss = true};
    case Kernel::bias_relu:
      return {.first = count, .weights = features, .out = count};
    case Kernel::column_sums:
      return {.first = count, .sums = features};
    case Kernel::narrow_linear:
      return {.first = count, .weights = features, .out = rows};
    case Kernel::narrow_linear_gradient:
      break;
  }
  return {.first = count, .second = rows, .weights = features, .out = count, .sums = features, .marked = true};
}

template <class T>
std::size_t workspace_of(Kernel kernel, std::int64_t rows, std::int64_t features) {
  switch (kernel) {
    case Kernel::squared_error:
    case Kernel::squared_error_loss:
      return cuda::squared_error_workspace(rows * features);
    case Kernel::squared_error_cub:
      return squared_error_cub(nullptr, static_cast<const T*>(nullptr), nullptr, rows * features, nullptr, 0, nullptr);
    case Kernel::column_sums:
      return cuda::column_sums_workspace(rows, features);
    case Kernel::narrow_linear_gradient:
      return cuda::narrow_linear_gradient_workspace(rows, features, 1);
    default:
      return 0;
  }
}

template <class T>
double bytes_of(const Arrays& arrays) {
  return static_cast<double>(arrays.first + arrays.second + arrays.weights + arrays.out + arrays.sums) * sizeof(T) +
         (arrays.loss ? sizeof(double) : 0);
}

/// What a sum may be off by, of terms with these absolute values together: at most 32 are added in working precision.
template <class T>
double sum_tolerance(double magnitude) {
  return magnitude * (sizeof(T) == 4 ? 1e-6 : 1e-14);
}

template <class T>
void expect_near(const std::string& what, T got, double expected, double tolerance) {
  if (!(std::abs(static_cast<double>(got) - expected) <= tolerance))
    throw WrongResult(what + " is " + std::to_string(got) + ", not " + std::to_string(expected));
}

/// Throws for the first of the elements `begin` to `end`, at `got`, that is not right(i, element).
template <class T, class Right>
void expect_all(const T* got, std::int64_t begin, std::int64_t end, const Right& right) {
  constexpr std::int64_t kElementsOfAThread = 1 << 14;
  std::atomic<std::int64_t> wrong{end};
  in_parallel(
      end - begin,
      [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = begin + first; i < begin + last; ++i) {
          if (right(i, got[i - begin])) continue;
          std::int64_t before = wrong;
          while (i < before && !wrong.compare_exchange_weak(before, i)) {
          }
          return;
        }
      },
      kElementsOfAThread);
  if (wrong < end) throw WrongResult("element " + std::to_string(wrong) + " is " + std::to_string(got[wrong - begin]));
}

template <class T>
bool same_bits(T one, T other) {
  return std::memcmp(&one, &other, sizeof(T)) == 0;
}

template <class T>
class GpuKernelWork final : public Work {
 public:
  GpuKernelWork(Kernel kernel, std::int64_t rows, std::int64_t features, std::int64_t copies, std::uint64_t seed,
                const Spoil& spoil)
      : kernel_(kernel),
        rows_(rows),
        features_(features),
        copies_(copies),
        seed_(seed),
        arrays_(arrays_of(kernel, rows, features)),
        first_(copies * arrays_.first),
        second_(copies * arrays_.second),
        weights_(arrays_.weights),
        out_(copies * arrays_.out),
        sums_(copies * arrays_.sums),
        loss_(arrays_.loss ? copies : 0),
        workspace_(static_cast<std::int64_t>(workspace_of<T>(kernel, rows, features))) {
    fill_random(first_, seed, kFirst, arrays_.marked, stream_);
    fill_random(second_, seed, kSecond, false, stream_);
    fill_random(weights_, seed, kThird, false, stream_);
    reset();
    batch_ = Batch(copies, stream_, [&](std::int64_t copy, cudaStream_t stream) {
      enqueue(copy, stream);
      if (!spoil) return;
      const auto apply = [&](const auto& array, std::int64_t count) {
        if (count > 0)
          spoil(array.data() + copy * count, static_cast<std::size_t>(count) * sizeof(*array.data()), stream);
      };
      apply(out_, arrays_.out);
      apply(sums_, arrays_.sums);
      apply(loss_, arrays_.loss ? 1 : 0);
    });
  }

  Demand demand() const override {
    Demand demand;
    demand.device = Device::cuda;
    demand.precision = sizeof(T) == 4 ? Precision::fp32 : Precision::fp64;
    demand.elements = static_cast<double>(rows_ * features_);
    demand.bytes = bytes_of<T>(arrays_);
    demand.footprint = demand.bytes * static_cast<double>(copies_);
    demand.reads = arrays_.second == arrays_.first ? 2 : 1;
    demand.writes = arrays_.out == arrays_.first ? 1 : 0;
    return demand;
  }

  void poison() override {
    out_.poison(stream_);
    sums_.poison(stream_);
    loss_.poison(stream_);
  }

  double run(std::int64_t calls) override {
    reset();
    updates_ = batch_.replays(calls);
    return batch_.us_of_a_launch(calls, stream_);
  }

  void check() override {
    if (arrays_.out > 0)
      out_.read_parts((copies_ - 1) * arrays_.out, arrays_.out, staging_, stream_,
                      [this](const T* part, std::int64_t begin, std::int64_t end) { check_out(part, begin, end); });
    if (arrays_.sums > 0) check_sums(sums_.read((copies_ - 1) * arrays_.sums, arrays_.sums, stream_));
    if (arrays_.loss) check_loss(loss_.read(copies_ - 1, 1, stream_)[0]);
  }

 private:
  void reset() const {
    if (arrays_.updated)
      DEVICELOOP_CHECK_CUDA(
          cudaMemcpyAsync(out_.data(), first_.data(), out_.bytes(), cudaMemcpyDeviceToDevice, stream_.get()));
  }

  void enqueue(std::int64_t copy, cudaStream_t stream) const {
    const T* const first = first_.data() + copy * arrays_.first;
    const T* const second = second_.data() + copy * arrays_.second;
    const T* const weights = weights_.data();
    T* const out = out_.data() + copy * arrays_.out;
    T* const sums = sums_.data() + copy * arrays_.sums;
    double* const loss = loss_.data() + (arrays_.loss ? copy : 0);
    void* const workspace = workspace_.data();
    const std::int64_t count = rows_ * features_;
    switch (kernel_) {
      case Kernel::relu:
        return cuda::relu(out, first, count, stream);
      case Kernel::relu_gradient:
        return cuda::relu_gradient(out, first, second, count, stream);
      case Kernel::mask_gradient:
        return cuda::mask_gradient(out, first, second, count, stream);
      case Kernel::sgd_update:
        return cuda::sgd_update(out, second, kRate, count, stream);
      case Kernel::squared_error:
        return cuda::squared_error(loss, out, first, second, count, workspace, workspace_.bytes(), stream);
      case Kernel::squared_error_loss:
        return cuda::squared_error(loss, static_cast<T*>(nullptr), first, second, count, workspace, workspace_.bytes(),
                                   stream);
      case Kernel::squared_error_cub:
        squared_error_cub(loss, first, second, count, workspace, workspace_.bytes(), stream);
        return;
      case Kernel::bias_relu:
        return cuda::bias_relu(out, first, weights, rows_, features_, stream);
      case Kernel::column_sums:
        return cuda::column_sums(sums, first, rows_, features_, workspace, workspace_.bytes(), stream);
      case Kernel::narrow_linear:
        return cuda::narrow_linear(out, first, weights, static_cast<const T*>(nullptr), rows_, features_, 1, stream);
      case Kernel::narrow_linear_gradient:
        return cuda::narrow_linear_gradient(out, sums, first, second, weights, rows_, features_, 1, workspace,
                                            workspace_.bytes(), stream);
    }
  }

  // What the last copy of the inputs holds.
  T first(std::int64_t i) const {
    i += (copies_ - 1) * arrays_.first;
    return arrays_.marked ? random_activation<T>(seed_, kFirst, i) : random_value<T>(seed_, kFirst, i);
  }
  T second(std::int64_t i) const { return random_value<T>(seed_, kSecond, i + (copies_ - 1) * arrays_.second); }
  T weight(std::int64_t i) const { return random_value<T>(seed_, kThird, i); }

  T expected(std::int64_t i) const {
    const T a = first(i);
    switch (kernel_) {
      case Kernel::relu:
        return a < 0 ? T(0) : a;
      case Kernel::relu_gradient:
        return a < 0 ? T(0) : second(i);
      case Kernel::mask_gradient:
        return std::signbit(a) ? T(0) : second(i);
      case Kernel::bias_relu: {
        const T sum = a + weight(i % features_);
        return sum < 0 ? T(-0.0) : sum + T(0);
      }
      case Kernel::narrow_linear_gradient:
        return std::signbit(a) ? T(0) : second(i / features_) * weight(i % features_);
      case Kernel::sgd_update: {
        T updated = a;
        for (std::int64_t update = 0; update < updates_; ++update) updated = std::fma(-kRate, second(i), updated);
        return updated;
      }
      default:
        return 2 * (a - second(i));
    }
  }

  void check_out(const T* got, std::int64_t begin, std::int64_t end) const {
    if (kernel_ != Kernel::narrow_linear)
      return expect_all(got, begin, end, [this](std::int64_t i, T value) { return same_bits(value, expected(i)); });
    expect_all(got, begin, end, [this](std::int64_t row, T value) {
      double sum = 0, magnitude = 0;
      for (std::int64_t j = 0; j < features_; ++j) {
        const double term = static_cast<double>(first(row * features_ + j)) * static_cast<double>(weight(j));
        sum += term;
        magnitude += std::abs(term);
      }
      return std::abs(static_cast<double>(value) - sum) <= sum_tolerance<T>(magnitude);
    });
  }

  void check_sums(const std::vector<T>& got) const {
    std::vector<double> sums(got.size()), magnitudes(got.size());
    std::mutex adding;
    in_parallel(rows_, [&](std::int64_t begin, std::int64_t end) {
      std::vector<double> mine(got.size()), magnitude(got.size());
      for (std::int64_t row = begin; row < end; ++row) {
        const double factor = kernel_ == Kernel::column_sums ? 1 : static_cast<double>(second(row));
        for (std::size_t j = 0; j < mine.size(); ++j) {
          const double term = factor * static_cast<double>(first(row * features_ + static_cast<std::int64_t>(j)));
          mine[j] += term;
          magnitude[j] += std::abs(term);
        }
      }
      const std::lock_guard lock(adding);
      for (std::size_t j = 0; j < mine.size(); ++j) {
        sums[j] += mine[j];
        magnitudes[j] += magnitude[j];
      }
    });
    for (std::size_t j = 0; j < got.size(); ++j)
      expect_near("sum " + std::to_string(j), got[j], sums[j], sum_tolerance<T>(magnitudes[j]));
  }

  void check_loss(double got) const {
    double loss = 0;
    std::mutex adding;
    in_parallel(rows_ * features_, [&](std::int64_t begin, std::int64_t end) {
      double mine = 0;
      for (std::int64_t i = begin; i < end; ++i) {
        const double difference = static_cast<double>(first(i)) - static_cast<double>(second(i));
        mine += difference * difference;
      }
      const std::lock_guard lock(adding);
      loss += mine;
    });
    expect_near("the loss", got, loss, loss * (sizeof(T) == 4 ? 1e-6 : 1e-12));
  }

  static constexpr T kRate = T(0.001);

  Kernel kernel_;
  std::int64_t rows_, features_, copies_;
  std::uint64_t seed_;
  Arrays arrays_;
  cuda::StreamOwner stream_;
  DeviceArray<T> first_, second_, weights_, out_, sums_;
  DeviceArray<double> loss_;
  DeviceArray<char> workspace_;
  cuda::PinnedBuffer staging_;
  Batch batch_;
  std::int64_t updates_ = 0;  ///< of `out` since reset
};

struct Named {
  const char* name;
  Kernel kernel;
};
constexpr Named kByElement[] = {{"relu", Kernel::relu},
                                {"relu_gradient", Kernel::relu_gradient},
                                {"mask_gradient", Kernel::mask_gradient},
                                {"sgd_update", Kernel::sgd_update},
                                {"squared_error", Kernel::squared_error},
                                {"squared_error_loss", Kernel::squared_error_loss},
                                {"squared_error_cub", Kernel::squared_error_cub}};
constexpr Named kByRow[] = {{"bias_relu", Kernel::bias_relu},
                            {"column_sums", Kernel::column_sums},
                            {"narrow_linear", Kernel::narrow_linear},
                            {"narrow_linear_gradient", Kernel::narrow_linear_gradient}};

/// None for one of the CPU's blocks, or of the other kind.
template <std::size_t count>
std::optional<Kernel> kernel_of(const Values& values, const Named (&kernels)[count]) {
  for (const Named& each : kernels)
    if (values.at("kernel") == each.name) return each.kernel;
  return std::nullopt;
}

template <std::size_t count>
std::vector<std::string> names_of(const Named (&kernels)[count]) {
  std::vector<std::string> names;
  for (const Named& each : kernels) names.emplace_back(each.name);
  return names;
}

template <class T>
Case case_of(Kernel kernel, std::int64_t rows, std::int64_t features, const GpuCaps& gpu, std::uint64_t seed,
             const Spoil& spoil) {
  const double bytes = bytes_of<T>(arrays_of(kernel, rows, features));
  const auto copies = static_cast<std::int64_t>(
      std::clamp(kCachesToFill * static_cast<double>(gpu.l2_bytes) / bytes, 1.0, static_cast<double>(kMostCopies)));
  Case made;
  made.device = Device::cuda;
  if (bytes * static_cast<double>(copies) > 0.9 * static_cast<double>(gpu.memory_bytes))
    made.refused = "its arrays take more memory than the GPU has";
  made.prepare = [=] { return std::make_unique<GpuKernelWork<T>>(kernel, rows, features, copies, seed, spoil); };
  return made;
}

Case case_of(Precision precision, Kernel kernel, std::int64_t rows, std::int64_t features, const GpuCaps& gpu,
             std::uint64_t seed, const Spoil& spoil) {
  return with_type(element_type(precision),
                   [&]<class T>(T*) { return case_of<T>(kernel, rows, features, gpu, seed, spoil); });
}

}  // namespace

std::vector<Block> gpu_kernel_blocks(const GpuCaps& gpu, std::uint64_t seed, const Spoil& spoil) {
  const auto by_element = [=](const Values& values) -> std::optional<Case> {
    const std::optional<Kernel> kernel = kernel_of(values, kByElement);
    if (!kernel) return std::nullopt;
    const std::int64_t count = count_of(values, "n");
    const Precision precision = precision_of(values);
    Case made = case_of(precision, *kernel, count, 1, gpu, seed, spoil);
    made.name =
        "kernel/cuda/" + values.at("kernel") + "/n=" + std::to_string(count) + "/" + deviceloop::name(precision);
    return made;
  };
  const auto by_row = [=](const Values& values) -> std::optional<Case> {
    const std::optional<Kernel> kernel = kernel_of(values, kByRow);
    if (!kernel) return std::nullopt;
    const std::int64_t batch = count_of(values, "batch"), features = count_of(values, "features");
    const Precision precision = precision_of(values);
    Case made = case_of(precision, *kernel, batch, features, gpu, seed, spoil);
    made.name = "kernel/cuda/" + values.at("kernel") + "/batch=" + std::to_string(batch) +
                "/features=" + std::to_string(features) + "/" + deviceloop::name(precision);
    return made;
  };
  using Texts = std::vector<std::string>;
  const auto elements = [&](bool by_default, Texts kernels, Texts counts, Texts precisions) {
    return Block{by_default,
                 {{"kernel", std::move(kernels)}, {"n", std::move(counts)}, {"precision", std::move(precisions)}},
                 by_element};
  };
  const auto rows = [&](bool by_default, Texts batches, Texts features, Texts precisions) {
    return Block{by_default,
                 {{"kernel", names_of(kByRow)},
                  {"batch", std::move(batches)},
                  {"features", std::move(features)},
                  {"precision", std::move(precisions)}},
                 by_row};
  };
  // By default arrays of 4 KiB, whose time is that of a launch, of 4 MiB, and of 1 GiB.
  const Texts all = names_of(kByElement);
  return {elements(true, all, {"1024", "1048576", "268435456"}, {"fp32"}),
          elements(true, {"relu", "relu_gradient", "squared_error"}, {"134217728"}, {"fp64"}),
          rows(true, {"128", "1048576"}, {"100"}, {"fp32"}),
          elements(false, all, powers_of_two(10, 28), {"fp32", "fp64"}),
          rows(false, {"128", "1024", "16384", "1048576"}, {"64", "100", "1000"}, {"fp32", "fp64"})};
}

}  // namespace deviceloop::bench
