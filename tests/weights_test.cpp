// Weights files: PyTorch's names and shapes on one side, the library's matrices on the other.
#include "files/weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <deviceloop/trainer.h>

#include "files/network_metadata.h"
#include "files/safetensors.h"
#include "support/refusal.h"
#include "support/temporary_folder.h"

namespace deviceloop {
namespace {

using testing::read_all;
using testing::refusal;
using testing::TemporaryFolder;

template <class T>
SafeTensor tensor(const std::string& name, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  SafeTensor result{name, sizeof(T) == 4 ? "F32" : "F64", std::move(shape), {}};
  result.bytes.resize(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(result.bytes.data(), values.data(), result.bytes.size());
  return result;
}

/// A tensor of ones.
SafeTensor ones(const std::string& name, const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
  return tensor(name, shape, std::vector<float>(count, 1.0f));
}

SafeTensor half(const std::string& name, const std::vector<std::int64_t>& shape, const std::string& dtype) {
  SafeTensor result = ones(name, shape);
  result.dtype = dtype;
  result.bytes.resize(result.bytes.size() / 2);
  return result;
}

NetworkSpec network(std::vector<std::int64_t> widths, bool bias = false) {
  NetworkSpec spec;
  spec.widths = std::move(widths);
  spec.bias = bias;
  return spec;
}

template <class T>
T value(const HostMatrix& matrix, std::int64_t row, std::int64_t column) {
  EXPECT_EQ(matrix.type, element_type_of<T>());
  T result;
  std::memcpy(&result, matrix.bytes.data() + static_cast<std::size_t>(row * matrix.columns + column) * sizeof(T),
              sizeof(T));
  return result;
}

class Weights : public ::testing::Test {
 protected:
  std::string write(const std::vector<SafeTensor>& tensors,
                    const SafeTensorsMetadata& metadata = {{"format", "pt"}}) const {
    OutputFile file(folder_ / "weights.safetensors");
    write_safetensors(file, tensors, metadata);
    file.commit();
    return file.path();
  }
  std::string network_refused(const std::vector<SafeTensor>& tensors) const {
    const std::string path = write(tensors);
    const std::string message = refusal(path + ": ", [&] { read_network(path); });
    // What is no network at all is refused in the same words, whichever network is wanted.
    EXPECT_EQ(message, refusal(path + ": ", [&] { read_weights(path, network({3, 2, 1}), ElementType::float32); }));
    EXPECT_MENTIONS(message, "; ");
    return message;
  }
  std::string refused(const std::vector<SafeTensor>& tensors, const NetworkSpec& wanted,
                      ElementType type = ElementType::float32) const {
    const std::string path = write(tensors);
    EXPECT_NO_THROW(read_network(path));
    const std::string message = refusal(path + ": ", [&] { read_weights(path, wanted, type); });
    EXPECT_MENTIONS(message, "; ");
    return message;
  }
  const TemporaryFolder folder_;
};

TEST_F(Weights, AreTransposedOnTheWayIn) {
  const std::string path =
      write({tensor<float>("0.weight", {2, 3}, {1, 2, 3, 4, 5, 6}), tensor<float>("0.bias", {2}, {7, 8}),
             tensor<float>("2.weight", {1, 2}, {9, 10}), tensor<float>("2.bias", {1}, {11})});
  const NetworkSpec spec = read_network(path);
  EXPECT_EQ(spec.widths, (std::vector<std::int64_t>{3, 2, 1}));
  EXPECT_TRUE(spec.bias);
  EXPECT_EQ(spec.activation, Activation::relu);

  const Parameters parameters = read_weights(path, spec, ElementType::float32);
  ASSERT_EQ(parameters.size(), 4u);
  EXPECT_EQ(parameters[0].rows, 3);
  EXPECT_EQ(parameters[0].columns, 2);
  for (int in = 0; in < 3; ++in)
    for (int out = 0; out < 2; ++out)
      EXPECT_EQ(value<float>(parameters[0], in, out), static_cast<float>(out * 3 + in + 1));
  EXPECT_EQ(parameters[1].rows, 1);
  EXPECT_EQ(parameters[1].columns, 2);
  EXPECT_EQ(value<float>(parameters[1], 0, 1), 8);
  EXPECT_EQ(parameters[2].rows, 2);
  EXPECT_EQ(value<float>(parameters[2], 1, 0), 10);
  EXPECT_EQ(value<float>(parameters[3], 0, 0), 11);
}

TEST_F(Weights, AreConverted) {
  const std::string path =
      write({tensor<double>("0.weight", {1, 2}, {0.1, 1e-50}), tensor<float>("0.bias", {1}, {0.1f})});
  const Parameters single = read_weights(path, network({2, 1}, true), ElementType::float32);
  EXPECT_EQ(value<float>(single[0], 0, 0), 0.1f);
  EXPECT_EQ(value<float>(single[0], 1, 0), 0.0f);
  const Parameters twice = read_weights(path, network({2, 1}, true), ElementType::float64);
  EXPECT_EQ(value<double>(twice[0], 0, 0), 0.1);
  EXPECT_EQ(value<double>(twice[0], 1, 0), 1e-50);
  EXPECT_EQ(value<double>(twice[1], 0, 0), static_cast<double>(0.1f));
}

TEST_F(Weights, AreReadBackBitForBit) {
  for (const ElementType type : {ElementType::float32, ElementType::float64}) {
    for (const bool bias : {false, true}) {
      const NetworkSpec spec = network({131, 70, 5, 33}, bias);  // sizes that are no multiples of the copy's tiles
      Parameters parameters;
      double next = 0.1;
      for (const ParameterInfo& info : parameter_layout(spec)) {
        HostMatrix& matrix = parameters.emplace_back(type, info.rows, info.columns);
        for (std::int64_t i = 0; i < info.rows * info.columns; ++i) {
          next = 3.7 * next * (1 - next);  // the logistic map: never the same twice
          const auto single = static_cast<float>(next);
          std::memcpy(matrix.bytes.data() + static_cast<std::size_t>(i) * size_of(type),
                      type == ElementType::float32 ? static_cast<const void*>(&single) : &next, size_of(type));
        }
      }
      const std::string path = folder_ / "weights.safetensors";
      OutputFile file(path);
      write_weights(file, spec, parameters);
      file.commit();
      EXPECT_EQ(read_network(path).widths, spec.widths);
      EXPECT_EQ(read_network(path).bias, bias);
      const Parameters back = read_weights(path, spec, type);
      ASSERT_EQ(back.size(), parameters.size());
      for (std::size_t i = 0; i < back.size(); ++i) {
        EXPECT_EQ(back[i].rows, parameters[i].rows);
        EXPECT_EQ(back[i].columns, parameters[i].columns);
        EXPECT_TRUE(back[i].bytes == parameters[i].bytes) << i;
      }
    }
  }
}

TEST_F(Weights, AreWrittenAsPyTorchHasThem) {
  const NetworkSpec spec = network({2, 3, 1}, true);
  Parameters parameters;
  float next = 0;
  for (const ParameterInfo& info : parameter_layout(spec)) {
    HostMatrix& matrix = parameters.emplace_back(ElementType::float32, info.rows, info.columns);
    for (std::int64_t i = 0; i < info.rows * info.columns; ++i, ++next)
      std::memcpy(matrix.bytes.data() + static_cast<std::size_t>(i) * 4, &next, 4);
  }
  const std::string path = folder_ / "weights.safetensors";
  OutputFile file(path);
  write_weights(file, spec, parameters);
  file.commit();
  const std::string header =
      R"({"__metadata__":{"deviceloop.network":"{\"version\":1,\"widths\":[2,3,1],\"bias\":true,)"
      R"(\"activation\":\"relu\",\"output_activation\":\"identity\"}","format":"pt"},)"
      R"("0.weight":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},)"
      R"("0.bias":{"dtype":"F32","shape":[3],"data_offsets":[24,36]},)"
      R"("2.weight":{"dtype":"F32","shape":[1,3],"data_offsets":[36,48]},)"
      R"("2.bias":{"dtype":"F32","shape":[1],"data_offsets":[48,52]}})";
  const std::string content = read_all(path);
  EXPECT_EQ(content.substr(8, header.size()), header);
  ASSERT_GE(content.size(), 52u);
  std::vector<float> values(13);
  std::memcpy(values.data(), content.data() + content.size() - 52, 52);
  EXPECT_EQ(values, (std::vector<float>{0, 3, 1, 4, 2, 5, 6, 7, 8, 9, 10, 11, 12}));
  EXPECT_EQ((content.size() - 52) % 8, 0u);
}

TEST_F(Weights, OfAnotherNetworkAreRefusedWithItsWidths) {
  const std::vector<SafeTensor> file{ones("0.weight", {100, 1000}), ones("2.weight", {1, 100})};
  const std::string widths = "; give the network these widths: 1000,100,1";
  EXPECT_MENTIONS(refused(file, network({1000, 64, 1})),
                  "'0.weight' has shape [100, 1000], the network needs [64, 1000]" + widths);
  EXPECT_MENTIONS(refused(file, network({1000, 100, 2})), "'2.weight' has shape [1, 100], the network needs [2, 100]");
  EXPECT_MENTIONS(refused(file, network({100, 1000, 1})), "the network needs [1000, 100]" + widths);
  EXPECT_MENTIONS(refused(file, network({1000, 100})), "holds '2.weight', which the network 1000,100 does not have");
  EXPECT_MENTIONS(refused(file, network({1000, 100, 1, 5})), "has no '4.weight', which the network 1000,100,1,5 needs");
  EXPECT_MENTIONS(refused(file, network({1000, 100, 1}, true)), "has no '0.bias', and the network has biases; switch");
  EXPECT_MENTIONS(refused(file, network({1000, 100, 1}, true)), "bias off");
  const std::vector<SafeTensor> biased{ones("0.weight", {1, 2}), ones("0.bias", {1})};
  EXPECT_MENTIONS(refused(biased, network({2, 1})),
                  "holds '0.bias', and the network has no biases; switch its bias on");
}

TEST_F(Weights, OfNoNetworkAreRefused) {
  EXPECT_MENTIONS(network_refused({}), "has no '0.weight'; save it so that");
  EXPECT_MENTIONS(network_refused({ones("fc1.weight", {2, 3})}),
                  "has no '0.weight', it holds 'fc1.weight'; save it so");
  EXPECT_MENTIONS(network_refused({ones("a\x1b\n", {2})}), "it holds 'a\\x1b\\x0a'");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {6})}), "'0.weight' has shape [6], a weight has two dimensions");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {1, 2, 3})}), "'0.weight' has shape [1, 2, 3], a weight has two");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {0, 3})}), "'0.weight' has shape [0, 3]; widths from 1");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {2, 3}), ones("2.weight", {1, 3})}),
                  "'2.weight' has shape [1, 3], and the layer before it has 2 outputs");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {2, 3}), ones("3.weight", {1, 2})}),
                  "holds '3.weight', which is no parameter of the network 3,2 of the other tensors");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {2, 3}), ones("4.weight", {1, 2})}), "'2.weight' comes next");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {2, 3}), ones("1.running_mean", {2})}), "holds '1.running_mean'");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {2, 3}), ones("0.bias", {2}), ones("2.weight", {1, 2})}),
                  "has no '2.bias' although it has '0.bias'; switch bias on in all layers or off in all");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {2, 3}), ones("2.weight", {1, 2}), ones("2.bias", {1})}),
                  "holds '2.bias' although it has no '0.bias'; switch bias on");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {2, 3}), ones("0.bias", {3})}),
                  "'0.bias' has shape [3], the layer's outputs need [2]");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {2, 3}), ones("0.bias", {1, 2})}), "'0.bias' has shape [1, 2]");
}

