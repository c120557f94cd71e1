// The whole training loop by hand: the library's kernels, and the product of a CBLAS.
#include <cblas.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include <deviceloop/kernels.h>
#include <deviceloop/random.h>

constexpr int N = 128, D = 1000, H = 100;  // samples, inputs, hidden; one output
constexpr auto kAsIs = CblasNoTrans, kTransposed = CblasTrans;
using Values = std::vector<double>;

Values draw(int rows, int columns, std::uint32_t tensor) {
  Values values(std::size_t(rows) * columns);
  deviceloop::fill_normal({values.data(), rows, columns}, 0, tensor);
  return values;
}

// out [m, n] = scale a b + keep out, with a or b transposed where it says so.
void multiply(Values& out, double scale, const Values& a, CBLAS_TRANSPOSE op_a,
              const Values& b, CBLAS_TRANSPOSE op_b, int m, int n, int k,
              double keep = 0) {
  cblas_dgemm(CblasRowMajor, op_a, op_b, m, n, k, scale, a.data(),
              op_a == kAsIs ? k : m, b.data(), op_b == kAsIs ? n : k, keep, out.data(),
              n);
}

// How many hidden neurons speak, and to how many samples.
void describe(const Values& h, const Values& y) {
  std::vector<bool> silent(H, true);
  int active = 0, unseen = 0;
  double all = 0, left = 0;  // sums of squared targets: of all samples, of the unseen
  for (int n = 0; n < N; ++n) {
    int seen_by = 0;
    for (int j = 0; j < H; ++j)
      if (h[n * H + j] > 0) {
        ++seen_by;
        silent[j] = false;
      }
    active += seen_by;
    all += y[n] * y[n];
    if (seen_by > 0) continue;
    ++unseen;
    left += y[n] * y[n];
  }
  std::printf("active outputs: %d of %d; silent neurons: %d of %d\n", active, N * H,
              int(std::count(silent.begin(), silent.end(), true)), H);
  std::printf("unseen samples: %d of %d, squared targets %.2f of %.2f\n", unseen, N,
              left, all);
}

int main() {
  const Values x = draw(N, D, deviceloop::kTensorX);
  const Values y = draw(N, 1, deviceloop::kTensorY);
  Values w1 = draw(D, H, deviceloop::tensor_of_weight(0));
  Values w2 = draw(H, 1, deviceloop::tensor_of_weight(1));
  Values z(N * H), h(N * H), p(N), dp(N), dh(N * H), dz(N * H);
  const double rate = 1e-6;

  const auto predict = [&] {
    multiply(z, 1, x, kAsIs, w1, kAsIs, N, H, D);  // Z = X W1
    deviceloop::relu(h, z);                        // H = relu(Z)
    multiply(p, 1, h, kAsIs, w2, kAsIs, N, 1, H);  // P = H W2
  };
  for (int step = 0; step < 500; ++step) {
    predict();
    // The loss, and dP = 2 (P - Y).
    const double loss = deviceloop::squared_error(dp, p, y);
    // dH = dP W2^T, before W2 changes; dZ = dH where Z >= 0, else 0.
    multiply(dh, 1, dp, kAsIs, w2, kTransposed, N, H, 1);
    deviceloop::relu_gradient(dz, z, dh);
    // W2 -= rate H^T dP and W1 -= rate X^T dZ.
    multiply(w2, -rate, h, kTransposed, dp, kAsIs, H, 1, N, 1);
    multiply(w1, -rate, x, kTransposed, dz, kAsIs, D, H, N, 1);
    if (step == 0) describe(h, y);
    if (step % 100 == 0 || (step < 100 && step % 10 == 0))
      std::printf("%3d: %.2f\n", step, loss);
  }
  predict();
  describe(h, y);
  std::printf("prediction    target\n");
  for (std::size_t i = 0; i < 5; ++i) std::printf("%10.3f  %8.3f\n", p[i], y[i]);
}
