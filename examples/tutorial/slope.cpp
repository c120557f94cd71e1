// Which way to move to make y = x^2 smaller, and how far the slope carries.
#include <cstdio>
#include <initializer_list>

int main() {
  for (const double start : {4.0, -4.0}) {
    double x = start;
    for (int step = 0; step < 5; ++step) {
      const double slope = 2 * x;
      std::printf("x = %7.4f  y = %8.4f  slope = %8.4f  move %s\n", x, x * x, slope,
                  slope > 0 ? "left" : "right");
      x -= 0.1 * slope;
    }
    std::printf("\n");
  }
}
