// How cuBLASLt is found and refused, without a GPU: by stubs that the environment names.
#include <gtest/gtest.h>

#include <dlfcn.h>

#include <cstddef>
#include <cstdlib>
#include <string>

#include <deviceloop/error.h>

#include "../cuda/runtime/cublaslt.h"
#include "support/refusal.h"

namespace deviceloop::cuda {
namespace {

using testing::refusal;

/// The refusal where the environment names `file`.
std::string refused(const std::string& file, const std::string& start) {
  setenv("DEVICELOOP_CUBLASLT", file.c_str(), 1);
  const std::string message = refusal<Unsupported>(start, [] { cublaslt(); });
  unsetenv("DEVICELOOP_CUBLASLT");
  return message;
}

bool is_loaded(const char* file) {
  void* const library = dlopen(file, RTLD_NOW | RTLD_NOLOAD);
  if (library != nullptr) dlclose(library);
  return library != nullptr;
}

// In this order: what was found stays.

TEST(CublasLt, AFileThatIsNotThereIsRefusedByItsName) {
  const std::string message = refused("/nonexistent/libcublasLt.so", "DEVICELOOP_CUBLASLT=/nonexistent/libcublasLt.so");
  EXPECT_MENTIONS(message, "cannot be loaded");
  EXPECT_MENTIONS(message, "name the file libcublasLt.so.");
  EXPECT_MENTIONS(message, "or unset it");
}

TEST(CublasLt, ALibraryThatLacksAFunctionIsRefusedAndNotKept) {
  EXPECT_MENTIONS(refused(DEVICELOOP_STUB_INCOMPLETE, "cuBLASLt has no cublasLtMatmul"), "install the version");
  EXPECT_FALSE(is_loaded(DEVICELOOP_STUB_INCOMPLETE));
}

TEST(CublasLt, AnotherMajorVersionIsRefusedAndNotKept) {
  const std::string message = refused(DEVICELOOP_STUB_OTHER, "cuBLASLt 7.5 was found");
  EXPECT_MENTIONS(message, "this build needs major version " + std::to_string(CUBLAS_VER_MAJOR));
  EXPECT_MENTIONS(message, "DEVICELOOP_CUBLASLT");
  EXPECT_FALSE(is_loaded(DEVICELOOP_STUB_OTHER));
}

TEST(CublasLt, IsLookedForAgainAfterARefusalAndThenKept) {
  setenv("DEVICELOOP_CUBLASLT", DEVICELOOP_STUB_GOOD, 1);
  const CublasLt& table = cublaslt();
  EXPECT_EQ(table.get_version(), static_cast<std::size_t>(CUBLAS_VERSION));
  EXPECT_NE(table.matmul, nullptr);
  EXPECT_TRUE(is_loaded(DEVICELOOP_STUB_GOOD));
  setenv("DEVICELOOP_CUBLASLT", "/nonexistent", 1);
  EXPECT_EQ(&cublaslt(), &table);
  unsetenv("DEVICELOOP_CUBLASLT");
}

}  // namespace
}  // namespace deviceloop::cuda
