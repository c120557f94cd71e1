// deviceloop_bench: measures this library on this machine. Exit code 0: all is right; 1: a case failed, a file could
// not be written, or there is not the device asked for; 2: wrong usage; 3: a case that was named could not run.
#include <deviceloop/error.h>
#include <deviceloop/plan.h>
#include <deviceloop/version.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <ctime>
#include <fstream>
#include <iostream>
#include <limits>
#include <regex>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "../host/cpu/gemm.h"
#include "../host/cuda_entry.h"
#include "../host/files/same_file.h"
#include "../host/machine.h"
#include "cases.h"
#include "commit.h"
#include "gpu.h"
#include "limits.h"
#include "objective.h"
#include "runner.h"
#include "serve.h"

namespace deviceloop::bench {
namespace {

struct Options {
  bool list = false, limits = false, profile = false;
  std::string benchmark, device = "auto";
  std::vector<std::string> axes;
  int threads = 0;
  std::uint64_t seed = 0;
  RunOptions run;
};

/// Of a number as it is written. CLI11 alone takes -1 for the largest unsigned one, and nan to be in every range.
template <class T>
CLI::Validator number_from(T least, T most) {
  std::ostringstream range;
  range << "[" << least << " - " << most << "]";
  return CLI::Validator(
      [=, range = range.str()](const std::string& text) {
        T value{};
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        const bool is_number = error == std::errc() && end == text.data() + text.size();
        return is_number && value >= least && value <= most ? std::string() : text + " is no number in " + range;
      },
      "in " + range.str());
}

std::string processor_text() {
  const std::string name = processor_name();
  return name.empty() ? "unknown processor" : name;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &parts);
  return text;
}

nlohmann::json machine_json(const DeviceCaps& caps, const Options& options) {
  nlohmann::json machine = {{"date", today()},
                            {"version", DEVICELOOP_VERSION},
                            {"commit", DEVICELOOP_COMMIT},
                            {"build", DEVICELOOP_BUILD_TYPE},
                            {"processor", processor_text()},
                            {"cores", caps.cpu.cores},
                            {"threads", options.threads},
                            {"simd", simd_description()},
                            {"gemm", gemm_description()},
                            {"cuda_toolkit", cuda_toolkit()},
                            {"seed", options.seed}};
  if (caps.gpus.empty())
    machine["no_gpu"] = caps.no_gpu_reason;
  else
    machine["gpu"] = {{"name", caps.gpus[0].name},
                      {"compute_capability", caps.gpus[0].compute_capability},
                      {"multiprocessors", caps.gpus[0].multiprocessors},
                      {"memory_bytes", caps.gpus[0].memory_bytes}};
  return machine;
}

/// What repeats a case, but for its name.
std::string repeat_command(const std::string& program, const Options& options) {
  std::string command = program;
  for (const std::string& axis : options.axes) command += " --axis " + axis;
  if (options.threads != 0) command += " --threads " + std::to_string(options.threads);
  if (options.seed != 0) command += " --seed " + std::to_string(options.seed);
  return command;
}

void print_list(const std::vector<Case>& cases) {
  bool by_default = true;
  for (const Case& one : cases) {
    if (!one.refused.empty()) continue;
    if (by_default && !one.by_default) std::cout << '\n';
    by_default = one.by_default;
    std::cout << one.name << '\n';
  }
}

/// Whether a run that --budget cuts short should have it: the starting case on a GPU, and kernels on arrays of 1 GiB.
bool comes_first(const Case& one) {
  static const std::regex names(
      "^train/(graph|persistent)/1000-100-1/n=128/fp(32|64)(/gram)?$|"
      "^kernel/cuda/(relu|relu_gradient|squared_error)/n=(268435456/fp32|134217728/fp64)$");
  return std::regex_search(one.name, names);
}

int run(const std::string& program, Options options) {
  const auto json = identity_of(options.run.json), csv = identity_of(options.run.csv);
  if (!options.run.json.empty() && !options.run.csv.empty() && json && json == csv)
    throw UsageError("--json " + options.run.json + " and --csv " + options.run.csv +
                     " name the same file; give them different ones");
  DeviceCaps caps = options.device == "cpu" ? query_caps_for({DeviceKind::cpu, 0}) : query_device_caps();
  if (!caps.gpus.empty() && !caps.gpus[0].no_code_reason.empty()) {
    caps.no_gpu_reason = caps.gpus[0].no_code_reason;
    caps.gpus.clear();
  }
  if (options.device == "cuda" && caps.gpus.empty()) throw Unsupported("no GPU: " + caps.no_gpu_reason);

  CaseOptions case_options;
  case_options.caps = caps;
  case_options.threads = options.threads;
  case_options.seed = options.seed;
  std::vector<Block> blocks;
  const auto add = [&](std::vector<Block> more) { blocks.insert(blocks.end(), more.begin(), more.end()); };
  add(kernel_blocks(case_options));
  add(gemm_blocks(case_options));
  add(train_blocks(case_options));
  add(plan_blocks(case_options));
  if (!caps.gpus.empty()) add(gpu_blocks(caps.gpus[0], options.seed));

  AxisOptions axes;
  for (const std::string& text : options.axes) axes.push_back(parse_axis(text));
  std::vector<Case> cases = make_cases(blocks, axes);
  if (options.device == "cuda") std::erase_if(cases, [](const Case& one) { return one.device == Device::cpu; });
  const std::string no_gpu = caps.gpus.empty() ? "no GPU: " + caps.no_gpu_reason + "; these are the CPU's cases\n" : "";
  if (options.list) {
    print_list(cases);
    std::cerr << no_gpu;
    return 0;
  }

  std::vector<Case> selected = select_cases(cases, options.benchmark);
  // One that was not asked for and cannot run is not worth a line.
  if (options.benchmark.empty() && options.axes.empty()) {
    std::erase_if(selected, [](const Case& one) { return !one.refused.empty(); });
    std::stable_partition(selected.begin(), selected.end(), comes_first);
  }
  if (options.limits) selected.clear();
  if (selected.empty() && !options.limits)
    throw UsageError("no case matches; --list shows them" +
                     (caps.gpus.empty() ? ", and there is no GPU: " + caps.no_gpu_reason : ""));
  if (options.profile) {
    if (selected.size() != 1)
      throw UsageError("--profile takes one case, and " + std::to_string(selected.size()) +
                       " match; name it with --benchmark '^NAME$'");
    profile_case(selected[0], std::cout);
    return 0;
  }

  options.run.named = !options.benchmark.empty() || !options.axes.empty();
  options.run.command = repeat_command(program, options);
  options.run.machine = machine_json(caps, options);
  std::cout << "deviceloop_bench " << DEVICELOOP_VERSION << ", commit " << DEVICELOOP_COMMIT << ", " << today() << "; "
            << processor_text() << ", " << caps.cpu.cores << (caps.cpu.cores == 1 ? " core, " : " cores, ")
            << simd_description() << "\nGEMM: " << gemm_description() << '\n';
  std::cout << (caps.gpus.empty() ? no_gpu : caps.gpus[0].name + ", CUDA " + cuda_toolkit() + "\n");
  ThisMachine machine(options.threads == 0 ? caps.cpu.cores : options.threads);
  std::vector<Device> devices;
  if (options.limits) {
    if (options.device != "cuda") devices.push_back(Device::cpu);
    if (!caps.gpus.empty()) devices.push_back(Device::cuda);
  }
  return run_cases(selected, machine, options.run, std::cout, devices);
}

int parse_and_run(int argc, char** argv) {
  Options options;
  CLI::App app("Measures deviceloop on this machine, and holds every result against the reference.",
               "deviceloop_bench");
  app.set_version_flag("--version", std::string("deviceloop_bench ") + DEVICELOOP_VERSION);
  app.footer(
      "Exit code 0: all is right; 1: a case failed, or what was asked for is not here; 2: wrong usage; 3: a case that "
      "--benchmark or --axis named could not run here.");
  app.add_flag("--list", options.list, "list the cases; those after the empty line run only by --benchmark");
  app.add_option("--benchmark", options.benchmark, "run the cases whose name this regular expression is found in");
  app.add_option("--axis", options.axes,
                 "NAME=VALUE,...: these values instead of an axis's own; n=2^20 is a number too")
      ->expected(1)
      ->take_all();
  app.add_option("--device", options.device, "the cases of one device only: cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--json", options.run.json, "also write the results to this file");
  app.add_option("--csv", options.run.csv, "the same as comma-separated values");
  app.add_option("--min-samples", options.run.min_samples, "samples of a case, at least")
      ->check(number_from(1, 1000000))
      ->capture_default_str();
  app.add_option("--timeout", options.run.timeout_s,
                 "seconds of sampling a case, after which it has what it has; default: 10, of a GPU's case 0.7")
      ->check(number_from(0.0, 1e6));
  app.add_option("--budget", options.run.budget_s,
                 "seconds of all, after which no case begins and those left are listed as not run")
      ->check(number_from(0.0, 1e6));
  app.add_option("--threads", options.threads, "CPU threads of training; default: the planner's choice")
      ->check(number_from(1, kMaxThreads));
  app.add_option("--seed", options.seed, "of all random data")
      ->check(number_from(std::uint64_t{0}, std::numeric_limits<std::uint64_t>::max()))
      ->capture_default_str();
  app.add_flag("--limits", options.limits, "measure the limits alone");
  app.add_flag("--profile", options.profile, "run one case once, for a profiler: ncu --profile-from-start off ...");
  ServeOptions served;
  std::string precision, device;
  CLI::App* const serving = app.add_subcommand("serve", "train what bench/compare asks for, line by line, as a peer");
  serving->add_option("--data", served.data, "inputs and targets, FILE.npz")->required();
  serving->add_option("--weights", served.weights, "initial weights, FILE.safetensors")->required();
  serving->add_option("--steps", served.steps, "of a run")
      ->required()
      ->check(number_from(std::int64_t{1}, std::int64_t{1} << 40));
  serving->add_option("--rate", served.rate, "learning rate")->required()->check(number_from(0.0, 1e300));
  serving->add_option("--loss", served.loss, "what is minimized: the sum of squared errors, their mean, ...")
      ->check(CLI::IsMember(names_in(kLosses)))
      ->capture_default_str();
  serving->add_option("--optimizer", served.optimizer, "with PyTorch's defaults")
      ->check(CLI::IsMember(names_in(kOptimizers)))
      ->capture_default_str();
  serving->add_option("--batch-size", served.batch_size, "rows of a step, in the order that seed 0 draws; default: all")
      ->check(number_from(std::int64_t{1}, std::int64_t{1} << 40));
  serving->add_option("--precision", precision, "fp32, fp64, tf32, tf32x3 or bf16")
      ->required()
      ->check(CLI::IsMember({"fp32", "fp64", "tf32", "tf32x3", "bf16"}));
  serving->add_option("--device", device, "cpu or cuda")->required()->check(CLI::IsMember({"cpu", "cuda"}));
  serving->add_option("--threads", served.threads, "CPU threads")->required()->check(number_from(1, kMaxThreads));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (serving->parsed()) {
    for (const Precision each : {Precision::fp32, Precision::fp64, Precision::tf32, Precision::tf32x3, Precision::bf16})
      if (precision == deviceloop::name(each)) served.precision = each;
    served.device = device == "cpu" ? DeviceKind::cpu : DeviceKind::cuda;
    serve(served, std::cin, std::cout);
    return 0;
  }
  return run(argc > 0 ? argv[0] : "deviceloop_bench", options);
}

}  // namespace
}  // namespace deviceloop::bench

int main(int argc, char** argv) {
  try {
    return deviceloop::bench::parse_and_run(argc, argv);
  } catch (const deviceloop::bench::UsageError& error) {
    std::cerr << "deviceloop_bench: " << error.what() << '\n';
    return 2;
  } catch (const deviceloop::InvalidArgument& error) {
    std::cerr << "deviceloop_bench: " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "deviceloop_bench: " << error.what() << '\n';
    return 1;
  }
}
