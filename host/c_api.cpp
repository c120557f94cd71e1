// The C API of <deviceloop/deviceloop_c.h>: each function checks its pointers, calls the C++ function of the same name
// and turns what it throws into a status and a text.
#include <deviceloop/cuda.h>
#include <deviceloop/deviceloop.h>
#include <deviceloop/deviceloop_c.h>
#include <deviceloop/dlpack.h>
#include <dlpack/dlpack.h>

#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "names.h"

struct deviceloop_caps {
  deviceloop::DeviceCaps caps;
};
struct deviceloop_plan {
  deviceloop::Plan plan;
};
struct deviceloop_report {
  deviceloop::TrainReport report;
};
struct deviceloop_run {
  deviceloop::TrainRun run;
  std::vector<double> losses{};  ///< that the caller was given
};
struct deviceloop_trainer {
  deviceloop::Trainer trainer;
};

namespace deviceloop {
namespace {

// ---- Numbers: those of C are fixed, and the C++ ones must be the same ---------------------------------------------

template <class Enum>
constexpr bool is(Enum value, std::int32_t number) {
  return static_cast<std::int32_t>(value) == number;
}

static_assert(is(ElementType::float32, DEVICELOOP_ELEMENT_FLOAT32) &&
              is(ElementType::float64, DEVICELOOP_ELEMENT_FLOAT64) &&
              is(ElementType::bfloat16, DEVICELOOP_ELEMENT_BFLOAT16) &&
              is(ElementType::float16, DEVICELOOP_ELEMENT_FLOAT16));
static_assert(is(MemorySpace::host, DEVICELOOP_MEMORY_HOST) && is(MemorySpace::device, DEVICELOOP_MEMORY_DEVICE));
static_assert(kTensorX == DEVICELOOP_TENSOR_X && kTensorY == DEVICELOOP_TENSOR_Y);
static_assert(
    is(Activation::relu, DEVICELOOP_ACTIVATION_RELU) && is(Activation::identity, DEVICELOOP_ACTIVATION_IDENTITY) &&
    is(Activation::leaky_relu, DEVICELOOP_ACTIVATION_LEAKY_RELU) && is(Activation::elu, DEVICELOOP_ACTIVATION_ELU) &&
    is(Activation::silu, DEVICELOOP_ACTIVATION_SILU) && is(Activation::gelu, DEVICELOOP_ACTIVATION_GELU) &&
    is(Activation::gelu_tanh, DEVICELOOP_ACTIVATION_GELU_TANH) && is(Activation::tanh, DEVICELOOP_ACTIVATION_TANH) &&
    is(Activation::sigmoid, DEVICELOOP_ACTIVATION_SIGMOID) &&
    is(Activation::softplus, DEVICELOOP_ACTIVATION_SOFTPLUS) && is(Activation::sine, DEVICELOOP_ACTIVATION_SINE));
static_assert(is(Loss::squared_error, DEVICELOOP_LOSS_SQUARED_ERROR) &&
              is(Loss::absolute_error, DEVICELOOP_LOSS_ABSOLUTE_ERROR) && is(Loss::huber, DEVICELOOP_LOSS_HUBER) &&
              is(Loss::binary_cross_entropy, DEVICELOOP_LOSS_BINARY_CROSS_ENTROPY) &&
              is(Loss::cross_entropy, DEVICELOOP_LOSS_CROSS_ENTROPY));
static_assert(is(Reduction::sum, DEVICELOOP_REDUCTION_SUM) && is(Reduction::mean, DEVICELOOP_REDUCTION_MEAN));
static_assert(is(OptimizerKind::gradient_descent, DEVICELOOP_OPTIMIZER_GRADIENT_DESCENT) &&
              is(OptimizerKind::sgd, DEVICELOOP_OPTIMIZER_SGD) && is(OptimizerKind::adam, DEVICELOOP_OPTIMIZER_ADAM) &&
              is(OptimizerKind::adamw, DEVICELOOP_OPTIMIZER_ADAMW) &&
              is(OptimizerKind::rmsprop, DEVICELOOP_OPTIMIZER_RMSPROP));
static_assert(is(ScheduleKind::constant, DEVICELOOP_SCHEDULE_CONSTANT) &&
              is(ScheduleKind::step, DEVICELOOP_SCHEDULE_STEP) &&
              is(ScheduleKind::exponential, DEVICELOOP_SCHEDULE_EXPONENTIAL) &&
              is(ScheduleKind::cosine, DEVICELOOP_SCHEDULE_COSINE));
static_assert(is(Precision::fp32, DEVICELOOP_PRECISION_FP32) && is(Precision::fp64, DEVICELOOP_PRECISION_FP64) &&
              is(Precision::tf32, DEVICELOOP_PRECISION_TF32) && is(Precision::tf32x3, DEVICELOOP_PRECISION_TF32X3) &&
              is(Precision::bf16, DEVICELOOP_PRECISION_BF16) && is(Precision::fp16, DEVICELOOP_PRECISION_FP16));
static_assert(is(Formulation::primal, DEVICELOOP_FORMULATION_PRIMAL) &&
              is(Formulation::gram, DEVICELOOP_FORMULATION_GRAM));
static_assert(is(Init::normal, DEVICELOOP_INIT_NORMAL) && is(Init::he, DEVICELOOP_INIT_HE) &&
              is(Init::xavier, DEVICELOOP_INIT_XAVIER));
static_assert(is(DeviceKind::automatic, DEVICELOOP_DEVICE_AUTOMATIC) && is(DeviceKind::cpu, DEVICELOOP_DEVICE_CPU) &&
              is(DeviceKind::cuda, DEVICELOOP_DEVICE_CUDA));
static_assert(is(PersistentForm::automatic, DEVICELOOP_FORM_AUTOMATIC) &&
              is(PersistentForm::two_layer, DEVICELOOP_FORM_TWO_LAYER) &&
              is(PersistentForm::on_chip, DEVICELOOP_FORM_ON_CHIP));
static_assert(is(ExecutorKind::cpu, DEVICELOOP_EXECUTOR_CPU) && is(ExecutorKind::graph, DEVICELOOP_EXECUTOR_GRAPH) &&
              is(ExecutorKind::persistent, DEVICELOOP_EXECUTOR_PERSISTENT) &&
              is(ExecutorKind::fused, DEVICELOOP_EXECUTOR_FUSED));
static_assert(is(EndOfRun::all_steps, DEVICELOOP_END_ALL_STEPS) && is(EndOfRun::callback, DEVICELOOP_END_CALLBACK) &&
              is(EndOfRun::patience, DEVICELOOP_END_PATIENCE) && is(EndOfRun::target_loss, DEVICELOOP_END_TARGET_LOSS));
static_assert(kMaxWidth == DEVICELOOP_MAX_WIDTH && kMaxThreads == DEVICELOOP_MAX_THREADS &&
              cuda::kMaxNarrowOutputs == DEVICELOOP_MAX_NARROW_OUTPUTS);

template <class Enum>
std::int32_t number(Enum value) {
  return static_cast<std::int32_t>(value);
}

// Values that do not exist are found where the C++ API finds them.
template <class Enum>
Enum value(std::int32_t number) {
  static_assert(std::is_same_v<std::underlying_type_t<Enum>, std::int32_t>);
  return static_cast<Enum>(number);
}

std::optional<ExecutorKind> executor(std::int32_t forced) {
  if (forced == DEVICELOOP_EXECUTOR_AUTOMATIC) return std::nullopt;
  return value<ExecutorKind>(forced);
}

// ---- Errors -------------------------------------------------------------------------------------------------------

struct LastError {
  std::string text{};
  bool is_lost = false;  ///< no memory was left for the text
  std::optional<DeviceError> device{};
};

LastError& last_error() {
  thread_local LastError error;
  return error;
}

constexpr const char* kNoMemory = "the host has no memory left for this call";

deviceloop_status failed(deviceloop_status status, const char* text) noexcept {
  LastError& error = last_error();
  try {
    error.text = text;
    error.is_lost = false;
  } catch (...) {
    error.is_lost = true;
  }
  return status;
}

/// What each function is: `work`, which gets the function's name for its messages, and whose exceptions become a status
/// and a text.
template <class Work>
deviceloop_status guarded(const char* function, const Work& work) noexcept {
  try {
    work(function);
    return DEVICELOOP_OK;
  } catch (const InvalidArgument& error) {
    return failed(DEVICELOOP_INVALID_ARGUMENT, error.what());
  } catch (const Unsupported& error) {
    return failed(DEVICELOOP_UNSUPPORTED, error.what());
  } catch (const DeviceError& error) {
    try {
      last_error().device = error;
    } catch (...) {
      last_error().device.reset();
    }
    return failed(DEVICELOOP_DEVICE_ERROR, error.what());
  } catch (const std::bad_alloc&) {
    return failed(DEVICELOOP_OUT_OF_MEMORY, kNoMemory);
  } catch (const std::exception& error) {
    return failed(DEVICELOOP_ERROR, error.what());
  } catch (...) {
    return failed(DEVICELOOP_ERROR, "the callback has thrown something that is no std::exception");
  }
}

[[noreturn]] void refuse(const char* function, const std::string& what) {
  throw InvalidArgument(std::string(function) + ": " + what);
}

template <class T>
T& checked(const char* function, const char* name, T* pointer) {
  if (pointer == nullptr) refuse(function, std::string("the argument '") + name + "' is null; it must not be");
  return *pointer;
}

/// The argument `pointer`, which must not be null, of a function whose `work` this is in.
#define CHECKED(pointer) checked(function, #pointer, pointer)

/// A handle for the caller, who gets null where `make` throws.
template <class Handle, class Make>
deviceloop_status made(const char* name_of_function, const char* name, Handle** handle, const Make& make) noexcept {
  return guarded(name_of_function, [&](const char* function) {
    checked(function, name, handle) = nullptr;
    *handle = new Handle{make(function)};
  });
}

#define MADE(handle, make) made(__func__, #handle, handle, [&]([[maybe_unused]] const char* function) { return make; })

// ---- Structs that may grow ----------------------------------------------------------------------------------------

/// Throws unless a struct of `size` bytes is a T of this version or of an older one, which ended after a smaller number
/// of members.
template <class T>
void check_size(const char* function, std::size_t size) {
  static_assert(std::is_standard_layout_v<T> && std::is_trivially_copyable_v<T> && sizeof(T) % 8 == 0);
  if (size > sizeof(T))
    refuse(function, "struct_size is " + std::to_string(size) +
                         ", but the struct of version " DEVICELOOP_VERSION " has " + std::to_string(sizeof(T)) +
                         " bytes; load a newer library, or compile with this one's header");
  if (size < 2 * sizeof(std::size_t) || size % 8 != 0)
    refuse(function, "struct_size is " + std::to_string(size) +
                         ", which no version of the struct has; set it to its sizeof before anything else");
}

/// The members that the caller's struct has, the others as in `whole`.
template <class T>
T taken(const char* function, const char* name, const T* given, T whole) {
  const std::size_t size = checked(function, name, given).struct_size;
  check_size<T>(function, size);
  std::memcpy(&whole, given, size);
  whole.struct_size = sizeof(T);
  return whole;
}

/// `whole` for the caller, as far as his struct has its members.
template <class T>
void give(const char* function, const char* name, T* out, T whole) {
  whole.struct_size = checked(function, name, out).struct_size;
  check_size<T>(function, whole.struct_size);
  std::memcpy(out, &whole, whole.struct_size);
}

void check_reserved(const char* function, std::int32_t reserved) {
  if (reserved != 0)
    refuse(function, "'reserved' is " + std::to_string(reserved) + ", but must be 0; call the struct's ..._init first");
}

const char* text_or_empty(const char* text) { return text != nullptr ? text : ""; }

deviceloop_network_spec to_c(const NetworkSpec& network) {
  deviceloop_network_spec spec{};
  spec.struct_size = sizeof spec;
  spec.widths = network.widths.data();
  spec.width_count = static_cast<std::int64_t>(network.widths.size());
  spec.activation = number(network.activation);
  spec.output_activation = number(network.output_activation);
  spec.leaky_slope = network.leaky_slope;
  spec.bias = network.bias;
  return spec;
}

NetworkSpec network_of(const char* function, const deviceloop_network_spec* given) {
  const deviceloop_network_spec spec = taken(function, "network", given, to_c({}));
  check_reserved(function, spec.reserved);
  if (spec.width_count < 0 || (spec.widths == nullptr && spec.width_count != 0))
    refuse(function, spec.width_count < 0
                         ? "width_count is " + std::to_string(spec.width_count) + "; it counts 'widths'"
                         : "'widths' is null; give " + std::to_string(spec.width_count) + " widths");
  // The longest list that a plan can accept is far shorter; a wild number must not be read.
  constexpr std::int64_t most = 1 << 20;
  if (spec.width_count > most)
    refuse(function, "width_count is " + std::to_string(spec.width_count) + "; at most " + std::to_string(most) +
                         " widths are possible");
  NetworkSpec network;
  network.widths.assign(spec.widths, spec.widths + spec.width_count);
  network.activation = value<Activation>(spec.activation);
  network.bias = spec.bias != 0;
  network.output_activation = value<Activation>(spec.output_activation);
  network.leaky_slope = spec.leaky_slope;
  return network;
}

deviceloop_training_spec to_c(const TrainingSpec& training) {
  const Optimizer& optimizer = training.optimizer;
  const Schedule& schedule = optimizer.schedule;
  deviceloop_training_spec spec{};
  spec.struct_size = sizeof spec;
  spec.loss = number(training.loss);
  spec.reduction = number(training.reduction);
  spec.huber_delta = training.huber_delta;
  spec.class_targets = training.class_targets;
  spec.sample_weights = training.sample_weights;
  spec.optimizer = number(optimizer.kind);
  spec.nesterov = optimizer.nesterov;
  spec.learning_rate = optimizer.learning_rate;
  spec.momentum = optimizer.momentum;
  spec.has_weight_decay = optimizer.weight_decay.has_value();
  spec.has_beta2 = optimizer.beta2.has_value();
  spec.weight_decay = optimizer.weight_decay.value_or(0);
  spec.beta1 = optimizer.beta1;
  spec.beta2 = optimizer.beta2.value_or(0);
  spec.epsilon = optimizer.epsilon;
  spec.clip_norm = optimizer.clip_norm;
  spec.clip_value = optimizer.clip_value;
  spec.schedule = number(schedule.kind);
  spec.shuffle = training.shuffle;
  spec.schedule_period = schedule.period;
  spec.schedule_factor = schedule.factor;
  spec.schedule_end_rate = schedule.end_rate;
  spec.warmup_steps = schedule.warmup_steps;
  spec.samples = training.samples;
  spec.batch_size = training.batch_size;
  spec.watch_every = training.watch.every;
  spec.watch_patience = training.watch.patience;
  spec.has_target_loss = training.watch.target_loss.has_value();
  spec.keep_best = training.watch.keep_best;
  spec.target_loss = training.watch.target_loss.value_or(0);
  spec.precision = number(training.precision);
  spec.formulation = number(training.formulation);
  spec.reprojection_steps = training.reprojection_steps;
  spec.deterministic = training.deterministic;
  spec.device = number(training.device.kind);
  spec.device_index = training.device.index;
  spec.form = number(training.form);
  spec.deadline_ms = training.deadline_ms;
  spec.threads = training.threads;
  spec.in_place = (training.in_place.x ? DEVICELOOP_IN_PLACE_X : 0) |
                  (training.in_place.y ? DEVICELOOP_IN_PLACE_Y : 0) |
                  (training.in_place.sample_weights ? DEVICELOOP_IN_PLACE_SAMPLE_WEIGHTS : 0);
  spec.seed = training.seed;
  return spec;
}

TrainingSpec training_of(const char* function, const deviceloop_training_spec* given) {
  TrainingSpec training;
  if (given == nullptr) return training;
  const deviceloop_training_spec spec = taken(function, "training", given, to_c(training));
  constexpr int all_in_place = DEVICELOOP_IN_PLACE_X | DEVICELOOP_IN_PLACE_Y | DEVICELOOP_IN_PLACE_SAMPLE_WEIGHTS;
  if ((spec.in_place & ~all_in_place) != 0)
    refuse(function, "in_place is " + std::to_string(spec.in_place) +
                         "; it is a sum of DEVICELOOP_IN_PLACE_X, _Y and _SAMPLE_WEIGHTS");
  Optimizer& optimizer = training.optimizer;
  Schedule& schedule = optimizer.schedule;
  training.loss = value<Loss>(spec.loss);
  training.reduction = value<Reduction>(spec.reduction);
  training.huber_delta = spec.huber_delta;
  training.class_targets = spec.class_targets != 0;
  training.sample_weights = spec.sample_weights != 0;
  optimizer.kind = value<OptimizerKind>(spec.optimizer);
  optimizer.nesterov = spec.nesterov != 0;
  optimizer.learning_rate = spec.learning_rate;
  optimizer.momentum = spec.momentum;
  if (spec.has_weight_decay != 0) optimizer.weight_decay = spec.weight_decay;
  optimizer.beta1 = spec.beta1;
  if (spec.has_beta2 != 0) optimizer.beta2 = spec.beta2;
  optimizer.epsilon = spec.epsilon;
  optimizer.clip_norm = spec.clip_norm;
  optimizer.clip_value = spec.clip_value;
  schedule.kind = value<ScheduleKind>(spec.schedule);
  schedule.period = spec.schedule_period;
  schedule.factor = spec.schedule_factor;
  schedule.end_rate = spec.schedule_end_rate;
  schedule.warmup_steps = spec.warmup_steps;
  training.samples = spec.samples;
  training.batch_size = spec.batch_size;
  training.shuffle = spec.shuffle != 0;
  training.watch.every = spec.watch_every;
  training.watch.patience = spec.watch_patience;
  if (spec.has_target_loss != 0) training.watch.target_loss = spec.target_loss;
  training.watch.keep_best = spec.keep_best != 0;
  training.precision = value<Precision>(spec.precision);
  training.formulation = value<Formulation>(spec.formulation);
  training.reprojection_steps = spec.reprojection_steps;
  training.deterministic = spec.deterministic != 0;
  training.device = {value<DeviceKind>(spec.device), spec.device_index};
  training.deadline_ms = spec.deadline_ms;
  training.form = value<PersistentForm>(spec.form);
  training.threads = spec.threads;
  training.in_place = {.x = (spec.in_place & DEVICELOOP_IN_PLACE_X) != 0,
                       .y = (spec.in_place & DEVICELOOP_IN_PLACE_Y) != 0,
                       .sample_weights = (spec.in_place & DEVICELOOP_IN_PLACE_SAMPLE_WEIGHTS) != 0};
  training.seed = spec.seed;
  return training;
}

CudaOptions cuda_options_of(const char* function, const deviceloop_cuda_options* given) {
  const deviceloop_cuda_options set = taken(function, "options", given, deviceloop_cuda_options{});
  check_reserved(function, set.reserved);
  CudaOptions options;
  if (set.has_stream != 0) options.stream = set.stream;
  if (set.allocate != nullptr) options.allocate = [set](std::size_t bytes) { return set.allocate(bytes, set.user); };
  if (set.free != nullptr) options.free = [set](void* memory, std::size_t bytes) { set.free(memory, bytes, set.user); };
  return options;
}

deviceloop_caps_info to_c(const DeviceCaps& caps) {
  deviceloop_caps_info info{};
  info.struct_size = sizeof info;
  info.memory_bytes = caps.cpu.memory_bytes;
  info.gflops_fp32 = caps.cpu.gflops_fp32;
  info.cores = caps.cpu.cores;
  info.gpus = static_cast<std::int32_t>(caps.gpus.size());
  info.no_gpu_reason = caps.no_gpu_reason.c_str();
  info.no_cublaslt_reason = caps.no_cublaslt_reason.c_str();
  return info;
}

deviceloop_gpu_caps to_c(const GpuCaps& gpu) {
  deviceloop_gpu_caps caps{};
  caps.struct_size = sizeof caps;
  caps.name = gpu.name.c_str();
  caps.index = gpu.index;
  caps.compute_capability = gpu.compute_capability;
  caps.multiprocessors = gpu.multiprocessors;
  caps.cooperative = gpu.cooperative;
  caps.memory_bytes = gpu.memory_bytes;
  caps.memory_gb_per_s = gpu.memory_gb_per_s;
  caps.l2_bytes = gpu.l2_bytes;
  caps.shared_bytes = gpu.shared_bytes;
  caps.no_code_reason = gpu.no_code_reason.c_str();
  caps.no_hopper_code_reason = gpu.no_hopper_code_reason.c_str();
  return caps;
}

deviceloop_evaluation to_c(const Evaluation& evaluation) {
  return {evaluation.steps, evaluation.loss, evaluation.accuracy.value_or(0), evaluation.accuracy.has_value(), 0};
}

// ---- Matrices and arrays ------------------------------------------------------------------------------------------

MemorySpace space_of(const char* function, const std::string& what, deviceloop_memory space) {
  if (space != DEVICELOOP_MEMORY_HOST && space != DEVICELOOP_MEMORY_DEVICE)
    refuse(function,
           what + " is " + std::to_string(space) + "; use DEVICELOOP_MEMORY_HOST or DEVICELOOP_MEMORY_DEVICE");
  return value<MemorySpace>(space);
}

template <class View>
View view_of(const char* function, const char* name, const deviceloop_matrix* given) {
  const deviceloop_matrix& matrix = checked(function, name, given);
  constexpr bool kIsRead = std::is_same_v<View, ConstMatrix>;
  const std::int32_t last = kIsRead ? DEVICELOOP_ELEMENT_FLOAT16 : DEVICELOOP_ELEMENT_FLOAT64;
  if (matrix.type < DEVICELOOP_ELEMENT_FLOAT32 || matrix.type > last)
    refuse(function, std::string("the type of '") + name + "' is " + std::to_string(matrix.type) +
                         "; use DEVICELOOP_ELEMENT_FLOAT32" +
                         (kIsRead ? ", _FLOAT64, _BFLOAT16 or _FLOAT16" : " or DEVICELOOP_ELEMENT_FLOAT64"));
  View view;
  view.space = space_of(function, std::string("the space of '") + name + "'", matrix.space);
  view.data = matrix.data;
  view.type = value<ElementType>(matrix.type);
  view.rows = matrix.rows;
  view.columns = matrix.columns;
  view.row_stride = matrix.row_stride != 0 ? matrix.row_stride : matrix.columns;
  return view;
}

#define INPUT(matrix) view_of<ConstMatrix>(function, #matrix, matrix)
#define OUTPUT(matrix) view_of<Matrix>(function, #matrix, matrix)

deviceloop_matrix to_c(const ConstMatrix& view) {
  return {
      const_cast<void*>(view.data), number(view.type), number(view.space), view.rows, view.columns, view.row_stride};
}

template <class T>
std::span<T> array(const char* function, const char* name, T* elements, std::int64_t count) {
  if (count < 0) refuse(function, "count is " + std::to_string(count) + "; it must not be negative");
  // More bytes than an address space has would wrap around where the ranges' ends are compared.
  constexpr auto most = std::int64_t{1} << 58;
  if (count > most) refuse(function, "count is " + std::to_string(count) + "; at most 2^58 elements are possible");
  if (elements == nullptr && count > 0)
    refuse(function, std::string("the argument '") + name + "' is null; it must not be");
  return {elements, static_cast<std::size_t>(count)};
}

#define ARRAY(elements) array(function, #elements, elements, count)

template <class List>
const auto& entry(const char* function, const char* what, const List& list, std::int64_t number) {
  if (number < 0 || static_cast<std::uint64_t>(number) >= list.size())
    refuse(function, "there is no " + std::string(what) + " " + std::to_string(number) + " of " +
                         std::to_string(list.size()) + ", counted from 0");
  return list[static_cast<std::size_t>(number)];
}

template <class T>
void squared_error_of(const char* function, double* loss, T* gradient, const T* prediction, const T* target,
                      std::int64_t count) {
  CHECKED(loss);
  const std::span<const T> predictions = ARRAY(prediction), targets = ARRAY(target);
  *loss = squared_error(gradient != nullptr ? ARRAY(gradient) : std::span<T>(), predictions, targets);
}

template <class Enum>
const char* name_of(std::int32_t number) {
  const char* const name = name_or_null(value<Enum>(number));
  return name != nullptr ? name : "unknown";
}

}  // namespace
}  // namespace deviceloop

