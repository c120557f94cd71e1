// cuBLASLt: what loading it costs, which epilogues the heuristic has algorithms for, and whether products are right.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <vector>

#include "cublaslt.cuh"
#include "gpu.cuh"

namespace probe {

inline void probe_lt_load(const Context&, Record& record) {
  const Lt& lt = Lt::get();
  lt.describe(record);
  show("cuBLASLt %zu", lt.functions().version());
}

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

inline void probe_lt_epilogues(const Context&, Record& record) {
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

inline void probe_lt_products(const Context&, Record& record) {
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

}  // namespace probe
