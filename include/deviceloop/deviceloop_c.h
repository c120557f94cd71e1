/// \file
/// The C API: all that the C++ API does, in C99, for C, Fortran (deviceloop.f90 beside this header) and other
/// languages. The texts here say what is different; formulas, shapes and limits are in the C++ header that each section
/// names.
///
/// Errors. A function that can fail returns a status, and what it returns otherwise it writes through a pointer. Where
/// it fails, deviceloop_last_error() has the text, which says what was wrong, with the offending value, and what to do;
/// the outputs are not written, but for handles, which are set to null. No C++ exception leaves a function.
///
/// Ownership. A handle belongs to the caller, who destroys it by the function named ..._destroy; null is allowed there.
/// Pointers that a function gives, such as texts and losses, are valid until the handle that they come from is
/// destroyed or, of a trainer, changed. The library keeps no pointer that it is given, but those of arrays in a GPU's
/// memory (deviceloop_trainer_set_data) and of deviceloop_cuda_options.
///
/// Threads. Two threads must not use one handle at the same time; different handles may be used by different threads.
///
/// Structs. Those that begin with `struct_size` may grow at their end in later versions. Set it to sizeof, or call the
/// function ..._init where there is one, which sets all members to their defaults. A program that was compiled for an
/// older version, whose struct is smaller, keeps working: members that it does not have keep their defaults, and none
/// is written behind its struct. A struct that is larger than the library's is refused. All other structs never change.
/// Numbers of type int32_t with a name like `bias` are truth values, 0 or 1; `reserved` is 0.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <deviceloop/version.h>

#if defined(__GNUC__)
#define DEVICELOOP_C_EXPORT __attribute__((visibility("default")))
#else
#define DEVICELOOP_C_EXPORT
#endif

/// Set on each argument that may be null, except streams.
#define DEVICELOOP_NULLABLE

#ifdef __cplusplus
extern "C" {
#endif

/// What a function returns: the C++ exceptions of <deviceloop/error.h>.
typedef int32_t deviceloop_status;
enum {
  DEVICELOOP_OK = 0,
  DEVICELOOP_INVALID_ARGUMENT = 1,  ///< an argument, a specification or a file's content is wrong; nothing was changed
  DEVICELOOP_UNSUPPORTED = 2,       ///< this build, machine or version cannot do it; nothing was changed
  DEVICELOOP_DEVICE_ERROR = 3,      ///< a call to the device's API failed, and the trainer cannot be used any more
  DEVICELOOP_ERROR = 4,             ///< any other reason, such as a full disk
  DEVICELOOP_OUT_OF_MEMORY = 5      ///< the host has no memory left
};

/// "ok", "invalid argument", "unsupported", "device error", "error", "out of memory"; "unknown status" for other
/// numbers.
DEVICELOOP_C_EXPORT const char* deviceloop_status_name(deviceloop_status status);

/// The text of this thread's last call that failed; empty before the first one, never null. Valid until this thread's
/// next call that fails.
DEVICELOOP_C_EXPORT const char* deviceloop_last_error(void);

/// DeviceError of <deviceloop/error.h>.
typedef struct deviceloop_device_error_info {
  size_t struct_size;
  const char* api;         ///< the interface that failed, such as "cuBLASLt"
  const char* expression;  ///< the failed call
  const char* file;        ///< the library's source file of that call
  int32_t line;            ///< and its line
  int32_t code;            ///< the interface's error code
} deviceloop_device_error_info;

/// What more is known of this thread's last DEVICELOOP_DEVICE_ERROR; empty texts and 0 before the first one. The texts
/// are valid until the next one.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_last_device_error(deviceloop_device_error_info* error);

/// The version of the library that is loaded, whose numbers and text for the headers are in <deviceloop/version.h>.
/// @{
DEVICELOOP_C_EXPORT void deviceloop_version(int32_t* major, int32_t* minor, int32_t* patch);
DEVICELOOP_C_EXPORT const char* deviceloop_version_text(void);
/// @}

// ---------------------------------------------------------------------------------------------------------------------
// Matrices: <deviceloop/matrix.h> and <deviceloop/random.h>

typedef int32_t deviceloop_element_type;
/// Those of 16 bits are only read.
enum {
  DEVICELOOP_ELEMENT_FLOAT32 = 0,
  DEVICELOOP_ELEMENT_FLOAT64 = 1,
  DEVICELOOP_ELEMENT_BFLOAT16 = 2,
  DEVICELOOP_ELEMENT_FLOAT16 = 3
};

typedef int32_t deviceloop_memory;
enum { DEVICELOOP_MEMORY_HOST = 0, DEVICELOOP_MEMORY_DEVICE = 1 };

/// A view of a row-major [rows, columns] matrix: element (r, c) lies at data + r * row_stride + c elements. The caller
/// keeps the memory of the host valid during the call, and that of a GPU until the work of the call is done on its
/// stream, unless the call says otherwise; a function that takes a pointer to a const view only reads it. A Fortran
/// array a(columns, rows) is such a matrix.
typedef struct deviceloop_matrix {
  void* data;  ///< may be null where there are no elements
  deviceloop_element_type type;
  deviceloop_memory space;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;  ///< in elements, at least `columns`; 0: `columns`
} deviceloop_matrix;

/// Tensors of a run, for deviceloop_fill_normal.
enum { DEVICELOOP_TENSOR_X = 0, DEVICELOOP_TENSOR_Y = 1 };

/// The number of the weight of a layer, counted from 0.
DEVICELOOP_C_EXPORT uint32_t deviceloop_tensor_of_weight(int32_t layer);

/// Fills a host matrix with normal numbers of mean 0 and standard deviation `deviation`, as fill_normal of
/// <deviceloop/random.h>.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_fill_normal(const deviceloop_matrix* out, uint64_t seed,
                                                             uint32_t tensor, double deviation);