using namespace deviceloop;

extern "C" {

const char* deviceloop_status_name(deviceloop_status status) {
  switch (status) {
    case DEVICELOOP_OK:
      return "ok";
    case DEVICELOOP_INVALID_ARGUMENT:
      return "invalid argument";
    case DEVICELOOP_UNSUPPORTED:
      return "unsupported";
    case DEVICELOOP_DEVICE_ERROR:
      return "device error";
    case DEVICELOOP_ERROR:
      return "error";
    case DEVICELOOP_OUT_OF_MEMORY:
      return "out of memory";
    default:
      return "unknown status";
  }
}

const char* deviceloop_last_error() {
  const LastError& error = last_error();
  return error.is_lost ? kNoMemory : error.text.c_str();
}

deviceloop_status deviceloop_last_device_error(deviceloop_device_error_info* error) {
  return guarded(__func__, [&](const char* function) {
    deviceloop_device_error_info whole{sizeof whole, "", "", "", 0, 0};
    if (const std::optional<DeviceError>& last = last_error().device)
      whole = {sizeof whole,         last->api().c_str(), last->expression().c_str(),
               last->file().c_str(), last->line(),        last->code()};
    give(function, "error", error, whole);
  });
}

void deviceloop_version(int32_t* major, int32_t* minor, int32_t* patch) {
  if (major != nullptr) *major = DEVICELOOP_VERSION_MAJOR;
  if (minor != nullptr) *minor = DEVICELOOP_VERSION_MINOR;
  if (patch != nullptr) *patch = DEVICELOOP_VERSION_PATCH;
}

const char* deviceloop_version_text() { return DEVICELOOP_VERSION; }

// ---- Matrices -----------------------------------------------------------------------------------------------------

uint32_t deviceloop_tensor_of_weight(int32_t layer) { return tensor_of_weight(layer); }

deviceloop_status deviceloop_fill_normal(const deviceloop_matrix* out, uint64_t seed, uint32_t tensor,
                                         double deviation) {
  return guarded(__func__, [&](const char* function) { fill_normal(OUTPUT(out), seed, tensor, deviation); });
}

// ---- Specifications -----------------------------------------------------------------------------------------------

const char* deviceloop_executor_name(deviceloop_executor executor) { return name_of<ExecutorKind>(executor); }
const char* deviceloop_precision_name(deviceloop_precision precision) { return name_of<Precision>(precision); }
const char* deviceloop_formulation_name(deviceloop_formulation formulation) {
  return name_of<Formulation>(formulation);
}
const char* deviceloop_form_name(deviceloop_form form) { return name_of<PersistentForm>(form); }

deviceloop_status deviceloop_network_spec_init(deviceloop_network_spec* spec, size_t struct_size) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(spec).struct_size = struct_size;
    deviceloop_network_spec defaults = to_c(NetworkSpec());
    defaults.widths = nullptr;
    give(function, "spec", spec, defaults);
  });
}

