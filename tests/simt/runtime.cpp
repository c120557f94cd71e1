// The functions of CUDA's runtime that the project calls, in place of libcudart, and the fixture's controls. Whatever
// they return is what CUDA's reference says of the same call.
#include <cuda.h>
#include <cuda_profiler_api.h>
#include <cuda_runtime_api.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "../../cuda/runtime/check.h"
#include "../../cuda/runtime/launch.h"
#include "grid.h"
#include "work.h"

namespace {

/// Work up to the one of this number, on a stream.
struct Point {
  CUstream_st* stream = nullptr;
  std::uint64_t number = 0;
};

struct Work {
  std::uint64_t number;  // rising over all streams
  std::vector<Point> after;
  std::function<void()> run;
};

enum class WorkKind { kKernel, kCopy, kMemset, kEvent };

}  // namespace

/// Captured work, in order.
struct CUgraph_st {
  struct Node {
    WorkKind kind;
    std::function<void()> run;
  };
  int device = 0;
  std::vector<Node> nodes;
};

struct CUgraphExec_st {
  CUgraph_st graph;
};

struct CUstream_st {
  int device = 0;
  bool with_default = true;  ///< in order with the device's default stream
  std::deque<Work> queue;
  std::unique_ptr<CUgraph_st> capture;  ///< where work goes instead
  bool capture_is_broken = false;       ///< by a call that no capture allows
};

struct CUevent_st {
  int device = 0;
  Point recorded;
  std::shared_ptr<std::chrono::steady_clock::time_point> reached =
      std::make_shared<std::chrono::steady_clock::time_point>();
};