// ---------------------------------------------------------------------------------------------------------------------
// What to train and how: <deviceloop/spec.h>

typedef int32_t deviceloop_activation;
enum {
  DEVICELOOP_ACTIVATION_RELU = 0,
  DEVICELOOP_ACTIVATION_IDENTITY = 1,
  DEVICELOOP_ACTIVATION_LEAKY_RELU = 2,
  DEVICELOOP_ACTIVATION_ELU = 3,
  DEVICELOOP_ACTIVATION_SILU = 4,
  DEVICELOOP_ACTIVATION_GELU = 5,
  DEVICELOOP_ACTIVATION_GELU_TANH = 6,
  DEVICELOOP_ACTIVATION_TANH = 7,
  DEVICELOOP_ACTIVATION_SIGMOID = 8,
  DEVICELOOP_ACTIVATION_SOFTPLUS = 9,
  DEVICELOOP_ACTIVATION_SINE = 10
};

typedef int32_t deviceloop_loss;
enum {
  DEVICELOOP_LOSS_SQUARED_ERROR = 0,
  DEVICELOOP_LOSS_ABSOLUTE_ERROR = 1,
  DEVICELOOP_LOSS_HUBER = 2,
  DEVICELOOP_LOSS_BINARY_CROSS_ENTROPY = 3,
  DEVICELOOP_LOSS_CROSS_ENTROPY = 4
};

typedef int32_t deviceloop_reduction;
enum { DEVICELOOP_REDUCTION_SUM = 0, DEVICELOOP_REDUCTION_MEAN = 1 };

typedef int32_t deviceloop_optimizer;
enum {
  DEVICELOOP_OPTIMIZER_GRADIENT_DESCENT = 0,
  DEVICELOOP_OPTIMIZER_SGD = 1,
  DEVICELOOP_OPTIMIZER_ADAM = 2,
  DEVICELOOP_OPTIMIZER_ADAMW = 3,
  DEVICELOOP_OPTIMIZER_RMSPROP = 4
};

typedef int32_t deviceloop_schedule;
enum {
  DEVICELOOP_SCHEDULE_CONSTANT = 0,
  DEVICELOOP_SCHEDULE_STEP = 1,
  DEVICELOOP_SCHEDULE_EXPONENTIAL = 2,
  DEVICELOOP_SCHEDULE_COSINE = 3
};