deviceloop_status deviceloop_training_spec_init(deviceloop_training_spec* spec, size_t struct_size) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(spec).struct_size = struct_size;
    give(function, "spec", spec, to_c(TrainingSpec()));
  });
}

// ---- Plans --------------------------------------------------------------------------------------------------------

deviceloop_status deviceloop_caps_query(deviceloop_caps** caps) { return MADE(caps, query_device_caps()); }

deviceloop_status deviceloop_caps_create(deviceloop_caps** caps) { return MADE(caps, DeviceCaps()); }

void deviceloop_caps_destroy(deviceloop_caps* caps) { delete caps; }

deviceloop_status deviceloop_caps_get(const deviceloop_caps* caps, deviceloop_caps_info* info) {
  return guarded(__func__, [&](const char* function) { give(function, "info", info, to_c(CHECKED(caps).caps)); });
}

deviceloop_status deviceloop_caps_set(deviceloop_caps* caps, const deviceloop_caps_info* info) {
  return guarded(__func__, [&](const char* function) {
    const deviceloop_caps_info set = taken(function, "info", info, to_c(CHECKED(caps).caps));
    DeviceCaps changed = caps->caps;
    changed.cpu = {.cores = set.cores, .memory_bytes = set.memory_bytes, .gflops_fp32 = set.gflops_fp32};
    changed.no_gpu_reason = text_or_empty(set.no_gpu_reason);
    changed.no_cublaslt_reason = text_or_empty(set.no_cublaslt_reason);
    caps->caps = std::move(changed);
  });
}

