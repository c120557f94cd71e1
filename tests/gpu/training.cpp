// What a step of training takes, through the public headers alone, with its results checked in the same run; called by
// tests/gpu_check:
//
//     gpu_training [--device cuda|cpu] [--json FILE] [--repetitions N] [--small]
//     gpu_training --worker [--device cuda|cpu]
//
// Each case is trained again and again from the same weights. Every run must give the same losses, bit for bit, finite
// and falling, and the first ones must be those of the CPU's executor in fp64 on the same data. Where that would take
// long, the data are one block of rows many times over: with copies of a block, losses and gradients are that many
// times those of the block, so the CPU trains on the block alone at a rate that many times larger.
//
// A time is that of Trainer::train as a whole, by the wall clock, after a run that is not counted. Beside it stand what
// the plan predicted, the rate of the products' arithmetic, the CPU time of the thread that called, and the time from
// making the Trainer to its first loss.
//
// --device cpu and --small (small shapes, few steps) try the program itself. --worker is for tests/gpu/rivals.py: the
// starting case in fp32, a run for each line of standard input, answered by one line of JSON.
//
// Exits with 0 when every result was right, whether or not the bar is reached; with 1 when one was wrong; with 2 and
// one line where no GPU can be used.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/deviceloop.h>

namespace {

using namespace deviceloop;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---------------------------------------------------------------------------------------------------------------------
// JSON

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string number(std::int64_t value) { return std::to_string(value); }

std::string boolean(bool value) { return value ? "true" : "false"; }

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + '"';
}

std::string listed(const std::vector<std::string>& values) {
  std::string out;
  for (const std::string& value : values) out += (out.empty() ? "" : ",\n  ") + value;
  return "[" + out + "]";
}

class Object {
 public:
  void add(const std::string& name, const std::string& json) {
    text_ += (text_.empty() ? "" : ", ") + quoted(name) + ": " + json;
  }
  std::string json() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Time

class Stopwatch {
 public:
  double ms() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// What this thread has cost its processor so far.
struct ThreadCost {
  double user_ms = 0, system_ms = 0;
  std::int64_t voluntary_switches = 0;  ///< how often it went to sleep

