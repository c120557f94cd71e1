/* The C API, by a program in C99: every function, what each refuses and with which words, and that a training gives the
   bits of the C++ API. tests/c_api_names.py sees that no function is left out. */
#include <deviceloop/deviceloop_c.h>
#include <dlpack/dlpack.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "c_api_reference.h"

static int failures = 0;

#define CHECK(condition)                                                                                       \
  do {                                                                                                         \
    if (!(condition)) {                                                                                        \
      fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition, deviceloop_last_error()); \
      ++failures;                                                                                              \
    }                                                                                                          \
  } while (0)

#define CHECK_OK(call) CHECK((call) == DEVICELOOP_OK)

/* The call fails with that status, and its text has these words. */
#define CHECK_FAILS(call, status, words)                                                   \
  do {                                                                                     \
    const deviceloop_status returned = (call);                                             \
    if (returned != (status) || strstr(deviceloop_last_error(), words) == NULL) {          \
      fprintf(stderr, "%s:%d: %s returned '%s' and said: %s\n", __FILE__, __LINE__, #call, \
              deviceloop_status_name(returned), deviceloop_last_error());                  \
      ++failures;                                                                          \
    }                                                                                      \
  } while (0)

#define CHECK_REFUSED(call, words) CHECK_FAILS(call, DEVICELOOP_INVALID_ARGUMENT, words)

enum { SAMPLES = 128, FEATURES = 1000, HIDDEN = 100, STEPS = 500 };

static deviceloop_matrix float_matrix(float* data, int64_t rows, int64_t columns) {
  deviceloop_matrix matrix = {data, DEVICELOOP_ELEMENT_FLOAT32, DEVICELOOP_MEMORY_HOST, 0, 0, 0};
  matrix.rows = rows;
  matrix.columns = columns;
  return matrix;
}

static deviceloop_matrix double_matrix(double* data, int64_t rows, int64_t columns) {
  deviceloop_matrix matrix = float_matrix(NULL, rows, columns);
  matrix.data = data;
  matrix.type = DEVICELOOP_ELEMENT_FLOAT64;
  return matrix;
}

static deviceloop_network_spec network_of(const int64_t* widths, int64_t count) {
  deviceloop_network_spec network;
  CHECK_OK(deviceloop_network_spec_init(&network, sizeof network));
  network.widths = widths;
  network.width_count = count;
  return network;
}

static deviceloop_training_spec training_on_cpu(void) {
  deviceloop_training_spec training;
  CHECK_OK(deviceloop_training_spec_init(&training, sizeof training));
  training.device = DEVICELOOP_DEVICE_CPU;
  return training;
}

static const int64_t small_widths[] = {3, 4, 2};

/* 3-4-2 with biases in double, on 6 samples. */
static deviceloop_trainer* small_trainer(deviceloop_training_spec training) {
  deviceloop_network_spec network = network_of(small_widths, 3);
  deviceloop_trainer* trainer = NULL;
  network.bias = 1;
  training.precision = DEVICELOOP_PRECISION_FP64;
  CHECK_OK(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_AUTOMATIC, &trainer));
  return trainer;
}

static double small_x[6 * 3], small_y[6 * 2];

static void set_small_data(deviceloop_trainer* trainer) {
  const deviceloop_matrix x = double_matrix(small_x, 6, 3), y = double_matrix(small_y, 6, 2);
  CHECK_OK(deviceloop_fill_normal(&x, 7, DEVICELOOP_TENSOR_X, 1));
  CHECK_OK(deviceloop_fill_normal(&y, 7, DEVICELOOP_TENSOR_Y, 1));
  CHECK_OK(deviceloop_trainer_set_data(trainer, &x, &y, NULL));
}

static void test_version_and_errors(void) {
  int32_t major = -1, minor = -1, patch = -1;
  deviceloop_device_error_info error = {sizeof error, NULL, NULL, NULL, -1, -1};
  CHECK(strcmp(deviceloop_last_error(), "") == 0);
  deviceloop_version(&major, &minor, &patch);
  CHECK(major == DEVICELOOP_VERSION_MAJOR && minor == DEVICELOOP_VERSION_MINOR && patch == DEVICELOOP_VERSION_PATCH);
  deviceloop_version(NULL, NULL, NULL);
  CHECK(strcmp(deviceloop_version_text(), DEVICELOOP_VERSION) == 0);
  CHECK(strcmp(deviceloop_status_name(DEVICELOOP_OK), "ok") == 0);
  CHECK(strcmp(deviceloop_status_name(DEVICELOOP_INVALID_ARGUMENT), "invalid argument") == 0);
  CHECK(strcmp(deviceloop_status_name(DEVICELOOP_UNSUPPORTED), "unsupported") == 0);
  CHECK(strcmp(deviceloop_status_name(DEVICELOOP_DEVICE_ERROR), "device error") == 0);
  CHECK(strcmp(deviceloop_status_name(DEVICELOOP_ERROR), "error") == 0);
  CHECK(strcmp(deviceloop_status_name(DEVICELOOP_OUT_OF_MEMORY), "out of memory") == 0);
  CHECK(strcmp(deviceloop_status_name(6), "unknown status") == 0);
  CHECK_OK(deviceloop_last_device_error(&error));
  CHECK(strcmp(error.api, "") == 0 && strcmp(error.expression, "") == 0 && strcmp(error.file, "") == 0);
  CHECK(error.line == 0 && error.code == 0);
  CHECK_REFUSED(deviceloop_last_device_error(NULL), "deviceloop_last_device_error: the argument 'error' is null");
  /* The text stays until the next failure, whatever succeeds in between. */
  CHECK_OK(deviceloop_last_device_error(&error));
  CHECK(strstr(deviceloop_last_error(), "'error' is null") != NULL);
  CHECK(strcmp(last_error_of_a_new_thread(), "") == 0);
  CHECK(strcmp(deviceloop_executor_name(DEVICELOOP_EXECUTOR_GRAPH), "graph") == 0);
  CHECK(strcmp(deviceloop_executor_name(DEVICELOOP_EXECUTOR_AUTOMATIC), "unknown") == 0);
  CHECK(strcmp(deviceloop_precision_name(DEVICELOOP_PRECISION_FP64), "fp64") == 0);
  CHECK(strcmp(deviceloop_precision_name(DEVICELOOP_PRECISION_TF32), "tf32") == 0);
  CHECK(strcmp(deviceloop_precision_name(DEVICELOOP_PRECISION_TF32X3), "tf32x3") == 0);
  CHECK(strcmp(deviceloop_precision_name(DEVICELOOP_PRECISION_BF16), "bf16") == 0);
  CHECK(strcmp(deviceloop_precision_name(DEVICELOOP_PRECISION_FP16), "fp16") == 0);
  CHECK(strcmp(deviceloop_precision_name(9), "unknown") == 0);
  CHECK(strcmp(deviceloop_formulation_name(DEVICELOOP_FORMULATION_GRAM), "gram") == 0);
  CHECK(strcmp(deviceloop_form_name(DEVICELOOP_FORM_TWO_LAYER), "two-layer") == 0);
}