/// All but FP64 keep parameters, activations and losses in fp32; those behind it are of matrix products alone.
typedef int32_t deviceloop_precision;
enum {
  DEVICELOOP_PRECISION_FP32 = 0,
  DEVICELOOP_PRECISION_FP64 = 1,
  DEVICELOOP_PRECISION_TF32 = 2,
  DEVICELOOP_PRECISION_TF32X3 = 3,
  DEVICELOOP_PRECISION_BF16 = 4,
  DEVICELOOP_PRECISION_FP16 = 5
};

typedef int32_t deviceloop_formulation;
enum { DEVICELOOP_FORMULATION_PRIMAL = 0, DEVICELOOP_FORMULATION_GRAM = 1 };

/// How initial weights are drawn.
typedef int32_t deviceloop_initialization;
enum { DEVICELOOP_INIT_NORMAL = 0, DEVICELOOP_INIT_HE = 1, DEVICELOOP_INIT_XAVIER = 2 };

typedef int32_t deviceloop_device;
enum { DEVICELOOP_DEVICE_AUTOMATIC = 0, DEVICELOOP_DEVICE_CPU = 1, DEVICELOOP_DEVICE_CUDA = 2 };

/// The kernel by which the plan `persistent` trains.
typedef int32_t deviceloop_form;
enum { DEVICELOOP_FORM_AUTOMATIC = 0, DEVICELOOP_FORM_TWO_LAYER = 1, DEVICELOOP_FORM_ON_CHIP = 2 };

/// Which executor runs a training; automatic where one is asked for, never in an answer.
typedef int32_t deviceloop_executor;
enum {
  DEVICELOOP_EXECUTOR_AUTOMATIC = -1,
  DEVICELOOP_EXECUTOR_CPU = 0,
  DEVICELOOP_EXECUTOR_GRAPH = 1,
  DEVICELOOP_EXECUTOR_PERSISTENT = 2,
  DEVICELOOP_EXECUTOR_FUSED = 3
};

/// The name of a value, as in messages: "cpu", "fp32", "gram", "two-layer"; "unknown" for numbers that are none.
/// @{
DEVICELOOP_C_EXPORT const char* deviceloop_executor_name(deviceloop_executor executor);
DEVICELOOP_C_EXPORT const char* deviceloop_precision_name(deviceloop_precision precision);
DEVICELOOP_C_EXPORT const char* deviceloop_formulation_name(deviceloop_formulation formulation);
DEVICELOOP_C_EXPORT const char* deviceloop_form_name(deviceloop_form form);
/// @}

/// Which of the data are read where the caller has them.
enum { DEVICELOOP_IN_PLACE_X = 1, DEVICELOOP_IN_PLACE_Y = 2, DEVICELOOP_IN_PLACE_SAMPLE_WEIGHTS = 4 };

/// Limits of a specification.
enum { DEVICELOOP_MAX_WIDTH = 2147483647, DEVICELOOP_MAX_THREADS = 256 };

/// NetworkSpec.
typedef struct deviceloop_network_spec {
  size_t struct_size;
  const int64_t* widths;  ///< input features, hidden widths, outputs
  int64_t width_count;    ///< at least two
  deviceloop_activation activation;
  deviceloop_activation output_activation;
  double leaky_slope;
  int32_t bias;
  int32_t reserved;
} deviceloop_network_spec;

/// Sets the defaults, without widths. `struct_size` is sizeof *spec.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_network_spec_init(deviceloop_network_spec* spec, size_t struct_size);

/// TrainingSpec, with the members of its Optimizer, Schedule, Watch and DeviceChoice. Where there is a member has_...,
/// the number counts only if that is 1.
typedef struct deviceloop_training_spec {
  size_t struct_size;
  deviceloop_loss loss;
  deviceloop_reduction reduction;
  double huber_delta;
  int32_t class_targets;   ///< the trainer fills it in
  int32_t sample_weights;  ///< the trainer fills it in
  deviceloop_optimizer optimizer;
  int32_t nesterov;
  double learning_rate;
  double momentum;
  int32_t has_weight_decay;
  int32_t has_beta2;
  double weight_decay;
  double beta1;
  double beta2;
  double epsilon;
  double clip_norm;
  double clip_value;
  deviceloop_schedule schedule;
  int32_t shuffle;
  int64_t schedule_period;
  double schedule_factor;
  double schedule_end_rate;
  int64_t warmup_steps;
  int64_t samples;  ///< the trainer fills it in
  int64_t batch_size;
  int64_t watch_every;
  int64_t watch_patience;
  int32_t has_target_loss;
  int32_t keep_best;
  double target_loss;
  deviceloop_precision precision;
  deviceloop_formulation formulation;
  int64_t reprojection_steps;
  int32_t deterministic;
  deviceloop_device device;
  int32_t device_index;
  deviceloop_form form;
  int64_t deadline_ms;
  int32_t threads;
  int32_t in_place;  ///< a sum of DEVICELOOP_IN_PLACE_...; the trainer fills it in
  uint64_t seed;
} deviceloop_training_spec;