TEST_F(Weights, OfTwoBytesAreConverted) {
  SafeTensor f16{"0.weight", "F16", {2, 3}, {}}, bf16{"0.bias", "BF16", {2}, {}};
  // 1, -2, the largest, the smallest, -0, 1/3 of F16; 1/3 of BF16 and its largest.
  for (const int bits : {0x3c00, 0xc000, 0x7bff, 0x0001, 0x8000, 0x3555})
    for (const int shift : {0, 8}) f16.bytes.push_back(static_cast<std::byte>(bits >> shift));
  for (const int bits : {0x3eab, 0x7f7f})
    for (const int shift : {0, 8}) bf16.bytes.push_back(static_cast<std::byte>(bits >> shift));
  const std::string path = write({f16, bf16});
  const std::vector<double> weights{1, -2, 65504, 0x1p-24, -0.0, 0.333251953125}, biases{0.333984375, 0x1.fep127};
  const Parameters single = read_weights(path, network({3, 2}, true), ElementType::float32);
  const Parameters twice = read_weights(path, network({3, 2}, true), ElementType::float64);
  for (int out = 0; out < 2; ++out) {
    for (int in = 0; in < 3; ++in) {
      const double expected = weights[static_cast<std::size_t>(3 * out + in)];
      EXPECT_EQ(value<float>(single[0], in, out), static_cast<float>(expected));
      EXPECT_EQ(value<double>(twice[0], in, out), expected);
    }
    EXPECT_EQ(value<float>(single[1], 0, out), static_cast<float>(biases[static_cast<std::size_t>(out)]));
    EXPECT_EQ(value<double>(twice[1], 0, out), biases[static_cast<std::size_t>(out)]);
  }
  f16.bytes[1] = std::byte{0x7c};  // 0x7c00: infinity
  EXPECT_MENTIONS(refused({f16, bf16}, network({3, 2}, true)), "'0.weight': row 0, column 0 is inf");
}

