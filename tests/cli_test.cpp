// The command deviceloop as its users see it: what it prints, what it writes, how it ends.
#include <gtest/gtest.h>
#include <regex.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "files/npy.h"
#include "files/reader.h"
#include "files/safetensors.h"
#include "files/weights.h"
#include "input_scaling.h"
#include "matrix_ops.h"
#include "permutation.h"
#include "support/run_command.h"
#include "support/sanitized.h"
#include "support/temporary_folder.h"
#include "tasks.h"

namespace deviceloop::testing {
namespace {

using Arguments = std::vector<std::string>;

const Arguments kSmall = {"--layers", "6,5,2", "--samples", "9", "--lr", "1e-3"};

Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

CommandSetup command(const Arguments& arguments) {
  CommandSetup setup;
  setup.arguments = Arguments{DEVICELOOP_COMMAND} + arguments;
  return setup;
}

CommandResult run(const Arguments& arguments) { return run_command(command(arguments)); }
CommandResult train(const Arguments& arguments) { return run(Arguments{"train"} + kSmall + arguments); }

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> result;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) result.push_back(line);
  return result;
}

std::string words(const Arguments& arguments) {
  std::string text;
  for (const std::string& argument : arguments) text += argument + " ";
  return text;
}

/// Ends with `exit_code` and exactly one line on standard error, which holds all of `expected`.
void expect_one_line(const CommandResult& result, int exit_code, const std::vector<std::string>& expected) {
  EXPECT_EQ(result.exit_code, exit_code);
  ASSERT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_EQ(result.err.rfind("deviceloop: ", 0), 0u) << result.err;
  EXPECT_EQ(result.err.back(), '\n');
  for (const std::string& part : expected)
    EXPECT_NE(result.err.find(part), std::string::npos) << "'" << part << "' is not in: " << result.err;
}

void expect_refused(const Arguments& arguments, const std::vector<std::string>& expected, int exit_code = 2) {
  SCOPED_TRACE(words(arguments));
  const CommandResult result = run(arguments);
  expect_one_line(result, exit_code, expected);
  EXPECT_EQ(result.out, "");
}

void expect_done(const CommandResult& result) {
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
}

/// The losses of a history, whose steps must count from 0.
std::vector<double> losses_of(const std::string& history) {
  const std::vector<std::string> rows = lines(history);
  EXPECT_FALSE(rows.empty());
  if (rows.empty()) return {};
  EXPECT_EQ(rows[0], "step,loss");
  std::vector<double> losses;
  for (std::size_t i = 1; i < rows.size(); ++i) {
    const std::size_t comma = rows[i].find(',');
    EXPECT_EQ(rows[i].substr(0, comma), std::to_string(i - 1));
    losses.push_back(std::strtod(rows[i].c_str() + comma + 1, nullptr));
  }
  return losses;
}

/// Whether a line of `text` holds what the POSIX expression `pattern` describes. (std::regex makes GCC 12 warn under
/// the address sanitizer.)
bool holds(const std::string& text, const std::string& pattern) {
  regex_t compiled;
  const int error = regcomp(&compiled, pattern.c_str(), REG_EXTENDED | REG_NEWLINE | REG_NOSUB);
  EXPECT_EQ(error, 0) << pattern;
  if (error != 0) return false;
  const bool found = regexec(&compiled, text.c_str(), 0, nullptr, 0) == 0;
  regfree(&compiled);
  return found;
}
bool is_all(const std::string& line, const std::string& pattern) { return holds(line, "^(" + pattern + ")$"); }

/// What tells bits apart, NaN included.
std::vector<std::uint64_t> bits(const std::vector<double>& values) {
  std::vector<std::uint64_t> result;
  for (const double value : values) result.push_back(std::bit_cast<std::uint64_t>(value));
  return result;
}

/// Version 1.0 of the format, written from its description.
template <class T>
std::string npy(const std::string& descr, std::int64_t rows, std::int64_t columns, const std::vector<T>& values) {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (" + std::to_string(rows) + ", " +
                       std::to_string(columns) + "), }";
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 11, ' ');
  header += '\n';
  std::string file = std::string("\x93NUMPY\x01\x00", 8);
  file += static_cast<char>(header.size() % 256);
  file += static_cast<char>(header.size() / 256);
  file += header;
  file.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  return file;
}

/// Of floats.
template <class T>
std::string npy(std::int64_t rows, std::int64_t columns, const std::vector<T>& values) {
  return npy("<f" + std::to_string(sizeof(T)), rows, columns, values);
}

/// rows x columns of 0, 1, 2, ... / 8
template <class T>
std::string counting_npy(std::int64_t rows, std::int64_t columns) {
  std::vector<T> values(static_cast<std::size_t>(rows * columns));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(i) / 8;
  return npy(rows, columns, values);
}

TEST(Command, ShowsItsHelpOnStandardErrorWithoutSubcommand) {
  const CommandResult result = run({});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.out, "");
  EXPECT_NE(result.err.find("train"), std::string::npos);
}

TEST(Command, HasHelpAndVersionEverywhere) {
  for (const Arguments& subcommand : {Arguments{}, Arguments{"train"}, Arguments{"predict"}, Arguments{"plan"},
                                      Arguments{"compare"}, Arguments{"data"}, Arguments{"info"}}) {
    SCOPED_TRACE(words(subcommand));
    const CommandResult help = run(subcommand + Arguments{"--help"});
    expect_done(help);
    EXPECT_EQ(help.out.rfind("Usage: deviceloop ", 0), 0u);
    const std::vector<std::string> shown = lines(help.out);
    const bool trains =
        subcommand == Arguments{"train"} || subcommand == Arguments{"plan"} || subcommand == Arguments{"compare"};
    EXPECT_LE(shown.size(), trains ? 70u : 32u) << "does not fit its screens";
    for (const std::string& line : shown) EXPECT_LE(line.size(), 80u) << line;
    EXPECT_EQ(run(subcommand + Arguments{"-h"}).out, help.out);

    const CommandResult version = run(subcommand + Arguments{"--version"});
    expect_done(version);
    EXPECT_EQ(version.out, std::string("deviceloop ") + DEVICELOOP_VERSION + "\n");
  }
}

TEST(Command, ShowsTheDefaultsInTheHelp) {
  const std::string help = run({"train", "--help"}).out;
  for (const std::string line : {"--layers LIST .*1000,100,1",
                                 "--samples N .*128",
                                 "--steps N .*500",
                                 "--lr RATE .*1e-6",
                                 "--init NAME .*normal\\)",
                                 "--seed N .*0",
                                 "--precision NAME .*fp32\\)",
                                 "--device NAME .*auto\\)",
                                 "--plan NAME .*auto\\)",
                                 "--threads N .*0",
                                 "--bias",
                                 "--x FILE",
                                 "--y FILE",
                                 "--weights FILE",
                                 "--save FILE",
                                 "--sample-weights FILE",
                                 "--history FILE",
                                 "--json FILE",
                                 "--plot FILE",
                                 "--report FILE",
                                 "--quiet"})
    EXPECT_TRUE(holds(help, line)) << line;
  EXPECT_TRUE(holds(help, "--activation NAME .*relu\\)")) << help;
  EXPECT_TRUE(holds(help, "--output-activation NAME .*identity\\)")) << help;
  for (const std::string line :
       {"--loss NAME +squared, absolute, huber\\[:DELTA\\], bce or$", "cross-entropy \\(default squared\\)",
        "--reduction NAME .*sum\\)", "--epochs E .*ceil\\(E samples / batch size\\) steps", "--batch-size B .*0\\)",
        "--shuffle ", "--no-shuffle "})
    EXPECT_TRUE(holds(help, line)) << line << "\n" << help;
  for (const std::string line : {"--scale FACTOR +multiplies every input", "--standardize +each input minus its mean",
                                 "--standardize-targets +targets the same; losses are of these"})
    EXPECT_TRUE(holds(help, line)) << line << "\n" << help;
  EXPECT_TRUE(holds(run({"predict", "--help"}).out, "--classes +instead of them the class of each row"));
  EXPECT_TRUE(holds(help, "--formulation NAME .*primal\\)")) << help;
  EXPECT_TRUE(holds(help, "--reproject N .*0\\)")) << help;
  // All but those of the optimizer are above it.
  const std::string of_optimizer =
      help.substr(help.find("\nOptimizer:\n"), help.find("\nOutput ") - help.find("\nOptimizer:\n"));
  for (const std::string line :
       {"--optimizer NAME +gd, sgd, adam, adamw or rmsprop \\(default gd\\)", "--lr RATE .*1e-6\\)",
        "--momentum M .*0\\)", "--nesterov .*sgd", "--weight-decay D .*\\(default 0, adamw 0.01\\)",
        "--beta1 B .*0.9\\)", "--beta2 B .*\\(default 0.999, rmsprop 0.99\\)", "--epsilon E .*1e-8\\)",
        "--schedule NAME .*constant, step:EVERY:FACTOR",
        "exponential:FACTOR or cosine\\[:END\\] \\(default constant\\)", "--warmup STEPS .*0\\)",
        "--clip-norm C .*0\\)", "--clip-value C .*0\\)"})
    EXPECT_TRUE(holds(of_optimizer, line)) << line << "\n" << of_optimizer;
}

TEST(Command, RefusesBadUsage) {
  expect_refused({"trian"}, {"unknown command", "'trian'", "'train'", "--help"});
  expect_refused({"--layers", "3,1"}, {"unknown option", "'--layers'", "train", "--help"});
  expect_refused({"--layers"}, {"'--layers'"});
  expect_refused({"train", "--stepz", "5"}, {"unknown option", "'--stepz'", "'--steps'"});
  expect_refused({"train", "-s", "5"}, {"unknown option", "'-s'"});
  expect_refused({"train", "five"}, {"unexpected argument", "'five'"});
  expect_refused({"train", "plan"}, {"unexpected argument", "'plan'; see deviceloop train --help"});
  expect_refused(
      {"train", "--data", "d.csv", "--targets", "sale", "price"},
      {"unexpected argument 'price'; put a value that has spaces in quotation marks, such as 'sale price'; see"});
  expect_refused({"train", "--bias", "price"}, {"unexpected argument 'price'; see"});
  expect_refused({"info", "--steps", "5"}, {"unknown option", "'--steps'"});
  expect_refused({"train", "--steps"}, {"--steps", "needs a value", "train --help"});
  expect_refused({"train", "--steps", "--lr", "1"}, {"--steps", "needs a value", "--lr"});
  expect_refused({"train", "--steps=", "--bias"}, {"--steps=", "nothing"});
  expect_refused({"train", "--steps", "5", "--steps", "6"}, {"--steps", "more than once"});
  expect_refused({"train", "--bias", "--bias"}, {"--bias", "more than once"});
  expect_refused({"train", "--bias=false"}, {"--bias", "no value", "false"});
}

TEST(Command, RefusesWhatIsNoNumber) {
  const auto refused = [](const std::string& option, const std::vector<std::string>& values,
                          const std::vector<std::string>& expected) {
    for (const std::string& value : values) {
      expect_refused({"train", option, value}, std::vector<std::string>{option, "'" + value + "'"} + expected);
      if (!value.empty()) expect_refused({"train", option + "=" + value}, {option, "'" + value + "'"});
    }
  };
  refused("--steps", {"-5", "five", "5.5", "1e3", "", " 5", "+5", "0x5", "9223372036854775808"},
          {"whole number", "from 0 to 9223372036854775807"});
  refused("--samples", {"0", "-1", "many", "9223372036854775808"}, {"whole number", "from 1"});
  refused("--threads", {"-1", "two", "257", "99999999999999999999"}, {"whole number", "from 0 to 256"});
  refused("--seed", {"-1", "x", "1.0", "18446744073709551616"}, {"from 0 to 18446744073709551615"});
  refused("--lr", {"nan", "inf", "-inf", "-1e-6", "fast", "1e999", ""}, {"finite"});
  refused("--layers", {"0,1", "-5,1", "5,-1", "5,,1", "5,1,", ",", "", "5;1", "a,b", "5.5,1", "2147483648,1"},
          {"whole numbers", "from 1 to 2147483647"});
  refused("--layers", {"5"}, {"inputs and outputs"});
  expect_refused({"train", "--lr", "1e300"}, {"--lr", "1e300", "fp32"});
  for (const std::string rate : {"1e-300", "1e-45", "1e-38"})
    expect_refused({"train", "--lr", rate}, {"--lr", rate, "fp32's smallest normal number", "--precision fp64"});
  expect_refused({"train", "--lr", "1e-310", "--precision", "fp64"}, {"--lr", "1e-310", "fp64's smallest"});
}