deviceloop_status deviceloop_caps_gpu(const deviceloop_caps* caps, int32_t number, deviceloop_gpu_caps* gpu) {
  return guarded(__func__, [&](const char* function) {
    give(function, "gpu", gpu, to_c(entry(function, "GPU", CHECKED(caps).caps.gpus, number)));
  });
}

deviceloop_status deviceloop_caps_add_gpu(deviceloop_caps* caps, const deviceloop_gpu_caps* gpu) {
  return guarded(__func__, [&](const char* function) {
    const GpuCaps defaults;
    const deviceloop_gpu_caps set = taken(function, "gpu", gpu, to_c(defaults));
    CHECKED(caps).caps.gpus.push_back({.name = text_or_empty(set.name),
                                       .index = set.index,
                                       .compute_capability = set.compute_capability,
                                       .multiprocessors = set.multiprocessors,
                                       .memory_bytes = set.memory_bytes,
                                       .memory_gb_per_s = set.memory_gb_per_s,
                                       .l2_bytes = set.l2_bytes,
                                       .shared_bytes = set.shared_bytes,
                                       .cooperative = set.cooperative != 0,
                                       .no_code_reason = text_or_empty(set.no_code_reason),
                                       .no_hopper_code_reason = text_or_empty(set.no_hopper_code_reason)});
  });
}

