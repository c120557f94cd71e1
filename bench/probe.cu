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
// Exit status: 0 all ran, 1 some failed or the time was over, 2 no GPU or wrong arguments, 3 the context died or a call
// never returned.

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
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
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
// One answer among many, and not worth a line of the table.
struct NoAlgorithm : NotRun {
  NoAlgorithm() : NotRun("the heuristic offers no algorithm") {}
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

int failures = 0;  // parts that failed so far; what could not be run, because it does not exist here, is none

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
double microseconds_since(Clock::time_point start) {
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
    part.set("time_of_back_to_back_launches", figures(device, "us"));  // the host's or the device's, the longer
    show("launch of an empty kernel: %.2f us a call in a burst, %.2f us alone; %.2f us each back to back",
         median(burst), median(single), median(device));
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

__global__ void __launch_bounds__(kThreads) block_barrier_kernel(int rounds, Timed* out) {
  Stopwatch watch;
  for (int round = -kWarmRounds; round < rounds; ++round) {
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
    const RoundTimes times = time_rounds(stream, 15, 20 * kRounds, [&](Timed* out) {
      launch(Launch(), stream, block_barrier_kernel, 20 * kRounds, out);
    });
    part = times.record();
    show("block barrier, 512 threads: %.1f ns", median(times.ns));
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
      const RoundTimes times = time_rounds(stream, 15, kRounds, [&](Timed* out) {
        PROBE_CUDA(cudaMemsetAsync(counter.get(), 0, counter.bytes(), stream));
        launch(shape, stream, own_grid_barrier_kernel, counter.get(), out);
      });
      part = times.record();
      show("grid barrier, own, %u blocks: %.0f ns", blocks, median(times.ns));
    });
    attempt(record, text("grid_cooperative_groups_%u_blocks", blocks), [&](Record& part) {
      const RoundTimes times =
          time_rounds(stream, 15, kRounds, [&](Timed* out) { launch(shape, stream, cg_grid_barrier_kernel, out); });
      part = times.record();
      show("grid barrier, cooperative_groups, %u blocks: %.0f ns", blocks, median(times.ns));
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
        pairs.push_back(median(time_rounds(stream, 3, 2 * kRounds, [&](Timed* out) {
                                 PROBE_CUDA(cudaMemsetAsync(words.get(), 0, words.bytes(), stream));
                                 launch(shape, stream, kernel, words.get(), partner, out);
                               }).ns));
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
      const RoundTimes times = time_rounds(stream, 15, kRounds, [&](Timed* out) {
        PROBE_CUDA(cudaMemsetAsync(words.get(), 0, words.bytes(), stream));
        launch(shape, stream, one ? all_to_all_kernel<1> : all_to_all_kernel<7>, words.get(), c.words_each, out);
      });
      part = times.record();
      part.set("block_barriers_a_round", 1);
      show("all-to-all, %u blocks x %u words {step, value}: %.0f ns with its block barrier", c.blocks, c.words_each,
           median(times.ns));
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
        if (stated <= 0) throw NotRun("the occupancy query gives no cluster");
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
          return time_rounds(stream, 11, kRounds, [&](Timed* out) { launch(shape, stream, method.kernel, out); });
        };
        const RoundTimes alone = time(1);
        // As many clusters as the starting case uses, or as many as 100 blocks give.
        const unsigned many = 100 / size;
        const RoundTimes together = time(many);
        part.set("one_cluster", alone.record());
        part.set(text("%u_clusters", many), together.record());
        show("cluster of %u, %s: %.0f ns alone, %.0f ns with %u clusters", size, method.name, median(alone.ns),
             median(together.ns), many);
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
          // Loads the kernel, which a capture might not allow.
          launch(shape, stream, early ? tick_early_kernel : tick_kernel, counter.get());
          stream.wait();
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

// Adds a kernel node after `after`, or as a first one; `early` lets it start before that has ended.
template <class... Parameters, class... Arguments>
cudaGraphNode_t add_kernel_node(cudaGraph_t graph, cudaGraphNode_t after, bool early, const Launch& shape,
                                void (*kernel)(Parameters...), Arguments... values) {
  std::tuple<Parameters...> arguments(static_cast<Parameters>(values)...);
  void* pointers[sizeof...(Parameters)] = {};
  std::size_t next = 0;
  std::apply([&](auto&... argument) { ((pointers[next++] = &argument), ...); }, arguments);
  cudaGraphNodeParams params = {};
  params.type = cudaGraphNodeTypeKernel;
  params.kernel.func = reinterpret_cast<void*>(kernel);
  params.kernel.gridDim = dim3(shape.blocks);
  params.kernel.blockDim = shape.threads;
  params.kernel.kernelParams = pointers;
  cudaGraphEdgeData edge = {};
  edge.from_port = cudaGraphKernelNodePortProgrammatic;
  edge.type = cudaGraphDependencyTypeProgrammatic;
  const bool first = after == nullptr;
  cudaGraphNode_t node = nullptr;
  PROBE_CUDA(cudaGraphAddNode(&node, graph, first ? nullptr : &after, !first && early ? &edge : nullptr, first ? 0 : 1,
                              &params));
  return node;
}

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
        Launch single, wide;
        single.threads = dim3(1);
        wide.threads = dim3(128);
        wide.blocks = c.blocks;
        const cudaGraphNode_t start = add_kernel_node(graph.get(), nullptr, false, single, start_kernel, counter.get(),
                                                      ticks.get(), deadline.get());
        cudaGraphNode_t loop = nullptr;
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
        try {
          for (unsigned i = 1; i < c.kernels; ++i)
            last = add_kernel_node(body, last, c.early, wide, c.early ? tick_early_kernel : tick_kernel, ticks.get());
          add_kernel_node(body, last, false, single, continue_kernel, handle, counter.get(), iterations,
                          deadline.get());
          graph.instantiate(stream);
        } catch (const Failure& refused) {
          // Whether a body may have programmatic edges is what is asked here: no is an answer.
          if (!c.early) throw;
          (void)cudaGetLastError();
          throw NotRun(std::string("CUDA takes no programmatic edges in a body: ") + refused.what());
        }
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
  if (sum == 0.12345678f) *out = sum;  // as good as never: the loads stay and nothing is written
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
      for (const Buffer<float4>* target : targets)
        PROBE_CUDA(cudaMemsetAsync(target->get(), 0xff, target->bytes(), stream));
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
  Buffer<float> sums(1);
  attempt(record, "read_1_gib", [&](Record& part) {
    Launch shape;
    shape.blocks = tiles / 8;
    const Buffer<float4>* all[] = {&a, &b, &c, &d};
    const std::vector<double> us = time_events_us(
        stream, 15, [&](int i) { launch(shape, stream, read_kernel, sums.get(), all[i % 4]->get(), kCount, 1); });
    part = rate(us, moved / 2, "gbps");
    show("read of 1 GiB: %.0f GB/s", moved / 2 / median(us) / 1e3);
  });
  attempt(record, "read_l2_resident", [&](Record& part) {
    // As many tiles as blocks, about 16 MiB, so that every multiprocessor reads the same amount.
    Launch shape;
    shape.blocks = 4 * multiprocessors(context);
    const std::size_t small = static_cast<std::size_t>(shape.blocks) * kThreads * kUnroll;
    constexpr int kPasses = 50;
    const std::vector<double> us = time_events_us(
        stream, 15, [&](int) { launch(shape, stream, read_kernel, sums.get(), a.get(), small, kPasses); });
    const double bytes = static_cast<double>(small) * sizeof(float4);
    part = rate(us, bytes * kPasses, "gbps");
    part.set("resident_bytes", bytes);
    show("read of %.1f MB in L2: %.0f GB/s", bytes / 1e6, bytes * kPasses / median(us) / 1e3);
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
// cuBLASLt: found at run time
// ---------------------------------------------------------------------------------------------------------------------

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;  // as recommended for Hopper

struct LtFunctions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtGetStatusName) status_name;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algo_get;
  decltype(&cublasLtMatmul) matmul;
};

// Where libraries of the toolkit and of Python wheels lie. The wheels' folder is derived from every folder in PATH,
// because an environment's python3 stands in one of them, as itself or as a link.
std::vector<std::string> library_folders() {
  std::vector<std::string> folders;
  const auto add_matches = [&](const std::string& pattern) {
    glob_t found = {};
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
      for (std::size_t i = 0; i < found.gl_pathc; ++i) folders.push_back(found.gl_pathv[i]);
    globfree(&found);
  };
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* home = std::getenv(variable)) folders.push_back(std::string(home) + "/lib64");
  add_matches("/usr/local/cuda/lib64");
  add_matches("/usr/local/cuda-*/lib64");
  std::vector<std::string> bins;
  if (const char* environment = std::getenv("VIRTUAL_ENV")) bins.push_back(std::string(environment) + "/bin");
  std::string path = std::getenv("PATH") != nullptr ? std::getenv("PATH") : "";
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find(':', begin), path.size());
    if (end > begin) bins.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  for (std::size_t i = 0, given = bins.size(); i < given; ++i) {
    char target[4096];
    const ssize_t length = readlink((bins[i] + "/python3").c_str(), target, sizeof target - 1);
    const std::string link(target, length > 0 ? static_cast<std::size_t>(length) : 0);
    if (link.rfind('/') != std::string::npos)
      bins.push_back((link[0] == '/' ? "" : bins[i] + "/") + link.substr(0, link.rfind('/')));
  }
  for (const std::string& bin : bins)
    for (const char* packages : {"site-packages", "dist-packages"})
      add_matches(bin + "/../lib/python3*/" + packages + "/nvidia/*/lib");
  for (const char* packages : {"/opt/*/lib", "/opt/*/.venv/lib", "/usr/local/lib"})
    for (const char* kind : {"site-packages", "dist-packages"})
      add_matches(std::string(packages) + "/python3*/" + kind + "/nvidia/*/lib");
  return folders;
}

class Lt {
 public:
  // Loads the library once; a failure is remembered, so that every experiment that needs it says why it did not run.
  static const Lt& get() {
    static const Lt loaded;
    if (!loaded.missing_.empty()) throw NotRun(loaded.missing_);
    return loaded;
  }