TEST(Command, RefusesWhatIsNoChoice) {
  expect_refused({"train", "--activation", "leaky_relu"},
                 {"--activation", "one of relu, identity, leaky-relu[:SLOPE], ", ", sine", "'leaky_relu'"});
  for (const std::string slope : {"", "x", "0.2:", "inf", "nan", "+0.2", "1e999"})
    for (const std::string option : {"--activation", "--output-activation"})
      expect_refused(
          {"train", option, "leaky-relu:" + slope},
          {option + " must have a finite slope in leaky-relu:SLOPE, such as 0.2, not 'leaky-relu:" + slope + "'"});
  expect_refused({"train", "--activation", "tanh:0.2"}, {"--activation must be one of relu", "'tanh:0.2'"});
  expect_refused({"train", "--activation", "leaky-relu:1e300"}, {"slope of the leaky ReLU", "1e+300", "use fp64"});
  expect_refused(
      {"train", "--activation", "leaky-relu:0.2", "--output-activation", "leaky-relu"},
      {"--activation leaky-relu:0.2 and --output-activation leaky-relu have different slopes; a network has one"});
  expect_refused({"train", "--init", "zero"}, {"--init", "normal, he or xavier", "'zero'"});
  expect_refused({"train", "--header", "true"}, {"--header", "auto, yes or no", "'true'"});
  expect_refused({"train", "--precision", "fp8"}, {"--precision", "fp32, fp64, tf32, tf32x3, bf16 or fp16", "'fp8'"});
  expect_refused({"train", "--plan", "GPU"},
                 {"--plan", "auto, cpu, graph, persistent, fused, or persistent:FORM", "'GPU'"});
  for (const std::string device : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1 ", "cuda:4294967296", ""})
    expect_refused({"train", "--device", device}, {"--device", "cuda:N", "'" + device + "'"});
}

TEST(Command, RefusesContradictions) {
  for (const std::string plan : {"graph", "persistent"})
    expect_refused({"train", "--device", "cpu", "--plan", plan}, {"--device cpu", "--plan " + plan});
  for (const std::string device : {"cuda", "cuda:1"})
    expect_refused({"train", "--device", device, "--plan", "cpu"}, {"--device " + device, "--plan cpu"});
  expect_refused({"predict", "--weights", "w", "--x", "x", "--out", "p", "--device", "cpu", "--plan", "graph"},
                 {"--device cpu", "--plan graph"});
  expect_refused({"train", "--x", "x.npy"}, {"--x x.npy", "--y"});
  expect_refused({"train", "--y", "y.npy"}, {"--y y.npy", "--x"});
  expect_refused({"train", "--x", "x.npy", "--y", "y.npy", "--samples", "128"}, {"--samples 128", "--x x.npy"});
  expect_refused({"train", "--weights", "w", "--init", "normal"}, {"--init normal", "--weights w"});
  expect_refused({"train", "--save", "-", "--json", "-"}, {"--save", "--json", "'-'"});
  expect_refused({"train", "--history", "same", "--json", "./same"}, {"--history", "--json", "same"});
  expect_refused({"train", "--x", "x.npy", "--y", "y.npy", "--save", "x.npy"}, {"--save", "--x", "x.npy"});
  expect_refused({"predict", "--weights", "w", "--x", "x", "--out", "x"}, {"--out", "--x"});
  expect_refused({"train", "--data", "d.csv", "--x", "x.npy", "--y", "y.npy"}, {"--data d.csv", "--x x.npy"});
  expect_refused({"train", "--data", "d.csv", "--y", "y.npy"}, {"--data d.csv", "--y y.npy"});
  expect_refused({"plan", "--targets", "1"}, {"--targets '1'", "--data"});
  expect_refused({"train", "--header", "no"}, {"--header no", ".csv"});
  expect_refused({"train", "--data", "d.csv", "--samples", "128"}, {"--samples 128", "--data d.csv"});
  expect_refused({"train", "--data", "d.csv", "--save", "d.csv"}, {"--save", "--data", "d.csv"});
  expect_refused({"train", "--x", "", "--y", "y.npy"}, {"--x", "''"});
  expect_refused({"train", "--save="}, {"--save="});
  expect_refused({"data"}, {"--x", "--y", "--weights", "--order"});
  expect_refused({"data", "--x", "x.npy", "--epochs", "3"}, {"--epochs 3", "--order FILE"});
  expect_refused({"predict", "--weights", "w", "--x", "x"}, {"--out"});
  expect_refused({"predict", "--x", "x", "--out", "p"}, {"--weights"});
}

/// Outputs that are one file, by any of its names.
class OneFile : public ::testing::Test {
 protected:
  OneFile() { std::filesystem::create_directories(folder_.path() / "sub"); }

  std::string link(const std::string& name, const std::string& target) const {
    std::filesystem::create_symlink(target, folder_.path() / name);
    return folder_ / name;
  }
  /// Two options of train with two names of one file.
  void refused(const std::string& first, const std::string& second) const {
    const Arguments small = Arguments{"train"} + kSmall + Arguments{"--steps", "1"};
    expect_refused(small + Arguments{"--history", first, "--json", second},
                   {"--history", "--json", "same file", second});
    expect_refused(small + Arguments{"--save", second, "--history", first},
                   {"--save", "--history", "same file", first});
  }

  TemporaryFolder folder_;
};

TEST_F(OneFile, IsRefusedWhereItDoesNotExistYet) {
  const std::string out = folder_ / "out";
  refused(out, folder_ / "./sub/../out");
  refused(out, link("dangling", "out"));
}

TEST_F(OneFile, IsSeenThroughChainsOfDanglingLinks) {
  const std::string out = folder_ / "out";
  std::filesystem::create_symlink("../out", folder_.path() / "sub/middle");
  refused(out, link("chain", "sub/middle"));
  refused(link("absolute", out), folder_ / "chain");
  std::filesystem::create_directory_symlink("sub", folder_.path() / "other");
  refused(folder_ / "sub/new", folder_ / "other/new");
  EXPECT_FALSE(std::filesystem::exists(out));
}

TEST_F(OneFile, IsRefusedWhereItExists) {
  const std::string out = folder_.write("out", "as it was");
  refused(out, folder_ / "sub/../out");
  refused(out, link("link", "out"));
  std::filesystem::create_hard_link(out, folder_.path() / "hard");
  refused(out, folder_ / "hard");
  EXPECT_EQ(read_all(out), "as it was");
}

TEST_F(OneFile, MayNotBeAnInputAndAnOutput) {
  const std::string x = folder_.write("x.npy", counting_npy<float>(9, 6));
  const std::string y = folder_.write("y.npy", counting_npy<float>(9, 2));
  const std::string weights = folder_ / "w.safetensors";
  expect_done(train({"--steps", "0", "--quiet", "--save", weights}));
  std::filesystem::create_hard_link(x, folder_.path() / "hard");
  const Arguments shape = {"--layers", "6,5,2"};
  for (const std::string& other : {x, folder_ / "./x.npy", link("link", "x.npy"), folder_ / "hard"}) {
    expect_refused(Arguments{"train", "--x", x, "--y", y, "--history", other} + shape, {"--x", "--history", other});
    expect_refused({"predict", "--weights", weights, "--x", x, "--out", other}, {"--x", "--out", other});
    expect_refused({"predict", "--weights", weights, "--x", other, "--out", x}, {"--x", "--out", x});
  }
  expect_refused(Arguments{"train", "--weights", weights, "--json", weights} + shape, {"--weights", "--json"});
  // To go on with a run is what one name for both is good for.
  expect_done(train({"--steps", "1", "--quiet", "--weights", weights, "--save", weights}));
  EXPECT_EQ(read_npy(x).rows, 9);
}

TEST_F(OneFile, MayNotBeWhereStandardOutputGoes) {
  CommandSetup setup = command(Arguments{"train"} + kSmall + Arguments{"--history", folder_ / "out"});
  setup.out_file = folder_ / "out";
  expect_one_line(run_command(setup), 2, {"--history", folder_ / "out", "standard output"});
  setup.arguments.back() = "/dev/stdout";
  expect_one_line(run_command(setup), 2, {"--history", "/dev/stdout", "standard output"});
  // A pipe by another name than '-' is one too: the text goes elsewhere.
  const CommandResult piped = run(Arguments{"train"} + kSmall + Arguments{"--steps", "3", "--history", "/dev/stdout"});
  EXPECT_EQ(losses_of(piped.out).size(), 3u);
  EXPECT_NE(piped.err.find("plan cpu"), std::string::npos);
  expect_refused(Arguments{"train"} + kSmall + Arguments{"--history", "-", "--json", "/dev/fd/1"},
                 {"--history", "--json", "standard output"});
  // What is written there is gone in any case.
  expect_done(train({"--history", "/dev/null", "--json", "/dev/null", "--quiet"}));
}

/// The command under a limit, as `ulimit` sets it.
CommandResult run_under(const std::string& limit, const Arguments& arguments) {
  CommandSetup setup;
  setup.arguments =
      Arguments{"/bin/sh", "-c", "ulimit " + limit + " && exec \"$0\" \"$@\"", DEVICELOOP_COMMAND} + arguments;
  setup.time_limit = std::chrono::seconds(20);
  return run_command(setup);
}

TEST(Command, EndsWithAMessageUnderALimitOfItsMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take more address space than any limit leaves";
#endif
  const CommandResult info = run_under("-v 1000000", {"info"});
  expect_done(info);
  EXPECT_TRUE(holds(info.out, "^memory +[1-9][0-9]{2}\\.[0-9] MiB free$")) << info.out;
  const Arguments small = Arguments{"train"} + kSmall + Arguments{"--device", "cpu", "--steps", "5", "--quiet"};
  expect_done(run_under("-v 1000000", small));
  for (const std::string limit : {"-v 1000000", "-d 1000000"}) {
    const CommandResult many = run_under(limit, small + Arguments{"--threads", "250"});
    if (many.exit_code == 0) continue;  // where the BLAS takes little for a thread
    expect_one_line(many, 1, {"250 threads", "ask for fewer threads"});
  }
  expect_one_line(run_under("-v 1000000", Arguments{"train", "--samples", "1000000", "--device", "cpu"}), 2,
                  {"memory", "free"});
}

TEST(Command, EndsWithOneWhereWhatIsForcedIsNotToBeHad) {
  if (!query_device_caps().gpus.empty()) GTEST_SKIP() << "this machine has a GPU";
  const std::string reason = query_device_caps().no_gpu_reason;
  for (const std::string plan : {"graph", "persistent"}) expect_refused({"train", "--plan", plan}, {plan, reason}, 1);
  expect_refused({"train", "--device", "cuda"}, {"CUDA device", reason}, 1);
  expect_refused({"train", "--device", "cuda:3"}, {"CUDA device 3", reason}, 1);
  expect_refused({"plan", "--plan", "graph"}, {"graph", reason}, 1);
}

TEST(Command, RefusesWhatExceedsTheMemory) {
  for (const std::string samples : {"1000000000000", "9223372036854775807"})
    for (const std::string subcommand : {"train", "plan"})
      expect_refused({subcommand, "--samples", samples}, {"memory", samples});
  expect_refused({"train", "--layers", "2147483647,2147483647"}, {"memory", "2147483647,2147483647"});
  expect_refused({"train", "--layers", "2147483647,2147483647,2147483647", "--samples", "9223372036854775807"},
                 {"memory"});
  for (const std::string steps : {"1000000000000000", "9223372036854775807"})
    expect_refused({"train", "--steps", steps}, {"memory", "--steps " + steps});
  TemporaryFolder folder;
  expect_refused({"data", "--samples", "9223372036854775807", "--x", folder / "x"}, {"memory", "9223372036854775807"});
  expect_refused({"data", "--layers", "2147483647,2147483647", "--weights", folder / "w"}, {"memory", "2147483647"});
  for (const std::string epochs : {"1", "1000000000000", "9223372036854775807"})
    expect_refused({"data", "--samples", "1000000000000", "--epochs", epochs, "--order", folder / "o"},
                   {"--epochs " + epochs + " of --samples 1000000000000 take", "memory", "ask for less"});
  EXPECT_EQ(folder.count(), 0);
}

TEST(Command, FindsAnOutputItCannotWriteBeforeItReadsOrTrains) {
  TemporaryFolder folder;
  const std::string bad = folder.write("bad.npy", "no array");
  for (const std::string option : {"--save", "--history", "--json"}) {
    expect_refused({"train", "--x", bad, "--y", bad, option, folder / "none/out"}, {folder / "none/out"});
    expect_refused({"train", "--x", bad, "--y", bad, option, folder.path().string()}, {folder.path().string()});
  }
  expect_refused({"data", "--x", folder / "x.npy", "--y", folder / "none/y.npy"}, {folder / "none/y.npy"});
  expect_refused({"predict", "--weights", bad, "--x", bad, "--out", folder / "none/p.npy"}, {folder / "none/p.npy"});
  EXPECT_EQ(folder.count(), 1);
}

TEST(Command, RefusesDataThatDoesNotFit) {
  TemporaryFolder folder;
  const std::string x = folder.write("x.npy", counting_npy<float>(4, 37));
  const std::string y = folder.write("y.npy", counting_npy<double>(4, 2));
  const std::string short_y = folder.write("short_y.npy", counting_npy<float>(3, 2));
  const std::string empty = folder.write("empty.npy", "");
  const std::string none = folder.write("none.npy", counting_npy<float>(0, 37));

  expect_refused({"train", "--x", x, "--y", y}, {x, "37 columns", "--layers 1000,100,1", "--layers 37,100,2"});
  expect_refused({"train", "--x", x, "--y", y, "--layers", "37,5,3"},
                 {y, "2 columns", "--layers 37,5,3", "--layers 37,5,2"});
  expect_refused({"train", "--x", x, "--y", short_y, "--layers", "37,5,2"}, {x, "4 rows", short_y, "3 rows"});
  expect_refused({"plan", "--x", x, "--y", y}, {x, "37 columns", "--layers 37,100,2"});
  expect_refused({"train", "--x", folder / "missing.npy", "--y", y}, {folder / "missing.npy"});
  expect_refused({"train", "--x", empty, "--y", y}, {empty, "empty"});
  expect_refused({"train", "--x", none, "--y", y}, {none, "empty"});
  expect_refused({"train", "--x", x, "--y", folder.write("cut.npy", counting_npy<float>(4, 2).substr(0, 140))},
                 {folder / "cut.npy"});
  expect_refused({"train", "--x", folder.write("two\nlines", "x"), "--y", y}, {"two\\x0alines"});
}

TEST(Command, NamesTheRowAndColumnOfWhatIsNotFinite) {
  TemporaryFolder folder;
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const std::string good = folder.write("good.npy", npy<double>(2, 2, {1, 2, 3, 4}));
  const std::string with_nan = folder.write("nan.npy", npy<double>(2, 2, {1, 2, 3, nan}));
  const std::string with_infinity = folder.write("inf.npy", npy<float>(2, 2, {1, 2, static_cast<float>(-infinity), 4}));
  const std::string large = folder.write("large.npy", npy<double>(2, 2, {1, 1e100, 3, 4}));
  const Arguments layers = {"--layers", "2,3,2", "--lr", "0"};
  expect_refused(Arguments{"train", "--x", with_nan, "--y", good} + layers, {with_nan, "row 1", "column 1", "nan"});
  expect_refused(Arguments{"train", "--x", good, "--y", with_infinity} + layers,
                 {with_infinity, "row 1", "column 0", "inf"});
  expect_refused(Arguments{"train", "--x", large, "--y", good} + layers, {large, "row 0", "column 1", "1e+100"});
  expect_refused(Arguments{"plan", "--x", with_nan, "--y", good} + layers, {with_nan, "row 1", "column 1", "nan"});
  expect_refused(Arguments{"plan", "--x", good, "--y", with_infinity} + layers, {with_infinity, "row 1", "column 0"});
  expect_done(run(Arguments{"train", "--x", large, "--y", good, "--precision", "fp64", "--steps", "0"} + layers +
                  Arguments{"--init", "he", "--quiet"}));
}

TEST(Train, PrintsPlanRowsLossesAndSummary) {
  const CommandResult result = train({"--steps", "250"});
  expect_done(result);
  const std::vector<std::string> shown = lines(result.out);
  std::vector<std::string> expected = {"plan cpu: .+", "prediction minus target, first 5 rows, before training:"};
  const std::string number = " +-?[0-9.]+(e[-+][0-9]+)?", row = number + number, loss = ": [0-9.]+(e-[0-9]+)?";
  expected.insert(expected.end(), 5, row);
  for (int step = 0; step <= 100; step += 10) expected.push_back(std::to_string(step) + loss);
  expected.push_back("200" + loss);
  expected.push_back("249" + loss);
  expected.push_back("prediction minus target, first 5 rows, after training:");
  expected.insert(expected.end(), 5, row);
  expected.push_back("prepared in [0-9.]+ m?s: devices [0-9.]+, plan [0-9.]+, data [0-9.]+, memory [0-9.]+");
  expected.push_back(
      "250 steps in [0-9.]+ m?s, [0-9.]+ us a step \\(predicted [0-9.]+\\); loss [0-9.]+ -> "
      "[0-9.e-]+");
  ASSERT_EQ(shown.size(), expected.size()) << result.out;
  for (std::size_t i = 0; i < shown.size(); ++i)
    EXPECT_TRUE(is_all(shown[i], expected[i])) << shown[i] << "\nis not\n" << expected[i];
}

TEST(Train, SaysHowManySamplesItReadAndHow) {
  const TemporaryFolder folder;
  const std::string x = folder.write("x.npy", npy("<f4", 3, 2, std::vector<float>{1, 2, 3, 4, 5, 6}));
  const std::string y = folder.write("y.npy", npy("<i8", 3, 1, std::vector<std::int64_t>{3, 7, 11}));
  const std::string table = folder.write("t.csv", "+1.0,+2.0,+3.0\n3,4,7\n5,6,11\n");
  const std::string named = folder.write("n.csv", "a,b,sum\n1,2,3\n3,4,7\n5,6,11\n");
  const auto first_line = [&](const Arguments& arguments) {
    const CommandResult result = run(Arguments{"train", "--layers", "2,1", "--steps", "0"} + arguments);
    expect_done(result);
    EXPECT_EQ(run(Arguments{"train", "--layers", "2,1", "--steps", "0", "--quiet"} + arguments).out, "");
    return lines(result.out).at(0);
  };
  EXPECT_EQ(first_line({"--x", x, "--y", y}), "read 3 samples from " + x + " and " + y + " (int64, converted to fp32)");
  EXPECT_EQ(first_line({"--x", x, "--y", y, "--precision", "fp64"}),
            "read 3 samples from " + x + " (float32, converted to fp64) and " + y + " (int64, converted to fp64)");
  EXPECT_EQ(first_line({"--data", table, "--targets", "1"}), "read 3 samples from " + table);
  EXPECT_EQ(first_line({"--data", named, "--targets", "1"}),
            "read 3 samples from " + named + " (line 1 is its header)");
  EXPECT_EQ(first_line({"--data", table, "--targets", "1", "--header", "yes"}),
            "read 2 samples from " + table + " (line 1 is its header)");
  EXPECT_EQ(first_line({"--data", folder.write("one.csv", "1,2,3"), "--targets", "1"}),
            "read 1 sample from " + folder / "one.csv");
  expect_refused({"train", "--layers", "2,1", "--data", named, "--targets", "1", "--header", "no"},
                 {named, "line 1, column 1: 'a' is not a number"});
  expect_refused({"train", "--layers", "2,1", "--data", folder.write("m.csv", "a,2,sum\n1,2,3\n"), "--targets", "1"},
                 {"m.csv", "line 1, column 1: 'a' is not a number, but '2' in column 2 is", "--header yes"});

  // The same numbers in every form are the same training.
  const auto losses = [&](const Arguments& files) {
    expect_done(
        run(Arguments{"train", "--layers", "2,1", "--steps", "3"} + files + Arguments{"--history", folder / "h"}));
    return bits(losses_of(read_all(folder / "h")));
  };
  EXPECT_EQ(losses({"--x", x, "--y", y}), losses({"--data", table, "--targets", "1"}));
  EXPECT_EQ(losses({"--x", x, "--y", y}), losses({"--data", named, "--targets", "sum"}));
}

TEST(Train, SaysWhatTheWeightsWereConvertedFrom) {
  const TemporaryFolder folder;
  const std::string weights = folder / "w.safetensors";
  SafeTensor tensor{"0.weight", "BF16", {1, 2}, {std::byte{0x80}, std::byte{0x3f}, std::byte{0}, std::byte{0x40}}};
  OutputFile file(weights);
  write_safetensors(file, std::vector<SafeTensor>{tensor});  // 1, 2
  file.commit();
  const std::string data = folder.write("d.csv", "3,4,0\n");
  const CommandResult result =
      run({"train", "--layers", "2,1", "--data", data, "--targets", "1", "--weights", weights, "--steps", "0"});
  expect_done(result);
  EXPECT_EQ(lines(result.out).at(1), weights + " has weights in BF16, converted to fp32");
  EXPECT_NE(result.out.find("\n0: 121.00\n"), std::string::npos) << result.out;
  const CommandResult predicted =
      run({"predict", "--weights", weights, "--x", folder.write("x.csv", "3,4\n"), "--out", folder / "p.npy"});
  expect_done(predicted);
  EXPECT_EQ(lines(predicted.out).at(0), "read 1 sample from " + folder / "x.csv");
  EXPECT_EQ(lines(predicted.out).at(1), weights + " has weights in BF16, converted to fp32");
  const DataMatrix prediction = read_npy(folder / "p.npy");
  EXPECT_EQ(static_cast<const float*>(prediction.view().data)[0], 11);
}

/// Writes a file into a pipe as soon as somebody reads it.
class PipeWriter {
 public:
  PipeWriter(const std::string& path, const std::string& content) {
    EXPECT_EQ(::mkfifo(path.c_str(), 0600), 0);
    writer_ = std::thread([path, content] {
      std::ofstream stream(path, std::ios::binary);
      stream << content;
    });
  }
  ~PipeWriter() { writer_.join(); }
  PipeWriter(const PipeWriter&) = delete;
  PipeWriter& operator=(const PipeWriter&) = delete;

 private:
  std::thread writer_;
};

TEST(Command, ReadsPipes) {
  const TemporaryFolder folder;
  const std::string weights = folder / "w.safetensors", x = folder / "x.npy", y = folder / "y.npy";
  expect_done(run({"data", "--layers", "6,5,2", "--bias", "--samples", "9", "--x", x, "--y", y, "--weights", weights}));
  const auto train_on = [&](const std::string& end) {
    const CommandResult result = run({"train", "--layers", "6,5,2", "--bias", "--steps", "3", "--x", x + end, "--y",
                                      y + end, "--weights", weights + end, "--history", folder / "h"});
    expect_done(result);
    return read_all(folder / "h");
  };
  const std::string expected = train_on("");
  {
    const PipeWriter of_x(x + ".pipe", read_all(x)), of_y(y + ".pipe", read_all(y));
    const PipeWriter of_weights(weights + ".pipe", read_all(weights));
    EXPECT_EQ(train_on(".pipe"), expected);
  }
  expect_done(run({"predict", "--weights", weights, "--x", x, "--out", folder / "p"}));
  const PipeWriter of_x(folder / "x2", read_all(x)), of_weights(folder / "w2", read_all(weights));
  expect_done(run({"predict", "--weights", folder / "w2", "--x", folder / "x2", "--out", folder / "p2"}));
  EXPECT_EQ(read_all(folder / "p2"), read_all(folder / "p"));
}

TEST(Command, StopsReadingAPipeWhenInterrupted) {
  const TemporaryFolder folder;
  const std::string pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  RunningCommand running(command({"train", "--data", pipe, "--targets", "1"}));
  std::ofstream stream(pipe, std::ios::binary);  // waits until the command has it open
  stream << "1,2\n" << std::flush;
  running.send(SIGINT);
  EXPECT_EQ(running.finish().signal, SIGINT);  // there is nothing to keep yet
}

TEST(Train, ShowsFewRowsAndElidesColumns) {
  const CommandResult result = run({"train", "--layers", "3,12", "--samples", "2", "--steps", "1"});
  expect_done(result);
  const std::vector<std::string> shown = lines(result.out);
  ASSERT_GE(shown.size(), 5u);
  EXPECT_EQ(shown[1], "prediction minus target, first 2 rows, before training:");
  EXPECT_TRUE(is_all(shown[2], "( +-?[0-9.e-]+){8}  \\.\\.\\.")) << shown[2];
  EXPECT_EQ(shown[4].rfind("0: ", 0), 0u);
}

TEST(Train, WritesLossesAsTheirSizeWants) {
  TemporaryFolder folder;
  // One weight, no hidden layer: the loss of step 0 is (w x - y)^2 with a w that 0 multiplies.
  const std::string x = folder.write("x.npy", npy<double>(1, 1, {0}));
  const auto first_line = [&](double y) {
    const std::string target = folder.write("y.npy", npy<double>(1, 1, {y}));
    const CommandResult result =
        run({"train", "--layers", "1,1", "--steps", "0", "--precision", "fp64", "--x", x, "--y", target});
    expect_done(result);
    return lines(result.out).at(4);
  };
  EXPECT_EQ(first_line(0), "0: 0.00");
  EXPECT_EQ(first_line(1.5), "0: 2.25");
  EXPECT_EQ(first_line(3017), "0: 9102289.00");
  EXPECT_EQ(first_line(0.5), "0: 0.25");
  EXPECT_EQ(first_line(1e-4), "0: 1e-08");
  EXPECT_EQ(first_line(1e10), "0: 1e+20");
}

TEST(Train, QuietWritesNothing) {
  const CommandResult result = train({"--quiet", "--steps", "3"});
  expect_done(result);
  EXPECT_EQ(result.out, "");
}

TEST(Train, WritesHistoryAndJson) {
  TemporaryFolder folder;
  const CommandResult result = train({"--steps", "30", "--history", folder / "h.csv", "--json", folder / "r.json",
                                      "--save", folder / "w.safetensors", "--threads", "1"});
  expect_done(result);
  EXPECT_NE(lines(result.out).back().find("wrote " + folder / "w.safetensors"), std::string::npos);
  EXPECT_EQ(folder.count(), 3);
  const std::vector<double> losses = losses_of(read_all(folder / "h.csv"));
  ASSERT_EQ(losses.size(), 30u);

  const auto json = nlohmann::ordered_json::parse(read_all(folder / "r.json"));
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  EXPECT_EQ(keys, (std::vector<std::string>{"version", "plan", "reason", "formulation", "precision", "threads", "steps",
                                            "loss_first", "loss_last", "us_per_step", "predicted_us_per_step",
                                            "floor_us_per_step", "total_ms", "prepare_ms", "preparation",
                                            "first_non_finite_step", "loss_moved", "inactive_layers"}));
  EXPECT_EQ(json["version"], DEVICELOOP_VERSION);
  EXPECT_EQ(json["plan"], "cpu");
  EXPECT_FALSE(json["reason"].get<std::string>().empty());
  EXPECT_EQ(json["formulation"], "primal");
  EXPECT_EQ(json["precision"], "fp32");
  EXPECT_EQ(json["threads"], 1);
  EXPECT_EQ(json["steps"], 30);
  EXPECT_EQ(json["loss_first"].get<double>(), losses.front());
  EXPECT_EQ(json["loss_last"].get<double>(), losses.back());
  EXPECT_GT(json["total_ms"].get<double>(), 0);
  EXPECT_DOUBLE_EQ(json["us_per_step"].get<double>(), json["total_ms"].get<double>() * 1000 / 30);
  EXPECT_TRUE(json["first_non_finite_step"].is_null());
  EXPECT_EQ(json["loss_moved"], true);
  EXPECT_EQ(json["inactive_layers"], nlohmann::ordered_json::array());
  EXPECT_EQ(result.out.find("note: "), std::string::npos) << result.out;
  double prepared = 0;
  for (const auto& [stage, ms] : json["preparation"].items()) prepared += ms.get<double>();
  EXPECT_GT(prepared, 0);
  EXPECT_DOUBLE_EQ(json["prepare_ms"].get<double>(), prepared);
  EXPECT_NE(result.out.find("prepared in "), std::string::npos);
}

TEST(Train, NamesTheGramFormulationWhereverItShowsATime) {
  TemporaryFolder folder;
  const CommandResult result =
      train({"--steps", "30", "--formulation", "gram", "--reproject", "8", "--json", folder / "r.json", "--history",
             folder / "gram.csv", "--precision", "fp64", "--device", "cpu"});
  expect_done(result);
  const std::vector<std::string> shown = lines(result.out);
  EXPECT_TRUE(holds(shown.front(), "^plan cpu: .*, fp64, gram, reprojected every 8 steps\\)$")) << shown.front();
  EXPECT_TRUE(holds(shown.back(), "^30 steps in .* us a step, gram \\(predicted .*\\); loss ")) << shown.back();
  const auto json = nlohmann::json::parse(read_all(folder / "r.json"));
  EXPECT_EQ(json["formulation"], "gram");
  EXPECT_EQ(json["reprojection_steps"], 8);

  const CommandResult primal =
      train({"--steps", "30", "--formulation", "primal", "--history", folder / "primal.csv", "--precision", "fp64"});
  expect_done(primal);
  EXPECT_EQ(primal.out.find("gram"), std::string::npos);
  const std::vector<double> losses = losses_of(read_all(folder / "gram.csv")),
                            expected = losses_of(read_all(folder / "primal.csv"));
  ASSERT_EQ(losses.size(), 30u);
  for (std::size_t i = 0; i < losses.size(); ++i) EXPECT_LE(std::abs(losses[i] / expected[i] - 1), 1e-10) << i;

  const CommandResult plan = run({"plan", "--formulation", "gram", "--device", "cpu", "--layers", "10,5,1"});
  expect_done(plan);
  EXPECT_TRUE(holds(plan.out, "predicted us a step, gram")) << plan.out;
  EXPECT_TRUE(holds(plan.out, "plan cpu: .*gram is slower than primal here.*fp32, gram\\)")) << plan.out;

  expect_refused({"train", "--formulation", "dual"}, {"--formulation", "primal or gram", "'dual'"});
  expect_refused({"train", "--formulation", "gram", "--reproject", "-1"}, {"--reproject", "'-1'"});
  expect_refused({"train", "--reproject", "5"}, {"--reproject 5", "--formulation gram"});
}

TEST(Train, HasTheLossesOfTheLibrary) {
  TemporaryFolder folder;
  expect_done(
      train({"--steps", "20", "--bias", "--seed", "5", "--init", "xavier", "--quiet", "--history", folder / "h"}));

  NetworkSpec network;
  network.widths = {6, 5, 2};
  network.bias = true;
  TrainingSpec training;
  training.optimizer.learning_rate = 1e-3;
  std::vector<float> x(9 * 6), y(9 * 2);
  fill_normal({x.data(), 9, 6}, 5, kTensorX);
  fill_normal({y.data(), 9, 2}, 5, kTensorY);
  Trainer trainer(network, training);
  trainer.initialize(5, Init::xavier);
  trainer.set_data({x.data(), 9, 6}, {y.data(), 9, 2});
  EXPECT_EQ(bits(losses_of(read_all(folder / "h"))), bits(trainer.train(20).losses));
}

/// The losses of kSmall's network, of the generated targets or the given ones.
std::vector<double> losses_by_the_library(TrainingSpec training, std::int64_t steps = 20,
                                          Activation output_activation = Activation::identity,
                                          std::vector<float> y = {}, const std::vector<float>& weights = {}) {
  NetworkSpec network;
  network.widths = {6, 5, 2};
  network.output_activation = output_activation;
  training.optimizer.learning_rate = 1e-3;
  std::vector<float> x(9 * 6);
  fill_normal({x.data(), 9, 6}, 0, kTensorX);
  if (y.empty()) {
    y.resize(9 * 2);
    fill_normal({y.data(), 9, 2}, 0, kTensorY);
  }
  Trainer trainer(network, training);
  trainer.initialize(0, Init::normal);
  const ConstMatrix targets(y.data(), 9, static_cast<std::int64_t>(y.size() / 9));
  if (weights.empty())
    trainer.set_data({x.data(), 9, 6}, targets);
  else
    trainer.set_data({x.data(), 9, 6}, targets, {weights.data(), 9, 1});
  return trainer.train(steps).losses;
}

Arguments split(const std::string& options) {
  std::istringstream text(options);
  return {std::istream_iterator<std::string>(text), {}};
}

TEST(OptimizerOptions, ArriveAtTheTrainer) {
  using Kind = OptimizerKind;
  struct Case {
    const char* options;
    Optimizer optimizer;
  };
  const auto scheduled = [](const Schedule& schedule) {
    Optimizer optimizer;
    optimizer.schedule = schedule;
    return optimizer;
  };
  const std::vector<Case> cases = {
      {"--optimizer gd", {}},
      {"--optimizer sgd --momentum 0.5", {.kind = Kind::sgd, .momentum = 0.5}},
      {"--optimizer sgd --momentum 0.5 --nesterov", {.kind = Kind::sgd, .momentum = 0.5, .nesterov = true}},
      {"--optimizer sgd --weight-decay 0.3", {.kind = Kind::sgd, .weight_decay = 0.3}},
      {"--optimizer sgd --clip-norm 2", {.kind = Kind::sgd, .clip_norm = 2}},
      {"--optimizer sgd --clip-value 0.5", {.kind = Kind::sgd, .clip_value = 0.5}},
      {"--optimizer adam", {.kind = Kind::adam}},
      {"--optimizer adam --beta1 0.5", {.kind = Kind::adam, .beta1 = 0.5}},
      {"--optimizer adam --beta2 0.9", {.kind = Kind::adam, .beta2 = 0.9}},
      {"--optimizer adam --epsilon 1e-1", {.kind = Kind::adam, .epsilon = 0.1}},
      {"--optimizer adam --weight-decay 1", {.kind = Kind::adam, .weight_decay = 1}},
      {"--optimizer adamw", {.kind = Kind::adamw}},
      {"--optimizer adamw --weight-decay 1", {.kind = Kind::adamw, .weight_decay = 1}},
      {"--optimizer rmsprop", {.kind = Kind::rmsprop}},
      {"--optimizer rmsprop --momentum 0.5", {.kind = Kind::rmsprop, .momentum = 0.5}},
      {"--optimizer rmsprop --beta2 0.9", {.kind = Kind::rmsprop, .beta2 = 0.9}},
      {"--schedule step:5:0.5", scheduled({.kind = ScheduleKind::step, .period = 5, .factor = 0.5})},
      {"--schedule exponential:0.9", scheduled({.kind = ScheduleKind::exponential, .factor = 0.9})},
      {"--schedule cosine", scheduled({.kind = ScheduleKind::cosine, .period = 20})},
      {"--schedule cosine:5e-4", scheduled({.kind = ScheduleKind::cosine, .period = 20, .end_rate = 5e-4})},
      {"--warmup 7", scheduled({.warmup_steps = 7})},
  };
  TemporaryFolder folder;
  std::set<std::vector<std::uint64_t>> seen;
  for (const auto& [options, optimizer] : cases) {
    SCOPED_TRACE(options);
    expect_done(train(Arguments{"--steps", "20", "--quiet", "--history", folder / "h"} + split(options)));
    const std::vector<std::uint64_t> losses = bits(losses_of(read_all(folder / "h")));
    EXPECT_EQ(losses, bits(losses_by_the_library({.optimizer = optimizer})));
    EXPECT_TRUE(seen.insert(losses).second) << "changes nothing";
  }
}

TEST(OptimizerOptions, AreRefusedWithTheirValueAndARemedy) {
  const auto refused = [](const Arguments& options, const std::vector<std::string>& expected) {
    expect_refused(Arguments{"train"} + options, expected);
  };
  refused({"--optimizer", "lion"}, {"--optimizer must be gd, sgd, adam, adamw or rmsprop, not 'lion'"});
  refused({"--momentum", "0.5"}, {"--momentum '0.5'", "--optimizer sgd or rmsprop, not to gd", "drop --momentum"});
  for (const std::string optimizer : {"adam", "adamw"})
    refused({"--optimizer", optimizer, "--momentum", "0.5"}, {"--momentum '0.5'", "not to " + optimizer});
  refused({"--optimizer", "rmsprop", "--nesterov"}, {"--nesterov belongs to --optimizer sgd, not to rmsprop"});
  refused({"--optimizer", "sgd", "--nesterov"}, {"--nesterov needs a momentum above 0", "add --momentum"});
  refused({"--weight-decay", "0.1"}, {"--weight-decay '0.1'", "sgd, adam, adamw or rmsprop, not to gd"});
  refused({"--optimizer", "rmsprop", "--beta1", "0.1"}, {"--beta1 '0.1'", "adam or adamw, not to rmsprop"});
  refused({"--optimizer", "sgd", "--beta2", "0.1"}, {"--beta2 '0.1'", "adam, adamw or rmsprop, not to sgd"});
  refused({"--optimizer", "sgd", "--epsilon", "1e-3"}, {"--epsilon '1e-3'", "adam, adamw or rmsprop, not to sgd"});
  for (const std::string clip : {"--clip-norm", "--clip-value"}) {
    refused({clip, "1"}, {clip + " '1'", "sgd, adam, adamw or rmsprop, not to gd", "drop " + clip});
    for (const std::string value : {"-1", "nan", "x"})
      refused({"--optimizer", "sgd", clip, value}, {clip, "'" + value + "'", "finite"});
  }
  refused({"--optimizer", "sgd", "--clip-norm", "1", "--clip-value", "2"}, {"--clip-norm 1", "--clip-value 2", "drop"});
  for (const std::string option : {"--momentum", "--beta2"})
    for (const std::string value : {"1", "-0.1", "inf", "x"})
      refused({"--optimizer", "rmsprop", option, value}, {option, "at least 0 and less than 1", "'" + value + "'"});
  refused({"--optimizer", "adam", "--beta1", "1"}, {"--beta1", "at least 0 and less than 1", "'1'"});
  refused({"--optimizer", "adam", "--epsilon", "0"}, {"--epsilon", "above 0", "'0'"});
  refused({"--optimizer", "adam", "--weight-decay", "-1"}, {"--weight-decay", "at least 0", "'-1'"});
  for (const std::string schedule : {"linear", "", "constant:1", "step", "step:5", "step:0:0.5", "step:5:0", "step:5:x",
                                     "step:5:0.5:1", "step:1.5:0.5", "exponential", "exponential:", "exponential:-1",
                                     "exponential:inf", "cosine:", "cosine:-1", "cosine:1:2"})
    refused({"--schedule", schedule},
            {"--schedule must be constant, step:EVERY:FACTOR, exponential:FACTOR or cosine[:END]",
             "not '" + schedule + "'"});
  for (const std::string value : {"-1", "1.5", "x"}) refused({"--warmup", value}, {"--warmup", "whole number", value});
  for (const std::string kind : {"adam", "adamw", "rmsprop"})
    refused({"--optimizer", kind, "--formulation", "gram"},
            {"--formulation gram", "--optimizer " + kind, "only by gd and sgd"});
  for (const std::string clip : {"--clip-norm", "--clip-value"})
    refused({"--optimizer", "sgd", clip, "1", "--formulation", "gram"},
            {"--formulation gram", "clip gradients", clip + " 1", "drop one"});
  expect_refused({"plan", "--optimizer", "lion"}, {"--optimizer", "'lion'"});
  expect_refused({"predict", "--optimizer", "adam"}, {"unknown option", "'--optimizer'"});
}

TEST(OptimizerOptions, AreInEveryReport) {
  TemporaryFolder folder;
  const Arguments options = {"--optimizer", "adamw", "--beta1", "0.8", "--schedule",  "cosine:1e-4",
                             "--warmup",    "5",     "--steps", "20",  "--clip-norm", "3"};
  const std::string said = "fp32, adamw, cosine schedule, 5 steps of warm-up, gradients clipped to norm 3";
  const CommandResult result = train(options + Arguments{"--json", folder / "r.json"});
  expect_done(result);
  EXPECT_TRUE(holds(lines(result.out).front(), "^plan cpu: .*, " + said + "\\)$")) << result.out;
  const CommandResult plan = run(Arguments{"plan"} + kSmall + options);
  expect_done(plan);
  EXPECT_TRUE(holds(lines(plan.out).back(), "^plan cpu: .*, " + said + "\\)$")) << plan.out;
  const auto json = nlohmann::ordered_json::parse(read_all(folder / "r.json"));
  EXPECT_EQ(json["optimizer"].dump(),
            R"({"name":"adamw","learning_rate":0.001,"weight_decay":0.01,"beta1":0.8,"beta2":0.999,"epsilon":1e-08,)"
            R"("clip_norm":3.0})");
  EXPECT_EQ(json["schedule"].dump(), R"({"name":"cosine","period":20,"end_rate":0.0001,"warmup_steps":5})");

  const CommandResult nesterov =
      train({"--optimizer", "sgd", "--momentum", "0.9", "--nesterov", "--json", folder / "r.json"});
  expect_done(nesterov);
  EXPECT_TRUE(holds(nesterov.out, "fp32, sgd with Nesterov's momentum 0.9\\)$")) << nesterov.out;
  const auto of_sgd = nlohmann::ordered_json::parse(read_all(folder / "r.json"));
  EXPECT_EQ(of_sgd["optimizer"].dump(),
            R"({"name":"sgd","learning_rate":0.001,"momentum":0.9,"nesterov":true,"weight_decay":0.0})");
  EXPECT_EQ(of_sgd["schedule"].dump(), R"({"name":"constant"})");
  EXPECT_TRUE(holds(train({"--schedule", "step:9:0.5"}).out, "fp32, gd, step schedule\\)$"));
  EXPECT_TRUE(
      holds(train({"--optimizer", "rmsprop", "--clip-value", "2"}).out, "fp32, rmsprop, gradients clipped to 2\\)$"));
}

TEST(LossAndBatchOptions, ArriveAtTheTrainer) {
  struct Case {
    const char* options;
    TrainingSpec training;
    std::int64_t steps = 20;
    Activation output_activation = Activation::identity;
  };
  const TrainingSpec cosine{.optimizer = {.schedule = {.kind = ScheduleKind::cosine, .period = 7}}, .batch_size = 4};
  const std::vector<Case> cases = {
      {"--steps 20 --loss squared", {}},
      {"--steps 20 --loss absolute", {.loss = Loss::absolute_error}},
      {"--steps 20 --loss huber", {.loss = Loss::huber}},
      {"--steps 20 --loss huber:0.5", {.loss = Loss::huber, .huber_delta = 0.5}},
      {"--steps 20 --reduction mean", {.reduction = Reduction::mean}},
      {"--steps 20 --batch-size 4", {.batch_size = 4}},
      {"--steps 20 --batch-size 5 --shuffle", {.batch_size = 5}},
      {"--steps 20 --batch-size 4 --no-shuffle", {.batch_size = 4, .shuffle = false}},
      {"--steps 20 --output-activation tanh", {}, 20, Activation::tanh},
      {"--epochs 5", {}, 5},
      {"--epochs 3 --batch-size 4", {.batch_size = 4}, 7},
      {"--epochs 2 --batch-size 9", {}, 2},
      {"--epochs 3 --batch-size 4 --schedule cosine", cosine, 7},
  };
  TemporaryFolder folder;
  std::set<std::vector<std::uint64_t>> seen;
  for (const auto& [options, training, steps, output_activation] : cases) {
    SCOPED_TRACE(options);
    expect_done(train(Arguments{"--quiet", "--history", folder / "h"} + split(options)));
    const std::vector<std::uint64_t> losses = bits(losses_of(read_all(folder / "h")));
    EXPECT_EQ(losses, bits(losses_by_the_library(training, steps, output_activation)));
    EXPECT_TRUE(seen.insert(losses).second) << "changes nothing";
  }
}

/// Files with the inputs that kSmall generates, and labels in each format that has them.
class Labels : public ::testing::Test {
 protected:
  void SetUp() override { expect_done(run({"data", "--layers", "6,5,2", "--samples", "9", "--x", folder_ / "x.npy"})); }

  Arguments files(const std::string& name, const std::string& content) const {
    return {"--x", folder_ / "x.npy", "--y", folder_.write(name, content)};
  }
  CommandResult train(const std::string& options, const Arguments& more) const {
    return run(Arguments{"train", "--layers", "6,5,2", "--lr", "1e-3"} + split(options) + more);
  }
  std::vector<std::uint64_t> losses(const std::string& options, const Arguments& data) const {
    expect_done(train(options, data + Arguments{"--quiet", "--history", folder_ / "h"}));
    return bits(losses_of(read_all(folder_ / "h")));
  }

  TemporaryFolder folder_;
  const std::string idx_ = std::string("\0\0\x8\x1\0\0\0\x9", 8) + std::string("\0\1\1\0\0\1\0\1\1", 9);
  const std::string csv_ = "label\n0\n1\n1\n0\n0\n1\n0\n1\n1\n";
  const std::vector<float> numbers_ = {0, 1, 1, 0, 0, 1, 0, 1, 1};
  const std::vector<float> rows_ = {1, 0, 0, 1, 0.25f, 0.75f, 1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0.5f, 0.5f};
};

TEST_F(Labels, AreTargetsOfCrossEntropyInEveryFormat) {
  const std::vector<std::uint64_t> expected =
      bits(losses_by_the_library({.loss = Loss::cross_entropy}, 20, Activation::identity, numbers_));
  const std::vector<std::int64_t> integers(numbers_.begin(), numbers_.end());
  const std::string options = "--steps 20 --loss cross-entropy";
  EXPECT_EQ(losses(options, files("y.idx", idx_)), expected);
  EXPECT_EQ(losses(options, files("y.csv", csv_)), expected);
  EXPECT_EQ(losses(options, files("float.npy", npy(9, 1, numbers_))), expected);
  EXPECT_EQ(losses(options, files("int.npy", npy("<i8", 9, 1, integers))), expected);
  EXPECT_EQ(losses(options, files("rows.npy", npy(9, 2, rows_))),
            bits(losses_by_the_library({.loss = Loss::cross_entropy}, 20, Activation::identity, rows_)));
  EXPECT_EQ(losses("--steps 20 --loss cross-entropy --reduction mean --batch-size 4", files("y.idx", idx_)),
            bits(losses_by_the_library({.loss = Loss::cross_entropy, .reduction = Reduction::mean, .batch_size = 4}, 20,
                                       Activation::identity, numbers_)));
  EXPECT_EQ(losses("--steps 20 --loss bce", files("rows.npy", npy(9, 2, rows_))),
            bits(losses_by_the_library({.loss = Loss::binary_cross_entropy}, 20, Activation::identity, rows_)));
  EXPECT_EQ(run(Arguments{"plan", "--layers", "6,5,2", "--loss", "cross-entropy"} + files("y.csv", csv_)).exit_code, 0);
}

TEST_F(Labels, AreComparedWithProbabilities) {
  const auto shown = [&](const std::string& loss, const Arguments& data) {
    const CommandResult result = train("--steps 0 --loss " + loss, data);
    expect_done(result);
    const std::vector<std::string> text = lines(result.out);
    EXPECT_EQ(text.at(2), "probability minus target, first 5 rows, before training:");
    std::vector<std::array<double, 2>> rows(5);
    for (std::size_t row = 0; row < rows.size(); ++row)
      std::istringstream(text.at(3 + row)) >> rows[row][0] >> rows[row][1];
    return rows;
  };
  const auto of_rows = shown("cross-entropy", files("y.idx", idx_));
  const auto of_bits = shown("bce", files("rows.npy", npy(9, 2, rows_)));
  for (std::size_t row = 0; row < 5; ++row) {
    EXPECT_NEAR(of_rows[row][0] + of_rows[row][1], 0, 1e-5);
    const auto right = static_cast<std::size_t>(numbers_[row]);
    EXPECT_TRUE(of_rows[row][right] < 0 && of_rows[row][right] >= -1) << of_rows[row][right];
    for (std::size_t column = 0; column < 2; ++column) {
      const double difference = of_bits[row][column], target = static_cast<double>(rows_[2 * row + column]);
      EXPECT_TRUE(difference >= -target && difference <= 1 - target && difference != 0) << difference;
    }
  }
}

TEST_F(Labels, MayHaveWeights) {
  const std::vector<float> weights = {1, 0, 2.5f, 1, 1, 0.5f, 3, 0, 1};
  const std::string npy_file = folder_.write("w.npy", npy(9, 1, weights));
  const std::string csv_file = folder_.write("w.csv", "weight\n1\n0\n2.5\n1\n1\n0.5\n3\n0\n1\n");
  for (const std::string& file : {npy_file, csv_file}) {
    const Arguments data = files("y.idx", idx_) + Arguments{"--sample-weights", file};
    EXPECT_EQ(losses("--steps 20 --loss cross-entropy --reduction mean --batch-size 4", data),
              bits(losses_by_the_library({.loss = Loss::cross_entropy, .reduction = Reduction::mean, .batch_size = 4},
                                         20, Activation::identity, numbers_, weights)));
    EXPECT_EQ(
        losses("--steps 20 --loss bce", files("rows.npy", npy(9, 2, rows_)) + Arguments{"--sample-weights", file}),
        bits(losses_by_the_library({.loss = Loss::binary_cross_entropy}, 20, Activation::identity, rows_, weights)));
  }
  // What is read, what is minimized, and for programs.
  const Arguments data = files("y.csv", csv_) + Arguments{"--sample-weights", csv_file};
  const CommandResult result = train("--steps 2 --loss cross-entropy", data + Arguments{"--json", folder_ / "r.json"});
  expect_done(result);
  EXPECT_EQ(lines(result.out).front(), "read 9 samples from " + folder_ / "x.npy" + " and " + folder_ / "y.csv" +
                                           " (line 1 is its header), weights of the samples from " + csv_file +
                                           " (line 1 is its header)");
  EXPECT_TRUE(holds(lines(result.out).at(1), "^plan cpu: .*, fp32, sum of weighted cross-entropies\\)$")) << result.out;
  EXPECT_EQ(nlohmann::json::parse(read_all(folder_ / "r.json"))["sample_weights"], true);
  const CommandResult plan = run(Arguments{"plan", "--layers", "6,5,2", "--reduction", "mean"} +
                                 files("rows.npy", npy(9, 2, rows_)) + Arguments{"--sample-weights", npy_file});
  expect_done(plan);
  EXPECT_TRUE(holds(lines(plan.out).back(), ", mean of weighted squared errors\\)$")) << plan.out;
  // Both in one file.
  const std::string both = folder_.write("both.csv", "1,2,3,4,5,6,0,1\n2,3,4,5,6,7,1,0\n");
  const Arguments of_both = {"--data", both, "--targets", "2", "--sample-weights", folder_.write("two.csv", "1\n2\n")};
  const CommandResult by_data = train("--steps 1", of_both);
  expect_done(by_data);
  EXPECT_EQ(lines(by_data.out).front(),
            "read 2 samples from " + both + ", weights of the samples from " + folder_ / "two.csv");

  // Refused by train and plan alike.
  const std::string negative = folder_.write("negative.csv", "1\n0\n2\n-0.25\n1\n1\n3\n0\n1\n");
  const std::string wide = folder_.write("wide.npy", counting_npy<float>(9, 2));
  const std::string few = folder_.write("few.npy", counting_npy<float>(8, 1));
  for (const std::string command : {"train", "plan"}) {
    const auto refused = [&](const std::string& file, const std::vector<std::string>& words) {
      expect_refused(Arguments{command, "--layers", "6,5,2"} + files("rows.npy", npy(9, 2, rows_)) +
                         Arguments{"--sample-weights", file},
                     words);
    };
    refused(negative,
            {negative + ": row 3 is -0.25 (counted from 0), and the weights of samples must not be negative"});
    refused(wide, {wide + " has 2 columns, but samples have one weight each"});
    refused(few, {few + " has 8 rows, ", "x.npy has 9 rows; both need one row a sample"});
    refused(folder_ / "absent.npy", {"absent.npy"});
    expect_refused({command, "--sample-weights", npy_file},
                   {"--sample-weights " + npy_file + " is for samples from files; add --x and --y or --data"});
    expect_refused({command, "--sample-weights", npy_file, "--x", npy_file, "--y", csv_file, "--history", npy_file},
                   {"--history", "name the same file"});
  }
}

TEST_F(Labels, AreRefusedWithTheRowAndTheValue) {
  const std::string bad = folder_.write("bad.csv", "0\n1\n1\n2\n0\n1\n0\n1\n1\n");
  const std::string half = folder_.write("half.csv", "0\n1\n1\n0.5\n0\n1\n0\n1\n1\n");
  const Arguments small = {"--layers", "6,5,2", "--loss", "cross-entropy", "--x", folder_ / "x.npy", "--y"};
  for (const std::string command : {"train", "plan"}) {
    expect_refused(Arguments{command} + small + Arguments{bad},
                   {bad + ": row 3 is 2, and classes are the whole numbers from 0 to 1", "more outputs"});
    expect_refused(Arguments{command} + small + Arguments{half}, {half + ": row 3 is 0.5, "});
  }
  const std::string wide = folder_.write("wide.npy", counting_npy<float>(9, 3));
  expect_refused(Arguments{"train"} + small + Arguments{wide},
                 {wide + " has 3 columns, but --layers 6,5,2 has 2 outputs", "--layers 6,5,3",
                  "one column with the number of the class"});
  expect_refused(Arguments{"train", "--layers", "6,5,2", "--loss", "bce"} + files("y.idx", idx_),
                 {"y.idx has 1 column, but --layers 6,5,2 has 2 outputs; use --layers 6,5,1\n"});
  for (const std::string size : {"--batch-size", "--epochs"})
    EXPECT_EQ(train("--loss cross-entropy " + size + " 10", files("y.idx", idx_)).exit_code,
              size == "--epochs" ? 0 : 2);
  expect_one_line(train("--loss cross-entropy --batch-size 10", files("y.idx", idx_)), 2,
                  {"--batch-size 10 is more than the 9 samples; use at most as many"});
  expect_one_line(train("--loss cross-entropy --batch-size 9 --shuffle", files("y.idx", idx_)), 2,
                  {"--shuffle is for batches", "--batch-size B of fewer"});
}

TEST(LossAndBatchOptions, AreRefusedWithTheirValueAndARemedy) {
  const auto refused = [](const std::string& options, const std::vector<std::string>& expected) {
    for (const std::string command : {"train", "plan"}) expect_refused(Arguments{command} + split(options), expected);
  };
  for (const std::string loss :
       {"mse", "huber:", "huber:0", "huber:-1", "huber:inf", "huber:nan", "huber:1:2", "bce:1", "cross_entropy"})
    refused("--loss " + loss, {"--loss must be squared, absolute, huber[:DELTA] with DELTA above 0, bce or "
                               "cross-entropy, not '" +
                               loss + "'"});
  refused("--reduction max", {"--reduction must be sum or mean, not 'max'"});
  refused("--loss cross-entropy",
          {"--loss cross-entropy needs at least 2 outputs", "--layers 1000,100,1 has 1", "--loss bce"});
  for (const std::string loss : {"cross-entropy", "bce"})
    expect_refused({"train", "--layers", "6,5,2", "--loss", loss}, {"--loss " + loss, "standard normal", "--y"});
  for (const std::string epochs : {"0", "-1", "1.5", "x"})
    refused("--epochs " + epochs, {"--epochs must be a whole number from 1 to ", "'" + epochs + "'"});
  refused("--epochs 3 --steps 5", {"--steps 5 and --epochs 3", "drop one"});
  refused("--epochs 9223372036854775807", {"--epochs 9223372036854775807 take more than", "ask for less"});
  for (const std::string size : {"-1", "1.5", "x"})
    refused("--batch-size " + size, {"--batch-size must be a whole number from 0 to ", "'" + size + "'"});
  refused("--batch-size 129", {"--batch-size 129 is more than the 128 samples; use at most as many, or 0 for all"});
  refused("--samples 1 --batch-size 2", {"the 1 sample;"});
  refused("--shuffle", {"--shuffle is for batches", "add --batch-size"});
  refused("--shuffle --batch-size 128", {"--shuffle is for batches", "add --batch-size"});
  refused("--shuffle --no-shuffle --batch-size 4", {"--shuffle and --no-shuffle", "drop one"});
  refused("--formulation gram --batch-size 4", {"--formulation gram", "--batch-size 4", "drop one"});
  refused("--output-activation softmax", {"--output-activation must be one of relu, identity, ", "'softmax'"});
  expect_refused({"predict", "--loss", "bce"}, {"unknown option", "'--loss'"});
}

TEST(LossAndBatchOptions, AreInEveryReport) {
  TemporaryFolder folder;
  const Arguments options = split(
      "--loss huber:0.5 --reduction mean --output-activation gelu-tanh --batch-size 4 --epochs 3 --optimizer adam");
  const std::string said =
      "fp32, adam, mean of Huber losses with delta 0.5, output activation gelu-tanh, shuffled batches of 4, 3 epochs";
  const CommandResult result = train(options + Arguments{"--json", folder / "r.json"});
  expect_done(result);
  EXPECT_TRUE(holds(lines(result.out).front(), "^plan cpu: .*, " + said + "\\)$")) << result.out;
  EXPECT_EQ(lines(result.out).back().rfind("7 steps in ", 0), 0u) << result.out;
  const CommandResult plan = run(Arguments{"plan"} + kSmall + options);
  expect_done(plan);
  EXPECT_EQ(plan.out.rfind("--layers 6,5,2, output activation gelu-tanh, 9 samples\n", 0), 0u) << plan.out;
  EXPECT_TRUE(holds(lines(plan.out).back(), "^plan cpu: .*, " + said + "\\)$")) << plan.out;
  auto json = nlohmann::ordered_json::parse(read_all(folder / "r.json"));
  EXPECT_EQ(json["loss"], "huber");
  EXPECT_EQ(json["huber_delta"], 0.5);
  EXPECT_EQ(json["reduction"], "mean");
  EXPECT_EQ(json["output_activation"], "gelu-tanh");
  EXPECT_EQ(json["batch_size"], 4);
  EXPECT_EQ(json["shuffle"], true);
  EXPECT_EQ(json["epochs"], 3);
  EXPECT_EQ(json["steps"], 7);

  const CommandResult other =
      train(split("--loss absolute --batch-size 4 --no-shuffle --epochs 1 --json " + (folder / "r.json")));
  expect_done(other);
  EXPECT_TRUE(holds(other.out, "fp32, sum of absolute errors, unshuffled batches of 4, 1 epoch\\)$")) << other.out;
  json = nlohmann::ordered_json::parse(read_all(folder / "r.json"));
  EXPECT_EQ(json["loss"], "absolute");
  EXPECT_FALSE(json.contains("huber_delta"));
  EXPECT_EQ(json["shuffle"], false);

  // What is as it always was is not named.
  const CommandResult plain =
      train(split("--loss squared --reduction sum --no-shuffle --batch-size 9 --json " + (folder / "r.json")));
  expect_done(plain);
  EXPECT_TRUE(holds(plain.out, "1 thread, fp32\\)$")) << plain.out;
  json = nlohmann::ordered_json::parse(read_all(folder / "r.json"));
  for (const char* key :
       {"loss", "reduction", "sample_weights", "output_activation", "batch_size", "shuffle", "epochs"})
    EXPECT_FALSE(json.contains(key)) << key;
}

/// Digits that are read back as the same number.
std::string shortest(float value) {
  std::ostringstream text;
  text.precision(9);
  text << value;
  return text.str();
}

/// Data of 20 samples whose fifth part is for validation, drawn as the command says it does.
class Validated : public ::testing::Test {
 protected:
  static constexpr std::int64_t kSamples = 20, kTaken = 5;

  Validated() {
    fill_normal({x_.data(), kSamples, 6}, 0, kTensorX);
    fill_normal({y_.data(), kSamples, 2}, 0, kTensorY);
    std::set<std::int64_t> taken;
    for (std::int64_t i = 0; i < kTaken; ++i)
      taken.insert(sample_of(0, kSamples, std::numeric_limits<std::int64_t>::max(), i));
    for (std::int64_t row = 0; row < kSamples; ++row) {
      const bool is_taken = taken.contains(row);
      auto& x = is_taken ? validation_x_ : train_x_;
      auto& y = is_taken ? validation_y_ : train_y_;
      x.insert(x.end(), x_.begin() + row * 6, x_.begin() + (row + 1) * 6);
      y.insert(y.end(), y_.begin() + row * 2, y_.begin() + (row + 1) * 2);
    }
  }

  static CommandResult train(const Arguments& more) {
    return run(Arguments{"train", "--layers", "6,5,2", "--lr", "0.01"} + more);
  }
  /// What a trainer with the same data and evaluations does.
  TrainReport by_the_library(const Watch& watch, std::int64_t steps) const {
    TrainingSpec training{.watch = watch};
    training.optimizer.learning_rate = 0.01;
    Trainer trainer({.widths = {6, 5, 2}}, training);
    trainer.set_data({train_x_.data(), kSamples - kTaken, 6}, {train_y_.data(), kSamples - kTaken, 2});
    trainer.set_validation({validation_x_.data(), kTaken, 6}, {validation_y_.data(), kTaken, 2});
    return trainer.train(steps);
  }
  /// Columns of the history; nothing where a row has none.
  std::vector<std::vector<std::string>> history() const {
    std::vector<std::vector<std::string>> rows;
    for (const std::string& line : lines(read_all(folder_ / "h"))) {
      std::vector<std::string> fields(1);
      for (const char c : line) {
        if (c == ',')
          fields.emplace_back();
        else
          fields.back() += c;
      }
      rows.push_back(fields);
    }
    return rows;
  }

  const TemporaryFolder folder_;
  std::vector<float> x_ = std::vector<float>(kSamples * 6), y_ = std::vector<float>(kSamples * 2);
  std::vector<float> train_x_, train_y_, validation_x_, validation_y_;
};

TEST_F(Validated, ByAPartOfTheDataAsByTheLibrary) {
  const CommandResult result =
      train({"--samples", "20", "--validate-fraction", "0.25", "--validate-every", "4", "--steps", "11", "--history",
             folder_ / "h", "--json", folder_ / "j", "--threads", "1"});
  expect_done(result);
  const TrainReport expected = by_the_library({.every = 4}, 11);
  ASSERT_EQ(expected.evaluations.size(), 2u);
  const auto rows = history();
  ASSERT_EQ(rows.size(), 12u);
  EXPECT_EQ(rows[0], (std::vector<std::string>{"step", "loss", "validation_loss"}));
  for (std::size_t step = 0; step < 11; ++step) {
    EXPECT_EQ(std::strtod(rows[step + 1][1].c_str(), nullptr), expected.losses[step]);
    const bool is_evaluated = step == 3 || step == 7 || step == 10;
    EXPECT_EQ(rows[step + 1][2].empty(), !is_evaluated) << step;
  }
  EXPECT_EQ(std::strtod(rows[4][2].c_str(), nullptr), expected.evaluations[0].loss);
  EXPECT_EQ(std::strtod(rows[8][2].c_str(), nullptr), expected.evaluations[1].loss);
  const auto json = nlohmann::json::parse(read_all(folder_ / "j"));
  EXPECT_EQ(json["end"], "all_steps");
  EXPECT_EQ(json["validation"]["rows"], 5);
  ASSERT_EQ(json["validation"]["evaluations"].size(), 3u);
  EXPECT_EQ(json["validation"]["evaluations"][1]["steps"], 8);
  EXPECT_EQ(json["validation"]["evaluations"][1]["loss"].get<double>(), expected.evaluations[1].loss);
  EXPECT_EQ(json["validation"]["kept"], "last");
  EXPECT_NE(result.out.find("validating by 5 samples, drawn from the data\n"), std::string::npos) << result.out;
  EXPECT_TRUE(holds(result.out, "^validation after 4 steps: loss [0-9.e+-]+$")) << result.out;
  EXPECT_TRUE(holds(result.out, "; validation loss [0-9.e+-]+; best [0-9.e+-]+ after (4|8|11) steps; wrote"))
      << result.out;
}

// The mean and the deviation are those of the rows that are trained by.
TEST_F(Validated, ByDataScaledAsThoseTrainedBy) {
  const auto scaled = [&](std::vector<float> rows, std::size_t columns) {
    for (std::size_t column = 0; column < columns; ++column) {
      double mean = 0, variance = 0;
      const double count = static_cast<double>(train_x_.size() / columns);
      for (std::size_t i = column; i < train_x_.size(); i += columns) mean += static_cast<double>(train_x_[i]) / count;
      for (std::size_t i = column; i < train_x_.size(); i += columns)
        variance += std::pow(static_cast<double>(train_x_[i]) - mean, 2) / count;
      for (std::size_t i = column; i < rows.size(); i += columns)
        rows[i] = static_cast<float>((static_cast<double>(rows[i]) - mean) / std::sqrt(variance));
    }
    return rows;
  };
  const auto loss = [&](const Arguments& options) {
    expect_done(train(
        options + Arguments{"--steps", "6", "--validate-every", "6", "--threads", "1", "--history", folder_ / "h"}));
    return std::strtod(history().at(6).at(2).c_str(), nullptr);
  };
  const auto file = [&](const std::string& name, std::int64_t columns, const std::vector<float>& values) {
    return folder_.write(name, npy(static_cast<std::int64_t>(values.size()) / columns, columns, values));
  };
  const std::string y = file("y.npy", 2, train_y_), vy = file("vy.npy", 2, validation_y_);
  const double expected = loss({"--x", file("x.npy", 6, scaled(train_x_, 6)), "--y", y, "--validate-x",
                                file("vx.npy", 6, scaled(validation_x_, 6)), "--validate-y", vy});
  const double by_files = loss({"--standardize", "--x", file("x.npy", 6, train_x_), "--y", y, "--validate-x",
                                file("vx.npy", 6, validation_x_), "--validate-y", vy});
  EXPECT_NEAR(by_files, expected, 1e-5 * expected);
  EXPECT_EQ(loss({"--standardize", "--samples", "20", "--validate-fraction", "0.25"}), by_files);
  EXPECT_GT(std::abs(loss({"--samples", "20", "--validate-fraction", "0.25"}) - expected), 1e-3 * expected);
}

TEST_F(Validated, ByTargetsScaledAsThoseTrainedBy) {
  const auto file = [&](const std::string& name, const std::vector<float>& values) {
    return folder_.write(name, npy(static_cast<std::int64_t>(values.size()) / 2, 2, values));
  };
  const InputScaling scaling = standardized(ConstMatrix(train_y_.data(), kSamples - kTaken, 2), 1, "y");
  const auto scaled = [&](std::vector<float> rows) {
    for (std::size_t i = 0; i < rows.size(); ++i)
      rows[i] = static_cast<float>((static_cast<double>(rows[i]) - scaling.mean[i % 2]) / scaling.deviation[i % 2]);
    return rows;
  };
  const std::string x = folder_.write("x.npy", npy(15, 6, train_x_)),
                    vx = folder_.write("vx.npy", npy(5, 6, validation_x_));
  const auto loss = [&](const Arguments& options) {
    expect_done(train(
        options + Arguments{"--steps", "6", "--validate-every", "6", "--threads", "1", "--history", folder_ / "h"}));
    return history().at(6).at(2);
  };
  const Arguments inputs = {"--x", x, "--validate-x", vx};
  const std::string expected = loss(inputs + Arguments{"--y", file("y.npy", scaled(train_y_)), "--validate-y",
                                                       file("vy.npy", scaled(validation_y_))});
  EXPECT_EQ(loss(inputs + Arguments{"--standardize-targets", "--y", file("y.npy", train_y_), "--validate-y",
                                    file("vy.npy", validation_y_)}),
            expected);
  const Arguments generated = {"--samples", "20", "--validate-fraction", "0.25"};
  EXPECT_EQ(loss(generated + Arguments{"--standardize-targets"}), expected);
  EXPECT_NE(loss(generated), expected);
}

// A message about a row says of which it is counted.
TEST_F(Validated, ByRowsOfFilesThatKeepTheirNames) {
  const std::string x = folder_.write("x.npy", npy(20, 6, x_)), y = folder_.write("y.npy", npy(20, 2, y_));
  const Arguments files = {"--x", x, "--y", y, "--validate-fraction", "0.25", "--steps", "1"};
  const CommandResult result = train(files);
  expect_done(result);
  EXPECT_EQ(result.out.rfind(
                "read 20 samples from " + x + " and " + y + "\nvalidating by 5 samples, drawn from the data\n", 0),
            0u)
      << result.out;
  expect_refused(Arguments{"train", "--layers", "6,5,2", "--scale", "1e40"} + files,
                 {x + ", rows not for validation: scaled, row "});
  std::vector<float> bad = x_;
  bad[19 * 6 + 2] = std::numeric_limits<float>::infinity();
  folder_.write("x.npy", npy(20, 6, bad));
  expect_refused(Arguments{"train", "--layers", "6,5,2"} + files, {x + ": row 19, column 2"});
}

TEST_F(Validated, ByFilesInEveryForm) {
  const Arguments data = {"--x", folder_.write("x.npy", npy(15, 6, train_x_)), "--y",
                          folder_.write("y.npy", npy(15, 2, train_y_))};
  const std::string x = folder_.write("vx.npy", npy(5, 6, validation_x_));
  const std::string y = folder_.write("vy.npy", npy(5, 2, validation_y_));
  std::string csv = "a,b,c,d,e,f,p,q\n";
  for (std::size_t row = 0; row < 5; ++row) {
    for (std::size_t j = 0; j < 6; ++j) csv += shortest(validation_x_[row * 6 + j]) + ",";
    csv += shortest(validation_y_[row * 2]) + "," + shortest(validation_y_[row * 2 + 1]) + "\n";
  }
  const TrainReport expected = by_the_library({.every = 5}, 10);
  for (const Arguments& validation : {Arguments{"--validate-x", x, "--validate-y", y},
                                      Arguments{"--validate", folder_.write("v.csv", csv), "--targets", "p,q"}}) {
    const CommandResult result =
        train(data + validation +
              Arguments{"--validate-every", "5", "--steps", "10", "--history", folder_ / "h", "--threads", "1"});
    expect_done(result);
    EXPECT_NE(result.out.find("validating by 5 samples of " + validation[1]), std::string::npos) << result.out;
    const auto rows = history();
    ASSERT_EQ(rows.size(), 11u);
    EXPECT_EQ(std::strtod(rows[5][2].c_str(), nullptr), expected.evaluations[0].loss);
    EXPECT_EQ(std::strtod(rows[10][2].c_str(), nullptr), expected.evaluations[1].loss);
  }
}

TEST_F(Validated, KeepsTheBestAndEndsEarly) {
  const Arguments options = {"--samples", "20",  "--validate-fraction", "0.25", "--validate-every", "1",
                             "--steps",   "500", "--threads",           "1",    "--json",           folder_ / "j"};
  const CommandResult result =
      train(options + Arguments{"--patience", "2", "--keep", "best", "--save", folder_ / "w.safetensors"});
  expect_done(result);
  const TrainReport expected = by_the_library({.every = 1, .patience = 2, .keep_best = true}, 500);
  ASSERT_EQ(expected.end, EndOfRun::patience);
  auto json = nlohmann::json::parse(read_all(folder_ / "j"));
  EXPECT_EQ(json["end"], "patience");
  EXPECT_EQ(json["steps"], expected.steps());
  EXPECT_EQ(json["validation"]["kept"], "best");
  const double best = json["validation"]["best"]["loss"];
  EXPECT_EQ(best, expected.evaluations[expected.evaluations.size() - 3].loss);
  EXPECT_NE(result.out.find("; ended early, because 2 evaluations were not better than the best"), std::string::npos);
  EXPECT_TRUE(holds(result.out, "after [0-9]+ steps, kept; wrote ")) << result.out;
  // The saved weights have the best loss.
  expect_done(
      train({"--samples", "20", "--validate-fraction", "0.25", "--steps", "0", "--weights", folder_ / "w.safetensors",
             "--json", folder_ / "j", "--history", folder_ / "h", "--threads", "1"}));
  json = nlohmann::json::parse(read_all(folder_ / "j"));
  EXPECT_EQ(json["validation"]["evaluations"][0]["loss"].get<double>(), best);
  EXPECT_EQ(std::strtod(history().at(1).at(2).c_str(), nullptr), best);

  const CommandResult at_loss = train(options + Arguments{"--target-loss", std::to_string(best * 1.2)});
  expect_done(at_loss);
  EXPECT_EQ(nlohmann::json::parse(read_all(folder_ / "j"))["end"], "target_loss");
  EXPECT_NE(at_loss.out.find("; ended early at the target loss"), std::string::npos) << at_loss.out;
}

TEST_F(Validated, ClassifiersHaveAnAccuracy) {
  std::string csv = "a,b,label\n";
  for (int row = 0; row < 40; ++row)
    csv += std::to_string(row % 7) + "," + std::to_string(row % 5) + "," + std::to_string(row % 7 > 3 ? 1 : 0) + "\n";
  const CommandResult result = run({"train",
                                    "--layers",
                                    "2,8,2",
                                    "--bias",
                                    "--init",
                                    "he",
                                    "--data",
                                    folder_.write("d.csv", csv),
                                    "--targets",
                                    "label",
                                    "--loss",
                                    "cross-entropy",
                                    "--reduction",
                                    "mean",
                                    "--optimizer",
                                    "adam",
                                    "--lr",
                                    "0.02",
                                    "--batch-size",
                                    "8",
                                    "--epochs",
                                    "40",
                                    "--validate-fraction",
                                    "0.2",
                                    "--history",
                                    folder_ / "h",
                                    "--json",
                                    folder_ / "j"});
  expect_done(result);
  EXPECT_TRUE(holds(result.out, "^validation after 4 steps: loss [0-9.e+-]+, accuracy [0-9.]+ %$")) << result.out;
  const auto rows = history();
  EXPECT_EQ(rows[0], (std::vector<std::string>{"step", "loss", "validation_loss", "accuracy"}));
  EXPECT_EQ(rows.back().at(3), "1");
  const auto evaluations = nlohmann::json::parse(read_all(folder_ / "j"))["validation"]["evaluations"];
  EXPECT_EQ(evaluations.size(), 40u);
  EXPECT_EQ(evaluations.back()["accuracy"], 1);
}

TEST_F(Validated, RefusesWhatCannotBe) {
  const auto refused = [](const std::string& options, const std::vector<std::string>& expected) {
    expect_refused(Arguments{"train", "--layers", "6,5,2"} + split(options), expected);
  };
  const std::string x = folder_.write("x.npy", npy(5, 6, validation_x_)),
                    y = folder_.write("y.npy", npy(5, 2, validation_y_));
  refused("--patience 3", {"--patience 3 needs validation data", "--validate-fraction F"});
  refused("--keep best", {"--keep best needs validation data"});
  refused("--keep worst", {"--keep", "last", "best", "worst"});
  refused("--validate-every 5", {"--validate-every 5 needs validation data"});
  for (const std::string fraction : {"0", "1", "-0.1", "nan", "x"})
    refused("--validate-fraction " + fraction, {"--validate-fraction must be a number above 0 and below 1", fraction});
  refused("--samples 1 --validate-fraction 0.5", {"leaves no sample to train by"});
  refused("--target-loss -1", {"--target-loss must be a finite number of at least 0", "-1"});
  refused("--patience -1", {"--patience must be a whole number from 0"});
  refused("--validate-x " + x, {"--validate-x " + x + " has no targets; add --validate-y FILE"});
  refused("--validate-y " + y, {"--validate-y " + y + " has no inputs; add --validate-x FILE"});
  refused("--validate-x " + x + " --validate-y " + y + " --validate-fraction 0.5", {"validation data are given twice"});
  refused("--validate-x " + y + " --validate-y " + y, {y + " has 2 columns", "6 inputs"});
  refused("--validate-x " + x + " --validate-y " + x, {x + " has 6 columns", "2 outputs"});
  refused("--validate " + (folder_ / "none.npz"), {"none.npz"});
  std::vector<float> bad = validation_x_;
  bad[7] = std::numeric_limits<float>::infinity();
  const std::string bad_x = folder_.write("bad.npy", npy(5, 6, bad));
  refused("--validate-x " + bad_x + " --validate-y " + y, {bad_x, "row 1, column 1"});
}

TEST(Train, WithoutStepsEvaluates) {
  TemporaryFolder folder;
  const CommandResult result = train(
      {"--steps", "0", "--history", folder / "h.csv", "--json", folder / "r.json", "--save", folder / "w.safetensors"});
  expect_done(result);
  EXPECT_EQ(lines(result.out).at(7).rfind("0: ", 0), 0u);
  const std::vector<double> losses = losses_of(read_all(folder / "h.csv"));
  ASSERT_EQ(losses.size(), 1u);
  const auto json = nlohmann::json::parse(read_all(folder / "r.json"));
  EXPECT_EQ(json["steps"], 0);
  EXPECT_EQ(json["loss_first"].get<double>(), losses[0]);
  EXPECT_EQ(json["loss_last"].get<double>(), losses[0]);
  EXPECT_TRUE(json["us_per_step"].is_null());

  expect_done(train({"--steps", "1", "--quiet", "--history", folder / "first.csv"}));
  EXPECT_EQ(bits(losses_of(read_all(folder / "first.csv"))), bits(losses));
}

TEST(Train, GoesOnFromSavedWeightsBitForBit) {
  for (const std::string precision : {"fp32", "fp64"}) {
    TemporaryFolder folder;
    const Arguments common = {"--precision", precision, "--bias", "--quiet"};
    expect_done(train(common + Arguments{"--steps", "20", "--history", folder / "all", "--save", folder / "end"}));
    expect_done(train(common + Arguments{"--steps", "10", "--history", folder / "a", "--save", folder / "w"}));
    // From and to the same file, as people go on with a run.
    expect_done(train(common + Arguments{"--steps", "10", "--history", folder / "b", "--save", folder / "w",
                                         "--weights", folder / "w"}));
    std::vector<double> parts = losses_of(read_all(folder / "a"));
    const std::vector<double> second = losses_of(read_all(folder / "b"));
    parts.insert(parts.end(), second.begin(), second.end());
    EXPECT_EQ(bits(parts), bits(losses_of(read_all(folder / "all"))));
    EXPECT_EQ(read_all(folder / "w"), read_all(folder / "end"));
  }
}

TEST(Train, RefusesWeightsOfAnotherNetwork) {
  TemporaryFolder folder;
  const std::string weights = folder / "w.safetensors";
  expect_done(train({"--steps", "0", "--quiet", "--save", weights}));
  expect_refused({"train", "--layers", "6,4,2", "--weights", weights}, {weights, "0.weight"});
  expect_refused({"train", "--layers", "6,5,2", "--bias", "--weights", weights}, {weights, "bias"});
  expect_refused({"train", "--layers", "6,5,2", "--weights", folder / "none"}, {folder / "none"});
}

TEST(Train, DivergenceIsAFailureThatKeepsTheRecords) {
  TemporaryFolder folder;
  const std::string kept = folder.write("kept.safetensors", "as it was");
  for (const std::string& save : {kept, folder / "new.safetensors"}) {
    const Arguments shape = {"train", "--layers", "6,5,2", "--samples", "9"};
    const CommandResult diverged = run(shape + Arguments{"--steps", "60", "--history", folder / "h.csv", "--json",
                                                         folder / "r.json", "--save", save, "--lr", "1"});
    const std::vector<double> losses = losses_of(read_all(folder / "h.csv"));
    ASSERT_EQ(losses.size(), 60u);
    const auto bad = std::find_if(losses.begin(), losses.end(), [](double loss) { return !std::isfinite(loss); });
    ASSERT_NE(bad, losses.end());
    const auto json = nlohmann::json::parse(read_all(folder / "r.json"));
    EXPECT_EQ(json["first_non_finite_step"], bad - losses.begin());
    EXPECT_TRUE(json["loss_last"].is_null());
    EXPECT_FALSE(json["loss_first"].is_null());
    expect_one_line(diverged, 1, {"step " + std::to_string(bad - losses.begin()), "lower --lr, now 1;", save});
  }
  EXPECT_EQ(read_all(kept), "as it was");
  EXPECT_EQ(folder.count(), 3);
}

TEST(Train, StopsSoonAfterItDivergedUnlessToldToGoOn) {
  TemporaryFolder folder;
  const Arguments diverging = {"train",    "--layers", "6,5,2",     "--samples",      "9",      "--lr",           "1",
                               "--device", "cpu",      "--history", folder / "h.csv", "--json", folder / "r.json"};
  const CommandResult stopped = run(diverging + Arguments{"--steps", "20000000"});
  const std::size_t steps = losses_of(read_all(folder / "h.csv")).size();
  EXPECT_LE(steps, 4096u);
  expect_one_line(stopped, 1, {"stopped after " + std::to_string(steps) + " of 20000000 steps", "--keep-going"});
  EXPECT_EQ(nlohmann::json::parse(read_all(folder / "r.json"))["steps"], steps);

  const CommandResult gone_on = run(diverging + Arguments{"--steps", "9000", "--keep-going"});
  EXPECT_EQ(gone_on.exit_code, 1);
  EXPECT_EQ(gone_on.err.find("stopped"), std::string::npos) << gone_on.err;
  EXPECT_EQ(losses_of(read_all(folder / "h.csv")).size(), 9000u);
}

TEST(Train, SaysWhichHiddenLayerHasNoActiveUnit) {
  TemporaryFolder folder;
  const std::string x = folder.write("x.npy", npy<float>(3, 1, {1, 2, 3})), json = folder / "r.json";
  const std::string y = folder.write("y.npy", npy<float>(3, 1, {1, 1, 1}));
  const auto start = [&](float first, float second) {  // two hidden layers of one unit
    NetworkSpec network;
    network.widths = {1, 1, 1, 1};
    Trainer trainer(network);
    const float weights[] = {first, second, 1};
    for (int layer = 0; layer < 3; ++layer) trainer.write_weight(layer, ConstMatrix(weights + layer, 1, 1));
    trainer.save_weights(folder / "w.safetensors");
  };
  const auto result = [&](float first, float second, const Arguments& more = {}) {
    start(first, second);
    const CommandResult run_result =
        run(Arguments{"train", "--layers", "1,1,1,1", "--x", x, "--y", y, "--weights", folder / "w.safetensors",
                      "--steps", "20", "--lr", "1e-3", "--json", json} +
            more);
    expect_done(run_result);
    return run_result.out;
  };
  const auto inactive = [&] { return nlohmann::json::parse(read_all(json))["inactive_layers"]; };
  for (const Arguments& more : {Arguments{}, Arguments{"--precision", "fp64"}}) {
    EXPECT_EQ(result(1, 1, more).find("note: "), std::string::npos);
    EXPECT_EQ(inactive(), nlohmann::json::array());
    // The first is dead: the second gets zeros, which is not below 0.
    EXPECT_TRUE(holds(result(-1, 1, more), "^note: no hidden unit of layer 1 is active for any sample, .*--lr"));
    EXPECT_EQ(inactive(), nlohmann::json::array({1}));
    const std::string second = result(1, -1, more);
    EXPECT_TRUE(holds(second, "^note: no hidden unit of layer 2 is active for any sample, ")) << second;
    EXPECT_TRUE(holds(second, "^note: the loss is the same after all 20 steps$")) << second;
    EXPECT_EQ(inactive(), nlohmann::json::array({2}));
    EXPECT_EQ(nlohmann::json::parse(read_all(json))["loss_moved"], false);
  }
}

TEST(Train, SaysThatTheLossDidNotMove) {
  TemporaryFolder folder;
  const Arguments json = {"--json", folder / "r.json"};
  const auto moved = [&] { return nlohmann::json::parse(read_all(folder / "r.json"))["loss_moved"]; };
  const CommandResult still = run(Arguments{"train", "--layers", "6,5,2", "--lr", "1e-37", "--steps", "7"} + json);
  expect_done(still);
  EXPECT_TRUE(holds(still.out, "^note: the loss is the same after all 7 steps; raise --lr$")) << still.out;
  EXPECT_EQ(moved(), false);
  const CommandResult one = train(Arguments{"--steps", "1"} + json);
  EXPECT_EQ(one.out.find("note: "), std::string::npos);
  EXPECT_TRUE(moved().is_null());
}

TEST(Train, BlamesTheDataWhereTheFirstLossIsNotFinite) {
  TemporaryFolder folder;
  const std::string x = folder.write("x.npy", npy<float>(1, 1, {1e30f}));
  const Arguments arguments = {"train", "--layers", "1,1", "--x", x, "--y", x, "--quiet", "--json", folder / "r.json"};
  for (const std::string steps : {"0", "1"}) {
    expect_one_line(run(arguments + Arguments{"--steps", steps}), 1, {"step 0", "data", "--precision fp64"});
    const auto json = nlohmann::json::parse(read_all(folder / "r.json"));
    EXPECT_EQ(json["first_non_finite_step"], 0);
    EXPECT_TRUE(json["loss_first"].is_null());
  }
  // Weights that are finite still are not those of a run to go on from.
  expect_one_line(run(arguments + Arguments{"--lr", "0", "--steps", "1", "--save", folder / "w"}), 1, {folder / "w"});
  EXPECT_EQ(folder.count(), 2);
}

TEST(Train, DoesNotSaveWeightsThatTheLastStepMadeInfinite) {
  TemporaryFolder folder;
  const CommandResult result = run({"train", "--layers", "6,5,2", "--samples", "9", "--steps", "1", "--lr", "3e38",
                                    "--quiet", "--save", folder / "w", "--history", folder / "h"});
  expect_one_line(result, 1, {folder / "w", "0.weight", "--lr"});
  EXPECT_EQ(losses_of(read_all(folder / "h")).size(), 1u);
  EXPECT_EQ(folder.count(), 1);
}

TEST(Train, WritesFilesToStandardOutput) {
  TemporaryFolder folder;
  const Arguments common = {"--steps", "5"};
  expect_done(train(common + Arguments{"--history", folder / "h", "--save", folder / "w", "--quiet"}));

  const CommandResult history = train(common + Arguments{"--history", "-"});
  EXPECT_EQ(history.exit_code, 0);
  EXPECT_EQ(history.out, read_all(folder / "h"));
  EXPECT_EQ(history.err.rfind("plan cpu", 0), 0u);

  const CommandResult json = train(common + Arguments{"--json", "-", "--quiet"});
  expect_done(json);
  EXPECT_EQ(nlohmann::json::parse(json.out)["steps"], 5);

  const CommandResult weights = train(common + Arguments{"--save", "-", "--quiet"});
  expect_done(weights);
  EXPECT_EQ(weights.out, read_all(folder / "w"));
}

TEST(Train, KeepsTheFilesWhenStandardOutputFails) {
  TemporaryFolder folder;
  const Arguments arguments = Arguments{"train"} + kSmall + Arguments{"--steps", "5", "--history", folder / "h"};
  CommandSetup full = command(arguments);
  full.out_file = "/dev/full";
  CommandSetup closed = command(arguments);
  closed.close_out = true;
  for (const CommandSetup& setup : {full, closed}) {
    expect_one_line(run_command(setup), 1, {"standard output"});
    EXPECT_EQ(losses_of(read_all(folder / "h")).size(), 5u);
    EXPECT_EQ(folder.count(), 1);
  }
  closed.arguments.push_back("--quiet");
  expect_done(run_command(closed));
  EXPECT_EQ(losses_of(read_all(folder / "h")).size(), 5u);

  // One output that fails does not cost the others.
  full.arguments = command(arguments + Arguments{"--json", "-", "--quiet"}).arguments;
  expect_one_line(run_command(full), 1, {});
  EXPECT_EQ(losses_of(read_all(folder / "h")).size(), 5u);
}

TEST(Plot, RefusesWhatIsNoPicture) {
  TemporaryFolder folder;
  for (const std::string name : {"p", "p.pdf", "p.SVG", "svg", ".svgz"})
    expect_refused(Arguments{"train", "--plot", folder / name}, {"--plot", folder / name, ".svg or .png"});
  expect_refused({"train", "--plot", "-"}, {"--plot", "'-'", ".svg or .png"});
  expect_refused({"plan", "--plot", "p.pdf"}, {"--plot", "p.pdf"});
  expect_refused({"train", "--plot", "a.svg", "--json", "./a.svg"}, {"--json", "--plot", "a.svg"});
  expect_refused({"train", "--x", "x.svg", "--y", "y", "--plot", "x.svg"}, {"--plot", "--x", "x.svg"});
  EXPECT_EQ(folder.count(), 0);
}

/// A folder with a program gnuplot, or none, that is all of the command's PATH.
class FakeGnuplot {
 public:
  FakeGnuplot() = default;
  explicit FakeGnuplot(const std::string& script) {
    std::filesystem::permissions(folder_.write("gnuplot", "#!/bin/sh\n" + script), std::filesystem::perms::owner_all);
  }
  CommandResult run(const Arguments& arguments) const {
    CommandSetup setup = command(arguments);
    setup.path = folder_.path().string();
    return run_command(setup);
  }

 private:
  TemporaryFolder folder_;
};

TEST(Plot, MissesGnuplotBeforeItReadsOrTrains) {
  TemporaryFolder folder;
  const std::string bad = folder.write("bad.npy", "no array");
  const CommandResult result =
      FakeGnuplot().run({"train", "--x", bad, "--y", bad, "--plot", folder / "p.svg", "--json", folder / "r.json"});
  expect_one_line(result, 1, {"--plot", "gnuplot", "PATH", "install gnuplot-nox"});
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(folder.count(), 1);
}

TEST(Plot, FindsAnOutputItCannotWriteBeforeItReadsOrTrains) {
  TemporaryFolder folder;
  const std::string bad = folder.write("bad.npy", "no array"), plot = folder / "none/p.png";
  expect_one_line(FakeGnuplot("exit 0").run({"train", "--x", bad, "--y", bad, "--plot", plot}), 2, {plot, "folder"});
}

TEST(Plot, ReportsWhatGnuplotSaysAndKeepsTheRest) {
  TemporaryFolder folder;
  const std::string kept = folder.write("kept.svg", "as it was");
  const auto expect_failure = [&](const std::string& script, const std::vector<std::string>& expected) {
    SCOPED_TRACE(script);
    for (const std::string& plot : {kept, folder / "new.png"}) {
      // Many steps: more is written to gnuplot than a pipe holds.
      const CommandResult result = FakeGnuplot(script).run(
          Arguments{"train"} + kSmall +
          Arguments{"--steps", "5000", "--quiet", "--plot", plot, "--history", folder / "h.csv"});
      expect_one_line(result, 1, Arguments{plot + " was not written", "gnuplot"} + expected);
      EXPECT_EQ(losses_of(read_all(folder / "h.csv")).size(), 5000u);
    }
    EXPECT_EQ(read_all(kept), "as it was");
    EXPECT_EQ(folder.count(), 2);
  };
  expect_failure("echo; echo 'line 3:' >&2; echo '  unknown terminal' >&2; exit 3",
                 {"exit code 3", "line 3: unknown terminal"});
  expect_failure("kill -9 $$", {"signal 9"});
  expect_failure("exit 0", {"no whole picture"});
  expect_failure("echo '<svg>'", {"no whole picture"});
}

bool has_gnuplot() {
  CommandSetup setup;
  setup.arguments = {"/bin/sh", "-c", "command -v gnuplot"};
  return run_command(setup).exit_code == 0;
}

class Picture : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  }

  /// The picture in SVG, whose tags must be closed in order, after a run with `exit_code`.
  std::string svg(const Arguments& arguments, int exit_code = 0) {
    const std::string file = folder_ / "p.svg";
    const CommandResult result = run(arguments + Arguments{"--quiet", "--plot", file});
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    const std::string text = read_all(file);
    std::vector<std::string> open;
    for (std::size_t begin = text.find('<'); begin != std::string::npos; begin = text.find('<', begin + 1)) {
      const std::size_t end = text.find('>', begin);
      EXPECT_NE(end, std::string::npos);
      const std::string tag = text.substr(begin + 1, end - begin - 1),
                        name = tag.substr(0, tag.find_first_of(" \t\n/"));
      if (tag[0] == '?' || tag[0] == '!' || tag.back() == '/') continue;
      if (tag[0] != '/') {
        open.push_back(name);
        continue;
      }
      EXPECT_FALSE(open.empty()) << tag;
      if (open.empty()) break;
      EXPECT_EQ(tag.substr(1), open.back());
      open.pop_back();
    }
    EXPECT_TRUE(open.empty());
    return text;
  }
  static void expect_text(const std::string& svg, const std::vector<std::string>& texts) {
    for (const std::string& text : texts) EXPECT_TRUE(holds(svg, ">" + text)) << text << "\n" << svg;
  }

  TemporaryFolder folder_;
};

