#include "network_metadata.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "../names.h"
#include "../text.h"
#include "json_text.h"

namespace deviceloop {
namespace {

constexpr std::uint64_t kVersion = 1;

/// Takes the text's JSON piece by piece, so that it is never held as a tree and both occurrences of a duplicate key are
/// seen. Every member returns whether to go on; where it is false, problem() says why.
class MetadataHandler {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  NetworkMetadata& metadata() { return metadata_; }
  const std::string& problem() const { return problem_; }

  bool null() { return unexpected("null"); }
  bool boolean(bool value) {
    if (!is_value_of(kBias)) return unexpected("a truth value");
    metadata_.network.bias = value;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) {
    if (is_value_of(kVersionField))
      return value == kVersion ? true
                               : refuse("has the version " + std::to_string(value) +
                                        ", and this deviceloop reads version " + std::to_string(kVersion));
    if (!is_element_of(kWidths)) return number(static_cast<double>(value));
    if (value < 1 || value > static_cast<number_unsigned_t>(kMaxWidth)) return unexpected(std::to_string(value));
    metadata_.network.widths.push_back(static_cast<std::int64_t>(value));
    return true;
  }
  bool number_integer(number_integer_t value) { return number(static_cast<double>(value)); }
  bool number_float(number_float_t value, const string_t&) { return number(value); }
  bool string(string_t& value) {
    if (is_element_of(kInputNames)) {
      metadata_.input_names.push_back(std::move(value));
      return true;
    }
    if (!is_value_of(kActivation) && !is_value_of(kOutputActivation)) return unexpected("a text");
    const std::optional<NamedActivation> activation = activation_named(value);
    if (!activation) return refuse("has the unknown " + std::string(field().name) + " " + in_quotes(value));
    NetworkSpec& network = metadata_.network;
    (field_ == kActivation ? network.activation : network.output_activation) = activation->kind;
    if (!activation->slope) return true;
    if (slope_ && *slope_ != *activation->slope) return refuse("has two slopes of leaky ReLU, and a network has one");
    slope_ = activation->slope;
    network.leaky_slope = *slope_;
    return true;
  }
  bool binary(binary_t&) { return unexpected("binary data"); }

  bool start_object(std::size_t) {
    if (place_ == Place::start)
      place_ = Place::network;
    else if (is_value_of(kScaling))
      place_ = Place::scaling;
    else if (is_value_of(kTargetScaling))
      place_ = Place::target_scaling;
    else
      return unexpected("an object");
    return true;
  }
  bool key(string_t& value) {
    field_ = 0;
    while (field_ < kFields.size() && (kFields[field_].place != place_ || value != kFields[field_].name)) ++field_;
    if (field_ == kFields.size()) return refuse("has the unknown key " + in_quotes(value));
    if (std::exchange(seen_[field_], true)) return refuse("has the key " + in_quotes(value) + " twice");
    return true;
  }
  bool end_object() {
    for (std::size_t i = 0; i < kFields.size(); ++i)
      if (kFields[i].place == place_ && kFields[i].is_required && !seen_[i])
        return refuse(std::string("has no ") + kFields[i].name);
    place_ = place_ == Place::network ? Place::end : Place::network;
    return true;
  }
  bool start_array(std::size_t) {
    for (const std::size_t list : {kWidths, kMean, kDeviation, kInputNames, kTargetMean, kTargetDeviation})
      if (is_value_of(list)) return in_list_ = true;
    return unexpected("a list");
  }
  bool end_array() {
    in_list_ = false;
    return true;
  }
  bool parse_error(std::size_t position, const std::string& token, const nlohmann::json::exception& error) {
    constexpr int kOutOfRange = 406;  // nlohmann-json's number of the error
    if (error.id == kOutOfRange) return unexpected(printable(token, 40) + ", which is too large,");
    return refuse("is not JSON from character " + std::to_string(position) + " on");
  }

 private:
  enum class Place { start, network, scaling, target_scaling, end };
  struct Field {
    Place place;
    const char* name;
    const char* type;  // for messages
    bool is_required;
  };
  // The order is that of kFields.
  enum : std::size_t {
    kVersionField,
    kWidths,
    kBias,
    kActivation,
    kOutputActivation,
    kScaling,
    kInputNames,
    kFactor,
    kMean,
    kDeviation,
    kTargetScaling,
    kTargetMean,
    kTargetDeviation
  };
  static constexpr std::array<Field, 13> kFields{{
      {Place::network, "version", "a whole number", true},
      {Place::network, "widths", "a list of whole numbers from 1 to 2147483647", true},
      {Place::network, "bias", "true or false", true},
      {Place::network, "activation", "a name", true},
      {Place::network, "output_activation", "a name", true},
      {Place::network, "input_scaling", "an object", false},
      {Place::network, "input_names", "a list of texts", false},
      {Place::scaling, "factor", "a finite number other than 0", true},
      {Place::scaling, "mean", "a list of finite numbers", false},
      {Place::scaling, "deviation", "a list of finite numbers above 0", false},
      {Place::network, "target_scaling", "an object", false},
      {Place::target_scaling, "mean", "a list of finite numbers", true},
      {Place::target_scaling, "deviation", "a list of finite numbers above 0", true},
  }};