  const LtFunctions& functions() const { return functions_; }
  cublasLtHandle_t handle() const { return handle_; }
  void* workspace() const { return workspace_; }
  void describe(Record& out) const {
    out.set("version", functions_.version());
    out.set("header_version", CUBLAS_VERSION);
    out.set("library", path_);
    out.set("dlopen_us", open_us_);
    out.set("create_us", create_us_);
  }
  void check(cublasStatus_t status, const char* expression, int line) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw Failure(
        text("%s (%d) from %s, line %d", functions_.status_name(status), static_cast<int>(status), expression, line));
  }

 private:
  Lt() {
    const std::string soname = text("libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    std::vector<std::string> names;
    // Asked for by name: a version other than the loader's is to be measured.
    if (const char* asked = std::getenv("DEVICELOOP_CUBLASLT")) {
      struct stat status = {};
      const bool folder = stat(asked, &status) == 0 && S_ISDIR(status.st_mode);
      names.push_back(folder ? std::string(asked) + "/" + soname : asked);
    }
    names.push_back(soname);
    for (const std::string& folder : library_folders()) names.push_back(folder + "/" + soname);
    const Clock::time_point start = Clock::now();
    void* library = nullptr;
    std::string complaint;
    for (const std::string& name : names) {
      library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) {
        path_ = name;
        break;
      }
      if (complaint.empty()) complaint = dlerror();
    }
    open_us_ = microseconds_since(start);
    if (library == nullptr) {
      missing_ = soname + " was not found (" + complaint + "); set DEVICELOOP_CUBLASLT to the library or its folder";
      return;
    }
    const auto look_up = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      if (function == nullptr && missing_.empty()) missing_ = path_ + " has no " + symbol;
    };
    look_up(functions_.create, "cublasLtCreate");
    look_up(functions_.destroy, "cublasLtDestroy");
    look_up(functions_.version, "cublasLtGetVersion");
    look_up(functions_.status_name, "cublasLtGetStatusName");
    look_up(functions_.desc_create, "cublasLtMatmulDescCreate");
    look_up(functions_.desc_destroy, "cublasLtMatmulDescDestroy");
    look_up(functions_.desc_set, "cublasLtMatmulDescSetAttribute");
    look_up(functions_.layout_create, "cublasLtMatrixLayoutCreate");
    look_up(functions_.layout_destroy, "cublasLtMatrixLayoutDestroy");
    look_up(functions_.preference_create, "cublasLtMatmulPreferenceCreate");
    look_up(functions_.preference_destroy, "cublasLtMatmulPreferenceDestroy");
    look_up(functions_.preference_set, "cublasLtMatmulPreferenceSetAttribute");
    look_up(functions_.heuristic, "cublasLtMatmulAlgoGetHeuristic");
    look_up(functions_.algo_get, "cublasLtMatmulAlgoConfigGetAttribute");
    look_up(functions_.matmul, "cublasLtMatmul");
    if (!missing_.empty()) return;
    const Clock::time_point before = Clock::now();
    const cublasStatus_t status = functions_.create(&handle_);
    create_us_ = microseconds_since(before);
    if (status != CUBLAS_STATUS_SUCCESS) missing_ = text("cublasLtCreate gave %d", static_cast<int>(status));
    if (missing_.empty() && cudaMalloc(&workspace_, kWorkspaceBytes) != cudaSuccess)
      missing_ = "no memory for cuBLASLt's workspace";
  }

  LtFunctions functions_ = {};
  cublasLtHandle_t handle_ = nullptr;  // lives as long as the process
  void* workspace_ = nullptr;
  std::string path_, missing_;
  double open_us_ = 0, create_us_ = 0;
};
#define PROBE_LT(expression) Lt::get().check(Lt::get().functions().expression, #expression, __LINE__)

struct Precision {
  const char* name;
  cudaDataType in, out;
  cublasComputeType_t compute;
  cudaDataType scale;
  double tolerance;  // of one product against double, relative Frobenius
};

const Precision kFp32 = {"fp32", CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F, 2e-6};
const Precision kTf32 = {"tf32", CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F, 2e-3};
const Precision kFp64 = {"fp64", CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F, CUDA_R_64F, 1e-14};
const Precision kBf16 = {"bf16", CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F, 4e-3};
const Precision kBf16Fp32 = {"bf16_to_fp32", CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F, 1e-5};

std::size_t bytes_of(cudaDataType type) { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }

// Matrix elements on the host, of any of the types, kept as the device will see them.
class HostArray {
 public:
  HostArray(cudaDataType type, std::size_t count) : type_(type), data_(count * bytes_of(type)) {}

  std::size_t size() const { return data_.size() / bytes_of(type_); }
  const void* get() const { return data_.data(); }
  void* get() { return data_.data(); }
  std::size_t bytes() const { return data_.size(); }

  void set(std::size_t i, double value) {
    if (type_ == CUDA_R_64F) {
      std::memcpy(&data_[8 * i], &value, 8);
      return;
    }
    const float narrow = static_cast<float>(value);
    std::uint32_t word;
    std::memcpy(&word, &narrow, 4);
    if (type_ == CUDA_R_32F) {
      std::memcpy(&data_[4 * i], &word, 4);
      return;
    }
    if (std::isnan(narrow))
      word |= 0x00400000;  // stays a NaN when its low half is cut off
    else
      word += 0x7fff + ((word >> 16) & 1);  // to nearest, ties to even
    const std::uint16_t half = static_cast<std::uint16_t>(word >> 16);
    std::memcpy(&data_[2 * i], &half, 2);
  }

  std::uint64_t bits(std::size_t i) const {
    std::uint64_t value = 0;  // little-endian: the low bytes
    std::memcpy(&value, &data_[bytes_of(type_) * i], bytes_of(type_));
    return value;
  }

  double operator[](std::size_t i) const {
    const std::uint64_t word = bits(i);
    if (type_ == CUDA_R_64F) {
      double value;
      std::memcpy(&value, &word, 8);
      return value;
    }
    const std::uint32_t low = static_cast<std::uint32_t>(type_ == CUDA_R_32F ? word : word << 16);
    float value;
    std::memcpy(&value, &low, 4);
    return value;
  }

  std::string hex(std::size_t i) const {
    return text("0x%0*llx", static_cast<int>(2 * bytes_of(type_)), static_cast<unsigned long long>(bits(i)));
  }