TEST_F(Picture, IsLabelled) {
  const CommandResult result = train({"--steps", "50", "--bias", "--plot", folder_ / "p.svg"});
  expect_done(result);
  const std::vector<std::string> said = lines(result.out);
  EXPECT_NE(said.back().find("wrote " + folder_ / "p.svg"), std::string::npos);
  const std::size_t begin = said.back().find(", ") + 2;
  const std::string time = said.back().substr(begin, said.back().find(" (predicted") - begin);
  expect_text(read_all(folder_ / "p.svg"),
              {"Training loss of 6-5-2 with biases on 9 samples<", "step<", "loss \\(sum of squared errors\\)<",
               "plan cpu, 1 thread, fp32, 50 steps, " + time + "<"});
  EXPECT_EQ(folder_.count(), 1);
}

TEST_F(Picture, SaysWhichOptimizerItWas) {
  expect_text(svg(Arguments{"train"} + kSmall + Arguments{"--optimizer", "adam", "--schedule", "exponential:0.99"}),
              {"plan cpu, 1 thread, fp32, adam, exponential schedule, 500 steps, "});
}

TEST_F(Picture, SaysWhichLossItIsAndOfWhichBatches) {
  expect_text(svg(Arguments{"train"} + kSmall +
                  split("--loss absolute --reduction mean --batch-size 4 --epochs 3 --output-activation tanh")),
              {"loss \\(mean of absolute errors\\)<",
               "plan cpu, 1 thread, fp32, output activation tanh, shuffled batches of 4, 3 epochs, 7 steps, "});
}

