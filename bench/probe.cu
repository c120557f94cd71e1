// Measures, on the GPU at hand, what deviceloop's design rests on and what no document answers: how cuBLASLt's fused
// epilogues treat +0, -0 and NaN and what they cost, what one dependency between multiprocessors costs (grid-wide
// barrier, hop through L2, exchange inside a cluster), what graph nodes and host calls cost, and the rates that this
// machine really reaches. The planner's constants and comments in cuda/ cite its JSON.
//
// Build, with CUDA 13 and nothing else (cuBLASLt is looked for at run time and never linked):
//   nvcc -std=c++20 -O3 -arch=sm_90 -o probe bench/probe.cu
// Run:
//   ./probe [--json FILE] [--list] [--only REGEX] [--limit SECONDS]
//
// Guarantees: every experiment stands alone. One that fails is recorded with its message and the next one runs; after
// an error that the CUDA context does not survive, what there is has been written and the program ends. The JSON is
// rewritten after each experiment. Every wait inside a kernel has a deadline by %globaltimer, or is a barrier over
// blocks that the launch itself guarantees to be resident together, so the probe cannot hang the GPU.
// Exit status: 0 all ran, 1 some failed, 2 no GPU or wrong arguments, 3 the context died or the time was over.

#include <cooperative_groups.h>
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <glob.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <limits>
#include <memory>
#include <regex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if CUDART_VERSION < 13000
#error "bench/probe.cu needs the CUDA toolkit 13.0 or newer"
#endif

namespace {

namespace cg = cooperative_groups;
using Nanoseconds = unsigned long long;

constexpr Nanoseconds kWaitLimit = 200'000'000;     // what any wait in a kernel may take before it gives up
constexpr int kThreads = 512;                       // of a block, unless an experiment says otherwise
constexpr std::size_t kOneBlockShared = 200 << 10;  // dynamic shared memory of which only one block fits

// ---------------------------------------------------------------------------------------------------------------------
// Results: a tree of named values, written as JSON
// ---------------------------------------------------------------------------------------------------------------------

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, ...) {
  std::va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, arguments);
  va_end(arguments);
  std::string out(static_cast<std::size_t>(std::max(length, 0)), '\0');
  if (length > 0) std::vsnprintf(out.data(), out.size() + 1, format, again);
  va_end(again);
  return out;
}

std::string quoted(const std::string& value) {
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\')
      out += std::string("\\") + c;
    else if (static_cast<unsigned char>(c) < 0x20)
      out += text("\\u%04x", c);
    else if (static_cast<unsigned char>(c) < 0x7f)
      out += c;
    else
      out += '?';  // messages are ASCII; anything else might not be valid UTF-8
  }
  return out + '"';
}

class Record {
 public:
  void set(const std::string& name, const std::string& value) { put(name, quoted(value)); }
  void set(const std::string& name, const char* value) { put(name, quoted(value)); }
  void set(const std::string& name, bool value) { put(name, value ? "true" : "false"); }
  // JSON has neither NaN nor infinity.
  void set(const std::string& name, double value) { put(name, std::isfinite(value) ? text("%.6g", value) : "null"); }
  template <class Integer>
  requires std::is_integral_v<Integer>
  void set(const std::string& name, Integer value) { put(name, std::to_string(value)); }
  void set(const std::string& name, Record value) {
    erase(name);
    members_.push_back({name, "", std::make_shared<Record>(std::move(value))});
  }

  // An object of plain values takes one line, any other one line a member.
  std::string json(int indent = 0) const {
    const bool flat = std::all_of(members_.begin(), members_.end(), [](const Member& m) { return !m.object; });
    const std::string inner(static_cast<std::size_t>(indent) + 2, ' ');
    std::string out = "{";
    for (std::size_t i = 0; i < members_.size(); ++i) {
      out += i == 0 ? "" : ",";
      out += flat ? (i == 0 ? "" : " ") : "\n" + inner;
      const Member& m = members_[i];
      out += quoted(m.name) + ": " + (m.object ? m.object->json(indent + 2) : m.leaf);
    }
    if (!flat) out += "\n" + std::string(static_cast<std::size_t>(indent), ' ');
    return out + "}";
  }

 private:
  struct Member {
    std::string name, leaf;
    std::shared_ptr<const Record> object;
  };
  void erase(const std::string& name) {
    std::erase_if(members_, [&](const Member& m) { return m.name == name; });
  }
  void put(const std::string& name, std::string leaf) {
    erase(name);
    members_.push_back({name, std::move(leaf), nullptr});
  }
  std::vector<Member> members_;
};

// A line of the printed table, under the experiment that is running.
void show(const char* format, ...) __attribute__((format(printf, 1, 2)));
void show(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::printf("  ");
  std::vprintf(format, arguments);
  std::printf("\n");
  std::fflush(stdout);
  va_end(arguments);
}

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

double minimum(const std::vector<double>& values) {
  return values.empty() ? std::numeric_limits<double>::quiet_NaN() : *std::min_element(values.begin(), values.end());
}

// The figures of one quantity; `unit` ends the keys.
Record figures(const std::vector<double>& values, const std::string& unit) {
  Record out;
  out.set("median_" + unit, median(values));
  out.set("minimum_" + unit, minimum(values));
  out.set("samples", values.size());
  return out;
}

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
// The CUDA context did not survive; nothing can run after it.
struct ContextDied : Failure {
  using Failure::Failure;
};

void check_cuda(cudaError_t code, const char* expression, int line) {
  if (code == cudaSuccess) return;
  throw Failure(text("%s (%d: %s) from %s, line %d", cudaGetErrorName(code), static_cast<int>(code),
                     cudaGetErrorString(code), expression, line));
}
#define PROBE_CUDA(expression) check_cuda((expression), #expression, __LINE__)

// After a failure: clears what can be cleared and says whether the context still works.
bool context_works() {
  (void)cudaGetLastError();
  if (cudaDeviceSynchronize() != cudaSuccess) (void)cudaGetLastError();
  return cudaDeviceSynchronize() == cudaSuccess;
}

int failures = 0;  // of all parts so far

