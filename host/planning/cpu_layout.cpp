#include "cpu_layout.h"

#include <algorithm>
#include <utility>

#include "arena_space.h"

namespace deviceloop {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

constexpr std::uint64_t kCacheLine = 64;
// A slot for each of at most this many blocks of rows.
constexpr std::int64_t kMaxBlocks = 64;
constexpr std::int64_t kChunkedPanelRows = 128;
constexpr std::int64_t kBlockRows = 8 * kChunkedPanelRows;
constexpr std::int64_t kChunkedMinSamples = 8 * kChunkedPanelRows;
// Parameters (in bytes) that a thread can keep in its cache besides a panel, with their gradients.
constexpr std::uint64_t kChunkedMaxParameterBytes = 1 << 20;
// Samples up to which a sum over the batch may be added straight to the weight.
constexpr std::int64_t kOneKBlock = 1024;
// Work below which a task is not worth handing to another thread.
constexpr double kTaskFlops = 4e6;

// Steps shorter than this run on one thread: a barrier twice a step costs microseconds when all threads run, and far
// more on a machine that is shared.
constexpr double kOneThreadUs = 1000;
// What a step costs beside arithmetic, for each layer.
constexpr double kLayerUs = 1;

// What passes over memory cost beside the products, of one core; measured by `deviceloop train` on an EPYC with
// AVX-512, and known to a factor of two. Short activations and losses are within the products' inaccuracy.
constexpr double kUpdateBytesPerUs = 40e3;  // of parameters, gradients and states
constexpr double kGatherBytesPerUs = 8e3;   // of rows that lie anywhere
constexpr double kOrderUs = 0.04;           // to draw the sample of a row
constexpr double kRoundBytesPerUs = 20e3;   // of operands that are rounded

/// Microseconds of an element on the way forward and back.
double element_us(Activation activation) {
  switch (activation) {
    case Activation::relu:
    case Activation::identity:
    case Activation::leaky_relu:
      break;
    case Activation::elu:
    case Activation::tanh:
    case Activation::sigmoid:
      return 0.7e-3;
    case Activation::silu:
    case Activation::gelu:
    case Activation::gelu_tanh:
    case Activation::softplus:
    case Activation::sine:
      return 3.5e-3;
  }
  return 0;
}
double element_us(Loss loss) {
  switch (loss) {
    case Loss::squared_error:
    case Loss::absolute_error:
    case Loss::huber:
      break;
    case Loss::binary_cross_entropy:
      return 5e-3;
    case Loss::cross_entropy:
      return 20e-3;
  }
  return 0;
}

/// Of an operation beside its product.
double pass_us(const Step& step, const StepOperation& op) {
  const auto bytes = [&](TensorId id) {
    const StepTensor& tensor = step.tensor(id);
    return static_cast<double>(tensor.rows) * static_cast<double>(tensor.columns) *
           static_cast<double>(size_of(element_type(step.precision)));
  };
  const double elements = static_cast<double>(op.rows) * static_cast<double>(op.columns);
  switch (op.kind) {
    case StepOperation::Kind::gather:
      return bytes(op.out) / kGatherBytesPerUs + kOrderUs * static_cast<double>(op.rows);
    case StepOperation::Kind::forward:
    case StepOperation::Kind::activate:
      return op.activation ? elements * element_us(op.activation->kind) : 0;
    case StepOperation::Kind::loss:
      return elements * element_us(op.loss.kind);
    case StepOperation::Kind::weight_update:
      if (elementwise::adds_gradient(op.optimizer)) return 0;
      return static_cast<double>(3 + 2 * elementwise::states_of(op.optimizer).size()) * bytes(op.out) /
             kUpdateBytesPerUs;
    case StepOperation::Kind::input_gradient:  // counted forward
    case StepOperation::Kind::bias_update:
    case StepOperation::Kind::sum_update:
    case StepOperation::Kind::kernel_matrix:
    case StepOperation::Kind::rebuild_weight:
    case StepOperation::Kind::rebuild_bias:
      break;
  }
  return 0;
}

// Estimated GEMM rate of a core.
double gflops_of(const CpuCaps& caps, Precision precision) {
  switch (precision) {
    case Precision::fp32:
    case Precision::tf32:
    case Precision::bf16:
    case Precision::fp16:
      return caps.gflops_fp32;
    case Precision::tf32x3:
      return caps.gflops_fp32 / 3;
    case Precision::fp64:
      break;
  }
  return caps.gflops_fp32 / 2;
}

/// Which tensors are operands of products, in a step or in predictions.
std::vector<bool> operands_of(const Step& step) {
  std::vector<bool> operands(step.tensors.size(), false);
  for (const auto* list : {&step.operations, &step.inference})
    for (const StepOperation& op : *list)
      if (op.inner > 0)
        for (const TensorId id : {op.a, op.b}) operands[static_cast<std::size_t>(id)] = true;
  return operands;
}

/// Of the operands of a step that are rounded in each of them.
double rounding_us(const Step& step) {
  const int parts = operand_parts(step.precision);
  if (parts == 0 || step.operations.empty()) return 0;
  const std::vector<bool> operands = operands_of(step);
  double elements = 0;
  for (std::size_t id = 0; id < operands.size(); ++id)
    if (operands[id] && step.tensors[id].lifetime != StepTensor::Lifetime::data)
      elements += static_cast<double>(step.tensors[id].rows) * static_cast<double>(step.tensors[id].columns);
  return elements * parts * static_cast<double>(size_of(element_type(step.precision))) / kRoundBytesPerUs;
}

/// How an update of a folded step is cut: tasks of about kTaskFlops, but Z by the panels of the batch.
void cut_folded(CpuLayout::Update& update, const CpuLayout& layout) {
  const StepOperation& op = update.operation;
  if (op.inner == 0) {  // of a bias
    update.task_rows = update.tasks = 1;
    return;
  }
  if (layout.step.gram && op.out == layout.step.gram->pre_activation) {
    update.task_rows = layout.panel_rows;
  } else {
    const double row_flops = 2.0 * static_cast<double>(op.columns) * static_cast<double>(op.inner);
    const double rows = std::min(kTaskFlops / row_flops, 1e9);
    update.task_rows = std::min(op.rows, round_up(static_cast<std::int64_t>(rows) + 1, 64));
  }
  update.tasks = divide_up(op.rows, update.task_rows);
}

void add_updates(CpuLayout& layout) {
  for (const StepOperation& op : layout.step.operations)
    if (!op.is_by_row()) layout.updates.push_back({op});
  std::stable_sort(layout.updates.begin(), layout.updates.end(),
                   [](const auto& one, const auto& other) { return one.operation.layer < other.operation.layer; });
  if (layout.step.gram)
    for (const StepOperation& op : layout.step.gram->rebuild) layout.rebuild.push_back({op});
  for (auto* list : {&layout.updates, &layout.rebuild})
    for (CpuLayout::Update& update : *list) {
      const StepTensor& out = layout.step.tensor(update.operation.out);
      update.elements = out.rows * out.columns;
      if (layout.chunked) {
        update.slot = layout.slot_elements;
        layout.slot_elements += update.elements;
      } else {
        cut_folded(update, layout);
      }
    }
}

}  // namespace

