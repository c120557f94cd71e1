#include "gemm.h"

#include <chrono>
#include <utility>

#include <deviceloop/error.h>

#include "check.h"

namespace deviceloop::cuda {
namespace {

template <class Value>
void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  DEVICELOOP_CHECK_CUBLASLT(cublaslt().desc_set_attribute(desc, attribute, &value, sizeof value));
}

struct DestroyPreference {
  void operator()(cublasLtMatmulPreference_t preference) const {
    drop_error(cublaslt().preference_destroy(preference));
  }
};
using Preference = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, DestroyPreference>;

Preference make_preference() {
  cublasLtMatmulPreference_t made = nullptr;
  DEVICELOOP_CHECK_CUBLASLT(cublaslt().preference_create(&made));
  Preference preference(made);
  const std::uint64_t bytes = kGemmWorkspaceBytes;
  DEVICELOOP_CHECK_CUBLASLT(
      cublaslt().preference_set_attribute(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
  return preference;
}

/// What the library is told of a product. TF32 drops the bits that float has more, which are 0 here.
struct Types {
  cudaDataType_t operands, out;
  cublasComputeType_t compute;
};
Types types_of(Precision precision) {
  switch (precision) {
    case Precision::fp32:
      break;
    case Precision::fp64:
      return {CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F};
    case Precision::tf32:
    case Precision::tf32x3:
      return {CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32};
    case Precision::bf16:
      return {CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F};
    case Precision::fp16:
      return {CUDA_R_16F, CUDA_R_32F, CUBLAS_COMPUTE_32F};
  }
  return {CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F};
}

/// An attribute of an algorithm, or -1 where it has none.
std::int64_t attribute_of(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute) {
  std::int32_t value = -1;
  std::size_t written = 0;
  return cublaslt().algo_get_attribute(&algorithm, attribute, &value, sizeof value, &written) == CUBLAS_STATUS_SUCCESS
             ? value
             : -1;
}

}  // namespace

GemmLibrary::GemmLibrary(void* workspace) : workspace_(workspace) {
  cublasLtHandle_t handle = nullptr;
  DEVICELOOP_CHECK_CUBLASLT(cublaslt().create(&handle));
  handle_.reset(handle);
}

Gemm::Layout Gemm::make_layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t pitch) {
  // The library is column-major: it sees a row-major matrix as its transpose.
  cublasLtMatrixLayout_t layout = nullptr;
  DEVICELOOP_CHECK_CUBLASLT(cublaslt().layout_create(&layout, type, static_cast<std::uint64_t>(columns),
                                                     static_cast<std::uint64_t>(rows), pitch > 0 ? pitch : columns));
  return Layout(layout);
}

Gemm::Gemm(const GemmLibrary& library, const GemmShape& shape, Precision precision) : library_(&library) {
  cublasLtMatmulDesc_t desc = nullptr;
  const Types types = types_of(precision);
  DEVICELOOP_CHECK_CUBLASLT(cublaslt().desc_create(&desc, types.compute, types.out));
  desc_.reset(desc);
  // out^T = op(b)^T op(a)^T: our a is the library's B.
  const cublasOperation_t transpose_a = shape.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t transpose_b = shape.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  set(desc, CUBLASLT_MATMUL_DESC_TRANSA, transpose_a);
  set(desc, CUBLASLT_MATMUL_DESC_TRANSB, transpose_b);
  set(desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, std::int32_t{CUBLASLT_POINTER_MODE_DEVICE});
  const auto operand = [&](bool transposed, std::int64_t rows, std::int64_t columns, std::int64_t pitch) {
    if (transposed) std::swap(rows, columns);
    return make_layout(types.operands, rows, columns, pitch);
  };
  a_ = operand(shape.transpose_a, shape.rows, shape.inner, shape.pitch_a);
  b_ = operand(shape.transpose_b, shape.inner, shape.columns, shape.pitch_b);
  out_ = make_layout(types.out, shape.rows, shape.columns);

  name_ = std::to_string(shape.rows) + " x " + std::to_string(shape.columns) + " x " + std::to_string(shape.inner);
  choose(proposals(1).front());
}

std::vector<cublasLtMatmulAlgo_t> Gemm::proposals(int most) const {
  struct Proposal {  // nvcc rejects a vector of the library's struct, which has no name
    cublasLtMatmulHeuristicResult_t result;
  };
  static_assert(sizeof(Proposal) == sizeof(cublasLtMatmulHeuristicResult_t));
  const Preference preference = make_preference();
  std::vector<Proposal> results(static_cast<std::size_t>(most));
  int found = 0;
  const cublasStatus_t status =
      cublaslt().get_heuristic(library_->handle(), desc_.get(), b_.get(), a_.get(), out_.get(), out_.get(),
                               preference.get(), most, &results.data()->result, &found);
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) {
    check_cublaslt(status, "cublaslt().get_heuristic", __FILE__, __LINE__);
    for (int i = 0; i < found; ++i)
      if (results[static_cast<std::size_t>(i)].result.state == CUBLAS_STATUS_SUCCESS)
        algorithms.push_back(results[static_cast<std::size_t>(i)].result.algo);
  }
  if (algorithms.empty())
    throw Unsupported("cuBLASLt has no algorithm for a product of " + name_ + "; use the plan 'cpu'");
  return algorithms;
}

void Gemm::choose(const cublasLtMatmulAlgo_t& algorithm) {
  algorithm_ = algorithm;
  const auto number = [&](cublasLtMatmulAlgoConfigAttributes_t attribute) {
    return std::to_string(attribute_of(algorithm_, attribute));
  };
  description_ = name_ + ": algorithm " + number(CUBLASLT_ALGO_CONFIG_ID) + ", tile " +
                 number(CUBLASLT_ALGO_CONFIG_TILE_ID) + ", stages " + number(CUBLASLT_ALGO_CONFIG_STAGES_ID) +
                 ", split " + number(CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
}

void Gemm::tune(const void* alpha, const void* a, const void* b, const void* beta, void* out, cudaStream_t stream) {
  constexpr int kProposals = 8, kRounds = 5, kProducts = 10;
  using Clock = std::chrono::steady_clock;
  Clock::duration best = Clock::duration::max();
  cublasLtMatmulAlgo_t fastest = algorithm_;
  for (const cublasLtMatmulAlgo_t& algorithm : proposals(kProposals)) {
    algorithm_ = algorithm;
    run(alpha, a, b, beta, out, stream);  // loads its code
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream));
    for (int round = 0; round < kRounds; ++round) {
      const Clock::time_point begin = Clock::now();
      for (int product = 0; product < kProducts; ++product) run(alpha, a, b, beta, out, stream);
      DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream));
      const Clock::duration time = Clock::now() - begin;
      if (time >= best) continue;
      best = time;
      fastest = algorithm;
    }
  }
  choose(fastest);
}

void Gemm::run(const void* alpha, const void* a, const void* b, const void* beta, void* out,
               cudaStream_t stream) const {
  DEVICELOOP_CHECK_CUBLASLT(cublaslt().matmul(library_->handle(), desc_.get(), alpha, b, b_.get(), a, a_.get(), beta,
                                              out, out_.get(), out, out_.get(), &algorithm_, library_->workspace(),
                                              kGemmWorkspaceBytes, stream));
}

}  // namespace deviceloop::cuda