TEST_F(Weights, OfOtherTypesAreRefused) {
  for (const char* dtype : {"I16", "U16"})
    EXPECT_MENTIONS(
        network_refused({half("0.weight", {2, 3}, dtype), ones("2.weight", {1, 2})}),
        std::string("'0.weight' is ") + dtype + ", only F16, BF16, F32 and F64 are read; save it with .float()");
  EXPECT_MENTIONS(network_refused({ones("0.weight", {2, 3}), half("0.bias", {2}, "I16")}), "'0.bias' is I16");
}

TEST_F(Weights, ThatAreNotFiniteAreRefused) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const auto with = [](double last) { return std::vector{tensor<double>("0.weight", {2, 2}, {1, 2, 3, last})}; };
  EXPECT_MENTIONS(refused(with(nan), network({2, 2})),
                  "'0.weight': row 1, column 1 is nan (counted from 0); save weights that have not");
  EXPECT_MENTIONS(refused(with(infinity), network({2, 2})), "is inf");
  EXPECT_MENTIONS(refused(with(1e300), network({2, 2})),
                  "is 1e+300, which fp32 cannot hold (counted from 0); read it as fp64");
  EXPECT_MENTIONS(refused(with(nan), network({2, 2}), ElementType::float64), "is nan");
  EXPECT_EQ(value<double>(read_weights(write(with(1e300)), network({2, 2}), ElementType::float64)[0], 1, 1), 1e300);
}

