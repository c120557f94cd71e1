// The page of a run: made from results that are written down here, so that runs which are rare or need a GPU are there
// too. tests/report_test.py looks at the pages of real runs.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/report_page.h"
#include "support/markup.h"

namespace deviceloop::cli {
namespace {

using testing::count_of;
using testing::markup_problem;

const char* const kHostile = "\"><script>alert(1)</script>&'\x01\xff.npy";

/// A run that went well, on a GPU.
struct Sample {
  std::vector<double> losses;
  RunResult result;
  ReportFacts facts;

  explicit Sample(std::vector<double> its_losses) : losses(std::move(its_losses)) {
    result.network.widths = {1000, 100, 1};
    result.training.samples = 128;
    result.plan.executor = ExecutorKind::persistent;
    result.plan.reason = "all data fit into registers & shared memory";
    result.plan.predicted_us_per_step = 5.3;
    result.plan.floor_us_per_step = 0.79;
    result.plan.candidates = {
        {ExecutorKind::persistent, true, "form <two-layer>", 1 << 20, 5.3, 0.79},
        {ExecutorKind::graph, true, "slower", 3 << 20, 24.1, 0.79},
        {ExecutorKind::cpu, true, "always", 1 << 20, 429, 0},
    };
    result.preparation = {{"devices", 5.5}, {"memory", 0.25}};
    result.steps = static_cast<std::int64_t>(losses.size());
    result.total_ms = 2.8;
    result.us_per_step = 5.61;
    facts.date = "2026-11-27 03:20 UTC";
    facts.steps_asked = result.steps;
    facts.settings = {{"Network", "--layers", "1000,100,1", "widths", false, false},
                      {"Network", "--x", kHostile, "inputs", true, false},
                      {"Training", "--lr", "1e-6", "learning rate", true, false},
                      {"Training", "--bias", "yes", "a bias", true, true},
                      {"Training", "--momentum", "", "sgd", false, false, "unused by gd"}};
    facts.system = {{"deviceloop", "0.1.0"}, {"device 0", "Some <GPU>"}};
  }

  std::string page() {
    result.losses = losses;
    const std::string text = report_page(result, facts);
    EXPECT_EQ(markup_problem(without_style_and_script(text)), "");
    return text;
  }