// Runs one part of an experiment into parent[name]; a failure is recorded there and the next part runs.
template <class Part>
bool attempt(Record& parent, const std::string& name, Part part) {
  Record record;
  std::string status = "ok", message;
  bool dead = false;
  try {
    part(record);
  } catch (const ContextDied& error) {
    status = "failed", message = error.what(), dead = true;
  } catch (const NotRun& error) {
    status = "not_run", message = error.what();
  } catch (const std::exception& error) {
    status = "failed", message = error.what(), dead = !context_works();
  }
  if (status != "ok") {
    ++failures;
    show("%s %s: %s", name.c_str(), status.c_str(), message.c_str());
  }
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
    PROBE_CUDA(cudaGraphUpload(exec_, stream));
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
double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// Device time of what `enqueue(sample)` puts on the stream, by events, after two runs that do not count.
template <class Enqueue>
std::vector<double> time_events_us(const Stream& stream, int samples, Enqueue enqueue) {
  Event begin, end;
  std::vector<double> out;
  for (int sample = -2; sample < samples; ++sample) {
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

__device__ __forceinline__ Nanoseconds now_ns() {
  Nanoseconds value;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value)::"memory");
  return value;
}

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

// Runs a timed kernel `samples` times and returns ns per round. `enqueue(Timed*)` resets what the kernel counts in and
// launches it.
template <class Enqueue>
std::vector<double> time_rounds_ns(const Stream& stream, int samples, double rounds, Enqueue enqueue) {
  Buffer<Timed> out(1);
  std::vector<double> values;
  for (int sample = -1; sample < samples; ++sample) {
    PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
    enqueue(out.get());
    Timed timed = {};
    PROBE_CUDA(cudaMemcpyAsync(&timed, out.get(), sizeof timed, cudaMemcpyDeviceToHost, stream));
    stream.wait();
    if (timed.faults != 0) throw Failure(text("%u waits missed their deadline or saw wrong values", timed.faults));
    if (timed.done == 0) throw Failure("the kernel reported nothing");
    if (sample >= 0) values.push_back(static_cast<double>(timed.ns) / rounds);
  }
  return values;
}

template <class T>
struct IsBf16 : std::is_same<T, __nv_bfloat16> {};

template <class T>
__device__ __host__ __forceinline__ float to_float(T value) {
  if constexpr (IsBf16<T>::value)
    return __bfloat162float(value);
  else
    return static_cast<float>(value);
}

template <class T>
__device__ __host__ __forceinline__ T from_float(float value) {
  if constexpr (IsBf16<T>::value)
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
  Record* report = nullptr;
};

unsigned multiprocessors(const Context& context) { return static_cast<unsigned>(context.device.multiProcessorCount); }

// An idle GPU runs at a fraction of its clock; a few ms of work on every multiprocessor bring it up.
void warm_up(const Context& context) {
  Stream stream;
  Buffer<Timed> out(1);
  PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
  Launch shape;
  shape.blocks = multiprocessors(context);
  launch(shape, stream, spin_kernel, 20'000'000ull, out.get());
  stream.wait();
}

// ---------------------------------------------------------------------------------------------------------------------
// Clock and host calls
// ---------------------------------------------------------------------------------------------------------------------

void probe_clock(const Context& context, Record& record) {
  Stream stream;
  Buffer<Timed> out(1);
  Launch shape;
  shape.blocks = multiprocessors(context);
  std::vector<double> mhz;
  for (int sample = 0; sample < 5; ++sample) {
    PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
    launch(shape, stream, spin_kernel, 20'000'000ull, out.get());
    Timed timed = {};
    PROBE_CUDA(cudaMemcpyAsync(&timed, out.get(), sizeof timed, cudaMemcpyDeviceToHost, stream));
    stream.wait();
    if (timed.ns == 0) throw Failure("%globaltimer did not advance");
    mhz.push_back(1e3 * static_cast<double>(timed.cycles) / static_cast<double>(timed.ns));
  }
  record.set("multiprocessor_clock", figures(mhz, "mhz"));
  show("multiprocessor clock under a light load: %.0f MHz", median(mhz));
}

__global__ void empty_kernel() {}

__global__ void write_host_kernel(volatile std::uint64_t* host, std::uint64_t value) { *host = value; }

// Waits on the CPU until the device's write is seen.
void wait_for_host_value(const volatile std::uint64_t* host, std::uint64_t value) {
  const Clock::time_point start = Clock::now();
  while (*host != value)
    if (microseconds_since(start) > 1e6) throw Failure("the host did not see the device's write within a second");
}

void probe_host_calls(const Context&, Record& record) {
  Stream stream;
  attempt(record, "launch", [&](Record& part) {
    std::vector<double> burst, single, device;
    const Launch shape;
    const LaunchConfig config(shape, stream);
    const void* kernel = reinterpret_cast<const void*>(empty_kernel);
    for (int i = 0; i < 100; ++i) PROBE_CUDA(cudaLaunchKernelExC(&config.config, kernel, nullptr));
    stream.wait();
    for (int sample = 0; sample < 20; ++sample) {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < 200; ++i) PROBE_CUDA(cudaLaunchKernelExC(&config.config, kernel, nullptr));
      burst.push_back(microseconds_since(start) / 200);
      stream.wait();
      const Clock::time_point alone = Clock::now();
      PROBE_CUDA(cudaLaunchKernelExC(&config.config, kernel, nullptr));
      single.push_back(microseconds_since(alone));
      stream.wait();
    }
    device = time_events_us(stream, 10, [&](int) {
      for (int i = 0; i < 500; ++i) PROBE_CUDA(cudaLaunchKernelExC(&config.config, kernel, nullptr));
    });
    for (double& value : device) value /= 500;
    part.set("call_in_burst_of_200", figures(burst, "us"));
    part.set("call_on_idle_stream", figures(single, "us"));
    part.set("device_time_of_back_to_back_launches", figures(device, "us"));
    show("launch of an empty kernel: %.2f us a call in a burst, %.2f us alone; %.2f us on the device", median(burst),
         median(single), median(device));
  });
  attempt(record, "graph_launch", [&](Record& part) {
    Graph graph;
    graph.capture(stream, [&] { launch(Launch(), stream, empty_kernel); });
    graph.instantiate(stream);
    std::vector<double> call, until_done;
    for (int sample = -5; sample < 30; ++sample) {
      stream.wait();
      const Clock::time_point start = Clock::now();
      graph.launch(stream);
      const double launched = microseconds_since(start);
      stream.wait();
      if (sample < 0) continue;
      call.push_back(launched);
      until_done.push_back(microseconds_since(start));
    }
    part.set("call_of_one_node", figures(call, "us"));
    part.set("call_until_synchronized", figures(until_done, "us"));
    show("launch of a graph of one node: %.2f us; until synchronized %.2f us", median(call), median(until_done));
  });
  attempt(record, "synchronize_idle_stream", [&](Record& part) {
    std::vector<double> values;
    for (int sample = 0; sample < 100; ++sample) {
      const Clock::time_point start = Clock::now();
      stream.wait();
      values.push_back(microseconds_since(start));
    }
    part.set("call", figures(values, "us"));
    show("cudaStreamSynchronize on an idle stream: %.2f us", median(values));
  });
  attempt(record, "eight_bytes_to_host", [&](Record& part) {
    struct Pinned {
      Pinned() { PROBE_CUDA(cudaHostAlloc(&address, 64, cudaHostAllocMapped)); }
      ~Pinned() { (void)cudaFreeHost(address); }
      void* address = nullptr;
    };
    const Pinned pinned;
    volatile std::uint64_t* host = static_cast<std::uint64_t*>(pinned.address);
    constexpr std::uint64_t kCount = 64;
    std::vector<std::uint64_t> values(kCount);
    for (std::uint64_t i = 0; i < kCount; ++i) values[i] = 1000 + i;
    Buffer<std::uint64_t> device(kCount);
    PROBE_CUDA(cudaMemcpyAsync(device.get(), values.data(), device.bytes(), cudaMemcpyHostToDevice, stream));
    stream.wait();
    std::vector<double> call, seen, written;
    for (std::uint64_t i = 0; i < kCount; ++i) {
      *host = 0;
      Clock::time_point start = Clock::now();
      PROBE_CUDA(cudaMemcpyAsync(pinned.address, device.get() + i, 8, cudaMemcpyDeviceToHost, stream));
      const double called = microseconds_since(start);
      wait_for_host_value(host, values[i]);
      if (i >= 4) call.push_back(called), seen.push_back(microseconds_since(start));
      stream.wait();
      *host = 0;
      Launch shape;
      shape.threads = dim3(1);
      start = Clock::now();
      launch(shape, stream, write_host_kernel, host, values[i]);
      wait_for_host_value(host, values[i]);
      if (i >= 4) written.push_back(microseconds_since(start));
      stream.wait();
    }
    part.set("memcpy_async_call", figures(call, "us"));
    part.set("memcpy_async_until_seen_by_the_host", figures(seen, "us"));
    part.set("kernel_store_to_mapped_memory_until_seen", figures(written, "us"));
    show("8 bytes to the host: call %.2f us, seen after %.2f us; stored by a kernel, seen after %.2f us", median(call),
         median(seen), median(written));
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Barriers and hops through L2
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kWarmRounds = 32;
constexpr int kRounds = 1000;

__global__ void __launch_bounds__(kThreads) block_barrier_kernel(Timed* out) {
  Stopwatch watch;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    __syncthreads();
  }
  if (threadIdx.x == 0) watch.report(out);
}

// The barrier that the persistent executor would use: one release-add a block on a counter that only ever rises, and
// one thread of each block that polls it.
__global__ void __launch_bounds__(kThreads) own_grid_barrier_kernel(unsigned* counter, Timed* out) {
  Patience patience(kWaitLimit);
  Stopwatch watch;
  unsigned target = 0;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    target += gridDim.x;
    __syncthreads();
    if (threadIdx.x == 0) {
      add_release(counter, 1);
      patience.wait([&] { return static_cast<int>(load_acquire(counter) - target) >= 0; });
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) watch.report(out);
  if (patience.over()) atomicAdd(&out->faults, 1u);
}

// cooperative_groups' barrier takes no deadline; the cooperative launch guarantees that all blocks are resident.
__global__ void __launch_bounds__(kThreads) cg_grid_barrier_kernel(Timed* out) {
  const cg::grid_group grid = cg::this_grid();
  if (!grid.is_valid()) return;
  Stopwatch watch;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    grid.sync();
  }
  if (threadIdx.x == 0 && blockIdx.x == 0) watch.report(out);
}

void probe_barriers(const Context& context, Record& record) {
  Stream stream;
  attempt(record, "block_512_threads", [&](Record& part) {
    const std::vector<double> ns =
        time_rounds_ns(stream, 15, kRounds, [&](Timed* out) { launch(Launch(), stream, block_barrier_kernel, out); });
    part = figures(ns, "ns");
    show("block barrier, 512 threads: %.1f ns", median(ns));
  });
  allow_shared(own_grid_barrier_kernel, kOneBlockShared);
  allow_shared(cg_grid_barrier_kernel, kOneBlockShared);
  std::vector<unsigned> counts = {32, 64, 100};
  counts.push_back(multiprocessors(context));
  Buffer<unsigned> counter(64);
  for (const unsigned blocks : counts) {
    if (blocks > multiprocessors(context)) continue;
    Launch shape;
    shape.blocks = blocks;
    shape.shared = kOneBlockShared;
    shape.cooperative = true;
    attempt(record, text("grid_own_%u_blocks", blocks), [&](Record& part) {
      const std::vector<double> ns = time_rounds_ns(stream, 15, kRounds, [&](Timed* out) {
        PROBE_CUDA(cudaMemsetAsync(counter.get(), 0, counter.bytes(), stream));
        launch(shape, stream, own_grid_barrier_kernel, counter.get(), out);
      });
      part = figures(ns, "ns");
      show("grid barrier, own, %u blocks: %.0f ns", blocks, median(ns));
    });
    attempt(record, text("grid_cooperative_groups_%u_blocks", blocks), [&](Record& part) {
      const std::vector<double> ns =
          time_rounds_ns(stream, 15, kRounds, [&](Timed* out) { launch(shape, stream, cg_grid_barrier_kernel, out); });
      part = figures(ns, "ns");
      show("grid barrier, cooperative_groups, %u blocks: %.0f ns", blocks, median(ns));
    });
  }
}

// Block 0 and block `partner` answer each other; one round is two hops. The two words lie in lines of their own.
template <bool kPacked>
__global__ void ping_pong_kernel(std::uint64_t* words, unsigned partner, Timed* out) {
  if (threadIdx.x != 0 || (blockIdx.x != 0 && blockIdx.x != partner)) return;
  const bool first = blockIdx.x == 0;
  std::uint64_t* mine = words + (first ? 0 : 32);
  std::uint64_t* theirs = words + (first ? 32 : 0);
  const auto publish = [&](unsigned step) {
    if constexpr (kPacked)
      store_relaxed(mine, (static_cast<std::uint64_t>(step) << 32) | step);
    else
      store_release(reinterpret_cast<unsigned*>(mine), step);
  };
  const auto seen = [&](unsigned step) {
    if constexpr (kPacked)
      return static_cast<unsigned>(load_relaxed(theirs) >> 32) == step;
    else
      return load_acquire(reinterpret_cast<const unsigned*>(theirs)) == step;
  };
  Patience patience(kWaitLimit);
  Stopwatch watch;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    const unsigned step = static_cast<unsigned>(round + kWarmRounds + 1);
    if (round == 0) watch.start();
    if (first) publish(step);
    patience.wait([&] { return seen(step); });
    if (!first) publish(step);
  }
  if (first) watch.report(out);
  if (patience.over()) atomicAdd(&out->faults, 1u);
}

