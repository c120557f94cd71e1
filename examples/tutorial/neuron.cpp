// One neuron: a weighted sum of its inputs, passed through ReLU.
#include <deviceloop/kernels.h>
#include <cstdio>
#include <span>
#include <vector>

double neuron(std::span<const double> x, std::span<const double> w) {
  double z = 0;
  for (std::size_t i = 0; i < x.size(); ++i) z += x[i] * w[i];
  double h = 0;
  deviceloop::relu({&h, 1}, {&z, 1});
  std::printf("z = %g, relu(z) = %g\n", z, h);
  return h;
}

int main() {
  const std::vector<double> x = {2, 3, 4};
  neuron(x, std::vector<double>{1, -1, 5});
  neuron(x, std::vector<double>{1, -5, 2});
}
