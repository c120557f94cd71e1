// What the experiments share on the GPU: errors, owners of memory, streams and graphs, launches, times by events and by
// the GPU's clocks, and waits that end.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "record.h"

#if CUDART_VERSION < 13000
#error "bench/probe needs the CUDA toolkit 13.0 or newer"
#endif

namespace probe {

using Nanoseconds = unsigned long long;

constexpr Nanoseconds kWaitLimit = 200'000'000;     // what any wait in a kernel may take before it gives up
constexpr int kThreads = 512;                       // of a block, unless an experiment says otherwise
constexpr std::size_t kOneBlockShared = 200 << 10;  // dynamic shared memory of which only one block fits
constexpr int kWarmRounds = 32;                     // of a timed kernel, before the clock starts
constexpr int kRounds = 1000;                       // that it times

// ---------------------------------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------------------------------

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// Not a fault: what the experiment needs is not there.
struct NotRun : Failure {
  using Failure::Failure;
};
// One answer among many, and not worth a line of the table.
struct NoAlgorithm : NotRun {
  NoAlgorithm() : NotRun("the heuristic offers no algorithm") {}
};
// The CUDA context did not survive; nothing can run after it.
struct ContextDied : Failure {
  using Failure::Failure;
};

// Without its folders, which differ from machine to machine.
inline const char* file_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

inline void check_cuda(cudaError_t code, const char* expression, const char* file, int line) {
  if (code == cudaSuccess) return;
  throw Failure(text("%s (%d: %s) from %s, %s:%d", cudaGetErrorName(code), static_cast<int>(code),
                     cudaGetErrorString(code), expression, file_name(file), line));
}
#define PROBE_CUDA(expression) check_cuda((expression), #expression, __FILE__, __LINE__)

// After a failure: clears what can be cleared and says whether the context still works.
inline bool context_works() {
  (void)cudaGetLastError();
  if (cudaDeviceSynchronize() != cudaSuccess) (void)cudaGetLastError();
  return cudaDeviceSynchronize() == cudaSuccess;
}

inline int failures = 0;  // parts that failed so far; what could not be run, because it does not exist here, is none

// Runs one part of an experiment into parent[name]; a failure is recorded there and the next part runs.
template <class Part>
bool attempt(Record& parent, const std::string& name, Part part) {
  Record record;
  std::string status = "ok", message;
  bool dead = false, quiet = false;
  try {
    part(record);
  } catch (const ContextDied& error) {
    status = "failed", message = error.what(), dead = true;
  } catch (const NoAlgorithm& error) {
    status = "not_run", message = error.what(), quiet = true;
  } catch (const NotRun& error) {
    status = "not_run", message = error.what();
  } catch (const std::exception& error) {
    status = "failed", message = error.what(), dead = !context_works();
  }
  failures += status == "failed";
  if (status != "ok" && !quiet) show("%s %s: %s", name.c_str(), status.c_str(), message.c_str());
  record.set("status", status);
  if (!message.empty()) record.set("message", message);
  parent.set(name, std::move(record));
  if (dead) throw ContextDied(message);
  return status == "ok";
}

// ---------------------------------------------------------------------------------------------------------------------
// Owners, launches, timing
// ---------------------------------------------------------------------------------------------------------------------

// Device memory of `count` elements, never initialised. Bytes past the end are allocated too: an epilogue under test is
// known to have read out of bounds in some versions.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t count) : count_(count) {
    PROBE_CUDA(cudaMalloc(reinterpret_cast<void**>(&data_), bytes() + 4096));
  }
  ~Buffer() { (void)cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

class Stream {
 public:
  Stream() { PROBE_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }
  void wait() const { PROBE_CUDA(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { PROBE_CUDA(cudaEventCreate(&event_)); }
  ~Event() { (void)cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class Graph {
 public:
  Graph() = default;
  ~Graph() {
    if (exec_ != nullptr) (void)cudaGraphExecDestroy(exec_);
    if (graph_ != nullptr) (void)cudaGraphDestroy(graph_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void create() { PROBE_CUDA(cudaGraphCreate(&graph_, 0)); }
  // Captures what `enqueue` puts on the stream. The capture ends also when it throws.
  template <class Enqueue>
  void capture(cudaStream_t stream, Enqueue enqueue) {
    PROBE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    try {
      enqueue();
    } catch (...) {
      (void)cudaStreamEndCapture(stream, &graph_);
      (void)cudaGetLastError();
      throw;
    }
    PROBE_CUDA(cudaStreamEndCapture(stream, &graph_));
  }
  void instantiate(cudaStream_t stream) {
    PROBE_CUDA(cudaGraphInstantiate(&exec_, graph_, 0));
    // Only spares the first launch some work: a graph that cannot be uploaded still runs.
    if (cudaGraphUpload(exec_, stream) != cudaSuccess) (void)cudaGetLastError();
  }
  void launch(cudaStream_t stream) const { PROBE_CUDA(cudaGraphLaunch(exec_, stream)); }
  cudaGraph_t get() const { return graph_; }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

struct Launch {
  unsigned blocks = 1;
  dim3 threads = dim3(kThreads);
  std::size_t shared = 0;
  unsigned cluster = 0;       // blocks of a cluster; 0: no clusters
  bool cooperative = false;   // all blocks resident together, or the launch is refused
  bool programmatic = false;  // may start before the kernel before it in the stream has ended
  unsigned blocks_y = 1;
};

// The attributes live as long as the configuration points at them.
struct LaunchConfig {
  LaunchConfig(const Launch& launch, cudaStream_t stream) {
    config.gridDim = dim3(launch.blocks, launch.blocks_y);
    config.blockDim = launch.threads;
    config.dynamicSmemBytes = launch.shared;
    config.stream = stream;
    config.attrs = attributes;
    const auto next = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
      attributes[config.numAttrs].id = id;
      return attributes[config.numAttrs++].val;
    };
    if (launch.cluster > 0) {
      cudaLaunchAttributeValue& value = next(cudaLaunchAttributeClusterDimension);
      value.clusterDim.x = launch.cluster;
      value.clusterDim.y = value.clusterDim.z = 1;
    }
    if (launch.cooperative) next(cudaLaunchAttributeCooperative).cooperative = 1;
    if (launch.programmatic)
      next(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;

  cudaLaunchAttribute attributes[3] = {};
  cudaLaunchConfig_t config = {};
};

template <class... Parameters, class... Arguments>
cudaError_t try_launch(const Launch& launch, cudaStream_t stream, void (*kernel)(Parameters...), Arguments... values) {
  const LaunchConfig config(launch, stream);
  const cudaError_t code = cudaLaunchKernelEx(&config.config, kernel, static_cast<Parameters>(values)...);
  if (code != cudaSuccess) (void)cudaGetLastError();
  return code;
}

template <class... Parameters, class... Arguments>
void launch(const Launch& launch, cudaStream_t stream, void (*kernel)(Parameters...), Arguments... values) {
  PROBE_CUDA(try_launch(launch, stream, kernel, values...));
}

template <class Kernel>
void allow_shared(Kernel* kernel, std::size_t bytes) {
  PROBE_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)));
}

using Clock = std::chrono::steady_clock;
inline double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

__device__ __forceinline__ Nanoseconds now_ns() {
  Nanoseconds value;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value)::"memory");
  return value;
}

__global__ void delay_kernel(Nanoseconds limit) {
  for (const Nanoseconds end = now_ns() + limit; now_ns() < end;) continue;
}

// Device time of what `enqueue(sample)` puts on the stream, by events, after two runs that do not count. The stream is
// held up first, so that everything is queued when the first event passes and the CPU's launch cost does not count.
template <class Enqueue>
std::vector<double> time_events_us(const Stream& stream, int samples, Enqueue enqueue) {
  Event begin, end;
  std::vector<double> out;
  for (int sample = -2; sample < samples; ++sample) {
    Launch delay;
    delay.threads = dim3(1);
    launch(delay, stream, delay_kernel, 100'000ull);
    PROBE_CUDA(cudaEventRecord(begin, stream));
    enqueue(sample + 2);
    PROBE_CUDA(cudaEventRecord(end, stream));
    PROBE_CUDA(cudaEventSynchronize(end));
    float milliseconds = 0;
    PROBE_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
    if (sample >= 0) out.push_back(1e3 * milliseconds);
  }
  return out;
}

// Device time of one call of `enqueue`, from replays of a graph of `repeats` calls, so that launch gaps do not count.
template <class Enqueue>
std::vector<double> time_replays_us(const Stream& stream, int repeats, int samples, Enqueue enqueue) {
  enqueue();  // loads the kernels, which a capture might not allow
  stream.wait();
  Graph graph;
  graph.capture(stream, [&] {
    for (int i = 0; i < repeats; ++i) enqueue();
  });
  graph.instantiate(stream);
  std::vector<double> out = time_events_us(stream, samples, [&](int) { graph.launch(stream); });
  for (double& value : out) value /= repeats;
  return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// Device side: clock, memory order, waits
// ---------------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ unsigned load_acquire(const unsigned* address) {
  unsigned value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(unsigned* address, unsigned value) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void add_release(unsigned* address, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(address)), "r"(value)
               : "memory");
}

// A word that carries its own step number needs no order against other words.
__device__ __forceinline__ std::uint64_t load_relaxed(const std::uint64_t* address) {
  std::uint64_t value;
  asm volatile("ld.relaxed.gpu.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

__device__ __forceinline__ void store_relaxed(std::uint64_t* address, std::uint64_t value) {
  asm volatile("st.relaxed.gpu.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

// One thread's patience for a whole kernel. Once it is over, every later wait returns at once, so that the kernel's
// loops, and the barriers in them, run to their end and nothing hangs; the results are then void.
class Patience {
 public:
  __device__ explicit Patience(Nanoseconds limit) : end_(now_ns() + limit) {}
  template <class Ready>
  __device__ __forceinline__ void wait(Ready ready) {
    if (over_) return;
    for (unsigned polls = 1; !ready(); ++polls)
      if (polls % 64 == 0 && now_ns() > end_) {
        over_ = true;
        return;
      }
  }
  __device__ bool over() const { return over_; }

 private:
  Nanoseconds end_;
  bool over_ = false;
};

// What a timed kernel reports; `faults` counts missed deadlines and wrong values.
struct Timed {
  Nanoseconds ns;
  unsigned long long cycles;
  unsigned faults;
  unsigned done;
};

class Stopwatch {
 public:
  __device__ void start() {
    ns_ = now_ns();
    cycles_ = clock64();
  }
  __device__ void report(Timed* out) const {
    out->cycles = static_cast<unsigned long long>(clock64() - cycles_);
    out->ns = now_ns() - ns_;
    out->done = 1;
  }

 private:
  Nanoseconds ns_ = 0;
  long long cycles_ = 0;
};

// What one round took, by both clocks: the global one ticks coarsely, the multiprocessor's varies.
struct RoundTimes {
  std::vector<double> ns, cycles;
  Record record() const {
    Record out = figures(ns, "ns");
    out.set("median_cycles", median(cycles));
    return out;
  }
};

// Runs a timed kernel `samples` times. `enqueue(Timed*)` resets what the kernel counts in and launches it.
template <class Enqueue>
RoundTimes time_rounds(const Stream& stream, int samples, double rounds, Enqueue enqueue) {
  Buffer<Timed> out(1);
  RoundTimes times;
  for (int sample = -1; sample < samples; ++sample) {
    PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
    enqueue(out.get());
    Timed timed = {};
    PROBE_CUDA(cudaMemcpyAsync(&timed, out.get(), sizeof timed, cudaMemcpyDeviceToHost, stream));
    stream.wait();
    if (timed.faults != 0) throw Failure(text("%u waits missed their deadline or saw wrong values", timed.faults));
    if (timed.done == 0) throw Failure("the kernel reported nothing");
    if (sample < 0) continue;
    times.ns.push_back(static_cast<double>(timed.ns) / rounds);
    times.cycles.push_back(static_cast<double>(timed.cycles) / rounds);
  }
  return times;
}

template <class T>
__device__ __forceinline__ float to_float(T value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(value);
  else
    return static_cast<float>(value);
}

template <class T>
__device__ __forceinline__ T from_float(float value) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16(value);
  else
    return static_cast<T>(value);
}

__device__ __forceinline__ std::uint32_t scramble(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15ull;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
  return static_cast<std::uint32_t>((value ^ (value >> 31)) >> 32);
}

// Standard normal values, good enough to keep the multipliers as busy as real data does.
template <class T>
__global__ void fill_normal_kernel(T* out, std::size_t count, std::uint64_t seed) {
  const std::size_t stride = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const float u = (scramble(seed * 0x10000000000ull + 2 * i) + 0.5f) * 0x1p-32f;
    const float v = (scramble(seed * 0x10000000000ull + 2 * i + 1) + 0.5f) * 0x1p-32f;
    out[i] = from_float<T>(sqrtf(-2 * logf(fminf(u, 0.99999994f))) * cospif(2 * v));
  }
}

template <class T>
void fill_normal(const Stream& stream, T* out, std::size_t count, std::uint64_t seed) {
  Launch shape;
  shape.blocks = 1056;
  launch(shape, stream, fill_normal_kernel<T>, out, count, seed);
}

// Keeps the multiprocessor busy for `limit` ns and reports its clock against the global one.
__global__ void spin_kernel(Nanoseconds limit, Timed* out) {
  Stopwatch watch;
  watch.start();
  const Nanoseconds end = now_ns() + limit;
  float value = static_cast<float>(threadIdx.x);
  while (now_ns() < end)
    for (int i = 0; i < 64; ++i) value = fmaf(value, 0.999f, 1.0f);
  if (threadIdx.x == 0 && blockIdx.x == 0) watch.report(out);
  if (value == -1.0f) out->faults = 1;  // never: keeps the loop
}

// What every experiment gets.
struct Context {
  cudaDeviceProp device = {};
};

inline unsigned multiprocessors(const Context& context) {
  return static_cast<unsigned>(context.device.multiProcessorCount);
}

// An idle GPU runs at a fraction of its clock; a few ms of work on every multiprocessor bring it up.
inline void warm_up(const Context& context) {
  Stream stream;
  Buffer<Timed> out(1);
  PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
  Launch shape;
  shape.blocks = multiprocessors(context);
  launch(shape, stream, spin_kernel, 20'000'000ull, out.get());
  stream.wait();
}

}  // namespace probe
