#include "result.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <map>

namespace deviceloop::bench {
namespace {

using nlohmann::json;

template <class... Arguments>
std::string format(const char* pattern, Arguments... arguments) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, arguments...);
  return text;
}

/// Four digits and a prefix: "1.234 G".
std::string with_prefix(double value) {
  if (!(value > 0)) return "-";
  constexpr const char* kPrefixes[] = {" ", " k", " M", " G", " T", " P"};
  std::size_t prefix = 0;
  for (; value >= 999.95 && prefix + 1 < std::size(kPrefixes); ++prefix) value /= 1000;
  return format(value < 9.995 ? "%.2f%s" : value < 99.95 ? "%.1f%s" : "%.0f%s", value, kPrefixes[prefix]);
}

/// A name, as wide as the widest of the default ones.
std::string padded(std::string name) {
  constexpr std::size_t kWidth = 59;
  name.resize(std::max(name.size() + 1, kWidth), ' ');
  return name;
}

std::string or_dash(double value, const char* pattern) { return value > 0 ? format(pattern, value) : "-"; }

/// As in a table: few digits, of which each says something.
std::string us_text(double us) {
  return format(us < 10 ? "%.3f" : us < 1000 ? "%.2f" : us < 100000 ? "%.1f" : "%.0f", us);
}

/// At most six digits that count.
json rounded(double value) {
  if (!std::isfinite(value)) return nullptr;
  return json::parse(format("%.6g", value));
}
json rounded_or_null(double value) { return value > 0 ? rounded(value) : json(nullptr); }

json to_json(const Rate& rate) {
  json object = {{"device", name(rate.device)}, {"what", rate.what}};
  object["precision"] = rate.precision.empty() ? json(nullptr) : json(rate.precision);
  object["threads"] = rate.threads == 0 ? json(nullptr) : json(rate.threads);
  object["value"] = rounded(rate.value);
  object["unit"] = rate.unit;
  return object;
}

json to_json(const Result& result) {
  json object = {{"name", result.name}, {"device", name(result.device)}, {"axes", result.values}, {"ok", result.ok()}};
  object["error"] = result.ok() ? json(nullptr) : json(result.error);
  object["seconds"] = rounded(result.seconds);
  object["samples"] = result.samples;
  object["median_us"] = result.us ? rounded(result.us->median) : json(nullptr);
  object["minimum_us"] = result.us ? rounded(result.us->minimum) : json(nullptr);
  object["noise_percent"] = result.us ? rounded(result.us->noise_percent) : json(nullptr);
  object["elements_per_s"] = rounded_or_null(result.elements_per_s);
  object["gflop_per_s"] = rounded_or_null(result.gflops);
  object["gb_per_s"] = rounded_or_null(result.gb_per_s);
  object["percent_of_limit"] = result.percent_of_limit ? rounded(*result.percent_of_limit) : json(nullptr);
  object["limit"] =
      result.limit.us > 0 ? json{{"us", rounded(result.limit.us)}, {"by", result.limit.by}} : json(nullptr);
  object["launches_per_step"] = result.host_calls ? rounded(result.host_calls->launches) : json(nullptr);
  object["synchronizations_per_step"] =
      result.host_calls ? rounded(result.host_calls->synchronizations) : json(nullptr);
  object["repeat"] = result.repeat;
  object["details"] = result.details;
  return object;
}

std::string quoted_csv(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + '"';
}

}  // namespace

json Work::details() const { return json::object(); }  // here, because case.cpp knows no JSON

std::string rates_text(const std::vector<Rate>& rates) {
  // A line for each quantity, its precisions beside each other.
  std::vector<std::string> order;
  std::map<std::string, std::string> lines;
  for (const Rate& rate : rates) {
    std::string what = rate.what;
    if (rate.device == Device::cuda) what += ", GPU";
    if (rate.threads > 0) what += ", " + std::to_string(rate.threads) + (rate.threads == 1 ? " thread" : " threads");
    std::string& line = lines[what];
    if (line.empty()) order.push_back(what);
    const std::string precision = rate.precision.empty() ? "" : rate.precision + " ";
    line += (line.empty() ? "" : "   ") + precision + format("%8.1f ", rate.value) + rate.unit;
  }
  std::string text;
  for (const std::string& what : order) text += format("limit: %-34s ", what.c_str()) + lines[what] + "\n";
  return text;
}

