// Libraries that pretend to be cuBLASLt, for tests of how it is found: its functions, which do nothing, and a version.
#include <cublas_api.h>

#include <cstddef>

#define DEVICELOOP_STUB(name) \
  extern "C" __attribute__((visibility("default"))) int name() { return 0; }

DEVICELOOP_STUB(cublasLtGetStatusName)
DEVICELOOP_STUB(cublasLtCreate)
DEVICELOOP_STUB(cublasLtDestroy)
DEVICELOOP_STUB(cublasLtMatmulDescCreate)
DEVICELOOP_STUB(cublasLtMatmulDescDestroy)
DEVICELOOP_STUB(cublasLtMatmulDescSetAttribute)
DEVICELOOP_STUB(cublasLtMatrixLayoutCreate)
DEVICELOOP_STUB(cublasLtMatrixLayoutDestroy)
DEVICELOOP_STUB(cublasLtMatmulPreferenceCreate)
DEVICELOOP_STUB(cublasLtMatmulPreferenceDestroy)
DEVICELOOP_STUB(cublasLtMatmulPreferenceSetAttribute)
DEVICELOOP_STUB(cublasLtMatmulAlgoGetHeuristic)
DEVICELOOP_STUB(cublasLtMatmulAlgoConfigGetAttribute)
#if DEVICELOOP_STUB_HAS_MATMUL
DEVICELOOP_STUB(cublasLtMatmul)
#endif

extern "C" __attribute__((visibility("default"))) std::size_t cublasLtGetVersion() { return DEVICELOOP_STUB_VERSION; }