static void test_defaults(void) {
  deviceloop_network_spec network;
  deviceloop_training_spec training;
  memset(&network, 0xff, sizeof network);
  memset(&training, 0xff, sizeof training);
  CHECK_OK(deviceloop_network_spec_init(&network, sizeof network));
  CHECK(network.struct_size == sizeof network && network.widths == NULL && network.width_count == 0);
  CHECK(network.activation == DEVICELOOP_ACTIVATION_RELU && network.bias == 0 && network.reserved == 0);
  CHECK(network.output_activation == DEVICELOOP_ACTIVATION_IDENTITY && network.leaky_slope == 0.01);
  CHECK_OK(deviceloop_training_spec_init(&training, sizeof training));
  CHECK(training.struct_size == sizeof training && training.loss == DEVICELOOP_LOSS_SQUARED_ERROR);
  CHECK(training.reduction == DEVICELOOP_REDUCTION_SUM && training.huber_delta == 1);
  CHECK(training.class_targets == 0 && training.sample_weights == 0);
  CHECK(training.optimizer == DEVICELOOP_OPTIMIZER_GRADIENT_DESCENT && training.nesterov == 0);
  CHECK(training.learning_rate == 1e-6 && training.momentum == 0);
  CHECK(training.has_weight_decay == 0 && training.has_beta2 == 0 && training.beta1 == 0.9);
  CHECK(training.epsilon == 1e-8 && training.clip_norm == 0 && training.clip_value == 0);
  CHECK(training.schedule == DEVICELOOP_SCHEDULE_CONSTANT && training.shuffle == 1);
  CHECK(training.schedule_period == 0 && training.schedule_factor == 0.1 && training.schedule_end_rate == 0);
  CHECK(training.warmup_steps == 0 && training.samples == 0 && training.batch_size == 0);
  CHECK(training.watch_every == 0 && training.watch_patience == 0 && training.has_target_loss == 0);
  CHECK(training.keep_best == 0 && training.precision == DEVICELOOP_PRECISION_FP32);
  CHECK(training.formulation == DEVICELOOP_FORMULATION_PRIMAL && training.reprojection_steps == 0);
  CHECK(training.deterministic == 1 && training.device == DEVICELOOP_DEVICE_AUTOMATIC && training.device_index == 0);
  CHECK(training.form == DEVICELOOP_FORM_AUTOMATIC && training.deadline_ms == 10000);
  CHECK(training.threads == 0 && training.in_place == 0 && training.seed == 0);
  CHECK_REFUSED(deviceloop_training_spec_init(NULL, sizeof training), "'spec' is null");
  CHECK_REFUSED(deviceloop_network_spec_init(NULL, sizeof network), "'spec' is null");
}

/* Every member of a specification goes to the trainer and comes back from it. */
static void test_specifications_come_back(void) {
  deviceloop_network_spec network = network_of(small_widths, 3),
                          network_back = {sizeof network_back, 0, 0, 0, 0, 0, 0, 0};
  deviceloop_training_spec training = training_on_cpu(), back;
  deviceloop_trainer* trainer = NULL;
  network.activation = DEVICELOOP_ACTIVATION_LEAKY_RELU;
  network.output_activation = DEVICELOOP_ACTIVATION_SINE;
  network.leaky_slope = 0.25;
  network.bias = 1;
  training.loss = DEVICELOOP_LOSS_HUBER;
  training.reduction = DEVICELOOP_REDUCTION_MEAN;
  training.huber_delta = 0.5;
  training.optimizer = DEVICELOOP_OPTIMIZER_RMSPROP;
  training.learning_rate = 0.125;
  training.momentum = 0.75;
  training.has_weight_decay = 1;
  training.weight_decay = 0.03125;
  training.has_beta2 = 1;
  training.beta2 = 0.625;
  training.epsilon = 1e-3;
  training.clip_norm = 3;
  training.schedule = DEVICELOOP_SCHEDULE_COSINE;
  training.schedule_period = 40;
  training.schedule_end_rate = 0.0625;
  training.warmup_steps = 5;
  training.samples = 10;
  training.batch_size = 4;
  training.shuffle = 0;
  training.watch_every = 6;
  training.watch_patience = 2;
  training.has_target_loss = 1;
  training.target_loss = 0.25;
  training.keep_best = 1;
  training.precision = DEVICELOOP_PRECISION_FP64;
  training.deterministic = 0;
  training.form = DEVICELOOP_FORM_ON_CHIP;
  training.deadline_ms = 77;
  training.threads = 1;
  training.in_place = DEVICELOOP_IN_PLACE_X | DEVICELOOP_IN_PLACE_SAMPLE_WEIGHTS;
  training.seed = UINT64_MAX;
  CHECK_OK(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_AUTOMATIC, &trainer));
  memset(&back, 0, sizeof back);
  back.struct_size = sizeof back;
  CHECK_OK(deviceloop_trainer_training(trainer, &back));
  CHECK(memcmp(&training, &back, sizeof back) == 0);
  CHECK_OK(deviceloop_trainer_network(trainer, &network_back));
  CHECK(network_back.width_count == 3 && memcmp(network_back.widths, small_widths, sizeof small_widths) == 0);
  network_back.widths = network.widths;
  CHECK(memcmp(&network, &network_back, sizeof network) == 0);
  deviceloop_trainer_destroy(trainer);

  training = training_on_cpu();
  training.optimizer = DEVICELOOP_OPTIMIZER_SGD;
  training.momentum = 0.5;
  training.nesterov = 1;
  training.clip_value = 2;
  training.schedule = DEVICELOOP_SCHEDULE_EXPONENTIAL;
  training.schedule_factor = 0.5;
  training.device_index = 0;
  CHECK_OK(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer));
  CHECK_OK(deviceloop_trainer_training(trainer, &back));
  CHECK(memcmp(&training, &back, sizeof back) == 0);
  deviceloop_trainer_destroy(trainer);

  training = training_on_cpu();
  training.optimizer = DEVICELOOP_OPTIMIZER_ADAM;
  training.beta1 = 0.5;
  CHECK_OK(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer));
  CHECK_OK(deviceloop_trainer_training(trainer, &back));
  CHECK(memcmp(&training, &back, sizeof back) == 0);
  deviceloop_trainer_destroy(trainer);

  training = training_on_cpu();
  training.formulation = DEVICELOOP_FORMULATION_GRAM;
  training.reprojection_steps = 9;
  CHECK_OK(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer));
  CHECK_OK(deviceloop_trainer_training(trainer, &back));
  CHECK(memcmp(&training, &back, sizeof back) == 0);
  deviceloop_trainer_destroy(trainer);
}

static void test_struct_sizes(void) {
  deviceloop_network_spec network = network_of(small_widths, 3);
  deviceloop_training_spec training = training_on_cpu(), back;
  deviceloop_trainer* trainer = NULL;
  deviceloop_plan* plan = NULL;
  deviceloop_plan_info info;
  struct {
    deviceloop_training_spec spec;
    int64_t newer;
  } newer;
  /* One of an older version, which ended before `samples`: what stands behind it is not read. */
  training.learning_rate = 0.5;
  training.warmup_steps = 3;
  training.struct_size = offsetof(deviceloop_training_spec, samples);
  memset((char*)&training + training.struct_size, 0xff, sizeof training - training.struct_size);
  CHECK_OK(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer));
  back.struct_size = sizeof back;
  CHECK_OK(deviceloop_trainer_training(trainer, &back));
  CHECK(back.learning_rate == 0.5 && back.warmup_steps == 3 && back.samples == 0 && back.deterministic == 1);
  CHECK(back.deadline_ms == 10000 && back.device == DEVICELOOP_DEVICE_AUTOMATIC);
  /* Nor is it written. */
  memset(&back, 0xee, sizeof back);
  back.struct_size = offsetof(deviceloop_training_spec, samples);
  CHECK_OK(deviceloop_trainer_training(trainer, &back));
  CHECK(back.learning_rate == 0.5 && back.struct_size == offsetof(deviceloop_training_spec, samples));
  CHECK(((unsigned char*)&back.samples)[0] == 0xee && ((unsigned char*)&back.seed)[7] == 0xee);
  memset(&back, 0xee, sizeof back);
  CHECK_OK(deviceloop_training_spec_init(&back, 64));
  CHECK(back.struct_size == 64 && back.huber_delta == 1 && ((unsigned char*)&back)[64] == 0xee);
  deviceloop_trainer_destroy(trainer);

  CHECK_OK(deviceloop_training_spec_init(&newer.spec, sizeof newer.spec));
  newer.spec.struct_size = sizeof newer;
  CHECK_REFUSED(deviceloop_trainer_create(&network, &newer.spec, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer),
                "deviceloop_trainer_create: struct_size is 264, but the struct of version " DEVICELOOP_VERSION
                " has 256 bytes; load a newer library");
  CHECK(trainer == NULL);
  CHECK_REFUSED(deviceloop_training_spec_init(&newer.spec, sizeof newer), "struct_size is 264");
  training.struct_size = 0;
  CHECK_REFUSED(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer),
                "struct_size is 0, which no version of the struct has");
  training.struct_size = 20;
  CHECK_REFUSED(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer),
                "struct_size is 20");
  CHECK_OK(deviceloop_plan_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &plan));
  info.struct_size = sizeof info + 8;
  CHECK_REFUSED(deviceloop_plan_get(plan, &info), "struct_size is 72");
  deviceloop_plan_destroy(plan);
  training = training_on_cpu();
  training.in_place = 8;
  CHECK_REFUSED(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer),
                "in_place is 8; it is a sum of DEVICELOOP_IN_PLACE_X");
  network.reserved = 1;
  CHECK_REFUSED(deviceloop_plan_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &plan), "'reserved' is 1");
  CHECK(plan == NULL);
}

