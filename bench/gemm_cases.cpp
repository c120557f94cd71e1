// gemm/... on the CPU: whole products on one core, by the gemm that the CPU executor calls for its panels.
#include "gemm_cases.h"

#include <deviceloop/plan.h>

#include <chrono>
#include <vector>

#include "../host/gemm.h"
#include "cases.h"

namespace deviceloop::bench {
namespace {

using Clock = std::chrono::steady_clock;

template <class T>
class GemmWork final : public Work {
 public:
  GemmWork(const ProductShape& shape, std::uint64_t seed)
      : shape_(shape),
        seed_(seed),
        a_(static_cast<std::size_t>(shape.a_elements())),
        b_(static_cast<std::size_t>(shape.b_elements())),
        out_(static_cast<std::size_t>(shape.out_elements())) {
    for (std::size_t i = 0; i < a_.size(); ++i) a_[i] = random_value<T>(seed, kFirst, static_cast<std::int64_t>(i));
    for (std::size_t i = 0; i < b_.size(); ++i) b_[i] = random_value<T>(seed, kSecond, static_cast<std::int64_t>(i));
  }

  Demand demand() const override { return demand_of(shape_); }
  void poison() override { std::fill(out_.begin(), out_.end(), static_cast<T>(std::nan(""))); }

  double run(std::int64_t calls) override {
    const SingleThreadedBlas single_threaded;
    const auto transpose = [](bool is) { return is ? Transpose::yes : Transpose::no; };
    const std::int64_t lda = shape_.transpose_a ? shape_.m : shape_.k, ldb = shape_.transpose_b ? shape_.k : shape_.n;
    const Clock::time_point start = Clock::now();
    for (std::int64_t call = 0; call < calls; ++call)
      gemm<T>(transpose(shape_.transpose_a), transpose(shape_.transpose_b), shape_.m, shape_.n, shape_.k, T(1),
              a_.data(), lda, b_.data(), ldb, T(0), out_.data(), shape_.n);
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / static_cast<double>(calls);
  }

  void check() override { check_product(shape_, seed_, out_.data()); }

 private:
  ProductShape shape_;
  std::uint64_t seed_;
  std::vector<T> a_, b_, out_;
};

}  // namespace

std::vector<std::vector<Axis>> product_axes() {
  const auto axes = [](std::vector<std::string> layers, std::vector<std::string> samples,
                       std::vector<std::string> precisions) {
    return std::vector<Axis>{{"product", {"forward", "input_gradient", "weight_update"}},
                             {"layers", std::move(layers)},
                             {"layer", {"0", "1", "2"}},
                             {"n", std::move(samples)},
                             {"precision", std::move(precisions)}};
  };
  return {axes({"1000-100-1"}, {"128"}, {"fp32", "fp64"}), axes({"784-128-10"}, {"64"}, {"fp32"}),
          axes({"1024-1024-1024-10"}, {"1024"}, {"fp32"}), axes({"64-64-64-1"}, {"16384"}, {"fp32"}),
          axes({"4096-4096-4096-4096-4096"}, {"8192"}, {"fp32", "fp64"})};
}

std::optional<ProductShape> product_shape(const Values& values) {
  const std::vector<std::int64_t> widths = widths_of(values);
  const std::string &product = values.at("product"), &layer_text = values.at("layer");
  const std::int64_t layer = layer_text == "0" ? 0 : count_of(values, "layer");
  if (layer + 1 >= static_cast<std::int64_t>(widths.size())) return std::nullopt;
  const std::int64_t in = widths[static_cast<std::size_t>(layer)], out = widths[static_cast<std::size_t>(layer) + 1];
  const std::int64_t samples = count_of(values, "n");
  ProductShape shape;
  shape.precision = precision_of(values);
  if (product == "forward")
    shape = {"", shape.precision, samples, out, in, false, false};
  else if (product == "input_gradient" && layer > 0)
    shape = {"", shape.precision, samples, in, out, false, true};
  else if (product == "weight_update")
    shape = {"", shape.precision, in, out, samples, true, false};
  else if (product == "input_gradient")
    return std::nullopt;
  else
    throw UsageError("--axis product=" + product + ": it takes forward, input_gradient or weight_update");
  shape.name = "gemm/" + product + "/" + values.at("layers") + "/layer=" + layer_text +
               "/n=" + std::to_string(samples) + "/" + deviceloop::name(shape.precision);
  return shape;
}

Demand demand_of(const ProductShape& shape) {
  Demand demand;
  const double element = static_cast<double>(size_of(element_type(shape.precision)));
  demand.precision = shape.precision;
  demand.elements = static_cast<double>(shape.out_elements());
  demand.flops = 2 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  demand.bytes = demand.footprint =
      element * static_cast<double>(shape.a_elements() + shape.b_elements() + shape.out_elements());
  demand.reads = 2;
  return demand;
}

std::vector<Block> gemm_blocks(const CaseOptions& options) {
  std::vector<Block> blocks;
  for (std::vector<Axis>& axes : product_axes()) {
    const bool is_large = axes[1].values[0].rfind("4096", 0) == 0;
    blocks.push_back({!is_large, std::move(axes), [seed = options.seed](const Values& values) -> std::optional<Case> {
                        const std::optional<ProductShape> shape = product_shape(values);
                        if (!shape) return std::nullopt;
                        Case made;
                        made.name = shape->name;
                        made.prepare = [seed, shape = *shape]() -> std::unique_ptr<Work> {
                          if (shape.precision == Precision::fp32) return std::make_unique<GemmWork<float>>(shape, seed);
                          return std::make_unique<GemmWork<double>>(shape, seed);
                        };
                        return made;
                      }});
  }
  return blocks;
}

}  // namespace deviceloop::bench
