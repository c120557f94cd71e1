// ReLU and what it does to a gradient that comes back through it.
#include <array>
#include <cstdio>

#include <deviceloop/kernels.h>

int main() {
  const std::array<double, 5> z = {-2, -0.5, 0, 0.5, 2};
  const std::array<double, 5> dh = {
      1, 1, 1, 1, 1};  // the slope of the loss with respect to each output
  std::array<double, 5> h, dz;
  deviceloop::relu(h, z);
  deviceloop::relu_gradient(dz, z, dh);
  std::printf("     z  relu(z)  gradient that passes\n");
  for (std::size_t i = 0; i < z.size(); ++i)
    std::printf("%6g  %7g  %20g\n", z[i], h[i], dz[i]);
}
