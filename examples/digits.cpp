// Reads handwritten digits: digits [FILE], by default digits.csv, with images of 28 x
// 28 pixels from 0 to 1 in its first 784 columns and the digit in the last one. A fifth
// of the rows validates after each epoch; at the end the program shows which digits are
// taken for which, and the first image that is misread.
#include <deviceloop/deviceloop.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "csv.h"

namespace {

constexpr std::size_t kSide = 28, kPixels = kSide * kSide, kDigits = 10;
constexpr int kEpochs = 10;

struct Images {
  std::vector<double> pixels, digits;  // row by row
  std::size_t size() const { return digits.size(); }
  deviceloop::ConstMatrix x() const {
    return {pixels.data(), static_cast<std::int64_t>(size()),
            static_cast<std::int64_t>(kPixels)};
  }
  deviceloop::ConstMatrix y() const {
    return {digits.data(), static_cast<std::int64_t>(size()), 1};
  }
};

Images take(const Table& table, std::size_t first, std::size_t end) {
  Images images;
  for (std::size_t row = first; row < end; ++row) {
    for (std::size_t pixel = 0; pixel < kPixels; ++pixel)
      images.pixels.push_back(table.at(row, pixel));
    images.digits.push_back(table.at(row, kPixels));
  }
  return images;
}

/// The digit of each image: the output that is the largest.
std::vector<std::size_t> read_digits(deviceloop::Trainer& trainer,
                                     const Images& images) {
  std::vector<double> outputs(images.size() * kDigits);
  trainer.predict(images.x(),
                  {outputs.data(), static_cast<std::int64_t>(images.size()), kDigits});
  std::vector<std::size_t> digits;
  for (auto row = outputs.begin(); row != outputs.end(); row += kDigits)
    digits.push_back(
        static_cast<std::size_t>(std::max_element(row, row + kDigits) - row));
  return digits;
}

/// Characters are about twice as high as wide: each is the mean of two pixels.
void draw(const double* pixels) {
  constexpr char kInk[] = " .:-=+*#%@";
  for (std::size_t row = 0; row < kSide; row += 2) {
    std::string line;
    for (std::size_t column = 0; column < kSide; ++column) {
      const double ink =
          (pixels[row * kSide + column] + pixels[(row + 1) * kSide + column]) / 2;
      line += kInk[static_cast<std::size_t>(std::clamp(ink, 0.0, 0.99) * 10)];
    }
    std::printf("%s\n", line.substr(0, line.find_last_not_of(' ') + 1).c_str());
  }
}

void run(const std::string& file) {
  const Table table = read_csv(file);
  if (table.columns() != kPixels + 1)
    throw std::runtime_error(file + " has " + std::to_string(table.columns()) +
                             " columns, not 784 pixels and a digit");
  if (table.rows() < 100)
    throw std::runtime_error(file + " has " + std::to_string(table.rows()) +
                             " rows; give it 100");
  const std::size_t border = table.rows() - table.rows() / 5;
  const Images training = take(table, 0, border),
               validation = take(table, border, table.rows());

  const deviceloop::NetworkSpec network{.widths = {kPixels, 128, kDigits},
                                        .bias = true};
  deviceloop::TrainingSpec spec;
  spec.loss = deviceloop::Loss::cross_entropy;
  spec.reduction = deviceloop::Reduction::mean;
  spec.optimizer.kind = deviceloop::OptimizerKind::adam;
  spec.optimizer.learning_rate = 1e-3;
  spec.batch_size = 32;
  spec.precision = deviceloop::Precision::fp64;
  deviceloop::Trainer trainer(network, spec);
  trainer.initialize(spec.seed, deviceloop::Init::he);
  trainer.set_data(training.x(), training.y());
  trainer.set_validation(validation.x(), validation.y());

  std::printf("%zu images to train on, %zu to validate by\n", training.size(),
              validation.size());
  const std::int64_t steps =
      (kEpochs * static_cast<std::int64_t>(training.size()) + spec.batch_size - 1) /
      spec.batch_size;
  int epoch = 0;
  trainer.train(steps, [&](const deviceloop::TrainProgress& progress) {
    for (const deviceloop::Evaluation& evaluation : progress.evaluations)
      std::printf("epoch %d: %.1f %% right\n", ++epoch,
                  100 * evaluation.accuracy.value());
    return true;
  });

  const std::vector<std::size_t> read = read_digits(trainer, validation);
  std::array<std::array<int, kDigits>, kDigits> counts{};  // [digit][read as]
  std::size_t misread = read.size();
  for (std::size_t i = 0; i < read.size(); ++i) {
    const auto digit = static_cast<std::size_t>(validation.digits[i]);
    ++counts[digit][read[i]];
    if (digit != read[i]) misread = std::min(misread, i);
  }
  std::printf("\n      read as 0    1    2    3    4    5    6    7    8    9\n");
  for (std::size_t digit = 0; digit < kDigits; ++digit) {
    std::printf("digit %zu", digit);
    for (const int count : counts[digit])
      std::printf(count == 0 ? "    ." : "%5d", count);
    std::printf("\n");
  }
  if (misread == read.size()) return;
  std::printf("\nrow %zu is the digit %.0f, read as %zu:\n", border + misread + 1,
              validation.digits[misread], read[misread]);
  draw(&validation.pixels[misread * kPixels]);
}

}  // namespace

int main(int count, char** arguments) try {
  if (count > 2) throw std::runtime_error("usage: digits [FILE]");
  run(count > 1 ? arguments[1] : "digits.csv");
} catch (const std::exception& error) {
  std::fprintf(stderr, "digits: %s\n", error.what());
  return 2;
}