TEST_F(Picture, IsAWholePng) {
  expect_done(train({"--quiet", "--plot", folder_ / "p.png"}));
  const std::string png = read_all(folder_ / "p.png");
  EXPECT_EQ(png.substr(0, 8), "\x89PNG\r\n\x1a\n");
  EXPECT_EQ(png.substr(png.size() - 8, 4), "IEND");
}

TEST_F(Picture, HasPowersOfTenWhereLossesFallFar) {
  const std::string picture = svg(Arguments{"train"} + kSmall + Arguments{"--steps", "20000"});
  // A tick's 10 with a raised exponent.
  EXPECT_TRUE(holds(picture, ">10</tspan><tspan[^>]* dy=[^>]*>-2<"));
  // 20000 losses are not 20000 points of the curve.
  EXPECT_LT(picture.size(), 100000u);
}

TEST_F(Picture, IsThereForAnyLosses) {
  const Arguments small = Arguments{"train"} + kSmall;
  expect_text(svg(small + Arguments{"--steps", "0"}), {"plan cpu, 1 thread, fp32, 0 steps<"});
  expect_text(svg(small + Arguments{"--steps", "1"}), {"plan cpu, 1 thread, fp32, 1 step, "});
  expect_text(svg({"train", "--layers", "6,5,2", "--lr", "0", "--steps", "20"}),
              {"plan cpu, 1 thread, fp32, 20 steps"});
  // 0 cannot lie on a logarithmic axis; 1e-320 and 1.7e308 are about the least and the most that there is.
  const std::string x = folder_.write("x.npy", npy<double>(1, 1, {0}));
  for (const double y : {0.0, 1e-160, 1.3e154}) {
    const std::string target = folder_.write("y.npy", npy<double>(1, 1, {y}));
    const std::string picture = svg({"train", "--layers", "1,1", "--precision", "fp64", "--x", x, "--y", target});
    expect_text(picture, {"plan cpu, 1 thread, fp64, 500 steps", "Training loss of 1-1 on 1 sample<"});
    EXPECT_TRUE(holds(picture, "<path .*d='M[0-9.,]+ L[0-9.,]+ L")) << "no curve for " << y;
  }
}