TEST_F(Weights, ReportProblemsOfTheFileItself) {
  const std::string path = folder_ / "missing.safetensors";
  EXPECT_MENTIONS(refusal(path + ": ", [&] { read_network(path); }), "No such file or directory");
  EXPECT_MENTIONS(refusal(path + ": ", [&] { read_weights(path, network({2, 1}), ElementType::float32); }), "No such");
  const std::string whole = read_all(write({ones("0.weight", {2, 3}), ones("2.weight", {1, 2})}));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::string part = folder_.write("part.safetensors", std::string_view(whole).substr(0, size));
    refusal(part + ": ", [&] { read_network(part); });
  }
}

TEST_F(Weights, ToWriteMustFitTheNetwork) {
  OutputFile file(folder_ / "out.safetensors");
  const std::string start = file.path() + ": ";
  Parameters parameters;
  EXPECT_MENTIONS(refusal(start,
                          [&] {
                            write_weights(file, network({2, 1}, true), parameters);
                          }),
                  "0 parameters were given, the network 2,1 has 2");
  parameters.emplace_back(ElementType::float32, 1, 2);
  EXPECT_MENTIONS(refusal(start,
                          [&] {
                            write_weights(file, network({2, 1}), parameters);
                          }),
                  "the parameter for '0.weight' has shape [1, 2], the network needs [2, 1]");
}

/// A file of the network 3,2,1 with that text as its metadata.
class Metadata : public Weights {
 protected:
  SavedNetwork saved(const std::string& text) const {
    return read_saved_network(SafeTensorsFile(write(tensors_, {{"format", "pt"}, {kNetworkKey, text}})));
  }
  std::string refused(const std::string& text) const {
    const std::string path = write(tensors_, {{kNetworkKey, text}});
    const std::string start = path + ": its metadata 'deviceloop.network' ";
    const std::string message = refusal(start, [&] { read_saved_network(SafeTensorsFile(path)); });
    EXPECT_EQ(message, refusal(start, [&] { read_weights(path, network({3, 2, 1}), ElementType::float32); }));
    EXPECT_MENTIONS(message, "; save the weights again, or without the metadata and with the options of the network");
    return message.substr(start.size());
  }
  /// `of` replaced by `with` in a text that is as it should be.
  static std::string changed(const std::string& of, const std::string& with) {
    std::string text = kText;
    const std::size_t at = text.find(of);
    EXPECT_NE(at, std::string::npos) << of;
    return text.replace(at, of.size(), with);
  }
  /// With this for the scaling of targets.
  static std::string with_targets(const std::string& scaling) {
    return changed("3e-5]}}", R"(3e-5]},"target_scaling":)" + scaling + "}");
  }
  static constexpr const char* kText =
      R"({"version":1,"widths":[3,2,1],"bias":false,"activation":"leaky-relu","output_activation":"sigmoid",)"
      R"("input_scaling":{"factor":0.5,"mean":[1,-2.5,0],"deviation":[1,2,3e-5]}})";
  const std::vector<SafeTensor> tensors_{ones("0.weight", {2, 3}), ones("2.weight", {1, 2})};
};

