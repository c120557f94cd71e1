#include "runner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ostream>

#include "../host/files/output_file.h"
#include "gpu.h"

namespace deviceloop::bench {
namespace {

using Clock = std::chrono::steady_clock;

// A sample is so long that reading the clock does not count, and a case that is short takes so many.
constexpr double kSampleUs = 300;
constexpr double kSamplingUs = 150000, kGpuSamplingUs = 100000;
constexpr double kWarmUpUs = 20000;
constexpr const char* kNoTimeLeft = "no time left of --budget";

void write_file(const std::string& path, const std::string& text) {
  OutputFile file(path);
  file.write(text);
  file.commit();
}

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

/// Runs the work until it is warm, and returns how many calls a sample takes.
std::int64_t warm_up(Work& work, double timeout_us) {
  if (!work.repeats()) return 1;  // the run that was checked has warmed it up
  std::int64_t calls = 1;
  const Clock::time_point start = Clock::now();
  for (;;) {
    const Clock::time_point begin = Clock::now();
    work.run(calls);
    const double us = us_since(begin);
    const bool is_warm = us_since(start) > std::min(kWarmUpUs, timeout_us);
    if (us >= kSampleUs && is_warm) return calls;
    if (us < kSampleUs)
      calls = std::max(calls + 1, static_cast<std::int64_t>(1.1 * kSampleUs / (us + 0.1) * static_cast<double>(calls)));
  }
}

std::vector<double> take_samples(Work& work, Device device, const RunOptions& options) {
  const double timeout_us = 1e6 * options.timeout_s.value_or(device == Device::cuda ? kGpuTimeoutS : kTimeoutS);
  const Clock::time_point start = Clock::now();
  const std::int64_t calls = warm_up(work, timeout_us);
  const double sampling_us = device == Device::cuda ? kGpuSamplingUs : kSamplingUs;
  std::vector<double> samples;
  const Clock::time_point sampling = Clock::now();
  do {
    samples.push_back(work.run(calls));
  } while (us_since(start) < timeout_us &&
           (samples.size() < static_cast<std::size_t>(options.min_samples) || us_since(sampling) < sampling_us));
  return samples;
}

}  // namespace

Result run_case(const Case& one, Machine& machine, const RunOptions& options) {
  const Clock::time_point start = Clock::now();
  Result result;
  result.name = one.name;
  result.device = one.device;
  result.values = one.values;
  // Names hold nothing that a regular expression or a shell reads otherwise.
  result.repeat = options.command + " --benchmark '^" + one.name + "$'";
  if (!one.refused.empty()) {
    result.not_run = one.refused;
    return result;
  }
  try {
    const std::unique_ptr<Work> work = one.prepare();
    work->poison();
    work->run(1);
    work->check();
    const Demand demand = work->demand();
    machine.limit(demand);
    const std::vector<double> samples = take_samples(*work, one.device, options);
    work->check();
    result.limit = machine.limit(demand);

    result.samples = static_cast<int>(samples.size());
    result.us = summarize(samples);
    const double us = result.us->median;
    result.elements_per_s = 1e6 * demand.elements / us;
    result.gflops = demand.flops / us / 1e3;
    result.gb_per_s = demand.bytes / us / 1e3;
    if (result.limit.us > 0) result.percent_of_limit = 100 * result.limit.us / us;
    result.host_calls = work->host_calls();
    result.details = work->details();
  } catch (const NotHere& reason) {
    result.not_run = reason.what();
  } catch (const std::bad_alloc&) {
    result.not_run = "it takes more memory than is free";
  } catch (const std::exception& error) {
    result.error = error.what();
  }
  result.seconds = 1e-6 * us_since(start);
  return result;
}

int run_cases(const std::vector<Case>& cases, Machine& machine, const RunOptions& options, std::ostream& out,
              std::vector<Device> devices) {
  const Clock::time_point start = Clock::now();
  const auto seconds = [&] { return 1e-6 * us_since(start); };
  std::vector<Rate> rates;
  std::vector<Result> results;
  const auto write = [&] {
    if (!options.json.empty())
      write_file(options.json, document(results, rates, options.machine, seconds()).dump(1) + "\n");
    if (!options.csv.empty()) write_file(options.csv, to_csv(results));
  };
  write();  // a path that cannot be written is known before minutes of work
  for (const Case& one : cases)
    if (one.refused.empty()) devices.push_back(one.device);
  for (const Device device : {Device::cpu, Device::cuda})
    if (std::find(devices.begin(), devices.end(), device) != devices.end())
      for (const Rate& rate : machine.rates(device)) rates.push_back(rate);
  out << rates_text(rates) << std::flush;
  write();
  if (cases.empty()) return 0;
  out << '\n' << table_heading() << std::flush;
  for (const Case& one : cases) {
    Case next = one;
    if (next.refused.empty() && options.budget_s && seconds() >= *options.budget_s) next.refused = kNoTimeLeft;
    results.push_back(run_case(next, machine, options));
    out << table_line(results.back()) << std::flush;
    write();
  }
  out << total_line(results, seconds());
  const auto failed = std::count_if(results.begin(), results.end(), [](const Result& result) { return !result.ok(); });
  if (failed > 0) out << failed << (failed == 1 ? " case failed\n" : " cases failed\n");
  const auto not_run =
      std::count_if(results.begin(), results.end(), [](const Result& result) { return !result.not_run.empty(); });
  if (not_run > 0) out << not_run << (not_run == 1 ? " case was not run\n" : " cases were not run\n");
  if (failed > 0) return 1;
  return not_run > 0 && options.named ? 3 : 0;
}

void profile_case(const Case& one, std::ostream& out) {
  if (!one.refused.empty()) throw UsageError(one.name + ": " + one.refused);
  const std::unique_ptr<Work> work = one.prepare();
  work->run(1);
  if (one.device == Device::cuda) start_profiler();
  work->run(1);
  if (one.device == Device::cuda) stop_profiler();
  out << one.name << ": ran once\n";
}

}  // namespace deviceloop::bench
