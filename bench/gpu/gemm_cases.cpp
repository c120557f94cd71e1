// gemm/cuda/...: the products of a step by cuBLASLt, with the algorithm that the graph executor takes. A sample is a
// graph of some products; the operands stay where they are, as they do from step to step.
#include "../gemm_cases.h"

#include <nlohmann/json.hpp>

#include "../../cuda/runtime/gemm.h"
#include "../../host/matrix_ops.h"
#include "cases.h"
#include "device.h"

namespace deviceloop::bench {
namespace {

constexpr std::int64_t kProducts = 16;

template <class T>
class GpuGemmWork final : public Work {
 public:
  GpuGemmWork(const ProductShape& shape, std::uint64_t seed)
      : shape_(shape),
        seed_(seed),
        a_(shape.a_elements()),
        b_(shape.b_elements()),
        out_(shape.out_elements()),
        factors_(2),
        workspace_(static_cast<std::int64_t>(kGemmWorkspaceBytes)),
        library_(workspace_.data()),
        gemm_(library_, {shape.m, shape.n, shape.k, shape.transpose_a, shape.transpose_b},
              sizeof(T) == 4 ? Precision::fp32 : Precision::fp64) {
    fill_random(a_, seed, kFirst, false, stream_);
    fill_random(b_, seed, kSecond, false, stream_);
    const T factors[] = {1, 0};
    DEVICELOOP_CHECK_CUDA(
        cudaMemcpyAsync(factors_.data(), factors, sizeof factors, cudaMemcpyHostToDevice, stream_.get()));
    batch_ = Batch(kProducts, stream_, [&](std::int64_t, cudaStream_t stream) {
      gemm_.run(factors_.data(), a_.data(), b_.data(), factors_.data() + 1, out_.data(), stream);
    });
  }

  Demand demand() const override {
    Demand demand = demand_of(shape_);
    demand.device = Device::cuda;
    return demand;
  }
  void poison() override { out_.poison(stream_); }
  double run(std::int64_t calls) override { return batch_.us_of_a_launch(calls, stream_); }
  void check() override { check_product(shape_, seed_, out_.read(0, out_.count(), stream_).data()); }
  nlohmann::json details() const override { return {{"algorithm", gemm_.description()}}; }

 private:
  ProductShape shape_;
  std::uint64_t seed_;
  cuda::StreamOwner stream_;
  DeviceArray<T> a_, b_, out_, factors_;
  DeviceArray<char> workspace_;
  cuda::GemmLibrary library_;
  cuda::Gemm gemm_;
  Batch batch_;
};

}  // namespace

std::vector<Block> gpu_gemm_blocks(const GpuCaps& gpu, std::uint64_t seed) {
  std::vector<Block> blocks;
  for (ProductBlock& block : product_blocks())
    blocks.push_back({block.by_default, std::move(block.axes), [=](const Values& values) -> std::optional<Case> {
                        const std::optional<ProductShape> shape = product_shape(values);
                        if (!shape) return std::nullopt;
                        Case made;
                        made.name = "gemm/cuda" + shape->name.substr(shape->name.find('/'));
                        made.device = Device::cuda;
                        if (demand_of(*shape).bytes > 0.9 * static_cast<double>(gpu.memory_bytes))
                          made.refused = "its matrices take more memory than the GPU has";
                        made.prepare = [=]() -> std::unique_ptr<Work> {
                          return with_type(element_type(shape->precision), [&]<class T>(T*) -> std::unique_ptr<Work> {
                            return std::make_unique<GpuGemmWork<T>>(*shape, seed);
                          });
                        };
                        return made;
                      }});
  return blocks;
}

}  // namespace deviceloop::bench