// Every block publishes `words_each` words of {step, value} and reads those of all blocks; then a block barrier, so
// that nobody overwrites what a neighbour thread still reads. Slots are double-buffered by the parity of the step. All
// words of a thread are loaded before any is looked at: one after the other they would cost a trip to L2 each.
template <int kWordsOfThread>
__global__ void __launch_bounds__(kThreads) all_to_all_kernel(std::uint64_t* slots, unsigned words_each, Timed* out) {
  const unsigned words = gridDim.x * words_each;
  Patience patience(kWaitLimit);
  Stopwatch watch;
  unsigned wrong = 0;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    const unsigned step = static_cast<unsigned>(round + kWarmRounds + 1);
    std::uint64_t* buffer = slots + (step & 1) * words;
    if (threadIdx.x < words_each) {
      const unsigned index = blockIdx.x * words_each + threadIdx.x;
      store_relaxed(buffer + index, (static_cast<std::uint64_t>(step) << 32) | (index ^ step));
    }
    std::uint64_t read[kWordsOfThread];
    patience.wait([&] {
      bool ready = true;
#pragma unroll
      for (int i = 0; i < kWordsOfThread; ++i) {
        const unsigned index = threadIdx.x + i * kThreads;
        if (index < words) read[i] = load_relaxed(buffer + index);
      }
#pragma unroll
      for (int i = 0; i < kWordsOfThread; ++i)
        if (threadIdx.x + i * kThreads < words) ready &= static_cast<unsigned>(read[i] >> 32) == step;
      return ready;
    });
#pragma unroll
    for (int i = 0; i < kWordsOfThread; ++i) {
      const unsigned index = threadIdx.x + i * kThreads;
      if (!patience.over() && index < words) wrong += static_cast<unsigned>(read[i]) != (index ^ step);
    }
    __syncthreads();
  }
  if (threadIdx.x == 0 && blockIdx.x == 0) watch.report(out);
  if (patience.over() || wrong != 0) atomicAdd(&out->faults, 1u);
}