CpuLayout make_cpu_layout(const NetworkSpec& network, const TrainingSpec& training, int threads) {
  return make_cpu_layout(network, training, threads, make_step(network, training));
}

CpuLayout make_cpu_layout(const NetworkSpec& network, const TrainingSpec& training, int threads, Step made_step) {
  const std::uint64_t element = size_of(element_type(training.precision));
  CpuLayout layout;
  layout.step = std::move(made_step);
  const Step& step = layout.step;
  const std::int64_t batch = step.batch;
  layout.tensors.assign(step.tensors.size(), 0);
  ArenaSpace arena(network, training, kCacheLine), scratch(network, training, kCacheLine);
  const int parts = operand_parts(training.precision);
  const std::vector<bool> operands = operands_of(step);
  if (parts > 0) {
    layout.operands.resize(step.tensors.size());
    for (auto& of : layout.operands) of.fill(CpuLayout::kNone);
  }
  // The rounded elements of an operand, beside the tensor itself.
  const auto take_rounded = [&](TensorId id, ArenaSpace& space, std::int64_t rows) {
    if (!operands[static_cast<std::size_t>(id)]) return;
    for (int part = 0; part < parts; ++part)
      layout.operands[static_cast<std::size_t>(id)][static_cast<std::size_t>(part)] =
          space.take(rows, step.tensor(id).columns, element);
  };
  const auto take = [&](TensorId id, ArenaSpace& space, std::int64_t rows) {
    if (id != kNoTensor)
      layout.tensors[static_cast<std::size_t>(id)] = space.take(rows, step.tensor(id).columns, element);
  };
  const auto take_whole = [&](TensorId id) {
    if (id != kNoTensor) take(id, arena, step.tensor(id).rows);
  };

  std::int64_t widest = 0;  // of all layers' outputs
  for (const Step::Layer& layer : step.layers) {
    widest = std::max(widest, layer.out_features);
    take_whole(layer.weight);
    take_whole(layer.bias);
  }
  layout.parameter_bytes = arena.used();
  for (std::size_t state = 0; state < StateTensors().size(); ++state)
    for (const Step::Layer& layer : step.layers) {
      take_whole(layer.weight_state[state]);
      take_whole(layer.bias_state[state]);
    }
  layout.keeps_gradients = training.optimizer.clip_norm > 0 || scales_loss(training.precision);
  if (layout.keeps_gradients) {
    const auto bytes = static_cast<std::int64_t>(layout.parameter_bytes);
    layout.gradients = arena.take(bytes, 1, 1);
    layout.square_sums =
        arena.take(divide_up(bytes / static_cast<std::int64_t>(element), CpuLayout::kSlotRange), 1, sizeof(double));
  }
  take_whole(step.loss_scaling);
  for (const Step::Layer& layer : step.layers) take_rounded(layer.weight, arena, layer.in_features);
  if (step.gram) {
    const Step::Gram& gram = *step.gram;
    for (const TensorId id : {gram.kernel, gram.pre_activation, gram.sum, gram.start_weight, gram.start_bias})
      take_whole(id);
    for (const StateTensors& states :
         {gram.pre_activation_state, gram.sum_state, gram.start_weight_state, gram.start_bias_state})
      for (const TensorId id : states) take_whole(id);
  }

  layout.chunked = !step.gram && batch >= kChunkedMinSamples && layout.parameter_bytes <= kChunkedMaxParameterBytes;
  layout.adds_products =
      batch <= kOneKBlock && elementwise::adds_gradient(training.optimizer.kind) && !layout.keeps_gradients;
  if (layout.chunked) {
    layout.panel_rows = kChunkedPanelRows;
    // Five to eight blocks at least, so that several threads have work; no more slots than kMaxBlocks.
    layout.block_rows = std::clamp(kBlockRows, round_up(divide_up(batch, kMaxBlocks), kChunkedPanelRows),
                                   round_up(divide_up(batch, 8), kChunkedPanelRows));
  } else {
    // Eight panels where there are rows enough; a panel is large enough that a pass over the weights pays.
    layout.panel_rows = std::clamp<std::int64_t>(round_up(divide_up(batch, 8), 64), 64, CpuLayout::kMostPanelRows);
    layout.block_rows = layout.panel_rows;
  }
  layout.blocks = divide_up(batch, layout.block_rows);
  add_updates(layout);

  if (batch > 0) {
    take_whole(step.data_x);
    take_whole(step.data_y);
    take_whole(step.data_weights);
    take_rounded(step.data_x, arena, step.tensor(step.data_x).rows);
    layout.losses = arena.take(layout.blocks, 1, sizeof(double));
    if (layout.chunked) layout.slots = arena.take(layout.blocks, layout.slot_elements, element);
    const bool has_output_activation = step.inference.back().activation.has_value();
    const auto take_activation = [&](TensorId id) {
      ArenaSpace& space = layout.chunked ? scratch : arena;
      const std::int64_t rows = layout.chunked ? layout.panel_rows : batch;
      take(id, space, rows);
      take_rounded(id, space, rows);
    };
    if (step.x != step.data_x) {
      take_activation(step.x);
      take_activation(step.y);
      if (step.weights != kNoTensor) take_activation(step.weights);
    }
    for (const Step::Layer& layer : step.layers) {
      if (&layer != &step.layers.back() || has_output_activation) take_activation(layer.output);
      take_activation(layer.gradient);
      if (step.tensor(layer.kept).lifetime == StepTensor::Lifetime::activation && layer.kept != layer.output)
        take_activation(layer.kept);
    }
    if (!has_output_activation)
      layout.tensors[static_cast<std::size_t>(step.layers.back().output)] = layout.at(step.layers.back().gradient);
    if (!layout.chunked && !layout.adds_products) {
      std::int64_t most = 0;  // smaller than its parameter, which was counted
      for (const auto* list : {&layout.updates, &layout.rebuild})
        for (const CpuLayout::Update& update : *list)
          most = std::max(most, update.task_rows * update.operation.columns);
      layout.update = scratch.take(most, 1, element);
    }
  }
  if (network.bias) layout.column_sums = scratch.take(widest, 1, sizeof(double));
  layout.predict_input = scratch.take(CpuLayout::kPredictRows, network.widths.front(), element);
  layout.predict_even = scratch.take(CpuLayout::kPredictRows, widest, element);
  layout.predict_odd = scratch.take(CpuLayout::kPredictRows, widest, element);
  for (int part = 0; part < parts; ++part)
    layout.predict_operand[static_cast<std::size_t>(part)] =
        scratch.take(CpuLayout::kPredictRows, std::max(widest, network.widths.front()), element);
  layout.thread_stride = scratch.used();
  layout.thread_scratch = arena.take(threads, static_cast<std::int64_t>(layout.thread_stride), 1);
  layout.bytes = arena.used();
  return layout;
}

