// deviceloop compare as its users see it: what it says of two runs whose differences are computed here as well.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <deviceloop/deviceloop.h>

#include "files/weights.h"
#include "parameters.h"
#include "support/run_command.h"
#include "support/temporary_folder.h"

namespace deviceloop::testing {
namespace {

using Arguments = std::vector<std::string>;
using Json = nlohmann::json;

/// A network without ReLUs, whose differences grow smoothly.
const Arguments kNetwork = {"--layers", "12,16,8,2", "--bias", "--activation", "tanh", "--init",
                            "xavier",   "--samples", "40"};
const NetworkSpec kNetworkSpec{.widths = {12, 16, 8, 2}, .activation = Activation::tanh, .bias = true};
const Arguments kSteps = {"--lr", "1e-3", "--steps", "300"};
/// A smaller one.
const Arguments kSmall = {"--layers", "6,5,2", "--samples", "9", "--lr", "1e-3", "--steps", "12"};

Arguments operator+(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

const Arguments kLive = kNetwork + kSteps;

CommandSetup command(const Arguments& arguments) {
  CommandSetup setup;
  setup.arguments = Arguments{DEVICELOOP_COMMAND} + arguments;
  return setup;
}
CommandResult run(const Arguments& arguments) { return run_command(command(arguments)); }
CommandResult compare(const std::string& a, const std::string& b, const Arguments& arguments) {
  return run(Arguments{"compare", "--a", a, "--b", b} + arguments);
}

/// The JSON of a comparison that ends with `exit_code`.
Json json_of(const std::string& a, const std::string& b, const Arguments& arguments, int exit_code = 0) {
  const CommandResult result = compare(a, b, arguments + Arguments{"--json", "-", "--quiet"});
  EXPECT_EQ(result.exit_code, exit_code) << result.err;
  return Json::parse(result.out);
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> result;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) result.push_back(line);
  return result;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Ends with `exit_code`, no text, and one line on standard error that holds all of `expected`.
void expect_refused(const Arguments& arguments, const std::vector<std::string>& expected, int exit_code = 2) {
  const CommandResult result = run(Arguments{"compare"} + arguments);
  EXPECT_EQ(result.exit_code, exit_code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_EQ(result.err.rfind("deviceloop: ", 0), 0u) << result.err;
  for (const std::string& part : expected) EXPECT_TRUE(has(result.err, part)) << part << " is not in: " << result.err;
}

/// A run of train, as its files have it.
struct TrainedRun {
  std::vector<double> losses;
  Parameters parameters;
};

/// Trains and reads back; parameters as doubles.
TrainedRun trained(const Arguments& arguments, const NetworkSpec& network) {
  const TemporaryFolder folder;
  const std::string history = folder / "h.csv", weights = folder / "w.safetensors";
  const CommandResult result = run(Arguments{"train", "--quiet", "--history", history, "--save", weights} + arguments);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  TrainedRun made;
  const std::vector<std::string> rows = lines(read_all(history));
  for (std::size_t i = 1; i < rows.size(); ++i)
    made.losses.push_back(std::strtod(rows[i].c_str() + rows[i].find(',') + 1, nullptr));
  made.parameters = read_weights(weights, network, ElementType::float64);
  return made;
}

const double* elements(const HostMatrix& matrix) { return static_cast<const double*>(matrix.view().data); }

/// What compare must say of two whole runs, computed in another way: in one pass and long double.
void expect_true(const Json& json, const TrainedRun& a, const TrainedRun& b, const std::vector<ParameterInfo>& layout) {
  const std::size_t steps = a.losses.size();
  ASSERT_EQ(json["steps"], steps);
  std::size_t first = steps, largest = 0;
  std::vector<double> differences(steps);
  for (std::size_t i = 0; i < steps; ++i) {
    if (a.losses[i] != b.losses[i] && first == steps) first = i;
    const long double least = 1e-3L * b.losses[0];
    differences[i] = static_cast<double>(std::fabs(static_cast<long double>(a.losses[i]) - b.losses[i]) /
                                         std::max<long double>(b.losses[i], least));
    if (differences[i] > differences[largest]) largest = i;
  }
  const Json& losses = json["losses"];
  ASSERT_LT(first, steps) << "these runs must differ";
  EXPECT_EQ(losses["first_different"]["step"], first);
  EXPECT_EQ(losses["first_different"]["a"], a.losses[first]);
  EXPECT_EQ(losses["first_different"]["b"], b.losses[first]);
  EXPECT_EQ(losses["largest"]["step"], largest);
  EXPECT_NEAR(losses["largest"]["difference"], differences[largest], 1e-12 * differences[largest]);
  std::size_t begin = 0;
  for (const Json& row : json["rows"]) {
    const std::size_t end = row["steps"];
    EXPECT_EQ(row["loss_a"], a.losses[end - 1]);
    EXPECT_EQ(row["loss_b"], b.losses[end - 1]);
    const double most = *std::max_element(differences.begin() + static_cast<std::ptrdiff_t>(begin),
                                          differences.begin() + static_cast<std::ptrdiff_t>(end));
    EXPECT_NEAR(row["loss_difference"], most, 1e-12 * most) << end;
    begin = end;
  }

  ASSERT_EQ(a.parameters.size(), layout.size());
  double most = 0, most_element = 0;
  std::string name, element_name;
  std::int64_t row = 0, column = 0;
  for (std::size_t index = 0; index < layout.size(); ++index) {
    const double *of_a = elements(a.parameters[index]), *of_b = elements(b.parameters[index]);
    long double square = 0, reference = 0;
    for (std::int64_t i = 0; i < layout[index].rows * layout[index].columns; ++i) {
      const double difference = of_a[i] - of_b[i];
      square += static_cast<long double>(difference) * difference;
      reference += static_cast<long double>(of_b[i]) * of_b[i];
      if (std::fabs(difference) <= most_element) continue;
      most_element = std::fabs(difference);
      element_name = layout[index].name;
      row = i / layout[index].columns;
      column = i % layout[index].columns;
    }
    const auto relative = static_cast<double>(std::sqrt(square / reference));
    if (relative <= most) continue;
    most = relative;
    name = layout[index].name;
  }
  const Json& last = json["rows"].back();
  EXPECT_EQ(last["steps"], steps);
  EXPECT_EQ(last["parameter"], name);
  EXPECT_NEAR(last["parameter_difference"], most, 1e-9 * most);
  EXPECT_GT(most, 0);
  const Json& element = json["parameters"]["largest_element"];
  EXPECT_EQ(element["name"], element_name);
  EXPECT_EQ(element["row"], row);
  EXPECT_EQ(element["column"], column);
  EXPECT_EQ(std::fabs(element["a"].get<double>() - element["b"].get<double>()), most_element);
}

/// The data and weights that kNetwork draws, in files.
Arguments files_of(const TemporaryFolder& folder, const std::string& precision) {
  const std::string x = folder / (precision + "x.npy"), y = folder / (precision + "y.npy"),
                    w = folder / (precision + "w.safetensors");
  const CommandResult made =
      run(Arguments{"data", "--precision", precision, "--x", x, "--y", y, "--weights", w} + kNetwork);
  EXPECT_EQ(made.exit_code, 0) << made.err;
  return Arguments{"--x", x, "--y", y, "--weights", w} + kSteps;
}

TEST(CompareCommand, SaysOfSingleAndDoublePrecisionWhatTheirRunsSay) {
  const TemporaryFolder folder;
  const Arguments files = files_of(folder, "fp32");
  const TrainedRun single = trained(files + Arguments{"--precision", "fp32"}, kNetworkSpec);
  const TrainedRun twice = trained(files + Arguments{"--precision", "fp64"}, kNetworkSpec);
  const std::vector<ParameterInfo> layout = parameter_layout(kNetworkSpec);
  EXPECT_LT(twice.losses.back(), 0.7 * twice.losses.front()) << "a run that does not learn shows little";

  // Drawn in each precision, the data of the two runs would differ.
  const Json drawn = json_of("fp32", "fp64", kLive);
  expect_true(drawn, single, twice, layout);
  EXPECT_EQ(drawn["holds"], true);
  EXPECT_EQ(drawn["losses"]["bound"], 1e-4);
  EXPECT_EQ(drawn["parameters"]["weight_bound"], 1e-5);
  // Files in double precision are rounded for both sides; the sides may be exchanged.
  expect_true(json_of("fp32", "fp64", files_of(folder, "fp64")), single, twice, layout);
  expect_true(json_of("fp64", "fp32", files_of(folder, "fp64")), twice, single, layout);
}

TEST(CompareCommand, ComparesAPrecisionBelowFp32) {
  for (const std::string precision : {"tf32", "tf32x3", "bf16"}) {
    SCOPED_TRACE(precision);
    const Json with_double = json_of(precision, "fp64", kLive);
    EXPECT_EQ(with_double["holds"], true);
    EXPECT_EQ(with_double["a"]["precision"], precision);
    EXPECT_GT(with_double["losses"]["largest"]["difference"].get<double>(), precision == "tf32x3" ? 0 : 1e-5);
    const CommandResult shown = compare(precision, "fp64", kLive);
    EXPECT_TRUE(has(shown.out, "data and initial weights are rounded to fp32 on both sides\n")) << shown.out;
    EXPECT_FALSE(has(compare("fp32", precision, kLive).out, "rounded to"));
  }
}

TEST(CompareCommand, ComparesWheneverAskedWithoutChangingTheRuns) {
  const Arguments options = kLive + Arguments{"--precision", "fp64"};
  const TrainedRun gram = trained(options + Arguments{"--formulation", "gram"}, kNetworkSpec);
  const TrainedRun primal = trained(options, kNetworkSpec);
  const std::vector<ParameterInfo> layout = parameter_layout(kNetworkSpec);
  for (const std::string every : {"0", "1", "7", "1000"}) {
    SCOPED_TRACE(every);
    const Json json = json_of("gram", "primal", options + Arguments{"--every", every});
    expect_true(json, gram, primal, layout);
    EXPECT_EQ(json["rows"].size(), every == "0" ? 9u : every == "1" ? 300u : every == "7" ? 43u : 1u);
    EXPECT_EQ(json["losses"]["bound"], 1e-10);
    EXPECT_EQ(json["parameters"]["weight_bound"], 1e-10);
    EXPECT_EQ(json["a"]["formulation"], "gram");
    EXPECT_EQ(json["b"]["formulation"], "primal");
  }
}

TEST(CompareCommand, ExceedsABoundThatIsTooSmall) {
  const Json fits = json_of("fp32", "fp64", kLive + Arguments{"--every", "1"});
  // Half of the largest difference, which some step before may have exceeded already.
  const double largest = fits["losses"]["largest"]["difference"], bound = largest / 2;
  std::int64_t step = 0;
  while (fits["rows"][static_cast<std::size_t>(step)]["loss_difference"] <= bound) ++step;
  ASSERT_GT(step, 0);
  std::ostringstream text;
  text.precision(17);
  text << bound;
  const CommandResult result = compare("fp32", "fp64", kLive + Arguments{"--loss-bound", text.str()});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.err.rfind("deviceloop: the losses differ by ", 0), 0u) << result.err;
  EXPECT_TRUE(has(result.err, ", exceeded first at step " + std::to_string(step) + "\n")) << result.err;
  EXPECT_TRUE(has(result.out, ": exceeded, first at step " + std::to_string(step) + "\n")) << result.out;
  EXPECT_TRUE(has(result.out, ", bound 1e-05: holds\n")) << result.out;
  EXPECT_EQ(lines(result.out).back(), "the bounds do not hold");
  const Json json = json_of("fp32", "fp64", kLive + Arguments{"--loss-bound", text.str()}, 1);
  EXPECT_EQ(json["holds"], false);
  EXPECT_EQ(json["losses"]["bound"], bound);
  EXPECT_EQ(json["losses"]["first_exceeded"]["step"], step);
  EXPECT_EQ(json["parameters"]["first_exceeded"], nullptr);

  // Of the parameters at the end; where they have been before is reported.
  std::size_t row = 0;
  while (fits["rows"][row]["parameter_difference"] <= 1e-8) ++row;
  const Json weights = json_of("fp32", "fp64", kLive + Arguments{"--every", "1", "--weight-bound", "1e-9"}, 1);
  EXPECT_EQ(weights["losses"]["first_exceeded"], nullptr);
  EXPECT_LE(weights["parameters"]["first_exceeded"]["steps"], fits["rows"][row]["steps"]);
  EXPECT_EQ(weights["parameters"]["end"]["steps"], 300);
  EXPECT_DOUBLE_EQ(weights["parameters"]["bias_bound"], 1e-8);
  const CommandResult exceeded = compare("fp32", "fp64", kLive + Arguments{"--weight-bound", "1e-10", "--quiet"});
  EXPECT_EQ(exceeded.exit_code, 1);
  EXPECT_EQ(exceeded.out, "");
  EXPECT_TRUE(has(exceeded.err, "the parameters differ by ") &&
              has(exceeded.err, " at the end, more than the bound ") &&
              has(exceeded.err, ", exceeded first after 1 step\n"))
      << exceeded.err;
}

void expect_same_bits(const Json& json, std::int64_t steps) {
  EXPECT_EQ(json["holds"], true);
  EXPECT_EQ(json["steps"], steps);
  EXPECT_EQ(json["losses"]["same_bits"], true);
  EXPECT_EQ(json["losses"]["first_different"], nullptr);
  EXPECT_EQ(json["losses"]["largest"]["difference"], 0);
  EXPECT_EQ(json["parameters"]["same_bits"], true);
  EXPECT_EQ(json["parameters"]["largest_element"], nullptr);
}

TEST(CompareCommand, FindsTheSameBitsInARerun) {
  const Json json = json_of("cpu", "cpu", kSmall + Arguments{"--loss-bound", "0", "--weight-bound", "0"});
  expect_same_bits(json, 12);
  EXPECT_EQ(json["rerun"], true);
  const CommandResult result = compare("cpu", "cpu", kSmall);
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_TRUE(has(result.out, "a rerun, of which the same bits are expected\n")) << result.out;
  EXPECT_TRUE(has(result.out, "losses: the same bits in all 12 steps\n")) << result.out;
  EXPECT_TRUE(has(result.out, "parameters: the same bits in all 5 comparisons\n")) << result.out;
  EXPECT_EQ(lines(result.out).back(), "all bounds hold");
}

TEST(CompareCommand, FindsTheSameBitsForAnyNumberOfThreads) {
  const Json json =
      json_of("threads=1", "threads=2",
              {"--layers", "40,30,1", "--samples", "300", "--init", "he", "--lr", "1e-5", "--steps", "20"});
  expect_same_bits(json, 20);
  EXPECT_EQ(json["rerun"], false);
  EXPECT_EQ(json["a"]["threads"], 1);
  EXPECT_EQ(json["b"]["threads"], 2);
}

TEST(CompareCommand, TakesBatchesAndOptimizers) {
  const Arguments options =
      kNetwork + Arguments{"--lr", "1e-3",   "--batch-size", "16",          "--epochs", "20",         "--optimizer",
                           "adam", "--loss", "huber",        "--reduction", "mean",     "--schedule", "cosine"};
  const Arguments twice = options + Arguments{"--precision", "fp64"};
  const Json json = json_of("fp32", "fp64", options);
  EXPECT_EQ(json["steps"], 50);
  // The reference is a run in double precision on other data, the same but for their rounding.
  const TrainedRun trained_twice = trained(twice, kNetworkSpec);
  const Json& last = json["rows"].back();
  EXPECT_NEAR(last["loss_b"], trained_twice.losses.back(), 1e-6 * trained_twice.losses.back());
  EXPECT_NE(last["loss_b"], trained_twice.losses.back());
  EXPECT_EQ(json_of("cpu", "threads=1", twice)["rows"].back()["loss_a"], trained_twice.losses.back());
}

TEST(CompareCommand, ReportsARunThatDiverges) {
  const Arguments options = {"--layers", "6,5,2", "--samples", "9", "--lr", "1", "--steps", "500"};
  const auto diverged_at = [&](const std::string& precision) {
    const TemporaryFolder folder;
    run(Arguments{"train", "--quiet", "--precision", precision, "--json", folder / "j"} + options);
    return Json::parse(read_all(folder / "j"))["first_non_finite_step"].get<std::int64_t>();
  };
  const std::int64_t single = diverged_at("fp32"), twice = diverged_at("fp64");
  ASSERT_LT(single, twice) << "fp32 has a smaller range";
  const Json json = json_of("fp32", "fp64", options + Arguments{"--every", "50"}, 1);
  EXPECT_EQ(json["a"]["first_non_finite_step"], single);
  EXPECT_EQ(json["b"]["first_non_finite_step"], twice);
  EXPECT_EQ(json["steps"], 50) << "it ends where they are compared next";
  EXPECT_EQ(json["losses"]["first_exceeded"]["step"], single);
  EXPECT_EQ(json["losses"]["largest"]["difference"], nullptr);
  EXPECT_EQ(json["holds"], false);

  const CommandResult result = compare("cpu", "cpu", options + Arguments{"--every", "50"});
  EXPECT_EQ(result.exit_code, 1) << "equal bits are no excuse";
  const std::string step = std::to_string(single) + " is not finite";
  EXPECT_EQ(result.err, "deviceloop: a diverged: its loss of step " + step + "; b diverged: its loss of step " + step +
                            "; lower --lr, now 1\n");
  EXPECT_TRUE(has(result.out, "\na diverged: its loss of step " + step + "\nb diverged: its loss of step " + step))
      << result.out;
  // Compared before b's losses overflow too.
  const Json one = json_of("fp32", "fp64", options + Arguments{"--every", std::to_string(single + 1)}, 1);
  EXPECT_EQ(one["a"]["first_non_finite_step"], single);
  EXPECT_EQ(one["b"]["first_non_finite_step"], nullptr);
}

TEST(CompareCommand, SaysTheSameInItsTextAndItsJson) {
  const TemporaryFolder folder;
  const CommandResult result = compare("cpu,fp32", "cpu,fp64,threads=1", kLive + Arguments{"--json", folder / "j"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  const Json json = Json::parse(read_all(folder / "j"));
  const std::vector<std::string> text = lines(result.out);
  const auto number = [](const char* pattern, double value) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, pattern, value);
    return std::string(buffer);
  };
  ASSERT_EQ(text.size(), 4 + json["rows"].size() + 8) << result.out;
  EXPECT_EQ(text[0], "data and initial weights are rounded to fp32 on both sides");
  EXPECT_EQ(text[1].rfind("a: plan cpu: ", 0), 0u);
  EXPECT_TRUE(has(text[1], ", fp32)")) << text[1];
  EXPECT_EQ(text[2].rfind("b: plan cpu: ", 0), 0u);
  EXPECT_TRUE(has(text[2], "(1 thread, fp64)")) << text[2];
  const std::vector<std::int64_t> borders = {1, 2, 5, 10, 20, 50, 100, 200, 300};
  for (std::size_t i = 0; i < borders.size(); ++i) {
    const Json& row = json["rows"][i];
    EXPECT_EQ(row["steps"], borders[i]);
    std::istringstream stream(text[4 + i]);
    std::string steps, loss_a, loss_b, losses, parameters, name;
    stream >> steps >> loss_a >> loss_b >> losses >> parameters >> name;
    EXPECT_EQ(steps, std::to_string(borders[i]));
    EXPECT_EQ(loss_a, number("%.9g", row["loss_a"]));
    EXPECT_EQ(loss_b, number("%.9g", row["loss_b"]));
    EXPECT_EQ(losses, number("%.2e", row["loss_difference"]));
    EXPECT_EQ(parameters, number("%.2e", row["parameter_difference"]));
    EXPECT_EQ(name, row["parameter"]);
    EXPECT_EQ(text[4 + i].find(losses) + losses.size(), text[3].find(" differ by") + 10) << "columns";
  }
  const Json &losses = json["losses"], &parameters = json["parameters"], &element = parameters["largest_element"];
  const auto exact = [&](const Json& value) { return number("%.17g", value); };
  const auto steps = [](const Json& value) { return value.dump() + (value == 1 ? " step" : " steps"); };
  std::size_t line = 4 + borders.size();
  EXPECT_EQ(text[line++], "losses: first different at step " + losses["first_different"]["step"].dump() + " (a " +
                              exact(losses["first_different"]["a"]) + ", b " + exact(losses["first_different"]["b"]) +
                              ")");
  EXPECT_EQ(text[line++], "losses: largest relative difference " + number("%.2e", losses["largest"]["difference"]) +
                              " at step " + losses["largest"]["step"].dump() + ", bound 0.0001: holds");
  EXPECT_EQ(text[line++], "parameters: first different after " + steps(parameters["first_different"]["steps"]) + " (" +
                              parameters["first_different"]["name"].get<std::string>() + ")");
  EXPECT_EQ(text[line++],
            "parameters: largest relative difference " + number("%.2e", parameters["largest"]["difference"]) + " (" +
                parameters["largest"]["name"].get<std::string>() + ") after " + steps(parameters["largest"]["steps"]));
  const bool is_bias = has(parameters["end"]["name"], "bias");
  EXPECT_EQ(text[line++], "parameters: at the end " + number("%.2e", parameters["end"]["difference"]) + " (" +
                              parameters["end"]["name"].get<std::string>() + "), bound " +
                              (is_bias ? "0.0001" : "1e-05") + ": holds");
  EXPECT_EQ(text[line++], "parameters: largest single difference there: " + element["name"].get<std::string>() + " [" +
                              element["row"].dump() + ", " + element["column"].dump() + "], a " + exact(element["a"]) +
                              ", b " + exact(element["b"]));
  EXPECT_EQ(text[line++], "a: " + number("%.2f us a step; b: ", json["a"]["us_per_step"]) +
                              number("%.2f us a step", json["b"]["us_per_step"]));
  EXPECT_EQ(text[line++], "all bounds hold");
}

TEST(CompareCommand, MarksTheTimeOfGram) {
  const CommandResult result = compare("gram", "cpu", kSmall + Arguments{"--reproject", "5"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::vector<std::string> text = lines(result.out);
  EXPECT_TRUE(has(text[0], "gram, reprojected every 5 steps)")) << text[0];
  EXPECT_FALSE(has(text[1], "gram") || has(text[1], "reprojected")) << text[1];
  EXPECT_TRUE(has(text[text.size() - 2], " us a step, gram; b: ")) << text[text.size() - 2];
}

TEST(CompareCommand, TakesWhatASideDoesNotNameFromTheOptions) {
  const Json json =
      json_of("fp32", "gram,threads=2", kSmall + Arguments{"--precision", "fp64", "--threads", "1", "--device", "cpu"});
  EXPECT_EQ(json["a"]["precision"], "fp32");
  EXPECT_EQ(json["a"]["formulation"], "primal");
  EXPECT_EQ(json["a"]["threads"], 1);
  EXPECT_EQ(json["b"]["precision"], "fp64");
  EXPECT_EQ(json["b"]["formulation"], "gram");
  EXPECT_EQ(json["b"]["threads"], 2);
  // cpu is a plan and a device, whatever the options say.
  EXPECT_EQ(json_of("cpu", "cpu", kSmall + Arguments{"--plan", "graph", "--device", "cuda"})["a"]["plan"], "cpu");
}

TEST(CompareCommand, RefusesWhatIsNoSide) {
  const auto refused = [](const std::string& side, const std::vector<std::string>& expected,
                          const Arguments& more = {}) {
    SCOPED_TRACE(side);
    expect_refused(Arguments{"--a", side, "--b", "cpu"} + more,
                   std::vector<std::string>{"--a '" + side + "': "} + expected);
    expect_refused(Arguments{"--a", "cpu", "--b", side} + more,
                   std::vector<std::string>{"--b '" + side + "': "} + expected);
  };
  const std::string known =
      "cpu, graph, persistent[:FORM], fused, cuda[:N], fp32, fp64, tf32, tf32x3, bf16, fp16, primal, gram and "
      "threads=N";
  refused("fp65", {"there is no 'fp65'", "(did you mean 'fp64'?)", known});
  refused("gramm", {"there is no 'gramm'", "(did you mean 'gram'?)", known});
  for (const std::string word : {"", "auto", "gpu", "cuda:-1", "cuda:", "persistent:warp", "CPU", " cpu"})
    refused(word, {"there is no '" + word + "'", known});
  refused("cpu,", {"there is no ''", known});
  refused("cpu,graph", {"'graph' names a second plan"});
  refused("cpu,cuda", {"'cuda' names a second device"});
  refused("cuda,cpu", {"'cpu' names a second device"});
  refused("fp32,gram,fp32", {"'fp32' names a second precision"});
  refused("primal,gram", {"'gram' names a second formulation"});
  refused("threads=1,threads=2", {"'threads=2' names a second threads"});
  for (const std::string number : {"", "x", "-1", "257", "1.5"})
    refused("threads=" + number, {"--threads must be a whole number from 0 to 256, not '" + number + "'"});
  refused("graph", {"--plan graph does not run on --device cpu"}, {"--device", "cpu"});
  refused("gram", {"--formulation gram does not train by --optimizer adam"}, {"--optimizer", "adam"});
  refused("gram", {"--formulation gram takes all samples in every step"}, {"--batch-size", "4"});
  refused("fp32", {"--lr must be 0 or at least 1.2e-38", "'1e-40'"}, {"--lr", "1e-40", "--precision", "fp64"});
}

TEST(CompareCommand, RefusesBadUsage) {
  const Arguments sides = {"--a", "cpu", "--b", "cpu"};
  for (const Arguments& missing : {Arguments{}, {"--a", "cpu"}, {"--b", "cpu"}})
    expect_refused(missing, {"two sides", "give --a and --b", "--a cuda --b cpu"});
  // A mistake of the options of the run is not one of a side.
  expect_refused(sides + Arguments{"--lr", "fast"}, {"deviceloop: --lr must be ", "'fast'"});
  expect_refused(sides + Arguments{"--reproject", "5"}, {"deviceloop: --reproject 5 belongs to --formulation gram"});
  expect_refused(sides + Arguments{"--steps", "0"}, {"--steps must be at least 1", "'0'"});
  expect_refused(sides + Arguments{"--every", "-1"}, {"--every must be a whole number", "'-1'"});
  expect_refused(sides + Arguments{"--loss-bound", "nan"}, {"--loss-bound must be a finite number", "'nan'"});
  expect_refused(sides + Arguments{"--weight-bound", "-1"}, {"--weight-bound must be a finite number", "'-1'"});
  for (const std::string option :
       {"--save", "--history", "--plot", "--keep", "--patience", "--target-loss", "--validate", "--keep-going"})
    expect_refused(sides + Arguments{option, "1"}, {"unknown option '" + option + "'", "compare --help"});
  expect_refused(sides + Arguments{"--loss", "bce"}, {"--loss bce has no targets among the generated ones"});
  expect_refused(sides + Arguments{"--layers", "100000000,1000000"}, {"--layers 100000000,1000000", "of memory"});
  expect_refused({"--a", "cpu", "--b", "fp64", "--x", "x.npy", "--y", "y.npy", "--json", "x.npy"},
                 {"--x x.npy and --json x.npy name the same file"});
  // What this machine lacks.
  expect_refused({"--a", "cpu", "--b", "cuda"}, {"CUDA device 0", "use the device 'cpu' or 'auto'"}, 1);
  expect_refused({"--a", "cpu", "--b", "graph"}, {"plan 'graph'", "use the plan 'cpu' or 'auto'"}, 1);
}

TEST(CompareCommand, RefusesDataThatTheLowerPrecisionCannotHold) {
  const TemporaryFolder folder;
  const std::string x = folder.write("x.csv", "1\n2\n1e300\n"), y = folder.write("y.csv", "1\n2\n3\n");
  const Arguments options = {"--layers", "1,2,1", "--steps", "2", "--x", x, "--y", y};
  expect_refused(Arguments{"--a", "fp32", "--b", "fp64"} + options, {x, "1e+300, which fp32 cannot hold"});
  expect_refused(Arguments{"--a", "fp64", "--b", "fp32"} + options, {x, "1e+300, which fp32 cannot hold"});
}

TEST(CompareCommand, ReadsWeightsOfNetworkAndSamplesAndScalesData) {
  const TemporaryFolder folder;
  const std::string w = folder / "w.safetensors", x = folder.write("x.csv", "100,200\n300,500\n700,100\n"),
                    y = folder.write("y.csv", "1\n2\n3\n"), s = folder.write("s.csv", "1\n0.5\n3\n");
  const Arguments data = {"--x", x, "--y", y, "--sample-weights", s, "--steps", "30", "--lr", "1e-3"};
  ASSERT_EQ(run(Arguments{"train", "--quiet", "--layers", "2,4,1", "--activation", "tanh", "--standardize",
                          "--standardize-targets", "--init", "xavier", "--save", w} +
                data)
                .exit_code,
            0);
  // The network, its activation and the scalings are those of the file.
  const Json json = json_of("fp64", "fp32", data + Arguments{"--weights", w});
  const TemporaryFolder history;
  ASSERT_EQ(run(Arguments{"train", "--quiet", "--weights", w, "--json", history / "j"} + data).exit_code, 0);
  const Json train = Json::parse(read_all(history / "j"));
  EXPECT_EQ(json["rows"][0]["loss_b"], train["loss_first"]);
  EXPECT_EQ(json["rows"].back()["loss_b"], train["loss_last"]);
  EXPECT_NE(json["rows"].back()["loss_a"], train["loss_last"]);
}

TEST(CompareCommand, WritesWhatItHasAfterASignal) {
  const TemporaryFolder folder;
  for (const int signal : {SIGINT, SIGTERM}) {
    RunningCommand running(
        command(Arguments{"compare", "--a", "fp32", "--b", "fp64", "--layers", "6,5,2", "--samples", "9", "--lr",
                          "1e-4", "--init", "he", "--steps", "10000000", "--every", "1000", "--json", folder / "j"}));
    running.wait_for_out("\n    2000 ");
    running.send(signal);
    const CommandResult result = running.finish();
    EXPECT_EQ(result.exit_code, 128 + signal) << result.err;
    const Json json = Json::parse(read_all(folder / "j"));
    const std::int64_t steps = json["steps"];
    EXPECT_GE(steps, 2000);
    EXPECT_EQ(steps % 1000, 0);
    EXPECT_EQ(json["rows"].back()["steps"], steps);
    EXPECT_EQ(result.err, "deviceloop: interrupted after " + std::to_string(steps) + " steps\n");
    EXPECT_EQ(lines(result.out).back(), "all bounds hold");
  }
}

}  // namespace
}  // namespace deviceloop::testing