void probe_hops(const Context& context, Record& record) {
  Stream stream;
  const unsigned count = multiprocessors(context);
  allow_shared(ping_pong_kernel<false>, kOneBlockShared);
  allow_shared(ping_pong_kernel<true>, kOneBlockShared);
  allow_shared(all_to_all_kernel<1>, kOneBlockShared);
  allow_shared(all_to_all_kernel<7>, kOneBlockShared);
  Buffer<std::uint64_t> words(2 * 8192);
  const auto ping_pong = [&](auto kernel, const char* name) {
    attempt(record, name, [&](Record& part) {
      // The distance to L2, and to the partner, depends on where the blocks lie: one figure a pair.
      std::vector<double> pairs;
      for (unsigned partner = 1; partner < count; partner += 10) {
        Launch shape;
        shape.blocks = partner + 1;
        shape.threads = dim3(32);
        shape.shared = kOneBlockShared;
        shape.cooperative = true;
        pairs.push_back(median(time_rounds_ns(stream, 3, 2 * kRounds, [&](Timed* out) {
          PROBE_CUDA(cudaMemsetAsync(words.get(), 0, words.bytes(), stream));
          launch(shape, stream, kernel, words.get(), partner, out);
        })));
      }
      part = figures(pairs, "ns");
      part.set("maximum_ns", *std::max_element(pairs.begin(), pairs.end()));
      show("%s: %.0f ns (%.0f to %.0f over pairs of multiprocessors)", name, median(pairs), minimum(pairs),
           *std::max_element(pairs.begin(), pairs.end()));
    });
  };
  ping_pong(ping_pong_kernel<false>, "hop_release_acquire");
  ping_pong(ping_pong_kernel<true>, "hop_packed_word");
  struct Case {
    unsigned blocks, words_each;
  };
  for (const Case& c : {Case{25, 1}, Case{25, 128}, Case{100, 32}, Case{count, 1}}) {
    if (c.blocks > count) continue;
    const unsigned total = c.blocks * c.words_each;
    attempt(record, text("all_to_all_%u_blocks_%u_words_each", c.blocks, c.words_each), [&](Record& part) {
      Launch shape;
      shape.blocks = c.blocks;
      shape.shared = kOneBlockShared;
      shape.cooperative = true;
      const bool one = total <= kThreads;
      if (!one && total > 7 * kThreads) throw Failure("too many words for the kernel");
      const std::vector<double> ns = time_rounds_ns(stream, 15, kRounds, [&](Timed* out) {
        PROBE_CUDA(cudaMemsetAsync(words.get(), 0, words.bytes(), stream));
        launch(shape, stream, one ? all_to_all_kernel<1> : all_to_all_kernel<7>, words.get(), c.words_each, out);
      });
      part = figures(ns, "ns");
      part.set("block_barriers_a_round", 1);
      show("all-to-all, %u blocks x %u words {step, value}: %.0f ns with its block barrier", c.blocks, c.words_each,
           median(ns));
    });
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Clusters
// ---------------------------------------------------------------------------------------------------------------------

// Arrives and waits for all blocks of the grid: passes only if all of them are resident at once.
__global__ void __launch_bounds__(kThreads) all_resident_kernel(unsigned* arrived, Nanoseconds limit, Timed* out) {
  if (threadIdx.x != 0) return;
  Patience patience(limit);
  add_release(arrived, 1);
  patience.wait([&] { return load_acquire(arrived) >= gridDim.x; });
  if (patience.over()) atomicAdd(&out->faults, 1u);
  if (blockIdx.x == 0) out->done = 1;
}

bool all_resident(const Stream& stream, const Launch& shape, Nanoseconds limit) {
  Buffer<unsigned> arrived(1);
  Buffer<Timed> out(1);
  PROBE_CUDA(cudaMemsetAsync(arrived.get(), 0, arrived.bytes(), stream));
  PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
  launch(shape, stream, all_resident_kernel, arrived.get(), limit, out.get());
  Timed timed = {};
  PROBE_CUDA(cudaMemcpyAsync(&timed, out.get(), sizeof timed, cudaMemcpyDeviceToHost, stream));
  stream.wait();
  if (timed.done == 0) throw Failure("the residency kernel did not run");
  return timed.faults == 0;
}

template <class Kernel>
int max_active_clusters(Kernel* kernel, Launch shape) {
  shape.blocks = shape.cluster;
  const LaunchConfig config(shape, nullptr);
  int clusters = 0;
  PROBE_CUDA(cudaOccupancyMaxActiveClusters(&clusters, reinterpret_cast<const void*>(kernel), &config.config));
  return clusters;
}

void probe_cluster_residency(const Context&, Record& record) {
  Stream stream;
  allow_shared(all_resident_kernel, kOneBlockShared);
  for (const bool small : {false, true})
    for (const unsigned size : {2u, 4u, 8u, 16u}) {
      const std::string name = text("%s_cluster_of_%u", small ? "128_threads_no_shared" : "512_threads_200_kib", size);
      attempt(record, name, [&](Record& part) {
        PROBE_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(all_resident_kernel),
                                        cudaFuncAttributeNonPortableClusterSizeAllowed, size > 8 ? 1 : 0));
        Launch shape;
        shape.threads = dim3(small ? 128 : kThreads);
        shape.shared = small ? 0 : kOneBlockShared;
        shape.cluster = size;
        const int stated = max_active_clusters(all_resident_kernel, shape);
        part.set("occupancy_query_clusters", stated);
        part.set("occupancy_query_blocks", stated * static_cast<int>(size));
        const auto fits = [&](int clusters) {
          shape.blocks = static_cast<unsigned>(clusters) * size;
          return all_resident(stream, shape, 20'000'000);
        };
        // From the stated number down to the first that fits, or up to the last.
        int seen = stated;
        while (seen > 0 && !fits(seen)) --seen;
        if (seen == stated)
          while (seen < stated + 8 && fits(seen + 1)) ++seen;
        part.set("resident_together_clusters", seen);
        part.set("resident_together_blocks", seen * static_cast<int>(size));
        show("clusters of %u, %s: %d by the query, %d seen resident together", size,
             small ? "128 threads" : "512 threads and 200 KiB", stated, seen);
      });
    }
  PROBE_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(all_resident_kernel),
                                  cudaFuncAttributeNonPortableClusterSizeAllowed, 0));
}

// Grid barrier and cluster barrier in one launch; every thread counts.
__global__ void __launch_bounds__(kThreads) cooperative_cluster_kernel(unsigned* passed, Timed* out) {
  const cg::grid_group grid = cg::this_grid();
  const cg::cluster_group cluster = cg::this_cluster();
  if (!grid.is_valid()) return;
  for (int round = 0; round < 8; ++round) {
    cluster.sync();
    grid.sync();
  }
  if (threadIdx.x == 0) atomicAdd(passed, cluster.num_blocks());
  if (threadIdx.x == 0 && blockIdx.x == 0) out->done = 1;
}

void probe_cooperative_clusters(const Context&, Record& record) {
  Stream stream;
  allow_shared(cooperative_cluster_kernel, kOneBlockShared);
  allow_shared(all_resident_kernel, kOneBlockShared);
  for (const unsigned size : {2u, 4u, 8u}) {
    attempt(record, text("cluster_of_%u", size), [&](Record& part) {
      Launch shape;
      shape.cluster = size;
      shape.shared = kOneBlockShared;
      const int clusters = max_active_clusters(cooperative_cluster_kernel, shape);
      part.set("occupancy_query_clusters", clusters);
      if (clusters <= 0) throw Failure("the occupancy query gives no cluster");
      shape.blocks = static_cast<unsigned>(clusters) * size;
      Buffer<unsigned> passed(1);
      Buffer<Timed> out(1);
      PROBE_CUDA(cudaMemsetAsync(passed.get(), 0, passed.bytes(), stream));
      PROBE_CUDA(cudaMemsetAsync(out.get(), 0, sizeof(Timed), stream));
      // Residency is tried first with waits that give up: cooperative_groups' own do not.
      const bool safe = all_resident(stream, shape, 20'000'000);
      shape.cooperative = true;
      part.set("resident_without_the_cooperative_attribute", safe);
      if (!safe) throw NotRun("the grid is not resident as a whole, so its barrier is not tried");
      const cudaError_t code = try_launch(shape, stream, cooperative_cluster_kernel, passed.get(), out.get());
      part.set("accepted", code == cudaSuccess);
      part.set("launch_error", static_cast<int>(code));
      part.set("launch_error_name", cudaGetErrorName(code));
      part.set("blocks", shape.blocks);
      if (code == cudaSuccess) {
        unsigned count = 0;
        PROBE_CUDA(cudaMemcpyAsync(&count, passed.get(), sizeof count, cudaMemcpyDeviceToHost, stream));
        stream.wait();
        part.set("ran_correctly", count == shape.blocks * size);
      }
      // One cluster more than fits must be refused; if it is accepted its waits give up.
      Launch over = shape;
      over.blocks += size;
      Buffer<unsigned> arrived(1);
      PROBE_CUDA(cudaMemsetAsync(arrived.get(), 0, arrived.bytes(), stream));
      const cudaError_t refused = try_launch(over, stream, all_resident_kernel, arrived.get(), 5'000'000ull, out.get());
      part.set("one_cluster_more_error", static_cast<int>(refused));
      part.set("one_cluster_more_error_name", cudaGetErrorName(refused));
      stream.wait();
      show("cooperative launch with clusters of %u, %u blocks: %s; one cluster more: %s", size, shape.blocks,
           cudaGetErrorName(code), cudaGetErrorName(refused));
    });
  }
}

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned value;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(value));
  return value;
}

