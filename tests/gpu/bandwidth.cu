// The bandwidth of the kernels of <deviceloop/cuda.h> against that of a plain copy, called by tests/gpu_check:
//
//     bandwidth [--json FILE] [--mib N] [--repetitions N]
//
// Three parts, each checked in the same run, on random data, with outputs filled with 0xff before:
//
//   rows      every kernel on arrays of N MiB (1024), in fp32 and fp64, in turn with cudaMemcpyAsync and an own copy
//   kernel
//             of 16 bytes an access: A B C ... A B C ..., so that a clock that changes changes all
//   latency   time a launch of the kernels on 2^10 .. 2^26 elements and on the shapes of a small network, from graphs
//   of
//             up to 256 launches, each on elements of its own, after the L2 has been filled with other data
//   variants  copy, ReLU and its gradient with other numbers of groups a thread, threads a block and cache hints
//
// Times are by CUDA events; rates and percentages are of medians. Bytes are those that a kernel cannot avoid: each
// input read once, each output written once. The bar is 92 % of the faster of the two copies, for ReLU, its gradient
// and the squared error on arrays of N MiB.
//
// Exits with 0 when every result was right, whether or not the bar is reached; with 1 and the reason when one was wrong
// or CUDA failed; with 2 where no GPU can be used.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <deviceloop/cuda.h>