TEST_F(Picture, LeavesOutWhatIsNotFiniteAndSaysSo) {
  expect_text(
      svg({"train", "--layers", "6,5,2", "--samples", "9", "--steps", "60", "--lr", "1"}, 1),
      {"plan cpu, 1 thread, fp32, 60 steps", "[0-9]+ losses, the first at step [0-9]+, are not finite and left out<"});
  const std::string x = folder_.write("x.npy", npy<float>(1, 1, {1e30f}));
  expect_text(svg({"train", "--layers", "1,1", "--x", x, "--y", x, "--steps", "1"}, 1),
              {"no loss is finite<", "1 loss, the first at step 0, is not finite and left out<"});
}

/// A run that lasts until it is stopped.
Arguments endless(const TemporaryFolder& folder) {
  return {"train",
          "--layers",
          "64,32,1",
          "--samples",
          "64",
          "--steps",
          "5000000",
          "--lr",
          "1e-9",
          "--threads",
          "1",
          "--history",
          folder / "h.csv",
          "--json",
          folder / "r.json",
          "--save",
          folder / "w.safetensors"};
}

TEST(Train, StopsInGoodOrderWhenInterrupted) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGXCPU}) {
    SCOPED_TRACE(signal);
    TemporaryFolder folder;
    RunningCommand running(command(endless(folder)));
    running.wait_for_out("\n0: ");
    EXPECT_EQ(folder.count(), 0);
    running.send(signal);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    running.send(signal);  // as timeout(1) does
    const CommandResult result = running.finish();
    const std::vector<double> losses = losses_of(read_all(folder / "h.csv"));
    const std::string steps = std::to_string(losses.size());
    ASSERT_GT(losses.size(), 0u);
    EXPECT_LT(losses.size(), 5000000u);
    expect_one_line(result, 128 + signal, {"interrupted after " + steps + " steps"});
    EXPECT_EQ(nlohmann::json::parse(read_all(folder / "r.json"))["steps"], losses.size());
    EXPECT_EQ(read_safetensors(folder / "w.safetensors").size(), 2u);
    EXPECT_EQ(folder.count(), 3);
    // The last loss has its line, whatever its step.
    EXPECT_NE(result.out.find("\n" + std::to_string(losses.size() - 1) + ": "), std::string::npos);
    EXPECT_NE(result.out.find("\n" + steps + " steps in "), std::string::npos);
  }
}

TEST(Train, LeavesNothingBehindWhateverKillsIt) {
  for (const int signal : {SIGQUIT, SIGUSR1, SIGUSR2, SIGKILL}) {
    TemporaryFolder folder;
    RunningCommand running(command(endless(folder)));
    running.wait_for_out("\n0: ");
    running.send(signal);
    EXPECT_EQ(running.finish().signal, signal);
    EXPECT_EQ(folder.count(), 0);
  }
}

/// Sends SIGTERM and expects the end within a second, or two on a machine that is busy.
CommandResult terminated(RunningCommand& running, bool reads = true) {
  const auto begin = std::chrono::steady_clock::now();
  running.send(SIGTERM);
  CommandResult result = running.finish(reads);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
  EXPECT_TRUE(result.exit_code == 128 + SIGTERM || result.signal == SIGTERM) << result.exit_code << result.err;
  return result;
}

TEST(Command, EndsSoonWhateverItIsDoing) {
  TemporaryFolder folder;
  if (!kSlowMachine) {  // the thread sanitizer holds a signal back until the program next calls the system
    // Numbers to draw for minutes.
    RunningCommand drawing(command({"data", "--layers", "1000,1", "--samples", "300000", "--x", folder / "x.npy"}));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    terminated(drawing);
  }
  {
    const std::string pipe = folder / "out.csv";  // which nobody opens to read
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    RunningCommand opening(command({"train", "--layers", "3,1", "--history", pipe}));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    terminated(opening);
    std::filesystem::remove(pipe);
  }
  EXPECT_EQ(folder.count(), 0);
}

TEST(Train, EndsSoonThoughNobodyReadsItsOutput) {
  TemporaryFolder folder;
  // 100000 losses are more than a pipe holds; the weights are there by then.
  RunningCommand running(command({"train", "--layers", "2,1", "--samples", "2", "--lr", "1e-3", "--steps", "100000",
                                  "--save", folder / "w.safetensors", "--history", "-", "--quiet"}));
  while (!std::filesystem::exists(folder / "w.safetensors")) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const CommandResult result = terminated(running, false);
  expect_one_line(result, 128 + SIGTERM, {"interrupted", "in time"});
  EXPECT_EQ(read_safetensors(folder / "w.safetensors").size(), 1u);
  EXPECT_EQ(folder.count(), 1);
}

TEST(Train, EndsInTheMiddleOfALongStep) {
  TemporaryFolder folder;
  RunningCommand running(command({"train", "--layers", "8,3000,3000,1", "--samples", "3000", "--steps", "3",
                                  "--threads", "1", "--device", "cpu", "--save", folder / "w.safetensors"}));
  running.wait_for_out("before training");
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  terminated(running);
  EXPECT_LE(folder.count(), 1);  // a fast machine has done the step
}

TEST(Train, ShowsProgressOnATerminalOnly) {
  if (!testing::has_terminals()) GTEST_SKIP() << "this system has no pseudo-terminals";
  TemporaryFolder folder;
  CommandSetup setup = command(endless(folder));
  setup.terminal_err = true;
  setup.out_file = folder / "out";
  RunningCommand running(setup);
  running.wait_for_err(" left");
  running.send(SIGINT);
  const CommandResult result = running.finish();
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_TRUE(holds(result.err, "\r +[0-9]+ % \\[\\.+\\] [0-9]+ steps, [0-9:hmin ]+ left")) << result.err;
  EXPECT_EQ(read_all(folder / "out").find('\r'), std::string::npos);

  CommandSetup brief = command(Arguments{"train"} + kSmall);
  brief.terminal_err = true;
  brief.out_file = folder / "out";
  EXPECT_EQ(run_command(brief).err, "") << "a bar for a short run";
}

TEST(Train, ShowsNoProgressWhenPipedOrQuiet) {
  if (!testing::has_terminals()) GTEST_SKIP() << "this system has no pseudo-terminals";
  TemporaryFolder folders[3];
  CommandSetup out_piped = command(endless(folders[0]));
  out_piped.terminal_err = true;
  CommandSetup err_piped = command(endless(folders[1]));
  err_piped.out_file = folders[1] / "out";
  CommandSetup quiet = command(endless(folders[2]) + Arguments{"--quiet"});
  quiet.terminal_err = true;
  quiet.out_file = folders[2] / "out";
  RunningCommand runs[] = {RunningCommand(out_piped), RunningCommand(err_piped), RunningCommand(quiet)};
  // A bar would be there after 0.3 seconds.
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  for (const RunningCommand& each : runs) each.send(SIGINT);
  for (RunningCommand& each : runs) EXPECT_EQ(each.finish().err.find(" left"), std::string::npos);
}