deviceloop_status deviceloop_plan_create(const deviceloop_network_spec* network,
                                         const deviceloop_training_spec* training, const deviceloop_caps* caps,
                                         deviceloop_executor forced, deviceloop_plan** plan) {
  return MADE(plan, make_plan(network_of(function, network), training_of(function, training),
                              caps != nullptr ? caps->caps : query_device_caps(), executor(forced)));
}

void deviceloop_plan_destroy(deviceloop_plan* plan) { delete plan; }

deviceloop_status deviceloop_plan_get(const deviceloop_plan* plan, deviceloop_plan_info* info) {
  return guarded(__func__, [&](const char* function) {
    const Plan& of = CHECKED(plan).plan;
    give(function, "info", info,
         {.struct_size = sizeof *info,
          .executor = number(of.executor),
          .formulation = number(of.formulation),
          .reason = of.reason.c_str(),
          .bytes = of.bytes,
          .predicted_us_per_step = of.predicted_us_per_step,
          .floor_us_per_step = of.floor_us_per_step,
          .threads = of.threads,
          .device = of.device,
          .candidates = static_cast<std::int64_t>(of.candidates.size())});
  });
}

deviceloop_status deviceloop_plan_candidate(const deviceloop_plan* plan, int64_t number,
                                            deviceloop_candidate* candidate) {
  return guarded(__func__, [&](const char* function) {
    const Candidate& of = entry(function, "candidate", CHECKED(plan).plan.candidates, number);
    give(function, "candidate", candidate,
         {.struct_size = sizeof *candidate,
          .executor = deviceloop::number(of.executor),
          .accepted = of.accepted,
          .reason = of.reason.c_str(),
          .bytes = of.bytes,
          .predicted_us_per_step = of.predicted_us_per_step,
          .floor_us_per_step = of.floor_us_per_step});
  });
}

// ---- Reports ------------------------------------------------------------------------------------------------------

void deviceloop_report_destroy(deviceloop_report* report) { delete report; }