static void test_caps_and_plans(void) {
  static const int64_t widths[] = {1000, 100, 1};
  deviceloop_network_spec network = network_of(widths, 3);
  deviceloop_training_spec training;
  deviceloop_caps *caps = NULL, *own = NULL;
  deviceloop_plan* plan = NULL;
  deviceloop_caps_info info = {sizeof info, 0, 0, 0, -1, NULL, NULL};
  deviceloop_gpu_caps gpu = {sizeof gpu,         "Test GPU", 3,        90,     132,  1,
                             (uint64_t)80 << 30, 3000,       50 << 20, 232448, NULL, "not for Hopper"};
  deviceloop_gpu_caps back = {sizeof back, NULL, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL};
  deviceloop_plan_info plan_info = {sizeof plan_info, 0, 0, NULL, 0, 0, 0, 0, 0, 0};
  deviceloop_candidate candidate = {sizeof candidate, 0, 0, NULL, 0, 0, 0};
  CHECK_OK(deviceloop_caps_query(&caps));
  CHECK_OK(deviceloop_caps_get(caps, &info));
  CHECK(info.cores >= 1 && info.memory_bytes > 0 && info.gflops_fp32 > 0 && info.gpus >= 0);
  CHECK((info.gpus == 0) == (info.no_gpu_reason[0] != '\0'));
  deviceloop_caps_destroy(caps);
  deviceloop_caps_destroy(NULL);

  CHECK_OK(deviceloop_caps_create(&own));
  info.cores = 3;
  info.memory_bytes = (uint64_t)1 << 34;
  info.gflops_fp32 = 20;
  info.no_gpu_reason = NULL;
  info.no_cublaslt_reason = "not here";
  CHECK_OK(deviceloop_caps_set(own, &info));
  CHECK_OK(deviceloop_caps_add_gpu(own, &gpu));
  CHECK_OK(deviceloop_caps_add_gpu(own, &gpu));
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  CHECK_OK(deviceloop_caps_get(own, &info));
  CHECK(info.cores == 3 && info.memory_bytes == (uint64_t)1 << 34 && info.gflops_fp32 == 20 && info.gpus == 2);
  CHECK(strcmp(info.no_gpu_reason, "") == 0 && strcmp(info.no_cublaslt_reason, "not here") == 0);
  CHECK_OK(deviceloop_caps_gpu(own, 1, &back));
  CHECK(strcmp(back.name, "Test GPU") == 0 && back.index == 3 && back.compute_capability == 90);
  CHECK(back.multiprocessors == 132 && back.cooperative == 1 && back.memory_bytes == (uint64_t)80 << 30);
  CHECK(back.memory_gb_per_s == 3000 && back.l2_bytes == 50 << 20 && back.shared_bytes == 232448);
  CHECK(strcmp(back.no_code_reason, "") == 0 && strcmp(back.no_hopper_code_reason, "not for Hopper") == 0);
  CHECK_REFUSED(deviceloop_caps_gpu(own, 2, &back), "deviceloop_caps_gpu: there is no GPU 2 of 2, counted from 0");
  CHECK_REFUSED(deviceloop_caps_gpu(own, -1, &back), "there is no GPU -1");
  CHECK_REFUSED(deviceloop_caps_get(NULL, &info), "'caps' is null");
  CHECK_REFUSED(deviceloop_caps_set(own, NULL), "'info' is null");
  CHECK_REFUSED(deviceloop_caps_add_gpu(NULL, &gpu), "'caps' is null");
  CHECK_REFUSED(deviceloop_caps_query(NULL), "'caps' is null");
  CHECK_REFUSED(deviceloop_caps_create(NULL), "'caps' is null");

  CHECK_OK(deviceloop_training_spec_init(&training, sizeof training));
  training.samples = SAMPLES;
  training.device_index = 1;
  training.precision = DEVICELOOP_PRECISION_FP64; /* in fp32 so small products need no cuBLASLt */
  CHECK_OK(deviceloop_plan_create(&network, &training, own, DEVICELOOP_EXECUTOR_AUTOMATIC, &plan));
  CHECK_OK(deviceloop_plan_get(plan, &plan_info));
  CHECK(plan_info.executor == DEVICELOOP_EXECUTOR_PERSISTENT && plan_info.device == 1 && plan_info.candidates == 4);
  CHECK(plan_info.bytes > 0 && plan_info.predicted_us_per_step > 0 && plan_info.floor_us_per_step > 0);
  CHECK(plan_info.predicted_us_per_step > plan_info.floor_us_per_step && plan_info.reason[0] != '\0');
  CHECK(plan_info.formulation == DEVICELOOP_FORMULATION_PRIMAL && plan_info.threads >= 1);
  CHECK_OK(deviceloop_plan_candidate(plan, 0, &candidate));
  CHECK(candidate.executor == DEVICELOOP_EXECUTOR_PERSISTENT && candidate.accepted == 1);
  CHECK(candidate.bytes == plan_info.bytes && candidate.predicted_us_per_step == plan_info.predicted_us_per_step);
  CHECK(candidate.floor_us_per_step == plan_info.floor_us_per_step);
  CHECK_OK(deviceloop_plan_candidate(plan, 1, &candidate));
  CHECK(candidate.executor == DEVICELOOP_EXECUTOR_FUSED && candidate.accepted == 0);
  CHECK(strstr(candidate.reason, "it multiplies in tf32, tf32x3 and bf16, not in fp64") != NULL);
  CHECK_OK(deviceloop_plan_candidate(plan, 2, &candidate));
  CHECK(candidate.executor == DEVICELOOP_EXECUTOR_GRAPH && candidate.accepted == 0);
  CHECK(strstr(candidate.reason, "not here") != NULL);
  CHECK_REFUSED(deviceloop_plan_candidate(plan, 4, &candidate), "there is no candidate 4 of 4");
  CHECK_REFUSED(deviceloop_plan_candidate(plan, 0, NULL), "'candidate' is null");
  CHECK_REFUSED(deviceloop_plan_get(NULL, &plan_info), "'plan' is null");
  deviceloop_plan_destroy(plan);
  deviceloop_plan_destroy(NULL);

  CHECK_OK(deviceloop_plan_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &plan));
  CHECK_OK(deviceloop_plan_get(plan, &plan_info));
  CHECK(plan_info.executor == DEVICELOOP_EXECUTOR_CPU);
  deviceloop_plan_destroy(plan);
  CHECK_REFUSED(deviceloop_plan_create(&network, NULL, NULL, 7, &plan), "there is no plan number 7");
  CHECK(plan == NULL);
  CHECK_REFUSED(deviceloop_plan_create(NULL, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &plan), "'network' is null");
  CHECK_REFUSED(deviceloop_plan_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, NULL), "'plan' is null");
  network.width_count = -1;
  CHECK_REFUSED(deviceloop_plan_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &plan), "width_count is -1");
  network.width_count = (int64_t)1 << 40;
  CHECK_REFUSED(deviceloop_plan_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &plan), "1099511627776");
  network.width_count = 3;
  network.widths = NULL;
  CHECK_REFUSED(deviceloop_plan_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &plan),
                "'widths' is null; give 3 widths");
  network.width_count = 0;
  CHECK_REFUSED(deviceloop_plan_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &plan), "width");
  network = network_of(widths, 3);
  network.activation = 99;
  CHECK_REFUSED(deviceloop_plan_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &plan), "number 99");
  network = network_of(widths, 3);
  training.device = DEVICELOOP_DEVICE_CUDA;
  info.no_gpu_reason = "no GPU in this test";
  info.no_cublaslt_reason = NULL;
  deviceloop_caps_destroy(own);
  CHECK_OK(deviceloop_caps_create(&own));
  CHECK_OK(deviceloop_caps_set(own, &info));
  CHECK_FAILS(deviceloop_plan_create(&network, &training, own, DEVICELOOP_EXECUTOR_AUTOMATIC, &plan),
              DEVICELOOP_UNSUPPORTED, "no GPU in this test");
  deviceloop_caps_destroy(own);
}

