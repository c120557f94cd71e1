#include "cublaslt.h"

#include <dlfcn.h>
#include <glob.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

namespace deviceloop::cuda {
namespace {

#define DEVICELOOP_TEXT(value) #value
#define DEVICELOOP_TEXT_OF(value) DEVICELOOP_TEXT(value)
constexpr const char* kSoname = "libcublasLt.so." DEVICELOOP_TEXT_OF(CUBLAS_VER_MAJOR);

/// Files that match, in order.
std::vector<std::string> matches(const std::string& pattern) {
  std::vector<std::string> files;
  glob_t found{};
  if (glob(pattern.c_str(), GLOB_NOSORT | GLOB_BRACE, nullptr, &found) == 0)
    files.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  return files;
}

/// The folders below which the packages of the shell's `python3` lie, found without running it: the one above the
/// folder of PATH that has it, also a virtual environment that is not activated, and the one above the file
/// that it links to. Relative folders in PATH are skipped, so that nothing is taken from the current folder.
std::vector<std::string> python_prefixes() {
  namespace fs = std::filesystem;
  const char* const path = std::getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "");
  folders.exceptions(std::ios::badbit);  // memory that is refused is not the end
  for (std::string folder; std::getline(folders, folder, ':');) {
    const fs::path python = fs::path(folder) / "python3";
    std::error_code missing;
    if (!python.is_absolute() || !fs::is_regular_file(python, missing) || access(python.c_str(), X_OK) != 0) continue;
    const fs::path named = fs::canonical(folder, missing).parent_path();
    const fs::path real = fs::canonical(python, missing).parent_path().parent_path();
    if (missing || real == named) return {named.string()};
    return {named.string(), real.string()};
  }
  return {};
}

}  // namespace

std::vector<std::string> likely_cublaslt_files() {
  std::vector<std::string> files;
  const auto add = [&](const std::string& folder, const std::string& below) {
    for (std::string& file : matches(folder + below + "/" + kSoname))
      if (std::find(files.begin(), files.end(), file) == files.end()) files.push_back(std::move(file));
  };
  constexpr const char* kToolkit = "/{lib64,lib,targets/*/lib}";
  for (const char* variable : {"CUDA_PATH", "CUDA_HOME"})
    if (const char* folder = std::getenv(variable)) add(folder, kToolkit);
  add("/usr/local/cuda", kToolkit);
  add("/usr/local/cuda-" DEVICELOOP_TEXT_OF(CUBLAS_VER_MAJOR) "*", kToolkit);
  const std::string wheel =
      "/lib/python3*/{site,dist}-packages/nvidia/{cu" DEVICELOOP_TEXT_OF(CUBLAS_VER_MAJOR) ",cublas}/lib";
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* folder = std::getenv(variable)) add(folder, wheel);
  for (const std::string& prefix : python_prefixes()) add(prefix, wheel);
  if (const char* home = std::getenv("HOME")) add(home, "/.local" + wheel);
  for (const char* prefix : {"/usr/local", "/usr"}) add(prefix, wheel);
  return files;
}

namespace {

void* try_open(const std::string& file, int flags, std::string& tried) {
  if (void* library = dlopen(file.c_str(), flags)) return library;
  const char* why = dlerror();
  tried += (tried.empty() ? "" : "; ") + std::string(why != nullptr ? why : file.c_str());
  return nullptr;
}

void* open_library() {
  constexpr int kFlags = RTLD_NOW | RTLD_LOCAL;
  if (void* library = dlopen(kSoname, kFlags | RTLD_NOLOAD)) return library;
  dlerror();
  std::string tried;
  if (const char* file = std::getenv("DEVICELOOP_CUBLASLT"); file != nullptr && *file != '\0') {
    if (void* library = try_open(file, kFlags, tried)) return library;
    throw Unsupported("DEVICELOOP_CUBLASLT=" + std::string(file) + " cannot be loaded: " + tried + "; name the file " +
                      kSoname + ", or unset it");
  }
  if (void* library = try_open(kSoname, kFlags, tried)) return library;
  for (const std::string& file : likely_cublaslt_files())
    if (void* library = try_open(file, kFlags, tried)) return library;
  throw Unsupported("cuBLASLt was not found: " + tried + "; install the CUDA toolkit's cuBLAS, or name the file " +
                    kSoname + " in the environment variable DEVICELOOP_CUBLASLT");
}

template <class Function>
void find_function(void* library, Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr)
    throw Unsupported(std::string("cuBLASLt has no ") + name + "; install the version that belongs to CUDA " +
                      DEVICELOOP_TEXT_OF(CUBLAS_VER_MAJOR));
}

struct Close {
  void operator()(void* library) const { dlclose(library); }
};

CublasLt load() {
  std::unique_ptr<void, Close> opened(open_library());
  void* const library = opened.get();
  CublasLt table;
  find_function(library, table.get_version, "cublasLtGetVersion");
  find_function(library, table.get_status_name, "cublasLtGetStatusName");
  find_function(library, table.create, "cublasLtCreate");
  find_function(library, table.destroy, "cublasLtDestroy");
  find_function(library, table.desc_create, "cublasLtMatmulDescCreate");
  find_function(library, table.desc_destroy, "cublasLtMatmulDescDestroy");
  find_function(library, table.desc_set_attribute, "cublasLtMatmulDescSetAttribute");
  find_function(library, table.layout_create, "cublasLtMatrixLayoutCreate");
  find_function(library, table.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find_function(library, table.preference_create, "cublasLtMatmulPreferenceCreate");
  find_function(library, table.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find_function(library, table.preference_set_attribute, "cublasLtMatmulPreferenceSetAttribute");
  find_function(library, table.get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find_function(library, table.algo_get_attribute, "cublasLtMatmulAlgoConfigGetAttribute");
  find_function(library, table.matmul, "cublasLtMatmul");
  const std::size_t version = table.get_version();
  if (version / 10000 != CUBLAS_VER_MAJOR)
    throw Unsupported("cuBLASLt " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) +
                      " was found, but this build needs major version " DEVICELOOP_TEXT_OF(
                          CUBLAS_VER_MAJOR) "; install that, or name its file " +
                      kSoname + " in the environment variable DEVICELOOP_CUBLASLT");
  opened.release();  // stays open: its functions are used until the process ends
  return table;
}

}  // namespace

const CublasLt& cublaslt() {
  // After a failure the next call tries again: the user may have installed the library meanwhile.
  static std::mutex mutex;
  static CublasLt table;
  static bool is_loaded = false;
  const std::scoped_lock lock(mutex);
  if (!is_loaded) {
    table = load();
    is_loaded = true;
  }
  return table;
}

}  // namespace deviceloop::cuda
