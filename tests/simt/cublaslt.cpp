// cuBLASLt on the host: the project's table filled with functions that check their arguments as the library does and
// multiply in double. Two algorithms are proposed for every product; they differ in the order of the sum. Where TF32
// would drop bits of an operand that are not 0, and so round otherwise than the project does, the product fails.
#include "../../cuda/runtime/cublaslt.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include <deviceloop/error.h>

#include "product.h"
#include "simt/control.h"
#include "work.h"

namespace {

struct MatmulDesc {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  std::int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  std::int32_t transpose_a = CUBLAS_OP_N;
  std::int32_t transpose_b = CUBLAS_OP_N;
};

struct MatrixLayout {
  cudaDataType_t type;
  std::uint64_t rows, columns;
  std::int64_t leading;
};

struct Preference {
  std::uint64_t workspace_bytes = 0;
};

constexpr std::size_t kWorkspaceNeeded = 256;
constexpr std::uintptr_t kAlignment = 256;  // of matrices, what a preference promises where nothing else is set
constexpr int kAlgorithms = 2;

std::string refusal_reason;
int requests = 0;

template <class Object, class Handle>
Object& behind(Handle handle) {
  return *reinterpret_cast<Object*>(handle);
}

/// Makes, or where a call is to fail does not make, an object that counts as alive until it is destroyed.
template <class Handle, class Object>
cublasStatus_t make(Handle* handle, Object object, const char* name = __builtin_FUNCTION()) {
  if (simt::library_call(name) != cudaSuccess) return CUBLAS_STATUS_ALLOC_FAILED;
  const simt::Inside here;
  auto* made = new Object(std::move(object));
  simt::count_object(made, true);
  *handle = reinterpret_cast<Handle>(made);
  return CUBLAS_STATUS_SUCCESS;
}

template <class Object, class Handle>
cublasStatus_t destroy(Handle handle, const char* name = __builtin_FUNCTION()) {
  const bool fails = simt::library_call(name) != cudaSuccess;  // and gives it back all the same
  auto* object = reinterpret_cast<Object*>(handle);
  if (!simt::count_object(object, false)) return CUBLAS_STATUS_INVALID_VALUE;
  delete object;
  return fails ? CUBLAS_STATUS_INTERNAL_ERROR : CUBLAS_STATUS_SUCCESS;
}

struct Library {};

cublasStatus_t create(cublasLtHandle_t* handle) { return make(handle, Library()); }
cublasStatus_t destroy_library(cublasLtHandle_t handle) { return destroy<Library>(handle); }

cublasStatus_t desc_create(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
  return make(desc, MatmulDesc{compute, scale});
}
cublasStatus_t desc_destroy(cublasLtMatmulDesc_t desc) { return destroy<MatmulDesc>(desc); }
cublasStatus_t desc_set_attribute(cublasLtMatmulDesc_t handle, cublasLtMatmulDescAttributes_t attribute,
                                  const void* value, std::size_t bytes) {
  if (simt::library_call() != cudaSuccess) return CUBLAS_STATUS_INTERNAL_ERROR;
  auto& desc = behind<MatmulDesc>(handle);
  std::int32_t* const to = attribute == CUBLASLT_MATMUL_DESC_POINTER_MODE ? &desc.pointer_mode
                           : attribute == CUBLASLT_MATMUL_DESC_TRANSA     ? &desc.transpose_a
                           : attribute == CUBLASLT_MATMUL_DESC_TRANSB     ? &desc.transpose_b
                                                                          : nullptr;
  if (to == nullptr || bytes != sizeof *to) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(to, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t layout_create(cublasLtMatrixLayout_t* layout, cudaDataType_t type, std::uint64_t rows,
                             std::uint64_t columns, std::int64_t leading) {
  if (rows == 0 || columns == 0 || leading < static_cast<std::int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  return make(layout, MatrixLayout{type, rows, columns, leading});
}
cublasStatus_t layout_destroy(cublasLtMatrixLayout_t layout) { return destroy<MatrixLayout>(layout); }

cublasStatus_t preference_create(cublasLtMatmulPreference_t* preference) { return make(preference, Preference()); }
cublasStatus_t preference_destroy(cublasLtMatmulPreference_t preference) { return destroy<Preference>(preference); }
cublasStatus_t preference_set_attribute(cublasLtMatmulPreference_t preference,
                                        cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                        std::size_t bytes) {
  if (simt::library_call() != cudaSuccess) return CUBLAS_STATUS_INTERNAL_ERROR;
  auto& to = behind<Preference>(preference).workspace_bytes;
  if (attribute != CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES || bytes != sizeof to) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

/// m, n, k of a product, or none where the shapes or types do not fit.
struct Shape {
  std::uint64_t m = 0, n = 0, k = 0;
};

bool shape_of(const MatmulDesc& desc, const MatrixLayout& a, const MatrixLayout& b, const MatrixLayout& c,
              const MatrixLayout& d, Shape& shape) {
  // Of the combinations that the library knows those that the project uses: compute and scale type, operands, results.
  struct Types {
    cublasComputeType_t compute;
    cudaDataType_t scale, operands;
  };
  constexpr Types kKnown[] = {{CUBLAS_COMPUTE_64F, CUDA_R_64F, CUDA_R_64F},
                              {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F},
                              {CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F, CUDA_R_32F},
                              {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF},
                              {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16F}};
  const bool is_known = std::any_of(std::begin(kKnown), std::end(kKnown), [&](const Types& types) {
    return desc.compute == types.compute && desc.scale == types.scale && a.type == types.operands &&
           b.type == types.operands && c.type == types.scale && d.type == types.scale;
  });
  if (!is_known) return false;
  const bool at = desc.transpose_a == CUBLAS_OP_T, bt = desc.transpose_b == CUBLAS_OP_T;
  shape = {at ? a.columns : a.rows, bt ? b.rows : b.columns, at ? a.rows : a.columns};
  return (bt ? b.columns : b.rows) == shape.k && c.rows == shape.m && c.columns == shape.n && d.rows == shape.m &&
         d.columns == shape.n;
}

cublasStatus_t get_heuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                             cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                             cublasLtMatmulPreference_t preference, int wanted,
                             cublasLtMatmulHeuristicResult_t* results, int* found) {
  if (simt::library_call() != cudaSuccess) return CUBLAS_STATUS_INTERNAL_ERROR;
  Shape shape;
  *found = 0;
  if (wanted < 1 || !shape_of(behind<MatmulDesc>(desc), behind<MatrixLayout>(a), behind<MatrixLayout>(b),
                              behind<MatrixLayout>(c), behind<MatrixLayout>(d), shape))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (behind<Preference>(preference).workspace_bytes < kWorkspaceNeeded) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (; *found < kAlgorithms && *found < wanted; ++*found) {
    results[*found] = {};
    results[*found].algo.data[0] = static_cast<std::uint64_t>(*found + 1);
    results[*found].workspaceSize = kWorkspaceNeeded;
    results[*found].state = CUBLAS_STATUS_SUCCESS;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t algo_get_attribute(const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute,
                                  void* value, std::size_t bytes, std::size_t* written) {
  if (attribute != CUBLASLT_ALGO_CONFIG_ID || bytes != sizeof(std::int32_t)) return CUBLAS_STATUS_INVALID_VALUE;
  const auto id = static_cast<std::int32_t>(algorithm->data[0]);
  std::memcpy(value, &id, sizeof id);
  *written = sizeof id;
  return CUBLAS_STATUS_SUCCESS;
}

float value_of_fp16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float magnitude = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  return bits >> 15 != 0 ? -magnitude : magnitude;
}

float checked_tf32(float value) {
  if ((std::bit_cast<std::uint32_t>(value) & 0x1fff) != 0 && std::isfinite(value))
    throw simt::KernelError("cublasLtMatmul: an operand, " + std::to_string(value) +
                            ", has bits that TF32 drops; round it before");
  return value;
}

cublasStatus_t matmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc_handle, const void* alpha, const void* a,
                      cublasLtMatrixLayout_t a_handle, const void* b, cublasLtMatrixLayout_t b_handle, const void* beta,
                      const void* c, cublasLtMatrixLayout_t c_handle, void* d, cublasLtMatrixLayout_t d_handle,
                      const cublasLtMatmulAlgo_t* algorithm, void* workspace, std::size_t workspace_bytes,
                      cudaStream_t stream) {
  const simt::Inside here;
  const MatmulDesc desc = behind<MatmulDesc>(desc_handle);
  const auto la = behind<MatrixLayout>(a_handle), lb = behind<MatrixLayout>(b_handle);
  const auto lc = behind<MatrixLayout>(c_handle), ld = behind<MatrixLayout>(d_handle);
  Shape shape;
  if (!shape_of(desc, la, lb, lc, ld, shape) || algorithm == nullptr || algorithm->data[0] < 1 ||
      algorithm->data[0] > kAlgorithms || workspace_bytes < kWorkspaceNeeded ||
      reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0 || desc.pointer_mode != CUBLASLT_POINTER_MODE_DEVICE)
    return CUBLAS_STATUS_INVALID_VALUE;
  for (const void* pointer : {a, b, c, const_cast<const void*>(d)})
    if (pointer == nullptr || reinterpret_cast<std::uintptr_t>(pointer) % kAlignment != 0)
      return CUBLAS_STATUS_INVALID_VALUE;
  const bool backwards = algorithm->data[0] == 2;
  // value(an element of the operands as it lies in memory) is what is multiplied.
  const auto run = [=]<class T, class Operand>(T, Operand, auto value) {
    const auto matrix = [](auto* data, const MatrixLayout& layout, std::int32_t transpose) {
      simt::Matrix<std::remove_pointer_t<decltype(data)>> made{data, static_cast<std::int64_t>(layout.rows),
                                                               static_cast<std::int64_t>(layout.columns),
                                                               layout.leading, transpose == CUBLAS_OP_T};
      simt::check_memory("cublasLtMatmul", made);
      return made;
    };
    std::vector<T> values[2];
    const auto operand = [&](const void* data, const MatrixLayout& layout, std::int32_t transpose,
                             std::vector<T>& to) -> simt::Matrix<const T> {
      const auto lies = matrix(static_cast<const Operand*>(data), layout, transpose);
      for (std::int64_t column = 0; column < lies.columns; ++column)
        for (std::int64_t row = 0; row < lies.rows; ++row) to.push_back(value(lies.data[column * lies.leading + row]));
      return {to.data(), lies.rows, lies.columns, lies.rows, lies.transposed};
    };
    const auto left = operand(a, la, desc.transpose_a, values[0]);
    const auto right = operand(b, lb, desc.transpose_b, values[1]);
    const auto before = matrix(static_cast<const T*>(c), lc, CUBLAS_OP_N);
    const auto result = matrix(static_cast<T*>(d), ld, CUBLAS_OP_N);
    std::memset(workspace, 0xff, kWorkspaceNeeded);
    simt::multiply<T>(*static_cast<const T*>(alpha), left, right, static_cast<std::int64_t>(shape.k),
                      *static_cast<const T*>(beta), before, result, backwards);
  };
  const std::function<void()> work = [=] {
    if (desc.scale == CUDA_R_64F)
      run(0.0, 0.0, [](double value) { return value; });
    else if (la.type == CUDA_R_16BF)
      run(0.0f, std::uint16_t{}, [](std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); });
    else if (la.type == CUDA_R_16F)
      run(0.0f, std::uint16_t{}, value_of_fp16);
    else if (desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32)
      run(0.0f, 0.0f, checked_tf32);
    else
      run(0.0f, 0.0f, [](float value) { return value; });
  };
  return simt::enqueue_library_kernel(stream, work) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                   : CUBLAS_STATUS_EXECUTION_FAILED;
}

std::size_t get_version() { return CUBLAS_VERSION; }
const char* get_status_name(cublasStatus_t status) {
  return status == CUBLAS_STATUS_EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED" : "CUBLAS_STATUS_ERROR";
}

}  // namespace

namespace simt {

void refuse_cublaslt(const std::string& reason) { refusal_reason = reason; }
int cublaslt_requests() { return requests; }

}  // namespace simt

namespace deviceloop::cuda {

const CublasLt& cublaslt() {
  static const CublasLt table{
      get_version,        get_status_name,          create,        destroy_library,    desc_create,
      desc_destroy,       desc_set_attribute,       layout_create, layout_destroy,     preference_create,
      preference_destroy, preference_set_attribute, get_heuristic, algo_get_attribute, matmul};
  ++requests;
  if (!refusal_reason.empty()) throw Unsupported(refusal_reason);
  return table;
}

}  // namespace deviceloop::cuda
