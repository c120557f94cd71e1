// Rules for the text of cuda/: kernels.txt lists every kernel, and kernels reach the machine through device.cuh and
// tensor.cuh alone.
// Each rule is first shown to fail on planted text.
#include "kernel_list.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

std::string without_comments(const std::string& text) {
  std::string code;
  for (std::size_t i = 0; i < text.size();) {
    const bool line = text.compare(i, 2, "//") == 0, block = text.compare(i, 2, "/*") == 0;
    if (line || block) {
      i = std::min(text.find(line ? "\n" : "*/", i + 2), text.size()) + (block ? 2 : 0);
      code += ' ';
    } else {
      code += text[i++];
    }
  }
  return code;
}

/// Without __launch_bounds__(...), which stands before or behind the kernel's return type.
std::string without_bounds(std::string code) {
  const std::string word = "__launch_bounds__";
  for (std::size_t begin = code.find(word); begin != std::string::npos; begin = code.find(word, begin)) {
    std::size_t end = std::min(code.find('(', begin), code.size());
    for (int depth = 0; end < code.size(); ++end) {
      depth += (code[end] == '(') - (code[end] == ')');
      if (depth == 0) break;
    }
    end = std::min(end + 1, code.size());
    code.replace(begin, end - begin, " ");
  }
  return code;
}

/// The names behind each __global__; "" where none is understood.
std::vector<std::string> kernels_in(const std::string& text) {
  static const std::regex kernel(R"(\b__global__\b(?:\s+(?:\w+\s+)*(\w+)\s*[<(])?)");
  const std::string code = without_bounds(without_comments(text));
  std::vector<std::string> names;
  for (std::sregex_iterator match(code.begin(), code.end(), kernel), end; match != end; ++match)
    names.push_back((*match)[1]);
  return names;
}

bool is_kernel_name(const std::string& name) {
  static const std::regex pattern(R"([a-z]\w*_kernel)");
  return std::regex_match(name, pattern);
}

/// What reaches the machine past device.cuh and tensor.cuh.
std::vector<std::string> machine_words_in(const std::string& text) {
  static const std::regex word(
      R"(__(shared__|syncthreads|syncwarp|shfl|ballot|any_sync|all_sync|activemask|match_|reduce_|threadfence|nanosleep|cluster_dims__)\w*|)"
      R"((^|[^.\w])(threadIdx|blockIdx|blockDim|gridDim|warpSize)\b|\b(cooperative_groups|clock64|clock)\b|\batomic\w*\s*\(|)"
      R"(\bcuda::(atomic|barrier|pipeline|ptx)\w*|\basm\b|<<<)");
  const std::string code = without_comments(text);
  std::vector<std::string> words;
  for (std::sregex_iterator match(code.begin(), code.end(), word), end; match != end; ++match)
    words.push_back(match->str());
  return words;
}

using Names = std::vector<std::string>;

TEST(KernelList, RuleFindsPlantedKernels) {
  EXPECT_EQ(kernels_in("__global__ void relu_kernel(float* x) {}"), Names{"relu_kernel"});
  EXPECT_EQ(kernels_in("template <class T>\n__global__ void\n__launch_bounds__ (f(2), 1)\n    sum_kernel(T* x) {}"),
            Names{"sum_kernel"});
  EXPECT_EQ(kernels_in("__launch_bounds__(k) __global__ static void a_kernel(int);"), Names{"a_kernel"});
  EXPECT_EQ(kernels_in("template __global__ void a_kernel<float>(int);"), Names{"a_kernel"});
  EXPECT_EQ(kernels_in("// __global__ void a()\n/* __global__ void b() **/ "), Names{});
  EXPECT_EQ(kernels_in("#define K __global__\n;"), Names{""});
  EXPECT_FALSE(is_kernel_name("relu"));
  EXPECT_FALSE(is_kernel_name(""));
}

TEST(KernelList, RuleFindsPlantedMachineWords) {
  for (const char* planted :
       {"__shared__ float x[2];", "extern __shared__ int y[];", "__syncthreads();", "__shfl_xor_sync(1, 2, 3);",
        "i = threadIdx.x;", "k<<<1, 2>>>();", "#include <cooperative_groups.h>", "asm(\"nop\");",
        "asm volatile (\"\");", "atomicAdd(p, 1);", "cuda::atomic_ref<int> r;", "__threadfence();",
        "__ballot_sync(1, 2);"})
    EXPECT_EQ(machine_words_in(planted).size(), 1u) << planted;
  EXPECT_EQ(machine_words_in("launch.gridDim = dim3(1);"), Names{});
  EXPECT_EQ(machine_words_in("shared<Layout>(); block_barrier(); // threadIdx, <<<\nx << y; thread_index();"), Names{});
}

TEST(KernelList, HoldsEveryKernelAndTheyKeepToDeviceCuhAndTensorCuh) {
  std::set<std::string> found;
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(DEVICELOOP_SOURCE_DIR "/cuda")) {
    if (!entry.is_regular_file()) continue;
    std::ostringstream text;
    text << std::ifstream(entry.path()).rdbuf();
    ++files;
    const fs::path path = entry.path().lexically_relative(DEVICELOOP_SOURCE_DIR "/cuda");
    if (path != fs::path("runtime") / "device.cuh" && path != fs::path("runtime") / "tensor.cuh") {
      EXPECT_EQ(machine_words_in(text.str()), Names{}) << path;
    }
    for (const std::string& name : kernels_in(text.str())) {
      EXPECT_TRUE(is_kernel_name(name)) << path << ": the kernel '" << name << "' is not named *_kernel";
      found.insert(name);
    }
  }
  EXPECT_GT(files, 3);
  EXPECT_EQ(simt::listed_kernels(), found) << "tests/simt/kernels.txt must list the kernels of cuda/";
}

}  // namespace