__device__ __forceinline__ unsigned cluster_size() {
  unsigned value;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(value));
  return value;
}

// Hardware barrier over the blocks of a cluster, which are always resident together.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// The address, in the cluster's shared memory, of what lies at `local` in block `rank`.
__device__ __forceinline__ unsigned peer_address(unsigned local, unsigned rank) {
  unsigned value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(value) : "r"(local), "r"(rank));
  return value;
}

__device__ __forceinline__ void mbarrier_init(unsigned address, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
}

__device__ __forceinline__ bool mbarrier_done(unsigned address, unsigned parity) {
  unsigned done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(address), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void mbarrier_expect(unsigned address, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
}

enum class Exchange {
  kClusterBarrier,  // remote stores, then the hardware barrier
  kRemoteArrive,    // remote stores, a block barrier, one arrival a peer on its mbarrier
  kStoreAsync,      // st.async: the stores themselves complete the peer's mbarrier
  kBulkCopy,        // one bulk copy a peer out of own shared memory
};

constexpr unsigned kLargestCluster = 8;

struct ExchangeShared {
  std::uint64_t barriers[2];
  alignas(128) unsigned outbox[2][kThreads];
  alignas(128) unsigned inbox[2][kLargestCluster][kThreads];
};

// Each round every block gives 2 KiB, 4 bytes a thread, to every peer of its cluster and reads what the peers gave.
// Boxes and mbarriers are double-buffered by parity: a peer that is two rounds ahead has got this block's data of the
// round between, which it sends only after reading.
template <Exchange kMethod>
__global__ void __launch_bounds__(kThreads) cluster_exchange_kernel(Timed* out) {
  __shared__ ExchangeShared shared;
  const unsigned rank = cluster_rank(), size = cluster_size(), thread = threadIdx.x;
  constexpr unsigned kBytes = kThreads * sizeof(unsigned);
  if (thread == 0) {
    for (std::uint64_t& barrier : shared.barriers)
      mbarrier_init(shared_address(&barrier), kMethod == Exchange::kRemoteArrive ? size - 1 : 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  cluster_barrier();
  Patience patience(kWaitLimit);
  Stopwatch watch;
  unsigned wrong = 0;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && thread == 0) watch.start();
    const unsigned step = static_cast<unsigned>(round + kWarmRounds);
    const unsigned box = step & 1, parity = (step >> 1) & 1;
    const unsigned barrier = shared_address(&shared.barriers[box]);
    const unsigned value = (step << 16) ^ (rank << 10) ^ thread;
    if constexpr (kMethod == Exchange::kStoreAsync || kMethod == Exchange::kBulkCopy)
      if (thread == 0) mbarrier_expect(barrier, (size - 1) * kBytes);
    if constexpr (kMethod == Exchange::kBulkCopy) {
      shared.outbox[box][thread] = value;
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncthreads();
      if (thread < size && thread != rank)
        asm volatile(
            "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                peer_address(shared_address(shared.inbox[box][rank]), thread)),
            "r"(shared_address(shared.outbox[box])), "r"(kBytes), "r"(peer_address(barrier, thread))
            : "memory");
    } else {
      const unsigned target = shared_address(&shared.inbox[box][rank][thread]);
      for (unsigned hop = 1; hop < size; ++hop) {
        const unsigned peer = rank + hop < size ? rank + hop : rank + hop - size;
        if constexpr (kMethod == Exchange::kStoreAsync)
          asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
                           peer_address(target, peer)),
                       "r"(value), "r"(peer_address(barrier, peer))
                       : "memory");
        else
          asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(peer_address(target, peer)), "r"(value) : "memory");
      }
    }
    if constexpr (kMethod == Exchange::kRemoteArrive) {
      __syncthreads();
      if (thread < size && thread != rank)
        asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(peer_address(barrier, thread))
                     : "memory");
    }
    if constexpr (kMethod == Exchange::kClusterBarrier)
      cluster_barrier();
    else
      patience.wait([&] { return mbarrier_done(barrier, parity); });
    for (unsigned peer = 0; peer < size; ++peer)
      if (peer != rank && !patience.over())
        wrong += *static_cast<volatile unsigned*>(&shared.inbox[box][peer][thread]) !=
                 ((step << 16) ^ (peer << 10) ^ thread);
  }
  if (thread == 0 && blockIdx.x == 0) watch.report(out);
  if (patience.over() || wrong != 0) atomicAdd(&out->faults, 1u);
  __syncthreads();
  cluster_barrier();  // nobody leaves while a peer may still write to its shared memory
}

__global__ void __launch_bounds__(kThreads) cluster_barrier_kernel(Timed* out) {
  Stopwatch watch;
  for (int round = -kWarmRounds; round < kRounds; ++round) {
    if (round == 0 && threadIdx.x == 0) watch.start();
    cluster_barrier();
  }
  if (threadIdx.x == 0 && blockIdx.x == 0) watch.report(out);
}

void probe_cluster_exchange(const Context&, Record& record) {
  Stream stream;
  struct Method {
    const char* name;
    void (*kernel)(Timed*);
  };
  const Method methods[] = {
      {"barrier_only", cluster_barrier_kernel},
      {"stores_then_cluster_barrier", cluster_exchange_kernel<Exchange::kClusterBarrier>},
      {"stores_then_mbarrier_arrive", cluster_exchange_kernel<Exchange::kRemoteArrive>},
      {"async_stores_on_mbarrier", cluster_exchange_kernel<Exchange::kStoreAsync>},
      {"bulk_copy_on_mbarrier", cluster_exchange_kernel<Exchange::kBulkCopy>},
  };
  for (const unsigned size : {2u, 4u, 8u})
    for (const Method& method : methods)
      attempt(record, text("%s_cluster_of_%u", method.name, size), [&](Record& part) {
        Launch shape;
        shape.cluster = size;
        const auto time = [&](unsigned clusters) {
          shape.blocks = clusters * size;
          return time_rounds_ns(stream, 11, kRounds, [&](Timed* out) { launch(shape, stream, method.kernel, out); });
        };
        const std::vector<double> alone = time(1);
        // As many clusters as the starting case uses, or as many as 100 blocks give.
        const unsigned many = 100 / size;
        const std::vector<double> together = time(many);
        part.set("one_cluster", figures(alone, "ns"));
        part.set(text("%u_clusters", many), figures(together, "ns"));
        show("cluster of %u, %s: %.0f ns alone, %.0f ns with %u clusters", size, method.name, median(alone),
             median(together), many);
      });
}

// ---------------------------------------------------------------------------------------------------------------------
// Graphs
// ---------------------------------------------------------------------------------------------------------------------

// Counts, so that a kernel that did not run shows. Each depends on the one before it.
__global__ void tick_kernel(unsigned* counter) {
  if (threadIdx.x == 0 && blockIdx.x == 0) *counter += 1;
}

// The same for a launch that may start early: lets its successor start, then waits for its predecessor.
__global__ void tick_early_kernel(unsigned* counter) {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  if (threadIdx.x == 0 && blockIdx.x == 0) *counter += 1;
}

unsigned read_counter(const Stream& stream, const Buffer<unsigned>& counter) {
  unsigned value = 0;
  PROBE_CUDA(cudaMemcpyAsync(&value, counter.get(), sizeof value, cudaMemcpyDeviceToHost, stream));
  stream.wait();
  return value;
}

// How many edges of the graph let a node start before the one before it has ended.
std::size_t programmatic_edges(cudaGraph_t graph) {
  std::size_t count = 0;
  PROBE_CUDA(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &count));
  if (count == 0) return 0;
  std::vector<cudaGraphNode_t> from(count), to(count);
  std::vector<cudaGraphEdgeData> edges(count);
  PROBE_CUDA(cudaGraphGetEdges(graph, from.data(), to.data(), edges.data(), &count));
  return static_cast<std::size_t>(std::count_if(edges.begin(), edges.end(), [](const cudaGraphEdgeData& edge) {
    return edge.type == cudaGraphDependencyTypeProgrammatic;
  }));
}

