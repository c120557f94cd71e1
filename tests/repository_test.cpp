// The rules of the repository that a program can check: who may include whom, what the public headers rest on, and that
// the library never prints or ends its host application. The arrows:
//
//   include/  the standard library and <deviceloop/...>
//   host/     include/, host/; never cuda/ or a CUDA header; host/cli is for itself alone
//   cuda/     include/, host/ and itself, there executors -> kernels -> runtime, never back
//   bench/    anything but tests/ and host/cli; nothing but tests/ includes bench/
//   examples/ include/ and itself; nothing else includes examples/
//   tests/    anything; nothing else includes tests/
//
// Each rule is first shown to fail on planted text.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace fs = std::filesystem;

/// Texts by path, relative to the repository's root, with '/'.
using Files = std::map<std::string, std::string>;

bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

/// `text` with comments blanked out, and with `strings` the contents of string literals too; line ends stay.
std::string blank_out(const std::string& text, bool strings) {
  std::string out = text;
  const auto blank = [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end && i < out.size(); ++i)
      if (out[i] != '\n') out[i] = ' ';
  };
  const auto position_after = [&](std::string_view what, std::size_t from) {
    const std::size_t found = text.find(what, from);
    return found == std::string::npos ? text.size() : found + what.size();
  };
  for (std::size_t i = 0; i < text.size();) {
    const char c = text[i];
    const bool after_word = i > 0 && (std::isalnum(static_cast<unsigned char>(text[i - 1])) || text[i - 1] == '_');
    std::size_t end = i + 1;
    if (starts_with(std::string_view(text).substr(i), "//")) {
      end = std::min(text.find('\n', i), text.size());
      blank(i, end);
    } else if (starts_with(std::string_view(text).substr(i), "/*")) {
      end = position_after("*/", i + 2);
      blank(i, end);
    } else if (c == '"' && i > 0 && text[i - 1] == 'R') {
      const std::string delimiter = text.substr(i + 1, text.find('(', i) - i - 1);
      end = position_after(")" + delimiter + "\"", i);
      if (strings) blank(i + 1, end - 1);
    } else if (c == '"' || (c == '\'' && !after_word)) {  // after a word, ' separates digits
      while (end < text.size() && text[end] != c && text[end] != '\n') end += text[end] == '\\' ? 2 : 1;
      if (strings) blank(i + 1, end);
      ++end;
    }
    i = end;
  }
  return out;
}

std::string line_of(const std::string& text, std::ptrdiff_t position) {
  return std::to_string(1 + std::count(text.begin(), text.begin() + position, '\n'));
}

struct Include {
  std::string line;
  std::string written;  ///< as in the file, with its quotes or brackets
  std::string target;   ///< path in the repository, were it there
};

/// Quoted files are looked for beside the file and then, like the compilers, in include/, host/, cuda/ and the root.
/// What is not in `files` is taken as relative to the root, so that a rule also sees a file that does not exist yet.
std::vector<Include> includes_of(const std::string& path, const std::string& text, const Files& files) {
  static const std::regex pattern(R"re((^|\n)[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)[>"])re");
  const std::string code = blank_out(text, false);
  std::vector<Include> includes;
  for (std::sregex_iterator match(code.begin(), code.end(), pattern), end; match != end; ++match) {
    const std::string name = (*match)[3];
    Include include{line_of(code, match->position(3)), (*match)[2] == "<" ? "<" + name + ">" : "\"" + name + "\"", ""};
    std::vector<fs::path> folders = {"include", "host", "cuda", ""};
    if ((*match)[2] == "\"") folders.insert(folders.begin(), fs::path(path).parent_path());
    for (const fs::path& folder : folders) {
      const std::string candidate = (folder / name).lexically_normal().generic_string();
      if (include.target.empty() && files.count(candidate) != 0) include.target = candidate;
    }
    if (include.target.empty()) {
      // In brackets <cuda/...> is CUDA's own library.
      const bool from_root = (starts_with(name, "cuda/") && (*match)[2] == "\"") || starts_with(name, "tests/") ||
                             starts_with(name, "bench/");
      include.target = ((from_root ? fs::path() : folders.front()) / name).lexically_normal().generic_string();
    }
    includes.push_back(include);
  }
  return includes;
}

