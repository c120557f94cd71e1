// The gradients line by line, against the loss when a weight is changed a little.
#include <cmath>
#include <cstdio>
#include <vector>

#include <deviceloop/kernels.h>
#include <deviceloop/random.h>

constexpr std::size_t N = 5, D = 3, H = 4;  // samples, inputs, hidden; one output
using Values = std::vector<double>;

Values draw(std::size_t rows, std::size_t columns, std::uint32_t tensor) {
  Values values(rows * columns);
  deviceloop::fill_normal({values.data(), std::int64_t(rows), std::int64_t(columns)}, 1,
                          tensor);
  return values;
}

struct Forward {
  Values z = Values(N * H), h = Values(N * H), p = Values(N), dp = Values(N);
  double loss = 0;
};

Forward forward(const Values& x, const Values& y, const Values& w1, const Values& w2) {
  Forward f;
  // Z = X W1, H = relu(Z), P = H W2
  for (std::size_t n = 0; n < N; ++n)
    for (std::size_t j = 0; j < H; ++j)
      for (std::size_t d = 0; d < D; ++d)
        f.z[n * H + j] += x[n * D + d] * w1[d * H + j];
  deviceloop::relu(f.h, f.z);
  for (std::size_t n = 0; n < N; ++n)
    for (std::size_t j = 0; j < H; ++j) f.p[n] += f.h[n * H + j] * w2[j];
  // L = sum of (P - Y)^2, dP = 2 (P - Y)
  f.loss = deviceloop::squared_error(f.dp, f.p, y);
  return f;
}

int main() {
  const Values x = draw(N, D, deviceloop::kTensorX);
  const Values y = draw(N, 1, deviceloop::kTensorY);
  Values w1 = draw(D, H, deviceloop::tensor_of_weight(0));
  Values w2 = draw(H, 1, deviceloop::tensor_of_weight(1));

  const Forward f = forward(x, y, w1, w2);
  Values dw2(H), dh(N * H), dz(N * H), dw1(D * H);
  // dW2 = H^T dP, dH = dP W2^T
  for (std::size_t n = 0; n < N; ++n)
    for (std::size_t j = 0; j < H; ++j) {
      dw2[j] += f.h[n * H + j] * f.dp[n];
      dh[n * H + j] = f.dp[n] * w2[j];
    }
  // dZ = dH where Z >= 0, else 0; dW1 = X^T dZ
  deviceloop::relu_gradient(dz, f.z, dh);
  for (std::size_t n = 0; n < N; ++n)
    for (std::size_t d = 0; d < D; ++d)
      for (std::size_t j = 0; j < H; ++j)
        dw1[d * H + j] += x[n * D + d] * dz[n * H + j];

  // The slope by two losses, a little to the right of the weight and to the left.
  double worst = 0;
  const auto check = [&](const char* name, Values& weight, const Values& gradient) {
    for (std::size_t i = 0; i < weight.size(); ++i) {
      const double value = weight[i], little = 1e-5;
      weight[i] = value + little;
      const double right = forward(x, y, w1, w2).loss;
      weight[i] = value - little;
      const double left = forward(x, y, w1, w2).loss;
      weight[i] = value;
      const double slope = (right - left) / (2 * little);
      if (i < 4)
        std::printf("%s[%zu]  derived %10.5f  measured %10.5f\n", name, i, gradient[i],
                    slope);
      worst = std::fmax(
          worst, std::fabs(gradient[i] - slope) / std::fmax(1, std::fabs(slope)));
    }
  };
  check("W1", w1, dw1);
  check("W2", w2, dw2);
  std::printf("all %zu agree to within 1e-7: %s\n", w1.size() + w2.size(),
              worst < 1e-7 ? "yes" : "no");
  return worst < 1e-7 ? 0 : 1;
}