TEST_F(Metadata, SayWhatTheTensorsDoNot) {
  const SavedNetwork found = saved(kText);
  EXPECT_TRUE(found.has_metadata);
  EXPECT_EQ(found.network.widths, (std::vector<std::int64_t>{3, 2, 1}));
  EXPECT_FALSE(found.network.bias);
  EXPECT_EQ(found.network.activation, Activation::leaky_relu);
  EXPECT_EQ(found.network.output_activation, Activation::sigmoid);
  EXPECT_EQ(found.scaling.factor, 0.5);
  EXPECT_EQ(found.scaling.mean, (std::vector<double>{1, -2.5, 0}));
  EXPECT_EQ(found.scaling.deviation, (std::vector<double>{1, 2, 3e-5}));
  // In another order, with white space, and without the part that may be absent.
  const SavedNetwork plain = saved(R"( { "activation" : "sine", "bias" : false, "output_activation" : "relu",
                                         "widths" : [ 3, 2, 1 ], "version" : 1 } )");
  EXPECT_EQ(plain.network.activation, Activation::sine);
  EXPECT_EQ(plain.network.output_activation, Activation::relu);
  EXPECT_TRUE(plain.scaling.is_identity());
  EXPECT_EQ(saved(changed(R"(,"mean":[1,-2.5,0],"deviation":[1,2,3e-5])", "")).scaling.factor, 0.5);
  EXPECT_TRUE(found.input_names.empty());
  EXPECT_EQ(saved(changed(R"("version":1)", R"("version":1,"input_names":["a","","b \"\u00e9"])")).input_names,
            (std::vector<std::string>{"a", "", "b \"\xc3\xa9"}));
  // Files from before targets were scaled say nothing of them.
  EXPECT_TRUE(found.target_scaling.is_identity());
  for (const std::string& text : {with_targets(R"({"mean":[1.5e5],"deviation":[7]})"),
                                  changed(R"("input_scaling":)", R"("target_scaling":{"deviation":[7],"mean":[1.5e5]},)"
                                                                 R"("input_scaling":)")}) {
    const SavedNetwork targets = saved(text);
    EXPECT_EQ(targets.target_scaling.factor, 1);
    EXPECT_EQ(targets.target_scaling.mean, (std::vector<double>{1.5e5}));
    EXPECT_EQ(targets.target_scaling.deviation, (std::vector<double>{7}));
    EXPECT_EQ(targets.scaling.mean, (std::vector<double>{1, -2.5, 0}));
    EXPECT_EQ(targets.scaling.deviation, (std::vector<double>{1, 2, 3e-5}));
  }
}

TEST_F(Metadata, OfScaledDataAreNotForTheTrainer) {
  Trainer trainer(
      {.widths = {3, 2, 1}, .activation = Activation::leaky_relu, .output_activation = Activation::sigmoid});
  write(tensors_, {{kNetworkKey, with_targets(R"({"mean":[1.5e5],"deviation":[7]})")}});
  trainer.load_weights(folder_ / "weights.safetensors");
  const std::vector<float> x{1, 2, -1};
  float y = 0;
  trainer.predict({x.data(), 1, 3}, {&y, 1, 1});
  EXPECT_NEAR(y, 1 / (1 + std::exp(-4.0)), 1e-6);
}

TEST_F(Metadata, OfOtherProgramsAreIgnored) {
  for (const SafeTensorsMetadata& metadata :
       {SafeTensorsMetadata{}, SafeTensorsMetadata{{"format", "pt"}},
        SafeTensorsMetadata{{"network", "{"}, {"deviceloop", "x"}, {"deviceloop.networks", kText}}}) {
    const SavedNetwork found = read_saved_network(SafeTensorsFile(write(tensors_, metadata)));
    EXPECT_FALSE(found.has_metadata);
    EXPECT_EQ(found.network.widths, (std::vector<std::int64_t>{3, 2, 1}));
    EXPECT_EQ(found.network.activation, Activation::relu);
    EXPECT_TRUE(found.scaling.is_identity());
    for (const Activation activation : {Activation::relu, Activation::tanh}) {
      NetworkSpec wanted = network({3, 2, 1});
      wanted.activation = activation;
      EXPECT_NO_THROW(check_network(SafeTensorsFile(folder_ / "weights.safetensors"), wanted));
    }
  }
}