void probe_graph_lines(const Context& context, Record& record) {
  Stream stream;
  Buffer<unsigned> counter(1);
  for (const bool early : {false, true})
    for (const unsigned blocks : {1u, 32u, multiprocessors(context)}) {
      const std::string name = text("%s_%u_blocks", early ? "programmatic" : "plain", blocks);
      attempt(record, name, [&](Record& part) {
        double total[2] = {};
        std::vector<double> longest;
        int which = 0;
        for (const int nodes : {100, 1000}) {
          Launch shape;
          shape.blocks = blocks;
          shape.threads = dim3(128);
          shape.programmatic = early;
          Graph graph;
          graph.capture(stream, [&] {
            for (int i = 0; i < nodes; ++i)
              launch(shape, stream, early ? tick_early_kernel : tick_kernel, counter.get());
          });
          if (early) part.set(text("programmatic_edges_of_%d_nodes", nodes), programmatic_edges(graph.get()));
          Clock::time_point start = Clock::now();
          graph.instantiate(stream);
          part.set(text("instantiate_%d_nodes_us", nodes), microseconds_since(start));
          PROBE_CUDA(cudaMemsetAsync(counter.get(), 0, counter.bytes(), stream));
          graph.launch(stream);
          const unsigned ran = read_counter(stream, counter);
          if (ran != static_cast<unsigned>(nodes)) throw Failure(text("%u of %d nodes ran in order", ran, nodes));
          const std::vector<double> device = time_events_us(stream, 15, [&](int) { graph.launch(stream); });
          std::vector<double> host;
          for (int sample = 0; sample < 20; ++sample) {
            stream.wait();
            start = Clock::now();
            graph.launch(stream);
            host.push_back(microseconds_since(start));
          }
          stream.wait();
          part.set(text("device_%d_nodes", nodes), figures(device, "us"));
          part.set(text("host_launch_%d_nodes", nodes), figures(host, "us"));
          total[which++] = median(device);
          longest = host;
        }
        const double slope = 1e3 * (total[1] - total[0]) / 900;
        part.set("node_ns", slope);
        show("graph, %s, %u blocks: %.0f ns a node; launch of 1000 nodes %.1f us on the host",
             early ? "programmatic" : "plain", blocks, slope, median(longest));
      });
    }
}

// The last kernel of a WHILE body: counts the iteration and asks for another. Gives up at the deadline too, so that the
// loop ends whatever happens to the counter.
__global__ void continue_kernel(cudaGraphConditionalHandle handle, unsigned* counter, unsigned limit,
                                Nanoseconds* deadline) {
  const unsigned count = *counter + 1;
  *counter = count;
  const Nanoseconds now = now_ns();
  if (count == 1) *deadline = now + 2'000'000'000ull;
  cudaGraphSetConditional(handle, count < limit && now < *deadline ? 1 : 0);
}

__global__ void start_kernel(unsigned* counter, unsigned* ticks, Nanoseconds* deadline) {
  *counter = 0;
  *ticks = 0;
  *deadline = now_ns() + 2'000'000'000ull;
}

struct NodeArguments {
  template <class... Parameters, class... Arguments>
  static void add(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, bool early, unsigned blocks,
                  unsigned threads, void (*kernel)(Parameters...), Arguments... values) {
    std::tuple<Parameters...> arguments(static_cast<Parameters>(values)...);
    void* pointers[sizeof...(Parameters)] = {};
    std::size_t next = 0;
    std::apply([&](auto&... argument) { ((pointers[next++] = &argument), ...); }, arguments);
    cudaGraphNodeParams params = {};
    params.type = cudaGraphNodeTypeKernel;
    params.kernel.func = reinterpret_cast<void*>(kernel);
    params.kernel.gridDim = dim3(blocks);
    params.kernel.blockDim = dim3(threads);
    params.kernel.kernelParams = pointers;
    cudaGraphEdgeData edge = {};
    if (early) {
      edge.from_port = cudaGraphKernelNodePortProgrammatic;
      edge.type = cudaGraphDependencyTypeProgrammatic;
    }
    PROBE_CUDA(cudaGraphAddNode(node, graph, after, after != nullptr && early ? &edge : nullptr,
                                after != nullptr ? 1 : 0, &params));
  }
};