static void test_matrices(void) {
  double value[6] = {9, 9, 9, 9, 9, 9}, alone[4];
  deviceloop_matrix matrix = double_matrix(value, 2, 2);
  const deviceloop_matrix compact = double_matrix(alone, 2, 2);
  matrix.row_stride = 3;
  CHECK(deviceloop_tensor_of_weight(0) == 2 && deviceloop_tensor_of_weight(3) == 8);
  CHECK_OK(deviceloop_fill_normal(&matrix, 5, deviceloop_tensor_of_weight(1), 2));
  CHECK_OK(deviceloop_fill_normal(&compact, 5, 4, 2));
  CHECK(value[0] == alone[0] && value[1] == alone[1] && value[2] == 9 && value[3] == alone[2] && value[4] == alone[3]);
  CHECK(value[0] != 9 && value[5] == 9);
  CHECK_REFUSED(deviceloop_fill_normal(NULL, 5, 0, 1), "deviceloop_fill_normal: the argument 'out' is null");
  matrix.type = 2;
  CHECK_REFUSED(deviceloop_fill_normal(&matrix, 5, 0, 1), "the type of 'out' is 2; use DEVICELOOP_ELEMENT_FLOAT32 or");
  matrix.type = DEVICELOOP_ELEMENT_FLOAT64;
  matrix.space = -1;
  CHECK_REFUSED(deviceloop_fill_normal(&matrix, 5, 0, 1), "the space of 'out' is -1; use DEVICELOOP_MEMORY_HOST or");
  matrix.space = DEVICELOOP_MEMORY_HOST;
  matrix.row_stride = 1;
  CHECK_REFUSED(deviceloop_fill_normal(&matrix, 5, 0, 1), "stride");
  matrix.row_stride = 0;
  matrix.data = NULL;
  CHECK_REFUSED(deviceloop_fill_normal(&matrix, 5, 0, 1), "null");
}

typedef struct calls_of_callback {
  int calls;
  int64_t losses;
  int64_t evaluations;
  double last_evaluation;
  double* copies;
  int64_t stop_after;
} calls_of_callback;

static int32_t count_calls(const deviceloop_progress* progress, void* user) {
  calls_of_callback* calls = (calls_of_callback*)user;
  int64_t i;
  CHECK(progress->struct_size == sizeof *progress && progress->steps_total == STEPS);
  CHECK(progress->first_step == calls->losses && progress->steps_done == calls->losses + progress->loss_count);
  for (i = 0; i < progress->loss_count; ++i) calls->copies[calls->losses + i] = progress->losses[i];
  for (i = 0; i < progress->evaluation_count; ++i) calls->last_evaluation = progress->evaluations[i].loss;
  ++calls->calls;
  calls->losses += progress->loss_count;
  calls->evaluations += progress->evaluation_count;
  return calls->stop_after == 0 || progress->steps_done < calls->stop_after;
}

/* The starting case: the losses have the bits of the C++ API, in the report and in the callback. */
static void test_the_starting_case(void) {
  static float x[SAMPLES * FEATURES], y[SAMPLES];
  static double expected[STEPS], copies[STEPS];
  static const int64_t widths[] = {FEATURES, HIDDEN, 1};
  const deviceloop_network_spec network = network_of(widths, 3);
  const deviceloop_training_spec training = training_on_cpu();
  const deviceloop_matrix x_view = float_matrix(x, SAMPLES, FEATURES), y_view = float_matrix(y, SAMPLES, 1);
  deviceloop_trainer* trainer = NULL;
  deviceloop_report* report = NULL;
  deviceloop_report_info info = {sizeof info, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0};
  deviceloop_plan* plan = NULL;
  deviceloop_plan_info plan_info = {sizeof plan_info, 0, 0, NULL, 0, 0, 0, 0, 0, 0};
  calls_of_callback calls = {0, 0, 0, 0, copies, 0};
  const char* name = NULL;
  double ms = -1, loss = 0;
  int64_t steps = -1;
  int32_t stage, has_data = 0;
  CHECK_OK(deviceloop_fill_normal(&x_view, training.seed, DEVICELOOP_TENSOR_X, 1));
  CHECK_OK(deviceloop_fill_normal(&y_view, training.seed, DEVICELOOP_TENSOR_Y, 1));
  CHECK_OK(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_AUTOMATIC, &trainer));
  CHECK_OK(deviceloop_trainer_set_data(trainer, &x_view, &y_view, NULL));
  CHECK_OK(deviceloop_trainer_prepare(trainer));
  CHECK_OK(deviceloop_trainer_train(trainer, STEPS, count_calls, &calls, 125, &report));
  CHECK_OK(deviceloop_report_get(report, &info));
  losses_of_the_starting_case(expected, STEPS);
  CHECK(info.steps == STEPS && info.first_step == 0 && memcmp(info.losses, expected, sizeof expected) == 0);
  CHECK(expected[0] > 1e6 && expected[STEPS - 1] < 100);
  CHECK(calls.calls == 4 && calls.losses == STEPS && memcmp(copies, expected, sizeof expected) == 0);
  CHECK(info.total_ms > 0 && info.us_per_step == info.total_ms * 1000 / STEPS && info.first_non_finite_step == -1);
  CHECK(info.end == DEVICELOOP_END_ALL_STEPS && info.evaluations == 0 && info.algorithms == 0 && info.stages >= 3);
  CHECK(info.prepare_ms > 0);
  for (stage = 0; stage < info.stages; ++stage) {
    CHECK_OK(deviceloop_report_stage(report, stage, &name, &ms));
    has_data |= strcmp(name, "data") == 0 && ms >= 0;
  }
  CHECK(has_data);
  CHECK_REFUSED(deviceloop_report_stage(report, info.stages, &name, &ms), "there is no stage");
  CHECK_REFUSED(deviceloop_report_algorithm(report, 0, &name), "there is no algorithm 0 of 0");
  CHECK_OK(deviceloop_report_plan(report, &plan));
  deviceloop_report_destroy(report);
  deviceloop_report_destroy(NULL);
  CHECK_OK(deviceloop_plan_get(plan, &plan_info));
  CHECK(plan_info.executor == DEVICELOOP_EXECUTOR_CPU);
  deviceloop_plan_destroy(plan);
  CHECK_OK(deviceloop_trainer_plan(trainer, &plan));
  CHECK_OK(deviceloop_plan_get(plan, &plan_info));
  CHECK(plan_info.executor == DEVICELOOP_EXECUTOR_CPU && plan_info.candidates == 4);
  deviceloop_plan_destroy(plan);
  CHECK_OK(deviceloop_trainer_steps_done(trainer, &steps));
  CHECK(steps == STEPS);
  CHECK_OK(deviceloop_trainer_loss(trainer, &loss));
  CHECK_OK(deviceloop_trainer_train(trainer, 1, NULL, NULL, 0, &report));
  CHECK_OK(deviceloop_report_get(report, &info));
  CHECK(info.first_step == STEPS && info.steps == 1 && info.losses[0] == loss);
  deviceloop_report_destroy(report);
  CHECK_OK(deviceloop_trainer_train(trainer, 0, NULL, NULL, 0, &report));
  CHECK_OK(deviceloop_report_get(report, &info));
  CHECK(info.steps == 0 && info.us_per_step == 0);
  deviceloop_report_destroy(report);

  /* Stopped, from the same weights: the same bits as far as it went. */
  memset(&calls, 0, sizeof calls);
  memset(copies, 0, sizeof copies);
  calls.copies = copies;
  calls.stop_after = 20;
  deviceloop_trainer_destroy(trainer);
  CHECK_OK(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_AUTOMATIC, &trainer));
  CHECK_OK(deviceloop_trainer_set_data(trainer, &x_view, &y_view, NULL));
  CHECK_OK(deviceloop_trainer_train(trainer, STEPS, count_calls, &calls, 10, &report));
  CHECK_OK(deviceloop_report_get(report, &info));
  CHECK(info.end == DEVICELOOP_END_CALLBACK && info.steps == 20 && calls.calls == 2);
  CHECK(memcmp(info.losses, expected, 20 * sizeof(double)) == 0 && memcmp(copies, expected, 20 * sizeof(double)) == 0);
  deviceloop_report_destroy(report);
  deviceloop_trainer_destroy(trainer);
  deviceloop_trainer_destroy(NULL);
}