/// Sets the defaults. `struct_size` is sizeof *spec.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_training_spec_init(deviceloop_training_spec* spec, size_t struct_size);

// ---------------------------------------------------------------------------------------------------------------------
// What a machine offers, and which executor would run: <deviceloop/plan.h>

/// What a machine offers, as plain data: this one's, or any other's.
typedef struct deviceloop_caps deviceloop_caps;

/// All but the GPUs of a DeviceCaps.
typedef struct deviceloop_caps_info {
  size_t struct_size;
  uint64_t memory_bytes;           ///< of the host, that this process may still take
  double gflops_fp32;              ///< of one core
  int32_t cores;                   ///< that this process may use
  int32_t gpus;                    ///< how many; deviceloop_caps_set ignores it
  const char* no_gpu_reason;       ///< why there is none; to set, null is an empty text
  const char* no_cublaslt_reason;  ///< why GPUs cannot multiply matrices; as above
} deviceloop_caps_info;

/// GpuCaps.
typedef struct deviceloop_gpu_caps {
  size_t struct_size;
  const char* name;  ///< to set, null is an empty text
  int32_t index;
  int32_t compute_capability;  ///< 90 for sm_90
  int32_t multiprocessors;
  int32_t cooperative;
  uint64_t memory_bytes;
  double memory_gb_per_s;
  uint64_t l2_bytes;
  uint64_t shared_bytes;
  const char* no_code_reason;         ///< empty if this build's kernels can run on it
  const char* no_hopper_code_reason;  ///< empty unless its kernels for Hopper's tensor cores cannot
} deviceloop_gpu_caps;

/// What this process can use now. An absent GPU is no error.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_caps_query(deviceloop_caps** caps);
/// A machine of one core, without GPUs and without memory, to describe another one by the functions below.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_caps_create(deviceloop_caps** caps);
DEVICELOOP_C_EXPORT void deviceloop_caps_destroy(deviceloop_caps* caps);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_caps_get(const deviceloop_caps* caps, deviceloop_caps_info* info);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_caps_set(deviceloop_caps* caps, const deviceloop_caps_info* info);
/// A GPU, counted from 0; at the end the one that is added.
/// @{
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_caps_gpu(const deviceloop_caps* caps, int32_t number,
                                                          deviceloop_gpu_caps* gpu);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_caps_add_gpu(deviceloop_caps* caps, const deviceloop_gpu_caps* gpu);
/// @}

/// Which executor runs a training, and what was considered.
typedef struct deviceloop_plan deviceloop_plan;

/// All but the candidates of a Plan.
typedef struct deviceloop_plan_info {
  size_t struct_size;
  deviceloop_executor executor;
  deviceloop_formulation formulation;
  const char* reason;
  uint64_t bytes;
  double predicted_us_per_step;
  double floor_us_per_step;
  int32_t threads;
  int32_t device;
  int64_t candidates;  ///< how many
} deviceloop_plan_info;

/// Candidate: one executor's answer.
typedef struct deviceloop_candidate {
  size_t struct_size;
  deviceloop_executor executor;
  int32_t accepted;
  const char* reason;
  uint64_t bytes;
  double predicted_us_per_step;
  double floor_us_per_step;
} deviceloop_candidate;

/// make_plan. A null `training` has the defaults, null `caps` are this machine's.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_plan_create(
    const deviceloop_network_spec* network, const deviceloop_training_spec* DEVICELOOP_NULLABLE training,
    const deviceloop_caps* DEVICELOOP_NULLABLE caps, deviceloop_executor forced, deviceloop_plan** plan);
