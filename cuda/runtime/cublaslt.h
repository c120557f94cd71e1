// cuBLASLt as a table of the functions in use, filled at run time. Linking it instead would cost every process about 50
// ms and 150 MB at its start, and programs could not be linked without CUDA. tests/simt has a table of its own.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

namespace deviceloop::cuda {

struct CublasLt {
  decltype(&cublasLtGetVersion) get_version = nullptr;
  decltype(&cublasLtGetStatusName) get_status_name = nullptr;
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set_attribute = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set_attribute = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algo_get_attribute = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
};

/// The table, filled by the first call that finds the library. It tries, in this order, the library that the process
/// has already loaded, the file in the environment variable DEVICELOOP_CUBLASLT, the loader's path and
/// likely_cublaslt_files(). Throws Unsupported if none is found, with what was tried, or if its major version is not
/// the build's.
const CublasLt& cublaslt();

/// The library's files beyond the loader's path, in the order in which they are tried: in the folders of the CUDA
/// toolkit, then in Python's packages: those of an activated environment, of the first python3 in PATH, of the user, of
/// the system.
std::vector<std::string> likely_cublaslt_files();

/// Throws DeviceError for a status that `expression` returned at file:line.
[[noreturn]] void throw_cublaslt_error(cublasStatus_t status, const char* expression, const char* file, int line);

inline void check_cublaslt(cublasStatus_t status, const char* expression, const char* file, int line) {
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]]
    throw_cublaslt_error(status, expression, file, line);
}

/// As drop_error of CUDA's runtime, which what the library calls of it may have left an error to.
inline void drop_error(cublasStatus_t status) noexcept {
  if (status != CUBLAS_STATUS_SUCCESS) cudaGetLastError();
}

}  // namespace deviceloop::cuda

/// Checks a call through the table.
#define DEVICELOOP_CHECK_CUBLASLT(call) ::deviceloop::cuda::check_cublaslt((call), #call, __FILE__, __LINE__)
