// cuBLASLt: fused epilogues against own kernels, and the best rates of products.
#pragma once

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cublaslt.cuh"
#include "gpu.cuh"

namespace probe {

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

inline void probe_lt_fused(const Context&, Record& record) {
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

inline void probe_lt_rates(const Context&, Record& record) {
  (void)Lt::get();
  Stream stream;
  attempt(record, "fp32_8192", [&](Record& part) { probe_product_rate<float>(stream, kFp32, 8192, part); });
  attempt(record, "tf32_8192", [&](Record& part) { probe_product_rate<float>(stream, kTf32, 8192, part); });
  attempt(record, "bf16_8192", [&](Record& part) { probe_product_rate<__nv_bfloat16>(stream, kBf16, 8192, part); });
  attempt(record, "fp64_4096", [&](Record& part) { probe_product_rate<double>(stream, kFp64, 4096, part); });
}

}  // namespace probe
