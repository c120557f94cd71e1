// Text that parsers of JSON take back for the values that it was made of; see files/json_text.h.
#include "files/json_text.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace deviceloop {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(JsonText, OfValuesIsReadBackAsThem) {
  using nlohmann::json;
  EXPECT_EQ(json::parse(json_text(true)), json(true));
  EXPECT_EQ(json::parse(json_text(std::int64_t{-5})), json(-5));
  EXPECT_EQ(json::parse(json_text(std::numeric_limits<std::uint64_t>::max())),
            json(std::numeric_limits<std::uint64_t>::max()));
  for (const double value : {0.1, 1.0, 1e-300, 5e-324, -1.7976931348623157e308, 0.30000000000000004}) {
    EXPECT_EQ(json::parse(json_text(value)).get<double>(), value);
    EXPECT_TRUE(json::parse(json_text(value)).is_number_float()) << json_text(value);
  }
  const std::string text(
      "a \"quoted\" \\ line\n\t\x01 gr\xc3\xb6\xc3\x9f"
      "e\0end",
      33);
  EXPECT_EQ(json::parse(json_text(text)), json(text));
  EXPECT_EQ(json_text(std::vector<std::int64_t>{1, 2}), "[1,2]");
  EXPECT_EQ(json_text(std::vector<std::string>{"a", "b"}), R"(["a","b"])");
}

TEST(JsonText, IsNullOfWhatJsonCannotSay) {
  for (const double value : {kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN()})
    EXPECT_EQ(json_text(value), "null");
  EXPECT_EQ(json_text(std::optional<double>()), "null");
  EXPECT_EQ(json_text(std::optional(2.5)), "2.5");
}

TEST(JsonText, HasNoByteThatIsNotUtf8) {
  const std::string text =
      json_text(std::string("gr\xf6\xdf"
                            "e"));
  EXPECT_TRUE(nlohmann::json::accept(text));
  EXPECT_EQ(text,
            "\"gr\xef\xbf\xbd\xef\xbf\xbd"
            "e\"");
}

TEST(JsonText, HoldsMembersInTheirOrder) {
  JsonObject object(JsonLayout::one_line);
  object.add("b", 1);
  object.add("a", "x");
  EXPECT_EQ(object.text(), R"({"b":1,"a":"x"})");
}

TEST(JsonText, IndentsWhatIsInside) {
  JsonObject point(JsonLayout::lines);
  point.add("x", 1);
  point.add("name", "a\nb");
  JsonList points(JsonLayout::lines);
  points.add(point);
  points.add(point);
  JsonObject object(JsonLayout::lines);
  object.add("points", points);
  object.add("none", JsonList(JsonLayout::lines));
  object.add("best", std::optional<JsonObject>());
  EXPECT_EQ(object.text(), R"({
  "points": [
    {
      "x": 1,
      "name": "a\nb"
    },
    {
      "x": 1,
      "name": "a\nb"
    }
  ],
  "none": [],
  "best": null
})");
}

}  // namespace
}  // namespace deviceloop