static void test_parameters_and_files(void) {
  deviceloop_trainer *trainer = small_trainer(training_on_cpu()), *other = small_trainer(training_on_cpu());
  double weight[3 * 4], back[3 * 4], bias[2] = {0.5, -0.25}, bias_back[2], drawn[3 * 4];
  double input[2 * 3] = {1, 2, 3, 4, 5, 6}, out[2 * 2], out_back[2 * 2];
  const deviceloop_matrix weight_view = double_matrix(weight, 3, 4), back_view = double_matrix(back, 3, 4);
  const deviceloop_matrix bias_view = double_matrix(bias, 1, 2), bias_back_view = double_matrix(bias_back, 1, 2);
  const deviceloop_matrix drawn_view = double_matrix(drawn, 3, 4);
  const deviceloop_matrix x = double_matrix(input, 2, 3), predicted = double_matrix(out, 2, 2);
  const deviceloop_matrix predicted_back = double_matrix(out_back, 2, 2);
  deviceloop_matrix wrong = double_matrix(weight, 4, 3), halves_view = double_matrix(NULL, 3, 4);
  uint16_t halves[3 * 4];
  deviceloop_report *report = NULL, *other_report = NULL;
  deviceloop_report_info info = {sizeof info, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0}, other_info = info;
  int i;
  CHECK_OK(deviceloop_trainer_initialize(trainer, 11, DEVICELOOP_INIT_HE));
  CHECK_OK(deviceloop_trainer_read_weight(trainer, 0, &weight_view));
  CHECK_OK(deviceloop_fill_normal(&drawn_view, 11, deviceloop_tensor_of_weight(0), sqrt(2.0 / 3)));
  CHECK(memcmp(weight, drawn, sizeof drawn) == 0);
  CHECK_REFUSED(deviceloop_trainer_initialize(trainer, 11, 17), "number 17");
  wrong.type = 4;
  CHECK_REFUSED(deviceloop_trainer_write_weight(trainer, 0, &wrong),
                "the type of 'in' is 4; use DEVICELOOP_ELEMENT_FLOAT32, _FLOAT64, _BFLOAT16 or _FLOAT16");
  wrong.type = DEVICELOOP_ELEMENT_FLOAT64;
  halves_view.data = halves;
  halves_view.type = DEVICELOOP_ELEMENT_BFLOAT16;
  for (i = 0; i < 12; ++i) halves[i] = (uint16_t)(i % 2 == 0 ? 0x3fa0 : 0xbe00); /* 1.25, -0.125 */
  CHECK_OK(deviceloop_trainer_write_weight(trainer, 0, &halves_view));
  CHECK_OK(deviceloop_trainer_read_weight(trainer, 0, &back_view));
  CHECK(back[0] == 1.25 && back[1] == -0.125 && back[10] == 1.25 && back[11] == -0.125);
  CHECK_REFUSED(deviceloop_trainer_read_weight(trainer, 0, &halves_view), "the type of 'out' is 2; use");
  for (i = 0; i < 12; ++i) weight[i] = 0.125 * i - 0.5;
  CHECK_OK(deviceloop_trainer_write_weight(trainer, 0, &weight_view));
  CHECK_OK(deviceloop_trainer_write_bias(trainer, 1, &bias_view));
  CHECK_OK(deviceloop_trainer_read_weight(trainer, 0, &back_view));
  CHECK_OK(deviceloop_trainer_read_bias(trainer, 1, &bias_back_view));
  CHECK(memcmp(weight, back, sizeof back) == 0 && memcmp(bias, bias_back, sizeof bias) == 0);
  CHECK_REFUSED(deviceloop_trainer_read_weight(trainer, 2, &back_view), "layer");
  CHECK_REFUSED(deviceloop_trainer_read_weight(trainer, 0, &wrong), "[4, 3]");
  CHECK_REFUSED(deviceloop_trainer_write_weight(trainer, 0, &wrong), "[4, 3]");
  CHECK_REFUSED(deviceloop_trainer_read_bias(trainer, 0, NULL),
                "deviceloop_trainer_read_bias: the argument 'out' is null");
  CHECK_REFUSED(deviceloop_trainer_write_bias(NULL, 0, &bias_view), "'trainer' is null");
  weight[5] = NAN;
  CHECK_REFUSED(deviceloop_trainer_write_weight(trainer, 0, &weight_view), "row 1, column 1 is nan");

  CHECK_OK(deviceloop_trainer_save_weights(trainer, "c_api_test.safetensors"));
  CHECK_OK(deviceloop_trainer_load_weights(other, "c_api_test.safetensors"));
  CHECK_OK(deviceloop_trainer_predict(trainer, &x, &predicted));
  CHECK_OK(deviceloop_trainer_predict(other, &x, &predicted_back));
  CHECK(memcmp(out, out_back, sizeof out) == 0 && out[0] != 0);
  CHECK_REFUSED(deviceloop_trainer_predict(trainer, &predicted, &predicted), "[2, 2]");
  CHECK_REFUSED(deviceloop_trainer_predict(trainer, NULL, &predicted), "'x' is null");

  set_small_data(trainer);
  set_small_data(other);
  CHECK_OK(deviceloop_trainer_train(trainer, 3, NULL, NULL, 0, NULL));
  CHECK_OK(deviceloop_trainer_save_state(trainer, "c_api_test.state"));
  CHECK_OK(deviceloop_trainer_load_state(other, "c_api_test.state"));
  CHECK_OK(deviceloop_trainer_train(trainer, 4, NULL, NULL, 0, &report));
  CHECK_OK(deviceloop_trainer_train(other, 4, NULL, NULL, 0, &other_report));
  CHECK_OK(deviceloop_report_get(report, &info));
  CHECK_OK(deviceloop_report_get(other_report, &other_info));
  CHECK(info.steps == 4 && other_info.steps == 4 && memcmp(info.losses, other_info.losses, 4 * sizeof(double)) == 0);
  deviceloop_report_destroy(report);
  deviceloop_report_destroy(other_report);
  CHECK_REFUSED(deviceloop_trainer_load_weights(other, "no such file"), "no such file");
  CHECK_REFUSED(deviceloop_trainer_load_state(other, "no such file"), "no such file");
  CHECK_REFUSED(deviceloop_trainer_load_state(other, NULL), "'path' is null");
  CHECK_REFUSED(deviceloop_trainer_save_weights(other, "no such folder/file"), "no such folder");
  CHECK_REFUSED(deviceloop_trainer_save_state(other, "no such folder/file"), "no such folder");
  remove("c_api_test.safetensors");
  remove("c_api_test.state");
  deviceloop_trainer_destroy(trainer);
  deviceloop_trainer_destroy(other);
}