namespace {

constexpr std::size_t kBorder = 256;
constexpr int kMaxThreads = 1024;
constexpr int kSharedBytes = 48 << 10;  ///< of a block, without prepare_kernel
constexpr int kPortableClusterBlocks = 8;
constexpr int kMaxClusterBlocks = 16;
constexpr int kFirstMajorWithClusters = 9;
constexpr int kClockKilohertz = 1'980'000;
constexpr int kMemoryKilohertz = 3'200'000, kMemoryBits = 6144;
constexpr std::size_t kResidentBlocks = 4;  ///< of a grid that cannot count on more

struct Allocation {
  std::size_t bytes;
  bool on_device;
  int device;
  std::uint64_t number;  ///< rising
};

struct Failure {
  int calls = 0;                      ///< until it happens; 0 for none
  std::optional<cudaError_t> code{};  ///< none: the call's
  const char* call = "";              ///< that it has happened to
};

/// DEVICELOOP_SIMT_ORDER: forward, reverse, or the seed of a random order.
simt::Order first_order() {
  const char* const text = std::getenv("DEVICELOOP_SIMT_ORDER");
  if (text == nullptr || std::string(text) == "forward") return simt::Order::kForward;
  return std::string(text) == "reverse" ? simt::Order::kReverse : simt::Order::kRandom;
}
std::uint64_t first_seed() {
  const char* const text = std::getenv("DEVICELOOP_SIMT_ORDER");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

/// What prepare_kernel has set.
struct Prepared {
  int shared_bytes = kSharedBytes;
  int cluster_blocks = kPortableClusterBlocks;
};

struct Settings {
  simt::Order order = first_order();
  std::uint64_t seed = first_seed();
  std::vector<simt::Device> devices{simt::Device{}};
  cudaError_t absent = cudaErrorNoDevice;
  Failure failure;
  cudaError_t sticky = cudaSuccess;
  std::map<std::pair<int, const void*>, Prepared> prepared;  ///< by device and kernel
  int fresh_byte = 0xff;
  std::set<int> contexts;  ///< devices that have one
  simt::Counts counts;
};

struct State {
  std::recursive_mutex mutex;
  Settings settings;
  std::map<const char*, Allocation> allocations;
  std::map<CUstream_st*, std::unique_ptr<CUstream_st>> streams;
  std::map<int, CUstream_st> default_streams;
  std::map<CUevent_st*, std::unique_ptr<CUevent_st>> events;
  std::map<CUgraph_st*, std::unique_ptr<CUgraph_st>> graphs;
  std::map<CUgraphExec_st*, std::unique_ptr<CUgraphExec_st>> graph_execs;
  std::set<const void*> library_objects;
  std::map<const void*, std::string> kernel_names;
  std::set<std::string> kernels_run;
  std::uint64_t last_number = 0;
};

State& state() {
  static State& never_destroyed = *new State;
  return never_destroyed;
}

simt::Counts& tally() { return state().settings.counts; }

/// With DEVICELOOP_SIMT_COUNTS a program says at its end what it asked for.
[[maybe_unused]] const int say_counts = [] {
  if (std::getenv("DEVICELOOP_SIMT_COUNTS") != nullptr)
    std::atexit([] {
      const simt::Counts& counts = tally();
      std::fprintf(stderr, "copies %d, synchronisations %d, allocations %d\n", counts.copies, counts.synchronisations,
                   counts.allocations);
    });
  return 0;
}();

thread_local int current_device = 0;
thread_local std::vector<int> devices_below;          ///< current before contexts were pushed
thread_local CUstream_st* captured_stream = nullptr;  ///< by this thread
thread_local cudaError_t last_error = cudaSuccess;
thread_local int inside = 0;

/// A query needs no context; any other call creates one on the current device.
enum class Kind { kOrdinary, kRelease, kQuery };

/// Every runtime call: takes the lock, fails where it is to fail, and remembers the error.
template <class Body>
cudaError_t call(Body body, Kind kind = Kind::kOrdinary, const char* name = __builtin_FUNCTION()) {
  const simt::Inside here;
  const std::lock_guard lock(state().mutex);
  Settings& settings = state().settings;
  Failure& failure = settings.failure;
  ++settings.counts.calls;
  cudaError_t code = settings.devices.empty() ? settings.absent : settings.sticky;
  if (code == cudaSuccess && failure.calls > 0 && --failure.calls == 0) {
    const std::string_view of = name;
    const bool allocates = of == "cudaMalloc" || of == "cudaMallocHost";
    code = failure.code.value_or(allocates ? cudaErrorMemoryAllocation : cudaErrorUnknown);
    failure.call = name;
  }
  if (code == cudaErrorIllegalAddress || code == cudaErrorLaunchFailure) settings.sticky = code;
  if (kind != Kind::kQuery) settings.contexts.insert(current_device);
  if (code == cudaSuccess || kind == Kind::kRelease) {
    const cudaError_t done = body();
    if (kind == Kind::kRelease && (done == cudaErrorInvalidValue || done == cudaErrorInvalidResourceHandle))
      ++settings.counts.false_frees;
    if (code == cudaSuccess) code = done;
  }
  if (code != cudaSuccess && code != cudaErrorNotReady) last_error = code;
  return code;
}

template <class Body>
cudaError_t ask(Body body, const char* name = __builtin_FUNCTION()) {
  return call(body, Kind::kQuery, name);
}

// Memory.

/// The allocation that holds the byte, or null, and what is left of it from there.
const Allocation* find_allocation(const void* pointer, std::size_t* left = nullptr) {
  const auto& allocations = state().allocations;
  const char* const byte = static_cast<const char*>(pointer);
  auto found = allocations.upper_bound(byte);
  if (found == allocations.begin()) return nullptr;
  --found;
  const auto offset = static_cast<std::size_t>(byte - found->first);
  if (offset >= found->second.bytes) return nullptr;
  if (left != nullptr) *left = found->second.bytes - offset;
  return &found->second;
}

std::size_t used_memory(int device) {
  std::size_t bytes = 0;
  for (const auto& [memory, allocation] : state().allocations)
    if (allocation.on_device && allocation.device == device) bytes += allocation.bytes;
  return bytes;
}

cudaError_t check_not_capturing();

cudaError_t allocate(void** pointer, std::size_t bytes, bool on_device) {
  if (pointer == nullptr) return cudaErrorInvalidValue;
  *pointer = nullptr;
  if (const cudaError_t code = check_not_capturing(); code != cudaSuccess) return code;
  if (bytes == 0) return cudaSuccess;
  const std::size_t memory = state().settings.devices[static_cast<std::size_t>(current_device)].memory;
  if (on_device && used_memory(current_device) + bytes > memory) return cudaErrorMemoryAllocation;
  *pointer = ::operator new (bytes, std::align_val_t{kBorder});
  std::memset(*pointer, state().settings.fresh_byte, bytes);
  if (on_device) __asan_poison_memory_region(*pointer, bytes);
  state().allocations[static_cast<char*>(*pointer)] = {bytes, on_device, current_device, ++state().last_number};
  ++tally().allocations;
  return cudaSuccess;
}

/// While one lives, device memory can be touched.
class DeviceAccess {
 public:
  DeviceAccess() {
    if (depth_++ == 0) for_device_memory(__asan_unpoison_memory_region);
  }
  ~DeviceAccess() {
    if (--depth_ == 0) for_device_memory(__asan_poison_memory_region);
  }
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;

 private:
  static void for_device_memory(void (*change)(const volatile void*, std::size_t)) {
    for (const auto& [memory, allocation] : state().allocations)
      if (allocation.on_device) change(memory, allocation.bytes);
  }
  static inline int depth_ = 0;
};

// Streams.

CUstream_st& default_stream(int device) {
  CUstream_st& stream = state().default_streams[device];
  stream.device = device;
  return stream;
}

bool is_default(const CUstream_st& stream) { return &default_stream(stream.device) == &stream; }

/// The stream behind a handle, or null where there is none.
CUstream_st* find_stream(cudaStream_t handle) {
  if (handle == nullptr) return &default_stream(current_device);
  return state().streams.count(handle) != 0 ? handle : nullptr;
}

template <class Visit>
void for_streams_of(int device, Visit visit) {
  visit(default_stream(device));
  for (const auto& [handle, stream] : state().streams)
    if (stream->device == device) visit(*stream);
}

std::uint64_t last_number(const CUstream_st& stream) { return stream.queue.empty() ? 0 : stream.queue.back().number; }

std::uint64_t enqueue(CUstream_st& stream, WorkKind kind, std::function<void()> run, std::vector<Point> after = {}) {
  if (stream.capture) {
    stream.capture->nodes.push_back({kind, std::move(run)});
    return 0;
  }
  for_streams_of(stream.device, [&](CUstream_st& other) {
    const bool ordered = stream.with_default && other.with_default && is_default(stream) != is_default(other);
    if (ordered && !other.queue.empty()) after.push_back({&other, last_number(other)});
  });
  const std::uint64_t number = ++state().last_number;
  stream.queue.push_back({number, std::move(after), std::move(run)});
  return number;
}

void drop_all_work() {
  for (auto& [device, stream] : state().default_streams) stream.queue.clear();
  for (auto& [handle, stream] : state().streams) stream->queue.clear();
}

/// Runs a stream's work up to that number, and first what each piece waits for.
void run_work(CUstream_st& stream, std::uint64_t number) {
  while (!stream.queue.empty() && stream.queue.front().number <= number) {
    const Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    for (const Point& point : work.after) run_work(*point.stream, point.number);
    try {
      work.run();
    } catch (...) {
      drop_all_work();
      throw;
    }
  }
}

/// What waits, waits for no more than that number; but on a device other streams may be ahead of it, as far as what
/// they wait for lets them: never in forward order, always in reverse, by chance in a random one.
void run_until(CUstream_st& stream, std::uint64_t number) {
  const DeviceAccess access;
  Settings& settings = state().settings;
  std::mt19937_64 random(settings.seed);
  const bool ahead =
      settings.order == simt::Order::kReverse || (settings.order == simt::Order::kRandom && random() % 2 == 0);
  if (ahead && stream.queue.size() > 0) {
    if (settings.order == simt::Order::kRandom) ++settings.seed;
    for_streams_of(stream.device, [&](CUstream_st& other) {
      if (&other != &stream) run_work(other, last_number(other));
    });
  }
  run_work(stream, number);
}

void run_all(CUstream_st& stream) { run_until(stream, last_number(stream)); }

/// Nothing waits for a stream without work.
void forget(const CUstream_st* stream) {
  for (auto& [handle, event] : state().events)
    if (event->recorded.stream == stream) event->recorded = {};
  const auto forget_in = [stream](CUstream_st& other) {
    for (Work& work : other.queue)
      std::erase_if(work.after, [&](const Point& point) { return point.stream == stream; });
  };
  for (auto& [device, other] : state().default_streams) forget_in(other);
  for (auto& [handle, other] : state().streams) forget_in(*other);
}

/// What a thread that captures must not do: the call fails, and so does the capture.
cudaError_t check_not_capturing() {
  if (captured_stream == nullptr) return cudaSuccess;
  captured_stream->capture_is_broken = true;
  return cudaErrorStreamCaptureUnsupported;
}

bool pending(const Point& point) {
  return point.stream != nullptr && !point.stream->queue.empty() && point.stream->queue.front().number <= point.number;
}

/// What a query says; one piece runs, so that a loop of queries ends.
cudaError_t query(const Point& point) {
  if (!pending(point)) return cudaSuccess;
  run_until(*point.stream, point.stream->queue.front().number);
  return cudaErrorNotReady;
}

/// The current device must be that of the stream.
cudaError_t resolve(cudaStream_t handle, CUstream_st*& stream) {
  stream = find_stream(handle);
  return stream == nullptr || stream->device != current_device ? cudaErrorInvalidResourceHandle : cudaSuccess;
}

bool valid_event(cudaEvent_t event) { return state().events.count(event) != 0; }

cudaError_t release_memory(void* pointer, bool on_device) {
  if (pointer == nullptr) return cudaSuccess;
  const auto found = state().allocations.find(static_cast<char*>(pointer));
  if (found == state().allocations.end() || found->second.on_device != on_device) return cudaErrorInvalidValue;
  for_streams_of(found->second.device, run_all);
  __asan_unpoison_memory_region(pointer, found->second.bytes);
  state().allocations.erase(found);
  ::operator delete (pointer, std::align_val_t{kBorder});
  ++tally().frees;
  return cudaSuccess;
}

/// The end of a copy: whether the device is where `kind` says, and whether the range lies in one allocation.
cudaError_t check_end(const void* pointer, std::size_t bytes, cudaMemcpyKind kind, bool kind_says_device) {
  std::size_t left = bytes;
  const Allocation* const allocation = find_allocation(pointer, &left);
  const bool on_device = allocation != nullptr && allocation->on_device;
  if (kind != cudaMemcpyDefault && on_device != kind_says_device) return cudaErrorInvalidMemcpyDirection;
  return left < bytes ? cudaErrorInvalidValue : cudaSuccess;
}

// Kernels.

const std::string& name_of(const void* kernel) {
  const simt::Inside here;
  std::string& name = state().kernel_names[kernel];
  if (!name.empty()) return name;
  char text[1024];
  // Unlike dladdr this knows functions that are local to their file.
  __sanitizer_symbolize_global(const_cast<void*>(kernel), "%g", text, sizeof text);
  return name = deviceloop::cuda::kernel_name(text);
}

struct Text {
  const char* name;
  const char* meaning;
};

Text text_of(cudaError_t code) {
  static const std::map<cudaError_t, Text> texts = {
      {cudaSuccess, {"cudaSuccess", "no error"}},
      {cudaErrorInvalidValue, {"cudaErrorInvalidValue", "invalid argument"}},
      {cudaErrorMemoryAllocation, {"cudaErrorMemoryAllocation", "out of memory"}},
      {cudaErrorInitializationError, {"cudaErrorInitializationError", "initialization error"}},
      {cudaErrorInvalidConfiguration, {"cudaErrorInvalidConfiguration", "invalid configuration argument"}},
      {cudaErrorInvalidMemcpyDirection, {"cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"}},
      {cudaErrorInsufficientDriver,
       {"cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"}},
      {cudaErrorNoDevice, {"cudaErrorNoDevice", "no CUDA-capable device is detected"}},
      {cudaErrorInvalidDevice, {"cudaErrorInvalidDevice", "invalid device ordinal"}},
      {cudaErrorNoKernelImageForDevice,
       {"cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device"}},
      {cudaErrorInvalidResourceHandle, {"cudaErrorInvalidResourceHandle", "invalid resource handle"}},
      {cudaErrorNotReady, {"cudaErrorNotReady", "device not ready"}},
      {cudaErrorIllegalAddress, {"cudaErrorIllegalAddress", "an illegal memory access was encountered"}},
      {cudaErrorLaunchFailure, {"cudaErrorLaunchFailure", "unspecified launch failure"}},
      {cudaErrorCooperativeLaunchTooLarge,
       {"cudaErrorCooperativeLaunchTooLarge", "too many blocks in cooperative launch"}},
      {cudaErrorNotSupported, {"cudaErrorNotSupported", "operation not supported"}},
      {cudaErrorInvalidClusterSize, {"cudaErrorInvalidClusterSize", "cluster size error"}},
      {cudaErrorStreamCaptureUnsupported,
       {"cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"}},
      {cudaErrorStreamCaptureInvalidated,
       {"cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"}},
  };
  const auto found = texts.find(code);
  return found != texts.end() ? found->second : Text{"unrecognized error code", "unrecognized error code"};
}

const simt::Device* find_device(int device) {
  const auto& devices = state().settings.devices;
  return device >= 0 && device < static_cast<int>(devices.size()) ? &devices[static_cast<std::size_t>(device)]
                                                                  : nullptr;
}

// Contexts, by the driver's own interface: a handle is the place of its device.

CUresult retain_context(CUcontext* context, CUdevice device) {
  return static_cast<CUresult>(ask([&] {
    if (find_device(device) == nullptr) return cudaErrorInvalidDevice;
    *context = reinterpret_cast<CUcontext>(&state().settings.devices[static_cast<std::size_t>(device)]);
    return cudaSuccess;
  }));
}

CUresult release_context(CUdevice) { return CUDA_SUCCESS; }

CUresult push_context(CUcontext context) {
  return static_cast<CUresult>(ask([&] {
    devices_below.push_back(current_device);
    current_device = static_cast<int>(reinterpret_cast<simt::Device*>(context) - state().settings.devices.data());
    return cudaSuccess;
  }));
}

CUresult pop_context(CUcontext*) {
  if (devices_below.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  current_device = devices_below.back();
  devices_below.pop_back();
  return CUDA_SUCCESS;
}

std::int64_t blocks_of_cluster(const deviceloop::cuda::LaunchConfig& config) {
  return std::max(config.cluster_blocks, 1);
}

/// One block a multiprocessor, and clusters of any of them.
std::int64_t resident_clusters_of(const simt::Device& device, const deviceloop::cuda::LaunchConfig& config) {
  const std::int64_t clusters = device.multiprocessors / blocks_of_cluster(config);
  return config.cluster_blocks > 1 && device.resident_clusters > 0 ? std::min(clusters, device.resident_clusters)
                                                                   : clusters;
}

cudaError_t check_clusters(const simt::Device& device, const deviceloop::cuda::LaunchConfig& config, int allowed) {
  if (config.cluster_blocks <= 1) return cudaSuccess;
  if (device.major < kFirstMajorWithClusters) return cudaErrorNotSupported;
  return config.cluster_blocks > std::min(allowed, device.most_cluster_blocks) ||
                 resident_clusters_of(device, config) == 0
             ? cudaErrorInvalidClusterSize
             : cudaSuccess;
}

/// What CUDA says of such a launch on the current device.
cudaError_t check_launch(const void* kernel, const deviceloop::cuda::LaunchConfig& config) {
  const simt::Device& device = *find_device(current_device);
  const auto found = state().settings.prepared.find({current_device, kernel});
  const Prepared prepared = found != state().settings.prepared.end() ? found->second : Prepared{};
  // CUDA would take blocks of incomplete warps; device.cuh does not.
  if (config.threads < 1 || config.threads > kMaxThreads || config.threads % 32 != 0 || config.shared_bytes < 0)
    return cudaErrorInvalidConfiguration;
  if (config.shared_bytes > prepared.shared_bytes) return cudaErrorInvalidValue;
  if (const cudaError_t wrong = check_clusters(device, config, prepared.cluster_blocks); wrong != cudaSuccess)
    return wrong;
  if (config.blocks % blocks_of_cluster(config) != 0) return cudaErrorInvalidClusterSize;
  if (config.cooperative && config.cluster_blocks > 1 && device.cooperative_with_clusters != cudaSuccess)
    return device.cooperative_with_clusters;
  return config.cooperative && config.blocks / blocks_of_cluster(config) > resident_clusters_of(device, config)
             ? cudaErrorCooperativeLaunchTooLarge
             : cudaSuccess;
}

}  // namespace

namespace simt {

void enqueue_kernel(const void* kernel, const deviceloop::cuda::LaunchConfig& config, cudaStream_t handle,
                    std::function<void()> thread) {
  const std::lock_guard lock(state().mutex);
  const std::string& name = name_of(kernel);
  const auto launch = [&] {
    if (config.blocks < 1 || config.blocks > std::numeric_limits<int>::max())
      throw deviceloop::InvalidArgument(name + ": a grid of " + std::to_string(config.blocks) +
                                        " blocks; it can have 1 to 2147483647");
    CUstream_st* stream = nullptr;
    if (const cudaError_t wrong = check_launch(kernel, config); wrong != cudaSuccess) return wrong;
    if (const cudaError_t wrong = resolve(handle, stream); wrong != cudaSuccess) return wrong;
    ++tally().launches;
    // Clusters of a launch that may run beside others rely on no block but their own.
    const bool as_on_device = config.cooperative || (config.cluster_blocks > 1 && !config.waits);
    GridLaunch grid{
        name,
        static_cast<unsigned>(config.blocks),
        static_cast<unsigned>(config.threads),
        static_cast<std::size_t>(config.shared_bytes),
        static_cast<unsigned>(blocks_of_cluster(config)),
        as_on_device ? static_cast<std::size_t>(resident_clusters_of(*find_device(current_device), config))
                     : std::max(kResidentBlocks / static_cast<std::size_t>(blocks_of_cluster(config)), std::size_t{1}),
        state().settings.fresh_byte,
        std::move(thread)};
    enqueue(*stream, WorkKind::kKernel, [grid = std::move(grid), waits = config.waits] {
      State& all = state();
      all.kernels_run.insert(grid.kernel);
      std::mt19937_64 random(all.settings.seed++);
      grid_waits = 0;
      tally().waits += run_grid(grid, all.settings.order, random);
      if (waits && grid_waits != std::int64_t{grid.blocks} * grid.threads)
        throw KernelError(grid.kernel + " waits for the grids before it in " + std::to_string(grid_waits) +
                          " threads, not in all; call wait_for_grids_before first");
    });
    return cudaSuccess;
  };
  const cudaError_t code = call(launch, Kind::kOrdinary, "cudaLaunchKernelExC");
  if (code != cudaSuccess) deviceloop::cuda::throw_cuda_error(code, "cudaLaunchKernelExC", __FILE__, __LINE__, name);
}

void set_order(Order order, std::uint64_t seed) {
  const std::lock_guard lock(state().mutex);
  state().settings.order = order;
  state().settings.seed = seed;
}

void set_devices(std::vector<Device> devices, cudaError_t absent) {
  const std::lock_guard lock(state().mutex);
  state().settings.devices = std::move(devices);
  current_device = 0;
  devices_below.clear();
  state().settings.absent = absent;
}

void fail_call(int k, cudaError_t code) {
  const std::lock_guard lock(state().mutex);
  state().settings.failure = {k, code};
}
void fail_call(int k) {
  const std::lock_guard lock(state().mutex);
  state().settings.failure = {k};
}

void lose_publication(int k) { publications_until_lost = k; }

void set_fresh_byte(int byte) {
  const std::lock_guard lock(state().mutex);
  state().settings.fresh_byte = byte;
}

std::vector<unsigned char> device_memory(int device) {
  const std::lock_guard lock(state().mutex);
  for_streams_of(device, run_all);
  const DeviceAccess access;
  std::map<std::uint64_t, std::pair<const char*, std::size_t>> made;
  for (const auto& [memory, allocation] : state().allocations)
    if (allocation.on_device && allocation.device == device) made[allocation.number] = {memory, allocation.bytes};
  std::vector<unsigned char> bytes;
  for (const auto& [number, piece] : made) bytes.insert(bytes.end(), piece.first, piece.first + piece.second);
  return bytes;
}

int calls_until_failure() {
  const std::lock_guard lock(state().mutex);
  return state().settings.failure.calls;
}

std::string failed_call() {
  const std::lock_guard lock(state().mutex);
  return state().settings.failure.call;
}

Inside::Inside() { ++inside; }
Inside::~Inside() { --inside; }
bool is_inside() { return inside > 0; }

Counts counts() {
  const std::lock_guard lock(state().mutex);
  return state().settings.counts;
}

namespace {

std::vector<std::pair<const char*, std::size_t>> live_by_kind() {
  const State& all = state();
  std::size_t pinned = 0;
  for (const auto& [memory, allocation] : all.allocations) pinned += allocation.on_device ? 0 : 1;
  return {{"device buffer", all.allocations.size() - pinned},
          {"pinned buffer", pinned},
          {"stream", all.streams.size()},
          {"event", all.events.size()},
          {"graph", all.graphs.size()},
          {"graph exec", all.graph_execs.size()},
          {"object of a library", all.library_objects.size()}};
}

}  // namespace

int live_objects() {
  const std::lock_guard lock(state().mutex);
  std::size_t count = 0;
  for (const auto& [kind, number] : live_by_kind()) count += number;
  return static_cast<int>(count);
}

std::string live_objects_text() {
  const std::lock_guard lock(state().mutex);
  std::string text;
  for (const auto& [kind, number] : live_by_kind())
    if (number > 0) text += (text.empty() ? "" : ", ") + std::to_string(number) + " of kind '" + kind + "'";
  return text;
}

bool has_context(int device) {
  const std::lock_guard lock(state().mutex);
  return state().settings.contexts.count(device) != 0;
}

cudaError_t library_call(const char* name) {
  return call([] { return cudaSuccess; }, Kind::kOrdinary, name);
}

bool count_object(const void* object, bool is_new) {
  const Inside here;
  const std::lock_guard lock(state().mutex);
  if (is_new) return state().library_objects.insert(object).second;
  const bool was_there = state().library_objects.erase(object) != 0;
  if (!was_there) ++tally().false_frees;
  return was_there;
}

cudaError_t enqueue_library_kernel(cudaStream_t handle, std::function<void()> run, const char* name) {
  const auto launch = [&] {
    CUstream_st* stream = nullptr;
    if (const cudaError_t wrong = resolve(handle, stream); wrong != cudaSuccess) return wrong;
    ++tally().launches;
    enqueue(*stream, WorkKind::kKernel, std::move(run));
    return cudaSuccess;
  };
  return call(launch, Kind::kOrdinary, name);
}

const std::set<std::string>& kernels_run() { return state().kernels_run; }

void reset() {
  const std::lock_guard lock(state().mutex);
  drop_all_work();
  state().settings = {};
  captured_stream = nullptr;
  current_device = 0;
  devices_below.clear();
  publications_until_lost = 0;
  last_error = cudaSuccess;
}

}  // namespace simt

void deviceloop::cuda::prepare_kernel(const void* kernel, const LaunchConfig& config) {
  const auto prepare = [&] {
    const simt::Device& device = *find_device(current_device);
    if (config.shared_bytes < 0 || config.shared_bytes > device.shared_bytes) return cudaErrorInvalidValue;
    Prepared& prepared = state().settings.prepared[{current_device, kernel}];
    prepared.shared_bytes = device.shared_bytes;
    if (config.cluster_blocks > kPortableClusterBlocks) prepared.cluster_blocks = kMaxClusterBlocks;
    return cudaSuccess;
  };
  const cudaError_t code = call(prepare, Kind::kOrdinary, "cudaFuncSetAttribute");
  check_cuda(code, "cudaFuncSetAttribute", __FILE__, __LINE__);
}

std::int64_t deviceloop::cuda::resident_clusters(const void* kernel, const LaunchConfig& config) {
  const char* const name =
      config.cluster_blocks > 1 ? "cudaOccupancyMaxActiveClusters" : "cudaOccupancyMaxActiveBlocksPerMultiprocessor";
  std::int64_t count = 0;
  const auto ask_device = [&] {
    LaunchConfig alone = config;
    alone.blocks = blocks_of_cluster(config);
    alone.cooperative = false;
    count = resident_clusters_of(*find_device(current_device), config);
    return check_launch(kernel, alone);
  };
  check_cuda(call(ask_device, Kind::kOrdinary, name), name, __FILE__, __LINE__);
  return count;
}

extern "C" {

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  return call([&] { return allocate(pointer, bytes, true); });
}

cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  return call([&] { return allocate(pointer, bytes, false); });
}

cudaError_t cudaFree(void* pointer) {
  return call([&] { return release_memory(pointer, true); }, Kind::kRelease);
}

cudaError_t cudaFreeHost(void* pointer) {
  return call([&] { return release_memory(pointer, false); }, Kind::kRelease);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t handle) {
  return call([&] {
    CUstream_st* stream = nullptr;
    cudaError_t code = resolve(handle, stream);
    if (code == cudaSuccess)
      code = check_end(to, bytes, kind, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice);
    if (code == cudaSuccess)
      code = check_end(from, bytes, kind, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
    if (code != cudaSuccess) return code;
    ++tally().copies;
    if (stream->capture && (find_allocation(from) == nullptr || find_allocation(to) == nullptr))
      return check_not_capturing();  // pageable memory, whose copies wait
    if (find_allocation(from) != nullptr) {
      enqueue(*stream, WorkKind::kCopy, [=] { std::memmove(to, from, bytes); });
    } else {  // pageable memory is read at the call
      const char* const begin = static_cast<const char*>(from);
      enqueue(*stream, WorkKind::kCopy, [to, staged = std::vector<char>(begin, begin + bytes)] {
        std::copy(staged.begin(), staged.end(), static_cast<char*>(to));
      });
    }
    if (find_allocation(to) == nullptr) {  // and written before it returns
      ++tally().synchronisations;
      run_all(*stream);
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t handle) {
  return call([&] {
    CUstream_st* stream = nullptr;
    if (const cudaError_t code = resolve(handle, stream); code != cudaSuccess) return code;
    std::size_t left = 0;
    const Allocation* const allocation = find_allocation(to, &left);
    if (bytes > 0 && (allocation == nullptr || !allocation->on_device || left < bytes)) return cudaErrorInvalidValue;
    ++tally().memsets;
    enqueue(*stream, WorkKind::kMemset, [=] { std::memset(to, value, bytes); });
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return call([&] {
    if (stream == nullptr || (flags != cudaStreamDefault && flags != cudaStreamNonBlocking))
      return cudaErrorInvalidValue;
    auto made = std::make_unique<CUstream_st>();
    made->device = current_device;
    made->with_default = flags == cudaStreamDefault;
    *stream = made.get();
    state().streams[*stream] = std::move(made);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return call(
      [&] {
        if (state().streams.count(handle) == 0) return cudaErrorInvalidResourceHandle;
        run_all(*handle);
        forget(handle);
        state().streams.erase(handle);
        return cudaSuccess;
      },
      Kind::kRelease);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return call([&] {
    CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t code = check_not_capturing(); code != cudaSuccess) return code;
    ++tally().synchronisations;
    run_all(*stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return call([&] {
    CUstream_st* const stream = find_stream(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : query({stream, last_number(*stream)});
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  return call([&] {
    CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr || !valid_event(event)) return cudaErrorInvalidResourceHandle;
    if (stream->capture) return check_not_capturing();  // edges between streams are not needed here
    if (pending(event->recorded)) enqueue(*stream, WorkKind::kEvent, [] {}, {event->recorded});
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return call([&] {
    if (event == nullptr) return cudaErrorInvalidValue;
    auto made = std::make_unique<CUevent_st>();
    made->device = current_device;
    *event = made.get();
    state().events[*event] = std::move(made);
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call([&] { return state().events.erase(event) != 0 ? cudaSuccess : cudaErrorInvalidResourceHandle; },
              Kind::kRelease);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return call([&] {
    CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr || !valid_event(event) || event->device != stream->device)
      return cudaErrorInvalidResourceHandle;
    if (stream->capture) return check_not_capturing();
    event->recorded = {stream, enqueue(*stream, WorkKind::kEvent,
                                       [reached = event->reached] { *reached = std::chrono::steady_clock::now(); })};
    return cudaSuccess;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return call([&] {
    if (!valid_event(start) || !valid_event(end)) return cudaErrorInvalidResourceHandle;
    if (pending(start->recorded) || pending(end->recorded)) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(*end->reached - *start->reached).count();
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call([&] { return valid_event(event) ? query(event->recorded) : cudaErrorInvalidResourceHandle; });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&] {
    if (!valid_event(event)) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t code = check_not_capturing(); code != cudaSuccess) return code;
    ++tally().synchronisations;
    if (pending(event->recorded)) run_until(*event->recorded.stream, event->recorded.number);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return call([&] {
    CUstream_st* stream = nullptr;
    if (const cudaError_t code = resolve(handle, stream); code != cudaSuccess) return code;
    // Another mode would break what other threads of the program do meanwhile; the default stream cannot be captured.
    if (mode != cudaStreamCaptureModeThreadLocal || is_default(*stream) || captured_stream != nullptr)
      return cudaErrorStreamCaptureUnsupported;
    stream->capture = std::make_unique<CUgraph_st>();
    stream->capture->device = stream->device;
    stream->capture_is_broken = false;
    captured_stream = stream;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return ask([&] {
    const CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    *status = stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return call(
      [&] {
        CUstream_st* const stream = find_stream(handle);
        *graph = nullptr;
        if (stream == nullptr || stream != captured_stream) return cudaErrorInvalidResourceHandle;
        captured_stream = nullptr;
        std::unique_ptr<CUgraph_st> captured = std::move(stream->capture);
        if (stream->capture_is_broken) return cudaErrorStreamCaptureInvalidated;
        *graph = captured.get();
        state().graphs[*graph] = std::move(captured);
        return cudaSuccess;
      },
      Kind::kRelease);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags) {
  return call([&] {
    if (state().graphs.count(graph) == 0 || flags != 0) return cudaErrorInvalidValue;
    if (const cudaError_t code = check_not_capturing(); code != cudaSuccess) return code;
    auto made = std::make_unique<CUgraphExec_st>(CUgraphExec_st{*graph});
    for (const CUgraph_st::Node& node : graph->nodes)
      ++(node.kind == WorkKind::kKernel ? tally().kernel_nodes : tally().other_nodes);
    *exec = made.get();
    state().graph_execs[*exec] = std::move(made);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call([&] { return state().graphs.erase(graph) != 0 ? cudaSuccess : cudaErrorInvalidValue; }, Kind::kRelease);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return call(
      [&] {
        if (state().graph_execs.count(exec) == 0) return cudaErrorInvalidValue;
        for_streams_of(exec->graph.device, run_all);  // its launches hold it
        state().graph_execs.erase(exec);
        return cudaSuccess;
      },
      Kind::kRelease);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t handle) {
  return call([&] {
    CUstream_st* stream = nullptr;
    if (const cudaError_t code = resolve(handle, stream); code != cudaSuccess) return code;
    return state().graph_execs.count(exec) != 0 && exec->graph.device == stream->device && !stream->capture
               ? cudaSuccess
               : cudaErrorInvalidValue;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  return call([&] {
    CUstream_st* stream = nullptr;
    if (const cudaError_t code = resolve(handle, stream); code != cudaSuccess) return code;
    if (state().graph_execs.count(exec) == 0 || exec->graph.device != stream->device || stream->capture)
      return cudaErrorInvalidValue;
    ++tally().graph_launches;
    enqueue(*stream, WorkKind::kKernel, [exec] {
      for (const CUgraph_st::Node& node : exec->graph.nodes) node.run();
    });
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return ask([&] {
    *device = current_device;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return ask([&] {
    if (find_device(device) == nullptr) return cudaErrorInvalidDevice;
    state().settings.contexts.insert(device);
    current_device = device;
    return cudaSuccess;
  });
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned) {
  return ask([&] {
    if (find_device(device) == nullptr) return cudaErrorInvalidDevice;
    state().settings.contexts.insert(device);
    return cudaSuccess;
  });
}

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
#else
cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
#endif
  static const std::map<std::string, void*> functions = {
      {"cuDevicePrimaryCtxRetain", reinterpret_cast<void*>(retain_context)},
      {"cuDevicePrimaryCtxRelease", reinterpret_cast<void*>(release_context)},
      {"cuCtxPushCurrent", reinterpret_cast<void*>(push_context)},
      {"cuCtxPopCurrent", reinterpret_cast<void*>(pop_context)},
  };
  return ask([&] {
    const auto found = functions.find(name);
    *function = found != functions.end() ? found->second : nullptr;
    *result = found != functions.end() ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceCount(int* count) {
  return ask([&] {
    *count = static_cast<int>(state().settings.devices.size());
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  return ask([&] {
    const simt::Device* const device = find_device(index);
    if (device == nullptr) return cudaErrorInvalidDevice;
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "%s", device->name.c_str());
    properties->major = device->major;
    properties->minor = device->minor;
    properties->multiProcessorCount = device->multiprocessors;
    properties->totalGlobalMem = device->memory;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = kMaxThreads;
    properties->sharedMemPerBlock = kSharedBytes;
    properties->sharedMemPerBlockOptin = static_cast<std::size_t>(device->shared_bytes);
    properties->sharedMemPerMultiprocessor = static_cast<std::size_t>(device->shared_bytes) + 1024;
    properties->l2CacheSize = device->l2_bytes;
    properties->cooperativeLaunch = 1;
    properties->clusterLaunch = device->major >= kFirstMajorWithClusters ? 1 : 0;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  return ask([&] {
    const simt::Device* const device = find_device(index);
    if (device == nullptr) return cudaErrorInvalidDevice;
    const std::map<cudaDeviceAttr, int> values = {
        {cudaDevAttrComputeCapabilityMajor, device->major},
        {cudaDevAttrComputeCapabilityMinor, device->minor},
        {cudaDevAttrMultiProcessorCount, device->multiprocessors},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMaxThreadsPerBlock, kMaxThreads},
        {cudaDevAttrMaxSharedMemoryPerBlock, kSharedBytes},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, device->shared_bytes},
        {cudaDevAttrL2CacheSize, device->l2_bytes},
        {cudaDevAttrClockRate, kClockKilohertz},
        {cudaDevAttrMemoryClockRate, kMemoryKilohertz},
        {cudaDevAttrGlobalMemoryBusWidth, kMemoryBits},
        {cudaDevAttrCooperativeLaunch, 1},
        {cudaDevAttrClusterLaunch, device->major >= kFirstMajorWithClusters ? 1 : 0},
    };
    const auto found = values.find(attribute);
    if (found == values.end()) return cudaErrorInvalidValue;
    *value = found->second;
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return call([&] {
    *total = find_device(current_device)->memory;
    *free = *total - used_memory(current_device);
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return call([&] {
    const Allocation* const allocation = find_allocation(pointer);
    *attributes = {};
    attributes->type = allocation == nullptr   ? cudaMemoryTypeUnregistered
                       : allocation->on_device ? cudaMemoryTypeDevice
                                               : cudaMemoryTypeHost;
    attributes->device = allocation == nullptr ? -2 : allocation->device;
    if (allocation != nullptr && allocation->on_device) attributes->devicePointer = const_cast<void*>(pointer);
    if (allocation != nullptr && !allocation->on_device)
      attributes->hostPointer = attributes->devicePointer = const_cast<void*>(pointer);
    return cudaSuccess;
  });
}

cudaError_t cudaPeekAtLastError() {
  const std::lock_guard lock(state().mutex);
  return state().settings.sticky != cudaSuccess ? state().settings.sticky : last_error;
}

cudaError_t cudaGetLastError() {
  const cudaError_t code = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return code;
}

const char* cudaGetErrorName(cudaError_t code) { return text_of(code).name; }

const char* cudaGetErrorString(cudaError_t code) { return text_of(code).meaning; }

cudaError_t cudaProfilerStart() { return cudaSuccess; }

cudaError_t cudaProfilerStop() { return cudaSuccess; }

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = state().settings.devices.empty() ? 0 : CUDART_VERSION;
  return cudaSuccess;
}

}  // extern "C"