/// How far a file of cuda/ is from the machine: it may include what is as near or nearer.
int cuda_rank(const std::string& path) {
  return starts_with(path, "cuda/runtime/") ? 0 : starts_with(path, "cuda/kernels/") ? 1 : 2;
}

/// Why `path` must not include that, or nothing.
std::string broken_arrow(const std::string& path, const Include& include) {
  static const std::regex standard(R"(<([a-z_0-9]+|stddef\.h|stdint\.h)>)");  // those of C for deviceloop_c.h
  static const std::regex cuda_header(R"([<"](cuda(?!_entry\.h)|cublas|cub/|thrust/|device_launch|nccl).*)");
  const std::string& target = include.target;
  const bool in_include = starts_with(path, "include/"), in_host = starts_with(path, "host/");
  if (in_include && !std::regex_match(include.written, standard) && !starts_with(include.written, "<deviceloop/"))
    return "a public header includes only the standard library and <deviceloop/...>";
  if (in_host && (starts_with(target, "cuda/") || std::regex_match(include.written, cuda_header)))
    return "host/ never includes cuda/ or a CUDA header; the interface is host/cuda_entry.h";
  if (starts_with(target, "tests/") && !starts_with(path, "tests/")) return "only tests include tests/";
  if (starts_with(target, "bench/") && !starts_with(path, "bench/") && !starts_with(path, "tests/"))
    return "only tests include bench/";
  if (starts_with(target, "host/cli/") && !starts_with(path, "host/cli/") && !starts_with(path, "tests/"))
    return "host/cli is for the command alone";
  const bool in_examples = starts_with(path, "examples/");
  if (in_examples && (starts_with(target, "host/") || starts_with(target, "cuda/") || starts_with(target, "bench/")))
    return "an example includes the public headers alone";
  if (starts_with(target, "examples/") && !in_examples) return "only examples include examples/";
  if (starts_with(path, "cuda/") && starts_with(target, "cuda/") && cuda_rank(target) > cuda_rank(path))
    return "in cuda/: executors -> kernels -> runtime, never back";
  return "";
}

/// One line for each include that breaks an arrow.
std::vector<std::string> broken_arrows(const Files& files) {
  std::vector<std::string> found;
  for (const auto& [path, text] : files)
    for (const Include& include : includes_of(path, text, files))
      if (const std::string why = broken_arrow(path, include); !why.empty())
        found.push_back(path + ":" + include.line + ": " + include.written + ": " + why);
  return found;
}

/// One line for each place in the library that prints, ends the process or stops the whole device.
std::vector<std::string> bad_manners(const Files& files) {
  static const std::regex pattern(
      R"(<iostream>|\bstd::(cout|cerr|clog)\b|\b(v?f?printf|f?puts|f?putc|putchar|perror|abort|_?_?[eE]xit|quick_exit|terminate|cudaDeviceSynchronize|cudaDeviceReset)[ \t\n]*\()");
  std::vector<std::string> found;
  for (const auto& [path, text] : files) {
    const bool in_library = starts_with(path, "include/") || starts_with(path, "host/") || starts_with(path, "cuda/");
    if (!in_library || starts_with(path, "host/cli/")) continue;
    const std::string code = blank_out(text, true);
    for (std::sregex_iterator match(code.begin(), code.end(), pattern), end; match != end; ++match)
      found.push_back(path + ":" + line_of(code, match->position()) + ": " + match->str());
  }
  return found;
}

/// The repository's C++ and CUDA files, without build folders and dot files.
Files read_repository() {
  const fs::path root = DEVICELOOP_SOURCE_DIR;
  Files files;
  for (auto entry = fs::recursive_directory_iterator(root); entry != fs::end(entry); ++entry) {
    const std::string path = entry->path().lexically_relative(root).generic_string();
    const std::string extension = entry->path().extension().string();
    if (entry->is_directory() && (path[0] == '.' || starts_with(path, "build"))) entry.disable_recursion_pending();
    if (!entry->is_regular_file()) continue;
    if (extension != ".h" && extension != ".cpp" && extension != ".cuh" && extension != ".cu") continue;
    std::ifstream stream(entry->path(), std::ios::binary);
    std::ostringstream text;
    text << stream.rdbuf();
    files[path] = text.str();
  }
  return files;
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += "\n  " + line;
  return text;
}

