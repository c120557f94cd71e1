// Kernel nodes of CUDA graphs: in a line, with and without programmatic edges, and in the body of a WHILE node.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <tuple>
#include <vector>

#include "gpu.cuh"

namespace probe {

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

inline unsigned read_counter(const Stream& stream, const Buffer<unsigned>& counter) {
  unsigned value = 0;
  PROBE_CUDA(cudaMemcpyAsync(&value, counter.get(), sizeof value, cudaMemcpyDeviceToHost, stream));
  stream.wait();
  return value;
}

// How many edges of the graph let a node start before the one before it has ended.
inline std::size_t programmatic_edges(cudaGraph_t graph) {
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

inline void probe_graph_lines(const Context& context, Record& record) {
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

inline void probe_graph_while(const Context& context, Record& record) {
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

}  // namespace probe