TEST_F(Metadata, AreReadBackBitForBit) {
  NetworkSpec spec = network({40, 2}, true);
  InputScaling scaling{1.0 / 255};
  std::uint64_t state = 1;
  while (scaling.mean.size() < 40) {  // doubles of all sizes
    state = state * 6364136223846793005u + 1442695040888963407u;
    double mean;
    std::memcpy(&mean, &state, sizeof mean);
    const double deviation = std::fabs(mean);
    if (!std::isfinite(mean) || deviation == 0) continue;
    scaling.mean.push_back(scaling.mean.empty() ? -0.0 : mean);
    scaling.deviation.push_back(scaling.mean.size() == 2 ? std::numeric_limits<double>::denorm_min() : deviation);
  }
  const InputScaling targets{1, {scaling.mean[1], -0.0}, {scaling.deviation[2], scaling.deviation[1]}};
  Parameters parameters;
  for (const ParameterInfo& info : parameter_layout(spec))
    parameters.emplace_back(ElementType::float32, info.rows, info.columns);
  for (int number = 0; number < 11; ++number) {
    spec.activation = static_cast<Activation>(number);
    spec.output_activation = static_cast<Activation>(10 - number);
    OutputFile file(folder_ / "w");
    std::vector<std::string> names(40, "a");
    names[number] = "\xc3\xa9 \"\\xe9\",";
    write_weights(file, spec, parameters, scaling, targets, names);
    file.commit();
    const SavedNetwork back = read_saved_network(SafeTensorsFile(folder_ / "w"));
    EXPECT_TRUE(back.has_metadata);
    EXPECT_EQ(back.input_names, names);
    EXPECT_EQ(back.network.widths, spec.widths);
    EXPECT_TRUE(back.network.bias);
    EXPECT_EQ(back.network.activation, spec.activation);
    EXPECT_EQ(back.network.output_activation, spec.output_activation);
    EXPECT_EQ(std::memcmp(&back.scaling.factor, &scaling.factor, sizeof(double)), 0);
    ASSERT_EQ(back.scaling.mean.size(), 40u);
    ASSERT_EQ(back.scaling.deviation.size(), 40u);
    EXPECT_EQ(std::memcmp(back.scaling.mean.data(), scaling.mean.data(), 40 * sizeof(double)), 0);
    EXPECT_EQ(std::memcmp(back.scaling.deviation.data(), scaling.deviation.data(), 40 * sizeof(double)), 0);
    ASSERT_EQ(back.target_scaling.mean.size(), 2u);
    ASSERT_EQ(back.target_scaling.deviation.size(), 2u);
    EXPECT_EQ(std::memcmp(back.target_scaling.mean.data(), targets.mean.data(), 2 * sizeof(double)), 0);
    EXPECT_EQ(std::memcmp(back.target_scaling.deviation.data(), targets.deviation.data(), 2 * sizeof(double)), 0);
  }
}

TEST_F(Metadata, OfAnotherNetworkAreRefused) {
  EXPECT_MENTIONS(refused(changed("[3,2,1]", "[3,4,1]")), "has the widths 3,4,1, its tensors have 3,2,1");
  EXPECT_MENTIONS(refused(changed("[3,2,1]", "[3,2]")), "has the widths 3,2, its tensors have 3,2,1");
  EXPECT_MENTIONS(refused(changed("false", "true")), "says that the network has biases, and its tensors have none");
  // The file is well-formed, but not of the network that is wanted.
  const SafeTensorsFile file(write(tensors_, {{kNetworkKey, kText}}));
  NetworkSpec wanted = network({3, 2, 1});
  wanted.activation = Activation::leaky_relu;
  wanted.output_activation = Activation::sigmoid;
  EXPECT_NO_THROW(check_network(file, wanted));
  const std::string start = folder_ / "weights.safetensors" + std::string(": its network has the ");
  wanted.activation = Activation::tanh;
  EXPECT_MENTIONS(refusal(start, [&] { check_network(file, wanted); }),
                  "activation leaky-relu, but tanh was asked for; use leaky-relu");
  wanted.activation = Activation::leaky_relu;
  wanted.output_activation = Activation::gelu_tanh;
  EXPECT_MENTIONS(refusal(start, [&] { read_weights(file, wanted, ElementType::float32); }),
                  "output activation sigmoid, but gelu-tanh was asked for; use sigmoid");
  // Without a hidden layer their activation is of no importance.
  const SafeTensorsFile single(
      write({ones("0.weight", {2, 3})},
            {{kNetworkKey,
              R"({"version":1,"widths":[3,2],"bias":false,"activation":"tanh","output_activation":"identity"})"}}));
  EXPECT_NO_THROW(check_network(single, network({3, 2})));
}

