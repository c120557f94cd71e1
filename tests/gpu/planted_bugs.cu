// One planted bug for each tool of compute-sanitizer, so that tests/gpu_check knows that a tool which reports nothing
// on the tests would have reported something. Run on its own:
//
//     planted_bugs out_of_bounds | race | uninitialized | divergent_barrier | wrong_warp_mask | none
//
// Exits with 0 whatever the bug did to the GPU's work: the report is the tool's, not this program's. Exits with 2 and
// one line where no GPU can be used or the name is unknown.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace {

constexpr int kThreads = 64;

/// The last thread writes one element beyond `count`.
__global__ void out_of_bounds(int* out, int count) {
  const int i = static_cast<int>(threadIdx.x);
  if (i <= count) out[i] = i;
}

/// Each thread reads what one of another warp has written, without a barrier between.
__global__ void race(int* out) {
  __shared__ int values[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  values[i] = out[i];
  out[i] = values[(i + kThreads / 2) % kThreads];
}

/// Reads memory that nothing wrote.
__global__ void uninitialized(int* out, const int* in) { out[threadIdx.x] = in[threadIdx.x] + 1; }

/// In the last turn only some threads of the last warp have an element, and only they reach the barrier.
__global__ void divergent_barrier(int* out, int count) {
  __shared__ int sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  sums[thread] = 0;
  __syncthreads();
  for (int i = thread; i < 4 * kThreads; i += kThreads) {
    if (i < count) {
      sums[thread] += out[i];
      __syncthreads();
    }
  }
  if (thread == 0) out[0] = sums[kThreads - 1];
}

/// A thread that is not in the mask waits with those that are.
__global__ void wrong_warp_mask(int* out) {
  __shared__ int values[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned half = __ballot_sync(0xffffffffu, thread < 16);
  if (thread <= 16) {
    values[thread] = out[thread];
    __syncwarp(half);
    if (thread == 0) out[0] = values[1];
  }
}

/// Nothing wrong: a tool that reports this one reports anything.
__global__ void none(int* out) {
  __shared__ int values[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  values[i] = out[i];
  __syncthreads();
  out[i] = values[(i + kThreads / 2) % kThreads] + 1;
}

bool report(cudaError_t code, const char* what) {
  if (code != cudaSuccess) std::fprintf(stderr, "planted_bugs: %s: %s\n", what, cudaGetErrorString(code));
  return code == cudaSuccess;
}

}  // namespace

int main(int argc, char** argv) {
  const char* const bug = argc == 2 ? argv[1] : "";
  const auto is = [&](const char* name) { return std::strcmp(bug, name) == 0; };
  int devices = 0;
  const cudaError_t code = cudaGetDeviceCount(&devices);
  if (code != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "planted_bugs: no GPU can be used: %s\n", cudaGetErrorString(code));
    return 2;
  }
  // One element above a multiple of what cudaMalloc rounds to, so that none of another allocation lies right behind.
  constexpr std::size_t kElements = 4 * kThreads + 1;
  int *data = nullptr, *untouched = nullptr;
  if (!report(cudaMalloc(&data, kElements * sizeof(int)), "cudaMalloc") ||
      !report(cudaMalloc(&untouched, kThreads * sizeof(int)), "cudaMalloc") ||
      !report(cudaMemset(data, 1, kElements * sizeof(int)), "cudaMemset"))
    return 2;
  if (is("out_of_bounds"))
    out_of_bounds<<<1, 4 * kThreads + 32>>>(data, static_cast<int>(kElements));
  else if (is("race"))
    race<<<1, kThreads>>>(data);
  else if (is("uninitialized"))
    uninitialized<<<1, kThreads>>>(data, untouched);
  else if (is("divergent_barrier"))
    divergent_barrier<<<1, kThreads>>>(data, 4 * kThreads - 16);
  else if (is("wrong_warp_mask"))
    wrong_warp_mask<<<1, 32>>>(data);
  else if (is("none"))
    none<<<1, kThreads>>>(data);
  else {
    std::fprintf(stderr,
                 "planted_bugs: name one of out_of_bounds, race, uninitialized, divergent_barrier, wrong_warp_mask, "
                 "none\n");
    return 2;
  }
  report(cudaGetLastError(), "launch");
  report(cudaDeviceSynchronize(), bug);
  cudaFree(data);
  cudaFree(untouched);
  return 0;
}