TEST(Activation, IsThatOfTrainPlanAndPredict) {
  TemporaryFolder folder;
  const Arguments tanh = {"--activation", "tanh"}, weights = {"--weights", folder / "w.safetensors"};
  const Arguments data = {"--layers", "6,5,2", "--samples", "9", "--x", folder / "x.npy"};
  expect_done(run(Arguments{"data"} + data + weights + tanh));
  const Arguments train_tanh = tanh + Arguments{"--steps", "3", "--quiet", "--save", folder / "w.safetensors"};
  expect_done(train(train_tanh + Arguments{"--history", folder / "tanh"}));
  expect_done(train({"--steps", "3", "--quiet", "--history", folder / "relu"}));
  EXPECT_NE(read_all(folder / "tanh"), read_all(folder / "relu"));
  const Arguments predict = Arguments{"predict", "--x", folder / "x.npy"} + weights;
  const CommandResult by_tanh = run(predict + tanh + Arguments{"--out", folder / "tanh.npy"});
  expect_done(by_tanh);
  EXPECT_NE(by_tanh.out.find("predicted by 6,5,2, activation tanh\n"), std::string::npos) << by_tanh.out;
  // Its slope too, which the library gets.
  const Arguments leaky = {"--activation", "leaky-relu:-0.3"},
                  leaky_weights = {"--weights", folder / "leaky.safetensors"};
  expect_done(run(Arguments{"data"} + data + leaky_weights + leaky));
  const CommandResult by_leaky =
      run(Arguments{"predict", "--x", folder / "x.npy"} + leaky_weights + Arguments{"--out", folder / "leaky.npy"});
  expect_done(by_leaky);
  EXPECT_NE(by_leaky.out.find("predicted by 6,5,2, activation leaky-relu:-0.3\n"), std::string::npos) << by_leaky.out;
  Trainer of_slope({.widths = {6, 5, 2}, .activation = Activation::leaky_relu, .leaky_slope = -0.3});
  of_slope.load_weights(folder / "leaky.safetensors");
  HostMatrix expected(ElementType::float32, 9, 2);
  of_slope.predict(read_npy(folder / "x.npy").view(), expected.view());
  EXPECT_EQ(read_npy(folder / "leaky.npy").bytes, expected.bytes);
  for (const std::string other : {"leaky-relu", "leaky-relu:0.3"})
    expect_refused(
        Arguments{"predict", "--x", folder / "x.npy", "--activation", other, "--out", folder / "p.npy"} + leaky_weights,
        {folder / "leaky.safetensors", "leaky-relu:-0.3", other + " was asked for"});
  const CommandResult both =
      train(leaky + split("--output-activation leaky-relu:-0.3 --steps 1 --json " + (folder / "r.json")));
  expect_done(both);
  EXPECT_TRUE(holds(both.out, "fp32, output activation leaky-relu:-0.3\\)$")) << both.out;
  EXPECT_EQ(nlohmann::ordered_json::parse(read_all(folder / "r.json"))["output_activation"], "leaky-relu:-0.3");
  const CommandResult usual = run({"plan", "--layers", "6,5,2", "--activation", "leaky-relu:0.01"});
  EXPECT_EQ(usual.out.rfind("--layers 6,5,2, activation leaky-relu, 128 samples\n", 0), 0u) << usual.out;
  const CommandResult plan = run({"plan", "--layers", "6,5,2", "--bias", "--activation", "gelu-tanh"});
  expect_done(plan);
  EXPECT_EQ(plan.out.rfind("--layers 6,5,2 with biases, activation gelu-tanh, 128 samples\n", 0), 0u) << plan.out;
}

/// The same weights without what deviceloop says of them, as other programs write them.
std::string without_metadata(const TemporaryFolder& folder, const std::string& weights) {
  OutputFile file(folder / "plain.safetensors");
  write_safetensors(file, read_safetensors(weights));
  file.commit();
  return file.path();
}

class SavedNetworks : public ::testing::Test {
 protected:
  void SetUp() override {
    expect_done(run({"data", "--layers", "6,5,2", "--samples", "9", "--x", x_, "--y", y_}));
    expect_done(train({"--bias", "--activation", "tanh", "--output-activation", "leaky-relu", "--steps", "3", "--quiet",
                       "--save", weights_}));
  }
  std::string predicted(const std::string& weights, const Arguments& options) const {
    const std::string out = folder_ / "p.npy";
    const CommandResult result = run(Arguments{"predict", "--weights", weights, "--x", x_, "--out", out} + options);
    expect_done(result);
    network_ = lines(result.out).empty() ? "" : lines(result.out).back();
    return read_all(out);
  }

  TemporaryFolder folder_;
  const std::string x_ = folder_ / "x.npy", y_ = folder_ / "y.npy", weights_ = folder_ / "w.safetensors";
  mutable std::string network_;  // what the last prediction was by
};

TEST_F(SavedNetworks, SayWhatPredictNeeds) {
  const Arguments given = {"--activation", "tanh", "--output-activation", "leaky-relu"};
  const std::string expected = predicted(weights_, {});
  EXPECT_NE(network_.find("predicted by 6,5,2 with biases, activation tanh, output activation leaky-relu"),
            std::string::npos)
      << network_;
  EXPECT_EQ(predicted(weights_, given), expected);
  EXPECT_EQ(predicted(weights_, {"--activation", "tanh"}), expected);
  const Arguments predict = {"predict", "--weights", weights_, "--x", x_, "--out", folder_ / "p2.npy"};
  expect_refused(predict + Arguments{"--activation", "relu"},
                 {weights_ + ": its network has the activation tanh, but relu was asked for; use tanh"});
  expect_refused(predict + Arguments{"--output-activation", "identity"},
                 {weights_ + ": its network has the output activation leaky-relu, but identity was asked for"});

  // Without metadata the options say it, and their defaults.
  const std::string plain = without_metadata(folder_, weights_);
  EXPECT_EQ(predicted(plain, given), expected);
  EXPECT_NE(predicted(plain, {}), expected);
  EXPECT_NE(network_.find("predicted by 6,5,2 with biases"), std::string::npos) << network_;
  EXPECT_EQ(network_.find("activation"), std::string::npos) << network_;
  Trainer trainer({.widths = {6, 5, 2}, .bias = true});
  trainer.load_weights(plain);
  HostMatrix by_relu(ElementType::float32, 9, 2);
  trainer.predict(read_npy(x_).view(), by_relu.view());
  predicted(plain, {});
  EXPECT_EQ(read_npy(folder_ / "p.npy").bytes, by_relu.bytes);
}

TEST_F(SavedNetworks, SayWhatTrainGoesOnWith) {
  const Arguments files = {"--x", x_, "--y", y_, "--lr", "1e-3", "--steps", "5", "--quiet"};
  const Arguments all = {"--layers", "6,5,2", "--bias", "--activation", "tanh", "--output-activation", "leaky-relu"};
  const auto history = [&](const std::string& weights, const Arguments& options) {
    expect_done(run(Arguments{"train", "--weights", weights, "--history", folder_ / "h"} + files + options));
    return read_all(folder_ / "h");
  };
  const std::string expected = history(weights_, all);
  EXPECT_EQ(history(weights_, {}), expected);
  EXPECT_EQ(history(weights_, {"--layers", "6,5,2"}), expected);
  EXPECT_EQ(history(without_metadata(folder_, weights_), all), expected);
  const CommandResult plan = run({"plan", "--weights", weights_});
  expect_done(plan);
  EXPECT_EQ(plan.out.rfind("--layers 6,5,2 with biases, activation tanh, output activation leaky-relu, 128 ", 0), 0u)
      << plan.out;

  for (const std::string command : {"train", "plan"}) {
    const Arguments on = Arguments{command, "--weights", weights_} + files;
    expect_refused(on + Arguments{"--activation", "relu"},
                   {weights_, "has the activation tanh, but relu was asked for; use tanh"});
    expect_refused(on + Arguments{"--output-activation", "identity"},
                   {weights_, "has the output activation leaky-relu, but identity was asked for; use leaky-relu"});
    expect_refused(on + Arguments{"--layers", "6,4,2"}, {weights_, "give the network these widths: 6,5,2"});
    // As ever without metadata: the widths are those of --layers, or its default.
    expect_refused(Arguments{command, "--weights", without_metadata(folder_, weights_)} + files,
                   {"plain.safetensors", "give the network these widths: 6,5,2"});
    expect_refused({command, "--weights", folder_ / "none"}, {folder_ / "none"});
    expect_refused(on + Arguments{"--loss", "cross-entropy", "--layers", "6,5,1"}, {"at least 2 outputs"});
  }
  EXPECT_EQ(run({"plan", "--weights", weights_, "--loss", "cross-entropy"}).exit_code, 0);
  const std::string no_bias = folder_ / "no_bias.safetensors";
  expect_done(train({"--steps", "0", "--quiet", "--save", no_bias}));
  expect_refused(Arguments{"train", "--weights", no_bias, "--bias"} + files, {no_bias, "has no '0.bias'"});
}

TEST_F(SavedNetworks, ThatAreMalformedAreRefusedByEveryCommand) {
  OutputFile file(folder_ / "bad.safetensors");
  write_safetensors(file, read_safetensors(weights_), {{"deviceloop.network", "{\"version\":1}"}});
  file.commit();
  const std::string problem = file.path() + ": its metadata 'deviceloop.network' has no widths; save the weights again";
  expect_refused({"predict", "--weights", file.path(), "--x", x_, "--out", folder_ / "p.npy"}, {problem});
  for (const std::string command : {"train", "plan"})
    expect_refused({command, "--weights", file.path(), "--x", x_, "--y", y_}, {problem});
}

/// Runs whose inputs are scaled, beside those of a library that gets scaled inputs.
class ScaledInputs : public ::testing::Test {
 protected:
  void SetUp() override {
    expect_done(run({"data", "--layers", "6,5,2", "--samples", "9", "--precision", "fp64", "--x", x_, "--y", y_}));
    expect_done(run({"data", "--layers", "6,5,2", "--samples", "9", "--precision", "fp64", "--data", data_}));
    expect_done(run({"data", "--layers", "6,5,2", "--samples", "7", "--seed", "5", "--x", others_}));
  }
  Arguments files() const { return {"--layers", "6,5,2", "--x", x_, "--y", y_}; }
  std::string history(const Arguments& options) const {
    expect_done(
        run(Arguments{"train", "--lr", "1e-3", "--steps", "20", "--quiet", "--history", folder_ / "h"} + options));
    return read_all(folder_ / "h");
  }
  TemporaryFolder folder_;
  const std::string x_ = folder_ / "x.npy", y_ = folder_ / "y.npy", data_ = folder_ / "d.npz",
                    others_ = folder_ / "others.npy", weights_ = folder_ / "w.safetensors", out_ = folder_ / "p.npy";
};

TEST_F(ScaledInputs, TrainAndPredictAsTheLibraryDoesWithThem) {
  const DataMatrix x = read_npy(x_), y = read_npy(y_), others = read_npy(others_);
  const std::vector<std::pair<Arguments, InputScaling>> cases = {
      {{"--scale", "1/255"}, InputScaling{1.0 / 255}},
      {{"--scale", "-2.5e-1"}, InputScaling{-0.25}},
      {{"--scale", "3/-4e2"}, InputScaling{3 / -4e2}},
      {{"--standardize"}, standardized(x.view(), 1, "x")},
      {{"--standardize", "--scale", "1e-3"}, standardized(x.view(), 1e-3, "x")}};
  for (const Precision precision : {Precision::fp32, Precision::fp64})
    for (const auto& [options, scaling] : cases) {
      SCOPED_TRACE(words(options) + name(precision));
      const ElementType type = element_type(precision);
      const Arguments in = {"--precision", name(precision)};
      const std::string losses = history(files() + options + in + Arguments{"--save", weights_});

      TrainingSpec training;
      training.precision = precision;
      training.optimizer.learning_rate = 1e-3;
      Trainer trainer({.widths = {6, 5, 2}}, training);
      const HostMatrix scaled = scaling.apply(x, type, "x");
      trainer.set_data(scaled.view(), y.view());
      EXPECT_EQ(bits(losses_of(losses)), bits(trainer.train(20).losses));
      // The rows of the training, and others by the numbers of the training.
      for (const auto& [path, rows] : {std::pair(x_, x), std::pair(others_, others)}) {
        expect_done(run(Arguments{"predict", "--weights", weights_, "--x", path, "--out", out_, "--quiet"} + in));
        HostMatrix expected(type, rows.rows, 2);
        trainer.predict(scaling.apply(rows, type, "x").view(), expected.view());
        EXPECT_EQ(read_npy(out_).bytes, expected.bytes);
      }
    }
}

TEST_F(ScaledInputs, AreTheSameFromFilesAndGenerated) {
  std::set<std::string> seen;
  for (const Arguments& options : {Arguments{}, Arguments{"--scale", "0.5"}, Arguments{"--standardize"},
                                   Arguments{"--scale", "1/4", "--standardize", "--batch-size", "4"}}) {
    const Arguments in = options + Arguments{"--precision", "fp64"};
    const std::string expected = history(in + files());
    EXPECT_EQ(history(in + Arguments{"--layers", "6,5,2", "--data", data_}), expected);
    EXPECT_EQ(history(in + Arguments{"--layers", "6,5,2", "--samples", "9"}), expected);
    EXPECT_TRUE(seen.insert(expected).second) << words(options) << "changes nothing";
  }
  // Powers of two are exact: the same network sees the same inputs.
  EXPECT_EQ(history(Arguments{"--standardize"} + files()),
            history(Arguments{"--standardize", "--scale", "2"} + files()));
}

TEST_F(ScaledInputs, GoOnFromSavedWeightsBitForBit) {
  const Arguments scaled = {"--scale", "1/3", "--standardize", "--activation", "silu"};
  const std::string all = folder_ / "all.safetensors";
  expect_done(
      run(Arguments{"train", "--lr", "1e-3", "--steps", "40", "--quiet", "--history", folder_ / "all", "--save", all} +
          files() + scaled));
  std::vector<double> parts = losses_of(history(files() + scaled + Arguments{"--save", weights_}));
  const Arguments on = {"--x", x_, "--y", y_, "--weights", weights_};
  const std::vector<double> second = losses_of(history(on + Arguments{"--save", weights_}));
  parts.insert(parts.end(), second.begin(), second.end());
  EXPECT_EQ(bits(parts), bits(losses_of(read_all(folder_ / "all"))));
  EXPECT_EQ(read_all(weights_), read_all(all));
  // Other data take the numbers of the first run, which `--standardize` would not.
  const std::string of_others = folder_.write("y7.npy", counting_npy<float>(7, 2));
  expect_done(run({"train", "--x", others_, "--y", of_others, "--weights", weights_, "--steps", "0", "--quiet",
                   "--save", folder_ / "same.safetensors"}));
  EXPECT_EQ(read_all(folder_ / "same.safetensors"), read_all(weights_));

  for (const std::string command : {"train", "plan"})
    for (const Arguments& more : {Arguments{"--scale", "1/3"}, Arguments{"--standardize"}})
      expect_refused(Arguments{command} + on + more, {weights_ + " says how its inputs are scaled", "drop " + more[0]});
  // Weights without a scaling get one.
  const std::string plain = without_metadata(folder_, weights_);
  expect_done(run(
      Arguments{"train", "--weights", plain, "--steps", "1", "--save", folder_ / "new", "--standardize", "--quiet"} +
      files()));
  EXPECT_NE(read_all(folder_ / "new").find("deviation"), std::string::npos);
}

TEST_F(ScaledInputs, AreInEveryReport) {
  const auto second_line = [&](const Arguments& options) {
    const CommandResult result =
        run(Arguments{"train", "--steps", "1", "--json", folder_ / "r.json", "--save", weights_} + files() + options);
    expect_done(result);
    return lines(result.out).at(1);
  };
  EXPECT_EQ(second_line({"--scale", "1/4"}), "inputs multiplied by 0.25");
  auto json = nlohmann::json::parse(read_all(folder_ / "r.json"));
  EXPECT_EQ(json["input_scaling"], (nlohmann::json{{"factor", 0.25}, {"standardized", false}}));
  EXPECT_EQ(second_line({"--standardize"}), "inputs, each column minus its mean, divided by its deviation");
  EXPECT_EQ(second_line({"--standardize", "--scale", "2"}),
            "inputs multiplied by 2, then each column minus its mean, divided by its deviation");
  json = nlohmann::json::parse(read_all(folder_ / "r.json"));
  EXPECT_EQ(json["input_scaling"], (nlohmann::json{{"factor", 2.0}, {"standardized", true}}));
  const CommandResult predicted = run({"predict", "--weights", weights_, "--x", x_, "--out", out_});
  expect_done(predicted);
  EXPECT_NE(predicted.out.find("\ninputs multiplied by 2, then each column "), std::string::npos) << predicted.out;
  EXPECT_EQ(second_line({"--scale", "1"}).rfind("plan cpu", 0), 0u);
  EXPECT_FALSE(nlohmann::json::parse(read_all(folder_ / "r.json")).contains("input_scaling"));
}

TEST_F(ScaledInputs, AreRefusedWithRowColumnAndFile) {
  for (const std::string factor : {"0", "-0", "0/5", "1/0", "nan", "inf", "1/inf", "1/nan", "1e999", "1e308/1e-10",
                                   "1e-300/1e300", "x", "1/", "/2", "1/2/3", "1 / 2", ""})
    expect_refused({"train", "--scale", factor},
                   {"--scale must be a finite number other than 0, such as 0.5 or 1/255, not '" + factor + "'"});
  expect_refused({"train", "--standardize=yes"}, {"--standardize", "no value"});
  expect_refused({"predict", "--scale", "2"}, {"unknown option", "'--scale'"});
  expect_refused({"data", "--standardize"}, {"unknown option", "'--standardize'"});

  const std::string x = folder_.write("x.csv", "1,2\n3,4e9\n"), y = folder_.write("y.csv", "1\n2\n");
  const std::string data = folder_.write("d.csv", "1,2,1\n3,4e9,2\n");
  const std::string remedy = "scale it by another factor, use fp64, or drop such samples";
  const std::string where = "scaled, row 1, column 1 is 4e+39, which fp32 cannot hold (counted from 0); " + remedy;
  const Arguments large = {"--layers", "2,1", "--scale", "1e30"};
  for (const std::string command : {"train", "plan"}) {
    expect_refused(Arguments{command, "--x", x, "--y", y} + large, {x + ": " + where});
    expect_refused(Arguments{command, "--data", data, "--targets", "1"} + large, {data + ": x: " + where});
  }
  expect_refused({"train", "--layers", "2,1", "--samples", "1", "--scale", "1e39"},
                 {"the generated inputs: scaled, row 0, column 0 is ", remedy});
  expect_refused({"train", "--layers", "2,1", "--x", x, "--y", y, "--scale", "1e300", "--precision", "fp64"},
                 {x + ": scaled, row 1, column 1 is inf"});
  expect_refused(
      {"train", "--layers", "2,1", "--x", folder_.write("wide.csv", "1e308,1\n-1e308,2\n"), "--y", y, "--standardize"},
      {"wide.csv: scaled, column 0 spans more than float64 holds"});
  const std::string nan = folder_.write("nan.csv", "1,2\n3,nan\n");
  for (const Arguments& options : {Arguments{"--scale", "2"}, Arguments{"--standardize"}})
    expect_refused(Arguments{"train", "--layers", "2,1", "--x", nan, "--y", y} + options,
                   {nan + ": row 1, column 1 is nan (counted from 0); replace or drop such samples"});

  // Far from the training's rows: what a narrow column makes of it, fp32 cannot hold.
  const std::string narrow = folder_.write("narrow.csv", "0\n1e-30\n");
  expect_done(run({"train", "--layers", "1,1", "--x", narrow, "--y", y, "--standardize", "--steps", "0", "--quiet",
                   "--save", weights_}));
  const std::string far = folder_.write("far.csv", "1\n1e10\n");
  expect_refused({"predict", "--weights", weights_, "--x", far, "--out", out_},
                 {far + ": scaled, row 1, column 0 is 2e+40, which fp32 cannot hold (counted from 0); " + remedy});
  expect_refused({"train", "--weights", weights_, "--x", far, "--y", y}, {far + ": scaled, row 1, column 0 is 2e+40"});
}

/// Runs whose targets are standardized, beside those of a library that gets such targets.
class ScaledTargets : public ::testing::Test {
 protected:
  /// Three inputs, and two targets that are large and far from 0, and small.
  void SetUp() override {
    std::string data = "a,b,c,price,share\n";
    double next = 0.3;
    for (int row = 0; row < 12; ++row) {
      for (int column = 0; column < 5; ++column) {
        next = 3.7 * next * (1 - next);
        const double value = column == 3 ? 2e5 + 1e6 * next : column == 4 ? 1e-3 * next : next;
        data += (column == 0 ? "" : ",") + shortest(static_cast<float>(value));
      }
      data += "\n";
    }
    data_ = folder_.write("data.csv", data);
    samples_ = read_samples(data_, {.targets = "price,share"});
    x_ = folder_.write("x.npy", npy<double>(samples_.x));
    y_ = folder_.write("y.npy", npy<double>(samples_.y));
  }
  template <class T>
  static std::string npy(const HostMatrix& matrix) {
    const T* const values = static_cast<const T*>(matrix.view().data);
    return testing::npy(matrix.rows, matrix.columns, std::vector<T>(values, values + matrix.rows * matrix.columns));
  }
  Arguments files() const { return {"--layers", "3,8,2", "--bias", "--x", x_, "--y", y_}; }
  std::string history(const Arguments& options) const {
    expect_done(
        run(Arguments{"train", "--lr", "1e-2", "--steps", "20", "--quiet", "--history", folder_ / "h"} + options));
    return read_all(folder_ / "h");
  }
  TemporaryFolder folder_;
  Samples samples_;
  std::string data_, x_, y_;
  const std::string weights_ = folder_ / "w.safetensors", out_ = folder_ / "p.npy";
};

TEST_F(ScaledTargets, TrainAndPredictAsTheLibraryDoesWithThem) {
  const InputScaling scaling = standardized(samples_.y.view(), 1, "y");
  for (const Precision precision : {Precision::fp32, Precision::fp64}) {
    SCOPED_TRACE(name(precision));
    const ElementType type = element_type(precision);
    const Arguments in = {"--precision", name(precision)};
    const std::string losses =
        history(files() + in + Arguments{"--standardize-targets", "--reduction", "mean", "--save", weights_});
    EXPECT_EQ(history(in + Arguments{"--layers", "3,8,2", "--bias", "--data", data_, "--targets", "price,share",
                                     "--reduction", "mean", "--standardize-targets"}),
              losses);

    TrainingSpec training;
    training.precision = precision;
    training.optimizer.learning_rate = 1e-2;
    training.reduction = Reduction::mean;
    Trainer trainer({.widths = {3, 8, 2}, .bias = true}, training);
    const HostMatrix scaled = scaling.apply(samples_.y, type, "y");
    trainer.set_data(samples_.x.view(), scaled.view());
    EXPECT_EQ(bits(losses_of(losses)), bits(trainer.train(20).losses));
    // Predictions are in the unit of the file.
    expect_done(run(Arguments{"predict", "--weights", weights_, "--x", x_, "--out", out_, "--quiet"} + in));
    const HostMatrix in_precision = InputScaling{}.apply(samples_.x, type, "x");
    HostMatrix outputs(type, 12, 2);
    trainer.predict(in_precision.view(), outputs.view());
    EXPECT_EQ(read_npy(out_).bytes, scaling.undo(outputs, type).bytes);
    EXPECT_NE(read_npy(out_).bytes, outputs.bytes);
  }
}