TEST_F(Metadata, ThatAreMalformedAreRefused) {
  EXPECT_NO_THROW(saved(kText));
  const std::vector<std::pair<std::string, std::string>> cases{
      {"", "is not JSON from character 1 on"},
      {"relu", "is not JSON from character 1 on"},
      {kText + std::string("}"), "is not JSON from character"},
      {kText + std::string(1, '\0') + "}", "is not JSON from character"},
      {std::string(kText).substr(0, 70), "is not JSON from character"},
      {"[]", "is not a JSON object"},
      {"1", "is not a JSON object"},
      {"null", "is not a JSON object"},
      {"\"x\"", "is not a JSON object"},
      {"{}", "has no version"},
      {changed(R"("version":1)", R"("version":2)"), "has the version 2, and this deviceloop reads version 1"},
      {changed(R"("version":1,)", R"("version":2,"new":0,)"), "has the version 2, "},
      {changed(R"("version":1)", R"("version":"1")"), "has a text in its version, which is a whole number"},
      {changed(R"("version":1)", R"("version":1.0)"), "has the number 1.0 in its version"},
      {changed(R"("version":1)", R"("version":-1)"), "has the number -1.0 in its version"},
      {changed(R"("version":1)", R"("version":[1])"), "has a list in its version"},
      {changed(R"("version":1,)", ""), "has no version"},
      {changed(R"("version":1)", R"("version":1,"version":1)"), "has the key 'version' twice"},
      {changed(R"("version")", R"("Version")"), "has the unknown key 'Version'"},
      {changed(R"("bias")", R"("factor")"), "has the unknown key 'factor'"},
      {changed(R"("widths":[3,2,1],)", ""), "has no widths"},
      {changed("[3,2,1]", "[]"), "has 0 numbers in its widths, which begin with the inputs and end with the outputs"},
      {changed("[3,2,1]", "[3]"), "has 1 numbers in its widths"},
      {changed("[3,2,1]", "3"), "has the number 3.0 in its widths, which is a list of whole numbers from 1 to 2147"},
      {changed("[3,2,1]", "[3,0,1]"), "has 0 in its widths"},
      {changed("[3,2,1]", "[3,-2,1]"), "has the number -2.0 in its widths"},
      {changed("[3,2,1]", "[3,2.5,1]"), "has the number 2.5 in its widths"},
      {changed("[3,2,1]", "[3,2147483648,1]"), "has 2147483648 in its widths"},
      {changed("[3,2,1]", R"(["3",2,1])"), "has a text in its widths"},
      {changed("[3,2,1]", "[[3],2,1]"), "has a list in its widths"},
      {changed("[3,2,1]", "{}"), "has an object in its widths"},
      {changed("false", "0"), "has the number 0.0 in its bias, which is true or false"},
      {changed("false", "null"), "has null in its bias"},
      {changed("false", "{}"), "has an object in its bias"},
      {changed(R"("bias":false,)", ""), "has no bias"},
      {changed("leaky-relu", "leaky_relu"), "has the unknown activation 'leaky_relu'"},
      {changed(R"("sigmoid")", R"("soft\u0007max")"), "has the unknown output_activation 'soft\\x07max'"},
      {changed(R"("sigmoid")", "1"), "has the number 1.0 in its output_activation, which is a name"},
      {changed(R"("leaky-relu")", R"(["leaky-relu"])"), "has a list in its activation"},
      {changed(R"("activation":"leaky-relu",)", ""), "has no activation"},
      {changed(R"(,"output_activation":"sigmoid")", ""), "has no output_activation"},
      {changed(R"({"factor":0.5,"mean":[1,-2.5,0],"deviation":[1,2,3e-5]})", "0.5"),
       "has the number 0.5 in its input_scaling, which is an object"},
      {changed(R"({"factor":0.5,"mean":[1,-2.5,0],"deviation":[1,2,3e-5]})", "[]"), "has a list in its input_scaling"},
      {changed(R"("factor":0.5,)", ""), "has no factor"},
      {changed(R"("factor":0.5)", R"("factor":0)"), "has the number 0.0 in its factor, which is a finite number other"},
      {changed(R"("factor":0.5)", R"("factor":-0.0)"), "has the number -0.0 in its factor"},
      {changed(R"("factor":0.5)", R"("factor":1e999)"), "has 1e999, which is too large, in its factor"},
      {changed(R"("factor":0.5)", R"("factor":NaN)"), "is not JSON"},
      {changed(R"("factor":0.5)", R"("factor":"0.5")"), "has a text in its factor"},
      {changed(R"("factor":0.5)", R"("factor":0.5,"factor":1)"), "has the key 'factor' twice"},
      {changed(R"("factor":0.5)", R"("factor":0.5,"bias":false)"), "has the unknown key 'bias'"},
      {changed("[1,-2.5,0]", "[1,-1e400,0]"), "has -1e400, which is too large, in its mean"},
      {changed("[1,-2.5,0]", "[1,null,0]"), "has null in its mean, which is a list of finite numbers"},
      {changed("[1,-2.5,0]", "1"), "has the number 1.0 in its mean"},
      {changed("[1,-2.5,0]", "[1,[2],0]"), "has a list in its mean"},
      {changed("[1,-2.5,0]", "[1,-2.5]"), "has 2 numbers as mean and 3 as deviation, and the network has 3 inputs"},
      {changed("[1,2,3e-5]", "[1,2,3,4]"), "has 3 numbers as mean and 4 as deviation"},
      {changed(R"(,"deviation":[1,2,3e-5])", ""), "has 3 numbers as mean and 0 as deviation"},
      {changed(R"("mean":[1,-2.5,0],)", ""), "has 0 numbers as mean and 3 as deviation"},
      {changed("[1,2,3e-5]", "[1,0,3]"),
       "has the number 0.0 in its deviation, which is a list of finite numbers above"},
      {changed("[1,2,3e-5]", "[1,-2,3]"), "has the number -2.0 in its deviation"},
      {changed("[1,2,3e-5]", "[1,1e-999,3]"), "has the number 0.0 in its deviation"},
      {changed(R"("version":1)", R"("version":1,"input_names":["a","b"])"),
       "has 2 input_names, and the network has 3 inputs"},
      {changed(R"("version":1)", R"("version":1,"input_names":["a","b",1])"),
       "has the number 1.0 in its input_names, which is a list of texts"},
      {changed(R"("version":1)", R"("version":1,"input_names":["a","b",["c"]])"), "has a list in its input_names"},
      {changed(R"("version":1)", R"("version":1,"input_names":"abc")"), "has a text in its input_names"},
      {changed(R"("version":1)", R"("version":1,"input_names":{})"), "has an object in its input_names"},
      {changed(R"("factor":0.5)", R"("factor":0.5,"input_names":["a","b","c"])"), "has the unknown key 'input_names'"},
      {changed("[1,2,3e-5]", "[1,2,1e309]"), "has 1e309, which is too large, in its deviation"},
      {with_targets("2"), "has the number 2.0 in its target_scaling, which is an object"},
      {with_targets("[]"), "has a list in its target_scaling"},
      {with_targets("{}"), "has no mean"},
      {with_targets(R"({"mean":[1]})"), "has no deviation"},
      {with_targets(R"({"deviation":[1]})"), "has no mean"},
      {with_targets(R"({"factor":2,"mean":[1],"deviation":[1]})"), "has the unknown key 'factor'"},
      {with_targets(R"({"mean":[1],"mean":[1],"deviation":[1]})"), "has the key 'mean' twice"},
      {with_targets(R"({"mean":[1],"deviation":[1]},"target_scaling":{})"), "has the key 'target_scaling' twice"},
      {with_targets(R"({"mean":1,"deviation":[1]})"), "has the number 1.0 in its mean, which is a list of finite"},
      {with_targets(R"({"mean":[1],"deviation":[0]})"), "has the number 0.0 in its deviation, which is a list of"},
      {with_targets(R"({"mean":[1],"deviation":[-1]})"), "has the number -1.0 in its deviation"},
      {with_targets(R"({"mean":[1e999],"deviation":[1]})"), "has 1e999, which is too large, in its mean"},
      {with_targets(R"({"mean":[1,2],"deviation":[1,2]})"),
       "has 2 numbers as mean and 2 as deviation, and the network has 1 output"},
      {with_targets(R"({"mean":[],"deviation":[1]})"), "has 0 numbers as mean and 1 as deviation"},
  };
  for (const auto& [text, problem] : cases) {
    SCOPED_TRACE(text);
    EXPECT_EQ(refused(text).substr(0, problem.size()), problem);
  }
}