deviceloop_status deviceloop_report_get(const deviceloop_report* report, deviceloop_report_info* info) {
  return guarded(__func__, [&](const char* function) {
    const TrainReport& of = CHECKED(report).report;
    give(function, "info", info,
         {.struct_size = sizeof *info,
          .first_step = of.first_step,
          .steps = of.steps(),
          .losses = of.losses.data(),
          .total_ms = of.total_ms,
          .us_per_step = of.us_per_step().value_or(0),
          .prepare_ms = of.prepare_ms,
          .first_non_finite_step = of.first_non_finite_step.value_or(-1),
          .end = number(of.end),
          .evaluations = static_cast<std::int32_t>(of.evaluations.size()),
          .stages = static_cast<std::int32_t>(of.preparation.size()),
          .algorithms = static_cast<std::int32_t>(of.algorithms.size())});
  });
}

deviceloop_status deviceloop_report_plan(const deviceloop_report* report, deviceloop_plan** plan) {
  return MADE(plan, CHECKED(report).report.plan);
}

deviceloop_status deviceloop_report_evaluation(const deviceloop_report* report, int32_t number,
                                               deviceloop_evaluation* evaluation) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(evaluation) = to_c(entry(function, "evaluation", CHECKED(report).report.evaluations, number));
  });
}

deviceloop_status deviceloop_report_stage(const deviceloop_report* report, int32_t number, const char** name,
                                          double* ms) {
  return guarded(__func__, [&](const char* function) {
    const PreparationStage& stage = entry(function, "stage", CHECKED(report).report.preparation, number);
    CHECKED(ms);
    CHECKED(name) = stage.name.c_str();
    *ms = stage.ms;
  });
}

deviceloop_status deviceloop_report_algorithm(const deviceloop_report* report, int32_t number, const char** text) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(text) = entry(function, "algorithm", CHECKED(report).report.algorithms, number).c_str();
  });
}

// ---- Training -----------------------------------------------------------------------------------------------------

deviceloop_status deviceloop_trainer_create(const deviceloop_network_spec* network,
                                            const deviceloop_training_spec* training, const deviceloop_caps* caps,
                                            deviceloop_executor forced, deviceloop_trainer** trainer) {
  return MADE(trainer, caps != nullptr
                           ? Trainer(network_of(function, network), training_of(function, training), executor(forced),
                                     caps->caps)
                           : Trainer(network_of(function, network), training_of(function, training), executor(forced)));
}

deviceloop_status deviceloop_trainer_create_with_cuda(const deviceloop_network_spec* network,
                                                      const deviceloop_training_spec* training,
                                                      const deviceloop_cuda_options* options,
                                                      deviceloop_executor forced, deviceloop_trainer** trainer) {
  return MADE(trainer, Trainer(network_of(function, network), training_of(function, training),
                               cuda_options_of(function, options), executor(forced)));
}

void deviceloop_trainer_destroy(deviceloop_trainer* trainer) { delete trainer; }

deviceloop_status deviceloop_trainer_set_data(deviceloop_trainer* trainer, const deviceloop_matrix* x,
                                              const deviceloop_matrix* y, const deviceloop_matrix* sample_weights) {
  return guarded(__func__, [&](const char* function) {
    if (sample_weights != nullptr)
      CHECKED(trainer).trainer.set_data(INPUT(x), INPUT(y), INPUT(sample_weights));
    else
      CHECKED(trainer).trainer.set_data(INPUT(x), INPUT(y));
  });
}

deviceloop_status deviceloop_trainer_data_changed(deviceloop_trainer* trainer) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.data_changed(); });
}

deviceloop_status deviceloop_trainer_set_validation(deviceloop_trainer* trainer, const deviceloop_matrix* x,
                                                    const deviceloop_matrix* y) {
  return guarded(__func__, [&](const char* function) {
    if (x == nullptr && y == nullptr) {
      const NetworkSpec& network = CHECKED(trainer).trainer.network();
      ConstMatrix no_x, no_y;
      no_x.columns = no_x.row_stride = network.widths.front();
      no_y.columns = no_y.row_stride = network.widths.back();
      trainer->trainer.set_validation(no_x, no_y);
    } else {
      CHECKED(trainer).trainer.set_validation(INPUT(x), INPUT(y));
    }
  });
}

deviceloop_status deviceloop_trainer_prepare(deviceloop_trainer* trainer) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.prepare(); });
}

deviceloop_status deviceloop_trainer_initialize(deviceloop_trainer* trainer, uint64_t seed,
                                                deviceloop_initialization init) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.initialize(seed, value<Init>(init)); });
}

deviceloop_status deviceloop_trainer_read_weight(const deviceloop_trainer* trainer, int32_t layer,
                                                 const deviceloop_matrix* out) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.read_weight(layer, OUTPUT(out)); });
}

deviceloop_status deviceloop_trainer_read_bias(const deviceloop_trainer* trainer, int32_t layer,
                                               const deviceloop_matrix* out) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.read_bias(layer, OUTPUT(out)); });
}

deviceloop_status deviceloop_trainer_write_weight(deviceloop_trainer* trainer, int32_t layer,
                                                  const deviceloop_matrix* in) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.write_weight(layer, INPUT(in)); });
}

deviceloop_status deviceloop_trainer_write_bias(deviceloop_trainer* trainer, int32_t layer,
                                                const deviceloop_matrix* in) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.write_bias(layer, INPUT(in)); });
}

deviceloop_status deviceloop_trainer_load_weights(deviceloop_trainer* trainer, const char* path) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.load_weights(&CHECKED(path)); });
}

deviceloop_status deviceloop_trainer_save_weights(const deviceloop_trainer* trainer, const char* path) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.save_weights(&CHECKED(path)); });
}

deviceloop_status deviceloop_trainer_load_state(deviceloop_trainer* trainer, const char* path) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.load_state(&CHECKED(path)); });
}

deviceloop_status deviceloop_trainer_save_state(const deviceloop_trainer* trainer, const char* path) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.save_state(&CHECKED(path)); });
}

deviceloop_status deviceloop_trainer_train(deviceloop_trainer* trainer, int64_t steps,
                                           deviceloop_train_callback callback, void* user, int64_t steps_per_callback,
                                           deviceloop_report** report) {
  return guarded(__func__, [&](const char* function) {
    if (report != nullptr) *report = nullptr;
    // Made first: no memory left for it must not cost the results of a run.
    auto made = std::make_unique<deviceloop_report>();
    std::vector<deviceloop_evaluation> evaluations;
    const auto call = [&](const TrainProgress& progress) {
      evaluations.clear();
      for (const Evaluation& evaluation : progress.evaluations) evaluations.push_back(to_c(evaluation));
      const deviceloop_progress given{.struct_size = sizeof given,
                                      .first_step = progress.first_step,
                                      .loss_count = static_cast<std::int64_t>(progress.losses.size()),
                                      .losses = progress.losses.data(),
                                      .evaluation_count = static_cast<std::int64_t>(evaluations.size()),
                                      .evaluations = evaluations.data(),
                                      .steps_done = progress.steps_done,
                                      .steps_total = progress.steps_total};
      return callback(&given, user) != 0;
    };
    made->report = CHECKED(trainer).trainer.train(steps, callback != nullptr ? TrainCallback(call) : TrainCallback(),
                                                  steps_per_callback);
    if (report != nullptr) *report = made.release();
  });
}