static void test_validation(void) {
  deviceloop_training_spec training = training_on_cpu();
  double validation_x[4 * 3], classes[4] = {0, 1, 1, 0}, weights[6] = {1, 0, 2, 1, 0.5, 1},
                              small_classes[6] = {0, 1, 0, 1, 1, 0};
  const deviceloop_matrix x = double_matrix(validation_x, 4, 3), y = double_matrix(classes, 4, 1);
  const deviceloop_matrix data_x = double_matrix(small_x, 6, 3), data_y = double_matrix(small_classes, 6, 1);
  const deviceloop_matrix weight = double_matrix(weights, 6, 1);
  deviceloop_trainer* trainer;
  deviceloop_report* report = NULL;
  deviceloop_report_info info = {sizeof info, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0};
  deviceloop_training_spec back;
  deviceloop_evaluation evaluation = {-1, -1, -1, -1, -1}, best = evaluation, again = evaluation;
  static double copies[STEPS];
  calls_of_callback calls = {0, 0, 0, 0, copies, 0};
  double smallest = INFINITY, before = 0;
  int32_t found = -1, i;
  training.loss = DEVICELOOP_LOSS_CROSS_ENTROPY;
  training.learning_rate = 0.5;
  training.watch_every = 100;
  training.keep_best = 1;
  trainer = small_trainer(training);
  CHECK_OK(deviceloop_fill_normal(&data_x, 7, DEVICELOOP_TENSOR_X, 1));
  CHECK_OK(deviceloop_fill_normal(&x, 8, DEVICELOOP_TENSOR_X, 1));
  CHECK_OK(deviceloop_trainer_set_data(trainer, &data_x, &data_y, NULL));
  CHECK_OK(deviceloop_trainer_loss(trainer, &before));
  CHECK_OK(deviceloop_trainer_set_data(trainer, &data_x, &data_y, &weight));
  CHECK_OK(deviceloop_trainer_loss(trainer, &smallest));
  CHECK(smallest != before);
  smallest = INFINITY;
  back.struct_size = sizeof back;
  CHECK_OK(deviceloop_trainer_training(trainer, &back));
  CHECK(back.samples == 6 && back.class_targets == 1 && back.sample_weights == 1);
  CHECK_REFUSED(deviceloop_trainer_evaluate(trainer, &evaluation), "validation");
  CHECK_OK(deviceloop_trainer_set_validation(trainer, &x, &y));
  CHECK_OK(deviceloop_trainer_best(trainer, &found, &best));
  CHECK(found == 0 && best.steps == -1);
  CHECK_OK(deviceloop_trainer_train(trainer, STEPS, count_calls, &calls, 0, &report));
  CHECK_OK(deviceloop_report_get(report, &info));
  CHECK(info.evaluations == 5 && calls.evaluations == 5);
  for (i = 0; i < info.evaluations; ++i) {
    CHECK_OK(deviceloop_report_evaluation(report, i, &evaluation));
    CHECK(evaluation.steps == 100 * (i + 1) && evaluation.has_accuracy == 1 && evaluation.reserved == 0);
    CHECK(evaluation.accuracy >= 0 && evaluation.accuracy <= 1);
    if (evaluation.loss < smallest) smallest = evaluation.loss;
  }
  CHECK(evaluation.loss == calls.last_evaluation);
  CHECK_REFUSED(deviceloop_report_evaluation(report, 5, &evaluation), "there is no evaluation 5 of 5");
  CHECK_OK(deviceloop_trainer_best(trainer, &found, &best));
  CHECK(found == 1 && best.loss == smallest && best.has_accuracy == 1);
  CHECK_OK(deviceloop_trainer_restore_best(trainer));
  CHECK_OK(deviceloop_trainer_evaluate(trainer, &again));
  CHECK(again.loss == best.loss && again.accuracy == best.accuracy);
  deviceloop_report_destroy(report);
  CHECK_REFUSED(deviceloop_trainer_set_validation(trainer, &x, NULL), "'y' is null");
  CHECK_OK(deviceloop_trainer_set_validation(trainer, NULL, NULL));
  CHECK_REFUSED(deviceloop_trainer_evaluate(trainer, &evaluation), "validation");
  weights[3] = -1;
  CHECK_REFUSED(deviceloop_trainer_set_data(trainer, &data_x, &data_y, &weight), "row 3");
  deviceloop_trainer_destroy(trainer);

  /* A run that ends by its rules, and one that diverges. */
  training.loss = DEVICELOOP_LOSS_SQUARED_ERROR;
  training.keep_best = 0;
  training.watch_every = 7;
  training.has_target_loss = 1;
  training.target_loss = 1e300;
  training.learning_rate = 1e-6;
  trainer = small_trainer(training);
  set_small_data(trainer);
  CHECK_OK(deviceloop_trainer_train(trainer, 20, NULL, NULL, 0, &report));
  CHECK_OK(deviceloop_report_get(report, &info));
  CHECK(info.end == DEVICELOOP_END_TARGET_LOSS && info.steps == 7);
  deviceloop_report_destroy(report);
  CHECK_REFUSED(deviceloop_trainer_restore_best(trainer), "keep_best");
  deviceloop_trainer_destroy(trainer);
  training.has_target_loss = 0;
  training.learning_rate = 1e200;
  trainer = small_trainer(training);
  set_small_data(trainer);
  CHECK_OK(deviceloop_trainer_train(trainer, 5, NULL, NULL, 0, &report));
  CHECK_OK(deviceloop_report_get(report, &info));
  CHECK(info.first_non_finite_step >= 1 && info.steps == 5 &&
        !(fabs(info.losses[info.first_non_finite_step]) < INFINITY));
  deviceloop_report_destroy(report);
  deviceloop_trainer_destroy(trainer);
}

static void test_refusals_of_training(void) {
  deviceloop_trainer* trainer = small_trainer(training_on_cpu());
  deviceloop_report* report = (deviceloop_report*)1;
  deviceloop_report_info info = {sizeof info, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0};
  deviceloop_plan* plan = NULL;
  deviceloop_evaluation evaluation;
  deviceloop_network_spec network = network_of(small_widths, 3);
  deviceloop_training_spec training = training_on_cpu();
  const char* text = NULL;
  double loss = -1, ms = 0;
  int64_t steps = 0;
  int32_t found = 0;
  CHECK_REFUSED(deviceloop_trainer_train(trainer, 1, NULL, NULL, 0, &report), "data");
  CHECK(report == NULL);
  CHECK_REFUSED(deviceloop_trainer_loss(trainer, &loss), "data");
  CHECK(loss == -1);
  set_small_data(trainer);
  CHECK_REFUSED(deviceloop_trainer_train(trainer, -1, NULL, NULL, 0, &report), "-1");
  CHECK_FAILS(deviceloop_trainer_train(trainer, 1, throwing_callback, NULL, 0, &report), DEVICELOOP_ERROR,
              "thrown by the callback");
  CHECK(report == NULL);
  CHECK_FAILS(deviceloop_trainer_train(trainer, 1, throwing_callback, &loss, 0, &report), DEVICELOOP_ERROR,
              "no std::exception");
  CHECK_REFUSED(deviceloop_trainer_train(NULL, 1, NULL, NULL, 0, NULL),
                "deviceloop_trainer_train: the argument 'trainer' is null; it must not be");
  CHECK_REFUSED(deviceloop_trainer_prepare(NULL), "'trainer' is null");
  CHECK_REFUSED(deviceloop_trainer_set_data(NULL, NULL, NULL, NULL), "is null");
  CHECK_REFUSED(deviceloop_trainer_set_validation(NULL, NULL, NULL), "'trainer' is null");
  CHECK_REFUSED(deviceloop_trainer_loss(trainer, NULL), "'loss' is null");
  CHECK_REFUSED(deviceloop_trainer_evaluate(NULL, &evaluation), "'trainer' is null");
  CHECK_REFUSED(deviceloop_trainer_best(trainer, NULL, &evaluation), "'found' is null");
  CHECK_REFUSED(deviceloop_trainer_best(NULL, &found, &evaluation), "'trainer' is null");
  CHECK_REFUSED(deviceloop_trainer_steps_done(trainer, NULL), "'steps' is null");
  CHECK_REFUSED(deviceloop_trainer_steps_done(NULL, &steps), "'trainer' is null");
  CHECK_REFUSED(deviceloop_trainer_plan(NULL, &plan), "'trainer' is null");
  CHECK_REFUSED(deviceloop_trainer_network(NULL, &network), "'trainer' is null");
  CHECK_REFUSED(deviceloop_trainer_training(trainer, NULL), "'training' is null");
  CHECK_REFUSED(deviceloop_report_get(NULL, &info), "'report' is null");
  CHECK_REFUSED(deviceloop_report_plan(NULL, &plan), "'report' is null");
  CHECK_REFUSED(deviceloop_report_evaluation(NULL, 0, &evaluation), "'report' is null");
  CHECK_REFUSED(deviceloop_report_stage(NULL, 0, &text, &ms), "'report' is null");
  CHECK_REFUSED(deviceloop_report_algorithm(NULL, 0, &text), "'report' is null");
  deviceloop_trainer_destroy(trainer);
  CHECK_REFUSED(deviceloop_trainer_create(NULL, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer), "'network' is null");
  CHECK(trainer == NULL);
  CHECK_REFUSED(deviceloop_trainer_create(&network, NULL, NULL, DEVICELOOP_EXECUTOR_CPU, NULL), "'trainer' is null");
  training.loss = 42;
  CHECK_REFUSED(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer), "number 42");
  training = training_on_cpu();
  training.batch_size = -3;
  CHECK_REFUSED(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer), "-3");
}