void probe_graph_while(const Context& context, Record& record) {
  Stream stream;
  Buffer<unsigned> counter(1), ticks(1);
  Buffer<Nanoseconds> deadline(1);
  struct Case {
    const char* name;
    unsigned kernels, blocks;
    bool early;
  };
  const unsigned all = multiprocessors(context);
  const Case cases[] = {{"body_of_1_kernel", 1, 1, false},
                        {"body_of_16_kernels_1_block", 16, 1, false},
                        {"body_of_16_kernels_all_multiprocessors", 16, all, false},
                        {"body_of_16_kernels_all_multiprocessors_programmatic", 16, all, true}};
  for (const Case& c : cases)
    attempt(record, c.name, [&](Record& part) {
      double total[2] = {};
      int which = 0;
      for (const unsigned iterations : {100u, 1000u}) {
        Graph graph;
        graph.create();
        cudaGraphNode_t start = nullptr, loop = nullptr;
        NodeArguments::add(&start, graph.get(), nullptr, false, 1, 1, start_kernel, counter.get(), ticks.get(),
                           deadline.get());
        cudaGraphConditionalHandle handle = {};
        PROBE_CUDA(cudaGraphConditionalHandleCreate(&handle, graph.get(), 1, cudaGraphCondAssignDefault));
        cudaGraphNodeParams params = {};
        params.type = cudaGraphNodeTypeConditional;
        params.conditional.handle = handle;
        params.conditional.type = cudaGraphCondTypeWhile;
        params.conditional.size = 1;
        PROBE_CUDA(cudaGraphAddNode(&loop, graph.get(), &start, nullptr, 1, &params));
        const cudaGraph_t body = params.conditional.phGraph_out[0];
        cudaGraphNode_t last = nullptr;
        for (unsigned i = 1; i < c.kernels; ++i) {
          cudaGraphNode_t next = nullptr;
          NodeArguments::add(&next, body, last != nullptr ? &last : nullptr, c.early, c.blocks, 128,
                             c.early ? tick_early_kernel : tick_kernel, ticks.get());
          last = next;
        }
        cudaGraphNode_t end = nullptr;
        NodeArguments::add(&end, body, last != nullptr ? &last : nullptr, false, 1, 1, continue_kernel, handle,
                           counter.get(), iterations, deadline.get());
        graph.instantiate(stream);
        const std::vector<double> device = time_events_us(stream, 11, [&](int) { graph.launch(stream); });
        const unsigned ran = read_counter(stream, counter), ticked = read_counter(stream, ticks);
        if (ran != iterations || ticked != iterations * (c.kernels - 1))
          throw Failure(text("%u iterations and %u ticks instead of %u and %u", ran, ticked, iterations,
                             iterations * (c.kernels - 1)));
        part.set(text("device_%u_iterations", iterations), figures(device, "us"));
        total[which++] = median(device);
      }
      const double iteration = 1e3 * (total[1] - total[0]) / 900;
      part.set("iteration_ns", iteration);
      part.set("kernels_in_the_body", c.kernels);
      part.set("kernel_ns", iteration / c.kernels);
      show("WHILE, %s: %.0f ns an iteration, %.0f ns a kernel", c.name, iteration, iteration / c.kernels);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory and arithmetic rates
// ---------------------------------------------------------------------------------------------------------------------

constexpr int kUnroll = 4;

// One block moves kUnroll * blockDim vectors at a time; with as many blocks as tiles it does so once.
template <bool kStreaming>
__global__ void __launch_bounds__(kThreads) copy_kernel(float4* out, const float4* in, std::size_t count) {
  const std::size_t tile = static_cast<std::size_t>(blockDim.x) * kUnroll;
  for (std::size_t begin = blockIdx.x * tile; begin < count; begin += gridDim.x * tile) {
    float4 values[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const std::size_t index = begin + threadIdx.x + static_cast<std::size_t>(i) * blockDim.x;
      if (index < count) values[i] = kStreaming ? __ldcs(in + index) : in[index];
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const std::size_t index = begin + threadIdx.x + static_cast<std::size_t>(i) * blockDim.x;
      if (index < count) {
        if (kStreaming)
          __stcs(out + index, values[i]);
        else
          out[index] = values[i];
      }
    }
  }
}

// Reads everything `passes` times through L2, past L1; the sum only keeps the loads.
__global__ void __launch_bounds__(kThreads) read_kernel(float* out, const float4* in, std::size_t count, int passes) {
  const std::size_t tile = static_cast<std::size_t>(blockDim.x) * kUnroll;
  float sum = 0;
  for (int pass = 0; pass < passes; ++pass)
    for (std::size_t begin = blockIdx.x * tile; begin < count; begin += gridDim.x * tile) {
      float4 values[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const std::size_t index = begin + threadIdx.x + static_cast<std::size_t>(i) * blockDim.x;
        values[i] = index < count ? __ldcg(in + index) : float4{};
      }
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) sum += values[i].x + values[i].y + values[i].z + values[i].w;
    }
  out[static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x] = sum;
}

Record rate(const std::vector<double>& us, double amount, const char* unit) {
  // amount / us is per microsecond: bytes / us = MB/s, FLOP / us = MFLOP/s.
  const double scale = std::string(unit) == "tflops" ? 1e6 : 1e3;
  Record out = figures(us, "us");
  out.set(text("median_%s", unit), amount / median(us) / scale);
  out.set(text("maximum_%s", unit), amount / minimum(us) / scale);
  return out;
}

void probe_memory_rates(const Context& context, Record& record) {
  Stream stream;
  constexpr std::size_t kCount = (std::size_t{1} << 30) / sizeof(float4);
  Buffer<float4> a(kCount), b(kCount), c(kCount), d(kCount);
  std::uint64_t seed = 1;
  for (const Buffer<float4>* buffer : {&a, &b, &c, &d})
    fill_normal(stream, reinterpret_cast<float*>(buffer->get()), 4 * kCount, seed++);
  stream.wait();
  // Two pairs in turn, so that no run finds its data in L2.
  const Buffer<float4>* sources[] = {&a, &b};
  const Buffer<float4>* targets[] = {&c, &d};
  const double moved = 2.0 * a.bytes();
  attempt(record, "copy_memcpy_1_gib", [&](Record& part) {
    const std::vector<double> us = time_events_us(stream, 15, [&](int i) {
      PROBE_CUDA(
          cudaMemcpyAsync(targets[i % 2]->get(), sources[i % 2]->get(), a.bytes(), cudaMemcpyDeviceToDevice, stream));
    });
    part = rate(us, moved, "gbps");
    show("copy of 1 GiB, cudaMemcpyAsync: %.0f GB/s read + written", moved / median(us) / 1e3);
  });
  const unsigned tiles = static_cast<unsigned>(kCount / (kThreads * kUnroll));
  struct Case {
    const char* name;
    void (*kernel)(float4*, const float4*, std::size_t);
    unsigned blocks;
  };
  const Case copies[] = {
      {"copy_float4_one_tile_a_block_1_gib", copy_kernel<false>, tiles},
      {"copy_float4_one_tile_a_block_streaming_1_gib", copy_kernel<true>, tiles},
      {"copy_float4_resident_grid_1_gib", copy_kernel<false>, 4 * multiprocessors(context)},
      {"copy_float4_resident_grid_streaming_1_gib", copy_kernel<true>, 4 * multiprocessors(context)},
  };
  for (const Case& copy : copies)
    attempt(record, copy.name, [&](Record& part) {
      Launch shape;
      shape.blocks = copy.blocks;
      const std::vector<double> us = time_events_us(stream, 15, [&](int i) {
        launch(shape, stream, copy.kernel, targets[i % 2]->get(), sources[i % 2]->get(), kCount);
      });
      part = rate(us, moved, "gbps");
      // A sample from both ends shows that the copy is one.
      float first[2] = {}, last[2] = {};
      for (int side = 0; side < 2; ++side) {
        const float4* data = (side == 0 ? sources : targets)[0]->get();
        PROBE_CUDA(cudaMemcpyAsync(&first[side], data, sizeof(float), cudaMemcpyDeviceToHost, stream));
        PROBE_CUDA(cudaMemcpyAsync(&last[side], reinterpret_cast<const float*>(data + kCount) - 1, sizeof(float),
                                   cudaMemcpyDeviceToHost, stream));
      }
      stream.wait();
      if (first[0] != first[1] || last[0] != last[1]) throw Failure("the copy differs from its source");
      show("%s: %.0f GB/s read + written", copy.name, moved / median(us) / 1e3);
    });
  Buffer<float> sums(static_cast<std::size_t>(tiles) * kThreads);
  attempt(record, "read_1_gib", [&](Record& part) {
    Launch shape;
    shape.blocks = tiles / 8;
    const Buffer<float4>* all[] = {&a, &b, &c, &d};
    const std::vector<double> us = time_events_us(
        stream, 15, [&](int i) { launch(shape, stream, read_kernel, sums.get(), all[i % 4]->get(), kCount, 1); });
    part = rate(us, moved / 2, "gbps");
    show("read of 1 GiB: %.0f GB/s", moved / 2 / median(us) / 1e3);
  });
  attempt(record, "read_l2_resident_16_mib", [&](Record& part) {
    constexpr std::size_t kSmall = (std::size_t{16} << 20) / sizeof(float4);
    constexpr int kPasses = 50;
    Launch shape;
    shape.blocks = 4 * multiprocessors(context);
    const std::vector<double> us = time_events_us(
        stream, 15, [&](int) { launch(shape, stream, read_kernel, sums.get(), a.get(), kSmall, kPasses); });
    const double bytes = static_cast<double>(kSmall) * sizeof(float4) * kPasses;
    part = rate(us, bytes, "gbps");
    show("read of 16 MiB in L2: %.0f GB/s", bytes / median(us) / 1e3);
  });
}

constexpr int kSums = 16;

// Nothing but fused multiply-adds on registers.
__global__ void __launch_bounds__(kThreads, 2) fma_kernel(float* out, float factor, float addend, int rounds) {
  float sums[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
  for (int round = 0; round < rounds; ++round)
#pragma unroll
    for (int repeat = 0; repeat < 8; ++repeat)
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = fmaf(sums[i], factor, addend);
  float total = 0;
#pragma unroll
  for (int i = 0; i < kSums; ++i) total += sums[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

void probe_fma_rate(const Context& context, Record& record) {
  Stream stream;
  constexpr int kFmaRounds = 8192;
  for (const unsigned blocks_each : {1u, 2u})
    attempt(record, text("fp32_fma_%u_threads_a_multiprocessor", blocks_each * kThreads), [&](Record& part) {
      Launch shape;
      shape.blocks = blocks_each * multiprocessors(context);
      Buffer<float> out(static_cast<std::size_t>(shape.blocks) * kThreads);
      const std::vector<double> us = time_events_us(
          stream, 11, [&](int) { launch(shape, stream, fma_kernel, out.get(), 0.99991f, 0.123f, kFmaRounds); });
      const double flop = 2.0 * kSums * 8 * kFmaRounds * kThreads * shape.blocks;
      part = rate(us, flop, "tflops");
      show("fp32 FMA, %u threads a multiprocessor: %.1f TFLOP/s", blocks_each * kThreads, flop / median(us) / 1e6);
    });
}
// ---------------------------------------------------------------------------------------------------------------------
// The list of experiments, the device's description, the program
// ---------------------------------------------------------------------------------------------------------------------

struct Experiment {
  const char* name;
  const char* what;
  void (*run)(const Context&, Record&);
};

// Latencies first, then rates that heat the chip; last what is known to have read out of bounds in some versions.
const Experiment kExperiments[] = {
    {"clock", "multiprocessor clock by clock64 against globaltimer", probe_clock},
    {"host_calls", "CPU cost of launches, synchronization and 8 bytes to the host", probe_host_calls},
    {"barriers", "block barrier; grid-wide barrier, own and cooperative_groups", probe_barriers},
    {"hops", "one hop through L2, and all-to-all by packed words", probe_hops},
    {"cluster_residency", "co-resident clusters, by the occupancy query and seen", probe_cluster_residency},
    {"cooperative_clusters", "cooperative launch with clusters: accepted, right?", probe_cooperative_clusters},
    {"cluster_exchange", "2 KiB to each peer through distributed shared memory", probe_cluster_exchange},
    {"graph_lines", "ns a kernel node in straight-line graphs, with and without programmatic edges", probe_graph_lines},
    {"graph_while", "ns an iteration of a WHILE node", probe_graph_while},
    {"memory_rates", "copy, read and L2 bandwidth", probe_memory_rates},
    {"fma_rate", "fp32 FMA rate", probe_fma_rate},
};

void write_file(const std::string& path, const std::string& content) {
  if (path.empty()) return;
  const std::string fresh = path + ".new";
  std::FILE* file = std::fopen(fresh.c_str(), "w");
  bool good = file != nullptr;
  if (good) {
    good = std::fwrite(content.data(), 1, content.size(), file) == content.size();
    good = std::fclose(file) == 0 && good;
  }
  if (!good || std::rename(fresh.c_str(), path.c_str()) != 0)
    std::fprintf(stderr, "probe: cannot write %s: %s\n", path.c_str(), std::strerror(errno));
}

Record describe_device(const Context& context, double first_call_us, double context_us) {
  Record out;
  const cudaDeviceProp& device = context.device;
  int driver = 0, runtime = 0, clock_khz = 0, memory_khz = 0, ordinal = 0;
  PROBE_CUDA(cudaGetDevice(&ordinal));
  PROBE_CUDA(cudaDriverGetVersion(&driver));
  PROBE_CUDA(cudaRuntimeGetVersion(&runtime));
  PROBE_CUDA(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, ordinal));
  PROBE_CUDA(cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, ordinal));
  out.set("gpu", device.name);
  out.set("multiprocessors", device.multiProcessorCount);
  out.set("compute_capability", text("%d.%d", device.major, device.minor));
  out.set("driver_version", driver);
  out.set("runtime_version", runtime);
  out.set("memory_bytes", device.totalGlobalMem);
  out.set("l2_bytes", device.l2CacheSize);
  out.set("shared_bytes_a_block_opt_in", device.sharedMemPerBlockOptin);
  out.set("shared_bytes_a_multiprocessor", device.sharedMemPerMultiprocessor);
  out.set("registers_a_multiprocessor", device.regsPerMultiprocessor);
  out.set("maximum_clock_mhz", clock_khz / 1e3);
  out.set("memory_clock_mhz", memory_khz / 1e3);
  out.set("first_cuda_call_us", first_call_us);
  out.set("context_creation_us", context_us);
  return out;
}

extern "C" void out_of_time(int) {
  static const char message[] = "probe: out of time; the JSON holds what was finished\n";
  if (write(2, message, sizeof message - 1) < 0) _exit(3);
  _exit(3);
}

int usage(const char* complaint) {
  std::fprintf(stderr, "probe: %s\nusage: probe [--json FILE] [--list] [--only REGEX] [--limit SECONDS]\n", complaint);
  return 2;
}

int run(int argc, char** argv) {
  std::string json, only;
  bool list = false;
  double limit_s = 150;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--list") {
      list = true;
      continue;
    }
    if (option != "--json" && option != "--only" && option != "--limit")
      return usage(("unknown option " + option).c_str());
    if (++i == argc) return usage(("no value for " + option).c_str());
    if (option == "--json") json = argv[i];
    if (option == "--only") only = argv[i];
    if (option == "--limit") {
      char* end = nullptr;
      limit_s = std::strtod(argv[i], &end);
      if (end == argv[i] || *end != '\0' || !(limit_s > 0 && limit_s < 1e5)) return usage("--limit wants seconds");
    }
  }
  std::regex wanted;
  try {
    wanted = std::regex(only);
  } catch (const std::regex_error& error) {
    return usage((std::string("--only: ") + error.what()).c_str());
  }
  const auto chosen = [&](const Experiment& e) { return only.empty() || std::regex_search(e.name, wanted); };
  if (list) {
    for (const Experiment& e : kExperiments)
      if (chosen(e)) std::printf("%-22s %s\n", e.name, e.what);
    return 0;
  }

  const Clock::time_point begin = Clock::now();
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  const double first_call_us = microseconds_since(begin);
  if (found == cudaErrorNoDevice || found == cudaErrorInsufficientDriver || (found == cudaSuccess && count == 0)) {
    std::fprintf(stderr, "probe: no GPU was found (%s, %d)\n", cudaGetErrorName(found), static_cast<int>(found));
    return 2;
  }
  PROBE_CUDA(found);
  const Clock::time_point before_context = Clock::now();
  PROBE_CUDA(cudaFree(nullptr));
  const double context_us = microseconds_since(before_context);

  // A call that never returns would otherwise hold the machine; a kernel that never ends cannot be (see above).
  signal(SIGALRM, out_of_time);
  alarm(static_cast<unsigned>(limit_s) + 60);

  Context context;
  PROBE_CUDA(cudaGetDeviceProperties(&context.device, 0));
  Record report, experiments;
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  gmtime_r(&now, &utc);
  report.set("what", "deviceloop bench/probe.cu");
  report.set("date_utc", text("%04d-%02d-%02dT%02d:%02d:%02dZ", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                              utc.tm_hour, utc.tm_min, utc.tm_sec));
  report.set("toolkit_version", CUDART_VERSION);
  report.set("device", describe_device(context, first_call_us, context_us));
  std::printf("%s, %d multiprocessors; first call %.0f us, context %.0f us\n", context.device.name,
              context.device.multiProcessorCount, first_call_us, context_us);
  const auto save = [&](bool finished) {
    Record whole = report;
    whole.set("finished", finished);
    whole.set("elapsed_s", microseconds_since(begin) / 1e6);
    whole.set("failures", failures);
    whole.set("experiments", experiments);
    write_file(json, whole.json() + "\n");
  };
  save(false);
  if (context.device.major < 9) {
    std::fprintf(stderr, "probe: needs compute capability 9.0 or newer, this is %d.%d\n", context.device.major,
                 context.device.minor);
    return 2;
  }

  bool dead = false;
  for (const Experiment& e : kExperiments) {
    if (!chosen(e)) continue;
    Record skipped;
    if (dead || microseconds_since(begin) > 1e6 * limit_s) {
      skipped.set("status", "not_run");
      skipped.set("message", dead ? "the CUDA context had died" : "the time was over");
      experiments.set(e.name, std::move(skipped));
      ++failures;
      continue;
    }
    std::printf("%s\n", e.name);
    const Clock::time_point start = Clock::now();
    try {
      attempt(experiments, e.name, [&](Record& record) {
        // A part's failure is in its own record; the time is noted whatever happens.
        struct Note {
          Record& record;
          Clock::time_point start;
          ~Note() { record.set("wall_ms", microseconds_since(start) / 1e3); }
        } note{record, start};
        warm_up(context);
        e.run(context, record);
      });
    } catch (const ContextDied&) {
      dead = true;
    }
    save(false);
  }
  save(!dead);
  std::printf("%.1f s%s\n", microseconds_since(begin) / 1e6, dead ? "; the CUDA context died" : "");
  return dead ? 3 : failures > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "probe: %s\n", error.what());
    return 3;
  }
}
