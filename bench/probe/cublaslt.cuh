// cuBLASLt as the experiments use it: found at run time, a product with an epilogue, arrays and products on the host in
// double.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "gpu.cuh"

namespace probe {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;  // as recommended for Hopper

struct LtFunctions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetVersion) version;
  decltype(&cublasLtGetStatusName) status_name;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algo_get;
  decltype(&cublasLtMatmul) matmul;
};

// Where libraries of the toolkit and of Python wheels lie. The wheels' folder is derived from every folder in PATH,
// because an environment's python3 stands in one of them, as itself or as a link.
inline std::vector<std::string> library_folders() {
  std::vector<std::string> folders;
  const auto add_matches = [&](const std::string& pattern) {
    glob_t found = {};
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
      for (std::size_t i = 0; i < found.gl_pathc; ++i) folders.push_back(found.gl_pathv[i]);
    globfree(&found);
  };
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* home = std::getenv(variable)) folders.push_back(std::string(home) + "/lib64");
  add_matches("/usr/local/cuda/lib64");
  add_matches("/usr/local/cuda-*/lib64");
  std::vector<std::string> bins;
  if (const char* environment = std::getenv("VIRTUAL_ENV")) bins.push_back(std::string(environment) + "/bin");
  std::string path = std::getenv("PATH") != nullptr ? std::getenv("PATH") : "";
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find(':', begin), path.size());
    if (end > begin) bins.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  for (std::size_t i = 0, given = bins.size(); i < given; ++i) {
    char target[4096];
    const ssize_t length = readlink((bins[i] + "/python3").c_str(), target, sizeof target - 1);
    const std::string link(target, length > 0 ? static_cast<std::size_t>(length) : 0);
    if (link.rfind('/') != std::string::npos)
      bins.push_back((link[0] == '/' ? "" : bins[i] + "/") + link.substr(0, link.rfind('/')));
  }
  for (const std::string& bin : bins)
    for (const char* packages : {"site-packages", "dist-packages"})
      add_matches(bin + "/../lib/python3*/" + packages + "/nvidia/*/lib");
  for (const char* packages : {"/opt/*/lib", "/opt/*/.venv/lib", "/usr/local/lib"})
    for (const char* kind : {"site-packages", "dist-packages"})
      add_matches(std::string(packages) + "/python3*/" + kind + "/nvidia/*/lib");
  return folders;
}

class Lt {
 public:
  // Loads the library once; a failure is remembered, so that every experiment that needs it says why it did not run.
  static const Lt& get() {
    static const Lt loaded;
    if (!loaded.missing_.empty()) throw NotRun(loaded.missing_);
    return loaded;
  }