 private:
  cudaDataType type_;
  std::vector<unsigned char> data_;
};

using Bytes = Buffer<unsigned char>;

void upload(const Stream& stream, const Bytes& device, const void* host, std::size_t bytes) {
  if (bytes > device.bytes()) throw Failure("upload past the end of a buffer");
  PROBE_CUDA(cudaMemcpyAsync(device.get(), host, bytes, cudaMemcpyHostToDevice, stream));
  stream.wait();
}

void download(const Stream& stream, void* host, const Bytes& device, std::size_t bytes) {
  if (bytes > device.bytes()) throw Failure("download past the end of a buffer");
  PROBE_CUDA(cudaMemcpyAsync(host, device.get(), bytes, cudaMemcpyDeviceToHost, stream));
  stream.wait();
}

void poison(const Stream& stream, const Bytes& device) {
  PROBE_CUDA(cudaMemsetAsync(device.get(), 0xff, device.bytes(), stream));  // NaN in every type
}

// D [m x n] = alpha op(A) op(B) + beta C, all column-major with packed columns, epilogue applied.
struct ProductSpec {
  const Precision* precision = nullptr;
  int m = 0, n = 0, k = 0;
  cublasOperation_t op_a = CUBLAS_OP_N, op_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;  // read by BIAS, written by BGRAD
  void* aux = nullptr;
  std::int64_t aux_ld = 0;
  bool device_scalars = false;
};

// Our row-major [rows, features] is cuBLASLt's features x rows. Forward: Z = W X, op N N; backward: dH = W^T dZ, op T
// N; update: dW = dZ H^T, op N T.
std::int64_t mask_ld(int rows) { return (rows + 127) / 128 * 128; }

// alpha and beta in the type that the scale wants.
struct Scalars {
  Scalars(const Precision& precision, double alpha, double beta) {
    for (const bool first : {true, false}) {
      const double value = first ? alpha : beta;
      const float narrow = static_cast<float>(value);
      std::memcpy(first ? this->alpha : this->beta,
                  precision.scale == CUDA_R_64F ? static_cast<const void*>(&value) : &narrow,
                  bytes_of(precision.scale));
    }
  }
  alignas(8) unsigned char alpha[8] = {};
  alignas(8) unsigned char beta[8] = {};
};

class Product {
 public:
  static constexpr int kMostCandidates = 16;
  // Wrapped: nvcc 13.0 breaks down on a vector of cuBLASLt's unnamed struct.
  struct Candidate {
    cublasLtMatmulHeuristicResult_t result;
  };

  explicit Product(const ProductSpec& spec) : spec_(spec) {
    const Precision& p = *spec.precision;
    PROBE_LT(desc_create(&desc_, p.compute, p.scale));
    set(CUBLASLT_MATMUL_DESC_TRANSA, spec.op_a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, spec.op_b);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, spec.epilogue);
    if (spec.bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, spec.bias);
    if (spec.aux != nullptr) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, spec.aux);
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, spec.aux_ld);
    }
    if (spec.device_scalars) set(CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
    const auto layout = [](cublasLtMatrixLayout_t* out, cudaDataType type, int rows, int columns) {
      PROBE_LT(layout_create(out, type, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns), rows));
    };
    const bool plain_a = spec.op_a == CUBLAS_OP_N, plain_b = spec.op_b == CUBLAS_OP_N;
    layout(&a_, p.in, plain_a ? spec.m : spec.k, plain_a ? spec.k : spec.m);
    layout(&b_, p.in, plain_b ? spec.k : spec.n, plain_b ? spec.n : spec.k);
    layout(&d_, p.out, spec.m, spec.n);
  }
  ~Product() {
    const LtFunctions& lt = Lt::get().functions();
    for (const cublasLtMatrixLayout_t layout : {a_, b_, d_})
      if (layout != nullptr) (void)lt.layout_destroy(layout);
    if (desc_ != nullptr) (void)lt.desc_destroy(desc_);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  // What the heuristic offers, best first; none is an answer, not an error.
  std::vector<Candidate> candidates(int wanted, cublasStatus_t* status = nullptr) const {
    cublasLtMatmulPreference_t preference = nullptr;
    PROBE_LT(preference_create(&preference));
    cublasLtMatmulHeuristicResult_t offered[kMostCandidates] = {};
    const std::size_t workspace = kWorkspaceBytes;
    int count = 0;
    const LtFunctions& lt = Lt::get().functions();
    cublasStatus_t code =
        lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (code == CUBLAS_STATUS_SUCCESS)
      code = lt.heuristic(Lt::get().handle(), desc_, a_, b_, d_, d_, preference, std::min(wanted, kMostCandidates),
                          offered, &count);
    (void)lt.preference_destroy(preference);
    if (status != nullptr) *status = code;
    std::vector<Candidate> found;
    for (int i = 0; code == CUBLAS_STATUS_SUCCESS && i < count; ++i)
      if (offered[i].state == CUBLAS_STATUS_SUCCESS) found.push_back({offered[i]});
    return found;
  }

  Candidate first() const {
    const std::vector<Candidate> found = candidates(1);
    if (found.empty()) throw NoAlgorithm();
    return found[0];
  }

  // alpha and beta point to host or device memory, as the spec says.
  void run(const Candidate& choice, cudaStream_t stream, const void* alpha, const void* a, const void* b,
           const void* beta, void* d) const {
    PROBE_LT(matmul(Lt::get().handle(), desc_, alpha, a, a_, b, b_, beta, d, d_, d, d_, &choice.result.algo,
                    Lt::get().workspace(), kWorkspaceBytes, stream));
  }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    PROBE_LT(desc_set(desc_, attribute, &value, sizeof value));
  }

  ProductSpec spec_;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
};

int algorithm_id(const Product::Candidate& choice) {
  int id = -1;
  std::size_t written = 0;
  if (Lt::get().functions().algo_get(&choice.result.algo, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, &written) !=
      CUBLAS_STATUS_SUCCESS)
    return -1;
  return id;
}

void probe_lt_load(const Context&, Record& record) {
  const Lt& lt = Lt::get();
  lt.describe(record);
  show("cuBLASLt %zu", lt.functions().version());
}

// ---------------------------------------------------------------------------------------------------------------------
// cuBLASLt: what the heuristic offers, and what is right
// ---------------------------------------------------------------------------------------------------------------------

struct NamedEpilogue {
  const char* name;
  cublasLtEpilogue_t epilogue;
  bool bias, mask, gelu;
  cublasOperation_t op_a, op_b;  // the layout in which a training step would use it
};

const NamedEpilogue kEpilogues[] = {
    {"DEFAULT", CUBLASLT_EPILOGUE_DEFAULT, false, false, false, CUBLAS_OP_N, CUBLAS_OP_N},
    {"RELU", CUBLASLT_EPILOGUE_RELU, false, false, false, CUBLAS_OP_N, CUBLAS_OP_N},
    {"BIAS", CUBLASLT_EPILOGUE_BIAS, true, false, false, CUBLAS_OP_N, CUBLAS_OP_N},
    {"RELU_BIAS", CUBLASLT_EPILOGUE_RELU_BIAS, true, false, false, CUBLAS_OP_N, CUBLAS_OP_N},
    {"RELU_AUX", CUBLASLT_EPILOGUE_RELU_AUX, false, true, false, CUBLAS_OP_N, CUBLAS_OP_N},
    {"RELU_AUX_BIAS", CUBLASLT_EPILOGUE_RELU_AUX_BIAS, true, true, false, CUBLAS_OP_N, CUBLAS_OP_N},
    {"GELU_AUX_BIAS", CUBLASLT_EPILOGUE_GELU_AUX_BIAS, true, false, true, CUBLAS_OP_N, CUBLAS_OP_N},
    {"DEFAULT_backward", CUBLASLT_EPILOGUE_DEFAULT, false, false, false, CUBLAS_OP_T, CUBLAS_OP_N},
    {"DRELU", CUBLASLT_EPILOGUE_DRELU, false, true, false, CUBLAS_OP_T, CUBLAS_OP_N},
    {"DRELU_BGRAD", CUBLASLT_EPILOGUE_DRELU_BGRAD, true, true, false, CUBLAS_OP_T, CUBLAS_OP_N},
    {"DEFAULT_update", CUBLASLT_EPILOGUE_DEFAULT, false, false, false, CUBLAS_OP_N, CUBLAS_OP_T},
    {"BGRADA", CUBLASLT_EPILOGUE_BGRADA, true, false, false, CUBLAS_OP_N, CUBLAS_OP_T},
    {"BGRADB", CUBLASLT_EPILOGUE_BGRADB, true, false, false, CUBLAS_OP_N, CUBLAS_OP_T},
};