TEST_F(Metadata, ThatAreHugeOrDeepAreRefused) {
  const std::string many(1'000'000, '[');
  EXPECT_MENTIONS(refused(many), "is not a JSON object");
  EXPECT_MENTIONS(refused(R"({"widths":)" + many), "has a list in its widths");
  EXPECT_MENTIONS(refused(std::string(1'000'000, '{')), "is not JSON from character 2 on");
  EXPECT_MENTIONS(refused("{\"" + std::string(1'000'000, 'n')), "is not JSON");
  EXPECT_MENTIONS(refused("{\"" + std::string(1'000'000, 'n') + "\":1}"), "has the unknown key 'nnn");
  EXPECT_MENTIONS(refused(changed("leaky-relu", std::string(1'000'000, 'n'))), "has the unknown activation 'nnn");
  EXPECT_MENTIONS(refused(changed("0.5", "1" + std::string(1'000'000, '0') + ".0")), "000..., which is too large, in");
  std::string ones = "1";
  for (int i = 0; i < 1'000'000; ++i) ones += ",1";
  EXPECT_MENTIONS(refused(changed("3,2,1", "3," + ones)), ",1,1,..., its tensors have 3,2,1");
  EXPECT_MENTIONS(refused(changed("1,-2.5,0", ones)), "has 1000001 numbers as mean and 3 as deviation");
}

TEST_F(Weights, OfVeryManyLayersTakeNoLongerForEachOfThem) {
  std::string header = R"({"extra":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  constexpr int kLayers = 20000;
  for (int layer = 0; layer < kLayers; ++layer)
    header += ",\"" + std::to_string(2 * layer) + R"(.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[)" +
              std::to_string(4 * layer) + "," + std::to_string(4 * layer + 4) + "]}";
  header += "}";
  std::string length(8, '\0');
  const std::uint64_t size = header.size();
  std::memcpy(length.data(), &size, 8);
  const std::string path = folder_.write("weights.safetensors", length + header + std::string(4 * kLayers, '\0'));
  const std::string message = refusal(path + ": ", [&] { read_network(path); });
  EXPECT_MENTIONS(message, "holds 'extra', which is no parameter of the network 1,1,1");
}

}  // namespace
}  // namespace deviceloop