DEVICELOOP_C_EXPORT void deviceloop_plan_destroy(deviceloop_plan* plan);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_plan_get(const deviceloop_plan* plan, deviceloop_plan_info* info);
/// In order of preference, counted from 0.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_plan_candidate(const deviceloop_plan* plan, int64_t number,
                                                                deviceloop_candidate* candidate);

// ---------------------------------------------------------------------------------------------------------------------
// Training: <deviceloop/trainer.h>

/// Trains one network.
typedef struct deviceloop_trainer deviceloop_trainer;
/// What one call of deviceloop_trainer_train did.
typedef struct deviceloop_report deviceloop_report;

/// Evaluation: the loss of all validation data together.
typedef struct deviceloop_evaluation {
  int64_t steps;
  double loss;
  double accuracy;  ///< counts only if has_accuracy is 1
  int32_t has_accuracy;
  int32_t reserved;
} deviceloop_evaluation;

/// Why a call of deviceloop_trainer_train ended.
typedef int32_t deviceloop_end;
enum {
  DEVICELOOP_END_ALL_STEPS = 0,
  DEVICELOOP_END_CALLBACK = 1,
  DEVICELOOP_END_PATIENCE = 2,
  DEVICELOOP_END_TARGET_LOSS = 3
};

/// TrainProgress: what the callback sees, valid during the callback.
typedef struct deviceloop_progress {
  size_t struct_size;
  int64_t first_step;
  int64_t loss_count;
  const double* losses;
  int64_t evaluation_count;
  const deviceloop_evaluation* evaluations;
  int64_t steps_done;
  int64_t steps_total;
} deviceloop_progress;

/// Returns 0 to stop the run, any other number to go on.
typedef int32_t (*deviceloop_train_callback)(const deviceloop_progress* progress, void* user);

/// TrainReport.
typedef struct deviceloop_report_info {
  size_t struct_size;
  int64_t first_step;
  int64_t steps;         ///< done by this call
  const double* losses;  ///< [steps]
  double total_ms;
  double us_per_step;  ///< 0 if no step was done
  double prepare_ms;
  int64_t first_non_finite_step;  ///< -1: none
  deviceloop_end end;
  int32_t evaluations;  ///< how many, as the next two
  int32_t stages;
  int32_t algorithms;
} deviceloop_report_info;

DEVICELOOP_C_EXPORT void deviceloop_report_destroy(deviceloop_report* report);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_report_get(const deviceloop_report* report,
                                                            deviceloop_report_info* info);
/// A plan of the caller's own.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_report_plan(const deviceloop_report* report, deviceloop_plan** plan);
/// Evaluations, stages of the preparation and algorithms, each counted from 0.
/// @{
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_report_evaluation(const deviceloop_report* report, int32_t number,
                                                                   deviceloop_evaluation* evaluation);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_report_stage(const deviceloop_report* report, int32_t number,
                                                              const char** name, double* ms);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_report_algorithm(const deviceloop_report* report, int32_t number,
                                                                  const char** text);
/// @}

/// A trainer. A null `training` has the defaults, null `caps` are this machine's.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_create(
    const deviceloop_network_spec* network, const deviceloop_training_spec* DEVICELOOP_NULLABLE training,
    const deviceloop_caps* DEVICELOOP_NULLABLE caps, deviceloop_executor forced, deviceloop_trainer** trainer);
DEVICELOOP_C_EXPORT void deviceloop_trainer_destroy(deviceloop_trainer* trainer);

struct CUstream_st;
/// CUDA's cudaStream_t; null is the current device's default stream.
typedef struct CUstream_st* deviceloop_stream;

/// Takes device memory, on the trainer's device, which is current then, aligned to 256 bytes; null where there is none.
typedef void* (*deviceloop_allocate)(size_t bytes, void* user);
/// Gives back what deviceloop_allocate gave. Must not throw.
typedef void (*deviceloop_free)(void* memory, size_t bytes, void* user);