std::string table_heading() {
  return padded("case") + format("%7s %12s %12s %6s %9s %9s %8s %8s  %-18s %8s %6s\n", "samples", "median us",
                                 "minimum us", "noise", "elem/s", "GFLOP/s", "GB/s", "% limit", "limit", "launches",
                                 "syncs");
}

std::string table_line(const Result& result) {
  std::string line = padded(result.name);
  if (!result.not_run.empty()) {
    line += "not run: " + result.not_run;
  } else if (!result.ok()) {
    line += "FAILED: " + result.error;
  } else {
    line += format("%7d %12s %12s %5.1f%% ", result.samples, us_text(result.us->median).c_str(),
                   us_text(result.us->minimum).c_str(), result.us->noise_percent);
    line += format("%9s %9s %8s ", with_prefix(result.elements_per_s).c_str(), or_dash(result.gflops, "%.1f").c_str(),
                   or_dash(result.gb_per_s, "%.1f").c_str());
    line += format("%8s  %-18s ", or_dash(result.percent_of_limit.value_or(0), "%.1f").c_str(),
                   result.limit.us > 0 ? result.limit.by.c_str() : "-");
    line += result.host_calls ? format("%8.3g %6.3g", result.host_calls->launches, result.host_calls->synchronizations)
                              : format("%8s %6s", "-", "-");
  }
  return line + "\n    " + result.repeat + "\n";
}

std::string total_line(const std::vector<Result>& results, double seconds) {
  const auto left =
      std::count_if(results.begin(), results.end(), [](const Result& one) { return !one.not_run.empty(); });
  const auto ran = static_cast<std::ptrdiff_t>(results.size()) - left;
  std::string line = format("%td %s in %.1f s", ran, ran == 1 ? "case" : "cases", seconds);
  if (left > 0) line += format("; %td not run", left);
  return line + "\n";
}

json document(const std::vector<Result>& results, const std::vector<Rate>& rates, const json& machine, double seconds) {
  json cases = json::array(), limits = json::array(), not_run = json::array();
  bool ok = true;
  for (const Rate& rate : rates) limits.push_back(to_json(rate));
  for (const Result& result : results) {
    ok = ok && result.ok();
    if (result.not_run.empty())
      cases.push_back(to_json(result));
    else
      not_run.push_back({{"name", result.name}, {"reason", result.not_run}});
  }
  return {{"ok", ok},       {"machine", machine}, {"limits", limits},
          {"cases", cases}, {"not_run", not_run}, {"seconds", rounded(seconds)}};
}

std::string to_csv(const std::vector<Result>& results) {
  std::string text =
      "name,device,ok,samples,median_us,minimum_us,noise_percent,elements_per_s,gflop_per_s,gb_per_s,"
      "percent_of_limit,limit,launches_per_step,synchronizations_per_step,error\n";
  for (const Result& result : results) {
    if (!result.not_run.empty()) continue;
    const json object = to_json(result);
    text += quoted_csv(result.name) + "," + name(result.device) + "," + (result.ok() ? "true" : "false") + "," +
            std::to_string(result.samples);
    for (const char* key :
         {"median_us", "minimum_us", "noise_percent", "elements_per_s", "gflop_per_s", "gb_per_s", "percent_of_limit"})
      text += "," + (object[key].is_null() ? "" : object[key].dump());
    text += "," + (result.limit.us > 0 ? quoted_csv(result.limit.by) : "");
    for (const char* key : {"launches_per_step", "synchronizations_per_step"})
      text += "," + (object[key].is_null() ? "" : object[key].dump());
    text += "," + (result.ok() ? "" : quoted_csv(result.error)) + "\n";
  }
  return text;
}

}  // namespace deviceloop::bench