namespace {

namespace dl = deviceloop::cuda;

constexpr double kBarPercent = 92;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(cudaError_t code, const char* call) {
  if (code != cudaSuccess)
    throw Failure{std::string(call) + ": " + cudaGetErrorName(code) + ": " + cudaGetErrorString(code)};
}
#define CHECK(call) check((call), #call)

// ---------------------------------------------------------------------------------------------------------------------
// Memory, random data, poison

template <class T>
class Device {
 public:
  explicit Device(std::int64_t count) : count_(count) {
    CHECK(cudaMalloc(&data_, static_cast<std::size_t>(std::max<std::int64_t>(count, 1)) * sizeof(T)));
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* get() const { return static_cast<T*>(data_); }
  std::int64_t count() const { return count_; }

 private:
  void* data_ = nullptr;
  std::int64_t count_;
};

__host__ __device__ inline std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Numbers in (-2, 2), never 0, half of them negative; `activations` makes those -0.0, as a hidden layer has them.
template <class T>
__global__ void fill(T* out, std::int64_t count, std::uint64_t seed, bool activations) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const std::uint64_t bits = mixed(seed + static_cast<std::uint64_t>(i));
    const double uniform = (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;  // in (0, 1)
    const double value = bits & 1 ? 2 * uniform : -2 * uniform;
    out[i] = activations && value < 0 ? T(-0.0) : static_cast<T>(value);
  }
}

template <class T>
void fill_random(T* out, std::int64_t count, std::uint64_t seed, bool activations = false) {
  fill<<<1024, 256>>>(out, count, seed << 40, activations);
  CHECK(cudaGetLastError());
}

constexpr int kPoison = 0xff;

template <class T>
void poison(T* out, std::int64_t count) {
  CHECK(cudaMemset(out, kPoison, static_cast<std::size_t>(count) * sizeof(T)));
}

template <class T>
__global__ void count_poison(unsigned long long* found, const T* data, std::int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  unsigned long long mine = 0;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
    mine += reinterpret_cast<const Bits*>(data)[i] == static_cast<Bits>(-1);
  if (mine > 0) atomicAdd(found, mine);
}

/// Fails where an element of `data` was not written since it was poisoned.
template <class T>
void check_written(const T* data, std::int64_t count) {
  const Device<unsigned long long> found(1);
  CHECK(cudaMemset(found.get(), 0, sizeof(unsigned long long)));
  count_poison<<<1024, 256>>>(found.get(), data, count);
  CHECK(cudaGetLastError());
  unsigned long long missing = 0;
  CHECK(cudaMemcpy(&missing, found.get(), sizeof missing, cudaMemcpyDeviceToHost));
  if (missing > 0) throw Failure{std::to_string(missing) + " elements were not written"};
}

// ---------------------------------------------------------------------------------------------------------------------
// The same on the host

template <class T>
std::vector<T> to_host(const T* data, std::int64_t count) {
  std::vector<T> host(static_cast<std::size_t>(count));
  CHECK(cudaMemcpy(host.data(), data, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}

/// Calls use(begin, count) for the first and the last elements and for stretches between them.
template <class Use>
void for_samples(std::int64_t count, std::int64_t granule, Use use) {
  constexpr std::int64_t kLength = 1024, kStretches = 62;
  const std::int64_t granules = count / granule, length = std::max<std::int64_t>(kLength / granule, 1);
  if (granules <= length * (kStretches + 2)) return use(std::int64_t{0}, granules * granule);
  use(std::int64_t{0}, length * granule);
  for (std::int64_t i = 0; i < kStretches; ++i) {
    const auto at =
        static_cast<std::int64_t>(mixed(static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(granules - length));
    use(at * granule, length * granule);
  }
  use((granules - length) * granule, length * granule);
}

/// Calls use(chunk, begin) with all elements, in order, in pieces of whole rows of `granule`.
template <class T, class Use>
void for_all(const T* data, std::int64_t count, std::int64_t granule, Use use) {
  const std::int64_t piece = std::max<std::int64_t>((std::int64_t{1} << 23) / granule, 1) * granule;
  for (std::int64_t begin = 0; begin < count; begin += piece)
    use(to_host(data + begin, std::min(piece, count - begin)), begin);
}

template <class T>
std::string shown(T value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", static_cast<double>(value));
  return text;
}

template <class T>
void expect_same_bits(T got, T expected, std::int64_t at) {
  if (std::memcmp(&got, &expected, sizeof(T)) != 0)
    throw Failure{"element " + std::to_string(at) + " is " + shown(got) + ", not " + shown(expected)};
}

template <class T>
void expect_near(T got, double expected, double tolerance, std::int64_t at) {
  if (!(std::abs(static_cast<double>(got) - expected) <= tolerance))
    throw Failure{"element " + std::to_string(at) + " is " + shown(got) + ", not " + shown(expected) + " within " +
                  shown(tolerance)};
}

/// What a sum of `magnitude` absolute terms may be off by, with up to 32 rounded additions before it goes on in double.
template <class T>
double sum_tolerance(double magnitude) {
  return magnitude * (std::is_same_v<T, float> ? 1e-6 : 1e-14);
}

template <class T>
void check_loss(const double* loss, const T* prediction, const T* target, std::int64_t count) {
  double expected = 0;
  for_all(prediction, count, 1, [&](const std::vector<T>& p, std::int64_t begin) {
    const std::vector<T> y = to_host(target + begin, static_cast<std::int64_t>(p.size()));
    double sum = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      const double difference = static_cast<double>(p[i]) - static_cast<double>(y[i]);
      sum += difference * difference;
    }
    expected += sum;
  });
  expect_near(to_host(loss, 1)[0], expected, expected * (std::is_same_v<T, float> ? 1e-6 : 1e-12), 0);
}

/// out[i] = function(a[i], b[i]) in the samples, bit for bit, and all written.
template <class T, class Function>
void check_map(const T* out, const T* a, const T* b, std::int64_t count, Function function) {
  check_written(out, count);
  for_samples(count, 1, [&](std::int64_t begin, std::int64_t length) {
    const std::vector<T> results = to_host(out + begin, length), as = to_host(a + begin, length),
                         bs = to_host(b + begin, length);
    for (std::size_t i = 0; i < results.size(); ++i)
      expect_same_bits(results[i], function(as[i], bs[i]), begin + static_cast<std::int64_t>(i));
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Copies and variants of the element-wise kernels: `turns` groups of 16 bytes a thread, loaded before the first is
// stored

enum class Operation { copy, relu, relu_gradient };

template <bool streaming>
__device__ inline float4 load(const float* from, std::int64_t group) {
  const auto* const groups = reinterpret_cast<const float4*>(from);
  return streaming ? __ldcs(groups + group) : groups[group];
}

template <bool streaming>
__device__ inline void store(float* to, std::int64_t group, float4 values) {
  auto* const groups = reinterpret_cast<float4*>(to);
  if (streaming)
    __stcs(groups + group, values);
  else
    groups[group] = values;
}

__device__ inline float kept(float z, float value) { return z < 0 ? 0.0f : value; }

/// `count` is a multiple of 4.
template <Operation operation, int turns, int threads, bool streaming>
__global__ void __launch_bounds__(threads)
    variant_kernel(float* out, const float* a, const float* b, std::int64_t count) {
  const std::int64_t first = std::int64_t{blockIdx.x} * turns * threads + threadIdx.x, groups = count / 4;
  float4 as[turns], bs[turns];
#pragma unroll
  for (int turn = 0; turn < turns; ++turn) {
    const std::int64_t group = first + turn * threads;
    if (group >= groups) continue;
    as[turn] = load<streaming>(a, group);
    if (operation == Operation::relu_gradient) bs[turn] = load<streaming>(b, group);
  }
#pragma unroll
  for (int turn = 0; turn < turns; ++turn) {
    const std::int64_t group = first + turn * threads;
    if (group >= groups) continue;
    float4 result = as[turn];
    if (operation != Operation::copy) {
      const float4 from = operation == Operation::relu ? as[turn] : bs[turn];
      result = {kept(as[turn].x, from.x), kept(as[turn].y, from.y), kept(as[turn].z, from.z), kept(as[turn].w, from.w)};
    }
    store<streaming>(out, group, result);
  }
}

template <Operation operation, int turns, int threads, bool streaming>
void launch_variant(float* out, const float* a, const float* b, std::int64_t count, cudaStream_t stream) {
  const std::int64_t in_block = std::int64_t{4} * turns * threads;
  variant_kernel<operation, turns, threads, streaming>
      <<<static_cast<unsigned>((count + in_block - 1) / in_block), threads, 0, stream>>>(out, a, b, count);
  CHECK(cudaGetLastError());
}

/// The copy that kernels are compared with, of `bytes`, a multiple of 16.
void launch_copy(void* out, const void* in, std::int64_t bytes, cudaStream_t stream) {
  launch_variant<Operation::copy, 4, 256, false>(static_cast<float*>(out), static_cast<const float*>(in), nullptr,
                                                 bytes / 4, stream);
}

/// Reads `count` groups; writes nothing, which the compiler cannot know.
__global__ void read_all(const float4* data, std::int64_t count, float* never) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  float sum = 0;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) sum += data[i].x;
  if (sum == 1e38f) *never = sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// Timing

class Event {
 public:
  Event() { CHECK(cudaEventCreate(&event_)); }
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event(const Event&) = delete;
  void record(cudaStream_t stream) { CHECK(cudaEventRecord(event_, stream)); }
  /// Microseconds from `start` to this.
  double since(const Event& start) const {
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, start.event_, event_));
    return 1000.0 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

struct Stream {
  Stream() { CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream); }
  Stream(const Stream&) = delete;
  void wait() const { CHECK(cudaStreamSynchronize(stream)); }
  cudaStream_t stream = nullptr;
};

struct Times {
  double median = 0, least = 0;
};

Times summed_up(std::vector<double> us) {
  std::sort(us.begin(), us.end());
  const std::size_t half = us.size() / 2;
  return {us.size() % 2 == 1 ? us[half] : (us[half - 1] + us[half]) / 2, us.front()};
}

/// One thing to time: `run` enqueues it, `prepare` and `verify` make sure that it computes what it should.
struct Case {
  std::string name, counted;  ///< counted: what the bytes are
  double bytes = 0;
  bool bar = false;
  std::function<void(cudaStream_t)> run;
  std::function<void()> prepare, verify;
  std::string error = {};
  Times times = {};

  double gb_per_s() const { return bytes / times.median / 1e3; }
};

/// Runs and checks each case once, then times those that were right in turn.
void measure(std::vector<Case>& cases, int repetitions, const Stream& stream) {
  for (Case& each : cases) {
    try {
      each.prepare();
      CHECK(cudaDeviceSynchronize());
      each.run(stream.stream);
      stream.wait();
      each.verify();
    } catch (const std::exception& failure) {
      each.error = failure.what();
      CHECK(cudaDeviceSynchronize());  // an error that lasts ends the program here
    }
  }
  constexpr int kWarmUps = 3;
  std::vector<std::vector<std::pair<Event, Event>>> events(cases.size());
  for (int round = -kWarmUps; round < repetitions; ++round) {
    // Each round begins elsewhere, so that no case always follows the same one.
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const std::size_t at = (i + static_cast<std::size_t>(round + kWarmUps)) % cases.size();
      if (!cases[at].error.empty()) continue;
      std::pair<Event, Event> pair;
      pair.first.record(stream.stream);
      cases[at].run(stream.stream);
      pair.second.record(stream.stream);
      if (round >= 0) events[at].push_back(std::move(pair));
    }
  }
  stream.wait();
  for (std::size_t at = 0; at < cases.size(); ++at) {
    std::vector<double> us;
    for (const auto& [start, end] : events[at]) us.push_back(end.since(start));
    if (!us.empty()) cases[at].times = summed_up(us);
  }
}

/// `launches` of enqueue(i, stream) in a graph.
class Graph {
 public:
  template <class Enqueue>
  Graph(int launches, const Stream& stream, Enqueue enqueue) {
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < launches; ++i) enqueue(i, stream.stream);
    CHECK(cudaStreamEndCapture(stream.stream, &graph));
    const cudaError_t code = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(code, "cudaGraphInstantiate");
  }
  ~Graph() { cudaGraphExecDestroy(executable_); }
  Graph(const Graph&) = delete;
  void launch(const Stream& stream) const { CHECK(cudaGraphLaunch(executable_, stream.stream)); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

// ---------------------------------------------------------------------------------------------------------------------
// The rows

template <class T>
constexpr const char* precision_of() {
  return std::is_same_v<T, float> ? "fp32" : "fp64";
}

/// The arrays of `bytes` each that all cases share. Sums and weights have buffers of their own.
template <class T>
struct Arrays {
  explicit Arrays(std::int64_t bytes)
      : count(bytes / static_cast<std::int64_t>(sizeof(T))),
        a(count),
        b(count),
        h(count),
        out(count),
        small(1 << 16),
        sums(1 << 16),
        loss(1),
        workspace(static_cast<std::int64_t>(
            std::max({dl::squared_error_workspace(count), dl::column_sums_workspace(count / 64, 64),
                      dl::column_sums_workspace(count / 1000, 1000), dl::column_sums_workspace(count / 100, 100),
                      dl::narrow_linear_gradient_workspace(count / 64, 64, 1),
                      dl::narrow_linear_gradient_workspace(count / 100, 100, 1),
                      dl::narrow_linear_gradient_workspace(count / 1000, 1000, 1)}))) {
    fill_random(a.get(), count, 1);
    fill_random(b.get(), count, 2);
    fill_random(h.get(), count, 3, true);
    fill_random(small.get(), small.count(), 4);
    CHECK(cudaDeviceSynchronize());
  }
  std::size_t workspace_bytes() const { return static_cast<std::size_t>(workspace.count()); }

  std::int64_t count;
  Device<T> a, b, h, out;
  Device<T> small;  ///< weights and biases
  Device<T> sums;
  Device<double> loss;
  Device<char> workspace;
};

/// The element-wise kernels and the squared error on the elements begin .. begin + n of the arrays.
template <class T>
std::vector<Case> element_cases(const Arrays<T>& arrays, std::int64_t begin, std::int64_t n, bool bar) {
  const std::string size = "/n=" + std::to_string(n) + "/" + precision_of<T>();
  const auto bytes = static_cast<double>(n) * sizeof(T);
  const T *a = arrays.a.get() + begin, *b = arrays.b.get() + begin, *h = arrays.h.get() + begin;
  T* const out = arrays.out.get() + begin;
  double* const loss = arrays.loss.get();
  void* const workspace = arrays.workspace.get();
  const std::size_t workspace_bytes = arrays.workspace_bytes();
  const auto poison_out = [=] { poison(out, n); };
  return {
      {"kernel/relu" + size, "in, out", 2 * bytes, bar, [=](cudaStream_t s) { dl::relu(out, a, n, s); }, poison_out,
       [=] { check_map(out, a, a, n, [](T z, T) { return z < 0 ? T(0) : z; }); }},
      {"kernel/relu_gradient" + size, "z, dh, dz", 3 * bytes, bar,
       [=](cudaStream_t s) { dl::relu_gradient(out, a, b, n, s); }, poison_out,
       [=] { check_map(out, a, b, n, [](T z, T dh) { return z < 0 ? T(0) : dh; }); }},
      {"kernel/squared_error" + size, "prediction, target, gradient", 3 * bytes, bar,
       [=](cudaStream_t s) { dl::squared_error(loss, out, a, b, n, workspace, workspace_bytes, s); },
       [=] {
         poison(out, n);
         poison(loss, 1);
       },
       [=] {
         check_map(out, a, b, n, [](T p, T y) { return 2 * (p - y); });
         check_loss(loss, a, b, n);
       }},
      {"kernel/mask_gradient" + size, "h, dh, dz", 3 * bytes, false,
       [=](cudaStream_t s) { dl::mask_gradient(out, h, b, n, s); }, poison_out,
       [=] { check_map(out, h, b, n, [](T z, T dh) { return z == 0 && std::signbit(z) ? T(0) : dh; }); }},
  };
}

/// out -= rate b, where out has held a's elements before.
template <class T>
Case sgd_case(const Arrays<T>& arrays) {
  const std::int64_t n = arrays.count;
  const T *a = arrays.a.get(), *b = arrays.b.get();
  T* const out = arrays.out.get();
  const T rate = T(0.001);
  return {"kernel/sgd_update/n=" + std::to_string(n) + "/" + precision_of<T>(),
          "weights twice, dweights",
          3 * static_cast<double>(n) * sizeof(T),
          false,
          [=](cudaStream_t s) { dl::sgd_update(out, b, rate, n, s); },
          [=] { CHECK(cudaMemcpy(out, a, static_cast<std::size_t>(n) * sizeof(T), cudaMemcpyDeviceToDevice)); },
          [=] { check_map(out, a, b, n, [rate](T w, T dw) { return std::fma(-rate, dw, w); }); }};
}

/// What works on rows, on as many rows of `features` as the arrays hold, or on `rows`.
template <class T>
std::vector<Case> row_cases(const Arrays<T>& arrays, std::int64_t features, std::int64_t rows = 0) {
  const std::int64_t batch = rows > 0 ? rows : arrays.count / features, n = batch * features;
  const std::string size = "/" + std::to_string(batch) + "x" + std::to_string(features) + "/" + precision_of<T>();
  const auto bytes = static_cast<double>(n) * sizeof(T), column = static_cast<double>(batch) * sizeof(T),
             row = static_cast<double>(features) * sizeof(T);
  const T *a = arrays.a.get(), *b = arrays.b.get(), *h = arrays.h.get(), *weights = arrays.small.get();
  T *const out = arrays.out.get(), *const sums = arrays.sums.get();
  void* const workspace = arrays.workspace.get();
  const std::size_t workspace_bytes = arrays.workspace_bytes();
  return {
      {"kernel/bias_relu" + size, "z, bias, h", 2 * bytes + row, false,
       [=](cudaStream_t s) { dl::bias_relu(out, a, weights, batch, features, s); }, [=] { poison(out, n); },
       [=] {
         check_written(out, n);
         const std::vector<T> bias = to_host(weights, features);
         for_samples(n, features, [&](std::int64_t begin, std::int64_t length) {
           const std::vector<T> results = to_host(out + begin, length), z = to_host(a + begin, length);
           for (std::size_t i = 0; i < z.size(); ++i) {
             const T sum = z[i] + bias[i % bias.size()];
             expect_same_bits(results[i], sum < 0 ? T(-0.0) : sum + T(0), begin + static_cast<std::int64_t>(i));
           }
         });
       }},
      {"kernel/column_sums" + size, "matrix, sums", bytes + row, false,
       [=](cudaStream_t s) { dl::column_sums(sums, a, batch, features, workspace, workspace_bytes, s); },
       [=] { poison(sums, features); },
       [=] {
         std::vector<double> expected(static_cast<std::size_t>(features)), magnitude = expected;
         for_all(a, n, features, [&](const std::vector<T>& values, std::int64_t) {
           for (std::size_t i = 0; i < values.size(); i += expected.size())
             for (std::size_t j = 0; j < expected.size(); ++j) {
               expected[j] += static_cast<double>(values[i + j]);
               magnitude[j] += std::abs(static_cast<double>(values[i + j]));
             }
         });
         const std::vector<T> got = to_host(sums, features);
         for (std::size_t j = 0; j < got.size(); ++j)
           expect_near(got[j], expected[j], sum_tolerance<T>(magnitude[j]), static_cast<std::int64_t>(j));
       }},
      {"kernel/narrow_linear/outputs=1" + size, "in, weights, out", bytes + column + row, false,
       [=](cudaStream_t s) { dl::narrow_linear(out, a, weights, nullptr, batch, features, 1, s); },
       [=] { poison(out, batch); },
       [=] {
         check_written(out, batch);
         const std::vector<T> weight = to_host(weights, features);
         for_samples(n, features, [&](std::int64_t begin, std::int64_t length) {
           const std::vector<T> in = to_host(a + begin, length);
           const std::vector<T> got = to_host(out + begin / features, length / features);
           for (std::size_t i = 0; i < got.size(); ++i) {
             double sum = 0, magnitude = 0;
             for (std::size_t j = 0; j < weight.size(); ++j) {
               const double term = static_cast<double>(in[i * weight.size() + j]) * static_cast<double>(weight[j]);
               sum += term;
               magnitude += std::abs(term);
             }
             expect_near(got[i], sum, sum_tolerance<T>(magnitude), begin / features + static_cast<std::int64_t>(i));
           }
         });
       }},
      {"kernel/narrow_linear_gradient/outputs=1" + size, "h, dout, weights, dz, dweights", 2 * bytes + column + 2 * row,
       false,
       [=](cudaStream_t s) {
         dl::narrow_linear_gradient(out, sums, h, b, weights, batch, features, 1, workspace, workspace_bytes, s);
       },
       [=] {
         poison(out, n);
         poison(sums, features);
       },
       [=] {
         check_written(out, n);
         const std::vector<T> weight = to_host(weights, features);
         for_samples(n, features, [&](std::int64_t begin, std::int64_t length) {
           const std::vector<T> results = to_host(out + begin, length), at = to_host(h + begin, length);
           const std::vector<T> gradient = to_host(b + begin / features, length / features);
           for (std::size_t i = 0; i < results.size(); ++i) {
             const bool blocked = at[i] == 0 && std::signbit(at[i]);
             expect_same_bits(results[i], blocked ? T(0) : gradient[i / weight.size()] * weight[i % weight.size()],
                              begin + static_cast<std::int64_t>(i));
           }
         });
         std::vector<double> expected(static_cast<std::size_t>(features)), magnitude = expected;
         for_all(h, n, features, [&](const std::vector<T>& values, std::int64_t begin) {
           const std::vector<T> gradient =
               to_host(b + begin / features, static_cast<std::int64_t>(values.size()) / features);
           for (std::size_t i = 0; i < gradient.size(); ++i)
             for (std::size_t j = 0; j < expected.size(); ++j) {
               const double term =
                   static_cast<double>(values[i * expected.size() + j]) * static_cast<double>(gradient[i]);
               expected[j] += term;
               magnitude[j] += std::abs(term);
             }
         });
         const std::vector<T> got = to_host(sums, features);
         for (std::size_t j = 0; j < got.size(); ++j)
           expect_near(got[j], expected[j], sum_tolerance<T>(magnitude[j]), static_cast<std::int64_t>(j));
       }},
  };
}

template <class T>
std::vector<Case> copy_cases(const Arrays<T>& arrays) {
  const std::int64_t n = arrays.count, bytes = n * static_cast<std::int64_t>(sizeof(T));
  const T* const a = arrays.a.get();
  T* const out = arrays.out.get();
  const auto verify = [=] { check_map(out, a, a, n, [](T value, T) { return value; }); };
  const std::string size = "/n=" + std::to_string(n) + "/" + precision_of<T>();
  return {{"copy/cudaMemcpyAsync" + size, "in, out", 2 * static_cast<double>(bytes), false,
           [=](cudaStream_t s) {
             CHECK(cudaMemcpyAsync(out, a, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, s));
           },
           [=] { poison(out, n); }, verify},
          {"copy/kernel" + size, "in, out", 2 * static_cast<double>(bytes), false,
           [=](cudaStream_t s) { launch_copy(out, a, bytes, s); }, [=] { poison(out, n); }, verify}};
}

void append(std::vector<Case>& to, std::vector<Case> cases) {
  for (Case& each : cases) to.push_back(std::move(each));
}

/// The faster of the copies, which are the first two of `cases`.
double copy_rate(const std::vector<Case>& cases) {
  double best = 0;
  for (std::size_t i = 0; i < 2; ++i)
    if (cases[i].error.empty()) best = std::max(best, cases[i].gb_per_s());
  if (best == 0) throw Failure{"no copy was right: " + cases[0].error + "; " + cases[1].error};
  return best;
}

// ---------------------------------------------------------------------------------------------------------------------
// The latency

struct Launches {
  std::string name;
  double bytes = 0;  ///< a launch
  int launches = 0;
  std::string error = {};
  Times times = {};  ///< a launch
};

/// Times `launches` of enqueue(i, stream) from a graph, after `before` has put other data into the L2.
template <class Enqueue>
Times time_launches(int launches, int repetitions, const Stream& stream, const std::function<void()>& before,
                    Enqueue enqueue) {
  enqueue(0, stream.stream);  // code is loaded when it is first used, which had better not be while it is captured
  stream.wait();
  const Graph graph(launches, stream, enqueue);
  std::vector<double> us;
  for (int i = -3; i < repetitions; ++i) {
    Event start, end;
    before();
    start.record(stream.stream);
    graph.launch(stream);
    end.record(stream.stream);
    stream.wait();
    if (i >= 0) us.push_back(end.since(start) / launches);
  }
  return summed_up(us);
}

constexpr int kMostLaunches = 256;

/// The copies, ReLU, its gradient and the squared error of 2^10 .. 2^26 elements, each launch on the next elements of
/// the arrays. Afterwards the last launch's elements are checked.
std::vector<Launches> sizes_of_two(const Arrays<float>& arrays, int repetitions, const Stream& stream,
                                   const std::function<void()>& flush) {
  std::vector<Launches> rows;
  for (std::int64_t n = 1 << 10; n <= std::min<std::int64_t>(1 << 26, arrays.count); n *= 2) {
    const int launches = static_cast<int>(std::min<std::int64_t>(kMostLaunches, arrays.count / n));
    const std::int64_t last = (launches - 1) * n;
    const auto bytes = static_cast<double>(n) * sizeof(float);
    const auto out = arrays.out.get();
    const auto a = arrays.a.get();
    const auto copied = [&] { check_map(out + last, a + last, a + last, n, [](float value, float) { return value; }); };
    const auto add = [&](const std::string& name, double bytes_a_launch, auto enqueue, auto verify) {
      Launches row{name, bytes_a_launch, launches};
      try {
        poison(out, launches * n);
        poison(arrays.loss.get(), 1);
        CHECK(cudaDeviceSynchronize());
        row.times = time_launches(launches, repetitions, stream, flush, enqueue);
        verify();
        check_written(out, launches * n);
      } catch (const std::exception& failure) {
        row.error = failure.what();
        CHECK(cudaDeviceSynchronize());
      }
      rows.push_back(row);
    };
    const std::string size = "/n=" + std::to_string(n) + "/fp32";
    add(
        "copy/cudaMemcpyAsync" + size, 2 * bytes,
        [&](int i, cudaStream_t s) {
          CHECK(cudaMemcpyAsync(out + i * n, a + i * n, static_cast<std::size_t>(n) * sizeof(float),
                                cudaMemcpyDeviceToDevice, s));
        },
        copied);
    add(
        "copy/kernel" + size, 2 * bytes,
        [&](int i, cudaStream_t s) {
          launch_copy(out + i * n, a + i * n, n * static_cast<std::int64_t>(sizeof(float)), s);
        },
        copied);
    const std::vector<Case> verified = element_cases(arrays, last, n, false);
    for (std::size_t kernel = 0; kernel < 3; ++kernel)
      add(
          verified[kernel].name, verified[kernel].bytes,
          [&](int i, cudaStream_t s) { element_cases(arrays, i * n, n, false)[kernel].run(s); },
          verified[kernel].verify);
  }
  return rows;
}

/// The kernels on rows at the sizes of a small network: one launch after the other on the same data, which stays in the
/// L2 as it does in training.
std::vector<Launches> small_shapes(const Arrays<float>& arrays, int repetitions, const Stream& stream) {
  std::vector<Launches> rows;
  for (const std::int64_t batch : {128, 1000})
    for (Case& each : row_cases(arrays, 100, batch)) {
      Launches row{each.name, each.bytes, kMostLaunches};
      try {
        each.prepare();
        CHECK(cudaDeviceSynchronize());
        row.times = time_launches(
            kMostLaunches, repetitions, stream, [] {}, [&](int, cudaStream_t s) { each.run(s); });
        each.verify();
      } catch (const std::exception& failure) {
        row.error = failure.what();
        CHECK(cudaDeviceSynchronize());
      }
      rows.push_back(row);
    }
  return rows;
}

// ---------------------------------------------------------------------------------------------------------------------
// The variants

template <Operation operation, int turns, int threads, bool streaming>
void add_variant(std::vector<Case>& cases, const Arrays<float>& arrays) {
  const std::int64_t n = arrays.count;
  const float *a = arrays.a.get(), *b = arrays.b.get();
  float* const out = arrays.out.get();
  const char* const name = operation == Operation::copy   ? "copy"
                           : operation == Operation::relu ? "relu"
                                                          : "relu_gradient";
  cases.push_back({std::string("variant/") + name + "/groups=" + std::to_string(turns) +
                       "/threads=" + std::to_string(threads) + "/cache=" + (streaming ? "streaming" : "default"),
                   "as rows", (operation == Operation::relu_gradient ? 3 : 2) * static_cast<double>(n) * sizeof(float),
                   false,
                   [=](cudaStream_t s) { launch_variant<operation, turns, threads, streaming>(out, a, b, n, s); },
                   [=] { poison(out, n); },
                   [=] {
                     check_map(out, a, b, n, [](float z, float dh) {
                       return operation == Operation::copy ? z : z < 0 ? 0.0f : operation == Operation::relu ? z : dh;
                     });
                   }});
}

template <Operation operation, int turns>
void add_variants(std::vector<Case>& cases, const Arrays<float>& arrays) {
  add_variant<operation, turns, 128, false>(cases, arrays);
  add_variant<operation, turns, 256, false>(cases, arrays);
  add_variant<operation, turns, 512, false>(cases, arrays);
  add_variant<operation, turns, 128, true>(cases, arrays);
  add_variant<operation, turns, 256, true>(cases, arrays);
  add_variant<operation, turns, 512, true>(cases, arrays);
}

template <Operation operation>
void add_variants(std::vector<Case>& cases, const Arrays<float>& arrays) {
  add_variants<operation, 1>(cases, arrays);
  add_variants<operation, 2>(cases, arrays);
  add_variants<operation, 4>(cases, arrays);
  add_variants<operation, 8>(cases, arrays);
}

// ---------------------------------------------------------------------------------------------------------------------
// Results

std::string number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.10g", value);
  return std::isfinite(value) ? text : "null";
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + '"';
}

std::string listed(const std::vector<std::string>& items) {
  std::string out = "[";
  for (std::size_t i = 0; i < items.size(); ++i) out += (i > 0 ? ",\n    " : "\n    ") + items[i];
  return out + "\n  ]";
}

/// From names and values that are JSON already.
std::string object_json(const std::vector<std::pair<std::string, std::string>>& members) {
  std::string out = "{";
  for (std::size_t i = 0; i < members.size(); ++i)
    out += (i > 0 ? ",\n  " : "\n  ") + quoted(members[i].first) + ": " + members[i].second;
  return out + "\n}\n";
}

/// Whether the bar is reached, and what was wrong.
struct Summary {
  bool bar_reached = true;
  int wrong = 0;
};

std::string case_json(const Case& each, double copy, Summary& summary) {
  std::string out = "{\"case\": " + quoted(each.name) + ", \"counted\": " + quoted(each.counted) +
                    ", \"bytes\": " + number(each.bytes);
  if (!each.error.empty()) {
    ++summary.wrong;
    if (each.bar) summary.bar_reached = false;
    std::printf("%-58s WRONG: %s\n", each.name.c_str(), each.error.c_str());
    return out + ", \"verified\": false, \"error\": " + quoted(each.error) + "}";
  }
  const double percent = 100 * each.gb_per_s() / copy;
  const bool ok = percent >= kBarPercent;
  std::printf("%-58s %9.1f us  %7.1f GB/s  %5.1f %%%s\n", each.name.c_str(), each.times.median, each.gb_per_s(),
              percent,
              !each.bar ? ""
              : ok      ? "  ok"
                        : "  BELOW THE BAR");
  out += ", \"verified\": true, \"us_median\": " + number(each.times.median) +
         ", \"us_min\": " + number(each.times.least) + ", \"gb_per_s\": " + number(each.gb_per_s()) +
         ", \"percent_of_copy\": " + number(percent);
  if (each.bar) {
    out += std::string(", \"ok\": ") + (ok ? "true" : "false");
    if (!ok) summary.bar_reached = false;
  }
  return out + "}";
}

std::string launches_json(const Launches& row, Summary& summary) {
  std::string out = "{\"case\": " + quoted(row.name) + ", \"bytes\": " + number(row.bytes) +
                    ", \"launches\": " + std::to_string(row.launches);
  if (!row.error.empty()) {
    ++summary.wrong;
    std::printf("%-58s WRONG: %s\n", row.name.c_str(), row.error.c_str());
    return out + ", \"verified\": false, \"error\": " + quoted(row.error) + "}";
  }
  const double rate = row.bytes / row.times.median / 1e3;
  std::printf("%-58s %9.2f us  %7.1f GB/s\n", row.name.c_str(), row.times.median, rate);
  return out + ", \"verified\": true, \"us_median\": " + number(row.times.median) +
         ", \"us_min\": " + number(row.times.least) + ", \"gb_per_s\": " + number(rate) + "}";
}

template <class T>
std::vector<Case> measured_rows(const Arrays<T>& arrays, int repetitions, const Stream& stream) {
  std::vector<Case> cases = copy_cases(arrays);
  append(cases, element_cases(arrays, 0, arrays.count, true));
  cases.push_back(sgd_case(arrays));
  for (const std::int64_t features : {64, 100, 1000}) append(cases, row_cases(arrays, features));
  measure(cases, repetitions, stream);
  return cases;
}

struct Options {
  std::string json;
  std::int64_t mib = 1024;
  int repetitions = 25;
};

int run(const Options& options) {
  cudaDeviceProp device{};
  int index = 0, driver = 0, runtime = 0;
  std::size_t free_bytes = 0, total_bytes = 0;
  CHECK(cudaGetDevice(&index));
  CHECK(cudaGetDeviceProperties(&device, index));
  CHECK(cudaDriverGetVersion(&driver));
  CHECK(cudaRuntimeGetVersion(&runtime));
  CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  const std::int64_t bytes = options.mib << 20;
  if (static_cast<double>(free_bytes) < 4.5 * static_cast<double>(bytes))
    throw Failure{"4 arrays of " + std::to_string(options.mib) + " MiB and some workspace do not fit into the " +
                  std::to_string(free_bytes >> 20) + " MiB that are free; take a smaller --mib"};
  if (bytes < 4 * static_cast<std::int64_t>(device.l2CacheSize))
    std::printf("arrays of %lld MiB are less than four times the L2: these are no rates of the memory\n",
                static_cast<long long>(options.mib));

  const Stream stream;
  Summary summary;
  std::vector<std::string> rows, latency, variants;
  std::string copies;
  const auto add_rows = [&](const std::vector<Case>& cases, const char* precision) {
    const double copy = copy_rate(cases);
    copies += std::string(copies.empty() ? "" : ", ") + quoted(precision) + ": " + number(copy);
    for (const Case& each : cases) rows.push_back(case_json(each, copy, summary));
  };
  {
    const Arrays<double> arrays(bytes);
    add_rows(measured_rows(arrays, options.repetitions, stream), "fp64");
  }
  {
    const Arrays<float> arrays(bytes);
    const std::vector<Case> cases = measured_rows(arrays, options.repetitions, stream);
    add_rows(cases, "fp32");

    const std::int64_t flushed = std::min<std::int64_t>(arrays.count / 4, device.l2CacheSize / 4);  // 4 times the L2
    const auto flush = [&] {
      read_all<<<1024, 256, 0, stream.stream>>>(reinterpret_cast<const float4*>(arrays.h.get()), flushed,
                                                arrays.sums.get());
      CHECK(cudaGetLastError());
    };
    for (const Launches& row : sizes_of_two(arrays, options.repetitions, stream, flush))
      latency.push_back(launches_json(row, summary));
    for (const Launches& row : small_shapes(arrays, options.repetitions, stream))
      latency.push_back(launches_json(row, summary));

    std::vector<Case> others;
    add_variants<Operation::copy>(others, arrays);
    add_variants<Operation::relu>(others, arrays);
    add_variants<Operation::relu_gradient>(others, arrays);
    measure(others, std::max(options.repetitions * 4 / 5, 1), stream);
    for (const Case& each : others) variants.push_back(case_json(each, copy_rate(cases), summary));
  }

  const std::string text = object_json({
      {"gpu", quoted(device.name)},
      {"compute_capability", quoted(std::to_string(device.major) + "." + std::to_string(device.minor))},
      {"multiprocessors", std::to_string(device.multiProcessorCount)},
      {"l2_bytes", std::to_string(device.l2CacheSize)},
      {"memory_bytes", std::to_string(total_bytes)},
      {"cuda_driver", std::to_string(driver)},
      {"cuda_runtime", std::to_string(runtime)},
      {"array_bytes", std::to_string(bytes)},
      {"repetitions", std::to_string(options.repetitions)},
      {"copy_gb_per_s", "{" + copies + "}"},
      {"bar_percent", number(kBarPercent)},
      {"ok", summary.bar_reached ? "true" : "false"},
      {"wrong", std::to_string(summary.wrong)},
      {"rows", listed(rows)},
      {"latency", listed(latency)},
      {"variants", listed(variants)},
  });
  if (!options.json.empty()) {
    std::FILE* const file = std::fopen(options.json.c_str(), "w");
    if (file == nullptr) throw Failure{"cannot write " + options.json};
    const bool written = std::fputs(text.c_str(), file) >= 0;
    if (std::fclose(file) != 0 || !written) throw Failure{"cannot write " + options.json};
  }
  if (summary.wrong > 0) std::fprintf(stderr, "bandwidth: %d results were wrong\n", summary.wrong);
  return summary.wrong > 0 ? 1 : 0;
}

/// The number after an option, above 0.
int read_number(const char* option, const char* text) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*text == '\0' || *end != '\0' || value < 1 || value > 1 << 20)
    throw Failure{std::string(option) + " " + text + ": give a number from 1 to 1048576"};
  return static_cast<int>(value);
}

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) throw Failure{name + " needs a value"};
    if (name == "--json")
      options.json = argv[i + 1];
    else if (name == "--mib")
      options.mib = read_number("--mib", argv[i + 1]);
    else if (name == "--repetitions")
      options.repetitions = read_number("--repetitions", argv[i + 1]);
    else
      throw Failure{"unknown option " + name};
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = read_options(argc, argv);
    int devices = 0;
    const cudaError_t code = cudaGetDeviceCount(&devices);
    if (code != cudaSuccess || devices == 0) {
      std::fprintf(stderr, "bandwidth: no GPU can be used: %s\n", cudaGetErrorString(code));
      return 2;
    }
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bandwidth: %s\n", error.what());
  }
  return 1;
}
