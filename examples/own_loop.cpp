// A training loop of one's own on the CPU: a network that predicts an interval, by a
// loss that Trainer does not have. Its three outputs are the quantiles 0.05, 0.5 and
// 0.95 of y at x, so that nine of ten y lie between the first and the last. The pinball
// loss of the quantile q grows by q for each unit that y lies above the prediction, and
// by 1 - q for each unit below. A CBLAS multiplies, <deviceloop/kernels.h> has the
// activation and its gradient.
#include <cblas.h>
#include <deviceloop/kernels.h>
#include <deviceloop/random.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

namespace {

using Values = std::vector<double>;  // a matrix, row by row

constexpr int kTraining = 2000, kTest = 2000, kHidden = 32, kOutputs = 3, kSteps = 1500;
constexpr std::array<double, kOutputs> kQuantiles = {0.05, 0.5, 0.95};
constexpr int kInputs = 2;  // x and 1, whose weight is the bias

/// y = sin(2 x) + noise whose deviation is larger where x is: an interval of one width
/// would not do.
double deviation(double x) { return 0.1 + 0.2 * std::fabs(x); }

struct Data {
  Values x, y;
};

Data draw(int rows, std::uint64_t seed) {
  Values place(static_cast<std::size_t>(rows)), noise(place.size());
  deviceloop::fill_normal({place.data(), rows, 1}, seed, deviceloop::kTensorX);
  deviceloop::fill_normal({noise.data(), rows, 1}, seed, deviceloop::kTensorY);
  Data data;
  for (std::size_t i = 0; i < place.size(); ++i) {
    data.x.insert(data.x.end(), {place[i], 1});
    data.y.push_back(std::sin(2 * place[i]) + deviation(place[i]) * noise[i]);
  }
  return data;
}

/// c [rows, columns] = a b, of which either may be taken transposed; `terms` is what
/// both have in common.
void multiply(Values& c, const Values& a, CBLAS_TRANSPOSE a_transpose, const Values& b,
              CBLAS_TRANSPOSE b_transpose, int rows, int columns, int terms) {
  cblas_dgemm(CblasRowMajor, a_transpose, b_transpose, rows, columns, terms, 1,
              a.data(), a_transpose == CblasNoTrans ? terms : rows, b.data(),
              b_transpose == CblasNoTrans ? columns : terms, 0, c.data(), columns);
}

/// A weight with its gradient, and what Adam keeps of it.
struct Weight {
  Weight(int rows, int columns, int layer)
      : value(static_cast<std::size_t>(rows * columns)), gradient(value.size()) {
    deviceloop::fill_normal({value.data(), rows, columns}, 0,
                            deviceloop::tensor_of_weight(layer), std::sqrt(2.0 / rows));
  }

  void update(int step, double learning_rate) {
    for (std::size_t i = 0; i < value.size(); ++i) {
      mean[i] = 0.9 * mean[i] + 0.1 * gradient[i];
      square[i] = 0.999 * square[i] + 0.001 * gradient[i] * gradient[i];
      value[i] -= learning_rate * mean[i] / (1 - std::pow(0.9, step + 1)) /
                  (std::sqrt(square[i] / (1 - std::pow(0.999, step + 1))) + 1e-8);
    }
  }

  Values value, gradient, mean = Values(value.size()), square = Values(value.size());
};

struct Network {
  Weight w1{kInputs, kHidden, 0}, w2{kHidden, kOutputs, 1};
  Values z, h, out, dout, dh;  // of all rows

  /// out [rows, kOutputs] = relu(x w1) w2
  void predict(const Values& x) {
    const int rows = static_cast<int>(x.size()) / kInputs;
    for (Values* values : {&z, &h, &dh})
      values->resize(static_cast<std::size_t>(rows * kHidden));
    for (Values* values : {&out, &dout})
      values->resize(static_cast<std::size_t>(rows * kOutputs));
    multiply(z, x, CblasNoTrans, w1.value, CblasNoTrans, rows, kHidden, kInputs);
    deviceloop::relu(h, z);
    multiply(out, h, CblasNoTrans, w2.value, CblasNoTrans, rows, kOutputs, kHidden);
  }

  /// After predict(x): the gradients of both weights from that of the output.
  void backward(const Values& x) {
    const int rows = static_cast<int>(x.size()) / kInputs;
    multiply(w2.gradient, h, CblasTrans, dout, CblasNoTrans, kHidden, kOutputs, rows);
    multiply(dh, dout, CblasNoTrans, w2.value, CblasTrans, rows, kHidden, kOutputs);
    deviceloop::relu_gradient(dh, z, dh);
    multiply(w1.gradient, x, CblasTrans, dh, CblasNoTrans, kInputs, kHidden, rows);
  }
};

/// The mean over all rows and quantiles, and its gradient.
double pinball_loss(Values& gradient, const Values& prediction, const Values& y) {
  double sum = 0;
  const auto count = static_cast<double>(prediction.size());
  for (std::size_t i = 0; i < prediction.size(); ++i) {
    const double quantile = kQuantiles[i % kOutputs],
                 above = y[i / kOutputs] - prediction[i];
    sum += above > 0 ? quantile * above : (quantile - 1) * above;
    gradient[i] = (above > 0 ? -quantile : 1 - quantile) / count;
  }
  return sum / count;
}

void run() {
  const Data training = draw(kTraining, 0), test = draw(kTest, 1);
  Network network;
  for (int step = 0; step < kSteps; ++step) {
    network.predict(training.x);
    const double loss = pinball_loss(network.dout, network.out, training.y);
    if (step % 500 == 0 || step == kSteps - 1)
      std::printf("step %4d: loss %.4f\n", step, loss);
    network.backward(training.x);
    const double rate = 0.01 * (1 - static_cast<double>(step) / kSteps);
    for (Weight* weight : {&network.w1, &network.w2}) weight->update(step, rate);
  }

  network.predict(test.x);
  std::array<int, kOutputs> below{};
  for (std::size_t i = 0; i < network.out.size(); ++i)
    below[i % kOutputs] += test.y[i / kOutputs] < network.out[i];
  for (std::size_t q = 0; q < kOutputs; ++q)
    std::printf("%.1f %% of the test rows lie below the quantile %.2f\n",
                100.0 * below[q] / kTest, kQuantiles[q]);

  std::printf("    x   predicted interval   true interval\n");
  const Values x = {-1, 1, 0, 1, 1, 1};
  network.predict(x);
  for (std::size_t i = 0; i < x.size() / kInputs; ++i) {
    const double place = x[i * kInputs], middle = std::sin(2 * place),
                 half = 1.645 * deviation(place);
    std::printf("%5.1f   %6.2f to %5.2f      %6.2f to %5.2f\n", place,
                network.out[i * kOutputs], network.out[i * kOutputs + 2], middle - half,
                middle + half);
  }
}

}  // namespace

int main() try { run(); } catch (const std::exception& error) {
  std::fprintf(stderr, "own_loop: %s\n", error.what());
  return 2;
}