  static ThreadCost now() {
    rusage usage{};
    getrusage(RUSAGE_THREAD, &usage);
    const auto ms = [](const timeval& time) {
      return 1e3 * static_cast<double>(time.tv_sec) + 1e-3 * static_cast<double>(time.tv_usec);
    };
    return {ms(usage.ru_utime), ms(usage.ru_stime), usage.ru_nvcsw};
  }
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// ---------------------------------------------------------------------------------------------------------------------
// The cases

struct Case {
  std::vector<std::int64_t> widths;
  std::int64_t samples;
  std::int64_t distinct;  ///< rows of the block that the samples repeat
  Precision precision;
  std::int64_t steps;
  std::int64_t checked_steps;  ///< of which the CPU repeats so many
  double rate;
  Init init;
  bool deterministic = true;
  double bar_us = 0;  ///< a step may take so long; 0: no bar
};

struct Options {
  std::string json;
  DeviceKind device = DeviceKind::cuda;
  int repetitions = 9;
  bool small = false;
  bool worker = false;
};

constexpr double kStartingCaseBarUs = 15;

Case starting_case(Precision precision, std::int64_t steps) {
  return {{1000, 100, 1}, 128, 128, precision, steps, std::min<std::int64_t>(steps, 50), 1e-6, Init::normal};
}

/// The rates are such that a loss falls in the checked steps by more than the tolerance, and does not diverge.
std::vector<Case> make_cases(bool small) {
  constexpr Precision fp32 = Precision::fp32, fp64 = Precision::fp64;
  const auto tuned = [](Case each) {
    each.deterministic = false;
    each.bar_us = 0;
    return each;
  };
  const auto live = [](std::vector<std::int64_t> widths, std::int64_t samples, std::int64_t distinct,
                       std::int64_t steps, double rate_times_samples) {
    return Case{std::move(widths),
                samples,
                distinct,
                fp32,
                steps,
                std::min<std::int64_t>(steps, 5),
                rate_times_samples / static_cast<double>(samples),
                Init::he};
  };
  Case start = starting_case(fp32, small ? 40 : 500);
  start.bar_us = kStartingCaseBarUs;
  const Case digits = live({784, 128, 10}, 64, 64, small ? 40 : 480, 0.003);
  const Case wide =
      small ? live({128, 128, 128, 10}, 64, 32, 5, 0.002) : live({1024, 1024, 1024, 10}, 1024, 1024, 192, 0.0003);
  const Case widest = small ? live({64, 64, 64, 64, 64}, 128, 16, 5, 0.0003)
                            : live({4096, 4096, 4096, 4096, 4096}, 8192, 256, 10, 0.0001);
  std::vector<Case> cases = {start,
                             starting_case(fp64, start.steps),
                             starting_case(fp32, small ? 80 : 20000),
                             starting_case(fp64, small ? 80 : 20000),
                             tuned(start),
                             digits,
                             tuned(digits)};
  for (const int power : {14, 16, 18, 20})
    cases.push_back(live({64, 64, 64, 1}, std::int64_t{1} << (small ? power - 6 : power), small ? 64 : 4096,
                         small        ? 8
                         : power < 17 ? 192
                         : power < 19 ? 96
                                      : 64,
                         0.002));
  for (const Case& each : {wide, tuned(wide), widest, tuned(widest)}) cases.push_back(each);
  return cases;
}

std::string name_of(const Case& each, const Options& options) {
  std::string name = std::string("train/") + (options.device == DeviceKind::cpu ? "cpu/" : "graph/");
  for (std::size_t i = 0; i < each.widths.size(); ++i) name += (i > 0 ? "-" : "") + std::to_string(each.widths[i]);
  name += "/n=" + std::to_string(each.samples) + "/" + deviceloop::name(each.precision);
  return name + "/steps=" + std::to_string(each.steps) + (each.deterministic ? "" : "/tuned");
}

/// Of the matrix products of a step: forward, weight gradients, and all but the first layer's input gradients.
double flop_of_a_step(const Case& each) {
  double flop = 0;
  for (std::size_t layer = 0; layer + 1 < each.widths.size(); ++layer)
    flop += (layer == 0 ? 4.0 : 6.0) * static_cast<double>(each.samples) * static_cast<double>(each.widths[layer]) *
            static_cast<double>(each.widths[layer + 1]);
  return flop;
}

constexpr std::uint64_t kSeed = 0;  // that of the command

template <class T>
struct Data {
  explicit Data(const Case& each)
      : inputs(each.widths.front()), outputs(each.widths.back()), rows(each.samples), distinct(each.distinct) {
    x = repeated(inputs, kTensorX);
    y = repeated(outputs, kTensorY);
  }
  std::vector<T> repeated(std::int64_t columns, std::uint32_t tensor) const {
    std::vector<T> values(static_cast<std::size_t>(rows * columns));
    fill_normal(Matrix(values.data(), distinct, columns), kSeed, tensor);
    const auto block = static_cast<std::size_t>(distinct * columns);
    for (std::size_t at = block; at < values.size(); at += block)
      std::memcpy(values.data() + at, values.data(), block * sizeof(T));
    return values;
  }
  void give_to(Trainer& trainer, std::int64_t count) const {
    trainer.set_data(ConstMatrix(x.data(), count, inputs), ConstMatrix(y.data(), count, outputs));
  }