deviceloop_status deviceloop_trainer_train_async(deviceloop_trainer* trainer, int64_t steps, deviceloop_run** run) {
  return MADE(run, CHECKED(trainer).trainer.train_async(steps));
}

void deviceloop_run_destroy(deviceloop_run* run) { delete run; }

deviceloop_status deviceloop_run_done(deviceloop_run* run, int32_t* done) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(done);
    *done = CHECKED(run).run.done();
  });
}

deviceloop_status deviceloop_run_losses(deviceloop_run* run, const double** losses, int64_t* loss_count) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(losses);
    CHECKED(loss_count);
    deviceloop_run& of = CHECKED(run);
    of.losses = of.run.losses();
    *losses = of.losses.data();
    *loss_count = static_cast<std::int64_t>(of.losses.size());
  });
}

deviceloop_status deviceloop_run_wait(deviceloop_run* run, deviceloop_report** report) {
  return MADE(report, CHECKED(run).run.wait());
}

deviceloop_status deviceloop_trainer_enqueue_step(deviceloop_trainer* trainer, double* loss) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.enqueue_step(loss); });
}

deviceloop_status deviceloop_trainer_loss(deviceloop_trainer* trainer, double* loss) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(loss);
    *loss = CHECKED(trainer).trainer.loss();
  });
}

deviceloop_status deviceloop_trainer_evaluate(deviceloop_trainer* trainer, deviceloop_evaluation* evaluation) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(evaluation);
    *evaluation = to_c(CHECKED(trainer).trainer.evaluate());
  });
}

deviceloop_status deviceloop_trainer_best(const deviceloop_trainer* trainer, int32_t* found,
                                          deviceloop_evaluation* evaluation) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(evaluation);
    const std::optional<Evaluation> best = CHECKED(trainer).trainer.best();
    CHECKED(found) = best.has_value();
    if (best) *evaluation = to_c(*best);
  });
}

deviceloop_status deviceloop_trainer_restore_best(deviceloop_trainer* trainer) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.restore_best(); });
}

deviceloop_status deviceloop_trainer_predict(deviceloop_trainer* trainer, const deviceloop_matrix* x,
                                             const deviceloop_matrix* out) {
  return guarded(__func__, [&](const char* function) { CHECKED(trainer).trainer.predict(INPUT(x), OUTPUT(out)); });
}

deviceloop_status deviceloop_trainer_network(const deviceloop_trainer* trainer, deviceloop_network_spec* network) {
  return guarded(__func__, [&](const char* function) {
    give(function, "network", network, to_c(CHECKED(trainer).trainer.network()));
  });
}

deviceloop_status deviceloop_trainer_training(const deviceloop_trainer* trainer, deviceloop_training_spec* training) {
  return guarded(__func__, [&](const char* function) {
    give(function, "training", training, to_c(CHECKED(trainer).trainer.training()));
  });
}

deviceloop_status deviceloop_trainer_plan(const deviceloop_trainer* trainer, deviceloop_plan** plan) {
  return MADE(plan, CHECKED(trainer).trainer.plan());
}

deviceloop_status deviceloop_trainer_steps_done(const deviceloop_trainer* trainer, int64_t* steps) {
  return guarded(__func__, [&](const char* function) { CHECKED(steps) = CHECKED(trainer).trainer.steps_done(); });
}

// ---- Tensors of other libraries -----------------------------------------------------------------------------------

deviceloop_status deviceloop_view_of_dlpack(const DLManagedTensorVersioned* tensor, int32_t writable,
                                            deviceloop_matrix* view) {
  return guarded(__func__, [&](const char* function) {
    const DLManagedTensorVersioned& given = CHECKED(tensor);
    CHECKED(view) = to_c(writable != 0 ? ConstMatrix(writable_view_of_dlpack(given)) : view_of_dlpack(given));
  });
}

deviceloop_status deviceloop_view_of_legacy_dlpack(const DLManagedTensor* tensor, deviceloop_matrix* view) {
  return guarded(__func__, [&](const char* function) { CHECKED(view) = to_c(view_of_dlpack(CHECKED(tensor))); });
}

deviceloop_status deviceloop_trainer_weight_to_dlpack(const deviceloop_trainer* trainer, int32_t layer,
                                                      deviceloop_memory space, DLManagedTensorVersioned** tensor) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(tensor) = nullptr;
    *tensor = weight_to_dlpack(CHECKED(trainer).trainer, layer, space_of(function, "'space'", space));
  });
}

deviceloop_status deviceloop_trainer_bias_to_dlpack(const deviceloop_trainer* trainer, int32_t layer,
                                                    deviceloop_memory space, DLManagedTensorVersioned** tensor) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(tensor) = nullptr;
    *tensor = bias_to_dlpack(CHECKED(trainer).trainer, layer, space_of(function, "'space'", space));
  });
}

deviceloop_status deviceloop_trainer_predict_to_dlpack(deviceloop_trainer* trainer, const deviceloop_matrix* x,
                                                       DLManagedTensorVersioned** tensor) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(tensor) = nullptr;
    *tensor = predict_to_dlpack(CHECKED(trainer).trainer, INPUT(x));
  });
}

deviceloop_status deviceloop_legacy_dlpack(DLManagedTensorVersioned* tensor, DLManagedTensor** legacy) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(legacy) = nullptr;
    *legacy = legacy_dlpack(&CHECKED(tensor));
  });
}

void deviceloop_dlpack_destroy(DLManagedTensorVersioned* tensor) {
  if (tensor != nullptr && tensor->deleter != nullptr) tensor->deleter(tensor);
}

// ---- Kernels ------------------------------------------------------------------------------------------------------

deviceloop_status deviceloop_relu_f32(float* out, const float* in, int64_t count) {
  return guarded(__func__, [&](const char* function) { relu(ARRAY(out), ARRAY(in)); });
}
deviceloop_status deviceloop_relu_f64(double* out, const double* in, int64_t count) {
  return guarded(__func__, [&](const char* function) { relu(ARRAY(out), ARRAY(in)); });
}

