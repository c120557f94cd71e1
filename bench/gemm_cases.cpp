// gemm/... on the CPU: whole products on one core, by the gemm that the CPU executor calls for its panels.
#include "gemm_cases.h"

#include <deviceloop/plan.h>

#include <chrono>
#include <vector>

#include "../host/cpu/gemm.h"
#include "../host/matrix_ops.h"
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

std::vector<ProductBlock> product_blocks() {
  using Texts = std::vector<std::string>;
  const auto block = [](bool by_default, const std::string& layers, Texts which, const std::string& samples,
                        Texts precisions) {
    return ProductBlock{by_default,
                        {{"product", {"forward", "input_gradient", "weight_update"}},
                         {"layers", {layers}},
                         {"layer", std::move(which)},
                         {"n", {samples}},
                         {"precision", std::move(precisions)}}};
  };
  const std::string wide = "1024-1024-1024-10", deep = "64-64-64-1", widest = "4096-4096-4096-4096-4096";
  const Texts all = {"0", "1", "2"}, last_two = {"1", "2"}, both = {"fp32", "fp64"};
  return {block(true, "1000-100-1", all, "128", both),   block(true, "784-128-10", all, "64", {"fp32"}),
          block(true, wide, last_two, "1024", {"fp32"}), block(true, deep, last_two, "16384", {"fp32"}),
          block(true, widest, {"1"}, "8192", both),      block(false, wide, all, "1024", {"fp32"}),
          block(false, deep, all, "16384", {"fp32"}),    block(false, widest, all, "8192", both)};
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
  for (ProductBlock& block : product_blocks()) {
    const bool is_large = block.axes[1].values[0].rfind("4096", 0) == 0;
    blocks.push_back({block.by_default && !is_large, std::move(block.axes),
                      [seed = options.seed](const Values& values) -> std::optional<Case> {
                        const std::optional<ProductShape> shape = product_shape(values);
                        if (!shape) return std::nullopt;
                        Case made;
                        made.name = shape->name;
                        made.prepare = [seed, shape = *shape]() -> std::unique_ptr<Work> {
                          return with_type(element_type(shape.precision), [&]<class T>(T*) -> std::unique_ptr<Work> {
                            return std::make_unique<GemmWork<T>>(shape, seed);
                          });
                        };
                        return made;
                      }});
  }
  return blocks;
}

}  // namespace deviceloop::bench