TEST_F(ScaledTargets, HaveTheLossOneByTheMeanAlone) {
  // All weights are 0: the network's outputs are, which is the mean.
  Trainer zero({.widths = {3, 2}});
  const std::vector<float> zeros(6);
  zero.write_weight(0, ConstMatrix(zeros.data(), 3, 2));
  zero.save_weights(weights_);
  const Arguments of_zero = {"train", "--weights", weights_, "--x", x_, "--y", y_, "--steps", "0"};
  const CommandResult result =
      run(of_zero + Arguments{"--standardize-targets", "--reduction", "mean", "--precision", "fp64"});
  expect_done(result);
  EXPECT_TRUE(holds(result.out, "^0: (1.00|0.9999[0-9]*)$")) << result.out;
  // The rows are in the unit of the file: its mean minus the target.
  const InputScaling scaling = standardized(samples_.y.view(), 1, "y");
  const double* const y = static_cast<const double*>(samples_.y.view().data);
  char row[64];
  std::snprintf(row, sizeof row, "%13.6g%13.6g\n", scaling.mean[0] - y[0], scaling.mean[1] - y[1]);
  EXPECT_NE(result.out.find("before training:\n" + std::string(row)), std::string::npos) << result.out << row;
  EXPECT_NE(result.out.find("after training:\n" + std::string(row)), std::string::npos) << result.out << row;
}

TEST_F(ScaledTargets, GoOnFromSavedWeightsBitForBit) {
  const Arguments scaled = {"--standardize", "--standardize-targets", "--activation", "silu"};
  const std::string all = folder_ / "all.safetensors";
  expect_done(
      run(Arguments{"train", "--lr", "1e-2", "--steps", "40", "--quiet", "--history", folder_ / "all", "--save", all} +
          files() + scaled));
  std::vector<double> parts = losses_of(history(files() + scaled + Arguments{"--save", weights_}));
  const Arguments on = {"--x", x_, "--y", y_, "--weights", weights_};
  const std::vector<double> second = losses_of(history(on + Arguments{"--save", weights_}));
  parts.insert(parts.end(), second.begin(), second.end());
  EXPECT_EQ(bits(parts), bits(losses_of(read_all(folder_ / "all"))));
  EXPECT_EQ(read_all(weights_), read_all(all));
  // Other targets take the numbers of the first run.
  expect_done(run({"train", "--x", x_, "--y", folder_.write("other.npy", counting_npy<float>(12, 2)), "--weights",
                   weights_, "--steps", "0", "--quiet", "--save", folder_ / "same.safetensors"}));
  EXPECT_EQ(read_all(folder_ / "same.safetensors"), read_all(weights_));
  for (const std::string command : {"train", "plan"}) {
    expect_refused(Arguments{command, "--standardize-targets"} + on,
                   {weights_ + " says how its targets are scaled", "drop --standardize-targets"});
    expect_refused(Arguments{command, "--loss", "bce"} + on,
                   {weights_ + " scales the targets, but those of --loss bce are probabilities"});
  }
  // Weights whose targets were not scaled get a scaling of them, and keep that of their inputs.
  expect_done(run(Arguments{"train", "--steps", "0", "--quiet", "--standardize", "--save", weights_} + files()));
  const std::string inputs_alone = read_all(weights_);
  expect_done(run(Arguments{"train", "--steps", "0", "--quiet", "--standardize-targets", "--save", weights_} + on));
  EXPECT_EQ(inputs_alone.find("target_scaling"), std::string::npos);
  EXPECT_NE(read_all(weights_).find("target_scaling"), std::string::npos);
  EXPECT_NE(read_all(weights_).find("input_scaling"), std::string::npos);
}

TEST_F(ScaledTargets, AreInEveryReport) {
  const std::string report = folder_ / "r.html";
  const CommandResult result = run(Arguments{"train", "--steps", "1", "--standardize-targets", "--json",
                                             folder_ / "r.json", "--report", report, "--save", weights_} +
                                   files());
  expect_done(result);
  const std::string line =
      "targets, each column minus its mean, divided by its deviation; losses are of these, and a mean squared error of "
      "1 is what the mean alone reaches";
  EXPECT_EQ(lines(result.out).at(1), line);
  const InputScaling scaling = standardized(samples_.y.view(), 1, "y");
  EXPECT_EQ(nlohmann::json::parse(read_all(folder_ / "r.json"))["target_scaling"],
            (nlohmann::json{{"mean", scaling.mean}, {"deviation", scaling.deviation}}));
  EXPECT_NE(read_all(report).find(line), std::string::npos);
  const CommandResult predicted = run({"predict", "--weights", weights_, "--x", x_, "--out", out_});
  expect_done(predicted);
  EXPECT_NE(predicted.out.find("\noutputs, each column times its deviation, plus its mean\n"), std::string::npos);
  // The settings of a run that takes the scaling from its weights say so.
  expect_done(
      run({"train", "--weights", weights_, "--x", x_, "--y", y_, "--steps", "1", "--quiet", "--report", report}));
  EXPECT_NE(
      read_all(report).find("--standardize-targets</td>\n<td class=\"value\">yes</td>\n<td><span class=\"chip\">from "
                            "--weights</span>"),
      std::string::npos);

  expect_done(run(Arguments{"train", "--steps", "1", "--quiet", "--json", folder_ / "r.json"} + files()));
  EXPECT_FALSE(nlohmann::json::parse(read_all(folder_ / "r.json")).contains("target_scaling"));
}