void ask_cpu(const Request& request, Answer& answer) {
  const TrainingSpec& training = request.training;
  const CpuCaps& caps = request.caps.cpu;
  Candidate& candidate = answer.candidate;
  candidate.reason = why_not_implemented(request);
  if (!candidate.reason.empty()) return;
  const double flops = 2 * multiply_adds(request.step.operations);
  double one_thread_us = flops / (gflops_of(caps, training.precision) * 1e3);
  for (const StepOperation& op : request.step.operations) one_thread_us += pass_us(request.step, op);
  one_thread_us += rounding_us(request.step);
  const double layers_us = kLayerUs * request.network.layers();
  answer.threads = training.threads;
  if (answer.threads == 0) answer.threads = one_thread_us < kOneThreadUs ? 1 : std::min(caps.cores, kMaxThreads);
  candidate.predicted_us_per_step =
      training.samples > 0 ? one_thread_us / std::min(answer.threads, caps.cores) + layers_us : 0;
  CpuLayout layout = make_cpu_layout(request.network, training, answer.threads, request.step);
  candidate.bytes = layout.bytes;
  answer.layout = std::move(layout);
  if (caps.memory_bytes != 0 && candidate.bytes > caps.memory_bytes) {
    candidate.reason = "it takes " + bytes_text(candidate.bytes) + " of memory and " + bytes_text(caps.memory_bytes) +
                       " are free; " + smaller_text(training);
    return;
  }
  candidate.accepted = true;
}

}  // namespace deviceloop