/// CudaOptions of <deviceloop/cuda_options.h>. All members but the first 0: a stream of the trainer's own, cudaMalloc
/// and cudaFree.
typedef struct deviceloop_cuda_options {
  size_t struct_size;
  deviceloop_stream stream;      ///< counts only if has_stream is 1
  deviceloop_allocate allocate;  ///< with `free`, or null
  deviceloop_free free;
  void* user;  ///< what both get
  int32_t has_stream;
  int32_t reserved;
} deviceloop_cuda_options;

/// A trainer that shares a GPU with its application. The stream must outlive it, and so must the two functions and what
/// `user` points to.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_create_with_cuda(
    const deviceloop_network_spec* network, const deviceloop_training_spec* DEVICELOOP_NULLABLE training,
    const deviceloop_cuda_options* options, deviceloop_executor forced, deviceloop_trainer** trainer);

/// x [samples, inputs], y [samples, outputs] and `sample_weights` [samples, 1], null for none. Arrays of the host are
/// copied. Those in the memory of the plan's GPU stay the caller's, who keeps them alive until the next set_data or the
/// trainer's end.
DEVICELOOP_C_EXPORT deviceloop_status
deviceloop_trainer_set_data(deviceloop_trainer* trainer, const deviceloop_matrix* x, const deviceloop_matrix* y,
                            const deviceloop_matrix* DEVICELOOP_NULLABLE sample_weights);
/// The caller has written new samples to such arrays, in the trainer's stream.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_data_changed(deviceloop_trainer* trainer);
/// Two null matrices: no validation data any more.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_set_validation(deviceloop_trainer* trainer,
                                                                        const deviceloop_matrix* DEVICELOOP_NULLABLE x,
                                                                        const deviceloop_matrix* DEVICELOOP_NULLABLE y);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_prepare(deviceloop_trainer* trainer);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_initialize(deviceloop_trainer* trainer, uint64_t seed,
                                                                    deviceloop_initialization init);

/// The weight [in_features, out_features] or bias [1, out_features] of a layer, counted from 0, out and in.
/// @{
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_read_weight(const deviceloop_trainer* trainer, int32_t layer,
                                                                     const deviceloop_matrix* out);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_read_bias(const deviceloop_trainer* trainer, int32_t layer,
                                                                   const deviceloop_matrix* out);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_write_weight(deviceloop_trainer* trainer, int32_t layer,
                                                                      const deviceloop_matrix* in);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_write_bias(deviceloop_trainer* trainer, int32_t layer,
                                                                    const deviceloop_matrix* in);
/// @}

/// Weights, and all that a run goes on from, from and to a safetensors file.
/// @{
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_load_weights(deviceloop_trainer* trainer, const char* path);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_save_weights(const deviceloop_trainer* trainer,
                                                                      const char* path);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_load_state(deviceloop_trainer* trainer, const char* path);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_save_state(const deviceloop_trainer* trainer,
                                                                    const char* path);
/// @}

/// Runs `steps` steps. `callback`, null for none, is called with `user` after every `steps_per_callback` steps, 0: as
/// many as take about 50 ms. It must not end by longjmp; a C++ exception that it throws ends the run with
/// DEVICELOOP_ERROR. `report` is null for none.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_train(deviceloop_trainer* trainer, int64_t steps,
                                                               deviceloop_train_callback DEVICELOOP_NULLABLE callback,
                                                               void* DEVICELOOP_NULLABLE user,
                                                               int64_t steps_per_callback,
                                                               deviceloop_report** DEVICELOOP_NULLABLE report);

/// A run that deviceloop_trainer_train_async has begun. It is used by one thread at a time with its trainer.
typedef struct deviceloop_run deviceloop_run;

/// Runs `steps` steps as deviceloop_trainer_train does, and returns at once where the plan is of a GPU.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_train_async(deviceloop_trainer* trainer, int64_t steps,
                                                                     deviceloop_run** run);
/// The steps are done all the same.
DEVICELOOP_C_EXPORT void deviceloop_run_destroy(deviceloop_run* run);
/// Whether all steps are done and their losses are on the host; never waits.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_run_done(deviceloop_run* run, int32_t* done);
/// The losses of the first steps, as many as are on the host now; never waits. They are valid until the next call of
/// this function with this run, or its end.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_run_losses(deviceloop_run* run, const double** losses,
                                                            int64_t* loss_count);