TEST(Repository, FilesAreFound) {
  const Files files = read_repository();
  for (const char* path :
       {"include/deviceloop/trainer.h", "host/executor.h", "host/cuda_entry.h", "cuda/without_cuda.cpp",
        "cuda/runtime/device.cuh", "cuda/kernels/elementwise.cu", "tests/repository_test.cpp"})
    EXPECT_EQ(files.count(path), 1u) << path;
}

TEST(Repository, PlantedIncludesBreakTheArrows) {
  struct Case {
    const char* path;
    const char* text;
    bool allowed;
  };
  const Case cases[] = {
      {"include/deviceloop/new.h", "#include <vector>\n#include <deviceloop/matrix.h>\n", true},
      {"include/deviceloop/new.h", "#include <stdint.h>\n#include <stddef.h>\n", true},
      {"include/deviceloop/new.h", "#include <cblas.h>\n", false},
      {"include/deviceloop/new.h", "#include <dlpack/dlpack.h>\n", false},
      {"include/deviceloop/new.h", "#include <Eigen/Dense>\n", false},
      {"include/deviceloop/new.h", "#include \"matrix.h\"\n", false},
      {"include/deviceloop/new.h", "#include \"../../host/executor.h\"\n", false},
      {"include/deviceloop/new.h", "#include \"cuda/runtime/device.cuh\"\n", false},
      {"host/new.cpp", "#include \"cuda_entry.h\"\n#include <cblas.h>\n", true},
      {"host/new.cpp", "#include \"../cuda/graph_executor.h\"\n", false},
      {"host/files/new.cpp", "  #  include \"../../cuda/kernels/relu.h\"\n", false},
      {"host/new.cpp", "#include \"cuda/runtime/checks.h\"\n", false},
      {"host/new.cpp", "#include <cuda_runtime.h>\n", false},
      {"host/new.cpp", "#include <cuda/atomic>\n", false},
      {"cuda/runtime/device.cuh", "#include <cuda/atomic>\n", true},
      {"host/new.cpp", "int a;\n#include \"../tests/support/reference.h\"\n", false},
      {"host/new.cpp", "// #include \"../cuda/graph_executor.h\"\n/*\n#include <cuda_runtime.h>\n*/\n", true},
      {"host/new.cpp", "#include \"cli/options.h\"\n", false},
      {"host/cli/new.cpp", "#include \"options.h\"\n#include \"executor.h\"\n", true},
      {"cuda/graph_executor.cpp", "#include \"../host/cuda_entry.h\"\n#include \"kernels/relu.h\"\n", true},
      {"cuda/kernels/relu.cu", "#include \"../runtime/device.cuh\"\n#include \"../../host/executor.h\"\n", true},
      {"include/deviceloop/new.h", "#include <cuda_runtime_api.h>\n", false},
      {"include/deviceloop/new.h", "#include \"cuda/executors/graph.h\"\n", false},
      {"host/new.cpp", "#include \"../cuda/runtime/check.h\"\n", false},
      {"host/cli/new.cpp", "#include \"../../cuda/executors/graph.h\"\n", false},
      {"host/new.cpp", "#include \"runtime/check.h\"\n", false},
      {"cuda/executors/graph.cpp", "#include \"../kernels/kernels.h\"\n#include \"../runtime/check.h\"\n", true},
      {"cuda/kernels/relu.cu", "#include \"../runtime/launch.h\"\n#include \"groups.cuh\"\n", true},
      {"cuda/kernels/relu.cu", "#include \"../device_query.h\"\n", false},
      {"cuda/kernels/relu.cu", "#include \"executors/graph.h\"\n", false},
      {"cuda/runtime/launch.cpp", "#include \"../executors/graph.h\"\n", false},
      {"cuda/runtime/launch.cpp", "#include \"kernels/kernels.h\"\n", false},
      {"cuda/kernels/relu.cu", "#include \"../graph_executor.h\"\n", false},
      {"cuda/kernels/relu.cu", "#include \"../executors/graph.h\"\n", false},
      {"cuda/runtime/launch.h", "#include \"../kernels/relu.h\"\n", false},
      {"cuda/runtime/launch.h", "#include \"cuda/kernels/relu.h\"\n", false},
      {"cuda/graph_executor.cpp", "#include \"../host/cli/options.h\"\n", false},
      {"bench/loop.cpp", "#include \"../tests/support/reference.h\"\n", false},
      {"bench/loop.cpp", "#include \"case.h\"\n#include \"../host/executor.h\"\n", true},
      {"bench/gpu/loop.cpp", "#include \"../case.h\"\n#include \"../../cuda/runtime/check.h\"\n", true},
      {"host/new.cpp", "#include \"../bench/case.h\"\n", false},
      {"cuda/new.cpp", "#include \"bench/case.h\"\n", false},
      {"examples/new.cpp", "#include \"csv.h\"\n#include <deviceloop/cuda.h>\n#include <cublas_v2.h>\n", true},
      {"examples/tutorial/new.cpp", "#include \"../csv.h\"\n", true},
      {"examples/new.cpp", "#include \"../host/executor.h\"\n", false},
      {"examples/new.cpp", "#include \"executor.h\"\n", false},
      {"examples/new.cpp", "#include \"cuda/runtime/check.h\"\n", false},
      {"examples/new.cpp", "#include \"../bench/case.h\"\n", false},
      {"examples/new.cpp", "#include \"../tests/support/reference.h\"\n", false},
      {"bench/loop.cpp", "#include \"../examples/csv.h\"\n", false},
      {"tests/loop_test.cpp", "#include \"../examples/csv.h\"\n", false},
      {"tests/loop_test.cpp", "#include \"../bench/case.h\"\n", true},
      {"tests/graph_test.cpp", "#include \"../cuda/graph_executor.h\"\n#include \"support/reference.h\"\n", true},
  };
  for (const Case& c : cases) {
    Files files;
    for (const char* path : {"host/executor.h", "host/cuda_entry.h", "host/cli/options.h", "cuda/runtime/check.h",
                             "cuda/kernels/kernels.h", "cuda/executors/graph.h"})
      files[path] = "";
    files[c.path] = c.text;
    EXPECT_EQ(broken_arrows(files).empty(), c.allowed) << c.path << ":\n" << c.text;
  }
  EXPECT_EQ(broken_arrows({{"host/a.cpp", "\n\n#include <cuda.h>\n"}}).at(0).substr(0, 13), "host/a.cpp:3:");
}