  const LtFunctions& functions() const { return functions_; }
  cublasLtHandle_t handle() const { return handle_; }
  void* workspace() const { return workspace_; }
  void describe(Record& out) const {
    out.set("version", functions_.version());
    out.set("header_version", CUBLAS_VERSION);
    out.set("library", path_);
    out.set("dlopen_us", open_us_);
    out.set("create_us", create_us_);
  }
  void check(cublasStatus_t status, const char* expression, const char* file, int line) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw Failure(text("%s (%d) from %s, %s:%d", functions_.status_name(status), static_cast<int>(status), expression,
                       file_name(file), line));
  }

 private:
  Lt() {
    const std::string soname = text("libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    std::vector<std::string> names;
    // Asked for by name: a version other than the loader's is to be measured.
    if (const char* asked = std::getenv("DEVICELOOP_CUBLASLT")) {
      struct stat status = {};
      const bool folder = stat(asked, &status) == 0 && S_ISDIR(status.st_mode);
      names.push_back(folder ? std::string(asked) + "/" + soname : asked);
    }
    names.push_back(soname);
    for (const std::string& folder : library_folders()) names.push_back(folder + "/" + soname);
    const Clock::time_point start = Clock::now();
    void* library = nullptr;
    std::string complaint;
    for (const std::string& name : names) {
      library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) {
        path_ = name;
        break;
      }
      if (complaint.empty()) complaint = dlerror();
    }
    open_us_ = microseconds_since(start);
    if (library == nullptr) {
      missing_ = soname + " was not found (" + complaint + "); set DEVICELOOP_CUBLASLT to the library or its folder";
      return;
    }
    const auto look_up = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      if (function == nullptr && missing_.empty()) missing_ = path_ + " has no " + symbol;
    };
    look_up(functions_.create, "cublasLtCreate");
    look_up(functions_.destroy, "cublasLtDestroy");
    look_up(functions_.version, "cublasLtGetVersion");
    look_up(functions_.status_name, "cublasLtGetStatusName");
    look_up(functions_.desc_create, "cublasLtMatmulDescCreate");
    look_up(functions_.desc_destroy, "cublasLtMatmulDescDestroy");
    look_up(functions_.desc_set, "cublasLtMatmulDescSetAttribute");
    look_up(functions_.layout_create, "cublasLtMatrixLayoutCreate");
    look_up(functions_.layout_destroy, "cublasLtMatrixLayoutDestroy");
    look_up(functions_.preference_create, "cublasLtMatmulPreferenceCreate");
    look_up(functions_.preference_destroy, "cublasLtMatmulPreferenceDestroy");
    look_up(functions_.preference_set, "cublasLtMatmulPreferenceSetAttribute");
    look_up(functions_.heuristic, "cublasLtMatmulAlgoGetHeuristic");
    look_up(functions_.algo_get, "cublasLtMatmulAlgoConfigGetAttribute");
    look_up(functions_.matmul, "cublasLtMatmul");
    if (!missing_.empty()) return;
    const Clock::time_point before = Clock::now();
    const cublasStatus_t status = functions_.create(&handle_);
    create_us_ = microseconds_since(before);
    if (status != CUBLAS_STATUS_SUCCESS) missing_ = text("cublasLtCreate gave %d", static_cast<int>(status));
    if (missing_.empty() && cudaMalloc(&workspace_, kWorkspaceBytes) != cudaSuccess)
      missing_ = "no memory for cuBLASLt's workspace";
  }

  LtFunctions functions_ = {};
  cublasLtHandle_t handle_ = nullptr;  // lives as long as the process
  void* workspace_ = nullptr;
  std::string path_, missing_;
  double open_us_ = 0, create_us_ = 0;
};
#define PROBE_LT(expression) Lt::get().check(Lt::get().functions().expression, #expression, __FILE__, __LINE__)

struct Precision {
  const char* name;
  cudaDataType in, out;
  cublasComputeType_t compute;
  cudaDataType scale;
  double tolerance;  // of one product against double, relative Frobenius
};

const Precision kFp32 = {"fp32", CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F, 2e-6};
const Precision kTf32 = {"tf32", CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F, 2e-3};
const Precision kFp64 = {"fp64", CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F, CUDA_R_64F, 1e-14};
const Precision kBf16 = {"bf16", CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F, 4e-3};
const Precision kBf16Fp32 = {"bf16_to_fp32", CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F, 1e-5};

inline std::size_t bytes_of(cudaDataType type) { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }

// Matrix elements on the host, of any of the types, kept as the device will see them.
class HostArray {
 public:
  HostArray(cudaDataType type, std::size_t count) : type_(type), data_(count * bytes_of(type)) {}

  std::size_t size() const { return data_.size() / bytes_of(type_); }
  const void* get() const { return data_.data(); }
  void* get() { return data_.data(); }
  std::size_t bytes() const { return data_.size(); }

  void set(std::size_t i, double value) {
    if (type_ == CUDA_R_64F) {
      std::memcpy(&data_[8 * i], &value, 8);
      return;
    }
    const float narrow = static_cast<float>(value);
    std::uint32_t word;
    std::memcpy(&word, &narrow, 4);
    if (type_ == CUDA_R_32F) {
      std::memcpy(&data_[4 * i], &word, 4);
      return;
    }
    if (std::isnan(narrow))
      word |= 0x00400000;  // stays a NaN when its low half is cut off
    else
      word += 0x7fff + ((word >> 16) & 1);  // to nearest, ties to even
    const std::uint16_t half = static_cast<std::uint16_t>(word >> 16);
    std::memcpy(&data_[2 * i], &half, 2);
  }

  std::uint64_t bits(std::size_t i) const {
    std::uint64_t value = 0;  // little-endian: the low bytes
    std::memcpy(&value, &data_[bytes_of(type_) * i], bytes_of(type_));
    return value;
  }