  std::int64_t inputs, outputs, rows, distinct;
  std::vector<T> x, y;
};

template <class T>
using Weights = std::vector<std::vector<T>>;

template <class T>
Weights<T> read_weights(const Trainer& trainer) {
  Weights<T> weights;
  const NetworkSpec& network = trainer.network();
  for (int layer = 0; layer < network.layers(); ++layer) {
    weights.emplace_back(static_cast<std::size_t>(network.in_features(layer) * network.out_features(layer)));
    trainer.read_weight(layer, Matrix(weights.back().data(), network.in_features(layer), network.out_features(layer)));
  }
  return weights;
}

template <class T>
void write_weights(Trainer& trainer, const Weights<T>& weights) {
  const NetworkSpec& network = trainer.network();
  for (int layer = 0; layer < network.layers(); ++layer)
    trainer.write_weight(layer, ConstMatrix(weights[static_cast<std::size_t>(layer)].data(), network.in_features(layer),
                                            network.out_features(layer)));
}

Trainer make_trainer(const Case& each, DeviceKind device) {
  NetworkSpec network;
  network.widths = each.widths;
  TrainingSpec training;
  training.optimizer.learning_rate = each.rate;
  training.precision = each.precision;
  training.deterministic = each.deterministic;
  training.device.kind = device;
  training.seed = kSeed;
  return Trainer(network, training, device == DeviceKind::cpu ? ExecutorKind::cpu : ExecutorKind::graph);
}

// ---------------------------------------------------------------------------------------------------------------------
// Correctness

/// The losses of the first steps, by the CPU in fp64 from the same weights on the block that the data repeat.
template <class T>
std::vector<double> expected_losses(Case each, const Data<T>& data, const Weights<T>& weights) {
  const auto copies = static_cast<double>(each.samples / each.distinct);
  // The rate as the working precision has it.
  each.rate = static_cast<double>(static_cast<T>(each.rate)) * copies;
  each.precision = Precision::fp64;
  Trainer trainer = make_trainer(each, DeviceKind::cpu);
  data.give_to(trainer, each.distinct);
  write_weights(trainer, weights);
  std::vector<double> losses = trainer.train(each.checked_steps).losses;
  for (double& loss : losses) loss *= copies;
  return losses;
}

void expect_falling(const std::vector<double>& losses, std::int64_t steps) {
  if (static_cast<std::int64_t>(losses.size()) != steps)
    throw Failure("there are " + std::to_string(losses.size()) + " losses, not " + std::to_string(steps));
  for (std::size_t step = 0; step < losses.size(); ++step)
    if (!std::isfinite(losses[step])) throw Failure("the loss of step " + std::to_string(step) + " is not finite");
  if (!(losses.back() < losses.front()))
    throw Failure("the loss does not fall: " + number(losses.front()) + ", at the end " + number(losses.back()));
}

/// Throws where losses and those expected differ by more than the whole runs of the conformance tests may.
std::string checked_losses(const Case& each, const std::vector<double>& losses, const std::vector<double>& expected) {
  const double bound = each.precision == Precision::fp32 ? 1e-4 : 1e-10, first = expected.front();
  const double first_bound = each.precision == Precision::fp64 ? bound : each.init == Init::normal ? 1e-6 : 1e-5;
  double largest = 0;
  for (std::size_t step = 0; step < expected.size(); ++step) {
    const double error = std::abs(losses[step] - expected[step]) / std::max(expected[step], 1e-3 * first);
    largest = error > largest || std::isnan(error) ? error : largest;
  }
  const double at_first = std::abs(losses.front() - first) / first, fall = 1 - expected.back() / first;
  Object json;
  json.add("against", quoted("cpu, fp64"));
  json.add("steps", number(static_cast<std::int64_t>(expected.size())));
  json.add("rows", number(each.distinct));
  json.add("largest_error", number(largest));
  json.add("bound", number(bound));
  json.add("error_at_step_0", number(at_first));
  json.add("bound_at_step_0", number(first_bound));
  json.add("fall", number(fall));
  if (!(largest <= bound) || !(at_first <= first_bound)) throw Failure("the losses are not the CPU's: " + json.json());
  // Losses that hardly change would say nothing of the gradients.
  if (!(fall >= 100 * bound)) throw Failure("the losses fall too little to say something: " + json.json());
  return json.json();
}

// ---------------------------------------------------------------------------------------------------------------------
// A case

struct Row {
  Object json;
  bool right = false, bar_reached = true;
};

/// The CPU's losses of cases that differ in how they are run alone.
using Known = std::map<std::string, std::vector<double>>;

template <class T>
void measure(const Case& each, const Options& options, Known& known, Row& row) {
  const Data<T> data(each);

  Object first;
  const Stopwatch construction;
  Trainer trainer = make_trainer(each, options.device);
  const double made = construction.ms();
  if (each.init != Init::normal) trainer.initialize(kSeed, each.init);
  const double drawn = construction.ms();
  data.give_to(trainer, each.samples);
  const double given = construction.ms();
  const Weights<T> weights = read_weights<T>(trainer);
  const Stopwatch first_step;
  trainer.train(1);
  const double trained = first_step.ms();
  first.add("trainer_ms", number(made));
  first.add("initialize_ms", number(drawn - made));
  first.add("set_data_ms", number(given - drawn));
  first.add("train_1_ms", number(trained));
  first.add("to_first_loss_ms", number(given + trained));
  row.json.add("first", first.json());

  std::vector<double> set_data_ms;
  for (int i = 0; i < 3; ++i) {
    const Stopwatch time;
    data.give_to(trainer, each.samples);
    set_data_ms.push_back(time.ms());
  }
  row.json.add("set_data_ms", number(median(set_data_ms)));
  row.json.add("set_data_bytes", number(static_cast<std::int64_t>((data.x.size() + data.y.size()) * sizeof(T))));

  write_weights(trainer, weights);
  const TrainReport report = trainer.train(each.steps);
  expect_falling(report.losses, each.steps);
  row.json.add("loss_first", number(report.losses.front()));
  row.json.add("loss_last", number(report.losses.back()));

  std::vector<double> us;
  double user_ms = 0, system_ms = 0, wall_ms = 0;
  std::int64_t switches = 0;
  // More where they are short, so that a median is one of something.
  while (us.size() < static_cast<std::size_t>(options.repetitions) ||
         (!options.small && wall_ms < 500 && us.size() < 25)) {
    write_weights(trainer, weights);
    const ThreadCost before = ThreadCost::now();
    const Stopwatch time;
    const TrainReport again = trainer.train(each.steps);
    const double ms = time.ms();
    const ThreadCost after = ThreadCost::now();
    us.push_back(1e3 * ms / static_cast<double>(each.steps));
    wall_ms += ms;
    user_ms += after.user_ms - before.user_ms;
    system_ms += after.system_ms - before.system_ms;
    switches += after.voluntary_switches - before.voluntary_switches;
    if (again.losses.size() != report.losses.size() ||
        std::memcmp(again.losses.data(), report.losses.data(), report.losses.size() * sizeof(double)) != 0)
      throw Failure("run " + std::to_string(us.size()) + " from the same weights gives other losses");
  }
  const double median_us = median(us), gflop = flop_of_a_step(each) / 1e9;
  row.json.add("repetitions", number(static_cast<std::int64_t>(us.size())));
  row.json.add("us_per_step", number(median_us));
  row.json.add("us_per_step_minimum", number(*std::min_element(us.begin(), us.end())));
  row.json.add("predicted_us_per_step", number(report.plan.predicted_us_per_step));
  row.json.add("plan", quoted(name(report.plan.executor)));
  row.json.add("plan_bytes", number(static_cast<std::int64_t>(report.plan.bytes)));
  row.json.add("gflop_per_step", number(gflop));
  row.json.add("gflop_per_s", number(gflop / (median_us * 1e-6)));
  Object host;
  host.add("wall_ms", number(wall_ms));
  host.add("user_ms", number(user_ms));
  host.add("system_ms", number(system_ms));
  host.add("busy_share", number((user_ms + system_ms) / wall_ms));
  host.add("voluntary_switches", number(switches));
  row.json.add("calling_thread", host.json());
  std::vector<std::string> algorithms;
  for (const std::string& line : report.algorithms) algorithms.push_back(quoted(line));
  row.json.add("algorithms", listed(algorithms));
  if (each.bar_us > 0 && options.device == DeviceKind::cuda) {
    row.bar_reached = median_us <= each.bar_us;
    row.json.add("bar_us", number(each.bar_us));
    row.json.add("ok", boolean(row.bar_reached));
  }

  Case plain = each;
  plain.deterministic = true;
  std::vector<double>& expected = known[name_of(plain, options)];
  if (expected.empty()) expected = expected_losses(plain, data, weights);
  row.json.add("check", checked_losses(each, report.losses, expected));
  row.right = true;

  std::printf("%-52s %11.2f us a step, least %11.2f, predicted %11.2f, %9.1f GFLOP/s, first loss %7.1f ms%s\n",
              name_of(each, options).c_str(), median_us, *std::min_element(us.begin(), us.end()),
              report.plan.predicted_us_per_step, gflop / (median_us * 1e-6), given + trained,
              row.bar_reached ? "" : "  ABOVE THE BAR");
}

void write_file(const std::string& path, const std::string& text) {
  std::FILE* const file = std::fopen(path.c_str(), "w");
  if (file == nullptr) throw Failure("cannot write " + path);
  const bool written = std::fputs(text.c_str(), file) >= 0;
  if (std::fclose(file) != 0 || !written) throw Failure("cannot write " + path);
}

int run(const Options& options) {
  std::vector<std::string> rows;
  Known known;
  std::int64_t wrong = 0;
  bool bars_reached = true;
  for (const Case& each : make_cases(options.small)) {
    Row row;
    row.json.add("case", quoted(name_of(each, options)));
    row.json.add("steps", number(each.steps));
    row.json.add("learning_rate", number(each.rate));
    try {
      each.precision == Precision::fp32 ? measure<float>(each, options, known, row)
                                        : measure<double>(each, options, known, row);
    } catch (const std::exception& error) {
      row.json.add("wrong", quoted(error.what()));
      std::printf("%-52s WRONG: %s\n", name_of(each, options).c_str(), error.what());
    }
    std::fflush(stdout);
    row.json.add("right", boolean(row.right));
    wrong += row.right ? 0 : 1;
    bars_reached = bars_reached && row.bar_reached;
    rows.push_back(row.json.json());
    // After each case, so that a run that is ended leaves what it had.
    Object result;
    result.add("small", boolean(options.small));
    result.add("wrong", number(wrong));
    result.add("ok", boolean(wrong == 0 && bars_reached));
    result.add("rows", listed(rows));
    if (!options.json.empty()) write_file(options.json, result.json() + "\n");
  }
  if (wrong > 0) std::fprintf(stderr, "gpu_training: %lld cases were wrong\n", static_cast<long long>(wrong));
  return wrong > 0 ? 1 : 0;
}

int work(const Options& options) {
  const Case each = starting_case(Precision::fp32, 500);
  const Data<float> data(each);
  Trainer trainer = make_trainer(each, options.device);
  data.give_to(trainer, each.samples);
  const Weights<float> weights = read_weights<float>(trainer);
  trainer.train(each.steps);
  Object ready;
  ready.add("ready", quoted(name(trainer.plan().executor)));
  std::cout << ready.json() << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    write_weights(trainer, weights);
    const Stopwatch time;
    const TrainReport report = trainer.train(each.steps);
    Object answer;
    answer.add("us_per_step", number(1e3 * time.ms() / static_cast<double>(each.steps)));
    answer.add("loss_first", number(report.losses.front()));
    answer.add("loss_last", number(report.losses.back()));
    std::cout << answer.json() << std::endl;
  }
  return 0;
}

Options read_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == argc) throw Failure(name + " needs a value");
      return argv[++i];
    };
    if (name == "--small") {
      options.small = true;
    } else if (name == "--worker") {
      options.worker = true;
    } else if (name == "--json") {
      options.json = value();
    } else if (name == "--device") {
      const std::string device = value();
      if (device != "cuda" && device != "cpu") throw Failure("--device " + device + ": it is cuda or cpu");
      options.device = device == "cpu" ? DeviceKind::cpu : DeviceKind::cuda;
    } else if (name == "--repetitions") {
      const std::string text = value();
      options.repetitions = std::atoi(text.c_str());
      if (options.repetitions < 1) throw Failure("--repetitions " + text + ": give a number above 0");
    } else {
      throw Failure("unknown option " + name);
    }
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = read_options(argc, argv);
    if (options.device == DeviceKind::cuda) {
      const DeviceCaps caps = query_device_caps();
      if (caps.gpus.empty()) {
        std::fprintf(stderr, "gpu_training: no GPU can be used: %s\n", caps.no_gpu_reason.c_str());
        return 2;
      }
    }
    return options.worker ? work(options) : run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_training: %s\n", error.what());
  }
  return 1;
}