void probe_lt_epilogues(const Context&, Record& record) {
  (void)Lt::get();
  struct Size {
    const char* name;
    int in, out, batch;
  };
  // 104 columns: the GELU buffer's ld, and bf16's 16 bytes, want a multiple of 8.
  const Size sizes[] = {{"1000_100_batch_128", 1000, 100, 128},
                        {"1000_104_batch_128", 1000, 104, 128},
                        {"4096_4096_batch_8192", 4096, 4096, 8192}};
  // The heuristic looks at the pointers' alignment only.
  Bytes bias(1 << 20), aux(1 << 20);
  for (const Precision* precision : {&kFp32, &kTf32, &kFp64, &kBf16, &kBf16Fp32})
    for (const Size& size : sizes)
      attempt(record, text("%s_%s", precision->name, size.name), [&](Record& part) {
        constexpr int kWanted = 8;
        std::string refused;
        for (const NamedEpilogue& e : kEpilogues) {
          ProductSpec spec;
          spec.precision = precision;
          spec.op_a = e.op_a;
          spec.op_b = e.op_b;
          const bool forward = e.op_a == CUBLAS_OP_N && e.op_b == CUBLAS_OP_N;
          const bool backward = e.op_a == CUBLAS_OP_T;
          spec.m = backward ? size.in : size.out;
          spec.n = forward || backward ? size.batch : size.in;
          spec.k = forward ? size.in : backward ? size.out : size.batch;
          spec.epilogue = e.epilogue;
          if (e.bias) spec.bias = bias.get();
          if (e.mask || e.gelu) {
            spec.aux = aux.get();
            spec.aux_ld = e.mask ? mask_ld(spec.m) : (spec.m + 7) / 8 * 8;
          }
          cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
          const std::size_t count = Product(spec).candidates(kWanted, &status).size();
          part.set(text("%s_algorithms", e.name), count);
          if (count == 0) part.set(text("%s_status", e.name), Lt::get().functions().status_name(status));
          if (count == 0) refused += std::string(" ") + e.name;
        }
        part.set("algorithms_asked_for", kWanted);
        show("%s %s: %s%s", precision->name, size.name, refused.empty() ? "all epilogues" : "no algorithm for",
             refused.c_str());
      });
}

// Host products in double.
double element_a(const HostArray& a, const ProductSpec& s, int row, int inner) {
  return s.op_a == CUBLAS_OP_N ? a[static_cast<std::size_t>(inner) * s.m + row]
                               : a[static_cast<std::size_t>(row) * s.k + inner];
}

double element_b(const HostArray& b, const ProductSpec& s, int inner, int column) {
  return s.op_b == CUBLAS_OP_N ? b[static_cast<std::size_t>(column) * s.k + inner]
                               : b[static_cast<std::size_t>(inner) * s.n + column];
}

std::vector<double> host_product(const HostArray& a, const HostArray& b, const ProductSpec& s) {
  std::vector<double> out(static_cast<std::size_t>(s.m) * s.n);
  for (int column = 0; column < s.n; ++column)
    for (int row = 0; row < s.m; ++row) {
      double sum = 0;
      for (int inner = 0; inner < s.k; ++inner) sum += element_a(a, s, row, inner) * element_b(b, s, inner, column);
      out[static_cast<std::size_t>(column) * s.m + row] = sum;
    }
  return out;
}

// ||out - wanted|| / ||wanted||; NaN passes through.
template <class Got>
double relative_error(const Got& got, const std::vector<double>& wanted) {
  double wrong = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    wrong += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  return std::sqrt(wrong / norm);
}

// Uniform in [-1, 1), the same on every run.
HostArray random_array(cudaDataType type, std::size_t count, std::uint64_t seed) {
  HostArray out(type, count);
  std::uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
  for (std::size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    out.set(i, static_cast<double>(state >> 11) * 0x1p-52 - 1);
  }
  return out;
}