  const Field& field() const { return kFields[field_]; }
  bool is_value_of(std::size_t number) const {
    return place_ == kFields[number].place && field_ == number && !in_list_;
  }
  bool is_element_of(std::size_t number) const { return field_ == number && in_list_; }

  bool number(double value) {
    InputScaling& scaling = place_ == Place::target_scaling ? metadata_.target_scaling : metadata_.scaling;
    if (is_element_of(kMean) || is_element_of(kTargetMean))
      scaling.mean.push_back(value);
    else if ((is_element_of(kDeviation) || is_element_of(kTargetDeviation)) && value > 0)
      scaling.deviation.push_back(value);
    else if (is_value_of(kFactor) && value != 0)
      scaling.factor = value;
    else
      return unexpected("the number " + nlohmann::json(value).dump());
    return true;
  }
  bool refuse(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }
  bool unexpected(const std::string& what) {
    if (place_ == Place::start || place_ == Place::end) return refuse("is not a JSON object");
    return refuse("has " + what + " in its " + field().name + ", which is " + field().type);
  }

  NetworkMetadata metadata_;
  std::string problem_;
  Place place_ = Place::start;
  std::size_t field_ = 0;  // by the last key
  std::optional<double> slope_{};
  bool in_list_ = false;
  std::array<bool, kFields.size()> seen_{};
};

/// What is wrong with the scaling of as many inputs or outputs; empty: nothing.
std::string scaling_problem(const InputScaling& scaling, std::int64_t width, const std::string& what) {
  const auto wanted = static_cast<std::size_t>(width);
  if (scaling.mean.size() != scaling.deviation.size() || (!scaling.mean.empty() && scaling.mean.size() != wanted))
    return "has " + std::to_string(scaling.mean.size()) + " numbers as mean and " +
           std::to_string(scaling.deviation.size()) + " as deviation, and the network has " + std::to_string(wanted) +
           " " + what + (wanted == 1 ? "" : "s");
  return "";
}

/// The same of the names of its inputs.
std::string names_problem(const NetworkMetadata& metadata) {
  const auto inputs = static_cast<std::size_t>(metadata.network.widths.front()), names = metadata.input_names.size();
  if (names == 0 || names == inputs) return "";
  return "has " + std::to_string(names) + " input_names, and the network has " + std::to_string(inputs) +
         (inputs == 1 ? " input" : " inputs");
}

}  // namespace

std::string network_metadata_text(const NetworkMetadata& metadata) {
  JsonObject object(JsonLayout::one_line);
  object.add("version", kVersion);
  object.add("widths", metadata.network.widths);
  object.add("bias", metadata.network.bias);
  object.add("activation", activation_text(metadata.network.activation, metadata.network.leaky_slope));
  object.add("output_activation", activation_text(metadata.network.output_activation, metadata.network.leaky_slope));
  if (!metadata.scaling.is_identity()) {
    JsonObject scaling(JsonLayout::one_line);
    scaling.add("factor", metadata.scaling.factor);
    if (!metadata.scaling.mean.empty()) {
      scaling.add("mean", metadata.scaling.mean);
      scaling.add("deviation", metadata.scaling.deviation);
    }
    object.add("input_scaling", scaling);
  }
  if (!metadata.target_scaling.is_identity()) {
    JsonObject scaling(JsonLayout::one_line);
    scaling.add("mean", metadata.target_scaling.mean);
    scaling.add("deviation", metadata.target_scaling.deviation);
    object.add("target_scaling", scaling);
  }
  if (!metadata.input_names.empty()) object.add("input_names", metadata.input_names);
  return object.text();
}

std::optional<NetworkMetadata> read_network_metadata(const SafeTensorsFile& file) {
  const auto found = file.metadata().find(kNetworkKey);
  if (found == file.metadata().end()) return std::nullopt;
  const std::string& text = found->second;
  // The JSON parser takes a NUL for the end of its input and would not see what follows.
  if (const auto nul = text.find('\0'); nul != std::string::npos)
    file.refuse(metadata_problem("is not JSON from character " + std::to_string(nul + 1) + " on"));
  MetadataHandler handler;
  if (!nlohmann::json::sax_parse(text, &handler)) file.refuse(metadata_problem(handler.problem()));
  NetworkMetadata& metadata = handler.metadata();
  if (metadata.network.widths.size() < 2)
    file.refuse(metadata_problem("has " + std::to_string(metadata.network.widths.size()) +
                                 " numbers in its widths, which begin with the inputs and end with the outputs"));
  const std::vector<std::int64_t>& widths = metadata.network.widths;
  for (const std::string& problem : {scaling_problem(metadata.scaling, widths.front(), "input"),
                                     scaling_problem(metadata.target_scaling, widths.back(), "output")})
    if (!problem.empty()) file.refuse(metadata_problem(problem));
  if (const std::string problem = names_problem(metadata); !problem.empty()) file.refuse(metadata_problem(problem));
  return std::move(metadata);
}

std::string metadata_problem(const std::string& problem) {
  return "its metadata " + in_quotes(kNetworkKey) + " " + problem +
         "; save the weights again, or without the metadata and with the options of the network";
}

}  // namespace deviceloop