deviceloop_status deviceloop_relu_gradient_f32(float* dz, const float* z, const float* dh, int64_t count) {
  return guarded(__func__, [&](const char* function) { relu_gradient(ARRAY(dz), ARRAY(z), ARRAY(dh)); });
}
deviceloop_status deviceloop_relu_gradient_f64(double* dz, const double* z, const double* dh, int64_t count) {
  return guarded(__func__, [&](const char* function) { relu_gradient(ARRAY(dz), ARRAY(z), ARRAY(dh)); });
}

deviceloop_status deviceloop_squared_error_f32(double* loss, float* gradient, const float* prediction,
                                               const float* target, int64_t count) {
  return guarded(__func__,
                 [&](const char* function) { squared_error_of(function, loss, gradient, prediction, target, count); });
}
deviceloop_status deviceloop_squared_error_f64(double* loss, double* gradient, const double* prediction,
                                               const double* target, int64_t count) {
  return guarded(__func__,
                 [&](const char* function) { squared_error_of(function, loss, gradient, prediction, target, count); });
}

deviceloop_status deviceloop_cuda_relu_f32(float* out, const float* in, int64_t count, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::relu(out, in, count, stream); });
}

deviceloop_status deviceloop_cuda_relu_f64(double* out, const double* in, int64_t count, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::relu(out, in, count, stream); });
}

deviceloop_status deviceloop_cuda_relu_gradient_f32(float* dz, const float* z, const float* dh, int64_t count,
                                                    deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::relu_gradient(dz, z, dh, count, stream); });
}

deviceloop_status deviceloop_cuda_relu_gradient_f64(double* dz, const double* z, const double* dh, int64_t count,
                                                    deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::relu_gradient(dz, z, dh, count, stream); });
}

deviceloop_status deviceloop_cuda_bias_relu_f32(float* h, const float* z, const float* bias, int64_t batch,
                                                int64_t features, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::bias_relu(h, z, bias, batch, features, stream); });
}

deviceloop_status deviceloop_cuda_bias_relu_f64(double* h, const double* z, const double* bias, int64_t batch,
                                                int64_t features, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::bias_relu(h, z, bias, batch, features, stream); });
}

deviceloop_status deviceloop_cuda_mask_gradient_f32(float* dz, const float* h, const float* dh, int64_t count,
                                                    deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::mask_gradient(dz, h, dh, count, stream); });
}

deviceloop_status deviceloop_cuda_mask_gradient_f64(double* dz, const double* h, const double* dh, int64_t count,
                                                    deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::mask_gradient(dz, h, dh, count, stream); });
}

deviceloop_status deviceloop_cuda_squared_error_f32(double* loss, float* gradient, const float* prediction,
                                                    const float* target, int64_t count, void* workspace,
                                                    size_t workspace_bytes, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) {
    cuda::squared_error(loss, gradient, prediction, target, count, workspace, workspace_bytes, stream);
  });
}

deviceloop_status deviceloop_cuda_squared_error_f64(double* loss, double* gradient, const double* prediction,
                                                    const double* target, int64_t count, void* workspace,
                                                    size_t workspace_bytes, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) {
    cuda::squared_error(loss, gradient, prediction, target, count, workspace, workspace_bytes, stream);
  });
}

deviceloop_status deviceloop_cuda_squared_error_workspace(int64_t count, size_t* bytes) {
  return guarded(__func__, [&](const char* function) { CHECKED(bytes) = cuda::squared_error_workspace(count); });
}

deviceloop_status deviceloop_cuda_column_sums_f32(float* sums, const float* matrix, int64_t batch, int64_t features,
                                                  void* workspace, size_t workspace_bytes, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) {
    cuda::column_sums(sums, matrix, batch, features, workspace, workspace_bytes, stream);
  });
}

deviceloop_status deviceloop_cuda_column_sums_f64(double* sums, const double* matrix, int64_t batch, int64_t features,
                                                  void* workspace, size_t workspace_bytes, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) {
    cuda::column_sums(sums, matrix, batch, features, workspace, workspace_bytes, stream);
  });
}

deviceloop_status deviceloop_cuda_column_sums_workspace(int64_t batch, int64_t features, size_t* bytes) {
  return guarded(__func__,
                 [&](const char* function) { CHECKED(bytes) = cuda::column_sums_workspace(batch, features); });
}

deviceloop_status deviceloop_cuda_narrow_linear_f32(float* out, const float* in, const float* weights,
                                                    const float* bias, int64_t batch, int64_t in_features,
                                                    int64_t out_features, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) {
    cuda::narrow_linear(out, in, weights, bias, batch, in_features, out_features, stream);
  });
}

deviceloop_status deviceloop_cuda_narrow_linear_f64(double* out, const double* in, const double* weights,
                                                    const double* bias, int64_t batch, int64_t in_features,
                                                    int64_t out_features, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) {
    cuda::narrow_linear(out, in, weights, bias, batch, in_features, out_features, stream);
  });
}

deviceloop_status deviceloop_cuda_narrow_linear_gradient_f32(float* dz, float* dweights, const float* h,
                                                             const float* dout, const float* weights, int64_t batch,
                                                             int64_t in_features, int64_t out_features, void* workspace,
                                                             size_t workspace_bytes, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) {
    cuda::narrow_linear_gradient(dz, dweights, h, dout, weights, batch, in_features, out_features, workspace,
                                 workspace_bytes, stream);
  });
}

deviceloop_status deviceloop_cuda_narrow_linear_gradient_f64(double* dz, double* dweights, const double* h,
                                                             const double* dout, const double* weights, int64_t batch,
                                                             int64_t in_features, int64_t out_features, void* workspace,
                                                             size_t workspace_bytes, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) {
    cuda::narrow_linear_gradient(dz, dweights, h, dout, weights, batch, in_features, out_features, workspace,
                                 workspace_bytes, stream);
  });
}

deviceloop_status deviceloop_cuda_narrow_linear_gradient_workspace(int64_t batch, int64_t in_features,
                                                                   int64_t out_features, size_t* bytes) {
  return guarded(__func__, [&](const char* function) {
    CHECKED(bytes) = cuda::narrow_linear_gradient_workspace(batch, in_features, out_features);
  });
}

deviceloop_status deviceloop_cuda_sgd_update_f32(float* weights, const float* dweights, float learning_rate,
                                                 int64_t count, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::sgd_update(weights, dweights, learning_rate, count, stream); });
}

deviceloop_status deviceloop_cuda_sgd_update_f64(double* weights, const double* dweights, double learning_rate,
                                                 int64_t count, deviceloop_stream stream) {
  return guarded(__func__, [&](const char*) { cuda::sgd_update(weights, dweights, learning_rate, count, stream); });
}

}  // extern "C"