void probe_lt_products(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  for (const Precision* precision : {&kFp32, &kTf32, &kFp64, &kBf16, &kBf16Fp32})
    attempt(record, precision->name, [&](Record& part) {
      // The weight update's layout and its use: W = -rate dZ H^T + 1 W, in place.
      ProductSpec spec;
      spec.precision = precision;
      spec.m = 96, spec.n = 64, spec.k = 48;
      spec.op_b = CUBLAS_OP_T;
      const HostArray a = random_array(precision->in, static_cast<std::size_t>(spec.m) * spec.k, 1);
      const HostArray b = random_array(precision->in, static_cast<std::size_t>(spec.n) * spec.k, 2);
      const HostArray before = random_array(precision->out, static_cast<std::size_t>(spec.m) * spec.n, 3);
      const std::vector<double> plain = host_product(a, b, spec);
      Bytes device_a(a.bytes()), device_b(b.bytes()), device_d(before.bytes()), scalars(64);
      upload(stream, device_a, a.get(), a.bytes());
      upload(stream, device_b, b.get(), b.bytes());
      HostArray got(precision->out, before.size());
      const auto error_of = [&](double alpha, double beta) {
        download(stream, got.get(), device_d, got.bytes());
        std::vector<double> wanted(plain.size());
        for (std::size_t i = 0; i < plain.size(); ++i)
          wanted[i] = alpha * plain[i] + (beta == 0 ? 0 : beta * before[i]);
        return relative_error(got, wanted);
      };
      bool good = true;
      const auto judge = [&](const char* name, double error) {
        part.set(text("%s_relative_error", name), error);
        part.set(text("%s_correct", name), error <= precision->tolerance);
        good = good && error <= precision->tolerance;
      };
      const Scalars update(*precision, -0.375, 1), fresh(*precision, 1, 0);
      const Product product(spec);
      poison(stream, device_d);  // beta = 0 must not read it
      product.run(product.first(), stream, fresh.alpha, device_a.get(), device_b.get(), fresh.beta, device_d.get());
      judge("product", error_of(1, 0));
      upload(stream, device_d, before.get(), before.bytes());
      product.run(product.first(), stream, update.alpha, device_a.get(), device_b.get(), update.beta, device_d.get());
      judge("beta_one_in_place", error_of(-0.375, 1));

      spec.device_scalars = true;
      const Product pointed(spec);
      const Product::Candidate choice = pointed.first();
      upload(stream, scalars, update.alpha, 8);
      PROBE_CUDA(cudaMemcpyAsync(scalars.get() + 16, update.beta, 8, cudaMemcpyHostToDevice, stream));
      upload(stream, device_d, before.get(), before.bytes());
      const auto enqueue = [&] {
        pointed.run(choice, stream, scalars.get(), device_a.get(), device_b.get(), scalars.get() + 16, device_d.get());
      };
      enqueue();
      judge("device_scalars", error_of(-0.375, 1));

      // In a graph, alpha must be read at every replay; and no node may allocate.
      Graph graph;
      graph.capture(stream, enqueue);
      std::size_t nodes = 0;
      PROBE_CUDA(cudaGraphGetNodes(graph.get(), nullptr, &nodes));
      std::vector<cudaGraphNode_t> list(nodes);
      if (nodes > 0) PROBE_CUDA(cudaGraphGetNodes(graph.get(), list.data(), &nodes));
      int kernels = 0, allocations = 0;
      for (const cudaGraphNode_t node : list) {
        cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
        PROBE_CUDA(cudaGraphNodeGetType(node, &type));
        kernels += type == cudaGraphNodeTypeKernel;
        allocations += type == cudaGraphNodeTypeMemAlloc || type == cudaGraphNodeTypeMemFree;
      }
      part.set("graph_nodes", nodes);
      part.set("graph_kernel_nodes", kernels);
      part.set("graph_allocation_nodes", allocations);
      graph.instantiate(stream);
      for (const double alpha : {-0.375, 2.0}) {
        upload(stream, scalars, Scalars(*precision, alpha, 1).alpha, 8);
        upload(stream, device_d, before.get(), before.bytes());
        graph.launch(stream);
        judge(alpha < 0 ? "graph_replay" : "graph_replay_with_another_alpha", error_of(alpha, 1));
      }
      show("%s: beta = 1 in place, device scalars, alpha read at replay: %s; %zu nodes, %d allocations",
           precision->name, good ? "correct" : "WRONG", nodes, allocations);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// cuBLASLt: the ReLU mask
// ---------------------------------------------------------------------------------------------------------------------

// One row of Z by construction: its first product, its second, and all others.
struct MaskCase {
  const char* name;
  double first, second, rest;
};

// Its square underflows, and sums of a few of it are exact.
double tiny_value(cudaDataType type) { return type == CUDA_R_64F ? 0x1p-700 : 0x1p-100; }

std::vector<MaskCase> mask_cases(cudaDataType type) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const bool wide = type == CUDA_R_64F;
  const double least_normal = wide ? std::numeric_limits<double>::min() : 0x1p-126;
  const double least = wide ? 0x1p-1074 : type == CUDA_R_32F ? 0x1p-149 : 0x1p-133;
  const double tiny = tiny_value(type);
  return {{"zero", 0, 0, 0},
          {"sum_of_negative_zeros", -0.0, -0.0, -0.0},
          {"cancelled_to_zero", 1, -1, 0},
          {"all_products_may_underflow_to_negative_zero", -tiny, -tiny, -tiny},
          {"nan", nan, 0, 0},
          {"nan_with_sign", -nan, 0, 0},
          {"negative", -1.5, 0, 0},
          {"positive", 1.5, 0, 0},
          {"least_negative_normal", -least_normal, 0, 0},
          {"least_negative_subnormal", -least, 0, 0},
          {"least_positive_subnormal", least, 0, 0},
          {"minus_infinity", -infinity, 0, 0},
          {"infinity", infinity, 0, 0}};
}

bool mask_bit(const std::vector<unsigned char>& mask, std::int64_t ld, int row, int column) {
  return (mask[static_cast<std::size_t>(column * ld / 8 + row / 8)] >> (row % 8)) & 1;
}

// Output and mask of RELU_AUX(_BIAS) beside the Z that the epilogue without ReLU gives from the same operands. The left
// half of the columns multiplies by 1, the right half by a tiny number, so that products underflow.
void probe_mask(const Stream& stream, const Precision& precision, double alpha, bool with_bias, Record& part,
                bool* output_obeys_all, bool* mask_obeys_all) {
  ProductSpec spec;
  spec.precision = &precision;
  spec.m = 64, spec.n = 32, spec.k = 32;
  const std::vector<MaskCase> cases = mask_cases(precision.in);
  const int count = static_cast<int>(cases.size());
  HostArray a(precision.in, static_cast<std::size_t>(spec.m) * spec.k);
  HostArray b(precision.in, static_cast<std::size_t>(spec.k) * spec.n);
  HostArray bias(precision.out, static_cast<std::size_t>(spec.m));
  for (int row = 0; row < spec.m; ++row) {
    const MaskCase& c = cases[static_cast<std::size_t>(row % count)];
    for (int inner = 0; inner < spec.k; ++inner)
      a.set(static_cast<std::size_t>(inner) * spec.m + row, inner == 0 ? c.first : inner == 1 ? c.second : c.rest);
    bias.set(static_cast<std::size_t>(row), -0.0);
  }
  const double tiny = tiny_value(precision.in);
  for (int column = 0; column < spec.n; ++column)
    for (int inner = 0; inner < spec.k; ++inner)
      b.set(static_cast<std::size_t>(column) * spec.k + inner, column < spec.n / 2 ? 1 : tiny);

  const std::size_t elements = static_cast<std::size_t>(spec.m) * spec.n;
  HostArray z(precision.out, elements), out(precision.out, elements);
  spec.aux_ld = mask_ld(spec.m);
  std::vector<unsigned char> mask(static_cast<std::size_t>(spec.aux_ld / 8 * spec.n));
  Bytes device_a(a.bytes()), device_b(b.bytes()), device_d(z.bytes()), device_bias(bias.bytes()), aux(mask.size());
  upload(stream, device_a, a.get(), a.bytes());
  upload(stream, device_b, b.get(), b.bytes());
  upload(stream, device_bias, bias.get(), bias.bytes());
  const Scalars scalars(precision, alpha, 0);
  const auto run = [&](const Product& product, const Product::Candidate& choice) {
    poison(stream, device_d);
    product.run(choice, stream, scalars.alpha, device_a.get(), device_b.get(), scalars.beta, device_d.get());
  };
  ProductSpec plain = spec;
  plain.epilogue = with_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  plain.bias = with_bias ? device_bias.get() : nullptr;
  {
    const Product product(plain);
    run(product, product.first());
    download(stream, z.get(), device_d, z.bytes());
  }
  ProductSpec fused = plain;
  fused.epilogue = with_bias ? CUBLASLT_EPILOGUE_RELU_AUX_BIAS : CUBLASLT_EPILOGUE_RELU_AUX;
  fused.aux = aux.get();
  const Product product(fused);
  const std::vector<Product::Candidate> choices = product.candidates(4);
  part.set("algorithms", choices.size());
  if (choices.empty()) throw NoAlgorithm();
  bool output_obeys = true, mask_obeys = true;
  std::string differing;
  for (std::size_t choice = 0; choice < choices.size(); ++choice) {
    // Once on a mask of ones and once on zeros: a bit that is not written shows.
    std::vector<unsigned char> again(mask.size());
    for (const int fill : {0xff, 0x00}) {
      PROBE_CUDA(cudaMemsetAsync(aux.get(), fill, aux.bytes(), stream));
      run(product, choices[choice]);
      download(stream, fill != 0 ? again.data() : mask.data(), aux, mask.size());
    }
    download(stream, out.get(), device_d, out.bytes());
    int unwritten = 0;
    for (int column = 0; column < spec.n; ++column)
      for (int row = 0; row < spec.m; ++row) {
        const std::size_t index = static_cast<std::size_t>(column) * spec.m + row;
        const bool bit = mask_bit(mask, spec.aux_ld, row, column);
        unwritten += bit != mask_bit(again, spec.aux_ld, row, column);
        const double value = z[index], wanted = value < 0 ? 0 : value;
        const bool output_good = std::isnan(wanted) ? std::isnan(out[index]) : out[index] == wanted;
        const bool mask_good = bit == !(value < 0);
        output_obeys = output_obeys && output_good;
        mask_obeys = mask_obeys && mask_good;
        const MaskCase& c = cases[static_cast<std::size_t>(row % count)];
        const bool right = column >= spec.n / 2;
        if (row < count && (column == 0 || column == spec.n / 2)) {
          if (choice == 0) {
            Record one;
            one.set("z_hex", z.hex(index));
            one.set("out_hex", out.hex(index));
            one.set("mask_bit", bit ? 1 : 0);
            one.set("output_obeys_rule", output_good);
            one.set("mask_obeys_rule", mask_good);
            part.set(text("%s%s", c.name, right ? "_times_tiny" : ""), std::move(one));
          }
          if (!output_good || !mask_good)
            differing += text("%s%zu:%s%s(%s%s)", differing.empty() ? "" : " ", choice, c.name,
                              right ? "_times_tiny" : "", output_good ? "" : "output", mask_good ? "" : "mask");
        }
      }
    if (unwritten > 0) {
      part.set(text("mask_bits_not_written_by_algorithm_%zu", choice), unwritten);
      mask_obeys = false;
    }
  }
  std::string words;
  for (int byte = 0; byte < 8; ++byte) words += text("%02x", mask[static_cast<std::size_t>(byte)]);
  part.set("mask_bytes_of_column_0_hex", words);
  part.set("output_obeys_rule", output_obeys);
  part.set("mask_obeys_rule", mask_obeys);
  part.set("differing_by_algorithm", differing);
  *output_obeys_all = *output_obeys_all && output_obeys;
  *mask_obeys_all = *mask_obeys_all && mask_obeys;
}

void probe_lt_relu_mask(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  for (const Precision* precision : {&kFp32, &kTf32, &kFp64, &kBf16, &kBf16Fp32})
    attempt(record, precision->name, [&](Record& part) {
      bool output_obeys = true, mask_obeys = true;
      int ran = 0;
      // alpha = -1 turns a sum of +0 into -0; a bias of -0 keeps it.
      for (const bool with_bias : {false, true})
        for (const double alpha : {1.0, -1.0})
          ran += attempt(
              part,
              text("%s_alpha_%s", with_bias ? "relu_aux_bias_of_minus_0" : "relu_aux", alpha > 0 ? "1" : "minus_1"),
              [&](Record& one) { probe_mask(stream, *precision, alpha, with_bias, one, &output_obeys, &mask_obeys); });
      part.set("variants_run", ran);
      if (ran == 0) throw NotRun("no variant has an algorithm");
      part.set("output_obeys_rule", output_obeys);
      part.set("mask_obeys_rule", mask_obeys);
      show("%s RELU_AUX(_BIAS), %d variants: output %s, mask %s", precision->name, ran,
           output_obeys ? "obeys" : "DIFFERS", mask_obeys ? "obeys" : "DIFFERS");
    });
}

// DRELU and DRELU_BGRAD at one size, with a mask made by hand or by RELU_AUX, against the host in double.
void probe_drelu(const Stream& stream, const Precision& precision, int k, Record& record) {
  ProductSpec spec;
  spec.precision = &precision;
  spec.m = 96, spec.n = 64, spec.k = k;
  spec.op_a = CUBLAS_OP_T;
  spec.aux_ld = mask_ld(spec.m);
  const HostArray a = random_array(precision.in, static_cast<std::size_t>(spec.m) * spec.k, 11);
  const HostArray b = random_array(precision.in, static_cast<std::size_t>(spec.k) * spec.n, 12);
  const std::vector<double> product = host_product(a, b, spec);
  Bytes device_a(a.bytes()), device_b(b.bytes());
  upload(stream, device_a, a.get(), a.bytes());
  upload(stream, device_b, b.get(), b.bytes());
  HostArray out(precision.out, product.size()), sums(precision.out, static_cast<std::size_t>(spec.m));
  Bytes device_d(out.bytes()), device_sums(sums.bytes());
  std::vector<unsigned char> mask(static_cast<std::size_t>(spec.aux_ld / 8 * spec.n));
  Bytes aux(mask.size());

  int ran = 0, right = 0;
  std::string wrong_ones;
  for (const bool from_forward : {false, true})
    for (const bool with_sums : {false, true})
      for (const double alpha : {1.0, -0.5}) {
        const std::string name = text("%s_%s_mask_alpha_%s", with_sums ? "drelu_bgrad" : "drelu",
                                      from_forward ? "forward" : "made", alpha > 0 ? "1" : "minus_half");
        attempt(record, name, [&](Record& part) {
          if (from_forward) {
            // A forward product of the same shape as the gradient makes the mask.
            ProductSpec forward = spec;
            forward.op_a = CUBLAS_OP_N;
            forward.k = 32;
            forward.epilogue = CUBLASLT_EPILOGUE_RELU_AUX;
            forward.aux = aux.get();
            const HostArray w = random_array(precision.in, static_cast<std::size_t>(forward.m) * forward.k, 13);
            const HostArray x = random_array(precision.in, static_cast<std::size_t>(forward.k) * forward.n, 14);
            const std::vector<double> z = host_product(w, x, forward);
            Bytes device_w(w.bytes()), device_x(x.bytes());
            upload(stream, device_w, w.get(), w.bytes());
            upload(stream, device_x, x.get(), x.bytes());
            const Scalars one(precision, 1, 0);
            const Product relu(forward);
            relu.run(relu.first(), stream, one.alpha, device_w.get(), device_x.get(), one.beta, device_d.get());
            download(stream, mask.data(), aux, mask.size());
            int wrong = 0;
            for (int column = 0; column < spec.n; ++column)
              for (int row = 0; row < spec.m; ++row) {
                const double value = z[static_cast<std::size_t>(column) * spec.m + row];
                // Near zero rounding may decide otherwise than the host does.
                if (std::fabs(value) > 0.05) wrong += mask_bit(mask, spec.aux_ld, row, column) != (value > 0);
              }
            part.set("forward_mask_wrong_bits", wrong);
          } else {
            std::uint64_t state = 99;
            for (unsigned char& byte : mask) {
              state = state * 6364136223846793005ull + 1442695040888963407ull;
              byte = static_cast<unsigned char>(state >> 56);
            }
            upload(stream, aux, mask.data(), mask.size());
          }
          ProductSpec fused = spec;
          fused.epilogue = with_sums ? CUBLASLT_EPILOGUE_DRELU_BGRAD : CUBLASLT_EPILOGUE_DRELU;
          fused.aux = aux.get();
          if (with_sums) fused.bias = device_sums.get();
          const Product gradient(fused);
          const Product::Candidate choice = gradient.first();
          poison(stream, device_d);
          poison(stream, device_sums);
          const Scalars scalars(precision, alpha, 0);
          gradient.run(choice, stream, scalars.alpha, device_a.get(), device_b.get(), scalars.beta, device_d.get());
          download(stream, out.get(), device_d, out.bytes());
          std::vector<double> wanted(product.size()), scaled(static_cast<std::size_t>(spec.m)), unscaled = scaled;
          int wrong_mask = 0;
          for (int column = 0; column < spec.n; ++column)
            for (int row = 0; row < spec.m; ++row) {
              const std::size_t index = static_cast<std::size_t>(column) * spec.m + row;
              const bool kept = mask_bit(mask, spec.aux_ld, row, column);
              wanted[index] = kept ? alpha * product[index] : 0;
              scaled[static_cast<std::size_t>(row)] += wanted[index];
              unscaled[static_cast<std::size_t>(row)] += kept ? product[index] : 0;
              wrong_mask += (out[index] != 0) != (kept && product[index] != 0);
            }
          const double error = relative_error(out, wanted);
          part.set("algorithm_id", algorithm_id(choice));
          part.set("output_relative_error", error);
          part.set("elements_masked_wrongly", wrong_mask);
          bool good = error <= precision.tolerance && wrong_mask == 0;
          if (with_sums) {
            download(stream, sums.get(), device_sums, sums.bytes());
            // Sums of `n` terms of either sign in the output's type: some digits are lost to cancellation.
            const double with_alpha = relative_error(sums, scaled), without = relative_error(sums, unscaled);
            part.set("bias_gradient_relative_error", with_alpha);
            part.set("bias_gradient_relative_error_if_alpha_were_ignored", without);
            good = good && with_alpha <= 4 * precision.tolerance;
            if (alpha != 1) {
              part.set("bias_gradient_honours_alpha", with_alpha <= 4 * precision.tolerance);
              part.set("bias_gradient_ignores_alpha", without <= 4 * precision.tolerance);
            }
          }
          part.set("correct", good);
          ++ran;
          right += good;
          if (!good) wrong_ones += " " + name;
        });
      }
  record.set("variants_run", ran);
  record.set("variants_correct", right);
  show("%s DRELU(_BGRAD), k = %d: %d of %d variants correct%s%s", precision.name, k, right, ran,
       wrong_ones.empty() ? "" : "; WRONG:", wrong_ones.c_str());
}

void probe_lt_drelu(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  for (const Precision* precision : {&kFp32, &kTf32, &kFp64, &kBf16, &kBf16Fp32})
    attempt(record, precision->name, [&](Record& part) { probe_drelu(stream, *precision, 48, part); });
}

void probe_lt_drelu_k1(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  for (const Precision* precision : {&kFp32, &kTf32, &kFp64, &kBf16, &kBf16Fp32})
    attempt(record, precision->name, [&](Record& part) { probe_drelu(stream, *precision, 1, part); });
}

// ---------------------------------------------------------------------------------------------------------------------
// cuBLASLt: fused against unfused, and the best product rates
// ---------------------------------------------------------------------------------------------------------------------

// 16 bytes of elements.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

// In place: Z [rows, packs of columns] becomes relu(Z + bias), with -0 stored where Z < 0, so that no mask is needed.
// blockDim (32, 8): x runs over packs, y over rows.
template <class T>
__global__ void bias_relu_kernel(Pack<T>* z, const Pack<T>* bias, int rows, int packs) {
  const int pack = static_cast<int>(blockIdx.x) * 32 + static_cast<int>(threadIdx.x);
  if (pack >= packs) return;
  const Pack<T> b = bias[pack];
  for (int row = static_cast<int>(blockIdx.y * 8 + threadIdx.y); row < rows; row += static_cast<int>(gridDim.y * 8)) {
    Pack<T> value = z[static_cast<std::size_t>(row) * packs + pack];
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) {
      const float sum = to_float(value.values[i]) + to_float(b.values[i]);
      value.values[i] = from_float<T>(sum < 0 ? -0.0f : sum + 0.0f);  // + 0: a sum of -0 becomes +0
    }
    z[static_cast<std::size_t>(row) * packs + pack] = value;
  }
}

// In place: dH becomes dZ, 0 where H is -0; partial column sums of each blockIdx.y go to a slot of their own.
template <class T>
__global__ void mask_and_sum_kernel(Pack<T>* gradient, float* slots, const Pack<T>* hidden, int rows, int packs) {
  constexpr int kSize = Pack<T>::kSize;
  __shared__ float partial[8][32][kSize + 1];
  const int pack = static_cast<int>(blockIdx.x) * 32 + static_cast<int>(threadIdx.x);
  float sums[kSize] = {};
  if (pack < packs)
    for (int row = static_cast<int>(blockIdx.y * 8 + threadIdx.y); row < rows; row += static_cast<int>(gridDim.y * 8)) {
      const std::size_t index = static_cast<std::size_t>(row) * packs + pack;
      Pack<T> value = gradient[index];
      const Pack<T> h = hidden[index];
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const bool blocked = __float_as_uint(to_float(h.values[i])) == 0x80000000u;
        const float kept = blocked ? 0.0f : to_float(value.values[i]);
        value.values[i] = from_float<T>(kept);
        sums[i] += kept;
      }
      gradient[index] = value;
    }
#pragma unroll
  for (int i = 0; i < kSize; ++i) partial[threadIdx.y][threadIdx.x][i] = sums[i];
  __syncthreads();
  if (threadIdx.y != 0 || pack >= packs) return;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    float total = 0;
    for (int y = 0; y < 8; ++y) total += partial[y][threadIdx.x][i];
    slots[(static_cast<std::size_t>(blockIdx.y) * packs + pack) * kSize + i] = total;
  }
}