/// Waits for the last step.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_run_wait(deviceloop_run* run, deviceloop_report** report);

/// Enqueues one step on the trainer's stream, and into the graph that is captured there, if one is. `loss` is in device
/// memory, or null.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_enqueue_step(deviceloop_trainer* trainer,
                                                                      double* DEVICELOOP_NULLABLE loss);

/// The loss of the current parameters, of the samples that the next step would take.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_loss(deviceloop_trainer* trainer, double* loss);
/// The validation data with the current parameters.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_evaluate(deviceloop_trainer* trainer,
                                                                  deviceloop_evaluation* evaluation);
/// The best evaluation of all at borders; *found is 0, and *evaluation is not written, where there is none.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_best(const deviceloop_trainer* trainer, int32_t* found,
                                                              deviceloop_evaluation* evaluation);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_restore_best(deviceloop_trainer* trainer);
/// out [rows, outputs] = network(x [rows, inputs]).
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_predict(deviceloop_trainer* trainer,
                                                                 const deviceloop_matrix* x,
                                                                 const deviceloop_matrix* out);

/// As given, the training with `samples`, `class_targets` and `sample_weights` as set by the data.
/// @{
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_network(const deviceloop_trainer* trainer,
                                                                 deviceloop_network_spec* network);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_training(const deviceloop_trainer* trainer,
                                                                  deviceloop_training_spec* training);
/// @}
/// The current plan, as a plan of the caller's own.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_plan(const deviceloop_trainer* trainer,
                                                              deviceloop_plan** plan);
/// Steps over all calls of train.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_steps_done(const deviceloop_trainer* trainer, int64_t* steps);

// ---------------------------------------------------------------------------------------------------------------------
// Tensors of other libraries: <deviceloop/dlpack.h>. <dlpack/dlpack.h> defines their structs.

struct DLManagedTensor;
struct DLManagedTensorVersioned;

/// The view of a tensor, for a `writable` of 1 of one that may be written into. The tensor stays the caller's.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_view_of_dlpack(const struct DLManagedTensorVersioned* tensor,
                                                                int32_t writable, deviceloop_matrix* view);
/// The view of a tensor from before DLPack 1.0.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_view_of_legacy_dlpack(const struct DLManagedTensor* tensor,
                                                                       deviceloop_matrix* view);
/// A copy of the weight [in_features, out_features] or the bias [out_features] of a layer, counted from 0, in the
/// host's memory or in that of the trainer's GPU, and the predictions [rows, outputs] for x, where x lies. Whoever
/// receives the tensor calls its deleter.
/// @{
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_weight_to_dlpack(const deviceloop_trainer* trainer,
                                                                          int32_t layer, deviceloop_memory space,
                                                                          struct DLManagedTensorVersioned** tensor);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_bias_to_dlpack(const deviceloop_trainer* trainer,
                                                                        int32_t layer, deviceloop_memory space,
                                                                        struct DLManagedTensorVersioned** tensor);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_trainer_predict_to_dlpack(deviceloop_trainer* trainer,
                                                                           const deviceloop_matrix* x,
                                                                           struct DLManagedTensorVersioned** tensor);
/// @}
/// The same tensor for consumers that know only DLPack before 1.0; takes over `tensor`, unless it fails.
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_legacy_dlpack(struct DLManagedTensorVersioned* tensor,
                                                               struct DLManagedTensor** legacy);
/// Calls the tensor's deleter, for languages that cannot; null is allowed.
DEVICELOOP_C_EXPORT void deviceloop_dlpack_destroy(struct DLManagedTensorVersioned* tensor);

// ---------------------------------------------------------------------------------------------------------------------
// Kernels on the CPU: <deviceloop/kernels.h>. All arrays have `count` elements.

/// @{
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_relu_f32(float* out, const float* in, int64_t count);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_relu_f64(double* out, const double* in, int64_t count);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_relu_gradient_f32(float* dz, const float* z, const float* dh,
                                                                   int64_t count);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_relu_gradient_f64(double* dz, const double* z, const double* dh,
                                                                   int64_t count);
