// Another BLAS in the place of the one that the build found: what multiplies must be what the library describes. In
// programs of their own, because the loader decides it when a program starts.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "support/run_command.h"

namespace deviceloop {
namespace {

using testing::CommandResult;
using testing::run_command;

CommandResult run(std::vector<std::string> environment, std::vector<std::string> program) {
  testing::CommandSetup setup;
  setup.arguments = {"/usr/bin/env"};
  setup.arguments.insert(setup.arguments.end(), environment.begin(), environment.end());
  setup.arguments.insert(setup.arguments.end(), program.begin(), program.end());
  CommandResult result = run_command(setup);
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  return result;
}

std::string preload(const std::string& library) { return "LD_PRELOAD=" + library; }
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

long products(const CommandResult& result) {
  long count = -1;
  EXPECT_EQ(std::sscanf(result.err.c_str(), "%ld products by the other BLAS", &count), 1) << result.err;
  return count;
}

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

class OtherBlas : public ::testing::Test {
 protected:
  void SetUp() override {
    if (DEVICELOOP_OPENBLAS_IS_STATIC) GTEST_SKIP() << "this build's programs contain OpenBLAS: no library precedes it";
  }
  // The losses, which no BLAS changes in these digits.
  static std::string losses(const CommandResult& result) { return result.out.substr(result.out.find('\n') + 1); }
  const CommandResult plain_ = run({}, {DEVICELOOP_BLAS_REPORT});
};

TEST_F(OtherBlas, IsNotThereAsARule) {
  EXPECT_CONTAINS(first_line(plain_.out), "OpenBLAS");
  EXPECT_CONTAINS(first_line(plain_.out), "; verified");
}

TEST_F(OtherBlas, ThatIsPreloadedIsWhatTheLibraryDescribes) {
  const CommandResult result = run({preload(DEVICELOOP_OTHER_BOTH)}, {DEVICELOOP_BLAS_REPORT});
  EXPECT_EQ(first_line(result.out), "CBLAS in " DEVICELOOP_OTHER_BOTH ", not OpenBLAS; not verified");
  EXPECT_GT(products(result), 0);
  EXPECT_EQ(losses(result), losses(plain_));
}

TEST_F(OtherBlas, ThatHasOneOfTheTwoProductsIsNamed) {
  const CommandResult sgemm = run({preload(DEVICELOOP_OTHER_SGEMM)}, {DEVICELOOP_BLAS_REPORT});
  EXPECT_CONTAINS(first_line(sgemm.out), "cblas_sgemm in " DEVICELOOP_OTHER_SGEMM " and cblas_dgemm in ");
  EXPECT_CONTAINS(first_line(sgemm.out), ", not one OpenBLAS; not verified");
  EXPECT_GT(products(sgemm), 0);
  EXPECT_EQ(losses(sgemm), losses(plain_));

  const CommandResult dgemm = run({preload(DEVICELOOP_OTHER_DGEMM)}, {DEVICELOOP_BLAS_REPORT});
  EXPECT_CONTAINS(first_line(dgemm.out),
                  " and cblas_dgemm in " DEVICELOOP_OTHER_DGEMM ", not one OpenBLAS; not verified");
  EXPECT_GT(products(dgemm), 0);
  EXPECT_EQ(losses(dgemm), losses(plain_));
}

TEST_F(OtherBlas, ThatTheApplicationLinksFirstIsWhatTheLibraryDescribes) {
  const CommandResult result = run({}, {DEVICELOOP_BLAS_REPORT_OTHER_FIRST});
  const std::string name = std::filesystem::path(DEVICELOOP_OTHER_BOTH).filename().string();
  EXPECT_EQ(first_line(result.out).find("CBLAS in "), 0u) << result.out;
  EXPECT_CONTAINS(first_line(result.out), name + ", not OpenBLAS; not verified");
  EXPECT_GT(products(result), 0);
  EXPECT_EQ(losses(result), losses(plain_));
}

TEST_F(OtherBlas, MultipliesWhateverTheOpenBlasBehindItKnowsOfTheProcessor) {
  // Kernels of 2004, for which own code stands in where OpenBLAS would multiply, on a processor with AVX2.
  const std::string old = "OPENBLAS_CORETYPE=PRESCOTT";
  const CommandResult result = run({old, preload(DEVICELOOP_OTHER_BOTH)}, {DEVICELOOP_BLAS_REPORT});
  EXPECT_EQ(first_line(result.out), "CBLAS in " DEVICELOOP_OTHER_BOTH ", not OpenBLAS; not verified");
  EXPECT_GT(products(result), 0);
}

TEST_F(OtherBlas, IsWhatTheCommandShows) {
  if (!DEVICELOOP_HAS_COMMAND) GTEST_SKIP() << "the command is not built";
  const CommandResult result = run({preload(DEVICELOOP_OTHER_BOTH)}, {DEVICELOOP_COMMAND, "info"});
  EXPECT_CONTAINS(result.out, "\nGEMM          CBLAS in " DEVICELOOP_OTHER_BOTH ", not OpenBLAS\n");
  EXPECT_CONTAINS(result.out, "any number of threads: not verified\n");
}

// Debian's libblas.so.3 of OpenBLAS has a CBLAS of its own, which computes in libopenblas.so.0: that is no other BLAS.
TEST_F(OtherBlas, IsNotWhatOpenBlasBringsAlong) {
  std::error_code error;
  const auto library = std::filesystem::canonical(DEVICELOOP_OPENBLAS_FILE, error).parent_path() / "libblas.so.3";
  if (!std::filesystem::exists(library)) GTEST_SKIP() << "OpenBLAS has no " << library << " beside it";
  const CommandResult result = run({preload(library.string())}, {DEVICELOOP_BLAS_REPORT});
  EXPECT_EQ(result.out, plain_.out);
}

}  // namespace
}  // namespace deviceloop