template <class T>
__global__ void add_slots_kernel(T* out, const float* slots, int columns, int count) {
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (column >= columns) return;
  float total = 0;
  for (int slot = 0; slot < count; ++slot) total += slots[static_cast<std::size_t>(slot) * columns + column];
  out[column] = from_float<T>(total);
}

// Times each candidate and returns the fastest's index.
template <class Enqueue>
std::size_t fastest(const Stream& stream, const std::vector<Product::Candidate>& choices, int repeats, int samples,
                    Enqueue enqueue, std::vector<double>* medians = nullptr) {
  std::size_t best = choices.size();
  double best_us = std::numeric_limits<double>::infinity();
  std::string complaint;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    double us = std::numeric_limits<double>::infinity();
    try {
      us = median(time_replays_us(stream, repeats, samples, [&] { enqueue(choices[i]); }));
    } catch (const Failure& error) {
      complaint = error.what();
      if (!context_works()) throw ContextDied(complaint);
    }
    if (medians != nullptr) medians->push_back(us);
    if (us < best_us) best_us = us, best = i;
  }
  if (best == choices.size())
    throw Failure(choices.empty() ? "the heuristic offers no algorithm" : "no algorithm ran: " + complaint);
  return best;
}

// One hidden layer, forward (op N N) or backward (op T N): the product alone, the product and own kernels, and the
// fused epilogue, each with its own fastest algorithm of eight.
template <class T>
void probe_fused(const Stream& stream, const Precision& precision, int m, int n, int k, bool forward, int repeats,
                 Record& part) {
  constexpr int kPack = Pack<T>::kSize;
  if (m % kPack != 0) throw NotRun("the own kernels want whole packs of 16 bytes");
  const std::size_t elements = static_cast<std::size_t>(m) * n;
  Buffer<T> a(static_cast<std::size_t>(m) * k), b(static_cast<std::size_t>(k) * n), d(elements), hidden(elements);
  Buffer<T> bias(static_cast<std::size_t>(m));
  const int packs = m / kPack;
  Launch shape;
  shape.threads = dim3(32, 8);
  shape.blocks = static_cast<unsigned>((packs + 31) / 32);
  shape.blocks_y = static_cast<unsigned>(std::clamp(1056 / static_cast<int>(shape.blocks), 1, (n + 7) / 8));
  Buffer<float> slots(static_cast<std::size_t>(shape.blocks_y) * m);
  fill_normal(stream, a.get(), a.size(), 1);
  fill_normal(stream, b.get(), b.size(), 2);
  fill_normal(stream, bias.get(), bias.size(), 3);
  fill_normal(stream, hidden.get(), elements, 4);
  launch(shape, stream, bias_relu_kernel<T>, reinterpret_cast<Pack<T>*>(hidden.get()),
         reinterpret_cast<const Pack<T>*>(bias.get()), n, packs);
  ProductSpec spec;
  spec.precision = &precision;
  spec.m = m, spec.n = n, spec.k = k;
  spec.op_a = forward ? CUBLAS_OP_N : CUBLAS_OP_T;
  spec.aux_ld = mask_ld(m);
  Bytes aux(static_cast<std::size_t>(spec.aux_ld / 8) * n);
  // Half of the mask's bits are set.
  PROBE_CUDA(cudaMemsetAsync(aux.get(), 0x5a, aux.bytes(), stream));
  stream.wait();
  // A small alpha keeps repeated in-place work away from overflow; every product overwrites D anyway.
  const Scalars scalars(precision, 0.125, 0);
  const int samples = repeats > 1 ? 15 : 5;

  const Product plain(spec);
  const auto run_plain = [&](const Product::Candidate& choice) {
    plain.run(choice, stream, scalars.alpha, a.get(), b.get(), scalars.beta, d.get());
  };
  const std::vector<Product::Candidate> plain_choices = plain.candidates(8);
  const std::size_t plain_best = fastest(stream, plain_choices, repeats, 3, run_plain);
  const std::vector<double> alone =
      time_replays_us(stream, repeats, samples, [&] { run_plain(plain_choices[plain_best]); });
  const std::vector<double> unfused = time_replays_us(stream, repeats, samples, [&] {
    run_plain(plain_choices[plain_best]);
    Pack<T>* const out = reinterpret_cast<Pack<T>*>(d.get());
    if (forward) {
      launch(shape, stream, bias_relu_kernel<T>, out, reinterpret_cast<const Pack<T>*>(bias.get()), n, packs);
    } else {
      launch(shape, stream, mask_and_sum_kernel<T>, out, slots.get(), reinterpret_cast<const Pack<T>*>(hidden.get()), n,
             packs);
      Launch last;
      last.threads = dim3(128);
      last.blocks = static_cast<unsigned>((m + 127) / 128);
      launch(last, stream, add_slots_kernel<T>, bias.get(), slots.get(), m, static_cast<int>(shape.blocks_y));
    }
  });
  // The small case's results are compared, so that the twins are known to do the same work.
  const bool compared = forward && elements <= 1 << 20;
  HostArray hidden_unfused(precision.out, compared ? elements : 0), hidden_fused = hidden_unfused;
  const auto read_back = [&](HostArray& out) {
    PROBE_CUDA(cudaMemcpyAsync(out.get(), d.get(), out.bytes(), cudaMemcpyDeviceToHost, stream));
    stream.wait();
  };
  if (compared) read_back(hidden_unfused);
  part.set("product_alone", figures(alone, "us"));
  part.set("unfused", figures(unfused, "us"));
  part.set("unfused_algorithm_index", plain_best);
  part.set("own_kernels_us", median(unfused) - median(alone));

  ProductSpec fused_spec = spec;
  fused_spec.epilogue = forward ? CUBLASLT_EPILOGUE_RELU_AUX_BIAS : CUBLASLT_EPILOGUE_DRELU_BGRAD;
  fused_spec.bias = bias.get();
  fused_spec.aux = aux.get();
  const Product fused(fused_spec);
  const auto run_fused = [&](const Product::Candidate& choice) {
    fused.run(choice, stream, scalars.alpha, a.get(), b.get(), scalars.beta, d.get());
  };
  const std::vector<Product::Candidate> fused_choices = fused.candidates(8);
  part.set("fused_algorithms", fused_choices.size());
  if (fused_choices.empty()) throw NotRun("no algorithm for the fused epilogue; the unfused time stands");
  const std::size_t fused_best = fastest(stream, fused_choices, repeats, 3, run_fused);
  const std::vector<double> together =
      time_replays_us(stream, repeats, samples, [&] { run_fused(fused_choices[fused_best]); });
  if (compared) {
    read_back(hidden_fused);
    std::vector<double> wanted(elements);
    for (std::size_t i = 0; i < elements; ++i) wanted[i] = hidden_unfused[i];
    part.set("relative_difference_of_fused_and_unfused", relative_error(hidden_fused, wanted));
  }
  part.set("fused", figures(together, "us"));
  part.set("fused_algorithm_index", fused_best);
  part.set("fused_algorithm_id", algorithm_id(fused_choices[fused_best]));
  part.set("unfused_by_fused", median(unfused) / median(together));
  show("%s %s m=%d n=%d k=%d: product %.2f us, unfused %.2f us, fused %.2f us", precision.name,
       forward ? "forward" : "backward", m, n, k, median(alone), median(unfused), median(together));
}