  /// Their contents are no markup, but no XML parser may stumble over them.
  static std::string without_style_and_script(std::string text) {
    for (const std::string name : {"style", "script"}) {
      const std::size_t begin = text.find('>', text.find("<" + name)) + 1, end = text.find("</" + name + ">");
      const std::string content = text.substr(begin, end - begin);
      EXPECT_EQ(content.find_first_of("<&"), std::string::npos) << name;
      EXPECT_EQ(count_of(text, "<" + name), 1);
      text.erase(begin, end - begin);
    }
    return text;
  }
};

bool holds(const std::string& page, const std::string& part) { return page.find(part) != std::string::npos; }

std::vector<double> falling(std::size_t count) {
  std::vector<double> losses;
  for (std::size_t i = 0; i < count; ++i) losses.push_back(1000.0 / static_cast<double>(i + 1));
  return losses;
}

nlohmann::json embedded(const std::string& page) {
  const std::size_t begin = page.find('>', page.find("<script")) + 1;
  return nlohmann::json::parse(page.substr(begin, page.find("</script>") - begin));
}

TEST(ReportPage, TellsARunThatWentWell) {
  Sample run(falling(500));
  const std::string page = run.page();
  for (const char* part :
       {"<title>1000-100-1 on 128 samples - deviceloop</title>", "Finished all 500 steps", "2026-11-27 03:20 UTC",
        "plan persistent", ">5.61 us</dd>", ">5.3 us</dd>", ">0.79 us</dd>", "measured / predicted 1.06",
        "measured / floor 7.10", "all data fit into registers &amp; shared memory", "Some &lt;GPU&gt;",
        "form &lt;two-layer&gt;", ">24.1</td>", ">429</td>", "1.0 MiB", ">devices</text>", ">5.5 ms</text>"})
    EXPECT_TRUE(holds(page, part)) << part;
  EXPECT_EQ(count_of(page, "chosen</span>"), 1);
  for (const char* executor : {"persistent", "graph", "cpu"})
    EXPECT_TRUE(holds(page, "<td class=\"name\">" + std::string(executor))) << executor;
  EXPECT_FALSE(holds(page, "Accuracy"));
  EXPECT_EQ(page, run.page());
}

TEST(ReportPage, RefersToNothingOutside) {
  const std::string page = Sample(falling(3)).page();
  for (const char* part : {"src=", "href=", "url(", "@import", "<link", "<iframe", "<object", "onload"})
    EXPECT_FALSE(holds(page, part)) << part;
  // Names, which nothing fetches.
  EXPECT_EQ(count_of(page, "http"), count_of(page, "xmlns=\"http://www.w3.org/"));
}

TEST(ReportPage, EscapesWhatComesFromOutside) {
  Sample run(falling(3));
  run.facts.input_lines = std::string("read 3 samples from ") + kHostile + "\n";
  run.facts.note_lines = std::string("note: ") + kHostile + "\n";
  run.facts.problem = kHostile;
  run.result.first_non_finite_step = 1;
  run.result.plan.reason = run.result.plan.candidates[0].reason = kHostile;
  run.result.algorithms = {kHostile};
  run.facts.system.emplace_back("processor", kHostile);
  const std::string page = run.page();
  EXPECT_FALSE(holds(page, "<script>"));
  EXPECT_FALSE(holds(page, "\x01"));
  EXPECT_FALSE(holds(page, "\xff"));
  EXPECT_GE(count_of(page, "&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#39;\\x01\\xff.npy"), 7);
  EXPECT_TRUE(holds(embedded(page).at("reason").get<std::string>(), "</script>"));
}

TEST(ReportPage, HasTheJsonOfTheRun) {
  Sample run(falling(7));
  run.result.plan.reason = "<!-- </script> & \" <";
  const std::string page = run.page();
  run.result.losses = run.losses;
  EXPECT_EQ(embedded(page), nlohmann::json::parse(run_json(run.result)));
  EXPECT_EQ(embedded(page).at("reason"), run.result.plan.reason);
  EXPECT_EQ(count_of(page, "</script>"), 1);
}

TEST(ReportPage, TellsHowARunEnded) {
  Sample diverged({3, 30, std::numeric_limits<double>::infinity(), std::nan("")});
  diverged.result.first_non_finite_step = 2;
  diverged.facts.problem = "lower --lr 1";
  diverged.facts.steps_asked = 500;
  const std::string page = diverged.page();
  for (const char* part : {"Diverged: the loss of step 2 is not finite", "lower --lr 1", "step 2: not finite</text>",
                           "Left out: 2 of 4 losses, infinite or nan.", ">nan</dd>"})
    EXPECT_TRUE(holds(page, part)) << part;
  EXPECT_FALSE(holds(page, "Finished"));

  Sample late(falling(20000));
  for (std::size_t step = 15432; step < late.losses.size(); ++step) late.losses[step] = std::nan("");
  late.result.first_non_finite_step = 15432;
  for (const char* step : {"15431", "15432", "19999"})
    EXPECT_EQ(count_of(late.page(), "<td class=\"number\">" + std::string(step) + "</td>"), 1) << step;

  Sample early(falling(40));
  early.facts.steps_asked = 500;
  early.result.end = EndOfRun::patience;
  early.result.training.watch.patience = 3;
  EXPECT_TRUE(holds(early.page(), "Ended early after 40 steps"));
  EXPECT_TRUE(holds(early.page(), "3 evaluations in a row"));
  early.result.end = EndOfRun::target_loss;
  early.result.training.watch.target_loss = 0.5;
  EXPECT_TRUE(holds(early.page(), "The target loss 0.5 was reached"));
  early.result.end = EndOfRun::callback;
  early.facts.interrupted = true;
  EXPECT_TRUE(holds(early.page(), "Interrupted by a signal after 40 steps of 500"));
}

TEST(ReportPage, TakesRunsOfNoStepAndOfOne) {
  Sample none({42});
  none.result.steps = none.facts.steps_asked = 0;
  none.result.us_per_step.reset();
  const std::string page = none.page();
  for (const char* part : {"The loss alone, without a step", "No step was done", ">42.00</dd>"})
    EXPECT_TRUE(holds(page, part)) << part;
  EXPECT_FALSE(holds(page, ">measured</text>"));
  EXPECT_TRUE(holds(page, ">predicted</text>"));

  const std::string one = Sample({42}).page();
  EXPECT_TRUE(holds(one, "Finished all 1 step<"));
  EXPECT_TRUE(holds(one, "One step was done"));
}

TEST(ReportPage, SaysWhatALogarithmicAxisCannotShow) {
  const std::string some = Sample({4, 1, 0, 0}).page();
  EXPECT_TRUE(holds(some, "Left out: 2 of 4 losses, not above 0"));
  const std::string none = Sample({0, 0, -1}).page();
  EXPECT_TRUE(holds(none, "No loss is above 0, so that the axis is linear."));
  EXPECT_FALSE(holds(none, "Left out"));
  const std::string nothing = Sample(std::vector<double>(3, std::nan(""))).page();
  EXPECT_TRUE(holds(nothing, "no loss is finite"));
}

TEST(ReportPage, ThinsLongRunsAndKeepsTheirExtremes) {
  std::vector<double> losses = falling(200000);
  for (std::size_t i = 0; i < losses.size(); i += 2) losses[i] *= 3;  // so that neighbours are drawn apart
  losses[77777] = 3e6;
  const std::string page = Sample(losses).page();
  EXPECT_TRUE(holds(page, "About 1000 of 200000 losses are drawn"));
  EXPECT_LT(page.size(), 120000u);
  const std::string path = page.substr(page.find(" d=\"M"));
  const int corners = count_of(path.substr(0, path.find("\"", 4)), "L") + 1;
  EXPECT_TRUE(corners > 500 && corners <= 1000) << corners;
  // The spike is the largest value: the axis covers it, and the curve reaches into its last decade.
  EXPECT_TRUE(holds(page, ">10⁷</text>") || holds(page, ">10⁸</text>") || holds(page, ">10⁹</text>"));
  EXPECT_EQ(Sample(losses).page(), Sample(losses).page());
  // Rows of the table: some of the shown steps, with the first and the last.
  EXPECT_TRUE(holds(page, "<td class=\"number\">0</td>"));
  EXPECT_TRUE(holds(page, "<td class=\"number\">199999</td>"));
  EXPECT_LT(count_of(page, "<td class=\"number\">"), 200);
}

TEST(ReportPage, HasValidationAndAccuracy) {
  Sample run(falling(30));
  run.result.training.loss = Loss::cross_entropy;
  run.result.training.watch.keep_best = true;
  run.result.validation_rows = 50;
  run.result.evaluations = {{10, 3, 0.5}, {20, 2, 0.875}, {30, 4, 0.75}};
  run.result.best = run.result.evaluations[1];
  const std::string page = run.page();
  for (const char* part : {"Validation by 50 samples", "87.50 %", "Accuracy", ">best validation</text>", ", kept",
                           "Losses are sums: each is over the samples of its step, or over all 50 validation samples."})
    EXPECT_TRUE(holds(page, part)) << part;
  EXPECT_EQ(count_of(page, "best</span>"), 1);
  EXPECT_EQ(embedded(page).at("validation").at("evaluations").size(), 3u);
  run.result.evaluations[2].loss = std::nan("");
  EXPECT_TRUE(holds(run.page(), "Left out: 1 of 3 validation losses, infinite or nan."));
}

TEST(ReportPage, MarksDefaultsAndTheCommand) {
  const std::string page = Sample(falling(3)).page();
  EXPECT_EQ(count_of(page, ">given</span>"), 3);
  EXPECT_EQ(count_of(page, ">default</span>"), 1);
  EXPECT_EQ(count_of(page, ">unused by gd</span>"), 1);
  EXPECT_TRUE(holds(page, "<pre>deviceloop train --x $&#39;&quot;"));
  EXPECT_TRUE(holds(page, "--lr 1e-6 --bias</pre>"));
}

TEST(ShellWord, QuotesWhatAShellWouldRead) {
  for (const auto& [text, word] :
       std::vector<std::pair<std::string, std::string>>{{"a-b_c.d/e,f:g=h+1@%", "a-b_c.d/e,f:g=h+1@%"},
                                                        {"", "''"},
                                                        {"a b", "'a b'"},
                                                        {"it's", "'it'\\''s'"},
                                                        {"$(x) `y` \\", "'$(x) `y` \\'"},
                                                        {"~", "'~'"},
                                                        {"é", "'é'"},
                                                        {"\xff'\\1", "$'\\377\\'\\\\1'"},
                                                        {"a\nb", "$'a\\012b'"}})
    EXPECT_EQ(shell_word(text), word);
}

TEST(CommandLine, JoinsValuesThatLookLikeOptions) {
  EXPECT_EQ(command_line({{"", "--scale", "-1", "", true, false}, {"", "--lr", "1", "", false, false}}),
            "deviceloop train --scale=-1");
}

}  // namespace
}  // namespace deviceloop::cli
