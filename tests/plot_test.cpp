// The parts of the loss curve's picture: which points are drawn, and how gnuplot is run.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "cli/child_process.h"
#include "cli/plot.h"

namespace deviceloop::cli {
namespace {

using std::chrono::milliseconds;
using Points = std::vector<std::pair<std::int64_t, double>>;

Points points(const std::vector<double>& losses, std::size_t most) {
  Points result;
  for (const PlotPoint& point : plot_points(losses, most)) result.emplace_back(point.step, point.loss);
  return result;
}

TEST(PlotPoints, AreAllLossesWhereTheseAreFew) {
  EXPECT_EQ(points({}, 4), Points{});
  EXPECT_EQ(points({5}, 4), (Points{{0, 5}}));
  EXPECT_EQ(points({5, 3, 4, 1}, 4), (Points{{0, 5}, {1, 3}, {2, 4}, {3, 1}}));
}

TEST(PlotPoints, KeepTheEndsAndEverySpike) {
  std::vector<double> losses(100003);
  for (std::size_t i = 0; i < losses.size(); ++i) losses[i] = 1e6 / static_cast<double>(i + 1);
  const Points spikes = {{1, 1e9}, {777, 1e-9}, {40000, 1e8}, {40001, 1e-8}, {100001, 1e7}};
  for (const auto& [step, loss] : spikes) losses[static_cast<std::size_t>(step)] = loss;
  const Points drawn = points(losses, 2000);
  EXPECT_LE(drawn.size(), 2000u);
  EXPECT_GT(drawn.size(), 1900u);
  EXPECT_EQ(drawn.front(), (std::pair<std::int64_t, double>{0, 1e6}));
  EXPECT_EQ(drawn.back().first, 100002);
  for (const auto& spike : spikes) EXPECT_EQ(std::count(drawn.begin(), drawn.end(), spike), 1) << spike.first;
  for (std::size_t i = 1; i < drawn.size(); ++i) EXPECT_LT(drawn[i - 1].first, drawn[i].first);
  for (const auto& [step, loss] : drawn) EXPECT_EQ(loss, losses[static_cast<std::size_t>(step)]);
}

TEST(PlotPoints, AreFinite) {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(points({nan, 1, infinity, 2, -infinity}, 10), (Points{{1, 1}, {3, 2}}));
  EXPECT_EQ(points({nan, 1, infinity, 2, -infinity}, 4), (Points{{1, 1}, {3, 2}}));
  EXPECT_EQ(points(std::vector<double>(100, nan), 10), Points{});
  std::vector<double> losses(100, infinity);
  losses[50] = 7;
  EXPECT_EQ(points(losses, 10), (Points{{50, 7}}));
}

TEST(PlotScript, NamesTheFormulationWhereItIsNotPrimalOnly) {
  const std::vector<double> losses = {3, 2, 1};
  RunResult result;
  result.network.widths = {9, 8, 7, 6, 5, 4, 3, 2, 1};
  result.training.samples = 4;
  result.losses = losses;
  result.steps = 3;
  const std::string script = plot_script(PictureFormat::png, result);
  EXPECT_EQ(script, plot_script(PictureFormat::png, result));
  EXPECT_NE(script.find("9-8-7-6-...-3-2-1 on 4 samples"), std::string::npos) << script;
  EXPECT_NE(script.find("plan cpu, 1 thread, fp32, 3 steps'"), std::string::npos) << script;
  EXPECT_NE(script.find("set logscale y"), std::string::npos);
  result.plan.formulation = Formulation::gram;
  const std::string gram = plot_script(PictureFormat::png, result);
  EXPECT_NE(gram.find("plan cpu, 1 thread, fp32, gram, 3 steps'"), std::string::npos) << gram;
  const std::vector<double> with_zero = {3, 2, 0};
  result.losses = with_zero;
  EXPECT_EQ(plot_script(PictureFormat::png, result).find("logscale"), std::string::npos);
}

class RunProgram : public ::testing::Test {
 protected:
  void SetUp() override { before_ = std::signal(SIGPIPE, SIG_IGN); }
  void TearDown() override { std::signal(SIGPIPE, before_); }

  static ChildResult shell(const std::string& script, const std::string& input = "",
                           milliseconds limit = std::chrono::seconds(60), std::size_t most = 1 << 24) {
    return run_program("/bin/sh", {"-c", script}, input, limit, most);
  }

 private:
  void (*before_)(int) = SIG_DFL;
};

TEST_F(RunProgram, PassesMoreThanAPipeHoldsBothWays) {
  const std::string text(3000000, 'x');
  const ChildResult result = shell("cat; echo said >&2", text);
  EXPECT_EQ(result.failure, "");
  EXPECT_TRUE(result.out == text);
  EXPECT_EQ(result.err, "said\n");
}

TEST_F(RunProgram, TellsHowItEnded) {
  const std::string text(3000000, 'x');
  EXPECT_EQ(shell("exit 0", text).failure, "");
  EXPECT_EQ(shell("exit 7", text).failure, "exit code 7");
  EXPECT_EQ(shell("kill -9 $$", text).failure, "signal 9");
  EXPECT_EQ(shell("kill -13 $$").failure, "signal 13") << "SIGPIPE is ignored in the program too";
  EXPECT_THROW(run_program("/nonexistent/program", {}, "", milliseconds(1000)), Error);
}

TEST_F(RunProgram, EndsInTime) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(shell("sleep 100", "", milliseconds(200)).failure, "no end within 200 ms");
  EXPECT_EQ(shell("sleep 100 & exit 0", "", milliseconds(200)).failure, "") << "its own end is what counts";
  EXPECT_EQ(shell("exec >&- 2>&-; sleep 100", "", milliseconds(200)).failure, "no end within 200 ms");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

TEST_F(RunProgram, BoundsWhatItKeeps) {
  EXPECT_EQ(shell("yes", "", std::chrono::seconds(60), 1000).failure, "more than 1000 bytes of output");
  const ChildResult result = shell("head -c 100000 /dev/zero >&2");
  EXPECT_EQ(result.failure, "");
  EXPECT_EQ(result.err.size(), 4096u);
}

}  // namespace
}  // namespace deviceloop::cli
