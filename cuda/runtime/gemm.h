// Matrix products by cuBLASLt on row-major matrices.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <deviceloop/spec.h>

#include "../../host/planning/kernel_layout.h"
#include "cublaslt.h"

namespace deviceloop::cuda {

/// out [rows, columns] = alpha op(a) op(b) + beta out, with op(a) [rows, inner] and op(b) [inner, columns].
struct GemmShape {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t inner = 0;
  bool transpose_a = false;  ///< a is [inner, rows]
  bool transpose_b = false;  ///< b is [columns, inner]
  std::int64_t pitch_a = 0;  ///< elements from row to row of a; 0: it has no gaps
  std::int64_t pitch_b = 0;
};

/// cuBLASLt on the current device, with the memory that its products share; they run on one stream, one after the
/// other.
class GemmLibrary {
 public:
  /// `workspace` has kGemmWorkspaceBytes, aligned to 256 bytes, and outlives it. Throws Unsupported as cublaslt does.
  explicit GemmLibrary(void* workspace);

  cublasLtHandle_t handle() const { return handle_.get(); }
  void* workspace() const { return workspace_; }

 private:
  struct Destroy {
    void operator()(cublasLtHandle_t handle) const { drop_error(cublaslt().destroy(handle)); }
  };
  std::unique_ptr<cublasLtContext, Destroy> handle_;
  void* workspace_;
};

/// One product in a precision. In fp32 and fp64 all is of that type, and nothing is rounded: no TF32. In the others a
/// and b hold elements rounded to it, as float for tf32 and tf32x3 (one of whose products it is), else in 16 bits; they
/// are multiplied on tensor cores and summed up in fp32, alpha, beta and out are float.
class Gemm {
 public:
  /// Takes the first of the library's proposals, which is the same in every process. Throws Unsupported if it has none.
  Gemm(const GemmLibrary& library, const GemmShape& shape, Precision precision);

  /// Times the library's first proposals on these operands, writing `out` as run does, and takes the fastest. The next
  /// call may choose another one, and the last bits of the result may change with it. Waits until the work is done.
  void tune(const void* alpha, const void* a, const void* b, const void* beta, void* out, cudaStream_t stream);

  /// Enqueues the product. alpha and beta are in device memory, so that a captured graph reads their current values.
  void run(const void* alpha, const void* a, const void* b, const void* beta, void* out, cudaStream_t stream) const;

  /// Which algorithm was chosen, for reports: "128 x 100 x 1000: algorithm 21, tile 20, stages 5, split 1".
  const std::string& description() const { return description_; }

 private:
  struct DestroyDesc {
    void operator()(cublasLtMatmulDesc_t desc) const { drop_error(cublaslt().desc_destroy(desc)); }
  };
  struct DestroyLayout {
    void operator()(cublasLtMatrixLayout_t layout) const { drop_error(cublaslt().layout_destroy(layout)); }
  };
  using Desc = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>, DestroyDesc>;
  using Layout = std::unique_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>, DestroyLayout>;

  static Layout make_layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t pitch = 0);
  /// The library's proposals, at most `most` and at least one.
  std::vector<cublasLtMatmulAlgo_t> proposals(int most) const;
  void choose(const cublasLtMatmulAlgo_t& algorithm);

  const GemmLibrary* library_;
  Desc desc_;
  Layout a_, b_, out_;
  std::string name_;  ///< "128 x 100 x 1000"
  cublasLtMatmulAlgo_t algorithm_{};
  std::string description_;
};

}  // namespace deviceloop::cuda
