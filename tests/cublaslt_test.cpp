// How cuBLASLt is found and refused, without a GPU: by stubs that the environment names.
#include <gtest/gtest.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <deviceloop/error.h>

#include "../cuda/runtime/cublaslt.h"
#include "support/refusal.h"
#include "support/temporary_folder.h"

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

namespace fs = std::filesystem;

/// Python installations that are made up, and a PATH that is put back.
class CublasLtOfPython : public ::testing::Test {
 protected:
  ~CublasLtOfPython() override { setenv("PATH", path_.c_str(), 1); }

  std::string folder(const std::string& name) const { return folder_ / name; }

  /// An executable file `name`/bin/`program`.
  void add_program(const std::string& name, const std::string& program) const {
    fs::create_directories(folder(name + "/bin"));
    fs::permissions(folder_.write(name + "/bin/" + program, "#!/bin/sh\nexit 1\n"), fs::perms::owner_all);
  }
  /// cuBLASLt as a wheel installs it for the Python in `name`; returns its path.
  std::string add_wheel(const std::string& name) const {
    const std::string major = std::to_string(CUBLAS_VER_MAJOR);
    const std::string lib = name + "/lib/python3.11/site-packages/nvidia/cu" + major + "/lib";
    fs::create_directories(folder(lib));
    return folder_.write(lib + "/libcublasLt.so." + major, "");
  }
  /// Of the files that would be tried, those in the made-up folders, where PATH is these.
  std::vector<std::string> found(const std::string& path) const {
    setenv("PATH", path.c_str(), 1);
    std::vector<std::string> files = likely_cublaslt_files();
    const std::string here = folder_.path().string();
    files.erase(
        std::remove_if(files.begin(), files.end(), [&](const std::string& file) { return file.rfind(here, 0) != 0; }),
        files.end());
    return files;
  }

 private:
  testing::TemporaryFolder folder_;
  std::string path_ = std::getenv("PATH") != nullptr ? std::getenv("PATH") : "";
};

using Files = std::vector<std::string>;

TEST_F(CublasLtOfPython, IsThatOfTheEnvironmentWhosePython3IsFirstInPath) {
  add_program("base", "python3.11");
  const std::string of_base = add_wheel("base");
  fs::create_directories(folder("venv/bin"));
  fs::create_symlink(folder("base/bin/python3.11"), folder("venv/bin/python3"));
  const std::string of_venv = add_wheel("venv");
  add_program("other", "python3");
  add_wheel("other");
  EXPECT_EQ(found(folder("venv/bin/") + ":" + folder("other/bin")), (Files{of_venv, of_base}));
}

TEST_F(CublasLtOfPython, IsLookedForBesideAPythonWithoutLinks) {
  add_program("opt", "python3");
  EXPECT_EQ(found("/nonexistent:" + folder("opt/bin")), Files{});
  const std::string file = add_wheel("opt");
  EXPECT_EQ(found("/nonexistent:" + folder("opt/bin")), Files{file});
  fs::create_directory_symlink(folder("opt/bin"), folder("shortcut"));
  EXPECT_EQ(found(folder("shortcut")), Files{file});
}

TEST_F(CublasLtOfPython, IsNotSoughtWhereAShellWouldRunNoPython3) {
  fs::create_directories(folder("a_folder/bin/python3"));
  add_wheel("a_folder");
  add_program("not_executable", "python3");
  fs::permissions(folder("not_executable/bin/python3"), fs::perms::owner_read);
  add_wheel("not_executable");
  add_program("last", "python3");
  const std::string file = add_wheel("last");
  EXPECT_EQ(found(folder("not_executable/bin") + ":" + folder("a_folder/bin") + ":" + folder("last/bin")), Files{file});
  EXPECT_EQ(found(""), Files{});
}

TEST_F(CublasLtOfPython, IsNotTakenFromTheCurrentFolder) {
  add_program("here", "python3");
  add_wheel("here");
  const fs::path before = fs::current_path();
  fs::current_path(folder("here/bin"));
  for (const char* path : {"", ".", ":", "../bin"}) EXPECT_EQ(found(path), Files{}) << "PATH=" << path;
  fs::current_path(before);
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