TEST(Repository, IncludesFollowTheArrows) {
  const auto found = broken_arrows(read_repository());
  EXPECT_TRUE(found.empty()) << joined(found);
}

TEST(Repository, PlantedBadMannersAreFound) {
  const auto is_found = [](const std::string& path, const std::string& text) {
    return !bad_manners({{path, text}}).empty();
  };
  for (const char* text :
       {"std::cout << 1;", "std::cerr << 1;", "#include <iostream>", "printf(\"x\");", "std::printf (\"x\");",
        "fprintf(stderr, \"x\");", "std::abort();", "exit(1);", "::_exit(1);", "std::terminate();", "puts(\"x\");",
        "const int n = 1'000; abort();", "const char c = '\"'; abort(); // \"", "s = \"\\\"\"; abort();",
        "s = R\"(\")\"; abort();", "/* one */ abort();", "cudaDeviceSynchronize();"}) {
    EXPECT_TRUE(is_found("host/a.cpp", text)) << text;
    EXPECT_TRUE(is_found("cuda/a.cu", text)) << text;
    EXPECT_TRUE(is_found("include/deviceloop/a.h", text)) << text;
    EXPECT_FALSE(is_found("host/cli/a.cpp", text)) << text;
    EXPECT_FALSE(is_found("tests/a.cpp", text)) << text;
  }
  for (const char* text : {"snprintf(b, 1, \"x\");", "// abort();", "/* exit(1);\n abort(); */", "\"call exit(1)\"",
                           "R\"(abort())\"", "on_exit_of(x);", "thread_exit(x);", "#include <ostream>"})
    EXPECT_FALSE(is_found("host/a.cpp", text)) << text;
}

TEST(Repository, TheLibraryNeitherPrintsNorEndsTheProcess) {
  const auto found = bad_manners(read_repository());
  EXPECT_TRUE(found.empty()) << joined(found);
}

}  // namespace