/* Wherever memory runs out, the call says so, gives no handle, and the program goes on. */
static void test_no_memory_left(void) {
  const deviceloop_network_spec network = network_of(small_widths, 3);
  const deviceloop_training_spec training = training_on_cpu();
  deviceloop_caps* caps = NULL;
  deviceloop_trainer* trainer = NULL;
  deviceloop_status status = DEVICELOOP_OUT_OF_MEMORY;
  int allowed;
  CHECK_OK(deviceloop_caps_create(&caps));
  for (allowed = 0; allowed < 10000 && status != DEVICELOOP_OK; ++allowed) {
    trainer = (deviceloop_trainer*)1;
    allow_allocations(allowed);
    status = deviceloop_trainer_create(&network, &training, caps, DEVICELOOP_EXECUTOR_CPU, &trainer);
    allow_allocations(-1);
    if (status != DEVICELOOP_OK) {
      CHECK(status == DEVICELOOP_OUT_OF_MEMORY && trainer == NULL);
      CHECK(strcmp(deviceloop_last_error(), "the host has no memory left for this call") == 0);
    }
  }
  CHECK(status == DEVICELOOP_OK && allowed > 3);
  deviceloop_trainer_destroy(trainer);
  deviceloop_caps_destroy(caps);
  /* Not even for the text. */
  CHECK_REFUSED(deviceloop_caps_query(NULL), "'caps' is null");
  allow_allocations(0);
  status = deviceloop_trainer_load_weights(NULL, "");
  allow_allocations(-1);
  CHECK(status == DEVICELOOP_OUT_OF_MEMORY && strstr(deviceloop_last_error(), "no memory left") != NULL);
}

static int calls_of_allocation = 0;

static void* no_memory(size_t bytes, void* user) {
  (void)bytes;
  calls_of_allocation += *(int*)user;
  return NULL;
}

static void free_nothing(void* memory, size_t bytes, void* user) {
  (void)memory;
  (void)bytes;
  calls_of_allocation += *(int*)user;
}

/* With the plan cpu nothing of a GPU is used, and a run is done when the call returns. Other tests run the same C++
   functions on a GPU. */
static void test_sharing_a_gpu(void) {
  const deviceloop_network_spec network = network_of(small_widths, 3);
  deviceloop_training_spec training = training_on_cpu();
  deviceloop_cuda_options options = {sizeof options, NULL, no_memory, free_nothing, NULL, 1, 0};
  deviceloop_trainer *trainer = NULL, *other = NULL;
  deviceloop_run* run = NULL;
  deviceloop_report *report = NULL, *other_report = NULL;
  deviceloop_report_info info = {sizeof info, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0}, other_info = info;
  deviceloop_matrix on_device = double_matrix(small_x, 6, 3), y = double_matrix(small_y, 6, 2);
  const double* losses = NULL;
  int64_t count = -1;
  int32_t done = -1;
  int one = 1;
  options.user = &one;
  CHECK_OK(deviceloop_trainer_create_with_cuda(&network, &training, &options, DEVICELOOP_EXECUTOR_CPU, &trainer));
  CHECK_OK(deviceloop_trainer_create(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &other));
  set_small_data(trainer);
  set_small_data(other);
  CHECK_OK(deviceloop_trainer_train(other, 9, NULL, NULL, 0, &other_report));
  CHECK_OK(deviceloop_report_get(other_report, &other_info));
  CHECK_OK(deviceloop_trainer_train_async(trainer, 9, &run));
  CHECK_OK(deviceloop_run_done(run, &done));
  CHECK(done == 1);
  CHECK_OK(deviceloop_run_losses(run, &losses, &count));
  CHECK(count == 9 && memcmp(losses, other_info.losses, 9 * sizeof(double)) == 0);
  CHECK_OK(deviceloop_run_wait(run, &report));
  CHECK_OK(deviceloop_report_get(report, &info));
  CHECK(info.steps == 9 && memcmp(info.losses, other_info.losses, 9 * sizeof(double)) == 0);
  deviceloop_report_destroy(report);
  deviceloop_report_destroy(other_report);
  deviceloop_run_destroy(run);
  deviceloop_run_destroy(NULL);
  CHECK(calls_of_allocation == 0);

  CHECK_REFUSED(deviceloop_trainer_data_changed(trainer), "set_data");
  CHECK_FAILS(deviceloop_trainer_enqueue_step(trainer, NULL), DEVICELOOP_UNSUPPORTED, "graph");
  on_device.space = DEVICELOOP_MEMORY_DEVICE;
  CHECK_REFUSED(deviceloop_trainer_set_data(trainer, &on_device, &y, NULL), "GPU");
  CHECK_REFUSED(deviceloop_trainer_train_async(trainer, -1, &run), "-1");
  CHECK(run == NULL);
  CHECK_REFUSED(deviceloop_run_done(NULL, &done), "'run' is null");
  CHECK_REFUSED(deviceloop_run_losses(NULL, &losses, &count), "'run' is null");
  CHECK_REFUSED(deviceloop_run_wait(NULL, &report), "'run' is null");
  CHECK_REFUSED(deviceloop_trainer_enqueue_step(NULL, NULL), "'trainer' is null");
  deviceloop_trainer_destroy(trainer);
  deviceloop_trainer_destroy(other);
  CHECK_REFUSED(deviceloop_trainer_create_with_cuda(&network, &training, NULL, DEVICELOOP_EXECUTOR_CPU, &trainer),
                "'options' is null");
  options.reserved = 3;
  CHECK_REFUSED(deviceloop_trainer_create_with_cuda(&network, &training, &options, DEVICELOOP_EXECUTOR_CPU, &trainer),
                "'reserved' is 3");
  options.reserved = 0;
  options.free = NULL;
  CHECK_REFUSED(deviceloop_trainer_create_with_cuda(&network, &training, &options, DEVICELOOP_EXECUTOR_CPU, &trainer),
                "free");
}