TEST_F(ScaledTargets, AreRefusedWhereTheyDoNotFit) {
  for (const std::string command : {"train", "plan"}) {
    const Arguments start = Arguments{command, "--standardize-targets"} + files();
    for (const std::string loss : {"bce", "cross-entropy"})
      expect_refused(start + Arguments{"--loss", loss},
                     {"--standardize-targets scales the targets, but those of --loss " + loss +
                      " are probabilities or numbers of classes; use --loss squared, absolute or huber"});
    for (const std::string activation : {"sigmoid", "relu", "tanh", "leaky-relu:0.5"})
      expect_refused(start + Arguments{"--output-activation", activation},
                     {"--standardize-targets scales the targets to both sides of 0, where --output-activation " +
                      activation + " limits or bends the outputs; use --output-activation identity"});
  }
  expect_done(
      run(Arguments{"train", "--standardize-targets", "--steps", "1", "--quiet", "--save", weights_} + files()));
  expect_refused({"predict", "--classes", "--weights", weights_, "--x", x_, "--out", out_},
                 {"--classes takes outputs for classes, but " + weights_ + " was trained by standardized targets"});
  expect_refused({"predict", "--standardize-targets"}, {"unknown option", "'--standardize-targets'"});
  const std::string nan = folder_.write("nan.csv", std::string("1,2\n3,nan\n") +
                                                       "1,2\n1,2\n1,2\n1,2\n1,2\n1,2\n1,2\n"
                                                       "1,2\n1,2\n1,2\n");
  expect_refused({"train", "--layers", "3,2", "--x", x_, "--y", nan, "--standardize-targets"},
                 {nan + ": row 1, column 1 is nan (counted from 0)"});
  // Each alone has room in a file's header.
  const std::string wide = folder_.write("wide.npy", counting_npy<float>(1, 600'000));
  expect_refused(
      {"train", "--layers", "600000,1,600000", "--x", wide, "--y", wide, "--standardize", "--standardize-targets"},
      {"at most 1000000 columns of inputs and targets can be standardized", "600000 and 600000",
       "drop --standardize-targets"});
}

/// The notes of a run by these inputs and targets, each a column or more of a .csv.
class SizeNotes : public ::testing::Test {
 protected:
  std::vector<std::string> notes(const std::string& x, const std::string& y, const Arguments& options = {}) const {
    const CommandResult result =
        run(Arguments{"train", "--steps", "1", "--lr", "1e-30", "--layers", layers_, "--init", "xavier", "--report",
                      folder_ / "r.html", "--x", folder_.write("x.csv", x), "--y", folder_.write("y.csv", y)} +
            options);
    expect_done(result);
    std::vector<std::string> found;
    for (const std::string& line : lines(result.out))
      if (line.starts_with("note: ") && line.find("deviation") != std::string::npos) {
        EXPECT_NE(read_all(folder_ / "r.html").find(line.substr(line.find("standard deviation"), 40)),
                  std::string::npos);
        found.push_back(line);
      }
    return found;
  }
  using Notes = std::vector<std::string>;
  TemporaryFolder folder_;
  std::string layers_ = "1,1";
};

TEST_F(SizeNotes, NameTargetsThatAreLargeOrSmall) {
  const std::string x = "1\n2\n", remedy = "; --standardize-targets brings it to 1";
  EXPECT_EQ(notes(x, "0\n240000\n"), (Notes{"note: the targets have a standard deviation of 1.2e+05" + remedy}));
  EXPECT_EQ(notes(x, "0\n0.019\n"), (Notes{"note: the targets have a standard deviation of 0.0095" + remedy}));
  for (const std::string y : {"1000000\n1000200\n", "1\n1.02\n", "5e5\n5e5\n"}) EXPECT_EQ(notes(x, y), Notes{}) << y;
  EXPECT_EQ(notes(x, "0\n202\n").size(), 1u);
  for (const std::string loss : {"absolute", "huber"})
    EXPECT_EQ(notes(x, "0\n240000\n", {"--loss", loss}).size(), 1u) << loss;
  for (const Arguments& options : {Arguments{"--standardize-targets"}, Arguments{"--output-activation", "softplus"}})
    EXPECT_EQ(notes(x, "0\n240000\n", options), Notes{});
  EXPECT_EQ(notes(x, "0\n0.001\n", {"--loss", "bce"}), Notes{});
  layers_ = "1,3";
  EXPECT_EQ(notes(x, "0,0,1\n0.002,240000,1\n"),
            (Notes{"note: the targets of column 1 (counted from 0) have a standard deviation of 1.2e+05; "
                   "--standardize-targets brings that of each column to 1"}));
  EXPECT_EQ(notes(x, "0,0,1\n0.000002,240,1\n").at(0).substr(0, 33), "note: the targets of column 0 (co");
}

TEST_F(SizeNotes, NameInputsOfDifferentSizes) {
  const std::string y = "0\n1\n", remedy = "; --standardize brings them to 1";
  layers_ = "3,1";
  const std::string x = "7,0,0\n7,0.6,42000\n";
  EXPECT_EQ(notes(x, y), (Notes{"note: the inputs' standard deviations go from 0.3 to 2.1e+04" + remedy}));
  EXPECT_EQ(notes(x, y, {"--scale", "0.01"}),
            (Notes{"note: the inputs' standard deviations go from 0.003 to 2.1e+02" + remedy}));
  for (const Arguments& options : {Arguments{"--standardize"}, Arguments{"--scale", "1e-4"}})
    EXPECT_EQ(notes(x, y, options), Notes{});
  // Not far enough from each other; small all of them; the same in all rows.
  for (const std::string few : {"7,0,0\n7,6,600\n", "7,0,0\n7,0.001,2\n", "7,7,0\n7,7,42000\n"})
    EXPECT_EQ(notes(few, y), Notes{}) << few;
  // Those of the rows that are trained by, in both notes.
  EXPECT_EQ(notes(x, "0\n240000\n").size(), 2u);
}

// Of so many rows every second one is looked at: the others would bring the columns closer to each other.
TEST_F(SizeNotes, AreOfManyRowsToo) {
  constexpr std::int64_t kRows = 3'000'000;
  std::vector<std::uint8_t> x;
  for (std::int64_t row = 0; row < kRows; ++row) {
    const auto bit = static_cast<std::uint8_t>(row / 2 % 2);
    for (const int value : {row % 2 == 0 ? bit : 9, 7, 200 * bit}) x.push_back(static_cast<std::uint8_t>(value));
  }
  const std::string path = folder_.write("x.npy", npy("|u1", kRows, 3, x));
  x.resize(static_cast<std::size_t>(kRows));
  const CommandResult result = run({"train", "--layers", "3,1", "--steps", "1", "--lr", "1e-30", "--x", path, "--y",
                                    folder_.write("y.npy", npy("|u1", kRows, 1, x))});
  expect_done(result);
  EXPECT_NE(result.out.find("note: the inputs' standard deviations go from 0.5 to 1e+02; "), std::string::npos)
      << result.out;
}

TEST_F(SizeNotes, AreNotOfGeneratedData) {
  const CommandResult result = run({"train", "--layers", "3,1", "--samples", "1", "--scale", "1e6", "--steps", "1"});
  expect_done(result);
  EXPECT_EQ(result.out.find("deviation"), std::string::npos) << result.out;
}

class Classes : public ::testing::Test {
 protected:
  /// A network of one layer that gives the inputs back.
  std::string identity(std::int64_t width, Activation activation = Activation::identity) const {
    Trainer trainer({.widths = {width, width}, .output_activation = activation});
    std::vector<float> weight(static_cast<std::size_t>(width * width));
    for (std::int64_t i = 0; i < width; ++i) weight[static_cast<std::size_t>(i * width + i)] = 1;
    trainer.write_weight(0, ConstMatrix(weight.data(), width, width));
    trainer.save_weights(folder_ / "w.safetensors");
    return folder_ / "w.safetensors";
  }
  CommandResult predict(const std::string& weights, const std::string& rows, const std::string& out,
                        const Arguments& options = {}) const {
    return run(Arguments{"predict", "--classes", "--weights", weights, "--x", folder_.write("x.csv", rows), "--out",
                         folder_ / out} +
               options);
  }
  TemporaryFolder folder_;
};

TEST_F(Classes, AreTheFirstOfTheLargestOutputs) {
  const std::string rows = "1,2,3\n3,2,1\n1,3,3\n2,2,2\n-1,-3,-2\n-0.0,0,0\n-5,-4,-4\n1e30,-1e30,2\n";
  for (const std::string precision : {"fp32", "fp64"}) {
    const CommandResult result = predict(identity(3), rows, "c.npy", {"--precision", precision});
    expect_done(result);
    EXPECT_NE(result.out.find("c.npy: 8 x 1, classes predicted by 3,3\n"), std::string::npos) << result.out;
    EXPECT_EQ(read_all(folder_ / "c.npy"), npy("<i8", 8, 1, std::vector<std::int64_t>{2, 0, 1, 0, 0, 0, 1, 0}));
    for (const std::string name : {"c.csv", "C.CSV"}) {
      expect_done(predict(identity(3), rows, name, {"--precision", precision}));
      EXPECT_EQ(read_all(folder_ / name), "2\n0\n1\n0\n0\n0\n1\n0\n");
    }
  }
  // As labels of train.
  expect_done(run({"train", "--x", folder_ / "x.csv", "--y", folder_ / "c.csv", "--layers", "3,3", "--loss",
                   "cross-entropy", "--steps", "1", "--quiet"}));
}

TEST_F(Classes, AreNotWhatIsPredictedWithoutTheOption) {
  const std::string weights = identity(2), x = folder_.write("x.csv", "0.1,-2\n3,0.3333333333333333\n");
  for (const auto& [precision, expected] :
       {std::pair{"fp32", "0.1,-2\n3,0.33333334\n"}, std::pair{"fp64", "0.1,-2\n3,0.3333333333333333\n"}}) {
    expect_done(run({"predict", "--weights", weights, "--x", x, "--out", folder_ / "p.csv", "--precision", precision}));
    EXPECT_EQ(read_all(folder_ / "p.csv"), expected);
  }
}

TEST_F(Classes, OfOneOutputAreWhetherItIsAboveZero) {
  expect_done(predict(identity(1), "1\n-1\n0\n-0.0\n1e-40\n-1e-40\n", "c.npy"));
  EXPECT_EQ(read_all(folder_ / "c.npy"), npy("<i8", 6, 1, std::vector<std::int64_t>{1, 0, 0, 0, 1, 0}));
  expect_done(predict(identity(1, Activation::tanh), "1\n-1\n0\n", "c.csv"));
  EXPECT_EQ(read_all(folder_ / "c.csv"), "1\n0\n0\n");
  for (const Activation activation : {Activation::sigmoid, Activation::softplus})
    expect_one_line(predict(identity(1, activation), "1\n", "d.npy"), 2,
                    {"--classes takes one output for log-odds", "output activation ", "is never below 0"});
  EXPECT_FALSE(std::filesystem::exists(folder_ / "d.npy"));
  expect_done(predict(identity(2, Activation::sigmoid), "1,2\n", "c.csv"));
  EXPECT_EQ(read_all(folder_ / "c.csv"), "1\n");
}

TEST_F(Classes, OfARowWithNanAreRefused) {
  // 1e38 + 1e38 - (1e38 + 1e38) and the like: infinity minus infinity.
  Trainer trainer({.widths = {2, 2, 2}, .activation = Activation::identity});
  const std::vector<float> large{2, 2, 2, 2}, difference{1, 0, -1, 1};
  trainer.write_weight(0, ConstMatrix(large.data(), 2, 2));
  trainer.write_weight(1, ConstMatrix(difference.data(), 2, 2));
  trainer.save_weights(folder_ / "nan.safetensors");
  const std::string rows = "1,2\n3e38,3e38\n";
  expect_one_line(
      predict(folder_ / "nan.safetensors", rows, "c.npy"), 2,
      {folder_ / "x.csv" + std::string(": row 1 has the output nan in column 0 (counted from 0)"), "--precision fp64"});
  EXPECT_FALSE(std::filesystem::exists(folder_ / "c.npy"));
  expect_done(predict(folder_ / "nan.safetensors", rows, "c.npy", {"--precision", "fp64"}));
}

TEST(Data, IsWhatTrainGenerates) {
  const Arguments shape = {"--layers", "6,5,2", "--bias"}, seed = {"--seed", "18446744073709551615"};
  const Arguments steps = {"--steps", "20", "--lr", "1e-3", "--quiet"};
  for (const std::string precision : {"fp32", "fp64"})
    for (const std::string init : {"normal", "he"}) {
      SCOPED_TRACE(precision + " " + init);
      TemporaryFolder folder;
      const Arguments as = {"--precision", precision};
      const Arguments files = {"--x", folder / "x.npy", "--y", folder / "y.npy", "--weights", folder / "w.safetensors"};
      const CommandResult written =
          run(Arguments{"data"} + shape + seed + files + Arguments{"--samples", "9", "--init", init} + as);
      expect_done(written);
      EXPECT_NE(written.out.find("9 x 6"), std::string::npos) << written.out;
      expect_done(run(Arguments{"train"} + shape + seed + steps + as +
                      Arguments{"--samples", "9", "--init", init, "--history", folder / "generated"}));
      expect_done(run(Arguments{"train"} + shape + steps + as + files + Arguments{"--history", folder / "read"}));
      EXPECT_EQ(losses_of(read_all(folder / "read")).size(), 20u);
      EXPECT_EQ(read_all(folder / "read"), read_all(folder / "generated"));
      // Numbers are drawn in double and rounded once, so that doubles read for fp32 are the same.
      if (precision == "fp64") {
        expect_done(run(Arguments{"train"} + shape + steps + files + Arguments{"--history", folder / "read"}));
        expect_done(run(Arguments{"train"} + shape + seed + steps +
                        Arguments{"--samples", "9", "--init", init, "--history", folder / "generated"}));
        EXPECT_EQ(read_all(folder / "read"), read_all(folder / "generated"));
      }
    }
}

TEST(Data, WritesOneFileToStandardOutput) {
  TemporaryFolder folder;
  const Arguments shape = {"data", "--layers", "3,1", "--samples", "4"};
  const CommandResult file = run(shape + Arguments{"--x", folder / "x.npy"});
  expect_done(file);
  EXPECT_EQ(folder.count(), 1);
  const CommandResult output = run(shape + Arguments{"--x", "-", "--quiet"});
  expect_done(output);
  EXPECT_EQ(output.out, read_all(folder / "x.npy"));
  expect_refused(shape + Arguments{"--x", "-", "--y", "-"}, {"--x", "--y", "'-'"});
  expect_refused(shape + Arguments{"--x", folder / "a", "--y", folder / "a"}, {"--x", "--y", folder / "a"});
}

TEST(Data, WritesTheOrderOfTheSamplesOfEachEpoch) {
  const TemporaryFolder folder;
  const std::string order = folder / "order.npy";
  const Arguments as = {"data", "--samples", "9", "--seed", "18446744073709551615", "--order"};
  const CommandResult result = run(as + Arguments{order, "--epochs", "4"});
  expect_done(result);
  EXPECT_EQ(result.out, order + ": 4 x 9, int64\n");
  const HostMatrix written = read_npy(order);
  ASSERT_EQ(written.rows, 4);
  ASSERT_EQ(written.columns, 9);
  const auto* values = static_cast<const double*>(written.view().data);
  for (std::int64_t epoch = 0; epoch < 4; ++epoch)
    for (std::int64_t index = 0; index < 9; ++index)
      EXPECT_EQ(values[epoch * 9 + index], static_cast<double>(sample_of(~std::uint64_t{0}, 9, epoch, index)));
  EXPECT_NE(read_all(order).find("'descr': '<i8'"), std::string::npos);

  // Nothing else has an influence on it, and without --epochs there is one.
  const CommandResult output =
      run(as + Arguments{"-", "--epochs", "4", "--layers", "3,1", "--precision", "fp64", "--quiet"});
  expect_done(output);
  EXPECT_EQ(output.out, read_all(order));
  expect_done(run(as + Arguments{order}));
  EXPECT_EQ(read_npy(order).rows, 1);
}

TEST(Data, RefusesAnOrderThatIsNone) {
  const TemporaryFolder folder;
  const Arguments as = {"data", "--order", folder / "o", "--samples"};
  for (const std::string bad : {"0", "-1", "x", "1.5", "9223372036854775808", ""}) {
    expect_refused(as + Arguments{bad}, {"--samples must", "'" + bad + "'"});
    expect_refused(as + Arguments{"4", "--epochs", bad}, {"--epochs must", "'" + bad + "'"});
  }
  expect_refused(as + Arguments{"4", "--x", folder / "o"}, {"--x", "--order", folder / "o", "same file"});
  EXPECT_EQ(folder.count(), 0);
}

TEST(Data, WritesTasksByName) {
  for (const Task& task : tasks())
    for (const std::string precision : {"fp32", "fp64"}) {
      SCOPED_TRACE(task.name + std::string(" ") + precision);
      const TemporaryFolder folder;
      const std::string x = folder / "x.npy", y = folder / "y.npy", data = folder / "d.npz";
      const Arguments rows = {"data",   "--task", task.name, "--samples",   "21",     "--first",
                              "100000", "--seed", "7",       "--precision", precision};
      const CommandResult result = run(rows + Arguments{"--x", x, "--y", y, "--data", data});
      expect_done(result);
      const std::string inputs = std::to_string(task.inputs);
      EXPECT_EQ(result.out, x + ": 21 x " + inputs + ", " + precision + "\n" + y + ": 21 x 1, " + precision + "\n" +
                                data + ": x of 21 x " + inputs + ", y of 21 x 1, " + precision + "\n");
      const ElementType type = precision == "fp32" ? ElementType::float32 : ElementType::float64;
      HostMatrix expected_x(type, 21, task.inputs), expected_y(type, 21, 1);
      task.fill_inputs(expected_x.view(), 7, 100000);
      task.fill_targets(expected_y.view(), 7, 100000);
      const Samples both = read_samples(data);
      const HostMatrix written_x = read_npy(x), written_y = read_npy(y);
      for (const HostMatrix* written : {&written_x, static_cast<const HostMatrix*>(&both.x)}) {
        EXPECT_EQ(written->type, type);
        EXPECT_EQ(written->columns, task.inputs);
        EXPECT_TRUE(written->bytes == expected_x.bytes);
      }
      for (const HostMatrix* written : {&written_y, static_cast<const HostMatrix*>(&both.y)})
        EXPECT_TRUE(written->bytes == expected_y.bytes);

      // Without --first, from row 0.
      const CommandResult output = run({"data", "--task", task.name, "--samples", "3", "--seed", "7", "--precision",
                                        precision, "--x", "-", "--quiet"});
      expect_done(output);
      HostMatrix from_0(type, 3, task.inputs);
      task.fill_inputs(from_0.view(), 7, 0);
      EXPECT_EQ(output.out.substr(output.out.size() - from_0.bytes.size()),
                std::string(reinterpret_cast<const char*>(from_0.bytes.data()), from_0.bytes.size()));
    }
}

TEST(Data, RefusesTasksThatAreNone) {
  const TemporaryFolder folder;
  const Arguments x = {"data", "--x", folder / "x.npy"};
  for (const std::string bad : {"mnist", "Digits", "digit", ""})
    expect_refused(x + Arguments{"--task", bad}, {"--task must be digits or friedman", "'" + bad + "'"});
  const Arguments digits = x + Arguments{"--task", "digits"};
  for (const Arguments& of_network : {Arguments{"--layers", "784,10"}, Arguments{"--bias"}, Arguments{"--init", "he"},
                                      Arguments{"--activation", "tanh"}, Arguments{"--weights", folder / "w"}})
    expect_refused(digits + of_network, {of_network.front() + " is for a network", "--task digits", "drop one"});
  expect_refused(x + Arguments{"--first", "5"}, {"--first '5'", "--task NAME"});
  for (const std::string bad : {"-1", "x", "1.5", "9223372036854775808", "9223372036854775804", ""})
    expect_refused(digits + Arguments{"--samples", "4", "--first", bad},
                   {"--first must be a whole number from 0 to 9223372036854775803", "'" + bad + "'"});
  expect_done(run(digits + Arguments{"--samples", "4", "--first", "9223372036854775803", "--quiet"}));
  for (const std::string samples : {"1000000000000", "9223372036854775807"})
    for (const std::string output : {"--x", "--data"})
      expect_refused({"data", "--task", "digits", "--samples", samples, output, folder / "o"},
                     {"--samples " + samples + " of width " + (output == "--x" ? "784" : "785"), "memory"});
  expect_refused({"data", "--task", "digits"}, {"nothing to write"});
  EXPECT_EQ(folder.count(), 1);
}

TEST(Predict, IsWhatTheTrainerPredicts) {
  for (const std::string precision : {"fp32", "fp64"}) {
    TemporaryFolder folder;
    const std::string weights = folder / "w.safetensors", x = folder / "x.npy", out = folder / "p.npy";
    expect_done(train({"--steps", "5", "--bias", "--save", weights, "--quiet"}));
    expect_done(run({"data", "--layers", "6,1", "--samples", "70", "--seed", "9", "--x", x}));
    const CommandResult result =
        run({"predict", "--weights", weights, "--x", x, "--out", out, "--precision", precision});
    expect_done(result);
    EXPECT_NE(result.out.find("70 x 2"), std::string::npos) << result.out;

    NetworkSpec network;
    network.widths = {6, 5, 2};
    network.bias = true;
    TrainingSpec training;
    training.precision = precision == "fp32" ? Precision::fp32 : Precision::fp64;
    Trainer trainer(network, training);
    trainer.load_weights(weights);
    const HostMatrix input = read_npy(x);
    HostMatrix expected(element_type(training.precision), 70, 2);
    trainer.predict(input.view(), expected.view());
    const HostMatrix predicted = read_npy(out);
    EXPECT_EQ(predicted.type, expected.type);
    EXPECT_EQ(predicted.rows, 70);
    EXPECT_EQ(predicted.columns, 2);
    EXPECT_EQ(predicted.bytes, expected.bytes);

    const CommandResult output =
        run({"predict", "--weights", weights, "--x", x, "--out", "-", "--precision", precision, "--quiet"});
    expect_done(output);
    EXPECT_EQ(output.out, read_all(out));
  }
}

TEST(Predict, RefusesBadInput) {
  TemporaryFolder folder;
  const std::string weights = folder / "w.safetensors", out = folder / "p.npy";
  expect_done(train({"--steps", "0", "--save", weights, "--quiet"}));
  const std::string x = folder.write("x.npy", counting_npy<float>(4, 7));
  const std::string nan = folder.write("nan.npy", npy<float>(1, 6, {1, 2, std::nanf(""), 4, 5, 6}));
  expect_refused({"predict", "--weights", weights, "--x", x, "--out", out},
                 {x, "7 columns", weights, "6 inputs; give it rows of that width, without the columns of the targets"});
  const std::string narrow = folder.write("narrow.csv", "1,2,3,4,5\n");
  expect_refused({"predict", "--weights", weights, "--x", narrow, "--out", out},
                 {narrow, "5 columns", "6 inputs; give it rows of that width\n"});
  expect_refused({"predict", "--weights", weights, "--x", nan, "--out", out}, {nan, "row 0", "column 2", "nan"});
  expect_refused({"predict", "--weights", x, "--x", x, "--out", out}, {x});
  expect_refused({"predict", "--weights", folder / "none", "--x", x, "--out", out}, {folder / "none"});
  // Its ending is the format of the file; without one it is .npy.
  for (const std::string& name : {folder / "p.txt", folder / "p.csv.gz", folder / "p.npz", folder / "p."})
    expect_refused({"predict", "--weights", weights, "--x", x, "--out", name},
                   {"--out must be the name of a file that ends in .npy or .csv, not '" + name});
  EXPECT_EQ(folder.count(), 4);
}

TEST(PlanCommand, ShowsEveryCandidateAndTheChoice) {
  const CommandResult result = run({"plan"});
  expect_done(result);
  EXPECT_TRUE(holds(result.out, "^--layers 1000,100,1, 128 samples$"));
  if (query_device_caps().gpus.empty()) {
    const std::vector<std::string> shown = lines(result.out);
    ASSERT_EQ(shown.size(), 7u) << result.out;
    EXPECT_TRUE(is_all(shown[1], "executor +verdict +memory +predicted us a step +floor +reason"));
    EXPECT_TRUE(is_all(shown[2], "persistent +refused +- +- +- +.+"));
    EXPECT_TRUE(is_all(shown[3], "fused +refused +- +- +- +.+"));
    EXPECT_TRUE(is_all(shown[4], "graph +refused +- +- +- +.+"));
    EXPECT_TRUE(is_all(shown[5], "cpu +accepted +[0-9.]+ MiB +[0-9.]+ +- +no GPU to use: .+")) << shown[5];
    EXPECT_TRUE(is_all(shown[6], "plan cpu: .+"));
    // The columns are aligned.
    EXPECT_EQ(shown[5].find("no GPU"), shown[1].find("reason"));
    EXPECT_EQ(shown[5].find("accepted"), shown[1].find("verdict"));
  }
}

TEST(PlanCommand, TakesTheOptionsOfTrainAndWritesNothing) {
  TemporaryFolder folder;
  const std::string x = folder.write("x.npy", counting_npy<float>(5, 6));
  const std::string y = folder.write("y.npy", counting_npy<float>(5, 2));
  const CommandResult result =
      run({"plan",   "--layers",   "6,5,2",     "--bias",    "--x",         x,      "--y",      y,     "--steps", "7",
           "--lr",   "1e-3",       "--threads", "2",         "--precision", "fp64", "--device", "cpu", "--plan",  "cpu",
           "--save", folder / "w", "--json",    folder / "j"});
  expect_done(result);
  EXPECT_NE(result.out.find("6,5,2 with biases, 5 samples"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("2 threads, fp64"), std::string::npos) << result.out;
  EXPECT_EQ(folder.count(), 2);
}

TEST(PlanCommand, NamesAPrecisionBelowFp32) {
  const CommandResult result = run({"plan", "--precision", "bf16", "--device", "cpu"});
  expect_done(result);
  EXPECT_TRUE(holds(result.out, "^plan cpu: the CPU was asked for \\(.+, bf16\\)$")) << result.out;
  expect_refused({"plan", "--precision", "tf32", "--formulation", "gram"},
                 {"'gram' is exact for products in fp32 and fp64", "tf32", "'primal'"});
}

TEST(Train, InAPrecisionBelowFp32KeepsItsFilesInFp32) {
  TemporaryFolder folder;
  const std::string weights = folder / "w.safetensors", x = folder / "x.npy", json = folder / "r.json";
  expect_done(run({"data", "--layers", "6,5,2", "--samples", "9", "--precision", "bf16", "--x", x}));
  for (const std::string precision : {"tf32", "tf32x3", "bf16", "fp16"}) {
    SCOPED_TRACE(precision);
    const Arguments in = {"--layers", "6,5,2", "--precision", precision};
    const CommandResult trained =
        run(Arguments{"train", "--samples", "9", "--steps", "3", "--save", weights, "--json", json} + in);
    expect_done(trained);
    EXPECT_TRUE(holds(trained.out, "^plan .*, " + precision + "\\)$")) << trained.out;
    EXPECT_EQ(nlohmann::json::parse(read_all(json))["precision"], precision);
    const SafeTensorsFile saved(weights);
    for (const SafeTensorInfo& tensor : saved.tensors()) EXPECT_EQ(tensor.dtype, "F32");
    expect_done(
        run(Arguments{"predict", "--weights", weights, "--x", x, "--out", folder / "p.npy", "--precision", precision}));
    EXPECT_EQ(trained.out.find("converted"), trained.out.npos) << trained.out;
  }
}

TEST(Info, TellsTheBuildAndTheMachine) {
  const CommandResult result = run({"info"});
  expect_done(result);
  for (const std::string& line :
       {std::string("deviceloop +") + DEVICELOOP_VERSION, std::string("build +.+"), std::string("GEMM +.+"),
        std::string("same bits +for any number of threads: (not )?verified"),
        std::string("threads +up to [0-9]+ cores?"), std::string("SIMD +.+"), std::string("memory +.+"),
        std::string("CUDA toolkit +.+"), std::string("devices? .+")})
    EXPECT_TRUE(holds(result.out, "^" + line + "$")) << line << "\n" << result.out;
}

TEST(Info, FailsWhereStandardOutputFails) {
  CommandSetup setup = command({"info"});
  setup.out_file = "/dev/full";
  expect_one_line(run_command(setup), 1, {"standard output"});
}

TEST(Data, WritesInputsAndTargetsIntoOneArchive) {
  const TemporaryFolder folder;
  const std::string x = folder / "x.npy", y = folder / "y.npy", data = folder / "d.npz";
  const Arguments shape = {"--layers", "6,5,2"};
  expect_done(run(Arguments{"data", "--samples", "9"} + shape + Arguments{"--x", x, "--y", y, "--data", data}));
  const Samples samples = read_samples(data);
  EXPECT_TRUE(samples.x.bytes == read_npy(x).bytes);
  EXPECT_TRUE(samples.y.bytes == read_npy(y).bytes);
  const auto losses = [&](const Arguments& files) {
    expect_done(run(Arguments{"train", "--steps", "3"} + shape + files + Arguments{"--history", folder / "h.csv"}));
    return bits(losses_of(read_all(folder / "h.csv")));
  };
  EXPECT_EQ(losses({"--data", data}), losses({"--x", x, "--y", y}));
  expect_refused(Arguments{"train"} + shape + Arguments{"--data", data, "--targets", "1"}, {data, "--targets"});
  expect_refused(Arguments{"train"} + shape + Arguments{"--x", data, "--y", y}, {data, "--data"});
  expect_refused({"train", "--data", data}, {data, "6 columns", "--layers 6,100,2"});
}

TEST(Data, WritesTextWhereTheNameSaysSo) {
  const TemporaryFolder folder;
  const std::string npz = folder / "d.npz", csv = folder / "d.CSV";
  // The same samples in both, whatever the widths and the precision; and classes are whole numbers.
  for (const auto& [options, inputs, targets] : {std::tuple{Arguments{"--layers", "6,5,2"}, "6", "2"},
                                                 {Arguments{"--task", "digits"}, "784", "1"},
                                                 {Arguments{"--task", "friedman", "--precision", "fp64"}, "10", "1"}}) {
    SCOPED_TRACE(options.at(1));
    const std::string precision = options.size() > 2 ? "fp64" : "fp32";
    expect_done(run(Arguments{"data", "--samples", "30", "--data", npz} + options));
    const CommandResult result = run(Arguments{"data", "--samples", "30", "--data", csv} + options);
    expect_done(result);
    EXPECT_EQ(result.out, csv + ": x of 30 x " + inputs + ", y of 30 x " + targets + ", " + precision + "\n");
    const Samples binary = read_samples(npz), text = read_samples(csv, {.targets = targets});
    for (const auto& [expected, got] : {std::pair{&binary.x, &text.x}, {&binary.y, &text.y}}) {
      HostMatrix converted(expected->type, got->rows, got->columns);
      convert(converted.view(), got->view());
      EXPECT_TRUE(converted.bytes == expected->bytes);
      EXPECT_EQ(got->header_line, 1);
    }
  }
  const std::string friedman = read_all(csv);
  EXPECT_EQ(friedman.substr(0, friedman.find('\n')), "x1,x2,x3,x4,x5,x6,x7,x8,x9,x10,y");
  expect_done(run({"data", "--samples", "1", "--task", "digits", "--data", csv, "--quiet"}));
  const std::string digit = read_all(csv);
  EXPECT_EQ(digit.substr(digit.size() - 3).find_first_not_of(",0123456789\n"), std::string::npos) << digit;
  EXPECT_EQ(digit[digit.size() - 3], ',') << "a class is one digit";
}

TEST(Data, RefusesAnEndingOfNoFormat) {
  const TemporaryFolder folder;
  expect_refused({"data", "--samples", "2", "--data", folder / "d.txt"},
                 {"--data must be the name of a file that ends in .npz or .csv, not '" + folder / "d.txt"});
  EXPECT_EQ(folder.count(), 0);
  for (const std::string& name :
       {std::string("/dev/null"), folder / "d", folder / "v.1/d", folder / ".d", folder / "d.NPZ"}) {
    std::filesystem::create_directories(folder / "v.1");
    expect_done(run({"data", "--samples", "2", "--data", name, "--quiet"}));
  }
  const std::string pipe = folder / "pipe.txt";
  EXPECT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread reader([&] { read_all(pipe); });
  expect_done(run({"data", "--samples", "2", "--data", pipe, "--quiet"}));
  reader.join();
}

/// A network of the inputs age, area and rooms, by their names in a file.
class NamedColumns : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string rows = "age,area,rooms,price\n";
    for (int row = 0; row < 8; ++row)
      rows += std::to_string(row % 3) + "," + std::to_string(5 + row) + "," + std::to_string(row % 5) + "," +
              std::to_string(row % 3 - 2 * row + 3 * (row % 5)) + "\n";
    data_ = folder_.write("d.csv", rows);
    expect_done(run(shape_ + Arguments{"--data", data_, "--targets", "price", "--save", weights_, "--steps", "20"}));
  }
  /// What the network predicts of a file, without its warnings.
  std::string predicted(const std::string& content, std::string* line = nullptr) {
    const std::string x = folder_.write("x.csv", content);
    const CommandResult result = run({"predict", "--weights", weights_, "--x", x, "--out", folder_ / "p.csv"});
    expect_done(result);
    if (line != nullptr) *line = lines(result.out).at(0);
    return read_all(folder_ / "p.csv");
  }

  const TemporaryFolder folder_;
  const std::string weights_ = folder_ / "w.safetensors";
  const Arguments shape_ = {"train",     "--layers", "3,4,1",  "--lr", "1e-3",
                            "--threads", "1",        "--plan", "cpu",  "--standardize"};
  std::string data_;
};

TEST_F(NamedColumns, ArePredictedInAnyOrder) {
  const std::string expected = predicted("1,7,2\n2,9,4\n");
  std::string line;
  EXPECT_EQ(predicted("age,area,rooms\n1,7,2\n2,9,4\n", &line), expected);
  EXPECT_EQ(line, "read 2 samples from " + folder_ / "x.csv" + " (line 1 is its header)");
  EXPECT_EQ(predicted("rooms,city,age,price,area\n2,south,1,NA,7\n4,\"a, b\",2,,9\n", &line), expected);
  EXPECT_EQ(line, "read 2 samples from " + folder_ / "x.csv" + " (line 1 is its header; left out: 'city' and 'price')");
  EXPECT_NE(predicted("7,1,2\n9,2,4\n"), expected) << "without names the columns have their places";
  const std::string wrong = folder_.write("wrong.csv", "age,Area,rooms\n1,7,2\n");
  expect_refused({"predict", "--weights", weights_, "--x", wrong, "--out", folder_ / "p.csv"},
                 {wrong + ": has no column named 'area', which is an input of the network; line 1 names 'age', 'Area' "
                          "and 'rooms' (did you mean 'Area'?)"});
}

TEST_F(NamedColumns, AreTrainedOnInAnyOrder) {
  const auto losses = [&](const std::string& content, const Arguments& options) {
    const CommandResult result = run(Arguments{"train", "--weights", weights_, "--lr", "1e-3", "--steps", "3",
                                               "--threads", "1", "--data", folder_.write("more.csv", content),
                                               "--history", folder_ / "h.csv", "--save", folder_ / "w2.safetensors"} +
                                     options);
    expect_done(result);
    EXPECT_EQ(read_saved_network(SafeTensorsFile(folder_ / "w2.safetensors")).input_names,
              (std::vector<std::string>{"age", "area", "rooms"}));
    return read_all(folder_ / "h.csv");
  };
  const std::string expected = losses("age,area,rooms,price\n1,7,2,3\n2,9,4,5\n", {"--targets", "price"});
  EXPECT_EQ(losses("price,rooms,city,area,age\n3,2,x,7,1\n5,4,y,9,2\n", {"--targets", "price"}), expected);
  EXPECT_EQ(losses("rooms,city,area,age,price\n2,x,7,1,3\n4,y,9,2,5\n", {"--targets", "1"}), expected);
  EXPECT_EQ(losses("1,7,2,3\n2,9,4,5\n", {"--targets", "1"}), expected) << "and the names stay in the file";
}

TEST_F(NamedColumns, AreValidatedByInAnyOrder) {
  const auto result = [&](const std::string& content, const Arguments& targets) {
    return run(shape_ +
               Arguments{"--steps", "3", "--data", data_, "--validate", folder_.write("v.csv", content), "--json",
                         folder_ / "r.json"} +
               targets);
  };
  const auto evaluations = [&](const std::string& content, const Arguments& targets) {
    expect_done(result(content, targets));
    const auto json = nlohmann::json::parse(read_all(folder_ / "r.json"));
    return json["validation"].dump();
  };
  const std::string expected = evaluations("age,area,rooms,price\n1,7,2,3\n2,9,4,5\n", {"--targets", "1"});
  EXPECT_NE(expected, "null");
  EXPECT_NE(evaluations("age,area,rooms,price\n1,7,2,3\n2,9,4,6\n", {"--targets", "1"}), expected);
  for (const Arguments& targets : {Arguments{"--targets", "1"}, Arguments{"--targets", "price"}}) {
    const std::string shuffled = "rooms,price,city,area,age\n2,3,x,7,1\n4,5,y,9,2\n";
    EXPECT_EQ(evaluations(shuffled, targets), expected);
    EXPECT_NE(result(shuffled, targets).out.find("of " + folder_ / "v.csv" + " (left out: 'city')\n"),
              std::string::npos);
    EXPECT_EQ(evaluations("1,7,2,3\n2,9,4,5\n", {"--targets", "1"}), expected);
  }
  const std::string x = folder_.write("tx.csv", "age,area,rooms\n1,7,2\n2,9,4\n"),
                    y = folder_.write("ty.csv", "p\n3\n5\n");
  const auto of_two = [&](const std::string& content) {
    expect_done(
        run(shape_ + Arguments{"--steps", "3", "--x", x, "--y", y, "--validate-x", folder_.write("vx.csv", content),
                               "--validate-y", folder_.write("vy.csv", "q\n3\n4\n"), "--json", folder_ / "r.json"}));
    return nlohmann::json::parse(read_all(folder_ / "r.json"))["validation"].dump();
  };
  EXPECT_EQ(of_two("rooms,age,id,area\n2,1,a,7\n4,2,b,9\n"), of_two("age,area,rooms\n1,7,2\n2,9,4\n"));
}

TEST_F(NamedColumns, SayWhichTargetsThereAre) {
  expect_refused(
      shape_ + Arguments{"--data", data_, "--targets", "prize"},
      {data_ + ": has no column named 'prize', which --targets asks for; line 1 names 'age', 'area', 'rooms' "
               "and 'price' (did you mean 'price'?)"});
}

TEST_F(NamedColumns, AreStandardizedWhereTheRunDiverged) {
  const auto diverged = [&](const Arguments& options) {
    return run(Arguments{"train", "--lr", "1e6", "--steps", "50", "--data", data_, "--targets", "1"} + options).err;
  };
  EXPECT_NE(diverged({"--layers", "3,4,1"}).find("; lower --lr, now 1e6, or add --standardize"), std::string::npos);
  for (const Arguments& options : {Arguments{"--layers", "3,4,1", "--standardize"}, Arguments{"--weights", weights_}}) {
    const std::string message = diverged(options);
    EXPECT_NE(message.find("; lower --lr, now 1e6"), std::string::npos) << message;
    EXPECT_EQ(message.find("add"), std::string::npos) << message;
  }
}

/// What train says of the same data in one file and in two.
TEST(Command, ReadsInputsAndTargetsFromOneFile) {
  const TemporaryFolder folder;
  const std::string x = folder.write("x.csv", "1,2\n3,4\n5,6\n"), y = folder.write("y.csv", "3\n7\n11\n");
  const std::string data = folder.write("d.csv", "a,sum,b\n1,3,2\n3,7,4\n5,11,6\n");
  const Arguments shape = {"--layers", "2,3,1", "--steps", "4", "--lr", "1e-3", "--plan", "cpu"};
  const auto losses = [&](const Arguments& files) {
    expect_done(run(Arguments{"train"} + shape + files + Arguments{"--history", folder / "h.csv"}));
    return losses_of(read_all(folder / "h.csv"));
  };
  const std::vector<double> expected = losses({"--x", x, "--y", y});
  EXPECT_EQ(expected.size(), 4u);
  EXPECT_EQ(bits(losses({"--data", data, "--targets", "sum"})), bits(expected));
  EXPECT_EQ(bits(losses({"--data", folder.write("e.csv", "1,2,3\n3,4,7\n5,6,11"), "--targets", "1"})), bits(expected));
  const CommandResult plan = run(Arguments{"plan"} + shape + Arguments{"--data", data, "--targets", "sum"});
  expect_done(plan);
  EXPECT_NE(plan.out.find("3 samples"), std::string::npos) << plan.out;
  expect_refused(Arguments{"train"} + shape + Arguments{"--data", data}, {data, "--targets"});
  expect_refused(Arguments{"train"} + shape + Arguments{"--data", data, "--targets", "2"}, {data, "--layers 1,3,2"});
  const std::string bad = folder.write("f.csv", "1,2,3\n3,nan,7\n");
  expect_refused(Arguments{"train"} + shape + Arguments{"--data", bad, "--targets", "1"},
                 {bad + ": x: row 1, column 1"});
}

}  // namespace
}  // namespace deviceloop::testing