/// @}
/// With a null `gradient` only the loss is computed.
/// @{
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_squared_error_f32(double* loss, float* DEVICELOOP_NULLABLE gradient,
                                                                   const float* prediction, const float* target,
                                                                   int64_t count);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_squared_error_f64(double* loss, double* DEVICELOOP_NULLABLE gradient,
                                                                   const double* prediction, const double* target,
                                                                   int64_t count);
/// @}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels in CUDA: <deviceloop/cuda.h>. All arrays are in the memory of the current device.

/// The largest number of outputs of a narrow layer.
enum { DEVICELOOP_MAX_NARROW_OUTPUTS = 16 };

/// @{
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_relu_f32(float* out, const float* in, int64_t count,
                                                               deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_relu_f64(double* out, const double* in, int64_t count,
                                                               deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_relu_gradient_f32(float* dz, const float* z, const float* dh,
                                                                        int64_t count, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_relu_gradient_f64(double* dz, const double* z, const double* dh,
                                                                        int64_t count, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_bias_relu_f32(float* h, const float* z,
                                                                    const float* DEVICELOOP_NULLABLE bias,
                                                                    int64_t batch, int64_t features,
                                                                    deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_bias_relu_f64(double* h, const double* z,
                                                                    const double* DEVICELOOP_NULLABLE bias,
                                                                    int64_t batch, int64_t features,
                                                                    deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_mask_gradient_f32(float* dz, const float* h, const float* dh,
                                                                        int64_t count, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_mask_gradient_f64(double* dz, const double* h, const double* dh,
                                                                        int64_t count, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_squared_error_f32(
    double* loss, float* DEVICELOOP_NULLABLE gradient, const float* prediction, const float* target, int64_t count,
    void* DEVICELOOP_NULLABLE workspace, size_t workspace_bytes, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_squared_error_f64(
    double* loss, double* DEVICELOOP_NULLABLE gradient, const double* prediction, const double* target, int64_t count,
    void* DEVICELOOP_NULLABLE workspace, size_t workspace_bytes, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_squared_error_workspace(int64_t count, size_t* bytes);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_column_sums_f32(float* sums, const float* matrix, int64_t batch,
                                                                      int64_t features,
                                                                      void* DEVICELOOP_NULLABLE workspace,
                                                                      size_t workspace_bytes, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_column_sums_f64(double* sums, const double* matrix, int64_t batch,
                                                                      int64_t features,
                                                                      void* DEVICELOOP_NULLABLE workspace,
                                                                      size_t workspace_bytes, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_column_sums_workspace(int64_t batch, int64_t features,
                                                                            size_t* bytes);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_narrow_linear_f32(float* out, const float* in,
                                                                        const float* weights,
                                                                        const float* DEVICELOOP_NULLABLE bias,
                                                                        int64_t batch, int64_t in_features,
                                                                        int64_t out_features, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_narrow_linear_f64(double* out, const double* in,
                                                                        const double* weights,
                                                                        const double* DEVICELOOP_NULLABLE bias,
                                                                        int64_t batch, int64_t in_features,
                                                                        int64_t out_features, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_narrow_linear_gradient_f32(
    float* DEVICELOOP_NULLABLE dz, float* dweights, const float* h, const float* dout, const float* weights,
    int64_t batch, int64_t in_features, int64_t out_features, void* DEVICELOOP_NULLABLE workspace,
    size_t workspace_bytes, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_narrow_linear_gradient_f64(
    double* DEVICELOOP_NULLABLE dz, double* dweights, const double* h, const double* dout, const double* weights,
    int64_t batch, int64_t in_features, int64_t out_features, void* DEVICELOOP_NULLABLE workspace,
    size_t workspace_bytes, deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_narrow_linear_gradient_workspace(int64_t batch,
                                                                                       int64_t in_features,
                                                                                       int64_t out_features,
                                                                                       size_t* bytes);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_sgd_update_f32(float* weights, const float* dweights,
                                                                     float learning_rate, int64_t count,
                                                                     deviceloop_stream stream);
DEVICELOOP_C_EXPORT deviceloop_status deviceloop_cuda_sgd_update_f64(double* weights, const double* dweights,
                                                                     double learning_rate, int64_t count,
                                                                     deviceloop_stream stream);
/// @}

#ifdef __cplusplus
}  // extern "C"
#endif