/* What <deviceloop/dlpack.h> does is tested in C++; here, that each function calls the right one. */
static void test_dlpack(void) {
  deviceloop_trainer* trainer = small_trainer(training_on_cpu());
  double weight[3 * 4], bias[2] = {0.5, -0.25}, x[3] = {1, 2, 3}, out[2];
  const deviceloop_matrix weight_view = double_matrix(weight, 3, 4), bias_view = double_matrix(bias, 1, 2);
  const deviceloop_matrix x_view = double_matrix(x, 1, 3), out_view = double_matrix(out, 1, 2);
  deviceloop_matrix view = {NULL, -1, -1, -1, -1, -1};
  struct DLManagedTensorVersioned* tensor = NULL;
  struct DLManagedTensor* legacy = NULL;
  CHECK_OK(deviceloop_trainer_read_weight(trainer, 0, &weight_view));
  CHECK_OK(deviceloop_trainer_weight_to_dlpack(trainer, 0, DEVICELOOP_MEMORY_HOST, &tensor));
  CHECK_OK(deviceloop_view_of_dlpack(tensor, 1, &view));
  CHECK(view.data == tensor->dl_tensor.data && view.rows == 3 && view.columns == 4 && view.row_stride == 4);
  CHECK(view.type == DEVICELOOP_ELEMENT_FLOAT64 && view.space == DEVICELOOP_MEMORY_HOST);
  CHECK(memcmp(view.data, weight, sizeof weight) == 0);
  tensor->flags |= DLPACK_FLAG_BITMASK_READ_ONLY;
  CHECK_OK(deviceloop_view_of_dlpack(tensor, 0, &view));
  CHECK_REFUSED(deviceloop_view_of_dlpack(tensor, 1, &view), "read-only");
  CHECK_REFUSED(deviceloop_legacy_dlpack(tensor, &legacy), "read-only");
  CHECK(legacy == NULL);
  tensor->flags = 0;
  tensor->version.major = 2;
  CHECK_FAILS(deviceloop_view_of_dlpack(tensor, 0, &view), DEVICELOOP_UNSUPPORTED, "DLPack 2.");
  tensor->version.major = 1;
  CHECK_OK(deviceloop_legacy_dlpack(tensor, &legacy));
  memset(&view, 0, sizeof view);
  CHECK_OK(deviceloop_view_of_legacy_dlpack(legacy, &view));
  CHECK(view.data == tensor->dl_tensor.data && view.rows == 3 && view.columns == 4);
  legacy->deleter(legacy); /* and with it `tensor` */
  CHECK_OK(deviceloop_trainer_write_bias(trainer, 1, &bias_view));
  CHECK_OK(deviceloop_trainer_bias_to_dlpack(trainer, 1, DEVICELOOP_MEMORY_HOST, &tensor));
  CHECK(tensor->dl_tensor.ndim == 1 && memcmp(tensor->dl_tensor.data, bias, sizeof bias) == 0);
  deviceloop_dlpack_destroy(tensor);
  deviceloop_dlpack_destroy(NULL);
  CHECK_OK(deviceloop_trainer_predict(trainer, &x_view, &out_view));
  CHECK_OK(deviceloop_trainer_predict_to_dlpack(trainer, &x_view, &tensor));
  CHECK(tensor->dl_tensor.ndim == 2 && memcmp(tensor->dl_tensor.data, out, sizeof out) == 0);
  tensor->deleter(tensor);
  CHECK_REFUSED(deviceloop_trainer_weight_to_dlpack(trainer, 2, DEVICELOOP_MEMORY_HOST, &tensor), "layer");
  CHECK(tensor == NULL);
  CHECK_REFUSED(deviceloop_trainer_bias_to_dlpack(trainer, -1, DEVICELOOP_MEMORY_HOST, &tensor), "layer");
  CHECK_REFUSED(deviceloop_trainer_weight_to_dlpack(trainer, 0, 7, &tensor), "'space' is 7");
  CHECK_REFUSED(deviceloop_trainer_bias_to_dlpack(trainer, 0, DEVICELOOP_MEMORY_DEVICE, &tensor), "plan 'cpu'");
  CHECK_REFUSED(deviceloop_trainer_predict_to_dlpack(trainer, &out_view, &tensor), "[1, 2]");
  CHECK_REFUSED(deviceloop_trainer_predict_to_dlpack(trainer, &x_view, NULL), "'tensor' is null");
  CHECK_REFUSED(deviceloop_view_of_dlpack(NULL, 0, &view), "'tensor' is null");
  CHECK_REFUSED(deviceloop_view_of_legacy_dlpack(NULL, &view), "'tensor' is null");
  CHECK_REFUSED(deviceloop_legacy_dlpack(NULL, &legacy), "'tensor' is null");
  deviceloop_trainer_destroy(trainer);
}

#define CHECK_KERNELS(T, suffix)                                                                                     \
  do {                                                                                                               \
    T in[3] = {-1, 0, 2}, dh[3] = {3, 4, 5}, out[3], target[3] = {1, 1, 1}, gradient[3];                             \
    double loss = -1;                                                                                                \
    CHECK_OK(deviceloop_relu_##suffix(out, in, 3));                                                                  \
    CHECK(out[0] == 0 && out[1] == 0 && out[2] == 2);                                                                \
    CHECK_OK(deviceloop_relu_gradient_##suffix(out, in, dh, 3));                                                     \
    CHECK(out[0] == 0 && out[1] == 4 && out[2] == 5);                                                                \
    CHECK_OK(deviceloop_squared_error_##suffix(&loss, gradient, in, target, 3));                                     \
    CHECK(loss == 6 && gradient[0] == -4 && gradient[1] == -2 && gradient[2] == 2);                                  \
    loss = -1;                                                                                                       \
    CHECK_OK(deviceloop_squared_error_##suffix(&loss, NULL, in, target, 2));                                         \
    CHECK(loss == 5);                                                                                                \
    CHECK_OK(deviceloop_relu_##suffix(NULL, NULL, 0));                                                               \
    CHECK_REFUSED(deviceloop_relu_##suffix(out, NULL, 3), "deviceloop_relu_" #suffix ": the argument 'in' is null"); \
    CHECK_REFUSED(deviceloop_relu_##suffix(out, in, -3), "count is -3");                                             \
    CHECK_REFUSED(deviceloop_relu_##suffix(out, in, INT64_MAX), "2^58");                                             \
    CHECK_REFUSED(deviceloop_relu_##suffix(in + 1, in, 2), "overlap");                                               \
    CHECK_REFUSED(deviceloop_relu_gradient_##suffix(out, in, NULL, 3), "'dh' is null");                              \
    CHECK_REFUSED(deviceloop_squared_error_##suffix(NULL, NULL, in, target, 3), "'loss' is null");                   \
    CHECK_REFUSED(deviceloop_squared_error_##suffix(&loss, NULL, in, NULL, 3), "'target' is null");                  \
  } while (0)

/* In a build without CUDA, and without a GPU, all of them are refused. Where there is a GPU, other tests run them; here
   each gets what it refuses. */
#define CHECK_CUDA_KERNELS(T, suffix)                                                                          \
  do {                                                                                                         \
    const deviceloop_status statuses[] = {                                                                     \
        deviceloop_cuda_relu_##suffix(NULL, NULL, 1, NULL),                                                    \
        deviceloop_cuda_relu_gradient_##suffix(NULL, NULL, NULL, 1, NULL),                                     \
        deviceloop_cuda_bias_relu_##suffix(NULL, NULL, NULL, 1, 1, NULL),                                      \
        deviceloop_cuda_mask_gradient_##suffix(NULL, NULL, NULL, 1, NULL),                                     \
        deviceloop_cuda_squared_error_##suffix(NULL, NULL, NULL, NULL, 1, NULL, 0, NULL),                      \
        deviceloop_cuda_column_sums_##suffix(NULL, NULL, 1, 1, NULL, 0, NULL),                                 \
        deviceloop_cuda_narrow_linear_##suffix(NULL, NULL, NULL, NULL, 1, 1, 1, NULL),                         \
        deviceloop_cuda_narrow_linear_gradient_##suffix(NULL, NULL, NULL, NULL, NULL, 1, 1, 1, NULL, 0, NULL), \
        deviceloop_cuda_sgd_update_##suffix(NULL, NULL, 1, 1, NULL)};                                          \
    size_t i;                                                                                                  \
    for (i = 0; i < sizeof statuses / sizeof *statuses; ++i)                                                   \
      CHECK(statuses[i] == DEVICELOOP_UNSUPPORTED || statuses[i] == DEVICELOOP_INVALID_ARGUMENT);              \
  } while (0)

static void test_kernels(void) {
  size_t bytes = 0;
  deviceloop_status status;
  CHECK_KERNELS(float, f32);
  CHECK_KERNELS(double, f64);
  CHECK_CUDA_KERNELS(float, f32);
  CHECK_CUDA_KERNELS(double, f64);
  status = deviceloop_cuda_relu_f32(NULL, NULL, 1, NULL);
  CHECK(strstr(deviceloop_last_error(), status == DEVICELOOP_UNSUPPORTED ? "CUDA" : "null") != NULL);
  status = deviceloop_cuda_squared_error_workspace((int64_t)1 << 30, &bytes);
  CHECK(status == (has_cuda() ? DEVICELOOP_OK : DEVICELOOP_UNSUPPORTED) && (bytes > 0) == (status == DEVICELOOP_OK));
  status = deviceloop_cuda_column_sums_workspace((int64_t)1 << 20, 64, &bytes);
  CHECK(status == (has_cuda() ? DEVICELOOP_OK : DEVICELOOP_UNSUPPORTED));
  status = deviceloop_cuda_narrow_linear_gradient_workspace((int64_t)1 << 20, 64, 4, &bytes);
  CHECK(status == (has_cuda() ? DEVICELOOP_OK : DEVICELOOP_UNSUPPORTED));
}

int main(void) {
  test_version_and_errors();
  test_defaults();
  test_specifications_come_back();
  test_struct_sizes();
  test_caps_and_plans();
  test_matrices();
  test_the_starting_case();
  test_parameters_and_files();
  test_validation();
  test_refusals_of_training();
  test_no_memory_left();
  test_sharing_a_gpu();
  test_dlpack();
  test_kernels();
  if (failures == 0) puts("the C API is as it should be");
  return failures == 0 ? 0 : 1;
}