void probe_lt_fused(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  struct Case {
    const char* name;
    const Precision* precision;
    int m, n, k, repeats;
    bool forward;
  };
  const Case cases[] = {
      {"fp32_forward_1000_100_batch_128", &kFp32, 100, 128, 1000, 20, true},
      {"fp32_backward_100_100_batch_128", &kFp32, 100, 128, 100, 20, false},
      {"fp32_forward_4096_batch_8192", &kFp32, 4096, 8192, 4096, 1, true},
      {"fp32_backward_4096_batch_8192", &kFp32, 4096, 8192, 4096, 1, false},
      {"tf32_forward_4096_batch_8192", &kTf32, 4096, 8192, 4096, 1, true},
      {"tf32_backward_4096_batch_8192", &kTf32, 4096, 8192, 4096, 1, false},
      {"bf16_forward_4096_batch_8192", &kBf16, 4096, 8192, 4096, 1, true},
      {"bf16_backward_4096_batch_8192", &kBf16, 4096, 8192, 4096, 1, false},
  };
  for (const Case& c : cases)
    attempt(record, c.name, [&](Record& part) {
      if (c.precision->in == CUDA_R_16BF)
        probe_fused<__nv_bfloat16>(stream, *c.precision, c.m, c.n, c.k, c.forward, c.repeats, part);
      else
        probe_fused<float>(stream, *c.precision, c.m, c.n, c.k, c.forward, c.repeats, part);
    });
}