  double operator[](std::size_t i) const {
    const std::uint64_t word = bits(i);
    if (type_ == CUDA_R_64F) {
      double value;
      std::memcpy(&value, &word, 8);
      return value;
    }
    const std::uint32_t low = static_cast<std::uint32_t>(type_ == CUDA_R_32F ? word : word << 16);
    float value;
    std::memcpy(&value, &low, 4);
    return value;
  }

  std::string hex(std::size_t i) const {
    return text("0x%0*llx", static_cast<int>(2 * bytes_of(type_)), static_cast<unsigned long long>(bits(i)));
  }

 private:
  cudaDataType type_;
  std::vector<unsigned char> data_;
};

using Bytes = Buffer<unsigned char>;

inline void upload(const Stream& stream, const Bytes& device, const void* host, std::size_t bytes) {
  if (bytes > device.bytes()) throw Failure("upload past the end of a buffer");
  PROBE_CUDA(cudaMemcpyAsync(device.get(), host, bytes, cudaMemcpyHostToDevice, stream));
  stream.wait();
}

inline void download(const Stream& stream, void* host, const Bytes& device, std::size_t bytes) {
  if (bytes > device.bytes()) throw Failure("download past the end of a buffer");
  PROBE_CUDA(cudaMemcpyAsync(host, device.get(), bytes, cudaMemcpyDeviceToHost, stream));
  stream.wait();
}

inline void poison(const Stream& stream, const Bytes& device) {
  PROBE_CUDA(cudaMemsetAsync(device.get(), 0xff, device.bytes(), stream));  // NaN in every type
}

// D [m x n] = alpha op(A) op(B) + beta C, all column-major with packed columns, epilogue applied.
struct ProductSpec {
  const Precision* precision = nullptr;
  int m = 0, n = 0, k = 0;
  cublasOperation_t op_a = CUBLAS_OP_N, op_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;  // read by BIAS, written by BGRAD
  void* aux = nullptr;
  std::int64_t aux_ld = 0;
  bool device_scalars = false;
};

// Our row-major [rows, features] is cuBLASLt's features x rows. Forward: Z = W X, op N N; backward: dH = W^T dZ, op T
// N; update: dW = dZ H^T, op N T.
inline std::int64_t mask_ld(int rows) { return (rows + 127) / 128 * 128; }

// alpha and beta in the type that the scale wants.
struct Scalars {
  Scalars(const Precision& precision, double alpha, double beta) {
    for (const bool first : {true, false}) {
      const double value = first ? alpha : beta;
      const float narrow = static_cast<float>(value);
      std::memcpy(first ? this->alpha : this->beta,
                  precision.scale == CUDA_R_64F ? static_cast<const void*>(&value) : &narrow,
                  bytes_of(precision.scale));
    }
  }
  alignas(8) unsigned char alpha[8] = {};
  alignas(8) unsigned char beta[8] = {};
};

class Product {
 public:
  static constexpr int kMostCandidates = 16;
  // Wrapped: nvcc 13.0 breaks down on a vector of cuBLASLt's unnamed struct.
  struct Candidate {
    cublasLtMatmulHeuristicResult_t result;
  };

