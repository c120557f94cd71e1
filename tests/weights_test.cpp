// Weights files: PyTorch's names and shapes on one side, the library's matrices on the other.
#include "files/weights.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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
  std::string write(const std::vector<SafeTensor>& tensors) const {
    OutputFile file(folder_ / "weights.safetensors");
    write_safetensors(file, tensors);
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
      R"({"__metadata__":{"format":"pt"},"0.weight":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]},)"
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