// A few elements of a product in double, for its error. One block an element.
template <class In, class Out>
__global__ void sample_kernel(double* errors, const In* a, const In* b, const Out* d, int m, int n, int k) {
  __shared__ double partial[128];
  const int row = static_cast<int>((blockIdx.x * 7919u + 13u) % static_cast<unsigned>(m));
  const int column = static_cast<int>((blockIdx.x * 104729u + 7u) % static_cast<unsigned>(n));
  double sum = 0;
  for (int inner = static_cast<int>(threadIdx.x); inner < k; inner += 128)
    sum += static_cast<double>(a[static_cast<std::size_t>(inner) * m + row]) *
           static_cast<double>(b[static_cast<std::size_t>(column) * k + inner]);
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < 128; ++i) sum += partial[i];
  errors[2 * blockIdx.x] = static_cast<double>(d[static_cast<std::size_t>(column) * m + row]) - sum;
  errors[2 * blockIdx.x + 1] = sum;
}

template <class T>
void probe_product_rate(const Stream& stream, const Precision& precision, int size, Record& part) {
  const std::size_t elements = static_cast<std::size_t>(size) * size;
  Buffer<T> a(elements), b(elements), d(elements);
  fill_normal(stream, a.get(), elements, 21);
  fill_normal(stream, b.get(), elements, 22);
  stream.wait();
  ProductSpec spec;
  spec.precision = &precision;
  spec.m = spec.n = spec.k = size;
  const Product product(spec);
  const Scalars scalars(precision, 1, 0);
  const auto run = [&](const Product::Candidate& choice) {
    product.run(choice, stream, scalars.alpha, a.get(), b.get(), scalars.beta, d.get());
  };
  const std::vector<Product::Candidate> choices = product.candidates(8);
  std::vector<double> medians;
  const std::size_t best = fastest(stream, choices, 1, 3, run, &medians);
  PROBE_CUDA(cudaMemsetAsync(d.get(), 0xff, d.bytes(), stream));
  const std::vector<double> us = time_replays_us(stream, 1, 15, [&] { run(choices[best]); });
  const double flop = 2.0 * size * size * size;
  part = rate(us, flop, "tflops");
  part.set("algorithms", choices.size());
  part.set("best_index", best);
  part.set("best_algorithm_id", algorithm_id(choices[best]));
  part.set("first_offered_us", medians[0]);
  constexpr unsigned kSampled = 256;
  Buffer<double> errors(2 * kSampled);
  Launch shape;
  shape.blocks = kSampled;
  shape.threads = dim3(128);
  launch(shape, stream, sample_kernel<T, T>, errors.get(), a.get(), b.get(), d.get(), size, size, size);
  std::vector<double> host(errors.size());
  PROBE_CUDA(cudaMemcpyAsync(host.data(), errors.get(), errors.bytes(), cudaMemcpyDeviceToHost, stream));
  stream.wait();
  double wrong = 0, norm = 0;
  for (unsigned i = 0; i < kSampled; ++i) wrong += host[2 * i] * host[2 * i], norm += host[2 * i + 1] * host[2 * i + 1];
  part.set("relative_error_of_256_elements", std::sqrt(wrong / norm));
  show("%s product, %d^3: %.1f TFLOP/s (algorithm %zu of %zu; the first took %.0f us, the best %.0f us)",
       precision.name, size, flop / median(us) / 1e6, best, choices.size(), medians[0], median(us));
}

void probe_lt_rates(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  attempt(record, "fp32_8192", [&](Record& part) { probe_product_rate<float>(stream, kFp32, 8192, part); });
  attempt(record, "tf32_8192", [&](Record& part) { probe_product_rate<float>(stream, kTf32, 8192, part); });
  attempt(record, "bf16_8192", [&](Record& part) { probe_product_rate<__nv_bfloat16>(stream, kBf16, 8192, part); });
  attempt(record, "fp64_4096", [&](Record& part) { probe_product_rate<double>(stream, kFp64, 4096, part); });
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
    {"lt_load", "cuBLASLt: where it was found, its version, what loading and creating it cost", probe_lt_load},
    {"lt_epilogues", "cuBLASLt: which epilogues have algorithms", probe_lt_epilogues},
    {"lt_products", "cuBLASLt: beta = 1 in place, scalars in device memory, replays", probe_lt_products},
    {"lt_relu_mask", "cuBLASLt: RELU_AUX at +0, -0, NaN", probe_lt_relu_mask},
    {"lt_drelu", "cuBLASLt: DRELU and DRELU_BGRAD against the host", probe_lt_drelu},
    {"lt_fused", "cuBLASLt: fused epilogues against own kernels", probe_lt_fused},
    {"lt_rates", "cuBLASLt: the best product rates", probe_lt_rates},
    {"lt_drelu_k1", "cuBLASLt: DRELU and DRELU_BGRAD at k = 1", probe_lt_drelu_k1},
};

bool write_file(const std::string& path, const std::string& content) {
  if (path.empty()) return true;
  const std::string fresh = path + ".new";
  std::FILE* file = std::fopen(fresh.c_str(), "w");
  bool good = file != nullptr;
  if (good) {
    good = std::fwrite(content.data(), 1, content.size(), file) == content.size();
    good = std::fclose(file) == 0 && good;
  }
  good = good && std::rename(fresh.c_str(), path.c_str()) == 0;
  if (!good) std::fprintf(stderr, "probe: cannot write %s: %s\n", path.c_str(), std::strerror(errno));
  return good;
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
  double limit_s = 90;
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

  (void)std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what is printed is seen, however the program ends
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
    return write_file(json, whole.json() + "\n");
  };
  if (!save(false)) return 2;  // known now, and not when the figures are there
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