  explicit Product(const ProductSpec& spec) : spec_(spec) {
    const Precision& p = *spec.precision;
    PROBE_LT(desc_create(&desc_, p.compute, p.scale));
    set(CUBLASLT_MATMUL_DESC_TRANSA, spec.op_a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, spec.op_b);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, spec.epilogue);
    if (spec.bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, spec.bias);
    if (spec.aux != nullptr) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, spec.aux);
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, spec.aux_ld);
    }
    if (spec.device_scalars) set(CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
    const auto layout = [](cublasLtMatrixLayout_t* out, cudaDataType type, int rows, int columns) {
      PROBE_LT(layout_create(out, type, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns), rows));
    };
    const bool plain_a = spec.op_a == CUBLAS_OP_N, plain_b = spec.op_b == CUBLAS_OP_N;
    layout(&a_, p.in, plain_a ? spec.m : spec.k, plain_a ? spec.k : spec.m);
    layout(&b_, p.in, plain_b ? spec.k : spec.n, plain_b ? spec.n : spec.k);
    layout(&d_, p.out, spec.m, spec.n);
  }
  ~Product() {
    const LtFunctions& lt = Lt::get().functions();
    for (const cublasLtMatrixLayout_t layout : {a_, b_, d_})
      if (layout != nullptr) (void)lt.layout_destroy(layout);
    if (desc_ != nullptr) (void)lt.desc_destroy(desc_);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  // What the heuristic offers, best first; none is an answer, not an error.
  std::vector<Candidate> candidates(int wanted, cublasStatus_t* status = nullptr) const {
    cublasLtMatmulPreference_t preference = nullptr;
    PROBE_LT(preference_create(&preference));
    cublasLtMatmulHeuristicResult_t offered[kMostCandidates] = {};
    const std::size_t workspace = kWorkspaceBytes;
    int count = 0;
    const LtFunctions& lt = Lt::get().functions();
    cublasStatus_t code =
        lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (code == CUBLAS_STATUS_SUCCESS)
      code = lt.heuristic(Lt::get().handle(), desc_, a_, b_, d_, d_, preference, std::min(wanted, kMostCandidates),
                          offered, &count);
    (void)lt.preference_destroy(preference);
    if (status != nullptr) *status = code;
    std::vector<Candidate> found;
    for (int i = 0; code == CUBLAS_STATUS_SUCCESS && i < count; ++i)
      if (offered[i].state == CUBLAS_STATUS_SUCCESS) found.push_back({offered[i]});
    return found;
  }

  Candidate first() const {
    const std::vector<Candidate> found = candidates(1);
    if (found.empty()) throw NoAlgorithm();
    return found[0];
  }

  // alpha and beta point to host or device memory, as the spec says.
  void run(const Candidate& choice, cudaStream_t stream, const void* alpha, const void* a, const void* b,
           const void* beta, void* d) const {
    PROBE_LT(matmul(Lt::get().handle(), desc_, alpha, a, a_, b, b_, beta, d, d_, d, d_, &choice.result.algo,
                    Lt::get().workspace(), kWorkspaceBytes, stream));
  }

 private:
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    PROBE_LT(desc_set(desc_, attribute, &value, sizeof value));
  }

  ProductSpec spec_;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
};

inline int algorithm_id(const Product::Candidate& choice) {
  int id = -1;
  std::size_t written = 0;
  if (Lt::get().functions().algo_get(&choice.result.algo, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, &written) !=
      CUBLAS_STATUS_SUCCESS)
    return -1;
  return id;
}

// Host products in double.
inline double element_a(const HostArray& a, const ProductSpec& s, int row, int inner) {
  return s.op_a == CUBLAS_OP_N ? a[static_cast<std::size_t>(inner) * s.m + row]
                               : a[static_cast<std::size_t>(row) * s.k + inner];
}

inline double element_b(const HostArray& b, const ProductSpec& s, int inner, int column) {
  return s.op_b == CUBLAS_OP_N ? b[static_cast<std::size_t>(column) * s.k + inner]
                               : b[static_cast<std::size_t>(inner) * s.n + column];
}

inline std::vector<double> host_product(const HostArray& a, const HostArray& b, const ProductSpec& s) {
  std::vector<double> out(static_cast<std::size_t>(s.m) * s.n);
  for (int column = 0; column < s.n; ++column)
    for (int row = 0; row < s.m; ++row) {
      double sum = 0;
      for (int inner = 0; inner < s.k; ++inner) sum += element_a(a, s, row, inner) * element_b(b, s, inner, column);
      out[static_cast<std::size_t>(column) * s.m + row] = sum;
    }
  return out;
}

// ||out - wanted|| / ||wanted||; NaN passes through.
template <class Got>
double relative_error(const Got& got, const std::vector<double>& wanted) {
  double wrong = 0, norm = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    wrong += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  return std::sqrt(wrong / norm);
}

// Uniform in [-1, 1), the same on every run.
inline HostArray random_array(cudaDataType type, std::size_t count, std::uint64_t seed) {
  HostArray out(type, count);
  std::uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
  for (std::size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    out.set(i, static_cast<double>(state >> 11) * 0x1p-52 - 1);
  }
  return out;
}

}  // namespace probe
