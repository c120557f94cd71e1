// What a test can ask of the fixture, and tell it. The fixture stands in for CUDA's runtime library: streams are queues
// whose work runs on the host, and only when somebody waits for it, so that a missing wait shows; a query runs one
// piece. Device memory is poisoned for AddressSanitizer except while such work runs.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace simt {

/// A kernel broke a rule of the machine: a barrier or shuffle that not all reach, a wait without deadline for what
/// never comes, too little shared memory, a peer that has none. Thrown by the runtime call that made the kernel run, as
/// is what a kernel throws itself; all pending work is then dropped.
class KernelError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// In which order the threads and blocks of a grid begin, and go on after a wait, and whether streams that nobody
/// waits for run ahead. Every grid draws anew from the seed. A test program begins with the environment's
/// DEVICELOOP_SIMT_ORDER: forward, reverse, or a seed.
enum class Order { kForward, kReverse, kRandom };
void set_order(Order order, std::uint64_t seed = 0);

struct Device {
  std::string name = "host fixture";
  int major = 9;
  int minor = 0;
  int multiprocessors = 132;
  std::size_t memory = std::size_t{4} << 30;  ///< cudaMalloc fails beyond it
  int shared_bytes = 227 << 10;               ///< that prepare_kernel can give a block
  int l2_bytes = 50 << 20;
  /// At once; 0 for as many as the multiprocessors hold, one block on each. From major 9 on there are clusters.
  std::int64_t resident_clusters = 0;
  int most_cluster_blocks = 16;
  cudaError_t cooperative_with_clusters = cudaSuccess;  ///< what becomes of such a launch
};

/// One is there at first. Without any, calls return `absent`: cudaErrorNoDevice or cudaErrorInsufficientDriver.
void set_devices(std::vector<Device> devices, cudaError_t absent = cudaErrorNoDevice);

/// The k-th runtime call from now, 1 the next and a launch among them, does nothing and returns `code`; one that gives
/// something back does so all the same, that leaks can be counted. Codes 700 and 719 last until reset().
void fail_call(int k, cudaError_t code);
/// The same, with the code of the call: cudaErrorMemoryAllocation of cudaMalloc and cudaMallocHost, else
/// cudaErrorUnknown.
void fail_call(int k);

/// The k-th value that kernels publish from now on, in grids that the calling thread runs, is never written.
void lose_publication(int k);

/// What every byte of memory that is allocated from now on is at first, and of the shared memory of blocks of what is
/// launched from now on, instead of 0xff: a NaN, of which nothing comes but NaN.
void set_fresh_byte(int byte);

/// What a device's memory holds, all allocations behind each other as they were made, once its pending work has run.
std::vector<unsigned char> device_memory(int device);

/// Calls until the one that fail_call chose; 0 once it has come, or where none was chosen.
int calls_until_failure();

/// The one that has come, such as "cudaMalloc" or, of cuBLASLt, its name in CublasLt; empty where none has.
std::string failed_call();

/// Whether the calling thread is in the fixture, whose own memory is not the library's.
bool is_inside();

struct Counts {
  int calls = 0;        ///< those that fail_call counts
  int allocations = 0;  ///< on the device and pinned, as are frees
  int frees = 0;
  int false_frees = 0;  ///< of what was not there, or no longer: of buffers and of all other objects
  int synchronisations = 0;
  int launches = 0;
  int copies = 0;
  int memsets = 0;
  int graph_launches = 0;
  int kernel_nodes = 0;  ///< of the graphs that were instantiated
  int other_nodes = 0;
  std::int64_t waits = 0;  ///< of kernel threads, at barriers, shuffles and polls
};
Counts counts();

/// Buffers, streams, events, graphs and cuBLASLt's objects made and not given back.
int live_objects();
/// The same in words, "2 events, 1 stream"; empty where there are none.
std::string live_objects_text();

/// Whether a call has created a context on that device since reset().
bool has_context(int device);

/// From now on cuBLASLt is not found, for `reason`; an empty one brings it back.
void refuse_cublaslt(const std::string& reason);

/// How often this process has asked for it.
int cublaslt_requests();

/// The kernels that ran in this process, without namespaces and template arguments.
const std::set<std::string>& kernels_run();

/// Drops pending work and goes back to zero counts, one device, the order of the environment and no failure. Objects
/// live on.
void reset();

}  // namespace simt
