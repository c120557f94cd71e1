// A network with random weights predicts: 1000 inputs, 100 hidden neurons, 1 output.
#include <cstdio>
#include <vector>

#include <deviceloop/kernels.h>
#include <deviceloop/random.h>

constexpr std::size_t kSamples = 128, kInputs = 1000, kHidden = 100;
using Values = std::vector<double>;

Values draw(std::size_t rows, std::size_t columns, std::uint32_t tensor) {
  Values values(rows * columns);
  deviceloop::fill_normal({values.data(), std::int64_t(rows), std::int64_t(columns)}, 0,
                          tensor);
  return values;
}

// out [rows, columns] = a [rows, inner] b [inner, columns]
Values product(const Values& a, const Values& b, std::size_t inner) {
  const std::size_t rows = a.size() / inner, columns = b.size() / inner;
  Values out(rows * columns);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t k = 0; k < inner; ++k)
      for (std::size_t c = 0; c < columns; ++c)
        out[r * columns + c] += a[r * inner + k] * b[k * columns + c];
  return out;
}

int main() {
  const Values x = draw(kSamples, kInputs, deviceloop::kTensorX);
  const Values y = draw(kSamples, 1, deviceloop::kTensorY);
  const Values w1 = draw(kInputs, kHidden, deviceloop::tensor_of_weight(0));
  const Values w2 = draw(kHidden, 1, deviceloop::tensor_of_weight(1));

  // 128 x 100: each row a sample, each column a hidden neuron.
  Values h = product(x, w1, kInputs);
  deviceloop::relu(h, h);
  const Values p = product(h, w2, kHidden);

  std::printf("prediction    target     error\n");
  for (std::size_t i = 0; i < 5; ++i)
    std::printf("%10.3f  %8.3f  %8.3f\n", p[i], y[i], p[i] - y[i]);
  std::printf("sum of all 128 squared errors: %.2f\n",
              deviceloop::squared_error(std::span<double>(), p, y));
}
